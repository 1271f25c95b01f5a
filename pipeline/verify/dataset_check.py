"""What can be wrong with a dataset beside its records: the files around the shards, and what they say of each other."""

import collections
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pipeline import filesystem
from pipeline.dataset.files import NOT_THERE, find_change, parse_lengths
from pipeline.dataset.info import (
    CHANGED,
    DATASET_INFO_NAME,
    VOCAB_NAME,
    DatasetInfo,
    SplitInfo,
)
from pipeline.dataset.schema import CATEGORY_HEAD, SECOND_HEAD, schema_as_json
from pipeline.dataset.shards import COMPRESSIONS, SHARD_NAME
from pipeline.errors import InputFormatError, MissingInputError
from pipeline.job.output_dir import REJECTED_NAME, is_ours
from pipeline.tokenization.vocabulary import parse_vocab
from pipeline.verify.record_scan import Fault
from pipeline.verify.shard_check import ShardFindings


def fault_of_info(what: str) -> Fault:
    """Return a fault of `dataset.json`."""
    return Fault(file=DATASET_INFO_NAME, what=what)


def check_description(text: bytes, info: DatasetInfo, *, is_unchanged: bool) -> Iterator[Fault]:
    """Hold what `dataset.json` says in several places against each other."""
    if not is_unchanged:
        yield fault_of_info(f"{CHANGED}; what it says may be wrong anywhere")
    content = json.loads(text)
    if content.get("fingerprint") != info.fingerprint:
        yield fault_of_info("its fingerprint is not that of the checksums it lists")
    if _essence(content["schema"].get("features")) != _essence(schema_as_json()):
        yield fault_of_info("its schema is not the one of this format version")
    documents = info.documents
    num_rejected = sum(documents.rejected.values())
    if documents.read != documents.written + num_rejected:
        yield fault_of_info(
            f"{documents.read} documents read, but {documents.written} written + {num_rejected} rejected"
        )
    in_splits = sum(split.num_examples for split in info.splits.values())
    if documents.written != in_splits:
        yield fault_of_info(f"{documents.written} documents written, but {in_splits} in its splits")
    for head, label_map in info.labels.items():
        if len(set(label_map.names)) < len(label_map):
            yield fault_of_info(f"two labels of {head} have the same name")
    if info.compression not in COMPRESSIONS:
        yield fault_of_info(f"expected compression {' or '.join(COMPRESSIONS)}, got {info.compression!r}")
    if info.vocab_size < 1 or info.max_len < 1:
        yield fault_of_info(f"expected a vocabulary and a max_len, got {info.vocab_size} and {info.max_len}")
    for name, split in info.splits.items():
        yield from (fault_of_info(f"split {name}: {what}") for what in _misfits_of_split(name, split, info))


def _essence(features: Any) -> Any:
    """Return what a reader depends on of a schema: all but the prose."""
    try:
        return [{name: value for name, value in feature.items() if name != "meaning"} for feature in features]
    except (TypeError, AttributeError):
        return features


def _misfits_of_split(name: str, split: SplitInfo, info: DatasetInfo) -> Iterator[str]:
    count = split.num_examples
    histogram = split.length_histogram
    sums = {
        "in its shards": sum(shard.num_examples for shard in split.shards),
        "in its lengths file": split.lengths_file.num_examples,
        "in its histogram of lengths": sum(histogram),
        "in its joint label counts": sum(map(sum, split.joint_label_counts)),
        **{f"in its label counts of {head}": sum(counts) for head, counts in split.label_counts.items()},
    }
    yield from (f"expected {count} examples, got {found} {where}" for where, found in sums.items() if found != count)
    num_tokens = sum(length * number for length, number in enumerate(histogram))
    if num_tokens != split.num_tokens:
        yield f"expected {split.num_tokens} tokens, got {num_tokens} in its histogram of lengths"
    if len(histogram) != info.max_len + 1:
        yield f"expected a histogram of {info.max_len + 1} lengths, got {len(histogram)}"
    elif split.num_truncated > histogram[-1]:
        yield f"{split.num_truncated} examples were cut to max_len, but {histogram[-1]} are so long"
    shape = [len(info.labels[CATEGORY_HEAD]), len(info.labels[SECOND_HEAD])]
    if [len(split.joint_label_counts), *{len(row) for row in split.joint_label_counts}] != shape:
        yield f"expected joint label counts of {shape[0]} x {shape[1]} labels"
    else:
        joint = np.array(split.joint_label_counts).reshape(shape)
        sums_of_heads = {CATEGORY_HEAD: joint.sum(axis=1).tolist(), SECOND_HEAD: joint.sum(axis=0).tolist()}
        if dict(split.label_counts) != sums_of_heads:
            yield "its label counts are not the sums of its joint label counts"
    for index, shard in enumerate(split.shards):
        place = SHARD_NAME.match(shard.name)
        wanted = (name, index, len(split.shards), info.compression == "gzip")
        found_place = place and (place["split"], int(place["index"]), int(place["num_shards"]), bool(place["gz"]))
        if found_place != wanted:
            yield f"its shard {index} of {len(split.shards)} is called {shard.name}, compression {info.compression}"


def check_vocab(data_dir: str, info: DatasetInfo) -> tuple[dict[str, int] | None, list[Fault]]:
    """Return the vocabulary, `None` if it is not the one of the dataset, and what is wrong with it."""
    try:
        content = filesystem.read_bytes(filesystem.join(data_dir, VOCAB_NAME))
    except MissingInputError:
        return None, [Fault(file=VOCAB_NAME, what="not there, or it cannot be opened")]
    if hashlib.sha256(content).hexdigest() != info.vocab_sha256:
        return None, [Fault(file=VOCAB_NAME, what=f"its checksum differs from {DATASET_INFO_NAME}")]
    try:
        vocab = parse_vocab(content, VOCAB_NAME)
    except InputFormatError as error:
        return None, [Fault(file=VOCAB_NAME, what=str(error))]
    if len(vocab) != info.vocab_size:
        what = f"expected {info.vocab_size} tokens ({DATASET_INFO_NAME}), got {len(vocab)}"
        return vocab, [Fault(file=VOCAB_NAME, what=what)]
    return vocab, []


def check_lengths(data_dir: str, split: SplitInfo) -> tuple[np.ndarray | None, list[Fault]]:
    """Return the lengths of a split's examples, `None` if they cannot be trusted, and what is wrong with their file."""
    file = split.lengths_file
    try:
        lengths = parse_lengths(filesystem.read_bytes(filesystem.join(data_dir, file.name)), split)
    except MissingInputError:
        return None, [Fault(file=file.name, what=NOT_THERE)]
    except ValueError as error:
        return None, [Fault(file=file.name, what=str(error))]
    histogram = np.bincount(lengths, minlength=len(split.length_histogram)).tolist()
    if histogram != list(split.length_histogram):
        return lengths, [
            Fault(file=file.name, what=f"its lengths are not those of the histogram in {DATASET_INFO_NAME}")
        ]
    return lengths, []


def check_rejected(data_dir: str, info: DatasetInfo) -> tuple[list[dict[str, str]], list[Fault]]:
    """Return the documents that are listed as rejected, and what is wrong with the list."""
    faults = []
    file = info.rejected_file
    if file is not None and (file.name, file.num_examples) != (REJECTED_NAME, 0):
        faults.append(
            fault_of_info(
                f"expected rejected_file {REJECTED_NAME} of 0 examples, got {file.name} of {file.num_examples}"
            )
        )
    try:
        content = filesystem.read_bytes(filesystem.join(data_dir, REJECTED_NAME))
    except MissingInputError:
        return [], [*faults, Fault(file=REJECTED_NAME, what="not there, or it cannot be opened")]
    if file is not None and (what := find_change(content, file)) is not None:
        faults.append(Fault(file=REJECTED_NAME, what=what))
    rejections, offset = [], 0
    for number, line in enumerate(content.removesuffix(b"\n").split(b"\n") if content else []):
        try:
            rejection = json.loads(line)
            if {*rejection} != {"key", "reason", "detail"}:
                raise ValueError("expected key, reason and detail")
            rejections.append({name: str(value) for name, value in rejection.items()})
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            faults.append(
                Fault(file=REJECTED_NAME, what=f"not a rejected document ({error})", record=number, offset=offset)
            )
        offset += len(line) + 1
    by_reason = dict(collections.Counter(rejection["reason"] for rejection in rejections))
    if by_reason != {reason: count for reason, count in info.documents.rejected.items() if count}:
        what = f"expected {_counts(info.documents.rejected)} ({DATASET_INFO_NAME}), got {_counts(by_reason)}"
        faults.append(Fault(file=REJECTED_NAME, what=what))
    return rejections, faults


def _counts(by_reason: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in sorted(by_reason.items())) or "none"


def check_listing(data_dir: str, info: DatasetInfo) -> Iterator[Fault]:
    """Find files that look like the dataset's but are not, such as shards of a former one."""
    listed = {file.name for split in info.splits.values() for file in split.files}
    for name in filesystem.list_names(data_dir):
        if is_ours(name) and name not in {*listed, DATASET_INFO_NAME, VOCAB_NAME, REJECTED_NAME}:
            yield Fault(file=name, what=f"looks like a part of the dataset, but is not listed in {DATASET_INFO_NAME}")


def check_sums(info: DatasetInfo, name: str, shards: Sequence[ShardFindings], *, has_vocab: bool) -> Iterator[Fault]:
    """Hold what was counted in a split's intact shards against its description."""
    split = info.splits[name]
    if any(shard.num_faults for shard in shards):
        return
    labels = np.concatenate([np.empty((0, 2), np.int64), *(shard.labels for shard in shards)])
    if info.count_pairs(labels).tolist() != split.joint_label_counts:
        yield fault_of_info(f"split {name}: its label counts are not those of its shards")
    num_unknown = sum(int(shard.unknown.sum()) for shard in shards)
    if has_vocab and num_unknown != split.num_unknown_tokens:
        yield fault_of_info(f"split {name}: expected {split.num_unknown_tokens} [UNK], got {num_unknown} in its shards")
    num_tokens = sum(int(shard.lengths.sum()) for shard in shards)
    if num_tokens != split.num_tokens:
        yield fault_of_info(f"split {name}: expected {split.num_tokens} tokens, got {num_tokens} in its shards")
