import hashlib
import itertools
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latency import (
    BlockSpec,
    CoverageError,
    Device,
    FingerprintMismatch,
    Latency,
    LatencyTable,
    Row,
    Runtime,
    Surface,
    TableError,
    TableHeader,
    TableWriter,
    protocol,
)
from latency.check import check


def write(path, header, rows):
    with TableWriter(path, header) as writer:
        for row in rows:
            writer.append(row)
    return path


@pytest.fixture
def rows(kit):
    return [
        kit.row("overhead", [2.0, 2.1, 2.2], kind="overhead"),
        *(kit.row(kit.spec(a, b).key, [a * b / 8 + 0.5, a * b / 8 + 1, a * b / 8 + 1.25]) for a in (8, 16, 24) for b in (8, 16)),
    ]


@pytest.fixture
def path(tmp_path, kit, rows):
    return write(tmp_path / "t.latency.jsonl", kit.header(), rows)


# reading and writing


def test_what_is_written_is_read(path, kit, rows):
    table = LatencyTable.load(path)
    assert table.header == kit.header()
    assert table.rows == rows
    assert table.warnings == ()
    assert len(table.sha256) == 64


def test_the_format_is_lines_of_json_with_schema_first_and_check_last(path, rows):
    lines = path.read_text().splitlines()
    assert len(lines) == 1 + len(rows)
    assert lines[0].startswith('{"schema":"latency-table/3","device":{"kind":"cpu"')
    assert all(re.search(r',"check":"[0-9a-f]{12}"\}$', line) for line in lines)
    assert msgspec.json.decode(lines[2])["samples_us"] == [8.5, 9.0, 9.25]


def test_the_latest_row_of_a_key_counts(path, kit, rows):
    again = kit.row(rows[1].key, [70.0])
    with TableWriter(path, kit.header()) as writer:
        assert writer.rows[again.key] == rows[1]
        writer.append(again)
    table = LatencyTable.load(path)
    assert len(table.rows) == len(rows)
    assert table.lookup(kit.spec(8, 8)).us == 70.0


def test_a_table_is_continued_on_another_day(path, kit, rows):
    with TableWriter(path, kit.header(created="2027-12-31")) as writer:
        assert len(writer.rows) == len(rows)
    assert LatencyTable.load(path).header.created == "2026-01-01"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("precision", "fp16"),
        ("batch", 8),
        ("lowering", "2"),
        ("space", "other"),
        ("runtime.version", Runtime(name="fake", version="2.0")),
    ],
)
def test_a_table_measured_otherwise_is_not_continued(path, kit, field, value):
    before = path.read_bytes()
    with pytest.raises(FingerprintMismatch, match=field) as caught:
        TableWriter(path, kit.header(**{field.split(".")[0]: value}))
    assert caught.value.field == field
    assert path.read_bytes() == before


@pytest.mark.parametrize("nested", [("device", "threads", 2), ("protocol", "half_width", 0.02)])
def test_a_table_of_another_device_or_protocol_is_not_continued(path, kit, nested):
    name, field, value = nested
    header = kit.header()
    other = msgspec.structs.replace(header, **{name: msgspec.structs.replace(getattr(header, name), **{field: value})})
    with pytest.raises(FingerprintMismatch, match=rf"t\.latency\.jsonl has {name}\.{field} .*, wanted {value}"):
        TableWriter(path, other)


def test_parent_folders_are_made(tmp_path, kit):
    write(tmp_path / "a" / "b" / "t.jsonl", kit.header(), [])
    assert LatencyTable.load(tmp_path / "a" / "b" / "t.jsonl").rows == []


def test_another_file_is_never_overwritten(tmp_path, kit):
    for content in ("hello", "hello\nworld\n", "{}\n"):
        (tmp_path / "notes.txt").write_text(content)
        with pytest.raises(TableError, match=r"notes\.txt, line 1, field schema"):
            TableWriter(tmp_path / "notes.txt", kit.header())
        with pytest.raises(TableError, match=r"notes\.txt, line 1, field schema"):
            LatencyTable.load(tmp_path / "notes.txt")
        assert (tmp_path / "notes.txt").read_text() == content


def test_a_missing_or_empty_table_names_the_command(tmp_path):
    with pytest.raises(TableError, match=r"t\.jsonl does not exist: measure a table with `lathe profile SPACE --out .*t\.jsonl`"):
        LatencyTable.load(tmp_path / "t.jsonl")
    (tmp_path / "t.jsonl").touch()
    with pytest.raises(TableError, match="nothing was measured yet"):
        LatencyTable.load(tmp_path / "t.jsonl")


def test_a_folder_is_no_table(tmp_path, kit):
    with pytest.raises(TableError, match="Is a directory"):
        TableWriter(tmp_path, kit.header())


def test_a_pipe_or_a_device_is_no_table_and_is_not_waited_for(tmp_path, kit):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/null"):
        for use in (LatencyTable.load, lambda path: TableWriter(path, kit.header())):
            with pytest.raises(TableError, match="is a (named pipe|device), where a file is expected"):
                use(path)


def test_a_full_disk_leaves_the_table_as_it_was(path, kit, rows, monkeypatch):
    before, write_bytes = path.read_bytes(), os.write

    def full(file, data):
        if len(data) > 20:
            return write_bytes(file, data[:20])
        raise OSError(28, "No space left on device")

    with TableWriter(path, kit.header()) as writer:
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            with pytest.raises(TableError, match="No space left on device; what was measured before is kept"):
                writer.append(kit.row(kit.key("late"), [1.0]))
        assert path.read_bytes() == before
        writer.append(kit.row(kit.key("later"), [1.0]))
    assert [row.key for row in LatencyTable.load(path).rows] == [*(row.key for row in rows), kit.key("later")]


FULL = """
import resource, signal, sys
sys.path.insert(0, sys.argv[2])
from conftest import header, key, row
from latency import TableError, TableWriter

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000))
with TableWriter(sys.argv[1], header()) as writer:
    for number in range(1000):
        try:
            writer.append(row(key(f"k{number}"), [1.0, 2.0, 3.0] * 10))
        except TableError as error:
            sys.exit(f"{number} {error}")
"""


def test_a_file_that_cannot_grow_keeps_every_row_and_is_continued(tmp_path, kit):
    path = tmp_path / "t.jsonl"
    done = subprocess.run([sys.executable, "-P", "-c", FULL, path, Path(__file__).parent], capture_output=True, text=True)
    number, _, words = done.stderr.strip().partition(" ")
    assert words == f"{path}: cannot be written: File too large; what was measured before is kept"
    assert 5 < int(number) < 100
    assert [row.key for row in LatencyTable.load(path).rows] == [kit.key(f"k{i}") for i in range(int(number))]
    with TableWriter(path, kit.header()) as writer:
        assert writer.torn == 0
        writer.append(kit.row(kit.key("later"), [1.0]))


def test_several_rows_are_appended_at_once_or_not_at_all(path, kit, rows, monkeypatch):
    before = path.read_bytes()
    with TableWriter(path, kit.header()) as writer:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", lambda file: (_ for _ in ()).throw(OSError(5, "Input/output error")))
            with pytest.raises(TableError, match="Input/output error"):
                writer.append(kit.row(kit.key("one"), [1.0]), kit.row(kit.key("two"), [1.0]))
        assert path.read_bytes() == before
        writer.append(kit.row(kit.key("one"), [1.0]), kit.row(kit.key("two"), [1.0]))
    assert [row.key for row in LatencyTable.load(path).rows][-2:] == [kit.key("one"), kit.key("two")]


def test_a_row_that_contradicts_itself_is_not_written(path, kit):
    with TableWriter(path, kit.header()) as writer, pytest.raises(AssertionError, match="median_us"):
        writer.append(kit.row("x", [1.0, 2.0, 3.0], median_us=1.0))


# one writer at a time


def test_a_second_writer_is_refused_and_told_who_writes(path, kit):
    with TableWriter(path, kit.header()):
        with pytest.raises(TableError, match=rf"process {os.getpid()} is writing this table"):
            TableWriter(path, kit.header())
        assert LatencyTable.load(path).rows  # reading goes on
    TableWriter(path, kit.header()).close()


def test_a_writer_in_another_process_is_named_and_its_death_frees_the_table(path, kit):
    code = (
        "import sys, time; from latency import LatencyTable, TableWriter; "
        "w = TableWriter(sys.argv[1], LatencyTable.load(sys.argv[1]).header); print('open', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-P", "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout.readline() == "open\n"
        with pytest.raises(TableError, match=rf"process {child.pid} is writing this table: wait for it, or end it"):
            TableWriter(path, kit.header())
    finally:
        child.kill()
        child.communicate()
    TableWriter(path, kit.header()).close()


# torn and edited tables


def test_cut_anywhere_it_reads_up_to_the_last_whole_line_and_is_continued(path, tmp_path, kit, rows):
    data = path.read_bytes()
    cut = tmp_path / "cut.jsonl"
    ends = [i + 1 for i, byte in enumerate(data) if byte == ord("\n")]
    for size in sorted({*range(0, len(data), 3), *(end + shift for end in ends for shift in (-1, 0)), ends[0] + 1}):
        cut.write_bytes(data[:size])
        whole = data[:size].count(b"\n")
        if not whole:
            with pytest.raises(TableError, match="nothing was measured yet"):
                LatencyTable.load(cut)
            continue
        table = LatencyTable.load(cut)
        assert table.rows == rows[: whole - 1]
        torn = not data[:size].endswith(b"\n")
        assert [f"line {whole + 1}: the last line is torn" in warning for warning in table.warnings] == [True] * torn


def test_cut_anywhere_the_writer_mends_it(path, tmp_path, kit, rows):
    data = path.read_bytes()
    cut = tmp_path / "cut.jsonl"
    for size in range(0, len(data), 61):
        cut.write_bytes(data[:size])
        with TableWriter(cut, kit.header()) as writer:
            assert bool(writer.torn) == (size > 0 and data[size - 1 : size] != b"\n")
            for row in rows:
                if row.key not in writer.rows:
                    writer.append(row)
        assert cut.read_bytes() == data


@given(st.data())
def test_any_changed_byte_is_found_with_its_line(path_of_module, data):
    path, content = path_of_module
    position = data.draw(st.integers(0, len(content) - 2))
    byte = data.draw(st.integers(0, 255).filter(lambda value: value != content[position]))
    edited = content[:position] + bytes([byte]) + content[position + 1 :]
    path.write_bytes(edited)
    line = content[:position].count(b"\n") + 1
    with pytest.raises(TableError) as caught:
        LatencyTable.load(path)
    found = re.search(r", line (\d+), field \S+: ", str(caught.value))
    assert found, str(caught.value)
    assert int(found[1]) == line or (content[position : position + 1] == b"\n" and int(found[1]) == line)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def path_of_module(tmp_path_factory):
    header = msgspec.json.decode(
        b'{"device":{"kind":"cpu","name":"x","cores":1,"threads":1,"isa":[],"memory_mib":1,"driver":"","compute_capability":"","os":"Linux"},'
        b'"runtime":{"name":"r","version":"1"},"protocol":{"name":"p","warmup_ms":1.0,"min_samples":1,"max_samples":9,"min_time_ms":1.0,'
        b'"max_time_ms":2.0},"precision":"fp32","lowering":"1","space":"s","created":"2026-01-01"}',
        type=TableHeader,
    )
    from latency import Row

    path = tmp_path_factory.mktemp("edited") / "t.jsonl"
    row = {"samples_us": (1.0, 2.0, 3.0), "median_us": 2.0, "low_us": 1.0, "high_us": 3.0}
    write(path, header, [Row(kind="block", key=f"conv(h=8,w=8)[c_in={i}]", status="ok", **row) for i in range(1, 4)])
    return path, path.read_bytes()


def edit(path, line, old, new):
    lines = path.read_text().splitlines(keepends=True)
    assert old in lines[line - 1]
    lines[line - 1] = lines[line - 1].replace(old, new, 1)
    path.write_text("".join(lines))


@pytest.mark.parametrize(
    ("line", "old", "new", "words"),
    [
        (3, '"median_us":9.0', '"median_us":8.0', "line 3, field median_us"),
        (3, '"median_us":9.0', '"median_us":"9"', "line 3, field median_us: Expected `float`, got `str`"),
        (3, '"median_us"', '"median"', "line 3, field median: Object contains unknown field `median`"),
        (3, '"low_us":8.5', '"low_us":9.5', "line 3, field low_us"),
        (3, '"high_us":9.25', '"high_us":1.0', "line 3, field high_us"),
        (3, '"status":"ok"', '"status":"good"', "line 3, field status: Invalid enum value 'good'"),
        (3, '"status":"ok"', '"status":"run_failed"', "line 3, field status"),
        (3, '"status":"ok"', '"status":ok', "line 3, field status: JSON is malformed"),
        (3, "[8.5,9.0", "[7.5,9.0", "line 3, field check"),
        (3, "c_in=8", "c_in=9", "line 3, field check"),
        (3, '"check":', '"chick":', "line 3, field chick"),
        (1, '"threads":1', '"threads":2', "line 1, field check"),
        (1, '"threads":1', '"threads":"1"', "line 1, field device.threads: Expected `int`, got `str`"),
        (1, "latency-table/3", "latency-table/4", "line 1, field schema: a latency table begins with"),
        (1, '"cores":4,', "", "line 1, field device.cores: Object missing required field `cores`"),
    ],
)
def test_an_edit_is_named_by_line_and_field(path, kit, line, old, new, words):
    edit(path, line, old, new)
    with pytest.raises(TableError, match=re.escape(words)):
        LatencyTable.load(path)
    before = path.read_bytes()
    with pytest.raises(TableError, match=re.escape(words)):
        TableWriter(path, kit.header())
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"low_us": 3.0}, "field median_us: it is 2.0, and must be in its interval, 3.0 to 4.0"),
        ({"low_us": 0.0}, "field median_us: it is 2.0, and must be in its interval, 0.0 to 4.0"),
        ({"kind": "overhead", "key": "overhead"}, "field status: it is transferred, and must be measured for a row of the kind overhead"),
    ],
)
def test_a_transferred_row_has_an_interval_and_is_of_a_block(tmp_path, kit, monkeypatch, fields, words):
    sound = {"kind": "block", "key": kit.key("a"), "status": "transferred", "median_us": 2.0, "low_us": 1.0, "high_us": 4.0}
    monkeypatch.setattr("latency.table._inconsistent", lambda row: None)
    with TableWriter(tmp_path / "t.jsonl", kit.header()) as writer:
        writer.append(Row(**sound), Row(**{**sound, **fields}))
    monkeypatch.undo()
    with pytest.raises(TableError, match=re.escape(f"line 3, {words}")):
        LatencyTable.load(tmp_path / "t.jsonl")


def test_a_deleted_moved_or_repeated_line_is_found(path):
    lines = path.read_text().splitlines(keepends=True)
    for changed in (lines[:3] + lines[4:], [*lines[:3], lines[4], lines[3], *lines[5:]], [*lines[:4], *lines[3:]]):
        path.write_text("".join(changed))
        with pytest.raises(TableError, match=r"line [45], field check"):
            LatencyTable.load(path)


# fingerprints


def test_require_names_the_field(path, kit):
    table = LatencyTable.load(path)
    table.require()
    table.require(device=kit.CPU, runtime=Runtime(name="fake", version="1.0"), precision="fp32")
    with pytest.raises(
        FingerprintMismatch,
        match=r"has device\.threads 1, wanted 4: measure another with `lathe profile toy --backend fake --threads 4 --protocol quick --out TABLE`",
    ):
        table.require(device=msgspec.structs.replace(kit.CPU, threads=4))
    with pytest.raises(FingerprintMismatch, match=r"has runtime\.name 'fake', wanted 'tensorrt-rtx'"):
        table.require(runtime=Runtime(name="tensorrt-rtx", version="1.0"))
    with pytest.raises(FingerprintMismatch, match="has precision 'fp32', wanted 'fp16'"):
        table.require(precision="fp16")


# looking up


def test_a_measured_block(path, kit):
    assert LatencyTable.load(path).lookup(kit.spec(16, 8)) == Latency(us=17.0, low_us=16.5, high_us=17.25, source="measured")


def test_between_measured_blocks(path, kit):
    found = LatencyTable.load(path).lookup(kit.spec(12, 12))
    assert found.source == "interpolated"
    assert found.us == pytest.approx(12 * 12 / 8 + 1)
    assert found.low_us <= 8.5
    assert found.high_us >= 33.25


@pytest.mark.parametrize(("c_in", "c_out"), [(7, 8), (32, 8), (8, 17), (25, 25)])
def test_nothing_is_extrapolated(path, kit, c_in, c_out):
    with pytest.raises(
        CoverageError,
        match=r"is not in .*is outside of the measured.*`lathe profile toy --backend fake --protocol quick --out .*t\.latency\.jsonl`",
    ):
        LatencyTable.load(path).lookup(kit.spec(c_in, c_out))


def test_an_unknown_family(path, kit):
    with pytest.raises(CoverageError, match=re.escape("block head(act=relu,h=32,w=32)[c_in=8,c_out=8] is not in")):
        LatencyTable.load(path).lookup(kit.spec(8, 8, op="head"))


def test_a_block_that_failed_is_not_interpolated_away(tmp_path, kit, rows):
    failed = msgspec.structs.replace(
        rows[3], status="build_failed", samples_us=(), median_us=0.0, low_us=0.0, high_us=0.0, error="no kernel"
    )
    table = LatencyTable.load(write(tmp_path / "t.jsonl", kit.header(), [*rows[:3], failed, *rows[4:]]))
    with pytest.raises(CoverageError, match=r"is build_failed in .* \(no kernel\): measure it"):
        table.lookup(kit.spec(16, 8))
    with pytest.raises(CoverageError, match=r"the 5 measured blocks of conv\(.*\) are too few to tell"):
        table.lookup(kit.spec(12, 8))
    assert table.lookup(kit.spec(8, 8)).source == "measured"


def test_an_unstable_block_counts_with_its_interval(kit):
    row = kit.row(kit.spec(8, 8).key, [5.0, 9.0, 14.0], status="unstable")
    assert LatencyTable(kit.header(), [row]).lookup(kit.spec(8, 8)) == Latency(us=9.0, low_us=5.0, high_us=14.0, source="measured")


# surfaces


def surface_of(function, inputs, outputs):
    values = np.array([[function(a, b) for b in outputs] for a in inputs], dtype=float)
    return Surface("f", {"c_in": np.array(inputs), "c_out": np.array(outputs)}, values, values * 0.99, values * 1.01)


GRID = list(range(8, 129, 8))


def test_surface_holds_the_grid(path, kit):
    table = LatencyTable.load(path)
    surface = table.surface(kit.spec(8, 8).family)
    assert {name: axis.tolist() for name, axis in surface.axes.items()} == {"c_in": [8, 16, 24], "c_out": [8, 16]}
    assert surface.values_us.tolist() == [[a * b / 8 + 1 for b in (8, 16)] for a in (8, 16, 24)]
    assert surface.low_us[2, 1] == 24 * 16 / 8 + 0.5
    assert table.surface(kit.spec(8, 8).family) is surface


def test_a_family_with_too_few_blocks_says_what_measures_more(kit):
    table = LatencyTable(kit.header(space="mini"), [kit.row(kit.spec(a, b).key, [float(a * b)]) for a, b in ((8, 8), (16, 16))])
    with pytest.raises(CoverageError, match=r"too few .*: measure it with `lathe profile mini --backend .* --out TABLE`$"):
        table.surface(kit.spec(8, 8).family, axes={"c_in": [8, 16], "c_out": [8, 16]})


def test_surface_over_some_of_the_grid(kit):
    points = [(3, 8), (3, 16), *itertools.product((8, 16), (8, 16, 32))]
    table = LatencyTable(kit.header(), [kit.row(kit.spec(a, b).key, [float(a * b)]) for a, b in points])
    family = kit.spec(8, 8).family
    with pytest.raises(CoverageError, match=re.escape(f"the grid of {family} lacks c_in=3,c_out=32")):
        table.surface(family)
    assert table.surface(family, axes={"c_in": [8, 16], "c_out": [32, 8]}).values_us.tolist() == [[64, 256], [128, 512]]
    with pytest.raises(CoverageError, match="no block of nothing was measured"):
        table.surface("nothing")


def test_many_missing_points_are_counted(kit):
    table = LatencyTable(kit.header(), [kit.row(kit.spec(a, a).key, [1.0]) for a in (1, 2, 3, 4)])
    with pytest.raises(CoverageError, match=r"c_in=1,c_out=2; .* and 7 more"):
        table.surface(kit.spec(1, 1).family)


@given(st.floats(8, 128), st.floats(8, 128))
def test_a_plane_is_interpolated_exactly(c_in, c_out):
    found = surface_of(lambda a, b: 5 + 0.3 * a + 0.7 * b, GRID, GRID).interpolate({"c_in": c_in, "c_out": c_out})
    assert found.us == pytest.approx(5 + 0.3 * c_in + 0.7 * c_out)
    assert found.low_us <= found.us <= found.high_us


@given(st.integers(8, 128), st.integers(8, 128), st.sampled_from([8, 12, 16, 32]), st.sampled_from([8, 16]))
def test_the_interval_holds_the_truth_of_a_staircase(c_in, c_out, step, granularity):
    def truth(a, b):
        return 2 + math.ceil(a / step) * math.ceil(b / step)

    grid = list(range(granularity, 129, granularity))
    found = surface_of(truth, [8, *grid[1:]], [8, *grid[1:]]).interpolate({"c_in": c_in, "c_out": c_out})
    assert found.low_us <= truth(c_in, c_out) <= found.high_us


def test_where_leave_one_out_is_bad_the_interval_is_wide():
    def bumpy(a, b):
        return 100.0 + (20.0 if a == 64 else 0.0) + 0 * b

    at = {
        name: surface_of(f, GRID, GRID).interpolate({"c_in": 60, "c_out": 64})
        for name, f in (("bumpy", bumpy), ("flat", lambda a, b: 100.0))
    }
    assert at["flat"].high_us - at["flat"].low_us == pytest.approx(2.0)
    assert at["bumpy"].low_us < 100
    assert at["bumpy"].high_us > 130


def test_on_the_grid_nothing_is_added():
    found = surface_of(lambda a, b: a * b, GRID, GRID).interpolate({"c_in": 64, "c_out": 8})
    assert (found.us, found.low_us, found.high_us) == pytest.approx((512, 512 * 0.99, 512 * 1.01))


def test_other_widths_than_the_grid_has_are_refused():
    with pytest.raises(CoverageError, match="is measured over the widths c_in, c_out, asked for c_in, hidden"):
        surface_of(lambda a, b: a, GRID, GRID).interpolate({"c_in": 8, "hidden": 8})


@pytest.mark.parametrize("step", [16, 32])
def test_steps_are_not_smoothed_away(step):
    surface = surface_of(lambda a, b: 10.0 + math.ceil(a / step) + 0.1 * b, GRID, GRID)
    assert surface.steps == (True, False)
    assert surface.interpolate({"c_in": step + 4, "c_out": 60}).us == pytest.approx(10 + 2 + 6)


def test_holes_of_a_family_over_one_width_keep_its_steps(kit):
    """Half of the widths are there, as unevenly as adaptive coverage leaves them."""

    def truth(b):
        return 20.0 + 5 * math.ceil(b / 64)

    known = [32, 64, 96, 160, 192, 256, 288, 384, 416, 480, 512]
    table = LatencyTable(kit.header(), [kit.row(kit.spec(3, b).key, [truth(b)]) for b in known])
    for b in (128, 224, 320, 352, 448):
        assert table.lookup(kit.spec(3, b)).us == pytest.approx(truth(b), rel=0.01)


def test_holes_are_interpolated_between_what_was_measured(kit):
    def truth(a, b):
        return 50 + math.ceil(a / 16) * math.ceil(b / 16) * 4

    points = list(itertools.product(GRID, GRID))
    holes = [(a, b) for a, b in points if (5 * a + 3 * b) % 56 != 0 and {a, b} - {8, 128}]
    table = LatencyTable(kit.header(), [kit.row(kit.spec(a, b).key, [float(truth(a, b))]) for a, b in points if (a, b) not in holes])
    found = [table.lookup(kit.spec(a, b)) for a, b in holes]
    assert {latency.source for latency in found} == {"interpolated"}
    assert all(latency.low_us <= latency.us <= latency.high_us for latency in found)
    assert np.mean([abs(latency.us / truth(a, b) - 1) for latency, (a, b) in zip(found, holes, strict=True)]) < 0.02
    whole = table.surface(kit.spec(8, 8).family, axes={"c_in": GRID, "c_out": GRID})
    assert whole.values_us[0, 1] == pytest.approx(table.lookup(kit.spec(8, 16)).us)
    with pytest.raises(CoverageError, match="outside of the measured"):
        table.surface(kit.spec(8, 8).family, axes={"c_in": [*GRID, 136], "c_out": GRID})


# networks


@pytest.fixture
def networks(kit):
    """Blocks that cost a * b / 50 + 3, and networks of three of them that cost 1.05 * sum - 2 a boundary."""
    blocks = {(a, b): kit.row(kit.spec(a, b).key, [a * b / 50 + 3]) for a in (3, *GRID) for b in GRID}
    rng = np.random.default_rng(0)
    rows = []
    for i in range(12):
        a, b, c = (int(value) for value in rng.choice(GRID, 3))
        us = 1.05 * sum(blocks[pair].median_us for pair in ((3, a), (a, b), (b, c))) - 4
        rows.append(kit.row(f"n{i}", [round(us, 3)], kind="network", blocks=tuple(kit.spec(*p).key for p in ((3, a), (a, b), (b, c)))))
    return [kit.row("overhead", [1.5], kind="overhead"), *blocks.values(), *rows]


def test_a_network_is_predicted_by_the_fitted_sum(kit, networks):
    table = LatencyTable(kit.header(), networks)
    assert table.predictor.networks == 12
    assert table.predictor.mean_absolute_error < 1e-3
    found = table.predict([kit.spec(3, 64), kit.spec(64, 64), kit.spec(64, 128)])
    assert found.source == "predicted"
    assert found.us == pytest.approx(1.05 * (9 + (3 * 64 + 64 * 64 + 64 * 128) / 50) - 4, rel=2e-3)
    assert found.low_us <= found.us <= found.high_us


def test_interpolated_blocks_widen_the_prediction(kit, networks):
    table = LatencyTable(kit.header(), networks)
    on, between = (table.predict([kit.spec(3, b), kit.spec(b, 64), kit.spec(64, 64)]) for b in (64, 60))
    assert between.high_us - between.low_us > 3 * (on.high_us - on.low_us)


def test_without_networks_the_overhead_is_taken_off_and_the_interval_is_wide(kit, networks):
    table = LatencyTable(kit.header(), [row for row in networks if row.kind != "network"])
    found = table.predict([kit.spec(3, 8), kit.spec(8, 8)])
    assert found.us == pytest.approx(6 + 24 / 50 + 64 / 50 - 1.5)
    assert (found.low_us, found.high_us) == pytest.approx((0.75 * found.us, 1.25 * found.us))


def test_the_fit_leaves_out_networks_that_are_unstable_or_uncovered(kit, networks):
    unstable = [msgspec.structs.replace(row, status="unstable") if row.key == "n0" else row for row in networks]
    uncovered = kit.row("n99", [9.0], kind="network", blocks=(kit.spec(3, 999).key,))
    assert LatencyTable(kit.header(), [*unstable, uncovered]).predictor.networks == 11


def test_a_network_with_an_uncovered_block_names_it(kit, networks):
    with pytest.raises(CoverageError, match=re.escape(kit.spec(8, 999).key)):
        LatencyTable(kit.header(), networks).predict([kit.spec(3, 8), kit.spec(8, 999)])


def test_parse_survives_the_table(path):
    keys = [row.key for row in LatencyTable.load(path).rows if row.kind == "block"]
    assert [BlockSpec.parse(key).key for key in keys] == keys


def test_a_measured_network_is_found_by_its_blocks(kit):
    blocks = [kit.spec(1, 2), kit.spec(2, 3)]
    row = Row(
        kind="network", key="n", status="ok", samples_us=(5.0,), median_us=5.0, low_us=4.0, high_us=6.0, blocks=tuple(b.key for b in blocks)
    )
    table = LatencyTable(kit.header(), [row])
    assert table.measured_network(blocks) == Latency(us=5.0, low_us=4.0, high_us=6.0, source="measured")
    assert table.measured_network(blocks[:1]) is None


def sealed(path, header, *rows) -> None:
    """A table of any content, with checks that fit: what is wrong with it is in its values alone."""
    lines, check = [], ""
    for value in (header, *rows):
        body = msgspec.json.encode(value)
        check = hashlib.sha256(check.encode() + body).hexdigest()[:12]
        lines.append(body[:-1] + f',"check":"{check}"}}\n'.encode())
    path.write_bytes(b"".join(lines))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"samples_us": [8.5, 9.0, 0.0]}, r"field samples_us: Expected `float` > 0.0"),
        ({"samples_us": [8.5, 9.0, -1.0]}, r"field samples_us: Expected `float` > 0.0"),
        ({"samples_us": [8.5, 9.0, 1e13]}, r"field samples_us: Expected `float` <= 1000000000000.0"),
        ({"samples_us": [8.5, 8.75, 9.25]}, "field median_us: it is 9.0, of the samples 8.75"),
        ({"low_us": 8.0}, "field low_us: it is 8.0, and must be from the least sample to the median, 9.0"),
        ({"low_us": 9.125}, "field low_us: it is 9.125"),
        ({"high_us": 9.5}, "field high_us: it is 9.5, and must be from the median, 9.0, to the largest sample"),
        ({"samples_us": []}, "field status: it is ok, with 0 samples"),
        ({"status": "run_failed"}, "field status: it is run_failed, with 3 samples"),
        (
            {"status": "run_failed", "samples_us": [], "median_us": 0.0, "low_us": 0.0},
            "field high_us: it must be 0 where nothing was measured",
        ),
        ({"key": "conv"}, "field key: block key 'conv': expected the form"),
        ({"key": "conv(h=8,w=8)[c_in=100000000]"}, "field key: block width c_in=100000000: an integer from 1 to 16777216 is allowed"),
        ({"key": "conv(h=8,k=99999999999,w=8)[c_in=1]"}, "field key: block attribute k=99999999999: an integer of at most 2147483648"),
        ({"key": "conv(" + "h=8," * 2000 + "w=8)[c_in=1]"}, "field key: block key 'conv.*expected the form"),
        ({"kind": "overhead"}, "field key: it is 'conv.*', and must be 'overhead' for a row of this kind"),
        ({"kind": "network"}, "field key: it is 'conv.*', and must be network- and 16 hexadecimal digits"),
        ({"kind": "network", "key": "network-0123456789abcdef", "blocks": ["x"]}, "field blocks: block key 'x': expected the form"),
    ],
)
def test_a_row_with_an_impossible_value_is_refused_though_its_check_fits(tmp_path, kit, fields, words):
    good = {"kind": "block", "key": kit.spec(8, 8).key, "status": "ok", "samples_us": [8.5, 9.0, 9.25], "median_us": 9.0}
    good |= {"low_us": 8.5, "high_us": 9.25}
    path = tmp_path / "t.jsonl"
    sealed(path, kit.header(), good)
    assert LatencyTable.load(path).rows[0].median_us == 9.0
    sealed(path, kit.header(), good | fields)
    for use in (LatencyTable.load, lambda path: TableWriter(path, kit.header())):
        with pytest.raises(TableError, match=f"t.jsonl, line 2, {words}"):
            use(path)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("created", "yesterday", "Expected a date such as 2026-01-31 in field `created`, got 'yesterday'"),
        ("created", "2026-02-30", "Expected a date such as 2026-01-31 in field `created`, got '2026-02-30'"),
        ("bundle_sha256", "ab", "Expected `str` matching regex"),
        ("batch", 0, "Expected `int` >= 1"),
        ("device", {**msgspec.to_builtins(Device.cpu()), "cores": -1}, "Expected `int` >= 0"),
        ("protocol", {**msgspec.to_builtins(protocol.FAST), "max_time_ms": 1e12}, "Expected `float` <= 3600000.0"),
        ("protocol", {**msgspec.to_builtins(protocol.FAST), "max_samples": 10**12}, "Expected `int` <= 1000000"),
        ("protocol", {**msgspec.to_builtins(protocol.FAST), "confidence": 1.0}, "Expected `float` < 1.0"),
    ],
)
def test_a_header_with_an_impossible_value_is_refused(tmp_path, kit, field, value, words):
    path = tmp_path / "t.jsonl"
    sealed(path, msgspec.to_builtins(kit.header()) | {field: value})
    with pytest.raises(TableError, match=f"t.jsonl, line 1, field {field}.*{words}"):
        LatencyTable.load(path)


def test_whole_networks_that_failed_are_said_wherever_the_table_predicts(kit):
    blocks = [kit.spec(8, 16), kit.spec(16, 8)]
    keys = tuple(spec.key for spec in blocks)
    rows = [kit.row(spec.key, [10.0]) for spec in blocks]
    failed = [
        Row(kind="network", key=f"network-{k}", status="build_failed", error="scales must be positive", blocks=keys) for k in range(3)
    ]
    table = LatencyTable(kit.header(), [*rows, *failed])
    words = "3 of 3 whole networks failed (build_failed: scales must be positive), so the error of predictions is assumed: 25%"
    assert table.predict(blocks).origin == table.unproved == words
    assert words in [finding.words for finding in check(table) if finding.problem == "unproved"]
    assert LatencyTable(kit.header(), rows).predict(blocks).origin == ""
