import dataclasses
import subprocess
import sys

import pytest

from latency import LatencyError
from lathe import cli

FLAGS = {
    cli.Space: "space classes resolution json",
    cli.Bundle: "space out precision networks seed classes resolution json",
    cli.Profile: "space out backend protocol threads coverage coverage_error drift_limit timing_cache save_timing_cache networks seed classes resolution shard json",
    cli.TableShow: "table plot json",
    cli.TableCheck: "table space json",
    cli.TableDiff: "first second json",
    cli.TableMerge: "tables out json",
    cli.Search: "method space out table data budget_ms budget_fraction backend precision this_device recipe policy baseline cost regulariser min_channels exclude "
    "pretrain_epochs search_epochs finetune_epochs seed json",
    cli.Export: "source out target budget_ms protocol threads samples workspace_mib optimization_level timing_cache version_compatible "
    "hardware_compatible compute_capability json",
    cli.Verify: "bundle json",
    cli.Report: "source out table json",
    cli.Paper: "paper json",
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


@pytest.mark.parametrize("name", ["", "space", "bundle", "profile", "table", "table show", "search", "export", "verify", "report", "paper"])
def test_help_needs_no_extra(name):
    """Help is printed though nothing that an extra brings can be imported."""
    code = f"{WITHOUT_EXTRAS}\nfrom lathe.cli import main\nmain({[*name.split(), '--help']!r})"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"usage: lathe {name}".strip() in done.stdout


@pytest.mark.parametrize(
    ("arguments", "module", "install"),
    [
        (["space", "repvgg-mini"], "torch", "lathe[train]"),
        (["search", "pas", "--space", "s", "--table", "t", "--out", "o"], "torch", "lathe[train]"),
        (["report", "somewhere"], "jinja2", "lathe[report]"),
        (["profile", "repvgg-mini", "--backend", "tensorrt-rtx", "--out", "t"], "tensorrt_rtx", "lathe[tensorrt-rtx]"),
    ],
)
def test_a_missing_extra_is_named_with_its_install_command(arguments, module, install, capsys, monkeypatch):
    monkeypatch.setattr("importlib.import_module", _without(module))
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert len(said.strip().splitlines()) == 1
    assert f"'{module}'" in said
    assert f"pip install '{install}'" in said


def _without(module):
    import importlib

    real = importlib.import_module

    def fake(name, package=None):
        if name.split(".")[0] == module:
            raise ModuleNotFoundError(f"No module named {module!r}", name=module)
        return real(name, package)

    return fake


def test_usage_errors_are_one_line():
    with pytest.raises(cli.UsageError, match=r"--out") as error:
        cli.parse(["profile", "repvgg-mini"])
    assert "\n" not in str(error.value)
    assert not set("╭│─╯") & set(str(error.value))
    with pytest.raises(cli.UsageError, match=r"^invalid choice 'l1'"):  # said once, not in the frame's title too
        cli.parse(["search", "pas", "--space", "repvgg-mini", "--out", "run", "--policy", "l1"])


def test_errors_of_other_kinds_are_bugs_and_show_themselves(monkeypatch):
    monkeypatch.setattr(cli.Space, "run", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["space", "repvgg-mini"])


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (OSError(28, "No space left on device", "t.jsonl"), "lathe: t.jsonl: No space left on device\n"),
        (OSError(28, "No space left on device"), "lathe: No space left on device\n"),
        (OSError("no such\ndevice"), "lathe: no such device\n"),
    ],
)
def test_errors_of_the_system_name_the_file(raised, said, monkeypatch, capsys):
    def run(self):
        raise raised

    monkeypatch.setattr(cli.Space, "run", run)
    with pytest.raises(SystemExit):
        cli.main(["space", "repvgg-mini"])
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(("raised", "code"), [(LatencyError("no such block"), 2), (KeyboardInterrupt(), 130), (BrokenPipeError(), 0)])
def test_exit_codes(raised, code, monkeypatch, capsys):
    def run(self):
        raise raised

    monkeypatch.setattr(cli.Space, "run", run)
    with pytest.raises(SystemExit) as stop:
        cli.main(["space", "repvgg-mini"])
    assert stop.value.code == code
    said = capsys.readouterr().err.splitlines()
    assert len(said) == (0 if code == 0 else 1)
