"""Dropout whose noise is a function of (seed, step, layer, replica), so that an interrupted run continues with it.

A random generator with a state gives other noise after a restart, and other noise when a layer is traced in another
order. Here the noise of one layer at one step is computed from four numbers that any later process knows too:

    with dropout_rng(seed=0, step=optimizer.iterations):
        probabilities = model(inputs, training=True)

Outside `dropout_rng` the layers draw from TensorFlow's global generator, as Keras's own Dropout does, so that
`model.fit` works as usual.
"""

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf
import tf_keras

from model.bert import kernels
from pipeline.errors import OptionError

# The second word of a stateless seed is step * 2**22 + replica * 2**10 + layer: no two of them can meet.
NUM_LAYER_BITS = 10
NUM_REPLICA_BITS = 12

_WORD_VALUES = 2**16


@dataclasses.dataclass(frozen=True, kw_only=True)
class _DropoutRng:
    seed: int
    step: tf.Tensor


class _Active(threading.local):
    """The generator of the current thread: MirroredStrategy traces every replica in a thread of its own."""

    rng: _DropoutRng | None = None


_ACTIVE = _Active()


@contextlib.contextmanager
def dropout_rng(seed: int, step: tf.Tensor | int) -> Iterator[None]:
    """Make the dropout of every model called inside a function of (seed, step, layer, replica).

    To be entered where the model is called, that is inside the replica function under a `tf.distribute` strategy.

    Args:
        seed: the run's seed, 0 <= seed < 2**63.
        step: scalar integer tensor or variable, the global step, 0 <= step < 2**41.

    Raises:
        OptionError: the seed is out of range.
    """
    if not 0 <= seed < 2**63:
        raise OptionError(f"the dropout seed must be at least 0 and below 2**63, got {seed}")
    outer = _ACTIVE.rng
    _ACTIVE.rng = _DropoutRng(seed=seed, step=tf.cast(step, tf.int64))
    try:
        yield
    finally:
        _ACTIVE.rng = outer


def keep_threshold(rate: float) -> int:
    """Return how many of the 65,536 values of a random word keep an element dropped with probability `rate`."""
    return min(max(round((1.0 - rate) * _WORD_VALUES), 1), _WORD_VALUES - 1)


def keep_probability(rate: float) -> float:
    """Return the exact probability with which `keep_mask` keeps an element; within 2**-16 of 1 - rate."""
    return keep_threshold(rate) / _WORD_VALUES


def keep_mask(shape: tf.Tensor, *, rate: float, layer_index: int) -> tf.Tensor:
    """Draw which elements a dropout layer keeps.

    Half a 32-bit random word decides about one element: the generator is what dropout on a CPU spends its time in.

    Args:
        shape: int32 [rank].
        rate: probability of dropping an element, 0 < rate < 1.
        layer_index: number of the layer within its model, below 1024.

    Returns:
        bool tensor of that shape, True with probability `keep_probability(rate)`.
    """
    num_elements = tf.reduce_prod(shape)
    words = tf.random.stateless_uniform(
        [(num_elements + 1) // 2], _stateless_seed(layer_index), minval=None, maxval=None, dtype=tf.int32, alg="philox"
    )
    halves = tf.reshape(tf.bitcast(words, tf.uint16), [-1])[:num_elements]
    return tf.reshape(halves < tf.constant(keep_threshold(rate), tf.uint16), shape)


def _stateless_seed(layer_index: int) -> tf.Tensor:
    """Return the int64 [2] seed of one layer in the current replica, at the current step."""
    rng = _ACTIVE.rng
    if rng is None:
        return tf.random.uniform([2], minval=0, maxval=tf.int64.max, dtype=tf.int64)
    replica_context = tf.distribute.get_replica_context()
    replica = 0 if replica_context is None else replica_context.replica_id_in_sync_group
    word = rng.step * 2 ** (NUM_LAYER_BITS + NUM_REPLICA_BITS) + tf.cast(replica, tf.int64) * 2**NUM_LAYER_BITS
    return tf.stack([tf.constant(rng.seed, tf.int64), word + layer_index])


class SeededDropout(tf_keras.layers.Layer):
    """Dropout of a tensor's elements with the noise described above.

    Args:
        rate: probability of dropping an element, 0 <= rate < 1.
        layer_index: number of the layer within its model, different for each dropout of the model.
    """

    def __init__(self, rate: float, layer_index: int, **kwargs: Any):
        super().__init__(autocast=False, **kwargs)
        if not 0 <= layer_index < 2**NUM_LAYER_BITS:
            raise OptionError(f"a model can have {2**NUM_LAYER_BITS} dropout layers, got layer number {layer_index}")
        self.rate = rate
        self.layer_index = layer_index
        self.supports_masking = True  # keras-bert's graph passes Keras masks through its dropout layers

    def call(self, x: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Return `x` with dropped elements 0 and the others scaled by 1 / keep_probability, if training."""
        if not training or self.rate == 0:
            return x
        mask = keep_mask(tf.shape(x), rate=self.rate, layer_index=self.layer_index)

        @tf.custom_gradient
        def drop(x: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
            def scale_kept(x: tf.Tensor) -> tf.Tensor:
                return tf.where(mask, kernels.scale(x, 1.0 / keep_probability(self.rate)), tf.zeros([], x.dtype))

            return scale_kept(x), scale_kept

        return drop(x)
