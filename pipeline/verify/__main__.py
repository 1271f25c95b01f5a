"""`python -m pipeline.verify DIR`: read every byte of a dataset back, and name whatever is wrong with it.

Each shard is checked for itself, by as many processes as there are cores; then the shards are held against each other
and against `dataset.json`. No TensorFlow: a shard is read about as fast as its checksum can be computed.
"""

import concurrent.futures
import functools
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from tqdm import tqdm

from pipeline import filesystem
from pipeline.command_line import CommandParser, run_command
from pipeline.dataset.info import DATASET_INFO_NAME, DatasetInfo, FileInfo, require_dataset
from pipeline.errors import SchemaMismatchError, WorkerDiedError, one_line, require
from pipeline.tokenization.vocabulary import SPECIAL_TOKENS
from pipeline.verify import dataset_check
from pipeline.verify.cross_check import check_keys, check_splits
from pipeline.verify.example_check import Expectation
from pipeline.verify.findings import Findings
from pipeline.verify.salvage import salvage
from pipeline.verify.shard_check import ShardFindings, check_shard

# Starting processes takes as long as checking about this much in one.
_BYTES_WORTH_PROCESSES = 100 << 20
DEFAULT_MAX_FAULTS = 100


def verify(
    data_dir: str,
    *,
    max_faults: int = DEFAULT_MAX_FAULTS,
    num_processes: int | None = None,
    on_start: Callable[[int], None] = lambda _: None,
    on_progress: Callable[[int], None] = lambda _: None,
) -> Findings:
    """Check everything that can be checked about a dataset.

    Args:
        data_dir: the dataset directory, local or remote.
        max_faults: how many faults to describe; all are counted.
        num_processes: how many read shards; `None` takes all cores where there is enough to do for them.
        on_start: called with the number of bytes of all shards, where a description says how many.
        on_progress: called with the number of shard bytes read since the last call.

    Raises:
        MissingInputError: there is no such directory, or no `dataset.json` in it.
        WorkerDiedError: a process was killed.
    """
    findings = Findings(data_dir=data_dir, max_faults=max_faults)
    text = filesystem.read_bytes(require_dataset(data_dir))
    try:
        info, is_unchanged = DatasetInfo.from_any_json(text, DATASET_INFO_NAME)
    except SchemaMismatchError as error:
        findings.note(dataset_check.fault_of_info(str(error).removeprefix(f"{DATASET_INFO_NAME}: ")))
        return findings
    findings.info = info
    on_start(sum(shard.num_bytes for split in info.splits.values() for shard in split.shards))
    findings.note(*dataset_check.check_description(text, info, is_unchanged=is_unchanged))
    vocab, faults = dataset_check.check_vocab(data_dir, info)
    findings.note(*faults)
    findings.is_described = is_unchanged and vocab is not None
    findings.rejections, faults = dataset_check.check_rejected(data_dir, info)
    findings.note(*faults, *dataset_check.check_listing(data_dir, info))
    expected = Expectation(
        vocab_size=max(info.vocab_size, 1),
        special_ids=None if vocab is None else {token: vocab[token] for token in SPECIAL_TOKENS},
        max_len=info.max_len,
        num_labels={head: len(label_map) for head, label_map in info.labels.items()},
    )
    tasks = []
    for split in info.splits.values():
        lengths, faults = dataset_check.check_lengths(data_dir, split)
        findings.note(*faults)
        edges = np.cumsum([0, *(shard.num_examples for shard in split.shards)]).tolist()
        for index, shard in enumerate(split.shards):
            tasks.append((shard, None if lengths is None else lengths[edges[index] : edges[index + 1]]))
    work = functools.partial(_check, data_dir, expected=expected, max_faults=max_faults)
    for shard_findings in _run(work, tasks, num_processes, on_progress):
        findings.shards[shard_findings.name] = shard_findings
        findings.note(*shard_findings.faults)
        findings.num_faults += shard_findings.num_faults - len(shard_findings.faults)
    for name, split in info.splits.items():
        own = [findings.shards[shard.name] for shard in split.shards]
        findings.note(*dataset_check.check_sums(info, name, own, has_vocab=vocab is not None))
    findings.note(*check_keys(findings))
    findings.note(*check_splits(findings, info))
    return findings


Task = tuple[FileInfo, np.ndarray | None]


def _check(
    data_dir: str,
    task: Task,
    *,
    expected: Expectation,
    max_faults: int,
    on_progress: Callable[[int], None] = lambda _: None,
) -> ShardFindings:
    shard, lengths = task
    return check_shard(
        data_dir, shard, expected=expected, lengths=lengths, max_faults=max_faults, on_progress=on_progress
    )


def _run(
    work: Callable[..., ShardFindings],
    tasks: Sequence[Task],
    num_processes: int | None,
    on_progress: Callable[[int], None],
) -> Iterator[ShardFindings]:
    """Yield the findings of all shards in order, from one process or several."""
    if num_processes is None:
        is_much = sum(shard.num_bytes for shard, _ in tasks) >= _BYTES_WORTH_PROCESSES
        num_processes = len(os.sched_getaffinity(0)) if is_much else 1
    if num_processes == 1:
        yield from (work(task, on_progress=on_progress) for task in tasks)
        return

    def report(done: concurrent.futures.Future[ShardFindings]) -> None:
        if not done.cancelled() and not done.exception():
            on_progress(done.result().num_bytes)

    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(num_processes, context, _ignore_interrupts) as pool:
        try:
            futures = [pool.submit(work, task) for task in tasks]
            for future in futures:
                future.add_done_callback(report)
            for future in futures:
                yield future.result()
        except concurrent.futures.process.BrokenProcessPool as error:
            raise WorkerDiedError(
                "a process that reads shards died, killed from outside or for lack of memory"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _ignore_interrupts() -> None:
    """Leave Ctrl-C to the process that started this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def main(argv: Sequence[str]) -> int:
    """Check a dataset, and copy what is intact if so wished."""
    parser = CommandParser(
        prog="python -m pipeline.verify",
        description="Read every byte of a dataset back, and name file, record and byte offset of whatever is wrong. "
        "Exit status 0: nothing is; 2: something is.",
    )
    parser.add_argument("data_dir", metavar="DIR", help="a dataset directory")
    parser.add_argument("--salvage", metavar="OUT", help="copy what is intact into a new dataset")
    parser.add_argument(
        "--max_faults", type=int, default=DEFAULT_MAX_FAULTS, help="print no more faults than this; 0: all of them"
    )
    args = parser.parse_args(argv)
    require(args.max_faults >= 0, f"--max_faults: expected 0 (all) or more, got {args.max_faults}")
    started = time.monotonic()
    max_faults = args.max_faults or sys.maxsize
    with tqdm(unit="B", unit_scale=True, desc="verify", file=sys.stderr, disable=_hide_progress()) as bar:
        findings = verify(args.data_dir, max_faults=max_faults, on_start=bar.reset, on_progress=bar.update)
    for fault in findings.faults:
        print(one_line(str(fault)))
    if findings.num_faults > len(findings.faults):
        print(f"… and {findings.num_faults - len(findings.faults):,} more faults (--max_faults 0 shows all)")
    print(_summary(findings, time.monotonic() - started))
    if args.salvage is not None:
        print(salvage(findings, args.salvage))
    return 2 if findings.num_faults else 0


def _hide_progress() -> bool:
    return not sys.stderr.isatty()


def _summary(findings: Findings, seconds: float) -> str:
    size = f"{len(findings.shards):,} shards, {findings.num_bytes / 1e6:,.1f} MB"
    speed = f"{seconds:.1f} s ({findings.num_bytes / 1e6 / max(seconds, 1e-9):,.0f} MB/s)"
    if not findings.num_faults:
        shared = f"; {findings.num_in_several_splits:,} texts stand in several splits, as {DATASET_INFO_NAME} says"
        return (
            f"clean: {findings.num_good:,} examples in {size}, checked in {speed}"
            f"{shared if findings.num_in_several_splits else ''}"
        )
    expected = findings.info.documents.written if findings.info else 0
    return (
        f"{findings.num_faults:,} fault{'s' * (findings.num_faults != 1)}: {findings.num_good:,} of {expected:,} "
        f"examples are intact ({size}, checked in {speed})"
    )


command = functools.partial(run_command, main)

if __name__ == "__main__":
    sys.exit(command())
