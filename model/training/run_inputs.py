"""What a run starts from, checked before any device is touched: dataset, BERT directory and options must agree."""

import dataclasses
import hashlib
import importlib.metadata
import logging

import numpy as np
import tensorflow as tf

from model.bert.directory import BertDir, read_bert_dir
from model.config import TEST_SPLIT, TRAIN_SPLIT, VALIDATION_SPLIT, TrainConfig
from model.decoding import has_pairs, name_pairs, observed_pairs
from model.run.description import BertIdentity, DatasetIdentity, Resolved, RunDescription, RunOrigin
from model.run.finished import has_vocab
from pipeline import VERSION, filesystem
from pipeline.dataset.info import VOCAB_NAME, DatasetInfo, read_dataset_info
from pipeline.errors import OptionError, SchemaMismatchError

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunInputs:
    """Dataset and BERT directory of a run, found to fit together.

    Attributes:
        info: the dataset.
        bert: the BERT directory.
        max_len: texts are cut to this many tokens.
        test_split: what the final report measures: `test`, or `dev` where there is no test split.
    """

    info: DatasetInfo
    bert: BertDir
    max_len: int
    test_split: str

    def head_sizes(self, heads: tuple[str, ...]) -> dict[str, int]:
        """Return head -> number of classes."""
        return {head: len(self.info.labels[head]) for head in heads}

    def label_pairs(self, heads: tuple[str, ...]) -> np.ndarray | None:
        """Return the pairs of labels that occur in training, int64 [P, 2]; `None` without both heads."""
        return observed_pairs(self.info.split(TRAIN_SPLIT)) if has_pairs(heads) else None

    def origin(self, config: TrainConfig) -> RunOrigin:
        """Return the options of a run, and what identifies its inputs."""
        return RunOrigin(
            config=config,
            dataset=DatasetIdentity(fingerprint=self.info.fingerprint),
            bert=BertIdentity(
                vocab_sha256=hashlib.sha256(self.bert.vocab).hexdigest(),
                checkpoint_sha256=self.bert.checkpoint_sha256,
            ),
        )

    def describe(self, config: TrainConfig, resolved: Resolved) -> RunDescription:
        """Return the content of a run's `config.json`."""
        labels = {head: self.info.labels[head].names for head in config.model.heads}
        pairs = self.label_pairs(config.model.heads)
        return RunDescription(
            **vars(self.origin(config)),
            cased=self.info.cased,
            labels=labels,
            label_pairs=None if pairs is None else name_pairs(pairs, labels),
            max_len=self.max_len,
            versions=versions(),
            resolved=resolved,
        )


def versions() -> dict[str, str]:
    """Return the versions of what trains."""
    packages = ("tensorflow", "tf_keras", "keras-bert", "numpy")
    return {"two-headed-bert": VERSION} | {package: importlib.metadata.version(package) for package in packages}


def read_run_inputs(config: TrainConfig) -> RunInputs:
    """Read what the options name, and check that it fits together.

    Raises:
        MissingInputError: the dataset or the BERT directory is missing or incomplete.
        InputFormatError: a file does not hold what it should.
        SchemaMismatchError: the dataset was made with another vocabulary.
        OptionError: TensorFlow cannot read the dataset where it is, `max_len` is longer than the texts or the BERT
            allow, or a head has fewer than two classes.
        EmptySplitError: there is nothing to train or to validate on.
    """
    check_file_system(config.paths.data_dir)
    info = read_dataset_info(config.paths.data_dir)
    bert = read_bert_dir(config.paths.bert_dir)
    _check_vocabulary(config, info, bert)
    for split in (TRAIN_SPLIT, VALIDATION_SPLIT):
        info.split(split)
    for head in config.model.heads:
        names = info.labels[head].names
        if len(names) < 2:
            raise OptionError(
                f"--heads {head}: the dataset has {len(names)} class of it ({', '.join(names)}), and nothing to learn; "
                "leave this head out"
            )
    has_test = TEST_SPLIT in info.splits and info.splits[TEST_SPLIT].num_examples > 0
    return RunInputs(
        info=info,
        bert=bert,
        max_len=_resolve_max_len(config, info, bert),
        test_split=TEST_SPLIT if has_test else VALIDATION_SPLIT,
    )


def check_file_system(data_dir: str) -> None:
    """Refuse a dataset that this build of TensorFlow has no file system for, before Beam's own clients are asked.

    Raises:
        OptionError: it is such a one.
    """
    scheme, separator, _ = data_dir.partition("://")
    known = [name for name in tf.io.gfile.get_registered_schemes() if name]
    if separator and scheme not in known:
        raise OptionError(
            f"--data {data_dir}: this TensorFlow reads local files and {', '.join(f'{name}://' for name in known)}, "
            f"not {scheme}://; copy the dataset to a local directory, and give that"
        )


def _check_vocabulary(config: TrainConfig, info: DatasetInfo, bert: BertDir) -> None:
    data_dir = config.paths.data_dir
    if not has_vocab(data_dir, info, bert.vocab):
        num_entries = len(bert.vocab.splitlines())
        raise SchemaMismatchError(
            f"{data_dir}: its ids refer to another vocabulary than {bert.vocab_path} has ({info.vocab_size} entries "
            f"against {num_entries}); preprocess with --vocab {bert.vocab_path}, or give the --bert whose vocabulary "
            f"is {filesystem.join(data_dir, VOCAB_NAME)}"
        )
    if info.vocab_size < bert.config.vocab_size:
        logger.warning(
            "%s: %s entries, vocab_size in %s is %s; no text has the last ids",
            *(bert.vocab_path, info.vocab_size, bert.config_path.name, bert.config.vocab_size),
        )
    if bert.cased is not None and bert.cased != info.cased:
        logger.warning(
            "%s: its texts are %s case, the tokenizer configuration of %s says otherwise; preprocess with --%scased if "
            "that is right",
            *(data_dir, "in their own" if info.cased else "in lower", bert.path, "" if bert.cased else "no-"),
        )


def _resolve_max_len(config: TrainConfig, info: DatasetInfo, bert: BertDir) -> int:
    max_len = info.max_len if config.batches.max_len is None else config.batches.max_len
    if max_len > info.max_len:
        raise OptionError(
            f"--max_len {max_len} is longer than the {info.max_len} tokens the dataset was written with; "
            f"use at most {info.max_len}, or preprocess again with --max_len {max_len}"
        )
    positions = bert.config.max_position_embeddings
    if max_len > positions:
        source = f"--max_len {max_len}" if config.batches.max_len else f"the dataset's max_len {max_len}"
        raise OptionError(
            f"{source} is longer than the {positions} positions (max_position_embeddings) of {bert.path}; "
            f"use --max_len {positions}"
        )
    return max_len
