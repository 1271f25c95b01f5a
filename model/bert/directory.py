"""BERT directories: which files are the configuration, the vocabulary and the checkpoint.

    Google's                            Hugging Face's                        a run of ours
      bert_config.json, or one file       config.json                           bert/    a Google directory
        whose name contains that          vocab.txt or tokenizer.json
      vocab.txt                           tokenizer_config.json, if there
      bert_model.ckpt.index, .data-…,     model.safetensors, or the files of
        or another name                     model.safetensors.index.json

The configuration's name decides what it means (`model.bert.config`), the checkpoint's how it is read
(`model.bert.checkpoint`). No file is executed or unpickled.
"""

import dataclasses
import functools
import hashlib
import os
import re
from pathlib import Path

from model.bert.config import CONFIG_FILE_NAME, HUGGING_FACE_CONFIG_NAME, BertConfig
from model.bert.hugging_face import INDEX_SUFFIX, shards
from pipeline.dataset.info import VOCAB_NAME
from pipeline.errors import InputFormatError, MissingInputError
from pipeline.tokenization.vocabulary import parse_vocab, read_vocab_file, vocab_content

TOKENIZER_FILE_NAME = "tokenizer.json"
CHECKPOINT_NAME = "bert_model.ckpt"
TENSORS_NAME = "model.safetensors"

_INDEX = ".index"
_DATA = re.compile(r"\.data-\d{5}-of-\d{5}$")
_TENSORS = ".safetensors"
_LATEST = re.compile(r'^model_checkpoint_path:\s*"(.*)"', re.MULTILINE)
_EXPECTED = f"expected {CHECKPOINT_NAME}.index, another TensorFlow checkpoint or {TENSORS_NAME}"
# What else models are published as, and what it is.
_OTHER_WEIGHTS = {
    ".bin": "a pickle, which could run code",
    ".pt": "a pickle, which could run code",
    ".h5": "Keras's format",
    ".msgpack": "Flax's format",
    ".pdparams": "PaddlePaddle's format",
    ".ckpt": "a checkpoint of TensorFlow 0 or of another library",
}
_CONVERT = (
    "convert it where transformers and torch are installed: from transformers import AutoModel, AutoTokenizer; "
    'AutoModel.from_pretrained("{0}").save_pretrained("NEW"); '
    'AutoTokenizer.from_pretrained("{0}").save_pretrained("NEW")'
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BertDir:
    """A BERT directory that was found complete and consistent.

    Attributes:
        path: the directory.
        config: its sizes.
        config_path: where they are from.
        vocab: its vocabulary as the content of a `vocab.txt`, equal for equal entries.
        vocab_path: where it is from.
        cased: whether its tokenizer keeps letter case and accents; `None` where no file says so.
        checkpoint: the prefix of a TensorFlow checkpoint, to which `.index` and `.data-…` are added, a `.safetensors`
            file, or the index of several.
    """

    path: Path
    config: BertConfig
    config_path: Path
    vocab: bytes
    vocab_path: Path
    cased: bool | None
    checkpoint: Path

    @property
    def is_hugging_face(self) -> bool:
        """Whether the checkpoint is Hugging Face's."""
        return _is_tensors(self.checkpoint.name)

    @functools.cached_property
    def checkpoint_sha256(self) -> str:
        """What identifies the weights: the digest of TensorFlow's index, or of Hugging Face's files."""
        index = self.checkpoint.with_name(f"{self.checkpoint.name}{_INDEX}")
        files = shards(self.checkpoint) if self.is_hugging_face else [index]
        digest = hashlib.sha256()
        for file in files:
            with open(file, "rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
        return digest.hexdigest()


def read_bert_dir(path: str | Path) -> BertDir:
    """Find the parts of a BERT directory and check that they are complete and fit together.

    Args:
        path: a directory, or with the name of a checkpoint in it where there are several.

    Raises:
        MissingInputError: it is not there, or a part of it is missing (the message names it).
        InputFormatError: there are several checkpoints, or none that is read; the configuration or the vocabulary is
            unusable, or they disagree about its size.
    """
    directory, name = _split(Path(path))
    vocab_path = _find_vocab(directory)
    config_path = find_config(directory)
    config = BertConfig.from_file(config_path)
    checkpoint = directory / _choose_checkpoint(directory, name)
    _check_files(checkpoint)
    file = read_vocab_file(vocab_path)
    vocab = parse_vocab(file.content, str(vocab_path))
    if len(vocab) > config.vocab_size:
        raise InputFormatError(
            f"{vocab_path}: {len(vocab)} entries, but vocab_size in {config_path} is {config.vocab_size}; "
            "the two files must belong to the same BERT"
        )
    return BertDir(
        path=directory,
        config=config,
        config_path=config_path,
        vocab=vocab_content(vocab),
        vocab_path=vocab_path,
        cased=file.cased,
        checkpoint=checkpoint,
    )


def find_config(directory: Path) -> Path:
    """Return the configuration file of a BERT directory.

    Raises:
        MissingInputError: there is none.
        InputFormatError: there are several.
    """
    if not directory.is_dir():
        raise MissingInputError(
            f"{directory}: no such directory; expected a BERT directory with {CONFIG_FILE_NAME} or "
            f"{HUGGING_FACE_CONFIG_NAME}, {VOCAB_NAME} and a checkpoint"
        )
    names = sorted(os.listdir(directory))
    for name in (CONFIG_FILE_NAME, HUGGING_FACE_CONFIG_NAME):
        if name in names:
            return directory / name
    stem, suffix = os.path.splitext(CONFIG_FILE_NAME)
    found = [name for name in names if stem in name and name.endswith(suffix)]
    if len(found) > 1:
        raise InputFormatError(f"{directory}: {' and '.join(found)} are there; name one of them {CONFIG_FILE_NAME}")
    if not found:
        raise MissingInputError(f"{directory}: the BERT directory has no {CONFIG_FILE_NAME}")
    return directory / found[0]


def _split(path: Path) -> tuple[Path, str | None]:
    """Return the directory a path leads to, and the name of the checkpoint that it chooses."""
    if (path / "bert" / CONFIG_FILE_NAME).is_file():  # a run of ours
        return path / "bert", None
    name = path.name.removesuffix(_INDEX)
    if not path.is_dir() and name in _list_checkpoints(path.parent):
        return path.parent, name
    return path, None


def _find_vocab(directory: Path) -> Path:
    for name in (VOCAB_NAME, TOKENIZER_FILE_NAME):
        if (directory / name).is_file():
            return directory / name
    if directory.is_dir():
        raise MissingInputError(f"{directory}: the BERT directory has no {VOCAB_NAME}")
    return directory / VOCAB_NAME


def _list_checkpoints(directory: Path) -> list[str]:
    """Return the checkpoints of a directory: prefixes of TensorFlow's, and Hugging Face's files or their index."""
    names = sorted(os.listdir(directory)) if directory.is_dir() else []
    if TENSORS_NAME in names:
        tensors = [TENSORS_NAME]  # others beside it are heads or adapters
    else:
        indices = [name for name in names if name.endswith(INDEX_SUFFIX)]
        listed = {shard.name for name in indices for shard in shards(directory / name)}
        tensors = [*indices, *(name for name in names if name.endswith(_TENSORS) and name not in listed)]
    return [*(name.removesuffix(_INDEX) for name in names if name.endswith(_INDEX)), *tensors]


def _choose_checkpoint(directory: Path, name: str | None) -> str:
    """Return the name of the one checkpoint to read.

    Raises:
        MissingInputError: there is none.
        InputFormatError: there are several, or none of a kind that is read.
    """
    if name is not None:
        return name
    found = _list_checkpoints(directory)
    if len(found) == 1:
        return found[0]
    if found:
        latest = _latest(directory)
        if latest in found and CHECKPOINT_NAME not in found and not any(map(_is_tensors, found)):
            return latest
        raise InputFormatError(
            f"{directory}: holds {len(found)} checkpoints ({', '.join(found)}); choose one with --bert "
            f"{directory / found[0]}"
        )
    for file in sorted(os.listdir(directory)):
        if _DATA.search(file):
            raise MissingInputError(f"{directory}: the BERT directory has no {_DATA.sub(_INDEX, file)}")
        kind = _OTHER_WEIGHTS.get(os.path.splitext(file)[1])
        if kind is not None:
            raise InputFormatError(f"{directory}: {file} is {kind}, and not read; {_CONVERT.format(directory)}")
    if (directory / "state").is_dir():  # of a run of ours
        raise MissingInputError(f"{directory}: a run has no encoder before it is finished; start its command again")
    raise MissingInputError(f"{directory}: the BERT directory has no {CHECKPOINT_NAME}.index; {_EXPECTED}")


def _latest(directory: Path) -> str | None:
    """Return the name that TensorFlow's file `checkpoint` gives; of a path only that, it may be another machine's."""
    path = directory / "checkpoint"
    match = _LATEST.search(path.read_text(encoding="utf-8", errors="replace")) if path.is_file() else None
    return match and os.path.basename(match[1])


def _is_tensors(name: str) -> bool:
    return name.endswith((_TENSORS, INDEX_SUFFIX))


def _check_files(checkpoint: Path) -> None:
    """Check that all files of a checkpoint are there, before anything that takes time.

    Raises:
        MissingInputError: one is missing.
    """
    if _is_tensors(checkpoint.name):
        names = [shard.name for shard in shards(checkpoint)]
        missing = [name for name in names if not checkpoint.with_name(name).is_file()]
    else:
        names = [name for name in os.listdir(checkpoint.parent) if _DATA.sub("", name) == checkpoint.name != name]
        missing = [] if names else [f"{checkpoint.name}.data-00000-of-00001"]
    if missing:
        raise MissingInputError(f"{checkpoint.parent}: the BERT directory has no {missing[0]}")
