"""Records to rows."""

from collections.abc import Sequence

import numpy as np
import pytest
import tensorflow as tf

from pipeline.dataset.schema import CATEGORY_HEAD, INDICES, SECOND_HEAD, SEGMENTS
from pipeline.input_pipeline.record_parser import parse_rows
from tests.support.tiny_dataset import SEP, TinyExample, serialize

# One, two, three and four bytes as a varint, and their neighbours; a length of one byte and of two.
IDS = [1, 127, 128, 16_383, 16_384, 2_097_151, 2_097_152, 2**28 - 1, 2**28, 2**31 - 1]
LENGTHS = [3, 10, 63, 64, 127, 128, 129, 200]


def examples_of(lengths: Sequence[int], segment: int = 0) -> list[TinyExample]:
    generator = np.random.default_rng(0)
    return [
        TinyExample(
            indices=[1, *generator.choice(IDS, length - 2).tolist(), SEP],
            label=number * 100,
            second_label=number,
            key=f"k{number}",
            segments=[segment] * length,
        )
        for number, length in enumerate(lengths)
    ]


def padded(rows: Sequence[Sequence[int]], length: int) -> list[list[int]]:
    return [[*row[:length], *[0] * (length - len(row))] for row in rows]


def parse(records: Sequence[bytes], lengths: Sequence[int], padded_length: int) -> dict[str, np.ndarray]:
    rows = tf.function(parse_rows)(tf.constant(records, tf.string), tf.constant(lengths, tf.int32), padded_length)
    return {name: values.numpy() for name, values in rows.items()}


@pytest.mark.parametrize("lengths", [LENGTHS, [5, 9], [129], [400, 3]])
def test_rows_are_the_written_ones(lengths: list[int]) -> None:
    examples = examples_of(lengths)
    rows = parse(serialize(examples), lengths, 410)
    assert {values.dtype for values in rows.values()} == {np.dtype(np.int32)}
    assert rows[INDICES].tolist() == padded([example.indices for example in examples], 410)
    assert rows[CATEGORY_HEAD].tolist() == [example.label for example in examples]
    assert rows[SECOND_HEAD].tolist() == [example.second_label for example in examples]
    assert rows[SEGMENTS].shape == rows[INDICES].shape
    assert not rows[SEGMENTS].any()


def test_no_records_are_no_rows() -> None:
    """The last workers' part of a partial batch."""
    rows = parse([], [], 8)
    assert {name: values.shape for name, values in rows.items()} == {
        INDICES: (0, 8),
        SEGMENTS: (0, 8),
        CATEGORY_HEAD: (0,),
        SECOND_HEAD: (0,),
    }


@pytest.mark.parametrize("padded_length", [3, 128, 150, 200])
def test_longer_rows_are_cut_before_the_last_token(padded_length: int) -> None:
    examples = examples_of(LENGTHS)
    rows = parse(serialize(examples), LENGTHS, padded_length)
    cut = [
        [*example.indices[: padded_length - 1], SEP] if len(example.indices) > padded_length else example.indices
        for example in examples
    ]
    assert rows[INDICES].tolist() == padded(cut, padded_length)


def test_other_segments_than_zero_are_parsed() -> None:
    rows = parse(serialize(examples_of(LENGTHS, segment=1)), LENGTHS, 200)
    assert rows[SEGMENTS].tolist() == padded([[1] * length for length in LENGTHS], 200)


def test_a_record_of_another_length_is_refused() -> None:
    with pytest.raises(tf.errors.InvalidArgumentError, match="not the one planned here"):
        parse(serialize(examples_of([150, 160])), [150, 159], 200)


def test_a_record_that_ends_early_is_refused() -> None:
    (record,) = serialize(examples_of([150]))
    # TensorFlow quotes the record, which is no text.
    with pytest.raises((tf.errors.InvalidArgumentError, tf.errors.DataLossError, UnicodeError)):
        parse([record[:100]], [150], 200)
