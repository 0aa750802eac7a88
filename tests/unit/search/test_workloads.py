import collections
import itertools

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from deploy.lowering import check, to_onnx
from search import spaces
from search.workloads import deployed_form, lower, workloads

MINI = spaces.get("repvgg-mini")
WIDTHS = (8, 24, 32, 40, 64, 72, 16)


def structure(model: onnx.ModelProto) -> tuple:
    """All of a graph but the numbers in its weights."""
    graph = model.graph
    shapes = {
        v.name: ([d.dim_value for d in v.type.tensor_type.shape.dim], v.type.tensor_type.elem_type)
        for v in (*graph.input, *graph.value_info, *graph.output)
    }
    tensors = {
        t.name: (
            list(t.dims),
            t.data_type,
            None if t.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16) else numpy_helper.to_array(t).tolist(),
        )
        for t in graph.initializer
    }
    return [node.SerializeToString(deterministic=True) for node in graph.node], shapes, tensors, list(model.opset_import), model.ir_version


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("part", [slice(0, 1), slice(3, 4), slice(7, 8), slice(0, 8)], ids=["first", "strided", "head", "network"])
def test_a_cut_model_equals_a_direct_export_node_for_node(part, precision):
    chain = MINI.network(WIDTHS)[part]
    first = chain[0]
    example = torch.zeros(1, first.width("c_in"), first.attr("h"), first.attr("w"))
    direct = onnx.load_from_string(to_onnx(deployed_form(chain), example, precision=precision))
    cut = onnx.load_from_string(lower(chain, precision))
    assert structure(cut) == structure(direct)


def test_a_cut_model_is_valid_and_its_activations_are_neither_huge_nor_denormal():
    model = check(onnx.load_from_string(lower(MINI.network(WIDTHS))))
    x = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)
    (y,) = ReferenceEvaluator(model).run(None, {"input": x})
    assert y.shape == (1, 10)
    assert 1e-6 < np.abs(y).mean() < 1e3


def test_lowering_twice_gives_the_same_bytes():
    assert lower(MINI.network(WIDTHS)[2:3]) == lower(MINI.network(WIDTHS)[2:3])


def test_workloads_are_every_block_and_the_networks(tiny):
    works = workloads(tiny, networks=5, seed=1)
    kinds = collections.Counter(work.kind for work in works)
    assert [work.key for work in works if work.kind == "block"] == [spec.key for spec in tiny.blocks()]
    assert kinds["network"] == 7
    networks = [work.blocks for work in works if work.kind == "network"]
    possible = {tuple(s.key for s in tiny.network(w)) for w in itertools.product(*(tiny.width_choices(i) for i in range(3)))}
    assert set(networks) <= possible
    assert networks[0] == tuple(spec.key for spec in tiny.network(tiny.full_widths()))
    assert networks[1] == tuple(spec.key for spec in tiny.network(tiny.smallest_widths()))


def test_the_seed_draws_the_networks(tiny):
    keys = [[work.key for work in workloads(tiny, networks=5, seed=seed)] for seed in (1, 1, 2)]
    assert keys[0] == keys[1] != keys[2]


def test_each_workload_is_the_onnx_of_its_key(tiny):
    for work in workloads(tiny, networks=1):
        graph = onnx.load_from_string(work.onnx()).graph
        c_in = graph.input[0].type.tensor_type.shape.dim[1].dim_value
        first = (work.blocks or (work.key,))[0]
        assert f"[c_in={c_in}," in first
