"""Write a finished run for ONNX Runtime.

    model.onnx      indices, segments: int32 [batch, length], [CLS] … [SEP], padded with 0
                    -> for each head, such as category: category_probabilities float32 [batch, classes]
    labels.json     head -> labels in id order
    vocab.txt       the vocabulary the ids refer to

The tokenizer is not in it: ids come from `pipeline.tokenization.Tokenizer`.
"""

import json
from pathlib import Path

import tensorflow as tf

from model.files import directory_written_whole
from model.run.finished import FinishedRun, load_run_vocab
from pipeline.dataset.info import VOCAB_NAME
from pipeline.dataset.schema import INDICES, SEGMENTS
from pipeline.errors import OptionError
from pipeline.tokenization.vocabulary import vocab_content

_OPSET = 17  # the first with layer normalization, of 2022
_BATCH, _LENGTH = "batch", "length"


def export_onnx(finished: FinishedRun, output: Path) -> None:
    """Write the directory of a finished run; all of it or nothing.

    Args:
        finished: the run.
        output: does not exist, or is empty.

    Raises:
        OptionError: tf2onnx is not installed.
        MissingInputError, InputFormatError: a file of the run is missing or damaged.
        OutputWriteError: the disk is full, read-only or not ours.
    """
    try:
        import tf2onnx
    except ModuleNotFoundError as error:
        raise OptionError(
            f"--format onnx: this installation has no {error.name}; pip install 'two-headed-bert[onnx]'"
        ) from None
    vocab = vocab_content(load_run_vocab(finished))

    @tf.function(input_signature=[tf.TensorSpec([None, None], tf.int32, name=name) for name in (INDICES, SEGMENTS)])
    def from_ids(indices: tf.Tensor, segments: tf.Tensor) -> dict[str, tf.Tensor]:
        outputs = finished.model([indices, segments], training=False)
        return {f"{head}_probabilities": outputs[head] for head in finished.labels}

    model, _ = tf2onnx.convert.from_function(from_ids, input_signature=from_ids.input_signature, opset=_OPSET)
    for value in (*model.graph.input, *model.graph.output):
        dimensions = value.type.tensor_type.shape.dim
        dimensions[0].dim_param = _BATCH
        if value.name in (INDICES, SEGMENTS):
            dimensions[1].dim_param = _LENGTH
    with directory_written_whole(output) as directory:
        (directory / "model.onnx").write_bytes(model.SerializeToString())
        labels = {head: list(names) for head, names in finished.labels.items()}
        (directory / "labels.json").write_text(json.dumps(labels, ensure_ascii=False, indent=2) + "\n", "utf-8")
        (directory / VOCAB_NAME).write_bytes(vocab)
