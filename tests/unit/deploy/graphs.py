"""ONNX graphs made node by node, from x to y of shape [1, 4, 8, 8], and what is looked at in them."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from deploy import graph
from deploy.engine import half_runner, onnx_runner
from deploy.samples import inputs_of, samples_of

EYE, HUGE = np.eye(4, dtype=np.float32)[:, :, None, None], 1e6 * np.eye(4, dtype=np.float32)[:, :, None, None]


def value(name, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def made(nodes, weights=None, inputs=None, outputs=None, opset=20):
    """A model from x to y of shape [1, 4, 8, 8]."""
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in (weights or {}).items()]
    shape = [1, 4, 8, 8]
    built = helper.make_graph(nodes, "g", inputs or [value("x", shape)], outputs or [value("y", shape)], tensors)
    return graph.check_model(helper.make_model(built, opset_imports=[helper.make_opsetid("", opset)], ir_version=10))


def ops(model):
    return [node.op_type for node in model.graph.node]


def kinds(model):
    found = model.graph
    every = {v.name: v.type.tensor_type.elem_type for v in (*found.input, *found.value_info, *found.output)}
    return every | {t.name: t.data_type for t in found.initializer}


def conv(x, y, weight="w", name=None):
    return helper.make_node("Conv", [x, weight], [y], name or y)


def relu(x, y):
    return helper.make_node("Relu", [x], [y], y)


def relative(found, wanted):
    return np.abs(found - wanted).max() / np.abs(wanted).max()


def difference(model, half, samples):
    """Largest difference of the half-precision network's output, relative to the largest output; NaN where it has none."""
    inputs = samples_of(samples, inputs_of(graph.parse_model(model))).inputs
    wanted, found = (run(inputs)["y"].astype(np.float64) for run in (onnx_runner(model), half_runner(half)))
    assert np.isfinite(wanted).all()
    assert np.abs(wanted).max() > 0
    return relative(found, wanted)
