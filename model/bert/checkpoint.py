"""The encoder's weights, from TensorFlow's and Hugging Face's checkpoints, and out to Google-format BERT directories.

    chinese_L-12_H-768_A-12/
      vocab.txt                             one token per line, line number = id
      bert_config.json                      see model.bert.config
      bert_model.ckpt.index                 TensorFlow checkpoint under Google's variable names:
      bert_model.ckpt.data-00000-of-00001     bert/embeddings/word_embeddings, bert/encoder/layer_0/…, cls/…

What we read and write is the encoder. A pooler (`bert/pooler`) and the pre-training heads (`cls`) of a source directory
are not carried over: no classifier of ours runs through them, so that beside fine-tuned layers they would be stale.
`keras_bert.load_trained_model_from_checkpoint(training=False)` asks for neither.

The files hold arrays and text alone; nothing read from them is executed.
"""

import contextlib
import dataclasses
import os
import tempfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf
import tf_keras

from model.bert.config import CONFIG_FILE_NAME, BertConfig
from model.bert.directory import CHECKPOINT_NAME, read_bert_dir
from model.bert.hugging_face import open_tensors, tensor_name
from model.files import remove, replace_directory, sync_path, temporary_sibling
from pipeline.dataset.info import VOCAB_NAME
from pipeline.errors import InputFormatError, MissingInputError, OutputExistsError, OutputWriteError

Shape = tuple[int, ...]

# Variables that only another architecture, or another kind of checkpoint, has.
_FOREIGN_VARIABLES = {
    "embedding_hidden_mapping_in": "of ALBERT, which shares its layers",
    "task_type_embeddings": "of ERNIE 2 or 3, which embeds tasks",
    "embeddings_project": "of ELECTRA, whose embeddings are narrower",
    "_CHECKPOINTABLE_OBJECT_GRAPH": "of TensorFlow 2's objects, without Google's names",
}


def embedding_variables(config: BertConfig) -> dict[str, list[tuple[str, Shape]]]:
    """Return for the embedding layers what `encoder_variables` returns."""
    width = config.hidden_size
    prefix = "bert/embeddings"
    return {
        "Embedding-Token": [(f"{prefix}/word_embeddings", (config.vocab_size, width))],
        "Embedding-Segment": [(f"{prefix}/token_type_embeddings", (config.type_vocab_size, width))],
        "Embedding-Position": [(f"{prefix}/position_embeddings", (config.max_position_embeddings, width))],
        "Embedding-Norm": [(f"{prefix}/LayerNorm/gamma", (width,)), (f"{prefix}/LayerNorm/beta", (width,))],
    }


def encoder_variables(config: BertConfig) -> dict[str, list[tuple[str, Shape]]]:
    """Return which checkpoint variables fill which layer.

    Returns:
        Layer name -> Google's (variable name, shape), in the order of the layer's weights; for both encoders.

    Source:
        keras_bert.loader.load_model_weights_from_checkpoint.
    """

    def dense(scope: str, rows: int, columns: int) -> list[tuple[str, Shape]]:
        return [(f"{scope}/kernel", (rows, columns)), (f"{scope}/bias", (columns,))]

    def norm(scope: str) -> list[tuple[str, Shape]]:
        return [(f"{scope}/LayerNorm/gamma", (width,)), (f"{scope}/LayerNorm/beta", (width,))]

    width, inner = config.hidden_size, config.intermediate_size
    variables = embedding_variables(config)
    for layer in range(config.num_hidden_layers):
        scope, name = f"bert/encoder/layer_{layer}", f"Encoder-{layer + 1}"
        variables[f"{name}-MultiHeadSelfAttention"] = [
            *dense(f"{scope}/attention/self/query", width, width),
            *dense(f"{scope}/attention/self/key", width, width),
            *dense(f"{scope}/attention/self/value", width, width),
            *dense(f"{scope}/attention/output/dense", width, width),
        ]
        variables[f"{name}-MultiHeadSelfAttention-Norm"] = norm(f"{scope}/attention/output")
        variables[f"{name}-FeedForward"] = [
            *dense(f"{scope}/intermediate/dense", width, inner),
            *dense(f"{scope}/output/dense", inner, width),
        ]
        variables[f"{name}-FeedForward-Norm"] = norm(f"{scope}/output")
    return variables


def pretraining_variables(config: BertConfig) -> list[tuple[str, Shape]]:
    """Return Google's names and shapes of what a pre-training checkpoint holds beside the encoder."""
    width = config.hidden_size
    return [
        ("bert/pooler/dense/kernel", (width, width)),
        ("bert/pooler/dense/bias", (width,)),
        ("cls/predictions/output_bias", (config.vocab_size,)),
        ("cls/predictions/transform/LayerNorm/beta", (width,)),
        ("cls/predictions/transform/LayerNorm/gamma", (width,)),
        ("cls/predictions/transform/dense/bias", (width,)),
        ("cls/predictions/transform/dense/kernel", (width, width)),
        ("cls/seq_relationship/output_bias", (2,)),
        ("cls/seq_relationship/output_weights", (2, width)),
    ]


def random_variable(name: str, shape: Shape, *, stddev: float, seed: int) -> np.ndarray:
    """Return the initial value of one variable, a function of its name and the seed alone.

    Vectors are biases and shifts (0) or scales (1); everything else is drawn from a normal distribution cut at two
    standard deviations. `RandomState` and not `Generator`: its stream is frozen, the other's may change with NumPy.

    Returns:
        float32 array.

    Source:
        `create_initializer` in Google's modeling.py.
    """
    if name.endswith("/gamma"):
        return np.ones(shape, np.float32)
    if len(shape) == 1:
        return np.zeros(shape, np.float32)
    generator = np.random.RandomState([seed % 2**32, seed >> 32, zlib.crc32(name.encode("utf-8"))])
    values = generator.standard_normal(shape)
    outside = np.abs(values) > 2.0
    while outside.any():
        values[outside] = generator.standard_normal(int(outside.sum()))
        outside = np.abs(values) > 2.0
    return (values * stddev).astype(np.float32)


def initialize_encoder_weights(model: tf_keras.Model, config: BertConfig, *, seed: int) -> None:
    """Set the encoder's weights to `random_variable`s."""
    _set_encoder_weights(
        model, config, lambda name, shape: random_variable(name, shape, stddev=config.initializer_range, seed=seed)
    )


def load_encoder_weights(model: tf_keras.Model, bert_dir: str | Path) -> None:
    """Fill the encoder of a model from a BERT directory.

    Optimizer slots, `global_step`, pooler and pre-training heads in the checkpoint are not looked at.

    Args:
        model: a Keras model with the layers of `encoder_variables`, built by either encoder.
        bert_dir: see `model.bert.directory.read_bert_dir`.

    Raises:
        MissingInputError: as `read_bert_dir`, or a data file of the checkpoint is missing.
        InputFormatError: as `read_bert_dir`, or the checkpoint is damaged, of another architecture, or lacks a variable
            of the right shape.
    """
    source = read_bert_dir(bert_dir)
    path = source.checkpoint
    open_checkpoint = _open_hugging_face if source.is_hugging_face else _open_tensorflow
    with open_checkpoint(path) as stored:

        def read(name: str, shape: Shape) -> np.ndarray:
            variable = stored.find(name)
            if variable is None:
                _explain_missing(path, stored.names)
                raise InputFormatError(f"{path}: the checkpoint has no variable {name}; expected one of shape {shape}")
            if variable.shape != shape:
                raise InputFormatError(
                    f"{path}: variable {name} has shape {variable.shape}, {source.config_path} asks for {shape}"
                )
            return variable.read()

        _set_encoder_weights(model, source.config, read)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Variable:
    shape: Shape
    read: Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _StoredVariables:
    """The variables of a checkpoint.

    Attributes:
        names: as the checkpoint has them.
        find: Google's name -> the variable, `None` where there is none.
    """

    names: Collection[str]
    find: Callable[[str], _Variable | None]


@contextlib.contextmanager
def _open_tensorflow(prefix: Path) -> Iterator[_StoredVariables]:
    with tempfile.TemporaryDirectory() as directory:
        # TensorFlow takes a prefix for a pattern: `[`, `]`, `*` and `?` in the name of a directory would not be found.
        link = Path(directory) / "checkpoint"
        for name in os.listdir(prefix.parent):
            if name.startswith(f"{prefix.name}."):
                link.with_name(link.name + name.removeprefix(prefix.name)).symlink_to((prefix.parent / name).absolute())
        with _readable_checkpoint_errors(prefix):
            reader = tf.train.load_checkpoint(str(link))
            shapes = reader.get_variable_to_shape_map()

        def find(name: str) -> _Variable | None:
            return _Variable(shape=tuple(shapes[name]), read=lambda: read(name)) if name in shapes else None

        def read(name: str) -> np.ndarray:
            with _readable_checkpoint_errors(prefix):
                return reader.get_tensor(name)

        yield _StoredVariables(names=shapes, find=find)


@contextlib.contextmanager
def _open_hugging_face(path: Path) -> Iterator[_StoredVariables]:
    tensors = open_tensors(path)

    def find(name: str) -> _Variable | None:
        tensor = tensors.get(tensor_name(name))
        if tensor is None:
            return None
        if name.endswith("/kernel"):
            return _Variable(shape=tensor.shape[::-1], read=lambda: tensor.read().T)
        return _Variable(shape=tensor.shape, read=tensor.read)

    yield _StoredVariables(names=tensors, find=find)


def _explain_missing(path: Path, names: Collection[str]) -> None:
    """Say what a checkpoint is that lacks a variable, where its other variables tell.

    Raises:
        InputFormatError: they tell.
    """
    for part, what in _FOREIGN_VARIABLES.items():
        name = next((name for name in names if part in name), None)
        if name is not None:
            raise InputFormatError(f"{path}: the checkpoint is {what} ({name}); only BERT is read")
    if any("word_embeddings" in name for name in names) and not any("position_embeddings" in name for name in names):
        raise InputFormatError(
            f"{path}: the checkpoint has no position embeddings, like RoFormer and NEZHA; only BERT is read"
        )


def read_encoder_weights(model: tf_keras.Model, config: BertConfig) -> dict[str, np.ndarray]:
    """Return the encoder's weights under Google's variable names, float32."""
    return {
        name: value
        for layer, targets in encoder_variables(config).items()
        for (name, _), value in zip(targets, model.get_layer(layer).get_weights(), strict=True)
    }


def save_bert_dir(
    model: tf_keras.Model,
    source_config: str | Path,
    vocab_path: str | Path,
    output_dir: str | Path,
    *,
    overwrite: bool = False,
) -> None:
    """Write the encoder of a model as a Google-format BERT directory, all of it or nothing.

    Args:
        model: a Keras model with the layers of `encoder_variables`, built by either encoder; its heads are not saved.
        source_config: the `bert_config.json` the model was built from; copied as it is.
        vocab_path: the vocabulary; copied as it is.
        output_dir: the directory to create.
        overwrite: replace an existing directory.

    Raises:
        MissingInputError: the configuration or the vocabulary is not there.
        OutputExistsError: the directory exists and is not empty, and `overwrite` was not given.
        OutputWriteError: it could not be written.
    """
    config = BertConfig.from_file(source_config)
    if not Path(vocab_path).is_file():
        raise MissingInputError(f"{vocab_path}: no such file; expected the vocabulary of the model")
    write_bert_dir(
        output_dir,
        config_bytes=Path(source_config).read_bytes(),
        vocab_bytes=Path(vocab_path).read_bytes(),
        variables=read_encoder_weights(model, config),
        overwrite=overwrite,
    )


def write_bert_dir(
    output_dir: str | Path,
    *,
    config_bytes: bytes,
    vocab_bytes: bytes,
    variables: Mapping[str, np.ndarray],
    overwrite: bool = False,
) -> None:
    """Write the files of a BERT directory into a temporary sibling, then rename it into place.

    Args:
        output_dir: the directory to create.
        config_bytes: content of `bert_config.json`.
        vocab_bytes: content of `vocab.txt`.
        variables: Google's variable name -> float32 array.
        overwrite: replace an existing directory.

    Raises:
        OutputExistsError: the directory exists and is not empty, and `overwrite` was not given.
        OutputWriteError: it could not be written; what was there before is untouched.
    """
    output_dir = Path(os.path.abspath(output_dir))
    occupied = output_dir.exists() and not (output_dir.is_dir() and not any(output_dir.iterdir()))
    if occupied and not (overwrite and output_dir.is_dir()):
        raise OutputExistsError(f"{output_dir}: exists already; choose another directory or remove this one")
    new = temporary_sibling(output_dir)
    try:
        new.mkdir(parents=True)
        (new / CONFIG_FILE_NAME).write_bytes(config_bytes)
        (new / VOCAB_NAME).write_bytes(vocab_bytes)
        names = sorted(variables)
        tf.raw_ops.SaveV2(
            prefix=str(new / CHECKPOINT_NAME),
            tensor_names=names,
            shape_and_slices=[""] * len(names),
            tensors=[tf.constant(variables[name], tf.float32) for name in names],
        )
        for path in (*new.iterdir(), new):
            sync_path(path)
        replace_directory(new, output_dir)
    except (OSError, tf.errors.OpError) as error:
        raise OutputWriteError(f"{output_dir}: the BERT directory could not be written: {error}") from error
    finally:
        remove(new)


def _set_encoder_weights(
    model: tf_keras.Model, config: BertConfig, value_fn: Callable[[str, Shape], np.ndarray]
) -> None:
    """Set every encoder weight to value_fn(Google's name, shape)."""
    for layer, targets in encoder_variables(config).items():
        model.get_layer(layer).set_weights([value_fn(name, shape) for name, shape in targets])


@contextlib.contextmanager
def _readable_checkpoint_errors(prefix: Path) -> Iterator[None]:
    """Turn what TensorFlow raises about a damaged checkpoint into our errors.

    Its reader raises a C++ status as a built-in exception or one of `tf.errors`, which depends on the status.
    """
    try:
        yield
    except (tf.errors.NotFoundError, FileNotFoundError) as error:
        raise MissingInputError(f"{prefix}: a file of the checkpoint is missing: {error}") from error
    except (tf.errors.OpError, IndexError, RuntimeError, ValueError) as error:
        raise InputFormatError(f"{prefix}: the checkpoint is damaged: {error}") from error
