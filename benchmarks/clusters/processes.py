"""Engines as processes of this machine: started outside the repository, waited for, killed, and gone in the end.

What the tests and `benchmarks.engines` share. Every engine is a function that starts what it needs and returns the
options with which `run_preprocess.py` reaches it.
"""

import contextlib
import ctypes
import dataclasses
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PRISM = REPOSITORY / ".venv-engines" / "bin" / "prism"
SPARK_JAR = REPOSITORY / ".venv-engines" / "spark" / "job-server.jar"
_SOURCES = ("pipeline", "model", "setup.py", "pyproject.toml", "README.md", "run_preprocess.py", "run_train.py")
_SECONDS_BETWEEN_LOOKS = 0.005
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def free_port() -> int:
    """Return a port of the loopback interface that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _die_with_parent() -> None:
    # Whoever started an engine may be killed itself, and then nobody else would end it.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Processes that work together, each with a log in one directory.

    Attributes:
        directory: their current directory, and where their logs are.
        processes: name → process, each the leader of a process group of its own.
    """

    directory: Path
    processes: dict[str, subprocess.Popen[bytes]]

    def start(self, name: str, command: list[str | Path], **environment: str) -> subprocess.Popen[bytes]:
        """Start a process that sees nothing of the repository."""
        clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        with open(self.directory / f"{name}.log", "wb") as log:
            process = subprocess.Popen(
                [os.fspath(part) for part in command],
                cwd=self.directory,
                env=clean | environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        self.processes[name] = process
        return process

    def log(self, name: str) -> str:
        """Return what a process said so far."""
        return (self.directory / f"{name}.log").read_text(encoding="utf-8", errors="replace")

    def wait_for(self, name: str, pattern: str, seconds: float = 90) -> re.Match[str]:
        """Wait until a process has said something.

        Raises:
            RuntimeError: it ended, or did not say it in time.
        """
        deadline = time.monotonic() + seconds
        while True:
            ended = self.processes[name].poll() is not None
            if found := re.search(pattern, self.log(name)):
                return found
            if ended or time.monotonic() > deadline:
                raise RuntimeError(f"{name} did not say {pattern!r}; it said:\n{self.log(name)[-4000:]}")
            time.sleep(0.05)

    def wait_for_port(self, name: str, port: int, seconds: float = 90) -> None:
        """Wait until a process listens.

        Raises:
            RuntimeError: it ended, or did not listen in time.
        """
        deadline = time.monotonic() + seconds
        while self.processes[name].poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                return
            time.sleep(0.05)
        raise RuntimeError(f"{name} does not listen on {port}; it said:\n{self.log(name)[-4000:]}")

    def kill(self, name: str) -> None:
        """Kill a process and its children at once, as a machine that goes away would."""
        process = self.processes.pop(name)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextlib.contextmanager
def cluster(directory: Path) -> Iterator[Cluster]:
    """Give a place for processes, all of which are killed in the end."""
    directory.mkdir(parents=True, exist_ok=True)
    processes = Cluster(directory, {})
    try:
        yield processes
    finally:
        for name in list(processes.processes):
            processes.kill(name)


def build_wheel(directory: Path) -> Path:
    """Build this package's wheel from a copy of its sources, so that nothing is left behind in the repository."""
    sources = copy_sources(directory / "sources")
    command: list[str | Path] = [
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        directory / "dist",
        sources,
    ]
    subprocess.run([sys.executable, "-m", *(os.fspath(part) for part in command)], check=True, cwd=directory)
    (wheel,) = (directory / "dist").glob("*.whl")
    return wheel


def copy_sources(destination: Path) -> Path:
    """Copy what belongs to the package."""
    destination.mkdir(parents=True)
    for name in _SOURCES:
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, destination / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, destination / name)
    return destination


def install(directory: Path) -> Path:
    """Install the wheel and the pinned requirements, and nothing else, into a new environment.

    Returns:
        The environment's directory of commands.
    """
    wheel = build_wheel(directory)
    subprocess.run([sys.executable, "-m", "venv", directory / "venv"], check=True)
    commands = directory / "venv" / "bin"
    pip: list[str | Path] = [commands / "python", "-m", "pip", "--disable-pip-version-check"]
    requirements = REPOSITORY / "requirements" / "base.txt"
    subprocess.run(
        [*pip, "install", "--quiet", "--no-deps", "--require-hashes", "-r", requirements], check=True, cwd=directory
    )
    subprocess.run([*pip, "install", "--quiet", "--no-deps", wheel], check=True, cwd=directory)
    subprocess.run([*pip, "check"], check=True, cwd=directory, stdout=subprocess.DEVNULL)
    return commands


def unpack(directory: Path) -> Path:
    """Install the wheel alone into a directory, for an interpreter that has the requirements already."""
    wheel = build_wheel(directory)
    command: list[str | Path] = ["pip", "install", "--quiet", "--no-deps", "--target", directory / "site", wheel]
    subprocess.run([sys.executable, "-m", *(os.fspath(part) for part in command)], check=True, cwd=directory)
    return directory / "site"


def start_worker_pool(processes: Cluster, commands: Path, name: str = "pool") -> int:
    """Start Beam's worker pool from an installed package; return its port."""
    port = free_port()
    pool: list[str | Path] = [
        commands / "python",
        "-m",
        "apache_beam.runners.worker.worker_pool_main",
        "--service_port",
        str(port),
    ]
    # The pool starts its workers as `python`.
    processes.start(name, [*pool], PATH=f"{commands}{os.pathsep}{os.environ['PATH']}")
    processes.wait_for_port(name, port)
    return port


def start_portable(processes: Cluster, commands: Path) -> list[str]:
    """Start Beam's local job service, and a worker pool from an installed package."""
    port = free_port()
    service: list[str | Path] = [
        commands / "python",
        "-m",
        "apache_beam.runners.portability.local_job_service_main",
        "--port",
        str(port),
    ]
    processes.start("service", [*service])
    processes.wait_for_port("service", port)
    pool = start_worker_pool(processes, commands)
    return [
        "--runner=PortableRunner",
        f"--job_endpoint=localhost:{port}",
        "--environment_type=EXTERNAL",
        f"--environment_config=localhost:{pool}",
    ]


def start_dask(processes: Cluster, site: Path, *, num_workers: int) -> list[str]:
    """Start a Dask scheduler and workers, whose only way to this package is what is installed in `site`."""
    port = free_port()
    address = f"tcp://127.0.0.1:{port}"
    dask = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", str(port)]
    processes.start("scheduler", [*dask, "--no-dashboard"], PYTHONPATH=os.fspath(site))
    processes.wait_for_port("scheduler", port)
    for number in range(num_workers):
        worker = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--nthreads", "1", "--no-dashboard"]
        name = f"worker-{number}"
        processes.start(name, [*worker, "--local-directory", name], PYTHONPATH=os.fspath(site))
    for number in range(num_workers):
        processes.wait_for(f"worker-{number}", "Registered to")
    return ["--runner=DaskRunner", f"--dask_client_address={address}", "--dask_npartitions=16"]


def prism_options() -> list[str]:
    """Return the options for Prism, which starts with the job and runs its steps in the job's own process."""
    return ["--runner=PrismRunner", f"--prism_location={PRISM}"]


def spark_options(num_workers: int) -> list[str]:
    """Return the options for Spark within its job server, which starts with the job."""
    return [
        "--runner=SparkRunner",
        f"--spark_master_url=local[{num_workers}]",
        f"--spark_job_server_jar={SPARK_JAR}",
        "--environment_type=LOOPBACK",
    ]


@dataclasses.dataclass(frozen=True)
class Task:
    """One run of the job.

    Attributes:
        corpus, vocab: what to read.
        output: the dataset directory.
    """

    corpus: Path
    vocab: Path
    output: Path

    def start(self, *options: str) -> subprocess.Popen[str]:
        """Start `run_preprocess.py` as a user would, from outside the repository and with a path relative to there."""
        command: list[str | Path] = [
            sys.executable,
            REPOSITORY / "run_preprocess.py",
            "--vocab",
            self.vocab,
            "--output",
            self.output.name,
        ]
        corpus = os.path.relpath(self.corpus, self.output.parent)
        return subprocess.Popen(
            [*(os.fspath(part) for part in command), "--input", corpus, "--num_shards", "8", *options],
            cwd=self.output.parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *options: str, seconds: float = 400) -> str:
        """Run the job and return what it printed.

        Raises:
            RuntimeError: it failed.
        """
        return finish(self.start(*options), seconds)

    def is_writing(self) -> bool:
        """Tell whether the first shard is written and the dataset not yet complete."""
        return any(self.output.glob(".partial-*/*.tfrecord")) and not (self.output / "dataset.json").exists()


def finish(process: subprocess.Popen[str], seconds: float = 400) -> str:
    """Wait for a job and return what it printed.

    Raises:
        RuntimeError: it failed.
    """
    try:
        output, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        output, errors = process.communicate()
        errors += f"\nkilled after {seconds} s"
    if process.returncode:
        raise RuntimeError(f"the job ended with status {process.returncode}:\n{errors[-6000:]}")
    return output


def wait_until_writing(process: subprocess.Popen[str], task: Task) -> None:
    """Wait for the moment at which the first shard is written and others are not.

    Raises:
        RuntimeError: the job was over before.
    """
    while not task.is_writing():
        if process.poll() is not None:
            raise RuntimeError(f"the job was over before anybody could disturb it:\n{process.communicate()[1][-4000:]}")
        time.sleep(_SECONDS_BETWEEN_LOOKS)
