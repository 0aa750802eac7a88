import itertools

import pytest
import torch

import reparam
from search import Choice, SearchError
from search.spaces import Chain, Layer

TINY = Chain(
    name="tiny",
    input_shape=(3, 8, 8),
    classes=2,
    layers=(Layer(name="a", width=32), Layer(name="b", width=32, stride=2), Layer(name="c", width=32)),
)


def test_choices_end_with_the_full_width():
    space = Chain(
        name="odd", input_shape=(3, 8, 8), classes=2, layers=(Layer(name="a", width=20), Layer(name="b", width=4))
    )
    assert space.width_choices(0) == (8, 16, 20)
    assert space.width_choices(1) == (4,)
    assert space.size() == 3
    assert (space.smallest_widths(), space.full_widths()) == ((8, 4), (20, 4))
    assert (space.smallest(), space.largest()) == (Choice(widths={"a": 8, "b": 4}), Choice(widths={"a": 20, "b": 4}))


def test_blocks_are_those_of_every_network_and_no_other():
    networks = itertools.product(*(TINY.width_choices(index) for index in range(3)))
    wanted = {spec for widths in networks for spec in TINY.network(TINY.choice(widths))}
    blocks = TINY.blocks()
    assert set(blocks) == wanted
    assert len(blocks) == len(wanted)


def test_widths_are_those_of_the_choice_in_the_order_of_the_groups():
    assert TINY.widths(Choice(widths={"c": 24, "a": 8, "b": 16})) == (8, 16, 24)
    assert TINY.widths(TINY.choice((8, 16, 24))) == (8, 16, 24)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (
            Choice(widths={"a": 8, "b": 8}),
            r"^tiny has the groups a, b, c: a choice has a width for each, found a=8, b=8$",
        ),
        (Choice(), r"found none$"),
        (Choice(widths={"a": 8, "b": 8, "c": 8}, depths={"s": 1}), r"^tiny has the depths none: found s=1$"),
        (Choice(widths={"a": 8, "b": 40, "c": 8}), r"^tiny: group b has 1 to 32 channels, found 40$"),
        (Choice(widths={"a": 8, "b": 0, "c": 8}), r"^tiny: group b has 1 to 32 channels, found 0$"),
    ],
)
def test_what_is_no_network_of_the_space_is_refused(choice, message):
    with pytest.raises(SearchError, match=message):
        TINY.network(choice)


def test_a_module_has_masks_where_channels_are_lost_and_ships_at_those_widths():
    module = TINY.module(TINY.choice((8, 32, 16)))
    assert sorted(name for name, part in module.named_modules() if isinstance(part, reparam.ChannelMask)) == [
        "masks.a",
        "masks.c",
    ]
    x = torch.randn(1, 3, 8, 8)
    shipped = reparam.squeeze(reparam.fuse(module, x), x)
    assert [m.out_channels for m in shipped.modules() if isinstance(m, torch.nn.Conv2d)] == [8, 32, 16]
    assert not any(isinstance(part, reparam.ChannelMask) for part in TINY.module(TINY.largest()).modules())
