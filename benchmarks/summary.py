"""Every benchmark one after the other, and one table of ours against each peer: `make bench`, `make bench-quick`.

What each benchmark prints goes to the terminal and to RESULTS/<benchmark>.txt; the table to RESULTS/summary.txt and, as
a picture, to RESULTS/summary.svg. Ratios are of medians measured in the same run; keep the machine quiet meanwhile.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.figures import save_svg
from benchmarks.headlines import preprocess_headlines
from benchmarks.measure import describe_machine
from benchmarks.results import Comparison, read_results
from pipeline.dataset.summary import format_table

TITLES_DATASET = "{titles}"

# Benchmark -> its options, all and quick; `None` leaves it out.
BENCHMARKS: dict[str, tuple[list[str], list[str] | None]] = {
    "tokenizer": ([], ["--rounds", "1"]),
    "preprocess": ([], ["--rounds", "1", "--documents", "4000", "--peer_documents", "4000", "--beam_documents", "500"]),
    "formats": ([], ["--rounds", "1", "--documents", "2000"]),
    "reader": ([], ["--rounds", "1", "--examples", "30000"]),
    "verify": ([], ["--rounds", "1", "--examples", "30000"]),
    "train_step": (
        ["--titles", TITLES_DATASET],
        ["--rounds", "2", "--layers", "1", "--poolings", "cls", "--without_torch", "--titles", TITLES_DATASET],
    ),
    "export": ([], None),
}


def main() -> int:
    """Run the benchmarks, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, less data: rough figures in minutes")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"), metavar="RESULTS")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as directory:
        results = Path(directory) / "results.jsonl"
        titles = str(Path(directory) / "titles")
        preprocess_headlines(titles)
        for name, (all_options, quick_options) in BENCHMARKS.items():
            chosen = quick_options if options.quick else all_options
            if chosen is None:
                continue
            arguments = [titles if argument == TITLES_DATASET else argument for argument in chosen]
            _run_benchmark(name, [*arguments, "--results", str(results)], options.output / f"{name}.txt")
        comparisons = read_results(results)
    minutes = (time.perf_counter() - started) / 60
    table = "\n".join(
        [
            f"{describe_machine()}; {'quick, ' if options.quick else ''}{minutes:.0f} minutes in all",
            "",
            *format_table(("benchmark", "on", "ours", "rate", "peer", "rate", "ratio", "rounds"), _rows(comparisons)),
        ]
    )
    (options.output / "summary.txt").write_text(f"{table}\n", encoding="utf-8")
    _plot(comparisons, options.output / "summary.svg")
    print(f"\n{table}\n\nwritten to {options.output}/")
    return 0


def _run_benchmark(name: str, arguments: list[str], log: Path) -> None:
    """Run one benchmark; its table goes to the terminal and to a file."""
    print(f"\n=== {name}", flush=True)
    with (
        log.open("w", encoding="utf-8") as stream,
        subprocess.Popen(
            [sys.executable, "-m", f"benchmarks.{name}", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
        ) as process,
    ):
        for line in process.stdout or ():
            print(line, end="", flush=True)
            stream.write(line)
    if process.returncode:
        raise SystemExit(f"benchmarks.{name} failed with status {process.returncode}; run it alone to see why")


def _rows(comparisons: list[Comparison]) -> list[tuple[str, ...]]:
    return [
        (
            one.benchmark,
            one.subject,
            one.ours,
            f"{_in_digits(one.our_rate)} {one.unit}",
            one.peer,
            _in_digits(one.peer_rate),
            f"{one.ratio:.2f}x",
            str(one.rounds),
        )
        for one in comparisons
    ]


def _in_digits(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}"


def _plot(comparisons: list[Comparison], path: Path) -> None:
    """Draw the ratios as bars on a logarithmic axis; what is left of 1 is faster than ours."""
    figure = Figure(figsize=(9, 0.32 * len(comparisons) + 1), layout="constrained")
    axes = figure.subplots()
    places = range(len(comparisons), 0, -1)
    ratios = [one.ratio for one in comparisons]
    colours = ["#4477aa" if ratio >= 1 else "#cc6677" for ratio in ratios]
    axes.barh(places, [ratio - 1 for ratio in ratios], left=1, color=colours, height=0.6)
    axes.set_xscale("log")
    axes.set_yticks(places, [f"{one.benchmark}, {one.subject}: {one.ours} / {one.peer}" for one in comparisons])
    for place, ratio in zip(places, ratios, strict=True):
        axes.annotate(f" {ratio:.1f} ", (ratio, place), va="center", ha="left" if ratio >= 1 else "right", fontsize=8)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.margins(x=0.15, y=0.02)
    axes.tick_params(labelsize=8)
    axes.set_xlabel("ours / peer")
    axes.spines[["top", "right"]].set_visible(False)
    save_svg(figure, path)


if __name__ == "__main__":
    sys.exit(main())
