import inspect
import json

import pytest
import torch

from latency.files import sha256
from lathe import cli
from search import SearchError, finished, own_task, record, report

from . import test_task

FILE = f"""import torch
from torch import nn
from torch.utils.data import TensorDataset
import search
from search import Metric

{inspect.getsource(test_task.Halves)}
{inspect.getsource(test_task.network)}
def no_task():
    return 3

def broken():
    return undefined
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "halves.py"
    path.write_text(FILE)
    return path


def test_a_task_has_the_name_and_the_hash_of_its_file(file, monkeypatch):
    monkeypatch.chdir(file.parent)
    task = own_task.load("halves.py:Halves")
    assert (task.name, task.sha256()) == (f"{file}:Halves", sha256(file))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "halves.py",
            r"^--task 'halves.py' is not FILE.py:FUNCTION, a function without arguments that returns a search.Task$",
        ),
        ("none.py:make", r"^none.py does not exist: give FILE.py:FUNCTION"),
        ("halves.py:nothing", r"^halves.py has no function 'nothing': it has "),
        ("halves.py:no_task", r"^halves.py:no_task returns int, wanted a search.Task$"),
        ("halves.py:broken", r"^halves.py:broken cannot be run: NameError: name 'undefined' is not defined$"),
    ],
)
def test_what_makes_no_task_is_refused(file, monkeypatch, name, message):
    monkeypatch.chdir(file.parent)
    with pytest.raises(SearchError, match=message):
        own_task.load(name)


def test_a_file_that_was_changed_is_refused(file):
    with pytest.raises(
        SearchError,
        match="halves.py was changed after the search: its sha256 was aaaaaaaaaaaaaaaa, found .*; restore it$",
    ):
        own_task.load(f"{file}:Halves", "a" * 64)


def run(*words):
    return cli.parse(list(words)).run()


def test_a_search_for_a_task_of_ones_own_keeps_its_metric(file, tmp_path, capsys):
    few = [
        "--pretrain-epochs",
        "1",
        "--search-epochs",
        "1",
        "--finetune-epochs",
        "1",
        "--batch",
        "4",
        "--train-precision",
        "fp32",
    ]
    out = tmp_path / "run"
    given = [
        "--module",
        f"{file}:network",
        "--task",
        f"{file}:Halves",
        "--input",
        "3x8x8",
        "--budget-fraction",
        "0.6",
        "--out",
        str(out),
    ]
    assert run("search", "uniform", *given, *few) == 0
    assert "mIoU" in capsys.readouterr().out
    described = json.loads((out / "run.json").read_text())
    assert (described["data"], described["data_sha256"], described["metric"]["name"]) == (
        f"{file}:Halves",
        sha256(file),
        "mIoU",
    )
    found = finished.load(out)
    assert (found.result.metric.name, found.result.held_out_samples, found.architecture.preprocessing) == (
        "mIoU",
        5,
        None,
    )
    task = own_task.load(f"{file}:Halves")
    images, masks = task.held_out_batch(torch.arange(5))
    with torch.no_grad():
        value, error = task.judged(task.statistics(found.network().eval()(images), masks))
    assert (found.result.shipped.score, found.result.shipped.score_error) == (
        pytest.approx(value),
        pytest.approx(error),
    )
    assert record.read_history(out, found.run)[-1].score == pytest.approx(value)
    assert "train_mIoU,mIoU" in (out / "history.csv").read_text()
    rows = {row.name: row.shipped for row in report.render(out, tmp_path / "page.html")}
    assert rows["mIoU"] == f"{value:.2%}"


def test_a_task_brings_its_own_samples(file, tmp_path):
    with pytest.raises(Exception, match="--task .* brings its own samples: leave out --data folder:x"):
        run(
            "search",
            "pas",
            "--module",
            f"{file}:network",
            "--task",
            f"{file}:Halves",
            "--data",
            "folder:x",
            "--input",
            "3x8x8",
            "--out",
            str(tmp_path / "run"),
        )
