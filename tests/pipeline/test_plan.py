"""The printed plan of an epoch."""

from pathlib import Path

import pytest

from pipeline.command_line import run_command
from pipeline.plan import main
from tests.support.search import first_group
from tests.support.tiny_dataset import tiny_examples, write_tiny_dataset


@pytest.fixture
def data_dir(tmp_path: Path) -> str:
    # The plan counted by hand in test_batch_plan.
    lengths = [4] * 3 + [6] * 5 + [8] * 2
    write_tiny_dataset(tmp_path / "d", {"train": tiny_examples(lengths), "dev": []}, max_len=8)
    return str(tmp_path / "d")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert run_command(main, arguments) == 0
    return capsys.readouterr().out


def test_the_plan_shows_buckets_padding_and_steps(data_dir: str, capsys: pytest.CaptureFixture[str]) -> None:
    printed = run(capsys, data_dir, "--batch_size", "2", "--seconds", "0")
    size = sum(path.stat().st_size for path in Path(data_dir).glob("train-*.tfrecord"))
    rows = [line.split() for line in printed.splitlines()]
    assert ["1", "4", "3", "2", "1"] in rows
    assert ["2", "6", "5", "2", "2"] in rows
    assert ["3", "8", "2", "2", "1"] in rows
    assert ["all", "to", "8", "80", "27.5%"] in rows
    # In stored order: (4, 4), (4, 6), (6, 6), (6, 6), (8, 8).
    assert ["each", "batch", "to", "its", "longest", "60", "3.3%"] in rows
    assert ["planned", "60", "3.3%"] in rows
    assert ["steps", "per", "epoch", "5"] in rows
    assert ["bytes", "per", "epoch", f"{size:,}"] in rows
    assert "reader" not in printed


def test_the_plan_is_of_the_split_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    splits = {"train": tiny_examples([4] * 9), "dev": tiny_examples([5] * 4 + [7] * 3)}
    write_tiny_dataset(tmp_path / "d", splits, max_len=8)
    train_size = (tmp_path / "d" / "train-00000-of-00001.tfrecord").stat().st_size
    for split, said in (
        ("train", "train: 9 examples, 36 tokens, 0 cut to max_len 8\n"),
        ("dev", "dev: 7 examples, 41 tokens, 0 cut to max_len 8\n"),
    ):
        printed = run(capsys, str(tmp_path / "d"), "--batch_size", "2", "--seconds", "0.01", "--split", split)
        size = (tmp_path / "d" / f"{split}-00000-of-00001.tfrecord").stat().st_size
        assert printed.startswith(said)
        assert f"\nbytes per epoch  {size:,}\n" in printed
        assert run(capsys, str(tmp_path / "d"), "--seconds", "0").startswith("train: 9 "), "unless told otherwise"
        # What is measured is the split asked for, too: the other one could not be read.
        (tmp_path / "d" / "train-00000-of-00001.tfrecord").write_bytes(b"damaged".ljust(train_size))


def test_every_option_changes_the_plan(data_dir: str, capsys: pytest.CaptureFixture[str]) -> None:
    base = run(capsys, data_dir, "--seconds", "0")
    for arguments in (
        ("--batch_size", "3"),
        ("--batch_tokens", "24"),
        ("--batch_tokens", "24", "--num_replicas", "2"),
        ("--buckets", "off"),
        ("--buckets", "5,8"),
        ("--max_len", "5"),
    ):
        changed = run(capsys, data_dir, "--seconds", "0", *arguments)
        assert changed != base
        base = changed


def test_the_reader_is_measured(data_dir: str, capsys: pytest.CaptureFixture[str]) -> None:
    printed = run(capsys, data_dir, "--batch_size", "2", "--seconds", "0.01")
    assert int(first_group(r"reader +([\d,]+) examples/s", printed).replace(",", "")) > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--buckets", "wide"], "--buckets: expected auto, off"),
        (["--buckets", "5,9"], "9 is larger than max_len 8"),
        (["--max_len", "9"], "max_len 9 is larger than the 8"),
        (["--seconds", "-1"], "--seconds"),
        (["--split", "dev"], "split 'dev' has no examples"),
        (["--batch_size", "3", "--num_replicas", "2"], "a global batch of 3 cannot be divided among 2 replicas"),
    ],
)
def test_what_cannot_be_planned_is_one_line_and_status_2(
    data_dir: str, arguments: list[str], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert run_command(main, [data_dir, *arguments]) == 2
    assert message in caplog.text
