"""Torch's own kernels on a real GPU, as the comparison with TensorRT needs them."""

import io

import pytest
import torch

from gpu.conftest import median, network
from latency import protocol
from latency.errors import BuildFailed
from latency.lowered import Lowered
from latency.measure import measure

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def lowered(example, half_onnx):
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(network().half(), (example.half(),)), buffer)
    return Lowered(onnx=half_onnx, program=buffer.getvalue())


def test_a_program_is_measured_as_a_graph(torch_cuda, lowered):
    with torch_cuda.compile(lowered) as compiled:
        found = measure(compiled, protocol.get("default"), monitor=torch_cuda.monitor)
    assert found.error == ""
    assert 1 < found.median_us < 10_000


def test_a_graph_is_faster_than_launching_small_kernels(torch_cuda, lowered):
    with torch_cuda.compile(lowered) as compiled:
        compiled.launch(cuda_graph=False, spin_wait=True)
        compiled.run(50)
        kernels = median(compiled.run(200))
        assert compiled.launch(cuda_graph=True, spin_wait=True) == ""
        compiled.run(50)
        assert median(compiled.run(200)) < kernels


def test_onnx_alone_is_a_build_that_fails(torch_cuda, half_onnx):
    with pytest.raises(BuildFailed, match="exported program"):
        torch_cuda.compile(half_onnx)
