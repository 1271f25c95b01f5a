"""Bytes of documents, read where a `Locator` says; many at once where the storage is far away."""

import concurrent.futures
import contextlib
import errno
import os
import stat
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from typing import IO, Any

from pipeline import filesystem
from pipeline.corpus.documents import DocumentRejectedError, Locator
from pipeline.errors import MissingInputError

# What is larger is a bomb or no document, and would fill the memory.
MAX_DOCUMENT_BYTES = 256 << 20
_LOCAL_HEADER_BYTES = 30

# Remote storage answers after tens of milliseconds, so one worker keeps this many requests on their way.
REMOTE_READERS = 16


def _read_local(path: bytes) -> bytes | OSError:
    try:
        # O_NONBLOCK keeps a named pipe from blocking the job for ever; it changes nothing for a file.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file")
            if status.st_size > MAX_DOCUMENT_BYTES:
                raise _too_large()
            content = os.read(descriptor, status.st_size + 1)
            # One byte less than was asked for is the end of the file, as nearly always.
            if len(content) != status.st_size:
                content += _read_on(descriptor, len(content))
            return content
        finally:
            os.close(descriptor)
    except OSError as error:
        return error


def _read_on(descriptor: int, num_bytes: int) -> bytes:
    """Read a file of another size than expected to its end; `num_bytes` were read before."""
    parts = []
    while part := os.read(descriptor, 1 << 20):
        parts.append(part)
        num_bytes += len(part)
        if num_bytes > MAX_DOCUMENT_BYTES:
            raise _too_large()
    return b"".join(parts)


def _read_remote(path: bytes) -> bytes | OSError:
    """Read an object of a store; that it is not there concerns one document, anything else all of them.

    Raises:
        MissingInputError: the connection broke, or there is no right to read.
    """
    name = os.fsdecode(path)
    try:
        content = filesystem.read_bytes(name, MAX_DOCUMENT_BYTES + 1)
    except MissingInputError:
        # Every client library says it in another way, so that asking is surer.
        if filesystem.exists(name):
            raise
        return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    return content if len(content) <= MAX_DOCUMENT_BYTES else _too_large()


def _too_large() -> OSError:
    return OSError(errno.EFBIG, f"more than {MAX_DOCUMENT_BYTES:,} bytes")


def read_files(paths: Sequence[bytes]) -> Iterator[bytes | OSError]:
    """Yield the content of every file, in order, or the error that reading it gave.

    Raises:
        MissingInputError: a store cannot be read.
    """
    if paths and filesystem.is_remote(os.fsdecode(paths[0])):
        with concurrent.futures.ThreadPoolExecutor(REMOTE_READERS) as pool:
            yield from pool.map(_read_remote, paths)
    else:
        yield from map(_read_local, paths)


def read_member(stream: IO[bytes], offset: int, length: int) -> bytes:
    """Read and decompress one member at its local header.

    Raises:
        DocumentRejectedError: `corrupt_member` or `too_large`.
    """
    try:
        stream.seek(offset)
    except (OSError, ValueError):  # an archive may claim any offset
        raise DocumentRejectedError("corrupt_member", f"no member starts at byte {offset}") from None
    header = stream.read(_LOCAL_HEADER_BYTES)
    if len(header) < _LOCAL_HEADER_BYTES or header[:4] != b"PK\x03\x04":
        raise DocumentRejectedError("corrupt_member", f"no member starts at byte {offset}")
    method = int.from_bytes(header[8:10], "little")
    skip = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    stream.seek(skip, os.SEEK_CUR)
    if length > MAX_DOCUMENT_BYTES:
        raise DocumentRejectedError("too_large", f"{length:,} bytes, more than {MAX_DOCUMENT_BYTES:,}")
    data = stream.read(length)
    if method == zipfile.ZIP_STORED:
        return data
    decompressor = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        content = decompressor.decompress(data, MAX_DOCUMENT_BYTES + 1)
    except zlib.error as error:
        raise DocumentRejectedError("corrupt_member", str(error)) from None
    if len(content) > MAX_DOCUMENT_BYTES:
        raise DocumentRejectedError("too_large", f"more than {MAX_DOCUMENT_BYTES:,} bytes when decompressed")
    if not decompressor.eof:
        raise DocumentRejectedError("corrupt_member", "its compressed data ends early")
    return content


def fetch(locators: Sequence[Locator], sources: Sequence[Any] = ()) -> Iterator[bytes | Exception]:
    """Yield the text's bytes at every locator, in order, or the error that reading them gave.

    Args:
        locators: where the texts are.
        sources: of the job; those that make locators of the kind `record` have `cut_text`.
    """
    files = read_files([locator.path for locator in locators if locator.kind == "file"])
    with contextlib.ExitStack() as stack:
        streams: dict[bytes, IO[bytes]] = {}
        for kind, path, offset, length, content, _, source in locators:
            if kind == "inline":
                yield content
            elif kind == "file":
                yield next(files)
            else:
                try:
                    if path not in streams:
                        streams[path] = stack.enter_context(open(path, "rb"))
                    stream = streams[path]
                    if kind == "range":
                        stream.seek(offset)
                        yield stream.read(length)
                    elif kind == "record":
                        stream.seek(offset)
                        yield sources[source].cut_text(stream.read(length))
                    else:
                        yield read_member(stream, offset, length)
                except (OSError, DocumentRejectedError) as error:
                    yield error
