import collections

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.export.exported_program import default_decompositions

from reparam.decompose import _WHOLE, aten, decomposed
from unit.reparam.helpers import Net

X = torch.randn(2, 4, 6, 6)


def writes_into_views(self, x):
    first, second = (x * 2).chunk(2, 1)
    F.hardswish(first, inplace=True)
    second += self.conv(x)[:, 2:]
    second[:, :1].relu_()
    return torch.cat([second, first], 1).flatten(1)


def attends(self, x):
    x = self.norm(x.flatten(2).transpose(1, 2))
    x = F.scaled_dot_product_attention(x, x, x)
    return F.dropout(self.linear(F.gelu(x)), training=False).mean(1)


NETWORKS = {
    "layers": nn.Sequential(
        nn.Conv2d(4, 8, 3),
        nn.BatchNorm2d(8),
        nn.Hardswish(inplace=True),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 3),
    ),
    "views": Net(writes_into_views, conv=nn.Conv2d(4, 4, 1)),
    "tokens": Net(attends, norm=nn.LayerNorm(4), linear=nn.Linear(4, 5)),
    "batch statistics": nn.Sequential(
        nn.BatchNorm2d(4, track_running_stats=False), nn.Upsample(scale_factor=2), nn.Softmax(1)
    ),
}


@pytest.fixture(params=NETWORKS)
def program(request):
    with torch.no_grad():
        return torch.export.export(NETWORKS[request.param].eval(), (X,), strict=False)


def operators(graph):
    found = collections.Counter(node.target for node in graph.nodes if node.op == "call_function")
    del found[aten.clone.default]
    return found


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch's own, in what this is compared with
def test_it_has_the_operators_of_torchs_own_decomposition(program):
    table = default_decompositions()
    for overload, names in _WHOLE.items():
        for name in names:
            table.pop(getattr(getattr(aten, name), overload), None)
    expected = program.run_decompositions(table.materialize()).graph
    graph = decomposed(program)
    assert operators(graph) == operators(expected)
    assert [node.name for node in graph.find_nodes(op="placeholder")] == [
        node.name for node in expected.find_nodes(op="placeholder")
    ]


def test_it_computes_what_the_program_does(program):
    inputs = [*program.state_dict.values(), X]
    with torch.no_grad():
        (made,) = fx.Interpreter(nn.Module(), graph=decomposed(program)).run(*inputs)
        torch.testing.assert_close(made, program.module()(X))


def test_nothing_writes_but_what_the_network_keeps_between_calls():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return (x * self.calls).relu_()

    graph = decomposed(torch.export.export(Counting(), (X,), strict=False))
    writing = [node for node in graph.nodes if node.op == "call_function" and node.target._schema.is_mutable]
    assert [(node.target, node.args[0].name) for node in writing] == [(aten.copy_.default, "b_calls")]
