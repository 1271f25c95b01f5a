"""One batch: losses, sums and gradients."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from model.classifier import build_classifier, logits_model
from model.training.optimizer import AdamW, LossScale
from model.training.steps import (
    NUM_COMMON_SUMS,
    HeadLoss,
    Outcome,
    head_losses,
    make_eval_step,
    make_train_step,
    metrics_from_sums,
)
from model.training.strategy import open_devices
from tests.support.runs import TINY_BERT, make_bert_dir, tiny_config

HEADS = {"category": 3, "second": 2}
LABEL_COUNTS = {"category": [40, 30, 13], "second": [70, 13]}


@pytest.fixture(scope="module")
def bert_dir(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_bert_dir(tmp_path_factory.mktemp("steps") / "bert")


def make_batch(num_real: Any = 8, num_padded: Any = 0, seed: int = 0) -> tuple[Any, ...]:
    generator = np.random.default_rng(seed)
    rows = num_real + num_padded
    indices = generator.integers(1, TINY_BERT.vocab_size, (rows, 7)).astype(np.int32)
    indices[:, 5:] = 0
    labels = {head: generator.integers(0, count, rows).astype(np.int32) for head, count in HEADS.items()}
    weights = (np.arange(rows) < num_real).astype(np.float32)
    inputs = {"indices": tf.constant(indices), "segments": tf.zeros_like(indices)}
    return inputs, {head: tf.constant(values) for head, values in labels.items()}, tf.constant(weights)


def make_steps(
    bert_dir: Path, loss_scale: Any = None, xla: Any = False, policy: Any = "float32", **options: Any
) -> tuple[Any, ...]:
    config = tiny_config(**options)
    devices = open_devices(config)
    model = build_classifier(bert_dir, HEADS, dropout=config.model.dropout, policy=policy)
    logits = logits_model(model)
    optimizer = AdamW(logits.trainable_variables, weight_decay=0.0, xla=xla)
    losses = head_losses(config, LABEL_COUNTS)
    step_fn = make_train_step(logits, optimizer, losses, devices, config, xla=xla, loss_scale=loss_scale)

    def step(batch: Any, number: Any = 0, learning_rate: Any = 0.01) -> Any:
        vector = step_fn(batch, tf.constant(number, tf.int64), tf.constant(learning_rate), tf.constant(0.0))
        return Outcome.fetch(vector, config)

    eval_step_fn = make_eval_step(logits, config, devices, xla=xla)

    def eval_step(batch: Any, stop: Any = 0.0) -> Any:
        return Outcome.fetch(eval_step_fn(batch, tf.constant(stop)), config)

    return model, step, eval_step, optimizer


def assert_close(outcome: Any, other: Any) -> None:
    np.testing.assert_allclose(outcome.sums, other.sums, rtol=1e-5)
    assert outcome.gradient_norm == pytest.approx(other.gradient_norm, rel=1e-5)


def weights_after(bert_dir: Path, batch: Any, **options: Any) -> tuple[Any, ...]:
    model, step, _, _ = make_steps(bert_dir, **options)
    outcome = step(batch)
    return outcome, model.get_weights()


def test_sums_are_those_of_the_probabilities(bert_dir: Path) -> None:
    model, _, eval_step, _ = make_steps(bert_dir)
    inputs, labels, weights = make_batch(num_real=6, num_padded=2)
    outputs = model([inputs["indices"], inputs["segments"]])
    expected, all_right = [6.0, 6 * 5.0], np.ones(6)
    sums = []
    for head in HEADS:
        probabilities, right = outputs[head].numpy()[:6], labels[head].numpy()[:6]
        is_right = probabilities.argmax(axis=1) == right
        all_right = all_right * is_right
        sums += [-np.log(probabilities[np.arange(6), right]).sum(), is_right.sum()]
    np.testing.assert_allclose(
        eval_step((inputs, labels, weights)).sums, [*expected, all_right.sum(), *sums], rtol=1e-5
    )


def loss_by_hand(
    model: Any, batch: Any, *, loss_weights: Any = None, label_smoothing: Any = None, balance_classes: Any = ()
) -> tuple[Any, ...]:
    """Return each head's summed loss and the mean loss's gradient, from the formulas in float64."""
    inputs, labels, weights = batch
    with tf.GradientTape() as tape:
        view = logits_model(model)
        logits = view([inputs["indices"], inputs["segments"]])
    sums, slopes = {}, {}
    for head, num_classes in HEADS.items():
        exponentials = np.exp(logits[head].numpy().astype(np.float64))
        probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
        smoothing = (label_smoothing or {}).get(head, 0.0)
        targets = (1 - smoothing) * np.eye(num_classes)[labels[head]] + smoothing / num_classes
        factors = weights.numpy().astype(np.float64)
        if head in balance_classes:
            counts = np.array(LABEL_COUNTS[head])
            factors *= (counts.sum() / num_classes / counts)[labels[head]]
        sums[head] = -(factors[:, None] * targets * np.log(probabilities)).sum()
        factors *= (loss_weights or {}).get(head, 1.0) / weights.numpy().sum()
        slopes[head] = tf.constant(factors[:, None] * (probabilities - targets), tf.float32)
    gradients = tape.gradient(logits, view.trainable_variables, output_gradients=slopes)
    return sums, [tf.convert_to_tensor(gradient).numpy() for gradient in gradients]


LOSSES: dict[str, dict[str, Any]] = {
    "loss_weights": {"loss_weights": {"category": 2.0, "second": 0.25}},
    "label_smoothing": {"label_smoothing": {"category": 0.1, "second": 0.4}},
    "balance_classes": {"balance_classes": ("category", "second")},
}
LOSSES["all"] = LOSSES["loss_weights"] | LOSSES["label_smoothing"] | LOSSES["balance_classes"]


@pytest.mark.parametrize("options", LOSSES.values(), ids=LOSSES)
def test_the_gradient_is_that_of_the_loss_by_hand(bert_dir: Path, options: Any) -> None:
    model, step, _, optimizer = make_steps(bert_dir, dropout=0.0, clip_norm=0.0, **options)
    momentums = [np.zeros(variable.shape) for variable in optimizer.variables]
    for number, batch in enumerate([make_batch(seed=1), make_batch(num_real=6, num_padded=2, seed=2)]):
        sums, gradients = loss_by_hand(model, batch, **options)
        _, plain = loss_by_hand(model, batch)
        assert max(np.abs(a - b).max() for a, b in zip(gradients, plain, strict=True)) > 0.05
        outcome = step(batch, number)
        np.testing.assert_allclose(outcome.sums[[3, 5]], [sums["category"], sums["second"]], rtol=1e-5)
        np.testing.assert_allclose(
            outcome.gradient_norm, np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in gradients)), 1e-4
        )
        # The first moment tells the gradient that the update was made from.
        momentums = [0.9 * momentum + 0.1 * gradient for momentum, gradient in zip(momentums, gradients, strict=True)]
        for found, expected in zip(optimizer.momentums, momentums, strict=True):
            np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


def test_a_wish_to_stop_comes_with_every_outcome(bert_dir: Path) -> None:
    _, _, eval_step, _ = make_steps(bert_dir)
    batch = make_batch()
    assert [eval_step(batch, stop).num_stopping for stop in (0.0, 1.0)] == [0, 1]


def test_padded_rows_change_nothing(bert_dir: Path) -> None:
    inputs, labels, weights = make_batch(num_real=6, num_padded=2)
    whole, whole_weights = weights_after(bert_dir, (inputs, labels, weights), dropout=0.0)
    real = tf.nest.map_structure(lambda tensor: tensor[:6], (inputs, labels, weights))
    alone, alone_weights = weights_after(bert_dir, real, dropout=0.0)
    assert_close(whole, alone)
    for a, b in zip(whole_weights, alone_weights, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_batch_in_parts_is_the_same_update(bert_dir: Path) -> None:
    batch = make_batch(num_real=7, num_padded=1)
    whole, whole_weights = weights_after(bert_dir, batch, dropout=0.0)
    parts, parts_weights = weights_after(bert_dir, batch, dropout=0.0, accumulate_steps=4)
    assert_close(parts, whole)
    for a, b in zip(whole_weights, parts_weights, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_loss_scale_changes_nothing_in_float32(bert_dir: Path) -> None:
    batch = make_batch()
    plain, plain_weights = weights_after(bert_dir, batch, dropout=0.0)
    scaled, scaled_weights = weights_after(bert_dir, batch, dropout=0.0, loss_scale=LossScale())
    assert_close(scaled, plain)
    for a, b in zip(plain_weights, scaled_weights, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_dropout_depends_on_the_step_alone(bert_dir: Path) -> None:
    _, step, _, _ = make_steps(bert_dir)
    batch = make_batch()
    losses = [step(batch, number, learning_rate=0.0).sums[NUM_COMMON_SUMS] for number in (5, 6, 5)]
    assert losses[0] == losses[2] != losses[1]


def test_dropout_depends_on_the_seed(bert_dir: Path) -> None:
    # The same weights each time: what the seed draws of them is not asked for here.
    losses = [make_steps(bert_dir, seed=seed)[1](make_batch(), 5).sums[3] for seed in (0, 1)]
    assert losses[0] != losses[1]


def test_float16_learns_and_leaves_out_updates_that_overflow(bert_dir: Path) -> None:
    loss_scale = LossScale()
    model, step, _, optimizer = make_steps(
        bert_dir, loss_scale=loss_scale, policy="mixed_float16", dropout=0.0, clip_norm=0.0
    )
    batch = make_batch()
    _, gradients = loss_by_hand(model, batch)
    assert np.isfinite(step(batch).sums).all()
    for found, expected in zip(optimizer.momentums, gradients, strict=True):
        np.testing.assert_allclose(found.numpy() / 0.1, expected, atol=0.02)
    assert (optimizer.num_updates.numpy(), loss_scale.num_good_updates.numpy()) == (1, 1)

    loss_scale.scale.assign(2.0**25)  # beyond what float16 holds, though not beyond what float32 does
    before = [*model.get_weights(), *(moment.numpy() for moment in optimizer.momentums + optimizer.velocities)]
    outcome = step(batch, 1)
    assert np.isfinite(outcome.sums).all()
    assert not np.isfinite(outcome.gradient_norm)
    after = [*model.get_weights(), *(moment.numpy() for moment in optimizer.momentums + optimizer.velocities)]
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(new, old)
    assert (optimizer.num_updates.numpy(), loss_scale.num_good_updates.numpy()) == (1, 0)
    assert loss_scale.scale.numpy() == 2.0**24

    for number in range(2, 30):
        step(batch, number)
    assert optimizer.num_updates.numpy() > 1
    assert 1.0 < loss_scale.scale.numpy() < 2.0**24
    losses = [step(batch, number).sums[3] for number in range(30, 35)]
    assert losses[-1] < outcome.sums[3] / 2


def test_weights_stay_where_the_gradient_is_not_finite(bert_dir: Path) -> None:
    loss_scale = LossScale()
    model, step, _, optimizer = make_steps(bert_dir, loss_scale=loss_scale)
    before = model.get_weights()
    first_scale = loss_scale.scale.numpy()
    loss_scale.scale.assign(np.float32(3e38))  # every gradient overflows
    outcome = step(make_batch())
    assert np.isfinite(outcome.sums).all()
    assert not np.isfinite(outcome.gradient_norm)
    assert outcome.loss_scale == np.float32(3e38)
    assert loss_scale.scale.numpy() == np.float32(1.5e38) != first_scale
    assert optimizer.num_updates.numpy() == 0
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_every_weight_learns(bert_dir: Path) -> None:
    model, step, _, _ = make_steps(bert_dir)
    before = model.get_weights()
    step(make_batch())
    still = [
        weight.name for old, weight in zip(before, model.weights, strict=True) if np.array_equal(old, weight.numpy())
    ]
    # A key's bias shifts all scores of a query alike, which the softmax takes out again.
    assert [name for name in still if not name.endswith("_bk:0")] == []


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_head_loss_is_keras_cross_entropy(smoothing: float) -> None:
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(size=(5, 4)).astype(np.float32), np.array([0, 1, 2, 3, 1], np.int32)
    reference = tf_keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=smoothing, reduction="none")
    loss = HeadLoss(weight=1.0, smoothing=smoothing, class_weights=(1.0,) * 4)
    np.testing.assert_allclose(loss(labels, logits), reference(np.eye(4)[labels], logits), rtol=1e-5)
    weighted = dataclasses.replace(loss, class_weights=(1.0, 2.0, 3.0, 4.0))
    expected = reference(np.eye(4)[labels], logits).numpy() * (labels + 1)
    np.testing.assert_allclose(weighted(labels, logits), expected, rtol=1e-5)


def test_balanced_classes_weigh_one_on_average() -> None:
    config = tiny_config(balance_classes=("category",), loss_weights={"second": 0.5})
    losses = head_losses(config, {"category": [30, 10, 0], "second": [20, 20]})
    # As scikit-learn's "balanced"; a class without examples keeps 1.
    assert losses["category"].class_weights == pytest.approx((40 / 60, 40 / 20, 1.0))
    assert losses["second"].class_weights == (1.0, 1.0)
    assert (losses["category"].weight, losses["second"].weight) == (1.0, 0.5)


def test_metrics_divide_sums_once() -> None:
    config = tiny_config(loss_weights={"second": 0.5})
    metrics = metrics_from_sums([4.0, 100.0, 1.0, 8.0, 2.0, 4.0, 3.0], config)
    assert metrics == {
        "loss": 2.5,
        "category_loss": 2.0,
        "category_accuracy": 0.5,
        "second_loss": 1.0,
        "second_accuracy": 0.75,
        "accuracy_mean": 0.625,
        "exact_match": 0.25,
    }
