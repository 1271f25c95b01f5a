"""Our encoder against keras-bert's, and against itself computed the long way."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import keras_bert
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from model.bert import kernels
from model.bert.checkpoint import encoder_variables, load_encoder_weights
from model.bert.config import BertConfig
from model.bert.encoder import encode_fused, encode_keras_bert
from model.classifier import build_classifier, logits_model
from pipeline.errors import OptionError
from tests.support.berts import (
    BASE_WIDTH,
    KERAS_BERT_WARNING,
    SMALL,
    keras_bert_outputs,
    make_bert_dir,
    pooled_outputs,
    random_batch,
)
from tests.support.real_data import real_data

pytestmark = pytest.mark.filterwarnings(KERAS_BERT_WARNING)

HEADS = {"category": 5, "second": 3}


@pytest.fixture(scope="module")
def small_dir(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_bert_dir(tmp_path_factory.mktemp("small") / "bert", SMALL, stddev=0.2)


@pytest.fixture(scope="module")
def base_width_dir(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_bert_dir(tmp_path_factory.mktemp("base") / "bert", BASE_WIDTH)


def sequence_encoder(bert_dir: Path, config: Any, encode: Any = encode_fused, policy: Any = "float32") -> Any:
    """Build an encoder without pooling and fill it from a directory."""
    inputs = [tf_keras.Input([None], dtype="int32", name=name) for name in ("indices", "segments")]
    model = tf_keras.Model(inputs, encode(*inputs, config, pooling=None, policy=policy))
    load_encoder_weights(model, bert_dir)
    return model


def expected_pooling(sequence: Any, indices: Any, pooling: Any) -> Any:
    """Pool keras-bert's sequence [B, L, H] in NumPy."""
    if pooling == "cls":
        return sequence[:, 0]
    return np.where((indices != 0)[..., None], sequence, -np.inf).max(axis=1)


@pytest.mark.parametrize("lengths", [[64, 64], [64, 17, 1]], ids=["full", "padded"])
def test_outputs_equal_keras_berts_at_base_width(base_width_dir: Any, lengths: list[int]) -> None:
    batch = random_batch(BASE_WIDTH, lengths)
    expected = keras_bert_outputs(base_width_dir, batch)
    np.testing.assert_allclose(sequence_encoder(base_width_dir, BASE_WIDTH)(batch).numpy(), expected, atol=1e-5)
    for pooling in ("cls", "max"):
        pooled = pooled_outputs(build_classifier(base_width_dir, HEADS, pooling=pooling), batch)
        np.testing.assert_allclose(pooled, expected_pooling(expected, batch[0], pooling), atol=1e-5)


@pytest.mark.parametrize("lengths", [[16, 16], [12, 5, 2]], ids=["full", "padded"])
@pytest.mark.parametrize("encoder", ["fused", "keras_bert"])
def test_outputs_equal_keras_berts_on_the_published_tiny_checkpoint(lengths: list[int], encoder: str) -> None:
    bert_dir = real_data("tiny_checkpoint")
    batch = random_batch(BertConfig.from_file(bert_dir / "bert_config.json"), lengths)
    expected = keras_bert_outputs(bert_dir, batch)
    for pooling in ("cls", "max"):
        pooled = pooled_outputs(build_classifier(bert_dir, HEADS, pooling=pooling, encoder=encoder), batch)
        np.testing.assert_allclose(pooled, expected_pooling(expected, batch[0], pooling), atol=1e-5)


def test_the_copied_keras_bert_graph_computes_what_keras_bert_does(small_dir: Any) -> None:
    batch = random_batch(SMALL, [24, 9])
    copied = sequence_encoder(small_dir, SMALL, encode=encode_keras_bert)
    np.testing.assert_allclose(copied(batch).numpy(), keras_bert_outputs(small_dir, batch), atol=1e-6)


def test_keras_berts_loader_fills_our_graph(small_dir: Any) -> None:
    ours = sequence_encoder(small_dir, SMALL)
    batch = random_batch(SMALL, [24, 9])
    expected = ours(batch).numpy()
    for weight in ours.weights:
        weight.assign(tf.zeros_like(weight))
    config = {"max_position_embeddings": SMALL.max_position_embeddings, "num_hidden_layers": SMALL.num_hidden_layers}
    keras_bert.load_model_weights_from_checkpoint(ours, config, str(small_dir / "bert_model.ckpt"), training=False)
    np.testing.assert_array_equal(ours(batch).numpy(), expected)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_the_last_layers_cls_row_alone_is_the_cls_row_of_the_whole_layer(small_dir: Any, policy: str) -> None:
    batch = random_batch(SMALL, [24, 9, 3])
    whole = sequence_encoder(small_dir, SMALL, policy=policy)(batch).numpy().astype(np.float32)[:, 0]
    alone = pooled_outputs(build_classifier(small_dir, HEADS, policy=policy), batch)
    np.testing.assert_allclose(alone, whole, atol=1e-6 if policy == "float32" else 0.05)


def loss_and_gradients(classifier: Any, batch: Any, labels: Any) -> tuple[Any, ...]:
    """Return the summed loss of both heads, and the gradient of every encoder weight by layer, then weight."""
    with tf.GradientTape() as tape:
        logits = logits_model(classifier)(batch, training=True)
        losses = [tf.nn.sparse_softmax_cross_entropy_with_logits(labels[head], logits[head]) for head in HEADS]
        loss = tf.reduce_mean(tf.add_n(losses))
    return loss, tape.gradient(loss, classifier.trainable_variables)


@pytest.mark.parametrize("pooling", ["cls", "max"])
def test_gradients_equal_keras_berts(small_dir: Any, pooling: str) -> None:
    batch = random_batch(SMALL, [24, 9, 3])
    labels = {"category": [0, 4, 2], "second": [2, 0, 1]}
    gradients = {}
    for encoder in ("fused", "keras_bert"):
        classifier = build_classifier(small_dir, HEADS, pooling=pooling, encoder=encoder, dropout=0.0)
        _, found = loss_and_gradients(classifier, batch, labels)
        by_weight = dict(zip([id(v) for v in classifier.trainable_variables], found, strict=True))
        gradients[encoder] = {
            name: tf.convert_to_tensor(by_weight[id(weight)]).numpy()
            for layer, targets in encoder_variables(SMALL).items()
            for (name, _), weight in zip(targets, classifier.get_layer(layer).weights, strict=True)
        }
    for name, expected in gradients["keras_bert"].items():
        scale = max(np.abs(expected).max(), 1e-3)
        np.testing.assert_allclose(gradients["fused"][name] / scale, expected / scale, atol=1e-4, err_msg=name)


def test_the_first_20_training_losses_equal_keras_berts(base_width_dir: Any) -> None:
    losses: dict[str, list[float]] = {}
    for encoder in ("fused", "keras_bert"):
        classifier = build_classifier(base_width_dir, HEADS, encoder=encoder, dropout=0.0)
        optimizer = tf_keras.optimizers.Adam(1e-5, jit_compile=False)

        @tf.function
        def train(batch: Any, labels: Any, classifier: Any = classifier, optimizer: Any = optimizer) -> Any:
            loss, gradients = loss_and_gradients(classifier, batch, labels)
            optimizer.apply_gradients(zip(gradients, classifier.trainable_variables, strict=True))
            return loss

        optimizer.build(classifier.trainable_variables)
        losses[encoder] = []
        for step in range(20):
            batch = random_batch(BASE_WIDTH, [16, 11, 7, 2], seed=step)
            labels = {head: (batch[0].sum(axis=1) % n).astype(np.int32) for head, n in HEADS.items()}
            tensors = [tf.constant(array) for array in batch]
            losses[encoder].append(float(train(tensors, {head: tf.constant(label) for head, label in labels.items()})))
    np.testing.assert_allclose(losses["fused"], losses["keras_bert"], atol=1e-4)
    assert np.ptp(losses["fused"]) > 0.01


@pytest.mark.parametrize("pooling", ["cls", "max"])
def test_padding_changes_nothing(small_dir: Any, pooling: str) -> None:
    classifier = build_classifier(small_dir, HEADS, pooling=pooling)
    short = random_batch(SMALL, [7, 7])
    long = [np.pad(array, [(0, 0), (0, 9)]) for array in short]
    np.testing.assert_allclose(pooled_outputs(classifier, long), pooled_outputs(classifier, short), atol=1e-6)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("pooling", ["cls", "max"])
def test_a_row_of_padding_alone_gives_finite_numbers(small_dir: Any, policy: str, pooling: str) -> None:
    # Evaluation fills its last batch up with such rows; their results are thrown away, but must not poison a sum.
    classifier = build_classifier(small_dir, HEADS, pooling=pooling, policy=policy)
    batch = random_batch(SMALL, [5, 5])
    batch[0][1] = 0
    for probabilities in classifier(batch).values():
        assert np.isfinite(probabilities).all()


@pytest.mark.parametrize(("policy", "tolerance"), [("mixed_bfloat16", 0.15), ("mixed_float16", 0.02)])
def test_mixed_precision_is_close_to_float32(small_dir: Any, policy: str, tolerance: float) -> None:
    batch = random_batch(SMALL, [24, 9, 3])
    mixed = build_classifier(small_dir, HEADS, policy=policy, dropout=0.0)
    exact = build_classifier(small_dir, HEADS, policy="float32", dropout=0.0)
    difference = np.abs(pooled_outputs(mixed, batch) - pooled_outputs(exact, batch))
    assert 0 < difference.max() < tolerance  # 0 would mean that nothing was computed in 16 bits
    assert {weight.dtype for weight in mixed.weights} == {tf.float32}
    labels = {"category": [0, 4, 2], "second": [2, 0, 1]}
    _, mixed_gradients = loss_and_gradients(mixed, batch, labels)
    _, exact_gradients = loss_and_gradients(exact, batch, labels)
    flat = [
        np.concatenate([tf.reshape(tf.convert_to_tensor(g), [-1]) for g in gradients])
        for gradients in (mixed_gradients, exact_gradients)
    ]
    assert {tf.convert_to_tensor(gradient).dtype for gradient in mixed_gradients} == {tf.float32}
    assert np.linalg.norm(flat[0] - flat[1]) < tolerance * np.linalg.norm(flat[1])


def test_xla_compiles_the_training_step(small_dir: Any) -> None:
    classifier = build_classifier(small_dir, HEADS, dropout=0.0)
    batch = [tf.constant(array) for array in random_batch(SMALL, [24, 9])]
    labels = {"category": tf.constant([0, 4]), "second": tf.constant([2, 0])}
    compiled = tf.function(lambda: loss_and_gradients(classifier, batch, labels), jit_compile=True)
    loss, gradients = loss_and_gradients(classifier, batch, labels)
    compiled_loss, compiled_gradients = compiled()
    np.testing.assert_allclose(compiled_loss, loss, atol=1e-5)
    for weight, expected, found in zip(classifier.trainable_variables, gradients, compiled_gradients, strict=True):
        np.testing.assert_allclose(
            tf.convert_to_tensor(found), tf.convert_to_tensor(expected), atol=1e-4, err_msg=weight.name
        )


def test_the_activation_of_the_configuration_is_used(tmp_path: Path) -> None:
    batch = random_batch(SMALL, [6, 3])
    for activation in ("relu", "tanh", "linear"):
        config = BertConfig(
            vocab_size=60,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=8,
            max_position_embeddings=8,
            hidden_act=activation,
        )
        bert_dir = make_bert_dir(tmp_path / activation, config, stddev=0.5)
        expected = keras_bert_outputs(bert_dir, batch)
        np.testing.assert_allclose(sequence_encoder(bert_dir, config)(batch).numpy(), expected, atol=1e-5)


def test_the_exact_gelu_and_its_gradient() -> None:
    x = np.linspace(-6, 6, 241).astype(np.float32)
    expected = [value * 0.5 * (1 + math.erf(value / math.sqrt(2))) for value in x.tolist()]
    np.testing.assert_allclose(kernels.exact_gelu(tf.constant(x)), expected, atol=1e-6)
    assert np.abs(kernels.gelu(tf.constant(x)) - expected).max() > 1e-4  # the approximation is another function
    with tf.GradientTape(persistent=True) as tape:
        ours, plain = (variable := tf.Variable(x)), tf.Variable(x)
        outputs = kernels.exact_gelu(ours)
        reference = plain * 0.5 * (1 + tf.math.erf(plain / math.sqrt(2.0)))
    np.testing.assert_allclose(tape.gradient(outputs, variable), tape.gradient(reference, plain), atol=1e-6)
    assert kernels.exact_gelu(tf.constant(x, tf.bfloat16)).dtype == tf.bfloat16


@pytest.mark.parametrize("epsilon", [1e-14, 1e-5, 0.1])
def test_the_configurations_epsilon_is_used(tmp_path: Path, epsilon: float) -> None:
    """The embeddings' normalization, computed in NumPy, is what a BERT without layers' weights returns."""
    config = dataclasses.replace(SMALL, layer_norm_eps=epsilon, num_hidden_layers=1)
    bert_dir = make_bert_dir(tmp_path / "bert", config, stddev=0.05)
    model = build_classifier(bert_dir, HEADS, pooling="max")
    batch = random_batch(config, [7])
    embedding, norm = model.get_layer("Embedding-Position").output, model.get_layer("Embedding-Norm")
    total = tf_keras.Model(model.inputs, embedding)(batch).numpy()
    centered = total - total.mean(axis=-1, keepdims=True)
    gamma, beta = norm.get_weights()
    expected = centered / np.sqrt((centered**2).mean(axis=-1, keepdims=True) + epsilon) * gamma + beta
    np.testing.assert_allclose(tf_keras.Model(model.inputs, norm.output)(batch), expected, atol=1e-4)


def test_a_batch_longer_than_the_position_table_is_refused(small_dir: Any) -> None:
    classifier = build_classifier(small_dir, HEADS)
    with pytest.raises(OptionError, match=r"length 25 does not fit max_position_embeddings 24"):
        classifier(random_batch(SMALL, [25]))


@pytest.mark.parametrize(
    ("policy", "fields"),
    [
        ("mixed_bfloat16", {}),
        ("float32", {"type_vocab_size": 3}),
        ("float32", {"hidden_act": "gelu_python"}),
        ("float32", {"layer_norm_eps": 1e-5}),
    ],
)
def test_what_keras_bert_cannot_do_is_refused(tmp_path: Path, policy: str, fields: Any) -> None:
    config = BertConfig(vocab_size=9, hidden_size=4, num_attention_heads=2, **fields)
    (tmp_path / "bert_config.json").write_text(config.to_json())
    with pytest.raises(OptionError, match="--encoder fused"):
        build_classifier(tmp_path, HEADS, encoder="keras_bert", load_weights=False, policy=policy)
