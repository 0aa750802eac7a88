import os

import numpy as np
import onnx
import pytest
from onnx import TensorProto, external_data_helper, helper, numpy_helper

from deploy import LoweringError
from deploy.onnxfile import read_model
from unit.deploy.test_graph import convolution

WEIGHTS = np.arange(6, dtype=np.float32).reshape(2, 3, 1, 1)


@pytest.fixture
def outside(tmp_path):
    """A model whose weights are in weights.bin, after 4096 other bytes."""
    model = convolution()
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(WEIGHTS, "w"))
    external_data_helper.convert_model_to_external_data(model, location="weights.bin", size_threshold=0)
    (tmp_path / "models").mkdir()
    path = tmp_path / "models" / "model.onnx"
    onnx.save(model, path)
    return path


def point(path, **entries):
    """Let the weights of a model be elsewhere."""
    model = onnx.load(path, load_external_data=False)
    tensor = model.graph.initializer[0]
    known = {entry.key: entry.value for entry in tensor.external_data} | entries
    del tensor.external_data[:]
    for key, value in known.items():
        if value is not None:
            tensor.external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())


def test_weights_in_another_file_are_taken_in(outside):
    found = onnx.load_from_string(read_model(outside)).graph.initializer[0]
    assert found.data_location == TensorProto.DEFAULT
    assert not found.external_data
    np.testing.assert_array_equal(numpy_helper.to_array(found), WEIGHTS)


def test_a_part_of_a_file_is_taken_by_its_offset(outside):
    (outside.parent / "all.bin").write_bytes(b"-" * 100 + WEIGHTS.tobytes() + b"-" * 7)
    for length in ("24", None):
        point(outside, location="all.bin", offset="100", length=length)
        np.testing.assert_array_equal(
            numpy_helper.to_array(onnx.load_from_string(read_model(outside)).graph.initializer[0]), WEIGHTS
        )


def test_a_file_in_a_directory_below_or_linked_within_is_taken(outside):
    (outside.parent / "data").mkdir()
    (outside.parent / "weights.bin").rename(outside.parent / "data" / "w.bin")
    (outside.parent / "link").symlink_to("data")
    for location in ("data/w.bin", "./data/w.bin", "link/w.bin"):
        point(outside, location=location)
        read_model(outside)


def test_constants_and_bodies_are_taken_in(tmp_path):
    (tmp_path / "w.bin").write_bytes(np.float32([1, 2, 3]).tobytes())
    tensor = TensorProto(data_type=TensorProto.FLOAT, dims=[3], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="w.bin")
    out = [helper.make_tensor_value_info("z", TensorProto.FLOAT, [3])]
    body = helper.make_graph([helper.make_node("Constant", [], ["z"], value=tensor)], "body", [], out)
    model = convolution()
    model.graph.node.append(helper.make_node("If", ["c"], ["d"], then_branch=body, else_branch=body))
    model.graph.node.append(helper.make_node("Constant", [], ["e"], value=tensor))
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    taken = onnx.load_from_string(read_model(tmp_path / "model.onnx")).graph.node
    for constant in (taken[1].attribute[0].g.node[0], taken[1].attribute[1].g.node[0], taken[2]):
        np.testing.assert_array_equal(numpy_helper.to_array(constant.attribute[0].t), [1, 2, 3])


def test_nothing_is_read_relative_to_the_working_directory(outside, tmp_path, monkeypatch):
    (outside.parent / "weights.bin").rename(tmp_path / "weights.bin")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        LoweringError,
        match=r"the numbers of tensor 'w' are in 'weights\.bin', which is missing in .*models: copy it there",
    ):
        read_model(outside)
    with pytest.raises(LoweringError, match="is missing in models: copy it there"):
        read_model("models/model.onnx")


@pytest.mark.parametrize(
    "location",
    ["/etc/hostname", "../secret", "a/../../secret", r"..\secret", r"C:\secret", r"\\host\secret", "//host/secret"],
)
def test_a_path_that_leaves_the_directory_is_not_read(outside, location):
    (outside.parent.parent / "secret").write_bytes(WEIGHTS.tobytes())
    point(outside, location=location)
    with pytest.raises(
        LoweringError,
        match="which is not read: only files in the model's own directory are, by a relative path without",
    ):
        read_model(outside)


def test_a_link_that_leaves_the_directory_is_not_read(outside, tmp_path):
    (tmp_path / "secret").write_bytes(WEIGHTS.tobytes())
    (outside.parent / "link.bin").symlink_to(tmp_path / "secret")
    (outside.parent / "dir").symlink_to(tmp_path)
    for location in ("link.bin", "dir/secret"):
        point(outside, location=location)
        with pytest.raises(
            LoweringError, match="is a link to a file outside of the model's directory: copy the file itself there"
        ):
            read_model(outside)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"location": ""}, "which is not the name of a file"),
        ({"location": "absent.bin"}, r"'absent\.bin', which is missing in .*models"),
        ({"location": "pipe"}, "which is a named pipe, where a file is expected"),
        ({"location": "."}, "which is a directory, where a file is expected"),
        ({"offset": "4"}, "which is cut short: it has 24 bytes, and the tensor takes 24 from byte 4 on"),
        ({"offset": "-4"}, "has the offset '-4', which is not a whole number"),
        ({"offset": "1e3"}, "has the offset '1e3'"),
        ({"length": "9" * 30}, "has the length '999"),
        ({"length": "23"}, r"has a tensor of 23 bytes by its length, but 24 by its shape \[2, 3, 1, 1\]"),
    ],
)
def test_what_cannot_be_taken_in_is_said(outside, entries, message):
    os.mkfifo(outside.parent / "pipe")
    point(outside, **entries)
    with pytest.raises(LoweringError, match=message) as caught:
        read_model(outside)
    assert "model.onnx: the numbers of tensor 'w' are in" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_tensors_that_cannot_be_in_one_file_are_refused_before_they_are_read(outside):
    model = onnx.load(outside, load_external_data=False)
    model.graph.initializer[0].dims[:] = [2**20, 2**20]
    outside.write_bytes(model.SerializeToString())
    with pytest.raises(
        LoweringError,
        match="takes 4,096 GiB and more with the tensors beside it, and a file that ships holds less than 2 GiB",
    ):
        read_model(outside)


def test_a_file_without_weights_elsewhere_is_read_as_it_is(tmp_path):
    data = convolution().SerializeToString()
    (tmp_path / "model.onnx").write_bytes(data)
    assert read_model(tmp_path / "model.onnx") == data


@pytest.mark.parametrize("data", [b"", b"\xff\xff nothing"])
def test_a_file_that_is_no_model_is_named(tmp_path, data):
    (tmp_path / "notes.txt").write_bytes(data)
    with pytest.raises(LoweringError, match=r"notes\.txt is not an ONNX model: .*: give MODEL\.onnx"):
        read_model(tmp_path / "notes.txt")
