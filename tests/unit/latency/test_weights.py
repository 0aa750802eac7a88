import hashlib

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from latency import BuildFailed
from latency.weights import fill_weights, filled, strip_weights


def model(*tensors: onnx.TensorProto) -> onnx.ModelProto:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("input", "output")]
    nodes = [helper.make_node("Conv", ["input", tensor.name], [f"read {tensor.name}"]) for tensor in tensors]
    nodes.append(helper.make_node("Relu", ["input"], ["output"]))
    return helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:], initializer=list(tensors)))


def tensor(name: str, values: np.ndarray) -> onnx.TensorProto:
    return numpy_helper.from_array(values, name)


def made(*shapes: tuple[int, ...], dtype: type = np.float32) -> list[np.ndarray]:
    found = model(*(tensor(str(index), np.ones(shape, dtype)) for index, shape in enumerate(shapes)))
    fill_weights(found)
    return [numpy_helper.to_array(each) for each in found.graph.initializer]


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_weights_have_the_variance_of_one_over_the_fan_in(dtype):
    (weight,) = made((64, 32, 3, 3), dtype=dtype)
    assert (weight.dtype, weight.shape) == (dtype, (64, 32, 3, 3))
    assert weight.astype(float).std() * (32 * 9) ** 0.5 == pytest.approx(1, rel=0.05)
    assert abs(weight.astype(float).mean()) * (32 * 9) ** 0.5 < 0.05


def test_no_two_filters_and_no_two_weights_are_equal():
    first, second = made((512, 256), (512, 256))
    assert len(np.unique(first, axis=0)) == 512
    assert not np.array_equal(first, second)


def test_the_numbers_are_a_promise_to_other_machines():
    """Bundles hold no weights: these bytes must come out everywhere, always."""
    (weight,) = made((300, 300))
    assert weight[0, :3].tolist() == pytest.approx([0.0097627, 0.0430379, 0.0205527], rel=1e-5)
    assert hashlib.sha256(weight.tobytes()).hexdigest()[:16] == "31e6c5a3c8f9f5c7"


def test_shapes_and_scalars_are_no_weights():
    kept = [tensor("shape", np.array([1, 10], np.int64)), tensor("scalar", np.array(0.5, np.float32))]
    found = model(*kept)
    strip_weights(found)
    fill_weights(found)
    assert list(found.graph.initializer) == kept


def test_what_was_stripped_is_filled_with_the_same_bytes():
    found = model(tensor("weight", np.ones((16, 3, 3, 3), np.float32)), tensor("bias", np.ones(16, np.float16)))
    fill_weights(found)
    whole = found.SerializeToString(deterministic=True)
    strip_weights(found)
    graph = found.SerializeToString(deterministic=True)
    assert len(graph) < len(whole) / 5
    assert [list(each.dims) for each in found.graph.initializer] == [[16, 3, 3, 3], [16]]
    assert filled(graph) == whole


def test_a_graph_that_is_none_cannot_be_built():
    with pytest.raises(BuildFailed, match="the graph is not an ONNX model"):
        filled(b"garbage\0")


@pytest.mark.parametrize(
    ("dims", "words"),
    [
        ([2**20, 2**20], "tensor 'w' declares the shape .*, 4,096 GiB: a model has less than 2 GiB"),
        ([2**62, 2**62], "tensor 'w' declares the shape .* GiB: a model has less than 2 GiB"),
        ([4, -1], r"tensor 'w' has the shape \[4, -1\]: no dimension may be negative"),
    ],
)
def test_weights_that_claim_terabytes_are_not_drawn(dims, words):
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", ends[:1], ends[1:], [weight])
    with pytest.raises(BuildFailed, match=words):
        filled(helper.make_model(graph).SerializeToString())


def initializers(nodes, *tensors, outputs=("output",)):
    """What `fill_weights` makes of the initializers of a graph."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("input", *outputs)]
    found = helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:], initializer=list(tensors)))
    fill_weights(found)
    return {each.name: numpy_helper.to_array(each) for each in found.graph.initializer}


@pytest.mark.parametrize(
    ("op", "place"),
    [
        ("Resize", 2),
        ("Clip", 1),
        ("Div", 1),
        ("Pow", 1),
        ("Pad", 2),
        ("BatchNormalization", 4),
        ("QuantizeLinear", 1),
        ("Where", 1),
    ],
)
def test_a_constant_that_is_not_read_as_a_weight_keeps_its_numbers(op, place):
    numbers = np.array([1.0, 1.0, 2.0, 2.0], np.float32)
    inputs = ["input", *[f"other{k}" for k in range(1, 5)]]
    inputs[place] = "constant"
    found = initializers([helper.make_node(op, inputs[: max(3, place + 1)], ["output"])], tensor("constant", numbers))
    assert found["constant"].tolist() == numbers.tolist()


def test_a_weight_is_one_through_what_only_forwards_it():
    ones = np.ones((4, 4), np.float32)
    through = [
        helper.make_node("Transpose", ["w"], ["t"]),
        helper.make_node("Cast", ["t"], ["c"], to=TensorProto.FLOAT),
    ]
    assert (
        np.ptp(initializers([*through, helper.make_node("MatMul", ["input", "c"], ["output"])], tensor("w", ones))["w"])
        > 0
    )
    assert (
        initializers([*through, helper.make_node("Div", ["input", "c"], ["output"])], tensor("w", ones))["w"].tolist()
        == ones.tolist()
    )


@pytest.mark.parametrize("op", ["Gather", "MatMul", "Gemm", "Einsum"])
def test_a_constant_that_another_one_is_computed_from_keeps_its_numbers(op):
    """Its reader is one of weights, but the outcome is read as the scales of a resize."""
    numbers = np.array([[1.0, 1.0, 2.0, 2.0]] * 2, np.float32)
    nodes = [
        helper.make_node("Constant", [], ["other"], value_int=0),
        helper.make_node(op, ["constant", "other"], ["scales"]),
        helper.make_node("Resize", ["input", "", "scales"], ["output"]),
    ]
    assert initializers(nodes, tensor("constant", numbers))["constant"].tolist() == numbers.tolist()


def test_a_weight_that_something_else_reads_too_keeps_its_numbers():
    ones = np.ones((4, 4), np.float32)
    both = [helper.make_node("MatMul", ["input", "w"], ["output"]), helper.make_node("Sqrt", ["w"], ["root"])]
    assert initializers(both, tensor("w", ones))["w"].tolist() == ones.tolist()
    alone = both[:1]
    assert initializers(alone, tensor("w", ones), outputs=("output", "w"))["w"].tolist() == ones.tolist()
    body = helper.make_graph([helper.make_node("Identity", ["w"], ["in body"])], "body", [], [])
    branch = helper.make_node("If", ["input"], ["chosen"], then_branch=body, else_branch=body)
    assert initializers([*alone, branch], tensor("w", ones))["w"].tolist() == ones.tolist()


def test_a_constant_without_numbers_is_refused_by_name():
    """Earlier versions stripped it as a weight."""
    scales = TensorProto(name="scales", data_type=TensorProto.FLOAT, dims=[4])
    with pytest.raises(
        BuildFailed,
        match=r"^constant 'scales' is not a weight and has no numbers: write the bundle again with `lathe bundle`$",
    ):
        initializers([helper.make_node("Resize", ["input", "", "scales"], ["output"])], scales)
