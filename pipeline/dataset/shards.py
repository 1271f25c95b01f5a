"""Where a document goes: split, shard and order inside the shard, all a pure function of its text and the seed.

One keyed hash of the normalized text decides everything: no runner, worker count or retry changes it, documents with
the same text go to the same shard, and the shards together are one global shuffle of the corpus.
"""

import dataclasses
import hashlib
import math
import re
from collections.abc import Sequence

STANDARD_SPLITS = ("train", "dev", "test")
COMPRESSIONS = ("none", "gzip")
MAX_MAX_LEN = 65_535  # lengths are stored as uint16
MAX_SHARDS = 99_999  # five digits in a shard's name

SHARD_NAME = re.compile(r"^(?P<split>[A-Za-z0-9_]+)-(?P<index>\d{5})-of-(?P<num_shards>\d{5})\.tfrecord(?P<gz>\.gz)?$")

# About 10,000 documents are 5-15 MB of records: small enough to hold in memory while sorting, long enough to stream.
EXAMPLES_PER_SHARD = 10_000
# Small splits still get a few shards, so that several workers can write and several readers interleave.
MIN_EXAMPLES_PER_SHARD = 500
SHARDS_OF_A_SMALL_SPLIT = 8
# A worker holds the shard that it writes in memory.
MAX_SHARD_BYTES = 64 << 20
BYTES_PER_TOKEN = 4  # at most: three of the id's varint, up to a vocabulary of two million, and one of the segment's

_WORD_BYTES = 8
_UNIT = 2.0**-64


@dataclasses.dataclass(frozen=True)
class Placement:
    """Four independent 64-bit words drawn from one document's text and the seed.

    Attributes:
        digest: 32 bytes; equal digests mean equal normalized texts.
    """

    digest: bytes

    def _word(self, index: int) -> int:
        return int.from_bytes(self.digest[index * _WORD_BYTES : (index + 1) * _WORD_BYTES], "big")

    def split(self, weights: Sequence[tuple[str, float]]) -> str:
        """Return the split this document falls into; `weights` are (name, share) and sum to 1."""
        position = self._word(0) * _UNIT
        cumulative = 0.0
        for name, share in weights:
            cumulative += share
            if position < cumulative:
                return name
        # Rounding can leave the last edge a hair below 1.
        return next(name for name, share in reversed(weights) if share > 0)

    def shard(self, num_shards: int) -> int:
        """Return the shard's index in [0, num_shards)."""
        return self._word(1) * num_shards >> 64

    def choice(self, num_choices: int) -> int:
        """Return a stable random number in [0, num_choices), independent of split and shard."""
        return self._word(2) * num_choices >> 64

    @property
    def order(self) -> bytes:
        """The sort key inside a shard."""
        return self.digest[3 * _WORD_BYTES :]


def place(text: str, seed: int) -> Placement:
    """Hash a normalized text into its placement.

    Args:
        text: the normalized document.
        seed: 0 <= seed < 2**63; another seed gives another, independent placement.
    """
    return Placement(hashlib.blake2b(text.encode(), digest_size=4 * _WORD_BYTES, key=seed.to_bytes(8, "big")).digest())


def auto_num_shards(num_examples: int, max_len: int) -> int:
    """Return a number of shards: EXAMPLES_PER_SHARD examples in each, fewer if they could exceed MAX_SHARD_BYTES."""
    small = min(SHARDS_OF_A_SMALL_SPLIT, num_examples // MIN_EXAMPLES_PER_SHARD)
    by_bytes = math.ceil(num_examples * max_len * BYTES_PER_TOKEN / MAX_SHARD_BYTES)
    return min(max(1, small, math.ceil(num_examples / EXAMPLES_PER_SHARD), by_bytes), MAX_SHARDS)


def shard_name(split: str, index: int, num_shards: int, compression: str) -> str:
    """Return a shard's file name, such as `train-00003-of-00064.tfrecord`; `compression` is `none` or `gzip`."""
    suffix = ".gz" if compression == "gzip" else ""
    return f"{split}-{index:05d}-of-{num_shards:05d}.tfrecord{suffix}"
