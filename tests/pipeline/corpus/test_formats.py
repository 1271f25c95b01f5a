"""One corpus in every format and encoding, and what each format can hide: nothing may be misread without a word."""

import csv
import gzip
import io
import json
import lzma
import os
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from pipeline.corpus import streams, table
from pipeline.corpus.documents import Note, RawDocument, Rejection, normalize_text
from pipeline.corpus.inputs import open_sources
from pipeline.corpus.reading import fetch
from pipeline.corpus.table import BLANK, HEADERS, OPEN_QUOTES
from pipeline.corpus.tree import LITTER, OTHER_NAMES
from pipeline.dataset.info import DatasetInfo
from pipeline.errors import InputFormatError
from tests.support.corpora import (
    made_up_documents,
    make_config,
    read_dataset,
    run_by_hand,
    run_quickly,
    write_lines,
    write_tree,
    write_zip,
)

DOCUMENTS = made_up_documents(1_000)
ROWS = [(key.split("/")[0], *text.split("\n")[:2]) for key, text in DOCUMENTS.items()]  # category, headline, body
FLAT = [(category, normalize_text(f"{headline}\n{body}")) for category, headline, body in ROWS]


def lines(*, delimiter: str = "\t", encoding: str = "utf-8", end: str = "\n") -> bytes:
    return "".join(f"{text}{delimiter}{category}{end}" for category, text in FLAT).encode(encoding)


def quoted(*, encoding: str = "utf-8", delimiter: str = ",", names: bool = True) -> bytes:
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, delimiter=delimiter)
    rows = [(f"{headline}\n{body}", category) for category, headline, body in ROWS]
    writer.writerows([("review", "label"), *rows] if names else rows)
    return stream.getvalue().encode(encoding)


def objects(*, joined: bool = False) -> bytes:
    made = [
        {"title": headline, "body": body, "label": category}
        if joined
        else {"sentence": f"{headline}\r\n{body}", "label": category, "id": number}
        for number, (category, headline, body) in enumerate(ROWS)
    ]
    return "".join(json.dumps(row, ensure_ascii=number % 2 == 0) + "\n" for number, row in enumerate(made)).encode()


def parquet(path: Path, **options: Any) -> Path:
    columns = {"sentence": [f"{headline}\n{body}" for _, headline, body in ROWS], "label": [row[0] for row in ROWS]}
    pyarrow.parquet.write_table(pyarrow.table(columns), path, **options)
    return path


def tar(path: Path, documents: dict[str, Any], mode: Any = "w:") -> Path:
    with tarfile.open(path, mode) as archive:
        for key, text in documents.items():
            content = text if isinstance(text, bytes) else text.encode()
            member = tarfile.TarInfo(key)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def file(name: str, content: bytes) -> Callable[[Path], Path]:
    def write(root: Path) -> Path:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
        return root / name

    return write


WRAPPED = {f"THUCNews/{key}": text for key, text in DOCUMENTS.items()}
GBK = {key: text.encode("gb18030") for key, text in DOCUMENTS.items()}
NAMED = {"columns": "text=review,category=label"}
CLUE = {"columns": "text=sentence,category=label"}
# What makes the corpus, and what is said about it.
SHAPES: dict[str, tuple[Callable[[Path], Path], dict[str, Any]]] = {
    "tree in GB18030": (lambda root: write_tree(root / "t", GBK), {"encoding": "gb18030"}),
    "tree, encoding found out": (lambda root: write_tree(root / "t", GBK), {"encoding": "auto"}),
    "tree in UTF-16": (
        lambda root: write_tree(root / "t", {key: text.encode("utf-16") for key, text in DOCUMENTS.items()}),
        {"encoding": "utf-16"},
    ),
    "zip": (lambda root: write_zip(root / "a.zip", WRAPPED), {}),
    "zip in GB18030": (lambda root: write_zip(root / "a.zip", GBK), {"encoding": "gb18030"}),
    "tar": (lambda root: tar(root / "a.tar", WRAPPED), {}),
    "tar.gz": (lambda root: tar(root / "a.tgz", WRAPPED, "w:gz"), {}),
    "tar.xz": (lambda root: tar(root / "a.tar.xz", WRAPPED, "w:xz"), {}),
    "lines": (file("a.tsv", lines()), {}),
    "lines of Windows": (file("a.tsv", lines(end="\r\n", encoding="utf-8-sig")), {}),
    "lines in GB18030": (file("a.txt", lines(encoding="gb18030")), {"encoding": "gb18030"}),
    "lines, encoding found out": (file("a.txt", lines(encoding="gb18030")), {"encoding": "auto"}),
    "lines with a delimiter": (file("a.txt", lines(delimiter="_!_")), {"delimiter": "_!_"}),
    "lines with a delimiter in GB18030": (
        file("a.txt", lines(delimiter="_!_", encoding="gb18030")),
        {"delimiter": "_!_", "encoding": "gb18030"},
    ),
    "lines of Excel": (file("a.txt", lines(encoding="utf-16", end="\r\n")), {"encoding": "utf-16"}),
    "lines, gzip": (file("a.tsv.gz", gzip.compress(lines())), {}),
    "lines, xz": (file("a.tsv.xz", lzma.compress(lines())), {}),
    "quoted lines": (file("a.tsv", quoted(delimiter="\t", names=False)), {"quoting": "csv"}),
    "CSV": (file("a.csv", quoted()), NAMED),
    "CSV by place": (file("a.csv", quoted()), {"header": True}),
    "CSV of Excel": (file("a.csv", quoted(encoding="utf-8-sig")), NAMED),
    "CSV in UTF-16": (file("a.csv", quoted(encoding="utf-16")), NAMED | {"encoding": "utf-16"}),
    "CSV in GB18030": (file("a.csv", quoted(encoding="gb18030")), NAMED | {"encoding": "gb18030"}),
    "CSV, gzip": (file("a.csv.gz", gzip.compress(quoted())), NAMED),
    "JSON lines": (file("a.json", objects()), CLUE),
    "JSON lines, joined": (file("a.jsonl", objects(joined=True)), {"columns": "text=title+body,category=label"}),
    "JSON lines, gzip": (file("a.jsonl.gz", gzip.compress(objects())), CLUE),
    "Parquet": (lambda root: parquet(root / "a.parquet"), CLUE),
    "Parquet in row groups": (lambda root: parquet(root / "a.parquet", row_group_size=64, compression="gzip"), CLUE),
    "fastText": (
        file("a.txt", "".join(f"__label__{category} {text}\n" for category, text in FLAT).encode()),
        {"input_format": "fasttext"},
    ),
    "a zip of a CSV": (lambda root: write_zip(root / "a.zip", {"x/all.csv": quoted()}), NAMED),
    "a tar.gz of JSON lines": (lambda root: tar(root / "a.tar.gz", {"all.jsonl": objects()}, "w:gz"), CLUE),
    "a directory of one Parquet file": (lambda root: parquet(file("d/x", b"")(root)).parent, CLUE),
}


def without_keys(info: DatasetInfo, output: Path) -> tuple[list[Any], Any]:
    """Return everything but keys of all examples in stored order, and of the description."""
    _, examples = read_dataset(output)
    content = json.loads(info.to_json())
    splits = {
        name: {field: value for field, value in split.items() if field not in ("shards",)}
        for name, split in content["splits"].items()
    }
    stored = [
        (example.split, example.shard, {name: value for name, value in example.features.items() if name != "key"})
        for example in examples.values()
    ]
    return stored, (splits, content["labels"], content["configuration"], info.documents)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, dict[str, str]]:
    root = tmp_path_factory.mktemp("expected")
    info = run_by_hand(make_config(root, write_tree(root / "t", DOCUMENTS)))
    return without_keys(info, root / "dataset"), digest_of(root / "dataset")


def digest_of(output: Path) -> dict[str, str]:
    """Return what the shards hold, whose keys a tree and its archives share."""
    return {path.name: path.read_bytes().hex() for path in output.glob("*.tfrecord")}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_documents_give_the_same_dataset(
    tmp_path: Path, shape: str, expected: tuple[Any, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ids, labels, splits, shards and order are equal; keys as well, where documents are files."""
    monkeypatch.setattr(streams, "BYTES_PER_CHUNK", 20_000)
    write_fn, changes = SHAPES[shape]
    info = run_by_hand(make_config(tmp_path, write_fn(tmp_path), **changes))
    assert without_keys(info, tmp_path / "dataset") == expected[0]
    if shape.startswith(("tree", "zip", "tar")):
        assert digest_of(tmp_path / "dataset") == expected[1]


def test_formats_can_be_mixed_and_run_on_the_engine(tmp_path: Path) -> None:
    half = len(DOCUMENTS) // 2
    first = dict(list(DOCUMENTS.items())[:half])
    second = [{"text": text, "category": key.split("/")[0]} for key, text in list(DOCUMENTS.items())[half:]]
    table_path = write_lines(tmp_path / "b.jsonl", [json.dumps(row) for row in second])
    config = make_config(tmp_path, tar(tmp_path / "a.tar.gz", first, "w:gz"), table_path)
    info = run_quickly(config)
    assert info.documents.written == len(DOCUMENTS)
    _, examples = read_dataset(tmp_path / "dataset")
    assert {f"b.jsonl:{number}" for number in range(1, half + 1)} | set(first) == set(examples)


# What could be misread without a word


Found = tuple[dict[str, tuple[str, str]], dict[str, str], Counter[str]]


def read(tmp_path: Path, path: Path, **changes: Any) -> Found:
    """Return key → (text, category), key → reason of rejection, and notes; every text is read twice."""
    documents: dict[str, tuple[str, str]] = {}
    rejections: dict[str, str] = {}
    notes: Counter[str] = Counter()
    sources = open_sources(make_config(tmp_path, path, **changes).corpus)
    found: list[RawDocument] = []
    for index, source in enumerate(sources):
        for chunk in source.chunks(index):
            notes.update(dict(chunk.notes))
            for item in source.read(chunk):
                if isinstance(item, Note):
                    notes[item.what] += item.num_times
                elif isinstance(item, Rejection):
                    rejections[item.key] = item.reason
                else:
                    found.append(item)
                    documents[item.key] = (item.content.decode(item.locator.encoding, "replace"), item.category)
    assert list(fetch([item.locator for item in found], sources)) == [item.content for item in found]
    return documents, rejections, notes


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_quoted_fields_hold_delimiters_line_ends_and_quotes(tmp_path: Path) -> None:
    content = '"山,水\n云",体育\r\n"他说""好""",科技\r\n\r\n风"月,体育\r\n"一,二,三\n"四",五\n'
    documents, rejections, notes = read(tmp_path, write(tmp_path / "a.csv", content))
    assert documents == {
        "a.csv:1": ("山,水\n云", "体育"),
        "a.csv:3": ('他说"好"', "科技"),
        "a.csv:5": ('风"月', "体育"),
        "a.csv:6": ('一,二,三\n四"', "五"),
    }
    assert (rejections, notes) == ({}, {BLANK: 1})


def test_a_quote_that_is_never_closed_takes_no_document_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = "山,体育\n" * 3 + '"水,科技\n' + "云,体育\n" * 3
    documents, rejections, _ = read(tmp_path, write(tmp_path / "a.csv", content))
    assert len(documents) == 3
    assert rejections == {"a.csv:4": "bad_line"}
    monkeypatch.setattr(table, "MAX_DOCUMENT_BYTES", 30)
    with pytest.raises(InputFormatError, match="its quote is never closed"):
        read(tmp_path, tmp_path / "a.csv")


@pytest.mark.parametrize("size", [1, 7, 30, 1000])
def test_records_are_whole_whatever_the_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    content = quoted(names=False)[:3_000].rpartition(b"\r\n")[0]
    path = write(tmp_path / "a.csv", content)
    expected = read(tmp_path, path)
    monkeypatch.setattr(streams, "BYTES_PER_CHUNK", size)
    assert read(tmp_path, path) == expected


def test_a_mark_before_a_quote(tmp_path: Path) -> None:
    """Two files of Excel, joined: the second mark makes the quote no quote, and the header comes again."""
    part = '\ufefftext,category\n"山,水",体育\n'
    documents, rejections, notes = read(tmp_path, write(tmp_path / "a.csv", part * 2))
    assert documents == {"a.csv:2": ("山,水", "体育"), "a.csv:4": ("山,水", "体育")}
    assert (rejections, notes) == ({}, {HEADERS: 1})


def test_literal_quotes_are_counted(tmp_path: Path) -> None:
    content = '"山\t体育\n"他说""好"""\t科技\n"水"\t体育\n'
    documents, _, notes = read(tmp_path, write(tmp_path / "a.tsv", content))
    assert documents["a.tsv:1"] == ('"山', "体育")
    assert notes == {OPEN_QUOTES: 2}


def test_a_delimiter_inside_a_character_does_not_cut_it(tmp_path: Path) -> None:
    """In GB18030 and Big5, the second byte of some characters is that of `|` or `_`."""
    for encoding, text in (("gb18030", "鍇|"), ("big5", "育")):
        text = text.removesuffix("|")
        assert b"|" in text.encode(encoding)
        content = f"{text}山|體育\n山{text}|科技\n".encode(encoding)
        documents, _, _ = read(tmp_path, write(tmp_path / "a.txt", content), encoding=encoding, delimiter="|")
        assert documents == {"a.txt:1": (f"{text}山", "體育"), "a.txt:2": (f"山{text}", "科技")}


def test_damaged_utf_8_is_not_taken_for_gb18030(tmp_path: Path) -> None:
    text = "第一轮联赛在主场开始，教练表扬了门将"
    damaged = text.encode()[:-1]
    tree = write_tree(tmp_path / "t", {"体育/1.txt": text, "体育/2.txt": damaged, "科技/3.txt": text.encode("gbk")})
    documents, _, notes = read(tmp_path, write_tree(tree, {"科技/4.txt": text.encode("utf-16")}), encoding="auto")
    assert {key: found for key, (found, _) in documents.items()} == {
        "体育/1.txt": text,
        "体育/2.txt": text[:-1] + "\ufffd",  # which is rejected when it is decoded strictly
        "科技/3.txt": text,
        "科技/4.txt": text,
    }
    assert notes == {"documents read as gb18030": 1, "documents read as utf-16": 1}


def test_values_of_json(tmp_path: Path) -> None:
    rows = [
        {"text": "山\n水", "category": "体育"},
        {"text": "山", "category": 3},
        {"text": "山", "category": 3.0},  # pandas
        {"text": "山", "category": None},
        {"text": None, "category": "体育"},
        {"text": ["山"], "category": "体育"},
        {"category": "体育"},
        {"text": "\ud800", "category": "体育"},  # half a character
        {"text": "山", "category": True, "second": {"a": 1}},
    ]
    odd = ["{", "", "[1]", "{}", "NaN", "9" * 5_000, '{"text": "云", "category": NaN}']
    content = "\n".join([*map(json.dumps, rows), *odd])
    documents, rejections, notes = read(tmp_path, write(tmp_path / "a.jsonl", content))
    assert documents == {
        "a.jsonl:1": ("山\n水", "体育"),
        "a.jsonl:2": ("山", "3"),
        "a.jsonl:3": ("山", "3"),
        "a.jsonl:4": ("山", ""),
        "a.jsonl:5": ("", "体育"),
        "a.jsonl:9": ("山", "True"),
        "a.jsonl:16": ("云", ""),
    }
    assert rejections == {f"a.jsonl:{number}": "bad_line" for number in (6, 7, 10, 12, 13, 14, 15)} | {
        "a.jsonl:8": "not_utf-8"
    }
    assert notes == {BLANK: 1}


def test_values_of_parquet(tmp_path: Path) -> None:
    names = {"label": {"names": ["体育", "科技"], "_type": "ClassLabel"}}
    made = pyarrow.table(
        {
            "text": pyarrow.array([b"\xe5\xb1\xb1", b"\xff", None, "水".encode(), "云".encode()], pyarrow.binary()),
            "label": pyarrow.array([0, 1, 1, -1, 7]),
            "float": pyarrow.array([0.0, 1.0, 1.5, None, 2.0]),
            "kind": pyarrow.array(["a", "b", "a", None, "b"]).dictionary_encode(),
        }
    ).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": names}})})
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(made, path, row_group_size=2)
    documents, rejections, _ = read(tmp_path, path, columns="text,category=label")
    assert documents == {"a.parquet:1": ("山", "体育"), "a.parquet:3": ("", "科技"), "a.parquet:4": ("水", "")}
    assert rejections == {"a.parquet:2": "not_utf-8", "a.parquet:5": "unknown_category"}, "-1 is no label, not the last"
    documents, _, _ = read(tmp_path, path, columns="text=kind,category=float")
    assert [category for _, category in documents.values()] == ["0", "1", "1.5", "", "2"]
    assert [text for text, _ in documents.values()] == ["a", "b", "a", "", "b"]


def test_lines_of_fasttext(tmp_path: Path) -> None:
    content = "__label__体育 山 水\n__label__体育\t云\n__label__a __label__b\n山 水\n__label__科技\n"
    documents, rejections, _ = read(tmp_path, write(tmp_path / "a.txt", content), input_format="fasttext")
    assert documents == {"a.txt:1": ("山 水", "体育"), "a.txt:2": ("云", "体育"), "a.txt:5": ("", "科技")}
    assert set(rejections) == {"a.txt:3", "a.txt:4"}


def test_litter_is_no_document_and_counted(tmp_path: Path) -> None:
    litter: dict[str, str | bytes] = {
        "体育/Thumbs.db": b"\xd0",
        "科技/desktop.ini": "[x]",
        "科技/~$a.txt": "x",
        "体育/.DS_Store": b"\0",
    }
    documents: dict[str, str | bytes] = {"体育/1.txt": "山", "科技/2.txt": "水", "科技/notes.md": "云"}
    tree = write_tree(tmp_path / "t", documents | litter)
    for path in (tree, write_zip(tmp_path / "a.zip", documents | litter), tar(tmp_path / "a.tar", documents | litter)):
        found, rejections, notes = read(tmp_path, path)
        assert (set(found), rejections, notes) == (set(documents), {}, {LITTER: 3})
        found, _, notes = read(tmp_path, path, glob="*.txt")
        assert (set(found), notes) == ({"体育/1.txt", "科技/2.txt"}, {LITTER: 3, OTHER_NAMES: 1})


def test_a_glob_with_a_slash_leaves_out_what_is_beside_the_categories(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "t", {"体育/1.txt": "山", "科技/2.txt": "水", "README.txt": "x"})
    assert read(tmp_path, tree)[1] == {"README.txt": "no_category"}
    assert read(tmp_path, tree, glob="*/*")[1] == {}


def test_backslashes_separate_where_nothing_else_does(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for key, text in {"体育\\1.txt": "山", "科技\\2.txt": "水"}.items():
            member = zipfile.ZipInfo("x")
            member.filename = key
            archive.writestr(member, text)
    assert set(read(tmp_path, path)[0]) == {"体育/1.txt", "科技/2.txt"}


def test_links_in_a_tar_are_no_documents(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", {"体育/1.txt": "山", "科技/2.txt": "水"})
    with tarfile.open(path, "a:") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
            member = tarfile.TarInfo(f"体育/{kind.decode()}")
            member.type = kind
            archive.addfile(member.replace(linkname="1.txt"))
    for made in (path, write(tmp_path / "b.tar.gz", gzip.compress(path.read_bytes()))):
        documents, rejections, _ = read(tmp_path, made)
        assert set(documents) == {"体育/1.txt", "科技/2.txt"}
        assert set(rejections.values()) == {"unreadable"}
        assert len(rejections) == 3


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_tar_that_is_cut_damaged_or_two_is_refused(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    """`tarfile` takes a damaged header, a missing end and another archive for the end of this one."""
    whole = tar(tmp_path / "a.tar", {f"{'体科'[n % 2]}/{n}.txt": "山" * 100 for n in range(6)}).read_bytes()
    end = len(whole.rstrip(b"\0"))
    headers = [at for at in range(0, end, 512) if whole[at + 257 : at + 262] == b"ustar"]
    changed = [whole[:length] for length in range(512, end, 512)]
    changed += [whole[:at] + b"\x01" + whole[at + 1 :] for at in headers[1:]]
    changed += [whole + whole]
    for content in changed:
        with pytest.raises(InputFormatError, match=r"not a complete tar archive|several tar archives in one file"):
            read(tmp_path, write(tmp_path / "b.tar", pack(content)), input_format="tar")


def test_a_name_twice_in_a_tar_is_refused(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", {"体育/1.txt": "山", "科技/1.txt": "水"})
    with tarfile.open(path, "a:") as archive:
        archive.addfile(tarfile.TarInfo("体育/1.txt"))
    with pytest.raises(InputFormatError, match=r"holds 体育/1\.txt twice"):
        read(tmp_path, path)


def test_names_in_a_tar_are_decoded_together(tmp_path: Path) -> None:
    names = ["农业/1.txt", "医学/2.txt", "体育/3.txt"]
    with tarfile.open(tmp_path / "a.tar", "w:", format=tarfile.GNU_FORMAT, encoding="gbk") as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 1
            archive.addfile(member, io.BytesIO(b"x"))
    assert set(read(tmp_path, tmp_path / "a.tar")[0]) == set(names)


def test_utf_16_that_is_cut_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "山\t体育\n水\t科技\n".encode("utf-16")[:-1])
    with pytest.raises(InputFormatError, match="not utf-16"):
        read(tmp_path, path, encoding="utf-16")


def test_a_file_that_changes_between_the_passes_is_not_misread(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", '"山,水",体育\n"云,风",科技\n')
    sources = open_sources(make_config(tmp_path, path).corpus)
    found = [item for chunk in sources[0].chunks(0) for item in sources[0].read(chunk) if isinstance(item, RawDocument)]
    os.truncate(path, 3)
    again = list(fetch([item.locator for item in found], sources))
    assert all(content != item.content for content, item in zip(again, found, strict=True))
