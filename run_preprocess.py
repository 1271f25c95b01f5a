"""Tokenize a labelled corpus once into sharded TFRecords: `python run_preprocess.py --help`."""

import argparse
import functools
import sys
import time
from collections.abc import Sequence

from pipeline.command_line import CommandParser, run_command
from pipeline.config import (
    COMPRESSIONS,
    DUPLICATE_POLICIES,
    INPUT_FORMATS,
    SECOND_LABELS,
    InputSpec,
    PreprocessConfig,
)
from pipeline.errors import OptionError

_EPILOG = """
Any other option goes to Apache Beam (--project, --region, --temp_location, --setup_file, …); one that Beam does not
know is an error. With --runner DirectRunner the job runs on this machine.
"""


def make_parser() -> CommandParser:
    """Return the parser of the command line."""
    parser = CommandParser(
        prog="run_preprocess.py",
        description="Tokenize a labelled corpus once into sharded TFRecords with both labels.",
        epilog=_EPILOG,
    )
    add = parser.add_argument
    group = parser.add_argument_group("input")
    add = group.add_argument
    add(
        "--input",
        action="append",
        required=True,
        metavar="[SPLIT=]PATH",
        help="a tree <category>/<file>, a zip of one, a TSV, or a quoted glob; repeat for more; SPLIT= keeps a "
        "published split as it is",
    )
    add("--input_format", choices=INPUT_FORMATS, default="auto", help="what the inputs are")
    add(
        "--tsv_columns",
        default="text,category",
        metavar="NAMES",
        help="what a TSV's columns hold, in order: text, category, second; '-' skips a column",
    )
    add("--tsv_header", action="store_true", help="the first line of each TSV names its columns")
    add("--tsv_encoding", default="utf-8", help="encoding of TSVs, such as gb18030 (covers GBK and GB2312)")
    add("--vocab", required=True, metavar="FILE", help="BERT's vocab.txt or tokenizer.json")
    add(
        "--cased",
        action=argparse.BooleanOptionalAction,
        help="keep letter case and accents (default: as a tokenizer_config.json beside the vocabulary says)",
    )
    group = parser.add_argument_group("labels")
    add = group.add_argument
    add(
        "--category_names",
        metavar="FILE",
        help="the categories in id order, one a line; a class index in the data is replaced by the name at that place",
    )
    add("--second_label", choices=SECOND_LABELS, default="taxonomy", help="where the second label comes from")
    add(
        "--taxonomy",
        metavar="FILE",
        help="TSV from category to parent (default: the one for THUCNews's 14 categories)",
    )
    add("--num_random_labels", type=int, default=3, help="how many labels --second_label random draws from")
    group = parser.add_argument_group("output")
    add = group.add_argument
    add("--output", required=True, metavar="DIR", help="the dataset directory to make")
    add("--max_len", type=int, default=512, help="longest example in tokens, [CLS] and [SEP] included")
    add("--split_weights", default="train=0.8,dev=0.1,test=0.1", help="shares of the splits; must sum to 1")
    add("--seed", type=int, default=0, help="decides split, shard and order of every document")
    add(
        "--num_shards",
        default="auto",
        help="shards per split; auto: about 10,000 examples each, or as many as stay below 64 MiB",
    )
    add("--compression", choices=COMPRESSIONS, default="none", help="of the shards")
    add("--duplicates", choices=DUPLICATE_POLICIES, default="keep", help="what to do with documents of equal text")
    add("--max_rejected_fraction", type=float, default=0.01, help="fail if more documents than this cannot be used")
    add("--overwrite", action="store_true", help="replace the dataset that --output holds")
    group = parser.add_argument_group("engine")
    add = group.add_argument
    add("--runner", default="DirectRunner", help="DirectRunner (this machine), DataflowRunner, FlinkRunner, …")
    add(
        "--direct_num_workers",
        type=int,
        default=0,
        help="workers on this machine; 0: all cores, or one if there is little to do",
    )
    add(
        "--direct_running_mode", help="in_memory, multi_threading or multi_processing (default: what suits the workers)"
    )
    add("--dry_run", action="store_true", help="read a sample, say what the job would do, and write nothing")
    return parser


def parse_config(args: argparse.Namespace) -> PreprocessConfig:
    """Turn parsed arguments into a valid configuration."""
    return PreprocessConfig(
        inputs=tuple(InputSpec.parse(text) for text in args.input),
        vocab_path=args.vocab,
        output_dir=args.output,
        input_format=args.input_format,
        tsv_columns=tuple(args.tsv_columns.split(",")),
        tsv_header=args.tsv_header,
        tsv_encoding=args.tsv_encoding,
        category_names_path=args.category_names,
        cased=args.cased,
        max_len=args.max_len,
        split_weights=_parse_split_weights(args.split_weights),
        seed=args.seed,
        second_label=args.second_label,
        taxonomy_path=args.taxonomy,
        num_random_labels=args.num_random_labels,
        num_shards=_parse_num_shards(args.num_shards),
        compression=args.compression,
        duplicates=args.duplicates,
        max_rejected_fraction=args.max_rejected_fraction,
        overwrite=args.overwrite,
    )


def _parse_split_weights(text: str) -> tuple[tuple[str, float], ...]:
    pairs = []
    for part in text.split(","):
        name, _, share = part.partition("=")
        try:
            pairs.append((name.strip(), float(share)))
        except ValueError:
            raise OptionError(f"--split_weights: expected NAME=SHARE,…, got {part!r} in {text!r}") from None
    return tuple(pairs)


def _parse_num_shards(text: str) -> int | None:
    if text == "auto":
        return None
    try:
        return int(text)
    except ValueError:
        raise OptionError(f"--num_shards: expected auto or a number, got {text!r}") from None


def main(argv: Sequence[str]) -> int:
    """Parse the command line, run the job, print its summary."""
    args, beam_args = make_parser().parse_known_args(argv)
    config = parse_config(args)
    # Beam takes a second to import: a wrong option need not wait for it.
    from pipeline.dataset.summary import describe_dataset
    from pipeline.engines.named import EngineOptions
    from pipeline.job.preprocess import dry_run, run

    engine = EngineOptions(
        runner=args.runner,
        num_workers=args.direct_num_workers,
        running_mode=args.direct_running_mode,
        beam_args=tuple(beam_args),
    )
    if args.dry_run:
        print(dry_run(config, engine))
        return 0
    started = time.monotonic()
    info = run(config, engine)
    seconds = time.monotonic() - started
    print(describe_dataset(info, config.output_dir))
    print(f"\n{info.documents.read:,} documents in {seconds:.1f} s, {info.documents.read / seconds:,.0f} documents/s")
    return 0


command = functools.partial(run_command, main)

if __name__ == "__main__":
    sys.exit(command())
