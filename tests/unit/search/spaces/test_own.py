import sys

import pytest
import torch

from search import SearchError, spaces
from search.spaces import own

SHAPE = (3, 8, 8)
PARTS = """
from torch import nn

def block(into, out):
    return nn.Sequential(nn.Conv2d(into, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU())
"""
NET = """
from dataclasses import dataclass

import torch
from torch import nn
from parts_of_net import block

@dataclass
class Sizes:
    width: int = 16

def make():
    return nn.Sequential(block(3, Sizes().width), block(16, 16), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2))

def late():
    import parts_of_net
    return nn.Sequential(parts_of_net.block(3, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))

def fails():
    raise KeyError("no such backbone")

def number():
    return 3

size = 3
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "parts_of_net.py").write_text(PARTS)
    (tmp_path / "net.py").write_text(NET)
    yield tmp_path / "net.py"
    for name in ("net", "parts_of_net"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("name", "known"),
    [("net.py:make", True), ("a b/c.py:f", True), ("net.py", False), ("resnet18/widths", False), ("net:make", False)],
)
def test_a_function_in_a_file_is_a_name(name, known):
    assert own.is_own(name) == known


def test_a_space_of_ones_own_network_comes_back_from_its_record(file):
    before = list(sys.path)
    space = spaces.get(f"{file}:make", classes=2, input_shape=SHAPE)
    assert [width for _, width in space.groups] == [16, 16]
    assert (space.classes, space.input_shape) == (2, SHAPE)
    again = spaces.from_record(space.record())
    torch.manual_seed(0)
    network = again.module(space.choice((8, 16)))
    assert network(torch.zeros(1, *SHAPE)).shape == (1, 2)
    assert len(list(again.module().parameters())) == len(list(space.module().parameters()))
    assert sys.path == before


def test_what_lies_beside_the_file_can_be_imported_when_the_network_is_made(file):
    assert len(spaces.get(f"{file}:late", input_shape=SHAPE).groups) == 1


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("nothing", r"net.py has no function 'nothing': it has dataclass, block, Sizes, make, late, fails, number$"),
        ("size", "has no function 'size'"),
        ("fails", r"net.py:fails cannot be run: KeyError: 'no such backbone'$"),
        ("number", r"net.py:number returns int, wanted a torch.nn.Module$"),
    ],
)
def test_what_makes_no_network_is_said_in_one_line(file, function, message):
    with pytest.raises(SearchError, match=message):
        spaces.get(f"{file}:{function}", input_shape=SHAPE)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def make(:", "SyntaxError"),
        ("import nothing_of_that_name", "ModuleNotFoundError: No module named 'nothing_of_that_name'"),
    ],
)
def test_a_file_that_cannot_be_run_is_said_in_one_line(tmp_path, text, message):
    (tmp_path / "broken.py").write_text(text)
    with pytest.raises(SearchError, match=rf"broken.py:make cannot be run: {message}"):
        spaces.get(f"{tmp_path / 'broken.py'}:make", input_shape=SHAPE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_shape": None}, "does not say what it is for: give the shape of an image, such as --input 3x224x224"),
        ({"resolution": 8}, "--resolution: .*net.py:make makes its network in one size: leave it out"),
        ({"cells_per_stage": 1}, "--cells: "),
        ({"classes": 3}, "makes a network of 2 classes, and there are 3: change its last layer"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(file, changes, message):
    with pytest.raises(SearchError, match=message):
        spaces.get(f"{file}:make", **({"input_shape": SHAPE} | changes))
    with pytest.raises(SearchError, match="--input is of a network of one's own"):
        spaces.get("repvgg-mini", input_shape=SHAPE)


def test_a_file_that_is_gone_is_named(file, tmp_path):
    with pytest.raises(SearchError, match=r"none.py does not exist: give FILE.py:FUNCTION"):
        spaces.get(f"{tmp_path / 'none.py'}:make", input_shape=SHAPE)
    space = spaces.from_record(spaces.get(f"{file}:make", input_shape=SHAPE).record())
    file.unlink()
    with pytest.raises(SearchError, match=r"net.py does not exist: give FILE.py:FUNCTION"):
        space.module()
