import contextlib
import hashlib
import os
import socket
from pathlib import Path

import pytest

from latency.errors import FileError, TableError
from latency.files import (
    atomic_write,
    human_bytes,
    open_regular,
    partial_path,
    raised_as,
    read_bytes,
    sha256,
    write_atomically,
)


def test_a_file_replaces_the_one_before(tmp_path):
    for content in (b"old", b"new"):
        write_atomically(tmp_path / "file", content)
        assert (tmp_path / "file").read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    write_atomically(tmp_path / "file", b"old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / "file", b"new")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"file": b"old"}


def test_what_a_killed_writer_left_is_not_added_to(tmp_path):
    partial_path(tmp_path / "file").write_bytes(b"half of")
    with atomic_write(tmp_path / "file") as partial:
        assert not partial.exists()
        partial.write_bytes(b"all")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"file": b"all"}


def test_a_block_that_fails_writes_nothing(tmp_path):
    with contextlib.suppress(ZeroDivisionError), atomic_write(tmp_path / "file") as partial:
        partial.write_bytes(b"half")
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_a_file_does_not_replace_a_pipe_or_a_directory(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "directory").mkdir()
    for name in ("pipe", "directory"):
        with pytest.raises(FileError, match=f"{name} is a .*, where a file is expected"):
            write_atomically(tmp_path / name, b"new")
    assert (tmp_path / "pipe").is_fifo()


def test_a_full_disk_names_the_file_that_was_wanted(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_atomically(tmp_path / "file", b"new")
    assert caught.value.filename == str(tmp_path / "file")


def test_an_error_about_another_file_is_left_as_it_is(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, atomic_write(tmp_path / "file"):
        (tmp_path / "other").read_bytes()
    assert caught.value.filename == str(tmp_path / "other")


def test_a_regular_file_is_read_whole_also_through_a_link(tmp_path):
    (tmp_path / "file").write_bytes(b"all of it")
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "link"):
        assert read_bytes(tmp_path / name) == b"all of it"
        assert sha256(tmp_path / name) == hashlib.sha256(b"all of it").hexdigest()
    assert b"Name:" in read_bytes("/proc/self/status")  # its size is said to be 0


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("absent", "absent does not exist"),
        ("file/inside", "file/inside cannot be read: Not a directory"),
        ("loop", "loop cannot be read: Too many levels of symbolic links"),
        ("directory", "directory is a directory, where a file is expected"),
        ("pipe", "pipe is a named pipe, where a file is expected"),
        ("socket", "socket is a socket, where a file is expected"),
        ("link", "link is a device, where a file is expected"),
        ("large", "large has 2.001 KiB, and at most 2 KiB are read"),
        ("x" * 300, "x cannot be read: File name too long"),
        ("null\0byte", "null.*byte' is not the name of a file: it has a null byte"),
    ],
)
def test_what_is_not_a_readable_regular_file_is_refused_at_once(tmp_path, monkeypatch, name, words):
    monkeypatch.chdir(tmp_path)  # a socket's name must be short
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "large").write_bytes(bytes(2049))
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "link").symlink_to("/dev/zero")
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("socket")
        for read in (
            lambda path: read_bytes(path, limit=2048),
            lambda path: open_regular(path, limit=2048).__enter__(),
        ):
            with pytest.raises(FileError, match=words):
                read(tmp_path / name)


def test_a_pipe_that_takes_the_place_of_a_file_after_it_was_looked_at_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    looked_at = (tmp_path / "file").stat()
    (tmp_path / "file").unlink()
    os.mkfifo(tmp_path / "file")
    monkeypatch.setattr(Path, "stat", lambda _: looked_at)
    with pytest.raises(FileError, match="is a named pipe"):
        read_bytes(tmp_path / "file")


def test_a_file_that_grows_while_it_is_read_stops_at_the_limit(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(bytes(3 * 2**20))
    monkeypatch.setattr("latency.files.require_regular", lambda *_: None)
    with pytest.raises(FileError, match="file has 3 MiB, and at most 1 MiB are read"):
        read_bytes(tmp_path / "file", limit=2**20)


def test_an_error_of_the_one_who_reads_is_left_as_it_is(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for other in (ValueError("null byte"), OSError(5, "Input/output error")):
        with pytest.raises(type(other)) as caught, open_regular(tmp_path / "file"):
            raise other
        assert caught.value is other


def test_a_package_says_what_fixes_it_in_its_own_error(tmp_path):
    with pytest.raises(TableError, match=r"absent does not exist: measure it with `lathe profile`$"):  # noqa: SIM117
        with raised_as(TableError, "measure it with `lathe profile`"):
            read_bytes(tmp_path / "absent")


@pytest.mark.parametrize(
    ("size", "text"), [(12, "12 bytes"), (1536, "1.5 KiB"), (2**20, "1 MiB"), (10**13, "9,313 GiB")]
)
def test_sizes_for_people(size, text):
    assert human_bytes(size) == text


def test_no_more_than_the_limit_is_hashed(tmp_path):
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(2**41)
    with pytest.raises(FileError, match=r"huge has 2,048 GiB, and at most 16 GiB are read"):
        sha256(tmp_path / "huge")
    (tmp_path / "memory").symlink_to("/proc/self/mem")
    with pytest.raises(FileError, match=r"memory cannot be read: "):
        sha256(tmp_path / "memory")
