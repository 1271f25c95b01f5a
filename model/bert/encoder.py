"""The shared BERT: token ids in, one vector per text out.

Two graphs with the same inputs, the same layer names and weights, and the same output:

* `encode_fused`, ours: one product for queries, keys and values, mixed precision, resumable dropout, and in the last
  layer only the [CLS] row where nothing else is read.
* `encode_keras_bert`, keras-bert's own, the reference which tests and benchmarks compare with.

                          indices [B, L]          segments [B, L]
    Embedding-Token ─▶ Embedding-Segment ─▶ Embedding-Position ─▶ Embedding-Norm ─▶ Embedding-Dropout
    Encoder-i-MultiHeadSelfAttention ─▶ …-Dropout ─▶ …-Norm (sum with its input)       for i = 1 … num_hidden_layers
    Encoder-i-FeedForward            ─▶ …-Dropout ─▶ …-Norm (sum with its input)
    Pooling

Dropout sits where Devlin et al. put it: after the embeddings' normalization, on the attention probabilities, and on the
output of both halves of a layer. keras-bert drops before the embeddings' normalization and has none on the attention
probabilities; without dropout the two graphs compute the same.

Our graph's weights start at zero, or one for the scale of a normalization: the caller sets them, from a
checkpoint or at random (`model.bert.checkpoint`).
"""

import warnings

import tensorflow as tf
import tf_keras

from model.bert.config import EXACT_GELU, GOOGLE_EPSILON, BertConfig
from model.bert.dropout import SeededDropout
from model.bert.layers import (
    ClsPooling,
    FeedForward,
    FirstPosition,
    MaxPooling,
    Norm,
    PositionEmbedding,
    ScoreBias,
    SegmentEmbedding,
    SelfAttention,
)
from model.config import POOLINGS
from pipeline.errors import OptionError

POOLING_LAYER = "Pooling"  # the layer whose output the heads see
POLICIES = ("float32", "mixed_bfloat16", "mixed_float16")


def encode_fused(
    indices: tf.Tensor, segments: tf.Tensor, config: BertConfig, *, pooling: str | None, policy: str
) -> tf.Tensor:
    """Build our encoder on two Keras inputs.

    Args:
        indices: Keras tensor int32 [B, L], L <= max_position_embeddings; 0 is padding.
        segments: Keras tensor int32 [B, L].
        config: sizes, activation, dropout rates.
        pooling: "cls" or "max"; None for the last layer's whole sequence.
        policy: "float32", "mixed_bfloat16" or "mixed_float16".

    Returns:
        Keras tensor: float32 [B, H], or [B, L, H] in the policy's compute dtype without pooling. With "cls" the
        outputs of the last layer exist for the first position alone.

    Raises:
        OptionError: pooling or policy is unknown.
    """
    _check_pooling(pooling)
    if policy not in POLICIES:
        raise OptionError(f"precision policy {policy!r} is unknown; expected one of {', '.join(POLICIES)}")
    dtype = tf_keras.mixed_precision.Policy(policy).compute_dtype
    num_dropouts = 0

    def drop(x: tf.Tensor, name: str) -> tf.Tensor:
        nonlocal num_dropouts
        if config.hidden_dropout_prob == 0:
            return x
        num_dropouts += 1
        return SeededDropout(
            config.hidden_dropout_prob, layer_index=num_dropouts - 1, dtype=dtype, name=f"{name}-Dropout"
        )(x)

    def norm(inputs: list[tf.Tensor], name: str) -> tf.Tensor:
        return Norm(dtype, epsilon=config.layer_norm_eps, name=f"{name}-Norm")(inputs)

    score_bias = ScoreBias(name="Score-Bias")(indices)
    x = tf_keras.layers.Embedding(
        config.vocab_size, config.hidden_size, embeddings_initializer="zeros", dtype="float32", name="Embedding-Token"
    )(indices)
    x = SegmentEmbedding(config.type_vocab_size, name="Embedding-Segment")([x, segments])
    x = PositionEmbedding(config.max_position_embeddings, name="Embedding-Position")(x)
    x = norm([x], "Embedding")
    x = drop(x, "Embedding")
    for layer in range(1, config.num_hidden_layers + 1):
        first_only = pooling == "cls" and layer == config.num_hidden_layers
        name = f"Encoder-{layer}-MultiHeadSelfAttention"
        num_dropouts += 1
        attended = SelfAttention(
            config.num_attention_heads,
            dropout_rate=config.attention_probs_dropout_prob,
            layer_index=num_dropouts - 1,
            first_only=first_only,
            dtype=policy,
            name=name,
        )([x, score_bias])
        if first_only:
            x = FirstPosition(dtype=dtype, name=f"{name}-First")(x)
        x = norm([x, drop(attended, name)], name)
        name = f"Encoder-{layer}-FeedForward"
        transformed = FeedForward(config.intermediate_size, activation=config.hidden_act, dtype=policy, name=name)(x)
        x = norm([x, drop(transformed, name)], name)
    if pooling == "cls":
        return ClsPooling(name=POOLING_LAYER)(x)
    if pooling == "max":
        return MaxPooling(name=POOLING_LAYER)([x, indices])
    return x


def encode_keras_bert(
    indices: tf.Tensor, segments: tf.Tensor, config: BertConfig, *, pooling: str | None, policy: str
) -> tf.Tensor:
    """Build keras-bert's encoder on two Keras inputs.

    It is the graph of `keras_bert.get_model(training=False)`, copied onto our inputs layer by layer; its Dropout layers
    alone are replaced, by ones at the same places whose noise an interrupted run can continue with.

    Args:
        indices: as in `encode_fused`.
        segments: as in `encode_fused`.
        config: sizes, activation, and the hidden dropout rate; the attention probabilities have no dropout here.
        pooling: as in `encode_fused`.
        policy: "float32".

    Returns:
        Keras tensor: float32 [B, H], or [B, L, H] without pooling.

    Raises:
        OptionError: pooling is unknown, keras-bert cannot do what was asked, or TensorFlow was started with Keras 3.
    """
    _check_pooling(pooling)
    if policy != "float32" or tf_keras.mixed_precision.global_policy().name != "float32":
        raise OptionError(
            f"--encoder keras_bert works in float32 only, got {policy!r}; use --precision float32 or --encoder fused"
        )
    for name, value, has_it in (
        ("type_vocab_size", config.type_vocab_size, config.type_vocab_size == 2),
        ("hidden_act", config.hidden_act, config.hidden_act != EXACT_GELU),
        ("layer_norm_eps", config.layer_norm_eps, config.layer_norm_eps <= GOOGLE_EPSILON),
    ):
        if not has_it:
            raise OptionError(f"keras-bert's encoder cannot have {name} {value}; use --encoder fused")
    if tf.keras.Model is not tf_keras.Model:
        raise OptionError(
            "--encoder keras_bert needs Keras 2, and TensorFlow was started with another; set TF_USE_LEGACY_KERAS=1 "
            "before it is imported, or use --encoder fused"
        )
    # It takes whatever Keras TensorFlow was started with, and our own encoder goes without it.
    import keras_bert
    from keras_bert.layers import Extract, MaskedGlobalMaxPool1D

    num_dropouts = 0

    def copy_layer(layer: tf_keras.layers.Layer) -> tf_keras.layers.Layer:
        nonlocal num_dropouts
        if isinstance(layer, tf_keras.layers.Dropout):
            num_dropouts += 1
            return SeededDropout(layer.rate, layer_index=num_dropouts - 1, name=layer.name)
        return layer.__class__.from_config(layer.get_config())

    with warnings.catch_warnings(), tf_keras.utils.custom_object_scope(keras_bert.get_custom_objects()):
        # keras-bert shares one unseeded initializer between weights; no matter, all of them are set afterwards.
        warnings.filterwarnings("ignore", message="The initializer GlorotNormal is unseeded", category=UserWarning)
        inputs, outputs = keras_bert.get_model(
            token_num=config.vocab_size,
            pos_num=config.max_position_embeddings,
            seq_len=None,
            embed_dim=config.hidden_size,
            transformer_num=config.num_hidden_layers,
            head_num=config.num_attention_heads,
            feed_forward_dim=config.intermediate_size,
            dropout_rate=config.hidden_dropout_prob,
            feed_forward_activation=config.hidden_act,
            training=False,
            trainable=True,
        )
        copied = tf_keras.models.clone_model(
            tf_keras.Model(inputs, outputs), input_tensors=[indices, segments], clone_function=copy_layer
        )
    x = copied.output
    if pooling == "cls":
        return Extract(index=0, name=POOLING_LAYER)(x)
    if pooling == "max":
        return MaskedGlobalMaxPool1D(name=POOLING_LAYER)(x)
    return x


ENCODERS = {"fused": encode_fused, "keras_bert": encode_keras_bert}


def _check_pooling(pooling: str | None) -> None:
    if pooling is not None and pooling not in POOLINGS:
        raise OptionError(f"--pooling must be one of {', '.join(POOLINGS)}, got {pooling!r}")
