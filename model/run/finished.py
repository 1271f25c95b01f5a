"""A run that has ended, with all that evaluation, prediction and export need of it."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import tf_keras

from model.bert.config import BertConfig
from model.classifier import build_graph
from model.config import AnswerPrecision
from model.run.description import RunDescription
from model.run.directory import RunDir, open_run_dir
from model.run.report import Report
from model.run.weights import load_model_weights
from pipeline import filesystem
from pipeline.dataset.info import VOCAB_NAME, DatasetInfo, read_dataset_info
from pipeline.errors import InputFormatError, SchemaMismatchError
from pipeline.tokenization.vocabulary import parse_vocab, vocab_content


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """A run that has ended, with its model.

    Attributes:
        run: the directory.
        description: content of its `config.json`.
        report: content of its `report.json`.
        model: with the weights of the best epoch.
    """

    run: RunDir
    description: RunDescription
    report: Report
    model: tf_keras.Model

    @property
    def labels(self) -> Mapping[str, Sequence[str]]:
        """Head -> names of its classes in id order."""
        return self.description.labels

    @property
    def max_len(self) -> int:
        """Texts are cut to this many tokens."""
        return self.description.max_len

    @property
    def cased(self) -> bool:
        """Whether texts keep letter case and accents."""
        return self.description.cased

    @property
    def pairs(self) -> np.ndarray | None:
        """The pairs of labels that occur in training, int64 [P, 2]; `None` for a run with one head."""
        return self.description.pairs


def load_finished_run(path: str, *, precision: AnswerPrecision = "float32") -> FinishedRun:
    """Load the model of a finished run; everything it needs is in the run's directory.

    Args:
        path: the run's directory.
        precision: of products, whatever the run was trained in.

    Raises:
        MissingInputError: there is no run here, or it is not finished.
        InputFormatError: a file of it is damaged.
    """
    run = open_run_dir(path)
    description = run.read_config()
    report = run.read_report()
    return FinishedRun(
        run=run, description=description, report=report, model=load_final_model(run, description, precision=precision)
    )


def load_final_model(
    run: RunDir, description: RunDescription, *, precision: AnswerPrecision = "float32"
) -> tf_keras.Model:
    """Build the model of a run's `weights.npz`, on the current strategy's devices.

    Args:
        run: the directory.
        description: content of its `config.json`.
        precision: of products, as `load_finished_run`'s.

    Raises:
        MissingInputError, InputFormatError: `bert_config.json` or `weights.npz` is missing or damaged.
    """
    model = build_graph(
        BertConfig.from_file(run.bert_config),
        {head: len(names) for head, names in description.labels.items()},
        pooling=description.config.model.pooling,
        encoder=description.config.model.encoder,
        policy="float32" if precision == "float32" else f"mixed_{precision}",
    )
    load_model_weights(run.weights, model)
    return model


def load_run_vocab(finished: FinishedRun) -> dict[str, int]:
    """Read the vocabulary that a run was trained with, token to id.

    Raises:
        MissingInputError: it is missing.
        InputFormatError: it is another one by now.
    """
    path = str(finished.run.vocab)
    data = filesystem.read_bytes(path)
    expected = finished.description.bert.vocab_sha256
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        raise InputFormatError(
            f"{path}: not the vocabulary this run was trained with (expected SHA-256 {expected[:12]}, "
            f"got {found[:12]}); copy it back from {finished.run.bert}"
        )
    return parse_vocab(data, path)


def has_vocab(data_dir: str, info: DatasetInfo, content: bytes) -> bool:
    """Tell whether a dataset's ids refer to a vocabulary, whatever line ends its own file has.

    Args:
        data_dir: the dataset.
        info: its description.
        content: the vocabulary, as `pipeline.tokenization.vocabulary.vocab_content` writes it.
    """
    if info.vocab_sha256 == hashlib.sha256(content).hexdigest():
        return True
    path = filesystem.join(data_dir, VOCAB_NAME)
    return vocab_content(parse_vocab(filesystem.read_bytes(path), path)) == content


def check_same_tokenizer(finished: FinishedRun, data_dir: str) -> None:
    """Check that a dataset's ids are those that a run's tokenizer gives.

    Raises:
        MissingInputError, SchemaMismatchError: the dataset cannot be read, or they are not.
    """
    info = read_dataset_info(data_dir)
    if not has_vocab(data_dir, info, vocab_content(load_run_vocab(finished))):
        raise SchemaMismatchError(
            f"{data_dir}: made with another vocabulary than the run; preprocess with --vocab {finished.run.vocab}"
        )
    if info.cased != finished.cased:
        raise SchemaMismatchError(
            f"{data_dir}: made {'with' if info.cased else 'without'} --cased, and the run's dataset "
            f"{'with' if finished.cased else 'without'}; preprocess with --{'' if finished.cased else 'no-'}cased"
        )
