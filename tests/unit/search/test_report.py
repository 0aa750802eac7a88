# ruff: noqa: F811 -- fixtures of another folder
import hashlib
import html
import html.parser
import json
import re
import shutil
import subprocess
from pathlib import Path

import matplotlib
import msgspec
import pytest
from matplotlib.figure import Figure

from deploy import BundleError, DeployError, bundle
from latency import LatencyError, LatencyTable
from latency.errors import MissingExtra
from search import SearchError, finished, report, session
from search.budget import Budget
from search.method import Problem
from search.methods.prunet import Prunet
from search.methods.settings import PrunetSettings
from unit.deploy.conftest import bundle_copy, made  # noqa: F401
from unit.deploy.test_verify import rewrite

from .conftest import make_layers, make_method, make_table

TABLE = max((Path(__file__).parents[3] / "profiles").rglob("repvgg-mini.fp32.latency.jsonl"))


@pytest.fixture(scope="session")
def searched(tmp_path_factory, shortcut_space, stripes):
    """A run over the widths of a network that torch.fx traced."""
    directory = tmp_path_factory.mktemp("searched") / "run"
    table = make_table(shortcut_space)
    budget_us = 0.7 * table.predict(shortcut_space.network()).us
    settings = {"pretrain_epochs": 1, "search_epochs": 2, "finetune_epochs": 1, "policy_lr": 20.0}
    list(session.run(make_method("pas", shortcut_space, table, stripes, budget_us, **settings), directory))
    return directory


@pytest.fixture
def run(searched, tmp_path):
    return Path(shutil.copytree(searched, tmp_path / "run", ignore=shutil.ignore_patterns("*.safetensors")))


@pytest.fixture
def shipped_run(bundle_copy, run):
    """A bundle with the files of the run that it is of."""
    for name in ("run.json", "history.jsonl", "architecture.json"):
        shutil.copy(run / name, bundle_copy / name)
    return bundle_copy


class Page(html.parser.HTMLParser):
    """Collects the text, and checks that every element is closed."""

    def __init__(self, path):
        super().__init__()
        self.text, self.open, self.tags = [], [], []
        self.feed(path.read_text("utf-8"))
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open[-1:]:
            self.text.append(data)

    def __contains__(self, words):
        return words in " ".join(" ".join(self.text).split())


def headings(page):
    known = ("Unpruned and shipped", "Architecture", "Kept channels", "Latency", "Training", "Channels over time")
    known += (
        "Channels that returned",
        "Predicted against measured",
        "Latency over width",
        "Search",
        "Validation",
        "Provenance",
    )
    return [heading for heading in known if heading in page.text]


def test_the_page_of_a_bundle_has_every_number(made, tmp_path):
    rows = report.render(made.directory, tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert headings(page) == ["Unpruned and shipped", "Kept channels", "Latency", "Validation", "Provenance"]
    assert "Every verdict holds, and the budget is met." in page
    assert {row.name for row in rows} == {
        "accuracy", "parameters", "MACs", "predicted latency", "measured latency", "against unpruned", "budget", "output difference",
    }  # fmt: skip
    for row in rows:
        assert row.unpruned in page
        assert row.shipped in page
    for words in (
        "50.0 µs (49.0 to 51.0)",
        "10,000,000.0 µs: met",
        "4 of 8",
        "6 of 8",
        *made.manifest.provenance.values(),
    ):
        assert words in page
    for link in made.manifest.chain:
        assert link.sha256 in page
    looks = [attributes.get("class") for _, attributes in page.tags]
    assert ("headline good" in looks, looks.count("bar"), looks.count("limit"), looks.count("bar chosen good")) == (
        True,
        1,
        1,
        1,
    )
    places = {attributes["id"] for tag, attributes in page.tags if tag == "h2"}
    assert {attributes["href"] for tag, attributes in page.tags if tag == "a"} == {f"#{place}" for place in places}


def test_the_page_of_an_onnx_file_has_no_place_for_what_it_cannot_have(bundle_copy, tmp_path):
    facts = msgspec.structs.replace(bundle.load(bundle_copy).manifest.shipped, score=None, predicted=None)
    rewrite(bundle_copy, shipped=facts, unpruned=None, layers=(), metric=None)
    rows = report.render(bundle_copy, tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert [row.name for row in rows] == ["parameters", "MACs", "measured latency", "budget", "output difference"]
    assert headings(page) == ["Latency", "Validation", "Provenance"]
    assert "-" not in [text.strip() for text in page.text]
    assert "unpruned" not in page.text


def test_the_page_of_a_search_has_every_number(run, tmp_path):
    rows = report.render(run, tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    result, facts = (json.loads((run / name).read_text()) for name in ("result.json", "run.json"))
    drawn = ["Kept channels", "Training", "Channels over time"]
    assert headings(page)[:5] == ["Unpruned and shipped", "Architecture", *drawn]
    assert headings(page)[-1] == "Provenance"
    sizes = tuple(f"{result[name]['parameters']:,}" for name in ("unpruned", "shipped"))
    assert [(row.unpruned, row.shipped) for row in rows if row.name == "parameters"] == [sizes]
    for words in (
        "The search is finished.",
        f"{result['shipped']['score']:.2%}",
        facts["table_sha256"],
        facts["versions"]["torch"],
        "wide.0",
    ):
        assert words in page


def test_the_page_of_a_shipped_run_has_the_search_too(shipped_run, tmp_path):
    rows = report.render(shipped_run, tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert "measured latency" in [row.name for row in rows]
    assert headings(page)[:6] == [
        "Unpruned and shipped",
        "Architecture",
        "Kept channels",
        "Latency",
        "Training",
        "Channels over time",
    ]
    assert headings(page)[-3:] == ["Search", "Validation", "Provenance"]


@pytest.mark.parametrize("name", ["uniform", "slimming", "table"])
def test_every_kind_of_run_has_a_page(search_into, tmp_path, name):
    for _ in search_into(tmp_path / "run", name, pretrain_epochs=1, search_epochs=1, finetune_epochs=1):
        pass
    assert len(report.render(tmp_path / "run", tmp_path / "page.html")) == 6
    assert "Channels over time" in Page(tmp_path / "page.html")


def test_the_page_of_a_layered_search_draws_the_network(stripes, tmp_path):
    space = make_layers()
    settings = {"warmup_epochs": 1, "search_epochs": 2, "train_epochs": 1, "batch": 16, "search_batch": 8}
    problem = Problem(space=space, table=None, task=stripes, budget=Budget(macs=space.macs()))
    list(session.run(Prunet(PrunetSettings(**settings), problem), tmp_path / "run"))
    report.render(tmp_path / "run", tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    for heading in ("Network", "Training", "Time and memory", "Blocks over time", "Masks over time"):
        assert heading in page.text
    assert "Kept channels" not in page.text


def test_a_run_without_a_table_counts_macs(shortcut_space, stripes, tmp_path):
    method = make_method(
        "uniform", shortcut_space, None, stripes, 0.6 * shortcut_space.macs(), pretrain_epochs=1, search_epochs=1
    )
    list(session.run(method, tmp_path / "run"))
    rows = report.render(tmp_path / "run", tmp_path / "page.html")
    assert "MACs: no table was given" in rows[-1].shipped
    assert "million MACs" in Page(tmp_path / "page.html")


def test_the_page_stands_alone_in_light_and_dark(run, made, tmp_path):
    for source in (run, made.directory):
        report.render(source, tmp_path / "page.html")
        text = (tmp_path / "page.html").read_text("utf-8")
        page = Page(tmp_path / "page.html")
        assert "prefers-color-scheme: dark" in text
        assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in page.tags}
        assert not re.findall(r"""(?:src|href)=["'](?!#)|url\((?!#)|@import""", text)
        drawn = " ".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
        assert "currentColor" in drawn
        assert "var(--first)" in drawn
        heat_map = {
            matplotlib.colors.to_hex(colour) for colour in matplotlib.colormaps["viridis"].resampled(24)(range(24))
        }
        assert set(re.findall(r"#[0-9a-fA-F]{6}\b", drawn)) <= heat_map
        ids = re.findall(r'\bid="([^"]+)"', text)
        assert len(ids) == len(set(ids))


@pytest.mark.parametrize("name", ["run.json", "architecture.json", "weights.safetensors"])
def test_a_run_of_which_a_file_was_changed_is_refused(searched, tmp_path, name):
    run = shutil.copytree(searched, tmp_path / "run")
    content = (run / name).read_bytes()
    (run / name).write_bytes(
        content[:-64] + bytes(64) if name == "weights.safetensors" else content.replace(b"shortcut", b"shortcuT")
    )
    with pytest.raises(
        SearchError, match=rf"{name} was changed after the search: result.json names the sha256 \w{{16}}, found"
    ):
        report.render(run, tmp_path / "page.html")
    with pytest.raises(SearchError, match=f"{name} was changed after the search"):
        finished.load(run)
    (run / name).write_bytes(content)
    assert len(report.render(run, tmp_path / "page.html")) == 6


@pytest.fixture(scope="module")
def measured():
    return LatencyTable.load(TABLE)


def rewrite_run(run, **changes):
    """Change `run.json`, and the hash that the result names it by."""
    content = json.dumps(json.loads((run / "run.json").read_text()) | changes).encode()
    (run / "run.json").write_bytes(content)
    result = json.loads((run / "result.json").read_text()) | {"run_sha256": hashlib.sha256(content).hexdigest()}
    (run / "result.json").write_text(json.dumps(result))


def with_table(run, table):
    rewrite_run(run, table_sha256=table.sha256)


def test_the_table_that_was_used_is_shown(run, measured, tmp_path):
    with_table(run, measured)
    report.render(run, tmp_path / "page.html", measured)
    page = Page(tmp_path / "page.html")
    assert headings(page)[-3:] == ["Predicted against measured", "Latency over width", "Provenance"]
    assert "50 networks, measured whole and predicted from their blocks" in page
    assert "574 rows; protocol default" in page
    for family in ("head(h=4, w=4)[c_out=10]", "conv(act=relu, h=32, kernel=3, stride=1,"):
        assert family in page


def test_another_table_is_refused(run, measured, tmp_path):
    with pytest.raises(
        SearchError,
        match=rf"is not the table of this search: its sha256 is {measured.sha256[:16]}, the search used {'5' * 16}:",
    ):
        report.render(run, tmp_path / "page.html", measured)
    assert not (tmp_path / "page.html").exists()


LOOK = """<script>
addEventListener("error", event => document.body.dataset.error = event.message);
addEventListener("load", () => {
  const light = colour => colour.match(/[\\d.]+/g).slice(0, 3).map(c => (c /= 255) <= .04 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
  const paper = light(getComputedStyle(document.body).backgroundColor);
  const contrast = colour => (Math.max(light(colour), paper) + .05) / (Math.min(light(colour), paper) + .05);
  const texts = [...document.querySelectorAll("svg text, p, th, td, figcaption")].filter(e => e.textContent.trim());
  const look = {
    paper,
    contrast: Math.min(...texts.map(e => contrast(getComputedStyle(e)[e.ownerSVGElement ? "fill" : "color"]))),
    wide: document.documentElement.scrollWidth > innerWidth,
    figures: [...document.querySelectorAll("figure")].map(figure => ({
      name: figure.getAttribute("aria-label").split(":")[0],
      box: [figure.querySelector("svg").getBoundingClientRect()].map(box => [box.width, box.height])[0],
      marks: [...figure.querySelectorAll("svg path, svg use")].filter(e => {
        const box = e.getBBox(), style = getComputedStyle(e);
        return !e.closest("defs, clipPath") && box.width + box.height > 0 && (style.fill != "none" || style.stroke != "none");
      }).length,
      texts: figure.querySelectorAll("svg text").length,
    })),
  };
  document.body.dataset.look = JSON.stringify(look);
});
</script>"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("source", ["run", "bundle"])
def test_the_page_opens_in_a_browser(source, scheme, request, measured, tmp_path):
    """Looks at a copy of the page with a script that reports: the page itself has none."""
    browser = shutil.which("chromium") or pytest.skip("chromium is not installed: apt-get install chromium")
    directory = request.getfixturevalue("run" if source == "run" else "bundle_copy")
    if source == "run":
        with_table(directory, measured)
    report.render(directory, tmp_path / "page.html", measured)
    text = (tmp_path / "page.html").read_text("utf-8")
    (tmp_path / "look.html").write_text(text.replace("<head>", "<head>" + LOOK), "utf-8")
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--enable-logging=stderr",
    ]
    dark = ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    page = (tmp_path / "look.html").as_uri()
    done = subprocess.run(
        [browser, *options, *dark, "--window-size=1100,900", "--dump-dom", page],
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    assert "CONSOLE" not in done.stderr, done.stderr
    body = re.search(r"<body[^>]*>", done.stdout)[0]
    assert "data-error" not in body
    look = json.loads(html.unescape(re.search(r'data-look="([^"]*)"', body)[1]))
    assert (look["paper"] < 0.1) == (scheme == "dark")
    assert look["contrast"] >= 4.5  # WCAG 2, level AA
    assert not look["wide"]
    expected = {
        "run": ["Kept channels", "Training", "Time and memory", "Channels over time", "Channels that returned"],
        "bundle": ["Kept channels", "Latency"],
    }
    assert [figure["name"] for figure in look["figures"]] == [
        *expected[source],
        "Predicted against measured",
        "Latency over width",
    ]
    for figure in look["figures"]:
        assert min(figure["box"]) > 80, figure
        assert figure["marks"] >= 10, figure
        assert figure["texts"] > 4, figure


def test_what_files_say_is_text_and_no_markup(run, tmp_path):
    rewrite_run(run, data="digits <b>")
    report.render(run, tmp_path / "page.html")
    assert "digits &lt;b&gt;" in (tmp_path / "page.html").read_text("utf-8")


def test_each_group_has_a_line_with_what_came_back():
    figure = Figure()
    report._plot_returned(figure, [(0, 2), (4, 0), (0, 1)], ("stem", "head"))
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["stem", "head"]
    assert [text.get_text() for text in axes.texts] == ["4", "3"]
    heights = [[round(bar.get_height(), 3) for bar in bars] for bars in axes.containers]
    assert heights == [[0, 0.9, 0], [0.45, 0, 0.225]]
    assert [bars[0].get_y() for bars in axes.containers] == [1, 0]


def test_the_same_directory_gives_the_same_page(run, tmp_path):
    report.render(run, tmp_path / "a.html")
    report.render(run, tmp_path / "b.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_a_search_that_is_not_finished_has_a_page(run, tmp_path):
    for name in ("result.json", "architecture.json"):
        (run / name).unlink()
    assert report.render(run, tmp_path / "page.html") == ()
    page = Page(tmp_path / "page.html")
    assert "The search is not finished: 4 epochs so far." in page
    assert headings(page) == ["Training", "Provenance"]


def test_a_failure_is_the_headline(bundle_copy, tmp_path):
    report_of = bundle.load(bundle_copy).manifest
    steps = list(report_of.validation)
    steps[-1] = msgspec.structs.replace(steps[-1], verdict="failed", reason="outputs <differ>")
    rewrite(bundle_copy, validation=tuple(steps), budget_verdict="missed")
    report.render(bundle_copy, tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert "Failed: onnx fp32: outputs <differ>; latency: " in page
    assert "onnx, failed: outputs <differ>" in page


def test_what_was_not_run_is_said(bundle_copy, tmp_path):
    facts = bundle.load(bundle_copy).manifest.shipped
    facts = msgspec.structs.replace(facts, measured=None, not_measured="no GPU here")
    rewrite(bundle_copy, shipped=facts, unpruned=None, device=None, budget_verdict="not run")
    rows = report.render(bundle_copy, tmp_path / "page.html")
    assert ("measured latency", "", "not run") in [(row.name, row.unpruned, row.shipped) for row in rows]
    page = Page(tmp_path / "page.html")
    assert ("td", {"class": "notrun"}) in page.tags  # unlike a verdict that holds
    assert "the latency was not measured: no GPU here." in page
    assert "Latency" not in headings(page)


@pytest.mark.parametrize(
    ("name", "content"),
    [("result.json", "{"), ("history.jsonl", '{"schema": "history/3"}\n{"phase": "search"}\n'), ("run.json", "[]")],
)
def test_a_damaged_file_is_named_and_no_page_is_written(run, tmp_path, name, content):
    (run / name).write_text(content)
    with pytest.raises((DeployError, SearchError), match=re.escape(name)) as caught:
        report.render(run, tmp_path / "page.html")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "page.html").exists()


def test_another_directory_has_no_page(tmp_path):
    with pytest.raises(BundleError, match="is neither a bundle"):
        report.render(tmp_path, tmp_path / "page.html")
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime" / "manifest.json").touch()
    with pytest.raises(BundleError, match="holds bundles: give one of them, such as .*/onnxruntime$"):
        report.render(tmp_path, tmp_path / "page.html")


def test_a_place_that_cannot_be_written_is_an_error(run, tmp_path):
    with pytest.raises(LatencyError, match=r"page\.html: .*absent is not a directory: make it"):
        report.render(run, tmp_path / "absent" / "page.html")


def test_the_extra_is_named_where_it_is_missing(run, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
    with pytest.raises(MissingExtra, match=r"\[report\]'$"):
        report.render(run, tmp_path / "page.html")
