import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from latency.errors import FileError
from latency.onnxproto import MAX_NODES, decode_onnx, describe, is_external, named, tensors

OPSET = helper.make_opsetid("", 20)


def value(name, shape=(1, 3)):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def model(*nodes, weights=(), functions=()):
    graph = helper.make_graph(
        nodes or [helper.make_node("Relu", ["x"], ["y"])], "g", [value("x")], [value("y")], list(weights)
    )
    opsets = [OPSET, *([helper.make_opsetid("local", 1)] if functions else [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=functions)


def external(name="w"):
    found = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[3], data_location=TensorProto.EXTERNAL)
    found.external_data.add(key="location", value="weights.bin")
    return found


def branch(*nodes, weights=()):
    return helper.make_graph(list(nodes), "branch", [], [value("z")], list(weights))


def constant(tensor):
    return helper.make_node("Constant", [], ["c"], value=tensor)


def sparse(tensor, dims=(3,), indices=(0, 1, 2)):
    return helper.make_sparse_tensor(tensor, numpy_helper.from_array(np.asarray(indices, np.int64), "i"), dims)


def everywhere():
    """A model for each place where ONNX has a tensor, with one there that is in another file."""
    yield "initializer", model(weights=[external()])
    with_sparse = model()
    with_sparse.graph.sparse_initializer.append(sparse(external()))
    yield "sparse initializer", with_sparse
    yield "Constant", model(constant(external("")))
    yield "sparse Constant", model(helper.make_node("Constant", [], ["c"], sparse_value=sparse(external(""))))
    yield "attribute of any node", model(helper.make_node("ConstantOfShape", ["x"], ["y"], value=external("")))
    inner = helper.make_node("If", ["a"], ["z"], then_branch=branch(constant(external(""))), else_branch=branch())
    yield "nested bodies", model(helper.make_node("Loop", ["n"], ["y"], body=branch(inner)))
    yield "initializer of a body", model(helper.make_node("If", ["a"], ["y"], then_branch=branch(weights=[external()])))
    function = helper.make_function("local", "F", ["a"], ["b"], [constant(external(""))], [OPSET])
    yield "function", model(functions=[function])
    default = helper.make_function("local", "F", ["a"], ["b"], [], [OPSET])
    default.attribute_proto.append(helper.make_attribute("value", external("")))
    yield "default of a function's attribute", model(functions=[default])
    training = model()
    training.training_info.add().algorithm.initializer.append(external())
    yield "training", training


@pytest.mark.parametrize(("place", "found"), list(everywhere()))
def test_a_tensor_is_found_wherever_onnx_has_one(place, found):
    decoded = decode_onnx(found.SerializeToString(), "it")
    outside = [named(tensor, owner) for owner, tensor in tensors(decoded) if is_external(tensor)]
    assert len(outside) == 1
    assert outside[0] == "tensor 'w'" or "of" in outside[0]


def test_a_node_is_described_by_its_name_or_by_what_it_writes():
    assert describe(helper.make_node("Relu", ["x"], ["y"], "first")) == "node 'first' (Relu)"
    assert describe(helper.make_node("Split", ["x"], ["", "y"])) == "the Split that writes 'y'"


def declared(kind, dims, **data):
    return TensorProto(name="w", data_type=getattr(TensorProto, kind), dims=dims, **data)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (
            declared("FLOAT", [2**20, 2**20], raw_data=b"1234"),
            "'w' declares the shape .* of FLOAT, 4,096 GiB, and holds 4 bytes",
        ),
        (declared("FLOAT", [2**20, 2**20]), r"'w' declares the shape .*, 4,096 GiB: a model has less than 2 GiB"),
        (
            declared("FLOAT", [3], float_data=[1.0, 2.0]),
            r"declares the shape \[3\] of FLOAT, 12 bytes, and holds 2 values",
        ),
        (declared("INT4", [3], raw_data=b"123"), r"declares the shape \[3\] of INT4, 2 bytes, and holds 3 bytes"),
        (declared("STRING", [2], string_data=[b"a"]), "and holds 1 values"),
        (declared("FLOAT", [-1], raw_data=b""), r"has the shape \[-1\]: no dimension may be negative"),
        (
            TensorProto(name="w", data_type=99, dims=[1], raw_data=b"1"),
            "has the type 99, which this version of ONNX does not know",
        ),
    ],
)
def test_a_tensor_holds_what_it_declares(tensor, message):
    with pytest.raises(FileError, match=message):
        decode_onnx(model(weights=[tensor]).SerializeToString(), "it")


@pytest.mark.parametrize(
    "kind", ["FLOAT", "FLOAT16", "BFLOAT16", "INT4", "UINT8", "BOOL", "INT64", "DOUBLE", "COMPLEX64", "STRING"]
)
@pytest.mark.parametrize("raw", [True, False])
def test_every_form_of_a_tensor_is_read(kind, raw):
    if kind == "STRING":
        tensor = helper.make_tensor("w", TensorProto.STRING, [3], [b"a", b"b", b"c"])
    else:
        number = getattr(TensorProto, kind)
        array = np.ones(3, helper.tensor_dtype_to_np_dtype(number))
        tensor = numpy_helper.from_array(array, "w") if raw else helper.make_tensor("w", number, [3], array.tolist())
    decode_onnx(model(weights=[tensor]).SerializeToString(), "it")


def test_weights_may_be_absent_from_a_graph_without_weights_but_not_without_bounds():
    stripped = model(weights=[declared("FLOAT", [3, 4])]).SerializeToString()
    decode_onnx(stripped, "it", weights=False)
    with pytest.raises(FileError, match="holds 0 values"):
        decode_onnx(stripped, "it")
    terabytes = [declared("FLOAT", [2**28]), TensorProto(name="v", data_type=1, dims=[2**28])]
    with pytest.raises(FileError, match="'v' declares the shape .* 1 GiB: a model has less than 2 GiB"):
        decode_onnx(model(weights=terabytes).SerializeToString(), "it", weights=False)


def test_a_sparse_tensor_is_bounded_by_its_dense_size():
    found = model()
    found.graph.sparse_initializer.append(sparse(numpy_helper.from_array(np.ones(3, np.float32), "w"), [2**20, 2**20]))
    with pytest.raises(
        FileError, match=r"it: sparse tensor 'w' of shape .* is 4,096 GiB when dense: a model has less than 2 GiB"
    ):
        decode_onnx(found.SerializeToString(), "it")


def doubling(depth):
    """Local functions of which each calls the one before twice."""
    functions = [helper.make_function("local", "F0", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], [OPSET])]
    for i in range(1, depth):
        calls = [
            helper.make_node(f"F{i - 1}", [read], [written], domain="local")
            for read, written in (("a", "c"), ("c", "b"))
        ]
        functions.append(
            helper.make_function("local", f"F{i}", ["a"], ["b"], calls, [OPSET, helper.make_opsetid("local", 1)])
        )
    return model(
        helper.make_node(f"F{depth - 1}", ["x"], ["y"], domain="local"), functions=functions
    ).SerializeToString()


def test_functions_that_double_are_counted_before_they_are_inlined():
    decode_onnx(doubling(10), "it")
    data = doubling(40)
    assert len(data) < 5000
    with pytest.raises(
        FileError,
        match=f"it has 549,755,813,888 nodes with its local functions inlined, and at most {MAX_NODES:,} are read",
    ):
        decode_onnx(data, "it")


def test_functions_that_call_in_circles_or_too_deep_are_refused():
    call = helper.make_node("F", ["a"], ["b"], domain="local")
    function = helper.make_function("local", "F", ["a"], ["b"], [call], [OPSET])
    with pytest.raises(FileError, match="local function 'F' calls itself, which ONNX does not allow"):
        decode_onnx(model(call, functions=[function]).SerializeToString(), "it")
    with pytest.raises(FileError, match="local functions are nested 65 deep, and at most 64 are read"):
        decode_onnx(doubling(100), "it")


def test_bodies_are_nested_as_deep_as_protobuf_allows():
    # A body is two messages within its node's: written by hand, as the library refuses to write it.
    def field(number, content):
        length, size = b"", len(content)
        while size > 127:
            length, size = length + bytes([size & 127 | 128]), size >> 7
        return bytes([number << 3 | 2]) + length + bytes([size]) + content

    graph = b""
    for _ in range(60):
        graph = field(1, field(5, field(6, graph)))
    with pytest.raises(FileError, match="its graphs are nested deeper than protobuf allows"):
        decode_onnx(field(7, graph), "it")


@pytest.mark.parametrize("data", [b"", b"\xff\xff nothing", onnx.ModelProto().SerializeToString()])
def test_what_is_no_model_is_said(data):
    with pytest.raises(FileError, match="^it is not an ONNX model: it "):
        decode_onnx(data, "it")


def test_names_are_text():
    data = model(helper.make_node("Relu", ["x"], ["y"], "AAAA")).SerializeToString().replace(b"AAAA", b"\xff\xfeAA")
    with pytest.raises(FileError, match="it is damaged: the name b'.*AA' is not UTF-8"):
        decode_onnx(data, "it")


def test_a_file_beyond_protobuf_is_not_parsed(monkeypatch):
    monkeypatch.setattr("latency.onnxproto.MAX_BYTES", 10)
    with pytest.raises(FileError, match="an ONNX model has less than 2 GiB, larger weights are in a file beside it"):
        decode_onnx(model().SerializeToString(), "it")
