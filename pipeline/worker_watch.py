"""What happens when a worker process dies, or somebody presses Ctrl-C, while a job runs on this machine.

Beam waits for its workers without end: for one that was killed before it could report for work, and for all of them
after an interrupt. So the first sign of either ends every worker at once, which wakes Beam up.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from pipeline.errors import OutputWriteError

# Names that Beam gives to its threads: those that wait for worker processes, one each, and those that talk to them.
WORKER_THREAD = "run_worker"
_TALKING_THREADS = ("beam_control_read", "read_grpc_client_inputs")

WORKER_DIED = (
    "a worker process died, killed from outside or for lack of memory; nothing was published: "
    "run the same command again, with a smaller --direct_num_workers if memory is short"
)


class _WorkerWatch:
    """Ends a job whose worker has died.

    Args:
        process_ids_path: a file to which every worker process adds a line with its id when it starts.
        is_done_fn: tells whether the job's work is done, after which workers may end as they like.
    """

    def __init__(self, process_ids_path: str, is_done_fn: Callable[[], bool]):
        self._process_ids_path = process_ids_path
        self._is_done_fn = is_done_fn
        self._lock = threading.Lock()
        self._running = True
        self._interrupted = False
        self.worker_died = False
        self._former_signal_handler = signal.signal(signal.SIGINT, self._on_interrupt)
        self._former_thread_hook = threading.excepthook
        threading.excepthook = self._on_thread_error

    def stop(self) -> None:
        """Stop watching; from here on nothing is interrupted."""
        with self._lock:
            self._running = False
        if not (self.worker_died or self._interrupted):
            # Otherwise threads that talked to the workers may still be about to say that they are gone.
            threading.excepthook = self._former_thread_hook
        signal.signal(signal.SIGINT, self._former_signal_handler)

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.worker_died:
            if self._running:
                raise KeyboardInterrupt
            return
        self._interrupted = True
        self._end_workers()
        if callable(self._former_signal_handler):
            self._former_signal_handler(number, frame)

    def _on_thread_error(self, error: threading.ExceptHookArgs) -> None:
        """Called by a thread that failed; one that waited for a worker does so if that ended without success."""
        name = error.thread.name if error.thread else ""
        if name != WORKER_THREAD:
            if name not in _TALKING_THREADS:
                self._former_thread_hook(error)
            return
        with self._lock:
            if self._interrupted or self.worker_died or not self._running or self._is_done_fn():
                return
            self.worker_died = True
            self._end_workers()
            # Beam waits in the main thread, in calls that only a signal can end.
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    def _end_workers(self) -> None:
        with contextlib.suppress(FileNotFoundError), open(self._process_ids_path, encoding="ascii") as stream:
            for line in stream:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(line), signal.SIGKILL)


@contextmanager
def watch_workers(process_ids_path: str, is_done_fn: Callable[[], bool]) -> Iterator[None]:
    """Run a job on this machine so that a dead worker, or an interrupt, ends it.

    Args:
        process_ids_path: a file to which every worker process adds a line with its id when it starts.
        is_done_fn: tells whether the job's work is done.

    Raises:
        OutputWriteError: a worker died before the work was done.
    """
    if threading.current_thread() is not threading.main_thread():
        # Signals cannot be handled elsewhere; a program that runs jobs in threads has to watch over them itself.
        yield
        return
    watch = _WorkerWatch(process_ids_path, is_done_fn)
    try:
        try:
            yield
        finally:
            watch.stop()
    except (Exception, KeyboardInterrupt) as error:
        if not watch.worker_died:
            raise
        raise OutputWriteError(WORKER_DIED) from error
