import itertools

import pytest
import torch
from torch import fx, nn

from reparam.forms import LinearForm, affine, identity, parallel, serial

NODES = {name: fx.Graph().placeholder(name) for name in "xyz"}
SHAPE = (2, 4, 9, 8)


def form_of(layer, *, source="x", node="y"):
    """A layer of torch as a form of a value."""
    transposed = "Transpose" in type(layer).__name__
    bias = layer.weight.new_zeros(layer.out_channels) if layer.bias is None else layer.bias
    return LinearForm(
        source=NODES[source],
        dim=1,
        c_in=layer.in_channels,
        c_out=layer.out_channels,
        groups=layer.groups,
        size=tuple(layer.weight.shape[2:]),
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        transposed=transposed,
        output_padding=layer.output_padding if transposed else (),
        absorbed=frozenset({NODES[node]}),
        branch=lambda: (layer.weight.detach(), bias.detach()),
    )


def scaling(channels, *, source="x", node="y", shift=True):
    scale, moved = torch.randn(2, channels, dtype=torch.float64)
    return affine(NODES[node], NODES[source], 1, scale, moved * shift, 4)


def conv(*args, **options):
    return nn.Conv2d(*args, **options).double()


def run(form, x):
    return form.module(trained=False)(x)


def difference(form, expected, x):
    return float(((run(form, x) - expected).abs().max() / expected.abs().max()).detach())


X = torch.randn(*SHAPE, dtype=torch.float64)


def test_a_scaling_and_an_identity_are_depth_wise_convolutions_of_size_1():
    form = scaling(4)
    assert form.is_scale
    scale, shift = form.branch()
    assert difference(form, X * scale.view(-1, 1, 1) + shift.view(-1, 1, 1), X) < 1e-15
    same = identity(NODES["x"], 1, SHAPE)
    assert not same.absorbed
    assert torch.equal(run(same, X), X)
    assert not form_of(conv(4, 4, 3, groups=4)).is_scale
    assert not form_of(conv(4, 4, 1, groups=4, stride=2)).is_scale


def test_costs_are_multiply_accumulates_and_elements_of_the_kernel():
    form = form_of(conv(4, 6, (3, 2), groups=2))
    assert form.weights == 6 * 2 * 3 * 2
    assert form.macs((2, 6, 5, 7)) == 2 * 5 * 7 * form.weights


POINTS = [{}, {"groups": 2}, {"groups": 4}, {"bias": False}]


@pytest.mark.parametrize("options", POINTS)
@pytest.mark.parametrize(
    "second", [conv(4, 6, 3), conv(4, 6, (1, 3), groups=2, stride=2, dilation=2), conv(4, 2, 1, stride=2)]
)
def test_a_point_in_front_of_a_convolution_is_one_convolution(options, second):
    first = conv(4, 4, 1, **options)
    form = serial(form_of(first), form_of(second, source="y", node="z"))
    assert isinstance(form, LinearForm)
    assert form.source is NODES["x"]
    assert form.absorbed == {NODES["y"], NODES["z"]}
    assert difference(form, second(first(X)), X) < 1e-14


@pytest.mark.parametrize("options", POINTS)
def test_a_point_behind_a_convolution_is_one_convolution_whatever_it_pads(options):
    first, second = conv(4, 4, 3, padding=1, stride=2, groups=2), conv(4, 4, 1, stride=2, **options)
    form = serial(form_of(first), form_of(second, source="y", node="z"))
    assert isinstance(form, LinearForm)
    assert difference(form, second(first(X)), X) < 1e-14


def test_a_scaling_goes_in_front_and_behind_and_keeps_the_groups():
    layer = conv(4, 6, 3, groups=2)
    before, after = scaling(4), scaling(6, source="y", node="z")
    for form, expected in (
        (serial(before, form_of(layer, source="y", node="z")), layer(run(before, X))),
        (serial(form_of(layer), after), run(after, layer(X))),
    ):
        assert isinstance(form, LinearForm)
        assert form.groups == 2
        assert difference(form, expected, X) < 1e-14


def test_a_transposed_convolution_takes_in_the_scaling_behind_it():
    layer, after = (
        nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1, groups=2).double(),
        scaling(6, source="y", node="z"),
    )
    form = serial(form_of(layer), after)
    assert isinstance(form, LinearForm)
    assert difference(form, run(after, layer(X)), X) < 1e-14
    assert (
        serial(scaling(4), form_of(layer, source="y", node="z"))
        == "a transposed convolution can absorb only a following norm"
    )


def test_zero_padding_behind_a_shift_is_refused_and_behind_none_is_exact():
    layer = conv(4, 6, 3, padding=1)
    assert "pads with zeros, and the first does not map zero to zero" in str(
        serial(scaling(4), form_of(layer, source="y", node="z"))
    )
    before = scaling(4, shift=False)
    form = serial(before, form_of(layer, source="y", node="z"))
    assert isinstance(form, LinearForm)
    assert difference(form, layer(run(before, X)), X) < 1e-14


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (conv(4, 4, 3), conv(4, 4, 3)),
        (conv(4, 4, 1, stride=2), conv(4, 4, 3)),
        (conv(4, 4, 1, padding=1), conv(4, 4, 3)),
    ],
)
def test_what_is_larger_than_both_is_no_serial_form(first, second):
    assert serial(form_of(first), form_of(second, source="y", node="z")) == "neither is a 1x1 convolution of stride 1"


def test_forms_over_other_dimensions_are_not_composed():
    scale = torch.ones(8, dtype=torch.float64)
    last = affine(NODES["z"], NODES["y"], 3, scale, scale, 4)
    assert serial(form_of(conv(4, 4, 1)), last) == "one is over dimension 1, the other over 3"


BRANCHES = {
    "3x3": conv(4, 4, 3, padding=1),
    "grouped": conv(4, 4, 3, padding=1, groups=2),
    "depth-wise": conv(4, 4, (1, 5), padding=(0, 2), groups=4),
    "point": conv(4, 4, 1, bias=False),
    "dilated": conv(4, 4, 3, padding=2, dilation=2),
}


@pytest.mark.parametrize(("one", "other"), [*itertools.combinations_with_replacement(BRANCHES, 2)])
def test_the_sum_of_two_branches_is_one_convolution(one, other):
    a, b = BRANCHES[one], BRANCHES[other]
    form = parallel(form_of(a), form_of(b, node="z"), NODES["z"])
    assert isinstance(form, LinearForm)
    assert difference(form, a(X) + b(X), X) < 1e-14
    assert form.groups == min(a.groups, b.groups)


@pytest.mark.parametrize(
    ("one", "other", "why"),
    [
        (conv(4, 4, 3, padding=1), conv(4, 4, 1, stride=2), "their strides are (1, 1) and (2, 2)"),
        (conv(4, 4, 3), conv(4, 4, 1), "they read different pixels at the border"),
        (conv(4, 4, 3, padding=1), conv(4, 4, (2, 3), padding=1), "they read different pixels at the border"),
        (
            conv(4, 4, 3, padding=1),
            nn.ConvTranspose2d(4, 4, 3, padding=1),
            "a transposed convolution cannot be summed with others",
        ),
    ],
)
def test_branches_that_do_not_line_up_are_refused_in_words(one, other, why):
    found = parallel(form_of(one), form_of(other, node="z"), NODES["z"])
    assert found == why


@pytest.mark.parametrize(
    "layer",
    [nn.Conv1d(4, 6, 3, groups=2), nn.Conv3d(4, 6, (1, 2, 3)), nn.ConvTranspose1d(4, 6, 3, stride=2, output_padding=1)],
)
def test_a_form_is_the_layer_that_it_was_read_from(layer):
    made = form_of(layer.double()).module(trained=True)
    assert type(made) is type(layer)
    assert not made.training
    assert all(parameter.requires_grad for parameter in made.parameters())
    x = torch.randn(2, 4, *[6] * (layer.weight.ndim - 2), dtype=torch.float64)
    assert torch.equal(made(x), layer(x))
