"""Runs of every version are read: kept directories of finished ones, the first with its weights."""

import shutil
from pathlib import Path

import pytest
import torch

from search import SearchError, data, finished, record, report, spaces
from search.record import Usage, open_run, read_history, read_result, read_run, read_usage

KEPT = Path(__file__).parent


@pytest.mark.parametrize(
    ("name", "method", "first"),
    [
        ("run-1", "pas", ("a", 8, 16)),
        ("run-1-traced", "slimming", ("0.conv", 16, 16)),
        ("run-2", "pas", ("a", 16, 32)),
        ("run-3", "pas", ("0", 16, 16)),
        ("run-4", "pas", ("block0", 8, 16)),
    ],
)
def test_a_kept_run_is_read_and_has_a_page(name, method, first, tmp_path):
    run = read_run(KEPT / name)
    assert (run.schema, run.method) == ("run/4", method)
    assert run.settings["seed"] == 0
    result, history = read_result(KEPT / name, run), read_history(KEPT / name, run)
    group, kept, full = first
    assert (result.shipped.choice.widths[group], result.unpruned.choice.widths[group]) == (kept, full)
    assert [done.phase for done in history] == ["pretrain", "search", "search", "finetune"]
    assert history[-1].choice == result.shipped.choice
    assert (history[1].figures.get("beta", 0) > 0) == (method == "pas")
    timed = result.shipped.predicted is not None
    assert len(report.render(KEPT / name, tmp_path / "page.html")) == 5 + timed + len(run.also)


@pytest.mark.parametrize("name", ["run-1", "run-1-traced", "run-2", "run-3", "run-4"])
def test_the_space_of_a_kept_run_comes_back(name):
    run = read_run(KEPT / name)
    space = spaces.from_record(run.space)
    assert space.largest() == read_result(KEPT / name, run).unpruned.choice


def test_a_run_for_two_devices_says_what_both_take():
    (budget,), (device,) = read_run(KEPT / "run-4").also, finished.load(KEPT / "run-4").architecture.also
    assert (
        (budget.budget_us, budget.table_sha256)
        == (device.budget_us, device.table_sha256)
        == (90.0, device.table_sha256)
    )
    assert device.name == "second, 1 thread, with made-up 1"
    assert device.predicted.high_us < 90.0 < device.largest.low_us


@pytest.mark.parametrize(("name", "metric", "error"), [("run-2", "accuracy", None), ("run-3", "mIoU", True)])
def test_accuracies_of_the_second_version_are_scores(name, metric, error):
    run = read_run(KEPT / name)
    result, history = read_result(KEPT / name, run), read_history(KEPT / name, run)
    share = result.shipped.score
    assert (run.metric.name, result.metric, history[-1].score) == (metric, run.metric, share)
    assert all((done.score_error is not None) == (error is not None) for done in history)
    assert error or result.shipped.score_error == pytest.approx((share * (1 - share) / result.held_out_samples) ** 0.5)


def test_a_kept_run_can_be_exported():
    """Its trained networks do what its result says; a few images may be rounded to another class elsewhere."""
    found, digits = finished.load(KEPT / "run-1"), data.load("digits", 8)
    images = digits.normalise(digits.held_out.images)
    for network, result in ((found.network(), found.result.shipped), (found.unpruned(), found.result.unpruned)):
        with torch.no_grad():
            right = (network.eval()(images).argmax(1) == digits.held_out.labels).float().mean().item()
        assert right == pytest.approx(result.score, abs=0.01)
    assert found.result.shipped.choice != found.result.unpruned.choice


def test_a_run_of_an_earlier_version_cannot_go_on(tmp_path):
    shutil.copytree(KEPT / "run-1", tmp_path / "run")
    with pytest.raises(
        SearchError,
        match=r"holds a run of an earlier version \(run/1\), which can be exported and reported, not continued",
    ):
        open_run(tmp_path / "run", read_run(KEPT / "run-1"))


def test_the_history_of_another_version_is_refused(tmp_path):
    shutil.copytree(KEPT / "run-2", tmp_path / "run")
    (tmp_path / "run" / record.HISTORY).write_text('{"schema": "history/9"}\n')
    with pytest.raises(SearchError, match="has the schema 'history/9', known is history/3 or history/2"):
        read_history(tmp_path / "run", read_run(tmp_path / "run"))


def test_kept_usage_is_read(tmp_path):
    shutil.copy(KEPT / "usage-1.jsonl", tmp_path / record.USAGE)
    first, _ = read_usage(tmp_path)
    assert first == Usage(phase="warmup", epoch=1, steps=22, seconds=17.82291404100033, saved_bytes=229144672)
    assert read_usage(KEPT / "run-2") == ()


def test_an_empty_history_is_damaged(tmp_path):
    shutil.copytree(KEPT / "run-2", tmp_path / "run")
    (tmp_path / "run" / record.HISTORY).write_bytes(b"")
    with pytest.raises(SearchError, match=r"history.jsonl is empty: run `lathe search` again"):
        read_history(tmp_path / "run", read_run(tmp_path / "run"))
