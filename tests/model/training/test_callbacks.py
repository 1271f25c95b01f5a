"""What happens after an epoch, compared with Keras's callbacks, and what people see."""

import csv
import json
import logging
import resource
import signal
import time

import pytest
import tensorflow as tf
import tf_keras
from hypothesis import given, settings
from hypothesis import strategies as st

from model.training import callbacks
from model.training.callbacks import EpochDisplay, Monitor, TensorBoard, Throughput, write_metrics_csv
from pipeline.dataset.summary import format_seconds
from tests.support.runs import tiny_config


class _LearningRateHolder:
    """What a Keras callback needs of a model."""

    def __init__(self):
        self.optimizer = tf_keras.optimizers.SGD(learning_rate=1.0)
        self.stop_training = False


@settings(max_examples=40, deadline=None)
@given(
    values=st.lists(st.sampled_from([0.5, 0.50005, 0.6, 0.61, 0.7]), min_size=1, max_size=12),
    monitor=st.sampled_from(["accuracy", "loss"]),
    patience=st.integers(1, 3),
    factor=st.sampled_from([0.5, 0.25]),
)
def test_decides_as_keras_callbacks_do(values, monitor, patience, factor):
    config = tiny_config(
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
        ours.update(value, epoch, config)
        # Through JSON and back, as a state takes it.
        ours = Monitor(**json.loads(json.dumps(ours.to_json())))
        for callback in (plateau, stopping):
            callback.on_epoch_end(epoch - 1, {"m": value})
        assert ours.learning_rate_scale == pytest.approx(float(holder.optimizer.learning_rate.numpy()))
        assert ours.best == stopping.best
        assert ours.wants_to_stop(config) == holder.stop_training
        if holder.stop_training:
            return


def test_patience_zero_never_stops():
    monitor = Monitor()
    for epoch in range(1, 10):
        monitor.update(0.5, epoch, tiny_config(early_stopping_patience=0))
    assert (monitor.best_epoch, monitor.epochs_without_best) == (1, 8)
    assert not monitor.wants_to_stop(tiny_config(early_stopping_patience=0))
    assert monitor.wants_to_stop(tiny_config(early_stopping_patience=8))


@pytest.mark.parametrize("schedule", ["linear", "constant"])
def test_only_the_plateau_schedule_reacts_to_a_plateau(schedule):
    monitor = Monitor()
    for epoch in range(1, 10):
        monitor.update(0.5, epoch, tiny_config(schedule=schedule))
    assert monitor.learning_rate_scale == 1.0


def test_metrics_csv_has_a_row_for_each_epoch(tmp_path):
    path = tmp_path / "metrics.csv"
    write_metrics_csv(path, [])
    assert path.read_bytes() == b""
    rows = [{"epoch": 1, "loss": 1 / 3}, {"epoch": 2, "loss": 1e-12}]
    write_metrics_csv(path, rows)
    assert path.read_bytes() == b"epoch,loss\n1,0.333333333\n2,1e-12\n"
    with path.open(newline="") as stream:
        assert [float(row["loss"]) for row in csv.DictReader(stream)] == pytest.approx([1 / 3, 1e-12])


def test_a_line_now_and_then_where_there_is_no_terminal(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(callbacks, "SECONDS_BETWEEN_LINES", 0.0)
    display = EpochDisplay("epoch 2/3", first_step=10, num_steps=30, visible=True)
    display.update(Throughput(steps=5, examples=40, tokens=400, seconds=2.0, wait_seconds=0.5), loss=1.25)
    display.close()
    assert caplog.messages == [
        "epoch 2/3: step 15 of 30, loss 1.2500, 20.0 examples/s, 200 tokens/s, 25.0% waiting for input, 6 s left"
    ]
    caplog.clear()
    hidden = EpochDisplay("epoch 2/3", first_step=0, num_steps=30, visible=False)
    hidden.update(Throughput(steps=5, examples=40, seconds=2.0), loss=1.25)
    assert caplog.messages == []


def test_a_bar_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    display = EpochDisplay("epoch 1/3", first_step=0, num_steps=20, visible=True)
    time.sleep(0.11)  # tqdm draws ten times a second at most
    display.update(Throughput(steps=20, examples=40, tokens=400, seconds=2.0), loss=1.25)
    display.close()
    shown = capsys.readouterr().err
    assert "epoch 1/3" in shown
    assert "20/20" in shown
    assert "loss 1.2500, 20.0 ex/s, 200 tok/s, input 0%" in shown


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.7, "1:00 min"), (42, "42 s"), (185, "3:05 min"), (7209, "2:00:09 h")]
)
def test_durations(seconds, text):
    assert format_seconds(seconds) == text


def test_tensorboard_scalars_can_be_read_back(tmp_path):
    board = TensorBoard(tmp_path / "tensorboard")
    board.write("train", {"loss": 0.5, "learning_rate": 1e-3}, step=7)
    board.close()
    TensorBoard(None).write("train", {"loss": 0.5}, step=7)
    (path,) = (tmp_path / "tensorboard").iterdir()
    found = {
        value.tag: (event.step, float(tf.make_ndarray(value.tensor)))
        for event in tf.compat.v1.train.summary_iterator(str(path))
        for value in event.summary.value
    }
    assert found == {"train/loss": (7, 0.5), "train/learning_rate": (7, pytest.approx(1e-3))}


def test_goes_on_without_tensorboard_where_there_is_no_directory(tmp_path, caplog):
    (tmp_path / "file").touch()
    board = TensorBoard(tmp_path / "file" / "tensorboard")
    board.write("train", {"loss": 0.5}, step=7)
    board.close()
    (message,) = caplog.messages
    assert message.startswith(f"{tmp_path}/file/tensorboard: no logs for TensorBoard from here on: ")
    assert "is not a directory" in message


def test_goes_on_without_tensorboard_where_the_disk_is_full(tmp_path, caplog):
    board = TensorBoard(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        for step in range(30):
            board.write("train", {"loss": 0.5, "learning_rate": 1e-3}, step=step)
        board.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    (message,) = caplog.messages
    assert "File too large" in message
