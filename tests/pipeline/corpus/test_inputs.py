"""What an `--input` is taken for, what is refused before any work starts, and that keys stay apart."""

import gzip
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest

from pipeline.corpus.archive import ZipSource
from pipeline.corpus.documents import Note, RawDocument
from pipeline.corpus.inputs import Source, open_sources
from pipeline.corpus.options import InputSpec
from pipeline.corpus.table import TableSource
from pipeline.errors import InputFormatError, MissingInputError, OptionError, PipelineError
from tests.support.corpora import make_config, write_lines, write_tree, write_zip


def open_all(tmp_path: Path, *inputs: Path | str | InputSpec, **changes: Any) -> tuple[Source, ...]:
    config = make_config(tmp_path, *inputs, **changes)
    needs_second = config.second_label == "column"
    return open_sources(config.corpus, output_dir=config.output_dir, needs_second=needs_second)


TWO = {"体育/1.txt": "x", "科技/1.txt": "y"}


def test_an_archive_without_members_is_an_archive(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w"):
        pass
    (source,) = open_all(tmp_path, path)
    assert isinstance(source, ZipSource)
    assert list(source.chunks(0)) == []


def test_options_reach_the_sources(tmp_path: Path) -> None:
    table = write_lines(tmp_path / "a.tsv", ["a\tb\tc", "x\ty\tz"])
    (source,) = open_all(
        tmp_path,
        InputSpec(str(table), "dev"),
        columns="second,text,category",
        encoding="gb18030",
        header=True,
        second_label="column",
    )
    assert isinstance(source, TableSource)
    assert (source.split, str(source.columns), source.encoding, source.header) == (
        "dev",
        "second,text,category",
        "gb18030",
        ("a", "b", "c"),
    )


def test_globs(tmp_path: Path) -> None:
    for name in ("b.tsv", "a.tsv", "c.txt", "[a].tsv"):
        write_lines(tmp_path / "in" / name, ["x\ty"])
    found = open_all(tmp_path, InputSpec(str(tmp_path / "in" / "*.tsv"), "train"), tmp_path / "in" / "c.txt")
    assert [os.path.basename(source.path) for source in found] == ["[a].tsv", "a.tsv", "b.tsv", "c.txt"]
    assert [source.split for source in found] == ["train", "train", "train", None]
    # A name that is there is no pattern, even if it could be one.
    assert [source.path for source in open_all(tmp_path, tmp_path / "in" / "[a].tsv")] == [
        str(tmp_path / "in" / "[a].tsv")
    ]
    with pytest.raises(MissingInputError, match=r"\*\.csv: no file matches this pattern"):
        open_all(tmp_path, tmp_path / "in" / "*.csv")


@pytest.mark.parametrize(
    ("made", "wanted", "error", "message"),
    [
        (None, "auto", MissingInputError, "no such file or directory"),
        ("link to nowhere", "auto", MissingInputError, "no such file or directory"),
        ("empty directory", "auto", MissingInputError, "the directory is empty; expected one directory for each"),
        ("hidden files", "auto", MissingInputError, "the directory is empty"),
        ("directory of files", "auto", InputFormatError, "expected 2 tab-separated .*all files lie in one directory"),
        ("directory of files", "tree", MissingInputError, "found 2 files and no directory"),
        ("link to itself", "auto", MissingInputError, "cannot open this file: Too many levels"),
        ("empty file", "auto", MissingInputError, "the file is empty"),
        ("file", "tree", MissingInputError, "expected a directory of categories, found a file"),
        ("tree", "tsv", InputFormatError, "expected 2 tab-separated .*give the directory that holds one directory for"),
        ("tree", "zip", MissingInputError, "expected a zip file, found a directory"),
        ("file", "auto", InputFormatError, r"expected 2 tab-separated columns \(text,category\), got 1; say what"),
        ("cut gzip", "auto", InputFormatError, "damaged gzip stream"),
        ("pipe", "auto", MissingInputError, "expected a regular file or a directory, .*; write it to a file first"),
        ("pipe", "tsv", MissingInputError, "expected a regular file or a directory, .*; write it to a file first"),
    ],
)
def test_what_cannot_be_read_is_refused(
    tmp_path: Path, made: str | None, wanted: str, error: type[PipelineError], message: str
) -> None:
    path = tmp_path / "input"
    if made == "link to nowhere":
        path.symlink_to(tmp_path / "nowhere")
    elif made == "empty directory":
        path.mkdir()
    elif made == "hidden files":
        write_tree(path, {".git/config": "x"})
    elif made == "directory of files":
        write_tree(path, {"1.txt": "x", "2.txt": "y"})
    elif made == "link to itself":
        path.mkdir()
        (path / "itself").symlink_to("itself")
    elif made == "empty file":
        path.touch()
    elif made == "file":
        path.write_text("only text\n")
    elif made == "tree":
        write_tree(path, {"体育/1.txt": "x"})
    elif made == "cut gzip":
        path.write_bytes(gzip.compress(os.urandom(1_000))[:-20])
    elif made == "pipe":
        os.mkfifo(path)
    with pytest.raises(error, match=message) as caught:
        open_all(tmp_path, path, input_format=wanted)
    assert str(path) in str(caught.value)


def test_the_same_input_twice_is_refused_however_it_is_spelt(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", TWO)
    (tmp_path / "link").symlink_to(tree)
    for other in (f"{tree}/", tmp_path / "tree" / ".." / "tree", tmp_path / "link", InputSpec(str(tree), "dev")):
        with pytest.raises(OptionError, match="is given twice"):
            open_all(tmp_path, tree, other)


def test_second_label_from_a_column_needs_columns(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", TWO)
    with pytest.raises(OptionError, match="is a tree, of which no column or directory"):
        open_all(tmp_path, tree, second_label="column", columns="text,category,second")


@pytest.mark.parametrize(
    "changes",
    [{"columns": "category,text"}, {"header": True}, {"delimiter": ","}, {"quoting": "csv"}],
)
def test_options_for_tables_need_a_table(tmp_path: Path, changes: dict[str, Any]) -> None:
    tree = write_tree(tmp_path / "tree", TWO)
    (name,) = changes
    with pytest.raises(OptionError, match=f"--{name}: only used for (tables|TSV and CSV), and no --input is one"):
        open_all(tmp_path, tree, **changes)
    table = write_lines(tmp_path / "a.tsv", ["x,体育" if name == "delimiter" else "x\t体育"])
    assert len(open_all(tmp_path, tree, table, **changes)) == 2


@pytest.mark.parametrize("changes", [{"levels": ("second", "category")}, {"glob": "*.txt"}])
def test_options_for_trees_need_a_tree(tmp_path: Path, changes: dict[str, Any]) -> None:
    table = write_lines(tmp_path / "a.tsv", ["x\t体育"])
    (name,) = changes
    with pytest.raises(OptionError, match=f"--{name}: only used for trees"):
        open_all(tmp_path, table, **changes)


@pytest.mark.parametrize("output", ["tree", "tree/dataset", "tree/体育/dataset"])
def test_output_inside_an_input_tree_is_refused(tmp_path: Path, output: str) -> None:
    """A second run would read the first one's dataset as documents."""
    tree = write_tree(tmp_path / "tree", TWO)
    with pytest.raises(OptionError, match="lies inside the input"):
        open_all(tmp_path, tree, output_dir=str(tmp_path / output))
    assert open_all(tmp_path, tree, output_dir=str(tmp_path / "tree2"))


def test_key_prefixes_are_as_short_as_they_can_be(tmp_path: Path) -> None:
    def prefixes(*inputs: Path) -> list[str]:
        return [source.key_prefix for source in open_all(tmp_path, *inputs)]

    trees = [write_tree(tmp_path / name, TWO) for name in ("a/corpus", "b/corpus", "c/other")]
    tables = [write_lines(tmp_path / name, ["x\ty"]) for name in ("a/train.tsv", "b/train.tsv", "b/dev.tsv")]
    archive = write_zip(tmp_path / "a" / "corpus.zip", TWO)
    assert prefixes(trees[0]) == [""]
    assert prefixes(archive) == [""]
    assert prefixes(tables[0]) == ["train.tsv"]
    assert prefixes(trees[0], tables[0]) == ["", "train.tsv"]
    assert prefixes(trees[0], archive) == ["corpus/", "corpus.zip/"]
    assert prefixes(trees[0], trees[2]) == ["corpus/", "other/"]
    assert prefixes(*trees) == ["a/corpus/", "b/corpus/", "other/"]
    assert prefixes(*tables) == ["a/train.tsv", "b/train.tsv", "dev.tsv"]
    # The keys of `2/a` could be those of a category `corpus` in `1/a`, were both named after their last directory.
    nested = [write_tree(tmp_path / name, TWO) for name in ("1/a", "2/a/corpus", "3/corpus")]
    assert prefixes(*nested) == ["1/a/", "2/a/corpus/", "3/corpus/"]


def test_keys_do_not_say_where_the_corpus_lies(tmp_path: Path) -> None:
    for place in ("here", "elsewhere/deep"):
        root = tmp_path / place
        inputs = [write_lines(root / name, ["x\ty"]) for name in ("a/t.tsv", "b/t.tsv")]
        assert [source.key_prefix for source in open_all(tmp_path, *inputs)] == ["a/t.tsv", "b/t.tsv"]


def test_keys_are_unique_over_all_inputs(tmp_path: Path) -> None:
    documents = {"体育/1.txt": "x", "科技/1.txt": "y"}
    inputs = [
        write_tree(tmp_path / "a" / "corpus", documents),
        write_tree(tmp_path / "b" / "corpus", documents),
        write_zip(tmp_path / "corpus", documents),
        write_lines(tmp_path / "a" / "t.tsv", ["x\t体育"] * 3),
        write_lines(tmp_path / "b" / "t.tsv", ["x\t体育"] * 3),
    ]
    keys = [
        item.key
        for index, source in enumerate(open_all(tmp_path, *inputs))
        for chunk in source.chunks(index)
        for item in source.read(chunk)
        if not isinstance(item, Note)
    ]
    assert len(keys) == 12
    assert len(set(keys)) == 12


def test_input_whose_name_is_not_utf_8(tmp_path: Path) -> None:
    path = os.path.join(os.fsencode(tmp_path), "表".encode("gb18030") + b".tsv")
    with open(path, "wb") as stream:
        stream.write(b"x\ty\n")
    (source,) = open_all(tmp_path, os.fsdecode(path))
    (document,) = (item for chunk in source.chunks(0) for item in source.read(chunk))
    assert isinstance(document, RawDocument)
    assert document.key == "\\xb1\\xed.tsv:1"
