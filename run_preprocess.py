"""Tokenize a labelled corpus once into sharded TFRecords: `python run_preprocess.py --help`."""

import argparse
import dataclasses
import functools
import sys
import time
from collections.abc import Sequence

from pipeline.command_line import CommandParser, run_command
from pipeline.corpus.options import (
    CorpusOptions,
    add_corpus_options,
    canonical_split,
    parse_columns,
    parse_inputs,
    rename_dev,
)
from pipeline.dataset.shards import COMPRESSIONS
from pipeline.errors import OptionError, require
from pipeline.filesystem import expand_user
from pipeline.job.config import DUPLICATE_POLICIES, SECOND_LABELS, PreprocessConfig

# Options of former versions → what they are called now.
RENAMED = {"--tsv_columns": "--columns", "--tsv_header": "--header", "--tsv_encoding": "--encoding"}
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
    default = {field.name: field.default for field in dataclasses.fields(PreprocessConfig)}
    group = parser.add_argument_group("input")
    add = group.add_argument
    add(
        "--input",
        action="append",
        required=True,
        metavar="[SPLIT=]PATH",
        help="a tree <category>/<file>, an archive of one (zip, tar), a table (TSV, CSV, JSON lines, Parquet), a "
        "directory or an archive of tables, or a quoted glob; repeat for more; SPLIT= keeps a published split as it is",
    )
    add_corpus_options(group)
    add("--vocab", required=True, type=expand_user, metavar="FILE", help="BERT's vocab.txt or tokenizer.json")
    add(
        "--cased",
        action=argparse.BooleanOptionalAction,
        help="keep letter case and accents (default: as a tokenizer_config.json beside the vocabulary says)",
    )
    group = parser.add_argument_group("labels")
    add = group.add_argument
    add(
        "--category_names",
        type=expand_user,
        metavar="FILE",
        help="the categories in id order, one a line; a class index in the data is replaced by the name at that place",
    )
    add(
        "--second_label",
        choices=SECOND_LABELS,
        default=default["second_label"],
        help="where the second label comes from",
    )
    add(
        "--taxonomy",
        type=expand_user,
        metavar="FILE",
        help="TSV from category to parent (default: the one for THUCNews's 14 categories)",
    )
    add(
        "--num_random_labels",
        type=int,
        default=default["num_random_labels"],
        help="how many labels --second_label random draws from",
    )
    group = parser.add_argument_group("output")
    add = group.add_argument
    add("--output", required=True, type=expand_user, metavar="DIR", help="the dataset directory to make")
    add("--max_len", type=int, default=default["max_len"], help="longest example in tokens, [CLS] and [SEP] included")
    add("--split_weights", default="train=0.8,dev=0.1,test=0.1", help="shares of the splits; must sum to 1")
    add("--seed", type=int, default=default["seed"], help="decides split, shard and order of every document")
    add(
        "--num_shards",
        default="auto",
        help="shards per split; auto: about 10,000 examples each, or as many as stay below 64 MiB",
    )
    add("--compression", choices=COMPRESSIONS, default=default["compression"], help="of the shards")
    add(
        "--duplicates",
        choices=DUPLICATE_POLICIES,
        default=default["duplicates"],
        help="what to do with documents of equal text",
    )
    add(
        "--max_rejected_fraction",
        type=float,
        default=default["max_rejected_fraction"],
        help="fail if more documents than this cannot be used",
    )
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
        corpus=CorpusOptions(
            inputs=parse_inputs(args.input),
            input_format=args.input_format,
            columns=parse_columns(args.columns),
            delimiter=args.delimiter,
            quoting=args.quoting,
            header=args.header,
            encoding=args.encoding,
            levels=args.levels,
            glob=args.glob,
        ),
        vocab_path=args.vocab,
        output_dir=args.output,
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
    rename_dev([name for name, _ in pairs])
    return tuple((canonical_split(name), share) for name, share in pairs)


def _parse_num_shards(text: str) -> int | None:
    if text == "auto":
        return None
    try:
        return int(text)
    except ValueError:
        raise OptionError(f"--num_shards: expected auto or a number, got {text!r}") from None


def main(argv: Sequence[str]) -> int:
    """Parse the command line, run the job, print its summary."""
    for argument in argv:
        name = argument.split("=")[0]
        require(name not in RENAMED, f"{name}: this option is called {RENAMED.get(name)} now")
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
