"""The package as it is installed: its commands anywhere, and workers that another process starts from it."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.clusters.processes import REPOSITORY, Cluster, finish, start_portable
from pipeline.dataset.files import digest_directory
from tests.engines.conftest import Expected
from tests.support.corpora import Outcome

pytestmark = pytest.mark.slow


def test_the_installed_package_is_complete(commands: Path) -> None:
    """Both packages with their data files, and the modules of the commands; no tests, and no TensorFlow."""
    found = subprocess.run(
        [commands / "python", "-m", "pip", "show", "--files", "two-headed-bert"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    installed = {line.strip() for line in found.split("Files:")[1].splitlines()}
    ours = {
        path.relative_to(REPOSITORY).as_posix()
        for package in ("pipeline", "model")
        for path in (REPOSITORY / package).rglob("*.*")
        if path.suffix != ".pyc"
    }
    assert {"pipeline/dataset/thucnews_taxonomy.tsv", "model/report/page.css"} <= ours
    assert {*ours, "run_preprocess.py", "run_train.py"} <= installed
    assert not any(name.startswith(("tests/", "benchmarks/")) for name in installed)
    assert subprocess.run([commands / "python", "-c", "import tensorflow"], stderr=subprocess.DEVNULL).returncode == 1


def test_the_installed_command_does_the_job_anywhere(commands: Path, small: Expected) -> None:
    task = small.task("command")
    command: list[str | Path] = [
        commands / "two-headed-bert-preprocess",
        "--input",
        task.corpus,
        "--vocab",
        task.vocab,
        "--output",
        "dataset",
    ]
    process = subprocess.Popen(
        [*map(str, command), "--num_shards", "8", "--direct_num_workers", "2"],
        cwd=task.output.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert "603 documents in" in finish(process)
    assert digest_directory(str(task.output)) == small.digest


def test_the_installed_training_command_says_what_it_needs(commands: Path) -> None:
    done = subprocess.run([commands / "two-headed-bert-train", "--data", "x"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.strip() == (
        "error: the following arguments are required: --bert, --output; see two-headed-bert-train --help"
    )


def test_external_workers_give_the_same_bytes(processes: Cluster, commands: Path, small: Expected) -> None:
    task = small.task("portable")
    task.run(*start_portable(processes, commands))
    assert digest_directory(str(task.output)) == small.digest
    # The pool's workers did it, not a process of ours.
    assert "Starting worker with command" in processes.log("pool")


def test_workers_without_the_package_fail_in_one_line(processes: Cluster, small: Expected) -> None:
    """What forgetting to install it looks like: an error that names what is missing, and no output."""
    task = small.task("bare")
    options = start_portable(processes, Path(sys.executable).parent)
    process = task.start(*options)
    errors = Outcome.of(process.wait(120), *process.communicate()).stderr
    assert process.returncode == 2
    assert errors.strip().splitlines() == [
        "error: --runner PortableRunner: its workers lack this package (No module named 'pipeline'); install it where "
        "they run, or send it along with --setup_file setup.py"
    ]
    assert not task.output.exists()
