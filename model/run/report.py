"""`report.json`: the result of a run, and how it was trained; `model.report.metrics` defines the figures."""

import dataclasses
from collections.abc import Mapping

import msgspec

from model.decoding import Decoding


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassMeasures:
    """The figures of one class; 0 where the denominator is 0.

    Attributes:
        support: examples of this class.
        predicted: examples that are given it.
    """

    label: str
    precision: float
    recall: float
    f1: float
    support: int
    predicted: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class CalibrationBin:
    """Predictions with a confidence in (lower, upper].

    Attributes:
        count: how many.
        confidence, accuracy: their means; `None` in an empty bin.
    """

    lower: float
    upper: float
    count: int
    confidence: float | None
    accuracy: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mistake:
    """A wrong prediction.

    Attributes:
        key: which document it is.
        label, label_probability: the right class.
        predicted, probability: the predicted class.
    """

    key: str
    label: str
    label_probability: float
    predicted: str
    probability: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadMeasures:
    """The figures of one head.

    Attributes:
        classes: in id order.
        confusion_matrix: [right][predicted], examples.
        calibration: bins of the confidence, ascending.
        mistakes: those with the highest confidence first.
    """

    accuracy: float
    macro_f1: float
    micro_f1: float
    ece: float
    classes: tuple[ClassMeasures, ...]
    confusion_matrix: list[list[int]]
    calibration: tuple[CalibrationBin, ...]
    mistakes: tuple[Mistake, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodingMeasures:
    """The figures of one way to decode both heads.

    Attributes:
        accuracy: of each head.
        exact_match: share of examples of which every head is right.
        impossible_pairs: share of examples that get a pair of labels that no training example has.
    """

    accuracy: Mapping[str, float]
    exact_match: float
    impossible_pairs: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measures:
    """The figures of predictions.

    Attributes:
        decode: how labels are chosen in all figures but those of `decoding`.
        heads: of each head.
        exact_match: share of examples of which every head is right.
        decoding: of both ways to decode; `None` for one head.
        unseen_pairs: share of examples whose right pair no training example has, which joint decoding cannot find;
            `None` for one head.
    """

    num_examples: int
    decode: Decoding
    heads: Mapping[str, HeadMeasures]
    exact_match: float
    decoding: Mapping[Decoding, DecodingMeasures] | None
    unseen_pairs: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation(Measures):
    """The figures of a model on a split.

    Attributes:
        split: which split.
        seconds: spent on predictions.
        unknown_labels: head → name → examples, of labels that the model does not know; heads without any are absent.
    """

    split: str
    seconds: float
    unknown_labels: Mapping[str, Mapping[str, int]]

    @property
    def examples_per_second(self) -> float:
        """Examples per second of prediction."""
        return self.num_examples / max(self.seconds, 1e-9)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingSummary:
    """How a run was trained.

    Attributes:
        monitored: the column of `metrics.csv` that chose the best epoch.
        best_value: its value in the best epoch.
        best_epoch: counted from 1.
        epochs, steps: how many were trained.
        early_stopped: whether the run ended before its last planned step.
        seconds, num_examples: spent in training steps, and the examples they saw.
        clock_seconds: since the first step, with validation and saving.
        device_changes: see `model.training.training_state.Progress`.
    """

    monitored: str
    best_value: float
    best_epoch: int
    epochs: int
    steps: int
    early_stopped: bool
    seconds: float
    clock_seconds: float
    num_examples: int
    device_changes: tuple[str, ...]

    @property
    def examples_per_second(self) -> float:
        """Examples per second in training steps."""
        return self.num_examples / max(self.seconds, 1e-9)

    @property
    def examples_per_clock_second(self) -> float:
        """Examples per second of training, with validation and saving."""
        return self.num_examples / max(self.clock_seconds, 1e-9)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """The content of `report.json`."""

    evaluation: Evaluation
    training: TrainingSummary

    def to_json(self) -> str:
        """Return the text of `report.json`."""
        return msgspec.json.format(msgspec.json.encode(self)).decode() + "\n"

    @classmethod
    def from_json(cls, text: bytes) -> "Report":
        """Parse the text of `report.json`.

        Raises:
            msgspec.DecodeError, ValueError: it is damaged, or of another format.
        """
        return msgspec.json.decode(text, type=cls)
