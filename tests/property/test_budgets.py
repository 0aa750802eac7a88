"""No network that a search ends with is over the budget of any of its devices, by the upper end of its prediction there."""

import random
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latency import LatencyTable
from search import Choice, Space, masks
from search.budget import Budget, Limit
from search.method import Problem
from search.methods import pruning
from search.methods.prunet import Prunet
from search.methods.settings import PrunetSettings, TasSettings, UniformSettings, VpDartsSettings
from search.methods.tas import Tas
from search.methods.uniform import Uniform
from search.methods.vp_darts import VpDarts
from search.spaces import Cells
from search.spaces.cells import EDGES, OPTIONS
from unit.search.conftest import make_layers, make_staged, make_stripes, make_table, make_tiny

SPACES = {
    "uniform": make_tiny(),
    "tas": make_staged(),
    "prunet": make_layers(),
    "vp-darts": Cells(name="cells", input_shape=(3, 8, 8), classes=2, channels=4, cells=1),
}
STRIPES, SIZED = make_stripes(), {}


@pytest.fixture(autouse=True, scope="module")
def networks_that_are_read_once():
    """Every method of widths reads a network, and squeezes it before it begins: half a second."""
    read, known = masks.prunable_groups, {}

    def groups(network, *given):
        layers = tuple(name for name, _ in network.named_modules())
        if layers not in known:
            known[layers] = read(network, *given)
        return known[layers]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masks, "prunable_groups", groups)
        patch.setattr(pruning, "_require_squeezable", lambda *_: None)
        yield


@cache
def table_of(name: str, tread: int, spread: float) -> LatencyTable:
    space, draw = SPACES[name], random.Random(tread)
    return make_table(
        space, [space.random(draw) for _ in range(8)], tread=tread, name=f"{tread}/{spread}", spread=spread
    )


def limit(space: Space, table: LatencyTable, share: float) -> Limit:
    """A budget between what the smallest and the largest network take."""
    low, high = (table.predict(space.network(end)).high_us for end in (space.smallest(), space.largest()))
    return Limit(table, Budget(us=low + share * (high - low)))


def ended(name: str, problem: Problem, draw: random.Random) -> Choice:
    """What a search ends with that has learned something at random."""
    match name:
        case "uniform":
            method = Uniform(UniformSettings(), problem)
            scores = [torch.tensor([draw.random() for _ in range(full)]) for _, full in method.space.groups]
            method.widths = method.fitted(scores, tuple(draw.randint(1, full) for _, full in method.space.groups))
            return method.choice()
        case "tas":
            method = Tas(TasSettings(channel_multiple=4), problem)
            network = SIZED.get(name) or method._sized(None)
            SIZED[name] = network
            for logits in network.logits():
                torch.nn.init.normal_(logits, generator=torch.Generator().manual_seed(draw.randrange(10**6)))
            return method.derived(network)
        case "prunet":
            return Prunet(PrunetSettings(), problem)._fitted_to_budget(problem.space.random(draw))
    method = VpDarts(VpDartsSettings(validation_share=0.5, batch=8), problem)
    method.importance = [[draw.random() for _ in OPTIONS] for _ in EDGES]
    return method._best_cell()


DEVICES = st.lists(
    st.tuples(st.sampled_from([4, 8, 16, 24]), st.sampled_from([0.0, 0.02, 0.1]), st.floats(0.1, 1.0)),
    min_size=1,
    max_size=3,
    unique_by=lambda device: device[:2],
)


@pytest.mark.parametrize("name", SPACES)
@given(devices=DEVICES, seed=st.integers(0, 10**6))
@settings(max_examples=5, deadline=None)
def test_the_found_network_is_within_every_budget(name, devices, seed):
    space = SPACES[name]
    first, *others = (limit(space, table_of(name, tread, spread), share) for tread, spread, share in devices)
    problem = Problem(space=space, task=STRIPES, table=first.table, budget=first.budget, also=tuple(others))
    choice = ended(name, problem, random.Random(seed))
    for table, budget in problem.limits:
        assert table.predict(space.network(choice)).high_us <= budget.amount * (1 + 1e-12)
