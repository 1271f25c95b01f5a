"""How fast batches reach the model, how much of them is padding, and how random their order is.

    python -m benchmarks.reader [--data DIR] [--rounds 5] [--batch_size 32] [--copies 96]

Everyone reads the same dataset directories, made here from real articles (each one `--copies` times, so that a pass
takes long enough to be timed; a shuffled copy costs a reader what a new article would) and real headlines:

- floor: `TFRecordDataset → shuffle → batch → prefetch`, serialized records that nobody parses;
- ours: `train_dataset`, everything the model needs;
- per example: parse each record, then `padded_batch` to the longest of the batch;
- write-up: what people do without a dataset: a Python generator that tokenizes in every epoch with keras-bert and pads
  to 512.

Rates are those of the middle half of a pass: starting up, which a real epoch does not notice, is told apart (from
making the iterator to the first batch). `in a graph` consumes the batches in a `tf.function`, as a training loop does;
`in Python` with a `for` loop, where TensorFlow alone takes 0.1 ms for a batch of one tensor and 0.2 ms for one of four.
Rounds alternate between the candidates, so that what else the machine does meets all of them; the tables give medians.
"""

import argparse
import dataclasses
import itertools
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")  # before TensorFlow comes in
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras_bert
import numpy as np
import tensorflow as tf

from benchmarks.measure import describe_machine
from pipeline.batch_plan import (
    BatchOptions,
    choose_edges,
    per_batch_padding_share,
    plan_batches,
    positions_needed,
)
from pipeline.epoch_plan import plan_training_epoch
from pipeline.input_pipeline import train_dataset
from pipeline.schema import INDICES, LABEL, SECOND_LABEL, SEGMENTS
from pipeline.shards import auto_num_shards
from pipeline.stored_split import StoredSplit, open_split
from pipeline.summary import format_table
from pipeline.tokenization import Tokenizer
from pipeline.vocabulary import load_vocab
from tests.tiny_dataset import TinyExample, write_tiny_dataset

DEFAULT_DATA_DIR = Path(__file__).resolve().parents[2] / "shared" / "data"
VOCAB_FILE = "bert_base_chinese/vocab.txt"
MAX_LEN = 512
SHUFFLE_BUFFER = 10_000
LABELS = ([f"c{number}" for number in range(14)], [f"s{number}" for number in range(3)])
TakeFn = Callable[[Iterator[object], tf.Tensor], None]

# Enough articles for a second of tokenizing in every round.
WRITE_UP_DOCUMENTS = 1_500


def read_articles(data_dir: Path) -> list[str]:
    """Read the full news articles."""
    texts = [
        line.split("\t")[1]
        for path in sorted((data_dir / "fulltext").glob("cnews_*.tsv"))
        for line in path.read_text(encoding="utf-8").split("\n")
        if line
    ]
    files = sorted((data_dir / "fulltext" / "THUCNews").glob("*/*.txt"))
    return texts + [path.read_text(encoding="utf-8") for path in files]


def read_titles(data_dir: Path) -> list[str]:
    """Read the news headlines."""
    directory = data_dir / "thucnews_titles"
    train = [line.split("\t")[0] for line in (directory / "train.txt").read_text(encoding="utf-8").split("\n") if line]
    extra = (directory / "extra_zhenhanbai.tsv").read_text(encoding="utf-8").split("\n")
    return train + [line.split("\t")[1] for line in extra if line]


def write_dataset(directory: Path, texts: list[str], copies: int, tokenizer: Tokenizer) -> StoredSplit:
    """Tokenize texts and write them, some times over, in random order."""
    rows = [indices for indices, _ in tokenizer.encode_batch(texts)] * copies
    order = np.random.RandomState(0).permutation(len(rows)).tolist()
    examples = [
        TinyExample(
            indices=rows[index], label=index % len(LABELS[0]), second_label=index % len(LABELS[1]), key=f"t:{index}"
        )
        for index in order
    ]
    num_shards = auto_num_shards(len(rows))
    write_tiny_dataset(directory, {"train": examples}, max_len=MAX_LEN, num_shards=num_shards, labels=LABELS)
    return open_split(str(directory), "train")


def floor(stored: StoredSplit, batch_size: int) -> tf.data.Dataset:
    """Read records and do nothing with them."""
    records = tf.data.TFRecordDataset(stored.paths).shuffle(SHUFFLE_BUFFER, seed=0)
    return records.batch(batch_size).prefetch(tf.data.AUTOTUNE)


def per_example(stored: StoredSplit, batch_size: int) -> tf.data.Dataset:
    """Parse one record after another, then pad."""
    tokens = tf.io.FixedLenSequenceFeature([], tf.int64, allow_missing=True)
    label = tf.io.FixedLenFeature([], tf.int64)
    specification = {INDICES: tokens, SEGMENTS: tokens, LABEL: label, SECOND_LABEL: label}

    def parse(record: tf.Tensor) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
        parsed = {
            name: tf.cast(values, tf.int32)
            for name, values in tf.io.parse_single_example(record, specification).items()
        }
        return {INDICES: parsed[INDICES], SEGMENTS: parsed[SEGMENTS]}, {
            "category": parsed[LABEL],
            "second": parsed[SECOND_LABEL],
        }

    records = tf.data.TFRecordDataset(stored.paths).shuffle(SHUFFLE_BUFFER, seed=0)
    examples = records.map(parse, num_parallel_calls=tf.data.AUTOTUNE)
    return examples.padded_batch(batch_size).prefetch(tf.data.AUTOTUNE)


def write_up_batches(texts: list[str], tokenizer: keras_bert.Tokenizer, batch_size: int) -> Iterator[object]:
    """Tokenize and pad while training: the generator of the write-up, its labels left out, one epoch of it."""
    texts = texts.copy()
    while texts:
        pairs = [tokenizer.encode(texts.pop(), max_len=MAX_LEN) for _ in range(min(batch_size, len(texts)))]
        random.shuffle(pairs)
        yield [np.array([indices for indices, _ in pairs]), np.array([segments for _, segments in pairs])]


@dataclasses.dataclass(frozen=True)
class Pass:
    """One pass over a dataset.

    Attributes:
        first_seconds: from making the iterator to the first batch.
        rate: examples/s in the middle half.
    """

    first_seconds: float
    rate: float


@tf.function
def take_in_a_graph(batches: Iterator[object], count: tf.Tensor) -> None:
    """Take some batches inside of one function."""
    for _ in tf.range(count):
        next(batches)


def take_in_python(batches: Iterator[object], count: tf.Tensor) -> None:
    """Take some batches one by one."""
    for _ in range(int(count)):
        next(batches)


def measure_pass(dataset: tf.data.Dataset, num_examples: int, batch_size: int, take_fn: TakeFn) -> Pass:
    """Time one pass."""
    quarter = num_examples // batch_size // 4
    started = time.perf_counter()
    batches = iter(dataset)
    next(batches)
    first_seconds = time.perf_counter() - started
    take_fn(batches, tf.constant(quarter))
    started = time.perf_counter()
    take_fn(batches, tf.constant(2 * quarter))
    return Pass(first_seconds, 2 * quarter * batch_size / (time.perf_counter() - started))


def measure_rates(
    stored: StoredSplit, texts: list[str], vocab_path: Path, batch_size: int, rounds: int
) -> list[tuple[str, ...]]:
    """Return the table's rows: candidate, seconds to the first batch, for each loop its rate and ours against it."""
    makers: dict[str, Callable[[], tf.data.Dataset]] = {
        "floor": lambda: floor(stored, batch_size),
        "ours": lambda: train_dataset(stored.data_dir, batch_size),
        "per example": lambda: per_example(stored, batch_size),
    }
    num_examples = len(stored.lengths)
    tokenizer = keras_bert.Tokenizer({token: index for index, token in enumerate(load_vocab(str(vocab_path)))})
    written_up = (texts * (WRITE_UP_DOCUMENTS // len(texts) + 1))[:WRITE_UP_DOCUMENTS]
    in_graph: dict[str, list[Pass]] = {name: [] for name in [*makers, "write-up"]}
    in_python: dict[str, list[Pass]] = {name: [] for name in [*makers, "write-up"]}
    for _ in range(rounds):
        for name, make in makers.items():
            in_graph[name].append(measure_pass(make(), num_examples, batch_size, take_in_a_graph))
            in_python[name].append(measure_pass(make(), num_examples, batch_size, take_in_python))
        started = time.perf_counter()
        for _ in write_up_batches(written_up, tokenizer, batch_size):
            pass
        rate = len(written_up) / (time.perf_counter() - started)
        # A generator runs in Python in either case.
        in_graph["write-up"].append(Pass(batch_size / rate, rate))
        in_python["write-up"].append(Pass(batch_size / rate, rate))

    def rate_of(passes: list[Pass]) -> float:
        return statistics.median(one.rate for one in passes)

    rows = []
    for name in in_graph:
        first = statistics.median(one.first_seconds for one in in_graph[name] + in_python[name])
        columns = [name, f"{first:.2f}"]
        for passes in (in_graph, in_python):
            rate = rate_of(passes[name])
            columns += [f"{rate:,.0f}", f"{rate_of(passes['ours']) / rate:.2f}×"]
        rows.append(tuple(columns))
    return rows


def padding_row(name: str, stored: StoredSplit, batch_size: int) -> tuple[str, ...]:
    """Return the shares of padding: fixed, per batch, planned, and the best that as many lengths can do."""
    plan = plan_batches(stored.length_histogram, MAX_LEN, BatchOptions(global_batch_size=batch_size))
    optimum = 1 - plan.num_tokens / positions_needed(stored.length_histogram, choose_edges(stored.length_histogram))
    per_batch = per_batch_padding_share(stored.lengths, batch_size, MAX_LEN)
    shares = (plan.fixed_padding_share, per_batch, plan.padding_share, optimum)
    return (name, *(f"{share:.1%}" for share in shares), ", ".join(map(str, plan.edges)))


def order_rows(num_shards: int, shard_size: int, batch_size: int, epochs: int) -> list[tuple[str, ...]]:
    """Compare an example's places in successive epochs with those in full permutations."""
    num_examples = num_shards * shard_size
    generator = np.random.RandomState(0)
    lengths = generator.randint(3, MAX_LEN + 1, num_examples).astype(np.uint16)
    histogram = np.bincount(lengths, minlength=MAX_LEN + 1)
    batches = plan_batches(histogram, MAX_LEN, BatchOptions(global_batch_size=batch_size))
    ours = [
        plan_training_epoch(batches, lengths, [shard_size] * num_shards, seed=0, epoch=epoch).examples
        for epoch in range(epochs)
    ]
    full = [generator.permutation(num_examples) for _ in range(epochs)]
    rows = []
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
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA_DIR)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--copies", type=int, default=96, help="of each article")
    args = parser.parse_args()
    vocab_path = args.data / VOCAB_FILE
    tokenizer = Tokenizer.from_vocab(str(vocab_path), max_len=MAX_LEN)
    print(f"{describe_machine()}, TensorFlow {tf.__version__}; {args.rounds} rounds, batches of {args.batch_size}")
    padding = []
    with tempfile.TemporaryDirectory() as directory:
        for name, texts, copies in (
            ("articles", read_articles(args.data), args.copies),
            ("titles", read_titles(args.data), 1),
        ):
            stored = write_dataset(Path(directory) / name, texts, copies, tokenizer)
            padding.append(padding_row(name, stored, args.batch_size))
            num_bytes = sum(shard.num_bytes for shard in stored.info.split("train").shards)
            print(
                f"\n{name}: {len(texts):,} texts × {copies} in {len(stored.paths)} shards, "
                f"{num_bytes / len(stored.lengths):,.0f} bytes each; examples/s"
            )
            rows = measure_rates(stored, texts, vocab_path, args.batch_size, args.rounds)
            print(
                "\n".join(
                    format_table(("candidate", "first batch, s", "in a graph", "ours is", "in Python", "ours is"), rows)
                )
            )
    print("\npadding")
    header = ("", f"all to {MAX_LEN}", "per batch", "planned", "optimum", "planned lengths")
    print("\n".join(format_table(header, padding)))
    print("\norder: 64 shards of 10,000 examples, an example's places in successive epochs")
    header = ("", "mean distance, epochs", "rank correlation", f"shards in a batch of {args.batch_size}")
    print("\n".join(format_table(header, order_rows(64, 10_000, args.batch_size, 21))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
