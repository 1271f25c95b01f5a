"""Bytes of a file, decompressed and cut into blocks that end with a line."""

import bz2
import codecs
import gzip
import lzma
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO, cast

from pipeline.corpus.options import is_utf_16
from pipeline.corpus.reading import MAX_DOCUMENT_BYTES
from pipeline.errors import InputFormatError
from pipeline.filesystem import GZIP_MAGIC

BYTES_PER_CHUNK = 1 << 20
_COMPRESSIONS = {GZIP_MAGIC: "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz"}
# Of bz2 itself, an OSError without a number is all that tells a damaged stream.
_DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, OSError)


def compression_of(start: bytes) -> str | None:
    """Return how a file that begins like this is compressed."""
    return next((name for magic, name in _COMPRESSIONS.items() if start.startswith(magic)), None)


@contextmanager
def decompressed(raw: IO[bytes], path: str) -> Iterator[tuple[IO[bytes], str | None]]:
    """Open what a file holds, and tell its compression.

    Raises:
        InputFormatError: it is compressed, and damaged.
    """
    compression = compression_of(raw.read(6))
    raw.seek(0)
    if compression is None:
        yield raw, None
        return
    opener = {"gzip": gzip.GzipFile, "bzip2": bz2.BZ2File, "xz": lzma.LZMAFile}[compression]
    try:
        with opener(raw, mode="rb") if compression != "gzip" else gzip.GzipFile(fileobj=raw, mode="rb") as stream:
            yield cast(IO[bytes], stream), compression
    except _DAMAGED as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise InputFormatError(f"{path}: damaged {compression} stream ({error}); fetch it again") from None


def line_blocks(stream: IO[bytes], path: str, encoding: str) -> Iterator[bytes]:
    """Cut a stream into blocks of about a megabyte that end with a line; UTF-16 becomes UTF-8.

    Raises:
        InputFormatError: a line does not end, or the stream is not UTF-16.
    """
    pieces: Iterable[bytes] = iter(lambda: stream.read(BYTES_PER_CHUNK), b"")
    if is_utf_16(encoding):
        pieces = _from_utf_16(pieces, path, encoding)
    pending: list[bytes] = []
    for piece in pieces:
        cut = piece.rfind(b"\n") + 1
        if not cut:
            pending.append(piece)
            if sum(map(len, pending)) > MAX_DOCUMENT_BYTES:
                raise InputFormatError(
                    f"{path}: a line of more than {MAX_DOCUMENT_BYTES:,} bytes; expected a document a line"
                )
            continue
        yield b"".join([*pending, piece[:cut]])
        pending = [piece[cut:]]
    if rest := b"".join(pending):
        yield rest


def _from_utf_16(pieces: Iterable[bytes], path: str, encoding: str) -> Iterator[bytes]:
    try:
        for text in codecs.iterdecode(pieces, encoding):
            yield text.encode()
    except UnicodeError as error:
        raise InputFormatError(f"{path}: not {encoding} ({error}); see --encoding") from None
