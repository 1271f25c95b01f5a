"""Trees, archives and TSVs of every kind, whole and broken: what is found, under which key, and what is told."""

import codecs
import gzip
import os
import re
import string
import struct
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.corpus import chunks, reading, streams
from pipeline.corpus.archive import ZipSource
from pipeline.corpus.documents import Note, RawDocument, Rejection
from pipeline.corpus.inputs import Source
from pipeline.corpus.options import Columns
from pipeline.corpus.reading import fetch
from pipeline.corpus.table import BLANK, Delimited, TableSource
from pipeline.corpus.tree import TreeSource
from pipeline.errors import InputFormatError, MissingInputError
from tests.support.corpora import made_up_documents, write_tree, write_zip

Found = tuple[dict[str, RawDocument], dict[str, Rejection], Counter[str]]


def read_source(source: Source) -> Found:
    """Read a source to its end, and every document a second time where its locator says."""
    documents: dict[str, RawDocument] = {}
    rejections: dict[str, Rejection] = {}
    notes: Counter[str] = Counter()
    for chunk in source.chunks(7):
        assert chunk.source == 7
        notes.update(dict(chunk.notes))
        for item in source.read(chunk):
            if isinstance(item, Note):
                notes[item.what] += item.num_times
                continue
            assert item.key not in documents, f"{item.key} twice"
            assert item.key not in rejections, f"{item.key} twice"
            if isinstance(item, Rejection):
                rejections[item.key] = item
            else:
                documents[item.key] = item
    again = fetch([document.locator for document in documents.values()], [source] * 8)
    assert list(again) == [document.content for document in documents.values()]
    return documents, rejections, notes


def tree(path: Path, *, key_prefix: str = "") -> TreeSource:
    return TreeSource(path=str(path), split=None, key_prefix=key_prefix)


def archive(path: Path) -> ZipSource:
    return ZipSource(path=str(path), split=None, key_prefix="")


def tsv(path: Path, columns: str = "text,category", *, encoding: str = "utf-8", header: bool = False) -> TableSource:
    return TableSource(
        path=str(path),
        split=None,
        key_prefix=path.name,
        syntax=Delimited("\t"),
        encoding=encoding,
        columns=Columns.parse(columns),
        header=("label", "text") if header else None,
    )


def contents(found: Found) -> dict[str, str]:
    return {key: document.content.decode() for key, document in found[0].items()}


def reasons(found: Found) -> dict[str, str]:
    return {key: rejection.reason for key, rejection in found[1].items()}


# Trees


def test_tree_of_plain_and_odd_names(tmp_path: Path) -> None:
    names = [
        "体育/1.txt",
        "体育/no suffix",
        "体育/2010/07/deep.txt",  # every file below a category is one of its documents
        '财 经/it\'s "quoted".txt',
        "财 经/two\nlines.txt",
        "a=b/*?[x].txt",
    ]
    write_tree(tmp_path, {name: name for name in names})
    write_tree(tmp_path, {".git/config": "x", "体育/.DS_Store": "x", "体育/.hidden/1.txt": "x", ".note": "x"})
    (tmp_path / "空").mkdir()
    found = read_source(tree(tmp_path, key_prefix="corpus/"))
    assert contents(found) == {f"corpus/{name}": name for name in names}
    assert not found[1]
    assert {document.category for document in found[0].values()} == {"体育", "财 经", "a=b"}


def test_tree_is_listed_in_one_order_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = made_up_documents(25)
    for key in reversed(documents):
        write_tree(tmp_path, {key: documents[key]})
    monkeypatch.setattr(chunks, "DOCUMENTS_PER_CHUNK", 4)
    listed = [chunk.items for chunk in tree(tmp_path).chunks(0)]
    assert [len(items) for items in listed] == [4] * 6 + [1]
    flat = [name for items in listed for name in items]
    assert flat == sorted(flat)
    assert {name.decode() for name in flat} == set(documents)


def test_file_outside_any_category_is_rejected(tmp_path: Path) -> None:
    write_tree(tmp_path, {"体育/1.txt": "x", "readme.txt": "x"})
    found = read_source(tree(tmp_path))
    assert list(found[0]) == ["体育/1.txt"]
    assert reasons(found) == {"readme.txt": "no_category"}


def test_tree_with_names_that_are_not_utf_8(tmp_path: Path) -> None:
    directory = os.path.join(os.fsencode(tmp_path), "体育".encode("gb18030"))
    os.mkdir(directory)
    with open(os.path.join(directory, b"\xff.txt"), "wb") as stream:
        stream.write(b"text")
    found = read_source(tree(tmp_path))
    (document,) = found[0].values()
    assert document.key == "\\xcc\\xe5\\xd3\\xfd/\\xff.txt"
    assert document.category == "\\xcc\\xe5\\xd3\\xfd"
    assert document.content == b"text"


def test_links_files_that_are_none_and_circles(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    write_tree(outside, {"1.txt": "linked"})
    root = tmp_path / "corpus"
    write_tree(root, {"体育/1.txt": "x"})
    (root / "linked").symlink_to(outside)  # a category may be a link …
    (root / "体育" / "file.txt").symlink_to(outside / "1.txt")  # … and so may a file
    (root / "体育" / "circle").symlink_to(root / "体育")  # … but no directory inside a category
    (root / "体育" / "broken.txt").symlink_to(tmp_path / "nowhere")
    (root / "体育" / "itself.txt").symlink_to("itself.txt")
    (root / "itself").symlink_to("itself")
    os.mkfifo(root / "体育" / "pipe.txt")
    (root / "体育" / "zeros.txt").symlink_to("/dev/zero")  # endless if read
    found = read_source(tree(root))
    assert contents(found) == {"体育/1.txt": "x", "linked/1.txt": "linked", "体育/file.txt": "linked"}
    assert found[1].pop("itself").reason == "no_category"
    details = {key: rejection.detail for key, rejection in found[1].items()}
    assert set(reasons(found).values()) == {"unreadable"}
    assert details == {
        "体育/circle": "a directory",
        "体育/broken.txt": "No such file or directory",
        "体育/itself.txt": "Too many levels of symbolic links",
        "体育/pipe.txt": "not a regular file",
        "体育/zeros.txt": "not a regular file",
    }


def test_unreadable_files_are_rejected(tmp_path: Path) -> None:
    write_tree(tmp_path, {"体育/1.txt": "x", "体育/2.txt": "x"})
    (tmp_path / "体育" / "2.txt").chmod(0)
    if os.access(tmp_path / "体育" / "2.txt", os.R_OK):
        pytest.skip("this user may read everything; vanished files below go the same way")
    found = read_source(tree(tmp_path))
    assert reasons(found) == {"体育/2.txt": "unreadable"}
    assert found[1]["体育/2.txt"].detail == "Permission denied"


def test_files_larger_than_any_document_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_DOCUMENT_BYTES", 10)
    write_tree(tmp_path, {"体育/1.txt": "x" * 10, "体育/2.txt": "x" * 11})
    found = read_source(tree(tmp_path))
    assert [*found[0]] == ["体育/1.txt"]
    assert found[1]["体育/2.txt"].detail == "more than 10 bytes"


def test_files_that_vanish_between_listing_and_reading(tmp_path: Path) -> None:
    write_tree(tmp_path, {"体育/1.txt": "x", "体育/2.txt": "y"})
    source = tree(tmp_path)
    (chunk,) = source.chunks(0)
    (tmp_path / "体育" / "1.txt").unlink()
    first, second = source.read(chunk)
    assert first == Rejection("体育/1.txt", "unreadable", "No such file or directory")
    assert isinstance(second, RawDocument)
    assert second.key == "体育/2.txt"


def test_directories_that_vanish_while_being_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A category of which nothing can be counted must not be missing silently."""
    write_tree(tmp_path, {"a/1.txt": "x", "b/1.txt": "x"})
    monkeypatch.setattr(chunks, "DOCUMENTS_PER_CHUNK", 1)
    listing = tree(tmp_path).chunks(0)
    assert next(listing).items == [b"a/1.txt"]
    (tmp_path / "b" / "1.txt").unlink()
    (tmp_path / "b").rmdir()
    with pytest.raises(MissingInputError, match="/b: cannot list this directory: No such file"):
        list(listing)


# Archives


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zip_gives_what_the_tree_gives(tmp_path: Path, compression: int) -> None:
    documents = made_up_documents(30) | {"体育/empty.txt": "", "体育/deep/1.txt": "deep", "科技/two\nlines": "x"}
    from_tree = read_source(tree(write_tree(tmp_path / "tree", documents)))
    from_zip = read_source(archive(write_zip(tmp_path / "a.zip", documents, compression=compression)))
    assert contents(from_zip) == contents(from_tree) == documents
    assert [d.category for d in from_zip[0].values()] == [d.category for d in from_tree[0].values()]
    assert list(from_zip[0]) == list(from_tree[0])


def test_zip_with_a_directory_around_everything_and_what_a_mac_adds(tmp_path: Path) -> None:
    documents = made_up_documents(4)
    members: dict[str, str | bytes] = {f"THUCNews/{key}": text for key, text in documents.items()}
    others = {"__MACOSX/THUCNews/体育/._1.txt": b"\0", "THUCNews/.DS_Store": b"\0", "THUCNews/体育/._2.txt": b"\0"}
    path = write_zip(tmp_path / "THUCNews.zip", members | others)
    with zipfile.ZipFile(path, "a") as opened:
        opened.writestr("THUCNews/体育/", b"")
    assert contents(read_source(archive(path))) == documents


def test_zip_with_one_category_and_no_directory_around_it(tmp_path: Path) -> None:
    assert list(read_source(archive(write_zip(tmp_path / "a.zip", {"体育/1.txt": "x"})))[0]) == ["体育/1.txt"]


def test_zip_member_outside_any_category(tmp_path: Path) -> None:
    found = read_source(archive(write_zip(tmp_path / "a.zip", {"体育/1.txt": "x", "readme.txt": "x"})))
    assert reasons(found) == {"readme.txt": "no_category"}


def unflagged(path: Path, names: list[tuple[bytes, str]]) -> Path:
    """Write an archive whose member names are raw bytes without the UTF-8 flag, as Windows and older tools do."""
    with zipfile.ZipFile(path, "w") as opened:
        for index, (name, text) in enumerate(names):
            # Python flags everything outside ASCII, but writes the code page 437 that it reads unflagged names in …
            opened.writestr(string.ascii_uppercase[index] * len(name), text)
    data = path.read_bytes()
    for index, (name, _) in enumerate(names):
        # … so the bytes are put in afterwards, in the local header and in the directory.
        data = data.replace(string.ascii_uppercase[index].encode() * len(name), name)
    path.write_bytes(data)
    return path


def test_zip_names_without_the_utf_8_flag(tmp_path: Path) -> None:
    """One decision for all of them: the bytes of a short name may be those of both encodings."""
    names = ["体育/第一.txt", "农业/the second one.txt", "医学/3.txt", "女装/4.txt"]
    for encoding in ("utf-8", "gb18030"):
        found = read_source(archive(unflagged(tmp_path / "a.zip", [(name.encode(encoding), name) for name in names])))
        assert contents(found) == {name: name for name in names}
    assert "农".encode("gb18030").decode("utf-8") == "ũ", "taken by itself, it would be UTF-8"


def test_zip_names_in_no_known_encoding(tmp_path: Path) -> None:
    found = read_source(archive(unflagged(tmp_path / "a.zip", [(b"a/\xff\xff.txt", "x")])))
    assert contents(found) == {"a/\\xff\\xff.txt": "x"}


def test_zip_names_are_keys_and_never_paths(tmp_path: Path) -> None:
    names = ["../escape/1.txt", "/etc/passwd", "a/../../2.txt", "C:\\x/3.txt", "./体育//4.txt"]
    before = set(tmp_path.parent.rglob("*"))
    found = read_source(archive(write_zip(tmp_path / "a.zip", dict.fromkeys(names, "x"))))
    assert set(found[0]) == {"etc/passwd", "C:\\x/3.txt", "体育/4.txt"}
    assert reasons(found) == {"../escape/1.txt": "bad_name", "a/../../2.txt": "bad_name"}
    for document in found[0].values():
        assert document.locator.path == os.fsencode(tmp_path / "a.zip")
    assert {path for path in tmp_path.parent.rglob("*") if path.name != "a.zip"} <= before


def test_zip_with_a_name_twice_is_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"体育/1.txt": "x"})
    with zipfile.ZipFile(path, "a") as opened, pytest.warns(UserWarning, match="Duplicate name"):
        opened.writestr("体育/1.txt", "y")
    with pytest.raises(InputFormatError, match=r"holds 体育/1\.txt twice; unpack it"):
        read_source(archive(path))


def member_data(path: Path, name: str) -> tuple[int, int]:
    """Return where a member's compressed data starts and ends."""
    with zipfile.ZipFile(path) as opened:
        info = opened.getinfo(name)
    header = path.read_bytes()[info.header_offset : info.header_offset + 30]
    start = info.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))
    return start, start + info.compress_size


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_damaged_members_are_rejected_one_by_one(tmp_path: Path, compression: int) -> None:
    documents = {f"体育/{index}.txt": "山水风云" * 40 + str(index) for index in range(3)}
    path = write_zip(tmp_path / "a.zip", documents, compression=compression)
    start, stop = member_data(path, "体育/1.txt")
    whole = path.read_bytes()
    for position in range(start, stop):
        data = bytearray(whole)
        data[position] ^= 0x10
        path.write_bytes(data)
        found = read_source(archive(path))
        # The last byte of a deflated member may have bits that mean nothing.
        if position == stop - 1 and contents(found) == documents:
            continue
        assert sorted(found[0]) == ["体育/0.txt", "体育/2.txt"]
        assert reasons(found) == {"体育/1.txt": "corrupt_member"}


def test_member_whose_header_is_overwritten(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"体育/0.txt": "x", "体育/1.txt": "y"})
    data = bytearray(path.read_bytes())
    data[:4] = b"gone"
    path.write_bytes(data)
    found = read_source(archive(path))
    assert found[1]["体育/0.txt"] == Rejection("体育/0.txt", "corrupt_member", "no member starts at byte 0")
    assert list(found[0]) == ["体育/1.txt"]


def test_truncated_archives_are_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", made_up_documents(5))
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(InputFormatError, match=r"a\.zip: not a complete zip archive .*; fetch it again"):
            read_source(archive(path))


def test_a_bomb_is_no_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_DOCUMENT_BYTES", 10_000)
    sizes = {"体育/fits.txt": 10_000, "体育/bomb.txt": 10_001, "体育/nuclear.txt": 3_000_000}
    members = {name: b"\0" * size for name, size in sizes.items()}
    found = read_source(archive(write_zip(tmp_path / "a.zip", members)))
    assert {key: len(document.content) for key, document in found[0].items()} == {"体育/fits.txt": 10_000}
    assert reasons(found) == {"体育/bomb.txt": "too_large", "体育/nuclear.txt": "too_large"}
    stored = read_source(archive(write_zip(tmp_path / "b.zip", members, compression=zipfile.ZIP_STORED)))
    assert reasons(stored) == reasons(found)


def test_encrypted_and_exotic_archives_are_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"体育/1.txt": "x"})
    data = bytearray(path.read_bytes())
    directory = data.index(b"PK\x01\x02")
    data[directory + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(InputFormatError, match="encrypted; decrypt it first"):
        read_source(archive(path))
    exotic = write_zip(tmp_path / "b.zip", {"体育/1.txt": "x"}, compression=zipfile.ZIP_BZIP2)
    with pytest.raises(InputFormatError, match="compression method 12; expected stored or deflate"):
        read_source(archive(exotic))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    compression=st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]),
    places=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=4),
)
def test_any_damage_to_an_archive_is_refused_or_rejected(
    tmp_path: Path, compression: int, places: list[tuple[float, int]]
) -> None:
    """No text comes through that is not one of the originals, and none is missing without a word."""
    originals = {"体育/0.txt": "山水" * 20, "科技/1.txt": "风云日月" * 9}
    path = write_zip(tmp_path / "a.zip", originals, compression=compression)
    whole = path.read_bytes()
    places_of = {key: range(*member_data(path, key)) for key in originals}
    damaged = bytearray(whole)
    for share, bits in places:
        damaged[int(share * len(whole))] ^= bits
    path.write_bytes(damaged)
    changed = [position for position, byte in enumerate(whole) if damaged[position] != byte]
    is_listed_rightly = all(position < whole.index(b"PK\x01\x02") for position in changed)
    try:
        found = read_source(archive(path))
    except InputFormatError:
        found = None
    if found is None:
        assert not is_listed_rightly
        return
    # Names stand in the archive's directory and have no checksum; texts have one.
    assert {*contents(found).values()} <= {*originals.values()}
    if not is_listed_rightly:
        return
    assert {*found[0], *found[1]} == {*originals}
    assert contents(found).items() <= originals.items()
    assert {*reasons(found).values()} <= {"corrupt_member"}
    for key, bytes_of_it in places_of.items():
        # Deflate has several ways to say the same.
        if compression == zipfile.ZIP_STORED and any(position in bytes_of_it for position in changed):
            assert key in found[1]


# TSVs


def write_bytes(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def rows(found: Found) -> dict[str, tuple[str, str, str]]:
    """Return line number → (text, category, second)."""
    return {
        key.rsplit(":", 1)[1]: (document.content.decode(document.locator.encoding), document.category, document.second)
        for key, document in found[0].items()
    }


@pytest.mark.parametrize(
    ("columns", "content", "expected"),
    [
        ("text,category", "山\t体育\n水\t科技\n", {"1": ("山", "体育", ""), "2": ("水", "科技", "")}),
        ("category,text", "体育\t山\n", {"1": ("山", "体育", "")}),
        ("second,-,text,category,-", "大\tx\t山\t体育\ty\n", {"1": ("山", "体育", "大")}),
        ("text,category", "山\t体育\r\n水\t科技\r\n", {"1": ("山", "体育", ""), "2": ("水", "科技", "")}),
        (
            "text,category",
            "山\t体育\n水\t科技",
            {"1": ("山", "体育", ""), "2": ("水", "科技", "")},
        ),  # no newline at the end
        ("text,category", "\ufeff山\t体育\n", {"1": ("山", "体育", "")}),
        ("category,text", "\ufeff体育\t山\n", {"1": ("山", "体育", "")}),  # the mark is no part of the label
        (
            "text,category",
            "山\u2028水\x85\t体 育/足球\n",
            {"1": ("山\u2028水\x85", "体 育/足球", "")},
        ),  # lines end at \n alone
        ("text,category", '"山\t体育"\n', {"1": ('"山', '体育"', "")}),  # quotes are text: this is no CSV
        ("text,category", "\t体育\n", {"1": ("", "体育", "")}),  # rejected later, as empty
    ],
)
def test_tsv(tmp_path: Path, columns: str, content: str, expected: dict[str, tuple[str, str, str]]) -> None:
    found = read_source(tsv(write_bytes(tmp_path / "a.tsv", content.encode()), columns))
    assert rows(found) == expected
    assert not found[1]
    compressed = read_source(tsv(write_bytes(tmp_path / "a.tsv.gz", gzip.compress(content.encode())), columns))
    assert rows(compressed) == expected


def test_tsv_header_is_skipped_and_keys_count_lines_of_the_file(tmp_path: Path) -> None:
    path = write_bytes(tmp_path / "a.tsv", "label\ttext\n体育\t山\n".encode())
    found = read_source(tsv(path, "category,text", header=True))
    assert list(found[0]) == ["a.tsv:2"]
    assert rows(found) == {"2": ("山", "体育", "")}


def test_lines_that_are_no_rows_are_rejected_each(tmp_path: Path) -> None:
    path = write_bytes(tmp_path / "a.tsv", "山\t体育\n\nno tab\n山\t体育\t三\n水\t科技\n\n".encode())
    found = read_source(tsv(path))
    assert rows(found).keys() == {"1", "5"}
    assert reasons(found) == dict.fromkeys(["a.tsv:3", "a.tsv:4"], "bad_line")
    assert found[2] == {BLANK: 2}, "blank lines are no documents"
    assert found[1]["a.tsv:4"].detail == "expected 2 columns (text,category), got 3"


def test_tsv_in_other_encodings(tmp_path: Path) -> None:
    text = "山水㐀\t体育\n"  # U+3400 needs four bytes of GB 18030, two of which are ASCII digits
    found = read_source(tsv(write_bytes(tmp_path / "a.tsv", text.encode("gb18030")), encoding="gb18030"))
    assert rows(found) == {"1": ("山水㐀", "体育", "")}
    assert found[0]["a.tsv:1"].locator.encoding == "gb18030"
    big5 = "功\t體育\n"  # in Big5, 功 ends in the byte of a backslash
    assert rows(read_source(tsv(write_bytes(tmp_path / "b.tsv", big5.encode("big5")), encoding="big5"))) == {
        "1": ("功", "體育", "")
    }


def test_label_in_another_encoding_is_rejected(tmp_path: Path) -> None:
    path = write_bytes(tmp_path / "a.tsv", b"ok\tfine\nok\t" + "体育".encode("gb18030") + b"\n")
    found = read_source(tsv(path))
    assert reasons(found) == {"a.tsv:2": "not_utf-8"}
    assert "in a label" in found[1]["a.tsv:2"].detail


LINES = ["山" * 50 + "\t体育", "", "水\t科技", "x" * 300 + "\ty", "no tab", "\t", "云\t体育\r"]


@pytest.mark.parametrize("end", [b"\n", b""])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_every_block_size_gives_the_same_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: bytes, pack: Callable[[bytes], bytes]
) -> None:
    """Lines longer than a block, blocks that end at, before and after a line end: nothing may depend on them."""
    content = "\n".join(LINES * 2).encode() + end
    path = write_bytes(tmp_path / "a.tsv", pack(content))
    expected = read_source(tsv(path))
    assert len(expected[0]) + len(expected[1]) + expected[2][BLANK] == 2 * len(LINES)
    for size in [*range(1, 70), len(content) - 1, len(content), len(content) + 1]:
        monkeypatch.setattr(streams, "BYTES_PER_CHUNK", size)
        found = read_source(tsv(path))
        assert (rows(found), found[1]) == (rows(expected), expected[1])
        cut = list(tsv(path).chunks(0))
        if isinstance(cut[0].items, tuple):
            assert cut[0].items[0] == 0
            assert cut[-1].items[1] == len(content)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=200), st.integers(1, 40))
def test_any_bytes_are_rows_or_rejections(tmp_path: Path, content: bytes, size: int) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(streams, "BYTES_PER_CHUNK", size)
        if streams.compression_of(content):
            return
        found = read_source(tsv(write_bytes(tmp_path / "a.tsv", content)))
    lines = content.split(b"\n")
    assert len(found[0]) + len(found[1]) + found[2][BLANK] == len(lines) - (not lines[-1])
    whole = content.removeprefix(codecs.BOM_UTF8).split(b"\n")
    for key, document in found[0].items():
        assert document.content == whole[int(key.rsplit(":", 1)[1]) - 1].split(b"\t")[0]


def test_gzip_of_several_members_is_one_file(tmp_path: Path) -> None:
    packed = gzip.compress("山\t体".encode()) + gzip.compress("育\n水\t科技\n".encode())
    assert rows(read_source(tsv(write_bytes(tmp_path / "a.gz", packed)))) == {
        "1": ("山", "体育", ""),
        "2": ("水", "科技", ""),
    }


@pytest.mark.parametrize("cut", [-1, -8, -9, 15, 3])
def test_truncated_gzip_is_refused(tmp_path: Path, cut: int) -> None:
    packed = gzip.compress(os.urandom(2_000).hex().encode())
    with pytest.raises(InputFormatError, match=r"damaged gzip stream .*; fetch it again"):
        read_source(tsv(write_bytes(tmp_path / "a.gz", packed[:cut])))


def test_damaged_gzip_is_refused(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(b"text\tlabel\n" * 100))
    packed[-6] ^= 1
    with pytest.raises(InputFormatError, match=re.escape("damaged gzip stream (CRC check failed")):
        read_source(tsv(write_bytes(tmp_path / "a.gz", bytes(packed))))


def test_tsv_that_becomes_shorter_is_refused(tmp_path: Path) -> None:
    path = write_bytes(tmp_path / "a.tsv", b"text\tlabel\n" * 10)
    source = tsv(path)
    (chunk,) = source.chunks(0)
    path.write_bytes(b"text\tlabel\n" * 9)
    with pytest.raises(InputFormatError, match="became shorter while the job was running"):
        list(source.read(chunk))
    path.unlink()
    with pytest.raises(MissingInputError, match="no such file"):
        list(source.read(chunk))
