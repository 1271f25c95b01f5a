"""The training loop: epochs of steps, a validation after each, and a state on disk behind every one of them.

    compile the steps for all shapes
    for each epoch:
        for each global batch:  start its step; look at the result of an earlier one; now and then save a state
        validate; write the best weights, the state, then metrics.csv

What a step computes depends on nothing but the weights, the step's number and its batch; which batches come, on (seed,
epoch). So a run that continues from a saved state arrives where it would have arrived anyway.
"""

import collections
import contextlib
import dataclasses
import functools
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import tensorflow as tf
import tf_keras
import tqdm

from model.config import TRAIN_SPLIT, VALIDATION_SPLIT, TrainConfig
from model.run.directory import RunDir
from model.run.metrics_csv import write_metrics_csv
from model.run.weights import write_arrays
from model.training.background import BackgroundWriter
from model.training.display import EpochDisplay, TensorBoard, Throughput
from model.training.optimizer import MIN_LOSS_SCALE, Schedule
from model.training.preemption import PreemptedError, PreemptionWatch
from model.training.steps import (
    EXAMPLES,
    STEPS_IN_FLIGHT,
    TOKENS,
    Batch,
    Outcome,
    empty_batch,
    metrics_from_sums,
    num_sums,
)
from model.training.strategy import SMALLER_EVALUATION, Devices, explain_device_errors
from model.training.training_state import WEIGHTS_PREFIX, Progress, best_epochs, list_states, save_state
from pipeline.dataset.summary import format_seconds
from pipeline.errors import NonFiniteLossError
from pipeline.input_pipeline.batch_plan import BatchPlan
from pipeline.input_pipeline.reader import (
    TrainReader,
    eval_dataset,
    explain_read_errors,
    mask_partial_batches,
    pad_lengths,
)
from pipeline.input_pipeline.stored_split import open_split

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class _Problem:
    """A loss that is not finite, or a gradient."""

    head: str
    text: str


@dataclasses.dataclass(kw_only=True)
class TrainingLoop:
    """One run, from where it is to its end.

    Attributes:
        config: the options.
        run: where it is written, by the chief alone.
        devices: where it runs.
        plan: the batches of an epoch.
        max_len: texts are cut to this many tokens.
        schedule: the learning rate.
        model: what is trained; its weights are what is saved as best.
        train_step, eval_step: see `model.training.steps`.
        xla: whether XLA compiles both, once for every shape of a batch.
        variables: name -> variable, all that a state holds beside `progress`.
        progress: where the run is.
        watch: whether somebody asked to stop.
        on_step: called after each training step is started.
    """

    config: TrainConfig
    run: RunDir
    devices: Devices
    plan: BatchPlan
    max_len: int
    schedule: Schedule
    model: tf_keras.Model
    train_step: Callable[[Batch, tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]
    eval_step: Callable[[Batch, tf.Tensor], tf.Tensor]
    xla: bool
    variables: Mapping[str, tf.Variable]
    progress: Progress
    watch: PreemptionWatch
    on_step: Callable[["TrainingLoop"], None] | None = None

    def __post_init__(self) -> None:
        self._tensorboard = TensorBoard(self.run.tensorboard if self.devices.is_chief else None)
        self._writer = BackgroundWriter()
        self._in_flight: collections.deque[tuple[int, float, tf.Tensor]] = collections.deque()
        self._stop_step: int | None = None
        self._wait_seconds = 0.0
        self._since_log = Throughput()
        self._log_sums = np.zeros(num_sums(len(self.config.model.heads)))
        self._mark = self._last_save = self._clock = time.monotonic()

    @property
    def last_step(self) -> int:
        """Number of steps after which the run ends at the latest."""
        planned = self.schedule.num_steps
        limit = self.config.learning.limit_steps
        return planned if limit is None else min(planned, limit)

    @property
    def is_done(self) -> bool:
        """Whether there is nothing left to train."""
        return self.progress.epoch_step == 0 and (
            self.progress.step >= self.last_step or self.progress.monitor.wants_to_stop(self.config.learning)
        )

    def train(self) -> None:
        """Train until the last step or early stopping.

        Raises:
            NonFiniteLossError: a loss is not a number any more.
            OptionError: a batch does not fit into memory.
            WorkerDiedError: another worker is gone.
            PreemptedError: somebody asked to stop, and the state is saved.
            OutputWriteError: the run cannot be written; the last saved state is intact.
            CorruptShardError: a shard of the dataset is damaged.
        """
        if self.devices.is_chief:
            write_metrics_csv(self.run.metrics, self.progress.rows)
        if not self.is_done:
            self._compile()
        self._last_save = self._clock = time.monotonic()
        try:
            with self.watch.deferred(), self._writer:
                while not self.is_done:
                    train_metrics, throughput = self._train_epoch()
                    self._finish_epoch(train_metrics, self._validate(), throughput)
        finally:
            self._tensorboard.close()

    def _compile(self) -> None:
        """Build the steps before any time is measured, and compile them for every shape if XLA does."""
        parts = self.devices.num_local_replicas * self.config.batches.accumulate_steps
        train_shapes = eval_shapes = [(parts, self.plan.edges[0])]
        if self.xla:
            train_shapes = [(rows, length) for length, rows in self.plan.full_rows(self.devices.num_workers).items()]
            eval_shapes = [(self._eval_rows, length) for length in self._eval_lengths]
        started = time.monotonic()
        with tqdm.tqdm(
            desc="compiling",
            total=len(train_shapes) + len(eval_shapes),
            unit="shape",
            leave=False,
            disable=not (self.devices.is_chief and sys.stderr.isatty()),
        ) as bar:
            for shape in train_shapes:
                with self._explained_errors():
                    batch = empty_batch(self.config.model.heads, *shape)
                    self.train_step(batch, tf.constant(0, tf.int64), tf.constant(0.0), tf.constant(0.0)).numpy()
                bar.update()
            for shape in eval_shapes:
                with explain_device_errors(SMALLER_EVALUATION):
                    self.eval_step(empty_batch(self.config.model.heads, *shape), tf.constant(0.0)).numpy()
                bar.update()
        if self.xla and self.devices.is_chief:
            logger.info("compiled %d shapes in %s", bar.total, format_seconds(time.monotonic() - started))

    def _train_epoch(self) -> tuple[dict[str, float], Throughput]:
        """Train to the end of the epoch, and return the means over its examples."""
        start = self.progress
        num_steps = min(self.plan.steps_per_epoch, start.epoch_step + self.last_step - start.step)
        display = EpochDisplay(
            f"epoch {start.epoch + 1}/{self.config.learning.epochs}",
            first_step=start.epoch_step,
            num_steps=num_steps,
            visible=self.devices.is_chief,
        )
        total = Throughput()
        batches = self._training_batches(num_steps)
        self._mark = time.monotonic()
        try:
            while self.progress.epoch_step < num_steps:
                self._step(batches)
                is_last = self.progress.epoch_step == num_steps
                saves = self._save_is_due() and not is_last
                recent = self._look_at_results(0 if is_last or saves else STEPS_IN_FLIGHT)
                total.add(recent)
                display.update(recent, self._epoch_metrics()["loss"])
                if self._stops_now(is_last):
                    self._stop()
                if saves:
                    self._save()
        finally:
            display.close()
        return self._epoch_metrics(), total

    def _epoch_metrics(self) -> dict[str, float]:
        """Return the means over the epoch's examples so far."""
        return metrics_from_sums(np.zeros_like(self._log_sums) + (self.progress.epoch_sums or 0.0), self.config)

    def _stops_now(self, is_last: bool) -> bool:
        if self.devices.num_workers == 1:
            return self.watch.requested
        return self._stop_step is not None and (is_last or self.progress.step >= self._stop_step)

    def _save_is_due(self) -> bool:
        saving = self.config.saving
        by_steps = saving.save_every is not None and self.progress.step % saving.save_every == 0
        return by_steps or time.monotonic() - self._last_save >= saving.save_minutes * 60

    def _training_batches(self, num_steps: int) -> Iterator[Batch]:
        start = self.progress
        if start.epoch_step == num_steps:
            return iter(())
        return self._train_reader.epoch(start.epoch, start.epoch_step)

    @functools.cached_property
    def _train_reader(self) -> TrainReader:
        """The training split in whole batches."""
        full_rows = self.plan.full_rows(self.devices.num_workers)
        return TrainReader(
            open_split(self.config.paths.data_dir, TRAIN_SPLIT),
            self.plan,
            seed=self.config.learning.seed,
            num_workers=self.devices.num_workers,
            worker_index=self.devices.worker_index,
            transform=lambda batches: mask_partial_batches(batches, full_rows),
        )

    def _step(self, batches: Iterator[Batch]) -> None:
        """Start one training step; its result is looked at later."""
        before = time.monotonic()
        with explain_read_errors(self.config.paths.data_dir, TRAIN_SPLIT):
            batch = self._for_heads(next(batches))
        self._wait_seconds += time.monotonic() - before
        step = self.progress.step
        learning_rate = self.schedule.learning_rate(step, scale=self.progress.monitor.learning_rate_scale)
        with self._explained_errors():
            result = self.train_step(
                batch,
                tf.constant(step, tf.int64),
                tf.constant(learning_rate, tf.float32),
                self._stop_wanted(),
            )
        self._in_flight.append((step, learning_rate, result))
        self.progress = dataclasses.replace(self.progress, step=step + 1, epoch_step=self.progress.epoch_step + 1)
        if self.on_step is not None:
            self.on_step(self)

    def _explained_errors(self) -> contextlib.AbstractContextManager[None]:
        option = "--batch_size" if self.config.batches.batch_tokens is None else "--batch_tokens"
        return explain_device_errors(
            f"a larger --accumulate_steps, with which the run continues, or a smaller {option}, with --restart or "
            "another --output"
        )

    def _stop_wanted(self) -> tf.Tensor:
        """What this worker tells the others with every step: 1 where it was asked to stop."""
        return tf.constant(float(self.watch.requested), tf.float32)

    def _for_heads(self, batch: Batch) -> Batch:
        inputs, labels, weights = batch
        return inputs, {head: labels[head] for head in self.config.model.heads}, weights

    def _look_at_results(self, num_in_flight: int) -> Throughput:
        """Look at the results of all steps but the last `num_in_flight`, and return what was done in them.

        Raises:
            NonFiniteLossError: too many losses in a row are not finite.
        """
        recent = Throughput()
        while len(self._in_flight) > num_in_flight:
            step, learning_rate, result = self._in_flight.popleft()
            with self._explained_errors():
                outcome = Outcome.fetch(result, self.config)
            if outcome.num_stopping and self._stop_step is None:
                self._stop_step = step + 1 + STEPS_IN_FLIGHT
            recent.steps += 1
            if not self._is_skipped(outcome, step):
                recent.examples += float(outcome.sums[EXAMPLES])
                recent.tokens += float(outcome.sums[TOKENS])
                self._log_sums += outcome.sums
                epoch_sums = (self.progress.epoch_sums or 0.0) + outcome.sums
                self.progress = dataclasses.replace(self.progress, epoch_sums=tuple(epoch_sums.tolist()))
            if (step + 1) % self.config.saving.log_every == 0:
                self._log_step(step + 1, {"learning_rate": learning_rate, "gradient_norm": outcome.gradient_norm})
        if recent.steps:
            now = time.monotonic()
            recent.seconds, recent.wait_seconds = now - self._mark, self._wait_seconds
            self._mark, self._wait_seconds = now, 0.0
            self._since_log.add(recent)
            self.progress = dataclasses.replace(
                self.progress,
                train_seconds=self.progress.train_seconds + recent.seconds,
                num_examples=self.progress.num_examples + int(recent.examples),
            )
        return recent

    def _is_skipped(self, outcome: Outcome, step: int) -> bool:
        """Tell whether a step left the weights as they were because its loss is not finite.

        Raises:
            NonFiniteLossError: too many in a row.
        """
        problem = self._not_finite(outcome)
        num_skipped = self.progress.num_skipped + 1 if problem else 0
        self.progress = dataclasses.replace(self.progress, num_skipped=num_skipped)
        limit = self.config.learning.max_skipped_steps
        if problem and num_skipped > limit:
            raise self._non_finite_error(problem, step)
        if problem and self.devices.is_chief:
            logger.warning(
                "step %d: %s; its update is left out (%d in a row, --max_skipped_steps %d)",
                *(step + 1, problem.text, num_skipped, limit),
            )
        return problem is not None

    def _log_step(self, step: int, values: Mapping[str, float]) -> None:
        speed = self._since_log
        throughput = {
            "examples_per_second": speed.examples_per_second,
            "tokens_per_second": speed.tokens_per_second,
            "input_wait_share": speed.wait_share,
        }
        measured = throughput if speed.seconds else {}
        self._tensorboard.write(
            "train", {**metrics_from_sums(self._log_sums, self.config), **values, **measured}, step=step
        )
        self._log_sums = np.zeros_like(self._log_sums)
        self._since_log = Throughput()

    def _not_finite(self, outcome: Outcome) -> _Problem | None:
        metrics, norm = metrics_from_sums(outcome.sums, self.config), outcome.gradient_norm
        for head in self.config.model.heads:
            loss = metrics[f"{head}_loss"]
            if not math.isfinite(loss):
                return _Problem(head, f"the loss of head {head!r} is {loss}")
        # A scaled loss's gradient overflows now and then by design: the step was left out, and the scale is halved.
        if math.isfinite(norm) or outcome.loss_scale > MIN_LOSS_SCALE:
            return None
        return _Problem("+".join(self.config.model.heads), f"the gradient's norm is {norm}")

    def _non_finite_error(self, problem: _Problem, step: int) -> NonFiniteLossError:
        states = list_states(self.run.states)
        last_good = f"the last good state is {states[-1]}" if states else "no state was saved before"
        return NonFiniteLossError(
            f"{problem.text} at step {step + 1} (epoch {self.progress.epoch + 1}); {last_good}; "
            "try a lower --learning_rate, --warmup, or --precision float32, with --restart or another --output",
            head=problem.head,
            step=step + 1,
        )

    def _validate(self) -> dict[str, float]:
        """Measure the validation split; every example counts exactly once, whatever the replicas."""
        sums = np.zeros_like(self._log_sums)
        in_flight: collections.deque[tf.Tensor] = collections.deque()

        def look_at_results(num_in_flight: int) -> None:
            nonlocal sums
            while len(in_flight) > num_in_flight:
                outcome = Outcome.fetch(in_flight.popleft(), self.config)
                sums += outcome.sums
                if outcome.num_stopping:
                    self._stop()

        with explain_read_errors(self.config.paths.data_dir, VALIDATION_SPLIT):
            for batch in self._validation_batches:
                with explain_device_errors(SMALLER_EVALUATION):
                    in_flight.append(self.eval_step(self._for_heads(batch), self._stop_wanted()))
                    look_at_results(STEPS_IN_FLIGHT)
        with explain_device_errors(SMALLER_EVALUATION):
            look_at_results(0)
        problem = self._not_finite(Outcome(sums))
        if problem:
            raise self._non_finite_error(problem, self.progress.step - 1)
        return metrics_from_sums(sums, self.config)

    @property
    def _eval_rows(self) -> int:
        """Rows of a validation batch on this worker."""
        batch_size, devices = self.config.batches.eval_batch_size, self.devices
        return -(-batch_size // devices.num_replicas) * devices.num_local_replicas

    @functools.cached_property
    def _eval_lengths(self) -> list[int]:
        """What validation batches are padded to under XLA: those of the buckets' lengths that occur in them."""
        edges = np.unique([*self.plan.edges, self.max_len])
        lengths = np.minimum(open_split(self.config.paths.data_dir, VALIDATION_SPLIT).lengths, self.max_len)
        firsts = np.arange(0, len(lengths), self._eval_rows * self.devices.num_workers)
        longest = np.maximum.reduceat(lengths.astype(np.int64), firsts)
        return np.unique(edges[np.searchsorted(edges, longest)]).tolist()

    @functools.cached_property
    def _validation_batches(self) -> tf.data.Dataset:
        """The validation split in whole batches, the same in every epoch."""
        dataset = eval_dataset(
            self.config.paths.data_dir,
            VALIDATION_SPLIT,
            self._eval_rows * self.devices.num_workers,
            self.max_len,
            num_workers=self.devices.num_workers,
            worker_index=self.devices.worker_index,
        )
        if self.xla:
            dataset = pad_lengths(dataset, self._eval_lengths)
        return mask_partial_batches(dataset, self._eval_rows)

    def _finish_epoch(self, train: Mapping[str, float], validation: Mapping[str, float], done: Throughput) -> None:
        """Take the epoch into account, then put it on disk: best weights, state, `metrics.csv`."""
        epoch = self.progress.epoch + 1
        monitor = self.progress.monitor
        learning_rate = self.schedule.learning_rate(self.progress.step - 1, scale=monitor.learning_rate_scale)
        row = {"epoch": epoch, "step": self.progress.step, "learning_rate": learning_rate, **train}
        row |= {f"val_{name}": value for name, value in validation.items()}
        monitor = monitor.after(epoch, row[self.config.learning.monitored], self.config.learning)
        is_best = monitor.best_epoch == epoch
        self.progress = dataclasses.replace(
            self.progress, epoch=epoch, epoch_step=0, epoch_sums=(), rows=(*self.progress.rows, row), monitor=monitor
        )
        if self.devices.is_chief:
            self._save()
            self._tensorboard.write("val", validation, step=self.progress.step)
            num_left_out = self.progress.step - int(self.variables["num_updates"].numpy())
            if num_left_out:
                logger.warning(
                    "%d of %d updates were left out so far: their gradients were not finite",
                    *(num_left_out, self.progress.step),
                )
            logger.info(
                "epoch %d/%d, step %d: loss %.4f, validation: %s%s; learning rate %.3g; %s, %s; "
                "%.1f examples/s by the clock",
                *(epoch, self.config.learning.epochs, self.progress.step, train["loss"]),
                _in_words(validation, self.config.model.heads),
                *(" (best)" if is_best else "", learning_rate, done, format_seconds(done.seconds)),
                self.progress.num_examples / max(self.progress.clock_seconds, 1e-9),
            )

    def _save(self) -> None:
        """Copy the state to the host, and start writing it."""
        now = time.monotonic()
        self.progress = dataclasses.replace(
            self.progress, clock_seconds=self.progress.clock_seconds + now - self._clock
        )
        if self.devices.is_chief:
            arrays = {name: variable.numpy() for name, variable in self.variables.items()}
            self._writer.start(self._write, self.progress, arrays)
        self._clock, self._mark, self._last_save = now, time.monotonic(), now

    def _write(self, progress: Progress, arrays: Mapping[str, np.ndarray]) -> None:
        """Write a state, and after an epoch what belongs to it."""
        best_epoch = progress.monitor.best_epoch
        if progress.epoch_step == 0 and best_epoch == progress.epoch:
            weights = (
                (name.removeprefix(WEIGHTS_PREFIX), array)
                for name, array in arrays.items()
                if name.startswith(WEIGHTS_PREFIX)
            )
            write_arrays(self.run.best_weights(best_epoch), weights)
        save_state(self.run.states, progress, arrays, keep=self.config.saving.keep_states)
        if progress.epoch_step == 0:
            self.run.keep_best_weights({best_epoch, *best_epochs(self.run.states)})
            write_metrics_csv(self.run.metrics, progress.rows)

    def _stop(self) -> None:
        self._look_at_results(0)
        self._save()
        self._writer.wait()
        # A worker that ends takes the others down with it, the one that saves among them.
        self.devices.barrier()
        raise PreemptedError(
            f"stopped by SIGTERM after step {self.progress.step}; the state is saved, run the same command to continue"
        )


def _in_words(metrics: Mapping[str, float], heads: Sequence[str]) -> str:
    parts = [f"loss {metrics['loss']:.4f}", *(f"{head} {metrics[f'{head}_accuracy']:.2%}" for head in heads)]
    if len(heads) > 1:
        parts.append(f"all heads right {metrics['exact_match']:.2%}")
    return ", ".join(parts)
