"""What the README shows works as it stands there. Its longer commands are the fixtures of this folder."""

import re
import subprocess
import sys

import pytest

from integration.conftest import README, readme_commands, run_lathe

FIXTURES = ("profile", "search", "export")


def test_every_command_is_run(table, run, bundle, work):
    for command in readme_commands():
        if command[0] not in FIXTURES:
            done = run_lathe(*command, cwd=work)
            assert done.returncode in ((0, 1) if command[0] == "verify" else (0,)), (command, done.stderr)
            assert done.stdout


def test_python_examples_run(bundle, work):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    done = subprocess.run([sys.executable, "-P", "-W", "error", "-c", code], cwd=work, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)#:]+)\)", README))
def test_links_lead_somewhere(target):
    from pathlib import Path

    assert (Path(__file__).parents[2] / target).exists()
