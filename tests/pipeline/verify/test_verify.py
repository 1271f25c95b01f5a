"""`pipeline.verify` on datasets that are damaged on purpose: every fault is found, with file, record and byte."""

import bisect
import functools
import gzip
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import filesystem
from pipeline.command_line import run_command
from pipeline.corpus.options import InputSpec
from pipeline.dataset.files import REJECTED_NAME, lengths_name, npy_bytes
from pipeline.dataset.info import DATASET_INFO_NAME, FileInfo, read_dataset_info
from pipeline.dataset.tfexample import RECORD_OVERHEAD_BYTES, parse_example
from pipeline.errors import MissingInputError, SchemaMismatchError, WorkerDiedError
from pipeline.verify import __main__ as verify_command
from pipeline.verify.dataset import check_shards, verify
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
from tests.support.damaged import describe_again, flip, records_of, replace_record, rewrite_info

REPOSITORY = Path(verify_command.__file__).parents[2]
EMPTY_FILE = FileInfo(name="a", num_examples=0, num_bytes=0, sha256="")


def make_dataset(root: Path, compression: str) -> Path:
    """Write nine examples in three splits of two shards each, and two rejected documents."""
    documents = made_up_documents(9) | {"体育/bad.txt": b"\xff", "科技/empty.txt": b" "}
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


@pytest.fixture(scope="module")
def all_pristine(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Compression → a dataset that no test may change."""
    root = tmp_path_factory.mktemp("pristine")
    return {compression: make_dataset(root / compression, compression) for compression in ("none", "gzip")}


@pytest.fixture(params=["none", "gzip"])
def pristine(request: pytest.FixtureRequest, all_pristine: dict[str, Path]) -> Path:
    return all_pristine[request.param]


@pytest.fixture
def dataset(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "dataset"))


@pytest.fixture
def plain(all_pristine: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(all_pristine["none"], tmp_path / "dataset"))


@pytest.fixture
def compressed(all_pristine: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(all_pristine["gzip"], tmp_path / "dataset"))


def faults_of(directory: Path) -> list[str]:
    return [str(fault) for fault in verify(str(directory)).faults]


def shards_of(directory: Path) -> list[Path]:
    """Return the shards that hold examples, the largest first."""
    info = read_dataset_info(str(directory))
    shards = [shard for split in info.splits.values() for shard in split.shards if shard.num_examples]
    return [directory / shard.name for shard in sorted(shards, key=lambda shard: -shard.num_examples)]


def offsets_of(path: Path) -> list[int]:
    """Return where each record of an intact shard begins, in its uncompressed content."""
    sizes = [len(record) + RECORD_OVERHEAD_BYTES for record in records_of(path)]
    return [0, *itertools.accumulate(sizes)][:-1]


# Clean datasets


def test_a_dataset_as_the_job_writes_it_is_clean(pristine: Path) -> None:
    before = digest_files(pristine)
    findings = verify(str(pristine))
    assert findings.faults == []
    assert (findings.num_shards, findings.num_examples, findings.num_expected) == (6, 9, 9)
    assert digest_files(pristine) == before


def test_several_processes_find_the_same(dataset: Path) -> None:
    assert verify(str(dataset), num_processes=2) == verify(str(dataset), num_processes=1)
    path = shards_of(dataset)[0]
    path.write_bytes(flip(path.read_bytes(), 4 * path.stat().st_size))
    findings = verify(str(dataset), num_processes=2)
    assert findings.faults
    assert findings == verify(str(dataset), num_processes=1)


@pytest.mark.parametrize("num_processes", [1, 2])
def test_progress_adds_up_to_all_bytes(pristine: Path, num_processes: int) -> None:
    info = read_dataset_info(str(pristine))
    total = sum(shard.num_bytes for split in info.splits.values() for shard in split.shards)
    steps: list[tuple[int, int]] = []
    verify(str(pristine), num_processes=num_processes, on_progress=lambda *step: steps.append(step))
    assert sum(num_bytes for num_bytes, _ in steps) == total
    assert {total_bytes for _, total_bytes in steps} == {total}


def test_longer_examples_and_a_large_vocabulary(tmp_path: Path) -> None:
    """Ids of one, two and three bytes, and a text of 65,535 tokens."""
    tokens = [
        *("[PAD]", *(f"[unused{n}]" for n in range(99)), "[UNK]", "[CLS]", "[SEP]"),
        *map(chr, range(0x4E00, 0x9000)),
    ]
    vocab = write_lines(tmp_path / "vocab.txt", tokens)
    draw = np.random.default_rng(0)
    texts = ["".join(map(chr, draw.integers(0x4E00, 0x9100, size))) for size in (1, 2, 500, 900)]
    rows = write_lines(tmp_path / "corpus.tsv", [*(f"{text}\t体育" for text in texts), f"{texts[-1] * 73}\t科技"])
    config = make_config(tmp_path, rows, vocab_path=str(vocab), max_len=65_535, num_shards=1)
    info = run_quickly(config)
    assert info.vocab_size > 1 << 14
    assert sum(split.num_unknown_tokens for split in info.splits.values()) > 0
    assert faults_of(Path(config.output_dir)) == []


def test_two_documents(tmp_path: Path) -> None:
    """A split or two are empty, and no document is rejected."""
    config = make_config(tmp_path, write_tree(tmp_path / "corpus", made_up_documents(2)))
    run_quickly(config)
    assert faults_of(Path(config.output_dir)) == []


def test_a_dataset_of_an_earlier_version(plain: Path) -> None:
    def forget(content: dict[str, Any]) -> None:
        del content["rejected_file"], content["documents"]["in_several_splits"]

    rewrite_info(plain, forget)
    assert faults_of(plain) == []


# Every bit


def same_content(compressed: bytes, other: bytes) -> bool:
    """Tell whether two gzip files have the same content; a damaged one has none."""
    try:
        return gzip.decompress(compressed) == gzip.decompress(other)
    except (OSError, EOFError, zlib.error):
        return False


@pytest.mark.parametrize("num_flips", [200, pytest.param(None, marks=pytest.mark.slow)])
def test_every_bit_flip_is_found_and_located(pristine: Path, tmp_path: Path, num_flips: int | None) -> None:
    """One fault for each flip in a plain shard, with its record and offset; a compressed shard names a record, too.

    The slow test flips every bit, in `dataset.json` every ninth.
    """
    dataset = Path(shutil.copytree(pristine, tmp_path / "dataset"))
    paths = sorted(dataset.iterdir())
    contents = {path: path.read_bytes() for path in paths}
    offsets = {path: offsets_of(path) for path in shards_of(dataset)}
    steps = {path: 9 if path.name == DATASET_INFO_NAME else 1 for path in paths}
    places = [(path, bit) for path in paths for bit in range(0, 8 * len(contents[path]), steps[path])]
    for path, bit in places if num_flips is None else random.Random(0).sample(places, num_flips):
        path.write_bytes(flip(contents[path], bit))
        faults = verify(str(dataset)).faults
        path.write_bytes(contents[path])
        assert {fault.file for fault in faults} == {path.name}, (path.name, bit)
        if path.suffix == ".tfrecord":
            record = bisect.bisect(offsets[path], bit // 8) - 1
            assert [(fault.record, fault.offset) for fault in faults] == [(record, offsets[path][record])]
        elif path.suffix == ".gz":
            # A bit of the header, or one that deflate does not use, leaves the records as they are.
            assert (faults[0].record is None) == same_content(flip(contents[path], bit), contents[path])
    assert faults_of(dataset) == []


# Faults of one shard


@pytest.mark.parametrize(
    ("damage_fn", "messages"),
    [
        (lambda content: content[:-5], ["the file ends inside the record", "expected [0-9]+ bytes, got"]),
        (lambda content: b"", ["expected [0-9]+ bytes, got 0", "expected [0-9]+ records .*, got 0"]),
        (lambda content: content + b"\0" * 7, ["ends inside the record's header .7 of 12 bytes", "expected .* bytes"]),
        (lambda content: content[:40] + content[41:], ["checksum of the record's content", "expected [0-9]+ bytes"]),
        (lambda content: content[:40] + b"x" + content[40:], ["checksum of the record's content", "expected .* bytes"]),
        (lambda content: bytes(len(content)), ["record 0 at byte 0: the checksum of the record's length"]),
        (lambda content: content + content, ["expected [0-9]+ bytes", "expected [0-9]+ records .*, got"]),
    ],
    ids=["cut", "empty", "tail", "lost byte", "added byte", "zeros", "doubled"],
)
def test_damaged_bytes(plain: Path, damage_fn: Callable[[bytes], bytes], messages: list[str]) -> None:
    path = shards_of(plain)[0]
    path.write_bytes(damage_fn(path.read_bytes()))
    lines = [line for line in faults_of(plain) if "its key is also" not in line]
    assert len(lines) == len(messages), lines
    for line, message in zip(lines, messages, strict=True):
        assert line.startswith(path.name)
        assert re.search(message, line), line


def test_the_first_damaged_record_ends_its_shard_and_no_other(plain: Path) -> None:
    path, other, *_ = shards_of(plain)
    num_lost = len(records_of(path)) - 1 + len(records_of(other))
    second = offsets_of(path)[1]
    path.write_bytes(flip(path.read_bytes(), 8 * (second + 20)))
    other.write_bytes(flip(other.read_bytes(), 0))
    findings = verify(str(plain))
    found = {(fault.file, fault.record, fault.offset) for fault in findings.faults}
    assert found == {(path.name, 1, second), (other.name, 0, 0)}
    assert findings.num_examples == 9 - num_lost


@pytest.mark.parametrize(
    ("damage_fn", "message"),
    [
        (lambda data: b"\0" + data[1:], "record 0 at byte 0: the gzip stream is damaged"),
        (lambda data: data[:4] + b"\1" + data[5:], "its checksum differs .*, though every record is intact"),
        (lambda data: data[:-20], "record [0-9]+ at byte [0-9]+: the gzip stream is damaged"),
        (lambda data: data[:-4], "record [0-9]+ at byte [0-9]+: the gzip stream is damaged"),
        (lambda data: data + b"more", "record [0-9]+ at byte [0-9]+: the gzip stream is damaged"),
        (lambda data: b"", "expected [0-9]+ bytes, got 0"),
        (lambda data: gzip.decompress(data), "record 0 at byte 0: the gzip stream is damaged"),
    ],
    ids=["magic", "time", "cut", "cut trailer", "tail", "empty", "not compressed"],
)
def test_damaged_gzip_streams(compressed: Path, damage_fn: Callable[[bytes], bytes], message: str) -> None:
    path = shards_of(compressed)[0]
    path.write_bytes(damage_fn(path.read_bytes()))
    lines = faults_of(compressed)
    assert re.match(f"{re.escape(path.name)}: {message}", lines[0])
    assert all(line.startswith(path.name) for line in lines)


def test_a_shard_that_cannot_be_read(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = shards_of(plain)[0]
    read_bytes = filesystem.read_bytes

    def fail(name: str) -> bytes:
        if name == str(path):
            raise MissingInputError(f"{name}: cannot read this file: Input/output error")
        return read_bytes(name)

    monkeypatch.setattr(filesystem, "read_bytes", fail)
    assert faults_of(plain) == [f"{path.name}: cannot read this file: Input/output error"]


# Of the tokens of this vocabulary: [PAD] 0, [UNK] 1, [CLS] 2, [SEP] 3.
RIGHT: dict[str, Any] = {
    "indices": [2, 9, 10, 11, 3],
    "segments": [0] * 5,
    "label": [0],
    "second_label": [0],
    "key": ["体育/new.txt".encode()],
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"indices": [2, 9, 118, 11, 3]}, r"expected ids in \[0, 118\), got 118"),
        ({"indices": [2, 9, 2**62, 11, 3]}, rf"expected ids in \[0, 118\), got {2**62}"),
        ({"indices": [2, -9, 10, 11, 3]}, r"expected ids in \[0, 118\), got -9"),
        ({"indices": [9, 9, 10, 11, 3]}, r"expected \[CLS\] \(2\) as its first id, got 9"),
        ({"indices": [2, 9, 10, 11, 9]}, r"expected \[SEP\] \(3\) as its last id, got 9"),
        ({"indices": [2, 9, 2, 11, 3]}, r"expected 1 of \[CLS\] among its ids, got 2"),
        ({"indices": [2, 9, 3, 11, 3]}, r"expected 1 of \[SEP\] among its ids, got 2"),
        ({"indices": [2, 9, 0, 11, 3]}, r"expected 0 of \[PAD\] among its ids, got 1"),
        ({"indices": [2, 3], "segments": [0, 0]}, "expected 3 to 24 ids, got 2"),
        ({"indices": [2, *[9] * 23, 3], "segments": [0] * 25}, "expected 3 to 24 ids, got 25"),
        ({"segments": [0, 0, 1, 0, 0]}, "expected 5 zeros in feature 'segments'"),
        ({"segments": [0, 0, 0, 0]}, "expected 5 zeros in feature 'segments'"),
        ({"label": [3]}, r"expected a label in \[0, 3\), got 3"),
        ({"second_label": [-1]}, r"expected a second_label in \[0, 3\), got -1"),
        ({"key": [b""]}, "its key is empty"),
        ({"key": [b"\xff"]}, "its key is not UTF-8"),
        ({"label": []}, "expected 1 value of feature 'label', got 0"),
        ({"label": [0, 1]}, "expected 1 value of feature 'label', got 2"),
        ({"label": [b"x"]}, "expected int64 values of feature 'label'"),
        ({"label": [0.5]}, "expected 1 value of feature 'label', got 0"),
        ({"key": [7]}, "expected bytes values of feature 'key'"),
        ({"indices": []}, "expected at least 1 value of feature 'indices', got 0"),
        ({"weight": [1]}, "unexpected feature 'weight'"),
    ],
)
def test_wrong_examples_in_right_frames(plain: Path, changes: dict[str, Any], message: str) -> None:
    path = shards_of(plain)[0]
    set_lengths(plain, path, 1, len((RIGHT | changes)["indices"]))
    offset = offsets_of(path)[1]
    replace_record(path, 1, RIGHT | changes)
    (line,) = [line for line in faults_of(plain) if not line.startswith(DATASET_INFO_NAME)]
    assert re.match(f"{re.escape(path.name)}: record 1 at byte {offset}: {message}", line), line


def set_lengths(directory: Path, shard: Path, record: int, length: int) -> None:
    """Change a length in the lengths file of the first shard of a split, and describe it again."""
    split = shard.name.split("-")[0]
    sizes = [other.num_examples for other in read_dataset_info(str(directory)).splits[split].shards]
    path = directory / lengths_name(split)
    lengths = np.load(path, allow_pickle=False)
    lengths[sum(sizes[: int(shard.name.split("-")[1])]) + record] = length
    path.write_bytes(npy_bytes(lengths))
    describe_again(directory, path.name)


def test_records_that_are_no_examples(plain: Path) -> None:
    path = shards_of(plain)[0]
    replace_record(path, 0, b"\xff\xff\xff")
    assert any("record 0 at byte 0: not a tf.train.Example" in line for line in faults_of(plain))


def test_examples_that_others_serialized_are_intact(plain: Path) -> None:
    """The same values with their features in another order, and numbers one by one instead of packed."""
    path = shards_of(plain)[0]
    features = parse_example(records_of(path)[0])
    names = ("segments", "label", "key", "indices", "second_label")
    replace_record(path, 0, {name: features[name] for name in names})
    assert faults_of(plain) == []


# Faults between the files


def test_other_lengths_than_the_lengths_file_says(plain: Path) -> None:
    path = shards_of(plain)[0]
    length = len(parse_example(records_of(path)[1])["indices"])
    set_lengths(plain, path, 1, length + 1)
    place = f"{path.name}: record 1 at byte {offsets_of(path)[1]}"
    assert faults_of(plain) == [
        f"{place}: {length} values of feature 'indices', but the lengths file says {length + 1}"
    ]


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", npy_bytes(np.zeros(3)), npy_bytes(np.zeros((2, 2), "<u2"))])
def test_lengths_files_that_are_none(plain: Path, content: bytes) -> None:
    (plain / "train-lengths.npy").write_bytes(content)
    describe_again(plain, "train-lengths.npy")
    (line,) = faults_of(plain)
    assert line.startswith("train-lengths.npy: ")


def test_missing_files_are_all_named(plain: Path) -> None:
    names = {"train-00000-of-00002.tfrecord", "dev-lengths.npy", "vocab.txt", REJECTED_NAME}
    for name in names:
        (plain / name).unlink()
    assert set(faults_of(plain)) == {f"{name}: listed in dataset.json but not there" for name in names}


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
    assert {line.split(":")[0] for line in faults_of(plain)} == {one.name, other.name}


def test_the_same_key_twice(plain: Path) -> None:
    path = shards_of(plain)[0]
    first, second = (parse_example(record) for record in records_of(path)[:2])
    replace_record(path, 1, second | {"key": first["key"]})
    (line,) = faults_of(plain)
    assert line == f"{path.name}: record 1 at byte {offsets_of(path)[1]}: its key is also that of {path.name}, record 0"


def test_a_key_both_written_and_rejected(plain: Path) -> None:
    path = shards_of(plain)[0]
    replace_record(path, 0, parse_example(records_of(path)[0]) | {"key": ["体育/bad.txt".encode()]})
    assert faults_of(plain) == [f"{REJECTED_NAME}: record 0: its key is also that of {path.name}, record 0"]


def test_a_text_in_two_splits(plain: Path) -> None:
    _, examples = read_dataset(plain)
    one, other = next(
        (a, b)
        for a, b in itertools.combinations(examples.values(), 2)
        if (a.split, b.split) == ("train", "dev") and len(a.features["indices"]) == len(b.features["indices"])
    )
    path = plain / other.shard
    number = [parse_example(record) for record in records_of(path)].index(other.features)
    replace_record(path, number, other.features | {"indices": one.features["indices"]})
    (line,) = faults_of(plain)
    assert line.startswith(f"{path.name}: record {number} at byte {offsets_of(path)[number]}: ")
    assert re.search(rf"its text is also in another split, {one.shard}, record \d+ \(1 such texts, expected 0\)", line)


def test_texts_that_published_splits_share(tmp_path: Path) -> None:
    """Those that were counted when the dataset was written are no fault."""
    train = write_lines(tmp_path / "train.tsv", ["山水风云\t体育", "日月星花\t科技", "草木\t科技"])
    dev = write_lines(tmp_path / "dev.tsv", ["山水风云\t体育", "日月星花\t科技", "鱼鸟\t科技"])
    config = make_config(tmp_path, InputSpec(str(train), "train"), InputSpec(str(dev), "dev"))
    assert run_quickly(config).documents.in_several_splits == 2
    output = Path(config.output_dir)
    findings = verify(str(output))
    assert (findings.faults, findings.num_in_several_splits) == ([], 2)
    rewrite_info(output, lambda content: content["documents"].update(in_several_splits=1))
    assert len(faults_of(output)) == 2
    rewrite_info(output, lambda content: content["documents"].update(in_several_splits=3))
    assert faults_of(output) == ["dataset.json: expected 3 texts in several splits, got 2"]


def test_another_vocabulary(plain: Path) -> None:
    (plain / "vocab.txt").write_bytes((plain / "vocab.txt").read_bytes() + b"more\n")
    assert faults_of(plain) == ["vocab.txt: its checksum differs from dataset.json"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected empty 1, not_utf-8 1 .*, got none"),
        (b"{\n", "record 0 at byte 0: not a rejected document"),
        (b"[]\n" * 2, "record 1 at byte 3: not a rejected document"),
        (b'{"key": "a"}\n', "not a rejected document"),
        (b'{"key": 1, "reason": "empty", "detail": ""}\n', "not a rejected document"),
        (b"\xff\n", "not a rejected document"),
        (b"[" * 100_000, "not a rejected document"),
    ],
)
def test_rejected_files_that_are_none(plain: Path, content: bytes, message: str) -> None:
    (plain / REJECTED_NAME).write_bytes(content)
    lines = faults_of(plain)
    assert all(line.startswith(REJECTED_NAME) for line in lines)
    assert any(re.search(message, line) for line in lines), lines


# The description


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    inner = [leaf for key, item in items for leaf in leaves(item, (*path, key))]
    yield from inner or [path]


# Neither stored in another file nor derived from it: only the checksum covers these.
FREE = (
    *("checksum", "configuration", "conflicting", "duplicates", "features", "fingerprint", "labels"),
    *("num_truncated", "seed", "versions"),
)


@pytest.mark.parametrize("with_checksum", [False, True])
def test_each_field_of_the_description_altered(plain: Path, with_checksum: bool) -> None:
    """A stale checksum reveals every change; with a right one, the files do, where they hold the same fact."""
    path = plain / DATASET_INFO_NAME
    original = path.read_text(encoding="utf-8")
    places = list(leaves(json.loads(original)))
    assert len(places) > 150
    for leaf in places:
        value = functools.reduce(lambda place, key: place[key], leaf, json.loads(original))

        def change(content: dict[str, Any], leaf: tuple[Any, ...] = leaf, value: Any = value) -> None:
            holder = functools.reduce(lambda place, key: place[key], leaf[:-1], content)
            holder[leaf[-1]] = value + 1 if isinstance(value, int) else "altered"

        rewrite_info(plain, change, with_checksum=with_checksum)
        may_be_silent = with_checksum and any(free in leaf for free in FREE)
        assert may_be_silent or faults_of(plain), leaf
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
    (plain.parent / "secret.tfrecord").write_bytes(b"x")
    rewrite_info(plain, lambda content: content["splits"]["train"]["shards"][0].update(name="../secret.tfrecord"))
    with pytest.raises(SchemaMismatchError, match="expected the name of a file in the same directory"):
        read_dataset_info(str(plain))
    (line,) = faults_of(plain)
    assert "expected the name of a file in the same directory, got '../secret.tfrecord'" in line


# The command


def run_verify(*argv: str | Path, capsys: pytest.CaptureFixture[str]) -> Outcome:
    with own_logging():
        status = run_command(verify_command.main, [str(argument) for argument in argv])
    out, err = capsys.readouterr()
    return Outcome(status, out, err)


def test_the_command_on_a_clean_dataset(pristine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = run_verify(pristine, capsys=capsys)
    assert (outcome.status, outcome.stderr) == (0, "")
    assert re.fullmatch(r"clean: 9 examples in 6 shards, 0\.0 MB, checked in .* MB/s\)\n", outcome.stdout)


@pytest.mark.parametrize("max_faults", [0, 3, 100])
def test_the_command_on_a_damaged_dataset(plain: Path, capsys: pytest.CaptureFixture[str], max_faults: int) -> None:
    for path in shards_of(plain):
        path.write_bytes(path.read_bytes()[:-1])
    lines = faults_of(plain)
    outcome = run_verify(plain, "--max_faults", str(max_faults), capsys=capsys)
    assert (outcome.status, outcome.stderr) == (2, "")
    *shown, summary = outcome.stdout.splitlines()
    more = [f"… and {len(lines) - 3} more faults (--max_faults 0 shows all)"]
    assert shown == (lines[:3] + more if max_faults == 3 else lines)
    assert re.fullmatch(rf"{len(lines)} faults: \d of 9 examples are intact \(6 shards, .*\)", summary)


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


def test_names_cannot_steer_the_terminal(plain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    replace_record(shards_of(plain)[0], 0, RIGHT | {"\x1b[31m\n": [1]})
    outcome = run_verify(plain, capsys=capsys)
    assert "\x1b" not in outcome.stdout
    assert outcome.stdout.count("\n") == 2


def test_a_closed_pipe_does_not_make_a_damaged_dataset_clean(plain: Path) -> None:
    shards_of(plain)[0].write_bytes(b"")
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "pipeline.verify", str(plain)]
    done = subprocess.run(command, cwd=REPOSITORY, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_killed_process_is_one_line() -> None:
    with pytest.raises(WorkerDiedError, match="a process that reads shards died"):
        list(check_shards(_kill_oneself, [EMPTY_FILE], [None], num_processes=2))


def _kill_oneself(*_: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)
