"""Export a finished run: `python -m model.export --run RUN --output DIR [--format saved_model|hf|onnx]`.

`saved_model` takes raw strings and needs TensorFlow alone (`model.serving.saved_model`); TensorFlow Serving expects
numbered versions, `--output models/news/1`. `hf` is for Hugging Face's `BertModel` (`model.serving.hugging_face`),
`onnx` for ONNX Runtime (`model.serving.onnx`).
"""

import functools
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from model.config import PRECISIONS, AnswerPrecision
from model.decoding import DECODE_HELP, DECODINGS, INDEPENDENT, Decoding
from pipeline import filesystem
from pipeline.command_line import CommandParser, run_command
from pipeline.errors import OutputExistsError, require

FORMATS = ("saved_model", "hf", "onnx")

logger = logging.getLogger(__name__)


def export_run(
    run_dir: str,
    output_dir: str,
    *,
    form: str = "saved_model",
    data_dir: str | None = None,
    decode: Decoding = INDEPENDENT,
    precision: AnswerPrecision = "float32",
) -> None:
    """Write a finished run for others to load; all of it or nothing.

    Args:
        run_dir: a finished run.
        output_dir: does not exist, or is empty.
        form: one of FORMATS.
        data_dir: for `saved_model`, the dataset the run was trained on, where it is no longer at its place.
        decode: for `saved_model`, how labels are chosen, see `model.decoding`.
        precision: for `saved_model`, of products.

    Raises:
        OptionError: `output_dir` is remote, or an option that the format has no use for.
        OutputExistsError: there is something in `output_dir`.
        MissingInputError: the run is missing or not finished.
        InputFormatError: a file of the run is damaged.
        PipelineError: others, as `export_saved_model` and `export_hugging_face`.
    """
    from model.run.finished import load_finished_run
    from model.serving.hugging_face import export_hugging_face
    from model.serving.onnx import export_onnx
    from model.serving.saved_model import export_saved_model

    given = {"data": data_dir is not None, "decode": decode != INDEPENDENT, "precision": precision != "float32"}
    for option, is_given in given.items():
        require(form == "saved_model" or not is_given, f"--{option}: only used with --format saved_model, not {form}")
    output = _open_output(output_dir)
    require(
        form != "saved_model" or "[" not in str(output),
        f"--output {output}: TensorFlow takes '[' for a pattern and cannot load a model from there; give another one",
    )
    finished = load_finished_run(run_dir, precision=precision)
    if form == "saved_model":
        export_saved_model(finished, output, data_dir=data_dir, decode=decode)
    elif form == "hf":
        export_hugging_face(finished, output)
    else:
        export_onnx(finished, output)
    logger.info("exported to %s", output)


def _open_output(output_dir: str) -> Path:
    require(
        not filesystem.is_remote(output_dir), f"--output {output_dir}: expected a local directory; copy it afterwards"
    )
    output = Path(os.path.abspath(output_dir))  # `.` has no name, and no siblings
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise OutputExistsError(f"{output}: is there already, and not an empty directory; give another --output")
    return output


def main(argv: Sequence[str]) -> int:
    """Export a finished run."""
    parser = CommandParser(
        prog="python -m model.export",
        description="Write a finished run as a SavedModel that takes raw text and needs TensorFlow alone, for "
        "Hugging Face's transformers, or for ONNX Runtime.",
    )
    parser.add_argument("--run", required=True, metavar="RUN", help="directory that run_train.py wrote")
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="a new directory; TensorFlow Serving expects NAME/VERSION"
    )
    parser.add_argument("--format", choices=FORMATS, default="saved_model", help="what to write")
    parser.add_argument(
        "--data", metavar="DIR", help="for saved_model: dataset directory, if not where it was during training"
    )
    parser.add_argument("--decode", choices=DECODINGS, default=INDEPENDENT, help=f"for saved_model: {DECODE_HELP}")
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="float32",
        help="for saved_model: of products; weights stay float32, as do the answers",
    )
    arguments = parser.parse_args(argv)
    export_run(
        arguments.run,
        arguments.output,
        form=arguments.format,
        data_dir=arguments.data,
        decode=arguments.decode,
        precision=arguments.precision,
    )
    return 0


command = functools.partial(run_command, main)

if __name__ == "__main__":
    sys.exit(command())
