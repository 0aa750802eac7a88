"""A network small enough to be exported in a moment, and samples for it."""

import numpy as np
import torch
from torch import nn

from deploy.samples import TensorSpec, samples_of
from latency import Device, Protocol
from reparam import ChannelMask, RepVGGBlock

QUICK = Protocol(
    name="quick", warmup_ms=0.0, min_samples=10, max_samples=20, min_time_ms=0.0, max_time_ms=5.0, half_width=10.0
)
SHAPE = (1, 3, 8, 8)
GPU = Device(
    kind="gpu",
    name="Fake",
    cores=0,
    threads=0,
    isa=(),
    memory_mib=1,
    driver="1",
    compute_capability="8.9",
    os="Linux x86_64",
)


def network(masked=True):
    """Two RepVGG blocks and a head; the same weights every time, norms as after training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        masks = [ChannelMask(torch.tensor(keep)) for keep in ([True, False] * 4, [True] * 6 + [False] * 2)]
        blocks = [
            RepVGGBlock(c_in, 8, stride=2, mask=mask if masked else None)
            for c_in, mask in zip((3, 8), masks, strict=True)
        ]
        model = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d):
                nn.init.normal_(norm.bias)
                norm.running_mean.normal_()
                norm.running_var.uniform_(0.5, 2.0)
    return model


def samples(count=12):
    return torch.randn(count, *SHAPE[1:], generator=torch.Generator().manual_seed(1))


def run_on(runner, x, batch=1, name="input"):
    """What a runner gives for samples that are joined along the first dimension, joined likewise."""
    given = samples_of(np.asarray(x), [TensorSpec(name, "float32", (batch, *x.shape[1:]))])
    return {key: output.reshape(-1, *output.shape[2:])[: given.count] for key, output in runner(given.inputs).items()}


def example():
    return torch.zeros(SHAPE)
