import copy
import math

import msgspec
import pytest
import safetensors.torch
import torch
from torch import nn

from search import SearchError, checkpoint


class Head(msgspec.Struct, frozen=True):
    epoch: int


def optimizers(network: nn.Module) -> list[torch.optim.Optimizer]:
    weights = list(network.parameters())
    return [
        torch.optim.SGD(weights[:2], lr=0.1, momentum=0.9),
        torch.optim.Adam(weights[2:3], lr=0.01, betas=(0.5, 0.9), amsgrad=True),
        torch.optim.AdamW(weights[3:], lr=0.01),
        torch.optim.RMSprop(weights, lr=0.001, momentum=0.5, centered=True),
        torch.optim.Adagrad(weights, lr=0.001),
    ]


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))
    return layers.to(memory_format=torch.channels_last)


def train(layers: nn.Module, every: list[torch.optim.Optimizer], steps: range) -> None:
    for step in steps:
        for optimizer in every:
            for group in optimizer.param_groups:
                group["lr"] *= 0.9
            optimizer.zero_grad()
            images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(step)).contiguous(
                memory_format=torch.channels_last
            )
            layers(images).square().mean().backward()
            optimizer.step()


def test_several_optimizers_of_every_kind_go_on_as_if_nothing_had_happened(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    whole = network()
    every = optimizers(whole)
    train(whole, every, range(3))
    states = {"network": whole.state_dict()} | {
        str(index): optimizer.state_dict() for index, optimizer in enumerate(every)
    }
    checkpoint.save(path, Head(epoch=3), states)
    head, found = checkpoint.load(path, Head)
    assert head == Head(epoch=3)

    other = network()
    train(other, optimizers(other), range(1))
    others = optimizers(other)
    other.load_state_dict(found["network"])
    for index, optimizer in enumerate(others):
        checkpoint.restore_optimizer(optimizer, found[str(index)])
        assert optimizer.param_groups[0]["lr"] == every[index].param_groups[0]["lr"]
    assert others[1].state_dict()["param_groups"][0]["betas"] == (0.5, 0.9)
    assert others[1].state_dict()["state"][0]["step"].shape == ()
    assert others[4].state_dict()["state"][0]["step"] == every[4].state_dict()["state"][0]["step"]
    train(whole, every, range(3, 6))
    train(other, others, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), other.state_dict().values(), strict=True))


def test_slots_have_the_memory_layout_of_their_parameter(tmp_path):
    whole = network()
    every = optimizers(whole)
    train(whole, every, range(1))
    checkpoint.save(tmp_path / "c", Head(epoch=1), {"0": every[0].state_dict()})
    other = optimizers(network())[0]
    checkpoint.restore_optimizer(other, checkpoint.load(tmp_path / "c", Head)[1]["0"])
    momentum = other.state[other.param_groups[0]["params"][0]]["momentum_buffer"]
    assert momentum.stride() == (27, 1, 9, 3)  # channels last


def test_nested_state_comes_back_as_it_was(tmp_path):
    state = {"a": [1, 2.5, None, True, "x"], 3: {"b": (1, (2,))}, "c": math.inf, "": {}, "d": -math.inf, "big": 2**62}
    checkpoint.save(tmp_path / "c", Head(epoch=0), {"it": copy.deepcopy(state)})
    assert checkpoint.load(tmp_path / "c", Head)[1]["it"] == state


def test_what_json_cannot_hold_is_a_fault_of_the_program(tmp_path):
    with pytest.raises(AssertionError, match=r"it\.f: a checkpoint holds no set"):
        checkpoint.save(tmp_path / "c", Head(epoch=0), {"it": {"f": {1}}})


def test_a_checkpoint_of_another_optimizer_is_refused(tmp_path):
    every = optimizers(network())
    with (
        pytest.raises(
            SearchError,
            match=r"checkpoint does not fit this search \(.*\): run `lathe search` again, into a new directory$",
        ),
        checkpoint.fitting(tmp_path / "checkpoint"),
    ):
        checkpoint.restore_optimizer(every[0], every[4].state_dict())


HEAD = '"schema": "checkpoint/2", "head": {"epoch": 1}'


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("{", "is damaged"),
        ("", "is damaged"),
        ("[" * 10**5, "is damaged"),
        ("[]", "is damaged"),
        ('{"schema": "checkpoint/2"}', "does not fit this search"),
        (f'{{{HEAD}, "states": {{"a": {{"b": 1}}}}}}', "does not fit this search"),
        (f'{{{HEAD}, "states": {{"a": {{"tensor": "b"}}}}}}', "does not fit this search"),
        ('{"schema": "checkpoint/2", "head": {"epoch": "one"}, "states": {}}', "does not fit this search"),
        ('{"history": [], "beta": 0.1}', "is of an earlier version, which left out what is needed to go on"),
    ],
)
def test_what_cannot_go_on_is_one_line(tmp_path, state, said):
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(safetensors.torch.save({"a": torch.zeros(1)}, metadata={"state": state}))
    with pytest.raises(
        SearchError, match=rf"checkpoint.safetensors {said}.*: run `lathe search` again, into a new directory$"
    ):
        checkpoint.load(path, Head)
