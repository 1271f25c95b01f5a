"""The end of a job: describe the dataset and publish it, `dataset.json` last."""

import json
import platform
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from pipeline import VERSION, filesystem
from pipeline.dataset.files import LENGTHS_DTYPE, REJECTED_NAME, lengths_name, npy_bytes
from pipeline.dataset.info import (
    DATASET_INFO_NAME,
    VOCAB_NAME,
    DatasetInfo,
    DocumentCounts,
    FileInfo,
    SplitInfo,
)
from pipeline.dataset.schema import CATEGORY_HEAD, FORMAT_VERSION, SECOND_HEAD
from pipeline.dataset.shards import shard_name
from pipeline.errors import EngineError
from pipeline.job.job import Job
from pipeline.job.output_dir import move_into_place
from pipeline.job.references import DatasetPlan, require_few_rejected
from pipeline.job.shard_writer import ShardReport, write_records

# Four times as many bytes as the lengths, which go to the end of the job as one element; together they would be more
# than an engine can carry long before a corpus is too large for anything else.
_NUM_DIGEST_PARTS = 16


def publish_dataset(reports: Sequence[ShardReport], *, plan: DatasetPlan, job: Job, staging_dir: str) -> str:
    """Write the files beside the shards, and publish all of them.

    Args:
        reports: one of every shard that has documents, of the first pass's rejections and of the texts in several
            splits, in any order.
        plan: the dataset.
        job: the job.
        staging_dir: where the shards are.

    Returns:
        The text of `dataset.json`.

    Raises:
        TooManyRejectedError: more documents were rejected than the options allow.
        OutputWriteError: the disk is full or read-only.
        EngineError: the engine lost documents or processed some twice.
    """
    if _is_published(reports, staging_dir):
        # An engine may run a step twice; the second run finishes the first.
        move_into_place(job.config.output_dir, staging_dir, overwrite=job.config.overwrite)
        return filesystem.read_bytes(filesystem.join(job.config.output_dir, DATASET_INFO_NAME)).decode()
    reports = sorted(reports, key=lambda report: (report.split, report.index))
    rejections = sorted(rejection for report in reports for rejection in report.rejections)
    splits = {
        split: _describe_split(split, reports, plan=plan, job=job, staging_dir=staging_dir) for split in plan.num_shards
    }
    config = job.config
    num_written = sum(info.num_examples for info in splits.values())
    num_read = num_written + len(rejections)
    # Engines have lost and doubled elements silently. The first pass counts documents on another path of the graph.
    if num_read != plan.num_documents:
        raise EngineError(
            f"the engine lost documents or processed them twice: {plan.num_documents:,} were read, {num_read:,} "
            "arrived; nothing is published; run again, and if it happens again, on another engine"
        )
    unwanted = [rejection for rejection in rejections if rejection.reason != "duplicate"]
    require_few_rejected(unwanted, num_rejected=len(unwanted), num_read=num_read, config=config)
    lines = [json.dumps(rejection._asdict(), ensure_ascii=False) + "\n" for rejection in rejections]
    rejected = "".join(lines).encode("utf-8", "backslashreplace")
    info = DatasetInfo(
        max_len=config.max_len,
        compression=config.compression,
        vocab_sha256=FileInfo.of(VOCAB_NAME, 0, job.vocab_content).sha256,
        vocab_size=job.vocab_size,
        cased=job.cased,
        labels=plan.labels,
        splits=splits,
        documents=DocumentCounts(
            read=num_read,
            written=num_written,
            rejected=dict(sorted(Counter(rejection.reason for rejection in rejections).items())),
            duplicates=sum(report.num_duplicates for report in reports),
            conflicting=sorted(keys for report in reports for keys in report.conflicting),
            in_several_splits=sum(report.num_in_several_splits for report in reports),
        ),
        seed=config.seed,
        configuration=config.describe_content(),
        versions={"two-headed-bert": VERSION, "format": str(FORMAT_VERSION), "python": platform.python_version()},
        rejected_file=FileInfo.of(REJECTED_NAME, 0, rejected),
        notes=plan.notes,
    )
    files = {REJECTED_NAME: rejected, VOCAB_NAME: job.vocab_content, DATASET_INFO_NAME: info.to_json().encode()}
    for name, content in files.items():  # in this order: `dataset.json` says that the others are there
        filesystem.write_atomically(filesystem.join(staging_dir, name), content)
    move_into_place(config.output_dir, staging_dir, overwrite=config.overwrite)
    return info.to_json()


def divide_digests(report: ShardReport) -> Iterator[tuple[int, tuple[str, bytes]]]:
    """Divide a shard's digests by value, so that equal ones of all shards meet in one part.

    Yields:
        (part, (split, digests)), none of them empty.
    """
    digests = np.frombuffer(report.ids_digests, dtype=np.uint64)
    part_of = digests % _NUM_DIGEST_PARTS
    for part in np.unique(part_of).tolist():
        yield part, (report.split, digests[part_of == part].tobytes())


def count_in_several_splits(digests: Iterable[tuple[str, bytes]]) -> int:
    """Count the values that more than one split has, among the (split, digests) of one part."""
    by_split: dict[str, list[np.ndarray]] = {}
    for split, values in digests:
        by_split.setdefault(split, []).append(np.frombuffer(values, dtype=np.uint64))
    distinct = [np.unique(np.concatenate(arrays)) for arrays in by_split.values()]
    _, num_splits = np.unique(np.concatenate(distinct), return_counts=True)
    return int(np.count_nonzero(num_splits > 1))


def _is_published(reports: Sequence[ShardReport], staging_dir: str) -> bool:
    if filesystem.exists(filesystem.join(staging_dir, DATASET_INFO_NAME)):
        return True
    names = [report.file.name for report in reports if report.file]
    return not any(filesystem.exists(filesystem.join(staging_dir, name)) for name in names[:1])


def _describe_split(
    split: str, reports: Sequence[ShardReport], *, plan: DatasetPlan, job: Job, staging_dir: str
) -> SplitInfo:
    """Add up the shards of one split; write its lengths file, and an empty file for every shard without documents."""
    own = [report for report in reports if report.split == split]
    files = {report.index: report.file for report in own}
    compression, num_shards = job.config.compression, plan.num_shards[split]
    for index in set(range(num_shards)) - files.keys():
        name = shard_name(split, index, num_shards, compression)
        files[index] = write_records([], name, compression=compression, staging_dir=staging_dir)
    lengths = np.frombuffer(b"".join(report.lengths for report in own), dtype=LENGTHS_DTYPE)
    joint = np.zeros([len(plan.labels[CATEGORY_HEAD]), len(plan.labels[SECOND_HEAD])], dtype=np.int64)
    for report in own:
        for pair, count in report.joint_labels.items():
            joint[pair] += count
    content = npy_bytes(lengths)
    filesystem.write_atomically(filesystem.join(staging_dir, lengths_name(split)), content)
    return SplitInfo.of(
        lengths,
        joint,
        max_len=job.config.max_len,
        num_unknown_tokens=sum(report.num_unknown_tokens for report in own),
        num_truncated=sum(report.num_truncated for report in own),
        lengths_file=FileInfo.of(lengths_name(split), len(lengths), content),
        shards=tuple(file for _, file in sorted(files.items()) if file),
    )
