"""Each operator's rule: the widths that are left; `squeeze` itself compares the outputs."""

import operator

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from reparam import ChannelMask, compare, squeeze
from reparam.errors import ReparamError
from unit.reparam.helpers import Net


def mask(text):
    """'101' keeps the first and the last of three channels."""
    return ChannelMask(torch.tensor([bit == "1" for bit in text]))


X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
KEEP = "10110010"


def conv(c_in, c_out, kernel=1, **options):
    return nn.Conv2d(c_in, c_out, kernel, **options)


def squeezed_widths(model, x=X):
    torch.manual_seed(0)
    for norm in model.modules():
        for tensor in (*norm.parameters(recurse=False), *norm.buffers(recurse=False)):
            if (
                isinstance(norm, nn.modules.batchnorm._NormBase | nn.GroupNorm | nn.LayerNorm)
                and tensor.is_floating_point()
            ):
                nn.init.uniform_(tensor, 0.2, 1.5)
    squeezed = squeeze(model, x)
    kept = [tuple(m.weight.shape[:2]) for m in squeezed.modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)]
    assert compare(model, squeezed, x, torch.float32).within(1e-5)
    return kept


def masked_then(forward, readers=None, bits=KEEP, **layers):
    """conv a, mask m, forward, conv o; the widths of a and o."""
    readers = readers or len(bits)
    return Net(
        lambda n, x: n.o(forward(n, n.m(n.a(x)))), a=conv(3, len(bits)), m=mask(bits), o=conv(readers, 2), **layers
    )


# --- passing channels on ---


@pytest.mark.parametrize(
    "forward",
    [
        lambda n, x: F.relu(x) + 0.0,
        lambda n, x: x.relu_().abs().neg().contiguous().clone(),
        lambda n, x: torch.clamp(F.hardtanh(F.gelu(x)), -1, 1),
        lambda n, x: F.dropout(F.leaky_relu(x, 0.2), 0.5, n.training),
        lambda n, x: F.max_pool2d(x, 3, 2, 1),
        lambda n, x: F.avg_pool2d(x, kernel_size=3, padding=1),
        lambda n, x: F.adaptive_max_pool2d(x, 2),
        lambda n, x: F.interpolate(x, scale_factor=2, mode="bilinear"),
        lambda n, x: F.interpolate(x, size=x.shape[2:], mode="nearest"),
        lambda n, x: F.pad(x, (1, 1, 0, 2), mode="reflect"),
        lambda n, x: F.pad(x, [1, 2]),
        lambda n, x: x.mean((2, 3), keepdim=True),
        lambda n, x: torch.amax(x, dim=3, keepdim=True),
        lambda n, x: x.sum(-1).unsqueeze(-1),
        lambda n, x: x.mean([2, 3]).view(2, -1, 1, 1),
        lambda n, x: x.view(x.size(0), x.shape[1], -1, 1),
        lambda n, x: x.permute(0, 2, 3, 1).permute(0, 3, 1, 2).transpose(2, 3),
        lambda n, x: x[:, :, ::2, 1:],
        lambda n, x: x[..., :4],
        lambda n, x: x * 2 - x / 3,
        lambda n, x: torch.maximum(x, x * 0.5) ** 2,
        lambda n, x: x * F.softmax(x.mean((2, 3), keepdim=True) * 0, dim=2),
        lambda n, x: torch.cat([x, x], 3),
        lambda n, x: x.split(4, dim=3)[1],
        lambda n, x: F.normalize(x.flatten(2), dim=-1).unsqueeze(-1),
        lambda n, x: x[:, :, torch.tensor([1, 0]), torch.tensor([0, 2])].unsqueeze(-1),
    ],
)
def test_what_keeps_channels_apart_loses_them(forward):
    assert squeezed_widths(masked_then(forward)) == [(4, 3), (2, 4)]


@pytest.mark.parametrize(
    "layer",
    [
        nn.ReLU6(),
        nn.Hardswish(),
        nn.PReLU(),
        nn.PReLU(8),
        nn.AvgPool2d(2),
        nn.LPPool2d(2, 2),
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.ReflectionPad2d(1),
        nn.ZeroPad2d(1),
        nn.InstanceNorm2d(8),
        nn.Identity(),
        nn.Dropout(0.5),
        conv(8, 8, 3, groups=8, bias=False, padding=1),
    ],
)
def test_layers_that_keep_zero(layer):
    assert squeezed_widths(masked_then(lambda n, x: n.layer(x), layer=layer))[::2][0] == (4, 3)


def test_a_slope_for_all_channels_stays_one():
    squeezed = squeeze(masked_then(lambda n, x: n.one(n.each(x)), one=nn.PReLU(), each=nn.PReLU(8)), X)
    assert [module.num_parameters for module in squeezed.modules() if isinstance(module, nn.PReLU)] == [1, 4]


@pytest.mark.parametrize(
    "add",
    [
        operator.add,
        torch.add,
        lambda a, b: a.add(b),
        lambda a, b: torch.add(a, b, alpha=2),
        lambda a, b: torch.add(input=a, other=b),
        operator.iadd,
        operator.sub,
        operator.mul,
        torch.maximum,
    ],
)
def test_operands_lose_the_same_channels(add):
    model = Net(
        lambda n, x: n.o(n.m(add(n.a(x), n.b(x)))), a=conv(3, 8), b=conv(3, 8, bias=False), m=mask(KEEP), o=conv(8, 2)
    )
    assert squeezed_widths(model) == [(4, 3), (4, 3), (2, 4)]


def test_a_residual_stage_shares_one_mask():
    def forward(n, x):
        x = n.m(F.relu(n.a(x)))
        x = n.m(F.relu(x + n.c(F.relu(n.b(x)))))
        return n.o(x)

    model = Net(forward, a=conv(3, 8), b=conv(8, 5, 3, padding=1), c=conv(5, 8), m=mask(KEEP), o=conv(8, 2))
    assert squeezed_widths(model) == [(4, 3), (5, 4), (4, 5), (2, 4)]


def test_a_channel_that_one_side_of_a_sum_has_stays_on_both():
    model = Net(lambda n, x: n.o(n.m(n.a(x)) + n.b(x)), a=conv(3, 4), b=conv(3, 4), m=mask("1000"), o=conv(4, 2))
    squeezed = squeeze(model, X)
    assert squeezed.a.weight.shape[0] == 4
    assert torch.equal(squeezed.a.weight[1:], torch.zeros(3, 3, 1, 1))  # what a mask is for goes into the weights
    assert isinstance(squeezed.m, nn.Identity)


def test_squeeze_and_excite_follows_its_channels():
    def forward(n, x):
        x = n.m(F.silu(n.a(x)))
        gate = F.hardsigmoid(n.up(F.relu(n.down(F.adaptive_avg_pool2d(x, 1)))))
        return n.o(x * gate)

    model = Net(forward, a=conv(3, 8), down=conv(8, 3), up=conv(3, 8), m=mask(KEEP), o=conv(8, 2, 3, padding=1))
    assert squeezed_widths(model) == [(4, 3), (3, 4), (4, 3), (2, 4)]


def test_a_gate_of_linear_layers_and_expand_as():
    def forward(n, x):
        x = n.m(n.a(x))
        gate = torch.sigmoid(n.fc(x.mean((2, 3)))).view(2, 8, 1, 1).expand_as(x)
        return n.o(x * gate)

    assert squeezed_widths(Net(forward, a=conv(3, 8), fc=nn.Linear(8, 8), m=mask(KEEP), o=conv(8, 2))) == [
        (4, 3),
        (4, 4),
        (2, 4),
    ]


def test_one_plane_for_all_channels_stays():
    model = Net(
        lambda n, x: n.o(n.m(n.a(x)) * torch.sigmoid(n.p(x))), a=conv(3, 8), p=conv(3, 1), m=mask(KEEP), o=conv(8, 2)
    )
    assert squeezed_widths(model) == [(4, 3), (1, 3), (2, 4)]


def test_concatenations_put_atoms_side_by_side():
    def forward(n, x):
        a, b = n.m(n.a(x)), n.w(n.b(x))
        return n.o(torch.cat((a, b, a), dim=1))

    model = Net(forward, a=conv(3, 4), b=conv(3, 3), m=mask("1001"), w=mask("010"), o=conv(11, 2))
    assert squeezed_widths(model) == [(2, 3), (1, 3), (2, 5)]


def test_a_value_concatenated_with_itself():
    assert squeezed_widths(masked_then(lambda n, x: torch.cat([x, x], 1), readers=16)) == [(4, 3), (2, 8)]


def test_the_image_may_be_concatenated():
    model = Net(lambda n, x: n.o(torch.cat([x, n.m(n.a(x))], 1)), a=conv(3, 4), m=mask("1001"), o=conv(7, 2))
    assert squeezed_widths(model) == [(2, 3), (2, 5)]


@pytest.mark.parametrize(
    "parts",
    [
        lambda x: x.chunk(2, 1),
        lambda x: torch.chunk(x, 2, dim=1),
        lambda x: torch.split(x, 4, 1),
        lambda x: x.split([4, 4], dim=1),
        lambda x: (x[:, :4], x[:, 4:]),
        lambda x: (x[:, 0:4, ...], x[:, -4:]),
    ],
)
def test_split_channels_get_new_numbers(parts):
    def forward(n, x):
        one, two = parts(n.m(n.a(x)))
        return n.o(one) + n.p(two)

    model = Net(forward, a=conv(3, 8), m=mask(KEEP), o=conv(4, 2), p=conv(4, 2))
    squeezed = squeeze(model, X)
    assert [squeezed.get_submodule(name).in_channels for name in "op"] == [3, 1]
    assert compare(model, squeezed, X).within(1e-12)


def test_a_view_with_the_number_of_channels_in_it():
    assert squeezed_widths(masked_then(lambda n, x: x.view(-1, 8, 64).reshape(2, 8, 8, 8))) == [(4, 3), (2, 4)]


def test_flatten_by_view():
    model = Net(
        lambda n, x: n.fc(F.max_pool2d(n.m(n.a(x)), 4).view(-1, 32)), a=conv(3, 8), m=mask(KEEP), fc=nn.Linear(32, 2)
    )
    assert squeezed_widths(model) == [(4, 3), (2, 16)]


def test_padded_channels_go_with_those_they_are_added_to():
    """The shortcut of the CIFAR ResNets (He et al. 2016, option A)."""

    def forward(n, x):
        y = n.k(n.a(x))
        return n.o(n.m(F.pad(y[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)) + n.b(y)))

    model = Net(
        forward, a=conv(3, 4), k=mask("0111"), b=conv(4, 8, 3, stride=2, padding=1), m=mask("10011101"), o=conv(8, 2)
    )
    assert squeezed_widths(model) == [(3, 3), (5, 3), (2, 5)]


def test_a_parameter_of_channels_is_cut():
    model = Net(
        lambda n, x: n.o(n.m(n.a(x)) * n.scale + n.shift),
        a=conv(3, 8), m=mask(KEEP), o=conv(8, 2), scale=nn.Parameter(torch.randn(8, 1, 1)), shift=nn.Parameter(torch.randn(1, 8, 1, 1)),
    )  # fmt: skip
    squeezed = squeeze(model, X)
    assert (tuple(squeezed.scale.shape), tuple(squeezed.shift.shape)) == ((4, 1, 1), (1, 4, 1, 1))


# --- groups ---


def test_a_depthwise_convolution_goes_with_its_input():
    model = masked_then(lambda n, x: n.m2(n.dw(x)), dw=conv(8, 8, 3, groups=8, padding=1), m2=mask(KEEP))
    assert squeezed_widths(model) == [(4, 3), (2, 4), (4, 1)]
    assert squeeze(model, X).dw.groups == 4


def test_the_bias_of_a_depthwise_convolution_is_all_that_is_left():
    model = masked_then(lambda n, x: F.relu(n.dw(x)), dw=conv(8, 8, 3, groups=8, padding=1))
    assert squeezed_widths(model) == [(4, 3), (2, 4), (4, 1)]


@pytest.mark.parametrize(
    ("into", "out", "left"),
    [
        ("10101001", "11111111", (4, 8, 4)),  # equally many inputs in each group
        ("11110000", "11110000", (4, 4, 2)),  # a whole group goes, with its two pairs
        ("10101110", "11111111", (8, 8, 4)),  # the fullest group sets the width of all
        (
            "10001111",
            "11111111",
            (6, 6, 3),
        ),  # what is left of a group without inputs is its bias, which its reader takes
        ("11111111", "10100000", (4, 2, 2)),
    ],
)
def test_convolutions_in_groups_stay_dense(into, out, left):
    """(in, out, groups) of eight channels in four groups of two."""
    torch.manual_seed(0)
    model = Net(
        lambda n, x: n.o(n.m2(n.g(n.m(n.a(x))))),
        a=conv(3, 8), m=mask(into), g=conv(8, 8, 3, groups=4, padding=1), m2=mask(out), o=conv(8, 2),
    )  # fmt: skip
    squeezed = squeeze(model, X)
    assert (squeezed.g.in_channels, squeezed.g.out_channels, squeezed.g.groups) == left
    assert tuple(squeezed.g.weight.shape[:2]) == (left[1], left[0] // left[2])


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_transposed_convolutions(groups):
    layer = nn.ConvTranspose2d(8, 4, 3, 2, 1, output_padding=1, groups=groups)
    model = Net(
        lambda n, x: n.o(n.m2(n.t(n.m(n.a(x))))),
        a=conv(3, 8),
        m=mask("11001100"),
        t=layer,
        m2=mask("1010"),
        o=conv(4, 2),
    )
    squeezed = squeeze(model, X)
    assert (squeezed.t.in_channels, squeezed.t.out_channels) == (4, 2)


def test_a_depthwise_convolution_with_a_multiplier():
    model = Net(
        lambda n, x: n.o(n.m2(n.dw(n.m(n.a(x))))),
        a=conv(3, 4),
        m=mask("1110"),
        dw=conv(4, 8, 3, groups=4),
        m2=mask("10010100"),
        o=conv(8, 2),
    )
    squeezed = squeeze(model, X)
    assert (squeezed.dw.in_channels, squeezed.dw.out_channels, squeezed.dw.groups) == (3, 3, 3)


# --- norms, and numbers that are not zero ---


@pytest.mark.parametrize(
    ("layer", "width"),
    [
        (nn.BatchNorm2d(8), 4),
        (nn.BatchNorm2d(8, track_running_stats=False), 4),
        (nn.InstanceNorm2d(8, affine=True), 4),
        (nn.InstanceNorm2d(8, affine=True, track_running_stats=True), 4),
        (nn.GroupNorm(8, 8), 4),
        (nn.GroupNorm(4, 8), 6),  # pairs 10, 11, 00, 10: one pair goes
        (nn.GroupNorm(1, 8), 8),
        (nn.LayerNorm([8, 8, 8]), 8),
        (nn.Sigmoid(), 4),
        (nn.Softplus(), 4),
        (nn.Sequential(nn.BatchNorm2d(8), nn.LeakyReLU(), nn.MaxPool2d(2), nn.ReplicationPad2d(1), nn.AvgPool2d(2)), 4),
        (nn.Sequential(nn.Sigmoid(), nn.Upsample(scale_factor=2, mode="bicubic")), 4),
        (nn.Sequential(nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, groups=8)), 4),
    ],
)
def test_a_number_in_a_masked_channel_goes_into_the_bias(layer, width):
    model = masked_then(lambda n, x: n.layer(x), layer=layer)
    model.o = conv(8, 2, 3, bias=False)
    found = squeezed_widths(model)
    assert (found[0][0], found[1][1]) == (width, width)
    assert (squeeze(model, X).o.bias is not None) == (width < 8)


def test_group_norm_loses_whole_groups():
    squeezed = squeeze(masked_then(lambda n, x: n.layer(x), bits="11001111", layer=nn.GroupNorm(4, 8)), X)
    assert (squeezed.layer.num_groups, squeezed.layer.num_channels) == (3, 6)


@pytest.mark.parametrize(
    "reader",
    [conv(8, 2, 3, padding=1, padding_mode="reflect"), conv(8, 2, padding="same"), conv(8, 2, 3, padding="valid")],
)
def test_borders_that_are_uniform_are_exact(reader):
    model = masked_then(lambda n, x: n.norm(x), norm=nn.BatchNorm2d(8))
    model.o = reader
    assert squeezed_widths(model)[0] == (4, 3)


def test_a_linear_layer_takes_numbers_too():
    model = Net(
        lambda n, x: n.fc(torch.sigmoid(n.m(n.a(x))).mean((2, 3))),
        a=conv(3, 8),
        m=mask(KEEP),
        fc=nn.Linear(8, 2, bias=False),
    )
    assert squeezed_widths(model) == [(4, 3), (2, 4)]


@pytest.mark.parametrize(
    ("after", "name"),
    [
        (lambda n, x: n.p(n.norm(x)), r"node convolution_1 \(convolution in p\): has a non-uniform border"),
        (lambda n, x: n.p(F.relu(x) + 1), r"node convolution_1 \(convolution in p\): has a non-uniform border"),
        (lambda n, x: n.p(torch.sigmoid(x)), r"node convolution_1 \(convolution in p\): has a non-uniform border"),
        (lambda n, x: n.t(torch.sigmoid(x)), r"node convolution_1 \(convolution in t\): has a non-uniform border"),
        (
            lambda n, x: n.dw(torch.sigmoid(x)),
            r"node convolution_1 \(convolution of 8 groups in dw\): has a non-uniform border",
        ),
        (
            lambda n, x: F.avg_pool2d(torch.sigmoid(x), 3, padding=1),
            r"node avg_pool2d \(avg pool2d\): turns the nonzero constant",
        ),
        (lambda n, x: F.pad(torch.sigmoid(x), (1, 1)), r"node pad \(pad\): turns the nonzero constant"),
        (lambda n, x: torch.cat([x, torch.sigmoid(x)], 2), r"node cat \(cat\): joins different constants"),
    ],
)
def test_a_number_that_no_bias_can_hold_is_refused(after, name):
    model = masked_then(after, norm=nn.BatchNorm2d(8), p=conv(8, 8, 3, padding=1), t=nn.ConvTranspose2d(8, 8, 2, 2), dw=conv(8, 8, 3, groups=8, padding=1))  # fmt: skip
    nn.init.ones_(model.norm.bias)
    with pytest.raises(
        ReparamError, match=name + r".*4 masked channels of a reach it: run fuse\(model\) first, put the mask after"
    ) as caught:
        squeeze(model, X)
    assert "\n" not in str(caught.value)


def test_a_number_that_stays_anyway_is_fine():
    model = Net(
        lambda n, x: n.p(torch.sigmoid(n.m(n.a(x)))) + n.q(torch.sigmoid(n.a(x))), a=conv(3, 4), m=mask("1001"), p=conv(4, 2, 3, padding=1), q=conv(4, 2, 3, padding=1)
    )  # fmt: skip
    assert squeezed_widths(model) == [(4, 3), (2, 4), (2, 4)]


def test_a_shared_layer_takes_the_same_number_twice_and_no_other():
    def net(shift):
        def forward(n, x):
            x = n.m(n.a(x))
            return n.s(torch.sigmoid(x)) + n.s(torch.sigmoid(x) + shift)

        return Net(forward, a=conv(3, 8), m=mask(KEEP), s=conv(8, 2))

    assert squeezed_widths(net(0)) == [(4, 3), (2, 4)]
    with pytest.raises(
        ReparamError,
        match=r"nodes convolution_1, convolution_2 \(convolution in s\): the layer is used several times, with different constants",
    ):
        squeeze(net(1), X)


# --- channels that depend on one another ---


@pytest.mark.parametrize(
    ("layer", "readers", "widths"),
    [
        (nn.PixelShuffle(2), 2, (4, 1)),
        (nn.PixelUnshuffle(2), 32, (4, 16)),
        (nn.GLU(1), 4, (6, 3)),
        (nn.ChannelShuffle(2), 8, (6, 6)),
    ],
)
def test_shuffles(layer, readers, widths):
    bits = {2: "11100000", 4: "11101000", 8: "10100100", 32: KEEP}[readers]
    found = squeezed_widths(masked_then(lambda n, x: n.layer(x), readers=readers, bits=bits, layer=layer))
    assert (found[0][0], found[1][1]) == widths


# --- other ranks, inputs and outputs ---


@pytest.mark.parametrize("rank", [1, 3])
def test_other_ranks(rank):
    kind, norm = (nn.Conv1d, nn.BatchNorm1d) if rank == 1 else (nn.Conv3d, nn.BatchNorm3d)
    model = nn.Sequential(kind(3, 8, 3, padding=1), norm(8), nn.ReLU(), mask(KEEP), kind(8, 2, 3, padding=1))
    assert squeezed_widths(model, torch.randn(2, 3, *[5] * rank)) == [(4, 3), (2, 4)]


def test_channels_last_for_linear_layers():
    """A ConvNeXt block (Liu et al. 2022): the hidden width of its perceptron."""

    def forward(n, x):
        y = n.norm(n.dw(x).permute(0, 2, 3, 1))
        y = F.gelu(n.up(y)).permute(0, 3, 1, 2)
        y = n.down(n.m(y).permute(0, 2, 3, 1)) * n.scale
        return x + y.permute(0, 3, 1, 2)

    model = Net(
        forward,
        dw=conv(3, 3, 3, groups=3, padding=1), norm=nn.LayerNorm(3), up=nn.Linear(3, 8), m=mask(KEEP), down=nn.Linear(8, 3), scale=nn.Parameter(torch.randn(3)),
    )  # fmt: skip
    assert squeezed_widths(model) == [(3, 1), (4, 3), (3, 4)]


def test_several_inputs_and_outputs_of_any_structure():
    def forward(n, x, y, flag=None):
        x, y = n.m(n.a(x)), n.w(n.b(y))
        return {"one": n.o(x + y), "two": [n.p(x), (y if flag else n.p(y),)]}

    class Two(Net):
        def forward(self, x, y, flag=None):
            return forward(self, x, y, flag)

    model = Two(None, a=conv(3, 4), b=conv(3, 4), m=mask("1001"), w=mask("1010"), o=conv(4, 2), p=conv(4, 2))
    squeezed = squeeze(model, (X, X + 1))
    assert squeezed.a.out_channels == squeezed.b.out_channels == squeezed.p.in_channels == 3


def test_a_mask_of_a_pinned_value_changes_nothing_else():
    model = Net(lambda n, x: n.o(n.m(x)), m=mask("101"), o=conv(3, 2))
    assert squeezed_widths(model) == [(2, 3)]


def test_an_operator_without_a_rule_is_fine_where_nothing_is_masked():
    model = Net(
        lambda n, x: n.o(n.m(n.a(x))) + torch.cumsum(n.b(x), 1), a=conv(3, 8), m=mask(KEEP), o=conv(8, 2), b=conv(3, 2)
    )
    assert squeezed_widths(model) == [(4, 3), (2, 4), (2, 3)]


@pytest.mark.parametrize("padding", [0, 1])
def test_what_only_a_bias_fills_stays_where_no_other_bias_can_take_it_up(padding):
    """All inputs of two of four groups are masked; their outputs are not, and are no error."""
    model = Net(
        lambda n, x: n.o(torch.sigmoid(n.g(n.m(n.a(x))))),
        a=conv(3, 8), m=mask("10100000"), g=conv(8, 8, 3, groups=4, padding=1), o=conv(8, 2, 3, padding=padding),
    )  # fmt: skip
    squeezed = squeeze(model, X)
    assert (squeezed.g.groups, squeezed.o.in_channels) == ((4, 8) if padding else (2, 4))
