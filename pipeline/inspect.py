"""`python -m pipeline.inspect DIR`: the content of a dataset, or the fate of one document."""

import functools
import itertools
import sys
from collections.abc import Sequence
from typing import Any

from pipeline import filesystem
from pipeline.command_line import CommandParser, run_command
from pipeline.dataset.files import REJECTED_NAME, digest_directory, iterate_examples
from pipeline.dataset.info import DATASET_INFO_NAME, DatasetInfo, read_dataset_info
from pipeline.dataset.schema import HEAD_FEATURES, INDICES, KEY
from pipeline.dataset.summary import describe_dataset
from pipeline.errors import CorruptShardError, MissingInputError, SchemaMismatchError, one_line, require
from pipeline.verify.files import read_rejections, read_vocab

_TOKENS_SHOWN = 64
# Characters that JSON does not escape and a terminal obeys.
_LEFT_BY_JSON = {code: f"\\u{code:04x}" for code in (*range(0x7F, 0xA0), 0x2028, 0x2029)}


def describe_example(features: dict[str, Any], info: DatasetInfo, tokens: Sequence[str]) -> str:
    """Return the key, the labels and the first tokens of an example."""
    ids = features[INDICES]
    labels = ", ".join(
        f"{head} {features[name][0]} {info.labels[head].names[features[name][0]]}"
        for head, name in HEAD_FEATURES.items()
    )
    more = f" … {len(ids) - _TOKENS_SHOWN} more" if len(ids) > _TOKENS_SHOWN else ""
    shown = " ".join(tokens[index] for index in ids[:_TOKENS_SHOWN])
    return one_line(f"{features[KEY][0].decode()}  ({labels}; {len(ids)} tokens)") + f"\n    {shown}{more}"


def trace(data_dir: str, info: DatasetInfo, key: str, tokens: Sequence[str]) -> str:
    """Return where a document went: its split, shard and record, or why it was rejected.

    Raises:
        MissingInputError: it was not in the corpus.
        CorruptShardError: it may have been rejected, but the list of rejected documents is damaged.
    """
    # An argument that is not UTF-8 is the key of no document.
    encoded = key.encode(errors="backslashreplace")
    rejections, faults = read_rejections(data_dir, info)
    for rejection in rejections:
        if rejection.key == key:
            return one_line(f"{key}: rejected: {rejection.reason}: {rejection.detail}")
    for split, split_info in info.splits.items():
        if not split_info.num_examples:
            continue
        for shard, number, offset, features in iterate_examples(data_dir, info, split, holding=encoded):
            if features[KEY] == [encoded]:
                return f"{split}, {shard}, record {number}, byte {offset}\n{describe_example(features, info, tokens)}"
    if faults:
        what = f"no document {key!r} can be found, but this list is damaged: {faults[0].what}"
        raise CorruptShardError(what, path=filesystem.join(data_dir, REJECTED_NAME))
    raise MissingInputError(
        f"{data_dir}: no document {key!r} among {info.documents.read:,}; keys look like 体育/123.txt"
    )


def read_tokens(data_dir: str, info: DatasetInfo) -> list[str]:
    """Return the vocabulary in id order, with unprintable tokens escaped.

    Raises:
        SchemaMismatchError: it is not the one that the ids refer to.
    """
    vocab, faults = read_vocab(data_dir, info)
    if faults:
        raise SchemaMismatchError(f"{data_dir}: {faults[0]}; copy it back, or write the dataset again")
    return [token if token.isprintable() else repr(token) for token in vocab]


def main(argv: Sequence[str]) -> int:
    """Print what a dataset holds."""
    parser = CommandParser(prog="python -m pipeline.inspect", description="Show what a dataset holds.")
    parser.add_argument("data_dir", metavar="DIR", help="a dataset directory")
    parser.add_argument("--split", help="where to take the examples from (default: the first split that has any)")
    parser.add_argument("--examples", type=int, default=3, help="how many decoded examples to show")
    parser.add_argument("--key", help="show instead the shard and record of this document, such as 体育/123.txt")
    parser.add_argument("--json", action="store_true", help=f"print {DATASET_INFO_NAME} itself")
    parser.add_argument("--digest", action="store_true", help="print one digest of the directory's names and bytes")
    args = parser.parse_args(argv)
    require(args.examples >= 0, f"--examples: expected 0 or more, got {args.examples}")
    info = read_dataset_info(args.data_dir)
    if args.json:
        print(info.to_json().translate(_LEFT_BY_JSON), end="")
    elif args.digest:
        print(digest_directory(args.data_dir))
    elif args.key is not None:
        print(trace(args.data_dir, info, args.key, read_tokens(args.data_dir, info)))
    else:
        print(describe_dataset(info, args.data_dir))
        split = args.split or next((name for name, split in info.splits.items() if split.num_examples), None)
        if args.examples and split:
            tokens = read_tokens(args.data_dir, info)
            print(f"\nfirst examples of {one_line(split)}:")
            for *_, features in itertools.islice(iterate_examples(args.data_dir, info, split), args.examples):
                print("  " + describe_example(features, info, tokens))
    return 0


command = functools.partial(run_command, main)

if __name__ == "__main__":
    sys.exit(command())
