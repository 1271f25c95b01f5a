"""A whole dataset: every shard, read by all cores, then what only all shards together can tell.

Texts are not stored, so two are the same if their ids are: those that differ only in what the tokenizer drops (case,
accents, white space, unknown characters) or cuts off (all beyond `max_len`) count as one. `dataset.json` says how many
such texts were in several splits when it was written.
"""

import concurrent.futures
import dataclasses
import functools
import itertools
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from pipeline.command_line import num_cores
from pipeline.corpus.documents import Rejection
from pipeline.dataset.files import LENGTHS_DTYPE, REJECTED_NAME
from pipeline.dataset.info import DATASET_INFO_NAME, DatasetInfo, FileInfo, SplitInfo, read_dataset_info
from pipeline.dataset.schema import LABEL, SECOND_LABEL
from pipeline.errors import SchemaMismatchError, WorkerDiedError
from pipeline.tokenization.vocabulary import SPECIAL_TOKENS
from pipeline.verify.files import (
    check_description,
    check_listing,
    fault_of_info,
    read_rejections,
    read_split_lengths,
    read_vocab,
)
from pipeline.verify.shards import EXAMPLE_DTYPE, Fault, Limits, ShardFindings, check_shard, digest

# Starting processes takes as long as checking about this much in one.
_BYTES_WORTH_PROCESSES = 16 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Findings:
    """The result of reading a dataset.

    Attributes:
        faults: everything that is wrong.
        num_shards, num_bytes: read.
        num_examples: intact ones.
        num_expected: examples that `dataset.json` lists.
        num_in_several_splits: sequences of ids that examples of more than one split have.
    """

    faults: list[Fault]
    num_shards: int = 0
    num_bytes: int = 0
    num_examples: int = 0
    num_expected: int = 0
    num_in_several_splits: int = 0


def verify(
    data_dir: str,
    *,
    num_processes: int | None = None,
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> Findings:
    """Check a dataset.

    Args:
        data_dir: the dataset directory, local or remote.
        num_processes: how many read shards; `None` takes all cores where there is enough to do for them.
        on_progress: called after each shard with its size and that of all shards, in bytes.

    Raises:
        MissingInputError: there is no such directory, or no `dataset.json` in it.
        WorkerDiedError: a process was killed.
    """
    try:
        info = read_dataset_info(data_dir)
    except SchemaMismatchError as error:
        # Nothing else can be compared with a description that is wrong.
        return Findings(faults=[fault_of_info(str(error).partition(f"{DATASET_INFO_NAME}: ")[2])])
    vocab, faults = read_vocab(data_dir, info)
    special_ids = {token: vocab[token] for token in SPECIAL_TOKENS if vocab}
    rejections, faults_of_rejections = read_rejections(data_dir, info)
    faults = [*check_description(info), *faults, *faults_of_rejections, *check_listing(data_dir, info)]
    lengths: list[np.ndarray | None] = []
    for split in info.splits.values():
        split_lengths, faults_of_lengths = read_split_lengths(data_dir, split)
        faults += faults_of_lengths
        lengths += divide_lengths(split_lengths, split)
    files = [shard for split in info.splits.values() for shard in split.shards]
    check = functools.partial(check_shard, data_dir=data_dir, limits=Limits.of(info, special_ids))
    shards: list[ShardFindings] = []
    for shard in check_shards(check, files, lengths, num_processes):
        on_progress(shard.num_bytes, sum(file.num_bytes for file in files))
        shards.append(shard)
        faults += shard.faults
    examples = _Examples(shards)
    shared = examples.in_earlier_split([len(split.shards) for split in info.splits.values()])
    num_shared, num_known = len(set(shared.values())), info.documents.in_several_splits or 0
    faults += _check_counts(info, shards, has_vocab=bool(vocab))
    faults += _check_keys(examples, rejections)
    if num_shared > num_known:
        for index, first in shared.items():
            what = f"its text is also in another split, {examples.place(first)}"
            faults.append(examples.fault(index, f"{what} ({num_shared} such texts, expected {num_known})"))
    elif num_shared < num_known and not any(shard.faults for shard in shards):
        faults.append(fault_of_info(f"expected {num_known} texts in several splits, got {num_shared}"))
    return Findings(
        faults=faults,
        num_shards=len(shards),
        num_bytes=sum(shard.num_bytes for shard in shards),
        num_examples=len(examples.rows),
        num_expected=info.documents.written,
        num_in_several_splits=num_shared,
    )


def divide_lengths(lengths: np.ndarray | None, split: SplitInfo) -> Iterator[np.ndarray | None]:
    """Yield the lengths of each shard's examples, `None` where there are none."""
    edges = itertools.accumulate((shard.num_examples for shard in split.shards), initial=0)
    for start, stop in itertools.pairwise(edges):
        yield None if lengths is None else lengths[start:stop]


def check_shards(
    check: Callable[[FileInfo, np.ndarray | None], ShardFindings],
    shards: Sequence[FileInfo],
    lengths: Sequence[np.ndarray | None],
    num_processes: int | None,
) -> Iterator[ShardFindings]:
    """Yield the findings of all shards in order, from one process or several."""
    if num_processes is None:
        is_much = sum(shard.num_bytes for shard in shards) >= _BYTES_WORTH_PROCESSES
        num_processes = num_cores() if is_much else 1
    if num_processes == 1:
        yield from map(check, shards, lengths)
        return
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(num_processes, context, _ignore_interrupts) as pool:
        try:
            yield from pool.map(check, shards, lengths)
        except concurrent.futures.process.BrokenProcessPool as error:
            what = "a process that reads shards died, killed from outside or for lack of memory"
            raise WorkerDiedError(what) from error


def _ignore_interrupts() -> None:
    """Leave Ctrl-C to the process that started this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _Examples:
    """The intact examples of all shards, in stored order.

    Attributes:
        rows: EXAMPLE_DTYPE [N].
    """

    def __init__(self, shards: Sequence[ShardFindings]):
        self._names = [shard.name for shard in shards]
        self._shard_of = np.repeat(np.arange(len(shards)), [len(shard.examples) for shard in shards])
        self.rows = np.concatenate([np.empty(0, EXAMPLE_DTYPE), *(shard.examples for shard in shards)])

    def fault(self, index: int, what: str) -> Fault:
        row = self.rows[index]
        name = self._names[self._shard_of[index]]
        return Fault(file=name, what=what, record=int(row["record"]), offset=int(row["offset"]))

    def place(self, index: int) -> str:
        return f"{self._names[self._shard_of[index]]}, record {self.rows[index]['record']}"

    def in_earlier_split(self, shards_per_split: Sequence[int]) -> dict[int, int]:
        """Return index of an example → index of the first example with the same ids, where that is in another split."""
        split_of = np.repeat(np.arange(len(shards_per_split)), shards_per_split)[self._shard_of]
        first = _first_equal(self.rows["ids_digest"])
        others = np.flatnonzero(split_of[first] != split_of)
        return dict(zip(others.tolist(), first[others].tolist(), strict=True))


def _first_equal(values: np.ndarray) -> np.ndarray:
    """Return int64 [N], for each value the index of the first one that is equal."""
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    return first[inverse]


def _check_counts(info: DatasetInfo, shards: Sequence[ShardFindings], *, has_vocab: bool) -> Iterator[Fault]:
    """Compare the description of each split with its examples, where all shards of the split are intact."""
    remaining = iter(shards)
    for name, split in info.splits.items():
        own = list(itertools.islice(remaining, len(split.shards)))
        if len(split.length_histogram) != info.max_len + 1:
            yield fault_of_info(
                f"split {name}: {len(split.length_histogram)} lengths counted, but max_len {info.max_len}"
            )
            continue
        if any(shard.faults for shard in own):
            continue
        rows = np.concatenate([np.empty(0, EXAMPLE_DTYPE), *(shard.examples for shard in own)])
        found = SplitInfo.of(
            rows["length"].astype(LENGTHS_DTYPE),
            info.count_pairs(np.stack([rows[LABEL], rows[SECOND_LABEL]], axis=1)),
            max_len=info.max_len,
            num_unknown_tokens=int(rows["num_unknown"].sum()) if has_vocab else split.num_unknown_tokens,
            # Which of the examples of this length were cut, and which just fit, is not stored.
            num_truncated=min(split.num_truncated, int(np.count_nonzero(rows["length"] == info.max_len))),
            lengths_file=dataclasses.replace(split.lengths_file, num_examples=len(rows)),
            shards=split.shards,
        )
        for field in dataclasses.fields(SplitInfo):
            expected, got = getattr(split, field.name), getattr(found, field.name)
            if expected != got:
                yield fault_of_info(f"split {name}: {field.name} {expected!r:.80}, but {got!r:.80} in its shards")


def _check_keys(examples: _Examples, rejections: Sequence[Rejection]) -> Iterator[Fault]:
    """Find keys that more than one document has, written or rejected."""
    rejected = [digest(rejection.key.encode("utf-8", "backslashreplace")) for rejection in rejections]
    num_written = len(examples.rows)
    first = _first_equal(np.concatenate([examples.rows["key_digest"], np.array(rejected, np.uint64)]))
    for index in np.flatnonzero(first != np.arange(len(first))).tolist():
        other = int(first[index])
        place = examples.place(other) if other < num_written else f"{REJECTED_NAME}, record {other - num_written}"
        what = f"its key is also that of {place}"
        if index < num_written:
            yield examples.fault(index, what)
        else:
            yield Fault(file=REJECTED_NAME, what=f"record {index - num_written}: {what}")
