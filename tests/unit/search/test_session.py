"""The session, by real methods and by toy ones that use all that a method may use."""

import dataclasses
import functools
import hashlib
import itertools
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
import torch
from torch import nn

import search
from deploy.metric import ACCURACY
from reparam import ChannelMask, insert_masks
from search import SearchError, checkpoint, load_architecture, masks, session
from search.budget import Budget, Limit
from search.cost import LatencyModel, network_terms
from search.method import Method, Phase, Problem
from search.methods.pas import DepthwiseBinaryConv, indicators
from search.methods.settings import PasSettings, Settings
from search.network import load_weights
from search.record import Chosen, EpochDone, Finished, Result, Started, read_history, read_run, read_usage
from search.tensors import read_tensors
from search.train import TrainingPart

from .conftest import EPOCHS, FAST, make_method, make_table

FILES = ["baseline.safetensors", "weights.safetensors", "architecture.json", "result.json", "history.jsonl"]


class ToySettings(Settings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name = "toy"

    epochs: int = 2


class Noisy(nn.Module):
    """A network with dropout, and a weight of each of its inputs that noise is added to."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.drop = network, nn.Dropout(0.3)
        self.mix = nn.Parameter(torch.zeros(3))
        self.noise = torch.zeros(3)

    def forward(self, x):
        return self.network(self.drop(x) * (1 + self.mix + self.noise)[:, None, None])


class Toy(Method[ToySettings]):
    """Two parts with Adam and RMSprop on halves of the data, dropout, noise, a state, and phases of networks of their own."""

    def __init__(self, settings: ToySettings, problem: Problem) -> None:
        super().__init__(settings, problem)
        self.drawn = 0.0

    @property
    def phases(self):
        epochs = self.settings.epochs
        return (
            Phase(name="first", epochs=epochs, unpruned=True),
            Phase(name="mixed", epochs=epochs, batch_statistics=True),
            Phase(name="last", epochs=epochs, decides=True),
        )

    def network(self, phase, trained):
        if phase.name == "mixed":
            return Noisy(trained or self.problem.space.module())
        if phase.name == "last" and trained is not None:
            return trained.network
        return trained or self.problem.space.module()

    def optimizers(self, phase, network):
        groups = [[p for p in network.parameters() if (p.ndim > 1) == weights] for weights in (True, False)]
        adam = torch.optim.Adam([{"params": groups[0], "peak_lr": 0.01}], lr=0.01)
        return [adam, torch.optim.RMSprop([{"params": groups[1], "peak_lr": 0.001}], lr=0.001, momentum=0.5)]

    def parts(self, epoch, network, optimizers):
        if isinstance(network, Noisy):
            network.noise = torch.rand(3, generator=epoch.noise) / 10
            self.drawn += network.noise.sum().item()

        def loss(logits, labels, images):
            return nn.functional.cross_entropy(logits, labels)

        data = self.problem.task
        return [
            TrainingPart(
                optimizers=[o], batches=data.training_batches(16, epoch.order), loss=loss, factor=lambda step: 0.9**step
            )
            for o in optimizers
        ]

    def ended(self, epoch, network):
        return {"drawn": self.drawn}

    def choice(self):
        return self.problem.space.largest()

    def state(self):
        return {"drawn": self.drawn}

    def restore(self, state):
        self.drawn = state["drawn"]


@pytest.fixture
def start(tiny, table, stripes, budget_us, search_into):
    """Starts a run of a method by name."""

    def start(name: str, out: Path, **settings):
        if name == "toy":
            return session.run(
                Toy(
                    ToySettings(**settings), Problem(space=tiny, table=table, task=stripes, budget=Budget(us=budget_us))
                ),
                out,
            )
        return search_into(out, name, **settings)

    return start


def contents(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in FILES}


def test_a_run_leaves_what_it_says(search_into, tmp_path, tiny, table, stripes, budget_us):
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
    architecture = load_architecture(out / "architecture.json")
    result = msgspec.json.decode((out / "result.json").read_bytes(), type=Result)
    assert (finished.architecture, finished.result) == (architecture, result)
    predicted = table.predict(tiny.network(result.shipped.choice))
    assert architecture.predicted == result.shipped.predicted == predicted
    assert predicted.high_us <= budget_us
    assert (architecture.table_sha256, architecture.method, architecture.options["beta"]) == (table.sha256, "pas", 1.0)
    assert result.architecture_sha256 == architecture.sha256
    assert result.run_sha256 == hashlib.sha256((out / "run.json").read_bytes()).hexdigest()
    assert result.weights_sha256 == hashlib.sha256((out / "weights.safetensors").read_bytes()).hexdigest()
    assert result.shipped.parameters == tiny.parameters(architecture.network())
    assert list(read_history(out, read_run(out))) == epochs

    # The accuracies are those of the saved networks.
    for network, file, metadata, accuracy in [
        (
            architecture.build(),
            "weights.safetensors",
            {"architecture_sha256": architecture.sha256},
            result.shipped.score,
        ),
        (architecture.unpruned(), "baseline.safetensors", {}, result.unpruned.score),
    ]:
        load_weights(network, out / file, metadata)
        network.eval()
        with torch.no_grad():
            right = (
                (network(stripes.normalise(stripes.held_out.images)).argmax(1) == stripes.held_out.labels)
                .float()
                .mean()
                .item()
            )
        assert right == pytest.approx(accuracy)
    assert result.unpruned.score > 0.9
    assert result.shipped.score > 0.9


def test_a_run_for_several_devices_goes_on_with_the_same_ones_alone(tiny, table, stripes, budget_us, tmp_path):
    other = make_table(tiny, tread=8, name="other")

    def start(share: float):
        also = Limit(other, Budget(us=share * other.predict(tiny.network()).us))
        problem = Problem(space=tiny, table=table, task=stripes, budget=Budget(us=budget_us), also=(also,))
        return session.run(Toy(ToySettings(epochs=1), problem), tmp_path / "run")

    *_, finished = start(0.5)
    (device,) = finished.architecture.also
    assert (device.predicted, device.largest) == (other.predict(tiny.network()),) * 2
    assert (device.device.name, device.table_sha256, device.budget_us) == (
        "other",
        other.sha256,
        0.5 * device.largest.us,
    )
    with pytest.raises(SearchError, match="holds another run: its also is "):
        next(start(0.6))


@pytest.mark.parametrize("name", ["pas", "magnitude", "slimming", "toy"])
def test_an_interrupted_run_ends_like_one_that_was_not(start, tmp_path, name):
    """Stopped after events in turn, then called again: the files are equal byte for byte."""
    quick = {"epochs": 1} if name == "toy" else {"pretrain_epochs": 1, "search_epochs": 2, "finetune_epochs": 1}
    events = list(start(name, tmp_path / "whole", **quick))
    assert any(isinstance(event, Chosen) for event in events)
    for done in range(1, len(events), 1 if name == "pas" else 2):
        out = tmp_path / str(done)
        assert list(itertools.islice(start(name, out, **quick), done)) == events[:done]
        assert list(start(name, out, **quick))[-1] == events[-1]
        assert contents(out) == contents(tmp_path / "whole")


TRAINING = {
    "ema": 0.9,
    "distill": "hinton",
    "retrain": "scratch",
    "schedule": "exponential",
    "lr_decay": 0.5,
    "train_precision": "bf16",
    "memory_format": "contiguous",
}


def test_an_interrupted_run_with_every_way_of_training_ends_alike(start, tmp_path):
    """The average of the weights, the teacher and new weights among them."""
    quick = {"pretrain_epochs": 1, "search_epochs": 1, "finetune_epochs": 2, **TRAINING}
    events = list(start("magnitude", tmp_path / "whole", **quick))
    for done in range(1, len(events)):
        out = tmp_path / str(done)
        assert list(itertools.islice(start("magnitude", out, **quick), done)) == events[:done]
        assert list(start("magnitude", out, **quick))[-1] == events[-1]
        assert contents(out) == contents(tmp_path / "whole")


NEEDS = {"lr_decay": {"schedule": "exponential"}, "temperature": {"distill": "tas"}}
CHANGES = TRAINING | {"augment": "none", "temperature": 2.0, "drop_path": 0.5}


@pytest.fixture(scope="module")
def trained_weights(tmp_path_factory, shortcut_space, stripes):
    """Weights of a network with a residual branch after a short run with some settings; each made once."""

    @functools.cache
    def weights(changed):
        quick = {"pretrain_epochs": 1, "search_epochs": 1, "finetune_epochs": 2, "lr_decay_epochs": 0.5, "batch": 32}
        method = make_method(
            "uniform", shortcut_space, None, stripes, 0.7 * shortcut_space.macs(), **quick, **dict(changed)
        )
        out = tmp_path_factory.mktemp("run")
        list(session.run(method, out))
        return read_tensors(out / "weights.safetensors")[0]

    return lambda **changed: weights(tuple(sorted(changed.items())))


@pytest.mark.parametrize("name", sorted(CHANGES.keys() - {"memory_format"}))
def test_every_way_of_training_makes_a_difference(trained_weights, name):
    needed = NEEDS.get(name, {})
    usual, other = trained_weights(**needed), trained_weights(**needed, **{name: CHANGES[name]})
    assert any(not torch.equal(value, other[key]) for key, value in usual.items())


def test_what_ships_and_is_evaluated_is_the_average(search_into, tmp_path, tiny, stripes):
    """With a decay near 1 and few steps it is about the mean of all weights so far, which the last ones are not."""
    *_, finished = search_into(tmp_path / "run", "uniform", ema=0.99)
    network = finished.architecture.build()
    load_weights(network, tmp_path / "run" / "weights.safetensors", {})
    states = checkpoint.load(tmp_path / "run" / "checkpoint.safetensors", session._Head)[1]
    for key, value in network.state_dict().items():
        expected = states["average"][key] if value.is_floating_point() else states["network"][key]
        assert torch.equal(value, expected)
    assert not torch.equal(states["average"]["head.2.weight"], states["network"]["head.2.weight"])
    network.eval()
    right = (
        (network(stripes.normalise(stripes.held_out.images)).argmax(1) == stripes.held_out.labels)
        .double()
        .mean()
        .item()
    )
    assert right == finished.result.shipped.score


def test_another_run_can_be_the_teacher(search_into, tmp_path):
    list(search_into(tmp_path / "teacher", "uniform"))
    asked = {"distill": "tas", "teacher": str(tmp_path / "teacher"), "distill_weight": 0.5}
    list(search_into(tmp_path / "pupil", "uniform", **asked))
    recorded = read_run(tmp_path / "pupil").teacher_sha256
    assert recorded == hashlib.sha256((tmp_path / "teacher" / "weights.safetensors").read_bytes()).hexdigest()
    list(search_into(tmp_path / "own", "uniform", distill="tas", distill_weight=0.5))
    assert (tmp_path / "own" / "weights.safetensors").read_bytes() != (
        tmp_path / "pupil" / "weights.safetensors"
    ).read_bytes()


def test_a_teacher_that_cannot_teach_is_refused(search_into, tmp_path, tiny, table, stripes, budget_us):
    list(search_into(tmp_path / "teacher", "uniform"))
    other = dataclasses.replace(stripes, labels=("a", "b"), name="other")
    method = make_method("uniform", tiny, table, other, budget_us, distill="tas", teacher=str(tmp_path / "teacher"))
    with pytest.raises(
        SearchError, match="teacher was trained on stripes, which has other classes or images than other$"
    ):
        list(session.run(method, tmp_path / "run"))
    with pytest.raises(SearchError, match="nowhere/run.json does not exist"):
        list(search_into(tmp_path / "run", "uniform", distill="tas", teacher=str(tmp_path / "nowhere")))
    assert not (tmp_path / "run").exists()


def test_branches_that_are_not_there_cannot_be_left_out(search_into, tmp_path):
    with pytest.raises(SearchError, match="^--drop-path 0.2: the network has no residual branches"):
        list(search_into(tmp_path / "run", "uniform", drop_path=0.2))


def test_resuming_says_what_is_done(search_into, tmp_path):
    started, *first = itertools.islice(search_into(tmp_path / "run"), 4)
    assert started == Started(epochs={"pretrain": 2, "search": 4, "finetune": 2}, history=(), metric=ACCURACY)
    assert next(search_into(tmp_path / "run")) == Started(epochs=started.epochs, history=tuple(first), metric=ACCURACY)


def test_a_finished_run_is_not_run_again(search_into, tmp_path):
    *_, finished = search_into(tmp_path / "run")
    assert list(search_into(tmp_path / "run")) == [finished]


def test_a_killed_process_loses_at_most_its_epoch(search_into, tmp_path):
    """SIGKILL at any moment, also in the middle of a write, then the same call."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    list(search_into(whole))
    root = Path(search.__file__).parents[1]
    code = (
        f"import sys, torch; sys.path[:0] = [{str(root)!r}, {str(Path(__file__).parent)!r}]; torch.set_num_threads({torch.get_num_threads()})\n"
        f"import conftest, pathlib; from search import session\n"
        f"tiny = conftest.make_tiny(); table = conftest.make_table(tiny)\n"
        f"budget = 0.6 * table.predict(tiny.network()).us\n"
        f"method = conftest.make_method('pas', tiny, table, conftest.make_stripes(), budget)\n"
        f"for event in session.run(method, pathlib.Path({str(killed)!r})): pass\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        deadline = time.monotonic() + 600
        while process.poll() is None and time.monotonic() < deadline:
            if (killed / "history.jsonl").exists() and (killed / "history.jsonl").read_text().count("\n") >= 4:
                break
            time.sleep(0.002)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert not (killed / "result.json").exists()
    assert len(next(search_into(killed)).history) >= 2  # a history may be one epoch ahead of its checkpoint
    list(search_into(killed))
    assert contents(killed) == contents(whole)
    took, same = (
        [(usage.phase, usage.epoch, usage.steps, usage.saved_bytes) for usage in read_usage(out)]
        for out in (killed, whole)
    )
    assert took == same
    assert all(steps > 0 and saved > 0 for _, _, steps, saved in took)


def test_the_seed_decides(search_into, tmp_path):
    for seed in (0, 1):
        list(search_into(tmp_path / str(seed), seed=seed))
    assert (tmp_path / "0" / "baseline.safetensors").read_bytes()[-1000:] != (
        tmp_path / "1" / "baseline.safetensors"
    ).read_bytes()[-1000:]


@pytest.mark.parametrize("name", ["pas", "toy"])
def test_global_randomness_is_neither_used_nor_changed(start, tmp_path, name):
    torch.manual_seed(7)
    state = torch.get_rng_state()
    list(start(name, tmp_path / "a"))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(8)
    list(start(name, tmp_path / "b"))
    assert (tmp_path / "a" / "weights.safetensors").read_bytes() == (
        tmp_path / "b" / "weights.safetensors"
    ).read_bytes()


def test_noise_and_dropout_of_every_epoch_are_its_own(start, tmp_path):
    epochs = [
        event for event in start("toy", tmp_path / "run") if isinstance(event, EpochDone) and event.phase == "mixed"
    ]
    first, second = (epoch.figures["drawn"] for epoch in epochs)
    assert second > first > 0
    assert second - first != first


def test_another_configuration_in_the_same_directory_is_refused(search_into, tmp_path, budget_us):
    out = tmp_path / "run"
    list(itertools.islice(search_into(out), 1))
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    with pytest.raises(
        SearchError, match=r"holds another run: its settings.seed is 0, asked for 1; choose another --out"
    ):
        list(search_into(out, seed=1))
    with pytest.raises(SearchError, match="its budget_us is"):
        list(search_into(out, budget=budget_us + 1))
    with pytest.raises(SearchError, match="its method is 'pas', asked for 'uniform'"):
        list(search_into(out, "uniform"))
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


def test_a_search_can_start_from_the_network_of_another_run(search_into, tmp_path):
    """The pretraining is paid once: what comes out is as if it had been trained again."""
    *_, first = search_into(tmp_path / "first")
    events = list(search_into(tmp_path / "second", baseline=tmp_path / "first"))
    assert {event.phase for event in events if isinstance(event, EpochDone)} == {"search", "finetune"}
    assert events[-1].result == msgspec.structs.replace(first.result, run_sha256=events[-1].result.run_sha256)
    for name in ("baseline.safetensors", "weights.safetensors"):
        one, other = (read_tensors(tmp_path / run / name)[0] for run in ("first", "second"))
        assert all(torch.equal(tensor, other[key]) for key, tensor in one.items())
    with pytest.raises(SearchError, match="nowhere/baseline.safetensors does not exist"):
        list(search_into(tmp_path / "third", baseline=tmp_path / "nowhere"))
    with pytest.raises(SearchError, match="its baseline_sha256 is"):
        list(search_into(tmp_path / "second"))


def plain_pas(settings, space, table, data, budget_us, chosen) -> dict[str, torch.Tensor]:
    """Pruning-as-Search as one loop, with its widths given; returns the weights that it ends with."""

    def generator(phase: str, epoch: int) -> torch.Generator:
        digest = hashlib.sha256(f"{settings.seed}/{phase}/{epoch}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7]))

    torch.manual_seed(settings.seed)
    network, model, steps = space.module(), LatencyModel(space, table), len(data.train) // settings.batch
    example, beta, target = (
        torch.zeros(1, *space.input_shape),
        settings.beta,
        budget_us / (1 + table.predictor.half_width),
    )
    groups, choices = (
        masks.prunable_groups(network, example),
        [space.width_choices(index) for index in range(len(space.groups))],
    )
    for phase, epochs in (
        ("pretrain", settings.pretrain_epochs),
        ("search", settings.search_epochs),
        ("finetune", settings.finetune_epochs),
    ):
        if phase == "search":
            unpruned = {name: tensor.clone() for name, tensor in network.state_dict().items()}
            network = insert_masks(
                network, example, groups, lambda group: DepthwiseBinaryConv(group.channels, min_channels=8)
            )
        if phase == "finetune":
            for (name, width), dbc in zip(chosen.widths.items(), indicators(network), strict=True):
                keep = torch.zeros(len(dbc.v), dtype=torch.bool)
                keep[dbc.v.detach().argsort(descending=True, stable=True)[:width]] = True
                network.masks.add_module(name, nn.Identity() if keep.all() else ChannelMask(keep))
            network.load_state_dict(network.state_dict() | unpruned)
        network.to(memory_format=torch.channels_last)
        policy = [dbc.v for dbc in indicators(network)]
        weights = [p for p in network.parameters() if not any(p is v for v in policy)]
        decayed, rest = ([p for p in weights if (p.ndim > 1) == many] for many in (True, False))
        parts = [
            {"params": decayed, "weight_decay": settings.weight_decay},
            {"params": rest},
            {"params": policy, "lr": settings.policy_lr},
        ]
        optimizer = torch.optim.SGD(
            [part for part in parts if part["params"]], lr=settings.lr, momentum=settings.momentum
        )
        if phase != "pretrain":
            masks.hold_gone(optimizer, weights)
        rates = [group["lr"] for group in optimizer.param_groups]
        network.train()
        for epoch in range(epochs):
            for step, (images, labels) in enumerate(data.training_batches(settings.batch, generator(phase, epoch))):
                warm, done = steps if phase == "pretrain" else 0, epoch * steps + step
                factor = (
                    (done + 1) / (warm + 1)
                    if done < warm
                    else 0.5 * (1 + math.cos(math.pi * (done - warm) / max(1, epochs * steps - warm)))
                )
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * (1.0 if phase == "search" else factor)
                logits = network(images.contiguous(memory_format=torch.channels_last))
                loss = nn.functional.cross_entropy(logits, labels, label_smoothing=settings.label_smoothing)
                if phase == "search":
                    widths = [dbc.width() for dbc in indicators(network)]
                    whole = [
                        float(min(w for w in options if w >= width))
                        for options, width in zip(choices, widths, strict=True)
                    ]
                    now, shipped = (
                        model.expected(network_terms(model, space.sites(), at))
                        for at in (widths, [torch.tensor(width) for width in whole])
                    )
                    cost = shipped + now - now.detach()
                    loss = loss + beta * (cost / target - 1) ** 2
                    beta *= math.exp(settings.beta_rate * max(-1.0, min(1.0, cost.item() / target - 1)))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                for v in policy:
                    v.data.clamp_(0.0, 1.0)
    return network.state_dict()


@pytest.mark.parametrize("seed", [0, 1])
def test_a_run_is_the_plain_loop_to_the_byte(search_into, tmp_path, tiny, table, stripes, budget_us, seed):
    """The session, its phases and its parts add nothing to what the paper trains."""
    events = list(search_into(tmp_path / "run", seed=seed))
    (chosen,) = (event.choice for event in events if isinstance(event, Chosen))
    settings = PasSettings(**EPOCHS, **FAST, seed=seed)
    with torch.random.fork_rng():
        plain = plain_pas(settings, tiny, table, stripes, budget_us, chosen)
    shipped = read_tensors(tmp_path / "run" / "weights.safetensors")[0]
    assert shipped.keys() == plain.keys()
    assert all(torch.equal(tensor, plain[name]) for name, tensor in shipped.items())
