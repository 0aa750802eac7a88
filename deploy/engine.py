"""Compile ONNX for a target and run it there for its outputs and latency, through `latency.backends`."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from deploy import graph, sessions
from deploy.bundle import TIMING_CACHE, Target
from deploy.errors import DeployError
from deploy.graph import Precision
from deploy.narrow import BF16
from deploy.samples import Tensors, calls_of, inputs_of, outputs_of
from deploy.shapes import Span, shapes_at
from latency import Device, Measurement, Protocol, Runtime
from latency.backends.engines import EngineSpec, TimingCache, build_engine
from latency.backends.engines import require_options as require_build_options
from latency.backends.onnxruntime import OnnxRuntime
from latency.backends.tensorrt import TensorRT
from latency.errors import BuildFailed, DeviceUnavailable, MissingExtra, RunFailed, import_extra
from latency.measure import Timed, measure, summarize

TARGETS: dict[Target, Precision] = {"onnxruntime": "fp32", "tensorrt": "fp16", "tensorrt-rtx": "fp16"}
"""Every target with its default precision."""

_TENSORRT = ("float32", "float16", "int64", "int32", "int8", "uint8", "bool")
"""Input and output types supported by TensorRT."""

MIN_ROUNDS, MAX_ROUNDS = 5, 20


def target_of(name: str) -> Target:
    """Return a target by its name.

    Raises:
        DeployError: the name is unknown; lists the known ones.
    """
    for target in TARGETS:
        if target == name:
            return target
    raise DeployError(f"target {name!r} is unknown: choose one of {', '.join(TARGETS)}")


def build(
    model: bytes,
    target: Target,
    spec: EngineSpec,
    timing_cache: TimingCache | None = None,
    on_progress: Callable[[str], None] | None = None,
    spans: Mapping[str, Span] | None = None,
) -> bytes:
    """Build the engine of a target; empty for onnxruntime, which runs the ONNX itself.

    Args:
        model: serialised ONNX.
        target: target of the engine.
        spec: build options.
        timing_cache: cache used and filled by TensorRT's builder.
        on_progress: called with the builder's current step.
        spans: spans of inputs with several shapes.

    Raises:
        DeployError: the target does not support the type of an input or output; names it.
        LatencyError: the target's package is missing, its compiler rejects the network, or it needs a GPU and there is
            none.
    """
    if target == "onnxruntime":
        return b""
    spans = spans or {}
    parsed = graph.parse_model(graph.freeze(model, shapes_at(spans, "opt")))
    for kind, values in (("input", inputs_of(parsed)), ("output", outputs_of(parsed))):
        if stranger := next((value for value in values if value.dtype not in _TENSORRT), None):
            raise DeployError(
                f"{kind} {stranger.name!r} is {stranger.dtype}, {target} takes {', '.join(_TENSORRT)}: change its "
                "type, or ship it by "
                "--target onnxruntime"
            )
    try:
        shapes = {name: (span.min, span.opt, span.max) for name, span in spans.items()}
        return build_engine(model, target, spec, timing_cache, on_progress, shapes, detailed=True)
    except BuildFailed as error:
        raise BuildFailed(f"{error}: change the network there, or ship it by --target onnxruntime") from error


def require_options(target: Target, spec: EngineSpec | None, timing_cache: str | Path | None, builds: int = 1) -> None:
    """Require that builds for a target support the given options, None if not given; needs no network.

    Raises:
        DeployError: an option is not supported, or the timing cache does not exist.
        LatencyError: the target's builder does not support an option of `spec`, or is missing.
    """
    if builds < 1:
        raise DeployError(f"builds must be at least 1, found {builds}")
    if target == "onnxruntime":
        if (spec, timing_cache, builds) != (None, None, 1):
            raise DeployError(
                "target 'onnxruntime' builds no engine: leave out the options of its build, or choose tensorrt or "
                "tensorrt-rtx"
            )
        return
    require_build_options(target, spec or EngineSpec())
    if timing_cache is not None and target != "tensorrt":
        raise DeployError(
            f"timing cache {timing_cache}: the builder of {target} measures nothing: leave it out, or choose tensorrt"
        )
    if timing_cache is not None and not Path(timing_cache).is_file():
        raise DeployError(
            f"timing cache {timing_cache} does not exist: give the {TIMING_CACHE} of an earlier bundle, or leave it out"
        )


def timing_cache_of(target: Target, path: str | Path | None) -> TimingCache | None:
    """Return the initial timing cache of builds for a target, from a file or empty.

    None if the builder measures nothing.
    """
    return TimingCache(path) if target == "tensorrt" else None


def runtime_of(target: Target) -> Runtime:
    """Return the installed runtime of a target; needs no GPU.

    Raises:
        MissingExtra: the runtime is not installed.
    """
    module = import_extra(target.replace("-", "_"), "" if target == "onnxruntime" else target)
    return Runtime(name=target, version=module.__version__)


@dataclass(frozen=True)
class Running:
    """A network running on its target."""

    device: Device
    runtime: Runtime
    timed: Timed
    outputs: Callable[[Tensors], Tensors]
    """maps the inputs of all calls by name, each [calls, *shape], to their outputs by name"""
    information: Callable[[], str] | None = None
    """returns the inspector's JSON of the engine's layers; None if there is no engine"""


@contextlib.contextmanager
def running(
    target: Target,
    model: bytes,
    engine: bytes,
    *,
    threads: int = 1,
    spec: EngineSpec | None = None,
    timed_on: Mapping[str, np.ndarray] | None = None,
    usual: Mapping[str, Sequence[int]] | None = None,
    refuse: Callable[[Device, Runtime], str] = lambda *_: "",
) -> Iterator[Running | str]:
    """Start a network on its target, and release its resources at the end.

    Args:
        target: target that runs the network.
        model: serialised ONNX.
        engine: engine as returned by `build`.
        threads: number of threads of ONNX Runtime.
        spec: options with which the engine was built; None for the defaults.
        timed_on: inputs by name for timing; None for random ones, which may be invalid as indices.
        usual: shapes for timing of the inputs with several shapes.
        refuse: returns why a device and runtime cannot load the engine; "" if they can.

    Yields:
        The running network, or why this machine cannot run it: the device is missing, or the runtime's message if it
        rejects the network.
    """
    try:
        if target == "onnxruntime":
            backend, information = OnnxRuntime(threads), None
            compiled, outputs = backend.compile(graph.freeze(model, usual or {})), onnx_runner(model, threads)
            if timed_on is not None:
                compiled.bind(timed_on)
        else:
            backend = TensorRT(target, spec=spec)
            if reason := refuse(backend.device, backend.runtime):
                raise RunFailed(reason)
            compiled = backend.load(engine)
            information = compiled.information
            outputs = _by_call(compiled.infer, model)
            if timed_on is not None:
                compiled.infer(timed_on)  # timing reads the inputs that were uploaded last
    except (BuildFailed, DeviceUnavailable, MissingExtra, RunFailed) as error:
        yield str(error)
        return
    with compiled:
        yield Running(
            device=backend.device, runtime=backend.runtime, timed=compiled, outputs=outputs, information=information
        )


def onnx_runner(model: bytes, threads: int = 1, *, plain: bool = False) -> Callable[[Tensors], Tensors]:
    """Return a function that runs a model in ONNX Runtime on the CPU on the inputs of all calls.

    `plain` as in `sessions.start_session`.

    The function raises CannotRun if there is no kernel for an operator, and DeployError if the model is rejected.
    """

    @functools.cache
    def session() -> onnxruntime.InferenceSession:
        return sessions.start_session(model, threads, plain=plain)

    def infer(inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        return sessions.run_session(session(), inputs)

    return _by_call(infer, model)


def int8_runner(model: bytes, target: Target, threads: int = 1) -> Callable[[Tensors], Tensors]:
    """Like `onnx_runner`, for a quantised model.

    With INT8 kernels if the target is ONNX Runtime, otherwise by its operators' definitions.

    ONNX Runtime fuses quantised operators into INT8 kernels, which saturate on some CPUs; no other target does so.
    """
    return onnx_runner(model, threads, plain=target != "onnxruntime")


SATURATES = (
    "INT8 kernels of ONNX Runtime saturate on CPUs without VNNI: quantise with reduce_range, or ship for another target"
)


def half_runner(model: bytes, threads: int = 1) -> Callable[[Tensors], Tensors]:
    """Like `onnx_runner`, for a model in half precision or bfloat16: operator by operator, rounding each result.

    Given the whole graph on a CPU, ONNX Runtime computes it in float32 throughout, which hides overflows.
    """
    steps = Steps(model, threads)

    def infer(inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        values = steps.constants | dict(inputs)
        return values | {name: value for name, value in steps.values(inputs) if name in steps.outputs}

    return _by_call(infer, model)


class Steps:
    """A network run operator by operator.

    Args:
        model: serialised ONNX, checked.
        threads: number of threads of ONNX Runtime.
    """

    def __init__(self, model: bytes, threads: int = 1) -> None:
        self._model, self._threads = onnx.load_from_string(model), threads
        self._rounded = _widen(self._model)
        graph = self._model.graph
        self.outputs = {value.name for value in graph.output}
        self.names = [name for node in graph.node for name in node.output if name]
        """names of all values, in the order in which they are computed"""
        self.constants = {
            tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer if tensor.name in self.outputs
        }
        self._typed = _typed(graph)
        self._last = {name: number for number, node in enumerate(graph.node) for name in node.input}

    @functools.cached_property
    def _parts(self) -> list[onnxruntime.InferenceSession]:
        return [sessions.start_session(part.SerializeToString(), self._threads) for part in _operators(self._model)]

    def values(self, inputs: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
        """Yield every value by name as it is computed; each is released after the last operator that reads it.

        Raises:
            CannotRun: there is no kernel for an operator.
            DeployError: an operator is rejected or fails.
            RunFailed: the run exceeds the time limit.
        """
        kept = self._typed(inputs)
        with sessions.limit() as options:
            for number, session in enumerate(self._parts):
                read = [value.name for value in session.get_inputs()]
                made = sessions.run_session(session, {name: kept[name] for name in read}, options)
                for name in self._rounded & made.keys():
                    made[name] = made[name].astype(BF16.dtype).astype(np.float32)
                yield from made.items()
                kept |= {name: value for name, value in made.items() if name in self._last}
                for name in read:
                    if self._last[name] == number:
                        del kept[name]


def _widen(model: onnx.ModelProto) -> set[str]:
    """Turn bfloat16 values into float32, for which ONNX Runtime has CPU kernels.

    Return the names of the values to round.
    """
    body = model.graph
    values = [value for value in (*body.value_info, *body.output) if value.type.tensor_type.elem_type == BF16.kind]
    for value in values:
        value.type.tensor_type.elem_type = TensorProto.FLOAT
    for tensor in body.initializer:
        if tensor.data_type == BF16.kind:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    for attribute in (attribute for node in body.node if node.op_type == "Cast" for attribute in node.attribute):
        if attribute.name == "to" and attribute.i == BF16.kind:
            attribute.i = TensorProto.FLOAT
    return {value.name for value in values}


def _operators(model: onnx.ModelProto) -> Iterator[onnx.ModelProto]:
    """Yield each operator of a graph with known shapes as a separate model, its attributes as they are."""
    body = model.graph
    weights = {value.name: value for value in body.initializer}
    values = {value.name: value for value in (*body.input, *body.value_info, *body.output)}
    for node in body.node:
        read = [name for name in dict.fromkeys(node.input) if name]
        part = onnx.helper.make_graph(
            [node],
            node.name,
            [values[name] for name in read if name not in weights],
            [values[name] for name in node.output if name],
            [weights[name] for name in read if name in weights],
        )
        yield onnx.helper.make_model(part, opset_imports=list(model.opset_import), ir_version=model.ir_version)


def measure_in_turns(
    networks: Mapping[str, Timed], protocol: Protocol, on_step: Callable[[str], None] = lambda _: None
) -> dict[str, Measurement]:
    """Measure several networks in one run.

    A few samples of each in turn, so that all see the same state of the machine.

    Each round measures each network with a fifth of the protocol, alternating between the given order and its reverse;
    in the first round, each is run until stationary, as defined by the protocol. There are at least 5 rounds, and up to
    20 until every network's combined samples are stable. `on_step` is called after each round with its number, such as
    "measure 2/5".

    Raises:
        RunFailed: a runtime fails.
    """
    part = msgspec.structs.replace(
        protocol,
        min_samples=-(-protocol.min_samples // MIN_ROUNDS),
        max_samples=-(-protocol.max_samples // MIN_ROUNDS),
        min_time_ms=protocol.min_time_ms / MIN_ROUNDS,
        max_time_ms=protocol.max_time_ms / MIN_ROUNDS,
        settle_runs=0,
    )
    settling = msgspec.structs.replace(part, settle_runs=protocol.settle_runs, max_time_ms=protocol.max_time_ms)
    samples_us: dict[str, list[float]] = {name: [] for name in networks}
    order = list(networks)
    for done in range(1, MAX_ROUNDS + 1):
        for name in order:
            samples_us[name] += measure(networks[name], settling if done == 1 else part).samples_us
        order.reverse()
        on_step(f"measure {done}/{MIN_ROUNDS if done <= MIN_ROUNDS else MAX_ROUNDS}")
        if done >= MIN_ROUNDS:
            measurements = {name: summarize(samples, protocol) for name, samples in samples_us.items()}
            if done == MAX_ROUNDS or all(measurement.status == "ok" for measurement in measurements.values()):
                return measurements
    raise AssertionError("the last round returns")


def _typed(body: onnx.GraphProto) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]:
    """Return a function that casts floating-point inputs to a graph's input types, which differ between its forms."""
    kinds = {value.name: helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type) for value in body.input}

    def typed(call: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {
            name: value.astype(kinds[name], copy=False) if value.dtype.kind == "f" and name in kinds else value
            for name, value in call.items()
        }

    return typed


def _by_call(
    infer: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]], model: bytes
) -> Callable[[Tensors], Tensors]:
    """Return a function that feeds each call to a network in its input types and stacks the outputs."""
    body = onnx.load_from_string(model).graph
    names, typed = [value.name for value in body.output], _typed(body)

    def run(inputs: Tensors) -> Tensors:
        outputs_of_calls = [infer(typed(call)) for call in calls_of(inputs)]
        return {name: np.stack([outputs[name] for outputs in outputs_of_calls]) for name in names}

    return run
