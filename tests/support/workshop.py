"""A directory with a small corpus, and ways to run the job on it: within this process or as a process to be broken."""

import contextlib
import dataclasses
import functools
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import run_preprocess
from tests.support.corpora import QUICK, Outcome, made_up_documents, run_command_line, write_tree, write_vocab

REPOSITORY = Path(run_preprocess.__file__).parent


@dataclasses.dataclass(frozen=True)
class Workshop:
    """A directory with a small corpus and a vocabulary.

    Attributes:
        root: holds `corpus`, `vocab.txt` and, if all goes well, `dataset`.
    """

    root: Path

    @property
    def corpus(self) -> Path:
        return self.root / "corpus"

    @property
    def vocab(self) -> Path:
        return self.root / "vocab.txt"

    @property
    def output(self) -> Path:
        return self.root / "dataset"

    def run(self, *options: str | Path, inputs: tuple[str | Path, ...] | None = None) -> Outcome:
        """Run the command on the corpus, or on other inputs."""
        given = [argument for path in (inputs or (self.corpus,)) for argument in ("--input", str(path))]
        return run_command_line(*given, "--vocab", self.vocab, "--output", self.output, *QUICK, *options)

    def make(self, *options: str | Path, inputs: tuple[str | Path, ...] | None = None) -> None:
        """Run the command, which must succeed without an error or a warning."""
        outcome = self.run(*options, inputs=inputs)
        assert (outcome.status, outcome.stderr) == (0, "")


def only_error(outcome: Outcome, message: str, status: int = 2) -> None:
    assert outcome.status == status, outcome
    assert outcome.stdout == ""
    lines = outcome.stderr.split("\n")
    assert len(lines) == 2, f"expected one line, got {outcome.stderr!r}"
    assert lines[1] == ""
    assert lines[0].startswith("error: ")
    assert re.search(message, lines[0]), lines[0]


def make_workshop(root: Path) -> Workshop:
    """Return a workshop with twelve documents."""
    made = Workshop(root)
    write_tree(made.corpus, made_up_documents(12))
    write_vocab(made.vocab)
    return made


def start(workshop: Workshop, *options: str | Path) -> subprocess.Popen[str]:
    script = REPOSITORY / "run_preprocess.py"
    command: list[str | Path] = [sys.executable, script, "--input", workshop.corpus, "--vocab", workshop.vocab]
    return subprocess.Popen(
        [*command, "--output", workshop.output, *options],
        cwd=workshop.root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _stat(process_id: int) -> tuple[str, int]:
    """Return a process's state and its parent; a process that is gone counts as a zombie without one."""
    try:
        stat = Path(f"/proc/{process_id}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "Z", 0
    state, parent = stat.rsplit(")", 1)[1].split()[:2]
    return state, int(parent)


def _is_stopped(process: subprocess.Popen[str]) -> bool:
    return process.poll() is not None or _stat(process.pid)[0] == "T"


def _are_stopped(workers: list[int]) -> bool:
    return all(_stat(worker)[0] in "TZ" for worker in workers)


def workers_of(job: int) -> list[int]:
    """Return the living workers of a job, or the shells that are about to become workers."""
    processes = (int(name) for name in os.listdir("/proc") if name.isdigit())
    children = [process for process in processes if _stat(process)[1] == job and _stat(process)[0] != "Z"]
    # A job may start something else for a moment.
    return [child for child in children if b"pipeline.engines.local_workers" in _command_line(child)]


def _command_line(process_id: int) -> bytes:
    try:
        return Path(f"/proc/{process_id}/cmdline").read_bytes()
    except OSError:
        return b""


def is_alive(process_id: int) -> bool:
    # A process that has ended has no command line, even if nobody has taken note of its end.
    return bool(_command_line(process_id))


def wait_for(condition_fn: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 30
    while not condition_fn():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.01)


def wait_for_workers(process: subprocess.Popen[str]) -> None:
    """Wait until a job has two workers, or has ended."""
    wait_for(lambda: len(workers_of(process.pid)) >= 2 or process.poll() is not None, "two workers")


def wait_for_files(process: subprocess.Popen[str], directory: Path, pattern: str) -> None:
    """Wait until a job has written a file, or has ended."""
    wait_for(lambda: any(directory.glob(pattern)) or process.poll() is not None, pattern)


@dataclasses.dataclass(frozen=True)
class StoppedJob:
    """A job that is held in the middle of its work, and its workers with it: it can neither go on nor end.

    Attributes:
        process: the job.
        workers: its worker processes.
    """

    process: subprocess.Popen[str]
    workers: list[int]

    def kill(self, victim: int) -> None:
        """Kill the job or a worker, while nothing moves."""
        os.kill(victim, signal.SIGKILL)
        if victim == self.process.pid:
            self.process.wait()

    def resume(self) -> None:
        """Let the job go on alone, so that no worker ends the work before the job has taken note of what happened."""
        os.kill(self.process.pid, signal.SIGCONT)

    def outcome(self) -> Outcome:
        """Wait for the end of the job; workers that are left then may go on, to notice that and to end."""
        try:
            self.process.wait(timeout=60)
        finally:
            if self.process.poll() is None:
                self.signal_all(signal.SIGKILL)
            self.signal_all(signal.SIGCONT)
            stdout, stderr = self.process.communicate(timeout=60)
        return Outcome.of(self.process.returncode, stdout, stderr)

    def signal_all(self, number: int) -> None:
        """Send a signal to the job and its workers."""
        with contextlib.suppress(ProcessLookupError):  # there is none left
            os.killpg(self.process.pid, number)


def stop_job(
    start_fn: Callable[[], subprocess.Popen[str]],
    wait_fn: Callable[[subprocess.Popen[str], int], None],
    is_moment_fn: Callable[[], bool],
) -> StoppedJob:
    """Start a job and stop it in the middle of its work; if it is quicker, start another.

    Args:
        start_fn: starts it.
        wait_fn: waits for the moment, given the job and how often that was missed; not beyond the job's end.
        is_moment_fn: tells, when nothing moves any more, whether the moment has not passed yet.
    """
    for num_missed in range(8):
        process = start_fn()
        wait_fn(process, num_missed)
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.killpg(process.pid, signal.SIGSTOP)
        wait_for(functools.partial(_is_stopped, process), "a job that stops")
        workers = workers_of(process.pid)
        wait_for(functools.partial(_are_stopped, workers), "workers that stop")
        stopped = StoppedJob(process, workers)
        if process.poll() is None and is_moment_fn():
            return stopped
        stopped.signal_all(signal.SIGCONT)
        outcome = stopped.outcome()
        assert outcome.status == 0, outcome
    raise AssertionError("the job was done before the moment had come, again and again")
