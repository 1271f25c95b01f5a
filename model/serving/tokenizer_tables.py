"""What the tokenizer inside the graph looks up, as arrays: built once from a vocabulary, with NumPy alone.

`pipeline.tokenization.characters` defines the folding of most characters on their own. This module has, as tables over
all code points, what it leaves to Python's `unicodedata` and `str.lower`: decompositions into several characters, the
order of combining marks, and the Greek capital sigma, whose lower case depends on its neighbours. Word pieces become a
trie.

The tables have one entry more than there are code points: TEXT_END, which ends every text of a batch, so that
nothing looks across the border between two texts.
"""

import dataclasses
import re
import unicodedata
from collections.abc import Mapping

import numpy as np

from pipeline.tokenization.characters import DROP as FOLDS_TO_NOTHING
from pipeline.tokenization.characters import IN_CONTEXT, NUM_CODE_POINTS, SINGLE, SPACE, WORD, class_table, fold_table
from pipeline.tokenization.vocabulary import CONTINUATION, UNK_TOKEN

TEXT_END = NUM_CODE_POINTS

# What becomes of a character, beside the ids of those that are a token of their own. Everything at or below
# FIRST_LETTER_CODE is part of a word: letter number FIRST_LETTER_CODE - code of the alphabet.
SPACE_CODE = -1
DROP_CODE = -2
TEXT_END_CODE = -3
IN_CONTEXT_CODE = -4
FIRST_LETTER_CODE = -5

# Bits of `TokenizerTables.context`.
COMBINING_CLASS = 0xFF
CASED = 0x100
CASE_IGNORABLE = 0x200

CAPITAL_SIGMA, FINAL_SIGMA, SMALL_SIGMA = map(ord, "Σςσ")

# States of the trie in which a word begins and goes on.
FIRST_PIECE, NEXT_PIECE = 0, 1

_PAGE_BITS = 8
_PAGE_SIZE = 1 << _PAGE_BITS


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PagedTable:
    """A table over all code points and TEXT_END, of which equal pages are stored once.

    Entry i is `entries[page_starts[i >> page_bits] + (i & (2 ** page_bits - 1))]`.

    Attributes:
        page_starts: int32 [number of pages].
        entries: int32 [number of different pages × page size].
        page_bits: logarithm of the page size.
    """

    page_starts: np.ndarray
    entries: np.ndarray
    page_bits: int = _PAGE_BITS

    @classmethod
    def of(cls, values: np.ndarray) -> "PagedTable":
        """Build a table from int32 [NUM_CODE_POINTS + 1]."""
        padded = np.zeros(-(-values.size // _PAGE_SIZE) * _PAGE_SIZE, np.int32)
        padded[: values.size] = values
        places: dict[bytes, int] = {}
        page_starts = [
            places.setdefault(page.tobytes(), len(places)) * _PAGE_SIZE for page in padded.reshape(-1, _PAGE_SIZE)
        ]
        return cls(page_starts=np.array(page_starts, np.int32), entries=np.frombuffer(b"".join(places), np.int32))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Trie:
    """The word pieces of a vocabulary, letter by letter.

    States are numbers; FIRST_PIECE and NEXT_PIECE are where the search for a word's first and for a later piece starts.

    Attributes:
        alphabet_size: number of letters; letter 0 leads nowhere.
        edges: int64 [E], state × alphabet_size + letter of each edge, ascending; the last one leads from no state.
        targets: int32 [E], the state to which each edge leads.
        token_ids: int32 [states], the id of the piece that ends in a state; -1 where none does.
        depths: int32 [states], letters from the start.
    """

    alphabet_size: int
    edges: np.ndarray
    targets: np.ndarray
    token_ids: np.ndarray
    depths: np.ndarray

    @classmethod
    def of(cls, first_pieces: Mapping[str, int], next_pieces: Mapping[str, int], letters: Mapping[str, int]) -> "Trie":
        """Build a trie.

        Args:
            first_pieces: what a word may begin with → id.
            next_pieces: what it may go on with, without "##" → id.
            letters: character → its number, from 1.
        """
        alphabet_size = max(letters.values(), default=0) + 1
        edges: dict[int, int] = {}
        token_ids, depths = [-1, -1], [0, 0]
        for root, pieces in ((FIRST_PIECE, first_pieces), (NEXT_PIECE, next_pieces)):
            for piece, token_id in pieces.items():
                state = root
                for depth, character in enumerate(piece, 1):
                    state = edges.setdefault(state * alphabet_size + letters[character], len(depths))
                    if state == len(depths):
                        token_ids.append(-1)
                        depths.append(depth)
                token_ids[state] = token_id
        keys = sorted(edges)
        return cls(
            alphabet_size=alphabet_size,
            edges=np.array([*keys, np.iinfo(np.int64).max], np.int64),
            targets=np.array([*(edges[key] for key in keys), 0], np.int32),
            token_ids=np.array(token_ids, np.int32),
            depths=np.array(depths, np.int32),
        )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TokenizerTables:
    """All that the graph looks up.

    Attributes:
        white_space: bool [W], what `str.strip` removes; the last entry, False, is that of all later code points.
        codes: code point → id of a token of its own, SPACE_CODE, DROP_CODE, TEXT_END_CODE, its letter, or
            IN_CONTEXT_CODE: the other tables must be asked, about all characters of the text.
        fold: code point → folded code point, or 0 for itself, or -1 - the row of `expansions`. The capital sigma folds
            to itself, and so do nonspacing marks that keep others from trading places; all else is lower case.
        expansions: int32 [M, 3], the folded code points of each row, -1 behind its end.
        context: folded code point → COMBINING_CLASS | CASED | CASE_IGNORABLE.
        folded_codes: folded code point → as `codes`, but never IN_CONTEXT_CODE.
        trie: the word pieces.
    """

    white_space: np.ndarray
    codes: PagedTable
    fold: PagedTable
    expansions: np.ndarray
    context: PagedTable
    folded_codes: PagedTable
    trie: Trie


def build_tables(vocab: Mapping[str, int], *, cased: bool) -> TokenizerTables:
    """Build the tables for a vocabulary, token → id; with `cased`, every character folds to itself."""
    alone = np.arange(NUM_CODE_POINTS, dtype=np.int32) if cased else fold_table()
    first_pieces, next_pieces = _word_pieces(vocab, alone)
    letters = {letter: number for number, letter in enumerate(sorted(set().union(*first_pieces, *next_pieces)), 1)}
    folded_codes = _folded_codes(vocab, letters, alone)
    fold, expansions = _fold_values()
    codes = np.where(alone >= 0, folded_codes[alone], np.where(alone == IN_CONTEXT, IN_CONTEXT_CODE, DROP_CODE))
    return TokenizerTables(
        white_space=_white_space(),
        codes=PagedTable.of(_with_text_end(codes, TEXT_END_CODE)),
        fold=PagedTable.of(_with_text_end(fold, 0)),
        expansions=expansions,
        context=PagedTable.of(_with_text_end(_combining_classes() | _case_bits(), 0)),
        folded_codes=PagedTable.of(_with_text_end(folded_codes, TEXT_END_CODE)),
        trie=Trie.of(first_pieces, next_pieces, letters),
    )


def _with_text_end(values: np.ndarray, text_end: int) -> np.ndarray:
    return np.append(values, text_end).astype(np.int32)


def _white_space() -> np.ndarray:
    characters = np.arange(NUM_CODE_POINTS, dtype=np.uint32).tobytes().decode("utf-32-le", "surrogatepass")
    # `\s` is what `str.isspace` says, and that what `str.strip` goes by.
    spaces = [match.start() for match in re.finditer(r"\s", characters)]
    table = np.zeros(max(spaces) + 2, np.bool_)
    table[spaces] = True
    return table


def _fold_values() -> tuple[np.ndarray, np.ndarray]:
    """Return `fold` as int32 [NUM_CODE_POINTS], and `expansions`."""
    fold = np.array(fold_table())
    rows: dict[tuple[int, ...], int] = {}
    for point in np.flatnonzero(fold < 0).tolist():
        symbols = _expand(chr(point))
        fold[point] = symbols[0] if len(symbols) == 1 else -1 - rows.setdefault(symbols, len(rows))
    # Most characters fold to themselves, so this makes most pages equal.
    fold[fold == np.arange(fold.size)] = 0
    expansions = np.full((len(rows), max(map(len, rows))), -1, np.int32)
    for symbols, row in rows.items():
        expansions[row, : len(symbols)] = symbols
    return fold, expansions


def _expand(character: str) -> tuple[int, ...]:
    # Removing a mark with a combining class beforehand changes nothing for the others: sorting is stable. One without
    # (category Mn, class 0) ends a run of marks, so it has to stay until they are sorted.
    kept = [
        c
        for c in unicodedata.normalize("NFD", character)
        if unicodedata.category(c) != "Mn" or not unicodedata.combining(c)
    ]
    return tuple(CAPITAL_SIGMA if ord(c) == CAPITAL_SIGMA else ord(c.lower()) for c in kept)


def _combining_classes() -> np.ndarray:
    """Return the combining class of every character that folding leaves in the text, int32 [NUM_CODE_POINTS]."""
    classes = np.zeros(NUM_CODE_POINTS, np.int32)
    for point in np.flatnonzero(fold_table() == IN_CONTEXT).tolist():
        classes[point] = unicodedata.combining(chr(point))
    return classes


def _case_bits() -> np.ndarray:
    """Return CASED | CASE_IGNORABLE of every code point, int32 [NUM_CODE_POINTS].

    Python does not say which characters have these properties, but it acts upon them: a capital sigma becomes a final
    one behind a cased character, looking through ignorable ones.

    Source: The Unicode Standard, section 3.13, table 3-17 (Final_Sigma); `str.lower`.
    """
    points = np.arange(NUM_CODE_POINTS, dtype=np.uint32)
    # The only character whose lower case is two characters; NFD takes it apart, so it never gets here.
    points[ord("İ")] = ord("I")
    behind_it = _ends_in_final_sigma([points])
    behind_it_and_a_letter = _ends_in_final_sigma([np.full_like(points, ord("a")), points])
    return np.select([behind_it, behind_it_and_a_letter], [CASED, CASE_IGNORABLE], 0).astype(np.int32)


def _ends_in_final_sigma(columns: list[np.ndarray]) -> np.ndarray:
    """Tell for each row of characters whether a capital sigma behind it is a final one."""
    constants = [np.full_like(columns[0], ord(character)) for character in "Σ\n"]
    lines = np.stack([*columns, *constants], axis=1)
    lowered = lines.tobytes().decode("utf-32-le", "surrogatepass").lower()
    result = np.frombuffer(lowered.encode("utf-32-le", "surrogatepass"), np.uint32).reshape(lines.shape)
    return np.asarray(result[:, -2] == FINAL_SIGMA)


def _word_pieces(vocab: Mapping[str, int], alone: np.ndarray) -> tuple[dict[str, int], dict[str, int]]:
    """Return the entries that a word can begin with, and without "##" those it can go on with."""
    is_letter = (class_table() == WORD) & (alone != FOLDS_TO_NOTHING)

    def consists_of_letters(piece: str) -> bool:
        return bool(piece) and all(is_letter[ord(character)] for character in piece)

    first_pieces = {token: token_id for token, token_id in vocab.items() if consists_of_letters(token)}
    continuations = {
        token.removeprefix(CONTINUATION): token_id
        for token, token_id in vocab.items()
        if token.startswith(CONTINUATION)
    }
    return first_pieces, {piece: token_id for piece, token_id in continuations.items() if consists_of_letters(piece)}


def _folded_codes(vocab: Mapping[str, int], letters: Mapping[str, int], alone: np.ndarray) -> np.ndarray:
    """Return the codes of folded characters, int32 [NUM_CODE_POINTS]."""
    classes = class_table()
    codes = np.full(NUM_CODE_POINTS, DROP_CODE, np.int32)
    codes[classes == SINGLE] = vocab[UNK_TOKEN]
    codes[classes == SPACE] = SPACE_CODE
    codes[classes == WORD] = FIRST_LETTER_CODE
    for character, number in letters.items():
        codes[ord(character)] = FIRST_LETTER_CODE - number
    for token, token_id in vocab.items():
        if len(token) == 1 and classes[ord(token)] == SINGLE:
            codes[ord(token)] = token_id
    # Nonspacing marks that were kept for the sake of the others' order.
    codes[alone == FOLDS_TO_NOTHING] = DROP_CODE
    return codes
