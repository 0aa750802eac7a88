import contextlib
import copy

import pytest
import torch
from torch import nn

import search
from reparam import count
from search import SearchError
from search.budget import Budget
from search.methods.settings import PasSettings

from .conftest import FAST, make_table

SETTINGS = PasSettings(**FAST, policy_lr=2.0)


def searched(network, space, stripes, budget, table, *, optimizer=None, steps=60):
    """A loop of one's own over the stripes."""
    draw = torch.Generator().manual_seed(0)
    optimizer = optimizer or torch.optim.Adam(network.parameters(), lr=1e-3)
    with search.masked(
        network, torch.zeros(1, 3, 8, 8), budget, table, optimizer=optimizer, settings=SETTINGS
    ) as state:
        for _ in range(steps // 4):
            for images, labels in stripes.training_batches(16, draw):
                loss = nn.functional.cross_entropy(network(images), labels) + state.penalty()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                state.step()
    return state


def test_a_network_is_pruned_to_a_budget_in_a_loop_of_ones_own(shortcut, shortcut_space, stripes):
    network = copy.deepcopy(shortcut).train()
    table, parameters = make_table(shortcut_space), list(network.parameters())
    budget = Budget(us=0.7 * table.predict(shortcut_space.network()).us)
    state = searched(network, shortcut_space, stripes, budget, table)
    assert table.predict(state.space.network(state.choice())).high_us <= budget.amount
    assert state.latency() == table.predict(state.space.network(state.choice()))
    assert [one is other for one, other in zip(network.parameters(), parameters, strict=True)] == [True] * len(
        parameters
    )
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    small, example = state.squeezed(), torch.zeros(1, 3, 8, 8)
    assert small.training
    assert count(small, example).macs == state.space.macs(state.space.network(state.choice()))
    nn.functional.cross_entropy(small(torch.rand(4, 3, 8, 8)), torch.tensor([0, 1, 0, 1])).backward()
    assert all(parameter.grad is not None for parameter in small.parameters())


def test_channels_that_are_gone_keep_their_weights_where_the_optimizer_is_known(shortcut, stripes):
    network, budget = copy.deepcopy(shortcut), Budget(macs=1.2e5)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, weight_decay=0.1)
    with search.masked(network, torch.zeros(1, 3, 8, 8), budget, optimizer=optimizer, settings=SETTINGS) as state:
        ((images, labels),) = stripes.training_batches(64, torch.Generator())
        for indicator in state.policy:
            indicator.data[:4] = 0.0
        before = network.stem[0].weight.detach().clone()
        (nn.functional.cross_entropy(network(images), labels) + state.penalty()).backward()
        optimizer.step()
        assert [int((now == then).all()) for now, then in zip(network.stem[0].weight, before, strict=True)] == [
            1
        ] * 4 + [0] * 28


def test_the_squeezed_network_is_refused_before_the_search_is_over_and_masks_go_with_an_error(shortcut):
    network = copy.deepcopy(shortcut)
    with contextlib.suppress(KeyError), search.masked(network, torch.zeros(1, 3, 8, 8), Budget(macs=1.2e5)) as state:
        with pytest.raises(SearchError, match="^the search is not over: call squeezed\\(\\) after the `with` block$"):
            state.squeezed()
        raise KeyError
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_a_network_is_pruned_at_once_by_the_same_share_of_every_group(shortcut, shortcut_space):
    example, budget = torch.zeros(1, 3, 8, 8), Budget(macs=0.5 * shortcut_space.macs())
    small = search.pruned(shortcut, example, budget)
    widths = [module.out_channels for module in small.modules() if isinstance(module, nn.Conv2d)]
    assert widths == [24] * 4
    assert count(small, example).macs <= budget.amount < count(shortcut, example).macs
