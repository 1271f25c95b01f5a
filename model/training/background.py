"""Work on the disk that the training loop does not wait for."""

import concurrent.futures
from collections.abc import Callable
from types import TracebackType
from typing import Any


class BackgroundWriter:
    """Runs one write at a time in a thread; leaving its context waits for the last one.

    An error of a write is raised by the next `start` or `wait`, or when the context ends without another error.
    """

    def __init__(self) -> None:
        self._thread = concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="writer")
        self._last: concurrent.futures.Future[None] | None = None

    def start(self, write: Callable[..., None], *arguments: Any) -> None:
        """Wait for the write before, then start this one."""
        self.wait()
        self._last = self._thread.submit(write, *arguments)

    def wait(self) -> None:
        """Wait until everything is on disk."""
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def __enter__(self) -> "BackgroundWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._thread.shutdown()
        if error is None:
            self.wait()
