"""What may be done with a directory that is there already."""

import dataclasses
import errno
import fcntl
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from model.files import remove
from model.run import directory as run_dir
from model.run.description import BertIdentity, DatasetIdentity, Resolved, ResolvedBatches, RunDescription
from model.run.directory import RunDir, open_run_dir
from pipeline.errors import (
    InputFormatError,
    MissingInputError,
    OptionError,
    OutputExistsError,
    OutputWriteError,
    SchemaMismatchError,
)
from tests.support.runs import RESOLVED, tiny_config, with_options

DEVICES = dataclasses.replace(RESOLVED.devices, deterministic=True)
BATCHES = ResolvedBatches(bucket_lengths=(8, 16), bucket_rows=(8, 4), steps_per_epoch=11)


def describe(*, precision: Any = "float32", devices: Any = DEVICES, batches: Any = BATCHES, **options: Any) -> Any:
    return RunDescription(
        config=tiny_config(**options),
        dataset=DatasetIdentity(fingerprint="a" * 64),
        bert=BertIdentity(vocab_sha256="b" * 64, checkpoint_sha256="c" * 64),
        cased=False,
        labels={"category": ("a", "b"), "second": ("x", "y")},
        label_pairs={"a": ("x",), "b": ("x", "y")},
        max_len=16,
        versions={"tensorflow": "2.21.0"},
        resolved=Resolved(precision=precision, devices=devices, batches=batches),
    )


@pytest.fixture
def run(tmp_path: Path) -> Any:
    run = RunDir(tmp_path / "run")
    with run.locked():
        run.write_config(describe())
    return run


def test_a_new_or_empty_directory_is_no_run_yet(tmp_path: Path) -> None:
    assert not RunDir(tmp_path / "none").exists()
    run = RunDir(tmp_path)
    with run.locked():
        assert not run.exists()
    (tmp_path / "config.json.1234.tmp").write_text("{")  # a process that was killed while writing it
    assert not run.exists()


def test_refuses_what_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputExistsError, match=r"not a run \(it holds 'thesis.txt' but no config.json\)"):
        RunDir(tmp_path).exists()
    with pytest.raises(OutputExistsError, match="expected a directory, found a file"):
        RunDir(tmp_path / "thesis.txt").exists()
    with pytest.raises(OptionError, match="needs a local directory"):
        open_run_dir("gs://bucket/run")


def test_the_same_command_may_continue(run: Any) -> None:
    assert run.check_resumable(describe(data_dir="moved", save_every=7, keep_states=1, log_every=1)) == []


def test_other_devices_may_continue_with_a_warning(run: Any, caplog: pytest.LogCaptureFixture) -> None:
    # Said otherwise, and the same here.
    assert run.check_resumable(describe(strategy="one_device", xla="off", deterministic="on")) == []
    assert caplog.messages == []
    devices = dataclasses.replace(DEVICES, strategy="mirrored", num_replicas=2, accumulate_steps=4)
    changed = run.check_resumable(
        describe(devices=devices, cpu_replicas=2, strategy="mirrored", accumulate_steps=4, eval_batch_size=4)
    )
    assert changed == ["strategy: one_device -> mirrored", "num_replicas: 1 -> 2", "accumulate_steps: 1 -> 4"]
    assert caplog.messages == [
        "continuing on other devices (strategy: one_device -> mirrored; num_replicas: 1 -> 2; accumulate_steps: 1 -> "
        "4): rounding and dropout noise will differ from an uninterrupted run"
    ]


def test_what_auto_was_when_the_run_began_holds(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.write_config(describe(precision="float16"))
    assert run.check_origin(describe()) == describe(precision="float16")
    with pytest.raises(OptionError) as error:
        run.check_resumable(describe())
    assert "started in float16, and --precision auto is float32 here; give --precision float16" in str(error.value)
    given = with_options(tiny_config(), precision="float16")
    run.check_resumable(dataclasses.replace(describe(precision="float16"), config=given))


def test_refuses_other_batches(run: Any) -> None:
    """As --batch_tokens makes them with another number of replicas."""
    batches = dataclasses.replace(BATCHES, bucket_rows=(6, 3), steps_per_epoch=14)
    with pytest.raises(OptionError) as error:
        run.check_resumable(describe(devices=dataclasses.replace(DEVICES, num_replicas=3), batches=batches))
    assert "(bucket_rows: 8,4 -> 6,3; steps_per_epoch: 11 -> 14)" in str(error.value)
    assert "the replicas, which were 1 and are 3: continue with as many" in str(error.value)


@pytest.mark.parametrize(
    ("options", "change"),
    [
        ({"batch_size": 16}, "batch_size: 8 -> 16"),
        ({"heads": ("category",)}, "heads: category,second -> category"),
        ({"seed": 1, "dropout": 0.2}, "dropout: None -> 0.2; seed: 0 -> 1"),
    ],
)
def test_says_which_option_changed(run: Any, options: Any, change: str) -> None:
    with pytest.raises(OutputExistsError) as error:
        run.check_resumable(describe(**options))
    assert f"started with other options ({change})" in str(error.value)
    assert "--restart" in str(error.value)


@pytest.mark.parametrize(
    ("what", "field", "option"), [("dataset", "fingerprint", "--data"), ("bert", "vocab_sha256", "--bert")]
)
def test_says_which_input_changed(run: Any, what: str, field: str, option: str) -> None:
    new = describe()
    changed = dataclasses.replace(getattr(new, what), **{field: "f" * 64})
    new = dataclasses.replace(new, **{what: changed})
    with pytest.raises(SchemaMismatchError, match=rf"another {option} \({field}: .* -> ffffffffffff\)"):
        run.check_resumable(new)


def test_a_run_is_told_from_all_with_another_result() -> None:
    own = describe()
    moved = describe(data_dir="moved", output_dir="moved", save_every=7, cpu_replicas=2, strategy="mirrored")
    assert moved.run_id == own.run_id
    others = [describe(seed=1), describe(batch_size=16), describe(loss_weights={"second": 0.5})]
    others.append(dataclasses.replace(own, dataset=DatasetIdentity(fingerprint="f" * 64)))
    others.append(dataclasses.replace(own, bert=dataclasses.replace(own.bert, checkpoint_sha256="f" * 64)))
    others.append(describe(batches=dataclasses.replace(BATCHES, bucket_rows=(6, 4))))
    assert len({description.run_id for description in (own, *others)}) == 1 + len(others)


def test_a_finished_run_is_not_trained_again(run: Any) -> None:
    run.report.write_text("{}")
    with pytest.raises(OutputExistsError, match="this run is finished"):
        run.check_resumable(describe())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Input data was truncated"),
        ("{}", "missing required field `run_format`"),
        ("[]", "Expected `object`, got `array`"),
        ('{"run_format": 2, "config": {"batch_size": 8}}', "run_format 2, expected 3"),
        ('{"run_format": 3, "config": {}}', "missing required field `paths` - at `$.config`"),
    ],
)
def test_refuses_a_damaged_config(run: Any, text: str, message: str) -> None:
    run.config.write_text(text)
    with pytest.raises(InputFormatError, match="damaged, or not written by this version") as error:
        run.read_config()
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def changed(value: Any, *path_and_new: Any) -> Any:
    """Return a JSON value with another one at a path."""
    if len(path_and_new) == 1:
        return path_and_new[0]
    first, *others = path_and_new
    return value | {first: changed(value.get(first), *others)}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("max_len",), "16", "Expected `int`, got `str` - at `$.max_len`"),
        (("labels", "second"), ["x", 1], "Expected `str`, got `int` - at `$.labels[...][1]`"),
        (("config", "learning", "epochs"), 0, "--epochs: expected 1 or more, got 0 - at `$.config.learning`"),
        (("config", "model", "pooling"), "mean", "Invalid enum value 'mean' - at `$.config.model.pooling`"),
        (("resolved", "batches"), 3, "Expected `object`, got `int` - at `$.resolved.batches`"),
        (("label_pairs",), None, "label_pairs does not say which labels occur together"),
    ],
)
def test_says_which_field_of_a_config_is_wrong(run: Any, path: tuple[str, ...], value: Any, message: str) -> None:
    run.config.write_text(json.dumps(changed(json.loads(run.config.read_text()), *path, value)))
    with pytest.raises(InputFormatError) as error:
        run.read_config()
    assert message in str(error.value)


def test_a_description_survives_its_file(run: Any) -> None:
    description = describe(loss_weights={"second": 0.5}, buckets=(4, 8), dropout=0.0, learning_rate=1 / 3)
    run.write_config(description)
    assert run.read_config() == description


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b'{"split": "test"}'])
def test_refuses_a_damaged_report(run: Any, content: bytes) -> None:
    run.report.write_bytes(content)
    with pytest.raises(InputFormatError, match=r"report\.json: damaged, or not written by this version"):
        run.read_report()


def test_no_run_to_read(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="no run here"):
        RunDir(tmp_path).read_config()
    with pytest.raises(MissingInputError, match="this run is not finished"):
        RunDir(tmp_path).read_report()


def test_clear_removes_all_but_the_lock(run: Any) -> None:
    run.best_weights(3).parent.mkdir()
    run.best_weights(3).write_text("weights")
    with run.locked():
        run.clear()
        assert [path.name for path in run.path.iterdir()] == [".lock"]


def test_whatever_clear_had_removed_when_it_was_killed_an_unfinished_run_is_left(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [run.vocab, run.report, run.states / "step-00000001", run.weights]
    for path in files:
        path.parent.mkdir(exist_ok=True)
        path.write_text("")
    for killed_after in range(10):
        removed: list[Path] = []

        def remove_or_die(path: Path, removed: list[Path] = removed, killed_after: int = killed_after) -> None:
            if len(removed) == killed_after:
                raise KeyboardInterrupt
            removed.append(path)
            remove(path)

        monkeypatch.setattr(run_dir, "remove", remove_or_die)
        try:
            run.clear()
        except KeyboardInterrupt:
            assert run.exists()
            assert killed_after == 0 or not run.report.exists()
        else:
            assert not run.exists()
            break
    assert killed_after == 4


def test_says_what_cannot_be_removed(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_dir, "remove", lambda path: None)
    run.vocab.touch()
    with pytest.raises(OutputWriteError, match=r"vocab\.txt: cannot remove what the last run wrote"):
        run.clear()
    assert run.exists()


def test_keeps_the_best_weights_alone(run: Any) -> None:
    run.best_weights(1).parent.mkdir()
    for epoch in (1, 2, 3):
        run.best_weights(epoch).write_text("weights")
    run.keep_best_weights({2, 3})
    assert sorted(path.name for path in run.best_weights(2).parent.iterdir()) == ["epoch-00002.npz", "epoch-00003.npz"]


TRIES_TO_LOCK = """
import sys
from pathlib import Path
from model.run.directory import RunDir
from pipeline.errors import OutputExistsError

try:
    with RunDir(Path(sys.argv[1])).locked():
        print("locked")
except OutputExistsError as error:
    print(error)
"""


def test_a_second_process_is_refused(run: Any) -> None:
    def try_to_lock() -> Any:
        command = [sys.executable, "-c", TRIES_TO_LOCK, str(run.path)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    with run.locked():
        assert "another process is training here" in try_to_lock()
    assert try_to_lock() == "locked\n"


def test_a_file_system_without_locks_is_no_obstacle(
    run: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(descriptor: Any, operation: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with run.locked():
        assert "no locks on this file system (No locks available)" in caplog.text


def test_configuration_is_written_for_people(run: Any) -> None:
    assert json.loads(run.config.read_text())["config"]["batches"]["batch_size"] == 8
    assert run.config.read_text().count("\n") > 20
