"""Write a finished run as a SavedModel.

It needs TensorFlow and nothing else: the tokenizer is part of the graph (`model.serving.graph_tokenizer`). Two
signatures:

    serving_default   text: string [B]                           raw UTF-8 text, as it was before preprocessing
    ids               indices: int32 [B, L], segments: int32 [B, L]   [CLS] … [SEP], padded with 0

Both return for each head, such as `category`:

    category_label           string [B]             the most probable label, or that of the most probable pair
    category_probability     float32 [B]            its probability
    category_probabilities   float32 [B, classes]   of all labels, in id order

Before anything is written, the ids of the tokenizer in the graph are compared with those of the training records.
Records hold ids and not texts, so texts are put together from their tokens, and must give back the records' ids.

A text of which nothing is left has no labels; where a batch must have some, those of `[CLS] [SEP]` are returned.
`model.predict` says so instead.
"""

import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
import tf_keras

from model.decoding import JOINT, PAIR_HEADS, Decoding, check_decode
from model.files import directory_written_whole
from model.run.finished import FinishedRun, check_same_tokenizer, load_run_vocab
from model.serving.graph_tokenizer import GraphTokenizer
from pipeline.corpus.documents import normalize_text
from pipeline.dataset.files import iterate_examples
from pipeline.dataset.info import read_dataset_info
from pipeline.dataset.schema import INDICES, SEGMENTS
from pipeline.errors import OutputWriteError, SchemaMismatchError
from pipeline.tokenization.tokenizer import Tokenizer
from pipeline.tokenization.vocabulary import CONTINUATION, UNK_TOKEN

TEXT = "text"
# Of each split. Shards are shuffled globally, so the first records are as good as any.
RECORDS_COMPARED = 512

TokenizeFn = Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]

logger = logging.getLogger(__name__)


def export_saved_model(finished: FinishedRun, output: Path, *, data_dir: str | None = None, decode: Decoding) -> None:
    """Write the SavedModel of a finished run; all of it or nothing.

    Args:
        finished: the run.
        output: does not exist, or is empty.
        data_dir: the dataset the run was trained on, where it is no longer at its place.
        decode: how labels are chosen, see `model.decoding`.

    Raises:
        OptionError: joint decoding of a run with one head.
        MissingInputError: the dataset is missing.
        InputFormatError: a file of the run is damaged.
        SchemaMismatchError: the dataset is not the run's, or the graph's ids are not those of its records.
        CorruptShardError: the dataset cannot be read.
        OutputWriteError: the disk is full, read-only or not ours.
    """
    check_decode(decode, finished.labels)
    pairs = finished.pairs if decode == JOINT else None
    data_dir = data_dir or finished.description.config.paths.data_dir
    check_same_tokenizer(finished, data_dir)
    vocab = load_run_vocab(finished)
    tokenize_fn = make_tokenize_fn(GraphTokenizer(vocab, max_len=finished.max_len, cased=finished.cased))
    tokenizer = Tokenizer(vocab, max_len=finished.max_len, cased=finished.cased)
    num_records = check_records(tokenize_fn, tokenizer, vocab, data_dir)
    logger.info("ids are equal on %s records", f"{num_records:,}")
    write_saved_model(finished.model, finished.labels, tokenize_fn, output, pairs=pairs)


def make_tokenize_fn(tokenizer: GraphTokenizer) -> TokenizeFn:
    """Return the tokenizer as a graph: string [B] -> indices, segments int32 [B, L]."""
    tokenize_fn: TokenizeFn = tf.function(tokenizer, input_signature=[tf.TensorSpec([None], tf.string, name=TEXT)])
    return tokenize_fn


def make_signatures(
    model: tf_keras.Model,
    labels: Mapping[str, Sequence[str]],
    tokenize_fn: TokenizeFn,
    pairs: np.ndarray | None = None,
) -> dict[str, Callable[..., dict[str, tf.Tensor]]]:
    """Return the signatures of the SavedModel by name; for the arguments see `write_saved_model`."""

    def answer(indices: tf.Tensor, segments: tf.Tensor) -> dict[str, tf.Tensor]:
        outputs = model([indices, segments], training=False)
        probabilities = {head: tf.cast(outputs[head], tf.float32) for head in labels}
        answers = {}
        for head, best in choose(probabilities).items():
            answers[f"{head}_label"] = tf.gather(tf.constant(list(labels[head])), best)
            answers[f"{head}_probability"] = tf.gather(probabilities[head], best, batch_dims=1)
            answers[f"{head}_probabilities"] = probabilities[head]
        return answers

    def choose(probabilities: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        if pairs is None:
            return {head: tf.argmax(values, axis=-1) for head, values in probabilities.items()}
        # What `model.decoding` does, in the graph.
        columns = {head: tf.constant(pairs[:, column]) for column, head in enumerate(PAIR_HEADS)}
        category, second = (tf.gather(probabilities[head], columns[head], axis=1) for head in PAIR_HEADS)
        best = tf.argmax(category * second, axis=-1)
        return {head: tf.gather(columns[head], best) for head in labels}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name=TEXT)])
    def from_text(text: tf.Tensor) -> dict[str, tf.Tensor]:
        return answer(*tokenize_fn(text))

    @tf.function(input_signature=[tf.TensorSpec([None, None], tf.int32, name=name) for name in (INDICES, SEGMENTS)])
    def from_ids(indices: tf.Tensor, segments: tf.Tensor) -> dict[str, tf.Tensor]:
        return answer(indices, segments)

    return {"serving_default": from_text, "ids": from_ids}


def write_saved_model(
    model: tf_keras.Model,
    labels: Mapping[str, Sequence[str]],
    tokenize_fn: TokenizeFn,
    output: Path,
    *,
    pairs: np.ndarray | None = None,
) -> None:
    """Write a SavedModel, all of it or nothing.

    Args:
        model: see `model.classifier.build_classifier`.
        labels: head -> names of its classes in id order.
        tokenize_fn: see `make_tokenize_fn`.
        output: does not exist, or is empty.
        pairs: int [P, 2], the pairs of labels to choose from; `None` lets each head choose by itself.

    Raises:
        OutputWriteError: the disk is full, read-only or not ours.
    """
    module = tf.Module()
    # The variables and not the Keras model, which would want its Python classes back when it is loaded.
    module.weights = list(model.variables)
    try:
        with directory_written_whole(output) as directory:
            tf.saved_model.save(module, str(directory), signatures=make_signatures(model, labels, tokenize_fn, pairs))
    except tf.errors.OpError as error:
        raise OutputWriteError(f"{output}: cannot write: {error}; free some space or fix it, then run again") from error


def rebuild_text(tokens: Sequence[str], unknown: str) -> str:
    """Return a text that has these tokens: spaces between words, and `unknown` for [UNK].

    Args:
        tokens: without [CLS] and [SEP].
        unknown: a letter that is in no entry of the vocabulary.
    """
    parts = []
    for token in tokens:
        if token.startswith(CONTINUATION) and token != CONTINUATION:
            parts.append(token.removeprefix(CONTINUATION))
        else:
            parts += [" ", unknown if token == UNK_TOKEN else token]
    return "".join(parts)


def check_records(tokenize_fn: TokenizeFn, tokenizer: Tokenizer, vocab: Mapping[str, int], data_dir: str) -> int:
    """Compare the ids of the first records of every split with those of texts that are put together from them.

    Args:
        tokenize_fn: see `make_tokenize_fn`.
        tokenizer: the one that writes records.
        vocab: token to id.
        data_dir: the dataset.

    Returns:
        How many records were compared.

    Raises:
        SchemaMismatchError: they differ.
        MissingInputError, CorruptShardError: the dataset cannot be read.
    """
    letters = set().union(*vocab)
    unknown = next(chr(point) for point in range(0xE000, 0xF900) if chr(point) not in letters)
    num_records = 0
    dataset = read_dataset_info(data_dir)
    for split, info in dataset.splits.items():
        if not info.num_examples:
            continue
        examples = itertools.islice(iterate_examples(data_dir, dataset, split), RECORDS_COMPARED)
        records = [_cut(features[INDICES], tokenizer.max_len) for *_, features in examples]
        texts = [rebuild_text(tokenizer.tokens(ids[1:-1]), unknown) for ids in records]
        encoded = _encode(tokenizer, texts)
        in_graph = _rows(tokenize_fn(tf.constant(texts))[0].numpy())
        for number, expected in enumerate(records):
            for whose, ids in (("run_preprocess.py's tokenizer", encoded[number]), ("the graph", in_graph[number])):
                if ids != expected:
                    raise SchemaMismatchError(
                        f"{data_dir}: split {split}, record {number}: {whose} gives other ids for its tokens: expected "
                        f"{_around_difference(expected, ids)}; nothing was exported; write the dataset again with this "
                        "version, and train again"
                    )
        num_records += len(records)
    return num_records


def _encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    rows = tokenizer.encode_arrays([normalize_text(text) for text in texts])
    return [ids.tolist() for ids in np.split(rows.ids, rows.row_splits[1:-1])]


def _cut(ids: list[int], max_len: int) -> list[int]:
    """Return what tokenizing with a shorter max_len would have given."""
    return ids if len(ids) <= max_len else [*ids[: max_len - 1], ids[-1]]


def _rows(indices: np.ndarray) -> list[list[int]]:
    """Return padded rows without their padding; no token has the id 0."""
    return [row[row != 0].tolist() for row in indices]


def _around_difference(expected: list[int], ids: list[int]) -> str:
    same = next(
        (place for place, pair in enumerate(zip(expected, ids, strict=False)) if pair[0] != pair[1]),
        min(len(expected), len(ids)),
    )
    return f"{expected[same : same + 5]} at position {same}, got {ids[same : same + 5]}"
