"""`metrics.csv`: exact bytes, and damaged files."""

from pathlib import Path

import pytest

from model.run.metrics_csv import read_metrics_csv, write_metrics_csv
from pipeline.errors import InputFormatError


def test_has_a_row_for_each_epoch(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    write_metrics_csv(path, [])
    assert path.read_bytes() == b""
    assert read_metrics_csv(path) == []
    write_metrics_csv(path, [{"epoch": 1, "loss": 1 / 3}, {"epoch": 2, "loss": 1e-12}])
    assert path.read_bytes() == b"epoch,loss\n1,0.333333333\n2,1e-12\n"
    assert read_metrics_csv(path) == [{"epoch": 1, "loss": pytest.approx(1 / 3)}, {"epoch": 2, "loss": 1e-12}]


@pytest.mark.parametrize("content", [None, "epoch,loss\n1,much\n", "epoch,loss\n1\n"])
def test_refuses_damaged_files(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "metrics.csv").write_text(content)
    with pytest.raises(InputFormatError, match=r"metrics\.csv: expected a table"):
        read_metrics_csv(tmp_path / "metrics.csv")
