"""What stands in a bundle for people without Lathe: its README's example is run as they would run it."""

import json
import re
import runpy
import subprocess
import sys
import types

import msgspec
import numpy as np
import pytest
import safetensors.numpy

from deploy import handout, load, verify
from deploy.bundle import write_bundle
from deploy.handout import files

WITHOUT = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "onnx", "deploy", "latency", "lathe", "msgspec", "safetensors", "polygraphy"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
"""


def alone(code, cwd, *arguments):
    """Run Python in a directory with numpy and the runtime alone."""
    return subprocess.run(
        [sys.executable, "-P", "-W", "error", "-c", WITHOUT + code, *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        check=False,
    )


def example(directory):
    (found,) = re.findall(r"```python\n(.*?)```", (directory / "README.md").read_text(), re.DOTALL)
    return found


def test_the_example_has_ten_lines_and_runs_with_the_runtime_alone(bundle_copy):
    code = example(bundle_copy)
    assert len(code.splitlines()) == 10
    done = alone(code, bundle_copy)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "output float32 (1, 4)\n"
    assert verify(bundle_copy).failures == [], "running the example leaves nothing in the bundle"


def test_it_computes_what_the_trained_network_does(bundle_copy, tmp_path):
    kept = safetensors.numpy.load((bundle_copy / "reference.safetensors").read_bytes())
    np.save(tmp_path / "x.npy", kept["inputs.input"][0])
    code = example(bundle_copy).replace('np.zeros(shape, manifest["dtypes"][name])', f'np.load("{tmp_path / "x.npy"}")')
    done = alone(f"{code}\nnp.save('{tmp_path / 'y.npy'}', outputs['output'])", bundle_copy)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), kept["outputs.output"][0], rtol=0, atol=1e-5)
    script = alone(
        "import runpy; sys.argv = sys.argv[0:]; runpy.run_path('run.py', run_name='__main__')",
        bundle_copy,
        str(tmp_path / "x.npy"),
    )
    output = kept["outputs.output"][0]
    assert script.stdout.startswith("output float32 (1, 4) from "), script.stderr
    assert script.stdout.endswith(f" largest at [{output.argmax()}]\n")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "0 arrays are given, the inputs are input: python run.py INPUT.npy ..."),
        (np.zeros((2, 3, 8, 8), np.float32), "input input is float32 [1, 3, 8, 8], given float32 [2, 3, 8, 8]"),
        (np.zeros((1, 3, 8, 8), np.complex64), "input input is float32 [1, 3, 8, 8], given complex64 [1, 3, 8, 8]"),
        (b"", "x.npy is not an .npy file of numbers"),
        (b"\x93NUMPY\x01\0\x08\0{(\n     ", "x.npy is not an .npy file of numbers"),
        (b"PK\3\4", "x.npy is not an .npy file of numbers"),
        (np.array([{}]), "x.npy is not an .npy file of numbers"),
    ],
)
def test_misuse_of_the_script_is_said_in_one_line(bundle_copy, content, message):
    if isinstance(content, np.ndarray):
        np.save(bundle_copy / "x.npy", content)
    elif content is not None:
        (bundle_copy / "x.npy").write_bytes(content)
    words = [] if content is None else ["x.npy"]
    done = alone(
        f"import runpy; sys.argv = {['run.py', *words]}; runpy.run_path('run.py', run_name='__main__')", bundle_copy
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"run.py: {message}")
    assert done.stderr.count("\n") == 1


def test_a_runtime_that_is_not_installed_is_said_in_one_line(bundle_copy):
    without = WITHOUT.replace('"torch", ', '"torch", "onnxruntime", ')
    code = f"{without}\nimport runpy; sys.argv = ['run.py', 'x.npy']; runpy.run_path('run.py', run_name='__main__')"
    np.save(bundle_copy / "x.npy", np.zeros(1))
    done = alone(code, bundle_copy)
    assert (done.returncode, done.stderr) == (
        2,
        "run.py: No module named 'onnxruntime': README.md says what to install\n",
    )


def test_random_samples_are_said_to_be_so(made):
    drawn = msgspec.structs.replace(made.manifest, samples_from="random")
    assert b"samples were drawn at random, as none were given. Latency" in files(drawn, set())["README.md"]
    assert b"drawn at random" not in files(made.manifest, set())["README.md"]


def test_a_changed_model_is_refused_with_the_command_that_mends_it(bundle_copy):
    with (bundle_copy / "model.onnx").open("ab") as file:
        file.write(b"\0")
    done = alone(example(bundle_copy), bundle_copy)
    assert done.returncode == 1
    assert done.stderr.endswith(
        "model.onnx was changed: build it again with `lathe export SOURCE --target onnxruntime --out NEW`\n"
    )


def test_the_readme_says_what_it_is(made):
    text = (made.directory / "README.md").read_text()
    for words in (
        "# A network for onnxruntime",
        "All compared outputs agree",
        "| input | `input` | float32 | [1, 3, 8, 8] |\n| output | `output` | float32 | [1, 4] |",
        "`python run.py INPUT.npy`",
        "budget 10,000.000 ms: met",
        '`{"mean": [0.5, 0.5, 0.5]}`',
    ):
        assert words in text
    assert {name for name in made.manifest.files if f"| `{name}` |" in text} == set(made.manifest.files) - {"README.md"}
    assert set(files(made.manifest, set())) == set(handout.NAMES)


def engine_bundle(made, out, **changes):
    changes = {"target": "tensorrt-rtx", "build": {}, "compute_capabilities": ("8.9",)} | changes
    changes |= {"inputs": {"input": (1, 3)}, "outputs": {"output": (1, 3)}}
    manifest = msgspec.structs.replace(
        made.manifest, runtime=msgspec.structs.replace(made.manifest.runtime, version="1.4"), **changes
    )
    content = {"model.onnx": b"graph", "model.engine": b"engine"}
    return write_bundle(out, manifest, content | files(manifest, set(content))).directory


class FakeCuda(types.SimpleNamespace):
    """Device memory is a dictionary; the engine doubles its input."""

    def __init__(self, capability=(8, 9)):
        super().__init__(capability=capability, memory={}, sizes={})
        self.cudaDeviceAttr = types.SimpleNamespace(
            cudaDevAttrComputeCapabilityMajor=0, cudaDevAttrComputeCapabilityMinor=1
        )
        self.cudaMemcpyKind = types.SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)

    def cudaDeviceGetAttribute(self, which, device):
        return 0, self.capability[which]

    def cudaStreamCreate(self):
        return 0, 7

    def cudaMalloc(self, size):
        self.sizes[len(self.sizes) + 100] = size
        return 0, len(self.sizes) + 99

    def cudaMemcpy(self, to, source, size, kind):
        import ctypes

        if kind == 1:
            assert size == self.sizes[to]
            self.memory[to] = ctypes.string_at(source, size)
        else:
            ctypes.memmove(to, self.memory[source], size)
        return (0,)

    def cudaStreamSynchronize(self, stream):
        return (0,)


def fake_tensorrt(cuda, version="1.4", loads=True, invalid=None):
    names = ["input", "output"]

    class Context:
        def set_tensor_address(self, name, place):
            setattr(self, name, place)

        def execute_async_v3(self, stream):
            cuda.memory[self.output] = (2 * np.frombuffer(cuda.memory[self.input], np.float32)).tobytes()
            return True

    engine = types.SimpleNamespace(
        num_io_tensors=2,
        get_tensor_name=names.__getitem__,
        get_tensor_shape=lambda name: (1, 3),
        get_tensor_dtype=lambda name: "float",
        get_tensor_mode=names.index,
        create_execution_context=Context,
    )
    logger = type("Logger", (), {"ERROR": 1, "__init__": lambda self, level: None})
    deserialize = lambda data: engine if loads and data == b"engine" else None  # noqa: E731
    checks = {} if invalid is None else {"get_engine_validity": lambda data: (2, invalid)}
    runtime = lambda logger: types.SimpleNamespace(deserialize_cuda_engine=deserialize, **checks)  # noqa: E731
    modes = types.SimpleNamespace(INPUT=0)
    parts = {"nptype": lambda _: np.float32, "TensorIOMode": modes, "EngineValidity": types.SimpleNamespace(INVALID=2)}
    parts["EngineInvalidityDiagnostics"] = types.SimpleNamespace(
        __members__={"VERSION_MISMATCH": 1, "UNSUPPORTED_CC": 2}
    )
    return types.SimpleNamespace(__version__=version, Logger=logger, Runtime=runtime, **parts)


@pytest.fixture
def fakes(monkeypatch):
    def install(cuda=None, **options):
        cuda = cuda or FakeCuda()
        for name, module in (
            ("cuda", types.ModuleType("cuda")),
            ("cuda.bindings", types.ModuleType("b")),
            ("cuda.bindings.runtime", cuda),
        ):
            monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setitem(sys.modules, "tensorrt_rtx", fake_tensorrt(cuda, **options))

    return install


def test_a_missing_driver_is_named(made, tmp_path, fakes):
    cuda = FakeCuda()
    cuda.cudaDeviceGetAttribute = lambda *_: (
        type("Error", (int,), {"__str__": lambda self: "cudaErrorNoDevice"})(100),
    )
    fakes(cuda)
    with pytest.raises(RuntimeError, match="^CUDA: cudaErrorNoDevice: it needs an NVIDIA GPU and its driver$"):
        runpy.run_path(str(engine_bundle(made, tmp_path / "out") / "run.py"))["load"]()


def test_an_engine_runs_over_a_fake_gpu(made, tmp_path, fakes):
    fakes()
    run = runpy.run_path(str(engine_bundle(made, tmp_path / "out") / "run.py"))["load"]()
    for value in (1.0, 5.0):
        np.testing.assert_array_equal(
            run(np.full((1, 3), value, np.float32))["output"], np.full((1, 3), 2 * value, np.float32)
        )


@pytest.mark.parametrize(
    ("options", "changes", "message"),
    [
        ({"version": "1.5"}, {}, r"model\.engine is of tensorrt-rtx 1\.4, here is 1\.5: "),
        ({"cuda": FakeCuda((9, 0))}, {}, r"model\.engine is for compute capability 8\.9, this GPU has 9\.0: "),
        ({"invalid": 2}, {}, r"model\.engine is not valid here \(UNSUPPORTED_CC\): "),
        ({"loads": False}, {}, r"model\.engine does not load with tensorrt-rtx 1\.4: "),
    ],
)
def test_an_engine_of_something_else_is_refused(made, tmp_path, fakes, options, changes, message):
    fakes(**options)
    directory = engine_bundle(made, tmp_path / "out", **changes)
    with pytest.raises(
        ValueError, match=message + "build it again with `lathe export .*/model.onnx --target tensorrt-rtx --out NEW`"
    ):
        runpy.run_path(str(directory / "run.py"))["load"]()


def test_what_loads_elsewhere_by_its_build_is_let_through(made, tmp_path, fakes):
    fakes(FakeCuda((9, 0)), version="1.5")
    directory = engine_bundle(made, tmp_path / "out", build={"version_compatible": True}, compute_capabilities=())
    assert runpy.run_path(str(directory / "run.py"))["load"]()(np.ones((1, 3), np.float32))["output"].tolist() == [
        [2.0, 2.0, 2.0]
    ]
    assert json.loads((directory / "manifest.json").read_text())["compute_capabilities"] == []
    assert load(directory).manifest.target == "tensorrt-rtx"
