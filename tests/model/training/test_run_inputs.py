"""Dataset, BERT directory and options must agree before anything starts."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from model.training.run_inputs import read_run_inputs
from pipeline.dataset.info import read_dataset_info
from pipeline.errors import (
    EmptySplitError,
    InputFormatError,
    MissingInputError,
    OptionError,
    PipelineError,
    SchemaMismatchError,
)
from tests.support.runs import (
    MAX_LEN,
    RESOLVED,
    TINY_BERT,
    VOCAB,
    make_bert_dir,
    make_data_dir,
    tiny_config,
    with_options,
)
from tests.support.tiny_dataset import tiny_examples, write_tiny_dataset


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_data_dir(tmp_path_factory.mktemp("data") / "data")


@pytest.fixture(scope="module")
def bert_dir(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_bert_dir(tmp_path_factory.mktemp("bert") / "bert")


def refuse(error_type: type[PipelineError], data_dir: Path | str, bert_dir: Path, **options: Any) -> str:
    with pytest.raises(error_type) as error:
        read_run_inputs(tiny_config(data_dir=str(data_dir), bert_dir=str(bert_dir), **options))
    message = str(error.value)
    assert "\n" not in message
    return message


def test_reads_what_fits(data_dir: Path, bert_dir: Path) -> None:
    config = tiny_config(data_dir=str(data_dir), bert_dir=str(bert_dir))
    inputs = read_run_inputs(config)
    assert (inputs.max_len, inputs.test_split) == (MAX_LEN, "test")
    assert inputs.head_sizes(("second", "category")) == {"second": 2, "category": 3}
    described = inputs.describe(with_options(config, heads=("second",)), RESOLVED)
    assert (described.labels, described.label_pairs, described.resolved) == ({"second": ("x", "y")}, None, RESOLVED)
    assert described.dataset.fingerprint == inputs.info.fingerprint
    assert described.versions["tensorflow"].count(".") == 2


def test_another_vocabulary(data_dir: Path, tmp_path: Path) -> None:
    other = make_bert_dir(tmp_path / "bert", vocab=(*VOCAB[:-1], "other"))
    message = refuse(SchemaMismatchError, data_dir, other)
    assert "its ids refer to another vocabulary" in message
    assert f"preprocess with --vocab {other}/vocab.txt" in message


def test_a_vocabulary_of_another_size_than_the_config_says(
    data_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    longer = make_bert_dir(tmp_path / "longer", vocab=(*VOCAB, "more"))
    assert "51 entries, but vocab_size" in refuse(InputFormatError, data_dir, longer)
    config = dataclasses.replace(TINY_BERT, vocab_size=len(VOCAB) + 3)
    shorter = make_bert_dir(tmp_path / "shorter", config)
    read_run_inputs(tiny_config(data_dir=str(data_dir), bert_dir=str(shorter)))
    assert "vocab.txt: 50 entries, vocab_size in bert_config.json is 53; no text has the last ids" in caplog.text


@pytest.mark.parametrize(
    ("cased", "lowers", "warning"),
    [
        (False, True, ""),
        (
            False,
            False,
            "texts are in lower case, the tokenizer configuration of BERT says otherwise; preprocess with --ca",
        ),
        (
            True,
            True,
            "texts are in their own case, the tokenizer configuration of BERT says otherwise; preprocess with --no",
        ),
        (True, False, ""),
    ],
)
def test_a_tokenizer_configuration_of_another_letter_case(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, cased: bool, lowers: bool, warning: str
) -> None:
    data_dir, bert_dir = make_data_dir(tmp_path / "data", cased=cased), make_bert_dir(tmp_path / "bert")
    (bert_dir / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lowers}))
    inputs = read_run_inputs(config := tiny_config(data_dir=str(data_dir), bert_dir=str(bert_dir)))
    assert warning.replace("BERT", str(bert_dir)) in caplog.text
    assert bool(caplog.text) == bool(warning)
    assert inputs.describe(config, RESOLVED).cased is cased


def test_the_same_vocabulary_with_other_line_ends(data_dir: Path, tmp_path: Path) -> None:
    other = make_bert_dir(tmp_path / "bert")
    (other / "vocab.txt").write_bytes((other / "vocab.txt").read_bytes().replace(b"\n", b"\r\n"))
    config = tiny_config(data_dir=str(data_dir), bert_dir=str(other))
    origin = read_run_inputs(config).origin(config)
    assert origin.bert.vocab_sha256 == read_dataset_info(str(data_dir)).vocab_sha256


@pytest.mark.parametrize("name", ["vocab.txt", "bert_config.json", "bert_model.ckpt.index"])
def test_a_missing_file(data_dir: Path, tmp_path: Path, name: str) -> None:
    other = make_bert_dir(tmp_path / "bert")
    (other / name).unlink()
    assert name in refuse(MissingInputError, data_dir, other)


def test_missing_directories(data_dir: Path, bert_dir: Path, tmp_path: Path) -> None:
    assert "no such dataset directory" in refuse(MissingInputError, tmp_path / "none", bert_dir)
    assert "no dataset.json in it" in refuse(MissingInputError, tmp_path, bert_dir)
    assert "no such directory" in refuse(MissingInputError, data_dir, tmp_path / "none")


def test_a_file_system_that_tensorflow_lacks(bert_dir: Path) -> None:
    message = refuse(OptionError, "s3://bucket/data", bert_dir)
    assert message.startswith("--data s3://bucket/data: this TensorFlow reads local files and ")
    assert message.endswith("not s3://; copy the dataset to a local directory, and give that")


def test_max_len_beyond_the_data(data_dir: Path, bert_dir: Path) -> None:
    message = refuse(OptionError, data_dir, bert_dir, max_len=17)
    assert "--max_len 17 is longer than the 16 tokens the dataset was written with; use at most 16" in message


def test_max_len_beyond_the_positions(data_dir: Path, tmp_path: Path) -> None:
    short = make_bert_dir(tmp_path / "bert", dataclasses.replace(TINY_BERT, max_position_embeddings=12))
    message = refuse(OptionError, data_dir, short)
    assert "the dataset's max_len 16 is longer than the 12 positions (max_position_embeddings)" in message
    assert "--max_len 13 is longer than the 12 positions" in refuse(OptionError, data_dir, short, max_len=13)
    config = tiny_config(data_dir=str(data_dir), bert_dir=str(short), max_len=12)
    assert read_run_inputs(config).max_len == 12


def test_without_a_test_split_the_report_measures_dev(tmp_path: Path, bert_dir: Path) -> None:
    data_dir = make_data_dir(tmp_path / "data", ("train", "dev"))
    assert read_run_inputs(tiny_config(data_dir=str(data_dir), bert_dir=str(bert_dir))).test_split == "dev"


@pytest.mark.parametrize("splits", [("train", "test"), ("dev", "test")])
def test_nothing_to_train_or_validate_on(tmp_path: Path, bert_dir: Path, splits: tuple[str, ...]) -> None:
    data_dir = make_data_dir(tmp_path / "data", splits)
    missing = ({"train", "dev"} - set(splits)).pop()
    assert f"split '{missing}' has no examples" in refuse(EmptySplitError, data_dir, bert_dir)


def test_a_head_with_one_class(tmp_path: Path, bert_dir: Path) -> None:
    examples = {split: tiny_examples([5, 6], num_labels=(3, 1)) for split in ("train", "dev")}
    write_tiny_dataset(tmp_path / "data", examples, max_len=16, labels=(("a", "b", "c"), ("x",)), vocab=VOCAB)
    assert "--heads second: the dataset has 1 class of it (x)" in refuse(OptionError, tmp_path / "data", bert_dir)
    read_run_inputs(tiny_config(data_dir=str(tmp_path / "data"), bert_dir=str(bert_dir), heads=("category",)))
