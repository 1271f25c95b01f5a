"""A GPU in earnest: training in each precision, compiled or not, resumed, mirrored; evaluation, prediction, export.

Figures are compared with the CPU's, whose float32 is exact: TF32 is off in these tests.
"""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from model import evaluate, export, predict
from model.bert.directory import read_bert_dir
from model.classifier import build_classifier
from model.run.directory import RunDir
from model.run.weights import load_model_weights
from model.serving.predictor import predict_split
from model.trainer import train_and_evaluate
from model.training.preemption import PreemptedError
from model.training.strategy import describe_gpus, open_local_devices
from pipeline.errors import OptionError
from tests.support.runs import MAX_LEN, interrupt_after, make_inputs, tiny_config, with_options

# Of the losses and probabilities of a GPU against a CPU: rounding in float32; 8 bits in bfloat16, 11 in float16.
TOLERANCES = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}
NUM_STEPS = 11


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    tf.config.experimental.enable_tensor_float_32_execution(False)
    return make_inputs(tmp_path_factory.mktemp("inputs"))


def train(inputs: dict[str, str], run: Path, **options: Any) -> dict[str, float]:
    """Train an epoch, and return its row of `metrics.csv`."""
    common = {"dropout": 0.0, "limit_steps": NUM_STEPS, "learning_rate": 1e-3, "strategy": "one_device"}
    train_and_evaluate(tiny_config(**inputs, **(common | options), output_dir=str(run)))
    with (run / "metrics.csv").open(newline="") as stream:
        (row,) = csv.DictReader(stream)
    return {name: float(value) for name, value in row.items() if "loss" in name}


@pytest.fixture(scope="module")
def reference(inputs: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """The same training on the CPU."""
    run = tmp_path_factory.mktemp("cpu") / "run"
    return train(inputs, run, strategy="mirrored", cpu_replicas=1, precision="float32")


def can_compute(precision: str) -> bool:
    least = {"float32": (0, 0), "float16": (7, 0), "bfloat16": (8, 0)}[precision]
    return open_local_devices().compute_capability >= least


@pytest.mark.parametrize("xla", ["on", "off"])
@pytest.mark.parametrize("precision", list(TOLERANCES))
def test_trains_as_the_cpu_does(
    inputs: dict[str, str], reference: dict[str, float], tmp_path: Path, precision: str, xla: str
) -> None:
    if not can_compute(precision):
        with pytest.raises(OptionError, match=f"--precision {precision}"):
            train(inputs, tmp_path / "run", precision=precision)
        return
    found = train(inputs, tmp_path / "run", precision=precision, xla=xla)
    assert found == pytest.approx(reference, rel=TOLERANCES[precision])
    resolved = RunDir(tmp_path / "run").read_config().resolved
    assert (resolved.precision, resolved.devices.xla, resolved.devices.tf32) == (precision, xla == "on", False)


def test_parts_and_dropout_train(inputs: dict[str, str], tmp_path: Path) -> None:
    losses = train(inputs, tmp_path / "run", dropout=0.1, accumulate_steps=2, limit_steps=2 * NUM_STEPS, epochs=1)
    assert all(np.isfinite(value) for value in losses.values())


def test_all_gpus_together_train_as_the_cpu_does(
    inputs: dict[str, str], reference: dict[str, float], tmp_path: Path
) -> None:
    if 8 % len(tf.config.list_physical_devices("GPU")):
        pytest.skip("the batch of 8 is not divisible by this machine's number of GPUs")
    found = train(inputs, tmp_path / "run", precision="float32", strategy="mirrored")
    assert found == pytest.approx(reference, rel=TOLERANCES["float32"])


@pytest.mark.parametrize("deterministic", ["on", "off"])
def test_continues_after_an_interruption(inputs: dict[str, str], tmp_path: Path, deterministic: str) -> None:
    options = {"strategy": "one_device", "precision": "float32", "dropout": 0.1, "epochs": 1}
    config = tiny_config(**inputs, **options, deterministic=deterministic, output_dir=str(tmp_path / "whole"))
    train_and_evaluate(config)
    config = with_options(config, output_dir=str(tmp_path / "interrupted"))
    with pytest.raises(PreemptedError):
        train_and_evaluate(config, on_step=interrupt_after(5))
    train_and_evaluate(config)
    weights = [np.load(tmp_path / run / "weights.npz", allow_pickle=False) for run in ("whole", "interrupted")]
    for name in weights[0].files:
        # Without determinism a GPU sums in another order every time.
        tolerance = 0.0 if deterministic == "on" else 1e-3
        np.testing.assert_allclose(weights[1][name], weights[0][name], atol=tolerance, err_msg=name)


@pytest.fixture(scope="module")
def finished(inputs: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("finished") / "run"
    train_and_evaluate(tiny_config(**inputs, output_dir=str(run), epochs=2))
    return run


@pytest.mark.parametrize("precision", list(TOLERANCES))
def test_evaluates_predicts_and_exports(
    inputs: dict[str, str], finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], precision: str
) -> None:
    run = RunDir(finished)
    with tf.device("CPU:0"):
        model = build_classifier(run.bert, {"category": 3, "second": 2})
        load_model_weights(run.weights, model)
        exact = predict_split(model, inputs["data_dir"], "test", heads=["category"], max_len=MAX_LEN)
    arguments = ["--run", str(finished), "--precision", precision]
    assert evaluate.main([*arguments, "--output", str(tmp_path / "report")]) == 0
    evaluation = RunDir(tmp_path / "report").read_report().evaluation
    accuracy = float((exact.probabilities["category"].argmax(1) == exact.labels["category"]).mean())
    assert evaluation.heads["category"].accuracy == pytest.approx(accuracy, abs=0.1)
    capsys.readouterr()
    (tmp_path / "texts").write_text("w7 w8 w9\nw4 w20\n")
    assert predict.main([*arguments, "--input", str(tmp_path / "texts")]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert export.main([*arguments, "--output", str(tmp_path / "saved")]) == 0
    loaded = tf.saved_model.load(str(tmp_path / "saved"))
    answers = loaded.signatures["serving_default"](text=tf.constant(["w7 w8 w9", "w4 w20"]))
    expected = [line["category"]["probability"] for line in lines]
    np.testing.assert_allclose(answers["category_probability"], expected, rtol=TOLERANCES[precision])
    assert read_bert_dir(run.bert).config.hidden_size == 16


def test_says_which_gpus_it_uses() -> None:
    lines = describe_gpus(open_local_devices())
    assert "compute capability" in lines[0]
    assert lines[-1].startswith("CUDA ")
