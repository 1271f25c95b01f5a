"""`pipeline.verify` finds and names everything, `--salvage` saves the rest: on datasets that are damaged on purpose."""

import bisect
import dataclasses
import functools
import gzip
import hashlib
import itertools
import json
import operator
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.command_line import run_command
from pipeline.corpus.options import InputSpec
from pipeline.dataset.files import npy_bytes
from pipeline.dataset.info import DATASET_INFO_NAME, DatasetInfo, FileInfo, _checksum, read_dataset_info
from pipeline.dataset.tfexample import RECORD_OVERHEAD_BYTES, compress, frame_records, parse_example, read_records
from pipeline.errors import MissingInputError, OptionError, OutputExistsError, SchemaMismatchError, WorkerDiedError
from pipeline.job.output_dir import REJECTED_NAME
from pipeline.verify import __main__ as verify_command
from pipeline.verify.__main__ import verify
from pipeline.verify.findings import Findings
from pipeline.verify.salvage import salvage
from tests.support.corpora import (
    Outcome,
    digest_files,
    made_up_documents,
    make_config,
    own_logging,
    read_dataset,
    run_quickly,
    write_lines,
    write_tree,
)
from tests.support.tiny_dataset import TinyExample, serialize

REPOSITORY = Path(verify_command.__file__).parents[2]


def make_dataset(root: Path, compression: str = "none", num_documents: int = 9) -> Path:
    """Write a dataset of three splits with two shards each, and two rejected documents."""
    documents = made_up_documents(num_documents) | {"体育/bad.txt": b"\xff", "科技/empty.txt": b" "}
    config = make_config(
        root,
        write_tree(root / "corpus", documents),
        num_shards=2,
        seed=3,
        compression=compression,
        max_len=24,
        max_rejected_fraction=0.5,
    )
    run_quickly(config)
    return Path(config.output_dir)


@pytest.fixture(scope="module", params=["none", "gzip"])
def pristine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset that no test may change."""
    return make_dataset(tmp_path_factory.mktemp(f"pristine-{request.param}"), request.param)


@pytest.fixture(scope="module")
def pristine_plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset without compression that no test may change."""
    return make_dataset(tmp_path_factory.mktemp("pristine"))


@pytest.fixture
def dataset(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "dataset"))


@pytest.fixture
def plain(pristine_plain: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine_plain, tmp_path / "dataset"))


def lines_of(findings: Findings) -> list[str]:
    assert findings.num_faults == len(findings.faults)
    return [str(fault) for fault in findings.faults]


def faults_of(directory: Path) -> list[str]:
    return lines_of(verify(str(directory)))


def shards_of(directory: Path) -> list[Path]:
    """Return the shards that hold examples."""
    info = read_dataset_info(str(directory))
    return [directory / shard.name for split in info.splits.values() for shard in split.shards if shard.num_examples]


def records_of(path: Path) -> list[bytes]:
    with open(path, "rb") as stream:
        return [record for _, record in read_records(stream, path.name)]


def content_of(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def write_content(path: Path, content: bytes) -> None:
    path.write_bytes(compress(content, "gzip" if path.suffix == ".gz" else "none"))


def rewrite_info(directory: Path, change_fn: Callable[[dict[str, Any]], object], *, with_checksum: bool = True) -> None:
    """Change `dataset.json`, as a writer with a defect would: with a checksum that is right."""
    path = directory / DATASET_INFO_NAME
    content = json.loads(path.read_text(encoding="utf-8"))
    change_fn(content)
    if with_checksum:
        content.pop("checksum", None)
        content["checksum"] = _checksum(content)
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def describe_anew(directory: Path, name: str) -> None:
    """Make `dataset.json` describe a file as it is now, so that only its content can give it away."""

    def change(content: dict[str, Any]) -> None:
        for split in content["splits"].values():
            for file in [*split["shards"], split["lengths_file"]]:
                if file["name"] == name:
                    data = (directory / name).read_bytes()
                    file |= {"num_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        content["fingerprint"] = DatasetInfo.from_any_json(json.dumps(content), "x")[0].fingerprint

    rewrite_info(directory, change)


def replace_record(directory: Path, path: Path, number: int, record: bytes) -> None:
    """Put another record, rightly framed, in the place of one, and describe the shard anew."""
    records = records_of(path)
    records[number] = record
    write_content(path, frame_records(records))
    describe_anew(directory, path.name)


# Clean datasets


def test_what_the_job_writes_is_clean(pristine: Path) -> None:
    before = digest_files(pristine)
    findings = verify(str(pristine))
    assert lines_of(findings) == []
    assert findings.num_good == 9
    assert len(findings.rejections) == 2
    assert digest_files(pristine) == before


def test_several_processes_find_the_same(dataset: Path) -> None:
    assert lines_of(verify(str(dataset), num_processes=2)) == []
    path = shards_of(dataset)[0]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    alone, together = verify(str(dataset)), verify(str(dataset), num_processes=2)
    assert lines_of(alone) == lines_of(together) != []


def test_progress_adds_up_to_all_bytes(pristine: Path) -> None:
    info = read_dataset_info(str(pristine))
    total = sum(shard.num_bytes for split in info.splits.values() for shard in split.shards)
    for num_processes in (1, 2):
        told: list[int] = []
        seen: list[int] = []
        verify(str(pristine), num_processes=num_processes, on_start=told.append, on_progress=seen.append)
        assert told == [sum(seen)] == [total]


def test_longer_examples_and_a_large_vocabulary(tmp_path: Path) -> None:
    """Ids of one, two and three bytes, more records than one block holds, and texts of more than one block."""
    tokens = [
        *("[PAD]", *(f"[unused{n}]" for n in range(99)), "[UNK]", "[CLS]", "[SEP]"),
        *map(chr, range(0x4E00, 0x9000)),
    ]
    vocab = write_lines(tmp_path / "vocab.txt", tokens)
    draw = np.random.default_rng(0)
    texts = ["".join(map(chr, draw.integers(0x4E00, 0x9100, size))) for size in draw.integers(1, 900, 700)]
    rows = write_lines(tmp_path / "corpus.tsv", [f"{text}\t体育" for text in texts] + [f"{texts[0] * 70}\t科技"])
    config = make_config(tmp_path, rows, vocab_path=str(vocab), max_len=65_535, num_shards=1)
    info = run_quickly(config)
    assert info.vocab_size > 1 << 14
    assert info.splits["train"].num_unknown_tokens > 0
    assert faults_of(Path(config.output_dir)) == []


def test_an_empty_text_of_a_split_and_no_rejected_documents(tmp_path: Path) -> None:
    config = make_config(tmp_path, write_tree(tmp_path / "corpus", made_up_documents(2)))
    run_quickly(config)
    assert faults_of(Path(config.output_dir)) == []


# Every bit


def flip(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@pytest.mark.slow
def test_every_single_bit_flip_in_every_shard_is_found_and_located(pristine_plain: Path, tmp_path: Path) -> None:
    """One fault for each flip, with the record and the offset it is in; and nothing but that record is lost, if any."""
    dataset = Path(shutil.copytree(pristine_plain, tmp_path / "dataset"))
    num_flips = 0
    for path in shards_of(dataset):
        content = path.read_bytes()
        records = records_of(path)
        offsets = [0, *itertools.accumulate(len(record) + RECORD_OVERHEAD_BYTES for record in records)][:-1]
        for bit in range(8 * len(content)):
            path.write_bytes(flip(content, bit))
            findings = verify(str(dataset))
            (fault,) = findings.faults
            record = bisect.bisect(offsets, bit // 8) - 1
            assert (fault.file, fault.record, fault.offset) == (path.name, record, offsets[record])
            in_header = bit // 8 < offsets[record] + 12
            assert findings.num_good == (9 if in_header else 8)
            num_flips += 1
        path.write_bytes(content)
    assert num_flips > 10_000
    assert faults_of(dataset) == []


@pytest.mark.slow
def test_every_bit_flip_in_every_other_file_is_found(pristine: Path, tmp_path: Path) -> None:
    """Compressed shards, lengths, vocabulary, rejected documents: every bit; `dataset.json`: one of every byte."""
    dataset = Path(shutil.copytree(pristine, tmp_path / "dataset"))
    draw = random.Random(0)
    for path in sorted(dataset.iterdir()):
        if path.suffix == ".tfrecord":
            continue
        content = path.read_bytes()
        in_description = path.name == DATASET_INFO_NAME
        for byte in range(len(content)):
            for bit in [draw.randrange(8)] if in_description else range(8):
                path.write_bytes(flip(content, 8 * byte + bit))
                assert path.name in {fault.file for fault in verify(str(dataset)).faults}, (path.name, byte, bit)
        path.write_bytes(content)
    assert faults_of(dataset) == []


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (0, "the record's length is damaged: it says [0-9]+, but it is [0-9]+"),
        (7, "the record's length is damaged"),
        (8, "the checksum of the record's length is damaged"),
        (12, "the checksum of the record's content does not match"),
        (-1, "the checksum of the record's content does not match"),
    ],
)
@pytest.mark.parametrize("record", [0, 1, -1])
def test_each_class_of_bits(plain: Path, place: int, message: str, record: int) -> None:
    path = max(shards_of(plain), key=lambda path: len(records_of(path)))
    records = records_of(path)
    number = record % len(records)
    offset = sum(len(before) + RECORD_OVERHEAD_BYTES for before in records[:number])
    content = bytearray(path.read_bytes())
    content[offset + place % (len(records[number]) + RECORD_OVERHEAD_BYTES)] ^= 0x10
    path.write_bytes(content)
    (line,) = faults_of(plain)
    assert re.fullmatch(rf"{re.escape(path.name)}: record {number} at byte {offset}: {message}.*", line)


# Faults of one shard


@pytest.mark.parametrize(
    ("damage_fn", "messages"),
    [
        (lambda content: content[:-5], ["the file ends inside the record", "expected [0-9]+ bytes, got"]),
        (lambda content: content[: len(content) // 2], ["the file ends inside the record", "expected [0-9]+ bytes"]),
        (lambda content: b"", ["expected [0-9]+ bytes, got 0", "expected [0-9]+ records .*, got 0"]),
        (lambda content: content + b"\0" * 7, ["ends inside the record's header .7 of 12 bytes", "expected .* bytes"]),
        (lambda content: content[:40] + content[41:], ["bytes were added or lost", "expected [0-9]+ bytes"]),
        (lambda content: content[:40] + b"x" + content[40:], ["bytes were added or lost", "expected [0-9]+ bytes"]),
        (lambda content: bytes(len(content)), ["no record can be read in [0-9]+ bytes: records 0 to"]),
        (lambda content: os.urandom(len(content)), ["no record can be read in"]),
        (lambda content: b"x" * 30 + content[30:], ["no record can be read in"]),
    ],
    ids=["cut", "half", "empty", "tail", "lost byte", "added byte", "zeros", "noise", "overwritten start"],
)
def test_damaged_bytes(plain: Path, damage_fn: Callable[[bytes], bytes], messages: list[str]) -> None:
    path = max(shards_of(plain), key=lambda path: len(records_of(path)))
    path.write_bytes(damage_fn(path.read_bytes()))
    lines = faults_of(plain)
    assert len(lines) == len(messages), lines
    for line, message in zip(lines, messages, strict=True):
        assert line.startswith(path.name)
        assert re.search(message, line), line


@pytest.mark.parametrize(
    ("damage_fn", "message"),
    [
        (lambda data: b"\0" + data[1:], "the header of the gzip stream is damaged"),
        (lambda data: data[:3] + b"\x08" + data[4:], "the header of the gzip stream is damaged"),
        (lambda data: data[:4] + b"\1" + data[5:], "its checksum differs .*, though every record is intact"),
        (lambda data: data[:-20], "record [0-9]+ at byte [0-9]+: the gzip stream ends early, after [0-9]+ bytes"),
        (lambda data: data[:-4], "the checksum or size at the end of the gzip stream does not match"),
        (lambda data: data + b"more", "there is other data behind the end of the gzip stream"),
        (lambda data: b"", "expected a gzip stream, got an empty file"),
        (lambda data: os.urandom(300), "gzip stream is damaged"),
        (lambda data: gzip.decompress(data), "gzip stream is damaged"),
    ],
)
def test_damaged_gzip_streams(tmp_path: Path, damage_fn: Callable[[bytes], bytes], message: str) -> None:
    dataset = make_dataset(tmp_path, "gzip")
    path = shards_of(dataset)[0]
    path.write_bytes(damage_fn(path.read_bytes()))
    lines = faults_of(dataset)
    assert all(line.startswith(path.name) for line in lines)
    assert re.search(message, lines[0]), lines


def example(**changes: Any) -> TinyExample:
    """Return an example that is right but for the changes; [UNK] 1, [CLS] 2 and [SEP] 3, as in `corpora`."""
    return TinyExample(**{"indices": [2, 9, 10, 11, 3], "label": 0, "second_label": 0, "key": "体育/new.txt"} | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"indices": [2, 9, 5000, 11, 3]}, r"expected ids in \[0, 118\), got 5000"),
        ({"indices": [2, 9, 118, 11, 3]}, r"expected ids in \[0, 118\), got 118"),
        ({"indices": [2, 9, 2**27, 11, 3]}, r"expected ids in \[0, 118\), got 134217728"),
        ({"indices": [2, 9, 2**62, 11, 3]}, rf"expected ids in \[0, 118\), got {2**62}"),
        ({"indices": [9, 9, 10, 11, 3]}, r"expected \[CLS\] \(2\) as its first id, got 9"),
        ({"indices": [2, 9, 10, 11, 9]}, r"expected \[SEP\] \(3\) as its last id, got 9"),
        ({"indices": [2, 9, 10, 11, 5000]}, r"expected \[SEP\] \(3\) as its last id, got 5000"),
        ({"indices": [2, 9, 2, 11, 3]}, r"\[CLS\] stands inside the text"),
        ({"indices": [2, 9, 3, 11, 3]}, r"\[SEP\] stands inside the text"),
        ({"indices": [2, 9, 0, 11, 3]}, r"\[PAD\] stands inside the text"),
        ({"indices": [2, 3]}, "no token of its own among 2 ids"),
        ({"indices": [2, *range(9, 40), 3]}, "33 ids, more than max_len 24"),
        ({"segments": [0, 0, 1, 0, 0]}, "expected values of feature 'segments' that are all 0"),
        ({"segments": [0, 0, 0, 0]}, "expected 5 values of feature 'segments', as many as ids, got 4"),
        ({"label": 3}, r"expected a label in \[0, 3\), got 3"),
        ({"label": 300}, r"expected a label in \[0, 3\), got 300"),
        ({"second_label": 3}, r"expected a second_label in \[0, 3\), got 3"),
        ({"key": ""}, "its key is empty"),
    ],
)
def test_wrong_examples_in_right_frames(plain: Path, changes: dict[str, Any], message: str) -> None:
    path = max(shards_of(plain), key=lambda path: len(records_of(path)))
    records = records_of(path)
    number = len(records) // 2
    replaced = example(**changes)
    (record,) = serialize_any(replaced)
    replace_record(plain, path, number, record)
    lines = faults_of(plain)
    offset = sum(len(before) + RECORD_OVERHEAD_BYTES for before in records[:number])
    assert any(line.startswith(f"{path.name}: record {number} at byte {offset}: ") for line in lines)
    assert any(re.search(message, line) for line in lines), lines


def serialize_any(tiny: TinyExample) -> list[bytes]:
    """Serialize an example whose segments may be fewer than its ids."""
    if tiny.segments is None or len(tiny.segments) == len(tiny.indices):
        return serialize([tiny])
    (record,) = serialize([tiny.__class__(**(tiny.__dict__ | {"segments": None}))])
    surplus = len(tiny.indices) - len(tiny.segments)
    features = parse_example(record)
    features["segments"] = features["segments"][:-surplus]
    return [serialize_by_hand(features)]


def varint(value: int) -> bytes:
    encoded = bytearray()
    value &= (1 << 64) - 1
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def field(number: int, payload: bytes) -> bytes:
    return bytes([number << 3 | 2]) + varint(len(payload)) + payload


def serialize_by_hand(features: dict[str, Any]) -> bytes:
    """Serialize any features as a `tf.train.Example`, in the order given, with numbers one by one instead of packed."""
    entries = []
    for name, values in features.items():
        if values and isinstance(values[0], bytes):
            listed = field(1, b"".join(field(1, value) for value in values))
        elif values and isinstance(values[0], float):
            listed = field(2, b"".join(b"\x0d" + struct.pack("<f", value) for value in values))
        else:
            listed = field(3, b"".join(b"\x08" + varint(value) for value in values))
        entries.append(field(1, field(1, name.encode()) + field(2, listed)))
    return field(1, b"".join(entries))


RIGHT: dict[str, Any] = {
    "indices": [2, 9, 10, 11, 3],
    "segments": [0] * 5,
    "label": [0],
    "second_label": [0],
    "key": ["体育/new.txt".encode()],
}


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({**RIGHT, "label": []}, "expected 1 value of feature 'label', got 0"),
        ({**RIGHT, "label": [0, 1]}, "expected 1 value of feature 'label', got 2"),
        ({**RIGHT, "label": [b"x"]}, "expected int64 values of feature 'label'"),
        ({**RIGHT, "label": [-1]}, "impossible number -1 in feature 'label'"),
        ({**RIGHT, "label": [0.5]}, "expected 1 value of feature 'label', got 0"),
        ({**RIGHT, "key": [7]}, "expected bytes values of feature 'key'"),
        ({**RIGHT, "key": [b"\xff"]}, "its key is not UTF-8"),
        ({**RIGHT, "indices": []}, "expected at least 1 value of feature 'indices', got 0"),
        ({**RIGHT, "indices": [2, -9, 10, 11, 3]}, "impossible number -9 in feature 'indices'"),
        ({**RIGHT, "weight": [1]}, "unexpected feature 'weight'"),
        (
            {name: values for name, values in RIGHT.items() if name != "segments"},
            "expected at least 1 value of feature 'segments', got 0",
        ),
    ],
)
def test_examples_of_another_schema(plain: Path, features: dict[str, Any], message: str) -> None:
    path = shards_of(plain)[0]
    replace_record(plain, path, 0, serialize_by_hand(features))
    lines = faults_of(plain)
    assert any(line.startswith(f"{path.name}: record 0 at byte 0: {message}") for line in lines), lines


def test_records_that_are_no_examples(plain: Path) -> None:
    path = shards_of(plain)[0]
    replace_record(plain, path, 0, b"\xff\xff\xff")
    assert any("record 0 at byte 0: not a tf.train.Example" in line for line in faults_of(plain))


def test_examples_that_others_serialized_are_judged_by_what_they_say(plain: Path) -> None:
    """The same values with their features in another order, and numbers one by one instead of packed."""
    path = shards_of(plain)[0]
    features = parse_example(records_of(path)[0])
    names = ("segments", "label", "key", "indices", "second_label")
    replace_record(plain, path, 0, serialize_by_hand({name: features[name] for name in names}))
    assert faults_of(plain) == []


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.integers(0, 130), st.integers(0, 1 << 28)), min_size=1, max_size=30))
def test_ids_are_judged_as_if_they_were_decoded(ids: list[int]) -> None:
    from pipeline.dataset.tfexample import encode_varints
    from pipeline.verify.packed_ids import PackedIds

    packed = PackedIds([encode_varints(np.array(ids))[0].tobytes(), b"\x05"])
    assert packed.lengths.tolist() == [len(ids), 1]
    for id_ in {*ids, 0, 127, 128, 16_384}:
        marked = packed.equal_to(id_)
        assert packed.per_example(marked).tolist() == [ids.count(id_), int(id_ == 5)]
        first, last = packed.ends(marked, id_)
        assert first.tolist() == [ids[0] == id_, id_ == 5]
        assert last.tolist() == [ids[-1] == id_, id_ == 5]
    for limit in {1, 128, 129, 16_384, 16_385, 21_128, *(id_ + 1 for id_ in ids), *filter(None, ids)}:
        assert packed.per_example(packed.not_below(limit)).tolist() == [sum(id_ >= limit for id_ in ids), limit <= 5]
    assert [packed.id_at(0, index) for index in range(len(ids))] == ids


# Faults between the files


def test_other_lengths_than_the_lengths_file_says(plain: Path) -> None:
    path = max(shards_of(plain), key=lambda path: len(records_of(path)))
    split = path.name.split("-")[0]
    name = f"{split}-lengths.npy"
    lengths = np.load(plain / name)
    lengths[0] += 1
    (plain / name).write_bytes(npy_bytes(lengths))
    describe_anew(plain, name)
    lines = faults_of(plain)
    assert lines[0] == f"{name}: its lengths are not those of the histogram in dataset.json"
    assert re.search(r"record 0 at byte 0: [0-9]+ values of feature 'indices', but the lengths file says", lines[1])


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", npy_bytes(np.zeros(3)), npy_bytes(np.zeros((2, 2), "<u2"))])
def test_lengths_files_that_are_none(plain: Path, content: bytes) -> None:
    (plain / "train-lengths.npy").write_bytes(content)
    describe_anew(plain, "train-lengths.npy")
    (line,) = faults_of(plain)
    assert line.startswith("train-lengths.npy: ")


def test_missing_files_are_all_named(plain: Path) -> None:
    names = ["train-00000-of-00002.tfrecord", "dev-lengths.npy", "vocab.txt", REJECTED_NAME]
    for name in names:
        (plain / name).unlink()
    lines = faults_of(plain)
    for name in names:
        assert any(line.startswith(f"{name}: ") and "not there" in line for line in lines)


def test_files_that_do_not_belong(plain: Path) -> None:
    shutil.copy(shards_of(plain)[0], plain / "train-00000-of-00009.tfrecord")
    (plain / "notes.md").write_text("mine")
    assert faults_of(plain) == [
        "train-00000-of-00009.tfrecord: looks like a part of the dataset, but is not listed in dataset.json"
    ]


def test_swapped_shards(plain: Path) -> None:
    one, other = (plain / f"train-0000{index}-of-00002.tfrecord" for index in range(2))
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    lines = faults_of(plain)
    assert {line.split(":")[0] for line in lines} == {one.name, other.name}


def test_a_key_that_stands_twice(plain: Path) -> None:
    path = max(shards_of(plain), key=lambda path: len(records_of(path)))
    records = records_of(path)
    features = parse_example(records[1])
    features["key"] = parse_example(records[0])["key"]
    replace_record(plain, path, 1, serialize_by_hand(features))
    (line,) = faults_of(plain)
    assert line.startswith(f"{path.name}: record 1 at byte {len(records[0]) + RECORD_OVERHEAD_BYTES}: its key ")
    assert line.endswith(f"stands also in {path.name}, record 0")


def test_a_key_that_is_both_written_and_rejected(plain: Path) -> None:
    path = shards_of(plain)[0]
    features = parse_example(records_of(path)[0])
    features["key"] = ["体育/bad.txt".encode()]
    replace_record(plain, path, 0, serialize_by_hand(features))
    (line,) = faults_of(plain)
    assert line == f"{REJECTED_NAME}: record 0: its key '体育/bad.txt' stands also in {path.name}, record 0"


def test_a_text_in_two_splits(plain: Path) -> None:
    _, examples = read_dataset(plain)
    one, other = next(
        (a, b) for a, b in itertools.combinations(examples.values(), 2) if a.split != b.split and a.split == "train"
    )
    path = plain / other.shard
    records = [parse_example(record) for record in records_of(path)]
    number = records.index(other.features)
    changed = other.features | {"indices": one.features["indices"], "segments": one.features["segments"]}
    replace_record(plain, path, number, serialize_by_hand(changed))
    lines = faults_of(plain)
    assert any(
        line.startswith(f"{path.name}: record {number} ") and "stands also in another split" in line for line in lines
    )


def test_texts_that_published_splits_share_are_counted_when_they_are_written(tmp_path: Path) -> None:
    train = write_lines(tmp_path / "train.tsv", ["山水风云\t体育", "日月星花\t科技", "草木\t科技"])
    dev = write_lines(tmp_path / "dev.tsv", ["山水风云\t体育", "日月星花\t科技", "鱼鸟\t科技"])
    config = make_config(tmp_path, InputSpec(str(train), "train"), InputSpec(str(dev), "dev"))
    info = run_quickly(config)
    assert info.documents.in_several_splits == 2
    findings = verify(config.output_dir)
    assert lines_of(findings) == []
    assert findings.num_in_several_splits == 2
    rewrite_info(Path(config.output_dir), lambda content: content["documents"].update(in_several_splits=1))
    assert len(faults_of(Path(config.output_dir))) == 2
    rewrite_info(Path(config.output_dir), lambda content: content["documents"].update(in_several_splits=3))
    assert faults_of(Path(config.output_dir)) == ["dataset.json: expected 3 texts that stand in several splits, got 2"]


def test_another_vocabulary(plain: Path) -> None:
    (plain / "vocab.txt").write_bytes((plain / "vocab.txt").read_bytes() + b"more\n")
    assert faults_of(plain) == ["vocab.txt: its checksum differs from dataset.json"]


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    inner = [leaf for key, item in items for leaf in leaves(item, (*path, key))]
    yield from inner or [path]


# What neither stands anywhere else nor follows from anything: of these only the checksum can tell.
FREE = (
    "seed",
    "configuration",
    "versions",
    "labels",
    "duplicates",
    "conflicting",
    "meaning",
    "num_truncated",
)


@pytest.mark.parametrize("with_checksum", [False, True])
def test_each_field_of_the_description_altered(plain: Path, with_checksum: bool) -> None:
    """With the checksum as it was, all are found; with one that fits, all that can be held against something."""
    path = plain / DATASET_INFO_NAME
    original = path.read_text(encoding="utf-8")
    places = list(leaves(json.loads(original)))
    assert len(places) > 150
    for leaf in places:
        value = functools.reduce(lambda place, key: place[key], leaf, json.loads(original))
        # What cannot be, and what could: one more.
        wrongs = [None, -1, "altered", ["altered"], 10**30, *([value + 1] if isinstance(value, int) else [])]
        for wrong in (*wrongs, *([] if with_checksum else ["../../etc/passwd"])):

            def change(content: dict[str, Any], leaf: tuple[Any, ...] = leaf, wrong: Any = wrong) -> None:
                place = content
                for key in leaf[:-1]:
                    place = place[key]
                place[leaf[-1]] = wrong

            rewrite_info(plain, change, with_checksum=with_checksum)
            findings = verify(str(plain))
            # Datasets of earlier versions lack the count of texts in several splits.
            is_free = any(free in leaf for free in (*FREE, "checksum")) or (leaf[-1], wrong) == (
                "in_several_splits",
                None,
            )
            may_be_silent = with_checksum and is_free
            assert findings.num_faults or may_be_silent, (leaf, wrong)
            path.write_text(original, encoding="utf-8")
    assert faults_of(plain) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a dataset description"),
        ("[" * 100_000, "not a dataset description"),
        ("{}", "not a dataset description"),
        ('{"format_version": 1, "schema": {}}', "written under another schema"),
    ],
)
def test_descriptions_that_are_none(plain: Path, text: str, message: str) -> None:
    (plain / DATASET_INFO_NAME).write_text(text)
    (line,) = faults_of(plain)
    assert line.startswith(f"dataset.json: {message}")


def test_names_that_lead_out_of_the_directory_are_refused(plain: Path) -> None:
    secret = plain.parent / "secret.tfrecord"
    secret.write_bytes(b"x")
    rewrite_info(plain, lambda content: content["splits"]["train"]["shards"][0].update(name="../secret.tfrecord"))
    with pytest.raises(SchemaMismatchError, match="expected the name of a file in the same directory"):
        read_dataset_info(str(plain))
    (line,) = faults_of(plain)
    assert "expected the name of a file in the same directory, got '../secret.tfrecord'" in line


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected empty 1, not_utf-8 1 .*, got none"),
        (b"{\n", "record 0 at byte 0: not a rejected document"),
        (b"[]\n" * 2, "record 1 at byte 3: not a rejected document"),
        (b'{"key": "a"}\n', "expected key, reason and detail"),
        (b"\xff\n", "not a rejected document"),
        (b"[" * 100_000, "not a rejected document"),
    ],
)
def test_rejected_files_that_are_none(plain: Path, content: bytes, message: str) -> None:
    (plain / REJECTED_NAME).write_bytes(content)
    lines = faults_of(plain)
    assert all(line.startswith(REJECTED_NAME) for line in lines)
    assert any(re.search(message, line) for line in lines), lines


def test_a_dataset_of_an_earlier_version(plain: Path) -> None:
    def forget(content: dict[str, Any]) -> None:
        del content["rejected_file"], content["documents"]["in_several_splits"]

    rewrite_info(plain, forget)
    assert faults_of(plain) == []


# Salvage


def check_salvaged(damaged: Path, output: Path, pristine: Path) -> list[str]:
    """Salvage, and check that the new dataset is clean and every example in it one of the old; return the lost keys."""
    findings = verify(str(damaged))
    salvage(findings, str(output))
    assert faults_of(output) == []
    old_info, old = read_dataset(pristine)
    new_info, new = read_dataset(output)
    assert list(new) == [key for key in old if key in new], "the order stays"
    for key, stored in new.items():
        assert (stored.split, stored.shard, stored.features) == (old[key].split, old[key].shard, old[key].features)
    documents = new_info.documents
    assert documents.read == old_info.documents.read
    assert documents.written == len(new) == findings.num_good
    assert documents.rejected.get("damaged", 0) == len(old) - len(new)
    return sorted(set(old) - set(new))


def test_salvage_of_a_clean_dataset_copies_it(pristine: Path, tmp_path: Path) -> None:
    assert check_salvaged(pristine, tmp_path / "new", pristine) == []
    old, new = digest_files(pristine), digest_files(tmp_path / "new")
    assert {name for name in old if old[name] != new[name]} == {DATASET_INFO_NAME}


def test_salvage_loses_the_damaged_record_alone(pristine: Path, dataset: Path, tmp_path: Path) -> None:
    path = max(shards_of(dataset), key=lambda path: len(records_of(path)))
    content = bytearray(content_of(path))
    content[20] ^= 1
    write_content(path, bytes(content))
    (key,) = check_salvaged(dataset, tmp_path / "new", pristine)
    lines = [json.loads(line) for line in (tmp_path / "new" / REJECTED_NAME).read_text(encoding="utf-8").splitlines()]
    (lost,) = [line for line in lines if line["reason"] == "damaged"]
    assert lost["key"] == f"{path.name}:0"
    assert lost["detail"] == "the checksum of the record's content does not match"
    assert key in read_dataset(pristine)[1]


def test_salvage_brings_back_a_record_whose_header_alone_is_damaged(
    plain: Path, pristine_plain: Path, tmp_path: Path
) -> None:
    path = shards_of(plain)[0]
    path.write_bytes(b"\xff" * 12 + path.read_bytes()[12:])
    assert check_salvaged(plain, tmp_path / "new", pristine_plain) == []


def test_salvage_of_missing_files(plain: Path, pristine_plain: Path, tmp_path: Path) -> None:
    path = shards_of(plain)[0]
    num_lost = len(records_of(path))
    path.unlink()
    (plain / "train-lengths.npy").unlink()
    (plain / REJECTED_NAME).unlink()
    assert len(check_salvaged(plain, tmp_path / "new", pristine_plain)) == num_lost


def test_salvage_of_keys_that_are_both_written_and_rejected(plain: Path, tmp_path: Path) -> None:
    """The example stays, and the document that was rejected is named after its place."""
    path = shards_of(plain)[0]
    features = parse_example(records_of(path)[0])
    features["key"] = ["体育/bad.txt".encode()]
    replace_record(plain, path, 0, serialize_by_hand(features))
    before = read_dataset_info(str(plain)).documents
    assert salvage(verify(str(plain)), str(tmp_path / "new")).endswith("; 0 lost")
    assert faults_of(tmp_path / "new") == []
    assert read_dataset_info(str(tmp_path / "new")).documents == before
    lines = [json.loads(line) for line in (tmp_path / "new" / REJECTED_NAME).read_text(encoding="utf-8").splitlines()]
    assert "its line was damaged" in [line["detail"] for line in lines]
    assert "体育/bad.txt" not in [line["key"] for line in lines]


def test_salvage_counts_anew_what_stands_in_several_splits(tmp_path: Path) -> None:
    """Of three texts that two splits share, one is lost from one of them, though its ids are intact."""
    rows = ["山水风云\t体育", "日月星花\t科技", "草木\t科技"]
    inputs = [InputSpec(str(write_lines(tmp_path / f"{name}.tsv", rows)), name) for name in ("train", "dev")]
    config = make_config(tmp_path, *inputs, num_shards=1)
    assert run_quickly(config).documents.in_several_splits == 3
    path = Path(config.output_dir) / "train-00000-of-00001.tfrecord"
    features = parse_example(records_of(path)[0]) | {"label": [300]}
    replace_record(path.parent, path, 0, serialize_by_hand(features))
    salvage(verify(config.output_dir), str(tmp_path / "new"))
    assert read_dataset_info(str(tmp_path / "new")).documents.in_several_splits == 2
    assert faults_of(tmp_path / "new") == []


def test_salvage_of_what_was_salvaged(plain: Path, tmp_path: Path) -> None:
    """Both times the first record and a line of the rejected documents are lost, but they are not the same ones."""
    place = max(shards_of(plain), key=lambda path: len(records_of(path))).name
    damaged = plain
    for number in range(3):
        (damaged / place).write_bytes(flip((damaged / place).read_bytes(), 8 * 20))
        lines = (damaged / REJECTED_NAME).read_bytes().split(b"\n")
        kept = [line for line in lines if b"not_utf-8" not in line]
        (damaged / REJECTED_NAME).write_bytes(b"\n".join(kept))
        salvage(verify(str(damaged)), str(tmp_path / str(number)))
        damaged = tmp_path / str(number)
        assert faults_of(damaged) == []
    keys = [json.loads(line)["key"] for line in (damaged / REJECTED_NAME).read_text(encoding="utf-8").splitlines()]
    assert {f"{place}:0", f"{place}:0#2", f"{place}:0#3"} < set(keys)
    assert len(set(keys)) == len(keys) == 5


damages = st.lists(
    st.tuples(
        st.sampled_from(["flip", "zero", "delete", "insert", "cut"]),
        st.floats(0, 1),
        st.integers(1, 300),
        st.integers(0, 3),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damages)
def test_salvage_after_any_damage(pristine: Path, tmp_path: Path, damage: list[tuple[str, float, int, int]]) -> None:
    dataset, output = tmp_path / "damaged", tmp_path / "new"
    shutil.rmtree(dataset, ignore_errors=True)
    shutil.rmtree(output, ignore_errors=True)
    shutil.copytree(pristine, dataset)
    shards = shards_of(dataset)
    for kind, where, size, which in damage:
        path = shards[which % len(shards)]
        content = path.read_bytes()
        at = int(where * len(content))
        path.write_bytes(
            {
                "flip": content[:at] + bytes(byte ^ 1 for byte in content[at : at + 1]) + content[at + 1 :],
                "zero": content[:at] + bytes(len(content[at : at + size])) + content[at + size :],
                "delete": content[:at] + content[at + size :],
                "insert": content[:at] + zlib.compress(str(size).encode()) * 3 + content[at:],
                "cut": content[:at],
            }[kind]
        )
    check_salvaged(dataset, output, pristine)


def test_salvage_refuses_where_ids_lost_their_meaning(plain: Path, tmp_path: Path) -> None:
    rewrite_info(plain, lambda content: content["labels"]["category"].reverse(), with_checksum=False)
    with pytest.raises(SchemaMismatchError, match=r"nothing can be salvaged while dataset\.json or vocab\.txt"):
        salvage(verify(str(plain)), str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_salvage_refuses_what_is_there(plain: Path, tmp_path: Path) -> None:
    findings = verify(str(plain))
    with pytest.raises(OptionError, match="expected another directory"):
        salvage(findings, str(plain))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.md").write_text("mine")
    with pytest.raises(OutputExistsError, match=r"--salvage .*holds 1 other files"):
        salvage(findings, str(tmp_path / "other"))
    salvage(findings, str(tmp_path / "new"))
    with pytest.raises(OutputExistsError, match=r"--salvage .*holds a dataset already; give another directory$"):
        salvage(findings, str(tmp_path / "new"))
    assert faults_of(plain) == []


# As a command


def run_verify(*argv: str | Path, capsys: pytest.CaptureFixture[str]) -> Outcome:
    with own_logging():
        status = run_command(verify_command.main, [str(argument) for argument in argv])
    out, err = capsys.readouterr()
    return Outcome(status, out, err)


def test_the_command_on_a_clean_dataset(pristine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = run_verify(pristine, capsys=capsys)
    assert (outcome.status, outcome.stderr) == (0, "")
    assert re.fullmatch(r"clean: 9 examples in 6 shards, 0\.0 MB, checked in .* MB/s\)\n", outcome.stdout)


def test_the_command_on_a_damaged_dataset(plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in shards_of(plain):
        path.write_bytes(path.read_bytes()[:-1])
    num_faults = 2 * len(shards_of(pristine_copy := plain))
    outcome = run_verify(pristine_copy, "--max_faults", "3", capsys=capsys)
    assert (outcome.status, outcome.stderr) == (2, "")
    lines = outcome.stdout.splitlines()
    assert len(lines) == 5
    assert lines[3] == f"… and {num_faults - 3} more faults (--max_faults 0 shows all)"
    outcome = run_verify(plain, "--max_faults", "0", "--salvage", tmp_path / "new", capsys=capsys)
    assert outcome.status == 2, "it says that the dataset is not clean, whatever was saved of it"
    lines = outcome.stdout.splitlines()
    assert lines[num_faults].startswith(f"{num_faults} faults: ")
    assert re.fullmatch(r"salvaged \d of 9 examples into .*/new; \d lost", lines[-1])
    assert run_verify(tmp_path / "new", capsys=capsys).status == 0


def test_the_command_on_what_is_no_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        ([tmp_path / "none"], "no such dataset directory"),
        ([tmp_path], "no dataset.json in it"),
        ([tmp_path, "--max_faults", "-1"], "expected 0 .all. or more, got -1"),
    ):
        outcome = run_verify(*arguments, capsys=capsys)
        assert (outcome.status, outcome.stdout) == (2, "")
        assert re.search(message, outcome.stderr)
        assert outcome.stderr.count("\n") == 1
    with pytest.raises(MissingInputError):
        verify(str(tmp_path))


def test_names_cannot_steer_the_terminal(plain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = shards_of(plain)[0]
    for number in (0, 1):
        features = parse_example(records_of(path)[number])
        features["key"] = [b"\x1b[31m\n"]
        replace_record(plain, path, number, serialize_by_hand(features))
    outcome = run_verify(plain, capsys=capsys)
    assert "\x1b" not in outcome.stdout
    assert outcome.stdout.count("\n") == 2


def test_a_reader_that_goes_away_does_not_make_a_damaged_dataset_clean(plain: Path) -> None:
    shards_of(plain)[0].write_bytes(b"")
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "pipeline.verify", plain]
    done = subprocess.run(command, cwd=REPOSITORY, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_killed_process_is_one_line() -> None:
    with pytest.raises(WorkerDiedError, match="a process that reads shards died"):
        list(
            verify_command._run(
                _kill_oneself, [(FileInfo(name="a", num_examples=0, num_bytes=0, sha256=""), None)], 2, lambda _: None
            )
        )


def _kill_oneself(*_: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def test_shards_that_were_still_to_be_read_say_nothing_of_an_interrupt(caplog: pytest.LogCaptureFixture) -> None:
    file = FileInfo(name="a", num_examples=0, num_bytes=0, sha256="")
    # What a process does with a task is of no interest; this needs no import.
    found = verify_command._run(operator.itemgetter(0), [(file, None)] * 2_000, 2, lambda _: None)
    next(found)
    with pytest.raises(KeyboardInterrupt):
        found.throw(KeyboardInterrupt)
    assert caplog.records == []


def test_it_needs_no_tensorflow(pristine_plain: Path) -> None:
    code = (
        "import sys; from pipeline.verify.__main__ import main; status = main([sys.argv[1]]); "
        "sys.exit(status or any(name in sys.modules for name in ('tensorflow', 'apache_beam')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, pristine_plain], cwd=REPOSITORY, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_read_errors_are_faults(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.verify.inflate import HashedFile

    def fail(self: HashedFile, size: int) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(HashedFile, "read", fail)
    lines = faults_of(plain)
    assert len(lines) >= 6
    assert all("cannot be read beyond byte 0: Input/output error" in line for line in lines if "tfrecord" in line)


def test_descriptions_survive_a_round_trip(pristine: Path) -> None:
    info = read_dataset_info(str(pristine))
    assert DatasetInfo.from_json(info.to_json(), "x") == info
    assert info.rejected_file is not None
    assert dataclasses.replace(info, rejected_file=None) != info
