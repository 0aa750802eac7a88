import dataclasses
import itertools
import math
import random

import msgspec
import pytest
import torch

from latency import CoverageError, LatencyTable
from search import SearchError, ops, prunode, session
from search.budget import Budget
from search.method import Epoch, Problem
from search.methods.prunet import Prunet
from search.methods.settings import PrunetSettings, recipe
from search.record import EpochDone, Finished
from search.spaces import Layered, MultiBlock, StochasticLayer, with_layers
from search.spaces.layered import SKIP

from ..conftest import make_layers, make_table

SPACE = make_layers()
FEW = {"warmup_epochs": 1, "search_epochs": 3, "train_epochs": 1, "batch": 16, "search_batch": 8, "theta_lr": 1.0}
FILES = ("history.jsonl", "weights.safetensors", "architecture.json", "result.json")


@pytest.fixture(scope="module")
def table():
    draw = random.Random(0)
    return make_table(SPACE, [SPACE.random(draw) for _ in range(8)])


@pytest.fixture
def make(stripes, table):
    def method(budget=None, *, priced=True, space=SPACE, **settings) -> Prunet:
        if not priced:
            problem = Problem(space=space, task=stripes, table=None, budget=budget or Budget(macs=space.macs()))
        else:
            problem = Problem(
                space=space,
                task=stripes,
                table=table,
                budget=budget or Budget(us=table.predict(space.network()).high_us),
            )
        return Prunet(PrunetSettings(**(FEW | settings)), problem)

    return method


def epoch_of(method, index=0, phase=1):
    phase = method.phases[phase]
    return Epoch(
        phase=phase, index=index, order=torch.Generator().manual_seed(1), noise=torch.Generator().manual_seed(2)
    )


def begin(method):
    """The supernet and its optimizers, at the start of the search."""
    torch.manual_seed(0)
    network = method.network(method.phases[1], None)
    return network, method.optimizers(method.phases[1], network)


def train(network, part):
    """What a part does in an epoch."""
    network.train()
    for step, (images, labels) in enumerate(part.batches):
        for optimizer in part.optimizers:
            optimizer.zero_grad()
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * (part.factor(step) if group.get("scheduled", True) else 1.0)
        part.loss(network(images), labels, images).backward()
        for optimizer in part.optimizers:
            optimizer.step()


def test_the_loss_is_cross_entropy_and_alpha_times_the_power_of_the_logarithm(make, table):
    """Eq. 2: at 480 us and alpha 2 the paper's term is 5.962."""
    method = make(alpha=2.0, beta=0.6)
    network, optimizers = begin(method)
    _, part = method.parts(epoch_of(method), network, optimizers)
    logits = network(torch.randn(8, 3, 8, 8))
    labels = torch.arange(8) % 2
    us = network.expected(method.model, network.shares).item()
    wanted = torch.nn.functional.cross_entropy(logits, labels).item() + 2 * math.log(us) ** 0.6
    assert part.loss(logits, labels, logits).item() == pytest.approx(wanted)
    method.model.expected = lambda _: torch.tensor(480.0)
    assert method._penalty(network, 480.0).item() == pytest.approx(5.962, abs=1e-3)


def test_latency_pulls_to_smaller_masks_and_faster_blocks(make):
    method = make()
    network, _ = begin(method)
    network(torch.randn(8, 3, 8, 8))
    method._penalty(network, 480.0).backward()
    assert all(weight.grad > 0 for weight in network.widths())
    layer = network.layers["a"]
    assert layer.theta.grad[0] < 0 < layer.theta.grad[1]  # 3x3 against 5x5


def test_images_are_divided_between_weights_and_architecture_weights_in_every_epoch(make):
    method = make(theta_images=0.25)
    network, optimizers = begin(method)
    seen = []
    for index in range(2):
        epoch = dataclasses.replace(epoch_of(method, index), noise=torch.Generator().manual_seed(index))
        weights, architecture = method.parts(epoch, network, optimizers)
        first, second = set(weights.batches._rows.tolist()), set(architecture.batches._rows.tolist())
        assert (len(first), len(second), first & second) == (48, 16, set())
        seen.append(second)
    assert seen[0] != seen[1]
    assert weights.optimizers == [optimizers[0]]
    assert architecture.optimizers == [optimizers[1]]


def test_the_warm_up_trains_weights_alone(make):
    method = make()
    network = method.network(method.phases[0], None)
    optimizers = method.optimizers(method.phases[0], network)
    (part,) = method.parts(epoch_of(method, phase=0), network, optimizers)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    train(network, part)
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert not [
        name for name in changed if name.endswith(("theta", "weight")) and name.count(".") < 4 and "blocks" not in name
    ]
    assert all(node.masks == node.rule.start() for node in network.prunodes())
    assert "layers.b.blocks.irb_k3.block.body.expand.conv.weight" in changed


def test_masks_move_after_the_steps_of_the_architecture_weights_alone(make):
    method = make()
    network, optimizers = begin(method)
    weights, architecture = method.parts(epoch_of(method), network, optimizers)
    starts = [node.masks for node in network.prunodes()]
    train(network, weights)
    assert [node.masks for node in network.prunodes()] == starts
    train(network, architecture)
    moved = [node.masks for node in network.prunodes()]
    assert all(before != after for before, after in zip(starts, moved, strict=True))
    steps = len(architecture.batches) * method.settings.search_epochs
    distance = 0.6 * (1 - len(architecture.batches) / steps) ** 2
    assert {round(masks.l - masks.s, 6) for masks in moved} == {round(distance, 6)}


def test_the_threshold_rises_linearly_or_stays(make):
    assert [make(search_epochs=4).threshold(ended) for ended in range(5)] == pytest.approx(
        [0.15, 0.25, 0.35, 0.45, 0.55]
    )
    assert [make(threshold="constant", t_initial=0.133).threshold(ended) for ended in (0, 3)] == [0.133, 0.133]


def test_a_removed_block_frees_its_weights_and_what_optimizers_hold_of_them(make):
    method = make()
    network, optimizers = begin(method)
    for part in method.parts(epoch_of(method), network, optimizers):
        train(network, part)
    layer = network.layers["b"]
    with torch.no_grad():
        layer.theta[:4] = torch.tensor([-4.0, -5.0, 1.0, 1.0])
    gone = {id(weight) for name in ("irb_k3", "irb_k3_se") for weight in layer.blocks[name].parameters()}
    method.ended(epoch_of(method), network)
    assert list(layer.blocks) == ["irb_k5", "irb_k5_se"]
    for optimizer in optimizers:
        held = [weight for group in optimizer.param_groups for weight in group["params"]]
        assert not gone & {id(weight) for weight in (*held, *optimizer.state)}
        assert set(optimizer.state) <= set(held)
    assert {id(weight) for weight in network.parameters()}.isdisjoint(gone)
    fewer = [weight for group in optimizers[0].param_groups for weight in group["params"]]
    assert {id(weight) for weight in fewer} == {id(weight) for weight in network.weights()}


def test_architecture_weights_that_start_again_have_no_momentum(make):
    method = make()
    network, optimizers = begin(method)
    for part in method.parts(epoch_of(method), network, optimizers):
        train(network, part)
    layer = network.layers["c"]
    assert layer.theta in optimizers[1].state
    with torch.no_grad():
        layer.theta[:2] = torch.tensor([-4.0, 1.0])
    method.ended(epoch_of(method), network)
    assert layer.candidates == ("irb_k3_se", SKIP)
    assert layer.theta not in optimizers[1].state
    assert layer.probabilities() == {"irb_k3_se": 0.5, SKIP: 0.5}


@pytest.mark.parametrize("paper", [True, False])
def test_rates_are_those_of_the_paper_and_the_weights_of_prunodes_forget_fast(make, paper):
    method = make(prunode="paper" if paper else "scaled")
    _, (weights, architecture) = begin(method)
    thetas, widths = architecture.param_groups
    assert (weights.param_groups[0]["peak_lr"], thetas["peak_lr"], widths["peak_lr"]) == (0.002, 1.0, 0.1)
    assert widths["betas"] == ((0.9, 0.999) if paper else prunode.BETAS)
    assert thetas["betas"] == (0.9, 0.999)


def test_a_budget_that_binds_adapts_alpha_and_is_met(make, table):
    budget = Budget(us=0.5 * table.predict(SPACE.network()).us)
    method = make(budget, alpha_rate=0.5)
    network, optimizers = begin(method)
    for index in range(3):
        for part in method.parts(epoch_of(method, index), network, optimizers):
            train(network, part)
        method.ended(epoch_of(method, index), network)
    assert method.controller.weight != 1.0
    assert table.predict(SPACE.network(method.choice())).high_us <= budget.us
    assert make().controller.weight == 1.0


def test_the_cost_is_led_to_the_budget_by_equal_factors_an_epoch(make, table, monkeypatch):
    budget = Budget(us=0.5 * table.predict(SPACE.network()).us)
    method = make(budget, theta_images=0.5)
    network, optimizers = begin(method)
    for index in range(3):
        aims = []
        monkeypatch.setattr(method.controller, "update", lambda _, aim, aims=aims: aims.append(aim))
        now = method._expected_cost(network)
        for part in method.parts(epoch_of(method, index), network, optimizers):
            train(network, part)
        steps, left = len(aims), 3 - index
        assert steps > 1
        assert aims == pytest.approx(
            [now * (budget.us / now) ** (step / steps / left) for step in range(steps)], rel=1e-5
        )
        method.ended(epoch_of(method, index), network)


def test_without_a_budget_alpha_stays_and_the_network_is_the_one_that_was_found(make):
    method = make()
    network, optimizers = begin(method)
    for part in method.parts(epoch_of(method), network, optimizers):
        train(network, part)
    figures = method.ended(epoch_of(method), network)
    assert figures["alpha"] == 1.0
    for name, layer in network.each():
        assert method.choice().options.get(name, layer.best) == layer.best
        node = layer.prunode(layer.best)
        assert method.choice().widths.get(name) == (node and node.width)


def test_figures_show_probabilities_masks_threshold_and_size(make):
    method = make()
    network, optimizers = begin(method)
    method.parts(epoch_of(method), network, optimizers)
    size = sum(weight.numel() for weight in network.weights())
    figures = method.ended(epoch_of(method), network)
    assert figures["p.b.irb_k3"] == pytest.approx(0.25)
    assert (figures["small.b.irb_k3"], figures["large.b.irb_k3"]) == (16, 32)
    assert figures["threshold"] == pytest.approx(0.15 + 0.4 / 3)
    assert (figures["blocks"], figures["parameters"]) == (1 + 2 + 4 + 2 + 1, size)
    assert {"alpha", "cost", "search_loss"} <= figures.keys()


ABLATIONS = [
    {},
    {"prunode": "paper", "last_norm": "each", "threshold": "constant", "optimizer": "rmsprop"},
    {"prune_widths": False, "retrain": "finetune", "recompute": True},
    {"prune_blocks": False},
    {"prune_layers": False},
]


@pytest.mark.parametrize("settings", ABLATIONS, ids=lambda settings: "-".join(map(str, settings.values())) or "default")
def test_a_run_that_was_interrupted_ends_with_the_same_bytes(make, table, tmp_path, settings):
    budget = Budget(us=0.8 * table.predict(SPACE.network()).us)
    events = list(session.run(make(budget, **settings), tmp_path / "whole"))
    last, epochs = events[-1], [event for event in events if isinstance(event, EpochDone)]
    assert isinstance(last, Finished)
    assert last.architecture.predicted.high_us <= budget.us
    if not settings:
        assert epochs[2].figures["parameters"] < epochs[1].figures["parameters"]
    for stop in (3,) if settings else (2, 3, 5):  # behind the warm-up, within the search and at its end
        list(itertools.islice(session.run(make(budget, **settings), tmp_path / str(stop)), stop))
        list(session.run(make(budget, **settings), tmp_path / str(stop)))
        for name in FILES:
            assert (tmp_path / str(stop) / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_what_is_not_to_be_pruned_stays(make):
    network, _ = begin(make(prune_widths=False))
    assert all(node.masks.small == node.masks.large == 32 for node in network.prunodes())
    network, _ = begin(make(prune_layers=False))
    assert not any(layer.skippable for _, layer in network.each())
    method = make(prune_blocks=False)
    network, optimizers = begin(method)
    method.parts(epoch_of(method, 2), network, optimizers)
    method.ended(epoch_of(method, 2), network)
    assert sum(len(layer.blocks) for _, layer in network.each()) == 10


def test_searches_share_a_warm_up(make, tmp_path):
    """Of other alpha and lambda, without a warm-up of their own; the phase that is left out is not in the history."""
    list(session.run(make(), tmp_path / "first"))
    events = list(session.run(make(alpha=0.2, lam=0.85), tmp_path / "second", baseline=tmp_path / "first"))
    assert {event.phase for event in events if isinstance(event, EpochDone)} == {"search", "train"}
    whole = list(session.run(make(alpha=0.2, lam=0.85), tmp_path / "third"))
    found = [
        [event.figures for event in each if isinstance(event, EpochDone) and event.phase == "search"]
        for each in (events, whole)
    ]
    assert found[0] == found[1]


def test_proxy_classes_train_the_supernet_and_all_classes_the_network(make, stripes, tmp_path):
    data = in_four_classes(stripes)
    space = dataclasses.replace(SPACE, classes=4, layers=(*SPACE.layers[:-1], _tail(4)))
    method = Prunet(
        PrunetSettings(**(FEW | {"proxy_classes": 0.5})),
        Problem(space=space, task=data, table=None, budget=Budget(macs=space.macs())),
    )
    network, _ = begin(method)
    assert network(torch.randn(2, 3, 8, 8)).shape == (2, 2)
    assert len(method.task(method.phases[0]).labels) == 2
    assert len(method.task(method.phases[2]).labels) == 4
    assert set(method.proxy.labels) < set(data.labels)
    *_, last = session.run(method, tmp_path / "run")
    assert last.architecture.labels == data.labels
    with pytest.raises(SearchError, match=r"--proxy-classes 0.1 of 4 classes leaves 0, and at least 2 are needed"):
        Prunet(PrunetSettings(proxy_classes=0.1), method.problem)


def in_four_classes(stripes):
    """The same images, in four classes."""

    def more(split):
        return msgspec.structs.replace(split, labels=torch.arange(len(split)) % 4)

    return dataclasses.replace(
        stripes, labels=tuple("abcd"), train=more(stripes.train), held_out=more(stripes.held_out)
    )


def _tail(classes):
    return StochasticLayer(
        name="tail", options=(MultiBlock(name="tail", spec=ops.tail((6, 4, 4), classes, hidden=16)),)
    )


def test_a_found_network_can_go_on_from_the_weights_of_the_supernet(make):
    method = make(retrain="finetune")
    network, optimizers = begin(method)
    for part in method.parts(epoch_of(method), network, optimizers):
        train(network, part)
    method.ended(epoch_of(method), network)
    found = method.network(method.phases[2], network)
    option, width = method.choice().options["b"], method.choice().widths["b"]
    learned = network.layers["b"].prunode(option).block.body.expand.conv.weight
    assert torch.equal(found.get_submodule("b").body.expand.conv.weight, learned[:width])
    assert torch.equal(found.get_submodule("stem").conv.weight, network.layers["stem"].blocks["stem"].conv.weight)


# What is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lam": 0.0}, "--lam must be above 0 and finite, found 0.0"),
        ({"phi": -1.0}, "--phi must be above 0 and finite, found -1.0"),
        ({"tau": 0.0}, "--tau must be above 0 and finite, found 0.0"),
        ({"t_initial": 0.0}, "--t-initial must be above 0 and finite, found 0.0"),
        (
            {"t_initial": 0.3},
            "--t-initial 0.3 would remove every block of layer b at once, which has 4: give at most 0.25",
        ),
        (
            {"t_final": 0.4},
            "--t-final must be from 0.5, so that one block is left of each layer, and below 1, or every block would be removed; found 0.4",
        ),
        (
            {"t_final": 1.0},
            "--t-final must be from 0.5, so that one block is left of each layer, and below 1, or every block would be removed; found 1.0",
        ),
        ({"theta_images": 0.0}, "--theta-images must be above 0 and finite, found 0.0"),
        ({"search_epochs": 0}, "--search-epochs must be from 1 to 1000000000, found 0"),
        ({"search_batch": 3, "devices": 2, "batch": 4}, "--search-batch must be a multiple of --devices, 2, found 3"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, settings, message):
    with pytest.raises(SearchError) as refused:
        make(**settings)
    assert str(refused.value) == message


def test_a_constant_threshold_needs_no_last_one(make):
    assert make(threshold="constant", t_final=0.2).threshold(3) == 0.15


def test_a_table_that_lacks_a_width_is_refused(make, stripes, table):
    lost = SPACE.layers[2].options[1].blocks()[-1].key
    rows = [row for row in table.rows if row.key != lost]
    assert len(rows) < len(table.rows)
    fewer = LatencyTable(table.header, rows, sha256="6" * 64)
    with pytest.raises(CoverageError, match="hidden=32") as refused:
        Prunet(PrunetSettings(), Problem(space=SPACE, task=stripes, table=fewer, budget=Budget(us=1e6)))
    assert "\n" not in str(refused.value)


def test_a_budget_below_the_network_of_the_smallest_blocks_is_refused(make):
    with pytest.raises(
        SearchError,
        match=r"a budget of 0.001 ms cannot be met: the smallest network of layers takes 0\.\d+ ms by the table",
    ):
        make(Budget(us=1.0))


def test_a_layer_whose_blocks_differ_in_shape_is_refused(make):
    other = MultiBlock(name="wide", spec=ops.conv((4, 8, 8), 6))
    layer = dataclasses.replace(SPACE.layers[1], options=(SPACE.layers[1].options[0], other), skippable=False)
    space = dataclasses.replace(SPACE, layers=(SPACE.layers[0], layer, *SPACE.layers[2:]))
    with pytest.raises(SearchError) as refused:
        make(space=space, priced=False)
    assert str(refused.value) == (
        "layers: the blocks of layer a make different shapes (4 to 4x8x8, 4 to 6x8x8 channels, height and width): "
        "give it blocks of one shape, or make two layers of them"
    )


def test_hidden_widths_with_gaps_are_refused(make):
    option = dataclasses.replace(SPACE.layers[2].options[0], hidden=(8, 16, 32))
    layer = dataclasses.replace(SPACE.layers[2], options=(option,))
    space = dataclasses.replace(SPACE, layers=(*SPACE.layers[:2], layer, *SPACE.layers[3:]))
    with pytest.raises(
        SearchError, match="layer b, irb_k3, must be all multiples of the first one, 8, up to the last one, 32"
    ):
        make(space=space, priced=False)


def test_a_space_without_layers_is_refused(stripes, tiny):
    with pytest.raises(
        SearchError, match="prunet searches blocks of layers, and tiny has none to choose from: choose prunet-mini"
    ):
        Prunet(PrunetSettings(), Problem(space=tiny, task=stripes, table=None, budget=Budget(macs=1e9)))
    assert with_layers(SPACE, "prunet") is SPACE
    assert isinstance(SPACE, Layered)


def test_the_papers_recipe():
    found = recipe(PrunetSettings, 50_000, "paper", seed=3)
    assert (found.warmup_epochs, found.search_epochs, found.train_epochs, found.seed) == (70, 130, 450, 3)
    assert (found.search_batch, found.batch, found.search_lr, found.theta_lr, found.search_weight_decay) == (
        256,
        1536,
        0.002,
        0.1,
        1e-5,
    )
    assert (found.t_initial, found.t_final, found.theta_images, found.beta) == (0.15, 0.55, 0.2, 0.6)
    assert (found.prunode, found.last_norm, found.proxy_classes, found.ema, found.drop_path) == (
        "paper",
        "each",
        0.1,
        0.9999,
        0.2,
    )


def test_theta_moves_as_far_in_a_long_search_as_in_a_short_one_and_alpha_at_least_as_far():
    steps = 20 * (1_200 // 64)
    assert recipe(PrunetSettings, 6_000) == PrunetSettings(theta_lr=26 / steps, alpha_rate=26 / steps)
    assert recipe(PrunetSettings, 6_000, search_epochs=2) == PrunetSettings(search_epochs=2, alpha_rate=10 * 26 / steps)
    assert recipe(PrunetSettings, 50_000) == PrunetSettings(theta_lr=0.01)
    assert recipe(PrunetSettings, 50_000, proxy_classes=0.5).theta_lr == 26 / (20 * (5_000 // 64))
    given = {"theta_lr": 0.3, "alpha_rate": 0.5}
    assert recipe(PrunetSettings, 50_000, **given) == PrunetSettings(**given)
    assert recipe(PrunetSettings, 50_000, "paper").theta_lr == 0.1
