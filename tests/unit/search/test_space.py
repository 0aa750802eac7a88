import subprocess
import sys
from pathlib import Path

import torch

import reparam
import search
from search import spaces
from search.network import build_network
from search.space import Chain, Layer


def test_choices_end_with_the_full_width():
    space = Chain(name="odd", input_shape=(3, 8, 8), classes=2, layers=(Layer(name="a", width=20), Layer(name="b", width=4)))
    assert space.width_choices(0) == (8, 16, 20)
    assert space.width_choices(1) == (4,)
    assert space.size() == 3
    assert (space.smallest_widths(), space.full_widths()) == ((8, 4), (20, 4))


def test_network_halves_odd_resolutions_upwards_as_convolutions_do():
    space = Chain(name="odd", input_shape=(3, 9, 7), classes=5, layers=(Layer(name="a", width=8, stride=2), Layer(name="b", width=8)))
    keys = [spec.key for spec in space.network((8, 8))]
    assert keys == [
        "conv(act=relu,h=9,kernel=3,stride=2,w=7)[c_in=3,c_out=8]",
        "conv(act=relu,h=5,kernel=3,stride=1,w=4)[c_in=8,c_out=8]",
        "head(h=5,w=4)[c_in=8,c_out=5]",
    ]


def test_blocks_are_those_of_every_network_and_no_other(tiny):
    from itertools import product

    networks = product(*(tiny.width_choices(index) for index in range(3)))
    wanted = {spec for widths in networks for spec in tiny.network(widths)}
    blocks = tiny.blocks()
    assert set(blocks) == wanted
    assert len(blocks) == len(wanted)


def test_counts_are_those_of_the_modules():
    space = spaces.get("repvgg-mini")
    network, x = build_network(space), torch.zeros(1, *space.input_shape)
    trained, deployed = reparam.count(network, x), reparam.count(reparam.fuse(network), x)
    assert (space.parameters(deployed=False), space.macs(deployed=False)) == (trained.params, trained.macs)
    assert (space.parameters(), space.macs()) == (deployed.params, deployed.macs)


def test_a_space_needs_no_torch():
    code = "import sys, search; [search.spaces.get(name).blocks() for name in search.spaces.names()]; sys.exit('torch' in sys.modules)"
    root = Path(search.__file__).parents[1]
    assert subprocess.run([sys.executable, "-P", "-c", code], cwd=root, check=False).returncode == 0
