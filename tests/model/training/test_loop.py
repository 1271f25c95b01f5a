"""Epochs after epochs: what decides about them survives an interruption, and each gets the batches that are its own."""

import csv
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import model.trainer
from model.classifier import build_classifier
from model.run.directory import RunDir
from model.run.weights import named_variables, read_arrays
from model.trainer import train_and_evaluate
from model.training.loop import TrainingLoop
from model.training.preemption import PreemptedError
from model.training.steps import STEPS_IN_FLIGHT, num_sums
from model.training.strategy import open_devices
from model.training.training_state import list_states
from pipeline.input_pipeline.reader import TrainReader
from tests.support.runs import IN_PROCESS, assert_same_results, interrupt_after, make_inputs, tiny_config, with_options

# The first epoch is the best one; then nothing improves until early stopping ends the run.
ACCURACIES = (0.6, 0.5, 0.5, 0.5, 0.5, 0.5, 0.9)
NUM_EPOCHS = 6
STEPS_PER_EPOCH = 3


@dataclasses.dataclass
class Course:
    """What happened in a training.

    Attributes:
        batches: (seed, epoch, first step) of each stream of batches that was asked for.
        weights: all weights by name at the end of each epoch.
    """

    batches: list = dataclasses.field(default_factory=list)
    weights: list = dataclasses.field(default_factory=list)


@pytest.fixture(scope="module")
def course() -> Iterator[Any]:
    """Give every training of this module the validation accuracies above, and note what happens."""
    noted = Course()
    real_validate, real_epoch = TrainingLoop._validate, TrainReader.epoch

    def validate(loop: Any) -> dict[str, Any]:
        metrics = real_validate(loop)
        noted.weights.append({name: value.numpy() for name, value in named_variables(loop.model.weights).items()})
        return metrics | {"accuracy_mean": ACCURACIES[loop.progress.epoch]}

    def read_epoch(reader: Any, epoch: Any, start_step: Any = 0) -> Any:
        noted.batches.append((reader.seed, epoch, start_step))
        return real_epoch(reader, epoch, start_step)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(TrainingLoop, "_validate", validate)
        patched.setattr(TrainReader, "epoch", read_epoch)
        yield noted


@pytest.fixture(scope="module")
def stopped_early(course: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    """A run that nothing interrupted, its result, and what happened in it."""
    path = tmp_path_factory.mktemp("stopped")
    run = RunDir(path / "run")
    config = tiny_config(
        **make_inputs(path),
        **IN_PROCESS,
        output_dir=str(run.path),
        batch_size=30,
        epochs=len(ACCURACIES),
        early_stopping_patience=NUM_EPOCHS - 1,
        plateau_patience=2,
        seed=5,
    )
    report = train_and_evaluate(config)
    return config, run, report, Course(course.batches[:], course.weights[:])


def test_each_epoch_gets_its_own_batches(stopped_early: Any) -> None:
    _, _, _, course = stopped_early
    assert course.batches == [(5, epoch, 0) for epoch in range(NUM_EPOCHS)]


def test_stops_when_nothing_improves_and_learns_slower_before(stopped_early: Any) -> None:
    config, run, report, _ = stopped_early
    assert (report.training.epochs, report.training.early_stopped, report.training.steps) == (NUM_EPOCHS, True, 18)
    assert (report.training.best_epoch, report.training.best_value) == (1, 0.6)
    with run.metrics.open(newline="") as stream:
        rates = [float(row["learning_rate"]) for row in csv.DictReader(stream)]
    assert rates == pytest.approx([config.learning.learning_rate * factor for factor in (1, 1, 1, 0.5, 0.5, 0.25)])


def test_the_result_has_the_best_epochs_weights(stopped_early: Any) -> None:
    _, run, _, course = stopped_early
    best, last = course.weights[0], course.weights[-1]
    found = dict(read_arrays(run.weights))
    bert = named_variables(build_classifier(run.bert, {"category": 3, "second": 2}).weights)
    assert found.keys() == best.keys() == bert.keys()
    for name, expected in best.items():
        assert not np.array_equal(expected, last[name]), name
        np.testing.assert_array_equal(found[name], expected, err_msg=name)
        if not name.startswith(("category", "second")):
            np.testing.assert_array_equal(bert[name].numpy(), expected, err_msg=name)


def test_an_interruption_long_after_the_best_epoch_does_not_change_the_result(
    stopped_early: Any, course: Any, tmp_path: Path
) -> None:
    """By then every counter counts: epochs without a better one, epochs on a plateau, and what the plateau has cut."""
    config, run, report, _ = stopped_early
    config = with_options(config, output_dir=str(tmp_path))
    course.batches.clear()
    with pytest.raises(PreemptedError):
        train_and_evaluate(config, on_step=interrupt_after(4 * STEPS_PER_EPOCH + 1))
    again = train_and_evaluate(config)
    assert_same_results(tmp_path, run.path)
    assert again.evaluation.heads == report.evaluation.heads
    timeless: dict[str, Any] = {"seconds": 0.0, "clock_seconds": 0.0}
    assert dataclasses.replace(again.training, **timeless) == dataclasses.replace(report.training, **timeless)
    before, after = [(5, epoch, 0) for epoch in range(5)], [(5, 4, 1), (5, 5, 0)]
    assert course.batches == before + after


@pytest.mark.parametrize("worker_index", [0, 1])
@pytest.mark.parametrize("asked", ["this one", "the other"])
def test_of_several_workers_all_stop_after_the_same_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, worker_index: int, asked: str
) -> None:
    """One process that thinks there is a second one, which computes nothing."""
    config = tiny_config(**make_inputs(tmp_path), **IN_PROCESS, output_dir=str(tmp_path / "run"), save_every=100)
    devices = dataclasses.replace(open_devices(config), num_workers=2, worker_index=worker_index, num_replicas=2)
    real_make_train_step = model.trainer.make_train_step
    stops = []

    def make_train_step(*arguments: Any, **options: Any) -> Any:
        step = real_make_train_step(*arguments, **options)

        def step_fn(batch: Any, number: Any, learning_rate: Any, stop: Any) -> Any:
            outcome = step(batch, number, learning_rate, stop)
            if tf.reduce_sum(batch[2]) == 0:  # made to be compiled
                return outcome
            stops.append(float(stop))
            # What an all-reduce over both workers would say.
            if stop or (asked == "the other" and number == 1):
                place = num_sums(len(config.model.heads))
                return tf.concat([outcome[:place], [1.0], outcome[place + 1 :]], axis=0)
            return outcome

        return step_fn

    monkeypatch.setattr(model.trainer, "open_devices", lambda config: devices)
    monkeypatch.setattr(model.trainer, "make_train_step", make_train_step)
    # Nobody stops alone: this worker says with the next step, the second, that it was asked to.
    with pytest.raises(PreemptedError) as raised:
        train_and_evaluate(config, on_step=interrupt_after(1 if asked == "this one" else -1))
    last_step = 2 + STEPS_IN_FLIGHT
    assert str(raised.value).startswith(f"stopped by SIGTERM after step {last_step}; the state is saved")
    assert stops == [0.0, *[float(asked == "this one")] * (last_step - 1)]
    states = list_states(tmp_path / "run" / "state")
    assert [state.name for state in states] == ([f"step-{last_step:08d}"] if worker_index == 0 else [])
