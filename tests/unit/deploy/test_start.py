import subprocess
import sys

import msgspec
import numpy as np
import pytest
import safetensors.numpy

from deploy import BundleError, engine, start
from deploy.bundle import write_bundle
from latency import Runtime
from latency.errors import DeviceUnavailable
from unit.deploy.helpers import GPU


def test_what_ships_runs(made):
    kept = safetensors.numpy.load((made.directory / "reference.safetensors").read_bytes())
    with start(made.directory) as at_work:
        np.testing.assert_allclose(
            at_work.outputs({"input": kept["inputs.input"]})["output"], kept["outputs.output"], rtol=0, atol=1e-5
        )
        assert at_work.device == made.manifest.device


def test_a_changed_file_is_refused(bundle_copy):
    (bundle_copy / "model.onnx").write_bytes(b"other")
    with (
        pytest.raises(
            BundleError,
            match=r"model\.onnx was changed: build it again with `lathe export SOURCE --target onnxruntime --out NEW`",
        ),
        start(bundle_copy),
    ):
        pytest.fail("started")
    (bundle_copy / "model.onnx").unlink()
    with pytest.raises(BundleError, match=r"model\.onnx is missing"), start(bundle_copy):
        pytest.fail("started")


def refusing(made, tmp_path, monkeypatch, *, device=GPU, version="1.4", **changes):
    class FakeTensorRT:
        def __init__(self, flavour, **_):
            self.device, self.runtime = device, Runtime(name=flavour, version=version)

        def load(self, built):
            pytest.fail("loaded")

    monkeypatch.setattr(engine, "TensorRT", FakeTensorRT)
    changes = {"target": "tensorrt", "build": {}, "compute_capabilities": ("8.9",)} | changes
    manifest = msgspec.structs.replace(made.manifest, runtime=Runtime(name="tensorrt", version="1.4"), **changes)
    write_bundle(tmp_path / "out", manifest, {"model.onnx": made.read("model.onnx"), "model.engine": b"engine"})
    with pytest.raises(BundleError) as caught, start(tmp_path / "out"):
        pytest.fail("started")
    return str(caught.value)


@pytest.mark.parametrize(
    ("here", "reason"),
    [
        ({"version": "1.5"}, "model.engine is of tensorrt 1.4, here is 1.5"),
        (
            {"device": msgspec.structs.replace(GPU, compute_capability="9.0")},
            "model.engine is for compute capability 8.9, this Fake has 9.0",
        ),
    ],
)
def test_an_engine_of_another_gpu_or_tensorrt_is_refused_with_the_command_that_rebuilds(
    made, tmp_path, monkeypatch, here, reason
):
    said = refusing(made, tmp_path, monkeypatch, **here)
    assert (
        said
        == f"{tmp_path}/out cannot be loaded here: {reason}: build it again with `lathe export {tmp_path}/out/model.onnx --target tensorrt --out NEW`"
    )


def test_a_machine_without_the_device_says_so(bundle_copy, monkeypatch):
    def absent(*_, **__):
        raise DeviceUnavailable("no such device")

    monkeypatch.setattr(engine, "OnnxRuntime", absent)
    with pytest.raises(BundleError, match="cannot be loaded here: no such device"), start(bundle_copy):
        pytest.fail("started")


def test_verifying_and_starting_need_no_torch(made):
    code = (
        "import sys\nsys.modules['torch'] = None\nfrom deploy import start, verify\n"
        f"assert verify({str(made.directory)!r}).failures == []\n"
        f"with start({str(made.directory)!r}) as at_work: print(at_work.runtime.name)"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("onnxruntime\n", "")
