import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from latency import BuildFailed, Device, LatencyError, LatencyTable, RunFailed, Workload, profile, protocol
from latency.backends import Compiled
from latency.backends.onnxruntime import OnnxRuntime


def model(nodes, shape, out_shape, weights=(), kind=TensorProto.FLOAT, out_kind=TensorProto.FLOAT):
    values = helper.make_tensor_value_info("x", kind, shape), helper.make_tensor_value_info("y", out_kind, out_shape)
    graph = helper.make_graph(nodes, "g", [values[0]], [values[1]], list(weights))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()


def conv(c_in, c_out, size):
    weights = numpy_helper.from_array(np.ones((c_out, c_in, 3, 3), np.float32), "w")
    node = helper.make_node("Conv", ["x", "w"], ["y"], kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    return model([node], [1, c_in, size, size], [1, c_out, size, size], [weights])


@pytest.fixture(scope="module")
def backend():
    return OnnxRuntime()


def test_its_fingerprint(backend):
    assert backend.device == Device.cpu(threads=1)
    assert (backend.runtime.name, backend.runtime.version) == ("onnxruntime", onnxruntime.__version__)
    assert OnnxRuntime(threads=2).device.threads == 2
    with pytest.raises(LatencyError, match="threads 0: at least 1 is needed"):
        OnnxRuntime(threads=0)


def test_a_run_is_as_many_latencies_as_asked(backend):
    with backend.compile(conv(8, 8, 16)) as compiled:
        assert isinstance(compiled, Compiled)
        assert len(compiled.run(7)) == 7
        assert compiled.run(0) == []
        assert all(us > 0 for us in compiled.run(3))


def test_more_work_takes_longer(backend):
    with backend.compile(conv(8, 8, 16)) as small, backend.compile(conv(64, 64, 64)) as large:
        assert min(small.run(20)) * 5 < min(large.run(5))


def test_inputs_are_not_zeros_and_always_the_same(backend, monkeypatch):
    seen = []
    make = onnxruntime.OrtValue.ortvalue_from_numpy
    monkeypatch.setattr(
        onnxruntime.OrtValue,
        "ortvalue_from_numpy",
        lambda array, memory: (seen.append(array.copy()), make(array, memory))[1],
    )
    for _ in range(2):
        backend.compile(conv(3, 8, 8))
    assert [array.shape for array in seen] == [(1, 3, 8, 8), (1, 8, 8, 8)] * 2
    assert 0.5 < seen[0].std() < 1.5
    assert np.array_equal(seen[0], seen[2])


@pytest.mark.parametrize(
    ("onnx_bytes", "words"),
    [
        (b"not onnx", "protobuf"),
        (model([helper.make_node("NoSuchOperator", ["x"], ["y"])], [1], [1]), "NoSuchOperator"),
        (
            model([helper.make_node("Relu", ["x"], ["y"])], ["n", 3], ["n", 3]),
            r"'x' has shape \['n', 3\]: every dimension must be a fixed number",
        ),
        (
            model([helper.make_node("Identity", ["x"], ["y"])], [1], [1], (), TensorProto.STRING, TensorProto.STRING),
            r"'x' is a tensor\(string\): tensors of numbers and booleans are allowed",
        ),
        (
            model([helper.make_node("Relu", ["x"], ["y"])], [1, 10**12], [1, 10**12]),
            "'x' takes 3,725 GiB: inputs and outputs of at most 8 GiB are run",
        ),
    ],
)
def test_what_it_refuses_is_one_line(backend, onnx_bytes, words, capfd):
    with pytest.raises(BuildFailed, match=f"(?i){words}") as caught:
        backend.compile(onnx_bytes)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_failing_run_is_one_line(backend):
    # The shape fits the declaration only when the input is what it is not.
    shape = numpy_helper.from_array(np.array([7], np.int64), "s")
    nodes = [
        helper.make_node("NonZero", ["x"], ["n"]),
        helper.make_node("Cast", ["n"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["f", "s"], ["y"]),
    ]
    with (
        backend.compile(model(nodes, [1, 4], [7], [shape])) as compiled,
        pytest.raises(RunFailed, match="Reshape") as caught,
    ):
        compiled.run(1)
    assert "\n" not in str(caught.value)


def test_another_provider_is_in_the_name_and_runs_all_of_a_network_or_nothing():
    providers = [name.lower().removesuffix("executionprovider") for name in onnxruntime.get_available_providers()]
    with pytest.raises(
        LatencyError,
        match=rf"execution provider 'nonesuch' is not in .*: choose one of {', '.join(providers)}, or install",
    ):
        OnnxRuntime(provider="nonesuch")
    assert OnnxRuntime(provider="CPUExecutionProvider").name == "onnxruntime"
    if "azure" not in providers:
        pytest.skip("this onnxruntime has no AzureExecutionProvider")
    backend = OnnxRuntime(provider="azure", precision="fp16")
    assert (backend.name, backend.runtime.name, backend.precision) == ("onnxruntime:azure", "onnxruntime:azure", "fp16")
    with pytest.raises(BuildFailed, match="fallback"):
        backend.compile(conv(8, 8, 16))


def test_half_precision_inputs_are_bound(backend):
    half = model([helper.make_node("Relu", ["x"], ["y"])], [1, 4], [1, 4], (), TensorProto.FLOAT16, TensorProto.FLOAT16)
    with backend.compile(half) as compiled:
        assert len(compiled.run(2)) == 2


def test_blocks_are_profiled(backend, kit, tmp_path):
    works = [Workload.block(kit.spec(8, width), lambda width=width: conv(8, width, 32)) for width in (8, 16)]
    list(profile(works, backend, tmp_path / "t.jsonl", protocol=protocol.get("fast"), lowering="1"))
    table = LatencyTable.load(tmp_path / "t.jsonl")
    assert [row.key for row in table.rows] == ["sentinel", "overhead", *(work.key for work in works)]
    assert all(row.measured and 0 < row.median_us < 1e5 and len(row.samples_us) >= 20 for row in table.rows)
    assert table.rows[1].median_us < table.rows[2].median_us


def endless():
    """A Loop of 2**62 iterations."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Mul", ["a", "a"], ["b"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("a", TensorProto.FLOAT, [1]),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("b", TensorProto.FLOAT, [1]),
        ],
    )
    trips = numpy_helper.from_array(np.array(2**62), "trips")
    return model([helper.make_node("Loop", ["trips", "", "x"], ["y"], body=body)], [1], [1], [trips])


def test_a_network_that_never_ends_is_given_up(backend, monkeypatch):
    monkeypatch.setattr("latency.backends.onnxruntime.MAX_RUN_S", 0.2)
    with backend.compile(endless()) as compiled:
        for _ in range(2):
            with pytest.raises(
                RunFailed,
                match=r"^one inference takes longer than 0.2 s: is there a Loop in the network that does not end\?$",
            ):
                compiled.run(3)


def test_a_block_that_never_ends_is_a_row_and_the_next_is_measured(backend, kit, tmp_path, monkeypatch):
    monkeypatch.setattr("latency.backends.onnxruntime.MAX_RUN_S", 0.2)
    works = [Workload.block(kit.spec(8, 8), endless), Workload.block(kit.spec(8, 16), lambda: conv(8, 16, 32))]
    list(profile(works, backend, tmp_path / "t.jsonl", protocol=protocol.get("fast"), lowering="1"))
    *_, first, second = LatencyTable.load(tmp_path / "t.jsonl").rows
    assert first.status == "run_failed"
    assert first.error.startswith("one inference takes longer than 0.2 s")
    assert second.measured
