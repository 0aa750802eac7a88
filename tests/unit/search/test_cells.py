import onnx
import torch

from deploy.lowering import to_onnx
from search import spaces
from search.cells import Cell
from search.spaces.cells import CONV1, CONV3, NONE, POOL, SKIP

SMALL = spaces.get("nasbench201-small")


def test_a_cell_pools_a_value_once():
    choice = SMALL.of((SKIP, POOL, NONE, POOL, POOL, CONV1))
    model = onnx.load_from_string(to_onnx(SMALL.module(choice).eval(), torch.zeros(1, 3, 16, 16)))
    pools = [node for node in model.graph.node if node.op_type == "AveragePool"]
    assert len(pools) == 3 + 2  # one per cell, and those of the reductions


def test_a_node_is_the_sum_of_its_edges():
    candidates = SMALL.candidates(0)
    cell = Cell({(0, 3): SKIP, (0, 1): CONV3, (1, 3): SKIP}, candidates).eval()
    x = torch.randn(2, SMALL.channels, 8, 8)
    assert torch.allclose(cell(x), x + cell.edge01(x))


def test_a_cell_without_edges_returns_zeros():
    x = torch.randn(1, SMALL.channels, 4, 4)
    assert torch.equal(Cell({}, SMALL.candidates(0))(x), torch.zeros_like(x))
