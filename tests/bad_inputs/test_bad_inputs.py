"""A fixed sample of the table of bad inputs; `make bad-inputs` runs all of it."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from bad_inputs import artefacts
from bad_inputs.__main__ import Answer, report, sample, wrong
from bad_inputs.cases import VERIFY, Case, all_cases
from bad_inputs.forked import Outcome

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("artefacts")
    artefacts.make(directory)
    return directory


def test_a_sample_of_every_kind_is_answered_in_one_line(made):
    command = [sys.executable, "-P", "-m", "bad_inputs", "--sample", "100", "--artefacts", str(made)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert done.stdout.startswith("100 bad inputs of ")


def test_the_table_is_large_and_has_every_command_and_a_sample_has_every_kind(made):
    cases = all_cases(made)
    assert len(cases) >= 1000
    commands = {case.command.name for case in cases}
    assert commands >= {
        f"lathe {name}"
        for name in ["space", "bundle", "profile", "search", "export", "predict", "verify", "report", "paper"]
    }
    assert commands >= {f"lathe table {name}" for name in ("show", "check", "diff", "merge")} | {"latency profile"}
    kinds = Counter(case.kind for case in cases)
    chosen = sample(cases, 100, seed=0)
    assert chosen == sample(cases, 100, seed=0) != sample(cases, 100, seed=1)
    assert {case.kind for case in chosen} == kinds.keys()


CASE = Case("kind", "name", VERIFY, VERIFY.words, lambda here: None, "damaged")
RIGHT = Outcome(2, "", "lathe: it is damaged\n", (), 0.1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, ""),
        ({"code": 0}, "exit code 0, not 2"),
        ({"code": 1}, "exit code 1, not 2"),
        ({"code": 70}, "exit code 70, not 2"),
        ({"code": "hangs"}, "exit code hangs, not 2"),
        ({"stderr": "lathe: damaged\nlathe: twice\n"}, "2 lines on stderr"),
        ({"stderr": "Error: damaged\n"}, "1 lines on stderr"),
        ({"stderr": "lathe: it is bad\n"}, "its line does not match"),
        ({"stderr": "lathe: damaged: Traceback\n"}, "a traceback"),
        ({"stdout": "fine\n"}, "something on stdout"),
        ({"changed": ("new",)}, "changed new"),
    ],
)
def test_what_is_not_answered_right_is_found(change, said):
    fields = {
        "code": RIGHT.code,
        "stdout": RIGHT.stdout,
        "stderr": RIGHT.stderr,
        "changed": RIGHT.changed,
        "wall_s": 0.1,
    }
    problems = "; ".join(wrong(CASE, Outcome(**{**fields, **change})))
    assert said in problems
    assert bool(problems) == bool(change)


def test_a_report_counts_what_ran_and_names_what_is_not_right():
    answers = [Answer(CASE, 2, ()), Answer(CASE, 1, ()), Answer(CASE, 0, ("exit code 0, not 2",))]
    text = report(answers, 5, part=False)
    assert "5 cases, the whole table; 3 ran: the others are not known. 1 are not answered right." in text
    assert "| kind | 3 | 1 | 1 | 1 |\n| all | 3 | 1 | 1 | 1 |\n" in text
    assert text.endswith("\n- name: exit code 0, not 2\n")
    assert "3 cases, a part of the table; all ran." in report(answers, 3, part=True)
