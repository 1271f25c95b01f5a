"""What only all shards together can tell: keys that stand twice, and texts that stand in two splits.

That no text stands in two splits is told from the ids, since the texts themselves are not stored. Texts that differ
only in what the tokenizer does not see (case, accents, white space, unknown characters) or cuts off (all beyond
`max_len`) have the same ids, and so count as the same text; `dataset.json` says how many such there were when it was
written.

Hashes find the few examples that may be equal; those are read again and compared.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from pipeline.dataset.info import DatasetInfo
from pipeline.dataset.schema import INDICES, KEY
from pipeline.dataset.tfexample import parse_example
from pipeline.job.output_dir import REJECTED_NAME
from pipeline.job.publish import values_in_several
from pipeline.verify import dataset_check
from pipeline.verify.example_check import hash_keys
from pipeline.verify.findings import Findings
from pipeline.verify.record_scan import Fault
from pipeline.verify.shard_check import ShardReader


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where an example stands."""

    shard: str
    record: int
    offset: int

    def __str__(self) -> str:
        return f"{self.shard}, record {self.record}"


def _fetch(findings: Findings, name: str, wanted: np.ndarray) -> dict[int, dict[str, Any]]:
    """Return offset → features of some examples of a shard, given as marks on its rows."""
    shard = findings.shards[name]
    payloads = ShardReader(findings.data_dir, name).payloads_at(set(shard.offsets[wanted].tolist()))
    return {offset: parse_example(payload) for offset, payload in payloads}


def _places(findings: Findings, name: str, column: str, hashes: np.ndarray) -> Iterator[tuple[_Place, dict[str, Any]]]:
    """Yield the examples of a shard whose hash is one of some, with their features."""
    shard = findings.shards[name]
    wanted = np.isin(getattr(shard, column), hashes)
    if not wanted.any():
        return
    features = _fetch(findings, name, wanted)
    for number, offset in zip(shard.numbers[wanted].tolist(), shard.offsets[wanted].tolist(), strict=True):
        yield _Place(name, number, offset), features[offset]


def check_keys(findings: Findings) -> Iterator[Fault]:
    """Find keys that stand twice."""
    rejected = [rejection["key"].encode("utf-8", "backslashreplace") for rejection in findings.rejections]
    hashes = [shard.key_hashes for shard in findings.shards.values()]
    values, counts = np.unique(
        np.concatenate([np.empty(0, np.uint64), *hashes, hash_keys(rejected)]), return_counts=True
    )
    repeated = values[counts > 1]
    if not len(repeated):
        return
    first: dict[bytes, str] = {}
    for name in findings.shards:
        for place, features in _places(findings, name, "key_hashes", repeated):
            key = features[KEY][0]
            if key in first:
                findings.repeated.add((name, place.record))
                what = f"its key {key.decode(errors='replace')!r} stands also in {first[key]}"
                yield Fault(file=name, what=what, record=place.record, offset=place.offset)
            first.setdefault(key, str(place))
    for number, key in enumerate(rejected):
        if key in first:
            findings.repeated_rejections.add(number)
            what = f"record {number}: its key {key.decode(errors='replace')!r} stands also in {first[key]}"
            yield Fault(file=REJECTED_NAME, what=what)
        first.setdefault(key, f"{REJECTED_NAME}, record {number}")


def check_splits(findings: Findings, info: DatasetInfo) -> Iterator[Fault]:
    """Find examples of different splits with the same ids, beyond those that were known when it was written."""
    splits = {shard.name: index for index, split in enumerate(info.splits.values()) for shard in split.shards}
    hashes: list[list[np.ndarray]] = [[np.empty(0, np.uint64)] for _ in info.splits]
    for name, shard in findings.shards.items():
        hashes[splits[name]].append(shard.ids_hashes)
    shared = values_in_several(map(np.concatenate, hashes))
    known = info.documents.in_several_splits or 0
    findings.num_in_several_splits = len(shared)
    if len(shared) == known:
        return
    places: dict[tuple[int, ...], list[_Place]] = {}
    for name in findings.shards:
        for place, features in _places(findings, name, "ids_hashes", shared):
            places.setdefault(tuple(features[INDICES]), []).append(place)
    in_several = [same for same in places.values() if len({splits[place.shard] for place in same}) > 1]
    findings.num_in_several_splits = len(in_several)
    if len(in_several) < known and not any(shard.num_faults for shard in findings.shards.values()):
        what = f"expected {known} texts that stand in several splits, got {len(in_several)}"
        yield dataset_check.fault_of_info(what)
    if len(in_several) <= known:
        return
    beyond = f" ({len(in_several)} such texts, {known} known)" if known else ""
    for first, *others in in_several:
        for place in others:
            if splits[place.shard] != splits[first.shard]:
                what = f"its text stands also in another split, {first}{beyond}"
                yield Fault(file=place.shard, what=what, record=place.record, offset=place.offset)
