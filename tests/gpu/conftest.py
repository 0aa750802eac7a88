"""What runs on a real GPU: each flavour of TensorRT that loads, and torch. What does not load is skipped with its own words."""

import numpy as np
import pytest
import torch
from torch import nn

from deploy.lowering import to_onnx
from latency import backends
from latency.backends.cuda import connect
from latency.backends.engines import Flavour
from latency.backends.tensorrt import TensorRT
from latency.errors import DeviceUnavailable, MissingExtra, RunFailed

FLAVOURS: tuple[Flavour, ...] = ("tensorrt", "tensorrt-rtx")


def network() -> nn.Module:
    """Enough work for a GPU to be measured by, little enough to build at once."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(64, 128, 3, 2, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(128, 10),
    ).eval()


@pytest.fixture(scope="session")
def example() -> torch.Tensor:
    return torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def half_onnx(example: torch.Tensor) -> bytes:
    return to_onnx(network(), example, precision="fp16")


@pytest.fixture(scope="session", params=FLAVOURS)
def backend(request: pytest.FixtureRequest, half_onnx: bytes) -> TensorRT:
    """A flavour that runs here: a driver, its libraries, and a GPU that it accepts."""
    try:
        found = TensorRT(request.param)
        found.compile(half_onnx).__exit__(None, None, None)
    except (DeviceUnavailable, MissingExtra, RunFailed) as error:
        pytest.skip(f"{request.param}: {error}")
    return found


@pytest.fixture(scope="session")
def cuda():
    try:
        return connect("tensorrt")
    except (DeviceUnavailable, MissingExtra) as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def torch_cuda():
    try:
        return backends.get("torch-cuda")
    except (DeviceUnavailable, MissingExtra) as error:
        pytest.skip(f"torch-cuda: {error}")


def median(samples: list[float]) -> float:
    return float(np.median(samples))
