import copy
import importlib

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from reparam import ChannelMask, ConvBlock, RepVGGBlock, compare, fuse, fuse_with_report, squeeze
from reparam.errors import ReparamError


def mask(text):
    """'101' keeps the first and the last of three channels."""
    return ChannelMask(torch.tensor([bit == "1" for bit in text]))


def masked_convolution(c_in, bits):
    return [nn.Conv2d(c_in, len(bits), 3, padding=1), mask(bits), nn.ReLU()]


X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def widths(model):
    return [tuple(module.weight.shape[:2]) for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]


def test_masked_channels_leave_their_maker_and_their_readers():
    model = nn.Sequential(
        *masked_convolution(3, "1010"),
        *masked_convolution(4, "01110"),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 7),
    )
    squeezed = squeeze(model, X)
    assert widths(squeezed) == [(2, 3), (3, 2), (7, 3)]
    assert not any(isinstance(module, ChannelMask) for module in squeezed.modules())
    assert compare(model, squeezed, X).within(1e-12)
    assert (squeezed[0].out_channels, squeezed[3].in_channels, squeezed[8].in_features) == (2, 2, 3)


def test_a_fused_network_is_squeezed(randomized):
    model = randomized(
        nn.Sequential(RepVGGBlock(3, 4, mask=mask("0110")), RepVGGBlock(4, 4, mask=mask("1110")), nn.Conv2d(4, 2, 1))
    ).double()
    squeezed = squeeze(fuse(model, X), X)
    assert widths(squeezed) == [(2, 3), (3, 2), (2, 3)]
    assert compare(model, squeezed, X).within(1e-10)


def test_the_graph_that_fuse_makes_of_a_module_is_squeezed(randomized):
    class Body(nn.Module):
        """Its code sums branches, so that it becomes its graph, and calls functions."""

        def __init__(self):
            super().__init__()
            self.dense, self.point, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
            self.mask, self.slope, self.last = mask("01101101"), nn.PReLU(8), nn.Conv2d(8, 4, 3)

        def forward(self, x):
            x = F.hardswish(F.max_pool2d(self.mask(self.norm(self.dense(x) + self.point(x))), 3, 2, 1))
            x = F.leaky_relu(F.silu(F.gelu(F.interpolate(x, scale_factor=2.0))).clamp(-1, 5), 0.1)
            x = x * F.hardsigmoid(x.mean((2, 3), keepdim=True)) * F.adaptive_avg_pool2d(x, 1).sigmoid()
            first, second = self.slope(F.pad(x, (1, 1, 1, 1))).chunk(2, 1)
            x = F.interpolate(torch.cat([second, first], 1), size=(9, 9), mode="bilinear", align_corners=False)
            return self.last(x).flatten(1)

    model = randomized(nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), Body(), nn.Linear(4 * 49, 5))).double()
    fused, report = fuse_with_report(model, X)
    assert report.graphs == ("2",)
    squeezed = squeeze(fused, X)
    assert widths(squeezed) == [(8, 3), (5, 8), (4, 5), (5, 196)]
    assert compare(model, squeezed, X).within(1e-10)


def test_flattened_pixels_are_removed_with_their_channel():
    model = nn.Sequential(
        *masked_convolution(3, "110"), nn.MaxPool2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(12, 2)
    )
    squeezed = squeeze(model, X)
    assert widths(squeezed) == [(2, 3), (2, 8)]
    assert torch.equal(squeezed[6].weight, model[6].weight[:, :8])


def test_functions_and_methods_are_followed():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.mask, self.out = nn.Conv2d(3, 4, 1), mask("1001"), nn.Linear(4, 2)

        def forward(self, x):
            x = torch.relu(self.mask(self.conv(x))).relu()
            return self.out(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1))

    class Method(Net):
        def forward(self, x):
            return self.out(nn.functional.adaptive_avg_pool2d(self.mask(self.conv(x)), (1, 1)).flatten(start_dim=1))

    assert widths(squeeze(Net(), X)) == widths(squeeze(Method(), X)) == [(2, 3), (2, 2)]


def test_a_norm_before_the_mask_is_cut_with_its_convolution(randomized):
    model = randomized(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), mask("1100"), nn.Conv2d(4, 2, 1)))
    squeezed = squeeze(model, X)
    assert squeezed[1].num_features == 2
    assert torch.equal(squeezed[1].running_var, model[1].running_var[:2])


@pytest.mark.parametrize(
    "make",
    [
        lambda: [nn.Conv2d(2, 3, 3, padding=1), nn.ReLU()],
        lambda: [nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.ReLU()],
        lambda: [nn.Conv2d(2, 3, 1), nn.PReLU(3)],
        lambda: [nn.ConvTranspose2d(2, 3, 2)],
        lambda: [nn.Conv2d(2, 6, 1), nn.ConvTranspose2d(6, 3, 2, groups=3)],
    ],
)
def test_the_output_keeps_its_channels_and_its_mask_goes_into_the_weights(make, randomized):
    model = randomized(nn.Sequential(nn.Conv2d(3, 2, 1), *make(), mask("101")))
    squeezed = squeeze(model, X)
    assert isinstance(squeezed[-1], nn.Identity)
    assert squeezed(X).shape[1] == 3
    assert squeezed(X)[:, 1].abs().max() == 0


def test_a_mask_stays_where_its_number_would_not_be_zero():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sigmoid(), mask("101"))
    assert squeeze(model, X)[2].keep.tolist() == [True, False, True]


def test_a_channel_that_is_also_read_unmasked_stays():
    class Fork(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.mask, self.a, self.b = (
                nn.Conv2d(3, 3, 1),
                mask("100"),
                nn.Conv2d(3, 2, 1),
                nn.Conv2d(3, 2, 1),
            )

        def forward(self, x):
            x = self.conv(x)
            return self.a(self.mask(x)), self.b(x)

    model = Fork()
    squeezed = squeeze(model, X)
    assert widths(squeezed) == [(3, 3), (2, 3), (2, 3)]
    assert isinstance(squeezed.mask, ChannelMask)


def test_a_channel_goes_only_if_every_reader_has_it_masked():
    class Fork(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.one, self.two = nn.Conv2d(3, 3, 1), mask("100"), mask("110")
            self.a, self.b = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1)

        def forward(self, x):
            x = self.conv(x)
            return self.a(self.one(x)), self.b(self.two(x))

    squeezed = squeeze(Fork(), X)
    assert widths(squeezed) == [(2, 3), (2, 2), (2, 2)]
    assert squeezed.one.keep.tolist() == [True, False]
    assert isinstance(squeezed.two, nn.Identity)


def test_a_module_that_is_used_twice_is_cut_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.mask, self.shared, self.out = (
                nn.Conv2d(3, 4, 1),
                mask("1011"),
                nn.Conv2d(4, 4, 1),
                nn.Conv2d(4, 2, 1),
            )

        def forward(self, x):
            x = self.mask(self.first(x))
            for _ in range(2):
                x = self.mask(self.shared(x))
            return self.out(x)

    model = Twice()
    squeezed = squeeze(model, X)
    assert widths(squeezed) == [(3, 3), (3, 3), (2, 3)]
    assert compare(model, squeezed, X).within(1e-12)


def test_a_network_without_masked_channels_needs_no_rules():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.mask = nn.Conv2d(3, 3, 1), mask("111")

        def forward(self, x):
            return x + self.mask(self.conv(x)) if x.sum() > -1e9 else x

    squeezed = squeeze(Residual(), X)
    assert isinstance(squeezed.mask, nn.Identity)


def test_the_argument_stays_as_it_was():
    model = nn.Sequential(*masked_convolution(3, "10"), nn.Conv2d(2, 2, 1)).train()
    before = copy.deepcopy(model.state_dict())
    squeezed = squeeze(model, X)
    assert model.training
    assert not squeezed.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    squeezed[0].weight.data.zero_()
    assert model[0].weight.abs().sum() > 0


def test_frozen_weights_stay_frozen():
    model = nn.Sequential(*masked_convolution(3, "10"), nn.Conv2d(2, 2, 1))
    model[0].weight.requires_grad_(False)
    squeezed = squeeze(model, X)
    assert [squeezed[0].weight.requires_grad, squeezed[0].bias.requires_grad] == [False, True]


class Unruled(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.conv, self.mask, self.run = nn.Conv2d(3, 4, 1), mask("1100"), forward

    def forward(self, x):
        return self.run(self.mask(self.conv(x)))


def through(*parts):
    return nn.Sequential(*masked_convolution(3, "10"), *parts)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            Unruled(lambda x: x.softmax(1)),
            "node softmax: squeeze has no rule for softmax over channels; 2 masked channels of conv reach it",
        ),
        (Unruled(lambda x: x.softmax(1)), "or leave conv unmasked"),
        (Unruled(lambda x: x.cumsum(1)), "node cumsum: squeeze has no rule for cumsum; 2 masked channels of conv"),
        (
            Unruled(lambda x: x[x > 0]),
            "node index: squeeze has no rule for index at computed places; 2 masked channels of conv reach it",
        ),
        (Unruled(lambda x: x.mean(1)), "node mean: squeeze has no rule for mean over channels"),
        (
            Unruled(lambda x: x[..., :4, :] + x[..., :4, :].transpose(1, 2)),
            "node add: squeeze has no rule for add of values whose channels are different dimensions",
        ),
        (
            through(nn.LocalResponseNorm(2)),
            "node avg_pool3d in 3: squeeze has no rule for avg pool3d where channels are not dimension 1",
        ),
        (
            through(nn.Linear(8, 2)),
            "node linear in 3: squeeze has no rule for linear over dimension 3, where channels are dimension 1",
        ),
        (
            nn.Sequential(RepVGGBlock(3, 2, mask=mask("10")), nn.Conv2d(2, 2, 1)),
            r"^block 0 is a RepVGGBlock with masked channels: run fuse\(model\) first$",
        ),
        (
            nn.Sequential(*masked_convolution(3, "00"), nn.Conv2d(2, 2, 1)),
            "^mask 1: all 2 channels of 0 are masked; keep at least one$",
        ),
        (
            nn.Sequential(nn.Conv2d(3, 2, 1), mask("101")),
            "a mask has 3 entries for 2 channels: it needs one entry per channel",
        ),
        (nn.Sequential(nn.Conv2d(3, 2, 1), mask("0")), "a mask has 1 entries for 2 channels"),
        (
            nn.Sequential(nn.Conv2d(4, 2, 1), mask("10")),
            "^Sequential cannot be run on example_input: Given groups=1, weight of size",
        ),
        (
            Unruled(lambda x: x if x.sum() > 0 else -x),
            "cannot be read by torch.export: .* must not depend on tensor values",
        ),
    ],
)
def test_what_cannot_be_squeezed_names_node_and_operator(model, message):
    with pytest.raises(ReparamError, match=message) as caught:
        squeeze(model, X)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("forward", [lambda x: x.flatten(0), lambda x: x.view(2, 2, 2, 8, 8), lambda x: x[:, 1]])
def test_whatever_an_output_is_made_of_stays(forward):
    model = Unruled(lambda x: forward(x * 2))
    model.mask = mask("1110")
    assert compare(model, squeeze(model, X), X).within(1e-12)


class Halves(nn.Module):
    def __init__(self, text):
        super().__init__()
        self.conv, self.mask, self.left, self.right = (
            nn.Conv2d(3, 4, 1),
            mask(text),
            nn.Conv2d(2, 2, 1),
            nn.Conv2d(2, 2, 1),
        )

    def forward(self, x):
        one, two = self.mask(self.conv(x)).chunk(2, 1)
        return self.left(one) + self.right(two)


def test_code_with_a_number_of_channels_in_it_gets_the_new_one():
    squeezed = squeeze(Halves("1011"), X)
    assert isinstance(squeezed, torch.fx.GraphModule)
    assert [squeezed.left.in_channels, squeezed.right.in_channels] == [1, 2]


@pytest.mark.parametrize("text", ["1101", "1111"])
def test_code_that_does_the_same_with_fewer_channels_runs_on(text):
    assert isinstance(squeeze(Halves(text), X), Halves)


def test_only_the_module_whose_code_has_a_number_of_channels_in_it_becomes_its_graph():
    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Conv2d(2, 4, 1), nn.Conv2d(2, 4, 1)

        def forward(self, x):
            one, two = x.split((2, 2), 1)
            return self.left(one) + self.right(two)

    model = nn.Sequential(nn.Conv2d(3, 4, 1), mask("1011"), Inner(), nn.ReLU(), nn.Conv2d(4, 2, 1))
    squeezed = squeeze(model, X)
    assert [type(part).__name__ for part in squeezed] == ["Conv2d", "Identity", "Merged", "ReLU", "Conv2d"]
    assert [squeezed[2].left.in_channels, squeezed[2].right.in_channels] == [1, 2]


def test_a_layer_without_inputs_keeps_one_that_is_zero():
    squeezed = squeeze(Halves("1100"), X)
    assert [squeezed.conv.out_channels, squeezed.left.in_channels, squeezed.right.in_channels] == [3, 2, 1]
    assert squeezed.conv.weight[2].abs().max() == 0


def test_the_claim_is_checked(monkeypatch):
    module = importlib.import_module("reparam.squeeze")  # the package's attribute of that name is the function
    cut = module.cut

    def wrong(flow, model):
        cut(flow, model)
        model[0].bias.data += 1e-6

    monkeypatch.setattr(module, "cut", wrong)
    with pytest.raises(ReparamError, match="the squeezed network is not the same: the output differs by"):
        squeeze(nn.Sequential(*masked_convolution(3, "0111"), ConvBlock(4, 2)), X)


def test_constants_of_a_group_without_inputs_all_stay_before_a_padded_border():
    """Two channels are nothing but their bias, which no bias of the next layer can take up: not one for the other, both stay."""
    grouped = nn.Conv2d(4, 8, 3, padding=1, groups=4)
    nn.init.ones_(grouped.bias)
    model = nn.Sequential(
        *masked_convolution(3, "0111"), grouped, mask("11000000"), nn.ReLU(), nn.Conv2d(8, 5, 3, padding=1)
    )
    assert widths(squeeze(model, X)) == [(1, 3), (2, 1), (5, 2)]
