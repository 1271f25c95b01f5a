"""Files of named tensors in the safetensors format, in and out with NumPy alone.

    8 bytes     N, little-endian
    N bytes     JSON: name -> {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}
    the rest    the tensors' bytes, little-endian, row by row

Nothing in such a file is executed.

Source: https://huggingface.co/docs/safetensors, "Format".
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pipeline.errors import InputFormatError

_MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_LFS_POINTER = b"version https://git-lfs"


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """One tensor of a file.

    Attributes:
        path: the file.
        name: the tensor's.
        dtype: such as `F32`.
        shape: its dimensions.
        offset: where its bytes begin in the file.
    """

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    def read(self) -> np.ndarray:
        """Return the tensor as float32.

        Raises:
            InputFormatError: it holds no floating-point numbers.
        """
        if self.dtype not in _DTYPES:
            raise InputFormatError(
                f"{self.path}: tensor {self.name} is of type {self.dtype}, expected one of {', '.join(_DTYPES)}; "
                "quantized models are not read"
            )
        count = math.prod(self.shape)
        values = np.fromfile(self.path, _DTYPES[self.dtype], count, offset=self.offset).reshape(self.shape)
        if self.dtype == "BF16":  # the upper half of a float32
            return (values.astype(np.uint32) << 16).view(np.float32)
        return values.astype(np.float32, copy=False)


def read_tensors(path: Path) -> dict[str, StoredTensor]:
    """Read which tensors a file holds.

    Raises:
        InputFormatError: it is damaged, cut short, or no such file.
    """
    num_bytes = path.stat().st_size
    with open(path, "rb") as stream:
        start = stream.read(8)
        if (start + stream.read(len(_LFS_POINTER))).startswith(_LFS_POINTER):
            raise InputFormatError(f"{path}: a pointer of Git LFS, not the file it points to; run git lfs pull there")
        length = int.from_bytes(start, "little")
        stream.seek(8)
        header = stream.read(length) if length <= min(num_bytes, _MAX_HEADER_BYTES) else b""
    try:
        fields = json.loads(header)
        fields.pop("__metadata__", None)
        tensors = {}
        for name, field in fields.items():
            begin, end = field["data_offsets"]
            tensors[name] = StoredTensor(
                path=path, name=name, dtype=field["dtype"], shape=tuple(field["shape"]), offset=8 + length + begin
            )
            size = np.dtype(_DTYPES.get(field["dtype"], "u1")).itemsize * math.prod(field["shape"])
            if not 0 <= begin <= end <= num_bytes - 8 - length or (field["dtype"] in _DTYPES and end - begin != size):
                raise ValueError(f"tensor {name} at bytes {begin} to {end} is not inside the file, or not of its size")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputFormatError(
            f"{path}: damaged, cut short or no safetensors file ({type(error).__name__}: {error}); copy it again"
        ) from None
    return tensors


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write float32 tensors, in the order of their names.

    Raises:
        OSError: the disk is full, read-only or not ours.
    """
    fields: dict[str, object] = {"__metadata__": {"format": "pt"}}  # without it, Hugging Face's loader refuses the file
    arrays = {name: np.ascontiguousarray(tensors[name], "<f4") for name in sorted(tensors)}
    end = 0
    for name, array in arrays.items():
        begin, end = end, end + array.nbytes
        fields[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [begin, end]}
    header = json.dumps(fields).encode()
    header += b" " * (-len(header) % 8)
    with open(path, "wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        for array in arrays.values():
            stream.write(array.data)
