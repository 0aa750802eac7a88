"""Read ONNX files with external data.

Tensors in other files are inlined, but only from the model's directory or below.
"""

import os
from pathlib import Path, PureWindowsPath

from onnx import TensorProto

from deploy.errors import LoweringError
from latency.errors import FileError
from latency.files import human_bytes, open_regular, raised_as, read_bytes
from latency.onnxproto import MAX_BYTES, decode_onnx, is_external, named, size_of, tensors

_FIX = "give MODEL.onnx as an exporter wrote it"


def read_model(path: str | os.PathLike[str]) -> bytes:
    """Read a self-contained serialised model; without external data, the bytes of the file unchanged.

    Tensors in other files are inlined throughout the model.

    Raises:
        LoweringError: the file cannot be read, is not an ONNX model, declares more than it holds, has a tensor that is
            not in a regular file in the model's directory or below, or has tensors too large to inline.
    """
    path = Path(path)
    with raised_as(LoweringError, _FIX):
        data = read_bytes(path, limit=MAX_BYTES)
        model = decode_onnx(data, path)
        outside = [(named(tensor, owner), tensor) for owner, tensor in tensors(model) if is_external(tensor)]
        size = len(data)
        for name, tensor in outside:
            size += size_of(tensor, f"{path}: {name}")
            if size > MAX_BYTES:
                raise LoweringError(
                    f"{path} takes {human_bytes(size)} and more with the tensors beside it, and a file that ships "
                    "holds less than 2 GiB: "
                    "ship it in parts"
                )
    if not outside:
        return data
    for name, tensor in outside:
        try:
            tensor.raw_data = _numbers(path.parent, tensor)
        except FileError as error:
            where = _entries(tensor).get("location", "")
            raise LoweringError(f"{path}: the numbers of {name} are in {where!r}, which {error.problem}") from error
        tensor.ClearField("data_location")
        del tensor.external_data[:]
    return model.SerializeToString(deterministic=True)


def _numbers(directory: Path, tensor: TensorProto) -> bytes:
    """Return the bytes of a tensor in another file.

    Raises:
        FileError: the data is not part of a regular file in the directory; says what is wrong, but does not name the
            tensor.
    """
    entries = _entries(tensor)
    location = entries.get("location", "")
    if tensor.data_type == TensorProto.STRING:
        raise FileError(location, "holds strings, which cannot be outside of the model")
    offset, length = (_whole_number(name, entries[name]) if name in entries else None for name in ("offset", "length"))
    size = size_of(tensor, location)
    if length is not None and length != size:
        raise FileError(
            location, f"has a tensor of {length} bytes by its length, but {size} by its shape {list(tensor.dims)}"
        )
    file = _inside(directory, location)
    start = offset or 0
    with open_regular(file, limit=2**63) as opened:
        there = os.fstat(opened.fileno()).st_size
        if start + size > there:
            raise FileError(
                location, f"is cut short: it has {there} bytes, and the tensor takes {size} from byte {start} on"
            )
        opened.seek(start)
        return opened.read(size)


def _inside(directory: Path, location: str) -> Path:
    """Return the file at a location within a directory, without links that leave the directory."""
    parts = PureWindowsPath(location)  # splits at both kinds of slash
    if not location or "\0" in location:
        raise FileError(repr(location), "is not the name of a file")
    if parts.drive or parts.root or ".." in parts.parts:
        raise FileError(
            location, "is not read: only files in the model's own directory are, by a relative path without '..'"
        )
    try:
        file = (directory / location).resolve(strict=True)
    except FileNotFoundError as error:
        raise FileError(location, f"is missing in {directory}: copy it there") from error
    except (OSError, RuntimeError) as error:
        raise FileError(location, f"cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not file.is_relative_to(directory.resolve()):
        raise FileError(location, "is a link to a file outside of the model's directory: copy the file itself there")
    return file


def _entries(tensor: TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def _whole_number(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise FileError("external data", f"has the {name} {text[:40]!r}, which is not a whole number")
    return int(text)
