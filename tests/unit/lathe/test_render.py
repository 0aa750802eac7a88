import io
import json
import re
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from msgspec import structs
from rich.console import Console

from deploy import load
from deploy.bundle import Bundle, NetworkSummary
from deploy.metric import ACCURACY
from deploy.validate import Agreement
from deploy.verify import Check, Verification
from latency import Latency, LatencyTable
from latency.coverage import Covered, Proof
from latency.measure import summarize
from latency.protocol import FAST
from lathe import render
from search import papers
from search.architecture import load_architecture
from search.papers import latencies
from search.papers.row import PaperRow as PaperRow
from search.record import Chosen, EpochDone, Finished, NetworkResult, Result, Started
from search.space import Choice

KEPT = Path(__file__).parents[2] / "formats" / "latency-table-2.latency.jsonl"


def row(ours):
    return PaperRow(table="Table 1", row="net", quantity="deployed params", paper="8.30", unit="M", ours=ours)


@pytest.mark.parametrize(("ours", "code"), [(8_309_384, 0), (8_320_000, 1)])
@pytest.mark.parametrize("as_json", [False, True])
def test_a_published_number_that_is_not_met_fails(ours, code, as_json, capsys):
    assert render.paper([row(ours)], as_json=as_json) == code
    said = capsys.readouterr().out
    if as_json:
        (found,) = json.loads(said)
        assert (found["paper"], found["ours"], found["verdict"]) == ("8.30", ours, "DIFFERS" if code else "SAME")
    else:
        assert f"{ours:,}" in said
        assert f"{1 - code} of 1 are SAME" in said


def test_several_bundles_and_their_checks_are_one_document(capsys):
    found = load(Path(__file__).parents[2] / "formats" / "bundle-1")
    assert render.bundles([lambda _: found, lambda _: found], as_json=True) == bool(found.manifest.failures)
    assert [one["bundle"] for one in json.loads(capsys.readouterr().out)] == [str(found.directory)] * 2
    failed = Verification(directory="b", checks=(Check(name="run.py", verdict="failed", detail="was changed"),))
    assert render.verifications([lambda _: Verification(directory="a", checks=()), lambda _: failed], as_json=True) == 1
    assert [one["failures"] for one in json.loads(capsys.readouterr().out)] == [0, 1]
    assert render.verifications([lambda _: failed], as_json=True) == 1
    assert json.loads(capsys.readouterr().out)["verification"]["directory"] == "b"


def test_a_step_says_how_far_it_is():
    """So that the time that it still takes is shown."""
    assert render._place("build for tensorrt: Building engine 3/8") == ("build for tensorrt: Building engine", 3, 8)
    assert render._place("fuse, squeeze and lower") == ("fuse, squeeze and lower", 0, None)
    assert render._place("build for a/b") == ("build for a/b", 0, None)
    assert render._made(lambda on_step: [on_step(step) for step in ("validate", "measure 1/5")]) == [None, None]


def test_published_latencies_stand_beside_measured_ones(capsys):
    table = LatencyTable.load(KEPT)
    published, throughput = (next(row for row in latencies.published() if row.unit == unit) for unit in ("ms", "FPS"))
    ours = Latency(us=528.0, low_us=500.0, high_us=600.0, source="predicted")
    rows = [
        latencies.ComparedLatency(published=published, ours=(ours,)),
        latencies.ComparedLatency(published=throughput, ours=(None,)),
    ]
    render.latencies(rows, [table], as_json=False)
    said = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "PRUNET-0 0.48 ms 528.0 µs predicted, 1.10x" in said
    assert "TensorRT 8.0.1.6, FP16, batch 1; device: NVIDIA V100" in said
    assert f"A: {table.path}: " in said
    render.latencies(rows, [table], as_json=True)
    first, second = json.loads(capsys.readouterr().out)
    assert (first["ours"][0]["ratio"], second["ours"][0]) == (
        pytest.approx(1.1),
        {"table": table.path, "latency": None, "ratio": None},
    )
    render.latencies(rows[1:], [table], as_json=False)
    assert "no table has one of them" in capsys.readouterr().out


def test_what_cannot_be_recomputed_is_listed_with_the_reason(capsys):
    assert render.paper(papers.rows("pas"), as_json=False) == 0
    said = capsys.readouterr().out
    assert (
        "PaS-A, PaS-B, PaS-C, PaS-light-A, PaS-light-B, PaS-light-C: the widths that were searched are not published"
        in said
    )
    assert "11,815,485,440" in said


def test_the_end_of_adaptive_coverage_says_whether_it_is_as_good_as_asked():
    proof = Proof(held_out=5, mean_error=0.06, largest_error=0.2, inside=1.0)
    covered = Covered(measured=76, blocks=132, expected_error=0.087, proof=proof, done=True, enough=True)
    said = (
        "76 of 132 blocks measured; interpolation is off by 8.70% as expected, 6.00% at 5 held-out ones (largest 20.0%)"
    )
    assert render._covered(covered) == f"{said}: done"
    assert render._covered(replace(covered, enough=False)).startswith(f"{said}: more than was asked for")
    assert render._covered(replace(covered, done=False, enough=False)) == said


def test_the_latency_of_a_bundle_is_measured_or_says_why_not_and_a_prediction_says_what_it_is_from():
    predicted = Latency(
        us=50.0, low_us=40.0, high_us=60.0, source="predicted", origin="simulated: no such device exists"
    )
    network = NetworkSummary(params=1, macs=1, score=None, predicted=predicted, measured=None, not_measured="no GPU")
    guess = "predicted 50.0 µs (40.0 to 60.0), simulated: no such device exists"
    assert render._latency(network) == f"not measured (no GPU); {guess}"
    measured = summarize([10.0] * 100, FAST)
    assert (
        render._latency(msgspec.structs.replace(network, measured=measured))
        == f"10.0 µs (10.0 to 10.0), p90 10.0 µs; {guess}"
    )


def test_progress_of_a_search_fits_into_80_columns(monkeypatch, capsys, tmp_path):
    """Bar, epoch, accuracy, latency and the time that is left, in one line, whatever the space."""
    said = io.StringIO()
    monkeypatch.setattr(render, "LOG", Console(file=said, width=80, force_terminal=True, highlight=False))
    many = Choice(widths={f"layer{index}": 128 for index in range(40)})
    latency = Latency(us=12_345.6, low_us=12_000.0, high_us=12_800.0, source="predicted")
    network = NetworkResult(choice=many, score=0.9, score_error=0.0, parameters=1, macs=1, predicted=latency)

    architecture = load_architecture(Path(__file__).parents[2] / "formats" / "run-2" / "architecture.json")

    def epoch(number):
        return EpochDone(
            phase="finetune",
            epoch=number,
            epochs=300,
            loss=1.0,
            train_score=0.5,
            score=0.98765,
            score_error=0.0,
            choice=many,
            latency_us=12_345.6,
            macs=1,
        )

    def events():
        yield Started(epochs={"finetune": 300}, history=(epoch(1),), metric=ACCURACY)
        yield Chosen(choice=many, latency=latency)
        yield epoch(2)
        hashes = dict.fromkeys(("run_sha256", "architecture_sha256", "weights_sha256"), "a" * 64)
        result = Result(**hashes, metric=ACCURACY, held_out_samples=1, budget_us=1e5, unpruned=network, shipped=network)
        yield Finished(architecture=architecture, result=result)

    assert render.search(events(), out=tmp_path, as_json=False) == 0
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "\n", said.getvalue()).replace("\r", "\n").splitlines()
    assert max(map(len, lines)) <= 80
    text = " ".join(lines)
    for words in ("finetune 2/300", "1 epochs are done already", "98.77%, 12.346 ms", "layer39=128"):
        assert words in text, words


def test_of_each_step_of_an_export_is_said_what_its_verdict_does_not_say(capsys):
    found = load(Path(__file__).parents[2] / "formats" / "bundle-1")
    first = found.manifest.validation[0]
    near = Agreement(max_abs=0.0, scale=1.0, relative=0.0, cosine=1.0, top1=None, kl=None, not_finite=3)
    far = structs.replace(near, relative=1.0, not_finite=0)
    steps = (
        structs.replace(first, name="original", verdict="not run", reason="the file as it came does not run"),
        structs.replace(first, name="fused", precision="fp64", verdict="passed", first={"y": near}),
        structs.replace(first, name="fused", precision="fp32", verdict="passed", first={"y": near}),
        structs.replace(first, name="onnx", verdict="failed", first={"y": far}, reason="the output differs"),
    )
    provenance = {"fuse": "layers 45 -> 23, norms 61 -> 0"}
    manifest = structs.replace(found.manifest, validation=steps, provenance=provenance)
    assert render.bundles([lambda _: Bundle(found.directory, manifest)], as_json=False) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "original: not run: the file as it came does not run" in lines
    assert "fuse: layers 45 -> 23, norms 61 -> 0" in lines
    assert not any("drawn at random" in line for line in lines)
    assert "fused: 3 values of y are NaN or infinite, as in the reference" in lines
    render.bundle(Bundle(found.directory, structs.replace(manifest, samples_from="random")))
    assert (
        "samples: drawn at random, as none were given: give --samples to validate on what the network is for"
        in capsys.readouterr().out
    )
    assert [line for line in lines if "the output differs" in line] == [
        f"does not hold: onnx {first.precision}: the output differs"
    ]
