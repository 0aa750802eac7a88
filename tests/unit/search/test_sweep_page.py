from deploy.metric import ACCURACY, Metric
from search import sweep, sweep_page
from search.methods.settings import PasSettings
from search.sweep import Outcome


def outcome(name, **changed):
    values = {"seed": 0, "budget": "0.5 ms", "settings": {}, "status": "finished", "metric": ACCURACY}
    return Outcome(name=name, **(values | changed))


def page(tmp_path, *rows):
    sweep.begin(sweep.plan(PasSettings, (), [("0.5 ms", ())], 1, {}), tmp_path / "sweep")
    return sweep_page.page_of(tmp_path / "sweep", rows, tmp_path / "sweep.html")


def test_the_front_comes_first_and_finished_runs_have_links(tmp_path):
    best = outcome("best", score=0.9, score_error=0.01, measured_us=400.0, low_us=390.0, high_us=410.0, front=True)
    section = page(tmp_path, outcome("failed", status="failed", why="out of memory"), best).body[-1]
    first, last = section.lines
    assert (first[0].text, first[0].link) == ("best", "sweep/runs/best.html")
    assert "90.00% ± 2.00%" in first
    assert first[-1] == "on the front"
    assert last[0].link == ""
    assert last[-1].text == "out of memory"


def test_search_losses_have_a_column_only_if_the_method_records_them(tmp_path):
    assert "search loss" not in page(tmp_path, outcome("a", score=0.5)).body[-1].columns
    section = page(tmp_path, outcome("a", score=0.5, search_loss=1.23456)).body[-1]
    assert "search loss" in section.columns
    assert "1.235" in section.lines[0]


def test_the_headline_counts_runs_and_the_front(tmp_path):
    headline = page(tmp_path, outcome("a", score=0.5, front=True), outcome("b", status="unfinished")).headline
    assert headline == "1 of 2 searches finished; networks measured: 0; on the Pareto front: 1."


def test_runs_without_a_score_leave_their_cells_empty(tmp_path):
    line = page(tmp_path, outcome("b", status="unfinished")).body[-1].lines[0]
    assert line[3:5] == ["", ""]


def test_the_metric_is_that_of_the_first_run_that_has_one():
    metric = Metric(name="error")
    assert sweep_page.metric_of([outcome("a", metric=None), outcome("b", metric=metric)]) is metric
    assert sweep_page.metric_of([]) is ACCURACY
