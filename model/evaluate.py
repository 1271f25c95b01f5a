"""Measure a model on a split, and a finished run again: `python -m model.evaluate --run RUN [--split test]`.

accuracy      share of examples whose most probable class is the right one
macro-F1      mean over classes of the harmonic mean of precision and recall: small classes count like large ones
exact match   share of examples of which every head is right
"""

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from sklearn.metrics import accuracy_score, f1_score

from model.classifier import build_classifier
from model.run_dir import RunDir, open_run_dir
from model.weights import load_model_weights
from pipeline.command_line import CommandParser, run_command
from pipeline.dataset_info import read_dataset_info
from pipeline.errors import MissingInputError, SchemaMismatchError
from pipeline.input_pipeline import eval_dataset, explain_read_errors
from pipeline.schema import INDICES, SEGMENTS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predictions:
    """What a model says about a split, in stored order.

    Attributes:
        labels: head -> int32 [N], the right classes.
        probabilities: head -> float32 [N, classes].
    """

    labels: Mapping[str, np.ndarray]
    probabilities: Mapping[str, np.ndarray]


def predict_split(
    model: tf.keras.Model,
    data_dir: str,
    split: str,
    *,
    heads: Sequence[str],
    max_len: int | None = None,
    batch_size: int = 64,
) -> Predictions:
    """Ask a model about every example of a split.

    Args:
        model: see `model.classifier.build_classifier`.
        data_dir: a dataset directory.
        split: which split.
        heads: whose labels and probabilities to return.
        max_len: texts are cut to this many tokens; `None` takes the dataset's.
        batch_size: texts at a time.

    Raises:
        MissingInputError, SchemaMismatchError, EmptySplitError, CorruptShardError: the dataset cannot be read.
    """

    signature = [{name: tf.TensorSpec([None, None], tf.int32) for name in (INDICES, SEGMENTS)}]

    @tf.function(input_signature=signature, autograph=False)
    def predict(inputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        outputs = model([inputs[INDICES], inputs[SEGMENTS]], training=False)
        return {head: outputs[head] for head in heads}

    labels: dict[str, list[np.ndarray]] = {head: [] for head in heads}
    probabilities: dict[str, list[np.ndarray]] = {head: [] for head in heads}
    with explain_read_errors(data_dir, split):
        for inputs, right in eval_dataset(data_dir, split, batch_size, max_len):
            outputs = predict(inputs)
            for head in heads:
                labels[head].append(right[head].numpy())
                probabilities[head].append(outputs[head].numpy())
    return Predictions(
        labels={head: np.concatenate(parts) for head, parts in labels.items()},
        probabilities={head: np.concatenate(parts) for head, parts in probabilities.items()},
    )


def measure(predictions: Predictions) -> dict[str, Any]:
    """Return the measures of a split as JSON values.

    Returns:
        `num_examples`; `heads`: head -> `accuracy`, `macro_f1` (over the classes that occur); `exact_match`.
    """
    heads, all_right = {}, np.True_
    for head, labels in predictions.labels.items():
        predicted = predictions.probabilities[head].argmax(axis=-1)
        all_right = all_right & (predicted == labels)
        heads[head] = {
            "accuracy": float(accuracy_score(labels, predicted)),
            "macro_f1": float(f1_score(labels, predicted, average="macro", zero_division=0.0)),
        }
    return {"num_examples": int(np.size(all_right)), "heads": heads, "exact_match": float(np.mean(all_right))}


def result_table(split: str, measures: Mapping[str, Any]) -> str:
    """Return the measures of a split as a table for people."""
    lines = [f"{split} ({measures['num_examples']:,} examples)", f"{'head':<16}{'accuracy':>10}{'macro-F1':>10}"]
    lines += [
        f"{head:<16}{values['accuracy']:>10.2%}{values['macro_f1']:>10.2%}"
        for head, values in measures["heads"].items()
    ]
    if len(measures["heads"]) > 1:
        lines.append(f"{'exact match':<16}{measures['exact_match']:>10.2%}")
    return "\n".join(lines)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """A run that has ended, with its model.

    Attributes:
        run: the directory.
        description: content of its `config.json`.
        report: content of its `report.json`.
        model: with the weights of the best epoch; float32.
    """

    run: RunDir
    description: Mapping[str, Any]
    report: Mapping[str, Any]
    model: tf.keras.Model

    @property
    def labels(self) -> Mapping[str, Sequence[str]]:
        """Head -> names of its classes in id order."""
        labels: Mapping[str, Sequence[str]] = self.description["labels"]
        return labels

    @property
    def max_len(self) -> int:
        """Texts are cut to this many tokens."""
        return int(self.description["max_len"])


def load_finished_run(path: str) -> FinishedRun:
    """Load the model of a finished run; everything it needs is in the run's directory.

    Raises:
        MissingInputError: there is no run here, or it is not finished.
        InputFormatError: a file of it is damaged.
    """
    run = open_run_dir(path)
    description = run.read_config()
    if not run.report.is_file():
        raise MissingInputError(f"{run.path}: this run is not finished; start the same run_train.py command again")
    config = description["config"]
    model = build_classifier(
        run.bert,
        {head: len(names) for head, names in description["labels"].items()},
        pooling=config["pooling"],
        encoder=config["encoder"],
        policy="float32",
    )
    load_model_weights(run.weights, model)
    report = json.loads(run.report.read_text(encoding="utf-8"))
    return FinishedRun(run=run, description=description, report=report, model=model)


def check_same_labels(finished: FinishedRun, data_dir: str) -> None:
    """Check that a dataset speaks of the classes, and with the vocabulary, that a run was trained on.

    Raises:
        MissingInputError, SchemaMismatchError: the dataset cannot be read, or it does not.
    """
    info = read_dataset_info(data_dir)
    if info.vocab_sha256 != finished.description["bert"]["vocab_sha256"]:
        raise SchemaMismatchError(
            f"{data_dir}: made with another vocabulary than the run; preprocess with --vocab {finished.run.vocab}"
        )
    for head, names in finished.labels.items():
        found = info.labels[head].names
        if list(found) != list(names):
            raise SchemaMismatchError(
                f"{data_dir}: its {head} labels are {', '.join(found[:3])}, … ({len(found)}), "
                f"the run's are {', '.join(names[:3])}, … ({len(names)}); give the dataset the run was trained on"
            )


def main(argv: Sequence[str]) -> int:
    """Measure a finished run on a split and print the table."""
    parser = CommandParser(prog="python -m model.evaluate", description="Measure a finished run on a split.")
    parser.add_argument("--run", required=True, metavar="RUN", help="directory that run_train.py wrote")
    parser.add_argument("--data", metavar="DIR", default="", help="dataset directory, if not the one it was trained on")
    parser.add_argument("--split", default="", help="which split to measure, if not the one of its report")
    arguments = parser.parse_args(argv)
    finished = load_finished_run(arguments.run)
    data_dir = arguments.data or finished.description["config"]["data_dir"]
    split = arguments.split or finished.report["split"]
    check_same_labels(finished, data_dir)
    predictions = predict_split(finished.model, data_dir, split, heads=list(finished.labels), max_len=finished.max_len)
    sys.stdout.write(result_table(split, measure(predictions)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
