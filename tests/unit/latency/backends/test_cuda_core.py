"""The real cuda.core, over a driver whose GPU is the host: `libcuda.c`, built here by the machine's C compiler."""

import inspect
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

core = pytest.importorskip("cuda.core", reason="cuda.core is not installed", exc_type=ImportError)


@pytest.fixture(scope="module")
def on_the_host(tmp_path_factory):
    """A function that runs lines of Python with the driver, a `cuda` over it and `seen` of its counters."""
    if not (compiler := shutil.which("cc")):
        pytest.skip("no C compiler builds the simulated driver")
    folder = tmp_path_factory.mktemp("driver")
    library = folder / "libcuda.so.1"
    source = Path(__file__).with_name("libcuda.c")
    subprocess.run(
        [compiler, "-w", "-shared", "-fPIC", f"-Wl,-soname,{library.name}", "-o", library, source], check=True
    )
    begin = """
        import ctypes, json
        import numpy as np
        from latency import DeviceUnavailable, RunFailed
        from latency.backends.cuda import Cuda, CudaCore

        driver = ctypes.CDLL("libcuda.so.1")
        seen = lambda *names: [ctypes.c_int.in_dll(driver, name).value for name in names]
        def be(name, value):
            ctypes.c_int.in_dll(driver, name).value = value
        def refused(act):
            try:
                with act:
                    return "nothing"
            except (DeviceUnavailable, RunFailed) as error:
                return str(error)
    """

    def run(lines):
        (folder / "lines.py").write_text(textwrap.dedent(begin) + textwrap.dedent(lines))
        done = subprocess.run(
            [sys.executable, "-X", "faulthandler", folder / "lines.py"],
            env={**os.environ, "LD_LIBRARY_PATH": str(folder), "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        return done.stdout.splitlines()

    return run


def test_memory_streams_events_and_graphs(on_the_host):
    assert on_the_host("""
        cuda = CudaCore("tensorrt")
        assert isinstance(cuda, Cuda)
        there, back = np.arange(6, dtype=np.float32), np.zeros(6, np.float32)
        for pools in (1, 0):
            be("pools", pools)
            with cuda.memory(there.nbytes) as address:
                cuda.upload(address, there)
                cuda.download(back, address)
                print(back.tolist(), *seen("live"))
        with cuda.stream() as stream, cuda.event(blocking=False) as start:
            print(*seen("stream_flags", "event_flags"))
            with cuda.event(blocking=True) as end:
                cuda.record(start, stream)
                cuda.record(end, stream)
                cuda.wait(end)
                print(*seen("event_flags"), cuda.elapsed_us(start, end), type(cuda.address(stream)).__name__)
            with cuda.graph(stream, lambda: cuda.record(start, stream)) as launch:
                launch()
                launch()
                cuda.synchronize(stream)
                print(*seen("capture_mode", "launched", "live"))
        print(*seen("live"))
    """) == [
        "[0.0, 1.0, 2.0, 3.0, 4.0, 5.0] 1",
        "[0.0, 1.0, 2.0, 3.0, 4.0, 5.0] 1",
        "0 0",  # a stream that waits for the default one, an event that one waits for spinning
        "1 1000.0 int",
        "1 2 3",  # the calling thread alone is held back; stream, event and graph
        "0",
    ]


def test_what_the_driver_refuses_is_said_and_released(on_the_host):
    memory, capture, own, *counts = on_the_host("""
        cuda = CudaCore("tensorrt")
        print(refused(cuda.memory(2**41)))
        def fail():
            raise RunFailed("no reason given")
        with cuda.stream() as stream:
            be("capture_fails", 1)
            print(refused(cuda.graph(stream, lambda: None)))
            be("capture_fails", 0)
            print(refused(cuda.graph(stream, fail)))
            with cuda.graph(stream, lambda: None) as launch:
                launch()
        print(*seen("launched", "live"))
    """)
    assert memory.startswith("CUDA_ERROR_OUT_OF_MEMORY: ")
    assert capture.startswith("CUDA_ERROR_STREAM_CAPTURE_INVALIDATED: ")
    assert (own, counts) == ("no reason given", ["1 0"])


def test_no_gpu_is_said_in_one_line(on_the_host):
    (found,) = on_the_host("""
        be("devices", 0)
        try:
            CudaCore("tensorrt")
        except DeviceUnavailable as error:
            print(error)
    """)
    assert found.startswith("CUDA does not start: CUDA_ERROR_NO_DEVICE: ")
    assert found.endswith(": look at `nvidia-smi`, or measure on the CPU with --backend onnxruntime")


@pytest.mark.parametrize(
    ("owner", "names"),
    [
        (core, ["Device", "EventOptions", "StreamOptions", "Buffer", "LEGACY_DEFAULT_STREAM"]),
        (core.Device, ["set_current", "device_id", "name", "compute_capability", "pci_bus_id", "allocate"]),
        (core.Device, ["create_stream", "create_event"]),
        (core.Stream, ["sync", "record", "handle", "close", "create_graph_builder"]),
        (core.Event, ["sync", "__sub__", "close"]),
        (core.Buffer, ["from_handle", "copy_to", "handle", "close"]),
        (core.graph.GraphBuilder, ["begin_building", "end_building", "complete", "close"]),
        (core.graph.Graph, ["launch", "close"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_every_name_that_is_used_exists(owner, names):
    assert [name for name in names if not hasattr(owner, name)] == []


def test_functions_take_what_they_are_given():
    for function, given, options in (
        (core.Device.allocate, (1,), {"stream": None}),
        (core.Device.create_stream, (), {"options": None}),
        (core.Device.create_event, (None,), {}),
        (core.Stream.record, (None,), {}),
        (core.Buffer.copy_to, (None,), {"stream": None}),
        (core.graph.GraphBuilder.begin_building, ("thread_local",), {}),
        (core.graph.Graph.launch, (None,), {}),
    ):
        inspect.signature(function).bind(None, *given, **options)
    inspect.signature(core.Buffer.from_handle).bind(1, 2)
    assert core.EventOptions(timing_enabled=True, blocking_sync=True).timing_enabled
    assert not core.StreamOptions(nonblocking=False).nonblocking
