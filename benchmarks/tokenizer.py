"""How fast texts become ids: ours, keras-bert's tokenizer, Hugging Face's fast one and tf-text's, and who agrees.

    python -m benchmarks.tokenizer [--data DIR] [--max_len 512] [--batch 512] [--rounds 5]

All candidates read the same real news articles, then the same real headlines. Rounds alternate between the candidates,
so that what else the machine does meets all of them, and the tables give medians. Everyone has to deliver the ids of
every text, `[CLS]` and `[SEP]` included and cut to `max_len`, in the form natural to it: lists of Python integers, an
array (ours, `encode_arrays`) or a ragged tensor (tf-text); nobody has to keep them. What keras-bert returns is the
truth the others are compared with, text by text.
"""

import argparse
import gc
import importlib.util
import itertools
import os
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")  # before TensorFlow comes in
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras_bert

from benchmarks.real_data import VOCAB, add_data_option, read_articles, read_titles
from benchmarks.results import Comparison, add_results_option, record
from pipeline.tokenization.tokenizer import Tokenizer
from pipeline.tokenization.vocabulary import CLS_TOKEN, SEP_TOKEN, UNK_TOKEN, load_vocab

REFERENCE = "keras-bert, encode"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One way to tokenize.

    Attributes:
        name: what the table calls it.
        encode_fn: what is timed: texts in, results of any kind out, one after another.
        to_ids_fn: what turns these results into one list of ids per text, for the comparison.
    """

    name: str
    encode_fn: Callable[[list[str]], Iterator[Any]]
    to_ids_fn: Callable[[Iterable[Any]], list[list[int]]]


@dataclass(frozen=True, kw_only=True)
class Absent:
    """A peer that cannot take part."""

    name: str
    reason: str


def ours(vocab: dict[str, int], max_len: int, batch_size: int) -> Iterator[Candidate]:
    """Yield our three ways to encode."""
    tokenizer = Tokenizer(vocab, max_len=max_len)

    def arrays_to_ids(batches: Iterable[Any]) -> list[list[int]]:
        return [
            batch.ids[start:stop].tolist() for batch in batches for start, stop in itertools.pairwise(batch.row_splits)
        ]

    yield Candidate(
        name=f"ours, encode_arrays of {batch_size}",
        encode_fn=lambda texts: (tokenizer.encode_arrays(batch) for batch in batches_of(texts, batch_size)),
        to_ids_fn=arrays_to_ids,
    )
    yield Candidate(
        name=f"ours, encode_batch of {batch_size}",
        encode_fn=lambda texts: (
            row for batch in batches_of(texts, batch_size) for row in tokenizer.encode_batch(batch)
        ),
        to_ids_fn=lambda rows: [indices for indices, _ in rows],
    )
    yield Candidate(
        name="ours, encode",
        encode_fn=lambda texts: (tokenizer.encode(text) for text in texts),
        to_ids_fn=lambda rows: [indices for indices, _ in rows],
    )


def keras_berts(vocab: dict[str, int], max_len: int) -> Candidate:
    """Return keras-bert's tokenizer, spared the padding where nothing can need cutting."""
    tokenizer = keras_bert.Tokenizer(vocab)

    def encode(text: str) -> tuple[list[int], list[int]]:
        return tokenizer.encode(text, max_len=max_len if len(text) > max_len - 2 else None)

    def unpadded(rows: Iterable[Any]) -> list[list[int]]:
        return [indices[: indices.index(vocab[SEP_TOKEN]) + 1] for indices, _ in rows]

    return Candidate(name=REFERENCE, encode_fn=lambda texts: (encode(text) for text in texts), to_ids_fn=unpadded)


def hugging_faces(vocab_path: Path, max_len: int, batch_size: int) -> Iterator[Candidate | Absent]:
    """Yield Hugging Face's `BertWordPieceTokenizer`, one text at a time and in batches (on all cores)."""
    names = ("Hugging Face, encode", f"Hugging Face, encode_batch of {batch_size}")
    if importlib.util.find_spec("tokenizers") is None:
        for absent in names:
            yield Absent(name=absent, reason="not installed: pip install tokenizers")
        return
    from tokenizers import BertWordPieceTokenizer

    tokenizer = BertWordPieceTokenizer(str(vocab_path), lowercase=True)
    tokenizer.enable_truncation(max_len)
    yield Candidate(
        name=names[0],
        encode_fn=lambda texts: (tokenizer.encode(text).ids for text in texts),
        to_ids_fn=list,
    )
    yield Candidate(
        name=names[1],
        encode_fn=lambda texts: (
            row.ids for batch in batches_of(texts, batch_size) for row in tokenizer.encode_batch(batch)
        ),
        to_ids_fn=list,
    )


def tf_text(vocab: dict[str, int], max_len: int, batch_size: int) -> Candidate | Absent:
    """Return tf-text's `FastBertTokenizer`, eagerly, in batches."""
    name = f"tf-text FastBertTokenizer, batches of {batch_size}"
    if importlib.util.find_spec("tensorflow_text") is None:
        return Absent(name=name, reason="not installed: pip install tensorflow-text")
    import tensorflow as tf
    import tensorflow_text

    tokenizer = tensorflow_text.FastBertTokenizer(
        list(vocab), token_out_type=tf.int32, unknown_token=UNK_TOKEN, lower_case_nfd_strip_accents=True
    )

    def encode(batch: Sequence[str]) -> tf.RaggedTensor:
        tokens = tokenizer.tokenize(tf.constant(batch))[:, : max_len - 2]
        column = tf.ones([len(batch), 1], tf.int32)
        return tf.concat([column * vocab[CLS_TOKEN], tokens, column * vocab[SEP_TOKEN]], axis=1)

    return Candidate(
        name=name,
        encode_fn=lambda texts: (encode(batch) for batch in batches_of(texts, batch_size)),
        to_ids_fn=lambda batches: [row for batch in batches for row in batch.to_list()],
    )


def batches_of(texts: list[str], batch_size: int) -> Iterator[list[str]]:
    """Yield `texts` in lists of at most `batch_size`."""
    for start in range(0, len(texts), batch_size):
        yield texts[start : start + batch_size]


def compare(
    title: str, texts: list[str], candidates: Sequence[Candidate | Absent], num_rounds: int
) -> list[Comparison]:
    """Time all candidates on `texts`, print their table, and return ours against each peer."""
    present = [candidate for candidate in candidates if isinstance(candidate, Candidate)]
    reference = next(candidate for candidate in present if candidate.name == REFERENCE)
    # Tuples of integers are nothing the garbage collector would go through while others are measured.
    expected = [tuple(row) for row in reference.to_ids_fn(reference.encode_fn(texts))]
    num_different: dict[str, int] = {}
    for candidate in present:  # a first round unmeasured: tables, caches and thread pools are built here
        rows = candidate.to_ids_fn(candidate.encode_fn(texts))
        num_different[candidate.name] = sum(tuple(got) != want for got, want in zip(rows, expected, strict=True))
        del rows
    seconds: dict[str, list[float]] = {candidate.name: [] for candidate in present}
    for _ in range(num_rounds):
        for candidate in present:
            gc.collect()
            start = time.perf_counter()
            deque(candidate.encode_fn(texts), maxlen=0)
            seconds[candidate.name].append(time.perf_counter() - start)

    reference_seconds = statistics.median(seconds[REFERENCE])
    num_chars = sum(map(len, texts))
    num_ids = sum(map(len, expected))
    print(f"\n{title}: {len(texts):,} texts, {num_chars / len(texts):.0f} characters and", end=" ")
    print(f"{num_ids / len(texts):.0f} ids on average; medians of {num_rounds} rounds")
    print(f"{'':46}{'texts/s':>12}{'× keras-bert':>15}{'compared':>11}{'differ':>10}")
    for entry in candidates:
        if isinstance(entry, Absent):
            print(f"{entry.name:46}{entry.reason}")
            continue
        median = statistics.median(seconds[entry.name])
        print(
            f"{entry.name:46}{len(texts) / median:>12,.0f}{reference_seconds / median:>15.2f}"
            f"{len(texts):>11,}{num_different[entry.name]:>10,}"
        )
    rates = {name: len(texts) / statistics.median(values) for name, values in seconds.items()}
    ours = next(iter(rates))
    return [
        Comparison(
            benchmark="tokenizer",
            subject=title.lower(),
            unit="texts/s",
            ours=ours,
            our_rate=rates[ours],
            peer=name,
            peer_rate=rate,
            rounds=num_rounds,
        )
        for name, rate in rates.items()
        if not name.startswith("ours")
    ]


def versions() -> str:
    """Return what is measured here, in one line."""
    names = ("numpy", "keras-bert", "tokenizers", "tensorflow-text", "tensorflow")
    found = {
        distribution.name.lower().replace("_", "-"): distribution.version for distribution in metadata.distributions()
    }
    listed = ", ".join(f"{name} {found[name]}" for name in names if name in found)
    return f"Python {sys.version.split()[0]}, {os.cpu_count()} cores; {listed}"


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(description="Time tokenizers on real articles and headlines.")
    add_data_option(parser)
    parser.add_argument("--max_len", type=int, default=512, help="longest row of ids (default 512)")
    parser.add_argument("--batch", type=int, default=512, help="texts per call of those that take many (default 512)")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds (default 5)")
    add_results_option(parser)
    options = parser.parse_args(argv)

    vocab_path = options.data / VOCAB
    vocab = load_vocab(vocab_path)
    candidates: list[Candidate | Absent] = [
        *ours(vocab, options.max_len, options.batch),
        keras_berts(vocab, options.max_len),
        *hugging_faces(vocab_path, options.max_len, options.batch),
        tf_text(vocab, options.max_len, options.batch),
    ]
    print(versions())
    record(options.results, compare("Articles", read_articles(options.data), candidates, options.rounds))
    record(options.results, compare("Headlines", read_titles(options.data), candidates, options.rounds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
