"""`pipeline.verify` beside `sha256sum`: how fast a dataset is read back; `python -m benchmarks.verify`.

A dataset of made-up articles is written once; then, in turns, `sha256sum` sums up its shards (one process, and one per
core), and `verify` checks all that it checks. Files are warm in the page cache, so that the work is what is measured.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.dataset import write_dataset
from benchmarks.measure import describe_machine, median
from benchmarks.results import Comparison, add_results_option, record
from pipeline.command_line import num_cores
from pipeline.dataset.info import DatasetInfo

VOCAB_SIZE = 21_128
CLS, SEP = 1, 2
MEAN_LENGTH = 420  # of THUCNews under max_len 512


def make_dataset(directory: Path, num_examples: int) -> DatasetInfo:
    """Write examples as long as articles are, with ids spread as those of Chinese text are: most below 8,105."""
    draw = np.random.default_rng(0)
    lengths = np.minimum(draw.geometric(1 / MEAN_LENGTH, num_examples) + 100, 512)
    rows = [[CLS, *(SEP + 2 + draw.zipf(1.1, length - 2) % 8_000).tolist(), SEP] for length in lengths.tolist()]
    return write_dataset(directory, rows, max_len=512, vocab_size=VOCAB_SIZE)


def timed(command: list[str]) -> float:
    """Run a command and return its seconds, start-up included."""
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def timed_at_once(commands: list[list[str]]) -> float:
    """Run commands side by side and return the seconds until the last has ended."""
    started = time.perf_counter()
    processes = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for command in commands]
    if any(process.wait() for process in processes):
        raise RuntimeError("sha256sum failed")
    return time.perf_counter() - started


def main() -> int:
    """Measure in turns, print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    add_results_option(parser)
    args = parser.parse_args()
    cores = num_cores()
    with tempfile.TemporaryDirectory() as work:
        directory = Path(work) / "dataset"
        info = make_dataset(directory, args.examples)
        shards = [str(directory / shard.name) for shard in info.splits["train"].shards]
        num_bytes = sum(os.path.getsize(shard) for shard in shards)
        ways: dict[str, Callable[[], float]] = {
            "sha256sum, one process": lambda: timed(["sha256sum", *shards]),
            f"sha256sum, {cores} at once": lambda: timed_at_once(
                [["sha256sum", *shards[core::cores]] for core in range(cores)]
            ),
            "verify": lambda: timed([sys.executable, "-m", "pipeline.verify", str(directory)]),
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(args.rounds):
            for name, way in ways.items():
                seconds[name].append(way())
    print(describe_machine())
    print(f"{args.examples:,} examples, {num_bytes / 1e6:,.0f} MB in {len(shards)} shards")
    medians = {name: median(times) for name, times in seconds.items()}
    record(
        args.results,
        [
            Comparison(
                benchmark="verify",
                subject="articles",
                unit="MB/s",
                ours="pipeline.verify",
                our_rate=num_bytes / 1e6 / medians["verify"],
                peer=name,
                peer_rate=num_bytes / 1e6 / value,
                rounds=args.rounds,
            )
            for name, value in medians.items()
            if name != "verify"
        ],
    )
    for name, value in medians.items():
        print(f"{name:<24} {num_bytes / 1e6 / value:8,.0f} MB/s  {medians['verify'] / value:5.2f} × in verify's time")
    return 0


if __name__ == "__main__":
    sys.exit(main())
