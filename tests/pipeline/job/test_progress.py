"""Progress: what workers leave, what is added up of it, and the bars that a terminal shows and nothing else does."""

import contextlib
import fcntl
import io
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from pipeline.job import progress
from pipeline.job.progress import ProgressWriter, progress_bars, read_count
from tests.support.corpora import made_up_documents, write_zip
from tests.support.workshop import REPOSITORY, Workshop, make_workshop, wait_for

# Counts


class FakeClock:
    """A clock that goes only as far as it is told."""

    def __init__(self) -> None:
        self.seconds = 1_000.0

    def monotonic(self) -> float:
        return self.seconds


def test_a_count_is_written_twice_a_second_and_when_it_is_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = FakeClock()
    monkeypatch.setattr(progress, "time", clock)
    writer = ProgressWriter(str(tmp_path), "read")
    writer.add(3)
    assert read_count(str(tmp_path), "read") == 0, "half a second has not passed"
    clock.seconds += 0.5
    writer.add(4)
    assert read_count(str(tmp_path), "read") == 7
    clock.seconds += 0.4
    writer.add(1)
    assert read_count(str(tmp_path), "read") == 7
    writer.flush()
    assert read_count(str(tmp_path), "read") == 8


def test_counts_of_all_workers_add_up_by_stage(tmp_path: Path) -> None:
    for stage, count in (("listed", 10), ("read", 5), ("read", 3), ("written", 0)):
        writer = ProgressWriter(str(tmp_path), stage)
        writer.add(count)
        writer.flush()
    counts = {stage: read_count(str(tmp_path), stage) for stage in ("listed", "read", "written")}
    assert counts == {"listed": 10, "read": 8, "written": 0}


def test_without_a_directory_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    writer = ProgressWriter(None, "read")
    writer.add(1)
    writer.flush()
    assert os.listdir(tmp_path) == []


def test_a_count_that_cannot_be_written_is_no_failure_and_not_tried_again(tmp_path: Path) -> None:
    directory = tmp_path / "gone"
    writer = ProgressWriter(str(directory), "read")
    for _ in range(2):
        writer.add(1)
        writer.flush()
        directory.mkdir(exist_ok=True)
    assert os.listdir(directory) == []


# Bars


def bars_of(shown: str) -> list[str]:
    """Return every state of every bar, in the order in which they were shown."""
    return [part.strip() for part in re.split(r"[\r\n]", shown) if part.strip()]


def test_bars_follow_the_counts_stage_by_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_DRAWINGS", 0.01)
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)

    def wait_for_bar(pattern: str) -> None:
        wait_for(lambda: any(re.fullmatch(pattern, bar) for bar in bars_of(screen.getvalue())), pattern)

    rate_and_rest = r"\[\d\d:\d\d<\d\d:\d\d, +[\d.]+k? docs/s\]"
    with progress_bars(enabled=True) as directory:
        listed, read, written = (ProgressWriter(directory, stage) for stage in ("listed", "read", "written"))

        def count(writer: ProgressWriter, number: int) -> None:
            writer.add(number)
            writer.flush()

        count(read, 30)
        # How many there are is not known of a table's lines.
        wait_for_bar(r"1/2 read and hash: 30 docs \[\d\d:\d\d, +[\d.]+k? docs/s\]")
        count(listed, 250)
        count(read, 20)
        wait_for_bar(rf"1/2 read and hash: +20%\|[^|]*\| 50/250 {rate_and_rest}")
        count(read, 150)
        wait_for_bar(rf"1/2 read and hash: +80%\|[^|]*\| 200/250 {rate_and_rest}")
        # What was read is what there is to write, whether it had been listed or not.
        count(written, 20)
        wait_for_bar(rf"2/2 tokenize and write: +10%\|[^|]*\| 20/200 {rate_and_rest}")
        count(written, 180)
    last = bars_of(screen.getvalue())[-1]
    assert re.fullmatch(rf"2/2 tokenize and write: 100%\|[^|]*\| 200/200 {rate_and_rest}", last)
    assert not os.path.exists(directory)


# A job and its terminal

NUM_DOCUMENTS = 3_000


def run_on_terminal(workshop: Workshop, *options: str) -> tuple[str, str]:
    """Run the command with a terminal for its stderr; return its stdout and all that the terminal got."""
    terminal, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 150, 0, 0))
    script = REPOSITORY / "run_preprocess.py"
    command: list[str | Path] = [sys.executable, script, "--input", workshop.corpus, "--vocab", workshop.vocab]
    process = subprocess.Popen(
        [*command, "--output", workshop.output, *options], stdout=subprocess.PIPE, stderr=end, text=True
    )
    os.close(end)
    shown = []
    # Linux tells the end of a terminal by an error.
    with contextlib.suppress(OSError):
        while part := os.read(terminal, 1 << 16):
            shown.append(part)
    os.close(terminal)
    stdout, _ = process.communicate(timeout=60)
    assert process.returncode == 0, b"".join(shown)
    return stdout, b"".join(shown).decode()


@pytest.mark.parametrize("num_workers", ["1", "2"])
def test_a_terminal_shows_documents_rate_and_time_left(tmp_path: Path, num_workers: str) -> None:
    workshop = make_workshop(tmp_path)
    shutil.rmtree(workshop.corpus)
    write_zip(workshop.corpus, made_up_documents(NUM_DOCUMENTS))
    stdout, shown = run_on_terminal(workshop, "--direct_num_workers", num_workers)
    assert f"documents: {NUM_DOCUMENTS:,} read = {NUM_DOCUMENTS:,} written + 0 rejected" in stdout
    assert "docs/s" not in stdout
    for phrase in ("1/2 read and hash", "2/2 tokenize and write"):
        *_, last = (bar for bar in bars_of(shown) if bar.startswith(phrase))
        done = rf"{phrase}: 100%\|█+\| {NUM_DOCUMENTS}/{NUM_DOCUMENTS} "
        assert re.fullmatch(done + r"\[\d\d:\d\d<\d\d:\d\d, +[\d.]+k? docs/s\]", last)


def test_elsewhere_nothing_is_shown(tmp_path: Path) -> None:
    outcome = make_workshop(tmp_path).run()
    assert (outcome.status, outcome.stderr) == (0, "")
    assert "documents: 12 read" in outcome.stdout
