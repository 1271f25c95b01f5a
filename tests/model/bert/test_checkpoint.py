"""Google-format BERT directories: what is read, what is refused, what is written."""

import errno
import json
import resource
import shutil
from pathlib import Path
from typing import Any

import keras_bert
import numpy as np
import pytest
import tensorflow as tf

from model.bert.checkpoint import (
    encoder_variables,
    load_encoder_weights,
    pretraining_variables,
    random_variable,
    save_bert_dir,
    write_bert_dir,
)
from model.bert.config import BertConfig
from model.bert.directory import read_bert_dir
from model.classifier import build_classifier
from pipeline.errors import InputFormatError, MissingInputError, OptionError, OutputExistsError, OutputWriteError
from tests.support.berts import (
    KERAS_BERT_WARNING,
    SMALL,
    keras_bert_outputs,
    make_bert_dir,
    pooled_outputs,
    random_batch,
)
from tests.support.real_data import real_data

pytestmark = pytest.mark.filterwarnings(KERAS_BERT_WARNING)

HEADS = {"category": 5}


@pytest.fixture(scope="module")
def bert_dir(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_bert_dir(tmp_path_factory.mktemp("checkpoint") / "bert", SMALL, stddev=0.2)


@pytest.fixture
def broken_dir(bert_dir: Path, tmp_path: Path) -> Any:
    """A copy to break."""
    return shutil.copytree(bert_dir, tmp_path / "broken")


def encoder_weights(model: Any, config: Any) -> Any:
    """Return Google's variable name -> array of a model's encoder."""
    return {
        name: value
        for layer, targets in encoder_variables(config).items()
        for (name, _), value in zip(targets, model.get_layer(layer).get_weights(), strict=True)
    }


def test_names_and_shapes_are_those_of_the_published_chinese_bert() -> None:
    config = BertConfig.from_file(real_data("bert_base_chinese", "bert_config.json"))
    published = {}
    for line in real_data("bert_base_chinese", "variables.tsv").read_text().splitlines():
        name, _, shape, *_ = line.split("\t")
        published[name] = tuple(int(size) for size in shape.split(","))
    ours = {name: shape for targets in encoder_variables(config).values() for name, shape in targets}
    assert ours == {name: shape for name, shape in published.items() if not name.startswith(("bert/pooler", "cls"))}
    assert ours | dict(pretraining_variables(config)) == published


def test_a_checkpoint_with_optimizer_slots_and_global_step_loads() -> None:
    bert_dir = real_data("tiny_checkpoint")
    names = [name for name, _ in tf.train.list_variables(str(bert_dir / "bert_model.ckpt"))]
    assert "global_step" in names  # otherwise this test would show nothing
    assert "bert/embeddings/word_embeddings/adam_m" in names
    model = build_classifier(bert_dir, HEADS)
    for name, value in encoder_weights(model, BertConfig.from_file(bert_dir / "bert_config.json")).items():
        np.testing.assert_array_equal(value, tf.train.load_variable(str(bert_dir / "bert_model.ckpt"), name))


@pytest.mark.parametrize("encoder", ["fused", "keras_bert"])
def test_our_loader_and_keras_berts_set_the_same_weights(bert_dir: Path, encoder: str) -> None:
    ours, theirs = (build_classifier(bert_dir, HEADS, encoder=encoder, load_weights=False) for _ in range(2))
    load_encoder_weights(ours, bert_dir)
    config = json.loads((bert_dir / "bert_config.json").read_text())
    keras_bert.load_model_weights_from_checkpoint(theirs, config, str(bert_dir / "bert_model.ckpt"), training=False)
    for mine, other in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, other)


@pytest.mark.parametrize("encoder", ["fused", "keras_bert"])
def test_what_we_save_keras_bert_loads_with_equal_outputs(bert_dir: Path, tmp_path: Path, encoder: str) -> None:
    model = build_classifier(bert_dir, HEADS, encoder=encoder)
    for weight in model.weights:  # as if it had been trained
        weight.assign(weight + 0.01)
    save_bert_dir(model, bert_dir / "bert_config.json", bert_dir / "vocab.txt", tmp_path / "saved")
    assert sorted(path.name for path in tmp_path.joinpath("saved").iterdir()) == [
        "bert_config.json",
        "bert_model.ckpt.data-00000-of-00001",
        "bert_model.ckpt.index",
        "vocab.txt",
    ]
    for name in ("bert_config.json", "vocab.txt"):
        assert (tmp_path / "saved" / name).read_bytes() == (bert_dir / name).read_bytes()
    batch = random_batch(SMALL, [20, 9])
    expected = pooled_outputs(model, batch)
    np.testing.assert_allclose(keras_bert_outputs(tmp_path / "saved", batch)[:, 0], expected, atol=1e-5)
    np.testing.assert_allclose(pooled_outputs(build_classifier(tmp_path / "saved", HEADS), batch), expected, atol=1e-5)


def test_saving_and_loading_keeps_every_bit(bert_dir: Path, tmp_path: Path) -> None:
    model = build_classifier(bert_dir, HEADS)
    for name in ("a", "b"):
        save_bert_dir(model, bert_dir / "bert_config.json", bert_dir / "vocab.txt", tmp_path / name)
    assert {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()
    }
    saved = encoder_weights(build_classifier(tmp_path / "a", HEADS), SMALL)
    for name, value in encoder_weights(model, SMALL).items():
        np.testing.assert_array_equal(saved[name], value)


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("vocab.txt", "vocab.txt"),
        ("bert_config.json", "bert_config.json"),
        ("bert_model.ckpt.index", "bert_model.ckpt.index"),
        ("bert_model.ckpt.data-00000-of-00001", "bert_model.ckpt.data-00000-of-00001"),
    ],
)
def test_a_missing_file_is_named(broken_dir: Any, name: str, named: str) -> None:
    (broken_dir / name).unlink()
    with pytest.raises(MissingInputError, match=named):
        read_bert_dir(broken_dir)


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="nowhere"):
        read_bert_dir(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(MissingInputError, match="expected a BERT directory"):
        read_bert_dir(tmp_path / "file")


def test_a_vocabulary_of_another_size_is_refused_with_both_numbers(broken_dir: Any) -> None:
    with (broken_dir / "vocab.txt").open("a") as vocab:
        vocab.write("one\nmore\n")
    with pytest.raises(InputFormatError, match=r"62 entries.*is 60"):
        read_bert_dir(broken_dir)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": None}, r"field 'hidden_size' is missing"),
        ({"hidden_size": "32"}, r"hidden_size must be a whole number above 0, got '32'"),
        ({"hidden_size": True}, r"hidden_size must be a whole number above 0, got True"),
        ({"num_hidden_layers": 0}, r"num_hidden_layers must be a whole number above 0, got 0"),
        ({"num_attention_heads": 5}, r"hidden_size 32 is not a multiple of num_attention_heads 5"),
        ({"hidden_act": "swish"}, r"hidden_act must be one of gelu, gelu_python, relu, tanh, linear, got 'swish'"),
        ({"hidden_dropout_prob": 1.0}, r"hidden_dropout_prob must be at least 0 and below 1, got 1.0"),
        ({"attention_probs_dropout_prob": "a"}, r"attention_probs_dropout_prob must be a number, got 'a'"),
        ({"initializer_range": 0}, r"initializer_range must be between 0 and 1, got 0"),
    ],
)
def test_an_impossible_configuration_is_refused(broken_dir: Any, change: Any, message: str) -> None:
    path = broken_dir / "bert_config.json"
    fields = {k: v for k, v in (json.loads(path.read_text()) | change).items() if v is not None}
    path.write_text(json.dumps(fields))
    with pytest.raises(InputFormatError, match=rf"bert_config\.json: {message}"):
        read_bert_dir(broken_dir)


@pytest.mark.parametrize("text", ["", "{", "[1]", "\ufffd"])
def test_a_configuration_that_is_no_json_object_is_refused(broken_dir: Any, text: str) -> None:
    (broken_dir / "bert_config.json").write_text(text)
    with pytest.raises(InputFormatError, match=r"bert_config\.json"):
        read_bert_dir(broken_dir)


def test_fields_of_no_use_are_left_aside_and_round_trips_are_exact() -> None:
    config = BertConfig.from_file(real_data("bert_base_chinese", "bert_config.json"))
    assert (config.vocab_size, config.hidden_size, config.head_size) == (21128, 768, 64)
    assert json.loads(config.to_json())["max_position_embeddings"] == 512
    with pytest.raises(OptionError, match="dropout"):
        config.with_dropout(1.0)


def rewrite_checkpoint(bert_dir: Path, change: Any) -> None:
    """Write the checkpoint of a directory anew, with its variables changed by a function."""
    variables = encoder_weights(build_classifier(bert_dir, HEADS), SMALL)
    change(variables)
    write_bert_dir(
        bert_dir,
        config_bytes=(bert_dir / "bert_config.json").read_bytes(),
        vocab_bytes=(bert_dir / "vocab.txt").read_bytes(),
        variables=variables,
        overwrite=True,
    )


def test_a_checkpoint_without_a_variable_is_refused(broken_dir: Any) -> None:
    name = "bert/encoder/layer_1/attention/self/key/bias"
    rewrite_checkpoint(broken_dir, lambda variables: variables.pop(name))
    with pytest.raises(InputFormatError, match=rf"no variable {name}; expected one of shape \(32,\)"):
        build_classifier(broken_dir, HEADS)


def test_a_checkpoint_with_a_variable_of_another_shape_is_refused(broken_dir: Any) -> None:
    name = "bert/embeddings/position_embeddings"
    rewrite_checkpoint(broken_dir, lambda variables: variables.update({name: np.zeros([20, 32], np.float32)}))
    with pytest.raises(InputFormatError, match=rf"{name} has shape \(20, 32\).*asks for \(24, 32\)"):
        build_classifier(broken_dir, HEADS)


@pytest.mark.parametrize("name", ["bert_model.ckpt.index", "bert_model.ckpt.data-00000-of-00001"])
@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_checkpoint_is_refused(broken_dir: Any, name: str, damage: str) -> None:
    path = broken_dir / name
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 0x10
    path.write_bytes({"cut": data[: len(data) // 2], "flip": data, "empty": b""}[damage])
    with pytest.raises(InputFormatError, match="damaged"):
        build_classifier(broken_dir, HEADS)


def test_an_existing_directory_is_kept_unless_told_otherwise(bert_dir: Path, tmp_path: Path) -> None:
    model = build_classifier(bert_dir, HEADS)
    arguments = (model, bert_dir / "bert_config.json", bert_dir / "vocab.txt")
    output = tmp_path / "out"
    output.mkdir()
    save_bert_dir(*arguments, output)  # an empty directory holds nothing to lose
    (output / "notes.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match="out: exists already"):
        save_bert_dir(*arguments, output)
    assert (output / "notes.txt").exists()
    save_bert_dir(*arguments, output, overwrite=True)
    assert not (output / "notes.txt").exists()
    (tmp_path / "file").touch()
    with pytest.raises(OutputExistsError):
        save_bert_dir(*arguments, tmp_path / "file", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "out"]


def test_a_full_disk_leaves_what_was_there_before(bert_dir: Path, tmp_path: Path) -> None:
    model = build_classifier(bert_dir, HEADS)
    arguments = (model, bert_dir / "bert_config.json", bert_dir / "vocab.txt", tmp_path / "out")
    save_bert_dir(*arguments)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))  # the vocabulary fits, the weights do not
    try:
        with pytest.raises(OutputWriteError, match="out: the BERT directory could not be written"):
            save_bert_dir(*arguments, overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_directory_that_cannot_be_replaced_is_put_back(
    bert_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_classifier(bert_dir, HEADS)
    arguments = (model, bert_dir / "bert_config.json", bert_dir / "vocab.txt", tmp_path / "out")
    save_bert_dir(*arguments)
    (tmp_path / "out" / "notes.txt").write_text("mine")
    rename = Path.rename

    def refuse_the_new_one(self: Path, target: Path) -> Path:
        if target.name == "out" and not (self / "notes.txt").exists():
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse_the_new_one)
    with pytest.raises(OutputWriteError, match="Input/output error"):
        save_bert_dir(*arguments, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def test_a_place_that_cannot_be_written_is_one_clear_error(bert_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    model = build_classifier(bert_dir, HEADS)
    with pytest.raises(OutputWriteError, match="could not be written"):
        save_bert_dir(model, bert_dir / "bert_config.json", bert_dir / "vocab.txt", tmp_path / "file" / "out")


def test_random_weights_depend_on_name_and_seed_alone() -> None:
    kernel = random_variable("a/kernel", (300, 40), stddev=0.02, seed=1)
    np.testing.assert_array_equal(kernel, random_variable("a/kernel", (300, 40), stddev=0.02, seed=1))
    assert not np.array_equal(kernel, random_variable("b/kernel", (300, 40), stddev=0.02, seed=1))
    assert not np.array_equal(kernel, random_variable("a/kernel", (300, 40), stddev=0.02, seed=1 + 2**32))
    assert np.abs(kernel).max() <= 0.04
    assert 0.016 < kernel.std() < 0.019  # 0.88 of 0.02: what the cut leaves
    assert kernel.dtype == np.float32
    np.testing.assert_array_equal(random_variable("a/bias", (3,), stddev=0.02, seed=1), np.zeros(3))
    np.testing.assert_array_equal(random_variable("LayerNorm/gamma", (3,), stddev=0.02, seed=1), np.ones(3))
