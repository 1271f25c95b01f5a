"""The figures of a report, from the probabilities of a model and the right labels, wherever they come from.

accuracy           share of examples whose predicted class is the right one; with one label per text, micro-F1 too
macro-F1           mean over the classes that occur of F1, the harmonic mean of precision and recall: small classes
                   count like large ones
exact match        share of examples of which every head is right
impossible pairs   share of examples that get a pair of labels which no training example has
ECE                expected calibration error (Guo et al. 2017): mean distance between confidence and accuracy over
                   NUM_BINS equal intervals (lower, upper] of the confidence, weighted by their examples

A prediction's confidence is what its head says about the predicted class.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, precision_recall_fscore_support

from model.decoding import DECODINGS, INDEPENDENT, Decoding, are_impossible, decode_labels, has_pairs
from model.run.report import (
    CalibrationBin,
    ClassMeasures,
    DecodingMeasures,
    Evaluation,
    HeadMeasures,
    Measures,
    Mistake,
)

NUM_BINS = 15  # Guo et al. 2017, section 5
NUM_MISTAKES = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predictions:
    """What a model says about a split, in stored order.

    Attributes:
        labels: head -> int32 [N], the right classes; -1 for a label that the model does not know.
        probabilities: head -> float32 [N, classes].
    """

    labels: Mapping[str, np.ndarray]
    probabilities: Mapping[str, np.ndarray]


def match_labels(found: Sequence[str], names: Sequence[str]) -> np.ndarray:
    """Return for each label of a dataset, by name, its class in a model; -1 for those the model does not know.

    Args:
        found: the dataset's labels in id order.
        names: of the model's classes in id order.

    Returns:
        int32 [len(found)].
    """
    class_of = {name: index for index, name in enumerate(names)}
    return np.array([class_of.get(name, -1) for name in found], np.int32)


def measure(
    predictions: Predictions,
    *,
    labels: Mapping[str, Sequence[str]],
    keys: Sequence[str],
    pairs: np.ndarray | None = None,
    decode: Decoding = INDEPENDENT,
) -> Measures:
    """Return the figures of a split.

    A head's figures leave out examples whose label it does not know, those of several heads leave out examples with any
    such label.

    Args:
        predictions: of N examples, at least one with all labels known.
        labels: head -> names of its classes in id order.
        keys: where each of the N examples came from.
        pairs: int [P, 2], the pairs of labels that occur in training; `None` where there is one head alone.
        decode: how all figures but `decoding`'s are decoded.

    Raises:
        OptionError: joint decoding without pairs.
    """
    known = {head: np.flatnonzero(right >= 0) for head, right in predictions.labels.items()}
    all_known = np.flatnonzero(np.all([right >= 0 for right in predictions.labels.values()], axis=0))
    right = {head: values[all_known] for head, values in predictions.labels.items()}
    probabilities = {head: values[all_known] for head, values in predictions.probabilities.items()}
    predicted = decode_labels(predictions.probabilities, decode=decode, pairs=pairs)
    decoding = unseen_pairs = None
    if pairs is not None and has_pairs(predictions.labels):
        decoding = {name: _measure_decoding(right, probabilities, pairs, decode=name) for name in DECODINGS}
        unseen_pairs = float(are_impossible(right, pairs).mean())
    return Measures(
        num_examples=len(keys),
        decode=decode,
        heads={
            head: measure_head(
                predictions.labels[head][rows],
                predicted[head][rows],
                predictions.probabilities[head][rows],
                names=labels[head],
                keys=[keys[row] for row in rows.tolist()],
            )
            for head, rows in known.items()
        },
        exact_match=exact_match(right, {head: values[all_known] for head, values in predicted.items()}),
        decoding=decoding,
        unseen_pairs=unseen_pairs,
    )


def _measure_decoding(
    labels: Mapping[str, np.ndarray], probabilities: Mapping[str, np.ndarray], pairs: np.ndarray, *, decode: Decoding
) -> DecodingMeasures:
    predicted = decode_labels(probabilities, decode=decode, pairs=pairs)
    return DecodingMeasures(
        accuracy={head: float(accuracy_score(right, predicted[head])) for head, right in labels.items()},
        exact_match=exact_match(labels, predicted),
        impossible_pairs=float(are_impossible(predicted, pairs).mean()),
    )


def unknown_label_lines(evaluation: Evaluation) -> list[str]:
    """Return a sentence for each head about the examples whose labels it does not know."""
    return [
        f"{head}: {sum(counts.values()):,} examples with labels that the run does not know are left out "
        f"({', '.join(f'{name} {count:,}' for name, count in counts.items())})"
        for head, counts in evaluation.unknown_labels.items()
    ]


def exact_match(labels: Mapping[str, np.ndarray], predicted: Mapping[str, np.ndarray]) -> float:
    """Return the share of examples of which every head is right."""
    return float(np.all([predicted[head] == right for head, right in labels.items()], axis=0).mean())


def measure_head(
    labels: np.ndarray, predicted: np.ndarray, probabilities: np.ndarray, *, names: Sequence[str], keys: Sequence[str]
) -> HeadMeasures:
    """Return the figures of one head.

    Args:
        labels, predicted: int [N], the right classes and those it was given.
        probabilities: float [N, classes].
        names: of the classes.
        keys: where each example came from.
    """
    class_ids = list(range(len(names)))
    matrix = confusion_matrix(labels, predicted, labels=class_ids)
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, predicted, labels=class_ids, zero_division=0.0
    )
    confidence = probabilities[np.arange(len(predicted)), predicted].astype(np.float64)
    ece, calibration = calibrate(confidence, predicted == labels)
    return HeadMeasures(
        accuracy=float(accuracy_score(labels, predicted)),
        macro_f1=float(f1_score(labels, predicted, average="macro", zero_division=0.0)),
        micro_f1=float(f1_score(labels, predicted, average="micro", zero_division=0.0)),
        ece=ece,
        classes=tuple(
            ClassMeasures(
                label=name,
                precision=float(precision[index]),
                recall=float(recall[index]),
                f1=float(f1[index]),
                support=int(support[index]),
                predicted=int(matrix[:, index].sum()),
            )
            for index, name in enumerate(names)
        ),
        confusion_matrix=matrix.tolist(),
        calibration=calibration,
        mistakes=confident_mistakes(labels, predicted, probabilities, names=names, keys=keys),
    )


def calibrate(confidence: np.ndarray, right: np.ndarray) -> tuple[float, tuple[CalibrationBin, ...]]:
    """Compare how sure a head is with how often it is right.

    Args:
        confidence: float [N], in [0, 1].
        right: bool [N].

    Returns:
        The expected calibration error, and its NUM_BINS bins.
    """
    edges = np.linspace(0.0, 1.0, NUM_BINS + 1)
    # A confidence of 0, which joint decoding may have to accept, belongs to the first bin.
    places = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, NUM_BINS - 1)
    error, bins = 0.0, []
    for index in range(NUM_BINS):
        inside = places == index
        count = int(inside.sum())
        mean_confidence = mean_accuracy = None
        if count:
            mean_confidence, mean_accuracy = float(confidence[inside].mean()), float(right[inside].mean())
            error += count / len(confidence) * abs(mean_confidence - mean_accuracy)
        bins.append(
            CalibrationBin(
                lower=float(edges[index]),
                upper=float(edges[index + 1]),
                count=count,
                confidence=mean_confidence,
                accuracy=mean_accuracy,
            )
        )
    return error, tuple(bins)


def confident_mistakes(
    labels: np.ndarray, predicted: np.ndarray, probabilities: np.ndarray, *, names: Sequence[str], keys: Sequence[str]
) -> tuple[Mistake, ...]:
    """Return the mistakes with the highest confidence, at most NUM_MISTAKES; in stored order where it is equal."""
    wrong = np.flatnonzero(predicted != labels)
    order = wrong[np.argsort(-probabilities[wrong, predicted[wrong]], kind="stable")]
    return tuple(
        Mistake(
            key=keys[row],
            label=names[labels[row]],
            label_probability=float(probabilities[row, labels[row]]),
            predicted=names[predicted[row]],
            probability=float(probabilities[row, predicted[row]]),
        )
        for row in order[:NUM_MISTAKES].tolist()
    )
