"""Stream a dataset directory into training and evaluation; with `record_parser` all that `pipeline` has of TensorFlow.

`train_dataset` and `eval_dataset` deliver batches such as, for two examples padded to 8 positions:

    {"indices":  int32 [[101, 3189, 3315, 7339, 1932, 1094, 102,   0],
                        [101, 5500, 2356, 1920, 3885,  102,   0,   0]],
     "segments": int32 [[0, 0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 0]]},
    {"category": int32 [2, 7], "second": int32 [1, 0]}

Everything about an epoch is planned before (`pipeline.input_pipeline.epoch_plan`); what is left to do here happens to
hundreds of examples at a time, never to one:

    lanes of shards ─▶ blocks of wanted records, parsed ─▶ a window's pool of rows ─▶ its batches

A window is parsed at once because a call of the parser costs a third of a millisecond whatever it parses. The batches
are slices of what one gather per shape takes out of the pool, because a function called for every batch would cost
more than all that is done to it.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from pipeline.dataset.info import read_dataset_info
from pipeline.dataset.schema import HEAD_FEATURES, INDICES, KEY, SEGMENTS
from pipeline.input_pipeline.batch_plan import BatchOptions, Buckets, plan_batches, resolve_max_len
from pipeline.input_pipeline.damage import find_damage
from pipeline.input_pipeline.epoch_plan import EpochPlan, Route, plan_evaluation, plan_route, plan_training_epoch
from pipeline.input_pipeline.record_parser import Rows, parse_rows, parser_specification
from pipeline.input_pipeline.stored_split import StoredSplit, open_split

# Of each lane; what stays in a second-level cache is copied out of it faster. Object stores have a buffer of their own.
READ_BUFFER_BYTES = 256 << 10
# What autotuning may spend on buffers: about ten windows of articles at 512 positions.
RAM_BUDGET_BYTES = 512 << 20
_KEYS_AT_ONCE = 1024


def read_options() -> tf.data.Options:
    """Return the options every dataset here is read with, each set on purpose."""
    options = tf.data.Options()
    # The order is promised; parallel stages wait for their turn.
    options.deterministic = True
    # Parallelism follows the machine and what the model leaves of it, inside a fixed amount of memory.
    options.autotune.enabled = True
    options.autotune.ram_budget = RAM_BUDGET_BYTES
    # Blocks are handled side by side already; splitting single operations as well only makes threads wait.
    options.threading.max_intra_op_parallelism = 1
    # Reading starts when the iterator is made, so the first batch is ready when the model has been compiled.
    options.experimental_warm_start = True
    # Slack would delay the refill of the last buffer to the middle of a step, and needs that buffer to be the last
    # stage; here batches come from a window that is long complete.
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
        `steps_per_epoch - start_step` elements: ({"indices", "segments"} → int32 [B, L], head → int32 [B]).

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
    stored = open_split(data_dir, split)
    batches = plan_batches(stored.length_histogram, stored.info.max_len, options)
    plan = plan_training_epoch(batches, stored.lengths, stored.shard_sizes, seed=seed, epoch=epoch)
    route = plan_route(plan, start_step=start_step, num_workers=num_workers, worker_index=worker_index)
    return read_batches(stored, plan, route)


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
    stored = open_split(data_dir, split)
    plan = plan_evaluation(
        stored.lengths,
        stored.shard_sizes,
        max_len=resolve_max_len(options.max_len, stored.info.max_len),
        global_batch_size=options.global_batch_size,
    )
    route = plan_route(plan, num_workers=num_workers, worker_index=worker_index)
    return read_batches(stored, plan, route)


def read_keys(data_dir: str, split: str) -> list[str]:
    """Return the key of every example in stored order, which is `eval_dataset`'s.

    Raises:
        MissingInputError, SchemaMismatchError, EmptySplitError, CorruptShardError: the dataset cannot be read.
    """
    stored = open_split(data_dir, split)
    specification = parser_specification([KEY])
    dataset = _read_records(stored, stored.paths).batch(_KEYS_AT_ONCE)
    dataset = dataset.map(lambda records: tf.io.parse_example(records, specification)[KEY]).with_options(read_options())
    with explain_read_errors(data_dir, split):
        return [key.decode() for keys in dataset.as_numpy_iterator() for key in keys]


@contextlib.contextmanager
def explain_read_errors(data_dir: str, split: str) -> Iterator[None]:
    """Turn TensorFlow's errors about a damaged shard into one that names file, record and offset.

    Iterate inside of it. An error for which the split's shards give no reason is raised as it is.

    Raises:
        CorruptShardError: a shard is damaged.
    """
    try:
        yield
    # TensorFlow quotes what it cannot parse, which Python may then find not to be text.
    except (tf.errors.DataLossError, tf.errors.InvalidArgumentError, tf.errors.NotFoundError, UnicodeError) as error:
        damage = find_damage(data_dir, read_dataset_info(data_dir), split)
        if damage is None:
            raise
        raise damage from error


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


def pad_lengths(dataset: tf.data.Dataset, lengths: Sequence[int]) -> tf.data.Dataset:
    """Pad every batch further, to the first of some lengths that it fits into.

    Args:
        dataset: elements (x, y).
        lengths: in rising order; no batch is longer than the last.
    """
    edges = tf.constant(lengths, tf.int32)

    def pad(inputs: dict[str, tf.Tensor], labels: dict[str, tf.Tensor]) -> tuple[Any, Any]:
        length = tf.shape(inputs[INDICES])[1]
        missing = tf.reduce_min(tf.boolean_mask(edges, edges >= length)) - length
        return {name: tf.pad(values, [[0, 0], [0, missing]]) for name, values in inputs.items()}, labels

    return dataset.map(pad, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


def read_batches(stored: StoredSplit, plan: EpochPlan, route: Route) -> tf.data.Dataset:
    """Carry out a plan: read the shards' records and deliver the route's batches.

    Args:
        stored: what to read; every record parsed is compared with its length there.
        plan: of the whole epoch.
        route: which of its rows, from which step on.

    Returns:
        One element per batch of the route, as `train_dataset`'s.
    """
    windows = _parse_windows(_read_windows(stored, plan), stored, plan, route)
    batches = _cut_batches(_carry_rows(windows, route), route)
    batches = batches.apply(tf.data.experimental.assert_cardinality(len(route.batch_shapes)))
    return batches.prefetch(tf.data.AUTOTUNE).with_options(read_options())


def _read_records(stored: StoredSplit, paths: Any) -> tf.data.Dataset:
    compression = {"none": "", "gzip": "GZIP"}[stored.info.compression]
    # `tf.data.TFRecordDataset` would put a `flat_map` over the paths around this, one more call for every record.
    records = tf.raw_ops.TFRecordDataset(filenames=paths, compression_type=compression, buffer_size=READ_BUFFER_BYTES)
    return tf.data.experimental.from_variant(records, tf.TensorSpec([], tf.string))


def _read_windows(stored: StoredSplit, plan: EpochPlan) -> tf.data.Dataset:
    """Read the stream: windows of serialized records, string [lanes * block_records], "" where a lane has ended."""
    num_lanes = len(plan.lanes)
    paths = tf.constant([stored.paths[shard] for lane in plan.lanes for shard in lane])
    splits = tf.constant(np.cumsum([0, *(len(lane) for lane in plan.lanes)]))
    num_records = tf.constant([sum(stored.shard_sizes[shard] for shard in lane) for lane in plan.lanes], tf.int64)
    size = plan.block_records

    @tf.autograph.experimental.do_not_convert
    def read_lane(lane: tf.Tensor) -> tf.data.Dataset:
        def fill_up(number: tf.Tensor, records: tf.Tensor) -> tf.Tensor:
            # A record too many or too few would give all later rows of this lane the wrong records.
            expected = tf.clip_by_value(num_records[lane] - number * size, 0, size)
            complete = tf.debugging.assert_equal(tf.size(records, tf.int64), expected, "not the records described")
            with tf.control_dependencies([complete]):
                # Nearly every block is full, and need not be copied.
                filled = tf.cond(
                    expected == size,
                    lambda: records,
                    lambda: tf.concat([records, tf.fill([size - expected], "")], axis=0),
                )
                return tf.ensure_shape(filled, [size])

        records = _read_records(stored, paths[splits[lane] : splits[lane + 1]])
        nothing = tf.data.Dataset.from_tensors(tf.zeros([0], tf.string)).repeat()
        return records.batch(size).concatenate(nothing).enumerate().map(fill_up)

    # As many lanes as slots and none of them ends: a plain round robin.
    blocks = tf.data.Dataset.range(num_lanes).interleave(
        read_lane, cycle_length=num_lanes, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
    )
    return blocks.batch(num_lanes, drop_remainder=True)


def _parse_windows(windows: tf.data.Dataset, stored: StoredSplit, plan: EpochPlan, route: Route) -> tf.data.Dataset:
    """Parse the wanted records of each window."""
    row_lengths = stored.lengths[route.wanted_examples].astype(np.int32)
    padded_length = max(length for _, length in route.shapes)
    wanted, expected_lengths = tf.constant(route.wanted), tf.constant(row_lengths)
    longest = int(row_lengths.max(initial=1))

    @tf.autograph.experimental.do_not_convert
    def parse(part: tuple[tf.Tensor, tf.Tensor], records: tf.Tensor) -> Rows:
        records = tf.reshape(records, [-1])
        # Most often all are wanted, in this order.
        records = tf.cond(
            part[1][0] == tf.size(records, tf.int64),
            lambda: records,
            lambda: tf.gather(records, tf.slice(wanted, *part)),
        )
        return parse_rows(records, tf.slice(expected_lengths, *part), longest, padded_length)

    parts = tf.data.Dataset.from_tensor_slices(_slices(route.wanted_splits))
    return tf.data.Dataset.zip((parts, windows)).map(parse, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


def _slices(splits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return `begin` and `size` of `tf.slice`, int64 [N, 1] each, for consecutive parts of a vector."""
    return splits[:-1, np.newaxis], np.diff(splits)[:, np.newaxis]


def _carry_rows(windows: tf.data.Dataset, route: Route) -> tf.data.Dataset:
    """Join each window with the rows that the windows before left for later steps: pools of rows."""
    kept = tf.constant(route.kept)

    @tf.autograph.experimental.do_not_convert
    def join(waiting: Rows, element: tuple[tuple[tf.Tensor, tf.Tensor], Rows]) -> tuple[Rows, Rows]:
        part, arriving = element
        rows = tf.slice(kept, *part)

        def join_segments() -> tuple[tf.Tensor, tf.Tensor]:
            segments = tf.concat([_written_out(waiting), _written_out(arriving)], axis=0)
            return tf.gather(segments, rows), segments

        pool = {name: tf.concat([waiting[name], arriving[name]], axis=0) for name in (INDICES, *HEAD_FEATURES)}
        still_waiting = {name: tf.gather(values, rows) for name, values in pool.items()}
        none = tf.zeros([0, arriving[INDICES].shape[1]], tf.int32)
        still_waiting[SEGMENTS], pool[SEGMENTS] = tf.cond(
            _is_zero(waiting) & _is_zero(arriving), lambda: (none, none), join_segments
        )
        return still_waiting, pool

    nothing = {name: tf.zeros([0, *spec.shape[1:]], spec.dtype) for name, spec in windows.element_spec.items()}
    parts = tf.data.Dataset.from_tensor_slices(_slices(route.kept_splits))
    # The next window is put together while the batches of this one are cut.
    return tf.data.Dataset.zip((parts, windows)).scan(nothing, join).prefetch(1)


def _is_zero(rows: Rows) -> tf.Tensor:
    """Tell whether all segments are 0; then none is written out."""
    return tf.shape(rows[SEGMENTS])[0] == 0


def _written_out(rows: Rows) -> tf.Tensor:
    """Return the segments with as many rows as there are, zeros or not."""
    missing = tf.shape(rows[INDICES])[0] - tf.shape(rows[SEGMENTS])[0]
    return tf.pad(rows[SEGMENTS], [[0, missing], [0, 0]])


def _cut_batches(pools: tf.data.Dataset, route: Route) -> tf.data.Dataset:
    """Cut each pool into its batches: the rows of all batches of a shape at once, then batch by batch in order."""
    places, batch_shapes = tf.constant(route.places), tf.constant(route.batch_shapes)

    @tf.autograph.experimental.do_not_convert
    def batches_of(window: tuple[tf.Tensor, ...], pool: Rows) -> tf.data.Dataset:
        begin, size, first_rows, counts = window
        shapes = [[counts[number], *shape] for number, shape in enumerate(route.shapes)]
        rows = [
            tf.slice(places, first_rows[number, tf.newaxis], [count * num_rows])
            for number, (count, num_rows, _) in enumerate(shapes)
        ]

        def cut(name: str) -> list[tf.Tensor]:
            taken = [tf.gather(pool[name], places_of_shape) for places_of_shape in rows]
            if name in HEAD_FEATURES:
                return [tf.reshape(values, shape[:2]) for values, shape in zip(taken, shapes, strict=True)]
            return [tf.reshape(values[:, : shape[2]], shape) for values, shape in zip(taken, shapes, strict=True)]

        # One batch of zeros serves as often as it is asked for.
        zeros = [tf.zeros([1, *shape], tf.int32) for shape in route.shapes]
        segments = tf.cond(_is_zero(pool), lambda: zeros, lambda: cut(SEGMENTS))
        columns = {name: cut(name) for name in (INDICES, *HEAD_FEATURES)}
        slices = tf.data.Dataset.from_tensor_slices
        streams = [
            tf.data.Dataset.zip(
                (
                    {INDICES: slices(columns[INDICES][number]), SEGMENTS: slices(segments[number]).repeat()},
                    slices({head: columns[head][number] for head in HEAD_FEATURES}),
                )
            )
            for number in range(len(shapes))
        ]
        return tf.data.Dataset.choose_from_datasets(streams, slices(tf.slice(batch_shapes, begin, size)))

    windows = tf.data.Dataset.from_tensor_slices(
        (*_slices(route.batch_splits), route.place_splits[:-1].reshape(route.shape_counts.shape), route.shape_counts)
    )
    return tf.data.Dataset.zip((windows, pools)).flat_map(batches_of)
