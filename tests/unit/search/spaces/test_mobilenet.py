import pytest
import torch

import reparam
from search import spaces
from search.blocks import serial
from search.spaces import mobilenet

PUBLISHED = {
    "mobilenetv2-0.75": (2_636_424, 209_069_792),
    "mobilenetv2-1.0": (3_504_872, 300_774_272),
    "mobilenetv2-1.4": (6_108_776, 582_195_824),
    "mnasnet-0.75": (3_170_208, 215_493_104),
    "mnasnet-1.0": (4_383_312, 314_415_872),
}


@pytest.mark.parametrize("name", mobilenet.names())
def test_sizes_are_the_published_ones_and_those_of_the_modules(name):
    space = spaces.get(name)
    assert (space.parameters(deployed=False), space.macs()) == PUBLISHED[name]
    with torch.device("meta"):
        trained, deployed, x = space.module(), serial(space.network()), torch.zeros(1, 3, 224, 224)
    assert reparam.count(trained, x) == reparam.Counts(
        params=space.parameters(deployed=False), macs=space.macs(deployed=False)
    )
    assert reparam.count(deployed, x) == reparam.Counts(params=space.parameters(), macs=space.macs())


def test_the_fused_network_is_the_deployed_form():
    space = spaces.get("mobilenetv2-1.0", classes=10, resolution=32)
    torch.manual_seed(0)
    network, x = space.module().eval(), torch.randn(1, 3, 32, 32)
    ships = serial(space.network()).eval()
    ships.load_state_dict(reparam.fuse(network, x).state_dict())
    assert reparam.compare(network, ships, x, torch.float32).within(1e-5)
