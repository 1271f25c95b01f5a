"""Every record of a shard, and everything between them that is none: the framing, read on past any damage.

`tfexample.read_records` stops at the first damaged record, which is right for a reader. Whoever wants to know all that
is wrong, and to save what is left, needs the next record after the damage as well. Where a record's length cannot be
trusted, the next record is the next place at which twelve bytes are a length with its right checksum.
"""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import google_crc32c
import numpy as np

from pipeline.dataset.tfexample import (
    CRC_MASK_DELTA,
    HEADER_BYTES,
    MAX_RECORD_BYTES,
    RECORD_OVERHEAD_BYTES,
    masked_crc32c,
)
from pipeline.verify.inflate import BLOCK_BYTES, HashedFile, Inflated

_CRC_BYTES = 4
# A gap larger than this is not held against the checksum of one record.
_MAX_GAP_BYTES = 16 << 20
_KNOWN_HEADERS = 1 << 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fault:
    """One thing that is wrong with a dataset.

    Attributes:
        file: name inside the dataset directory.
        what: what is wrong, for people.
        record: number of the record in the file, from 0; `None` where the fault is the file's.
        offset: byte offset of that record (in the uncompressed content); `None` where the fault is the file's.
    """

    file: str
    what: str
    record: int | None = None
    offset: int | None = None

    @property
    def place(self) -> str:
        """Where in the file, if that is known, in words."""
        return "" if self.record is None else f": record {self.record} at byte {self.offset}"

    def __str__(self) -> str:
        return f"{self.file}{self.place}: {self.what}"


class Frames(NamedTuple):
    """Consecutive intact records.

    Attributes:
        content: what holds them.
        numbers: int64 [N], of the records in the shard.
        offsets: int64 [N], of the records in the (uncompressed) shard.
        starts: int64 [N], of their payloads in `content`.
        stops: int64 [N], the payloads' ends in `content`.
    """

    content: bytes
    numbers: np.ndarray
    offsets: np.ndarray
    starts: np.ndarray
    stops: np.ndarray

    def payloads(self) -> list[bytes]:
        """Return the records' payloads."""
        return [self.content[start:stop] for start, stop in zip(self.starts.tolist(), self.stops.tolist(), strict=True)]


class RecordScanner:
    """Reads a shard's records in blocks, and goes on after damage.

    Args:
        source: the shard's content, uncompressed.
        name: of the shard, for faults.

    Attributes:
        num_records: found so far, damaged ones included; a gap of unknown content counts as one.
        faults: of the framing, so far.
        gaps: numbers of records that may in truth have been several.
    """

    def __init__(self, source: HashedFile | Inflated, name: str):
        self._source = source
        self._name = name
        self._content = b""
        self._base = 0  # the shard's offset of content[0]
        self._at = 0  # where to go on in the content
        self._known: dict[bytes, int] = {}
        self.num_records = 0
        self.faults: list[Fault] = []
        self.gaps: list[int] = []

    def blocks(self) -> Iterator[Frames]:
        """Yield all intact records, in order."""
        while True:
            frames = self._read_frames()
            if len(frames.numbers):
                yield frames
            if self._fill():
                continue
            if not self._content:
                return
            rescued = self._pass_damage()
            if rescued is not None:
                yield rescued

    def _fill(self) -> bool:
        """Forget what was read, and read on until the next record is whole.

        Returns:
            Whether it is; if not, the content ends, or begins with something that is no record.
        """
        self._content = self._content[self._at :]
        self._base += self._at
        self._at = 0
        parts, num_bytes, wanted = [self._content], len(self._content), HEADER_BYTES
        while True:
            if num_bytes >= HEADER_BYTES and wanted == HEADER_BYTES:
                size = _record_size(b"".join(parts)[:HEADER_BYTES])
                wanted = 0 if size is None else size + RECORD_OVERHEAD_BYTES
            if num_bytes >= wanted:
                break
            part = self._source.read(max(BLOCK_BYTES, min(wanted - num_bytes, _MAX_GAP_BYTES)))
            if not part:
                break
            parts.append(part)
            num_bytes += len(part)
        self._content = b"".join(parts)
        return num_bytes >= wanted > 0

    def _read_frames(self) -> Frames:
        """Read records up to the first that is cut short or has a damaged header, and note those with other damage."""
        content, position, known, crc32c = self._content, self._at, self._known, google_crc32c.value
        starts: list[int] = []
        crcs: list[int] = []
        last = len(content) - RECORD_OVERHEAD_BYTES
        while position <= last:
            start = position + HEADER_BYTES
            header = content[position:start]
            size = known.get(header)
            if size is None:
                size = _record_size(header)
                if size is None:
                    break
                if len(known) < _KNOWN_HEADERS:
                    known[header] = size
            stop = start + size
            if stop + _CRC_BYTES > len(content):
                break
            crcs.append(crc32c(content[start:stop]))
            starts.append(start)
            position = stop + _CRC_BYTES
        self._at = position
        begin = np.array(starts, dtype=np.int64)
        end = np.append(begin[1:] - HEADER_BYTES, position)[: len(begin)] - _CRC_BYTES
        numbers = np.arange(self.num_records, self.num_records + len(begin))
        offsets = begin - HEADER_BYTES + self._base
        self.num_records += len(begin)
        good = _read_uint32(content, end) == _mask(np.array(crcs, dtype=np.uint32))
        for row in np.flatnonzero(~good).tolist():
            what = "the checksum of the record's content does not match"
            if row == len(begin) - 1 and self._next_header_is_damaged():
                # Bytes that were added or lost inside a record move all that follows: look for the next one inside.
                found = self._find_header(int(begin[row]), len(content))
                if found is not None:
                    what += ", and bytes were added or lost"
                    self._at = found
            self.faults.append(Fault(file=self._name, what=what, record=int(numbers[row]), offset=int(offsets[row])))
        return Frames(content, numbers[good], offsets[good], begin[good], end[good])

    def _next_header_is_damaged(self) -> bool:
        header = self._content[self._at : self._at + HEADER_BYTES]
        return len(header) == HEADER_BYTES and _record_size(header) is None

    def _pass_damage(self) -> Frames | None:
        """Note what cannot be a record at the start of the content, and go on to the next one.

        Returns:
            The record itself, if nothing but its header was damaged.
        """
        is_whole = len(self._content) >= HEADER_BYTES
        size = _record_size(self._content[:HEADER_BYTES]) if is_whole else None
        offset = self._base
        passed: list[bytes] = []
        num_bytes = 0
        found = self._find_header(1, len(self._content))
        while found is None and (more := self._source.read(BLOCK_BYTES)):
            # The last bytes may be the beginning of a header.
            keep = max(len(self._content) - HEADER_BYTES + 1, 1)
            if num_bytes <= _MAX_GAP_BYTES:
                passed.append(self._content[:keep])
            num_bytes += keep
            self._content = self._content[keep:] + more
            found = self._find_header(0, len(self._content))
        self._at = len(self._content) if found is None else found
        passed.append(self._content[: self._at])
        self._base += num_bytes
        num_bytes += self._at
        if size is None and num_bytes == sum(map(len, passed)):
            rescued = self._rescue(b"".join(passed), offset)
            if rescued is not None:
                return rescued
        if size is not None:
            place = "the file ends inside the record" if found is None else "bytes were lost inside the record"
            what = f"{place} ({num_bytes - HEADER_BYTES} of {size + _CRC_BYTES} bytes)"
        elif not is_whole:
            what = f"the file ends inside the record's header ({num_bytes} of {HEADER_BYTES} bytes)"
        else:
            what = f"the checksum of the record's length does not match; no record can be read in {num_bytes} bytes"
            self.gaps.append(self.num_records)
        self.faults.append(Fault(file=self._name, what=what, record=self.num_records, offset=offset))
        self.num_records += 1
        return None

    def _rescue(self, record: bytes, offset: int) -> Frames | None:
        """Return the one record that a gap holds, if its content has the right checksum."""
        size = len(record) - RECORD_OVERHEAD_BYTES
        if size < 0:
            return None
        stop = HEADER_BYTES + size
        if masked_crc32c(record[HEADER_BYTES:stop]) != int.from_bytes(record[stop:], "little"):
            return None
        if int.from_bytes(record[:8], "little") == size:
            what = "the checksum of the record's length is damaged"
        else:
            what = f"the record's length is damaged: it says {int.from_bytes(record[:8], 'little')}, but it is {size}"
        self.faults.append(Fault(file=self._name, what=what, record=self.num_records, offset=offset))
        numbers = np.array([self.num_records], dtype=np.int64)
        self.num_records += 1
        return Frames(record, numbers, np.array([offset]), np.array([HEADER_BYTES]), np.array([stop]))

    def _find_header(self, start: int, stop: int) -> int | None:
        """Return the first place in part of the content where a header with a right checksum stands."""
        content = self._content[start:stop]
        data = np.frombuffer(content, dtype=np.uint8)
        if len(data) < HEADER_BYTES:
            return None
        # The upper half of every length is zero.
        zero = data == 0
        last = len(data) - HEADER_BYTES + 1
        upper = zero[4 : 4 + last] & zero[5 : 5 + last] & zero[6 : 6 + last] & zero[7 : 7 + last]
        for place in np.flatnonzero(upper).tolist():
            if _record_size(content[place : place + HEADER_BYTES]) is not None:
                return start + int(place)
        return None


def _record_size(header: bytes) -> int | None:
    """Return the length a header gives, `None` if its checksum does not match or no example is so large."""
    size = int.from_bytes(header[:8], "little")
    if size > MAX_RECORD_BYTES or masked_crc32c(header[:8]) != int.from_bytes(header[8:], "little"):
        return None
    return size


def _mask(crcs: np.ndarray) -> np.ndarray:
    return ((crcs >> np.uint32(15)) | (crcs << np.uint32(17))) + np.uint32(CRC_MASK_DELTA)


def _read_uint32(content: bytes, positions: np.ndarray) -> np.ndarray:
    data = np.frombuffer(content, dtype=np.uint8)
    parts = [data[positions + index].astype(np.uint32) << np.uint32(8 * index) for index in range(_CRC_BYTES)]
    joined: np.ndarray = parts[0] | parts[1] | parts[2] | parts[3]
    return joined
