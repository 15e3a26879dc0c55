"""`.npy` and `.npz` files ⇄ arrays, from bytes to bytes, without pickles.

The format is numpy's (`numpy.lib.format`). A `.npy` body becomes an array without a copy of its values. The module
knows no signature and no HTTP.
"""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from collections.abc import Collection, Mapping
from typing import IO

import numpy as np

from embedserve.errors import InvalidInputError
from embedserve.tensors.dtypes import MAX_RANK, Array, DType, by_numpy, short_name

__all__ = ["NpzReader", "as_dtype", "npy_bytes", "read_npy", "write_npy", "write_npz"]

_HEADER = 4096
"""Bytes that a file and its entry in an archive may take beside the values, for the account of memory."""


_NUMPYS_OWN = (np.bool_, np.integer, np.floating, np.complexfloating)


def read_npy(data: bytes, what: str) -> Array:
    """Read a `.npy` file.

    Args:
        data: The whole file.
        what: The name of the file, for messages.

    Returns:
        An array of native byte order; read-only, and over the memory of `data` where possible.

    Raises:
        InvalidInputError: No such file, an array of Python objects or of structures, or not the declared size.
    """
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        elif version == (2, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
        else:
            raise ValueError(f"version {version[0]}.{version[1]} is for arrays of structures")
    except Exception as error:  # numpy reads the header as a Python literal, and lets each error of that out.
        raise InvalidInputError(f"{what} is no .npy file: {error}") from None
    if dtype.hasobject or dtype.fields or dtype.subdtype:
        raise InvalidInputError(f"{what} holds {dtype}; an array of numbers, bools or strings is expected")
    if len(shape) > MAX_RANK or min(shape, default=0) < 0:
        raise InvalidInputError(f"{what} has the shape {shape}, which no tensor has")
    count, offset = math.prod(shape), file.tell()
    if len(data) - offset != count * dtype.itemsize:
        raise InvalidInputError(
            f"{what} has {len(data) - offset} bytes after its header; {dtype} {list(shape)} has "
            f"{count * dtype.itemsize}"
        )
    array = np.frombuffer(data, dtype, count, offset) if dtype.itemsize and count else np.zeros(count, dtype)
    if not dtype.isnative:
        array = array.astype(dtype.newbyteorder("="))
    return array.reshape(shape, order="F" if fortran else "C")


def as_dtype(array: Array, dtype: DType) -> Array:
    """The array in a dtype that numpy's files do not name.

    `numpy.save` writes bfloat16 and the eight-bit floats as bare bytes (`V2`, `V1`). Other arrays come back as given.
    """
    bare = array.dtype.kind == "V" and not array.dtype.fields
    if bare and dtype.numpy.itemsize == array.dtype.itemsize and dtype.field in ("half_val", "float8_val"):
        return array.view(dtype.numpy)
    return array


class NpzReader:
    """The arrays of a `.npz` archive by name, each read on demand.

    Attributes:
        size: Bytes of all arrays, as the archive declares; reading never makes more.

    Raises:
        InvalidInputError: No archive, no `.npy` file in it, or a name that occurs twice.
    """

    def __init__(self, data: bytes) -> None:
        try:
            self._archive = zipfile.ZipFile(io.BytesIO(data))
        except (zipfile.BadZipFile, ValueError, EOFError, OSError) as error:
            raise InvalidInputError(f"the body is no .npz file: {error}") from None
        self._entries: dict[str, zipfile.ZipInfo] = {}
        for entry in self._archive.infolist():
            name = entry.filename.removesuffix(".npy")
            if name == entry.filename:
                raise InvalidInputError(f"the .npz file holds {entry.filename!r}; .npy files are expected")
            if name in self._entries:
                raise InvalidInputError(f"the .npz file holds {entry.filename!r} twice")
            self._entries[name] = entry
        self.size = sum(entry.file_size for entry in self._entries.values())

    @property
    def names(self) -> Collection[str]:
        """Names of the arrays."""
        return self._entries.keys()

    def read(self, name: str) -> Array:
        """Read an array.

        Raises:
            InvalidInputError: The entry cannot be unpacked, or is no `.npy` file.
        """
        try:
            data = self._archive.read(self._entries[name])
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError) as error:
            raise InvalidInputError(f"{name}.npy cannot be read from the .npz file: {error}") from None
        return read_npy(data, f"{name}.npy")


def npy_bytes(arrays: Mapping[str, Array]) -> int:
    """Bytes for writing arrays as `.npy` or `.npz`: strings get the length of the longest."""
    size = 0
    for array in arrays.values():
        longest = max(map(len, array.ravel().tolist()), default=0) if array.dtype.hasobject else 0
        size += _HEADER + 2 * (array.size * longest if array.dtype.hasobject else 4 * array.nbytes)
    return size


def write_npy(array: Array, name: str) -> bytes:
    """Write a `.npy` file.

    Args:
        array: Numbers, bools, or an object array of bytes. Narrow floats become float32 and narrow integers int32,
            since numpy's files have no name for them; strings become `S`.
        name: The output's name, for messages.

    Raises:
        InvalidInputError: A string ends with a zero byte, which `S` would lose.
    """
    array = np.ascontiguousarray(_with_npy_form(array, name)).reshape(array.shape)
    file = io.BytesIO()
    _write(file, array)
    return file.getvalue()


def write_npz(arrays: Mapping[str, Array]) -> bytes:
    """Write a `.npz` archive, not compressed, with a `.npy` file for each name; raises as `write_npy`."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, array in arrays.items():
            archive.writestr(f"{name}.npy", write_npy(array, name))
    return file.getvalue()


def _write(file: IO[bytes], array: Array) -> None:
    np.lib.format.write_array(file, array, version=(1, 0), allow_pickle=False)


def _with_npy_form(array: Array, name: str) -> Array:
    dtype = array.dtype
    if dtype.hasobject:
        elements = array.ravel().tolist()
        if any(element.endswith(b"\0") for element in elements):
            raise InvalidInputError(f"output {name!r} has strings that end with a zero byte, which a .npy file loses")
        return np.array(elements, dtype=bytes).reshape(array.shape)
    if dtype.fields:  # A quantized integer is a structure with a single field.
        return np.ascontiguousarray(array).view(dtype[0])
    if dtype.kind in "biufc" and issubclass(dtype.type, _NUMPYS_OWN):
        return array
    if by_numpy(dtype).field in ("half_val", "float8_val"):
        return array.astype(np.float32)
    if by_numpy(dtype).limits is not None:
        return array.astype(np.int32)
    raise InvalidInputError(f"output {name!r} is {short_name(dtype)}, for which a .npy file has no form")
