import math

import pytest
from onnx import TensorProto, helper

from deploy.flow import DataFlow, attributes, carried, keep
from deploy.islands import Node
from unit.deploy.graphs import EYE, conv, kinds, made, relu, value


def flow():
    """A convolution, then a branch that joins it again by an addition, and the shape of its sum."""
    nodes = [
        conv("x", "a"),
        relu("a", "b"),
        helper.make_node("Add", ["b", "a"], ["c"], "c"),
        helper.make_node("Sigmoid", ["c"], ["y"], "y"),
        helper.make_node("Shape", ["c"], ["s"], "s"),
    ]
    outputs = [value("y", [1, 4, 8, 8]), value("s", [4], TensorProto.INT64)]
    model = made(nodes, {"w": EYE}, outputs=outputs)
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "n"
    return DataFlow(model.graph, [Node(proto) for proto in model.graph.node], kinds(model), {"w": EYE})


@pytest.mark.parametrize(
    ("op", "passed"),
    [("Add", ["p", "q", "r"]), ("Reshape", ["p"]), ("Where", ["q", "r"]), ("ScatterND", ["p", "r"]), ("Conv", [])],
)
def test_only_some_inputs_pass_to_the_output_at_their_magnitude(op, passed):
    assert carried(helper.make_node(op, ["p", "q", "r"], ["out"])) == passed


def test_an_optional_input_that_is_absent_passes_nothing():
    assert carried(helper.make_node("Max", ["p", "", "r"], ["out"])) == ["p", "r"]


def test_attributes_are_by_name_without_defaults():
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1], auto_pad="NOTSET")
    assert attributes(node) == {"pads": [1, 1, 1, 1], "auto_pad": b"NOTSET"}


def test_writers_and_readers_are_found_by_value():
    found = flow()
    assert found.writers["c"].proto.op_type == "Add"
    assert "x" not in found.writers
    assert [node.proto.name for node in found.readers["a"]] == ["b", "c"]
    assert [node.proto.name for node in found.readers["c"]] == ["y", "s"]


def test_a_node_that_reads_a_value_twice_is_one_reader():
    model = made([helper.make_node("Mul", ["x", "x"], ["y"], "y")])
    found = DataFlow(model.graph, [Node(proto) for proto in model.graph.node], kinds(model), {})
    assert len(found.readers["x"]) == 1


def test_a_size_that_is_not_known_is_infinite():
    found = flow()
    assert (found.size("w"), found.size("s"), found.size("y"), found.size("nowhere")) == (16, 4, math.inf, math.inf)
    assert (found.dim("y", 1), found.dim("y", -1), found.dim("w", 0)) == (4, 8, 4)
    assert (found.dim("y", 0), found.dim("y", 4), found.dim("y", -5)) == (math.inf,) * 3


def test_only_float32_values_have_a_precision_to_choose():
    found = flow()
    assert {name: found.is_float(name) for name in ("x", "w", "y", "s", "nowhere")} == {
        "x": True,
        "w": True,
        "y": True,
        "s": False,
        "nowhere": False,
    }


def test_upstream_goes_back_to_the_nodes_that_compute_a_value_and_visits_each_once():
    found = flow()
    names = [node.proto.name for node in found.upstream("c")]
    assert names[0] == "c"
    assert sorted(names) == ["a", "b", "c"]
    assert [node.proto.name for node in found.upstream("y")] == ["y"], "a sigmoid computes its own magnitude"
    assert list(found.upstream("x")) == []


def test_the_first_reason_to_keep_a_node_stays():
    first, second = flow().nodes[:2]
    keep([first], "overflows")
    keep([first, second], "vanishes")
    assert (first.reason, second.reason) == ("overflows", "vanishes")
