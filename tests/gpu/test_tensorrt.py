"""Engines on a real GPU: what they compute, and what is measured of them."""

import numpy as np
import pytest

from deploy import engine, export, verify
from gpu.conftest import median, network
from latency import LatencyTable, protocol
from latency.errors import RunFailed
from latency.measure import measure

pytestmark = pytest.mark.gpu


def test_an_engine_computes_what_torch_does(backend, half_onnx, example):
    expected = network()(example).detach().numpy()
    with backend.compile(half_onnx) as compiled:
        found = compiled.infer({"input": example.numpy()})["output"]
    assert np.abs(found - expected).max() <= 1e-2 * np.abs(expected).max()


@pytest.mark.parametrize("name", ["trtexec-10", "trtexec-11"])
def test_a_measurement_is_of_the_whole_network_and_can_be_repeated(backend, half_onnx, name):
    quick = protocol.get(name)
    with backend.compile(half_onnx) as compiled:
        first, second = (
            measure(compiled, quick, monitor=backend.monitor),
            measure(compiled, quick, monitor=backend.monitor),
        )
    assert first.error == ""
    assert 1 < first.median_us < 10_000
    assert second.median_us == pytest.approx(first.median_us, rel=0.10)
    assert "sm_mhz" in first.clocks


def test_a_graph_is_no_slower_than_kernel_by_kernel(backend, half_onnx):
    with backend.compile(half_onnx) as compiled:
        assert compiled.launch(cuda_graph=False, spin_wait=True) == ""
        compiled.run(100)
        kernels = median(compiled.run(500))
        assert compiled.launch(cuda_graph=True, spin_wait=True) == ""
        compiled.run(100)
        assert median(compiled.run(500)) <= 1.1 * kernels


def test_outputs_do_not_change_when_the_same_context_was_timed(backend, half_onnx, example):
    with backend.compile(half_onnx) as compiled:
        before = compiled.infer({"input": example.numpy()})["output"]
        compiled.run(50)
        assert np.array_equal(compiled.infer({"input": example.numpy()})["output"], before)


def test_a_damaged_engine_is_refused_in_words(backend):
    with pytest.raises(RunFailed, match="does not load the engine"):
        backend.load(b"no engine" * 100)


def test_a_space_becomes_a_table_that_resumes(backend, tmp_path):
    from latency import profile
    from search import spaces
    from search.workloads import workloads

    works = workloads(spaces.get("repvgg-mini"), networks=2, precision="fp16")[::60]
    out = tmp_path / "gpu.latency.jsonl"
    for _ in range(2):
        for _ in profile(works, backend, out, protocol=protocol.get("fast"), lowering="1", space="repvgg-mini"):
            pass
    table = LatencyTable.load(out)
    assert {row.status for row in table.rows} <= {"ok", "unstable"}
    assert len([row for row in table.history if row.status == "ok" and row.kind == "block"]) <= len(works)
    assert table.header.device == backend.device


def test_a_bundle_says_met_or_missed_of_its_engine(backend, example, tmp_path):
    bundle = export(
        network(), example, target=backend.name, out=tmp_path / "bundle", budget_ms=1000, protocol=protocol.get("fast")
    )
    steps = {step.name: step for step in bundle.manifest.validation}
    assert steps["engine"].verdict == "passed"
    assert bundle.manifest.budget_verdict == "met"
    assert verify(tmp_path / "bundle").failures == []
    with engine.running(backend.name, (tmp_path / "bundle" / "model.onnx").read_bytes(), b"") as running:
        assert isinstance(running, str)  # an empty engine is refused, not run
