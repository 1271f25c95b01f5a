"""Where exactly a split is damaged: read its shards once more, without TensorFlow, and name file, record and offset.

TensorFlow says that a record is corrupt, or that an operation failed; it never says in which file. Whoever meets such
an error while reading asks here.
"""

from pipeline import filesystem
from pipeline.dataset.files import check_files, read_lengths
from pipeline.dataset.info import DatasetInfo
from pipeline.errors import CorruptShardError
from pipeline.verify.example_check import Expectation
from pipeline.verify.shard_check import check_shard

_REMEDY = "copy the shard back, or write the dataset again"


def find_damage(data_dir: str, info: DatasetInfo, split: str) -> CorruptShardError | None:
    """Return what is wrong with the first damaged file of a split, or None if every record is the one described.

    Args:
        data_dir: the dataset directory.
        info: its description.
        split: which split; all of it is read.
    """
    try:
        check_files(data_dir, info, split)
        lengths = read_lengths(data_dir, info, split)
    except CorruptShardError as error:
        return error
    expected = Expectation(
        vocab_size=info.vocab_size,
        special_ids=None,
        max_len=info.max_len,
        num_labels={head: len(label_map) for head, label_map in info.labels.items()},
    )
    first = 0
    for shard in info.split(split).shards:
        own = lengths[first : first + shard.num_examples]
        first += shard.num_examples
        for fault in check_shard(data_dir, shard, expected=expected, lengths=own, max_faults=1).faults:
            path = filesystem.join(data_dir, shard.name)
            return CorruptShardError(
                f"{path}{fault.place}: {fault.what}; {_REMEDY}", path=path, record=fault.record, offset=fault.offset
            )
    return None
