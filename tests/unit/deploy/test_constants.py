import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploy import precision
from deploy.precision import certified
from unit.deploy.graphs import EYE, conv, difference, made, relu, value

X = np.random.default_rng(0).standard_normal((3, 4, 8, 8)).astype(np.float32)
TINY = np.float32([1, 1e-8, 1, 1]).reshape(4, 1, 1)
ONES, ZEROS = np.ones(4, np.float32), np.zeros(4, np.float32)
AXES = np.int64([1])


def node(op, read, name, **attributes):
    return helper.make_node(op, read, [name], name, **attributes)


def quantise(x, y):
    scale = ["scale", "zero"]
    return [
        node("QuantizeLinear", [x, *scale], f"{y}.q", axis=1),
        node("DequantizeLinear", [f"{y}.q", *scale], y, axis=1),
    ]


MATTERS = {
    "a divisor": (
        [node("Div", ["x", "k"], "y")],
        {"k": TINY},
        X * TINY,
        "y",
    ),
    "a factor and the divisor that takes it back": (
        [conv("x", "a"), node("Mul", ["a", "k"], "b"), relu("b", "c"), node("Div", ["c", "k"], "d"), conv("d", "y")],
        {"w": EYE, "k": TINY},
        X,
        "bcd",
    ),
    "a product of factors none of which is lost": (
        [node("Mul", ["x", "k"], "a"), node("Mul", ["a", "k"], "b"), node("Div", ["b", "t"], "c"), conv("c", "y")],
        {"w": EYE, "k": np.float32(1e-4), "t": np.float32(1e-8)},
        X,
        "bc",
    ),
    "a variance": (
        [
            conv("x", "a"),
            node("BatchNormalization", ["a", "one", "zero", "zero", "var"], "b", epsilon=1e-11),
            conv("b", "y"),
        ],
        {"w": EYE, "one": ONES, "zero": ZEROS, "var": np.float32([1, 1e-8, 1, 1])},
        X * np.float32([1, 1e-4, 1, 1]).reshape(4, 1, 1),
        "b",
    ),
    "a guard by Clip": (
        [
            node("ReduceL2", ["x", "axes"], "a"),
            node("Clip", ["a", "k"], "b"),
            node("Div", ["x", "b"], "c"),
            node("Add", ["c", "one"], "y"),
        ],
        {"axes": AXES, "k": np.float32(1e-12), "one": np.float32(1)},
        np.concatenate([X[:1], 0 * X[:1]]),
        "abc",
    ),
    "a guard within a root, and the squares before it": (
        [
            conv("x", "p"),
            node("Mul", ["p", "p"], "a"),
            node("ReduceMean", ["a", "axes"], "b"),
            node("Add", ["b", "k"], "c"),
            node("Sqrt", ["c"], "d"),
            node("Div", ["p", "d"], "e"),
            conv("e", "y"),
        ],
        {"w": EYE, "axes": AXES, "k": np.float32(1e-12)},
        X * 1e-4,
        "abcde",
    ),
    "squares without a guard": (
        [
            node("Mul", ["x", "x"], "a"),
            node("ReduceSum", ["a", "axes"], "b"),
            node("Sqrt", ["b"], "c"),
            node("Div", ["x", "c"], "y"),
        ],
        {"axes": AXES},
        X * 1e-4,
        "abcy",
    ),
    "a logarithm": (
        [
            conv("x", "a"),
            node("Softmax", ["a"], "b", axis=1),
            node("Add", ["b", "k"], "c"),
            node("Log", ["c"], "d"),
            conv("d", "y"),
        ],
        {"w": EYE, "k": np.float32([1e-9])},
        10 * X,
        "bcd",
    ),
    "a factor of a divisor": (
        [
            conv("x", "a"),
            node("Exp", ["a"], "b"),
            node("Mul", ["b", "k"], "c"),
            node("Reciprocal", ["c"], "d"),
            node("Mul", ["d", "k"], "y"),
        ],
        {"w": EYE, "k": TINY},
        X,
        "bcdy",
    ),
    "factors of both sides of a division": (
        [
            conv("x", "a"),
            node("Mul", ["a", "k"], "b"),
            node("Sigmoid", ["a"], "c"),
            node("Mul", ["c", "k"], "d"),
            node("Div", ["b", "d"], "e"),
            conv("e", "y"),
        ],
        {"w": EYE, "k": TINY},
        X,
        "bcde",
    ),
    "what is compared": (
        [
            conv("x", "a"),
            relu("a", "b"),
            node("Less", ["b", "k"], "c"),
            node("Where", ["c", "one", "b"], "d"),
            conv("d", "y"),
        ],
        {"w": EYE, "k": TINY, "one": np.float32(1)},
        X,
        "c",
    ),
    "a sign": (
        [conv("x", "a"), relu("a", "b"), node("Sub", ["b", "k"], "c"), node("Sign", ["c"], "d"), conv("d", "y")],
        {"w": EYE, "k": np.float32(1e-8)},
        X,
        "cd",
    ),
    "the base of a power": (
        [conv("x", "a"), node("Sigmoid", ["a"], "b"), node("Pow", ["k", "b"], "c"), conv("c", "y")],
        {"w": EYE, "k": TINY.repeat(8, 1) * np.float32([0.01, 1, 1, 1]).reshape(4, 1, 1)},
        X - 4,
        "c",
    ),
    "a logarithm of a sum": (
        [
            conv("x", "a"),
            node("Exp", ["a"], "b"),
            node("ReduceLogSum", ["b", "axes"], "c"),
            node("Add", ["c", "x"], "d"),
            conv("d", "y"),
        ],
        {"w": EYE, "axes": AXES},
        X - 20,
        "bc",
    ),
    "weights of a layer before a norm": (
        [
            conv("x", "a"),
            node("InstanceNormalization", ["a", "one", "zero"], "b", epsilon=1e-20),
            conv("b", "y", "eye"),
        ],
        {"w": EYE * np.float32([1, 1e-9, 1, 1]).reshape(4, 1, 1, 1), "eye": EYE, "one": ONES, "zero": ZEROS},
        X,
        "ab",
    ),
}


@pytest.mark.parametrize("kind", MATTERS)
def test_a_lost_constant_that_matters_keeps_exactly_what_it_matters_to(kind, monkeypatch):
    nodes, weights, samples, kept = MATTERS[kind]
    model = made(nodes, weights).SerializeToString()
    half, certificate = certified(model, samples)
    assert [one.node for one in certificate.kept if not one.reason.startswith("between")] == list(kept)
    assert difference(model, half, samples) < 5e-3
    monkeypatch.setattr(precision, "keep_constants", lambda *_: None)
    monkeypatch.setattr(precision, "keep_activations", lambda *_: None)
    assert not difference(model, certified(model, samples)[0], samples) < 0.1


@pytest.mark.parametrize(
    ("nodes", "weights"),
    [
        ([conv("x", "y")], {"w": EYE + 1e-8}),
        ([conv("x", "y")], {"w": EYE * np.float32([1, 1e-20, 1, 1]).reshape(4, 1, 1, 1)}),
        ([node("Mul", ["x", "k"], "y")], {"k": TINY}),
        ([node("Add", ["x", "k"], "y")], {"k": np.float32([1e-5])}),
        ([node("Div", ["x", "k"], "y")], {"k": np.float32([1e-3])}),
        ([node("Div", ["k", "x"], "y")], {"k": np.float32([1.0])}),
        ([node("Pow", ["x", "k"], "y")], {"k": np.float32([2.2])}),
        (
            [node("BatchNormalization", ["x", "one", "zero", "zero", "var"], "y")],
            {"one": np.float32([1, 1e-10, 1, 1]), "zero": ZEROS, "var": np.float32([1, 1e-20, 1, 0])},
        ),
        ([node("LayerNormalization", ["x", "one"], "y", epsilon=1e-12)], {"one": np.ones(8, np.float32)}),
        ([node("Exp", ["x"], "a"), node("Add", ["a", "k"], "b"), node("Log", ["b"], "y")], {"k": np.float32([1])}),
    ],
)
def test_a_lost_constant_that_does_not_matter_keeps_nothing(nodes, weights):
    assert certified(made(nodes, weights).SerializeToString(), X)[1].kept == ()


@pytest.mark.parametrize(
    ("nodes", "weights", "reason"),
    [
        ([node("Pow", ["x", "k"], "y")], {"k": np.float32([301.3])}, "its exponent k is rounded"),
        (
            [node("InstanceNormalization", ["x", "k", "k"], "y", epsilon=1e-12)],
            {"k": ONES},
            "its epsilon would be zero",
        ),
        ([node("Div", ["x", "k"], "y")], {"k": TINY * 10}, "its constant k has entries as small as 1e-07"),
    ],
)
def test_what_one_operator_loses_is_said(nodes, weights, reason):
    assert reason in [kept.reason for kept in certified(made(nodes, weights).SerializeToString(), X)[1].kept]


def test_a_sum_of_exponentials_that_vanishes_is_not_divided_by():
    nodes = [
        conv("x", "a"),
        node("Exp", ["a"], "b"),
        node("ReduceSum", ["b", "axes"], "c"),
        node("Div", ["b", "c"], "d"),
        conv("d", "y"),
    ]
    model = made(nodes, {"w": EYE, "axes": AXES}).SerializeToString()
    half, certificate = certified(model, X)
    assert [one.node for one in certificate.kept] == ["b", "c", "d"]
    assert difference(model, half, X / 8 - 18) < 0.02


def test_a_mask_that_samples_do_not_reach_stays_with_the_softmax_that_reads_it():
    nodes = [
        conv("x", "a"),
        node("Greater", ["x", "limit"], "masked"),
        node("Where", ["masked", "low", "a"], "b"),
        node("Softmax", ["b"], "c", axis=1),
        conv("c", "y"),
    ]
    model = made(nodes, {"w": EYE, "limit": np.float32(100), "low": np.float32(-1e9)}).SerializeToString()
    half, certificate = certified(model, X)
    assert [kept.node for kept in certificate.kept] == ["b", "c"]
    assert difference(model, half, np.abs(X) + 200) < 5e-3


def test_a_mask_made_by_arithmetic_is_one_too():
    nodes = [
        node("Greater", ["x", "limit"], "masked"),
        node("Cast", ["masked"], "a", to=TensorProto.FLOAT),
        node("Mul", ["a", "low"], "b"),
        node("Add", ["x", "b"], "c"),
        node("Softmax", ["c"], "d", axis=1),
        conv("d", "y"),
    ]
    model = made(nodes, {"w": EYE, "limit": np.float32(100), "low": np.float32(-1e9)}).SerializeToString()
    half, certificate = certified(model, X)
    assert {"b", "c", "d"} <= {kept.node for kept in certificate.kept}
    assert difference(model, half, np.abs(X) + 200) < 5e-3


def test_a_filled_tensor_beyond_half_precision_stays():
    fill = numpy_helper.from_array(np.float32([-1e9]))
    nodes = [node("Shape", ["x"], "s"), node("ConstantOfShape", ["s"], "a", value=fill), node("Max", ["x", "a"], "y")]
    model = made(nodes).SerializeToString()
    half, certificate = certified(model, X)
    assert "its value of 1e+09 is beyond half precision" in [kept.reason for kept in certificate.kept]
    assert difference(model, half, X) == 0


def test_a_bound_of_an_old_clip_is_an_attribute():
    nodes = [node("ReduceL2", ["x"], "a", axes=[1]), node("Clip", ["a"], "b", min=1e-12), node("Div", ["x", "b"], "y")]
    _, certificate = certified(made(nodes, opset=10).SerializeToString(), X)
    assert [kept.node for kept in certificate.kept] == ["a", "b", "y"]


def test_an_integer_divisor_is_none_of_it():
    nodes = [node("Shape", ["x"], "s"), node("Div", ["s", "two"], "h"), node("Cast", ["h"], "y", to=TensorProto.FLOAT)]
    model = made(nodes, {"two": np.int64([2])}, outputs=[value("y", [4])])
    assert certified(model.SerializeToString(), X)[1].kept == ()
    assert onnx.checker.check_model(model) is None
