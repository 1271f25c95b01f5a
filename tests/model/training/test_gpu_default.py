"""What a GPU runs by default, through XLA on a CPU: every way to compute, and kernels for everything."""

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework import kernels

from benchmarks.graphs import XLA_PROGRAM, launches_outside_xla, operations
from model.bert.directory import read_bert_dir
from model.classifier import build_classifier, logits_model
from model.serving.predictor import make_predict_fn
from model.serving.saved_model import make_signatures
from model.trainer import train_and_evaluate
from model.training.preemption import PreemptedError
from model.training.steps import batch_signature, empty_batch, make_eval_step
from model.training.strategy import open_devices
from tests.support.compiled_steps import CACHE_FLAG, HEADS, LENGTHS, TinyRun, make_step
from tests.support.runs import (
    IN_PROCESS,
    assert_same_results,
    interrupt_after,
    make_bert_dir,
    make_inputs,
    tiny_config,
    with_options,
)

REPOSITORY = Path(__file__).parents[3]
# Rounding is not what it is about: bfloat16 has 8 bits, and 20 steps multiply what one rounds away.
TOLERANCES = {"float32": 1e-4, "mixed_bfloat16": 5e-2}
ALL_WAYS: list[dict[str, Any]] = [
    *(
        {"policy": policy, "dropout": dropout, "accumulate_steps": parts, "num_replicas": replicas}
        for policy, dropout, parts, replicas in itertools.product(
            ("float32", "mixed_bfloat16"), (0.0, 0.1), (1, 2), (1, 2)
        )
    ),
    *({"encoder": "keras_bert", "dropout": 0.1, "num_replicas": replicas} for replicas in (1, 2)),
]


def train_both(ways: list[dict[str, Any]], cache: Path) -> list[list[dict[str, Any]]]:
    """Return for each way what came of it compiled and uncompiled."""
    runs = [{**way, "xla": xla} for way in ways for xla in (True, False)]
    command = [sys.executable, "-m", "tests.support.compiled_steps", json.dumps(runs)]
    environment = os.environ | {"TF_XLA_FLAGS": f"{CACHE_FLAG}{cache}"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    results = [json.loads(line) for line in done.stdout.splitlines()]
    return [results[index : index + 2] for index in range(0, len(results), 2)]


def check_equal(way: dict[str, Any], compiled: dict[str, Any], plain: dict[str, Any]) -> None:
    tolerance = TOLERANCES[way.get("policy", "float32")]
    np.testing.assert_allclose(compiled["losses"], plain["losses"], rtol=tolerance, atol=tolerance, err_msg=str(way))
    np.testing.assert_allclose(compiled["norms"], plain["norms"], rtol=tolerance, err_msg=str(way))
    assert compiled["num_traces"] == plain["num_traces"] == 1
    # On each device: the gradients for every shape, and one update.
    assert compiled["num_compiled"] == way.get("num_replicas", 1) * (len(LENGTHS) + 1), way
    assert plain["num_compiled"] == 0


def test_small_gpus_way_computes_the_same_compiled(tmp_path: Path) -> None:
    """bfloat16 in two parts with dropout: what the README advises for a GPU that is too small."""
    way = {"policy": "mixed_bfloat16", "dropout": 0.1, "accumulate_steps": 2}
    ((compiled, plain),) = train_both([way], tmp_path)
    check_equal(way, compiled, plain)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(3))
def test_every_way_computes_the_same_compiled(tmp_path: Path, part: int) -> None:
    ways = ALL_WAYS[part::3]
    for way, (compiled, plain) in zip(ways, train_both(ways, tmp_path), strict=True):
        check_equal(way, compiled, plain)


def test_a_compiled_run_continues_to_the_same_bytes(tmp_path: Path) -> None:
    inputs = make_inputs(tmp_path)
    options = {"xla": "on", "epochs": 1, "limit_steps": 8, "buckets": (8,), "accumulate_steps": 2}
    config = tiny_config(**inputs, **IN_PROCESS, **options, output_dir=str(tmp_path / "whole"))
    report = train_and_evaluate(config)
    config = with_options(config, output_dir=str(tmp_path / "interrupted"))
    with pytest.raises(PreemptedError):
        train_and_evaluate(config, on_step=interrupt_after(3))
    assert train_and_evaluate(config).evaluation.heads == report.evaluation.heads
    assert_same_results(tmp_path / "interrupted", tmp_path / "whole")


@pytest.fixture(scope="module")
def bert_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bert_dir(tmp_path_factory.mktemp("gpu_default") / "bert")


def test_few_kernels_are_launched_outside_of_xla(bert_dir: Path) -> None:
    """A launch costs microseconds, and the host waits at none: there is no condition on a value of the device."""
    counts = {}
    for xla in (False, True):
        step, _ = make_step(TinyRun(xla=xla, policy="mixed_float16", dropout=0.1, accumulate_steps=2), bert_dir)
        counts[xla] = launches_outside_xla(step.get_concrete_function())
    assert counts[True][XLA_PROGRAM] == 2
    assert counts[True].total() < 8 < 100 < counts[False].total()
    assert not {"If", "StatelessIf", "While", "StatelessWhile"} & counts[True].keys()
    assert {"If", "While"} <= {op.removeprefix("Stateless") for op in counts[False]}


def test_memory_falls_with_the_parts(bert_dir: Path, tmp_path: Path) -> None:
    """By XLA's own analysis of its programs."""
    code = (
        "import sys, tensorflow as tf\n"
        "from pathlib import Path\n"
        "from tests.support.compiled_steps import HEADS, TinyRun, make_step\n"
        "from model.training.steps import empty_batch\n"
        "run = TinyRun(xla=True, dropout=0.1, accumulate_steps=int(sys.argv[2]))\n"
        "step, _ = make_step(run, Path(sys.argv[1]))\n"
        "step(empty_batch(HEADS, 256, 24), tf.constant(0, tf.int64), tf.constant(0.0), tf.constant(0.0))\n"
    )
    peaks = []
    for num_parts in (1, 8):
        dump = tmp_path / str(num_parts)
        environment = os.environ | {"XLA_FLAGS": f"--xla_dump_to={dump}"}
        command = [sys.executable, "-c", code, str(bert_dir), str(num_parts)]
        subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, check=True)
        reports = [path.read_text() for path in dump.glob("*memory-usage-report.txt")]
        assert reports, [path.name for path in dump.iterdir()]
        peaks.append(max(_bytes(re.search(r"Total bytes used: (\d+)", report)) for report in reports))
    assert peaks[1] < peaks[0] / 3


def _bytes(found: re.Match[str] | None) -> int:
    assert found is not None
    return int(found[1])


# What a GPU has no kernel for, and why that is no loss.
ON_THE_HOST = {
    "NoOp": "orders operations",
    "Const": "the exporter's label names are strings",
    "GatherV2": "picks a label's name, a string",
}


def has_gpu_kernel(node: Any) -> bool:
    """Ask TensorFlow's registry for a kernel on GPUs, or on every device, for a node's types."""
    for kernel in kernels.get_registered_kernels_for_op(node.op).kernel:
        if kernel.device_type in ("GPU", "DEFAULT") and all(
            constraint.name not in node.attr
            or node.attr[constraint.name].type in constraint.allowed_values.list.type
            or set(node.attr[constraint.name].list.type) & set(constraint.allowed_values.list.type)
            for constraint in kernel.constraint
        ):
            return True
    return False


def without_gpu_kernel(concrete_function: Any) -> set[str]:
    placed_by_runtime = {"Placeholder", "_Arg", "_Retval"}
    nodes = [operation.node for operation in operations(concrete_function)]
    assert len(nodes) > 100
    return {node.op for node in nodes if node.op not in placed_by_runtime and not has_gpu_kernel(node)}


@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("xla", [False, True])
def test_a_gpu_has_a_kernel_for_every_operation_of_the_steps(bert_dir: Path, policy: str, xla: bool) -> None:
    step, config = make_step(TinyRun(xla=xla, policy=policy, dropout=0.1, accumulate_steps=2), bert_dir)
    assert without_gpu_kernel(step.get_concrete_function()) == set()
    model = build_classifier(bert_dir, HEADS, policy=policy)
    eval_step: Any = make_eval_step(logits_model(model), config, open_devices(config), xla=xla)
    assert without_gpu_kernel(eval_step.get_concrete_function()) == set()
    predict: Any = make_predict_fn(model, HEADS, batch_size=8)
    assert without_gpu_kernel(predict.get_concrete_function()) == set()


def test_a_gpu_has_a_kernel_for_what_an_exported_model_computes_from_ids(bert_dir: Path) -> None:
    assert read_bert_dir(bert_dir).config.hidden_size
    model = build_classifier(bert_dir, HEADS)
    labels = {head: [f"label {index}" for index in range(count)] for head, count in HEADS.items()}
    ids: Any = make_signatures(model, labels, lambda text: (text, text))["ids"]
    assert without_gpu_kernel(ids.get_concrete_function()) <= ON_THE_HOST.keys()


def test_an_empty_batch_has_the_types_of_a_real_one() -> None:
    for spec, tensor in zip(
        tf.nest.flatten(batch_signature(tuple(HEADS))), tf.nest.flatten(empty_batch(tuple(HEADS), 4, 8)), strict=True
    ):
        assert spec.is_compatible_with(tensor)
