"""`python -m pipeline.sample_corpus --output DIR --documents N`: see `pipeline.sample_corpus.tree`.

Worker processes import `tree`; they could not import this module, which is `__main__` in the process that starts them.
"""

import functools
import os
import sys
from collections.abc import Sequence

from pipeline.command_line import CommandParser, run_command
from pipeline.sample_corpus.tree import write_sample_corpus


def main(argv: Sequence[str]) -> int:
    """Write the corpus."""
    parser = CommandParser(
        prog="python -m pipeline.sample_corpus",
        description="Write a made-up corpus shaped like THUCNews: OUTPUT/<category>/<id>.txt, 14 categories with "
        "THUCNews's class balance, document lengths and layout. The texts are nonsense composed from word lists; a "
        "classifier can learn most of them, not all.",
        epilog="5,000 documents (13 MB) are enough to try everything; 836,074 are as many as THUCNews has (2.2 GB). "
        "The same seed and number give the same files, with any number of workers.",
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="directory to write; new or empty")
    parser.add_argument("--documents", required=True, type=int, metavar="N", help="how many to write")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="another seed gives another corpus")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes that write, one per core"
    )
    arguments = parser.parse_args(argv)
    counts = write_sample_corpus(
        arguments.output,
        num_documents=arguments.documents,
        seed=arguments.seed,
        num_workers=arguments.workers,
        show_progress=sys.stderr.isatty(),
    )
    num_categories = sum(1 for count in counts.values() if count)
    sys.stdout.write(f"{arguments.output}: {sum(counts.values()):,} documents in {num_categories} categories\n")
    return 0


command = functools.partial(run_command, main)

if __name__ == "__main__":
    sys.exit(command())
