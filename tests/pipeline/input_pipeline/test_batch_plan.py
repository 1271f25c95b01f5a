"""Bucket edges against brute force, and plans against hand-counted ones."""

import itertools
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import OptionError
from pipeline.input_pipeline.batch_plan import (
    EDGE_MULTIPLE,
    MAX_BUCKETS,
    BatchOptions,
    automatic_edges,
    choose_edges,
    cut_histogram,
    per_batch_padding_share,
    plan_batches,
    positions_needed,
)

histograms = st.lists(st.integers(0, 9), min_size=2, max_size=10).filter(lambda counts: sum(counts[1:]) > 0)


def fewest_positions(histogram: list[int], max_edges: int, multiple: int) -> int:
    """Try every set of edges."""
    max_len = len(histogram) - 1
    longest = max(length for length, count in enumerate(histogram) if count)
    allowed = sorted({min(-(-length // multiple) * multiple, max_len) for length in range(1, max_len + 1)})
    return min(
        sum(count * min(edge for edge in edges if edge >= length) for length, count in enumerate(histogram) if count)
        for size in range(1, max_edges + 1)
        for edges in itertools.combinations(allowed, size)
        if edges[-1] >= longest
    )


@given(histograms, st.integers(1, 4), st.integers(1, 4))
def test_edges_need_as_few_positions_as_the_best_of_all(histogram: list[int], max_edges: int, multiple: int) -> None:
    histogram = [0, *histogram[1:]]
    edges = choose_edges(histogram, max_edges=max_edges, multiple=multiple)
    assert len(edges) <= max_edges
    assert edges == sorted(set(edges))
    assert all(edge % multiple == 0 or edge == len(histogram) - 1 for edge in edges)
    assert positions_needed(histogram, edges) == fewest_positions(histogram, max_edges, multiple)


def test_edges_are_multiples_of_eight_where_that_is_cheap() -> None:
    lengths = np.random.default_rng(0).integers(40, 513, 20_000)
    histogram = np.bincount(lengths, minlength=513)
    edges = automatic_edges(histogram)
    assert len(edges) == MAX_BUCKETS
    assert all(edge % EDGE_MULTIPLE == 0 for edge in edges)
    assert positions_needed(histogram, edges) <= 1.01 * positions_needed(histogram, choose_edges(histogram))


def test_of_very_many_lengths_coarser_multiples_are_tried() -> None:
    """All lengths that a dataset may have, for which a table of all pairs would take 34 GB."""
    histogram = np.ones(65_536, np.int64)
    histogram[0] = 0
    tracemalloc.start()
    edges = choose_edges(histogram, max_edges=4)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200 << 20
    assert edges[-1] == 65_535
    # Of equally frequent lengths, the best edges are the quarters.
    assert edges[:3] == [16_384, 32_768, 49_152]


def test_edges_are_exact_where_rounding_would_cost() -> None:
    histogram = np.zeros(129, np.int64)
    histogram[[9, 12, 17, 20]] = 1000
    assert automatic_edges(histogram) == [9, 12, 17, 20]


@pytest.mark.parametrize(
    ("options", "edges", "rows", "counts", "tail", "steps"),
    [
        # Lengths 4 × 3, 6 × 5, 8 × 2. The queues keep 1, 1 and 0 examples, which make one batch of the second length.
        (BatchOptions(global_batch_size=2), (4, 6, 8), (2, 2, 2), (3, 5, 2), ((1, 2),), 5),
        # 7 does not divide 10: the queues keep everything; longest first, the last batch is the small one.
        (BatchOptions(global_batch_size=7), (4, 6, 8), (7, 7, 7), (3, 5, 2), ((2, 7), (0, 3)), 2),
        (BatchOptions(global_batch_size=4, buckets="off"), (8,), (4,), (10,), ((0, 2),), 3),
        # A last edge below the longest example is followed by max_len.
        (BatchOptions(global_batch_size=5, buckets=(6,)), (6, 8), (5, 5), (8, 2), ((1, 5),), 2),
        # Fewer positions where examples are longer; 24 // 8 = 3 rounds down to the replicas' 2.
        (BatchOptions(batch_tokens=24, batch_multiple=2), (4, 6, 8), (6, 4, 2), (3, 5, 2), ((1, 4),), 3),
        # Cut at 5, two lengths are left.
        (BatchOptions(global_batch_size=3, max_len=5), (4, 5), (3, 3), (3, 7), ((1, 1),), 4),
    ],
)
def test_a_plan_is_what_one_counts_by_hand(
    options: Any,
    edges: tuple[int, ...],
    rows: tuple[int, ...],
    counts: tuple[int, ...],
    tail: tuple[tuple[int, ...], ...],
    steps: int,
) -> None:
    histogram = [0, 0, 0, 0, 3, 0, 5, 0, 2]
    plan = plan_batches(histogram, options)
    assert (plan.edges, plan.rows, plan.counts, plan.tail) == (edges, rows, counts, tail)
    assert plan.steps_per_epoch == steps
    assert plan.num_examples == 10


def test_padding_shares_count_positions() -> None:
    # 3 × 4 + 5 × 6 + 2 × 8 = 58 tokens; batches of 2: one of 4, two of 6, one of 8, and a tail of one 6 and one 4.
    plan = plan_batches([0, 0, 0, 0, 3, 0, 5, 0, 2], BatchOptions(global_batch_size=2))
    assert plan.num_tokens == 58
    assert plan.num_positions == 2 * 4 + 4 * 6 + 2 * 8 + 2 * 6
    assert plan.padding_share == pytest.approx(1 - 58 / 60)
    assert plan.fixed_padding_share == pytest.approx(1 - 58 / 80)
    assert plan.full_rows() == {4: 2, 6: 2, 8: 2}
    assert plan.full_rows(num_workers=2) == {4: 1, 6: 1, 8: 1}


def test_cutting_moves_longer_examples_to_max_len() -> None:
    assert cut_histogram([0, 0, 1, 2, 3, 4], 3).tolist() == [0, 0, 1, 9]
    plan = plan_batches([0, 0, 0, 2, 3, 4], BatchOptions(global_batch_size=9, max_len=3))
    assert (plan.num_cut, plan.num_tokens, plan.max_len) == (7, 27, 3)


def test_per_batch_padding_pads_to_the_longest_of_each_batch() -> None:
    # (3, 5) → 10, (4, 4) → 8, (9 cut to 6) → 6: 24 positions for 22 tokens.
    lengths = np.array([3, 5, 4, 4, 9], np.uint16)
    assert per_batch_padding_share(lengths, global_batch_size=2, max_len=6) == pytest.approx(1 - 22 / 24)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"global_batch_size": 0}, ["global_batch_size", "0"]),
        ({"global_batch_size": 6, "batch_multiple": 4}, ["6", "4"]),
        ({"batch_multiple": 0}, ["batch_multiple"]),
        ({"batch_tokens": 0}, ["batch_tokens"]),
        ({"max_len": 2}, ["max_len", "3", "2"]),
        ({"buckets": "many"}, ["auto", "off", "many"]),
        ({"buckets": ()}, ["[]"]),
        ({"buckets": (8, 8)}, ["increasing", "8"]),
        ({"buckets": (0, 8)}, ["positive"]),
        # Refused only once the dataset is known.
        ({"max_len": 9}, ["9", "8"]),
        ({"buckets": (4, 9)}, ["9", "8"]),
        ({"batch_tokens": 15, "batch_multiple": 2}, ["15", "16"]),
    ],
)
def test_options_that_make_no_batch_are_refused_with_the_numbers(options: dict, words: list[str]) -> None:
    with pytest.raises(OptionError) as caught:
        plan_batches([0, 0, 0, 0, 3, 0, 5, 0, 2], BatchOptions(**options))
    assert all(word in str(caught.value) for word in words), caught.value
