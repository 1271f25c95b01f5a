"""What the benchmarks share: jobs in processes of their own, their time and their memory; medians; the machine."""

import dataclasses
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import psutil

from pipeline.command_line import num_cores

_SECONDS_BETWEEN_LOOKS = 0.1


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of one way.

    Attributes:
        seconds: from the process's start to its end, imports included.
        work_seconds: what the process itself timed, imports excluded.
        peak_bytes: largest sum of resident memory over the process and all its children.
    """

    seconds: float
    work_seconds: float
    peak_bytes: int


def run_measured(arguments: list[str]) -> Run:
    """Run `python -m …` and watch it; the last line it prints is its own time in seconds, as JSON.

    Raises:
        RuntimeError: it failed.
    """
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    peak = 0
    root = psutil.Process(process.pid)
    while process.poll() is None:
        peak = max(peak, _resident_bytes(root))
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    seconds = time.perf_counter() - started
    output = process.stdout.read() if process.stdout else ""
    if process.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed with status {process.returncode}")
    return Run(seconds, float(json.loads(output.strip().splitlines()[-1])), peak)


def run_command(*arguments: str, stderr: int | None = subprocess.DEVNULL) -> tuple[float, float]:
    """Run `python …`, and return the seconds it took by the clock and of processors; `stderr` is as in `subprocess`."""

    def used() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    started, used_before = time.perf_counter(), used()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, stderr=stderr)
    return time.perf_counter() - started, used() - used_before


def make_bert(output: str, vocab: Path, *, layers: int, hidden: int) -> None:
    """Make a BERT directory with random weights, in BERT's proportions: heads of 64, four times as wide inside."""
    run_command(
        *("-m", "model.sample_bert", "--vocab", str(vocab), "--output", output, "--layers", str(layers)),
        *("--hidden", str(hidden), "--heads", str(hidden // 64), "--intermediate", str(4 * hidden)),
    )


def _resident_bytes(root: psutil.Process) -> int:
    total = 0
    try:
        processes = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for process in processes:
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def median(values: list[float]) -> float:
    """Return the median."""
    return statistics.median(values)


def describe_machine() -> str:
    """Return one line about the machine: absolute figures mean nothing without it."""
    with open("/proc/cpuinfo", encoding="utf-8") as stream:
        names = [line.split(":", 1)[1].strip() for line in stream if line.startswith("model name")]
    memory = psutil.virtual_memory().total / 2**30
    cores = num_cores()
    model = names[0] if names else "an unknown processor"
    return f"{cores} cores of {model}, {memory:.0f} GiB, Python {sys.version.split()[0]}"
