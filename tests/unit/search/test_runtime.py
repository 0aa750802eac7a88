import msgspec
import pytest
import torch

from search import SearchError
from search.runtime import Runtime, read_state, restore, save_checkpoint
from search.tensors import write_tensors
from search.train import make_optimizer, train_epoch


class State(msgspec.Struct, frozen=True):
    epoch: int


def make(tiny, seed):
    torch.manual_seed(seed)
    runtime, network = Runtime(), tiny.module()
    optimizer = make_optimizer(network, lr=0.1, momentum=0.9, weight_decay=0.01)
    return runtime, network, optimizer, *runtime.setup(network, optimizer)


def epoch(runtime, wrapped, wrapped_optimizer, data, seed):
    batches = data.training_batches(16, torch.Generator().manual_seed(seed))
    train_epoch(wrapped, wrapped_optimizer, batches, runtime=runtime, factor=lambda _: 1.0, label_smoothing=0.0)


def test_training_goes_on_from_a_checkpoint_as_if_nothing_had_happened(tiny, stripes, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    runtime, network, optimizer, *wrapped = make(tiny, 0)
    epoch(runtime, *wrapped, stripes, 1)
    save_checkpoint(path, State(epoch=1), network, optimizer)
    epoch(runtime, *wrapped, stripes, 2)

    other_runtime, other, other_optimizer, *other_wrapped = make(tiny, 99)
    restore(path, other, other_optimizer)
    assert read_state(path, State) == State(epoch=1)
    epoch(other_runtime, *other_wrapped, stripes, 2)
    assert all(torch.equal(a, b) for a, b in zip(network.state_dict().values(), other.state_dict().values(), strict=True))


def test_restored_momentum_has_the_memory_layout_of_its_parameter(tiny, stripes, tmp_path):
    """Another layout could be summed in another order."""
    path = tmp_path / "checkpoint.safetensors"
    runtime, network, optimizer, *wrapped = make(tiny, 0)
    epoch(runtime, *wrapped, stripes, 1)
    save_checkpoint(path, State(epoch=1), network, optimizer)
    _, other, other_optimizer, *_ = make(tiny, 1)
    restore(path, other, other_optimizer)

    def strides(network, optimizer):
        return [optimizer.state[p]["momentum_buffer"].stride() for p in network.parameters() if p.shape[2:] == (3, 3)]

    assert strides(other, other_optimizer) == strides(network, optimizer)
    assert strides(network, optimizer)[0] == (27, 1, 9, 3)  # channels last


def test_a_damaged_checkpoint_is_one_line(tiny, stripes, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    runtime, network, optimizer, *wrapped = make(tiny, 0)
    epoch(runtime, *wrapped, stripes, 1)
    for state in ("", "[" * 10**5, '{"epoch": "one"}'):
        write_tensors(path, {}, {"state": state})
        with pytest.raises(SearchError, match="checkpoint.safetensors is damaged: .*run `lathe search` again"):
            read_state(path, State)
    for tensors in ({"optimizer.99.momentum_buffer": torch.zeros(1)}, {"optimizer.x": torch.zeros(1)}, {"conv.weight": torch.zeros(1)}):
        write_tensors(path, tensors, {})
        with pytest.raises(SearchError, match="checkpoint.safetensors does not fit the network .*run `lathe search` again"):
            restore(path, network, optimizer)


def test_setup_keeps_the_parameters_and_makes_images_channels_last(tiny):
    runtime = Runtime()
    network = tiny.module()
    before = [id(parameter) for parameter in network.parameters()]
    runtime.setup(network, make_optimizer(network, lr=0.1, momentum=0.9, weight_decay=0.0))
    assert [id(parameter) for parameter in network.parameters()] == before
    assert runtime.send(torch.zeros(2, 3, 8, 8)).is_contiguous(memory_format=torch.channels_last)
