import dataclasses
import io
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from latency import LatencyError
from latency.distribution import install_command, version
from lathe import cli, exporting, parsing, predicting, profiling, searches, searching, spaces, sweeps, tables

FLAGS = {
    cli.SpaceCommand: "resolution channels cells input classes space list arch table batch json",
    cli.BundleCommand: "resolution channels cells input classes space out precision batch networks seed force json",
    cli.ProfileCommand: "resolution channels cells input classes space out backend protocol threads batch coverage coverage_error like anchors drift_limit timing_cache save_timing_cache "
    "networks seed shard engine address shards resources force json",
    cli.TableShow: "table rows family csv markdown plot force json",
    cli.TableCheck: "resolution channels cells input classes table space json",
    cli.TableDiff: "tables plot force json",
    cli.TableMerge: "tables out json",
    cli.PredictCommand: "resolution channels cells input classes source table batch shape missing force json",
    cli.ExportCommand: "source out target layout budget_ms protocol threads samples mean std labels metric precision io explain shape batch weights input builds workspace_mib optimization_level timing_cache version_compatible "
    "hardware_compatible compute_capability json",
    sweeps.SweepCommand: "resolution channels cells input space out table also data task budget_ms budget_fraction seeds set recipe jobs engine address gpus_per_run no_measure target json",
    sweeps.SweepBest: "sweep budget_ms json",
    cli.VerifyCommand: "bundle json",
    cli.ReportCommand: "source out table force json",
    cli.PaperCommand: "paper table json",
}


WITHOUT_EXTRAS = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "lightning_fabric", "sklearn", "safetensors", "PIL", "matplotlib", "jinja2", "tensorrt_rtx"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
"""


@pytest.mark.parametrize("command", FLAGS, ids=lambda command: command.__name__)
def test_flags_are_a_promise(command):
    """A flag that goes away breaks scripts; one that comes must be meant: change this list with the changelog."""
    assert [field.name for field in dataclasses.fields(command)] == FLAGS[command].split()


@pytest.mark.parametrize(
    "name",
    [
        "",
        "space",
        "bundle",
        "profile",
        "table",
        "table show",
        "predict",
        "search",
        "search pas",
        "sweep",
        "sweep pas",
        "sweep best",
        "export",
        "verify",
        "report",
        "paper",
    ],
)
def test_help_needs_no_extra(name):
    """Help is printed though nothing that an extra brings can be imported."""
    code = f"{WITHOUT_EXTRAS}\nfrom lathe.cli import main\nmain({[*name.split(), '--help']!r})"
    done = subprocess.run(
        [sys.executable, "-P", "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"usage: lathe {name}".strip() in done.stdout
    assert "None" not in done.stdout
    assert "(default: )" not in done.stdout


def test_reading_and_checking_tables_needs_no_extra():
    table = Path(__file__).parents[3] / "profiles" / "amd-epyc-zen4-1thread" / "nasbench201.fp32.latency.jsonl"
    said = (
        "table show T",
        "table show T --family 8x8 --csv",
        "table check T",
        "table diff T T",
        "space repvgg-mini",
        "space --list",
    )
    commands = [[str(table) if word == "T" else word for word in words.split()] for words in said]
    code = f"{WITHOUT_EXTRAS}\nfrom lathe import cli\nfor words in {commands!r}:\n    assert cli.parse(words).run() == 0, words"
    done = subprocess.run(
        [sys.executable, "-P", "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_version_is_that_of_the_distribution(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"lathe {version()}\n"


@pytest.mark.parametrize(
    ("arguments", "module", "extra"),
    [
        (["space", "resnet-18/widths"], "torch", "train"),
        (["search", "pas", "--space", "s", "--table", "t", "--out", "o"], "torch", "train"),
        (["report", "somewhere"], "jinja2", "report"),
        (["profile", "repvgg-mini", "--backend", "tensorrt-rtx", "--out", "t"], "tensorrt_rtx", "tensorrt-rtx"),
    ],
)
def test_a_missing_extra_is_named_with_its_install_command(arguments, module, extra, capsys, monkeypatch):
    monkeypatch.setattr("importlib.import_module", _without(module))
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert len(said.strip().splitlines()) == 1
    assert f"'{module}'" in said
    assert said.endswith(f"{install_command(extra)}\n")


def _without(module):
    import importlib

    real = importlib.import_module

    def fake(name, package=None):
        if name.split(".")[0] == module:
            raise ModuleNotFoundError(f"No module named {module!r}", name=module)
        return real(name, package)

    return fake


def test_usage_errors_are_one_line():
    with pytest.raises(parsing.UsageError, match=r"--out") as error:
        cli.parse(["profile", "repvgg-mini"])
    assert "\n" not in str(error.value)
    assert not set("╭│─╯") & set(str(error.value))
    with pytest.raises(parsing.UsageError, match=r"^invalid choice 'l1'"):  # said once, not in the frame's title too
        cli.parse(["search", "pas", "--space", "repvgg-mini", "--out", "run", "--cost", "l1"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fly"], r"^'fly' is unknown: choose one of space, bundle, profile, .*paper$"),
        (["table", "fly"], r"^'fly' is unknown: choose one of show, check, diff, merge$"),
        (
            ["search", "darts", "--space", "s", "--out", "o"],
            r"^'darts' is unknown: choose one of pas, uniform, magnitude, .*$",
        ),
    ],
)
def test_an_unknown_subcommand_lists_the_known(arguments, said):
    with pytest.raises(parsing.UsageError, match=said) as error:
        cli.parse(arguments)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["export", "m", "--out", "o", "--targt", "x"],
            "'--targt' is not understood: did you mean --target? see `lathe export --help`",
        ),
        (
            ["export", "m", "--out", "o", "--coverage", "full"],
            "'--coverage' is not understood: see `lathe export --help`",
        ),
        (["verify", "a", "b"], "'b' is not understood: see `lathe --help`"),
        (
            ["search", "pas", "--space", "s", "--budgetms", "1"],
            "'--budgetms' is not understood: see `lathe search pas --help`",
        ),
    ],
)
def test_what_a_command_does_not_have_is_named_alone(arguments, said):
    with pytest.raises(parsing.UsageError) as error:
        cli.parse(arguments)
    assert str(error.value) == said


def test_usage_errors_are_alike_on_a_console_without_box_characters(monkeypatch):
    for arguments in (
        ["profile", "repvgg-mini"],
        ["fly"],
        ["space", "s", "--classes", "nan"],
        ["export", "m", "--out", "o", "--targt", "x"],
    ):
        said = []
        for encoding in ("utf-8", "ascii"):
            monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding))
            with pytest.raises(parsing.UsageError) as error:
                cli.parse(arguments)
            said.append(str(error.value))
        assert said[0] == said[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["space", "s", "--classes", "nan"], "--classes must be INT, found 'nan'"),
        (["export", "run", "--out", "o", "--budget-ms", "x"], "--budget-ms must be FLOAT, found 'x'"),
        (["profile", "s", "--out", "o", "--drift-limit", "x"], "--drift-limit must be FLOAT, found 'x'"),
    ],
)
def test_a_value_of_the_wrong_type_is_named_with_its_flag(arguments, said):
    with pytest.raises(parsing.UsageError) as error:
        cli.parse(arguments)
    assert str(error.value) == said


def test_a_flag_given_twice_is_an_error():
    with pytest.raises(LatencyError, match="--classes is given twice"):
        cli.parse(["space", "s", "--classes", "5", "--classes=6"])


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (LatencyError("no such block"), 2),
        (KeyboardInterrupt(), 130),
        (BrokenPipeError(), 141),
        (ZeroDivisionError(), 70),
    ],
)
def test_exit_codes(raised, code, monkeypatch, capsys):
    def run(self):
        raise raised

    monkeypatch.setattr(cli.SpaceCommand, "run", run)
    with pytest.raises(SystemExit) as stop:
        cli.main(["space", "repvgg-mini"])
    assert stop.value.code == code
    assert len(capsys.readouterr().err.splitlines()) == (0 if code == 141 else 1)


@pytest.mark.filterwarnings("default::RuntimeWarning")
def test_a_warning_is_one_line_without_its_place_in_the_code(monkeypatch, capsys):
    def run(self):
        warnings.warn("pycuda cannot be loaded:\nremove it", RuntimeWarning, stacklevel=1)
        return 0

    shows = warnings.showwarning
    monkeypatch.setattr(cli.SpaceCommand, "run", run)
    with pytest.raises(SystemExit):
        cli.main(["space", "repvgg-mini"])
    assert capsys.readouterr().err == "warning: pycuda cannot be loaded: remove it\n"
    assert warnings.showwarning is shows


@pytest.mark.parametrize("begun", [False, True])
def test_only_what_is_begun_goes_on(begun, monkeypatch, capsys, tmp_path):
    def stop(self):
        raise KeyboardInterrupt

    (tmp_path / "run").mkdir()
    if begun:
        (tmp_path / "run" / "run.json").write_text("{}")
        (tmp_path / "run" / "sweep.json").write_text("{}")
        (tmp_path / "t").write_text('{"schema":"latency-table/1"}')
    monkeypatch.setattr(searches.SearchCommand, "run", stop)
    monkeypatch.setattr(cli.ProfileCommand, "run", stop)
    monkeypatch.setattr(sweeps.SweepCommand, "run", stop)
    of_space = ["pas", "--space", "s", "--out", f"{tmp_path}/run"]
    for arguments in (["search", *of_space], ["sweep", *of_space], ["profile", "s", "--out", f"{tmp_path}/t"]):
        with pytest.raises(SystemExit):
            cli.main(arguments)
        assert ("the same command goes on from here" in capsys.readouterr().err) == begun


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
        (
            "profile repvgg-mini --out t --save-timing-cache precious",
            "precious exists and would be lost: choose another name, or replace",
        ),
        ("profile repvgg-mini --out t --anchors 60", "--anchors 60 is of --like"),
        (
            "profile repvgg-mini --out t --like o --coverage adaptive",
            "--coverage adaptive interpolates, and --like transfers",
        ),
        ("search pas --space repvgg-mini --out precious", "precious exists and is not a directory"),
        ("export run --out precious", "precious exists and is not a directory"),
        ("export run --out b --target coreml", "'coreml' is unknown"),
        ("export run --out b --threads 4096", "--threads 4096"),
        ("export run --out b --protocol slow", "'slow' is unknown"),
        ("export run --out b --workspace-mib 5", "target 'onnxruntime' builds no engine"),
        (
            "export run --out b --target tensorrt-rtx --hardware-compatible",
            "hardware_compatible: only TensorRT builds such engines",
        ),
        (
            "export run --out b --target tensorrt-rtx --compute-capability 9.9",
            "does not build for compute capability '9.9'",
        ),
        ("export run --out b --target tensorrt-rtx --timing-cache c", "the builder of tensorrt-rtx measures nothing"),
        ("export run --out b --target tensorrt --compute-capability 8.9", "tensorrt builds for the current GPU"),
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
    for module in (exporting, predicting, profiling, searching, spaces, tables):
        for name in ("require", "load_table"):
            monkeypatch.setattr(module, name, early, raising=False)
    with pytest.raises(ValueError, match=said):
        cli.parse(arguments.split()).run()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "precious": "precious",
        "precious.svg": "precious",
    }
