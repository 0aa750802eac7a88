import gc

import pytest
import torch
from torch import nn

from reparam import exported
from reparam.graph import operator_of, read_network
from reparam.masking import Masked, Masks, MaskSite, attach_mask
from unit.reparam.helpers import Net


@pytest.fixture
def exports(monkeypatch):
    """What torch.export is called on."""
    called = []
    export = exported._export
    monkeypatch.setattr(exported, "_cache", type(exported._cache)())
    monkeypatch.setattr(exported, "_export", lambda flat: called.append(flat.network) or export(flat))
    return called


X = torch.randn(2, 4, 6, 6)


def network(width=4, act=nn.ReLU, norm=True):
    return nn.Sequential(nn.Conv2d(4, width, 1), nn.BatchNorm2d(width) if norm else nn.Identity(), act())


def run(self, x):
    return self.scale * x


def operators(found):
    return [operator_of(node) for node in found.graph.nodes if node.op == "call_function"]


def test_networks_that_differ_in_weights_and_inputs_are_exported_once(exports):
    one, other = network(), network().train()
    for x in (X, torch.randn(2, 4, 6, 6)):
        found = [read_network(one, (x,)), read_network(other, (x,))]
    assert len(exports) == 1
    assert operators(found[0]) == operators(found[1])
    for model, graph in zip((one, other), found, strict=True):
        weights = {name: graph.constant(node) for node, name in graph.names.items()}
        assert torch.equal(weights["0.weight"], model[0].weight.double())
        assert graph.calls.keys() == set(graph.graph.nodes)


def test_a_graph_is_the_readers_own(exports):
    changed = read_network(network(), (X,))
    for node in reversed([*changed.graph.nodes]):
        changed.graph.erase_node(node)
    assert operators(read_network(network(), (X,)))[0] == "convolution"
    assert len(exports) == 1


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (network(5), X),
        (network(act=nn.SiLU), X),
        (network(norm=False), X),
        (network().double(), X),
        (network(), X[:1]),
        (network(), X.expand(2, 4, 6, 6).contiguous(memory_format=torch.channels_last)),
    ],
    ids=["width", "class", "module", "type", "shape", "layout"],
)
def test_what_the_graph_depends_on_is_told_apart(exports, model, x):
    read_network(network(), (X,))
    read_network(model, (x,))
    assert len(exports) == 2


def test_shared_weights_are_told_from_equal_ones(exports):
    def shared(model):
        model[1].weight = model[0].weight
        return model

    names = [
        set(read_network(make(nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1))), (X,)).names.values())
        for make in (lambda m: m, shared)
    ]
    assert names[0] - names[1] == {"1.weight"}
    assert len(exports) == 2


def test_tensors_that_are_neither_parameters_nor_buffers_count_by_value(exports):
    found = []
    for scale in (2.0, 2.0, 3.0):
        model = Net(run)
        model.scale = torch.tensor(scale)
        network = read_network(model, (X,))
        (constant,) = [network.constant(node) for node in network.names]
        found.append(float(constant))
    assert found == [2.0, 2.0, 3.0]


def test_code_counts_by_identity_even_after_it_is_gone(exports):
    def make(sign):
        class Branch(nn.Module):
            def forward(self, x):
                return x + 1 if sign > 0 else x - 1

        return Branch()

    found = []
    for sign in (1, -1, 1, -1):
        found.append(operators(read_network(make(sign), (X,))))
        gc.collect()
    assert found == [["add"], ["sub"]] * 2


def test_masks_of_one_kind_are_exported_once_whatever_the_numbers_of_their_hooks(exports):
    for _ in range(2):
        model = nn.Sequential(nn.Conv2d(4, 4, 1), Masks())
        model[1].add_module("a", nn.BatchNorm2d(4))
        attach_mask(model[0], Masked(model[1], "a", MaskSite("0", False, 1, (0, 1, 2, 3)), 4))
        assert operators(read_network(model, (X,)))[:2] == ["convolution", "batch norm"]
    assert len(exports) == 1


def test_a_network_that_cannot_be_written_is_exported_each_time(exports):
    class Locked:
        def __reduce__(self):
            raise TypeError("cannot be pickled")

        def __deepcopy__(self, memo):
            return self

    for _ in range(2):
        model = network()
        model.locked = Locked()
        assert operators(read_network(model, (X,)))[0] == "convolution"
    assert len(exports) == 2
    assert not exported._cache


def test_the_oldest_graphs_are_dropped(exports, monkeypatch):
    monkeypatch.setattr(exported, "KEPT", 2)
    for width in (3, 5, 3, 6, 3, 5):
        read_network(network(width), (X,))
    assert [model[0].out_channels for model in exports] == [3, 5, 6, 5]
