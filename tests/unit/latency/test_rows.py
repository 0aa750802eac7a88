import hashlib
import re

import msgspec
import pytest

from latency import (
    Device,
    LatencyTable,
    Row,
    TableError,
    TableWriter,
    protocol,
)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"low_us": 3.0}, "field median_us: it is 2.0, and must be in its interval, 3.0 to 4.0"),
        ({"low_us": 0.0}, "field median_us: it is 2.0, and must be in its interval, 0.0 to 4.0"),
        (
            {"kind": "overhead", "key": "overhead"},
            "field status: it is transferred, and must be measured for a row of the kind overhead",
        ),
    ],
)
def test_a_transferred_row_has_an_interval_and_is_of_a_block(tmp_path, kit, monkeypatch, fields, words):
    sound = {
        "kind": "block",
        "key": kit.key("a"),
        "status": "transferred",
        "median_us": 2.0,
        "low_us": 1.0,
        "high_us": 4.0,
    }
    monkeypatch.setattr("latency.tablefile.inconsistent", lambda row: None)
    with TableWriter(tmp_path / "t.jsonl", kit.header()) as writer:
        writer.append(Row(**sound), Row(**{**sound, **fields}))
    monkeypatch.undo()
    with pytest.raises(TableError, match=re.escape(f"line 3, {words}")):
        LatencyTable.load(tmp_path / "t.jsonl")


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
        (
            {"key": "conv(h=8,w=8)[c_in=100000000]"},
            "field key: block width c_in=100000000: an integer from 1 to 16777216 is allowed",
        ),
        (
            {"key": "conv(h=8,k=99999999999,w=8)[c_in=1]"},
            "field key: block attribute k=99999999999: an integer of at most 2147483648",
        ),
        ({"key": "conv(" + "h=8," * 2000 + "w=8)[c_in=1]"}, "field key: block key 'conv.*expected the form"),
        ({"kind": "overhead"}, "field key: it is 'conv.*', and must be 'overhead' for a row of this kind"),
        ({"kind": "network"}, "field key: it is 'conv.*', and must be network- and 16 hexadecimal digits"),
        (
            {"kind": "network", "key": "network-0123456789abcdef", "blocks": ["x"]},
            "field blocks: block key 'x': expected the form",
        ),
    ],
)
def test_a_row_with_an_impossible_value_is_refused_though_its_check_fits(tmp_path, kit, fields, words):
    good = {
        "kind": "block",
        "key": kit.spec(8, 8).key,
        "status": "ok",
        "samples_us": [8.5, 9.0, 9.25],
        "median_us": 9.0,
    }
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
