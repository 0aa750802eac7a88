import pytest
from onnx import TensorProto, checker, helper, load_from_string

from latency import BuildFailed, Lowered
from latency.lowered import overhead_onnx, require_static


def model(shape):
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", values[:1], values[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]).SerializeToString()


def test_the_overhead_is_a_sound_model_of_one_operator():
    made = load_from_string(overhead_onnx())
    checker.check_model(made, full_check=True)
    assert len(made.graph.node) == 1
    require_static(overhead_onnx(), batch=1)


def test_plain_onnx_is_lowered_to_nothing_else():
    both = Lowered(onnx=b"o", program=b"p")
    assert Lowered.of(b"o") == Lowered(onnx=b"o")
    assert Lowered.of(both) is both


def test_a_batch_is_checked_where_asked_for():
    require_static(model((4, 3)))
    with pytest.raises(BuildFailed, match=r"^input 'x' has shape \(4, 3\): the first dimension, the batch, must be 1"):
        require_static(model((4, 3)), batch=1)
    with pytest.raises(BuildFailed, match=r"shape \(\): the first dimension"):
        require_static(model(()), batch=1)


@pytest.mark.parametrize(("shape", "words"), [(("n", 3), r"\(n, 3\)"), ((1, None), r"\(1, \?\)"), (None, r"\(\)")])
def test_a_shape_that_is_not_fixed_is_refused(shape, words):
    with pytest.raises(BuildFailed, match=rf"input 'x' has shape {words}: every dimension must be a fixed number"):
        require_static(model(shape))


def test_what_is_no_onnx_is_refused():
    with pytest.raises(BuildFailed, match="the graph is not an ONNX model"):
        require_static(b"\xff\xff")
