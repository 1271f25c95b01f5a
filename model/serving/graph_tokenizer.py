"""The tokenizer as a TensorFlow graph: raw strings in, exactly the ids of the training records out.

It computes `pipeline.tokenization.tokenizer.Tokenizer.encode(pipeline.corpus.documents.normalize_text(text))`, which is
keras-bert's tokenizer on the normalized text, for all of Unicode, with TensorFlow's own operations alone: no Python, no
extension. Any TensorFlow Serving runs it.

    strings ─▶ code points ─▶ normalized ─▶ folded ─▶ codes ─▶ word pieces ─▶ indices, segments
               UTF-8          strip, 。     NFD,      ids of      longest
                                            no marks, characters, first, by a
                                            lower;    letters     trie
                                            or as is

A whole batch is one long vector of characters, each text followed by TEXT_END, and every step works on all of it at
once. Bytes that are not UTF-8 become U+FFFD, as with Python's `errors="replace"`, and the tokenizer drops those. A text
of which nothing is left is `[CLS] [SEP]`.
"""

from collections.abc import Mapping

import tensorflow as tf

from model.serving.tokenizer_tables import (
    CAPITAL_SIGMA,
    CASE_IGNORABLE,
    CASED,
    COMBINING_CLASS,
    DROP_CODE,
    FINAL_SIGMA,
    FIRST_LETTER_CODE,
    FIRST_PIECE,
    IN_CONTEXT_CODE,
    NEXT_PIECE,
    SMALL_SIGMA,
    TEXT_END,
    TEXT_END_CODE,
    PagedTable,
    build_tables,
)
from pipeline.tokenization.vocabulary import CLS_TOKEN, SEP_TOKEN, UNK_TOKEN

_TAB, _LINE_FEED, _CARRIAGE_RETURN, _BYTE_ORDER_MARK, _WIDE_SPACE, _STOP = map(ord, "\t\n\r\ufeff\u3000。")


class GraphTokenizer:
    """Turn a batch of raw strings into padded BERT inputs, inside a graph.

    Attributes:
        max_len: longest row, with `[CLS]` and `[SEP]`.
    """

    def __init__(self, vocab: Mapping[str, int], *, max_len: int, cased: bool = False):
        """Build the tables (a second or two).

        Args:
            vocab: token to id, as from `pipeline.tokenization.vocabulary.load_vocab`; `[PAD]` is 0.
            max_len: longest row, with `[CLS]` and `[SEP]`.
            cased: keep letter case and accents.
        """
        self.max_len = max_len
        self._cls_id, self._sep_id, self._unk_id = (vocab[token] for token in (CLS_TOKEN, SEP_TOKEN, UNK_TOKEN))
        self._tables = build_tables(vocab, cased=cased)

    def __call__(self, texts: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Tokenize.

        Args:    texts: string [B], UTF-8.
        Returns: indices: int32 [B, L], L <= max_len the longest row's length; shorter rows are padded with 0.
                 segments: int32 [B, L], all zeros.
        """
        # Many small steps: on an accelerator each would be a launch, and strings are not allowed there anyway.
        with tf.device("CPU:0"):
            codes = self._codes(_normalize(_decode(texts), self._tables.white_space))
            indices = self._pad(self._replace_words(codes))
            return indices, tf.zeros_like(indices)

    def _codes(self, points: tf.Tensor) -> tf.Tensor:
        """Return the codes of normalized characters, int32 [N], without those that are dropped."""
        codes = _look_up(self._tables.codes, points)
        codes = tf.cond(tf.reduce_any(codes == IN_CONTEXT_CODE), lambda: self._codes_in_context(points), lambda: codes)
        return tf.boolean_mask(codes, codes != DROP_CODE)

    def _codes_in_context(self, points: tf.Tensor) -> tf.Tensor:
        """Return the codes where some characters' folding depends on their neighbours or gives several."""
        tables = self._tables
        symbols = _expand(points, tables.fold, tables.expansions)
        symbols = _lower_sigmas(_sort_marks(symbols, tables.context), tables.context)
        return _look_up(tables.folded_codes, symbols)

    def _replace_words(self, codes: tf.Tensor) -> tf.Tensor:
        """Replace the letters of each word by the ids of its pieces, TEXT_END by [SEP], and remove spaces."""
        is_letter = codes <= FIRST_LETTER_CODE
        places = _where(is_letter)
        starts_word = tf.gather(is_letter & ~tf.concat([[False], is_letter[:-1]], axis=0), places)
        # Whatever follows a word has the letter 0, at which the search ends.
        letters = tf.maximum(FIRST_LETTER_CODE - codes, 0)
        pieces, lengths = self._longest_pieces(letters, places, starts_word)
        pieces = tf.where(_reached(starts_word, lengths), pieces, -1)
        ids = tf.where(codes == TEXT_END_CODE, self._sep_id, codes)
        ids = tf.tensor_scatter_nd_update(ids, places[:, tf.newaxis], pieces)
        return tf.boolean_mask(ids, ids >= 0)

    def _longest_pieces(
        self, letters: tf.Tensor, places: tf.Tensor, starts_word: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Find the longest piece that starts at each letter, whether or not a piece will start there.

        Args:
            letters: int32 [N], numbers of the alphabet; 0 where no word is.
            places: int32 [W], of the letters of words.
            starts_word: bool [W], which of them are the first of their word.

        Returns:
            ids int32 [W]; numbers of letters int32 [W], at least 1: where no piece starts, one letter is unknown.
        """
        trie = self._tables.trie
        edges, targets, token_ids = tf.constant(trie.edges), tf.constant(trie.targets), tf.constant(trie.token_ids)

        def step(depth: tf.Tensor, active: tf.Tensor, states: tf.Tensor, best: tf.Tensor) -> tuple[tf.Tensor, ...]:
            read = tf.gather(letters, tf.gather(places, active) + depth)
            keys = tf.cast(states, tf.int64) * trie.alphabet_size + tf.cast(read, tf.int64)
            found = tf.searchsorted(edges, keys)
            goes_on = tf.gather(edges, found) == keys
            active, states = tf.boolean_mask(active, goes_on), tf.gather(targets, tf.boolean_mask(found, goes_on))
            ends_piece = tf.gather(token_ids, states) >= 0
            best = tf.tensor_scatter_nd_update(
                best, tf.boolean_mask(active, ends_piece)[:, tf.newaxis], tf.boolean_mask(states, ends_piece)
            )
            return depth + 1, active, states, best

        roots = tf.where(starts_word, FIRST_PIECE, NEXT_PIECE)
        vector = tf.TensorShape([None])
        *_, best = tf.while_loop(
            lambda depth, active, states, best: tf.size(active) > 0,
            step,
            (0, tf.range(tf.size(places)), roots, tf.fill(tf.shape(places), -1)),
            shape_invariants=(tf.TensorShape([]), vector, vector, vector),
        )
        known = tf.maximum(best, 0)
        return (
            tf.where(best < 0, self._unk_id, tf.gather(token_ids, known)),
            tf.where(best < 0, 1, tf.gather(tf.constant(trie.depths), known)),
        )

    def _pad(self, ids: tf.Tensor) -> tf.Tensor:
        """Turn consecutive rows, each with its [SEP], into int32 [B, L] with [CLS]."""
        ends = _where(ids == self._sep_id) + 1
        rows = tf.RaggedTensor.from_row_splits(ids, tf.concat([[0], ends], axis=0), validate=False)
        lengths = tf.minimum(rows.row_lengths(), self.max_len - 1)
        longest = tf.reduce_max(tf.concat([[1], lengths], axis=0))
        indices = rows.to_tensor(shape=tf.stack([-1, longest]))
        # Where a row was cut, its [SEP] was cut off too.
        indices = tf.where(tf.range(longest) == lengths[:, tf.newaxis] - 1, self._sep_id, indices)
        return tf.pad(indices, [[0, 0], [1, 0]], constant_values=self._cls_id)


def _where(mask: tf.Tensor) -> tf.Tensor:
    """Return the places at which a bool [N] is True, int32 [M]."""
    return tf.cast(tf.where(mask)[:, 0], tf.int32)


def _look_up(table: PagedTable, points: tf.Tensor) -> tf.Tensor:
    """Return a table's entries for code points, int32 [N]."""
    starts = tf.gather(table.page_starts, tf.bitwise.right_shift(points, table.page_bits))
    return tf.gather(table.entries, starts + tf.bitwise.bitwise_and(points, (1 << table.page_bits) - 1))


def _decode(texts: tf.Tensor) -> tf.Tensor:
    """Return the code points of all texts, int32 [N], each text followed by TEXT_END."""
    # The last character of each row is then the one that was appended, whatever bytes come before it.
    rows = tf.strings.unicode_decode(tf.strings.join([texts, "\n"]), "UTF-8", errors="replace")
    ends = rows.row_splits[1:, tf.newaxis] - 1
    return tf.tensor_scatter_nd_update(rows.flat_values, ends, tf.fill([rows.nrows()], TEXT_END))


def _normalize(points: tf.Tensor, white_space: tf.Tensor) -> tf.Tensor:
    """Do what `pipeline.corpus.documents.normalize_text` does, to code points int32 [N]."""
    is_rare = (points == _CARRIAGE_RETURN) | (points == _BYTE_ORDER_MARK)
    points = tf.cond(tf.reduce_any(is_rare), lambda: _unify_line_ends(points), lambda: points)
    # White space is stripped where nothing but white space lies between it and an end of its text.
    places = _where(tf.gather(white_space, tf.minimum(points, len(white_space) - 1)))
    starts_run = places != tf.concat([[-1], places[:-1] + 1], axis=0)
    ends_run = tf.concat([starts_run[1:], [True]], axis=0)[: tf.size(places)]
    first, last = tf.boolean_mask(places, starts_run), tf.boolean_mask(places, ends_run)
    starts_text = (first == 0) | (tf.gather(points, tf.maximum(first - 1, 0)) == TEXT_END)
    ends_text = tf.gather(points, last + 1) == TEXT_END
    spaces = tf.gather(points, places)
    removed = tf.gather(starts_text | ends_text, tf.cumsum(tf.cast(starts_run, tf.int32)) - 1)
    removed |= (spaces == _TAB) | (spaces == _WIDE_SPACE)
    spaces = tf.where(removed, -1, tf.where(spaces == _LINE_FEED, _STOP, spaces))
    points = tf.tensor_scatter_nd_update(points, places[:, tf.newaxis], spaces)
    points = tf.boolean_mask(points, points >= 0)
    repeated = (points == _STOP) & (tf.concat([[TEXT_END], points[:-1]], axis=0) == _STOP)
    return tf.boolean_mask(points, ~repeated)


def _unify_line_ends(points: tf.Tensor) -> tf.Tensor:
    """Make all line ends line feeds, and drop a byte-order mark at the start of a text."""
    is_return = points == _CARRIAGE_RETURN
    is_first_of_two = is_return & (tf.concat([points[1:], [TEXT_END]], axis=0) == _LINE_FEED)
    is_mark = (points == _BYTE_ORDER_MARK) & (tf.concat([[TEXT_END], points[:-1]], axis=0) == TEXT_END)
    return tf.boolean_mask(tf.where(is_return, _LINE_FEED, points), ~is_first_of_two & ~is_mark)


def _expand(points: tf.Tensor, fold: PagedTable, expansions: tf.Tensor) -> tf.Tensor:
    """Replace every character by what it folds to."""
    folded = _look_up(fold, points)
    itself = tf.where(folded == 0, points, folded)[:, tf.newaxis]
    rows = tf.gather(expansions, tf.maximum(-1 - folded, 0))
    itself = tf.pad(itself, [[0, 0], [0, expansions.shape[1] - 1]], constant_values=-1)
    symbols = tf.where(folded[:, tf.newaxis] < 0, rows, itself)
    return tf.boolean_mask(symbols, symbols >= 0)


def _sort_marks(symbols: tf.Tensor, context: PagedTable) -> tf.Tensor:
    """Put runs of combining marks into canonical order.

    Source: The Unicode Standard, section 3.11, D109.
    """
    combining_class = tf.bitwise.bitwise_and(_look_up(context, symbols), COMBINING_CLASS)
    marks = _where(combining_class > 0)
    run = tf.cumsum(tf.cast(combining_class == 0, tf.int64))
    keys = run * (COMBINING_CLASS + 1) + tf.cast(combining_class, tf.int64)
    order = tf.argsort(tf.gather(keys, marks), stable=True)
    return tf.tensor_scatter_nd_update(symbols, marks[:, tf.newaxis], tf.gather(symbols, tf.gather(marks, order)))


def _lower_sigmas(symbols: tf.Tensor, context: PagedTable) -> tf.Tensor:
    """Make each capital sigma a small one: a final one behind a cased character, unless another follows."""
    bits = _look_up(context, symbols)
    solid = tf.bitwise.bitwise_and(bits, CASE_IGNORABLE) == 0
    cased = tf.boolean_mask(tf.bitwise.bitwise_and(bits, CASED) > 0, solid)
    sigmas = _where(symbols == CAPITAL_SIGMA)
    rank = tf.gather(tf.cumsum(tf.cast(solid, tf.int32)), sigmas)
    behind_cased = tf.gather(tf.concat([[False], cased], axis=0), rank - 1)
    # There is a next one: TEXT_END.
    before_cased = tf.gather(cased, rank)
    small = tf.where(behind_cased & ~before_cased, FINAL_SIGMA, SMALL_SIGMA)
    return tf.tensor_scatter_nd_update(symbols, sigmas[:, tf.newaxis], small)


def _reached(starts_word: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
    """Tell which letters begin a piece: the first of each word, and wherever the piece before ends.

    Following the pieces one by one would take as many steps as the longest word has. Each step here doubles the number
    of pieces that are jumped over, so a word of a million letters takes twenty.

    Args:
        starts_word: bool [W].
        lengths: int32 [W], of the piece that starts at each letter; none reaches into the next word.

    Returns:
        bool [W].
    """
    num_letters = tf.size(lengths)
    jumps = tf.concat([tf.range(num_letters) + lengths, [num_letters]], axis=0)
    reached = tf.concat([starts_word, [True]], axis=0)

    def step(reached: tf.Tensor, jumps: tf.Tensor, grows: tf.Tensor) -> tuple[tf.Tensor, ...]:
        targets = tf.boolean_mask(jumps, reached)
        more = tf.tensor_scatter_nd_update(reached, targets[:, tf.newaxis], tf.ones_like(targets, tf.bool))
        return more, tf.gather(jumps, jumps), tf.reduce_any(more != reached)

    reached, *_ = tf.while_loop(lambda reached, jumps, grows: grows, step, (reached, jumps, num_letters > 0))
    return reached[:-1]
