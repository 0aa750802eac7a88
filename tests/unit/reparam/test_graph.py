import pytest
import torch
import torch.nn.functional as F
from torch import nn

from reparam.errors import ReparamError
from reparam.graph import aten, has_hooks, operator_of, read_network, shape_of, twin_of
from unit.reparam.helpers import Net


def operators(network):
    return [
        operator_of(node)
        for node in network.graph.nodes
        if node.op == "call_function" and "getitem" not in str(node.target)
    ]


def only(network, target):
    (node,) = [node for node in network.graph.nodes if node.target is target]
    return node


X = torch.randn(2, 4, 6, 6)


def test_operators_have_one_spelling_however_they_are_called():
    def run(self, x):
        x = self.norm(self.conv(x)).relu_()
        x += F.relu(x)
        first, *_ = list(x.chunk(2, 1)) if x.shape[-1] > 3 else [x]
        return first

    network = read_network(Net(run, conv=nn.Conv2d(4, 4, 1), norm=nn.BatchNorm2d(4)), (X,))
    assert operators(network)[:5] == ["convolution", "batch norm", "relu", "relu", "add"]
    assert [shape_of(node) for node in network.outputs] == [(2, 2, 6, 6)]


@pytest.mark.parametrize(
    "act", [nn.Hardswish(), nn.Hardsigmoid(), nn.SiLU(), nn.Mish(), nn.SELU(), nn.CELU(), nn.Softplus(), nn.PReLU(4)]
)
def test_an_activation_is_one_operator(act):
    assert operators(read_network(nn.Sequential(act), (X,))) == [type(act).__name__.lower()]


def test_types_that_the_code_names_stay_and_a_converted_network_is_in_its_own():
    def run(self, x):
        return self.conv(x.float())

    def types(model, x):
        network = read_network(model, (x,))
        return [node.meta["val"].dtype for node in network.graph.nodes if node.op == "call_function"]

    assert types(Net(run, conv=nn.Conv2d(4, 4, 1)), X.byte()) == [torch.float32] * 2
    assert set(types(Net(run, conv=nn.Conv2d(4, 4, 1)).double(), X.byte())) == {torch.float64}
    half = Net(lambda self, x: self.conv(x).float().softmax(1), conv=nn.Conv2d(4, 4, 1)).half()
    assert types(half, X) == [torch.float16, torch.float32, torch.float32]


def test_each_node_knows_the_calls_that_compute_it():
    body = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())
    network = read_network(Net(lambda self, x: self.body(self.body(x)) + 1, body=body), (X,))
    convolutions = [node for node in network.graph.nodes if node.target is aten.convolution.default]
    assert [[call.path for call in network.calls[node]] for node in convolutions] == [["", "body", "body.0"]] * 2
    assert len(network.by_path["body.0"]) == 2
    assert [call.path for call in network.calls[only(network, aten.add.Tensor)]] == [""]
    assert network.where(convolutions[0]) == "body.0"
    assert network.where(only(network, aten.add.Tensor)) == "add"


def test_a_module_of_two_names_has_the_first():
    layer = nn.Conv2d(4, 4, 1)
    network = read_network(nn.Sequential(layer, nn.ReLU(), layer), (X,))
    assert {path: len(calls) for path, calls in network.by_path.items()} == {"": 1, "0": 2, "1": 1}
    assert [network.names[node] for node in network.names if node.users] == ["0.weight", "0.bias"]


def test_calls_from_one_tensor_to_one_are_told_from_others():
    def add(self, x, y):
        return x + y

    network = read_network(Net(lambda self, x: self.conv(self.add(x, x)), conv=nn.Conv2d(4, 4, 1), add=Net(add)), (X,))
    unary = {
        path: all(None not in network.shapes[call.key] for call in calls)
        for path, calls in network.by_path.items()
        if path
    }
    assert unary == {"conv": True, "add": False}


def test_parameters_buffers_and_inputs_have_their_names():
    network = read_network(
        Net(lambda self, x, scale, y: self.norm(x) * scale + y, norm=nn.BatchNorm2d(4)), (X, 2.0), {"y": X}
    )
    assert sorted(set(network.names.values())) == [
        "norm.bias", "norm.num_batches_tracked", "norm.running_mean", "norm.running_var", "norm.weight",
    ]  # fmt: skip
    assert [shape_of(node) for node in network.inputs] == [(2, 4, 6, 6)] * 2


def test_what_the_input_does_not_reach_is_constant_and_computed_in_float64():
    def run(self, x):
        weight = self.g * self.weight / self.weight.norm() + torch.arange(4.0)
        return F.linear(x, weight)

    model = Net(run, weight=nn.Parameter(torch.randn(4, 4)), g=nn.Parameter(torch.ones(1)))
    network = read_network(model, (torch.randn(3, 4),))
    layer = only(network, aten.linear.default)
    assert network.is_constant(layer.args[1])
    assert not network.is_constant(layer)
    assert network.is_constant(3)
    w = model.weight.double()
    torch.testing.assert_close(network.constant(layer.args[1]), w / w.norm() + torch.arange(4.0), rtol=0, atol=1e-15)


def test_outputs_keep_their_structure():
    network = read_network(Net(lambda self, x: {"a": x + 1, "b": [x, (x * 2, None)]}), (X,))
    assert [operator_of(node) for node in network.outputs] == ["add", "input", "mul"]
    assert set(network.output) == {"a", "b"}
    assert network.output["b"][1][1] is None


def test_the_network_is_neither_changed_nor_are_its_hooks_called():
    calls = []
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)).train()
    model[0].register_forward_hook(lambda *_: calls.append(1))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    read_network(model, (X,))
    assert calls == []
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert has_hooks(model[0])
    assert not has_hooks(model[1])


def test_a_twin_shares_every_tensor_and_has_no_hooks():
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    model[0].register_forward_pre_hook(lambda *_: None)
    twin = twin_of(model)
    assert twin is not model
    assert not any(has_hooks(part) for part in twin.modules())
    assert all(
        a is b
        for a, b in zip(
            model.state_dict(keep_vars=True).values(), twin.state_dict(keep_vars=True).values(), strict=True
        )
    )


def scripted():
    return nn.Sequential(torch.jit.script(nn.ReLU()))  # pyright: ignore[reportPrivateImportUsage]


def uncopied():
    def refuse(self, memo):
        raise RuntimeError("no copy")

    return type("Locked", (nn.Module,), {"__deepcopy__": refuse})()


@pytest.mark.parametrize(
    ("model", "line"),
    [
        (
            lambda: Net(lambda self, x: F.dropout(x, 0.5)),
            "dropout in Net stays on in evaluation mode: use nn.Dropout, or pass training=",
        ),
        (
            lambda: Net(lambda self, x: x + torch.rand_like(x)),
            "rand(om)?( like)? in Net draws random numbers in evaluation mode",
        ),
        (
            lambda: Net(lambda self, x: x if x.sum() > 0 else -x),
            "Net cannot be read by torch.export: .*; its control flow must not depend",
        ),
        (lambda: nn.Conv2d(3, 4, 1), "Conv2d cannot be run on example_input: Given groups=1"),
        (lambda: nn.LazyConv2d(4, 1), "has lazy parameters without a shape: run it once on an input first"),
        (uncopied, "Locked cannot be copied: no copy; keep only what copy.deepcopy can copy in it"),
        (
            lambda: Net(lambda self, x: (x, "label")),
            "outputs must be tensors in tuples, lists or dicts, found str at 1",
        ),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(model, line):
    with pytest.raises(ReparamError, match=line) as error:
        read_network(model(), (X,))
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_scripted_module_is_refused():
    with pytest.raises(ReparamError, match="holds a scripted module: give the nn.Module that it was scripted from"):
        read_network(scripted(), (X,))
