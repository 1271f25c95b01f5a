"""Ids of many examples as the bytes they are stored as: counted, found and compared without decoding them."""

from collections.abc import Sequence

import numpy as np

from pipeline.dataset.tfexample import encode_varints


class PackedIds:
    """The ids of some examples, one after the other, as the varints that they are stored as.

    Which id is where can be told from the bytes: an id starts where the byte before has no high bit. To decode all of
    them would take as long as everything else together.

    Args:
        packed: the bytes of each example's ids, none of which is longer than it must be.

    Attributes:
        lengths: int64 [N], ids of each example.
    """

    def __init__(self, packed: Sequence[bytes]):
        self._data = np.frombuffer(b"".join(packed), dtype=np.uint8)
        self._edges = np.cumsum([0, *map(len, packed)])
        self._is_last = self._data < 0x80
        self._is_first = np.concatenate([[True], self._is_last[:-1]])
        self.lengths = self.per_example(self._is_last)

    def per_example(self, mask: np.ndarray) -> np.ndarray:
        """Count marked bytes of each example."""
        return np.diff(np.searchsorted(np.flatnonzero(mask), self._edges))

    def equal_to(self, id_: int) -> np.ndarray:
        """Mark the first byte of every id of this value."""
        pattern = encode_varints(np.array([id_]))[0]
        mask: np.ndarray = self._is_first & (self._data == pattern[0])
        for index, byte in enumerate(pattern[1:].tolist(), 1):
            mask[:-index] &= self._data[index:] == byte
            mask[-index:] = False
        return mask

    def ends(self, mask: np.ndarray, id_: int) -> tuple[np.ndarray, np.ndarray]:
        """Tell of which examples the first, and of which the last id is marked; `id_` is what was marked."""
        size = len(encode_varints(np.array([id_]))[0])
        return mask[self._edges[:-1]], mask[np.maximum(self._edges[1:] - size, self._edges[:-1])]

    def not_below(self, limit: int) -> np.ndarray:
        """Mark the last byte of every id that is not below a limit."""
        width = len(encode_varints(np.array([limit - 1]))[0])
        follows = np.ones(len(self._data), dtype=bool)
        for index in range(1, width):
            follows[index:] &= ~self._is_last[:-index]
            follows[:index] = False
        # All ids of this width and more; of those before `follows`, none can be too large.
        candidates = np.flatnonzero(follows & self._is_last)
        values = np.zeros(len(candidates), dtype=np.int64)
        for index in range(width):
            values = values << 7 | self._data[candidates - index] & 0x7F
        is_wider = self._is_first[candidates - width + 1] == 0
        mask = np.zeros(len(self._data), dtype=bool)
        mask[candidates[is_wider | (values >= limit)]] = True
        return mask

    def value_at(self, position: int) -> int:
        """Return the id whose last byte stands at a position."""
        first = position - int(np.argmax(self._is_first[position::-1]))
        value = 0
        for byte in self._data[first : position + 1][::-1].tolist():
            value = value << 7 | byte & 0x7F
        return value

    def last_bytes(self, at: int, mask: np.ndarray) -> np.ndarray:
        """Return the positions of one example's marked bytes."""
        return np.flatnonzero(mask[self._edges[at] : self._edges[at + 1]]) + self._edges[at]

    def id_at(self, at: int, index: int) -> int:
        """Return one id of one example."""
        return self.value_at(int(self.last_bytes(at, self._is_last)[index]))
