"""Tiny real inputs for training: a learnable dataset, and a BERT directory with its vocabulary; and what runs leave."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from model.bert.checkpoint import encoder_variables, random_variable, write_bert_dir
from model.bert.config import BertConfig
from model.config import TrainConfig
from model.run.description import Resolved, ResolvedBatches, ResolvedDevices
from model.training.loop import TrainingLoop
from tests.support.tiny_dataset import CLS, SEP, TinyExample, write_tiny_dataset

VOCAB = ("[PAD]", "[CLS]", "[SEP]", "[UNK]", *(f"w{number}" for number in range(46)))
MAX_LEN = 16
# Of different sizes, so that a mix-up of splits shows; no batch size here divides them.
NUM_EXAMPLES = {"train": 83, "dev": 21, "test": 13}
STEPS_PER_EPOCH = 11

# In the tests' own process TensorFlow keeps its kernels' freedom: it could not be given back to other tests.
IN_PROCESS = {"deterministic": "off"}
RESULT_FILES = (
    *("metrics.csv", "weights.npz", "bert/vocab.txt"),
    *("bert/bert_model.ckpt.data-00000-of-00001", "bert/bert_model.ckpt.index"),
)

RESOLVED = Resolved(
    precision="float32",
    devices=ResolvedDevices(
        strategy="one_device",
        num_replicas=1,
        num_workers=1,
        accumulate_steps=1,
        xla=False,
        deterministic=False,
        tf32=False,
    ),
    batches=ResolvedBatches(bucket_lengths=(8, 16), bucket_rows=(8, 8), steps_per_epoch=STEPS_PER_EPOCH),
)

TINY_BERT = BertConfig(
    vocab_size=len(VOCAB),
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=24,
    initializer_range=0.1,
)


def learnable_examples(count: int, *, seed: int) -> list[TinyExample]:
    """Make texts of which one word tells both labels; class 2 is rare."""
    generator = np.random.default_rng(seed)
    examples = []
    for number in range(count):
        label = int(generator.choice(3, p=[0.5, 0.35, 0.15]))
        words = generator.integers(10, len(VOCAB), generator.integers(1, MAX_LEN - 1)).tolist()
        words[generator.integers(len(words))] = 4 + label
        second = int(label == 2)
        examples.append(TinyExample(indices=[CLS, *words, SEP], label=label, second_label=second, key=f"{number}"))
    return examples


def make_data_dir(path: Path, splits: tuple[str, ...] = tuple(NUM_EXAMPLES), *, cased: bool = False) -> Path:
    """Write a dataset directory of 3 × 2 classes."""
    examples = {split: learnable_examples(NUM_EXAMPLES[split], seed=index) for index, split in enumerate(splits)}
    write_tiny_dataset(path, examples, max_len=MAX_LEN, num_shards=2, vocab=VOCAB, cased=cased)
    return path


def make_bert_dir(path: Path, config: BertConfig = TINY_BERT, vocab: tuple[str, ...] = VOCAB) -> Path:
    """Write a BERT directory with random weights."""
    shapes = [target for targets in encoder_variables(config).values() for target in targets]
    stddev = config.initializer_range
    write_bert_dir(
        path,
        config_bytes=config.to_json().encode(),
        vocab_bytes="".join(f"{token}\n" for token in vocab).encode(),
        variables={name: random_variable(name, shape, stddev=stddev, seed=0) for name, shape in shapes},
    )
    return path


def make_inputs(path: Path) -> dict[str, str]:
    """Write dataset and BERT directory, and return them as options."""
    return {"data_dir": str(make_data_dir(path / "data")), "bert_dir": str(make_bert_dir(path / "bert"))}


def tiny_config(**options: Any) -> TrainConfig:
    """Return a configuration that learns the tiny dataset in seconds."""
    defaults = {
        "batch_size": 8,
        "epochs": 2,
        "learning_rate": 5e-3,
        "eval_batch_size": 8,
        "save_every": 4,
        "log_every": 5,
    }
    paths = {"data_dir": "data", "bert_dir": "bert", "output_dir": "run"}
    return TrainConfig.from_options(**(paths | defaults | options))


def with_options(config: TrainConfig, **options: Any) -> TrainConfig:
    """Return a configuration with some other options."""
    return TrainConfig.from_options(**(config.options | options))


def interrupt_after(step: int) -> Callable[[TrainingLoop], None]:
    """Return an `on_step` that sends this process SIGTERM once a training has done that many steps."""

    def on_step(loop: TrainingLoop) -> None:
        if loop.progress.step == step:
            signal.raise_signal(signal.SIGTERM)

    return on_step


def result_bytes(run: Path) -> dict[str, bytes]:
    """Return the files of a finished run that hold nothing that depends on the clock."""
    return {name: (run / name).read_bytes() for name in RESULT_FILES}


def assert_same_results(run: Path, other: Path) -> None:
    """Check that two finished runs have the same result, byte by byte."""
    found, expected = result_bytes(run), result_bytes(other)
    changed = [name for name in RESULT_FILES if found[name] != expected[name]]
    assert not changed, f"{run} and {other} differ in {', '.join(changed)}"
