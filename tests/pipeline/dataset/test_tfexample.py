"""Bytes of examples and TFRecords: equal to protobuf's and TensorFlow's, and every damage found and located."""

import contextlib
import gzip
import io
import itertools
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from pipeline.dataset.tfexample import (
    RECORD_OVERHEAD_BYTES,
    compress,
    encode_varints,
    frame_records,
    masked_crc32c,
    parse_example,
    read_records,
    serialize_examples,
)
from pipeline.errors import CorruptShardError

# Where the number of a varint's bytes changes, and the ends of the range.
VARINT_EDGES = (0, 1, 127, 128, 16_383, 16_384, 2**21 - 1, 2**21, 2**31, 2**32, 2**56 - 1, 2**56, 2**63 - 1)
RECORDS = [b"first", b"", b"third record", bytes(range(256))]

integers = st.one_of(st.sampled_from(VARINT_EDGES), st.integers(0, 2**63 - 1), st.integers(0, 30_000))
documents = st.lists(
    st.tuples(st.lists(integers, min_size=1, max_size=40), integers, integers, st.binary(max_size=300)),
    min_size=1,
    max_size=8,
)


def serialize(rows: list[tuple[list[int], int, int, bytes]]) -> list[bytes]:
    """Serialize (indices, label, second label, key) rows in one batch."""
    flat = list(itertools.chain.from_iterable(indices for indices, *_ in rows))
    splits = np.cumsum([0, *(len(indices) for indices, *_ in rows)])
    return serialize_examples(
        {
            "indices": (np.array(flat, dtype=np.int64), splits),
            "segments": (np.zeros(len(flat), dtype=np.int64), splits),
            "label": np.array([label for _, label, _, _ in rows], dtype=np.int64),
            "second_label": np.array([second for _, _, second, _ in rows], dtype=np.int64),
            "key": [key for *_, key in rows],
        }
    )


def reference_example(indices: list[int], label: int, second: int, key: bytes) -> Any:
    def numbers(values: list[int]) -> Any:
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))

    feature = {
        "second_label": numbers([second]),
        "segments": numbers([0] * len(indices)),
        "key": tf.train.Feature(bytes_list=tf.train.BytesList(value=[key])),
        "label": numbers([label]),
        "indices": numbers(indices),
    }
    return tf.train.Example(features=tf.train.Features(feature=feature))


@given(documents)
def test_bytes_equal_protobufs_deterministic_serialization(rows: list[tuple[list[int], int, int, bytes]]) -> None:
    expected = [reference_example(*row).SerializeToString(deterministic=True) for row in rows]
    assert serialize(rows) == expected


@given(documents)
def test_parse_gives_back_what_was_serialized(rows: list[tuple[list[int], int, int, bytes]]) -> None:
    for record, (indices, label, second, key) in zip(serialize(rows), rows, strict=True):
        assert parse_example(record) == {
            "indices": indices,
            "segments": [0] * len(indices),
            "label": [label],
            "second_label": [second],
            "key": [key],
        }


def test_a_document_of_the_longest_length() -> None:
    row = (list(range(65_535)), 13, 2, "体育/1.txt".encode())
    assert serialize([row]) == [reference_example(*row).SerializeToString(deterministic=True)]


def test_a_batch_without_documents() -> None:
    assert serialize([]) == []


@pytest.mark.parametrize("value", VARINT_EDGES)
def test_varint_edges(value: int) -> None:
    payload, ends = encode_varints(np.array([value, 0, value]))
    # Protobuf's own rule: seven bits a byte, the lowest first, the top bit set on all but the last.
    septets = [value >> shift & 0x7F for shift in range(0, max(value.bit_length(), 1), 7)]
    encoded = bytes([septet | 0x80 for septet in septets[:-1]] + septets[-1:])
    assert payload.tobytes() == encoded + b"\0" + encoded
    assert ends.tolist() == [len(encoded), len(encoded) + 1, 2 * len(encoded) + 1]


def test_no_and_negative_varints() -> None:
    payload, ends = encode_varints(np.array([], dtype=np.int64))
    assert (payload.tobytes(), ends.tolist()) == (b"", [])
    with pytest.raises(ValueError, match="expected values >= 0, got -1"):
        encode_varints(np.array([5, -1]))


def test_parse_reads_what_other_writers_make() -> None:
    """Numbers packed in several parts, negative numbers, several values, empty lists, unknown fields, another order."""
    example = reference_example([1], 2, 3, b"key")
    example.features.feature["negative"].int64_list.value.extend([-1, -(2**63)])
    example.features.feature["two"].bytes_list.value.extend([b"a", b""])
    example.features.feature["none"].int64_list.SetInParent()
    example.features.feature["real"].float_list.value.append(1.5)
    parsed = parse_example(example.SerializeToString())
    assert parsed["negative"] == [-1, -(2**63)]
    assert parsed["two"] == [b"a", b""]
    assert parsed["none"] == []
    assert "real" not in parsed
    # Field 1 twice, each with one number, 5; then an unknown field 9.
    values = b"\x0a\x01\x05\x0a\x01\x05\x4d\x00\x00\x00\x00"
    feature = b"\x1a" + bytes([len(values)]) + values
    entry = b"\x0a\x01n\x12" + bytes([len(feature)]) + feature
    features = b"\x0a" + bytes([len(entry)]) + entry
    assert parse_example(b"\x0a" + bytes([len(features)]) + features) == {"n": [5, 5]}


@given(st.binary(max_size=60))
def test_parse_of_any_bytes_ends_or_says_why_not(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        parse_example(data)


@given(documents, st.data())
def test_parse_of_a_cut_example_never_invents_values(rows: list[tuple[list[int], int, int, bytes]], data: Any) -> None:
    record = serialize(rows[:1])[0]
    cut = record[: data.draw(st.integers(1, len(record) - 1))]
    with pytest.raises(ValueError):  # noqa: PT011 - any of its messages will do
        parse_example(cut)


def test_masked_crc32c_of_a_known_value() -> None:
    # RFC 3720, B.4: 32 bytes of zeros have the CRC32C 0x8A9136AA; the mask is a rotation by 15 and an addition.
    crc = 0x8A9136AA
    assert masked_crc32c(bytes(32)) == ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    assert masked_crc32c(memoryview(bytes(32))) == masked_crc32c(bytes(32))


@given(st.lists(st.binary(max_size=100), max_size=5))
def test_frames_come_back_with_their_offsets(records: list[bytes]) -> None:
    found = list(read_records(io.BytesIO(frame_records(records)), "x"))
    assert [record for _, record in found] == records
    lengths = [len(record) + RECORD_OVERHEAD_BYTES for record in records]
    assert [offset for offset, _ in found] == list(itertools.accumulate([0, *lengths]))[:-1]


def test_the_file_equals_tensorflows(tmp_path: Path) -> None:
    records = serialize([([101, 5, 102], 1, 2, b"a"), ([101, 6, 7, 102], 0, 1, b"b")])
    with tf.io.TFRecordWriter(str(tmp_path / "theirs")) as writer:
        for record in records:
            writer.write(record)
    assert frame_records(records) == (tmp_path / "theirs").read_bytes()
    (tmp_path / "ours.gz").write_bytes(compress(frame_records(records), "gzip"))
    dataset = tf.data.TFRecordDataset(str(tmp_path / "ours.gz"), compression_type="GZIP")
    assert [record.numpy() for record in dataset] == records


def test_gzip_is_deterministic_and_says_nothing_of_its_writer() -> None:
    data = frame_records(RECORDS)
    compressed = compress(data, "gzip")
    assert compressed == compress(data, "gzip")
    assert compressed[3] == 0, "no name, no comment"
    assert compressed[4:8] == b"\0\0\0\0", "no time"
    assert gzip.decompress(compressed) == data
    assert compress(data, "none") == data
    assert compress(b"", "gzip")[:2] == b"\x1f\x8b"


def flip(data: bytes, bit: int) -> bytes:
    damaged = bytearray(data)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def read_all(data: bytes, path: str = "train-00000-of-00001.tfrecord") -> list[tuple[int, bytes]]:
    return list(read_records(io.BytesIO(data), path))


def test_every_single_bit_flip_is_found_in_the_record_where_it_is() -> None:
    data = frame_records(RECORDS)
    starts = [offset for offset, _ in read_all(data)]
    for bit in range(len(data) * 8):
        record = sum(start <= bit // 8 for start in starts) - 1
        inside = bit // 8 - starts[record]
        what = "length" if inside < 12 else "content"  # 8 bytes of length, 4 of its checksum
        with pytest.raises(CorruptShardError) as caught:
            read_all(flip(data, bit))
        error = caught.value
        assert (error.record, error.offset, error.path) == (record, starts[record], "train-00000-of-00001.tfrecord")
        assert f"record {record} at byte {starts[record]}: the checksum of the record's {what}" in str(error)


def test_records_before_the_damage_are_given_out() -> None:
    data = frame_records(RECORDS)
    given_out = []
    with pytest.raises(CorruptShardError):
        given_out += [record for _, record in read_records(io.BytesIO(flip(data, len(data) * 8 - 1)), "x")]
    records = read_records(io.BytesIO(flip(data, len(data) * 8 - 1)), "x")
    assert [next(records)[1] for _ in range(3)] == RECORDS[:3]


def test_truncation_anywhere_inside_a_record_is_found() -> None:
    data = frame_records(RECORDS)
    starts = [offset for offset, _ in read_all(data)]
    for length in range(1, len(data)):
        if length in starts:
            # Only the counts in dataset.json can tell a file that lost whole records.
            assert len(read_all(data[:length])) == starts.index(length)
            continue
        record = sum(start < length for start in starts) - 1
        with pytest.raises(CorruptShardError, match="the file ends inside the record") as caught:
            read_all(data[:length])
        assert (caught.value.record, caught.value.offset) == (record, starts[record])


def test_a_claimed_length_beyond_everything_is_no_reason_to_allocate_it() -> None:
    length = struct.pack("<Q", 2**63 - 1)
    header = length + struct.pack("<I", masked_crc32c(length))
    data = frame_records(RECORDS[:1]) + header + b"rest"
    with pytest.raises(CorruptShardError, match="record 1 at byte 21") as caught:
        read_all(data)
    assert (caught.value.record, caught.value.offset) == (1, 21)


@pytest.mark.parametrize("stop", [1, 5, 10, 25, -9, -8, -4, -1])
def test_cut_gzip_streams_are_found(stop: int) -> None:
    compressed = compress(frame_records(RECORDS), "gzip")
    with pytest.raises(CorruptShardError, match="gzip stream is damaged"):
        read_all(compressed[:stop], "x.tfrecord.gz")


def test_every_bit_flip_in_a_gzip_stream_is_found() -> None:
    data = frame_records([bytes([index % 7 for index in range(200)])])
    compressed = compress(data, "gzip")
    # Bytes 3 to 9 hold flags, time and operating system, which need not say anything about the content.
    for bit in range(len(compressed) * 8):
        if bit // 8 in range(3, 10):
            with contextlib.suppress(CorruptShardError):
                assert read_all(flip(compressed, bit), "x.gz") == read_all(data)
            continue
        with pytest.raises(CorruptShardError) as caught:
            read_all(flip(compressed, bit), "x.gz")
        assert caught.value.record in (0, 1)
        assert caught.value.offset is not None


def test_other_data_behind_a_gzip_stream_is_found() -> None:
    compressed = compress(frame_records(RECORDS), "gzip")
    with pytest.raises(CorruptShardError, match="gzip stream is damaged") as caught:
        read_all(compressed + b"something else", "x.gz")
    assert caught.value.record == len(RECORDS)
