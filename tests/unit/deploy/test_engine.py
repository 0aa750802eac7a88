import contextlib
import copy

import msgspec
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from deploy import engine, to_onnx
from deploy.engine import EngineSpec, half_runner, measure_in_turns, onnx_runner, running, runtime_of
from deploy.errors import DeployError
from deploy.precision import certified
from encoder import Encoder
from latency import RunFailed, Runtime
from latency.errors import DeviceUnavailable
from reparam import fuse
from unit.deploy.helpers import GPU, QUICK, example, run_on
from zoo import ZOO


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return to_onnx(nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), torch.zeros(2, 3, 8, 8))


class Recorder:
    """A network that takes `us` each time, and notes when it is run."""

    def __init__(self, name, us, log):
        self.name, self.us, self.log, self.runs = name, us, log, 0

    def run(self, count):
        self.log.append(self.name)
        self.runs += count
        return [self.us(self.runs) for _ in range(count)]


def test_networks_are_measured_in_turns():
    log, steps = [], []
    networks = {"a": Recorder("a", lambda _: 10.0, log), "b": Recorder("b", lambda _: 20.0, log)}
    found = measure_in_turns(networks, QUICK, steps.append)
    assert steps == [f"measure {done}/5" for done in range(1, 6)]
    assert {name: (m.median_us, m.status) for name, m in found.items()} == {"a": (10.0, "ok"), "b": (20.0, "ok")}
    turns = [name for index, name in enumerate(log) if index == 0 or log[index - 1] != name]
    assert turns == ["a", "b", "a", "b", "a", "b"]  # a b, b a, a b, b a, a b: two in a row are two rounds
    assert len(found["a"].samples_us) >= QUICK.min_samples


def test_what_does_not_settle_is_measured_longer_and_is_unstable():
    log = []
    strict = msgspec.structs.replace(QUICK, half_width=0.01)
    found = measure_in_turns({"a": Recorder("a", lambda runs: float(runs**2), log)}, strict)
    assert found["a"].status == "unstable"
    assert len(found["a"].samples_us) > QUICK.max_samples


def test_a_transient_of_the_first_round_is_in_no_sample():
    network = Recorder("a", lambda runs: 18.0 if runs < 300 else 10.0, [])
    watched = msgspec.structs.replace(QUICK, settle_runs=1000, settle_ms=1e6, half_width=0.01)
    found = measure_in_turns({"a": network}, watched)["a"]
    assert (found.median_us, found.status, max(found.samples_us)) == (10.0, "ok", 10.0)
    assert network.runs > 1000


@pytest.mark.parametrize("count", [1, 2, 5])
def test_any_number_of_samples_goes_through_a_fixed_batch(model, count):
    weights = {
        value.name: onnx.numpy_helper.to_array(value) for value in onnx.load_from_string(model).graph.initializer
    }
    matrix, bias = (
        next(value for value in weights.values() if value.ndim == ndim and value.dtype == np.float32) for ndim in (2, 1)
    )
    x = np.random.default_rng(0).standard_normal((count, 3, 8, 8)).astype(np.float32)
    found = run_on(onnx_runner(model), x, batch=2)["output"]
    np.testing.assert_allclose(found, x.reshape(count, -1) @ matrix.T + bias, rtol=0, atol=1e-5)


def test_a_model_that_onnx_runtime_refuses_says_why():
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2])
    graph = helper.make_graph([helper.make_node("Nonsense", ["x"], ["y"])], "g", [value], [out])
    data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()
    with pytest.raises(DeployError, match=r"ONNX Runtime refuses the model: .*Nonsense") as caught:
        run_on(onnx_runner(data), np.zeros((1, 2), np.float32), name="x")
    assert "\n" not in str(caught.value)


def test_onnx_runtime_needs_no_engine_and_runs(model):
    assert engine.build(model, "onnxruntime", EngineSpec()) == b""
    with running("onnxruntime", model, b"", threads=2) as at_work:
        assert (at_work.device.threads, at_work.runtime) == (2, runtime_of("onnxruntime"))
        assert len(at_work.timed.run(3)) == 3
        assert at_work.outputs({"input": np.zeros((3, 2, 3, 8, 8), np.float32)})["output"].shape == (3, 2, 4)


def test_an_rtx_engine_is_built_without_a_gpu():
    pytest.importorskip("tensorrt_rtx")
    half = to_onnx(nn.Conv2d(3, 2, 1), example(), precision="fp16")
    assert len(engine.build(half, "tensorrt-rtx", EngineSpec())) > 1000
    assert runtime_of("tensorrt-rtx").name == "tensorrt-rtx"
    with pytest.raises(DeployError):
        engine.build(b"nonsense", "tensorrt-rtx", EngineSpec())


SMALL = {network.name: network for network in ZOO}


@pytest.mark.parametrize("name", ["MobileNetV2", "EfficientNet-B0", "U-Net", "encoder"])
def test_a_network_of_the_zoo_becomes_an_fp16_engine_with_no_gpu(name):
    pytest.importorskip("tensorrt_rtx")
    torch.manual_seed(0)
    module = (
        Encoder(width=16, heads=2, patch=8, classes=10)
        if name == "encoder"
        else fuse(SMALL[name].make(small=True), SMALL[name].input(small=True))
    )
    x = torch.randn(2, 3, 32, 32)
    data = to_onnx(module, x[:1])
    half, certificate = certified(data, x.numpy())
    assert (certificate.casts, certificate.kept) == (2, ())
    assert certificate.nodes == len(onnx.load_from_string(data).graph.node) + 2
    wanted = run_on(onnx_runner(data), x)["output"]
    assert np.abs(run_on(half_runner(half), x)["output"] - wanted).max() < 5e-3 * np.abs(wanted).max()
    assert len(engine.build(half, "tensorrt-rtx", EngineSpec(compute_capabilities=("8.9",)))) > 10_000


def test_a_timing_cache_is_of_tensorrt_and_must_be_there(tmp_path):
    (tmp_path / "cache").write_bytes(b"tactics")
    assert engine.timing_cache_of("tensorrt", tmp_path / "cache").data == b"tactics"
    assert engine.timing_cache_of("tensorrt", None).data == b""
    assert engine.timing_cache_of("tensorrt-rtx", None) is None
    engine.require_options("tensorrt", None, tmp_path / "cache")
    with pytest.raises(DeployError, match=r"timing cache .*/cache: the builder of tensorrt-rtx measures nothing"):
        engine.require_options("tensorrt-rtx", None, tmp_path / "cache")
    with pytest.raises(
        DeployError, match=r"timing cache .*/none does not exist: give the model\.timing_cache of an earlier bundle"
    ):
        engine.require_options("tensorrt", None, tmp_path / "none")


def test_half_precision_rounds_and_overflows_between_operators_as_a_gpu_does():
    module = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Conv2d(2, 2, 1), nn.ReLU()).eval()
    x = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    half = to_onnx(module, example(), precision="fp16")
    with torch.no_grad():
        expected = copy.deepcopy(module).half()(x.half()).float().numpy()
    np.testing.assert_allclose(run_on(half_runner(half), x)["output"], expected, rtol=0, atol=2e-3)
    module[0].weight.data.fill_(6e4)
    module[1].weight.data.fill_(1e-6)
    half = to_onnx(module, example(), precision="fp16")
    assert np.isfinite(run_on(onnx_runner(half), x)["output"]).all()
    assert not np.isfinite(run_on(half_runner(half), x)["output"]).all()


class FakeTensorRT:
    """A GPU that doubles the sum of each input, or refuses every engine."""

    device = GPU
    runtime = Runtime(name="tensorrt-rtx", version="1")
    refuses = ""

    def __init__(self, flavour, *, spec):
        assert flavour == "tensorrt-rtx"

    def load(self, built):
        if self.refuses:
            raise RunFailed(self.refuses)
        assert built == b"engine"
        return Compiled()


class Compiled(contextlib.nullcontext):
    def information(self):
        return "layers"

    def infer(self, inputs):
        x = inputs["input"]
        assert x.shape == (2, 3, 8, 8)
        return {"output": 2 * x.sum((1, 2, 3))[:, None]}

    def run(self, count):
        return [7.0] * count


def test_an_engine_at_work_gives_outputs_and_latencies(model, monkeypatch):
    monkeypatch.setattr(engine, "TensorRT", FakeTensorRT)
    x = np.random.default_rng(0).standard_normal((5, 3, 8, 8)).astype(np.float32)
    with running("tensorrt-rtx", model, b"engine") as at_work:
        np.testing.assert_allclose(run_on(at_work.outputs, x, batch=2)["output"][:, 0], 2 * x.sum((1, 2, 3)), rtol=1e-5)
        assert (at_work.device, at_work.timed.run(2), at_work.information()) == (GPU, [7.0, 7.0], "layers")


def test_why_there_is_nothing_at_work_is_data(model, monkeypatch):
    def absent(flavour, *, spec):
        raise DeviceUnavailable("no NVIDIA driver found")

    monkeypatch.setattr(engine, "TensorRT", absent)
    with running("tensorrt-rtx", model, b"engine") as at_work:
        assert at_work == "no NVIDIA driver found"
    monkeypatch.setattr(engine, "TensorRT", FakeTensorRT)
    monkeypatch.setattr(FakeTensorRT, "refuses", "the engine is for another GPU")
    with running("tensorrt-rtx", model, b"engine") as at_work:
        assert at_work == "the engine is for another GPU"
