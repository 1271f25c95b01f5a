"""A confusion matrix that people can read: classes in a telling order, a shade for each cell, not too many of them."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from model.decoding import PAIR_HEADS, has_pairs, index_pairs
from model.run.report import HeadMeasures

# A matrix of more classes shows those with the most mistakes, and the others as one.
MAX_MATRIX_CLASSES = 80
NUM_CONFUSIONS = 12
_OTHERS = "others"
_NUM_SHADES = 9


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassOrder:
    """In which order a head's classes are shown.

    Attributes:
        ids: the classes.
        groups: the other head's label that comes with each of `ids`; `None` where there is none, or not one alone.
    """

    ids: Sequence[int]
    groups: Sequence[str] | None

    @property
    def starts(self) -> list[int]:
        """Places in `ids` where a new group begins, the first one aside."""
        groups = self.groups or ()
        return [place for place in range(1, len(groups)) if groups[place] != groups[place - 1]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MatrixRow:
    """One row of a confusion matrix.

    Attributes:
        name: the right class.
        cells: (names of style classes, number of examples) for each predicted class.
    """

    name: str
    cells: Sequence[tuple[str, str]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Matrix:
    """A confusion matrix as the page shows it.

    Attributes:
        names: of the classes.
        rows: one for each class.
        groups: indices of rows where a new group begins.
        size: `many` or `dense` for small cells.
        note: what is left out.
    """

    names: Sequence[str]
    rows: Sequence[MatrixRow]
    groups: Sequence[int]
    size: str
    note: str


def class_orders(
    labels: Mapping[str, Sequence[str]], label_pairs: Mapping[str, Sequence[str]] | None
) -> dict[str, ClassOrder]:
    """Order each head's classes: by id, or, where the other head's classes are their parents, by parent and id.

    Args:
        labels: head -> names of its classes in id order.
        label_pairs: category -> second labels that occur with it.
    """
    orders = {head: ClassOrder(ids=range(len(names)), groups=None) for head, names in labels.items()}
    if label_pairs is None or not has_pairs(labels):
        return orders
    pairs = index_pairs(label_pairs, labels)
    for column, head in enumerate(PAIR_HEADS):
        parents = labels[PAIR_HEADS[1 - column]]
        children = pairs[:, column]
        if len(parents) < len(labels[head]) and len(np.unique(children)) == len(children):
            parent_of = dict(zip(children.tolist(), pairs[:, 1 - column].tolist(), strict=True))
            # A class that training never saw has no parent, and is last.
            ids = sorted(orders[head].ids, key=lambda label: (parent_of.get(label, len(parents)), label))
            groups = [parents[parent_of[label]] if label in parent_of else "" for label in ids]
            orders[head] = ClassOrder(ids=ids, groups=groups)
    return orders


def shade_matrix(measures: HeadMeasures, order: ClassOrder) -> Matrix:
    """Return the matrix with a shade for each cell, condensed where there are too many classes to see."""
    names = [measures.classes[label].label for label in order.ids]
    matrix = np.array(measures.confusion_matrix)[np.ix_(order.ids, order.ids)]
    starts, note = order.starts, ""
    if len(names) > MAX_MATRIX_CLASSES:
        matrix, kept = condense(matrix, MAX_MATRIX_CLASSES)
        names, starts = [*(names[place] for place in kept), _OTHERS], []
        note = (
            f"The {len(kept)} of {len(order.ids)} classes with the most mistakes; all examples among the "
            f"{_OTHERS} is in one cell."
        )
    totals = matrix.sum(axis=1)
    rows = []
    for row, name in enumerate(names):
        cells = []
        for column, count in enumerate(matrix[row].tolist()):
            kinds = [f"{'h' if row == column else 'm'}{-(-_NUM_SHADES * count // int(totals[row]))}"] if count else []
            kinds += ["group"] if column in starts else []
            cells.append((" ".join(kinds), f"{count}" if count else ""))
        rows.append(MatrixRow(name=name, cells=cells))
    size = "dense" if len(names) > 36 else "many" if len(names) > 16 else ""
    return Matrix(names=names, rows=rows, groups=starts, size=size, note=note)


def condense(matrix: np.ndarray, num_classes: int) -> tuple[np.ndarray, list[int]]:
    """Keep the classes with the most mistakes, both ways, and add up the others in a last row and column.

    Args:
        matrix: int [C, C].
        num_classes: how many to show, the others included; below C.

    Returns:
        int [num_classes, num_classes], and the places of those that were kept, in rising order.
    """
    mistakes = matrix.sum(axis=0) + matrix.sum(axis=1) - 2 * np.diag(matrix)
    kept = np.sort(np.argsort(-mistakes, kind="stable")[: num_classes - 1])
    target = np.full(len(matrix), num_classes - 1)
    target[kept] = np.arange(num_classes - 1)
    condensed = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(condensed, (target[:, np.newaxis], target[np.newaxis, :]), matrix)
    return condensed, kept.tolist()


def frequent_confusions(measures: HeadMeasures) -> list[tuple[str, ...]]:
    """Return the most frequent pairs of right and wrong label."""
    matrix = np.array(measures.confusion_matrix)
    names = [cell.label for cell in measures.classes]
    totals = matrix.sum(axis=1)
    np.fill_diagonal(matrix, 0)
    order = np.argsort(-matrix, axis=None, kind="stable")[:NUM_CONFUSIONS]
    places = zip(*(axis.tolist() for axis in np.unravel_index(order, matrix.shape)), strict=True)
    return [
        (names[right], names[wrong], f"{matrix[right, wrong]:,}", f"{matrix[right, wrong] / totals[right]:.1%}")
        for right, wrong in places
        if matrix[right, wrong]
    ]
