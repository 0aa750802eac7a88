"""Engines are built for real where TensorRT-RTX is installed, which needs no GPU."""

import re
import sys

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from latency import BuildFailed, DeviceUnavailable, LatencyError, MissingExtra
from latency.backends.engines import EngineSpec, build_engine, process_logger
from latency.distribution import install_command


def model(nodes, weights=(), shape=(1, 4, 8, 8), out_shape=(1, 4, 8, 8), kind=TensorProto.FLOAT):
    values = [helper.make_tensor_value_info(name, kind, size) for name, size in (("x", shape), ("y", out_shape))]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], list(weights))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()


def conv(dtype=np.float32):
    weights = numpy_helper.from_array(np.ones((4, 4, 3, 3), dtype), "w")
    node = helper.make_node("Conv", ["x", "w"], ["y"], kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    return model([node], [weights], kind=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


@pytest.fixture(scope="module")
def rtx():
    return pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_an_engine_is_built_without_a_gpu_and_without_a_word(rtx, dtype, capfd):
    engine = build_engine(conv(dtype), "tensorrt-rtx")
    assert len(engine) > 1000
    assert capfd.readouterr() == ("", "")


def test_an_engine_for_named_gpus(rtx):
    one, two = (
        build_engine(conv(), "tensorrt-rtx", EngineSpec(compute_capabilities=names))
        for names in (("8.9",), ("8.9", "12.0"))
    )
    assert len(one) < len(two)


def test_tf32_is_off_unless_asked_for(rtx):
    exact, rounded = (
        build_engine(conv(), "tensorrt-rtx", EngineSpec(tf32=tf32, workspace_mib=16)) for tf32 in (False, True)
    )
    assert exact.count(b"tf32=0") > rounded.count(b"tf32=0")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (
            EngineSpec(compute_capabilities=("8.9", "9.9")),
            r"TensorRT-RTX does not build for compute capability '9\.9': choose from current, 7\.5",
        ),
        (EngineSpec(version_compatible=True), "version_compatible: only TensorRT builds such engines"),
        (EngineSpec(hardware_compatible=True), "hardware_compatible: only TensorRT builds such engines"),
        (EngineSpec(optimization_level=6), "optimization level 6: 0 to 5 are allowed"),
    ],
)
def test_a_spec_that_cannot_be_is_refused(rtx, spec, words):
    with pytest.raises(LatencyError, match=words):
        build_engine(conv(), "tensorrt-rtx", spec)


@pytest.mark.parametrize(
    ("operator", "words"),
    [
        ("NoSuchOperator", r"INVALID_NODE in checkFallbackPluginImporter: .*Plugin not found"),
        ("Det", "UNSUPPORTED_NODE in checkDet: "),
    ],
)
def test_the_parser_names_node_and_operator_and_is_heard(rtx, operator, words):
    bad = model([helper.make_node(operator, ["x"], ["y"], name="layer7")])
    with pytest.raises(
        BuildFailed, match=rf"^tensorrt-rtx cannot parse node 'layer7' \({operator}\): {words}"
    ) as caught:
        build_engine(bad, "tensorrt-rtx")
    assert "\n" not in str(caught.value)


def test_a_build_tells_how_far_it_is(rtx):
    said = []
    build_engine(conv(), "tensorrt-rtx", on_progress=said.append)
    assert "Building engine 1/6" in said
    assert all(re.fullmatch(r"[\w ,]+ \d+/\d+", line) for line in said), said


def test_an_interrupt_stops_a_build_at_its_next_step(rtx):
    said = []

    def interrupt(line):
        said.append(line)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engine(conv(), "tensorrt-rtx", on_progress=interrupt)
    assert len(said) < 5


def test_a_build_is_told_its_own_errors_while_another_network_lives(rtx):
    logger = process_logger(rtx)
    alive = rtx.Builder(logger)
    with pytest.raises(BuildFailed, match="Det"):
        build_engine(model([helper.make_node("Det", ["x"], ["y"], name="layer7")]), "tensorrt-rtx")
    assert process_logger(rtx) is logger
    logger.log(rtx.ILogger.Severity.ERROR, "of another network")
    assert len(build_engine(conv(), "tensorrt-rtx")) > 1000
    assert logger.errors() == "no reason given"
    del alive


@pytest.mark.parametrize(
    ("onnx_bytes", "words"),
    [
        (b"not onnx", "Failed to parse the ONNX model"),
        (
            model([helper.make_node("Relu", ["x"], ["y"])], shape=("n", 4), out_shape=("n", 4)),
            r"input 'x' has shape \(-1, 4\)",
        ),
    ],
)
def test_what_is_not_a_static_model_is_refused(rtx, onnx_bytes, words):
    with pytest.raises(BuildFailed, match=words):
        build_engine(onnx_bytes, "tensorrt-rtx")


def test_a_flavour_that_is_not_installed_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingExtra, match=re.escape(f"'tensorrt': {install_command('tensorrt')}")):
        build_engine(conv(), "tensorrt")


def test_libraries_that_do_not_load_are_said_in_one_line(monkeypatch, tmp_path):
    (tmp_path / "tensorrt.py").write_text("raise OSError('libnvinfer.so.10: cannot open\\nshared object file')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    with pytest.raises(
        DeviceUnavailable,
        match=r"tensorrt is installed but its libraries do not load: libnvinfer\.so\.10: cannot open shared",
    ):
        build_engine(conv(), "tensorrt")
