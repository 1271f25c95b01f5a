"""Bytes of `tf.train.Example` and of TFRecord files, without TensorFlow.

A batch is serialized at once: the ids of all its documents become varints in a few NumPy passes. The bytes are those of
protobuf's deterministic serialization (map entries in order of their keys, numbers packed). The framing is TFRecord's:

    uint64 length · uint32 masked CRC32C of the length · payload · uint32 masked CRC32C of the payload   (little endian)

Source: tensorflow/core/example/{example,feature}.proto; tensorflow/core/lib/io/record_writer.h.
"""

import functools
import gzip
import io
import itertools
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Any

import google_crc32c
import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from google.protobuf.message import DecodeError

from pipeline.dataset.schema import EXAMPLE_FEATURES, Feature
from pipeline.errors import CorruptShardError

RECORD_OVERHEAD_BYTES = 16
MAX_RECORD_BYTES = 2**31 - 1  # protobuf has no larger messages
_HEADER = struct.Struct("<QI")
_CRC = struct.Struct("<I")
_CRC_MASK_DELTA = 0xA282EAD8
# tf.train.Example for parsing, without float features: a map as the list of its entries, packed numbers as their bytes.
_EXAMPLE_PROTO = """
name: "example.proto" syntax: "proto2"
message_type { name: "BytesList" field { name: "value" number: 1 type: TYPE_BYTES label: LABEL_REPEATED } }
message_type {
  name: "Feature"
  field { name: "bytes_list" number: 1 type: TYPE_MESSAGE type_name: ".BytesList" label: LABEL_OPTIONAL }
  field { name: "int64_list" number: 3 type: TYPE_MESSAGE type_name: ".BytesList" label: LABEL_OPTIONAL }
}
message_type {
  name: "Entry"
  field { name: "key" number: 1 type: TYPE_BYTES label: LABEL_OPTIONAL }
  field { name: "value" number: 2 type: TYPE_MESSAGE type_name: ".Feature" label: LABEL_OPTIONAL }
}
message_type {
  name: "Features"
  field { name: "feature" number: 1 type: TYPE_MESSAGE type_name: ".Entry" label: LABEL_REPEATED }
}
message_type {
  name: "Example"
  field { name: "features" number: 1 type: TYPE_MESSAGE type_name: ".Features" label: LABEL_OPTIONAL }
}
"""
_CONTINUED = bytes(range(0x80, 0x100))

# A column of a batch: one value per document, or (values of all documents, row splits) where there are several.
Column = Any


def encode_varints(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Encode non-negative integers as protobuf varints.

    Args:
        values: int [N], each 0 <= value < 2**63.

    Returns:
        payload: uint8 [M], the varints one after the other.
        ends: int64 [N], where each varint ends in `payload`.

    Raises:
        ValueError: a value is negative.
    """
    values = np.asarray(values)
    if values.size and values.min() < 0:
        raise ValueError(f"expected values >= 0, got {values.min()}")
    width = max(1, -(-int(values.max(initial=0)).bit_length() // 7))
    if width == 1:
        return values.astype(np.uint8), np.arange(1, values.size + 1)
    # Every varint as wide as the widest, as a row of septets, the lowest first; then the leading zeros are left out.
    values = values.astype(np.uint32 if width < 5 else np.int64)
    septets = np.empty([values.size, width], np.uint8)
    kept = np.ones([values.size, width], bool)
    num_bytes = np.ones(values.size, np.uint8)
    for index in range(width):
        septets[:, index] = values >> 7 * index
        if index:
            kept[:, index] = values >= 1 << 7 * index
            num_bytes += kept[:, index]
    ends = np.cumsum(num_bytes, dtype=np.int64)
    payload = np.compress(kept.ravel(), septets.ravel()) | 0x80
    payload[ends - 1] &= 0x7F
    return payload, ends


def decode_varints(payload: bytes) -> np.ndarray:
    """Decode protobuf varints, one after the other; return int64 [N]."""
    octets = np.frombuffer(payload, np.uint8)
    last = np.flatnonzero(octets < 0x80)
    first = np.concatenate([[0], last[:-1] + 1])[: len(last)]
    values = (octets[first] & 0x7F).astype(np.uint64)
    index, more = 1, np.flatnonzero(last > first)
    while len(more):
        values[more] |= (octets[first[more] + index] & 0x7F).astype(np.uint64) << np.uint64(7 * index)
        index, more = index + 1, more[last[more] > first[more] + index]
    return values.view(np.int64)


def count_varints(payload: bytes) -> int:
    """Return how many varints there are."""
    return len(payload) if payload.isascii() else len(payload.translate(None, _CONTINUED))


@functools.lru_cache(maxsize=1 << 14)
def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _field(number: int, payload: bytes) -> bytes:
    """Return a length-delimited field."""
    return bytes([number << 3 | 2]) + _varint(len(payload)) + payload


@functools.lru_cache(maxsize=1 << 14)
def _entry_header(feature: Feature, payload_bytes: int) -> bytes:
    """Return the bytes before the values of one feature: four nested headers, which depend on the values' size alone.

    Features.feature is a map, an entry of which has the key as field 1 and the Feature as field 2; bytes_list is
    field 1 of a Feature and int64_list field 3; their values are field 1, numbers packed.
    """
    key = _field(1, feature.name.encode())
    payload = bytes(payload_bytes)
    entry = _field(1, key + _field(2, _field(1 if feature.dtype == "bytes" else 3, _field(1, payload))))
    return entry[: len(entry) - payload_bytes]


def _entries(feature: Feature, column: Column) -> list[bytes]:
    """Return, for each document, the map entry of one feature."""
    if feature.dtype == "bytes":
        payloads = column
    else:
        scalar = feature.shape == "scalar"
        values, row_splits = (np.asarray(column), np.arange(len(column) + 1)) if scalar else column
        packed, ends = encode_varints(values)
        # Splits in values become splits in bytes.
        edges = np.concatenate([[0], ends])[row_splits].tolist()
        content = packed.tobytes()
        payloads = [content[start:stop] for start, stop in itertools.pairwise(edges)]
    headers = {num_bytes: _entry_header(feature, num_bytes) for num_bytes in set(map(len, payloads))}
    return [headers[len(payload)] + payload for payload in payloads]


def serialize_examples(columns: Mapping[str, Column]) -> list[bytes]:
    """Serialize a batch of documents.

    Args:
        columns: for each feature of the schema: bytes per document for `bytes`, int [B] for an int64 scalar,
            (int [N], row splits [B + 1]) for a ragged int64 feature.

    Returns:
        B serialized `tf.train.Example`s.
    """
    entries = [_entries(feature, columns[feature.name]) for feature in EXAMPLE_FEATURES]
    return [_field(1, b"".join(parts)) for parts in zip(*entries, strict=True)]


def masked_crc32c(data: bytes | memoryview) -> int:
    """Return TFRecord's masked CRC32C."""
    crc = google_crc32c.value(bytes(data))
    return ((crc >> 15 | crc << 17) + _CRC_MASK_DELTA) & 0xFFFFFFFF


@functools.lru_cache(maxsize=1 << 14)
def _record_header(num_bytes: int) -> bytes:
    length = struct.pack("<Q", num_bytes)
    return length + _CRC.pack(masked_crc32c(length))


def frame_records(records: Iterable[bytes]) -> bytes:
    """Return the content of a TFRecord file that holds these records."""
    parts: list[bytes] = []
    for record in records:
        parts += (_record_header(len(record)), record, _CRC.pack(masked_crc32c(record)))
    return b"".join(parts)


def compress(data: bytes, compression: str) -> bytes:
    """Compress the content of a shard: `none`, or `gzip` without time and name, so that equal content stays equal."""
    if compression == "none":
        return data
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=buffer, compresslevel=6, mtime=0) as stream:
        stream.write(data)
    return buffer.getvalue()


def read_records(stream: IO[bytes], path: str) -> Iterator[tuple[int, bytes]]:
    """Yield (byte offset, payload) of every record, checking both checksums of each.

    Args:
        stream: the content of a shard; offsets are those of the uncompressed content.
        path: of the shard, for messages; ends in `.gz` if the shard is compressed.

    Raises:
        CorruptShardError: with record number and offset of the first record that is damaged or cut short.
    """
    source: Any = gzip.GzipFile(fileobj=stream, mode="rb") if path.endswith(".gz") else stream
    offset, number = 0, 0

    def corrupt(what: str) -> CorruptShardError:
        return CorruptShardError(what, path=path, record=number, offset=offset)

    try:
        while header := source.read(_HEADER.size):
            if len(header) < _HEADER.size:
                raise corrupt(f"the file ends inside the record's header ({len(header)} of {_HEADER.size} bytes)")
            length, length_crc = _HEADER.unpack(header)
            if masked_crc32c(header[:8]) != length_crc:
                raise corrupt("the checksum of the record's length does not match")
            if length > MAX_RECORD_BYTES:
                raise corrupt(f"the record claims {length:,} bytes, more than an example can have")
            body = source.read(length + _CRC.size)
            if len(body) < length + _CRC.size:
                raise corrupt(f"the file ends inside the record ({len(body)} of {length + _CRC.size} bytes)")
            payload = body[:length]
            if masked_crc32c(payload) != _CRC.unpack(body[length:])[0]:
                raise corrupt("the checksum of the record's content does not match")
            yield offset, payload
            offset += length + RECORD_OVERHEAD_BYTES
            number += 1
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise corrupt(f"the gzip stream is damaged ({error})") from error


@functools.cache
def _example_class() -> Any:
    """Return the class of `_EXAMPLE_PROTO`'s Example, in a pool apart from TensorFlow's own messages."""
    pool = descriptor_pool.DescriptorPool()
    pool.Add(text_format.Parse(_EXAMPLE_PROTO, descriptor_pb2.FileDescriptorProto()))
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("Example"))


def parse_example(record: bytes) -> dict[str, list[int] | list[bytes]]:
    """Parse the int64 and bytes features of a serialized `tf.train.Example`.

    Raises:
        ValueError: the bytes are not an Example.
    """
    features = parse_features(record).items()
    return {name: decode_varints(value).tolist() if isinstance(value, bytes) else value for name, value in features}


def parse_features(record: bytes) -> dict[str, bytes | list[bytes]]:
    """Parse a serialized `tf.train.Example` without decoding its numbers, which must be packed.

    Returns:
        Feature → its varints, one after the other, of an int64 feature; its values, of a bytes feature.

    Raises:
        ValueError: the bytes are not an Example.
    """
    features: dict[str, bytes | list[bytes]] = {}
    try:
        for entry in _example_class().FromString(record).features.feature:
            feature = entry.value
            if feature.HasField("int64_list"):
                features[entry.key.decode()] = values = b"".join(feature.int64_list.value)
                if values[-1:] >= b"\x80":
                    raise DecodeError("the last number is cut short")
            elif feature.HasField("bytes_list"):
                features[entry.key.decode()] = feature.bytes_list.value[:]
    except (DecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"not a tf.train.Example ({error})") from None
    return features
