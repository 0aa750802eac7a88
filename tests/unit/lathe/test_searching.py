from pathlib import Path

import pytest

from latency import LatencyError
from latency.errors import CoverageError
from lathe import cli
from lathe.predicting import describe_cell
from lathe.profiling import profile
from lathe.searching import search, sweep
from search import record, spaces
from unit.lathe.conftest import OTHER_SIZES


@pytest.mark.parametrize("through", ["simulated:seed=1", "replay:table"])
def test_a_table_that_was_not_measured_is_of_no_device(tmp_path, monkeypatch, through):
    monkeypatch.chdir(tmp_path)
    for backend, out in (("simulated:seed=1", "table"), (through, "t")):
        words = f"profile repvgg-mini --backend {backend} --protocol fast --shard 1/500 --networks 0 --out {out}"
        list(profile(cli.parse(words.split())))
    command = cli.parse(
        ["search", "pas", "--space", "repvgg-mini", "--table", "t", "--budget-ms", "1", "--this-device", "--out", "run"]
    )
    with pytest.raises(
        LatencyError, match=r"table t has origin 'simulated.*', wanted 'measured': give one .* or omit --this-device$"
    ):
        search(command, lambda _: None)


@pytest.mark.usefixtures("other_sizes")
def test_a_search_is_of_the_sizes_that_it_is_given():
    words = f"search vp-darts --space nasbench201-small --table t --budget-fraction 0.7 --out run {OTHER_SIZES}"
    next(search(cli.parse(words.split()), lambda _: None))
    assert record.read_run(Path("run")).space == spaces.get("nasbench201-small", channels=4, cells_per_stage=2).record()


@pytest.mark.usefixtures("other_sizes")
def test_what_a_table_lacks_is_measured_by_the_command_that_is_named():
    words = "search vp-darts --space nasbench201-small --table t --budget-fraction 0.7 --out run --channels 8 --cells 3"
    with pytest.raises(
        CoverageError,
        match=r"measure it with `lathe profile nasbench201-small --classes 10 --channels 8 --cells 3 .* --protocol fast --out t`$",
    ):
        search(cli.parse(words.split()), lambda _: None)
    words = "space nasbench201 --table t --cells 3 --arch"
    arch = "|none~0|+|none~0|none~1|+|nor_conv_3x3~0|none~1|none~2|"
    with pytest.raises(
        CoverageError,
        match=r"t is of the space nasbench201-small, not of nasbench201: measure it with `lathe profile nasbench201 .*--cells 3",
    ):
        describe_cell(cli.parse([*words.split(), arch]), arch, pytest.fail)


TABLE = max((Path(__file__).parents[3] / "profiles").rglob("repvgg-mini.fp32.latency.jsonl"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            f"--table {TABLE} --also b.jsonl",
            r"--also 'b\.jsonl' is not TABLE:MILLISECONDS: give it as --also other\.latency\.jsonl:1\.2",
        ),
        (f"--table {TABLE} --also b.jsonl:fast", r"--also 'b\.jsonl:fast' is not TABLE:MILLISECONDS"),
        (f"--table {TABLE} --also b.jsonl:nan", r"--also b\.jsonl must be from 1e-06 to 1e\+07, found nan"),
        (f"--table {TABLE} --also {TABLE}:1", "that table is given twice: give each device once"),
        (
            "--also b.jsonl:1",
            r"--also b\.jsonl:1 is of a further device: give --table, the first one's, and its budget too",
        ),
    ],
)
def test_further_devices_are_tables_with_budgets(words, message, tmp_path):
    command = cli.parse(f"search pas --space repvgg-mini --budget-ms 1 --out {tmp_path / 'run'} {words}".split())
    with pytest.raises(LatencyError, match=message):
        search(command, lambda _: None)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--set beta", "--set 'beta' is not NAME=VALUE"),
        ("--set beta=", "--set 'beta=' is not NAME=VALUE"),
        ("--set lr=1 --set lr=2", "--set lr is given twice"),
        ("--set lr=-1,1", "--lr must be above 0 and finite, found -1.0"),
        ("--set gamma=1", "--set gamma: pas has no such setting"),
        ("--target cuda", "target 'cuda' is unknown"),
        ("--engine ray --jobs 2", "--jobs 2 is of --engine local"),
        ("--address here:1", "--address here:1 is of a Ray cluster: give --engine ray too"),
        ("--gpus-per-run 1", "--gpus-per-run 1.0 is of a Ray cluster"),
    ],
)
def test_a_sweep_is_refused_before_anything_is_searched(flags, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = cli.parse(f"sweep pas --space repvgg-mini --budget-fraction 0.5 --out sweep {flags}".split())
    with pytest.raises(ValueError, match=message):
        next(sweep(command))
    assert not Path("sweep").exists()
