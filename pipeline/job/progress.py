"""Progress of a local run: workers write counts to small files, and a thread adds them up and draws the bars.

Beam's metrics serve the pages of other engines. The local runner has none before the job ends.
"""

import contextlib
import os
import secrets
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from pipeline import filesystem

WORKER_LOG_NAME = "workers.log"
PROCESS_IDS_NAME = "workers.pid"
_PREFIX = "two-headed-bert-progress-"
_SECONDS_BETWEEN_WRITES = 0.5
_SECONDS_BETWEEN_DRAWINGS = 0.5


class ProgressWriter:
    """Count of one stage of the work by one worker.

    Args:
        directory: where to write it; `None` writes nothing.
        stage: name of the stage.
    """

    def __init__(self, directory: str | None, stage: str):
        self._path = directory and os.path.join(directory, f"{stage}-{os.getpid()}-{secrets.token_hex(4)}")
        self._count = 0
        self._written = time.monotonic()

    def add(self, count: int) -> None:
        """Add to the count, and write it every half second."""
        self._count += count
        if time.monotonic() - self._written >= _SECONDS_BETWEEN_WRITES:
            self.flush()

    def flush(self) -> None:
        """Write the count."""
        if not self._path:
            return
        self._written = time.monotonic()
        try:
            with open(self._path + ".tmp", "w", encoding="ascii") as stream:
                stream.write(str(self._count))
            os.replace(self._path + ".tmp", self._path)
        except OSError:
            # The job need not fail for its progress bar; writing the dataset reports a full disk.
            self._path = None


def read_counts(directory: str) -> dict[str, int]:
    """Add up all workers' counts by stage."""
    counts: dict[str, int] = {}
    for name in os.listdir(directory):
        stage = name.split("-")[0]
        if name.endswith(".tmp") or name in (WORKER_LOG_NAME, PROCESS_IDS_NAME):
            continue
        with open(os.path.join(directory, name), encoding="ascii") as stream:
            counts[stage] = counts.get(stage, 0) + int(stream.read() or 0)
    return counts


@contextmanager
def progress_bars(*, enabled: bool) -> Iterator[str]:
    """Draw two bars on stderr while the job runs: documents read, then documents written.

    Args:
        enabled: whether to draw them.

    Yields:
        The directory to which workers write their counts.
    """
    _remove_leftovers()
    with _locked_directory() as directory:
        done = threading.Event()
        thread = threading.Thread(target=_draw, args=(directory, done), daemon=True)
        if enabled:
            thread.start()
        try:
            yield directory
        finally:
            done.set()
            if enabled:
                thread.join()


@contextmanager
def _locked_directory() -> Iterator[str]:
    """Make a temporary directory, and hold its lock, which shows other jobs that this one is alive."""
    while True:
        with tempfile.TemporaryDirectory(prefix=_PREFIX) as directory:
            # Before it is locked, another job that starts may take it for one of a dead job, and remove it.
            lock = filesystem.try_lock(directory)
            if lock is None:
                continue
            try:
                if os.path.exists(directory):
                    yield directory
                    return
            finally:
                os.close(lock)


def _remove_leftovers() -> None:
    """Remove the directories of jobs that were killed."""
    for name in os.listdir(tempfile.gettempdir()):
        if not name.startswith(_PREFIX):
            continue
        path = os.path.join(tempfile.gettempdir(), name)
        # Another user's, or gone in the meantime.
        with contextlib.suppress(OSError):
            lock = filesystem.try_lock(path)
            if lock is not None:
                filesystem.delete_directory(path)
                os.close(lock)


def _draw(directory: str, done: threading.Event) -> None:
    for stage, before, phrase in (
        ("read", "listed", "1/2 read and hash"),
        ("written", "read", "2/2 tokenize and write"),
    ):
        # Show every drawing, however small the change: the time goes on.
        with tqdm(desc=phrase, unit=" docs", miniters=0, file=sys.stderr, dynamic_ncols=True) as bar:
            while True:
                finished = done.wait(_SECONDS_BETWEEN_DRAWINGS)
                counts = read_counts(directory)
                # A TSV's lines are not counted before they are read.
                bar.total = counts.get(before) or None
                bar.update(counts.get(stage, 0) - bar.n)
                if finished or (stage == "read" and counts.get("written")):
                    break
