"""Where exactly a split is damaged: read its shards once more, without TensorFlow, and name file, record and offset.

TensorFlow says that a record is corrupt, or that an operation failed; it never says in which file. Whoever meets such
an error while reading asks here.
"""

import hashlib
import io

from pipeline import filesystem
from pipeline.dataset_info import DATASET_INFO_NAME, DatasetInfo, FileInfo, check_files, read_lengths
from pipeline.errors import CorruptShardError
from pipeline.schema import EXAMPLE_FEATURES, HEAD_FEATURES, INDICES
from pipeline.tfexample import parse_example, read_records

_REMEDY = "copy the shard back, or write the dataset again"


def find_damage(data_dir: str, info: DatasetInfo, split: str) -> CorruptShardError | None:
    """Return what is wrong with the first damaged file of a split, or None if every record is the one described.

    Args:
        data_dir: the dataset directory.
        info: its description.
        split: which split; all of it is read, and parsed in Python.
    """
    try:
        check_files(data_dir, info, split)
        lengths = read_lengths(data_dir, info, split).tolist()
        first = 0
        for shard in info.split(split).shards:
            _check_shard(data_dir, info, shard, lengths[first : first + shard.num_examples])
            first += shard.num_examples
    except CorruptShardError as error:
        return error
    return None


def _check_shard(data_dir: str, info: DatasetInfo, shard: FileInfo, lengths: list[int]) -> None:
    path = filesystem.join(str(data_dir), shard.name)
    content = filesystem.read_bytes(path)
    records = list(read_records(io.BytesIO(content), path))
    if len(records) != shard.num_examples:
        raise CorruptShardError(
            f"{path}: expected {shard.num_examples:,} records ({DATASET_INFO_NAME}), got {len(records):,}; {_REMEDY}",
            path=path,
        )
    for number, ((offset, record), length) in enumerate(zip(records, lengths, strict=True)):
        fault = _fault(record, length, info)
        if fault:
            raise CorruptShardError(
                f"{path}: record {number} at byte {offset}: {fault}; {_REMEDY}",
                path=path,
                record=number,
                offset=offset,
            )
    if hashlib.sha256(content).hexdigest() != shard.sha256:
        raise CorruptShardError(
            f"{path}: its checksum differs from {DATASET_INFO_NAME}, so these are other records; {_REMEDY}", path=path
        )


def _fault(record: bytes, length: int, info: DatasetInfo) -> str | None:
    """Return what is wrong with a record whose checksums are right."""
    try:
        features = parse_example(record)
    except ValueError as error:
        return f"not a tf.train.Example ({error})"
    for feature in EXAMPLE_FEATURES:
        expected = length if feature.shape == "ragged" else 1
        found = len(features.get(feature.name, []))
        if found != expected:
            return f"expected {expected} values of feature {feature.name!r}, got {found}"
    for head, name in HEAD_FEATURES.items():
        label = features[name][0]
        if not isinstance(label, int) or not 0 <= label < len(info.labels[head]):
            return f"expected a {name!r} in [0, {len(info.labels[head])}), got {label!r}"
    if not all(isinstance(index, int) and 0 <= index < info.vocab_size for index in features[INDICES]):
        return f"expected ids in [0, {info.vocab_size}), got {max(features[INDICES])!r}"
    return None
