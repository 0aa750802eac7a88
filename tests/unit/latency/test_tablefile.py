import os
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latency import (
    FingerprintMismatch,
    LatencyTable,
    Row,
    Runtime,
    TableError,
    TableHeader,
    TableWriter,
)
from unit.latency.conftest import write


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
    with pytest.raises(
        TableError, match=r"t\.jsonl does not exist: measure a table with `lathe profile SPACE --out .*t\.jsonl`"
    ):
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
    done = subprocess.run(
        [sys.executable, "-P", "-c", FULL, path, Path(__file__).parent], capture_output=True, text=True
    )
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


def test_a_deleted_moved_or_repeated_line_is_found(path):
    lines = path.read_text().splitlines(keepends=True)
    for changed in (lines[:3] + lines[4:], [*lines[:3], lines[4], lines[3], *lines[5:]], [*lines[:4], *lines[3:]]):
        path.write_text("".join(changed))
        with pytest.raises(TableError, match=r"line [45], field check"):
            LatencyTable.load(path)
