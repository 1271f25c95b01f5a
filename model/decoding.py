"""From the probabilities of both heads to their labels: each head by itself, or the best pair that occurs in training.

The heads see the same text but decide apart, so their labels may contradict each other: `足球` under `财经`. Joint
decoding takes the pair with the largest product of both probabilities among the pairs that the training split has:
those of the taxonomy, or of whatever else gave the second label.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import numpy as np

from pipeline.dataset.info import SplitInfo
from pipeline.dataset.schema import CATEGORY_HEAD, SECOND_HEAD
from pipeline.errors import OptionError

Decoding = Literal["independent", "joint"]
DECODINGS: tuple[Decoding, ...] = get_args(Decoding)
INDEPENDENT: Decoding = "independent"
JOINT: Decoding = "joint"
PAIR_HEADS = (CATEGORY_HEAD, SECOND_HEAD)
DECODE_HELP = (
    "independent: each head's most probable label; joint: the most probable pair of labels among those that occur in "
    "training, so that they never contradict each other"
)


def has_pairs(heads: Mapping[str, object] | Sequence[str]) -> bool:
    """Tell whether there are two labels that may contradict each other."""
    return set(PAIR_HEADS) <= set(heads)


def check_decode(decode: Decoding, heads: Mapping[str, object] | Sequence[str]) -> None:
    """Check that a run can be decoded this way.

    Raises:
        OptionError: it has one head alone.
    """
    if decode == JOINT and not has_pairs(heads):
        raise OptionError(
            f"--decode {JOINT}: needs the heads {' and '.join(PAIR_HEADS)}, this run has {', '.join(heads)} alone; "
            f"use --decode {INDEPENDENT}"
        )


def observed_pairs(split: SplitInfo) -> np.ndarray:
    """Return the pairs of labels that occur in a split, int64 [P, 2], category and second label, in rising order."""
    return np.argwhere(np.asarray(split.joint_label_counts) > 0)


def name_pairs(pairs: np.ndarray, labels: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """Return pairs as category -> its second labels, which is how a run's `config.json` keeps them.

    Args:
        pairs: int [P, 2].
        labels: head -> names of its classes in id order.
    """
    categories, seconds = (labels[head] for head in PAIR_HEADS)
    named: dict[str, list[str]] = {}
    for category, second in pairs.tolist():
        named.setdefault(categories[category], []).append(seconds[second])
    return {category: tuple(seconds) for category, seconds in named.items()}


def index_pairs(named: Mapping[str, Sequence[str]], labels: Mapping[str, Sequence[str]]) -> np.ndarray:
    """Return `name_pairs`'s argument again, int64 [P, 2]."""
    categories, seconds = ({name: index for index, name in enumerate(labels[head])} for head in PAIR_HEADS)
    pairs = sorted((categories[category], seconds[name]) for category, names in named.items() for name in names)
    return np.array(pairs, np.int64).reshape(-1, 2)


def decode_labels(
    probabilities: Mapping[str, np.ndarray], *, decode: Decoding = INDEPENDENT, pairs: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Return the label that each head is given.

    Args:
        probabilities: head -> float [N, classes].
        decode: INDEPENDENT takes each head's most probable class, JOINT the best of `pairs`. The first of equals wins.
        pairs: int [P, 2], at least one; needed for JOINT.

    Returns:
        head -> int64 [N].

    Raises:
        OptionError: JOINT without pairs.
    """
    if decode == INDEPENDENT:
        return {head: values.argmax(axis=1) for head, values in probabilities.items()}
    check_decode(decode, probabilities)
    if pairs is None or not len(pairs):
        raise OptionError(f"--decode {JOINT}: there are no pairs of labels to choose from")
    best = pair_scores(probabilities, pairs).argmax(axis=1)
    return {head: pairs[best, column] for column, head in enumerate(PAIR_HEADS)}


def pair_scores(probabilities: Mapping[str, np.ndarray], pairs: np.ndarray) -> np.ndarray:
    """Return the product of both heads' probabilities for each pair, float [N, P]."""
    category, second = (probabilities[head][:, pairs[:, column]] for column, head in enumerate(PAIR_HEADS))
    scores: np.ndarray = category * second
    return scores


def are_impossible(labels: Mapping[str, np.ndarray], pairs: np.ndarray) -> np.ndarray:
    """Tell which examples have a pair of labels that is none of `pairs`, bool [N]."""
    known = set(map(tuple, pairs.tolist()))
    return np.array(
        [pair not in known for pair in zip(*(labels[head].tolist() for head in PAIR_HEADS), strict=True)], bool
    )
