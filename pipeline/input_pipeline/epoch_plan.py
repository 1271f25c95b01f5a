"""Which example makes which row of an epoch, decided before the first step.

An epoch's order is made in three steps, together a pure function of (dataset, batches, seed, epoch):

1. *Stream.* The shards, in random order, are dealt to a few lanes; each lane reads its shards one after the other, in
   blocks of records. A window of the stream is one block of every lane.
2. *Windows.* The records of a window are permuted and queue up by length bucket; a queue that holds a whole batch emits
   it, and the window's batches are permuted. What is left waits for the next window.
3. *Tail.* What the last window leaves is sorted by length and cut into the last batches; only the very last one of an
   epoch may be smaller than the others.

How far this is from a full permutation: a corpus of one window is fully permuted. For 64 shards of 10,000 examples
(`benchmarks/reader.py` measures it), an example's places in two successive epochs are 0.32 of the epoch apart on
average (full permutation: 0.33), with a rank correlation of 0.03 ± 0.13 (0.00 ± 0.00), and a batch of 32 mixes 14
shards (25). What stays the same in every epoch is that the neighbours inside a shard, a thousand or so, come within the
same window; and the shards themselves are random samples of the corpus.

Random numbers are raw 64-bit words of PCG64, which NumPy promises never to change (what it makes of them may change).
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence

import numpy as np

from pipeline.errors import OptionError
from pipeline.input_pipeline.batch_plan import BatchPlan, automatic_edges

# 256 batches of 32; at 512 positions 16 MB, below the 32 MB from which the C library asks the kernel for fresh pages
# each time.
WINDOW_RECORDS = 8_192
MAX_LANES = 16
# A lane of one shard would read the same part of the corpus at the same time in every epoch.
MIN_SHARDS_PER_LANE = 4

# What a random number is for; part of its key.
_SHARDS, _RECORDS, _BATCHES = range(3)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class EpochPlan:
    """Every row of every batch of one epoch.

    The *stream* is the sequence of records as they are read: window after window, and in a window a block of each lane.
    `order` says which of them makes which row.

    Attributes:
        max_len: longer examples are cut to this.
        lanes: the shards (by number) of each lane, in reading order.
        block_records: records in a block; a lane's last one may be shorter, and when the lane has ended they are empty.
        stream: int32 [num_examples], the stored index of each record of the stream.
        block_splits: int64 [windows * lanes + 1], where each block starts in the stream.
        order: int64 [num_examples], the place in the stream of each row, batch after batch.
        row_splits: int64 [steps + 1], where each batch starts in `order`.
        batch_lengths: int32 [steps], what each batch is padded to.
        full_rows: int32 [steps], the rows of a full batch of that length.
        window_splits: int64 [windows + 1], the first step that each window emits.
    """

    max_len: int
    lanes: tuple[tuple[int, ...], ...]
    block_records: int
    stream: np.ndarray
    block_splits: np.ndarray
    order: np.ndarray
    row_splits: np.ndarray
    batch_lengths: np.ndarray
    full_rows: np.ndarray
    window_splits: np.ndarray

    @property
    def num_steps(self) -> int:
        """Batches in the epoch."""
        return len(self.batch_lengths)

    @property
    def stream_splits(self) -> np.ndarray:
        """int64 [windows + 1], where each window starts in the stream."""
        return self.block_splits[:: len(self.lanes)]

    @property
    def num_positions(self) -> int:
        """Positions in the epoch, padding included."""
        return int((np.diff(self.row_splits) * self.batch_lengths).sum())

    @functools.cached_property
    def examples(self) -> np.ndarray:
        """int32 [num_examples], the stored index of each row, batch after batch."""
        examples: np.ndarray = self.stream[self.order]
        return examples


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Route:
    """How one worker gets its batches, from some step on, out of the stream.

    Only *wanted* records, those of its rows, are parsed. The *pool* of a window is what the windows before left for
    later steps, then the window's own wanted records. The rows of all its batches of one shape are taken at once.

    Attributes:
        wanted: int32 [wanted], the place of each wanted record, in the order of the stream: which block of its window,
            times `block_records`, plus which record of the block.
        wanted_examples: int32 [wanted], their stored indices.
        wanted_splits: int64 [windows + 1], where each window starts in `wanted`.
        shapes: (rows, padded length), every shape that a batch has here.
        batch_shapes: int64 [batches], each batch's shape, by number.
        batch_splits: int64 [windows + 1], the first batch of each window.
        shape_counts: int64 [windows, shapes], batches of each shape.
        places: int32 [wanted], the place in its window's pool of each row: window after window, in a window shape after
            shape, in a shape batch after batch.
        place_splits: int64 [windows * shapes + 1], where each shape's rows start in `places`.
        kept: int32 [records], the places in the pool that go on to the next window, window after window.
        kept_splits: int64 [windows + 1], where each window starts in `kept`.
    """

    wanted: np.ndarray
    wanted_examples: np.ndarray
    wanted_splits: np.ndarray
    shapes: tuple[tuple[int, int], ...]
    batch_shapes: np.ndarray
    batch_splits: np.ndarray
    shape_counts: np.ndarray
    places: np.ndarray
    place_splits: np.ndarray
    kept: np.ndarray
    kept_splits: np.ndarray


def _splits(sizes: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return int64 [N + 1], where each of N consecutive parts starts, and the end."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(np.asarray(sizes, np.int64))])


def _random_permutation(size: int, *key: int) -> np.ndarray:
    words = np.random.PCG64(np.random.SeedSequence(key)).random_raw(size)
    return np.argsort(words, kind="stable")


def _stream(
    lanes: tuple[tuple[int, ...], ...], shard_sizes: Sequence[int], block_records: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return `EpochPlan.stream` and `EpochPlan.block_splits`."""
    starts = _splits(shard_sizes)
    records, blocks = [], []
    for number, lane in enumerate(lanes):
        inside = [np.arange(starts[shard], starts[shard + 1], dtype=np.int32) for shard in lane]
        records += inside
        blocks.append(np.arange(sum(map(len, inside))) // block_records * len(lanes) + number)
    block_of = np.concatenate(blocks)
    num_blocks = -(-(int(block_of.max()) + 1) // len(lanes)) * len(lanes)
    stream = np.concatenate(records)[np.argsort(block_of, kind="stable")]
    return stream, _splits(np.bincount(block_of, minlength=num_blocks))


def plan_training_epoch(
    batches: BatchPlan,
    lengths: np.ndarray,
    shard_sizes: Sequence[int],
    *,
    seed: int,
    epoch: int,
    window_records: int = WINDOW_RECORDS,
) -> EpochPlan:
    """Plan one epoch of training: random order, batches of similar lengths.

    Args:
        batches: from the same split's histogram.
        lengths: uint16 [num_examples], in stored order.
        shard_sizes: examples per shard.
        seed, epoch: any numbers >= 0; another epoch has another order.
        window_records: records in a window, about; part of the order, so changed in tests only.

    Raises:
        OptionError: a number is negative.
    """
    if seed < 0 or epoch < 0:
        raise OptionError(f"seed and epoch must be at least 0, got seed {seed} and epoch {epoch}")
    num_lanes = min(MAX_LANES, max(1, len(shard_sizes) // MIN_SHARDS_PER_LANE))
    shards = _random_permutation(len(shard_sizes), seed, epoch, _SHARDS).tolist()
    lanes = tuple(tuple(shards[lane::num_lanes]) for lane in range(num_lanes))
    block_records = max(1, window_records // num_lanes)
    stream, block_splits = _stream(lanes, shard_sizes, block_records)
    cut_lengths = np.minimum(lengths, batches.max_len)[stream]
    bucket_of = np.searchsorted(batches.edges, cut_lengths)
    rows = np.asarray(batches.rows)

    order: list[np.ndarray] = []
    buckets: list[int] = []
    window_splits = [0]
    waiting = np.empty(0, np.int64)
    for window, (start, stop) in enumerate(itertools.pairwise(block_splits[::num_lanes].tolist())):
        queues = np.concatenate([waiting, start + _random_permutation(stop - start, seed, epoch, _RECORDS, window)])
        # Stable: inside a bucket the order of arrival stays, first those who waited.
        queues = queues[np.argsort(bucket_of[queues], kind="stable")]
        ends = np.cumsum(np.bincount(bucket_of[queues], minlength=len(rows)))
        starts = np.concatenate([[0], ends[:-1]])
        emitted_ends = starts + (ends - starts) // rows * rows
        full = [
            (bucket, queues[first : first + rows[bucket]])
            for bucket in range(len(rows))
            for first in range(starts[bucket], emitted_ends[bucket], rows[bucket])
        ]
        for index in _random_permutation(len(full), seed, epoch, _BATCHES, window).tolist():
            buckets.append(full[index][0])
            order.append(full[index][1])
        waiting = np.concatenate([queues[first:last] for first, last in zip(emitted_ends, ends, strict=True)])
        window_splits.append(len(order))

    waiting = waiting[np.argsort(-cut_lengths[waiting].astype(np.int64), kind="stable")]
    for bucket, size in batches.tail:
        buckets.append(bucket)
        order.append(waiting[:size])
        waiting = waiting[size:]
    window_splits[-1] = len(order)
    return EpochPlan(
        max_len=batches.max_len,
        lanes=lanes,
        block_records=block_records,
        stream=stream,
        block_splits=block_splits,
        order=np.concatenate(order),
        row_splits=_splits([len(batch) for batch in order]),
        batch_lengths=np.asarray(batches.edges, np.int32)[buckets],
        full_rows=rows.astype(np.int32)[buckets],
        window_splits=np.asarray(window_splits),
    )


def plan_evaluation(
    lengths: np.ndarray,
    shard_sizes: Sequence[int],
    *,
    max_len: int,
    global_batch_size: int,
    window_records: int = WINDOW_RECORDS,
) -> EpochPlan:
    """Plan one pass in stored order; a batch is padded to the smallest of a few lengths that covers its longest row.

    The lengths are chosen like a training split's buckets, over the batches' longest examples.
    """
    num_examples = len(lengths)
    firsts = np.arange(0, num_examples, global_batch_size)
    row_splits = np.append(firsts, num_examples)
    longest = np.maximum.reduceat(np.minimum(lengths, max_len).astype(np.int64), firsts)
    edges = np.asarray(automatic_edges(np.bincount(longest, weights=np.diff(row_splits), minlength=max_len + 1)))
    lanes = (tuple(range(len(shard_sizes))),)
    stream, block_splits = _stream(lanes, shard_sizes, window_records)
    return EpochPlan(
        max_len=max_len,
        lanes=lanes,
        block_records=window_records,
        stream=stream,
        block_splits=block_splits,
        order=np.arange(num_examples),
        row_splits=row_splits,
        batch_lengths=edges[np.searchsorted(edges, longest)].astype(np.int32),
        full_rows=np.full(len(firsts), global_batch_size, np.int32),
        # A batch is complete with the window in which its last row arrives.
        window_splits=np.searchsorted(row_splits[1:], block_splits, side="right"),
    )


def plan_route(plan: EpochPlan, *, start_step: int = 0, num_workers: int = 1, worker_index: int = 0) -> Route:
    """Plan what one worker takes out of the stream; each takes a contiguous part of the same global batches.

    Args:
        plan: of the whole epoch.
        start_step: the first global step wanted.
        num_workers, worker_index: which part of every batch; a partial batch may leave the last workers none.

    Raises:
        OptionError: the step or the worker does not exist, or a batch cannot be divided among the workers.
    """
    if not 0 <= start_step <= plan.num_steps:
        raise OptionError(f"start_step must be between 0 and the epoch's {plan.num_steps} steps, got {start_step}")
    if not 0 <= worker_index < num_workers:
        raise OptionError(f"worker_index must be in [0, num_workers {num_workers}), got {worker_index}")
    indivisible = plan.full_rows[plan.full_rows % num_workers > 0]
    if indivisible.size:
        raise OptionError(
            f"a global batch of {indivisible[0]} cannot be divided among {num_workers} workers; "
            f"use a multiple of {num_workers}"
        )
    sizes = np.diff(plan.row_splits)
    worker_rows = plan.full_rows // num_workers
    step_of_row = np.repeat(np.arange(plan.num_steps), sizes)
    row_in_batch = np.arange(len(plan.order)) - plan.row_splits[step_of_row]
    ours = row_in_batch // worker_rows[step_of_row] == worker_index
    ours &= step_of_row >= start_step
    num_rows = np.clip(sizes - worker_index * worker_rows, 0, worker_rows)
    shapes, batch_shapes = np.unique(np.stack([num_rows, plan.batch_lengths], axis=1), axis=0, return_inverse=True)
    num_rows, batch_shapes = num_rows[start_step:], batch_shapes[start_step:]

    num_windows, num_shapes = len(plan.window_splits) - 1, len(shapes)
    batch_splits = np.maximum(plan.window_splits - start_step, 0)
    window_of_batch = np.repeat(np.arange(num_windows), np.diff(batch_splits))
    group_of_batch = window_of_batch * num_shapes + batch_shapes
    group_of_row = np.repeat(group_of_batch, num_rows)
    order = plan.order[ours][np.argsort(group_of_row, kind="stable")]
    place_splits = _splits(np.bincount(group_of_row, minlength=num_windows * num_shapes))

    emitted_in = np.full(len(plan.order), -1)
    emitted_in[order] = np.repeat(np.arange(num_windows), np.diff(place_splits[::num_shapes]))
    wanted = np.flatnonzero(emitted_in >= 0)
    wanted_splits = np.searchsorted(wanted, plan.stream_splits)
    block_of_wanted = np.searchsorted(plan.block_splits, wanted, side="right") - 1
    record_in_block = wanted - plan.block_splits[block_of_wanted]
    places, kept = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    waiting = np.empty(0, np.int64)
    for window in range(num_windows):
        arriving = slice(*wanted_splits[window : window + 2])
        # Both parts are sorted and the first is older, so the pool is sorted too.
        pool = np.concatenate([waiting, wanted[arriving]])
        rows = slice(*place_splits[::num_shapes][window : window + 2])
        places.append(np.searchsorted(pool, order[rows]))
        kept.append(np.flatnonzero(emitted_in[pool] > window))
        waiting = pool[kept[-1]]
    return Route(
        wanted=(block_of_wanted % len(plan.lanes) * plan.block_records + record_in_block).astype(np.int32),
        wanted_examples=plan.stream[wanted],
        wanted_splits=wanted_splits,
        shapes=tuple((int(rows), int(length)) for rows, length in shapes),
        batch_shapes=batch_shapes,
        batch_splits=batch_splits,
        shape_counts=np.bincount(group_of_batch, minlength=num_windows * num_shapes).reshape(num_windows, num_shapes),
        places=np.concatenate(places).astype(np.int32),
        place_splits=place_splits,
        kept=np.concatenate(kept).astype(np.int32),
        kept_splits=_splits([len(part) for part in kept[1:]]),
    )
