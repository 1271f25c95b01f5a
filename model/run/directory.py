"""The directory of a run, and what may be done with one that is there already.

RUN/
  config.json       first of all: options, what they came to, the dataset's and BERT's identity, label names, versions
  vocab.txt         the vocabulary the ids refer to
  bert_config.json  the BERT's sizes
  metrics.csv       a row for each finished epoch
  tensorboard/      event files
  state/            the resumable state, see `model.training.training_state`
  best/             weights of the best epoch so far, and of those that a state still refers to, epoch-00003.npz
  weights.npz       at the end: all weights, heads included, of the best epoch
  bert/             at the end: the same encoder as a Google-format BERT directory
  report.html       at the end: results on the test split and how they came about, for people
  report.json       at the very end: the same results for machines; its presence means "finished"
  evaluation/       what `model.evaluate` wrote later, a report for each split, way to decode and dataset
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from model.config import FREE_OPTIONS, RESOLVED_OPTIONS, changed_options, changes
from model.decoding import INDEPENDENT
from model.files import remove, remove_temporary, write_text
from pipeline.errors import (
    InputFormatError,
    MissingInputError,
    OptionError,
    OutputExistsError,
    OutputWriteError,
    SchemaMismatchError,
)
from pipeline.filesystem import TEMPORARY_SUFFIX, is_remote

RUN_FORMAT = 3
# What `config.json` says about them identifies their content.
INPUTS = {"dataset": "--data", "bert": "--bert"}
# What of `resolved` decides which examples make a batch; and what changes rounding and dropout noise, which is worth a
# warning but not worth losing a run for.
BATCH_VALUES = ("bucket_lengths", "bucket_rows", "steps_per_epoch")
DEVICE_VALUES = ("strategy", "num_replicas", "num_workers", "accumulate_steps", "xla", "deterministic", "tf32")
# What others read of `report.json`: the split that was measured, and what training says about itself.
REPORT_FIELDS = frozenset(
    {
        "split",
        "monitored",
        "best_value",
        "best_epoch",
        "epochs",
        "steps",
        "early_stopped",
        "train_seconds",
        "train_examples_per_second",
        "clock_seconds",
    }
)
_LOCK_NAME = ".lock"

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class RunDir:
    """The paths of a run.

    Attributes:
        path: the run's directory.
    """

    path: Path

    @property
    def config(self) -> Path:
        """The options, and what they came to."""
        return self.path / "config.json"

    @property
    def vocab(self) -> Path:
        """The vocabulary."""
        return self.path / "vocab.txt"

    @property
    def bert_config(self) -> Path:
        """The BERT's sizes."""
        return self.path / "bert_config.json"

    @property
    def metrics(self) -> Path:
        """A row for each epoch."""
        return self.path / "metrics.csv"

    @property
    def tensorboard(self) -> Path:
        """Event files."""
        return self.path / "tensorboard"

    @property
    def states(self) -> Path:
        """The resumable state."""
        return self.path / "state"

    @property
    def weights(self) -> Path:
        """The final weights."""
        return self.path / "weights.npz"

    @property
    def bert(self) -> Path:
        """The final encoder."""
        return self.path / "bert"

    @property
    def report(self) -> Path:
        """The result."""
        return self.path / "report.json"

    @property
    def report_page(self) -> Path:
        """The result, for people."""
        return self.path / "report.html"

    def evaluation(self, split: str, decode: str, fingerprint: str | None) -> Path:
        """The report of a later measurement.

        Args:
            split: which split.
            decode: how labels were chosen.
            fingerprint: of the dataset; `None` for the one of training.
        """
        parts = [split, *([] if decode == INDEPENDENT else [decode]), *([fingerprint[:12]] if fingerprint else [])]
        return self.path / "evaluation" / "-".join(parts)

    def best_weights(self, epoch: int) -> Path:
        """Weights of the best epoch so far, counted from 1."""
        return self.path / "best" / f"epoch-{epoch:05d}.npz"

    def keep_best_weights(self, epochs: Collection[int]) -> None:
        """Remove the weights of former best epochs, all but these."""
        kept = [self.best_weights(epoch) for epoch in epochs]
        for path in self.best_weights(0).parent.glob("*"):
            if path not in kept:
                path.unlink(missing_ok=True)

    def exists(self) -> bool:
        """Tell whether there is a run here.

        Raises:
            OutputExistsError: there is something else here, which a run would mix with.
        """
        if self.path.exists() and not self.path.is_dir():
            raise OutputExistsError(f"{self.path}: expected a directory, found a file; give another --output")
        if self.config.exists():
            return True
        names = os.listdir(self.path) if self.path.is_dir() else []
        strange = sorted(name for name in names if name != _LOCK_NAME and not name.endswith(TEMPORARY_SUFFIX))
        if strange:
            raise OutputExistsError(
                f"{self.path}: not a run (it holds {strange[0]!r} but no config.json); give another --output"
            )
        return False

    def read_config(self) -> dict[str, Any]:
        """Return the content of `config.json`.

        Raises:
            MissingInputError: there is no run here.
            InputFormatError: the file is damaged, or no run's.
        """
        if not self.config.is_file():
            raise MissingInputError(f"{self.path}: no run here (no config.json); make one with run_train.py")
        with _parse_errors(self.config):
            content: dict[str, Any] = json.loads(self.config.read_text(encoding="utf-8"))
            if content["run_format"] != RUN_FORMAT:
                raise ValueError(f"run_format {content['run_format']}, expected {RUN_FORMAT}")
            if not isinstance(content["config"], dict) or not isinstance(content["resolved"], dict):
                raise TypeError("config and resolved must be objects")
        return content

    def read_report(self) -> dict[str, Any]:
        """Return the content of `report.json`.

        Raises:
            MissingInputError: the run is not finished.
            InputFormatError: the file is damaged, or no run's.
        """
        if not self.report.is_file():
            raise MissingInputError(f"{self.path}: this run is not finished; start the same run_train.py command again")
        with _parse_errors(self.report):
            content: dict[str, Any] = json.loads(self.report.read_text(encoding="utf-8"))
            missing = REPORT_FIELDS - content.keys()
            if missing:
                raise ValueError(f"it lacks {', '.join(sorted(missing))}")
        return content

    def check_resumable(self, new: Mapping[str, Any]) -> list[str]:
        """Check that the run here is unfinished and was started by the same command.

        Args:
            new: what the present command would write into `config.json`; without `resolved`, that is not compared.

        Returns:
            What of the devices has changed, which the result depends on in its last digits.

        Raises:
            OutputExistsError: it is finished, or was started with other options.
            OptionError: an option was left to the machine, and comes to something else on this one.
            SchemaMismatchError: the dataset or the BERT is another by now.
            InputFormatError: its `config.json` is damaged.
        """
        old = self.read_config()
        if self.report.exists():
            raise OutputExistsError(
                f"{self.path}: this run is finished (it has a {self.report.name}); --restart trains again from the "
                "beginning, python -m model.evaluate measures it again"
            )
        changed = changed_options(old["config"], new["config"])
        if changed:
            raise OutputExistsError(
                f"{self.path}: this run was started with other options ({'; '.join(changed)}); repeat its options to "
                "continue it, or give --restart, or another --output"
            )
        for what, fix in INPUTS.items():
            if old.get(what) != new[what]:
                raise SchemaMismatchError(
                    f"{self.path}: this run was started with another {fix} ({_difference(old.get(what), new[what])}); "
                    "give that one to continue it, or --restart, or another --output"
                )
        if "resolved" not in new:
            return []
        return self._check_resolved(old["resolved"], new["resolved"], new["config"]["devices"]["precision"])

    def _check_resolved(self, old: Mapping[str, Any], new: Mapping[str, Any], given_precision: str) -> list[str]:
        if old.get("precision") != new["precision"]:
            raise OptionError(
                f"{self.path}: this run was started in {old.get('precision')}, and --precision {given_precision} is "
                f"{new['precision']} here; give --precision {old.get('precision')} to continue it, or --restart, or "
                "another --output"
            )
        changed = changes(old, new, BATCH_VALUES)
        if changed:
            raise OptionError(
                f"{self.path}: this run's batches would be others from here on ({'; '.join(changed)}); with "
                f"--batch_tokens they are multiples of the replicas, which were {old.get('num_replicas')} and are "
                f"{new['num_replicas']}: continue with as many, or give --restart, or another --output"
            )
        changed = changes(old, new, DEVICE_VALUES)
        if changed:
            logger.warning(
                "continuing on other devices (%s): rounding and dropout noise will differ from an uninterrupted run",
                "; ".join(changed),
            )
        return changed

    def clear(self) -> None:
        """Remove everything a run has left here.

        What says that the run is finished goes first, what says that it is one goes last: at any moment in between, a
        killed process leaves an unfinished run.

        Raises:
            OutputWriteError: something cannot be removed.
        """
        remove(self.report)
        others = [path for path in self.path.iterdir() if path.name != _LOCK_NAME and path != self.config]
        for path in (*others, self.config):
            remove(path)
            if os.path.lexists(path):
                raise OutputWriteError(f"{path}: cannot remove what the last run wrote; remove it, or fix its rights")

    def remove_temporary(self) -> None:
        """Remove what killed processes left half-written."""
        for directory in (self.path, self.best_weights(0).parent, self.states):
            remove_temporary(directory)

    def write_config(self, content: Mapping[str, Any]) -> None:
        """Write `config.json`.

        Raises:
            OutputWriteError: it cannot be written.
        """
        text = json.dumps({"run_format": RUN_FORMAT, **content}, ensure_ascii=False, indent=2)
        write_text(self.config, text + "\n")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Make the directory, and hold it against a second process for as long as this one trains.

        Raises:
            OutputExistsError: another process trains here.
            OutputWriteError: it cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path / _LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o644)
        except FileExistsError:
            raise OutputExistsError(f"{self.path}: expected a directory, found a file; give another --output") from None
        except OSError as error:
            raise OutputWriteError(f"{self.path}: cannot make this directory: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise OutputExistsError(f"{self.path}: another process is training here; wait for it, or stop it") from None
        try:
            yield
        finally:
            os.close(descriptor)


def open_run_dir(path: str) -> RunDir:
    """Return the run directory of an `--output`.

    Raises:
        OptionError: it is remote.
    """
    if is_remote(path):
        raise OptionError(
            f"--output {path}: a run needs a local directory, for it renames and locks; copy it afterwards"
        )
    return RunDir(Path(path))


def run_id(description: Mapping[str, Any]) -> str:
    """Return what tells a run from those with another result: a hash, not a name, so that it is the same every time.

    Args:
        description: the content of `config.json`.
    """
    free = FREE_OPTIONS | RESOLVED_OPTIONS
    groups = description["config"].values()
    config = {option: value for group in groups for option, value in group.items() if option not in free}
    # With `--batch_tokens` the rows depend on the number of replicas, and with them what the number of a step means.
    batch_rows = description["resolved"]["bucket_rows"]
    content = {"config": config, "batch_rows": batch_rows, **{what: description[what] for what in INPUTS}}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def _parse_errors(path: Path) -> Iterator[None]:
    """Turn what reading a file as JSON of some form can raise into one line about it."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputFormatError(f"{path}: damaged, or not written by this version ({error})") from None


def _difference(old: Any, new: Any) -> str:
    if not isinstance(old, dict):
        return "it is not said which"
    return "; ".join(f"{key}: {_short(old.get(key))} -> {_short(new[key])}" for key in new if old.get(key) != new[key])


def _short(value: Any) -> str:
    return value[:12] if isinstance(value, str) else str(value)
