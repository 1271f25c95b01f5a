"""Parse serialized examples into rows of ids, thousands at a time, with TensorFlow's own operations."""

from collections.abc import Collection
from typing import Any

import tensorflow as tf

from pipeline.dataset.schema import EXAMPLE_FEATURES, HEAD_FEATURES, INDICES, SEGMENTS

Rows = dict[str, tf.Tensor]


def parse_features(records: tf.Tensor, names: Collection[str]) -> dict[str, Any]:
    """Parse some features of the schema out of serialized examples, string [N].

    Returns:
        Feature → tensor [N], or ragged tensor [N, None] for one value per token; int64 or string.
    """
    dtypes = {"int64": tf.int64, "bytes": tf.string}
    specification = {
        feature.name: (
            tf.io.RaggedFeature(dtypes[feature.dtype], row_splits_dtype=tf.int64)
            if feature.shape == "ragged"
            else tf.io.FixedLenFeature([], dtypes[feature.dtype])
        )
        for feature in EXAMPLE_FEATURES
        if feature.name in names
    }
    parsed: dict[str, Any] = tf.io.parse_example(records, specification)
    return parsed


def parse_rows(records: tf.Tensor, lengths: tf.Tensor, padded_length: int | tf.Tensor) -> Rows:
    """Parse serialized examples into rows of one length.

    Args:
        records: string [N].
        lengths: int32 [N], the number of tokens of each.
        padded_length: shorter rows are padded with 0, longer ones cut; the last token, [SEP], stays.

    Returns:
        `indices` and `segments` int32 [N, padded_length], head → int32 [N].

    Raises:
        tf.errors.InvalidArgumentError, tf.errors.DataLossError: when the graph runs: a record is no example, or has
            another length.
    """
    parsed = parse_features(records, [INDICES, *HEAD_FEATURES.values()])
    ids = parsed[INDICES]
    padded = _pad(ids, lengths, padded_length)

    def end_with_last_token() -> tf.Tensor:
        # Tokenizing with this max_len would have given the same last token.
        last = tf.cast(tf.gather(ids.values, ids.row_limits() - 1), tf.int32)
        column = tf.where(lengths > padded_length, last, padded[:, -1])
        return tf.concat([padded[:, :-1], column[:, tf.newaxis]], axis=1)

    # Segments come last in a record, a byte of 0 for each token of a single text. Looking at these bytes takes a sixth
    # of the time of parsing them.
    ends = tf.strings.substr(records, -lengths, lengths)
    longest = tf.reduce_max(lengths)
    all_zero = tf.reduce_all(tf.io.decode_raw(ends, tf.uint8, fixed_length=tf.maximum(longest, 1)) == 0)
    return {
        INDICES: tf.cond(tf.reduce_any(lengths > padded_length), end_with_last_token, lambda: padded),
        SEGMENTS: tf.cond(
            all_zero,
            lambda: tf.zeros_like(padded),
            lambda: _pad(parse_features(records, [SEGMENTS])[SEGMENTS], lengths, padded_length),
        ),
        **{head: tf.cast(parsed[feature], tf.int32) for head, feature in HEAD_FEATURES.items()},
    }


def _pad(ragged: tf.RaggedTensor, lengths: tf.Tensor, padded_length: int | tf.Tensor) -> tf.Tensor:
    """Return a ragged int64 tensor as int32 [N, padded_length], padded with 0 or cut."""
    # Even where a shard or its lengths file is wrong, no row gets another record than planned.
    expected = tf.cast(lengths, tf.int64)
    planned = tf.debugging.assert_equal(ragged.row_lengths(), expected, "a record is not the one planned here")
    with tf.control_dependencies([planned]):
        return tf.cast(ragged, tf.int32).to_tensor(shape=tf.stack([-1, padded_length]))
