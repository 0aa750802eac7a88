from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from deploy.errors import DeployError
from latency import LatencyError, LatencyTable, TableWriter, files
from latency.backends.tensorrt import EngineSpec
from latency.errors import CoverageError
from lathe import cli, stages
from search import Task, finished, record, spaces
from search.errors import SearchError

OTHER_SIZES = "--resolution 16 --channels 4 --cells 2"


def spec(*flags):
    return stages._engine_spec(cli.parse(["export", "run", "--out", "out", *flags]))


def test_the_command_line_says_how_an_engine_is_built():
    assert spec() is None
    assert spec("--workspace-mib", "64", "--optimization-level", "0", "--version-compatible", "--hardware-compatible") == EngineSpec(
        workspace_mib=64, optimization_level=0, version_compatible=True, hardware_compatible=True
    )
    assert spec("--compute-capability", "8.9", "12.0") == EngineSpec(compute_capabilities=("8.9", "12.0"))


def test_spaces_are_listed_or_one_is_named():
    assert set(stages.list_spaces(cli.parse(["space", "--list"]))) == set(spaces.names())
    with pytest.raises(LatencyError, match="^--list names every space: leave out 'repvgg-mini', or --list$"):
        stages.list_spaces(cli.parse(["space", "repvgg-mini", "--list"]))
    with pytest.raises(LatencyError, match="^name a space, such as `lathe space repvgg-mini`"):
        stages.describe_space(cli.parse(["space"]))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("bundle repvgg-mini --out none/b.blocks.zip", "none is not a directory"),
        ("bundle repvgg-mini --out precious", "precious exists and is not a block bundle"),
        ("profile repvgg-mini --out precious", "precious exists and is not a latency table"),
        ("profile repvgg-mini --out .", "is a directory"),
        ("profile repvgg-mini --out t --threads 4096", "--threads 4096"),
        ("profile repvgg-mini --out t --protocol slow", "'slow' is unknown"),
        ("profile repvgg-mini --out t --backend tflite", "'tflite' is unknown"),
        ("profile repvgg-mini --out t --save-timing-cache precious", "precious exists and would be lost: choose another name, or replace"),
        ("profile repvgg-mini --out t --anchors 60", "--anchors 60 is of --like"),
        ("profile repvgg-mini --out t --like o --coverage adaptive", "--coverage adaptive interpolates, and --like transfers"),
        ("search pas --space repvgg-mini --out precious", "precious exists and is not a directory"),
        ("export run --out precious", "precious exists and is not a directory"),
        ("export run --out b --target coreml", "'coreml' is unknown"),
        ("export run --out b --threads 4096", "--threads 4096"),
        ("export run --out b --protocol slow", "'slow' is unknown"),
        ("export run --out b --workspace-mib 5", "target 'onnxruntime' builds no engine"),
        ("export run --out b --target tensorrt-rtx --hardware-compatible", "hardware_compatible: only TensorRT has such engines"),
        ("export run --out b --target tensorrt-rtx --compute-capability 9.9", "compute capability '9.9' is not one"),
        ("export run --out b --target tensorrt-rtx --timing-cache c", "the builder of tensorrt-rtx measures nothing"),
        ("export run --out b --target tensorrt --compute-capability 8.9", "tensorrt builds for the GPU at hand"),
        ("export run --out b --shape x", "shape .x.: give the name of an input"),
        ("table show t --plot precious.svg", "precious.svg exists and is not a picture"),
        ("table show t --plot t.pdf", "--plot writes NAME.png or NAME.svg"),
        ("report run --out precious", "precious exists and is not a report"),
    ],
)
def test_what_can_be_refused_is_refused_before_torch_is_loaded_or_a_file_read(arguments, said, tmp_path, monkeypatch):
    def early(*_):
        raise AssertionError("too late")

    for name in ("precious", "precious.svg"):
        (tmp_path / name).write_text("precious")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stages, "require", early)
    monkeypatch.setattr(stages, "load_table", early)
    with pytest.raises(ValueError, match=said):
        cli.parse(arguments.split()).run()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"precious": "precious", "precious.svg": "precious"}


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
        stages.export(cli.parse(["export", source, "--out", "new"]), lambda _: None)


def test_every_command_that_takes_a_torn_table_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lines = (Path(__file__).parents[2] / "formats" / "latency-table-2.latency.jsonl").read_bytes().splitlines(keepends=True)
    Path("t.jsonl").write_bytes(b"".join(lines[:-1]) + lines[-1][:40])
    Path("whole.jsonl").write_bytes(b"".join(lines))
    torn = f"warning: t.jsonl, line {len(lines)}: the last line is torn and was dropped; profiling again measures it"
    for words in ("show t.jsonl", "diff t.jsonl t.jsonl", "diff whole.jsonl t.jsonl", "merge t.jsonl --out all.jsonl"):
        cli.parse(["table", *words.split()]).run()
        said = " ".join(capsys.readouterr().err.split())
        assert said.count(torn) == words.count(" t.jsonl"), words


def test_a_cell_predicted_from_a_torn_table_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    whole = (Path(__file__).parents[3] / "profiles" / "amd-epyc-zen4-1thread" / "nasbench201-small.fp32.latency.jsonl").read_bytes()
    Path("t.jsonl").write_bytes(whole[:-20])
    cell = "|nor_conv_3x3~0|+|none~0|none~1|+|none~0|none~1|none~2|"
    cli.parse(["space", "nasbench201-small", "--arch", cell, "--table", "t.jsonl"]).run()
    assert "warning: t.jsonl, line " in capsys.readouterr().err


def test_a_bundle_is_not_exported_again(tmp_path):
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "manifest.json").write_text("{}")
    command = cli.parse(["export", str(tmp_path / "bundle"), "--out", str(tmp_path / "out")])
    with pytest.raises(
        DeployError, match=r"bundle is a shipped bundle: `lathe verify .*bundle` checks it; to ship it anew export .*bundle/model.onnx$"
    ):
        stages.export(command, lambda _: None)


@pytest.mark.parametrize("through", ["simulated:seed=1", "replay:table"])
def test_a_table_that_was_not_measured_is_of_no_device(tmp_path, monkeypatch, through):
    monkeypatch.chdir(tmp_path)
    for backend, out in (("simulated:seed=1", "table"), (through, "t")):
        words = f"profile repvgg-mini --backend {backend} --protocol fast --shard 1/500 --networks 0 --out {out}"
        list(stages.profile(cli.parse(words.split())))
    command = cli.parse(["search", "pas", "--space", "repvgg-mini", "--table", "t", "--budget-ms", "1", "--this-device", "--out", "run"])
    with pytest.raises(LatencyError, match=r"table t has origin 'simulated.*', wanted 'measured': give one .* or omit --this-device$"):
        stages.search(command, lambda _: None)


@pytest.fixture(scope="module")
def table_of_other_sizes(tmp_path_factory):
    path = tmp_path_factory.mktemp("sizes") / "t"
    words = f"profile nasbench201-small --backend simulated:seed=1 --protocol fast --networks 0 {OTHER_SIZES} --classes 10 --out {path}"
    list(stages.profile(cli.parse(words.split())))
    return path


@pytest.fixture
def other_sizes(table_of_other_sizes, tmp_path, monkeypatch):
    """A directory with a table `t` of a space of other sizes than its own."""
    monkeypatch.chdir(tmp_path)
    Path("t").write_bytes(table_of_other_sizes.read_bytes())


@pytest.mark.usefixtures("other_sizes")
def test_a_table_is_checked_against_the_sizes_that_it_is_of():
    def problems(flags):
        return {found.problem for found in stages.check_table(cli.parse(f"table check t {flags}".split()), pytest.fail).findings}

    assert "missing" in problems("")
    assert "missing" not in problems(OTHER_SIZES)


def test_a_table_of_a_space_that_cannot_be_read_here_is_checked_without_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kept = LatencyTable.load(Path(__file__).parents[2] / "formats" / "latency-table-3.latency.jsonl")
    with TableWriter("t", msgspec.structs.replace(kept.header, space="gone.py:make", like=())) as table:
        table.append(*(row for row in kept.rows if row.measured))
    said = []
    checked = stages.check_table(cli.parse(["table", "check", "t"]), said.append)
    assert said == [
        "what t lacks of its space gone.py:make is not known: gone.py:make does not say what it is for: give the shape of an image, such as --input 3x224x224"
    ]
    assert "missing" not in {found.problem for found in checked.findings}
    assert checked.again.startswith("lathe profile gone.py:make --backend")
    with pytest.raises(SearchError, match="unknown space 'fly'"):
        stages.check_table(cli.parse(["table", "check", "t", "--space", "fly"]), pytest.fail)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("table diff a", "a is one table: give two or more"),
        ("table diff a b --plot p.pdf", "--plot writes NAME.png or NAME.svg"),
        ("table show a --csv --markdown", "--csv and --markdown with rows"),
        ("table show a --rows --json", "--json with rows"),
        ("table show a --family x --plot p.svg", "--plot with rows"),
    ],
)
def test_flags_of_tables_that_do_not_go_together_are_refused(words, message):
    with pytest.raises(LatencyError, match=f"^{message}"):
        cli.parse(words.split()).run()


@pytest.mark.usefixtures("other_sizes")
def test_a_search_is_of_the_sizes_that_it_is_given():
    words = f"search vp-darts --space nasbench201-small --table t --budget-fraction 0.7 --out run {OTHER_SIZES}"
    next(stages.search(cli.parse(words.split()), lambda _: None))
    assert record.read_run(Path("run")).space == spaces.get("nasbench201-small", channels=4, cells_per_stage=2).record()


@pytest.mark.usefixtures("other_sizes")
def test_what_a_table_lacks_is_measured_by_the_command_that_is_named():
    words = "search vp-darts --space nasbench201-small --table t --budget-fraction 0.7 --out run --channels 8 --cells 3"
    with pytest.raises(
        CoverageError,
        match=r"measure it with `lathe profile nasbench201-small --classes 10 --channels 8 --cells 3 .* --protocol fast --out t`$",
    ):
        stages.search(cli.parse(words.split()), lambda _: None)
    words = "space nasbench201 --table t --cells 3 --arch"
    arch = "|none~0|+|none~0|none~1|+|nor_conv_3x3~0|none~1|none~2|"
    with pytest.raises(
        CoverageError,
        match=r"t is of the space nasbench201-small, not of nasbench201: measure it with `lathe profile nasbench201 .*--cells 3",
    ):
        stages.describe_cell(cli.parse([*words.split(), arch]), arch, pytest.fail)


TABLE = max((Path(__file__).parents[3] / "profiles").rglob("repvgg-mini.fp32.latency.jsonl"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (f"--table {TABLE} --also b.jsonl", r"--also 'b\.jsonl' is not TABLE:MILLISECONDS: give it as --also other\.latency\.jsonl:1\.2"),
        (f"--table {TABLE} --also b.jsonl:fast", r"--also 'b\.jsonl:fast' is not TABLE:MILLISECONDS"),
        (f"--table {TABLE} --also b.jsonl:nan", r"--also b\.jsonl must be from 1e-06 to 1e\+07, found nan"),
        (f"--table {TABLE} --also {TABLE}:1", "that table is given twice: give each device once"),
        ("--also b.jsonl:1", r"--also b\.jsonl:1 is of a further device: give --table, the first one's, and its budget too"),
    ],
)
def test_further_devices_are_tables_with_budgets(words, message, tmp_path):
    command = cli.parse(f"search pas --space repvgg-mini --budget-ms 1 --out {tmp_path / 'run'} {words}".split())
    with pytest.raises(LatencyError, match=message):
        stages.search(command, lambda _: None)


@pytest.mark.parametrize(("home", "there"), [("first", "second"), ("second", "first"), (None, "first")])
def test_the_device_at_hand_is_judged_and_the_others_are_not_run(home, there, monkeypatch):
    """Of a kept run for two devices."""
    run = Path(__file__).parents[2] / "formats" / "run-4"
    first, second = stages._devices(finished.load(run))
    devices = {"first": first, "second": second}
    here = devices[home].device if home else None
    monkeypatch.setattr(stages.backends, "get", lambda *_, **__: SimpleNamespace(device=here, runtime=first.runtime))
    monkeypatch.setattr(finished.FinishedRun, "network", lambda _: None)
    monkeypatch.setattr(finished.FinishedRun, "unpruned", lambda _: None)
    monkeypatch.setattr(Task, "quality", lambda *_: None)
    monkeypatch.setattr(files, "sha256", lambda _: "")
    shipped = {}
    stages._export_run(cli.parse(["export", str(run), "--target", "made-up", "--out", "b"]), lambda *_, **given: shipped.update(given))
    assert shipped["predicted"] == (devices[home].predicted if home else None)
    assert shipped["budget_ms"] == (devices[home].budget_us / 1000 if home else None)
    told = shipped["provenance"][f"not run on {devices[there].name}"]
    assert told.startswith("predicted ")
    assert told.endswith(f", the budget is {devices[there].budget_us:.1f} µs")
    assert sum(name.startswith("not run") for name in shipped["provenance"]) == (1 if home else 2)
    assert ("no budget" in shipped["provenance"]) == (home is None)
    with pytest.raises(DeployError, match="--batch 4: the run's budget and prediction are of batch 1, that of its table: leave it out, or"):
        stages._export_run(cli.parse(["export", str(run), "--batch", "4", "--out", "b"]), pytest.fail)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--set beta", "--set 'beta' is not NAME=VALUE"),
        ("--set beta=", "--set 'beta=' is not NAME=VALUE"),
        ("--set lr=1 --set lr=2", "--set lr is given twice"),
        ("--set lr=-1,1", "--lr must be above 0 and finite, found -1.0"),
        ("--set gamma=1", "--set gamma: pas has no such setting"),
        ("--target cuda", "target 'cuda' is unknown"),
        ("--engine ray --jobs 2", "--jobs 2 is of --engine local"),
        ("--address here:1", "--address here:1 is of a Ray cluster: give --engine ray too"),
        ("--gpus-per-run 1", "--gpus-per-run 1.0 is of a Ray cluster"),
    ],
)
def test_a_sweep_is_refused_before_anything_is_searched(flags, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = cli.parse(f"sweep pas --space repvgg-mini --budget-fraction 0.5 --out sweep {flags}".split())
    with pytest.raises(ValueError, match=message):
        next(stages.sweep(command))
    assert not Path("sweep").exists()


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
    *_, done = stages.search(cli.parse(words.split()), lambda _: None)
    assert done.result.shipped.choice.widths == {"0": 8}
    made = stages.export(cli.parse(["export", "run", "--protocol", "fast", "--out", "bundle"]), lambda _: None)
    assert made.manifest.failures == []


@pytest.mark.usefixtures("net")
def test_a_network_of_ones_own_ships_with_its_weights():
    import safetensors.torch
    from torch import nn

    weights = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)).state_dict()
    safetensors.torch.save_file(weights, "w.safetensors")
    words = "export net.py:make --input 3x8x8 --weights w.safetensors --protocol fast --out bundle"
    made = stages.export(cli.parse(words.split()), lambda _: None)
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
        ("search pas --module net.py:make --input 3x8x9 --budget-fraction 0.5", "square images of three channels, .* for 3x8x9"),
        ("search pas --module net.py:make --input 3x8x0 --budget-fraction 0.5", "--input '3x8x0' is not"),
    ],
)
def test_what_does_not_fit_a_network_of_ones_own_is_said(words, message):
    command = cli.parse([*words.split(), "--out", "out"])
    with pytest.raises(ValueError, match=message):
        list(stages.search(command, lambda _: None)) if words.startswith("search") else stages.export(command, lambda _: None)
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
    stages.export(cli.parse(words.split()), lambda _: None)
    assert (seen["form"].precision, seen["samples"].shape, seen["preprocessing"]["size"]) == ("fp32", (1, 3, 4, 4), [4, 4])
    assert seen["provenance"] == {"onnx": "m.onnx", "images": "1 of 1 images of photos"}
    with pytest.raises(DeployError, match="has a dynamic shape"):
        stages.export(cli.parse([word for word in words.split() if word not in ("--shape", "x=1x3x4x4")]), lambda _: None)


def test_several_targets_get_a_bundle_each_with_the_options_that_their_builds_have(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = "export m.onnx --target onnxruntime tensorrt-rtx --optimization-level 1 --compute-capability 8.9 --out b"
    first, second = stages.by_target(cli.parse(words.split()))
    assert (first.target, first.out, first.optimization_level, first.compute_capability) == (
        ("onnxruntime",),
        Path("b/onnxruntime"),
        None,
        None,
    )
    assert (second.target, second.out, second.optimization_level) == (("tensorrt-rtx",), Path("b/tensorrt-rtx"), 1)
    one = cli.parse(["export", "m.onnx", "--out", "b"])
    assert stages.by_target(one) == [one]
    Path("b").mkdir()
    Path("b/notes").touch()
    for arguments, message in (
        (words, "b holds notes, which is not a bundle of a target"),
        ("export m.onnx --target onnxruntime onnxruntime --out c", "--target onnxruntime onnxruntime names one twice"),
        ("export m.onnx --target onnxruntime coreml --out c", "'coreml' is unknown"),
    ):
        with pytest.raises((DeployError, LatencyError), match=message):
            stages.by_target(cli.parse(arguments.split()))


def test_the_bundles_of_several_targets_are_verified_together(tmp_path, monkeypatch):
    import deploy

    for name in ("onnxruntime", "tensorrt-rtx"):
        (tmp_path / "both" / name).mkdir(parents=True)
        (tmp_path / "both" / name / "manifest.json").touch()
    monkeypatch.setattr(deploy, "verify", lambda directory, on_step: directory.name)
    assert [check(print) for check in stages.verify(tmp_path / "both")] == ["onnxruntime", "tensorrt-rtx"]
    assert [check(print) for check in stages.verify(tmp_path / "both" / "onnxruntime")] == ["onnxruntime"]


def test_a_model_repository_that_cannot_be_is_refused_before_anything_is_built(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = "export m.onnx --layout triton --target tensorrt-rtx --out b"
    with pytest.raises(DeployError, match="Triton has no backend for tensorrt-rtx"):
        stages.export(cli.parse(words.split()), lambda _: None)
