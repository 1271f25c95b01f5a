"""The full-size rehearsal: 836,074 made-up files; `python -m benchmarks.full_size`.

Writes about 2.2 GB of small files and 1 GB of dataset into --work; the corpus is kept for the next time unless
--remove is given.
"""

import argparse
import shutil
import sys
import time
from pathlib import Path

from benchmarks.measure import describe_machine, run_measured
from benchmarks.real_data import DATA_DIR, VOCAB
from pipeline.command_line import num_cores
from pipeline.dataset.info import read_dataset_info
from pipeline.sample_corpus.tree import write_sample_corpus

THUCNEWS_DOCUMENTS = 836_074


def main() -> int:
    """Make the corpus, preprocess it, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="a directory with 4 GB to spare")
    parser.add_argument("--documents", type=int, default=THUCNEWS_DOCUMENTS)
    parser.add_argument("--vocab", default=str(DATA_DIR / VOCAB))
    parser.add_argument("--remove", action="store_true", help="remove the corpus afterwards, which takes minutes")
    args = parser.parse_args()
    corpus, output = args.work / f"corpus-{args.documents}", args.work / "dataset"
    if not corpus.exists():
        started = time.perf_counter()
        write_sample_corpus(str(corpus), num_documents=args.documents, num_workers=num_cores())
        print(f"made {args.documents:,} documents in {time.perf_counter() - started:.0f} s", flush=True)
    shutil.rmtree(output, ignore_errors=True)
    run = run_measured(["benchmarks.preprocess", "--one", "ours", str(corpus), args.vocab, str(output)])
    info = read_dataset_info(str(output))
    num_bytes = sum(file.num_bytes for split in info.splits.values() for file in split.files)
    print(describe_machine())
    print(f"documents: {info.documents.read:,} read = {info.documents.written:,} written + {info.documents.rejected}")
    print(f"wall time: {run.seconds:.0f} s, {args.documents / run.seconds:,.0f} documents/s")
    print(f"peak memory, all processes: {run.peak_bytes / 2**20:,.0f} MiB")
    print(f"written: {num_bytes / 1e6:,.0f} MB in {sum(len(split.shards) for split in info.splits.values())} shards")
    if args.remove:
        shutil.rmtree(args.work)
    return 0


if __name__ == "__main__":
    sys.exit(main())
