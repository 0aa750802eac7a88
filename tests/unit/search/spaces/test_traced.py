import dataclasses
import random
from functools import cache

import pytest
import torch
from torch import nn

import reparam
from search import Choice, SearchError, masks, spaces
from search.spaces import AffineWidth, Site, of_module
from search.spaces.traced import Traced
from zoo import ZOO

SMALL = [network for network in ZOO if network.name not in ("YOLACT", "CycleGAN", "U-Net", "Split", "RepVGG-B1g4")]
"""Not those that are no classifiers, that split a value (how many channels are left of a part depends on which), or of grouped layers."""


class Mixed(nn.Module):
    """A concatenation, a depth-wise convolution, a transposed one, and a linear layer behind a flattened image."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, 16, (1, 3), padding=(0, 1)), nn.ReLU())
        self.b = nn.Sequential(nn.Conv2d(3, 24, 3, padding=1), nn.ReLU6())
        self.join = nn.Sequential(nn.Conv2d(43, 32, 1, bias=False), nn.BatchNorm2d(32), nn.SiLU())
        self.depthwise = nn.Sequential(nn.Conv2d(32, 32, 5, 2, 2, groups=32), nn.Hardswish())
        self.up = nn.ConvTranspose2d(32, 8, 2, 2)
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(8 * 64, 10))

    def forward(self, x):
        joined = self.join(torch.cat([self.a(x), x, self.b(x)], dim=1))
        return self.classifier(self.up(self.depthwise(joined)))


@cache
def mixed() -> Traced:
    torch.manual_seed(0)
    return of_module(Mixed(), torch.zeros(1, 3, 8, 8), name="mixed")


def test_sites_say_what_each_layer_reads_and_makes():
    space = mixed()
    assert space.groups == (("a.0", 16), ("b.0", 24), ("join.0", 32), ("up", 8))
    assert [site.spec.key for site in space.sites()] == [
        "conv(act=relu,h=8,kernel=1,kernel_w=3,pad_w=1,stride=1,w=8)[c_in=3,c_out=16]",
        "conv(act=relu6,h=8,kernel=3,stride=1,w=8)[c_in=3,c_out=24]",
        "conv(act=swish,h=8,kernel=1,stride=1,w=8)[c_in=43,c_out=32]",
        "depthwise(act=hardswish,h=8,kernel=5,stride=2,w=8)[c_in=32]",
        "conv_transpose(act=none,h=4,kernel=2,pad=0,stride=2,w=4)[c_in=32,c_out=8]",
        "linear(act=none,h=1,w=1)[c_in=512,c_out=10]",
    ]
    assert [site.spans for site in space.sites()] == [
        (AffineWidth(fixed=3), AffineWidth(terms=((0, 1),))),
        (AffineWidth(fixed=3), AffineWidth(terms=((1, 1),))),
        (AffineWidth(fixed=3, terms=((0, 1), (1, 1))), AffineWidth(terms=((2, 1),))),
        (AffineWidth(terms=((2, 1),)),),
        (AffineWidth(terms=((2, 1),)), AffineWidth(terms=((3, 1),))),
        (AffineWidth(terms=((3, 64),)), AffineWidth(fixed=10)),
    ]
    assert (space.input_shape, space.classes) == ((3, 8, 8), 10)


def ends(model: nn.Module, x: torch.Tensor) -> list[tuple[int, int]]:
    """Input and output channels of each layer, in the order in which they run."""
    found: list[tuple[int, int]] = []

    def note(module, _args, _output) -> None:
        into, out = (
            (module.in_features, module.out_features)
            if isinstance(module, nn.Linear)
            else (module.in_channels, module.out_channels)
        )
        found.append((into, out))

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            module.register_forward_hook(note)
    model(x)
    return found


def check_against_squeeze(space: Traced, seed: int) -> None:
    """At any widths the sites are the layers of the network that squeezing makes."""
    x, module = torch.zeros(1, *space.input_shape), space.module().eval()
    widths = tuple(random.Random(seed).randint(1, full) for _, full in space.groups)
    kept = {name: torch.arange(full) < width for (name, full), width in zip(space.groups, widths, strict=True)}
    small = reparam.squeeze(reparam.fuse(masks.mask(module, x, masks.prunable_groups(module, x), kept), x), x)
    found = [
        (spec.width("c_in"), dict(spec.widths).get("c_out", spec.width("c_in")))
        for spec in space.network(space.choice(widths))
    ]
    assert found == ends(small, x)
    assert space.macs(space.network(space.choice(widths))) >= reparam.count(small, x).macs


@pytest.mark.parametrize("network", SMALL, ids=lambda network: network.name)
def test_sites_are_the_layers_that_squeezing_leaves(network):
    model, x = network.make(small=True), network.input(small=True)
    space = of_module(model, x, name="small")
    assert ends(reparam.fuse(model, x), x) == [
        (s.spec.width("c_in"), dict(s.spec.widths).get("c_out", s.spec.width("c_in"))) for s in space.sites()
    ]
    assert space.macs() == reparam.count(reparam.fuse(model, x), x).macs
    check_against_squeeze(space, 1)


def test_so_are_they_where_values_are_concatenated_and_flattened():
    for seed in range(3):
        check_against_squeeze(mixed(), seed)


@pytest.mark.parametrize("name", ["resnet20", "mobilenetv2-1.0"])
def test_named_networks_have_a_space_of_their_widths(name):
    fixed, space = spaces.get(name), spaces.get(f"{name}/widths")
    assert isinstance(space, Traced)
    assert space.macs() == fixed.macs()
    assert space.parameters() == fixed.parameters()
    assert space.name == f"{name}/widths"
    assert [len(space.width_choices(index)) <= 32 for index in range(len(space.groups))] == [True] * len(space.groups)


def test_blocks_are_a_coarse_grid_that_spans_every_layer():
    space = spaces.get("resnet20/widths")
    blocks = space.blocks()
    assert len(blocks) == len(set(blocks)) < 400
    families: dict[str, list[tuple[int, ...]]] = {}
    for spec in blocks:
        families.setdefault(spec.family, []).append(tuple(width for _, width in spec.widths))
    draw = random.Random(0)
    for _ in range(20):
        for spec in space.network(space.random(draw)):
            for axis, (_, width) in zip(zip(*families[spec.family], strict=True), spec.widths, strict=True):
                assert min(axis) <= width <= max(axis)


def test_one_small_family_is_measured_whole():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(
                nn.Conv2d(3, 16, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(16, 16, 1),
                nn.ReLU(),
                nn.Flatten(),
                nn.Linear(256, 2),
            )

        def forward(self, x):
            return self.layers(x)

    space = of_module(Two(), torch.zeros(1, 3, 4, 4), name="two")
    keys = [spec.key for spec in space.blocks() if "kernel=1" in spec.key]
    assert [key[key.index("[") :] for key in keys] == [f"[c_in={a},c_out={b}]" for a in (8, 16) for b in (8, 16)]


def test_the_module_is_made_anew_and_keeps_its_weights():
    space = mixed()
    one, other = space.module(), space.module()
    one.up.weight.data.zero_()
    assert other.up.weight.any()


def test_a_record_is_json_without_the_module():
    import msgspec

    record = mixed().record()
    assert msgspec.json.decode(msgspec.json.encode(record)) == record
    assert msgspec.convert(record["places"], list[Site]) == mixed().sites()


@pytest.mark.parametrize(
    ("model", "shape", "options", "message"),
    [
        (nn.Linear(3, 2), (1, 3), {}, r"^example_input must be images .* found the shape \(1, 3\)$"),
        (
            Mixed(),
            (1, 3, 8, 8),
            {"granularity": 0},
            r"^granularity must be at least 1 and points at least 2, found 0 and 6$",
        ),
        (
            nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 1), nn.Flatten(2), nn.Conv1d(16, 2, 1)),
            (1, 3, 4, 4),
            {},
            r"^layer 3 is a Conv1d, of which no block can be measured: Conv2d, ConvTranspose2d and Linear can$",
        ),
    ],
)
def test_what_has_no_such_space_is_refused(model, shape, options, message):
    with pytest.raises(SearchError, match=message):
        of_module(model, torch.zeros(shape), name="bad", **options)


def test_only_a_single_network_has_widths():
    with pytest.raises(
        SearchError, match=r"^prunet/widths: only a single network has a space of its widths, such as resnet-18/widths$"
    ):
        spaces.get("prunet/widths")


def test_depths_leave_blocks_out_with_the_groups_that_they_alone_have(staged):
    hidden = [f"{block}.body.first.conv" for block in (1, 2, 3)]
    assert [name for name, _ in staged.groups] == ["0.conv", *hidden]
    assert staged.full_depths() == {"stage1": 3}
    choice = staged.choice((8, 4, 12, 16), {"stage1": 2})
    assert choice == Choice(widths={"0.conv": 8, hidden[0]: 4, hidden[1]: 12}, depths={"stage1": 2})
    assert staged.widths(choice) == (8, 4, 12, 16)
    x = torch.zeros(1, 3, 8, 8)
    small = reparam.squeeze(reparam.fuse(staged.module(choice), x), x)
    assert [m.out_channels for m in small.modules() if isinstance(m, nn.Conv2d)] == [8, 4, 8, 12, 8]
    assert reparam.count(small, x).macs == staged.macs(staged.network(choice))
    assert reparam.count(small, x).params == staged.parameters(staged.network(choice))
    assert staged.at_depths(choice.depths).network(None) == staged.network(staged.choice((16,) * 4, choice.depths))


def test_the_size_counts_each_network_once(staged):
    coarse, draw = dataclasses.replace(staged, granularity=8), random.Random(0)
    assert len({coarse.random(draw) for _ in range(1_000)}) == coarse.size() == 2 * 2 * (1 + 2 + 2 * 2)
    assert staged.smallest().depths == {"stage1": 1}
    assert staged.largest() == staged.choice((16,) * 4)


def test_a_choice_without_depths_has_all_blocks(staged):
    assert staged.network(Choice(widths=staged.largest().widths)) == staged.network()
    for depths, message in (
        ({"stage1": 4}, "found stage1=4"),
        ({"stage2": 1}, "found stage2=1"),
        ({"stage1": 0}, "found stage1=0"),
    ):
        with pytest.raises(SearchError, match=rf"^staged has the depths stage1 of 1 to 3: {message}$"):
            staged.network(Choice(widths=staged.largest().widths, depths=depths))
    with pytest.raises(SearchError, match=r"a choice has a width for each"):
        staged.network(Choice(widths=staged.largest().widths, depths={"stage1": 1}))


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ({"s": ["0"]}, r"^stage s has one block, 0, and needs one more that it can lose$"),
        ({"s": ["0", "1"]}, r"^stage s cannot lose block 1: it reads \(1, 8, 4, 4\) and makes \(1, 16, 4, 4\)$"),
        ({"s": ["0", "5"]}, r"^stage s has no block 5 in the network$"),
        ({"s": ["0", "2"]}, r"^stage s cannot lose block 2: the network has other channels without it$"),
    ],
)
def test_a_stage_that_cannot_lose_a_block_is_refused(stages, message):
    def network() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 1), nn.Conv2d(16, 16, 1), nn.Flatten(), nn.Linear(256, 2)
        )

    with pytest.raises(SearchError, match=message):
        spaces.traced(network, torch.zeros(1, 3, 4, 4), name="bad", stages=stages)
