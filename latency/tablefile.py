"""The file of a latency table: one line per measurement, appended as it is measured.

Format `latency-table/3`: lines of JSON. The first is a `TableHeader`, each other one a `Row`; the latest row of a key
counts. The last field of every line, `check`, hashes the previous line's `check` and this line, so that an edited,
deleted or moved line is detected. A last line without a newline was torn when the writer died: it is dropped.
"""

import fcntl
import gc
import hashlib
import os
import re
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, TypeVar

import msgspec

from latency.decoding import decode_json
from latency.device import require_equal
from latency.errors import FileError, TableError
from latency.files import raised_as, require_regular
from latency.measure import percentile
from latency.rows import SCHEMA, Row, TableHeader, inconsistent, misnamed

# latency-table/1: until 0.1. Protocols have no `settle_runs`, rows no percentiles and no reason; replays are not told
# from the original. latency-table/2: `Row.p90_us`, `p99_us` and `reason`, `TableHeader.recording`.
# latency-table/3: rows that are `transferred`, `TableHeader.like`.
_OLD = ("latency-table/1", "latency-table/2")

MAX_TABLE_BYTES = 4 * 2**30
"""Largest table that is read; a row of a thousand samples takes 8 KiB."""

_CHECK = re.compile(rb',"check":"([0-9a-f]{12})"}$')


def _magic(schema: str) -> bytes:
    """First bytes of a table of a schema."""
    return f'{{"schema":"{schema}",'.encode()


class TableWriter:
    """Appends rows to a table, one process at a time. A context manager.

    A new table is created; one of the same fingerprint is continued, after a torn last line is cut off.

    Attributes:
        rows: the latest row of each key that was there when the writer opened, by key.
        history: every row that was there then, superseded ones included.
        torn: number of the torn line that was cut off; 0 for none.

    Raises:
        TableError: another process writes it, or it was edited or damaged.
        FingerprintMismatch: what is there was measured otherwise; names the field.
    """

    def __init__(self, path: str | os.PathLike[str], header: TableHeader) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(
                path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK, 0o666
            )  # do not wait for a pipe
        except OSError as error:
            raise TableError(f"{path}: cannot be written: {error.strerror}") from error
        try:
            with raised_as(TableError, "choose another --out"):
                require_regular(path, os.fstat(self._file), MAX_TABLE_BYTES)
            self._lock()
            with open(self._file, "rb", closefd=False) as file:
                content = read_lines(file.read(), path)
            if content.header is not None:
                if content.old:
                    raise TableError(
                        f"{path} is of the earlier format {content.old}: it can be read, but rows of {SCHEMA} cannot "
                        "be appended: "
                        f"profile to another file"
                    )
                existing = content.header.made_like(header)
                what, fix = f"table {path}", "profile to another file, or as this one was profiled"
                existing.require_origin(header.origin, what=what, fix=fix)
                require_equal(existing, header, what=what, fix=fix)
            os.ftruncate(self._file, content.size)
            self._size, self._check = content.size, content.check
            self.torn, self.history, self.rows = content.torn, content.rows, {row.key: row for row in content.rows}
            if content.header is None:
                self._write(header)
        except BaseException:
            os.close(self._file)
            raise

    def append(self, *rows: Row) -> None:
        """Append rows; they are on the disk when this returns.

        Raises:
            TableError: the disk is full or fails. The table is left as it was before.
        """
        for row in rows:
            wrong = inconsistent(row)
            assert not wrong, f"row {row.key}, {wrong[0]}: {wrong[1]}"
        self._write(*rows)

    def _write(self, *values: TableHeader | Row) -> None:
        lines: list[bytes] = []
        check = self._check
        for value in values:
            line, check = _seal(value, check)
            lines.append(line)
        data = b"".join(lines)
        try:
            written = 0
            while written < len(data):
                written += os.write(self._file, data[written:])
            os.fsync(self._file)
        except OSError as error:
            os.ftruncate(self._file, self._size)
            raise TableError(
                f"{self.path}: cannot be written: {error.strerror}; what was measured before is kept"
            ) from error
        self._size, self._check = self._size + len(data), check

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TableError(
                f"{self.path}: {_holder(self._file)} is writing this table: wait for it, or end it"
            ) from error

    def close(self) -> None:
        """Release the file and its lock."""
        os.close(self._file)

    def __enter__(self) -> "TableWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


_Line = TypeVar("_Line", TableHeader, Row)


class Content(NamedTuple):
    """What a table's file holds."""

    header: TableHeader | None
    """None if not even that was written whole"""
    rows: list[Row]
    size: int
    """bytes up to the end of the last whole line"""
    check: str
    """of the last whole line"""
    torn: int
    """number of the torn line; 0 for none"""
    old: str = ""
    """the schema that it was upgraded from"""


def read_lines(data: bytes, path: str | os.PathLike[str]) -> Content:
    """Parse and check every line of a table's file.

    Raises:
        TableError: a line is malformed, contradicts itself or was edited, deleted or moved; names the line and the
            field.
    """
    size = data.rfind(b"\n") + 1
    lines, torn = data[:size].split(b"\n")[:-1], data[size:]
    magic = _magic(SCHEMA)
    start = data[: len(magic)]
    old = next((schema for schema in _OLD if start == _magic(schema)), "")
    if not old and not magic.startswith(start):
        begin, start_text = magic.decode(), start.decode(errors="backslashreplace")
        raise TableError(
            f"{path}, line 1, field schema: a latency table begins with {begin!r}, this file with {start_text!r}"
        )
    if not lines:
        return Content(None, [], 0, "", 1 if torn else 0)
    header, check = _unseal(lines[0], TableHeader, "", f"{path}, line 1", old=old)
    rows, parsed_keys = list[Row](), set[str]()
    collects = gc.isenabled()
    gc.disable()  # a million samples hold no cycle; looking for one takes half of the time
    try:
        for number, line in enumerate(lines[1:], 2):
            row, check = _unseal(line, Row, check, f"{path}, line {number}")
            row = _row_from_1(row) if old == _OLD[0] else row
            if wrong := inconsistent(row) or misnamed(row, parsed_keys):
                raise TableError(f"{path}, line {number}, field {wrong[0]}: {wrong[1]}")
            rows.append(row)
    finally:
        if collects:
            gc.enable()
    return Content(header, rows, size, check, len(lines) + 1 if torn else 0, old)


def _row_from_1(row: Row) -> Row:
    """Return a row of `latency-table/1` with the percentiles that its samples support."""
    return msgspec.structs.replace(
        row, p90_us=percentile(row.samples_us, 0.90), p99_us=percentile(row.samples_us, 0.99)
    )


def _header_from(old: str, body: bytes) -> bytes:
    """A header of an earlier schema in the current one: new fields have their defaults, which is what was done then."""
    return body.replace(_magic(old), _magic(SCHEMA), 1)


def _seal(value: TableHeader | Row, previous: str) -> tuple[bytes, str]:
    """A line with its check, and that check."""
    body = msgspec.json.encode(value)
    check = _hash(previous, body)
    return body[:-1] + f',"check":"{check}"}}\n'.encode(), check


def _unseal(line: bytes, kind: type[_Line], previous: str, where: str, *, old: str = "") -> tuple[_Line, str]:
    """A line's content and its check; the inverse of `_seal`."""
    match = _CHECK.search(line)
    body = line[: match.start()] + b"}" if match else line
    try:
        value = decode_json(_header_from(old, body) if old else body, kind, where)
    except FileError as error:
        problem = error.problem.removeprefix("is damaged: ")
        raise TableError(f"{where}, field {_field(problem, body)}: {problem}") from error
    check = _hash(previous, body)
    if match is None or match[1].decode() != check:
        wrong = inconsistent(value) if isinstance(value, Row) else None
        field = wrong[0] if wrong else "check"
        raise TableError(
            f"{where}, field {field}: it does not fit the rest of this line and the line before: was one edited, "
            "deleted or moved?"
        )
    return value, check


def _hash(previous: str, body: bytes) -> str:
    return hashlib.sha256(previous.encode() + body).hexdigest()[:12]


def _field(text: str, body: bytes) -> str:
    """The field that a decoding error names."""
    if names := re.findall(r"at `\$\.([\w.]+)", text) + re.findall(r"field `(\w+)`", text):
        return ".".join(names)
    position = re.search(r"byte (\d+)", text)  # malformed JSON: the last name before that byte
    names = re.findall(rb'"(\w+)":', body[: int(position[1])] if position else body)
    return names[-1].decode() if names else "?"


def _holder(file: int) -> str:
    """The process that holds a file's lock, if the system tells."""
    inode = os.fstat(file).st_ino
    try:
        locks = Path("/proc/locks").read_text()
    except OSError:
        locks = ""
    match = re.search(rf"FLOCK\s+ADVISORY\s+WRITE\s+(\d+)\s+\S+:{inode}\s", locks)
    return f"process {match[1]}" if match else "another process"
