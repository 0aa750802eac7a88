"""Ways to damage a file: its bytes, the leaves of its JSON, and what lies in its place. Generated, so that none is forgotten."""

import copy
import hashlib
import io
import json
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Change = Callable[[Path], None]

DEEP = b"[" * 200_000
HUGE_BYTES = 2**41


def of_bytes(path: Path) -> Iterator[tuple[str, bytes]]:
    """What a file may hold in the place of its bytes, by name."""
    data = path.read_bytes()
    middle = len(data) // 2
    yield "empty", b""
    yield "cut in half", data[:middle]
    yield "cut in its head", data[:7]
    yield "zeros", bytes(len(data))
    yield "zeros in the middle", data[:middle] + bytes(16) + data[middle + 16 :]
    yield "not UTF-8", b"\xff\xfe\xfa" + data
    yield "not UTF-8 within", data[:40] + b"\xff\xfe" + data[42:]
    yield "deep", DEEP
    yield "deep objects", b'{"schema":' * 100_000
    yield "a number", b"7"
    yield "text", b"precious\n"
    yield "a line without end", b"x" * 2**22
    yield "a picture", b"\x89PNG\r\n\x1a\n" + bytes(64)
    yield "twice", data + data


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(HUGE_BYTES)


def _missing(path: Path) -> None:
    pass


PLACES: dict[str, Change] = {
    "missing": _missing,
    "directory": lambda path: path.mkdir(),
    "pipe": _fifo,
    "link to a pipe": lambda path: (_fifo(path.with_name("pipe")), path.symlink_to("pipe"))[1],
    "device": lambda path: path.symlink_to("/dev/zero"),
    "terminal": lambda path: path.symlink_to("/dev/tty"),
    "link loop": lambda path: path.symlink_to(path.name),
    "dangling link": lambda path: path.symlink_to("nowhere"),
    "huge": _huge,
    "memory": lambda path: path.symlink_to("/proc/self/mem"),
}
"""What may lie in the place of a file."""

BAD_NUMBERS = {
    "-1": -1,
    "too large": 10**40,
    "too small": -(10**40),
    "1e308": 1e308,
    "NaN": float("nan"),
    "inf": float("inf"),
}
OF_OTHER_TYPE: dict[type, tuple[Any, ...]] = {
    str: (7, ["x"], {"x": 1}, True),
    int: ("x", [7], {"x": 1}),
    float: ("x", [7.0], {"x": 1}),
    bool: ("x", 7, [True]),
    list: (7, "x", {"x": 1}),
    dict: (7, "x", [1]),
    type(None): (),
}


def of_json(value: Any) -> Iterator[tuple[str, Any]]:
    """A document with one of its leaves of another type, one number out of every range, one field more, and another schema."""
    for path in _paths(value):
        found = _at(value, path)
        name = ".".join(map(str, path)) or "all"
        for number, other in enumerate(OF_OTHER_TYPE[type(found)]):
            yield f"{name} is {type(other).__name__}", _with(value, path, OF_OTHER_TYPE[type(found)][number])
        if type(found) in (int, float):
            for what, other in BAD_NUMBERS.items():
                yield f"{name} is {what}", _with(value, path, other)
        if isinstance(found, dict):
            yield f"{name} has a field more", _with(value, path, {**found, "colour": "red"})
    if isinstance(value, dict) and "schema" in value:
        for schema in ("", "latency-table/99", "thing/1", value["schema"] + "0"):
            yield f"schema is {schema!r}", {**value, "schema": schema}


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _paths(inner, (*path, key))
    elif isinstance(value, list) and value:
        yield from _paths(value[0], (*path, 0))


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def _with(value: Any, path: tuple[Any, ...], other: Any) -> Any:
    if not path:
        return other
    changed = copy.deepcopy(value)
    _at(changed, path[:-1])[path[-1]] = other
    return changed


# Documents inside of files: how they are read and, sealed again, written, so that the damage reaches what checks values.


def table_line(number: int) -> tuple[Callable[[bytes], Any], Callable[[bytes, Any], bytes]]:
    """Line of a latency table, from 0, and its inverse, which seals the lines behind it."""

    def get(data: bytes) -> Any:
        line = json.loads(data.splitlines()[number])
        line.pop("check")
        return line

    def put(data: bytes, value: Any) -> bytes:
        lines, check = [], ""
        for index, line in enumerate(data.splitlines()):
            body = _compact(value) if index == number else line[: line.rindex(b',"check"')] + b"}"
            if not body.endswith(b"}"):
                lines.append(body)
                continue
            check = hashlib.sha256(check.encode() + body).hexdigest()[:12]
            lines.append(body[:-1] + f',"check":"{check}"}}'.encode())
        return b"\n".join(lines) + b"\n"

    return get, put


def zip_index() -> tuple[Callable[[bytes], Any], Callable[[bytes, Any], bytes]]:
    """Index of a block bundle, and its inverse."""

    def put(data: bytes, value: Any) -> bytes:
        packed = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in source.namelist():
                archive.writestr(name, _compact(value) if name == "index.json" else source.read(name))
        return packed.getvalue()

    return lambda data: json.loads(zipfile.ZipFile(io.BytesIO(data)).read("index.json")), put


def manifest() -> tuple[Callable[[bytes], Any], Callable[[bytes, Any], bytes]]:
    """A manifest, and its inverse, which seals it."""

    def put(data: bytes, value: Any) -> bytes:
        if not isinstance(value, dict):
            return _compact(value)
        if value.get("seal") == json.loads(data)["seal"]:
            value = {**{key: inner for key, inner in value.items() if key != "seal"}, "seal": "0" * 64}
        text = json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n"
        return text.replace(b'"seal": "' + b"0" * 64, b'"seal": "' + hashlib.sha256(text).hexdigest().encode())

    return json.loads, put


def document() -> tuple[Callable[[bytes], Any], Callable[[bytes, Any], bytes]]:
    """A file that is one JSON document."""
    return json.loads, lambda data, value: _compact(value)


def line(number: int) -> tuple[Callable[[bytes], Any], Callable[[bytes, Any], bytes]]:
    """Line of a file of JSON lines, from 0, and its inverse."""

    def put(data: bytes, value: Any) -> bytes:
        lines = data.splitlines()
        return b"\n".join([*lines[:number], _compact(value), *lines[number + 1 :]]) + b"\n"

    return lambda data: json.loads(data.splitlines()[number]), put


def _compact(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
