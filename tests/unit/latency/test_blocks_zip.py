import struct
import zipfile
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from latency import LatencyError, Workload, blocks_zip
from latency.weights import fill_weights


def onnx_of(size: int) -> bytes:
    """A matrix product: few nodes, many weights."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, size]) for name in ("input", "output")]
    weight = numpy_helper.from_array(np.ones((size, size), np.float32), "weight")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["input", "weight"], ["output"])], "g", ends[:1], ends[1:], initializer=[weight]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    fill_weights(model)
    return model.SerializeToString(deterministic=True)


@pytest.fixture
def works(kit) -> list[Workload]:
    specs = [kit.spec(8, width) for width in (8, 16, 24)]
    blocks = [Workload.block(spec, partial(onnx_of, spec.width("c_out"))) for spec in specs]
    return [*blocks, Workload.network(specs, lambda: onnx_of(64))]


@pytest.fixture
def bundle(works, tmp_path) -> Path:
    path = tmp_path / "toy.blocks.zip"
    blocks_zip.write(path, works, lowering="1", space="toy", precision="fp32")
    return path


def rewritten(bundle: Path, change) -> Path:
    """The bundle, with its files as `change` leaves them."""
    with zipfile.ZipFile(bundle) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    change(files)
    with zipfile.ZipFile(bundle, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return bundle


def test_it_gives_back_the_same_bytes_in_the_same_order(works, bundle):
    found = blocks_zip.read(bundle)
    assert [(work.kind, work.key, work.blocks) for work in found.workloads] == [
        (work.kind, work.key, work.blocks) for work in works
    ]
    assert [work.onnx() for work in found.workloads] == [work.onnx() for work in works]
    assert (found.index.schema, found.index.lowering, found.index.space, found.index.precision) == (
        "blocks/2",
        "1",
        "toy",
        "fp32",
    )


def test_the_same_workloads_are_the_same_bytes_and_a_key_is_there_once(works, bundle, tmp_path):
    again = tmp_path / "again.blocks.zip"
    blocks_zip.write(again, [*works, *works], lowering="1", space="toy", precision="fp32")
    assert again.read_bytes() == bundle.read_bytes()


def test_weights_are_not_in_it(bundle):
    with zipfile.ZipFile(bundle) as archive:
        assert archive.namelist() == ["index.json", *(f"{number:05d}.onnx" for number in range(4))]
        assert all(info.file_size < 400 for info in archive.infolist() if info.filename != "index.json")


def test_weights_that_cannot_be_drawn_again_are_a_bug(works, tmp_path):
    model = onnx.load_from_string(onnx_of(8))
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.zeros((8, 8), np.float32), "weight"))
    work = Workload(kind="block", key=works[0].key, onnx=model.SerializeToString)
    with pytest.raises(AssertionError, match="not the weights"):
        blocks_zip.write(tmp_path / "b.blocks.zip", [work], lowering="1", space="toy", precision="fp32")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_is_named(bundle):
    with pytest.raises(
        LatencyError, match=r"toy.blocks.zip: 00002.onnx is missing: write it again with `lathe bundle SPACE --out"
    ):
        blocks_zip.read(rewritten(bundle, lambda files: files.pop("00002.onnx")))
    with pytest.raises(LatencyError, match=r"index.json is missing"):
        blocks_zip.read(rewritten(bundle, lambda files: files.pop("index.json")))


def test_two_entries_of_one_file_are_refused(bundle):
    def share(files):
        index = msgspec.json.decode(files["index.json"])
        index["entries"][1]["file"] = index["entries"][0]["file"]
        files["index.json"] = msgspec.json.encode(index)

    with pytest.raises(LatencyError, match=r"index.json is damaged: two entries have one file: write it again"):
        blocks_zip.read(rewritten(bundle, share))


def test_a_bundle_that_unpacks_to_gigabytes_is_refused_before_it_is_unpacked(bundle):
    with zipfile.ZipFile(bundle) as archive:
        size = struct.pack("<I", archive.getinfo("index.json").file_size)
    bundle.write_bytes(bundle.read_bytes().replace(size, struct.pack("<I", 2**32 - 2)))
    with pytest.raises(
        LatencyError, match=r"toy.blocks.zip unpacks to 4 GiB, and at most 4 GiB are read: write it again"
    ):
        blocks_zip.read(bundle)


def test_a_changed_file_is_named_with_its_key(bundle):
    def swap(files):
        files["00000.onnx"], files["00001.onnx"] = files["00001.onnx"], files["00000.onnx"]

    with pytest.raises(
        LatencyError, match=r"00000.onnx was changed, it is not the graph of conv\(.*\)\[c_in=8,c_out=8\] any more"
    ):
        blocks_zip.read(rewritten(bundle, swap))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "blocks/3"}, r"index.json is damaged: .*blocks/3.*schema"),
        ({"precision": "int8"}, r"index.json is damaged: .*int8.*precision"),
        ({"colour": "red"}, r"index.json is damaged: .*colour"),
    ],
)
def test_another_schema_or_field_is_refused(bundle, change, message):
    def edit(files):
        files["index.json"] = msgspec.json.encode({**msgspec.json.decode(files["index.json"]), **change})

    with pytest.raises(LatencyError, match=message):
        blocks_zip.read(rewritten(bundle, edit))


def test_no_byte_can_change_unseen(bundle, works):
    """Whatever byte is flipped: either one line says so, or what is read is the same."""
    whole, wanted = bundle.read_bytes(), blocks_zip.read(bundle)
    refused = damaged = 0
    for place in range(len(whole)):
        bundle.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            found = blocks_zip.read(bundle)
        except LatencyError as error:
            refused += "\n" not in str(error)
            damaged += 1
        else:
            assert found.index == wanted.index
            assert [work.onnx() for work in found.workloads] == [work.onnx() for work in works]
    assert refused == damaged > 100


def test_what_is_no_bundle_is_refused(tmp_path, bundle):
    torn = tmp_path / "torn.blocks.zip"
    torn.write_bytes(bundle.read_bytes()[:-100])
    for path, words in [
        (tmp_path / "none.zip", "does not exist"),
        (torn, "is not a zip file"),
        (tmp_path, "is a directory"),
    ]:
        with pytest.raises(LatencyError, match=words) as error:
            blocks_zip.read(path)
        assert "\n" not in str(error.value)
