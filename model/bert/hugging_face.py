"""What Hugging Face's `BertModel` calls the variables of a Google checkpoint.

    bert/embeddings/word_embeddings                         embeddings.word_embeddings.weight
    bert/embeddings/LayerNorm/gamma                         embeddings.LayerNorm.weight
    bert/encoder/layer_0/attention/self/query/kernel        encoder.layer.0.attention.self.query.weight, transposed
    bert/encoder/layer_0/attention/self/query/bias          encoder.layer.0.attention.self.query.bias

A model with heads puts a prefix before each, such as `bert.`; files of 2018 and 2019 have `gamma` and `beta`.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from model.bert.safetensors import StoredTensor, read_tensors
from pipeline.errors import InputFormatError, MissingInputError

INDEX_SUFFIX = ".safetensors.index.json"
_WORD_EMBEDDINGS = "embeddings.word_embeddings.weight"
_OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


def tensor_name(variable: str) -> str:
    """Return Hugging Face's name, without a prefix, of a variable with Google's."""
    name = re.sub(r"/layer_(\d+)/", r"/layer/\1/", variable.removeprefix("bert/"))
    name = re.sub(r"(_embeddings)$", r"\1/weight", name)
    return re.sub(r"/(kernel|gamma)$", "/weight", re.sub(r"/beta$", "/bias", name)).replace("/", ".")


def to_tensors(variables: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return variables under Google's names as `BertModel`'s tensors."""
    return {
        tensor_name(variable): value.T if variable.endswith("/kernel") else value
        for variable, value in variables.items()
    }


def open_tensors(path: Path) -> dict[str, StoredTensor]:
    """Find the tensors of a `.safetensors` file, or of all files that an index names; without the model's prefix.

    Raises:
        MissingInputError: a file is missing.
        InputFormatError: a file is damaged, or it holds several encoders.
    """
    stored: dict[str, StoredTensor] = {}
    for file in shards(path):
        if not file.is_file():
            raise MissingInputError(f"{file}: no such file; {path.name} lists it")
        stored |= read_tensors(file)
    prefixes = [name.removesuffix(_WORD_EMBEDDINGS) for name in stored if name.endswith(_WORD_EMBEDDINGS)]
    if len(prefixes) > 1:
        raise InputFormatError(f"{path}: holds {len(prefixes)} encoders ({', '.join(prefixes)}), expected one BERT")
    prefix = prefixes[0] if prefixes else ""
    tensors = {}
    for name, tensor in stored.items():
        for old, new in _OLD_NAMES.items():
            name = name.replace(old, new)
        tensors[name.removeprefix(prefix)] = tensor
    return tensors


def shards(path: Path) -> list[Path]:
    """Return the files of a checkpoint: the path itself, or what an index names.

    Raises:
        InputFormatError: the index is damaged.
    """
    if not path.name.endswith(INDEX_SUFFIX):
        return [path]
    try:
        names = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
        if not names or any(Path(name).name != name for name in names):
            raise ValueError(f"files {names}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputFormatError(
            f"{path}: expected a weight_map with the names of files beside it ({type(error).__name__}: {error})"
        ) from None
    return [path.with_name(name) for name in names]
