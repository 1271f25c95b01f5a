"""Which devices train, in which arithmetic: one device, all devices of a machine, or several machines.

The stream of global batches does not know how many replicas there are. The reader gives every worker its part of each
batch, and every replica takes its own rows of that:

    global batch [B, L] ─▶ rows [r·B/R, (r+1)·B/R) for replica r of R ─▶ sums over rows ─▶ summed over replicas
"""

import contextlib
import dataclasses
import json
import logging
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import tensorflow as tf
from tensorflow.python.eager import context as tf_context

from model.config import TrainConfig
from pipeline.command_line import GPU_DRIVER
from pipeline.errors import OptionError, WorkerDiedError, one_line

FIRST_BFLOAT16_CAPABILITY = (8, 0)  # NVIDIA Ampere; before it, bfloat16 is emulated
FIRST_FLOAT16_CAPABILITY = (7, 0)  # Volta, the first with tensor cores
FIRST_TF32_CAPABILITY = (8, 0)
# What TensorFlow says where XLA finds no `ptxas` or `libdevice`, or where both are older than the GPU.
_NO_COMPILER = re.compile(
    r"ptxas|libdevice|no kernel image is available|CUDA_ERROR_(NO_BINARY|INVALID_PTX|UNSUPPORTED_PTX)", re.IGNORECASE
)

# Gradients are summed over replicas in packs of about this size: the first packs travel while later gradients are still
# computed (without XLA, whose gradients are all ready at the same time) or packed.
BYTES_PER_PACK = 32 << 20
SMALLER_EVALUATION = "a smaller --eval_batch_size, with which the run continues"


logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cluster:
    """What `TF_CONFIG` says about the workers, see https://www.tensorflow.org/guide/distributed_training.

    Attributes:
        addresses: `host:port` of every worker, the chief first.
        index: this process's place among them.
    """

    addresses: tuple[str, ...]
    index: int

    @classmethod
    def from_environment(cls) -> "Cluster | None":
        """Read `TF_CONFIG`; `None` where it names no cluster, as hosted training sets it for one machine.

        Raises:
            OptionError: it is set, but not to what TensorFlow expects, or to a task that has nothing to do here.
        """
        text = os.environ.get("TF_CONFIG", "").strip()
        try:
            content = json.loads(text or "{}")
            cluster = content.get("cluster")
            if not cluster:
                return None
            task = content["task"]["type"]
            # "master" is TensorFlow 1's name of the chief.
            kinds = [kind for kind in ("chief", "master", "worker") if kind in cluster]
            addresses = tuple(address for kind in kinds for address in cluster[kind])
            before = sum(len(cluster[kind]) for kind in kinds[: kinds.index(task)]) if task in kinds else 0
            index = before + int(content["task"]["index"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise OptionError(
                f"TF_CONFIG: cannot read it ({type(error).__name__}: {error}); expected "
                '{"cluster": {"worker": ["host:port", …]}, "task": {"type": "worker", "index": 0}}'
            ) from None
        if task not in kinds:
            raise OptionError(
                f"TF_CONFIG: this process is a task of type {task!r}, which has nothing to do: workers validate and "
                "hold the weights themselves; start this command on the chief and the workers alone"
            )
        if "master" in kinds and len(addresses) > 1:
            raise OptionError("TF_CONFIG: TensorFlow 2 has no 'master' beside workers; call it 'chief' on all machines")
        if not 0 <= index < len(addresses):
            raise OptionError(f"TF_CONFIG: there are {len(addresses)} workers, and this is said to be number {index}")
        return cls(addresses=addresses, index=index)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Devices:
    """The devices of a run, and how values get to them and back.

    Attributes:
        strategy: places variables and runs replicas.
        kind: `one_device`, `mirrored` or `multi_worker`.
        names: this process's devices.
        num_replicas: over all workers.
        num_workers, worker_index: 1 and 0 unless there are several machines.
        on_gpu: whether replicas run on GPUs.
        compute_capability: the least of this worker's GPUs, such as (8, 0); (0, 0) without GPUs.
    """

    strategy: tf.distribute.Strategy
    kind: Literal["one_device", "mirrored", "multi_worker"]
    names: tuple[str, ...]
    num_replicas: int
    num_workers: int
    worker_index: int
    on_gpu: bool
    compute_capability: tuple[int, int] = (0, 0)

    @property
    def computes_in_tf32(self) -> bool:
        """Whether float32 products are TF32: 10 bits of mantissa instead of 23, and many times as fast."""
        enabled = bool(tf.config.experimental.tensor_float_32_execution_enabled())
        return self.on_gpu and self.compute_capability >= FIRST_TF32_CAPABILITY and enabled

    @property
    def is_chief(self) -> bool:
        """Whether this process writes the run directory."""
        return self.worker_index == 0

    @property
    def num_local_replicas(self) -> int:
        """Replicas of this worker."""
        return self.num_replicas // self.num_workers

    def rows(self, tensor: tf.Tensor) -> tf.Tensor:
        """Return this replica's rows of its worker's batch; to be called in a replica's context.

        Args:
            tensor: [B, …], this worker's part of a global batch, B a multiple of `num_local_replicas`.

        Returns:
            [B / num_local_replicas, …].
        """
        if self.num_local_replicas == 1:
            return tensor
        size = tf.shape(tensor)[0] // self.num_local_replicas
        index = tf.distribute.get_replica_context().replica_id_in_sync_group % self.num_local_replicas
        return tensor[index * size : (index + 1) * size]

    def barrier(self) -> None:
        """Wait until all workers have come here."""
        if self.num_workers > 1:
            self.agree(0)

    def agree(self, number: int) -> None:
        """Check that all workers have the same number, such as the step they continue from.

        Raises:
            OptionError: they have not, so they do not read the same files.
        """
        if self.num_workers == 1:
            return

        @tf.function
        def sum_over_replicas(values: tf.Tensor) -> tf.Tensor:
            return self.strategy.reduce("SUM", self.strategy.run(tf.identity, args=(values,)), axis=None)

        with explain_device_errors():
            total, squares = (int(x) for x in sum_over_replicas(tf.constant([number, number**2], tf.int64)))
        if squares * self.num_replicas != total**2:
            raise OptionError(
                f"worker {self.worker_index} is at step {number}, and others are at {total / self.num_replicas:g} on "
                "average; all workers must see the same --output directory"
            )


def all_reduce(devices: Devices, tensors: Any) -> Any:
    """Sum tensors over all replicas; to be called in a replica's context.

    Args:
        devices: where it runs.
        tensors: a structure of dense tensors.
    """
    if devices.num_replicas == 1:
        return tensors
    options = tf.distribute.experimental.CommunicationOptions(bytes_per_pack=BYTES_PER_PACK)
    return tf.distribute.get_replica_context().all_reduce("SUM", tensors, options)


@contextlib.contextmanager
def explain_device_errors(remedy: str = "a smaller --batch_size") -> Iterator[None]:
    """Turn what TensorFlow says about its devices, while they compute, into our errors.

    Args:
        remedy: what to use where memory is short.

    Raises:
        OptionError: a batch does not fit into memory, or XLA cannot compile for this GPU.
        WorkerDiedError: another worker is gone.
    """
    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        raise OptionError(f"a batch does not fit into the memory of a device; use {remedy}") from error
    except (tf.errors.InternalError, tf.errors.NotFoundError, tf.errors.UnimplementedError) as error:
        if not _NO_COMPILER.search(error.message):
            raise
        raise OptionError(
            f"XLA cannot compile for this GPU ({one_line(error.message)[:200]}); --xla off trains without it"
        ) from error
    except (tf.errors.UnavailableError, tf.errors.AbortedError) as error:
        raise WorkerDiedError(
            "another worker has ended or cannot be reached; start the same command on all of them to continue from the "
            "last saved state"
        ) from error


def check_batch_sizes(config: TrainConfig, num_replicas: int) -> None:
    """Check that the replicas divide the batch; one of so many positions is planned to be divided.

    Raises:
        OptionError: they do not.
    """
    batches = config.batches
    parts = num_replicas * batches.accumulate_steps
    if batches.batch_tokens is None and batches.batch_size % parts:
        below = batches.batch_size // parts * parts
        nearest = f"{below} or {below + parts}" if below else f"{parts}"
        steps = f" × {batches.accumulate_steps} accumulated steps" if batches.accumulate_steps > 1 else ""
        raise OptionError(
            f"--batch_size {batches.batch_size} is the global batch and must be a multiple of the {num_replicas} "
            f"replicas{steps}; use {nearest}"
        )


def open_devices(config: TrainConfig) -> Devices:
    """Start TensorFlow on the devices that the configuration asks for.

    Raises:
        OptionError: they are not there, or this process has started TensorFlow with others already.
    """
    cluster = Cluster.from_environment() if config.devices.strategy in ("auto", "multi_worker") else None
    gpus = tf.config.list_physical_devices("GPU")
    kind = _resolve_kind(config, cluster, num_gpus=len(gpus))
    use_gpus = bool(gpus) and config.devices.cpu_replicas is None
    if not gpus and config.devices.cpu_replicas is None:
        warn_of_unused_gpus()
    if use_gpus:
        gpus = gpus[:1] if kind == "one_device" else gpus
        _prepare_gpus(gpus)
    if kind == "multi_worker":
        strategy: tf.distribute.Strategy = _join_cluster()
        if cluster is not None:
            check_equal_workers(_exchange(cluster, len(strategy.extended.worker_devices)))
    elif kind == "mirrored":
        strategy = tf.distribute.MirroredStrategy(
            [f"GPU:{index}" for index in range(len(gpus))]
            if use_gpus
            else _logical_cpus(config.devices.cpu_replicas or 1)
        )
    else:
        strategy = tf.distribute.OneDeviceStrategy("GPU:0" if use_gpus else "CPU:0")
    return Devices(
        strategy=strategy,
        kind=kind,
        names=tuple(strategy.extended.worker_devices),
        num_replicas=strategy.num_replicas_in_sync,
        num_workers=len(cluster.addresses) if cluster and kind == "multi_worker" else 1,
        worker_index=cluster.index if cluster and kind == "multi_worker" else 0,
        on_gpu=use_gpus,
        compute_capability=least_compute_capability(gpus) if use_gpus else (0, 0),
    )


def open_local_devices() -> Devices:
    """Start TensorFlow on all GPUs of this machine, or on its CPU, for a model that only answers."""
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        warn_of_unused_gpus()
    _prepare_gpus(gpus)
    names = [f"GPU:{index}" for index in range(len(gpus))] or ["CPU:0"]
    strategy = tf.distribute.MirroredStrategy(names) if len(names) > 1 else tf.distribute.OneDeviceStrategy(names[0])
    return Devices(
        strategy=strategy,
        kind="mirrored" if len(names) > 1 else "one_device",
        names=tuple(strategy.extended.worker_devices),
        num_replicas=len(names),
        num_workers=1,
        worker_index=0,
        on_gpu=bool(gpus),
        compute_capability=least_compute_capability(gpus),
    )


def warn_of_unused_gpus(driver: Path = GPU_DRIVER) -> None:
    """Say what is missing where there is an NVIDIA driver, but TensorFlow, asked for GPUs, sees none."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if driver.exists() and hidden not in ("", "-1"):
        logger.warning(
            "this machine has an NVIDIA driver, but TensorFlow sees no GPU, so the CPU computes; CUDA's libraries come "
            "with: pip install 'tensorflow[and-cuda]==%s'; --debug shows TensorFlow's reason",
            tf.__version__,
        )


def describe_gpus(devices: Devices) -> list[str]:
    """Return a line for each GPU of this process, and one for what they share; nothing without GPUs."""
    if not devices.on_gpu:
        return []
    found = [tf.config.experimental.get_device_details(gpu) for gpu in tf.config.get_visible_devices("GPU")]
    lines = [
        f"{gpu.get('device_name', 'a GPU')}, compute capability {'.'.join(map(str, gpu.get('compute_capability', ())))}"
        for gpu in found
    ]
    smi = shutil.which("nvidia-smi")
    if smi is not None:
        query = [smi, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
        said = subprocess.run(query, capture_output=True, text=True, check=False).stdout
        lines += [f"nvidia-smi: {line.strip()}" for line in said.splitlines()]
    cuda = tf.sysconfig.get_build_info().get("cuda_version", "none")
    return [*lines, f"CUDA {cuda}, TF32 {'on' if devices.computes_in_tf32 else 'off'}"]


def _exchange(cluster: Cluster, number: int) -> list[int]:
    """Tell every worker a number, and return all of theirs, in order."""
    context = tf_context.context()
    context.set_config_key_value(f"two_headed_bert/num_devices/{cluster.index}", str(number))
    keys = [f"two_headed_bert/num_devices/{index}" for index in range(len(cluster.addresses))]
    return [int(context.get_config_key_value(key)) for key in keys]


def check_equal_workers(num_devices: Sequence[int]) -> None:
    """Check that all workers have as many devices.

    Raises:
        OptionError: they have not.
    """
    if len(set(num_devices)) > 1:
        raise OptionError(
            f"TF_CONFIG: the workers have {', '.join(map(str, num_devices))} devices, in order; every batch is divided "
            "evenly, so show each the same number with CUDA_VISIBLE_DEVICES"
        )


def _resolve_kind(
    config: TrainConfig, cluster: Cluster | None, *, num_gpus: int
) -> Literal["one_device", "mirrored", "multi_worker"]:
    if config.devices.strategy == "multi_worker" and cluster is None:
        raise OptionError(
            "--strategy multi_worker: TF_CONFIG names no cluster; it says who the workers are and which one this is"
        )
    if config.devices.strategy == "mirrored" and not num_gpus and config.devices.cpu_replicas is None:
        raise OptionError(
            "--strategy mirrored: TensorFlow sees no GPU; use --strategy one_device, or --cpu_replicas N to use "
            "this machine's CPU as N devices"
        )
    if config.devices.strategy != "auto":
        return config.devices.strategy
    if cluster is not None and len(cluster.addresses) > 1:
        if config.devices.cpu_replicas is not None:
            raise OptionError(
                f"--cpu_replicas {config.devices.cpu_replicas}: TF_CONFIG names {len(cluster.addresses)} workers, with "
                "one CPU device each; leave it out, or give --strategy mirrored to train on this machine alone"
            )
        return "multi_worker"
    return "mirrored" if num_gpus > 1 or config.devices.cpu_replicas is not None else "one_device"


def _join_cluster() -> tf.distribute.Strategy:
    """Start this worker, whose collective runtime must exist before any operation runs, hence before anything else."""
    try:
        return tf.distribute.MultiWorkerMirroredStrategy()
    except tf.errors.OpError as error:
        raise OptionError(
            f"TF_CONFIG: this worker cannot start at its address, or not reach the others ({one_line(error.message)}); "
            "give each a port that is free, and start all of them"
        ) from error


def _prepare_gpus(gpus: list[Any]) -> None:
    """Let TensorFlow use these GPUs alone, and take their memory as it needs it."""
    # Too late once TensorFlow has started, where the memory is taken already.
    with contextlib.suppress(RuntimeError):
        tf.config.set_visible_devices(gpus, "GPU")
        for gpu in gpus:
            tf.config.experimental.set_memory_growth(gpu, True)


def _logical_cpus(count: int) -> list[str]:
    cpu = tf.config.list_physical_devices("CPU")[0]
    # A process that trains twice, such as a notebook, may have them already.
    with contextlib.suppress(RuntimeError):
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
    found = len(tf.config.list_logical_devices("CPU"))
    if found < count:
        raise OptionError(
            f"--cpu_replicas {count}: TensorFlow has started with {found} logical CPU devices in this process, which "
            "cannot be changed any more; start a new process"
        )
    return [f"CPU:{index}" for index in range(count)]


def resolve_policy(config: TrainConfig, devices: Devices) -> str:
    """Return the Keras mixed-precision policy.

    `auto` is float32 on a CPU; on GPUs it is bfloat16 where they compute in it, else float16 with loss scaling where
    they have tensor cores.

    Raises:
        OptionError: float16 on a CPU, or bfloat16 on a GPU that has none.
    """
    if config.devices.precision == "float16" and not devices.on_gpu:
        raise OptionError(
            "--precision float16: this CPU would emulate it, slower than float32; use bfloat16 or float32 on a CPU"
        )
    has_bfloat16 = not devices.on_gpu or devices.compute_capability >= FIRST_BFLOAT16_CAPABILITY
    if config.devices.precision == "bfloat16" and not has_bfloat16:
        capability = ".".join(map(str, devices.compute_capability))
        raise OptionError(
            f"--precision bfloat16: a GPU of compute capability {capability} would emulate it; use float16, or auto"
        )
    if config.devices.precision == "auto":
        if not devices.on_gpu or config.model.encoder == "keras_bert":
            return "float32"
        if has_bfloat16:
            return "mixed_bfloat16"
        return "mixed_float16" if devices.compute_capability >= FIRST_FLOAT16_CAPABILITY else "float32"
    return "float32" if config.devices.precision == "float32" else f"mixed_{config.devices.precision}"


def least_compute_capability(gpus: Sequence[Any]) -> tuple[int, int]:
    """Return the least compute capability of some GPUs; (0, 0) for none."""
    details = [tf.config.experimental.get_device_details(gpu).get("compute_capability", (0, 0)) for gpu in gpus]
    return min(details, default=(0, 0))


def resolve_xla(config: TrainConfig, devices: Devices) -> bool:
    """Tell whether XLA compiles the replica's step; `auto` only on GPUs: on a CPU it compiles long and runs slower."""
    return config.devices.xla == "on" or (config.devices.xla == "auto" and devices.on_gpu)


def resolve_deterministic(config: TrainConfig, devices: Devices) -> bool:
    """Tell whether TensorFlow is held to deterministic kernels; `auto` only on CPUs, where that costs nothing."""
    return config.devices.deterministic == "on" or (config.devices.deterministic == "auto" and not devices.on_gpu)
