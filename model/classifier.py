"""The classifier: one shared encoder, one softmax head per label.

indices, segments ─▶ encoder ─▶ Pooling [B, H] ─▶ category_logits ─▶ category     float32 [B, 14]
                                              └─▶ second_logits   ─▶ second       float32 [B, 3]
"""

import re
from collections.abc import Mapping
from pathlib import Path

import tf_keras

from model.bert.checkpoint import (
    initialize_encoder_weights,
    load_encoder_weights,
    random_variable,
)
from model.bert.config import BertConfig
from model.bert.directory import find_config, read_bert_dir
from model.bert.encoder import ENCODERS, POOLING_LAYER
from pipeline.dataset.schema import INDICES, SEGMENTS
from pipeline.errors import OptionError

INPUT_NAMES = (INDICES, SEGMENTS)


def build_classifier(
    bert_dir: str | Path,
    heads: Mapping[str, int],
    pooling: str = "cls",
    encoder: str = "fused",
    load_weights: bool = True,
    *,
    seed: int = 0,
    dropout: float | None = None,
    policy: str | None = None,
) -> tf_keras.Model:
    """Build the shared BERT with its heads.

    All weights are trainable. The heads' kernels, and with `load_weights=False` the encoder's weights too, are drawn
    from a normal distribution cut at two standard deviations (the config's `initializer_range`), a function of `seed`
    and the weight's name alone; biases are 0.

    Args:
        bert_dir: see `model.bert.directory`; without `load_weights` its configuration is enough.
        heads: name -> number of classes, at least 2.
        pooling: what the heads see: "cls", the vector at [CLS], or "max", the maximum over all tokens.
        encoder: "fused", ours, or "keras_bert", keras-bert's graph.
        load_weights: fill the encoder from the directory's checkpoint.
        seed: of the initial weights, 0 <= seed < 2**63.
        dropout: used in place of both rates of the configuration; None keeps them.
        policy: Keras precision policy, "float32", "mixed_bfloat16" or "mixed_float16"; None for Keras's global one.

    Returns:
        A Keras model.
          Inputs:  indices: int32 [B, L], L <= max_position_embeddings, 0 is padding; segments: int32 [B, L];
                   as a list in this order or as a dict.
          Outputs: dict: head -> probabilities, float32 [B, number of classes].

    Raises:
        OptionError: an option is out of range.
        MissingInputError: the directory, or a file in it, is missing.
        InputFormatError: a file does not hold what it should.
    """
    if not 0 <= seed < 2**63:
        raise OptionError(f"--seed must be at least 0 and below 2**63, got {seed}")
    bert_dir = Path(bert_dir)
    config = read_bert_dir(bert_dir).config if load_weights else BertConfig.from_file(find_config(bert_dir))
    if dropout is not None:
        config = config.with_dropout(dropout)
    if policy is None:
        policy = tf_keras.mixed_precision.global_policy().name

    model = build_graph(config, heads, pooling=pooling, encoder=encoder, policy=policy)
    for head, num_classes in heads.items():
        shape = (config.hidden_size, num_classes)
        kernel = random_variable(f"{logits_name(head)}/kernel", shape, stddev=config.initializer_range, seed=seed)
        model.get_layer(logits_name(head)).kernel.assign(kernel)
    if load_weights:
        load_encoder_weights(model, bert_dir)
    else:
        initialize_encoder_weights(model, config, seed=seed)
    return model


def build_graph(
    config: BertConfig, heads: Mapping[str, int], *, pooling: str, encoder: str, policy: str
) -> tf_keras.Model:
    """Build what `build_classifier` returns, whose weights the caller fills.

    Args:
        config: sizes, activation, dropout rates.
        heads, pooling, encoder, policy: as `build_classifier`.

    Raises:
        OptionError: an option is out of range.
    """
    _check_heads(heads)
    if encoder not in ENCODERS:
        raise OptionError(f"--encoder must be one of {', '.join(ENCODERS)}, got {encoder!r}")
    indices, segments = (tf_keras.Input(shape=[None], dtype="int32", name=name) for name in INPUT_NAMES)
    pooled = ENCODERS[encoder](indices, segments, config, pooling=pooling, policy=policy)
    outputs = {}
    for head, num_classes in heads.items():
        logits = tf_keras.layers.Dense(
            num_classes, kernel_initializer="zeros", dtype="float32", name=logits_name(head)
        )(pooled)
        outputs[head] = tf_keras.layers.Activation("softmax", dtype="float32", name=head)(logits)
    return tf_keras.Model([indices, segments], outputs, name="classifier")


def logits_model(model: tf_keras.Model) -> tf_keras.Model:
    """Return a view of a classifier whose outputs are the heads' logits.

    It shares every layer, so that training one trains the other. A loss computed from logits stays finite where a
    probability would round to zero.

    Returns:
        A Keras model with the same inputs; outputs: dict: head -> logits, float32 [B, number of classes].
    """
    outputs = {head: model.get_layer(logits_name(head)).output for head in model.output}
    return tf_keras.Model(model.inputs, outputs, name=f"{model.name}_logits")


def logits_name(head: str) -> str:
    """Return the name of the layer that computes a head's logits."""
    return f"{head}_logits"


def _check_heads(heads: Mapping[str, int]) -> None:
    """Refuse heads of which no model can be built; names become names of Keras layers."""
    if not heads:
        raise OptionError("a classifier needs at least one head, got none")
    names = {name for head in heads for name in (head, logits_name(head))}
    taken = {*INPUT_NAMES, POOLING_LAYER}
    if len(names) < 2 * len(heads) or names & taken:
        raise OptionError(f"head names clash with each other or with {', '.join(sorted(taken))}: {', '.join(heads)}")
    for head, num_classes in heads.items():
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_]*", head):
            raise OptionError(f"head name {head!r} must consist of letters, digits and underscores")
        if num_classes < 2:
            raise OptionError(f"head {head!r} needs at least 2 classes, got {num_classes}")
