"""What happens to one global batch: the step that trains and the step that evaluates, on any number of replicas.

Both return sums over real examples and leave dividing to their caller, so that padded rows and replicas which got fewer
examples change nothing; all in one vector, which is fetched from the device at once (`Outcome`):

    sums float32 [3 + 2·H]: examples, tokens, all heads right, then for each head: loss, right
    how many replicas shall stop
    of the training step alone: the gradient's norm before clipping, what the loss was multiplied with
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from model.bert.dropout import dropout_rng
from model.config import TrainConfig
from model.training.optimizer import MIN_LOSS_SCALE, AdamW, LossScale, clip_by_norm
from model.training.strategy import Devices, all_reduce
from pipeline.dataset.schema import INDICES, SEGMENTS

EXAMPLES, TOKENS, ALL_RIGHT = range(3)  # the sums that belong to no head
NUM_COMMON_SUMS = 3

# The host looks at results this many steps late, so that the device always has work queued. Several workers learn from
# the same result that one of them was asked to stop, and all stop this many steps after it.
STEPS_IN_FLIGHT = 4

Batch = tuple[Mapping[str, tf.Tensor], Mapping[str, tf.Tensor], tf.Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadLoss:
    """How one head's loss is made from its logits.

    Attributes:
        weight: of the head in the loss that is minimized.
        smoothing: share of the target given to all classes alike (Szegedy et al. 2016, section 7).
        class_weights: [classes], weight of the examples of each class.
    """

    weight: float
    smoothing: float
    class_weights: tuple[float, ...]

    def __call__(self, labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        """Return each example's loss.

        Args:
            labels: int32 [B].
            logits: float32 [B, classes].

        Returns:
            float32 [B].
        """
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
        if self.smoothing:
            uniform = -tf.reduce_mean(tf.nn.log_softmax(logits), axis=-1)
            losses = (1.0 - self.smoothing) * losses + self.smoothing * uniform
        if len(set(self.class_weights)) > 1:
            losses *= tf.gather(tf.constant(self.class_weights), labels)
        return losses


def head_losses(config: TrainConfig, label_counts: Mapping[str, Sequence[int]]) -> dict[str, HeadLoss]:
    """Return the loss of each head.

    Args:
        config: weights, smoothing and which heads to balance.
        label_counts: head -> examples of each class in the training split.
    """
    losses = {}
    for head in config.model.heads:
        counts = np.asarray(label_counts[head], np.float64)
        weights = np.ones_like(counts)
        if head in config.model.balance_classes:
            # Mean 1 over the examples, so that balancing leaves the learning rate's meaning alone.
            present = counts > 0
            weights[present] = counts.sum() / (present.sum() * counts[present])
        losses[head] = HeadLoss(
            weight=config.model.loss_weight(head),
            smoothing=config.model.smoothing(head),
            class_weights=tuple(weights.tolist()),
        )
    return losses


STOP_SIGNATURE = tf.TensorSpec([], tf.float32)
STEP_SIGNATURE = (tf.TensorSpec([], tf.int64), tf.TensorSpec([], tf.float32), STOP_SIGNATURE)


def batch_signature(heads: Sequence[str]) -> Batch:
    """Return the dtypes of a batch, whatever its shape."""
    inputs = {name: tf.TensorSpec([None, None], tf.int32, name) for name in (INDICES, SEGMENTS)}
    labels = {head: tf.TensorSpec([None], tf.int32, head) for head in heads}
    return inputs, labels, tf.TensorSpec([None], tf.float32, "weights")


def empty_batch(heads: Sequence[str], num_rows: int, length: int) -> Batch:
    """Return a batch without real examples, which changes no weight and has sums of 0."""
    inputs = {INDICES: tf.ones([num_rows, length], tf.int32), SEGMENTS: tf.zeros([num_rows, length], tf.int32)}
    return inputs, dict.fromkeys(heads, tf.zeros([num_rows], tf.int32)), tf.zeros([num_rows])


def num_sums(num_heads: int) -> int:
    """Return how many sums a step returns."""
    return NUM_COMMON_SUMS + 2 * num_heads


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a step says about its global batch, or several steps about theirs.

    Attributes:
        sums: float64 [3 + 2·H], see the module's docstring.
        num_stopping: replicas of workers that were asked to stop.
        gradient_norm: before clipping; not finite where the weights stayed as they were.
        loss_scale: what the loss was multiplied with, see `model.training.optimizer.LossScale`.
    """

    sums: np.ndarray
    num_stopping: int = 0
    gradient_norm: float = 0.0
    loss_scale: float = MIN_LOSS_SCALE

    @classmethod
    def fetch(cls, vector: tf.Tensor, config: TrainConfig) -> "Outcome":
        """Wait for what a step returned."""
        values = vector.numpy().astype(np.float64)
        end = num_sums(len(config.model.heads))
        return cls(values[:end], int(values[end]), *values[end + 1 :].tolist())


def _batch_sums(losses: Mapping[str, tf.Tensor], logits: Mapping[str, tf.Tensor], batch: Batch) -> tf.Tensor:
    """Return the sums named in the module's docstring."""
    inputs, labels, weights = batch
    tokens = tf.reduce_sum(tf.math.count_nonzero(inputs[INDICES], axis=1, dtype=tf.float32) * weights)
    per_head, all_right = [], weights
    for head, per_example in losses.items():
        right = tf.cast(tf.equal(tf.argmax(logits[head], axis=-1, output_type=tf.int32), labels[head]), tf.float32)
        all_right *= right
        per_head += [tf.reduce_sum(per_example * weights), tf.reduce_sum(right * weights)]
    return tf.stack([tf.reduce_sum(weights), tokens, tf.reduce_sum(all_right), *per_head])


def metrics_from_sums(sums: Sequence[float] | np.ndarray, config: TrainConfig) -> dict[str, float]:
    """Divide sums by their count, once.

    Returns:
        `loss` (weighted over heads), for each head `<head>_loss` and `<head>_accuracy`, then `accuracy_mean` and
        `exact_match`.
    """
    count = max(float(sums[EXAMPLES]), 1.0)
    metrics = {"loss": 0.0}
    heads = config.model.heads
    for index, head in enumerate(heads):
        metrics[f"{head}_loss"] = float(sums[NUM_COMMON_SUMS + 2 * index]) / count
        metrics[f"{head}_accuracy"] = float(sums[NUM_COMMON_SUMS + 1 + 2 * index]) / count
        metrics["loss"] += config.model.loss_weight(head) * metrics[f"{head}_loss"]
    metrics["accuracy_mean"] = sum(metrics[f"{head}_accuracy"] for head in heads) / len(heads)
    metrics["exact_match"] = float(sums[ALL_RIGHT]) / count
    return metrics


def maybe_compiled(function: Callable[..., Any], *, xla: bool) -> Callable[..., Any]:
    """Return a function that XLA compiles, once for every shape of its arguments, or the function itself."""
    return tf.function(function, jit_compile=True, autograph=False) if xla else function


def make_train_step(
    model: tf_keras.Model,
    optimizer: AdamW,
    losses: Mapping[str, HeadLoss],
    devices: Devices,
    config: TrainConfig,
    *,
    xla: bool,
    loss_scale: LossScale | None,
) -> Callable[[Batch, tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]:
    """Return the function that learns from one global batch.

    Args:
        model: inputs to {head: logits float32 [B, classes]}, made in the strategy's scope.
        optimizer: over the model's trainable weights, made in the strategy's scope.
        losses: head -> loss.
        devices: where it runs.
        config: seed, accumulation and clipping.
        xla: compile what each replica computes: forward and backward pass, and, after the gradients are summed over
            replicas, clipping and update.
        loss_scale: for float16.

    Returns:
        step_fn(batch, step, learning_rate, stop), with
          batch: (inputs, labels, weights), this worker's part; step: int64 scalar; learning_rate: float32 scalar;
          stop: float32 scalar, 1 on a worker that was asked to stop;
        returning what the module's docstring says, float32 [3 + 2·H + 3].
        Weights stay as they are where the gradient is not finite, and where the batch has no example of weight 1.
    """
    num_parts = config.batches.accumulate_steps
    variables = model.trainable_variables
    scale = tf.constant(MIN_LOSS_SCALE) if loss_scale is None else loss_scale.scale

    def gradients_of_part(part: Batch, noise_step: tf.Tensor) -> tuple[list[tf.Tensor], tf.Tensor]:
        inputs, labels, weights = part
        with tf.GradientTape() as tape, dropout_rng(config.learning.seed, noise_step):
            logits = model([inputs[INDICES], inputs[SEGMENTS]], training=True)
            per_example = {head: loss(labels[head], logits[head]) for head, loss in losses.items()}
            total = tf.add_n([losses[head].weight * tf.reduce_sum(per_example[head] * weights) for head in losses])
            total *= scale
        gradients = tape.gradient(total, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        # An embedding's gradient comes as rows; as rows it has no exact norm and cannot be summed in place.
        return [tf.convert_to_tensor(gradient) for gradient in gradients], _batch_sums(per_example, logits, part)

    def gradients_of_batch(batch: Batch, step: tf.Tensor) -> tuple[list[tf.Tensor], tf.Tensor]:
        if num_parts == 1:
            return gradients_of_part(batch, step)

        def in_parts(tensor: tf.Tensor) -> tf.Tensor:
            return tf.reshape(tensor, tf.concat([[num_parts, -1], tf.shape(tensor)[1:]], axis=0))

        parts = tf.nest.map_structure(in_parts, batch)

        def add_part(index: tf.Tensor, gradients: list[tf.Tensor], sums: tf.Tensor) -> tuple[Any, ...]:
            # XLA needs every shape when it compiles: a gathered part has one, a slice between computed bounds has none.
            part = tf.nest.map_structure(lambda tensor: tf.gather(tensor, index), parts)
            more, more_sums = gradients_of_part(part, step * num_parts + tf.cast(index, tf.int64))
            return index + 1, [a + b for a, b in zip(gradients, more, strict=True)], sums + more_sums

        start = (tf.constant(0), [tf.zeros(v.shape) for v in variables], tf.zeros([num_sums(len(losses))]))
        _, gradients, sums = tf.while_loop(
            lambda index, *_: index < num_parts, add_part, start, maximum_iterations=num_parts, parallel_iterations=1
        )
        return gradients, sums

    def replica_step(batch: Batch, step: tf.Tensor, stop: tf.Tensor) -> tuple[Any, ...]:
        gradients, sums = maybe_compiled(gradients_of_batch, xla=xla)(tf.nest.map_structure(devices.rows, batch), step)
        return all_reduce(devices, (gradients, tf.concat([sums, [stop]], axis=0)))

    def update(gradients: list[tf.Tensor], sums: tf.Tensor, learning_rate: tf.Tensor) -> tf.Tensor:
        """Learn from the summed gradients of all replicas, on one device."""
        used_scale = tf.identity(scale)
        # The mean over the whole batch's real examples: a mean of means would weigh examples by their replica.
        gradients, norm = clip_by_norm(
            gradients, config.learning.clip_norm, num_summed=tf.maximum(sums[EXAMPLES], 1.0) * used_scale
        )
        finite = tf.reduce_all(tf.math.is_finite(sums)) & tf.math.is_finite(norm)
        has_examples = sums[EXAMPLES] > 0
        if loss_scale is not None:
            loss_scale.adjust(tf.where(finite, tf.cast(has_examples, tf.int64), -1))
        optimizer.apply(gradients, learning_rate, finite & has_examples)
        return tf.concat([sums, [norm, used_scale]], axis=0)

    def update_one(_: tf.Variable, *summed: Any) -> tf.Tensor:
        return maybe_compiled(update, xla=xla)(*summed)

    # No Python here depends on a tensor; rewriting it for that case (autograph) would take half of the tracing time.
    # One trace for batches of all shapes: tracing BERT-base takes many seconds, and buckets make many shapes. A trace
    # that became general only at the second shape would also compute the first otherwise after a restart than before.
    @tf.function(input_signature=[batch_signature(config.model.heads), *STEP_SIGNATURE], autograph=False)
    def train_step(batch: Batch, step: tf.Tensor, learning_rate: tf.Tensor, stop: tf.Tensor) -> tf.Tensor:
        gradients, sums = devices.strategy.run(replica_step, args=(batch, step, stop))
        # Once per device: in this context a variable is that device's copy.
        outcomes = devices.strategy.extended.update(
            variables[0], update_one, args=(gradients, sums, learning_rate), group=False
        )
        outcome: tf.Tensor = outcomes[0]
        return outcome

    step_fn: Callable[[Batch, tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor] = train_step
    return step_fn


def make_eval_step(
    model: tf_keras.Model, config: TrainConfig, devices: Devices, *, xla: bool
) -> Callable[[Batch, tf.Tensor], tf.Tensor]:
    """Return the function that measures one global batch, without smoothing or class weights.

    Args:
        model: inputs to {head: logits float32 [B, classes]}, made in the strategy's scope.
        config: which heads, in the order of the sums.
        devices: where it runs.
        xla: compile what each replica computes.

    Returns:
        step_fn(batch, stop), as `make_train_step`'s; returning what the module's docstring says, float32 [3 + 2·H + 1].
    """

    def sums_of_rows(batch: Batch) -> tf.Tensor:
        inputs, labels, _ = batch
        logits = model([inputs[INDICES], inputs[SEGMENTS]], training=False)
        losses = {
            head: tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels[head], logits=logits[head])
            for head in config.model.heads
        }
        return _batch_sums(losses, logits, batch)

    def replica_step(batch: Batch, stop: tf.Tensor) -> tf.Tensor:
        rows = tf.nest.map_structure(devices.rows, batch)
        return tf.concat([maybe_compiled(sums_of_rows, xla=xla)(rows), [stop]], axis=0)

    @tf.function(input_signature=[batch_signature(config.model.heads), STOP_SIGNATURE], autograph=False)
    def eval_step(batch: Batch, stop: tf.Tensor) -> tf.Tensor:
        sums = devices.strategy.run(replica_step, args=(batch, stop))
        return devices.strategy.reduce("SUM", sums, axis=None)

    step_fn: Callable[[Batch, tf.Tensor], tf.Tensor] = eval_step
    return step_fn
