"""The order of an epoch: every example once, for all numbers of workers and all start steps. No TensorFlow here."""

import hashlib
import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import OptionError
from pipeline.input_pipeline.batch_plan import BatchOptions, BatchPlan, plan_batches
from pipeline.input_pipeline.epoch_plan import EpochPlan, WindowPlan, plan_evaluation, plan_training_epoch, plan_windows

MAX_LEN = 24

datasets = st.tuples(
    # Shards may be empty, but not all of them.
    st.lists(st.integers(0, 30), min_size=1, max_size=12).filter(lambda sizes: sum(sizes) > 0),
    st.integers(0, 2**31),
)


def random_lengths(num_examples: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, MAX_LEN + 1, num_examples).astype(np.uint16)


def batch_plan(lengths: np.ndarray, **options: Any) -> BatchPlan:
    return plan_batches(np.bincount(lengths, minlength=MAX_LEN + 1), BatchOptions(**options))


def carry_out(plan: EpochPlan, windows: list[WindowPlan]) -> list[tuple[list[int], int]]:
    """Do with stored indices what the reader does with records: (rows, padded length) of every batch."""
    splits = np.cumsum([0, *plan.block_sizes.sum(axis=1)])
    pool: list[int] = []
    batches = []
    for (start, stop), window in zip(itertools.pairwise(splits), windows, strict=True):
        pool += plan.stream[start:stop].tolist()
        rows = iter([pool[index] for index in window.rows])
        assert window.examples.tolist() == [pool[index] for index in window.rows]
        batches += [(list(itertools.islice(rows, num_rows)), length) for num_rows, length in window.shapes.tolist()]
        assert next(rows, None) is None
        pool = [pool[index] for index in window.kept]
    assert pool == []
    return batches


def batches_of(plan: EpochPlan) -> list[tuple[list[int], int]]:
    parts = itertools.pairwise(plan.row_splits.tolist())
    return [
        (plan.examples[start:stop].tolist(), int(length))
        for (start, stop), length in zip(parts, plan.batch_lengths, strict=True)
    ]


def join_parts(
    plan: EpochPlan, parts: list[list[tuple[list[int], int]]], start_step: int = 0
) -> list[tuple[list[int], int]]:
    """Join what all workers have of each batch: each its share of the rows, and all of them one padded length."""
    together = []
    for step, batch in enumerate(zip(*parts, strict=True), start_step):
        rows = list(itertools.chain(*(part for part, _ in batch)))
        (length,) = {length for _, length in batch}
        # Of a partial batch the last workers have less, or nothing.
        share = int(plan.full_rows[step]) // len(parts)
        assert [len(part) for part, _ in batch] == [
            min(max(len(rows) - worker * share, 0), share) for worker in range(len(parts))
        ]
        together.append((rows, length))
    return together


@settings(deadline=None)
@given(
    datasets,
    st.integers(0, 5),
    st.integers(0, 3),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([{}, {"buckets": "off"}, {"buckets": (8, 16)}, {"max_len": 9}, {"batch_tokens": 100}]),
    st.sampled_from([5, 64, 1000]),
    st.data(),
)
def test_every_example_once_for_all_seeds_epochs_workers_and_starts(
    dataset: Any, seed: int, epoch: Any, num_workers: Any, options: Any, window_records: Any, data: Any
) -> None:
    shard_sizes, lengths_seed = dataset
    lengths = random_lengths(sum(shard_sizes), lengths_seed)
    batches = batch_plan(lengths, global_batch_size=4, batch_multiple=num_workers, **options)
    plan = plan_training_epoch(
        batches, lengths=lengths, shard_sizes=shard_sizes, seed=seed, epoch=epoch, window_records=window_records
    )

    assert sorted(plan.stream.tolist()) == list(range(len(lengths)))
    assert sorted(plan.examples.tolist()) == list(range(len(lengths)))
    assert plan.num_steps == batches.steps_per_epoch
    assert (np.diff(plan.row_splits) * plan.batch_lengths).sum() == batches.num_positions
    sizes = np.diff(plan.row_splits)
    assert (sizes[:-1] == plan.full_rows[:-1]).all()
    assert (plan.full_rows == np.array([batches.full_rows()[length] for length in plan.batch_lengths.tolist()])).all()
    for rows, length in batches_of(plan):
        assert np.minimum(lengths[rows], batches.max_len).max() <= length

    start_step = data.draw(st.integers(0, plan.num_steps))
    workers = [
        plan_windows(plan, start_step=start_step, num_workers=num_workers, worker_index=worker)
        for worker in range(num_workers)
    ]
    parts = [carry_out(plan, windows) for windows in workers]
    assert join_parts(plan, parts, start_step) == batches_of(plan)[start_step:]
    # What is skipped, or another worker's, is not even parsed.
    assert sum(len(window.rows) for windows in workers for window in windows) == sizes[start_step:].sum()


@settings(deadline=None)
@given(datasets, st.sampled_from([1, 2, 4]), st.integers(1, 9), st.sampled_from([7, 1000]))
def test_evaluation_keeps_the_stored_order(
    dataset: Any, num_workers: Any, per_worker: Any, window_records: Any
) -> None:
    shard_sizes, lengths_seed = dataset
    lengths = random_lengths(sum(shard_sizes), lengths_seed)
    batch_size = per_worker * num_workers
    plan = plan_evaluation(
        lengths=lengths,
        shard_sizes=shard_sizes,
        max_len=20,
        global_batch_size=batch_size,
        window_records=window_records,
    )
    assert plan.examples.tolist() == list(range(len(lengths)))
    assert plan.num_steps == -(-len(lengths) // batch_size)
    parts = [
        carry_out(plan, plan_windows(plan, num_workers=num_workers, worker_index=worker))
        for worker in range(num_workers)
    ]
    together = join_parts(plan, parts)
    assert together == batches_of(plan)
    assert all(np.minimum(lengths[rows], 20).max() <= length <= 20 for rows, length in together)


def test_one_golden_order() -> None:
    """Pinned: a change of this order breaks the promise that an interrupted run ends as if nothing had happened."""
    lengths = (np.arange(40) * 7 % 11 + 3).astype(np.uint16)
    plan = plan_training_epoch(
        batch_plan(lengths, global_batch_size=4, buckets=(8,), max_len=13),
        lengths=lengths,
        shard_sizes=[5] * 8,
        seed=3,
        epoch=1,
        window_records=16,
    )
    assert plan.lanes == GOLDEN_LANES
    assert batches_of(plan) == GOLDEN_BATCHES


GOLDEN_LANES = ((0, 2, 3, 4), (6, 1, 7, 5))
GOLDEN_BATCHES = [
    ([3, 34, 31, 12], 13),
    ([30, 11, 5, 2], 8),
    ([32, 10, 7, 0], 8),
    ([14, 9, 39, 25], 13),
    ([13, 19, 8, 18], 8),
    ([1, 6, 4, 15], 13),
    ([17, 20, 36, 37], 13),
    ([33, 38, 16, 35], 8),
    ([24, 29, 21, 22], 8),
    ([28, 23, 26, 27], 13),
]


def test_the_order_of_a_large_epoch_is_pinned_too() -> None:
    lengths = random_lengths(100_000, 0)
    plan = plan_training_epoch(batch_plan(lengths), lengths=lengths, shard_sizes=[10_000] * 10, seed=7, epoch=2)
    digest = hashlib.sha256(plan.examples.astype("<i4").tobytes() + plan.row_splits.astype("<i8").tobytes())
    assert digest.hexdigest()[:16] == "ca786cd4751f8eb5"


def test_another_seed_or_epoch_is_another_order() -> None:
    lengths = random_lengths(500, 0)
    batches = batch_plan(lengths)
    orders = {
        tuple(
            plan_training_epoch(
                batches, lengths=lengths, shard_sizes=[50] * 10, seed=seed, epoch=epoch
            ).examples.tolist()
        )
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(orders) == 9


def test_two_epochs_are_nearly_independent() -> None:
    """Rank correlation of an example's place in two epochs; a full permutation of 64,000 stays below 0.02."""
    lengths = random_lengths(64_000, 0)
    batches = batch_plan(lengths)
    first, second = (
        np.argsort(plan_training_epoch(batches, lengths=lengths, shard_sizes=[1000] * 64, seed=0, epoch=epoch).examples)
        for epoch in (0, 1)
    )
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.15


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"start_step": -1}, ["start_step", "-1"]),
        ({"start_step": 14}, ["start_step", "13", "14"]),
        ({"num_workers": 2, "worker_index": 2}, ["worker_index", "2"]),
        ({"num_workers": 3}, ["8", "3"]),
    ],
)
def test_a_step_or_worker_that_does_not_exist_is_refused(arguments: dict, words: list[str]) -> None:
    lengths = random_lengths(100, 0)
    plan = plan_training_epoch(
        batch_plan(lengths, global_batch_size=8), lengths=lengths, shard_sizes=[100], seed=0, epoch=0
    )
    with pytest.raises(OptionError) as caught:
        plan_windows(plan, **arguments)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize("numbers", [{"seed": -1, "epoch": 0}, {"seed": 0, "epoch": -1}])
def test_negative_seeds_and_epochs_are_refused(numbers: dict) -> None:
    lengths = random_lengths(100, 0)
    with pytest.raises(OptionError, match="at least 0"):
        plan_training_epoch(batch_plan(lengths), lengths=lengths, shard_sizes=[100], **numbers)
