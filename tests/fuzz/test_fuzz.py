"""Any bytes at all, for whatever reads bytes that others may have written: an answer or one of our errors, never more.

`corpus/` holds small made-up files that once took a path of their own through a reader; every run starts from them, and
Hypothesis bends them further. To add one, write it there under the name of its reader: `records-…`, `gzip-…`, `zip-…`.
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
from pipeline.corpus.streams import GZIP_MAGIC
from pipeline.corpus.table import Delimited, TableSource
from pipeline.dataset.info import DatasetInfo
from pipeline.dataset.tfexample import frame_records, parse_example, read_records
from pipeline.errors import CorruptShardError, PipelineError
from pipeline.verify.example_check import Expectation, check_examples
from pipeline.verify.inflate import HashedFile, Inflated
from pipeline.verify.record_scan import RecordScanner
from tests.support.corpora import make_config

CORPUS = Path(__file__).parent / "corpus"
EXPECTED = Expectation(
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


def scan(content: bytes, *, is_gzip: bool) -> tuple[list[bytes], bool]:
    """Return the records that the scanner gives out, and whether it found fault with anything."""
    file = HashedFile(io.BytesIO(content))
    source = Inflated(file) if is_gzip else file
    scanner = RecordScanner(source, "shard")
    records = []
    for frames in scanner.blocks():
        columns = check_examples(frames, EXPECTED)
        assert len(columns.rows) + len({row for row, _ in columns.faults}) >= len(frames.numbers)
        assert set(range(len(frames.numbers))) - {row for row, _ in columns.faults} <= set(columns.rows.tolist())
        records += frames.payloads()
    assert file.num_bytes == len(content), "all of it is read, whatever is in it"
    return records, bool(scanner.faults) or (isinstance(source, Inflated) and source.problem is not None)


def strictly(content: bytes, name: str) -> list[bytes] | None:
    """Return the records as the reader that stops at the first fault sees them, or `None` if there is one."""
    try:
        return [record for _, record in read_records(io.BytesIO(content), name)]
    except CorruptShardError:
        return None


@FUZZ
@given(bent("records"))
@example(b"")
def test_any_bytes_as_a_shard(content: bytes) -> None:
    """The scanner finds fault exactly where the strict reader does, and gives out the same records elsewhere."""
    records, has_faults = scan(content, is_gzip=False)
    strict = strictly(content, "shard")
    assert has_faults == (strict is None)
    if strict is not None:
        assert records == strict


@FUZZ
@given(bent("gzip"))
def test_any_bytes_as_a_compressed_shard(content: bytes) -> None:
    records, has_faults = scan(content, is_gzip=True)
    strict = strictly(content, "shard.gz")
    if not has_faults:
        assert records == strict
    if strict is None:
        assert has_faults


@FUZZ
@given(st.lists(bent("example"), min_size=1, max_size=4))
def test_any_bytes_as_examples(contents: list[bytes]) -> None:
    """What the vectorized decoder takes as an example is one, with the same number of ids."""
    file = HashedFile(io.BytesIO(frame_records(contents)))
    for frames in RecordScanner(file, "shard").blocks():
        columns = check_examples(frames, EXPECTED)
        for row, length, label in zip(columns.rows, columns.lengths, columns.labels, strict=True):
            features = parse_example(contents[frames.numbers[row]])
            assert len(features["indices"]) == length
            assert features["label"] == [label]
        for row in columns.rows[columns.is_good].tolist():
            features = parse_example(contents[frames.numbers[row]])
            assert features["indices"][0] == 2
            assert features["indices"][-1] == 3
            assert all(isinstance(id_, int) and id_ < 300 for id_ in features["indices"])


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


def test_seeds_are_what_they_are_called() -> None:
    assert scan(seeds("records")[0], is_gzip=False)[1] is False
    assert scan(seeds("gzip")[0], is_gzip=True)[1] is False
    assert gzip.decompress(seeds("gzip")[0]) == seeds("records")[0]
