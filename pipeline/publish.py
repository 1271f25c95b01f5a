"""The end of a job: describe the dataset, then move it into place, `dataset.json` last.

Everything is written into a staging directory inside the output directory first. Publishing is a series of renames
that can be interrupted anywhere and taken up again: as long as the staging directory holds a `dataset.json`, the
dataset is complete there, and whoever comes next finishes moving it. In an object store, which has no locks to tell
dead jobs from living ones, that takes `--overwrite`.
"""

import contextlib
import json
import os
import platform
import re
import secrets
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import numpy as np

from pipeline import filesystem
from pipeline.command_line import VERSION
from pipeline.config import PreprocessConfig
from pipeline.corpus import Rejection
from pipeline.dataset_info import (
    DATASET_INFO_NAME,
    LENGTHS_DTYPE,
    VOCAB_NAME,
    DatasetInfo,
    DocumentCounts,
    FileInfo,
    SplitInfo,
    npy_bytes,
)
from pipeline.errors import CorruptShardError, OptionError, OutputExistsError, OutputWriteError, SchemaMismatchError
from pipeline.references import DatasetPlan, Job, check_rejected
from pipeline.schema import CATEGORY_HEAD, FORMAT_VERSION, SECOND_HEAD
from pipeline.shard_writer import ShardReport, write_empty_shard
from pipeline.shards import SHARD_NAME

STAGING_PREFIX = ".partial-"
REJECTED_NAME = "rejected-00000-of-00001.jsonl"
_OTHER_FILES = re.compile(
    rf"^({re.escape(DATASET_INFO_NAME)}|{VOCAB_NAME}|[A-Za-z0-9_]+-lengths\.npy|rejected-.*\.jsonl)$"
)


def publish_dataset(reports: Sequence[ShardReport], plan: DatasetPlan, job: Job) -> str:
    """Write what stands beside the shards, and move everything into place.

    Args:
        reports: of every shard that has documents, and of the first pass's rejections, in any order.

    Returns:
        The text of `dataset.json`.

    Raises:
        TooManyRejectedError: more documents were rejected than the options allow.
        OutputWriteError: the disk is full or read-only, or the engine lost documents.
    """
    if _is_published(reports, job):
        # An engine may run a step twice; the second time there is nothing left to do but what the first left undone.
        move_into_place(job.config.output_dir, job.staging_dir, overwrite=job.config.overwrite)
        return filesystem.read_bytes(filesystem.join(job.config.output_dir, DATASET_INFO_NAME)).decode()
    reports = sorted(reports, key=lambda report: (report.split, report.index))
    rejections = sorted(rejection for report in reports for rejection in report.rejections)
    splits = {split: _describe_split(split, reports, plan, job) for split in plan.num_shards}
    written = sum(info.num_examples for info in splits.values())
    config = job.config
    _check_all_arrived(written + len(rejections), plan)
    unwanted = [rejection for rejection in rejections if rejection.reason != "duplicate"]
    check_rejected(len(unwanted), written + len(rejections), unwanted, config)
    rejected = rejected_bytes(rejections)
    info = DatasetInfo(
        max_len=config.max_len,
        compression=config.compression,
        vocab_sha256=FileInfo.of(VOCAB_NAME, 0, job.vocab_content).sha256,
        vocab_size=job.vocab_size,
        labels=plan.labels,
        splits=splits,
        documents=DocumentCounts(
            read=written + len(rejections),
            written=written,
            rejected=dict(sorted(Counter(rejection.reason for rejection in rejections).items())),
            duplicates=sum(report.num_duplicates for report in reports),
            conflicting=sorted(keys for report in reports for keys in report.conflicting),
            in_several_splits=_count_in_several_splits(reports),
        ),
        seed=config.seed,
        configuration=config.describe_content(),
        versions={"two-headed-bert": VERSION, "format": str(FORMAT_VERSION), "python": platform.python_version()},
        rejected_file=FileInfo.of(REJECTED_NAME, 0, rejected),
    )
    stage(job.staging_dir, REJECTED_NAME, rejected)
    stage(job.staging_dir, VOCAB_NAME, job.vocab_content)
    stage(job.staging_dir, DATASET_INFO_NAME, info.to_json().encode())
    move_into_place(config.output_dir, job.staging_dir, overwrite=config.overwrite)
    return info.to_json()


def rejected_bytes(rejections: Sequence[Rejection]) -> bytes:
    """Return the content of the rejected file."""
    lines = [json.dumps(rejection._asdict(), ensure_ascii=False) + "\n" for rejection in rejections]
    return "".join(lines).encode("utf-8", "backslashreplace")


def _count_in_several_splits(reports: Sequence[ShardReport]) -> int:
    """Count sequences of ids that examples of more than one split have."""
    by_split: dict[str, list[np.ndarray]] = {}
    for report in reports:
        by_split.setdefault(report.split, []).append(np.frombuffer(report.ids_digests, dtype=np.uint64))
    distinct = [np.unique(np.concatenate(parts)) for parts in by_split.values()]
    _, counts = np.unique(np.concatenate([np.empty(0, np.uint64), *distinct]), return_counts=True)
    return int(np.count_nonzero(counts > 1))


def _check_all_arrived(num_documents: int, plan: DatasetPlan) -> None:
    # Engines have lost and doubled elements without a word; the first pass counted by another way than this one.
    if num_documents != plan.num_documents:
        raise OutputWriteError(
            f"the engine lost documents or made them twice: {plan.num_documents:,} were read, {num_documents:,} "
            "arrived; nothing is published; run again, and if it happens again, on another engine"
        )


def _is_published(reports: Sequence[ShardReport], job: Job) -> bool:
    if filesystem.exists(filesystem.join(job.staging_dir, DATASET_INFO_NAME)):
        return True
    names = [report.file.name for report in reports if report.file]
    return not any(filesystem.exists(filesystem.join(job.staging_dir, name)) for name in names[:1])


def stage(staging_dir: str, name: str, content: bytes) -> None:
    """Write a file that `move_into_place` will publish."""
    filesystem.write_atomically(filesystem.join(staging_dir, name), content)


def stage_lengths(staging_dir: str, split: str, lengths: np.ndarray) -> FileInfo:
    """Write a split's lengths file, and return its description; `lengths` is uint16 [N], in stored order."""
    file = FileInfo.of(f"{split}-lengths.npy", len(lengths), content := npy_bytes(lengths))
    stage(staging_dir, file.name, content)
    return file


def _describe_split(split: str, reports: Sequence[ShardReport], plan: DatasetPlan, job: Job) -> SplitInfo:
    """Add up one split's shards, write its lengths file, and an empty file for every shard no document fell into."""
    by_index = {report.index: report for report in reports if report.split == split}
    own = [by_index.get(index) or write_empty_shard(split, index, plan, job) for index in range(plan.num_shards[split])]
    lengths = np.frombuffer(b"".join(report.lengths for report in own), dtype=LENGTHS_DTYPE)
    joint = np.zeros([len(plan.labels[CATEGORY_HEAD]), len(plan.labels[SECOND_HEAD])], dtype=np.int64)
    for report in own:
        for pair, count in report.joint_labels.items():
            joint[pair] += count
    return SplitInfo.of(
        lengths,
        joint,
        max_len=job.config.max_len,
        num_unknown_tokens=sum(report.num_unknown_tokens for report in own),
        num_truncated=sum(report.num_truncated for report in own),
        lengths_file=stage_lengths(job.staging_dir, split, lengths),
        shards=tuple(report.file for report in own if report.file),
    )


def move_into_place(output_dir: str, staging_dir: str, *, overwrite: bool) -> None:
    """Publish a complete staging directory; safe to call again after an interruption at any point.

    Args:
        output_dir: where the dataset is to be.
        staging_dir: where it lies.
        overwrite: whether another dataset, which came to be there meanwhile, may be replaced.

    Raises:
        OutputExistsError: it may not.
        CorruptShardError: a file of the dataset is neither here nor there; nothing was moved.
    """
    # A worker outlives its killed job by seconds, and may be at it.
    with _locked(output_dir):
        _move(output_dir, staging_dir, overwrite=overwrite)


def _move(output_dir: str, staging_dir: str, *, overwrite: bool) -> None:
    complete = filesystem.join(staging_dir, DATASET_INFO_NAME)
    published = filesystem.join(output_dir, DATASET_INFO_NAME)
    if not filesystem.exists(complete):
        return
    text = filesystem.read_bytes(complete)
    described = DatasetInfo.from_json(text, complete)
    # Where a rename is a copy, an interruption may have left the same one in both places.
    if not overwrite and filesystem.exists(published) and filesystem.read_bytes(published) != text:
        filesystem.delete([complete])  # or whoever comes next would finish this
        raise OutputExistsError(
            f"{output_dir}: a dataset came to be there while the job was running; give another directory, "
            "or add --overwrite"
        )
    described_names = {
        REJECTED_NAME,
        VOCAB_NAME,
        *(file.name for split in described.splits.values() for file in split.files),
    }
    staged = {path.rsplit("/", 1)[-1]: path for path in filesystem.list_below(staging_dir)}
    names = filesystem.list_names(output_dir)
    if missing := described_names - staged.keys() - set(names):
        raise CorruptShardError(
            f"{complete}: {len(missing)} of the files it lists are not there, such as {min(missing)}", path=complete
        )
    # From here until the last rename the output has no dataset.json, and the staging holds what is missing.
    filesystem.delete([published])
    for name in sorted(described_names & staged.keys()):
        filesystem.rename(staged[name], filesystem.join(output_dir, name))
    former = [name for name in names if is_ours(name) and name not in described_names]
    filesystem.delete([filesystem.join(output_dir, name) for name in former])
    filesystem.rename(complete, published)
    filesystem.delete_directory(staging_dir)


@contextmanager
def _locked(output_dir: str, *, make: bool = False) -> Iterator[None]:
    """Keep others from claiming, publishing and cleaning up here meanwhile; object stores have no locks.

    Args:
        output_dir: the directory.
        make: whether to make it if it is not there.
    """
    if filesystem.is_remote(output_dir):
        yield
        return
    descriptor = filesystem.make_and_lock(output_dir) if make else filesystem.lock(output_dir)
    try:
        yield
    finally:
        os.close(descriptor)


def _discard_incomplete(staging_dir: str) -> None:
    """Remove a staging directory, unless a complete dataset waits in it for whoever comes next to publish it."""
    if filesystem.is_remote(staging_dir):
        if not filesystem.exists(filesystem.join(staging_dir, DATASET_INFO_NAME)):
            filesystem.delete_directory(staging_dir)
        return
    if not os.path.isdir(staging_dir):
        return
    # Under another name nothing can be added by a worker that is still alive, so that what is seen now is final.
    doomed = f"{staging_dir}-{secrets.token_hex(4)}"
    os.rename(staging_dir, doomed)
    if os.path.exists(os.path.join(doomed, DATASET_INFO_NAME)):
        os.rename(doomed, staging_dir)
    else:
        filesystem.delete_directory(doomed)


def is_ours(name: str) -> bool:
    """Tell whether a file's name is one that the files of a dataset have."""
    return bool(SHARD_NAME.match(name) or _OTHER_FILES.match(name))


def staging_directory(config: PreprocessConfig) -> AbstractContextManager[str]:
    """Claim the output directory of a job; see `claim_output`."""
    return claim_output(config.output_dir, option="--output", overwrite=config.overwrite)


@contextmanager
def claim_output(output_dir: str, *, option: str, overwrite: bool) -> Iterator[str]:
    """Claim a directory for one writer of a dataset, and clean up after those that died there.

    Args:
        output_dir: where the dataset is to be.
        option: by which the user said so, for messages.
        overwrite: whether a dataset that is there may be replaced.

    Yields:
        The path of a new, empty staging directory. When the job is over it is gone, whatever happened; only if moving
        a complete dataset into place was interrupted, it stays, and the next job finishes that.

    Raises:
        OutputExistsError: the output holds a dataset (without `--overwrite`), or something else.
        OptionError: it is no directory, or another job is writing there.
        OutputWriteError: it cannot be written.
    """
    is_remote = filesystem.is_remote(output_dir)
    existed = is_remote or os.path.exists(output_dir)
    staging_dir = filesystem.join(output_dir, STAGING_PREFIX + secrets.token_hex(4))
    with contextlib.ExitStack() as stack:
        # In one go, or two jobs could both find nothing in the way.
        with _locked(output_dir, make=True):
            stack.callback(_clean_up, output_dir, staging_dir, existed=existed)
            _finish_or_remove_leftovers(output_dir, option, overwrite=overwrite)
            _check_output(output_dir, option, overwrite=overwrite)
            filesystem.make_directory(staging_dir)
            if not is_remote:
                stack.callback(os.close, _lock_staging(staging_dir, output_dir, option))
        yield staging_dir


def _lock_staging(staging_dir: str, output_dir: str, option: str) -> int:
    """Take the lock that tells a living job's staging directory from a dead one's."""
    lock = filesystem.try_lock(staging_dir)
    if lock is None:
        raise OptionError(
            f"{option} {output_dir}: another job is writing there; wait for it, or give another directory"
        )
    return lock


def _clean_up(output_dir: str, staging_dir: str, *, existed: bool) -> None:
    """Leave nothing of a job but what it published; `existed` tells whether the output was there before it."""
    if filesystem.is_remote(output_dir):
        _discard_incomplete(staging_dir)
        return
    # Somebody may have removed all of it meanwhile.
    with contextlib.suppress(FileNotFoundError), _locked(output_dir):
        _discard_incomplete(staging_dir)
        if not existed and not os.listdir(output_dir):
            os.rmdir(output_dir)


def _check_output(output_dir: str, option: str, *, overwrite: bool) -> None:
    if filesystem.exists(filesystem.join(output_dir, DATASET_INFO_NAME)):
        if not overwrite:
            raise OutputExistsError(
                f"{option} {output_dir}: holds a dataset already; give another directory, or add --overwrite"
            )
        return
    # Without a description, nothing says that files which are called like ours are not somebody's own.
    others = [name for name in filesystem.list_names(output_dir) if not (overwrite and is_ours(name))]
    if others:
        raise OutputExistsError(
            f"{option} {output_dir}: holds {len(others)} other files ({', '.join(others[:3])}); give a new directory"
        )


def _finish_or_remove_leftovers(output_dir: str, option: str, *, overwrite: bool) -> None:
    """Publish what a job had completed when it died, and remove what it had not.

    In an object store nobody can tell a dead job from one that is alive: what is not complete stays, and what is
    complete is published only if the user says that the output may be replaced.
    """
    if filesystem.is_remote(output_dir):
        for path in filesystem.match(filesystem.join(output_dir, f"{STAGING_PREFIX}*", DATASET_INFO_NAME)):
            if not overwrite:
                raise OutputExistsError(
                    f"{option} {output_dir}: a job is publishing a dataset there, or died at it ({path}); "
                    "wait for it, or add --overwrite if no job is running"
                )
            _finish(output_dir, path.rpartition("/")[0], option, overwrite=overwrite)
        return
    for name in sorted(os.listdir(output_dir)):
        if not name.startswith(STAGING_PREFIX):
            continue
        path = os.path.join(output_dir, name)
        lock = _lock_staging(path, output_dir, option)
        try:
            _finish(output_dir, path, option, overwrite=overwrite)
        finally:
            os.close(lock)


def _finish(output_dir: str, staging_dir: str, option: str, *, overwrite: bool) -> None:
    try:
        # That job had leave to replace what is there, if there is anything.
        _move(output_dir, staging_dir, overwrite=True)
        _discard_incomplete(staging_dir)
    except (SchemaMismatchError, CorruptShardError) as error:
        if not overwrite:
            raise OutputExistsError(
                f"{option} {output_dir}: holds a dataset whose job died while publishing it, and which this version "
                f"cannot publish ({error}); use the version that wrote it, or add --overwrite to discard it"
            ) from None
        filesystem.delete_directory(staging_dir)
