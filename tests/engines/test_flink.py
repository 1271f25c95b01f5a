"""The job on Apache Flink: embedded in the job server, then on a cluster of processes, one of which may die."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from benchmarks.clusters.flink import JOB_SERVER_JAR, flink_options, start_flink
from benchmarks.clusters.processes import Cluster, finish, wait_until_writing
from pipeline.dataset.files import digest_directory
from tests.engines.conftest import Expected

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not JOB_SERVER_JAR.exists(), reason="Flink's jars are not here; `make test-flink` fetches and uses them"
    ),
]


def test_embedded_flink_gives_the_same_bytes(small: Expected) -> None:
    task = small.task("flink-local")
    task.run(*flink_options("[local]", 2), "--environment_type=LOOPBACK")
    assert digest_directory(str(task.output)) == small.digest


def test_a_cluster_with_external_workers_gives_the_same_bytes(
    processes: Cluster, commands: Path, small: Expected
) -> None:
    task = small.task("flink")
    task.run(*start_flink(processes, commands, num_workers=2))
    assert digest_directory(str(task.output)) == small.digest
    assert all("Starting worker with command" in processes.log(f"pool-{number}") for number in range(2))


def test_a_killed_task_manager_changes_nothing(processes: Cluster, commands: Path, large: Expected) -> None:
    """A third one stands by, as a cluster manager would start it."""
    task = large.task("flink-kill")
    options = start_flink(processes, commands, num_workers=3)
    process = task.start(*options, "--parallelism=2")
    wait_until_writing(process, task)
    processes.kill("taskmanager-0")
    finish(process)
    assert digest_directory(str(task.output)) == large.digest


def test_a_killed_python_worker_changes_nothing(processes: Cluster, commands: Path, large: Expected) -> None:
    task = large.task("flink-python-kill")
    process = task.start(*start_flink(processes, commands, num_workers=2))
    wait_until_writing(process, task)
    children = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(processes.processes["pool-0"].pid)],
        check=True,
        capture_output=True,
        text=True,
    )
    os.kill(int(children.stdout.split()[0]), signal.SIGKILL)
    finish(process)
    assert digest_directory(str(task.output)) == large.digest
