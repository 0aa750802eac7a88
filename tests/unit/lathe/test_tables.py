from pathlib import Path

import msgspec
import pytest

from latency import LatencyError, LatencyTable, TableWriter
from lathe import cli
from lathe.tables import check_table
from search.errors import SearchError
from unit.lathe.conftest import OTHER_SIZES


def test_every_command_that_takes_a_torn_table_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lines = (
        (Path(__file__).parents[2] / "formats" / "latency-table-2.latency.jsonl").read_bytes().splitlines(keepends=True)
    )
    Path("t.jsonl").write_bytes(b"".join(lines[:-1]) + lines[-1][:40])
    Path("whole.jsonl").write_bytes(b"".join(lines))
    torn = f"warning: t.jsonl, line {len(lines)}: the last line is torn and was dropped; profiling again measures it"
    for words in ("show t.jsonl", "diff t.jsonl t.jsonl", "diff whole.jsonl t.jsonl", "merge t.jsonl --out all.jsonl"):
        cli.parse(["table", *words.split()]).run()
        said = " ".join(capsys.readouterr().err.split())
        assert said.count(torn) == words.count(" t.jsonl"), words


@pytest.mark.usefixtures("other_sizes")
def test_a_table_is_checked_against_the_sizes_that_it_is_of():
    def problems(flags):
        return {
            found.problem for found in check_table(cli.parse(f"table check t {flags}".split()), pytest.fail).findings
        }

    assert "missing" in problems("")
    assert "missing" not in problems(OTHER_SIZES)


def test_a_table_of_a_space_that_cannot_be_read_here_is_checked_without_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kept = LatencyTable.load(Path(__file__).parents[2] / "formats" / "latency-table-3.latency.jsonl")
    with TableWriter("t", msgspec.structs.replace(kept.header, space="gone.py:make", like=())) as table:
        table.append(*(row for row in kept.rows if row.measured))
    said = []
    checked = check_table(cli.parse(["table", "check", "t"]), said.append)
    assert said == [
        "what t lacks of its space gone.py:make is not known: gone.py:make does not say what it is for: give the shape of an image, such as --input 3x224x224"
    ]
    assert "missing" not in {found.problem for found in checked.findings}
    assert checked.again.startswith("lathe profile gone.py:make --backend")
    with pytest.raises(SearchError, match="unknown space 'fly'"):
        check_table(cli.parse(["table", "check", "t", "--space", "fly"]), pytest.fail)


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
