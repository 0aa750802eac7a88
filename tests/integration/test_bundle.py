"""A space is measured by its bundle as by itself: the same keys in parts, into tables with the same header."""

import hashlib

import msgspec
import pytest

from integration.conftest import run_lathe
from latency import LatencyTable


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    path = tmp_path_factory.mktemp("bundle") / "mini.blocks.zip"
    done = run_lathe("bundle", "repvgg-mini", "--networks", "2", "--out", path, "--json")
    assert done.returncode == 0, done.stderr
    facts = msgspec.json.decode(done.stdout)
    assert (facts["space"], facts["precision"], facts["blocks"], facts["networks"]) == ("repvgg-mini", "fp32", 522, 4)
    assert facts["bytes"] == path.stat().st_size < 1_000_000
    return path


def table_of(tmp_path, name: str, *source: object) -> LatencyTable:
    out = tmp_path / f"{name}.latency.jsonl"
    done = run_lathe("profile", *source, "--protocol", "fast", "--shard", "7/100", "--out", out)
    assert done.returncode == 0, done.stderr
    return LatencyTable.load(out)


def test_a_part_of_a_bundle_is_the_part_of_its_space(bundle, tmp_path):
    by_bundle = table_of(tmp_path, "bundle", bundle)
    by_space = table_of(tmp_path, "space", "repvgg-mini", "--networks", "2")
    assert [row.key for row in by_bundle.rows] == [row.key for row in by_space.rows]
    assert sum(row.kind in ("block", "network") for row in by_bundle.rows) == 6
    assert by_bundle.header == by_space.header.made_like(by_bundle.header)
    assert by_bundle.header.bundle_sha256 == hashlib.sha256(bundle.read_bytes()).hexdigest()
    assert by_space.header.bundle_sha256 == ""
