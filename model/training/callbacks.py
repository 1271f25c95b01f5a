"""What happens around the steps: when to stop, when to learn slower, which weights are best, and what people see.

Nothing here decides anything from the clock, so that an interrupted run decides as the uninterrupted one would.
"""

import contextlib
import csv
import dataclasses
import io
import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf
import tqdm

from model.config import TrainConfig
from model.files import write_text
from pipeline.dataset.summary import format_seconds
from pipeline.errors import one_line

PLATEAU_MIN_DELTA = 1e-4  # the default of tf_keras.callbacks.ReduceLROnPlateau
SECONDS_BETWEEN_LINES = 30.0  # where nobody watches a progress bar, such as in a cluster's log

logger = logging.getLogger(__name__)


@dataclasses.dataclass(kw_only=True)
class Monitor:
    """Follows one validation metric: the best epoch, early stopping, and the plateau schedule.

    Counts as `EarlyStopping` and `ReduceLROnPlateau` of tf_keras do.

    Attributes:
        best: its best value so far; `None` before the first epoch.
        best_epoch: the epoch of that value, counted from 1.
        epochs_without_best: epochs since then.
        plateau_best, epochs_on_plateau: the same for the plateau, which ignores improvements below `PLATEAU_MIN_DELTA`.
        learning_rate_scale: what plateaus have made of the learning rate.
    """

    best: float | None = None
    best_epoch: int = 0
    epochs_without_best: int = 0
    plateau_best: float | None = None
    epochs_on_plateau: int = 0
    learning_rate_scale: float = 1.0

    def update(self, value: float, epoch: int, config: TrainConfig) -> bool:
        """Take in the metric after an epoch.

        Args:
            value: the monitored metric.
            epoch: counted from 1.
            config: which way is better, patience and factor.

        Returns:
            Whether this is the best epoch so far.
        """
        sign = -1.0 if config.monitor == "loss" else 1.0
        is_best = self.best is None or sign * value > sign * self.best
        if is_best:
            self.best, self.best_epoch, self.epochs_without_best = value, epoch, 0
        else:
            self.epochs_without_best += 1
        if config.schedule == "plateau":
            if self.plateau_best is None or sign * value > sign * self.plateau_best + PLATEAU_MIN_DELTA:
                self.plateau_best, self.epochs_on_plateau = value, 0
            else:
                self.epochs_on_plateau += 1
            if self.epochs_on_plateau >= config.plateau_patience:
                self.learning_rate_scale *= config.plateau_factor
                self.epochs_on_plateau = 0
        return is_best

    def wants_to_stop(self, config: TrainConfig) -> bool:
        """Tell whether early stopping ends the run."""
        return 0 < config.early_stopping_patience <= self.epochs_without_best

    def to_json(self) -> dict[str, Any]:
        """Return the counters as JSON values; `Monitor(**values)` has them again."""
        return dataclasses.asdict(self)


def write_metrics_csv(path: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """Write `metrics.csv` anew: a header, then one row for each finished epoch.

    It holds nothing that depends on the clock, and is a function of the saved state: a restored run writes it again.

    Raises:
        OutputWriteError: it cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if rows:
        writer.writerow(rows[0])
        writer.writerows(
            [f"{value:.9g}" if isinstance(value, float) else value for value in row.values()] for row in rows
        )
    write_text(path, text.getvalue())


@dataclasses.dataclass(kw_only=True)
class Throughput:
    """How much was done in how much time.

    Attributes:
        steps, examples, tokens: done; padding counts as none of them.
        seconds: spent on them, waiting included.
        wait_seconds: of which waiting for the next batch.
    """

    steps: int = 0
    examples: float = 0.0
    tokens: float = 0.0
    seconds: float = 0.0
    wait_seconds: float = 0.0

    def add(self, other: "Throughput") -> None:
        """Add what was done since."""
        for field in dataclasses.fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    @property
    def examples_per_second(self) -> float:
        """Examples per second."""
        return self.examples / max(self.seconds, 1e-9)

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second, [CLS] and [SEP] included."""
        return self.tokens / max(self.seconds, 1e-9)

    @property
    def wait_share(self) -> float:
        """Share of the time spent waiting for input."""
        return self.wait_seconds / max(self.seconds, 1e-9)

    def __str__(self) -> str:
        return (
            f"{self.examples_per_second:,.1f} examples/s, {self.tokens_per_second:,.0f} tokens/s, "
            f"{self.wait_share:.1%} waiting for input"
        )


class EpochDisplay:
    """A progress bar on a terminal; elsewhere a line now and then.

    Args:
        title: such as `epoch 3/10`.
        first_step: steps of the epoch that are done already.
        num_steps: steps of the epoch.
        visible: False on workers that are not the chief.
    """

    def __init__(self, title: str, *, first_step: int, num_steps: int, visible: bool):
        self._title = title
        self._num_steps = num_steps
        self._step = first_step
        self._visible = visible
        self._done = Throughput()
        self._last_line = time.monotonic()
        on_terminal = visible and sys.stderr.isatty()
        self._bar = (
            tqdm.tqdm(desc=title, total=num_steps, initial=first_step, unit="step", leave=False, dynamic_ncols=True)
            if on_terminal
            else None
        )

    def update(self, recent: Throughput, loss: float) -> None:
        """Show what was done since the last call, and the mean loss of the epoch so far."""
        self._done.add(recent)
        self._step += recent.steps
        if self._bar is not None:
            self._bar.set_postfix_str(
                f"loss {loss:.4f}, {self._done.examples_per_second:,.1f} ex/s, "
                f"{self._done.tokens_per_second:,.0f} tok/s, input {self._done.wait_share:.0%}",
                refresh=False,
            )
            self._bar.update(recent.steps)
        elif self._visible and time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            left = self._done.seconds / max(self._done.steps, 1) * (self._num_steps - self._step)
            logger.info(
                "%s: step %d of %d, loss %.4f, %s, %s left",
                *(self._title, self._step, self._num_steps, loss, self._done, format_seconds(left)),
            )

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()


class TensorBoard:
    """Scalars for TensorBoard: train/… by step, val/… by epoch's last step.

    A run that was killed logs the steps since its last state twice. Losses and accuracies of training are means over
    the steps since this process logged last, so the first ones after a restart may be over fewer.

    Args:
        directory: where the event files go; `None` writes nothing.
    """

    def __init__(self, directory: Path | None):
        self._directory = directory
        self._writer: tf.summary.SummaryWriter | None = None
        if directory is not None:
            with self._or_go_without():
                self._writer = tf.summary.create_file_writer(str(directory))

    def write(self, prefix: str, values: Mapping[str, float], *, step: int) -> None:
        """Write scalars, `prefix/name` each."""
        if self._writer is None:
            return
        with self._or_go_without(), self._writer.as_default(step=step):
            for name, value in values.items():
                tf.summary.scalar(f"{prefix}/{name}", value)

    def close(self) -> None:
        """Put everything on disk."""
        if self._writer is None:
            return
        with self._or_go_without():
            self._writer.close()

    @contextlib.contextmanager
    def _or_go_without(self) -> Iterator[None]:
        """Say once what is wrong, and write no more; the run does not depend on what stands here."""
        try:
            yield
        except tf.errors.OpError as error:
            self._writer = None
            logger.warning("%s: no logs for TensorBoard from here on: %s", self._directory, one_line(error.message))
