"""Each transform alone, in a `TestPipeline`: hand-written elements in, exact elements out; and the metrics of a job."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.metrics import MetricsFilter
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineRunner
from apache_beam.testing.test_pipeline import TestPipeline as BeamTestPipeline
from apache_beam.testing.util import assert_that, equal_to

from pipeline.corpus.chunks import Chunk
from pipeline.corpus.documents import Locator, Rejection
from pipeline.dataset.info import FileInfo, read_dataset_info
from pipeline.dataset.labels import LabelMap
from pipeline.dataset.shards import place
from pipeline.engines.local_runner import make_local_runner
from pipeline.job.job import Job
from pipeline.job.preprocess import prepare
from pipeline.job.references import DatasetPlan, Reference, ReferenceBatch
from pipeline.job.shard_writer import ShardReport
from pipeline.job.transforms import (
    METRICS_NAMESPACE,
    REJECTIONS_KEY,
    CompareSplits,
    ListChunks,
    PlanDataset,
    PreprocessCorpus,
    ReadReferences,
    WriteShards,
    assign_shards,
)
from tests.support.corpora import make_config, write_lines, write_tree

# All in train: two documents with equal text, one that is unknown to the vocabulary, one too long, two unusable ones.
DOCUMENTS: dict[str, str | bytes] = {
    "体育/1.txt": "山水",
    "科技/2.txt": "山水",
    "体育/3.txt": "龘",
    "科技/4.txt": "山水风云",
    "科技/5.txt": b"\xff",
    "科技/6.txt": "\u200b",
}
ALL_IN_TRAIN = (("train", 1.0), ("dev", 0.0))


def local_runner() -> PipelineRunner:
    """Return our runner within this process; the default one of `TestPipeline` would look for a download."""
    options = PipelineOptions([])
    return make_local_runner(options, num_workers=1, mode="in_memory", log_path=None, process_ids_path="")


@contextmanager
def pipeline() -> Iterator[BeamTestPipeline]:
    with BeamTestPipeline(runner=local_runner(), options=PipelineOptions([])) as made:
        yield made


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A job over `DOCUMENTS`, of which at most five tokens each are kept."""
    tree = write_tree(tmp_path / "tree", DOCUMENTS)
    return prepare(
        make_config(tmp_path, tree, split_weights=ALL_IN_TRAIN, num_shards=2, max_len=5, max_rejected_fraction=0.5)
    )


@pytest.fixture
def staging(tmp_path: Path) -> Path:
    (tmp_path / "staging").mkdir()
    return tmp_path / "staging"


def reference_of(job: Job, key: str) -> Reference:
    """Return the reference of one of `DOCUMENTS`."""
    text = DOCUMENTS[key]
    assert isinstance(text, str)
    category = key.split("/")[0]
    second = {"体育": "生活娱乐", "科技": "公共事务"}[category]
    locator = Locator("file", f"{job.sources[0].path}/{key}".encode())
    return Reference(place(text, 0).digest, key, category, second, locator)


def reference_in(shard_byte: int, key: str) -> Reference:
    """Return a reference whose hash falls into a shard by the given first byte of its second word."""
    digest = bytes(8) + bytes([shard_byte]) + bytes(23)
    return Reference(digest, key, "体育", "生活娱乐", Locator("file", b"/x"))


def plan_of(job: Job, **num_shards: int) -> DatasetPlan:
    labels = {"category": LabelMap(("体育", "科技")), "second": LabelMap(("公共事务", "生活娱乐"))}
    return DatasetPlan(labels=labels, num_shards=num_shards, num_documents=len(DOCUMENTS))


# Listing


@pytest.mark.parametrize("num_partitions", [0, 1, 2, 7])
def test_list_chunks(tmp_path: Path, num_partitions: int) -> None:
    """An engine without Reshuffle has fewer partitions than sources, as many, or more than chunks."""
    tree = write_tree(tmp_path / "tree", {"体育/1.txt": "山", "体育/.hidden": "水", "科技/2.txt": "云"})
    table = write_lines(tmp_path / "t.tsv", ["山水\t体育", "风云\t科技"])
    job = prepare(make_config(tmp_path, tree, table))
    expected = [
        Chunk(0, 0, ["体育/1.txt".encode(), "科技/2.txt".encode()]),
        Chunk(1, 1, (0, table.stat().st_size)),
    ]
    with pipeline() as made:
        assert_that(made | ListChunks(job, num_partitions=num_partitions), equal_to(expected))


# First pass


def test_read_references(job: Job) -> None:
    keys = ["体育/1.txt", "科技/5.txt", "科技/2.txt"]
    chunks = [Chunk(0, 0, [key.encode() for key in keys]), Chunk(0, 0, [])]
    expected = [
        ReferenceBatch(
            {"train": [reference_of(job, "体育/1.txt"), reference_of(job, "科技/2.txt")]},
            [Rejection("科技/5.txt", "not_utf-8", "byte 0xff at position 0: invalid start byte")],
        ),
        ReferenceBatch({}, []),
    ]
    with pipeline() as made:
        batches = made | beam.Create(chunks) | beam.ParDo(ReadReferences(job))
        assert_that(batches, equal_to(expected))


def test_plan_dataset_with_an_empty_split(tmp_path: Path) -> None:
    job = prepare(make_config(tmp_path, write_tree(tmp_path / "tree", {"体育/1.txt": "山"}), max_rejected_fraction=0.5))
    batches = [
        ReferenceBatch({"train": [reference_in(0, "a"), reference_in(0, "b")]}, []),
        ReferenceBatch({"dev": [reference_in(0, "c")._replace(category="科技", second="公共事务")]}, []),
        ReferenceBatch({}, [Rejection("d", "empty", "")]),
    ]
    expected = DatasetPlan(
        labels={"category": LabelMap(("体育", "科技")), "second": LabelMap(("公共事务", "生活娱乐"))},
        num_shards={"train": 1, "dev": 1, "test": 1},
        num_documents=4,
    )
    with pipeline() as made:
        assert_that(made | beam.Create(batches) | PlanDataset(job), equal_to([expected]))


def test_assign_shards(job: Job) -> None:
    first, second, third = reference_in(0x00, "a"), reference_in(0xFF, "b"), reference_in(0x7F, "c")
    rejection = Rejection("r", "empty", "")
    batches = [
        ReferenceBatch({"train": [first, second, third], "dev": [second]}, [rejection]),
        ReferenceBatch({"train": []}, []),
    ]
    expected = [
        (("train", 0), ReferenceBatch({"train": [first, third]}, [])),
        (("train", 1), ReferenceBatch({"train": [second]}, [])),
        (("dev", 0), ReferenceBatch({"dev": [second]}, [])),
        (REJECTIONS_KEY, ReferenceBatch({}, [rejection])),
    ]
    with pipeline() as made:
        parts = made | beam.Create(batches) | beam.FlatMap(assign_shards, plan_of(job, train=2, dev=1))
        assert_that(parts, equal_to(expected))


# Second pass


def file_in(staging: Path, name: str, num_examples: int) -> FileInfo:
    return FileInfo.of(name, num_examples, (staging / name).read_bytes())


def test_write_shards(job: Job, staging: Path) -> None:
    """One shard of both batches that reach it, the other without documents, and what the first pass rejected."""
    rejection = Rejection("科技/5.txt", "not_utf-8", "")
    references = {key: reference_of(job, key) for key in DOCUMENTS if key != "科技/5.txt"}
    batches = [
        ReferenceBatch({"train": [references["科技/6.txt"], references["科技/2.txt"], references["体育/3.txt"]]}, []),
        ReferenceBatch({"train": [references["科技/4.txt"], references["体育/1.txt"]]}, []),
    ]
    elements = [
        (("train", 1), batches),
        (("train", 0), [ReferenceBatch({"train": []}, [])]),
        (REJECTIONS_KEY, [ReferenceBatch({}, [rejection])]),
    ]

    def check(reports: list[ShardReport]) -> None:
        no_shard, empty, full = sorted(reports, key=lambda report: (report.split, report.index))
        assert no_shard == ShardReport(split="", index=0, rejections=[rejection])
        file = file_in(staging, "train-00000-of-00002.tfrecord", 0)
        assert empty == ShardReport(split="train", index=0, file=file)
        assert np.frombuffer(full.ids_digests, dtype=np.uint64).size == 4
        # Their order is that of their hashes.
        assert sorted(np.frombuffer(full.lengths, dtype="<u2").tolist()) == [3, 4, 4, 5]
        detail = "no token is left of it: only characters that the tokenizer drops"
        assert full == ShardReport(
            split="train",
            index=1,
            file=file_in(staging, "train-00001-of-00002.tfrecord", 4),
            num_tokens=3 + 4 + 4 + 5,
            num_unknown_tokens=1,
            num_truncated=1,
            lengths=full.lengths,
            ids_digests=full.ids_digests,
            joint_labels=Counter({(0, 1): 2, (1, 0): 2}),
            rejections=[Rejection("科技/6.txt", "empty", detail)],
            num_duplicates=1,
            conflicting=[["体育/1.txt", "科技/2.txt"]],
        )

    with pipeline() as made:
        write_shards = WriteShards(job, staging_dir=str(staging))
        plan = beam.pvalue.AsSingleton(made | "Plan" >> beam.Create([plan_of(job, train=2)]))
        assert_that(made | beam.Create(elements) | beam.ParDo(write_shards, plan), check)


def digests(*values: int) -> bytes:
    return np.array(values, dtype=np.uint64).tobytes()


def test_compare_splits() -> None:
    """1 is in one split twice, 2 in two splits, 3 in all; dev has a shard without examples."""
    file = FileInfo.of("f", 3, b"")
    reports = [
        ShardReport(split="train", index=0, file=file, ids_digests=digests(1, 1, 2)),
        ShardReport(split="train", index=1, ids_digests=digests(3)),
        ShardReport(split="dev", index=0, ids_digests=digests(2, 3)),
        ShardReport(split="dev", index=1),
        ShardReport(split="test", index=0, ids_digests=digests(3)),
    ]
    expected = [
        ShardReport(split="train", index=0, file=file),
        ShardReport(split="train", index=1),
        ShardReport(split="dev", index=0),
        ShardReport(split="dev", index=1),
        ShardReport(split="test", index=0),
        # One for each part of the digests that has any.
        ShardReport(split="", index=1),
        ShardReport(split="", index=2, num_in_several_splits=1),
        ShardReport(split="", index=3, num_in_several_splits=1),
    ]
    with pipeline() as made:
        assert_that(made | beam.Create(reports) | CompareSplits(), equal_to(expected))


# The whole job


def metrics_of(result: Any) -> dict[str, Any]:
    """Return name → committed value of our metrics."""
    found = result.metrics().query(MetricsFilter().with_namespace(METRICS_NAMESPACE))
    metrics = [*found["counters"], *found["distributions"]]
    return {metric.key.metric.name: metric.committed for metric in metrics}


def test_preprocess_corpus_publishes_and_counts(job: Job, staging: Path) -> None:
    output = Path(job.config.output_dir)
    output.mkdir()

    def check(texts: list[str]) -> None:
        (text,) = texts
        assert text == (output / "dataset.json").read_text(encoding="utf-8")

    made = beam.Pipeline(runner=local_runner(), options=PipelineOptions([]))
    assert_that(made | PreprocessCorpus(job, staging_dir=str(staging)), check)
    metrics = metrics_of(made.run())
    info = read_dataset_info(job.config.output_dir)
    lengths = metrics.pop("example_length")
    assert metrics == {
        "documents_read": 6,
        "documents_written": 4,
        "documents_rejected_empty": 1,
        "documents_rejected_not_utf-8": 1,
        "tokens": 16,
        "unknown_tokens": 1,
        "truncated_documents": 1,
        "bytes_written": sum(shard.num_bytes for split in info.splits.values() for shard in split.shards),
    }
    assert (lengths.count, lengths.sum, lengths.min, lengths.max) == (4, 16, 3, 5)
