"""An output that fills up, cannot be written or disappears, and jobs that are killed: nothing complete is damaged."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.dataset.info import DATASET_INFO_NAME, read_dataset_info
from pipeline.verify import verify
from tests.faults.conftest import Note
from tests.support.corpora import Outcome, digest_files, made_up_text, write_lines, write_tree
from tests.support.workshop import (
    Workshop,
    is_alive,
    only_error,
    start,
    stop_job,
    wait_for,
    wait_for_files,
    wait_for_workers,
)

NUM_LONG = 6_000


def check_clean(output: Path) -> None:
    assert [str(fault) for fault in verify(str(output)).faults] == []


@pytest.fixture
def long_workshop(workshop: Workshop) -> Workshop:
    """A workshop with a small dataset in its output, and a job of a second or two that is to replace it."""
    workshop.make()
    shutil.rmtree(workshop.corpus)
    texts = [made_up_text(number, 200).strip().replace("\n", "") for number in range(NUM_LONG)]
    lines = [f"{text}\t{('体育', '科技')[number % 2]}" for number, text in enumerate(texts)]
    write_lines(workshop.corpus, lines)
    return workshop


# Killed at any moment


@pytest.mark.parametrize("victim", ["job", "worker"])
@pytest.mark.parametrize("seed", range(5))
def test_kill_at_a_random_moment(long_workshop: Workshop, note: Note, victim: str, seed: int) -> None:
    """SIGKILL, then the same command again: at every moment one dataset is whole, and the rerun succeeds."""
    made = long_workshop
    draw = random.Random(f"{victim}{seed}")
    seconds = draw.uniform(0, 2)

    def wait(process: subprocess.Popen[str], num_missed: int) -> None:
        wait_for_workers(process)
        time.sleep(seconds * 0.8**num_missed)

    def is_at_work() -> bool:
        return any(made.output.glob(".partial-*"))

    stopped = stop_job(lambda: start(made, "--overwrite", "--direct_num_workers", "2"), wait, is_at_work)
    # The one before the job that is killed: there may have been one that was quicker.
    former = digest_files(made.output)
    stopped.kill(stopped.process.pid if victim == "job" else draw.choice(stopped.workers))
    if victim == "job":
        outcome = stopped.outcome()
        assert outcome == Outcome(-signal.SIGKILL, "", "")
    else:
        stopped.resume()
        outcome = stopped.outcome()
        only_error(outcome, "a worker process died, killed from outside", status=1)
    after = digest_files(made.output)
    if DATASET_INFO_NAME in after:
        published = {name: digest for name, digest in former.items() if not name.startswith(".partial-")}
        assert published.items() <= after.items() or after[DATASET_INFO_NAME] != former[DATASET_INFO_NAME]
        findings = verify(str(made.output))
        listed = [fault for fault in findings.faults if "not listed" not in fault.what]
        assert listed == [], "what is described is whole"
    else:
        assert list(made.output.glob(f".partial-*/{DATASET_INFO_NAME}")), "the new one is whole, but not moved yet"
    made.make("--overwrite")
    check_clean(made.output)
    assert read_dataset_info(str(made.output)).documents.read == NUM_LONG
    wait_for(lambda: not any(map(is_alive, stopped.workers)), "the end of the workers")
    assert [name for name in os.listdir(made.output) if name.startswith(".") or name.endswith(".tmp")] == []
    note(f"SIGKILL of the {victim}", f"{outcome.stderr.strip() or '(killed)'}; the rerun is clean")


# No room, no right, no directory


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """Let no file of this process and its children grow beyond a size."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("num_bytes", [0, 100, 700, 3_000, 20_000])
def test_no_file_may_grow_beyond_a_limit(workshop: Workshop, note: Note, num_bytes: int) -> None:
    workshop.make()
    before = digest_files(workshop.output)
    write_tree(workshop.corpus, {f"体育/long{i}.txt": made_up_text(100 + i, 900) for i in range(60)})
    with largest_file(num_bytes):
        outcome = workshop.run("--overwrite")
    only_error(outcome, "cannot write: File too large; free some space or fix it, then run again", status=1)
    assert digest_files(workshop.output) == before
    note("file size limit", outcome.stderr.strip().replace(str(workshop.root), "…"))
    workshop.make("--overwrite")
    check_clean(workshop.output)


def mount(note_skip: str, *arguments: str | Path) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{note_skip} needs the right to mount: {done.stderr.strip()}")


@pytest.mark.parametrize("kilobytes", [16, 40, 64, 96])
def test_disk_full(workshop: Workshop, note: Note, kilobytes: int) -> None:
    disk = workshop.root / "disk"
    disk.mkdir()
    mount("a full disk", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", disk)
    try:
        output = disk / "dataset"
        write_tree(workshop.corpus, {f"体育/long{i}.txt": made_up_text(100 + i, 900) for i in range(80)})
        outcome = workshop.run("--output", output)
        only_error(outcome, "No space left on device; free some space", status=1)
        assert not output.exists()
        note("disk full", outcome.stderr.strip().replace(str(workshop.root), "…"))
        subprocess.run(["mount", "-o", "remount,size=4m", disk], check=True)
        workshop.make("--output", output)
        check_clean(output)
    finally:
        subprocess.run(["umount", disk], check=True)


def test_read_only_output_with_a_dataset(workshop: Workshop, note: Note) -> None:
    workshop.make()
    before = digest_files(workshop.output)
    mount("a read-only output", "--bind", workshop.output, workshop.output)
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", workshop.output], check=True)
        outcome = workshop.run("--overwrite")
        only_error(outcome, "cannot make this directory: Read-only file system", status=1)
        note("read-only output", outcome.stderr.strip().replace(str(workshop.root), "…"))
        assert [str(fault) for fault in verify(str(workshop.output)).faults] == []
    finally:
        subprocess.run(["umount", workshop.output], check=True)
    assert digest_files(workshop.output) == before
    workshop.make("--overwrite")


def test_output_that_disappears(long_workshop: Workshop, note: Note) -> None:
    made = long_workshop

    def is_writing() -> bool:
        return any(made.output.glob(".partial-*")) and not any(made.output.glob(f".partial-*/{DATASET_INFO_NAME}"))

    stopped = stop_job(
        lambda: start(made, "--overwrite", "--direct_num_workers", "1"),
        lambda process, _: wait_for_files(process, made.output, ".partial-*"),
        is_writing,
    )
    shutil.rmtree(made.output)
    stopped.resume()
    outcome = stopped.outcome()
    only_error(outcome, "cannot write: No such file or directory", status=1)
    note("output directory removed", outcome.stderr.strip().replace(str(made.root), "…"))
    made.make()
    check_clean(made.output)


# What other versions and other file systems leave


def leave_unfinished(workshop: Workshop, version: object) -> Path:
    """Make the output look as if a job of another version had died just before its last rename."""
    workshop.make()
    staging = workshop.output / ".partial-0badcafe"
    staging.mkdir()
    content = json.loads((workshop.output / DATASET_INFO_NAME).read_text(encoding="utf-8"))
    (workshop.output / DATASET_INFO_NAME).unlink()
    content["format_version"] = version
    (staging / DATASET_INFO_NAME).write_text(json.dumps(content), encoding="utf-8")
    return staging


@pytest.mark.parametrize("version", [2, "x", None])
def test_remains_of_another_version(workshop: Workshop, note: Note, version: object) -> None:
    staging = leave_unfinished(workshop, version)
    before = digest_files(workshop.output)
    outcome = workshop.run()
    only_error(
        outcome, "died while publishing it, and which this version cannot publish .*or add --overwrite to discard"
    )
    assert digest_files(workshop.output) == before, "it is complete, so it is not ours to remove unasked"
    note("remains of another version", outcome.stderr.strip().replace(str(workshop.root), "…"))
    workshop.make("--overwrite")
    assert not staging.exists()
    check_clean(workshop.output)


def test_file_systems_without_locks(
    workshop: Workshop, note: Note, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", refuse)
    (workshop.output / ".partial-0badcafe").mkdir(parents=True)
    outcome = workshop.run()
    assert outcome.status == 0
    lines = outcome.stderr.splitlines()
    assert lines
    assert all("no locks on this file system (Operation not supported); let nothing else" in line for line in lines)
    note("file system without locks", lines[0].replace(str(workshop.root), "…"))
    check_clean(workshop.output)
    assert [name for name in os.listdir(workshop.output) if name.startswith(".")] == []
