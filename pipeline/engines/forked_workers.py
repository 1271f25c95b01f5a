"""Worker processes forked from the job: they are there in milliseconds, because all they need is imported already.

gRPC, through which Beam talks to its workers, does not survive a fork. So workers are forked before it is used for the
first time, and wait at a pipe for their orders: what Beam would have given them in their environment.
"""

import contextlib
import ctypes
import dataclasses
import gc
import json
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NoReturn

from pipeline.engines.local_worker import MALLOC_MMAP_THRESHOLD_BYTES, end_with_job
from pipeline.tokenization.characters import fold_table

_M_MMAP_THRESHOLD = -3  # malloc.h
_STDERR = 2
_JOB_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# pyarrow's allocator. It puts its thread away for a fork, as OpenBLAS does with its own, which bear the process's name.
_THREADS_THAT_FORK_WELL = "jemalloc_bg_thd"


def can_fork() -> bool:
    """Tell whether forking is safe: on Linux, with no other thread that could hold a lock, gRPC's least of all."""
    if sys.platform != "linux" or threading.active_count() > 1:
        return False
    names = {path.read_text(encoding="utf-8") for path in Path("/proc/self/task").glob("*/comm")}
    own = Path("/proc/self/comm").read_text(encoding="utf-8")
    return names <= {own, _THREADS_THAT_FORK_WELL + "\n"}


@dataclasses.dataclass(frozen=True)
class ForkedWorker:
    """One forked process.

    Attributes:
        process_id: nobody else bears it until `fork_workers` is left.
        orders: the writing end of the pipe at which it waits.
    """

    process_id: int
    orders: IO[str]

    def start(self, environment: Mapping[str, str], log_path: str | None) -> None:
        """Set it to work, once; if it is dead already, `wait` tells.

        Args:
            environment: what Beam tells a worker in its environment.
            log_path: where it leaves what it says; `None` lets it say it on stderr.
        """
        with contextlib.suppress(BrokenPipeError), self.orders:
            json.dump({"environment": dict(environment), "log_path": log_path}, self.orders)

    def wait(self) -> int:
        """Wait until it has ended, and return its exit status or signal; 0 is success."""
        try:
            # Its status is left for `fork_workers` to take.
            outcome = os.waitid(os.P_PID, self.process_id, os.WEXITED | os.WNOWAIT)
        except ChildProcessError:  # which has done so already, the job being over
            return 0
        return outcome.si_status if outcome else 0


@contextmanager
def fork_workers(num_workers: int) -> Iterator[list[ForkedWorker]]:
    """Fork worker processes that wait for their orders, and end them when all is over; only where `can_fork`."""
    job_process_id = os.getpid()
    # What is buffered now would be written again by each worker.
    sys.stdout.flush()
    sys.stderr.flush()
    workers: list[ForkedWorker] = []
    try:
        for _ in range(num_workers):
            reading, writing = os.pipe()
            with _signals_held():
                process_id = os.fork()
                if not process_id:
                    _work(reading, job_process_id)
                workers.append(ForkedWorker(process_id, os.fdopen(writing, "w", encoding="utf-8")))
            os.close(reading)
        yield workers
    finally:
        for worker in workers:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(worker.process_id, signal.SIGKILL)
                os.waitpid(worker.process_id, 0)
            worker.orders.close()


@contextmanager
def _signals_held() -> Iterator[None]:
    """Let signals wait: one that met a process just forked would find it with the job's own reactions, or unlisted."""
    former = signal.pthread_sigmask(signal.SIG_BLOCK, _JOB_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def _work(orders: int, job_process_id: int) -> NoReturn:
    """Be a worker, from the fork to the end of the process; `orders` is the reading end of a pipe."""
    status = 1
    try:
        # The job's own reactions to signals, its log handlers and its open files are none of a worker's business.
        # Ctrl-C reaches every process of the terminal at once: the job is the one to answer, and ends its workers.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _JOB_SIGNALS)
        try:
            end_with_job(job_process_id)
        except SystemExit:
            os._exit(1)  # killed in the same moment: there is nobody left to be told
        logging.getLogger().handlers.clear()
        # Whatever came with the fork stays: looking through it again and again would take a tenth of the time.
        gc.freeze()
        _let_go_of_open_files(orders)
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(_M_MMAP_THRESHOLD, MALLOC_MMAP_THRESHOLD_BYTES)
        _prepare()
        with os.fdopen(orders, encoding="utf-8") as stream:
            message = stream.read()
        # No orders at all: the job has ended without a need for this worker.
        if message:
            _follow(json.loads(message))
        status = 0
    finally:
        # Even a SystemExit ends here: what stands above on the stack, and what is to be done at exit, is the job's.
        try:
            if status:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)


def _let_go_of_open_files(kept: int) -> None:
    """Give up the job's open files: a lock would be held, and a pipe kept open, for as long as a worker lives.

    Their numbers stay in use, because objects that came with the fork may still close them.
    """
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        if descriptor > _STDERR and descriptor not in (kept, nothing):
            os.dup2(nothing, descriptor)


def _prepare() -> None:
    """Do what every worker does first, while the job is still building its graph."""
    from apache_beam.runners.worker import sdk_worker_main  # noqa: F401

    fold_table()


def _follow(orders: Mapping[str, Any]) -> None:
    """Do what Beam asks for until it has no more to ask."""
    from apache_beam.runners.worker import sdk_worker_main

    if orders["log_path"]:
        log = os.open(orders["log_path"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(log, _STDERR)
        os.close(log)
    os.environ.update(orders["environment"])
    sdk_worker_main.main([])
