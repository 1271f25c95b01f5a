"""Plan how a split is cut into batches of a few padded lengths.

The histogram of lengths in `dataset.json` is enough for the best padded lengths, the exact number of batches per epoch
and the share of padding. `pipeline.input_pipeline.epoch_plan` decides which example makes which row.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Literal

import numpy as np

from pipeline.errors import OptionError
from pipeline.tokenization.vocabulary import MIN_MAX_LEN

# Each shape is compiled once. News articles at 512 have 2.5 % padding with 6 lengths, 1.9 % with 8; headlines 4.6 % and
# 2.7 %.
MAX_BUCKETS = 6
# Multiples of 8 suit tensor cores; used where they add at most this share of positions.
EDGE_MULTIPLE = 8
MAX_ROUNDING_COST = 0.01
# Time and memory grow with the square: 34 GB for the 65,535 lengths that a dataset may have.
MAX_CANDIDATES = 1_024

Buckets = Literal["auto", "off"] | Sequence[int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """How a split is cut into batches.

    Attributes:
        global_batch_size: examples per batch, over all replicas and workers.
        max_len: longer examples are cut to this many positions; None takes the dataset's.
        buckets: `auto` chooses the padded lengths, `off` pads everything to `max_len`, numbers are the padded lengths.
        batch_tokens: positions per batch instead of examples per batch; `global_batch_size` then has no effect.
        batch_multiple: a full batch is a multiple of this, the number of replicas over all workers.

    Raises:
        OptionError: on values that make no batch.
    """

    global_batch_size: int = 32
    max_len: int | None = None
    buckets: Buckets = "auto"
    batch_tokens: int | None = None
    batch_multiple: int = 1

    def __post_init__(self) -> None:
        for name in ("global_batch_size", "batch_multiple", "batch_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise OptionError(f"{name} must be at least 1, got {value}")
        if self.max_len is not None and self.max_len < MIN_MAX_LEN:
            raise OptionError(f"max_len must be at least {MIN_MAX_LEN} ([CLS], one token, [SEP]), got {self.max_len}")
        if self.batch_tokens is None and self.global_batch_size % self.batch_multiple:
            raise OptionError(
                f"a global batch of {self.global_batch_size} cannot be divided among {self.batch_multiple} replicas; "
                f"use a multiple of {self.batch_multiple}"
            )
        if isinstance(self.buckets, str):
            if self.buckets not in ("auto", "off"):
                raise OptionError(f"buckets must be auto, off or padded lengths, got {self.buckets!r}")
            return
        edges = list(self.buckets)
        if not edges or edges[0] < 1 or any(low >= high for low, high in itertools.pairwise(edges)):
            raise OptionError(f"bucket lengths must be positive and increasing, got {edges}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """The number and the shapes of the batches, exact and the same in every epoch.

    Attributes:
        max_len: longer examples are cut to this.
        edges: the buckets' padded lengths, increasing.
        rows: examples in a full batch, per bucket.
        counts: examples, per bucket.
        num_tokens: positions that hold a token.
        num_cut: examples longer than `max_len`.
        tail: (bucket, examples) of each batch of examples that fill no batch of their own bucket.
    """

    max_len: int
    edges: tuple[int, ...]
    rows: tuple[int, ...]
    counts: tuple[int, ...]
    num_tokens: int
    num_cut: int
    tail: tuple[tuple[int, int], ...]

    @property
    def num_examples(self) -> int:
        """Examples per epoch: all of the split."""
        return sum(self.counts)

    @property
    def steps_per_epoch(self) -> int:
        """Batches per epoch, exactly as many as the reader delivers."""
        return sum(count // rows for count, rows in zip(self.counts, self.rows, strict=True)) + len(self.tail)

    @property
    def num_positions(self) -> int:
        """Positions per epoch, padding included."""
        full = sum(
            count // rows * rows * edge for count, rows, edge in zip(self.counts, self.rows, self.edges, strict=True)
        )
        return full + sum(self.edges[bucket] * size for bucket, size in self.tail)

    @property
    def padding_share(self) -> float:
        """The share of positions that hold padding."""
        return 1 - self.num_tokens / self.num_positions

    @property
    def fixed_padding_share(self) -> float:
        """The share of padding with every example padded to `max_len`."""
        return 1 - self.num_tokens / (self.num_examples * self.max_len)

    def full_rows(self, num_workers: int = 1) -> dict[int, int]:
        """Return padded length → rows of a full batch on one worker, for `mask_partial_batches`."""
        return {edge: rows // num_workers for edge, rows in zip(self.edges, self.rows, strict=True)}


def choose_edges(
    histogram: Sequence[int] | np.ndarray, *, max_edges: int = MAX_BUCKETS, multiple: int = 1
) -> list[int]:
    """Choose the padded lengths that need the fewest positions, by dynamic programming over the histogram.

    Args:
        histogram: [max_len + 1], examples per length.
        max_edges: the most padded lengths.
        multiple: padded lengths are multiples of this, or `max_len`.

    Returns:
        At most `max_edges` lengths, increasing; the last one covers the longest example. Of more than `MAX_CANDIDATES`
        different lengths, coarser multiples are tried.
    """
    histogram = np.asarray(histogram, dtype=np.int64)
    max_len = len(histogram) - 1
    present = np.flatnonzero(histogram)
    while len(edges := np.unique(np.minimum(-(-present // multiple) * multiple, max_len))) > MAX_CANDIDATES:
        multiple *= 2
    # below[j]: examples that the first j candidate edges cover.
    below = np.concatenate([[0], np.cumsum(histogram)[edges]])
    # cost[j]: fewest positions for the examples below candidate j, with one more edge in every round.
    cost = np.where(np.arange(len(below)) == 0, 0, np.inf)
    previous = []
    for _ in range(min(max_edges, len(edges))):
        # The edge at candidate j covers everything above candidate i < j.
        step = cost[:, None] + (below[None, :] - below[:, None]) * np.concatenate([[0], edges])[None, :]
        step[np.tril_indices(len(below), -1)] = np.inf
        previous.append(step.argmin(axis=0))
        cost = step.min(axis=0)
    chosen, at = [], len(edges)
    for origin in reversed(previous):
        if origin[at] != at:
            chosen.append(int(edges[at - 1]))
        at = origin[at]
    return chosen[::-1]


def positions_needed(histogram: Sequence[int] | np.ndarray, edges: Sequence[int]) -> int:
    """Return the positions of all examples when each is padded to the smallest edge that covers it."""
    histogram = np.asarray(histogram, dtype=np.int64)
    covering = np.searchsorted(edges, np.arange(len(histogram)))
    present = histogram > 0
    return int((histogram[present] * np.asarray(edges)[covering[present]]).sum())


def automatic_edges(histogram: Sequence[int] | np.ndarray) -> list[int]:
    """Choose at most `MAX_BUCKETS` padded lengths, multiples of 8 unless that costs more than one position in 100."""
    exact = choose_edges(histogram)
    rounded = choose_edges(histogram, multiple=EDGE_MULTIPLE)
    affordable = positions_needed(histogram, exact) * (1 + MAX_ROUNDING_COST)
    return rounded if positions_needed(histogram, rounded) <= affordable else exact


def resolve_max_len(max_len: int | None, stored_max_len: int) -> int:
    """Return the length that examples are cut to.

    Raises:
        OptionError: `max_len` is larger than what the dataset was written with.
    """
    if max_len is None:
        return stored_max_len
    if max_len > stored_max_len:
        raise OptionError(
            f"max_len {max_len} is larger than the {stored_max_len} the dataset was written with; "
            f"use at most {stored_max_len}, or preprocess again with --max_len {max_len}"
        )
    return max_len


def cut_histogram(histogram: Sequence[int] | np.ndarray, max_len: int) -> np.ndarray:
    """Return the histogram int64 [max_len + 1] of the examples cut to `max_len`."""
    histogram = np.asarray(histogram, dtype=np.int64)
    cut = np.zeros(max_len + 1, dtype=np.int64)
    cut[: min(len(histogram), max_len + 1)] = histogram[: max_len + 1]
    cut[max_len] += histogram[max_len + 1 :].sum()
    return cut


def plan_batches(histogram: Sequence[int] | np.ndarray, options: BatchOptions) -> BatchPlan:
    """Plan the batches of every epoch of a split.

    Args:
        histogram: [the dataset's max_len + 1], examples per length (`SplitInfo.length_histogram`).
        options: the batches wanted.

    Raises:
        OptionError: `max_len` or a bucket is longer than what is stored, or `batch_tokens` is too small for one batch.
    """
    max_len = resolve_max_len(options.max_len, len(histogram) - 1)
    cut = cut_histogram(histogram, max_len)
    edges = _edges(cut, options.buckets)
    covering = np.searchsorted(edges, np.arange(max_len + 1))
    counts = np.bincount(covering, weights=cut, minlength=len(edges)).astype(np.int64)[: len(edges)]
    rows = _rows(edges, options)
    return BatchPlan(
        max_len=max_len,
        edges=tuple(edges),
        rows=tuple(rows),
        counts=tuple(counts.tolist()),
        num_tokens=int((cut * np.arange(max_len + 1)).sum()),
        num_cut=int(np.asarray(histogram)[max_len + 1 :].sum()),
        tail=tuple(_tail([int(count) % full for count, full in zip(counts, rows, strict=True)], rows)),
    )


def _edges(histogram: np.ndarray, buckets: Buckets) -> list[int]:
    max_len = len(histogram) - 1
    if buckets == "off":
        return [max_len]
    if isinstance(buckets, str):
        return automatic_edges(histogram)
    edges = list(buckets)
    if edges[-1] > max_len:
        raise OptionError(f"bucket length {edges[-1]} is larger than max_len {max_len}; leave it out")
    longest = int(np.flatnonzero(histogram)[-1])
    return edges if edges[-1] >= longest else [*edges, max_len]


def _rows(edges: Sequence[int], options: BatchOptions) -> list[int]:
    """Return how many examples a full batch of each bucket holds."""
    if options.batch_tokens is None:
        return [options.global_batch_size] * len(edges)
    multiple = options.batch_multiple
    needed = edges[-1] * multiple
    if options.batch_tokens < needed:
        raise OptionError(
            f"batch_tokens {options.batch_tokens} is less than one example of {edges[-1]} positions for each of "
            f"{multiple} replicas; use at least {needed}"
        )
    return [options.batch_tokens // edge // multiple * multiple for edge in edges]


def _tail(left: list[int], rows: Sequence[int]) -> list[tuple[int, int]]:
    """Cut the examples left in each bucket, longest first, into batches as large as their longest example allows."""
    batches = []
    waiting = [bucket for bucket in reversed(range(len(left))) for _ in range(left[bucket])]
    while waiting:
        longest = waiting[0]
        batches.append((longest, len(waiting[: rows[longest]])))
        waiting = waiting[rows[longest] :]
    return batches


def per_batch_padding_share(lengths: np.ndarray, *, global_batch_size: int, max_len: int) -> float:
    """Return the share of padding with batches in stored order, each padded to its longest example."""
    cut = np.minimum(lengths, max_len).astype(np.int64)
    firsts = np.arange(0, len(cut), global_batch_size)
    sizes = np.diff(np.append(firsts, len(cut)))
    return 1 - int(cut.sum()) / int((np.maximum.reduceat(cut, firsts) * sizes).sum())
