"""Rows of token ids as arrays: a batch of them, how it is gathered, and how words are cut out of characters."""

from dataclasses import dataclass

import numpy as np

from pipeline.tokenization.vocabulary import NUM_EDGE_TOKENS


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenBatch:
    """Documents as rows of token ids, one after another.

    Row i is `ids[row_splits[i]:row_splits[i + 1]]`: `[CLS]`, at most `max_len - 2` tokens, `[SEP]`.

    Attributes:
        ids: int32 [N], all rows, not padded.
        row_splits: int64 [B + 1], from 0 to N.
        truncated: bool [B], True where at least one token of the document did not fit.
    """

    ids: np.ndarray
    row_splits: np.ndarray
    truncated: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each row with `[CLS]` and `[SEP]`, int64 [B]; 2 is a document without any token."""
        return np.diff(self.row_splits)


class TokenRows:
    """Rows of one batch, gathered in any order."""

    def __init__(self, num_rows: int, *, max_tokens: int):
        self.max_tokens = max_tokens
        self._ids = [np.empty(0, np.int32)]
        self._num_ids = 0
        self._starts = np.zeros(num_rows, np.int64)
        self._num_tokens = np.zeros(num_rows, np.int64)

    def add(self, rows: np.ndarray, ids: np.ndarray, starts: np.ndarray, num_tokens: np.ndarray) -> None:
        """Take over rows `rows` [R]; row r is `ids[starts[r] : starts[r] + num_tokens[r] + 2]` with [CLS] and [SEP]."""
        self._ids.append(ids)
        self._starts[rows] = self._num_ids + starts
        self._num_tokens[rows] = num_tokens
        self._num_ids += ids.size

    def to_batch(self, sep_id: int) -> TokenBatch:
        """Put the rows in order and cut what does not fit."""
        lengths = np.minimum(self._num_tokens, self.max_tokens) + NUM_EDGE_TOKENS
        row_splits = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        source = np.arange(row_splits[-1]) + np.repeat(self._starts - row_splits[:-1], lengths)
        ids = np.concatenate(self._ids)[source]
        ids[row_splits[1:] - 1] = sep_id
        return TokenBatch(ids=ids, row_splits=row_splits, truncated=self._num_tokens > self.max_tokens)


def split_words(points: np.ndarray, starts_word: np.ndarray) -> list[str]:
    """Return the words in `points`, uint32 [N] without a line feed, cut where `starts_word`, bool [N], says so."""
    separated = np.full(points.size + np.count_nonzero(starts_word) - 1, ord("\n"), np.uint32)
    separated[np.arange(points.size) + np.cumsum(starts_word) - 1] = points
    return separated.tobytes().decode("utf-32-le").split("\n")
