"""Many examples decoded and judged at once, a few NumPy passes over all of them.

Serialized as the schema has them, all examples of a dataset are the same nested headers around values of other sizes.
So all are walked side by side, one cursor each. Whatever turns out to look different is parsed alone, by
`tfexample.parse_example`, and serialized again: if it then is what the schema says, it is judged like the others.
"""

import dataclasses
import functools
import zlib
from collections.abc import Callable, Mapping, Sequence

import google_crc32c
import numpy as np

from pipeline.dataset.schema import (
    CATEGORY_HEAD,
    EXAMPLE_FEATURES,
    HEAD_FEATURES,
    INDICES,
    KEY,
    SECOND_HEAD,
    SEGMENTS,
    Feature,
)
from pipeline.dataset.tfexample import parse_example, serialize_examples
from pipeline.tokenization.vocabulary import CLS_TOKEN, NUM_EDGE_TOKENS, PAD_TOKEN, SEP_TOKEN, UNK_TOKEN
from pipeline.verify.packed_ids import PackedIds
from pipeline.verify.record_scan import Frames

# No id of any vocabulary needs more bytes; with fewer than five, a value fits into an int32.
_MAX_VARINT_BYTES = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Expectation:
    """What is known of every example of a dataset.

    Attributes:
        vocab_size: ids are below.
        special_ids: [PAD], [UNK], [CLS], [SEP] → id; `None` where the vocabulary cannot be read.
        max_len: no example is longer.
        num_labels: head → number of labels.
    """

    vocab_size: int
    special_ids: Mapping[str, int] | None
    max_len: int
    num_labels: Mapping[str, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Columns:
    """What was found in some records, those left out that cannot be decoded.

    Attributes:
        rows: int64 [N], which of the records.
        lengths: int64 [N], ids of each.
        labels, second_labels: int64 [N].
        num_unknown: int64 [N], how many of the ids are [UNK].
        key_hashes, ids_hashes: uint64 [N]; equal keys have equal hashes, and so have equal ids. Not the other way.
        is_good: bool [N], whether nothing is wrong with it.
        faults: (row, what is wrong with it); one row may have several.
    """

    rows: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray
    second_labels: np.ndarray
    num_unknown: np.ndarray
    key_hashes: np.ndarray
    ids_hashes: np.ndarray
    is_good: np.ndarray
    faults: list[tuple[int, str]]


_ARRAYS = ("rows", "lengths", "labels", "second_labels", "num_unknown", "key_hashes", "ids_hashes", "is_good")
# Feature → where its values start and stop in the content, int64 [N] each.
_Places = Mapping[str, tuple[np.ndarray, np.ndarray]]


class _Cursor:
    """One position in each of many records, moved on together.

    Attributes:
        at: int64 [N], the positions.
        is_fine: bool [N], whether all that was read so far was as it should be.
    """

    def __init__(self, data: np.ndarray, starts: np.ndarray, stops: np.ndarray):
        self._data = data
        self._stops = stops
        self.at = starts.copy()
        self.is_fine = np.ones(len(starts), dtype=bool)

    def expect(self, literal: bytes) -> None:
        """Read bytes that are the same in every record."""
        for byte in literal:
            self.is_fine &= self._data.take(self.at, mode="clip") == byte
            self.at = self.at + 1

    def varint(self) -> np.ndarray:
        """Read one number."""
        byte = self._data.take(self.at, mode="clip").astype(np.int64)
        self.at = self.at + 1
        value = byte & 0x7F
        for index in range(1, _MAX_VARINT_BYTES):
            more = byte >= 0x80
            if not more.any():
                return value
            byte = np.where(more, self._data.take(self.at, mode="clip").astype(np.int64), 0)
            self.at = self.at + more
            value |= (byte & 0x7F) << (7 * index)
        self.is_fine &= byte < 0x80
        return value

    def size(self) -> np.ndarray:
        """Read the size of what follows; return where that ends, which must be inside the record."""
        size = self.varint()
        stops = self.at + size
        self.is_fine &= stops <= self._stops
        return stops

    def expect_at(self, at: np.ndarray, wanted: np.ndarray) -> None:
        """Require that some positions are those that are wanted."""
        self.is_fine &= at == wanted

    def values(self, feature: Feature) -> tuple[np.ndarray, np.ndarray]:
        """Read the map entry of one feature; return where its values start and stop."""
        name = feature.name.encode()
        self.expect(b"\x0a")
        entry = self.size()
        self.expect(b"\x0a" + bytes([len(name)]) + name + b"\x12")
        message = self.size()
        self.expect(b"\x0a" if feature.dtype == "bytes" else b"\x1a")
        values = self.size()
        self.expect(b"\x0a")
        stops = self.size()
        for stop in (entry, message, values):
            self.expect_at(stop, stops)
        starts, self.at = self.at, np.minimum(stops, self._stops)
        return starts, stops


def check_examples(frames: Frames, expected: Expectation) -> Columns:
    """Decode examples, and hold each against what is known of all."""
    places, is_fine = _walk(frames)
    if is_fine.all():
        return _judge(frames, places, np.arange(len(is_fine)), expected)
    fine = np.flatnonzero(is_fine)
    parts = [_judge(frames, {name: (a[fine], b[fine]) for name, (a, b) in places.items()}, fine, expected)]
    parts += (_check_alone(frames, row, expected) for row in np.flatnonzero(~is_fine).tolist())
    return _join(parts)


def _walk(frames: Frames) -> tuple[_Places, np.ndarray]:
    """Find where the values of every feature start and stop, and which records are serialized as ours are."""
    data = np.frombuffer(frames.content, dtype=np.uint8)
    cursor = _Cursor(data, frames.starts, frames.stops)
    cursor.expect(b"\x0a")
    cursor.expect_at(cursor.size(), frames.stops)
    places = {feature.name: cursor.values(feature) for feature in EXAMPLE_FEATURES}
    cursor.expect_at(cursor.at, frames.stops)
    for feature in EXAMPLE_FEATURES:
        if feature.dtype == "int64":
            cursor.is_fine &= _are_plain_numbers(data, *places[feature.name], feature)
    # A number may be written with more bytes than it needs, the last of which is zero then.
    padded = np.flatnonzero((data[1:] == 0) & (data[:-1] >= 0x80)) + 1
    rows = np.maximum(np.searchsorted(frames.starts, padded, side="right") - 1, 0)
    if len(rows):
        starts, stops = places[INDICES]
        cursor.is_fine[rows[(padded >= starts[rows]) & (padded < stops[rows])]] = False
    return places, cursor.is_fine


def _are_plain_numbers(data: np.ndarray, starts: np.ndarray, stops: np.ndarray, feature: Feature) -> np.ndarray:
    """Tell of which examples a feature is one number, or any, of at most four bytes each, the last one complete."""
    fine: np.ndarray = (stops > starts) & (data.take(stops - 1, mode="clip") < 0x80)
    if feature.shape == "scalar":
        num_bytes = np.minimum(stops - starts, _MAX_VARINT_BYTES)
        for index in range(_MAX_VARINT_BYTES - 1):
            is_last = num_bytes - 1 <= index
            fine &= is_last | (data.take(starts + index, mode="clip") >= 0x80)
        fine &= stops - starts <= _MAX_VARINT_BYTES
    return fine


def _check_alone(frames: Frames, row: int, expected: Expectation) -> Columns:
    """Check one record that is not serialized as ours are."""
    record = frames.content[int(frames.starts[row]) : int(frames.stops[row])]
    try:
        features = parse_example(record)
    except ValueError as error:
        return _undecodable(row, [f"not a tf.train.Example ({error})"])
    problems = [problem for feature in EXAMPLE_FEATURES if (problem := _problem_with(feature, features))]
    strange = sorted(set(features) - {feature.name for feature in EXAMPLE_FEATURES})
    problems += [f"unexpected feature {name!r}" for name in strange[:1]]
    if problems:
        return _undecodable(row, problems)
    columns = {
        feature.name: (np.array(features[feature.name]), np.array([0, len(features[feature.name])]))
        if feature.shape == "ragged"
        else features[feature.name]
        for feature in EXAMPLE_FEATURES
    }
    (content,) = serialize_examples(columns)
    stop = np.array([len(content)])
    again = Frames(content, frames.numbers[row : row + 1], frames.offsets[row : row + 1], np.array([0]), stop)
    places, _ = _walk(again)
    return _judge(again, places, np.array([row]), expected)


def _problem_with(feature: Feature, features: Mapping[str, Sequence[object]]) -> str | None:
    """Return what is wrong with one feature of a parsed example, apart from what its numbers mean."""
    values = features.get(feature.name, [])
    if any(isinstance(value, bytes) != (feature.dtype == "bytes") for value in values):
        return f"expected {feature.dtype} values of feature {feature.name!r}"
    if not values or (feature.shape == "scalar" and len(values) != 1):
        number = "1 value" if feature.shape == "scalar" else "at least 1 value"
        return f"expected {number} of feature {feature.name!r}, got {len(values)}"
    strange = [value for value in values if isinstance(value, int) and not 0 <= value < 1 << 7 * _MAX_VARINT_BYTES]
    return f"impossible number {strange[0]} in feature {feature.name!r}" if strange else None


def _undecodable(row: int, problems: Sequence[str]) -> Columns:
    none = np.empty(0, dtype=np.int64)
    hashes = none.astype(np.uint64)
    return Columns(
        rows=none,
        lengths=none,
        labels=none,
        second_labels=none,
        num_unknown=none,
        key_hashes=hashes,
        ids_hashes=hashes,
        is_good=none.astype(bool),
        faults=[(row, problem) for problem in problems],
    )


def _join(parts: Sequence[Columns]) -> Columns:
    order = np.argsort(np.concatenate([part.rows for part in parts]), kind="stable")
    arrays = {name: np.concatenate([getattr(part, name) for part in parts])[order] for name in _ARRAYS}
    return Columns(
        **arrays,
        faults=sorted((fault for part in parts for fault in part.faults), key=lambda fault: fault[0]),
    )


def _judge(frames: Frames, places: _Places, rows: np.ndarray, expected: Expectation) -> Columns:
    """Judge examples whose serialization is understood by what their values are."""
    content = frames.content
    data = np.frombuffer(content, dtype=np.uint8)

    def slices(name: str) -> list[bytes]:
        starts, stops = places[name]
        return [content[start:stop] for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)]

    packed = slices(INDICES)
    keys = slices(KEY)
    judge = _Judge(rows=rows, ids=PackedIds(packed), expected=expected)
    judge.ids()
    judge.segments(slices(SEGMENTS))
    labels = {head: _scalars(data, *places[feature]) for head, feature in HEAD_FEATURES.items()}
    for head, numbers in labels.items():
        judge.labels(head, numbers)
    judge.keys(keys)
    return Columns(
        rows=rows,
        lengths=judge.lengths,
        labels=labels[CATEGORY_HEAD],
        second_labels=labels[SECOND_HEAD],
        num_unknown=judge.num_unknown,
        key_hashes=hash_keys(keys),
        ids_hashes=_hashes(packed, zlib.adler32),
        is_good=judge.is_good,
        faults=sorted(judge.faults, key=lambda fault: fault[0]),
    )


def _scalars(data: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    return _Cursor(data, starts, stops).varint()


def hash_keys(keys: Sequence[bytes]) -> np.ndarray:
    """Return uint64 [N], the hashes of some keys."""
    return _hashes(keys, zlib.crc32)


def _hashes(contents: Sequence[bytes], other_fn: Callable[[bytes], int]) -> np.ndarray:
    """Return 64 bits for each content, of two checksums, which need a tenth of the time of any hash of that size."""
    high = np.fromiter(map(google_crc32c.value, contents), dtype=np.uint64, count=len(contents))
    low = np.fromiter(map(other_fn, contents), dtype=np.uint64, count=len(contents))
    return high << np.uint64(32) | low


class _Judge:
    """Collects what is wrong with some examples.

    Args:
        rows: int64 [N], how they are called.
        ids: of all of them.
        expected: what is known of all.

    Attributes:
        lengths: int64 [N].
        num_unknown: int64 [N], how many of the ids are [UNK].
        is_good: bool [N].
        faults: (row, what is wrong).
    """

    def __init__(self, *, rows: np.ndarray, ids: PackedIds, expected: Expectation):
        self._rows = rows
        self._ids = ids
        self._expected = expected
        self.lengths = ids.lengths
        self.num_unknown = np.zeros(len(rows), dtype=np.int64)
        self.is_good = np.ones(len(rows), dtype=bool)
        self.faults: list[tuple[int, str]] = []

    def _note(self, wrong: np.ndarray, what_fn: Callable[[int], str]) -> None:
        if wrong.any():
            self.is_good &= ~wrong
            self.faults += ((int(self._rows[at]), what_fn(at)) for at in np.flatnonzero(wrong).tolist())

    def ids(self) -> None:
        """Judge the ids."""
        expected, ids, lengths = self._expected, self._ids, self.lengths
        if not len(lengths):
            return
        self._note(lengths > expected.max_len, lambda at: f"{lengths[at]} ids, more than max_len {expected.max_len}")
        self._note(lengths <= NUM_EDGE_TOKENS, lambda at: f"no token of its own among {lengths[at]} ids")
        foreign = ids.not_below(expected.vocab_size)
        if foreign.any():
            self._note(
                ids.per_example(foreign) > 0,
                lambda at: (
                    f"expected ids in [0, {expected.vocab_size}), "
                    f"got {ids.value_at(int(ids.last_bytes(at, foreign)[0]))}"
                ),
            )
        special = expected.special_ids
        if special is None:
            return
        self.num_unknown = ids.per_example(ids.equal_to(special[UNK_TOKEN]))
        for token, place in ((CLS_TOKEN, 0), (SEP_TOKEN, -1), (PAD_TOKEN, None)):
            marked = ids.equal_to(special[token])
            in_place = np.zeros(len(lengths), dtype=bool)
            if place is not None:
                in_place = ids.ends(marked, special[token])[place]
                self._note(~in_place, functools.partial(self._describe_edge, token=token, place=place))
            if np.count_nonzero(marked) != np.count_nonzero(in_place):
                self._note(ids.per_example(marked) > in_place, _always(f"{token} stands inside the text"))

    def _describe_edge(self, at: int, *, token: str, place: int) -> str:
        special = self._expected.special_ids or {}
        which = "last" if place else "first"
        return f"expected {token} ({special[token]}) as its {which} id, got {self._ids.id_at(at, place)}"

    def segments(self, segments: list[bytes]) -> None:
        """Judge the segment ids, of which each is one byte, as long as all are zero."""
        lengths = self.lengths
        counts = np.fromiter(map(len, segments), dtype=np.int64, count=len(segments))
        joined = b"".join(segments)
        zeros = np.ones(len(segments), dtype=bool)
        if joined.count(0) != len(joined):
            zeros = np.array([content.count(0) == len(content) for content in segments])
            self._note(~zeros, lambda _: f"expected values of feature {SEGMENTS!r} that are all 0, got others")
        self._note(
            zeros & (counts != lengths),
            lambda at: f"expected {lengths[at]} values of feature {SEGMENTS!r}, as many as ids, got {counts[at]}",
        )

    def labels(self, head: str, numbers: np.ndarray) -> None:
        """Judge the labels of one head."""
        name, num_labels = HEAD_FEATURES[head], self._expected.num_labels[head]
        self._note(numbers >= num_labels, lambda at: f"expected a {name} in [0, {num_labels}), got {numbers[at]}")

    def keys(self, keys: list[bytes]) -> None:
        """Judge the keys."""
        sizes = np.fromiter(map(len, keys), dtype=np.int64, count=len(keys))
        self._note(sizes == 0, lambda at: "its key is empty")
        try:
            b"\n".join(keys).decode()
        except UnicodeDecodeError:
            self._note(np.array([not _is_utf_8(key) for key in keys]), lambda at: f"its key is not UTF-8: {keys[at]!r}")


def _always(what: str) -> Callable[[int], str]:
    return lambda _: what


def _is_utf_8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
