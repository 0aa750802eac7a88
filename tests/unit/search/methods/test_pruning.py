import copy
import dataclasses

import pytest
import torch
from torch import nn

from latency import CoverageError
from reparam import ChannelMask, count, fuse, squeeze
from search import SearchError, session
from search.network import load_weights
from search.record import Chosen, EpochDone
from search.tensors import read_tensors

from ..conftest import make_method, make_table, weights_before


def searched(events):
    return [event for event in events if isinstance(event, EpochDone) and event.phase == "search"]


def test_the_masks_of_the_weights_are_the_widths(search_into, tmp_path):
    *_, finished = search_into(tmp_path / "run")
    network = finished.architecture.build()
    load_weights(network, tmp_path / "run" / "weights.safetensors", {})
    for (name, full), mask in zip((("a", 32), ("b", 32), ("c", 32)), network.masks.children(), strict=True):
        kept = int(mask.keep.sum()) if isinstance(mask, ChannelMask) else full
        assert kept == finished.result.shipped.choice.widths[name]


@pytest.mark.parametrize("name", ["uniform", "magnitude", "slimming", "table"])
def test_every_baseline_has_the_same_epochs_and_budget(search_into, tmp_path, tiny, budget_us, name):
    events = list(search_into(tmp_path / "run", name))
    epochs = [event for event in events if isinstance(event, EpochDone)]
    assert [e.phase for e in epochs] == ["pretrain"] * 2 + ["search"] * 4 + ["finetune"] * 2
    (chosen,) = (event for event in events if isinstance(event, Chosen))
    assert chosen.latency.high_us <= budget_us
    once = name != "slimming"
    assert events.index(chosen) == (3 if once else 7)
    assert all(e.choice == chosen.choice for e in searched(events)) or not once
    assert events[-1].architecture.method == name
    assert events[-1].result.shipped.choice == chosen.choice != tiny.largest()


@pytest.mark.parametrize("retrain", ["rewind", "finetune"])
@pytest.mark.parametrize("name", ["pas", "slimming"])
def test_learned_widths_are_fine_tuned_from_the_unpruned_weights_or_from_those_of_the_search(
    tmp_path, tiny, table, stripes, budget_us, name, retrain
):
    method = make_method(name, tiny, table, stripes, budget_us, retrain=retrain)
    found = weights_before(method, "finetune", tmp_path / "run")
    unpruned = read_tensors(tmp_path / "run" / "baseline.safetensors")[0]
    same = [torch.equal(found[key], tensor) for key, tensor in unpruned.items()]
    assert all(same) if retrain == "rewind" else not any(same)


def test_widths_between_measured_ones_can_ship(tiny, table, stripes, budget_us):
    """The table interpolates; narrower than what it has measured is nothing."""
    method = make_method("uniform", tiny, table, stripes, budget_us, channel_multiple=1, min_channels=1)
    assert method.choices[0] == tuple(range(8, 33))
    method = make_method("uniform", tiny, table, stripes, budget_us, channel_multiple=12)
    assert method.choices[0] == (12, 24, 32)
    assert make_method("uniform", tiny, table, stripes, budget_us).choices[0] == (8, 16, 24, 32)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"budget": 1.0}, SearchError, "cannot be met: the smallest network of tiny takes"),
        ({"classes": 3}, SearchError, "stripes has 2 classes, the space 3: profile and search with --classes 2"),
        ({"input_shape": (3, 16, 16)}, SearchError, r"are \(8, 8\), the space takes \(16, 16\)"),
        ({"granularity": 4}, CoverageError, "c_out=4"),
    ],
)
def test_what_does_not_fit_is_refused_with_nothing_written(search_into, tmp_path, tiny, changed, error, message):
    space = {key: value for key, value in changed.items() if hasattr(tiny, key)}
    rest = {key: value for key, value in changed.items() if key == "budget"}
    with pytest.raises(error, match=message):
        list(
            search_into(
                tmp_path / "run", space=dataclasses.replace(tiny, **space), min_channels=1, channel_multiple=4, **rest
            )
        )
    assert not (tmp_path / "run").exists()


def test_what_is_excluded_of_a_chain_keeps_its_width(search_into, tmp_path, budget_us):
    *_, finished = search_into(tmp_path / "run", exclude="a", budget=1.4 * budget_us)
    assert finished.result.shipped.choice.widths["a"] == 32
    with pytest.raises(SearchError, match=r"^exclude 'd' is not a group of the network: there are a, b, c$"):
        search_into(tmp_path / "other", exclude="b,d")


@pytest.mark.parametrize("name", ["pas", "uniform", "magnitude", "slimming", "table"])
def test_any_network_is_searched_under_a_latency_budget(tmp_path, shortcut, shortcut_space, stripes, name):
    """From its own weights, with a group that stays whole."""
    table = make_table(shortcut_space)
    budget = 0.7 * table.predict(shortcut_space.network()).us
    events = list(
        session.run(
            make_method(name, shortcut_space, table, stripes, budget, pretrain_epochs=0, exclude="last"), tmp_path
        )
    )
    assert {event.phase for event in events if isinstance(event, EpochDone)} == {"search", "finetune"}
    architecture, result = events[-1].architecture, events[-1].result
    widths = list(result.shipped.choice.widths.values())
    assert result.shipped.choice.widths["last.0"] == 32
    assert result.shipped.choice != shortcut_space.largest()
    assert table.predict(shortcut_space.network(result.shipped.choice)).high_us <= budget
    assert result.free_channels.keys() == {"stem.0", "wide.0", "last.0"}

    baseline = copy.deepcopy(shortcut)
    load_weights(baseline, tmp_path / "baseline.safetensors", {})
    assert all(
        torch.equal(a, b) for a, b in zip(baseline.state_dict().values(), shortcut.state_dict().values(), strict=True)
    )
    network = architecture.build(shortcut)
    load_weights(network, tmp_path / "weights.safetensors", {"architecture_sha256": architecture.sha256})
    x = torch.zeros(1, 3, 8, 8)
    small = squeeze(fuse(network, x), x)
    convolutions = {name: m.out_channels for name, m in small.named_modules() if isinstance(m, nn.Conv2d)}
    widths = result.shipped.choice.widths
    assert convolutions == {
        "stem.0": widths["stem.0"],
        "body.0": widths["stem.0"],
        "wide.0": widths["wide.0"],
        "last.0": widths["last.0"],
    }
    assert (count(small, x).params, count(small, x).macs) == (result.shipped.parameters, result.shipped.macs)
    with pytest.raises(SearchError, match=r"^architecture 'shortcut' is of a module of your own: give it"):
        architecture.build()


def test_stages_that_can_lose_blocks_stay_whole(tmp_path, staged, stripes):
    method = make_method("uniform", staged, None, stripes, 0.6 * staged.macs(), channel_multiple=4, min_channels=4)
    *_, finished = session.run(method, tmp_path / "run")
    assert finished.result.shipped.choice.depths == {"stage1": 3}
    assert finished.result.shipped.macs == staged.macs(finished.architecture.network()) <= 0.6 * staged.macs()


def test_without_a_table_macs_are_the_cost_and_the_record_says_so(tmp_path, shortcut_space, stripes):
    budget = 0.6 * shortcut_space.macs()
    events = list(
        session.run(make_method("pas", shortcut_space, None, stripes, budget, pretrain_epochs=1), tmp_path / "run")
    )
    result, architecture = events[-1].result, events[-1].architecture
    assert result.shipped.macs <= budget
    assert (result.budget_us, result.budget_macs, result.shipped.predicted) == (None, budget, None)
    assert (architecture.predicted, architecture.device, architecture.table_sha256) == (None, None, "")
    assert all(e.latency_us is None and e.macs > 0 for e in events if isinstance(e, EpochDone))
    with pytest.raises(
        SearchError,
        match=r"^a budget of 10 MACs cannot be met: the smallest network of shortcut has [0-9,]+ MACs; ask for a larger",
    ):
        make_method("pas", shortcut_space, None, stripes, 10.0)
