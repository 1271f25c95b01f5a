"""Whole runs on tiny data: what they leave behind, how they are continued, and where they refuse to go on."""

import collections
import contextlib
import csv
import dataclasses
import itertools
import json
import logging
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import model.trainer
import model.training.loop
import model.training.optimizer
from model import evaluate
from model.config import spell
from model.run.description import ResolvedBatches
from model.run.directory import RunDir
from model.run.finished import check_same_tokenizer, load_finished_run
from model.run.weights import read_arrays
from model.serving.predictor import predict_split
from model.trainer import train_and_evaluate
from model.training.loop import TrainingLoop
from model.training.preemption import PreemptedError
from model.training.training_state import list_states
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
from tests.support.runs import (
    IN_PROCESS,
    NUM_EXAMPLES,
    RESOLVED,
    STEPS_PER_EPOCH,
    VOCAB,
    assert_same_results,
    interrupt_after,
    learnable_examples,
    make_data_dir,
    make_inputs,
    result_bytes,
    tiny_config,
    with_options,
)
from tests.support.search import first_group
from tests.support.tiny_dataset import tiny_examples, write_tiny_dataset


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def finished(inputs: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    """A run that nothing interrupted, with dropout on."""
    run = tmp_path_factory.mktemp("finished") / "run"
    config = tiny_config(**inputs, **IN_PROCESS, output_dir=str(run), epochs=6)
    return config, run, train_and_evaluate(config)


@pytest.fixture(scope="module")
def undisturbed(inputs: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    """A short run that nothing interrupted, with dropout on."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    config = tiny_config(**inputs, **IN_PROCESS, output_dir=str(run))
    return config, run, train_and_evaluate(config)


def test_learns(finished: Any) -> None:
    _, _, report = finished
    assert report.evaluation.split == "test"
    assert report.evaluation.num_examples == NUM_EXAMPLES["test"]
    assert report.evaluation.heads["category"].accuracy > 0.8
    assert report.evaluation.exact_match <= min(head.accuracy for head in report.evaluation.heads.values())


def test_leaves_what_one_needs(finished: Any) -> None:
    config, run, report = finished
    assert RunDir(run).read_report() == report
    page = (run / "report.html").read_text()
    assert f"{report.evaluation.exact_match:.2%}" in page
    assert page.count("<svg") == 4  # curves, lengths, and each head's calibration
    description = RunDir(run).read_config()
    assert description.config == config
    batches = ResolvedBatches(
        bucket_lengths=(4, 7, 9, 12, 14, 16), bucket_rows=(8,) * 6, steps_per_epoch=STEPS_PER_EPOCH
    )
    assert description.resolved == dataclasses.replace(RESOLVED, batches=batches)
    assert description.labels == {"category": ("a", "b", "c"), "second": ("x", "y")}
    assert description.label_pairs == {"a": ("x",), "b": ("x",), "c": ("y",)}
    assert description.max_len == 16
    with (run / "metrics.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [int(row["step"]) for row in rows] == [STEPS_PER_EPOCH * epoch for epoch in range(1, 7)]
    best = max(rows, key=lambda row: float(row["val_accuracy_mean"]))
    assert (int(best["epoch"]), float(best["val_accuracy_mean"])) == (
        report.training.best_epoch,
        pytest.approx(report.training.best_value),
    )
    assert [path.name for path in list_states(run / "state")] == ["step-00000064", "step-00000066-epoch-006"]
    kept = {1 + int(np.argmax([float(row["val_accuracy_mean"]) for row in rows[:seen]])) for seen in (5, 6)}
    assert {path.name for path in (run / "best").iterdir()} == {f"epoch-{epoch:05d}.npz" for epoch in kept}
    assert list((run / "tensorboard").iterdir())
    assert [path.name for path in run.rglob("*.tmp")] == []


def test_logs_scalars_by_step(finished: Any) -> None:
    _, run, _ = finished
    steps: dict[str, list[int]] = {}
    for path in (run / "tensorboard").iterdir():
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                steps.setdefault(value.tag, []).append(event.step)
                assert np.isfinite(tf.make_ndarray(value.tensor))
    assert steps["train/category_loss"] == list(range(5, 67, 5))
    assert steps["val/second_accuracy"] == [11, 22, 33, 44, 55, 66]
    assert {"train/learning_rate", "train/gradient_norm", "train/tokens_per_second"} <= steps.keys()


def test_can_be_measured_again_from_its_directory(finished: Any, capsys: pytest.CaptureFixture[str]) -> None:
    config, run, report = finished
    assert evaluate.main(["--run", str(run)]) == 0
    assert capsys.readouterr().out == evaluate.result_table(report.evaluation) + "\n"
    again = RunDir(run / "evaluation" / "test").read_report()
    assert again.evaluation.seconds > 0
    assert again.training == report.training
    assert dataclasses.replace(again.evaluation, seconds=report.evaluation.seconds) == report.evaluation
    loaded = load_finished_run(str(run))
    dev = predict_split(loaded.model, config.paths.data_dir, "dev", heads=["category"], batch_size=7)
    assert dev.labels["category"].shape == (NUM_EXAMPLES["dev"],)
    np.testing.assert_allclose(dev.probabilities["category"].sum(axis=1), 1.0, rtol=1e-5)
    accuracy = (dev.probabilities["category"].argmax(axis=1) == dev.labels["category"]).mean()
    with (run / "metrics.csv").open(newline="") as stream:
        row = list(csv.DictReader(stream))[report.training.best_epoch - 1]
    assert accuracy == pytest.approx(float(row["val_category_accuracy"]))


def test_measuring_refuses_what_it_was_not_trained_on(finished: Any, tmp_path: Path) -> None:
    _, run, _ = finished
    loaded = load_finished_run(str(run))
    write_tiny_dataset(tmp_path / "vocab", {"test": tiny_examples([5])}, max_len=16, vocab=VOCAB[:-1])
    with pytest.raises(SchemaMismatchError, match="made with another vocabulary"):
        check_same_tokenizer(loaded, str(tmp_path / "vocab"))
    with pytest.raises(MissingInputError, match="no run here"):
        load_finished_run(str(tmp_path))


def test_a_finished_run_is_left_alone(finished: Any) -> None:
    config, run, _ = finished
    before = result_bytes(run)
    with pytest.raises(OutputExistsError, match="this run is finished"):
        train_and_evaluate(config)
    assert result_bytes(run) == before


@contextlib.contextmanager
def interruption(method: Any, *, step: int, signal_number: Any) -> Iterator[Any]:
    """Send this process a signal after a method of the loop, once a training has done that many steps."""
    real = getattr(TrainingLoop, method)

    def call_and_interrupt(loop: Any, *arguments: Any) -> Any:
        result = real(loop, *arguments)
        if loop.progress.step == step:
            signal.raise_signal(signal_number)
        return result

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(TrainingLoop, method, call_and_interrupt)
        yield


def test_interruptions_do_not_change_the_result(undisturbed: Any, tmp_path: Path) -> None:
    config, run, report = undisturbed
    config = with_options(config, output_dir=str(tmp_path / "run"))
    handler = signal.getsignal(signal.SIGTERM)

    # SIGTERM inside an epoch, after its last step, after the last epoch; an interrupt from the keyboard saves nothing.
    for method, step, signal_number, state in (
        ("_step", 7, signal.SIGTERM, "step-00000007"),
        ("_step", 9, signal.SIGINT, "step-00000008"),
        ("_step", 11, signal.SIGTERM, "step-00000011"),
        ("_validate", 11, signal.SIGINT, "step-00000011"),
        ("_finish_epoch", 22, signal.SIGTERM, "step-00000022-epoch-002"),
    ):
        with (
            interruption(method, step=step, signal_number=signal_number),
            pytest.raises((PreemptedError, KeyboardInterrupt)) as raised,
        ):
            train_and_evaluate(config)
        if signal_number == signal.SIGTERM:
            assert str(raised.value).startswith("stopped by SIGTERM")
        assert list_states(tmp_path / "run" / "state")[-1].name == state
    assert not (tmp_path / "run" / "report.json").exists()
    again = train_and_evaluate(config)
    assert_same_results(tmp_path / "run", run)
    assert again.evaluation.heads == report.evaluation.heads
    assert (again.training.best_value, again.training.steps) == (report.training.best_value, report.training.steps)
    assert signal.getsignal(signal.SIGTERM) == handler


def test_a_full_disk_ends_the_run_and_keeps_the_state(
    inputs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(**inputs, **IN_PROCESS, output_dir=str(tmp_path), epochs=1)
    real_save = model.training.loop.save_state

    def save_twice(*arguments: Any, **options: Any) -> Any:
        if len(list_states(tmp_path / "state")) == 2:
            raise OutputWriteError("state: cannot write: No space left on device")
        return real_save(*arguments, **options)

    monkeypatch.setattr(model.training.loop, "save_state", save_twice)
    with pytest.raises(OutputWriteError, match="No space left"):
        train_and_evaluate(config)
    assert [path.name for path in list_states(tmp_path / "state")] == ["step-00000004", "step-00000008"]
    with pytest.raises(OutputExistsError, match="started with other options"):
        train_and_evaluate(with_options(config, seed=1))
    monkeypatch.undo()
    assert train_and_evaluate(config).training.steps == STEPS_PER_EPOCH


def test_restart_starts_over(inputs: Any, tmp_path: Path) -> None:
    config = tiny_config(**inputs, **IN_PROCESS, output_dir=str(tmp_path), epochs=1, limit_steps=3)
    report = train_and_evaluate(config)
    assert (report.training.steps, report.training.epochs) == (3, 1)
    restarted = with_options(config, heads=("second",), restart=True, pooling="max")
    report = train_and_evaluate(restarted)
    assert list(report.evaluation.heads) == ["second"]
    assert report.evaluation.exact_match == report.evaluation.heads["second"].accuracy
    names = [name for name, _ in read_arrays(tmp_path / "weights.npz")]
    assert "second_logits/kernel" in names
    assert "category_logits/kernel" not in names


def test_the_state_of_another_run_is_refused(inputs: Any, tmp_path: Path) -> None:
    own = tiny_config(**inputs, **IN_PROCESS, output_dir=str(tmp_path / "own"))
    foreign = with_options(own, output_dir=str(tmp_path / "foreign"), seed=1)
    for config in (own, foreign):
        with pytest.raises(PreemptedError):
            train_and_evaluate(config, on_step=interrupt_after(2))
    shutil.rmtree(tmp_path / "own" / "state")
    shutil.copytree(tmp_path / "foreign" / "state", tmp_path / "own" / "state")
    with pytest.raises(SchemaMismatchError, match=r"own/state/step-00000002/state.json: the state of another run"):
        train_and_evaluate(own)
    # A state may move with its whole run.
    (tmp_path / "foreign").rename(tmp_path / "moved")
    with pytest.raises(PreemptedError):
        train_and_evaluate(with_options(foreign, output_dir=str(tmp_path / "moved")), on_step=interrupt_after(3))
    assert list_states(tmp_path / "moved" / "state")[-1].name == "step-00000003"


def test_a_loss_that_is_no_number_stops_with_head_step_and_state(inputs: Any, tmp_path: Path) -> None:
    config = tiny_config(**inputs, **IN_PROCESS, output_dir=str(tmp_path), max_skipped_steps=0)

    def spoil_weights(loop: Any) -> None:
        if loop.progress.step == 6:
            loop.model.get_layer("second_logits").bias.assign([np.nan, np.nan])

    with pytest.raises(NonFiniteLossError, match="the loss of head 'second' is nan at step 7") as error:
        train_and_evaluate(config, on_step=spoil_weights)
    assert (error.value.head, error.value.step) == ("second", 7)
    assert str(tmp_path / "state" / "step-00000004") in str(error.value)


def test_a_batch_without_a_finite_loss_is_left_out_and_counted(
    inputs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Continuing meets the same batch again: it must neither end the run for good, nor count in any mean."""
    real_make_train_step = model.trainer.make_train_step
    steps: list[int] = []

    def make_train_step(*arguments: Any, **options: Any) -> Any:
        step = real_make_train_step(*arguments, **options)

        def step_fn(batch: Any, number: Any, learning_rate: Any, stop: Any) -> Any:
            weights = batch[2] * np.nan if int(number) in bad_steps and steps else batch[2]
            steps.append(int(number))
            return step((*batch[:2], weights), number, learning_rate, stop)

        return step_fn

    monkeypatch.setattr(model.trainer, "make_train_step", make_train_step)
    config = tiny_config(**inputs, **IN_PROCESS, output_dir=str(tmp_path / "run"), max_skipped_steps=2, epochs=1)
    bad_steps = {3, 5, 6, 7}
    with pytest.raises(NonFiniteLossError, match="the loss of head 'category' is nan at step 8") as error:
        train_and_evaluate(config)
    assert error.value.step == 8
    # The fault may be looked at, and the run go on; what was left out before is still left out.
    with pytest.raises(NonFiniteLossError, match="is nan at step 8"):
        train_and_evaluate(config)
    train_and_evaluate(with_options(config, max_skipped_steps=3))
    assert "4 of 11 updates were left out so far: their gradients were not finite" in caplog.messages
    assert sum("its update is left out" in message for message in caplog.messages) >= 8
    state = dict(read_arrays(list_states(tmp_path / "run" / "state")[-1] / "arrays.npz"))
    assert int(state["num_updates"]) == STEPS_PER_EPOCH - 4
    with (tmp_path / "run" / "metrics.csv").open(newline="") as stream:
        assert all(np.isfinite(float(value)) for row in csv.DictReader(stream) for value in row.values())


def test_float16_goes_on_after_overflows_and_after_an_interruption(
    inputs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first_scale = 2.0**24  # too much for some steps
    monkeypatch.setattr(model.trainer, "resolve_policy", lambda config, devices: "mixed_float16")
    monkeypatch.setattr(model.training.optimizer, "FIRST_LOSS_SCALE", first_scale)
    config = tiny_config(**inputs, **IN_PROCESS, output_dir=str(tmp_path), limit_steps=STEPS_PER_EPOCH)
    with pytest.raises(PreemptedError):
        train_and_evaluate(config, on_step=interrupt_after(3))
    assert train_and_evaluate(config).training.steps == STEPS_PER_EPOCH
    state = dict(read_arrays(list_states(tmp_path / "state")[-1] / "arrays.npz"))
    num_updates = int(state["num_updates"])
    assert 0 < num_updates < STEPS_PER_EPOCH
    assert state["loss_scale"] == first_scale / 2 ** (STEPS_PER_EPOCH - num_updates)
    assert state["num_good_updates"] == num_updates


def test_float16_leaves_out_what_overflows_and_stops_where_everything_does(
    inputs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny_config(**inputs, **IN_PROCESS, output_dir=str(tmp_path), epochs=4)

    def large_gradients_after_an_epoch(loop: Any) -> None:
        if loop.progress.step == STEPS_PER_EPOCH + 1:
            kernel = loop.model.get_layer("second_logits").kernel
            kernel.assign(kernel * 1e8)

    # A CPU computes in float16 too, only slowly.
    monkeypatch.setattr(model.trainer, "resolve_policy", lambda *_: "mixed_float16")
    monkeypatch.setattr(model.training.optimizer, "FIRST_LOSS_SCALE", 2.0**24)
    with pytest.raises(NonFiniteLossError, match=r"the gradient's norm is (inf|nan) at step") as error:
        train_and_evaluate(config, on_step=large_gradients_after_an_epoch)
    assert error.value.step > STEPS_PER_EPOCH + 10
    assert any(
        re.fullmatch(r"\d of 11 updates were left out so far: their gradients were not finite", m)
        for m in caplog.messages
    )


def test_a_batch_beyond_memory_is_one_line(inputs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train_step(*arguments: Any) -> None:
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor with shape[8,512,3072]")

    monkeypatch.setattr(model.trainer, "make_train_step", lambda *_, **__: train_step)
    with pytest.raises(
        OptionError, match="use a larger --accumulate_steps, with which the run continues, or a smaller --batch_tokens"
    ):
        train_and_evaluate(tiny_config(**inputs, **IN_PROCESS, output_dir=str(tmp_path), batch_tokens=64))


def damage(data_dir: Path, split: Any) -> Any:
    shard = data_dir / f"{split}-00001-of-00002.tfrecord"
    data = bytearray(shard.read_bytes())
    data[-20] ^= 1
    shard.write_bytes(data)
    return shard


def test_a_damaged_shard_is_named(inputs: Any, finished: Any, tmp_path: Path) -> None:
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
        ({"buckets": (8, 17)}, "bucket length 17 is larger than max_len 16"),
        (
            {"batch_tokens": 10},
            "batch_tokens 10 is less than one example of 16 positions for each of 1 replicas; use at least 16",
        ),
    ],
)
def test_refused_options_leave_no_directory(inputs: Any, tmp_path: Path, options: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        train_and_evaluate(tiny_config(**inputs, **IN_PROCESS, output_dir=str(tmp_path / "run"), **options))
    assert not (tmp_path / "run").exists()


def messages_at_start(config: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Any:
    def start(loop: Any) -> None:
        raise PreemptedError("it would begin now")

    caplog.set_level(logging.INFO, "model.trainer")
    caplog.clear()
    with monkeypatch.context() as patched:
        patched.setattr(model.training.loop.TrainingLoop, "train", start)
        with pytest.raises(PreemptedError, match="it would begin now"):
            train_and_evaluate(config)
    return [record.getMessage() for record in caplog.records if record.name == "model.trainer"]


def test_says_at_the_start_what_it_will_do(
    inputs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"buckets": (8,), "schedule": "linear", "accumulate_steps": 2, "limit_steps": 15, "seed": 3}
    config = tiny_config(**inputs, **IN_PROCESS, output_dir=str(tmp_path), **options)
    lines = messages_at_start(config, monkeypatch, caplog)
    said = " ".join(line.removeprefix("options").strip() for line in itertools.takewhile(is_about_options, lines))
    assert said.split() == " ".join(f"{name}={spell(value)}" for name, value in config.options.items()).split()
    assert {"batch_size=8", "seed=3", "limit_steps=15"} <= set(said.split())

    fingerprint = RunDir(tmp_path).read_config().dataset.fingerprint
    expected = [f"dataset      {inputs['data_dir']}, fingerprint {fingerprint[:12]}, max_len 16"]
    for seed, split in enumerate(("train", "dev", "test")):
        examples = learnable_examples(NUM_EXAMPLES[split], seed=seed)
        tokens = sum(len(example.indices) for example in examples)
        expected.append(f"  {split:<10} {NUM_EXAMPLES[split]} examples, {tokens:,} tokens")
        labels = [(example.label, example.second_label) for example in examples]
        for index, (head, names) in enumerate({"category": "abc", "second": "xy"}.items()):
            counts = collections.Counter(label[index] for label in labels)
            shown = ", ".join(f"{name} {counts[label]}" for label, name in enumerate(names))
            expected.append(f"    {head:<10} {shown}")
    # 50 tokens, 2 segments, 24 positions and a norm; a layer of width 16 and 32; heads of 3 and 2 classes.
    embeddings, attention, feed_forward = (50 + 2 + 24 + 2) * 16, 4 * (16 + 1) * 16 + 2 * 16, (2 * 16 + 1) * 32 + 3 * 16
    parameters = embeddings + attention + feed_forward + (16 + 1) * (3 + 2)
    train_tokens = sum(len(example.indices) for example in learnable_examples(83, seed=0))
    expected += [
        f"model        fused BERT, 1 layers, hidden 16, pooling cls, {parameters:,} trainable parameters, float32",
        "devices      one_device, 1 replicas: CPU:0",
        "batches      8 examples, 8 per replica in 2 parts, padded to 8, 16",
        f"padding      PART of positions; {1 - train_tokens / (83 * 16):.1%} if all were padded to 16",
        "steps        11 per epoch, 15 at most = 1.364 epochs, 3 of them warm-up",
    ]
    found = [line for line in lines if not is_about_options(line)]
    share = first_group(r"([\d.]+%) of positions", found[-2])
    assert found == [line.replace("PART", share) for line in expected]
    assert 0 < float(share[:-1]) < 100 * (1 - train_tokens / (83 * 16))

    with pytest.raises(PreemptedError):
        train_and_evaluate(config, on_step=interrupt_after(12))
    again = messages_at_start(config, monkeypatch, caplog)
    assert again == [*lines, "continuing   after step 12, epoch 2"]


def is_about_options(line: str) -> Any:
    return line.startswith(("options ", " " * len("options ")))


def test_what_fails_before_the_first_step_may_be_corrected(
    inputs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(**inputs, **IN_PROCESS, output_dir=str(tmp_path / "run"), epochs=1, limit_steps=1)
    run = RunDir(tmp_path / "run")
    damaged = shutil.copytree(inputs["bert_dir"], tmp_path / "bert")
    (damaged / "bert_model.ckpt.data-00000-of-00001").write_bytes(b"")
    with pytest.raises(InputFormatError, match="the checkpoint is damaged"):
        train_and_evaluate(with_options(config, bert_dir=str(damaged), seed=1))
    assert not run.exists()

    def no_space(source: Any, copy: Any) -> None:
        raise OutputWriteError(f"{copy}: cannot write: No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(model.trainer, "copy_file", no_space)
        with pytest.raises(OutputWriteError, match="No space left"):
            train_and_evaluate(config)
    assert run.exists()
    run.weights.with_name(".weights.npz.1234abcd.tmp").touch()
    (run.path / ".bert.1234abcd.tmp").mkdir()
    assert train_and_evaluate(config).training.steps == 1
    assert run.vocab.read_bytes() == (damaged / "vocab.txt").read_bytes()
    assert [path.name for path in run.path.rglob("*.tmp")] == []


def test_early_stopping_and_dev_report(inputs: Any, tmp_path: Path) -> None:
    data_dir = make_data_dir(tmp_path / "data", ("train", "dev"))
    # A rate at which nothing moves: no epoch is better than the first.
    options = inputs | {"data_dir": str(data_dir), "output_dir": str(tmp_path / "run")}
    config = tiny_config(**options, **IN_PROCESS, learning_rate=1e-12, epochs=9, early_stopping_patience=2)
    report = train_and_evaluate(config)
    assert (report.training.epochs, report.training.best_epoch, report.training.early_stopped) == (3, 1, True)
    assert (report.evaluation.split, report.evaluation.num_examples) == ("dev", NUM_EXAMPLES["dev"])


def test_the_report_is_of_the_model_that_is_used_afterwards(inputs: Any, tmp_path: Path) -> None:
    """Trained in bfloat16, served in float32; and to the planned end, though nothing gets better."""
    options = {"precision": "bfloat16", "epochs": 2, "learning_rate": 1e-12, "early_stopping_patience": 1}
    report = train_and_evaluate(tiny_config(**inputs, **IN_PROCESS, output_dir=str(tmp_path), **options))
    assert (report.training.epochs, report.training.best_epoch, report.training.early_stopped) == (2, 1, False)
    assert evaluate.main(["--run", str(tmp_path)]) == 0
    again = RunDir(tmp_path / "evaluation" / "test").read_report()
    assert again.evaluation.heads == report.evaluation.heads


TRAIN_IN_PROCESS = """
import json, sys
from model.trainer import train_and_evaluate
from pipeline.command_line import run_command
from tests.support.runs import tiny_config

def train_all(arguments):
    for options in json.loads(arguments[0]):
        train_and_evaluate(tiny_config(**options))
    return 0

sys.exit(run_command(train_all))
"""


def start_training(*runs: Any, **environment: Any) -> Any:
    """Start a process that trains runs one after another, and ends as the command does."""
    command = [sys.executable, "-c", TRAIN_IN_PROCESS, json.dumps(runs)]
    clean = {name: value for name, value in os.environ.items() if name != "TF_CONFIG"}
    return subprocess.Popen(command, env=clean | environment, stderr=subprocess.PIPE, text=True)


def wait_for(*processes: Any, status: Any = 0) -> Any:
    """Wait for the end of processes, and return what each said."""
    said = [process.communicate(timeout=300)[1] for process in processes]
    for process, errors in zip(processes, said, strict=True):
        assert process.returncode == status, errors
    return said


def assert_equal_within_rounding(run: Any, other: Any, *, atol: Any = 2e-4, metrics: Any = 1e-4) -> None:
    found, expected = dict(read_arrays(run / "weights.npz")), dict(read_arrays(other / "weights.npz"))
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        # Adam divides by the root of tiny second moments, which multiplies rounding where a gradient is nearly 0.
        np.testing.assert_allclose(found[name], array, atol=atol, err_msg=name)
    with (run / "metrics.csv").open(newline="") as stream, (other / "metrics.csv").open(newline="") as expected_stream:
        for row, expected_row in zip(csv.DictReader(stream), csv.DictReader(expected_stream), strict=True):
            assert {name: float(value) for name, value in row.items()} == {
                name: pytest.approx(float(value), abs=metrics) for name, value in expected_row.items()
            }


def test_replicas_do_not_change_the_result(inputs: Any, tmp_path: Path) -> None:
    common = inputs | {"dropout": 0.0, "limit_steps": 20, "eval_batch_size": 5}
    one = common | {"output_dir": str(tmp_path / "one"), "strategy": "one_device"}
    two = common | {"output_dir": str(tmp_path / "two"), "strategy": "mirrored", "cpu_replicas": 2}
    # Two devices first: they can only be made before TensorFlow starts.
    (said,) = wait_for(start_training(two, one))
    assert "devices      mirrored, 2 replicas: CPU:0, CPU:1\nbatches      8 examples, 4 per replica, padded to" in said
    assert_equal_within_rounding(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("common", "special", "tolerances"),
    [
        # A product of another number of rows is rounded otherwise, and Adam takes the sign of what is nearly 0.
        (
            {"precision": "bfloat16"},
            {"accumulate_steps": 2, "strategy": "mirrored", "cpu_replicas": 2},
            {"atol": 0.03, "metrics": 2e-3},
        ),
        ({"buckets": "off"}, {"xla": "on"}, {}),
        ({"optimizer": "adam", "clip_norm": 0.0, "buckets": "off", "batch_size": 4}, {"encoder": "keras_bert"}, {}),
    ],
    ids=["bfloat16", "xla", "keras_bert"],
)
def test_other_ways_to_compute_the_same(
    inputs: Any,
    tmp_path: Path,
    common: dict[str, Any] | dict[str, str],
    special: dict[str, Any] | dict[str, str],
    tolerances: dict[str, Any] | dict[str, float],
) -> None:
    common = inputs | {"dropout": 0.0, "limit_steps": 15} | common
    plain, other = common | {"output_dir": str(tmp_path / "plain")}, common | {"output_dir": str(tmp_path / "other")}
    wait_for(start_training(other | special, plain))
    assert_equal_within_rounding(tmp_path / "other", tmp_path / "plain", **tolerances)
    assert (tmp_path / "other" / "weights.npz").read_bytes() != (tmp_path / "plain" / "weights.npz").read_bytes()


def test_many_options_together(inputs: Any, tmp_path: Path) -> None:
    report = train_and_evaluate(
        tiny_config(
            **inputs,
            **IN_PROCESS,
            output_dir=str(tmp_path),
            batch_tokens=64,
            buckets=(8, 12),
            max_len=12,
            pooling="max",
            loss_weights={"second": 0.5},
            label_smoothing={"second": 0.1},
            balance_classes=("second",),
            monitor="loss",
            warmup=0.1,
            epochs=3,
        )
    )
    with (tmp_path / "metrics.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    for kind in ("", "val_"):
        losses = [float(row[f"{kind}loss"]) for row in rows]
        expected = [float(row[f"{kind}category_loss"]) + 0.5 * float(row[f"{kind}second_loss"]) for row in rows]
        assert losses == pytest.approx(expected)
    assert report.training.monitored == "val_loss"
    assert (report.training.best_value, report.training.best_epoch) == (
        pytest.approx(min(losses)),
        1 + np.argmin(losses),
    )
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])


def free_address() -> str:
    """Return an address nobody has, below the ports that the system gives to whoever asks for any."""
    while True:
        address = ("127.0.0.1", random.randrange(10_000, 30_000))
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(address)
            return f"{address[0]}:{address[1]}"


def start_workers(run: Any, other_run: Any = None) -> Any:
    """Start the two processes of a cluster on loopback addresses, the second with other options if they are given."""
    runs = [run, other_run or run]
    addresses = [free_address() for _ in runs]
    tasks = [
        {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}} for index in range(len(runs))
    ]
    return [
        start_training(run | {"strategy": "multi_worker"}, TF_CONFIG=json.dumps(task))
        for run, task in zip(runs, tasks, strict=True)
    ]


@pytest.mark.slow
def test_two_workers_do_not_change_the_result(inputs: Any, tmp_path: Path) -> None:
    common = inputs | {"dropout": 0.0, "limit_steps": 20, "monitor": "loss"}
    workers = start_workers(common | {"output_dir": str(tmp_path / "workers")})
    alone = start_training(common | {"output_dir": str(tmp_path / "alone"), "strategy": "one_device"})
    wait_for(*workers, alone)
    assert_equal_within_rounding(tmp_path / "workers", tmp_path / "alone")
    # The best weights were written at the very end, by one of them alone.
    report = RunDir(tmp_path / "workers").read_report()
    assert report.training.best_epoch == report.training.epochs == 2


def wait_for_a_state(states: Any, workers: Any) -> None:
    while not list_states(states):
        assert all(worker.poll() is None for worker in workers)
        time.sleep(0.002)


@pytest.mark.slow
@pytest.mark.parametrize("asked", [(1,), (0, 1)])
def test_workers_stop_together_and_continue(inputs: Any, tmp_path: Path, asked: tuple[int, ...]) -> None:
    """SIGTERM to a worker that saves nothing itself, and to all of them, as a cluster sends it."""
    common = inputs | {"dropout": 0.0, "epochs": 40, "limit_steps": 60, "save_every": 4}
    run = common | {"output_dir": str(tmp_path / "workers")}
    states = tmp_path / "workers" / "state"
    workers = start_workers(run)
    wait_for_a_state(states, workers)
    for index in asked:
        workers[index].send_signal(signal.SIGTERM)
    said = wait_for(*workers, status=75)
    (step,) = {first_group(r"stopped by SIGTERM after step (\d+); the state is saved", errors) for errors in said}
    assert 4 <= int(step) < 60
    assert list_states(states)[-1].name.startswith(f"step-{int(step):08d}")
    assert not (tmp_path / "workers" / "report.json").exists()
    wait_for(*start_workers(run))
    wait_for(start_training(common | {"output_dir": str(tmp_path / "alone"), "strategy": "one_device"}))
    assert_equal_within_rounding(tmp_path / "workers", tmp_path / "alone")


@pytest.mark.slow
def test_workers_that_see_different_directories_say_so(inputs: Any, tmp_path: Path) -> None:
    common = inputs | {"epochs": 40, "limit_steps": 60}
    paths = [tmp_path / "one", tmp_path / "other"]
    with pytest.raises(PreemptedError):
        train_and_evaluate(tiny_config(**common, output_dir=str(paths[1])), on_step=interrupt_after(3))
    workers = start_workers(*(common | {"output_dir": str(path)} for path in paths))
    said = wait_for(*workers, status=2)
    for index, step in enumerate((0, 3)):
        expected = (
            f"error: worker {index} is at step {step}, and others are at 1.5 on average; all workers must see the"
        )
        assert expected in said[index]


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_worker_ends_the_others_and_all_continue_from_the_last_state(
    inputs: Any, tmp_path: Path, victim: int
) -> None:
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
    wait_for_a_state(states, workers)
    workers[victim].kill()
    _, errors = workers[1 - victim].communicate(timeout=120)
    assert workers[1 - victim].returncode not in (0, None), errors
    assert errors.splitlines()[-1].startswith("error: another worker has ended or cannot be reached")
    workers[victim].communicate()
    assert not (tmp_path / "workers" / "report.json").exists()
    reached = int(list_states(states)[-1].name.split("-")[1])
    assert 0 < reached < 60
    wait_for(*start_workers(run))
    alone = inputs | {"dropout": 0.0, "epochs": 40, "limit_steps": 60, "output_dir": str(tmp_path / "alone")}
    wait_for(start_training(alone | {"strategy": "one_device"}))
    assert_equal_within_rounding(tmp_path / "workers", tmp_path / "alone")
