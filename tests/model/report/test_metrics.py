"""The figures of a report against values computed by hand, and where they could be undefined."""

import math
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from model.report.metrics import (
    NUM_BINS,
    NUM_MISTAKES,
    Predictions,
    calibrate,
    confident_mistakes,
    measure,
    measure_head,
)
from model.run.report import ClassMeasures, DecodingMeasures, Measures, Mistake
from pipeline.errors import OptionError

NAMES = ["体育", "财经/交易", "娱 乐"]


def one_hot(predicted: Any, size: Any, confidence: Any = 1.0) -> Any:
    """Probabilities whose largest is `confidence`, at the predicted class."""
    probabilities = np.full((len(predicted), size), (1 - confidence) / (size - 1), np.float32)
    probabilities[np.arange(len(predicted)), predicted] = confidence
    return probabilities


def measured(labels: Any, predicted: Any, names: Any = NAMES) -> Any:
    labels, predicted = np.array(labels), np.array(predicted)
    probabilities = one_hot(predicted, len(names), 0.75)
    keys = [f"document:{row}" for row in range(len(labels))]
    return measure_head(labels, predicted, probabilities, names=names, keys=keys)


def through_json(measures: Any) -> Any:
    text = msgspec.json.encode(measures)
    assert b"null" not in text.replace(b'"confidence":null,"accuracy":null', b""), "a number is not finite"
    return msgspec.json.decode(text, type=Measures)


def test_by_hand() -> None:
    #               hits of 0: 2 of 3, of 1: 1 of 2, of 2: 0 of 1
    head = measured([0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 2, 1])
    assert head.accuracy == head.micro_f1 == 0.5
    assert head.confusion_matrix == [[2, 1, 0], [0, 1, 1], [0, 1, 0]]
    expected = [(1.0, 2 / 3, 0.8, 3, 2), (1 / 3, 1 / 2, 0.4, 2, 3), (0.0, 0.0, 0.0, 1, 1)]
    for cell, name, values in zip(head.classes, NAMES, expected, strict=True):
        assert cell.label == name
        found = [cell.precision, cell.recall, cell.f1, cell.support, cell.predicted]
        assert found == pytest.approx(list(values))
    assert head.macro_f1 == pytest.approx((0.8 + 0.4 + 0.0) / 3)
    assert head.ece == pytest.approx(0.25)  # always 75 % sure, right in half of the cases


def test_a_class_that_does_not_occur_counts_nowhere_but_keeps_its_row() -> None:
    head = measured([0, 0, 1], [0, 0, 1])
    assert head.macro_f1 == 1.0
    assert head.classes[2] == ClassMeasures(label=NAMES[2], precision=0.0, recall=0.0, f1=0.0, support=0, predicted=0)
    assert head.confusion_matrix[2] == [0, 0, 0]


def test_a_class_that_is_only_predicted_counts_as_nothing_found() -> None:
    head = measured([0, 0, 1], [0, 2, 1])
    assert head.classes[2].predicted == 1
    assert head.macro_f1 == pytest.approx((2 / 3 + 1 + 0) / 3)


def test_one_class_and_one_example() -> None:
    head = measured([1], [1], NAMES[:2])
    assert (head.accuracy, head.macro_f1, head.mistakes) == (1.0, 1.0, ())
    head = measured([1, 1], [0, 0], NAMES[:2])
    assert (head.accuracy, head.macro_f1) == (0.0, 0.0)


def test_ties_go_to_the_first_class() -> None:
    predictions = Predictions(
        labels={"second": np.array([0, 1])}, probabilities={"second": np.full((2, 2), 0.5, np.float32)}
    )
    report = measure(predictions, labels={"second": ["x", "y"]}, keys=["k0", "k1"])
    assert report.heads["second"].confusion_matrix == [[1, 0], [1, 0]]


def test_calibration_by_hand() -> None:
    # Bins of 1/15: 0.95 and 1.0 share the last, (14/15, 1]; 0.5 is alone in (7/15, 8/15]; 0.0 falls into the first.
    confidence, right = np.array([0.95, 1.0, 0.5, 0.0]), np.array([True, False, True, False])
    error, bins = calibrate(confidence, right)
    assert error == pytest.approx(2 / 4 * abs(0.975 - 0.5) + 1 / 4 * abs(0.5 - 1.0) + 1 / 4 * 0.0)
    assert [bin_.count for bin_ in bins] == [1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 2]
    assert (bins[0].lower, bins[-1].upper) == (0.0, 1.0)
    assert bins[-1].confidence == pytest.approx(0.975)
    assert bins[-1].accuracy == 0.5
    assert bins[1].accuracy is None


def test_a_bin_holds_its_upper_edge() -> None:
    edges = np.linspace(0, 1, NUM_BINS + 1)
    _, bins = calibrate(edges[1:], np.ones(NUM_BINS, bool))
    assert [bin_.count for bin_ in bins] == [1] * NUM_BINS


def test_a_perfectly_calibrated_head() -> None:
    confidence = np.repeat([0.2, 0.6, 1.0], 5)
    right = np.array([1, 0, 0, 0, 0, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1], bool)
    error, _ = calibrate(confidence, right)
    assert error == pytest.approx(0.0, abs=1e-12)


@given(st.data())
def test_calibration_in_general(data: Any) -> None:
    confidence = data.draw(arrays.arrays(np.float64, st.integers(1, 50), elements=st.floats(0, 1)))
    right = data.draw(arrays.arrays(bool, confidence.shape))
    error, bins = calibrate(confidence, right)
    assert 0 <= error <= 1
    assert sum(bin_.count for bin_ in bins) == len(confidence)
    assert sum(bin_.count * (bin_.accuracy or 0) for bin_ in bins) == pytest.approx(right.sum())
    # By the triangle inequality, no binning shows less than all examples in one bin.
    assert error >= abs(confidence.mean() - right.mean()) - 1e-9


def test_confident_mistakes_come_first_and_name_their_document() -> None:
    labels, predicted = np.array([0, 1, 0, 2, 0]), np.array([1, 1, 2, 0, 1])
    probabilities = np.array(
        [[0.3, 0.6, 0.1], [0.0, 1.0, 0.0], [0.05, 0.05, 0.9], [0.6, 0.3, 0.1], [0.1, 0.7, 0.2]], np.float64
    )
    mistakes = confident_mistakes(labels, predicted, probabilities, names=NAMES, keys=["a", "b", "c", "d", "e"])
    assert [mistake.key for mistake in mistakes] == ["c", "e", "a", "d"]  # of equals the first
    assert mistakes[0] == Mistake(key="c", label=NAMES[0], label_probability=0.05, predicted=NAMES[2], probability=0.9)


def test_not_every_mistake_is_listed() -> None:
    head = measured([0] * 50, [1] * 50)
    assert len(head.mistakes) == NUM_MISTAKES


PREDICTIONS = Predictions(
    labels={"category": np.array([0, 1, 2, 2], np.int32), "second": np.array([0, 1, 1, 0], np.int32)},
    probabilities={
        "category": np.array([[0.6, 0.3, 0.1], [0.6, 0.4, 0], [0.1, 0.1, 0.8], [0, 0, 1]], np.float32),
        "second": np.array([[0.9, 0.1], [0.1, 0.9], [0.2, 0.8], [0.3, 0.7]], np.float32),
    },
)
LABELS = {"category": NAMES, "second": ["动", "静"]}
PAIRS = np.array([[0, 0], [1, 1], [2, 1]])
KEYS = ["a", "b", "c", "d"]


def test_both_heads_together() -> None:
    report = measure(PREDICTIONS, labels=LABELS, keys=KEYS, pairs=PAIRS)
    assert (report.num_examples, report.decode, report.exact_match) == (4, "independent", 0.5)
    # The second text's (0, 1) does not occur in training, so its surer head decides: (1, 1), which is right.
    assert report.decoding == {
        "independent": DecodingMeasures(
            accuracy={"category": 0.75, "second": 0.75}, exact_match=0.5, impossible_pairs=0.25
        ),
        "joint": DecodingMeasures(accuracy={"category": 1.0, "second": 0.75}, exact_match=0.75, impossible_pairs=0.0),
    }
    assert report.unseen_pairs == 0.25  # the last text's (2, 0)
    assert through_json(report) == report


def test_joint_decoding_is_what_all_figures_follow() -> None:
    report = measure(PREDICTIONS, labels=LABELS, keys=KEYS, pairs=PAIRS, decode="joint")
    independent = measure(PREDICTIONS, labels=LABELS, keys=KEYS, pairs=PAIRS)
    assert report.decoding == independent.decoding
    assert (report.decode, report.exact_match) == ("joint", 0.75)
    head = report.heads["category"]
    assert (head.accuracy, head.macro_f1, head.mistakes) == (1.0, 1.0, ())
    # Confidence is what the head says about the class it was given: 0.6, 0.4, 0.8, 1.
    assert head.ece == pytest.approx((0.4 + 0.6 + 0.2 + 0.0) / 4)
    assert independent.heads["category"].mistakes[0].key == "b"


def test_one_head_has_no_pairs() -> None:
    predictions = Predictions(
        labels={"second": PREDICTIONS.labels["second"]}, probabilities={"second": PREDICTIONS.probabilities["second"]}
    )
    report = measure(predictions, labels=LABELS, keys=KEYS)
    assert report.decoding is report.unseen_pairs is None
    assert report.exact_match == report.heads["second"].accuracy == 0.75
    with pytest.raises(OptionError, match="--decode joint"):
        measure(predictions, labels=LABELS, keys=KEYS, decode="joint")


@given(st.integers(1, 30), st.integers(2, 5), st.integers(2, 5), st.integers(0, 2**32 - 1))
def test_a_report_is_always_finite_json(num_examples: Any, num_categories: Any, num_seconds: Any, seed: int) -> None:
    generator = np.random.default_rng(seed)
    sizes = {"category": num_categories, "second": num_seconds}
    predictions = Predictions(
        labels={head: generator.integers(size, size=num_examples) for head, size in sizes.items()},
        probabilities={
            head: generator.dirichlet(np.full(size, 0.3), num_examples).astype(np.float32)
            for head, size in sizes.items()
        },
    )
    labels = {head: [f"{head} {number}" for number in range(size)] for head, size in sizes.items()}
    pairs = np.argwhere(generator.random(tuple(sizes.values())) < 0.5)
    if not len(pairs):
        pairs = np.array([[0, 0]])
    report = measure(predictions, labels=labels, keys=["k"] * num_examples, pairs=pairs)
    assert through_json(report) == report
    for head in sizes:
        values = report.heads[head]
        assert math.isclose(values.accuracy, np.trace(values.confusion_matrix) / num_examples)
        assert math.isclose(values.accuracy, values.micro_f1)
    assert report.decoding is not None
    assert report.unseen_pairs is not None
    assert report.decoding["joint"].impossible_pairs == 0.0
    assert report.decoding["joint"].exact_match <= 1 - report.unseen_pairs + 1e-9
