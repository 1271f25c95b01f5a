"""Dropout as a function of (seed, step, layer, replica)."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from model.bert import kernels
from model.bert.dropout import SeededDropout, dropout_rng, keep_mask, keep_probability
from model.classifier import build_classifier
from pipeline.errors import OptionError
from tests.support.berts import KERAS_BERT_WARNING, SMALL, make_bert_dir, random_batch

HEADS = {"category": 5}


@pytest.fixture(scope="module")
def bert_dir(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_bert_dir(tmp_path_factory.mktemp("dropout") / "bert", SMALL, stddev=0.2)


def mask_at(seed: int, step: int, layer: Any = 0, shape: Any = (40, 50), rate: Any = 0.5) -> Any:
    """Draw one mask."""
    with dropout_rng(seed, step):
        return keep_mask(tf.constant(shape), rate=rate, layer_index=layer).numpy()


def test_the_same_seed_step_and_layer_give_the_same_mask() -> None:
    np.testing.assert_array_equal(mask_at(7, 3, 2), mask_at(7, tf.Variable(3, dtype=tf.int64), 2))


@pytest.mark.parametrize("other", [(8, 3, 2), (7, 4, 2), (7, 3, 1), (7 + 2**40, 3, 2), (7, 3 + 2**33, 2)])
def test_another_seed_step_or_layer_gives_another_mask(other: tuple[int, ...]) -> None:
    share_equal = np.mean(mask_at(7, 3, 2) == mask_at(*other))
    assert 0.4 < share_equal < 0.6  # independent fair coins agree half of the time


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9, 1e-9])
def test_the_rate_is_right(rate: float) -> None:
    assert abs(keep_probability(rate) - (1 - rate)) <= 2**-16
    kept = mask_at(0, 0, shape=(1000, 1000), rate=rate).mean()
    assert abs(kept - (1 - rate)) < 0.003  # six standard deviations at a rate of 0.5
    with dropout_rng(0, 0):
        dropped = SeededDropout(rate, layer_index=0)(tf.ones([1000, 1000]), training=True).numpy()
    assert abs(dropped.mean() - 1) < 0.02
    np.testing.assert_allclose(dropped[dropped != 0], 1 / keep_probability(rate), rtol=1e-6)


@pytest.mark.parametrize("dtype", [tf.bfloat16, tf.float16, tf.float32])
def test_dropout_keeps_the_mean_in_every_precision(dtype: Any) -> None:
    """1 / 0.9 alone is 1.109 in bfloat16: scaled by that, means would be 0.16 % too small."""
    x = tf.cast(tf.random.stateless_uniform([1000, 1000], [1, 2], 0.5, 1.5), dtype)
    with dropout_rng(0, 0):
        mask = keep_mask(tf.shape(x), rate=0.1, layer_index=0)
        dropped = SeededDropout(0.1, layer_index=0, dtype=dtype)(x, training=True)
    wide = tf.cast(x, tf.float64)
    expected = tf.reduce_mean(tf.boolean_mask(wide, mask)) / keep_probability(0.1)
    found = tf.reduce_mean(tf.boolean_mask(tf.cast(dropped, tf.float64), mask))
    assert dropped.dtype == dtype
    assert float(found / expected) == pytest.approx(1.0, abs=1e-4)
    # Attention scales its values instead.
    zeros, bias = tf.zeros([1, 1, 1000, 1], dtype), tf.zeros([1, 1, 1, 1000])
    options = {"keep_mask": tf.ones([1, 1, 1000, 1000], tf.bool), "keep_probability": keep_probability(0.1)}
    output = kernels.attention(zeros, zeros, x[tf.newaxis, tf.newaxis], bias, **options)
    tolerance = 1e-6 if dtype == tf.float32 else 1e-3  # the probability 0.001 itself is rounded
    assert float(tf.reduce_mean(tf.cast(output, tf.float64))) == pytest.approx(
        float(tf.cast(0.001, dtype)) * 1000 * float(tf.reduce_mean(wide)) / keep_probability(0.1), rel=tolerance
    )


def test_a_mask_has_no_pattern_along_its_axes() -> None:
    mask = mask_at(0, 0, shape=(512, 512), rate=0.5)
    for axis in (0, 1):
        assert np.abs(mask.mean(axis=axis) - 0.5).max() < 0.12
        neighbours = np.mean(mask == np.roll(mask, 1, axis=axis))
        assert abs(neighbours - 0.5) < 0.01


@given(shape=st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_masks_come_in_any_shape(shape: Any) -> None:
    assert mask_at(1, 1, shape=shape).shape == tuple(shape)


def test_a_model_gives_the_same_outputs_for_the_same_step_in_any_order(bert_dir: Path) -> None:
    classifier = build_classifier(bert_dir, HEADS)
    batch = [tf.constant(array) for array in random_batch(SMALL, [9, 5])]

    def outputs(step: int) -> Any:
        with dropout_rng(11, step):
            return classifier(batch, training=True)["category"]

    compiled = tf.function(outputs)
    forward = [compiled(tf.constant(step, tf.int64)).numpy() for step in (1, 2, 3)]
    again = [outputs(tf.constant(step, tf.int64)).numpy() for step in (3, 2, 1)]  # eager, the other way round
    np.testing.assert_allclose(forward, again[::-1], atol=1e-6)
    assert np.abs(forward[0] - forward[1]).max() > 1e-3
    other_model = build_classifier(bert_dir, HEADS)
    with dropout_rng(11, 2):
        np.testing.assert_allclose(other_model(batch, training=True)["category"], forward[1], atol=1e-6)


def test_every_dropout_of_a_model_has_a_noise_of_its_own(bert_dir: Path) -> None:
    classifier = build_classifier(bert_dir, HEADS, pooling="max")
    numbers = [layer.layer_index for layer in classifier.layers if hasattr(layer, "layer_index")]
    assert sorted(numbers) == list(range(1 + 3 * SMALL.num_hidden_layers))


@pytest.mark.filterwarnings(KERAS_BERT_WARNING)
def test_keras_berts_graph_drops_where_keras_bert_does_with_our_noise(bert_dir: Path) -> None:
    classifier = build_classifier(bert_dir, HEADS, encoder="keras_bert")
    names = [layer.name for layer in classifier.layers if isinstance(layer, SeededDropout)]
    halves = ("MultiHeadSelfAttention", "FeedForward")
    assert names == ["Embedding-Dropout", *(f"Encoder-{i}-{half}-Dropout" for i in (1, 2) for half in halves)]
    batch = random_batch(SMALL, [9, 5])
    first, second = (run_once(classifier, batch, step=5) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert np.abs(first - run_once(classifier, batch, step=6)).max() > 1e-4


def run_once(classifier: Any, batch: Any, *, step: int) -> Any:
    with dropout_rng(0, step):
        return classifier(batch, training=True)["category"].numpy()


def test_there_is_no_dropout_without_training_or_rate(bert_dir: Path) -> None:
    batch = random_batch(SMALL, [9, 5])
    classifier = build_classifier(bert_dir, HEADS)
    expected = classifier(batch)["category"].numpy()
    with dropout_rng(0, 0):
        np.testing.assert_array_equal(classifier(batch, training=False)["category"], expected)
        without = build_classifier(bert_dir, HEADS, dropout=0.0)
        np.testing.assert_allclose(without(batch, training=True)["category"], expected, atol=1e-6)


def test_outside_the_context_noise_is_drawn_anew_each_time(bert_dir: Path) -> None:
    batch = random_batch(SMALL, [9, 5])
    classifier = build_classifier(bert_dir, HEADS)
    tf.random.set_seed(0)
    first, second = (classifier(batch, training=True)["category"].numpy() for _ in range(2))
    assert np.abs(first - second).max() > 1e-4


def test_the_context_ends_and_nests() -> None:
    with dropout_rng(1, 1):
        outer = keep_mask(tf.constant([64]), rate=0.5, layer_index=0).numpy()
        with dropout_rng(1, 2):
            inner = keep_mask(tf.constant([64]), rate=0.5, layer_index=0).numpy()
        np.testing.assert_array_equal(keep_mask(tf.constant([64]), rate=0.5, layer_index=0), outer)
    np.testing.assert_array_equal(inner, mask_at(1, 2, shape=(64,)))


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_out_of_range_is_refused(seed: int) -> None:
    with pytest.raises(OptionError, match="seed"), dropout_rng(seed, 0):
        pass


@pytest.mark.parametrize("with_dropout", [False, True])
def test_the_hand_written_attention_gradient_is_the_derived_one(with_dropout: bool) -> None:
    generator = np.random.default_rng(0)
    query, key, value = (tf.constant(generator.normal(size=[2, 3, 5, 4]), tf.float32) for _ in range(3))
    bias = tf.constant([[0.0] * 5, [0.0] * 3 + [kernels.MASKED_SCORE] * 2])[:, tf.newaxis, tf.newaxis, :]
    keep = tf.constant(generator.random([2, 3, 5, 5]) < 0.7) if with_dropout else None

    def plain(query: Any, key: Any, value: Any) -> Any:
        probabilities = tf.nn.softmax(tf.matmul(query, key, transpose_b=True) / 2.0 + bias)
        if keep is not None:
            probabilities = probabilities * tf.cast(keep, tf.float32) / 0.7
        return tf.matmul(probabilities, value)

    def ours(query: Any, key: Any, value: Any) -> Any:
        return kernels.attention(query, key, value, bias, keep_mask=keep, keep_probability=0.7)

    results = []
    for function in (plain, ours):
        with tf.GradientTape() as tape:
            tape.watch([query, key, value])
            output = function(query, key, value)
            loss = tf.reduce_sum(output * tf.sin(tf.range(4.0)))
        results.append([output, *tape.gradient(loss, [query, key, value])])
    for expected, found in zip(*results, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("common", [0.0, 3.0, 10.0])
def test_attention_gradients_in_bfloat16_bear_a_common_component(common: float) -> None:
    """Keys, and values, that share a large component: rounding of the softmax's gradient must not multiply it."""
    generator = np.random.default_rng(0)
    shape, scale = (2, 2, 64, 16), 16**-0.5
    shared = {name: common * generator.normal(size=(1, 1, 1, 16)) for name in ("key", "value")}
    arrays = [generator.normal(size=shape) + shared.get(name, 0.0) for name in ("query", "key", "value", "upstream")]
    arrays[0] *= 0.3
    tensors = [tf.cast(tf.constant(array, tf.float32), tf.bfloat16) for array in arrays]
    query, key, value, upstream = (tf.cast(tensor, tf.float64).numpy() for tensor in tensors)
    scores = query @ key.swapaxes(-1, -2) * scale
    probabilities = np.exp(scores - scores.max(-1, keepdims=True))
    probabilities /= probabilities.sum(-1, keepdims=True)
    d_kept = upstream @ value.swapaxes(-1, -2)
    d_scores = probabilities * (d_kept - (probabilities * d_kept).sum(-1, keepdims=True))
    expected = d_scores @ key * scale, d_scores.swapaxes(-1, -2) @ query * scale
    with tf.GradientTape() as tape:
        tape.watch(tensors[:3])
        output = kernels.attention(
            tensors[0], tensors[1], tensors[2], tf.zeros([2, 1, 1, 64]), keep_mask=None, keep_probability=1.0
        )
    found = tape.gradient(output, tensors[:2], output_gradients=tensors[3])
    for name, ours, exact in zip(("query", "key"), found, expected, strict=True):
        error = np.linalg.norm(tf.cast(ours, tf.float64).numpy() - exact) / np.linalg.norm(exact)
        assert error < 0.05, f"{name}: {error:.1%}"  # bfloat16 has 8 bits; without care it is 240 % of d_query


def test_the_hand_written_activation_and_normalization_gradients_are_the_derived_ones() -> None:
    x = tf.constant(np.random.default_rng(0).normal(0, 3, [6, 5]), tf.float32)
    gamma, beta = tf.linspace(0.5, 2.0, 5), tf.linspace(-1.0, 1.0, 5)

    def plain_norm(x: Any, gamma: Any, beta: Any) -> Any:
        mean, variance = tf.nn.moments(x, [-1], keepdims=True)
        return (x - mean) / tf.sqrt(variance + 1e-14) * gamma + beta

    def our_norm(x: Any, gamma: Any, beta: Any) -> Any:
        return kernels.layer_norm(x, gamma, beta, epsilon=1e-14, output_dtype=tf.float32)

    pairs: list[tuple[Callable[..., Any], Callable[..., Any], list[Any]]] = [
        (lambda x: tf.nn.gelu(x, approximate=True), kernels.gelu, [x]),
        (plain_norm, our_norm, [x, gamma, beta]),
    ]
    for plain, ours, arguments in pairs:
        results = []
        for function in (plain, ours):
            with tf.GradientTape() as tape:
                tape.watch(arguments)
                output = function(*arguments)
                loss = tf.reduce_sum(tf.cos(output))
            results.append([output, *tape.gradient(loss, arguments)])
        for expected, found in zip(*results, strict=True):
            np.testing.assert_allclose(found, expected, atol=2e-5)


_TWO_REPLICAS = """
import json, sys
import model
import tensorflow as tf
import tf_keras
from model.classifier import build_classifier
from model.bert.dropout import dropout_rng, keep_mask

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
with strategy.scope():
    classifier = build_classifier(sys.argv[1], {"category": 5})
    optimizer = tf_keras.optimizers.Adam(1e-3)
    optimizer.build(classifier.trainable_variables)
batch = [tf.constant([[2, 7, 9, 3, 0], [2, 8, 3, 0, 0]]), tf.zeros([2, 5], tf.int32)]

@tf.function
def step(number):
    def replica(number):
        with tf.GradientTape() as tape, dropout_rng(3, number):
            probabilities = classifier(batch, training=True)["category"]
            loss = -tf.reduce_mean(tf.math.log(probabilities[:, 1]))
        gradients = tape.gradient(loss, classifier.trainable_variables)
        optimizer.apply_gradients(zip(gradients, classifier.trainable_variables))
        with dropout_rng(3, number):
            mask = keep_mask(tf.constant([64]), rate=0.5, layer_index=0)
        return loss, tf.cast(mask, tf.int32)
    return strategy.run(replica, args=(number,))

losses, masks = step(tf.constant(0, tf.int64))
print(json.dumps({
    "losses": [float(loss) for loss in strategy.experimental_local_results(losses)],
    "masks": [mask.numpy().tolist() for mask in strategy.experimental_local_results(masks)],
}))
"""


def test_every_replica_has_a_noise_of_its_own(bert_dir: Path) -> None:
    environment = dict(os.environ, CUDA_VISIBLE_DEVICES="-1")
    done = subprocess.run(
        [sys.executable, "-c", _TWO_REPLICAS, str(bert_dir)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    np.testing.assert_array_equal(result["masks"][0], mask_at(3, 0, shape=(64,)))  # replica 0 is the only one alone
    assert result["masks"][0] != result["masks"][1]
    assert result["losses"][0] != result["losses"][1]
