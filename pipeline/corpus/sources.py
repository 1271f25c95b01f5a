"""The places documents come from: a directory tree, a zip archive, a TSV.

Each source can do two things: cut itself into chunks, which is cheap and done once, and read one chunk, which is done
by many workers at once.
"""

import codecs
import contextlib
import dataclasses
import gzip
import itertools
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any, NamedTuple

from pipeline import filesystem
from pipeline.corpus.documents import DocumentRejectedError, Locator, RawDocument, Rejection, key_from_path
from pipeline.corpus.reading import MAX_DOCUMENT_BYTES, read_files, read_member
from pipeline.errors import InputFormatError, MissingInputError
from pipeline.filesystem import GZIP_MAGIC

DOCUMENTS_PER_CHUNK = 500
BYTES_PER_CHUNK = 1 << 20

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
        directory = os.path.join(os.fsencode(self.path), inside)
        try:
            with os.scandir(directory) as listing:
                visible = (entry for entry in listing if not _is_hidden(entry.name))
                entries = sorted(visible, key=lambda entry: entry.name)
        except OSError as error:
            # Of its documents not even the number is known, so that none of them could be counted as rejected.
            raise MissingInputError(f"{os.fsdecode(directory)}: cannot list this directory: {error.strerror}") from None
        for entry in entries:
            name = os.path.join(inside, entry.name)
            # A category may be a symbolic link, a directory below it may not: links can run in circles. One that leads
            # to itself is no directory for `isdir`, and an error for `is_dir`.
            if entry.is_dir(follow_symlinks=False) or (not inside and os.path.isdir(entry.path)):
                yield from self._walk(name)
            else:
                yield name

    def read(self, chunk: Chunk) -> Iterator[RawDocument | Rejection]:
        """Read every file of a chunk."""
        inside = os.path.join(os.fsencode(self.path), b"")
        paths = [inside + name for name in chunk.items]
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
            stream = stack.enter_context(filesystem.reading(self.path))
            try:
                archive = stack.enter_context(zipfile.ZipFile(stream))
            except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
                raise InputFormatError(f"{self.path}: not a complete zip archive ({error}); fetch it again") from None
            members = [
                (name, member)
                for member in archive.infolist()
                # Not `is_dir()`, which fails on a member without a name.
                if not member.filename.endswith("/") and _is_document(name := _member_name(member))
            ]
            depth = _common_depth([name for name, _ in members])
            names_of = [(name.split(b"/", depth)[-1], member) for name, member in members]
            names_of.sort(key=lambda pair: pair[0])
            self._check_names([name for name, _ in names_of])
            if not filesystem.is_remote(self.path):
                items = [(name, *_member_place(member)) for name, member in names_of]
                del members, names_of
                yield from _chunked(items, index)
                return
            yield from _chunked(
                ((name, *(place := _member_place(member)), _read_early(stream, place)) for name, member in names_of),
                index,
            )

    def _check_names(self, names: Sequence[bytes]) -> None:
        for name, following in itertools.pairwise(names):
            if name == following:
                raise InputFormatError(
                    f"{self.path}: holds {key_from_path(name)} twice; unpack it, and give the directory"
                )

    def read(self, chunk: Chunk) -> Iterator[RawDocument | Rejection]:
        """Read every member of a chunk."""
        path = os.fsencode(self.path)
        with contextlib.ExitStack() as stack:
            remote = filesystem.is_remote(self.path)
            stream = None if remote else stack.enter_context(filesystem.reading(self.path))
            for name, offset, length, crc, *inline in chunk.items:
                key = self.key_prefix + key_from_path(name)
                category, slash, _ = name.partition(b"/")
                if not slash:
                    yield Rejection(key, "no_category", "expected <category>/<file>, found a file outside any category")
                    continue
                if b".." in name.split(b"/"):
                    yield Rejection(key, "bad_name", "its name leads out of the archive")
                    continue
                try:
                    if stream is None:
                        content = inline[0]
                        if isinstance(content, DocumentRejectedError):
                            raise content
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
    """Return a member's name as UTF-8, without empty parts and dots that mean nothing (`./体育//1.txt`)."""
    return b"/".join(part for part in _decode_name(member).split(b"/") if part not in (b"", b"."))


def _decode_name(member: zipfile.ZipInfo) -> bytes:
    # Names without the flag are UTF-8 or GBK in practice, whatever the format's standard says.
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


def _read_early(stream: IO[bytes], place: tuple[int, int, int]) -> bytes | DocumentRejectedError:
    try:
        return read_member(stream, *place[:2])
    except DocumentRejectedError as error:
        return error


def _is_document(name: bytes) -> bool:
    parts = name.split(b"/")
    return parts[0] != b"__MACOSX" and not any(_is_hidden(part) for part in parts if part != b"..")


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
        with filesystem.reading(self.path) as raw:
            inline = _is_gzip(raw) or filesystem.is_remote(self.path)
            line, start = 1, 0
            for block in self.blocks(raw):
                yield Chunk(index, line, block if inline else (start, start + len(block)))
                line += block.count(b"\n")
                start += len(block)

    def blocks(self, raw: IO[bytes]) -> Iterator[bytes]:
        """Cut the decompressed content of the file into blocks of about a megabyte that end with a line.

        Raises:
            InputFormatError: it is gzip, and damaged; or a line does not end.
        """
        stream = gzip.GzipFile(fileobj=raw, mode="rb") if _is_gzip(raw) else raw
        pending: list[bytes] = []
        try:
            while block := stream.read(BYTES_PER_CHUNK):
                cut = block.rfind(b"\n") + 1
                if not cut:
                    pending.append(block)
                    if len(pending) * BYTES_PER_CHUNK > MAX_DOCUMENT_BYTES:
                        raise InputFormatError(
                            f"{self.path}: a line of more than {MAX_DOCUMENT_BYTES:,} bytes; expected a document a line"
                        )
                    continue
                yield b"".join([*pending, block[:cut]])
                pending = [block[cut:]]
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise InputFormatError(f"{self.path}: damaged gzip stream ({error}); fetch it again") from None
        if rest := b"".join(pending):
            yield rest

    def read(self, chunk: Chunk) -> Iterator[RawDocument | Rejection]:
        """Read every line of a chunk."""
        path = os.fsencode(self.path)
        inline = isinstance(chunk.items, bytes)
        if inline:
            block, offset = chunk.items, 0
        else:
            offset, stop = chunk.items
            with filesystem.reading(self.path) as stream:
                stream.seek(offset)
                block = stream.read(stop - offset)
            if len(block) < stop - offset:
                raise InputFormatError(f"{self.path}: became shorter while the job was running; run it again")
        lines = block.split(b"\n")
        if not lines[-1]:
            lines.pop()
        for number, line in enumerate(lines, chunk.first):
            start, offset = offset, offset + len(line) + 1
            if number == 1 and line.startswith(codecs.BOM_UTF8):
                line = line.removeprefix(codecs.BOM_UTF8)
                start += len(codecs.BOM_UTF8)
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


def _is_gzip(raw: IO[bytes]) -> bool:
    compressed = raw.read(len(GZIP_MAGIC)) == GZIP_MAGIC
    raw.seek(0)
    return compressed
