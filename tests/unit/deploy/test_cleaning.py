import io

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from deploy import LoweringError, cleaning, sessions
from deploy.cleaning import clean
from deploy.graph import OPSET
from unit.deploy.graphs import made

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
X = np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)
W = np.random.default_rng(1).standard_normal((8, 3, 3, 3)).astype(np.float32)
SHAPE = [1, 3, 8, 8]


def value(name, shape=(1, 3, 8, 8), kind=FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def node(*arguments, **more):
    return helper.make_node(*arguments, **more)


def model(nodes, inputs=None, outputs=None, weights=None, *, opset=17, ir=8, functions=()):
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in (weights or {}).items()]
    graph = helper.make_graph(nodes, "g", inputs or [value("x")], outputs or [value("y")], tensors)
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(each.domain, 1) for each in functions)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir, functions=functions)


def body(name, nodes, outputs, weights=None, inputs=()):
    tensors = [numpy_helper.from_array(np.asarray(array), key) for key, array in (weights or {}).items()]
    return helper.make_graph(nodes, name, list(inputs), outputs, tensors)


CONV = node("Conv", ["x", "w"], ["y"])
Y = value("y", [1, 8, 6, 6])


def cleaned(found, **feeds):
    """The model after, which computes what the one before does."""
    made = clean(found.SerializeToString())
    feeds = feeds or {"x": X}
    before, after = (sessions.run_session(sessions.start_session(data), feeds) for data in (made.original, made.onnx))
    assert list(before) == list(after)
    for name, output in before.items():
        np.testing.assert_allclose(after[name], output, rtol=0, atol=1e-5)
    again = clean(made.onnx)
    assert again.onnx == made.onnx
    return onnx.load_from_string(made.onnx)


def ops(found):
    return [each.op_type for each in found.graph.node]


@pytest.mark.parametrize("weights_first", [True, False])
@pytest.mark.parametrize(("opset", "ir"), [(7, 3), (8, 3), (9, 4), (10, 5), (13, 7)])
def test_old_files_become_new_ones(opset, ir, weights_first):
    listed = [value("w", [8, 3, 3, 3])] if ir < 4 else []
    inputs = [*listed, value("x")] if weights_first else [value("x"), *listed]
    found = cleaned(model([CONV], inputs, [Y], {"w": W}, opset=opset, ir=ir))
    assert (found.ir_version, [(entry.domain, entry.version) for entry in found.opset_import]) == (10, [("", 20)])
    assert [each.name for each in found.graph.input] == ["x"]


def test_a_newer_operator_set_stays():
    found = cleaned(model([CONV], None, [Y], {"w": W}, opset=23, ir=11))
    assert [entry.version for entry in found.opset_import] == [23]


def test_the_standard_domain_has_one_name_and_others_are_forgotten():
    found = model([node("Relu", ["x"], ["y"], domain="ai.onnx")])
    found.opset_import[0].domain = "ai.onnx"
    found.opset_import.append(helper.make_opsetid("ai.onnx.ml", 2))
    made = onnx.load_from_string(clean(found.SerializeToString()).onnx)
    assert [(entry.domain, entry.version) for entry in made.opset_import] == [("", 20)]
    assert [each.domain for each in made.graph.node] == [""]


def test_what_onnx_converts_wrongly_stays_as_it_came():
    scales = {"scales": np.float32([1, 1, 2, 2])}
    resize = node(
        "Resize", ["x", "scales"], ["y"], mode="linear"
    )  # asymmetric before version 11, which the converter forgets
    made = clean(model([resize], None, [value("y", [1, 3, 16, 16])], scales, opset=10, ir=5).SerializeToString())
    assert onnx.load_from_string(made.onnx).opset_import[0].version == 10
    assert made.facts == {"opset": "10, as it came: onnx cannot raise it to 20: output 'y' would change"}


def test_what_onnx_cannot_convert_stays_as_it_came(monkeypatch):
    def refuse(*_):
        raise onnx.version_converter.ConvertError("no adapter for Conv")

    monkeypatch.setattr(onnx.version_converter, "convert_version", refuse)
    made = clean(model([CONV], None, [Y], {"w": W}).SerializeToString())
    assert made.facts == {"opset": "17, as it came: onnx cannot raise it to 20: no adapter for Conv"}


@pytest.mark.parametrize(
    "constant",
    [
        {"value": numpy_helper.from_array(np.arange(8, dtype=np.float32))},
        {"value_float": 2.0},
        {"value_floats": [float(i) for i in range(8)]},
        {
            "sparse_value": helper.make_sparse_tensor(
                helper.make_tensor("v", FLOAT, [1], [3.0]), helper.make_tensor("i", INT64, [1], [2]), [8]
            )
        },
    ],
)
def test_constants_are_initializers(constant):
    found = cleaned(model([node("Constant", [], ["c"], **constant), node("Mul", ["x", "c"], ["y"])]))
    assert ops(found) == ["Mul"]
    assert [tensor.name for tensor in found.graph.initializer] == ["c"]


@pytest.mark.parametrize("indices", [[0, 5, 215], [[0, 0, 0, 0], [0, 1, 2, 2], [7, 2, 2, 2]]])
def test_sparse_initializers_are_dense(indices):
    found = model([CONV], None, [Y])
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(np.float32([1, 2, 3]), "w"),
        numpy_helper.from_array(np.asarray(indices), "i"),
        [8, 3, 3, 3],
    )
    found.graph.sparse_initializer.append(sparse)
    (weight,) = cleaned(found).graph.initializer
    assert numpy_helper.to_array(weight)[7, 2, 2, 2] == 3


@pytest.mark.parametrize("indices", [[0, 5, 216], [-1, 5, 6], [[0, 0, 0, 3], [0, 1, 2, 2], [7, 2, 2, 2]], [0, 1]])
def test_a_sparse_tensor_with_indices_outside_is_refused(indices):
    found = model([CONV], None, [Y])
    sparse = found.graph.sparse_initializer.add(dims=[8, 3, 3, 3])
    sparse.values.CopyFrom(numpy_helper.from_array(np.float32([1, 2, 3]), "w"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.asarray(indices), "i"))
    with pytest.raises(
        LoweringError, match="sparse tensor 'w' of shape .* has indices outside of it, or not one for each value"
    ):
        clean(found.SerializeToString())


def test_a_sparse_tensor_whose_indices_are_no_integers_is_refused():
    sparse = onnx.SparseTensorProto(dims=[8, 3, 3, 3])
    sparse.values.CopyFrom(numpy_helper.from_array(np.float32([1])))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.float32([1])))
    constant = node("Constant", [], ["w"], sparse_value=sparse)
    with pytest.raises(LoweringError, match="sparse tensor 'w' has no values of numbers with indices of INT64"):
        clean(model([constant, CONV], None, [Y]).SerializeToString())


@pytest.mark.parametrize("read", [True, False])
def test_an_output_that_is_an_initializer_is_written_by_a_node(read):
    nodes = [node("Add" if read else "Relu", ["x", "anchors"][: 1 + read], ["y"])]
    found = cleaned(
        model(nodes, None, [value("y"), value("anchors", [8])], {"anchors": np.arange(8, dtype=np.float32)})
    )
    assert [each.name for each in found.graph.output] == ["y", "anchors"]
    assert ops(found)[-1] == "Identity"
    assert "anchors" not in {tensor.name for tensor in found.graph.initializer}


def test_networks_without_nodes_or_inputs_and_unused_inputs_stay_what_they_are():
    assert ops(cleaned(model([], None, [value("x")]))) == []
    constant = node("Constant", [], ["y"], value=numpy_helper.from_array(X))
    assert ops(cleaned(model([constant]))) == ["Identity"]
    assert [each.name for each in cleaned(model([constant], [value("x"), value("z")]), x=X, z=X).graph.input] == [
        "x",
        "z",
    ]


def test_what_follows_from_constants_is_computed_and_what_nothing_reads_is_gone():
    weights = {"w": np.ones((16, 8), np.float32), "i": np.array(0), "axes": np.array([0]), "rest": np.array([-1])}
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "i"], ["b"], axis=0),
        node("Unsqueeze", ["b", "axes"], ["b1"]),
        node("Concat", ["b1", "rest"], ["to"], axis=0),
        node("Reshape", ["x", "to"], ["flat"]),
        node("Transpose", ["w"], ["wt"], perm=[1, 0]),
        node("MatMul", ["x", "wt"], ["y"]),
        node("Relu", ["flat"], ["dead"]),
    ]
    found = cleaned(model(nodes, None, [value("y", [1, 3, 8, 16]), value("flat", [1, 192])], weights))
    assert ops(found) == ["Reshape", "MatMul"]


def test_fractions_of_shapes_stay_fractions():
    weights = {"2": np.array([2]), "4": np.array([4]), "0": np.array([0]), "1.5": np.float32(1.5)}
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Slice", ["s", "2", "4"], ["hw"]),
        node("Cast", ["hw"], ["f"], to=FLOAT),
        node("Mul", ["f", "1.5"], ["f2"]),
        node("Cast", ["f2"], ["to"], to=INT64),
        node("Slice", ["s", "0", "2"], ["nc"]),
        node("Concat", ["nc", "to"], ["sizes"], axis=0),
        node("Resize", ["x", "", "", "sizes"], ["y"], mode="nearest"),
    ]
    assert ops(cleaned(model(nodes, None, [value("y", [1, 3, 12, 12])], weights))) == ["Resize"]


def test_a_constant_that_would_be_large_is_not_computed():
    weights = {"one": np.float32([1]), "sizes": np.array([1000, 1000])}
    nodes = [
        node("Expand", ["one", "sizes"], ["e"]),
        node("ReduceMax", ["e"], ["m"], keepdims=0),
        node("Add", ["x", "m"], ["y"]),
    ]
    made = clean(model(nodes, None, None, weights).SerializeToString()).onnx
    assert ops(onnx.load_from_string(made)) == ["Expand", "ReduceMax", "Add"]
    assert len(made) < 10_000


def test_random_numbers_are_not_frozen():
    random = node("RandomNormal", [], ["r"], shape=SHAPE)
    found = clean(model([random, node("Add", ["x", "r"], ["y"])]).SerializeToString())
    assert "RandomNormal" in ops(onnx.load_from_string(found.onnx))


def test_quantised_weights_stay_quantised():
    weights = {"s": np.float32(0.05), "z": np.int8(0), "q": np.ones((8, 3, 3, 3), np.int8)}
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        node("DequantizeLinear", ["q", "s", "z"], ["w"]),
        node("Conv", ["xd", "w"], ["y"]),
    ]
    found = cleaned(model(nodes, None, [Y], weights, opset=13, ir=7))
    assert ops(found) == ["QuantizeLinear", "DequantizeLinear", "DequantizeLinear", "Conv"]


def branches(kind):
    if kind == "nodes":
        return body("t", [node("Relu", ["x"], ["a"])], [value("a")]), body(
            "e", [node("Neg", ["x"], ["b"])], [value("b")]
        )
    if kind == "constants":
        constant = node("Constant", [], ["b"], value=numpy_helper.from_array(np.float32([4, 5, 6])))
        return body("t", [], [value("a", [3])], {"a": np.float32([1, 2, 3])}), body("e", [constant], [value("b", [3])])
    axes = {"axes": [0]}  # attributes until operator set 12
    there = [node("Unsqueeze", ["x"], ["a"], **axes), node("Squeeze", ["a"], ["b"], **axes)]
    return body("t", there, [value("b")]), body("e", [node("Neg", ["x"], ["d"])], [value("d")])


@pytest.mark.parametrize("kind", ["nodes", "constants", "old operators"])
@pytest.mark.parametrize("constant", [True, False])
def test_branches_are_cleaned_and_the_known_one_is_taken(kind, constant):
    then, other = branches(kind)
    condition = [] if constant else [node("ReduceMax", ["x"], ["m"], keepdims=0), node("Greater", ["m", "zero"], ["c"])]
    weights = {"zero": np.float32(0)} | ({"c": np.array(True)} if constant else {})
    out = value("y", [3] if kind == "constants" else SHAPE)
    chosen = node("If", ["c"], ["y"], then_branch=then, else_branch=other)
    made = clean(model([*condition, chosen], None, [out], weights, opset=11, ir=6).SerializeToString())
    before, after = (
        sessions.run_session(sessions.start_session(data), {"x": X}) for data in (made.original, made.onnx)
    )
    np.testing.assert_array_equal(before["y"], after["y"])
    assert ("If" in ops(onnx.load_from_string(made.onnx))) is not constant


def test_loops_stay():
    inputs = [value("i", [], INT64), value("on", [], BOOL), value("sum")]
    loop = body("b", [node("Add", ["sum", "x"], ["next"])], [value("on", [], BOOL), value("next")], inputs=inputs)
    found = model(
        [node("Loop", ["times", "on0", "x"], ["y"], body=loop)], weights={"times": np.array(3), "on0": np.array(True)}
    )
    assert ops(cleaned(found)) == ["Loop"]


def test_local_functions_are_inlined():
    inner = node("LeakyRelu", ["a"], ["b"])
    inner.attribute.append(onnx.AttributeProto(name="alpha", ref_attr_name="slope", type=onnx.AttributeProto.FLOAT))
    function = helper.make_function("mine", "Act", ["a"], ["b"], [inner], [helper.make_opsetid("", 17)], ["slope"])
    assert ops(cleaned(model([node("Act", ["x"], ["y"], domain="mine", slope=0.3)], functions=[function]))) == [
        "LeakyRelu"
    ]


def test_strings_and_sequences_within_are_kept():
    casts = [node("Cast", ["x"], ["s"], to=TensorProto.STRING), node("Cast", ["s"], ["y"], to=FLOAT)]
    assert ops(cleaned(model(casts))) == ["Cast", "Cast"]
    text = [
        node("Constant", [], ["s"], value_strings=["1.5"] * 8),
        node("Cast", ["s"], ["c"], to=FLOAT),
        node("Add", ["x", "c"], ["y"]),
    ]
    assert ops(cleaned(model(text))) == ["Cast", "Add"]
    parts = [node("SplitToSequence", ["x"], ["q"], axis=1), node("SequenceAt", ["q", "i"], ["y"])]
    assert ops(cleaned(model(parts, None, [value("y", [1, 1, 8, 8])], {"i": np.array(1)}))) == [
        "SplitToSequence",
        "SequenceAt",
    ]


def test_every_node_has_a_name_of_its_own():
    nodes = [node("Relu", ["x"], ["a"], name="n"), node("Neg", ["a"], ["b"], name="n"), node("Abs", ["b"], ["y"])]
    made = onnx.load_from_string(clean(model(nodes).SerializeToString()).onnx)
    names = [each.name for each in made.graph.node]
    assert names[0] == "n"
    assert len({*names, ""}) == 4


def test_names_with_colons_and_slashes_are_kept():
    found = model(
        [node("Conv", ["input_1:0", "conv/kernel:0"], ["Identity:0"])],
        [value("input_1:0")],
        [value("Identity:0", [1, 8, 6, 6])],
    )
    found.graph.initializer.append(numpy_helper.from_array(W, "conv/kernel:0"))
    made = cleaned(found, **{"input_1:0": X})
    assert [each.name for each in (*made.graph.input, *made.graph.output)] == ["input_1:0", "Identity:0"]


def test_dynamic_shapes_are_fixed_before_and_after():
    found = model([CONV], [value("x", ["n", 3, "h", "w"])], [value("y", ["n", 8, None, None])], {"w": W})
    made = clean(found.SerializeToString(), {"x": (1, 3, 8, 8)})
    for data in (made.original, made.onnx):
        assert [dim.dim_value for dim in onnx.load_from_string(data).graph.input[0].type.tensor_type.shape.dim] == SHAPE
    with pytest.raises(LoweringError, match="input 'x' has a dynamic shape .*--shape x=1x3x224x224"):
        clean(found.SerializeToString())


def test_the_original_is_what_came():
    data = model([CONV], [value("x"), value("w", [8, 3, 3, 3])], [Y], {"w": W}, opset=8, ir=3).SerializeToString()
    assert clean(data).original == data


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Linear(8 * 16 * 16, 5)

    def forward(self, x):
        x = torch.relu(self.norm(self.conv(x)))
        x = nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")
        return torch.softmax(self.head(x.flatten(1)), -1)


@pytest.mark.filterwarnings("ignore")  # the old exporter's, about itself
@pytest.mark.parametrize("opset", [9, 11, 17])
def test_files_of_the_old_exporter_of_torch(opset):
    stream = io.BytesIO()
    old = {"dynamo": False, "do_constant_folding": False, "keep_initializers_as_inputs": opset < 11}
    torch.onnx.export(
        Network().eval(), (torch.zeros(1, 3, 8, 8),), stream, opset_version=opset, input_names=["x"], **old
    )
    found = onnx.load_from_string(clean(stream.getvalue()).onnx)
    assert found.opset_import[0].version == cleaning.OPSET
    assert not {"Shape", "Constant", "Identity"} & set(ops(found))


@pytest.mark.filterwarnings("error")
def test_outputs_that_are_not_numbers_do_not_keep_an_old_operator_set():
    model = made([helper.make_node("Sqrt", ["x"], ["y"])], opset=17)
    cleaned = clean(model.SerializeToString())
    assert cleaned.facts == {}
    assert onnx.load_from_string(cleaned.onnx).opset_import[0].version == OPSET
