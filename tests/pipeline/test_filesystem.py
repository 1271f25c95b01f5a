"""Local and remote files through the same functions: whole files or none, and errors that say what to do."""

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest

from pipeline import filesystem
from pipeline.errors import MissingInputError, OptionError, OutputWriteError


def test_local_and_remote_paths() -> None:
    assert filesystem.is_remote("gs://bucket/a")
    assert not filesystem.is_remote("/data/a")
    assert not filesystem.is_remote("gs:/a")
    assert filesystem.join("gs://bucket/a/", "b", "c") == "gs://bucket/a/b/c"
    assert filesystem.join("/data/a", "b", "c") == "/data/a/b/c"
    assert filesystem.join("data", "b") == "data/b"


def test_write_read_rename_delete(tmp_path: Path) -> None:
    path, other = str(tmp_path / "a"), str(tmp_path / "b")
    filesystem.write_atomically(path, b"one")
    filesystem.write_atomically(path, memoryview(b"another"))
    assert filesystem.read_bytes(path) == b"another"
    assert filesystem.size(path) == 7
    filesystem.write_atomically(other, b"")
    filesystem.rename(path, other)
    assert not filesystem.exists(path)
    assert filesystem.size(path) is None
    assert filesystem.read_bytes(other) == b"another"
    filesystem.delete([path, other])  # one that is gone already is no error
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failed_write_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"former")

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OutputWriteError, match=f"{path}: cannot write: No space left on device"):
        filesystem.write_atomically(str(path), b"new")
    assert os.listdir(tmp_path) == ["a"]
    assert path.read_bytes() == b"former"


def test_a_reader_never_sees_half_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    seen: list[list[str]] = []
    fsync = os.fsync

    def look(descriptor: int) -> None:
        seen.append(os.listdir(tmp_path))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    filesystem.write_atomically(str(path), b"content")
    assert len(seen) == 1
    assert all(name.startswith(".a.") and name.endswith(".tmp") for name in seen[0])
    assert os.listdir(tmp_path) == ["a"]


def test_renames_and_deletions_that_fail_are_told(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "a").touch()
    with pytest.raises(OutputWriteError, match="directory: cannot replace: Is a directory"):
        filesystem.rename(str(tmp_path / "a"), str(tmp_path / "directory"))
    with pytest.raises(OutputWriteError, match="directory: cannot delete: "):
        filesystem.delete([str(tmp_path / "directory")])


def test_a_file_that_can_be_opened_but_not_read() -> None:
    with pytest.raises(MissingInputError, match="/proc/self/mem: cannot read this file: Input/output error"):
        filesystem.read_bytes("/proc/self/mem")


def test_files_that_cannot_be_read_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    for name, message in [
        ("none", "none: no such file"),
        (".", "expected a file, found a directory"),
        ("file/below", "cannot open this file: Not a directory"),
        ("loop", "cannot open this file: Too many levels of symbolic links"),
    ]:
        with pytest.raises(MissingInputError, match=message):
            filesystem.read_bytes(str(tmp_path / name))


def test_match_and_list(tmp_path: Path) -> None:
    for name in ("b/2", "b/c/3", "a1", "a0", ".hidden"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b" / "circle").symlink_to(tmp_path)
    assert filesystem.match(str(tmp_path / "a*")) == [str(tmp_path / "a0"), str(tmp_path / "a1")]
    assert filesystem.match(str(tmp_path / "x*")) == []
    below = [os.path.relpath(path, tmp_path) for path in filesystem.list_below(str(tmp_path))]
    assert below == [".hidden", "a0", "a1", "b/2", "b/c/3"]


def test_directories(tmp_path: Path) -> None:
    path = str(tmp_path / "a" / "b")
    filesystem.make_directory(path)
    filesystem.make_directory(path)
    filesystem.write_atomically(os.path.join(path, "x"), b"x")
    for wrong in (os.path.join(path, "x"), os.path.join(path, "x", "y")):
        with pytest.raises(OptionError, match="expected a directory, found a file"):
            filesystem.make_directory(wrong)
    filesystem.delete_directory(str(tmp_path / "a"))
    filesystem.delete_directory(str(tmp_path / "a"))
    assert os.listdir(tmp_path) == []


def test_unknown_file_systems() -> None:
    with pytest.raises(OptionError, match="unknown file system 'http'; use a local path, gs://, s3://"):
        filesystem.exists("http://host/a")
    with pytest.raises(OptionError, match="unknown file system 'file'"):
        filesystem.read_bytes("file:///a")


@pytest.mark.parametrize(("scheme", "extra"), [("gs", "gcp"), ("s3", "aws"), ("azfs", "azure"), ("hdfs", "hadoop")])
def test_uninstalled_file_systems_say_what_to_install(monkeypatch: pytest.MonkeyPatch, scheme: str, extra: str) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    for function in (filesystem.exists, filesystem.read_bytes, filesystem.match, filesystem.list_below):
        with pytest.raises(OptionError, match=rf"cannot read {scheme}://; pip install 'apache-beam\[{extra}\]'"):
            function(f"{scheme}://bucket/a")
