"""`dataset.json`: its content, that a changed one is refused, and that files are compared with it."""

import copy
import dataclasses
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.dataset import info as dataset_info
from pipeline.dataset.files import LENGTHS_DTYPE, check_files, digest_directory, npy_bytes, read_lengths
from pipeline.dataset.info import (
    DATASET_INFO_NAME,
    DatasetInfo,
    DocumentCounts,
    FileInfo,
    SplitInfo,
    read_dataset_info,
)
from pipeline.dataset.labels import LabelMap
from pipeline.dataset.schema import EXAMPLE_FEATURES, FORMAT_VERSION, schema_fingerprint
from pipeline.errors import CorruptShardError, EmptySplitError, MissingInputError, SchemaMismatchError

LENGTHS = np.array([5, 3, 5], dtype=LENGTHS_DTYPE)
SHARD = b"the content of the one shard"


def make_info() -> DatasetInfo:
    shard = FileInfo.of("train-00000-of-00001.tfrecord", 3, SHARD)
    train = SplitInfo(
        num_examples=3,
        num_tokens=13,
        num_unknown_tokens=1,
        num_truncated=2,
        label_counts={"category": [1, 2], "second": [3]},
        joint_label_counts=[[1], [2]],
        length_histogram=[0, 0, 0, 1, 0, 2],
        lengths_file=FileInfo.of("train-lengths.npy", 3, npy_bytes(LENGTHS)),
        shards=(shard,),
    )
    empty = dataclasses.replace(
        train,
        num_examples=0,
        num_tokens=0,
        num_unknown_tokens=0,
        num_truncated=0,
        label_counts={"category": [0, 0], "second": [0]},
        joint_label_counts=[[0], [0]],
        length_histogram=[0] * 6,
        lengths_file=FileInfo.of("dev-lengths.npy", 0, npy_bytes(LENGTHS[:0])),
        shards=(FileInfo.of("dev-00000-of-00001.tfrecord", 0, b""),),
    )
    return DatasetInfo(
        max_len=5,
        compression="none",
        vocab_sha256="0" * 64,
        vocab_size=118,
        labels={"category": LabelMap(("体育", "财经/交易")), "second": LabelMap(("大 类",))},
        splits={"train": train, "dev": empty},
        documents=DocumentCounts(read=4, written=3, rejected={"empty": 1}, duplicates=0, conflicting=[["a", "b"]]),
        seed=7,
        configuration={"second_label": "taxonomy"},
        versions={"python": "3.11"},
    )


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    (tmp_path / DATASET_INFO_NAME).write_text(make_info().to_json(), encoding="utf-8")
    (tmp_path / "train-00000-of-00001.tfrecord").write_bytes(SHARD)
    (tmp_path / "train-lengths.npy").write_bytes(npy_bytes(LENGTHS))
    return tmp_path


def test_round_trip(data_dir: Path) -> None:
    info = read_dataset_info(str(data_dir))
    assert info == make_info()
    assert info.to_json() == (data_dir / DATASET_INFO_NAME).read_text(encoding="utf-8")


def test_names_that_look_like_lists_of_numbers_stay_as_they_are() -> None:
    labels = {"category": LabelMap(("[1,  2]", "[\u30001\n]")), "second": LabelMap(("[ ]",))}
    info = dataclasses.replace(make_info(), labels=labels)
    assert DatasetInfo.from_json(info.to_json(), "x") == info


def test_the_text_is_readable() -> None:
    text = make_info().to_json()
    assert "财经/交易" in text
    assert '"length_histogram": [0, 0, 0, 1, 0, 2]' in text
    content = json.loads(text)
    assert content["format_version"] == FORMAT_VERSION
    assert [feature["name"] for feature in content["schema"]["features"]] == [f.name for f in EXAMPLE_FEATURES]


def test_fingerprint_is_of_the_examples_alone() -> None:
    info = make_info()
    assert dataclasses.replace(info, versions={"python": "3.12"}).fingerprint == info.fingerprint
    split = dataclasses.replace(info.splits["train"], shards=(FileInfo.of("other", 3, b"other"),))
    assert dataclasses.replace(info, splits={"train": split}).fingerprint != info.fingerprint


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path to every number, string and empty container in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [leaf for key, item in items for leaf in leaves(item, (*path, key))] or [path]


def altered(value: Any) -> Any:
    if isinstance(value, bool) or value is None or isinstance(value, (dict, list)):
        return "altered"
    return value + 1 if isinstance(value, int) else f"{value}x"


def test_every_altered_field_is_noticed(data_dir: Path) -> None:
    path = data_dir / DATASET_INFO_NAME
    original = json.loads(path.read_text(encoding="utf-8"))
    paths = leaves(original)
    assert len(paths) > 80
    for leaf in paths:
        content = copy.deepcopy(original)
        place = content
        for key in leaf[:-1]:
            place = place[key]
        place[leaf[-1]] = altered(place[leaf[-1]])
        path.write_text(json.dumps(content), encoding="utf-8")
        with pytest.raises(SchemaMismatchError) as caught:
            read_dataset_info(str(data_dir))
        assert str(caught.value).startswith(str(path))


def test_every_missing_field_is_noticed_even_with_a_matching_checksum() -> None:
    original = json.loads(make_info().to_json())
    for key in original:
        content = {name: value for name, value in original.items() if name not in (key, "checksum")}
        if key != "checksum":
            content["checksum"] = dataset_info._checksum(content)
        if key in ("fingerprint", "rejected_file"):
            continue  # derived from the shards' checksums, descriptions; not known to earlier versions
        with pytest.raises(SchemaMismatchError):
            DatasetInfo.from_json(json.dumps(content), "x")


def test_reordered_and_indented_json_is_the_same(data_dir: Path) -> None:
    content = json.loads(make_info().to_json())
    text = json.dumps(dict(reversed(content.items())), indent=8)
    assert DatasetInfo.from_json(text, "x") == make_info()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a dataset description"),
        ("{}", "not a dataset description"),
        ("[1]", "not a dataset description"),
        ("null", "not a dataset description"),
        ('{"format_version": 1', "not a dataset description"),
        (b"\xff\xfe", "not a dataset description"),
        ('{"format_version": 99, "schema": {}}', "expected format version 1, got 99"),
        ('{"format_version": 1, "schema": {}}', "written under another schema"),
        ('{"format_version": 1, "schema": []}', "written under another schema"),
        (
            json.dumps({"format_version": 1, "schema": {"fingerprint": schema_fingerprint()}, "checksum": "x"}),
            "changed after it was written",
        ),
    ],
)
def test_other_texts_are_refused(text: str | bytes, message: str) -> None:
    with pytest.raises(SchemaMismatchError, match=message):
        DatasetInfo.from_json(text, "dataset.json")


def test_missing_datasets_have_different_messages(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="no such dataset directory"):
        read_dataset_info(str(tmp_path / "none"))
    with pytest.raises(MissingInputError, match=r"no dataset\.json in it"):
        read_dataset_info(str(tmp_path))


def test_split_must_have_examples() -> None:
    info = make_info()
    assert info.split("train").num_examples == 3
    for name in ("dev", "none"):
        with pytest.raises(EmptySplitError, match=r"train 3, dev 0"):
            info.split(name)


def test_files_are_compared_with_their_description(data_dir: Path) -> None:
    info = read_dataset_info(str(data_dir))
    check_files(str(data_dir), info, "train")
    shard = data_dir / "train-00000-of-00001.tfrecord"
    shard.write_bytes(SHARD + b"!")
    with pytest.raises(CorruptShardError, match="expected 28 bytes, got 29") as caught:
        check_files(str(data_dir), info, "train")
    assert caught.value.path == str(shard)
    shard.unlink()
    with pytest.raises(CorruptShardError, match=r"listed in dataset\.json but not there"):
        check_files(str(data_dir), info, "train")


def test_lengths(data_dir: Path) -> None:
    info = read_dataset_info(str(data_dir))
    lengths = read_lengths(str(data_dir), info.splits["train"])
    assert (lengths.tolist(), lengths.dtype) == ([5, 3, 5], np.uint16)
    path = data_dir / "train-lengths.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptShardError, match="its checksum differs"):
        read_lengths(str(data_dir), info.splits["train"])
    path.unlink()
    with pytest.raises(CorruptShardError, match=r"listed in dataset\.json but not there") as caught:
        read_lengths(str(data_dir), info.splits["train"])
    assert caught.value.path == str(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"5, 3, 5", "not a NumPy file"),
        (npy_bytes(LENGTHS.astype("<i8")), r"expected uint16 \[3\], got something else"),
        (npy_bytes(LENGTHS[:2]), r"expected uint16 \[3\], got something else"),
        (npy_bytes(LENGTHS.reshape(3, 1)), r"expected uint16 \[3\], got something else"),
    ],
)
def test_lengths_files_that_are_described_but_none(data_dir: Path, content: bytes, message: str) -> None:
    """As a writer with a defect would leave them."""
    (data_dir / "train-lengths.npy").write_bytes(content)
    train = dataclasses.replace(make_info().splits["train"], lengths_file=FileInfo.of("train-lengths.npy", 3, content))
    with pytest.raises(CorruptShardError, match=message):
        read_lengths(str(data_dir), train)


def test_nothing_is_unpickled() -> None:
    with pytest.raises(ValueError, match="Object arrays cannot be saved"):
        npy_bytes(np.array([object()]))


def test_a_directorys_digest_is_what_sha256sum_says(tmp_path: Path) -> None:
    for name, content in (("b.txt", b"1"), ("a.txt", b""), ("体育", b"2" * 3_000_000)):
        (tmp_path / name).write_bytes(content)
    command = "export LC_ALL=C; sha256sum * | sha256sum"
    said = subprocess.run(["sh", "-c", command], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    digest = digest_directory(str(tmp_path))
    assert digest == digest_directory(f"{tmp_path}/") == said.split()[0]
    (tmp_path / ".DS_Store").touch()
    (tmp_path / ".partial-0badcafe").mkdir()
    (tmp_path / ".partial-0badcafe" / "vocab.txt").touch()
    assert digest_directory(str(tmp_path)) == digest, "what is hidden does not count"
    (tmp_path / "b.txt").rename(tmp_path / "c.txt")
    assert digest_directory(str(tmp_path)) != digest
