import warnings

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from deploy import LoweringError, lowering, to_onnx
from deploy import graph as graphs
from deploy.engine import onnx_runner
from reparam import count, fuse, squeeze
from unit.deploy.helpers import example, network, samples


@pytest.fixture(scope="module")
def shipped():
    return squeeze(fuse(network()), example())


@pytest.fixture(scope="module")
def data(shipped):
    return to_onnx(shipped, example())


@pytest.fixture(scope="module")
def half(shipped):
    return to_onnx(shipped, example(), precision="fp16")


def ends(model):
    values = (model.graph.input[0], model.graph.output[0])
    return [(value.name, value.type.tensor_type.elem_type, [dim.dim_value for dim in value.type.tensor_type.shape.dim]) for value in values]


def test_the_graph_is_static_named_and_whole(data):
    model = onnx.load_from_string(data)
    assert ends(model) == [("input", TensorProto.FLOAT, [1, 3, 8, 8]), ("output", TensorProto.FLOAT, [1, 4])]
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", lowering.OPSET)]
    assert all(value.data_location == TensorProto.DEFAULT for value in model.graph.initializer)
    assert {node.op_type for node in model.graph.node} <= {"Conv", "Relu", "ReduceMean", "GlobalAveragePool", "Reshape", "Flatten", "Gemm"}


def test_nothing_of_this_machine_is_in_it(data):
    assert b".py" not in data
    assert b"/home" not in data


def test_it_computes_what_the_module_does(shipped, data):
    with torch.no_grad():
        expected = shipped.eval()(samples()).numpy()
    np.testing.assert_allclose(onnx_runner(data)(samples().numpy()), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_the_same_module_gives_the_same_bytes(shipped, data):
    assert to_onnx(shipped, example()) == data


def test_half_precision_is_in_the_graph_with_a_cast_at_each_end(half):
    model = onnx.load_from_string(half)
    assert [kind for _, kind, _ in ends(model)] == [TensorProto.FLOAT, TensorProto.FLOAT]
    assert [node.op_type for node in model.graph.node].count("Cast") == 2
    assert TensorProto.FLOAT not in {value.data_type for value in model.graph.initializer}


def test_half_precision_ends_need_no_cast(shipped):
    model = onnx.load_from_string(to_onnx(shipped, example(), precision="fp16", io="fp16"))
    assert [kind for _, kind, _ in ends(model)] == [TensorProto.FLOAT16, TensorProto.FLOAT16]
    assert "Cast" not in {node.op_type for node in model.graph.node}


def test_the_exporter_says_nothing(shipped, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        to_onnx(shipped, example())
    assert capfd.readouterr() == ("", "")


def test_the_module_stays_as_it_was():
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2)).train()
    to_onnx(model, example(), precision="fp16")
    assert model.training
    assert model[0].weight.dtype == torch.float32
    assert model[1].num_batches_tracked == 0


def test_what_torch_cannot_export_is_one_line():
    class Branch(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(LoweringError, match="torch cannot export Branch to ONNX: ") as caught:
        to_onnx(Branch(), example())
    assert "\n" not in str(caught.value)


def graph(inputs, shape):
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in inputs]
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)
    node = helper.make_node("Sum", list(inputs), ["y"])
    return helper.make_model(helper.make_graph([node], "g", values, [out]), opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xff\xff nothing", "this is no ONNX model"),
        (graph(["a", "b"], [1, 2]).SerializeToString(), "2 inputs and 1 outputs; one of each can be shipped"),
        (graph(["a"], ["n", 2]).SerializeToString(), "a has a dynamic shape"),
        (onnx.ModelProto().SerializeToString(), "the ONNX graph is not valid"),
    ],
)
def test_a_file_that_cannot_ship_is_refused(data, message):
    with pytest.raises(LoweringError, match=message) as caught:
        graphs.parse(data)
    assert "\n" not in str(caught.value)


def test_a_graph_is_counted_as_its_module_is(shipped, data, half):
    expected = count(shipped, example())
    assert lowering.count(graphs.parse(data)) == lowering.count(graphs.parse(half)) == expected
    batched = to_onnx(shipped, torch.zeros(3, 3, 8, 8))
    assert lowering.count(graphs.parse(batched)) == expected
