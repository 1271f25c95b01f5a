"""Decoding both heads together: never a pair that training does not have, and always the best of those it has."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from model.decoding import (
    are_impossible,
    check_decode,
    decode_labels,
    index_pairs,
    name_pairs,
    observed_pairs,
    pair_scores,
)
from pipeline.errors import OptionError
from tests.support.tiny_dataset import TinyExample, write_tiny_dataset

LABELS = {"category": ["a/b", "b c", "c"], "second": ["x", "y"]}


def probabilities_of(category: Any, second: Any) -> dict[str, Any]:
    return {"category": np.array(category, np.float32), "second": np.array(second, np.float32)}


@st.composite
def cases(draw: Any) -> tuple[Any, ...]:
    """Probabilities of both heads, zeros and ties included, and some pairs."""
    num_rows, *sizes = (draw(st.integers(1, 6)) for _ in range(3))
    values = st.sampled_from([0.0, 1e-30, 0.1, 0.2, 0.25, 0.5, 1.0]) | st.floats(0, 1, width=32)
    heads = [draw(arrays.arrays(np.float32, (num_rows, size), elements=values)) for size in sizes]
    every_pair = list(itertools.product(*(range(size) for size in sizes)))
    pairs = draw(st.lists(st.sampled_from(every_pair), min_size=1, unique=True))
    return probabilities_of(*heads), np.array(sorted(pairs))


@given(cases())
def test_joint_decoding_is_the_best_allowed_pair(case: Any) -> None:
    probabilities, pairs = case
    decoded = decode_labels(probabilities, decode="joint", pairs=pairs)
    allowed = [tuple(pair) for pair in pairs.tolist()]
    for row in range(len(probabilities["category"])):
        category, second = (probabilities[head][row] for head in ("category", "second"))
        scores = [category[pair[0]] * second[pair[1]] for pair in allowed]
        # Of equals the first, as each head by itself does it.
        assert (decoded["category"][row], decoded["second"][row]) == allowed[scores.index(max(scores))]
    assert not are_impossible(decoded, pairs).any()


@given(cases())
def test_without_forbidden_pairs_both_ways_agree_but_for_ties(case: Any) -> None:
    probabilities, _ = case
    every_pair = np.argwhere(np.ones([values.shape[1] for values in probabilities.values()]))
    joint = decode_labels(probabilities, decode="joint", pairs=every_pair)
    alone = decode_labels(probabilities)
    rows = np.arange(len(joint["category"]))
    best, chosen = (
        probabilities["category"][rows, labels["category"]] * probabilities["second"][rows, labels["second"]]
        for labels in (alone, joint)
    )
    np.testing.assert_array_equal(best, chosen)


def test_a_contradiction_is_resolved_by_the_surer_head() -> None:
    probabilities = probabilities_of([[0.6, 0.4, 0.0], [0.9, 0.1, 0.0]], [[0.1, 0.9], [0.4, 0.6]])
    pairs = np.array([[0, 0], [1, 1]])
    alone = decode_labels(probabilities)
    assert {head: labels.tolist() for head, labels in alone.items()} == {"category": [0, 0], "second": [1, 1]}
    assert are_impossible(alone, pairs).tolist() == [True, True]
    joint = decode_labels(probabilities, decode="joint", pairs=pairs)
    assert {head: labels.tolist() for head, labels in joint.items()} == {"category": [1, 0], "second": [1, 0]}
    np.testing.assert_allclose(pair_scores(probabilities, pairs), [[0.06, 0.36], [0.36, 0.06]], rtol=1e-6)


def test_heads_may_come_in_any_order() -> None:
    probabilities = probabilities_of([[0.6, 0.4, 0.0]], [[0.1, 0.9]])
    pairs = np.array([[0, 0], [1, 1]])
    turned = dict(reversed(probabilities.items()))
    assert decode_labels(turned, decode="joint", pairs=pairs) == decode_labels(
        probabilities, decode="joint", pairs=pairs
    )


def test_pairs_of_a_split_and_back_again(tmp_path: Path) -> None:
    examples = [
        TinyExample(indices=[1, 5, 2], label=label, second_label=second)
        for label, second in [(2, 0), (0, 1), (2, 0), (2, 1)]
    ]
    info = write_tiny_dataset(tmp_path, {"train": examples}, max_len=8, labels=(LABELS["category"], LABELS["second"]))
    pairs = observed_pairs(info.split("train"))
    assert pairs.tolist() == [[0, 1], [2, 0], [2, 1]]
    named = name_pairs(pairs, LABELS)
    assert named == {"a/b": ("y",), "c": ("x", "y")}
    assert index_pairs(named, LABELS).tolist() == pairs.tolist()


def test_refuses_what_cannot_be_decoded() -> None:
    check_decode("independent", ["second"])
    check_decode("joint", ["second", "category"])
    with pytest.raises(OptionError, match="needs the heads category and second, this run has second alone"):
        check_decode("joint", ["second"])
    for pairs in (None, np.zeros((0, 2), int)):
        with pytest.raises(OptionError, match="no pairs of labels to choose from"):
            decode_labels(probabilities_of([[1.0]], [[1.0]]), decode="joint", pairs=pairs)
