"""How fast the exported model labels raw texts, and what tokenizing inside the graph costs.

    python -m benchmarks.export [--run RUN] [--data DIR] [--max_len 512] [--batch 64] [--rounds 5]

The same batches of real articles, then of real headlines, go through four things: the tokenizer in the graph alone,
`pipeline.tokenization.tokenizer` alone, the exported model's `serving_default` (raw text in), and its signature `ids`
behind `pipeline.tokenization.tokenizer`. Rounds alternate, so that what else the machine does meets all of them, and
the tables give medians. The ids of both tokenizers are compared text by text.

Without `--run` a small BERT is exported as it was born: speed does not depend on what weights have learned.
"""

import argparse
import dataclasses
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")  # before TensorFlow comes in

import numpy as np
import tensorflow as tf
import tf_keras

from benchmarks.real_data import VOCAB, add_data_option, read_articles, read_titles
from benchmarks.results import Comparison, add_results_option, record
from benchmarks.tokenizer import batches_of
from model.bert.config import BertConfig
from model.classifier import build_classifier
from model.run.finished import load_finished_run, load_run_vocab
from model.serving.graph_tokenizer import GraphTokenizer
from model.serving.saved_model import make_tokenize_fn, write_saved_model
from pipeline.corpus.documents import normalize_text
from pipeline.tokenization.tokenizer import Tokenizer
from pipeline.tokenization.vocabulary import load_vocab

HEADS = {"category": 14, "second": 3}
NUM_ARTICLES, NUM_TITLES = 512, 8192


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """One thing that is timed.

    Attributes:
        name: what the table calls it.
        run_fn: takes a batch of texts.
    """

    name: str
    run_fn: Callable[[list[str]], object]


def untrained_classifier(directory: Path, vocab_size: int, max_len: int) -> tf_keras.Model:
    """Build a classifier with the sizes of `model.sample_bert`'s BERT and random weights."""
    config = BertConfig(
        vocab_size=vocab_size,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=512,
        max_position_embeddings=max_len,
    )
    (directory / "bert_config.json").write_text(config.to_json(), encoding="utf-8")
    return build_classifier(directory, HEADS, load_weights=False, policy="float32")


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> np.ndarray:
    """Return the ids of raw texts, int32 [B, L], padded with 0."""
    rows = tokenizer.encode_arrays([normalize_text(text) for text in texts])
    indices = np.zeros((len(texts), rows.lengths.max()), np.int32)
    indices[np.arange(indices.shape[1]) < rows.lengths[:, np.newaxis]] = rows.ids
    return indices


def compare(
    title: str, texts: list[str], candidates: Sequence[Candidate], batch_size: int, num_rounds: int
) -> list[Comparison]:
    """Time all candidates on `texts`, print their table, and return text in against Python's tokenizer and ids."""
    batches = list(batches_of(texts, batch_size))
    seconds: dict[str, list[float]] = {candidate.name: [] for candidate in candidates}
    for number, candidate in itertools.product(range(num_rounds + 1), candidates):
        started = time.perf_counter()
        for batch in batches:
            candidate.run_fn(batch)
        if number:  # the first round builds caches and thread pools
            seconds[candidate.name].append(time.perf_counter() - started)
    num_chars = sum(map(len, texts)) / len(texts)
    print(f"\n{title}: {len(texts):,} texts of {num_chars:.0f} characters, batches of {batch_size}; ", end="")
    print(f"medians of {num_rounds} rounds\n{'':56}{'texts/s':>10}{'ms/batch':>10}")
    for name, values in seconds.items():
        median = statistics.median(values)
        print(f"{name:56}{len(texts) / median:>10,.0f}{1e3 * median / len(batches):>10.1f}")
    rates = [len(texts) / statistics.median(values) for values in seconds.values()]
    return [
        Comparison(
            benchmark="export",
            subject=title.lower(),
            unit="texts/s",
            ours=candidates[ours].name,
            our_rate=rates[ours],
            peer=candidates[ours + 1].name,
            peer_rate=rates[ours + 1],
            rounds=num_rounds,
        )
        for ours in (0, 2)
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(description="Time the exported model on real articles and headlines.")
    parser.add_argument("--run", help="a finished run (default: a small BERT with random weights)")
    add_data_option(parser)
    parser.add_argument("--max_len", type=int, default=512, help="longest row of ids, without --run (default 512)")
    parser.add_argument("--batch", type=int, default=64, help="texts per call (default 64)")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds (default 5)")
    add_results_option(parser)
    options = parser.parse_args(argv)
    vocab_path = options.data / VOCAB

    with tempfile.TemporaryDirectory() as directory:
        if options.run:
            finished = load_finished_run(options.run)
            model, labels, max_len, vocab = finished.model, finished.labels, finished.max_len, load_run_vocab(finished)
        else:
            vocab, max_len = load_vocab(vocab_path), options.max_len
            model = untrained_classifier(Path(directory), len(vocab), max_len)
            labels = {head: [f"{head} {number}" for number in range(size)] for head, size in HEADS.items()}
        tokenizer = Tokenizer(vocab, max_len=max_len)
        tokenize_fn = make_tokenize_fn(GraphTokenizer(vocab, max_len=max_len))
        saved_model = Path(directory) / "saved_model"
        write_saved_model(model, labels, tokenize_fn, saved_model)
        loaded = tf.saved_model.load(str(saved_model))
        from_text, from_ids = loaded.signatures["serving_default"], loaded.signatures["ids"]

        def answer_ids(texts: list[str]) -> object:
            indices = tf.constant(encode(tokenizer, texts))
            return from_ids(indices=indices, segments=tf.zeros_like(indices))

        candidates = [
            Candidate(name="tokenizer in the graph", run_fn=lambda texts: tokenize_fn(tf.constant(texts))),
            Candidate(name="pipeline.tokenization.tokenizer", run_fn=lambda texts: encode(tokenizer, texts)),
            Candidate(name="serving_default: text in", run_fn=lambda texts: from_text(text=tf.constant(texts))),
            Candidate(name="pipeline.tokenization.tokenizer, then the signature ids", run_fn=answer_ids),
        ]
        print(
            f"TensorFlow {tf.__version__}, Python {sys.version.split()[0]}, {os.cpu_count()} cores; "
            f"{model.count_params():,} parameters, max_len {max_len}"
        )
        for title, texts in (
            ("Articles", read_articles(options.data)[:NUM_ARTICLES]),
            ("Headlines", read_titles(options.data)[:NUM_TITLES]),
        ):
            record(options.results, compare(title, texts, candidates, options.batch, options.rounds))
            num_different = 0
            for batch in batches_of(texts, options.batch):
                ours, in_graph = encode(tokenizer, batch), tokenize_fn(tf.constant(batch))[0].numpy()
                num_different += (
                    int((ours != in_graph).any(axis=1).sum()) if ours.shape == in_graph.shape else len(batch)
                )
            print(f"ids compared: {len(texts):,} texts, {num_different:,} differ")
    return 0


if __name__ == "__main__":
    sys.exit(main())
