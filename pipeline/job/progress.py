"""Progress of a local run: workers append counts to a file for each stage, and a thread draws their sums as bars.

Beam's metrics serve the pages of other engines. The local runner has none before the job ends.
"""

import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

WORKER_LOG_NAME = "workers.log"
PROCESS_IDS_NAME = "workers.pid"
_SECONDS_BETWEEN_WRITES = 0.5
_SECONDS_BETWEEN_DRAWINGS = 0.5


class ProgressWriter:
    """Counts one stage of the work in one worker.

    Args:
        directory: where to write the count; `None` writes nothing.
        stage: name of the stage.
    """

    def __init__(self, directory: str | None, stage: str):
        self._path = directory and os.path.join(directory, stage)
        self._count = 0
        self._written = time.monotonic()

    def add(self, count: int) -> None:
        """Add to the count, and write it every half second."""
        self._count += count
        if time.monotonic() - self._written >= _SECONDS_BETWEEN_WRITES:
            self.flush()

    def flush(self) -> None:
        """Append the count since the last flush; a short line is written whole, so that workers can share a file."""
        if not self._path or not self._count:
            return
        self._written = time.monotonic()
        try:
            with open(self._path, "a", encoding="ascii") as stream:
                stream.write(f"{self._count}\n")
        except OSError:
            # A full disk must not end the job here; writing the dataset reports it.
            self._path = None
        self._count = 0


def read_count(directory: str, stage: str) -> int:
    """Return the count of a stage over all workers."""
    try:
        with open(os.path.join(directory, stage), encoding="ascii") as stream:
            return sum(map(int, stream))
    except FileNotFoundError:
        return 0


@contextmanager
def progress_bars(*, enabled: bool) -> Iterator[str]:
    """Draw two bars on stderr while the job runs: documents read, then documents written.

    Args:
        enabled: whether to draw them.

    Yields:
        The directory to which workers write their counts.
    """
    with tempfile.TemporaryDirectory(prefix="two-headed-bert-job-") as directory:
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


def _draw(directory: str, done: threading.Event) -> None:
    for stage, before, phrase in (
        ("read", "listed", "1/2 read and hash"),
        ("written", "read", "2/2 tokenize and write"),
    ):
        # Show every drawing, however small the change, because the time goes on.
        with tqdm(desc=phrase, unit=" docs", miniters=0, file=sys.stderr, dynamic_ncols=True) as bar:
            while True:
                finished = done.wait(_SECONDS_BETWEEN_DRAWINGS)
                # Before the other counts, or the last drawing of a bar could miss some of them.
                finished = finished or (stage == "read" and read_count(directory, "written") > 0)
                # The lines of a TSV are not counted before they are read.
                bar.total = read_count(directory, before) or None
                bar.update(read_count(directory, stage) - bar.n)
                if finished:
                    break
