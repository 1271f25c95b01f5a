"""Copy what is intact in a damaged dataset into a new one, and list what was lost.

The new dataset has the splits and shards of the old one, with the same examples in the same order, less those that are
damaged. They join the rejected documents under the reason `damaged`, named after the place where they stood, so that
`read = written + rejected` still holds. What cannot be had back this way is the description itself: label names and
vocabulary must be those that were written.
"""

import dataclasses
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np

from pipeline import VERSION, filesystem
from pipeline.corpus.documents import Rejection
from pipeline.dataset.files import LENGTHS_DTYPE
from pipeline.dataset.info import (
    DATASET_INFO_NAME,
    VOCAB_NAME,
    DatasetInfo,
    DocumentCounts,
    FileInfo,
    SplitInfo,
)
from pipeline.dataset.tfexample import compress, frame_records
from pipeline.errors import CorruptShardError, SchemaMismatchError, one_line, require
from pipeline.job.output_dir import REJECTED_NAME, claim_output, move_into_place
from pipeline.job.publish import rejected_bytes, stage, stage_lengths, values_in_several
from pipeline.verify.findings import Findings
from pipeline.verify.shard_check import ShardFindings, ShardReader

LOST = "damaged"
_LOST_SHOWN = 20


@dataclasses.dataclass(kw_only=True)
class _Kept:
    """What is kept of one shard.

    Attributes:
        file: the new shard.
        rows: int64 [N], of the findings.
        lost: damaged examples.
    """

    file: FileInfo
    rows: np.ndarray
    lost: list[Rejection]


def salvage(findings: Findings, output_dir: str) -> str:
    """Write a new dataset of what is intact.

    Args:
        findings: of the damaged dataset.
        output_dir: where the new one is to be; nothing or an empty directory.

    Returns:
        What was kept and what was lost, in words.

    Raises:
        SchemaMismatchError: description or vocabulary are not those that were written.
        OutputExistsError: there is something in the output directory.
        OutputWriteError: the disk is full or read-only.
        CorruptShardError: the dataset changed meanwhile.
    """
    info = findings.info
    if info is None or not findings.is_described:
        raise SchemaMismatchError(
            f"{findings.data_dir}: nothing can be salvaged while {DATASET_INFO_NAME} or {VOCAB_NAME} is not what was "
            "written: without label names and vocabulary, ids mean nothing; copy it back, or write the dataset again"
        )
    require(
        filesystem.canonical(output_dir) != filesystem.canonical(findings.data_dir),
        f"--salvage {output_dir}: expected another directory than the damaged dataset's",
    )
    with claim_output(output_dir, option="--salvage", overwrite=False) as staging_dir:
        kept = {
            shard.name: _copy_shard(findings, shard, staging_dir, info)
            for split in info.splits.values()
            for shard in split.shards
        }
        rejections = [
            Rejection(line["key"], line["reason"], line["detail"])
            for number, line in enumerate(findings.rejections)
            if number not in findings.repeated_rejections
        ]
        rejections += _with_new_keys(_lost_lines(rejections, info), rejections)
        lost = _with_new_keys([rejection for name in kept for rejection in kept[name].lost], rejections)
        rejections += lost
        content = rejected_bytes(sorted(rejections))
        splits = {
            name: _describe(name, split, findings, kept, info, staging_dir) for name, split in info.splits.items()
        }
        written = sum(split.num_examples for split in splits.values())
        new = dataclasses.replace(
            info,
            splits=splits,
            documents=dataclasses.replace(
                info.documents,
                read=written + len(rejections),
                written=written,
                rejected=dict(sorted(Counter(rejection.reason for rejection in rejections).items())),
                in_several_splits=len(values_in_several(_kept_hashes(findings, kept, info))),
            ),
            versions={**info.versions, "salvaged with two-headed-bert": VERSION},
            rejected_file=FileInfo.of(REJECTED_NAME, 0, content),
        )
        stage(staging_dir, REJECTED_NAME, content)
        stage(staging_dir, VOCAB_NAME, filesystem.read_bytes(filesystem.join(findings.data_dir, VOCAB_NAME)))
        stage(staging_dir, DATASET_INFO_NAME, new.to_json().encode())
        move_into_place(output_dir, staging_dir, overwrite=False)
    return _summary(info.documents, new.documents, lost, output_dir)


def _copy_shard(findings: Findings, shard: FileInfo, staging_dir: str, info: DatasetInfo) -> _Kept:
    """Write the intact records of one shard into a new one; a shard without damage is copied byte by byte."""
    found = findings.shards[shard.name]
    numbers = found.numbers.tolist()
    rows = np.flatnonzero([
        good and (shard.name, number) not in findings.repeated
        for good, number in zip(found.is_good.tolist(), numbers, strict=True)
    ])  # fmt: skip
    if not found.num_faults and len(rows) == shard.num_examples:
        content = filesystem.read_bytes(filesystem.join(findings.data_dir, shard.name))
        _require_same(shard.name, FileInfo.of(shard.name, shard.num_examples, content) == shard, findings)
    else:
        reader = ShardReader(findings.data_dir, shard.name)
        records = [payload for _, payload in reader.payloads_at(set(found.offsets[rows].tolist()))]
        _require_same(shard.name, len(records) == len(rows), findings)
        content = compress(frame_records(records), info.compression)
    stage(staging_dir, shard.name, content)
    kept_numbers = set(found.numbers[rows].tolist())
    missing = [number for number in range(shard.num_examples) if number not in kept_numbers]
    lost = [
        Rejection(f"{shard.name}:{number}", LOST, _reason(found, number, (shard.name, number) in findings.repeated))
        # Where bytes were added that are no record, numbers may have moved.
        for number in missing[: max(shard.num_examples - len(rows), 0)]
    ]
    return _Kept(file=FileInfo.of(shard.name, len(rows), content), rows=rows, lost=lost)


def _require_same(name: str, is_same: bool, findings: Findings) -> None:
    if not is_same:
        path = filesystem.join(findings.data_dir, name)
        raise CorruptShardError(f"{path}: changed while it was copied; run the same command again", path=path)


def _reason(found: ShardFindings, number: int, is_repeated: bool) -> str:
    if is_repeated:
        return "its key stands before"
    what = [fault.what for fault in found.faults if fault.record == number]
    return "; ".join(what) or "it could not be read, because of damage before it"


def _lost_lines(listed: list[Rejection], info: DatasetInfo) -> list[Rejection]:
    """Return a line for each document that was rejected in the first place, and whose line is lost."""
    found = Counter(rejection.reason for rejection in listed)
    return [
        Rejection(f"{REJECTED_NAME}:{reason}:{number}", reason, "its line was damaged")
        for reason, count in info.documents.rejected.items()
        for number in range(count - found[reason])
    ]


def _with_new_keys(rejections: list[Rejection], others: list[Rejection]) -> list[Rejection]:
    """Return rejections with keys that are not taken: an earlier salvage may have named others after the same place."""
    taken = {other.key for other in others}
    renamed = []
    for rejection in rejections:
        names = itertools.chain([rejection.key], (f"{rejection.key}#{number}" for number in itertools.count(2)))
        renamed.append(rejection._replace(key=next(name for name in names if name not in taken)))
    return renamed


def _kept_hashes(findings: Findings, kept: Mapping[str, _Kept], info: DatasetInfo) -> Iterator[np.ndarray]:
    """Yield, for each split, the hashes of the ids of what is kept."""
    for split in info.splits.values():
        names = [shard.name for shard in split.shards]
        yield np.concatenate([np.empty(0, np.uint64), *(findings.shards[n].ids_hashes[kept[n].rows] for n in names)])


def _describe(
    name: str,
    split: SplitInfo,
    findings: Findings,
    kept: Mapping[str, _Kept],
    info: DatasetInfo,
    staging_dir: str,
) -> SplitInfo:
    """Write a split's lengths file, and return its description."""
    shards = [(findings.shards[shard.name], kept[shard.name]) for shard in split.shards]
    lengths = np.concatenate(
        [np.empty(0, dtype=LENGTHS_DTYPE), *(found.lengths[k.rows].astype(LENGTHS_DTYPE) for found, k in shards)]
    )
    labels = np.concatenate([np.empty((0, 2), np.int64), *(found.labels[k.rows] for found, k in shards)])
    return SplitInfo.of(
        lengths,
        info.count_pairs(labels),
        max_len=info.max_len,
        num_unknown_tokens=sum(int(found.unknown[k.rows].sum()) for found, k in shards),
        # Which of the examples of this length were cut, and which just fit, is not stored.
        num_truncated=min(split.num_truncated, int(np.count_nonzero(lengths == info.max_len))),
        lengths_file=stage_lengths(staging_dir, name, lengths),
        shards=tuple(k.file for _, k in shards),
    )


def _summary(old: DocumentCounts, new: DocumentCounts, lost: list[Rejection], output_dir: str) -> str:
    lines = [f"lost: {rejection.key}: {rejection.detail}" for rejection in lost[:_LOST_SHOWN]]
    if len(lost) > _LOST_SHOWN:
        lines.append(f"… and {len(lost) - _LOST_SHOWN:,} more, all listed in {REJECTED_NAME} under {json.dumps(LOST)}")
    lines.append(f"salvaged {new.written:,} of {old.written:,} examples into {output_dir}; {len(lost):,} lost")
    return "\n".join(map(one_line, lines))
