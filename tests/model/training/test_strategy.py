"""Which devices are chosen, and what is refused before they are touched; training on several is in test_trainer.py."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from model.training.strategy import (
    Cluster,
    Devices,
    check_batch_sizes,
    check_equal_workers,
    explain_device_errors,
    least_compute_capability,
    open_devices,
    resolve_deterministic,
    resolve_policy,
    resolve_xla,
    warn_of_unused_gpus,
)
from pipeline.errors import OptionError, WorkerDiedError
from tests.support.runs import tiny_config

TWO_WORKERS = {"worker": ["10.0.0.1:1234", "10.0.0.2:1234"]}


@pytest.mark.parametrize(
    ("content", "index", "count"),
    [
        ({"cluster": TWO_WORKERS, "task": {"type": "worker", "index": 1}}, 1, 2),
        # A chief comes before all workers.
        ({"cluster": TWO_WORKERS | {"chief": ["10.0.0.9:1"]}, "task": {"type": "worker", "index": 1}}, 2, 3),
        ({"cluster": TWO_WORKERS | {"chief": ["10.0.0.9:1"]}, "task": {"type": "chief", "index": 0}}, 0, 3),
        ({"cluster": {"worker": ["localhost:1"]}, "task": {"type": "worker", "index": "0"}}, 0, 1),
        ({"cluster": {"chief": ["localhost:1"]}, "task": {"type": "chief", "index": 0}}, 0, 1),
        (
            {"cluster": {"master": ["localhost:1"]}, "task": {"type": "master", "index": 0}, "environment": "cloud"},
            0,
            1,
        ),
    ],
)
def test_reads_tf_config(monkeypatch: pytest.MonkeyPatch, content: dict[str, Any], index: int, count: int) -> None:
    monkeypatch.setenv("TF_CONFIG", json.dumps(content))
    cluster = Cluster.from_environment()
    assert cluster is not None
    assert (cluster.index, len(cluster.addresses)) == (index, count)


@pytest.mark.parametrize(
    "text", ["", "{}", '{"environment": "cloud"}', '{"cluster": {}, "task": {"type": "worker", "index": 0}}']
)
def test_a_tf_config_without_a_cluster_is_one_machine(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("TF_CONFIG", text)
    assert Cluster.from_environment() is None
    assert open_devices(tiny_config()).kind == "one_device"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot read it"),
        ("[]", "cannot read it"),
        (json.dumps({"cluster": TWO_WORKERS}), "cannot read it"),
        (json.dumps({"cluster": TWO_WORKERS, "task": {"type": "worker", "index": 2}}), "there are 2 workers"),
        (
            json.dumps({"cluster": TWO_WORKERS, "task": {"type": "evaluator", "index": 0}}),
            "'evaluator', which has nothin",
        ),
        (json.dumps({"cluster": TWO_WORKERS, "task": {"type": "ps", "index": 0}}), "'ps', which has nothing to do"),
        (
            json.dumps({"cluster": TWO_WORKERS | {"master": ["a:1"]}, "task": {"type": "master", "index": 0}}),
            "call it 'chief'",
        ),
    ],
)
def test_refuses_a_tf_config_it_cannot_use(monkeypatch: pytest.MonkeyPatch, text: Any, message: str) -> None:
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(OptionError, match=f"TF_CONFIG: .*{message}"):
        open_devices(tiny_config())
    assert open_devices(tiny_config(strategy="one_device")).kind == "one_device"  # which does not read it


@pytest.mark.parametrize("kind", ["chief", "master"])
def test_one_task_alone_is_one_machine(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    cluster = {"cluster": {kind: ["127.0.0.1:2222"]}, "task": {"type": kind, "index": 0}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(cluster))
    assert open_devices(tiny_config()).kind == "one_device"


def test_one_device_is_the_default_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TF_CONFIG", raising=False)
    devices = open_devices(tiny_config())
    assert (devices.kind, devices.num_replicas, devices.num_workers, devices.is_chief) == ("one_device", 1, 1, True)
    assert not devices.on_gpu
    devices.agree(3)


class TwoWorkers:
    """Stands for a strategy over two processes, of which the other has a number of its own."""

    def __init__(self, others: Any) -> None:
        self._others = tf.constant([others, others**2], tf.int64)

    def run(self, function: Any, args: Any) -> Any:
        return function(*args)

    def reduce(self, _: Any, values: Any, axis: Any) -> Any:
        assert axis is None
        return values + self._others


@pytest.mark.parametrize(("number", "others"), [(0, 0), (7, 7), (2**30, 2**30), (0, 3), (3, 0), (7, 8)])
def test_workers_must_be_at_the_same_step(number: int, others: int) -> None:
    devices = Devices(
        strategy=TwoWorkers(others),
        kind="multi_worker",
        names=("CPU:0",),
        num_replicas=2,
        num_workers=2,
        worker_index=1,
        on_gpu=False,
    )
    if number == others:
        devices.agree(number)
        return
    with pytest.raises(OptionError, match=f"worker 1 is at step {number}, and others are at .* all workers must see"):
        devices.agree(number)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "mirrored"}, "--strategy mirrored: TensorFlow sees no GPU"),
        ({"strategy": "multi_worker"}, "--strategy multi_worker: TF_CONFIG names no cluster"),
    ],
)
def test_refuses_a_strategy_without_devices(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, str], message: str
) -> None:
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(OptionError, match=message):
        open_devices(tiny_config(**options))


def test_refuses_replicas_of_a_cpu_beside_other_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": TWO_WORKERS, "task": {"type": "worker", "index": 0}}))
    with pytest.raises(OptionError, match="--cpu_replicas 2: TF_CONFIG names 2 workers"):
        open_devices(tiny_config(cpu_replicas=2))


def test_says_where_a_worker_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise tf.errors.UnknownError(None, None, "Could not start gRPC server")

    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": TWO_WORKERS, "task": {"type": "worker", "index": 0}}))
    monkeypatch.setattr(tf.distribute, "MultiWorkerMirroredStrategy", fail)
    with pytest.raises(OptionError, match=r"cannot start at its address, .* \(Could not start gRPC server\)"):
        open_devices(tiny_config())


@pytest.mark.parametrize(
    ("batch_size", "accumulate_steps", "num_replicas", "advice"),
    [(32, 1, 3, "use 30 or 33"), (2, 1, 4, "use 4"), (32, 8, 3, "3 replicas × 8 accumulated steps; use 24 or 48")],
)
def test_refuses_a_batch_that_replicas_do_not_divide(
    batch_size: int, accumulate_steps: int, num_replicas: int, advice: str
) -> None:
    config = tiny_config(batch_size=batch_size, accumulate_steps=accumulate_steps)
    with pytest.raises(OptionError) as error:
        check_batch_sizes(config, num_replicas)
    assert f"--batch_size {batch_size} " in str(error.value)
    assert f"{num_replicas} replicas" in str(error.value)
    assert advice in str(error.value)


def test_accepts_a_batch_that_replicas_divide() -> None:
    check_batch_sizes(tiny_config(batch_size=32, accumulate_steps=4), 8)


def test_a_batch_of_positions_is_divided_whatever_the_batch_size() -> None:
    check_batch_sizes(tiny_config(batch_size=32, batch_tokens=4096, accumulate_steps=3), 5)


@pytest.mark.parametrize(
    ("error", "ours", "message"),
    [
        (
            tf.errors.ResourceExhaustedError,
            OptionError,
            "does not fit into the memory of a device; use a smaller --x",
        ),
        (tf.errors.UnavailableError, WorkerDiedError, "another worker has ended"),
        (tf.errors.AbortedError, WorkerDiedError, "another worker has ended"),
        (tf.errors.InternalError, tf.errors.InternalError, "Graph execution error"),
    ],
)
def test_says_what_errors_of_devices_mean(error: Any, ours: Any, message: str) -> None:
    with pytest.raises(ours, match=message), explain_device_errors("a smaller --x"):
        raise error(None, None, "Graph execution error:\n\nDetected at node")


@pytest.mark.parametrize(
    "message",
    [
        "Couldn't get ptxas version string: INTERNAL: Couldn't invoke ptxas --version",
        "libdevice not found at ./libdevice.10.bc",
        "no kernel image is available for execution on the device",
        "Failed to load PTX: CUDA_ERROR_INVALID_PTX: a PTX JIT compilation failed",
    ],
)
def test_says_what_trains_where_xla_cannot_compile(message: str) -> None:
    with pytest.raises(OptionError, match="--xla off trains without it") as raised, explain_device_errors():
        raise tf.errors.InternalError(None, None, f"{message}\nat a node")
    assert "\n" not in str(raised.value)


# NVIDIA's generations as TensorFlow describes them: Pascal, Volta, Turing, Ampere, Hopper, Blackwell.
@pytest.mark.parametrize(
    ("capability", "policy", "tf32"),
    [
        ((6, 1), "float32", False),
        ((7, 0), "mixed_float16", False),
        ((7, 5), "mixed_float16", False),
        ((8, 0), "mixed_bfloat16", True),
        ((9, 0), "mixed_bfloat16", True),
        ((12, 0), "mixed_bfloat16", True),
    ],
)
def test_auto_is_right_for_each_kind_of_gpu(capability: tuple[int, int], policy: str, tf32: bool) -> None:
    devices = dataclasses.replace(open_devices(tiny_config()), on_gpu=True, compute_capability=capability)
    assert resolve_policy(tiny_config(), devices) == policy
    assert resolve_policy(tiny_config(encoder="keras_bert"), devices) == "float32"
    assert devices.computes_in_tf32 == tf32
    assert resolve_xla(tiny_config(), devices)
    assert not resolve_deterministic(tiny_config(), devices)
    if policy != "mixed_bfloat16":
        with pytest.raises(
            OptionError, match=r"--precision bfloat16: a GPU of compute capability [67]\.\d would emulate"
        ):
            resolve_policy(tiny_config(precision="bfloat16"), devices)


def test_of_different_gpus_the_least_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    capabilities = {"new": (9, 0), "old": (7, 5)}
    monkeypatch.setattr(
        tf.config.experimental, "get_device_details", lambda gpu: {"compute_capability": capabilities[gpu]}
    )
    assert least_compute_capability(["new", "old"]) == (7, 5)
    assert least_compute_capability([]) == (0, 0)


def test_a_driver_without_a_gpu_in_tensorflow_is_said_with_the_command_that_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "version").touch()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    warn_of_unused_gpus(tmp_path / "version")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    warn_of_unused_gpus(tmp_path / "no such file")
    assert caplog.messages == []
    warn_of_unused_gpus(tmp_path / "version")
    (message,) = caplog.messages
    assert f"pip install 'tensorflow[and-cuda]=={tf.__version__}'" in message


def test_workers_must_have_as_many_devices() -> None:
    check_equal_workers([8, 8, 8])
    with pytest.raises(OptionError, match=r"the workers have 8, 4 devices, in order; .* with CUDA_VISIBLE_DEVICES"):
        check_equal_workers([8, 4])


def test_resolves_arithmetic_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TF_CONFIG", raising=False)
    devices = open_devices(tiny_config())
    assert resolve_policy(tiny_config(), devices) == "float32"
    assert resolve_policy(tiny_config(precision="bfloat16"), devices) == "mixed_bfloat16"
    with pytest.raises(OptionError, match="--precision float16: this CPU would emulate it"):
        resolve_policy(tiny_config(precision="float16"), devices)
    assert [resolve_xla(tiny_config(xla=xla), devices) for xla in ("auto", "on", "off")] == [False, True, False]
    found = [resolve_deterministic(tiny_config(deterministic=choice), devices) for choice in ("auto", "on", "off")]
    assert found == [True, True, False]
