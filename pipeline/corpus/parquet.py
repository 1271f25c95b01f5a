"""Parquet files, read by row groups in parallel."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from pipeline import filesystem
from pipeline.corpus.chunks import Chunk
from pipeline.corpus.documents import DocumentRejectedError, Locator, RawDocument, Rejection
from pipeline.corpus.options import Columns
from pipeline.corpus.table import as_text
from pipeline.errors import InputFormatError

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

PARQUET_MAGIC = b"PAR1"
_ROWS_PER_BATCH = 1_000
_NO_LABEL = -1  # of `datasets`, in splits whose labels are kept secret


@contextmanager
def open_parquet(path: str) -> Iterator["pyarrow.parquet.ParquetFile"]:
    """Open a Parquet file, local or remote.

    Raises:
        InputFormatError: it is damaged.
    """
    # It takes a while to import, and few corpora need it.
    import pyarrow
    import pyarrow.parquet

    with filesystem.reading(path) as stream:
        try:
            yield pyarrow.parquet.ParquetFile(stream)
        except (pyarrow.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            reason = str(error).split("\n")[0]
            raise InputFormatError(f"{path}: not a complete Parquet file ({reason}); fetch it again") from None


def label_names(schema: "pyarrow.Schema") -> dict[str, tuple[str, ...]]:
    """Return the names of class indices, by column, that `datasets` leaves beside the data."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {
            name: tuple(map(str, feature["names"]))
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParquetSource:
    """A Parquet file.

    Attributes:
        path: the file.
        split, key_prefix: as in `TreeSource`.
        columns: by name.
        label_names: column → names of its class indices, where the file holds them.
    """

    kind: ClassVar[str] = "parquet"

    path: str
    split: str | None
    key_prefix: str
    columns: Columns
    label_names: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    def chunks(self, index: int) -> Iterator[Chunk]:
        """Return a chunk for each row group, whose items are its rows' numbers."""
        with open_parquet(self.path) as file:
            start = 0
            for group in range(file.metadata.num_row_groups):
                stop = start + file.metadata.row_group(group).num_rows
                yield Chunk(index, group, range(start, stop))
                start = stop

    def read(self, chunk: Chunk) -> Iterator[RawDocument | Rejection]:
        """Read the rows of one row group; their texts travel along, as a row cannot be read alone."""
        names = list(dict.fromkeys(self.columns.names))
        with open_parquet(self.path) as file:
            row = sum(file.metadata.row_group(group).num_rows for group in range(chunk.first))
            for batch in file.iter_batches(_ROWS_PER_BATCH, row_groups=[chunk.first], columns=names):
                columns = {name: _values(batch.column(name)) for name in names}
                for number in range(batch.num_rows):
                    row += 1
                    if row - 1 in chunk.items:
                        yield self._document(row, {name: values[number] for name, values in columns.items()})

    def _document(self, row: int, fields: Mapping[str, Any]) -> RawDocument | Rejection:
        key = f"{self.key_prefix}:{row}"
        try:
            text, category, second = (
                "\n".join(self._value(str(name), fields[str(name)]) for name in self.columns.fields.get(role, ()))
                for role in ("text", "category", "second")
            )
        except DocumentRejectedError as error:
            return Rejection(key, error.reason, error.detail)
        content = text.encode()
        return RawDocument(key, category, second, content, Locator("inline", b"", content=content))

    def _value(self, name: str, value: Any) -> str:
        if isinstance(value, bytes):
            try:
                return value.decode()
            except UnicodeDecodeError as error:
                detail = f"in {name!r}: byte 0x{value[error.start]:02x} at position {error.start}: {error.reason}"
                raise DocumentRejectedError("not_utf-8", detail) from None
        names = self.label_names.get(name)
        if names is not None and isinstance(value, int):
            if value == _NO_LABEL:
                return ""
            if not 0 <= value < len(names):
                raise DocumentRejectedError("unknown_category", f"expected an index below {len(names)}, got {value}")
            return names[value]
        return as_text(value, name)


def _values(column: "pyarrow.Array") -> list[Any]:
    """Return a column's values; strings as bytes, of which one that is not UTF-8 does no harm to the others."""
    import pyarrow

    if pyarrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pyarrow.types.is_string(column.type):
        column = column.cast(pyarrow.binary())
    elif pyarrow.types.is_large_string(column.type):
        column = column.cast(pyarrow.large_binary())
    values: list[Any] = column.to_pylist()
    return values
