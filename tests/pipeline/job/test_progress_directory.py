"""The directory in which a job's workers count: nobody takes it from a job that is alive."""

import os
import tempfile
import threading
from pathlib import Path

import pytest

from pipeline.job.progress import progress_bars


def test_jobs_that_start_at_the_same_moment_leave_each_others_directories_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each looks for what dead jobs left, just when another one has made its directory and not locked it yet."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    outcomes: list[str] = []

    def start() -> None:
        for _ in range(30):
            try:
                with progress_bars(enabled=False) as directory:
                    (Path(directory) / "read-1-a").write_text("1")
                    outcomes.append("ours" if os.listdir(directory) == ["read-1-a"] else "somebody else's")
            except Exception as error:  # noqa: BLE001
                outcomes.append(repr(error))

    jobs = [threading.Thread(target=start) for _ in range(8)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert outcomes == ["ours"] * 240
    assert os.listdir(tmp_path) == []
