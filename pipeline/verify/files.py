"""The files around the shards: description, vocabulary, lengths, rejected documents, and files that are not listed."""

import json
from collections import Counter
from collections.abc import Iterator

import numpy as np

from pipeline import filesystem
from pipeline.corpus.documents import Rejection
from pipeline.dataset.files import REJECTED_NAME, find_change, is_ours, read_lengths
from pipeline.dataset.info import DATASET_INFO_NAME, VOCAB_NAME, DatasetInfo, FileInfo, SplitInfo
from pipeline.dataset.shards import COMPRESSIONS, shard_name
from pipeline.errors import CorruptShardError, InputFormatError, MissingInputError
from pipeline.tokenization.vocabulary import parse_vocab
from pipeline.verify.shards import Fault, unreadable


def check_description(info: DatasetInfo) -> Iterator[Fault]:
    """Compare what `dataset.json` says in several places, as far as the other files do not tell."""
    documents = info.documents
    num_rejected, num_written = sum(documents.rejected.values()), sum(s.num_examples for s in info.splits.values())
    if documents.read != documents.written + num_rejected:
        what = f"{documents.read} documents read, but {documents.written} written + {num_rejected} rejected"
        yield fault_of_info(what)
    if documents.written != num_written:
        yield fault_of_info(f"{documents.written} documents written, but {num_written} in its splits")
    if info.compression not in COMPRESSIONS:
        yield fault_of_info(f"expected compression {' or '.join(COMPRESSIONS)}, got {info.compression!r}")
    for split, split_info in info.splits.items():
        names = [shard.name for shard in split_info.shards]
        expected = [shard_name(split, index, len(names), info.compression) for index in range(len(names))]
        if names != expected:
            yield fault_of_info(f"split {split}: expected shards {expected}, got {names}")


def fault_of_info(what: str) -> Fault:
    """Return a fault of `dataset.json`."""
    return Fault(file=DATASET_INFO_NAME, what=what)


def read_vocab(data_dir: str, info: DatasetInfo) -> tuple[dict[str, int], list[Fault]]:
    """Return the vocabulary, empty if it is not that of the dataset, and what is wrong with it."""
    try:
        content = filesystem.read_bytes(filesystem.join(data_dir, VOCAB_NAME))
    except MissingInputError as error:
        return {}, [unreadable(data_dir, VOCAB_NAME, error)]
    if FileInfo.of(VOCAB_NAME, 0, content).sha256 != info.vocab_sha256:
        return {}, [Fault(file=VOCAB_NAME, what=f"its checksum differs from {DATASET_INFO_NAME}")]
    try:
        vocab = parse_vocab(content, VOCAB_NAME)
    except InputFormatError as error:
        return {}, [Fault(file=VOCAB_NAME, what=str(error))]
    if len(vocab) != info.vocab_size:
        what = f"expected {info.vocab_size} tokens ({DATASET_INFO_NAME}), got {len(vocab)}"
        return {}, [Fault(file=VOCAB_NAME, what=what)]
    return vocab, []


def read_split_lengths(data_dir: str, split: SplitInfo) -> tuple[np.ndarray | None, list[Fault]]:
    """Return uint16 [num_examples], the lengths of a split's examples, and what is wrong with their file.

    The lengths are `None` where the file is not the one that was described.
    """
    name = split.lengths_file.name
    try:
        return read_lengths(data_dir, split), []
    except MissingInputError as error:
        return None, [unreadable(data_dir, name, error)]
    except CorruptShardError as error:
        return None, [Fault(file=name, what=error.what)]


def read_rejections(data_dir: str, info: DatasetInfo) -> tuple[list[Rejection], list[Fault]]:
    """Return the documents that are listed as rejected, and what is wrong with the list."""
    try:
        content = filesystem.read_bytes(filesystem.join(data_dir, REJECTED_NAME))
    except MissingInputError as error:
        return [], [unreadable(data_dir, REJECTED_NAME, error)]
    rejections, faults, offset = [], [], 0
    file = info.rejected_file
    if file is not None and file != FileInfo.of(REJECTED_NAME, 0, content):
        what = find_change(content, file) or f"expected {file}"
        faults.append(Fault(file=REJECTED_NAME, what=what))
    for record, line in enumerate(content.splitlines(keepends=True)):
        try:
            rejection = Rejection(**json.loads(line))
            if not all(isinstance(value, str) for value in rejection):
                raise ValueError(f"expected strings, got {tuple(rejection)}")
            rejections.append(rejection)
        except (ValueError, TypeError, RecursionError) as error:
            what = f"not a rejected document ({error})"
            faults.append(Fault(file=REJECTED_NAME, what=what, record=record, offset=offset))
        offset += len(line)
    expected, found = (
        ", ".join(f"{reason} {count}" for reason, count in sorted(counts.items()) if count) or "none"
        for counts in (info.documents.rejected, Counter(rejection.reason for rejection in rejections))
    )
    if found != expected:
        what = f"expected {expected} ({DATASET_INFO_NAME}), got {found}"
        faults.append(Fault(file=REJECTED_NAME, what=what))
    return rejections, faults


def check_listing(data_dir: str, info: DatasetInfo) -> Iterator[Fault]:
    """Find files that have a name as those of a dataset, but are not listed, such as shards of a former one."""
    listed = {file.name for split in info.splits.values() for file in split.files}
    for name in filesystem.list_names(data_dir):
        if is_ours(name) and name not in {*listed, DATASET_INFO_NAME, VOCAB_NAME, REJECTED_NAME}:
            yield Fault(file=name, what=f"looks like a part of the dataset, but is not listed in {DATASET_INFO_NAME}")
