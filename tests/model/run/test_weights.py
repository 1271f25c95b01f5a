"""Files that a run writes: whole or not at all."""

import resource
import signal
from pathlib import Path

import pytest

from model.files import copy_file, remove_temporary, write_text
from pipeline.errors import MissingInputError, OutputWriteError


def test_a_copy_is_whole_or_not_there(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(bytes(range(256)) * 100)
    copy_file(tmp_path / "source", tmp_path / "deep" / "copy")
    assert (tmp_path / "deep" / "copy").read_bytes() == (tmp_path / "source").read_bytes()
    (tmp_path / "source").write_bytes(b"longer" * 10_000)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
    try:
        with pytest.raises(OutputWriteError, match="copy: cannot write: File too large"):
            copy_file(tmp_path / "source", tmp_path / "deep" / "copy")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert (tmp_path / "deep" / "copy").read_bytes() == bytes(range(256)) * 100
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["copy"]
    with pytest.raises(MissingInputError, match="no such file"):
        copy_file(tmp_path / "none", tmp_path / "copy")


def test_a_text_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "体育\n")
    assert (tmp_path / "file").read_bytes() == "体育\n".encode()
    for place in (tmp_path / "file" / "text", tmp_path / "none" / "text"):
        with pytest.raises(OutputWriteError, match="text: cannot write: "):
            write_text(place, "")


def test_removes_what_a_killed_process_left_half_written(tmp_path: Path) -> None:
    for name in (".weights.npz.1234abcd.tmp", "report.html.1234abcd.tmp", "weights.npz"):
        (tmp_path / name).touch()
    (tmp_path / ".bert.1234abcd.tmp" / "deep").mkdir(parents=True)
    remove_temporary(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["weights.npz"]
    remove_temporary(tmp_path / "none")
