"""What the command line may say, and how each mistake is told."""

from collections.abc import Sequence
from typing import Any

import pytest
from pipeline.config import InputSpec, PreprocessConfig, describe

from pipeline.errors import OptionError

VALID: dict[str, Any] = {"inputs": (InputSpec("corpus"),), "vocab_path": "vocab.txt", "output_dir": "dataset"}


def config(**changes: Any) -> PreprocessConfig:
    return PreprocessConfig(**VALID | changes)


@pytest.mark.parametrize(
    ("text", "path", "split"),
    [
        ("corpus", "corpus", None),
        ("train=a.tsv", "a.tsv", "train"),
        ("held_out2=a.tsv", "a.tsv", "held_out2"),
        ("train=a=b.tsv", "a=b.tsv", "train"),  # only the first '=' counts
        ("/data/a=b.tsv", "/data/a=b.tsv", None),  # a path, because no split has a slash
        ("./a=b.tsv", "./a=b.tsv", None),
        ("训练=a.tsv", "训练=a.tsv", None),
        ("=a.tsv", "=a.tsv", None),
        ("gs://bucket/x=1/*.tsv", "gs://bucket/x=1/*.tsv", None),
    ],
)
def test_input_spec(text: str, path: str, split: str | None) -> None:
    assert InputSpec.parse(text) == InputSpec(path, split)


@pytest.mark.parametrize("text", ["", "train="])
def test_input_without_a_path_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match="no path"):
        InputSpec.parse(text)


@pytest.mark.parametrize("split", ["rejected", "", "a/../b", "..", "a-b", "训练"])
def test_splits_that_cannot_name_a_file_are_refused(split: str) -> None:
    with pytest.raises(OptionError, match=r"--input: .* cannot name a split; use letters, digits and '_'"):
        InputSpec("a", split)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": ()}, "--input: expected at least one"),
        ({"output_dir": ""}, "--output: expected a directory"),
        ({"input_format": "csv"}, "--input_format: expected one of auto, tree, zip, tsv, got 'csv'"),
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
        ({"tsv_columns": ("text",)}, r"--tsv_columns: expected text, category \(and second\) once each"),
        ({"tsv_columns": ("text", "category", "text")}, "once each"),
        ({"tsv_columns": ("text", "category", "label")}, "expected text, category, second or '-', got label"),
        ({"second_label": "column"}, "--tsv_columns must name the column 'second'"),
        ({"tsv_encoding": "gbkk"}, "unknown encoding 'gbkk'"),
        ({"tsv_encoding": "utf-16"}, "does not keep ASCII bytes"),
        ({"tsv_encoding": "rot13"}, "unknown encoding 'rot13'"),  # a codec, but not one of text
        ({"tsv_encoding": "undefined"}, "does not keep ASCII bytes"),  # fails always, on purpose
        ({"tsv_encoding": "utf-7"}, "does not keep ASCII bytes"),  # '+' begins a sequence
        ({"tsv_encoding": "hz"}, "does not keep ASCII bytes"),  # so does '~'
        ({"tsv_encoding": "raw_unicode_escape"}, "does not keep ASCII bytes"),
        ({"tsv_encoding": "unicode_escape"}, "does not keep ASCII bytes"),
        ({"taxonomy_path": "t.tsv", "second_label": "random"}, "--taxonomy: only used with --second_label taxonomy"),
        ({"num_random_labels": 4}, "--num_random_labels: only used with --second_label random, which is 'taxonomy'"),
        (
            {"inputs": (InputSpec("a", "train"),), "split_weights": (("train", 1.0),)},
            "--split_weights: only used for inputs without a split of their own, and every --input has one",
        ),
        ({"split_weights": (("train", 0.8), ("dev", 0.1))}, r"sum to 1, got 0.9 \(train=0.8,dev=0.1\)"),
        ({"split_weights": (("train", 1.1), ("dev", -0.1))}, "shares from 0 to 1, got train=1.1"),
        ({"split_weights": (("train", float("nan")),)}, "shares from 0 to 1, got train=nan"),
        ({"split_weights": (("a", 0.5), ("a", 0.5))}, "a split stands twice"),
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
        {"tsv_columns": ("category", "-", "text", "-")},
        {"tsv_columns": ("second", "text", "category"), "second_label": "column"},
        {"tsv_encoding": "gb18030"},
        {"tsv_encoding": "big5"},
        # Thirds do not add up to exactly 1 in binary.
        {"split_weights": (("a", 1 / 3), ("b", 1 / 3), ("c", 1 / 3))},
        {"split_weights": (("train", 0.7), ("dev", 0.2), ("test", 0.1))},
    ],
)
def test_edges_that_are_allowed(changes: dict[str, Any]) -> None:
    made = config(**changes)
    assert all(getattr(made, name) == value for name, value in changes.items())


@pytest.mark.parametrize(("spelt", "name"), [("UTF8", "utf-8"), ("U8", "utf-8"), ("GBK", "gbk"), ("936", "gbk")])
def test_an_encoding_has_one_name(spelt: str, name: str) -> None:
    assert config(tsv_encoding=spelt).tsv_encoding == name


@pytest.mark.parametrize(
    ("inputs", "weights", "names"),
    [
        ([None], [("dev", 0.1), ("train", 0.8), ("test", 0.1)], ("train", "dev", "test")),
        ([None], [("train", 1.0), ("dev", 0.0)], ("train",)),  # a share of nothing makes no split
        ([None], [("b", 0.5), ("a", 0.5)], ("b", "a")),  # names of one's own stay as they were given
        (["dev", "train"], PreprocessConfig.split_weights, ("train", "dev")),  # no input is left to be divided
        (["extra", None], [("train", 0.8), ("test", 0.2)], ("train", "test", "extra")),
    ],
)
def test_split_names(inputs: list[str | None], weights: Sequence[tuple[str, float]], names: tuple[str, ...]) -> None:
    specs = tuple(InputSpec(f"{index}.tsv", split) for index, split in enumerate(inputs))
    assert config(inputs=specs, split_weights=tuple(weights)).split_names == names


def test_described_content_is_the_same_for_every_container() -> None:
    """What lies in `dataset.json` may depend on what the documents are, never on where or in what they lie."""
    first = config()
    second = config(
        inputs=(InputSpec("/elsewhere/corpus.zip"),),
        vocab_path="/elsewhere/vocab.txt",
        output_dir="/elsewhere/dataset",
        input_format="zip",
        overwrite=True,
        max_rejected_fraction=0.5,
    )
    assert first.describe_content() == second.describe_content()
    assert config(duplicates="drop").describe_content() != first.describe_content()
    assert "/elsewhere" not in str(second.describe_content())


def test_describe_gives_json_values() -> None:
    described = describe(config(split_weights=(("train", 1.0),)))
    assert described["inputs"] == [{"path": "corpus", "split": None}]
    assert described["tsv_columns"] == ["text", "category"]
    assert list(described)[:3] == ["inputs", "vocab_path", "output_dir"]
