"""Where a split is damaged: TensorFlow reports a corrupt record, but not its file."""

from pipeline import filesystem
from pipeline.dataset.files import check_files, read_lengths
from pipeline.dataset.info import DatasetInfo
from pipeline.errors import CorruptShardError
from pipeline.verify.dataset import divide_lengths
from pipeline.verify.shards import Limits, check_shard


def find_damage(data_dir: str, info: DatasetInfo, split: str) -> CorruptShardError | None:
    """Return the first fault of a split, `None` if every record is the one that was written.

    Args:
        data_dir: the dataset directory.
        info: its description.
        split: which split; it is read up to the end of the first damaged shard.
    """
    try:
        check_files(data_dir, info, split)
        lengths = read_lengths(data_dir, info.split(split))
    except CorruptShardError as error:
        return error
    limits = Limits.of(info, special_ids={})
    split_info = info.split(split)
    for shard, own in zip(split_info.shards, divide_lengths(lengths, split_info), strict=True):
        for fault in check_shard(shard, own, data_dir=data_dir, limits=limits).faults:
            path = filesystem.join(data_dir, fault.file)
            return CorruptShardError(fault.what, path=path, record=fault.record, offset=fault.offset)
    return None
