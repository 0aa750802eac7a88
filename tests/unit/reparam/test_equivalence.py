import copy
import math

import pytest
import torch
from torch import nn

from reparam.equivalence import Difference, compare, require
from reparam.errors import ReparamError


def test_the_difference_is_relative_to_the_reference():
    one, other = nn.Linear(3, 2), nn.Linear(3, 2)
    other.load_state_dict(one.state_dict())
    other.bias.data += 0.5
    x = torch.randn(4, 3)
    found = compare(one, other, x)
    assert found.max_abs == pytest.approx(0.5)
    assert found.scale == pytest.approx(one.double()(x.double()).abs().max().item())
    assert found.relative == found.max_abs / found.scale


def test_the_modules_stay_as_they_were():
    one, other = nn.BatchNorm1d(3), nn.BatchNorm1d(3).double()
    before = copy.deepcopy(one.state_dict())
    compare(one, other, torch.randn(4, 3))
    assert one.training
    assert one.weight.dtype == torch.float32
    assert all(torch.equal(before[name], value) for name, value in one.state_dict().items())


@pytest.mark.parametrize(("max_abs", "scale", "relative"), [(0.0, 0.0, 0.0), (1.0, 0.0, math.inf), (1.0, 4.0, 0.25)])
def test_a_reference_of_zeros_allows_no_difference(max_abs, scale, relative):
    assert Difference(max_abs=max_abs, scale=scale).relative == relative


def test_a_nan_is_within_no_limit():
    class Broken(nn.Module):
        def forward(self, x):
            return torch.where(torch.arange(4) == 2, torch.nan, x)

    found = compare(nn.Identity(), Broken(), torch.randn(4))
    assert not found.within(math.inf)
    with pytest.raises(ReparamError, match="block 7: the output differs by nan"):
        require(found, 1.0, "block 7")


def test_other_shapes_are_refused():
    with pytest.raises(ReparamError, match=r"shapes \[\(1, 2\)\], the reference has \[\(1, 3\)\]"):
        compare(nn.Linear(3, 3), nn.Linear(3, 2), torch.randn(1, 3))


def test_every_tensor_of_a_nested_output_counts():
    class Heads(nn.Module):
        def __init__(self, shift):
            super().__init__()
            self.shift = shift

        def forward(self, x):
            return {"a": x, "b": [x, (x + self.shift,)]}

    assert compare(Heads(0.0), Heads(2.0), torch.zeros(3)).max_abs == 2.0
