import numpy as np
import pytest
from onnx import TensorProto, helper

from deploy import precision
from deploy.precision import certified
from unit.deploy.graphs import EYE, conv, difference, made, value

X = np.random.default_rng(0).standard_normal((3, 4, 8, 8)).astype(np.float32)
LONG = [1, 4096]
FLAT = np.random.default_rng(0).standard_normal((3, 4096)).astype(np.float32)
FAR = np.float32([4000.3])
OTHERS = {"far": FAR, "two": np.float32([2])}
AXIS = np.int64([1])
POSITIONS = np.arange(4096, dtype=np.float32)


def node(op, read, name, **attributes):
    return helper.make_node(op, read, [name], name, **attributes)


def cast(x, y, to=TensorProto.FLOAT):
    return node("Cast", [x], y, to=to)


RISING = np.arange(4096, dtype=np.float32)[None] + FLAT[:1]
"""Its largest element is the last one: samples of noise have it anywhere."""

KINDS = {
    "floor": (
        [node("Mul", ["x", "k"], "a"), node("Floor", ["a"], "b"), node("Mod", ["b", "two"], "y", fmod=1)],
        {"k": FAR},
        FLAT / 4,
        FLAT,
        "aby",
    ),
    "cast to whole numbers": (
        [cast("x", "a", TensorProto.INT32), cast("a", "b"), node("Sub", ["b", "far"], "y")],
        {},
        FLAT,
        4000 + 50 * FLAT,
        "by",
    ),
    "cumsum": (
        [node("Greater", ["x", "zero"], "a"), cast("a", "b"), node("CumSum", ["b", "axis"], "c"), node("Mod", ["c", "two"], "y", fmod=1)],
        {"zero": np.float32(0), "axis": np.int64(1)},
        -np.abs(FLAT),
        np.abs(FLAT) + 1,
        "cy",
    ),
    "cumsum of integers": (
        [
            node("Greater", ["x", "zero"], "a"),
            cast("a", "b", TensorProto.INT32),
            node("CumSum", ["b", "axis"], "c"),
            cast("c", "d"),
            node("Mod", ["d", "two"], "y", fmod=1),
        ],
        {"zero": np.float32(0), "axis": np.int64(1)},
        -np.abs(FLAT),
        np.abs(FLAT) + 1,
        "dy",
    ),
    "argmax": (
        [node("ArgMax", ["x"], "a", axis=1, keepdims=1), cast("a", "b"), node("Sub", ["b", "far"], "c"), node("Add", ["c", "noise"], "y")],
        {"noise": FLAT[:1] / 8},
        -RISING,
        RISING,
        "bc",
    ),
    "gather of positions": (
        [
            node("ArgMax", ["x"], "a", axis=1, keepdims=1),
            node("Gather", ["positions", "a"], "b"),
            node("Sub", ["b", "far"], "c"),
            node("Add", ["c", "noise"], "y"),
        ],
        {"positions": POSITIONS, "noise": FLAT[:1] / 8},
        -RISING,
        RISING,
        "bc",
    ),
    "count": (
        [
            node("Greater", ["x", "zero"], "a"),
            cast("a", "b"),
            node("ReduceSum", ["b", "axis"], "c"),
            node("Sub", ["c", "far"], "d"),
            node("Add", ["d", "noise"], "y"),
        ],
        {"zero": np.float32(0), "axis": AXIS, "noise": FLAT[:1] / 8},
        -np.abs(FLAT),
        np.where(np.arange(4096) < 4001, 1, -1)[None].astype(np.float32),
        "cd",
    ),
    "positions as a constant": (
        [node("Add", ["x", "positions"], "a"), node("Sub", ["a", "positions"], "y")],
        {"positions": POSITIONS},
        FLAT,
        FLAT,
        "ay",
    ),
    "angles": (
        [node("Mul", ["x", "positions"], "a"), node("Sin", ["a"], "y")],
        {"positions": POSITIONS},
        FLAT / 4096,
        FLAT,
        "ay",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_whole_numbers_that_samples_do_not_reach_stay_exact(kind, monkeypatch):
    nodes, weights, seen, tried, kept = KINDS[kind]
    weights = weights | {name: array for name, array in OTHERS.items() if any(name in one.input for one in nodes)}
    model = made(nodes, weights, inputs=[value("x", LONG)], outputs=[value("y", LONG)]).SerializeToString()
    half, certificate = certified(model, seen)
    assert [one.node for one in certificate.kept if not one.reason.startswith("between")] == list(kept)
    assert difference(model, half, tried) < 5e-3
    monkeypatch.setattr(precision, "keep_whole_numbers", lambda *_: None)
    assert not difference(model, certified(model, seen)[0], tried) < 1e-2


def test_an_input_of_integers_of_any_size_stays_exact():
    nodes = [cast("x", "a"), node("Sub", ["a", "far"], "b"), node("Mul", ["b", "k"], "y")]
    model = made(nodes, {"far": FAR, "k": np.float32([0.1])}, inputs=[value("x", [1, 4], TensorProto.INT64)], outputs=[value("y", [1, 4])])
    half, certificate = certified(model.SerializeToString(), np.array([[1.0, 2.0, 3.0, 4.0]]))
    assert certificate.kept[0].reason == "a holds whole numbers of any size, half precision only up to 2048"
    assert difference(model.SerializeToString(), half, np.array([[4001.0, 4003.0, 4005.0, 4007.0]])) < 5e-3


@pytest.mark.parametrize(
    ("nodes", "weights", "inputs"),
    [
        (
            [cast("x", "a"), node("Sub", ["a", "k"], "b"), node("Mul", ["b", "k"], "c"), conv("c", "y")],
            {"w": EYE, "k": np.float32([0.5])},
            [value("x", [1, 4, 8, 8], TensorProto.UINT8)],
        ),
        ([node("Gather", ["table", "x"], "y")], {"table": X.reshape(-1, 1)}, [value("x", [1, 4, 8], TensorProto.INT64)]),
        ([node("Sigmoid", ["x"], "a"), node("Floor", ["a"], "y")], {}, None),
        (
            [node("Greater", ["x", "k"], "a"), cast("a", "b"), node("ReduceSum", ["b"], "c"), node("Mul", ["x", "c"], "y")],
            {"k": X[0, 0, 0]},
            None,
        ),
        ([node("Mul", ["x", "k"], "y")], {"k": np.float32([4096])}, None),
        (
            [node("Greater", ["x", "zero"], "a"), node("Where", ["a", "zero", "k"], "b"), node("Add", ["x", "b"], "y")],
            {"zero": np.float32(0), "k": np.float32(-np.inf)},
            None,
        ),
        ([conv("x", "a"), node("Mul", ["a", "k"], "b"), node("Sin", ["b"], "y")], {"w": EYE, "k": np.float32([30])}, None),
        ([node("Sigmoid", ["x"], "a"), node("Mul", ["a", "k"], "b"), node("Cos", ["b"], "y")], {"k": np.float32([3])}, None),
    ],
)
def test_small_whole_numbers_and_what_is_none_keep_nothing(nodes, weights, inputs):
    shape = [1, 4, 8, 1] if inputs and nodes[0].op_type == "Gather" else [1, 4, 8, 8]
    _, certificate = precision.convert(made(nodes, weights, inputs=inputs, outputs=[value("y", shape)]))
    assert certificate.kept == ()
