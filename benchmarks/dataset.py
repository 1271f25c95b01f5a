"""A dataset directory with one split, `train`, written from token ids: what the reader and `verify` are measured on."""

import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.dataset.files import LENGTHS_DTYPE, REJECTED_NAME, npy_bytes
from pipeline.dataset.info import DATASET_INFO_NAME, VOCAB_NAME, DatasetInfo, DocumentCounts, FileInfo, SplitInfo
from pipeline.dataset.labels import LabelMap
from pipeline.dataset.schema import CATEGORY_HEAD, INDICES, KEY, LABEL, SECOND_HEAD, SECOND_LABEL, SEGMENTS
from pipeline.dataset.shards import auto_num_shards, shard_name
from pipeline.dataset.tfexample import frame_records, serialize_examples

# As many as THUCNews has.
NUM_LABELS = {CATEGORY_HEAD: 14, SECOND_HEAD: 3}


def write_dataset(directory: Path, rows: Sequence[Sequence[int]], *, max_len: int, vocab_size: int) -> DatasetInfo:
    """Write a complete dataset directory; example i has the labels i mod 14 and i mod 3.

    Args:
        directory: made if it is not there.
        rows: the token ids of each example, `[CLS] … [SEP]`, in stored order.
        max_len: of the dataset; no row is longer.
        vocab_size: ids are below; the vocabulary itself is made up.

    Returns:
        The dataset's description, as `dataset.json` has it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    vocab = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *(f"w{number}" for number in range(vocab_size - 4))]
    vocab_bytes = "".join(f"{token}\n" for token in vocab).encode()
    (directory / VOCAB_NAME).write_bytes(vocab_bytes)
    (directory / REJECTED_NAME).touch()
    num_shards = auto_num_shards(len(rows), max_len)
    shards = []
    for index, numbers in enumerate(np.array_split(np.arange(len(rows)), num_shards)):
        content = frame_records(_serialize([rows[number] for number in numbers], numbers))
        name = shard_name("train", index, num_shards, "none")
        (directory / name).write_bytes(content)
        shards.append(FileInfo.of(name, len(numbers), content))
    lengths = np.array([len(row) for row in rows], LENGTHS_DTYPE)
    lengths_name = "train-lengths.npy"
    (directory / lengths_name).write_bytes(npy_bytes(lengths))
    joint = np.zeros([*NUM_LABELS.values()], np.int64)
    np.add.at(joint, tuple(np.arange(len(rows)) % count for count in NUM_LABELS.values()), 1)
    split = SplitInfo.of(
        lengths,
        joint,
        max_len=max_len,
        num_unknown_tokens=0,
        num_truncated=0,
        lengths_file=FileInfo.of(lengths_name, len(rows), npy_bytes(lengths)),
        shards=tuple(shards),
    )
    info = DatasetInfo(
        max_len=max_len,
        compression="none",
        vocab_sha256=hashlib.sha256(vocab_bytes).hexdigest(),
        vocab_size=vocab_size,
        labels={head: LabelMap(tuple(map(str, range(count)))) for head, count in NUM_LABELS.items()},
        splits={"train": split},
        documents=DocumentCounts(read=len(rows), written=len(rows), rejected={}, duplicates=0, conflicting=[]),
        seed=0,
        configuration={},
        versions={},
    )
    (directory / DATASET_INFO_NAME).write_text(info.to_json(), encoding="utf-8")
    return info


def _serialize(rows: Sequence[Sequence[int]], numbers: np.ndarray) -> list[bytes]:
    splits = np.cumsum([0, *map(len, rows)])
    ids = np.fromiter(itertools.chain.from_iterable(rows), np.int64, splits[-1])
    return serialize_examples(
        {
            INDICES: (ids, splits),
            SEGMENTS: (np.zeros_like(ids), splits),
            LABEL: numbers % NUM_LABELS[CATEGORY_HEAD],
            SECOND_LABEL: numbers % NUM_LABELS[SECOND_HEAD],
            KEY: [f"体育/{number}.txt".encode() for number in numbers],
        }
    )
