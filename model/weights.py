"""What a run writes, whole or not at all: small texts, copies, directories, and files of named arrays.

The same arrays always make the same bytes. Their files are what `numpy.load` reads (`.npz`), uncompressed, without
pickled objects; every array carries a CRC-32 that reading checks.
"""

import contextlib
import os
import secrets
import shutil
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from pipeline import filesystem
from pipeline.errors import InputFormatError, MissingInputError, OutputWriteError
from pipeline.filesystem import TEMPORARY_SUFFIX

# The earliest date a zip archive can carry: `numpy.savez` writes the time of day, which no two runs share.
_ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)
_COPIED_AT_ONCE = 1 << 20


def write_arrays(path: Path, arrays: Iterable[tuple[str, np.ndarray]]) -> None:
    """Write arrays to a file, one at a time, under a temporary name until all are on disk.

    Args:
        path: ends in `.npz`; its directory is made if it is not there.
        arrays: (name, array) pairs; names are unique.

    Raises:
        OutputWriteError: the disk is full, read-only or not ours; what stood under that name is untouched.
    """
    with _written_whole(path) as stream, zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays:
            member = zipfile.ZipInfo(f"{name}.npy", date_time=_ZIP_EPOCH)
            with archive.open(member, "w", force_zip64=True) as part:
                np.lib.format.write_array(part, np.asarray(array), allow_pickle=False)


def read_arrays(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Read the arrays of a file one at a time, in the order in which they were written.

    Raises:
        MissingInputError: there is no such file.
        InputFormatError: it is damaged, cut short or no such file at all.
    """
    if not path.is_file():
        raise MissingInputError(f"{path}: no such file")
    try:
        # NumPy leaves a file open that it opened itself and found damaged.
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as archive:
            for name in archive.files:
                yield name, archive[name]
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise InputFormatError(f"{path}: damaged, or no file of named arrays ({error}); copy it back") from error


def write_text(path: Path, text: str) -> None:
    """Write a small text file, whole or not at all.

    Raises:
        OutputWriteError: the disk is full, read-only or not ours; what stood under that name is untouched.
    """
    with _write_errors(path):
        filesystem.write_atomically(str(path), text.encode("utf-8"))
        sync_path(path.parent)


def copy_file(source: Path, path: Path) -> None:
    """Copy a file, whole or not at all.

    Raises:
        MissingInputError: there is no such file.
        OutputWriteError: as `write_text`.
    """
    with filesystem.open_for_reading(str(source)) as original, _written_whole(path) as stream:
        shutil.copyfileobj(original, stream, _COPIED_AT_ONCE)


def replace_directory(new: Path, path: Path) -> None:
    """Give a directory a name that another one may have; that one is removed last, and put back if this fails.

    Args:
        new: on the same file system.
        path: the name.

    Raises:
        OSError: it cannot be renamed.
    """
    aside = temporary_sibling(path)
    if path.exists():
        path.rename(aside)
    try:
        new.rename(path)
    except OSError:
        if aside.exists():
            aside.rename(path)
        raise
    sync_path(path.parent)
    remove(aside)


def remove(path: Path) -> None:
    """Remove a file, a link, or a directory with all it holds, as far as that is possible."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def temporary_sibling(path: Path) -> Path:
    """Return a new hidden name beside a file or directory, for what is not complete yet or not needed any more."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")


def remove_temporary(directory: Path) -> None:
    """Remove what a killed process left half-written in a directory."""
    for path in directory.glob(f"*{TEMPORARY_SUFFIX}"):
        remove(path)


def sync_path(path: Path) -> None:
    """Ask the operating system to put a file or a directory on disk, so that no rename can outrun its content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _written_whole(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for writing that gets its name, in a directory made for it, once all of it is on disk."""
    temporary = temporary_sibling(path)
    with _write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)
            sync_path(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _write_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputWriteError(
            f"{path}: cannot write: {error.strerror or error}; free some space or fix it, then run again"
        ) from error


def named_variables(variables: Iterable[Any]) -> dict[str, Any]:
    """Return TensorFlow variables by name, without the `:0` that TensorFlow appends."""
    return {variable.name.removesuffix(":0"): variable for variable in variables}


def save_model_weights(path: Path, model: Any) -> None:
    """Write all weights of a Keras model, heads included, under their names.

    Raises:
        OutputWriteError: as `write_arrays`.
    """
    write_arrays(path, ((name, variable.numpy()) for name, variable in named_variables(model.weights).items()))


def load_model_weights(path: Path, model: Any) -> None:
    """Fill a Keras model from `save_model_weights`'s file.

    Raises:
        MissingInputError: there is no such file.
        InputFormatError: it is damaged, or belongs to another model.
    """
    assign_arrays(path, named_variables(model.weights))


def assign_arrays(path: Path, variables: Mapping[str, Any]) -> None:
    """Set each variable to the array of its name.

    Raises:
        MissingInputError: there is no such file.
        InputFormatError: it is damaged, or does not hold just these names and shapes.
    """
    missing = dict(variables)
    for name, array in read_arrays(path):
        variable = missing.pop(name, None)
        if variable is None:
            raise InputFormatError(f"{path}: holds {name!r}, which this model has not; it belongs to another model")
        if tuple(variable.shape) != array.shape:
            raise InputFormatError(
                f"{path}: {name!r} has shape {array.shape}, this model's has {tuple(variable.shape)}"
            )
        variable.assign(array)
    if missing:
        raise InputFormatError(f"{path}: lacks {', '.join(list(missing)[:3])}; it belongs to another model")
