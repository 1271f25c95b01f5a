"""Which column of a table holds what: its syntax, its header and its fields, by what was said and by its first rows."""

import dataclasses
import itertools
import logging
from collections.abc import Mapping, Sequence

from pipeline.corpus.detect import Part, describe_fasttext, format_of_text, looks_like_header
from pipeline.corpus.documents import DocumentRejectedError
from pipeline.corpus.encodings import find_encoding
from pipeline.corpus.options import AUTO, TABLES, Columns, CorpusOptions
from pipeline.corpus.parquet import ParquetSource, label_names, open_parquet
from pipeline.corpus.streams import line_blocks
from pipeline.corpus.table import (
    OPEN_QUOTES,
    Delimited,
    FastText,
    JsonLines,
    Quoted,
    Row,
    Syntax,
    TableSource,
    has_open_quote,
    open_table,
    row_texts,
)
from pipeline.errors import InputFormatError, require, shorten

_ROWS_LOOKED_AT = 200
_DELIMITERS = {"\t": "tab-separated columns", ",": "comma-separated columns"}

logger = logging.getLogger(__name__)


def make_parquet(part: Part, options: CorpusOptions, key_prefix: str) -> ParquetSource:
    """Return a Parquet file as a source; raise an `InputFormatError` where it lacks a field."""
    columns = options.columns.named()
    with open_parquet(part.path) as file:
        schema = file.schema_arrow
    _require_fields(part.path, columns, schema.names)
    names = label_names(schema)
    for name in set(columns.names) & set(names):
        logger.info("%s: the indices in %s get the names that the file holds", part.path, name)
    return ParquetSource(path=part.path, split=part.split, key_prefix=key_prefix, columns=columns, label_names=names)


def _require_fields(path: str, columns: Columns, found: Sequence[str]) -> None:
    missing = [name for name in columns.names if name not in found]
    if missing:
        raise InputFormatError(
            f"{path}: no field {', '.join(map(shorten, missing))}, found {', '.join(map(shorten, found))}; say which "
            "hold what with --columns text=FIELD,category=FIELD"
        )


def make_table(part: Part, options: CorpusOptions, key_prefix: str) -> TableSource:
    """Return a table of text as a source.

    Raises:
        InputFormatError: it is none, lacks a field, or has a header that was not declared.
        OptionError: what was said about it cannot be.
    """
    wanted = options.input_format
    table_format = (
        wanted if wanted in TABLES else format_of_text(part.location, part.member_name or part.path, part.start)
    )
    encoding = options.encoding
    if encoding == AUTO:
        with open_table(part.path, part.member) as (stream, _):
            encoding = find_encoding(line_blocks(stream, part.path, "utf-8"))
        if encoding != "utf-8":
            logger.info("%s: not UTF-8, read as %s", part.location, encoding)
    source = TableSource(
        path=part.path,
        split=part.split,
        key_prefix=key_prefix,
        syntax=_syntax(table_format, options),
        columns=options.columns,
        encoding=encoding,
        member=part.member,
    )
    rows = _first_rows(source)
    if table_format == "fasttext":
        return dataclasses.replace(source, columns=Columns({"category": (0,), "text": (1,)}, 2))
    if table_format == "jsonl":
        columns = options.columns.named()
        objects = [row.fields for row in rows if isinstance(row.fields, Mapping)]
        if objects and not any(set(columns.names) <= set(found) for found in objects):
            _require_fields(part.location, columns, list(objects[0]))
        if rows and not objects:
            raise InputFormatError(f"{part.location}: none of the first lines is a JSON object")
        return dataclasses.replace(source, columns=columns)
    return _with_places(source, part, options, rows)


def _syntax(table_format: str, options: CorpusOptions) -> Syntax:
    if table_format == "jsonl":
        return JsonLines()
    if table_format == "fasttext":
        return FastText()
    delimiter = options.delimiter or ("," if table_format == "csv" else "\t")
    if (options.quoting or ("csv" if table_format == "csv" else "none")) == "none":
        return Delimited(delimiter)
    require(len(delimiter) == 1, f"--delimiter {delimiter!r}: quoted fields need one character; see --quoting")
    return Quoted(delimiter)


def _first_rows(source: TableSource) -> list[Row]:
    """Return the first rows of a table that are not blank."""
    with open_table(source.path, source.member) as (stream, _):
        blocks = source.syntax.complete(line_blocks(stream, source.path, source.encoding), source.row_encoding)
        rows = source.syntax.rows(next(blocks, b""), 1, source.row_encoding)
        return [row for row in itertools.islice(rows, _ROWS_LOOKED_AT) if row.fields and row.fields != [b""]]


def _with_places(source: TableSource, part: Part, options: CorpusOptions, rows: Sequence[Row]) -> TableSource:
    """Return the table with its header, if it has one, and columns by place.

    Raises:
        InputFormatError: a header is missing, or was not declared; or no row has the expected columns.
    """
    texts = [
        row_texts(row.fields, source.row_encoding) for row in rows if not isinstance(row.fields, DocumentRejectedError)
    ]
    first = texts[0] if texts else ()
    columns = source.columns
    if columns.width is None:
        _require_fields(f"{part.location}, first line", columns, first)
        repeated = [name for name in columns.names if first.count(name) > 1]
        if repeated:
            raise InputFormatError(f"{part.location}: its first line names {shorten(repeated[0])} twice; use places")
        return dataclasses.replace(source, columns=columns.placed(first), header=first)
    is_header = options.header
    if is_header is None:
        is_header = first == tuple(str(columns).split(","))
        if is_header:
            logger.info("%s: its first line names the columns, and is no document", part.location)
        else:
            _refuse_header(part.location, texts, columns)
    source = dataclasses.replace(source, header=first if is_header else None)
    counts = {len(fields) for fields in texts[:20]}
    if counts and columns.width not in counts:
        raise InputFormatError(_describe_misfit(source, part, counts))
    if isinstance(source.syntax, Delimited):
        number = next((row.number for row in rows if any(map(has_open_quote, _bytes_of(row)))), None)
        if number is not None:
            logger.warning("%s, line %d: %s", part.location, number, OPEN_QUOTES)
    return source


def _bytes_of(row: Row) -> list[bytes]:
    return [field for field in row.fields if isinstance(field, bytes)] if isinstance(row.fields, list) else []


def _refuse_header(location: str, texts: Sequence[Sequence[str]], columns: Columns) -> None:
    if not texts:
        return
    place = columns.fields["category"][0] if "category" in columns.fields else None
    category = place if isinstance(place, int) and place < len(texts[0]) else None
    labels = [fields[category] for fields in texts[1:] if category is not None and len(fields) == len(texts[0])]
    if looks_like_header(texts[0], labels, category):
        names = ", ".join(map(shorten, texts[0]))
        raise InputFormatError(
            f"{location}: its first line seems to name the columns ({names}): say --columns text=NAME,category=NAME, "
            "or --header to leave it out, or --no-header where it is a document"
        )


def _describe_misfit(source: TableSource, part: Part, counts: set[int]) -> str:
    columns = source.columns
    delimiter = source.syntax.delimiter if isinstance(source.syntax, (Delimited, Quoted)) else ""
    what = _DELIMITERS.get(delimiter, f"columns with {delimiter!r} between them")
    line = part.start.split(b"\n", 1)[0].decode(source.row_encoding, "replace")
    others = [other for other in ("_!_", "\t", ";", "|", ",") if other != delimiter and other in line]
    hint = f", or --delimiter {others[0]!r}" if others else ""
    return (
        f"{part.location}: expected {columns.width} {what} ({columns}), got {', '.join(map(str, sorted(counts)))}; say "
        f"what the columns are with --columns ('-' skips one){hint}{describe_fasttext(part.start)}"
    )
