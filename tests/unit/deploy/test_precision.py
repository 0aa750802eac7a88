import msgspec
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from deploy import DeployError, LoweringError, graph, to_onnx
from deploy.certificate import LARGEST, Certificate
from deploy.engine import half_runner, onnx_runner
from deploy.narrow import BF16
from deploy.precision import certified, convert, reproduce
from reparam import fuse
from unit.deploy.graphs import EYE, conv, kinds, made, ops, relative, value
from unit.deploy.helpers import run_on
from zoo import ZOO

X = np.random.default_rng(0).standard_normal((5, 3, 8, 8)).astype(np.float32)


class Overflowing(nn.Module):
    """A sound network but for two layers in its midst: what is between them is far above 65504, what comes out is not."""

    def __init__(self, factor=1e5):
        super().__init__()
        self.stem, self.up, self.down, self.head = (nn.Conv2d(c, 4, 3, padding=1) for c in (3, 4, 4, 4))
        with torch.no_grad():
            self.up.weight *= factor
            self.down.weight /= factor

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = self.down(torch.relu(self.up(x)))
        return self.head(torch.relu(x))


@pytest.fixture(scope="module")
def overflowing():
    torch.manual_seed(0)
    return to_onnx(Overflowing(), torch.zeros(2, 3, 8, 8))


# a planted overflow


def test_a_planted_overflow_is_found_kept_in_fp32_and_the_output_agrees_again(overflowing):
    wanted = run_on(onnx_runner(overflowing), X, batch=2)["output"]
    blind, _ = convert(graph.parse_model(overflowing))
    assert not np.isfinite(run_on(half_runner(blind.SerializeToString()), X, batch=2)["output"]).all()
    half, certificate = certified(overflowing, X)
    assert relative(run_on(half_runner(half), X, batch=2)["output"], wanted) < 2e-3
    assert [(kept.op, kept.reason.split(" reaches ")[1].split(",")[1]) for kept in certificate.kept] == [
        ("Conv", " more than 32752"),
        ("Relu", " more than 32752"),
        ("Conv", " more than 32752"),
    ]
    assert (certificate.islands, certificate.casts, certificate.samples) == (1, 4, 5)
    model = onnx.load_from_string(half)
    assert ops(model).count("Cast") == 4
    assert [t.data_type for t in model.graph.initializer].count(TensorProto.FLOAT) == 4
    assert certificate.nodes == len(model.graph.node)


def test_the_certificate_tells_what_was_seen(overflowing):
    _, certificate = certified(overflowing, X)
    seen = {tensor.op: tensor for tensor in certificate.tensors}
    assert [tensor.op for tensor in certificate.tensors] == ["", "Conv", "Relu", "Conv", "Relu", "Conv", "Relu", "Conv"]
    assert certificate.tensors[0].max_abs == pytest.approx(np.abs(X).max())
    assert max(tensor.max_abs for tensor in certificate.tensors) > LARGEST
    assert seen["Conv"].node.startswith("node_")
    down = next(weight for weight in certificate.weights if weight.name == "down.weight")
    assert 0 < down.min_abs < down.max_abs < 1e-5
    assert down.subnormal == 4 * 4 * 9
    assert msgspec.json.decode(msgspec.json.encode(certificate), type=Certificate) == certificate
    assert "3 nodes in 1 island stay FP32, 4 casts; largest |x| " in certificate.summary


def test_headroom_decides_how_near_is_too_near(overflowing):
    tame = to_onnx(Overflowing(factor=1.0), torch.zeros(1, 3, 8, 8))
    assert certified(tame, X)[1].kept == ()
    assert len(certified(tame, X, headroom=1e6)[1].kept) == 7
    with pytest.raises(LoweringError, match=r"headroom 0\.5: at least 1 is needed"):
        certified(tame, X, headroom=0.5)


# bfloat16


def test_bfloat16_has_the_range_of_fp32_and_nothing_overflows(overflowing):
    wanted = run_on(onnx_runner(overflowing), X, batch=2)["output"]
    narrow, certificate = certified(overflowing, X, narrow=BF16)
    assert (certificate.precision, certificate.kept, certificate.casts) == ("bf16", (), 2)
    assert certificate.summary.startswith("every node is BF16, 2 casts; ")
    model = onnx.load_from_string(narrow)
    assert {t.data_type for t in model.graph.initializer} == {TensorProto.BFLOAT16}
    assert model.opset_import[0].version == 22
    off = relative(run_on(half_runner(narrow), X, batch=2)["output"], wanted)
    assert 1e-3 < off < 3e-2
    assert reproduce(overflowing, certificate) == narrow


def test_whole_numbers_that_bfloat16_does_not_have_stay_fp32():
    position = np.arange(300, 308, dtype=np.float32).reshape(1, 1, 1, 8)
    model = made(
        [conv("x", "a"), helper.make_node("Add", ["a", "p"], ["y"], "y")], {"w": EYE, "p": position}
    ).SerializeToString()
    samples = np.ones((1, 4, 8, 8), np.float32)
    assert certified(model, samples)[1].kept == ()
    (kept,) = certified(model, samples, narrow=BF16)[1].kept
    assert (kept.node, kept.reason) == ("y", "its constant p holds whole numbers up to 307, bfloat16 only up to 256")


# casts


def test_without_an_island_there_are_two_casts_or_none_and_nothing_else_is_new():
    torch.manual_seed(0)
    data = to_onnx(nn.Sequential(nn.Conv2d(3, 2, 1), nn.SiLU(), nn.Conv2d(2, 2, 1)), torch.zeros(1, 3, 8, 8))
    nodes = ops(onnx.load_from_string(data))
    for io, wanted in (("fp32", ["Cast", *nodes, "Cast"]), ("fp16", nodes)):
        half, certificate = certified(data, X, io=io)
        model = onnx.load_from_string(half)
        assert ops(model) == wanted
        assert certificate.casts == wanted.count("Cast")
        assert [v.name for v in (*model.graph.input, *model.graph.output)] == ["input", "output"]
        assert model == convert(graph.parse_model(data), io=io)[0]  # what is profiled, with no samples, is what ships


ORDINARY = ("RepVGG-A0", "ResNet-50", "MobileNetV2", "EfficientNet-B0")


@pytest.mark.parametrize("network", [one for one in ZOO if one.name in ORDINARY], ids=lambda one: one.name)
def test_an_ordinary_network_is_fp16_throughout(network):
    module = fuse(network.make(small=True), network.input(small=True))
    example = network.input(small=True)
    _, certificate = certified(to_onnx(module, example), example.numpy())
    assert (certificate.kept, certificate.casts) == ((), 2)


# rules


@pytest.mark.parametrize(
    ("node", "weights", "reason"),
    [
        (helper.make_node("Add", ["a", "k"], ["b"], "b"), {"k": np.float32(-3.4e38)}, "its weight k reaches 3.4e+38"),
        (
            helper.make_node("Add", ["a", "k"], ["b"], "b"),
            {"k": np.float32(1e-12)},
            "its weight k of 1e-12 would be zero",
        ),
        (helper.make_node("Mul", ["a", "r"], ["b"], "b"), {}, ""),
    ],
)
def test_what_a_constant_or_an_operator_forbids_stays_fp32(node, weights, reason):
    nodes = [conv("x", "a"), node, conv("b", "y")]
    if not reason:
        nodes.insert(1, helper.make_node("RandomNormal", [], ["r"], "r", shape=[1, 4, 8, 8]))
        reason = "RandomNormal has no FP16 form"
    _, certificate = convert(made(nodes, {"w": EYE, **weights}))
    assert reason in [kept.reason for kept in certificate.kept]


def test_a_resize_keeps_its_scales():
    resize = helper.make_node("Resize", ["a", "", "scales"], ["b"], "b", mode="linear")
    pool = helper.make_node("AveragePool", ["b"], ["y"], "y", kernel_shape=[2, 2], strides=[2, 2])
    half, certificate = convert(made([conv("x", "a"), resize, pool], {"w": EYE, "scales": np.float32([1, 1, 2, 2])}))
    assert (kinds(half)["scales"], kinds(half)["b"], certificate.kept) == (TensorProto.FLOAT, TensorProto.FLOAT16, ())
    assert np.isfinite(run_on(half_runner(half.SerializeToString()), X[:, :1].repeat(4, 1), name="x")["y"]).all()


def test_a_mean_whose_sum_overflows_stays_fp32():
    nodes = [
        conv("x", "a", "big"),
        helper.make_node("GlobalAveragePool", ["a"], ["p"], "p"),
        helper.make_node("Mul", ["a", "p"], ["m"], "m"),
        conv("m", "y"),
    ]
    model = made(nodes, {"w": EYE * 1e-3, "big": 1e3 * EYE}).SerializeToString()
    _, certificate = certified(model, np.full((1, 4, 8, 8), 2.0, np.float32), headroom=1.0)
    assert {kept.node: kept.reason for kept in certificate.kept}[
        "p"
    ] == "the sum of p reaches 1.28e+05, more than 65504"


def test_casts_and_shapes_of_the_graph_itself_are_taken_along():
    nodes = [
        helper.make_node("Shape", ["x"], ["s"], "s"),
        helper.make_node("ConstantOfShape", ["s"], ["zeros"], "zeros"),
        helper.make_node("Cast", ["s"], ["sizes"], "sizes", to=TensorProto.FLOAT),
        helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(np.float32([2.0]))),
        helper.make_node("Constant", [], ["half"], value_float=0.5),
        conv("x", "e"),
        helper.make_node("Mul", ["e", "half"], ["a"], "a"),
        helper.make_node("Add", ["a", "zeros"], ["b"], "b"),
        helper.make_node("Mul", ["b", "k"], ["c"], "c"),
        helper.make_node("Cast", ["c"], ["d"], "d", to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["d"], ["y"], "y", to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["sizes"], ["z"], "z"),
    ]
    model = made(nodes, {"w": EYE}, outputs=[value("y", [1, 4, 8, 8]), value("z", [1])])
    half, certificate = certified(model.SerializeToString(), X[:, :1].repeat(4, 1))
    half = onnx.load_from_string(half)
    assert certificate.casts == 3
    assert ops(half).count("Cast") == 4
    assert {kinds(half)[name] for name in ("a", "b", "c", "zeros", "k", "half", "sizes")} == {TensorProto.FLOAT16}


def test_control_flow_is_refused_in_one_line():
    branch = helper.make_graph([helper.make_node("Identity", ["x"], ["t"])], "branch", [], [value("t", [1, 4, 8, 8])])
    node = helper.make_node("If", ["c"], ["y"], "choice", then_branch=branch, else_branch=branch)
    with pytest.raises(LoweringError, match=r"node 'choice' \(If\) holds a graph of its own") as caught:
        convert(made([node], {"c": np.array(True)}))
    assert "\n" not in str(caught.value)


def test_nameless_nodes_get_names_of_their_own():
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Add", ["b", "k"], ["y"]),
    ]
    _, certificate = convert(made(nodes, {"k": np.float32(1e6)}))
    assert [kept.node for kept in certificate.kept] == ["Relu.1", "Relu.2", "Add.1"]


# samples


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (
            X[:, :2],
            r"samples of input have shape \[5, 2, 8, 8\], the network takes \[samples, 3, 8, 8\] or \[calls, 2, 3, 8, 8\]",
        ),
        (X[:0], r"samples of input have shape \[0, 3, 8, 8\]"),
        (X * np.inf, "samples of input contain values that are infinite or not a number"),
        ({"image": X}, "samples are of image, the network's inputs are input"),
    ],
)
def test_samples_that_do_not_fit_are_refused(overflowing, samples, message):
    with pytest.raises(DeployError, match=message):
        certified(overflowing, samples)


def test_several_inputs_have_samples_by_name():
    class Sum(nn.Module):
        def forward(self, a, b):
            return torch.relu(a) * 1e4, torch.relu(b) @ torch.ones(4, 2)

    data = to_onnx(Sum(), (torch.zeros(1, 4), torch.zeros(1, 4)), inputs=["a", "b"])
    ones = np.ones((3, 4), np.float32)
    _, certificate = certified(data, {"a": ones * 5, "b": ones})
    assert {kept.op for kept in certificate.kept} >= {"Mul"}
    with pytest.raises(DeployError, match="2 inputs, a, b: give samples of each by its name"):
        certified(data, ones)
    with pytest.raises(LoweringError, match=r"output0 reaches 1e\+05, half precision ends at 65504: give io fp32"):
        certified(data, {"a": ones * 10, "b": ones}, io="fp16")
