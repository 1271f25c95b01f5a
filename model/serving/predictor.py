"""Ask a trained model: about a split's records, or about texts as they come."""

import collections
import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import tensorflow as tf
import tf_keras

from model.report.metrics import Predictions
from model.run.finished import FinishedRun, load_run_vocab
from model.training.steps import STEPS_IN_FLIGHT, maybe_compiled
from model.training.strategy import Devices
from pipeline.corpus.documents import normalize_text
from pipeline.dataset.schema import INDICES, SEGMENTS
from pipeline.input_pipeline.reader import eval_dataset, explain_read_errors
from pipeline.tokenization.tokenizer import Tokenizer
from pipeline.tokenization.vocabulary import NUM_EDGE_TOKENS

PredictFn = Callable[[Mapping[str, tf.Tensor | np.ndarray]], dict[str, tf.Tensor]]

_EMPTY = "nothing is left of it after normalization"
_NO_TOKEN = "holds nothing but spaces and characters that are dropped"


def make_predict_fn(
    model: tf_keras.Model, heads: Collection[str], *, batch_size: int, devices: Devices | None = None, xla: bool = False
) -> PredictFn:
    """Return the model as a function, traced once for batches of all shapes.

    Args:
        model: made in the scope of the devices' strategy.
        heads: whose probabilities to return.
        batch_size: rows of the largest batch.
        devices: which answer together, each for a part of the rows; `None` for the current device.
        xla: compile it. Batches are then padded to `batch_size` and to powers of two, so that there are few shapes.

    Returns:
        predict_fn({"indices", "segments"} -> int32 [B, L]), returning head -> probabilities float32 [B, classes].
    """
    num_replicas = 1 if devices is None else devices.num_local_replicas
    full_rows = -(-batch_size // num_replicas) * num_replicas
    max_positions = model.get_layer("Embedding-Position").weights[0].shape[0]
    signature = [{name: tf.TensorSpec([None, None], tf.int32) for name in (INDICES, SEGMENTS)}]

    def answer(inputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        outputs = model([inputs[INDICES], inputs[SEGMENTS]], training=False)
        return {head: outputs[head] for head in heads}

    @tf.function(input_signature=signature, autograph=False)
    def predict(inputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        answer_fn = maybe_compiled(answer, xla=xla)
        if devices is None or num_replicas == 1:
            return answer_fn(inputs)

        def answer_rows(inputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            return answer_fn(tf.nest.map_structure(devices.rows, inputs))

        answers = devices.strategy.run(answer_rows, args=(inputs,))
        return {head: tf.concat(devices.strategy.experimental_local_results(answers[head]), axis=0) for head in heads}

    def predict_padded(inputs: Mapping[str, tf.Tensor | np.ndarray]) -> dict[str, tf.Tensor]:
        num_rows, length = inputs[INDICES].shape
        full_length = min(1 << (length - 1).bit_length(), max_positions) if xla else length
        padding = [[0, full_rows - num_rows], [0, full_length - length]]
        padded = {name: tf.pad(values, padding) for name, values in inputs.items()}
        return {head: values[:num_rows] for head, values in predict(padded).items()}

    predict_fn: PredictFn = predict_padded if xla or num_replicas > 1 else predict
    return predict_fn


def predict_split(
    model: tf_keras.Model,
    data_dir: str,
    split: str,
    *,
    heads: Collection[str],
    max_len: int | None = None,
    batch_size: int = 64,
    devices: Devices | None = None,
    xla: bool = False,
) -> Predictions:
    """Ask a model about every example of a split.

    Args:
        model: see `model.classifier.build_classifier`.
        data_dir: a dataset directory.
        split: which split.
        heads: whose labels and probabilities to return.
        max_len: texts are cut to this many tokens; `None` takes the dataset's.
        batch_size: texts at a time.
        devices, xla: see `make_predict_fn`.

    Raises:
        MissingInputError, SchemaMismatchError, EmptySplitError, CorruptShardError: the dataset cannot be read.
    """
    predict_fn = make_predict_fn(model, heads, batch_size=batch_size, devices=devices, xla=xla)
    labels: dict[str, list[np.ndarray]] = {head: [] for head in heads}
    probabilities: dict[str, list[np.ndarray]] = {head: [] for head in heads}
    in_flight: collections.deque[dict[str, tf.Tensor]] = collections.deque()

    def fetch(num_in_flight: int) -> None:
        while len(in_flight) > num_in_flight:
            for head, values in in_flight.popleft().items():
                probabilities[head].append(values.numpy())

    with explain_read_errors(data_dir, split):
        for inputs, right in eval_dataset(data_dir, split, batch_size, max_len):
            in_flight.append(predict_fn(inputs))
            for head in heads:
                labels[head].append(right[head].numpy())
            fetch(STEPS_IN_FLIGHT)
        fetch(0)
    return Predictions(
        labels={head: np.concatenate(parts) for head, parts in labels.items()},
        probabilities={head: np.concatenate(parts) for head, parts in probabilities.items()},
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextPredictions:
    """What a run says about some texts.

    Attributes:
        probabilities: head -> float32 [N, classes]; NaN in the rows of `errors`.
        errors: row -> why this text has no labels.
    """

    probabilities: Mapping[str, np.ndarray]
    errors: Mapping[int, str]


class Predictor:
    """A finished run, ready to label texts."""

    def __init__(
        self, finished: FinishedRun, *, batch_size: int = 64, devices: Devices | None = None, xla: bool = False
    ):
        """Prepare.

        Args:
            finished: see `model.run.finished.load_finished_run`.
            batch_size: texts at a time; those of similar length go together.
            devices, xla: see `make_predict_fn`.

        Raises:
            MissingInputError, InputFormatError: the run's vocabulary is missing or damaged.
        """
        self.labels = finished.labels
        self._tokenizer = Tokenizer(load_run_vocab(finished), max_len=finished.max_len, cased=finished.cased)
        self._predict_fn = make_predict_fn(
            finished.model, finished.labels, batch_size=batch_size, devices=devices, xla=xla
        )
        self._batch_size = batch_size

    def predict(self, texts: Sequence[str]) -> TextPredictions:
        """Label texts, as they are (not normalized); in order.

        Raises:
            InputFormatError: a text holds a lone surrogate.
        """
        normalized = [normalize_text(text) for text in texts]
        rows = self._tokenizer.encode_arrays(normalized)
        lengths = rows.lengths
        errors = {
            row: _NO_TOKEN if normalized[row] else _EMPTY for row in np.flatnonzero(lengths == NUM_EDGE_TOKENS).tolist()
        }
        probabilities = {
            head: np.full((len(texts), len(names)), np.nan, np.float32) for head, names in self.labels.items()
        }
        in_flight: collections.deque[tuple[np.ndarray, dict[str, tf.Tensor]]] = collections.deque()

        def fetch(num_in_flight: int) -> None:
            while len(in_flight) > num_in_flight:
                batch, outputs = in_flight.popleft()
                for head, values in outputs.items():
                    probabilities[head][batch] = values.numpy()

        order = np.argsort(lengths, kind="stable")
        order = order[lengths[order] > NUM_EDGE_TOKENS]
        for start in range(0, order.size, self._batch_size):
            batch = order[start : start + self._batch_size]
            indices = np.zeros((batch.size, lengths[batch[-1]]), np.int32)
            for place, row in enumerate(batch.tolist()):
                ids = rows.ids[rows.row_splits[row] : rows.row_splits[row + 1]]
                indices[place, : ids.size] = ids
            in_flight.append((batch, self._predict_fn({INDICES: indices, SEGMENTS: np.zeros_like(indices)})))
            fetch(STEPS_IN_FLIGHT)
        fetch(0)
        return TextPredictions(probabilities=probabilities, errors=errors)
