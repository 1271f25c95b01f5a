"""One shard read from its first byte to its last: what is wrong with it, and what else there is to know of it."""

import dataclasses
from collections.abc import Callable, Collection, Iterator

import numpy as np

from pipeline import filesystem
from pipeline.dataset.info import DATASET_INFO_NAME, FileInfo
from pipeline.dataset.schema import INDICES
from pipeline.errors import MissingInputError
from pipeline.verify.example_check import Columns, Expectation, check_examples
from pipeline.verify.inflate import HashedFile, Inflated
from pipeline.verify.record_scan import Fault, Frames, RecordScanner


@dataclasses.dataclass(kw_only=True)
class ShardFindings:
    """What one shard turned out to hold.

    Attributes:
        name: of the shard.
        faults: the first of them.
        num_faults: all of them.
        num_bytes: of the file.
        numbers, offsets: int64 [N], of the records that can be decoded.
        lengths: int64 [N], ids of each.
        key_hashes, ids_hashes: uint64 [N], see `example_check.Columns`.
        is_good: bool [N], whether nothing is wrong with it.
        unknown: int64 [N], how many of the ids are [UNK].
        labels: int64 [N, 2], category and second label of each.
    """

    name: str
    faults: list[Fault] = dataclasses.field(default_factory=list)
    num_faults: int = 0
    num_bytes: int = 0
    numbers: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray
    key_hashes: np.ndarray
    ids_hashes: np.ndarray
    is_good: np.ndarray
    unknown: np.ndarray
    labels: np.ndarray

    def note(self, fault: Fault, max_faults: int) -> None:
        """Add a fault; beyond `max_faults` they are only counted."""
        self.num_faults += 1
        if len(self.faults) < max_faults:
            self.faults.append(fault)


class ShardReader:
    """Reads one shard with all its damage.

    Args:
        data_dir: the dataset directory.
        name: of the shard.
        on_progress: called with the number of bytes read since the last call.

    Attributes:
        faults: of the framing.
        num_records, gaps: see `RecordScanner`.
        sha256: of the file; `None` if not all of it could be read.
        num_bytes: read.
    """

    def __init__(self, data_dir: str, name: str, on_progress: Callable[[int], None] = lambda _: None):
        self._path = filesystem.join(data_dir, name)
        self._name = name
        self._on_progress = on_progress
        self.faults: list[Fault] = []
        self.num_records = 0
        self.gaps: list[int] = []
        self.sha256: str | None = None
        self.num_bytes = 0

    def blocks(self) -> Iterator[Frames]:
        """Yield all records with right checksums; afterwards the attributes say what else there is."""
        try:
            stream = filesystem.open_for_reading(self._path)
        except MissingInputError:
            self.faults.append(Fault(file=self._name, what=f"listed in {DATASET_INFO_NAME} but not there, or closed"))
            return
        with stream:
            file = HashedFile(stream)
            source = Inflated(file) if self._name.endswith(".gz") else file
            scanner = RecordScanner(source, self._name)
            try:
                for frames in scanner.blocks():
                    yield frames
                    self._advance(file.num_bytes)
                self._advance(file.num_bytes)
                self.sha256 = file.sha256()
            except OSError as error:
                what = f"cannot be read beyond byte {file.num_bytes}: {error.strerror}"
                self.faults.append(Fault(file=self._name, what=what))
        self.num_records, self.gaps = scanner.num_records, scanner.gaps
        self.faults = [*scanner.faults, *self.faults]
        if isinstance(source, Inflated) and source.problem:
            self._add_gzip_problem(source)

    def payloads_at(self, offsets: Collection[int]) -> Iterator[tuple[int, bytes]]:
        """Yield (offset, payload) of the records that stand at some offsets, in stored order."""
        for frames in self.blocks():
            for row, offset in enumerate(frames.offsets.tolist()):
                if offset in offsets:
                    yield offset, frames.content[int(frames.starts[row]) : int(frames.stops[row])]

    def _advance(self, num_bytes: int) -> None:
        self._on_progress(num_bytes - self.num_bytes)
        self.num_bytes = num_bytes

    def _add_gzip_problem(self, source: Inflated) -> None:
        """Say where the compressed stream is damaged, in place of where its content therefore ends."""
        record, offset = None, None
        if source.is_cut and self.faults and self.faults[-1].record == self.num_records - 1:
            cut = self.faults[-1]
            if "the file ends inside" in cut.what:
                record, offset = cut.record, cut.offset
                self.faults.pop()
        what = f"{source.problem}; nothing after it can be read" if source.is_cut else str(source.problem)
        self.faults.append(Fault(file=self._name, what=what, record=record, offset=offset))


def check_shard(
    data_dir: str,
    shard: FileInfo,
    *,
    expected: Expectation,
    lengths: np.ndarray | None,
    max_faults: int,
    on_progress: Callable[[int], None] = lambda _: None,
) -> ShardFindings:
    """Check everything about a shard that can be told without the other shards.

    Args:
        data_dir: the dataset directory.
        shard: its description.
        expected: what is known of every example.
        lengths: what the lengths file says of its examples; `None` where it cannot be read.
        max_faults: how many faults to describe; all are counted.
        on_progress: called with the number of bytes read since the last call.
    """
    reader = ShardReader(data_dir, shard.name, on_progress)
    parts: list[tuple[Frames, Columns]] = []
    for frames in reader.blocks():
        columns = check_examples(frames, expected)
        # The content itself is not needed any more.
        parts.append((frames._replace(content=b""), columns))
    findings = _gather(shard.name, parts)
    findings.num_bytes = reader.num_bytes
    shift = _shift_after_gap(reader, shard)
    faults = [*reader.faults]
    for frames, columns in parts:
        numbers, offsets = frames.numbers.tolist(), frames.offsets.tolist()
        faults += (
            Fault(file=shard.name, what=what, record=numbers[r], offset=offsets[r]) for r, what in columns.faults
        )
    faults += _misfit_lengths(findings, shard, lengths, shift, reader)
    findings.numbers = shift(findings.numbers)
    faults = [_renumber(fault, shift, reader.gaps) for fault in faults]
    faults.sort(key=lambda fault: (fault.offset is None, fault.offset))
    if reader.sha256 is not None:
        faults += _misfit_file(reader, shard, is_intact=not faults)
    for fault in faults:
        findings.note(fault, max_faults)
    return findings


def _renumber(fault: Fault, shift: Callable[[np.ndarray], np.ndarray], gaps: list[int]) -> Fault:
    if fault.record is None:
        return fault
    what = fault.what
    following = int(shift(np.array(fault.record + 1)))
    if fault.record in gaps and following > fault.record + 1:
        what += f": records {fault.record} to {following - 1}"
    return dataclasses.replace(fault, what=what, record=int(shift(np.array(fault.record))))


def _gather(name: str, parts: list[tuple[Frames, Columns]]) -> ShardFindings:
    def column(values: list[np.ndarray], dtype: type) -> np.ndarray:
        return np.concatenate([np.empty(0, dtype=dtype), *values])

    return ShardFindings(
        name=name,
        numbers=column([frames.numbers[columns.rows] for frames, columns in parts], np.int64),
        offsets=column([frames.offsets[columns.rows] for frames, columns in parts], np.int64),
        lengths=column([columns.lengths for _, columns in parts], np.int64),
        key_hashes=column([columns.key_hashes for _, columns in parts], np.uint64),
        ids_hashes=column([columns.ids_hashes for _, columns in parts], np.uint64),
        is_good=column([columns.is_good for _, columns in parts], np.bool_),
        unknown=column([columns.num_unknown for _, columns in parts], np.int64),
        labels=np.stack(
            [
                column([columns.labels for _, columns in parts], np.int64),
                column([columns.second_labels for _, columns in parts], np.int64),
            ],
            axis=1,
        ),
    )


def _shift_after_gap(reader: ShardReader, shard: FileInfo) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that mends record numbers: a gap counts as one record, but may have been several, or none."""
    missing = shard.num_examples - reader.num_records
    if len(reader.gaps) != 1 or missing < -1 or reader.sha256 is None:
        return lambda numbers: numbers
    gap = reader.gaps[0]
    return lambda numbers: numbers + missing * (numbers > gap)


def _misfit_lengths(
    findings: ShardFindings,
    shard: FileInfo,
    lengths: np.ndarray | None,
    shift: Callable[[np.ndarray], np.ndarray],
    reader: ShardReader,
) -> Iterator[Fault]:
    """Hold the examples' lengths against the lengths file, as far as it is known which is whose."""
    numbers = shift(findings.numbers)
    are_known = reader.num_records == shard.num_examples or not np.array_equal(numbers, findings.numbers)
    if lengths is None or len(lengths) != shard.num_examples or not are_known:
        return
    stored = lengths[numbers]
    for row in np.flatnonzero(stored != findings.lengths).tolist():
        what = f"{findings.lengths[row]} values of feature {INDICES!r}, but the lengths file says {stored[row]}"
        yield Fault(file=shard.name, what=what, record=int(findings.numbers[row]), offset=int(findings.offsets[row]))


def _misfit_file(reader: ShardReader, shard: FileInfo, *, is_intact: bool) -> Iterator[Fault]:
    """Hold a shard as a whole against its description."""
    if reader.num_bytes != shard.num_bytes:
        yield Fault(file=shard.name, what=f"expected {shard.num_bytes} bytes, got {reader.num_bytes}")
    if is_intact and reader.num_records != shard.num_examples:
        what = f"expected {shard.num_examples} records ({DATASET_INFO_NAME}), got {reader.num_records}"
        yield Fault(file=shard.name, what=what)
    elif is_intact and reader.sha256 != shard.sha256:
        what = f"its checksum differs from {DATASET_INFO_NAME}, though every record is intact: it is another file"
        yield Fault(file=shard.name, what=what)
