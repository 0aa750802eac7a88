import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from deploy.precision import certified, convert
from unit.deploy.graphs import EYE, HUGE, conv, kinds, made, ops, relu, value

X = np.random.default_rng(0).standard_normal((3, 4, 8, 8)).astype(np.float32)


def test_a_value_that_several_nodes_read_is_cast_once():
    nodes = [
        conv("x", "a"),
        conv("a", "b", "huge"),
        conv("a", "c", "huge"),
        helper.make_node("Sub", ["b", "c"], ["d"], "d"),
        conv("d", "y"),
    ]
    _, certificate = certified(made(nodes, {"w": EYE, "huge": HUGE}).SerializeToString(), X)
    assert (certificate.casts, certificate.islands) == (4, 1)


def test_a_weight_that_both_precisions_read_is_kept_in_both():
    nodes = [
        conv("x", "a"),
        helper.make_node("Mul", ["a", "million"], ["b"], "b"),
        conv("b", "c"),
        helper.make_node("Div", ["c", "million"], ["d"], "d"),
        conv("d", "y"),
    ]
    half, certificate = certified(made(nodes, {"w": EYE, "million": np.float32(1e6)}).SerializeToString(), X)
    types = kinds(onnx.load_from_string(half))
    assert (types["w"], types["w.fp32"], certificate.casts) == (TensorProto.FLOAT16, TensorProto.FLOAT, 4)


def test_an_output_that_is_also_read_within_is_cast_once():
    outputs = [value("b", [1, 4, 8, 8]), value("y", [1, 4, 8, 8])]
    model = made([conv("x", "a"), relu("a", "b"), conv("b", "y")], {"w": EYE}, outputs=outputs)
    half, certificate = convert(model)
    assert (certificate.casts, ops(half).count("Cast")) == (3, 3)
    assert [v.name for v in half.graph.output] == ["b", "y"]


def test_bounds_are_cut_and_infinities_stay():
    clip = helper.make_node("Clip", ["a", "", "top"], ["b"], "b")
    mask = helper.make_node("Add", ["b", "mask"], ["c"], "c")
    half, certificate = convert(
        made(
            [conv("x", "a"), clip, mask, conv("c", "y")],
            {"w": EYE, "top": np.float32(1e9), "mask": np.float32([-np.inf])},
        )
    )
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in half.graph.initializer}
    assert (arrays["top"], arrays["mask"].tolist(), certificate.kept) == (65504, [-np.inf], ())
