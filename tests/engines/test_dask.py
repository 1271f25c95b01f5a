"""The job on Dask: a scheduler and two worker processes, one of which may die."""

from pathlib import Path

import pytest

from benchmarks.clusters.processes import Cluster, finish, start_dask, wait_until_writing
from pipeline.dataset.files import digest_directory
from tests.engines.conftest import Expected
from tests.support.corpora import Outcome

pytestmark = pytest.mark.slow


def test_two_workers_give_the_same_bytes(processes: Cluster, site: Path, small: Expected) -> None:
    task = small.task("dask")
    task.run(*start_dask(processes, site, num_workers=2))
    assert digest_directory(str(task.output)) == small.digest


def test_a_killed_worker_changes_nothing(processes: Cluster, site: Path, large: Expected) -> None:
    task = large.task("dask-kill")
    process = task.start(*start_dask(processes, site, num_workers=2))
    wait_until_writing(process, task)
    processes.kill("worker-0")
    finish(process)
    assert digest_directory(str(task.output)) == large.digest


def test_an_error_in_a_worker_is_one_line(processes: Cluster, site: Path, small: Expected) -> None:
    task = small.task("dask-error")
    process = task.start("--max_rejected_fraction", "0", *start_dask(processes, site, num_workers=1))
    errors = Outcome.of(process.wait(120), *process.communicate()).stderr
    assert process.returncode == 2
    assert errors.startswith("error: 2 of 603 documents rejected (0.3%), at most 0.0% allowed: 体育/bad.txt (not_utf-8")
    assert len(errors.strip().splitlines()) == 1
    assert not task.output.exists()
