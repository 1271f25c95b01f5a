"""Records to rows: the short way for records as we write them, the long way for everybody else's, the same rows."""

from collections.abc import Sequence

import numpy as np
import pytest
import tensorflow as tf

from pipeline.dataset.schema import CATEGORY_HEAD, EXAMPLE_FEATURES, INDICES, SECOND_HEAD, SEGMENTS
from pipeline.dataset.tfexample import _entries, _field
from pipeline.input_pipeline import record_parser
from pipeline.input_pipeline.record_parser import parse_rows
from tests.support.tiny_dataset import SEP, TinyExample, serialize, tiny_examples

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


def written_by_others(example: TinyExample) -> bytes:
    """Return the same record with the entries of its map in another order."""
    columns = {
        "indices": (np.array(example.indices), np.array([0, len(example.indices)])),
        "segments": (np.array(example.segments), np.array([0, len(example.indices)])),
        "label": [example.label],
        "second_label": [example.second_label],
        "key": [example.key.encode()],
    }
    return _field(1, b"".join(_entries(feature, columns[feature.name])[0] for feature in reversed(EXAMPLE_FEATURES)))


def padded(rows: Sequence[Sequence[int]], length: int) -> list[list[int]]:
    return [[*row[:length], *[0] * (length - len(row))] for row in rows]


def parse(records: Sequence[bytes], lengths: Sequence[int], padded_length: int) -> dict[str, np.ndarray]:
    rows = tf.function(parse_rows)(tf.constant(records), tf.constant(lengths), max(lengths), padded_length)
    return {name: values.numpy() for name, values in rows.items()}


@pytest.mark.parametrize("lengths", [LENGTHS, [5, 9], [129], [400, 3]])
@pytest.mark.parametrize("in_our_order", [True, False])
def test_rows_are_what_was_written(lengths: list[int], in_our_order: bool) -> None:
    examples = examples_of(lengths)
    records = serialize(examples) if in_our_order else list(map(written_by_others, examples))
    rows = parse(records, lengths, 410)
    assert {values.dtype for values in rows.values()} == {np.dtype(np.int32)}
    assert rows[INDICES].tolist() == padded([example.indices for example in examples], 410)
    assert rows[CATEGORY_HEAD].tolist() == [example.label for example in examples]
    assert rows[SECOND_HEAD].tolist() == [example.second_label for example in examples]
    assert not rows[SEGMENTS].any()


def test_only_records_as_we_write_them_take_the_short_way() -> None:
    """Otherwise the other tests would compare the long way with itself."""
    ours, others = serialize(examples_of(LENGTHS)), list(map(written_by_others, examples_of(LENGTHS)))

    def is_as_written(records: Sequence[bytes]) -> bool:
        return bool(record_parser._find_ids(tf.constant(records, tf.string))[2])

    assert is_as_written(ours)
    assert not is_as_written(others)
    assert not is_as_written([*ours, others[0]])
    assert not is_as_written([])
    assert not is_as_written([b""])
    assert not is_as_written([b"\xff" * 40])
    for position in (0, 3, 8, 15):  # a tag, a tag, a letter, the end of the name
        assert not is_as_written([ours[-1][:position] + b"\x00" + ours[-1][position + 1 :]])


def test_every_size_of_a_length_is_read() -> None:
    """Lengths of one, two and three bytes as varints, in front of the ids and of what is around them."""
    for length in (3, 40, 120, 130, 5_500, 17_000):
        (record,) = serialize(tiny_examples([length], vocab_size=2**20))
        begin, size, is_as_written = record_parser._find_ids(tf.constant([record]))
        assert bool(is_as_written)
        decoded = record_parser._decode_ids(tf.strings.substr([record], begin, size), tf.constant([length]))
        assert decoded.numpy().tolist() == [list(tiny_examples([length], vocab_size=2**20)[0].indices)]


@pytest.mark.parametrize("padded_length", [3, 128, 150, 200])
@pytest.mark.parametrize("in_our_order", [True, False])
def test_longer_rows_are_cut_before_the_last_token(padded_length: int, in_our_order: bool) -> None:
    examples = examples_of(LENGTHS)
    records = serialize(examples) if in_our_order else list(map(written_by_others, examples))
    rows = parse(records, LENGTHS, padded_length)
    cut = [
        [*example.indices[: padded_length - 1], SEP] if len(example.indices) > padded_length else example.indices
        for example in examples
    ]
    assert rows[INDICES].tolist() == padded(cut, padded_length)


def test_other_segments_than_zero_are_parsed() -> None:
    rows = parse(serialize(examples_of(LENGTHS, segment=1)), LENGTHS, 200)
    assert rows[SEGMENTS].tolist() == padded([[1] * length for length in LENGTHS], 200)


@pytest.mark.parametrize("in_our_order", [True, False])
def test_a_record_of_another_length_is_refused(in_our_order: bool) -> None:
    examples = examples_of([150, 160])
    records = serialize(examples) if in_our_order else list(map(written_by_others, examples))
    with pytest.raises(tf.errors.InvalidArgumentError, match="not the one planned here"):
        parse(records, [150, 159], 200)


def test_a_record_that_ends_early_is_refused() -> None:
    (record,) = serialize(examples_of([150]))
    # TensorFlow quotes the record, which is no text.
    with pytest.raises((tf.errors.InvalidArgumentError, tf.errors.DataLossError, UnicodeError)):
        parse([record[:100]], [150], 200)
