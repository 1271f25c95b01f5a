"""Best epoch, plateau and early stopping, compared with Keras's callbacks."""

from typing import Any

import pytest
import tf_keras
from hypothesis import given, settings
from hypothesis import strategies as st

from model.config import LearningConfig
from model.training.monitor import Monitor


class _LearningRateHolder:
    """What a Keras callback needs of a model."""

    def __init__(self) -> None:
        self.optimizer = tf_keras.optimizers.SGD(learning_rate=1.0)
        self.stop_training = False


@settings(max_examples=40, deadline=None)
@given(
    values=st.lists(st.sampled_from([0.5, 0.50005, 0.6, 0.61, 0.7]), min_size=1, max_size=12),
    monitor=st.sampled_from(["accuracy", "loss"]),
    patience=st.integers(1, 3),
    factor=st.sampled_from([0.5, 0.25]),
)
def test_decides_as_keras_callbacks_do(values: Any, monitor: Any, patience: Any, factor: Any) -> None:
    learning = LearningConfig(
        monitor=monitor, early_stopping_patience=patience, plateau_patience=patience, plateau_factor=factor
    )
    mode = "min" if monitor == "loss" else "max"
    holder = _LearningRateHolder()
    plateau = tf_keras.callbacks.ReduceLROnPlateau(monitor="m", mode=mode, factor=factor, patience=patience, verbose=0)
    stopping = tf_keras.callbacks.EarlyStopping(monitor="m", mode=mode, patience=patience)
    for callback in (plateau, stopping):
        callback.model = holder
        callback.on_train_begin()
    ours = Monitor()
    for epoch, value in enumerate(values, 1):
        ours = ours.after(epoch, value, learning)
        for callback in (plateau, stopping):
            callback.on_epoch_end(epoch - 1, {"m": value})
        assert ours.learning_rate_scale == pytest.approx(float(holder.optimizer.learning_rate.numpy()))
        assert ours.best == stopping.best
        assert ours.wants_to_stop(learning) == holder.stop_training
        if holder.stop_training:
            return


def test_patience_zero_never_stops() -> None:
    monitor = Monitor()
    for epoch in range(1, 10):
        monitor = monitor.after(epoch, 0.5, LearningConfig(early_stopping_patience=0))
    assert (monitor.best_epoch, monitor.epochs_without_best) == (1, 8)
    assert not monitor.wants_to_stop(LearningConfig(early_stopping_patience=0))
    assert monitor.wants_to_stop(LearningConfig(early_stopping_patience=8))


@pytest.mark.parametrize("schedule", ["linear", "constant"])
def test_only_the_plateau_schedule_reacts_to_a_plateau(schedule: Any) -> None:
    monitor = Monitor()
    for epoch in range(1, 10):
        monitor = monitor.after(epoch, 0.5, LearningConfig(schedule=schedule))
    assert monitor.learning_rate_scale == 1.0
