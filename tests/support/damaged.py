"""Ways to damage a dataset: below its checksums, or with checksums that are right again."""

import hashlib
import json
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.dataset.info import DATASET_INFO_NAME
from pipeline.dataset.tfexample import compress, frame_records, read_records


def flip(content: bytes, bit: int) -> bytes:
    """Return some bytes with one bit changed."""
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def rewrite_info(directory: Path, change_fn: Callable[[dict[str, Any]], object], *, with_checksum: bool = True) -> None:
    """Change `dataset.json`, by default as a defective writer would: with a right checksum."""
    path = directory / DATASET_INFO_NAME
    content = json.loads(path.read_text(encoding="utf-8"))
    change_fn(content)
    if with_checksum:
        content.pop("checksum", None)
        content["checksum"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def describe_again(directory: Path, name: str) -> None:
    """Make `dataset.json` describe the present bytes of a file, so that only its content can reveal the damage."""

    def change(content: dict[str, Any]) -> None:
        for split in content["splits"].values():
            for file in [*split["shards"], split["lengths_file"]]:
                if file["name"] == name:
                    data = (directory / name).read_bytes()
                    file |= {"num_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    rewrite_info(directory, change)


def records_of(path: Path) -> list[bytes]:
    """Return the records of a shard."""
    with open(path, "rb") as stream:
        return [record for _, record in read_records(stream, path.name)]


def replace_record(path: Path, number: int, features: Mapping[str, Sequence[Any]] | bytes) -> None:
    """Replace a record of a shard by other features or bytes, with right framing and a right description."""
    records = records_of(path)
    records[number] = features if isinstance(features, bytes) else serialize_features(features)
    path.write_bytes(compress(frame_records(records), "gzip" if path.suffix == ".gz" else "none"))
    describe_again(path.parent, path.name)


def serialize_features(features: Mapping[str, Sequence[Any]]) -> bytes:
    """Serialize any features as a `tf.train.Example`, in the given order."""
    entries = []
    for name, values in features.items():
        if values and isinstance(values[0], bytes):
            listed = _field(1, b"".join(_field(1, value) for value in values))
        elif values and isinstance(values[0], float):
            listed = _field(2, b"".join(b"\x0d" + struct.pack("<f", value) for value in values))
        else:
            listed = _field(3, _field(1, b"".join(_varint(value) for value in values)))
        entries.append(_field(1, _field(1, name.encode()) + _field(2, listed)))
    return _field(1, b"".join(entries))


def _varint(value: int) -> bytes:
    encoded = bytearray()
    value &= (1 << 64) - 1
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def _field(number: int, payload: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(payload)) + payload
