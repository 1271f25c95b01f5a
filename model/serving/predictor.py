"""Ask a trained model: about a split's records, or about texts as they come."""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import tensorflow as tf
import tf_keras

from model.report.metrics import Predictions
from model.run.finished import FinishedRun, load_run_vocab
from pipeline.corpus.documents import normalize_text
from pipeline.dataset.schema import INDICES, SEGMENTS
from pipeline.input_pipeline.reader import eval_dataset, explain_read_errors
from pipeline.tokenization.tokenizer import Tokenizer
from pipeline.tokenization.vocabulary import NUM_EDGE_TOKENS

PredictFn = Callable[[Mapping[str, tf.Tensor | np.ndarray]], dict[str, tf.Tensor]]

_EMPTY = "nothing is left of it after normalization"
_NO_TOKEN = "holds nothing but spaces and characters that are dropped"


def make_predict_fn(model: tf_keras.Model, heads: Collection[str]) -> PredictFn:
    """Return the model as a function, traced once for batches of all shapes.

    Returns:
        predict_fn({"indices", "segments"} -> int32 [B, L]), returning head -> probabilities float32 [B, classes].
    """
    signature = [{name: tf.TensorSpec([None, None], tf.int32) for name in (INDICES, SEGMENTS)}]

    @tf.function(input_signature=signature, autograph=False)
    def predict(inputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        outputs = model([inputs[INDICES], inputs[SEGMENTS]], training=False)
        return {head: outputs[head] for head in heads}

    predict_fn: PredictFn = predict
    return predict_fn


def predict_split(
    model: tf_keras.Model,
    data_dir: str,
    split: str,
    *,
    heads: Collection[str],
    max_len: int | None = None,
    batch_size: int = 64,
) -> Predictions:
    """Ask a model about every example of a split.

    Args:
        model: see `model.classifier.build_classifier`.
        data_dir: a dataset directory.
        split: which split.
        heads: whose labels and probabilities to return.
        max_len: texts are cut to this many tokens; `None` takes the dataset's.
        batch_size: texts at a time.

    Raises:
        MissingInputError, SchemaMismatchError, EmptySplitError, CorruptShardError: the dataset cannot be read.
    """
    predict_fn = make_predict_fn(model, heads)
    labels: dict[str, list[np.ndarray]] = {head: [] for head in heads}
    probabilities: dict[str, list[np.ndarray]] = {head: [] for head in heads}
    with explain_read_errors(data_dir, split):
        for inputs, right in eval_dataset(data_dir, split, batch_size, max_len):
            for head, values in predict_fn(inputs).items():
                labels[head].append(right[head].numpy())
                probabilities[head].append(values.numpy())
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

    def __init__(self, finished: FinishedRun, *, batch_size: int = 64):
        """Prepare.

        Args:
            finished: see `model.run.finished.load_finished_run`.
            batch_size: texts at a time; those of similar length go together.

        Raises:
            MissingInputError, InputFormatError: the run's vocabulary is missing or damaged.
        """
        self.labels = finished.labels
        self._tokenizer = Tokenizer(load_run_vocab(finished), max_len=finished.max_len, cased=finished.cased)
        self._predict_fn = make_predict_fn(finished.model, finished.labels)
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
        order = np.argsort(lengths, kind="stable")
        order = order[lengths[order] > NUM_EDGE_TOKENS]
        for start in range(0, order.size, self._batch_size):
            batch = order[start : start + self._batch_size]
            indices = np.zeros((batch.size, lengths[batch[-1]]), np.int32)
            for place, row in enumerate(batch.tolist()):
                ids = rows.ids[rows.row_splits[row] : rows.row_splits[row + 1]]
                indices[place, : ids.size] = ids
            outputs = self._predict_fn({INDICES: indices, SEGMENTS: np.zeros_like(indices)})
            for head, values in outputs.items():
                probabilities[head][batch] = values.numpy()
        return TextPredictions(probabilities=probabilities, errors=errors)
