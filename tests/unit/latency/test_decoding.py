import io
import json
import struct
import zipfile
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors.numpy import save

from latency.decoding import (
    Unzipped,
    decode_json,
    decode_npy,
    decode_tensors,
    read_json,
    read_json_lines,
    read_npy,
    read_npz,
)
from latency.errors import FileError


class Point(msgspec.Struct, forbid_unknown_fields=True):
    x: float
    more: dict[str, Any] = {}


def npy_of(array: np.ndarray, version: tuple[int, int] = (1, 0)) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version=version)
    return file.getvalue()


def npy_with(header: str, content: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + content


def zip_of(compression: int = zipfile.ZIP_DEFLATED, **files: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return packed.getvalue()


def safetensors_with(header: object, content: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content


def test_json_is_decoded_to_its_type(tmp_path):
    (tmp_path / "file").write_bytes(b'{"x": 1.5}\n{"x": 2}\n')
    assert decode_json(b'{"x": 1}', Point, "f") == Point(1.0)
    assert list(read_json_lines(tmp_path / "file", Point)) == [Point(1.5), Point(2.0)]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "Input data was truncated"),
        (b'{"x": NaN}', "JSON is malformed"),
        (b'{"x": 1e999}', r"Number out of range - at `\$.x`"),
        (b'{"x": 1, "y": 2}', "Object contains unknown field `y`"),
        (b'{"x": 1, "more": {"\xff": 1}}', "'utf-8' codec can't decode byte 0xff"),
        (b'{"x": 1, "more": {"a":' + b"[" * 10**6, "its brackets are nested too deeply"),
    ],
)
def test_json_that_is_damaged_is_named_with_what_is_wrong(tmp_path, data, words):
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(FileError, match=f"file is damaged: {words}"):
        read_json(tmp_path / "file", Point)
    (tmp_path / "file").write_bytes(b'{"x": 1}\n' + data + b"\n")
    with pytest.raises(FileError, match=f"file, line 2, is damaged: {words}"):
        list(read_json_lines(tmp_path / "file", Point))


def test_json_larger_than_its_limit_is_not_decoded(tmp_path):
    (tmp_path / "file").write_bytes(b'{"x": 1' + b" " * 1024 + b"}")
    with pytest.raises(FileError, match="file has 1.008 KiB, and at most 1 KiB are read"):
        read_json(tmp_path / "file", Point, limit=1024)


def test_a_zip_gives_the_bytes_of_its_files():
    zipped = Unzipped(zip_of(a=b"first", b=b""), "f")
    assert zipped.names == ["a", "b"]
    assert (zipped.read("a"), zipped.read("b")) == (b"first", b"")


def test_a_zip_that_unpacks_to_more_than_the_limit_is_refused_by_its_directory():
    with pytest.raises(FileError, match="f unpacks to 1.001 MiB, and at most 1 MiB are read"):
        Unzipped(zip_of(a=bytes(2**20), b=bytes(1024)), "f", limit=2**20)


def test_a_zip_whose_directory_understates_a_file_gives_no_more_than_it_says():
    data = zip_of(a=bytes(2**20))
    size = struct.pack("<I", 2**20)
    assert data.count(size) == 2  # in the file's own header, and in the directory
    with pytest.raises(FileError, match=r"f: a was changed \(Bad CRC-32 for file 'a'\)"):
        Unzipped(data.replace(size, struct.pack("<I", 16)), "f").read("a")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", r"f is not a zip file \(File is not a zip file\)"),
        (zip_of(zipfile.ZIP_LZMA, a=b"x"), "f: a is packed by another method than deflate"),
        (zip_of(zipfile.ZIP_BZIP2, a=b"x"), "f: a is packed by another method than deflate"),
        (zip_of(a=b"x", bb=b"y").replace(b"bb", b"a\0"), "f is damaged: it has two files of one name"),
    ],
)
def test_a_zip_that_is_damaged_is_refused(data, words):
    with pytest.raises(FileError, match=words):
        Unzipped(data, "f").read("a")


def test_each_byte_of_a_zip_that_changes_is_found_or_changes_nothing():
    data = zip_of(a=b"first" * 20, b=b"second")
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= 0xFF
        try:
            zipped = Unzipped(bytes(changed), "f")
            assert (zipped.read("a"), zipped.read("b")) == (b"first" * 20, b"second")
        except FileError:
            pass


@pytest.mark.parametrize("dtype", ["<f4", ">f8", "<f2", "<i8", "|u1", "|b1", "<f8"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_an_npy_file_gives_its_array(tmp_path, dtype, order, version):
    for shape in ((), (0, 3), (5,), (2, 3, 4)):
        array = np.arange(np.prod(shape)).reshape(shape).astype(dtype, order=order)
        (tmp_path / "a.npy").write_bytes(npy_of(array, version))
        found = read_npy(tmp_path / "a.npy")
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is not an .npy file"),
        (b"\x80\x04\x95", "is not an .npy file"),
        (b"\x93NUMPY\x01\x00", "is not an .npy file of numbers"),
        (
            npy_with("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", b"\x80\x04."),
            "is not an .npy file of numbers: its header",
        ),
        (
            npy_with("{'descr': '<U8', 'fortran_order': False, 'shape': (1,)}", bytes(32)),
            "is not an .npy file of numbers",
        ),
        (
            npy_with("{'descr': '<f3', 'fortran_order': False, 'shape': (1,)}", bytes(3)),
            "data type '<f3' not understood",
        ),
        (
            npy_with("{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000000,)}"),
            "it has 3.725e.04 GiB of numbers, found 0 bytes",
        ),
        (
            npy_with("{'descr': '<f4', 'fortran_order': False, 'shape': (0, 99999999999999999999)}"),
            "is not an .npy file of numbers",
        ),
        (
            npy_with("{'descr': '<f4', 'fortran_order': False, 'shape': (" + "1," * 99 + ")}", bytes(4)),
            "maximum supported dimension",
        ),
        (
            npy_with("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}", bytes(4)),
            "is not an .npy file of numbers",
        ),
        (npy_with("(" * 5000), "is not an .npy file of numbers"),
        (npy_of(np.zeros(3))[:-1], "by its header it has 24 bytes of numbers, found 23 bytes"),
        (npy_of(np.zeros(3)) + b"x", "by its header it has 24 bytes of numbers, found 25 bytes"),
    ],
)
def test_an_npy_file_that_is_not_one_or_claims_what_it_has_not_is_refused(data, words):
    with pytest.raises(FileError, match=f"^f .*{words}"):
        decode_npy(data, "f")


def test_an_npz_file_is_limited_as_a_whole(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros(1000), b=np.zeros(1000))
    assert {name: array.shape for name, array in read_npz(tmp_path / "a.npz").items()} == {"a": (1000,), "b": (1000,)}
    with pytest.raises(FileError, match=r"a.npz unpacks to 15.88 KiB, and at most 8.789 KiB are read"):
        read_npz(tmp_path / "a.npz", limit=9000)


def test_a_name_in_a_zip_does_not_break_the_line(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x\ny\x1b.npy", b"text")
    with pytest.raises(FileError, match=r"a.npz: x\\ny\\x1b.npy is not an .npy file$"):
        read_npz(tmp_path / "a.npz")


def test_a_safetensors_file_gives_its_tensors():
    tensors = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([], dtype=np.int64)}
    found = decode_tensors(save(tensors), "f")
    assert {name: value.tolist() for name, value in found.items()} == {"a": [[0, 1, 2], [3, 4, 5]], "b": []}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is not a safetensors file .*header too small"),
        (struct.pack("<Q", 10**13), "is not a safetensors file .*header too large"),
        (
            safetensors_with({"a": {"dtype": "F32", "shape": [10**13], "data_offsets": [0, 4]}}, bytes(4)),
            "is not a safetensors file .*invalid shape",
        ),
        (
            safetensors_with({"a": {"dtype": "F32", "shape": [0, 2**40, 2**40], "data_offsets": [0, 0]}}),
            "is not a safetensors file .*array is too big",
        ),
        (
            safetensors_with({"a": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}, bytes(4)),
            "has a tensor of type BF16",
        ),
        (save({"a": np.zeros(3)})[:-1], "is not a safetensors file"),
    ],
)
def test_a_safetensors_file_that_is_damaged_is_refused(data, words):
    with pytest.raises(FileError, match=f"^f {words}"):
        decode_tensors(data, "f")
