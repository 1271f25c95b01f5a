"""Zip and tar archives, read in place: of trees, document by document, and of tables, member by member.

Names are interpreted by one decision for a whole archive: UTF-8 if all of them are, else GB18030; backslashes separate
directories where no name has a slash.
"""

import contextlib
import dataclasses
import itertools
import os
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, ClassVar, Literal

from pipeline import filesystem
from pipeline.corpus.chunks import Chunk, chunked
from pipeline.corpus.documents import DocumentRejectedError, Locator, Note, RawDocument, Rejection, key_from_path
from pipeline.corpus.reading import MAX_DOCUMENT_BYTES, read_member
from pipeline.corpus.streams import decompressed
from pipeline.corpus.tree import Layout
from pipeline.errors import InputFormatError

ArchiveKind = Literal["zip", "tar"]
# An archive with more members than this is one of documents, not of tables.
MAX_TABLES = 1_000

_FLAG_ENCRYPTED = 0x1
_FLAG_UTF8 = 0x800
_BLOCK_BYTES = 1 << 20


# Names


def clean_names(raw: Sequence[bytes], is_utf_8: Sequence[bool]) -> list[bytes]:
    """Return members' names as UTF-8 with slashes, without empty parts and dots that mean nothing (`./体育//1.txt`).

    Args:
        raw: the names' bytes.
        is_utf_8: which of them the archive says are UTF-8.
    """
    encoding = "utf-8" if all(said or _decodes(name, "utf-8") for name, said in zip(raw, is_utf_8, strict=True)) else ""
    names = [
        name if said or encoding or not _decodes(name, "gb18030") else name.decode("gb18030").encode()
        for name, said in zip(raw, is_utf_8, strict=True)
    ]
    if not any(b"/" in name for name in names):
        names = [name.replace(b"\\", b"/") for name in names]
    return [b"/".join(part for part in name.split(b"/") if part not in (b"", b".")) for name in names]


def _decodes(name: bytes, encoding: str) -> bool:
    try:
        name.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def _documents(names: Sequence[bytes], layout: Layout, notes: Counter[str], path: str) -> Iterator[tuple[int, bytes]]:
    """Yield number and name of every document of an archive, without the directories around all categories.

    Raises:
        InputFormatError: a name occurs twice.
    """
    chosen = set(layout.choose(names, notes))
    depth = layout.num_around(sorted(chosen))
    seen: set[bytes] = set()
    for number, name in enumerate(names):
        if name not in chosen:
            continue
        if name in seen:
            raise InputFormatError(f"{path}: holds {key_from_path(name)} twice; unpack it, and give the directory")
        seen.add(name)
        yield number, name.split(b"/", depth)[-1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArchiveSource:
    """An archive of a tree `<category>/…/<file>`; directories around all categories are ignored.

    Attributes:
        path: the archive.
        split, key_prefix, layout: as in `TreeSource`.
    """

    path: str
    split: str | None
    key_prefix: str
    layout: Layout = dataclasses.field(default_factory=Layout)


# Zip


@contextmanager
def _open_zip(stream: IO[bytes], path: str) -> Iterator[zipfile.ZipFile]:
    try:
        archive = zipfile.ZipFile(stream)
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise InputFormatError(f"{path}: not a complete zip archive ({error}); fetch it again") from None
    with archive:
        yield archive


def _zip_members(archive: zipfile.ZipFile) -> tuple[list[zipfile.ZipInfo], list[bytes]]:
    """Return the files of a zip archive, and their names."""
    # Not `is_dir()`, which fails on a member without a name.
    members = [member for member in archive.infolist() if not member.filename.endswith(("/", "\\"))]
    flags = [bool(member.flag_bits & _FLAG_UTF8) for member in members]
    raw = [
        member.filename.encode("utf-8", "surrogateescape") if is_utf_8 else member.filename.encode("cp437")
        for member, is_utf_8 in zip(members, flags, strict=True)
    ]
    return members, clean_names(raw, flags)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ZipSource(ArchiveSource):
    """A zip archive of a tree."""

    kind: ClassVar[str] = "zip"

    def chunks(self, index: int) -> Iterator[Chunk]:
        """List the members from the archive's directory; a remote archive's members are read at once."""
        notes: Counter[str] = Counter()
        with filesystem.reading(self.path) as stream, _open_zip(stream, self.path) as archive:
            members, names = _zip_members(archive)
            items = [
                (name, *_member_place(members[number]))
                for number, name in _documents(names, self.layout, notes, self.path)
            ]
            del members, names
            items.sort()
            if not filesystem.is_remote(self.path):
                yield from chunked(items, index, notes)
                return
            yield from chunked(
                ((*item, _read_early(stream, offset, length)) for item in items for _, offset, length, _ in [item]),
                index,
                notes,
            )

    def read(self, chunk: Chunk) -> Iterator[RawDocument | Rejection | Note]:
        """Read every member of a chunk."""
        path = os.fsencode(self.path)
        with contextlib.ExitStack() as stack:
            remote = filesystem.is_remote(self.path)
            stream = None if remote else stack.enter_context(filesystem.reading(self.path))
            for name, offset, length, crc, *inline in chunk.items:
                content: bytes | Exception
                locator = Locator("member", path, offset, length)
                try:
                    content = inline[0] if stream is None else read_member(stream, offset, length)
                    if stream is None and isinstance(content, bytes):
                        locator = Locator("inline", b"", content=content)
                    if isinstance(content, bytes) and zlib.crc32(content) != crc:
                        raise DocumentRejectedError("corrupt_member", "its checksum in the archive does not match")
                except DocumentRejectedError as error:
                    content = error
                yield from self.layout.read(self.key_prefix, name, content, locator)


def _member_place(member: zipfile.ZipInfo) -> tuple[int, int, int]:
    if member.flag_bits & _FLAG_ENCRYPTED:
        raise InputFormatError(f"{member.filename}: the archive is encrypted; decrypt it first")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise InputFormatError(
            f"{member.filename}: compression method {member.compress_type}; expected stored or deflate"
        )
    return member.header_offset, member.compress_size, member.CRC


def _read_early(stream: IO[bytes], offset: int, length: int) -> bytes | DocumentRejectedError:
    try:
        return read_member(stream, offset, length)
    except DocumentRejectedError as error:
        return error


# Tar


class _Header(tarfile.TarInfo):
    """A header whose damage is an error: `tarfile` takes what it cannot read for the end of the archive."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> "_Header":
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"at byte {tarfile_.offset:,}: {error}") from None


@contextmanager
def _open_tar(path: str) -> Iterator[tuple[tarfile.TarFile, bool]]:
    """Open a tar archive, compressed or not; tell whether its members can be read again at their offsets."""
    with filesystem.reading(path) as raw, decompressed(raw, path) as (stream, compression):
        is_random = compression is None and not filesystem.is_remote(path)
        try:
            mode: Literal["r:", "r|"] = "r:" if is_random else "r|"
            with tarfile.open(
                fileobj=stream, mode=mode, tarinfo=_Header, encoding="utf-8", errors="surrogateescape"
            ) as archive:
                yield archive, is_random
        except tarfile.TarError as error:
            raise InputFormatError(f"{path}: not a complete tar archive ({error}); fetch it again") from None


def _tar_members(archive: tarfile.TarFile, path: str) -> Iterator[tarfile.TarInfo]:
    """Yield everything in a tar archive but its directories, and make sure that nothing follows its end."""
    while (member := archive.next()) is not None:
        archive.members.clear()  # type: ignore[attr-defined]  # it would keep all of them
        if not member.isdir():
            yield member
    while block := archive.fileobj.read(_BLOCK_BYTES) if archive.fileobj else b"":
        if block.strip(b"\0"):
            raise InputFormatError(
                f"{path}: several tar archives in one file; unpack it with tar -i, and give the directory"
            )


def _tar_name(member: tarfile.TarInfo) -> bytes:
    return member.name.encode("utf-8", "surrogateescape")


def _clean_tar_names(names: Sequence[bytes]) -> list[bytes]:
    return clean_names(names, [False] * len(names))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TarSource(ArchiveSource):
    """A tar archive of a tree; compressed or remote, it cannot be read at random, and its documents travel along."""

    kind: ClassVar[str] = "tar"

    def chunks(self, index: int) -> Iterator[Chunk]:
        """List the members; names are interpreted by all of them, so that a compressed archive is read twice."""
        notes: Counter[str] = Counter()
        with _open_tar(self.path) as (archive, is_random):
            found = [(_tar_name(member), _tar_place(member)) for member in _tar_members(archive, self.path)]
        names = _clean_tar_names([name for name, _ in found])
        chosen = dict(_documents(names, self.layout, notes, self.path))
        if is_random:
            yield from chunked(((name, found[number][1]) for number, name in chosen.items()), index, notes)
            return
        del found, names
        with _open_tar(self.path) as (archive, _):
            contents = (
                (chosen[number], _tar_content(archive, member))
                for number, member in enumerate(_tar_members(archive, self.path))
                if number in chosen
            )
            yield from chunked(contents, index, notes)

    def read(self, chunk: Chunk) -> Iterator[RawDocument | Rejection | Note]:
        """Read every member of a chunk."""
        path = os.fsencode(self.path)
        with contextlib.ExitStack() as stack:
            stream = None
            for name, place in chunk.items:
                content, locator = place, Locator("inline", b"")
                if isinstance(place, bytes):
                    locator = Locator("inline", b"", content=place)
                elif isinstance(place, tuple):
                    stream = stream or stack.enter_context(filesystem.reading(self.path))
                    stream.seek(place[0])
                    content, locator = stream.read(place[1]), Locator("range", path, *place)
                    if len(content) < place[1]:
                        content = DocumentRejectedError("corrupt_member", "the archive ends within it")
                yield from self.layout.read(self.key_prefix, name, content, locator)


def _tar_place(member: tarfile.TarInfo) -> tuple[int, int] | DocumentRejectedError:
    if not member.isreg() or member.issparse():
        kind = "a link" if member.issym() or member.islnk() else "no regular file"
        return DocumentRejectedError("unreadable", f"{kind} in the archive; unpack it, and give the directory")
    if member.size > MAX_DOCUMENT_BYTES:
        return DocumentRejectedError("too_large", f"{member.size:,} bytes, more than {MAX_DOCUMENT_BYTES:,}")
    return member.offset_data, member.size


def _tar_content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes | DocumentRejectedError:
    place = _tar_place(member)
    if isinstance(place, DocumentRejectedError):
        return place
    stream = archive.extractfile(member)
    return stream.read() if stream else b""


# Archives of tables


def list_names(path: str, kind: ArchiveKind) -> list[bytes] | None:
    """Return the names of an archive's files, `None` if they are more than there are tables.

    Raises:
        InputFormatError: it is damaged.
    """
    if kind == "zip":
        with filesystem.reading(path) as stream:
            if _count_members(stream) > MAX_TABLES:
                return None
            with _open_zip(stream, path) as archive:
                return _zip_members(archive)[1]
    with _open_tar(path) as (tar, _):
        members = list(itertools.islice(_tar_members(tar, path), MAX_TABLES + 1))
    return None if len(members) > MAX_TABLES else _clean_tar_names(list(map(_tar_name, members)))


def _count_members(stream: IO[bytes]) -> int:
    """Return the number of members from the end of a zip archive, whose whole directory takes seconds to read."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, size - (1 << 16) - 22))
    end = stream.read()
    place = end.rfind(b"PK\x05\x06")
    stream.seek(0)
    return int.from_bytes(end[place + 10 : place + 12], "little") if place >= 0 else 0


@contextmanager
def open_member(path: str, kind: ArchiveKind, number: int) -> Iterator[IO[bytes]]:
    """Open the file of this number, in the order of `list_names`.

    Raises:
        InputFormatError: it is damaged, or cannot be read.
    """
    if kind == "tar":
        with _open_tar(path) as (tar, _):
            member = next(itertools.islice(_tar_members(tar, path), number, None))
            stream = None if isinstance(_tar_place(member), DocumentRejectedError) else tar.extractfile(member)
            if stream is None:
                raise InputFormatError(f"{path}: {member.name} is no regular file; unpack the archive")
            yield stream
        return
    with filesystem.reading(path) as raw, _open_zip(raw, path) as archive:
        info = _zip_members(archive)[0][number]
        _member_place(info)
        try:
            with archive.open(info) as stream:
                yield stream
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise InputFormatError(f"{path}: {info.filename} is damaged ({error}); fetch the archive again") from None
