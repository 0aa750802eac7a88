import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from search import onnx_layers
from search.errors import SearchError


def serialised(nodes, weights, x, y):
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("x", x), ("y", y))]
    tensors = [numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in weights.items()]
    tensors += [numpy_helper.from_array(np.float32(number), name) for name, number in (("zero", 0), ("six", 6))]
    graph = helper.make_graph(
        [helper.make_node(*node[:3], **node[3]) for node in nodes], "g", values[:1], values[1:], initializer=tensors
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]).SerializeToString()


def test_convolutions_and_linear_layers_are_blocks_with_what_a_runtime_fuses_behind_them():
    weights = {
        "w1": (8, 3, 3, 3),
        "w2": (8, 1, 5, 5),
        "w3": (4, 8, 1, 1),
        "w4": (4, 6, 2, 2),
        "w5": (6, 10),
        "b5": (10,),
    }
    nodes = [
        ("Conv", ["x", "w1"], ["a"], {"name": "stem", "pads": [1, 1, 1, 1], "strides": [2, 2]}),
        ("Clip", ["a", "zero", "six"], ["b"], {}),
        ("Conv", ["b", "w2"], ["c"], {"name": "depth", "pads": [2, 2, 2, 2], "group": 8}),
        ("Sigmoid", ["c"], ["d"], {}),
        ("Mul", ["c", "d"], ["e"], {}),
        ("Add", ["b", "e"], ["f"], {}),
        ("Conv", ["f", "w3"], ["g"], {"name": "point"}),
        ("ConvTranspose", ["g", "w4"], ["h"], {"name": "up", "strides": [2, 2]}),
        ("GlobalAveragePool", ["h"], ["i"], {}),
        ("Flatten", ["i"], ["j"], {}),
        ("MatMul", ["j", "w5"], ["k"], {"name": "head"}),
        ("Add", ["k", "b5"], ["y"], {}),
    ]
    found = onnx_layers.read(serialised(nodes, weights, (1, 3, 8, 8), (1, 10)))
    assert dict(zip(found.names, (block.key for block in found.blocks), strict=True)) == {
        "stem": "conv(act=relu6,h=8,kernel=3,stride=2,w=8)[c_in=3,c_out=8]",
        "depth": "depthwise(act=swish,h=4,kernel=5,stride=1,w=4)[c_in=8]",
        "point": "conv(act=none,h=4,kernel=1,stride=1,w=4)[c_in=8,c_out=4]",
        "up": "conv_transpose(act=none,h=4,kernel=2,pad=0,stride=2,w=4)[c_in=4,c_out=6]",
        "head": "linear(act=none,h=1,w=1)[c_in=6,c_out=10]",
    }
    assert found.others == {"Add": 1, "GlobalAveragePool": 1}


def test_a_layer_that_no_block_is_like_is_among_the_others():
    nodes = [
        ("Conv", ["x", "w1"], ["a"], {"pads": [0, 0, 1, 1], "strides": [2, 2]}),
        ("Conv", ["a", "w1"], ["b"], {"pads": [1, 1, 1, 1]}),
        ("MatMul", ["b", "b"], ["y"], {}),
    ]
    found = onnx_layers.read(serialised(nodes, {"w1": (3, 3, 3, 3)}, (1, 3, 8, 8), (1, 3, 4, 4)))
    assert (len(found.blocks), found.others) == (1, {"Conv": 1, "MatMul": 1})
    with pytest.raises(SearchError, match="has no convolution or linear layer"):
        onnx_layers.read(serialised([("Relu", ["x"], ["y"], {})], {}, (1, 3), (1, 3)))
