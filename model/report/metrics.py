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
from typing import Any

import numpy as np
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, precision_recall_fscore_support

from model.decoding import DECODINGS, INDEPENDENT, are_impossible, decode_labels, has_pairs

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
    decode: str = INDEPENDENT,
) -> dict[str, Any]:
    """Return the figures of a split as JSON values.

    A head's figures leave out examples whose label it does not know, those of several heads leave out examples with any
    such label.

    Args:
        predictions: of N examples, at least one with all labels known.
        labels: head -> names of its classes in id order.
        keys: where each of the N examples came from.
        pairs: int [P, 2], the pairs of labels that occur in training; `None` where there is one head alone.
        decode: how all figures but `decoding`'s are decoded.

    Returns:
        `num_examples`, `decode`, `heads`: head -> `measure_head`'s, `exact_match`; with pairs also `decoding`: name ->
        `accuracy` by head, `exact_match` and `impossible_pairs` of both ways to decode, and `unseen_pairs`: share of
        examples whose right pair no training example has, which joint decoding cannot find.

    Raises:
        OptionError: joint decoding without pairs.
    """
    known = {head: np.flatnonzero(right >= 0) for head, right in predictions.labels.items()}
    all_known = np.flatnonzero(np.all([right >= 0 for right in predictions.labels.values()], axis=0))
    right = {head: values[all_known] for head, values in predictions.labels.items()}
    probabilities = {head: values[all_known] for head, values in predictions.probabilities.items()}
    predicted = decode_labels(predictions.probabilities, decode=decode, pairs=pairs)
    report: dict[str, Any] = {
        "num_examples": len(keys),
        "decode": decode,
        "heads": {
            head: measure_head(
                predictions.labels[head][rows],
                predicted[head][rows],
                predictions.probabilities[head][rows],
                names=labels[head],
                keys=[keys[row] for row in rows.tolist()],
            )
            for head, rows in known.items()
        },
        "exact_match": exact_match(right, {head: values[all_known] for head, values in predicted.items()}),
    }
    if pairs is not None and has_pairs(predictions.labels):
        report["decoding"] = {}
        for name in DECODINGS:
            predicted = decode_labels(probabilities, decode=name, pairs=pairs)
            report["decoding"][name] = {
                "accuracy": {head: float(accuracy_score(values, predicted[head])) for head, values in right.items()},
                "exact_match": exact_match(right, predicted),
                "impossible_pairs": float(are_impossible(predicted, pairs).mean()),
            }
        report["unseen_pairs"] = float(are_impossible(right, pairs).mean())
    return report


def unknown_label_lines(report: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each head about the examples whose labels it does not know."""
    return [
        f"{head}: {sum(counts.values()):,} examples with labels that the run does not know are left out "
        f"({', '.join(f'{name} {count:,}' for name, count in counts.items())})"
        for head, counts in report.get("unknown_labels", {}).items()
        if counts
    ]


def exact_match(labels: Mapping[str, np.ndarray], predicted: Mapping[str, np.ndarray]) -> float:
    """Return the share of examples of which every head is right."""
    return float(np.all([predicted[head] == right for head, right in labels.items()], axis=0).mean())


def measure_head(
    labels: np.ndarray, predicted: np.ndarray, probabilities: np.ndarray, *, names: Sequence[str], keys: Sequence[str]
) -> dict[str, Any]:
    """Return the figures of one head as JSON values.

    Args:
        labels, predicted: int [N], the right classes and those it was given.
        probabilities: float [N, classes].
        names: of the classes.
        keys: where each example came from.

    Returns:
        `accuracy`, `macro_f1`, `micro_f1`, `ece`; `classes`: `label`, `precision`, `recall`, `f1`, `support`,
        `predicted` of each, 0 where it would be divided by 0; `confusion_matrix`: [right][predicted]; `calibration`:
        see `calibrate`; `mistakes`: see `confident_mistakes`.
    """
    class_ids = list(range(len(names)))
    matrix = confusion_matrix(labels, predicted, labels=class_ids)
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, predicted, labels=class_ids, zero_division=0.0
    )
    confidence = probabilities[np.arange(len(predicted)), predicted].astype(np.float64)
    ece, calibration = calibrate(confidence, predicted == labels)
    return {
        "accuracy": float(accuracy_score(labels, predicted)),
        "macro_f1": float(f1_score(labels, predicted, average="macro", zero_division=0.0)),
        "micro_f1": float(f1_score(labels, predicted, average="micro", zero_division=0.0)),
        "ece": ece,
        "classes": [
            {
                "label": name,
                "precision": float(precision[index]),
                "recall": float(recall[index]),
                "f1": float(f1[index]),
                "support": int(support[index]),
                "predicted": int(matrix[:, index].sum()),
            }
            for index, name in enumerate(names)
        ],
        "confusion_matrix": matrix.tolist(),
        "calibration": calibration,
        "mistakes": confident_mistakes(labels, predicted, probabilities, names=names, keys=keys),
    }


def calibrate(confidence: np.ndarray, right: np.ndarray) -> tuple[float, list[dict[str, Any]]]:
    """Compare how sure a head is with how often it is right.

    Args:
        confidence: float [N], in [0, 1].
        right: bool [N].

    Returns:
        The expected calibration error, and its NUM_BINS bins: `lower`, `upper`, `count`, and means over the examples in
        it, `confidence` and `accuracy`, `None` in an empty one.
    """
    edges = np.linspace(0.0, 1.0, NUM_BINS + 1)
    # A confidence of 0, which joint decoding may have to accept, belongs to the first bin.
    places = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, NUM_BINS - 1)
    error, bins = 0.0, []
    for index in range(NUM_BINS):
        inside = places == index
        count = int(inside.sum())
        means: dict[str, float | None] = {"confidence": None, "accuracy": None}
        if count:
            mean_confidence, accuracy = float(confidence[inside].mean()), float(right[inside].mean())
            means = {"confidence": mean_confidence, "accuracy": accuracy}
            error += count / len(confidence) * abs(mean_confidence - accuracy)
        bins.append({"lower": float(edges[index]), "upper": float(edges[index + 1]), "count": count, **means})
    return error, bins


def confident_mistakes(
    labels: np.ndarray, predicted: np.ndarray, probabilities: np.ndarray, *, names: Sequence[str], keys: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the mistakes a head is most sure of, at most NUM_MISTAKES.

    Returns:
        `key`, `label`, `label_probability`, `predicted`, `probability` of each; in stored order where equally sure.
    """
    wrong = np.flatnonzero(predicted != labels)
    order = wrong[np.argsort(-probabilities[wrong, predicted[wrong]], kind="stable")]
    return [
        {
            "key": keys[row],
            "label": names[labels[row]],
            "label_probability": float(probabilities[row, labels[row]]),
            "predicted": names[predicted[row]],
            "probability": float(probabilities[row, predicted[row]]),
        }
        for row in order[:NUM_MISTAKES].tolist()
    ]
