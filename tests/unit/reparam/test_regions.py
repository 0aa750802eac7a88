import pytest
import torch
from torch import nn

from reparam.graph import read_network
from reparam.regions import (
    HookedModuleError,
    Region,
    call_input,
    call_output,
    only_readers,
    replace_module,
    replaceable_call,
    tensor_of,
)
from unit.reparam.helpers import Net

X = torch.randn(2, 3, 4, 4)


def residual():
    return Net(lambda n, x: n.conv(x) + x, conv=nn.Conv2d(3, 3, 1))


@pytest.fixture
def network():
    return read_network(nn.Sequential(residual(), nn.ReLU()).eval(), (X,))


def test_ends_of_a_call_are_what_it_takes_and_returns(network):
    (call,) = network.by_path["0"]
    assert call_input(network, call) is network.inputs[0]
    assert network.where(call_output(network, call)) == "0"


def test_a_call_with_two_inputs_has_no_ends():
    network = read_network(Net(lambda n, x: n.add(x, x + 1), add=Net(lambda n, x, y: x + y)), (X,))
    (call,) = network.by_path["add"]
    assert call_input(network, call) is None


def test_a_tensor_that_other_code_reads_ties_a_module_to_it():
    tied = Net(lambda n, x: n.a(x) * n.a.weight.sum(), a=nn.Conv2d(3, 3, 1)).eval()
    network = read_network(tied, (X,))
    nodes = set(network.by_path["a"][0].nodes)
    assert not only_readers(network, tied, "a", nodes)


def test_a_call_in_a_module_that_is_called_twice_moves_to_the_one_around(network):
    twice = Net(lambda n, x: n.part(n.part(x)), part=residual()).eval()
    network = read_network(twice, (X,))
    call = network.by_path["part.conv"][0]
    assert replaceable_call(network, twice, call, call.nodes) is network.root


def test_a_hook_around_it_names_the_nodes(network):
    network.model[0].register_forward_hook(lambda *_: None)
    (call,) = network.by_path["0"]
    with pytest.raises(HookedModuleError) as raised:
        replaceable_call(network, network.model, call, call.nodes[:1])
    assert raised.value.nodes == call.nodes[:1]


def test_a_module_is_replaced_everywhere_and_the_network_itself_too():
    conv = nn.Conv2d(3, 3, 1)
    model = nn.Sequential(conv, nn.Sequential(conv))
    assert replace_module(model, "0", nn.Identity()) is model
    assert [type(model.get_submodule(path)) for path in ("0", "1.0")] == [nn.Identity, nn.Identity]
    assert replace_module(model, "", conv) is conv


def test_a_region_calls_what_is_not_touched_and_inlines_the_rest(network):
    (call,) = network.by_path["0"]
    (result,) = [node for node in call.nodes if "add" in node.name]
    region = Region(network, network.model, call, {result})
    module = region.module()
    assert [node.op for node in module.graph.nodes] == ["placeholder", "call_module", "call_function", "output"]
    assert module.conv is network.model[0].conv
    assert torch.equal(module(X), network.model[0](X))


def test_a_region_takes_other_batches():
    model = nn.Sequential(Net(lambda n, x: n.linear(x.view(x.shape[0], -1)), linear=nn.Linear(48, 2))).eval()
    network = read_network(model, (X,))
    module = Region(network, model, network.by_path["0"][0], {network.outputs[0]}).module()
    assert module(torch.randn(5, 3, 4, 4)).shape == (5, 2)


def test_tensors_are_found_by_name():
    model = nn.Sequential(nn.Conv2d(3, 3, 1))
    assert tensor_of(model, "0.bias") is model[0].bias
