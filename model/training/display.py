"""What a training shows: throughput, a progress bar or lines of a log, scalars for TensorBoard."""

import contextlib
import dataclasses
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import tensorflow as tf
import tqdm

from pipeline.dataset.summary import format_seconds
from pipeline.errors import one_line

SECONDS_BETWEEN_LINES = 30.0  # where nobody watches a progress bar, such as in a cluster's log

logger = logging.getLogger(__name__)


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
        self.steps += other.steps
        self.examples += other.examples
        self.tokens += other.tokens
        self.seconds += other.seconds
        self.wait_seconds += other.wait_seconds

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
        """Say once what is wrong, and write no more; the run does not depend on these logs."""
        try:
            yield
        except tf.errors.OpError as error:
            self._writer = None
            logger.warning("%s: no logs for TensorBoard from here on: %s", self._directory, one_line(error.message))
