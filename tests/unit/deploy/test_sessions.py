import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from deploy import sessions
from deploy.errors import DeployError


def gather() -> bytes:
    """Takes entries of an input by index; fails as it runs where an index is out of range."""
    values = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [3]),
        helper.make_tensor_value_info("index", TensorProto.INT64, [1]),
    ]
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Gather", ["x", "index"], ["y"])], "g", values, [out])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()


X = np.array([1, 2, 3], np.float32)


def test_outputs_come_by_name():
    found = sessions.run(sessions.start(gather()), {"x": X, "index": np.array([2])})
    assert {name: value.tolist() for name, value in found.items()} == {"y": [3.0]}


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"x": X, "index": np.array([7])}, "indices element out of data bounds"),
        ({"x": X[:2], "index": np.array([0])}, "Got invalid dimensions for input"),
        ({"x": X, "index": np.array([0.0])}, "Unexpected input data type"),
        ({"x": X}, r"Required inputs \(\['index'\]\) are missing"),
        ({"x": X, "index": np.array([0]), "z": X}, "z"),
        ({"x": X, "index": np.array([object()])}, "."),
    ],
)
def test_what_fails_as_it_runs_is_one_line(inputs, words):
    with pytest.raises(DeployError, match=f"^ONNX Runtime cannot run the network on these inputs: .*{words}") as caught:
        sessions.run(sessions.start(gather()), inputs)
    assert "\n" not in str(caught.value)


def test_a_model_that_is_refused_is_one_line():
    model = onnx.load_from_string(gather())
    model.graph.node[0].op_type = "Nonsense"
    for data in (b"no model", model.SerializeToString()):
        with pytest.raises(DeployError, match=r"^ONNX Runtime refuses the model: ") as caught:
            sessions.start(data)
        assert "\n" not in str(caught.value)
