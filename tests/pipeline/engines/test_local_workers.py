"""Workers and their job end together, whichever of them goes first."""

import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.engines.local_workers import watch_workers, worker_command
from pipeline.errors import WorkerDiedError
from tests.support.workshop import wait_for

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Two processes that would live for a minute, with their ids where a job would look for them."""
    started = [subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) for _ in range(2)]
    (tmp_path / "pids").write_text("".join(f"{process.pid}\n" for process in started), encoding="ascii")
    yield started
    for process in started:
        process.kill()
        process.wait()


def wait_as_beam_does(process: subprocess.Popen[bytes]) -> threading.Thread:
    def wait() -> None:
        if process.wait():
            raise RuntimeError(f"Worker subprocess exited with return code {process.returncode}")

    thread = threading.Thread(name="run_worker", target=wait)
    thread.start()
    return thread


@contextmanager
def once_the_main_thread_waits(act_fn: Callable[[], object]) -> Iterator[None]:
    """Do something in another thread as soon as the main thread waits for something, as it does for Beam."""

    def is_waiting() -> bool:
        frame = sys._current_frames().get(threading.main_thread().ident or 0)
        called = [called.f_code for called, _ in traceback.walk_stack(frame)]
        # Called by the test: to start a thread is to wait, too.
        return called[1] is threading.Event.wait.__code__ and called[2].co_filename == __file__

    def act() -> None:
        wait_for(is_waiting, "a main thread that waits")
        act_fn()

    thread = threading.Thread(target=act)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def test_a_dead_worker_ends_the_others_and_the_wait(tmp_path: Path, workers: list[subprocess.Popen[bytes]]) -> None:
    threads = [wait_as_beam_does(process) for process in workers]
    former = (threading.excepthook, signal.getsignal(signal.SIGINT))
    with (
        pytest.raises(WorkerDiedError, match="a worker process died, killed from outside or for lack of memory"),
        watch_workers(str(tmp_path / "pids"), lambda: False),
        once_the_main_thread_waits(workers[0].kill),
    ):
        threading.Event().wait(30)
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()
    assert signal.getsignal(signal.SIGINT) == former[1]
    threading.excepthook = former[0]


def test_workers_may_end_as_they_like_when_the_work_is_done(
    tmp_path: Path, workers: list[subprocess.Popen[bytes]]
) -> None:
    thread = wait_as_beam_does(workers[0])
    former = (threading.excepthook, signal.getsignal(signal.SIGINT))
    with watch_workers(str(tmp_path / "pids"), lambda: True):
        workers[0].kill()
        thread.join()
        time.sleep(0.05)
    assert workers[1].poll() is None
    assert (threading.excepthook, signal.getsignal(signal.SIGINT)) == former


def test_an_interrupt_ends_all_workers_and_stays_an_interrupt(
    tmp_path: Path, workers: list[subprocess.Popen[bytes]]
) -> None:
    former = threading.excepthook
    with (
        pytest.raises(KeyboardInterrupt),
        watch_workers(str(tmp_path / "pids"), lambda: False),
        once_the_main_thread_waits(lambda: os.kill(os.getpid(), signal.SIGINT)),
    ):
        threading.Event().wait(30)
    assert [process.wait(5) for process in workers] == [-signal.SIGKILL] * 2
    threading.excepthook = former


def test_an_interrupt_that_another_thread_takes_reaches_the_main_thread(tmp_path: Path) -> None:
    """As one does that met a suspended job: whichever of its threads is awake first takes it."""
    former = threading.excepthook
    started = time.monotonic()
    with (
        pytest.raises(KeyboardInterrupt),
        watch_workers(str(tmp_path / "pids"), lambda: False),
        once_the_main_thread_waits(lambda: signal.pthread_kill(threading.get_ident(), signal.SIGINT)),
    ):
        threading.Event().wait(30)
    assert time.monotonic() - started < 20
    threading.excepthook = former


def test_nothing_stays_behind(tmp_path: Path) -> None:
    before = (threading.active_count(), len(os.listdir("/proc/self/fd")), signal.set_wakeup_fd(-1))
    for _ in range(3):
        with watch_workers(str(tmp_path / "pids"), lambda: False):
            pass
    assert (threading.active_count(), len(os.listdir("/proc/self/fd")), signal.set_wakeup_fd(-1)) == before


def test_errors_of_other_threads_go_where_they_went(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", seen.append)
    with watch_workers(str(tmp_path / "pids"), lambda: False):
        for name in ("mine", "beam_control_read"):
            thread = threading.Thread(name=name, target=lambda: 1 / 0)
            thread.start()
            thread.join()
    assert [error.thread.name for error in seen if error.thread] == ["mine"]


def test_outside_the_main_thread_nothing_is_watched(tmp_path: Path) -> None:
    former = (threading.excepthook, signal.getsignal(signal.SIGINT))
    seen = []

    def run() -> None:
        with watch_workers(str(tmp_path / "pids"), lambda: False):
            seen.append((threading.excepthook, signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [former]


def write_stand_in(root: Path, work: str) -> None:
    """Write a stand-in for Beam's worker, which ours imports if `root` is on the search path."""
    package = root / "apache_beam" / "runners" / "worker"
    package.mkdir(parents=True)
    for directory in (package, *package.parents[:2]):
        (directory / "__init__.py").touch()
    (package / "sdk_worker_main.py").write_text(f"import signal, sys, time\ndef main(argv):\n    {work}\n")


def test_a_worker_leaves_its_id_and_its_errors_and_ignores_ctrl_c(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All paths hold a space, and the current directory a package of the same name."""
    root = tmp_path / "a directory"
    write_stand_in(root, "print(signal.getsignal(signal.SIGINT) == signal.SIG_IGN); sys.exit('it failed')")
    (root / "pipeline").mkdir()
    (root / "pipeline" / "__init__.py").write_text("raise AssertionError", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(root))
    log, process_ids = root / "a log", root / "process ids"
    log.write_text("from another worker\n", encoding="utf-8")
    command = worker_command(log_path=str(log), process_ids_path=str(process_ids))
    worker = subprocess.Popen(command, shell=True, cwd=root, stdout=subprocess.PIPE, text=True)
    stdout, _ = worker.communicate(timeout=60)
    assert (worker.returncode, stdout) == (1, "True\n")
    assert log.read_text(encoding="utf-8") == "from another worker\nit failed\n"
    assert process_ids.read_text(encoding="ascii") == f"{worker.pid}\n"


def test_a_worker_dies_with_its_job(tmp_path: Path) -> None:
    write_stand_in(tmp_path, "time.sleep(60)")
    job = (
        "import os, subprocess, sys, time\n"
        "worker = subprocess.Popen([sys.executable, '-m', 'pipeline.engines.local_workers', str(os.getpid())])\n"
        "print(worker.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{REPOSITORY}"}
    process = subprocess.Popen([sys.executable, "-c", job], stdout=subprocess.PIPE, env=environment, cwd=tmp_path)
    assert process.stdout
    worker = int(process.stdout.readline())
    time.sleep(0.5)
    assert Path(f"/proc/{worker}").exists()
    process.kill()
    process.wait()
    # The pipe ends when the last process that holds it does.
    process.stdout.read()
    process.stdout.close()


def test_a_worker_whose_job_is_gone_does_not_start(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.engines.local_workers", "1"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, "the job has died\n")
