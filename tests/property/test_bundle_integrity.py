"""Whatever happens to a file of a bundle, `verify` names that file and nothing else, and fails."""

import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from deploy import export, verify
from unit.deploy.helpers import QUICK, example


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))
    return export(model, example(), target="onnxruntime", out=tmp_path_factory.mktemp("made") / "bundle", protocol=QUICK).directory


@settings(deadline=None, max_examples=40)
@given(data=st.data(), what=st.sampled_from(["flip", "cut", "grow", "remove", "swap", "stranger"]))
def test_verify_names_the_file_that_is_not_as_it_was(bundle, tmp_path_factory, data, what):
    directory = shutil.copytree(bundle, tmp_path_factory.mktemp("copy") / "bundle")
    names = sorted(path.name for path in directory.iterdir())
    name = data.draw(st.sampled_from(names), "file")
    content = (directory / name).read_bytes()
    place = data.draw(st.integers(0, len(content) - 1), "place")
    damaged = {name}
    match what:
        case "flip":
            flipped = content[place] ^ (1 << data.draw(st.integers(0, 7), "bit"))
            (directory / name).write_bytes(content[:place] + bytes([flipped]) + content[place + 1 :])
        case "cut":
            (directory / name).write_bytes(content[:place])
        case "grow":
            (directory / name).write_bytes(content + b"\0")
        case "remove":
            (directory / name).unlink()
        case "swap":
            other = data.draw(st.sampled_from([found for found in names if found != name]), "other")
            (directory / name).write_bytes((directory / other).read_bytes())
            (directory / other).write_bytes(content)
            damaged.add(other)
        case "stranger":
            damaged = {"stranger"}
            (directory / "stranger").write_bytes(content)
    failed = {check.name for check in verify(directory).failures}
    assert failed == ({"manifest.json"} if "manifest.json" in damaged else damaged)
