import contextlib
import hashlib
import json
import runpy
import warnings

import msgspec
import numpy as np
import onnx
import pytest
import safetensors.numpy
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from deploy import (
    DeployError,
    Evidence,
    Manifest,
    Record,
    engine,
    evidence,
    export,
    forms,
    start,
    to_onnx,
    triton,
    verify,
)
from deploy.cleaning import Cleaned, clean
from deploy.options import Build, Form
from deploy.shapes import Span
from latency import BuildFailed, Device, Runtime
from latency.errors import DeviceUnavailable
from reparam import Counts, ReparamError
from unit.deploy.helpers import GPU, QUICK, SHAPE, example, network, run_on, samples


def test_every_form_of_the_network_is_compared(made):
    steps = {(step.name, step.precision): step for step in made.manifest.validation}
    assert list(steps) == [
        ("trained", "fp64"),
        ("fused", "fp64"),
        ("squeezed", "fp64"),
        ("trained", "fp32"),
        ("fused", "fp32"),
        ("squeezed", "fp32"),
        ("onnx", "fp32"),
    ]
    assert [step.verdict for step in steps.values()] == [
        "reference",
        "passed",
        "passed",
        "reference",
        "passed",
        "passed",
        "passed",
    ]
    assert steps["squeezed", "fp64"].worst.relative <= 1e-10
    assert steps["onnx", "fp32"].worst.relative <= 1e-5
    assert steps["onnx", "fp32"].score == steps["trained", "fp32"].score


def test_the_shipped_and_the_unpruned_network_stand_side_by_side(made):
    shipped, unpruned = made.manifest.shipped, made.manifest.unpruned
    assert Counts(params=shipped.params, macs=shipped.macs) == Counts(
        params=(3 * 4 + 4 * 6) * 9 + 10 + 6 * 4 + 4, macs=3 * 4 * 9 * 16 + 4 * 6 * 9 * 4 + 6 * 4
    )
    assert unpruned.macs == 3 * 8 * 9 * 16 + 8 * 8 * 9 * 4 + 8 * 4
    for network_facts, predicted_us in ((shipped, 50.0), (unpruned, 80.0)):
        assert network_facts.measured.low_us <= network_facts.measured.median_us <= network_facts.measured.high_us
        assert network_facts.predicted.us == predicted_us
        assert 0 <= network_facts.score.low <= network_facts.score.value <= network_facts.score.high <= 1
    assert made.manifest.budget_verdict == "met"
    assert made.manifest.failures == []


def test_the_manifest_says_what_the_bundle_is(made):
    manifest = made.manifest
    assert (manifest.target, manifest.precision, manifest.inputs, manifest.outputs) == (
        "onnxruntime",
        "fp32",
        {"input": SHAPE},
        {"output": (1, 4)},
    )
    assert [(layer.name, layer.kept, layer.of) for layer in manifest.layers] == [("0", 4, 8), ("1", 6, 8)]
    assert (manifest.samples, manifest.samples_from, manifest.classes) == (12, "given", ("a", "b", "c", "d"))
    assert manifest.preprocessing == {"mean": [0.5, 0.5, 0.5]}
    assert manifest.provenance == {"table": "ab" * 32, "fuse": "blocks deployed: 2; layers 3 -> 3, norms 0 -> 0"}
    assert manifest.device == Device.cpu(1)
    assert set(manifest.files) == {"architecture.json", "model.onnx", "reference.safetensors", "README.md", "run.py"}


def test_every_link_of_the_chain_names_what_it_is_made_from(made):
    chain = made.manifest.chain
    assert [link.name for link in chain] == ["architecture", "trained", "fused", "squeezed", "onnx"]
    assert [link.made_from for link in chain] == ["", "architecture", "trained", "fused", "squeezed"]
    assert {link.file: link.sha256 for link in chain if link.file} == {
        name: made.manifest.files[name] for name in ("architecture.json", "model.onnx")
    }
    assert len({link.sha256 for link in chain}) == 5


def test_a_few_samples_are_kept_with_what_the_trained_network_says(made):
    kept = safetensors.numpy.load((made.directory / "reference.safetensors").read_bytes())
    np.testing.assert_array_equal(kept["inputs.input"], samples()[:8, None].numpy())
    with torch.no_grad():
        np.testing.assert_allclose(
            kept["outputs.output"][:, 0], network().eval()(samples()[:8]).numpy(), rtol=0, atol=1e-6
        )


def test_the_arguments_stay_as_they_were(tmp_path):
    model = network().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    export(model, example(), target="onnxruntime", out=tmp_path / "out", protocol=QUICK)
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_without_samples_random_ones_are_used_and_said_so(tmp_path):
    made = export(network(), example(), target="onnxruntime", out=tmp_path / "out", protocol=QUICK)
    manifest = made.manifest
    assert (manifest.samples_from, manifest.shipped.score, manifest.unpruned) == ("random", None, None)
    assert manifest.budget_verdict == "no budget"


def test_a_missed_budget_is_a_failure_that_is_written_all_the_same(tmp_path):
    steps = []
    made = export(
        network(),
        example(),
        target="onnxruntime",
        out=tmp_path / "out",
        protocol=QUICK,
        budget_ms=1e-6,
        on_step=steps.append,
    )
    assert made.manifest.budget_verdict == "missed"
    assert [line.split(":")[0] for line in made.manifest.failures] == ["latency"]
    assert [step for step in steps if not step.startswith("measure ")] == [
        *("fuse, squeeze and lower", "build for onnxruntime", "validate", "measure", "write")
    ]


def test_a_batch_and_any_layer_go_through(tmp_path):
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x):
            return torch.sigmoid(x + self.conv(x))

    made = export(
        Residual(),
        torch.zeros(5, 3, 8, 8),
        target="onnxruntime",
        out=tmp_path / "out",
        protocol=QUICK,
        evidence=Evidence(samples=samples(7)),
    )
    assert (made.manifest.inputs["input"][0], made.manifest.outputs) == (5, {"output": (5, 3, 8, 8)})
    assert made.manifest.failures == []


def test_an_onnx_file_ships_clean_and_is_compared_with_what_came(tmp_path):
    data = to_onnx(nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(128, 4)), example())
    made = export(
        data, target="onnxruntime", out=tmp_path / "out", protocol=QUICK, evidence=Evidence(samples=samples())
    )
    assert (made.directory / "model.onnx").read_bytes() == clean(data).onnx
    assert [(link.name, link.made_from, link.file) for link in made.manifest.chain] == [
        ("original", "", ""),
        ("onnx", "original", "model.onnx"),
    ]
    assert made.manifest.chain[0].sha256 == hashlib.sha256(data).hexdigest()
    assert (made.manifest.shipped.params, made.manifest.shipped.macs) == (8 + 128 * 4 + 4, 6 * 64 + 128 * 4)
    assert [(step.name, step.verdict) for step in made.manifest.validation] == [
        ("original", "reference"),
        ("onnx", "passed"),
    ]


def test_cleaning_that_changes_the_outputs_is_found(tmp_path, monkeypatch):
    data, other = (to_onnx(nn.Sequential(nn.Conv2d(3, 2, 1)), example()) for _ in range(2))
    monkeypatch.setattr(forms.cleaning, "clean", lambda *_, **__: Cleaned(original=data, onnx=other))
    made = export(
        data, target="onnxruntime", out=tmp_path / "out", protocol=QUICK, evidence=Evidence(samples=samples())
    )
    assert [failure[:9] for failure in made.manifest.failures] == ["onnx fp32"]


def test_a_file_that_onnx_runtime_refuses_as_it_came_ships_if_it_is_sound_when_clean(tmp_path):
    model = onnx.load_from_string(to_onnx(nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU()), example()))
    for node in model.graph.node:
        node.name = "same"
    made = export(
        model.SerializeToString(),
        target="onnxruntime",
        out=tmp_path / "out",
        protocol=QUICK,
        evidence=Evidence(samples=samples()),
    )
    assert [(step.name, step.verdict) for step in made.manifest.validation] == [
        ("original", "not run"),
        ("onnx", "reference"),
    ]
    assert "the file as it came does not run: ONNX Runtime refuses the model" in made.manifest.validation[0].reason


def test_dynamic_shapes_are_fixed_by_the_caller(tmp_path):
    model = onnx.load_from_string(to_onnx(nn.Sequential(nn.Conv2d(3, 2, 1)), example()))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    data = model.SerializeToString()
    with pytest.raises(
        DeployError, match=r"input 'input' has a dynamic shape \(batch, 3, 8, 8\): fix it, as by --shape input=1x3x8x8"
    ):
        export(data, target="onnxruntime", out=tmp_path / "out", protocol=QUICK)
    made = export(
        data, target="onnxruntime", out=tmp_path / "out", protocol=QUICK, form=Form(shapes={"input": (1, 3, 8, 8)})
    )
    assert made.manifest.outputs == {"output": (1, 2, 8, 8)}
    with pytest.raises(DeployError, match="shapes are of an ONNX model: a module has the shape of example_input"):
        export(
            network(), example(), target="onnxruntime", out=tmp_path / "out", form=Form(shapes={"input": (1, 3, 8, 8)})
        )


class Tokens(nn.Module):
    """Its graph computes with the batch."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Conv2d(3, 4, 4, stride=4), nn.Linear(16, 5)

    def forward(self, x):
        return self.head(self.embed(x).reshape(x.shape[0], -1)).view(x.shape[0], 5)


@pytest.fixture(scope="module")
def dynamic(tmp_path_factory):
    """An ONNX file whose batch is dynamic, and how it is to ship."""
    file = tmp_path_factory.mktemp("dynamic") / "m.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Tokens().eval(),
            (torch.zeros(2, 3, 8, 8),),
            file,
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=["input"],
            output_names=["output"],
            external_data=False,
            verbose=False,
        )
    span = Span((1, 3, 8, 8), (4, 3, 8, 8), (9, 3, 8, 8))
    return {
        "model": file.read_bytes(),
        "form": Form(shapes={"input": span}),
        "evidence": Evidence(samples=samples()),
        "protocol": QUICK,
    }


def test_a_dynamic_batch_ships_and_is_checked_at_its_smallest_usual_and_largest(tmp_path, dynamic):
    made = export(
        **{**dynamic, "evidence": Evidence(samples=samples(), labels=torch.arange(12) % 5)},
        target="onnxruntime",
        out=tmp_path / "out",
    )
    manifest = made.manifest
    assert (manifest.inputs, manifest.outputs) == ({"input": (4, 3, 8, 8)}, {"output": (4, 5)})
    assert ({**manifest.spans}, manifest.output_spans) == (
        dynamic["form"].shapes,
        {"output": Span((1, 5), (4, 5), (9, 5))},
    )
    forms = [
        (f"{name}{end}", verdict)
        for end in ("", " at min", " at max")
        for name, verdict in (("original", "reference"), ("onnx", "passed"))
    ]
    assert [(step.name, step.verdict) for step in manifest.validation] == forms
    assert (manifest.shipped.score.value > 0, manifest.shipped.measured.median_us > 0) == (True, True)
    checks = {check.name: check.verdict for check in verify(made.directory).checks}
    assert [checks[f"outputs of onnx{end}"] for end in ("", " at min", " at max")] == ["passed"] * 3
    run = runpy.run_path(str(made.directory / "run.py"))["load"]()
    kept = safetensors.numpy.load((made.directory / "reference.safetensors").read_bytes())
    for end, batch in (("", 4), ("min.", 1), ("max.", 9)):
        inputs, wanted = kept[f"{end}inputs.input"][0], kept[f"{end}outputs.output"][0]
        assert inputs.shape == (batch, 3, 8, 8)
        np.testing.assert_allclose(run(inputs)["output"], wanted, rtol=0, atol=1e-5)
    with pytest.raises(
        ValueError, match=r"^input input is float32 \[1, 3, 8, 8\] to \[9, 3, 8, 8\], given float32 \[10, 3, 8, 8\]$"
    ):
        run(np.zeros((10, 3, 8, 8), np.float32))
    assert (
        "| input | `input` | float32 | [1 to 9, 3, 8, 8] |\n| output | `output` | float32 | [1 to 9, 5] |"
        in (made.directory / "README.md").read_text()
    )
    assert "dims: [ -1, 3, 8, 8 ]" in triton.config(manifest, "m")


def test_an_engine_of_a_dynamic_batch_is_built_from_a_half_precision_graph_that_takes_each(tmp_path, dynamic, no_gpu):
    made = export(**dynamic, target="tensorrt-rtx", out=tmp_path / "out")
    steps = {step.name: step.verdict for step in made.manifest.validation}
    for end in ("", " at min", " at max"):
        assert (steps[f"onnx-fp16{end}"], steps[f"engine{end}"]) == ("passed", "not run")
    checks = {check.name: check.verdict for check in verify(made.directory).checks}
    assert {checks[name] for name in ("certificate", "outputs of onnx-fp16", "outputs of onnx-fp16 at max")} == {
        "passed"
    }
    body = onnx.load(made.directory / "model.fp16.onnx").graph
    assert body.input[0].type.tensor_type.shape.dim[0].dim_param


def test_several_outputs_are_compared_kept_and_verified(tmp_path):
    class Pyramid(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 8, 3, stride=2, padding=1)

        def forward(self, x):
            large = self.first(x)
            return large, self.second(large)

    made = export(
        Pyramid(),
        example(),
        target="onnxruntime",
        out=tmp_path / "out",
        protocol=QUICK,
        evidence=Evidence(samples=samples(3)),
    )
    shapes = {"output0": (1, 4, 8, 8), "output1": (1, 8, 4, 4)}
    assert made.manifest.outputs == shapes
    assert all(list(step.first) == list(shapes) for step in made.manifest.validation if step.verdict != "reference")
    assert verify(made.directory).failures == []
    again = export(
        (made.directory / "model.onnx").read_bytes(), target="onnxruntime", out=tmp_path / "again", protocol=QUICK
    )
    assert again.manifest.outputs == shapes
    with start(again.directory) as at_work:
        assert {name: output.shape for name, output in run_on(at_work.outputs, samples(3)).items()} == {
            name: (3, *shape[1:]) for name, shape in shapes.items()
        }


@pytest.fixture
def no_gpu(monkeypatch):
    pytest.importorskip("tensorrt_rtx")

    def absent(flavour, *, spec):
        raise DeviceUnavailable("no NVIDIA driver found")

    monkeypatch.setattr(engine, "TensorRT", absent)


def test_an_engine_is_built_without_a_gpu_and_what_cannot_be_run_is_never_passed(tmp_path, no_gpu):
    made = export(
        network(),
        example(),
        target="tensorrt-rtx",
        out=tmp_path / "out",
        budget_ms=1.0,
        evidence=Evidence(samples=samples(), baseline=network(False)),
    )
    manifest = made.manifest
    assert {(step.name, step.precision): step.verdict for step in manifest.validation[-3:]} == {
        ("onnx", "fp32"): "passed",
        ("onnx-fp16", "fp16"): "passed",
        ("engine", "fp16"): "not run",
    }
    assert manifest.validation[-1].reason == manifest.shipped.not_measured == "no NVIDIA driver found"
    assert str(manifest.inspection) == "layers of the engine: not run: no NVIDIA driver found"
    assert (manifest.budget_verdict, manifest.device, manifest.shipped.measured) == ("not run", None, None)
    assert (manifest.runtime.name, manifest.build["optimization_level"]) == ("tensorrt-rtx", 3)
    assert [(link.name, link.made_from) for link in manifest.chain[-2:]] == [
        ("onnx-fp16", "onnx"),
        ("engine", "onnx-fp16"),
    ]
    assert (made.directory / "model.engine").stat().st_size > 1000
    assert manifest.failures == []


def test_half_precision_inputs_and_outputs_ship_as_such_and_nothing_is_converted_silently(tmp_path, no_gpu):
    given = {
        "target": "tensorrt-rtx",
        "form": Form(io="fp16"),
        "build": Build(count=2),
        "evidence": Evidence(samples=samples()),
    }
    made = export(
        nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(128, 4)), example(), out=tmp_path / "out", **given
    )
    manifest = made.manifest
    assert str(manifest.builds) == "2 builds are the same engine"
    assert (manifest.io, manifest.dtypes, manifest.certificate.casts) == (
        "fp16",
        {"input": "float16", "output": "float16"},
        0,
    )
    assert [(step.name, step.verdict) for step in manifest.validation[-2:]] == [
        ("onnx-fp16", "passed"),
        ("engine", "not run"),
    ]
    checks = {check.name: check.verdict for check in verify(made.directory).checks}
    assert {checks[name] for name in ("certificate", "outputs of onnx", "outputs of onnx-fp16")} == {"passed"}
    by_name = runpy.run_path(str(made.directory / "run.py"))["by_name"]
    fields = json.loads((made.directory / "manifest.json").read_bytes())
    assert by_name(fields, (np.zeros(SHAPE, np.float16),))["input"].dtype == np.float16
    with pytest.raises(ValueError, match=r"^input input is float16 \[1, 3, 8, 8\], given float32 \[1, 3, 8, 8\]$"):
        by_name(fields, (np.zeros(SHAPE, np.float32),))
    with pytest.raises(DeployError, match=r"^samples of input reach 1e\+05, more than float16 has: give io fp32$"):
        export(
            nn.Conv2d(3, 2, 1),
            example(),
            out=tmp_path / "no",
            **{**given, "evidence": Evidence(samples=torch.full((2, 3, 8, 8), 1e5))},
        )


def test_bfloat16_ships_as_such(tmp_path, no_gpu):
    made = export(
        overflowing(),
        example(),
        target="tensorrt-rtx",
        out=tmp_path / "out",
        form=Form(precision="bf16"),
        evidence=Evidence(samples=samples()),
    )
    manifest = made.manifest
    assert (manifest.precision, manifest.half, manifest.certificate.kept) == ("bf16", "model.bf16.onnx", ())
    steps = {step.name: (step.precision, step.verdict, step.limit) for step in manifest.validation}
    assert (steps["onnx-bf16"], steps["engine"]) == (("bf16", "passed", 8e-2), ("bf16", "not run", 8e-2))
    checks = {check.name: check.verdict for check in verify(made.directory).checks}
    assert {checks[name] for name in ("certificate", "outputs of onnx-bf16", "model.bf16.onnx")} == {"passed"}
    assert "model.bf16.onnx" in (made.directory / "README.md").read_text()


def overflowing():
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3))
    with torch.no_grad():
        model[0].weight.fill_(5e4)
        model[1].weight.copy_(torch.tensor([[1e-5, 2e-5], [-1e-5, 3e-5]])[:, :, None, None])
    return model


def test_what_overflows_in_half_precision_stays_fp32_and_the_certificate_says_so(tmp_path, no_gpu):
    made = export(
        overflowing(), example(), target="tensorrt-rtx", out=tmp_path / "out", evidence=Evidence(samples=samples())
    )
    certificate = made.manifest.certificate
    assert made.manifest.failures == []
    assert (certificate.samples, certificate.casts, [kept.op for kept in certificate.kept]) == (12, 2, ["Conv", "Conv"])


def test_an_overflow_that_the_certified_samples_do_not_show_is_a_failure(tmp_path, no_gpu, monkeypatch):
    monkeypatch.setattr(evidence, "CERTIFIED_SAMPLES", 1)
    quiet = torch.cat([torch.zeros(1, 3, 8, 8), samples()])
    made = export(
        overflowing(), example(), target="tensorrt-rtx", out=tmp_path / "out", evidence=Evidence(samples=quiet)
    )
    assert len(made.manifest.failures) == 1
    assert "onnx-fp16 fp16" in made.manifest.failures[0]
    assert "are NaN where the reference is not" in made.manifest.failures[0]


def test_an_onnx_file_becomes_an_fp16_engine(tmp_path, no_gpu):
    data = to_onnx(overflowing(), example())
    made = export(data, target="tensorrt-rtx", out=tmp_path / "out", evidence=Evidence(samples=samples()))
    assert (made.directory / "model.onnx").read_bytes() == clean(data).onnx
    assert [link.name for link in made.manifest.chain] == ["original", "onnx", "onnx-fp16", "engine"]
    assert [(step.name, step.verdict) for step in made.manifest.validation] == [
        ("original", "reference"),
        ("onnx", "passed"),
        ("onnx-fp16", "passed"),
        ("engine", "not run"),
    ]
    assert made.manifest.certificate.islands == 1


def test_an_operator_that_the_parser_refuses_is_named_and_nothing_is_written(tmp_path, no_gpu):
    class Determinant(nn.Module):
        def forward(self, x):
            return torch.linalg.det(x)

    with pytest.raises(
        BuildFailed,
        match=r"^tensorrt-rtx cannot parse node 'n0' \(Det\): UNSUPPORTED_NODE in checkDet: .* --target onnxruntime$",
    ) as caught:
        export(
            to_onnx(Determinant(), example()),
            target="tensorrt-rtx",
            out=tmp_path / "out",
            evidence=Evidence(samples=samples()),
        )
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_engine_that_runs_is_validated_and_timed(tmp_path, monkeypatch):
    """The path that needs a GPU, over a fake one that runs the ONNX."""

    class FakeTensorRT:
        device = GPU
        runtime = Runtime(name="tensorrt-rtx", version="1")

        def __init__(self, flavour, *, spec):
            self.flavour = flavour

        def load(self, built):
            return Compiled(built)

    class Compiled(contextlib.nullcontext):
        def __init__(self, built):
            super().__init__(self)
            self.model = built

        def infer(self, inputs):
            return {
                name: output[0]
                for name, output in engine.onnx_runner(self.model)({"input": inputs["input"][None]}).items()
            }

        def run(self, count):
            return [float(len(self.model))] * count

        def information(self):
            full, half = ([{"Format/Datatype": kind}] for kind in ("Float", "Half"))
            return json.dumps({"Layers": [{"Name": "conv", "Outputs": half}, {"Name": "cast_output", "Outputs": full}]})

    monkeypatch.setattr(engine, "TensorRT", FakeTensorRT)
    monkeypatch.setattr(engine, "build_engine", lambda model, *_, **__: model)
    monkeypatch.setattr(engine, "runtime_of", lambda target: FakeTensorRT.runtime)
    made = export(
        network(),
        example(),
        target="tensorrt-rtx",
        out=tmp_path / "out",
        protocol=QUICK,
        evidence=Evidence(samples=samples(), baseline=network(False)),
    )
    manifest = made.manifest
    assert [(step.name, step.verdict) for step in manifest.validation[-1:]] == [("engine", "passed")]
    assert manifest.device == GPU
    assert str(manifest.inspection).startswith("1 of 2 layers of the engine run in FP32: cast_output (it casts")
    assert manifest.shipped.measured.median_us == len((made.directory / "model.engine").read_bytes())
    assert manifest.unpruned.measured.median_us > manifest.shipped.measured.median_us


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": "coreml"}, "target 'coreml' is unknown: choose one of onnxruntime, tensorrt, tensorrt-rtx"),
        ({"example_input": None}, "give example_input"),
        ({"evidence": Evidence(samples=torch.zeros(4, 3, 9, 8))}, r"samples of input have shape \[4, 3, 9, 8\]"),
        ({"record": Record(classes=["cat", "dog"])}, "2 names of classes for 4 outputs: give 4"),
        ({"model": b"nonsense"}, "not an ONNX model"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(tmp_path, arguments, message):
    model = arguments.pop("model", None) or network()
    with pytest.raises(DeployError, match=message) as caught:
        export(
            **{"model": model, "example_input": example(), "target": "onnxruntime", "out": tmp_path / "out"} | arguments
        )
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def random_file(node, *weights):
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 4]) for name in "xy"]
    nodes = [node, helper.make_node("Add", ["x", "r"], ["y"])]
    body = helper.make_graph(
        nodes, "g", values[:1], values[1:], [numpy_helper.from_array(array, name) for name, array in weights]
    )
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


TRAINS = [("ratio", np.float32(0.5)), ("mode", np.array(True))]


@pytest.mark.parametrize(
    "data",
    [
        random_file(helper.make_node("RandomNormalLike", ["x"], ["r"], "noise")),
        random_file(helper.make_node("Bernoulli", ["x"], ["r"], "noise")),
        random_file(helper.make_node("Dropout", ["x", "ratio", "mode"], ["r"], "noise"), *TRAINS),
    ],
    ids=["RandomNormalLike", "Bernoulli", "Dropout"],
)
def test_a_file_that_draws_random_numbers_is_refused_by_its_node(tmp_path, data):
    with pytest.raises(DeployError, match=r"node '[^']+' \(\w+\) draws random numbers, so no output can be verified"):
        export(data, target="onnxruntime", out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_cannot_be_squeezed_writes_nothing(tmp_path):
    class Sorted(nn.Module):
        def forward(self, x):
            return torch.sort(x, dim=1).values

    blocks = network()
    with pytest.raises(ReparamError, match="no rule for sort"):
        export(nn.Sequential(*blocks[:2], Sorted(), *blocks[2:]), example(), target="onnxruntime", out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_occupied_directory_is_refused_before_any_work(tmp_path):
    (tmp_path / "mine").write_text("")
    with pytest.raises(DeployError, match="holds something else"):
        export(network(), example(), target="onnxruntime", out=tmp_path, on_step=lambda step: pytest.fail(step))


def test_the_manifest_survives_its_own_json(made):
    assert msgspec.json.decode(msgspec.json.encode(made.manifest), type=Manifest) == made.manifest


@pytest.mark.parametrize("name", ["run.py", "model.onnx", "../x", ".hidden"])
def test_an_attachment_takes_no_name_of_the_bundle_and_no_path(name):
    with pytest.raises(DeployError, match=f"^attachment '{name}': a plain file name, none of "):
        Record(attachments={name: b""})
