"""Train some steps, compiled or not, in a process of its own: `python -m tests.support.compiled_steps JSON`.

The argument lists runs, each a dictionary of `TINY_RUN`'s names; a line of JSON comes back for each.
"""

import dataclasses
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from model.classifier import build_classifier, logits_model
from model.training.optimizer import AdamW, LossScale
from model.training.steps import Batch, Outcome, head_losses, make_train_step
from model.training.strategy import open_devices
from tests.support.runs import TINY_BERT, make_bert_dir, tiny_config

HEADS = {"category": 3, "second": 2}
NUM_STEPS = 20
LENGTHS = (8, 12)
NUM_ROWS = 8
CACHE_FLAG = "--tf_xla_persistent_cache_directory="


@dataclasses.dataclass(frozen=True, kw_only=True)
class TinyRun:
    """What is varied.

    Attributes:
        policy: Keras's mixed-precision policy.
    """

    xla: bool
    policy: str = "float32"
    dropout: float = 0.0
    accumulate_steps: int = 1
    num_replicas: int = 1
    encoder: str = "fused"


def make_batch(length: int, seed: int) -> Batch:
    """Return a batch of random tokens whose last rows are padding."""
    generator = np.random.default_rng(seed)
    indices = generator.integers(1, TINY_BERT.vocab_size, (NUM_ROWS, length)).astype(np.int32)
    indices[:, -2:] = 0
    labels = {head: generator.integers(0, count, NUM_ROWS).astype(np.int32) for head, count in HEADS.items()}
    weights = (np.arange(NUM_ROWS) < NUM_ROWS - 1).astype(np.float32)
    batch: Batch = tf.nest.map_structure(
        tf.constant, ({"indices": indices, "segments": np.zeros_like(indices)}, labels, weights)
    )
    return batch


def make_step(run: TinyRun, bert_dir: Path) -> Any:
    """Return the step that trains the tiny BERT, and its configuration."""
    options = {"dropout": run.dropout, "accumulate_steps": run.accumulate_steps, "encoder": run.encoder}
    placed = {"cpu_replicas": run.num_replicas} if run.num_replicas > 1 else {"strategy": "one_device"}
    config = tiny_config(**options, **placed)
    devices = open_devices(config)
    with devices.strategy.scope():
        model = build_classifier(bert_dir, HEADS, encoder=run.encoder, dropout=run.dropout, policy=run.policy)
        logits = logits_model(model)
        optimizer = AdamW(logits.trainable_variables, weight_decay=0.01, xla=run.xla)
        loss_scale = LossScale() if run.policy == "mixed_float16" else None
    losses = head_losses(config, {head: [1] * count for head, count in HEADS.items()})
    return make_train_step(logits, optimizer, losses, devices, config, xla=run.xla, loss_scale=loss_scale), config


def train(run: TinyRun, bert_dir: Path) -> dict[str, Any]:
    """Return the loss of each step and head, how often the step was traced, and how many programs XLA compiled."""
    cache = next(
        (flag.removeprefix(CACHE_FLAG) for flag in os.environ.get("TF_XLA_FLAGS", "").split() if CACHE_FLAG in flag), ""
    )
    compiled_before = set(os.listdir(cache)) if cache else set()
    step, config = make_step(run, bert_dir)
    outcomes = []
    for number in range(NUM_STEPS):
        batch = make_batch(LENGTHS[number % len(LENGTHS)], number)
        result = step(batch, tf.constant(number, tf.int64), tf.constant(1e-3), tf.constant(0.0))
        outcomes.append(Outcome.fetch(result, config))
    return {
        "losses": [outcome.sums[[3, 5]].tolist() for outcome in outcomes],
        "norms": [outcome.gradient_norm for outcome in outcomes],
        "num_traces": step.experimental_get_tracing_count(),
        "num_compiled": len(set(os.listdir(cache)) - compiled_before) if cache else 0,
    }


def main() -> None:
    """Train every run that was asked for."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    with tempfile.TemporaryDirectory() as directory:
        bert_dir = make_bert_dir(Path(directory) / "bert")
        for options in json.loads(sys.argv[1]):
            sys.stdout.write(json.dumps(train(TinyRun(**options), bert_dir)) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
