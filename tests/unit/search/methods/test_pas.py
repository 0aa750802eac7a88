import copy
import dataclasses
import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
import safetensors
import torch
from torch import nn

import search
from latency import CoverageError
from reparam import ChannelMask, count, fuse, squeeze
from search import SearchError, load_architecture
from search.data import Split
from search.methods import pas
from search.methods.pas import PasConfig
from search.network import load_weights
from search.record import Chosen, EpochDone, Finished, Result, Resumed
from search.spaces import of_module
from search.tensors import read_tensors

from ..conftest import make_table

QUICK = PasConfig(pretrain_epochs=2, search_epochs=4, finetune_epochs=2, batch=16, beta=1.0, beta_rate=0.2)
FILES = ["baseline.safetensors", "weights.safetensors", "architecture.json", "result.json", "history.jsonl"]


@pytest.fixture
def budget_us(tiny, table) -> float:
    return 0.6 * table.predict(tiny.network()).us


@pytest.fixture
def search_into(tiny, table, stripes, budget_us):
    def start(out: Path, config: PasConfig = QUICK, baseline: Path | None = None, **changed):
        options = {"space": tiny, "table": table, "data": stripes, "budget_us": budget_us} | changed
        return pas.run(config, options["space"], options["table"], options["data"], options["budget_us"], out, baseline=baseline)

    return start


def test_a_run_meets_its_budget_and_leaves_what_it_says(search_into, tmp_path, tiny, table, stripes, budget_us):
    out = tmp_path / "run"
    events = list(search_into(out))
    epochs = [event for event in events if isinstance(event, EpochDone)]
    assert [(e.phase, e.epoch) for e in epochs] == [
        ("pretrain", 1),
        ("pretrain", 2),
        *(("search", k) for k in range(1, 5)),
        ("finetune", 1),
        ("finetune", 2),
    ]
    finished = events[-1]
    assert isinstance(finished, Finished)
    architecture, result = (
        load_architecture(out / "architecture.json"),
        msgspec.json.decode((out / "result.json").read_bytes(), type=Result),
    )
    assert (finished.architecture, finished.result) == (architecture, result)

    predicted = table.predict(tiny.network(tiny.choice(architecture.widths)))
    assert architecture.predicted == predicted
    assert predicted.high_us <= budget_us
    for index, width in enumerate(architecture.widths):  # nothing that fits is left out
        for wider in (option for option in tiny.width_choices(index) if option > width):
            blocks = tiny.network(tiny.choice((*architecture.widths[:index], wider, *architecture.widths[index + 1 :])))
            assert table.predict(blocks).high_us > budget_us
    assert (architecture.table_sha256, architecture.method, architecture.options["beta"]) == (table.sha256, "pas", 1.0)
    assert result.architecture_sha256 == architecture.sha256
    assert result.shipped.widths == architecture.widths
    assert result.shipped.parameters == tiny.parameters(architecture.blocks())
    assert [msgspec.json.decode(line, type=EpochDone) for line in (out / "history.jsonl").read_text().splitlines()] == epochs

    # The accuracies are those of the saved networks.
    for network, file, metadata, accuracy in [
        (architecture.build(), "weights.safetensors", {"architecture_sha256": architecture.sha256}, result.shipped.accuracy),
        (architecture.unpruned(), "baseline.safetensors", {}, result.unpruned.accuracy),
    ]:
        load_weights(network, out / file, metadata)
        network.eval()
        with torch.no_grad():
            right = (network(stripes.normalise(stripes.held_out.images)).argmax(1) == stripes.held_out.labels).float().mean().item()
        assert right == pytest.approx(accuracy)
    assert result.unpruned.accuracy > 0.9
    assert result.shipped.accuracy > 0.9


def test_the_masks_of_the_weights_are_the_widths(search_into, tmp_path):
    *_, finished = search_into(tmp_path / "run")
    network = finished.architecture.build()
    load_weights(network, tmp_path / "run" / "weights.safetensors", {})
    for layer, mask in zip(finished.architecture.layers, network.masks.children(), strict=True):
        kept = int(mask.keep.sum()) if isinstance(mask, ChannelMask) else layer.of
        assert kept == layer.width


@pytest.mark.parametrize("policy", ["dbc", "magnitude"])
def test_channels_that_are_gone_keep_the_weights_that_they_had(search_into, tmp_path, policy):
    """Of a learned policy since the end of its search, of a baseline since it was pruned: fine-tuning moves the others alone."""
    out = tmp_path / "run"
    events = search_into(out, msgspec.structs.replace(QUICK, policy=policy, policy_lr=2.0))
    list(itertools.islice(events, 6))
    before = read_tensors(out / "checkpoint.safetensors")[0]
    list(events)
    after = read_tensors(out / "weights.safetensors")[0]
    found = 0
    for name, keep in after.items():
        if name.startswith("masks."):
            layer = name.split(".")[1]
            weights = [key for key in after if key.startswith(f"{layer}.") and after[key].ndim > 0 and "running" not in key]
            for key in weights:
                assert torch.equal(before[key][~keep], after[key][~keep])
                assert not torch.equal(before[key][keep], after[key][keep])
                found += 1
    assert found > 3


def test_the_search_prunes_towards_the_budget_by_itself(search_into, tmp_path, budget_us):
    """Before anything is trimmed: the controller and the gradients alone."""
    events = list(search_into(tmp_path / "run", msgspec.structs.replace(QUICK, search_epochs=15)))
    searched = [event for event in events if isinstance(event, EpochDone) and event.phase == "search"]
    assert searched[0].latency_us > 1.3 * budget_us
    assert searched[-1].latency_us < 1.1 * budget_us
    betas = [event.beta for event in searched]
    assert betas[0] > QUICK.beta


def test_indicators_stay_within_their_bounds_unless_told_otherwise(search_into, tmp_path):
    for bounded in (True, False):
        config = msgspec.structs.replace(QUICK, policy_lr=50.0, bounded=bounded)
        list(itertools.islice(search_into(tmp_path / str(bounded), config), 5))
        with safetensors.safe_open(tmp_path / str(bounded) / "checkpoint.safetensors", framework="pt") as file:
            v = torch.cat([file.get_tensor(name) for name in file.keys() if name.endswith(".v")])  # noqa: SIM118
        assert (v.min() >= 0 and v.max() <= 1) == bounded


def test_an_interrupted_run_ends_like_one_that_was_not(search_into, tmp_path):
    """Stopped after each event in turn, then called again: the files are equal byte for byte."""
    events = list(search_into(tmp_path / "whole"))
    whole = {name: (tmp_path / "whole" / name).read_bytes() for name in FILES}
    for done in range(1, len(events)):
        out = tmp_path / str(done)
        assert list(itertools.islice(search_into(out), done)) == events[:done]
        assert list(search_into(out))[-1] == events[-1]
        assert {name: (out / name).read_bytes() for name in FILES} == whole


def test_resuming_says_what_is_done(search_into, tmp_path):
    first = list(itertools.islice(search_into(tmp_path / "run"), 3))
    resumed = next(search_into(tmp_path / "run"))
    assert resumed == Resumed(history=tuple(first))


def test_a_finished_run_is_not_run_again(search_into, tmp_path):
    *_, finished = search_into(tmp_path / "run")
    assert list(search_into(tmp_path / "run")) == [finished]


def test_a_killed_process_loses_at_most_its_epoch(search_into, tmp_path):
    """SIGKILL at any moment, also in the middle of a write, then the same call."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    list(search_into(whole))
    root = Path(search.__file__).parents[1]
    code = (
        f"import sys, torch; sys.path[:0] = [{str(root)!r}, {str(Path(__file__).parents[1])!r}]; torch.set_num_threads({torch.get_num_threads()})\n"
        f"import conftest, pathlib; from search.methods import pas\n"
        f"tiny = conftest.make_tiny(); table = conftest.make_table(tiny)\n"
        f"config = pas.PasConfig(pretrain_epochs=2, search_epochs=4, finetune_epochs=2, batch=16, beta=1.0, beta_rate=0.2)\n"
        f"budget = 0.6 * table.predict(tiny.network()).us\n"
        f"for event in pas.run(config, tiny, table, conftest.make_stripes(), budget, pathlib.Path({str(killed)!r})): pass\n"
    )
    process = subprocess.Popen([sys.executable, "-P", "-c", code])
    try:
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if (killed / "history.jsonl").exists() and (killed / "history.jsonl").read_text().count("\n") >= 3:
                break
            time.sleep(0.002)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert not (killed / "result.json").exists()
    events = list(search_into(killed))
    assert isinstance(events[0], Resumed)
    assert [(killed / name).read_bytes() == (whole / name).read_bytes() for name in FILES] == [True] * len(FILES)


def test_the_seed_decides(search_into, tmp_path):
    outs = [tmp_path / "a", tmp_path / "b"]
    for seed, out in enumerate(outs):
        list(search_into(out, msgspec.structs.replace(QUICK, seed=seed)))
    assert len({(out / "baseline.safetensors").read_bytes()[-1000:] for out in outs}) == 2


def test_global_randomness_is_neither_used_nor_changed(search_into, tmp_path):
    torch.manual_seed(7)
    state = torch.get_rng_state()
    list(search_into(tmp_path / "a"))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(8)
    list(search_into(tmp_path / "b"))
    assert (tmp_path / "a" / "weights.safetensors").read_bytes() == (tmp_path / "b" / "weights.safetensors").read_bytes()


def test_another_configuration_in_the_same_directory_is_refused(search_into, tmp_path, table, budget_us):
    out = tmp_path / "run"
    list(itertools.islice(search_into(out), 1))
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    with pytest.raises(SearchError, match=r"holds another run: its config.seed is 0, asked for 1; choose another --out"):
        list(search_into(out, msgspec.structs.replace(QUICK, seed=1)))
    with pytest.raises(SearchError, match="its budget_us is"):
        list(search_into(out, budget_us=budget_us + 1))
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"budget_us": 1.0}, SearchError, "cannot be met: the smallest network of tiny takes"),
        ({"classes": 3}, SearchError, "stripes has 2 classes, the space 3: profile and search with --classes 2"),
        ({"input_shape": (3, 16, 16)}, SearchError, r"are \(8, 8\), the space takes \(16, 16\)"),
        ({"granularity": 4}, CoverageError, "c_out=4"),
        ({"channel_multiple": 12}, SearchError, "channel_multiple must be a multiple of 8.*found 12"),
    ],
)
def test_what_does_not_fit_is_refused_with_nothing_written(search_into, tmp_path, tiny, changed, error, message):
    out = tmp_path / "run"
    space = {key: value for key, value in changed.items() if hasattr(tiny, key)}
    config = {key: value for key, value in changed.items() if key in QUICK.__struct_fields__}
    rest = {key: value for key, value in changed.items() if key == "budget_us"}
    with pytest.raises(error, match=message):
        list(search_into(out, msgspec.structs.replace(QUICK, **config), space=dataclasses.replace(tiny, **space), **rest))
    assert not out.exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"search_epochs": 0}, "search_epochs must be at least 1, found 0"),
        ({"lr": 0.0}, "lr must be above 0, found 0.0"),
        ({"regulariser": "paper"}, "needs the cost 'macs', found 'latency'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changed, message):
    with pytest.raises(SearchError, match=message):
        PasConfig(**changed)


def test_the_recipe_is_by_the_data_and_what_is_chosen_stays(stripes):
    assert pas.recipe(stripes, seed=3) == PasConfig(seed=3)
    many = msgspec.structs.replace(stripes, train=Split(images=torch.zeros(10_001, 3, 1, 1, dtype=torch.uint8), labels=torch.zeros(10_001)))
    assert pas.recipe(many).batch > PasConfig().batch
    assert pas.recipe(many, batch=7).batch == 7


@pytest.mark.parametrize("regulariser", ["relative", "paper"])
def test_macs_can_be_counted_and_the_latency_budget_is_still_met(search_into, tmp_path, budget_us, regulariser):
    config = msgspec.structs.replace(QUICK, cost="macs", regulariser=regulariser)
    *_, finished = search_into(tmp_path / "run", config)
    assert finished.architecture.predicted.high_us <= budget_us
    assert finished.architecture.options["regulariser"] == regulariser


def test_no_width_below_the_minimum_is_ever_chosen(search_into, tmp_path):
    config = msgspec.structs.replace(QUICK, min_channels=12, channel_multiple=16)
    events = list(search_into(tmp_path / "run", config))
    assert all(min(event.widths) >= 12 for event in events if isinstance(event, EpochDone))
    assert all(width % 16 == 0 for event in events if isinstance(event, Chosen) for width in event.widths)


@pytest.mark.parametrize("policy", ["uniform", "magnitude", "slimming"])
def test_every_baseline_has_the_same_epochs_and_budget(search_into, tmp_path, table, tiny, budget_us, policy):
    config = msgspec.structs.replace(QUICK, policy=policy)
    events = list(search_into(tmp_path / "run", config))
    epochs = [event for event in events if isinstance(event, EpochDone)]
    assert [e.phase for e in epochs] == ["pretrain"] * 2 + ["search"] * 4 + ["finetune"] * 2
    (chosen,) = (event for event in events if isinstance(event, Chosen))
    assert chosen.latency.high_us <= budget_us
    once = policy != "slimming"
    assert events.index(chosen) == (2 if once else 6)
    assert ({e.widths for e in epochs if e.phase == "search"} == {chosen.widths}) or not once
    assert events[-1].architecture.options["policy"] == policy
    assert events[-1].architecture.widths == chosen.widths
    assert chosen.widths != tiny.full_widths()


@pytest.mark.parametrize("policy", ["magnitude", "slimming"])
def test_an_interrupted_baseline_ends_like_one_that_was_not(search_into, tmp_path, policy):
    config = msgspec.structs.replace(QUICK, policy=policy, pretrain_epochs=1, search_epochs=2, finetune_epochs=1)
    events = list(search_into(tmp_path / "whole", config))
    whole = {name: (tmp_path / "whole" / name).read_bytes() for name in FILES}
    for done in range(1, len(events)):
        out = tmp_path / str(done)
        list(itertools.islice(search_into(out, config), done))
        assert list(search_into(out, config))[-1] == events[-1]
        assert {name: (out / name).read_bytes() for name in FILES} == whole


def test_slimming_shrinks_the_scales_of_norms(search_into, tmp_path):
    sizes = []
    for strength in (1e-9, 1e-1):
        out = tmp_path / str(strength)
        list(itertools.islice(search_into(out, msgspec.structs.replace(QUICK, policy="slimming", slimming=strength)), 6))
        with safetensors.safe_open(out / "checkpoint.safetensors", framework="pt") as file:
            sizes.append(sum(file.get_tensor(name).abs().sum() for name in file.keys() if name.endswith("norm.weight")))  # noqa: SIM118
    assert sizes[1] < 0.9 * sizes[0]


def test_a_search_can_start_from_the_network_of_another_run(search_into, tmp_path):
    """The pretraining is paid once: what comes out is as if it had been trained again."""
    *_, first = search_into(tmp_path / "first")
    events = list(search_into(tmp_path / "second", baseline=tmp_path / "first"))
    assert {event.phase for event in events if isinstance(event, EpochDone)} == {"search", "finetune"}
    assert events[-1].result == first.result
    for name in ("baseline.safetensors", "weights.safetensors"):
        one, other = (read_tensors(tmp_path / run / name)[0] for run in ("first", "second"))
        assert all(torch.equal(tensor, other[key]) for key, tensor in one.items())
    with pytest.raises(SearchError, match="nowhere/baseline.safetensors does not exist"):
        list(search_into(tmp_path / "third", baseline=tmp_path / "nowhere"))
    with pytest.raises(SearchError, match="its baseline_sha256 is"):
        list(search_into(tmp_path / "second"))


class Shortcut(nn.Module):
    """Two convolutions that are added up, a depth-wise one, one that is not searched below, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1, groups=32, bias=False), nn.BatchNorm2d(32))
        self.wide = nn.Sequential(nn.Conv2d(32, 48, 1, bias=False), nn.BatchNorm2d(48), nn.ReLU())
        self.last = nn.Sequential(nn.Conv2d(48, 32, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 2))

    def forward(self, x):
        x = self.stem(x)
        return self.classifier(self.last(self.wide(torch.relu(x + self.body(x)))))


@pytest.fixture(scope="module")
def shortcut():
    torch.manual_seed(0)
    return Shortcut()


@pytest.fixture(scope="module")
def shortcut_space(shortcut):
    return of_module(shortcut, torch.zeros(1, 3, 8, 8), name="shortcut")


@pytest.mark.parametrize("policy", ["dbc", "uniform", "magnitude", "slimming"])
def test_any_network_is_searched_under_a_latency_budget(tmp_path, shortcut, shortcut_space, stripes, policy):
    """From its own weights, with a group that stays whole."""
    table = make_table(shortcut_space)
    budget = 0.7 * table.predict(shortcut_space.network()).us
    config = msgspec.structs.replace(QUICK, policy=policy, pretrain_epochs=0, exclude="last")
    events = list(pas.run(config, shortcut_space, table, stripes, budget, tmp_path))
    assert {event.phase for event in events if isinstance(event, EpochDone)} == {"search", "finetune"}
    architecture, result = events[-1].architecture, events[-1].result
    assert [layer.name for layer in architecture.layers] == ["stem.0", "wide.0", "last.0"]
    assert architecture.widths[2] == 32
    assert architecture.widths != (32, 48, 32)
    assert table.predict(shortcut_space.network(shortcut_space.choice(architecture.widths))).high_us <= budget
    assert len(result.free_channels) == 3

    baseline = copy.deepcopy(shortcut)
    load_weights(baseline, tmp_path / "baseline.safetensors", {})
    assert all(torch.equal(a, b) for a, b in zip(baseline.state_dict().values(), shortcut.state_dict().values(), strict=True))
    network = architecture.build(shortcut)
    load_weights(network, tmp_path / "weights.safetensors", {"architecture_sha256": architecture.sha256})
    x = torch.zeros(1, 3, 8, 8)
    small = squeeze(fuse(network), x)
    assert [m.out_channels for m in small.modules() if isinstance(m, nn.Conv2d)] == [architecture.widths[k] for k in (0, 0, 1, 2)]
    assert (count(small, x).params, count(small, x).macs) == (result.shipped.parameters, result.shipped.macs)
    with pytest.raises(
        SearchError, match=r"^architecture 'shortcut' is of a module of your own: give it, as in architecture.build\(module\)$"
    ):
        architecture.build()
    with pytest.raises(SearchError, match=r"^the network has no group .* of 32|48 channels: give the module that was searched$"):
        architecture.build(nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1)))


def test_without_a_table_macs_are_the_cost_and_the_record_says_so(tmp_path, shortcut_space, stripes):
    budget = 0.6 * shortcut_space.macs()
    config = msgspec.structs.replace(QUICK, pretrain_epochs=1)
    events = list(pas.run(config, shortcut_space, None, stripes, budget, tmp_path / "run"))
    result, architecture = events[-1].result, events[-1].architecture
    assert result.shipped.macs <= budget
    assert (result.budget_us, result.budget_macs, result.shipped.predicted) == (None, budget, None)
    assert (architecture.predicted, architecture.device, architecture.table_sha256) == (None, None, "")
    assert all(e.latency_us is None and e.macs > 0 for e in events if isinstance(e, EpochDone))
    run = msgspec.json.decode((tmp_path / "run" / "run.json").read_bytes())
    assert (run["budget_us"], run["budget_macs"], run["table_sha256"]) == (None, budget, "")
    assert list(pas.run(config, shortcut_space, None, stripes, budget, tmp_path / "run")) == events[-1:]
    with pytest.raises(
        SearchError, match=r"^a budget of 10 MACs cannot be met: the smallest network of shortcut has [0-9,]+; ask for a larger"
    ):
        list(pas.run(config, shortcut_space, None, stripes, 10.0, tmp_path / "other"))


def test_what_is_excluded_of_a_chain_keeps_its_width(search_into, tmp_path, budget_us):
    *_, finished = search_into(tmp_path / "run", msgspec.structs.replace(QUICK, exclude="a"), budget_us=1.4 * budget_us)
    assert finished.architecture.widths[0] == 32
    with pytest.raises(SearchError, match=r"^exclude 'd' is no group of the network: there are a, b, c$"):
        list(search_into(tmp_path / "other", msgspec.structs.replace(QUICK, exclude="b,d")))
    assert not (tmp_path / "other").exists()


def test_channels_that_came_back_are_counted(search_into, tmp_path):
    """With indicators that move far at every step some channels come and go."""
    events = list(search_into(tmp_path / "run", msgspec.structs.replace(QUICK, search_epochs=12, policy_lr=20.0)))
    searched = [e for e in events if isinstance(e, EpochDone) and e.phase == "search"]
    assert all(len(e.returned) == 3 for e in searched)
    assert not any(searched[0].returned)
    for before, now in itertools.pairwise(searched):
        assert all(back >= wide - narrow for back, wide, narrow in zip(now.returned, now.widths, before.widths, strict=True))
    assert any(any(e.returned) for e in searched)


def test_the_recipe_of_the_paper(stripes):
    config = pas.recipe(stripes, "paper", seed=2)
    assert (config.search_epochs, config.finetune_epochs, config.batch, config.lr) == (10, 50, 1024, 0.4)
    assert (config.momentum, config.weight_decay, config.seed) == (0.875, 3.05e-5, 2)
