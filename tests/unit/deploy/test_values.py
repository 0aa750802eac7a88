import numpy as np
import pytest
from onnx import TensorProto, helper

from deploy.flow import DataFlow
from deploy.islands import Node
from deploy.values import Values, possible
from unit.deploy.graphs import kinds, made, value

BYTES = [value("x", [1, 4, 8, 8], TensorProto.UINT8)]
ANY = Values(whole=False)


def node(op, read, name, **attributes):
    return helper.make_node(op, read, [name], name, **attributes)


def values(nodes, weights=None, inputs=None):
    """What the values of a model are; it is written by nodes from x to a."""
    weights = {name: np.asarray(array) for name, array in (weights or {}).items()}
    model = made(
        [*nodes, node("Identity", ["x"], "y")],
        weights,
        inputs=inputs,
        outputs=inputs and [value("y", [1, 4, 8, 8], TensorProto.UINT8)],
    )
    return possible(DataFlow(model.graph, [Node(proto) for proto in model.graph.node], kinds(model), weights))


@pytest.mark.parametrize(
    ("nodes", "weights", "wanted"),
    [
        ([], {}, Values(True, 0.0, 255.0)),
        ([node("Neg", ["b"], "a")], {}, Values(True, -255.0, 0.0)),
        ([node("Add", ["b", "k"], "a")], {"k": np.float32([-1, 3, 0, 0]).reshape(4, 1, 1)}, Values(True, -1.0, 258.0)),
        ([node("Sub", ["k", "b"], "a")], {"k": np.float32([0.5])}, Values(False, -254.5, 0.5, 1.0)),
        ([node("Mul", ["b", "k"], "a")], {"k": np.float32([[-2], [4]] * 4)}, Values(True, -510.0, 1020.0)),
        ([node("Div", ["b", "k"], "a")], {"k": np.float32([2])}, Values(False, 0.0, 127.5, 0.5)),
        ([node("Div", ["b", "b"], "a")], {}, ANY),
        ([node("Clip", ["b", "k"], "a")], {"k": np.float32(7)}, Values(True, 7.0, 255.0)),
        ([node("Min", ["b", "k"], "a")], {"k": np.float32([6.5])}, Values(False, 0.0, 6.5, 1.0)),
        ([node("Mod", ["b", "k"], "a", fmod=1)], {"k": np.float32([7])}, Values(True, 0.0, 7.0)),
        ([node("ReduceSum", ["b", "k"], "a")], {"k": np.int64([2, 3])}, Values(True, 0.0, 64 * 255.0)),
        ([node("ReduceMean", ["b", "k"], "a")], {"k": np.int64([2, 3])}, Values(False, 0.0, 255.0, 1 / 64)),
        ([node("AveragePool", ["b"], "a", kernel_shape=[2, 2])], {}, Values(False, 0.0, 255.0, 0.25)),
        ([node("ReduceProd", ["b", "k"], "a")], {"k": np.int64([1])}, Values(True, 0.0, 255.0**4)),
        ([node("Mean", ["b", "b"], "a")], {}, Values(False, 0.0, 255.0, 0.5)),
        ([node("LeakyRelu", ["b"], "a", alpha=0.25)], {}, Values(False, 0.0, 255.0, 1.0)),
        ([node("Neg", ["b"], "c"), node("LeakyRelu", ["c"], "a", alpha=0.25)], {}, Values(False, -63.75, 0.0, 1.0)),
        ([node("Mul", ["b", "k"], "a")], {"k": np.float32([0.25])}, Values(False, 0.0, 63.75, 0.25)),
        (
            [node("Mul", ["b", "k"], "a")],
            {"k": np.float32([0.3] * 7 + [0.4])},
            Values(False, 0.0, float(np.float32(0.4)) * 255),
        ),
        ([node("Add", ["b", "k"], "a")], {"k": np.float32([0.5] * 4 + [1] * 4)}, Values(False, 0.5, 256.0, 0.5)),
        ([node("Sqrt", ["b"], "a")], {}, Values(False, 0.0, 255**0.5, 0.5 / 255**0.5)),
        ([node("Hardmax", ["b"], "a")], {}, Values(True, 0.0, 1.0)),
        (
            [node("Einsum", ["b", "k"], "a", equation="nchw,w->nch")],
            {"k": np.float32([1] * 8)},
            Values(True, -8 * 255.0, 8 * 255.0),
        ),
        (
            [node("ScatterElements", ["b", "i", "b"], "a", reduction="add")],
            {"i": np.zeros((1, 4, 8, 8), np.int64)},
            Values(True, 0.0, 257 * 255.0),
        ),
        (
            [node("ScatterElements", ["b", "i", "b"], "a", reduction="mul")],
            {"i": np.zeros((1, 4, 8, 8), np.int64)},
            Values(True),
        ),
        (
            [node("DequantizeLinear", ["x", "k", "zero"], "a")],
            {"k": np.float32(0.5), "zero": np.uint8(128)},
            Values(False, -64.0, 63.5, 0.5),
        ),
        ([node("CumSum", ["b", "k"], "a")], {"k": np.int64(1)}, Values(True, 0.0, 4 * 255.0)),
        ([node("MatMul", ["b", "k"], "a")], {"k": np.ones((8, 1), np.float32)}, Values(True, -8 * 255.0, 8 * 255.0)),
        ([node("Pow", ["b", "k"], "a")], {"k": np.float32([2])}, Values(True, 0.0, 255.0**2)),
        ([node("Pad", ["b", "k"], "a")], {"k": np.int64([0, 0, 0, 0, 0, 0, 1, 1])}, Values(True, 0.0, 255.0)),
        ([node("Sigmoid", ["b"], "a")], {}, Values(False, 0.0, 1.0)),
        ([node("Sigmoid", ["b"], "c"), node("Floor", ["c"], "a")], {}, Values(True, -1.0, 2.0)),
        ([node("ArgMax", ["b"], "a", axis=1)], {}, Values(True, 0.0, 3.0)),
        ([node("Shape", ["b"], "a")], {}, Values(True, 0.0, 8.0)),
        ([node("Size", ["b"], "a")], {}, Values(True, 0.0, 256.0)),
        ([node("Greater", ["b", "k"], "a")], {"k": np.float32([1])}, Values(True, 0.0, 1.0)),
        (
            [node("Where", ["m", "k", "b"], "a")],
            {"k": np.float32([-1e9]), "m": np.array([True])},
            Values(True, float(np.float32(-1e9)), 255.0),
        ),
        ([node("Selu", ["b"], "a")], {}, ANY),
    ],
)
def test_each_operator_says_what_it_can_write(nodes, weights, wanted):
    cast = helper.make_node("Cast", ["x"], ["b"], "b", to=TensorProto.FLOAT)
    found = values([cast, *nodes], weights, BYTES)["a" if nodes else "b"]
    assert found == wanted


def test_a_float_input_is_any_and_an_infinite_constant_is_no_limit():
    assert values([])["x"] == ANY
    found = values(
        [node("Neg", ["k"], "a"), node("Add", ["x", "k"], "b")], {"k": np.float32([-3, -np.inf, 0, 0, 0, 0, 0, 0])}
    )
    assert (found["a"], found["b"]) == (Values(True, 0.0, 3.0), ANY)
