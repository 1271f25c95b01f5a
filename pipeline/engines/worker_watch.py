"""What happens when a worker process dies, or somebody presses Ctrl-C, while a job runs on this machine.

Beam waits for its workers without end: for one that was killed before it could report for work, and for all of them
after an interrupt. So the first sign of either ends every worker at once, which wakes Beam up.

It waits in the main thread, which alone reacts to signals, in calls that only a signal can end. One that another thread
took, or that came just before such a call, does not end it. So signals are repeated until there was a reaction.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from pipeline.errors import OutputWriteError

# Names that Beam gives to its threads: those that wait for worker processes, one each, and those that talk to them.
WORKER_THREAD = "run_worker"
_TALKING_THREADS = ("beam_control_read", "read_grpc_client_inputs")

_SECONDS_TO_REACT = 0.2

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
        self._has_reacted = False
        # Whichever thread takes a signal, its number is written here at once.
        self._signals, self._signals_end = os.pipe()
        os.set_blocking(self._signals_end, False)
        self._former_signals_end = signal.set_wakeup_fd(self._signals_end, warn_on_full_buffer=False)
        self._insisting = threading.Thread(target=self._insist, daemon=True)
        self._insisting.start()
        self._former_signal_handler = signal.signal(signal.SIGINT, self._on_interrupt)
        self._former_thread_hook = threading.excepthook
        threading.excepthook = self._on_thread_error

    def stop(self) -> None:
        """Stop watching; from here on nothing is interrupted."""
        with self._lock:
            self._running = False
        signal.set_wakeup_fd(self._former_signals_end)
        os.close(self._signals_end)
        self._insisting.join()
        os.close(self._signals)
        if not (self.worker_died or self._interrupted):
            # Otherwise threads that talked to the workers may still be about to say that they are gone.
            threading.excepthook = self._former_thread_hook
        signal.signal(signal.SIGINT, self._former_signal_handler)

    def _insist(self) -> None:
        """Run in a thread of its own: repeat an interrupt until the main thread has reacted, or all is over."""
        while numbers := os.read(self._signals, 1):
            while numbers[0] == signal.SIGINT and self._running and not self._has_reacted:
                time.sleep(_SECONDS_TO_REACT)
                with self._lock:
                    if self._running and not self._has_reacted:
                        self._wake_up()

    def _wake_up(self) -> None:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        self._has_reacted = True
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
            self._wake_up()

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
