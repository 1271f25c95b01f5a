"""How fast batches reach the model, how soon an epoch starts, how much is padding, and how random the order is.

    python -m benchmarks.reader [--data DIR] [--rounds 5] [--batch_size 32] [--examples 668859]

All candidates read the same dataset directories, made here from real articles and headlines, repeated until they are
as many as THUCNews has for training; to a reader, a shuffled copy costs what a new article costs:

- floor: `TFRecordDataset → shuffle → batch → prefetch`, serialized records that nobody parses;
- ours: `train_dataset`, everything the model needs;
- plain: the floor, then `tf.io.parse_example` of each batch with `RaggedFeature`, padded to the longest of the batch;
- per example: parse each record, then `padded_batch`;
- write-up: what people do without a dataset: a Python generator that tokenizes in every epoch with keras-bert and pads
  to 512.

Rates are of whole passes, from making the iterator to the last batch, consumed in a graph. Another table has the epochs
of one run, read by one `TrainReader`: from the plan to the last batch. Rounds alternate between the candidates, so that
other load on the machine affects all of them; tables give medians.
"""

import argparse
import dataclasses
import functools
import itertools
import math
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")  # before TensorFlow comes in
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras_bert
import numpy as np
import tensorflow as tf

from benchmarks.dataset import write_dataset
from benchmarks.measure import describe_machine
from benchmarks.real_data import VOCAB, add_data_option, read_articles, read_titles
from benchmarks.results import Comparison, add_results_option, record
from pipeline.corpus.documents import normalize_text
from pipeline.dataset.schema import HEAD_FEATURES, INDICES, LABEL, SECOND_LABEL, SEGMENTS
from pipeline.dataset.summary import format_table
from pipeline.input_pipeline.batch_plan import (
    BatchOptions,
    choose_edges,
    per_batch_padding_share,
    plan_batches,
    positions_needed,
)
from pipeline.input_pipeline.epoch_plan import WINDOW_RECORDS, plan_training_epoch
from pipeline.input_pipeline.reader import TrainReader, train_dataset
from pipeline.input_pipeline.record_parser import parse_rows
from pipeline.input_pipeline.stored_split import StoredSplit, open_split
from pipeline.tokenization.tokenizer import Tokenizer
from pipeline.tokenization.vocabulary import load_vocab

MAX_LEN = 512
SHUFFLE_BUFFER = 10_000
THUCNEWS_TRAIN_EXAMPLES = 668_859  # eight of ten of its documents
# Enough articles for a second of tokenizing in every round.
WRITE_UP_DOCUMENTS = 1_500


def write_texts(directory: Path, texts: list[str], copies: int, tokenizer: Tokenizer) -> StoredSplit:
    """Tokenize texts and write them, repeated, in random order."""
    rows = [indices for indices, _ in tokenizer.encode_batch(texts)]
    order = np.random.RandomState(0).permutation(len(rows) * copies).tolist()
    repeated = [rows[index % len(rows)] for index in order]
    write_dataset(directory, repeated, max_len=MAX_LEN, vocab_size=tokenizer.vocab_size)
    return open_split(str(directory), "train")


def floor(stored: StoredSplit, batch_size: int) -> tf.data.Dataset:
    """Read records and do nothing with them."""
    records = tf.data.TFRecordDataset(stored.paths).shuffle(SHUFFLE_BUFFER, seed=0)
    return records.batch(batch_size).prefetch(tf.data.AUTOTUNE)


def parse_ragged(records: tf.Tensor) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
    """Parse a batch of records in the plain way."""
    ragged, label = tf.io.RaggedFeature(tf.int64), tf.io.FixedLenFeature([], tf.int64)
    specification = {INDICES: ragged, SEGMENTS: ragged, LABEL: label, SECOND_LABEL: label}
    parsed = {name: tf.cast(values, tf.int32) for name, values in tf.io.parse_example(records, specification).items()}
    inputs = {name: parsed[name].to_tensor() for name in (INDICES, SEGMENTS)}
    return inputs, {head: parsed[feature] for head, feature in HEAD_FEATURES.items()}


def plain(stored: StoredSplit, batch_size: int) -> tf.data.Dataset:
    """Batch records, then parse each batch."""
    records = tf.data.TFRecordDataset(stored.paths).shuffle(SHUFFLE_BUFFER, seed=0).batch(batch_size)
    return records.map(parse_ragged, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def per_example(stored: StoredSplit, batch_size: int) -> tf.data.Dataset:
    """Parse one record after another, then pad."""
    tokens = tf.io.FixedLenSequenceFeature([], tf.int64, allow_missing=True)
    label = tf.io.FixedLenFeature([], tf.int64)
    specification = {INDICES: tokens, SEGMENTS: tokens, LABEL: label, SECOND_LABEL: label}

    def parse(record: tf.Tensor) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
        parsed = tf.io.parse_single_example(record, specification)
        numbers = {name: tf.cast(values, tf.int32) for name, values in parsed.items()}
        inputs = {name: numbers[name] for name in (INDICES, SEGMENTS)}
        return inputs, {head: numbers[feature] for head, feature in HEAD_FEATURES.items()}

    records = tf.data.TFRecordDataset(stored.paths).shuffle(SHUFFLE_BUFFER, seed=0)
    examples = records.map(parse, num_parallel_calls=tf.data.AUTOTUNE)
    return examples.padded_batch(batch_size).prefetch(tf.data.AUTOTUNE)


def write_up_batches(path: Path, tokenizer: keras_bert.Tokenizer, batch_size: int) -> Iterator[object]:
    """Read, tokenize and pad while training: the generator of the write-up, one epoch of it."""
    with path.open(encoding="utf-8") as lines:
        while chunk := list(itertools.islice(lines, batch_size)):
            rows = []
            for line in chunk:
                text, *labels = line.rstrip("\n").split("\t")
                rows.append((*tokenizer.encode(text, max_len=MAX_LEN), *map(int, labels)))
            random.shuffle(rows)
            columns = [np.array(column) for column in zip(*rows, strict=True)]
            yield columns[:2], columns[2:]


@dataclasses.dataclass(frozen=True)
class Pass:
    """One pass over a dataset.

    Attributes:
        first_seconds: until the first batch.
        rate: examples/s, until the last batch.
    """

    first_seconds: float
    rate: float


@tf.function
def take(batches: Iterator[object], count: tf.Tensor) -> None:
    """Take batches inside of one function, as a training loop does."""
    for _ in tf.range(count):
        next(batches)


def measure_pass(dataset: tf.data.Dataset, num_examples: int) -> Pass:
    """Time one pass."""
    rest = tf.constant(int(dataset.cardinality()) - 1)
    take.get_concrete_function(iter(dataset.take(1)), rest)  # tracing is no part of it
    started = time.perf_counter()
    batches = iter(dataset)
    next(batches)
    first_seconds = time.perf_counter() - started
    take(batches, rest)
    return Pass(first_seconds, num_examples / (time.perf_counter() - started))


def measure_epoch(make: Callable[[], Iterable[object]], num_examples: int) -> Pass:
    """Time one epoch of a run, its plan included, with one Python call per batch as in the training loop."""
    started = time.perf_counter()
    batches = iter(make())
    next(batches)
    first_seconds = time.perf_counter() - started
    for _ in batches:
        pass
    return Pass(first_seconds, num_examples / (time.perf_counter() - started))


def epoch_row(name: str, stored: StoredSplit, batch_size: int, rounds: int) -> tuple[str, ...]:
    """Return seconds to the first batch of a run and of later epochs, and these epochs' rate beside the floor's."""
    batches = plan_batches(stored.length_histogram, BatchOptions(global_batch_size=batch_size))
    reader, num_examples = TrainReader(stored, batches), len(stored.lengths)
    first = measure_epoch(lambda: reader.epoch(0), num_examples)
    ours, floors = [], []
    for epoch in range(1, rounds + 1):
        floors.append(measure_epoch(lambda: floor(stored, batch_size), num_examples))
        ours.append(measure_epoch(functools.partial(reader.epoch, epoch), num_examples))
    start = statistics.median(one.first_seconds for one in ours)
    rates = rate_of(ours), rate_of(floors)
    return name, f"{first.first_seconds:.2f}", f"{start:.3f}", f"{rates[0]:,.0f}", f"{rates[0] / rates[1]:.2f}×"


def measure_rates(
    stored: StoredSplit, texts: list[str], vocab_path: Path, batch_size: int, rounds: int
) -> dict[str, list[Pass]]:
    """Return each candidate's passes."""
    num_examples = len(stored.lengths)
    num_batches = math.ceil(num_examples / batch_size)

    def counted(dataset: tf.data.Dataset) -> tf.data.Dataset:
        return dataset.apply(tf.data.experimental.assert_cardinality(num_batches))

    makers: dict[str, Callable[[], tf.data.Dataset]] = {
        "floor": lambda: counted(floor(stored, batch_size)),
        "ours": lambda: train_dataset(stored.data_dir, batch_size),
        "plain": lambda: counted(plain(stored, batch_size)),
        "per example": lambda: counted(per_example(stored, batch_size)),
    }
    tokenizer = keras_bert.Tokenizer({token: index for index, token in enumerate(load_vocab(str(vocab_path)))})
    written_up = Path(stored.data_dir) / "write-up.txt"
    lines = (texts * (WRITE_UP_DOCUMENTS // len(texts) + 1))[:WRITE_UP_DOCUMENTS]
    written_up.write_text("".join(f"{normalize_text(line)}\t0\t0\n" for line in lines), encoding="utf-8")
    passes: dict[str, list[Pass]] = {name: [] for name in [*makers, "write-up"]}
    for _ in range(rounds):
        for name, make in makers.items():
            passes[name].append(measure_pass(make(), num_examples))
        started = time.perf_counter()
        for _ in write_up_batches(written_up, tokenizer, batch_size):
            pass
        rate = len(lines) / (time.perf_counter() - started)
        passes["write-up"].append(Pass(batch_size / rate, rate))
    return passes


def rate_of(passes: list[Pass]) -> float:
    """Return the median rate."""
    return statistics.median(one.rate for one in passes)


def rate_rows(passes: dict[str, list[Pass]]) -> list[tuple[str, ...]]:
    """Return the table's rows: candidate, seconds to the first batch, its rate and ours against it."""
    rows: list[tuple[str, ...]] = []
    for name, values in passes.items():
        first, rate = statistics.median(one.first_seconds for one in values), rate_of(values)
        rows.append((name, f"{first:.2f}", f"{rate:,.0f}", f"{rate_of(passes['ours']) / rate:.2f}×"))
    return rows


def comparisons(subject: str, passes: dict[str, list[Pass]], rounds: int) -> list[Comparison]:
    """Return ours against each peer."""
    peers = {
        "floor": "bare records: shuffle, batch, prefetch",
        "plain": "batches parsed with RaggedFeature",
        "per example": "parsed one by one, padded_batch",
        "write-up": "the write-up's generator",
    }
    return [
        Comparison(
            benchmark="reader",
            subject=subject,
            unit="examples/s",
            ours="train_dataset",
            our_rate=rate_of(passes["ours"]),
            peer=peer,
            peer_rate=rate_of(passes[name]),
            rounds=rounds,
        )
        for name, peer in peers.items()
    ]


def parsing_row(name: str, stored: StoredSplit, rounds: int) -> tuple[str, ...]:
    """Return milliseconds for a window of records: parsed by ours, and in the plain way."""
    records = next(iter(tf.data.TFRecordDataset(stored.paths).batch(WINDOW_RECORDS)))
    lengths = tf.constant(stored.lengths[: len(records)].astype(np.int32))
    ours, ragged = tf.function(parse_rows), tf.function(parse_ragged)
    parsers = (lambda: ours(records, lengths, MAX_LEN), lambda: ragged(records))
    seconds: list[list[float]] = [[], []]
    for _ in range(rounds + 1):
        for parse, taken in zip(parsers, seconds, strict=True):
            started = time.perf_counter()
            parse()
            taken.append(time.perf_counter() - started)
    # The first round traces.
    medians = [statistics.median(taken[1:]) for taken in seconds]
    return name, *(f"{1000 * one:.1f}" for one in medians), f"{medians[1] / medians[0]:.2f}×"


def padding_row(name: str, stored: StoredSplit, batch_size: int) -> tuple[str, ...]:
    """Return the shares of padding: fixed, per batch, planned, and the best that as many lengths can do."""
    plan = plan_batches(stored.length_histogram, BatchOptions(global_batch_size=batch_size))
    optimum = 1 - plan.num_tokens / positions_needed(stored.length_histogram, choose_edges(stored.length_histogram))
    per_batch = per_batch_padding_share(stored.lengths, global_batch_size=batch_size, max_len=MAX_LEN)
    shares = (plan.fixed_padding_share, per_batch, plan.padding_share, optimum)
    return (name, *(f"{share:.1%}" for share in shares), ", ".join(map(str, plan.edges)))


def order_rows(num_shards: int, shard_size: int, batch_size: int, epochs: int) -> list[tuple[str, ...]]:
    """Compare an example's places in successive epochs with those in full permutations."""
    num_examples = num_shards * shard_size
    generator = np.random.RandomState(0)
    lengths = generator.randint(3, MAX_LEN + 1, num_examples).astype(np.uint16)
    histogram = np.bincount(lengths, minlength=MAX_LEN + 1)
    batches = plan_batches(histogram, BatchOptions(global_batch_size=batch_size))
    ours = [
        plan_training_epoch(
            batches, lengths=lengths, shard_sizes=[shard_size] * num_shards, seed=0, epoch=epoch
        ).examples
        for epoch in range(epochs)
    ]
    full = [generator.permutation(num_examples) for _ in range(epochs)]
    rows: list[tuple[str, ...]] = []
    for name, orders in (("ours", ours), ("full permutation", full)):
        places = [np.argsort(order) for order in orders]
        pairs = list(itertools.pairwise(places))
        correlations = [float(np.corrcoef(first, second)[0, 1]) for first, second in pairs]
        distances = [float(np.abs(first - second).mean()) / num_examples for first, second in pairs]
        whole = orders[0][: num_examples // batch_size * batch_size].reshape(-1, batch_size) // shard_size
        shards = statistics.mean(len(set(batch)) for batch in whole[:2000].tolist())
        rows.append(
            (
                name,
                f"{statistics.mean(distances):.3f}",
                f"{statistics.mean(correlations):+.2f} ± {statistics.stdev(correlations):.2f}",
                f"{shards:.1f}",
            )
        )
    return rows


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_option(parser)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch_size", type=int, default=32, help="of articles")
    parser.add_argument("--title_batch_size", type=int, default=128, help="of titles, which are short")
    parser.add_argument("--examples", type=int, default=THUCNEWS_TRAIN_EXAMPLES, help="in each dataset, about")
    add_results_option(parser)
    args = parser.parse_args()
    vocab_path = args.data / VOCAB
    tokenizer = Tokenizer.from_vocab(str(vocab_path), max_len=MAX_LEN)
    print(f"{describe_machine()}, TensorFlow {tf.__version__}; {args.rounds} rounds")
    padding, parsing, epochs = [], [], []
    with tempfile.TemporaryDirectory() as directory:
        for name, texts, batch_size in (
            ("articles", read_articles(args.data), args.batch_size),
            ("titles", read_titles(args.data), args.title_batch_size),
        ):
            copies = max(1, args.examples // len(texts))
            stored = write_texts(Path(directory) / name, texts, copies, tokenizer)
            padding.append(padding_row(name, stored, batch_size))
            parsing.append(parsing_row(name, stored, args.rounds))
            epochs.append(epoch_row(name, stored, batch_size, args.rounds))
            num_bytes = sum(shard.num_bytes for shard in stored.info.split("train").shards)
            print(
                f"\n{name}: {len(texts):,} texts × {copies} in {len(stored.paths)} shards, "
                f"{num_bytes / len(stored.lengths):,.0f} bytes each, batches of {batch_size}"
            )
            passes = measure_rates(stored, texts, vocab_path, batch_size, args.rounds)
            record(args.results, comparisons(name, passes, args.rounds))
            header: tuple[str, ...] = ("candidate", "first batch, s", "examples/s", "ours is")
            print("\n".join(format_table(header, rate_rows(passes))))
    print("\nepochs of one run, the start included")
    header = ("", "first batch of the run, s", "of a later epoch, s", "examples/s", "of bare records")
    print("\n".join(format_table(header, epochs)))
    print(f"\nparsing a window of {WINDOW_RECORDS:,} records")
    print("\n".join(format_table(("", "ours, ms", "plain, ms", "ours is"), parsing)))
    print("\npadding")
    header = ("", f"all to {MAX_LEN}", "per batch", "planned", "optimum", "planned lengths")
    print("\n".join(format_table(header, padding)))
    print("\norder: 64 shards of 10,000 examples, an example's places in successive epochs")
    header = ("", "mean distance, epochs", "rank correlation", f"shards in a batch of {args.batch_size}")
    print("\n".join(format_table(header, order_rows(64, 10_000, args.batch_size, 21))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
