"""Export a finished run for serving: `python -m model.export --run RUN --output DIR` writes a SavedModel.

What is in it is said in `model.serving.saved_model`. TensorFlow Serving expects numbered versions: `--output
models/news/1`.
"""

import functools
import sys
from collections.abc import Sequence

from model.config import PRECISIONS
from model.decoding import DECODE_HELP, DECODINGS, INDEPENDENT
from pipeline.command_line import CommandParser, run_command


def main(argv: Sequence[str]) -> int:
    """Export a finished run."""
    parser = CommandParser(
        prog="python -m model.export",
        description="Write a finished run as a SavedModel that takes raw text and needs TensorFlow alone.",
    )
    parser.add_argument("--run", required=True, metavar="RUN", help="directory that run_train.py wrote")
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="a new directory; TensorFlow Serving expects NAME/VERSION"
    )
    parser.add_argument("--data", metavar="DIR", help="dataset directory, if not where it was during training")
    parser.add_argument("--decode", choices=DECODINGS, default=INDEPENDENT, help=DECODE_HELP)
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="float32",
        help="of products; weights stay float32, as do the answers",
    )
    arguments = parser.parse_args(argv)
    # TensorFlow takes seconds to import, which --help and a wrong option need not wait for.
    from model.serving.saved_model import export_run

    export_run(
        arguments.run, arguments.output, data_dir=arguments.data, decode=arguments.decode, precision=arguments.precision
    )
    return 0


command = functools.partial(run_command, main)

if __name__ == "__main__":
    sys.exit(command())
