"""`--dry_run`: predict what the job would do from a sample of the documents, and write nothing."""

import dataclasses
import itertools
import time
from collections import Counter

import numpy as np

from pipeline.config import PreprocessConfig, num_cores
from pipeline.corpus.documents import Rejection
from pipeline.corpus.sources import Chunk
from pipeline.dataset.files import LENGTHS_DTYPE
from pipeline.dataset.schema import CATEGORY_HEAD, SECOND_HEAD
from pipeline.dataset.shards import auto_num_shards
from pipeline.dataset.summary import format_table
from pipeline.dataset.tfexample import compress, frame_records
from pipeline.errors import one_line
from pipeline.job.job import Job
from pipeline.job.references import Reference, ReferenceReader, Survey, plan_dataset
from pipeline.job.shard_writer import ShardReport, serialize_documents

SAMPLE_CHUNKS = 64  # of each source, or half as many
DOCUMENTS_PER_SAMPLED_CHUNK = 40

# Measured on corpora of 836,074 documents: memory of an idle Beam process, and of a reference while it is shuffled.
_PROCESS_BYTES = 150e6
_REFERENCE_BYTES = 500


@dataclasses.dataclass
class _Sample:
    """Documents of a few chunks of each source.

    Attributes:
        num_documents: number of documents of the whole corpus; estimated where lines are guessed from bytes.
        is_exact: whether that number is counted.
        references: split → references of the sampled documents.
        rejections: sampled documents that cannot be used.
        listing_seconds: time to find all documents.
        seconds: time to read and tokenize the sampled ones.
    """

    num_documents: float = 0
    is_exact: bool = True
    references: dict[str, list[Reference]] = dataclasses.field(default_factory=dict)
    rejections: list[Rejection] = dataclasses.field(default_factory=list)
    listing_seconds: float = 0
    seconds: float = 0

    @property
    def size(self) -> int:
        """Number of sampled documents, used or not."""
        return sum(map(len, self.references.values())) + len(self.rejections)


def describe_dry_run(job: Job, num_workers: int = 0) -> str:
    """Return what the job would do, predicted from a sample.

    Args:
        job: the job.
        num_workers: number of workers on this machine; 0 takes all its cores.

    Raises:
        PipelineError: the job could not work.
    """
    sample = _draw_sample(job)
    report, num_bytes = _tokenize(sample, job)
    references = list(itertools.chain.from_iterable(sample.references.values()))
    lines = [f"dry run: {sample.size:,} documents read, nothing written"]
    about = "" if sample.is_exact else "about "
    lines.append(f"documents: {about}{sample.num_documents:,.0f}")
    lines += _describe_rejections(sample, job.config)
    if not references:
        return "\n".join(map(one_line, lines))
    lengths = np.frombuffer(report.lengths, dtype=LENGTHS_DTYPE)
    p50, p95 = np.percentile(lengths, [50, 95])
    lines.append(
        f"tokens per document: mean {lengths.mean():.0f}, median {p50:.0f}, 95 % below {p95:.0f}; "
        f"cut to {job.config.max_len}: {report.num_truncated / len(lengths):.1%}; "
        f"[UNK]: {report.num_unknown_tokens / report.num_tokens:.2%} of the tokens"
    )
    lines += ["", *_expected_splits(sample, job.config, bytes_per_example=num_bytes / len(references)), ""]
    for head in (CATEGORY_HEAD, SECOND_HEAD):
        counts = Counter(reference.category if head == CATEGORY_HEAD else reference.second for reference in references)
        names = ", ".join(f"{name} {count / len(references):.1%}" for name, count in counts.most_common())
        lines.append(f"{head}: {len(counts)} seen: {names}")
    num_workers = num_workers or num_cores()
    memory = _PROCESS_BYTES * (num_workers + 1) + _REFERENCE_BYTES * sample.num_documents
    # Documents are found once, whatever the number of workers.
    working_seconds = sample.seconds / sample.size * sample.num_documents / min(num_workers, num_cores())
    minutes = (sample.listing_seconds + working_seconds) / 60
    lines.append(f"here, with {num_workers} workers: about {minutes:.1f} minutes and {memory / 1e9:.1f} GB of memory")
    return "\n".join(map(one_line, lines))


def _describe_rejections(sample: _Sample, config: PreprocessConfig) -> list[str]:
    rejected = Counter(rejection.reason for rejection in sample.rejections)
    reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(rejected.items())) or "none"
    lines = [f"rejected in the sample: {len(sample.rejections)} ({reasons})"]
    lines += [f"  {key}: {reason}: {detail}" for key, reason, detail in sorted(sample.rejections)[:3]]
    if len(sample.rejections) > config.max_rejected_fraction * sample.size:
        share = len(sample.rejections) / sample.size
        lines.append(
            f"  {share:.1%} of it, where --max_rejected_fraction allows {config.max_rejected_fraction:.1%}: "
            "the job would stop"
        )
    return lines


def _draw_sample(job: Job) -> _Sample:
    """Read a few documents of chunks that are spread evenly over each source."""
    sample = _Sample()
    reader = ReferenceReader(job)
    for index, source in enumerate(job.sources):
        started = time.monotonic()
        # One pass that keeps few chunks: those of compressed and remote sources hold their texts.
        chunks, step = [], 1
        counted, num_bytes = 0, 0
        for number, chunk in enumerate(source.chunks(index)):
            if isinstance(chunk.items, list):
                counted += len(chunk.items)
                every = max(1, len(chunk.items) // DOCUMENTS_PER_SAMPLED_CHUNK)
                chunk = chunk._replace(items=chunk.items[::every])
            num_bytes += _num_bytes(chunk)
            if number % step == 0:
                chunks.append(chunk)
            if len(chunks) > SAMPLE_CHUNKS:
                chunks, step = chunks[::2], 2 * step
        listed = time.monotonic()
        sample.listing_seconds += listed - started
        in_sample = 0
        for chunk in chunks:
            batch = reader.read(chunk)
            in_sample += batch.num_documents
            sample.rejections += batch.rejections
            for split, references in batch.by_split.items():
                sample.references.setdefault(split, []).extend(references)
        sample.seconds += time.monotonic() - listed
        if counted:
            sample.num_documents += counted
        else:
            sample.num_documents += in_sample * num_bytes / max(sum(map(_num_bytes, chunks)), 1)
            sample.is_exact = sample.is_exact and step == 1
    return sample


def _num_bytes(chunk: Chunk) -> int:
    if isinstance(chunk.items, bytes):
        return len(chunk.items)
    return chunk.items[1] - chunk.items[0] if isinstance(chunk.items, tuple) else 0


def _tokenize(sample: _Sample, job: Job) -> tuple[ShardReport, int]:
    """Tokenize and serialize the sample; return its report and its size in bytes on disk.

    Documents without any token move to the rejected ones.
    """
    report = ShardReport(split="sample", index=0)
    references = list(itertools.chain.from_iterable(sample.references.values()))
    if not references:
        return report, 0
    survey = Survey()
    survey.num_documents["sample"] = len(references)
    for head, names in ((CATEGORY_HEAD, "category"), (SECOND_HEAD, "second")):
        survey.labels[head].update(getattr(reference, names) for reference in references)
    plan = plan_dataset(survey, job)
    # Each worker makes its tables once, so they are no cost of a document.
    tokenizer = job.make_tokenizer()
    started = time.monotonic()
    records = serialize_documents(references, report, plan=plan, job=job, tokenizer=tokenizer)
    num_bytes = len(compress(frame_records(records), job.config.compression))
    sample.seconds += time.monotonic() - started
    rejected = {rejection.key for rejection in report.rejections}
    sample.rejections += report.rejections
    for split, of_split in sample.references.items():
        sample.references[split] = [reference for reference in of_split if reference.key not in rejected]
    return report, num_bytes


def _expected_splits(sample: _Sample, config: PreprocessConfig, *, bytes_per_example: float) -> list[str]:
    """Return a table of the expected size of each split."""
    rows = []
    for split in config.split_names:
        examples = sample.num_documents * len(sample.references.get(split, ())) / sample.size
        num_shards = config.num_shards or auto_num_shards(round(examples), config.max_len)
        num_bytes = examples * bytes_per_example
        shard_bytes = num_bytes / num_shards
        rows.append(
            (split, f"{examples:,.0f}", str(num_shards), f"{num_bytes / 1e6:,.1f}", f"{shard_bytes / 2**20:,.1f}")
        )
    return format_table(("split", "examples", "shards", "MB", "MiB per shard"), rows)
