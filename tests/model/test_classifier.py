"""The classifier: heads, outputs, parameters, options."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from model.classifier import build_classifier, logits_model
from pipeline.errors import InputFormatError, MissingInputError, OptionError
from tests.support.berts import KERAS_BERT_WARNING, SMALL, make_bert_dir, random_batch
from tests.support.real_data import real_data

pytestmark = pytest.mark.filterwarnings(KERAS_BERT_WARNING)

HEADS = {"category": 14, "second": 3}


@pytest.fixture(scope="module")
def bert_dir(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_bert_dir(tmp_path_factory.mktemp("classifier") / "bert", SMALL, stddev=0.2)


@pytest.mark.parametrize(("heads", "expected"), [(HEADS, 101_690_129), ({"category": 14}, 101_687_822)])
def test_parameter_counts_at_base_size_are_the_original_write_ups(heads: Any, expected: int) -> None:
    classifier = build_classifier(real_data("bert_base_chinese"), heads, load_weights=False)
    assert sum(int(np.prod(weight.shape)) for weight in classifier.trainable_weights) == expected
    assert classifier.count_params() == expected  # nothing is frozen


@pytest.mark.parametrize("encoder", ["fused", "keras_bert"])
@pytest.mark.parametrize("pooling", ["cls", "max"])
def test_inputs_and_outputs(bert_dir: Path, encoder: str, pooling: str) -> None:
    classifier = build_classifier(bert_dir, HEADS, pooling=pooling, encoder=encoder)
    batch = random_batch(SMALL, [20, 9, 4])
    outputs = classifier(batch)
    assert {head: tuple(value.shape) for head, value in outputs.items()} == {"category": (3, 14), "second": (3, 3)}
    for value in outputs.values():
        assert value.dtype == tf.float32
        np.testing.assert_allclose(tf.reduce_sum(value, axis=1), np.ones(3), atol=1e-6)
    by_name = classifier({"segments": batch[1], "indices": batch[0]})
    np.testing.assert_array_equal(by_name["second"], outputs["second"])
    assert [(tensor.name, tensor.dtype, tuple(tensor.shape)) for tensor in classifier.inputs] == [
        ("indices", tf.int32, (None, None)),
        ("segments", tf.int32, (None, None)),
    ]
    assert all(layer.trainable for layer in classifier.layers)


def test_logits_share_the_classifiers_layers(bert_dir: Path) -> None:
    classifier = build_classifier(bert_dir, HEADS)
    logits = logits_model(classifier)
    batch = random_batch(SMALL, [20, 9])
    for head, value in logits(batch).items():
        assert value.dtype == tf.float32
        np.testing.assert_allclose(tf.nn.softmax(value), classifier(batch)[head], atol=1e-6)
    assert {id(weight) for weight in logits.weights} == {id(weight) for weight in classifier.weights}


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_heads_are_float32_in_mixed_precision(bert_dir: Path, policy: str) -> None:
    classifier = build_classifier(bert_dir, HEADS, policy=policy)
    for name in ("category_logits", "category", "second_logits", "second", "Pooling"):
        assert classifier.get_layer(name).output.dtype == tf.float32
    assert classifier.get_layer("Encoder-1-FeedForward").output.dtype == tf.as_dtype(policy.removeprefix("mixed_"))


def test_the_global_policy_is_used_where_none_is_given(bert_dir: Path) -> None:
    tf_keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        classifier = build_classifier(bert_dir, HEADS)
        with pytest.raises(OptionError, match="float32 only"):
            build_classifier(bert_dir, HEADS, encoder="keras_bert", policy="float32")
    finally:
        tf_keras.mixed_precision.set_global_policy("float32")
    assert classifier.get_layer("Encoder-1-FeedForward").compute_dtype == "bfloat16"


def test_initial_weights_are_a_function_of_the_seed(bert_dir: Path) -> None:
    first, same, other = (build_classifier(bert_dir, HEADS, load_weights=False, seed=seed) for seed in (5, 5, 6))
    for mine, theirs in zip(first.get_weights(), same.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    kernels = [w for w in first.weights if len(w.shape) == 2]
    others = [w for w in other.weights if len(w.shape) == 2]
    assert all(np.any(mine != theirs) for mine, theirs in zip(kernels, others, strict=True))
    assert len({float(kernel[0, 0]) for kernel in kernels}) == len(kernels)  # no two weights start alike
    loaded = build_classifier(bert_dir, HEADS, seed=5)  # heads do not depend on where the encoder comes from
    np.testing.assert_array_equal(loaded.get_layer("second_logits").kernel, first.get_layer("second_logits").kernel)
    assert np.abs(first.get_layer("category_logits").kernel).max() > 0


def test_both_encoders_start_from_the_same_random_weights(bert_dir: Path) -> None:
    batch = random_batch(SMALL, [20, 9])
    ours, theirs = (
        build_classifier(bert_dir, HEADS, encoder=encoder, load_weights=False)(batch)["category"]
        for encoder in ("fused", "keras_bert")
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("encoder", ["fused", "keras_bert"])
def test_plain_keras_training_works(bert_dir: Path, encoder: str) -> None:
    tf_keras.utils.set_random_seed(0)
    classifier = build_classifier(bert_dir, {"category": 3, "second": 2}, encoder=encoder)
    batch = dict(zip(("indices", "segments"), random_batch(SMALL, [12] * 16), strict=True))
    labels = {"category": batch["indices"][:, 1] % 3, "second": batch["indices"][:, 1] % 2}
    loss = dict.fromkeys(labels, "sparse_categorical_crossentropy")
    classifier.compile(tf_keras.optimizers.Adam(3e-3, jit_compile=False), loss=loss)
    history = classifier.fit(batch, labels, epochs=30, verbose=0).history["loss"]
    assert history[-1] < 0.5 * history[0]


def test_without_weights_the_configuration_is_enough(tmp_path: Path) -> None:
    (tmp_path / "bert_config.json").write_text(SMALL.to_json())
    assert build_classifier(tmp_path, HEADS, load_weights=False).count_params() > 0
    with pytest.raises(MissingInputError, match=r"vocab\.txt"):
        build_classifier(tmp_path, HEADS)
    with pytest.raises(MissingInputError, match=r"bert_config\.json"):
        build_classifier(tmp_path / "nowhere", HEADS, load_weights=False)
    (tmp_path / "bert_config.json").write_text("{}")
    with pytest.raises(InputFormatError, match="vocab_size"):
        build_classifier(tmp_path, HEADS, load_weights=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": {}}, "at least one head"),
        ({"heads": {"category": 1}}, "'category' needs at least 2 classes, got 1"),
        ({"heads": {"a/b": 2}}, "'a/b' must consist of"),
        ({"heads": {"indices": 2}}, "clash"),
        ({"heads": {"x": 2, "x_logits": 2}}, "clash"),  # x_logits is the name of x's own layer
        ({"heads": {"Pooling": 2}}, "clash"),
        ({"pooling": "mean"}, "--pooling must be one of cls, max, got 'mean'"),
        ({"encoder": "torch"}, "--encoder must be one of fused, keras_bert, got 'torch'"),
        ({"policy": "float64"}, "'float64' is unknown"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1"),
        ({"dropout": -0.1}, "dropout must be at least 0 and below 1"),
        ({"seed": -1}, "--seed must be at least 0"),
    ],
)
@pytest.mark.parametrize("encoder", ["fused", "keras_bert"])
def test_bad_options_are_refused(bert_dir: Path, options: Any, message: str, encoder: str) -> None:
    arguments = {"heads": HEADS, "encoder": encoder} | options
    if encoder == "keras_bert" and "policy" in options:
        message = "float32 only"
    with pytest.raises(OptionError, match=message):
        build_classifier(bert_dir, **arguments)
