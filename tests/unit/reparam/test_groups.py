import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from reparam import ChannelMask, RepVGGBlock, channel_groups, compare, fuse, insert_masks, squeeze
from reparam.errors import ReparamError
from reparam.networks import light_network, plain_network
from unit.reparam.helpers import Net
from zoo import InvertedResidual, Residual, SqueezeExcite, UNet, conv_norm

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def found(model, x=X):
    """Name: (producers, sites, consumers) of every group that can be pruned."""
    return {g.name: (g.producers, tuple(map(str, g.sites)), g.consumers) for g in channel_groups(model, x) if not g.why}


def reasons(model, x=X):
    return {g.name: g.why for g in channel_groups(model, x)}


def half(group):
    return ChannelMask(torch.arange(group.channels) % 2 == 0)


def test_a_chain_is_masked_behind_norm_and_activation():
    model = nn.Sequential(
        conv_norm(3, 4),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 1),
        nn.Flatten(),
        nn.Linear(384, 5),
        nn.ReLU(),
        nn.Linear(5, 2),
    )
    assert found(model) == {
        "0.0": (("0.0",), ("0.2",), ("2",)),
        "2": (("2",), ("2",), ("4",)),
        "4": (("4",), ("5",), ("6",)),
    }
    assert [group.channels for group in channel_groups(model, X)] == [4, 6, 5, 2]
    assert reasons(model)["6"] == "it is an output of the network"


def test_a_residual_stage_is_one_group_masked_behind_its_sums():
    model = nn.Sequential(
        conv_norm(3, 8), Residual(8, 8, 1, bottleneck=False), Residual(8, 8, 1, bottleneck=False), nn.Conv2d(8, 2, 1)
    )
    assert found(model) == {
        "0.0": (("0.0", "1.body.1.0", "2.body.1.0"), ("0.2", "1.relu", "2.relu"), ("1.body.0.0", "2.body.0.0", "3")),
        "1.body.0.0": (("1.body.0.0",), ("1.body.0.2",), ("1.body.1.0",)),
        "2.body.0.0": (("2.body.0.0",), ("2.body.0.2",), ("2.body.1.0",)),
    }


def test_a_depthwise_convolution_and_a_gate_join_the_group_of_their_input():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), InvertedResidual(4, 6, 2, 2, 3, nn.ReLU6, se=True), nn.Conv2d(6, 2, 1))
    assert found(model) == {
        "0": (("0",), ("0",), ("1.body.0.0",)),
        "1.body.0.0": (("1.body.0.0", "1.body.1.0", "1.body.2.fc2"), ("1.body.1.2",), ("1.body.2.fc1", "1.body.3.0")),
        "1.body.2.fc1": (("1.body.2.fc1",), ("in front of 1.body.2.fc2",), ("1.body.2.fc2",)),
        "1.body.3.0": (("1.body.3.0",), ("1.body.3.1",), ("2",)),
    }


def test_layers_that_are_concatenated_have_masks_of_their_own():
    groups = found(UNet(1 / 16, levels=2), X)
    assert groups["up.0"] == (("up.0",), ("up.0",), ("merge.0.0.0",))
    assert groups["down.0.1.0"] == (("down.0.1.0",), ("down.0.1.2",), ("down.1.0.0", "merge.0.0.0"))


def test_trained_form_blocks_are_layers():
    model = nn.Sequential(RepVGGBlock(3, 4), RepVGGBlock(4, 4), nn.Flatten(), nn.Linear(1024, 2))
    assert found(model) == {"0": (("0",), ("0",), ("1",)), "1": (("1",), ("1",), ("3",))}
    assert found(fuse(model, X)) == {
        "0.conv": (("0.conv",), ("0.act",), ("1.conv",)),
        "1.conv": (("1.conv",), ("1.act",), ("3",)),
    }


@pytest.mark.parametrize("network", [plain_network, light_network])
def test_the_networks_of_pas_are_pruned_layer_by_layer(network, randomized):
    model = randomized(network((8, 8, 12), (2, 1, 1), classes=5)).double()
    groups = [group for group in channel_groups(model, X) if not group.why]
    assert [(group.name, group.producers) for group in groups] == [
        (f"layer{index}", (f"layer{index}",)) for index in range(3)
    ]
    masked = insert_masks(model, X, groups, half)
    squeezed = squeeze(fuse(masked, X), X)
    assert compare(masked, squeezed, X).within(1e-10)
    assert [m.out_channels for m in squeezed.modules() if isinstance(m, nn.Conv2d) and m.groups == 1] == [4, 4, 6]


def test_a_layer_that_is_used_in_turns():
    def forward(n, x):
        x = F.relu(n.a(x))
        return n.o(F.relu(n.s(F.relu(n.s(x)))))

    model = Net(forward, a=nn.Conv2d(3, 4, 1), s=nn.Conv2d(4, 4, 1), o=nn.Conv2d(4, 2, 1))
    assert found(model) == {"a": (("a", "s"), ("in front of s", "in front of o"), ("s", "o"))}


def test_a_norm_behind_the_mask_is_masked_again():
    def forward(n, x):
        x = n.a(x)
        return n.o(x + n.b(F.relu(n.norm(x))))

    model = Net(
        forward, a=nn.Conv2d(3, 4, 1), norm=nn.BatchNorm2d(4), b=nn.Conv2d(4, 4, 3, padding=1), o=nn.Conv2d(4, 2, 1)
    )
    assert found(model) == {"a": (("a", "b"), ("a", "in front of b", "in front of o"), ("b", "o"))}


@pytest.mark.parametrize("padding", [0, 1])
def test_a_norm_over_a_concatenation_needs_a_reader_without_padding(padding):
    def forward(n, x):
        return n.o(F.relu(n.norm(torch.cat([n.a(x), n.b(x)], 1))))

    model = Net(
        forward,
        a=nn.Conv2d(3, 2, 1),
        b=nn.Conv2d(3, 2, 1),
        norm=nn.BatchNorm2d(4),
        o=nn.Conv2d(4, 2, 3, padding=padding),
    )
    refusal = (
        "node convolution_2 (convolution in o): has a non-uniform border: its masked input channels hold a constant other than 0"
        if padding
        else ""
    )
    assert reasons(model) == {"a": refusal, "b": refusal, "o": "it is an output of the network"}


@pytest.mark.parametrize(
    ("model", "name", "why"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(1, 4), nn.Conv2d(4, 2, 1)), "0", "node group_norm (group norm in 1) takes its statistics over all channels"),
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.LayerNorm([4, 16, 16]), nn.Conv2d(4, 2, 1)), "0", "node layer_norm (layer norm in 1) takes its statistics over all channels"),
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.Softmax(1), nn.Conv2d(4, 2, 1)), "0", "node softmax in 1: squeeze has no rule for softmax over channels"),
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.PixelShuffle(2), nn.Conv2d(1, 2, 1)), "0", "its channels are tied to one another"),
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sigmoid(), nn.ZeroPad2d(1), nn.Conv2d(4, 2, 1)), "0", ""),  # masked behind the sigmoid
        (Net(lambda n, x: n.o(x + n.a(x)), a=nn.Conv2d(3, 3, 1), o=nn.Conv2d(3, 2, 1)), "a", "an input of the network has a number for each of them"),
    ],
)  # fmt: skip
def test_a_group_that_cannot_be_pruned_says_why(model, name, why):
    groups = {group.name: group for group in channel_groups(model, X)}
    assert groups[name].why.startswith(why)
    assert bool(groups[name].sites) == (not why)


def test_masks_are_shared_and_names_stay(randomized):
    model = randomized(nn.Sequential(conv_norm(3, 8), Residual(8, 8, 1, bottleneck=False), nn.Conv2d(8, 2, 1))).train()
    before = copy.deepcopy(model.state_dict())
    groups = [group for group in channel_groups(model, X) if not group.why]
    masked = insert_masks(model, X, groups, half)
    assert [name for name, _ in masked.masks.named_children()] == ["0_0", "1_body_0_0"]
    assert before.keys() <= masked.state_dict().keys()
    assert [type(m) for m in masked.modules()].count(ChannelMask) == 2
    assert (model.training, masked.training) == (True, True)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    squeezed = squeeze(masked, X)
    assert [m.out_channels for m in squeezed.modules() if isinstance(m, nn.Conv2d)] == [4, 4, 4, 2]
    assert compare(masked, squeezed, X).within(1e-12)


@pytest.mark.parametrize(
    ("x", "dims"),
    [
        (torch.randn(2, 10, 8), (2,)),
        (torch.randn(2, 16, 8), (2,)),
        (torch.randn(2, 5, 6, 8), (3,)),
        (torch.randn(5, 8), (1,)),
    ],
)
def test_hidden_channels_of_tokens_and_pixels_are_masked_where_they_are(x, dims):
    mlp = Net(lambda n, x: x + n.down(F.gelu(n.up(x))), up=nn.Linear(8, 16), down=nn.Linear(16, 8))
    (group,) = [group for group in channel_groups(mlp, x) if not group.why]
    assert (group.producers, tuple(site.dim for site in group.sites)) == (("up",), dims)
    masked = insert_masks(mlp, x, [group], half)
    expected = copy.deepcopy(mlp)
    expected.up.weight.data[1::2] = expected.up.bias.data[1::2] = 0
    assert compare(expected, masked, x).within(1e-12)
    squeezed = squeeze(masked, x)
    assert squeezed.up.out_features == squeezed.down.in_features == 8
    assert compare(expected, squeezed, x).within(1e-12)


def test_masks_of_ones_change_nothing():
    model = nn.Sequential(conv_norm(3, 8), SqueezeExcite(8, 2), nn.Conv2d(8, 2, 1))
    groups = [group for group in channel_groups(model, X) if not group.why]
    masked = insert_masks(model, X, groups, lambda group: ChannelMask(torch.ones(group.channels, dtype=torch.bool)))
    assert compare(model, masked, X).max_abs == 0


def test_a_masked_channel_has_a_gradient_to_come_back_by(randomized):
    class Indicator(nn.Module):
        def __init__(self, group):
            super().__init__()
            self.v = nn.Parameter((torch.arange(group.channels) > 1).float())

        def forward(self, x):
            return x * self.v.view(-1, *[1] * (x.ndim - 2))

    model = randomized(nn.Sequential(conv_norm(3, 8), Residual(8, 8, 1, bottleneck=False), nn.Conv2d(8, 2, 1)))
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.constant_(norm.bias, 2.0)  # so that no ReLU hides the channel anyway
    masked = insert_masks(model, X, [channel_groups(model, X)[0]], Indicator)
    masked(X).square().sum().backward()
    assert (masked.masks.get_submodule("0_0").v.grad != 0).all()


def test_what_cannot_be_masked_is_named():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    inner, output = channel_groups(model, X)
    with pytest.raises(ReparamError, match="group 2 cannot be masked: it is an output of the network"):
        insert_masks(model, X, [output], half)
    with pytest.raises(
        ReparamError, match="group 0 cannot be masked: the network has no such modules; call channel_groups again"
    ):
        insert_masks(nn.Sequential(nn.Conv2d(3, 4, 1)), X, [inner], half)
    with pytest.raises(ReparamError, match="group 0 cannot be masked: the network already has a submodule 'masks'"):
        insert_masks(insert_masks(model, X, [inner], half), X, [inner], half)


def test_the_network_keeps_its_own_code():
    """What it computes in training mode alone is not in the graph of its evaluation mode."""
    model = Net(
        lambda n, x: n.o(F.dropout(F.relu(n.a(x)), training=n.training)), a=nn.Conv2d(3, 4, 1), o=nn.Conv2d(4, 2, 1)
    )
    masked = insert_masks(model, X, channel_groups(model, X)[:1], half)
    assert type(masked) is Net
    outputs = [masked.train()(X) for _ in range(2)]
    assert not torch.equal(*outputs)
    assert torch.equal(masked.eval()(X), masked(X))


def test_a_module_that_changes_its_input_in_place_is_refused():
    """The mask in front of it hands it a copy."""

    def forward(n, x):
        y = F.silu(n.a(x))
        n.act(y)
        return n.o(y)

    model = Net(forward, a=nn.Conv2d(3, 4, 1), act=nn.ReLU(inplace=True), o=nn.Conv2d(4, 2, 1))
    groups = channel_groups(model, X)
    groups = [replace(groups[0], sites=(replace(groups[0].sites[0], module="act", front=True),))]
    with pytest.raises(ReparamError, match="changes its masked input in place: return the result instead"):
        insert_masks(model, X, groups, half)


# --- groups of part of a layer, and entries of several channels ---


def squeezed_half(model, x=X):
    """Half of every group masked, and squeezed: the channels that layers make."""
    groups = [group for group in channel_groups(model, x) if not group.why]
    masked = insert_masks(model.double(), x, groups, half)
    squeezed = squeeze(masked, x)
    assert compare(masked, squeezed, x).within(1e-10)
    made = {name: m.weight.shape[0] for name, m in squeezed.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    return [(group.name, group.channels) for group in groups], made


def test_the_part_of_a_layer_that_is_tied_and_the_part_that_is_not_are_two_groups():
    def forward(n, x):
        y = F.silu(n.c(x))
        return n.o(torch.cat([n.a(x) + y[:, :4], y[:, 4:]], 1))

    model = Net(forward, a=nn.Conv2d(3, 4, 1), c=nn.Conv2d(3, 10, 1), o=nn.Conv2d(10, 2, 1))
    assert squeezed_half(model) == ([("a", 4), ("c[4:10]", 6)], {"a": 2, "c": 5, "o": 2})


def test_what_is_added_to_a_concatenation_belongs_to_two_groups():
    def forward(n, x):
        return n.o(F.relu(torch.cat([n.a(x), n.b(x)], 1) + n.c(x)))

    model = Net(forward, a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(3, 2, 1), c=nn.Conv2d(3, 6, 1), o=nn.Conv2d(6, 2, 1))
    assert squeezed_half(model) == ([("a", 4), ("b", 2)], {"a": 2, "b": 1, "c": 3, "o": 2})


def test_a_body_that_lists_the_halves_of_a_layer():
    """The C2f block of YOLOv8."""

    def forward(n, x):
        parts = list(F.silu(n.c1(x)).chunk(2, 1))
        parts.append(parts[-1] + F.silu(n.m2(F.silu(n.m1(parts[-1])))))
        return n.o(F.silu(n.c2(torch.cat(parts, 1))))

    layers = {"c1": nn.Conv2d(3, 8, 1), "m1": nn.Conv2d(4, 4, 3, padding=1), "m2": nn.Conv2d(4, 4, 3, padding=1)}
    found, made = squeezed_half(Net(forward, **layers, c2=nn.Conv2d(12, 6, 1), o=nn.Conv2d(6, 2, 1)))
    assert found == [("c1[0:4]", 4), ("m2", 4), ("m1", 4), ("c2", 6)]
    assert made == {"c1": 4, "m1": 2, "m2": 2, "c2": 3, "o": 2}


@pytest.mark.parametrize(
    ("forward", "width", "entries"),
    [
        (lambda n, x: n.norm(x), 8, 4),
        (lambda n, x: F.glu(x, 1), 4, 4),
        (lambda n, x: F.relu(x[:, :4] * x[:, 4:]), 4, 4),
        (lambda n, x: F.pixel_shuffle(x, 2), 2, 2),
        (lambda n, x: x.view(2, 2, 2, 2, 16, 16).permute(0, 1, 4, 2, 5, 3).reshape(2, 2, 32, 32), 2, 2),
        (lambda n, x: F.pixel_unshuffle(x, 2), 32, 8),
        (lambda n, x: F.channel_shuffle(x, 2), 8, 4),
        (lambda n, x: x.view(x.size(0), 2, -1, 16, 16).transpose(1, 2).reshape(x.size(0), -1, 16, 16), 8, 4),
        (lambda n, x: n.grouped(x), 8, 4),
        (lambda n, x: n.multiplied(x), 16, 8),
        (lambda n, x: n.transposed(x), 4, 4),
        (lambda n, x: n.slopes(x), 8, 8),
        (lambda n, x: torch.cat([x, n.depthwise(x)], 1)[:, :14], 14, 8),
    ],
)
def test_entries_of_several_channels(forward, width, entries):
    parts = {
        "norm": nn.GroupNorm(4, 8), "grouped": nn.Conv2d(8, 8, 3, padding=1, groups=2), "multiplied": nn.Conv2d(8, 16, 1, groups=8),
        "transposed": nn.ConvTranspose2d(8, 4, 2, 2, groups=2), "slopes": nn.PReLU(8), "depthwise": nn.Conv2d(8, 8, 3, 1, 1, groups=8),
    }  # fmt: skip
    model = Net(lambda n, x: n.o(forward(n, n.a(x))), a=nn.Conv2d(3, 8, 1), o=nn.Conv2d(width, 2, 1), **parts)
    found, made = squeezed_half(model)
    assert found[0] == ("a", entries)
    assert made["a"] == 4


def test_branches_that_a_softmax_weighs_go_together():
    """Selective kernels: the softmax is over the branches, channel by channel."""

    def forward(n, x):
        branches = torch.stack([F.relu(n.a(x)), F.relu(n.b(x))], 1)
        weights = n.fc(branches.sum(1).mean((2, 3))).view(-1, 2, 8, 1, 1).softmax(1)
        return n.o((branches * weights).sum(1))

    layers = {"a": nn.Conv2d(3, 8, 1), "b": nn.Conv2d(3, 8, 3, padding=1), "fc": nn.Linear(8, 16)}
    found, made = squeezed_half(Net(forward, **layers, o=nn.Conv2d(8, 2, 1)))
    assert found == [("a", 8)]
    assert made == {"a": 4, "b": 4, "fc": 8, "o": 2}


def test_heads_of_attention_go_whole():
    class Attention(nn.Module):
        def __init__(self, functional):
            super().__init__()
            self.functional, self.qkv, self.proj = functional, nn.Linear(8, 48), nn.Linear(16, 8)

        def forward(self, x):
            q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, 4, 4).permute(2, 0, 3, 1, 4).unbind(0)
            y = (
                F.scaled_dot_product_attention(q, k, v)
                if self.functional
                else ((q * 0.5) @ k.transpose(-2, -1)).softmax(-1) @ v
            )
            return x + self.proj(y.transpose(1, 2).reshape(*x.shape[:2], 16))

    for functional in (False, True):
        found, made = squeezed_half(Attention(functional), torch.randn(2, 5, 8))
        assert found == [("qkv", 4)]
        assert made == {"qkv": 24, "proj": 8}


def test_weights_that_are_normalised_are_merged_first():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 1)), nn.ReLU(), nn.Conv2d(8, 2, 1))
    (group, _) = channel_groups(model, X)
    assert (group.name, group.channels, group.why) == ("0", 8, "")
    masked = insert_masks(model, X, [group], half)
    with pytest.raises(ReparamError, match=r"its weight is computed from others: run fuse\(model\) first"):
        squeeze(masked, X)
    squeezed = squeeze(fuse(masked, X), X)
    assert compare(masked, squeezed, X).within(1e-6)
    assert squeezed[0].out_channels == 4
