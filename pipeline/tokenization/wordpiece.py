"""Words to word pieces, greedily, and a memory for the words met before."""

from collections.abc import Callable, Mapping
from typing import TypeVar

from pipeline.tokenization.vocabulary import CONTINUATION

Value = TypeVar("Value")

_MAX_ENTRIES = 1 << 16
_MAX_KEY_CHARS = 64


class BoundedCache(dict[str, Value]):
    """A dictionary that computes what it does not hold and never holds more than some megabytes.

    Being a `dict`, it answers `map(cache.__getitem__, keys)` without running Python code for known keys.
    """

    def __init__(self, compute_fn: Callable[[str], Value]):
        super().__init__()
        self._compute_fn = compute_fn

    def __missing__(self, key: str) -> Value:
        value = self._compute_fn(key)
        if len(key) <= _MAX_KEY_CHARS:
            # Frequent words are back after a few documents, so starting over costs less than keeping account of use.
            if len(self) >= _MAX_ENTRIES:
                self.clear()
            self[key] = value
        return value


class WordPieces(BoundedCache[tuple[int, ...]]):
    """The ids of a word's pieces: the whole word if the vocabulary has it, else longest pieces from the left.

    A character at which no piece starts becomes one unknown token, and the word goes on behind it. (Google's tokenizer
    and those after it make the whole word one unknown token.)

    Source: keras_bert.Tokenizer._word_piece_tokenize.
    """

    def __init__(self, vocab: Mapping[str, int], *, unk_id: int, max_pieces: int):
        """Prepare the search.

        Args:
            vocab: token to id; tokens that continue a word start with "##".
            unk_id: id of a character that no piece covers.
            max_pieces: number of pieces after which the rest of a word is of no interest.
        """
        super().__init__(self._split)
        self._unk_id = unk_id
        self._max_pieces = max_pieces
        self._first = vocab
        self._next = {
            token.removeprefix(CONTINUATION): token_id
            for token, token_id in vocab.items()
            if token.startswith(CONTINUATION)
        }
        # Lengths that occur, longest first: what makes the search linear in the length of the word.
        self._first_lengths = sorted(set(map(len, self._first)) - {0}, reverse=True)
        self._next_lengths = sorted(set(map(len, self._next)) - {0}, reverse=True)

    @property
    def longest(self) -> int:
        """Number of characters of the vocabulary's longest entry."""
        return self._first_lengths[0]

    def _split(self, word: str) -> tuple[int, ...]:
        pieces: list[int] = []
        start = 0
        known, lengths = self._first, self._first_lengths
        while start < len(word) and len(pieces) < self._max_pieces:
            for length in lengths:
                token_id = known.get(word[start : start + length])
                if token_id is not None:
                    pieces.append(token_id)
                    # The slice ends with the word where `length` reaches beyond it.
                    start += length
                    break
            else:
                pieces.append(self._unk_id)
                start += 1
            known, lengths = self._next, self._next_lengths
        return tuple(pieces)
