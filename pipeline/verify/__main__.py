"""`python -m pipeline.verify DIR`: read every byte of a dataset back, and print whatever is wrong with it."""

import functools
import sys
import time
from collections.abc import Sequence

from tqdm import tqdm

from pipeline.command_line import CommandParser, run_command
from pipeline.dataset.info import DATASET_INFO_NAME
from pipeline.errors import one_line, require
from pipeline.verify.dataset import Findings, verify

_DEFAULT_MAX_FAULTS = 100


def main(argv: Sequence[str]) -> int:
    """Check a dataset."""
    parser = CommandParser(
        prog="python -m pipeline.verify",
        description="Read every byte of a dataset back, and print file, record and byte offset of whatever is wrong. "
        "Exit status 0: nothing is; 2: something is.",
    )
    parser.add_argument("data_dir", metavar="DIR", help="a dataset directory")
    parser.add_argument(
        "--max_faults", type=int, default=_DEFAULT_MAX_FAULTS, help="print no more faults than this; 0: all of them"
    )
    args = parser.parse_args(argv)
    require(args.max_faults >= 0, f"--max_faults: expected 0 (all) or more, got {args.max_faults}")
    started = time.monotonic()
    # Shown on terminals alone.
    with tqdm(unit="B", unit_scale=True, desc="verify", file=sys.stderr, disable=None) as bar:

        def advance(num_bytes: int, total_bytes: int) -> None:
            bar.total = total_bytes
            bar.update(num_bytes)

        findings = verify(args.data_dir, on_progress=advance)
    shown = findings.faults[: args.max_faults or None]
    for fault in shown:
        print(one_line(str(fault)))
    if len(findings.faults) > len(shown):
        print(f"… and {len(findings.faults) - len(shown):,} more faults (--max_faults 0 shows all)")
    print(_summary(findings, time.monotonic() - started))
    return 2 if findings.faults else 0


def _summary(findings: Findings, seconds: float) -> str:
    num_mb = findings.num_bytes / 1e6
    read = f"{findings.num_shards:,} shards, {num_mb:,.1f} MB"
    speed = f"checked in {seconds:.1f} s ({num_mb / max(seconds, 1e-9):,.0f} MB/s)"
    if findings.faults:
        count = f"{len(findings.faults):,} fault{'s' * (len(findings.faults) != 1)}"
        examples = f"{findings.num_examples:,} of {findings.num_expected:,} examples"
        return f"{count}: {examples} are intact ({read}, {speed})"
    shared = f"{findings.num_in_several_splits:,} texts are in several splits, as {DATASET_INFO_NAME} says"
    return (
        f"clean: {findings.num_examples:,} examples in {read}, {speed}"
        f"{'; ' + shared if findings.num_in_several_splits else ''}"
    )


command = functools.partial(run_command, main)

if __name__ == "__main__":
    sys.exit(command())
