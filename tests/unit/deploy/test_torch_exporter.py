import functools

import pytest
import torch
from torch import nn
from torch._export import utils
from torch.onnx._internal.exporter._registration import ONNXRegistry

from deploy import torch_exporter
from deploy.lowering import to_onnx
from deploy.torch_exporter import without_repetition

NETWORK, X = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Hardswish(), nn.Flatten()), torch.zeros(1, 3, 4, 4)


def test_operators_are_read_once_a_process_and_listed_once_an_export(monkeypatch):
    listed = []
    monkeypatch.setattr(torch_exporter, "_list", lambda: listed.append(1))
    monkeypatch.setattr(torch_exporter, "_read_once", functools.cache(torch_exporter._read))
    to_onnx(NETWORK, X)
    to_onnx(NETWORK, X)
    assert len(listed) == 2
    assert torch_exporter._read_once.cache_info().misses == 1


def test_the_model_is_the_one_of_torch_by_itself(monkeypatch):
    made = to_onnx(NETWORK, X)
    monkeypatch.setattr(torch_exporter, "KNOWN", False)
    assert to_onnx(NETWORK, X) == made


def test_torch_is_left_as_it_was_whatever_happens():
    read, listed = ONNXRegistry.from_torchlib, utils._materialize_cpp_cia_ops
    with pytest.raises(ZeroDivisionError, match="True"), without_repetition():
        raise ZeroDivisionError(utils._materialize_cpp_cia_ops is not listed)
    assert (ONNXRegistry.from_torchlib, utils._materialize_cpp_cia_ops) == (read, listed)
