"""What the README shows works as it stands there. Its longer commands are the fixtures of this folder."""

import re
import subprocess
import sys

import pytest

from integration.conftest import README, readme, readme_commands, run_lathe, run_module
from latency import LatencyTable

FIXTURES = ("profile", "search", "export", "sweep")
"""What others of these tests run: with few epochs, or a part of it."""


def test_every_command_is_run(table, run, bundle, work):
    for command in readme_commands():
        if command[0] not in FIXTURES and command[-1] != "sweep":
            done = run_lathe(*command, cwd=work)
            assert done.returncode == 0, (command, done.stderr)
            assert done.stdout


def test_a_part_of_this_machine_is_measured(tmp_path):
    """The README's profiles, of a space and of a block bundle without torch: a part of the blocks, really measured."""
    (apart,) = readme_commands("python -m latency")
    for module, command in (
        ("lathe", [*readme("bundle"), "--networks", "0"]),
        ("lathe", [*readme("profile"), "--shard", "3/300"]),
        ("latency", [*apart, "--protocol", "fast", "--shard", "3/300"]),
    ):
        done = run_module(module, *command, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    for path in (readme("profile")[-1], apart[-1]):
        rows = LatencyTable.load(tmp_path / path).rows
        assert {row.kind for row in rows} >= {"block", "overhead", "sentinel"}
        assert all(row.measured and row.low_us <= row.median_us <= row.high_us for row in rows)


def test_python_examples_run(bundle, work):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    done = subprocess.run([sys.executable, "-P", "-W", "error", "-c", code], cwd=work, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)#:]+)\)", README))
def test_links_lead_somewhere(target):
    from pathlib import Path

    assert (Path(__file__).parents[2] / target).exists()
