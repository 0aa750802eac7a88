import re

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from deploy import export, sessions, verify
from deploy.engine import half_runner
from deploy.errors import DeployError
from latency import RunFailed
from unit.deploy.graphs import made, value


def gather() -> bytes:
    """Takes entries of an input by index; fails as it runs where an index is out of range."""
    values = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [3]),
        helper.make_tensor_value_info("index", TensorProto.INT64, [1]),
    ]
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Gather", ["x", "index"], ["y"])], "g", values, [out])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()


def test_nothing_is_said_on_the_console(capfd):
    nodes = [
        helper.make_node(
            "Resize", ["x", "", "s"], ["y"], mode="nearest", coordinate_transformation_mode="tf_half_pixel_for_nn"
        )  # deprecated
    ]
    model = made(nodes, {"s": np.float32([1, 1, 2, 2])}, outputs=[value("y", [1, 4, 16, 16])], opset=18)
    sessions.run_session(sessions.start_session(model.SerializeToString()), X4)
    assert capfd.readouterr() == ("", "")


X = np.array([1, 2, 3], np.float32)
X4 = {"x": np.ones((1, 4, 8, 8), np.float32)}


def test_outputs_come_by_name():
    found = sessions.run_session(sessions.start_session(gather()), {"x": X, "index": np.array([2])})
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
        sessions.run_session(sessions.start_session(gather()), inputs)
    assert "\n" not in str(caught.value)


def test_a_model_that_is_refused_is_one_line():
    model = onnx.load_from_string(gather())
    model.graph.node[0].op_type = "Nonsense"
    for data in (b"no model", model.SerializeToString()):
        with pytest.raises(DeployError, match=r"^ONNX Runtime refuses the model: ") as caught:
            sessions.start_session(data)
        assert "\n" not in str(caught.value)


def endless():
    """A Loop of 2**62 iterations."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Mul", ["a", "a"], ["b"])],
        "body",
        [value("i", [], TensorProto.INT64), value("go", [], TensorProto.BOOL), value("a", [1, 4, 8, 8])],
        [value("on", [], TensorProto.BOOL), value("b", [1, 4, 8, 8])],
    )
    return made([helper.make_node("Loop", ["trips", "", "x"], ["y"], body=body)], {"trips": np.array(2**62)})


WORDS = r"one inference takes longer than 0.2 s: is there a Loop in the network that does not end\?$"


def test_a_network_that_never_ends_is_given_up(monkeypatch):
    monkeypatch.setattr("latency.backends.onnxruntime.MAX_RUN_S", 0.2)
    data = endless().SerializeToString()
    with pytest.raises(RunFailed, match=WORDS):
        sessions.run_session(sessions.start_session(data), X4)
    with pytest.raises(RunFailed, match=WORDS):
        half_runner(data)({"x": X4["x"][None]})


@pytest.mark.parametrize("opset", [18, 20])
def test_export_of_a_network_that_never_ends_is_refused(tmp_path, monkeypatch, opset):
    monkeypatch.setattr("latency.backends.onnxruntime.MAX_RUN_S", 0.2)
    model = endless()
    model.opset_import[0].version = opset
    with pytest.raises(RunFailed, match=f"^{WORDS}"):
        export(model.SerializeToString(), target="onnxruntime", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_verify_of_a_network_that_never_ends_fails(bundle_copy, monkeypatch):
    monkeypatch.setattr("latency.backends.onnxruntime.MAX_RUN_S", 0.0)
    monkeypatch.setattr(
        "deploy.engine.onnx_runner",
        lambda *_: lambda inputs: sessions.run_session(sessions.start_session(endless().SerializeToString()), X4),
    )
    found = {check.name: check for check in verify(bundle_copy).checks}
    assert found["outputs"].verdict == "failed"
    assert re.search(WORDS.replace("0.2", "0"), found["outputs"].detail)
