"""Files read once, from beginning to end, in blocks: summed up on the way, and inflated as far as damage allows."""

import hashlib
import zlib
from typing import IO

# As much as the processor's caches hold while it is looked at from all sides.
BLOCK_BYTES = 1 << 20
_GZIP_MAGIC = b"\x1f\x8b\x08"  # and the one compression method there is
_GZIP_HEADER_BYTES = 10
_GZIP_TRAILER_BYTES = 8
_BYTES_TO_TRY = 256


class HashedFile:
    """A file that is read once, from its beginning to its end, and summed up on the way.

    Attributes:
        num_bytes: read so far.
    """

    def __init__(self, stream: IO[bytes]):
        self._stream = stream
        self._hash = hashlib.sha256()
        self.num_bytes = 0

    def read(self, size: int) -> bytes:
        """Return the next bytes, none at the end."""
        data = self._stream.read(size)
        self._hash.update(data)
        self.num_bytes += len(data)
        return data

    def sha256(self) -> str:
        """Return the SHA-256 of what was read."""
        return self._hash.hexdigest()


class Inflated:
    """The content of a gzip file, as far as it can be had.

    Attributes:
        problem: what is wrong with the compressed stream, `None` where nothing is (known after the last `read`).
        is_cut: whether content is missing for that reason.
    """

    def __init__(self, file: HashedFile):
        self._file = file
        self._inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        self._crc = 0
        self._num_bytes = 0
        self._pending = b""
        self._started = False
        self._ended = False
        self.problem: str | None = None
        self.is_cut = False

    def read(self, size: int) -> bytes:
        """Return at least one and at most `size` of the next bytes, none at the end."""
        if not self._started:
            self._started = True
            self._pending = self._file.read(BLOCK_BYTES)
            if self._pending:
                self._pending = self._skip_header(self._pending)
            else:
                self._end("expected a gzip stream, got an empty file", is_cut=True)
        while not self._ended:
            before = self._inflate.copy()
            try:
                content = self._inflate.decompress(self._pending, size)
            except zlib.error as error:
                content = self._inflate_to_the_error(before)
                self._end(f"the gzip stream is damaged at about byte {self._position()} ({error})", is_cut=True)
            else:
                self._pending = self._inflate.unconsumed_tail
                if self._inflate.eof:
                    self._read_trailer(content)
                elif not content and not self._pending:
                    self._pending = self._file.read(BLOCK_BYTES)
                    if not self._pending:
                        self._end(f"the gzip stream ends early, after {self._file.num_bytes} bytes", is_cut=True)
            if content:
                self._crc = zlib.crc32(content, self._crc)
                self._num_bytes += len(content)
                return content
        return b""

    def _end(self, problem: str | None = None, *, is_cut: bool = False) -> None:
        self._ended = True
        self.problem = self.problem or problem
        self.is_cut = is_cut
        # The rest is read for the file's checksum and size alone.
        while self._file.read(BLOCK_BYTES):
            pass

    def _position(self) -> int:
        return self._file.num_bytes - len(self._pending)

    def _skip_header(self, data: bytes) -> bytes:
        """Return what follows the header; where it is damaged, what follows a header as we write it."""
        expected = _GZIP_MAGIC
        if data[: len(expected)] != expected or not _inflates(data[_header_bytes(data) :]):
            self.problem = "the header of the gzip stream is damaged"
            return data[_GZIP_HEADER_BYTES:]
        return data[_header_bytes(data) :]

    def _inflate_to_the_error(self, inflate: "zlib._Decompress") -> bytes:
        """Return what comes out before the error, which `decompress` throws away with it."""
        parts = []
        for position in range(len(self._pending)):
            try:
                parts.append(inflate.decompress(self._pending[position : position + 1]))
            except zlib.error:
                self._pending = self._pending[position:]
                break
        return b"".join(parts)

    def _read_trailer(self, content: bytes) -> None:
        rest = self._inflate.unused_data
        if len(rest) < _GZIP_TRAILER_BYTES:
            rest += self._file.read(BLOCK_BYTES)
        crc = zlib.crc32(content, self._crc)
        num_bytes = self._num_bytes + len(content)
        expected = crc.to_bytes(4, "little") + (num_bytes & 0xFFFFFFFF).to_bytes(4, "little")
        self._pending = b""
        if rest[:_GZIP_TRAILER_BYTES] != expected:
            self._end("the checksum or size at the end of the gzip stream does not match")
        elif len(rest) > _GZIP_TRAILER_BYTES or self._file.read(1):
            self._end("there is other data behind the end of the gzip stream")
        else:
            self._end()


def _header_bytes(data: bytes) -> int:
    """Return the size of a gzip header (RFC 1952, section 2.3), or of one without options where it makes no sense."""
    flags = data[3] if len(data) > 3 else 0
    position = _GZIP_HEADER_BYTES
    if flags & 4:
        position += 2 + int.from_bytes(data[position : position + 2], "little")
    for flag in (8, 16):
        if flags & flag:
            position = data.find(b"\0", position) + 1 or len(data)
    return position + (2 if flags & 2 else 0)


def _inflates(data: bytes) -> bool:
    """Tell whether some data looks like the beginning of a deflate stream."""
    try:
        zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, _BYTES_TO_TRY)
    except zlib.error:
        return False
    return True
