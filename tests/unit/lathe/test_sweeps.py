import json

import pytest

import search.sweep
from latency import LatencyError
from lathe import cli
from search.methods.settings import Settings
from search.sweep import Outcome

METHODS = ["pas", "uniform", "magnitude", "slimming", "table", "tas", "vp-darts", "prunet"]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_can_be_swept(method):
    words = f"sweep {method} --space s --out o --budget-ms 0.5 0.7 --set seed=1 --set lr=1"
    command = cli.parse(words.split())
    assert issubclass(command.method, Settings)
    assert (command.method.name, command.budget_ms, command.set) == (method, (0.5, 0.7), ("seed=1", "lr=1"))


def test_every_budget_of_a_sweep_is_a_latency():
    with pytest.raises(LatencyError, match="--budget-ms must be from 1e-06 to 1e"):
        cli.parse(["sweep", "pas", "--space", "s", "--out", "o", "--budget-ms", "0.5", "0"])


def test_every_run_of_a_sweep_is_given_its_task_and_devices():
    given = "--task net.py:make_task --input 3x8x8 --also b.jsonl:1.2 --also c.jsonl:0.5"
    command = cli.parse(f"sweep pas --module net.py:make --budget-ms 1 --out o {given}".split())
    words = list(command.common())
    assert words == f"--space net.py:make --data digits --recipe auto {given}".split()
    run = cli.parse(["search", "pas", *words, "--out", "o"])
    assert (run.task, run.also) == ("net.py:make_task", ("b.jsonl:1.2", "c.jsonl:0.5"))


@pytest.mark.parametrize("as_json", [False, True])
def test_the_best_run_is_named_for_a_budget_in_milliseconds(as_json, monkeypatch, capsys):
    def best(directory, budget_us):
        asked.append((str(directory), budget_us))
        return Outcome(name="0.5x_seed=0", seed=0, budget="0.5x", settings={}, status="finished", measured_us=410.0)

    asked = []
    monkeypatch.setattr(search.sweep, "best", best)
    assert cli.parse(["sweep", "best", "directory", "--budget-ms", "0.5", *["--json"] * as_json]).run() == 0
    assert asked == [("directory", 500.0)]
    said = capsys.readouterr().out
    if as_json:
        assert json.loads(said)["run"] == "directory/runs/0.5x_seed=0"
    else:
        assert "directory/runs/0.5x_seed=0: -, measured 410.0 µs" in said
