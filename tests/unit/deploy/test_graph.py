import re

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploy import LoweringError
from deploy import graph as graphs
from unit.deploy.graphs import made


def graph(inputs, shape):
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in inputs]
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)
    node = helper.make_node("Sum", list(inputs), ["y"])
    return helper.make_model(
        helper.make_graph([node], "g", values, [out]), opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xff\xff nothing", "this is not an ONNX model"),
        (
            graph(["a"], ["n", 2]).SerializeToString(),
            "input 'a' has a dynamic shape \\(n, 2\\): fix it, as by --shape a=1x2",
        ),
        (onnx.ModelProto().SerializeToString(), "this is not an ONNX model: it has no ir_version"),
        (onnx.ModelProto(ir_version=9).SerializeToString(), "the ONNX graph has no output"),
    ],
)
def test_a_file_that_cannot_ship_is_refused(data, message):
    with pytest.raises(LoweringError, match=message) as caught:
        graphs.parse_model(data)
    assert "\n" not in str(caught.value)


def convolution(domain="", opset=20):
    weight = numpy_helper.from_array(np.ones((2, 3, 1, 1), np.float32), "w")
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", [1, 3, 4, 4]), ("y", [1, 2, 4, 4]))
    ]
    node = helper.make_node("Conv", ["x", "w"], ["y"], "first", domain=domain)
    built = helper.make_graph([node], "g", ends[:1], ends[1:], [weight])
    opsets = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(built, opset_imports=opsets, ir_version=10)


def test_a_custom_domain_is_refused_with_its_node():
    with pytest.raises(
        LoweringError,
        match=r"node 'first' \(Conv\) is of the custom domain 'com\.microsoft': only standard ONNX operators",
    ):
        graphs.check_model(convolution("com.microsoft"))


def test_local_functions_are_no_custom_domain():
    model = convolution("mine")
    body = [helper.make_node("Conv", ["a", "b"], ["c"])]
    model.functions.append(helper.make_function("mine", "Conv", ["a", "b"], ["c"], body, [helper.make_opsetid("", 20)]))
    checked = graphs.check_model(model)
    assert [(node.op_type, node.domain) for node in checked.graph.node] == [("Conv", "")]


def test_a_missing_shape_is_refused():
    model = convolution()
    model.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(LoweringError, match="input 'x' has no shape: fix it, as by --shape x=1x3x224x224"):
        graphs.check_model(model)


def test_weights_that_are_listed_as_inputs_are_none():
    model = convolution()
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [2, 3, 1, 1]))
    assert [value.name for value in graphs.check_model(model).graph.input] == ["x"]


def test_weights_in_another_file_are_refused():
    model = convolution()
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL
    with pytest.raises(
        LoweringError, match=r"tensor 'w' is in another file: give the path of MODEL\.onnx, with that file beside it"
    ):
        graphs.parse_model(model.SerializeToString())


def body(node):
    values = [helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 2, 4, 4])]
    return helper.make_graph([node], "body", [], values)


def test_a_custom_domain_in_a_body_is_refused_with_its_node():
    model = convolution()
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    branches = (
        body(helper.make_node("Gelu", ["y"], ["z"], domain="com.microsoft")),
        body(helper.make_node("Relu", ["y"], ["z"])),
    )
    model.graph.node.append(helper.make_node("If", ["c"], ["d"], then_branch=branches[0], else_branch=branches[1]))
    with pytest.raises(LoweringError, match=r"the Gelu that writes 'z' is of the custom domain 'com\.microsoft'"):
        graphs.check_model(model)


def test_functions_of_another_operator_set_are_converted():
    model = convolution()
    calls = [helper.make_node("There", ["y"], ["z"], domain="mine"), helper.make_node("Identity", ["z"], ["w2"])]
    body = [helper.make_node("Unsqueeze", ["a"], ["b"], axes=[0]), helper.make_node("Squeeze", ["b"], ["c"], axes=[0])]
    model.graph.node.extend(calls)
    model.opset_import.append(helper.make_opsetid("mine", 1))
    model.functions.append(helper.make_function("mine", "There", ["a"], ["c"], body, [helper.make_opsetid("", 11)]))
    nodes = [node for node in graphs.check_model(model).graph.node if node.op_type != "Constant"]
    assert [(node.op_type, len(node.input)) for node in nodes] == [
        ("Conv", 2),
        ("Unsqueeze", 2),
        ("Squeeze", 2),
        ("Identity", 1),
    ]


def test_functions_of_another_operator_set_take_weights():
    model = convolution()
    body = [helper.make_node("Unsqueeze", ["a"], ["b"], axes=[0]), helper.make_node("Squeeze", ["b"], ["c"], axes=[0])]
    model.graph.node.extend(
        [helper.make_node("There", ["w"], ["v"], domain="mine"), helper.make_node("Relu", ["v"], ["z"])]
    )
    model.opset_import.append(helper.make_opsetid("mine", 1))
    model.functions.append(helper.make_function("mine", "There", ["a"], ["c"], body, [helper.make_opsetid("", 11)]))
    nodes = [node.op_type for node in graphs.check_model(model).graph.node if node.op_type != "Constant"]
    assert nodes == ["Conv", "Unsqueeze", "Squeeze", "Relu"]


def typed(kind):
    found = onnx.ValueInfoProto(name="x")
    form = found.type
    if kind == "sequence":
        form.sequence_type.elem_type.tensor_type.elem_type = TensorProto.FLOAT
    elif kind == "optional":
        form.optional_type.elem_type.tensor_type.elem_type = TensorProto.FLOAT
    elif kind:
        form.CopyFrom(helper.make_tensor_type_proto(getattr(TensorProto, kind), [1, 3, 4, 4]))
    return found


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("sequence", "input 'x' is of type sequence: only tensors of numbers can be shipped"),
        ("optional", "input 'x' is of type optional: only tensors"),
        ("", "input 'x' is of type value of no type"),
        (
            "STRING",
            "input 'x' is a tensor of type STRING: only tensors of BOOL, DOUBLE, FLOAT, FLOAT16, INT16, .* can be shipped",
        ),
        ("BFLOAT16", "input 'x' is a tensor of type BFLOAT16"),
    ],
)
def test_an_input_that_is_no_tensor_of_numbers_is_refused_by_name(kind, message):
    model = convolution()
    model.graph.input[0].CopyFrom(typed(kind))
    with pytest.raises(LoweringError, match=message):
        graphs.check_model(model)


def test_an_output_whose_shape_depends_on_the_data_is_refused():
    model = convolution()
    model.graph.node.append(helper.make_node("NonZero", ["y"], ["found"]))
    model.graph.output.append(helper.make_tensor_value_info("found", TensorProto.INT64, [4, None]))
    with pytest.raises(
        LoweringError, match=r"output 'found' has the shape \(4, .*\), which depends on the data: only fixed shapes"
    ):
        graphs.check_model(model)


def test_an_output_may_lack_its_shape_in_the_file():
    model = convolution()
    model.graph.output[0].type.tensor_type.ClearField("shape")
    assert [dim.dim_value for dim in graphs.check_model(model).graph.output[0].type.tensor_type.shape.dim] == [
        1,
        2,
        4,
        4,
    ]


def test_what_cannot_be_one_message_is_refused(monkeypatch):
    monkeypatch.setattr(graphs, "MAX_BYTES", 50)
    with pytest.raises(
        LoweringError, match="the model takes 0.0 GiB and an ONNX file with its weights inline holds less than 2"
    ):
        graphs.require_inline(convolution())


@pytest.mark.parametrize(
    ("nodes", "weights", "value"),
    [
        (
            [helper.make_node("ConstantOfShape", ["s"], ["c"])],
            {"s": np.array([10**6, 10**6])},
            "'c' of shape (1000000, 1000000) takes 3,725 GiB",
        ),
        (
            [helper.make_node("Expand", ["x", "s"], ["c"])],
            {"s": np.array([10**8, 4, 8, 8])},
            "'c' of shape (100000000, 4, 8, 8) takes 95.37 GiB",
        ),
        (
            [helper.make_node("Tile", ["x", "s"], ["c"])],
            {"s": np.array([1, 10**12, 1, 1])},
            "'c' of shape (1, 4000000000000, 8, 8) takes",
        ),
        (
            [helper.make_node("Range", ["a", "s", "a"], ["c"])],
            {"a": np.array(1), "s": np.array(10**12)},
            "'c' of shape (999999999999) takes",
        ),
    ],
)
def test_values_that_take_terabytes_are_refused_by_name(nodes, weights, value):
    nodes = [*nodes, helper.make_node("Shape", ["c"], ["n"]), helper.make_node("Identity", ["x"], ["y"])]
    with pytest.raises(LoweringError, match=rf"^value {re.escape(value)}.*: values of at most 8 GiB are computed$"):
        made(nodes, weights)
