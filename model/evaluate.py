"""Measure a model on a split, and a finished run again: `python -m model.evaluate --run RUN [--split test]`.

It prints the table that training ends with, and writes `report.json` for machines and `report.html` for people: what
the figures are is said in `model.report.metrics`, what the page shows in `model.report.page`.
"""

import dataclasses
import functools
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from model.config import PRECISIONS
from model.decoding import DECODE_HELP, DECODINGS, INDEPENDENT, Decoding, check_decode
from model.files import write_text
from model.report.metrics import match_labels, measure, unknown_label_lines
from model.run.directory import RunDir
from model.run.report import Evaluation, Report
from pipeline.command_line import CommandParser, run_command
from pipeline.dataset.info import read_dataset_info
from pipeline.errors import OptionError, OutputWriteError, SchemaMismatchError
from pipeline.filesystem import is_remote

if TYPE_CHECKING:
    import tf_keras

    from model.training.strategy import Devices

logger = logging.getLogger(__name__)


def evaluate_split(
    model: "tf_keras.Model",
    data_dir: str,
    split: str,
    *,
    labels: Mapping[str, Sequence[str]],
    pairs: np.ndarray | None,
    max_len: int,
    batch_size: int = 64,
    decode: Decoding = INDEPENDENT,
    devices: "Devices | None" = None,
    xla: bool = False,
) -> Evaluation:
    """Measure a model on a split; the labels of dataset and model are matched by name.

    Args:
        model: see `model.classifier.build_classifier`.
        data_dir: a dataset directory.
        split: which split.
        labels: head -> names of its classes in id order.
        pairs: int [P, 2], the pairs of labels that occur in training; `None` where there is one head.
        max_len: texts are cut to this many tokens.
        batch_size: texts at a time.
        decode: see `model.decoding`.
        devices, xla: see `model.serving.predictor.make_predict_fn`.

    Raises:
        OptionError: joint decoding without pairs.
        SchemaMismatchError: the model knows the labels of no example.
        MissingInputError, SchemaMismatchError, EmptySplitError, CorruptShardError: the dataset cannot be read.
    """
    from model.serving.predictor import predict_split
    from pipeline.input_pipeline.reader import read_keys

    started = time.perf_counter()
    predictions = predict_split(
        model, data_dir, split, heads=labels, max_len=max_len, batch_size=batch_size, devices=devices, xla=xla
    )
    seconds = time.perf_counter() - started
    info = read_dataset_info(data_dir)
    found = {head: info.labels[head].names for head in labels}
    class_of = {head: match_labels(found[head], names) for head, names in labels.items()}
    right = {head: class_of[head][ids] for head, ids in predictions.labels.items()}
    if not np.all([ids >= 0 for ids in right.values()], axis=0).any():
        raise SchemaMismatchError(
            f"{data_dir}: no example of {split} has labels that the run knows; its are "
            + "; ".join(f"{head}: {', '.join(names[:3])}, … ({len(names)})" for head, names in found.items())
        )
    measures = measure(
        dataclasses.replace(predictions, labels=right),
        labels=labels,
        keys=read_keys(data_dir, split),
        pairs=pairs,
        decode=decode,
    )
    unknown = {
        head: {
            name: count
            for name, class_id, count in zip(
                found[head], class_of[head], info.split(split).label_counts[head], strict=True
            )
            if class_id < 0 and count
        }
        for head in labels
    }
    return Evaluation(
        **vars(measures),
        split=split,
        seconds=seconds,
        unknown_labels={head: counts for head, counts in unknown.items() if counts},
    )


def result_table(evaluation: Evaluation) -> str:
    """Return the figures of an evaluation as a table for people."""
    decode = "" if evaluation.decode == INDEPENDENT else f", {evaluation.decode} decoding"
    lines = [
        f"{evaluation.split} ({evaluation.num_examples:,} examples{decode})",
        f"{'head':<14}{'accuracy':>13}{'macro-F1':>13}{'ECE':>13}",
    ]
    lines += [
        f"{head:<14}{measures.accuracy:>13.2%}{measures.macro_f1:>13.2%}{measures.ece:>13.2%}"
        for head, measures in evaluation.heads.items()
    ]
    if evaluation.decoding is not None:
        lines.append(f"{'both heads':<14}{'exact match':>13}{'impossible':>13}")
        lines += [
            f"{name:<14}{measures.exact_match:>13.2%}{measures.impossible_pairs:>13.2%}"
            for name, measures in evaluation.decoding.items()
        ]
    lines += unknown_label_lines(evaluation)
    return "\n".join(lines)


def write_report(run: RunDir, report: Report, data_dir: str, output: Path) -> None:
    """Write `report.html`, then `report.json`.

    Args:
        run: with its configuration and metrics.
        report: to write.
        data_dir: the dataset that was measured.
        output: a directory, made if it is not there.

    Raises:
        OutputWriteError: they cannot be written.
    """
    from model.report.page import render_report

    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputWriteError(f"{output}: cannot make this directory: {error.strerror}") from error
    written = RunDir(output)
    write_text(written.report_page, render_report(run, report, read_dataset_info(data_dir), data_dir))
    written.write_report(report)


def main(argv: Sequence[str]) -> int:
    """Measure a finished run on a split: print the table, write the report."""
    parser = CommandParser(
        prog="python -m model.evaluate",
        description="Measure a finished run on a split: print a table, write report.json and report.html.",
    )
    parser.add_argument("--run", required=True, metavar="RUN", help="directory that run_train.py wrote")
    parser.add_argument("--data", metavar="DIR", help="dataset directory (default: the one it was trained on)")
    parser.add_argument("--split", metavar="SPLIT", help="split to measure (default: the one of the run's report)")
    parser.add_argument("--decode", choices=DECODINGS, default=INDEPENDENT, help=DECODE_HELP)
    parser.add_argument(
        "--output",
        metavar="DIR",
        help="where to write the report (default: evaluation/SPLIT in the run's directory, with a longer name for "
        "--decode joint and for another dataset)",
    )
    parser.add_argument("--batch_size", type=int, default=64, metavar="N", help="texts at a time")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help="of products")
    arguments = parser.parse_args(argv)
    if arguments.batch_size < 1:
        raise OptionError(f"--batch_size: expected at least 1, got {arguments.batch_size}")
    if arguments.output is not None and is_remote(arguments.output):
        raise OptionError(f"--output {arguments.output}: expected a local directory; copy it afterwards")
    if arguments.output is not None and RunDir(Path(arguments.output)).config.exists():
        raise OptionError(f"--output {arguments.output}: a run's directory, whose own report stays; give another one")
    # TensorFlow takes seconds to import, which --help and a wrong option need not wait for.
    from model.run.finished import check_same_tokenizer, load_finished_run
    from model.training.run_inputs import check_file_system
    from model.training.strategy import explain_device_errors, open_local_devices

    devices = open_local_devices()
    with devices.strategy.scope():
        finished = load_finished_run(arguments.run, precision=arguments.precision)
    check_decode(arguments.decode, finished.labels)
    data_dir = arguments.data or finished.description.config.paths.data_dir
    split = arguments.split or finished.report.evaluation.split
    check_file_system(data_dir)
    check_same_tokenizer(finished, data_dir)
    info = read_dataset_info(data_dir)
    if info.max_len < finished.max_len:
        logger.info("its texts are cut at %d tokens, those of training were at %d", info.max_len, finished.max_len)
    with explain_device_errors():
        evaluation = evaluate_split(
            finished.model,
            data_dir,
            split,
            labels=finished.labels,
            pairs=finished.pairs,
            max_len=min(finished.max_len, info.max_len),
            batch_size=arguments.batch_size,
            decode=arguments.decode,
            devices=devices,
            xla=devices.on_gpu,
        )
    report = Report(evaluation=evaluation, training=finished.report.training)
    if arguments.output is not None:
        output = Path(arguments.output)
    else:
        is_other = info.fingerprint != finished.description.dataset.fingerprint
        output = finished.run.evaluation(split, arguments.decode, info.fingerprint if is_other else None)
    write_report(finished.run, report, data_dir, output)
    sys.stdout.write(result_table(evaluation) + "\n")
    logger.info("report in %s", RunDir(output).report_page)
    return 0


command = functools.partial(run_command, main)

if __name__ == "__main__":
    sys.exit(command())
