"""Remote inputs and outputs, through a file system of Beam's that keeps its objects in memory.

It has what tells object stores from local disks: no directories, no locks, no rename but copy and delete.
"""

import dataclasses
import gzip
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from apache_beam.io.filesystem import BeamIOError, FileMetadata, FileSystem

from pipeline import filesystem
from pipeline.corpus import chunks, reading
from pipeline.corpus.options import InputSpec
from pipeline.dataset.files import check_files, read_lengths
from pipeline.dataset.info import read_dataset_info
from pipeline.errors import (
    InputFormatError,
    MissingInputError,
    OutputExistsError,
    OutputWriteError,
    TooManyRejectedError,
)
from tests.support.corpora import (
    as_bytes,
    digest_files,
    made_up_documents,
    make_config,
    run_quickly,
    write_lines,
    write_tree,
    write_vocab,
    write_zip,
)


class _Upload(io.BytesIO):
    """An object that appears when its stream is closed."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path

    def close(self) -> None:
        if not self.closed:
            MemoryFileSystem.objects[self._path] = self.getvalue()
        super().close()


class _Download(io.BytesIO):
    """An object that is being read."""


class MemoryFileSystem(FileSystem):
    """Objects under `mem://`."""

    objects: ClassVar[dict[str, bytes]] = {}

    @classmethod
    def scheme(cls) -> str:
        return "mem"

    def join(self, basepath: str, *paths: str) -> str:
        return "/".join([basepath.rstrip("/"), *paths])

    def split(self, path: str) -> tuple[str, str]:
        head, _, tail = path.rpartition("/")
        return head, tail

    def mkdirs(self, path: str) -> None:
        raise BeamIOError("object stores have no directories")

    def has_dirs(self) -> bool:
        return False

    def _list(self, dir_or_prefix: str) -> Iterator[FileMetadata]:
        for path, content in sorted(self.objects.items()):
            if path.startswith(dir_or_prefix):
                yield FileMetadata(path, len(content), 0.0)

    def create(self, path: str, *_: Any, **__: Any) -> io.BytesIO:
        return _Upload(path)

    def open(self, path: str, *_: Any, **__: Any) -> io.BytesIO:
        if path not in self.objects:
            raise BeamIOError("open failed", {path: FileNotFoundError(path)})
        return _Download(self.objects[path])

    def copy(self, source_file_names: list[str], destination_file_names: list[str]) -> None:
        for source, destination in zip(source_file_names, destination_file_names, strict=True):
            self.objects[destination] = self.objects[source]

    def rename(self, source_file_names: list[str], destination_file_names: list[str]) -> None:
        self.copy(source_file_names, destination_file_names)
        self.delete(source_file_names)

    def exists(self, path: str) -> bool:
        return path in self.objects

    def size(self, path: str) -> int:
        return len(self.objects[path])

    def last_updated(self, path: str) -> float:
        return 0.0

    def checksum(self, path: str) -> str:
        return ""

    def metadata(self, path: str) -> FileMetadata:
        return FileMetadata(path, self.size(path), 0.0)

    def delete(self, paths: list[str]) -> None:
        for path in paths:
            del self.objects[path]


@pytest.fixture
def objects(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The stored objects, by path; empty at first."""
    monkeypatch.setitem(filesystem._REMOTE, "mem", ("os", "none"))
    monkeypatch.setattr(MemoryFileSystem, "objects", {})
    return MemoryFileSystem.objects


def upload_tree(objects: dict[str, bytes], root: str, documents: dict[str, str]) -> None:
    objects.update({f"{root}/{key}": as_bytes(text) for key, text in documents.items()})


def download(objects: dict[str, bytes], root: str, directory: Path) -> dict[str, str]:
    """Return digests of all objects below a prefix, as `digest_files` would give them of a directory."""
    for path, content in objects.items():
        if path.startswith(f"{root}/"):
            local = directory / path.removeprefix(f"{root}/")
            local.parent.mkdir(parents=True, exist_ok=True)
            local.write_bytes(content)
    return digest_files(directory)


def test_functions(objects: dict[str, bytes]) -> None:
    filesystem.make_directory("mem://b/a")
    filesystem.write_atomically("mem://b/a/x", b"one")
    filesystem.write_atomically("mem://b/a/c/y", b"two")
    assert objects == {"mem://b/a/x": b"one", "mem://b/a/c/y": b"two"}
    assert filesystem.exists("mem://b/a/x")
    assert not filesystem.exists("mem://b/a")
    assert filesystem.size("mem://b/a/x") == 3
    assert filesystem.size("mem://b/a") is None
    assert filesystem.read_bytes("mem://b/a/c/y") == b"two"
    assert filesystem.match("mem://b/a/*") == ["mem://b/a/x"]
    assert filesystem.list_below("mem://b/a/") == ["mem://b/a/c/y", "mem://b/a/x"]
    filesystem.rename("mem://b/a/x", "mem://b/z")
    filesystem.delete(["mem://b/z", "mem://b/gone"])
    filesystem.delete_directory("mem://b/a")
    assert objects == {}


DOCUMENTS = made_up_documents(12)


@pytest.fixture
def local_digests(tmp_path: Path) -> dict[str, str]:
    """What the same documents become on a local disk."""
    directory = tmp_path / "local"
    run_quickly(make_config(directory, write_tree(directory / "corpus", DOCUMENTS), num_shards=2))
    return digest_files(directory / "dataset")


def test_remote_tree_to_remote_output(objects: dict[str, bytes], tmp_path: Path, local_digests: dict[str, str]) -> None:
    upload_tree(objects, "mem://b/corpus", DOCUMENTS)
    upload_tree(objects, "mem://b/corpus", {".note": "x", "体育/.hidden": "x"})
    config = make_config(tmp_path, "mem://b/corpus", output_dir="mem://b/out", num_shards=2)
    info = run_quickly(config)
    assert download(objects, "mem://b/out", tmp_path / "found") == local_digests
    assert not [path for path in objects if ".partial-" in path]
    check_files("mem://b/out", info, "train")
    assert len(read_lengths("mem://b/out", info.splits["train"])) == info.splits["train"].num_examples


def test_markers_of_directories_are_no_documents(
    objects: dict[str, bytes], tmp_path: Path, local_digests: dict[str, str]
) -> None:
    """Browsers of object stores leave empty objects where a file system has directories."""
    upload_tree(objects, "mem://b/corpus", DOCUMENTS)
    markers = {f"mem://b/{name}/": b"" for name in ("corpus", "corpus/体育", "corpus/空", "out")}
    objects.update(markers)
    config = make_config(tmp_path, "mem://b/corpus/", output_dir="mem://b/out", num_shards=2)
    run_quickly(config)
    for marker in markers:
        assert objects.pop(marker) == b""
    assert download(objects, "mem://b/out", tmp_path / "found") == local_digests


class Endless(io.RawIOBase):
    """A stream without an end; to read all of it takes all memory."""

    def read(self, size: int = -1) -> bytes:
        if size < 0:
            raise MemoryError
        return b"x" * size


def test_an_object_larger_than_any_document(
    objects: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MAX_DOCUMENT_BYTES", 5_000)
    upload_tree(objects, "mem://b/corpus", DOCUMENTS)
    opened = MemoryFileSystem.open
    monkeypatch.setattr(
        MemoryFileSystem, "open", lambda self, path, *_, **__: Endless() if "/0.txt" in path else opened(self, path)
    )
    config = make_config(tmp_path, "mem://b/corpus", max_rejected_fraction=0.1)
    assert run_quickly(config).documents.rejected == {"unreadable": 1}
    lines = (tmp_path / "dataset" / "rejected-00000-of-00001.jsonl").read_text(encoding="utf-8")
    assert '"detail": "more than 5,000 bytes"' in lines


@pytest.mark.parametrize("broken", ["open", "read"])
def test_a_lost_connection_is_no_fault_of_a_document(
    objects: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """Of a document that is gone the others are none the worse; where a store does not answer, none can be read."""
    upload_tree(objects, "mem://b/corpus", DOCUMENTS)
    config = make_config(tmp_path, "mem://b/corpus", max_rejected_fraction=1.0)
    opened, listed = MemoryFileSystem.open, filesystem.list_below
    gone = {"mem://b/corpus": ["mem://b/corpus/体育/gone.txt"]}
    monkeypatch.setattr(filesystem, "list_below", lambda path: [*listed(path), *gone.get(path, [])])
    assert run_quickly(config).documents.rejected == {"unreadable": 1}
    lines = (tmp_path / "dataset" / "rejected-00000-of-00001.jsonl").read_text(encoding="utf-8")
    assert '"detail": "No such file or directory"' in lines

    def fail(*_: Any, **__: Any) -> Any:
        raise BeamIOError("connection reset")

    def open_or_fail(self: MemoryFileSystem, path: str, *_: Any, **__: Any) -> Any:
        stream = opened(self, path)
        if not path.endswith("/0.txt"):
            return stream
        if broken == "open":
            fail()
        monkeypatch.setattr(stream, "read", fail)
        return stream

    monkeypatch.setattr(MemoryFileSystem, "open", open_or_fail)
    with pytest.raises(
        MissingInputError, match=f"体育/0.txt: cannot {broken} this file: connection reset.*; check name"
    ):
        run_quickly(dataclasses.replace(config, output_dir=str(tmp_path / "other")))
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("kind", ["zip", "tsv"])
@pytest.mark.parametrize("last_reads", [1, 2])
def test_a_connection_that_breaks_inside_a_file(
    objects: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, last_reads: int
) -> None:
    """It breaks at the last reads, the job having begun by then."""
    name = f"mem://b/corpus.{kind}"
    if kind == "zip":
        objects[name] = write_zip(tmp_path / "corpus.zip", DOCUMENTS).read_bytes()
    else:
        objects[name] = write_lines(tmp_path / "corpus.tsv", ["山水\t体育", "日月\t科技"] * 3).read_bytes()
    config = make_config(tmp_path, name)
    num_reads, limit = 0, 10**9

    class Counted(_Download):
        def read(self, *size: Any) -> bytes:
            nonlocal num_reads
            num_reads += 1
            if num_reads > limit:
                raise BeamIOError("connection reset")
            return super().read(*size)

    monkeypatch.setattr(MemoryFileSystem, "open", lambda self, path, *_, **__: Counted(self.objects[path]))
    run_quickly(config)
    num_reads, limit = 0, num_reads - last_reads
    with pytest.raises(MissingInputError, match=f"{name}: cannot read this file: connection reset.*; check name"):
        run_quickly(dataclasses.replace(config, output_dir=str(tmp_path / "other")))
    assert num_reads > limit
    assert not (tmp_path / "other").exists()


def test_remote_vocabulary(objects: dict[str, bytes], tmp_path: Path, local_digests: dict[str, str]) -> None:
    objects["mem://b/vocab.txt"] = write_vocab(tmp_path / "v").read_bytes()
    tree = write_tree(tmp_path / "corpus", DOCUMENTS)
    run_quickly(make_config(tmp_path, tree, vocab_path="mem://b/vocab.txt", num_shards=2))
    assert digest_files(tmp_path / "dataset") == local_digests


def test_remote_archive(
    objects: dict[str, bytes], tmp_path: Path, local_digests: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "DOCUMENTS_PER_CHUNK", 5)
    objects["mem://b/a.zip"] = write_zip(tmp_path / "a.zip", DOCUMENTS).read_bytes()
    run_quickly(make_config(tmp_path, "mem://b/a.zip", num_shards=2))
    assert digest_files(tmp_path / "dataset") == local_digests


def test_remote_archive_with_a_damaged_member(objects: dict[str, bytes], tmp_path: Path) -> None:
    data = bytearray(write_zip(tmp_path / "a.zip", DOCUMENTS).read_bytes())
    data[60] ^= 0xFF
    objects["mem://b/a.zip"] = bytes(data)
    info = run_quickly(make_config(tmp_path, "mem://b/a.zip", max_rejected_fraction=0.1))
    assert info.documents.rejected == {"corrupt_member": 1}
    objects["mem://b/cut.zip"] = bytes(data[:-20])
    with pytest.raises(InputFormatError, match="not a complete zip archive"):
        run_quickly(make_config(tmp_path, "mem://b/cut.zip", output_dir=str(tmp_path / "other")))


def test_remote_tables_and_globs(objects: dict[str, bytes], tmp_path: Path) -> None:
    lines = [f"山水{number}\t{('体育', '科技')[number % 2]}" for number in range(6)]
    table = write_lines(tmp_path / "t.tsv", lines)
    digests: list[Any] = []
    for root in (str(tmp_path / "in"), "mem://b/in"):
        for name, content in {"1.tsv": table.read_bytes(), "2.tsv": gzip.compress(table.read_bytes())}.items():
            filesystem.make_directory(root)
            filesystem.write_atomically(filesystem.join(root, name), content)
        output = tmp_path / f"out{len(digests)}"
        config = make_config(tmp_path, InputSpec(f"{root}/*.tsv", "train"), output_dir=str(output))
        assert run_quickly(config).documents.read == 12
        digests.append(digest_files(output))
    assert digests[0] == digests[1]


def test_missing_remote_inputs(objects: dict[str, bytes], tmp_path: Path) -> None:
    for path in ("mem://b/none", "mem://b/*.tsv"):
        with pytest.raises(MissingInputError, match=r"no such file, and nothing below it|no file matches"):
            run_quickly(make_config(tmp_path, path))
    tree = write_tree(tmp_path / "corpus", DOCUMENTS)
    with pytest.raises(MissingInputError, match=r"mem://b/vocab\.txt: cannot open this file"):
        run_quickly(make_config(tmp_path, tree, vocab_path="mem://b/vocab.txt"))
    assert objects == {}


def test_remote_output_is_all_or_nothing(objects: dict[str, bytes], tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "corpus", DOCUMENTS)
    config = make_config(tmp_path, tree, output_dir="mem://b/out", num_shards=2)
    run_quickly(config)
    before = dict(objects)
    with pytest.raises(OutputExistsError, match="holds a dataset already"):
        run_quickly(config)
    assert objects == before
    write_tree(tree, {"体育/bad.txt": b"\xff"})
    with pytest.raises(TooManyRejectedError):
        run_quickly(make_config(tmp_path, tree, output_dir="mem://b/out", overwrite=True))
    assert objects == before
    run_quickly(
        make_config(
            tmp_path, tree, output_dir="mem://b/out", overwrite=True, max_rejected_fraction=0.5, num_shards=1, seed=1
        )
    )
    assert read_dataset_info("mem://b/out").seed == 1
    assert sorted(path.rsplit("/")[-1] for path in objects if path.endswith("tfrecord")) == [
        f"{split}-00000-of-00001.tfrecord" for split in ("dev", "test", "train")
    ]


def test_a_remote_publication_that_was_interrupted_is_finished_with_overwrite(
    objects: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local_digests: dict[str, str]
) -> None:
    tree = write_tree(tmp_path / "tree", DOCUMENTS)
    rename, moved = filesystem.rename, []

    def fail_at_the_third(source: str, destination: str) -> None:
        moved.append(destination)
        if len(moved) == 3:
            raise OutputWriteError("the connection broke")
        rename(source, destination)

    with monkeypatch.context() as patch:
        patch.setattr(filesystem, "rename", fail_at_the_third)
        with pytest.raises(OutputWriteError, match="the connection broke"):
            run_quickly(make_config(tmp_path, tree, output_dir="mem://b/out", num_shards=2))
    interrupted = dict(objects)
    # The job may be alive, for all that can be seen; without the right to replace, nothing is touched.
    with pytest.raises(OutputExistsError, match=r"publishing a dataset there, or died at it \(mem://b/out/\.partial-"):
        run_quickly(make_config(tmp_path, tree, output_dir="mem://b/out"))
    assert objects == interrupted
    # The next job publishes what was complete, even if it fails itself.
    write_tree(tree, {"体育/bad.txt": b"\xff"})
    with pytest.raises(TooManyRejectedError):
        run_quickly(make_config(tmp_path, tree, output_dir="mem://b/out", overwrite=True))
    assert download(objects, "mem://b/out", tmp_path / "found") == local_digests
