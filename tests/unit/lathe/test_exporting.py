from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from deploy.errors import DeployError
from latency import LatencyError, files
from latency.backends.engines import EngineSpec
from lathe import cli, exporting
from lathe.exporting import _devices, _engine_spec, _export_run, by_target, export, verify
from lathe.searching import search
from search import Task, finished


def spec(*flags):
    return _engine_spec(cli.parse(["export", "run", "--out", "out", *flags]))


def test_the_command_line_says_how_an_engine_is_built():
    assert spec() is None
    assert spec(
        "--workspace-mib", "64", "--optimization-level", "0", "--version-compatible", "--hardware-compatible"
    ) == EngineSpec(workspace_mib=64, optimization_level=0, version_compatible=True, hardware_compatible=True)
    assert spec("--compute-capability", "8.9", "12.0") == EngineSpec(compute_capabilities=("8.9", "12.0"))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("none", "none does not exist: give the directory of a finished search, MODEL.onnx or FILE.py:FUNCTION"),
        ("/dev/zero", "/dev/zero is a device, where a file is expected"),
    ],
)
def test_what_is_exported_is_called_what_it_is(source, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DeployError, match=f"^{said}"):
        export(cli.parse(["export", source, "--out", "new"]), lambda _: None)


def test_a_bundle_is_not_exported_again(tmp_path):
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "manifest.json").write_text("{}")
    command = cli.parse(["export", str(tmp_path / "bundle"), "--out", str(tmp_path / "out")])
    with pytest.raises(
        DeployError,
        match=r"bundle is a shipped bundle: `lathe verify .*bundle` checks it; to ship it anew export .*bundle/model.onnx$",
    ):
        export(command, lambda _: None)


@pytest.mark.parametrize(("home", "there"), [("first", "second"), ("second", "first"), (None, "first")])
def test_the_device_at_hand_is_judged_and_the_others_are_not_run(home, there, monkeypatch):
    """Of a kept run for two devices."""
    run = Path(__file__).parents[2] / "formats" / "run-4"
    first, second = _devices(finished.load(run))
    devices = {"first": first, "second": second}
    here = devices[home].device if home else None
    monkeypatch.setattr(exporting.backends, "get", lambda *_, **__: SimpleNamespace(device=here, runtime=first.runtime))
    monkeypatch.setattr(finished.FinishedRun, "network", lambda _: None)
    monkeypatch.setattr(finished.FinishedRun, "unpruned", lambda _: None)
    monkeypatch.setattr(Task, "quality", lambda *_: None)
    monkeypatch.setattr(files, "sha256", lambda _: "")
    shipped = {}
    _export_run(
        cli.parse(["export", str(run), "--target", "made-up", "--out", "b"]), lambda *_, **given: shipped.update(given)
    )
    assert shipped["record"].predicted == (devices[home].predicted if home else None)
    assert shipped["budget_ms"] == (devices[home].budget_us / 1000 if home else None)
    told = shipped["record"].provenance[f"not run on {devices[there].name}"]
    assert told.startswith("predicted ")
    assert told.endswith(f", the budget is {devices[there].budget_us:.1f} µs")
    assert sum(name.startswith("not run") for name in shipped["record"].provenance) == (1 if home else 2)
    assert ("no budget" in shipped["record"].provenance) == (home is None)
    with pytest.raises(
        DeployError,
        match="--batch 4: the run's budget and prediction are of batch 1, that of its table: leave it out, or",
    ):
        _export_run(cli.parse(["export", str(run), "--batch", "4", "--out", "b"]), pytest.fail)


NET = """
from torch import nn

def make():
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
"""


@pytest.fixture
def net(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NET)


@pytest.mark.usefixtures("net")
def test_a_network_of_ones_own_goes_from_search_to_bundle():
    epochs = "--pretrain-epochs 1 --search-epochs 1 --finetune-epochs 1 --batch 512"
    words = f"search uniform --module net.py:make --input 3x8x8 --budget-fraction 0.6 {epochs} --out run"
    *_, done = search(cli.parse(words.split()), lambda _: None)
    assert done.result.shipped.choice.widths == {"0": 8}
    made = export(cli.parse(["export", "run", "--protocol", "fast", "--out", "bundle"]), lambda _: None)
    assert made.manifest.failures == []


@pytest.mark.usefixtures("net")
def test_a_network_of_ones_own_ships_with_its_weights():
    import safetensors.torch
    from torch import nn

    weights = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)
    ).state_dict()
    safetensors.torch.save_file(weights, "w.safetensors")
    words = "export net.py:make --input 3x8x8 --weights w.safetensors --protocol fast --out bundle"
    made = export(cli.parse(words.split()), lambda _: None)
    assert made.manifest.failures == []
    assert made.manifest.provenance["module"] == "net.py:make"
    assert len(made.manifest.provenance["weights_sha256"]) == 64


@pytest.mark.usefixtures("net")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("export net.py:make", "does not say what it is for: give the shape of an image"),
        ("export net.py:make --input 3x8", "--input '3x8' is not CHANNELSxHEIGHTxWIDTH"),
        ("export net.py:make --input 3x8x8 --shape x=1x3x8x8", "is of MODEL.onnx; give --input"),
        (
            "export net.py:make --input 3x8x8 --weights net.py",
            "net.py is not a safetensors file .*: write it as safetensors.torch.save_file",
        ),
        ("export net.onnx --input 3x8x8", "--input is of a network of one's own"),
        (
            "search pas --module net.py:make --input 3x8x9 --budget-fraction 0.5",
            "square images of three channels, .* for 3x8x9",
        ),
        ("search pas --module net.py:make --input 3x8x0 --budget-fraction 0.5", "--input '3x8x0' is not"),
    ],
)
def test_what_does_not_fit_a_network_of_ones_own_is_said(words, message):
    command = cli.parse([*words.split(), "--out", "out"])
    with pytest.raises(ValueError, match=message):
        list(search(command, lambda _: None)) if words.startswith("search") else export(command, lambda _: None)
    assert not Path("out").exists()


def test_an_onnx_file_is_exported_with_the_evidence_and_the_precision_of_the_command_line(tmp_path, monkeypatch):
    import deploy

    monkeypatch.chdir(tmp_path)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3, 4, 4]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", values[:1], values[1:])
    onnx.save(helper.make_model(graph), "m.onnx")
    Path("photos").mkdir()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save("photos/0.png")
    seen = {}
    monkeypatch.setattr(deploy, "export", lambda model, **arguments: seen.update(arguments))
    words = "export m.onnx --shape x=1x3x4x4 --samples photos --mean 0 0 0 --std 1 1 1 --target tensorrt-rtx --precision fp32 --out b"
    export(cli.parse(words.split()), lambda _: None)
    assert (seen["form"].precision, seen["evidence"].samples.shape, seen["record"].preprocessing["size"]) == (
        "fp32",
        (1, 3, 4, 4),
        [4, 4],
    )
    assert seen["record"].provenance == {"onnx": "m.onnx", "images": "1 of 1 images of photos"}
    with pytest.raises(DeployError, match="has a dynamic shape"):
        export(cli.parse([word for word in words.split() if word not in ("--shape", "x=1x3x4x4")]), lambda _: None)


def test_several_targets_get_a_bundle_each_with_the_options_that_their_builds_have(tmp_path, monkeypatch):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    monkeypatch.chdir(tmp_path)
    words = "export m.onnx --target onnxruntime tensorrt-rtx --optimization-level 1 --compute-capability 8.9 --out b"
    first, second = by_target(cli.parse(words.split()))
    assert (first.target, first.out, first.optimization_level, first.compute_capability) == (
        ("onnxruntime",),
        Path("b/onnxruntime"),
        None,
        None,
    )
    assert (second.target, second.out, second.optimization_level) == (("tensorrt-rtx",), Path("b/tensorrt-rtx"), 1)
    one = cli.parse(["export", "m.onnx", "--out", "b"])
    assert by_target(one) == [one]
    Path("b").mkdir()
    Path("b/notes").touch()
    for arguments, message in (
        (words, "b holds notes, which is not a bundle of a target"),
        ("export m.onnx --target onnxruntime onnxruntime --out c", "--target onnxruntime onnxruntime names one twice"),
        ("export m.onnx --target onnxruntime coreml --out c", "'coreml' is unknown"),
        ("export m.onnx --target onnxruntime tensorrt-rtx --layout triton --out c", "no backend for tensorrt-rtx"),
        ("export m.onnx --target tensorrt-rtx onnxruntime --precision fp16 --out c", "'onnxruntime' ships precision"),
    ):
        with pytest.raises((DeployError, LatencyError), match=message):
            by_target(cli.parse(arguments.split()))


def test_the_bundles_of_several_targets_are_verified_together(tmp_path, monkeypatch):
    import deploy

    for name in ("onnxruntime", "tensorrt-rtx"):
        (tmp_path / "both" / name).mkdir(parents=True)
        (tmp_path / "both" / name / "manifest.json").touch()
    monkeypatch.setattr(deploy, "verify", lambda directory, on_step: directory.name)
    assert [check(print) for check in verify(tmp_path / "both")] == ["onnxruntime", "tensorrt-rtx"]
    assert [check(print) for check in verify(tmp_path / "both" / "onnxruntime")] == ["onnxruntime"]


def test_a_model_repository_that_cannot_be_is_refused_before_anything_is_built(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = "export m.onnx --layout triton --target tensorrt-rtx --out b"
    with pytest.raises(DeployError, match="Triton has no backend for tensorrt-rtx"):
        export(cli.parse(words.split()), lambda _: None)
