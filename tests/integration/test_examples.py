"""The examples of docs/examples, each at its smallest: a table that nobody measured, an epoch of a few samples."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

from latency import TableWriter
from search.spaces import own
from unit.search.conftest import make_table

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


@pytest.mark.parametrize(("name", "side"), [("classify", 16), ("segment", 32), ("translate", 32), ("detect", 64)])
def test_an_example_ships_what_it_finds(name, side, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    file, table = EXAMPLES / f"{name}.py", tmp_path / "layers.latency.jsonl"
    made = make_table(own.space(f"{file}:make", (3, side, side)))
    with TableWriter(table, made.header) as writer:
        for row in made.rows:
            writer.append(row)
    monkeypatch.setattr(sys, "argv", [str(file), "--small", "--table", str(table), "--out", str(tmp_path)])
    torch.manual_seed(0)
    example = importlib.import_module(name)
    example.main()
    said = capsys.readouterr().out
    assert "exit code 1" not in said
    found = json.loads((tmp_path / "result.json").read_text())
    assert list(found) == ["unpruned", "pas"]
    assert all(network["us"] > 0 for network in found.values())
