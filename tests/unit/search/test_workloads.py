import collections
import functools
import io
import itertools

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from deploy.graph import check_model
from deploy.lowering import to_onnx
from deploy.precision import convert
from latency import BlockSpec, blocks_zip
from latency.lowered import decode
from search import ops, spaces
from search.blocks import deployed, serial
from search.workloads import lower, lower_with_program, workloads

MINI = spaces.get("repvgg-mini")
WIDTHS = (8, 24, 32, 40, 64, 72, 16)
BLOCKS = {
    "conv": ops.conv((3, 33, 31), 24, stride=2, act="swish"),
    "conv of groups": ops.conv((24, 33, 31), 32, stride=2, groups=4),
    "conv, long and dilated": ops.layer("conv", (24, 33, 31), 40, ops.Geometry((3, 5), (2, 1), (1, 4), 2), act="tanh"),
    "depthwise": ops.layer("depthwise", (24, 33, 31), None, ops.Geometry((5, 5), (2, 2), (2, 2)), act="hardswish"),
    "conv_transpose": ops.layer("conv_transpose", (24, 9, 7), 40, ops.Geometry((4, 4), (2, 2), (1, 1)), act="relu"),
    "linear": ops.layer("linear", (48, 1, 1), 24, act="sigmoid"),
    "linear at positions": ops.layer("linear", (48, 9, 1), 24),
    "stem": ops.stem((3, 33, 31), 24),
    "separable": ops.separable((24, 12, 12), 24, act="relu6"),
    "basic": ops.residual((24, 12, 12), 24, hidden=40),
    "bottleneck": ops.residual((24, 13, 12), 64, hidden=16, stride=2, bottleneck=True),
    "head": ops.head((32, 1, 1), 10),
    "tail": ops.tail((48, 4, 4), 10, hidden=80),
    "irb": ops.inverted_residual((16, 12, 12), 16, hidden=96, kernel=5, act="swish"),
    "irb, strided, gated": ops.inverted_residual((24, 13, 12), 40, hidden=64, stride=2, se=True),
    "irb, gated, as wide as its input": ops.inverted_residual(
        (32, 12, 12), 32, hidden=32, kernel=5, act="swish", se=True
    ),
    "preact": ops.preact((16, 12, 12), 24, kernel=3),
    "avg_pool": ops.avg_pool((16, 12, 12)),
    "add": ops.add((16, 12, 12)),
    "reduction": ops.reduction((16, 13, 12), 40),
    "mlp_head": ops.mlp_head((32, 4, 4), 10, hidden=24),
    "norm_head": ops.norm_head((32, 4, 4), 10),
    "fused": ops.inverted_residual((16, 12, 12), 24, hidden=32, fused=True),
    "fused, residual, gated": ops.inverted_residual(
        (24, 9, 9), 24, hidden=160, kernel=5, act="swish", se=True, fused=True
    ),
}


def names(model: onnx.ModelProto) -> dict[str, str]:
    """The values of a graph, numbered in the order in which nodes make them; weights and constants by what they are."""
    found = {"": "", **{value.name: value.name for value in model.graph.input}}
    for tensor in model.graph.initializer:
        weight = tensor.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
        found[tensor.name] = (
            f"{list(tensor.dims)} {tensor.data_type}" if weight else str(numpy_helper.to_array(tensor).tolist())
        )
    for index, name in enumerate(name for node in model.graph.node for name in node.output):
        found[name] = str(index)
    return found


def structure(model: onnx.ModelProto) -> tuple:
    """All of a graph but the numbers in its weights and the names of its values."""
    graph, name = model.graph, names(model)
    nodes = [
        (
            node.op_type,
            [name[i] for i in node.input],
            [name[o] for o in node.output],
            sorted(a.SerializeToString() for a in node.attribute),
        )
        for node in graph.node
    ]
    shapes = {
        name[v.name]: ([d.dim_value for d in v.type.tensor_type.shape.dim], v.type.tensor_type.elem_type)
        for v in (*graph.input, *graph.value_info, *graph.output)
    }
    ends = [v.name for v in (*graph.input, *graph.output)]
    return nodes, shapes, ends, list(model.opset_import), model.ir_version


def direct(chain: list[BlockSpec], precision: str) -> onnx.ModelProto:
    model = onnx.load_from_string(exported(tuple(chain)))
    return convert(model, io="fp32")[0] if precision == "fp16" else model


@functools.cache
def exported(chain: tuple[BlockSpec, ...]) -> bytes:
    first = chain[0]
    example = (torch.zeros(1, first.width("c_in"), first.attr("h"), first.attr("w")),) * (2 if first.op == "add" else 1)
    return to_onnx(deployed(first) if first.op == "add" else serial(list(chain)), example)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", BLOCKS)
def test_a_cut_block_equals_a_direct_export_node_for_node(name, precision):
    cut, wanted = decode(lower([BLOCKS[name]], precision)), direct([BLOCKS[name]], precision)
    assert structure(cut) == structure(wanted)
    assert [(node.name, *node.input, *node.output) for node in cut.graph.node] == [
        (node.name, *node.input, *node.output) for node in wanted.graph.node
    ]
    assert [(t.name, list(t.dims)) for t in cut.graph.initializer] == [
        (t.name, list(t.dims)) for t in wanted.graph.initializer
    ]


def mobile(width: int) -> list[BlockSpec]:
    """A little of everything."""
    chain = [ops.conv((3, 16, 16), width, stride=2, act="swish")]
    for c_out, options in [
        (width, {"fused": True, "act": "swish", "se": True}),
        (40, {"stride": 2}),
        (40, {"kernel": 5, "se": True}),
        (40, {}),
    ]:
        chain.append(ops.inverted_residual(ops.output_shape(chain[-1]), c_out, hidden=64, **options))
    return [*chain, ops.tail(ops.output_shape(chain[-1]), 10, hidden=48)]


def residual() -> list[BlockSpec]:
    """A stem, a grouped convolution, residuals of both kinds."""
    chain = [ops.stem((3, 33, 31), 16), ops.conv((16, 9, 8), 24, groups=2)]
    for c_out, options in [(24, {}), (48, {"stride": 2, "bottleneck": True})]:
        chain.append(ops.residual(ops.output_shape(chain[-1]), c_out, hidden=8, **options))
    return [*chain, ops.head(ops.output_shape(chain[-1]), 10)]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(
    "chain",
    [MINI.network(MINI.choice(WIDTHS)), mobile(24), mobile(24)[1:3], residual()],
    ids=["repvgg", "mobile", "two blocks", "residual"],
)
def test_a_joined_network_equals_a_direct_export_node_for_node(chain, precision):
    assert structure(onnx.load_from_string(lower(chain, precision))) == structure(direct(chain, precision))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_lowered_network_is_valid_and_its_activations_are_neither_huge_nor_denormal(precision):
    for chain in (MINI.network(MINI.choice(WIDTHS)), mobile(16)):
        first = chain[0]
        model = check_model(onnx.load_from_string(lower(chain, precision)))
        x = np.random.default_rng(0).standard_normal((1, 3, first.attr("h"), first.attr("w"))).astype(np.float32)
        (y,) = ReferenceEvaluator(model).run(None, {"input": x})
        assert y.shape == (1, 10)
        assert y.dtype == np.float32
        assert 1e-6 < np.abs(y).mean() < 1e3


def test_lowering_twice_gives_the_same_bytes():
    assert lower(MINI.network(MINI.choice(WIDTHS))[2:3]) == lower(MINI.network(MINI.choice(WIDTHS))[2:3])


def test_a_block_of_a_known_family_is_not_exported_again(monkeypatch):
    blocks = [
        ops.inverted_residual((64, 72, 72), 64, hidden=hidden, act="swish", se=True, fused=True)
        for hidden in range(32, 513, 32)
    ]
    lower(blocks[:1])
    monkeypatch.setattr("search.workloads.to_onnx", lambda *_, **__: pytest.fail("exported"))
    assert len({lower([block]) for block in blocks}) == len(blocks)


def test_workloads_are_every_block_and_the_networks(tiny):
    works = workloads(tiny, networks=5, seed=1)
    kinds = collections.Counter(work.kind for work in works)
    assert [work.key for work in works if work.kind == "block"] == [spec.key for spec in tiny.blocks()]
    assert kinds["network"] == 7
    networks = [work.blocks for work in works if work.kind == "network"]
    possible = {
        tuple(s.key for s in tiny.network(tiny.choice(w)))
        for w in itertools.product(*(tiny.width_choices(i) for i in range(3)))
    }
    assert set(networks) <= possible
    assert networks[0] == tuple(spec.key for spec in tiny.network())
    assert networks[1] == tuple(spec.key for spec in tiny.network(tiny.smallest()))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_bundle_holds_the_very_bytes(tiny, tmp_path, precision):
    works = workloads(tiny, networks=2, precision=precision)
    blocks_zip.write(tmp_path / "tiny.blocks.zip", works, lowering="1", space=tiny.name, precision=precision)
    found = blocks_zip.read(tmp_path / "tiny.blocks.zip").workloads
    assert [(work.kind, work.key, work.blocks, work.onnx()) for work in found] == [
        (work.kind, work.key, work.blocks, work.onnx()) for work in works
    ]


def test_blocks_and_networks_of_a_larger_batch_are_lowered_and_bundled_with_it(tiny, tmp_path):
    works = workloads(tiny, networks=0, batch=37)  # a prime, as are the widths of templates
    for work in (works[0], works[-1]):
        model = onnx.load_from_string(work.lower().onnx)
        weights = {tensor.name for tensor in model.graph.initializer}
        values = (
            value
            for value in (*model.graph.input, *model.graph.value_info, *model.graph.output)
            if value.name not in weights
        )
        assert {value.type.tensor_type.shape.dim[0].dim_value for value in values} == {37}
    blocks_zip.write(tmp_path / "tiny.blocks.zip", works, lowering="1", space=tiny.name, precision="fp32")
    found = blocks_zip.read(tmp_path / "tiny.blocks.zip")
    assert (found.index.batch, {work.batch for work in found.workloads}) == (37, {37})


def test_a_named_network_is_one_network_workload():
    kinds = collections.Counter(work.kind for work in workloads(spaces.get("gpunet-1"), networks=5))
    assert kinds == {"block": 12, "network": 1}


def test_the_seed_draws_the_networks(tiny):
    keys = [[work.key for work in workloads(tiny, networks=5, seed=seed)] for seed in (1, 1, 2)]
    assert keys[0] == keys[1] != keys[2]


def test_each_workload_is_the_onnx_of_its_key(tiny):
    for work in workloads(tiny, networks=1):
        graph = onnx.load_from_string(work.onnx()).graph
        c_in = graph.input[0].type.tensor_type.shape.dim[1].dim_value
        first = (work.blocks or (work.key,))[0]
        assert f"[c_in={c_in}," in first


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_torch_gets_a_program_of_the_same_network_at_its_real_widths(precision):
    chain = mobile(24)[1:3]
    lowered = lower_with_program(chain, precision)
    program = torch.export.load(io.BytesIO(lowered.program))
    assert lowered.onnx == lower(chain, precision)
    assert lowered.program == lower_with_program(chain, precision).program
    (example,) = program.example_inputs[0]
    graph = onnx.load_from_string(lowered.onnx).graph
    assert [dim.dim_value for dim in graph.input[0].type.tensor_type.shape.dim] == list(example.shape)
    assert sorted(list(tensor.shape) for tensor in program.state_dict.values()) == sorted(
        list(tensor.dims)
        for tensor in graph.initializer
        if tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16) and tensor.dims
    )
    assert {tensor.dtype for tensor in program.state_dict.values()} == {
        torch.float16 if precision == "fp16" else torch.float32
    }
    assert program.module()(example).dtype == example.dtype == torch.float32


def test_programs_are_made_only_where_they_are_asked_for(tiny):
    plain, whole = (
        workloads(tiny, networks=0, precision="fp16", program=program)[0].lower() for program in (False, True)
    )
    assert plain.program is None
    assert whole.program is not None
    assert (whole.key, whole.onnx) == (plain.key, plain.onnx)


def test_networks_of_a_traced_space_are_its_module_pruned():
    torch.manual_seed(0)
    act = torch.nn.ReLU
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3), act(), torch.nn.Conv2d(16, 24, 3), act(), torch.nn.Flatten(), torch.nn.Linear(384, 2)
    )
    space = spaces.of_module(module, torch.zeros(1, 3, 8, 8), name="own")
    works = workloads(space, networks=2)
    assert [work.key for work in works if work.kind == "block"] == [spec.key for spec in space.blocks()]
    networks = [work for work in works if work.kind == "network"]
    assert networks[0].blocks == tuple(spec.key for spec in space.network())
    model = onnx.load_from_string(networks[1].onnx())
    check_model(model)
    weights = [tuple(tensor.dims) for tensor in model.graph.initializer if len(tensor.dims) > 1]
    assert weights == [(8, 3, 3, 3), (8, 8, 3, 3), (2, 128)]
    assert networks[1].onnx() == model.SerializeToString(deterministic=True)


def test_networks_of_cells_are_their_modules_fused():
    space = spaces.get("nasbench201-small")
    works = [work for work in workloads(space, networks=1) if work.kind == "network"]
    assert [work.blocks for work in works[:2]] == [
        tuple(spec.key for spec in space.network(c)) for c in (space.largest(), space.smallest())
    ]
    for work in works:
        model = onnx.load_from_string(work.onnx())
        check_model(model)
        assert sum(node.op_type == "Conv" for node in model.graph.node) == sum(
            {"conv": 1, "preact": 1, "reduction": 3}.get(key.split("(")[0], 0) for key in work.blocks
        )
