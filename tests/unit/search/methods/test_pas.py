import itertools

import pytest
import safetensors
import torch
from torch import nn

from search.masks import prunable_groups
from search.methods.pas import DepthwiseBinaryConv, indicators
from search.record import Chosen, EpochDone
from search.tensors import read_tensors

from ..conftest import make_method


class TestDepthwiseBinaryConv:
    def test_keeps_what_is_above_one_half_and_starts_with_everything(self):
        mask = DepthwiseBinaryConv(4, min_channels=1)
        assert mask.kept().all()
        mask.v.data = torch.tensor([0.49, 0.5, 0.51, 2.0])
        x = torch.rand(2, 4, 3, 3)
        assert torch.equal(mask(x), x * torch.tensor([0.0, 0.0, 1.0, 1.0])[:, None, None])
        assert mask.width().item() == 2

    def test_vectors_have_channels_too(self):
        mask = DepthwiseBinaryConv(2, min_channels=1)
        mask.v.data = torch.tensor([1.0, 0.0])
        assert mask(torch.ones(3, 2)).tolist() == [[1.0, 0.0]] * 3

    def test_the_gradient_of_the_binary_value_reaches_every_indicator_unchanged(self):
        mask = DepthwiseBinaryConv(4, min_channels=1)
        mask.v.data = torch.tensor([-3.0, 0.4, 0.6, 3.0])
        x, upstream = torch.rand(2, 4, 3, 3), torch.rand(2, 4, 3, 3)
        (mask(x) * upstream).sum().backward()
        assert torch.allclose(mask.v.grad, (x * upstream).sum((0, 2, 3)))

    def test_a_gone_channel_passes_no_gradient_to_what_made_it(self):
        mask = DepthwiseBinaryConv(2, min_channels=1)
        mask.v.data = torch.tensor([0.0, 1.0])
        x = torch.rand(1, 2, 3, 3, requires_grad=True)
        mask(x).sum().backward()
        assert not x.grad[:, 0].any()
        assert x.grad[:, 1].all()

    def test_the_top_scoring_channels_are_never_lost(self):
        mask = DepthwiseBinaryConv(5, min_channels=3)
        mask.v.data = torch.tensor([0.1, 0.3, 0.3, -1.0, 0.3])
        assert mask.kept().tolist() == [False, True, True, False, True]
        mask.v.data = torch.full((5,), 0.2)
        assert mask.kept().tolist() == [True, True, True, False, False]  # equal: the lower index

    def test_a_layer_narrower_than_the_minimum_keeps_everything(self):
        mask = DepthwiseBinaryConv(2, min_channels=8)
        mask.v.data = torch.zeros(2)
        assert mask.kept().all()


@pytest.fixture
def pas(tiny, table, stripes, budget_us):
    return make_method("pas", tiny, table, stripes, budget_us)


def test_indicators_change_nothing_at_first_and_are_not_decayed(tiny, pas):
    network, x = tiny.module().eval(), torch.rand(2, 3, 8, 8)
    searched = pas.searched(network)
    assert torch.equal(searched(x), network(x))
    (optimizer,) = pas.optimizers(pas.phases[1], searched)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert len(decay) == len(list(searched.parameters()))
    assert all(decay[id(p)] == (5e-4 if p.ndim > 1 else 0.0) for p in searched.parameters())
    assert [id(p) for p in optimizer.param_groups[2]["params"]] == [
        id(indicator.v) for indicator in indicators(searched)
    ]


def test_a_gone_channel_keeps_its_weights_and_can_come_back(tiny, pas):
    """In a whole network: what made it gets no gradient, its indicator does."""
    network = pas.searched(tiny.module())
    for indicator in indicators(network):
        indicator.v.data[:4] = 0.4
    nn.functional.cross_entropy(network(torch.rand(4, 3, 8, 8)), torch.tensor([0, 1, 0, 1])).backward()
    for name, indicator in zip("abc", indicators(network), strict=True):
        scale = network.get_submodule(name).dense.norm.weight
        assert indicator.v.grad[:4].all()
        assert not scale.grad[:4].any()
        assert scale.grad[4:].any()


def test_freezing_changes_no_output(tiny, pas):
    network, x = pas.searched(tiny.module()).eval(), torch.rand(2, 3, 8, 8)
    first = indicators(network)[0]
    first.v.data = torch.rand(32, generator=torch.Generator().manual_seed(1))
    expected = network(x)
    kept = {
        group.name: i.kept() for group, i in zip(prunable_groups(tiny.module(), x), indicators(network), strict=True)
    }
    frozen = pas.masked(network, kept)
    assert torch.equal(frozen(x), expected)
    assert not indicators(frozen)


def test_the_search_prunes_towards_the_budget_by_itself(search_into, tmp_path, budget_us):
    """Before anything is trimmed: the controller and the gradients alone."""
    events = list(search_into(tmp_path / "run", search_epochs=15))
    searched = [event for event in events if isinstance(event, EpochDone) and event.phase == "search"]
    assert searched[0].latency_us > 1.3 * budget_us
    assert searched[-1].latency_us < 1.1 * budget_us
    assert searched[0].figures["beta"] > 1.0


def test_indicators_stay_within_their_bounds_unless_told_otherwise(search_into, tmp_path):
    for bounded in (True, False):
        list(itertools.islice(search_into(tmp_path / str(bounded), policy_lr=50.0, bounded=bounded), 6))
        with safetensors.safe_open(tmp_path / str(bounded) / "checkpoint.safetensors", framework="pt") as file:
            v = torch.cat([file.get_tensor(name) for name in file.keys() if name.endswith(".v")])  # noqa: SIM118
        assert (v.min() >= 0 and v.max() <= 1) == bounded


@pytest.mark.parametrize("name", ["pas", "magnitude"])
def test_channels_that_are_gone_keep_the_weights_that_they_had(search_into, tmp_path, name):
    """Of a learned policy since the end of its search, of a baseline since it was pruned: fine-tuning moves the others alone."""
    out = tmp_path / "run"
    events = search_into(out, name, **({"policy_lr": 2.0, "retrain": "finetune"} if name == "pas" else {}))
    for event in events:
        if isinstance(event, EpochDone) and (event.phase, event.epoch) == ("search", 4):
            break
    before = read_tensors(out / "checkpoint.safetensors")[0]
    list(events)
    after = read_tensors(out / "weights.safetensors")[0]
    found = 0
    for mask, keep in after.items():
        if mask.startswith("masks."):
            layer = mask.split(".")[1]
            weights = [
                key for key in after if key.startswith(f"{layer}.") and after[key].ndim > 0 and "running" not in key
            ]
            for key in weights:
                assert torch.equal(before[f"network.{key}"][~keep], after[key][~keep])
                assert not torch.equal(before[f"network.{key}"][keep], after[key][keep])
                found += 1
    assert found > 3


@pytest.mark.parametrize("regulariser", ["relative", "paper"])
def test_macs_can_be_counted_and_the_latency_budget_is_still_met(search_into, tmp_path, budget_us, regulariser):
    *_, finished = search_into(tmp_path / "run", cost="macs", regulariser=regulariser)
    assert finished.architecture.predicted.high_us <= budget_us
    assert finished.architecture.options["regulariser"] == regulariser


def test_no_width_below_the_minimum_is_ever_chosen(search_into, tmp_path):
    events = list(search_into(tmp_path / "run", min_channels=12, channel_multiple=16))
    assert all(min(event.choice.widths.values()) >= 12 for event in events if isinstance(event, EpochDone))
    assert all(
        width % 16 == 0 for event in events if isinstance(event, Chosen) for width in event.choice.widths.values()
    )


def test_channels_that_came_back_are_counted(search_into, tmp_path):
    """With indicators that move far at every step some channels come and go."""
    events = list(search_into(tmp_path / "run", search_epochs=12, policy_lr=20.0))
    searched = [e for e in events if isinstance(e, EpochDone) and e.phase == "search"]
    assert not any(name.startswith("returned") for name in searched[0].figures)
    for before, now in itertools.pairwise(searched):
        for group, width in now.choice.widths.items():
            assert now.figures.get(f"returned.{group}", 0) >= width - before.choice.widths[group]
    assert any(name.startswith("returned") for e in searched for name in e.figures)
