"""What each option changes in a run, and what it leaves alone: a flag that is parsed but goes nowhere shows here."""

import csv
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import model.trainer
import model.training.steps
from model.run.weights import named_variables
from model.trainer import train_and_evaluate
from model.training.training_state import list_states
from tests.support.berts import KERAS_BERT_WARNING
from tests.support.runs import IN_PROCESS, make_inputs, tiny_config

NUM_STEPS = 3
RATE = 5e-3
DECAY = 0.5  # so strong that doing without it shows after three steps
COMMON = {
    "limit_steps": NUM_STEPS,
    "learning_rate": RATE,
    "weight_decay": DECAY,
    "dropout": 0.0,
    "buckets": (8,),  # and what is longer
    "save_every": 1,
}
COMPARED = ("new_weights", "rates", "parts", "validation", "states", "packages")


@dataclasses.dataclass
class Outcome:
    """What came of a run of three steps.

    Attributes:
        new_weights: those of a head before the first step.
        weights: all of the model's at the end, by name.
        rates: the learning rate of each step.
        parts: (rows, length, sum of ids) of all that was computed at once in training, in order.
        validation: the same in validation.
        states: names of the states on disk.
        monitored: the value that decides about the best epoch.
        metrics: the row of `metrics.csv`.
        packages: where the model's layers come from.
    """

    new_weights: list
    weights: dict
    rates: list
    parts: list
    validation: list
    states: list
    monitored: float
    metrics: dict
    packages: set


def train(inputs: Any, path: Path, **options: Any) -> Any:
    """Train in this process, without a report."""
    config = tiny_config(**inputs, **IN_PROCESS, **(COMMON | options), output_dir=str(path))
    new_weights, computed, rates = [], [], []
    real_sums, real_make_train_step = model.training.steps._batch_sums, model.trainer.make_train_step

    def batch_sums(losses: Any, logits: Any, batch: Any) -> Any:
        def note(ids: Any, weights: Any) -> None:
            if weights.sum() > 0:
                computed.append((*ids.shape, int(ids.sum())))

        tf.numpy_function(note, [batch[0]["indices"], batch[2]], [])
        return real_sums(losses, logits, batch)

    def make_train_step(logits: Any, *arguments: Any, **named: Any) -> Any:
        new_weights.extend(logits.get_layer("category_logits").kernel.numpy().tolist())
        step = real_make_train_step(logits, *arguments, **named)

        def step_fn(batch: Any, number: Any, learning_rate: Any, stop: Any) -> Any:
            if tf.reduce_sum(batch[2]) > 0:  # else it is made to be compiled
                rates.append(float(learning_rate))
            return step(batch, number, learning_rate, stop)

        return step_fn

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(model.training.steps, "_batch_sums", batch_sums)
        patched.setattr(model.trainer, "make_train_step", make_train_step)
        patched.setattr(model.trainer, "_finish", lambda setup, loop: loop)
        loop: Any = train_and_evaluate(config)  # no report, for `_finish` is replaced
    assert len(rates) == NUM_STEPS
    num_parts = NUM_STEPS * config.batches.accumulate_steps
    with (path / "metrics.csv").open(newline="") as stream:
        (row,) = csv.DictReader(stream)
    return Outcome(
        new_weights=new_weights,
        weights={name: variable.numpy() for name, variable in named_variables(loop.model.weights).items()},
        rates=rates,
        parts=computed[:num_parts],
        validation=computed[num_parts:],
        states=[state.name for state in list_states(path / "state")],
        monitored=loop.progress.monitor.best,
        metrics={name: float(value) for name, value in row.items()},
        packages={type(layer).__module__.partition(".")[0] for layer in loop.model.layers},
    )


def greatest_difference(outcome: Any, other: Any) -> Any:
    """Return by how much the weights of two runs differ at most."""
    return max(np.abs(value - other.weights[name]).max() for name, value in outcome.weights.items())


def changes(outcome: Any, baseline: Any) -> Any:
    """Return which parts of an outcome are not the baseline's, those aside in which other weights may show."""
    changed = {name for name in COMPARED if getattr(outcome, name) != getattr(baseline, name)}
    # Rounding alone is no effect of an option.
    return changed | ({"weights"} if greatest_difference(outcome, baseline) > 1e-4 else set())


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def baseline(inputs: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return train(inputs, tmp_path_factory.mktemp("baseline"))


def test_the_baseline(baseline: Any) -> None:
    assert [rows for rows, _, _ in baseline.parts] == [8, 8, 8]
    assert {length for _, length, _ in baseline.parts} == {8, 16}
    assert [rows for rows, _, _ in baseline.validation] == [8, 8, 8]
    assert baseline.rates == pytest.approx([RATE] * 3)
    assert baseline.states == ["step-00000002", "step-00000003-epoch-001"]
    assert baseline.monitored == pytest.approx(baseline.metrics["val_accuracy_mean"])
    assert "keras_bert" not in baseline.packages


LEARNS_OTHERWISE = {
    "seed": (1, {"new_weights", "parts", "weights"}),
    "clip_norm": (0.0, {"weights"}),
    "learning_rate": (RATE / 5, {"rates", "weights"}),
    "loss_weights": ({"second": 0.0}, {"weights"}),
    "label_smoothing": ({"category": 0.3}, {"weights"}),
    "balance_classes": (("category",), {"weights"}),
    "dropout": (0.5, {"weights"}),
    "pooling": ("max", {"weights"}),
    "precision": ("bfloat16", {"weights"}),
}


@pytest.mark.parametrize("option", LEARNS_OTHERWISE)
def test_learns_otherwise(inputs: Any, baseline: Any, tmp_path: Path, option: Any) -> None:
    value, expected = LEARNS_OTHERWISE[option]
    assert changes(train(inputs, tmp_path, **{option: value}), baseline) == expected


def test_adamw_decays_and_adam_does_not(inputs: Any, baseline: Any, tmp_path: Path) -> None:
    without = train(inputs, tmp_path / "without", weight_decay=0.0)
    adam = train(inputs, tmp_path / "adam", optimizer="adam")
    assert changes(without, baseline) == changes(adam, baseline) == {"weights"}
    assert greatest_difference(adam, without) == 0.0
    name = "Embedding-Token/embeddings"
    unused = tf.train.load_variable(f"{inputs['bert_dir']}/bert_model.ckpt", "bert/embeddings/word_embeddings")[7:10]
    np.testing.assert_array_equal(adam.weights[name][7:10], unused)  # no text holds these words
    np.testing.assert_allclose(baseline.weights[name][7:10], unused * (1 - RATE * DECAY) ** NUM_STEPS, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "factors"),
    [
        # Of the 22 steps planned three are done.
        ({"schedule": "linear", "warmup": 0.0}, [1, 21 / 22, 20 / 22]),
        ({"warmup": 0.5}, [1 / 11, 2 / 11, 3 / 11]),
    ],
    ids=["schedule", "warmup"],
)
def test_learns_at_another_rate(
    inputs: Any, baseline: Any, tmp_path: Path, options: dict[str, Any] | dict[str, float], factors: list[int]
) -> None:
    outcome = train(inputs, tmp_path, **options)
    assert changes(outcome, baseline) == {"rates", "weights"}
    assert outcome.rates == pytest.approx([RATE * factor for factor in factors])


@pytest.mark.parametrize(
    ("option", "value", "shapes"),
    [
        ("buckets", "off", {(8, 16)}),
        ("batch_tokens", 64, {(8, 8), (4, 16)}),
        ("batch_size", 4, {(4, 8), (4, 16)}),
        ("max_len", 12, {(8, 8), (8, 12)}),
    ],
    ids=["buckets", "batch_tokens", "batch_size", "max_len"],
)
def test_makes_other_batches(
    inputs: Any, baseline: Any, tmp_path: Path, option: str, value: int | str, shapes: set[tuple[int, ...]]
) -> None:
    outcome = train(inputs, tmp_path, **{option: value})
    assert {(rows, length) for rows, length, _ in outcome.parts} == shapes
    assert changes(outcome, baseline) - {"validation"} == {"parts", "weights"}


def test_accumulates_the_same_update_from_parts(inputs: Any, baseline: Any, tmp_path: Path) -> None:
    outcome = train(inputs, tmp_path, accumulate_steps=4)
    assert changes(outcome, baseline) == {"parts"}
    assert [rows for rows, _, _ in outcome.parts] == [2] * 4 * NUM_STEPS
    ids = np.array([ids for _, _, ids in outcome.parts]).reshape(NUM_STEPS, 4).sum(axis=1)
    assert ids.tolist() == [ids for _, _, ids in baseline.parts]


@pytest.mark.filterwarnings(KERAS_BERT_WARNING)
def test_takes_keras_berts_graph(inputs: Any, baseline: Any, tmp_path: Path) -> None:
    outcome = train(inputs, tmp_path, encoder="keras_bert")
    assert "keras_bert" in outcome.packages
    assert changes(outcome, baseline) == {"packages"}


def test_what_is_around_the_steps_leaves_the_weights_alone(inputs: Any, baseline: Any, tmp_path: Path) -> None:
    outcome = train(inputs, tmp_path, monitor="loss", keep_states=1, eval_batch_size=5)
    assert changes(outcome, baseline) == {"states", "validation"}
    assert outcome.monitored == pytest.approx(outcome.metrics["val_loss"])
    assert outcome.states == ["step-00000003-epoch-001"]
    assert [rows for rows, _, _ in outcome.validation] == [5] * 5
