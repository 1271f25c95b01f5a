"""Arbitrary bytes for everything that reads files: each read ends with a result or with one of our errors.

`corpus/` holds small made-up files, each of which takes another path through its reader. Every run starts from them,
and Hypothesis changes them further. To add one, name it after its reader: `records-…`, `gzip-…`, `zip-…`.
"""

import codecs
import gzip
import io
import random
import zipfile
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pipeline.corpus.archive import ZipSource
from pipeline.corpus.documents import Note, RawDocument
from pipeline.corpus.inputs import Source, open_sources
from pipeline.corpus.reading import fetch
from pipeline.corpus.table import Delimited, TableSource
from pipeline.dataset.info import DatasetInfo, FileInfo
from pipeline.dataset.tfexample import frame_records, parse_example, read_records
from pipeline.errors import CorruptShardError, PipelineError
from pipeline.filesystem import GZIP_MAGIC
from pipeline.verify.shards import Limits, check_shard
from tests.support.corpora import make_config

CORPUS = Path(__file__).parent / "corpus"
LIMITS = Limits(
    vocab_size=300,
    special_ids={"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3},
    max_len=20,
    num_labels={"category": 3, "second": 2},
)
FUZZ = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def seeds(kind: str) -> list[bytes]:
    """Return the seeds of one reader."""
    found = [path.read_bytes() for path in sorted(CORPUS.glob(f"{kind}-*"))]
    assert found, f"no seed of {kind} in {CORPUS}"
    return found


def bend(content: bytes, seed: int, times: int) -> bytes:
    """Change a few places of some bytes: bytes replaced, lost, doubled, zeroed."""
    draw = random.Random(seed)
    for _ in range(times):
        at = draw.randrange(len(content) + 1)
        size = draw.choice([1, 1, 2, 4, 8, 30])
        other = draw.choice(
            [b"", b"\0" * size, b"\xff" * size, draw.randbytes(size), content[at : at + size] * 2, b"\t\n"]
        )
        content = content[:at] + other + content[at + draw.choice([0, size]) :]
    return content


def bent(kind: str) -> st.SearchStrategy[bytes]:
    """Return seeds of one reader as they are or bent, and bytes that have nothing to do with them."""
    changed = st.builds(bend, st.sampled_from(seeds(kind)), st.integers(0, 2**32), st.integers(0, 6))
    return st.one_of(changed, st.binary(max_size=400))


def read(content: bytes, name: str) -> tuple[list[bytes], bool]:
    """Return the records up to the first damage, and whether there is any."""
    records: list[bytes] = []
    try:
        records += (record for _, record in read_records(io.BytesIO(content), name))
    except CorruptShardError:
        return records, True
    return records, False


def check(directory: Path, content: bytes, name: str) -> int:
    """Check some bytes as a shard with a right description; return how many of its examples are intact.

    Each record is an intact example or a fault, and so is each damage of the framing.
    """
    (directory / name).write_bytes(content)
    records, is_damaged = read(content, name)
    file = FileInfo.of(name, len(records), content)
    findings = check_shard(file, None, data_dir=str(directory), limits=LIMITS)
    places = [*findings.examples["record"].tolist(), *(fault.record for fault in findings.faults)]
    assert sorted(places) == list(range(len(records) + is_damaged))
    for row in findings.examples:
        features = parse_example(records[row["record"]])
        ids = features["indices"]
        assert (len(ids), ids[0], ids[-1]) == (row["length"], 2, 3)
        assert all(isinstance(id_, int) and 0 <= id_ < 300 for id_ in ids)
        assert features["label"] == [row["label"]]
    return len(findings.examples)


@pytest.mark.parametrize(("kind", "name"), [("records", "shard"), ("gzip", "shard.gz")])
def test_any_bytes_as_a_shard(tmp_path: Path, kind: str, name: str) -> None:
    @FUZZ
    @given(bent(kind))
    @example(b"")
    def run(content: bytes) -> None:
        check(tmp_path, content, name)

    run()


@FUZZ
@given(st.lists(bent("example"), min_size=1, max_size=4))
def test_any_bytes_as_examples(tmp_path: Path, contents: list[bytes]) -> None:
    check(tmp_path, frame_records(contents), "shard")


def texts_in(source: Source, content: bytes) -> tuple[set[bytes], set[int]] | None:
    """Return all texts that a file may be said to hold, of an archive their checksums; `None` for other kinds."""
    if isinstance(source, ZipSource):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return set(), {member.CRC for member in archive.infolist()}
    if not isinstance(source, TableSource) or not isinstance(source.syntax, Delimited):
        return None
    text = gzip.decompress(content) if content.startswith(GZIP_MAGIC) else content
    lines = text.removeprefix(codecs.BOM_UTF8).split(b"\n")
    return {field for line in lines for field in line.removesuffix(b"\r").split(b"\t")}, set()


def read_all(path: Path, tmp_path: Path, input_format: str) -> int:
    """Read a file as the job does; return the number of documents, whose texts are in it and are found again."""
    config = make_config(tmp_path, path, input_format=input_format)
    sources = open_sources(config.corpus)
    items = [
        item
        for index, source in enumerate(sources)
        for chunk in source.chunks(index)
        for item in source.read(chunk)
        if not isinstance(item, Note)
    ]
    keys = [item.key.encode() for item in items]
    assert len({*keys}) == len(keys)
    documents = [item for item in items if isinstance(item, RawDocument)]
    if len(sources) == 1 and (found := texts_in(sources[0], path.read_bytes())):
        texts, checksums = found
        assert all(document.content in texts or zlib.crc32(document.content) in checksums for document in documents)
    # The second pass must see what the first one saw.
    again = list(fetch([document.locator for document in documents], sources))
    assert again == [document.content for document in documents]
    return len(documents)


@pytest.mark.parametrize(
    ("kind", "input_format"),
    [
        ("zip", "zip"),
        ("tsv", "tsv"),
        ("tsvgz", "tsv"),
        ("zip", "auto"),
        ("csv", "csv"),
        ("jsonl", "jsonl"),
        ("fasttext", "fasttext"),
        ("tar", "tar"),
        ("targz", "auto"),
        ("parquet", "auto"),
    ],
)
def test_any_bytes_as_input(tmp_path: Path, kind: str, input_format: str) -> None:
    path = tmp_path / "input"
    num_documents = 0

    @FUZZ
    @given(bent(kind))
    def read(content: bytes) -> None:
        nonlocal num_documents
        path.write_bytes(content)
        try:
            num_documents += read_all(path, tmp_path, input_format)
        except PipelineError as error:
            assert "\n" not in str(error)  # noqa: PT017

    read()
    assert num_documents > 10, "nearly all of it was refused: nothing was tried"


@FUZZ
@given(bent("info"))
def test_any_bytes_as_a_description(content: bytes) -> None:
    try:
        info = DatasetInfo.from_json(content, "dataset.json")
    except PipelineError as error:
        assert str(error).startswith("dataset.json: ")  # noqa: PT017
    else:
        assert DatasetInfo.from_json(info.to_json(), "x") == info


def test_seeds_are_what_they_are_called(tmp_path: Path) -> None:
    assert check(tmp_path, seeds("records")[0], "shard") > 0
    assert check(tmp_path, frame_records(seeds("example")[:1]), "shard") == 1
    assert gzip.decompress(seeds("gzip")[0]) == seeds("records")[0]
