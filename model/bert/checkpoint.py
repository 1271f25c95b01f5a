"""Google-format BERT directories in and out.

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
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf

from model.bert.config import CONFIG_FILE_NAME, BertConfig
from model.files import remove, replace_directory, sync_path, temporary_sibling
from pipeline.dataset.info import VOCAB_NAME
from pipeline.errors import InputFormatError, MissingInputError, OutputExistsError, OutputWriteError
from pipeline.tokenization.vocabulary import load_vocab

CHECKPOINT_NAME = "bert_model.ckpt"

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BertDir:
    """A BERT directory that was found complete and consistent.

    Attributes:
        path: the directory.
        config: its `bert_config.json`.
        vocab_path: its `vocab.txt`, with `config.vocab_size` entries.
        checkpoint_prefix: path of `bert_model.ckpt`, to which TensorFlow adds `.index` and `.data-…`.
    """

    path: Path
    config: BertConfig
    vocab_path: Path
    checkpoint_prefix: Path


def read_bert_dir(path: str | Path) -> BertDir:
    """Check that a directory is a complete Google-format BERT directory.

    Raises:
        MissingInputError: it is not a directory, or one of its files is missing (the message names it).
        InputFormatError: the configuration or the vocabulary is unusable, or they disagree about its size.
    """
    path = Path(path)
    if not path.is_dir():
        raise MissingInputError(f"{path}: no such directory; expected a BERT directory with {VOCAB_NAME}, "
                                f"{CONFIG_FILE_NAME} and {CHECKPOINT_NAME}.*")  # fmt: skip
    config_path, vocab_path = path / CONFIG_FILE_NAME, path / VOCAB_NAME
    for name in (VOCAB_NAME, CONFIG_FILE_NAME, f"{CHECKPOINT_NAME}.index"):
        if not (path / name).is_file():
            raise MissingInputError(f"{path}: the BERT directory has no {name}")
    if not any(path.glob(f"{CHECKPOINT_NAME}.data-*")):
        raise MissingInputError(f"{path}: the BERT directory has no {CHECKPOINT_NAME}.data-00000-of-00001")
    config = BertConfig.from_file(config_path)
    num_entries = len(load_vocab(vocab_path))
    if num_entries != config.vocab_size:
        raise InputFormatError(
            f"{vocab_path}: {num_entries} entries, but vocab_size in {config_path} is {config.vocab_size}; "
            "the two files must belong to the same BERT"
        )
    return BertDir(path=path, config=config, vocab_path=vocab_path, checkpoint_prefix=path / CHECKPOINT_NAME)


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


def initialize_encoder_weights(model: tf.keras.Model, config: BertConfig, *, seed: int) -> None:
    """Set the encoder's weights to `random_variable`s."""
    _set_encoder_weights(
        model, config, lambda name, shape: random_variable(name, shape, stddev=config.initializer_range, seed=seed)
    )


def load_encoder_weights(model: tf.keras.Model, bert_dir: str | Path) -> None:
    """Fill the encoder of a model from a BERT directory.

    Optimizer slots, `global_step`, pooler and pre-training heads in the checkpoint are not looked at.

    Args:
        model: a Keras model with the layers of `encoder_variables`, built by either encoder.
        bert_dir: see `read_bert_dir`.

    Raises:
        MissingInputError: as `read_bert_dir`, or a data file of the checkpoint is missing.
        InputFormatError: as `read_bert_dir`, or the checkpoint is damaged or lacks a variable of the right shape.
    """
    source = read_bert_dir(bert_dir)
    prefix = source.checkpoint_prefix
    with _readable_checkpoint_errors(prefix):
        reader = tf.train.load_checkpoint(str(prefix))
        shapes = reader.get_variable_to_shape_map()

    def read(name: str, shape: Shape) -> np.ndarray:
        if name not in shapes:
            raise InputFormatError(f"{prefix}: the checkpoint has no variable {name}; expected one of shape {shape}")
        if tuple(shapes[name]) != shape:
            raise InputFormatError(
                f"{prefix}: variable {name} has shape {tuple(shapes[name])}, "
                f"{source.path / CONFIG_FILE_NAME} asks for {shape}"
            )
        with _readable_checkpoint_errors(prefix):
            return reader.get_tensor(name)

    _set_encoder_weights(model, source.config, read)


def save_bert_dir(
    model: tf.keras.Model,
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
    variables = {
        name: value
        for layer, targets in encoder_variables(config).items()
        for (name, _), value in zip(targets, model.get_layer(layer).get_weights(), strict=True)
    }
    write_bert_dir(
        output_dir,
        config_bytes=Path(source_config).read_bytes(),
        vocab_bytes=Path(vocab_path).read_bytes(),
        variables=variables,
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
    model: tf.keras.Model, config: BertConfig, value_fn: Callable[[str, Shape], np.ndarray]
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
