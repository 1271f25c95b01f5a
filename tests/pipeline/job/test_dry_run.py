"""`--dry_run`: what it says about a corpus of which every number is known, and that it leaves nothing behind."""

import dataclasses
import gzip
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.corpus.chunks import Chunk
from pipeline.corpus.options import InputSpec
from pipeline.corpus.table import TableSource
from pipeline.corpus.tree import TreeSource
from pipeline.job import dry_run
from pipeline.job.config import PreprocessConfig
from pipeline.job.dry_run import describe_dry_run
from pipeline.job.job import Job
from pipeline.job.preprocess import prepare
from pipeline.job.references import ReferenceReader
from tests.support.corpora import (
    digest_files,
    made_up_documents,
    made_up_text,
    make_config,
    run_quickly,
    write_lines,
    write_tree,
)
from tests.support.workshop import Workshop, make_workshop

MAX_LEN = 60_000
# In thousands of tokens: mean 29.5, median 20, 95 % below 60; 3 of 11 are longer than MAX_LEN.
LENGTHS = {"train": (15, 15, 15, 15, 20, 20, 20, 25), "dev": (61, 65, 70)}


def text_of(num_thousands: int, number: int) -> str:
    """Return a text of so many thousand tokens, another one for each number."""
    return "水" * number + "山" * (1_000 * num_thousands - 2 - number)  # … and [CLS] and [SEP]


def known_corpus(root: Path, **changes: object) -> PreprocessConfig:
    """Return a corpus of 11 usable documents in 2 splits and 2 categories, and 2 documents that cannot be used."""
    train = {f"体育/{number}.txt": text_of(length, number) for number, length in enumerate(LENGTHS["train"])}
    # 3,250 of 325,000 tokens are not in the vocabulary.
    train["体育/7.txt"] = "龙" * 3_250 + train["体育/7.txt"][3_250:]
    dev = {f"科技/{number}.txt": text_of(length, number + 50) for number, length in enumerate(LENGTHS["dev"])}
    unusable: dict[str, str | bytes] = {"体育/bad.txt": b"\xff", "体育/dropped.txt": "\u200b"}
    inputs = [
        InputSpec(str(write_tree(root / "train", train | unusable)), "train"),
        InputSpec(str(write_tree(root / "dev", dev)), "dev"),
    ]
    return make_config(root, *inputs, **{"max_len": MAX_LEN, "num_shards": 2, "max_rejected_fraction": 0.5, **changes})


class FakeClock:
    """A clock that goes only as far as it is told."""

    def __init__(self) -> None:
        self.seconds = 1_000.0

    def monotonic(self) -> float:
        return self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """On a machine of three cores: finding takes a minute for each source, reading four for each chunk, writing 26."""
    made = FakeClock()
    list_chunks, read, serialize = TreeSource.chunks, ReferenceReader.read, dry_run.serialize_documents

    def slowly(seconds: float, function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            made.seconds += seconds
            return function(*arguments, **options)

        return call

    monkeypatch.setattr(TreeSource, "chunks", slowly(60, list_chunks))
    monkeypatch.setattr(ReferenceReader, "read", slowly(240, read))
    monkeypatch.setattr(dry_run, "serialize_documents", slowly(1_560, serialize))
    # What every worker does once is no part of what a document costs.
    monkeypatch.setattr(Job, "make_tokenizer", slowly(7_777, Job.make_tokenizer))
    monkeypatch.setattr(dry_run, "time", made)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    return made


def test_every_number_of_a_known_corpus(tmp_path: Path, clock: FakeClock) -> None:
    said = describe_dry_run(prepare(known_corpus(tmp_path))).split("\n")
    # 650,000 bytes of ids and segments; an example adds 139 or so.
    assert said == [
        "dry run: 13 documents read, nothing written",
        "documents: 13",
        "rejected in the sample: 2 (empty 1, not_utf-8 1)",
        "  train/体育/bad.txt: not_utf-8: byte 0xff at position 0: invalid start byte",
        "  train/体育/dropped.txt: empty: no token is left of it: only characters that the tokenizer drops",
        "tokens per document: mean 29545, median 20000, 95 % below 60000; cut to 60000: 27.3%; "
        "[UNK]: 1.00% of the tokens",
        "",
        "split  examples  shards   MB  MiB per shard",
        "train         8       2  0.5            0.2",
        "dev           3       2  0.2            0.1",
        "",
        "category: 2 seen: 体育 72.7%, 科技 27.3%",
        "second: 2 seen: 生活娱乐 72.7%, 公共事务 27.3%",
        # 2 minutes of finding, and 34 of working, which is done by three.
        "here, with 3 workers: about 13.3 minutes and 0.6 GB of memory",
    ]


@pytest.mark.parametrize(
    ("num_workers", "said"),
    [
        (1, "here, with 1 workers: about 36.0 minutes and 0.3 GB of memory"),
        # More of them take more memory, but no more cores than there are.
        (9, "here, with 9 workers: about 13.3 minutes and 1.5 GB of memory"),
    ],
)
def test_as_many_workers_as_were_asked_for(tmp_path: Path, clock: FakeClock, num_workers: int, said: str) -> None:
    assert describe_dry_run(prepare(known_corpus(tmp_path)), num_workers).split("\n")[-1] == said


@dataclasses.dataclass(frozen=True, kw_only=True)
class EndlessTree(TreeSource):
    """A tree of a million files, which are one."""

    def chunks(self, index: int) -> Iterator[Chunk]:
        return (Chunk(index, 0, [b"\xe4\xbd\x93\xe8\x82\xb2/0.txt"] * 500) for _ in range(2_000))


def test_of_a_million_documents_a_few_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    tree = write_tree(tmp_path / "corpus", {"体育/0.txt": "山水", "科技/0.txt": "水"})
    job = prepare(make_config(tmp_path, tree, split_weights=(("train", 1.0),)))
    job = dataclasses.replace(job, sources=(EndlessTree(path=str(tree), split=None, key_prefix=""),))
    said = describe_dry_run(job).split("\n")
    # Every 32nd of the 2,000 chunks, and 42 documents of the 500 in each.
    assert said[:3] == ["dry run: 2,646 documents read, nothing written", "documents: 1,000,000", said[2]]
    (train,) = (line.split() for line in said if line.startswith("train"))
    num_bytes = float(train[3]) * 1e6
    assert train[1:3] == ["1,000,000", "100"]
    assert 50e6 < num_bytes < 200e6
    assert float(train[4]) == pytest.approx(num_bytes / 100 / 2**20, abs=0.05)
    # Four processes, and 500 bytes for each document.
    assert said[-1].endswith("minutes and 1.1 GB of memory")


def test_of_a_large_corpus_little_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a compressed table travel with their chunks; most of them are let go at once."""
    lines = [f"{number}{made_up_text(number, 400).split()[0]}\t体育" for number in range(2_000)]
    path = tmp_path / "t.tsv.gz"
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    monkeypatch.setattr("pipeline.corpus.streams.BYTES_PER_CHUNK", 200)
    most = []

    def chunks(self: TableSource, index: int, list_chunks: Any = TableSource.chunks) -> Iterator[Chunk]:
        for chunk in list_chunks(self, index):
            yield chunk._replace(items=Block(chunk.items))
            most.append(Block.num_alive)

    monkeypatch.setattr(TableSource, "chunks", chunks)
    assert describe_dry_run(prepare(make_config(tmp_path, path))).split("\n")[1].startswith("documents: about ")
    assert len(most) > 4 * dry_run.SAMPLE_CHUNKS
    assert max(most) <= dry_run.SAMPLE_CHUNKS + 1


class Block(bytes):
    """Bytes of which it is known how many are held."""

    num_alive = 0

    def __init__(self, _: bytes) -> None:
        Block.num_alive += 1

    def __del__(self) -> None:
        Block.num_alive -= 1


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_the_lines_of_a_large_table_are_estimated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pack: Any) -> None:
    """From lines of one length the estimate is exact; of a small table each line is read and counted."""
    content = "".join(f"{'山水'[number % 2]}{number:03d}\t体育\n" for number in range(600)).encode()
    path = tmp_path / "t.tsv"
    path.write_bytes(pack(content))
    job = prepare(make_config(tmp_path, path))
    assert describe_dry_run(job).split("\n")[:2] == ["dry run: 600 documents read, nothing written", "documents: 600"]
    monkeypatch.setattr("pipeline.corpus.streams.BYTES_PER_CHUNK", 10 * len(content) // 600)
    monkeypatch.setattr(dry_run, "SAMPLE_CHUNKS", 20)
    said = describe_dry_run(job).split("\n")
    assert said[:2] == ["dry run: 150 documents read, nothing written", "documents: about 600"]
    table = [line.split() for line in said if line.startswith(("train", "dev", "test"))]
    assert sum(int(row[1]) for row in table) == pytest.approx(600, abs=2)


def test_shards_of_long_examples_are_more(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "corpus", {"体育/0.txt": "山水", "科技/0.txt": "水"})
    job = prepare(make_config(tmp_path, tree, split_weights=(("train", 1.0),), max_len=65_535))
    job = dataclasses.replace(job, sources=(EndlessTree(path=str(tree), split=None, key_prefix=""),))
    (train,) = (line.split() for line in describe_dry_run(job).split("\n") if line.startswith("train"))
    assert train[1:3] == ["1,000,000", "3907"], "as in the job, which does not know either that they are short"


def test_sizes_are_those_of_the_job(tmp_path: Path) -> None:
    """A corpus that is read as a whole: what is expected is what comes, compressed or not."""
    documents = made_up_documents(30) | {f"体育/long{number}.txt": text_of(30, number) for number in range(20)}
    tree = write_tree(tmp_path / "corpus", documents)
    for compression in ("none", "gzip"):
        config = make_config(
            tmp_path,
            tree,
            max_len=MAX_LEN,
            split_weights=(("all", 1.0),),
            num_shards=1,
            compression=compression,
            output_dir=str(tmp_path / compression),
        )
        (row,) = (line.split() for line in describe_dry_run(prepare(config)).split("\n") if line.startswith("all"))
        (shard,) = run_quickly(config).splits["all"].shards
        assert row[:3] == ["all", "50", "1"]
        # The order of the documents is another one, which compression may notice.
        assert float(row[3]) == pytest.approx(shard.num_bytes / 1e6, abs=0.06)
    assert shard.num_bytes < 5e5 < 1e6 < (tmp_path / "none" / "all-00000-of-00001.tfrecord").stat().st_size


def test_names_cannot_steer_the_terminal(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "corpus", {"体育/a\nb\x1b[2J.txt": b"\xff", "\x1b[31m红/1.txt": "山"})
    config = make_config(tmp_path, tree, max_rejected_fraction=1.0, second_label="random")
    said = describe_dry_run(prepare(config))
    assert not {character for character in said if not character.isprintable()} - {"\n"}
    assert "\n  体育/a\\nb\\x1b[2J.txt: not_utf-8: " in said
    assert "\ncategory: 1 seen: \\x1b[31m红 100.0%\n" in said


def test_a_job_that_would_stop_is_told(tmp_path: Path) -> None:
    said = describe_dry_run(prepare(known_corpus(tmp_path, max_rejected_fraction=0.1))).split("\n")
    assert said[5] == "  15.4% of it, where --max_rejected_fraction allows 10.0%: the job would stop"


@pytest.mark.parametrize("text", [b"\xff", "\u200b", " "])
def test_a_sample_without_a_usable_document(tmp_path: Path, text: str | bytes) -> None:
    tree = write_tree(tmp_path / "corpus", {"体育/1.txt": text, "科技/2.txt": text})
    said = describe_dry_run(prepare(make_config(tmp_path, tree, max_rejected_fraction=1.0))).split("\n")
    assert said[:2] == ["dry run: 2 documents read, nothing written", "documents: 2"]
    assert said[2].startswith("rejected in the sample: 2 (")
    assert len(said) == 5


# As a command


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    """A workshop in which temporary files and the current directory lie, too."""
    for name in ("tmp", "here"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.chdir(tmp_path / "here")
    return make_workshop(tmp_path)


@pytest.mark.parametrize("exists", [False, True])
def test_nothing_is_written(workshop: Workshop, exists: bool) -> None:
    if exists:
        workshop.make()
    before = {**digest_files(workshop.root), ".": str(workshop.root.stat().st_mtime_ns)}
    outcome = workshop.run("--dry_run", "--overwrite")
    assert (outcome.status, outcome.stderr) == (0, "")
    assert outcome.stdout.startswith("dry run: 12 documents read, nothing written\ndocuments: 12\n")
    assert "\nhere, with 1 workers: about " in outcome.stdout, "as many as were asked for"
    assert {**digest_files(workshop.root), ".": str(workshop.root.stat().st_mtime_ns)} == before
    assert workshop.output.exists() == exists


def test_what_the_job_would_refuse_is_refused(workshop: Workshop) -> None:
    partial = write_lines(workshop.root / "partial.tsv", ["体育\t动"])
    for options in (["--taxonomy", partial], ["--vocab", workshop.root / "none.txt"], ["--max_len", "2"]):
        dry, real = workshop.run("--dry_run", *options), workshop.run(*options)
        assert dry.status == 2
        assert dry == real
