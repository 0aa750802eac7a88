import contextlib
import os

import pytest

from latency.files import beside, whole, write_whole


def test_a_file_replaces_the_one_before(tmp_path):
    for content in (b"old", b"new"):
        write_whole(tmp_path / "file", content)
        assert (tmp_path / "file").read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    write_whole(tmp_path / "file", b"old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "file", b"new")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"file": b"old"}


def test_what_a_killed_writer_left_is_not_added_to(tmp_path):
    beside(tmp_path / "file").write_bytes(b"half of")
    with whole(tmp_path / "file") as partial:
        assert not partial.exists()
        partial.write_bytes(b"all")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"file": b"all"}


def test_a_block_that_fails_writes_nothing(tmp_path):
    with contextlib.suppress(ZeroDivisionError), whole(tmp_path / "file") as partial:
        partial.write_bytes(b"half")
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_a_full_disk_names_the_file_that_was_wanted(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_whole(tmp_path / "file", b"new")
    assert caught.value.filename == str(tmp_path / "file")


def test_an_error_about_another_file_is_left_as_it_is(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, whole(tmp_path / "file"):
        (tmp_path / "other").read_bytes()
    assert caught.value.filename == str(tmp_path / "other")
