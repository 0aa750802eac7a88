import numpy as np
import onnx
import pytest
from onnx import TensorProto, external_data_helper, helper, numpy_helper

from deploy import LoweringError
from deploy import graph as graphs


def graph(inputs, shape):
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in inputs]
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)
    node = helper.make_node("Sum", list(inputs), ["y"])
    return helper.make_model(helper.make_graph([node], "g", values, [out]), opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xff\xff nothing", "this is no ONNX model"),
        (graph(["a", "b"], [1, 2]).SerializeToString(), "2 inputs; one can be shipped"),
        (
            graph(["a"], ["n", 2]).SerializeToString(),
            "input 'a' has a dynamic shape \\(n, 2\\): export with a fixed batch and image size, or fix it by",
        ),
        (onnx.ModelProto().SerializeToString(), "this is no ONNX model: it has no ir_version"),
        (onnx.ModelProto(ir_version=9).SerializeToString(), "the ONNX graph is not valid"),
    ],
)
def test_a_file_that_cannot_ship_is_refused(data, message):
    with pytest.raises(LoweringError, match=message) as caught:
        graphs.require_single(graphs.parse(data))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"\xff\xff nothing"])
def test_a_file_that_is_no_model_is_named(tmp_path, data):
    (tmp_path / "notes.txt").write_bytes(data)
    with pytest.raises(LoweringError, match=r"notes\.txt is no ONNX model: give MODEL\.onnx"):
        graphs.read(tmp_path / "notes.txt")


def convolution(domain="", opset=20):
    weight = numpy_helper.from_array(np.ones((2, 3, 1, 1), np.float32), "w")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("x", [1, 3, 4, 4]), ("y", [1, 2, 4, 4]))]
    node = helper.make_node("Conv", ["x", "w"], ["y"], "first", domain=domain)
    built = helper.make_graph([node], "g", ends[:1], ends[1:], [weight])
    opsets = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(built, opset_imports=opsets, ir_version=10)


def test_a_custom_domain_is_refused_with_its_node():
    with pytest.raises(
        LoweringError, match=r"node 'first' \(Conv\) is of the custom domain 'com\.microsoft': only standard ONNX operators"
    ):
        graphs.check(convolution("com.microsoft"))


def test_local_functions_are_no_custom_domain():
    model = convolution("mine")
    body = [helper.make_node("Conv", ["a", "b"], ["c"])]
    model.functions.append(helper.make_function("mine", "Conv", ["a", "b"], ["c"], body, [helper.make_opsetid("", 20)]))
    checked = graphs.check(model)
    assert [(node.op_type, node.domain) for node in checked.graph.node] == [("Conv", "")]


def test_a_missing_shape_is_refused():
    model = convolution()
    model.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(LoweringError, match="input 'x' has no shape: export with a fixed batch"):
        graphs.check(model)


def test_weights_that_are_listed_as_inputs_are_none():
    model = convolution()
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [2, 3, 1, 1]))
    assert [value.name for value in graphs.require_single(graphs.check(model)).graph.input] == ["x"]


@pytest.fixture
def outside(tmp_path):
    model = convolution()
    external_data_helper.convert_model_to_external_data(model, location="weights.bin", size_threshold=0)
    onnx.save(model, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_weights_in_another_file_are_taken_in(outside):
    found = onnx.load_from_string(graphs.read(outside)).graph.initializer[0]
    assert found.data_location == TensorProto.DEFAULT
    np.testing.assert_array_equal(numpy_helper.to_array(found), np.ones((2, 3, 1, 1)))
    with pytest.raises(LoweringError, match="weights are in another file: give the path of the \\.onnx"):
        graphs.parse(outside.read_bytes())


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"12")])
def test_weights_in_another_file_that_is_missing_or_cut_short_are_named(outside, damage):
    damage(outside.parent / "weights.bin")
    with pytest.raises(
        LoweringError, match="model.onnx: the weights of 'w' are in 'weights.bin', which is missing beside it or damaged"
    ) as caught:
        graphs.read(outside)
    assert "\n" not in str(caught.value)


def test_a_file_without_weights_elsewhere_is_read_as_it_is(tmp_path):
    data = convolution().SerializeToString()
    (tmp_path / "model.onnx").write_bytes(data)
    assert graphs.read(tmp_path / "model.onnx") == data


def test_what_cannot_be_one_message_is_refused(outside, monkeypatch):
    monkeypatch.setattr(graphs, "MAX_BYTES", 50)
    with pytest.raises(LoweringError, match="the model takes 0.0 GiB and an ONNX file with its weights inline holds less than 2"):
        graphs.read(outside)
