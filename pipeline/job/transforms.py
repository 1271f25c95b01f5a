"""The Beam job as verb phrases: one linear chain in which references are shuffled, not texts.

    ListChunks → ReadReferences → PlanDataset ┐
                        └──────────────→ AssignShards → GroupByKey → WriteShards → CompareSplits → PublishDataset

What each step does to its elements stands in `references`, `shard_writer` and `publish`, which know nothing of Beam.
There are no side outputs, no output at the end of a bundle (`finish_bundle` shows progress, and no more) and no Beam
sink: rejections and counts travel with the shard reports, so that every engine that can do ParDo, GroupByKey and side
inputs gives the same bytes.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam

from pipeline.corpus.sources import Chunk
from pipeline.dataset.shards import Placement
from pipeline.job.progress import ProgressWriter
from pipeline.job.publish import count_in_several_splits, divide_digests, publish_dataset
from pipeline.job.references import DatasetPlan, Job, Reference, ReferenceBatch, ReferenceReader, Survey, plan_dataset
from pipeline.job.shard_writer import ShardReport, write_shard

ShardKey = tuple[str, int]

# Rejections of the first pass belong to no shard; they travel to the end under this key.
REJECTIONS_KEY: ShardKey = ("", 0)
# No split is called so.
DIGESTS = "/digests"


class _ListChunks(beam.DoFn):
    def __init__(self, job: Job, num_listers: int):
        self._job = job
        self._num_listers = num_listers

    def process(self, lister: int) -> Iterator[tuple[int, Chunk]]:
        num_documents = ProgressWriter(self._job.progress_dir, "listed")
        for index in range(lister, len(self._job.sources), self._num_listers):
            for number, chunk in enumerate(self._job.sources[index].chunks(index)):
                if isinstance(chunk.items, list):
                    num_documents.add(len(chunk.items))
                yield number % self._num_listers, chunk
        num_documents.flush()


class ListChunks(beam.PTransform):
    """Cut every source into chunks and spread them over the workers.

    Where the engine has no Reshuffle, the job names its number of partitions: as many listers, most of them with
    nothing to list, make it have that many, and grouping spreads the chunks over them.
    """

    def __init__(self, job: Job):
        super().__init__()
        self._job = job

    def expand(self, root: beam.pvalue.PBegin) -> beam.PCollection[Chunk]:
        num_listers = max(len(self._job.sources), self._job.num_partitions)
        numbered = (
            root
            | "SpreadListers" >> beam.Create(range(num_listers))  # int, reshuffled by Create itself
            | "CutIntoChunks"
            >> beam.ParDo(_ListChunks(self._job, num_listers)).with_output_types(tuple[int, Chunk])  # (int, Chunk)
        )
        if not self._job.num_partitions:
            return numbered | "DropNumbers" >> beam.Values() | "SpreadChunks" >> beam.Reshuffle()  # Chunk
        return (
            numbered
            | "SpreadByNumber" >> beam.GroupByKey()  # (int, [Chunk])
            | "TakeChunks" >> beam.FlatMap(take_chunks)  # Chunk
        )


def take_chunks(element: tuple[int, Iterable[Chunk]]) -> Iterable[Chunk]:
    """Return what was grouped."""
    return element[1]


class ReadReferences(beam.DoFn):
    """Read each document once: Chunk → ReferenceBatch."""

    def __init__(self, job: Job):
        self._job = job

    def setup(self) -> None:
        self._reader = ReferenceReader(self._job)
        self._progress = ProgressWriter(self._job.progress_dir, "read")

    def process(self, chunk: Chunk) -> Iterator[ReferenceBatch]:
        batch = self._reader.read(chunk)
        self._progress.add(batch.num_documents)
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
    """Write each shard: ((split, shard), [ReferenceBatch]) → ShardReport."""

    def __init__(self, job: Job):
        self._job = job

    def setup(self) -> None:
        self._tokenizer = self._job.make_tokenizer()
        self._progress = ProgressWriter(self._job.progress_dir, "written")

    def process(self, element: tuple[ShardKey, Iterable[ReferenceBatch]], plan: DatasetPlan) -> Iterator[ShardReport]:
        (split, index), batches = element
        if (split, index) == REJECTIONS_KEY:
            rejections = [rejection for batch in batches for rejection in batch.rejections]
            yield ShardReport(split="", index=0, rejections=rejections)
            return
        references = (reference for batch in batches for reference in batch.by_split[split])
        yield write_shard(
            split,
            index,
            references,
            plan=plan,
            job=self._job,
            tokenizer=self._tokenizer,
            on_progress=self._progress.add,
        )

    def finish_bundle(self) -> None:
        self._progress.flush()


def divide_report(report: ShardReport) -> Iterator[tuple[ShardKey, Any]]:
    """Send the digests of a shard's examples to where they meet those of all others, and the report on its way."""
    for part, digests in divide_digests(report):
        yield (DIGESTS, part), digests
    yield (report.split, report.index), dataclasses.replace(report, ids_digests=b"")


def join_parts(element: tuple[ShardKey, Iterable[Any]]) -> Iterator[ShardReport]:
    """Return what was grouped: of digests, what splits share of them, and reports as they are."""
    (split, index), values = element
    if split == DIGESTS:
        yield ShardReport(split="", index=index, num_in_several_splits=count_in_several_splits(values))
    else:
        yield from values


class CompareSplits(beam.PTransform):
    """Count texts that stand in several splits, without one place for all of them: ShardReport → ShardReport."""

    def expand(self, reports: beam.PCollection[ShardReport]) -> beam.PCollection[ShardReport]:
        return (
            reports
            | "DivideReports" >> beam.FlatMap(divide_report).with_output_types(tuple[tuple[str, int], Any])
            | "GroupParts" >> beam.GroupByKey()  # ((split, shard), [ShardReport]) or ((DIGESTS, part), [digests])
            | "JoinParts" >> beam.FlatMap(join_parts)  # ShardReport
        )


class PreprocessCorpus(beam.PTransform):
    """From nothing to a published dataset; its one output element is the text of `dataset.json`."""

    def __init__(self, job: Job):
        super().__init__()
        self._job = job

    def expand(self, root: beam.pvalue.PBegin) -> beam.PCollection[str]:
        batches = (
            root
            | "ListChunks" >> ListChunks(self._job)  # Chunk
            | "ReadReferences" >> beam.ParDo(ReadReferences(self._job))  # ReferenceBatch
        )
        plan = beam.pvalue.AsSingleton(batches | "PlanDataset" >> PlanDataset(self._job))
        return (
            batches
            | "AssignShards"
            >> beam.FlatMap(assign_shards, plan).with_output_types(tuple[tuple[str, int], ReferenceBatch])
            | "GroupByShard" >> beam.GroupByKey()  # ((split, shard), [ReferenceBatch])
            | "WriteShards" >> beam.ParDo(WriteShards(self._job), plan)  # ShardReport
            | "CompareSplits" >> CompareSplits()  # ShardReport
            | "CollectReports" >> beam.combiners.ToList().without_defaults()  # [ShardReport]
            | "PublishDataset" >> beam.Map(publish_dataset, plan, self._job)  # str
        )
