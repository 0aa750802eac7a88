import itertools
import math
import random
from functools import cache

import pytest
import torch
from torch import nn

from latency import CoverageError, LatencyTable
from search import Choice, SearchError, Space, spaces
from search.budget import Budget, Limit
from search.cost import DevicesModel, DrawnWidths, LatencyModel, MacsModel, cell_terms, network_terms
from search.spaces import Cells, Layered, of_module
from search.spaces.cells import EDGES, OPTIONS

from .conftest import make_staged, make_table, make_tiny


class Joined(nn.Module):
    """Two convolutions side by side, a depth-wise one over both, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU()) for _ in range(2))
        self.mix = nn.Sequential(nn.Conv2d(64, 48, 1), nn.ReLU(), nn.Conv2d(48, 48, 3, padding=1, groups=48), nn.ReLU())
        self.classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 2))

    def forward(self, x):
        return self.classifier(self.mix(torch.cat([self.a(x), self.b(x)], 1)))


@cache
def space_of(name: str) -> Space:
    match name:
        case "tiny":
            return make_tiny()
        case "staged":
            return make_staged()
        case "joined":
            return of_module(Joined(), torch.zeros(1, 3, 8, 8), name="joined")
    return spaces.get(name)


@cache
def table_of(name: str) -> LatencyTable:
    space, draw = space_of(name), random.Random(7)
    return make_table(space, [space.random(draw) for _ in range(8)])


WIDTHS = {"tiny": 300, "repvgg-mini": 200, "joined": 200, "resnet20/widths": 50}
"""Spaces of open widths, and how many random networks of each are compared; `pytest --choices 1000` compares as many of every space."""
ALL = [*WIDTHS, "prunet-cifar", "nasbench201", "resnet20"]


@pytest.fixture
def choices(request):
    """The largest, the smallest and some random networks of a space."""

    def draw(space: Space, number: int) -> list[Choice]:
        seeded = random.Random(0)
        return [
            space.largest(),
            space.smallest(),
            *(space.random(seeded) for _ in range(request.config.getoption("choices") or number)),
        ]

    return draw


def scalars(widths, dtype=torch.float32):
    return [torch.tensor(float(width), requires_grad=True, dtype=dtype) for width in widths]


def cost_of(model, space, widths):
    return model.expected(network_terms(model, space.sites(), widths))


def one_hot(space: Layered, choice: Choice):
    """Candidates of each layer, and the share of each: 1 of the chosen one."""
    chosen = space.chosen(choice)
    for layer in space.layers:
        candidates = [*layer.blocks(), *([None] if layer.skippable else [])]
        yield (
            candidates,
            torch.tensor([float(block == chosen.get(layer.name)) for block in candidates], dtype=torch.float64),
        )


def models(name: str):
    """Both models, each with what its space or table says of a network."""
    space, table = space_of(name), table_of(name)
    yield LatencyModel(space, table), lambda choice: table.predict(space.network(choice)).us
    yield MacsModel(space), lambda choice: space.macs(space.network(choice))


@pytest.mark.parametrize("name", WIDTHS)
def test_whole_widths_cost_what_table_and_space_say(name, choices):
    space = space_of(name)
    for model, truth in models(name):
        for choice in choices(space, WIDTHS[name]):
            widths = scalars(space.widths(choice), torch.float64)
            assert cost_of(model, space.at_depths(choice.depths), widths).item() == pytest.approx(
                truth(choice), rel=1e-9
            )
            assert model.price(choice).cost == pytest.approx(truth(choice), rel=1e-12)


def test_one_hot_shares_cost_what_table_and_space_say(choices):
    space = space_of("prunet-cifar")
    for model, truth in models("prunet-cifar"):
        for choice in choices(space, 100):
            terms = [model.over(candidates, shares) for candidates, shares in one_hot(space, choice)]
            assert model.expected(terms).item() == pytest.approx(truth(choice), rel=1e-9)


def test_one_hot_edges_cost_what_table_and_space_say(choices):
    space = space_of("nasbench201")
    for model, truth in models("nasbench201"):
        for choice in choices(space, 100):
            used = space.used(choice)
            shares = torch.tensor(
                [[float(used.get(ends, "none") == name) for name in OPTIONS] for ends in EDGES], dtype=torch.float64
            )
            assert model.expected(cell_terms(model, space, shares)).item() == pytest.approx(truth(choice), rel=1e-9)


def test_expected_cost_of_edges_is_the_mean_over_cells_that_connect_their_ends():
    space = Cells(name="cells", input_shape=(3, 8, 8), classes=2, channels=4, cells=2)
    model, draw = MacsModel(space), torch.Generator().manual_seed(0)
    shares = torch.rand(len(EDGES), len(OPTIONS), dtype=torch.float64, generator=draw)
    shares[0, 2:] = shares[1, 1:] = shares[2, :3] = shares[4, :4] = 0  # fewer cells than all
    shares = (shares / shares.sum(1, keepdim=True)).requires_grad_()
    probable, mean = 0.0, 0.0
    for picks in itertools.product(*(row.nonzero().flatten().tolist() for row in shares)):
        choice = space.of(OPTIONS[pick] for pick in picks)
        if space.connected(choice):
            probability = shares[range(len(EDGES)), picks].prod().item()
            probable, mean = probable + probability, mean + probability * model.of(choice)
    expected = model.expected(cell_terms(model, space, shares))
    assert expected.item() == pytest.approx(mean / probable, rel=1e-9)
    assert 0 < probable < 1
    gradient = torch.autograd.grad(expected, shares)[0]
    assert (gradient[:, OPTIONS.index("nor_conv_3x3")] > gradient[:, OPTIONS.index("skip_connect")]).all()


def test_hidden_widths_of_a_layer_cost_what_its_blocks_do():
    space = space_of("prunet-cifar")
    for model, _ in models("prunet-cifar"):
        for layer in space.layers:
            for option in layer.options:
                for hidden, block in zip(option.hidden, option.blocks(), strict=False):
                    open_one = model.at_widths(option.site, scalars([hidden], torch.float64))
                    whole = model.over([block], torch.ones(1, dtype=torch.float64))
                    assert float(open_one.detach()) == pytest.approx(float(whole), rel=1e-12)


def test_a_single_network_is_a_chain_of_certain_blocks():
    space, sure = space_of("resnet20"), torch.ones(1, dtype=torch.float64)
    for model, truth in models("resnet20"):
        assert model.expected([model.over([block], sure) for block in space.network()]).item() == pytest.approx(
            truth(Choice()), rel=1e-9
        )


@pytest.mark.parametrize("name", ALL)
def test_the_price_of_a_network_is_what_predict_says_with_its_interval(name):
    space, table, draw = space_of(name), table_of(name), random.Random(1)
    model = LatencyModel(space, table)
    for choice in [space.largest(), space.smallest(), *(space.random(draw) for _ in range(20))]:
        assert model.of(choice) == table.predict(space.network(choice))
        assert tuple(model.price(choice)) == (model.of(choice).us, model.of(choice).high_us)


def test_a_mixture_costs_the_mean_of_its_networks():
    """Three layers that can be skipped, the others certain: the expectation over all combinations, written out."""
    space, table = space_of("prunet-cifar"), table_of("prunet-cifar")
    draw, skippable = random.Random(3), [layer for layer in space.layers if layer.skippable][:3]
    base = space.random(draw)
    options = {layer.name: [space.chosen(space.largest())[layer.name], layer.blocks()[0], None] for layer in skippable}
    shares = {name: torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64) for name in options}
    chosen = space.chosen(base)

    def candidates(name):
        return options[name] if name in options else [chosen.get(name)]

    for model in (LatencyModel(space, table), MacsModel(space)):
        sure = torch.ones(1, dtype=torch.float64)
        terms = [model.over(candidates(layer.name), shares.get(layer.name, sure)) for layer in space.layers]
        mean = 0.0
        for picks in itertools.product(range(3), repeat=3):
            picked = dict(zip(options, picks, strict=True))
            blocks = [candidates(layer.name)[picked.get(layer.name, 0)] for layer in space.layers]
            network = [block for block in blocks if block]
            cost = table.predict(network).us if model.unit == "us" else space.macs(network)
            mean += cost * torch.stack([shares[name][pick] for name, pick in picked.items()]).prod().item()
        assert model.expected(terms).item() == pytest.approx(mean, rel=1e-9)


def test_a_skipped_layer_costs_nothing_its_boundary_included():
    space, table = space_of("prunet-cifar"), table_of("prunet-cifar")
    model, blocks = LatencyModel(space, table), space.network(space.smallest())
    sure = torch.ones(1, dtype=torch.float64)
    terms = [model.over([block], sure) for block in blocks]
    absent = 0.0 * model.over([space.layers[2].blocks()[0]], sure)
    for place in range(len(terms) + 1):
        assert model.expected([*terms[:place], absent, *terms[place:]]).item() == pytest.approx(
            table.predict(blocks).us, rel=1e-12
        )


def test_gradients_of_shares_and_presence_are_the_differences_of_the_expectation():
    """Of the first layers, each a mixture, one with its skip, of which one is there with some probability."""
    space, table = space_of("prunet-cifar"), table_of("prunet-cifar")
    layers = [[*layer.blocks()[:4], *([None] if layer.skippable else [])] for layer in space.layers[:6]]
    shares = [torch.rand(len(layer), dtype=torch.float64).softmax(0).requires_grad_() for layer in layers]
    present = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
    for model in (LatencyModel(space, table), MacsModel(space)):

        def expected(presence, *shares, model=model):
            terms = [model.over(layer, share) for layer, share in zip(layers, shares, strict=True)]
            terms.insert(3, presence * model.over(layers[4], shares[4]))
            return model.expected(terms)

        scale = expected(present, *shares).item()
        assert torch.autograd.gradcheck(expected, (present, *shares), eps=1e-4, atol=1e-7 * scale, rtol=1e-6)


def test_between_grid_points_it_is_bilinear(tiny, table):
    model = LatencyModel(tiny, table)
    # Channels of b and c half-way across a step in both directions: the mean of the four corners.
    corners = [
        table.predict(tiny.network(tiny.choice((16, b, c)))).us for b, c in itertools.product((16, 24), (16, 24))
    ]
    assert cost_of(model, tiny, scalars((16, 20, 20))).item() == pytest.approx(sum(corners) / 4, rel=1e-6)


def test_below_the_grid_it_is_constant(tiny, table):
    model = LatencyModel(tiny, table)
    narrow, narrowest = (cost_of(model, tiny, scalars(widths)).item() for widths in ((8, 8, 8), (3, 8, 8)))
    assert narrow - narrowest == pytest.approx(5 * 64 / 1000 * -table.predictor.saved_us_per_kelement, abs=1e-4)


def test_the_gradient_is_not_flat_on_a_staircase(tiny, table):
    """At (16, 32, 32) every width stands on the far end of a tread of 16, where the true slope is 0 to one side."""
    widths = scalars((16, 32, 32))
    cost_of(LatencyModel(tiny, table), tiny, widths).backward()
    assert all(width.grad > 0.05 for width in widths[1:])


def test_the_gradient_goes_through_output_and_input_widths(tiny, table):
    """Layer b: its own block, and that of c which reads its channels. Slopes are differences of the latency over the window."""
    widths = scalars((16, 32, 32))
    cost_of(LatencyModel(tiny, table), tiny, widths).backward()
    scale = table.predictor.scale
    own, next_one, head = tiny.network(tiny.choice((16, 32, 32)))[1:]

    def mean_slope(spec, name):
        narrow = spec.with_widths(**{name: 16})
        return (table.lookup(spec).us - table.lookup(narrow).us) / 16

    crossing = table.predictor.saved_us_per_kelement * 16 / 1000  # 4x4 pixels a channel
    assert widths[1].grad.item() == pytest.approx(
        scale * (mean_slope(own, "c_out") + mean_slope(next_one, "c_in")) - crossing, rel=1e-4
    )
    assert widths[2].grad.item() == pytest.approx(
        scale * (mean_slope(next_one, "c_out") + mean_slope(head, "c_in")) - crossing, rel=1e-4
    )


def test_macs_are_counted_with_both_gradients(tiny):
    widths = scalars((16, 32, 24))
    macs = cost_of(MacsModel(tiny), tiny, widths)
    macs.backward()
    assert macs.item() == tiny.macs(tiny.network(tiny.choice((16, 32, 24))))
    # b: 9 * 4*4 pixels * 16 inputs as an output; 9 * 4*4 pixels * 24 outputs as an input.
    assert widths[1].grad.item() == 9 * 16 * 16 + 9 * 16 * 24


def test_a_concatenation_has_the_sum_of_its_widths():
    joined, widths = space_of("joined"), scalars((16, 24, 32))
    macs = cost_of(MacsModel(joined), joined, widths)
    macs.backward()
    assert macs.item() == joined.macs(joined.network(joined.choice((16, 24, 32))))
    # a: 27 weights a channel as an output, 32 as an input of the 1x1 convolution; b alike; 8x8 pixels.
    assert [width.grad.item() for width in widths[:2]] == [64 * (27 + 32)] * 2
    # its own 40 inputs, 9 weights of the depth-wise convolution, which grow with it and not with its square, 2 outputs of the classifier.
    assert widths[2].grad.item() == 64 * (40 + 9) + 2


@pytest.mark.parametrize("name", WIDTHS)
def test_there_is_a_slope_everywhere(name):
    space = space_of(name)
    widths = scalars(space.widths(space.random(random.Random(5))))
    cost_of(LatencyModel(space, table_of(name)), space, widths).backward()
    assert all(width.grad is not None and width.grad.isfinite() for width in widths)
    assert sum(width.grad.item() > 0 for width in widths) > len(widths) / 2


def test_a_table_that_lacks_a_block_is_refused(tiny, table):
    from dataclasses import replace

    with pytest.raises(CoverageError, match="head"):
        LatencyModel(replace(tiny, classes=7), table)


def test_a_space_without_open_widths_says_so():
    model = LatencyModel(space_of("resnet20"), table_of("resnet20"))
    with pytest.raises(SearchError, match=r"^resnet20 has no blocks of open widths: ask for the cost of whole blocks$"):
        model.at_widths(space_of("tiny").sites()[0], scalars([8, 8, 8]))


@pytest.mark.parametrize("name", ["tiny", "joined", "staged"])
def test_expected_cost_of_drawn_widths_and_depths_is_the_mean_over_all_networks(name):
    """Also where a block reads a concatenation, of which each group draws for itself."""
    space, draw = space_of(name), torch.Generator().manual_seed(0)
    choices = [space.width_choices(index)[-3:] for index in range(len(space.groups))]
    shares = [torch.rand(len(options), generator=draw, dtype=torch.float64) for options in choices]
    shares = [(share / share.sum()).requires_grad_() for share in shares]
    deep = max(space.full_depths().values(), default=1)
    depths = torch.rand(deep, generator=draw, dtype=torch.float64)
    depths = (depths / depths.sum()).requires_grad_()
    parts = [
        next((n for s in space.stages for n, b in enumerate(s.blocks) if n and i in b.sites), None)
        for i in range(len(space.sites()))
    ]
    present = {number: depths[number:].sum() for number in range(1, deep)}
    for model, truth in models(name):
        drawn = DrawnWidths(model, space.sites(), choices, parts)
        mean = 0.0
        for picks in itertools.product(*(range(len(options)) for options in choices)):
            for depth in range(1, deep + 1):
                probability = (
                    math.prod(share[pick].item() for share, pick in zip(shares, picks, strict=True))
                    * depths[depth - 1].item()
                )
                widths = [options[pick] for options, pick in zip(choices, picks, strict=True)]
                mean += probability * truth(space.choice(widths, dict.fromkeys(space.full_depths(), depth)))
        expected = drawn.expected(shares, present)
        assert expected.item() == pytest.approx(mean, rel=1e-9)
        gradients = torch.autograd.grad(expected, shares)
        assert all(
            (gradient.diff() >= -0.01).all() and gradient.any() for gradient in gradients
        )  # the table has three decimals


def test_a_block_of_very_many_combinations_costs_what_it_does_at_the_expected_widths(monkeypatch):
    space = space_of("joined")
    exact = DrawnWidths(MacsModel(space), space.sites(), [(8, 32), (8, 32), (8, 48)])
    monkeypatch.setattr("search.cost._TABULATED", 4)
    open_one = DrawnWidths(MacsModel(space), space.sites(), [(8, 32), (8, 32), (8, 48)])
    shares = [torch.tensor([0.25, 0.75])] * 3
    assert open_one.expected(shares).item() == pytest.approx(
        exact.expected(shares).item(), rel=1e-6
    )  # as MACs are linear in each width


def devices_of(name: str, *shares: float) -> list[Limit]:
    """Devices of different stairs, the budget of each a share of what one network takes there."""
    space, draw = space_of(name), random.Random(7)
    networks = [space.random(draw) for _ in range(8)]
    tables = [make_table(space, networks, tread=tread, name=str(tread), spread=0.004 * tread) for tread in (16, 8, 4)]
    return [
        Limit(table, Budget(us=share * table.predict(space.network(networks[0])).high_us))
        for table, share in zip(tables, shares, strict=False)
    ]


def furthest(limits, network) -> tuple[int, float]:
    """Which device a network is furthest over the target of, and what it takes there, in microseconds of the first."""
    each = [limit.table.predict(network).us / limit.target * limits[0].target for limit in limits]
    return each.index(max(each)), max(each)


@pytest.mark.parametrize("name", ["tiny", "prunet-cifar"])
def test_on_several_devices_what_counts_is_the_one_furthest_over_its_budget(name, choices):
    space, limits = space_of(name), devices_of(name, 1.001, 1.001, 1.001)
    model, seen = DevicesModel(space, limits), set()
    for choice in choices(space, 30):
        network = space.network(choice)
        device, cost = furthest(limits, network)
        seen.add(device)
        price = model.price(choice)
        assert price.cost == pytest.approx(cost, rel=1e-12)
        most = max(limit.table.predict(network).high_us / limit.budget.amount for limit in limits)
        assert price.most == pytest.approx(most * limits[0].budget.amount, rel=1e-11)
        terms = [model.over([block], torch.ones(1, dtype=torch.float64)) for block in network]
        assert model.expected(terms).item() == pytest.approx(cost, rel=1e-9)
        assert (price.most <= limits[0].budget.amount) == all(
            limit.table.predict(network).high_us <= limit.budget.amount for limit in limits
        )
    assert len(seen) > 1


@pytest.mark.parametrize("strict", range(3))
def test_widths_are_pulled_by_the_device_furthest_over_its_budget(tiny, strict):
    limits = devices_of("tiny", *(0.1 if device == strict else 1.0 for device in range(3)))
    widths, alone = (scalars((16, 32, 32), torch.float64) for _ in range(2))
    cost_of(DevicesModel(tiny, limits), tiny, widths).backward()
    cost_of(LatencyModel(tiny, limits[strict].table), tiny, alone).backward()
    scale = limits[0].target / limits[strict].target
    assert [width.grad.item() for width in widths] == pytest.approx([scale * width.grad.item() for width in alone])


def test_drawn_widths_on_several_devices_cost_the_highest_of_their_means(tiny):
    limits = devices_of("tiny", 1.0, 0.9, 1.0)
    choices = [(8, 16, 32)] * 3
    shares = [torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)] * 3
    expected = DrawnWidths(DevicesModel(tiny, limits), tiny.sites(), choices).expected(shares).item()
    each = [
        DrawnWidths(LatencyModel(tiny, limit.table), tiny.sites(), choices).expected(shares).item() / limit.target
        for limit in limits
    ]
    assert expected == pytest.approx(max(each) * limits[0].target, rel=1e-9)
