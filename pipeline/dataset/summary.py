"""What a dataset holds, in words: the closing summary of the job, and the first page of `pipeline.inspect`."""

from collections.abc import Sequence

import numpy as np

from pipeline.dataset.info import DatasetInfo, SplitInfo
from pipeline.dataset.schema import HEAD_FEATURES
from pipeline.errors import one_line

_PERCENTILES = (5, 50, 95)
SPLIT_COLUMNS = (
    "split",
    "examples",
    "shards",
    "MB",
    "tokens",
    "mean",
    *(f"p{p}" for p in _PERCENTILES),
    "cut",
    "[UNK]",
)


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table: first column left, all others right, two spaces between.

    Cells may hold names that somebody else gave; nothing in them breaks a line or steers the terminal.
    """
    table = [[one_line(cell) for cell in row] for row in (header, *rows)]
    widths = [max(display_width(row[column]) for row in table) for column in range(len(header))]
    lines = []
    for row in table:
        first = row[0] + " " * (widths[0] - display_width(row[0]))
        others = (" " * (width - display_width(cell)) + cell for cell, width in zip(row[1:], widths[1:], strict=True))
        lines.append("  ".join([first, *others]).rstrip())
    return lines


def display_width(text: str) -> int:
    """Return how many terminal columns a text takes; CJK characters take two."""
    return sum(2 if ord(character) >= 0x1100 else 1 for character in text)


def format_seconds(seconds: float) -> str:
    """Return a duration as people say it: `42 s`, `3:05 min`, `2:00:09 h`."""
    whole = round(seconds)
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minute:02d}:{second:02d} h"
    return f"{minute}:{second:02d} min" if minute else f"{second} s"


def describe_dataset(info: DatasetInfo, data_dir: str) -> str:
    """Return counts per split and label, lengths, duplicates and rejections as a few short tables."""
    documents = info.documents
    rejected = ", ".join(f"{reason} {count:,}" for reason, count in documents.rejected.items()) or "none"
    num_rejected = sum(documents.rejected.values())
    lines = [
        f"dataset {data_dir}  (fingerprint {info.fingerprint[:12]}, seed {info.seed}, max_len {info.max_len}, "
        f"{'cased ' if info.cased else ''}vocabulary {info.vocab_size:,})",
        f"documents: {documents.read:,} read = {documents.written:,} written + {num_rejected:,} rejected ({rejected}); "
        f"{documents.duplicates:,} duplicates, {len(documents.conflicting):,} texts with conflicting labels",
    ]
    if documents.in_several_splits:
        lines.append(f"in more than one split: {documents.in_several_splits:,} texts, as the tokenizer sees them")
    lines.append("")
    lines += format_table(
        SPLIT_COLUMNS,
        [split_row(name, split) for name, split in info.splits.items()],
    )
    for head in HEAD_FEATURES:
        names = info.labels[head].names
        counts = [split.label_counts[head] for split in info.splits.values()]
        lines.append("")
        lines += format_table(
            (head, "id", *info.splits, "share"),
            [
                (name, str(index), *(f"{count[index]:,}" for count in counts), _share(counts, index, documents.written))
                for index, name in enumerate(names)
            ],
        )
    return "\n".join(map(one_line, lines))


def split_row(name: str, split: SplitInfo) -> tuple[str, ...]:
    """Return what SPLIT_COLUMNS announce: sizes, lengths in tokens, and the shares cut to `max_len` and [UNK]."""
    num_bytes = sum(shard.num_bytes for shard in split.shards)
    columns = [
        name,
        f"{split.num_examples:,}",
        str(len(split.shards)),
        f"{num_bytes / 1e6:,.1f}",
        f"{split.num_tokens:,}",
    ]
    if not split.num_examples:
        return (*columns, *["-"] * (len(_PERCENTILES) + 3))
    cumulative = np.cumsum(split.length_histogram)
    percentiles = [str(int(np.searchsorted(cumulative, split.num_examples * p / 100))) for p in _PERCENTILES]
    return (
        *columns,
        f"{split.num_tokens / split.num_examples:.0f}",
        *percentiles,
        f"{split.num_truncated / split.num_examples:.1%}",
        f"{split.num_unknown_tokens / split.num_tokens:.2%}",
    )


def _share(counts: Sequence[Sequence[int]], index: int, total: int) -> str:
    return f"{sum(count[index] for count in counts) / max(total, 1):.1%}"
