"""One split of a dataset directory, opened for reading: its description and the length of every example."""

import dataclasses

import numpy as np

from pipeline import filesystem
from pipeline.dataset.files import check_files, read_lengths
from pipeline.dataset.info import DatasetInfo, read_dataset_info


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class StoredSplit:
    """A split, ready for reading.

    Attributes:
        data_dir: the dataset directory.
        name: the split's name.
        info: the dataset's description.
        lengths: uint16 [num_examples], each example's length, in stored order.
    """

    data_dir: str
    name: str
    info: DatasetInfo
    lengths: np.ndarray

    @property
    def paths(self) -> list[str]:
        """Every shard, in stored order."""
        return [filesystem.join(self.data_dir, shard.name) for shard in self.info.split(self.name).shards]

    @property
    def shard_sizes(self) -> list[int]:
        """Examples per shard."""
        return [shard.num_examples for shard in self.info.split(self.name).shards]

    @property
    def length_histogram(self) -> list[int]:
        """Examples per length, [max_len + 1]."""
        return self.info.split(self.name).length_histogram


def open_split(data_dir: str, name: str) -> StoredSplit:
    """Open a split, with all checks that do not read shards.

    Raises:
        MissingInputError: there is no complete dataset.
        SchemaMismatchError: it was written under another format or schema.
        EmptySplitError: there is no such split, or it is empty.
        CorruptShardError: a file is missing or has another size, or the lengths file is damaged.
    """
    data_dir = str(data_dir)
    info = read_dataset_info(data_dir)
    check_files(data_dir, info, name)
    return StoredSplit(data_dir=data_dir, name=name, info=info, lengths=read_lengths(data_dir, info.split(name)))
