"""What docs/ship.md shows works as it stands there, in its order; what needs Docker or a compiler with TensorRT's headers is apart."""

import contextlib
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from deploy import load
from integration.conftest import ROOT
from lathe import cli

PAGE = (ROOT / "docs" / "ship.md").read_text()
COMMANDS = [
    shlex.split(line) for block in re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()
]
LOADER = ROOT / "docs" / "examples" / "load_engine.cpp"


def network(rng):
    """Images of any batch to two classes."""
    weights = {"w": rng.standard_normal((4, 3, 8, 8)), "v": rng.standard_normal((4, 2))}
    nodes = [
        helper.make_node("Conv", ["input", "w"], ["a"], strides=[8, 8]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("GlobalAveragePool", ["b"], ["c"]),
        helper.make_node("Flatten", ["c"], ["d"]),
        helper.make_node("MatMul", ["d", "v"], ["output"]),
    ]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("input", ["batch", 3, 224, 224]), ("output", ["batch", 2]))
    ]
    tensors = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """What a reader of the page has: an ONNX file with a dynamic batch, and photos."""
    where = tmp_path_factory.mktemp("ship")
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (where / "photos" / name).mkdir(parents=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(where / "photos" / name / "1.png")
    onnx.save(network(rng), where / "model.onnx")
    return where


def test_every_command_of_the_page_works_in_its_order(directory, monkeypatch, capsys):
    assert [command[:2] for command in COMMANDS] == [
        ["lathe", name] for name in ("export", "report", "verify", "export", "export", "export")
    ]
    monkeypatch.chdir(directory)
    for _, *words in COMMANDS:
        if "tensorrt-rtx" in words:
            pytest.importorskip("tensorrt_rtx")
        assert cli.parse([*words, *(["--protocol", "fast"] if words[0] == "export" else [])]).run() == 0, words
    assert "FP16 everywhere: " in capsys.readouterr().out
    assert load("shipped").manifest.shipped.score is not None
    assert (directory / "shipped.html").is_file()
    assert (directory / "engine" / "model.engine").is_file()
    assert "dims: [ -1, 3, 224, 224 ]" in (directory / "served.triton" / "served" / "config.pbtxt").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    with contextlib.redirect_stdout(None):
        exec(code, {})


def test_every_flag_that_the_page_names_exists_and_its_links_lead_somewhere():
    table = PAGE.partition("## For those who know trtexec")[2]
    ours = "".join(line.split("|")[2] for line in table.splitlines() if line.count("|") == 3)
    flags = set(re.findall(r"--[a-z][a-z-]+", ours + PAGE.partition("## For those")[0])) - {
        "--rm",
        "--model-repository",
    }
    known = {f"--{name.replace('_', '-')}" for name in cli.ExportCommand.__dataclass_fields__}
    assert flags <= known
    assert all((ROOT / "docs" / target).is_file() for target in re.findall(r"\]\(([^)#:]+)\)", PAGE))


def headers():
    """Directories with NvInfer.h and cuda_runtime_api.h; None where they are not installed."""
    import sysconfig

    packages = Path(sysconfig.get_path("purelib"))
    roots = [
        *packages.glob("tensorrt*"),
        *packages.glob("nvidia/*"),
        Path("/usr"),
        *Path("/usr/local").glob("cuda*"),
        Path("/usr/local/tensorrt"),
    ]
    found = []
    for name in ("NvInfer.h", "cuda_runtime_api.h"):
        file = next(
            (
                file
                for root in roots
                for part in ("include", "include/x86_64-linux-gnu")
                if (file := root / part / name).is_file()
            ),
            None,
        )
        if file is None:
            return None, f"{name} is not installed"
        found.append(file.parent)
    return found, ""


def test_the_loader_in_cpp_compiles():
    found, reason = headers()
    compiler = shutil.which("g++")
    if found is None or compiler is None:
        pytest.skip(reason or "g++ is not installed")
    include = [f"-I{path}" for path in found]
    done = subprocess.run(
        [compiler, "-std=c++17", "-Wall", "-Wextra", "-fsyntax-only", *include, str(LOADER)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
