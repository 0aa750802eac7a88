import hashlib

import msgspec
import pytest
from msgspec.structs import replace

from deploy.metric import ACCURACY
from search import SearchError
from search.record import USAGE, Run, Usage, open_run, read_history, read_run, read_usage, write_usage


@pytest.fixture
def run(tiny) -> Run:
    return Run(
        method="pas",
        settings={"seed": 0, "lr": 0.1},
        space=tiny.record(),
        budget_us=100.0,
        table_sha256="a" * 64,
        data="digits",
        data_sha256="b" * 64,
        metric=ACCURACY,
        versions={"torch": "2.0"},
    )


def test_a_new_directory_is_made_and_a_same_run_goes_on(tmp_path, run):
    out = tmp_path / "deep" / "run"
    first = open_run(out, run)
    assert first == hashlib.sha256((out / "run.json").read_bytes()).hexdigest()
    assert open_run(out, replace(run, versions={"torch": "2.1"})) == first  # what is there stays


def test_a_directory_with_nothing_but_a_torn_first_write_is_used(tmp_path, run):
    (tmp_path / ".run.json.partial").write_text('{"schema"')
    open_run(tmp_path, run)
    assert [file.name for file in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"settings": {"seed": 1, "lr": 0.1}}, "its settings.seed is 0, asked for 1"),
        ({"settings": {"seed": 0}}, "its settings.lr is 0.1, asked for None"),
        ({"table_sha256": "c" * 64}, f"its table_sha256 is '{'a' * 64}', asked for '{'c' * 64}'"),
        ({"data": "folder:x"}, "its data is 'digits', asked for 'folder:x'"),
    ],
)
def test_another_run_is_refused_with_what_differs(tmp_path, run, changed, message):
    open_run(tmp_path / "run", run)
    with pytest.raises(SearchError, match=f"holds another run: {message}; choose another --out"):
        open_run(tmp_path / "run", replace(run, **changed))


def test_what_is_no_run_is_left_alone(tmp_path, run):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(SearchError, match="exists and is not a run of a search: choose another --out"):
        open_run(tmp_path, run)
    with pytest.raises(SearchError, match="exists and is not a run of a search"):
        open_run(tmp_path / "thesis.tex", run)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_damaged_run_is_named(tmp_path, run):
    open_run(tmp_path, run)
    (tmp_path / "run.json").write_text('{"schema": "run/9"}')
    with pytest.raises(SearchError, match=r"run.json is damaged: Invalid enum value 'run/9'"):
        open_run(tmp_path, run)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"budget_us": 0.0}, "Expected `float` > 0.0"),
        ({"budget_us": None, "budget_macs": -1.0}, "Expected `float` > 0.0"),
    ],
)
def test_a_budget_below_zero_is_refused(tmp_path, run, change, words):
    (tmp_path / "run.json").write_bytes(msgspec.json.encode(msgspec.to_builtins(run) | change))
    with pytest.raises(SearchError, match=f"run.json is damaged: {words}"):
        open_run(tmp_path, run)


@pytest.mark.parametrize("field", ["table_sha256", "data_sha256", "baseline_sha256"])
def test_what_is_no_hash_is_named(tmp_path, run, field):
    open_run(tmp_path / "run", run)
    path = tmp_path / "run" / "run.json"
    path.write_bytes(msgspec.json.encode(msgspec.to_builtins(run) | {field: "a"}))
    with pytest.raises(SearchError, match=rf"matching regex .* at `\$.{field}`"):
        read_run(tmp_path / "run")


@pytest.mark.parametrize("widths", [{"a": -1}, {"a": 2**40}])
def test_a_width_that_is_not_possible_is_refused(tmp_path, run, widths):
    line = {
        "phase": "search",
        "epoch": 1,
        "epochs": 1,
        "loss": 1.0,
        "train_accuracy": 1.0,
        "accuracy": 1.0,
        "choice": {"widths": widths},
    }
    content = [{"schema": "history/2"}, {**line, "latency_us": None, "macs": 1}]
    (tmp_path / "history.jsonl").write_bytes(b"\n".join(map(msgspec.json.encode, content)))
    with pytest.raises(SearchError, match=r"history.jsonl, line 2, is damaged .*choice.widths"):
        read_history(tmp_path, run)


def test_usage_comes_back_and_is_none_where_it_was_not_written(tmp_path):
    usage = (Usage(phase="search", epoch=1, steps=3, seconds=0.5, saved_bytes=4096),)
    assert read_usage(tmp_path) == ()
    write_usage(tmp_path, usage)
    assert read_usage(tmp_path) == usage


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"usage.jsonl does not begin with its schema: delete it, or run `lathe search` again"),
        ('{"schema":"usage/9"}\n', "has the schema 'usage/9', known is usage/1"),
        ('{"schema":"usage/1","colour":1}\n', "line 1, has the field 'colour'"),
        (
            '{"schema":"usage/1"}\n{"phase":"search","epoch":1,"steps":3,"seconds":-1.0,"saved_bytes":1}\n',
            "line 2, is damaged",
        ),
    ],
)
def test_damaged_usage_is_refused(tmp_path, text, message):
    (tmp_path / USAGE).write_text(text)
    with pytest.raises(SearchError, match=message):
        read_usage(tmp_path)
