"""A latency table that is written, killed at any byte, resumed, merged and edited holds what a list of its rows says."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from latency import BlockSpec, Device, LatencyTable, Row, Runtime, TableError, TableHeader, TableWriter, protocol
from latency.measure import summarize
from latency.merge import merge

HEADER = TableHeader(
    device=Device.cpu(),
    runtime=Runtime(name="fake", version="1"),
    protocol=protocol.FAST,
    precision="fp32",
    lowering="1",
    space="toy",
    created="2026-01-01",
)


def measured(width: int, samples_us: list[float]) -> Row:
    """A row, or a failed one where there is no sample."""
    key = BlockSpec.of("conv", attrs={"h": 8, "w": 8}, widths={"c_in": 8, "c_out": width}).key
    if not samples_us:
        return Row(kind="block", key=key, status="run_failed", error="out of memory")
    found = summarize(samples_us, protocol.FAST)
    return Row(
        kind="block",
        key=key,
        status=found.status,
        samples_us=found.samples_us,
        median_us=found.median_us,
        low_us=found.low_us,
        high_us=found.high_us,
        p90_us=found.p90_us,
        p99_us=found.p99_us,
        reason=found.reason,
    )


ROWS = st.builds(measured, st.integers(1, 5), st.lists(st.floats(0.01, 1e6), max_size=6))


class Table(RuleBasedStateMachine):
    """The table on disk beside its rows, each with the number of bytes after which it is whole."""

    @initialize()
    def create(self) -> None:
        self.folder = TemporaryDirectory()
        self.path = Path(self.folder.name) / "t.latency.jsonl"
        self.rows: list[Row] = []
        with TableWriter(self.path, HEADER):
            pass
        self.ends = [self.path.stat().st_size]  # of the header, then of each row

    @property
    def size(self) -> int:
        return self.path.stat().st_size

    @property
    def torn(self) -> bool:
        return self.size > (self.ends[-1] if self.ends else 0)

    def latest(self) -> dict[str, Row]:
        return {row.key: row for row in self.rows}

    @rule(added=st.lists(ROWS, max_size=3))
    def write(self, added: list[Row]) -> None:
        torn, lines = self.torn, len(self.ends)
        with TableWriter(self.path, HEADER) as writer:
            assert (writer.torn, writer.rows) == (lines + 1 if torn else 0, self.latest())
            if not self.ends:  # not even the header was whole
                self.ends.append(self.size)
            for row in added:
                writer.append(row)
                self.rows.append(row)
                self.ends.append(self.size)
            with pytest.raises(TableError, match="is writing this table"):
                TableWriter(self.path, HEADER)

    @precondition(lambda self: self.size)
    @rule(data=st.data())
    def kill(self, data: st.DataObject) -> None:
        left = data.draw(st.integers(0, self.size - 1))
        with self.path.open("r+b") as file:
            file.truncate(left)
        self.ends = [end for end in self.ends if end <= left]
        self.rows = self.rows[: max(0, len(self.ends) - 1)]

    @precondition(lambda self: self.ends)
    @rule(others=st.lists(ROWS, max_size=3), first=st.booleans())
    def join(self, others: list[Row], first: bool) -> None:
        other, out = self.path.with_name("other.jsonl"), self.path.with_name("merged.jsonl")
        with TableWriter(other, HEADER) as writer:
            writer.append(*others)
        parts = [(other, others), (self.path, self.rows)] if first else [(self.path, self.rows), (other, others)]
        merged = merge([path for path, _ in parts], out)
        every = [row for _, rows in parts for row in rows]
        for key, row in {row.key: row for row in every}.items():
            sure = [
                found[key]
                for _, rows in parts
                if (found := {row.key: row for row in rows}).get(key) and found[key].status == "ok"
            ]
            if row.status != "ok" and sure:
                every.append(sure[-1])
        assert list(merged.history) == every
        other.unlink()
        out.replace(self.path)
        self.rows = every
        lines = self.path.read_bytes().splitlines(keepends=True)
        self.ends = [sum(map(len, lines[: number + 1])) for number in range(len(lines))]

    @precondition(lambda self: self.ends)
    @rule(data=st.data())
    def edit(self, data: st.DataObject) -> None:
        content = self.path.read_bytes()
        place = data.draw(st.integers(0, self.ends[-1] - 2))
        byte = data.draw(st.integers(0, 255).filter(lambda byte: byte != content[place]))
        edited = content[:place] + bytes([byte]) + content[place + 1 :]
        self.path.write_bytes(edited)
        for use in (LatencyTable.load, lambda path: TableWriter(path, HEADER)):
            with pytest.raises(TableError, match=r"^[^\n]*, line \d+, field [^\n]*$"):
                use(self.path)
        assert self.path.read_bytes() == edited
        self.path.write_bytes(content)

    @invariant()
    def holds_what_was_written(self) -> None:
        if not self.ends:
            with pytest.raises(TableError, match="nothing was measured yet"):
                LatencyTable.load(self.path)
            return
        table = LatencyTable.load(self.path)
        assert table.header == HEADER
        assert list(table.history) == self.rows
        assert {row.key: row for row in table.rows} == self.latest()
        assert bool(table.warnings) == self.torn

    def teardown(self) -> None:
        self.folder.cleanup()


TestTable = Table.TestCase
TestTable.settings = settings(deadline=None, max_examples=30, stateful_step_count=15)
