"""The second pass: write one shard as a pure function of its references.

References are sorted first, so that every worker and every attempt writes the same bytes.
"""

import dataclasses
import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from pipeline import filesystem
from pipeline.corpus.documents import DocumentRejectedError, Rejection, decode_text
from pipeline.corpus.reading import fetch
from pipeline.dataset.files import LENGTHS_DTYPE
from pipeline.dataset.info import FileInfo
from pipeline.dataset.schema import CATEGORY_HEAD, INDICES, KEY, LABEL, SECOND_HEAD, SECOND_LABEL, SEGMENTS
from pipeline.dataset.shards import Placement, place, shard_name
from pipeline.dataset.tfexample import compress, frame_records, serialize_examples
from pipeline.job.job import Job
from pipeline.job.references import DatasetPlan, Reference
from pipeline.tokenization.tokenizer import Tokenizer
from pipeline.tokenization.vocabulary import NUM_EDGE_TOKENS

# Long enough to tokenize and serialize at full speed, short enough to hold the texts of one batch in memory.
DOCUMENTS_PER_BATCH = 256


@dataclasses.dataclass(kw_only=True)
class ShardReport:
    """Counts of one shard; those of all shards together become `dataset.json`.

    Attributes:
        split, index: which shard it is; `split` is empty where a report belongs to no shard: rejections of the first
            pass, and the count of texts in several splits.
        file: the file written, `None` where there is none.
        num_tokens, num_unknown_tokens, num_truncated: sums over its examples.
        lengths: uint16 bytes, one length per example, in stored order.
        ids_digests: 8 bytes per example, in stored order; equal where all ids are equal. Empty once compared.
        joint_labels: (category id, second id) → examples.
        rejections: documents that cannot be used.
        num_duplicates: documents whose text an earlier one of this shard has.
        conflicting: keys of documents with equal text and different labels.
        num_in_several_splits: sequences of ids that examples of more than one split have.
    """

    split: str
    index: int
    file: FileInfo | None = None
    num_tokens: int = 0
    num_unknown_tokens: int = 0
    num_truncated: int = 0
    lengths: bytes = b""
    ids_digests: bytes = b""
    joint_labels: Counter[tuple[int, int]] = dataclasses.field(default_factory=Counter)
    rejections: list[Rejection] = dataclasses.field(default_factory=list)
    num_duplicates: int = 0
    conflicting: list[list[str]] = dataclasses.field(default_factory=list)
    num_in_several_splits: int = 0


def write_shard(
    references: Iterable[Reference],
    *,
    split: str,
    index: int,
    plan: DatasetPlan,
    job: Job,
    staging_dir: str,
    tokenizer: Tokenizer,
    on_progress: Callable[[int], None] = lambda _: None,
) -> ShardReport:
    """Write one shard into the staging directory.

    Args:
        references: all documents of this shard, in any order.
        split, index: which shard it is.
        plan: the dataset it belongs to.
        job: the job.
        staging_dir: where to write it.
        tokenizer: encodes the texts.
        on_progress: called with the number of documents done since the last call.

    Returns:
        Its report.

    Raises:
        OutputWriteError: the disk is full or read-only.
    """
    config = job.config
    report = ShardReport(split=split, index=index)
    # Equal texts have equal digests, hence are neighbours; the key decides their order.
    ordered = sorted(
        references, key=lambda reference: (Placement(reference.digest).order, reference.digest, reference.key)
    )
    ordered = list(_settle_duplicates(ordered, report, drop=config.duplicates == "drop"))
    records = serialize_documents(ordered, report, plan=plan, job=job, tokenizer=tokenizer, on_progress=on_progress)
    name = shard_name(split, index, plan.num_shards[split], config.compression)
    report.file = write_records(records, name, compression=config.compression, staging_dir=staging_dir)
    return report


def write_records(records: Sequence[bytes], name: str, *, compression: str, staging_dir: str) -> FileInfo:
    """Write the file of a shard, and return its description."""
    data = compress(frame_records(records), compression)
    filesystem.write_atomically(filesystem.join(staging_dir, name), data)
    return FileInfo.of(name, len(records), data)


def _settle_duplicates(ordered: Sequence[Reference], report: ShardReport, *, drop: bool) -> Iterator[Reference]:
    """Count documents with equal text, note those whose labels differ, and with `drop` yield only the first."""
    for _, same in itertools.groupby(ordered, key=lambda reference: reference.digest):
        first, *others = same
        yield first
        if not others:
            continue
        report.num_duplicates += len(others)
        if any((other.category, other.second) != (first.category, first.second) for other in others):
            report.conflicting.append([first.key, *(other.key for other in others)])
        if drop:
            report.rejections += (Rejection(other.key, "duplicate", f"same text as {first.key}") for other in others)
        else:
            yield from others


def serialize_documents(
    references: Sequence[Reference],
    report: ShardReport,
    *,
    plan: DatasetPlan,
    job: Job,
    tokenizer: Tokenizer,
    on_progress: Callable[[int], None] = lambda _: None,
) -> list[bytes]:
    """Read, tokenize and serialize documents in the given order, and add their counts to the report."""
    ids = {head: label_map.ids() for head, label_map in plan.labels.items()}
    records: list[bytes] = []
    for start in range(0, len(references), DOCUMENTS_PER_BATCH):
        batch = references[start : start + DOCUMENTS_PER_BATCH]
        records += _serialize_batch(batch, report, ids=ids, job=job, tokenizer=tokenizer)
        on_progress(len(batch))
    return records


def _serialize_batch(
    references: Sequence[Reference],
    report: ShardReport,
    *,
    ids: Mapping[str, dict[str, int]],
    job: Job,
    tokenizer: Tokenizer,
) -> list[bytes]:
    texts, used = [], []
    for reference, content in zip(references, fetch([r.locator for r in references], job.sources), strict=True):
        try:
            texts.append(_read_again(content, reference, job.config.seed))
        except DocumentRejectedError as error:
            report.rejections.append(Rejection(reference.key, error.reason, error.detail))
            continue
        used.append(reference)
    tokens = tokenizer.encode_arrays(texts)
    empty = set(np.flatnonzero(tokens.lengths <= NUM_EDGE_TOKENS).tolist())
    if empty:
        detail = "no token is left of it: only characters that the tokenizer drops"
        report.rejections += (Rejection(used[row].key, "empty", detail) for row in sorted(empty))
        used = [reference for row, reference in enumerate(used) if row not in empty]
        tokens = tokenizer.encode_arrays([text for row, text in enumerate(texts) if row not in empty])
    labels = [(ids[CATEGORY_HEAD][r.category], ids[SECOND_HEAD][r.second]) for r in used]
    report.num_tokens += len(tokens.ids)
    report.num_unknown_tokens += int(np.count_nonzero(tokens.ids == tokenizer.unk_id))
    report.num_truncated += int(np.count_nonzero(tokens.truncated))
    report.joint_labels.update(labels)
    report.lengths += tokens.lengths.astype(LENGTHS_DTYPE).tobytes()
    report.ids_digests += b"".join(
        hashlib.blake2b(tokens.ids[start:stop].tobytes(), digest_size=8).digest()
        for start, stop in itertools.pairwise(tokens.row_splits.tolist())
    )
    categories, seconds = np.array(labels, dtype=np.int64).reshape(-1, 2).T
    return serialize_examples(
        {
            INDICES: (tokens.ids, tokens.row_splits),
            SEGMENTS: (np.zeros_like(tokens.ids), tokens.row_splits),
            LABEL: categories,
            SECOND_LABEL: seconds,
            KEY: [reference.key.encode() for reference in used],
        }
    )


def _read_again(content: bytes | Exception, reference: Reference, seed: int) -> str:
    """Return the normalized text of a document, if it has not changed since the first pass."""
    if isinstance(content, DocumentRejectedError):
        raise content
    if isinstance(content, Exception):
        # Without the path, which differs between machines.
        reason = content.strerror if isinstance(content, OSError) else None
        raise DocumentRejectedError("unreadable", f"it was there at first, then: {reason or content}")
    text = decode_text(content, reference.locator.encoding)
    if place(text, seed).digest != reference.digest:
        raise DocumentRejectedError("changed", "its text changed while the job was running")
    return text
