"""A quantised network ships as it is: INT8 stays INT8, and what is around it may be half precision."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from deploy import Evidence, engine, export, verify
from deploy.report import page
from deploy.samples import inputs_of, samples_of
from latency.errors import DeviceUnavailable
from unit.deploy.graphs import EYE, conv, kinds, made, ops, relu
from unit.deploy.helpers import QUICK

X = np.random.default_rng(0).standard_normal((3, 4, 8, 8)).astype(np.float32)


def quantized():
    """An INT8 convolution with a ReLU, and a float convolution behind it."""
    scale, weight = np.float32(0.05), np.float32(0.02)
    weights = {
        "w": np.random.default_rng(1).integers(-31, 32, (4, 4, 3, 3)).astype(np.int8),
        "b": np.arange(4, dtype=np.int32) * 100,
        "w2": EYE,
        "scale": scale,
        "w_scale": weight,
        "b_scale": scale * weight,
        "zero": np.int8(0),
    }
    dequantize = [
        helper.make_node("DequantizeLinear", [name, f"{name}_scale"], [f"{name}.float"], f"{name}.dequantize")
        for name in ("w", "b")
    ]
    around = [
        [
            helper.make_node("QuantizeLinear", [value, "scale", "zero"], [f"{value}.int8"], f"{value}.quantize"),
            helper.make_node(
                "DequantizeLinear", [f"{value}.int8", "scale", "zero"], [f"{value}.q"], f"{value}.dequantize"
            ),
        ]
        for value in ("x", "r")
    ]
    layer = helper.make_node("Conv", ["x.q", "w.float", "b.float"], ["c"], "int8", pads=[1, 1, 1, 1])
    return made([*dequantize, *around[0], layer, relu("c", "r"), *around[1], conv("r.q", "y", "w2", "tail")], weights)


def test_int8_ships_for_the_cpu_as_it_came_and_bundle_and_page_say_so(tmp_path):
    model = quantized()
    bundle = export(
        model.SerializeToString(),
        target="onnxruntime",
        out=tmp_path / "out",
        protocol=QUICK,
        evidence=Evidence(samples=X),
    )
    shipped, manifest = onnx.load(bundle.directory / "model.onnx"), bundle.manifest
    assert ops(shipped) == ops(model)
    assert kinds(shipped)["w"] == TensorProto.INT8
    assert [(step.name, step.precision, step.verdict) for step in manifest.validation] == [
        ("original", "int8", "reference"),
        ("onnx", "int8", "passed"),
    ]
    assert (manifest.shipped.params, manifest.shipped.macs) == (4 * 4 * 9 + 4 + 16, 64 * (4 * 4 * 9 + 16))
    assert (manifest.int8_nodes, manifest.arithmetic) == (1, "fp32, and INT8 in 1 node")
    assert "multiply-accumulates, fp32, and INT8 in 1 node." in (bundle.directory / "README.md").read_text()
    assert "in fp32, and INT8 in 1 node" in page(bundle.directory).subtitle
    assert verify(bundle.directory).failures == []


def test_int8_kernels_that_compute_something_else_are_found_against_what_the_operators_say(tmp_path, monkeypatch):
    wrong = engine.onnx_runner

    def saturating(model, threads=1, *, plain=False):
        run = wrong(model, threads, plain=plain)
        return run if plain else lambda inputs: {name: 0.5 * output for name, output in run(inputs).items()}

    monkeypatch.setattr(engine, "onnx_runner", saturating)
    bundle = export(
        quantized().SerializeToString(),
        target="onnxruntime",
        out=tmp_path / "out",
        protocol=QUICK,
        evidence=Evidence(samples=X),
    )
    (failure,) = bundle.manifest.failures
    assert failure.endswith("more than 5e-02; " + engine.SATURATES)


def test_half_precision_is_around_int8_with_no_cast_within_and_builders_get_a_float_bias(tmp_path, monkeypatch):
    pytest.importorskip("tensorrt_rtx")

    def absent(flavour, *, spec):
        raise DeviceUnavailable("no NVIDIA driver found")

    monkeypatch.setattr(engine, "TensorRT", absent)
    bundle = export(
        quantized().SerializeToString(), target="tensorrt-rtx", out=tmp_path / "out", evidence=Evidence(samples=X)
    )
    half = onnx.load(bundle.directory / "model.fp16.onnx")
    found = kinds(half)
    assert (found["w"], found["b.float"], found["w2"]) == (TensorProto.INT8, TensorProto.FLOAT, TensorProto.FLOAT16)
    quantize = ["QuantizeLinear", "DequantizeLinear"]
    assert ops(half) == ["DequantizeLinear", *quantize, "Conv", "Relu", *quantize, "Cast", "Conv", "Cast"]
    steps = {step.name: (step.precision, step.verdict) for step in bundle.manifest.validation}
    assert (steps["onnx-fp16"], steps["engine"]) == (("int8", "passed"), ("int8", "not run"))
    assert verify(bundle.directory).failures == []
    assert (bundle.directory / "model.engine").stat().st_size > 1000
    samples = samples_of(X, inputs_of(quantized())).inputs
    plain = engine.onnx_runner(quantized().SerializeToString(), plain=True)(samples)["y"]
    np.testing.assert_allclose(engine.half_runner(half.SerializeToString())(samples)["y"], plain, rtol=0, atol=2e-3)
