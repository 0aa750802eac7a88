import io
import warnings

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto
from torch import nn

from deploy import LoweringError, lowering, to_onnx
from deploy import graph as graphs
from deploy.engine import half_runner, onnx_runner
from reparam import count, fuse, squeeze
from unit.deploy.helpers import example, network, run_on, samples


@pytest.fixture(scope="module")
def shipped():
    return squeeze(fuse(network(), example()), example())


@pytest.fixture(scope="module")
def data(shipped):
    return to_onnx(shipped, example())


@pytest.fixture(scope="module")
def half(shipped):
    return to_onnx(shipped, example(), precision="fp16")


def ends(model):
    values = (model.graph.input[0], model.graph.output[0])
    return [
        (value.name, value.type.tensor_type.elem_type, [dim.dim_value for dim in value.type.tensor_type.shape.dim])
        for value in values
    ]


def test_the_graph_is_static_named_and_whole(data):
    model = onnx.load_from_string(data)
    assert ends(model) == [("input", TensorProto.FLOAT, [1, 3, 8, 8]), ("output", TensorProto.FLOAT, [1, 4])]
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", lowering.OPSET)]
    assert all(value.data_location == TensorProto.DEFAULT for value in model.graph.initializer)
    assert {node.op_type for node in model.graph.node} <= {
        "Conv",
        "Relu",
        "ReduceMean",
        "GlobalAveragePool",
        "Reshape",
        "Flatten",
        "Gemm",
    }


def test_nothing_of_this_machine_is_in_it(data):
    assert b".py" not in data
    assert b"/home" not in data


def test_it_computes_what_the_module_does(shipped, data):
    with torch.no_grad():
        expected = shipped.eval()(samples()).numpy()
    np.testing.assert_allclose(
        run_on(onnx_runner(data), samples())["output"], expected, rtol=0, atol=1e-5 * np.abs(expected).max()
    )


def test_the_same_module_gives_the_same_bytes(shipped, data):
    assert to_onnx(shipped, example()) == data


def test_half_precision_is_in_the_graph_with_a_cast_at_each_end(half):
    model = onnx.load_from_string(half)
    assert [kind for _, kind, _ in ends(model)] == [TensorProto.FLOAT, TensorProto.FLOAT]
    assert [node.op_type for node in model.graph.node].count("Cast") == 2
    assert TensorProto.FLOAT not in {value.data_type for value in model.graph.initializer}


def test_half_precision_ends_need_no_cast(shipped):
    model = onnx.load_from_string(to_onnx(shipped, example(), precision="fp16", io="fp16"))
    assert [kind for _, kind, _ in ends(model)] == [TensorProto.FLOAT16, TensorProto.FLOAT16]
    assert "Cast" not in {node.op_type for node in model.graph.node}


def test_the_exporter_says_nothing(shipped, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        to_onnx(shipped, example())
    assert capfd.readouterr() == ("", "")


def test_the_module_stays_as_it_was():
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2)).train()
    to_onnx(model, example(), precision="fp16")
    assert model.training
    assert model[0].weight.dtype == torch.float32
    assert model[1].num_batches_tracked == 0


def test_what_torch_cannot_export_is_one_line():
    class Branch(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(LoweringError, match="torch cannot export Branch to ONNX: ") as caught:
        to_onnx(Branch(), example())
    assert "\n" not in str(caught.value)


def test_a_graph_is_counted_as_its_module_is(shipped, data, half):
    expected = count(shipped, example())
    assert lowering.count_onnx(graphs.parse_model(data)) == lowering.count_onnx(graphs.parse_model(half)) == expected
    batched = to_onnx(shipped, torch.zeros(3, 3, 8, 8))
    assert lowering.count_onnx(graphs.parse_model(batched)) == expected


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, a, b):
        return self.conv(a) + b, torch.relu(b)


def named(values):
    return [value.name for value in values]


def test_several_inputs_and_outputs_have_names_by_choice():
    pair = (example(), example())
    model = onnx.load_from_string(to_onnx(Pair(), pair))
    assert (named(model.graph.input), named(model.graph.output)) == (["a", "b"], ["output0", "output1"])
    data = to_onnx(Pair(), pair, precision="fp16", inputs=["image", "flow"], outputs=["relu", "conv2d"])
    model = onnx.load_from_string(data)
    assert (named(model.graph.input), named(model.graph.output)) == (["image", "flow"], ["relu", "conv2d"])
    assert [node.op_type for node in model.graph.node].count("Cast") == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"outputs": ["y"]}, "outputs y: the network has 2, each needs a name of its own"),
        ({"inputs": ["x", "x"]}, "inputs x, x: the network has 2, each needs a name of its own"),
        ({"io": "fp16"}, "io 'fp16' needs precision 'fp16'"),
    ],
)
def test_names_and_types_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(LoweringError, match=message):
        to_onnx(Pair(), (example(), example()), **arguments)


def test_weights_beyond_a_message_are_refused(monkeypatch):
    monkeypatch.setattr(lowering, "MAX_BYTES", 100)
    with pytest.raises(
        LoweringError, match=r"the weights of Conv2d take 0\.0 GiB in FP32, and an ONNX file .* holds less than 2"
    ):
        to_onnx(nn.Conv2d(3, 16, 3), example())


class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.deep, self.idle = (
            nn.Conv2d(3, 4, 3, 2),
            nn.Sequential(nn.Conv2d(4, 6, 3, 2), nn.ReLU()),
            nn.Identity(),
        )
        self.head = nn.Linear(6, 10)

    def forward(self, x):
        return self.head(self.deep(self.stem(x)).mean((2, 3)))


def test_a_backbone_gives_several_feature_maps_by_the_names_of_its_modules():
    backbone = Backbone().eval()
    model = onnx.load_from_string(to_onnx(lowering.features(backbone, ["deep", "stem"]), example()))
    assert named(model.graph.output) == ["deep", "stem"]
    assert [node.op_type for node in model.graph.node] == ["Conv", "Conv", "Relu"]
    assert len(model.graph.initializer) == 4  # the head is not there
    x = samples(1)
    found = onnxruntime.InferenceSession(model.SerializeToString()).run(["deep", "stem"], {"input": x.numpy()})
    with torch.no_grad():
        wanted = [backbone.deep(backbone.stem(x)), backbone.stem(x)]
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other.numpy(), rtol=0, atol=1e-5)
    assert not backbone.deep._forward_hooks


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["neck"], "Backbone has no module 'neck': choose of stem, deep, idle, head or a module within them"),
        ([], "name at least one module"),
        (["idle"], "module 'idle' takes no part in the network's forward"),
    ],
)
def test_a_feature_map_that_there_is_not_is_refused(names, message):
    with pytest.raises(LoweringError, match=message):
        to_onnx(lowering.features(Backbone(), names), example())


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_program_computes_what_the_onnx_does(shipped, precision):
    lowered = lowering.lower(shipped, example(), precision=precision, program=True)
    assert lowered.onnx == to_onnx(shipped, example(), precision=precision)
    program = torch.export.load(io.BytesIO(lowered.program)).module()
    x = samples(1)
    with torch.no_grad():
        found = program(x).numpy()
    runner = onnx_runner if precision == "fp32" else half_runner
    np.testing.assert_allclose(
        found, run_on(runner(lowered.onnx), x)["output"], rtol=0, atol=2e-2 if precision == "fp16" else 1e-5
    )
    assert lowering.lower(shipped, example()).program is None


def test_a_term_that_is_almost_nothing_stays():
    class Guarded(nn.Module):
        def forward(self, x):
            return torch.log(torch.relu(x) + 1e-12) + x / (x.abs() + 1e-9) + (x - 1e-9) * 1.000005 / 0.999995

    x = torch.zeros(1, 4)
    found = run_on(onnx_runner(to_onnx(Guarded(), x)), x)["output"]
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, Guarded()(x), rtol=1e-5)


def test_a_term_that_is_nothing_is_left_out():
    class Idle(nn.Module):
        def forward(self, x):
            return torch.relu(x + 0.0) * 1.0

    assert [node.op_type for node in onnx.load_from_string(to_onnx(Idle(), torch.zeros(1, 4))).graph.node] == ["Relu"]


def test_branches_of_torch_cond_read_inputs_by_their_names_and_hold_no_traces():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return torch.cond(x.sum() > 0, lambda x: self.layer(x), lambda x: x - 1, (x,))

    module, x = Branches().eval(), torch.ones(2, 4)
    data = to_onnx(module, x)
    assert b".py" not in data
    run = onnx_runner(data)
    for given in (x, -x):
        wanted = module.layer(given) if given.sum() > 0 else given - 1
        np.testing.assert_allclose(run({"input": given.numpy()[None]})["output"][0], wanted.detach().numpy(), rtol=1e-5)
