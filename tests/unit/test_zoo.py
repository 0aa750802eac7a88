"""The networks that other tests stand on are the published ones."""

import pytest
import torch

from zoo import ZOO


@pytest.mark.parametrize("network", [network for network in ZOO if network.params], ids=lambda network: network.name)
def test_full_networks_have_the_published_number_of_parameters(network):
    with torch.device("meta"):
        assert sum(p.numel() for p in network.build().parameters()) == network.params


@pytest.mark.parametrize("network", ZOO, ids=lambda network: network.name)
def test_small_networks_run_and_are_drawn_from_their_seed(network):
    x = network.input(small=True)
    outputs = [network.make(small=True, seed=seed)(x) for seed in (0, 0, 1)]
    first, same, other = (out if isinstance(out, torch.Tensor) else out["proto"] for out in outputs)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
