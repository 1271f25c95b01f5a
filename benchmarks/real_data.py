"""The real texts that benchmarks run on, which are never in the repository."""

import argparse
import os
from pathlib import Path

DATA_DIR = Path(os.environ.get("TWO_HEADED_BERT_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
VOCAB = "bert_base_chinese/vocab.txt"
TITLES = "thucnews_titles"


def add_data_option(parser: argparse.ArgumentParser) -> None:
    """Add `--data DIR`."""
    parser.add_argument(
        "--data",
        type=_data_dir,
        default=str(DATA_DIR),
        help="directory of the real data (default: $TWO_HEADED_BERT_DATA, else ../shared/data)",
    )


def _data_dir(path: str) -> Path:
    if not Path(path, VOCAB).is_file():
        raise argparse.ArgumentTypeError(
            f"{path} has no {VOCAB}; --data or TWO_HEADED_BERT_DATA must name the real data"
        )
    return Path(path)


def read_articles(data_dir: Path) -> list[str]:
    """Read the full articles, from tables (category, text) and from the original directory tree."""
    tables = sorted(data_dir.glob("fulltext/*.tsv"))
    rows = [line for table in tables for line in table.read_text("utf-8").split("\n") if line]
    files = sorted(data_dir.glob("fulltext/THUCNews/*/*.txt"))
    return [row.split("\t", 1)[1] for row in rows] + [file.read_text("utf-8") for file in files]


def read_titles(data_dir: Path) -> list[str]:
    """Read the headlines, from tables (title, class)."""
    tables = [data_dir / TITLES / name for name in ("train.txt", "dev.txt")]
    return [line.split("\t")[0] for table in tables for line in table.read_text("utf-8").split("\n") if line]
