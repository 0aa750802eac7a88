"""The README's sweep, with few epochs and one seed, is searched, judged and drawn."""

import json

from integration.conftest import documented, result_of, run_lathe


def test_the_readmes_sweep_ends_in_a_front_and_goes_on(table, few_digits, tmp_path):
    words = [str(table) if word == table.name else word for word in documented("sweep", "pas")]
    words[words.index("--seeds") + 1] = "1"
    words[words.index("--set") + 1] = "beta=0.3"
    epochs = [word for phase in ("pretrain", "search", "finetune") for word in ("--set", f"{phase}-epochs=1")]
    command = [*words, *epochs, "--data", few_digits, "--no-measure", "--json"]
    rows = result_of(run_lathe(*command, cwd=tmp_path))["runs"]
    assert [(row["budget"], row["status"]) for row in rows] == [("0.5x", "finished"), ("0.7x", "finished")]
    assert rows[0]["predicted"]["us"] < rows[1]["predicted"]["us"]
    assert any(row["front"] for row in rows)
    first, second = (tmp_path / "sweep" / "runs" / row["name"] for row in rows)
    assert (first / "run.json").exists()
    assert json.loads((second / "run.json").read_text())["baseline_sha256"]
    before = (first / "result.json").stat().st_mtime_ns
    assert result_of(run_lathe(*command, cwd=tmp_path))["runs"] == rows
    assert (first / "result.json").stat().st_mtime_ns == before

    best = run_lathe(
        "sweep", "best", "sweep", "--budget-ms", rows[0]["predicted"]["high_us"] / 1000 + 0.001, "--json", cwd=tmp_path
    )
    assert result_of(best)["run"] == f"sweep/runs/{rows[0]['name']}"
    done = run_lathe(*documented("report", "sweep"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert rows[1]["name"] in (tmp_path / "sweep.html").read_text()
