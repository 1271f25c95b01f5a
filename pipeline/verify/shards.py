"""One shard read from its first byte to its last: size, checksum, framing, and every example against the schema.

The first record with damaged framing ends the shard: where the next one begins is not known.
"""

import dataclasses
import hashlib
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pipeline import filesystem
from pipeline.dataset.files import NOT_THERE
from pipeline.dataset.info import DATASET_INFO_NAME, DatasetInfo, FileInfo
from pipeline.dataset.schema import EXAMPLE_FEATURES, HEAD_FEATURES, INDICES, KEY, SEGMENTS
from pipeline.dataset.tfexample import count_varints, decode_varints, parse_features, read_records
from pipeline.errors import CorruptShardError, MissingInputError
from pipeline.tokenization.vocabulary import CLS_TOKEN, NUM_EDGE_TOKENS, PAD_TOKEN, SEP_TOKEN, UNK_TOKEN

_EXAMPLES_AT_ONCE = 256
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


class _Parsed(NamedTuple):
    record: int
    offset: int
    features: Mapping[str, Any]


def check_shard(shard: FileInfo, lengths: np.ndarray | None, *, data_dir: str, limits: Limits) -> ShardFindings:
    """Check everything about a shard that does not need the other shards.

    Args:
        shard: its description.
        lengths: int [num_examples], of its examples, from the lengths file; `None` where that cannot be read.
        data_dir: the dataset directory.
        limits: for every example.
    """
    faults: list[Fault] = []
    examples = [np.empty(0, EXAMPLE_DTYPE)]
    try:
        content = filesystem.read_bytes(filesystem.join(data_dir, shard.name))
    except MissingInputError as error:
        faults.append(unreadable(data_dir, shard.name, error))
        return ShardFindings(name=shard.name, num_bytes=0, faults=faults, examples=examples[0])
    parsed: list[_Parsed] = []
    num_records = 0
    try:
        for record, (offset, payload) in enumerate(read_records(io.BytesIO(content), shard.name)):
            num_records += 1
            length = int(lengths[record]) if lengths is not None and record < len(lengths) else None
            try:
                parsed.append(_Parsed(record, offset, _parse(payload, length, limits)))
            except ValueError as error:
                faults.append(Fault(file=shard.name, what=str(error), record=record, offset=offset))
    except CorruptShardError as error:
        faults.append(Fault(file=shard.name, what=error.what, record=error.record, offset=error.offset))
    for start in range(0, len(parsed), _EXAMPLES_AT_ONCE):
        batch = parsed[start : start + _EXAMPLES_AT_ONCE]
        rows, misfits = _decode(batch, limits)
        examples.append(np.delete(rows, list(misfits)))
        for row, what in misfits.items():
            faults.append(Fault(file=shard.name, what=what, record=batch[row].record, offset=batch[row].offset))
    faults.sort(key=lambda fault: fault.offset or 0)
    if len(content) != shard.num_bytes:
        faults.append(Fault(file=shard.name, what=f"expected {shard.num_bytes} bytes, got {len(content)}"))
    if num_records != shard.num_examples and not any(fault.record == num_records for fault in faults):
        what = f"expected {shard.num_examples} records ({DATASET_INFO_NAME}), got {num_records}"
        faults.append(Fault(file=shard.name, what=what))
    if not faults and hashlib.sha256(content).hexdigest() != shard.sha256:
        what = f"its checksum differs from {DATASET_INFO_NAME}, though every record is intact: it is another file"
        faults.append(Fault(file=shard.name, what=what))
    return ShardFindings(name=shard.name, num_bytes=len(content), faults=faults, examples=np.concatenate(examples))


def unreadable(data_dir: str, name: str, error: MissingInputError) -> Fault:
    """Return the fault of a file that cannot be opened or read."""
    path = filesystem.join(data_dir, name)
    what = str(error).removeprefix(f"{path}: ") if filesystem.exists(path) else NOT_THERE
    return Fault(file=name, what=what)


def digest(content: bytes) -> int:
    """Return 64 bits that differ for different contents, as far as any 64 bits can."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def _parse(payload: bytes, length: int | None, limits: Limits) -> dict[str, Any]:
    """Return the features of one serialized example, the numbers as varints.

    Raises:
        ValueError: it does not follow the schema; the message says why.
    """
    features: dict[str, Any] = parse_features(payload)
    if unexpected := features.keys() - _FEATURE_NAMES:
        raise ValueError(f"unexpected feature {min(unexpected)!r}")
    counts = {}
    for feature in EXAMPLE_FEATURES:
        values = features.get(feature.name, b"")
        counts[feature.name] = count = count_varints(values) if isinstance(values, bytes) else len(values)
        if not count or (feature.shape == "scalar" and count != 1):
            expected = "1 value" if feature.shape == "scalar" else "at least 1 value"
            raise ValueError(f"expected {expected} of feature {feature.name!r}, got {count}")
        if isinstance(values, bytes) != (feature.dtype == "int64"):
            raise ValueError(f"expected {feature.dtype} values of feature {feature.name!r}")
    num_ids = counts[INDICES]
    if length is not None and num_ids != length:
        raise ValueError(f"{num_ids} values of feature {INDICES!r}, but the lengths file says {length}")
    if not NUM_EDGE_TOKENS < num_ids <= limits.max_len:
        raise ValueError(f"expected {NUM_EDGE_TOKENS + 1} to {limits.max_len} ids, got {num_ids}")
    if features[SEGMENTS] != bytes(num_ids):
        raise ValueError(f"expected {num_ids} zeros in feature {SEGMENTS!r}, one for each id")
    (key,) = features[KEY]
    if not key:
        raise ValueError("its key is empty")
    try:
        key.decode()
    except UnicodeDecodeError:
        raise ValueError(f"its key is not UTF-8: {key!r}") from None
    return features


def _decode(batch: Sequence[_Parsed], limits: Limits) -> tuple[np.ndarray, dict[int, str]]:
    """Decode many examples at once, which takes a tenth of the time, and check their numbers.

    Returns:
        EXAMPLE_DTYPE [N]; index → what is wrong with that example.
    """
    packed = [example.features[INDICES] for example in batch]
    ids = decode_varints(b"".join(packed))
    lengths = np.array([len(example.features[SEGMENTS]) for example in batch])  # of which each is one byte
    starts = np.cumsum(lengths) - lengths
    rows = np.empty(len(batch), EXAMPLE_DTYPE)
    rows["record"] = [example.record for example in batch]
    rows["offset"] = [example.offset for example in batch]
    rows["length"] = lengths
    rows["key_digest"] = [digest(example.features[KEY][0]) for example in batch]
    rows["ids_digest"] = [digest(content) for content in packed]
    misfits: dict[int, str] = {}

    def require(holds: np.ndarray, what: str, found: np.ndarray) -> None:
        for row in np.flatnonzero(~holds).tolist():
            misfits.setdefault(row, f"{what}, got {found[row]}")

    def count(mask: np.ndarray) -> np.ndarray:
        counts: np.ndarray = np.add.reduceat(mask, starts, dtype=np.int64)
        return counts

    for extreme in (np.minimum.reduceat(ids, starts), np.maximum.reduceat(ids, starts)):
        is_inside = (extreme >= 0) & (extreme < limits.vocab_size)
        require(is_inside, f"expected ids in [0, {limits.vocab_size})", extreme)
    if special := limits.special_ids:
        first, last = ids[starts], ids[starts + lengths - 1]
        require(first == special[CLS_TOKEN], f"expected {CLS_TOKEN} ({special[CLS_TOKEN]}) as its first id", first)
        require(last == special[SEP_TOKEN], f"expected {SEP_TOKEN} ({special[SEP_TOKEN]}) as its last id", last)
        for token, expected in ((CLS_TOKEN, 1), (SEP_TOKEN, 1), (PAD_TOKEN, 0)):
            found = count(ids == special[token])
            require(found == expected, f"expected {expected} of {token} among its ids", found)
    rows["num_unknown"] = count(ids == special[UNK_TOKEN]) if special else 0
    for head, name in HEAD_FEATURES.items():
        rows[name] = labels = decode_varints(b"".join(example.features[name] for example in batch))
        num_labels = limits.num_labels[head]
        require((labels >= 0) & (labels < num_labels), f"expected a {name} in [0, {num_labels})", labels)
    return rows, misfits
