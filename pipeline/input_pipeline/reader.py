"""Stream a dataset directory into training and evaluation.

A batch of two examples padded to 8 positions:

    {"indices":  int32 [[101, 3189, 3315, 7339, 1932, 1094, 102,   0],
                        [101, 5500, 2356, 1920, 3885,  102,   0,   0]],
     "segments": int32 [[0, 0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 0]]},
    {"category": int32 [2, 7], "second": int32 [1, 0]}

`pipeline.input_pipeline.epoch_plan` decides which example makes which row. `tf.data` carries that plan out, a window of
thousands of records at a time, because a call of the parser costs a third of a millisecond whatever it parses:

    lanes of shards ─▶ windows of records ─▶ those of the window's batches, in order ─▶ parsed ─▶ cut into batches

The plan enters as tensors, so one `tf.data` iterator serves every epoch.
"""

import contextlib
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from pipeline.dataset.info import read_dataset_info
from pipeline.dataset.schema import HEAD_FEATURES, INDICES, KEY, SEGMENTS
from pipeline.input_pipeline.batch_plan import BatchOptions, BatchPlan, Buckets, plan_batches, resolve_max_len
from pipeline.input_pipeline.damage import find_damage
from pipeline.input_pipeline.epoch_plan import EpochPlan, WindowPlan, plan_evaluation, plan_training_epoch, plan_windows
from pipeline.input_pipeline.record_parser import Rows, parse_features, parse_rows
from pipeline.input_pipeline.stored_split import StoredSplit, open_split

# Of each lane; what stays in a second-level cache is copied out of it faster. Object stores have a buffer of their own.
READ_BUFFER_BYTES = 256 << 10
# What autotuning may spend on buffers: about ten windows of articles at 512 positions.
RAM_BUDGET_BYTES = 512 << 20
_KEYS_AT_ONCE = 1024

# An epoch's plan as tensors: nested dictionaries, as `_PLAN` describes them.
_Tensors = dict[str, Any]
_PLAN = {
    "paths": tf.RaggedTensorSpec([None, None], tf.string),
    "block_records": tf.TensorSpec([], tf.int64),
    "padded_length": tf.TensorSpec([], tf.int32),
    "windows": {
        "block_sizes": tf.TensorSpec([None, None], tf.int64),
        "rows": tf.RaggedTensorSpec([None, None], tf.int32),
        "lengths": tf.RaggedTensorSpec([None, None], tf.int32),
        "shapes": tf.RaggedTensorSpec([None, None, 2], tf.int32, ragged_rank=1),
        "kept": tf.RaggedTensorSpec([None, None], tf.int32),
    },
}


def read_options() -> tf.data.Options:
    """Return the options every dataset here is read with, each set on purpose."""
    options = tf.data.Options()
    # The order is promised; parallel stages wait for their turn.
    options.deterministic = True
    # Parallelism follows the machine and what the model leaves of it, inside a fixed amount of memory.
    options.autotune.enabled = True
    options.autotune.ram_budget = RAM_BUDGET_BYTES
    # Windows are parsed in parallel already; splitting single operations as well only makes threads wait.
    options.threading.max_intra_op_parallelism = 1
    # Reading starts when the iterator is made, so the first batch is ready when the model has been compiled.
    options.experimental_warm_start = True
    # Workers divide each global batch (`worker_index`); shards divided among them would change the batches.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return options


class TrainReader:
    """Training batches of one epoch after another.

    The `tf.data` functions are traced and instantiated once: the iterator does not end but waits for the plan of the
    next epoch. The order of an epoch is a pure function of (dataset, batches, seed, epoch), whatever the number of
    replicas and workers.
    """

    def __init__(
        self,
        stored: StoredSplit,
        batches: BatchPlan,
        *,
        seed: int = 0,
        num_workers: int = 1,
        worker_index: int = 0,
        transform: Callable[[tf.data.Dataset], tf.data.Dataset] = lambda batches: batches,
    ) -> None:
        """Prepare to read; nothing is read yet.

        Args:
            stored: the split to read.
            batches: of every epoch, from `plan_batches` and the split's histogram.
            seed: decides the order, together with the epoch.
            num_workers: how many divide each global batch.
            worker_index: which contiguous part of each global batch to deliver.
            transform: applied to the batches, such as `mask_partial_batches`.
        """
        self.seed = seed
        self._stored = stored
        self._batches = batches
        self._part = {"num_workers": num_workers, "worker_index": worker_index}
        self._transform = transform
        self._stream: _Stream | None = None

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Any]:
        """Start one epoch, every example exactly once.

        Args:
            epoch: which epoch, from 0.
            start_step: batches of this epoch that are done already; their records are read past, not parsed.

        Returns:
            `steps_per_epoch - start_step` elements: ({"indices", "segments"} → int32 [B, L], head → int32 [B]), through
            `transform`.

        Raises:
            OptionError: a number is negative, or the step or the worker does not exist.
        """
        stored = self._stored
        plan = plan_training_epoch(
            self._batches, lengths=stored.lengths, shard_sizes=stored.shard_sizes, seed=self.seed, epoch=epoch
        )
        windows = plan_windows(plan, start_step=start_step, **self._part)
        if self._stream is None or self._stream.num_left:
            self._stream = _Stream(lambda plan: self._transform(_stream_batches(stored, plan)))
        return self._stream.start(_as_tensors(stored, plan, windows), sum(len(window.shapes) for window in windows))


class _Stream:
    """An endless iterator over the batches of the plans that it gets.

    Attributes:
        num_left: batches of the last plan that nobody has taken yet.
    """

    def __init__(self, stream_fn: Callable[[_Tensors], tf.data.Dataset]) -> None:
        specs = tf.nest.flatten(_PLAN, expand_composites=True)
        with tf.device("CPU"):
            plans = tf.queue.FIFOQueue(1, [spec.dtype for spec in specs])

            def wait_for_plan(_: tf.Tensor) -> _Tensors:
                parts = zip(plans.dequeue(), specs, strict=True)
                tensors = [tf.ensure_shape(part, spec.shape) for part, spec in parts]
                return tf.nest.pack_sequence_as(_PLAN, tensors, expand_composites=True)

            batches = tf.data.Dataset.counter().map(wait_for_plan).flat_map(stream_fn)
            self._batches = iter(batches.prefetch(tf.data.AUTOTUNE).with_options(read_options()))
        self._plans = plans
        weakref.finalize(self, _close, plans)
        self.num_left = 0

    def start(self, plan: _Tensors, num_batches: int) -> Iterator[Any]:
        """Start to read what a plan says."""
        with tf.device("CPU"):
            self._plans.enqueue(tf.nest.flatten(plan, expand_composites=True))
        self.num_left = num_batches
        return self._rest()

    def _rest(self) -> Iterator[Any]:
        while self.num_left:
            batch = next(self._batches)
            self.num_left -= 1
            yield batch


def _close(plans: tf.queue.FIFOQueue) -> None:
    """Wake the iterator that waits in a queue: TensorFlow crashes if the queue is destroyed before."""
    # The garbage collector may run while a function is traced, and must not add to its graph.
    with tf.init_scope():
        plans.close(cancel_pending_enqueues=True)


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
    """Stream one epoch of training batches, every example exactly once; a run of several epochs uses `TrainReader`.

    The order is a pure function of (dataset, options, seed, epoch), whatever the number of replicas and workers.

    Args:
        data_dir: a dataset directory, local or remote.
        global_batch_size: examples per batch, over all workers; the last batch may hold fewer.
        max_len: shorter than the dataset's: examples are cut to what tokenizing with it would have given.
        buckets: `auto`, `off` (pad everything to `max_len`) or the padded lengths.
        seed: decides the order, together with the epoch.
        epoch: which epoch, from 0.
        start_step: batches of this epoch that are done already.
        split: which split.
        batch_tokens: positions per batch instead of examples per batch.
        batch_multiple: a full batch is a multiple of this, the number of replicas.
        num_workers: how many divide each global batch.
        worker_index: which contiguous part of each global batch to deliver.

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
    plan = plan_training_epoch(
        plan_batches(stored.length_histogram, options),
        lengths=stored.lengths,
        shard_sizes=stored.shard_sizes,
        seed=seed,
        epoch=epoch,
    )
    windows = plan_windows(plan, start_step=start_step, num_workers=num_workers, worker_index=worker_index)
    return read_batches(stored, plan, windows)


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
        num_workers: how many divide each global batch.
        worker_index: which contiguous part of each global batch to deliver.

    Returns:
        ceil(examples / global_batch_size) elements, see `train_dataset`.

    Raises:
        OptionError: an option, or a combination, that cannot be used.
        MissingInputError, SchemaMismatchError, EmptySplitError, CorruptShardError: the dataset cannot be read.
    """
    options = BatchOptions(global_batch_size=global_batch_size, max_len=max_len)
    stored = open_split(data_dir, split)
    plan = plan_evaluation(
        lengths=stored.lengths,
        shard_sizes=stored.shard_sizes,
        max_len=resolve_max_len(options.max_len, stored.info.max_len),
        global_batch_size=options.global_batch_size,
    )
    return read_batches(stored, plan, plan_windows(plan, num_workers=num_workers, worker_index=worker_index))


def read_keys(data_dir: str, split: str) -> list[str]:
    """Return the key of every example in stored order, which is `eval_dataset`'s.

    Raises:
        MissingInputError, SchemaMismatchError, EmptySplitError, CorruptShardError: the dataset cannot be read.
    """
    stored = open_split(data_dir, split)
    records = _read_records(stored, stored.paths).batch(_KEYS_AT_ONCE)
    dataset = records.map(lambda batch: parse_features(batch, [KEY])[KEY]).with_options(read_options())
    with explain_read_errors(data_dir, split):
        return [key.decode() for keys in dataset.as_numpy_iterator() for key in keys]


@contextlib.contextmanager
def explain_read_errors(data_dir: str, split: str) -> Iterator[None]:
    """Turn TensorFlow's errors about a damaged shard into one that names file, record and offset.

    Iterate inside this context. An error that no damage of the split explains is raised unchanged.

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
    """Fill every batch up to its full size and add weights: 1 for real rows, 0 for added ones.

    Args:
        dataset: elements (x, y) of at most `full_rows` rows.
        full_rows: rows of a full batch, or padded length → rows (`BatchPlan.full_rows`).

    Returns:
        Elements (x, y, weights float32 [B]); added rows have weight 0, label 0 and the token id 1 everywhere, so that
        no softmax over positions is empty.
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


def read_batches(stored: StoredSplit, plan: EpochPlan, windows: list[WindowPlan]) -> tf.data.Dataset:
    """Deliver the batches of a plan, tracing the pipeline for this one time.

    Args:
        stored: what to read; the length of every record parsed is compared with its length there.
        plan: of the whole epoch.
        windows: what to deliver of it.

    Returns:
        One element per batch of the windows, see `train_dataset`.
    """
    num_batches = sum(len(window.shapes) for window in windows)
    batches = _stream_batches(stored, _as_tensors(stored, plan, windows))
    batches = batches.apply(tf.data.experimental.assert_cardinality(num_batches))
    return batches.prefetch(tf.data.AUTOTUNE).with_options(read_options())


def _as_tensors(stored: StoredSplit, plan: EpochPlan, windows: list[WindowPlan]) -> _Tensors:
    """Return an epoch as the input of `_stream_batches`."""

    def ragged(parts: Iterable[np.ndarray]) -> tf.RaggedTensor:
        parts = list(parts)
        return tf.RaggedTensor.from_row_lengths(np.concatenate(parts), [len(part) for part in parts], validate=False)

    return {
        "paths": ragged(np.array(stored.paths)[[*lane]] for lane in plan.lanes),
        "block_records": tf.constant(plan.block_records, tf.int64),
        "padded_length": tf.constant(plan.batch_lengths.max()),
        "windows": {
            "block_sizes": tf.constant(plan.block_sizes),
            "rows": ragged(window.rows for window in windows),
            "lengths": ragged(stored.lengths[window.examples].astype(np.int32) for window in windows),
            "shapes": ragged(window.shapes for window in windows),
            "kept": ragged(window.kept for window in windows),
        },
    }


def _read_records(stored: StoredSplit, paths: tf.Tensor | list[str]) -> tf.data.Dataset:
    compression = {"none": "", "gzip": "GZIP"}[stored.info.compression]
    return tf.data.TFRecordDataset(paths, compression, READ_BUFFER_BYTES)


@tf.autograph.experimental.do_not_convert
def _stream_batches(stored: StoredSplit, plan: _Tensors) -> tf.data.Dataset:
    """Turn an epoch's plan, as tensors, into its batches."""
    paths = plan["paths"]

    def read_lane(lane: tf.Tensor) -> tf.data.Dataset:
        nothing = tf.data.Dataset.from_tensors(tf.zeros([0], tf.string)).repeat()
        return _read_records(stored, paths[lane]).batch(plan["block_records"]).concatenate(nothing)

    def select(waiting: tf.Tensor, element: tuple[_Tensors, tf.RaggedTensor]) -> tuple[tf.Tensor, Any]:
        window, blocks = element
        # A record too many or too few would give all later rows of its lane the wrong records.
        complete = tf.debugging.assert_equal(blocks.row_lengths(), window["block_sizes"], "not the records described")
        with tf.control_dependencies([complete]):
            pool = tf.concat([waiting, blocks.flat_values], axis=0)
        return tf.gather(pool, window["kept"]), (window, tf.gather(pool, window["rows"]))

    def parse(window: _Tensors, records: tf.Tensor) -> tuple[tf.Tensor, Rows]:
        return window["shapes"], parse_rows(records, window["lengths"], plan["padded_length"])

    def cut(shapes: tf.Tensor, rows: Rows) -> tf.data.Dataset:
        def cut_batch(begin: tf.Tensor, shape: tf.Tensor) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
            inputs = {name: tf.slice(rows[name], begin, shape) for name in (INDICES, SEGMENTS)}
            return inputs, {head: tf.slice(rows[head], begin[:1], shape[:1]) for head in HEAD_FEATURES}

        begins = tf.cumsum(shapes * [1, 0], exclusive=True)
        return tf.data.Dataset.from_tensor_slices((begins, shapes)).map(cut_batch)

    num_lanes = paths.nrows()
    # As many slots as lanes and no lane ends: a plain round robin.
    blocks = tf.data.Dataset.range(num_lanes).interleave(
        read_lane, cycle_length=num_lanes, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
    )
    windows = tf.data.Dataset.zip((tf.data.Dataset.from_tensor_slices(plan["windows"]), blocks.ragged_batch(num_lanes)))
    selected = windows.scan(tf.zeros([0], tf.string), select)
    return selected.map(parse, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).flat_map(cut)
