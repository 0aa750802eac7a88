"""A network of blocks from search to engine: the README's commands for spaces of layers."""

import json
from pathlib import Path

import pytest

from integration.conftest import documented, result_of, run_lathe
from search import load_architecture

QUICK = ("--warmup-epochs", "1", "--search-epochs", "2", "--train-epochs", "1", "--search-batch", "256")
"""Enough epochs to go through every phase; too few to say anything of accuracy."""


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory, few_digits: str) -> Path:
    """Where the README's search ran, without its table, which is of another machine than this."""
    work = tmp_path_factory.mktemp("blocks")
    command = [few_digits if word == "digits" else word for word in documented("search", "prunet")]
    del command[(place := command.index("--table")) : place + 2]
    done = run_lathe(*command, *QUICK, cwd=work)
    assert done.returncode == 0, done.stderr
    return work


def test_a_found_network_ships_through_onnxruntime_and_verifies(blocks):
    done = run_lathe(*documented("export", "blocks"), "--protocol", "fast", "--json", cwd=blocks)
    assert done.returncode == 0, done.stderr
    manifest = json.loads(done.stdout)["manifest"]
    assert {step["name"]: step["verdict"] for step in manifest["validation"]}["onnx"] == "passed"
    architecture = load_architecture(blocks / "blocks" / "architecture.json")
    space = architecture.origin()
    assert space.name == "prunet-mini"
    assert space.macs(space.network(architecture.choice)) <= 0.5 * space.macs()
    assert run_lathe("verify", "blocks-bundle", cwd=blocks).returncode == 0


def test_a_found_network_is_built_by_tensorrt(blocks, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="the extra tensorrt-rtx is not installed")
    words = ("--target", "tensorrt-rtx", "--protocol", "fast", "--out", tmp_path / "bundle", "--json")
    manifest = result_of(run_lathe("export", blocks / "blocks", *words))["manifest"]
    assert (tmp_path / "bundle" / "model.engine").stat().st_size > 10_000
    assert {step["name"]: step["verdict"] for step in manifest["validation"]}["onnx-fp16"] == "passed"


def test_a_finished_search_of_blocks_has_a_page(blocks):
    assert run_lathe("report", "blocks", "--out", "blocks.html", cwd=blocks).returncode == 0
    assert (blocks / "blocks.html").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("--lam", "0"), "--lam must be above 0 and finite, found 0.0"),
        (
            ("--t-initial", "0.3"),
            "--t-initial 0.3 would remove every block of layer stage2_0 at once, which has 4: give at most 0.25",
        ),
        (("--t-final", "0.2"), "--t-final must be from 0.5"),
        (("--budget-fraction", "0.001"), "cannot be met: the smallest network of prunet-mini takes"),
    ],
)
def test_what_cannot_be_searched_is_refused_in_one_line(change, words, tmp_path):
    command = documented("search", "prunet")
    if change[0] in command:
        place = command.index(change[0])
        del command[place : place + 2]
    done = run_lathe(*command, *change, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
