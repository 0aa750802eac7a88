import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from reparam.flow import ChannelFlow
from reparam.graph import read_network
from reparam.rules import rule_of
from unit.reparam.helpers import Net

X = torch.randn(1, 3, 4, 4)


def flow_of(model, x=X):
    return ChannelFlow(read_network(model.eval(), (x,)), rule_of, generic=True)


def test_what_mixes_channels_reads_and_makes_them():
    flow = flow_of(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 5, 1)))
    assert [(flow.layer_name(node), len(ids)) for node, ids in flow.makers] == [("0", 4), ("2", 5)]
    assert np.array_equal(flow.readers[1][1], flow.makers[0][1])
    assert flow.group(flow.makers[1][1]) == "2"


def test_operators_without_a_rule_pin_what_they_read_by_name():
    flow = flow_of(Net(lambda n, x: torch.cumsum(n.a(x), 1), a=nn.Conv2d(3, 4, 1)))
    assert "node cumsum: squeeze has no rule for cumsum" in {why for _, why in flow.pinned}
    assert flow.atoms.kept(flow.makers[0][1]).all()


@pytest.mark.parametrize(
    "forward",
    [
        lambda n, x: n.a(x) * n.table,
        lambda n, x: n.a(x) + n.table.view(1, 2, 2, 1, 1).reshape(1, 4, 1, 1),
        lambda n, x: torch.where(n.a(x) > 0, n.a(x), n.table),
    ],
)
def test_a_parameter_with_an_entry_for_each_channel_is_cut_with_them(forward):
    flow = flow_of(Net(forward, a=nn.Conv2d(3, 4, 1), table=nn.Parameter(torch.ones(4, 1, 1))))
    made, table = flow.makers[0][1], flow.cuts["table"].ravel()
    assert np.array_equal(flow.atoms.roots(made), flow.atoms.roots(table))


def test_constants_that_go_with_no_channel_stay():
    """A bias for each pair of tokens, the same for all channels."""
    flow = flow_of(Net(lambda n, x: n.a(x) + n.table, a=nn.Conv2d(3, 4, 1), table=nn.Parameter(torch.ones(4, 4))))
    assert flow.atoms.kept(flow.cuts["table"]).all()


def test_channels_in_several_dimensions_go_as_a_box():
    """Two rows of three: an entry is of one channel of each row."""
    flow = flow_of(Net(lambda n, x: F.relu(n.a(x).view(1, 2, 3, 4, 4)), a=nn.Conv2d(3, 6, 1)))
    roots = flow.atoms.roots(flow.makers[0][1]).reshape(2, 3)
    assert np.array_equal(roots[0], roots[1])
    assert len(np.unique(roots)) == 3
