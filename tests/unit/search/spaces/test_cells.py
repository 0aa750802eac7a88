import csv
import gzip
import random
from pathlib import Path

import pytest
import torch

import reparam
from search import Choice, SearchError, spaces
from search.spaces.cells import CONV1, CONV3, EDGES, NONE, POOL, SKIP, SUM, edge

SPACE, SMALL = spaces.get("nasbench201"), spaces.get("nasbench201-small")
BENCHMARK = Path(__file__).parents[5] / "shared" / "data" / "nasbench201.csv.gz"


def cell(*options):
    return Choice(options={edge(*ends): option for ends, option in zip(EDGES, options, strict=True)})


def formula(choice):
    """Parameters and MACs of the benchmark, nominal: of every edge; its FLOPs count the ten biases of the classifier, too."""
    n1, n3 = (list(choice.options.values()).count(option) for option in (CONV1, CONV3))
    return 73_306 + 243_040 * n3 + 28_000 * n1, 7_783_050 - 10 + 35_389_440 * n3 + 3_932_160 * n1


def test_there_are_15625_cells():
    assert SPACE.size() == 15_625
    assert len(set(SPACE.choices())) == 15_625


def test_sizes_are_those_of_the_benchmarks_formula():
    assert all(SPACE.nominal(choice) == formula(choice) for choice in SPACE.choices())


def test_sizes_are_those_of_the_benchmarks_file():
    if not BENCHMARK.exists():
        pytest.skip(f"{BENCHMARK} is not here")
    with gzip.open(BENCHMARK, "rt") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 15_625
    assert {row["arch"] for row in rows} == {SPACE.text(choice) for choice in SPACE.choices()}
    for row in rows:
        size = SPACE.nominal(SPACE.parse(row["arch"]))
        assert (size.params / 1e6, size.macs / 1e6) == pytest.approx(
            (float(row["params_m"]), float(row["flops_m"])), abs=2e-5
        )


def test_architecture_strings_are_the_benchmarks():
    text = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|nor_conv_1x1~1|none~2|"
    choice = cell(CONV3, NONE, SKIP, POOL, CONV1, NONE)
    assert (SPACE.parse(text), SPACE.text(choice)) == (choice, text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "|none~0|",
        "|conv~0|+|none~0|none~1|+|none~0|none~1|none~2|",
        "|none~0|+|none~0|none~1|+|none~0|none~1|none~3|",
    ],
)
def test_other_strings_are_refused(text):
    with pytest.raises(
        SearchError, match=r" is not an architecture of nasbench201: expected such as \|nor_conv_3x3~0\|\+"
    ):
        SPACE.parse(text)


def test_what_is_not_on_a_way_from_input_to_output_does_not_run():
    assert SPACE.used(cell(CONV3, NONE, NONE, SKIP, NONE, CONV1)) == {(0, 3): SKIP}
    assert SPACE.used(cell(CONV3, NONE, CONV3, NONE, NONE, CONV1)) == {(0, 1): CONV3, (1, 2): CONV3, (2, 3): CONV1}
    assert SPACE.used(cell(CONV3, CONV3, CONV3, NONE, NONE, NONE)) == {}
    assert [SPACE.connected(choice) for choice in SPACE.choices()].count(
        False
    ) == 341  # those with an accuracy of 10 % in the benchmark
    assert SPACE.network(cell(NONE, NONE, NONE, NONE, NONE, CONV3)) == [SPACE.head]


def test_channels_cells_and_resolution_are_open():
    wide = spaces.get("nasbench201-small", classes=100, resolution=32, channels=16, cells_per_stage=5)
    assert wide.record() == {**spaces.get("nasbench201", classes=100).record(), "name": "nasbench201-small"}
    assert [shape[0] for shape in spaces.get("nasbench201", channels=3, cells_per_stage=2).shapes()] == [3, 6, 12]
    assert spaces.from_record(wide.record()) == wide


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nasbench201", {"channels": 0}, r"^nasbench201: --channels must be from 1 to 4096, found 0$"),
        ("nasbench201", {"cells_per_stage": 1001}, r"^nasbench201: --cells must be from 1 to 1000, found 1001$"),
        ("nasbench201-small", {"resolution": 3}, r"the resolution must be at least 4, found 3$"),
        (
            "repvgg-mini",
            {"cells_per_stage": 2},
            r"^--cells 2 is of spaces of cells, nasbench201 or .*; found the space 'repvgg-mini'",
        ),
        (
            "resnet-18/widths",
            {"channels": 2},
            r"^--channels 2 is of spaces of cells, .*; found the space 'resnet-18/widths': leave it out$",
        ),
    ],
)
def test_sizes_that_no_space_of_cells_has_are_refused(name, options, message):
    with pytest.raises(SearchError, match=message):
        spaces.get(name, **options)


def test_a_network_has_its_cells_sums_and_reductions():
    keys = [spec.key for spec in SMALL.network(cell(NONE, CONV3, NONE, SKIP, NONE, POOL))]
    assert keys == [
        "conv(act=none,h=16,kernel=3,stride=1,w=16)[c_in=3,c_out=8]",
        "preact(act=relu,h=16,kernel=3,w=16)[c_in=8,c_out=8]",
        "avg_pool(h=16,kernel=3,w=16)[c_in=8]",
        "add(h=16,w=16)[c_in=8]",
        "reduction(act=relu,h=16,kernel=3,stride=2,w=16)[c_in=8,c_out=16]",
        "preact(act=relu,h=8,kernel=3,w=8)[c_in=16,c_out=16]",
        "avg_pool(h=8,kernel=3,w=8)[c_in=16]",
        "add(h=8,w=8)[c_in=16]",
        "reduction(act=relu,h=8,kernel=3,stride=2,w=8)[c_in=16,c_out=32]",
        "preact(act=relu,h=4,kernel=3,w=4)[c_in=32,c_out=32]",
        "avg_pool(h=4,kernel=3,w=4)[c_in=32]",
        "add(h=4,w=4)[c_in=32]",
        "norm_head(act=relu,h=4,w=4)[c_in=32,c_out=10]",
    ]


@pytest.mark.parametrize(
    ("options", "runs"),
    [
        ((NONE, NONE, NONE, SKIP, NONE, NONE), []),
        (
            (SKIP, POOL, POOL, POOL, NONE, NONE),
            [POOL],
        ),  # node 1 is node 0, so that every pool is the same; nothing reads node 2
        ((SKIP, POOL, POOL, POOL, POOL, POOL), [POOL, SUM, POOL, SUM, SUM]),  # node 2 is a sum, whose pool is another
        ((POOL, NONE, POOL, NONE, NONE, POOL), [POOL, POOL, POOL]),
        ((POOL, POOL, NONE, NONE, POOL, POOL), [POOL, POOL, SUM]),  # nodes 1 and 2 are equal
        ((CONV3, SKIP, CONV1, CONV3, CONV3, SKIP), [CONV3, CONV1, SUM, CONV3, CONV3, SUM, SUM]),
        ((CONV3, SKIP, POOL, SKIP, SKIP, CONV1), [CONV3, POOL, SUM, CONV1, SUM, SUM]),
    ],
)
def test_a_value_is_computed_once(options, runs):
    assert SPACE.runs(cell(*options)) == runs


def test_random_networks_depend_on_their_input():
    draw = random.Random(0)
    assert all(SPACE.connected(SPACE.random(draw)) for _ in range(200))


@pytest.mark.parametrize("seed", range(4))
def test_a_module_trains_ships_and_has_the_size_that_the_space_says(seed):
    torch.manual_seed(seed)
    choice = SMALL.random(random.Random(seed)) if seed else SMALL.largest()
    network, x = SMALL.module(choice), torch.randn(2, 3, 16, 16)
    network(x).sum().backward()
    fused, blocks = reparam.fuse(network.eval(), x), SMALL.network(choice)
    assert torch.allclose(fused(x), network(x), atol=1e-4)
    for deployed, module in ((False, network), (True, fused)):
        counts = reparam.count(module, x[:1])
        assert counts.macs == SMALL.macs(blocks, deployed=deployed)
        gone = deployed and isinstance(
            fused.head[0], torch.nn.Identity
        )  # the head's norm is in the last cell where that is one layer
        head = sum(parameter.numel() for parameter in network.head[0].parameters()) if gone else 0
        assert counts.params == SMALL.parameters(blocks, deployed=deployed) - head


def test_the_module_of_the_benchmark_has_its_parameters():
    network = SPACE.module()
    assert sum(parameter.numel() for parameter in network.parameters()) == formula(SPACE.largest())[0]
    assert reparam.count(network, torch.zeros(1, 3, 32, 32)).macs == formula(SPACE.largest())[1]


def test_a_cell_without_a_way_is_zero():
    network = SMALL.module(cell(CONV3, NONE, NONE, NONE, NONE, SKIP)).eval()
    assert torch.equal(network.stage0(torch.randn(1, 8, 16, 16)), torch.zeros(1, 8, 16, 16))


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (
            Choice(options={"0-1": CONV3}),
            r"^nasbench201: a choice has an option for each of the edges 0-1, 0-2, 1-2, 0-3, 1-3, 2-3, found",
        ),
        (
            cell(CONV3, CONV3, CONV3, CONV3, CONV3, "conv"),
            r"^nasbench201: edge 2-3 has the options none, skip_connect, .*, found conv$",
        ),
    ],
)
def test_what_is_no_cell_is_refused(choice, message):
    with pytest.raises(SearchError, match=message):
        SPACE.network(choice)
