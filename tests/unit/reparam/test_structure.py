from collections import OrderedDict, defaultdict, namedtuple
from dataclasses import dataclass
from types import MappingProxyType

import pytest
import torch

from reparam.structure import leaves, map_tensors

Pair = namedtuple("Pair", "left right")


@dataclass
class Heads:
    logits: torch.Tensor
    boxes: list
    note: str = "kept"


A, B, C = (torch.full((1,), float(i)) for i in range(3))


@pytest.mark.parametrize(
    ("value", "paths"),
    [
        (A, [()]),
        ((A, None, [B]), [("0",), ("2", "0")]),
        ({"x": A, 3: {"y": B}}, [("x",), ("3", "y")]),
        (OrderedDict(b=A, a=B), [("b",), ("a",)]),
        (defaultdict(list, k=[A]), [("k", "0")]),
        (Pair(A, (B, C)), [("left",), ("right", "0"), ("right", "1")]),
        (Heads(A, [B, C]), [("logits",), ("boxes", "0"), ("boxes", "1"), ("note",)]),
        (None, []),
    ],
)
def test_every_leaf_is_found_by_its_path_and_replaced_in_order(value, paths):
    found = list(leaves(value))
    assert [path for path, _ in found] == paths
    doubled = map_tensors(value, lambda tensor: 2 * tensor)
    assert type(doubled) is type(value)
    for (_, before), (_, after) in zip(found, leaves(doubled), strict=True):
        assert torch.equal(after, 2 * before) if isinstance(before, torch.Tensor) else after == before
    assert [leaf for _, leaf in leaves(value)] == [leaf for _, leaf in found], "the argument stays as it was"


def test_a_mapping_that_cannot_be_changed_is_read():
    assert [path for path, _ in leaves(MappingProxyType({"x": A}))] == [("x",)]
