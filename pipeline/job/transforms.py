"""The steps of the Beam job: one linear chain that shuffles references instead of texts.

    ListChunks → ReadReferences → PlanDataset ┐
                        └──────────────→ AssignShards → GroupByKey → WriteShards → CompareSplits → PublishDataset

The work of each step is in `references`, `shard_writer` and `publish`, which do not import Beam. There are no side
outputs, no output at the end of a bundle (`finish_bundle` only shows progress) and no Beam sink: rejections and counts
travel with the shard reports, so that every engine with ParDo, GroupByKey and side inputs writes the same bytes.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.metrics import Metrics

from pipeline.corpus.documents import Rejection
from pipeline.corpus.sources import Chunk
from pipeline.dataset.files import LENGTHS_DTYPE
from pipeline.dataset.shards import Placement
from pipeline.job.job import Job
from pipeline.job.progress import ProgressWriter
from pipeline.job.publish import count_in_several_splits, divide_digests, publish_dataset
from pipeline.job.references import DatasetPlan, Reference, ReferenceBatch, ReferenceReader, Survey, plan_dataset
from pipeline.job.shard_writer import ShardReport, write_shard

ShardKey = tuple[str, int]

# Rejections of the first pass belong to no shard; they travel to the end under this key.
REJECTIONS_KEY: ShardKey = ("", 0)
# No split can have this name.
DIGESTS = "/digests"

# Beam's metrics, which engines show on their pages while the job runs. The final numbers are in `dataset.json`, because
# engines may count failed attempts, and some have no metrics at all: there, these do nothing.
METRICS_NAMESPACE = "two_headed_bert"
_documents_read = Metrics.counter(METRICS_NAMESPACE, "documents_read")
_documents_written = Metrics.counter(METRICS_NAMESPACE, "documents_written")
_truncated_documents = Metrics.counter(METRICS_NAMESPACE, "truncated_documents")
_tokens = Metrics.counter(METRICS_NAMESPACE, "tokens")
_unknown_tokens = Metrics.counter(METRICS_NAMESPACE, "unknown_tokens")
_bytes_written = Metrics.counter(METRICS_NAMESPACE, "bytes_written")
_example_length = Metrics.distribution(METRICS_NAMESPACE, "example_length")


def _count_rejections(rejections: Iterable[Rejection]) -> None:
    for reason, count in Counter(rejection.reason for rejection in rejections).items():
        Metrics.counter(METRICS_NAMESPACE, f"documents_rejected_{reason}").inc(count)


def _count_shard(report: ShardReport) -> None:
    lengths = np.frombuffer(report.lengths, dtype=LENGTHS_DTYPE).tolist()
    _documents_written.inc(len(lengths))
    _truncated_documents.inc(report.num_truncated)
    _tokens.inc(report.num_tokens)
    _unknown_tokens.inc(report.num_unknown_tokens)
    _bytes_written.inc(report.file.num_bytes if report.file else 0)
    for length in lengths:
        _example_length.update(length)
    _count_rejections(report.rejections)


class _ListChunks(beam.DoFn):
    def __init__(self, job: Job, *, num_listers: int, progress_dir: str | None):
        self._job = job
        self._num_listers = num_listers
        self._progress_dir = progress_dir

    def process(self, lister: int) -> Iterator[tuple[int, Chunk]]:
        num_documents = ProgressWriter(self._progress_dir, "listed")
        for index in range(lister, len(self._job.sources), self._num_listers):
            for number, chunk in enumerate(self._job.sources[index].chunks(index)):
                if isinstance(chunk.items, list):
                    num_documents.add(len(chunk.items))
                yield number % self._num_listers, chunk
        num_documents.flush()


class ListChunks(beam.PTransform):
    """Cut every source into chunks and spread them over the workers.

    An engine without Reshuffle needs a number of partitions: as many listers, most of them with nothing to list, make
    it use that many, and grouping spreads the chunks over them.

    Args:
        job: the job.
        progress_dir, num_partitions: as in `PreprocessCorpus`.
    """

    def __init__(self, job: Job, *, progress_dir: str | None = None, num_partitions: int = 0):
        super().__init__()
        self._job = job
        self._progress_dir = progress_dir
        self._num_partitions = num_partitions

    def expand(self, root: beam.pvalue.PBegin) -> beam.PCollection[Chunk]:
        num_listers = max(len(self._job.sources), self._num_partitions)
        list_chunks = _ListChunks(self._job, num_listers=num_listers, progress_dir=self._progress_dir)
        numbered = (
            root
            | "SpreadListers" >> beam.Create(range(num_listers))  # int, reshuffled by Create itself
            | "CutIntoChunks" >> beam.ParDo(list_chunks).with_output_types(tuple[int, Chunk])  # (int, Chunk)
        )
        if not self._num_partitions:
            return numbered | "DropNumbers" >> beam.Values() | "SpreadChunks" >> beam.Reshuffle()  # Chunk
        return (
            numbered
            | "SpreadByNumber" >> beam.GroupByKey()  # (int, [Chunk])
            | "TakeChunks" >> beam.FlatMap(take_chunks)  # Chunk
        )


def take_chunks(element: tuple[int, Iterable[Chunk]]) -> Iterator[Chunk]:
    """Yield the chunks of one group."""
    yield from element[1]


class ReadReferences(beam.DoFn):
    """Read each document once: Chunk → ReferenceBatch.

    Args:
        job: the job.
        progress_dir: as in `PreprocessCorpus`.
    """

    def __init__(self, job: Job, *, progress_dir: str | None = None):
        self._job = job
        self._progress_dir = progress_dir

    def setup(self) -> None:
        self._reader = ReferenceReader(self._job)
        self._progress = ProgressWriter(self._progress_dir, "read")

    def process(self, chunk: Chunk) -> Iterator[ReferenceBatch]:
        batch = self._reader.read(chunk)
        self._progress.add(batch.num_documents)
        _documents_read.inc(batch.num_documents)
        _count_rejections(batch.rejections)
        yield batch

    def finish_bundle(self) -> None:
        self._progress.flush()


class _MergeSurveys(beam.CombineFn):
    def create_accumulator(self) -> Survey:
        return Survey()

    def add_input(self, survey: Survey, batch: ReferenceBatch) -> Survey:
        survey.add(batch)
        return survey

    def merge_accumulators(self, surveys: Iterable[Survey]) -> Survey:
        merged = Survey()
        for survey in surveys:
            merged.merge(survey)
        return merged

    def extract_output(self, survey: Survey) -> Survey:
        return survey


class PlanDataset(beam.PTransform):
    """Fix label ids and shard numbers from all references: ReferenceBatch → one DatasetPlan."""

    def __init__(self, job: Job):
        super().__init__()
        self._job = job

    def expand(self, batches: beam.PCollection[ReferenceBatch]) -> beam.PCollection[DatasetPlan]:
        return (
            batches
            | "Survey" >> beam.CombineGlobally(_MergeSurveys())  # Survey
            | "Plan" >> beam.Map(plan_dataset, self._job)  # DatasetPlan
        )


def assign_shards(batch: ReferenceBatch, plan: DatasetPlan) -> Iterator[tuple[ShardKey, ReferenceBatch]]:
    """Divide a batch by (split, shard): few large elements cross the shuffle instead of many small ones."""
    for split, references in batch.by_split.items():
        groups: dict[int, list[Reference]] = {}
        for reference in references:
            shard = Placement(reference.digest).shard(plan.num_shards[split])
            groups.setdefault(shard, []).append(reference)
        for shard, group in groups.items():
            yield (split, shard), ReferenceBatch({split: group}, [])
    if batch.rejections:
        yield REJECTIONS_KEY, ReferenceBatch({}, batch.rejections)


class WriteShards(beam.DoFn):
    """Write each shard: ((split, shard), [ReferenceBatch]) → ShardReport.

    Args:
        job: the job.
        staging_dir, progress_dir: as in `PreprocessCorpus`.
    """

    def __init__(self, job: Job, *, staging_dir: str, progress_dir: str | None = None):
        self._job = job
        self._staging_dir = staging_dir
        self._progress_dir = progress_dir

    def setup(self) -> None:
        self._tokenizer = self._job.make_tokenizer()
        self._progress = ProgressWriter(self._progress_dir, "written")

    def process(self, element: tuple[ShardKey, Iterable[ReferenceBatch]], plan: DatasetPlan) -> Iterator[ShardReport]:
        (split, index), batches = element
        if (split, index) == REJECTIONS_KEY:
            rejections = [rejection for batch in batches for rejection in batch.rejections]
            yield ShardReport(split="", index=0, rejections=rejections)
            return
        references = (reference for batch in batches for reference in batch.by_split[split])
        report = write_shard(
            references,
            split=split,
            index=index,
            plan=plan,
            job=self._job,
            staging_dir=self._staging_dir,
            tokenizer=self._tokenizer,
            on_progress=self._progress.add,
        )
        _count_shard(report)
        yield report

    def finish_bundle(self) -> None:
        self._progress.flush()


def divide_report(report: ShardReport) -> Iterator[tuple[ShardKey, Any]]:
    """Yield the digests of a shard's examples, keyed by part, and its report without them."""
    for part, digests in divide_digests(report):
        yield (DIGESTS, part), digests
    yield (report.split, report.index), dataclasses.replace(report, ids_digests=b"")


def join_parts(element: tuple[ShardKey, Iterable[Any]]) -> Iterator[ShardReport]:
    """Yield the reports of one group unchanged, or for a part of the digests the count of texts in several splits."""
    (split, index), values = element
    if split == DIGESTS:
        yield ShardReport(split="", index=index, num_in_several_splits=count_in_several_splits(values))
    else:
        yield from values


class CompareSplits(beam.PTransform):
    """Count texts that several splits have, without one element for all of them: ShardReport → ShardReport."""

    def expand(self, reports: beam.PCollection[ShardReport]) -> beam.PCollection[ShardReport]:
        return (
            reports
            | "DivideReports" >> beam.FlatMap(divide_report).with_output_types(tuple[tuple[str, int], Any])
            | "GroupParts" >> beam.GroupByKey()  # ((split, shard), [ShardReport]) or ((DIGESTS, part), [digests])
            | "JoinParts" >> beam.FlatMap(join_parts)  # ShardReport
        )


class PreprocessCorpus(beam.PTransform):
    """Write and publish the dataset; the one output element is the text of `dataset.json`.

    Args:
        job: the job.
        staging_dir: where everything is written before it is published.
        progress_dir: where workers on this machine leave their counts; `None` elsewhere.
        num_partitions: number of parts to cut the work into, for engines that do not find one themselves; else 0.
    """

    def __init__(self, job: Job, *, staging_dir: str, progress_dir: str | None = None, num_partitions: int = 0):
        super().__init__()
        self._job = job
        self._staging_dir = staging_dir
        self._progress_dir = progress_dir
        self._num_partitions = num_partitions

    def expand(self, root: beam.pvalue.PBegin) -> beam.PCollection[str]:
        job, staging_dir, progress_dir = self._job, self._staging_dir, self._progress_dir
        write_shards = WriteShards(job, staging_dir=staging_dir, progress_dir=progress_dir)
        batches = (
            root
            | "ListChunks" >> ListChunks(job, progress_dir=progress_dir, num_partitions=self._num_partitions)  # Chunk
            | "ReadReferences" >> beam.ParDo(ReadReferences(job, progress_dir=progress_dir))  # ReferenceBatch
        )
        plan = beam.pvalue.AsSingleton(batches | "PlanDataset" >> PlanDataset(job))
        return (
            batches
            | "AssignShards"
            >> beam.FlatMap(assign_shards, plan).with_output_types(tuple[tuple[str, int], ReferenceBatch])
            | "GroupByShard" >> beam.GroupByKey()  # ((split, shard), [ReferenceBatch])
            | "WriteShards" >> beam.ParDo(write_shards, plan)  # ShardReport
            | "CompareSplits" >> CompareSplits()  # ShardReport
            | "CollectReports" >> beam.combiners.ToList().without_defaults()  # [ShardReport]
            | "PublishDataset" >> beam.Map(publish_dataset, plan=plan, job=job, staging_dir=staging_dir)  # str
        )
