"""Write a real dataset directory from token ids: real shards, real lengths files, a real `dataset.json`."""

import dataclasses
import hashlib
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pipeline.dataset.files import LENGTHS_DTYPE, lengths_name, npy_bytes
from pipeline.dataset.info import (
    DATASET_INFO_NAME,
    VOCAB_NAME,
    DatasetInfo,
    DocumentCounts,
    FileInfo,
    SplitInfo,
)
from pipeline.dataset.labels import LabelMap
from pipeline.dataset.schema import CATEGORY_HEAD, INDICES, KEY, LABEL, SECOND_HEAD, SECOND_LABEL, SEGMENTS
from pipeline.dataset.shards import shard_name
from pipeline.dataset.tfexample import compress, frame_records, serialize_examples

CLS, SEP = 1, 2
VOCAB = ("[PAD]", "[CLS]", "[SEP]", "[UNK]", *(f"w{number}" for number in range(46)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TinyExample:
    """One example as it will be stored.

    Attributes:
        indices: token ids, `[CLS] … [SEP]`.
        label, second_label: ids.
        key: where it came from.
        segments: one for each token; None stores zeros.
    """

    indices: Sequence[int]
    label: int = 0
    second_label: int = 0
    key: str = ""
    segments: Sequence[int] | None = None


def tiny_examples(
    lengths: Sequence[int], *, vocab_size: int = 50, num_labels: tuple[int, int] = (3, 2), seed: int = 0
) -> list[TinyExample]:
    """Make examples of given lengths with random ids, `[CLS] … [SEP]`, random labels and the keys `document:0`, …"""
    generator = np.random.default_rng(seed)
    return [
        TinyExample(
            indices=[CLS, *generator.integers(SEP + 1, vocab_size, length - 2).tolist(), SEP],
            label=int(generator.integers(num_labels[0])),
            second_label=int(generator.integers(num_labels[1])),
            key=f"document:{number}",
        )
        for number, length in enumerate(lengths)
    ]


def write_tiny_dataset(
    directory: Path,
    splits: Mapping[str, Sequence[TinyExample]],
    *,
    max_len: int,
    num_shards: int | Mapping[str, int] = 1,
    compression: str = "none",
    labels: tuple[Sequence[str], Sequence[str]] = (("a", "b", "c"), ("x", "y")),
    vocab: Sequence[str] = VOCAB,
    shard_sizes: Mapping[str, Sequence[int]] | None = None,
    cased: bool = False,
) -> DatasetInfo:
    """Write a complete dataset directory and return its description.

    Args:
        directory: made if it is not there.
        splits: split → examples in stored order.
        max_len: of the dataset; no example is longer.
        num_shards: for all splits or for each.
        compression: `none` or `gzip`.
        labels: the names of both heads' labels.
        vocab: the lines of `vocab.txt`.
        shard_sizes: split → examples per shard, instead of nearly equal shards.
        cased: whether the texts keep letter case.
    """
    directory.mkdir(parents=True, exist_ok=True)
    vocab_bytes = "".join(f"{token}\n" for token in vocab).encode()
    (directory / VOCAB_NAME).write_bytes(vocab_bytes)
    infos = {}
    for split, examples in splits.items():
        if shard_sizes and split in shard_sizes:
            sizes = list(shard_sizes[split])
        else:
            parts = num_shards if isinstance(num_shards, int) else num_shards[split]
            sizes = [len(part) for part in np.array_split(np.arange(len(examples)), parts)]
        infos[split] = _write_split(directory, split, examples, sizes, max_len, compression, labels)
    num_examples = sum(len(examples) for examples in splits.values())
    info = DatasetInfo(
        max_len=max_len,
        compression=compression,
        vocab_sha256=hashlib.sha256(vocab_bytes).hexdigest(),
        vocab_size=len(vocab),
        cased=cased,
        labels={head: LabelMap(tuple(names)) for head, names in zip((CATEGORY_HEAD, SECOND_HEAD), labels, strict=True)},
        splits=infos,
        documents=DocumentCounts(read=num_examples, written=num_examples, rejected={}, duplicates=0, conflicting=[]),
        seed=0,
        configuration={},
        versions={},
    )
    (directory / DATASET_INFO_NAME).write_text(info.to_json(), encoding="utf-8")
    return info


def serialize(examples: Sequence[TinyExample]) -> list[bytes]:
    """Return the records of some examples."""
    lengths = [len(example.indices) for example in examples]
    splits = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    segments = [example.segments or [0] * len(example.indices) for example in examples]
    return serialize_examples(
        {
            INDICES: (_join([example.indices for example in examples]), splits),
            SEGMENTS: (_join(segments), splits),
            LABEL: np.array([example.label for example in examples], np.int64),
            SECOND_LABEL: np.array([example.second_label for example in examples], np.int64),
            KEY: [example.key.encode() for example in examples],
        }
    )


def _join(rows: Sequence[Sequence[int]]) -> np.ndarray:
    return np.concatenate([np.empty(0, np.int64), *(np.asarray(row, np.int64) for row in rows)])


def _write_split(
    directory: Path,
    split: str,
    examples: Sequence[TinyExample],
    shard_sizes: Sequence[int],
    max_len: int,
    compression: str,
    labels: tuple[Sequence[str], Sequence[str]],
) -> SplitInfo:
    records = serialize(examples)
    edges = np.concatenate([[0], np.cumsum(shard_sizes)]).tolist()
    shards = []
    for index, (start, stop) in enumerate(itertools.pairwise(edges)):
        name = shard_name(split, index, len(shard_sizes), compression)
        data = compress(frame_records(records[start:stop]), compression)
        (directory / name).write_bytes(data)
        shards.append(FileInfo.of(name, stop - start, data))
    lengths = np.array([len(example.indices) for example in examples], LENGTHS_DTYPE)
    lengths_content = npy_bytes(lengths)
    (directory / lengths_name(split)).write_bytes(lengths_content)
    joint = np.zeros([len(names) for names in labels], np.int64)
    for example in examples:
        joint[example.label, example.second_label] += 1
    return SplitInfo(
        num_examples=len(examples),
        num_tokens=int(lengths.sum()),
        num_unknown_tokens=0,
        num_truncated=0,
        label_counts={CATEGORY_HEAD: joint.sum(axis=1).tolist(), SECOND_HEAD: joint.sum(axis=0).tolist()},
        joint_label_counts=joint.tolist(),
        length_histogram=np.bincount(lengths, minlength=max_len + 1).tolist(),
        lengths_file=FileInfo.of(lengths_name(split), len(examples), lengths_content),
        shards=tuple(shards),
    )
