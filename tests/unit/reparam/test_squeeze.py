import copy
import importlib

import pytest
import torch
from torch import nn

from reparam import ChannelMask, ConvBlock, RepVGGBlock, compare, fuse, squeeze
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
        *masked_convolution(3, "1010"), *masked_convolution(4, "01110"), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 7)
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
    squeezed = squeeze(fuse(model), X)
    assert widths(squeezed) == [(2, 3), (3, 2), (2, 3)]
    assert compare(model, squeezed, X).within(1e-10)


def test_flattened_pixels_are_removed_with_their_channel():
    model = nn.Sequential(*masked_convolution(3, "110"), nn.MaxPool2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(12, 2))
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


def test_a_norm_after_the_mask_is_refused():
    with pytest.raises(ReparamError, match=r"node _2 \(BatchNorm2d\): a norm after a mask turns 1 masked channels into non-zero constants"):
        squeeze(nn.Sequential(nn.Conv2d(3, 2, 1), mask("10"), nn.BatchNorm2d(2)), X)


def test_the_output_keeps_its_channels_and_so_its_mask():
    model = nn.Sequential(*masked_convolution(3, "1100"), *masked_convolution(4, "101"))
    squeezed = squeeze(model, X)
    assert widths(squeezed) == [(2, 3), (3, 2)]
    assert isinstance(squeezed[1], nn.Identity)
    assert squeezed[4].keep.tolist() == [True, False, True]


def test_a_channel_that_is_also_read_unmasked_stays():
    class Fork(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.mask, self.a, self.b = nn.Conv2d(3, 3, 1), mask("100"), nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1)

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
            self.first, self.mask, self.shared, self.out = nn.Conv2d(3, 4, 1), mask("1011"), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)

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


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(*masked_convolution(3, "10"), nn.Sigmoid()), "node _3: squeeze has no rule for Sigmoid"),
        (Unruled(lambda x: x.softmax(1)), "node softmax: squeeze has no rule for softmax"),
        (Unruled(lambda x: x + x), "node add: squeeze has no rule for add"),
        (Unruled(lambda x: x.flatten(0)), "node flatten: squeeze has no rule for flatten"),
        (nn.Sequential(*masked_convolution(3, "10"), nn.Conv2d(2, 2, 1, groups=2)), "no rule for Conv2d of 2 groups"),
        (nn.Sequential(*masked_convolution(3, "10"), nn.Linear(8, 2)), "no rule for Linear on an input of more than two dimensions"),
        (nn.Sequential(RepVGGBlock(3, 2, mask=mask("10"))), r"no rule for RepVGGBlock: run fuse\(model\) first"),
        (nn.Sequential(*masked_convolution(3, "00"), nn.Conv2d(2, 2, 1)), r"node _0 \(Conv2d\): all 2 channels are masked"),
        (nn.Sequential(nn.Conv2d(3, 2, 1), mask("101")), "node _1 cannot be run on example_input: The size of tensor a"),
        (Unruled(lambda x: x if x.sum() > 0 else -x), "the network cannot be traced by torch.fx"),
    ],
)
def test_what_cannot_be_squeezed_names_node_and_operator(model, message):
    with pytest.raises(ReparamError, match=message) as caught:
        squeeze(model, X)
    assert "\n" not in str(caught.value)


def test_the_claim_is_checked(monkeypatch):
    module = importlib.import_module("reparam.squeeze")  # the package's attribute of that name is the function
    cut = module._cut

    def wrong(layer, into, out):
        cut(layer, into, out)
        if isinstance(layer, nn.Conv2d):
            layer.bias.data += 1e-6

    monkeypatch.setattr(module, "_cut", wrong)
    with pytest.raises(ReparamError, match="the squeezed network is not the same: the output differs by"):
        squeeze(nn.Sequential(*masked_convolution(3, "0111"), ConvBlock(4, 2)), X)
