import torch

from search.runtime import Runtime
from search.train import make_optimizer


def test_setup_keeps_the_parameters_and_makes_images_channels_last(tiny):
    runtime = Runtime()
    network = tiny.module()
    before = [id(parameter) for parameter in network.parameters()]
    runtime.setup(network, [make_optimizer(network, lr=0.1, momentum=0.9, weight_decay=0.0)])
    assert [id(parameter) for parameter in network.parameters()] == before
    assert runtime.send(torch.zeros(2, 3, 8, 8)).is_contiguous(memory_format=torch.channels_last)
