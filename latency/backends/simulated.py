"""A simulated device with a known true latency: an analytic roofline, and seeded disturbances of measurements."""

import math
import random
from collections import Counter
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from latency.device import Device, Runtime
from latency.errors import BuildFailed, LatencyError, one_line
from latency.lowered import Lowered, require_static
from latency.monitor import Reading
from latency.units import ns_from_us

if TYPE_CHECKING:
    from onnx import ValueInfoProto


class VirtualClock:
    """A clock that only `advance` moves. Calling it returns nanoseconds."""

    def __init__(self) -> None:
        self.now_us = 0.0

    def __call__(self) -> int:
        """Return the nanoseconds since its creation."""
        return ns_from_us(self.now_us)

    def advance(self, us: float) -> None:
        """Move the clock forward."""
        self.now_us += us


_Rate = Annotated[float, msgspec.Meta(ge=1e-3, le=1e12)]
_Seconds = Annotated[float, msgspec.Meta(ge=1e-3, le=1e6)]
_Slowdown = Annotated[float, msgspec.Meta(ge=0, le=1e3)]


class SimulatedSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Speed and disturbances of a simulated device. Slowdowns are relative: 0.5 takes one and a half times as long.

    Attributes:
        seed: seed of all randomness.
        macs_per_us: multiply-accumulates per microsecond at fp32; fp16 has twice as many.
        bytes_per_us: memory traffic per microsecond.
        launch_us: overhead of every inference.
        step: number of channels computed together: latency over width is a staircase.
        noise: standard deviation of a sample's logarithm.
        spikes: share of the samples that take 2 to 10 times as long.
        drift: largest slowdown of a slow wave that no reading shows; it spares the first half of each period.
        drift_period_s: period of that wave.
        throttle: slowdown while the device is too hot, which a reading shows.
        throttle_every_s: interval in which it throttles once, at a random moment.
        throttle_for_s: duration of that.
        others: slowdown while another process uses the device, which a reading shows.
        others_every_s: interval in which such a process runs once, at a random moment.
        others_for_s: duration of that.
    """

    seed: Annotated[int, msgspec.Meta(ge=0, le=2**53)] = 0
    macs_per_us: _Rate = 50_000.0
    bytes_per_us: _Rate = 20_000.0
    launch_us: Annotated[float, msgspec.Meta(ge=0, le=1e9)] = 5.0
    step: Annotated[int, msgspec.Meta(ge=1, le=2**20)] = 32
    noise: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.003
    spikes: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    drift: _Slowdown = 0.0
    drift_period_s: _Seconds = 60.0
    throttle: _Slowdown = 0.0
    throttle_every_s: _Seconds = 20.0
    throttle_for_s: _Seconds = 2.0
    others: _Slowdown = 0.0
    others_every_s: _Seconds = 30.0
    others_for_s: _Seconds = 3.0

    @classmethod
    def parse(cls, text: str) -> "SimulatedSettings":
        """Parse settings such as `seed=1,drift=0.05`.

        Raises:
            LatencyError: a name is unknown or given twice, or a value is not a number in its range; lists the names.
        """
        write = f"write name=number, of {', '.join(cls.__struct_fields__)}"
        parts = [part.partition("=") for part in text.split(",")] if text else []
        pairs = [(name, value) for name, _, value in parts]
        for name, count in Counter(name for name, _ in pairs).items():
            if count > 1:
                raise LatencyError(f"simulated:{text}: {name or 'an empty name'} is given twice: {write}")
        try:
            made = msgspec.convert(dict(pairs), cls, strict=False)
        except msgspec.ValidationError as error:
            raise LatencyError(f"simulated:{text}: {error}: {write}") from error
        # NaN passes every comparison of msgspec.
        if wrong := [name for name, value in msgspec.structs.asdict(made).items() if not math.isfinite(value)]:
            raise LatencyError(f"simulated:{text}: {wrong[0]} is not a finite number: {write}")
        return made


class Simulated:
    """Backend over a simulated device, and its Monitor. It computes nothing: latency follows from work and traffic.

    Args:
        settings: None for the defaults, without disturbances.
        precision: precision of the networks.
    """

    name = "simulated"

    def __init__(
        self, settings: SimulatedSettings | None = None, *, precision: Literal["fp32", "fp16"] = "fp32"
    ) -> None:
        self._settings = settings or SimulatedSettings()
        self._random = random.Random(self._settings.seed)
        self.precision: Literal["fp32", "fp16"] = precision
        self.settings = {name: str(value) for name, value in msgspec.structs.asdict(self._settings).items()}
        self.runtime = Runtime(name=self.name, version="1")
        self.clock, self.monitor = VirtualClock(), self
        self.device = Device(
            kind="gpu",
            name="simulated",
            cores=0,
            threads=0,
            isa=(),
            memory_mib=0,
            driver="",
            compute_capability="",
            os="simulated",
        )

    def compile(self, model: bytes | Lowered) -> "SimulatedNetwork":
        """Compute the latency of a network.

        Raises:
            BuildFailed: the data is not an ONNX model, or has no static shape.
        """
        return SimulatedNetwork(self, self.truth_us(Lowered.of(model).onnx))

    def truth_us(self, onnx: bytes) -> float:
        """Return the latency of a network on the undisturbed device in microseconds.

        Every convolution and matrix product takes the longer of its arithmetic, with channels rounded up to whole
        steps, and its memory traffic (Williams et al. 2009, "Roofline"); other operators count as fused into those. One
        launch and the conversion of the network's own input and output are added.

        Raises:
            BuildFailed: the data is not an ONNX model, or has no static shape.
        """
        settings = self._settings
        macs_per_us = settings.macs_per_us * (2 if self.precision == "fp16" else 1)
        operators, ends = _operator_costs(onnx, settings.step, 2 if self.precision == "fp16" else 4)
        us = sum(max(macs / macs_per_us, size / settings.bytes_per_us) for macs, size in operators)
        return settings.launch_us + us + ends / settings.bytes_per_us

    def read(self) -> Reading:
        """Read the current state."""
        hot, busy = self._in_window("throttle"), self._in_window("others")
        disturbed = [*(["thermal slowdown"] if hot else []), *(["1 more processes on the GPU"] if busy else [])]
        clocks = {
            "sm_mhz": 1500.0 / (1 + self._settings.throttle * hot),
            "temperature_c": 60.0 + 25 * hot,
            "other_processes": float(busy),
        }
        return Reading(clocks=clocks, disturbed=tuple(disturbed))

    def sample(self, truth_us: float) -> float:
        """Return the latency of one inference in microseconds, and advance the clock by it."""
        settings, draw = self._settings, self._random
        wave = -math.sin(2 * math.pi * self.clock.now_us / (settings.drift_period_s * 1e6))
        slow = (1 + settings.drift * max(0.0, wave)) * (1 + settings.throttle * self._in_window("throttle"))
        us = (
            truth_us
            * slow
            * (1 + settings.others * self._in_window("others"))
            * math.exp(draw.gauss(0.0, settings.noise))
        )
        if settings.spikes and draw.random() < settings.spikes:
            us *= draw.uniform(2, 10)
        self.clock.advance(us)
        return us

    def _in_window(self, what: Literal["throttle", "others"]) -> bool:
        """Return whether it is time for a disturbance, which starts at a random moment of each turn."""
        settings, now_s = self._settings, self.clock.now_us / 1e6
        slowdown, every_s, for_s = (getattr(settings, f"{what}{suffix}") for suffix in ("", "_every_s", "_for_s"))
        if not slowdown:
            return False
        turn = math.floor(now_s / every_s)
        start_s = turn * every_s + random.Random(f"{settings.seed} {what} {turn}").uniform(0, max(0.0, every_s - for_s))
        return start_s <= now_s < start_s + for_s


class SimulatedNetwork:
    """A network on a simulated device."""

    def __init__(self, device: Simulated, truth_us: float) -> None:
        self._device, self._truth_us = device, truth_us

    def run(self, count: int) -> list[float]:
        """Run `count` inferences; return the latency of each in microseconds."""
        return [self._device.sample(self._truth_us) for _ in range(count)]

    def __enter__(self) -> "SimulatedNetwork":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


def _operator_costs(onnx: bytes, step: int, element_bytes: int) -> tuple[list[tuple[float, float]], float]:
    """Return MACs (channels in whole steps) and traffic in bytes of each Conv, Gemm and MatMul, and the ends' bytes."""
    from onnx import load_from_string, shape_inference

    require_static(onnx)
    try:
        graph = shape_inference.infer_shapes(load_from_string(onnx), strict_mode=True).graph
    except shape_inference.InferenceError as error:
        raise BuildFailed(one_line(error)) from error
    shapes = {value.name: _shape(value) for value in (*graph.input, *graph.value_info, *graph.output)}
    shapes |= {tensor.name: list(tensor.dims) for tensor in graph.initializer}

    def up(channels: int) -> int:
        return -(-channels // step) * step

    operators: list[tuple[float, float]] = []
    for node in graph.node:
        attributes = {attribute.name: attribute for attribute in node.attribute}
        if node.op_type == "Conv":
            out, weight = shapes[node.output[0]], shapes[node.input[1]]
            groups = attributes["group"].i if "group" in attributes else 1
            # A depthwise convolution has one channel per group, so its steps consist of groups.
            channels = up(weight[0]) * (up(weight[1]) if groups == 1 else weight[1])
            macs = channels * math.prod(weight[2:]) * math.prod(out[2:])
        elif node.op_type in ("Gemm", "MatMul"):
            out, weight = shapes[node.output[0]], shapes[node.input[1]]
            inner = weight[1] if "transB" in attributes and attributes["transB"].i else weight[-2]
            macs = math.prod(out[:-1]) * up(out[-1]) * up(inner)
        else:
            continue
        sizes = (math.prod(shapes[name]) for name in (node.input[0], node.input[1], node.output[0]))
        operators.append((float(macs), float(element_bytes * sum(sizes))))
    weights = {tensor.name for tensor in graph.initializer}
    ends = [shapes[value.name] for value in (*graph.input, *graph.output) if value.name not in weights]
    return operators, float(element_bytes * sum(map(math.prod, ends)))


def _shape(value: "ValueInfoProto") -> list[int]:
    return [dim.dim_value for dim in value.type.tensor_type.shape.dim]
