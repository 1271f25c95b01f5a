"""The files beside `dataset.json`, held against what it says of them: presence, sizes, checksums, lengths."""

import hashlib
import io
import os

import numpy as np

from pipeline import filesystem
from pipeline.dataset.info import DATASET_INFO_NAME, DatasetInfo, FileInfo, SplitInfo
from pipeline.errors import CorruptShardError, MissingInputError

LENGTHS_DTYPE = np.dtype("<u2")
NOT_THERE = f"listed in {DATASET_INFO_NAME} but not there"


def check_files(data_dir: str, info: DatasetInfo, split: str) -> None:
    """Compare every file of a split with its description by presence and size, which costs one `stat` each.

    Raises:
        CorruptShardError: a file is missing or has another size.
    """
    for file in info.split(split).files:
        path = filesystem.join(str(data_dir), file.name)
        num_bytes = filesystem.size(path)
        if num_bytes is None:
            raise CorruptShardError(f"{path}: {NOT_THERE}; copy it back, or write the dataset again", path=path)
        if num_bytes != file.num_bytes:
            raise CorruptShardError(
                f"{path}: expected {file.num_bytes:,} bytes, got {num_bytes:,}; copy it back, or write it again",
                path=path,
            )


def digest_directory(data_dir: str) -> str:
    """Return one SHA-256 over the names and bytes of all files of a directory that are not hidden.

    It is what `sha256sum * | sha256sum` prints inside a directory without subdirectories, names in byte order. Equal
    digests mean that two jobs left the same directory behind, `dataset.json` and all.
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
    raise CorruptShardError(f"{path}: {what}; copy it back, or write the dataset again", path=path)


def parse_lengths(content: bytes, split: SplitInfo) -> np.ndarray:
    """Return the lengths of a split's examples, uint16 [num_examples], from the content of its lengths file.

    Raises:
        ValueError: it is not the file that was described; the message says what is wrong with it.
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
