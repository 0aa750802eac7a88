"""The driver under everything else, without TensorRT."""

import numpy as np
import pytest

pytestmark = pytest.mark.gpu


def test_memory_goes_there_and_back(cuda):
    there = np.arange(1000, dtype=np.float32)
    back = np.zeros_like(there)
    with cuda.memory(there.nbytes) as address:
        cuda.upload(address, there)
        cuda.download(back, address)
    assert (back == there).all()


def test_events_on_a_stream_measure_time_that_passes(cuda):
    for blocking in (False, True):
        with cuda.stream() as stream, cuda.event(blocking=blocking) as start, cuda.event(blocking=blocking) as end:
            cuda.record(start, stream)
            cuda.record(end, stream)
            cuda.wait(end)
            assert 0 <= cuda.elapsed_us(start, end) < 1e6


def test_the_fingerprint_names_the_gpu(cuda):
    device = cuda.device()
    assert device.kind == "gpu"
    assert device.name
    assert device.driver
    assert float(device.compute_capability) >= 7.5
    assert device.memory_mib > 1000


def test_the_context_is_the_one_that_torch_uses(cuda):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip(f"torch {torch.__version__} has no CUDA")
    values = torch.arange(1000, dtype=torch.float32, device="cuda")
    torch.cuda.synchronize()
    back = np.zeros(1000, np.float32)
    cuda.download(back, values.data_ptr())  # another context could not read this address
    assert (back == np.arange(1000)).all()


def test_the_monitor_reads_clocks_and_temperature(cuda):
    from latency.monitor import Nvml

    reading = Nvml(cuda.pci_bus_id()).read()
    assert reading.clocks["sm_mhz"] > 0
    assert 0 < reading.clocks["temperature_c"] < 120
