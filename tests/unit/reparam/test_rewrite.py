import pytest
import torch
from torch import fx, nn

from reparam.branches import Branches, MergeChoice
from reparam.equivalence import compare
from reparam.graph import read_network
from reparam.regions import HookedModuleError
from reparam.rewrite import rewrite
from unit.reparam.helpers import Net

X = torch.randn(2, 4, 6, 6)


def conv(c_in=4, c_out=4, size=3, **options):
    return nn.Conv2d(c_in, c_out, size, **{"padding": size // 2, **options})


@pytest.fixture
def rewritten(randomized):
    """The rewritten form of a network, proven to compute the same."""

    def make(model, args=(X,), kwargs=None, *, whole=False):
        network = read_network(randomized(model), args, kwargs)
        merges = MergeChoice(Branches(network, frozenset(), frozenset())).merges
        found = rewrite(network, merges, whole=whole)
        assert compare(model, found.module, args, keywords=kwargs).within(1e-12)
        return found

    return make


def test_a_row_keeps_its_layer_and_leaves_identities(rewritten):
    model = nn.Sequential(conv(bias=False), nn.BatchNorm2d(4), nn.ReLU())
    found = rewritten(model)
    assert found.graphs == ()
    assert [type(part) for part in found.module] == [nn.Conv2d, nn.Identity, nn.ReLU]
    assert model[0].bias is None
    assert isinstance(model[1], nn.BatchNorm2d)


def test_weights_are_exact_until_they_are_rounded_once(rewritten):
    found = rewritten(nn.Sequential(conv(), nn.BatchNorm2d(4)))
    exact = found.module[0].weight.detach().clone()
    assert exact.dtype == torch.float64
    assert torch.equal(found.rounded()[0].weight, exact.float())


def residual():
    return Net(lambda s, x: s.norm(s.conv(x)) + x, conv=conv(), norm=nn.BatchNorm2d(4))


def test_a_module_whose_code_computes_what_is_gone_becomes_its_graph(rewritten):
    model = nn.Sequential(residual(), nn.ReLU(), residual())
    found = rewritten(model)
    assert found.graphs == ("0", "2")
    assert isinstance(found.module, nn.Sequential)
    assert all(isinstance(found.module[index], nn.Conv2d) for index in (0, 2))


def test_the_graph_of_a_module_keeps_the_names_of_the_parts_that_stay(rewritten):
    def run(s, x):
        return s.head(s.act(s.norm(s.conv(x)) + x))

    head = nn.Sequential(conv(), nn.Sigmoid())
    block = Net(run, conv=conv(), norm=nn.BatchNorm2d(4), act=nn.ReLU(), head=head)
    found = rewritten(nn.Sequential(block))
    assert isinstance(found.module[0], fx.GraphModule)
    assert isinstance(found.module.get_submodule("0.head"), nn.Sequential)
    assert sorted(name for name, _ in found.module.named_parameters()) == [
        "0.conv.bias", "0.conv.weight", "0.head.0.bias", "0.head.0.weight",
    ]  # fmt: skip


def test_a_module_with_several_arguments_is_rewritten_in_the_one_around_it(rewritten):
    add = Net(lambda s, x, y: s.norm(x) + y, norm=nn.BatchNorm2d(4))
    body = Net(lambda s, x: s.add(s.conv(x), x).relu(), conv=conv(), add=add)
    assert rewritten(nn.Sequential(nn.ReLU(), body)).graphs == ("1",)


def test_the_network_as_a_graph_takes_and_returns_what_it_did(rewritten):
    def run(s, x, pair, scale=1.0):
        y = s.norm(s.conv(x)) + x
        return {"sum": y + pair["a"], "rest": [pair["b"] * scale, None]}

    model = Net(run, conv=conv(), norm=nn.BatchNorm2d(4))
    args, kwargs = (X, {"a": torch.randn(2, 4, 6, 6), "b": torch.randn(3)}), {"scale": 2.0}
    found = rewritten(model, args, kwargs)
    assert found.graphs == ("",)
    output = found.rounded()(*args, **kwargs)
    assert set(output) == {"sum", "rest"}
    assert torch.equal(output["rest"][0], args[1]["b"] * 2)
    assert output["rest"][1] is None


def test_a_graph_takes_other_batches_than_the_example(rewritten):
    def run(s, x):
        y = s.norm(s.conv(x)) + x
        return s.head(y.view(x.shape[0], -1))

    found = rewritten(Net(run, conv=conv(), norm=nn.BatchNorm2d(4), head=nn.Linear(144, 2))).rounded()
    assert found(torch.randn(5, 4, 6, 6)).shape == (5, 2)


def test_a_shared_layer_becomes_two_where_its_calls_differ(rewritten):
    def run(s, x):
        return s.first(s.conv(x)).relu() + s.second(s.conv(x)).relu()

    model = nn.Sequential(Net(run, conv=conv(), first=nn.BatchNorm2d(4), second=nn.BatchNorm2d(4)))
    found = rewritten(model)
    assert sum(isinstance(part, nn.Conv2d) for part in found.module.modules()) == 2
    same = nn.Sequential(shared := conv(), norm := nn.BatchNorm2d(4), nn.ReLU(), shared, norm)
    found = rewritten(same)
    assert found.graphs == ()
    assert found.module[0] is found.module[3]


def test_weights_that_are_computed_are_stored(rewritten):
    layer = nn.utils.parametrizations.weight_norm(conv())
    found = rewritten(nn.Sequential(layer, nn.BatchNorm2d(4)))
    assert {name.rpartition(".")[2] for name, _ in found.module.named_parameters()} == {"weight", "bias"}


def test_a_module_that_is_watched_is_not_taken_away():
    model = nn.Sequential(residual()).eval()
    model[0].register_forward_hook(lambda *_: None)
    network = read_network(model, (X,))
    merges = MergeChoice(Branches(network, frozenset(), frozenset())).merges
    with pytest.raises(HookedModuleError) as error:
        rewrite(network, merges)
    assert error.value.nodes == [merges[0].node]


def test_a_whole_graph_says_which_node_computes_which_value(rewritten):
    found = rewritten(nn.Sequential(residual(), nn.ReLU()), whole=True)
    assert found.graphs == ("",)
    merged, names = found.values
    assert {node.name for node in merged.graph.nodes} >= {names[node] for node in names if node.name in ("add", "relu")}
