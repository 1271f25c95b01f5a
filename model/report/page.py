"""The report of a run as one HTML page that needs nothing else: no network, no script, no font.

`page.html.jinja` and `page.css` are the page; here is what stands in it. Label names and keys come from the data
and may hold anything: the template escapes every value.
"""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from model.config import TRAIN_SPLIT
from model.report.confusion import ClassOrder, class_orders, frequent_confusions, shade_matrix
from model.report.figures import draw_calibration, draw_learning_curves, draw_lengths
from model.report.metrics import NUM_BINS
from model.run.directory import RunDir
from pipeline.dataset.info import DatasetInfo
from pipeline.dataset.summary import SPLIT_COLUMNS, format_seconds, split_row
from pipeline.errors import InputFormatError

TEMPLATE_NAME = "page.html.jinja"
_NOTHING = "–"

Table = dict[str, Any]


def render_report(run: RunDir, report: Mapping[str, Any], info: DatasetInfo, data_dir: str) -> str:
    """Return the page.

    Args:
        run: its configuration, `metrics.csv` and BERT sizes are read.
        report: content of `report.json`.
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


def _content(run: RunDir, report: Mapping[str, Any], info: DatasetInfo, data_dir: str) -> dict[str, Any]:
    """Return what the template asks for, by name."""
    description = run.read_config()
    labels: Mapping[str, Sequence[str]] = description["labels"]
    rows = read_metrics(run.metrics)
    orders = class_orders(labels, description.get("label_pairs"))
    return {
        "title": run.path.resolve().name,
        "split": report["split"],
        "decode": report["decode"],
        "summary": _summary(report, description),
        "headline": _headline(report),
        "results": _results(report),
        "num_bins": NUM_BINS,
        "decoding": _decoding(report, description),
        "heads": [_head(head, values, info, orders[head]) for head, values in report["heads"].items()],
        "curves": draw_learning_curves(rows, list(labels), report["best_epoch"]) if rows else "",
        "epochs": _epochs(rows, list(labels), report["best_epoch"]),
        "best_epoch": report["best_epoch"],
        "dataset": _dataset(info, data_dir, description, report["split"]),
        "speed": _speed(report),
        "configuration": _table(
            "option:code value:code",
            (
                *((name, _plain(value)) for group in description["config"].values() for name, value in group.items()),
                *((f"resolved: {name}", _plain(value)) for name, value in description["resolved"].items()),
            ),
        ),
        "identity": _identity(run, description, info),
    }


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Read `metrics.csv`, one row for each finished epoch.

    Raises:
        InputFormatError: it is missing or damaged.
    """
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(stream)]
    except (OSError, ValueError, TypeError) as error:
        raise InputFormatError(f"{path}: expected a table of the epochs, found none ({error}); copy it back") from error


def _table(columns: str, rows: Iterable[Sequence[Any]], **more: Any) -> Table:
    """Return a table for the template; columns are `title:kind` words, with `_` for spaces in a title."""
    parts = [column.partition(":") for column in columns.split()]
    return {"columns": [(t.replace("_", " "), kind or "number") for t, _, kind in parts], "rows": list(rows), **more}


def _percent(share: float) -> str:
    return f"{share:.2%}"


def _plain(value: Any) -> str:
    """Return a JSON value as people write it."""
    if value is None or value in ([], {}):
        return _NOTHING
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{name}={part}" for name, part in value.items())
    return str(value)


def _summary(report: Mapping[str, Any], description: Mapping[str, Any]) -> str:
    sizes = " and ".join(f"{len(names)} classes ({head})" for head, names in description["labels"].items())
    stopped = ", stopped early" if report["early_stopped"] else ""
    return (
        f"{report['num_examples']:,} examples, {sizes}. Trained {report['epochs']} epochs, {report['steps']:,} steps"
        f"{stopped}; the weights are those of epoch {report['best_epoch']}, the best by {report['monitored']} "
        f"({report['best_value']:.4f})."
    )


def _headline(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    heads = report["heads"].items()
    facts = [(f"{head}, accuracy", _percent(values["accuracy"])) for head, values in heads]
    if "decoding" in report:
        decoding = report["decoding"]
        return [*facts, *((f"both right, {name}", _percent(value["exact_match"])) for name, value in decoding.items())]
    return [*facts, *((f"{head}, macro-F1", _percent(values["macro_f1"])) for head, values in heads)]


def _results(report: Mapping[str, Any]) -> Table:
    rows: list[tuple[str, ...]] = [
        (head, *(_percent(values[name]) for name in ("accuracy", "macro_f1", "micro_f1", "ece")))
        for head, values in report["heads"].items()
    ]
    if len(rows) > 1:
        rows.append(("exact match", _percent(report["exact_match"]), "", "", ""))
    return _table("head:text accuracy macro-F1 micro-F1 ECE", rows)


def _decoding(report: Mapping[str, Any], description: Mapping[str, Any]) -> dict[str, Any] | None:
    if "decoding" not in report:
        return None
    rows = [
        (
            name,
            *(_percent(values["accuracy"][head]) for head in report["heads"]),
            _percent(values["exact_match"]),
            _percent(values["impossible_pairs"]),
        )
        for name, values in report["decoding"].items()
    ]
    num_pairs = sum(map(len, description["label_pairs"].values()))
    columns = " ".join(["decoding:text", *report["heads"], "exact_match", "impossible_pairs"])
    return _table(columns, rows, num_pairs=f"{num_pairs:,}", unseen=_percent(report["unseen_pairs"]))


def _head(head: str, values: Mapping[str, Any], info: DatasetInfo, order: ClassOrder) -> dict[str, Any]:
    confused = "right:text predicted:text times of_the_class"
    return {
        "id": f"head-{head}",
        "title": f"Head {head}",
        "classes": _classes(head, values, info, order),
        "confusion": shade_matrix(values, order),
        "confusions": _table(confused, frequent_confusions(values)),
        "calibration": draw_calibration(head, values["calibration"]),
        "ece": _percent(values["ece"]),
        "mistakes": _table(
            "key:code right:text probability predicted:text probability",
            (
                (m["key"], m["label"], _percent(m["label_probability"]), m["predicted"], _percent(m["probability"]))
                for m in values["mistakes"]
            ),
        ),
    }


def _classes(head: str, values: Mapping[str, Any], info: DatasetInfo, order: ClassOrder) -> Table:
    train = info.splits[TRAIN_SPLIT].label_counts[head] if TRAIN_SPLIT in info.splits else None
    rows = []
    for place, label in enumerate(order.ids):
        cell = values["classes"][label]
        rows.append(
            (
                cell["label"],
                *([] if order.groups is None else [order.groups[place]]),
                *([] if train is None else [f"{train[label]:,}"]),
                f"{cell['support']:,}",
                f"{cell['predicted']:,}",
                _percent(cell["precision"]) if cell["predicted"] else _NOTHING,
                _percent(cell["recall"]) if cell["support"] else _NOTHING,
                _percent(cell["f1"]) if cell["support"] or cell["predicted"] else _NOTHING,
                cell["f1"],
            )
        )
    columns = ["class:text"]
    if order.groups is not None:
        columns.append("with:text")
    if train is not None:
        columns.append("training")
    columns += ["support", "predicted", "precision", "recall", "F1", ":bar"]
    return _table(" ".join(columns), rows, groups=order.starts)


def _epochs(rows: Sequence[Mapping[str, float]], heads: Sequence[str], best_epoch: int) -> Table:
    shares = [f"val_{head}_accuracy" for head in heads] + (["val_exact_match"] if len(heads) > 1 else [])
    columns = [
        "epoch",
        "steps",
        "learning_rate",
        "loss",
        "validation_loss",
        *heads,
        *(["exact_match"] if len(heads) > 1 else []),
    ]
    return _table(
        " ".join([*columns, ":text"]),
        (
            (
                f"{row['epoch']:.0f}",
                f"{row['step']:,.0f}",
                f"{row['learning_rate']:.3g}",
                f"{row['loss']:.4f}",
                f"{row['val_loss']:.4f}",
                *(_percent(row[name]) for name in shares),
                "best" if row["epoch"] == best_epoch else "",
            )
            for row in rows
        ),
    )


def _dataset(info: DatasetInfo, data_dir: str, description: Mapping[str, Any], split: str) -> dict[str, Any]:
    documents, max_len = info.documents, min(description["max_len"], info.max_len)
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
    columns = " ".join([f"{SPLIT_COLUMNS[0]}:text", *SPLIT_COLUMNS[1:]])
    same = info.fingerprint == description["dataset"]["fingerprint"]
    return {
        "summary": (
            f"{data_dir}, fingerprint {info.fingerprint[:12]}, texts of at most {info.max_len} tokens, vocabulary of "
            f"{info.vocab_size:,}. {'The run was trained on it.' if same else 'The run was trained on another one.'} "
            f"Lengths are in tokens, as mean and percentiles; cut is the share of texts that were longer than "
            f"{info.max_len} tokens, [UNK] the share of tokens that the vocabulary lacks."
        ),
        "splits": _table(columns, (split_row(name, part) for name, part in info.splits.items())),
        "documents": _table("documents:text count", ((name, f"{count:,}") for name, count in counts)),
        "lengths_split": lengths_split,
        "lengths": draw_lengths(info.splits[lengths_split].length_histogram, max_len),
        "cut": f"{cut}: {num_cut / measured.num_examples:.1%} of {split} are longer.",
        "balances": [_balance(head, info) for head in description["labels"]],
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
    return _table(" ".join(["class:text", *counts, "share", ":bar"]), rows, head=head)


def _speed(report: Mapping[str, Any]) -> Table:
    train_seconds, train_rate = report["train_seconds"], report["train_examples_per_second"]
    seconds, num_examples = report["evaluate_seconds"], report["num_examples"]
    num_trained, clock_seconds = train_seconds * train_rate, report["clock_seconds"]
    rows = [
        ("training steps", num_trained, train_seconds, train_rate),
        ("training by the clock", num_trained, clock_seconds, num_trained / max(clock_seconds, 1e-9)),
        (
            f"evaluation of {report['split']}, start-up included",
            num_examples,
            seconds,
            num_examples / max(seconds, 1e-9),
        ),
    ]
    return _table(
        ":text examples time examples/s",
        ((what, f"{count:,.0f}", format_seconds(spent), f"{rate:,.1f}") for what, count, spent, rate in rows),
    )


def _identity(run: RunDir, description: Mapping[str, Any], info: DatasetInfo) -> Table:
    try:
        bert = json.loads(run.bert_config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputFormatError(f"{run.bert_config}: expected the BERT's sizes ({error}); copy it back") from error
    rows = [
        *((f"BERT: {name}", _plain(value)) for name, value in bert.items()),
        ("BERT: checkpoint index SHA-256", description["bert"]["checkpoint_index_sha256"]),
        ("vocabulary SHA-256", description["bert"]["vocab_sha256"]),
        ("training dataset's fingerprint", description["dataset"]["fingerprint"]),
        ("measured dataset's fingerprint", info.fingerprint),
        *(description["versions"].items()),
    ]
    return _table("what:text value:code", rows)
