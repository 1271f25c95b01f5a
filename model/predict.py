"""Label texts with a finished run: `python -m model.predict --run RUN [--input FILE]`, text lines in, JSON lines out.

    $ echo 日本队夺冠 | python -m model.predict --run RUN --top_k 2
    {"line": 1, "category": {"label": "体育", "probability": 0.98, "top": [{"label": "体育", "probability": 0.98},
     {"label": "娱乐", "probability": 0.01}]}, "second": {"label": …}}                       (on one line)

As many lines go out as come in, in the same order; one that cannot be labelled gives `{"line": 2, "error": "…"}`. Every
line is normalized and tokenized exactly as the training texts were. Lines that have arrived are
answered before more are read: memory stays bounded, and a line that is typed gets its answer at once.
"""

import dataclasses
import functools
import gzip
import io
import json
import logging
import os
import stat
import sys
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from tqdm import tqdm

from model.config import PRECISIONS, AnswerPrecision
from model.decoding import (
    DECODE_HELP,
    DECODINGS,
    INDEPENDENT,
    JOINT,
    PAIR_HEADS,
    Decoding,
    check_decode,
    decode_labels,
    pair_scores,
)
from pipeline import filesystem
from pipeline.command_line import CommandParser, run_command
from pipeline.config import TSV_COLUMNS, require, require_choice
from pipeline.errors import InputFormatError

if TYPE_CHECKING:
    from model.serving.predictor import Predictor

TEXT_COLUMN, *LABEL_COLUMNS = TSV_COLUMNS
MAX_LINE_BYTES = 16 << 20

# Some 15,000 titles or 350 articles: enough that sorting them by length leaves little padding.
_BLOCK_BYTES = 1 << 20

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """The options of `python -m model.predict`; see its `--help` for their meaning.

    Attributes:
        run_dir: a finished run.
        input_path: `None` reads standard input.
        tsv_columns: `None` takes the whole line as text.
        decode: see `model.decoding`.
    """

    run_dir: str
    input_path: str | None = None
    tsv_columns: tuple[str, ...] | None = None
    top_k: int | None = None
    batch_size: int = 64
    decode: Decoding = INDEPENDENT
    precision: AnswerPrecision = "float32"

    def __post_init__(self) -> None:
        require_choice("decode", self.decode, DECODINGS)
        require_choice("precision", self.precision, PRECISIONS)
        require(self.top_k is None or self.top_k >= 1, f"--top_k: expected at least 1, got {self.top_k}")
        require(self.batch_size >= 1, f"--batch_size: expected at least 1, got {self.batch_size}")
        if self.tsv_columns is not None:
            columns = ",".join(self.tsv_columns)
            require(
                self.tsv_columns.count(TEXT_COLUMN) == 1 and set(self.tsv_columns) <= {*TSV_COLUMNS, "-"},
                f"--tsv_columns: expected {TEXT_COLUMN} once, and {', '.join(LABEL_COLUMNS)} or '-' for every other "
                f"column, got {columns!r}",
            )
        require(
            self.input_path is None or not filesystem.is_remote(self.input_path),
            f"--input {self.input_path}: expected a local file; copy it here, or pipe it in",
        )


class ByteReader(Protocol):
    """What lines are read from: standard input, a file, a gzip stream."""

    def read1(self, size: int, /) -> bytes:
        """Return what is there, at most `size` bytes; wait if nothing is; nothing at the end."""


def read_blocks(stream: ByteReader) -> Iterator[list[bytes]]:
    """Read lines, as many at a time as there are.

    Yields:
        Lines without their line feed, which is the only line end; at least one. Of one longer than MAX_LINE_BYTES comes
        only a part, longer than that too.

    Raises:
        InputFormatError: it is gzip, and damaged.
    """
    parts: list[bytes] = []
    num_lines = num_bytes = 0
    try:
        while block := stream.read1(_BLOCK_BYTES):
            head, *others = block.split(b"\n")
            if num_bytes <= MAX_LINE_BYTES:
                parts.append(head)
                num_bytes += len(head)
            if others:
                yield [b"".join(parts), *others[:-1]]
                num_lines += len(others)
                parts, num_bytes = [others[-1]], len(others[-1])
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputFormatError(f"the input is a damaged gzip stream behind line {num_lines:,} ({error})") from None
    if num_bytes:
        yield [b"".join(parts)]


@dataclasses.dataclass(frozen=True)
class BadLine:
    """A line without a text.

    Attributes:
        error: what is wrong with it.
    """

    error: str


def parse_line(line: bytes, columns: tuple[str, ...] | None) -> str | BadLine:
    """Return the text of a line.

    Args:
        line: without its line feed.
        columns: what its tab-separated columns hold, one of them TEXT_COLUMN; `None` if all of it is the text.
    """
    if len(line) > MAX_LINE_BYTES:
        return BadLine(f"longer than {MAX_LINE_BYTES:,} bytes")
    if columns is not None:
        fields = line.removesuffix(b"\r").split(b"\t")
        if len(fields) != len(columns):
            return BadLine(f"expected {len(columns)} columns ({','.join(columns)}), got {len(fields)}")
        line = fields[columns.index(TEXT_COLUMN)]
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        return BadLine(f"not UTF-8: byte 0x{line[error.start]:02x} at position {error.start}: {error.reason}")


def predict_lines(
    predictor: "Predictor",
    lines: Sequence[bytes],
    *,
    columns: tuple[str, ...] | None = None,
    top_k: int | None = None,
    pairs: np.ndarray | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield for each line what is printed about it, as JSON values without its number.

    Args:
        predictor: labels the texts.
        lines: see `read_blocks`.
        columns: see `parse_line`.
        top_k: how many of the most probable labels, or pairs of labels, to list; `None` for the most probable alone.
        pairs: int [P, 2], the pairs to choose from; `None` lets each head choose by itself.
    """
    parsed = [parse_line(line, columns) for line in lines]
    predictions = predictor.predict([text for text in parsed if isinstance(text, str)])
    row = 0
    for text in parsed:
        if isinstance(text, BadLine):
            yield {"error": text.error}
            continue
        if row in predictions.errors:
            yield {"error": predictions.errors[row]}
        else:
            probabilities = {head: values[row] for head, values in predictions.probabilities.items()}
            if pairs is None:
                yield {
                    head: _describe_head(names, probabilities[head], top_k) for head, names in predictor.labels.items()
                }
            else:
                yield _describe_pairs(predictor.labels, probabilities, pairs, top_k)
        row += 1


def _describe_head(names: Sequence[str], probabilities: np.ndarray, top_k: int | None) -> dict[str, Any]:
    ranked = [
        {"label": names[label], "probability": _written(probabilities[label])}
        for label in np.argsort(-probabilities, kind="stable")[: top_k or 1].tolist()
    ]
    return ranked[0] if top_k is None else {**ranked[0], "top": ranked}


def _describe_pairs(
    labels: Mapping[str, Sequence[str]], probabilities: Mapping[str, np.ndarray], pairs: np.ndarray, top_k: int | None
) -> dict[str, Any]:
    row = {head: values[np.newaxis] for head, values in probabilities.items()}
    best = {head: int(chosen[0]) for head, chosen in decode_labels(row, decode=JOINT, pairs=pairs).items()}
    answer: dict[str, Any] = {
        head: {"label": names[best[head]], "probability": _written(probabilities[head][best[head]])}
        for head, names in labels.items()
    }
    if top_k is not None:
        scores = pair_scores(row, pairs)[0]
        answer["top"] = [
            {head: labels[head][pairs[place, column]] for column, head in enumerate(PAIR_HEADS)}
            | {"probability": _written(scores[place])}
            for place in np.argsort(-scores, kind="stable")[:top_k].tolist()
        ]
    return answer


def _written(probability: np.float32) -> float:
    """Return the shortest decimal number that rounds to this float32: 0.9, not 0.8999999761581421."""
    return float(str(probability))


def _open_input(path: str | None) -> io.BufferedReader:
    stream = sys.stdin.buffer if path is None else filesystem.open_for_reading(path)
    if not isinstance(stream, io.BufferedReader):
        raise TypeError(f"expected a buffered byte stream, got {type(stream).__name__}")
    return stream


def _estimate_lines(raw: io.BufferedReader, num_lines: int) -> int | None:
    """Return how many lines a file seems to have, from those read so far; `None` for a pipe or a terminal."""
    status = os.fstat(raw.fileno())
    if not stat.S_ISREG(status.st_mode):
        return None
    return max(num_lines, round(num_lines * status.st_size / max(raw.tell(), 1)))


def predict_input(config: PredictConfig) -> None:
    """Label every line of the input on standard output.

    Raises:
        OptionError: joint decoding of a run with one head.
        MissingInputError: there is no such run or input, or the run is not finished.
        InputFormatError: a file of the run is damaged, or the input is a damaged gzip stream.
    """
    # TensorFlow takes seconds to import, which --help and a wrong option need not wait for.
    from model.run.finished import load_finished_run
    from model.serving.predictor import Predictor
    from model.training.strategy import explain_device_errors, open_local_devices

    devices = open_local_devices()
    with devices.strategy.scope():
        finished = load_finished_run(config.run_dir, precision=config.precision)
    check_decode(config.decode, finished.labels)
    pairs = finished.pairs if config.decode == JOINT else None
    predictor = Predictor(finished, batch_size=config.batch_size, devices=devices, xla=devices.on_gpu)
    started = time.perf_counter()
    num_lines = num_errors = 0
    # A bar between the answers would help nobody.
    show_bar = sys.stderr.isatty() and not sys.stdout.isatty()
    with (
        explain_device_errors(),
        _open_input(config.input_path) as raw,
        tqdm(unit=" lines", disable=not show_bar, dynamic_ncols=True) as bar,
    ):
        if raw.isatty():
            logger.info("reading lines from the terminal, Ctrl-D ends")
        stream: ByteReader = gzip.GzipFile(fileobj=raw) if raw.peek(2)[:2] == filesystem.GZIP_MAGIC else raw
        for lines in read_blocks(stream):
            answers = predict_lines(predictor, lines, columns=config.tsv_columns, top_k=config.top_k, pairs=pairs)
            for number, answer in enumerate(answers, num_lines + 1):
                sys.stdout.write(json.dumps({"line": number, **answer}, ensure_ascii=False) + "\n")
                num_errors += "error" in answer
            sys.stdout.flush()
            num_lines += len(lines)
            bar.total = _estimate_lines(raw, num_lines)
            bar.update(len(lines))
    seconds = time.perf_counter() - started
    logger.info("%s lines in %.1f s, %s lines/s", f"{num_lines:,}", seconds, f"{num_lines / max(seconds, 1e-9):,.0f}")
    if num_errors:
        logger.warning('%s of them have no labels; their lines say "error" and why', f"{num_errors:,}")


def main(argv: Sequence[str]) -> int:
    """Label lines of text."""
    parser = CommandParser(
        prog="python -m model.predict", description="Label lines of text with a finished run, one line of JSON each."
    )
    parser.add_argument("--run", required=True, metavar="RUN", help="directory that run_train.py wrote")
    parser.add_argument("--input", metavar="FILE", help="text file, plain or gzip (default: standard input)")
    parser.add_argument(
        "--tsv_columns",
        metavar="NAMES",
        help="what the tab-separated columns of a line hold: text, and category, second or '-' for those that are not "
        "used; --tsv_columns=-,text where the first is '-'",
    )
    parser.add_argument(
        "--top_k",
        type=int,
        metavar="K",
        help="list the K most probable labels of each head; with --decode joint, pairs",
    )
    parser.add_argument("--decode", choices=DECODINGS, default=INDEPENDENT, help=DECODE_HELP)
    parser.add_argument("--batch_size", type=int, default=64, help="texts at a time")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help="of products")
    arguments = parser.parse_args(argv)
    config = PredictConfig(
        run_dir=arguments.run,
        input_path=arguments.input,
        tsv_columns=None if arguments.tsv_columns is None else tuple(arguments.tsv_columns.split(",")),
        top_k=arguments.top_k,
        batch_size=arguments.batch_size,
        decode=arguments.decode,
        precision=arguments.precision,
    )
    predict_input(config)
    return 0


command = functools.partial(run_command, main)

if __name__ == "__main__":
    sys.exit(command())
