"""What a test session promises: a hang is a failure, skipped tests are told, and nothing depends on the clock."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support.real_data import DATA_DIR_VARIABLE

REPOSITORY = Path(__file__).resolve().parents[1]


def run_session(path: Path, content: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a test file of this content under this project's settings."""
    path.write_text(content, encoding="utf-8")
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-c", REPOSITORY / "pyproject.toml", "-p", "tests.conftest", *arguments, path],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_session_without_real_data_ends_loudly(tmp_path: Path) -> None:
    content = "from tests.support.real_data import real_data\n\ndef test():\n    real_data('a', 'b.txt')\n"
    done = run_session(tmp_path / "test_real.py", content, **{DATA_DIR_VARIABLE: str(tmp_path / "none")})
    *_, skipped, headline, line, counts = done.stdout.splitlines()
    assert re.match(r"SKIPPED \[1\] .*: real data not found at .*/none/a/b\.txt; set TWO_HEADED_BERT_DATA", skipped)
    assert re.fullmatch("!+ TESTS ON REAL DATA DID NOT RUN !+", headline)
    assert line == f"1 skipped: looked in {tmp_path}/none; set TWO_HEADED_BERT_DATA to where the data is"
    assert counts.startswith("1 skipped in ")
    assert (done.returncode, done.stderr) == (0, "")


def test_other_skipped_tests_are_told_with_their_reason_and_no_more(tmp_path: Path) -> None:
    content = "import pytest\n\n@pytest.mark.skip(reason='other')\ndef test(): pass\n"
    done = run_session(tmp_path / "test_skip.py", content)
    assert re.search(r"SKIPPED \[1\] .*test_skip\.py:3: other", done.stdout)
    assert "REAL DATA" not in done.stdout


def test_a_test_that_hangs_ends_its_session_as_a_failure_and_shows_where(tmp_path: Path) -> None:
    content = "import time\n\ndef test():\n    time.sleep(100)\n"
    done = run_session(tmp_path / "test_hang.py", content, "-o", "faulthandler_timeout=0.5")
    assert done.returncode == 1
    assert re.search(r'File ".*test_hang\.py", line 4 in test', done.stderr)


def test_every_test_has_a_time_limit(pytestconfig: pytest.Config) -> None:
    assert float(pytestconfig.getini("faulthandler_timeout")) > 0
    assert pytestconfig.getini("faulthandler_exit_on_timeout")


def test_no_example_has_a_deadline_and_unattended_sessions_repeat_each_other() -> None:
    script = (
        "import tests.conftest; from hypothesis import settings; print(settings().deadline, settings().derandomize)"
    )
    for unattended in (False, True):
        environment = {name: value for name, value in os.environ.items() if name != "CI"}
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=REPOSITORY,
            env=environment | ({"CI": "true"} if unattended else {}),
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout == f"None {unattended}\n"
    assert settings().deadline is None
