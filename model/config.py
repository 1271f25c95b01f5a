"""Training options as frozen dataclasses, one for each group of `run_train.py --help`; valid once they exist."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_type_hints

from pipeline.dataset.schema import HEAD_FEATURES
from pipeline.dataset.shards import STANDARD_SPLITS
from pipeline.errors import require, require_choice
from pipeline.tokenization.vocabulary import MIN_MAX_LEN

TRAIN_SPLIT, VALIDATION_SPLIT, TEST_SPLIT = STANDARD_SPLITS

Pooling = Literal["cls", "max"]
POOLINGS = get_args(Pooling)
Encoder = Literal["fused", "keras_bert"]
Optimizer = Literal["adamw", "adam"]
Schedule = Literal["plateau", "linear", "constant"]
Monitored = Literal["accuracy", "exact_match", "loss"]
AnswerPrecision = Literal["float32", "bfloat16", "float16"]  # of a model that only answers
PRECISIONS = get_args(AnswerPrecision)
Precision = Literal["auto", AnswerPrecision]
Switch = Literal["auto", "on", "off"]
Strategy = Literal["auto", "one_device", "mirrored", "multi_worker"]
Buckets = Literal["auto", "off"] | tuple[int, ...]

DEFAULT_LINEAR_WARMUP = 0.1  # Devlin et al. 2019, appendix A.2 and run_classifier.py's default
MAX_CPU_REPLICAS = 64
MAX_NUM_BUCKETS = 64

# Options that do not change the result, and options of which `RunDir.check_resumable` compares the resolved values:
# these may differ between the command that starts a run and the one that continues it.
FREE_OPTIONS = frozenset(
    {"data_dir", "bert_dir", "output_dir", "max_skipped_steps", "compile_cache", "eval_batch_size"}
    | {"save_minutes", "save_every", "keep_states", "log_every", "restart"}
)
RESOLVED_OPTIONS = frozenset({"accumulate_steps", "precision", "xla", "deterministic", "strategy", "cpu_replicas"})


def _require_at_least(config: Any, **least: int) -> None:
    """Check that the named fields are `None` or not below a limit."""
    for option, limit in least.items():
        value = getattr(config, option)
        require(value is None or value >= limit, f"--{option}: expected {limit} or more, got {value}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PathsConfig:
    """What to train on, and where to write."""

    data_dir: str
    bert_dir: str
    output_dir: str

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            option = field.name.removesuffix("_dir")
            require(bool(getattr(self, field.name)), f"--{option}: expected a directory, got ''")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The model and its losses.

    Attributes:
        heads: labels to learn.
        loss_weights: head → weight in the loss; 1 for heads that are not named.
        label_smoothing: head → share of the target that all classes get alike; 0 for heads that are not named.
        balance_classes: heads whose loss weighs each class by the inverse of its frequency in the training split.
        dropout: `None` takes the rates of bert_config.json.
    """

    heads: tuple[str, ...] = tuple(HEAD_FEATURES)
    loss_weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
    label_smoothing: Mapping[str, float] = dataclasses.field(default_factory=dict)
    balance_classes: tuple[str, ...] = ()
    pooling: Pooling = "cls"
    encoder: Encoder = "fused"
    dropout: float | None = None

    def __post_init__(self) -> None:
        require_choice("pooling", self.pooling, POOLINGS)
        require_choice("encoder", self.encoder, get_args(Encoder))
        known, got = ", ".join(HEAD_FEATURES), ",".join(self.heads)
        for head in self.heads:
            require(head in HEAD_FEATURES, f"--heads: unknown head {head!r}; the dataset has the labels of {known}")
        require(0 < len(set(self.heads)) == len(self.heads), f"--heads: expected one or more of {known}, got {got!r}")
        for option in ("loss_weights", "label_smoothing", "balance_classes"):
            for head in getattr(self, option):
                require(head in self.heads, f"--{option}: there is no head {head!r}; --heads is {got!r}")
        for head, weight in self.loss_weights.items():
            require(0 <= weight < math.inf, f"--loss_weights: expected 0 or more, got {head}={weight:g}")
        require(
            any(self.loss_weight(head) > 0 for head in self.heads),
            "--loss_weights: every head has weight 0, so there is nothing to learn; give one a weight above 0",
        )
        for head, share in self.label_smoothing.items():
            require(0 <= share < 1, f"--label_smoothing: expected 0 or more and below 1, got {head}={share:g}")
        require(
            self.dropout is None or 0 <= self.dropout < 1,
            f"--dropout: expected 0 or more and below 1, got {self.dropout}",
        )

    def loss_weight(self, head: str) -> float:
        """Return the weight of one head in the loss."""
        return self.loss_weights.get(head, 1.0)

    def smoothing(self, head: str) -> float:
        """Return the share of one head's target that all classes get alike."""
        return self.label_smoothing.get(head, 0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchesConfig:
    """How examples are batched.

    Attributes:
        batch_size: global, over all replicas and workers.
        accumulate_steps: parts in which each batch is computed, one after another.
        batch_tokens: positions per batch; `None` for batches of `batch_size` examples.
        max_len: `None` takes the dataset's.
        buckets: lengths that batches are padded to.
    """

    batch_size: int = 32
    accumulate_steps: int = 1
    batch_tokens: int | None = None
    max_len: int | None = None
    buckets: Buckets = "auto"
    eval_batch_size: int = 64

    def __post_init__(self) -> None:
        _require_at_least(
            self, batch_size=1, accumulate_steps=1, batch_tokens=1, max_len=MIN_MAX_LEN, eval_batch_size=1
        )
        require(
            self.batch_tokens is not None or self.batch_size % self.accumulate_steps == 0,
            f"--accumulate_steps {self.accumulate_steps} does not divide --batch_size {self.batch_size}; "
            "the batch is what one update sees, and is cut into that many equal parts",
        )
        if isinstance(self.buckets, str):
            require_choice("buckets", self.buckets, ("auto", "off"))
            return
        edges = ",".join(map(str, self.buckets))
        require(
            1 <= len(self.buckets) <= MAX_NUM_BUCKETS and list(self.buckets) == sorted(set(self.buckets)),
            f"--buckets: expected 1 to {MAX_NUM_BUCKETS} lengths in rising order, got {edges!r}",
        )
        require(self.buckets[0] >= MIN_MAX_LEN, f"--buckets: expected lengths from {MIN_MAX_LEN}, got {edges!r}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearningConfig:
    """How long and how fast the model learns.

    Attributes:
        limit_steps: `None` for no limit.
        warmup: share of all steps; `None` for the schedule's own, see `warmup_share`.
        early_stopping_patience: in epochs; 0 never stops early.
        max_skipped_steps: steps in a row with a loss that is not finite, whose updates are left out.
    """

    epochs: int = 10
    limit_steps: int | None = None
    optimizer: Optimizer = "adamw"
    learning_rate: float = 1e-5
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    schedule: Schedule = "plateau"
    warmup: float | None = None
    plateau_patience: int = 2
    plateau_factor: float = 0.5
    monitor: Monitored = "accuracy"
    early_stopping_patience: int = 3
    max_skipped_steps: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        require_choice("optimizer", self.optimizer, get_args(Optimizer))
        require_choice("schedule", self.schedule, get_args(Schedule))
        require_choice("monitor", self.monitor, get_args(Monitored))
        _require_at_least(self, epochs=1, limit_steps=1, plateau_patience=1, early_stopping_patience=0)
        _require_at_least(self, max_skipped_steps=0)
        require(0 <= self.seed < 2**63, f"--seed: expected 0 to 2**63 - 1, got {self.seed}")
        require(0 < self.learning_rate < 1, f"--learning_rate: expected above 0 and below 1, got {self.learning_rate}")
        require(0 <= self.weight_decay < 1, f"--weight_decay: expected 0 or more and below 1, got {self.weight_decay}")
        require(0 <= self.clip_norm < math.inf, f"--clip_norm: expected 0 (off) or more, got {self.clip_norm}")
        require(0 < self.plateau_factor < 1, f"--plateau_factor: expected between 0 and 1, got {self.plateau_factor}")
        require(
            self.warmup is None or 0 <= self.warmup < 1, f"--warmup: expected 0 or more and below 1, got {self.warmup}"
        )

    @property
    def warmup_share(self) -> float:
        """Share of all steps over which the learning rate rises from 0: a tenth for `linear`, none for the others."""
        if self.warmup is not None:
            return self.warmup
        return DEFAULT_LINEAR_WARMUP if self.schedule == "linear" else 0.0

    @property
    def monitored(self) -> str:
        """The column of `metrics.csv` that decides about best weights, plateau and early stopping."""
        return {"accuracy": "val_accuracy_mean", "exact_match": "val_exact_match", "loss": "val_loss"}[self.monitor]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DevicesConfig:
    """Devices and arithmetic.

    Attributes:
        cpu_replicas: logical CPU devices for `mirrored`; `None` for all GPUs.
        compile_cache: directory of XLA's compiled programs; `None` keeps none.
    """

    strategy: Strategy = "auto"
    cpu_replicas: int | None = None
    precision: Precision = "auto"
    xla: Switch = "auto"
    compile_cache: str | None = None
    deterministic: Switch = "auto"

    def __post_init__(self) -> None:
        require_choice("strategy", self.strategy, get_args(Strategy))
        require_choice("precision", self.precision, get_args(Precision))
        require_choice("xla", self.xla, get_args(Switch))
        require_choice("deterministic", self.deterministic, get_args(Switch))
        require(
            self.cpu_replicas is None or 1 <= self.cpu_replicas <= MAX_CPU_REPLICAS,
            f"--cpu_replicas: expected 1 to {MAX_CPU_REPLICAS}, got {self.cpu_replicas}",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SavingConfig:
    """States and logs.

    Attributes:
        save_minutes: time between saved states.
        save_every: steps between saved states; `None` for `save_minutes` alone.
        keep_states: states to keep.
        log_every: steps between TensorBoard scalars.
        restart: whether to remove the run in the output directory first.
    """

    save_minutes: float = 10.0
    save_every: int | None = None
    keep_states: int = 2
    log_every: int = 50
    restart: bool = False

    def __post_init__(self) -> None:
        _require_at_least(self, save_every=1, keep_states=1, log_every=1)
        require(0 < self.save_minutes < math.inf, f"--save_minutes: expected above 0, got {self.save_minutes}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The options of `run_train.py`, in its groups; see its `--help` for their meaning."""

    paths: PathsConfig
    model: ModelConfig = ModelConfig()
    batches: BatchesConfig = BatchesConfig()
    learning: LearningConfig = LearningConfig()
    devices: DevicesConfig = DevicesConfig()
    saving: SavingConfig = SavingConfig()

    def __post_init__(self) -> None:
        require(
            self.model.encoder == "fused" or self.devices.precision in ("auto", "float32"),
            f"--precision {self.devices.precision}: keras-bert's own graph works in float32 alone; use --encoder fused",
        )

    @classmethod
    def from_options(cls, **options: Any) -> "TrainConfig":
        """Sort options into their groups; those that are not given have their defaults.

        Raises:
            OptionError: an option has a value that cannot be used.
            TypeError: there is no such option, or a required one is missing.
        """
        groups = {}
        for name, group_type in get_type_hints(cls).items():
            own = [field.name for field in dataclasses.fields(group_type) if field.name in options]
            groups[name] = group_type(**{option: options.pop(option) for option in own})
        if options:
            raise TypeError(f"unknown training options: {', '.join(options)}")
        return cls(**groups)

    @property
    def options(self) -> dict[str, Any]:
        """Option name → value, over all groups."""
        groups = [getattr(self, group.name) for group in dataclasses.fields(self)]
        return {field.name: getattr(group, field.name) for group in groups for field in dataclasses.fields(group)}


def spell(value: Any) -> str:
    """Write an option's value as the command line does."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if isinstance(value, Mapping):
        return ",".join(f"{name}={number}" for name, number in value.items())
    return str(value)
