"""A finished run on texts, made in a second: everything a run leaves behind and others read, but never trained."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import tensorflow as tf
import tf_keras

from model.bert.checkpoint import save_bert_dir
from model.classifier import build_classifier, logits_model
from model.run.directory import RunDir
from model.run.metrics_csv import write_metrics_csv
from model.run.report import Evaluation, Report, TrainingSummary
from model.run.weights import save_model_weights
from model.training.run_inputs import RunInputs, read_run_inputs
from pipeline.corpus.documents import normalize_text
from pipeline.input_pipeline.reader import eval_dataset
from pipeline.tokenization.tokenizer import Tokenizer
from tests.support.runs import RESOLVED, TINY_BERT, make_bert_dir, tiny_config
from tests.support.tiny_dataset import TinyExample, write_tiny_dataset

MAX_LEN = 20
LABELS = (("体育", "财经/交易", "娱乐"), ("动", "静"))
# [CLS] and [SEP] have the ids that `tests.support.tiny_dataset` gives them.
VOCAB = (
    *("[PAD]", "[CLS]", "[SEP]", "[UNK]", *"，。！中国新闻体育你好的是不"),
    *("be", "##rt", "bert", "##e", "a", "##a", "b", "##b", "ab", "##ab", "σ", "##ς", "##σ", "é", "20", "##20"),
    *("\u1112", "##\u1161", "##\u11ab", "\u302e", "##\u302f", "##\u0903", "i", "##i", "the", "##2"),
)
# Weights this large make the texts matter.
BERT = dataclasses.replace(TINY_BERT, vocab_size=len(VOCAB), initializer_range=0.5)
TEXTS = (
    "中国新闻，体育！",
    "你好BERT",
    "the abba 2020，不是",
    "体育\n\n体育",
    "中" * 40,
    "abab" * 20,
    "好",
    "ΣΑΣ 한 a☃b ☃☃",
    "不不不。。是",
    "国国",
    "berte the",
)


def make_text_data_dir(
    path: Path,
    texts: Sequence[str] = TEXTS,
    *,
    max_len: int = MAX_LEN,
    labels: tuple[Sequence[str], Sequence[str]] = LABELS,
    cased: bool = False,
) -> Path:
    """Write a dataset directory whose every split holds these texts, as preprocessing tokenizes them."""
    vocab = {token: token_id for token_id, token in enumerate(VOCAB)}
    tokenizer = Tokenizer(vocab, max_len=max_len, cased=cased)
    examples = [
        TinyExample(
            indices=tokenizer.encode(normalize_text(text))[0],
            label=number % len(labels[0]),
            second_label=number % len(labels[1]),
            key=f"texts:{number}",
        )
        for number, text in enumerate(texts)
    ]
    splits = {"train": examples, "dev": examples[:5], "test": examples}
    write_tiny_dataset(path, splits, max_len=max_len, vocab=VOCAB, labels=labels, cased=cased)
    return path


def make_finished_run(path: Path, *, cased: bool = False, **options: object) -> Path:
    """Write dataset, BERT and a finished run below `path`, made if it is not there, and return the run's directory."""
    data_dir = make_text_data_dir(path / "data", cased=cased)
    bert_dir = make_bert_dir(path / "bert", BERT, VOCAB)
    config = tiny_config(data_dir=str(data_dir), bert_dir=str(bert_dir), output_dir=str(path / "run"), **options)
    inputs: RunInputs = read_run_inputs(config)
    run = RunDir(path / "run")
    run.path.mkdir()
    run.vocab.write_bytes((bert_dir / "vocab.txt").read_bytes())
    run.bert_config.write_bytes((bert_dir / "bert_config.json").read_bytes())
    run.write_config(inputs.describe(config, RESOLVED))
    model = build_classifier(
        bert_dir, inputs.head_sizes(config.model.heads), config.model.pooling, config.model.encoder, policy="float32"
    )
    _spread_labels(model, inputs, str(data_dir))
    save_model_weights(run.weights, model)
    save_bert_dir(model, run.bert_config, run.vocab, run.bert)
    names = ["loss", *(f"{head}_{what}" for head in config.model.heads for what in ("loss", "accuracy")), "exact_match"]
    metrics = dict.fromkeys([*names, *(f"val_{name}" for name in names)], 0.5)
    write_metrics_csv(run.metrics, [{"epoch": 1, "step": 2, "learning_rate": 1e-3, **metrics}])
    run.write_report(
        Report(
            evaluation=Evaluation(
                split="test",
                num_examples=len(TEXTS),
                decode="independent",
                heads={},
                exact_match=0.5,
                decoding=None,
                unseen_pairs=None,
                seconds=1.0,
                unknown_labels={},
            ),
            training=TrainingSummary(
                monitored=config.learning.monitored,
                best_value=0.5,
                best_epoch=1,
                epochs=1,
                steps=2,
                early_stopped=False,
                seconds=1.0,
                clock_seconds=2.0,
                num_examples=22,
                device_changes=(),
            ),
        )
    )
    return run.path


def _spread_labels(model: tf_keras.Model, inputs: RunInputs, data_dir: str) -> None:
    """Set the heads' biases so that every label is somebody's."""
    (texts, _), *_ = eval_dataset(data_dir, "test", len(TEXTS), inputs.max_len)
    for head, logits in logits_model(model)([texts["indices"], texts["segments"]]).items():
        model.get_layer(f"{head}_logits").bias.assign(-tf.reduce_mean(logits, axis=0))
