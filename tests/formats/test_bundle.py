"""Bundles that were written once and are kept: later versions must read and verify them."""

from pathlib import Path

import numpy as np

from deploy import load, verify
from deploy.bundle import read_reference

KEPT = Path(__file__).parent


def test_version_1_is_read_and_verified():
    found = load(KEPT / "bundle-1")
    manifest = found.manifest
    assert (manifest.inputs, manifest.outputs) == ({"input": (2, 3, 8, 8)}, {"output": (2, 4)})
    assert (manifest.dtypes, manifest.schema) == ({"input": "float32", "output": "float32"}, "bundle/2")
    samples, outputs = read_reference(found)
    assert (samples.count, samples.batch, samples.inputs["input"].shape, outputs["output"].shape) == (7, 2, (4, 2, 3, 8, 8), (4, 2, 4))
    np.testing.assert_array_equal(outputs["output"][3, 0], outputs["output"][3, 1])  # the last call was filled up
    verdicts = {check.name: check.verdict for check in verify(found.directory).checks}
    assert verdicts.pop("outputs of onnx") == "passed"
    assert "failed" not in verdicts.values()


def test_version_2_is_read_and_its_outputs_verified():
    found = load(KEPT / "bundle-2")
    assert (found.manifest.inputs, found.manifest.dtypes) == ({"input": (2, 3, 8, 8)}, {"input": "float32", "output": "float32"})
    verdicts = {check.name: check.verdict for check in verify(found.directory).checks}
    assert {verdicts[name] for name in ("manifest.json", "model.onnx", "chain of hashes", "outputs of onnx")} == {"passed"}
