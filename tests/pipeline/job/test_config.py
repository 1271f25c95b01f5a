"""What the command line may say, and how each mistake is told."""

from typing import Any

import pytest

from pipeline.corpus.options import Columns, CorpusOptions, InputSpec
from pipeline.errors import OptionError
from pipeline.job.config import PreprocessConfig


def corpus(*splits: str | None, columns: str = "text,category", **changes: Any) -> CorpusOptions:
    inputs = tuple(InputSpec(f"{index}.tsv", split) for index, split in enumerate(splits or [None]))
    return CorpusOptions(inputs=inputs, columns=Columns.parse(columns), **changes)


VALID: dict[str, Any] = {"corpus": corpus(), "vocab_path": "vocab.txt", "output_dir": "dataset"}


def config(**changes: Any) -> PreprocessConfig:
    return PreprocessConfig(**VALID | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output_dir": ""}, "--output: expected a directory"),
        ({"second_label": "parent"}, "--second_label: expected one of"),
        ({"compression": "zstd"}, "--compression: expected one of none, gzip"),
        ({"duplicates": "merge"}, "--duplicates: expected one of keep, drop"),
        ({"max_len": 2}, "--max_len: expected 3 to 65535, got 2"),  # no room for a token
        ({"max_len": 65_536}, "--max_len: expected 3 to 65535, got 65536"),  # lengths are stored as uint16
        ({"seed": -1}, "--seed: expected 0 to"),
        ({"seed": 2**63}, "--seed: expected 0 to"),
        ({"num_shards": 0}, "--num_shards: expected auto or 1 to 99999, got 0"),
        ({"num_shards": 100_000}, "--num_shards: expected auto or 1 to 99999"),  # five digits in a shard's name
        ({"num_random_labels": 1}, "--num_random_labels: expected at least 2"),
        ({"max_rejected_fraction": 1.5}, "--max_rejected_fraction: expected 0 to 1, got 1.5"),
        ({"max_rejected_fraction": float("nan")}, "--max_rejected_fraction: expected 0 to 1, got nan"),
        ({"second_label": "column"}, "--second_label column: --columns, or --levels of a tree, must name 'second'"),
        ({"corpus": corpus(columns="text")}, r"--columns: expected text, category \(and second\) once each"),
        (
            {"corpus": corpus("train"), "split_weights": (("train", 1.0),)},
            "--split_weights: only used for inputs without a split of their own, and every --input has one",
        ),
        ({"split_weights": (("train", 0.8), ("dev", 0.1))}, r"sum to 1, got 0.9 \(train=0.8,dev=0.1\)"),
        ({"split_weights": (("train", 1.1), ("dev", -0.1))}, "shares from 0 to 1, got train=1.1"),
        ({"split_weights": (("train", float("nan")),)}, "shares from 0 to 1, got train=nan"),
        ({"split_weights": (("a", 0.5), ("a", 0.5))}, "a split is named twice"),
        ({"split_weights": (("a-b", 1.0),)}, "'a-b' cannot name a split"),
        ({"split_weights": (("", 1.0),)}, "'' cannot name a split"),
        ({"split_weights": (("rejected", 1.0),)}, "'rejected' cannot name a split"),
    ],
)
def test_wrong_options_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        config(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"max_len": 3},
        {"max_len": 65_535},
        {"seed": 2**63 - 1},
        {"max_rejected_fraction": 0.0},
        {"max_rejected_fraction": 1.0},
        {"corpus": corpus(columns="second,text,category"), "second_label": "column"},
        {"corpus": corpus(levels=("second", "category")), "second_label": "column"},
        # Thirds do not add up to exactly 1 in binary.
        {"split_weights": (("a", 1 / 3), ("b", 1 / 3), ("c", 1 / 3))},
        {"split_weights": (("train", 0.7), ("dev", 0.2), ("test", 0.1))},
    ],
)
def test_edges_that_are_allowed(changes: dict[str, Any]) -> None:
    made = config(**changes)
    assert all(getattr(made, name) == value for name, value in changes.items())


def test_described_content_is_the_same_for_every_container() -> None:
    """What lies in `dataset.json` may depend on what the documents are, never on where or in what they lie."""
    first = config()
    second = config(
        corpus=CorpusOptions(inputs=(InputSpec("/elsewhere/corpus.zip"),), input_format="zip"),
        vocab_path="/elsewhere/vocab.txt",
        output_dir="/elsewhere/dataset",
        overwrite=True,
        max_rejected_fraction=0.5,
    )
    assert first.describe_content() == second.describe_content()
    assert config(duplicates="drop").describe_content() != first.describe_content()
    assert "/elsewhere" not in str(second.describe_content())
