"""THUCNews headlines from random weights: `python -m benchmarks.headlines [--output DIR] [options of run_train.py]`.

89,618 headlines of 10 categories for training, 10,000 for validation, which is what is measured. Prints what every
epoch gave and how much processor time the training took, start-up included, and draws the curve. Options that are not
this command's own are added to those of `TRAINING`, or replace them.
"""

import argparse
import csv
import shlex
import sys
import tempfile
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.figures import save_svg
from benchmarks.measure import describe_machine, make_bert, run_command
from benchmarks.real_data import DATA_DIR, TITLES, VOCAB
from pipeline.dataset.info import read_dataset_info
from pipeline.dataset.summary import format_table

# A BERT without pre-training learns with a rate that would ruin a pre-trained one, and soon knows its texts by heart.
TRAINING = (
    *("--batch_size", "128", "--schedule", "linear", "--learning_rate", "7e-4", "--epochs", "4"),
    *("--pooling", "max", "--dropout", "0.3"),
)
CURVES = {"val_category_accuracy": "category", "val_second_accuracy": "second", "val_exact_match": "both"}


def preprocess_headlines(output: str) -> None:
    """Make the dataset of the published splits."""
    run_command(
        *("run_preprocess.py", "--input", f"train={DATA_DIR / TITLES / 'train.txt'}"),
        *("--input", f"dev={DATA_DIR / TITLES / 'dev.txt'}"),
        *("--category_names", str(DATA_DIR / TITLES / "class_zh.txt"), "--vocab", str(DATA_DIR / VOCAB)),
        *("--output", output),
    )


def main() -> int:
    """Train, print what came of it, and draw the curve."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument(
        "--output", type=Path, help="keep dataset, BERT, run and curve.svg here, and go on with those that are there"
    )
    options, more = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as directory:
        print(_train(options.output or Path(directory), options.layers, options.hidden, (*TRAINING, *more)))
    return 0


def _train(directory: Path, layers: int, hidden: int, training: tuple[str, ...]) -> str:
    data, bert, run = (directory / name for name in ("dataset", "bert", "run"))
    if not data.exists():
        preprocess_headlines(str(data))
    if not bert.exists():
        make_bert(str(bert), DATA_DIR / VOCAB, layers=layers, hidden=hidden)
    seconds, processor_seconds = run_command(
        *("run_train.py", "--data", str(data), "--bert", str(bert), "--output", str(run), *training), stderr=None
    )
    with (run / "metrics.csv").open(encoding="utf-8", newline="") as stream:
        epochs = list(csv.DictReader(stream))
    _draw(epochs, directory / "curve.svg")
    rows = [
        (
            epoch["epoch"],
            *(f"{float(epoch[name]):.4f}" for name in ("loss", "val_loss")),
            *(f"{float(epoch[name]):.2%}" for name in CURVES),
        )
        for epoch in epochs
    ]
    splits = read_dataset_info(str(data)).splits
    return "\n".join(
        [
            describe_machine(),
            f"{splits['train'].num_examples:,} headlines for training, {splits['dev'].num_examples:,} for validation; "
            f"{layers} layers of width {hidden}, random weights",
            f"run_train.py {shlex.join(training)}",
            f"{processor_seconds / 60:.1f} minutes of processor time, {seconds / 60:.1f} by the clock",
            "",
            *format_table(("epoch", "loss", "validation loss", *CURVES.values()), rows),
        ]
    )


def _draw(epochs: list[dict[str, str]], path: Path) -> None:
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    numbers = [int(epoch["epoch"]) for epoch in epochs]
    for name, label in CURVES.items():
        axes.plot(numbers, [100 * float(epoch[name]) for epoch in epochs], marker=".", label=label)
    axes.set_xticks(numbers)
    axes.set_xlabel("epoch")
    axes.set_ylabel("right on the validation split, %")
    axes.grid(alpha=0.3)
    axes.legend()
    save_svg(figure, path)


if __name__ == "__main__":
    sys.exit(main())
