"""Worker processes on this machine: how they start, end with their job, and end their job when they die.

    python -m pipeline.engines.local_workers JOB_PROCESS_ID

is one worker: Beam's own, which the kernel kills when its job dies. Without this, workers of a killed job live on for
up to a minute, hold memory and write into the output.

Beam waits without end for a worker that was killed before it registered, and for all workers after Ctrl-C. So the first
sign of either ends every worker, which wakes Beam up. Beam waits in the main thread, which alone handles signals, in
calls that only a signal ends; a signal that another thread takes, or that arrives just before such a call, does not end
it. So signals are repeated until the main thread has handled one.
"""

import contextlib
import ctypes
import gc
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from pipeline.errors import WorkerDiedError

# By default malloc keeps the megabytes of every array it ever served. Far below 2 MiB it would fetch every array from
# the kernel page by page: a third of a worker's time.
_MALLOC_MMAP_THRESHOLD_BYTES = 2 << 20
_PR_SET_PDEATHSIG = 1  # linux/prctl.h

# Names that Beam gives to its threads: those that wait for worker processes, one each, and those that talk to them.
_WAITING_THREAD = "run_worker"
_TALKING_THREADS = ("beam_control_read", "read_grpc_client_inputs")

_SECONDS_TO_REACT = 0.2

WORKER_DIED = (
    "a worker process died, killed from outside or for lack of memory; nothing was published: "
    "run the same command again, with fewer workers if memory is short"
)


def worker_command(*, log_path: str | None, process_ids_path: str) -> str:
    """Return the shell command of one worker, which runs this interpreter and can import what this process can.

    Args:
        log_path: file to which the worker appends its stderr; `None` leaves it on the job's stderr.
        process_ids_path: file to which the worker adds a line with its process id, for `watch_workers`.
    """
    repository = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    paths = [repository, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    # "" is the current directory: a directory `pipeline` there is not this package. (`-P` came with Python 3.11.)
    code = (
        "import sys; sys.path[:] = filter(None, sys.path); "
        "from pipeline.engines.local_workers import main; main(sys.argv)"
    )
    python = f"exec {shlex.quote(sys.executable)} -c {shlex.quote(code)} {os.getpid()}"
    return "; ".join(
        (
            # Ctrl-C reaches every process of the terminal; the job alone handles it, and ends its workers. `exec` keeps
            # the trap and the process id, so that the id in the file is the worker's.
            "trap '' INT",
            f"echo $$ >> {shlex.quote(process_ids_path)}",
            f"export MALLOC_MMAP_THRESHOLD_={_MALLOC_MMAP_THRESHOLD_BYTES}",
            f"export PYTHONPATH={shlex.quote(os.pathsep.join(dict.fromkeys(paths)))}",
            f"{python} 2>> {shlex.quote(log_path)}" if log_path else python,
        )
    )


def main(argv: Sequence[str]) -> None:
    """Run one worker until its job is done; the kernel kills it when the job dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # The job may have died before the kernel was asked.
    if os.getppid() != int(argv[1]):
        sys.exit("the job has died")
    # Imported here because it takes a second, in which the job could die.
    from apache_beam.runners.worker import sdk_worker_main

    # Beam's modules live as long as the worker, so that the collector need not visit their objects.
    gc.freeze()
    sdk_worker_main.main([argv[0]])


class _WorkerWatch:
    """Ends a job whose worker has died; see `watch_workers`."""

    def __init__(self, process_ids_path: str, is_done_fn: Callable[[], bool]):
        self._process_ids_path = process_ids_path
        self._is_done_fn = is_done_fn
        self._lock = threading.Lock()
        self._running = True
        self._interrupted = False
        self.worker_died = False
        self._has_reacted = False
        # Python writes the number of every signal here at once, in the thread that takes it.
        self._signals, self._signals_end = os.pipe()
        os.set_blocking(self._signals_end, False)
        self._former_signals_end = signal.set_wakeup_fd(self._signals_end, warn_on_full_buffer=False)
        self._insisting = threading.Thread(target=self._insist, daemon=True)
        self._insisting.start()
        self._former_signal_handler = signal.signal(signal.SIGINT, self._on_interrupt)
        self._former_thread_hook = threading.excepthook
        threading.excepthook = self._on_thread_error

    def stop(self) -> None:
        """Stop watching and restore the former handlers."""
        with self._lock:
            self._running = False
        signal.set_wakeup_fd(self._former_signals_end)
        os.close(self._signals_end)
        self._insisting.join()
        os.close(self._signals)
        if not (self.worker_died or self._interrupted):
            # Otherwise threads that talked to the workers may still be about to fail because of that.
            threading.excepthook = self._former_thread_hook
        signal.signal(signal.SIGINT, self._former_signal_handler)

    def _insist(self) -> None:
        """Repeat an interrupt until the main thread has reacted or the job is over; runs in a thread of its own."""
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
        """Handle the exception of a thread: one that waits for a worker raises one if the worker fails."""
        name = error.thread.name if error.thread else ""
        if name != _WAITING_THREAD:
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
        process_ids_path: file to which every worker process adds a line with its id when it starts.
        is_done_fn: tells whether the job's work is done, after which workers may end in any way.

    Raises:
        WorkerDiedError: a worker died before the work was done.
    """
    if threading.current_thread() is not threading.main_thread():
        # Only the main thread can handle signals.
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
        raise WorkerDiedError(WORKER_DIED) from error


if __name__ == "__main__":
    main(sys.argv)
