import numpy as np
import pytest
from onnx import helper

from deploy import precision
from deploy.precision import certified
from unit.deploy.graphs import EYE, conv, difference, made, relu

X = np.random.default_rng(0).standard_normal((3, 4, 8, 8)).astype(np.float32)
AXES = np.int64([1])


def node(op, read, name, **attributes):
    return helper.make_node(op, read, [name], name, **attributes)


LOST = {
    "an output": ([conv("x", "y")], {"w": EYE * 1e-7}, "y"),
    "what one factor makes large again": (
        [conv("x", "a"), node("Mul", ["a", "k"], "y")],
        {"w": EYE * 1e-7, "k": np.float32(3e4)},
        "ay",
    ),
    "what several factors make large again": (
        [
            node("Mul", ["x", "k"], "a"),
            relu("a", "b"),
            node("Mul", ["b", "q"], "c"),
            conv("c", "d"),
            node("Mul", ["d", "q"], "y"),
        ],
        {"w": EYE, "k": np.float32(1e-8), "q": np.float32(1e4)},
        "abc",
    ),
    "what a layer makes large again": (
        [node("Mul", ["x", "k"], "a"), relu("a", "b"), conv("b", "y")],
        {"w": EYE * 3e4, "k": np.float32(1e-7)},
        "aby",
    ),
    "a root": (
        [node("Exp", ["x"], "a"), node("Mul", ["a", "k"], "b"), node("Sqrt", ["b"], "c"), node("Mul", ["c", "q"], "y")],
        {"k": np.float32(1e-8), "q": np.float32(1e4)},
        "bc",
    ),
    "a norm": (
        [
            node("Mul", ["x", "k"], "a"),
            node("Tanh", ["a"], "b"),
            node("LayerNormalization", ["b", "one"], "y", epsilon=1e-18),
        ],
        {"k": np.float32(1e-8), "one": np.ones(8, np.float32)},
        "aby",
    ),
    "a quotient": (
        [
            node("Sub", ["x", "k"], "a"),
            node("Exp", ["a"], "b"),
            node("ReduceSum", ["b", "axes"], "c"),
            node("Div", ["b", "c"], "y"),
        ],
        {"k": np.float32(30), "axes": AXES},
        "bcy",
    ),
}


@pytest.mark.parametrize("kind", LOST)
def test_a_tensor_that_is_lost_as_a_whole_stays_with_what_it_matters_to(kind, monkeypatch):
    nodes, weights, kept = LOST[kind]
    model = made(nodes, weights).SerializeToString()
    half, certificate = certified(model, X)
    assert "".join(one.node for one in certificate.kept if not one.reason.startswith("between")) == kept
    assert difference(model, half, X) < 5e-3
    monkeypatch.setattr(precision, "keep_constants", lambda *_: None)
    monkeypatch.setattr(precision, "keep_activations", lambda *_: None)
    assert not difference(model, certified(model, X)[0], X) < 0.1


@pytest.mark.parametrize(
    ("nodes", "weights"),
    [
        ([conv("x", "a"), relu("a", "b"), node("Add", ["x", "b"], "y")], {"w": EYE * 1e-6}),
        ([conv("x", "a"), node("Sigmoid", ["a"], "y")], {"w": EYE * 1e-6}),
        (
            [conv("x", "a"), node("BatchNormalization", ["a", "one", "one", "zero", "one"], "y")],
            {"w": EYE * 1e-7, "one": np.ones(4, np.float32), "zero": np.zeros(4, np.float32)},
        ),
        (
            [conv("x", "a"), node("Conv", ["a", "v", "one"], "y")],
            {"w": EYE * 1e-6, "v": EYE, "one": np.ones(4, np.float32)},
        ),
    ],
)
def test_a_lost_tensor_beside_others_keeps_nothing(nodes, weights):
    assert certified(made(nodes, weights).SerializeToString(), X)[1].kept == ()


def test_what_is_lost_is_said():
    kept = certified(made([conv("x", "y")], {"w": EYE * 1e-6}).SerializeToString(), X / np.abs(X).max())[1].kept
    assert [one.reason for one in kept] == ["y reaches only 1e-06, half precision is coarse below 6.1e-05"]
