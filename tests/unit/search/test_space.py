import random
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import torch

import reparam
import search
from search import Choice, SearchError, spaces

KINDS = ["repvgg-mini", "prunet-cifar", "prunet-mini", "nasbench201-small", "resnet-18"]


def test_equal_choices_have_equal_json_whatever_their_order():
    one, other = Choice(widths={"b": 8, "a": 16}, depths={"s": 2}), Choice(depths={"s": 2}, widths={"a": 16, "b": 8})
    assert (one, hash(one), msgspec.json.encode(one)) == (other, hash(other), msgspec.json.encode(other))
    assert msgspec.json.encode(one) == b'{"widths":{"a":16,"b":8},"options":{},"depths":{"s":2}}'
    assert msgspec.json.decode(msgspec.json.encode(one), type=Choice) == one
    assert one != Choice(widths={"a": 16, "b": 8})


def test_an_unknown_field_of_a_choice_is_refused():
    with pytest.raises(msgspec.ValidationError, match="colours"):
        msgspec.json.decode(b'{"colours":{}}', type=Choice)


@pytest.mark.parametrize("name", KINDS)
def test_ends_and_random_networks_are_within_the_blocks(name):
    space, draw = spaces.get(name), random.Random(0)
    blocks = set(space.blocks())
    choices = [space.largest(), space.smallest(), *(space.random(draw) for _ in range(10))]
    assert all(set(space.network(choice)) <= blocks for choice in choices)
    assert space.network() == space.network(space.largest())
    assert space.macs(space.network(choices[1])) <= min(space.macs(space.network(choice)) for choice in choices)
    assert space.random(random.Random(3)) == space.random(random.Random(3))


@pytest.mark.parametrize("name", KINDS)
def test_a_module_trains_ships_and_has_the_size_that_the_space_says(name):
    """In the training form, and deployed; a prunable space keeps channels that are masked, so its largest network is counted."""
    space = spaces.get(name, resolution=32)
    choice = space.largest() if name == "repvgg-mini" else space.random(random.Random(1))
    network, x = space.module(choice), torch.randn(2, *space.input_shape)
    network(x).sum().backward()
    for deployed, module in ((False, network), (True, reparam.fuse(network, x)), (True, space.deployed(choice))):
        counts = reparam.count(module, x[:1])
        blocks = space.network(choice)
        assert (counts.params, counts.macs) == (
            space.parameters(blocks, deployed=deployed),
            space.macs(blocks, deployed=deployed),
        )


@pytest.mark.parametrize("name", KINDS)
def test_a_choice_of_another_space_is_refused(name):
    space = spaces.get(name)
    for foreign in (Choice(widths={"nowhere": 8}), Choice(depths={"stage1": 2})):
        with pytest.raises(SearchError, match=rf"^{name}"):
            space.network(foreign)
        with pytest.raises(SearchError, match=rf"^{name}"):
            space.module(foreign)


def test_a_space_needs_no_torch():
    code = (
        "import sys, search; spaces = [search.spaces.get(name) for name in search.spaces.names()];"
        "[(s.blocks(), s.network(s.smallest()), search.spaces.from_record(s.record())) for s in spaces]; sys.exit('torch' in sys.modules)"
    )
    root = Path(search.__file__).parents[1]
    assert subprocess.run([sys.executable, "-P", "-c", code], cwd=root, check=False).returncode == 0
