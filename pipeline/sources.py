"""The places documents come from: a directory tree, a zip archive, a TSV.

Each source can do two things: cut itself into chunks, which is cheap and done once, and read one chunk, which is done
by many workers at once.
"""

import contextlib
import dataclasses
import gzip
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from typing import IO, Any, NamedTuple

from pipeline import filesystem
from pipeline.corpus import DocumentRejectedError, Locator, RawDocument, Rejection, key_from_path
from pipeline.errors import InputFormatError
from pipeline.reading import read_files, read_member

DOCUMENTS_PER_CHUNK = 500
BYTES_PER_CHUNK = 1 << 20

GZIP_MAGIC = b"\x1f\x8b"
_FLAG_ENCRYPTED = 0x1
_FLAG_UTF8 = 0x800


class Chunk(NamedTuple):
    """A part of one source that one worker reads.

    Attributes:
        source: index of the source among all sources.
        first: number of the first line, for keys (TSV only).
        items: what to read; only the source knows how.
    """

    source: int
    first: int
    items: Any


def _is_hidden(name: bytes) -> bool:
    return name.startswith(b".")


def _chunked(items: Iterable[Any], source: int) -> Iterator[Chunk]:
    batch: list[Any] = []
    for item in items:
        batch.append(item)
        if len(batch) == DOCUMENTS_PER_CHUNK:
            yield Chunk(source, 0, batch)
            batch = []
    if batch:
        yield Chunk(source, 0, batch)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TreeSource:
    """`PATH/<category>/…/<file>`: every file below a category is a document, unless its name starts with a dot.

    Attributes:
        path: the directory that holds the categories.
        split: the split all documents go to, or `None`.
        key_prefix: put before each key, so that keys stay unique among several inputs.
    """

    path: str
    split: str | None
    key_prefix: str

    def chunks(self, index: int) -> Iterator[Chunk]:
        """List the files, in an order that the file system cannot change."""
        if filesystem.is_remote(self.path):
            prefix = self.path.rstrip("/") + "/"
            found = (path.removeprefix(prefix).encode() for path in filesystem.list_below(self.path))
            return _chunked((name for name in found if not any(map(_is_hidden, name.split(b"/")))), index)
        return _chunked(self._walk(b""), index)

    def _walk(self, inside: bytes) -> Iterator[bytes]:
        with os.scandir(os.path.join(os.fsencode(self.path), inside)) as listing:
            entries = sorted((entry for entry in listing if not _is_hidden(entry.name)), key=lambda entry: entry.name)
        for entry in entries:
            name = os.path.join(inside, entry.name)
            # A category may be a symbolic link, a directory below it may not: links can run in circles.
            if entry.is_dir(follow_symlinks=not inside):
                yield from self._walk(name)
            else:
                yield name

    def read(self, chunk: Chunk) -> Iterator[RawDocument | Rejection]:
        """Read every file of a chunk."""
        root = os.fsencode(self.path)
        paths = [os.path.join(root, name) for name in chunk.items]
        for name, path, content in zip(chunk.items, paths, read_files(paths), strict=True):
            key = self.key_prefix + key_from_path(name)
            category, slash, _ = name.partition(b"/")
            if not slash:
                yield Rejection(key, "no_category", "expected <category>/<file>, found a file outside any category")
            elif isinstance(content, OSError):
                yield Rejection(key, "unreadable", f"{content.strerror or content}")
            else:
                yield RawDocument(key, key_from_path(category), "", content, Locator("file", path))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ZipSource:
    """A zip archive of such a tree, read in place; one directory around all categories is ignored, as is `__MACOSX`.

    Attributes:
        path: the archive.
        split, key_prefix: as in `TreeSource`.
    """

    path: str
    split: str | None
    key_prefix: str

    def chunks(self, index: int) -> Iterator[Chunk]:
        """List the members from the archive's directory; a remote archive's members are read at once."""
        with contextlib.ExitStack() as stack:
            stream = stack.enter_context(filesystem.open_for_reading(self.path))
            try:
                archive = stack.enter_context(zipfile.ZipFile(stream))
            except zipfile.BadZipFile as error:
                raise InputFormatError(f"{self.path}: not a complete zip archive ({error}); fetch it again") from None
            members = [
                (name, member)
                for member in archive.infolist()
                if not member.is_dir() and _is_document(name := _member_name(member))
            ]
            depth = _common_depth([name for name, _ in members])
            names_of = sorted((name.split(b"/", depth)[-1], member) for name, member in members)
            if not filesystem.is_remote(self.path):
                items = [(name, *_member_place(member)) for name, member in names_of]
                del members, names_of
                yield from _chunked(items, index)
                return
            yield from _chunked(
                ((name, *_member_place(member), archive.read(member)) for name, member in names_of), index
            )

    def read(self, chunk: Chunk) -> Iterator[RawDocument | Rejection]:
        """Read every member of a chunk."""
        path = os.fsencode(self.path)
        with contextlib.ExitStack() as stack:
            stream = None if filesystem.is_remote(self.path) else stack.enter_context(open(path, "rb"))
            for name, offset, length, crc, *inline in chunk.items:
                key = self.key_prefix + key_from_path(name)
                category, slash, _ = name.partition(b"/")
                if not slash:
                    yield Rejection(key, "no_category", "expected <category>/<file>, found a file outside any category")
                    continue
                try:
                    if stream is None:
                        content = inline[0]
                        locator = Locator("inline", b"", content=content)
                    else:
                        content = read_member(stream, offset, length)
                        locator = Locator("member", path, offset, length)
                    if zlib.crc32(content) != crc:
                        raise DocumentRejectedError("corrupt_member", "its checksum in the archive does not match")
                except DocumentRejectedError as error:
                    yield Rejection(key, error.reason, error.detail)
                    continue
                yield RawDocument(key, key_from_path(category), "", content, locator)


def _member_name(member: zipfile.ZipInfo) -> bytes:
    """Return a member's name as UTF-8: unflagged names are UTF-8 or GBK, whatever the format's standard says."""
    if member.flag_bits & _FLAG_UTF8:
        return member.filename.encode("utf-8", "surrogateescape")
    raw = member.filename.encode("cp437")
    for encoding in ("utf-8", "gb18030"):
        with contextlib.suppress(UnicodeDecodeError):
            return raw.decode(encoding).encode()
    return raw


def _member_place(member: zipfile.ZipInfo) -> tuple[int, int, int]:
    if member.flag_bits & _FLAG_ENCRYPTED:
        raise InputFormatError(f"{member.filename}: the archive is encrypted; decrypt it first")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise InputFormatError(
            f"{member.filename}: compression method {member.compress_type}; expected stored or deflate"
        )
    return member.header_offset, member.compress_size, member.CRC


def _is_document(name: bytes) -> bool:
    parts = name.split(b"/")
    return parts[0] != b"__MACOSX" and not any(_is_hidden(part) for part in parts)


def _common_depth(names: list[bytes]) -> int:
    """Return 1 if one directory holds all categories, as `THUCNews/` does in THUCNews.zip, else 0."""
    around = {name.split(b"/", 1)[0] for name in names}
    return 1 if len(around) == 1 and all(name.count(b"/") >= 2 for name in names) else 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class TsvSource:
    """A file of lines with tab-separated columns, plain or gzip, in any encoding that keeps ASCII.

    Attributes:
        path, split, key_prefix: as in `TreeSource`.
        encoding: of texts and labels.
        columns: what each column holds: `text`, `category`, `second`, or `-` for nothing.
        header: whether the first line names the columns.
    """

    path: str
    split: str | None
    key_prefix: str
    encoding: str
    columns: tuple[str, ...]
    header: bool

    def chunks(self, index: int) -> Iterator[Chunk]:
        """Cut the file at line ends; a remote or compressed one cannot be read at random, so its lines travel along."""
        with filesystem.open_for_reading(self.path) as raw:
            stream = open_tsv(raw)
            inline = stream is not raw or filesystem.is_remote(self.path)
            line, start = 1, 0
            try:
                for block in _line_blocks(stream):
                    yield Chunk(index, line, block if inline else (start, start + len(block)))
                    line += block.count(b"\n")
                    start += len(block)
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise InputFormatError(f"{self.path}: damaged gzip stream ({error}); fetch it again") from None

    def read(self, chunk: Chunk) -> Iterator[RawDocument | Rejection]:
        """Read every line of a chunk."""
        path = os.fsencode(self.path)
        inline = isinstance(chunk.items, bytes)
        if inline:
            block, offset = chunk.items, 0
        else:
            offset, stop = chunk.items
            with open(path, "rb") as stream:
                stream.seek(offset)
                block = stream.read(stop - offset)
        lines = block.split(b"\n")
        if not lines[-1]:
            lines.pop()
        for number, line in enumerate(lines, chunk.first):
            start, offset = offset, offset + len(line) + 1
            if number == 1 and self.header:
                continue
            key = f"{self.key_prefix}:{number}"
            fields = line.removesuffix(b"\r").split(b"\t")
            if len(fields) != len(self.columns):
                expected = f"{len(self.columns)} columns ({','.join(self.columns)})"
                yield Rejection(key, "bad_line", f"expected {expected}, got {len(fields)}")
                continue
            column = self.columns.index("text")
            content = fields[column]
            try:
                names = [
                    fields[self.columns.index(name)].decode(self.encoding) if name in self.columns else ""
                    for name in ("category", "second")
                ]
            except UnicodeDecodeError as error:
                yield Rejection(key, f"not_{self.encoding}", f"in a label: {error.reason} at position {error.start}")
                continue
            start += sum(len(field) + 1 for field in fields[:column])
            if inline:
                locator = Locator("inline", b"", content=content, encoding=self.encoding)
            else:
                locator = Locator("range", path, start, len(content), encoding=self.encoding)
            yield RawDocument(key, names[0], names[1], content, locator)


Source = TreeSource | ZipSource | TsvSource


def open_tsv(raw: IO[bytes]) -> Any:
    """Return the stream itself, or a decompressing one where its content is gzip."""
    compressed = raw.read(len(GZIP_MAGIC)) == GZIP_MAGIC
    raw.seek(0)
    return gzip.GzipFile(fileobj=raw, mode="rb") if compressed else raw


def _line_blocks(stream: Any) -> Iterator[bytes]:
    """Cut a stream into blocks of about a megabyte that end with a line."""
    pending: list[bytes] = []
    while block := stream.read(BYTES_PER_CHUNK):
        cut = block.rfind(b"\n") + 1
        if not cut:
            pending.append(block)
            continue
        yield b"".join([*pending, block[:cut]])
        pending = [block[cut:]]
    if rest := b"".join(pending):
        yield rest
