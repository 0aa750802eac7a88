"""Decoders of untrusted files: JSON, JSON lines, zip, `.npy` and safetensors, each in one place.

For any bytes, a decoder returns the contents or raises FileError, which names the file and the problem. Sizes that a
file declares are compared with its actual size before memory or time is spent on them. Values are checked by the target
types, see `latency.values`.
"""

import io
import math
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import TypeVar

import msgspec
import numpy as np

from latency.errors import FileError, one_line
from latency.files import human_bytes, read_bytes

T = TypeVar("T")

MAX_JSON_BYTES = 256 * 2**20
"""Maximum size of a JSON file."""

MAX_UNZIPPED_BYTES = 4 * 2**30
"""Maximum total size of the files of a zip, unpacked."""

_ZIP_DAMAGED = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, RuntimeError, ValueError)
"""Exceptions of zipfile for damaged files, depending on where the damage is."""

_NPY = re.compile(rb"\x93NUMPY([\x01-\x03])\x00")
_DESCR = re.compile(r"""['"]descr['"]\s*:\s*['"]([<>|=]?[biuf][0-9]{1,2}|[?])['"]""")
_ORDER = re.compile(r"""['"]fortran_order['"]\s*:\s*(True|False)""")
_SHAPE = re.compile(r"""['"]shape['"]\s*:\s*\(([0-9, ]*)\)""")


def decode_json(data: bytes | str, kind: type[T], where: object) -> T:
    """Decode JSON to a value of a type.

    Args:
        data: UTF-8.
        kind: the type; limits in its annotations are checked.
        where: start of the error message: a file, or a place in one.

    Raises:
        FileError: the data is not JSON, or not of that type; names the field.
    """
    try:
        # Decode first: msgspec does not check the bytes of fields that the type does not have.
        return msgspec.json.decode(data if isinstance(data, str) else data.decode(), type=kind)
    except RecursionError as error:
        raise FileError(where, "is damaged: its brackets are nested too deeply") from error
    except MemoryError as error:
        raise FileError(where, "does not fit into memory") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FileError(where, f"is damaged: {one_line(error)}") from error


def convert(value: object, kind: type[T], where: object) -> T:
    """Convert JSON decoded without a type, and possibly upgraded, to a value of a type.

    Raises:
        FileError: the value is not of that type; names the field.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise FileError(where, f"is damaged: {one_line(error)}") from error


def read_json(path: str | os.PathLike[str], kind: type[T], *, limit: int = MAX_JSON_BYTES) -> T:
    """Read a JSON file as a value of a type.

    Raises:
        FileError: the file cannot be read, is larger than `limit` bytes, or is not of that type.
    """
    return decode_json(read_bytes(path, limit=limit), kind, path)


def read_json_lines(path: str | os.PathLike[str], kind: type[T], *, limit: int = MAX_JSON_BYTES) -> Iterator[T]:
    """Yield the values of a file with one JSON value of a type per line.

    Raises:
        FileError: the file cannot be read, is larger than `limit` bytes, or a line is not of that type; names the line.
    """
    for number, line in enumerate(read_bytes(path, limit=limit).splitlines(), 1):
        yield decode_json(line, kind, f"{path}, line {number},")


class Unzipped:
    """A zip in memory, whose files are unpacked on demand.

    Args:
        data: the zip.
        where: start of the error message.
        limit: maximum total size of all files, in bytes.

    Raises:
        FileError: the data is not a zip of stored or deflated files, two files share a name, or they are larger than
            `limit`.
    """

    def __init__(self, data: bytes, where: object, *, limit: int = MAX_UNZIPPED_BYTES) -> None:
        self._where = where
        try:
            self._archive = zipfile.ZipFile(io.BytesIO(data))
        except _ZIP_DAMAGED as error:
            raise FileError(where, f"is not a zip file ({one_line(error)})") from error
        members = self._archive.infolist()
        self.names = [member.filename for member in members]
        if len(set(self.names)) < len(self.names):
            raise FileError(where, "is damaged: it has two files of one name")
        if strange := [
            m.filename for m in members if m.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
        ]:
            raise FileError(f"{where}: {strange[0]}", "is packed by another method than deflate")
        if (size := sum(member.file_size for member in members)) > limit:
            raise FileError(where, f"unpacks to {human_bytes(size)}, and at most {human_bytes(limit)} are read")

    def read(self, name: str) -> bytes:
        """Unpack one file, never more bytes than the zip's directory declares.

        Raises:
            FileError: the file is missing or damaged.
        """
        try:
            return self._archive.read(name)
        except KeyError as error:
            raise FileError(f"{self._where}: {name}", "is missing") from error
        except MemoryError as error:
            raise FileError(f"{self._where}: {name}", "does not fit into memory") from error
        except _ZIP_DAMAGED as error:
            raise FileError(f"{self._where}: {name}", f"was changed ({one_line(error)})") from error


def decode_npy(data: bytes, where: object) -> np.ndarray:
    """Decode the array of an `.npy` file: numbers or booleans. Nothing is unpickled or evaluated.

    Raises:
        FileError: the data is not in this format, or its size differs from its header.
    """
    magic = _NPY.match(data)
    if magic is None:
        raise FileError(where, "is not an .npy file")
    start = 10 if magic[1] == b"\x01" else 12
    end = start + int.from_bytes(data[8:start], "little")
    header = data[start:end].decode("latin-1")
    descr, order, shape = (pattern.search(header) for pattern in (_DESCR, _ORDER, _SHAPE))
    if descr is None or order is None or shape is None:
        raise FileError(where, f"is not an .npy file of numbers: its header is {one_line(header, 100)!r}")
    try:
        dtype, dims = np.dtype(descr[1]), [int(size) for size in shape[1].replace(" ", "").split(",") if size]
    except (TypeError, ValueError) as error:
        raise FileError(where, f"is not an .npy file of numbers: {one_line(error)}") from error
    if (claimed := math.prod(dims) * dtype.itemsize) != len(data) - end:
        raise FileError(
            where,
            f"is damaged: by its header it has {human_bytes(claimed)} of numbers, found {human_bytes(len(data) - end)}",
        )
    try:
        return np.frombuffer(data, dtype, offset=end).reshape(dims, order="F" if order[1] == "True" else "C").copy()
    except ValueError as error:  # more dimensions, or larger ones, than NumPy supports
        raise FileError(where, f"is not an .npy file of numbers: {one_line(error)}") from error


def read_npy(path: str | os.PathLike[str], *, limit: int = MAX_UNZIPPED_BYTES) -> np.ndarray:
    """Read the array of an `.npy` file; see `decode_npy`.

    Raises:
        FileError: the file cannot be read, is larger than `limit` bytes, or is not in this format.
    """
    return decode_npy(read_bytes(path, limit=limit), path)


def decode_tensors(data: bytes, where: object) -> dict[str, np.ndarray]:
    """Decode the tensors of a safetensors file, by name.

    Raises:
        FileError: the data is not in this format, or a tensor has a type that NumPy lacks.
    """
    import safetensors.numpy

    try:
        return safetensors.numpy.load(data)
    except (safetensors.SafetensorError, ValueError, MemoryError) as error:
        raise FileError(where, f"is not a safetensors file ({one_line(error)})") from error
    except KeyError as error:
        raise FileError(where, f"has a tensor of type {error.args[0]}, which NumPy does not have") from error


def read_npz(path: str | os.PathLike[str], *, limit: int = MAX_UNZIPPED_BYTES) -> dict[str, np.ndarray]:
    """Read the arrays of an `.npz` file by name; see `decode_npy`.

    Raises:
        FileError: the file cannot be read, unpacks to more than `limit` bytes, or is not in this format.
    """
    archive = Unzipped(read_bytes(path, limit=limit), path, limit=limit)
    return {name.removesuffix(".npy"): decode_npy(archive.read(name), f"{path}: {name}") for name in archive.names}
