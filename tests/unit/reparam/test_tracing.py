import operator

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from reparam.blocks import ChannelMask, RepVGGBlock
from reparam.errors import ReparamError
from reparam.tracing import describe, operator_name, propagate, trace


class Net(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.conv, self.body = nn.Conv2d(4, 4, 1, groups=2), forward

    def forward(self, x, y=None, scale=2.0):
        return self.body(self, x if y is None else x + y, scale)


def test_blocks_and_masks_are_leaves():
    model = nn.Sequential(RepVGGBlock(3, 4), nn.Sequential(nn.ReLU(), ChannelMask(torch.ones(4, dtype=torch.bool))))
    assert [node.target for node in trace(model).nodes if node.op == "call_module"] == ["0", "1.0", "1.1"]


@pytest.mark.parametrize(
    ("parts", "count"),
    [
        (lambda x: x.chunk(2, 1), 2),
        (lambda x: torch.chunk(x, chunks=4, dim=1), 4),
        (lambda x: x.split([1, 3], 1), 2),
        (lambda x: torch.split(x, (1, 1, 2), dim=1), 3),
        (lambda x: x.chunk(2, 1)[-1:], 1),
        (lambda x: [x.split(2, 1)[0]], 1),
    ],
)
def test_parts_of_a_split_may_be_listed(parts, count):
    graph = trace(Net(lambda n, x, s: torch.cat(list(parts(x))[::-1], 1)))
    assert [operator_name(node) for node in graph.nodes].count("getitem") == count


def test_arguments_that_are_not_given_have_their_defaults():
    model = Net(lambda n, x, scale: n.conv(x) * scale)
    assert "add" not in {operator_name(node) for node in trace(model).nodes}
    assert "add" in {operator_name(node) for node in trace(model, inputs=2).nodes}


def test_every_node_has_its_value_without_its_memory():
    graph = trace(model := Net(lambda n, x, scale: n.conv(x).view(x.size(0), -1)))
    values = propagate(model, graph, (torch.ones(2, 4, 3, 3, dtype=torch.float64),))
    found = {node.name: value for node, value in values.items()}
    assert (tuple(found["view"].shape), found["view"].device.type, found["view"].dtype) == ((2, 36), "meta", torch.float32)
    assert found["size"] == 2


@pytest.mark.parametrize(
    ("forward", "name"),
    [
        (lambda n, x, s: x + 1, "add"),
        (lambda n, x, s: operator.iadd(x, 1), "add"),
        (lambda n, x, s: 1 - x, "sub"),
        (lambda n, x, s: x.mul_(2), "mul"),
        (lambda n, x, s: torch.true_divide(x, 2), "div"),
        (lambda n, x, s: F.relu(x), "relu"),
        (lambda n, x, s: x.relu_(), "relu"),
        (lambda n, x, s: torch.nn.functional.max_pool2d(x, 2), "max_pool2d"),
        (lambda n, x, s: torch.concat([x, x], 1), "cat"),
        (lambda n, x, s: x.reshape(2, -1), "view"),
        (lambda n, x, s: torch.ops.aten._to_copy.default(x, dtype=torch.float64), "to"),
        (lambda n, x, s: torch.ops.aten.upsample_nearest2d.vec(x, None, [2.0, 2.0]), "interpolate"),
        (lambda n, x, s: wrapped(x), ""),
        (lambda n, x, s: n.conv(x), ""),
    ],
)
def test_an_operator_has_one_name_however_it_is_called(forward, name):
    *_, last, _output = trace(Net(forward)).nodes
    assert operator_name(last) == name


@fx.wrap
def wrapped(x):
    return x


def test_operators_in_words():
    model = Net(lambda n, x, s: n.conv(x).softmax(1))
    assert [describe(model, node) for node in trace(model).nodes if node.op.startswith("call")][-2:] == ["Conv2d of 2 groups", "softmax"]


def test_what_cannot_be_traced_or_run_says_so_in_one_line():
    with pytest.raises(ReparamError, match="the network cannot be traced by torch.fx: .* take that part out of the network") as caught:
        trace(Net(lambda n, x, s: x if x.sum() > 0 else n.conv(x)))
    assert "\n" not in str(caught.value)
    model = Net(lambda n, x, s: n.conv(x))
    with pytest.raises(ReparamError, match="node conv cannot be run on example_input: .*expected input"):
        propagate(model, trace(model), (torch.ones(1, 3, 2, 2),))
    masked = nn.Sequential(ChannelMask(torch.ones(2, dtype=torch.bool)))
    with pytest.raises(ReparamError, match="mask 0 has 2 entries for 3 channels: it needs one for each"):
        propagate(masked, trace(masked), (torch.ones(1, 3),))
