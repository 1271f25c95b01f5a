"""The reader on real dataset directories: what is delivered, in which order, and what is said about damaged ones."""

import dataclasses
import gc
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from pipeline.dataset.info import DATASET_INFO_NAME, DatasetInfo, read_dataset_info
from pipeline.dataset.schema import CATEGORY_HEAD, INDICES, LABEL, SECOND_HEAD, SEGMENTS
from pipeline.dataset.tfexample import frame_records
from pipeline.errors import CorruptShardError, EmptySplitError, MissingInputError, OptionError, SchemaMismatchError
from pipeline.input_pipeline import reader as input_pipeline
from pipeline.input_pipeline.batch_plan import BatchOptions, plan_batches
from pipeline.input_pipeline.epoch_plan import plan_evaluation, plan_training_epoch, plan_windows
from pipeline.input_pipeline.reader import (
    TrainReader,
    eval_dataset,
    explain_read_errors,
    mask_partial_batches,
    read_batches,
    read_keys,
    train_dataset,
)
from pipeline.input_pipeline.stored_split import open_split
from tests.support.tiny_dataset import SEP, TinyExample, serialize, tiny_examples, write_tiny_dataset

MAX_LEN = 24
NUM_TRAIN, NUM_DEV = 211, 37

Row = tuple[tuple[int, ...], int, int]


def random_lengths(count: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(3, MAX_LEN + 1, count).tolist()


def examples_of(count: int, seed: int = 0) -> list[TinyExample]:
    return tiny_examples(random_lengths(count, seed), seed=seed)


def write_dataset(directory: Path, compression: str) -> Path:
    """Two lanes for training; the splits have sizes that nothing divides."""
    splits = {"train": examples_of(NUM_TRAIN), "dev": examples_of(NUM_DEV, seed=1)}
    num_shards = {"train": 9, "dev": 2}
    write_tiny_dataset(directory, splits, max_len=MAX_LEN, num_shards=num_shards, compression=compression)
    return directory


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("dataset") / "d", "none")


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A dataset to damage: three shards of ten examples."""
    write_tiny_dataset(tmp_path / "small", {"train": examples_of(30)}, max_len=MAX_LEN, num_shards=3)
    return tmp_path / "small"


def rows_of(inputs: dict, labels: dict) -> list[Row]:
    """Return (tokens without padding, category, second) for each row of a batch."""
    tokens = [tuple(row[row != 0].tolist()) for row in inputs[INDICES].numpy()]
    return list(zip(tokens, labels[CATEGORY_HEAD].numpy().tolist(), labels[SECOND_HEAD].numpy().tolist(), strict=True))


def batches_of(dataset: Iterable) -> list[list[Row]]:
    return [rows_of(inputs, labels) for inputs, labels in dataset]


def stored_rows(examples: list[TinyExample]) -> list[Row]:
    return [(tuple(example.indices), example.label, example.second_label) for example in examples]


def read_with(data_dir: Path, options: BatchOptions, *, window_records: int, **part: int) -> list[list[Row]]:
    """Read with windows so small that rows have to wait for later ones."""
    stored = open_split(str(data_dir), "train")
    plan = plan_training_epoch(
        plan_batches(stored.length_histogram, options),
        lengths=stored.lengths,
        shard_sizes=stored.shard_sizes,
        seed=0,
        epoch=0,
        window_records=window_records,
    )
    return batches_of(read_batches(stored, plan, plan_windows(plan, **part)))


# Delivery


def test_elements_are_what_the_design_promises(dataset: Path) -> None:
    inputs, labels = next(iter(train_dataset(str(dataset), 8)))
    assert set(inputs) == {"indices", "segments"}
    assert set(labels) == {"category", "second"}
    assert {tensor.dtype for tensor in (*inputs.values(), *labels.values())} == {tf.int32}
    assert inputs["indices"].shape == inputs["segments"].shape
    assert inputs["indices"].shape[0] == labels["category"].shape[0] == labels["second"].shape[0] == 8
    assert not inputs["segments"].numpy().any()


def test_batches_are_the_planned_ones(dataset: Path) -> None:
    info = read_dataset_info(str(dataset))
    plan = plan_batches(info.split("train").length_histogram, BatchOptions(global_batch_size=8))
    delivered = train_dataset(str(dataset), 8)
    assert delivered.cardinality().numpy() == plan.steps_per_epoch
    shapes = [tuple(inputs[INDICES].shape) for inputs, _ in delivered]
    assert len(shapes) == plan.steps_per_epoch
    assert sum(rows * length for rows, length in shapes) == plan.num_positions
    assert {length for _, length in shapes} <= set(plan.edges)
    assert all(rows == 8 for rows, _ in shapes[:-1])


@pytest.mark.parametrize(
    "options",
    [
        BatchOptions(global_batch_size=8),
        BatchOptions(global_batch_size=8, buckets="off"),
        BatchOptions(global_batch_size=8, buckets=(10, 17)),
        BatchOptions(batch_tokens=100, batch_multiple=2),
    ],
)
@pytest.mark.parametrize("window_records", [16, 1000])
def test_every_example_once_with_its_labels(dataset: Path, options: BatchOptions, window_records: int) -> None:
    batches = read_with(dataset, options, window_records=window_records)
    assert sorted(itertools.chain(*batches)) == sorted(stored_rows(examples_of(NUM_TRAIN)))


def test_compressed_shards_give_the_same_batches(dataset: Path, tmp_path: Path) -> None:
    compressed = write_dataset(tmp_path / "gzip", "gzip")
    assert batches_of(train_dataset(str(compressed), 8)) == batches_of(train_dataset(str(dataset), 8))
    assert read_keys(str(compressed), "dev") == read_keys(str(dataset), "dev")


def test_without_buckets_every_batch_is_padded_to_max_len(dataset: Path) -> None:
    delivered = train_dataset(str(dataset), 8, buckets="off")
    assert {inputs[INDICES].shape[1] for inputs, _ in delivered} == {MAX_LEN}


def test_training_continues_at_any_step(dataset: Path) -> None:
    whole = batches_of(train_dataset(str(dataset), 8, seed=1, epoch=2))
    for start_step in (1, 13, len(whole) - 1, len(whole)):
        rest = train_dataset(str(dataset), 8, seed=1, epoch=2, start_step=start_step)
        assert batches_of(rest) == whole[start_step:]


def test_a_reader_delivers_any_epoch_from_any_step_with_one_tracing(dataset: Path) -> None:
    stored = open_split(str(dataset), "train")
    num_traced = 0

    def count(batches: tf.data.Dataset) -> tf.data.Dataset:
        nonlocal num_traced
        num_traced += 1
        return batches

    batches = plan_batches(stored.length_histogram, BatchOptions(global_batch_size=8))
    reader = TrainReader(stored, batches, seed=1, transform=count)
    for epoch, start_step in ((0, 0), (1, 3), (7, 0), (1, 0)):
        expected = train_dataset(str(dataset), 8, seed=1, epoch=epoch, start_step=start_step)
        assert batches_of(reader.epoch(epoch, start_step)) == batches_of(expected)
    assert num_traced == 1


def test_epochs_of_a_reader_do_not_disturb_each_other(dataset: Path) -> None:
    """Each reads its own plan, though both are read at the same time."""
    stored = open_split(str(dataset), "train")
    batches = plan_batches(stored.length_histogram, BatchOptions(global_batch_size=8))
    reader = TrainReader(stored, batches)
    alone = [batches_of(reader.epoch(epoch)) for epoch in range(2)]
    pairs = list(zip(reader.epoch(0), reader.epoch(1), strict=True))
    assert [rows_of(*first) for first, _ in pairs] == alone[0]
    assert [rows_of(*second) for _, second in pairs] == alone[1]


@pytest.mark.parametrize("num_taken", [0, 3, None])
def test_a_reader_may_go_at_any_time(dataset: Path, num_taken: int | None) -> None:
    """Its iterator waits for another plan, or still reads, when the garbage collector finds it."""
    stored = open_split(str(dataset), "train")
    reader = TrainReader(stored, plan_batches(stored.length_histogram, BatchOptions(global_batch_size=8)))
    taken = list(itertools.islice(reader.epoch(0), num_taken))
    cycle: list[object] = [reader]
    cycle.append(cycle)
    del reader, cycle

    @tf.function
    def collect() -> tf.Tensor:
        gc.collect()
        return tf.constant(1)

    # Nothing of the reader gets into the graph that is traced at that time.
    assert int(collect()) == 1
    assert {operation.type for operation in collect.get_concrete_function().graph.get_operations()} <= {
        "Const",
        "Identity",
    }
    assert num_taken is None or len(taken) == num_taken


def test_training_continues_inside_small_windows(dataset: Path) -> None:
    options = BatchOptions(global_batch_size=4)
    whole = read_with(dataset, options, window_records=16)
    for start_step in (1, 9, 30):
        assert read_with(dataset, options, window_records=16, start_step=start_step) == whole[start_step:]


def shapes_of(dataset: tf.data.Dataset) -> list[tuple[int, int]]:
    """Return (rows, padded length) of each batch, which all its tensors agree on."""
    shapes = []
    for inputs, labels in dataset:
        (shape,) = {tuple(tensor.shape) for tensor in inputs.values()}
        assert {tuple(tensor.shape) for tensor in labels.values()} == {shape[:1]}
        shapes.append(shape)
    return shapes


@pytest.mark.parametrize("num_workers", [2, 4])
@pytest.mark.parametrize("split", ["train", "dev"])
def test_workers_divide_the_same_global_batches(dataset: Path, split: str, num_workers: int) -> None:
    """Row for row, and padded alike: workers whose lengths differ would wait for each other in every step."""

    def read(**part: Any) -> tf.data.Dataset:
        if split == "train":
            return train_dataset(str(dataset), 8, start_step=2, **part)
        return eval_dataset(str(dataset), split, 8, **part)

    workers = range(num_workers)
    whole = read()
    parts = [read(num_workers=num_workers, worker_index=worker) for worker in workers]
    joined = [list(itertools.chain(*batch)) for batch in zip(*map(batches_of, parts), strict=True)]
    assert joined == batches_of(whole)
    shapes = shapes_of(whole)
    assert len({length for _, length in shapes}) > 1, "where there is one length, nothing is compared"
    for (num_rows, length), *found in zip(shapes, *map(shapes_of, parts), strict=True):
        share = 8 // num_workers
        assert found == [(min(max(num_rows - worker * share, 0), share), length) for worker in workers]


@pytest.mark.parametrize("num_replicas", [2, 4])
def test_replicas_get_the_same_global_batches(dataset: Path, num_replicas: int) -> None:
    whole = train_dataset(str(dataset), 8)
    replicated = train_dataset(str(dataset), 8, batch_multiple=num_replicas)
    assert batches_of(replicated) == batches_of(whole)
    shapes = shapes_of(replicated)
    assert shapes == shapes_of(whole)
    assert all(num_rows % num_replicas == 0 for num_rows, _ in shapes[:-1])


def test_the_order_depends_on_seed_and_epoch_alone(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = batches_of(train_dataset(str(dataset), 8, seed=5, epoch=1))
    # Another autotuning budget, another machine.
    options = input_pipeline.read_options()
    options.autotune.enabled = False
    options.threading.private_threadpool_size = 1
    monkeypatch.setattr(input_pipeline, "read_options", lambda: options)
    assert batches_of(train_dataset(str(dataset), 8, seed=5, epoch=1)) == first
    assert batches_of(train_dataset(str(dataset), 8, seed=5, epoch=2)) != first
    assert batches_of(train_dataset(str(dataset), 8, seed=6, epoch=1)) != first


# Lengths and segments


@pytest.mark.parametrize("max_len", [3, 10, 23, 24])
def test_cutting_gives_what_tokenizing_with_that_max_len_gives(dataset: Path, max_len: int) -> None:
    def cut(row: Row) -> Row:
        tokens = row[0]
        return (tokens if len(tokens) <= max_len else (*tokens[: max_len - 1], SEP), *row[1:])

    batches = batches_of(train_dataset(str(dataset), 8, max_len=max_len))
    assert sorted(itertools.chain(*batches)) == sorted(cut(row) for row in stored_rows(examples_of(NUM_TRAIN)))
    evaluated = batches_of(eval_dataset(str(dataset), "dev", 8, max_len=max_len))
    assert list(itertools.chain(*evaluated)) == [cut(row) for row in stored_rows(examples_of(NUM_DEV, seed=1))]


def test_segments_other_than_zero_are_delivered_with_their_rows(tmp_path: Path) -> None:
    examples = [
        # One in three has a second segment; id 300 needs two bytes.
        dataclasses.replace(example, segments=[0] * 2 + [300 if number % 6 else 1] * (len(example.indices) - 2))
        if number % 3 == 0
        else example
        for number, example in enumerate(examples_of(90))
    ]
    # The last shards hold zeros only, so pools come with and without.
    examples.sort(key=lambda example: example.segments is None)
    write_tiny_dataset(tmp_path / "d", {"train": examples}, max_len=MAX_LEN, num_shards=9)
    expected = {tuple(example.indices): list(example.segments or [0] * len(example.indices)) for example in examples}
    stored = open_split(str(tmp_path / "d"), "train")
    plan = plan_evaluation(
        lengths=stored.lengths, shard_sizes=[10] * 9, max_len=MAX_LEN, global_batch_size=4, window_records=12
    )
    seen = 0
    for inputs, _ in read_batches(stored, plan, plan_windows(plan)):
        for indices, segments in zip(inputs[INDICES].numpy(), inputs[SEGMENTS].numpy(), strict=True):
            tokens = tuple(indices[indices != 0].tolist())
            assert segments.tolist() == expected[tokens] + [0] * (len(indices) - len(tokens))
            seen += 1
    assert seen == 90


# Evaluation


@pytest.mark.parametrize("batch_size", [1, 8, 37, 64])
def test_evaluation_is_in_stored_order_and_drops_nothing(dataset: Path, batch_size: int) -> None:
    batches = batches_of(eval_dataset(str(dataset), "dev", batch_size))
    assert [len(batch) for batch in batches[:-1]] == [batch_size] * (
        NUM_DEV // batch_size - (NUM_DEV % batch_size == 0)
    )
    assert list(itertools.chain(*batches)) == stored_rows(examples_of(NUM_DEV, seed=1))


def test_keys_are_in_the_order_of_evaluation(dataset: Path) -> None:
    assert read_keys(str(dataset), "dev") == [f"document:{number}" for number in range(NUM_DEV)]


@pytest.mark.parametrize("num_workers", [1, 2, 4])
def test_masked_evaluation_counts_every_example_once(dataset: Path, num_workers: int) -> None:
    rows: list[Row] = []
    parts = [
        list(
            mask_partial_batches(
                eval_dataset(str(dataset), "dev", 8, num_workers=num_workers, worker_index=worker), 8 // num_workers
            )
        )
        for worker in range(num_workers)
    ]
    for batch in zip(*parts, strict=True):
        for inputs, labels, weights in batch:
            assert inputs[INDICES].shape[0] == weights.shape[0] == 8 // num_workers
            assert weights.dtype == tf.float32
            # A row that was filled in still has tokens to look at.
            assert (inputs[INDICES].numpy() != 0).any(axis=1).all()
            rows += [row for row, weight in zip(rows_of(inputs, labels), weights.numpy(), strict=True) if weight == 1]
    assert rows == stored_rows(examples_of(NUM_DEV, seed=1))


def test_masking_knows_the_full_size_of_each_length(dataset: Path) -> None:
    info = read_dataset_info(str(dataset))
    options = BatchOptions(batch_tokens=100, batch_multiple=2)
    plan = plan_batches(info.split("train").length_histogram, options)
    batches = train_dataset(str(dataset), batch_tokens=100, batch_multiple=2)
    total = 0
    for inputs, _, weights in mask_partial_batches(batches, plan.full_rows()):
        assert weights.shape[0] == inputs[INDICES].shape[0] == plan.full_rows()[inputs[INDICES].shape[1]]
        assert inputs[INDICES].shape[0] * inputs[INDICES].shape[1] <= 100
        total += int(weights.numpy().sum())
    assert total == NUM_TRAIN


# Damage


def consume(data_dir: Path) -> None:
    with explain_read_errors(str(data_dir), "train"):
        for _ in train_dataset(str(data_dir), 8):
            pass


def shard(data_dir: Path, index: int) -> Path:
    return data_dir / f"train-{index:05d}-of-00003.tfrecord"


def describe_again(data_dir: Path, index: int, **changes: Any) -> None:
    """Make `dataset.json` agree with a shard that was replaced, but for what the test is about."""
    info = read_dataset_info(str(data_dir))
    split = info.splits["train"]
    shards = list(split.shards)
    path = data_dir / shards[index].name
    content = path.read_bytes()
    shards[index] = dataclasses.replace(
        type(shards[index]).of(path.name, shards[index].num_examples, content), **changes
    )
    write_info(data_dir, dataclasses.replace(info, splits={"train": dataclasses.replace(split, shards=tuple(shards))}))


def write_info(data_dir: Path, info: DatasetInfo) -> None:
    (data_dir / DATASET_INFO_NAME).write_text(info.to_json(), encoding="utf-8")


def offset_of(records: list[bytes], number: int) -> int:
    return sum(len(record) + 16 for record in records[:number])


def test_a_missing_shard_is_refused_before_reading(small: Path) -> None:
    shard(small, 1).unlink()
    with pytest.raises(CorruptShardError, match=r"train-00001-of-00003.*not there"):
        train_dataset(str(small), 8)


def test_a_truncated_shard_is_refused_before_reading(small: Path) -> None:
    content = shard(small, 2).read_bytes()
    shard(small, 2).write_bytes(content[:-1])
    with pytest.raises(
        CorruptShardError, match=rf"train-00002.*expected {len(content):,} bytes, got {len(content) - 1:,}"
    ):
        train_dataset(str(small), 8)


def test_a_changed_lengths_file_is_refused_before_reading(small: Path) -> None:
    path = small / "train-lengths.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptShardError, match=r"train-lengths\.npy.*checksum"):
        train_dataset(str(small), 8)


def test_a_foreign_schema_is_refused_before_reading(small: Path) -> None:
    path = small / DATASET_INFO_NAME
    path.write_text(path.read_text(encoding="utf-8").replace('"fingerprint": "', '"fingerprint": "0'), encoding="utf-8")
    with pytest.raises(SchemaMismatchError, match="another schema"):
        train_dataset(str(small), 8)


def test_what_is_no_dataset_or_has_no_such_split_is_refused(small: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="no such dataset"):
        train_dataset(str(tmp_path / "nothing"), 8)
    with pytest.raises(EmptySplitError, match="'dev'"):
        eval_dataset(str(small), "dev")


def test_a_larger_max_len_than_stored_is_refused_with_both_numbers(small: Path) -> None:
    with pytest.raises(OptionError, match=r"25.*24"):
        train_dataset(str(small), max_len=25)
    with pytest.raises(OptionError, match=r"25.*24"):
        eval_dataset(str(small), "train", max_len=25)


@pytest.mark.parametrize("number", [0, 4, 9])
def test_a_flipped_bit_is_located(small: Path, number: int) -> None:
    records = serialize(examples_of(30))[10:20]
    offset = offset_of(records, number)
    content = bytearray(shard(small, 1).read_bytes())
    content[offset + 12 + len(records[number]) // 2] ^= 1
    shard(small, 1).write_bytes(content)
    with pytest.raises(CorruptShardError, match="content does not match") as caught:
        consume(small)
    assert Path(caught.value.path).name == shard(small, 1).name
    assert (caught.value.record, caught.value.offset) == (number, offset)


def test_a_cut_inside_a_record_is_located_where_the_size_was_not_told(small: Path) -> None:
    records = serialize(examples_of(30))[:10]
    shard(small, 0).write_bytes(shard(small, 0).read_bytes()[:-5])
    describe_again(small, 0)
    with pytest.raises(CorruptShardError, match="ends inside the record") as caught:
        consume(small)
    assert (caught.value.record, caught.value.offset) == (9, offset_of(records, 9))


@pytest.mark.parametrize("count", [9, 11])
def test_another_number_of_records_is_found(small: Path, count: int) -> None:
    records = serialize(examples_of(31))[:count]
    shard(small, 0).write_bytes(frame_records(records))
    describe_again(small, 0)
    with pytest.raises(CorruptShardError, match=rf"train-00000.*expected 10 records.*got {count}"):
        consume(small)


def test_records_of_another_order_are_found(small: Path) -> None:
    records = serialize(examples_of(30))[:10]
    shard(small, 0).write_bytes(frame_records(records[::-1]))
    describe_again(small, 0)
    with pytest.raises(CorruptShardError, match=r"train-00000.*record 0 at byte 0.*'indices'"):
        consume(small)


def test_a_record_without_a_feature_is_located(small: Path) -> None:
    records = serialize(examples_of(30))[:10]
    example = tf.train.Example.FromString(records[3])
    del example.features.feature[LABEL]
    records[3] = example.SerializeToString()
    shard(small, 0).write_bytes(frame_records(records))
    describe_again(small, 0)
    with pytest.raises(CorruptShardError, match=r"expected 1 value of feature 'label', got 0") as caught:
        consume(small)
    assert (caught.value.record, caught.value.offset) == (3, offset_of(records, 3))


def test_a_record_that_is_no_example_is_located(small: Path) -> None:
    """Well framed, but cut; its bytes are no text, which makes an exception of Python out of TensorFlow's own."""
    records = serialize(examples_of(30))[:10]
    records[4] = records[4][:40] + b"\xff"
    shard(small, 0).write_bytes(frame_records(records))
    describe_again(small, 0)
    with pytest.raises(CorruptShardError) as caught:
        consume(small)
    assert (caught.value.record, caught.value.offset) == (4, offset_of(records, 4))


def test_segments_of_another_length_are_located(small: Path) -> None:
    examples = examples_of(30)[:10]
    records = serialize(examples)
    example = tf.train.Example.FromString(records[2])
    example.features.feature[SEGMENTS].int64_list.value.append(0)
    records[2] = example.SerializeToString(deterministic=True)
    # One byte more of zeros looks like nothing but zeros, which is what the model gets.
    assert records[2].endswith(b"\0" * len(examples[2].indices))
    example.features.feature[SEGMENTS].int64_list.value[-1] = 1
    records[2] = example.SerializeToString(deterministic=True)
    shard(small, 0).write_bytes(frame_records(records))
    describe_again(small, 0)
    with pytest.raises(CorruptShardError, match="'segments'") as caught:
        consume(small)
    assert caught.value.record == 2


def test_errors_that_no_shard_explains_stay_what_they_are(small: Path) -> None:
    with pytest.raises(tf.errors.InvalidArgumentError, match="of the model"), explain_read_errors(str(small), "train"):
        raise tf.errors.InvalidArgumentError(None, None, "an error of the model")
