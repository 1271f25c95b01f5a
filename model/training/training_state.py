"""The resumable state of a run: all that the next step depends on, saved so that no crash can lose the one before.

    state/
      step-00000500/             inside an epoch
        arrays.npz               weights, optimizer moments, loss scale
        state.json               which run it is and where: step, epoch, sums, counters, metric rows; with a checksum
      step-00000640-epoch-001/   after an epoch and its validation

A state is written under a temporary name, put on disk, then renamed; the oldest are removed after that. Restoring takes
the newest that reads back whole, and only this run's own. Nothing read is ever executed: arrays and text alone.
"""

import contextlib
import dataclasses
import hashlib
import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from model.files import remove, replace_directory, sync_path, temporary_sibling, write_text
from model.run.weights import assign_arrays, write_arrays
from model.training.monitor import Monitor
from pipeline.errors import InputFormatError, MissingInputError, OutputWriteError, SchemaMismatchError

STATE_FORMAT = 2
ARRAYS_NAME = "arrays.npz"
STATE_NAME = "state.json"
WEIGHTS_PREFIX = "weights/"  # of the names of the model's own weights among the arrays
_STATE_DIR = re.compile(r"step-(\d{8,})(-epoch-\d{3,})?")

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run is; what is not in the weights.

    Attributes:
        run_id: which run it is, see `model.run.directory.run_id`.
        step: global batches seen since the beginning.
        epoch: the current epoch, from 0.
        epoch_step: batches seen in this epoch.
        epoch_sums: sums over this epoch's examples so far, as `model.training.steps` orders them; empty at its
            beginning.
        rows: one for each finished epoch, the rows of `metrics.csv`.
        monitor: counters of the monitored metric.
        device_changes: what changed when the run was continued on other devices, from which step on.
        num_skipped: steps in a row, the last one included, whose update was left out for a loss that is not finite.
        train_seconds, num_examples: time spent in training steps, and the examples they saw.
        clock_seconds: time since the first step, with validation and saving, up to the last saved state.
    """

    run_id: str
    step: int = 0
    epoch: int = 0
    epoch_step: int = 0
    epoch_sums: tuple[float, ...] = ()
    rows: tuple[Mapping[str, int | float], ...] = ()
    monitor: Monitor = dataclasses.field(default_factory=Monitor)
    device_changes: tuple[str, ...] = ()
    num_skipped: int = 0
    train_seconds: float = 0.0
    num_examples: int = 0
    clock_seconds: float = 0.0

    @property
    def name(self) -> str:
        """The state's directory: the step, and the epoch where it is complete and validated."""
        return f"step-{self.step:08d}" + ("" if self.epoch_step else f"-epoch-{self.epoch:03d}")

    def to_json(self) -> str:
        """Return the text of `state.json`."""
        content = msgspec.json.encode(self)
        file = _StateFile(
            format=STATE_FORMAT, sha256=hashlib.sha256(content).hexdigest(), progress=msgspec.Raw(content)
        )
        return msgspec.json.encode(file).decode() + "\n"

    @classmethod
    def from_json(cls, text: bytes, source: Path) -> "Progress":
        """Parse the text of `state.json`.

        Raises:
            InputFormatError: it is damaged, or of another format.
        """
        try:
            file = msgspec.json.decode(text, type=_StateFile)
            if file.format != STATE_FORMAT:
                raise ValueError(f"format {file.format}, expected {STATE_FORMAT}")
            if file.sha256 != hashlib.sha256(file.progress).hexdigest():
                raise ValueError("its checksum differs")
            return msgspec.json.decode(file.progress, type=cls)
        except (msgspec.DecodeError, ValueError) as error:
            raise InputFormatError(f"{source}: damaged ({error})") from error


class _StateFile(msgspec.Struct):
    format: int
    sha256: str
    progress: msgspec.Raw


def list_states(states_dir: Path) -> list[Path]:
    """Return the states in a directory, oldest first."""
    if not states_dir.is_dir():
        return []
    matches = [match for path in states_dir.iterdir() if (match := _STATE_DIR.fullmatch(path.name))]
    return [states_dir / match[0] for match in sorted(matches, key=lambda match: (int(match[1]), match[2] or ""))]


def save_state(states_dir: Path, progress: Progress, arrays: Mapping[str, np.ndarray], *, keep: int) -> Path:
    """Save a state, then remove the oldest beyond `keep`.

    Args:
        states_dir: made if it is not there.
        progress: names the state.
        arrays: name -> value.
        keep: states to keep, at least 1.

    Returns:
        The state's directory.

    Raises:
        OutputWriteError: the disk is full, read-only or not ours; earlier states are untouched.
    """
    final = states_dir / progress.name
    temporary = temporary_sibling(final)
    try:
        temporary.mkdir(parents=True)
        write_arrays(temporary / ARRAYS_NAME, arrays.items())
        write_text(temporary / STATE_NAME, progress.to_json())
        sync_path(temporary)
        # There may be one of this name: damaged, or where a continued run was stopped again before its next step.
        replace_directory(temporary, final)
    except OSError as error:
        raise OutputWriteError(f"{final}: cannot write: {error.strerror}; free some space, then run again") from error
    finally:
        remove(temporary)
    for path in list_states(states_dir)[:-keep]:
        remove(path)
    return final


def best_epochs(states_dir: Path) -> set[int]:
    """Return the epochs whose weights the states there call the best, and cannot be continued without."""
    found = set()
    for path in list_states(states_dir):
        with contextlib.suppress(InputFormatError, OSError):
            found.add(_read_progress(path).monitor.best_epoch)
    return found


def _read_progress(path: Path) -> Progress:
    return Progress.from_json((path / STATE_NAME).read_bytes(), path / STATE_NAME)


def restore_newest(
    states_dir: Path,
    variables: Mapping[str, Any],
    *,
    run_id: str,
    best_weights: Callable[[int], Path] | None = None,
) -> Progress | None:
    """Set variables to the newest state that reads back whole.

    Args:
        states_dir: see `save_state`.
        variables: name -> TensorFlow variable; undefined after an error.
        run_id: the run that continues.
        best_weights: epoch -> file, which a state is no use without; `None` does not look for it.

    Returns:
        Where the run is; `None` where there is no state.

    Raises:
        SchemaMismatchError: the state is another run's.
        InputFormatError: there are states, and all are damaged.
    """
    states = list_states(states_dir)
    problem: Exception | None = None
    for path in reversed(states):
        try:
            progress = _read_progress(path)
            _check_run(path / STATE_NAME, progress, run_id)
            if (
                best_weights is not None
                and progress.monitor.best_epoch
                and not best_weights(progress.monitor.best_epoch).is_file()
            ):
                raise MissingInputError(f"{best_weights(progress.monitor.best_epoch)}: no such file")
            assign_arrays(path / ARRAYS_NAME, variables)
        except (InputFormatError, MissingInputError, OSError) as error:
            logger.warning("the state %s cannot be used, trying the one before: %s", path, error)
            problem = error
            continue
        return progress
    if problem is not None:
        raise InputFormatError(
            f"{states_dir}: none of the {len(states)} saved states can be read ({problem}); --restart begins again"
        )
    return None


def _check_run(path: Path, progress: Progress, run_id: str) -> None:
    if progress.run_id != run_id:
        # Of the same shape it would fit, and the result would be neither run's.
        raise SchemaMismatchError(
            f"{path}: the state of another run (expected run {run_id[:12]}, found {progress.run_id[:12]}), one with "
            "other options, another --data or --bert, or with --batch_tokens on another number of replicas; put this "
            "run's own states back, or give --restart to begin again"
        )
