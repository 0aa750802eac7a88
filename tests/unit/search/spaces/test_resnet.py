import pytest
import torch

import reparam
from search import SearchError, spaces
from search.blocks import serial
from search.spaces import resnet


@pytest.mark.parametrize(
    ("name", "params", "macs"),
    [
        ("resnet-18", 11_689_512, 1_814_073_344),
        ("resnet-34", 21_797_672, 3_663_761_408),
        ("resnet-50", 25_557_032, 4_089_184_256),
        ("resnet-101", 44_549_160, 7_801_405_440),
    ],
)
def test_sizes_are_the_published_ones(name, params, macs):
    space = spaces.get(name)
    assert (space.parameters(deployed=False), space.macs()) == (params, macs)


@pytest.mark.parametrize(
    ("depth", "printed", "ratio"), [(20, 2.24e7, 0.45), (32, 4.08e7, 0.41), (56, 5.95e7, 0.527), (164, 1.78e8, 0.281)]
)
def test_cifar_networks_have_the_macs_that_tas_prunes(depth, printed, ratio):
    """TAS (Dong and Yang 2019), Table 3, prints what is left and which part is gone."""
    assert (1 - ratio) * spaces.get(f"resnet{depth}").macs() == pytest.approx(printed, rel=0.003)


@pytest.mark.parametrize("name", resnet.names())
def test_counts_are_those_of_the_modules(name):
    space = spaces.get(name)
    with torch.device("meta"):
        trained, deployed, x = space.module(), serial(space.network()), torch.zeros(1, *space.input_shape)
    assert reparam.count(trained, x) == reparam.Counts(
        params=space.parameters(deployed=False), macs=space.macs(deployed=False)
    )
    assert reparam.count(deployed, x) == reparam.Counts(params=space.parameters(), macs=space.macs())


def test_the_fused_network_is_the_deployed_form():
    space = spaces.get("resnet20")
    torch.manual_seed(0)
    network, x = space.module().eval(), torch.randn(1, 3, 32, 32)
    ships = serial(space.network()).eval()
    ships.load_state_dict(reparam.fuse(network, x).state_dict())
    assert reparam.compare(network, ships, x, torch.float32).within(1e-5)


def test_small_images_are_refused_and_sizes_can_be_chosen():
    with pytest.raises(
        SearchError, match="resnet-50 halves its input 5 times: the resolution must be at least 32, found 31"
    ):
        spaces.get("resnet-50", resolution=31)
    space = spaces.get("resnet20", classes=100, resolution=64)
    assert (space.classes, space.input_shape) == (100, (3, 64, 64))
