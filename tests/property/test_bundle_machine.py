"""Whatever is damaged, one thing after another, `verify` names those files and nothing else; where all is restored, everything holds."""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import nn

from deploy import BundleError, export, verify
from unit.deploy.helpers import QUICK, example

MANIFEST = "manifest.json"


class Damaged(RuleBasedStateMachine):
    """A copy of a bundle, beside the original's bytes."""

    original: Path

    @initialize()
    def copy(self) -> None:
        self.folder = TemporaryDirectory()
        self.directory = Path(shutil.copytree(self.original, Path(self.folder.name) / "bundle"))
        self.content = {path.name: path.read_bytes() for path in self.original.iterdir()}

    def damaged(self) -> set[str]:
        found = {path.name: path.read_bytes() for path in self.directory.iterdir()}
        return {name for name in found.keys() | self.content.keys() if found.get(name) != self.content.get(name)}

    @rule(data=st.data())
    def flip(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.content)))
        content = bytearray(self.content[name])
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        (self.directory / name).write_bytes(content)

    @rule(data=st.data())
    def cut(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.content)))
        (self.directory / name).write_bytes(
            self.content[name][: data.draw(st.integers(0, len(self.content[name]) - 1))]
        )

    @rule(data=st.data(), more=st.binary(min_size=1, max_size=4))
    def grow(self, data: st.DataObject, more: bytes) -> None:
        name = data.draw(st.sampled_from(sorted(self.content)))
        (self.directory / name).write_bytes(self.content[name] + more)

    @rule(data=st.data())
    def swap(self, data: st.DataObject) -> None:
        one, other = data.draw(st.lists(st.sampled_from(sorted(self.content)), min_size=2, max_size=2, unique=True))
        (self.directory / one).write_bytes(self.content[other])
        (self.directory / other).write_bytes(self.content[one])

    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        (self.directory / data.draw(st.sampled_from(sorted(self.content)))).unlink(missing_ok=True)

    @rule(name=st.sampled_from(["stranger", ".hidden", "model.onnx.data"]))
    def add(self, name: str) -> None:
        (self.directory / name).write_bytes(b"x")

    @precondition(lambda self: self.damaged())
    @rule(data=st.data())
    def restore(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.damaged())))
        if name in self.content:
            (self.directory / name).write_bytes(self.content[name])
        else:
            (self.directory / name).unlink()

    @invariant()
    def is_named(self) -> None:
        damaged = self.damaged()
        if not {MANIFEST, "model.onnx", "reference.safetensors"} & {path.name for path in self.directory.iterdir()}:
            with pytest.raises(BundleError, match="is not a bundle|is no bundle"):
                verify(self.directory)
            return
        failed = {check.name for check in verify(self.directory).failures}
        assert failed == ({MANIFEST} if MANIFEST in damaged else damaged)

    def teardown(self) -> None:
        self.folder.cleanup()


def test_whatever_is_damaged_is_named(tmp_path_factory):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))
    out = tmp_path_factory.mktemp("made") / "bundle"
    Damaged.original = export(model, example(), target="onnxruntime", out=out, protocol=QUICK).directory
    machine = Damaged.TestCase
    machine.settings = settings(deadline=None, max_examples=12, stateful_step_count=10)
    machine().runTest()
