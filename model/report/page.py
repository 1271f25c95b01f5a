"""The report of a run as one HTML page that needs nothing else: no network, no script, no font.

`page.html.jinja` and `page.css` lay the page out; this module says what is in it. Label names and keys come from the
data and may hold anything: the template escapes every value.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jinja2
import numpy as np

from model.config import TRAIN_SPLIT
from model.report.confusion import ClassOrder, class_orders, frequent_confusions, shade_matrix
from model.report.figures import draw_calibration, draw_learning_curves, draw_lengths
from model.report.metrics import NUM_BINS, unknown_label_lines
from model.run.description import RunDescription
from model.run.directory import RunDir
from model.run.metrics_csv import read_metrics_csv
from model.run.report import Evaluation, HeadMeasures, Report
from pipeline.dataset.info import DatasetInfo
from pipeline.dataset.summary import SPLIT_COLUMNS, format_seconds, split_row
from pipeline.errors import InputFormatError

TEMPLATE_NAME = "page.html.jinja"
_NOTHING = "–"


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table; the values of a `bar` are shares."""

    title: str
    kind: Literal["number", "text", "code", "bar"] = "number"


_BAR = Column("", "bar")


@dataclasses.dataclass(frozen=True)
class Table:
    """A table as the template shows it.

    Attributes:
        columns: titles and kinds.
        rows: a value for each column.
        groups: indices of rows where a new group begins.
    """

    columns: Sequence[Column]
    rows: Sequence[Sequence[Any]]
    groups: Sequence[int] = ()


def _numbers(titles: Iterable[str]) -> tuple[Column, ...]:
    return tuple(Column(title) for title in titles)


def render_report(run: RunDir, report: Report, info: DatasetInfo, data_dir: str) -> str:
    """Return the page.

    Args:
        run: its configuration, `metrics.csv` and BERT sizes are read.
        report: what is shown.
        info: the dataset that was measured.
        data_dir: its directory.

    Raises:
        MissingInputError, InputFormatError: a file of the run is missing or damaged.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(TEMPLATE_NAME).render(_content(run, report, info, data_dir)) + "\n"


def _content(run: RunDir, report: Report, info: DatasetInfo, data_dir: str) -> dict[str, Any]:
    """Return the template's variables."""
    description = run.read_config()
    evaluation, training = report.evaluation, report.training
    heads = list(description.labels)
    rows = read_metrics_csv(run.metrics)
    orders = class_orders(description.labels, description.label_pairs)
    return {
        "title": run.path.resolve().name,
        "split": evaluation.split,
        "decode": evaluation.decode,
        "summary": _summary(report, description),
        "headline": _headline(evaluation),
        "results": _results(evaluation),
        "num_bins": NUM_BINS,
        "decoding": _decoding(evaluation, description),
        "heads": [_head(head, measures, info, orders[head]) for head, measures in evaluation.heads.items()],
        "curves": draw_learning_curves(rows, heads, training.best_epoch) if rows else "",
        "epochs": _epochs(rows, heads, training.best_epoch),
        "best_epoch": training.best_epoch,
        "dataset": _dataset(info, data_dir, description, evaluation.split),
        "speed": _speed(report),
        "configuration": _configuration(description),
        "identity": _identity(run, description, info),
    }


def _percent(share: float) -> str:
    return f"{share:.2%}"


def _plain(value: Any) -> str:
    """Return an option's or a file's value as people write it."""
    if value is None or value in ((), [], {}):
        return _NOTHING
    if isinstance(value, (tuple, list)):
        return ", ".join(map(str, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={part}" for name, part in value.items())
    return str(value)


def _summary(report: Report, description: RunDescription) -> str:
    training = report.training
    sizes = " and ".join(f"{len(names)} classes ({head})" for head, names in description.labels.items())
    stopped = ", stopped early" if training.early_stopped else ""
    return (
        f"{report.evaluation.num_examples:,} examples, {sizes}. Trained {training.epochs} epochs, {training.steps:,} "
        f"steps{stopped}; the weights are those of epoch {training.best_epoch}, the best by {training.monitored} "
        f"({training.best_value:.4f}).{''.join(f' {line}.' for line in unknown_label_lines(report.evaluation))}"
    )


def _headline(evaluation: Evaluation) -> list[tuple[str, str]]:
    heads = evaluation.heads.items()
    facts = [(f"{head}, accuracy", _percent(measures.accuracy)) for head, measures in heads]
    if evaluation.decoding is not None:
        decoding = evaluation.decoding.items()
        return [*facts, *((f"both right, {name}", _percent(measures.exact_match)) for name, measures in decoding)]
    return [*facts, *((f"{head}, macro-F1", _percent(measures.macro_f1)) for head, measures in heads)]


def _results(evaluation: Evaluation) -> Table:
    rows: list[tuple[str, ...]] = [
        (head, *map(_percent, (measures.accuracy, measures.macro_f1, measures.micro_f1, measures.ece)))
        for head, measures in evaluation.heads.items()
    ]
    if len(rows) > 1:
        rows.append(("exact match", _percent(evaluation.exact_match), "", "", ""))
    return Table((Column("head", "text"), *_numbers(("accuracy", "macro-F1", "micro-F1", "ECE"))), rows)


def _decoding(evaluation: Evaluation, description: RunDescription) -> dict[str, Any] | None:
    if evaluation.decoding is None or evaluation.unseen_pairs is None or description.label_pairs is None:
        return None
    rows = [
        (
            name,
            *(_percent(measures.accuracy[head]) for head in evaluation.heads),
            _percent(measures.exact_match),
            _percent(measures.impossible_pairs),
        )
        for name, measures in evaluation.decoding.items()
    ]
    columns = _numbers((*evaluation.heads, "exact match", "impossible pairs"))
    return {
        "table": Table((Column("decoding", "text"), *columns), rows),
        "num_pairs": f"{sum(map(len, description.label_pairs.values())):,}",
        "unseen": _percent(evaluation.unseen_pairs),
    }


def _head(head: str, measures: HeadMeasures, info: DatasetInfo, order: ClassOrder) -> dict[str, Any]:
    right, predicted, probability = Column("right", "text"), Column("predicted", "text"), Column("probability")
    return {
        "id": f"head-{head}",
        "title": f"Head {head}",
        "classes": _classes(head, measures, info, order),
        "confusion": shade_matrix(measures, order),
        "confusions": Table(
            (right, predicted, *_numbers(("times", "of the class"))),
            frequent_confusions(measures),
        ),
        "calibration": draw_calibration(head, measures.calibration),
        "ece": _percent(measures.ece),
        "mistakes": Table(
            (Column("key", "code"), right, probability, predicted, probability),
            [
                (m.key, m.label, _percent(m.label_probability), m.predicted, _percent(m.probability))
                for m in measures.mistakes
            ],
        ),
    }


def _classes(head: str, measures: HeadMeasures, info: DatasetInfo, order: ClassOrder) -> Table:
    train = None
    if TRAIN_SPLIT in info.splits:
        # The dataset may have other labels than the run.
        train = dict(zip(info.labels[head].names, info.splits[TRAIN_SPLIT].label_counts[head], strict=True))
    rows = []
    for place, label in enumerate(order.ids):
        own = measures.classes[label]
        rows.append(
            (
                own.label,
                *([] if order.groups is None else [order.groups[place]]),
                *([] if train is None else [f"{train.get(own.label, 0):,}"]),
                f"{own.support:,}",
                f"{own.predicted:,}",
                _percent(own.precision) if own.predicted else _NOTHING,
                _percent(own.recall) if own.support else _NOTHING,
                _percent(own.f1) if own.support or own.predicted else _NOTHING,
                own.f1,
            )
        )
    columns = [Column("class", "text")]
    if order.groups is not None:
        columns.append(Column("with", "text"))
    if train is not None:
        columns.append(Column("training"))
    columns += [*_numbers(("support", "predicted", "precision", "recall", "F1")), _BAR]
    return Table(columns, rows, groups=order.starts)


def _epochs(rows: Sequence[Mapping[str, float]], heads: Sequence[str], best_epoch: int) -> Table:
    shares = [(head, f"val_{head}_accuracy") for head in heads]
    if len(heads) > 1:
        shares.append(("exact match", "val_exact_match"))
    titles = ("epoch", "steps", "learning rate", "loss", "validation loss", *(title for title, _ in shares))
    return Table(
        (*_numbers(titles), Column("", "text")),
        [
            (
                f"{row['epoch']:.0f}",
                f"{row['step']:,.0f}",
                f"{row['learning_rate']:.3g}",
                f"{row['loss']:.4f}",
                f"{row['val_loss']:.4f}",
                *(_percent(row[name]) for _, name in shares),
                "best" if row["epoch"] == best_epoch else "",
            )
            for row in rows
        ],
    )


def _dataset(info: DatasetInfo, data_dir: str, description: RunDescription, split: str) -> dict[str, Any]:
    documents, max_len = info.documents, min(description.max_len, info.max_len)
    measured = info.split(split)
    if max_len < info.max_len:
        num_cut = sum(measured.length_histogram[max_len + 1 :])
        cut = f"Dotted: {max_len} tokens, where this run cuts texts"
    else:
        num_cut, cut = measured.num_truncated, f"Texts are cut at {max_len} tokens"
    counts = [
        ("read", documents.read),
        ("written as examples", documents.written),
        ("rejected", sum(documents.rejected.values())),
        *((f"rejected, {reason}", count) for reason, count in documents.rejected.items()),
        ("duplicates, whose text was met before", documents.duplicates),
        ("texts with conflicting labels", len(documents.conflicting)),
    ]
    lengths_split = TRAIN_SPLIT if TRAIN_SPLIT in info.splits and info.splits[TRAIN_SPLIT].num_examples else split
    same = info.fingerprint == description.dataset.fingerprint
    return {
        "summary": (
            f"{data_dir}, fingerprint {info.fingerprint[:12]}, texts of at most {info.max_len} tokens, vocabulary of "
            f"{info.vocab_size:,}. {'The run was trained on it.' if same else 'The run was trained on another one.'} "
            f"Lengths are in tokens, as mean and percentiles; cut is the share of texts that were longer than "
            f"{info.max_len} tokens, [UNK] the share of tokens that the vocabulary lacks."
        ),
        "splits": Table(
            (Column(SPLIT_COLUMNS[0], "text"), *_numbers(SPLIT_COLUMNS[1:])),
            [split_row(name, part) for name, part in info.splits.items()],
        ),
        "documents": Table(
            (Column("documents", "text"), Column("count")), [(name, f"{count:,}") for name, count in counts]
        ),
        "lengths_split": lengths_split,
        "lengths": draw_lengths(info.splits[lengths_split].length_histogram, max_len),
        "cut": f"{cut}: {num_cut / measured.num_examples:.1%} of {split} are longer.",
        "balances": [(head, _balance(head, info)) for head in description.labels],
    }


def _balance(head: str, info: DatasetInfo) -> Table:
    counts = {name: split.label_counts[head] for name, split in info.splits.items()}
    names = info.labels[head].names
    totals = [sum(count[label] for count in counts.values()) for label in range(len(names))]
    shares = np.array(totals) / max(sum(totals), 1)
    rows = [
        (
            names[label],
            *(f"{count[label]:,}" for count in counts.values()),
            f"{shares[label]:.1%}",
            shares[label] / max(shares.max(), 1e-9),
        )
        for label in np.argsort(-shares, kind="stable").tolist()
    ]
    return Table((Column("class", "text"), *_numbers((*counts, "share")), _BAR), rows)


def _speed(report: Report) -> Table:
    evaluation, training = report.evaluation, report.training
    evaluated = f"evaluation of {evaluation.split}, start-up included"
    rows = [
        ("training steps", training.num_examples, training.seconds, training.examples_per_second),
        ("training by the clock", training.num_examples, training.clock_seconds, training.examples_per_clock_second),
        (evaluated, evaluation.num_examples, evaluation.seconds, evaluation.examples_per_second),
    ]
    return Table(
        (Column("", "text"), *_numbers(("examples", "time", "examples/s"))),
        [(what, f"{count:,}", format_seconds(seconds), f"{rate:,.1f}") for what, count, seconds, rate in rows],
    )


def _configuration(description: RunDescription) -> Table:
    resolved = description.resolved
    values = {"precision": resolved.precision, **vars(resolved.devices), **vars(resolved.batches)}
    rows = [
        *((name, _plain(value)) for name, value in description.config.options.items()),
        *((f"resolved: {name}", _plain(value)) for name, value in values.items()),
    ]
    return Table((Column("option", "code"), Column("value", "code")), rows)


def _identity(run: RunDir, description: RunDescription, info: DatasetInfo) -> Table:
    try:
        bert = json.loads(run.bert_config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputFormatError(f"{run.bert_config}: expected the BERT's sizes ({error}); copy it back") from error
    rows = [
        *((f"BERT: {name}", _plain(value)) for name, value in bert.items()),
        ("BERT: checkpoint SHA-256", description.bert.checkpoint_sha256),
        ("vocabulary SHA-256", description.bert.vocab_sha256),
        ("training dataset's fingerprint", description.dataset.fingerprint),
        ("measured dataset's fingerprint", info.fingerprint),
        *(description.versions.items()),
    ]
    return Table((Column("what", "text"), Column("value", "code")), rows)
