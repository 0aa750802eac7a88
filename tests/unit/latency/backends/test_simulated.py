import msgspec
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from latency import BuildFailed, LatencyError, LatencyTable, Safeguards, Workload, backends, profile, protocol
from latency.backends import Backend, Compiled
from latency.backends.simulated import Simulated, SimulatedSettings
from latency.measure import measure
from latency.monitor import Monitor
from latency.sentinel import OFF


def model(nodes, shape, out_shape, weights):
    values = (
        helper.make_tensor_value_info("x", TensorProto.FLOAT, shape),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, out_shape),
    )
    tensors = [numpy_helper.from_array(np.zeros(size, np.float32), name) for name, size in weights.items()]
    graph = helper.make_graph(nodes, "g", [values[0]], [values[1]], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()


def conv(c_in, c_out, size=32, group=1):
    node = helper.make_node("Conv", ["x", "w"], ["y"], kernel_shape=[3, 3], pads=[1] * 4, group=group)
    return model([node], [1, c_in, size, size], [1, c_out, size, size], {"w": (c_out, c_in // group, 3, 3)})


def device(**settings):
    return Simulated(SimulatedSettings(**settings))


def test_it_is_a_backend_by_name_with_its_settings_in_the_fingerprint():
    backend = backends.get("simulated:seed=3,drift=0.05", precision="fp16")
    assert isinstance(backend, Backend)
    assert isinstance(backend.monitor, Monitor)
    assert (backend.settings["seed"], backend.settings["drift"], backend.precision) == ("3", "0.05", "fp16")
    assert backends.get("simulated").settings["seed"] == "0"


@pytest.mark.parametrize(
    "text",
    [
        "speed=1",
        "seed=fast",
        "seed",
        "step=0",
        "seed=1,seed=2",
        "seed=1,",
        "seed=-1",
        "drift=nan",
        "noise=inf",
        "drift=-0.1",
    ],
)
def test_settings_that_it_does_not_have(text):
    with pytest.raises(LatencyError, match="^simulated:"):
        backends.get(f"simulated:{text}")


def test_the_truth_is_the_roofline_in_steps_of_width():
    calm = device(macs_per_us=1e4, bytes_per_us=1e9, launch_us=5.0, step=32)
    macs = 64 * 32 * 9 * 32 * 32
    assert calm.truth_us(conv(32, 64)) == pytest.approx(5 + macs / 1e4, rel=1e-3)
    assert calm.truth_us(conv(32, 33)) == pytest.approx(calm.truth_us(conv(32, 64)), rel=1e-2)
    assert calm.truth_us(conv(32, 65)) > 1.4 * calm.truth_us(conv(32, 64))
    slow = device(macs_per_us=1e9, bytes_per_us=100.0, launch_us=0.0)
    elements = 32 * 32 * 32 + 64 * 32 * 32
    assert slow.truth_us(conv(32, 64)) == pytest.approx(4 * (2 * elements + 64 * 32 * 9) / 100, rel=1e-2)


def test_groups_and_matrix_products_are_work_too():
    calm = device(macs_per_us=1e4, bytes_per_us=1e9, launch_us=0.0, step=1)
    assert calm.truth_us(conv(64, 64, group=64)) == pytest.approx(64 * 9 * 32 * 32 / 1e4, rel=1e-2)
    gemm = model([helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)], [1, 512], [1, 1000], {"w": (1000, 512)})
    matmul = model([helper.make_node("MatMul", ["x", "w"], ["y"])], [1, 512], [1, 1000], {"w": (512, 1000)})
    assert calm.truth_us(gemm) == pytest.approx(calm.truth_us(matmul)) == pytest.approx(512_000 / 1e4, rel=1e-2)


def test_half_precision_is_twice_as_fast():
    full, half = Simulated(), Simulated(precision="fp16")
    launch = SimulatedSettings().launch_us
    assert full.truth_us(conv(32, 64)) - launch == pytest.approx(2 * (half.truth_us(conv(32, 64)) - launch))


def test_what_is_not_static_is_refused():
    with pytest.raises(BuildFailed, match="every dimension must be a fixed number"):
        Simulated().compile(model([helper.make_node("Relu", ["x"], ["y"])], ["n", 3], ["n", 3], {}))


def test_time_is_virtual_and_a_seed_repeats_it():
    def run(seed):
        backend = device(seed=seed, noise=0.01, spikes=0.1)
        with backend.compile(conv(8, 8)) as compiled:
            assert isinstance(compiled, Compiled)
            samples = compiled.run(50)
        assert backend.clock() == round(sum(samples) * 1e3)
        return samples

    assert run(1) == run(1) != run(2)


def test_a_throttled_device_says_so_and_those_windows_are_thrown_away():
    backend = device(throttle=0.5, throttle_every_s=0.4, throttle_for_s=0.1, noise=0.001)
    truth_us = backend.truth_us(conv(32, 32))
    with backend.compile(conv(32, 32)) as compiled:
        found = [measure(compiled, protocol.DEFAULT, backend.clock, backend) for _ in range(10)]
        blind = [measure(compiled, protocol.DEFAULT, backend.clock) for _ in range(10)]
    assert [measurement.status for measurement in found] == ["ok"] * 10
    assert sum(measurement.clocks.get("discarded_windows", 0) for measurement in found) > 0
    assert max(max(measurement.samples_us) for measurement in found) < 1.1 * truth_us
    assert max(max(measurement.samples_us) for measurement in blind) > 1.4 * truth_us
    assert found[0].clocks["sm_mhz"] == 1500.0


def works(kit):
    pairs = [(a, b) for a in range(32, 161, 32) for b in range(32, 161, 32)]
    return [Workload.block(kit.spec(a, b), lambda a=a, b=b: conv(a, b)) for a, b in pairs]


# Without a watch before each row, so that the disturbances can come and go within seconds of the device's time.
SHORT = msgspec.structs.replace(protocol.FAST, settle_runs=0, max_time_ms=100.0)


def worst(kit, path, settings, safeguards):
    backend = Simulated(settings)
    list(profile(works(kit), backend, path, protocol=SHORT, lowering="1", safeguards=safeguards))
    onnx = {work.key: work.onnx() for work in works(kit)}
    rows = [row for row in LatencyTable.load(path).rows if row.kind == "block"]
    assert len(rows) == 25
    return max(abs(row.median_us / backend.truth_us(onnx[row.key]) - 1) for row in rows)


@pytest.mark.parametrize("seed", range(3))
def test_the_safeguards_bring_a_table_to_the_truth_and_without_them_it_is_far_off(kit, tmp_path, seed):
    hard = SimulatedSettings(
        seed=seed,
        drift=0.1,
        drift_period_s=2.0,
        throttle=0.5,
        throttle_every_s=0.5,
        throttle_for_s=0.1,
        others=0.3,
        others_every_s=0.7,
        others_for_s=0.1,
        spikes=0.02,
    )
    guarded = Safeguards(sentinel_every_s=0.2, drift_limit=0.006, retries=20)
    assert worst(kit, tmp_path / "on.jsonl", hard, guarded) < 0.01
    assert worst(kit, tmp_path / "off.jsonl", hard, OFF) > 0.05
