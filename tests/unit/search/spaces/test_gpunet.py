import pytest
import torch
from torch import nn

import reparam
from search import SearchError, spaces
from search.blocks import trained
from search.spaces import gpunet

PUBLISHED = {
    "gpunet-0": ("11.9", 11_885_432),
    "gpunet-1": ("12.7", 12_704_192),
    "gpunet-2": ("25.8", 25_798_704),
    "gpunet-p0": ("", 22_815_080),
    "gpunet-p1": ("", 39_905_672),
    "gpunet-d1": ("10.6", 10_589_859),
    "gpunet-d2": ("19.0", 19_036_728),
}
"""Millions of trained parameters by Table 2 of the PRUNET paper and by GPUNet's, where they have them, and exactly."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_ones(name):
    space, (millions, exactly) = spaces.get(name), PUBLISHED[name]
    assert space.size() == 1
    assert space.parameters(deployed=False) == exactly
    assert millions in ("", f"{exactly / 1e6:.1f}")


@pytest.mark.parametrize("name", gpunet.names())
def test_counts_are_those_of_the_modules(name):
    space = spaces.get(name, resolution=64)
    with torch.device("meta"):
        network, x = nn.Sequential(*map(trained, space.network())), torch.zeros(1, 3, 64, 64)
    counted = reparam.count(network, x)
    assert (space.parameters(deployed=False), space.macs(deployed=False)) == (counted.params, counted.macs)


def test_resolutions_are_the_published_ones():
    assert [spaces.get(name).input_shape[1] for name in PUBLISHED] == [320, 288, 384, 224, 224, 456, 528]


def test_hidden_widths_of_rounded_expansions_are_those_of_prunets_granularity():
    """NVIDIA prints 7.67 for 736 / 96, and so on."""
    hidden = [spec.width("hidden") for spec in spaces.get("gpunet-p0").network() if spec.op == "irb"]
    assert hidden == [512, 736, 736, 736, 1088, 1216, 2048, 2688, 2368, 1792, 4032]
    hidden = [spec.width("hidden") for spec in spaces.get("gpunet-p1").network() if spec.op == "irb"]
    assert all(width % 32 == 0 for width in hidden)


def test_the_distilled_networks_have_two_linear_layers():
    network = spaces.get("gpunet-d1").network()
    assert [spec.key for spec in network[-2:]] == [
        "conv(act=relu,h=15,kernel=1,stride=1,w=15)[c_in=268,c_out=1152]",
        "mlp_head(act=relu,h=15,w=15)[c_in=1152,hidden=1984,c_out=1000]",
    ]
    assert [spec.width("hidden") for spec in network if spec.op == "irb"][:3] == [33, 99, 176]
    assert [spec.op for spec in spaces.get("gpunet-d2").network()[:4]] == ["conv", "conv", "conv", "irb"]


def test_an_image_too_small_for_the_strides_is_refused():
    with pytest.raises(
        SearchError, match="gpunet-p0 halves its input 6 times: the resolution must be at least 64, found 32"
    ):
        spaces.get("gpunet-p0", resolution=32)
