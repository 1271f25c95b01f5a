"""`dataset.json`: the description of a dataset directory, written last by the job and read first by all its users.

Its presence means that the dataset is complete. It says everything that can be known without opening a shard: the
schema, the vocabulary's identity, both label maps, and for each split the counts, the lengths and every file's size and
checksum.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
import numpy as np

from pipeline import filesystem
from pipeline.dataset.labels import LabelMap
from pipeline.dataset.schema import (
    CATEGORY_HEAD,
    FORMAT_VERSION,
    HEAD_FEATURES,
    SECOND_HEAD,
    schema_as_json,
    schema_fingerprint,
)
from pipeline.errors import EmptySplitError, MissingInputError, SchemaMismatchError

DATASET_INFO_NAME = "dataset.json"
VOCAB_NAME = "vocab.txt"
_CHANGED = "changed after it was written (its checksum differs)"
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")

Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileInfo:
    """One file of the dataset, by name inside its directory.

    Attributes:
        name: such as `train-00000-of-00008.tfrecord`.
        num_examples: how many examples it describes.
        num_bytes: its size.
        sha256: of its content, hexadecimal.
    """

    name: str
    num_examples: Count
    num_bytes: Count
    sha256: str

    def __post_init__(self) -> None:
        if not _PLAIN_NAME.fullmatch(self.name):
            raise ValueError(f"expected the name of a file in the same directory, got {self.name!r:.80}")

    @classmethod
    def of(cls, name: str, num_examples: int, data: bytes | memoryview) -> "FileInfo":
        """Describe a file by its content."""
        sha256 = hashlib.sha256(data).hexdigest()
        return cls(name=name, num_examples=num_examples, num_bytes=len(data), sha256=sha256)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitInfo:
    """One split of the dataset.

    Attributes:
        num_examples: examples in all shards.
        num_tokens: positions in all examples, [CLS] and [SEP] included.
        num_unknown_tokens: how many of them are [UNK].
        num_truncated: examples that were cut to `max_len`.
        label_counts: head → examples per label, in id order.
        joint_label_counts: [categories][second labels], examples per pair.
        length_histogram: [max_len + 1], examples per length.
        lengths_file: a NumPy file, uint16 [num_examples], each example's length in stored order.
        shards: in reading order.
    """

    num_examples: Count
    num_tokens: Count
    num_unknown_tokens: Count
    num_truncated: Count
    label_counts: Mapping[str, list[Count]]
    joint_label_counts: list[list[Count]]
    length_histogram: list[Count]
    lengths_file: FileInfo
    shards: tuple[FileInfo, ...]

    @classmethod
    def of(
        cls,
        lengths: np.ndarray,
        joint: np.ndarray,
        *,
        max_len: int,
        num_unknown_tokens: int,
        num_truncated: int,
        lengths_file: FileInfo,
        shards: tuple[FileInfo, ...],
    ) -> "SplitInfo":
        """Describe a split by its examples.

        Args:
            lengths: uint16 [N], of its examples.
            joint: int64 [categories, second labels], examples per pair.
            max_len: no example is longer.
            num_unknown_tokens, num_truncated, lengths_file, shards: as they are.
        """
        return cls(
            num_examples=len(lengths),
            num_tokens=int(lengths.sum(dtype=np.int64)),
            num_unknown_tokens=num_unknown_tokens,
            num_truncated=num_truncated,
            label_counts={CATEGORY_HEAD: joint.sum(axis=1).tolist(), SECOND_HEAD: joint.sum(axis=0).tolist()},
            joint_label_counts=joint.tolist(),
            length_histogram=np.bincount(lengths, minlength=max_len + 1).tolist(),
            lengths_file=lengths_file,
            shards=shards,
        )

    @property
    def files(self) -> tuple[FileInfo, ...]:
        """Every file of the split."""
        return (*self.shards, self.lengths_file)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DocumentCounts:
    """What became of the documents; `read == written + sum(rejected.values())`, always.

    Attributes:
        read: documents found in the input.
        written: examples in all splits.
        rejected: reason → documents, listed one by one in the rejected file.
        duplicates: documents whose text was met before (written or rejected, by policy).
        conflicting: keys of documents with equal text but different labels, a list for each such text.
        in_several_splits: sequences of ids that examples of more than one split have. Where all splits are drawn by
            hash, those are texts that differ only in what the tokenizer does not see or cuts off; published splits may
            share whole texts. `None` in datasets of earlier versions, which did not count them.
    """

    read: Count
    written: Count
    rejected: Mapping[str, Count]
    duplicates: Count
    conflicting: list[list[str]]
    in_several_splits: Count | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """The content of `dataset.json`.

    Attributes:
        max_len: no example is longer.
        compression: `none` or `gzip`.
        vocab_sha256, vocab_size: of the vocabulary the ids refer to.
        cased: whether the texts keep letter case and accents.
        labels: head → label map.
        splits: name → split, in the order train, dev, test, others.
        documents: what became of the documents.
        seed: decides split, shard and order.
        configuration: the resolved options that shaped the content.
        versions: of what wrote it.
        rejected_file: lists the documents that are not used; `None` in datasets of earlier versions.
    """

    max_len: Count
    compression: str
    vocab_sha256: str
    vocab_size: Count
    cased: bool = False
    labels: Mapping[str, LabelMap]
    splits: Mapping[str, SplitInfo]
    documents: DocumentCounts
    seed: Count
    configuration: Mapping[str, Any]
    versions: Mapping[str, str]
    rejected_file: FileInfo | None = None

    def split(self, name: str) -> SplitInfo:
        """Return a split that has examples.

        Raises:
            EmptySplitError: there is no such split, or it is empty.
        """
        split = self.splits.get(name)
        if split is None or split.num_examples == 0:
            counts = ", ".join(f"{other} {info.num_examples:,}" for other, info in self.splits.items())
            raise EmptySplitError(
                f"split {name!r} has no examples (there are: {counts or 'no splits'}); "
                "preprocess more documents, or give this split a larger weight"
            )
        return split

    def count_pairs(self, labels: np.ndarray) -> np.ndarray:
        """Return int64 [categories, second labels], the examples of each pair; `labels` is int [N, 2], their ids."""
        joint = np.zeros([len(self.labels[head]) for head in HEAD_FEATURES], dtype=np.int64)
        np.add.at(joint, (labels[:, 0], labels[:, 1]), 1)
        return joint

    @property
    def fingerprint(self) -> str:
        """A SHA-256 that identifies the examples: equal fingerprints mean equal bytes in every shard, in order."""
        files = [[shard.name, shard.sha256] for split in self.splits.values() for shard in split.shards]
        return hashlib.sha256(json.dumps([schema_fingerprint(), files]).encode()).hexdigest()

    def to_json(self) -> str:
        """Return the text of `dataset.json`."""
        fields = dataclasses.asdict(self)
        fields["labels"] = {head: list(label_map.names) for head, label_map in self.labels.items()}
        if not self.cased:
            del fields["cased"]  # as in datasets of earlier versions, whose bytes stay the same
        content = {
            "format_version": FORMAT_VERSION,
            "schema": {"fingerprint": schema_fingerprint(), "features": schema_as_json()},
            "fingerprint": self.fingerprint,
            **fields,
        }
        content["checksum"] = _checksum(content)
        text = json.dumps(content, ensure_ascii=False, indent=2)
        # A list of numbers reads better on one line than on five hundred. No string has a line break of its own here.
        return re.sub(r"\[\n[\s\d,]+\]", lambda match: json.dumps(json.loads(match[0])), text) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, source: str) -> "DatasetInfo":
        """Parse the text of `dataset.json`.

        Raises:
            SchemaMismatchError: it is not one, was changed, or was written under another format or schema.
        """
        try:
            content = json.loads(text)
            version, schema = content["format_version"], content["schema"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise SchemaMismatchError(
                f"{source}: not a dataset description ({error}); write the dataset again"
            ) from None
        if version != FORMAT_VERSION:
            raise SchemaMismatchError(
                f"{source}: expected format version {FORMAT_VERSION}, got {version}; "
                "write the dataset again with this version of run_preprocess.py"
            )
        found = schema.get("fingerprint") if isinstance(schema, dict) else None
        if found != schema_fingerprint():
            raise SchemaMismatchError(
                f"{source}: written under another schema: expected fingerprint {schema_fingerprint()[:12]}, "
                f"got {str(found)[:12]}; write the dataset again"
            )
        if content.pop("checksum", None) != _checksum(content):
            raise SchemaMismatchError(f"{source}: {_CHANGED}; write it again")
        try:
            names = msgspec.convert(content, _Labels).labels
            label_maps = {head: {"names": names[head]} for head in HEAD_FEATURES}
            return msgspec.convert({**content, "labels": label_maps}, cls)
        except msgspec.ValidationError as error:
            problem = str(error)
        except KeyError as error:
            problem = f"labels of head {error} are missing"
        raise SchemaMismatchError(f"{source}: {problem}; write it again")


@dataclasses.dataclass(frozen=True)
class _Labels:
    """The label names of `dataset.json`, which lists them without `LabelMap`'s field."""

    labels: Mapping[str, tuple[str, ...]]


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def require_dataset(data_dir: str) -> str:
    """Return the path of the description of a dataset directory, local or remote.

    Raises:
        MissingInputError: there is no such directory, or no complete dataset in it.
    """
    path = filesystem.join(str(data_dir), DATASET_INFO_NAME)
    if not filesystem.is_remote(path) and not filesystem.exists(str(data_dir)):
        raise MissingInputError(f"{data_dir}: no such dataset directory; make it with run_preprocess.py")
    if not filesystem.exists(path):
        raise MissingInputError(
            f"{data_dir}: no {DATASET_INFO_NAME} in it, so this is no dataset or its job has not finished; "
            "make it with run_preprocess.py"
        )
    return path


def read_dataset_info(data_dir: str) -> DatasetInfo:
    """Read the description of a dataset directory, local or remote.

    Raises:
        MissingInputError: there is no such directory, or no complete dataset in it.
        SchemaMismatchError: it was written under another format version or schema, or changed since.
    """
    path = require_dataset(data_dir)
    return DatasetInfo.from_json(filesystem.read_bytes(path), path)
