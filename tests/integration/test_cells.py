"""A cell from search to engine: the README's commands for spaces of cells."""

import json
from pathlib import Path

import pytest

from integration.conftest import documented, result_of, run_lathe, slow_table
from search import load_architecture, spaces

QUICK = ("--warmup-epochs", "1", "--prune-epochs", "1", "--train-epochs", "1")
"""Enough epochs to go through every phase; too few to say anything of accuracy."""


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the README's search ran, on a device far slower than this one."""
    work = tmp_path_factory.mktemp("cells")
    command = documented("search", "vp-darts")
    command[command.index("--table") + 1] = str(
        slow_table(work / "cells.latency.jsonl", command[command.index("--space") + 1])
    )
    done = run_lathe(*command, *QUICK, cwd=work)
    assert done.returncode == 0, done.stderr
    return work


def test_a_cell_is_described_by_its_string():
    command = documented("space", "nasbench201")
    facts = result_of(run_lathe(*command, "--json"))
    space = spaces.get("nasbench201")
    nominal = space.nominal(space.parse(facts["arch"]))
    assert (facts["nominal_params"], facts["nominal_macs"]) == (nominal.params, nominal.macs)
    assert facts["arch"] == command[command.index("--arch") + 1]
    assert facts["depends_on_input"] is True
    assert 0 < facts["latency"]["low_us"] < facts["latency"]["us"] < facts["latency"]["high_us"]


def test_a_cell_that_is_a_constant_is_said_to_be_one():
    done = run_lathe("space", "nasbench201", "--arch", "|none~0|+|none~0|none~1|+|none~0|none~1|nor_conv_3x3~2|")
    assert "no: it is a constant" in done.stdout


def test_a_found_cell_ships_through_onnxruntime_and_verifies(cells):
    done = run_lathe(*documented("export", "cell"), "--protocol", "fast", "--json", cwd=cells)
    assert done.returncode == 0, done.stderr
    manifest = json.loads(done.stdout)["manifest"]
    assert {step["name"]: step["verdict"] for step in manifest["validation"]}["onnx"] == "passed"
    architecture = load_architecture(cells / "cell" / "architecture.json")
    assert architecture.name == "nasbench201-small"
    assert architecture.predicted.high_us <= architecture.budget_us
    assert architecture.origin().connected(architecture.choice)
    assert run_lathe("verify", "cell-bundle", cwd=cells).returncode == 0


def test_a_found_cell_is_built_by_tensorrt(cells, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="the extra tensorrt-rtx is not installed")
    words = ("--target", "tensorrt-rtx", "--protocol", "fast", "--out", tmp_path / "bundle", "--json")
    manifest = result_of(run_lathe("export", cells / "cell", *words))["manifest"]
    assert (tmp_path / "bundle" / "model.engine").stat().st_size > 10_000
    assert {step["name"]: step["verdict"] for step in manifest["validation"]}["onnx-fp16"] == "passed"
    assert run_lathe("verify", tmp_path / "bundle").returncode == 0
