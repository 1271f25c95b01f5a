"""Tokenize a labelled corpus once into sharded TFRecords: `python run_preprocess.py --help`."""

import argparse
import functools
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

from pipeline.command_line import CommandParser, OptionGroup, parse_named_numbers, run_command
from pipeline.corpus.options import (
    CorpusOptions,
    add_corpus_options,
    canonical_split,
    parse_corpus_options,
    parse_inputs,
    rename_dev,
)
from pipeline.errors import require
from pipeline.filesystem import expand_user
from pipeline.job.config import PreprocessConfig

# Options of former versions → what they are called now.
RENAMED = {"--tsv_columns": "--columns", "--tsv_header": "--header", "--tsv_encoding": "--encoding"}
_EPILOG = """
Any other option goes to Apache Beam (--project, --region, --temp_location, --setup_file, …); one that Beam does not
know is an error. With --runner DirectRunner the job runs on this machine.
"""


class EngineArguments(NamedTuple):
    """Where the job runs; `EngineOptions` checks it, which needs Beam."""

    runner: str
    num_workers: int
    running_mode: str | None
    dry_run: bool
    beam_args: tuple[str, ...]


def make_parser() -> CommandParser:
    """Return the parser of the command line."""
    parser = CommandParser(
        prog="run_preprocess.py",
        description="Tokenize a labelled corpus once into sharded TFRecords with both labels.",
        epilog=_EPILOG,
    )
    corpus = OptionGroup(parser, "input", CorpusOptions)
    corpus.add(
        "input",
        "a tree <category>/<file>, an archive of one (zip, tar), a table (TSV, CSV, JSON lines, Parquet), a directory "
        "or an archive of tables, or a quoted glob; repeat for more; SPLIT= keeps a published split as it is",
        field="inputs",
        metavar="[SPLIT=]PATH",
        repeatable=True,
    )
    add_corpus_options(corpus)

    labels = OptionGroup(parser, "labels", PreprocessConfig)
    labels.add(
        "category_names",
        "the categories in id order, one a line; a class index in the data is replaced by the name at that place",
        field="category_names_path",
        parse=expand_user,
        metavar="FILE",
        default="the names in the data, sorted",
    )
    labels.add("second_label", "where the second label comes from")
    labels.add(
        "taxonomy",
        "TSV from category to parent",
        field="taxonomy_path",
        parse=expand_user,
        metavar="FILE",
        default="the one for THUCNews's 14 categories",
        only_with=("second_label", ("taxonomy",)),
    )
    labels.add(
        "num_random_labels",
        "how many labels --second_label random draws from",
        only_with=("second_label", ("random",)),
    )

    tokenizer = OptionGroup(parser, "tokenizer", PreprocessConfig)
    tokenizer.add("vocab", "BERT's vocab.txt or tokenizer.json", field="vocab_path", parse=expand_user, metavar="FILE")
    tokenizer.add(
        "cased", "keep letter case and accents", default="as a tokenizer_config.json beside the vocabulary says"
    )
    tokenizer.add("max_len", "longest example in tokens, [CLS] and [SEP] included")

    output = OptionGroup(parser, "output", PreprocessConfig)
    output.add("output", "the dataset directory to make", field="output_dir", parse=expand_user, metavar="DIR")
    output.add(
        "split_weights",
        "shares of the splits; must sum to 1",
        parse=parse_named_numbers,
        metavar="NAME=X,…",
        default="train=0.8,dev=0.1,test=0.1",
    )
    output.add("seed", "decides split, shard and order of every document")
    output.add(
        "num_shards",
        "shards per split; auto: about 10,000 examples each, or as many as stay below 64 MiB",
        parse=_parse_num_shards,
        metavar="auto|N",
        default="auto",
    )
    output.add("compression", "of the shards")
    output.add("duplicates", "what to do with documents of equal text")
    output.add("max_rejected_fraction", "fail if more documents than this cannot be used")
    output.add("overwrite", "replace the dataset that --output holds")

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


def parse_config(argv: Sequence[str]) -> tuple[PreprocessConfig, EngineArguments]:
    """Return the configuration that a command line describes, and where the job runs.

    Raises:
        OptionError: an option has a value that cannot be used, or no effect beside the others.
    """
    for argument in argv:
        name = argument.split("=")[0]
        require(name not in RENAMED, f"{name}: this option is called {RENAMED.get(name)} now")
    parser = make_parser()
    args, beam_args = parser.parse_known_args(argv)
    given = vars(args)
    del given["debug"]
    engine = EngineArguments(
        runner=given.pop("runner"),
        num_workers=given.pop("direct_num_workers"),
        running_mode=given.pop("direct_running_mode"),
        dry_run=given.pop("dry_run"),
        beam_args=tuple(beam_args),
    )
    corpus = CorpusOptions(inputs=parse_inputs(given.pop("inputs")), **parse_corpus_options(given))
    if "split_weights" in given:
        rename_dev(given["split_weights"])
        given["split_weights"] = tuple((canonical_split(name), x) for name, x in given["split_weights"].items())
    config = PreprocessConfig(corpus=corpus, **given)
    parser.require_effect(given, vars(config))
    return config, engine


def _parse_num_shards(text: str) -> int | None:
    try:
        return None if text == "auto" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected auto or a number, got {text!r}") from None


def main(argv: Sequence[str]) -> int:
    """Parse the command line, run the job, print its summary."""
    config, arguments = parse_config(argv)
    # Beam takes a second to import: a wrong option need not wait for it.
    from pipeline.dataset.summary import describe_dataset
    from pipeline.engines.named import EngineOptions
    from pipeline.job.preprocess import dry_run, run

    engine = EngineOptions(
        runner=arguments.runner,
        num_workers=arguments.num_workers,
        running_mode=arguments.running_mode,
        beam_args=arguments.beam_args,
    )
    if arguments.dry_run:
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
