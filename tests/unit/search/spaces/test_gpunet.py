import pytest
import torch
from torch import nn

import reparam
from search import spaces
from search.blocks import trained

PAPER = {"gpunet-0": ("11.9", 11_885_432), "gpunet-1": ("12.7", 12_704_192), "gpunet-2": ("25.8", 25_798_704)}
"""Millions of parameters by Table 2 of the PRUNET paper, and exactly."""


@pytest.mark.parametrize("name", PAPER)
def test_parameters_are_those_of_the_paper(name):
    space, (millions, exactly) = spaces.get(name), PAPER[name]
    assert space.size() == 1
    assert space.parameters(deployed=False) == exactly
    assert f"{exactly / 1e6:.1f}" == millions


def test_counts_are_those_of_the_modules():
    space = spaces.get("gpunet-1", resolution=64)
    counted = reparam.count(nn.Sequential(*map(trained, space.network())), torch.zeros(1, 3, 64, 64))
    assert (space.parameters(deployed=False), space.macs(deployed=False)) == (counted.params, counted.macs)


def test_macs_are_near_the_papers_flops():
    """Table 2 has 3.25, 3.3 and 8.38 GFLOPS, by a counter that it does not name."""
    assert [round(spaces.get(name).macs() / 1e9, 2) for name in PAPER] == [3.31, 3.38, 8.71]


def test_resolutions_are_the_published_ones():
    assert [spaces.get(name).input_shape[1] for name in PAPER] == [320, 288, 384]
