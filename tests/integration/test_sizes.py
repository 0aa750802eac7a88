"""Widths and depths from search to shipped network, on a space whose stages can lose blocks."""

import json
from pathlib import Path

import pytest

from integration.conftest import documented, run_lathe
from search import load_architecture

QUICK = ("--pretrain-epochs", "1", "--search-epochs", "2", "--finetune-epochs", "1", "--batch", "256")
"""Enough epochs to go through every phase; too few to say anything of accuracy."""


@pytest.fixture(scope="module")
def sizes(tmp_path_factory: pytest.TempPathFactory, few_digits: str) -> Path:
    """Where the README's search ran, on a residual network of small images and without a table."""
    work = tmp_path_factory.mktemp("sizes")
    command = [few_digits if word == "digits" else word for word in documented("search", "tas")]
    del command[(place := command.index("--table")) : place + 2]
    changed = {"repvgg-mini": "resnet20/widths", "0.6": "0.4"}
    done = run_lathe(*(changed.get(word, word) for word in command), "--resolution", "8", *QUICK, cwd=work)
    assert done.returncode == 0, done.stderr
    return work


def test_a_network_without_some_of_its_blocks_ships(sizes):
    done = run_lathe(
        "export", "sizes", "--target", "onnxruntime", "--protocol", "fast", "--out", "bundle", "--json", cwd=sizes
    )
    assert done.returncode == 0, done.stderr
    manifest = json.loads(done.stdout)["manifest"]
    assert {step["name"]: step["verdict"] for step in manifest["validation"]}["onnx"] == "passed"
    architecture = load_architecture(sizes / "sizes" / "architecture.json")
    space = architecture.origin()
    assert architecture.choice.depths.keys() == {"stage1", "stage2", "stage3"}
    assert 0.35 * space.macs() <= space.macs(architecture.network()) <= 0.4 * space.macs()
