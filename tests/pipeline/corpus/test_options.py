"""What may be said about a corpus, and how each mistake is told."""

import logging
from pathlib import Path
from typing import Any

import pytest

from pipeline.corpus.options import Columns, CorpusOptions, InputSpec, parse_inputs
from pipeline.errors import OptionError


def options(**changes: Any) -> CorpusOptions:
    return CorpusOptions(**{"inputs": (InputSpec("corpus"),)} | changes)


@pytest.mark.parametrize(
    ("text", "path", "split"),
    [
        ("corpus", "corpus", None),
        ("train=a.tsv", "a.tsv", "train"),
        ("held_out2=a.tsv", "a.tsv", "held_out2"),
        ("train=a=b.tsv", "a=b.tsv", "train"),  # only the first '=' counts
        ("/data/a=b.tsv", "/data/a=b.tsv", None),  # a path, because no split has a slash
        ("./a=b.tsv", "./a=b.tsv", None),
        ("训练=a.tsv", "训练=a.tsv", None),
        ("=a.tsv", "=a.tsv", None),
        ("gs://bucket/x=1/*.tsv", "gs://bucket/x=1/*.tsv", None),
    ],
)
def test_input_spec(text: str, path: str, split: str | None) -> None:
    assert InputSpec.parse(text) == InputSpec(path, split)


@pytest.mark.parametrize("text", ["", "train="])
def test_input_without_a_path_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match="no path"):
        InputSpec.parse(text)


@pytest.mark.parametrize("split", ["rejected", "", "a/../b", "..", "a-b", "训练"])
def test_splits_that_cannot_name_a_file_are_refused(split: str) -> None:
    with pytest.raises(OptionError, match=r"--input: .* cannot name a split; use letters, digits and '_'"):
        InputSpec("a", split)


def test_a_path_that_exists_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dt=2020-01-01").mkdir()
    assert InputSpec.parse("dt=2020-01-01") == InputSpec("dt=2020-01-01")
    assert InputSpec.parse("dt=2020-01-02") == InputSpec("2020-01-02", "dt")


def test_a_home_directory_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert InputSpec.parse("train=~/a.tsv") == InputSpec("/home/somebody/a.tsv", "train")
    assert InputSpec.parse("~/a.tsv") == InputSpec("/home/somebody/a.tsv")


def test_other_names_of_dev_are_dev_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    found = parse_inputs(["train=a", "val=b", "val=c"])
    assert [spec.split for spec in found] == ["train", "dev", "dev"]
    assert caplog.messages == ["the split val is called dev here"]
    with pytest.raises(OptionError, match="dev, valid: one split here, which is called dev; give it one name"):
        parse_inputs(["valid=a", "dev=b"])


@pytest.mark.parametrize(
    ("text", "fields", "width"),
    [
        ("text,category", {"text": (0,), "category": (1,)}, 2),
        ("category,-,text,-", {"category": (0,), "text": (2,)}, 4),
        ("text=title+content,category=label", {"text": ("title", "content"), "category": ("label",)}, None),
        ("text,category=label", {"text": ("text",), "category": ("label",)}, None),
    ],
)
def test_columns(text: str, fields: dict[str, tuple[str | int, ...]], width: int | None) -> None:
    columns = Columns.parse(text)
    assert (columns.fields, columns.width) == (fields, width)
    assert Columns.parse(str(columns)) == columns


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("category", r"--columns: expected text, category \(and second\) once each"),
        ("text,category,text", "once each"),
        ("text,category,label", "expected text, category, second or '-', got label"),
        ("text=a,category=b,label=c", "expected text, category, second or '-', got label"),
        ("text=a+,category=b", r"expected text=FIELD or text=FIELD\+FIELD, got 'text=a\+'"),
    ],
)
def test_columns_that_say_nothing_are_refused(text: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Columns.parse(text)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": ()}, "--input: expected at least one"),
        ({"input_format": "xlsx"}, "--input_format: expected one of auto, tree, zip, .*, got 'xlsx'"),
        ({"quoting": "excel"}, "--quoting: expected one of none, csv"),
        ({"levels": ("second",)}, "--levels: expected category, or second and category"),
        ({"delimiter": ""}, "--delimiter: expected characters between columns"),
        ({"delimiter": '"'}, "--delimiter: expected characters between columns"),
        ({"encoding": "gbkk"}, "unknown encoding 'gbkk'"),
        ({"encoding": "utf-32"}, "does not keep ASCII bytes"),
        ({"encoding": "rot13"}, "unknown encoding 'rot13'"),  # a codec, but not one of text
        ({"encoding": "undefined"}, "does not keep ASCII bytes"),  # fails always, on purpose
        ({"encoding": "utf-7"}, "does not keep ASCII bytes"),  # '+' begins a sequence
        ({"encoding": "hz"}, "does not keep ASCII bytes"),  # so does '~'
        ({"encoding": "raw_unicode_escape"}, "does not keep ASCII bytes"),
        ({"encoding": "unicode_escape"}, "does not keep ASCII bytes"),
    ],
)
def test_wrong_options_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        options(**changes)


@pytest.mark.parametrize(
    ("spelt", "name"),
    [("UTF8", "utf-8"), ("U8", "utf-8"), ("GBK", "gbk"), ("936", "gbk"), ("UTF16", "utf-16"), ("auto", "auto")],
)
def test_an_encoding_has_one_name(spelt: str, name: str) -> None:
    assert options(encoding=spelt).encoding == name


def test_a_tab_can_be_written_as_in_c() -> None:
    assert options(delimiter=r"\t").delimiter == "\t"
