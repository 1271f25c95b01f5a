"""Tables: files of records, each a document: lines with columns, CSV, JSON lines, fastText.

A file is cut into blocks where a record ends; what cannot be read at random (compressed, remote, in an archive, UTF-16)
has its blocks travel with the chunks.
"""

import codecs
import csv
import dataclasses
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any, ClassVar, NamedTuple, Protocol

from pipeline import filesystem
from pipeline.corpus.archive import ArchiveKind, open_member
from pipeline.corpus.chunks import Chunk
from pipeline.corpus.documents import DocumentRejectedError, Locator, Note, RawDocument, Rejection
from pipeline.corpus.options import Columns, is_utf_16
from pipeline.corpus.reading import MAX_DOCUMENT_BYTES
from pipeline.corpus.streams import decompressed, line_blocks
from pipeline.errors import InputFormatError

BLANK = "blank lines, ignored"
HEADERS = "header lines after the first, ignored"
OPEN_QUOTES = "fields that open a quote and do not close it, or double one: --quoting csv reads them as quoted"
FASTTEXT_PREFIX = "__label__"


class Row(NamedTuple):
    """One record.

    Attributes:
        number: of its first line, from 1.
        start, stop: its bytes in the block.
        fields: by place, or by name; bytes are in the table's encoding. What is wrong with it where it is no record.
    """

    number: int
    start: int
    stop: int
    fields: Sequence[Any] | Mapping[str, Any] | DocumentRejectedError


class Syntax(Protocol):
    """How a block is cut into records.

    Attributes:
        kind: name of the format, as `--input_format` has it.
    """

    kind: ClassVar[str]

    def complete(self, blocks: Iterable[bytes], encoding: str) -> Iterator[bytes]:
        """Recut blocks that end with a line into blocks that end with a record."""

    def rows(self, block: bytes, first: int, encoding: str) -> Iterator[Row]:
        """Yield the records of a block, the first of which begins on line `first`."""


@dataclasses.dataclass(frozen=True)
class _Lines:
    """Records that are lines, which end at a line feed alone."""

    def complete(self, blocks: Iterable[bytes], encoding: str) -> Iterator[bytes]:
        yield from blocks

    def rows(self, block: bytes, first: int, encoding: str) -> Iterator[Row]:
        lines = block.split(b"\n")
        if not lines[-1]:
            lines.pop()
        start = 0
        for number, line in enumerate(lines, first):
            stop = start + len(line) + 1
            if number == 1 and line.startswith(codecs.BOM_UTF8):
                line = line.removeprefix(codecs.BOM_UTF8)
                start += len(codecs.BOM_UTF8)
            try:
                fields: Any = self.split(line.removesuffix(b"\r"), encoding)
            except DocumentRejectedError as error:
                fields = error
            yield Row(number, start, stop, fields)
            start = stop

    def split(self, line: bytes, encoding: str) -> Sequence[Any] | Mapping[str, Any]:
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Delimited(_Lines):
    """Columns with a delimiter between them; quotes are characters like others."""

    kind: ClassVar[str] = "tsv"

    delimiter: str

    def split(self, line: bytes, encoding: str) -> list[bytes]:
        """Return the columns of a line."""
        delimiter = self.delimiter.encode()
        fields = line.split(delimiter)
        # In GB18030 and Big5, the second byte of a character may be that of an ASCII character from 0 onwards.
        if encoding == "utf-8" or max(delimiter) < ord("0"):
            return fields
        found = [field.encode(encoding) for field in _decode(line, encoding).split(self.delimiter)]
        return found if delimiter.join(found) == line else fields


@dataclasses.dataclass(frozen=True)
class JsonLines(_Lines):
    """A JSON object a line."""

    kind: ClassVar[str] = "jsonl"

    def split(self, line: bytes, encoding: str) -> Mapping[str, Any] | list[Any]:
        """Return the object of a line, an empty list for a blank line."""
        text = _decode(line, encoding).removeprefix("\ufeff")
        if not text.strip():
            return []
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DocumentRejectedError("bad_line", f"no JSON: {error}") from None
        if not isinstance(value, dict):
            raise DocumentRejectedError("bad_line", f"expected a JSON object, got {type(value).__name__}")
        return value


@dataclasses.dataclass(frozen=True)
class FastText(_Lines):
    """`__label__体育 text of the document`: the label without its prefix, then the text."""

    kind: ClassVar[str] = "fasttext"

    def split(self, line: bytes, encoding: str) -> list[str]:
        """Return label and text of a line, an empty list for a blank line."""
        words = _decode(line, encoding).removeprefix("\ufeff").strip().split(maxsplit=1)
        if not words:
            return []
        if not words[0].startswith(FASTTEXT_PREFIX) or (words[-1].startswith(FASTTEXT_PREFIX) and len(words) > 1):
            raise DocumentRejectedError("bad_line", f"expected one label, {FASTTEXT_PREFIX}…, before the text")
        return [words[0].removeprefix(FASTTEXT_PREFIX), words[1] if len(words) > 1 else ""]


def _decode(line: bytes, encoding: str) -> str:
    try:
        return line.decode(encoding)
    except UnicodeDecodeError as error:
        detail = f"byte 0x{line[error.start]:02x} at position {error.start}: {error.reason}"
        raise DocumentRejectedError(f"not_{encoding}", detail) from None


@dataclasses.dataclass(frozen=True)
class Quoted:
    """CSV: fields may be quoted, and then hold delimiters, line ends and doubled quotes (RFC 4180)."""

    kind: ClassVar[str] = "csv"

    delimiter: str

    def complete(self, blocks: Iterable[bytes], encoding: str) -> Iterator[bytes]:
        """Recut blocks that end with a line into blocks that end with a record."""
        pending = b""
        for block in blocks:
            block = pending + block
            if len(block) > MAX_DOCUMENT_BYTES:
                raise InputFormatError(
                    f"a quoted field of more than {MAX_DOCUMENT_BYTES:,} bytes: its quote is never closed"
                )
            stop = len(block) if b'"' not in block else self._last_stop(block, encoding)
            if stop:
                yield block[:stop]
            pending = block[stop:]
        if pending:
            yield pending

    def _last_stop(self, block: bytes, encoding: str) -> int:
        """Return where the last record that is complete ends."""
        # If the last record's quote is open, it swallows this line.
        end = b"\0end\n"
        stop = 0
        for row in self.rows(block + end, 1, encoding):
            if row.stop > len(block):
                return len(block) if row.start == len(block) else row.start
            stop = row.stop
        return stop

    def rows(self, block: bytes, first: int, encoding: str) -> Iterator[Row]:
        """Yield the records of a block, the first of which begins on line `first`."""
        lines = block.split(b"\n")
        lines = [line + b"\n" for line in lines[:-1]] + ([lines[-1]] if lines[-1] else [])
        num_lines = start = stop = 0
        at_start = True

        def feed() -> Iterator[str]:
            nonlocal num_lines, stop, at_start
            for line in lines:
                num_lines += 1
                stop += len(line)
                # A mark before a quote would make it no quote.
                text = line.removeprefix(codecs.BOM_UTF8) if at_start else line
                at_start = False
                yield text.decode(encoding, "surrogateescape")

        csv.field_size_limit(MAX_DOCUMENT_BYTES)
        reader = csv.reader(feed(), delimiter=self.delimiter)
        while num_lines < len(lines):
            at_start, number, start = True, first + num_lines, stop
            fields: Any
            try:
                fields = next(reader)
            except csv.Error as error:
                fields = DocumentRejectedError("bad_line", f"no CSV: {error}")
            yield Row(number, start, stop, fields)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableSource:
    """A file of records, or a member of an archive.

    Attributes:
        path: the file, or the archive.
        split, key_prefix: as in `TreeSource`.
        syntax: how it is cut into records.
        columns: places or names of text and labels.
        encoding: of all of it.
        header: the fields of the first record, where it names the columns.
        member: kind of the archive, and the member's number; `None` for a file of its own.
    """

    path: str
    split: str | None
    key_prefix: str
    syntax: Syntax
    columns: Columns
    encoding: str = "utf-8"
    header: tuple[str, ...] | None = None
    member: tuple[ArchiveKind, int] | None = None

    def chunks(self, index: int) -> Iterator[Chunk]:
        """Cut the file where records end; what cannot be read at random has its blocks travel along."""
        with open_table(self.path, self.member) as (stream, is_random):
            is_random = is_random and not is_utf_16(self.encoding)
            line, start = 1, 0
            for block in self.syntax.complete(line_blocks(stream, self.path, self.encoding), self.row_encoding):
                yield Chunk(index, line, (start, start + len(block)) if is_random else block)
                line += block.count(b"\n")
                start += len(block)

    @property
    def kind(self) -> str:
        """Name of the table's format."""
        return self.syntax.kind

    @property
    def row_encoding(self) -> str:
        """Encoding of the blocks: what was UTF-16 is UTF-8 in them."""
        return "utf-8" if is_utf_16(self.encoding) else self.encoding

    def read(self, chunk: Chunk) -> Iterator[RawDocument | Rejection | Note]:
        """Read every record of a chunk."""
        path, offset, block = os.fsencode(self.path), None, chunk.items
        if isinstance(block, tuple):
            offset, stop = block
            with filesystem.reading(self.path) as stream:
                stream.seek(offset)
                block = stream.read(stop - offset)
            if len(block) < stop - offset:
                raise InputFormatError(f"{self.path}: became shorter while the job was running; run it again")
        notes: Counter[str] = Counter()
        for row in self.syntax.rows(block, chunk.first, self.row_encoding):
            key = f"{self.key_prefix}:{row.number}"
            try:
                if self._is_no_document(row, notes):
                    continue
                text = self._text(row)
                category, second = self._label(row, "category"), self._label(row, "second")
            except DocumentRejectedError as error:
                yield Rejection(key, error.reason, error.detail)
                continue
            if offset is None:
                locator = Locator("inline", b"", content=text.content, encoding=text.encoding)
            elif text.start is not None:
                locator = Locator("range", path, offset + text.start, len(text.content), encoding=text.encoding)
            else:
                place = (offset + row.start, row.stop - row.start)
                locator = Locator("record", path, *place, encoding=text.encoding, source=chunk.source)
            yield RawDocument(key, category, second, text.content, locator)
        yield from (Note(what, count) for what, count in sorted(notes.items()))

    def cut_text(self, record: bytes) -> bytes:
        """Return the text of a record, as `read` found it."""
        row = next(self.syntax.rows(record, 1, self.row_encoding), None)
        if row is None or (not isinstance(row.fields, Mapping) and row.fields == []):
            raise DocumentRejectedError("changed", "its record is gone")
        return self._text(row).content

    def _is_no_document(self, row: Row, notes: Counter[str]) -> bool:
        """Tell whether a row is blank or a header, count it, and check how many fields it has.

        Raises:
            DocumentRejectedError: it is no row of this table.
        """
        fields = row.fields
        if isinstance(fields, DocumentRejectedError):
            raise fields
        if isinstance(fields, Mapping):
            return False
        if not any(field.strip() for field in fields):
            notes[BLANK] += 1
            return True
        if self.header is not None and (row.number == 1 or row_texts(fields, self.row_encoding) == self.header):
            if row.number > 1:
                notes[HEADERS] += 1
            return True
        if len(fields) != self.columns.width:
            expected = (
                f"{self.columns.width} columns ({self.columns if self.header is None else ','.join(self.header)})"
            )
            raise DocumentRejectedError("bad_line", f"expected {expected}, got {len(fields)}")
        if isinstance(self.syntax, Delimited):
            notes.update({OPEN_QUOTES: count} if (count := sum(map(has_open_quote, fields))) else {})
        return False

    def _text(self, row: Row) -> "_Text":
        fields: Any = row.fields
        if isinstance(fields, DocumentRejectedError):
            raise fields
        names = self.columns.fields["text"]
        if isinstance(self.syntax, Delimited) and len(names) == 1 and len(fields) > int(names[0]):
            place = int(names[0])
            skipped = len(self.syntax.delimiter.encode()) * place + sum(map(len, fields[:place]))
            return _Text(fields[place], self.row_encoding, row.start + skipped)
        # As a headline and a body are joined in a file.
        text = "\n".join(self._value(row, name) for name in names)
        try:
            return _Text(text.encode(), "utf-8", None)
        except UnicodeEncodeError:
            raise DocumentRejectedError(f"not_{self.row_encoding}", "its text holds no valid characters") from None

    def _label(self, row: Row, role: str) -> str:
        names = self.columns.fields.get(role, ())
        if isinstance(row.fields, Mapping):  # an object without a label may lack its field
            names = tuple(name for name in names if name in row.fields)
        return "\n".join(self._value(row, name) for name in names)

    def _value(self, row: Row, name: str | int) -> str:
        fields: Any = row.fields
        try:
            value = fields[name]
        except (KeyError, IndexError):
            raise DocumentRejectedError("bad_line", f"no field {name!r}") from None
        if isinstance(value, bytes):
            try:
                return value.decode(self.row_encoding)
            except UnicodeDecodeError as error:
                detail = f"in a label: {error.reason} at position {error.start}"
                raise DocumentRejectedError(f"not_{self.row_encoding}", detail) from None
        text = as_text(value, str(name))
        if not text.isprintable() and any(0xD800 <= ord(character) < 0xE000 for character in text):
            raise DocumentRejectedError(f"not_{self.row_encoding}", f"in field {name!r}: no valid characters")
        return text


class _Text(NamedTuple):
    content: bytes
    encoding: str
    start: int | None


def as_text(value: Any, name: str) -> str:
    """Return a field's value as text: nothing where it is missing, `3` for the `3.0` that pandas makes of an index.

    Raises:
        DocumentRejectedError: it is a list or an object.
    """
    if isinstance(value, str):
        return value
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, (int, float)):
        return str(value)
    raise DocumentRejectedError("bad_line", f"field {name!r}: expected text, got {type(value).__name__}")


def row_texts(fields: Iterable[Any], encoding: str) -> tuple[str, ...]:
    """Return the fields of a row for comparing and showing them."""
    return tuple(
        (field.decode(encoding, "replace") if isinstance(field, bytes) else str(field)).strip().strip("\ufeff")
        for field in fields
    )


def has_open_quote(field: bytes) -> bool:
    """Tell whether a field looks as if it came from a writer that quotes fields."""
    if not field.startswith(b'"'):
        return False
    return len(field) == 1 or not field.endswith(b'"') or b'""' in field[1:-1]


@contextmanager
def open_table(path: str, member: tuple[ArchiveKind, int] | None) -> Iterator[tuple[IO[bytes], bool]]:
    """Open a table for reading from its beginning, and tell whether its bytes can be read again at their offsets."""
    if member is not None:
        with open_member(path, *member) as stream:
            yield stream, False
        return
    with filesystem.reading(path) as raw, decompressed(raw, path) as (stream, compression):
        yield stream, compression is None and not filesystem.is_remote(path)
