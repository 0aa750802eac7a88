import json
import shlex
from pathlib import Path

import msgspec
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from deploy.lowering import LOWERING_VERSION, to_onnx
from latency import BlockSpec, LatencyError, LatencyTable, Row, TableHeader, TableWriter, backends, protocol
from latency.blocks_zip import read as read_bundle
from latency.measure import summarize
from latency.weights import fill_weights
from lathe import cli, predicting, profiling
from search import load_architecture, onnx_layers, spaces, workloads
from search.errors import SearchError

NETWORK = """
from torch import nn

def make():
    body = [nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3, 2, padding=1), nn.ReLU()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10))
"""
OWN = "predict net.py:make --input 3x8x8 --table t"
CONVS = (
    "conv(act=relu,h=8,kernel=3,stride=1,w=8)[c_in=3,c_out=16]",
    "conv(act=relu,h=8,kernel=3,stride=2,w=8)[c_in=16,c_out=24]",
)
LINEAR = "linear(act=none,h=1,w=1)[c_in=24,c_out=10]"
KEPT = Path(__file__).parents[3] / "profiles" / "amd-epyc-zen4-1thread" / "repvgg-mini.fp32.latency.jsonl"


def write(path, batch=1):
    """A table with the convolutions of the network, of a device that does not exist."""
    backend = backends.get("simulated:seed=1")
    header = TableHeader(
        device=backend.device,
        runtime=backend.runtime,
        protocol=protocol.get("fast"),
        precision="fp32",
        batch=batch,
        lowering=LOWERING_VERSION,
        settings=dict(backend.settings),
        space="other",
        created="2026-01-01",
    )
    with TableWriter(path, header) as table:
        table.append(
            *(
                Row(
                    kind="block",
                    key=key,
                    **msgspec.structs.asdict(summarize([9.0, 10.0, 11.0] * 20, protocol.get("fast"))),
                )
                for key in CONVS
            )
        )


@pytest.fixture(scope="module")
def own_space(tmp_path_factory):
    path = tmp_path_factory.mktemp("own") / "net.py"
    path.write_text(NETWORK)
    return spaces.get(f"{path}:make", input_shape=(3, 8, 8))


@pytest.fixture
def traced_once(own_space, monkeypatch):
    monkeypatch.setattr(predicting, "space_of", lambda *_: own_space)


@pytest.fixture(autouse=True)
def directory(tmp_path, monkeypatch):
    """A directory with a table and a network of one's own."""
    monkeypatch.chdir(tmp_path)
    write(Path("t"))
    Path("net.py").write_text(NETWORK)


def predicted(words):
    return predicting.predict(cli.parse(words.split()), pytest.fail)


def model(path, sizes=(1, 3, "n", 8)):
    weight, scale = (
        [helper.make_tensor(name, TensorProto.FLOAT, dims, [0.1] * size)]
        for name, dims, size in (("w", (8, 3, 3, 3), 216), ("s", (8,), 8))
    )
    nodes = [
        helper.make_node("Conv", ["x", "w", "s"], ["a"], name="stem", pads=[1, 1, 1, 1]),
        helper.make_node("Sigmoid", ["a"], ["b"]),
        helper.make_node("Mul", ["a", "b"], ["c"]),
        helper.make_node("GlobalAveragePool", ["c"], ["y"]),
    ]
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", sizes), ("y", (sizes[0], 8, 1, 1)))
    )
    graph = helper.make_graph(nodes, "g", [x], [y], initializer=[*weight, *scale])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), path)


def test_a_space_is_predicted_block_by_block():
    found = predicted(f"predict repvgg-mini --table {KEPT}")
    (estimate,) = found.estimates
    blocks = spaces.get("repvgg-mini").network()
    table = LatencyTable.load(KEPT)
    assert (estimate.latency, estimate.measured) == (table.predict(blocks), table.measured_network(blocks))
    assert estimate.network_us + sum(part.adds.us for part in estimate.parts) == pytest.approx(estimate.latency.us)
    assert [part.key for part in estimate.parts] == [block.key for block in blocks]
    assert (estimate.uncovered, found.commands, found.remarks) == ((), ("",), ((),))


@pytest.fixture
def lowered(monkeypatch):
    """Any block is lowered to the same graph: torch takes seconds."""
    model("small.onnx", sizes=(1, 3, 8, 8))
    graph = onnx.load("small.onnx")
    fill_weights(graph)
    monkeypatch.setattr(workloads, "lower", lambda *_: graph.SerializeToString(deterministic=True))


@pytest.mark.usefixtures("traced_once", "lowered")
def test_what_a_table_lacks_is_measured_by_the_command_that_is_printed(capsys):
    assert cli.parse(OWN.split()).run() == 1
    printed = capsys.readouterr().out
    assert "of the blocks that are covered" in printed
    assert "%" not in printed, "no share of a whole that is not known"
    assert "the interval is how far networks of other are off" in " ".join(printed.split())
    predict, measure = (shlex.split(part) for part in printed.splitlines()[-1].split(" && "))
    assert predict[1:] == ["predict", "net.py:make", *OWN.split()[2:], "--missing", "net-py-make.blocks.zip"]
    assert cli.parse(predict[1:]).run() == 0
    assert capsys.readouterr().out.splitlines()[-1] == shlex.join(measure)
    assert [work.key for work in read_bundle("net-py-make.blocks.zip").workloads] == [LINEAR]
    list(profiling.profile(cli.parse(measure[1:])))
    table = LatencyTable.load("t")
    assert {row.key for row in table.rows if row.kind == "block"} == {*CONVS, LINEAR}
    (estimate,) = predicted(OWN).estimates
    assert estimate.uncovered == ()
    assert estimate.latency == table.predict([BlockSpec.parse(key) for key in (*CONVS, LINEAR)])
    with pytest.raises(LatencyError, match="--missing m: t covers every block of net.py:make: leave it out"):
        predicted(f"{OWN} --missing m")


@pytest.mark.usefixtures("traced_once", "lowered")
def test_a_table_that_cannot_go_on_is_told_from_one_that_can(own_space, monkeypatch):
    monkeypatch.setattr(predicting, "_goes_on", lambda _: False)
    (command,) = predicted(OWN).commands
    assert command.startswith(f"lathe profile {own_space.name} --input 3x8x8 --backend simulated:seed=1")
    assert command.endswith("--protocol fast --out net-py-make.latency.jsonl")
    model("m.onnx")
    predicted("predict m.onnx --shape x=1x3x8x8 --table t --missing m.blocks.zip")
    assert read_bundle("m.blocks.zip").index.space == "m.onnx"


def test_an_onnx_file_of_a_network_has_the_blocks_of_its_space(own_space):
    found = onnx_layers.read(to_onnx(own_space.deployed(), torch.zeros(1, 3, 8, 8)))
    assert list(found.blocks) == own_space.network()


def test_a_run_is_predicted_as_what_it_found():
    run = Path(__file__).parents[2] / "formats" / "run-3"
    (estimate,) = predicted(f"predict {run} --table t").estimates
    assert tuple(part.key for part in estimate.parts) == load_architecture(run / "architecture.json").blocks


def test_an_onnx_file_is_read_as_layers_and_what_no_row_is_about_is_named(capsys):
    model("m.onnx")
    words = "predict m.onnx --shape x=1x3x8x8 --table t t"
    assert cli.parse([*words.split(), "--json"]).run() == 1
    said = json.loads(capsys.readouterr().out)
    assert [part["key"] for part in said["tables"][1]["parts"]] == [
        "conv(act=swish,h=8,kernel=3,stride=1,w=8)[c_in=3,c_out=8]"
    ]
    assert (said["others"], said["tables"][0]["parts"][0]["layer"]) == ("1 GlobalAveragePool", "stem")
    assert cli.parse(words.split()).run() == 1
    printed = capsys.readouterr().out
    assert "no row is about 1 GlobalAveragePool: their share is unknown" in printed
    assert (
        printed.count("--shape x=1x3x8x8 --table t --missing m-onnx.blocks.zip && lathe profile m-onnx.blocks.zip") == 2
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("predict m.onnx --table t", "fix it, as by --shape x=1x3x224x8"),
        (
            "predict m.onnx --input 3x8x8 --table t",
            "--input 3x8x8 is of a space or of FILE.py:FUNCTION: leave it out for m.onnx",
        ),
        (
            "predict b.onnx --shape x=2x3x8x8 --table t",
            "table t has batch 1, wanted 2: measure another with `lathe profile other .* --batch 2 ",
        ),
        ("predict b.onnx --shape x=2x3x8x8 --batch 2 --table t", "--batch 2: the batch of MODEL.onnx is in its shapes"),
        ("predict repvgg-mini --batch 4 --table t", "table t has batch 1, wanted 4"),
        ("predict net.py:make --table t", "give the shape of an image, such as --input"),
        ("predict net.py:make --shape x=1 --table t", "--shape x=1 is of MODEL.onnx: leave it out"),
        ("predict bundle --table t", "bundle is a shipped bundle: predict bundle/model.onnx"),
        ("predict run --table t", "run"),
        ("predict repvgg --table t", "unknown space 'repvgg'"),
        ("predict repvgg-mini --table t t --missing m", "--missing m is what one table lacks: give one --table"),
        ("predict repvgg-mini --table t --missing net.py", "net.py exists and is not a block bundle"),
    ],
)
def test_what_cannot_be_predicted_is_refused(words, message):
    model("m.onnx")
    model("b.onnx", sizes=(2, 3, "n", 8))
    Path("bundle").mkdir()
    Path("bundle/manifest.json").touch()
    Path("run").mkdir()
    with pytest.raises((ValueError, SearchError), match=message):
        predicted(words)


def test_a_cell_predicted_from_a_torn_table_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    whole = (
        Path(__file__).parents[3] / "profiles" / "amd-epyc-zen4-1thread" / "nasbench201-small.fp32.latency.jsonl"
    ).read_bytes()
    Path("t.jsonl").write_bytes(whole[:-20])
    cell = "|nor_conv_3x3~0|+|none~0|none~1|+|none~0|none~1|none~2|"
    cli.parse(["space", "nasbench201-small", "--arch", cell, "--table", "t.jsonl"]).run()
    assert "warning: t.jsonl, line " in capsys.readouterr().err


def test_a_table_of_another_batch_is_refused_for_a_cell_and_beside_published_latencies():
    write(Path("eight"), batch=8)
    cell = ["space", "nasbench201-small", "--arch", "|nor_conv_3x3~0|+|none~0|none~1|+|none~0|none~1|none~2|"]
    for command in ([*cell, "--table", "eight"], ["paper", "latencies", "--table", "eight"]):
        with pytest.raises(LatencyError, match=r"^table eight has batch 8, wanted 1: measure another with `lathe"):
            cli.parse(command).run()
    with pytest.raises(LatencyError, match="^eight is of the space other, not of nasbench201-small: .* --batch 8"):
        cli.parse([*cell, "--table", "eight", "--batch", "8"]).run()
    for words in ([*cell, "--batch", "8"], ["space", "repvgg-mini", "--batch", "8"]):
        with pytest.raises(LatencyError, match="^--batch 8 is of the prediction by --table"):
            cli.parse(words).run()
