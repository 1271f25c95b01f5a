"""Forked workers: when they may be, what they take from their job and what they leave, and how they end."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from pipeline.engines.forked_workers import can_fork
from tests.support.corpora import digest_files, made_up_documents, make_config, run_by_hand, write_tree

REPOSITORY = Path(__file__).resolve().parents[3]

# Whether workers can be forked depends on what a process did before, so each test has a process of its own.
_PRELUDE = """
import fcntl, json, logging, os, signal, subprocess, sys, threading, time
logging.disable()  # what Beam says about itself
from pipeline.engines.forked_workers import can_fork, fork_workers

def children():
    pids = subprocess.run(["ps", "-o", "pid=,stat=,args=", "--ppid", str(os.getpid())], capture_output=True, text=True)
    return [line for line in pids.stdout.splitlines() if " ps -o" not in line]

def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
"""


def run_script(script: str, *arguments: object) -> str:
    """Run a script in a process of its own, and return what it printed; it must say nothing on stderr."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _PRELUDE + script, *map(str, arguments)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_a_process_with_a_second_thread_does_not_fork() -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        assert not can_fork()
    finally:
        done.set()
        thread.join()


def test_importing_the_job_leaves_forking_safe_and_starting_grpc_does_not() -> None:
    script = """
import pipeline.job.preprocess
print(can_fork())
import grpc
from concurrent.futures import ThreadPoolExecutor
server = grpc.server(ThreadPoolExecutor(1))
wait_for(lambda: not can_fork())  # its threads name themselves
print(threading.active_count())
"""
    assert run_script(script) == "True\n1\n"


def test_unused_workers_end_with_the_block_and_leave_no_zombie() -> None:
    script = """
with fork_workers(3):
    print(len(children()))
print(children())
try:
    with fork_workers(2):
        raise ValueError
except ValueError:
    print(children())
"""
    assert run_script(script) == "3\n[]\n[]\n"


def test_a_worker_gives_up_what_is_the_jobs_own(tmp_path: Path) -> None:
    """A lock or pipe that it shared would outlive the job's own use of it."""
    script = """
path = sys.argv[1]
lock = os.open(path, os.O_RDONLY | os.O_CREAT)
fcntl.flock(lock, fcntl.LOCK_EX)
print("buffered once", end=" ")
signal.signal(signal.SIGTERM, lambda *_: print("the job's own handler"))
with fork_workers(2) as (worker, other):
    for pid in (worker.process_id, other.process_id):
        wait_for(lambda: path not in {os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")})
    os.close(lock)
    again = os.open(path, os.O_RDONLY)
    fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.kill(worker.process_id, signal.SIGTERM)
    print(worker.wait() == signal.SIGTERM)
"""
    assert run_script(script, tmp_path / "lock") == "buffered once True\n"


def test_ctrl_c_does_not_end_a_worker_whenever_it_comes() -> None:
    """It goes to every process of a terminal; the job is the one to end its workers."""
    script = """
os.setpgrp()
job = os.getpid()
signal.signal(signal.SIGINT, lambda *_: os.getpid() == job or os._exit(1))
for _ in range(20):
    with fork_workers(2) as workers:
        for moment in range(10):
            os.killpg(0, signal.SIGINT)
            time.sleep(0.002)
        states = [line.split()[1] for line in children()]
        assert not any(state.startswith("Z") for state in states), states
print("all lived")
"""
    assert run_script(script) == "all lived\n"


def test_orders_to_a_dead_worker_are_lost_and_its_end_is_told() -> None:
    script = """
with fork_workers(2) as (first, second):
    os.kill(first.process_id, signal.SIGKILL)
    first.wait()
    first.start({}, log_path=None)
    print(first.wait() == signal.SIGKILL, os.path.exists(f"/proc/{second.process_id}"))
print(first.wait())
"""
    assert run_script(script) == "True True\n0\n"


def test_a_worker_that_cannot_follow_its_orders_says_so_in_the_log_and_fails(tmp_path: Path) -> None:
    script = """
with fork_workers(1) as (worker,):
    worker.start({"WORKER_ID": "1"}, log_path=sys.argv[1])
    print(worker.wait(), "WORKER_ID" in os.environ)
print(children())
"""
    assert run_script(script, tmp_path / "log") == "1 False\n[]\n"
    assert "KeyError: 'CONTROL_API_SERVICE_DESCRIPTOR'" in (tmp_path / "log").read_text(encoding="utf-8")


def test_waiting_workers_die_with_their_job() -> None:
    script = """
with fork_workers(2) as workers:
    print(json.dumps([worker.process_id for worker in workers]), flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", _PRELUDE + script], stdout=subprocess.PIPE, cwd=REPOSITORY, text=True
    )
    assert process.stdout
    workers = json.loads(process.stdout.readline())
    assert len(workers) == 2
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 10
    # Whoever adopts them may take a moment to take note.
    while any(is_running(worker) for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.stdout.close()


def is_running(process_id: int) -> bool:
    try:
        return Path(f"/proc/{process_id}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_forked_and_started_workers_write_what_one_process_writes_and_leave_nothing(tmp_path: Path) -> None:
    """The first job of a process may fork; it leaves gRPC's threads behind, so that the second may not."""
    config = make_config(tmp_path, write_tree(tmp_path / "tree", made_up_documents(1_200)), num_shards=4)
    run_by_hand(config)
    expected = digest_files(Path(config.output_dir))
    script = """
from pipeline.corpus.options import CorpusOptions, InputSpec
from pipeline.job.config import PreprocessConfig
from pipeline.job.preprocess import EngineOptions, run
tree, vocab, *outputs = sys.argv[1:]
for output in outputs:
    print(can_fork(), end=" ")
    corpus = CorpusOptions(inputs=(InputSpec(tree),))
    config = PreprocessConfig(corpus=corpus, vocab_path=vocab, output_dir=output, max_len=512, num_shards=4)
    run(config, EngineOptions(num_workers=2))
    print(children())
"""
    outputs = [tmp_path / "forked", tmp_path / "started"]
    assert run_script(script, tmp_path / "tree", config.vocab_path, *outputs) == "True []\nFalse []\n"
    assert [digest_files(output) for output in outputs] == [expected, expected]


def test_ctrl_c_ends_started_workers_through_their_job(tmp_path: Path) -> None:
    config = make_config(tmp_path, write_tree(tmp_path / "tree", made_up_documents(1_200)), num_shards=4)
    script = """
from pipeline.corpus.options import CorpusOptions, InputSpec
from pipeline.job.config import PreprocessConfig
from pipeline.job.preprocess import EngineOptions, run
os.setpgrp()
tree, vocab, output = sys.argv[1:]
corpus = CorpusOptions(inputs=(InputSpec(tree),))
config = PreprocessConfig(corpus=corpus, vocab_path=vocab, output_dir=output, max_len=512, num_shards=4)

def press():
    while sum("pipeline.engines.local_worker" in line for line in children()) < 2:
        time.sleep(0.01)
    os.killpg(0, signal.SIGINT)

threading.Thread(target=press).start()  # with which there is no forking
try:
    run(config, EngineOptions(num_workers=2))
except KeyboardInterrupt:
    print("interrupted", children(), os.path.exists(output))
"""
    assert run_script(script, tmp_path / "tree", config.vocab_path, tmp_path / "out") == "interrupted [] False\n"
