import torch
from torch import nn

from reparam.modules import child_modules, named_modules, own_tensors


def shared():
    relu = nn.ReLU()
    return nn.Sequential(relu, nn.Sequential(relu))


def test_children_come_under_all_of_their_names():
    assert [child.path for child in child_modules(shared())] == ["0", "1", "1.0"]


def test_children_are_replaced_and_removed_on_the_way():
    model = shared()
    for child in child_modules(model):
        if isinstance(child.module, nn.ReLU):
            child.replace(nn.Identity()) if child.parent is model else child.remove()
    assert isinstance(model[0], nn.Identity)
    assert len(model[1]) == 0


def test_absent_children_are_skipped():
    model = nn.Module()
    model.register_module("part", None)
    assert list(child_modules(model)) == []


def test_modules_are_named_once_or_by_all_names():
    model = shared()
    assert [name for name, _ in named_modules(model)] == ["", "0", "1"]
    assert [name for name, _ in named_modules(model, all_names=True)] == ["", "0", "1", "1.0"]


def test_tensors_of_a_module_alone_come_under_all_of_their_names():
    norm = nn.BatchNorm2d(2)
    norm.also = norm.weight
    norm.inner = nn.Linear(1, 1)
    names = [name for name, _ in own_tensors(norm)]
    assert names == ["weight", "bias", "also", "running_mean", "running_var", "num_batches_tracked"]
    assert all(isinstance(tensor, torch.Tensor) for _, tensor in own_tensors(norm))
