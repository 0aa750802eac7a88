"""Files of others, decoded: JSON, lines of JSON, zip, `.npy` and safetensors, each in one place.

Whatever the bytes are, a decoder gives what its format holds or raises FileError, which names the file and what is wrong with it. What a
file claims is compared with what it has before memory or time is spent on it. Values are checked by the types that are decoded to, see
`latency.values`.
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
"""Size of the largest JSON file that is read."""

MAX_UNZIPPED_BYTES = 4 * 2**30
"""Size of all files of a zip together, unpacked."""

_ZIP_DAMAGED = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, RuntimeError, ValueError)
"""What zipfile raises for damaged files, by where the damage is."""

_NPY = re.compile(rb"\x93NUMPY([\x01-\x03])\x00")
_DESCR = re.compile(r"""['"]descr['"]\s*:\s*['"]([<>|=]?[biuf][0-9]{1,2}|[?])['"]""")
_ORDER = re.compile(r"""['"]fortran_order['"]\s*:\s*(True|False)""")
_SHAPE = re.compile(r"""['"]shape['"]\s*:\s*\(([0-9, ]*)\)""")


def decode_json(data: bytes | str, kind: type[T], where: object) -> T:
    """JSON as a value of a type.

    Args:
        data: UTF-8.
        kind: what it must be; limits in the type's annotations hold.
        where: begins the error's message: a file, or a place in one.

    Raises:
        FileError: it is not JSON, or not of that type; names the field.
    """
    try:
        # Decoded first: msgspec does not look at the bytes of fields that the type does not have.
        return msgspec.json.decode(data if isinstance(data, str) else data.decode(), type=kind)
    except RecursionError as error:
        raise FileError(where, "is damaged: its brackets are nested too deeply") from error
    except MemoryError as error:
        raise FileError(where, "does not fit into memory") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FileError(where, f"is damaged: {one_line(error)}") from error


def convert(value: object, kind: type[T], where: object) -> T:
    """What `decode_json` gave without a type, and an upgrade may have changed, as a value of a type.

    Raises:
        FileError: it is not of that type; names the field.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise FileError(where, f"is damaged: {one_line(error)}") from error


def read_json(path: str | os.PathLike[str], kind: type[T], *, limit: int = MAX_JSON_BYTES) -> T:
    """A file of JSON as a value of a type.

    Raises:
        FileError: it cannot be read, is larger than `limit` bytes, or is not of that type.
    """
    return decode_json(read_bytes(path, limit=limit), kind, path)


def read_json_lines(path: str | os.PathLike[str], kind: type[T], *, limit: int = MAX_JSON_BYTES) -> Iterator[T]:
    """A file with a value of a type on each line.

    Raises:
        FileError: it cannot be read, is larger than `limit` bytes, or a line is not of that type; names the line.
    """
    for number, line in enumerate(read_bytes(path, limit=limit).splitlines(), 1):
        yield decode_json(line, kind, f"{path}, line {number},")


class Unzipped:
    """A zip in memory, whose files are unpacked when they are asked for.

    Args:
        data: the zip.
        where: begins the error's message.
        limit: size in bytes that all files may have together.

    Raises:
        FileError: it is not a zip of stored or deflated files, two of them have one name, or they are larger than `limit`.
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
        if strange := [m.filename for m in members if m.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)]:
            raise FileError(f"{where}: {strange[0]}", "is packed by another method than deflate")
        if (size := sum(member.file_size for member in members)) > limit:
            raise FileError(where, f"unpacks to {human_bytes(size)}, and at most {human_bytes(limit)} are read")

    def read(self, name: str) -> bytes:
        """One file of it; never more bytes than the zip's directory says.

        Raises:
            FileError: it is missing or damaged.
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
    """The array of an `.npy` file: numbers or truth values. Nothing is unpickled or evaluated.

    Raises:
        FileError: it is no such file, or has another size than its header says.
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
        raise FileError(where, f"is damaged: by its header it has {human_bytes(claimed)} of numbers, found {human_bytes(len(data) - end)}")
    try:
        return np.frombuffer(data, dtype, offset=end).reshape(dims, order="F" if order[1] == "True" else "C").copy()
    except ValueError as error:  # more dimensions, or larger ones, than NumPy has
        raise FileError(where, f"is not an .npy file of numbers: {one_line(error)}") from error


def read_npy(path: str | os.PathLike[str], *, limit: int = MAX_UNZIPPED_BYTES) -> np.ndarray:
    """The array of an `.npy` file; see `decode_npy`.

    Raises:
        FileError: it cannot be read, is larger than `limit` bytes, or is no such file.
    """
    return decode_npy(read_bytes(path, limit=limit), path)


def decode_tensors(data: bytes, where: object) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file, by name.

    Raises:
        FileError: it is no such file, or has a tensor that NumPy has no type for.
    """
    import safetensors.numpy

    try:
        return safetensors.numpy.load(data)
    except (safetensors.SafetensorError, ValueError, MemoryError) as error:
        raise FileError(where, f"is not a safetensors file ({one_line(error)})") from error
    except KeyError as error:
        raise FileError(where, f"has a tensor of type {error.args[0]}, which NumPy does not have") from error


def read_npz(path: str | os.PathLike[str], *, limit: int = MAX_UNZIPPED_BYTES) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` file by name; see `decode_npy`.

    Raises:
        FileError: it cannot be read, unpacks to more than `limit` bytes, or is no such file.
    """
    archive = Unzipped(read_bytes(path, limit=limit), path, limit=limit)
    return {name.removesuffix(".npy"): decode_npy(archive.read(name), f"{path}: {name}") for name in archive.names}
