"""The directory of a run, and whether an existing one can be continued.

RUN/
  config.json       first of all: options, resolved values, the dataset's and BERT's identity, label names, versions
  vocab.txt         the vocabulary the ids refer to
  bert_config.json  the BERT's sizes
  metrics.csv       a row for each finished epoch
  tensorboard/      event files
  state/            the resumable state, see `model.training.training_state`
  best/             weights of the best epoch so far, and of those that a state still refers to, epoch-00003.npz
  weights.npz       at the end: all weights, heads included, of the best epoch
  bert/             at the end: the same encoder as a Google-format BERT directory
  report.html       at the end: results on the test split and the course of training, for people
  report.json       at the very end: the same results for machines; its presence means "finished"
  evaluation/       what `model.evaluate` wrote later, a report for each split, way to decode and dataset
"""

import contextlib
import dataclasses
import fcntl
import logging
import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from model.bert.config import CONFIG_FILE_NAME
from model.decoding import INDEPENDENT, Decoding
from model.files import remove, remove_temporary, write_text
from model.run.description import BertIdentity, DatasetIdentity, RunDescription, RunOrigin, changed_values, changes
from model.run.report import Report
from pipeline import filesystem
from pipeline.dataset.info import VOCAB_NAME
from pipeline.errors import (
    InputFormatError,
    MissingInputError,
    OptionError,
    OutputExistsError,
    OutputWriteError,
    SchemaMismatchError,
)
from pipeline.filesystem import TEMPORARY_SUFFIX, is_remote

_LOCK_NAME = ".lock"

logger = logging.getLogger(__name__)

_Parsed = TypeVar("_Parsed")


@dataclasses.dataclass(frozen=True)
class RunDir:
    """The paths of a run.

    Attributes:
        path: the run's directory.
    """

    path: Path

    @property
    def config(self) -> Path:
        """Options, and resolved values."""
        return self.path / "config.json"

    @property
    def vocab(self) -> Path:
        """The vocabulary."""
        return self.path / VOCAB_NAME

    @property
    def bert_config(self) -> Path:
        """The BERT's sizes."""
        return self.path / CONFIG_FILE_NAME

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

    def evaluation(self, split: str, decode: Decoding, fingerprint: str | None) -> Path:
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

    def read_config(self) -> RunDescription:
        """Return the content of `config.json`.

        Raises:
            MissingInputError: there is no run here.
            InputFormatError: the file is damaged, or no run's.
        """
        if not self.config.is_file():
            raise MissingInputError(f"{self.path}: no run here (no config.json); make one with run_train.py")
        return _parse(self.config, RunDescription.from_json)

    def read_report(self) -> Report:
        """Return the content of `report.json`.

        Raises:
            MissingInputError: the run is not finished.
            InputFormatError: the file is damaged, or no run's.
        """
        if not self.report.is_file():
            raise MissingInputError(f"{self.path}: this run is not finished; start the same run_train.py command again")
        return _parse(self.report, Report.from_json)

    def check_origin(self, new: RunOrigin) -> RunDescription:
        """Check that the run here is unfinished and was started with the same options and inputs.

        Args:
            new: the present command's.

        Returns:
            The description of the run here.

        Raises:
            OutputExistsError: it is finished, or was started with other options.
            SchemaMismatchError: the dataset or the BERT has changed.
            InputFormatError: its `config.json` is damaged.
        """
        old = self.read_config()
        if self.report.exists():
            raise OutputExistsError(
                f"{self.path}: this run is finished (it has a {self.report.name}); --restart trains again from the "
                "beginning, python -m model.evaluate measures it again"
            )
        changed = changes(old.result_options, new.result_options)
        if changed:
            raise OutputExistsError(
                f"{self.path}: this run was started with other options ({'; '.join(changed)}); repeat its options to "
                "continue it, or give --restart, or another --output"
            )
        for option, before, now in (("--data", old.dataset, new.dataset), ("--bert", old.bert, new.bert)):
            if before != now:
                raise SchemaMismatchError(
                    f"{self.path}: this run was started with another {option} "
                    f"({'; '.join(changes(_short(before), _short(now)))}); "
                    "give that one to continue it, or --restart, or another --output"
                )
        return old

    def check_resumable(self, new: RunDescription) -> list[str]:
        """Check that the run here is unfinished and was started by the same command.

        Args:
            new: the content of `config.json` that the present command would write.

        Returns:
            What differs between the devices, and with it rounding and dropout noise.

        Raises:
            PipelineError: as `check_origin`.
            OptionError: an option that is left to the machine has another value on this one.
        """
        old = self.check_origin(new).resolved
        precision, given = new.resolved.precision, new.config.devices.precision
        if old.precision != precision:
            raise OptionError(
                f"{self.path}: this run was started in {old.precision}, and --precision {given} is {precision} here; "
                f"give --precision {old.precision} to continue it, or --restart, or another --output"
            )
        changed = changed_values(old.batches, new.resolved.batches)
        if changed:
            raise OptionError(
                f"{self.path}: this run's batches would change from here on ({'; '.join(changed)}); with "
                f"--batch_tokens they are multiples of the replicas, which were {old.devices.num_replicas} and are "
                f"{new.resolved.devices.num_replicas}: continue with as many, or give --restart, or another --output"
            )
        changed = changed_values(old.devices, new.resolved.devices)
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

    def write_config(self, description: RunDescription) -> None:
        """Write `config.json`.

        Raises:
            OutputWriteError: it cannot be written.
        """
        write_text(self.config, description.to_json())

    def write_report(self, report: Report) -> None:
        """Write `report.json`.

        Raises:
            OutputWriteError: it cannot be written.
        """
        write_text(self.report, report.to_json())

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Make the directory, and keep other processes from training in it meanwhile.

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
            filesystem.flock(descriptor, str(self.path), fcntl.LOCK_EX | fcntl.LOCK_NB)
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
            f"--output {path}: a run needs a local directory, because it renames and locks; copy it afterwards"
        )
    return RunDir(Path(path))


def _short(identity: DatasetIdentity | BertIdentity) -> dict[str, str]:
    return {name: digest[:12] for name, digest in vars(identity).items()}


def _parse(path: Path, parse: Callable[[bytes], _Parsed]) -> _Parsed:
    """Read a file of a run; an error in it is one line about it."""
    try:
        return parse(path.read_bytes())
    except (msgspec.DecodeError, ValueError) as error:
        raise InputFormatError(f"{path}: damaged, or not written by this version ({error})") from None
