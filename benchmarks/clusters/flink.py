"""Flink as processes of this machine: one JobManager, TaskManagers, and the Python workers that they send work to.

The jars are those of `flink/get_jars.sh`; they do not include Flink's start scripts, so this module has their commands.
"""

import os
import subprocess
import sys
from pathlib import Path

from benchmarks.clusters.processes import REPOSITORY, Cluster, free_port

FLINK_DIR = Path(os.environ.get("TWO_HEADED_BERT_FLINK", REPOSITORY / ".venv-engines" / "flink"))
JOB_SERVER_JAR = FLINK_DIR / "job-server.jar"
_JOB_MANAGER = "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint"
_TASK_MANAGER = "org.apache.flink.runtime.taskexecutor.TaskManagerRunner"
# What Flink and Beam reach into since Java 17.
_OPENED = ("lang", "lang.invoke", "net", "nio", "text", "time", "util", "util.concurrent", "util.concurrent.atomic")
_MARK = "BASH_JAVA_UTILS_EXEC_RESULT:"

_CONFIGURATION = """
jobmanager.rpc.address: 127.0.0.1
jobmanager.rpc.port: {rpc_port}
jobmanager.bind-host: 127.0.0.1
jobmanager.memory.process.size: 1g
taskmanager.bind-host: 127.0.0.1
taskmanager.host: 127.0.0.1
taskmanager.memory.process.size: 1200m
taskmanager.numberOfTaskSlots: 1
rest.address: 127.0.0.1
rest.bind-address: 127.0.0.1
rest.port: {rest_port}
parallelism.default: 1
# Batch jobs write no checkpoints; what a lost worker did is done again.
restart-strategy.type: fixed-delay
restart-strategy.fixed-delay.attempts: 10
restart-strategy.fixed-delay.delay: 1 s
heartbeat.interval: 1000
heartbeat.timeout: 5000
"""
_LOGGING = """
rootLogger.level = INFO
rootLogger.appenderRef.console.ref = console
appender.console.name = console
appender.console.type = CONSOLE
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d{HH:mm:ss} %-5p %c{1} - %m%n
"""


def _classpath() -> str:
    return os.pathsep.join(map(str, sorted((FLINK_DIR / "pyflink" / "lib").glob("*.jar"))))


def _java(*jvm: str) -> list[str]:
    opened = [f"--add-opens=java.base/java.{package}=ALL-UNNAMED" for package in _OPENED]
    return ["java", *opened, *jvm, "-Dlog4j.configurationFile=log4j.properties", "-cp", _classpath()]


def _task_manager_memory(directory: Path) -> tuple[list[str], list[str]]:
    """Let Flink divide a TaskManager's memory, as its start script does: JVM options, and options of its own."""
    jars = [*(FLINK_DIR / "pyflink").glob("bin/*.jar"), *(FLINK_DIR / "pyflink").glob("lib/flink-dist*.jar")]
    tool = ["java", "-cp", os.pathsep.join(map(str, jars)), "org.apache.flink.runtime.util.bash.BashJavaUtils"]
    done = subprocess.run(
        [*tool, "GET_TM_RESOURCE_PARAMS", "--configDir", directory], check=True, capture_output=True, text=True
    )
    jvm, own = (line.removeprefix(_MARK) for line in done.stdout.splitlines() if line.startswith(_MARK))
    return jvm.split(), own.split()


def start_flink(processes: Cluster, commands: Path, *, num_workers: int) -> list[str]:
    """Start a standalone cluster, each TaskManager with one slot and its own pool of Python workers.

    Args:
        processes: where the processes go.
        commands: of the environment whose Python the workers are.
        num_workers: TaskManagers.

    Returns:
        The job's options.
    """
    rest_port, pool_port = free_port(), free_port()
    configuration = _CONFIGURATION.format(rpc_port=free_port(), rest_port=rest_port)
    (processes.directory / "config.yaml").write_text(configuration)
    (processes.directory / "log4j.properties").write_text(_LOGGING)
    processes.start("jobmanager", [*_java("-Xmx700m"), _JOB_MANAGER, "-c", "."])
    processes.wait_for_port("jobmanager", rest_port)
    jvm, own = _task_manager_memory(processes.directory)
    for number in range(num_workers):
        # The pool's name means another loopback address to each TaskManager.
        address = f"127.0.0.{number + 2}"
        (processes.directory / f"hosts-{number}").write_text(
            f"127.0.0.1 localhost {os.uname().nodename}\n{address} pool\n"
        )
        pool: list[str | Path] = [
            commands / "python",
            Path(__file__).with_name("worker_pool.py"),
            f"{address}:{pool_port}",
        ]
        processes.start(f"pool-{number}", [*pool], PATH=f"{commands}{os.pathsep}{os.environ['PATH']}")
        hosts = f"-Djdk.net.hosts.file=hosts-{number}"
        processes.start(f"taskmanager-{number}", [*_java(hosts, *jvm), _TASK_MANAGER, "-c", ".", *own])
    for number in range(num_workers):
        processes.wait_for(f"taskmanager-{number}", "Successful registration at resource manager")
    return [
        *flink_options(f"localhost:{rest_port}", num_workers),
        "--environment_type=EXTERNAL",
        f"--environment_config=pool:{pool_port}",
    ]


def flink_options(master: str, num_workers: int) -> list[str]:
    """Return the options that send a job to a Flink master."""
    return [
        "--runner=FlinkRunner",
        f"--flink_master={master}",
        f"--flink_job_server_jar={JOB_SERVER_JAR}",
        f"--parallelism={num_workers}",
    ]


def version() -> str:
    """Return which Flink and which job server are tested."""
    (dist,) = (FLINK_DIR / "pyflink" / "lib").glob("flink-dist-*.jar")
    flink = dist.stem.removeprefix("flink-dist-")
    return f"Flink {flink}, {(FLINK_DIR / 'version').read_text().strip()}, Python {sys.version.split()[0]}"
