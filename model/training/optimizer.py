"""Adam with decoupled weight decay, gradient clipping, loss scaling, and the learning rate of every step.

Keras's own optimizers make a dozen passes over every weight. Uncompiled, this one calls TensorFlow's fused kernel, one
pass; under XLA it is plain arithmetic, which XLA fuses. Both compute what `tf_keras.optimizers.AdamW` computes.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf

from model.config import TrainConfig

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-7  # the defaults of tf_keras.optimizers.Adam, which the original write-up used

# The defaults of tf_keras.mixed_precision.LossScaleOptimizer.
FIRST_LOSS_SCALE = 2.0**15
MIN_LOSS_SCALE = 1.0
UPDATES_UNTIL_LARGER_SCALE = 2000


Powers = tuple[tf.Tensor, tf.Tensor]


class AdamW:
    """Adam (Kingma & Ba 2015) with decoupled weight decay (Loshchilov & Hutter 2019), under any strategy.

    Without decay it is plain Adam. Create it in the strategy's scope; `apply` updates the copies on one device, so call
    it through `strategy.extended.update`.

    Attributes:
        variables: the trained weights, float32.
        momentums, velocities: first and second moments, one for each weight.
        num_updates: int64 scalar, updates so far.
    """

    def __init__(self, variables: Sequence[tf.Variable], *, weight_decay: float, xla: bool):
        self.variables = list(variables)
        # Biases and the scales and shifts of normalization are the vectors; Google's BERT spares just these.
        self._decays = [weight_decay if len(variable.shape) > 1 else 0.0 for variable in self.variables]
        self.momentums = [tf.Variable(tf.zeros(v.shape), trainable=False) for v in self.variables]
        self.velocities = [tf.Variable(tf.zeros(v.shape), trainable=False) for v in self.variables]
        self.num_updates = tf.Variable(0, dtype=tf.int64, trainable=False)
        self._update_all = self._update_by_arithmetic if xla else self._update_by_kernels

    def apply(self, gradients: Sequence[tf.Tensor], learning_rate: tf.Tensor, is_wanted: tf.Tensor) -> None:
        """Update every weight once, or none.

        Args:
            gradients: float32, for each weight; the same on every replica.
            learning_rate: float32 scalar.
            is_wanted: bool scalar; False changes nothing, whatever the gradients are.
        """
        num_updates = tf.cast(self.num_updates + 1, tf.float32)
        powers = tf.pow(BETA_1, num_updates), tf.pow(BETA_2, num_updates)
        self._update_all(gradients, learning_rate, powers, is_wanted)
        self.num_updates.assign_add(tf.cast(is_wanted, tf.int64))

    def _update_by_kernels(
        self, gradients: Sequence[tf.Tensor], learning_rate: tf.Tensor, powers: Powers, is_wanted: tf.Tensor
    ) -> None:
        def update_all() -> None:
            for variable, momentum, velocity, gradient, decay in self._with_slots(gradients):
                if decay:
                    variable.assign_sub(variable.read_value() * (learning_rate * decay))
                tf.raw_ops.ResourceApplyAdam(
                    var=variable.handle,
                    m=momentum.handle,
                    v=velocity.handle,
                    beta1_power=powers[0],
                    beta2_power=powers[1],
                    lr=learning_rate,
                    beta1=BETA_1,
                    beta2=BETA_2,
                    epsilon=EPSILON,
                    grad=gradient,
                    use_locking=True,
                )

        tf.cond(is_wanted, update_all, lambda: None)

    def _update_by_arithmetic(
        self, gradients: Sequence[tf.Tensor], learning_rate: tf.Tensor, powers: Powers, is_wanted: tf.Tensor
    ) -> None:
        """Compute as the kernels do; a `tf.where` keeps the host from waiting for the decision."""
        rate = learning_rate * tf.sqrt(1.0 - powers[1]) / (1.0 - powers[0])
        for variable, momentum, velocity, gradient, decay in self._with_slots(gradients):
            new_momentum = momentum + (gradient - momentum) * (1.0 - BETA_1)
            new_velocity = velocity + (tf.square(gradient) - velocity) * (1.0 - BETA_2)
            decayed = variable - variable * (learning_rate * decay) if decay else variable
            new_value = decayed - new_momentum * rate / (tf.sqrt(new_velocity) + EPSILON)
            for target, new in ((variable, new_value), (momentum, new_momentum), (velocity, new_velocity)):
                target.assign(tf.where(is_wanted, new, target))

    def _with_slots(self, gradients: Sequence[tf.Tensor]) -> Iterator[tuple[Any, ...]]:
        return zip(self.variables, self.momentums, self.velocities, gradients, self._decays, strict=True)


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

    def adjust(self, num_finite: tf.Tensor) -> None:
        """Halve the scale after gradients that overflowed, double it after many that did not.

        Args:
            num_finite: int64 scalar: 1 after finite gradients, -1 after others, 0 where there were none.
        """
        num_good = self.num_good_updates + num_finite
        is_long = num_good >= UPDATES_UNTIL_LARGER_SCALE
        after_good = tf.where(is_long, self.scale * 2.0, self.scale)
        overflowed = num_finite < 0
        self.scale.assign(tf.where(overflowed, tf.maximum(self.scale / 2.0, MIN_LOSS_SCALE), after_good))
        self.num_good_updates.assign(tf.where(overflowed | is_long, tf.constant(0, tf.int64), num_good))


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
