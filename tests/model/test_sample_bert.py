"""The small random BERT made from a corpus."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import keras_bert
import numpy as np
import pytest
import tensorflow as tf

from model.bert.checkpoint import encoder_variables, pretraining_variables
from model.bert.config import BertConfig
from model.bert.directory import read_bert_dir
from model.classifier import build_classifier
from model.sample_bert import build_vocab, count_characters, main
from pipeline.errors import InputFormatError, MissingInputError, OptionError, OutputExistsError
from pipeline.tokenization.vocabulary import load_vocab
from tests.support.berts import KERAS_BERT_WARNING

SIZES = ["--layers", "1", "--hidden", "8", "--heads", "2", "--intermediate", "12", "--max_position", "16"]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A THUCNews-shaped tree of two documents."""
    for category, text in (("体育", "今天天气好\n\u3000\u3000ＡＢ！今天Éclair\n"), ("财经", "天上，今\u2028Ωω")):
        (tmp_path / "corpus" / category).mkdir(parents=True)
        (tmp_path / "corpus" / category / "1.txt").write_text(text, encoding="utf-8")
    with (tmp_path / "corpus" / "财经" / "2.txt").open("wb") as file:
        file.write("气".encode() + b"\xff\xfe")  # an odd byte now and then
    return tmp_path / "corpus"


def files_of(path: Path) -> Any:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def test_the_vocabulary_follows_frequency_then_code_point(corpus: Any) -> None:
    counts = count_characters(corpus)
    # Full-width letters are lower-cased; the separator U+2028 and the replaced bytes are no characters of a word.
    assert counts == Counter({"天": 4, "今": 3, "气": 2, "ω": 2, "上": 1, "好": 1, "！": 1, "，": 1, "ａ": 1, "ｂ": 1})
    entries = build_vocab(counts, None)
    assert entries[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    chinese = [entry for entry in entries if not entry.isascii()]
    assert chinese == ["天", "今", "ω", "##ω", "气", "上", "好", "！", "，", "ａ", "##ａ", "ｂ", "##ｂ"]
    assert {"a", "##a", "0", "##0", "~", "!"} < set(entries)
    assert not {"A", "##!", " "} & set(entries)
    assert len(set(entries)) == len(entries)
    assert build_vocab(counts, 110) == entries[:110]


def test_the_tokenizer_finds_every_character(corpus: Any, tmp_path: Path) -> None:
    assert main(["--corpus", str(corpus), "--output", str(tmp_path / "bert"), *SIZES]) == 0
    tokenizer = keras_bert.Tokenizer(load_vocab(tmp_path / "bert" / "vocab.txt"))
    text = "".join(path.read_text(encoding="utf-8", errors="ignore") for path in corpus.rglob("*.txt"))
    indices, _ = tokenizer.encode(text + "Hello, World 123!")
    assert 1 not in indices  # [UNK]


def test_names_shapes_and_values_of_the_weights(corpus: Any, tmp_path: Path) -> None:
    main(["--corpus", str(corpus), "--output", str(tmp_path / "bert"), *SIZES])
    found = read_bert_dir(tmp_path / "bert")
    assert found.config == BertConfig(
        vocab_size=len(load_vocab(found.vocab_path)),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=16,
    )
    expected = dict(pretraining_variables(found.config))
    for targets in encoder_variables(found.config).values():
        expected |= dict(targets)
    written = {name: tuple(shape) for name, shape in tf.train.list_variables(str(found.checkpoint))}
    assert written == expected
    words = tf.train.load_variable(str(found.checkpoint), "bert/embeddings/word_embeddings")
    assert 0.015 < words.std() < 0.02
    assert np.abs(words).max() <= 0.04


def test_the_seed_decides_the_bytes(corpus: Any, tmp_path: Path) -> None:
    for name, seed in (("a", "4"), ("b", "4"), ("c", "5")):
        main(["--corpus", str(corpus), "--output", str(tmp_path / name), "--seed", seed, *SIZES])
    first, same, other = (files_of(tmp_path / name) for name in "abc")
    assert first == same
    assert {name for name in first if first[name] != other[name]} == {
        "bert_model.ckpt.data-00000-of-00001",
        "bert_model.ckpt.index",  # holds the checksums
    }
    # What load_weights=False makes of the same configuration and seed.
    loaded, made = (build_classifier(tmp_path / "a", {"x": 2}, load_weights=w, seed=4) for w in (True, False))
    for mine, theirs in zip(loaded.get_weights(), made.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.filterwarnings(KERAS_BERT_WARNING)
def test_keras_bert_loads_it_with_its_pretraining_heads(corpus: Any, tmp_path: Path) -> None:
    main(["--corpus", str(corpus), "--output", str(tmp_path / "bert"), *SIZES])
    config, checkpoint = (str(tmp_path / "bert" / name) for name in ("bert_config.json", "bert_model.ckpt"))
    assert keras_bert.load_trained_model_from_checkpoint(config, checkpoint, training=True).count_params() > 0


def test_an_existing_vocabulary_can_be_used(corpus: Any, tmp_path: Path) -> None:
    vocab = tmp_path / "mine.txt"
    vocab.write_bytes("[PAD]\n[UNK]\n[CLS]\n[SEP]\n\u2028\n##\u2028".encode())  # as in the published Chinese one
    assert main(["--vocab", str(vocab), "--output", str(tmp_path / "bert"), *SIZES]) == 0
    assert (tmp_path / "bert" / "vocab.txt").read_bytes() == vocab.read_bytes()
    assert read_bert_dir(tmp_path / "bert").config.vocab_size == 6


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ([], OptionError, "one of --corpus .* and --vocab"),
        (["--corpus", "{corpus}", "--vocab", "v"], OptionError, "one of --corpus .* and --vocab"),
        (["--vocab", "v", "--vocab_size", "200"], OptionError, "--vocab_size limits"),
        (["--corpus", "{corpus}", "--vocab_size", "50"], OptionError, "--vocab_size must be at least"),
        (["--corpus", "{corpus}", "--hidden", "9"], OptionError, "hidden_size 9 is not a multiple"),
        (["--corpus", "{corpus}", "--layers", "0"], OptionError, "num_hidden_layers"),
        (["--corpus", "{corpus}", "--seed", "-1"], OptionError, "--seed"),
        (["--corpus", "{tmp}/nowhere"], MissingInputError, "nowhere: no such file or directory"),
        (["--corpus", "{tmp}/empty"], InputFormatError, "0 files without a character"),
        (["--vocab", "{tmp}/nowhere"], MissingInputError, "nowhere"),
        (["--corpus", "{corpus}", "--output", "{corpus}"], OutputExistsError, "exists already"),
    ],
)
def test_wrong_input_is_refused_and_nothing_written(
    corpus: Any, tmp_path: Path, arguments: list[Any] | list[str], error: Any, message: str
) -> None:
    (tmp_path / "empty").mkdir()
    arguments = [argument.format(corpus=corpus, tmp=tmp_path) for argument in arguments]
    if "--output" not in arguments:
        arguments += ["--output", str(tmp_path / "bert")]
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(error, match=message):
        main(arguments)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_command_prints_one_line_and_its_exit_status(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "model.sample_bert", "--output", str(tmp_path / "bert"), "--corpus", "nowhere"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=dict(os.environ, TF_CPP_MIN_LOG_LEVEL="3")
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1] == (
        "error: nowhere: no such file or directory; expected a corpus of UTF-8 text"
    )
    assert "Traceback" not in done.stderr
