"""Bundles that were written once and are kept: later versions must read and verify them."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from deploy import load, verify
from deploy.bundle import read_reference

KEPT = Path(__file__).parent


def test_version_1_is_read_and_verified():
    found = load(KEPT / "bundle-1")
    manifest = found.manifest
    assert (manifest.inputs, manifest.outputs) == ({"input": (2, 3, 8, 8)}, {"output": (2, 4)})
    assert (manifest.dtypes, manifest.schema) == ({"input": "float32", "output": "float32"}, "bundle/3")
    samples, outputs = read_reference(found)
    assert (samples.count, samples.batch, samples.inputs["input"].shape, outputs["output"].shape) == (
        7,
        2,
        (4, 2, 3, 8, 8),
        (4, 2, 4),
    )
    np.testing.assert_array_equal(outputs["output"][3, 0], outputs["output"][3, 1])  # the last call was filled up
    verdicts = {check.name: check.verdict for check in verify(found.directory).checks}
    assert verdicts.pop("outputs of onnx") == "passed"
    assert "failed" not in verdicts.values()


def test_version_2_is_read_and_its_outputs_verified():
    found = load(KEPT / "bundle-2")
    assert (found.manifest.inputs, found.manifest.dtypes) == (
        {"input": (2, 3, 8, 8)},
        {"input": "float32", "output": "float32"},
    )
    verdicts = {check.name: check.verdict for check in verify(found.directory).checks}
    assert {verdicts[name] for name in ("manifest.json", "model.onnx", "chain of hashes", "outputs of onnx")} == {
        "passed"
    }


def test_version_3_is_read_and_verified():
    found = load(KEPT / "bundle-3")
    assert (found.manifest.metric.name, found.manifest.shipped.score.value) == (
        "mIoU",
        pytest.approx(0.495151, abs=1e-6),
    )
    verdicts = {check.name: check.verdict for check in verify(found.directory).checks}
    assert {verdicts[name] for name in ("manifest.json", "model.onnx", "chain of hashes", "outputs of onnx")} == {
        "passed"
    }
    assert verdicts["mIoU"] == "not run"


def changed(directory, change, kept="bundle-1"):
    """A copy of a kept bundle whose manifest says something else; its seal is right."""
    shutil.copytree(KEPT / kept, directory)
    fields = json.loads((directory / "manifest.json").read_bytes())
    change(fields)
    blank = json.dumps({**fields, "seal": "0" * 64}, indent=2).encode() + b"\n"
    (directory / "manifest.json").write_bytes(blank.replace(b"0" * 64, hashlib.sha256(blank).hexdigest().encode()))
    return directory


def two_modes(fields, **said):
    """What version 1 said of samples that have two modes: that all is well."""
    samples = [100.0, 140.0] * 20
    of_samples = {"samples_us": samples, "median_us": 120.0, "low_us": 119.9, "high_us": 120.1, "status": "ok"}
    fields["shipped"]["measured"] |= of_samples | said
    fields["protocol"]["half_width"] = 0.01
    fields["budget_us"] = 130.0


def test_what_version_1_measured_is_judged_as_today(tmp_path):
    directory = changed(tmp_path / "two", two_modes)
    manifest = load(directory).manifest
    assert (manifest.shipped.measured.status, manifest.budget_verdict) == ("unstable", "unsure")
    assert "two modes" in manifest.shipped.measured.reason
    assert {check.name: check.verdict for check in verify(directory).checks}["recorded verdicts"] == "passed"


def test_what_did_not_follow_in_version_1_does_not_follow_now(tmp_path):
    for number, said in enumerate(({"median_us": 90.0}, {"low_us": 119.0, "high_us": 131.0})):
        directory = changed(tmp_path / str(number), lambda fields, said=said: two_modes(fields, **said))
        assert {check.name: check.verdict for check in verify(directory).checks}["recorded verdicts"] == "failed"


def test_samples_of_two_modes_that_an_earlier_version_called_ok_are_doubtful_not_damaged(tmp_path):
    def two_modes(fields):
        samples = [100.0, 100.0, 140.0, 100.0, 140.0, 100.0, 100.0] * 30
        measured = {"samples_us": samples, "median_us": 100.0, "low_us": 100.0, "high_us": 100.0, "status": "ok"}
        fields["shipped"]["measured"] = fields["shipped"]["measured"] | measured | {"p90_us": 140.0, "p99_us": None}
        fields["protocol"]["half_width"] = 0.01

    directory = changed(tmp_path / "two", two_modes, "bundle-2")
    found = verify(directory)
    (check,) = (check for check in found.checks if check.name == "recorded verdicts")
    assert (check.verdict, check.detail) == (
        "unsure",
        "the latency of the shipped network is recorded as ok, but the samples have two modes: 100.0 us (71% of the samples) "
        "and 140.0 us; export again to measure it again",
    )
    assert not [check for check in found.failures if check.name != "handout"]
