"""What a GPU does with this project's training step, and what share of the device's peak that is.

    python -m benchmarks.gpu [--quick] [--data DIR] [--json FILE]

BERT-base at 32 × 128 and 32 × 512, in each precision, with and without XLA: time of a step, examples/s, tokens/s, the
model's FLOP/s and their share of the peak (a matrix product measured in the same run), time to build and compile, peak
memory, and what a step launches outside of XLA. With `--data`, a dataset directory, also its batches as they come, and
the share of the time that waits for them. Without a GPU, the CPU is measured likewise; `--quick` measures one small
shape. PyTorch with Hugging Face's BERT takes part where it is installed.
"""

import argparse
import dataclasses
import itertools
import json
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import train_step as peers  # before TensorFlow: it imports PyTorch first

import tensorflow as tf  # isort: skip

from benchmarks.graphs import launches_outside_xla
from benchmarks.measure import describe_machine
from model.bert.config import BertConfig
from model.training.strategy import describe_gpus, open_local_devices
from pipeline.dataset.schema import INDICES, SEGMENTS
from pipeline.dataset.summary import format_table
from pipeline.input_pipeline.reader import train_dataset

POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}
DTYPES = {"float32": tf.float32, "bfloat16": tf.bfloat16, "float16": tf.float16}
WARM_UP_STEPS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figures:
    """One way to train, measured.

    Attributes:
        ms: median over the rounds of a step's time.
        flops: the model's FLOP/s: products of a BERT's forward and backward pass, whatever is really computed.
        peak_share: of the fastest matrix product in this precision.
        compile_seconds: until the first step's result, graph building included.
        peak_bytes: of the device's memory; 0 where it cannot be asked.
        launches: kernels and XLA programs of a step; 0 for peers.
        wait_share: of the time that waits for input; 0 where batches are in memory.
    """

    name: str
    shape: str
    ms: float
    examples_per_second: float
    tokens_per_second: float
    flops: float
    peak_share: float
    compile_seconds: float
    peak_bytes: int
    launches: int
    wait_share: float


def model_flop(config: BertConfig, num_examples: int, length: int) -> float:
    """Return the FLOP of a training step: three times the forward pass's products, of two FLOP each."""
    width, wide = config.hidden_size, config.intermediate_size
    per_token = 4 * width * width + 2 * width * wide + 2 * length * width
    return 3 * 2 * per_token * num_examples * length * config.num_hidden_layers


def measure_peak(dtype: tf.DType, size: int, rounds: int) -> float:
    """Return the FLOP/s of the fastest of some square matrix products."""
    x = tf.cast(tf.random.stateless_uniform([size, size], [1, 2]), dtype)
    product = tf.function(lambda x: tf.matmul(x, x))
    best = 0.0
    for _ in range(rounds + 1):
        started = time.perf_counter()
        last = product(x)
        for _ in range(3):
            last = product(x)
        last[0, 0].numpy()
        best = max(best, 4 * 2 * size**3 / (time.perf_counter() - started))
    return best


def synthetic(batch_size: int, length: int) -> Iterator[Any]:
    """Yield the same full batch again and again."""
    batch = peers.make_batch(batch_size, length)
    arrays = ({INDICES: batch.indices, SEGMENTS: batch.segments}, batch.labels)
    whole = (*tf.nest.map_structure(tf.constant, arrays), tf.ones([batch_size]))
    while True:
        yield whole


def stored(data_dir: str, batch_size: int) -> Iterator[Any]:
    """Yield a dataset's training batches, epoch after epoch."""
    for epoch in itertools.count():
        for inputs, labels in train_dataset(data_dir, batch_size, epoch=epoch):
            yield inputs, labels, tf.ones(tf.shape(inputs[INDICES])[:1])


def measure_ours(
    config: BertConfig, batches: Iterator[Any], shape: str, *, precision: str, xla: bool, peak: float, rounds: int
) -> Figures:
    """Train on batches, and time rounds of several steps whose last result is awaited."""
    on_gpu = bool(tf.config.list_physical_devices("GPU"))
    if on_gpu:
        tf.config.experimental.reset_memory_stats("GPU:0")
    started = time.perf_counter()
    train = peers.product_train(config, policy=POLICIES[precision], pooling="cls", xla=xla)
    numbers = itertools.count()

    def step(batch: Any) -> tf.Tensor:
        return train(batch, tf.constant(next(numbers), tf.int64), tf.constant(peers.LEARNING_RATE), tf.constant(0.0))

    step(next(batches)).numpy()
    compile_seconds = time.perf_counter() - started
    for _ in range(WARM_UP_STEPS):
        step(next(batches)).numpy()
    steps_per_round = 10 if on_gpu else 1
    seconds, waited, examples, tokens, flop = [], 0.0, 0, 0, 0.0
    for _ in range(rounds):
        begun = time.perf_counter()
        for _ in range(steps_per_round):
            before = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - before
            num_rows, length = batch[0][INDICES].shape
            examples, tokens = examples + num_rows, tokens + num_rows * length
            flop += model_flop(config, num_rows, length)
            result = step(batch)
        result.numpy()
        seconds.append(time.perf_counter() - begun)
    total = sum(seconds)
    return Figures(
        name=f"ours, {precision}{', XLA' if xla else ''}",
        shape=shape,
        ms=statistics.median(seconds) / steps_per_round * 1e3,
        examples_per_second=examples / total,
        tokens_per_second=tokens / total,
        flops=flop / total,
        peak_share=flop / total / peak,
        compile_seconds=compile_seconds,
        peak_bytes=tf.config.experimental.get_memory_info("GPU:0")["peak"] if on_gpu else 0,
        launches=launches_outside_xla(train.get_concrete_function()).total(),
        wait_share=waited / total,
    )


def measure_torch(config: BertConfig, batch_size: int, length: int, *, precision: str, peak: float, rounds: int) -> Any:
    """Time Hugging Face's BERT in PyTorch, whose result is awaited after every step."""
    started = time.perf_counter()
    step = peers.torch_step(config, peers.make_batch(batch_size, length), bfloat16=precision == "bfloat16")
    step()
    compile_seconds = time.perf_counter() - started
    seconds = []
    for _ in range(rounds):
        begun = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - begun)
    flops = model_flop(config, batch_size, length) * rounds / sum(seconds)
    return Figures(
        name=f"Hugging Face PyTorch, {precision}",
        shape=f"{batch_size} x {length}",
        ms=statistics.median(seconds) * 1e3,
        examples_per_second=batch_size * rounds / sum(seconds),
        tokens_per_second=batch_size * length * rounds / sum(seconds),
        flops=flops,
        peak_share=flops / peak,
        compile_seconds=compile_seconds,
        peak_bytes=0,
        launches=0,
        wait_share=0.0,
    )


def main(argv: list[str] | None = None) -> int:
    """Measure, print a table, and write the figures as JSON."""
    parser = argparse.ArgumentParser(description="Measure the training step on this machine's GPU, or on its CPU.")
    parser.add_argument("--quick", action="store_true", help="one shape of a small BERT, few rounds")
    parser.add_argument("--data", metavar="DIR", help="a dataset directory: measure its batches, as they come, too")
    parser.add_argument("--rounds", type=int, help="timed rounds each (default 10, with --quick 2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    options = parser.parse_args(argv)
    devices = open_local_devices()
    rounds = options.rounds or (2 if options.quick else 10)
    layers, hidden = (1, 128) if options.quick else (12, 768)
    config = BertConfig(
        vocab_size=peers.VOCAB_SIZE,
        num_hidden_layers=layers,
        hidden_size=hidden,
        num_attention_heads=hidden // 64,
        intermediate_size=4 * hidden,
    )
    shapes = [(4, 32)] if options.quick else [(32, 128), (32, 512)]
    # A CPU emulates float16.
    precisions = ["float32", "bfloat16", *(["float16"] if devices.on_gpu else [])]
    product_size = 8192 if devices.on_gpu else 1024
    peaks = {precision: measure_peak(DTYPES[precision], product_size, rounds) for precision in precisions}
    found: list[Figures] = []
    for precision in precisions:
        peak = peaks[precision]
        for xla in (True, False):
            sources = {f"{size} x {length}": synthetic(size, length) for size, length in shapes}
            if options.data:
                sources["buckets"] = stored(options.data, 32)
            for shape, batches in sources.items():
                found.append(
                    measure_ours(config, batches, shape, precision=precision, xla=xla, peak=peak, rounds=rounds)
                )
        if peers.HAS_TORCH and precision != "float16":
            for batch_size, length in shapes:
                found.append(measure_torch(config, batch_size, length, precision=precision, peak=peak, rounds=rounds))
    machine = [describe_machine(), *describe_gpus(devices), f"TensorFlow {tf.__version__}"]
    print("\n".join([*machine, ""]))
    for precision, peak in peaks.items():
        print(f"peak, {precision}: {peak / 1e12:.2f} TFLOP/s (product of {product_size} x {product_size})")
    header = (
        "",
        "shape",
        "ms",
        "examples/s",
        "tokens/s",
        "GFLOP/s",
        "of peak",
        "compile s",
        "memory MB",
        "launches",
        "input",
    )
    rows = [
        (
            *(one.name, one.shape, f"{one.ms:.1f}", f"{one.examples_per_second:,.1f}", f"{one.tokens_per_second:,.0f}"),
            *(f"{one.flops / 1e9:,.0f}", f"{one.peak_share:.1%}", f"{one.compile_seconds:.1f}"),
            *(f"{one.peak_bytes / 1e6:,.0f}", str(one.launches), f"{one.wait_share:.1%}"),
        )
        for one in found
    ]
    print("\n" + "\n".join(format_table(header, rows)))
    if options.json:
        content = {"machine": machine, "peaks": peaks, "figures": [dataclasses.asdict(one) for one in found]}
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
