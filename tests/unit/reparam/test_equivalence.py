import copy
import math

import pytest
import torch
from torch import nn

from reparam.equivalence import Difference, compare, require_within
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


class Holes(nn.Module):
    """Its input, with a value in the place of some entries."""

    def __init__(self, value, *places):
        super().__init__()
        self.value, self.places = value, places

    def forward(self, x):
        hole = torch.zeros(x.numel(), dtype=torch.bool)
        hole[list(self.places)] = True
        return torch.where(hole.view_as(x), self.value, x)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_in_one_output_is_within_no_limit(value):
    found = compare(nn.Identity(), Holes(value, 2), torch.randn(4))
    assert (found.not_finite, found.within(math.inf)) == (1, False)
    with pytest.raises(ReparamError, match="block 7: 1 output values are NaN or infinite in one of the two"):
        require_within(found, 1.0, "block 7")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_in_both_leaves_the_rest_to_be_judged(value):
    x = torch.tensor([1.0, 2.0, 4.0])
    same = compare(Holes(value, 0), Holes(value, 0), x)
    assert (same.max_abs, same.scale, same.not_finite) == (0.0, 4.0, 0)
    assert compare(Holes(value, 0), nn.Sequential(Holes(value, 0), Holes(3.0, 1)), x).max_abs == 1.0
    assert compare(Holes(math.inf, 0), Holes(-math.inf, 0), x).not_finite == 1
    assert not compare(Holes(value, 0, 1, 2), Holes(value, 0, 1, 2), x).within(math.inf), "nothing is left to be judged"


class Typed(nn.Module):
    """Names floating types in its code, as networks that normalise bytes do, and gives numbers of three kinds."""

    def __init__(self, shift=0.0):
        super().__init__()
        self.layer, self.shift = nn.Linear(4, 4), shift
        nn.init.eye_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)

    def forward(self, x, more):
        y = self.layer(x.float() / 255 + torch.zeros(4, dtype=torch.float16)) + more["offset"] + self.shift
        return y.half(), y > 0, (y * 100).long(), None


def test_types_that_the_code_names_are_computed_in_the_one_asked_for():
    x, offset = torch.arange(4, dtype=torch.uint8)[None], torch.full((1, 4), 0.5)
    assert compare(Typed(), Typed(), (x, {"offset": offset})).max_abs == 0.0
    one, other = Typed(), Typed(shift=1e-9)
    other.load_state_dict(one.state_dict())
    assert compare(one, other, (x, {"offset": offset})).max_abs == pytest.approx(1e-9)
    assert torch.get_default_dtype() == torch.float32


def test_booleans_and_integers_are_compared_as_numbers():
    class Above(nn.Module):
        def __init__(self, threshold):
            super().__init__()
            self.threshold = threshold

        def forward(self, x):
            return x > self.threshold, torch.full((1,), 7 if self.threshold else 9)

    x = torch.tensor([0.0, 2.0])
    assert compare(Above(1.0), Above(1.0), x).within(0.0)
    assert compare(Above(0), Above(3.0), x).max_abs == 2.0


def test_what_is_no_tensor_is_named():
    class Counting(nn.Module):
        def forward(self, x):
            return {"y": x, "sizes": (3, None)}

    with pytest.raises(ReparamError, match=r"outputs must be tensors in tuples, lists or dicts, found int at sizes\.0"):
        compare(Counting(), Counting(), torch.zeros(3))


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
