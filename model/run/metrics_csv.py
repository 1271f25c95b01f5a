"""`metrics.csv`: a header, then one row for each finished epoch."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from model.files import write_text
from pipeline.errors import InputFormatError


def write_metrics_csv(path: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """Write the whole file.

    It holds nothing that depends on the clock, and is a function of the saved state: a restored run writes it again.

    Raises:
        OutputWriteError: it cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if rows:
        writer.writerow(rows[0])
        writer.writerows(
            [f"{value:.9g}" if isinstance(value, float) else value for value in row.values()] for row in rows
        )
    write_text(path, text.getvalue())


def read_metrics_csv(path: Path) -> list[dict[str, float]]:
    """Read the rows.

    Raises:
        InputFormatError: it is missing or damaged.
    """
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(stream)]
    except (OSError, ValueError, TypeError) as error:
        raise InputFormatError(f"{path}: expected a table of the epochs, found none ({error}); copy it back") from error
