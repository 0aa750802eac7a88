import itertools
import random

import pytest
import torch
from matplotlib.figure import Figure

from deploy.page import Chart
from search import Choice, SearchError, report, session, spaces
from search.budget import Budget
from search.method import Epoch, Problem
from search.methods.settings import VpDartsSettings, recipe
from search.methods.vp_darts import VpDarts
from search.record import Finished
from search.spaces.cells import EDGES, OPTIONS, Cells, edge

from ..conftest import make_table

SPACE = Cells(name="cells", input_shape=(3, 8, 8), classes=2, channels=4, cells=1)
NONE, SKIP, CONV1, CONV3, POOL = range(5)
FEW = {
    "warmup_epochs": 1,
    "prune_epochs": 3,
    "train_epochs": 1,
    "batch": 8,
    "validation_share": 0.5,
    "subset": 0.5,
    "final_subset": 1.0,
}
FILES = ("history.jsonl", "weights.safetensors", "architecture.json", "result.json")


@pytest.fixture(scope="module")
def table():
    draw = random.Random(0)
    return make_table(SPACE, [SPACE.random(draw) for _ in range(8)])


@pytest.fixture
def make(stripes, table):
    def method(budget=None, *, priced=True, **settings) -> VpDarts:
        if not priced:
            problem = Problem(space=SPACE, task=stripes, table=None, budget=budget or Budget(macs=SPACE.macs()))
        else:
            problem = Problem(
                space=SPACE,
                task=stripes,
                table=table,
                budget=budget or Budget(us=table.predict(SPACE.network()).high_us),
            )
        return VpDarts(VpDartsSettings(**(FEW | settings)), problem)

    return method


def epoch_of(method, index=0):
    phase = method.phases[1]
    return Epoch(
        phase=phase, index=index, order=torch.Generator().manual_seed(1), noise=torch.Generator().manual_seed(2)
    )


def begin(method, index=0):
    """The supernet after what precedes a pruning epoch."""
    torch.manual_seed(0)
    network = method.network(method.phases[1], None)
    method.parts(epoch_of(method, index), network, method.optimizers(method.phases[1], network))
    return network


def say(method, monkeypatch, damages):
    """Let validation say how much each removal hurts; `damages` of an edge are those of the first."""
    rows = [[(value, 0.0) for value in damages]] * len(EDGES)
    monkeypatch.setattr(method, "_damages", lambda *_: rows)


@pytest.mark.parametrize(
    ("variant", "index", "factor"),
    [("adjustable", 0, 2 / 3), ("adjustable", 1, 1 / 3), ("adjustable", 2, 0.0), ("fixed", 0, 0.0)],
)
def test_all_but_the_most_important_operation_shrink_by_equation_2(make, monkeypatch, variant, index, factor):
    method = make(variant=variant)
    say(method, monkeypatch, [1.0, 2.0, 3.0, 5.0, 4.0])
    wanted = torch.full((6, 5), 0.2 * factor)
    wanted[:, CONV3] = 0.2
    torch.testing.assert_close(begin(method, index).alpha.detach(), wanted)


def test_the_final_cell_is_by_the_mean_of_all_looks_or_by_the_last(make, monkeypatch):
    looks = [([0.0, 1.0, 2.0, 9.0, 3.0], 0.5), ([5.0, 6.0, 7.0, 8.0, 8.5], 0.25)]
    for settings, wanted, best in (
        ({}, [5 / 3, 8 / 3, 11 / 3, 26 / 3, 29 / 6], CONV3),
        ({"looks": "last"}, looks[-1][0], POOL),
        ({"criterion": "alpha"}, looks[-1][0], POOL),
    ):
        method, ranked = make(**settings), []
        network = method.network(method.phases[1], None)
        for damages, share in looks:
            say(method, monkeypatch, damages)
            ranked.append(method._ranked(network, share, torch.Generator()))
        assert method.importance == [pytest.approx(wanted)] * 6
        assert set(method.choice().options.values()) == {OPTIONS[best]}
        assert ranked[-1] == [[POOL, CONV3, CONV1, SKIP, NONE]] * 6  # what shrinks is by the look alone


def test_the_first_k_and_the_value_that_shrinks_are_options(make, monkeypatch):
    method = make(first_k=0)
    say(method, monkeypatch, [1.0, 2.0, 3.0, 5.0, 4.0])
    assert torch.equal(begin(method).alpha, torch.full((6, 5), 0.2))
    for alpha_0, left in (("current", 0.9), ("initial", 0.2)):
        method = make(alpha_0=alpha_0)
        say(method, monkeypatch, [1.0, 2.0, 3.0, 5.0, 4.0])
        network = method.network(method.phases[1], None)
        with torch.no_grad():
            network.alpha.fill_(0.9)
        method.parts(epoch_of(method), network, method.optimizers(method.phases[1], network))
        assert network.alpha[0, SKIP].item() == pytest.approx(left * 2 / 3)


def test_every_operation_is_removed_alone_on_a_fresh_share_of_the_validation_images(make, monkeypatch):
    method, seen = make(), []
    network = method.network(method.phases[1], None)

    def validate(network, rows):
        removed = {cell.removed for cell in network.cells}
        assert len(removed) == 1
        seen.append((removed.pop(), tuple(rows.tolist())))
        return float(len(seen)), 0.0

    monkeypatch.setattr(method, "_validate", validate)
    method._damages(network, 0.5, torch.Generator().manual_seed(0))
    method._damages(network, 0.5, torch.Generator().manual_seed(1))
    first, second = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    runs = [(index, option) for index in range(6) for option in range(1, 5)]
    assert [removed for removed, _ in first] == [None, *runs]  # without none it is the network as it is
    assert len({rows for _, rows in first}) == len({rows for _, rows in second}) == 1
    assert first[0][1] != second[0][1]
    assert set(first[0][1]) <= set(method.validation_rows.tolist())
    assert len(first[0][1]) == 16
    assert not set(method.validation_rows.tolist()) & set(method.trained_rows.tolist())


def test_zeroize_wins_where_every_other_removal_helps_and_loses_where_they_hurt_or_tie(make, monkeypatch):
    for damages, wanted in (
        ([1.0, 0.9, 0.8, 0.7, 0.9], NONE),
        ([1.0, 1.1, 1.3, 1.2, 1.1], CONV1),
        ([1.0, 1.0, 1.0, 1.0, 1.0], CONV3),
    ):
        method = make()
        rows = [[(value, 0.0) for value in [1.0, 1.0, 1.0, 2.0, 1.0]]] * 5 + [[(value, 0.0) for value in damages]]
        monkeypatch.setattr(method, "_damages", lambda *_, rows=rows: rows)
        begin(method)
        assert method.choice().options[edge(*EDGES[-1])] == OPTIONS[wanted]
    never = make(zeroize="never")
    network = never.network(never.phases[1], None)
    assert all(row[NONE][0] == -torch.inf for row in never._damages(network, 0.5, torch.Generator()))


def test_of_operations_that_validate_alike_the_costlier_stays_and_under_a_budget_the_faster(make, table, monkeypatch):
    alike = [1.0, 2.0, 2.0, 2.0, 1.0]
    method = make()
    say(method, monkeypatch, alike)
    begin(method)
    assert set(method.choice().options.values()) == {"nor_conv_3x3"}
    method = make(Budget(us=0.9 * table.predict(SPACE.network()).us))
    say(method, monkeypatch, alike)
    begin(method)
    assert set(method.choice().options.values()) == {"skip_connect"}


@pytest.mark.parametrize("fraction", [0.5, 0.7, 0.9])
def test_the_cell_is_the_best_of_those_within_the_budget(make, table, monkeypatch, fraction):
    budget = Budget(us=fraction * table.predict(SPACE.network()).us)
    method, draw = make(budget), random.Random(3)
    rows = [[(draw.random(), 0.0) for _ in OPTIONS] for _ in EDGES]
    monkeypatch.setattr(method, "_damages", lambda *_: rows)
    begin(method)

    def worth(choice):
        return sum(rows[index][OPTIONS.index(choice.options[edge(*ends)])][0] for index, ends in enumerate(EDGES))

    def allowed(choice):
        return SPACE.connected(choice) and table.predict(SPACE.network(choice)).high_us <= budget.us

    chosen = method.choice()
    others = [Choice(options=chosen.options | {edge(*ends): name}) for ends in EDGES for name in OPTIONS]
    assert allowed(chosen)
    assert worth(chosen) == max(worth(other) for other in others if allowed(other))


def test_a_cell_that_does_not_connect_its_ends_is_never_chosen(make, monkeypatch):
    method = make()
    say(method, monkeypatch, [5.0, 1.0, 2.0, 3.0, 2.0])
    begin(method)
    assert SPACE.connected(method.choice())
    assert sorted(method.choice().options.values())[:2] == ["none", "none"]


def test_the_cost_of_the_shares_is_in_the_loss_where_the_budget_binds(make, table):
    method = make(Budget(us=0.6 * table.predict(SPACE.network()).us))
    network = method.network(method.phases[1], None)
    with torch.no_grad():
        network.alpha[:, CONV3] = 2.0
    method._penalty(network).backward()
    assert network.alpha.grad is not None
    assert (network.alpha.grad[:, CONV3] > 0).all()
    assert (network.alpha.grad[:, SKIP] < 0).all()
    assert make()._penalty(network).item() == 0


@pytest.mark.parametrize(("variant", "left"), [("hard", [1, 1, 1]), ("progressive", [5, 3, 2])])
def test_hard_pruning_removes_for_good(make, monkeypatch, variant, left):
    method = make(variant=variant)
    say(method, monkeypatch, [1.0, 2.0, 3.0, 5.0, 4.0])
    network = method.network(method.phases[1], None)
    for index, count in enumerate(left):
        method.parts(epoch_of(method, index), network, method.optimizers(method.phases[1], network))
        assert network.kept.sum(1).tolist() == [count] * 6
    assert network.kept[:, CONV3].all()


VARIANTS = [
    {},
    {"variant": "fixed", "importance": "accuracy"},
    {"variant": "hard"},
    {"variant": "progressive", "criterion": "alpha"},
    {"variant": "darts"},
    {"variant": "random", "random_epochs": 2},
    {"split": "alternating", "removal": "cell", "norms": "running", "negative_alphas": False},
]


@pytest.mark.parametrize("settings", VARIANTS, ids=lambda settings: "-".join(map(str, settings.values())) or "default")
def test_a_run_that_was_interrupted_ends_with_the_same_bytes(make, table, tmp_path, settings):
    budget = Budget(us=0.8 * table.predict(SPACE.network()).us)
    *_, last = session.run(make(budget, **settings), tmp_path / "whole")
    assert isinstance(last, Finished)
    assert SPACE.connected(last.architecture.choice)
    assert last.architecture.predicted.high_us <= budget.us
    for stop in (3,) if settings else (2, 4):  # while it prunes; the default also at the end of that
        list(itertools.islice(session.run(make(budget, **settings), tmp_path / str(stop)), stop))
        list(session.run(make(budget, **settings), tmp_path / str(stop)))
        for name in FILES:
            assert (tmp_path / str(stop) / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"batch": 40},
            "32 images validate, fewer than a batch of 40: give a larger --validation-share or a smaller --batch",
        ),
        ({"subset": 0.01}, "--subset 0.01 of 32 validation images is none: give a larger share"),
        ({"prune_images": 0.001}, "--prune-images 0.001 of 32 images is none: give a larger share"),
        ({"subset": 0.0}, "--subset must be above 0 and finite, found 0.0"),
        ({"validation_share": 0.0}, "--validation-share must be above 0 and finite, found 0.0"),
        ({"prune_epochs": 0}, "--prune-epochs must be from 1 to 1000000000, found 0"),
        (
            {"variant": "random", "criterion": "alpha"},
            "--criterion alpha has no meaning for --variant random, which trains no alphas",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, settings, message):
    with pytest.raises(SearchError) as refused:
        make(**settings)
    assert str(refused.value) == message


def test_a_budget_below_the_cheapest_connected_cell_is_refused(make):
    with pytest.raises(
        SearchError,
        match=r"a budget of 0.001 ms cannot be met: the smallest network of cells takes 0\.\d+ ms by the table",
    ):
        make(Budget(us=1.0))


def test_a_space_without_cells_is_refused(stripes, tiny):
    with pytest.raises(
        SearchError, match="vp-darts searches operations of cells, and tiny has none: choose nasbench201-small"
    ):
        VpDarts(VpDartsSettings(), Problem(space=tiny, task=stripes, table=None, budget=Budget(macs=1e9)))


def test_the_papers_recipe():
    found = recipe(VpDartsSettings, 50_000, "paper", seed=3)
    assert (found.warmup_epochs, found.prune_epochs, found.importance, found.subset, found.seed) == (
        20,
        30,
        "accuracy",
        0.5,
        3,
    )
    assert found.looks == "last"
    assert recipe(VpDartsSettings, 50_000) == VpDartsSettings()


def test_importance_is_by_loss_where_validation_images_are_few(make, monkeypatch):
    assert make().by_loss
    assert not make(importance="accuracy").by_loss
    monkeypatch.setattr("search.methods.vp_darts.FEW_IMAGES", 32)
    assert not make().by_loss
    assert make(importance="loss").by_loss
    assert spaces.with_cells(SPACE, "vp-darts") is SPACE


def test_the_page_of_a_run_shows_alphas_and_worth_and_says_what_is_an_extension(make, tmp_path):
    list(session.run(make(), tmp_path / "run"))
    page = report.page_of(tmp_path / "run")
    pictures = {part.title: part for part in page.body if isinstance(part, Chart)}
    assert {"Training", "Alphas", "Importance of the operations"} <= pictures.keys()
    assert "are an extension" in pictures["Importance of the operations"].caption
    figure = Figure(layout="constrained")
    pictures["Alphas"].paint(figure)
    assert [axes.get_title() for axes in figure.axes] == [edge(*ends) for ends in EDGES]
    assert all({line.get_label() for line in axes.get_lines()} == set(OPTIONS) for axes in figure.axes)
