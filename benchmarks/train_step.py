"""How long one training step takes: ours in each precision, keras-bert's stock graph, Hugging Face's PyTorch BERT.

    python -m benchmarks.train_step [--layers 2] [--batch 4] [--length 512] [--rounds 9] [--dropout 0.1] [--xla]

Every candidate trains the same model (BERT-base width, heads of 14 and 3 classes, Adam) on the same full batch:
forward, loss, backward, update. "As run_train.py trains" is the step that its users get: AdamW, clipping, weights of
the examples, one graph for batches of all shapes. Rounds alternate between the candidates, so that what else the
machine does meets all of them; the table gives medians, and for titles, whose batches differ, all examples over all
seconds. PyTorch takes part where `torch` and `transformers` are installed.
"""

import argparse
import dataclasses
import itertools
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")  # before TensorFlow comes in

# Before TensorFlow, whose LLVM its compiler does not bear in the same process.
try:
    import torch
    from transformers import BertConfig as TorchConfig
    from transformers import BertModel as TorchBert

    HAS_TORCH = True
except ModuleNotFoundError:
    HAS_TORCH = False

import keras_bert
import numpy as np
import tensorflow as tf
import tf_keras

from benchmarks.results import Comparison, add_results_option, record
from model.bert.config import CONFIG_FILE_NAME, BertConfig
from model.bert.dropout import dropout_rng
from model.classifier import build_classifier, logits_model
from model.config import TrainConfig
from model.training.optimizer import AdamW, LossScale
from model.training.steps import Outcome, head_losses, make_train_step, metrics_from_sums
from model.training.strategy import open_devices
from pipeline.dataset.schema import INDICES, SEGMENTS
from pipeline.input_pipeline.batch_plan import Buckets
from pipeline.input_pipeline.reader import train_dataset

HEADS = {"category": 14, "second": 3}
REFERENCE = "keras-bert, float32"
VOCAB_SIZE = 21128  # of BERT-base Chinese
LEARNING_RATE = 1e-5
WARM_UP_STEPS = 2  # the first call compiles, the second still fills caches
AS_PRODUCT = "as run_train.py trains"

StepFn = Callable[[], float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """One full batch: no padding, so that nothing depends on a choice of lengths."""

    indices: np.ndarray  # int32 [B, L]
    segments: np.ndarray  # int32 [B, L]
    labels: dict[str, np.ndarray]  # int32 [B] each


def make_batch(batch_size: int, length: int) -> Batch:
    """Draw a batch of random tokens and labels."""
    generator = np.random.RandomState(0)
    indices = generator.randint(1, VOCAB_SIZE, [batch_size, length]).astype(np.int32)
    labels = {head: generator.randint(0, classes, batch_size).astype(np.int32) for head, classes in HEADS.items()}
    return Batch(indices=indices, segments=np.zeros_like(indices), labels=labels)


def our_classifier(config: BertConfig, *, policy: str, pooling: str) -> tf_keras.Model:
    """Build our classifier with random weights."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, CONFIG_FILE_NAME).write_text(config.to_json(), encoding="utf-8")
        return build_classifier(directory, HEADS, pooling=pooling, load_weights=False, policy=policy)


def keras_bert_classifier(config: BertConfig, *, length: int, pooling: str) -> tf_keras.Model:
    """Build what keras-bert's own examples build: its graph for a fixed length, a pooling layer, a softmax per head."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The initializer GlorotNormal is unseeded")
        inputs, sequence = keras_bert.get_model(
            token_num=config.vocab_size,
            pos_num=config.max_position_embeddings,
            seq_len=length,
            embed_dim=config.hidden_size,
            transformer_num=config.num_hidden_layers,
            head_num=config.num_attention_heads,
            feed_forward_dim=config.intermediate_size,
            dropout_rate=config.hidden_dropout_prob,
            training=False,
            trainable=True,
        )
    pool = {"cls": keras_bert.layers.Extract(index=0), "max": keras_bert.layers.MaskedGlobalMaxPool1D()}[pooling]
    pooled = pool(sequence)
    outputs = {head: tf_keras.layers.Dense(n, activation="softmax", name=head)(pooled) for head, n in HEADS.items()}
    return tf_keras.Model(inputs, outputs)


def keras_step(classifier: tf_keras.Model, batches: list[Batch], *, xla: bool) -> StepFn:
    """Return a function that trains a Keras classifier on the next batch and returns the loss."""
    shapes = {batch.indices.shape for batch in batches}
    shape = shapes.pop() if len(shapes) == 1 else (None, None)
    ids = tf.TensorSpec(shape, tf.int32)
    optimizer = tf_keras.optimizers.Adam(LEARNING_RATE, jit_compile=False)
    optimizer.build(classifier.trainable_variables)
    loss_fn = tf_keras.losses.SparseCategoricalCrossentropy()

    @tf.function(jit_compile=xla, input_signature=[ids, ids, dict.fromkeys(HEADS, tf.TensorSpec(shape[:1], tf.int32))])
    def train(indices: tf.Tensor, segments: tf.Tensor, labels: dict[str, tf.Tensor]) -> tf.Tensor:
        with tf.GradientTape() as tape, dropout_rng(0, optimizer.iterations):
            outputs = classifier([indices, segments], training=True)
            loss = tf.add_n([loss_fn(labels[head], outputs[head]) for head in HEADS])
        gradients = tape.gradient(loss, classifier.trainable_variables)
        optimizer.apply_gradients(zip(gradients, classifier.trainable_variables, strict=True))
        return loss

    turns = itertools.cycle(batches)

    def step() -> float:
        batch = next(turns)
        labels = {head: tf.constant(label) for head, label in batch.labels.items()}
        return float(train(tf.constant(batch.indices), tf.constant(batch.segments), labels))

    return step


PRODUCT_OPTIONS = TrainConfig.from_options(
    data_dir="-", bert_dir="-", output_dir="-", strategy="one_device", learning_rate=LEARNING_RATE
)


def product_train(config: BertConfig, *, policy: str, pooling: str, xla: bool) -> Any:
    """Return the step of `run_train.py` for our classifier with random weights; see `make_train_step`."""
    options = PRODUCT_OPTIONS
    devices = open_devices(options)
    with devices.strategy.scope():
        logits = logits_model(our_classifier(config, policy=policy, pooling=pooling))
        optimizer = AdamW(logits.trainable_variables, weight_decay=options.learning.weight_decay, xla=xla)
        loss_scale = LossScale() if policy == "mixed_float16" else None
    losses = head_losses(options, {head: [1] * num_classes for head, num_classes in HEADS.items()})
    return make_train_step(logits, optimizer, losses, devices, options, xla=xla, loss_scale=loss_scale)


def product_step(config: BertConfig, batches: list[Batch], *, policy: str, pooling: str) -> StepFn:
    """Return a function that trains our classifier on the next batch as `run_train.py` does, and returns the loss."""
    train = product_train(config, policy=policy, pooling=pooling, xla=False)
    turns = enumerate(itertools.cycle(batches))

    def step() -> float:
        number, batch = next(turns)
        inputs = {INDICES: tf.constant(batch.indices), SEGMENTS: tf.constant(batch.segments)}
        labels = {head: tf.constant(label) for head, label in batch.labels.items()}
        whole = (inputs, labels, tf.ones([len(batch.indices)]))
        outcome = train(whole, tf.constant(number, tf.int64), tf.constant(LEARNING_RATE), tf.constant(0.0))
        return metrics_from_sums(Outcome.fetch(outcome, PRODUCT_OPTIONS).sums, PRODUCT_OPTIONS)["loss"]

    return step


def torch_step(config: BertConfig, batch: Batch, *, bfloat16: bool) -> StepFn:
    """Return a function that trains Hugging Face's BERT with the same heads for one step and returns the loss."""
    torch.manual_seed(0)
    fields = dataclasses.asdict(config) | {"hidden_act": "gelu_new"}  # the tanh approximation
    encoder = TorchBert(TorchConfig(**fields), add_pooling_layer=False)
    heads = torch.nn.ModuleDict({head: torch.nn.Linear(config.hidden_size, n) for head, n in HEADS.items()})
    optimizer = torch.optim.Adam([*encoder.parameters(), *heads.parameters()], lr=LEARNING_RATE)
    indices, segments = (torch.tensor(array, dtype=torch.long) for array in (batch.indices, batch.segments))
    labels = {head: torch.tensor(label, dtype=torch.long) for head, label in batch.labels.items()}
    mask = torch.ones_like(indices)
    encoder.train()

    def train() -> float:
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
            cls = encoder(input_ids=indices, token_type_ids=segments, attention_mask=mask).last_hidden_state[:, 0]
            logits = {head: layer(cls) for head, layer in heads.items()}
        loss = sum(torch.nn.functional.cross_entropy(logits[head].float(), labels[head]) for head in HEADS)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return train


def measure(steps: dict[str, StepFn], rounds: int) -> dict[str, list[float]]:
    """Time every step once per round, in turn.

    Returns:
        Name -> seconds of each round.
    """
    for name, step in steps.items():
        started = time.perf_counter()
        for _ in range(WARM_UP_STEPS):
            loss = step()
        if not np.isfinite(loss):
            raise RuntimeError(f"{name}: the loss is {loss}")
        print(f"  warmed up {name} in {time.perf_counter() - started:.1f} s", file=sys.stderr)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def print_table(title: str, seconds: dict[str, list[float]], *, num_examples: int) -> None:
    """Print medians, fastest rounds, and how many times faster than the reference each candidate was.

    That ratio is the median of the rounds' own ratios: what slows a whole round down does not count.
    """
    print(f"\n{title}\n")
    print("| candidate | median, ms | fastest, ms | examples/s | times faster than keras-bert |")
    print("|---|---:|---:|---:|---:|")
    for name, values in seconds.items():
        median = statistics.median(values)
        ratio = statistics.median(r / value for r, value in zip(seconds[REFERENCE], values, strict=True))
        print(f"| {name} | {median * 1e3:.0f} | {min(values) * 1e3:.0f} | {num_examples / median:.1f} | {ratio:.2f} |")


def compare_full_batches(config: BertConfig, options: argparse.Namespace, *, pooling: str) -> None:
    """Measure all candidates on one full batch and print the table."""
    batch = make_batch(options.batch, options.length)
    steps = {
        REFERENCE: keras_step(keras_bert_classifier(config, length=options.length, pooling=pooling), [batch], xla=False)
    }
    for policy, label in (("float32", "float32"), ("mixed_bfloat16", "bfloat16")):
        for xla in (False, True) if options.xla else (False,):
            name = f"ours, {label}{', XLA' if xla else ''}"
            steps[name] = keras_step(our_classifier(config, policy=policy, pooling=pooling), [batch], xla=xla)
        steps[f"ours, {label}, {AS_PRODUCT}"] = product_step(config, [batch], policy=policy, pooling=pooling)
    if HAS_TORCH and not options.without_torch and pooling == "cls":
        for bfloat16 in (False, True):
            name = f"Hugging Face PyTorch, {'bfloat16 autocast' if bfloat16 else 'float32'}"
            steps[name] = torch_step(config, batch, bfloat16=bfloat16)
    title = (f"One training step, {config.num_hidden_layers} layers of width {config.hidden_size}, "
             f"batch {options.batch} x {options.length}, pooling {pooling}, dropout {options.dropout}, "
             f"median of {options.rounds} rounds")  # fmt: skip
    seconds = measure(steps, options.rounds)
    print_table(title, seconds, num_examples=options.batch)
    rates = {name: options.batch / statistics.median(values) for name, values in seconds.items()}
    record(options.results, comparisons(f"{options.batch} x {options.length}, {pooling}", rates, options.rounds))
    if not HAS_TORCH:
        print("\nHugging Face PyTorch: not installed (make bench-torch installs it), not measured.")


def comparisons(subject: str, rates: dict[str, float], rounds: int) -> list[Comparison]:
    """Return each of ours against the reference, and against PyTorch in float32 where it took part."""
    return [
        Comparison(
            benchmark="train step",
            subject=subject,
            unit="examples/s",
            ours=ours,
            our_rate=rates[ours],
            peer=peer,
            peer_rate=rates[peer],
            rounds=rounds,
        )
        for ours in rates
        for peer in rates
        if ours.startswith("ours") and not peer.startswith("ours")
    ]


def titles_of(data_dir: str, batch_size: int, *, buckets: Buckets, num_batches: int) -> list[Batch]:
    """Return the first batches of an epoch."""
    batches = train_dataset(data_dir, batch_size, buckets=buckets).take(num_batches).as_numpy_iterator()
    return [Batch(indices=x["indices"], segments=x["segments"], labels=y) for x, y in batches]


def compare_titles(config: BertConfig, options: argparse.Namespace) -> None:
    """Measure real titles: padded to 512 in batches of 4, as the original write-up does it, and in planned buckets."""
    rounds = options.rounds
    num_batches = WARM_UP_STEPS + rounds
    padded = titles_of(options.titles, 4, buckets="off", num_batches=num_batches)
    length = padded[0].indices.shape[1]
    batches_of = {REFERENCE: padded}
    steps = {REFERENCE: keras_step(keras_bert_classifier(config, length=length, pooling="cls"), padded, xla=False)}
    for policy, label in (("float32", "float32"), ("mixed_bfloat16", "bfloat16")):
        for size in (4, 32):
            name = f"ours, {label}, buckets, batches of {size}"
            batches_of[name] = titles_of(options.titles, size, buckets="auto", num_batches=num_batches)
            steps[name] = keras_step(our_classifier(config, policy=policy, pooling="cls"), batches_of[name], xla=False)
        batches_of[f"{name}, {AS_PRODUCT}"] = batches_of[name]
        steps[f"{name}, {AS_PRODUCT}"] = product_step(config, batches_of[name], policy=policy, pooling="cls")
    seconds = measure(steps, rounds)
    # Batches are of different lengths, so no single round says how fast an epoch is.
    rates = {
        name: sum(len(batch.indices) for batch in batches_of[name][WARM_UP_STEPS:]) / sum(seconds[name])
        for name in steps
    }
    record(options.results, comparisons("titles", rates, rounds))
    print(f"\nReal titles, {config.num_hidden_layers} layers of width {config.hidden_size}, all of {rounds} rounds\n")
    print("| candidate | examples/s | times the reference |")
    print("|---|---:|---:|")
    for name, rate in rates.items():
        shown = f"{name}, padded to {length}, batches of 4" if name == REFERENCE else name
        print(f"| {shown} | {rate:.1f} | {rate / rates[REFERENCE]:.1f} |")


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(description="Time one training step of each encoder.")
    parser.add_argument("--layers", type=int, default=2, help="number of layers (default 2)")
    parser.add_argument("--batch", type=int, default=4, help="examples per step (default 4)")
    parser.add_argument("--length", type=int, default=512, help="tokens per example (default 512)")
    parser.add_argument("--rounds", type=int, default=9, help="timed steps per candidate (default 9)")
    parser.add_argument("--dropout", type=float, default=0.1, help="dropout rate (default 0.1)")
    parser.add_argument("--poolings", default="cls,max", help="which poolings to compare (default cls,max)")
    parser.add_argument("--xla", action="store_true", help="measure ours compiled by XLA as well")
    parser.add_argument("--titles", metavar="DIR", help="a dataset directory of titles: compare buckets with fixed 512")
    parser.add_argument("--without_torch", action="store_true", help="leave Hugging Face PyTorch out, installed or not")
    add_results_option(parser)
    options = parser.parse_args(argv)

    config = BertConfig(vocab_size=VOCAB_SIZE, num_hidden_layers=options.layers).with_dropout(options.dropout)
    for pooling in options.poolings.split(","):
        compare_full_batches(config, options, pooling=pooling)
    if options.titles:
        compare_titles(config, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
