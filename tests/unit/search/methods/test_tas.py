import itertools

import pytest
import torch

from deploy.page import Chart
from search import SearchError, session
from search.budget import Budget
from search.method import Epoch, Problem
from search.methods import pruning
from search.methods.settings import TasSettings, recipe
from search.methods.tas import Tas, banded, crossings
from search.record import Chosen, EpochDone
from search.relax import gumbel
from search.report import page_of
from search.sized_network import SizedNetwork
from search.tensors import read_tensors

from ..conftest import make_table, weights_before

FEW = {
    "pretrain_epochs": 1,
    "search_epochs": 8,
    "finetune_epochs": 1,
    "batch": 8,
    "channel_multiple": 4,
    "architecture_lr": 0.2,
}


def make_tas(space, data, share: float = 0.6, *, table=None, **settings) -> Tas:
    """A method with few epochs, and a budget that is a share of the unpruned network's cost."""
    amount = share * (table.predict(space.network()).us if table else space.macs())
    return Tas(
        TasSettings(**(FEW | settings)),
        Problem(space=space, task=data, table=table, budget=Budget.of(amount, "us" if table else "macs")),
    )


def sized(method: Tas) -> SizedNetwork:
    """The network that its search begins with."""
    torch.manual_seed(0)
    network = method.network(method.phases[1], None)
    assert isinstance(network, SizedNetwork)
    return network


@pytest.fixture(autouse=True)
def networks_that_are_squeezed_elsewhere(monkeypatch):
    """Every method squeezes a network before it begins; the whole run below does, and what is in its file is of narrower tests."""
    monkeypatch.setattr(pruning, "_require_squeezable", lambda *_: None)


@pytest.fixture(scope="module")
def staged_table(staged):
    return make_table(staged, tread=2)


@pytest.fixture(scope="module")
def searched(staged, staged_table, stripes, tmp_path_factory):
    """A whole run, under a latency budget, with its directory."""
    out = tmp_path_factory.mktemp("tas") / "run"
    return out, list(session.run(make_tas(staged, stripes, table=staged_table), out))


def epochs(events, phase: str = "search") -> list[EpochDone]:
    return [event for event in events if isinstance(event, EpochDone) and event.phase == phase]


def test_a_search_finds_widths_and_depths_within_the_budget(searched, staged, staged_table):
    _, events = searched
    task_us = 0.6 * staged_table.predict(staged.network()).us
    (chosen,) = (event for event in events if isinstance(event, Chosen))
    assert chosen.choice == events[-1].architecture.choice
    assert chosen.choice.depths.keys() == {"stage1"}
    assert chosen.latency.high_us <= task_us
    assert chosen.latency.us > 0.8 * task_us  # four options a layer are coarse
    last = epochs(events)[-1].figures
    assert last["gap"] > 0.5 > epochs(events)[0].figures["gap"]
    assert abs(last["expected"] / last["most_probable"] - 1) < 0.25
    assert sum(value for name, value in last.items() if name.startswith("p.0.conv.")) == pytest.approx(1)
    assert [phase for phase, _ in itertools.groupby(e.phase for e in events if isinstance(e, EpochDone))] == [
        "pretrain",
        "search",
        "finetune",
    ]


def test_the_run_can_be_loaded_and_has_the_sizes_of_its_choice(searched, staged):
    out, events = searched
    result, architecture = events[-1].result, events[-1].architecture
    assert result.shipped.macs == staged.macs(architecture.network())
    assert result.free_channels.keys() == architecture.choice.widths.keys()
    weights = read_tensors(out / "weights.safetensors")[0]
    removed = {f"{block}." for block in (2, 3)[architecture.choice.depths["stage1"] - 1 :]}
    assert not any(name.startswith(tuple(removed)) for name in weights)


def test_an_interrupted_search_goes_on_to_the_same_bytes(searched, staged, staged_table, stripes, tmp_path):
    out, _ = searched
    again = tmp_path / "again"
    for done in session.run(make_tas(staged, stripes, table=staged_table), again):
        if isinstance(done, EpochDone) and (done.phase, done.epoch) == ("search", 6):
            break
    list(session.run(make_tas(staged, stripes, table=staged_table), again))
    for name in ("history.jsonl", "weights.safetensors", "architecture.json"):
        assert (again / name).read_bytes() == (out / name).read_bytes(), name


def test_the_report_of_a_run_draws_its_distributions(searched):
    out, events = searched
    page = page_of(out)
    titles = [picture.title for picture in page.body if isinstance(picture, Chart)]
    assert titles[1:6] == [
        "Training",
        "Time and memory",
        "Cost and decision",
        "Sizes over time",
        "Distributions over time",
    ]
    (architecture,) = (section for section in page.body if getattr(section, "title", "") == "Architecture")
    choice = events[-1].architecture.choice
    assert ("stage1", str(choice.depths["stage1"]), "3") in architecture.lines
    assert ("0.conv", str(choice.widths["0.conv"]), "16") in architecture.lines


@pytest.mark.parametrize("name", ["shortcut_space", "tiny"])
def test_any_space_of_widths_is_searched_without_a_table_too(name, request, stripes, tmp_path):
    """Depth-wise convolutions, sums and RepVGG blocks."""
    space = request.getfixturevalue(name)
    method = make_tas(space, stripes, pretrain_epochs=0, channel_multiple=8, search_epochs=6)
    *_, finished = session.run(method, tmp_path / "run")
    assert 0.75 * method.problem.budget.amount < finished.result.shipped.macs <= method.problem.budget.amount
    assert not finished.result.shipped.choice.depths


def test_layers_that_are_added_up_get_widths_of_their_own(free, stripes, tmp_path):
    """Under a latency budget; what ships has the convolutions that the sums need."""
    table = make_table(free, tread=2)
    method = make_tas(free, stripes, table=table, search_epochs=5)
    *_, finished = session.run(method, tmp_path / "run")
    choice, budget_us = finished.architecture.choice, method.problem.budget.amount
    assert (
        0.8 * budget_us
        < table.predict(free.network(choice)).us
        <= table.predict(free.network(choice)).high_us
        <= budget_us
    )
    assert finished.architecture.origin(free.make()).network(choice) == free.network(choice)
    joined = {f"{block}.shortcut.conv.weight" for block in (1, 2, 3, 5)} & read_tensors(
        tmp_path / "run" / "weights.safetensors"
    )[0].keys()
    runs = [
        block
        for block in free.network(choice)
        if block.op == "conv" and (block.attr("kernel"), block.attr("stride")) == (1, 1)
    ]
    assert len(joined) == len(runs)
    assert joined  # not all widths are equal
    assert page_of(tmp_path / "run").body


def test_the_expected_cost_of_free_widths_and_depths_is_the_mean_over_drawn_networks(free, stripes):
    """What follows a stage reads the width that its last block has drawn, and shortcuts cost where their widths differ."""
    method = make_tas(free, stripes)
    network, draw = sized(method), torch.Generator().manual_seed(0)
    drawn = []
    for _ in range(1_000):
        sizes = {
            part.name: part.options[int(torch.randint(4, (), generator=draw))] for part, _ in network.width_sizes()
        }
        depths = {
            stage.name: int(torch.randint(1, len(stage.blocks) + 1, (), generator=draw))
            for stage, _ in network.depth_sizes()
        }
        drawn.append(method.cost_of(free.choice([sizes[name] for name, _ in free.groups], depths)))
    assert float(method.expected(network).detach()) == pytest.approx(sum(drawn) / len(drawn), rel=0.03)


# Sizes


def test_widths_are_the_multiples_next_to_the_shares_of_the_paper(staged, stripes):
    assert make_tas(staged, stripes).choices == [(4, 8, 12, 16)] * 4
    fine = make_tas(staged, stripes, exclude="1.body.first").choices
    assert fine[1] == (16,)
    assert make_tas(staged, stripes, searched="depths").choices == [(16,)] * 4


def test_depths_are_all_or_every_other(staged, stripes):
    assert make_tas(staged, stripes).depth_choices() == {"stage1": (1, 2, 3)}
    assert make_tas(staged, stripes, depth_options="odd").depth_choices() == {"stage1": (1, 3)}
    assert make_tas(staged, stripes, searched="widths").depth_choices() == {"stage1": (3,)}


@pytest.mark.parametrize("searched", ["widths", "depths"])
def test_one_of_both_can_be_searched_alone(staged, stripes, tmp_path, searched):
    method = make_tas(staged, stripes, share=0.75, searched=searched, norms="each", retrain="finetune", search_epochs=2)
    *_, finished = session.run(method, tmp_path / "run")
    choice = finished.architecture.choice
    assert (choice.depths == {"stage1": 3}) == (searched == "widths")
    assert (set(choice.widths.values()) == {16}) == (searched == "depths")


# Cost


@pytest.mark.parametrize("cost", ["latency", "macs"])
def test_the_expected_cost_is_the_mean_over_drawn_networks_and_the_most_probable_one_its_own(
    staged, staged_table, stripes, cost
):
    method = make_tas(staged, stripes, table=staged_table, cost=cost)
    network, draw = sized(method), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for logits in network.logits():
            logits.copy_(torch.randn(logits.shape, generator=draw))
    drawn = []
    for _ in range(1_500):
        widths = [
            sizes.options[int((sizes.logits + gumbel(sizes.logits.shape, draw)).argmax())] for sizes in network.sizes()
        ]
        drawn.append(method.cost_of(staged.choice(widths[:4], {"stage1": widths[4]})))
    assert float(method.expected(network).detach()) == pytest.approx(sum(drawn) / len(drawn), rel=0.03)
    most = method.most_probable(network)
    model = staged_table.predict(staged.network(most)).us if cost == "latency" else staged.macs(staged.network(most))
    assert method.cost_of(most) == pytest.approx(model)


def test_the_banded_cost_is_equation_8_with_one_gradient_in_any_unit():
    for found, sign in ((1.06, 1.0), (1.04, 0.0), (0.96, 0.0), (0.94, -1.0)):
        gradients = []
        for unit in (1.0, 250.0):
            cost = torch.tensor(300.0, requires_grad=True)
            value = banded(cost / unit, found, 0.05)
            value.backward()
            gradients.append(cost.grad.item())
            assert value.item() == pytest.approx(sign * torch.tensor(300.0 / unit).log().item())
        assert gradients == pytest.approx([sign / 300] * 2)


def test_the_paper_penalty_and_the_banded_one_have_the_same_gradient(staged, stripes):
    each = []
    for penalty in ("paper", "banded"):
        method = make_tas(staged, stripes, penalty=penalty, entropy=0.0)
        network = sized(method)
        method.penalty_of(network, 0.5).backward()
        each.append([logits.grad for logits in network.logits()])
    torch.testing.assert_close(each[0], each[1])
    assert all(gradient.any() for gradient in each[0])


def test_the_aim_moves_until_the_most_probable_network_meets_the_target(staged, stripes):
    method = make_tas(staged, stripes)
    network = sized(method)
    assert method.most_probable(network) == staged.largest()  # equal probabilities: the larger size
    for _ in range(3):
        method.penalty_of(network, 0.0)
    assert method.controller.weight > 1
    with torch.no_grad():
        for sizes in network.sizes():
            sizes.logits[0] = 1.0
    before = method.controller.weight
    method.penalty_of(network, 0.0)
    assert method.controller.weight < before


def test_entropies_of_depths_are_driven_down_first_and_without_a_constraint_nothing_else(staged, stripes):
    method = make_tas(staged, stripes, cost_weight=0.0)
    network = sized(method)
    widths, depths = torch.tensor(4.0).log().item(), torch.tensor(3.0).log().item()
    assert method.penalty_of(network, 0.0).item() == 0
    assert method.penalty_of(network, 0.25).item() == pytest.approx(0.25 * depths + 0.0625 * widths)
    assert method.penalty_of(network, 0.5).item() == pytest.approx(depths + 0.25 * widths)
    assert method.penalty_of(network, 1.0).item() == pytest.approx(depths + widths)
    assert method.controller.weight == 1


def test_the_controlled_cost_rests_at_the_target(staged, stripes):
    """There only the entropies act; elsewhere those of widths do not."""
    method = make_tas(staged, stripes, tolerance=0.3)
    network = sized(method)
    depths = min(1.0, (2 * 0.4) ** 2) * torch.tensor(3.0).log().item()
    expected = float(method.expected(network).detach()) / method.problem.target
    away = method.penalty_of(network, 0.4).item()  # F is 1 / 0.6 of the target
    assert away == pytest.approx(2.0 * torch.tensor(expected * method.controller.weight).log().item() ** 2 + depths)
    weight = method.controller.weight
    with torch.no_grad():
        for sizes in network.widths:
            sizes.logits[2] = 0.1  # 12 channels everywhere: 0.93 of the target
    assert abs(method.cost_of(method.most_probable(network)) / method.problem.target - 1) < 0.3
    assert method.penalty_of(network, 0.4).item() == pytest.approx(
        depths + 0.16 * torch.tensor(4.0).log().item(), rel=0.01
    )
    assert method.controller.weight == weight


def parts_of(method: Tas, network: SizedNetwork, index: int):
    """What an epoch of the search trains: weights, and distributions."""
    order, noise = (torch.Generator().manual_seed(index) for _ in range(2))
    phase = method.phases[1]
    return method.parts(
        Epoch(phase=phase, index=index, order=order, noise=noise), network, method.optimizers(phase, network)
    )


def test_at_last_distributions_are_driven_to_the_network_within_the_budget_that_they_prefer(staged, stripes):
    """Eight epochs: from the sixth on, by the probability of that network, and by nothing else."""
    method = make_tas(staged, stripes)
    network = sized(method)
    parts_of(method, network, 4)
    assert method.penalty_of(network, 0.5).item() > 0
    assert method.controller.weight > 1
    parts_of(method, network, 5)
    wanted, weight = method.derived(network), method.controller.weight
    assert method.cost_of(method.most_probable(network)) > method.problem.target >= method.cost_of(wanted)
    even = torch.tensor(4.0).log() * len(wanted.widths) + torch.tensor(3.0).log()
    assert method.penalty_of(network, 0.7).item() == pytest.approx(even.item())
    optimizer = torch.optim.Adam(network.logits(), lr=0.2)
    for _ in range(10):
        optimizer.zero_grad()
        method.penalty_of(network, 0.9).backward()
        optimizer.step()
    assert method.most_probable(network) == wanted
    assert method.controller.weight == weight


def test_a_single_sample_teaches_widths_nothing(staged, stripes, tmp_path):
    """|I| = 1, without any cost: the logits stay exactly where they were."""
    method = make_tas(staged, stripes, searched="widths", samples=1, cost_weight=0.0, entropy=0.0, search_epochs=1)
    (done,) = epochs(itertools.islice(session.run(method, tmp_path / "run"), 3))
    assert {value for name, value in done.figures.items() if name.startswith("p.")} == {0.25}


def test_the_temperature_falls_as_the_paper_or_the_authors_code_has_it(staged, stripes):
    linear, cosine = make_tas(staged, stripes), make_tas(staged, stripes, tau=5.0, tau_schedule="cosine")
    assert [linear.tau(progress) for progress in (0.0, 0.5, 1.0)] == pytest.approx([10, 5.05, 0.1])
    assert [cosine.tau(progress) for progress in (0.0, 0.25, 0.5, 1.0)] == pytest.approx(
        [5, 4.2824, 2.55, 0.1], abs=1e-4
    )


def test_crossings_count_changes_of_side():
    assert crossings([1, 1, -1, 0, -1, 1]) == 2
    assert crossings([]) == crossings([0, 1, 0, 1]) == 0


# Procedure


def test_weights_and_distributions_are_trained_on_disjoint_halves_in_turns(staged, stripes):
    method = make_tas(staged, stripes)
    network = sized(method)
    optimizers = method.optimizers(method.phases[1], network)

    def rows(index: int) -> list[set[int]]:
        return [set(part.batches._rows.tolist()) for part in parts_of(method, network, index)]

    first, later = rows(0), rows(3)
    assert not first[0] & first[1]
    assert len(first[0]) == len(first[1]) == 32
    assert first == later
    held = [{id(p) for group in optimizer.param_groups for p in group["params"]} for optimizer in optimizers]
    assert held[1] == {id(logits) for logits in network.logits()}
    assert held[0] == {id(weight) for weight in network.network.parameters()}


@pytest.mark.parametrize("retrain", ["scratch", "finetune"])
def test_the_found_network_starts_from_new_weights_or_from_those_of_the_search(staged, stripes, retrain):
    method = make_tas(staged, stripes, retrain=retrain)
    torch.manual_seed(1)
    unpruned = staged.module()
    before = {name: value.clone() for name, value in unpruned.state_dict().items()}
    network = method.network(method.phases[1], unpruned)
    with torch.no_grad():
        for weight in network.network.parameters():
            weight.add_(1.0)
    after = {name: value + 1.0 for name, value in before.items()}
    found = method.network(method.phases[2], network).state_dict()
    stem = found["0.conv.weight"]
    assert torch.equal(stem, after["0.conv.weight"]) == (retrain == "finetune")


def test_the_found_network_can_start_from_the_unpruned_weights(staged, stripes, tmp_path):
    method = make_tas(staged, stripes, retrain="rewind", search_epochs=1)
    found = weights_before(method, "finetune", tmp_path / "run")
    unpruned = read_tensors(tmp_path / "run" / "baseline.safetensors")[0]
    shared = found.keys() & unpruned.keys()
    assert "0.conv.weight" in shared
    assert all(torch.equal(found[name], unpruned[name]) for name in shared)


@pytest.mark.parametrize("start", ["unpruned", "scratch"])
def test_the_search_starts_from_the_unpruned_network_or_from_new_weights(staged, stripes, start):
    method = make_tas(staged, stripes, start=start)
    torch.manual_seed(1)
    unpruned = staged.module()
    weight = unpruned.state_dict()["0.conv.weight"].clone()
    network = method.network(method.phases[1], unpruned)
    assert torch.equal(network.network.get_submodule("0.conv").weight, weight) == (start == "unpruned")


def test_the_found_network_is_the_most_probable_one_within_the_budget(staged, stripes):
    """Against all networks; where that leaves too much of the budget, another one that does not."""
    method = make_tas(staged, stripes, tolerance=0.1)
    network, draw = sized(method), torch.Generator().manual_seed(5)
    for _ in range(5):
        with torch.no_grad():
            for logits in network.logits():
                logits.copy_(2 * torch.randn(logits.shape, generator=draw))
        found = method.derived(network)
        cost = staged.macs(staged.network(found))
        assert cost <= method.problem.budget.amount
        logs = [sizes.shares().log().tolist() for sizes in network.widths]
        best = None
        for widths in itertools.product((4, 8, 12, 16), repeat=4):
            choice = staged.choice(widths, found.depths)
            if (
                staged.macs(staged.network(choice)) <= method.problem.budget.amount
                and choice.widths.keys() == found.widths.keys()
            ):
                value = sum(log[(4, 8, 12, 16).index(width)] for log, width in zip(logs, widths, strict=True))
                best = max(best or (value, choice), (value, choice), key=lambda each: each[0])
        if staged.macs(staged.network(best[1])) >= 0.9 * method.problem.target:
            assert found == best[1]
        else:
            assert cost > staged.macs(staged.network(best[1]))


def test_a_search_as_printed_runs_from_end_to_end(staged, stripes, tmp_path):
    """Widths of any number of channels, a norm for each, and whatever is most probable at the end."""
    few = {"pretrain_epochs": 1, "search_epochs": 2, "finetune_epochs": 1, "batch": 16, "augment": "none"}
    settings = recipe(TasSettings, len(stripes.train), "paper", **few)
    method = Tas(settings, Problem(space=staged, task=stripes, table=None, budget=Budget(macs=0.6 * staged.macs())))
    assert method.choices[0] == (5, 6, 8, 10, 11, 13, 14, 16)
    *events, finished = session.run(method, tmp_path / "run")
    last = epochs(events)[-1]
    assert last.choice == finished.architecture.choice == finished.result.shipped.choice
    assert last.figures["aim"] == method.problem.target


def test_the_paper_derives_the_most_probable_sizes_whatever_they_cost(staged, stripes):
    method = make_tas(staged, stripes, derive="argmax")
    assert method.derived(sized(method)) == staged.largest()


# Bad input


@pytest.mark.parametrize(
    ("space", "share", "settings", "message"),
    [
        (
            "staged",
            0.01,
            {},
            r"cannot be met: the smallest network of staged has [0-9,]+ MACs; ask for a larger --budget-fraction$",
        ),
        (
            "staged",
            0.6,
            {"channel_multiple": 16},
            r"^layer 0.conv has one option, 16 channels, at --channel-multiple 16 and --min-channels 1: give lower ones, or --exclude 0.conv$",
        ),
        (
            "tiny",
            0.9,
            {"searched": "depths"},
            r"^--searched depths: no stage of tiny can lose a block; give --searched widths, or a space",
        ),
        ("tiny", 0.9, {"searched": "both"}, r"^--searched both: no stage of tiny can lose a block"),
        ("free", 0.01, {}, r"cannot be met: the smallest network of residual/free-widths has [0-9,]+ MACs"),
        (
            "staged",
            0.6,
            {"samples": 5},
            r"^--samples 5 is above the number of options of layer 0.conv, 4 \(4, 8, 12, 16\)$",
        ),
        ("staged", 0.6, {"tolerance": 0.0}, r"^--tolerance must be above 0 and finite, found 0.0$"),
        ("staged", 0.6, {"samples": 0}, r"^--samples must be from 1 to"),
        ("staged", 0.6, {"validation_share": 1.0}, r"^--validation-share must be from 0 to"),
        ("staged", 0.6, {"cost_weight": -1.0}, r"^--cost-weight must be from 0 to"),
    ],
)
def test_what_makes_no_sense_is_refused(request, stripes, space, share, settings, message):
    with pytest.raises(SearchError, match=message):
        make_tas(request.getfixturevalue(space), stripes, share, **settings)
