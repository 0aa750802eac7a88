"""Profile, search, export, verify and report as a user runs them."""

import json
import shutil

import pytest

from integration.conftest import result_of, run_lathe


def test_table_says_how_well_it_predicts(table):
    shown = result_of(run_lathe("table", "show", table, "--json"))
    assert shown["rows"] == {"block": 522, "network": 10, "overhead": 1, "sentinel": 1}
    assert shown["header"]["device"]["threads"] == 1
    assert shown["predictor"]["networks"] == 10
    assert 0 < shown["predictor"]["mean_absolute_error"] < 0.01


def test_search_meets_the_budget_by_the_table(run):
    result = json.loads((run / "result.json").read_text())
    assert result["shipped"]["predicted"]["high_us"] <= result["budget_us"]
    assert result["budget_us"] < result["unpruned"]["predicted"]["us"]
    assert result["shipped"]["macs"] < result["unpruned"]["macs"]
    assert result["shipped"]["score"] > 0.3  # six epochs; guessing gets 0.1


def test_the_bundle_agrees_with_the_trained_network_at_every_step(bundle):
    manifest = json.loads((bundle / "manifest.json").read_text())
    steps = {(step["name"], step["precision"]): step for step in manifest["validation"]}
    assert [step["verdict"] for step in steps.values() if step["verdict"] not in ("passed", "reference")] == []
    assert steps["squeezed", "fp64"]["first"]["output"]["relative"] <= 1e-10
    assert steps["squeezed", "fp32"]["first"]["output"]["relative"] <= 1e-5
    assert steps["onnx", "fp32"]["first"]["output"]["relative"] <= 1e-5
    assert manifest["samples_from"] == "given"
    assert manifest["shipped"]["params"] < manifest["unpruned"]["params"]
    assert all(manifest[name]["measured"]["low_us"] > 0 for name in ("shipped", "unpruned"))
    assert manifest["budget_verdict"] == "met"


def test_verify_finds_a_changed_file(bundle, tmp_path):
    before = result_of(run_lathe("verify", bundle, "--json"))["verification"]["checks"]
    assert [check for check in before if check["verdict"] == "failed"] == []
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    content = bytearray((copy / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (copy / "model.onnx").write_bytes(content)
    done = run_lathe("verify", copy, "--json")
    assert done.returncode == 1
    failed = {
        check["name"] for check in json.loads(done.stdout)["verification"]["checks"] if check["verdict"] == "failed"
    }
    assert "model.onnx" in failed


@pytest.mark.parametrize("source", ["run", "bundle"])
def test_report_is_one_file(source, request, tmp_path):
    page = tmp_path / "report.html"
    done = run_lathe("report", request.getfixturevalue(source), "--out", page, "--json")
    assert done.returncode == 0, done.stderr
    html = page.read_text()
    assert html.count("<svg") >= 2
    assert 'src="http' not in html
    assert 'href="http' not in html
    names = [row["name"] for row in json.loads(done.stdout)["table"]]
    assert {"accuracy", "parameters", "MACs", "predicted latency"} <= set(names)


def test_an_fp16_tensorrt_engine_is_built_without_a_gpu_and_never_passed(run, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="the extra tensorrt-rtx is not installed")
    made = result_of(
        run_lathe(
            "export", run, "--target", "tensorrt-rtx", "--protocol", "fast", "--out", tmp_path / "bundle", "--json"
        )
    )
    manifest = made["manifest"]
    assert (tmp_path / "bundle" / "model.engine").stat().st_size > 10_000
    engine = next(step for step in manifest["validation"] if step["name"] == "engine")
    if manifest["shipped"]["measured"] is None:  # no GPU here
        assert engine["verdict"] == "not run"
        assert engine["reason"]
        assert manifest["budget_verdict"] == "not run"
    fp16 = next(step for step in manifest["validation"] if step["name"] == "onnx-fp16")
    assert fp16["verdict"] == "passed"
    assert run_lathe("verify", tmp_path / "bundle").returncode == 0


def test_a_budget_of_another_device_is_not_judged(run, tmp_path):
    made = result_of(
        run_lathe("export", run, "--threads", "2", "--protocol", "fast", "--out", tmp_path / "bundle", "--json")
    )["manifest"]
    assert made["budget_verdict"] == "no budget"
    assert made["shipped"]["predicted"] is None
    assert made["shipped"]["measured"]["median_us"] > 0
    assert "give --budget-ms" in made["provenance"]["no budget"]


def test_an_onnx_file_ships_alone(bundle, tmp_path):
    made = result_of(
        run_lathe("export", bundle / "model.onnx", "--protocol", "fast", "--out", tmp_path / "other", "--json")
    )
    assert made["failures"] == []
    assert made["manifest"]["budget_verdict"] == "no budget"


def test_the_same_export_again_replaces_the_bundle(run, bundle):
    made = result_of(
        run_lathe("export", run, "--target", "onnxruntime", "--protocol", "fast", "--out", bundle, "--json")
    )
    assert (bundle / "manifest.json").exists()
    assert made["manifest"]["target"] == "onnxruntime"


def test_a_table_is_checked_compared_and_joined(table, tmp_path):
    assert result_of(run_lathe("table", "check", table, "--json"))["holes"] == 0
    (compared,) = result_of(run_lathe("table", "diff", table, table, "--json"))["diffs"]
    assert compared["overall"]["verdict"] == "SAME"
    assert {row["verdict"] for row in compared["rows"]} == {"SAME"}
    assert compared["differences"] == []
    assert (
        result_of(run_lathe("table", "merge", table, table, "--out", tmp_path / "both.latency.jsonl", "--json"))[
            "rows"
        ]["block"]
        == 522
    )
    assert run_lathe("table", "merge", table, "--out", table).returncode == 2


def test_a_recorded_table_is_a_device(table, tmp_path):
    out = tmp_path / "again.latency.jsonl"
    done = run_lathe(
        "profile",
        "repvgg-mini",
        "--networks",
        "8",
        "--protocol",
        "fast",
        "--backend",
        f"replay:{table}",
        "--out",
        out,
        "--json",
    )
    assert done.returncode == 0, done.stderr
    again, recorded = result_of(done), result_of(run_lathe("table", "show", table, "--json"))
    assert again["header"]["device"] == recorded["header"]["device"]
    assert again["header"]["created"] == recorded["header"]["created"]
    assert again["origin"].startswith("replayed from a recording of ")
    assert recorded["sha256"][:16] in again["origin"]
    assert recorded["origin"] == ""
    problems = [found["problem"] for found in result_of(run_lathe("table", "check", out, "--json"))["findings"]]
    assert problems[0] == "not measured"
    assert run_lathe("table", "merge", table, out, "--out", tmp_path / "both.latency.jsonl").returncode == 2
