"""What a file is, by its first bytes and its name; and how to convert what cannot be read."""

import codecs
import dataclasses
import json
import tarfile
from collections.abc import Sequence

from pipeline import filesystem
from pipeline.corpus.archive import ArchiveKind
from pipeline.corpus.encodings import UTF_16_MARKS
from pipeline.corpus.options import AUTO
from pipeline.corpus.parquet import PARQUET_MAGIC
from pipeline.corpus.table import FASTTEXT_PREFIX
from pipeline.errors import InputFormatError

ZIP_MAGICS = (b"PK\x03\x04", b"PK\x05\x06")  # the first member, or the directory of an empty archive
_TO_CSV = "save it as CSV in UTF-8"
_FOREIGN = {
    b"Rar!": ("a RAR archive", "unpack it with unrar x, and give the directory"),
    b"7z\xbc\xaf\x27\x1c": ("a 7-Zip archive", "unpack it with 7z x, and give the directory"),
    b"\x28\xb5\x2f\xfd": ("compressed with Zstandard", "decompress it with zstd -d"),
    b"\xd0\xcf\x11\xe0": ("an old Office document (.xls, .doc)", _TO_CSV),
    b"ARROW1": ("an Arrow file", "write it as Parquet"),
    b"%PDF": ("a PDF", "extract its text"),
    b"SQLite format 3": ("an SQLite database", "export the table as CSV"),
    b"\x89HDF": ("an HDF5 file", "write it as Parquet"),
    b"\x04\x22\x4d\x18": ("compressed with LZ4", "decompress it with lz4 -d"),
}
_OFFICE_MEMBERS = (b"[Content_Types].xml", b"mimetype")
_HEADER_WORDS = frozenset(
    [
        "text",
        "texts",
        "sentence",
        "sentences",
        "content",
        "contents",
        "title",
        "headline",
        "review",
        "comment",
        "query",
        "label",
        "labels",
        "label_desc",
        "category",
        "categories",
        "class",
        "class_label",
        "target",
        "topic",
        "intent",
        "domain",
        "tag",
        "id",
        "文本",
        "内容",
        "正文",
        "标题",
        "评论",
        "句子",
        "标签",
        "类别",
        "分类",
        "类目",
    ]
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """One source to be: an input, or one of the tables that an input holds.

    Attributes:
        path: the file or directory.
        split: as said, or as the table's name says.
        kind: `tree`, `zip`, `tar` (of a tree), `parquet`, or `text` (a table).
        start: of a table, its first bytes, decompressed.
        member: of a table in an archive: the archive's kind, and the member's number.
        member_name: and its name.
        in_directory: whether it is one of several files of a directory or an archive.
    """

    path: str
    split: str | None
    kind: str
    start: bytes = b""
    member: tuple[ArchiveKind, int] | None = None
    member_name: str = ""
    in_directory: bool = False

    @property
    def location(self) -> str:
        """Where it is, for people and for keys."""
        return filesystem.join(self.path, self.member_name) if self.member_name else self.path

    @property
    def is_table(self) -> bool:
        """Whether its documents are records, which are numbered."""
        return self.kind in ("parquet", "text")


def container_of(start: bytes) -> str | None:
    """Return `zip`, `tar` or `parquet` for a file that begins like this, `None` for any other."""
    if start.startswith(ZIP_MAGICS):
        return "zip"
    if start.startswith(PARQUET_MAGIC):
        return "parquet"
    if len(start) >= tarfile.BLOCKSIZE and start[257:262] == b"ustar":
        return "tar"
    return None


def refuse_foreign(path: str, start: bytes) -> None:
    """Raise an `InputFormatError` that says what a file is, where it is known and cannot be read."""
    for magic, (what, remedy) in _FOREIGN.items():
        if start.startswith(magic):
            raise InputFormatError(f"{path}: {what}, which cannot be read; {remedy}")


def refuse_office(path: str, names: Sequence[bytes]) -> None:
    """Raise an `InputFormatError` where a zip archive is a workbook or a document of an office suite."""
    if set(names) & set(_OFFICE_MEMBERS):
        raise InputFormatError(
            f"{path}: an Office document (.xlsx, .docx, .ods), which cannot be read; {_TO_CSV}, or in Python: "
            "pandas.read_excel(FILE).to_csv('corpus.csv', index=False)"
        )


def refuse_no_text(path: str, start: bytes, encoding: str) -> None:
    """Raise an `InputFormatError` where a file is no text in this encoding, but seems to be in another, or in none."""
    if start[:2] in UTF_16_MARKS and not encoding.startswith("utf-16") and encoding != AUTO:
        raise InputFormatError(
            f"{path}: UTF-16, as Excel saves 'Unicode text'; say --encoding utf-16, or convert it with "
            "iconv -f utf-16 -t utf-8"
        )
    if b"\0" in start and not encoding.startswith("utf-16") and start[:2] not in UTF_16_MARKS:
        share = start.count(b"\0") / len(start)
        hint = "UTF-16 without a mark? say --encoding utf-16-le" if share > 0.2 else "give a text, CSV, JSON or Parquet"
        raise InputFormatError(f"{path}: a binary file, of no kind that is known here; {hint}")
    if b"\r" in start and b"\n" not in start:
        raise InputFormatError(
            f"{path}: lines end with carriage returns alone, as on old Macs; convert it with tr '\\r' '\\n'"
        )


def format_of_text(path: str, name: str, start: bytes) -> str:
    """Return `tsv`, `csv` or `jsonl` for a text file that begins like this, in UTF-8 or another encoding.

    Raises:
        InputFormatError: it is JSON, but not one object a line.
    """
    first = start.removeprefix(codecs.BOM_UTF8).lstrip()
    line = first.split(b"\n", 1)[0].rstrip()
    name = name.lower().removesuffix(".gz").removesuffix(".bz2").removesuffix(".xz")
    if first.startswith(b"{") or (first.startswith(b"[") and name.endswith((".json", ".jsonl"))):
        try:
            # Names and structure are ASCII; what is between them need not be.
            is_object = isinstance(json.loads(line.decode("utf-8", "replace")), dict)
        except (ValueError, RecursionError):
            is_object = False
        if is_object:
            return "jsonl"
        if name.endswith((".json", ".jsonl", ".ndjson")):
            raise InputFormatError(
                f"{path}: JSON, but not one object a line; convert it with jq -c '.[]' {name} > corpus.jsonl, or say "
                "--input_format jsonl to have each line judged"
            )
    # A tab-separated file may be called .csv, too.
    return "csv" if name.endswith(".csv") and (b"," in line or b"\t" not in line) else "tsv"


def looks_like_header(first: Sequence[str], labels: Sequence[str], category: int | None) -> bool:
    """Tell whether a row seems to name the columns.

    Args:
        first: its fields.
        labels: the category of each of the following rows.
        category: where the category is.
    """
    fields = [field.strip().lower() for field in first]
    if not all(field and (field in _HEADER_WORDS or (field.isascii() and field.isidentifier())) for field in fields):
        return False
    if fields and all(field in _HEADER_WORDS for field in fields):
        return not labels or category is None or first[category] not in labels
    return bool(labels) and category is not None and first[category] not in labels and len(set(labels)) < len(labels)


def describe_fasttext(line: bytes) -> str:
    """Return what to say of a line that is one of fastText's, and nothing of others."""
    return (
        "; it looks like fastText's: say --input_format fasttext" if line.startswith(FASTTEXT_PREFIX.encode()) else ""
    )
