"""Which example makes which row of an epoch, decided before the first step.

Three steps make the order of an epoch, a pure function of (dataset, batches, seed, epoch):

1. *Stream.* The shards, in random order, are dealt to a few lanes; each lane reads its shards one after the other, in
   blocks of records. A window of the stream is one block of every lane.
2. *Windows.* The records of a window are permuted and queue up by length bucket; a queue that holds a whole batch emits
   it, and the window's batches are permuted. The rest waits for the next window.
3. *Tail.* The records that still wait after the last window are sorted by length and cut into the last batches; only
   the very last batch of an epoch may be smaller than the others.

How far this is from a full permutation: a corpus of one window is fully permuted. For 64 shards of 10,000 examples
(`benchmarks/reader.py` measures it), an example's positions in two successive epochs are 0.32 of the epoch apart on
average (full permutation: 0.33), with a rank correlation of 0.03 ± 0.13 (0.00 ± 0.00), and a batch of 32 mixes 14
shards (25). In every epoch a thousand or so neighbours of a shard share a window; the shards themselves are random
samples of the corpus.

Random numbers are raw 64-bit words of PCG64, which NumPy promises never to change (what it makes of them may change).
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from pipeline.errors import OptionError
from pipeline.input_pipeline.batch_plan import BatchPlan, automatic_edges

# 256 batches of 32; at 512 positions 16 MB. From 32 MB on the C library takes fresh pages from the kernel each time.
WINDOW_RECORDS = 8_192
MAX_LANES = 16
# A lane of one shard would read the same part of the corpus at the same time in every epoch.
MIN_SHARDS_PER_LANE = 4

# The use of a random number is part of its key.
_SHARDS, _RECORDS, _BATCHES = range(3)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class EpochPlan:
    """Every row of every batch of one epoch.

    The *stream* is the sequence of records as they are read: window after window, and in a window a block of each lane.
    `order` says which of them makes which row.

    Attributes:
        lanes: the numbers of each lane's shards, in reading order.
        block_records: records in a block; a lane's last one may be shorter, those after it are empty.
        stream: int32 [num_examples], the stored index of each record of the stream.
        block_sizes: int64 [windows, lanes], records in each block.
        order: int64 [num_examples], the index in the stream of each row, batch after batch.
        row_splits: int64 [steps + 1], where each batch starts in `order`.
        batch_lengths: int32 [steps], what each batch is padded to.
        full_rows: int32 [steps], the rows of a full batch of that length.
        window_splits: int64 [windows + 1], the first step that each window emits.
    """

    lanes: tuple[tuple[int, ...], ...]
    block_records: int
    stream: np.ndarray
    block_sizes: np.ndarray
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
    def examples(self) -> np.ndarray:
        """int32 [num_examples], the stored index of each row, batch after batch."""
        examples: np.ndarray = self.stream[self.order]
        return examples


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class WindowPlan:
    """What one worker takes out of one window of the stream.

    The *pool* of a window is the records that earlier windows kept, then the window's own.

    Attributes:
        rows: int32 [R], the index in the pool of each row of the window's batches, batch after batch.
        examples: int32 [R], their stored indices.
        shapes: int32 [batches, 2], rows and padded length of each batch.
        kept: int32 [K], the indices in the pool of the records with which the next window's pool starts.
    """

    rows: np.ndarray
    examples: np.ndarray
    shapes: np.ndarray
    kept: np.ndarray


def _splits(sizes: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return int64 [N + 1], where each of N consecutive parts starts, and the end."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(np.asarray(sizes, np.int64))])


def _random_permutation(size: int, *key: int) -> np.ndarray:
    words = np.random.PCG64(np.random.SeedSequence(key)).random_raw(size)
    return np.argsort(words, kind="stable")


def _stream(
    lanes: Sequence[Sequence[int]], shard_sizes: Sequence[int], block_records: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return `EpochPlan.stream` and `EpochPlan.block_sizes`."""
    shards = np.split(np.arange(sum(shard_sizes), dtype=np.int32), np.cumsum(shard_sizes)[:-1])
    records = [np.concatenate([shards[shard] for shard in lane]) for lane in lanes]
    starts = range(0, max(map(len, records)), block_records)
    blocks = [lane[start : start + block_records] for start in starts for lane in records]
    return np.concatenate(blocks), np.array([len(block) for block in blocks]).reshape(len(starts), len(lanes))


def plan_training_epoch(
    batches: BatchPlan,
    *,
    lengths: np.ndarray,
    shard_sizes: Sequence[int],
    seed: int,
    epoch: int,
    window_records: int = WINDOW_RECORDS,
) -> EpochPlan:
    """Plan one epoch of training: random order, batches of similar lengths.

    Args:
        batches: from the same split's histogram.
        lengths: uint16 [num_examples], in stored order.
        shard_sizes: examples per shard.
        seed: any number >= 0.
        epoch: any number >= 0; each has its own order.
        window_records: records in a window, about; part of the order, so only tests change it.

    Raises:
        OptionError: a number is negative.
    """
    if seed < 0 or epoch < 0:
        raise OptionError(f"seed and epoch must be at least 0, got seed {seed} and epoch {epoch}")
    num_lanes = min(MAX_LANES, max(1, len(shard_sizes) // MIN_SHARDS_PER_LANE))
    shards = _random_permutation(len(shard_sizes), seed, epoch, _SHARDS).tolist()
    lanes = tuple(tuple(shards[lane::num_lanes]) for lane in range(num_lanes))
    block_records = max(1, window_records // num_lanes)
    stream, block_sizes = _stream(lanes, shard_sizes, block_records)
    cut_lengths = np.minimum(lengths, batches.max_len).astype(np.int32)[stream]
    # A stable sort of 16-bit numbers takes one pass.
    bucket_of = np.searchsorted(batches.edges, np.arange(batches.max_len + 1)).astype(np.int16)[cut_lengths]
    rows = np.asarray(batches.rows)

    order: list[np.ndarray] = []
    buckets: list[int] = []
    window_splits = [0]
    waiting = np.empty(0, np.int64)
    for window, (start, stop) in enumerate(itertools.pairwise(_splits(block_sizes.sum(axis=1)).tolist())):
        queues = np.concatenate([waiting, start + _random_permutation(stop - start, seed, epoch, _RECORDS, window)])
        # Stable: inside a bucket the order of arrival stays, those that waited first.
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

    waiting = waiting[np.argsort(-cut_lengths[waiting], kind="stable")]
    for bucket, size in batches.tail:
        buckets.append(bucket)
        order.append(waiting[:size])
        waiting = waiting[size:]
    window_splits[-1] = len(order)
    return EpochPlan(
        lanes=lanes,
        block_records=block_records,
        stream=stream,
        block_sizes=block_sizes,
        order=np.concatenate(order),
        row_splits=_splits([len(batch) for batch in order]),
        batch_lengths=np.asarray(batches.edges, np.int32)[buckets],
        full_rows=rows.astype(np.int32)[buckets],
        window_splits=np.asarray(window_splits),
    )


def plan_evaluation(
    *,
    lengths: np.ndarray,
    shard_sizes: Sequence[int],
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
    stream, block_sizes = _stream(lanes, shard_sizes, window_records)
    return EpochPlan(
        lanes=lanes,
        block_records=window_records,
        stream=stream,
        block_sizes=block_sizes,
        order=np.arange(num_examples),
        row_splits=row_splits,
        batch_lengths=edges[np.searchsorted(edges, longest)].astype(np.int32),
        full_rows=np.full(len(firsts), global_batch_size, np.int32),
        # A batch is complete with the window in which its last row arrives.
        window_splits=np.searchsorted(row_splits[1:], _splits(block_sizes[:, 0]), side="right"),
    )


def plan_windows(
    plan: EpochPlan, *, start_step: int = 0, num_workers: int = 1, worker_index: int = 0
) -> list[WindowPlan]:
    """Plan what one worker takes out of the stream; each takes a contiguous part of the same global batches.

    Args:
        plan: of the whole epoch.
        start_step: the first global step wanted.
        num_workers: how many divide each batch.
        worker_index: which part of every batch; a partial batch may leave the last workers none.

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
    share = plan.full_rows // num_workers
    firsts = np.minimum(plan.row_splits[:-1] + worker_index * share, plan.row_splits[1:])[start_step:]
    num_rows = np.minimum(firsts + share[start_step:], plan.row_splits[1:][start_step:]) - firsts
    shapes = np.stack([num_rows, plan.batch_lengths[start_step:]], axis=1).astype(np.int32)
    # Consecutive numbers from each batch's first row on.
    order = plan.order[np.arange(num_rows.sum()) + np.repeat(firsts - _splits(num_rows)[:-1], num_rows)]

    batch_splits = np.maximum(plan.window_splits - start_step, 0)
    row_splits = _splits(num_rows)[batch_splits]
    emitted_in = np.full(len(plan.order), -1)
    emitted_in[order] = np.repeat(np.arange(len(row_splits) - 1), np.diff(row_splits))
    windows = []
    waiting = np.empty(0, np.int64)
    stream_splits = _splits(plan.block_sizes.sum(axis=1))
    for window, (start, stop) in enumerate(itertools.pairwise(stream_splits.tolist())):
        # Indices in the stream, increasing: those that wait are older.
        pool = np.concatenate([waiting, np.arange(start, stop)])
        rows = order[row_splits[window] : row_splits[window + 1]]
        kept = np.flatnonzero(emitted_in[pool] > window)
        windows.append(
            WindowPlan(
                rows=np.searchsorted(pool, rows).astype(np.int32),
                examples=plan.stream[rows],
                shapes=shapes[batch_splits[window] : batch_splits[window + 1]],
                kept=kept.astype(np.int32),
            )
        )
        waiting = pool[kept]
    return windows
