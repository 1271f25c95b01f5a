"""Figures of the benchmarks, as files that can be compared."""

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure


def save_svg(figure: Figure, path: Path) -> None:
    """Write a figure; the same figures give the same file."""
    with matplotlib.rc_context({"svg.hashsalt": path.stem}):
        figure.savefig(path, format="svg", metadata={"Date": None})
