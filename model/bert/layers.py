"""The layers of the encoder, with keras-bert's weights in keras-bert's order.

Every layer casts where it must and nowhere else: products in the compute dtype of its policy, weights, embeddings,
sums of residuals, normalization and softmax in float32.
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tf_keras

from model.bert import kernels
from model.bert.config import EXACT_GELU
from model.bert.dropout import keep_mask, keep_probability
from pipeline.errors import OptionError

ACTIVATION_FNS: dict[str, Callable[[tf.Tensor], tf.Tensor]] = {
    "gelu": kernels.gelu,
    EXACT_GELU: kernels.exact_gelu,
    "relu": tf.nn.relu,
    "tanh": tf.tanh,
    "linear": tf.identity,
}


def _project(x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    """Return x kernel + bias for x [B, L, H]; one two-dimensional product, which is faster than B of them."""
    flat = tf.nn.bias_add(tf.matmul(tf.reshape(x, [-1, x.shape[-1]]), kernel), bias)
    return tf.reshape(flat, [-1, _length(x), flat.shape[-1]])


def _length(x: tf.Tensor) -> int | tf.Tensor:
    """Return the second dimension of x, as a number where it is known."""
    return x.shape[1] if x.shape[1] is not None else tf.shape(x)[1]


class SegmentEmbedding(tf_keras.layers.Layer):
    """Adds the embedding of each token's segment: [x [B, L, H], segments int32 [B, L]] -> float32 [B, L, H].

    As a product with one-hot rows, like Google's modeling.py: the gradient of a gather would scatter B * L rows into
    a table of two.
    """

    def __init__(self, num_segments: int, **kwargs: Any):
        super().__init__(dtype="float32", autocast=False, **kwargs)
        self.num_segments = num_segments

    def build(self, input_shape: list[tf.TensorShape]) -> None:
        """Create the table, float32 [num_segments, H]."""
        self.embeddings = self.add_weight(
            name="embeddings", shape=[self.num_segments, input_shape[0][-1]], initializer="zeros"
        )
        super().build(input_shape)

    def call(self, inputs: list[tf.Tensor]) -> tf.Tensor:
        """Return the sum."""
        x, segments = inputs
        rows = tf.one_hot(tf.reshape(segments, [-1]), self.num_segments)
        return x + tf.reshape(tf.matmul(rows, self.embeddings), tf.shape(x))


class PositionEmbedding(tf_keras.layers.Layer):
    """Adds the embedding of each position: x float32 [B, L, H] -> float32 [B, L, H], for L <= max_positions."""

    def __init__(self, max_positions: int, **kwargs: Any):
        super().__init__(dtype="float32", autocast=False, **kwargs)
        self.max_positions = max_positions

    def build(self, input_shape: tf.TensorShape) -> None:
        """Create the table, float32 [max_positions, H]."""
        self.embeddings = self.add_weight(
            name="embeddings", shape=[self.max_positions, input_shape[-1]], initializer="zeros"
        )
        super().build(input_shape)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Return the sum.

        Raises:
            OptionError: the batch is longer than the table; only where its length is known when the graph is built,
                otherwise TensorFlow's InvalidArgumentError when it runs.
        """
        length = _length(x)
        if isinstance(length, int) and length > self.max_positions:
            raise OptionError(
                f"a batch of length {length} does not fit max_position_embeddings {self.max_positions}; "
                f"use a --max_len of at most {self.max_positions}"
            )
        return x + self.embeddings[:length]


class ScoreBias(tf_keras.layers.Layer):
    """What padding adds to attention scores: indices int32 [B, L] -> float32 [B, 1, 1, L]."""

    def __init__(self, **kwargs: Any):
        super().__init__(dtype="float32", autocast=False, **kwargs)

    def call(self, indices: tf.Tensor) -> tf.Tensor:
        """Return 0 for tokens and MASKED_SCORE for padding."""
        is_padding = tf.cast(tf.equal(indices, 0), tf.float32)
        return kernels.MASKED_SCORE * is_padding[:, tf.newaxis, tf.newaxis, :]


class Norm(tf_keras.layers.Layer):
    """Layer normalization of the sum of its inputs: floating [B, L, H] each -> `output_dtype` [B, L, H]."""

    def __init__(self, output_dtype: str, *, epsilon: float, **kwargs: Any):
        super().__init__(dtype="float32", autocast=False, **kwargs)
        self.output_dtype = output_dtype
        self.epsilon = epsilon

    def build(self, input_shape: list[tf.TensorShape]) -> None:
        """Create scale and shift, float32 [H] each."""
        width = input_shape[0][-1]
        self.gamma = self.add_weight(name="gamma", shape=[width], initializer="ones")
        self.beta = self.add_weight(name="beta", shape=[width], initializer="zeros")
        super().build(input_shape)

    def call(self, inputs: list[tf.Tensor]) -> tf.Tensor:
        """Return the normalized sum; the sum itself is float32, so that nothing of a residual is rounded away."""
        total = tf.cast(inputs[0], tf.float32)
        for x in inputs[1:]:
            total += tf.cast(x, tf.float32)
        return kernels.layer_norm(
            total, tf.identity(self.gamma), tf.identity(self.beta),
            epsilon=self.epsilon, output_dtype=tf.as_dtype(self.output_dtype),
        )  # fmt: skip


class SelfAttention(tf_keras.layers.Layer):
    """Multi-head self-attention: [x [B, L, H], score_bias float32 [B, 1, 1, L]] -> [B, Q, H] in the compute dtype.

    Q is L, or 1 with `first_only`: then only the first position asks, while all of them still answer.

    Args:
        num_heads: number of heads; H must be a multiple of it.
        dropout_rate: probability of dropping an attention probability.
        layer_index: number of this layer's dropout within the model, see `model.bert.dropout`.
        first_only: compute the first position's output alone.
    """

    def __init__(self, num_heads: int, *, dropout_rate: float, layer_index: int, first_only: bool, **kwargs: Any):
        super().__init__(autocast=False, **kwargs)
        self.num_heads = num_heads
        self.dropout_rate = dropout_rate
        self.layer_index = layer_index
        self.first_only = first_only

    def build(self, input_shape: list[tf.TensorShape]) -> None:
        """Create query, key, value and output projections: kernel float32 [H, H] and bias float32 [H] each."""
        width = input_shape[0][-1]
        for part in "qkvo":
            for kind, shape in (("W", [width, width]), ("b", [width])):
                weight = self.add_weight(name=f"{self.name}_{kind}{part}", shape=shape, initializer="zeros")
                setattr(self, kind + part, weight)
        super().build(input_shape)

    def call(self, inputs: list[tf.Tensor], training: bool | None = None) -> tf.Tensor:
        """Return the attention's output before dropout, residual and normalization."""
        x, score_bias = inputs
        if self.first_only:
            query = self._heads(_project(x[:, :1], self.Wq, self.bq), 1)[0]
            key, value = self._heads(self._project_fused(x, "kv"), 2)
        else:
            query, key, value = self._heads(self._project_fused(x, "qkv"), 3)
        mask = None
        if training and self.dropout_rate:
            shape = [tf.shape(x)[0], self.num_heads, _length(query[:, 0]), _length(x)]
            mask = keep_mask(tf.stack(shape), rate=self.dropout_rate, layer_index=self.layer_index)
        context = kernels.attention(
            query, key, value, score_bias, keep_mask=mask, keep_probability=keep_probability(self.dropout_rate)
        )
        context = tf.transpose(context, [0, 2, 1, 3])
        merged = tf.reshape(context, [-1, _length(context), self.num_heads * context.shape[-1]])
        return _project(merged, self.Wo, self.bo)

    def _project_fused(self, x: tf.Tensor, parts: str) -> tf.Tensor:
        """Project x [B, L, H] for several parts in one product: [B, L, len(parts) * H]."""
        kernel = tf.concat([getattr(self, f"W{part}") for part in parts], axis=1)
        bias = tf.concat([getattr(self, f"b{part}") for part in parts], axis=0)
        return _project(x, kernel, bias)

    def _heads(self, projected: tf.Tensor, num_parts: int) -> list[tf.Tensor]:
        """Split [B, L, num_parts * H] into `num_parts` tensors [B, N, L, H / N]."""
        head_size = projected.shape[-1] // num_parts // self.num_heads
        split = tf.reshape(projected, [-1, _length(projected), num_parts, self.num_heads, head_size])
        return tf.unstack(tf.transpose(split, [2, 0, 3, 1, 4]), num=num_parts)


class FeedForward(tf_keras.layers.Layer):
    """Two projections with an activation between: [B, L, H] -> [B, L, H] in the compute dtype."""

    def __init__(self, width: int, *, activation: str, **kwargs: Any):
        super().__init__(autocast=False, **kwargs)
        self.width = width
        self.activation_fn = ACTIVATION_FNS[activation]

    def build(self, input_shape: tf.TensorShape) -> None:
        """Create the kernels, float32 [H, width] and [width, H], and their biases."""
        outer = input_shape[-1]
        self.W1 = self.add_weight(name=f"{self.name}_W1", shape=[outer, self.width], initializer="zeros")
        self.b1 = self.add_weight(name=f"{self.name}_b1", shape=[self.width], initializer="zeros")
        self.W2 = self.add_weight(name=f"{self.name}_W2", shape=[self.width, outer], initializer="zeros")
        self.b2 = self.add_weight(name=f"{self.name}_b2", shape=[outer], initializer="zeros")
        super().build(input_shape)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Return the feed-forward output before dropout, residual and normalization."""
        return _project(self.activation_fn(_project(x, self.W1, self.b1)), self.W2, self.b2)


class FirstPosition(tf_keras.layers.Layer):
    """The first position, kept as a sequence of one: [B, L, H] -> [B, 1, H]."""

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Return the slice."""
        return x[:, :1]


class ClsPooling(tf_keras.layers.Layer):
    """The vector at [CLS], which the tokenizer puts first: [B, L, H] -> float32 [B, H]."""

    def __init__(self, **kwargs: Any):
        super().__init__(dtype="float32", autocast=False, **kwargs)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Return the first position."""
        return tf.cast(x[:, 0], tf.float32)


class MaxPooling(tf_keras.layers.Layer):
    """The maximum over all tokens, padding left out: [x [B, L, H], indices int32 [B, L]] -> float32 [B, H].

    Source:
        keras_bert.layers.MaskedGlobalMaxPool1D, which subtracts 1e6 from padding.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(dtype="float32", autocast=False, **kwargs)

    def call(self, inputs: list[tf.Tensor]) -> tf.Tensor:
        """Return the maximum of each feature."""
        x, indices = inputs
        is_padding = tf.cast(tf.equal(indices, 0), tf.float32)
        return tf.reduce_max(tf.cast(x, tf.float32) - 1e6 * is_padding[:, :, tf.newaxis], axis=1)
