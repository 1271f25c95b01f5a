"""The resumable state: all of it comes back, and nothing that happens while saving loses the one before."""

import dataclasses
import errno
import resource
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from model.files import remove_temporary
from model.run.weights import assign_arrays, load_model_weights, read_arrays, save_model_weights, write_arrays
from model.training.monitor import Monitor
from model.training.training_state import (
    ARRAYS_NAME,
    STATE_NAME,
    Progress,
    best_epochs,
    list_states,
    restore_newest,
    save_state,
)
from pipeline.errors import InputFormatError, MissingInputError, OutputWriteError, SchemaMismatchError

PROGRESS = Progress(
    run_id="a" * 64,
    step=500,
    epoch=2,
    epoch_step=100,
    epoch_sums=(64.0, 1000.0, 1 / 3, 0.1),
    rows=({"epoch": 1, "loss": 1 / 7}, {"epoch": 2, "loss": 1e-300}),
    monitor=Monitor(best=0.5, best_epoch=1),
    train_seconds=12.5,
    num_examples=4000,
)


def make_variables(seed: int = 0) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    return {
        "weights/a/kernel": tf.Variable(generator.normal(size=(30, 20)).astype(np.float32)),
        "momentum/a/kernel": tf.Variable(generator.normal(size=(30, 20)).astype(np.float32)),
        "num_updates": tf.Variable(seed + 500, dtype=tf.int64),
    }


def values(variables: Any) -> Any:
    return {name: variable.numpy().tolist() for name, variable in variables.items()}


def restore(states_dir: Any, variables: Any, best_weights: Any = None) -> Any:
    return restore_newest(states_dir, variables, run_id=PROGRESS.run_id, best_weights=best_weights)


def test_everything_comes_back_bit_by_bit(tmp_path: Path) -> None:
    saved = make_variables()
    path = save_state(tmp_path / "state", PROGRESS, saved, keep=2)
    assert path.name == "step-00000500"
    restored = make_variables(seed=1)
    assert restore(tmp_path / "state", restored) == PROGRESS
    assert values(restored) == values(saved)


def test_no_state_is_no_error(tmp_path: Path) -> None:
    assert restore(tmp_path / "nothing", make_variables()) is None


def test_keeps_the_newest_states_in_order(tmp_path: Path) -> None:
    for step, epoch_step in ((8, 8), (9, 9), (10, 10), (10, 0), (11, 1), (100_000_000, 5)):
        progress = dataclasses.replace(PROGRESS, step=step, epoch_step=epoch_step)
        save_state(tmp_path, progress, make_variables(), keep=4)
    assert [path.name for path in list_states(tmp_path)] == [
        "step-00000010",
        "step-00000010-epoch-002",
        "step-00000011",
        "step-100000000",
    ]


@pytest.mark.parametrize("name", [ARRAYS_NAME, STATE_NAME])
def test_falls_back_from_a_damaged_state_whatever_byte_it_is(
    tmp_path: Path, name: Any, caplog: pytest.LogCaptureFixture
) -> None:
    good, bad = make_variables(0), make_variables(1)
    save_state(tmp_path, PROGRESS, good, keep=2)
    path = save_state(tmp_path, dataclasses.replace(PROGRESS, step=501), bad, keep=2) / name
    data = path.read_bytes()
    generator = np.random.default_rng(0)
    # Some hundred positions of the content, and the file cut there.
    for position in generator.integers(0, len(data), 60).tolist():
        flipped = data[:position] + bytes([data[position] ^ 0x10]) + data[position + 1 :]
        path.write_bytes(flipped)
        restored = make_variables(2)
        progress = restore(tmp_path, restored)
        if progress.step == 501:
            # A zip archive has bytes that mean nothing, such as dates: then everything must be what was saved.
            assert name == ARRAYS_NAME
            assert values(restored) == values(bad)
        else:
            assert (progress, values(restored)) == (PROGRESS, values(good))
        path.write_bytes(data[:position])
        restored = make_variables(2)
        assert restore(tmp_path, restored) == PROGRESS
        assert values(restored) == values(good)
    assert "cannot be used" in caplog.text
    path.unlink()
    assert restore(tmp_path, make_variables(2)) == PROGRESS


def test_says_so_when_all_states_are_damaged(tmp_path: Path) -> None:
    path = save_state(tmp_path, PROGRESS, make_variables(), keep=1)
    (path / STATE_NAME).write_text("{}")
    with pytest.raises(InputFormatError, match="none of the 1 saved states can be read"):
        restore(tmp_path, make_variables())


def test_a_damaged_state_is_written_again(tmp_path: Path) -> None:
    path = save_state(tmp_path, PROGRESS, make_variables(), keep=1)
    (path / ARRAYS_NAME).write_bytes(b"")
    save_state(tmp_path, PROGRESS, make_variables(), keep=1)
    assert restore(tmp_path, make_variables(1)) == PROGRESS


def test_a_good_state_is_written_again_and_never_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = make_variables()
    save_state(tmp_path, PROGRESS, good, keep=1)
    rename = Path.rename

    def refuse_final_name(self: Path, target: Path) -> Path:
        # The new state cannot take its name, the old one can take it back.
        if target.name == "step-00000500" and (self / ARRAYS_NAME).read_bytes() != saved:
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    saved = (tmp_path / "step-00000500" / ARRAYS_NAME).read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", refuse_final_name)
        with pytest.raises(OutputWriteError, match="Input/output error"):
            save_state(tmp_path, PROGRESS, make_variables(1), keep=1)
    restored = make_variables(2)
    assert restore(tmp_path, restored) == PROGRESS
    assert values(restored) == values(good)
    save_state(tmp_path, PROGRESS, make_variables(1), keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000500"]


def test_falls_back_from_a_state_whose_best_weights_are_gone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    best = Monitor(best=0.5, best_epoch=1)
    for step, monitor in ((400, Monitor()), (500, best), (600, dataclasses.replace(best, best_epoch=2))):
        progress = dataclasses.replace(PROGRESS, step=step, monitor=monitor)
        save_state(tmp_path / "state", progress, make_variables(), keep=3)
    assert best_epochs(tmp_path / "state") == {0, 1, 2}

    def restored_step() -> Any:
        return restore(tmp_path / "state", make_variables(), lambda epoch: tmp_path / f"{epoch}.npz").step

    (tmp_path / "1.npz").touch()
    assert restored_step() == 500
    assert f"{tmp_path}/2.npz: no such file" in caplog.text
    (tmp_path / "2.npz").touch()
    assert restored_step() == 600
    for name in ("1.npz", "2.npz"):
        (tmp_path / name).unlink()
    assert restored_step() == 400  # from the first epoch


def test_refuses_the_state_of_another_model(tmp_path: Path) -> None:
    save_state(tmp_path, PROGRESS, make_variables(), keep=1)
    with pytest.raises(InputFormatError, match=r"lacks weights/b/kernel; it belongs to another model"):
        restore(tmp_path, make_variables() | {"weights/b/kernel": tf.Variable(1.0)})


def test_refuses_the_state_of_another_run_of_the_same_shape(tmp_path: Path) -> None:
    own, foreign = make_variables(0), make_variables(1)
    save_state(tmp_path, PROGRESS, own, keep=2)
    path = save_state(tmp_path, dataclasses.replace(PROGRESS, step=501, run_id="b" * 64), foreign, keep=2)
    (path / ARRAYS_NAME).write_bytes(b"")  # not even looked at
    with pytest.raises(SchemaMismatchError) as error:
        restore(tmp_path, make_variables(2))
    assert str(error.value).startswith(
        f"{path / STATE_NAME}: the state of another run (expected run aaaaaaaaaaaa, found bbbbbbbbbbbb)"
    )
    assert "put this run's own states back, or give --restart" in str(error.value)
    shutil.rmtree(path)
    assert restore(tmp_path, make_variables(2)) == PROGRESS


def test_a_full_disk_leaves_the_state_before(tmp_path: Path) -> None:
    """A real write that fails half-way: the process may not write files beyond a few kilobytes."""
    good = make_variables()
    save_state(tmp_path, PROGRESS, good, keep=1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
    try:
        with pytest.raises(OutputWriteError, match="File too large"):
            save_state(tmp_path, dataclasses.replace(PROGRESS, step=501), make_variables(1), keep=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000500"]
    restored = make_variables(2)
    assert restore(tmp_path, restored) == PROGRESS
    assert values(restored) == values(good)


KILLED_WHILE_SAVING = """
import sys
from pathlib import Path
import numpy as np
from model.training.monitor import Monitor
from model.training.training_state import Progress, save_state

step = 1
while True:
    progress = Progress(run_id="a" * 64, step=step, epoch_step=1)
    save_state(Path(sys.argv[1]), progress, {"a": np.full([2000, 500], step)}, keep=2)
    print(step, flush=True)
    step += 1
"""


def test_kill_while_saving_leaves_a_whole_state(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for _ in range(3):
        command = [sys.executable, "-c", KILLED_WHILE_SAVING, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout
            process.stdout.readline()
            time.sleep(generator.uniform(0.0, 0.1))
            process.kill()
            said = process.stdout.read().split()
        variables = {"a": tf.Variable(np.zeros([2000, 500], np.int64))}
        progress = restore(tmp_path, variables)
        # At least what it had said; perhaps one more, which it could not say any more.
        assert progress.step - int(said[-1] if said else 1) in (0, 1)
        assert (variables["a"].numpy() == progress.step).all()
        remove_temporary(tmp_path)
        assert all(not path.name.startswith(".") for path in tmp_path.iterdir())
        for path in list_states(tmp_path):
            for file in path.iterdir():
                file.unlink()
            path.rmdir()


def test_equal_arrays_make_equal_files(tmp_path: Path) -> None:
    arrays = [("layer/kernel", np.eye(3, dtype=np.float32)), ("step", np.int64(7))]
    write_arrays(tmp_path / "a.npz", arrays)
    time.sleep(2.1)  # a zip archive counts time in steps of two seconds
    write_arrays(tmp_path / "b.npz", arrays)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with np.load(tmp_path / "a.npz", allow_pickle=False) as archive:
        assert archive["layer/kernel"].tolist() == np.eye(3).tolist()


def test_never_unpickles(tmp_path: Path) -> None:
    path = tmp_path / "objects.npz"
    np.savez(path, a=np.array([object()], dtype=object))
    with pytest.raises(InputFormatError, match="damaged, or no file of named arrays"):
        list(read_arrays(path))
    with pytest.raises(MissingInputError, match="no such file"):
        list(read_arrays(tmp_path / "none.npz"))


def test_weights_of_a_model_come_back_and_not_into_another(tmp_path: Path) -> None:
    def make_model(units: Any) -> Any:
        inputs = tf_keras.Input([3])
        return tf_keras.Model(inputs, tf_keras.layers.Dense(units, name="dense")(inputs))

    model, same, other = make_model(2), make_model(2), make_model(4)
    save_model_weights(tmp_path / "weights.npz", model)
    load_model_weights(tmp_path / "weights.npz", same)
    assert [weight.tolist() for weight in same.get_weights()] == [weight.tolist() for weight in model.get_weights()]
    with zipfile.ZipFile(tmp_path / "weights.npz") as archive:
        assert archive.namelist() == ["dense/kernel.npy", "dense/bias.npy"]
    with pytest.raises(InputFormatError, match=r"'dense/kernel' has shape \(3, 2\), this model's has \(3, 4\)"):
        load_model_weights(tmp_path / "weights.npz", other)
    with pytest.raises(InputFormatError, match="holds 'dense/kernel', which this model has not"):
        assign_arrays(tmp_path / "weights.npz", {})
