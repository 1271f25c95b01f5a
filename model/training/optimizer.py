"""Adam with decoupled weight decay, gradient clipping, loss scaling, and the learning rate of every step.

Keras's own optimizers make a dozen passes over every weight; this one asks for TensorFlow's fused kernel, one pass. Its
arithmetic is that of `tf_keras.optimizers.AdamW`, which tests compare it with.
"""

import dataclasses
import math
from collections.abc import Sequence

import tensorflow as tf

from model.config import TrainConfig

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-7  # the defaults of tf_keras.optimizers.Adam, which the original write-up used

# The defaults of tf_keras.mixed_precision.LossScaleOptimizer.
FIRST_LOSS_SCALE = 2.0**15
MIN_LOSS_SCALE = 1.0
UPDATES_UNTIL_LARGER_SCALE = 2000


class AdamW:
    """Adam (Kingma & Ba 2015) with decoupled weight decay (Loshchilov & Hutter 2019), under any strategy.

    Without decay it is plain Adam. To be made in the strategy's scope and used in its cross-replica context.

    Attributes:
        variables: the trained weights, float32.
        momentums, velocities: first and second moments, one for each weight.
        num_updates: int64 scalar, updates so far.
    """

    def __init__(self, strategy: tf.distribute.Strategy, variables: Sequence[tf.Variable], *, weight_decay: float):
        self._strategy = strategy
        self.variables = list(variables)
        # Biases and the scales and shifts of normalization are the vectors; Google's BERT spares just these.
        self._decays = [weight_decay if len(variable.shape) > 1 else 0.0 for variable in self.variables]
        self.momentums = [tf.Variable(tf.zeros(v.shape), trainable=False) for v in self.variables]
        self.velocities = [tf.Variable(tf.zeros(v.shape), trainable=False) for v in self.variables]
        self.num_updates = tf.Variable(0, dtype=tf.int64, trainable=False)

    def apply(self, gradients: Sequence[tf.Tensor], learning_rate: tf.Tensor) -> None:
        """Update every weight once.

        Args:
            gradients: float32, for each weight; the same on every replica.
            learning_rate: float32 scalar.
        """
        num_updates = tf.cast(self.num_updates + 1, tf.float32)
        powers = tf.pow(BETA_1, num_updates), tf.pow(BETA_2, num_updates)
        for variable, momentum, velocity, gradient, decay in zip(
            self.variables, self.momentums, self.velocities, gradients, self._decays, strict=True
        ):
            self._strategy.extended.update(
                variable, _update_one, args=(momentum, velocity, gradient, *powers, learning_rate, decay)
            )
        self.num_updates.assign_add(1)


def _update_one(
    variable: tf.Variable,
    momentum: tf.Variable,
    velocity: tf.Variable,
    gradient: tf.Tensor,
    beta_1_power: tf.Tensor,
    beta_2_power: tf.Tensor,
    learning_rate: tf.Tensor,
    decay: float,
) -> None:
    """Update one device's copy of a weight."""
    if decay:
        variable.assign_sub(variable.read_value() * (learning_rate * decay))
    tf.raw_ops.ResourceApplyAdam(
        var=variable.handle,
        m=momentum.handle,
        v=velocity.handle,
        beta1_power=beta_1_power,
        beta2_power=beta_2_power,
        lr=learning_rate,
        beta1=BETA_1,
        beta2=BETA_2,
        epsilon=EPSILON,
        grad=gradient,
        use_locking=True,
    )


def clip_by_norm(
    gradients: Sequence[tf.Tensor], clip_norm: float, *, num_summed: tf.Tensor | float = 1.0
) -> tuple[list[tf.Tensor], tf.Tensor]:
    """Make means of summed gradients, and scale them down so that their common norm is at most `clip_norm`.

    Args:
        gradients: sums, float32.
        clip_norm: 0 does not scale them down.
        num_summed: what the sums are divided by.

    Returns:
        The gradients, and their norm before clipping (not finite where one of them is not).
    """
    norm = tf.linalg.global_norm(gradients) / num_summed
    # One factor for both, as every pass over the gradients of a BERT is half a gigabyte.
    factor = (tf.minimum(1.0, clip_norm / tf.maximum(norm, 1e-12)) if clip_norm else 1.0) / num_summed
    return [gradient * factor for gradient in gradients], norm


class LossScale:
    """Dynamic loss scaling, without which small float16 gradients vanish (Micikevicius et al. 2018, section 3.2).

    Attributes:
        scale: float32 scalar, what the loss is multiplied with.
        num_good_updates: int64 scalar, finite updates since the scale last changed.
    """

    def __init__(self) -> None:
        self.scale = tf.Variable(FIRST_LOSS_SCALE, dtype=tf.float32, trainable=False)
        self.num_good_updates = tf.Variable(0, dtype=tf.int64, trainable=False)

    def adjust(self, finite: tf.Tensor) -> None:
        """Halve the scale after gradients that overflowed, double it after many that did not."""
        is_long = self.num_good_updates + 1 >= UPDATES_UNTIL_LARGER_SCALE
        after_good = tf.where(is_long, self.scale * 2.0, self.scale)
        self.scale.assign(tf.where(finite, after_good, tf.maximum(self.scale / 2.0, MIN_LOSS_SCALE)))
        zero = tf.constant(0, tf.int64)
        self.num_good_updates.assign(tf.where(finite & ~is_long, self.num_good_updates + 1, zero))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """The learning rate as a function of the step.

    Attributes:
        peak: the learning rate after warm-up.
        warmup_steps: steps over which it rises from 0.
        num_steps: steps of the whole run, at whose end a linear schedule reaches 0.
        decays: whether it falls linearly after warm-up.
    """

    peak: float
    warmup_steps: int
    num_steps: int
    decays: bool

    @classmethod
    def of(cls, config: TrainConfig, num_steps: int) -> "Schedule":
        """Return the schedule of a run over this many steps."""
        return cls(
            peak=config.learning.learning_rate,
            warmup_steps=math.ceil(config.learning.warmup_share * num_steps),
            num_steps=num_steps,
            decays=config.learning.schedule == "linear",
        )

    def learning_rate(self, step: int, *, scale: float = 1.0) -> float:
        """Return the learning rate of a step.

        Args:
            step: 0 <= step < num_steps.
            scale: what a plateau has made of it so far.
        """
        if step < self.warmup_steps:
            return self.peak * scale * (step + 1) / self.warmup_steps
        if self.decays:
            return self.peak * scale * (self.num_steps - step) / (self.num_steps - self.warmup_steps)
        return self.peak * scale
