import pytest
import torch
import torch.nn.functional as F
from torch import nn

from reparam.branches import Branches, MergeChoice, unmerged
from reparam.graph import operator_of, read_network
from unit.reparam.helpers import Net

X = torch.randn(2, 4, 6, 6)


def branches_of(run, *, x=X, kept=(), opaque=(), **parts):
    """The forms of a network's values; `kept` and `opaque` are names of modules."""
    torch.manual_seed(0)
    model = Net(run, **parts)
    for norm in model.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.running_mean.normal_()
    network = read_network(model, (x,))

    def of(names):
        return {node for node, chain in network.calls.items() if any(call.path in names for call in chain)}

    return Branches(network, of(opaque), of(kept))


def merged(branches, **options):
    """Which operators each merge takes together, in the order of the graph."""
    order = [*branches.network.graph.nodes].index
    return [
        [operator_of(node) for node in sorted(merge.operators, key=order)]
        for merge in MergeChoice(branches, **options).merges
    ]


def conv(c_in=4, c_out=4, size=3, **options):
    return nn.Conv2d(c_in, c_out, size, **{"padding": size // 2, **options})


@pytest.mark.parametrize(
    "run",
    [
        lambda s, x: s.norm(s.conv(x)),
        lambda s, x: s.conv(x) * 2 + 1,
        lambda s, x: 1 - s.conv(x) / 2,
        lambda s, x: -s.conv(x),
        lambda s, x: s.conv(x) * s.scale.view(1, -1, 1, 1),
        lambda s, x: F.avg_pool2d(x, 3, 1, 1) + s.conv(x),
        lambda s, x: torch.add(x, s.conv(x), alpha=0.5),
        lambda s, x: torch.sub(s.conv(x), x, alpha=2),
        lambda s, x: s.conv(F.pad(x * s.scale.view(-1, 1, 1), (1, 1, 1, 1), mode="reflect")),
        lambda s, x: s.conv(x).clone() + x,
    ],
)
def test_every_spelling_of_a_linear_branch_is_one_layer(run):
    branches = branches_of(run, conv=conv(), norm=nn.BatchNorm2d(4), scale=nn.Parameter(torch.randn(4)))
    (merge,) = MergeChoice(branches).merges
    assert operator_of(merge.host) == "convolution"


@pytest.mark.parametrize(
    "run",
    [
        lambda s, x: s.conv(x).relu() * 2,
        lambda s, x: s.conv(x) * x,
        lambda s, x: s.conv(x) + torch.arange(6.0),  # a number a column
        lambda s, x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False) + s.conv(x),
        lambda s, x: F.avg_pool2d(x, 3, 1, ceil_mode=True) + s.conv(x)[:, :, 1:-1, 1:-1],
        lambda s, x: F.conv2d(x, s.conv.weight * x.mean(), padding=1),
        lambda s, x: s.conv(x) + s.conv(x.flip(1)),
        lambda s, x: s.conv(F.pad(x, (1, 1, 1, 1), value=1.0)) + 0 * x.mean(),
    ],
)
def test_what_is_not_linear_in_a_channel_is_left(run):
    assert merged(branches_of(run, conv=conv())) == []


def test_a_sum_of_branches_is_found_through_its_norms_and_the_identity():
    def run(s, x):
        return (s.norms[0](s.dense(x)) + s.norms[1](s.point(x)) + s.norms[2](x)).relu()

    branches = branches_of(
        run, dense=conv(), point=conv(size=1), norms=nn.ModuleList(nn.BatchNorm2d(4) for _ in range(3))
    )
    (merge,) = MergeChoice(branches).merges
    assert [operator_of(node) for node in sorted(merge.operators, key=[*branches.network.graph.nodes].index)] == [
        "convolution", "batch norm", "convolution", "batch norm", "add", "batch norm", "add",
    ]  # fmt: skip
    assert not merge.chain
    assert merge.host.args[1].name.endswith("dense_weight")


def test_layers_in_a_row_are_merged_only_where_that_costs_no_more():
    narrow = branches_of(lambda s, x: s.b(s.a(x)), a=conv(4, 1, 1), b=conv(1, 4, 1))
    assert merged(narrow) == []
    (line,) = MergeChoice(narrow).costly.values()
    assert line.startswith("one layer would take 1,152 multiply-accumulates, the 2 take 576")
    wide = branches_of(lambda s, x: s.b(s.a(x)), a=conv(4, 16, 1), b=conv(16, 4, 1))
    assert merged(wide) == [["convolution", "convolution"]]


def test_what_somebody_sees_or_reads_elsewhere_is_not_absorbed():
    parts = {"conv": conv(), "norm": nn.BatchNorm2d(4)}
    assert merged(branches_of(lambda s, x: s.norm(s.conv(x)), kept=("conv",), **parts)) == []
    assert merged(branches_of(lambda s, x: s.norm(s.conv(x)), opaque=("norm",), **parts)) == []
    assert merged(branches_of(lambda s, x: ((y := s.conv(x)), s.norm(y))[1] * y.relu(), **parts)) == []


def test_a_banned_value_is_left_and_norms_alone_leave_sums():
    def run(s, x):
        return s.norm(s.conv(x)) + x

    branches = branches_of(run, conv=conv(), norm=nn.BatchNorm2d(4))
    (merge,) = MergeChoice(branches).merges
    assert merge.node not in {found.node for found in MergeChoice(branches, {merge.node}).merges}
    assert merged(branches, norms_only=True) == [["convolution", "batch norm"]]


def test_a_norm_goes_into_the_layer_in_front_of_it_rather_than_behind():
    branches = branches_of(lambda s, x: s.b(s.norm(s.a(x))), a=conv(), norm=nn.BatchNorm2d(4), b=conv(padding=0))
    (merge,) = MergeChoice(branches).merges
    assert merge.host.args[1].name.endswith("a_weight")


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (lambda s, x: s.norm(x.relu()), "it reads relu and is read by output"),
        (
            lambda s, x: F.batch_norm(s.conv(x), None, None, training=True),
            "it has no running statistics, so it depends on its batch",
        ),
        (lambda s, x: ((y := s.conv(x)), s.norm(y))[1] * y.relu(), "its input has another reader"),
        (lambda s, x: s.conv(s.norm(x)), "it reads input and is read by convolution; the second pads with zeros"),
    ],
)
def test_a_norm_that_stays_has_a_reason(run, reason):
    branches = branches_of(run, conv=conv(), norm=nn.BatchNorm2d(4))
    (found,) = [why for _, why in unmerged(MergeChoice(branches), branches)]
    assert reason in found


def test_norms_behind_linear_layers_are_over_the_dimension_of_their_channels():
    parts = {"linear": nn.Linear(4, 4), "norm": nn.BatchNorm1d(4)}
    flat = branches_of(lambda s, x: s.norm(s.linear(x)), x=torch.randn(3, 4), **parts)
    assert merged(flat) == [["linear", "batch norm"]]
    tokens = branches_of(lambda s, x: s.norm(s.linear(x)), x=torch.randn(3, 4, 4), **parts)
    assert merged(tokens) == []


@pytest.mark.parametrize(
    ("run", "layer"),
    [
        (lambda s, x: s.norm1(s.linear(x.flatten(2).transpose(1, 2)).flatten(0, 1)), "linear"),
        (lambda s, x: s.norm1(s.linear(x.flatten(2).transpose(1, 2)).transpose(1, 2)), "linear"),
        (lambda s, x: s.norm1(s.conv(x).flatten(2)), "convolution"),
        (lambda s, x: s.norm2(s.conv(x).permute(2, 1, 0, 3)), "convolution"),
        (lambda s, x: s.conv1(s.norm2(x).mean((2, 3)).unsqueeze(-1)), None),  # the mean is not a view
        (lambda s, x: s.norm2(s.conv(x).view(2, 4, 4, 9).transpose(1, 2)), None),  # channels are not the norm's
        (lambda s, x: s.norm2(s.conv(x).view(4, 4, 2, 9)), None),
    ],
)
def test_a_norm_goes_into_the_layer_in_front_of_a_view_that_keeps_channels(run, layer):
    parts = {
        "conv1": nn.Conv1d(4, 4, 1),
        "norm1": nn.BatchNorm1d(4),
        "norm2": nn.BatchNorm2d(4),
        "linear": nn.Linear(4, 4),
    }
    branches = branches_of(run, conv=conv(), **parts)
    assert merged(branches) == ([[layer, "batch norm"]] if layer else [])


def test_a_sum_in_front_of_a_view_is_merged_without_it():
    branches = branches_of(lambda s, x: (s.conv(x) + x).flatten(2), conv=conv())
    (merge,) = MergeChoice(branches).merges
    assert operator_of(merge.node) == "add"


def test_a_scaling_stays_in_an_activation_and_leaves_a_module_of_its_own():
    class Swish(nn.Module):
        def forward(self, x):
            return x * torch.clamp(x + 3, 0, 6) / 6

    class Scale(nn.Module):
        def forward(self, x):
            return x / 6

    def run(s, x):
        return s.behind(s.middle(s.front(x).relu()))

    parts = {"front": conv(), "behind": conv(padding=0)}
    assert merged(branches_of(run, middle=Swish(), **parts)) == []
    assert merged(branches_of(run, middle=Scale(), **parts)) == [["div", "convolution"]]
    assert merged(branches_of(lambda s, x: s.behind(s.front(x).relu() / 6), **parts)) == [["div", "convolution"]]
