"""What files, directories and archives are taken for; what is said about it; and what is refused, with the way out."""

import gzip
import logging
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from pipeline.corpus.archive import TarSource, ZipSource
from pipeline.corpus.documents import Note, RawDocument
from pipeline.corpus.inputs import Source, open_sources
from pipeline.corpus.options import InputSpec
from pipeline.corpus.parquet import ParquetSource
from pipeline.corpus.table import Delimited, FastText, JsonLines, Quoted, TableSource
from pipeline.corpus.tree import TreeSource
from pipeline.errors import InputFormatError, OptionError
from tests.support.corpora import make_config, write_lines, write_tree, write_zip

TWO = {"体育/1.txt": "x", "科技/1.txt": "y"}


def open_all(tmp_path: Path, *inputs: Path | InputSpec, **changes: Any) -> tuple[Source, ...]:
    return open_sources(make_config(tmp_path, *inputs, **changes).corpus)


def open_table(tmp_path: Path, path: Path, **changes: Any) -> TableSource:
    (source,) = open_all(tmp_path, path, **changes)
    assert isinstance(source, TableSource)
    return source


def pack(path: Path, tree: Path) -> Path:
    """Pack a directory into an archive, of the kind that its name says."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name in sorted(tree.rglob("*")):
                archive.write(name, name.relative_to(tree))
    else:
        mode: Any = "w:" + {".gz": "gz", ".xz": "xz", ".bz2": "bz2"}.get(path.suffix, "")
        with tarfile.open(path, mode) as made:
            made.add(tree, ".")
    return path


ARCHIVES = ["a.zip", "a.tar", "a.tar.gz", "a.tar.xz", "a.tar.bz2"]


# Kinds


def test_kinds_are_found_out(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", TWO)
    archive = write_zip(tmp_path / "no_suffix", TWO)
    table = write_lines(tmp_path / "misleading.zip", ["x\t体育"])
    packed = tmp_path / "table.gz"
    packed.write_bytes(gzip.compress("x\t体育\n".encode()))
    tar = pack(tmp_path / "misleading.tsv", tree)
    kinds = [type(source) for source in open_all(tmp_path, tree, archive, table, packed, tar)]
    assert kinds == [TreeSource, ZipSource, TableSource, TableSource, TarSource]


@pytest.mark.parametrize(
    ("name", "content", "syntax"),
    [
        ("a.txt", "x\t体育\n", Delimited("\t")),
        ("a.tsv", "PK大赛今晚开始\t体育\n", Delimited("\t")),  # it begins like an archive
        ("a.csv", "x,体育\n", Quoted(",")),
        ("a.csv", "x\t体育\n", Delimited("\t")),  # a file of tabs may be called so
        ("a.txt", '{"text": "x", "category": "体育"}\n', JsonLines()),
        ("a.json", '\ufeff{"text": "x", "category": "体育"}\n', JsonLines()),
    ],
)
def test_a_table_is_what_its_content_and_its_name_say(tmp_path: Path, name: str, content: str, syntax: object) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert open_table(tmp_path, tmp_path / name).syntax == syntax


def test_options_say_what_a_table_is(tmp_path: Path) -> None:
    table = write_lines(tmp_path / "a.txt", ["1_!_体育_!_x"])
    assert open_table(tmp_path, table, delimiter="_!_", columns="-,category,text").syntax == Delimited("_!_")
    with pytest.raises(OptionError, match="--delimiter '_!_': quoted fields need one character"):
        open_all(tmp_path, table, delimiter="_!_", quoting="csv")
    table = write_lines(tmp_path / "b.txt", ["__label__体育 x y"])
    assert open_table(tmp_path, table, input_format="fasttext").syntax == FastText()


# Directories and archives


@pytest.mark.parametrize("wrapped", ["", "THUCNews", "a/THUCNews"])
def test_one_rule_of_unwrapping(tmp_path: Path, wrapped: str) -> None:
    """Directories around all categories mean nothing, in a tree as in an archive."""
    tree = tmp_path / "tree"
    write_tree(tree / wrapped, TWO | {"体育/2010/2.txt": "z"})
    expected = ["体育/1.txt", "体育/2010/2.txt", "科技/1.txt"]
    for path in [tree, *(pack(tmp_path / name, tree) for name in ARCHIVES)]:
        (source,) = open_all(tmp_path, path)
        found = [item.key for chunk in source.chunks(0) for item in source.read(chunk) if not isinstance(item, Note)]
        assert sorted(found) == expected, path


def test_levels_decide_what_is_around_the_categories(tmp_path: Path) -> None:
    """Directories of two labels: one parent alone is not around them, something above it is."""
    tree = tmp_path / "tree"
    write_tree(tree, {"all/新闻/体育/1.txt": "x", "all/新闻/科技/1.txt": "y"})
    for path in [tree, *(pack(tmp_path / name, tree) for name in ARCHIVES)]:
        (source,) = open_all(tmp_path, path, levels=("second", "category"))
        items = [item for chunk in source.chunks(0) for item in source.read(chunk)]
        assert sorted((item.key, item.second, item.category) for item in items if isinstance(item, RawDocument)) == [
            ("新闻/体育/1.txt", "新闻", "体育"),
            ("新闻/科技/1.txt", "新闻", "科技"),
        ]


TABLES = {"cnews.train.txt": ["山\t体育"], "cnews.val.txt": ["水\t科技"], "cnews.test.txt": ["云\t体育"]}


@pytest.mark.parametrize("wrapped", ["", "cnews"])
def test_tables_in_a_directory_or_an_archive_are_tables(
    tmp_path: Path, wrapped: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    tree = tmp_path / "tree"
    for name, lines in TABLES.items():
        write_lines(tree / wrapped / name, lines)
    (tree / "Thumbs.db").write_bytes(b"\xd0\xcf")
    for path in [tree, *(pack(tmp_path / name, tree) for name in ARCHIVES)]:
        caplog.clear()
        found = open_all(tmp_path, path)
        assert {type(source) for source in found} == {TableSource}
        assert {(source.split, source.key_prefix) for source in found} == {
            ("dev", "cnews.val.txt"),
            ("test", "cnews.test.txt"),
            ("train", "cnews.train.txt"),
        }
        assert any("splits as the names say" in message for message in caplog.messages)
        items: list[Any] = [item for source in found for chunk in source.chunks(0) for item in source.read(chunk)]
        assert sorted(item.content for item in items) == sorted(text.encode() for text in "山水云")
        assert {source.split for source in open_all(tmp_path, path, glob="*val*")} == {None}, "one alone is divided"


def test_names_that_say_a_split_only_now_and_then_are_refused(tmp_path: Path) -> None:
    for name in ("train.txt", "test.txt", "more.txt"):
        write_lines(tmp_path / "d" / name, ["山\t体育"])
    with pytest.raises(OptionError, match=r"say a split, that of more\.txt does not; give each with SPLIT=PATH"):
        open_all(tmp_path, tmp_path / "d")
    assert {source.split for source in open_all(tmp_path, tmp_path / "d", glob="t*")} == {"train", "test"}


def test_a_glob_over_published_splits_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("train.tsv", "test.tsv"):
        write_lines(tmp_path / "d" / name, ["山\t体育"])
    assert {source.split for source in open_all(tmp_path, tmp_path / "d" / "*.tsv")} == {None}
    (message,) = caplog.messages
    assert "divided again, though their names say test, train" in message


def test_a_thousand_files_in_one_directory_are_one_category(tmp_path: Path) -> None:
    write_tree(tmp_path / "体育", {f"{number}.txt": "x" for number in range(1_001)})
    with pytest.raises(InputFormatError, match=r"1,001 files in one directory, 体育.*give the directory above"):
        open_all(tmp_path, tmp_path / "体育")


def test_an_archive_within_an_archive_is_refused(tmp_path: Path) -> None:
    inner = write_zip(tmp_path / "体育.zip", TWO).read_bytes()
    tree = write_tree(tmp_path / "tree", {"体育.zip": inner, "科技.zip": inner})
    for name in ("nested.zip", "nested.tar.gz"):
        with pytest.raises(InputFormatError, match="a zip file within an archive or directory; unpack the outer one"):
            open_all(tmp_path, pack(tmp_path / name, tree))
    packed = tmp_path / "a.zip.gz"
    packed.write_bytes(gzip.compress(inner))
    with pytest.raises(InputFormatError, match="a zip file that is compressed once more; decompress it"):
        open_all(tmp_path, packed)


# What is refused


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"Rar!\x1a\x07\x01\x00", "a RAR archive, .*unrar x"),
        (b"7z\xbc\xaf\x27\x1c\x00\x04", "a 7-Zip archive, .*7z x"),
        (b"\x28\xb5\x2f\xfd\x04\x00", "compressed with Zstandard, .*zstd -d"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1", r"an old Office document \(.xls, .doc\), .*CSV"),
        ("山\t体育\n".encode("utf-16"), "UTF-16, as Excel saves .*--encoding utf-16"),
        ("山\tsports and more\n".encode("utf-16-le"), "a binary file, .*--encoding utf-16-le"),
        (b"\x00\x01\x02\x03" + b"abc\n" * 9, "a binary file, of no kind that is known here"),
        ("山\t体育\r水\t科技\r".encode(), "carriage returns alone"),
        ("__label__体育 山 水\n".encode(), "it looks like fastText's: say --input_format fasttext"),
        ("山_!_体育\n".encode(), "--delimiter '_!_'"),
        ('{"sentence": "山", "label": "1"}\n'.encode(), "no field 'text', 'category', found 'sentence', 'label'"),
        ("text\tlabel\n山\t体育\n".encode(), r"seems to name the columns \('text', 'label'\): say --columns text=NAME"),
        ("headline\ttopic_name\n山\t体育\n水\t体育\n".encode(), "seems to name the columns"),
    ],
)
def test_files_of_other_kinds_are_named_with_the_way_out(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "input"
    path.write_bytes(content)
    with pytest.raises(InputFormatError, match=message):
        open_all(tmp_path, path)


def test_json_that_is_not_one_object_a_line(tmp_path: Path) -> None:
    for content in ('[\n {"text": "x"}\n]\n', '{\n "text": "x"\n}\n'):
        path = tmp_path / "a.json"
        path.write_text(content)
        with pytest.raises(InputFormatError, match="JSON, but not one object a line; convert it with jq"):
            open_all(tmp_path, path)


def test_an_office_document_is_no_archive_of_documents(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.xlsx", {"[Content_Types].xml": "<x/>", "xl/worksheets/sheet1.xml": "<x/>"})
    with pytest.raises(InputFormatError, match=r"an Office document .*pandas.read_excel"):
        open_all(tmp_path, path)


# Headers, quotes and encodings


def test_a_header_is_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    path = write_lines(tmp_path / "a.tsv", ["text\tcategory", "山\t体育", "水\t科技"])
    assert open_table(tmp_path, path).header == ("text", "category")
    assert caplog.messages == [f"{path}: its first line names the columns, and is no document"]
    source = open_table(tmp_path, path, columns="category=category,text=text")
    assert source.columns.fields == {"category": (1,), "text": (0,)}
    assert open_table(tmp_path, path, header=False).header is None
    with pytest.raises(InputFormatError, match="first line: no field 'label', found 'text', 'category'"):
        open_all(tmp_path, path, columns="text,category=label")
    twice = write_lines(tmp_path / "b.tsv", ["text\tlabel\tlabel", "山\t体育\t1"])
    with pytest.raises(InputFormatError, match="names 'label' twice; use places"):
        open_all(tmp_path, twice, columns="text,category=label")


def test_a_document_that_is_no_header(tmp_path: Path) -> None:
    """Rows of one label, labels that recur, and texts of more than one word."""
    for lines in (["text\tlabel"] * 3, ["hello\tgreeting", "bye\tgreeting"], ["a good text\tx", "y\tz", "y\tz"]):
        assert open_table(tmp_path, write_lines(tmp_path / "a.tsv", lines)).header is None


def test_a_quote_that_is_not_closed_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_lines(tmp_path / "a.tsv", ["山\t体育", '"水', '云"\t科技'])
    open_all(tmp_path, path)
    (message,) = caplog.messages
    assert message.startswith(f"{path}, line 2: fields that open a quote and do not close it")
    assert "--quoting csv" in message
    caplog.clear()
    open_all(tmp_path, path, quoting="csv")
    open_all(tmp_path, write_lines(tmp_path / "b.tsv", ['"山"水\t体育"', '他说"水\t"科技"']))
    assert [message for message in caplog.messages if "b.tsv, line 1" not in message] == []


@pytest.mark.parametrize(("encoding", "found"), [("utf-8", "utf-8"), ("gb18030", "gb18030"), ("utf-16", "utf-16")])
def test_an_encoding_is_found_out_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, encoding: str, found: str
) -> None:
    caplog.set_level(logging.INFO)
    path = tmp_path / "a.tsv"
    path.write_bytes("第一轮联赛开始\t体育\n新的芯片发布\t科技\n".encode(encoding))
    assert open_table(tmp_path, path, encoding="auto").encoding == found
    assert caplog.messages == ([] if found == "utf-8" else [f"{path}: not UTF-8, read as {found}"])


def test_parquet_is_found_out(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "a.tsv"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["山"], "label": ["体育"]}), path)
    (source,) = open_all(tmp_path, path, columns="text,category=label")
    assert isinstance(source, ParquetSource)
    with pytest.raises(InputFormatError, match="no field 'category', found 'text', 'label'"):
        open_all(tmp_path, path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputFormatError, match="not a complete Parquet file"):
        open_all(tmp_path, path, columns="text,category=label")
