"""What `run_train.py`'s command line says, as a frozen dataclass that is valid once it exists."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pipeline.dataset.schema import HEAD_FEATURES
from pipeline.dataset.shards import STANDARD_SPLITS
from pipeline.errors import OptionError, require, require_choice
from pipeline.tokenization.vocabulary import MIN_MAX_LEN

TRAIN_SPLIT, VALIDATION_SPLIT, TEST_SPLIT = STANDARD_SPLITS

POOLINGS = ("cls", "max")
ENCODERS = ("fused", "keras_bert")
OPTIMIZERS = ("adamw", "adam")
SCHEDULES = ("plateau", "linear", "constant")
MONITORS = ("accuracy", "exact_match", "loss")
PRECISIONS = ("auto", "float32", "bfloat16", "float16")
SWITCHES = ("auto", "on", "off")
STRATEGIES = ("auto", "one_device", "mirrored", "multi_worker")

DEFAULT_LINEAR_WARMUP = 0.1  # Devlin et al. 2019, appendix A.2 and run_classifier.py's default
MAX_CPU_REPLICAS = 64
MAX_NUM_BUCKETS = 64

HeadValues = tuple[tuple[str, float], ...]

# What may differ between the command that started a run and the one that continues it: what changes nothing in the
# result, and what is compared by what it comes to, see `RunDir.check_resumable`.
FREE_FIELDS = frozenset({"data_dir", "bert_dir", "output_dir", "save_every", "keep_states", "log_every", "restart"})
RESOLVED_FIELDS = frozenset({"precision", "xla", "deterministic", "strategy", "cpu_replicas"})


def parse_head_values(option: str, text: str) -> HeadValues:
    """Parse `category=1,second=0.5`, the form in which options give each head a number.

    Raises:
        OptionError: the text has another form, or names a head twice.
    """
    values: dict[str, float] = {}
    for item in text.split(","):
        head, equals, number = item.partition("=")
        try:
            value = float(number)
        except ValueError:
            equals = ""
        require(bool(head and equals), f"--{option}: expected HEAD=NUMBER,…, got {item!r} in {text!r}")
        require(head not in values, f"--{option}: head {head!r} stands twice in {text!r}")
        values[head] = value
    return tuple(values.items())


def parse_buckets(text: str) -> Literal["auto", "off"] | tuple[int, ...]:
    """Parse `auto`, `off` or `64,128,…`.

    Raises:
        OptionError: it is none of them.
    """
    if text == "auto":
        return "auto"
    if text == "off":
        return "off"
    try:
        return tuple(int(edge) for edge in text.split(","))
    except ValueError:
        raise OptionError(f"--buckets: expected auto, off or lengths such as 64,128, got {text!r}") from None


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The options of `run_train.py`; see its `--help` for their meaning.

    Attributes:
        loss_weights: (head, weight) pairs; heads that are not named weigh 1.
        label_smoothing: (head, share) pairs; heads that are not named have none.
        balance_classes: heads whose loss weighs each class by the inverse of its frequency in the training split.
        max_len: `None` takes the dataset's.
        batch_size: global, over all replicas and workers.
        batch_tokens: `None` for batches of `batch_size` examples.
        warmup: share of all steps; `None` for the schedule's own, see `warmup_share`.
        dropout: `None` takes the rates of bert_config.json.
        early_stopping_patience: in epochs; 0 never stops early.
        cpu_replicas: logical CPU devices for `mirrored`; `None` for all GPUs.
        limit_steps: `None` for no limit.
    """

    data_dir: str
    bert_dir: str
    output_dir: str
    heads: tuple[str, ...] = tuple(HEAD_FEATURES)
    loss_weights: HeadValues = ()
    label_smoothing: HeadValues = ()
    balance_classes: tuple[str, ...] = ()
    pooling: Literal["cls", "max"] = "cls"
    encoder: Literal["fused", "keras_bert"] = "fused"
    dropout: float | None = None
    max_len: int | None = None
    batch_size: int = 32
    batch_tokens: int | None = None
    accumulate_steps: int = 1
    eval_batch_size: int = 64
    buckets: Literal["auto", "off"] | tuple[int, ...] = "auto"
    epochs: int = 10
    limit_steps: int | None = None
    optimizer: Literal["adamw", "adam"] = "adamw"
    learning_rate: float = 1e-5
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    schedule: Literal["plateau", "linear", "constant"] = "plateau"
    warmup: float | None = None
    plateau_factor: float = 0.5
    plateau_patience: int = 2
    monitor: Literal["accuracy", "exact_match", "loss"] = "accuracy"
    early_stopping_patience: int = 3
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    xla: Literal["auto", "on", "off"] = "auto"
    deterministic: Literal["auto", "on", "off"] = "auto"
    strategy: Literal["auto", "one_device", "mirrored", "multi_worker"] = "auto"
    cpu_replicas: int | None = None
    seed: int = 0
    save_every: int = 500
    keep_states: int = 2
    log_every: int = 50
    restart: bool = False

    def __post_init__(self) -> None:
        for option in ("data_dir", "bert_dir", "output_dir"):
            require(bool(getattr(self, option)), f"--{option.removesuffix('_dir')}: expected a directory, got ''")
        self._check_choices()
        self._check_heads()
        self._check_numbers()
        self._check_combinations()

    def _check_choices(self) -> None:
        require_choice("pooling", self.pooling, POOLINGS)
        require_choice("encoder", self.encoder, ENCODERS)
        require_choice("optimizer", self.optimizer, OPTIMIZERS)
        require_choice("schedule", self.schedule, SCHEDULES)
        require_choice("monitor", self.monitor, MONITORS)
        require_choice("precision", self.precision, PRECISIONS)
        require_choice("strategy", self.strategy, STRATEGIES)
        require_choice("xla", self.xla, SWITCHES)
        require_choice("deterministic", self.deterministic, SWITCHES)
        if isinstance(self.buckets, str):
            require_choice("buckets", self.buckets, ("auto", "off"))
            return
        edges = ",".join(map(str, self.buckets))
        require(
            1 <= len(self.buckets) <= MAX_NUM_BUCKETS and list(self.buckets) == sorted(set(self.buckets)),
            f"--buckets: expected 1 to {MAX_NUM_BUCKETS} lengths in rising order, got {edges!r}",
        )
        require(self.buckets[0] >= MIN_MAX_LEN, f"--buckets: expected lengths from {MIN_MAX_LEN}, got {edges!r}")

    def _check_heads(self) -> None:
        known, got = ", ".join(HEAD_FEATURES), ",".join(self.heads)
        for head in self.heads:
            require(head in HEAD_FEATURES, f"--heads: unknown head {head!r}; the dataset has the labels of {known}")
        require(0 < len(set(self.heads)) == len(self.heads), f"--heads: expected one or more of {known}, got {got!r}")
        for option in ("loss_weights", "label_smoothing"):
            for head, _ in getattr(self, option):
                require(head in self.heads, f"--{option}: there is no head {head!r}; --heads is {got!r}")
        for head in self.balance_classes:
            require(head in self.heads, f"--balance_classes: there is no head {head!r}; --heads is {got!r}")
        for head, weight in self.loss_weights:
            require(0 <= weight < float("inf"), f"--loss_weights: expected 0 or more, got {head}={weight:g}")
        require(
            any(self.loss_weight(head) > 0 for head in self.heads),
            "--loss_weights: every head weighs 0, so nothing would be learnt; give one a weight above 0",
        )
        for head, share in self.label_smoothing:
            require(0 <= share < 1, f"--label_smoothing: expected 0 or more and below 1, got {head}={share:g}")

    def _check_numbers(self) -> None:
        counts = {
            "batch_size": 1,
            "accumulate_steps": 1,
            "eval_batch_size": 1,
            "epochs": 1,
            "plateau_patience": 1,
            "early_stopping_patience": 0,
            "save_every": 1,
            "keep_states": 1,
            "log_every": 1,
            "seed": 0,
        }
        for option, least in counts.items():
            value = getattr(self, option)
            require(value >= least, f"--{option}: expected {least} or more, got {value}")
        require(self.seed < 2**63, f"--seed: expected 0 to 2**63 - 1, got {self.seed}")
        optional_counts = {"max_len": MIN_MAX_LEN, "batch_tokens": 1, "limit_steps": 1, "cpu_replicas": 1}
        for option, least in optional_counts.items():
            value = getattr(self, option)
            require(value is None or value >= least, f"--{option}: expected {least} or more, got {value}")
        require(
            self.cpu_replicas is None or self.cpu_replicas <= MAX_CPU_REPLICAS,
            f"--cpu_replicas: expected 1 to {MAX_CPU_REPLICAS}, got {self.cpu_replicas}",
        )
        require(0 < self.learning_rate < 1, f"--learning_rate: expected above 0 and below 1, got {self.learning_rate}")
        require(0 <= self.weight_decay < 1, f"--weight_decay: expected 0 or more and below 1, got {self.weight_decay}")
        require(0 <= self.clip_norm < float("inf"), f"--clip_norm: expected 0 (off) or more, got {self.clip_norm}")
        require(0 < self.plateau_factor < 1, f"--plateau_factor: expected between 0 and 1, got {self.plateau_factor}")
        for option in ("warmup", "dropout"):
            value = getattr(self, option)
            require(value is None or 0 <= value < 1, f"--{option}: expected 0 or more and below 1, got {value}")

    def _check_combinations(self) -> None:
        require(
            self.batch_tokens is not None or self.batch_size % self.accumulate_steps == 0,
            f"--accumulate_steps {self.accumulate_steps} does not divide --batch_size {self.batch_size}; "
            "the batch is what one update sees, and is cut into that many equal parts",
        )
        require(
            self.cpu_replicas is None or self.strategy in ("auto", "mirrored"),
            f"--cpu_replicas: only used with --strategy mirrored, which is {self.strategy!r}",
        )
        require(
            self.encoder == "fused" or self.precision in ("auto", "float32"),
            f"--precision {self.precision}: keras-bert's own graph works in float32 alone; use --encoder fused",
        )

    @property
    def warmup_share(self) -> float:
        """Share of all steps over which the learning rate rises from 0: a tenth for `linear`, none for the others."""
        if self.warmup is not None:
            return self.warmup
        return DEFAULT_LINEAR_WARMUP if self.schedule == "linear" else 0.0

    @property
    def monitored(self) -> str:
        """The metric that decides about best weights, plateau and early stopping, as `metrics.csv` names it."""
        return {"accuracy": "val_accuracy_mean", "exact_match": "val_exact_match", "loss": "val_loss"}[self.monitor]

    def loss_weight(self, head: str) -> float:
        """Weight of one head in the loss."""
        return dict(self.loss_weights).get(head, 1.0)

    def smoothing(self, head: str) -> float:
        """Share of the target that one head's label gives to all classes alike."""
        return dict(self.label_smoothing).get(head, 0.0)

    def describe(self) -> dict[str, Any]:
        """Return the options as JSON values, with per-head pairs as objects."""
        content = {
            key: list(value) if isinstance(value, tuple) else value for key, value in dataclasses.asdict(self).items()
        }
        return content | {option: dict(getattr(self, option)) for option in ("loss_weights", "label_smoothing")}


def changed_options(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Say which options that shape the result differ between two described configurations; see `changes`."""
    names = [field.name for field in dataclasses.fields(TrainConfig)]
    return changes(old, new, [name for name in names if name not in FREE_FIELDS | RESOLVED_FIELDS])


def changes(old: Mapping[str, Any], new: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """Say which of the named values differ, as `name: old -> new`."""
    return [f"{name}: {old.get(name)} -> {new.get(name)}" for name in names if old.get(name) != new.get(name)]
