import random

import pytest
import torch

from search import Choice, SearchError, ops, spaces
from search.spaces import Layered, MultiBlock, StochasticLayer

STEM = ops.conv((3, 8, 8), 8)
IRB = [ops.inverted_residual((8, 8, 8), 8, hidden=64, kernel=kernel) for kernel in (3, 5)]
SMALL = Layered(
    name="small",
    input_shape=(3, 8, 8),
    classes=2,
    layers=(
        StochasticLayer(name="stem", options=(MultiBlock(name="stem", spec=STEM),)),
        StochasticLayer(
            name="one",
            options=(
                MultiBlock(name="k3", spec=IRB[0], hidden=(32, 64)),
                MultiBlock(name="k5", spec=IRB[1], hidden=(32, 64)),
            ),
            skippable=True,
        ),
        StochasticLayer(
            name="two",
            options=(
                MultiBlock(name="conv3", spec=ops.conv((8, 8, 8), 16)),
                MultiBlock(name="conv5", spec=ops.conv((8, 8, 8), 16, kernel=5)),
            ),
        ),
        StochasticLayer(name="head", options=(MultiBlock(name="head", spec=ops.head((16, 8, 8), 2)),)),
    ),
)


def test_a_choice_has_what_is_open_and_no_more():
    assert SMALL.largest() == Choice(options={"one": "k5", "two": "conv5"}, widths={"one": 64})
    assert SMALL.smallest() == Choice(options={"one": "skip", "two": "conv3"})
    assert SMALL.size() == 5 * 2
    assert {SMALL.random(random.Random(seed)) for seed in range(200)} == {
        Choice(options={"one": one, "two": two}, widths={"one": hidden} if hidden else {})
        for one, hidden in (("k3", 32), ("k3", 64), ("k5", 32), ("k5", 64), ("skip", 0))
        for two in ("conv3", "conv5")
    }


def test_a_network_is_its_chosen_blocks():
    choice = Choice(options={"one": "k3", "two": "conv5"}, widths={"one": 32})
    assert SMALL.network(choice) == [
        STEM,
        IRB[0].with_widths(hidden=32),
        ops.conv((8, 8, 8), 16, kernel=5),
        ops.head((16, 8, 8), 2),
    ]
    assert list(SMALL.chosen(SMALL.smallest())) == ["stem", "two", "head"]
    names = [name for name, _ in SMALL.module(choice).named_children()]
    assert names == ["stem", "one", "two", "head"]
    assert SMALL.module(SMALL.smallest())(torch.zeros(1, 3, 8, 8)).shape == (1, 2)


def test_a_site_has_the_blocks_of_every_hidden_width():
    option = SMALL.layers[1].options[1]
    assert [option.site.at((hidden,)) for hidden in option.hidden] == option.blocks()


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (Choice(options={"two": "conv3"}), r"^small: layer one has the options k3, k5, skip, found None$"),
        (
            Choice(options={"one": "skip", "two": "skip"}),
            r"^small: layer two has the options conv3, conv5, found skip$",
        ),
        (
            Choice(options={"one": "k3", "two": "conv3"}),
            r"^small: the hidden width of one, k3, is one of 32, 64, found None$",
        ),
        (Choice(options={"one": "k3", "two": "conv3"}, widths={"one": 48}), r"is one of 32, 64, found 48$"),
        (
            Choice(options={"one": "skip", "two": "conv3"}, widths={"one": 32}),
            r"^small has nothing to choose at one: take it out",
        ),
        (Choice(options={"one": "skip", "two": "conv3", "head": "head"}), r"^small has nothing to choose at head"),
        (
            Choice(options={"one": "skip", "two": "conv3"}, depths={"stage1": 2}),
            r"^small has nothing to choose at stage1",
        ),
    ],
)
def test_what_is_no_network_of_the_space_is_refused(choice, message):
    with pytest.raises(SearchError, match=message):
        SMALL.network(choice)


def test_long_lists_of_widths_are_shortened():
    space = spaces.get("prunet-cifar")
    choice = space.largest()
    bad = Choice(options=choice.options, widths={**choice.widths, "stage2_0": 1})
    with pytest.raises(
        SearchError,
        match=r"^prunet-cifar: the hidden width of stage2_0, fused_irb_k5_se, is one of 32, 64, 96, 128, found 1$",
    ):
        space.network(bad)
