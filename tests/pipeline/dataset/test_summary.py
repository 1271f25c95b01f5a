"""The closing summary: every number of a description made by hand, and of a corpus whose numbers are known."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.dataset.files import LENGTHS_DTYPE
from pipeline.dataset.info import DatasetInfo, DocumentCounts, FileInfo, SplitInfo
from pipeline.dataset.labels import LabelMap
from pipeline.dataset.summary import describe_dataset, display_width, format_table
from tests.support.corpora import write_lines
from tests.support.workshop import make_workshop


def split_of(
    lengths: list[int], joint: list[list[int]], *, unknown: int, cut: int, shard_bytes: list[int]
) -> SplitInfo:
    return SplitInfo.of(
        np.array(lengths, LENGTHS_DTYPE),
        np.array(joint, np.int64),
        max_len=128,
        num_unknown_tokens=unknown,
        num_truncated=cut,
        lengths_file=file_of(9_999_999),
        shards=tuple(map(file_of, shard_bytes)),
    )


def file_of(num_bytes: int) -> FileInfo:
    return FileInfo(name="x", num_examples=1, num_bytes=num_bytes, sha256="0" * 64)


INFO = DatasetInfo(
    max_len=128,
    compression="none",
    vocab_sha256="0" * 64,
    vocab_size=21_128,
    labels={"category": LabelMap(("体育", "finance")), "second": LabelMap(("经济金融", "x"))},
    splits={
        # The 5th, 50th and 95th of 100 are the last of a length, the last of a length, and the first.
        "train": split_of(
            [10] * 5 + [20] * 45 + [40] * 44 + [128] * 6,
            [[50, 10], [0, 40]],
            unknown=87,
            cut=6,
            shard_bytes=[1_200_000, 70_000],
        ),
        "dev": split_of([5, 7, 9], [[1, 0], [2, 0]], unknown=1, cut=0, shard_bytes=[460_000]),
        "test": split_of([], [[0, 0], [0, 0]], unknown=0, cut=0, shard_bytes=[0]),
    },
    documents=DocumentCounts(
        read=1_110,
        written=103,
        rejected={"empty": 1_000, "not_utf-8": 7},
        duplicates=1_012,
        conflicting=[["a", "b"], ["c", "d"]],
    ),
    seed=7,
    configuration={},
    versions={},
)


def test_every_number_of_a_description() -> None:
    assert describe_dataset(INFO, "data/x").split("\n") == [
        f"dataset data/x  (fingerprint {INFO.fingerprint[:12]}, seed 7, max_len 128, vocabulary 21,128)",
        "documents: 1,110 read = 103 written + 1,007 rejected (empty 1,000, not_utf-8 7); "
        "1,012 duplicates, 2 texts with conflicting labels",
        "",
        "split  examples  shards   MB  tokens  mean  p5  p50  p95   cut  [UNK]",
        "train       100       2  1.3   3,478    35  10   20  128  6.0%  2.50%",
        "dev           3       1  0.5      21     7   5    7    9  0.0%  4.76%",
        "test          0       1  0.0       0     -   -    -    -     -      -",
        "",
        "category  id  train  dev  test  share",
        "体育       0     60    1     0  59.2%",
        "finance    1     40    2     0  40.8%",
        "",
        "second    id  train  dev  test  share",
        "经济金融   0     50    3     0  51.5%",
        "x          1     50    0     0  48.5%",
    ]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"rejected": {}, "read": 103}, "documents: 103 read = 103 written + 0 rejected (none); 1,012 duplicates"),
        ({"in_several_splits": 1_234}, "in more than one split: 1,234 texts, as the tokenizer sees them"),
    ],
)
def test_lines_about_documents(changes: dict[str, Any], line: str) -> None:
    assert "in more than one" not in describe_dataset(INFO, "x")
    said = describe_dataset(dataclasses.replace(INFO, documents=dataclasses.replace(INFO.documents, **changes)), "x")
    assert any(found.startswith(line) for found in said.split("\n"))


def test_columns_of_a_table_line_up_on_a_terminal() -> None:
    lines = format_table(("name", "n"), [("体育/a", "1"), ("x", "10,000")])
    assert lines == ["name         n", "体育/a       1", "x       10,000"]
    assert len({display_width(line) for line in lines}) == 1


def test_the_summary_of_a_known_corpus(tmp_path: Path) -> None:
    """Texts of 1 to 5 characters: one is cut, one unknown, one there twice, one in both splits; two are unusable."""
    workshop = make_workshop(tmp_path)
    texts = ["山", "山水", "山水风", "山水风云", "山水风云日", "龙"]
    lines = [*(f"{text}\t体育".encode() for text in texts), "山\t科技".encode(), b"\xff\t\xe4", "\t体育".encode()]
    train = write_lines(tmp_path / "train.tsv", lines)
    dev = write_lines(tmp_path / "dev.tsv", ["山水\t体育", "红黄\t股票"])
    options = ["--max_len", "6", "--max_rejected_fraction", "0.5", "--num_shards", "1"]
    outcome = workshop.run(*options, inputs=(f"train={train}", f"dev={dev}"))
    assert (outcome.status, outcome.stderr) == (0, "")
    dataset, documents, twice, _, *tables = outcome.stdout.split("\n")
    assert dataset.startswith(f"dataset {workshop.output}  (fingerprint ")
    assert dataset.endswith(", seed 0, max_len 6, vocabulary 118)")
    assert documents == (
        "documents: 11 read = 9 written + 2 rejected (empty 1, not_utf-8 1); "
        "1 duplicates, 1 texts with conflicting labels"
    )
    assert twice == "in more than one split: 1 texts, as the tokenizer sees them"
    assert tables[:13] == [
        "split  examples  shards   MB  tokens  mean  p5  p50  p95    cut  [UNK]",
        "train         7       1  0.0      30     4   3    4    6  14.3%  3.33%",
        "dev           2       1  0.0       8     4   4    4    4   0.0%  0.00%",
        "",
        "category  id  train  dev  share",
        "体育       0      6    1  77.8%",
        "科技       1      1    0  11.1%",
        "股票       2      0    1  11.1%",
        "",
        "second    id  train  dev  share",
        "公共事务   0      1    0  11.1%",
        "生活娱乐   1      6    1  77.8%",
        "经济金融   2      0    1  11.1%",
    ]


def test_names_cannot_steer_the_terminal() -> None:
    lines = format_table(("name", "\x1b[2Jn"), [("体\n育\x9b", "1"), ("x", "\u2028")])
    assert lines == ["name        \\x1b[2Jn", "体\\n育\\x9b         1", "x             \\u2028"]
    labels = {"category": LabelMap(("\x1b[31m", "finance")), "second": LabelMap(("\x9b", "x"))}
    documents = dataclasses.replace(INFO.documents, rejected={"\x07": 1_007})
    said = describe_dataset(dataclasses.replace(INFO, labels=labels, documents=documents), "\x1bdata")
    assert not {character for character in said if not character.isprintable()} - {"\n"}
    assert said.count("\n") == describe_dataset(INFO, "data").count("\n")
