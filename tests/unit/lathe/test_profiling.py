from pathlib import Path

import pytest

from latency import LatencyError, LatencyTable, blocks_zip
from lathe import cli
from lathe.profiling import DEFAULT_NETWORKS, bundle, profile
from search import workloads

KEPT = Path(__file__).parents[2] / "formats" / "blocks-2.blocks.zip"
"""Two blocks and a network of them, in half precision."""
BACKEND = "--backend simulated:seed=1 --protocol fast"


@pytest.fixture(autouse=True)
def directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def profiled(words):
    return list(profile(cli.parse(["profile", *words.split()])))


def test_a_block_bundle_is_measured_as_the_space_that_it_is_of():
    profiled(f"{KEPT} --out t {BACKEND}")
    index, table = blocks_zip.read(KEPT), LatencyTable.load("t")
    header = table.header
    assert (header.space, header.precision, header.lowering) == ("example", "fp16", "1")
    assert header.bundle_sha256 == index.sha256
    assert {work.key for work in index.workloads} <= {row.key for row in table.rows}


def test_shards_measure_each_workload_once():
    keys = []
    for number in (1, 2):
        profiled(f"{KEPT} --out t{number} --shard {number}/2 {BACKEND}")
        keys += [row.key for row in LatencyTable.load(f"t{number}").rows if row.kind in ("block", "network")]
    assert sorted(keys) == sorted(work.key for work in blocks_zip.read(KEPT).workloads)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("KEPT --batch 2", "--batch 2 comes too late for a bundle: give it to `lathe bundle`"),
        ("KEPT --networks 0", "--networks 0 comes too late for a bundle"),
        ("KEPT --channels 8", "--channels 8 comes too late for a bundle"),
        ("KEPT --timing-cache c", "--timing-cache c does not exist: leave it out, and keep one"),
        ("KEPT --save-timing-cache c", "--save-timing-cache c: backend 'simulated' has none: leave it out"),
        ("KEPT --shard 3/2", "shard '3/2' does not exist: --shard I/2 takes I from 1 to 2"),
        ("missing.blocks.zip", "missing.blocks.zip does not exist: write it again with `lathe bundle SPACE --out"),
    ],
)
def test_what_cannot_be_measured_is_refused_and_nothing_is_written(words, message, directory):
    with pytest.raises(LatencyError, match=message):
        profiled(f"{words.replace('KEPT', str(KEPT))} --out t {BACKEND}")
    assert not list(directory.iterdir())


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        ("", {"networks": DEFAULT_NETWORKS, "seed": 0, "precision": "fp32", "batch": 1}),
        (
            "--networks 0 --seed 3 --precision fp16 --batch 4",
            {"networks": 0, "seed": 3, "precision": "fp16", "batch": 4},
        ),
    ],
)
def test_a_bundle_is_of_the_workloads_that_its_command_asks_for(flags, wanted, monkeypatch):
    def lowered(space, **options):
        asked.append((space.name, options))
        return blocks_zip.read(KEPT).workloads

    asked = []
    monkeypatch.setattr(workloads, "workloads", lowered)
    works, write = bundle(cli.parse(["bundle", "nasbench201-small", "--out", "b.blocks.zip", *flags.split()]))
    assert asked == [("nasbench201-small", {**wanted, "program": False})]
    facts = write(works)
    assert (facts.space, facts.precision, facts.blocks, facts.networks) == (
        "nasbench201-small",
        wanted["precision"],
        2,
        1,
    )
    found = blocks_zip.read("b.blocks.zip")
    assert (facts.bundle, facts.bytes, facts.sha256) == (
        "b.blocks.zip",
        Path("b.blocks.zip").stat().st_size,
        found.sha256,
    )
    assert [work.key for work in found.workloads] == [work.key for work in works]
