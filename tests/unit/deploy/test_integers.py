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

PEAK = FLAT[:1] / 4 + 10 * (np.arange(4096) == 4095)
"""Its largest element stays the last one in half precision."""
SOME = np.where(np.arange(4096) < 4001, 1, -1)[None].astype(np.float32)


def position(*nodes):
    """Nodes behind the position `b` of the largest element, up to `c`, and noise that makes the output long."""
    largest = node("ArgMax", ["x"], "a", axis=1, keepdims=1)
    return [largest, cast("a", "b"), *nodes, node("Sub", ["c", "near"], "d"), node("Add", ["d", "noise"], "y")]


def of_position(near, kept, nodes, **weights):
    return position(*nodes), {"near": np.float32(near), "noise": FLAT[:1] / 8, **weights}, -PEAK, PEAK, kept


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
        [
            node("Greater", ["x", "zero"], "a"),
            cast("a", "b"),
            node("CumSum", ["b", "axis"], "c"),
            node("Mod", ["c", "two"], "y", fmod=1),
        ],
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
        [
            node("ArgMax", ["x"], "a", axis=1, keepdims=1),
            cast("a", "b"),
            node("Sub", ["b", "far"], "c"),
            node("Add", ["c", "noise"], "y"),
        ],
        {"noise": FLAT[:1] / 8},
        -RISING,
        RISING,
        "bcy",
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
        "bcy",
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
        "cdy",
    ),
    "positions as a constant": (
        [node("Add", ["x", "positions"], "a"), node("Sub", ["a", "positions"], "y")],
        {"positions": POSITIONS},
        FLAT,
        FLAT,
        "ay",
    ),
    "the row of a position": of_position(
        62.1, "bc0c", [node("Div", ["b", "k"], "c0"), node("Floor", ["c0"], "c")], k=np.float32(64)
    ),
    "the middle of a pixel": of_position(4095.1, "bcdy", [node("Add", ["b", "k"], "c")], k=np.float32(0.5)),
    "a position on a finer grid": of_position(8189.1, "bcdy", [node("Div", ["b", "k"], "c")], k=np.float32(0.5)),
    "a position on a coarser grid": of_position(1023.1, "bcdy", [node("Mul", ["b", "k"], "c")], k=np.float32(0.25)),
    "a position of both signs": of_position(4094.1, "bcdy", [node("LeakyRelu", ["b"], "c")]),
    "a mean of positions": of_position(4094.1, "bcdy", [node("Mean", ["b", "b"], "c")]),
    "a position among those of a mask": of_position(
        4094.1, "bcdy", [node("Hardmax", ["x"], "h", axis=1), node("MatMul", ["h", "k"], "c")], k=POSITIONS[:, None]
    ),
    "a position by Einsum": of_position(
        4094.1,
        "bcdy",
        [node("Hardmax", ["x"], "h", axis=1), node("Einsum", ["h", "k"], "c", equation="bn,nk->bk")],
        k=POSITIONS[:, None],
    ),
    "a position that was quantised": of_position(
        4094.1,
        "bcdy",
        [cast("a", "i", TensorProto.INT32), node("DequantizeLinear", ["i", "k"], "c")],
        k=np.float32(1),
    ),
    "a count as a mean": (
        [
            node("Greater", ["x", "zero"], "a"),
            cast("a", "b"),
            node("ReduceMean", ["b", "axis"], "c"),
            node("Mul", ["c", "k"], "d"),
            node("Sub", ["d", "far"], "e"),
            node("Add", ["e", "noise"], "y"),
        ],
        {"zero": np.float32(0), "axis": AXIS, "k": np.float32(4096), "noise": FLAT[:1] / 8},
        -np.abs(FLAT),
        SOME,
        "cdey",
    ),
    "a product": (
        [
            node("Greater", ["x", "zero"], "a"),
            node("Where", ["a", "three", "one"], "b"),
            node("Slice", ["b", "first", "ninth", "axis"], "c"),
            node("ReduceProd", ["c", "axis"], "d"),
            node("Sub", ["d", "near"], "e"),
            node("Add", ["e", "noise"], "y"),
        ],
        {
            "zero": np.float32(0),
            "three": np.float32(3),
            "one": np.float32(1),
            "near": np.float32(6560.3),
            "noise": FLAT[:1] / 8,
            "first": np.int64([0]),
            "ninth": np.int64([8]),
            "axis": AXIS,
        },
        -np.abs(FLAT),
        np.abs(FLAT),
        "dey",
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
    assert "".join(one.node for one in certificate.kept if not one.reason.startswith("between")) == kept
    assert difference(model, half, tried) < 5e-3
    monkeypatch.setattr(precision, "keep_whole_numbers", lambda *_: None)
    assert not difference(model, certified(model, seen)[0], tried) < 1e-2


def test_small_positions_are_rounded_to_whole_numbers_where_they_are_fractions_of_them():
    nodes = [
        node("Greater", ["x", "zero"], "a"),
        cast("a", "b"),
        node("CumSum", ["b", "axis"], "c"),
        node("Mul", ["c", "k"], "d"),
        node("Floor", ["d"], "e"),
        conv("e", "y"),
    ]
    weights = {"w": EYE, "zero": np.float32(0), "axis": np.int64(3), "k": np.float32(1 / 3)}
    model = made(nodes, weights).SerializeToString()
    half, certificate = certified(model, X)
    reasons = {one.node: one.reason for one in certificate.kept}
    assert reasons["d"] == reasons["e"] == "e rounds d to whole numbers up to 2.667"
    assert difference(model, half, np.abs(X)) == 0


def test_an_input_of_integers_of_any_size_stays_exact():
    nodes = [cast("x", "a"), node("Sub", ["a", "far"], "b"), node("Mul", ["b", "k"], "y")]
    model = made(
        nodes,
        {"far": FAR, "k": np.float32([0.1])},
        inputs=[value("x", [1, 4], TensorProto.INT64)],
        outputs=[value("y", [1, 4])],
    )
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
        (
            [node("Gather", ["table", "x"], "y")],
            {"table": X.reshape(-1, 1)},
            [value("x", [1, 4, 8], TensorProto.INT64)],
        ),
        ([node("Sigmoid", ["x"], "a"), node("Floor", ["a"], "y")], {}, None),
        (
            [
                node("Greater", ["x", "k"], "a"),
                cast("a", "b"),
                node("ReduceSum", ["b"], "c"),
                node("Mul", ["x", "c"], "y"),
            ],
            {"k": X[0, 0, 0]},
            None,
        ),
        ([node("Mul", ["x", "k"], "y")], {"k": np.float32([4096])}, None),
        (
            [node("Greater", ["x", "zero"], "a"), node("Where", ["a", "zero", "k"], "b"), node("Add", ["x", "b"], "y")],
            {"zero": np.float32(0), "k": np.float32(-np.inf)},
            None,
        ),
        (
            [conv("x", "a"), node("Mul", ["a", "k"], "b"), node("Sin", ["b"], "y")],
            {"w": EYE, "k": np.float32([30])},
            None,
        ),
        (
            [node("Sigmoid", ["x"], "a"), node("Mul", ["a", "k"], "b"), node("Cos", ["b"], "y")],
            {"k": np.float32([3])},
            None,
        ),
    ],
)
def test_small_whole_numbers_and_what_is_none_keep_nothing(nodes, weights, inputs):
    shape = [1, 4, 8, 1] if inputs and nodes[0].op_type == "Gather" else [1, 4, 8, 8]
    _, certificate = precision.convert(made(nodes, weights, inputs=inputs, outputs=[value("y", shape)]))
    assert certificate.kept == ()
