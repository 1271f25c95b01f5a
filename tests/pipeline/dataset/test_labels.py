"""Label maps, taxonomies and lists of names: what they accept, merge and refuse."""

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.dataset.labels import LabelMap, decode_lines, normalize_label, read_category_names, read_taxonomy
from pipeline.errors import InputFormatError, MissingInputError, OptionError
from tests.support.corpora import write_lines

COMPOSED, DECOMPOSED = "café", "cafe\u0301"


def test_names_that_look_the_same_are_the_same() -> None:
    assert COMPOSED != DECOMPOSED
    assert normalize_label(f" {DECOMPOSED}\r\n") == COMPOSED == normalize_label(COMPOSED)
    # Inside, white space and slashes are part of a name; compatibility forms stay apart.
    assert normalize_label("财经 / 交易") == "财经 / 交易"
    assert normalize_label("Ａ") == "Ａ"


@given(st.text())
def test_normalization_is_idempotent(name: str) -> None:
    once = normalize_label(name)
    assert normalize_label(once) == once
    assert normalize_label(unicodedata.normalize("NFD", name)) == once


def test_ids_follow_code_points_whatever_the_order() -> None:
    names = ["科技", "体育", "a/b", "a b", "Z", "体育"]
    label_map = LabelMap.from_names(names)
    assert label_map.names == ("Z", "a b", "a/b", "体育", "科技")
    assert LabelMap.from_names(reversed(names)) == label_map
    assert len(label_map) == 5
    assert label_map.ids() == {"Z": 0, "a b": 1, "a/b": 2, "体育": 3, "科技": 4}


def test_shipped_taxonomy() -> None:
    taxonomy = read_taxonomy(None)
    assert len(taxonomy.parents) == 14
    assert sorted(set(taxonomy.parents.values())) == ["公共事务", "生活娱乐", "经济金融"]
    assert taxonomy.parent("股票") == "经济金融"
    assert taxonomy.parent("体育") == "生活娱乐"


def test_unknown_category_is_told_with_the_way_out() -> None:
    with pytest.raises(OptionError) as caught:
        read_taxonomy(None).parent("天气")
    message = str(caught.value)
    assert "'天气' has no parent in the built-in thucnews_taxonomy.tsv" in message
    assert "天气<TAB>parent" in message
    assert "--second_label random" in message


def test_taxonomy_file(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "taxonomy.tsv",
        [
            "\ufeff# comments and empty lines are left out",
            "",
            f"{DECOMPOSED}\t饮 食/零售 ",
            f"{COMPOSED}\t饮 食/零售",  # the same once more: no contradiction
            "财经/交易\t经济",
        ],
        end=b"\r\n",
    )
    taxonomy = read_taxonomy(str(path))
    assert dict(taxonomy.parents) == {COMPOSED: "饮 食/零售", "财经/交易": "经济"}
    assert taxonomy.source == str(path)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["体育\t生活", "科技"], "line 2: expected category<TAB>parent, got '科技'"),
        (["体育\t生活\t三"], "line 1: expected category<TAB>parent"),
        (["", "体育\t"], "line 2: expected category<TAB>parent"),
        (["体育\t生活", "# note", " 体育\t公共"], "line 3: '体育' already has the parent '生活', now '公共'"),
        (["# nothing else"], "no line of the form"),
        ([], "no line of the form"),
        ([b"\xcc\xe5\xd3\xfd\t1"], "expected UTF-8 text, found byte 0xcc at 0"),  # 体育 in GBK
    ],
)
def test_wrong_taxonomies(tmp_path: Path, lines: list[str | bytes], message: str) -> None:
    path = write_lines(tmp_path / "taxonomy.tsv", lines)
    with pytest.raises(InputFormatError, match=message) as caught:
        read_taxonomy(str(path))
    assert str(caught.value).startswith(str(path))


def test_missing_files(tmp_path: Path) -> None:
    for read in (read_taxonomy, read_category_names):
        with pytest.raises(MissingInputError, match="no such file"):
            read(str(tmp_path / "none.tsv"))
        with pytest.raises(MissingInputError, match="found a directory"):
            read(str(tmp_path))


def test_category_names_keep_their_order(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "class.txt", ["财经", "体育 ", DECOMPOSED, "a/b"])
    assert read_category_names(str(path)).names == ("财经", "体育", COMPOSED, "a/b")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["财经", "", "体育"], "line 2: expected the name of category 1, got an empty line"),
        (["财经", "体育", "财经"], "line 3: category '财经' is already on line 1"),
        ([COMPOSED, DECOMPOSED], "line 2: .* is already on line 1"),
        ([], "expected one category name a line, got an empty file"),
    ],
)
def test_wrong_category_names(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(InputFormatError, match=message):
        read_category_names(str(write_lines(tmp_path / "class.txt", lines)))


def test_lines_end_at_newlines_alone() -> None:
    text = "a\u2028b\x0bc\x85d\r\ne"
    assert decode_lines(text.encode(), "x") == ["a\u2028b\x0bc\x85d", "e"]
    assert decode_lines(b"a\n\n", "x") == ["a", ""]
    assert decode_lines(b"", "x") == []
