"""Engines are loaded and run on a simulated GPU."""

import enum
import hashlib
import sys
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

import simulated_cuda
from latency import BuildFailed, DeviceUnavailable, LatencyError, RunFailed, Runtime, protocol
from latency.backends import BuildsApart, Compiled
from latency.backends.engines import EngineSpec, TimingCache, build_engine
from latency.backends.tensorrt import TensorRT
from latency.measure import Launched, measure

QUICK = protocol.Protocol(name="p", warmup_ms=0.0, min_samples=9, max_samples=9, min_time_ms=0.0, max_time_ms=9.0)


class Gpu(simulated_cuda.Gpu):
    """A simulated GPU with TensorRT on it."""

    def __init__(self):
        super().__init__()
        self.validity = None  # what a runtime that looks into the header finds there
        self.parse_fail = False
        self.addresses, self.batches, self.spans = {}, [], ()  # spans: smallest, usual and largest batch

    def execute(self, stream):
        if not self.capturing:
            x, y = (self.memory[self.addresses[name]] for name in "xy")
            y[:] = np.maximum(x, 0)
        return super().execute(stream)

    def trt(self):
        """TensorRT's API over this GPU, as far as the backend calls it; an engine is b"engine"."""
        gpu, seen = self, SimpleNamespace(levels=[], flags=[], cleared=[], caches=[])

        class ILogger:
            class Severity(enum.IntEnum):
                INTERNAL_ERROR, ERROR, WARNING, INFO = 0, 1, 2, 3

            def __init__(self):
                pass

        class Config:
            num_compute_capabilities = 0

            def __setattr__(self, name, value):
                seen.levels.append((name, value))

            def set_flag(self, flag):
                seen.flags.append(flag)

            def clear_flag(self, flag):
                seen.cleared.append(flag)

            def set_compute_capability(self, value, index):
                seen.levels.append((index, value))

            def create_timing_cache(self, data):
                return SimpleNamespace(serialize=lambda: data + b"+")

            def set_timing_cache(self, cache, ignore_mismatch):
                assert not ignore_mismatch
                seen.caches.append(cache)
                return not cache.serialize().startswith(b"foreign")

            def get_timing_cache(self):
                return seen.caches[-1]

        class Builder:
            def __init__(self, logger):
                self.logger = logger

            def create_network(self, flags):
                assert flags == 1 << 7
                return SimpleNamespace(num_inputs=1, get_input=lambda i: SimpleNamespace(name="x", shape=(1, 4)))

            def create_builder_config(self):
                return Config()

            def build_serialized_network(self, network, config):
                if gpu.parse_fail:
                    self.logger.log(ILogger.Severity.INFO, "chatter")
                    self.logger.log(ILogger.Severity.ERROR, "no tactic\nfor layer3")
                    return None
                return b"engine"

        class Engine:
            num_io_tensors = 2

            def create_execution_context(self):
                return SimpleNamespace(
                    set_tensor_address=gpu.addresses.__setitem__,
                    execute_async_v3=gpu.execute,
                    set_input_shape=lambda name, shape: gpu.batches.append(shape[0]) or True,
                    get_tensor_shape=lambda name: (gpu.batches[-1], 4),
                )

            def get_tensor_name(self, i):
                return "xy"[i]

            def get_tensor_mode(self, name):
                return {"x": "in", "y": "out"}[name]

            def get_tensor_shape(self, name):
                return (-1 if gpu.spans else 1, 4)

            def get_tensor_profile_shape(self, name, profile):
                return [(batch, 4) for batch in gpu.spans]

            def get_tensor_dtype(self, name):
                return "float"

            def create_engine_inspector(self):
                return SimpleNamespace(get_engine_information=lambda format: f"{format} of all layers")

        def load(logger):
            def deserialize(engine):
                if engine != b"engine":
                    logger.log(ILogger.Severity.ERROR, "engine of another version")
                    return None
                return Engine()

            checks = {} if gpu.validity is None else {"get_engine_validity": lambda engine: gpu.validity}
            return SimpleNamespace(deserialize_cuda_engine=deserialize, **checks)

        return simulated_cuda.module(
            __version__="10.99",
            seen=seen,
            ILogger=ILogger,
            Builder=Builder,
            OnnxParser=lambda network, logger: SimpleNamespace(parse=lambda data: True, num_errors=0),
            NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=7),
            HardwareCompatibilityLevel=SimpleNamespace(AMPERE_PLUS="ampere+"),
            BuilderFlag=SimpleNamespace(TF32="tf32", VERSION_COMPATIBLE="version"),
            ComputeCapability=SimpleNamespace(__members__={"NONE": 0, "CURRENT": 1, "SM89": 89}),
            Runtime=load,
            LayerInformationFormat=SimpleNamespace(JSON="JSON"),
            ProfilingVerbosity=SimpleNamespace(DETAILED="detailed"),
            EngineValidity=SimpleNamespace(INVALID=2),
            EngineInvalidityDiagnostics=SimpleNamespace(
                __members__={"VERSION_MISMATCH": 1, "UNSUPPORTED_CC": 2, "OLD_CUDA_DRIVER": 4}
            ),
            TensorIOMode=SimpleNamespace(INPUT="in"),
            nptype=lambda dtype: np.float32,
        )


@pytest.fixture
def gpu(monkeypatch):
    gpu = Gpu()
    trt = gpu.trt()
    for name, found in gpu.modules().items():
        monkeypatch.setitem(sys.modules, name, found)
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", trt)
    gpu.seen = trt.seen
    return gpu


def test_what_the_backend_says_of_itself(gpu):
    backend = TensorRT("tensorrt", precision="fp32")
    assert (backend.name, backend.precision, backend.runtime) == (
        "tensorrt",
        "fp32",
        Runtime(name="tensorrt", version="10.99"),
    )
    assert (backend.device.kind, backend.device.name, backend.device.compute_capability) == ("gpu", "Fake GPU", "8.9")
    assert backend.settings == {
        "workspace_mib": "0",
        "optimization_level": "3",
        "tf32": "False",
        "version_compatible": "False",
        "timing_cache": "",
    }
    everywhere = TensorRT("tensorrt", spec=EngineSpec(hardware_compatible=True))
    assert everywhere.settings == backend.settings | {"hardware_compatible": "True"}
    assert (TensorRT("tensorrt-rtx").spec.compute_capabilities, TensorRT("tensorrt-rtx").precision) == (
        ("8.9",),
        "fp16",
    )


def test_engines_are_built_apart_where_that_needs_no_gpu(gpu):
    known, unknown = (
        TensorRT("tensorrt-rtx"),
        TensorRT("tensorrt-rtx", spec=EngineSpec(compute_capabilities=("current",))),
    )
    assert isinstance(known, BuildsApart)
    assert known.builders() is not None
    assert unknown.builders() is None
    assert TensorRT("tensorrt").builders() is None


def test_a_timing_cache_is_read_once_shared_by_builds_and_saved_elsewhere(gpu, tmp_path):
    path = tmp_path / "cache"
    path.write_bytes(b"tactics")
    backend = TensorRT("tensorrt", timing_cache=path)
    assert backend.settings["timing_cache"] == hashlib.sha256(b"tactics").hexdigest()
    backend.compile(b"")
    backend.compile(b"")
    assert [cache.serialize() for cache in gpu.seen.caches] == [b"tactics+", b"tactics++"]
    assert path.read_bytes() == b"tactics"
    backend.timing_cache.save(tmp_path / "next")
    assert TimingCache(tmp_path / "next").data == b"tactics++"
    assert TimingCache(tmp_path / "none").sha256 == ""
    path.write_bytes(b"foreign")
    with pytest.raises(LatencyError, match=r"timing cache .*/cache is of another GPU or TensorRT"):
        TensorRT("tensorrt", timing_cache=path).compile(b"")
    with pytest.raises(LatencyError, match="TensorRT-RTX has none"):
        TensorRT("tensorrt-rtx", timing_cache=path)


def test_a_latency_is_what_the_gpu_took_with_one_inference_enqueued_ahead(gpu):
    with TensorRT("tensorrt").compile(b"") as compiled:
        assert isinstance(compiled, Compiled)
        assert compiled.run(5) == pytest.approx([50.0] * 5)
        assert (gpu.enqueued, gpu.waited, gpu.most_ahead) == (5, 5, 2)  # the one that is waited for, and one more
        assert compiled.run(0) == []
        gpu.inference_us = 80.0
        assert compiled.run(1) == pytest.approx([80.0])
        found = measure(compiled, QUICK)
        assert (found.status, found.median_us, found.error) == ("ok", 80.0, "")
        assert gpu.launched == len(found.samples_us) + 1  # the protocol asks for a graph; one more to warm up


def test_a_protocol_chooses_how_the_host_launches_and_waits(gpu):
    with TensorRT("tensorrt").compile(b"") as compiled:
        assert isinstance(compiled, Launched)
        gpu.blocking.clear()
        measure(compiled, msgspec.structs.replace(QUICK, cuda_graph=False, spin_wait=False))
        assert gpu.blocking == [True] * 4
        assert gpu.launched == 0
        gpu.blocking.clear()
        measure(compiled, QUICK)
        assert gpu.blocking == [False] * 4
        assert gpu.launched == 10
        assert sorted(gpu.live.values()) == ["event"] * 4 + ["graph"] + ["memory"] * 2 + ["stream"]
    assert gpu.live == {}


def test_an_engine_that_cannot_be_captured_is_measured_without_a_graph_and_says_so(gpu):
    with TensorRT("tensorrt").compile(b"") as compiled:
        gpu.capturable = False
        found = measure(compiled, QUICK)
        assert found.error == "measured without a CUDA graph, as it cannot be captured: no reason given"
        assert (found.median_us, gpu.launched, gpu.capturing) == (50.0, 0, False)
    assert gpu.live == {}


def test_everything_on_the_device_is_released(gpu):
    with TensorRT("tensorrt").compile(b""):
        assert sorted(gpu.live.values()) == ["event"] * 4 + ["memory"] * 2 + ["stream"]
    assert gpu.live == {}


def test_everything_is_released_when_setting_up_fails(gpu):
    gpu.most_buffers = 1
    with pytest.raises(RunFailed, match="^CUDA_ERROR_OUT_OF_MEMORY: out of memory$"):
        TensorRT("tensorrt").compile(b"")
    assert gpu.live == {}


def test_inputs_are_not_zeros(gpu):
    with TensorRT("tensorrt").compile(b""):
        assert np.abs(gpu.memory[gpu.addresses["x"]]).min() > 0


def test_an_engine_tells_of_its_layers_what_it_was_built_to_keep(gpu):
    build_engine(b"", "tensorrt")
    assert "profiling_verbosity" not in dict(gpu.seen.levels)
    build_engine(b"", "tensorrt", detailed=True)
    assert dict(gpu.seen.levels)["profiling_verbosity"] == "detailed"
    with TensorRT("tensorrt").load(b"engine") as compiled:
        assert compiled.information() == "JSON of all layers"


def test_outputs_for_inputs(gpu):
    with TensorRT("tensorrt").compile(b"") as compiled:
        outputs = compiled.infer({"x": np.array([[-1.0, 2.0, -3.0, 4.0]])})
        assert outputs["y"].tolist() == [[0.0, 2.0, 0.0, 4.0]]
        with pytest.raises(LatencyError, match=r"takes inputs of shape \{'x': \(1, 4\)\}, given \{'z': \(2,\)\}"):
            compiled.infer({"z": np.zeros(2)})


def test_an_engine_of_several_shapes_takes_each_and_is_timed_on_the_usual_one(gpu):
    gpu.spans = (1, 2, 3)
    with TensorRT("tensorrt").compile(b"") as compiled:
        for batch in (3, 1):
            assert compiled.infer({"x": np.full((batch, 4), batch)})["y"].tolist() == [[batch] * 4] * batch
            assert gpu.batches[-1] == 2
        compiled.infer({"x": np.full((2, 4), 7.0)})
        compiled.infer({"x": np.full((3, 4), 8.0)})
        assert (gpu.batches[-1], gpu.memory[gpu.addresses["x"]][:8].tolist()) == (2, [7.0] * 8)
        with pytest.raises(
            LatencyError, match=r"takes inputs of shape \{'x': '\(1, 4\) to \(3, 4\)'\}, given \{'x': \(4, 4\)\}"
        ):
            compiled.infer({"x": np.zeros((4, 4))})


def test_a_refused_inference_and_a_refused_engine(gpu):
    backend = TensorRT("tensorrt")
    with backend.load(b"engine") as compiled:
        gpu.fail = True
        with pytest.raises(RunFailed, match="no reason given"):
            compiled.run(1)
    with pytest.raises(
        RunFailed,
        match=r"^fake 10\.99 does not load the engine, .*: build it again from its ONNX: engine of another version$",
    ):
        backend.load(b"old")
    assert gpu.live == {}


@pytest.mark.parametrize(("found", "words"), [(6, "unsupported cc, old cuda driver"), (0, "it is invalid")])
def test_an_engine_that_the_runtime_finds_invalid_is_not_loaded(gpu, found, words):
    gpu.validity = (2, found)
    with pytest.raises(
        RunFailed, match=rf"^fake 10\.99 does not take the engine: {words}: build it again from its ONNX$"
    ):
        TensorRT("tensorrt").load(b"engine")
    gpu.validity = (1, 0)  # it runs, perhaps slower than another would
    with TensorRT("tensorrt").load(b"engine") as compiled:
        assert compiled.run(1) == pytest.approx([50.0])


def test_a_refused_build_is_in_the_builders_words(gpu):
    gpu.parse_fail = True
    with pytest.raises(BuildFailed, match=r"^no tactic for layer3$"):
        build_engine(b"", "tensorrt")


def test_the_spec_reaches_the_builder(gpu):
    build_engine(b"", "tensorrt", EngineSpec(optimization_level=5, version_compatible=True, hardware_compatible=True))
    assert ("hardware_compatibility_level", "ampere+") in gpu.seen.levels
    assert ("builder_optimization_level", 5) in gpu.seen.levels
    assert (gpu.seen.flags, gpu.seen.cleared) == (["version"], ["tf32"])
    build_engine(b"", "tensorrt-rtx", EngineSpec(compute_capabilities=("8.9", "current")))
    assert gpu.seen.levels[-3:] == [("num_compute_capabilities", 2), (0, 89), (1, 1)]
    with pytest.raises(LatencyError, match=r"compute_capabilities \('8\.9',\): tensorrt builds for the current GPU"):
        build_engine(b"", "tensorrt", EngineSpec(compute_capabilities=("8.9",)))


@pytest.mark.parametrize(
    "build", [lambda: build_engine(b"", "tensorrt"), lambda: TensorRT("tensorrt-rtx"), lambda: TensorRT("tensorrt")]
)
def test_without_a_driver_it_says_so_in_one_line(gpu, build):
    gpu.refusal = RuntimeError("libcuda.so.1 is not there")
    with pytest.raises(DeviceUnavailable, match=r"^no NVIDIA driver found \(libcuda\.so\.1 is missing or too old\)"):
        build()


def test_a_build_for_the_gpu_at_hand_needs_one(gpu):
    gpu.refusal = RuntimeError("libcuda.so.1 is not there")
    assert build_engine(b"", "tensorrt-rtx") == b"engine"
    with pytest.raises(DeviceUnavailable, match="no NVIDIA driver found"):
        build_engine(b"", "tensorrt-rtx", EngineSpec(compute_capabilities=("current",)))


def test_the_simulated_api_is_the_real_one():
    rtx = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    assert all(
        hasattr(rtx, name)
        for name in ("ILogger", "Builder", "OnnxParser", "Runtime", "nptype", "TensorIOMode", "__version__")
    )
    assert {"execute_async_v3", "set_tensor_address"} <= set(dir(rtx.IExecutionContext))
    assert {"num_io_tensors", "get_tensor_name", "get_tensor_mode", "get_tensor_shape", "get_tensor_dtype"} <= set(
        dir(rtx.ICudaEngine)
    )
