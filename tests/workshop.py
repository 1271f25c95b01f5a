"""A directory with a small corpus, and ways to run the job on it: within this process or as a process to be broken."""

import dataclasses
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import run_preprocess
from tests.pipeline.corpora import QUICK, Outcome, made_up_documents, run_command_line, write_tree, write_vocab

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
        """Run the command, which must succeed and say nothing on stderr."""
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
    command = [sys.executable, REPOSITORY / "run_preprocess.py", "--input", workshop.corpus, "--vocab", workshop.vocab]
    return subprocess.Popen(
        [*command, "--output", workshop.output, *options],
        cwd=workshop.root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def children_of(parent: int) -> list[int]:
    """Return the living processes that a process has started; a job's are its workers, forked or through a shell."""
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            stat = Path(f"/proc/{name}/stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        state, its_parent = stat.rsplit(")", 1)[1].split()[:2]
        if int(its_parent) == parent and state != "Z":
            found.append(int(name))
    return found


def is_alive(process_id: int) -> bool:
    try:
        # A process that has ended has no command line, even if nobody has taken note of its end.
        return bool(Path(f"/proc/{process_id}/cmdline").read_bytes())
    except OSError:
        return False


def wait_for(condition_fn: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 30
    while not condition_fn():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.01)


def wait_for_workers(process: subprocess.Popen[str]) -> list[int]:
    wait_for(lambda: len(children_of(process.pid)) == 2, "two workers")
    return children_of(process.pid)
