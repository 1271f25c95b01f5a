"""One BERT with two heads against two BERTs with a head each, on a corpus with two levels of labels.

    python -m benchmarks.two_heads [--input FILE] [--vocab FILE] [--seeds 3] [--epochs 10] [--layers 2] [--hidden 256]

For every seed three trainings with the same options: both heads, the category alone, the second label alone. The two
single models are then put together as people do it who have two models: each says its own label. `impossible` are
pairs of labels that no training example has, `joint` the best pair that one has, by the product of both
probabilities. CPU seconds are those of the training processes with all their threads, start-up included, which other
jobs on the machine disturb less than the time on the clock. The encoder starts from random weights.
"""

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")  # before TensorFlow comes in

from benchmarks.measure import describe_machine, make_bert, run_command
from benchmarks.real_data import DATA_DIR, VOCAB
from model.decoding import DECODINGS, INDEPENDENT, are_impossible, decode_labels, observed_pairs
from model.report.metrics import Predictions, exact_match
from model.run.finished import load_finished_run
from model.serving.predictor import predict_split
from pipeline.dataset.info import read_dataset_info
from pipeline.dataset.schema import CATEGORY_HEAD, SECOND_HEAD
from pipeline.dataset.summary import format_table

CATEGORY_RUN, SECOND_RUN, SHARED_RUN = CATEGORY_HEAD, SECOND_HEAD, f"{CATEGORY_HEAD},{SECOND_HEAD}"


def predictions_of(run: Path, data: str) -> Predictions:
    """Ask a finished run about the test split."""
    finished = load_finished_run(str(run))
    return predict_split(finished.model, data, "test", heads=finished.labels, max_len=finished.max_len)


def figures(predictions: Predictions, data: str) -> dict[str, float]:
    """Return what the table says of both heads' predictions, as shares."""
    pairs = observed_pairs(read_dataset_info(data).split("train"))
    values: dict[str, float] = {}
    for decode in DECODINGS:
        predicted = decode_labels(predictions.probabilities, decode=decode, pairs=pairs)
        if decode == INDEPENDENT:
            for head, right in predictions.labels.items():
                values[head] = float((predicted[head] == right).mean())
            values["impossible"] = float(are_impossible(predicted, pairs).mean())
        values[f"both, {decode}"] = exact_match(predictions.labels, predicted)
    return values


def compare(directory: Path, options: argparse.Namespace) -> list[tuple[str, ...]]:
    """Train all models of all seeds, and return the table's rows."""
    data, bert = str(directory / "data"), str(directory / "bert")
    run_command(
        *("run_preprocess.py", "--input", str(options.input), "--columns", "text,category,second"),
        *("--second_label", "column", "--max_len", "128", "--vocab", str(options.vocab), "--output", data),
    )
    make_bert(bert, options.vocab, layers=options.layers, hidden=options.hidden)
    results: dict[str, list[dict[str, float]]] = {"one model, two heads": [], "two models": []}
    for seed in range(options.seeds):
        seconds = {}
        for heads in (SHARED_RUN, CATEGORY_RUN, SECOND_RUN):
            seconds[heads] = run_command(
                *("run_train.py", "--data", data, "--bert", bert, "--output", str(directory / f"{heads}-{seed}")),
                *("--heads", heads, "--seed", str(seed), "--epochs", str(options.epochs)),
                *("--learning_rate", str(options.learning_rate), "--schedule", "linear"),
            )
            print(f"seed {seed}, {heads}: {seconds[heads][0]:.0f} s", file=sys.stderr)
        shared = predictions_of(directory / f"{SHARED_RUN}-{seed}", data)
        singles = [predictions_of(directory / f"{heads}-{seed}", data) for heads in (CATEGORY_RUN, SECOND_RUN)]
        apart = Predictions(
            labels={head: right for single in singles for head, right in single.labels.items()},
            probabilities={head: values for single in singles for head, values in single.probabilities.items()},
        )
        for name, predictions, runs in (
            ("one model, two heads", shared, (SHARED_RUN,)),
            ("two models", apart, (CATEGORY_RUN, SECOND_RUN)),
        ):
            clock, processors = (sum(seconds[heads][place] for heads in runs) for place in (0, 1))
            results[name].append(figures(predictions, data) | {"seconds": clock, "CPU seconds": processors})

    def show(name: str, values: list[float]) -> str:
        mean, spread = statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0
        return f"{mean:,.0f}" if "seconds" in name else f"{mean:.2%} ± {spread:.2%}"

    columns = results["two models"][0]
    return [(name, *(show(name, [one[name] for one in results[way]]) for way in results)) for name in columns]


def main() -> int:
    """Run the comparison and print its table: means over the seeds, with standard deviations."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, default=DATA_DIR / "hierarchical/duee_single.tsv")
    parser.add_argument("--vocab", type=Path, default=DATA_DIR / VOCAB)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--learning_rate", type=float, default=5e-4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        rows = compare(Path(directory), options)
        splits = read_dataset_info(str(Path(directory) / "data")).splits
    print(describe_machine())
    print(
        f"{options.input.name}: {splits['train'].num_examples:,} examples for training, "
        f"{splits['test'].num_examples:,} for test; {options.seeds} seeds, at most {options.epochs} epochs, "
        f"{options.layers} layers of width {options.hidden}\n"
    )
    print("\n".join(format_table(("test", "one model, two heads", "two models"), rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
