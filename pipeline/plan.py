"""`python -m pipeline.plan DIR`: the batches of an epoch, and how fast this machine reads them."""

import functools
import itertools
import sys
import time
from collections.abc import Sequence

from pipeline.command_line import CommandParser, parse_buckets, run_command
from pipeline.dataset.info import SplitInfo
from pipeline.dataset.summary import format_table
from pipeline.errors import one_line, require
from pipeline.input_pipeline.batch_plan import BatchOptions, BatchPlan, per_batch_padding_share, plan_batches
from pipeline.input_pipeline.stored_split import StoredSplit, open_split


def describe_plan(split: str, info: SplitInfo, plan: BatchPlan, per_batch_share: float) -> str:
    """Return buckets, padding and steps as a few short tables.

    Args:
        split: its name.
        info: its description.
        plan: of its batches.
        per_batch_share: padding if each batch, without buckets, were padded to its longest example.
    """
    lines = [
        f"{one_line(split)}: {plan.num_examples:,} examples, {plan.num_tokens:,} tokens, "
        f"{plan.num_cut:,} cut to max_len {plan.max_len}",
        "",
    ]
    lines += format_table(
        ("bucket", "padded to", "examples", "per batch", "full batches"),
        [
            (str(number), str(edge), f"{count:,}", f"{rows:,}", f"{count // rows:,}")
            for number, (edge, count, rows) in enumerate(zip(plan.edges, plan.counts, plan.rows, strict=True), 1)
        ],
    )
    lines += [
        "",
        f"{len(plan.tail)} more from what is left in the buckets; together {plan.steps_per_epoch:,} steps",
        "",
    ]
    lines += format_table(
        ("padding", "positions", "share"),
        [
            (f"all to {plan.max_len}", *_padding(plan, plan.fixed_padding_share)),
            ("each batch to its longest", *_padding(plan, per_batch_share)),
            ("planned", *_padding(plan, plan.padding_share)),
        ],
    )
    num_bytes = sum(shard.num_bytes for shard in info.shards)
    lines += ["", f"steps per epoch  {plan.steps_per_epoch:,}", f"bytes per epoch  {num_bytes:,}"]
    return "\n".join(lines)


def _padding(plan: BatchPlan, share: float) -> tuple[str, str]:
    return f"{round(plan.num_tokens / (1 - share)):,}", f"{share:.1%}"


def measure_reader(stored: StoredSplit, batches: BatchPlan, *, seconds: float) -> float:
    """Return the examples per second that the reader delivers after its start, over as many epochs as fit."""
    # TensorFlow takes seconds to import, and is not installed everywhere.
    from pipeline.input_pipeline.reader import TrainReader, explain_read_errors

    delivered = itertools.chain.from_iterable(map(TrainReader(stored, batches).epoch, itertools.count()))
    num_examples = 0
    with explain_read_errors(stored.data_dir, stored.name):
        next(delivered)
        started = time.perf_counter()
        for _, labels in delivered:
            num_examples += int(next(iter(labels.values())).shape[0])
            if time.perf_counter() - started >= seconds:
                break
    return num_examples / (time.perf_counter() - started)


def main(argv: Sequence[str]) -> int:
    """Print the plan of a split's epochs."""
    parser = CommandParser(
        prog="python -m pipeline.plan",
        description="Show the batches of an epoch, their padding, and the reader's speed.",
    )
    parser.add_argument("data_dir", metavar="DIR", help="a dataset directory")
    parser.add_argument("--split", default="train", help="which split")
    parser.add_argument("--batch_size", type=int, default=32, help="examples per batch, over all replicas")
    parser.add_argument("--batch_tokens", type=int, help="positions per batch instead")
    parser.add_argument("--num_replicas", type=int, default=1, help="a batch is a multiple of this")
    parser.add_argument(
        "--buckets", type=parse_buckets, default="auto", help="auto, off or padded lengths such as 64,128,256"
    )
    parser.add_argument("--max_len", type=int, help="cut longer examples; the dataset's own if not given")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long to measure the reader; 0 does not")
    args = parser.parse_args(argv)
    require(args.seconds >= 0, f"--seconds: expected 0 or more, got {args.seconds}")
    options = BatchOptions(
        global_batch_size=args.batch_size,
        max_len=args.max_len,
        buckets=args.buckets,
        batch_tokens=args.batch_tokens,
        batch_multiple=args.num_replicas,
    )
    stored = open_split(args.data_dir, args.split)
    plan = plan_batches(stored.length_histogram, options)
    per_batch_share = per_batch_padding_share(stored.lengths, global_batch_size=args.batch_size, max_len=plan.max_len)
    print(describe_plan(args.split, stored.info.split(args.split), plan, per_batch_share))
    if args.seconds:
        rate = measure_reader(stored, plan, seconds=args.seconds)
        print(f"reader           {rate:,.0f} examples/s on this machine ({args.seconds:g} s, after the first batch)")
    return 0


command = functools.partial(run_command, main)

if __name__ == "__main__":
    sys.exit(command())
