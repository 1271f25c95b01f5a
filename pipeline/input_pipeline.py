"""Stream a dataset directory into training and evaluation: the only place where `pipeline` uses TensorFlow.

`train_dataset` and `eval_dataset` deliver batches such as, for two examples padded to 8 positions:

    {"indices":  int32 [[101, 3189, 3315, 7339, 1932, 1094, 102,   0],
                        [101, 5500, 2356, 1920, 3885,  102,   0,   0]],
     "segments": int32 [[0, 0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 0]]},
    {"category": int32 [2, 7], "second": int32 [1, 0]}

Everything about an epoch is planned before (`pipeline.epoch_plan`); what is left to do here is to read records in large
blocks, to keep those that a later batch needs, and to parse the others a few hundred at a time. No step of it handles a
single example.

    lanes of shards ─▶ windows of serialized records ─▶ pools ─▶ chunks, parsed ─▶ batches, padded once
"""

import contextlib
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from pipeline import filesystem
from pipeline.batch_plan import BatchOptions, BatchPlan, Buckets, plan_batches, resolve_max_len
from pipeline.dataset_info import DatasetInfo, check_files, read_dataset_info, read_lengths
from pipeline.epoch_plan import EpochPlan, Route, plan_evaluation, plan_route, plan_training_epoch
from pipeline.schema import EXAMPLE_FEATURES, HEAD_FEATURES, INDICES, KEY, SEGMENTS

# One call of the parser costs a third of a millisecond whatever it parses, so it gets the rows of several batches.
CHUNK_ROWS = 512
# Per lane. Local disks do not care; object stores charge for every request.
READ_BUFFER_BYTES = 1 << 20
# A share of the machine that leaves the rest to the model: about four windows and a few parsed chunks.
RAM_BUDGET_BYTES = 512 << 20
# Lengths are stored as uint16.
MAX_STORED_LENGTH = (1 << 16) - 1

Batch = tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]


def read_options() -> tf.data.Options:
    """Return the options every dataset here is read with, each set on purpose."""
    options = tf.data.Options()
    # The order is promised; parallel stages wait for their turn.
    options.deterministic = True
    # Parallelism follows the machine and what the model leaves of it, inside a fixed amount of memory.
    options.autotune.enabled = True
    options.autotune.ram_budget = RAM_BUDGET_BYTES
    # Batches are handled side by side already; splitting single operations as well only makes threads wait.
    options.threading.max_intra_op_parallelism = 1
    # Reading starts when the iterator is made, so the first batch is ready when the model has been compiled.
    options.experimental_warm_start = True
    # It would delay the refill of the last buffer to the middle of a step, and assumes that buffer to be the last stage.
    options.experimental_slack = False
    # Workers divide each global batch (`worker_index`); shards divided among them would change the batches.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return options


def train_dataset(
    data_dir: str,
    global_batch_size: int = 32,
    max_len: int | None = None,
    buckets: Buckets = "auto",
    seed: int = 0,
    epoch: int = 0,
    start_step: int = 0,
    *,
    split: str = "train",
    batch_tokens: int | None = None,
    batch_multiple: int = 1,
    num_workers: int = 1,
    worker_index: int = 0,
) -> tf.data.Dataset:
    """Stream one epoch of training batches, every example exactly once.

    The order is a pure function of (dataset, options, seed, epoch), whatever the number of replicas and workers, and
    `start_step` continues inside it: records before it are read past, not parsed.

    Args:
        data_dir: a dataset directory, local or remote.
        global_batch_size: examples per batch, over all workers; the last batch may hold fewer.
        max_len: shorter than the dataset's: examples are cut to what tokenizing with it would have given.
        buckets: `auto`, `off` (pad everything to `max_len`) or the padded lengths.
        seed, epoch: decide the order.
        start_step: batches of this epoch that are done already.
        split: which split.
        batch_tokens: positions per batch instead of examples per batch.
        batch_multiple: what a full batch must be a multiple of, the number of replicas.
        num_workers, worker_index: which contiguous part of each global batch to deliver.

    Returns:
        `steps_per_epoch - start_step` elements, (`{"indices": int32 [B, L], "segments": int32 [B, L]}`, head → int32 [B]).

    Raises:
        OptionError: an option, or a combination, that cannot be used.
        MissingInputError, SchemaMismatchError, EmptySplitError, CorruptShardError: the dataset cannot be read.
    """
    options = BatchOptions(
        global_batch_size=global_batch_size,
        max_len=max_len,
        buckets=buckets,
        batch_tokens=batch_tokens,
        batch_multiple=batch_multiple,
    )
    info = read_dataset_info(data_dir)
    check_files(data_dir, info, split)
    lengths = read_lengths(data_dir, info, split)
    plan = plan_training_epoch(
        plan_batches(info.split(split).length_histogram, info.max_len, options),
        lengths,
        [shard.num_examples for shard in info.split(split).shards],
        seed=seed,
        epoch=epoch,
    )
    route = plan_route(plan, start_step=start_step, num_workers=num_workers, worker_index=worker_index)
    return read_batches(data_dir, info, split, plan, route, lengths)


def eval_dataset(
    data_dir: str,
    split: str = "dev",
    global_batch_size: int = 64,
    max_len: int | None = None,
    *,
    num_workers: int = 1,
    worker_index: int = 0,
) -> tf.data.Dataset:
    """Stream a split in stored order, every example exactly once; the last batch may hold fewer rows.

    Row i of the split is entry i of `read_keys`. For several replicas, `mask_partial_batches` makes all batches whole.

    Args:
        data_dir: a dataset directory, local or remote.
        split: which split.
        global_batch_size: examples per batch, over all workers.
        max_len: shorter than the dataset's: examples are cut to what tokenizing with it would have given.
        num_workers, worker_index: which contiguous part of each global batch to deliver.

    Returns:
        ceil(examples / global_batch_size) elements, as `train_dataset`'s.

    Raises:
        OptionError: an option, or a combination, that cannot be used.
        MissingInputError, SchemaMismatchError, EmptySplitError, CorruptShardError: the dataset cannot be read.
    """
    options = BatchOptions(global_batch_size=global_batch_size, max_len=max_len)
    info = read_dataset_info(data_dir)
    check_files(data_dir, info, split)
    lengths = read_lengths(data_dir, info, split)
    plan = plan_evaluation(
        lengths,
        [shard.num_examples for shard in info.split(split).shards],
        max_len=resolve_max_len(options.max_len, info.max_len),
        global_batch_size=options.global_batch_size,
    )
    route = plan_route(plan, num_workers=num_workers, worker_index=worker_index)
    return read_batches(data_dir, info, split, plan, route, lengths)


def read_keys(data_dir: str, split: str) -> list[str]:
    """Return the key of every example in stored order, which is `eval_dataset`'s.

    Raises:
        MissingInputError, SchemaMismatchError, EmptySplitError, CorruptShardError: the dataset cannot be read.
    """
    info = read_dataset_info(data_dir)
    check_files(data_dir, info, split)
    specification = {KEY: tf.io.FixedLenFeature([], tf.string)}
    paths = [filesystem.join(str(data_dir), shard.name) for shard in info.split(split).shards]
    dataset = tf.data.TFRecordDataset(paths, _compression(info), READ_BUFFER_BYTES).batch(CHUNK_ROWS)
    dataset = dataset.map(lambda records: tf.io.parse_example(records, specification)[KEY], tf.data.AUTOTUNE)
    return [key.decode() for chunk in dataset.with_options(read_options()).as_numpy_iterator() for key in chunk]


def mask_partial_batches(dataset: tf.data.Dataset, full_rows: int | Mapping[int, int]) -> tf.data.Dataset:
    """Fill every batch up to its full size, with a weight that says which rows are real.

    Args:
        dataset: elements (x, y) of at most `full_rows` rows.
        full_rows: rows of a full batch, or padded length → rows (`BatchPlan.full_rows`).

    Returns:
        Elements (x, y, weights float32 [B]); rows that were filled in have weight 0, the token id 1 everywhere (so that
        no softmax over positions is empty) and label 0.
    """
    if isinstance(full_rows, Mapping):
        lengths = tf.constant(list(full_rows))
        rows = tf.constant(list(full_rows.values()))
    else:
        lengths, rows = None, tf.constant(full_rows)

    def mask(inputs: dict[str, tf.Tensor], labels: dict[str, tf.Tensor]) -> tuple[Any, Any, tf.Tensor]:
        shape = tf.shape(inputs[INDICES])
        full = rows if lengths is None else tf.boolean_mask(rows, lengths == shape[1])[0]
        missing = full - shape[0]
        inputs = {
            name: tf.pad(values, [[0, missing], [0, 0]], constant_values=1 if name == INDICES else 0)
            for name, values in inputs.items()
        }
        labels = {head: tf.pad(values, [[0, missing]]) for head, values in labels.items()}
        return inputs, labels, tf.cast(tf.range(full) < shape[0], tf.float32)

    return dataset.map(mask, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


def split_for_replicas(dataset: tf.data.Dataset, num_replicas: int) -> tf.data.Dataset:
    """Cut every (whole) batch into contiguous parts, consecutive elements, one for each replica of this worker."""
    if num_replicas == 1:
        return dataset

    def cut(values: tf.Tensor) -> tf.Tensor:
        return tf.reshape(values, tf.concat([[num_replicas, -1], tf.shape(values)[1:]], axis=0))

    return dataset.flat_map(lambda *batch: tf.data.Dataset.from_tensor_slices(tf.nest.map_structure(cut, batch)))


def _compression(info: DatasetInfo) -> str:
    return {"none": "", "gzip": "GZIP"}[info.compression]


def read_batches(
    data_dir: str, info: DatasetInfo, split: str, plan: EpochPlan, route: Route, lengths: np.ndarray
) -> tf.data.Dataset:
    """Carry out a plan: read the shards' records and deliver the route's batches.

    Args:
        data_dir, info, split: what to read.
        plan: of the whole epoch.
        route: which of its rows, from which step on.
        lengths: uint16 [num_examples], in stored order; every record parsed is compared with its length here.

    Returns:
        One element per batch of the route, as `train_dataset`'s.
    """
    pools = _carry_records(_read_windows(data_dir, info, split, plan), route)
    chunks = _parse_chunks(pools, route, lengths[route.examples].astype(np.int32), plan.max_len)
    batches = _slice_batches(chunks, route, plan)
    batches = batches.apply(tf.data.experimental.assert_cardinality(len(route.batch_lengths)))
    return batches.prefetch(tf.data.AUTOTUNE).with_options(read_options())


def _read_windows(data_dir: str, info: DatasetInfo, split: str, plan: EpochPlan) -> tf.data.Dataset:
    """Read the stream: one element for each window, a tuple of one block of serialized records for each lane."""
    shards = info.split(split).shards
    no_record = tf.data.Dataset.from_tensors(tf.zeros([0], tf.string))

    def read_lane(lane: tuple[int, ...]) -> tf.data.Dataset:
        paths = [filesystem.join(str(data_dir), shards[shard].name) for shard in lane]
        records = tf.data.TFRecordDataset(paths, _compression(info), READ_BUFFER_BYTES)
        # A record too many or too few would give all later rows of this lane the wrong records.
        num_records = sum(shards[shard].num_examples for shard in lane)
        records = records.apply(tf.data.experimental.assert_cardinality(num_records))
        # Lanes end at different windows. Each reads ahead by itself.
        return records.batch(plan.block_records).concatenate(no_record.repeat()).prefetch(1)

    return tf.data.Dataset.zip(tuple(read_lane(lane) for lane in plan.lanes))


def _carry_records(windows: tf.data.Dataset, route: Route) -> tf.data.Dataset:
    """Join each window with what the windows before left for later steps: (pool of records string [P], its chunks)."""
    kept = tf.constant(route.kept)

    def join(waiting: tf.Tensor, element: tuple[Any, ...]) -> tuple[tf.Tensor, tuple[tf.Tensor, tf.Tensor]]:
        start, size, num_chunks, blocks = element
        pool = tf.concat([waiting, *blocks], axis=0)
        return tf.gather(pool, tf.slice(kept, start, size)), (pool, num_chunks)

    planned = tf.data.Dataset.from_tensor_slices(
        (route.kept_splits[:-1, None], np.diff(route.kept_splits)[:, None], route.window_chunks.astype(np.int64))
    )
    elements = tf.data.Dataset.zip((planned, windows)).map(lambda plan, blocks: (*plan, blocks))
    return elements.scan(tf.zeros([0], tf.string), join).prefetch(1)


def _parse_chunks(pools: tf.data.Dataset, route: Route, row_lengths: np.ndarray, max_len: int) -> tf.data.Dataset:
    """Parse the rows of a few batches at once.

    Args:
        pools: (string [P], number of chunks) for each window.
        route: which record of the pool makes which row.
        row_lengths: int32 [rows], the stored length of each row of the route.
        max_len: longer rows are cut.

    Returns:
        (rows padded to the longest of these batches, number of batches) for each chunk.
    """
    places, lengths = tf.constant(route.places), tf.constant(row_lengths)
    has_cut_rows = bool((row_lengths > max_len).any())

    def parse(chunk: tuple[tf.Tensor, ...], pool: tf.Tensor) -> tuple[Batch, tf.Tensor]:
        start, size, padded_length, num_batches = chunk
        records = tf.gather(pool, tf.slice(places, start, size))
        batch = _parse(records, tf.slice(lengths, start, size), padded_length, has_cut_rows=has_cut_rows)
        return batch, num_batches

    splits = route.chunk_splits
    first_rows = route.row_splits[splits]
    planned = tf.data.Dataset.from_tensor_slices(
        (
            first_rows[:-1, None],
            np.diff(first_rows)[:, None],
            np.maximum.reduceat(route.batch_lengths, splits[:-1]) if len(splits) > 1 else route.batch_lengths,
            np.diff(splits).astype(np.int64),
        )
    )
    # A pool goes along by reference, once for each of its chunks.
    pools = pools.flat_map(lambda pool, num_chunks: tf.data.Dataset.from_tensors(pool).repeat(num_chunks))
    return tf.data.Dataset.zip((planned, pools)).map(parse, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


def _parse(records: tf.Tensor, lengths: tf.Tensor, padded_length: tf.Tensor, *, has_cut_rows: bool) -> Batch:
    """Parse serialized examples into rows of one length.

    Args:
        records: string [N].
        lengths: int32 [N], how many tokens each must have.
        padded_length: shorter rows are padded with 0, longer ones cut.
        has_cut_rows: whether there may be longer ones; then `padded_length` is `max_len`.
    """
    parsed = tf.io.parse_example(records, _parser_specification([INDICES, *HEAD_FEATURES.values()]))

    def dense(ragged: tf.RaggedTensor) -> tf.Tensor:
        # Whatever is wrong with a shard or its lengths file, no row gets another record than planned.
        expected = tf.debugging.assert_equal(ragged.row_lengths(), lengths, "a record is not the one planned here")
        with tf.control_dependencies([expected]):
            return tf.cast(ragged, tf.int32).to_tensor(shape=tf.stack([tf.size(lengths), padded_length]))

    indices = dense(parsed[INDICES])
    if has_cut_rows:
        # What tokenizing with this max_len would have put last is what stands last: [SEP].
        last = tf.gather(tf.cast(parsed[INDICES].flat_values, tf.int32), parsed[INDICES].row_splits[1:] - 1)
        last = tf.where(lengths > padded_length, last, indices[:, -1])
        indices = tf.concat([indices[:, :-1], last[:, tf.newaxis]], axis=1)

    # Segments come last in a record, a byte of 0 for each token of a single text. To look at these bytes costs a quarter
    # of parsing them; whatever else they are gets parsed.
    ends = tf.strings.substr(records, -lengths, lengths)
    zeros = tf.strings.substr(b"\0" * MAX_STORED_LENGTH, tf.zeros_like(lengths), lengths)
    segments = tf.cond(
        tf.reduce_all(ends == zeros),
        lambda: tf.zeros_like(indices),
        lambda: dense(tf.io.parse_example(records, _parser_specification([SEGMENTS]))[SEGMENTS]),
    )
    labels = {head: tf.cast(parsed[feature], tf.int32) for head, feature in HEAD_FEATURES.items()}
    return {INDICES: indices, SEGMENTS: segments}, labels


def _parser_specification(names: list[str]) -> dict[str, Any]:
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


def _slice_batches(chunks: tf.data.Dataset, route: Route, plan: EpochPlan) -> tf.data.Dataset:
    """Take each batch out of its chunk: its rows, up to its planned length."""
    lengths = set(plan.batch_lengths.tolist())
    static_length = lengths.pop() if len(lengths) == 1 else None
    chunk_of_batch = np.repeat(np.arange(len(route.chunk_splits) - 1), np.diff(route.chunk_splits))
    first_rows = route.row_splits[:-1] - route.row_splits[route.chunk_splits[chunk_of_batch]]
    num_rows = np.diff(route.row_splits)
    planned = tf.data.Dataset.from_tensor_slices(
        (
            np.stack([first_rows, np.zeros_like(first_rows)], axis=1),
            np.stack([num_rows, route.batch_lengths], axis=1),
        )
    )

    def take(batch: tuple[tf.Tensor, tf.Tensor], chunk: Batch) -> Batch:
        start, size = batch
        inputs, labels = chunk
        inputs = {name: tf.slice(values, start, size) for name, values in inputs.items()}
        for values in inputs.values():
            values.set_shape([None, static_length])
        return inputs, {head: tf.slice(values, start[:1], size[:1]) for head, values in labels.items()}

    chunks = chunks.flat_map(lambda chunk, num_batches: tf.data.Dataset.from_tensors(chunk).repeat(num_batches))
    return tf.data.Dataset.zip((planned, chunks)).map(take, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
