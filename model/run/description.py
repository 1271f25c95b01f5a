"""`config.json`: what a run was started with, and which other runs have the same result."""

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any, Literal

import msgspec
import numpy as np

from model.config import FREE_OPTIONS, RESOLVED_OPTIONS, TrainConfig, spell
from model.decoding import has_pairs, index_pairs

RUN_FORMAT = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetIdentity:
    """Which dataset a run is trained on.

    Attributes:
        fingerprint: see `pipeline.dataset.info.DatasetInfo`.
    """

    fingerprint: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class BertIdentity:
    """Which BERT a run starts from.

    Attributes:
        vocab_sha256: of the vocabulary.
        checkpoint_sha256: of the weights, see `model.bert.directory.BertDir.checkpoint_sha256`.
    """

    vocab_sha256: str
    checkpoint_sha256: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOrigin:
    """The options of a run, and the inputs they name."""

    config: TrainConfig
    dataset: DatasetIdentity
    bert: BertIdentity

    @property
    def result_options(self) -> dict[str, Any]:
        """Option → value, of those that shape the result and are not resolved."""
        ignored = FREE_OPTIONS | RESOLVED_OPTIONS
        return {option: value for option, value in self.config.options.items() if option not in ignored}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResolvedDevices:
    """The devices a run is on, and how they compute; others change rounding and dropout noise.

    Attributes:
        tf32: whether products are TF32, which float32 is on GPUs that have it.
    """

    strategy: Literal["one_device", "mirrored", "multi_worker"]
    num_replicas: int
    num_workers: int
    accumulate_steps: int
    xla: bool
    deterministic: bool
    tf32: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResolvedBatches:
    """Which examples make a batch.

    Attributes:
        bucket_lengths: lengths that batches are padded to, ascending.
        bucket_rows: examples per batch of each bucket.
        steps_per_epoch: batches in an epoch.
    """

    bucket_lengths: tuple[int, ...]
    bucket_rows: tuple[int, ...]
    steps_per_epoch: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resolved:
    """The values of options that are left to the devices and the data."""

    precision: str
    devices: ResolvedDevices
    batches: ResolvedBatches


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunDescription(RunOrigin):
    """The content of `config.json`: all that evaluation, prediction and export need to know of a run.

    Attributes:
        cased: whether texts keep letter case and accents.
        labels: head → names of its classes in id order.
        label_pairs: category → second labels that occur with it in training; `None` for a run with one head.
        max_len: texts are cut to this many tokens.
        versions: package → version, of what trains.
        resolved: resolved option values.
    """

    cased: bool
    labels: Mapping[str, tuple[str, ...]]
    label_pairs: Mapping[str, tuple[str, ...]] | None
    max_len: int
    versions: Mapping[str, str]
    resolved: Resolved

    def __post_init__(self) -> None:
        if has_pairs(self.labels):
            if self.label_pairs is None:
                raise ValueError("label_pairs does not say which labels occur together")
            try:
                index_pairs(self.label_pairs, self.labels)
            except KeyError as error:
                raise ValueError(f"label_pairs names {error}, which is no label") from None

    @property
    def pairs(self) -> np.ndarray | None:
        """The pairs of labels that occur in training, int64 [P, 2]; `None` for a run with one head."""
        return None if self.label_pairs is None else index_pairs(self.label_pairs, self.labels)

    @property
    def run_id(self) -> str:
        """A hash that is equal for runs with the same result."""
        # With `--batch_tokens` the rows depend on the number of replicas, and with them the meaning of a step's number.
        identity = (self.result_options, self.resolved.batches.bucket_rows, self.dataset, self.bert)
        return hashlib.sha256(msgspec.json.encode(identity, order="deterministic")).hexdigest()

    def to_json(self) -> str:
        """Return the text of `config.json`."""
        content = {"run_format": RUN_FORMAT, **dataclasses.asdict(self)}
        return msgspec.json.format(msgspec.json.encode(content)).decode() + "\n"

    @classmethod
    def from_json(cls, text: bytes) -> "RunDescription":
        """Parse the text of `config.json`.

        Raises:
            msgspec.DecodeError, ValueError: it is damaged, or of another format.
        """
        found = msgspec.json.decode(text, type=_Format).run_format
        if found != RUN_FORMAT:
            raise ValueError(f"run_format {found}, expected {RUN_FORMAT}")
        return msgspec.json.decode(text, type=cls)


@dataclasses.dataclass(frozen=True)
class _Format:
    run_format: int


def changed_values(old: object, new: object) -> list[str]:
    """Say which fields of two equal kinds of dataclass differ, as `name: old -> new`."""
    return changes(vars(old), vars(new))


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Say which values differ between two mappings with the same keys, as `name: old -> new`."""
    return [f"{name}: {spell(old[name])} -> {spell(value)}" for name, value in new.items() if old[name] != value]
