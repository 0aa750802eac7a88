"""What the README and the pages of docs/ show works as it stands there. Their longer commands are the fixtures of this folder."""

import functools
import io
import re
import shutil
from contextlib import chdir, redirect_stdout

import pytest

from integration.conftest import GUIDES, PAGES, QUICK, ROOT, commands_of, documented, run_lathe, run_module, slow_table
from latency import LatencyTable
from lathe import cli
from reparam import rules
from search.spaces import own

FIXTURES = ("profile", "search", "export", "sweep")
"""What others of these tests run: with few epochs, or a part of it."""
EXAMPLES = [
    pytest.param(code, id=f"{page}-{number}")
    for page, text in PAGES.items()
    if page not in GUIDES
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
]


def test_every_command_is_run(table, run, bundle, work):
    for page in PAGES.keys() - set(GUIDES):
        for command in commands_of(page):
            if command[0] not in FIXTURES and command[-1] != "sweep":
                done = run_lathe(*command, cwd=work)
                assert done.returncode == 0, (page, command, done.stderr)
                assert done.stdout


def test_a_part_of_this_machine_is_measured(tmp_path):
    """The profiles of a space and of a block bundle without torch: a part of the blocks, really measured."""
    apart = documented("profile", program="python -m latency")
    for module, command in (
        ("lathe", [*documented("bundle"), "--networks", "0"]),
        ("lathe", [*documented("profile"), "--shard", "3/300"]),
        ("latency", [*apart, "--protocol", "fast", "--shard", "3/300"]),
    ):
        done = run_module(module, *command, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    for path in (documented("profile")[-1], apart[-1]):
        rows = LatencyTable.load(tmp_path / path).rows
        assert {row.kind for row in rows} >= {"block", "overhead", "sentinel"}
        assert all(row.measured and row.low_us <= row.median_us <= row.high_us for row in rows)


def test_a_network_of_ones_own_is_pruned_as_the_guide_says(tmp_path, few_digits):
    """On a simulated device, with few epochs."""
    (code,) = re.findall(r'```python title="net.py"\n(.*?)```', PAGES["docs/prune.md"], re.DOTALL)
    (tmp_path / "net.py").write_text(code)
    less = {"search": QUICK, "export": ("--protocol", "fast")}
    (measure,) = (cli.parse(command) for command in commands_of("docs/prune.md") if command[0] == "profile")
    with chdir(tmp_path):
        slow_table(measure.out, own.space(measure.space, tuple(map(int, measure.input.split("x")))))
    for command in commands_of("docs/prune.md"):
        if command[0] == "profile":
            continue
        words = [few_digits if word == "folder:images" else word for word in command]
        done = run_lathe(*words, *less.get(command[0], ()), cwd=tmp_path)
        assert done.returncode == 0, (command, done.stderr)
    assert (tmp_path / "pruned-bundle.html").is_file()


def test_a_gpu_is_profiled_as_the_guide_says(tmp_path):
    """Flags are checked; tables are looked at as of a device that is recorded."""
    recorded = max((ROOT / "profiles").rglob("prunet-mini.fp32.latency.jsonl"))
    for name in ("my-gpu", "again"):
        shutil.copy(recorded, tmp_path / f"{name}.latency.jsonl")
    for command in commands_of("docs/profile.md"):
        cli.parse(command)
        if command[0] in ("table", "paper") and command[1] != "merge":
            done = run_lathe(*command, cwd=tmp_path)
            assert done.returncode == 0, (command, done.stderr)


@pytest.mark.parametrize("code", EXAMPLES)
def test_python_examples_run(code, bundle, work, few_digits, monkeypatch):
    monkeypatch.setattr(rules, "_RULES", rules._RULES)  # an example adds one, which ends with it
    monkeypatch.setattr(rules, "_table", functools.cache(rules._table.__wrapped__))
    images = work / "images"
    if not images.exists():
        images.symlink_to(few_digits.removeprefix("folder:"))
    with chdir(work), redirect_stdout(io.StringIO()):
        exec(compile(code, "example", "exec"), {"__name__": "example"})


def anchors(text):
    """The anchors of a page's headings, as GitHub and MkDocs make them."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\(([^)#:]*)#?([^):]*)\)", PAGES[page]):
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), target
        if anchor:
            assert anchor in anchors(path.read_text()), (target, anchor)


def test_every_page_of_the_site_is_in_its_navigation():
    nav = re.search(r"^nav:\n(.*?)^\S", (ROOT / "mkdocs.yml").read_text(), re.DOTALL | re.MULTILINE)[1]
    pages = [path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")]
    assert sorted(re.findall(r": (\S+\.md)$", nav, re.MULTILINE)) == sorted(pages)


def test_the_site_is_built_without_a_warning(tmp_path):
    """As by `make docs`, which installs what it needs."""
    pytest.importorskip("mkdocstrings", reason="the extra docs is not installed")
    pytest.importorskip("material", reason="the extra docs is not installed")
    done = run_module("mkdocs", "build", "--strict", "--site-dir", str(tmp_path), cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "api" / "latency" / "index.html").is_file()
