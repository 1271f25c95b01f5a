"""One shard read from its first byte to its last: size, checksum, framing, and every example against the schema.

The first record with damaged framing ends the shard: where the next one begins is not known.
"""

import dataclasses
import hashlib
import io
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline import filesystem
from pipeline.dataset.files import NOT_THERE
from pipeline.dataset.info import DATASET_INFO_NAME, DatasetInfo, FileInfo
from pipeline.dataset.schema import EXAMPLE_FEATURES, HEAD_FEATURES, INDICES, KEY, LABEL, SECOND_LABEL, SEGMENTS
from pipeline.dataset.tfexample import parse_example, read_records
from pipeline.errors import CorruptShardError, MissingInputError
from pipeline.tokenization.vocabulary import CLS_TOKEN, NUM_EDGE_TOKENS, PAD_TOKEN, SEP_TOKEN, UNK_TOKEN

_FEATURE_NAMES = {feature.name for feature in EXAMPLE_FEATURES}
# What the checks across shards need of one example. Equal keys have equal digests, and so have equal ids.
EXAMPLE_DTYPE = np.dtype(
    [
        ("record", np.int64),
        ("offset", np.int64),
        ("length", np.int64),
        ("label", np.int64),
        ("second_label", np.int64),
        ("num_unknown", np.int64),
        ("key_digest", np.uint64),
        ("ids_digest", np.uint64),
    ]
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fault:
    """One thing that is wrong with a dataset.

    Attributes:
        file: name inside the dataset directory.
        what: what is wrong.
        record: number of the record in the file, from 0; `None` where the fault is the file's.
        offset: byte offset of that record (in the uncompressed content); `None` where the fault is the file's.
    """

    file: str
    what: str
    record: int | None = None
    offset: int | None = None

    def __str__(self) -> str:
        place = "" if self.record is None else f": record {self.record} at byte {self.offset}"
        return f"{self.file}{place}: {self.what}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What holds for every example of a dataset.

    Attributes:
        vocab_size: ids are below it.
        special_ids: special token → id; empty where the vocabulary cannot be read.
        max_len: no example is longer.
        num_labels: head → labels.
    """

    vocab_size: int
    special_ids: Mapping[str, int]
    max_len: int
    num_labels: Mapping[str, int]

    @classmethod
    def of(cls, info: DatasetInfo, special_ids: Mapping[str, int]) -> "Limits":
        """Return the limits that a description sets."""
        num_labels = {head: len(label_map) for head, label_map in info.labels.items()}
        return cls(vocab_size=info.vocab_size, special_ids=special_ids, max_len=info.max_len, num_labels=num_labels)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardFindings:
    """The result of reading one shard.

    Attributes:
        name: of the shard.
        num_bytes: of the file.
        faults: in stored order, those of the whole file last.
        examples: EXAMPLE_DTYPE [N], the examples without a fault.
    """

    name: str
    num_bytes: int
    faults: list[Fault]
    examples: np.ndarray


def check_shard(shard: FileInfo, lengths: np.ndarray | None, *, data_dir: str, limits: Limits) -> ShardFindings:
    """Check everything about a shard that does not need the other shards.

    Args:
        shard: its description.
        lengths: int [num_examples], of its examples, from the lengths file; `None` where that cannot be read.
        data_dir: the dataset directory.
        limits: for every example.
    """
    try:
        content = filesystem.read_bytes(filesystem.join(data_dir, shard.name))
    except MissingInputError as error:
        faults = [unreadable(data_dir, shard.name, error)]
        return ShardFindings(name=shard.name, num_bytes=0, faults=faults, examples=np.empty(0, EXAMPLE_DTYPE))
    faults, rows = [], []
    num_records = 0
    try:
        for record, (offset, payload) in enumerate(read_records(io.BytesIO(content), shard.name)):
            num_records += 1
            length = int(lengths[record]) if lengths is not None and record < len(lengths) else None
            try:
                rows.append((record, offset, *_check_example(payload, length, limits)))
            except ValueError as error:
                faults.append(Fault(file=shard.name, what=str(error), record=record, offset=offset))
    except CorruptShardError as error:
        faults.append(Fault(file=shard.name, what=error.what, record=error.record, offset=error.offset))
    if len(content) != shard.num_bytes:
        faults.append(Fault(file=shard.name, what=f"expected {shard.num_bytes} bytes, got {len(content)}"))
    if num_records != shard.num_examples and not any(fault.record == num_records for fault in faults):
        what = f"expected {shard.num_examples} records ({DATASET_INFO_NAME}), got {num_records}"
        faults.append(Fault(file=shard.name, what=what))
    if not faults and hashlib.sha256(content).hexdigest() != shard.sha256:
        what = f"its checksum differs from {DATASET_INFO_NAME}, though every record is intact: it is another file"
        faults.append(Fault(file=shard.name, what=what))
    return ShardFindings(
        name=shard.name, num_bytes=len(content), faults=faults, examples=np.array(rows, dtype=EXAMPLE_DTYPE)
    )


def unreadable(data_dir: str, name: str, error: MissingInputError) -> Fault:
    """Return the fault of a file that cannot be opened or read."""
    path = filesystem.join(data_dir, name)
    what = str(error).removeprefix(f"{path}: ") if filesystem.exists(path) else NOT_THERE
    return Fault(file=name, what=what)


def digest(content: bytes) -> int:
    """Return 64 bits that differ for different contents, as far as any 64 bits can."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def _check_example(payload: bytes, length: int | None, limits: Limits) -> tuple[int, ...]:
    """Check one serialized example.

    Returns:
        Its fields of EXAMPLE_DTYPE, without record and offset.

    Raises:
        ValueError: it is not an example of this dataset; the message says why.
    """
    features = parse_example(payload)
    _check_schema(features)
    ids, (key,) = features[INDICES], features[KEY]
    num_unknown = _check_ids(ids, length, limits)
    if len(features[SEGMENTS]) != len(ids) or any(features[SEGMENTS]):
        raise ValueError(f"expected {len(ids)} zeros in feature {SEGMENTS!r}, one for each id")
    for head, name in HEAD_FEATURES.items():
        (label,) = features[name]
        if not 0 <= label < limits.num_labels[head]:
            raise ValueError(f"expected a {name} in [0, {limits.num_labels[head]}), got {label}")
    if not key:
        raise ValueError("its key is empty")
    try:
        key.decode()
    except UnicodeDecodeError:
        raise ValueError(f"its key is not UTF-8: {key!r}") from None
    (label,), (second_label,) = features[LABEL], features[SECOND_LABEL]
    ids_digest = digest(np.array(ids).tobytes())
    return len(ids), label, second_label, num_unknown, digest(key), ids_digest


def _check_schema(features: Mapping[str, Any]) -> None:
    if unexpected := features.keys() - _FEATURE_NAMES:
        raise ValueError(f"unexpected feature {min(unexpected)!r}")
    for feature in EXAMPLE_FEATURES:
        values = features.get(feature.name, [])
        if not values or (feature.shape == "scalar" and len(values) != 1):
            expected = "1 value" if feature.shape == "scalar" else "at least 1 value"
            raise ValueError(f"expected {expected} of feature {feature.name!r}, got {len(values)}")
        if isinstance(values[0], bytes) != (feature.dtype == "bytes"):
            raise ValueError(f"expected {feature.dtype} values of feature {feature.name!r}")


def _check_ids(ids: list[int], length: int | None, limits: Limits) -> int:
    """Check the ids of an example, and return how many are [UNK]."""
    if length is not None and len(ids) != length:
        raise ValueError(f"{len(ids)} values of feature {INDICES!r}, but the lengths file says {length}")
    if not NUM_EDGE_TOKENS < len(ids) <= limits.max_len:
        raise ValueError(f"expected {NUM_EDGE_TOKENS + 1} to {limits.max_len} ids, got {len(ids)}")
    counts = Counter(ids)
    for id_ in (min(counts), max(counts)):
        if not 0 <= id_ < limits.vocab_size:
            raise ValueError(f"expected ids in [0, {limits.vocab_size}), got {id_}")
    if not limits.special_ids:
        return 0
    for token, index in ((CLS_TOKEN, 0), (SEP_TOKEN, -1)):
        expected = limits.special_ids[token]
        if ids[index] != expected:
            which = "last" if index else "first"
            raise ValueError(f"expected {token} ({expected}) as its {which} id, got {ids[index]}")
    for token, expected in ((CLS_TOKEN, 1), (SEP_TOKEN, 1), (PAD_TOKEN, 0)):
        if counts[limits.special_ids[token]] != expected:
            raise ValueError(f"{token} inside the text")
    return counts[limits.special_ids[UNK_TOKEN]]
