from pathlib import Path

import pytest
from msgspec.structs import replace

from deploy import BundleError, Manifest, load, report
from deploy.bundle import LayerWidth
from deploy.page import ComparisonRow, TableCell
from deploy.validate import Step
from latency import Latency
from latency.units import MICROSECONDS, MILLISECONDS

KEPT = Path(__file__).parents[2] / "formats" / "bundle-3"


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    """A network of 24.721 µs, 27.602 µs unpruned, without a budget."""
    return load(KEPT).manifest


def with_latency(manifest, us, **changes):
    """The manifest of a bundle whose networks are not measured, and the shipped one is predicted."""
    predicted = Latency(us=us, low_us=us - 1, high_us=us + 1, source="predicted")
    network = replace(manifest.shipped, measured=None, not_measured="no GPU", predicted=predicted)
    return replace(manifest, shipped=network, unpruned=None, **changes)


def rows(manifest):
    return {row.name: row for row in report.main_table(manifest, report.unit_of(manifest))}


def test_latencies_are_in_milliseconds_only_if_the_smallest_is(manifest):
    assert report.unit_of(manifest) == MICROSECONDS
    assert report.unit_of(with_latency(manifest, 2000.0)) == MILLISECONDS
    assert report.unit_of(with_latency(manifest, 2000.0, budget_us=500.0)) == MICROSECONDS


def test_the_main_table_sets_the_unpruned_beside_the_shipped_network(manifest):
    found = rows(manifest)
    assert found["mIoU"] == ComparisonRow("mIoU", "26.41% (24.94% to 27.87%)", "49.52% (44.93% to 54.10%)")
    assert found["MACs"] == ComparisonRow("MACs", "177,152", "102,400")
    assert found["measured latency"] == ComparisonRow(
        "measured latency", "27.6 µs (22.9 to 31.7)", "24.7 µs (20.9 to 30.6)"
    )
    assert found["against unpruned"].shipped == "UNSURE: 0.896 of its latency (0.659 to 1.338)"
    assert found["output difference"].shipped == "7.2e-08 of its scale (onnx, limit 1e-05): passed"
    assert "predicted latency" not in found


def test_what_is_not_measured_is_not_run_in_the_main_table(manifest):
    found = rows(with_latency(manifest, 50.0, budget_us=60.0, budget_verdict="not run"))
    assert found["measured latency"] == ComparisonRow("measured latency", "", "not run", "not run")
    assert found["predicted latency"].shipped == "50.0 µs (49.0 to 51.0)"
    assert found["budget"] == ComparisonRow("budget", "", "60.0 µs: not run", "not run")
    assert "against unpruned" not in found


FAILED = Step(name="onnx", precision="fp32", verdict="failed", limit=1e-5, reason="off by 1")
NOT_RUN = Step(name="engine", precision="fp16", verdict="not run", limit=1e-2, reason="no GPU")


@pytest.mark.parametrize(
    ("changes", "verdict", "sentence"),
    [
        ({}, "passed", "Every output agrees; there is no budget."),
        ({"budget_us": 100.0, "budget_verdict": "met"}, "met", "Every verdict holds, and the budget is met."),
        (
            {"budget_us": 25.0, "budget_verdict": "unsure"},
            "unsure",
            "Every output agrees; whether the budget is met is unsure: it lies inside of the latency's interval.",
        ),
        (
            {"budget_us": 5.0, "budget_verdict": "missed"},
            "failed",
            "Failed: latency: 24.7 µs (20.9 to 30.6), the budget is 5.0 µs.",
        ),
        ({"validation": (FAILED, NOT_RUN)}, "failed", "Failed: onnx fp32: off by 1."),
        ({"validation": (NOT_RUN,)}, "not run", "Every output agrees; there is no budget. Not run: engine."),
    ],
)
def test_the_headline_is_the_worst_verdict(manifest, changes, verdict, sentence):
    assert report.headline(replace(manifest, **changes), MICROSECONDS) == (verdict, sentence)


def test_the_headline_says_why_no_latency_was_measured(manifest):
    found = report.headline(with_latency(manifest, 50.0, budget_us=60.0, budget_verdict="not run"), MICROSECONDS)
    assert found == ("not run", "All compared outputs agree; the latency was not measured: no GPU.")


def test_a_gauge_has_the_budget_between_the_networks(manifest):
    shipped, unpruned = manifest.shipped.measured, manifest.unpruned.measured
    found = report.gauge("Latency", unpruned, shipped, 26.0, MICROSECONDS, "unsure")
    assert [(bar.name, bar.words, bar.look) for bar in found.bars] == [
        ("unpruned", "27.6 µs", "bar"),
        ("budget", "26.0 µs", "limit"),
        ("shipped", "24.7 µs", "bar chosen unsure"),
    ]
    assert (found.limit, found.bars[2].low, found.bars[2].high) == (26.0, shipped.low_us, shipped.high_us)
    assert [bar.name for bar in report.gauge("Latency", None, shipped, None, MICROSECONDS).bars] == ["shipped"]
    assert report.gauge("Latency", unpruned, None, 26.0, MICROSECONDS) is None


def test_a_step_that_did_not_run_has_its_reason_in_a_row_of_its_own(manifest):
    found = report.validation(replace(manifest, validation=(*manifest.validation[:2], NOT_RUN)))
    assert found.columns[-1] == "mIoU"
    assert {len(line) for line in found.lines[:3]} == {len(found.columns)}
    assert found.lines[1][:6] == ["fused", "fp64", TableCell("passed", "good"), "0.0e+00", "0.0e+00", "1.0e-10"]
    assert found.lines[2][:3] == ["engine", "fp16", TableCell("not run", "notrun")]
    assert found.lines[3] == [TableCell("engine, not run: no GPU", "reason", whole=True)]


def test_the_provenance_names_the_device_and_marks_hashes(manifest):
    lines = dict(report.provenance(replace(manifest, provenance={"table": "ab" * 32, "fuse": "layers 3 -> 3"})).lines)
    assert lines["device"] == "AMD EPYC, Linux x86_64, 1 of 2 threads"
    assert (lines["table"], lines["fuse"]) == (TableCell("ab" * 32, "hash"), "layers 3 -> 3")
    nowhere = replace(with_latency(manifest, 50.0), device=None)
    assert report.provenance(nowhere).lines[0] == ("device", TableCell("not run: no GPU", "notrun"))


def test_every_form_names_what_it_is_made_from(manifest):
    lines = report.chain(manifest).lines
    assert [line[:3] for line in lines] == [
        ("trained", "", ""),
        ("fused", "trained", ""),
        ("squeezed", "fused", ""),
        ("onnx", "squeezed", "model.onnx"),
    ]


def test_pictures_are_of_what_is_known(manifest):
    assert [chart.title for chart in report.pictures(manifest, MICROSECONDS)] == ["Kept channels", "Latency"]
    assert list(report.pictures(replace(with_latency(manifest, 50.0), layers=()), MICROSECONDS)) == []


def test_kept_channels_are_bars_within_the_outlines_of_the_unpruned_widths():
    figure = pytest.importorskip("matplotlib.figure", reason="the extra report is not installed").Figure()
    layers = [LayerWidth(name="stem", kept=4, of=16), LayerWidth(name="head", kept=8, of=8)]
    report.kept_channels(layers).paint(figure)
    (axes,) = figure.axes
    assert [[bar.get_width() for bar in bars] for bars in axes.containers] == [[4, 8], [16, 8]]
    assert [text.get_text() for text in axes.texts] == ["4 of 16", "8 of 8"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["stem", "head"]


def test_a_page_is_made_from_the_manifest_alone_and_of_a_bundle_only(tmp_path):
    more = report.kept_channels([LayerWidth(name="stem", kept=4, of=16)])
    found = report.page(KEPT, more=[more])
    assert (found.title, found.headline, found.look) == ("bundle-3", "Every output agrees; there is no budget.", "good")
    assert found.note == "Measured on 5 samples; latency of one call, with input of 1 × 3 × 8 × 8; intervals of 95 %."
    assert found.gauge.title == "Latency, measured"
    assert found.body.index(more) == 2
    with pytest.raises(BundleError, match=str(tmp_path)):
        report.page(tmp_path)
