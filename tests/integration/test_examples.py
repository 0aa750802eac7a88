"""The examples of docs/examples, each at its smallest: a table that nobody measured, an epoch of a few samples."""

import importlib
import json
import sys
from pathlib import Path

import pytest

from latency import TableWriter
from search import finished
from search.spaces import own
from unit.search.conftest import make_table

EXAMPLES, FORMATS = Path(__file__).parents[2] / "docs" / "examples", Path(__file__).parents[1] / "formats"


def shipped(name, words, out, monkeypatch, capsys):
    """What an example ships in a directory, by name."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--small", "--out", str(out), *words])
    importlib.import_module(name).main()
    assert "exit code 1" not in capsys.readouterr().out
    return json.loads((out / "result.json").read_text())


@pytest.mark.parametrize(("name", "side"), [("classify", 16), ("segment", 32), ("translate", 32), ("detect", 64)])
def test_an_example_ships_what_it_finds(name, side, tmp_path, monkeypatch, capsys):
    file, table = EXAMPLES / f"{name}.py", tmp_path / "layers.latency.jsonl"
    monkeypatch.syspath_prepend(str(EXAMPLES))
    made = make_table(own.space(f"{file}:make", (3, side, side)))
    with TableWriter(table, made.header) as writer:
        for row in made.rows:
            writer.append(row)
    found = shipped(name, ["--table", str(table), "--budget", "0.8"], tmp_path, monkeypatch, capsys)
    assert list(found) == ["unpruned", "pas"]
    assert all(network["us"] > 0 for network in found.values())
    if name != "detect":  # which has a loop of its own
        result = finished.load(tmp_path / "pas").result
        for network, trained in (("unpruned", result.unpruned), ("pas", result.shipped)):
            assert found[network][result.metric.name] == pytest.approx(trained.score, rel=1e-3)


def test_a_searched_backbone_is_the_pyramid_under_a_head(tmp_path, monkeypatch, capsys):
    found = shipped("pyramid", ["--found", str(FORMATS / "architecture-2.json")], tmp_path, monkeypatch, capsys)
    assert 0 <= found["pyramid"]["AP50"] <= 1
