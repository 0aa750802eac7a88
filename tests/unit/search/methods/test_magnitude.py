import torch
from torch import nn

from ..conftest import make_method


def test_a_channel_without_weights_has_the_lowest_score(tiny, table, stripes, budget_us):
    method, network = make_method("magnitude", tiny, table, stripes, budget_us), tiny.module()
    with torch.no_grad():
        for norm in network.get_submodule("b").modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.weight[5] = 0.0
    scores = dict(zip((group.name for group in method.groups), method.scores(network), strict=True))
    assert scores["b"].argmin() == 5
    assert scores["b"][5] == 0
    assert scores["a"].min() > 0
