"""The training loop: epochs of steps, a validation after each, and a state on disk behind every one of them.

    for each epoch:
        for each global batch:  step; now and then: look at the results, show them, save a state
        validate; write the best weights, the state, then metrics.csv

What a step computes depends on nothing but the weights, the step's number and its batch; which batches come, on (seed,
epoch). So a run that continues from a saved state arrives where it would have arrived anyway.
"""

import contextlib
import dataclasses
import functools
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import tensorflow as tf
import tf_keras

from model.config import TRAIN_SPLIT, VALIDATION_SPLIT, TrainConfig
from model.run.directory import RunDir
from model.run.metrics_csv import write_metrics_csv
from model.run.weights import save_model_weights
from model.training.display import EpochDisplay, TensorBoard, Throughput
from model.training.optimizer import MIN_LOSS_SCALE, Schedule
from model.training.preemption import PreemptedError, PreemptionWatch
from model.training.steps import EXAMPLES, TOKENS, Batch, Outcome, metrics_from_sums, num_sums
from model.training.strategy import Devices, explain_device_errors
from model.training.training_state import Progress, best_epochs, list_states, save_state
from pipeline.dataset.summary import format_seconds
from pipeline.errors import NonFiniteLossError
from pipeline.input_pipeline.batch_plan import BatchPlan
from pipeline.input_pipeline.reader import TrainReader, eval_dataset, explain_read_errors, mask_partial_batches
from pipeline.input_pipeline.stored_split import open_split

# Fetching a result lets the device run dry, so those of several steps are fetched together; but people and signals do
# not wait long either.
MAX_PENDING_STEPS = 10
MAX_PENDING_SECONDS = 0.5

logger = logging.getLogger(__name__)


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
    variables: Mapping[str, tf.Variable]
    progress: Progress
    watch: PreemptionWatch
    on_step: Callable[["TrainingLoop"], None] | None = None

    def __post_init__(self) -> None:
        self._tensorboard = TensorBoard(self.run.tensorboard if self.devices.is_chief else None)
        self._pending: list[tuple[int, float, tf.Tensor]] = []
        self._undrained = Throughput()
        self._since_log = Throughput()
        self._log_sums = np.zeros(num_sums(len(self.config.model.heads)))
        self._mark = time.monotonic()
        self._is_traced = False

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
        try:
            with self.watch.deferred():
                while not self.is_done:
                    train_metrics, throughput = self._train_epoch()
                    self._finish_epoch(train_metrics, self._validate(), throughput)
        finally:
            self._tensorboard.close()

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
                step = self.progress.step
                saves = step % self.config.saving.save_every == 0 and self.progress.epoch_step < num_steps
                if saves or self._drain_is_due() or self.progress.epoch_step == num_steps:
                    recent, num_stopping = self._drain()
                    total.add(recent)
                    display.update(recent, metrics_from_sums(self.progress.epoch_sums, self.config)["loss"])
                    if num_stopping:
                        self._stop()
                if saves:
                    self._save()
        finally:
            display.close()
        return metrics_from_sums(self.progress.epoch_sums, self.config), total

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
        self._undrained.wait_seconds += time.monotonic() - before
        step = self.progress.step
        learning_rate = self.schedule.learning_rate(step, scale=self.progress.monitor.learning_rate_scale)
        with self._explained_errors():
            result = self.train_step(
                batch,
                tf.constant(step, tf.int64),
                tf.constant(learning_rate, tf.float32),
                self._stop_wanted(),
            )
        self._pending.append((step, learning_rate, result))
        self.progress = dataclasses.replace(self.progress, step=step + 1, epoch_step=self.progress.epoch_step + 1)
        if self.on_step is not None:
            self.on_step(self)

    def _explained_errors(self) -> contextlib.AbstractContextManager[None]:
        option = "--batch_size" if self.config.batches.batch_tokens is None else "--batch_tokens"
        return explain_device_errors(f"{option}, or a larger --accumulate_steps")

    def _stop_wanted(self) -> tf.Tensor:
        """What this worker tells the others with every step: 1 where it was asked to stop."""
        return tf.constant(float(self.watch.requested), tf.float32)

    def _for_heads(self, batch: Batch) -> Batch:
        inputs, labels, weights = batch
        return inputs, {head: labels[head] for head in self.config.model.heads}, weights

    def _drain_is_due(self) -> bool:
        # Several workers must stop after the same step, so each looks at every step's result, where all find the same.
        return (
            self.devices.num_workers > 1
            or not self._is_traced
            or self.watch.requested
            or len(self._pending) >= MAX_PENDING_STEPS
            or time.monotonic() - self._mark >= MAX_PENDING_SECONDS
        )

    def _drain(self) -> tuple[Throughput, int]:
        """Look at the results of the steps since the last time.

        Returns:
            What was done, and how many replicas shall stop.

        Raises:
            NonFiniteLossError: a loss among them is not a number.
        """
        num_stopping = 0
        epoch_sums = np.zeros_like(self._log_sums) + (self.progress.epoch_sums or 0.0)
        for step, learning_rate, result in self._pending:
            with self._explained_errors():
                outcome = Outcome.fetch(result, self.config)
            self._check_finite(outcome, step)
            num_stopping = outcome.num_stopping
            epoch_sums += outcome.sums
            self._log_sums += outcome.sums
            self._undrained.steps += 1
            self._undrained.examples += float(outcome.sums[EXAMPLES])
            self._undrained.tokens += float(outcome.sums[TOKENS])
            if (step + 1) % self.config.saving.log_every == 0:
                self._log_step(step + 1, {"learning_rate": learning_rate, "gradient_norm": outcome.gradient_norm})
        self._pending.clear()
        recent, self._undrained = self._undrained, Throughput()
        recent.seconds = time.monotonic() - self._mark
        if not self._is_traced:
            # The first step waits for TensorFlow to build its graph, which says nothing about the speed of a run.
            recent, self._is_traced = Throughput(steps=recent.steps), True
        self._mark = time.monotonic()
        self._since_log.add(recent)
        self.progress = dataclasses.replace(
            self.progress,
            epoch_sums=tuple(epoch_sums.tolist()),
            train_seconds=self.progress.train_seconds + recent.seconds,
            num_examples=self.progress.num_examples + int(recent.examples),
        )
        return recent, num_stopping or int(self.watch.requested and self.devices.num_workers == 1)

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

    def _check_finite(self, outcome: Outcome, step: int) -> None:
        metrics, norm = metrics_from_sums(outcome.sums, self.config), outcome.gradient_norm
        head = next((head for head in self.config.model.heads if not math.isfinite(metrics[f"{head}_loss"])), None)
        # A scaled loss's gradient overflows now and then by design: the step was left out, and the scale is halved.
        if head is None and (math.isfinite(norm) or outcome.loss_scale > MIN_LOSS_SCALE):
            return
        what = f"the loss of head {head!r} is {metrics[f'{head}_loss']}" if head else f"the gradient's norm is {norm}"
        states = list_states(self.run.states)
        last_good = f"the last good state is {states[-1]}" if states else "no state was saved before"
        raise NonFiniteLossError(
            f"{what} at step {step + 1} (epoch {self.progress.epoch + 1}); {last_good}; "
            "try a lower --learning_rate, --warmup, or --precision float32, with --restart or another --output",
            head=head or "+".join(self.config.model.heads),
            step=step + 1,
        )

    def _validate(self) -> dict[str, float]:
        """Measure the validation split; every example counts exactly once, whatever the replicas."""
        sums = np.zeros_like(self._log_sums)
        with explain_read_errors(self.config.paths.data_dir, VALIDATION_SPLIT):
            for batch in self._validation_batches:
                with explain_device_errors("--eval_batch_size"):
                    outcome = Outcome.fetch(self.eval_step(self._for_heads(batch), self._stop_wanted()), self.config)
                sums += outcome.sums
                if outcome.num_stopping:
                    self._stop()
        self._check_finite(Outcome(sums), self.progress.step - 1)
        return metrics_from_sums(sums, self.config)

    @functools.cached_property
    def _validation_batches(self) -> tf.data.Dataset:
        """The validation split in whole batches, the same in every epoch."""
        local_rows = (
            -(-self.config.batches.eval_batch_size // self.devices.num_replicas) * self.devices.num_local_replicas
        )
        dataset = eval_dataset(
            self.config.paths.data_dir,
            VALIDATION_SPLIT,
            local_rows * self.devices.num_workers,
            self.max_len,
            num_workers=self.devices.num_workers,
            worker_index=self.devices.worker_index,
        )
        return mask_partial_batches(dataset, local_rows)

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
            if is_best:
                save_model_weights(self.run.best_weights(epoch), self.model)
            self._save()
            self.run.keep_best_weights({monitor.best_epoch, *best_epochs(self.run.states)})
            write_metrics_csv(self.run.metrics, self.progress.rows)
            self._tensorboard.write("val", validation, step=self.progress.step)
            num_left_out = self.progress.step - int(self.variables["num_updates"].numpy())
            if num_left_out:
                logger.warning(
                    "%d of %d updates were left out so far: float16 overflowed", num_left_out, self.progress.step
                )
            logger.info(
                "epoch %d/%d, step %d: loss %.4f, validation: %s%s; learning rate %.3g; %s, %s",
                *(epoch, self.config.learning.epochs, self.progress.step, train["loss"]),
                _in_words(validation, self.config.model.heads),
                *(" (best)" if is_best else "", learning_rate, done, format_seconds(done.seconds)),
            )

    def _save(self) -> None:
        """Put the state on disk."""
        if self.devices.is_chief:
            save_state(self.run.states, self.progress, self.variables, keep=self.config.saving.keep_states)
        self._mark = time.monotonic()

    def _stop(self) -> None:
        self._save()
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
