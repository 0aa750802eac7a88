import copy

import pytest
import torch
from torch import nn

from reparam import ChannelMask
from reparam.graph import has_hooks, read_network, twin_of
from reparam.masking import Masked, Masks, MaskSite, attach_mask, attached_masks, detach_masks

X = torch.randn(2, 6, 3, 3, generator=torch.Generator().manual_seed(0))


def masked(entries, keep, *, front=False, dim=1):
    """A network that hands on what it takes, with a mask at its one module."""
    model = nn.Sequential(nn.Identity())
    masks = Masks()
    masks.add_module("m", ChannelMask(torch.tensor(keep)))
    attach_mask(model[0], Masked(masks, "m", MaskSite("0", front, dim, tuple(entries)), len(keep)))
    model.add_module("masks", masks)
    return model


@pytest.mark.parametrize("front", [False, True])
@pytest.mark.parametrize(
    "entries",
    [
        (0, 1, 2, 3, 4, 5),  # one channel an entry
        (0, 0, 1, 1, 2, 2),  # channels of an entry side by side
        (0, 1, 2, 0, 1, 2),  # rows
        (0, 0, 1, 0, 0, 1),  # both
        (-1, -1, 0, 1, 2, -1),  # part of a value
        (1, 2, -1, 0, 2, 1),  # rows that are torn, and in another order
        (0, 1, 2, 3, 0, 1),  # a row that ends early
    ],
)
def test_each_channel_is_masked_by_its_entry(entries, front):
    keep = [entry % 2 == 0 for entry in range(max(entries) + 1)]
    expected = torch.stack([X[:, index] * (entry < 0 or keep[entry]) for index, entry in enumerate(entries)], 1)
    model = masked(entries, keep, front=front)
    assert torch.equal(model(X), expected)
    by_tokens = masked(entries, keep, front=front, dim=3)
    assert torch.equal(by_tokens(X.permute(0, 2, 3, 1)), expected.permute(0, 2, 3, 1))


def test_masks_are_copied_with_their_network_and_another_may_take_their_place():
    model = masked((0, 1, 2, 3, 4, 5), [True] * 6)
    twin = copy.deepcopy(model)
    twin.masks.add_module("m", ChannelMask(torch.arange(6) > 0))
    assert torch.equal(model(X), X)
    assert torch.equal(twin(X)[:, 0], torch.zeros(2, 3, 3))
    (one,) = attached_masks(twin[0])
    assert one.masks is twin.masks


def test_masks_are_no_hooks_that_watch_and_twins_keep_them():
    model = masked((0, 1, 2, 3, 4, 5), [False] + [True] * 5)
    assert not has_hooks(model[0])
    assert torch.equal(twin_of(model)(X), model(X))
    calls = [node for node in read_network(model, (X,)).graph.nodes if node.op == "call_function"]
    assert len(calls) == 2  # the mask's entries in shape, and the product
    assert [found.name for found in detach_masks(model[0])] == ["m"]
    assert torch.equal(model(X), X)
