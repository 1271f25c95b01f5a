"""Small BERTs for the tests: directories with weights in which nothing is zero, and keras-bert's graph beside ours."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import keras_bert
import numpy as np
import tensorflow as tf
import tf_keras

from model.bert.checkpoint import encoder_variables, write_bert_dir
from model.bert.config import BertConfig

# keras-bert shares one unseeded initializer between weights, which Keras remarks on.
KERAS_BERT_WARNING = "ignore:The initializer GlorotNormal is unseeded:UserWarning"

SMALL = BertConfig(
    vocab_size=60,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=24,
)
BASE_WIDTH = BertConfig(vocab_size=200, num_hidden_layers=2, max_position_embeddings=64)


def make_bert_dir(path: Path, config: BertConfig, *, seed: int = 0, stddev: float = 0.05) -> Path:
    """Write a BERT directory whose biases, shifts and scales are random, too, so that no mix-up goes unseen."""
    generator = np.random.default_rng(seed)
    variables = {}
    for targets in encoder_variables(config).values():
        for name, shape in targets:
            center = 1.0 if name.endswith("gamma") else 0.0
            variables[name] = generator.normal(center, stddev, shape).astype(np.float32)
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"t{i}" for i in range(config.vocab_size - 5))]
    write_bert_dir(
        path,
        config_bytes=config.to_json().encode(),
        vocab_bytes="".join(f"{token}\n" for token in tokens).encode(),
        variables=variables,
    )
    return path


def read_variables(bert_dir: Path) -> dict[str, np.ndarray]:
    """Return the variables of a Google-format BERT directory under Google's names."""
    reader = tf.train.load_checkpoint(str(bert_dir / "bert_model.ckpt"))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def hugging_face_tensors(variables: Mapping[str, np.ndarray], *, num_layers: int = 2) -> dict[str, np.ndarray]:
    """Return Google's variables as the state of Hugging Face's `BertModel` without a pooler."""
    tensors = {}

    def norm(scope: str, google: str) -> None:
        tensors[f"{scope}.LayerNorm.weight"] = variables[f"{google}/LayerNorm/gamma"]
        tensors[f"{scope}.LayerNorm.bias"] = variables[f"{google}/LayerNorm/beta"]

    for name in ("word_embeddings", "position_embeddings", "token_type_embeddings"):
        tensors[f"embeddings.{name}.weight"] = variables[f"bert/embeddings/{name}"]
    norm("embeddings", "bert/embeddings")
    for number in range(num_layers):
        layer, google = f"encoder.layer.{number}", f"bert/encoder/layer_{number}"
        for name in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            tensors[f"{layer}.{name}.weight"] = variables[f"{google}/{name.replace('.', '/')}/kernel"].T
            tensors[f"{layer}.{name}.bias"] = variables[f"{google}/{name.replace('.', '/')}/bias"]
        for name in ("intermediate.dense", "output.dense"):
            tensors[f"{layer}.{name}.weight"] = variables[f"{google}/{name.replace('.', '/')}/kernel"].T
            tensors[f"{layer}.{name}.bias"] = variables[f"{google}/{name.replace('.', '/')}/bias"]
        norm(f"{layer}.attention.output", f"{google}/attention/output")
        norm(f"{layer}.output", f"{google}/output")
    return tensors


def safetensors_bytes(tensors: Mapping[str, np.ndarray], dtype: str = "F32") -> bytes:
    """Return a safetensors file, by the format's own description and not by our writer."""
    stored = {name: _as_stored(value, dtype) for name, value in tensors.items()}
    header, end = {}, 0
    for name, value in stored.items():
        header[name] = {"dtype": dtype, "shape": list(value.shape), "data_offsets": [end, end + value.nbytes]}
        end += value.nbytes
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + b"".join(value.tobytes() for value in stored.values())


def _as_stored(value: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "BF16":
        return (np.ascontiguousarray(value).view(np.uint32) >> 16).astype(np.uint16)
    return value.astype({"F32": np.float32, "F16": np.float16, "F64": np.float64, "I8": np.int8}[dtype])


def random_batch(config: BertConfig, lengths: list[int], *, seed: int = 0) -> list[np.ndarray]:
    """Return indices and segments, int32 [B, max(lengths)]: two segments, then padding up to the longest row."""
    generator = np.random.default_rng(seed)
    shape = [len(lengths), max(lengths)]
    is_token = np.arange(shape[1]) < np.array(lengths)[:, None]
    indices = generator.integers(1, config.vocab_size, shape) * is_token
    segments = (np.arange(shape[1]) >= np.array(lengths)[:, None] // 2) * is_token
    return [indices.astype(np.int32), segments.astype(np.int32)]


def keras_bert_outputs(bert_dir: Path, batch: list[np.ndarray]) -> np.ndarray:
    """Return the last layer's sequence, float32 [B, L, H], as keras-bert itself builds, loads and computes it."""
    reference = keras_bert.load_trained_model_from_checkpoint(
        str(bert_dir / "bert_config.json"), str(bert_dir / "bert_model.ckpt"), training=False, seq_len=batch[0].shape[1]
    )
    return reference(batch).numpy()


def pooled_outputs(classifier: tf_keras.Model, batch: list[np.ndarray]) -> np.ndarray:
    """Return what the heads of a classifier see, float32 [B, H]."""
    return tf_keras.Model(classifier.inputs, classifier.get_layer("Pooling").output)(batch).numpy()
