import random

import pytest
import torch

import reparam
from search import SearchError, spaces
from search.spaces import free_widths

from ..conftest import residual_network


def test_sums_of_unequal_widths_have_a_convolution_on_their_shortcut(free):
    """And no others: three of the four identities of the unpruned network join equal widths here."""
    widths = dict(free.groups) | {"1.shortcut.conv": 8, "2.shortcut.conv": 8, "3.shortcut.conv": 8}
    choice = free.choice(list(widths.values()))
    blocks = [block for block in free.network(choice) if block.op == "conv" and block.attr("kernel") == 1]
    assert [(block.width("c_in"), block.width("c_out")) for block in blocks] == [(16, 8), (8, 16)]
    assert [
        name
        for name, module in free.module(choice).named_modules()
        if name.endswith("shortcut") and len(list(module.children()))
    ] == [
        "1.shortcut",
        "4.shortcut",
    ]
    assert free.macs() == residual_network().macs()


def test_what_follows_a_stage_reads_what_its_last_block_makes(free):
    widths = dict(free.groups) | {"1.shortcut.conv": 4, "2.shortcut.conv": 8, "3.shortcut.conv": 12}
    read = [free.network(free.choice(list(widths.values()), {"stage1": depth})) for depth in (1, 2, 3)]
    assert [
        next(block for block in blocks if block.op == "conv" and block.attr("stride") == 2).width("c_in")
        for blocks in read
    ] == [
        4,
        8,
        12,
    ]
    assert free.choice(list(widths.values()), {"stage1": 2}).widths.keys() == widths.keys() - {
        "3.shortcut.conv",
        "3.body.first.conv",
    }


def test_blocks_are_those_of_the_network_that_ships(free):
    draw, example = random.Random(0), torch.zeros(1, 3, 8, 8)
    for _ in range(3):
        choice = free.random(draw)
        blocks = free.network(choice)
        assert reparam.count(free.deployed(choice), example) == reparam.Counts(
            params=free.parameters(blocks), macs=free.macs(blocks)
        )


def test_a_record_is_read_back(free):
    assert spaces.from_record(free.record(), make=free.make) == free
    assert free.record()["kind"] == "free"
    with pytest.raises(SearchError, match=r"kind free is damaged: it has 3 shortcuts, and 4 sites that join$"):
        spaces.from_record(free.record() | {"shortcuts": ["1.shortcut", "2.shortcut", "3.shortcut"]})


def test_a_network_without_such_sums_is_refused():
    with pytest.raises(
        SearchError, match=r"^repvgg-a0 has no residual block that could join two widths: choose repvgg-a0/widths$"
    ):
        free_widths(spaces.get("repvgg-a0"))
    with pytest.raises(SearchError, match=r"^repvgg-mini/free-widths: only a single network has a space of its widths"):
        spaces.get("repvgg-mini/free-widths")
