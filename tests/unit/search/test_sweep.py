import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from deploy.metric import ACCURACY
from latency import Latency
from search import SearchError, report, sweep
from search.methods.settings import PasSettings, PrunetSettings, VpDartsSettings
from search.sweep import Outcome

FORMATS = Path(__file__).parents[2] / "formats"
BUDGETS = [("0.5 ms", ("--budget-ms", "0.5")), ("0.7 ms", ("--budget-ms", "0.7"))]


def names(found):
    return [(member.name, member.leader) for member in found.members]


def test_every_combination_is_a_run_and_those_of_a_seed_share_their_first_phase():
    found = sweep.plan(PasSettings, ("--space", "x"), BUDGETS, 2, {"beta": ["0.1", "0.3"], "lr": ["0.1"]})
    first = "0.5ms_beta=0.1_seed=0"
    assert names(found)[:4] == [
        (first, first),
        ("0.5ms_beta=0.3_seed=0", first),
        ("0.7ms_beta=0.1_seed=0", first),
        ("0.7ms_beta=0.3_seed=0", first),
    ]
    assert names(found)[4] == ("0.5ms_beta=0.1_seed=1",) * 2
    assert len(found.members) == 8
    member = found.members[3]
    assert member.words == ("pas", "--space", "x", "--budget-ms", "0.7", "--seed", "0", "--beta", "0.3", "--lr", "0.1")
    assert (member.budget, member.settings) == ("0.7 ms", {"beta": "0.3"})


@pytest.mark.parametrize(
    ("settings", "values", "leaders"),
    [
        (PasSettings, {"pretrain_epochs": ["1", "2"]}, 2),
        (PasSettings, {"lr": ["0.1", "0.2"], "beta": ["1", "2"]}, 2),
        (PrunetSettings, {"alpha": ["0.5", "1"], "lam": ["0.4", "0.55", "0.85"]}, 1),
        (PrunetSettings, {"search_lr": ["0.001", "0.002"]}, 2),
        (VpDartsSettings, {"warmup_epochs": ["1", "2"]}, 2),
    ],
)
def test_a_setting_that_the_first_phase_depends_on_has_one_of_its_own(settings, values, leaders):
    found = sweep.plan(settings, (), BUDGETS, 1, values)
    assert len({member.leader for member in found.members}) == leaders


@pytest.mark.parametrize(
    ("budgets", "values", "message"),
    [
        (BUDGETS, {"gamma": ["1"]}, "--set gamma: pas has no such setting; it has batch, "),
        (BUDGETS, {"seed": ["1"]}, "for seeds give --seeds"),
        (BUDGETS, {"beta": ["1", "1"]}, "--set beta has a value twice: 1, 1"),
        (BUDGETS[:1] * 2, {}, "a budget is given twice: 0.5 ms, 0.5 ms"),
    ],
)
def test_what_cannot_be_swept_is_refused(budgets, values, message):
    with pytest.raises(SearchError, match=message):
        sweep.plan(PasSettings, (), budgets, 1, values)


def test_a_directory_goes_on_with_the_same_sweep_alone(tmp_path):
    found, other = (sweep.plan(PasSettings, (), BUDGETS, seeds, {}) for seeds in (1, 2))
    sweep.begin(found, tmp_path / "s")
    sweep.begin(found, tmp_path / "s")
    assert sweep.read(tmp_path / "s") == found
    with pytest.raises(SearchError, match="holds another sweep"):
        sweep.begin(other, tmp_path / "s")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "draft").touch()
    with pytest.raises(SearchError, match="is not a sweep"):
        sweep.begin(found, tmp_path / "thesis")


SEARCH = """
import sys, pathlib, time
words, started = sys.argv[1:], pathlib.Path(sys.argv[1])
out = pathlib.Path(words[words.index("--out") + 1])
log = started / "order"
with log.open("a") as file: file.write("start " + out.name + " " * ("--baseline" in words) + "\\n")
if out.name in (started / "bad").read_text().split():
    sys.exit(int((started / "code").read_text()))
out.mkdir(parents=True, exist_ok=True)
(out / "baseline.safetensors").touch()
time.sleep(0.2)
(out / "result.json").touch()
with log.open("a") as file: file.write("end " + out.name + "\\n")
"""


@pytest.fixture
def searches(tmp_path, monkeypatch):
    """Processes that do as searches do; returns what they have noted, and makes those of some names fail."""

    def start(words, log, *, threads=None):
        with log.open("wb") as said:
            return subprocess.Popen(
                [sys.executable, "-c", SEARCH.replace("\\\\n", "\\n"), str(tmp_path), *words], stdout=said, stderr=said
            )

    def fail(*bad, code=1):
        (tmp_path / "bad").write_text(" ".join(bad))
        (tmp_path / "code").write_text(str(code))

    def plain(_, member, why=""):
        status = "failed" if why else "finished"
        return Outcome(name=member.name, seed=member.seed, budget=member.budget, settings={}, status=status, why=why)

    fail()
    monkeypatch.setattr(sweep, "_start_lathe", start)
    monkeypatch.setattr(sweep, "_outcome", plain)
    return fail, lambda: (tmp_path / "order").read_text().splitlines()


def run(found, tmp_path, jobs):
    sweep.begin(found, tmp_path / "s")
    return [(row.name, row.status) for row in sweep.run(found, tmp_path / "s", jobs)]


def test_the_others_start_from_what_the_first_run_of_their_seed_trained(searches, tmp_path):
    _, noted = searches
    found = sweep.plan(PasSettings, (), BUDGETS, 2, {"beta": ["1", "2"]})
    rows = run(found, tmp_path, 2)
    assert sorted(rows) == sorted((member.name, "finished") for member in found.members)
    starts = [line for line in noted() if line.startswith("start")]
    leaders = {f"start {member.leader}" for member in found.members}
    assert {line for line in starts if not line.endswith(" ")} == leaders
    active = most = 0
    for line in noted():
        active += 1 if line.startswith("start") else -1
        most = max(most, active)
    assert most == 2
    assert noted()[:2] == [
        f"start {found.members[0].name}",
        f"end {found.members[0].name}",
    ]  # it tells whether all is well


def test_a_search_that_fails_is_a_row_and_is_tried_again(searches, tmp_path):
    fail, noted = searches
    found = sweep.plan(PasSettings, (), BUDGETS, 2, {})
    fail(found.members[0].name)
    assert run(found, tmp_path, 1)[0] == (found.members[0].name, "failed")
    starts = len([line for line in noted() if line.startswith("start")])
    assert starts == 4
    fail()
    rows = run(found, tmp_path, 1)
    assert {status for _, status in rows} == {"finished"}
    assert len([line for line in noted() if line.startswith("start")]) == starts + 1


def test_what_the_first_search_refuses_is_the_sweeps_own_error(searches, tmp_path):
    fail, _ = searches
    found = sweep.plan(PasSettings, (), BUDGETS, 1, {})
    fail(found.members[0].name, code=2)
    with pytest.raises(SearchError, match="ended with exit code 2"):
        run(found, tmp_path, 2)
    assert not (tmp_path / "s").exists()
    with pytest.raises(SearchError, match=r"s is not a sweep: it has no sweep.json; give the --out of `lathe sweep`"):
        sweep.read(tmp_path / "s")


class Nodes:
    """A cluster whose tasks end in the order in which they were submitted, each with the code that its name has."""

    def __init__(self, **codes) -> None:
        self.codes, self.after = codes, {}

    def submit(self, name, task, out, directory, member, *, needs, after):
        self.after[name], self.needs = after, needs
        (out / sweep.LOGS / f"{name}.log").write_text("working\nlathe: no room\n")
        return name

    def ended(self, tasks):
        return [(name, self.codes.get(f"seed{name[-1]}", 0), "") for name in tasks]


def test_on_a_cluster_a_run_is_a_task_behind_its_leader(searches, tmp_path):
    found, nodes = sweep.plan(PasSettings, (), BUDGETS, 2, {}), Nodes(seed1=1)
    sweep.begin(found, tmp_path / "s")
    rows = [(row.name, row.status, row.why) for row in sweep.run_on(nodes, found, tmp_path / "s", {"GPU": 0.5})]
    assert sorted(rows) == sorted(
        (member.name, "failed", "no room") if member.seed else (member.name, "finished", "") for member in found.members
    )
    assert nodes.after == {
        member.name: None if member.leader == member.name else member.leader for member in found.members
    }
    assert nodes.needs == {"GPU": 0.5}


def test_what_every_search_on_a_cluster_refuses_is_the_sweeps_own_error(searches, tmp_path):
    found = sweep.plan(PasSettings, (), BUDGETS, 1, {})
    sweep.begin(found, tmp_path / "s")
    with pytest.raises(SearchError, match="^no room$"):
        list(sweep.run_on(Nodes(seed0=2), found, tmp_path / "s", {}))
    assert not (tmp_path / "s").exists()


def outcome(name, accuracy, us, *, measured=True, loss=None, **settings):
    taken = (
        {"measured_us": us, "low_us": us - 1, "high_us": us + 1}
        if measured
        else {"predicted": Latency(us=us, low_us=us - 2, high_us=us + 2, source="measured")}
    )
    return Outcome(
        name=name,
        seed=0,
        budget="b",
        settings=settings,
        status="finished",
        metric=ACCURACY,
        score=accuracy,
        search_loss=loss,
        **taken,
    )


def judged(monkeypatch, rows):
    found = sweep._with_verdicts(rows)
    monkeypatch.setattr(sweep, "outcomes", lambda _: found)
    return {row.name: (row.preferred, row.front) for row in found}


def test_the_front_is_what_nothing_is_faster_and_better_than(monkeypatch):
    rows = [
        outcome("fast", 0.7, 10),
        outcome("slow", 0.9, 30),
        outcome("beaten", 0.65, 20),
        outcome("predicted", 0.5, 40, measured=False),
    ]
    assert [name for name, (_, front) in judged(monkeypatch, rows).items() if front] == ["fast", "slow", "predicted"]
    failed = Outcome(name="failed", seed=0, budget="b", settings={}, status="failed", why="x")
    assert judged(monkeypatch, [failed]) == {"failed": (True, False)}


def test_of_each_alpha_the_lambda_with_the_lowest_search_loss_is_preferred(monkeypatch):
    rows = [
        outcome("a", 0.9, 10, loss=2.0, alpha="1", lam="0.4"),
        outcome("b", 0.8, 10, loss=1.5, alpha="1", lam="0.85"),
        outcome("c", 0.7, 10, loss=3.0, alpha="2", lam="0.4"),
    ]
    assert judged(monkeypatch, rows) == {"a": (False, False), "b": (True, True), "c": (True, False)}
    assert sweep.best(Path(), 20.0).name == "b"


def test_the_best_is_within_the_budget_by_the_upper_end(monkeypatch):
    judged(monkeypatch, [outcome("small", 0.7, 10), outcome("large", 0.9, 30)])
    assert sweep.best(Path(), 31.0).name == "large"
    assert sweep.best(Path(), 30.5).name == "small"
    with pytest.raises(SearchError, match="is within 0.01 ms: the fastest, small, takes up to 0.011 ms"):
        sweep.best(Path(), 10.0)


@pytest.fixture
def kept(tmp_path):
    """A sweep of two searches: a kept one with its bundle, and one that is not there."""
    found = sweep.plan(PasSettings, (), BUDGETS, 1, {"beta": ["1"]})
    out = tmp_path / "kept"
    sweep.begin(found, out)
    shutil.copytree(FORMATS / "run-2", out / sweep.RUNS / found.members[0].name)
    shutil.copytree(FORMATS / "bundle-2", out / sweep.BUNDLES / found.members[0].name)
    return out


def test_a_row_has_what_was_found_and_what_was_measured(kept):
    first, second = sweep.outcomes(kept)
    result = json.loads((FORMATS / "run-2" / "result.json").read_text())
    measured = json.loads((FORMATS / "bundle-2" / "manifest.json").read_text())["shipped"]["measured"]
    assert (first.status, first.score, first.macs) == (
        "finished",
        result["shipped"]["accuracy"],
        result["shipped"]["macs"],
    )
    assert (first.measured_us, first.low_us, first.high_us) == tuple(
        measured[name] for name in ("median_us", "low_us", "high_us")
    )
    assert (second.status, second.score, second.front) == ("unfinished", None, False)


def test_the_page_links_to_those_of_its_runs_and_the_table_is_written_beside(kept):
    report.render(kept, kept.with_suffix(".html"))
    name = sweep.read(kept).members[0].name
    text = kept.with_suffix(".html").read_text()
    assert f'href="kept/runs/{name.replace("=", "%3D")}.html"' in text
    assert (kept / sweep.RUNS / f"{name}.html").exists()
    assert "1 of 2 searches finished; networks measured: 1; on the Pareto front: 1." in text
    rows = msgspec.json.decode((kept / sweep.JSON).read_bytes(), type=list[Outcome])
    assert rows == sweep.outcomes(kept)
    table = list(csv.DictReader((kept / sweep.CSV).read_text().splitlines()))
    assert [row["status"] for row in table] == ["finished", "unfinished"]
    assert float(table[0]["measured_us"]) == rows[0].measured_us


def test_what_the_networks_take_on_further_devices_is_a_column_each(kept):
    shutil.rmtree(kept / sweep.RUNS / "0.5ms_seed=0")
    shutil.copytree(FORMATS / "run-4", kept / sweep.RUNS / "0.5ms_seed=0")
    report.render(kept, kept.with_suffix(".html"))
    assert "predicted on second, 1 thread, with made-up 1, budget 90.0 µs" in kept.with_suffix(".html").read_text()
    (device,) = sweep.outcomes(kept)[0].also
    table = list(csv.DictReader((kept / sweep.CSV).read_text().splitlines()))
    assert [row[f"predicted_us on {device.name}"] for row in table] == [str(device.predicted.us), ""]
