"""From a tree of articles to records on disk: ours against three usual ways; `python -m benchmarks.preprocess`.

Each way runs in a process of its own, in alternating rounds: (a) one Python loop with keras-bert's tokenizer and
TensorFlow's writer, as the write-up this project starts from would do it; (b) the textbook Beam job, `MatchFiles →
ReadMatches → Map → WriteToTFRecord`, with keras-bert's tokenizer, on Beam's local engine; (c) Hugging Face
`datasets.map` with its fast tokenizer and two processes, which writes Arrow instead of TFRecords. None of the three
splits, shuffles, checks for duplicates or writes a manifest. Ours gets the largest tree, so that its rate measures work
and not start-up; the others process fewer documents, and the table compares rates.
"""

import argparse
import importlib.util
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.measure import Run, describe_machine, median, run_measured
from benchmarks.real_data import DATA_DIR, VOCAB
from benchmarks.results import Comparison, add_results_option, record
from pipeline.dataset.summary import format_table
from pipeline.sample_corpus.tree import write_sample_corpus

MAX_LEN = 512


def way_ours(corpus: str, vocab: str, output: str) -> None:
    """Preprocess with this project's job."""
    from pipeline.corpus.options import CorpusOptions, InputSpec
    from pipeline.job.config import PreprocessConfig
    from pipeline.job.preprocess import run

    run(
        PreprocessConfig(
            corpus=CorpusOptions(inputs=(InputSpec(corpus),)), vocab_path=vocab, output_dir=output, max_len=MAX_LEN
        )
    )


def _keras_bert_encoder(vocab: str) -> Callable[[str], tuple[list[int], list[int]]]:
    import keras_bert

    from pipeline.tokenization.vocabulary import load_vocab

    tokenizer = keras_bert.Tokenizer(load_vocab(vocab))

    def encode(text: str) -> tuple[list[int], list[int]]:
        indices, segments = tokenizer.encode(first=text, max_len=MAX_LEN)
        return indices, segments

    return encode


def _to_example(encode: Callable[[str], tuple[list[int], list[int]]], text: str, label: int) -> bytes:
    import tensorflow as tf

    def integers(values: list[int]) -> tf.train.Feature:
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))

    indices, segments = encode(text)
    features = {"indices": integers(indices), "segments": integers(segments), "label": integers([label])}
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def way_one_loop(corpus: str, vocab: str, output: str) -> None:
    """(a) One process, one loop."""
    import tensorflow as tf

    from pipeline.corpus.documents import normalize_text

    encode = _keras_bert_encoder(vocab)
    os.makedirs(output)
    with tf.io.TFRecordWriter(os.path.join(output, "all.tfrecord")) as writer:
        for label, category in enumerate(sorted(os.listdir(corpus))):
            for name in sorted(os.listdir(os.path.join(corpus, category))):
                text = Path(corpus, category, name).read_text(encoding="utf-8")
                writer.write(_to_example(encode, normalize_text(text), label))


def way_textbook_beam(corpus: str, vocab: str, output: str) -> None:
    """(b) The usual Beam job."""
    import apache_beam as beam
    from apache_beam.io import fileio

    from pipeline.corpus.documents import normalize_text

    class Encode(beam.DoFn):
        def setup(self) -> None:
            self._encode = _keras_bert_encoder(vocab)

        def process(self, file: fileio.ReadableFile) -> list[bytes]:
            return [_to_example(self._encode, normalize_text(file.read_utf8()), 0)]

    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        (
            pipeline
            | fileio.MatchFiles(os.path.join(corpus, "*", "*.txt"))
            | fileio.ReadMatches()
            | beam.Reshuffle()
            | beam.ParDo(Encode())
            | beam.io.WriteToTFRecord(os.path.join(output, "train"), num_shards=8)
        )


def way_hugging_face(corpus: str, vocab: str, output: str) -> None:
    """(c) `datasets.map` in two processes."""
    from datasets import Dataset
    from tokenizers import BertWordPieceTokenizer

    from pipeline.corpus.documents import normalize_text

    def read() -> object:
        for category in sorted(os.listdir(corpus)):
            for name in sorted(os.listdir(os.path.join(corpus, category))):
                yield {"text": normalize_text(Path(corpus, category, name).read_text(encoding="utf-8"))}

    def encode(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        tokenizer = BertWordPieceTokenizer(vocab, lowercase=True)
        tokenizer.enable_truncation(MAX_LEN)
        return {"indices": [encoding.ids for encoding in tokenizer.encode_batch(batch["text"])]}

    # A tokenizer per process does its work in that process alone.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    data = Dataset.from_generator(read, cache_dir=output)
    data.map(encode, batched=True, num_proc=2, remove_columns=["text"]).save_to_disk(os.path.join(output, "saved"))


WAYS = {
    "ours": way_ours,
    "(a) one loop, keras-bert": way_one_loop,
    "(b) textbook Beam, keras-bert": way_textbook_beam,
    "(c) datasets.map, num_proc=2": way_hugging_face,
}
NEEDS = {"(c) datasets.map, num_proc=2": ("datasets", "tokenizers")}


def main() -> int:
    """Run every way in alternating rounds and print the medians, or run one way and print its time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=100_000, help="for ours")
    parser.add_argument("--peer_documents", type=int, default=20_000, help="for (a) and (c)")
    parser.add_argument("--beam_documents", type=int, default=5_000, help="for (b), which is slow")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--vocab", default=str(DATA_DIR / VOCAB))
    parser.add_argument("--one", nargs=4, metavar=("WAY", "CORPUS", "VOCAB", "OUTPUT"), help=argparse.SUPPRESS)
    add_results_option(parser)
    args = parser.parse_args()
    if args.one:
        way, corpus, vocab, output = args.one
        # Imports are not part of the work; a long-running process pays them once.
        for module in ("apache_beam", "pipeline.job.preprocess") if way == "ours" else ("tensorflow",):
            if way != "(c) datasets.map, num_proc=2":
                __import__(module)
        started = time.perf_counter()
        WAYS[way](corpus, vocab, output)
        print(json.dumps(time.perf_counter() - started))
        return 0
    with tempfile.TemporaryDirectory() as directory:
        report = _compare(args, directory)
    print(report)
    return 0


def _compare(args: argparse.Namespace, directory: str) -> str:
    sizes = dict.fromkeys(WAYS, args.peer_documents) | {
        "ours": args.documents,
        "(b) textbook Beam, keras-bert": args.beam_documents,
    }
    for size in sorted(set(sizes.values())):
        write_sample_corpus(os.path.join(directory, str(size)), num_documents=size, seed=0, num_workers=2)
    ways = [way for way in WAYS if all(importlib.util.find_spec(module) for module in NEEDS.get(way, ()))]
    runs: dict[str, list[Run]] = {way: [] for way in ways}
    for number in range(args.rounds):
        for way in ways:
            output = os.path.join(directory, f"output-{number}")
            run = run_measured(
                ["benchmarks.preprocess", "--one", way, os.path.join(directory, str(sizes[way])), args.vocab, output]
            )
            runs[way].append(run)
            shutil.rmtree(output, ignore_errors=True)
            print(f"round {number + 1}, {way}: {run.work_seconds:.1f} s", file=sys.stderr)
    rates = {way: sizes[way] / median([run.work_seconds for run in runs[way]]) for way in ways}
    whole = {way: sizes[way] / median([run.seconds for run in runs[way]]) for way in ways}
    record(
        args.results,
        [
            Comparison(
                benchmark="preprocess",
                subject="tree of articles",
                unit="documents/s",
                ours=f"ours, {sizes['ours']:,} documents",
                our_rate=rates["ours"],
                peer=f"{way[4:]}, {sizes[way]:,} documents",
                peer_rate=rate,
                rounds=args.rounds,
            )
            for way, rate in rates.items()
            if way != "ours"
        ],
    )
    rows = [
        (
            way,
            f"{sizes[way]:,}",
            f"{rates[way]:,.0f}",
            f"{rates['ours'] / rates[way]:.1f}x",
            f"{whole[way]:,.0f}",
            f"{whole['ours'] / whole[way]:.1f}x",
            f"{max(run.peak_bytes for run in runs[way]) / 1e6:,.0f}",
        )
        for way in ways
    ]
    header = ("way", "documents", "docs/s", "ours is", "with imports", "ours is", "peak MB")
    missing = [f"{way}: not installed, see requirements/bench.txt" for way in WAYS if way not in ways]
    lines = [
        describe_machine(),
        f"medians of {args.rounds} alternating rounds",
        "",
        *format_table(header, rows),
        *missing,
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
