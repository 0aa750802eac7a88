import csv
import json
import re
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from latency import LatencyTable, Row
from latency.check import Finding
from latency.diff import diff
from latency.listing import families
from latency.measure import summarize
from latency.protocol import FAST
from lathe import table_views
from lathe.tables import Checked, Compared

KEPT = Path(__file__).parents[2] / "formats" / "latency-table-2.latency.jsonl"
KEPT_3 = KEPT.with_name("latency-table-3.latency.jsonl")


@pytest.mark.parametrize("as_json", [False, True])
def test_a_table_says_what_is_transferred_in_it_and_how_well(as_json, capsys, monkeypatch):
    monkeypatch.setattr(table_views, "OUT", Console(width=400))
    table_views.table(LatencyTable.load(KEPT_3), KEPT_3, as_json=as_json)
    said = capsys.readouterr().out
    if as_json:
        assert json.loads(said)["status"] == {
            "ok": 5,
            "unstable": 0,
            "transferred": 1,
            "build_failed": 0,
            "run_failed": 0,
        }
        assert json.loads(said)["header"]["like"][0]["device"]["name"] == "Example CPU 2000"
    else:
        assert "1 of 5 blocks are transferred from Example CPU 2000" in said
        assert "5, 1 transferred" in said


def table_of(*rows, **fields):
    header = LatencyTable.load(KEPT).header
    return LatencyTable(msgspec.structs.replace(header, **fields), rows, path="t.latency.jsonl")


def timed(key, samples_us):
    return Row(kind="block", key=key, **msgspec.structs.asdict(summarize(samples_us, FAST)))


def test_a_table_of_no_measurement_says_so_and_percentiles_are_shown_where_they_are_stated(capsys):
    many = timed("f[c=1]", [10.0] * 600 + [12.0] * 50 + [20.0] * 50)
    replayed = table_of(many, timed("f[c=2]", [10.0] * 20))
    as_measured = table_of(many, recording=None)
    table_views.table(replayed, Path("t"), as_json=False)
    said = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "not measured replayed from a recording of 2026-01-31, sha256 0123456789abcdef" in said
    assert "p90 +20.0% from the median in the middle row, +20.0% at most (1 rows)" in said
    assert "p99 +100.0% from the median" in said
    table_views.table(as_measured, Path("t"), as_json=False)
    assert "replayed" not in capsys.readouterr().out
    table_views.table(replayed, Path("t"), as_json=True)
    shown = json.loads(capsys.readouterr().out)
    assert shown["origin"].startswith("replayed from a recording")
    assert [(row["p90_us"], row["p99_us"]) for row in shown["measured"]] == [(12.0, 20.0), (None, None)]
    table_views.table(table_of(timed("f[c=2]", [10.0] * 20)), Path("t"), as_json=False)
    assert "not stated: no row has enough samples" in capsys.readouterr().out


@pytest.mark.parametrize("as_json", [False, True])
def test_the_exit_code_of_a_comparison_says_what_it_found(as_json, capsys):
    one, other = (timed("f(h=1,w=1)[c_in=1]", [us] * 30) for us in (10.0, 13.0))
    first, second = table_of(one), table_of(other, precision="fp16")
    assert table_views.diff(Compared(tables=[first, first], diffs=[diff(first, first)]), as_json=as_json) == 0
    assert (
        table_views.diff(
            Compared(tables=[first, first, second], diffs=[diff(first, first), diff(first, second)]), as_json=as_json
        )
        == 1
    )
    said = capsys.readouterr().out
    if as_json:
        assert '"field": "precision"' in said
        return
    lines = [re.sub(r"\s+", " ", line).strip() for line in said.splitlines()]
    assert "precision differs fp32 fp32 fp16" in lines
    assert lines.count("f @1x1 SLOWER 1.300 1.300 to 1.300") == 1  # the family
    assert "f @1x1 1 SLOWER 1.300 1.300 to 1.300" in lines  # its row
    assert "SAME is within 3% for a row or a family, and within 1% for all" in lines


def test_findings_are_told_by_problem_and_family_with_what_to_do(capsys):
    found = [Finding(problem="missing", key=f"f(h=1,w=1)[c_in={width}]", words="not in the table") for width in (8, 16)]
    checked = Checked(findings=[*found, Finding(problem="torn", words="line 3")], again="AGAIN", new="NEW")
    assert table_views.findings(checked, as_json=False) == 1
    assert capsys.readouterr().out.splitlines() == [
        "missing (2)",
        "  f @1x1 [8, 16]: not in the table",
        "  to do: `AGAIN` measures them",
        "torn (1)",
        "  line 3",
        "  to do: `AGAIN` measures the lost row again",
        "2 holes, 1 doubt",
    ]
    assert table_views.findings(checked, as_json=True) == 1
    said = json.loads(capsys.readouterr().out)
    assert (said["holes"], said["fixes"]["torn"]) == (2, "`AGAIN` measures the lost row again")


def test_rows_are_listed_in_widths_and_microseconds(capsys):
    rows = [timed("f(h=1,w=1)[c_in=16,c_out=2]", [12.0] * 20), timed("f(h=1,w=1)[c_in=8,c_out=2]", [10.0] * 20)]
    found = families(
        table_of(*rows, Row(kind="network", key="network-1", status="run_failed", error="no", blocks=("a", "b")))
    )
    table_views.rows(found, "text")
    lines = [re.sub(r"\s+", " ", line).strip() for line in capsys.readouterr().out.splitlines()]
    assert [line for line in lines if line[:1].isdigit()] == ["8 2 10.00 0.0%", "16 2 12.00 0.0%", "1 2 - - run_failed"]
    table_views.rows(found, "markdown")
    assert (
        "### f @1x1\n\n| c_in | c_out | µs | interval ± | status |\n| ---: | ---: | ---: | ---: | --- |\n| 8 | 2 | 10.00 | 0.0% |  |\n"
        in capsys.readouterr().out
    )
    table_views.rows(found, "csv")
    head, first, *_ = csv.reader(capsys.readouterr().out.splitlines())
    assert dict(zip(head, first, strict=True)) | {"p90_us": ""} == {
        "kind": "block",
        "family": "f(h=1,w=1)",
        "c_in": "8",
        "c_out": "2",
        "median_us": "10.0",
        "low_us": "10.0",
        "high_us": "10.0",
        "p90_us": "",
        "p99_us": "",
        "status": "ok",
        "key": "f(h=1,w=1)[c_in=8,c_out=2]",
    }
