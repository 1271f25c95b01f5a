"""Updates, clipping, loss scaling and schedules."""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from hypothesis import given
from hypothesis import strategies as st

from model.training.optimizer import (
    FIRST_LOSS_SCALE,
    UPDATES_UNTIL_LARGER_SCALE,
    AdamW,
    LossScale,
    Schedule,
    clip_by_norm,
)
from tests.support.runs import tiny_config

SHAPES = {"kernel": (3, 4), "bias": (4,), "gamma": (5,), "embeddings": (6, 2)}


def make_variables(generator: Any) -> Any:
    return [tf.Variable(generator.normal(size=shape).astype(np.float32), name=name) for name, shape in SHAPES.items()]


@pytest.mark.parametrize("xla", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_updates_as_keras_adamw_does(weight_decay: float, xla: bool) -> None:
    ours = make_variables(np.random.default_rng(0))
    theirs = make_variables(np.random.default_rng(0))
    optimizer = AdamW(ours, weight_decay=weight_decay, xla=xla)
    apply = tf.function(optimizer.apply, jit_compile=True) if xla else optimizer.apply
    reference = tf_keras.optimizers.AdamW(weight_decay=weight_decay, jit_compile=False)
    reference.exclude_from_weight_decay(var_names=["bias", "gamma"])
    generator = np.random.default_rng(1)
    for step in range(12):
        gradients = [tf.constant(generator.normal(size=shape), tf.float32) for shape in SHAPES.values()]
        learning_rate = 0.01 / (step + 1)
        reference.learning_rate = learning_rate
        reference.apply_gradients(zip(gradients, theirs, strict=True))
        apply(gradients, tf.constant(learning_rate), tf.constant(True))
    for our, their in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(our.numpy(), their.numpy(), rtol=2e-6, atol=1e-6)
    assert optimizer.num_updates.numpy() == 12


def test_decays_matrices_alone() -> None:
    variables = make_variables(np.random.default_rng(0))
    before = [variable.numpy() for variable in variables]
    optimizer = AdamW(variables, weight_decay=0.5, xla=False)
    optimizer.apply([tf.zeros(shape) for shape in SHAPES.values()], tf.constant(0.1), tf.constant(True))
    for old, variable in zip(before, variables, strict=True):
        factor = 1 - 0.1 * 0.5 if old.ndim > 1 else 1.0
        np.testing.assert_allclose(variable.numpy(), old * factor, rtol=1e-6)


@pytest.mark.parametrize("xla", [False, True])
def test_an_update_that_is_not_wanted_changes_nothing(xla: bool) -> None:
    variables = make_variables(np.random.default_rng(0))
    optimizer = AdamW(variables, weight_decay=0.5, xla=xla)
    before = [value.numpy() for value in (*variables, *optimizer.momentums, *optimizer.velocities)]
    gradients = [tf.fill(shape, np.nan) for shape in SHAPES.values()]
    tf.function(optimizer.apply, jit_compile=xla)(gradients, tf.constant(0.1), tf.constant(False))
    assert optimizer.num_updates.numpy() == 0
    for old, value in zip(before, (*variables, *optimizer.momentums, *optimizer.velocities), strict=True):
        np.testing.assert_array_equal(value.numpy(), old)


@pytest.mark.parametrize(("clip_norm", "factor"), [(1.0, 1 / 13), (13.0, 1.0), (100.0, 1.0), (0.0, 1.0)])
def test_clips_the_common_norm(clip_norm: float, factor: float) -> None:
    gradients = [tf.constant([3.0, 4.0]), tf.constant([[12.0]])]
    clipped, norm = clip_by_norm(gradients, clip_norm)
    assert norm.numpy() == 13.0
    np.testing.assert_allclose(clipped[0].numpy(), np.array([3.0, 4.0]) * factor, rtol=1e-6)
    np.testing.assert_allclose(clipped[1].numpy(), [[12.0 * factor]], rtol=1e-6)


def test_sums_become_means_before_they_are_clipped() -> None:
    for clip_norm, expected in ((0.0, [1.5, 2.0]), (5.0, [1.5, 2.0]), (1.0, [0.6, 0.8])):
        clipped, norm = clip_by_norm([tf.constant([6.0, 8.0])], clip_norm, num_summed=tf.constant(4.0))
        assert norm.numpy() == 2.5
        np.testing.assert_allclose(clipped[0].numpy(), expected, rtol=1e-6)


def test_clipping_keeps_zero_gradients_and_shows_those_that_are_not_finite() -> None:
    assert clip_by_norm([tf.zeros(3)], 1.0)[0][0].numpy().tolist() == [0.0, 0.0, 0.0]
    assert not np.isfinite(clip_by_norm([tf.constant([1.0, np.inf])], 1.0)[1].numpy())


def test_loss_scale_halves_after_overflow_and_doubles_after_many_good_updates() -> None:
    loss_scale = LossScale()
    loss_scale.adjust(tf.constant(-1, tf.int64))
    assert loss_scale.scale.numpy() == FIRST_LOSS_SCALE / 2
    loss_scale.num_good_updates.assign(UPDATES_UNTIL_LARGER_SCALE - 2)
    loss_scale.adjust(tf.constant(1, tf.int64))
    assert loss_scale.scale.numpy() == FIRST_LOSS_SCALE / 2
    loss_scale.adjust(tf.constant(1, tf.int64))
    assert (loss_scale.scale.numpy(), loss_scale.num_good_updates.numpy()) == (FIRST_LOSS_SCALE, 0)
    loss_scale.adjust(tf.constant(0, tf.int64))
    assert (loss_scale.scale.numpy(), loss_scale.num_good_updates.numpy()) == (FIRST_LOSS_SCALE, 0)
    loss_scale.scale.assign(1.0)
    loss_scale.adjust(tf.constant(-1, tf.int64))
    assert loss_scale.scale.numpy() == 1.0


@pytest.mark.parametrize(
    ("options", "rates"),
    [
        ({"schedule": "constant"}, [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
        ({"schedule": "constant", "warmup": 0.4}, [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 1]),
        # One step of warm-up at full rate; the last step is a ninth, the one after it would be 0.
        ({"schedule": "linear"}, [1, 1, 8 / 9, 7 / 9, 6 / 9, 5 / 9, 4 / 9, 3 / 9, 2 / 9, 1 / 9]),
        ({"schedule": "linear", "warmup": 0.5}, [0.2, 0.4, 0.6, 0.8, 1, 1, 0.8, 0.6, 0.4, 0.2]),
    ],
)
def test_schedules(options: dict[str, Any] | dict[str, str], rates: list[Any] | list[int]) -> None:
    schedule = Schedule.of(tiny_config(learning_rate=0.5, **options), 10)
    assert [schedule.learning_rate(step) for step in range(10)] == pytest.approx([0.5 * rate for rate in rates])


@given(
    num_steps=st.integers(1, 1000),
    warmup=st.floats(0, 0.99),
    kind=st.sampled_from(["linear", "constant", "plateau"]),
    scale=st.floats(0.01, 1.0),
    data=st.data(),
)
def test_learning_rate_stays_between_zero_and_peak(
    num_steps: Any, warmup: Any, kind: Any, scale: Any, data: Any
) -> None:
    schedule = Schedule.of(tiny_config(schedule=kind, warmup=warmup, learning_rate=0.1), num_steps)
    step = data.draw(st.integers(0, num_steps - 1))
    assert 0 < schedule.learning_rate(step, scale=scale) <= 0.1 * scale * (1 + 1e-12)
