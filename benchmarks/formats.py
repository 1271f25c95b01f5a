"""One corpus in every format to records on disk, ours beside `datasets.load_dataset`; `python -m benchmarks.formats`.

Each run is a process of its own, in alternating rounds. The peer reads CSV, JSON lines and Parquet, and maps its fast
tokenizer over them in two processes, which writes Arrow instead of TFRecords; it has no reader for the other formats.
"""

import argparse
import csv
import gzip
import importlib.util
import json
import os
import shutil
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.measure import Run, describe_machine, median, run_measured
from benchmarks.preprocess import MAX_LEN
from benchmarks.real_data import DATA_DIR, VOCAB
from benchmarks.results import Comparison, add_results_option, record
from pipeline.dataset.summary import format_table
from pipeline.sample_corpus.__main__ import write_sample_corpus

Document = tuple[str, str]  # category, text


def _read_tree(tree: Path) -> list[Document]:
    return [(path.parent.name, path.read_text(encoding="utf-8")) for path in sorted(tree.glob("*/*.txt"))]


def _write_lines(path: Path, documents: Sequence[Document]) -> None:
    lines = (f"{text.strip().replace(chr(10), '。')}\t{category}\n" for category, text in documents)
    path.write_text("".join(lines), encoding="utf-8")


def _write_csv(path: Path, documents: Sequence[Document]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("category", "text"))
        writer.writerows(documents)


def _write_json(path: Path, documents: Sequence[Document]) -> None:
    rows = (json.dumps({"text": text, "category": category}, ensure_ascii=False) for category, text in documents)
    path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")


def _write_parquet(path: Path, documents: Sequence[Document]) -> None:
    import pyarrow
    import pyarrow.parquet

    columns = {"text": [text for _, text in documents], "category": [category for category, _ in documents]}
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=1_000)


TABLES: dict[str, Callable[[Path, Sequence[Document]], None]] = {
    "corpus.tsv": _write_lines,
    "corpus.csv": _write_csv,
    "corpus.jsonl": _write_json,
    "corpus.parquet": _write_parquet,
}
PEERS = {"corpus.csv": "csv", "corpus.csv.gz": "csv", "corpus.jsonl": "json", "corpus.jsonl.gz": "json"} | {
    "corpus.parquet": "parquet"
}


def write_formats(root: Path, num_documents: int) -> list[str]:
    """Write a made-up corpus in every format; return the names."""
    tree = root / "tree"
    write_sample_corpus(str(tree), num_documents=num_documents, seed=0, num_workers=2)
    documents = _read_tree(tree)
    names = ["tree", "corpus.zip", "corpus.tar", "corpus.tar.gz"]
    with zipfile.ZipFile(root / "corpus.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(tree.glob("*/*.txt")):
            archive.write(path, path.relative_to(tree))
    for name, mode in (("corpus.tar", "w:"), ("corpus.tar.gz", "w:gz")):
        with tarfile.open(root / name, mode) as made:  # type: ignore[call-overload]
            made.add(tree, "corpus")
    for name, write_fn in TABLES.items():
        write_fn(root / name, documents)
        names.append(name)
        if name != "corpus.parquet":
            (root / f"{name}.gz").write_bytes(gzip.compress((root / name).read_bytes(), 6))
            names.append(f"{name}.gz")
    return names


def run_ours(path: str, vocab: str, output: str) -> None:
    """Preprocess with this project's job."""
    from pipeline.corpus.options import Columns, CorpusOptions, InputSpec
    from pipeline.job.config import PreprocessConfig
    from pipeline.job.preprocess import run

    is_named = ".csv" in path
    columns = Columns.parse("text=text,category=category" if is_named else "text,category")
    corpus = CorpusOptions(inputs=(InputSpec(path),), columns=columns)
    run(PreprocessConfig(corpus=corpus, vocab_path=vocab, output_dir=output, max_len=MAX_LEN))


def run_peer(path: str, vocab: str, output: str) -> None:
    """Load with `datasets`, and map a fast tokenizer."""
    from datasets import load_dataset
    from tokenizers import BertWordPieceTokenizer

    def encode(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        tokenizer = BertWordPieceTokenizer(vocab, lowercase=True)
        tokenizer.enable_truncation(MAX_LEN)
        return {"indices": [encoding.ids for encoding in tokenizer.encode_batch(batch["text"])]}

    # A tokenizer per process does its work in that process alone.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    kind = PEERS[os.path.basename(path)]
    data = load_dataset(kind, data_files=path, split="train", cache_dir=os.path.join(output, "cache"))
    data.map(encode, batched=True, num_proc=2, remove_columns=["text"]).save_to_disk(os.path.join(output, "saved"))


def main() -> int:
    """Run every format in alternating rounds and print the medians, or run one and print its time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--vocab", default=str(DATA_DIR / VOCAB))
    parser.add_argument("--one", nargs=4, metavar=("WAY", "PATH", "VOCAB", "OUTPUT"), help=argparse.SUPPRESS)
    add_results_option(parser)
    args = parser.parse_args()
    if args.one:
        way, path, vocab, output = args.one
        # Imports are not part of the work; a long-running process pays them once.
        __import__("pipeline.job.preprocess" if way == "ours" else "datasets")
        started = time.perf_counter()
        (run_ours if way == "ours" else run_peer)(path, vocab, output)
        print(json.dumps(time.perf_counter() - started))
        return 0
    with tempfile.TemporaryDirectory() as directory:
        print(_compare(args, Path(directory)))
    return 0


def _compare(args: argparse.Namespace, root: Path) -> str:
    names = write_formats(root, args.documents)
    has_peer = bool(importlib.util.find_spec("datasets"))
    runs: dict[tuple[str, str], list[Run]] = {}
    for number in range(args.rounds):
        for name in names:
            for way in ("ours", "datasets") if has_peer and name in PEERS else ("ours",):
                output = str(root / "output")
                run = run_measured(["benchmarks.formats", "--one", way, str(root / name), args.vocab, output])
                runs.setdefault((name, way), []).append(run)
                shutil.rmtree(output, ignore_errors=True)
                print(f"round {number + 1}, {name}, {way}: {run.work_seconds:.1f} s", file=sys.stderr)
    rates = {key: args.documents / median([run.work_seconds for run in made]) for key, made in runs.items()}
    record(
        args.results,
        [
            Comparison(
                benchmark="formats",
                subject=name,
                unit="documents/s",
                ours=f"ours, {args.documents:,} documents",
                our_rate=rates[name, "ours"],
                peer="datasets.load_dataset and map, num_proc=2",
                peer_rate=rate,
                rounds=args.rounds,
            )
            for (name, way), rate in rates.items()
            if way != "ours"
        ],
    )
    rows = []
    for name in names:
        peer = rates.get((name, "datasets"))
        shown = (f"{peer:,.0f}", f"{rates[name, 'ours'] / peer:.1f}x") if peer else ("-", "-")
        peak = max(run.peak_bytes for run in runs[name, "ours"]) / 1e6
        rows.append((name, f"{rates[name, 'ours']:,.0f}", *shown, f"{peak:,.0f}"))
    table = format_table(("format", "ours, docs/s", "datasets, docs/s", "ours is", "our peak MB"), rows)
    header = f"{args.documents:,} documents, medians of {args.rounds} alternating rounds"
    return "\n".join([describe_machine(), header, "", *table])


if __name__ == "__main__":
    sys.exit(main())
