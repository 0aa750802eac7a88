import pytest
import torch

import reparam
from search import SearchError, spaces
from search.blocks import serial
from search.spaces import repvgg


@pytest.mark.parametrize(
    ("name", "trained", "deployed", "macs"),
    [
        ("repvgg-a0", 9_108_968, 8_309_384, 1_361_451_008),
        ("repvgg-a1", 14_092_264, 12_789_864, 2_363_967_488),
        ("repvgg-b1", 57_415_016, 51_829_480, 11_815_485_440),
        ("repvgg-b1-g4", 39_966_056, 36_125_416, 7_306_870_784),
    ],
)
def test_sizes_are_the_published_ones(name, trained, deployed, macs):
    space = spaces.get(name)
    assert (space.parameters(deployed=False), space.parameters(), space.macs()) == (trained, deployed, macs)
    assert space.size() == 1


@pytest.mark.parametrize("name", repvgg.names())
def test_counts_are_those_of_the_modules(name):
    space = spaces.get(name)
    with torch.device("meta"):
        trained, deployed, x = space.module(), serial(space.network()), torch.zeros(1, 3, 224, 224)
    assert reparam.count(trained, x) == reparam.Counts(
        params=space.parameters(deployed=False), macs=space.macs(deployed=False)
    )
    assert reparam.count(deployed, x) == reparam.Counts(params=space.parameters(), macs=space.macs())


def test_the_fused_network_is_the_deployed_form():
    space = spaces.get("repvgg-a0", classes=10, resolution=64)
    torch.manual_seed(0)
    network, x = space.module().eval(), torch.randn(1, 3, 64, 64)
    ships = serial(space.network()).eval()
    ships.load_state_dict(reparam.fuse(network, x).state_dict())
    assert reparam.compare(network, ships, x, torch.float32).within(1e-5)


def test_every_second_layer_from_the_third_on_has_groups():
    groups = [dict(spec.attrs).get("groups", 1) for spec in spaces.get("repvgg-b2-g2").network()]
    assert groups == [1, 1, *[2, 1] * 13, 1]


def test_a_small_image_is_refused():
    with pytest.raises(
        SearchError, match="repvgg-a0 halves its input 5 times: the resolution must be at least 32, found 16"
    ):
        spaces.get("repvgg-a0", resolution=16)
