import numpy as np
import pytest
from onnx import helper

from deploy.explain import explain
from deploy.precision import certified
from deploy.samples import inputs_of, samples_of
from unit.deploy.graphs import EYE, HUGE, conv, made, relu

X = np.random.default_rng(0).standard_normal((3, 4, 8, 8)).astype(np.float32)


def explained(nodes, weights):
    model = made(nodes, weights)
    data = model.SerializeToString()
    return explain(data, certified(data, X)[0], samples_of(X, inputs_of(model)))


def test_the_first_tensor_that_overflows_is_named_with_its_layer_and_the_island_prevents_it():
    nodes = [conv("x", "a", "stem.weight"), conv("a", "b", "up.weight"), relu("b", "c"), conv("c", "y", "down.weight")]
    found = explained(nodes, {"stem.weight": EYE, "up.weight": HUGE, "down.weight": 1e-6 * EYE})
    first = found.everywhere.first
    assert (first.tensor, first.op, first.layer, first.error) == ("b", "Conv", "up", None)
    assert (found.everywhere.beyond, found.everywhere.tensors, found.samples) == (3, 4, 3)
    assert found.certified.first is None
    assert found.lines == (
        "FP16 everywhere: b (Conv, layer up): overflows or becomes NaN, limit 1e-02; 3 of 4 tensors are beyond it",
        f"FP16 with FP32 islands: all 4 tensors are within 1e-02; the largest difference is at {found.certified.worst}",
    )


def test_a_tensor_that_loses_its_digits_is_found_and_a_layer_without_weights_is_named_by_the_one_before():
    nodes = [
        conv("x", "a", "stem.weight"),
        helper.make_node("Add", ["a", "shift"], ["b"], "b"),
        helper.make_node("Sub", ["b", "shift"], ["y"], "y"),
    ]
    first = explained(nodes, {"stem.weight": EYE, "shift": np.float32(3000.0)}).everywhere.first
    assert (first.tensor, first.op, first.layer) == ("y", "Sub", "stem")
    assert 0.01 < first.error < 1


def test_where_nothing_breaks_it_says_so_and_a_path_in_a_node_name_is_its_layer():
    found = explained([conv("x", "a", "w", "/stem/Conv"), relu("a", "y")], {"w": EYE})
    assert found.everywhere == found.certified
    assert (found.everywhere.first, found.everywhere.beyond) == (None, 0)
    assert (found.everywhere.worst.layer, found.everywhere.worst.error) == (
        "/stem/Conv",
        pytest.approx(2**-11, rel=0.9),
    )
