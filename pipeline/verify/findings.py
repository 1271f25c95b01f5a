"""What reading a whole dataset back brought to light."""

import dataclasses

from pipeline.dataset.info import DatasetInfo
from pipeline.verify.record_scan import Fault
from pipeline.verify.shard_check import ShardFindings


@dataclasses.dataclass(kw_only=True)
class Findings:
    """What a dataset turned out to hold.

    Attributes:
        data_dir: its directory.
        info: its description, as far as it makes sense.
        is_described: whether description and vocabulary are those that were written.
        faults: the first of them.
        num_faults: all of them.
        shards: shard → what it holds.
        rejections: documents that were not used, as they are listed.
        repeated: (shard, record) of examples whose key stands before.
        repeated_rejections: places in `rejections` of those whose key stands before.
        num_in_several_splits: sequences of ids that examples of more than one split have.
        max_faults: how many faults to describe.
    """

    data_dir: str
    max_faults: int
    info: DatasetInfo | None = None
    is_described: bool = False
    faults: list[Fault] = dataclasses.field(default_factory=list)
    num_faults: int = 0
    shards: dict[str, ShardFindings] = dataclasses.field(default_factory=dict)
    rejections: list[dict[str, str]] = dataclasses.field(default_factory=list)
    repeated: set[tuple[str, int]] = dataclasses.field(default_factory=set)
    repeated_rejections: set[int] = dataclasses.field(default_factory=set)
    num_in_several_splits: int = 0

    @property
    def num_bytes(self) -> int:
        """Size of all shards."""
        return sum(shard.num_bytes for shard in self.shards.values())

    @property
    def num_good(self) -> int:
        """Examples with which nothing is wrong."""
        return sum(int(shard.is_good.sum()) for shard in self.shards.values()) - len(self.repeated)

    def note(self, *faults: Fault) -> None:
        """Add faults; beyond `max_faults` they are only counted."""
        self.num_faults += len(faults)
        self.faults += faults[: max(self.max_faults - len(self.faults), 0)]
