"""Whole runs on tiny data: what they leave behind, how they are continued, and where they refuse to go on."""

import contextlib
import csv
import dataclasses
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf

import model.loop
import model.trainer
from model import evaluate
from model.finished_run import check_same_labels, load_finished_run
from model.predictor import predict_split
from model.preemption import PreemptedError
from model.run_dir import RunDir
from model.trainer import train_and_evaluate
from model.training_state import list_states
from model.weights import read_arrays
from pipeline.errors import (
    CorruptShardError,
    InputFormatError,
    MissingInputError,
    NonFiniteLossError,
    OptionError,
    OutputExistsError,
    OutputWriteError,
    SchemaMismatchError,
)
from tests.model.runs import NUM_EXAMPLES, STEPS_PER_EPOCH, VOCAB, make_data_dir, make_inputs, tiny_config
from tests.tiny_dataset import tiny_examples, write_tiny_dataset

# In this process TensorFlow keeps its kernels' freedom: it could not be given back to other tests.
IN_PROCESS = {"deterministic": "off"}
RESULT_FILES = ("metrics.csv", "weights.npz", "bert/bert_model.ckpt.data-00000-of-00001", "bert/vocab.txt")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return make_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory):
    """A run that nothing interrupted, with dropout on."""
    run = tmp_path_factory.mktemp("finished") / "run"
    config = tiny_config(**inputs, **IN_PROCESS, output_dir=str(run), epochs=6)
    return config, run, train_and_evaluate(config)


@pytest.fixture(scope="module")
def undisturbed(inputs, tmp_path_factory):
    """A short run that nothing interrupted, with dropout on."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    config = tiny_config(**inputs, **IN_PROCESS, output_dir=str(run))
    return config, run, train_and_evaluate(config)


def result_bytes(run):
    return {name: (run / name).read_bytes() for name in RESULT_FILES}


def same_results(run, other):
    return [name for name in RESULT_FILES if (run / name).read_bytes() != (other / name).read_bytes()] == []


def test_learns(finished):
    _, _, report = finished
    assert report["split"] == "test"
    assert report["num_examples"] == NUM_EXAMPLES["test"]
    assert report["heads"]["category"]["accuracy"] > 0.8
    assert report["exact_match"] <= min(head["accuracy"] for head in report["heads"].values())


def test_leaves_what_one_needs(finished):
    config, run, report = finished
    assert json.loads((run / "report.json").read_text()) == report
    page = (run / "report.html").read_text()
    assert f"{report['exact_match']:.2%}" in page
    assert page.count("<svg") == 4  # curves, lengths, and each head's calibration
    description = json.loads((run / "config.json").read_text())
    assert description["config"] == config.describe()
    assert description["resolved"] == {
        "precision": "float32",
        "xla": False,
        "deterministic": False,
        "strategy": "one_device",
        "num_replicas": 1,
        "num_workers": 1,
        "bucket_lengths": [4, 7, 9, 12, 14, 16],
        "bucket_rows": [8] * 6,
        "steps_per_epoch": STEPS_PER_EPOCH,
    }
    assert description["labels"] == {"category": ["a", "b", "c"], "second": ["x", "y"]}
    assert description["label_pairs"] == {"a": ["x"], "b": ["x"], "c": ["y"]}
    assert description["max_len"] == 16
    with (run / "metrics.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [int(row["step"]) for row in rows] == [STEPS_PER_EPOCH * epoch for epoch in range(1, 7)]
    best = max(rows, key=lambda row: float(row["val_accuracy_mean"]))
    assert (int(best["epoch"]), float(best["val_accuracy_mean"])) == (
        report["best_epoch"],
        pytest.approx(report["best_value"]),
    )
    assert [path.name for path in list_states(run / "state")] == ["step-00000064", "step-00000066-epoch-006"]
    kept = {1 + int(np.argmax([float(row["val_accuracy_mean"]) for row in rows[:seen]])) for seen in (5, 6)}
    assert {path.name for path in (run / "best").iterdir()} == {f"epoch-{epoch:05d}.npz" for epoch in kept}
    assert list((run / "tensorboard").iterdir())
    assert [path.name for path in run.rglob("*.tmp")] == []


def test_logs_scalars_by_step(finished):
    _, run, _ = finished
    steps = {}
    for path in (run / "tensorboard").iterdir():
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                steps.setdefault(value.tag, []).append(event.step)
                assert np.isfinite(tf.make_ndarray(value.tensor))
    assert steps["train/category_loss"] == list(range(5, 67, 5))
    assert steps["val/second_accuracy"] == [11, 22, 33, 44, 55, 66]
    assert {"train/learning_rate", "train/gradient_norm", "train/tokens_per_second"} <= steps.keys()


def test_can_be_measured_again_from_its_directory(finished, capsys):
    config, run, report = finished
    assert evaluate.main(["--run", str(run)]) == 0
    assert capsys.readouterr().out == evaluate.result_table(report) + "\n"
    again = json.loads((run / "evaluation" / "test" / "report.json").read_text())
    assert again.pop("evaluate_seconds") > 0
    assert again == {name: value for name, value in report.items() if name != "evaluate_seconds"}
    loaded = load_finished_run(str(run))
    dev = predict_split(loaded.model, config.data_dir, "dev", heads=["category"], batch_size=7)
    assert dev.labels["category"].shape == (NUM_EXAMPLES["dev"],)
    np.testing.assert_allclose(dev.probabilities["category"].sum(axis=1), 1.0, rtol=1e-5)
    accuracy = (dev.probabilities["category"].argmax(axis=1) == dev.labels["category"]).mean()
    with (run / "metrics.csv").open(newline="") as stream:
        row = list(csv.DictReader(stream))[report["best_epoch"] - 1]
    assert accuracy == pytest.approx(float(row["val_category_accuracy"]))


def test_measuring_refuses_what_it_was_not_trained_on(finished, tmp_path):
    _, run, _ = finished
    loaded = load_finished_run(str(run))
    labels = (("a", "b", "other"), ("x", "y"))
    write_tiny_dataset(tmp_path / "labels", {"test": tiny_examples([5])}, max_len=16, labels=labels, vocab=VOCAB)
    with pytest.raises(SchemaMismatchError, match="its category labels are a, b, other"):
        check_same_labels(loaded, str(tmp_path / "labels"))
    write_tiny_dataset(tmp_path / "vocab", {"test": tiny_examples([5])}, max_len=16, vocab=VOCAB[:-1])
    with pytest.raises(SchemaMismatchError, match="made with another vocabulary"):
        check_same_labels(loaded, str(tmp_path / "vocab"))
    with pytest.raises(MissingInputError, match="no run here"):
        load_finished_run(str(tmp_path))


def test_a_finished_run_is_left_alone(finished):
    config, run, _ = finished
    before = result_bytes(run)
    with pytest.raises(OutputExistsError, match="this run is finished"):
        train_and_evaluate(config)
    assert result_bytes(run) == before


def test_interruptions_do_not_change_the_result(undisturbed, tmp_path, monkeypatch):
    config, run, report = undisturbed
    config = dataclasses.replace(config, output_dir=str(tmp_path / "run"))
    handler = signal.getsignal(signal.SIGTERM)

    def interrupt_after(method, step, signal_number):
        real = getattr(model.loop.TrainingLoop, method)

        def call_and_interrupt(loop, *arguments):
            result = real(loop, *arguments)
            if loop.progress.step == step:
                signal.raise_signal(signal_number)
            return result

        with monkeypatch.context() as patched:
            patched.setattr(model.loop.TrainingLoop, method, call_and_interrupt)
            train_and_evaluate(config)

    # SIGTERM inside an epoch, after its last step, after the last epoch; an interrupt from the keyboard saves nothing.
    for method, step, signal_number, state in (
        ("_step", 7, signal.SIGTERM, "step-00000007"),
        ("_step", 9, signal.SIGINT, "step-00000008"),
        ("_step", 11, signal.SIGTERM, "step-00000011"),
        ("_validate", 11, signal.SIGINT, "step-00000011"),
        ("_finish_epoch", 22, signal.SIGTERM, "step-00000022-epoch-002"),
    ):
        with pytest.raises((PreemptedError, KeyboardInterrupt)) as raised:
            interrupt_after(method, step, signal_number)
        if signal_number == signal.SIGTERM:
            assert str(raised.value).startswith("stopped by SIGTERM")
        assert list_states(tmp_path / "run" / "state")[-1].name == state
    assert not (tmp_path / "run" / "report.json").exists()
    again = train_and_evaluate(config)
    assert same_results(run, tmp_path / "run")
    for name in ("heads", "best_value", "steps"):
        assert again[name] == report[name]
    assert signal.getsignal(signal.SIGTERM) == handler


def test_a_full_disk_ends_the_run_and_keeps_the_state(inputs, tmp_path, monkeypatch):
    config = tiny_config(**inputs, **IN_PROCESS, output_dir=str(tmp_path), epochs=1)
    real_save = model.loop.save_state

    def save_twice(*arguments, **options):
        if len(list_states(tmp_path / "state")) == 2:
            raise OutputWriteError("state: cannot write: No space left on device")
        return real_save(*arguments, **options)

    monkeypatch.setattr(model.loop, "save_state", save_twice)
    with pytest.raises(OutputWriteError, match="No space left"):
        train_and_evaluate(config)
    assert [path.name for path in list_states(tmp_path / "state")] == ["step-00000004", "step-00000008"]
    with pytest.raises(OutputExistsError, match="started with other options"):
        train_and_evaluate(dataclasses.replace(config, seed=1))
    monkeypatch.undo()
    assert train_and_evaluate(config)["steps"] == STEPS_PER_EPOCH


def test_restart_starts_over(inputs, tmp_path):
    config = tiny_config(**inputs, **IN_PROCESS, output_dir=str(tmp_path), epochs=1, limit_steps=3)
    report = train_and_evaluate(config)
    assert (report["steps"], report["epochs"]) == (3, 1)
    restarted = dataclasses.replace(config, heads=("second",), restart=True, pooling="max")
    report = train_and_evaluate(restarted)
    assert list(report["heads"]) == ["second"]
    assert report["exact_match"] == report["heads"]["second"]["accuracy"]
    names = [name for name, _ in read_arrays(tmp_path / "weights.npz")]
    assert "second_logits/kernel" in names
    assert "category_logits/kernel" not in names


def test_a_loss_that_is_no_number_stops_with_head_step_and_state(inputs, tmp_path, monkeypatch):
    config = tiny_config(**inputs, **IN_PROCESS, output_dir=str(tmp_path))
    real_step = model.loop.TrainingLoop._step

    def spoil_weights(loop, batches):
        if loop.progress.step == 6:
            loop.model.get_layer("second_logits").bias.assign([np.nan, np.nan])
        real_step(loop, batches)

    monkeypatch.setattr(model.loop.TrainingLoop, "_step", spoil_weights)
    with pytest.raises(NonFiniteLossError, match="the loss of head 'second' is nan at step 7") as error:
        train_and_evaluate(config)
    assert (error.value.head, error.value.step) == ("second", 7)
    assert str(tmp_path / "state" / "step-00000004") in str(error.value)


def test_float16_leaves_out_what_overflows_and_stops_where_everything_does(inputs, tmp_path, monkeypatch, caplog):
    config = tiny_config(**inputs, **IN_PROCESS, output_dir=str(tmp_path), epochs=4)
    real_step = model.loop.TrainingLoop._step

    def large_gradients_after_an_epoch(loop, batches):
        if loop.progress.step == STEPS_PER_EPOCH:
            kernel = loop.model.get_layer("second_logits").kernel
            kernel.assign(kernel * 1e8)
        real_step(loop, batches)

    # A CPU computes in float16 too, only slowly.
    monkeypatch.setattr(model.trainer, "resolve_policy", lambda *_: "mixed_float16")
    monkeypatch.setattr(model.optimizer, "FIRST_LOSS_SCALE", 2.0**24)
    monkeypatch.setattr(model.loop.TrainingLoop, "_step", large_gradients_after_an_epoch)
    with pytest.raises(NonFiniteLossError, match=r"the gradient's norm is (inf|nan) at step") as error:
        train_and_evaluate(config)
    assert error.value.step > STEPS_PER_EPOCH + 10
    assert any(re.fullmatch(r"\d of 11 updates were left out so far: float16 overflowed", m) for m in caplog.messages)


def test_a_batch_beyond_memory_is_one_line(inputs, tmp_path, monkeypatch):
    def train_step(*arguments):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor with shape[8,512,3072]")

    monkeypatch.setattr(model.trainer, "make_train_step", lambda *_, **__: train_step)
    with pytest.raises(
        OptionError, match="use a smaller --batch_tokens, or a larger --accumulate_steps, with --restart"
    ):
        train_and_evaluate(tiny_config(**inputs, **IN_PROCESS, output_dir=str(tmp_path), batch_tokens=64))


def damage(data_dir, split):
    shard = data_dir / f"{split}-00001-of-00002.tfrecord"
    data = bytearray(shard.read_bytes())
    data[-20] ^= 1
    shard.write_bytes(data)
    return shard


def test_a_damaged_shard_is_named(inputs, finished, tmp_path):
    data_dir = make_data_dir(tmp_path / "data")
    shards = {split: damage(data_dir, split) for split in ("train", "test")}
    options = inputs | {"data_dir": str(data_dir), "output_dir": str(tmp_path / "run")}
    with pytest.raises(CorruptShardError) as error:
        train_and_evaluate(tiny_config(**options, **IN_PROCESS))
    assert error.value.path == str(shards["train"])
    loaded = load_finished_run(str(finished[1]))
    with pytest.raises(CorruptShardError) as error:
        predict_split(loaded.model, str(data_dir), "test", heads=["second"])
    assert error.value.path == str(shards["test"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "float16"}, "--precision float16: this CPU would emulate it"),
        ({"strategy": "mirrored"}, "TensorFlow sees no GPU"),
        ({"buckets": (8, 32)}, "bucket length 32 is larger than max_len 16"),
        ({"batch_tokens": 8}, "batch_tokens 8 is less than one example of 9 positions"),
    ],
)
def test_refused_options_leave_no_directory(inputs, tmp_path, options, message):
    with pytest.raises(OptionError, match=message):
        train_and_evaluate(tiny_config(**inputs, **IN_PROCESS, output_dir=str(tmp_path / "run"), **options))
    assert not (tmp_path / "run").exists()


def test_what_fails_before_the_first_step_may_be_corrected(inputs, tmp_path, monkeypatch):
    config = tiny_config(**inputs, **IN_PROCESS, output_dir=str(tmp_path / "run"), epochs=1, limit_steps=1)
    run = RunDir(tmp_path / "run")
    damaged = shutil.copytree(inputs["bert_dir"], tmp_path / "bert")
    (damaged / "bert_model.ckpt.data-00000-of-00001").write_bytes(b"")
    with pytest.raises(InputFormatError, match="the checkpoint is damaged"):
        train_and_evaluate(dataclasses.replace(config, bert_dir=str(damaged), seed=1))
    assert not run.exists()

    def no_space(source, copy):
        raise OutputWriteError(f"{copy}: cannot write: No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(model.trainer, "copy_file", no_space)
        with pytest.raises(OutputWriteError, match="No space left"):
            train_and_evaluate(config)
    assert run.exists()
    run.weights.with_name(".weights.npz.1234abcd.tmp").touch()
    (run.path / ".bert.1234abcd.tmp").mkdir()
    assert train_and_evaluate(config)["steps"] == 1
    assert run.vocab.read_bytes() == (damaged / "vocab.txt").read_bytes()
    assert [path.name for path in run.path.rglob("*.tmp")] == []


def test_early_stopping_and_dev_report(inputs, tmp_path):
    data_dir = make_data_dir(tmp_path / "data", ("train", "dev"))
    # A rate at which nothing moves: no epoch is better than the first.
    options = inputs | {"data_dir": str(data_dir), "output_dir": str(tmp_path / "run")}
    config = tiny_config(**options, **IN_PROCESS, learning_rate=1e-12, epochs=9, early_stopping_patience=2)
    report = train_and_evaluate(config)
    assert (report["epochs"], report["best_epoch"], report["early_stopped"]) == (3, 1, True)
    assert (report["split"], report["num_examples"]) == ("dev", NUM_EXAMPLES["dev"])


def test_the_report_is_of_the_model_that_is_used_afterwards(inputs, tmp_path):
    """Trained in bfloat16, served in float32; and to the planned end, though nothing gets better."""
    options = {"precision": "bfloat16", "epochs": 2, "learning_rate": 1e-12, "early_stopping_patience": 1}
    report = train_and_evaluate(tiny_config(**inputs, **IN_PROCESS, output_dir=str(tmp_path), **options))
    assert (report["epochs"], report["best_epoch"], report["early_stopped"]) == (2, 1, False)
    assert evaluate.main(["--run", str(tmp_path)]) == 0
    again = json.loads((tmp_path / "evaluation" / "test" / "report.json").read_text())
    assert again["heads"] == report["heads"]


TRAIN_IN_PROCESS = """
import json, sys
from model.trainer import train_and_evaluate
from tests.model.runs import tiny_config
for options in json.loads(sys.argv[1]):
    train_and_evaluate(tiny_config(**options))
"""


def start_training(*runs, **environment):
    """Start a process that trains runs one after another."""
    command = [sys.executable, "-c", TRAIN_IN_PROCESS, json.dumps(runs)]
    clean = {name: value for name, value in os.environ.items() if name != "TF_CONFIG"}
    return subprocess.Popen(command, env=clean | environment, stderr=subprocess.PIPE, text=True)


def wait_for(*processes):
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors


def assert_equal_within_rounding(run, other):
    found, expected = dict(read_arrays(run / "weights.npz")), dict(read_arrays(other / "weights.npz"))
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        # Adam divides by the root of tiny second moments, which multiplies rounding where a gradient is nearly 0.
        np.testing.assert_allclose(found[name], array, atol=2e-4, err_msg=name)


def test_replicas_do_not_change_the_result(inputs, tmp_path):
    common = inputs | {"dropout": 0.0, "limit_steps": 20, "eval_batch_size": 5}
    one = common | {"output_dir": str(tmp_path / "one"), "strategy": "one_device"}
    two = common | {"output_dir": str(tmp_path / "two"), "strategy": "mirrored", "cpu_replicas": 2}
    # Two devices first: they can only be made before TensorFlow starts.
    wait_for(start_training(two, one))
    assert_equal_within_rounding(tmp_path / "two", tmp_path / "one")
    with (tmp_path / "one" / "metrics.csv").open() as one, (tmp_path / "two" / "metrics.csv").open() as two:
        for row, other in zip(csv.DictReader(one), csv.DictReader(two), strict=True):
            assert {key: float(value) for key, value in row.items()} == {
                key: pytest.approx(float(value), abs=1e-4) for key, value in other.items()
            }


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"precision": "bfloat16", "accumulate_steps": 2, "strategy": "mirrored", "cpu_replicas": 2},
        {"encoder": "keras_bert", "optimizer": "adam", "clip_norm": 0.0, "buckets": "off", "batch_size": 4},
        {"xla": "on", "buckets": "off", "pooling": "max", "schedule": "linear", "limit_steps": 15},
        {"batch_tokens": 64, "buckets": (8, 12), "max_len": 12, "label_smoothing": (("second", 0.1),)},
        {"balance_classes": ("second",), "monitor": "loss", "loss_weights": (("second", 0.5),), "warmup": 0.1},
    ],
)
def test_other_options_train_too(inputs, tmp_path, options):
    wait_for(start_training(inputs | {"output_dir": str(tmp_path), "epochs": 4} | options))
    with (tmp_path / "metrics.csv").open(newline="") as stream:
        losses = [float(row["loss"]) for row in csv.DictReader(stream)]
    assert losses[-1] < losses[0]
    assert (tmp_path / "report.json").exists()


def free_address():
    """Return an address nobody has, below the ports that the system gives to whoever asks for any."""
    while True:
        address = ("127.0.0.1", random.randrange(10_000, 30_000))
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(address)
            return f"{address[0]}:{address[1]}"


def start_workers(run, number=2):
    """Start the processes of a cluster on loopback addresses."""
    addresses = [free_address() for _ in range(number)]
    tasks = [{"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}} for index in range(number)]
    return [start_training(run | {"strategy": "multi_worker"}, TF_CONFIG=json.dumps(task)) for task in tasks]


@pytest.mark.slow
def test_two_workers_do_not_change_the_result(inputs, tmp_path):
    common = inputs | {"dropout": 0.0, "limit_steps": 20, "monitor": "loss"}
    workers = start_workers(common | {"output_dir": str(tmp_path / "workers")})
    alone = start_training(common | {"output_dir": str(tmp_path / "alone"), "strategy": "one_device"})
    wait_for(*workers, alone)
    assert_equal_within_rounding(tmp_path / "workers", tmp_path / "alone")
    # The best weights were written at the very end, by one of them alone.
    report = json.loads((tmp_path / "workers" / "report.json").read_text())
    assert report["best_epoch"] == report["epochs"] == 2


def wait_for_a_state(workers, states):
    while not states.is_dir() or not list_states(states):
        assert all(worker.poll() is None for worker in workers)
        time.sleep(0.002)


@pytest.mark.slow
@pytest.mark.parametrize("asked", [0, 1])
def test_one_worker_is_asked_to_stop_and_all_do_with_the_state_saved(inputs, tmp_path, asked):
    run = inputs | {"epochs": 40, "limit_steps": 200, "save_every": 4, "output_dir": str(tmp_path)}
    workers = start_workers(run)
    wait_for_a_state(workers, tmp_path / "state")
    workers[asked].terminate()
    said = [worker.communicate(timeout=120)[1].splitlines()[-1] for worker in workers]
    step = re.search(r"stopped by SIGTERM after step (\d+); the state is saved", said[0])[1]
    assert said[1] == said[0]
    assert list_states(tmp_path / "state")[-1].name.startswith(f"step-{int(step):08d}")
    assert not list((tmp_path / "state").glob("*.tmp"))


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_worker_ends_the_others_and_all_continue_from_the_last_state(inputs, tmp_path, victim):
    """As Slurm and Kubernetes do it: one process gone ends the job, and the same command starts all of them again."""
    run = inputs | {
        "dropout": 0.0,
        "epochs": 40,
        "limit_steps": 60,
        "save_every": 4,
        "output_dir": str(tmp_path / "workers"),
    }
    workers = start_workers(run)
    states = tmp_path / "workers" / "state"
    wait_for_a_state(workers, states)
    workers[victim].kill()
    _, errors = workers[1 - victim].communicate(timeout=120)
    assert workers[1 - victim].returncode not in (0, None), errors
    assert "WorkerDiedError: another worker has ended" in errors.splitlines()[-1]
    workers[victim].communicate()
    assert not (tmp_path / "workers" / "report.json").exists()
    reached = int(list_states(states)[-1].name.split("-")[1])
    assert 0 < reached < 60
    wait_for(*start_workers(run))
    alone = inputs | {"dropout": 0.0, "epochs": 40, "limit_steps": 60, "output_dir": str(tmp_path / "alone")}
    wait_for(start_training(alone | {"strategy": "one_device"}))
    assert_equal_within_rounding(tmp_path / "workers", tmp_path / "alone")
