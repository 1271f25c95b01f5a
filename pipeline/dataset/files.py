"""The files of a dataset directory: their names, their content, and how both are compared with `dataset.json`."""

import hashlib
import io
import os
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from pipeline import filesystem
from pipeline.dataset.info import DATASET_INFO_NAME, VOCAB_NAME, DatasetInfo, FileInfo, SplitInfo
from pipeline.dataset.shards import SHARD_NAME
from pipeline.dataset.tfexample import parse_example, read_records
from pipeline.errors import CorruptShardError

REJECTED_NAME = "rejected-00000-of-00001.jsonl"
LENGTHS_DTYPE = np.dtype("<u2")
NOT_THERE = f"listed in {DATASET_INFO_NAME} but not there"
_OTHER_NAMES = re.compile(
    rf"({re.escape(DATASET_INFO_NAME)}|{re.escape(VOCAB_NAME)}|[A-Za-z0-9_]+-lengths\.npy|rejected-.*\.jsonl)"
)


def is_ours(name: str) -> bool:
    """Tell whether a name is one that files of a dataset have."""
    return bool(SHARD_NAME.match(name) or _OTHER_NAMES.fullmatch(name))


def lengths_name(split: str) -> str:
    """Return the name of the file that holds the length of every example of a split."""
    return f"{split}-lengths.npy"


def check_files(data_dir: str, info: DatasetInfo, split: str) -> None:
    """Check that every file of a split exists and has its size, which costs one request each.

    Raises:
        CorruptShardError: a file is missing or has another size.
    """
    for file in info.split(split).files:
        path = filesystem.join(data_dir, file.name)
        num_bytes = filesystem.size(path)
        if num_bytes is None:
            raise CorruptShardError(NOT_THERE, path=path)
        if num_bytes != file.num_bytes:
            raise CorruptShardError(f"expected {file.num_bytes:,} bytes, got {num_bytes:,}", path=path)


def iterate_examples(
    data_dir: str, info: DatasetInfo, split: str, *, holding: bytes = b""
) -> Iterator[tuple[str, int, int, dict[str, Any]]]:
    """Yield (shard name, record number, byte offset, features) of every example of a split, in stored order.

    Args:
        data_dir: the dataset directory.
        info: its description.
        split: name of the split.
        holding: yield only examples whose records contain these bytes.

    Raises:
        CorruptShardError: at the first damaged record.
    """
    for shard in info.split(split).shards:
        path = filesystem.join(data_dir, shard.name)
        if not filesystem.exists(path):
            raise CorruptShardError(NOT_THERE, path=path)
        with filesystem.reading(path) as stream:
            for number, (offset, record) in enumerate(read_records(stream, path)):
                if holding not in record:
                    continue
                try:
                    features = parse_example(record)
                except ValueError as error:
                    raise CorruptShardError(str(error), path=path, record=number, offset=offset) from None
                yield shard.name, number, offset, features


def digest_directory(data_dir: str) -> str:
    """Return one SHA-256 over the names and bytes of all files of a directory that are not hidden.

    In a directory without subdirectories, it is what `sha256sum * | sha256sum` prints, names in byte order.
    """
    paths = {path.removeprefix(data_dir).lstrip("/"): path for path in filesystem.list_below(data_dir)}
    visible = [name for name in paths if not any(part.startswith(".") for part in name.split("/"))]
    whole = hashlib.sha256()
    for name in sorted(visible, key=os.fsencode):
        with filesystem.reading(paths[name]) as stream:
            digest = hashlib.sha256()
            while block := stream.read(1 << 20):
                digest.update(block)
        whole.update(f"{digest.hexdigest()}  ".encode() + os.fsencode(name) + b"\n")
    return whole.hexdigest()


def npy_bytes(array: np.ndarray) -> bytes:
    """Return the content of a NumPy file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def read_lengths(data_dir: str, split: SplitInfo) -> np.ndarray:
    """Return the length of every example of a split in stored order, uint16 [num_examples].

    Raises:
        CorruptShardError: the file is not there, or not the one that `dataset.json` describes.
        MissingInputError: it is there, but cannot be read.
    """
    path = filesystem.join(data_dir, split.lengths_file.name)
    if not filesystem.exists(path):
        raise CorruptShardError(NOT_THERE, path=path)
    content = filesystem.read_bytes(path)
    if (what := find_change(content, split.lengths_file)) is not None:
        raise CorruptShardError(what, path=path)
    try:
        lengths: np.ndarray = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError, OSError, SyntaxError) as error:
        what = f"not a NumPy file ({str(error).splitlines()[0]:.80})"
        raise CorruptShardError(what, path=path) from None
    if not isinstance(lengths, np.ndarray) or lengths.dtype != LENGTHS_DTYPE or lengths.shape != (split.num_examples,):
        what = f"expected {LENGTHS_DTYPE} [{split.num_examples}], got something else"
        raise CorruptShardError(what, path=path)
    return lengths


def find_change(content: bytes, file: FileInfo) -> str | None:
    """Return how the content of a file differs from its description, `None` if it does not."""
    if len(content) != file.num_bytes:
        return f"expected {file.num_bytes} bytes, got {len(content)}"
    if hashlib.sha256(content).hexdigest() != file.sha256:
        return f"its checksum differs from {DATASET_INFO_NAME}"
    return None
