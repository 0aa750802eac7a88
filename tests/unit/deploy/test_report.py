import html
import html.parser
import json
import re
import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest

from deploy import BundleError, DeployError, report
from latency import LatencyError, LatencyTable
from latency.errors import MissingExtra
from unit.deploy.test_verify import rewrite

TABLE = max((Path(__file__).parents[3] / "profiles").rglob("repvgg-mini.fp32.latency.jsonl"))
LATENCY = {"us": 60.0, "low_us": 59.0, "high_us": 61.0, "source": "predicted"}


def epoch(phase, number, widths):
    return {
        "phase": phase,
        "epoch": number,
        "epochs": 2,
        "loss": 1.0,
        "train_accuracy": 0.5,
        "accuracy": 0.5 + number / 10,
        "choice": {"widths": dict(zip(("first", "second"), widths, strict=True)), "options": {}, "depths": {}},
        "latency_us": 40.0 + number,
        "beta": 0.1,
    }


HISTORY = [epoch("pretrain", 1, [8, 8]), epoch("search", 1, [8, 6]), epoch("search", 2, [4, 6]), epoch("finetune", 1, [4, 6])]


@pytest.fixture
def run(tmp_path):
    directory = tmp_path / "run"
    directory.mkdir()
    network = {"accuracy": 0.99, "parameters": 1234567, "macs": 7654321, "predicted": LATENCY}
    layers = [{"name": "first", "width": 4, "of": 8, "op": "conv"}, {"name": "second", "width": 6, "of": 8}]
    run = {"method": "pas", "data": "digits <b>", "data_sha256": "cd" * 32, "table_sha256": "ab" * 32, "budget_us": 61.5}
    files = {
        "run.json": run | {"schema": "run/2", "versions": {"torch": "9.8.7"}},
        "result.json": {"schema": "result/2", "unpruned": network, "shipped": network | {"parameters": 1111}},
        "architecture.json": {"schema": "architecture/1", "layers": layers},
    }
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content))
    (directory / "history.jsonl").write_text('{"schema": "history/2"}\n' + "".join(json.dumps(line) + "\n" for line in HISTORY))
    return directory


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
    known += ("Predicted against measured", "Latency over width", "Validation", "Provenance")
    return [heading for heading in known if heading in page.text]


def test_the_page_of_a_bundle_has_every_number(made, tmp_path):
    rows = report.render(made.directory, tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert headings(page) == ["Unpruned and shipped", "Architecture", "Kept channels", "Latency", "Validation", "Provenance"]
    assert "Every verdict holds, and the budget is met." in page
    assert {row.name for row in rows} == {
        "accuracy", "parameters", "MACs", "predicted latency", "measured latency", "against unpruned", "budget", "output difference",
    }  # fmt: skip
    for row in rows:
        assert row.unpruned in page
        assert row.shipped in page
    for words in ("50.0 µs (49.0 µs to 51.0 µs)", "10000.000 ms: met", "4 of 8", "6 of 8", *made.manifest.provenance.values()):
        assert words in page
    for link in made.manifest.chain:
        assert link.sha256 in page


def test_the_page_of_a_search_has_every_number(run, tmp_path):
    rows = report.render(run, tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert headings(page) == ["Unpruned and shipped", "Architecture", "Kept channels", "Training", "Channels over time", "Provenance"]
    assert [(row.unpruned, row.shipped) for row in rows if row.name == "parameters"] == [("1,234,567", "1,111")]
    for words in ("The search is finished.", "99.00%", "60.0 µs (59.0 µs to 61.0 µs)", "61.5 µs", "9.8.7", "ab" * 32, "search", "finetune"):
        assert words in page


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
        assert not re.findall(r"#[0-9a-fA-F]{6}\b", drawn)
        ids = re.findall(r'\bid="([^"]+)"', text)
        assert len(ids) == len(set(ids))


@pytest.fixture(scope="module")
def table():
    return LatencyTable.load(TABLE)


def with_table(run, table):
    content = json.loads((run / "run.json").read_text()) | {"table_sha256": table.sha256}
    (run / "run.json").write_text(json.dumps(content))


def test_the_table_that_was_used_is_shown(run, table, tmp_path):
    with_table(run, table)
    report.render(run, tmp_path / "page.html", table)
    page = Page(tmp_path / "page.html")
    assert headings(page)[-3:] == ["Predicted against measured", "Latency over width", "Provenance"]
    assert "50 networks, measured whole and predicted from their blocks" in page
    assert "574 rows; protocol default" in page
    for family in ("head(h=4, w=4)[c_out=10]", "conv(act=relu, h=32, kernel=3, stride=1,"):
        assert family in page


def test_another_table_is_refused(run, table, tmp_path):
    with pytest.raises(
        DeployError, match=rf"is not the table of this search: its sha256 is {table.sha256[:16]}, the search used {'ab' * 8}:"
    ):
        report.render(run, tmp_path / "page.html", table)
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
def test_the_page_opens_in_a_browser(source, scheme, request, table, tmp_path):
    """Looks at a copy of the page with a script that reports: the page itself has none."""
    browser = shutil.which("chromium") or pytest.skip("chromium is not installed: apt-get install chromium")
    directory = request.getfixturevalue("run" if source == "run" else "bundle_copy")
    if source == "run":
        with_table(directory, table)
    report.render(directory, tmp_path / "page.html", table)
    text = (tmp_path / "page.html").read_text("utf-8")
    (tmp_path / "look.html").write_text(text.replace("<head>", "<head>" + LOOK), "utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr"]
    dark = ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    page = (tmp_path / "look.html").as_uri()
    done = subprocess.run(
        [browser, *options, *dark, "--window-size=1100,900", "--dump-dom", page], capture_output=True, text=True, timeout=60, check=True
    )
    assert "CONSOLE" not in done.stderr, done.stderr
    body = re.search(r"<body[^>]*>", done.stdout)[0]
    assert "data-error" not in body
    look = json.loads(html.unescape(re.search(r'data-look="([^"]*)"', body)[1]))
    assert (look["paper"] < 0.1) == (scheme == "dark")
    assert look["contrast"] >= 4.5  # WCAG 2, level AA
    assert not look["wide"]
    expected = {"run": ["Kept channels", "Training", "Channels over time"], "bundle": ["Kept channels", "Latency"]}
    assert [figure["name"] for figure in look["figures"]] == [*expected[source], "Predicted against measured", "Latency over width"]
    for figure in look["figures"]:
        assert min(figure["box"]) > 80, figure
        assert figure["marks"] >= 10, figure
        assert figure["texts"] > 4, figure


def test_what_files_say_is_text_and_no_markup(run, tmp_path):
    report.render(run, tmp_path / "page.html")
    assert "digits &lt;b&gt;" in (tmp_path / "page.html").read_text("utf-8")


def test_the_same_directory_gives_the_same_page(run, tmp_path):
    report.render(run, tmp_path / "a.html")
    report.render(run, tmp_path / "b.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_a_search_that_is_not_finished_has_a_page(run, tmp_path):
    for name in ("result.json", "architecture.json"):
        (run / name).unlink()
    assert report.render(run, tmp_path / "page.html") == []
    page = Page(tmp_path / "page.html")
    assert "The search is not finished: 4 epochs so far." in page
    assert headings(page) == ["Training", "Provenance"]


def test_a_failure_is_the_headline(bundle_copy, tmp_path):
    report_of = report.read(bundle_copy).manifest
    steps = list(report_of.validation)
    steps[-1] = msgspec.structs.replace(steps[-1], verdict="failed", reason="outputs <differ>")
    rewrite(bundle_copy, validation=tuple(steps), budget_verdict="missed")
    report.render(bundle_copy, tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert "Does not hold: onnx fp32: outputs <differ>; latency: " in page
    assert "onnx, failed: outputs <differ>" in page


def test_what_was_not_run_is_said(bundle_copy, tmp_path):
    facts = report.read(bundle_copy).manifest.shipped
    facts = msgspec.structs.replace(facts, measured=None, not_measured="no GPU here")
    rewrite(bundle_copy, shipped=facts, unpruned=None, device=None, budget_verdict="not run")
    rows = report.render(bundle_copy, tmp_path / "page.html")
    assert ("measured latency", "-", "not run") in [(row.name, row.unpruned, row.shipped) for row in rows]
    page = Page(tmp_path / "page.html")
    assert "the latency was not measured: no GPU here." in page
    assert "Latency" not in headings(page)


@pytest.mark.parametrize(
    ("name", "content"), [("result.json", "{"), ("history.jsonl", '{"schema": "history/2"}\n{"phase": "search"}\n'), ("run.json", "[]")]
)
def test_a_damaged_file_is_named_and_no_page_is_written(run, tmp_path, name, content):
    (run / name).write_text(content)
    with pytest.raises(DeployError, match=re.escape(name)) as caught:
        report.render(run, tmp_path / "page.html")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "page.html").exists()


def test_another_directory_has_no_page(tmp_path):
    with pytest.raises(BundleError, match="is neither a bundle"):
        report.render(tmp_path, tmp_path / "page.html")


def test_a_place_that_cannot_be_written_is_an_error(run, tmp_path):
    with pytest.raises(LatencyError, match=r"page\.html: .*absent is not a directory: make it"):
        report.render(run, tmp_path / "absent" / "page.html")


def test_the_extra_is_named_where_it_is_missing(run, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
    with pytest.raises(MissingExtra, match=r"lathe\[report\]"):
        report.render(run, tmp_path / "page.html")


def test_the_page_of_a_run_reads_both_versions_of_its_architecture(run):
    before = report.render(run, run.with_name("one.html"))
    members = [["first", 8], ["second", 8]]
    space = {"kind": "traced", "name": "own", "input_shape": [3, 8, 8], "classes": 2, "members": members}
    content = {"schema": "architecture/2", "space": space, "choice": {"widths": {"first": 4, "second": 6}, "options": {}, "depths": {}}}
    (run / "architecture.json").write_text(json.dumps(content))
    assert report.render(run, run.with_name("two.html")) == before
    assert "own; input 3 × 8 × 8; 2 classes." in "".join(Page(run.with_name("two.html")).text)
