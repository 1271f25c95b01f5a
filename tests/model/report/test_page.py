"""The page: it needs nothing but itself, shows what the report says, and lets no label or key become markup."""

import dataclasses
import html
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.decoding import name_pairs, observed_pairs
from model.report.confusion import MAX_MATRIX_CLASSES, class_orders, condense, frequent_confusions, shade_matrix
from model.report.metrics import Predictions, measure
from model.report.page import render_report
from model.run.description import BertIdentity, DatasetIdentity, RunDescription
from model.run.directory import RunDir
from model.run.metrics_csv import write_metrics_csv
from model.run.report import ClassMeasures, Evaluation, HeadMeasures, Report, TrainingSummary
from pipeline.errors import InputFormatError
from tests.support.runs import RESOLVED, TINY_BERT, tiny_config
from tests.support.search import first_group
from tests.support.tiny_dataset import TinyExample, write_tiny_dataset

HOSTILE = "</td><script>alert(1)</script>\"'&amp;"
LABELS = (("财经/交易", "体 育", HOSTILE, "没有人"), ("动", "</style>静"))
KEYS = ("体育/1.txt", "a.tsv:2", f"<img src=x onerror=alert(2)>{HOSTILE}", "d", "e", "f")
VOID = {"meta", "link", "img", "br", "hr", "input"}
URL_ATTRIBUTES = {"src", "href", "xlink:href", "action", "data", "poster", "srcset", "background", "formaction"}


class Page(HTMLParser):
    """Reads a page and keeps what tests ask for; end tags must match."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.urls: list[str] = []
        self.ids: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: Any, attributes: Any) -> None:
        self.tags.append(tag)
        names = dict(attributes)
        self.urls += [value for name, value in attributes if name in URL_ATTRIBUTES]
        self.ids += [names["id"]] if "id" in names else []
        assert not any(name.startswith("on") for name in names), attributes
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: Any, attributes: Any) -> None:
        self.handle_starttag(tag, attributes)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: Any) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: Any) -> None:
        if "style" not in self.open:
            self.words.append(data)


def examples(count: int = 6) -> Any:
    return [
        TinyExample(indices=[1, *[5] * (number + 1), 2], label=number % 3, second_label=int(number % 3 == 2), key=key)
        for number, key in zip(range(count), KEYS, strict=True)
    ]


@pytest.fixture
def inputs(tmp_path: Path) -> Any:
    """A run directory, a report and a dataset, with labels and keys as bad as can be."""
    return make_inputs(tmp_path)


def make_inputs(path: Path, heads: Any = ("category", "second"), rows: Any = 3, max_len: Any = 16) -> tuple[Any, ...]:
    info = write_tiny_dataset(
        path / "data", {"train": examples(), "dev": [], "test": examples()}, max_len=16, labels=LABELS
    )
    labels = {head: names for head, names in zip(("category", "second"), LABELS, strict=True) if head in heads}
    pairs = observed_pairs(info.split("train")) if len(heads) == 2 else None
    generator = np.random.default_rng(0)
    right = {"category": [0, 1, 2, 0, 1, 2], "second": [0, 0, 1, 0, 0, 1]}
    predictions = Predictions(
        labels={head: np.array(right[head]) for head in heads},
        probabilities={
            head: generator.dirichlet(np.ones(len(labels[head])), len(KEYS)).astype(np.float32) for head in heads
        },
    )
    measures = measure(predictions, labels=labels, keys=KEYS, pairs=pairs)
    report = Report(
        evaluation=Evaluation(**vars(measures), split="test", seconds=0.5, unknown_labels={}),
        training=TrainingSummary(
            monitored="val_accuracy_mean",
            best_value=0.625,
            best_epoch=2,
            epochs=rows,
            steps=33,
            early_stopped=True,
            seconds=61.0,
            clock_seconds=70.0,
            num_examples=75_305,
            device_changes=(),
        ),
    )
    run = RunDir(path / "run <b>")
    run.path.mkdir()
    run.bert_config.write_text(TINY_BERT.to_json(), "utf-8")
    run.write_config(
        RunDescription(
            config=tiny_config(heads=heads, loss_weights={heads[0]: 0.5}),
            resolved=dataclasses.replace(RESOLVED, precision="bfloat16"),
            dataset=DatasetIdentity(fingerprint=info.fingerprint),
            bert=BertIdentity(vocab_sha256="b" * 64, checkpoint_sha256="c" * 64),
            cased=False,
            labels=labels,
            label_pairs=None if pairs is None else name_pairs(pairs, labels),
            max_len=max_len,
            versions={"tensorflow": "2.21.0"},
        )
    )
    names = ["loss", *(f"{head}_{what}" for head in heads for what in ("loss", "accuracy")), "exact_match"]
    metrics = dict.fromkeys([*names, *(f"val_{name}" for name in names)], 0.5)
    write_metrics_csv(
        run.metrics,
        [{"epoch": epoch, "step": 11 * epoch, "learning_rate": 1e-3, **metrics} for epoch in range(1, rows + 1)],
    )
    return run, report, info, str(path / "data")


def check_self_contained(text: str) -> Any:
    page = Page(text)
    assert "http://" not in text
    assert "https://" not in text
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    assert all(url.startswith(("#", "data:")) for url in page.urls), page.urls
    assert not {"script", "link", "img", "iframe", "object", "base", "form"} & set(page.tags)
    assert len(page.ids) == len(set(page.ids))
    assert all(url[1:] in page.ids for url in page.urls if url.startswith("#"))
    return page


def test_needs_nothing_but_itself_and_escapes_everything(inputs: Any) -> None:
    text = render_report(*inputs)
    page = check_self_contained(text)
    words = "".join(page.words)
    for hostile in (HOSTILE, "</style>静", "run <b>", KEYS[2]):
        assert hostile in words
        assert hostile not in text
    assert words.count("财经/交易") >= 4
    assert text.count("<html") == text.count("</html>") == 1
    assert {"h1", "h2", "table", "svg", "th", "style"} <= set(page.tags)


def test_shows_what_the_report_says(inputs: Any) -> None:
    run, report, info, data_dir = inputs
    words = html.unescape(re.sub(r"\s+", " ", render_report(run, report, info, data_dir)))
    for head in ("category", "second"):
        measures = report.evaluation.heads[head]
        for share in (measures.accuracy, measures.macro_f1, measures.ece):
            assert f">{share:.2%}<" in words
    for measures in report.evaluation.decoding.values():
        assert f">{measures.exact_match:.2%}<" in words
        assert f">{measures.impossible_pairs:.2%}<" in words
    for key in KEYS[:2]:
        mistaken = any(m.key == key for head in report.evaluation.heads.values() for m in head.mistakes)
        assert (f"<code>{key}</code>" in words) == mistaken
    assert "1,234.5" in words
    for name, value in (
        ("precision", "auto"),
        ("resolved: precision", "bfloat16"),
        ("resolved: bucket_lengths", "8, 16"),
    ):
        assert re.search(f"<code>{name}</code></t[dh]> ?<td[^>]*><code>{value}</code>", words)
    assert "stopped early" in words
    assert "1:01 min" in words
    assert info.fingerprint in words
    assert "category=0.5" in words  # an option
    assert "hidden_size" in words
    assert ">33.3%<" in words  # class balance


def test_the_same_run_gives_the_same_page(inputs: Any) -> None:
    assert render_report(*inputs) == render_report(*inputs)


def test_a_class_that_nobody_has_is_not_called_bad(inputs: Any) -> None:
    text = render_report(*inputs)
    row = first_group(r'<th scope="row" class="text">没有人</th>(.*?)</tr>', text)
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", row)
    _, training, support, _, _, recall, *_ = cells
    assert (training, support, recall) == ("0", "0", "–")


@pytest.mark.parametrize(("heads", "num_figures"), [(("category",), 3), (("second", "category"), 4)])
def test_runs_with_other_heads(tmp_path: Path, heads: tuple[str, ...], num_figures: int) -> None:
    page = check_self_contained(render_report(*make_inputs(tmp_path, heads)))
    assert page.tags.count("svg") == num_figures
    assert ("One label at a time, or the best pair" in "".join(page.words)) == (len(heads) == 2)


def test_a_run_without_an_epoch_and_a_shorter_max_len(tmp_path: Path) -> None:
    text = render_report(*make_inputs(tmp_path, rows=0, max_len=6))
    check_self_contained(text)
    assert "No epoch was finished" in text
    assert "Dotted: 6 tokens, where this run cuts texts: 33.3% of test are longer" in text  # lengths 3 to 8


def test_damaged_run(inputs: Any) -> None:
    run, *others = inputs
    run.bert_config.write_text("{")
    with pytest.raises(InputFormatError, match=r"bert_config\.json: expected the BERT's sizes"):
        render_report(run, *others)


def test_classes_are_shown_by_parent() -> None:
    labels = {"category": ["b", "a", "c", "unseen"], "second": ["p", "q"]}
    orders = class_orders(labels, {"b": ["q"], "a": ["p"], "c": ["q"]})
    assert list(orders["category"].ids) == [1, 0, 2, 3]
    assert orders["category"].groups == ["p", "q", "q", ""]
    assert orders["category"].starts == [1, 3]
    assert list(orders["second"].ids) == [0, 1]
    assert orders["second"].groups is None
    # With two parents for one class there is no order by parent.
    assert class_orders(labels, {"b": ["p", "q"], "a": ["p"]})["category"].groups is None
    assert class_orders({"category": ["a", "b"]}, None)["category"].groups is None


def head_values(matrix: Any) -> Any:
    figures: dict[str, Any] = {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0, "predicted": 0}
    return HeadMeasures(
        accuracy=0.0,
        macro_f1=0.0,
        micro_f1=0.0,
        ece=0.0,
        classes=tuple(ClassMeasures(label=f"c{number}", **figures) for number in range(len(matrix))),
        confusion_matrix=matrix.tolist(),
        calibration=(),
        mistakes=(),
    )


def test_a_matrix_keeps_every_example(inputs: Any) -> None:
    generator = np.random.default_rng(0)
    matrix = generator.integers(0, 5, (100, 100))
    matrix[7] += 50  # the class with the most mistakes
    condensed, kept = condense(matrix, 10)
    assert condensed.shape == (10, 10)
    assert condensed.sum() == matrix.sum()
    assert 7 in kept
    assert kept == sorted(kept)
    np.testing.assert_array_equal(condensed[:9, :9], matrix[np.ix_(kept, kept)])
    np.testing.assert_array_equal(condensed[:9, 9], matrix[kept].sum(axis=1) - matrix[np.ix_(kept, kept)].sum(axis=1))

    labels = {"category": [f"c{i}" for i in range(100)]}
    shown = shade_matrix(head_values(matrix), class_orders(labels, None)["category"])
    assert len(shown.rows) == len(shown.names) == MAX_MATRIX_CLASSES
    assert sum(int(count or 0) for row in shown.rows for _, count in row.cells) == matrix.sum()
    assert "classes with the most mistakes" in shown.note


def test_shades_follow_the_share_of_the_row() -> None:
    matrix = np.array([[9, 1, 0], [5, 5, 0], [0, 0, 0]])
    shown = shade_matrix(head_values(matrix), class_orders({"category": ["a", "b", "c"]}, None)["category"])
    assert [row.cells for row in shown.rows] == [
        [("h9", "9"), ("m1", "1"), ("", "")],
        [("m5", "5"), ("h5", "5"), ("", "")],
        [("", "")] * 3,
    ]
    assert frequent_confusions(head_values(matrix)) == [("c1", "c0", "5", "50.0%"), ("c0", "c1", "1", "10.0%")]


def test_the_report_is_what_json_holds(inputs: Any) -> None:
    run, report, *others = inputs
    assert render_report(run, Report.from_json(report.to_json().encode()), *others) == render_report(
        run, report, *others
    )
