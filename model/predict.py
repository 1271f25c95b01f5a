"""Label texts with a finished run: `python -m model.predict --run RUN [--input PATH]`, texts in, JSON lines out.

    $ echo 日本队夺冠 | python -m model.predict --run RUN --top_k 2
    {"line": 1, "category": {"label": "体育", "probability": 0.98, "top": [{"label": "体育", "probability": 0.98},
     {"label": "娱乐", "probability": 0.01}]}, "second": {"label": …}}                       (on one line)

As many lines go out as come in, in the same order; one that cannot be labelled gives `{"line": 2, "error": "…"}`. Every
line is normalized and tokenized exactly as the training texts were. Lines that have arrived are answered before more
are read: memory stays bounded, and a line that is typed gets its answer at once.

`--input` takes every format that preprocessing takes, too: archives, CSV, JSON lines, Parquet. Then each document's
answer begins with its key, and ends with its own labels under `true`, where it has any.
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
from pipeline.command_line import CommandParser, OptionGroup, run_command
from pipeline.corpus.detect import container_of, format_of_text
from pipeline.corpus.documents import DocumentRejectedError, Note, Rejection, decode_text
from pipeline.corpus.inputs import Source, open_sources
from pipeline.corpus.options import Columns, CorpusOptions, InputSpec, add_corpus_options, parse_corpus_options
from pipeline.corpus.table import open_table
from pipeline.dataset.labels import normalize_label
from pipeline.errors import InputFormatError, require, require_choice

if TYPE_CHECKING:
    from model.serving.predictor import Predictor

MAX_LINE_BYTES = 16 << 20

# Some 15,000 titles or 350 articles: enough that sorting them by length leaves little padding.
_BLOCK_BYTES = 1 << 20

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """The options of `python -m model.predict`; see its `--help` for their meaning.

    Attributes:
        run_dir: a finished run.
        input_path: lines, each of which is a text; `None` reads standard input.
        columns: of the lines of standard input, by place; `None` takes the whole line as text.
        corpus: documents of any kind, instead of lines.
        output_path: a table of the answers, `.csv` or `.parquet`; `None` prints JSON lines.
        decode: see `model.decoding`.
    """

    run_dir: str
    input_path: str | None = None
    columns: Columns | None = None
    corpus: CorpusOptions | None = None
    output_path: str | None = None
    top_k: int | None = None
    batch_size: int = 64
    decode: Decoding = INDEPENDENT
    precision: AnswerPrecision = "float32"

    def __post_init__(self) -> None:
        require_choice("decode", self.decode, DECODINGS)
        require_choice("precision", self.precision, PRECISIONS)
        require(self.top_k is None or self.top_k >= 1, f"--top_k: expected at least 1, got {self.top_k}")
        require(self.batch_size >= 1, f"--batch_size: expected at least 1, got {self.batch_size}")
        require(
            self.columns is None or self.columns.width is not None,
            f"--columns: lines of standard input have no names; say which place holds the text, got {self.columns}",
        )
        require(
            self.input_path is None or not filesystem.is_remote(self.input_path),
            f"--input {self.input_path}: expected a local file; copy it here, or pipe it in",
        )
        require(
            self.output_path is None or self.output_path.endswith((".csv", ".parquet")),
            f"--output: expected a name that ends with .csv or .parquet, got {self.output_path}",
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


def parse_line(line: bytes, columns: Columns | None) -> str | BadLine:
    """Return the text of a line.

    Args:
        line: without its line feed.
        columns: what its tab-separated columns hold, by place; `None` if all of it is the text.
    """
    if len(line) > MAX_LINE_BYTES:
        return BadLine(f"longer than {MAX_LINE_BYTES:,} bytes")
    if columns is not None:
        fields = line.removesuffix(b"\r").split(b"\t")
        if len(fields) != columns.width:
            return BadLine(f"expected {columns.width} columns ({columns}), got {len(fields)}")
        line = fields[int(columns.fields["text"][0])]
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        return BadLine(f"not UTF-8: byte 0x{line[error.start]:02x} at position {error.start}: {error.reason}")


def predict_lines(
    predictor: "Predictor",
    lines: Sequence[bytes],
    *,
    columns: Columns | None = None,
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
    yield from predict_texts(predictor, [parse_line(line, columns) for line in lines], top_k=top_k, pairs=pairs)


def predict_texts(
    predictor: "Predictor", parsed: Sequence[str | BadLine], *, top_k: int | None, pairs: np.ndarray | None
) -> Iterator[dict[str, Any]]:
    """Yield for each text what is printed about it; see `predict_lines`."""
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


def read_documents(sources: Sequence[Source]) -> Iterator[tuple[list[str | BadLine], list[dict[str, Any]]]]:
    """Read documents, some hundred at a time.

    Yields:
        Their texts, and for each its `key`, and its own labels under `true` where it has any.
    """
    for index, source in enumerate(sources):
        for chunk in source.chunks(index):
            texts: list[str | BadLine] = []
            known: list[dict[str, Any]] = []
            for item in source.read(chunk):
                if isinstance(item, Note):
                    continue
                true: dict[str, str] = {}
                try:
                    if isinstance(item, Rejection):
                        raise DocumentRejectedError(item.reason, item.detail)
                    labels = (("category", item.category), ("second", item.second))
                    true = {head: normalize_label(name) for head, name in labels if name}
                    texts.append(decode_text(item.content, item.locator.encoding))
                except DocumentRejectedError as error:
                    texts.append(BadLine(f"{error.reason}: {error.detail}"))
                known.append({"key": item.key} | ({"true": true} if true else {}))
            if texts:
                yield texts, known


class AnswerTable:
    """Answers as the rows of a CSV or Parquet file, which appears when it is complete."""

    def __init__(self, path: str, heads: Sequence[str]):
        self._path = path
        self._columns: dict[str, list[Any]] = {"key": []}
        for head in heads:
            self._columns |= {head: [], f"{head}_probability": [], f"true_{head}": []}
        self._columns["error"] = []

    def add(self, answer: Mapping[str, Any]) -> None:
        """Add one answer."""
        for name, values in self._columns.items():
            values.append(answer.get(name))
        for head in [name for name in self._columns if isinstance(answer.get(name), dict)]:
            self._columns[head][-1] = answer[head]["label"]
            self._columns[f"{head}_probability"][-1] = answer[head]["probability"]
            self._columns[f"true_{head}"][-1] = answer.get("true", {}).get(head)
        if "line" in answer:
            self._columns["key"][-1] = str(answer["line"])

    def write(self) -> None:
        """Write the file."""
        import pyarrow
        import pyarrow.csv
        import pyarrow.parquet

        numbers = {name: pyarrow.float64() for name in self._columns if name.endswith("_probability")}
        schema = pyarrow.schema([(name, numbers.get(name, pyarrow.string())) for name in self._columns])
        table = pyarrow.table(self._columns, schema=schema)
        sink = io.BytesIO()
        (pyarrow.csv.write_csv if self._path.endswith(".csv") else pyarrow.parquet.write_table)(table, sink)
        filesystem.write_atomically(self._path, sink.getvalue())


def predict_input(config: PredictConfig) -> None:
    """Label every line, or every document, of the input.

    Raises:
        OptionError: joint decoding of a run with one head.
        MissingInputError: there is no such run or input, or the run is not finished.
        InputFormatError: a file of the run is damaged, or the input is, or cannot be read.
    """
    # Before TensorFlow, so that wrong input is told at once.
    sources = open_sources(config.corpus) if config.corpus else ()
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
    table = AnswerTable(config.output_path, list(finished.labels)) if config.output_path else None
    started = time.perf_counter()
    num_answers = num_errors = 0
    answers = (
        _document_answers(config, predictor, sources, pairs) if sources else _line_answers(config, predictor, pairs)
    )
    with explain_device_errors():
        for answer in answers:
            if table:
                table.add(answer)
            else:
                sys.stdout.write(json.dumps(answer, ensure_ascii=False) + "\n")
            num_answers += 1
            num_errors += "error" in answer
    if table:
        table.write()
    seconds = time.perf_counter() - started
    what, rate = "documents" if sources else "lines", num_answers / max(seconds, 1e-9)
    logger.info("%s %s in %.1f s, %s %s/s", f"{num_answers:,}", what, seconds, f"{rate:,.0f}", what)
    if num_errors:
        logger.warning('%s of them have no labels; their lines say "error" and why', f"{num_errors:,}")


def _document_answers(
    config: PredictConfig, predictor: "Predictor", sources: Sequence[Source], pairs: np.ndarray | None
) -> Iterator[dict[str, Any]]:
    # A bar between the answers would help nobody.
    with tqdm(unit=" documents", disable=not _shows_bar(config), dynamic_ncols=True) as bar:
        for texts, known in read_documents(sources):
            answers = predict_texts(predictor, texts, top_k=config.top_k, pairs=pairs)
            for own, answer in zip(known, answers, strict=True):
                yield {"key": own["key"], **answer, **{name: own[name] for name in ("true",) if name in own}}
            bar.update(len(texts))


def _line_answers(config: PredictConfig, predictor: "Predictor", pairs: np.ndarray | None) -> Iterator[dict[str, Any]]:
    num_lines = 0
    with (
        _open_input(config.input_path) as raw,
        tqdm(unit=" lines", disable=not _shows_bar(config), dynamic_ncols=True) as bar,
    ):
        if raw.isatty():
            logger.info("reading lines from the terminal, Ctrl-D ends")
        stream: ByteReader = gzip.GzipFile(fileobj=raw) if raw.peek(2)[:2] == filesystem.GZIP_MAGIC else raw
        for lines in read_blocks(stream):
            answers = predict_lines(predictor, lines, columns=config.columns, top_k=config.top_k, pairs=pairs)
            for number, answer in enumerate(answers, num_lines + 1):
                yield {"line": number, **answer}
            sys.stdout.flush()
            num_lines += len(lines)
            bar.total = _estimate_lines(raw, num_lines)
            bar.update(len(lines))


def _shows_bar(config: PredictConfig) -> bool:
    return sys.stderr.isatty() and (config.output_path is not None or not sys.stdout.isatty())


def _holds_lines(path: str) -> bool:
    """Tell whether a file is a text whose lines are texts, as far as its first bytes say."""
    if filesystem.is_remote(path) or not os.path.isfile(path):
        return not filesystem.is_remote(path) and not os.path.isdir(path)
    try:
        with open_table(path, None) as (stream, _):
            start = stream.read(1 << 16)
    except InputFormatError:  # damaged, which is told where the damage is
        return True
    return container_of(start) is None and format_of_text(path, path, start) == "tsv"


def main(argv: Sequence[str]) -> int:
    """Label lines of text."""
    parser = CommandParser(
        prog="python -m model.predict", description="Label lines of text with a finished run, one line of JSON each."
    )
    parser.add_argument("--run", required=True, metavar="RUN", help="directory that run_train.py wrote")
    parser.add_argument(
        "--input",
        metavar="PATH",
        help="a text file, plain or gzip, each line of which is a text, or anything that preprocessing takes (default: "
        "standard input)",
    )
    parser.add_argument("--output", metavar="FILE", help="write a table, .csv or .parquet, instead of JSON lines")
    add_corpus_options(
        OptionGroup(parser, "what the input is", CorpusOptions), columns="the line, or a field called text"
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
    of_corpus = parse_corpus_options(vars(arguments))
    columns = of_corpus.pop("columns", None)
    is_said = columns is not None or bool(of_corpus)
    corpus = None
    if arguments.input is not None and (is_said or not _holds_lines(arguments.input)):
        spec = InputSpec(filesystem.expand_user(arguments.input))
        corpus = CorpusOptions(inputs=(spec,), columns=columns or Columns.parse("text"), **of_corpus)
    require(
        arguments.input is not None or columns is not None or not is_said,
        "--input: expected a path, as options say what the input is; of standard input only --columns can be said",
    )
    config = PredictConfig(
        run_dir=arguments.run,
        input_path=None if corpus else arguments.input,
        columns=None if corpus else columns,
        corpus=corpus,
        output_path=arguments.output,
        top_k=arguments.top_k,
        decode=arguments.decode,
        batch_size=arguments.batch_size,
        precision=arguments.precision,
    )
    predict_input(config)
    return 0


command = functools.partial(run_command, main)

if __name__ == "__main__":
    sys.exit(command())
