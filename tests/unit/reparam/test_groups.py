import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from reparam import ChannelMask, RepVGGBlock, channel_groups, compare, fuse, insert_masks, squeeze
from reparam.errors import ReparamError
from reparam.networks import light_network, plain_network
from zoo import InvertedResidual, Residual, SqueezeExcite, UNet, conv_norm

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self, forward, **layers):
        super().__init__()
        self.body = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.body(self, x)


def found(model, x=X):
    """Name: (producers, sites, consumers) of every group that can be pruned."""
    return {g.name: (g.producers, g.sites, g.consumers) for g in channel_groups(model, x) if not g.why}


def reasons(model, x=X):
    return {g.name: g.why for g in channel_groups(model, x)}


def half(group):
    return ChannelMask(torch.arange(group.channels) % 2 == 0)


def test_a_chain_is_masked_behind_norm_and_activation():
    model = nn.Sequential(conv_norm(3, 4), nn.MaxPool2d(2), nn.Conv2d(4, 6, 1), nn.Flatten(), nn.Linear(384, 5), nn.ReLU(), nn.Linear(5, 2))
    assert found(model) == {
        "0.0": (("0.0",), ("_0_2",), ("2",)),
        "2": (("2",), ("_2",), ("4",)),
        "4": (("4",), ("_5",), ("6",)),
    }
    assert [group.channels for group in channel_groups(model, X)] == [4, 6, 5, 2]
    assert reasons(model)["6"] == "it is an output of the network"


def test_a_residual_stage_is_one_group_masked_behind_its_sums():
    model = nn.Sequential(conv_norm(3, 8), Residual(8, 8, 1, bottleneck=False), Residual(8, 8, 1, bottleneck=False), nn.Conv2d(8, 2, 1))
    assert found(model) == {
        "0.0": (("0.0", "1.body.1.0", "2.body.1.0"), ("_0_2", "_1_relu", "_2_relu"), ("1.body.0.0", "2.body.0.0", "3")),
        "1.body.0.0": (("1.body.0.0",), ("_1_body_0_2",), ("1.body.1.0",)),
        "2.body.0.0": (("2.body.0.0",), ("_2_body_0_2",), ("2.body.1.0",)),
    }


def test_a_depthwise_convolution_and_a_gate_join_the_group_of_their_input():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), InvertedResidual(4, 6, 2, 2, 3, nn.ReLU6, se=True), nn.Conv2d(6, 2, 1))
    assert found(model) == {
        "0": (("0",), ("_0",), ("1.body.0.0",)),
        "1.body.0.0": (("1.body.0.0", "1.body.1.0", "1.body.2.fc2"), ("_1_body_1_2",), ("1.body.2.fc1", "1.body.3.0")),
        "1.body.2.fc1": (("1.body.2.fc1",), ("silu",), ("1.body.2.fc2",)),
        "1.body.3.0": (("1.body.3.0",), ("_1_body_3_1",), ("2",)),
    }


def test_layers_that_are_concatenated_have_masks_of_their_own():
    groups = found(UNet(1 / 16, levels=2), X)
    assert groups["up.0"] == (("up.0",), ("up_0",), ("merge.0.0.0",))
    assert groups["down.0.1.0"] == (("down.0.1.0",), ("down_0_1_2",), ("down.1.0.0", "merge.0.0.0"))


def test_trained_form_blocks_are_layers():
    model = nn.Sequential(RepVGGBlock(3, 4), RepVGGBlock(4, 4), nn.Flatten(), nn.Linear(1024, 2))
    assert found(model) == {"0": (("0",), ("_0",), ("1",)), "1": (("1",), ("_1",), ("3",))}
    assert found(fuse(model, X)) == {
        "0.conv": (("0.conv",), ("_0_act",), ("1.conv",)),
        "1.conv": (("1.conv",), ("_1_act",), ("3",)),
    }


@pytest.mark.parametrize("network", [plain_network, light_network])
def test_the_networks_of_pas_are_pruned_layer_by_layer(network, randomized):
    model = randomized(network((8, 8, 12), (2, 1, 1), classes=5)).double()
    groups = [group for group in channel_groups(model, X) if not group.why]
    assert [(group.name, group.producers) for group in groups] == [(f"layer{index}", (f"layer{index}",)) for index in range(3)]
    masked = insert_masks(model, X, groups, half)
    squeezed = squeeze(fuse(masked, X), X)
    assert compare(masked, squeezed, X).within(1e-10)
    assert [m.out_channels for m in squeezed.modules() if isinstance(m, nn.Conv2d) and m.groups == 1] == [4, 4, 6]


def test_a_layer_that_is_used_in_turns():
    def forward(n, x):
        x = F.relu(n.a(x))
        return n.o(F.relu(n.s(F.relu(n.s(x)))))

    model = Net(forward, a=nn.Conv2d(3, 4, 1), s=nn.Conv2d(4, 4, 1), o=nn.Conv2d(4, 2, 1))
    assert found(model) == {"a": (("a", "s"), ("relu", "relu_1", "relu_2"), ("s", "o"))}


def test_a_norm_behind_the_mask_is_masked_again():
    def forward(n, x):
        x = n.a(x)
        return n.o(x + n.b(F.relu(n.norm(x))))

    model = Net(forward, a=nn.Conv2d(3, 4, 1), norm=nn.BatchNorm2d(4), b=nn.Conv2d(4, 4, 3, padding=1), o=nn.Conv2d(4, 2, 1))
    assert found(model) == {"a": (("a", "b"), ("a", "relu", "add"), ("b", "o"))}


@pytest.mark.parametrize("padding", [0, 1])
def test_a_norm_over_a_concatenation_needs_a_reader_without_padding(padding):
    def forward(n, x):
        return n.o(F.relu(n.norm(torch.cat([n.a(x), n.b(x)], 1))))

    model = Net(forward, a=nn.Conv2d(3, 2, 1), b=nn.Conv2d(3, 2, 1), norm=nn.BatchNorm2d(4), o=nn.Conv2d(4, 2, 3, padding=padding))
    refusal = (
        "node o (Conv2d): has a border that is not uniform: the masked channels that it reads are not 0 but a number" if padding else ""
    )
    assert reasons(model) == {"a": refusal, "b": refusal, "o": "it is an output of the network"}


@pytest.mark.parametrize(
    ("model", "name", "why"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4), nn.Conv2d(4, 2, 1)), "0", "node _1 (GroupNorm) takes its statistics over several channels"),
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.LayerNorm([4, 16, 16]), nn.Conv2d(4, 2, 1)), "0", "node _1 (LayerNorm) takes its statistics over all channels"),
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1, groups=2), nn.Conv2d(4, 2, 1)), "0", "node _1 (Conv2d of 2 groups) must keep equally many"),
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1, groups=2), nn.Conv2d(4, 2, 1)), "1", "node _1 (Conv2d of 2 groups) must keep equally many"),
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.Softmax(1), nn.Conv2d(4, 2, 1)), "0", "node _1: squeeze has no rule for Softmax over channels"),
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.PixelShuffle(2), nn.Conv2d(1, 2, 1)), "0", "node _1 (PixelShuffle) makes one channel of several"),
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sigmoid(), nn.ZeroPad2d(1), nn.Conv2d(4, 2, 1)), "0", ""),  # masked behind the sigmoid
        (Net(lambda n, x: n.o(x + n.a(x)), a=nn.Conv2d(3, 3, 1), o=nn.Conv2d(3, 2, 1)), "a", "node x has a number for each of them"),
        (
            Net(lambda n, x: n.o(torch.cat([n.a(x), n.b(x)], 1) + n.c(x)), a=nn.Conv2d(3, 2, 1), b=nn.Conv2d(3, 2, 1), c=nn.Conv2d(3, 4, 1), o=nn.Conv2d(4, 2, 1)),
            "c",
            "some of its channels are tied to a, others are not",
        ),
        (Net(lambda n, x: n.o((y := n.a(x))[:, :2] * y[:, 2:]), a=nn.Conv2d(3, 4, 1), o=nn.Conv2d(2, 2, 1)), "a", "its channels are tied to one another"),
        (Net(lambda n, x: (n.a(x), n.o(x))[1], a=nn.Conv2d(3, 4, 1), o=nn.Conv2d(3, 2, 1)), "a", "node a is not used"),
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
    [(torch.randn(2, 10, 8), (2,)), (torch.randn(2, 16, 8), (2,)), (torch.randn(2, 5, 6, 8), (3,)), (torch.randn(5, 8), (1,))],
)
def test_hidden_channels_of_tokens_and_pixels_are_masked_where_they_are(x, dims):
    mlp = Net(lambda n, x: x + n.down(F.gelu(n.up(x))), up=nn.Linear(8, 16), down=nn.Linear(16, 8))
    (group,) = [group for group in channel_groups(mlp, x) if not group.why]
    assert (group.producers, group.dims) == (("up",), dims)
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
    with pytest.raises(ReparamError, match="group 0 cannot be masked: the network has no such nodes; find its groups anew"):
        insert_masks(nn.Sequential(nn.Conv2d(3, 4, 1)), X, [inner], half)
    with pytest.raises(ReparamError, match="group 0 cannot be masked: the network has a submodule 'masks' already"):
        insert_masks(insert_masks(model, X, [inner], half), X, [inner], half)


def test_training_mode_outside_of_modules_is_refused():
    def groups_and_mask(forward):
        model = Net(forward, a=nn.Conv2d(3, 4, 1), o=nn.Conv2d(4, 2, 1))
        insert_masks(model, X, channel_groups(model, X)[:1], half)

    with pytest.raises(ReparamError, match=r"node dropout: .* use nn.Dropout"):
        groups_and_mask(lambda n, x: n.o(F.dropout(n.a(x), training=n.training)))
    with pytest.raises(ReparamError, match="in training mode than in evaluation mode"):
        groups_and_mask(lambda n, x: (n.o(n.a(x)), n.a(x)) if n.training else n.o(n.a(x)))
