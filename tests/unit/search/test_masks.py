import pytest
import torch
from torch import nn

import reparam
from reparam import ChannelMask
from search import SearchError, masks
from search.masks import freeze, prunable_groups, top_channels
from search.methods.pas import DepthwiseBinaryConv, indicators


class Shortcut(nn.Module):
    """Two convolutions whose outputs are added, one behind them, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16))
        self.last = nn.Sequential(
            nn.Conv2d(16, 24, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.classifier = nn.Linear(24, 2)

    def forward(self, x):
        x = self.stem(x)
        return self.classifier(self.last(torch.relu(x + self.body(x))))


@pytest.fixture
def x() -> torch.Tensor:
    return torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def shortcut() -> Shortcut:
    torch.manual_seed(0)
    return Shortcut()


def attach(model, x, *, exclude=(), min_channels=8):
    """A copy of a network with something that is learned behind each group."""
    groups = prunable_groups(model, x, exclude)
    return reparam.insert_masks(
        model, x, groups, lambda group: DepthwiseBinaryConv(group.channels, min_channels=min_channels)
    )


def test_top_takes_the_highest_and_of_equals_the_lower_index():
    assert top_channels(torch.tensor([0.1, 0.3, 0.3, -1.0, 0.3]), 2).tolist() == [False, True, True, False, False]


def test_what_is_added_up_shares_one_mask(shortcut, x):
    assert [(group.name, group.producers) for group in prunable_groups(shortcut, x)] == [
        ("stem.0", ("stem.0", "body.0")),
        ("last.0", ("last.0",)),
    ]
    attached = attach(shortcut, x, min_channels=4)
    assert [name for name, _ in attached.masks.named_children()] == ["stem_0", "last_0"]
    assert [(m.v.numel(), m.min_channels) for m in indicators(attached)] == [(16, 4), (24, 4)]


@pytest.mark.parametrize("pattern", ["last", "last.0", "last.*", "l*"])
def test_what_is_excluded_stays_whole(shortcut, x, pattern):
    for exclude in ([pattern], pattern):
        attached = attach(shortcut, x, exclude=exclude)
        assert [name for name, _ in attached.masks.named_children()] == ["stem_0"]


@pytest.mark.parametrize(
    ("exclude", "message"),
    [
        (["head"], r"^exclude 'head' is not a group of the network: there are stem.0, last.0$"),
        (["last", "nothing.*"], r"^exclude 'nothing.\*' is not a group"),
        (["stem", "last"], r"^exclude stem, last leaves nothing to prune of stem.0, last.0$"),
    ],
)
def test_what_cannot_be_excluded_is_refused(shortcut, x, exclude, message):
    with pytest.raises(SearchError, match=message):
        attach(shortcut, x, exclude=exclude)


def test_a_network_without_anything_to_prune_is_refused_with_the_reasons():
    with pytest.raises(
        SearchError, match=r"^no channels of the network can be pruned: 0: it is an output of the network$"
    ):
        attach(nn.Sequential(nn.Conv2d(3, 4, 1)), torch.zeros(1, 3, 4, 4))


def test_freezing_changes_no_output_and_leaves_the_masks_that_squeeze_looks_for(shortcut, x):
    network = attach(shortcut.eval(), x)
    groups = prunable_groups(shortcut, x)
    first, last = indicators(network)
    first.v.data = torch.rand(16, generator=torch.Generator().manual_seed(1))
    kept, expected = {"stem.0": first.kept(), "last.0": last.kept()}, network(x)
    frozen = masks.mask(shortcut, x, groups, kept)
    freeze(network, groups, kept)
    assert torch.equal(network(x), expected)
    assert torch.equal(frozen(x), expected)
    assert [type(m) for m in network.masks.children()] == [ChannelMask, nn.Identity]
    assert network.state_dict().keys() == frozen.state_dict().keys()
    squeezed = reparam.squeeze(reparam.fuse(network, x), x)
    width = int(kept["stem.0"].sum())
    assert [m.out_channels for m in squeezed.modules() if isinstance(m, nn.Conv2d)] == [width, width, 24]
    assert torch.allclose(squeezed(x), expected, atol=1e-5)


def test_groups_of_the_fused_form_have_their_trained_names(tiny, shortcut, x):
    _, twins = masks.fused_form(tiny.module(), x)
    assert {name: twin.name for name, twin in twins.items()} == {
        "a": "a.conv",
        "b": "b.conv",
        "c": "c.conv",
        "head.2": "head.2",
    }
    fused, twins = masks.fused_form(shortcut, x)
    assert twins["stem.0"].producers == ("stem.0", "body.0")
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())


@pytest.mark.parametrize("kind", ["sgd", "adam", "rmsprop"])
def test_a_channel_that_is_gone_keeps_its_weights_until_it_is_back(shortcut, x, kind):
    """Neither decay nor momentum moves them: of what makes it, of its norm, of what reads it."""
    network = attach(shortcut, x, min_channels=1).train()
    found = indicators(network)
    weights = [weight for name, weight in network.named_parameters() if not name.endswith(".v")]
    optimizer = {
        "sgd": lambda: torch.optim.SGD(weights, lr=0.1, momentum=0.9, weight_decay=0.1),
        "adam": lambda: torch.optim.Adam(weights, lr=0.01, weight_decay=0.1),
        "rmsprop": lambda: torch.optim.RMSprop(weights, lr=0.001, momentum=0.9, weight_decay=0.1),
    }[kind]()
    masks.hold_gone(optimizer, weights)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), torch.tensor([0, 1])).backward()
        optimizer.step()

    def of_gone() -> list[torch.Tensor]:
        made = [network.stem[0].weight, network.body[0].weight, network.stem[1].weight, network.body[1].bias]
        read = [network.body[0].weight, network.last[0].weight]
        slots = [optimizer.state[w].get("momentum_buffer", optimizer.state[w].get("exp_avg")) for w in made]
        return [tensor[:4].clone() for tensor in (*made, *slots)] + [tensor[:, :4].clone() for tensor in read]

    step()
    with torch.no_grad():
        found[0].v[:4] = 0.0
    before, others = of_gone(), network.stem[0].weight[4:].clone()
    for _ in range(3):
        step()
    assert all(torch.equal(was, now) for was, now in zip(before, of_gone(), strict=True))
    assert all((was != now).any() for was, now in zip(others, network.stem[0].weight[4:], strict=True))
    with torch.no_grad():
        found[0].v[:4] = 1.0
    step()
    assert all((was != now).any() for was, now in zip(before, of_gone(), strict=True))


def test_a_channel_that_was_never_there_starts_with_no_momentum(shortcut, x):
    network = attach(shortcut, x, min_channels=1).train()
    indicators(network)[0].v.data[:4] = 0.0
    weight = network.stem[0].weight
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9, weight_decay=0.1)
    masks.hold_gone(optimizer, [weight])
    before = weight.detach().clone()
    network(x).square().sum().backward()
    optimizer.step()
    assert torch.equal(weight[:4], before[:4])
    assert not optimizer.state[weight]["momentum_buffer"][:4].any()
    assert (weight[4:] != before[4:]).any()
