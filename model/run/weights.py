"""Files of named arrays, written whole or not at all: weights, and what a resumable state holds.

The same arrays always make the same bytes. Their files are what `numpy.load` reads (`.npz`), uncompressed, without
pickled objects; every array carries a CRC-32 that reading checks.
"""

import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from model.files import written_whole
from pipeline.errors import InputFormatError, MissingInputError

# The earliest date a zip archive can carry: `numpy.savez` writes the time of day, which no two runs share.
_ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)


def write_arrays(path: Path, arrays: Iterable[tuple[str, np.ndarray]]) -> None:
    """Write arrays to a file, one at a time, under a temporary name until all are on disk.

    Args:
        path: ends in `.npz`; its directory is made if it is not there.
        arrays: (name, array) pairs; names are unique.

    Raises:
        OutputWriteError: the disk is full, read-only or not ours; a file of that name is untouched.
    """
    with written_whole(path) as stream, zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
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
