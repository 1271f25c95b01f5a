"""The files of a dataset directory: their names, and their content compared with its description in `dataset.json`."""

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
from pipeline.errors import CorruptShardError, MissingInputError

REJECTED_NAME = "rejected-00000-of-00001.jsonl"
LENGTHS_DTYPE = np.dtype("<u2")
NOT_THERE = f"listed in {DATASET_INFO_NAME} but not there"
_OTHER_NAMES = re.compile(
    rf"({re.escape(DATASET_INFO_NAME)}|{re.escape(VOCAB_NAME)}|[A-Za-z0-9_]+-lengths\.npy|rejected-.*\.jsonl)"
)


def is_ours(name: str) -> bool:
    """Tell whether a file has a name that files of a dataset have."""
    return bool(SHARD_NAME.match(name) or _OTHER_NAMES.fullmatch(name))


def lengths_name(split: str) -> str:
    """Return the name of the file that holds the length of every example of a split."""
    return f"{split}-lengths.npy"


def check_files(data_dir: str, info: DatasetInfo, split: str) -> None:
    """Compare every file of a split with its description by presence and size, which costs one `stat` each.

    Raises:
        CorruptShardError: a file is missing or has another size.
    """
    for file in info.split(split).files:
        path = filesystem.join(str(data_dir), file.name)
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
        split: which split.
        holding: leave out, unparsed, all records that do not contain these bytes.

    Raises:
        CorruptShardError: at the first record that is damaged.
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

    It is what `sha256sum * | sha256sum` prints inside a directory without subdirectories, names in byte order. Equal
    digests mean that two jobs wrote the same directory, `dataset.json` included.
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


def read_lengths(data_dir: str, info: DatasetInfo, split: str) -> np.ndarray:
    """Return every example's length in stored order.

    Returns:
        uint16 [num_examples].

    Raises:
        CorruptShardError: the file is not there, or does not hold what `dataset.json` says.
        MissingInputError: it is there, but cannot be read.
    """
    file = info.split(split).lengths_file
    path = filesystem.join(str(data_dir), file.name)
    try:
        return parse_lengths(filesystem.read_bytes(path), info.split(split))
    except MissingInputError:
        if filesystem.exists(path):
            raise
        what = NOT_THERE
    except ValueError as error:
        what = str(error)
    raise CorruptShardError(what, path=path)


def parse_lengths(content: bytes, split: SplitInfo) -> np.ndarray:
    """Return the lengths of a split's examples, uint16 [num_examples], from the content of its lengths file.

    Raises:
        ValueError: it is not the described file; the message says why.
    """
    if (what := find_change(content, split.lengths_file)) is not None:
        raise ValueError(what)
    try:
        lengths: np.ndarray = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError, OSError, SyntaxError) as error:
        raise ValueError(f"not a NumPy file ({str(error).splitlines()[0]:.80})") from None
    if not isinstance(lengths, np.ndarray) or lengths.dtype != LENGTHS_DTYPE or lengths.shape != (split.num_examples,):
        raise ValueError(f"expected {LENGTHS_DTYPE} [{split.num_examples}], got something else")
    return lengths


def find_change(content: bytes, file: FileInfo) -> str | None:
    """Return how a file's content differs from its description, `None` where it does not."""
    if len(content) != file.num_bytes:
        return f"expected {file.num_bytes} bytes, got {len(content)}"
    if hashlib.sha256(content).hexdigest() != file.sha256:
        return f"its checksum differs from {DATASET_INFO_NAME}"
    return None
