"""From serialized examples to rows of ids, hundreds at a time, with TensorFlow's own operations.

`tf.io.parse_example` collects packed numbers one by one, as int64, into a ragged tensor: for a row of 500 ids that
takes longer than reading the record. `tf.io.decode_proto` turns them into dense int32 rows five times as fast, but only
from a message that holds nothing else. So that message is cut out of each record first:

    0A … 0A …            an Example, its Features, the first entry of their map
      0A 07 "indices"    the entry's key
      12 … 1A …          its value, a Feature with an Int64List: cut out, 0A … and the packed ids
    …                    the other entries

`pipeline.dataset.tfexample` writes every record so. Records of another writer, who may put the entries in another
order, are told by these bytes and left to `tf.io.parse_example`; so are short rows, for which finding the message costs
what it saves.

Source: tensorflow/core/example/{example,feature}.proto; protobuf's encoding of lengths as base 128 varints.
"""

from typing import Any

import tensorflow as tf
from google.protobuf import descriptor_pb2

from pipeline.dataset.schema import EXAMPLE_FEATURES, HEAD_FEATURES, INDICES, SEGMENTS

Rows = dict[str, Any]

# What stands in front of the ids' message: each of these, then a length.
_HEADERS = (b"\x0a", b"\x0a", b"\x0a%c%s\x12" % (len(INDICES), INDICES.encode()), b"\x1a")
_LENGTH_BYTES = 4  # at most: 256 MiB
_HEAD_BYTES = sum(map(len, _HEADERS)) + len(_HEADERS) * _LENGTH_BYTES
# Where no row is longer, parsing all of it costs no more than finding the message.
_SHORT_ROW = 128


def parser_specification(names: list[str]) -> dict[str, Any]:
    """Return what `tf.io.parse_example` needs to know about some features of the schema."""
    dtypes = {"int64": tf.int64, "bytes": tf.string}
    return {
        feature.name: (
            tf.io.RaggedFeature(dtypes[feature.dtype], row_splits_dtype=tf.int32)
            if feature.shape == "ragged"
            else tf.io.FixedLenFeature([], dtypes[feature.dtype])
        )
        for feature in EXAMPLE_FEATURES
        if feature.name in names
    }


def parse_rows(records: tf.Tensor, lengths: tf.Tensor, longest: int, padded_length: int) -> Rows:
    """Parse serialized examples into rows of one length.

    Args:
        records: string [N].
        lengths: int32 [N], how many tokens each must have.
        longest: no length is larger.
        padded_length: shorter rows are padded with 0, longer ones cut.

    Returns:
        `indices` int32 [N, padded_length], `segments` the same or, if all are 0, [0, padded_length], head → int32 [N].

    Raises:
        tf.errors.InvalidArgumentError, tf.errors.DataLossError: when the graph runs: a record is no example, or has
            another length.
    """
    parsed_first = [*HEAD_FEATURES.values(), *([INDICES] if longest <= _SHORT_ROW else [])]
    parsed = tf.io.parse_example(records, parser_specification(parsed_first))
    labels = {head: tf.cast(parsed[feature], tf.int32) for head, feature in HEAD_FEATURES.items()}
    ids = _to_rows(parsed[INDICES], lengths) if INDICES in parsed else _read_ids(records, lengths)
    indices = _fit(ids, padded_length)
    if longest > padded_length:
        # What tokenizing with this max_len would have put last is what stands last: [SEP].
        last = tf.where(lengths > padded_length, tf.gather(ids, lengths - 1, batch_dims=1), indices[:, -1])
        indices = tf.concat([indices[:, :-1], last[:, tf.newaxis]], axis=1)

    # Segments come last in a record, a byte of 0 for each token of a single text. To look at these bytes costs a
    # fraction of parsing them; whatever else they are gets parsed.
    ends = tf.strings.substr(records, -lengths, lengths)
    segments = tf.cond(
        tf.reduce_all(tf.io.decode_raw(ends, tf.uint8, fixed_length=longest) == 0),
        lambda: tf.zeros([0, padded_length], tf.int32),
        lambda: _fit(_parse_numbers(records, SEGMENTS, lengths), padded_length),
    )
    return {INDICES: indices, SEGMENTS: segments, **labels}


def _read_ids(records: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
    """Read the ids of long rows, string [N], into int32 [N, longest of them], padded with 0."""
    begin, size, is_as_written = _find_ids(records)
    return tf.cond(
        is_as_written,
        lambda: _decode_ids(tf.strings.substr(records, begin, size), lengths),
        lambda: _parse_numbers(records, INDICES, lengths),
    )


def _find_ids(records: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Find the message with the ids in each record, string [N].

    Returns:
        begin: int32 [N], its first byte.
        size: int32 [N], in bytes.
        is_as_written: bool [], whether all records begin as `tfexample` writes them; if not, the others mean nothing.
    """
    head = tf.cast(tf.io.decode_raw(records, tf.uint8, fixed_length=_HEAD_BYTES), tf.int32)
    position = tf.zeros_like(head[:, 0])
    size, is_as_written = position, tf.size(records) > 0  # `tf.io.decode_proto` does not take nothing
    for header in _HEADERS:
        found = tf.gather(head, position[:, tf.newaxis] + tf.range(len(header)), batch_dims=1)
        position += len(header)
        varint = tf.gather(head, position[:, tf.newaxis] + tf.range(_LENGTH_BYTES), batch_dims=1)
        is_last = varint < 0x80
        num_bytes = tf.argmax(is_last, axis=1, output_type=tf.int32) + 1
        septets = tf.where(tf.sequence_mask(num_bytes, _LENGTH_BYTES), varint & 0x7F, 0)
        size = tf.reduce_sum(septets * [1 << 7 * place for place in range(_LENGTH_BYTES)], axis=1)
        position += num_bytes
        is_as_written &= tf.reduce_all(found == [*header]) & tf.reduce_all(tf.reduce_any(is_last, axis=1))
    return position, size, is_as_written


def _decode_ids(messages: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
    """Decode `Int64List`s, string [N], into int32 [N, longest of them], padded with 0."""
    files = descriptor_pb2.FileDescriptorSet()
    message = files.file.add(name="ids.proto", syntax="proto3").message_type.add(name="Ids")
    field = descriptor_pb2.FieldDescriptorProto
    message.field.add(name="value", number=1, label=field.LABEL_REPEATED, type=field.TYPE_INT32)
    decoded = tf.io.decode_proto(
        messages, "Ids", ["value"], [tf.int32], descriptor_source=b"bytes://" + files.SerializeToString()
    )
    with _require_lengths(decoded.sizes[:, 0], lengths):
        return tf.identity(decoded.values[0])


def _parse_numbers(records: tf.Tensor, name: str, lengths: tf.Tensor) -> tf.Tensor:
    """Parse a ragged feature of records of any writer into int32 [N, longest of them], padded with 0."""
    return _to_rows(tf.io.parse_example(records, parser_specification([name]))[name], lengths)


def _to_rows(ragged: tf.RaggedTensor, lengths: tf.Tensor) -> tf.Tensor:
    """Return a ragged int64 tensor as int32 [N, longest row], padded with 0."""
    with _require_lengths(ragged.row_lengths(), lengths):
        return tf.cast(ragged, tf.int32).to_tensor()


def _require_lengths(found: tf.Tensor, expected: tf.Tensor) -> Any:
    """Whatever is wrong with a shard or its lengths file, no row gets another record than planned."""
    return tf.control_dependencies([tf.debugging.assert_equal(found, expected, "a record is not the one planned here")])


def _fit(rows: tf.Tensor, padded_length: int) -> tf.Tensor:
    """Cut rows, int32 [N, L], or pad them with 0, to [N, padded_length]."""
    missing = padded_length - tf.shape(rows)[1]
    fitted = tf.cond(missing > 0, lambda: tf.pad(rows, [[0, 0], [0, missing]]), lambda: rows[:, :padded_length])
    return tf.ensure_shape(fitted, [None, padded_length])
