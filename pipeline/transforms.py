"""The Beam job as verb phrases: one linear chain in which references are shuffled, not texts.

    ListChunks → ReadReferences → PlanDataset ┐
                        └──────────────→ AssignShards → GroupByKey → WriteShards → PublishDataset

What each step does to its elements stands in `references`, `shard_writer` and `publish`, which know nothing of Beam.
There are no side outputs, no `finish_bundle` and no Beam sink: rejections and counts travel with the shard reports, so
that every engine that can do ParDo, GroupByKey and side inputs gives the same bytes.
"""

from collections.abc import Iterable, Iterator

import apache_beam as beam

from pipeline.progress import ProgressWriter
from pipeline.publish import publish_dataset
from pipeline.references import DatasetPlan, Job, Reference, ReferenceBatch, ReferenceReader, Survey, plan_dataset
from pipeline.shard_writer import ShardReport, write_shard
from pipeline.shards import Placement
from pipeline.sources import Chunk
from pipeline.tokenization import Tokenizer
from pipeline.vocabulary import parse_vocab

ShardKey = tuple[str, int]

# Rejections of the first pass belong to no shard; they travel to the end under this key.
REJECTIONS_KEY: ShardKey = ("", 0)


class _ListChunks(beam.DoFn):
    def __init__(self, job: Job):
        self._job = job

    def process(self, index: int) -> Iterator[Chunk]:
        num_documents = ProgressWriter(self._job.progress_dir, "listed")
        for chunk in self._job.sources[index].chunks(index):
            if isinstance(chunk.items, list):
                num_documents.add(len(chunk.items))
            yield chunk
        num_documents.flush()


class ListChunks(beam.PTransform):
    """Cut every source into chunks and spread them over the workers."""

    def __init__(self, job: Job):
        super().__init__()
        self._job = job

    def expand(self, root: beam.pvalue.PBegin) -> beam.PCollection[Chunk]:
        return (
            root
            # `Create` spreads its elements by itself.
            | "NameSources" >> beam.Create(range(len(self._job.sources)))  # int
            | "CutIntoChunks" >> beam.ParDo(_ListChunks(self._job))  # Chunk
            | "SpreadChunks" >> beam.Reshuffle()  # Chunk
        )


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
        vocab = parse_vocab(self._job.vocab_content, self._job.config.vocab_path)
        self._tokenizer = Tokenizer(vocab, max_len=self._job.config.max_len)
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
            | "CollectReports" >> beam.combiners.ToList()  # [ShardReport]
            | "PublishDataset" >> beam.Map(publish_dataset, plan, self._job)  # str
        )
