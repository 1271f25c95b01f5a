"""What a training shows on terminals, in logs and in TensorBoard."""

import logging
import resource
import signal
import time
from pathlib import Path

import pytest
import tensorflow as tf

from model.training import display as display_module
from model.training.display import EpochDisplay, TensorBoard, Throughput
from pipeline.dataset.summary import format_seconds


def test_a_line_now_and_then_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(display_module, "SECONDS_BETWEEN_LINES", 0.0)
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


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
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
def test_durations(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_tensorboard_scalars_can_be_read_back(tmp_path: Path) -> None:
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


def test_goes_on_without_tensorboard_where_there_is_no_directory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    board = TensorBoard(tmp_path / "file" / "tensorboard")
    board.write("train", {"loss": 0.5}, step=7)
    board.close()
    (message,) = caplog.messages
    assert message.startswith(f"{tmp_path}/file/tensorboard: no logs for TensorBoard from here on: ")
    assert "is not a directory" in message


def test_goes_on_without_tensorboard_where_the_disk_is_full(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
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
