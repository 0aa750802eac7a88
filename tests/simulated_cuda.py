"""A GPU in virtual time, under as much of cuda.core, its bindings and NVML as `latency.backends.cuda` calls."""

import ctypes
from types import ModuleType, SimpleNamespace

import numpy as np


def module(**fields):
    made = ModuleType("fake")
    vars(made).update(fields)
    return made


class CUDAError(Exception):
    pass


class Resource:
    """What cuda.core makes: it lives until it is closed."""

    def __init__(self, gpu, kind, **fields):
        gpu.next_handle += 1
        self.gpu, self.kind, self.handle = gpu, kind, gpu.next_handle
        vars(self).update(fields)
        gpu.live[self.handle] = kind

    def close(self):
        del self.gpu.live[self.handle]


class Event(Resource):
    def sync(self):
        self.gpu.waited += 1

    def __sub__(self, other):
        return (self.at_us - other.at_us) / 1e3


class Stream(Resource):
    def sync(self):
        pass

    def record(self, event):
        event.at_us = self.gpu.now_us

    def create_graph_builder(self):
        return Builder(self.gpu, "builder")


class Builder(Resource):
    def begin_building(self, mode):
        assert mode == "thread_local"
        self.gpu.capturing = True

    def end_building(self):
        self.gpu.capturing = False

    def complete(self):
        if not self.gpu.capturable:
            raise CUDAError("CUDA_ERROR_STREAM_CAPTURE_INVALIDATED: of\nno use")
        return Graph(self.gpu, "graph")

    def close(self):
        self.gpu.capturing = False
        super().close()


class Graph(Resource):
    def launch(self, stream):
        assert self.gpu.live[self.handle] == "graph"
        self.gpu.launched += 1
        self.gpu.execute(stream.handle)


class Buffer(Resource):
    """Memory on the device, or any memory by its address."""

    @classmethod
    def at(cls, gpu, address, size):
        made = cls.__new__(cls)
        made.gpu, made.handle, made.size = gpu, address, size
        return made

    def copy_to(self, target, *, stream):
        assert stream == "legacy"
        target.array()[:] = self.array()

    def array(self):
        if self.handle in self.gpu.memory:
            return self.gpu.memory[self.handle][: self.size // 4]
        return np.ctypeslib.as_array((ctypes.c_float * (self.size // 4)).from_address(self.handle))


class Gpu:
    """The host enqueues in no time, the stream works off what is enqueued, an inference takes `inference_us`."""

    def __init__(self):
        self.inference_us, self.fail = 50.0, False
        self.now_us, self.live, self.next_handle = 0.0, {}, 1
        self.enqueued = self.waited = self.most_ahead = 0
        self.memory, self.most_buffers = {}, 99
        self.capturing, self.capturable, self.launched, self.blocking = False, True, 0, []
        self.refusal = None  # what CUDA raises when it starts

    def execute(self, stream):
        """Run an inference, or capture it; whether that succeeds."""
        assert self.live[stream] == "stream"
        if self.capturing:
            return self.capturable
        self.enqueued += 1
        self.most_ahead = max(self.most_ahead, self.enqueued - self.waited)
        self.now_us += self.inference_us
        return not self.fail

    def allocate(self, size, *, stream):
        assert stream == "legacy"
        if list(self.live.values()).count("memory") == self.most_buffers:
            raise CUDAError("CUDA_ERROR_OUT_OF_MEMORY: out of\nmemory")
        made = Buffer(self, "memory", size=size)
        self.memory[made.handle] = np.zeros(size // 4, np.float32)
        return made

    def create_event(self, options):
        assert options["timing_enabled"]
        self.blocking.append(options["blocking_sync"])
        return Event(self, "event")

    def create_stream(self, *, options):
        assert options == {"nonblocking": False}
        return Stream(self, "stream")

    def set_current(self):
        if self.refusal:
            raise self.refusal

    def core(self):
        device = SimpleNamespace(
            set_current=self.set_current,
            device_id=0,
            name="Fake GPU",
            compute_capability=SimpleNamespace(major=8, minor=9),
            pci_bus_id="0000:01:00.0",
            allocate=self.allocate,
            create_event=self.create_event,
            create_stream=self.create_stream,
        )
        return module(
            Device=lambda: device,
            EventOptions=dict,
            StreamOptions=dict,
            LEGACY_DEFAULT_STREAM=Legacy("legacy"),
            Buffer=SimpleNamespace(from_handle=lambda address, size: Buffer.at(self, address, size)),
        )

    def modules(self):
        """Python's modules over this GPU, by name."""
        return {
            "cuda.core": self.core(),
            "cuda.core._utils.cuda_utils": module(CUDAError=CUDAError),
            "cuda.bindings.driver": module(cuDeviceTotalMem=lambda device: (0, 2**33 + 5)),
            "pynvml": module(
                nvmlInit=lambda: None,
                nvmlShutdown=lambda: None,
                nvmlSystemGetDriverVersion=lambda: "580.1",
                nvmlDeviceGetHandleByPciBusId=lambda bus: bus,
            ),
        }


class Legacy(str):
    __slots__ = ()

    def sync(self):
        pass
