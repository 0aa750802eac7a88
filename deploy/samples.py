"""Inputs and outputs of a graph: names, types and shapes, and samples for each call."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from jaxtyping import Shaped
from onnx import TensorProto, helper

from deploy.errors import DeployError, LoweringError

RANDOM_SAMPLES = 8
"""Minimum number of samples drawn if none are given; whole calls, and at least two."""

DTYPES: dict[int, str] = {
    kind: np.dtype(helper.tensor_dtype_to_np_dtype(kind)).name
    for kind in (
        *(TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BOOL),
        *(TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64),
        *(TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64),
    )
}
"""Supported types of inputs and outputs by ONNX element type: those that numpy and safetensors also have."""

Tensors = Mapping[str, Shaped[np.ndarray, "calls ..."]]
"""Inputs or outputs by name, of any shape, stacked over the calls of the network."""


def calls_of(inputs: Tensors) -> Iterator[dict[str, np.ndarray]]:
    """Yield the inputs of each call by name; inputs without dimensions remain arrays."""
    for call in range(min(map(len, inputs.values()))):
        yield {name: values[call, ...] for name, values in inputs.items()}


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a network."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


def inputs_of(model: onnx.ModelProto) -> tuple[TensorSpec, ...]:
    """Return the inputs of a checked model.

    Raises:
        LoweringError: an input is not a tensor of a supported type; names it.
    """
    return tuple(_value("input", value) for value in model.graph.input)


def outputs_of(model: onnx.ModelProto) -> tuple[TensorSpec, ...]:
    """Return the outputs of a checked model.

    Raises:
        LoweringError: as `inputs_of`.
    """
    return tuple(_value("output", value) for value in model.graph.output)


def _value(kind: str, value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    if tensor.elem_type not in DTYPES:
        type_name = (
            TensorProto.DataType.Name(tensor.elem_type).lower()
            if tensor.elem_type
            else value.type.WhichOneof("value") or "untyped"
        )
        raise LoweringError(
            f"{kind} {value.name!r} is {type_name}: tensors of {', '.join(DTYPES.values())} can be shipped"
        )
    return TensorSpec(value.name, DTYPES[tensor.elem_type], tuple(dim.dim_value for dim in tensor.shape.dim))


@dataclass(frozen=True)
class Samples:
    """Inputs on which a network is run.

    Attributes:
        inputs: the network's inputs by name, each [calls, *shape].
        batch: number of samples per call: the first dimension of the first input; 1 if that is a scalar.
        count: number of samples in all calls; the last call may be padded with its own first sample.
    """

    inputs: Tensors
    batch: int
    count: int

    @property
    def calls(self) -> int:
        """Number of calls of the network."""
        return len(next(iter(self.inputs.values())))

    def joined(self, outputs: Shaped[np.ndarray, "calls batch ..."]) -> Shaped[np.ndarray, "samples ..."]:
        """Return the outputs of each sample from those of each call, which have the batch as their first dimension."""
        return outputs.reshape(-1, *outputs.shape[2:])[: self.count]

    def rounded(self, dtype: type[np.floating]) -> "Samples":
        """Return the samples with floating-point values rounded to a narrower type, in their own type.

        Raises:
            DeployError: a value exceeds the range of the narrower type.
        """
        inputs = {}
        for name, values in self.inputs.items():
            with np.errstate(over="ignore"):
                inputs[name] = values.astype(dtype).astype(values.dtype) if values.dtype.kind == "f" else values
            if values.dtype.kind == "f" and not np.isfinite(inputs[name]).all():
                raise DeployError(
                    f"samples of {name} reach {np.abs(values).max():.4g}, more than {np.dtype(dtype)} has: give io fp32"
                )
        return Samples(inputs, self.batch, self.count)

    def call(self, number: int) -> dict[str, np.ndarray]:
        """Return the inputs of one call."""
        return {name: values[number, ...] for name, values in self.inputs.items()}

    def first(self, count: int) -> "Samples":
        """Return the first samples, at most `count`, but at least one call."""
        calls = max(1, count // self.batch)
        inputs = {name: values[:calls] for name, values in self.inputs.items()}
        return Samples(inputs, self.batch, min(self.count, calls * self.batch))


def samples_of(given: object, inputs: Sequence[TensorSpec]) -> Samples:
    """Return samples in the form of the network's inputs.

    Args:
        given: an array, or an array per input, by name or as a tuple in their order: either whole inputs, [calls,
            *shape], or samples joined along the first dimension, [samples, *shape[1:]], which are split into calls.
        inputs: inputs of the network.

    Raises:
        DeployError: the samples do not fit; names the input and what it takes.
    """
    if isinstance(given, Samples):
        return given
    if isinstance(given, tuple) and len(given) == len(inputs):
        given = dict(zip((value.name for value in inputs), given, strict=True))
    if not isinstance(given, Mapping):
        if len(inputs) != 1:
            raise DeployError(
                f"the network has {len(inputs)} inputs, {_names(inputs)}: give samples of each by its name"
            )
        given = {inputs[0].name: given}
    if given.keys() != {value.name for value in inputs}:
        raise DeployError(
            f"samples are of {', '.join(map(str, given)) or 'nothing'}, the network's inputs are {_names(inputs)}"
        )
    batch = next((value.shape[0] for value in inputs[:1] if value.shape), 1)
    arrays = {value.name: _array(given[value.name], value) for value in inputs}
    joined = {
        value.name: len(arrays[value.name]) for value in inputs if arrays[value.name].ndim == len(value.shape) > 0
    }
    made = {value.name: _calls(arrays[value.name], value) for value in inputs}
    calls = {name: len(values) for name, values in made.items()}
    if len(set(calls.values())) != 1 or 0 in calls.values() or len(set(joined.values())) > 1:
        counts = ", ".join(f"{len(arrays[name])} of {name}" for name in arrays)
        raise DeployError(f"samples: as many of every input are needed, at least 1; found {counts}")
    return Samples(made, batch, next(iter(joined.values()), next(iter(calls.values())) * batch))


def random_samples(inputs: Sequence[TensorSpec], examples: Mapping[str, np.ndarray] | None = None) -> Samples:
    """Return seeded random samples: normal for floating-point types.

    For others, the example, or whole numbers valid as any index.

    Args:
        inputs: inputs of the network.
        examples: valid inputs by name. Inputs of other types may be indices or masks, so their examples are used
            unchanged.
    """
    rng = np.random.default_rng(0)
    batch = next((value.shape[0] for value in inputs[:1] if value.shape), 1)
    calls = max(2, -(-RANDOM_SAMPLES // batch))
    made = {value.name: _drawn(rng, calls, value, (examples or {}).get(value.name)) for value in inputs}
    return Samples(made, batch, calls * batch)


def resized(samples: Samples, inputs: Sequence[TensorSpec]) -> Samples:
    """Return samples for inputs of other sizes: the same ones if only the batch differs, in every input.

    Otherwise random ones.

    Args:
        samples: samples of the same inputs at their usual sizes.
        inputs: the inputs at the desired sizes.
    """
    batches = {value.shape[:1] for value in inputs}
    alike = all(
        value.shape and samples.inputs[value.name].shape[1:] == (samples.batch, *value.shape[1:]) for value in inputs
    )
    if not alike or len(batches) > 1:
        return random_samples(inputs)
    joined = {name: samples.joined(values) for name, values in samples.inputs.items()}
    return samples_of(joined, inputs)


def _drawn(rng: np.random.Generator, calls: int, value: TensorSpec, example: np.ndarray | None) -> np.ndarray:
    shape, dtype = (calls, *value.shape), np.dtype(value.dtype)
    if dtype.kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    if example is not None:
        return np.repeat(np.asarray(example, dtype)[None], calls, axis=0)
    return rng.integers(0, 256 if value.dtype == "uint8" else 2, shape).astype(dtype)


def _array(given: object, value: TensorSpec) -> np.ndarray:
    """Return samples as an array in the type of an input, in one of the shapes that fit it."""
    try:
        array = np.asarray(given)
    except (TypeError, ValueError) as error:
        raise DeployError(
            f"samples of {value.name} are not numbers in one array: {str(error).splitlines()[0]}"
        ) from error
    if array.dtype.kind not in "biuf":
        raise DeployError(f"samples of {value.name} are {array.dtype}, the network takes {value}")
    rank = len(value.shape)
    whole_inputs, joined_samples = (
        array.shape[1:] == value.shape and array.ndim == rank + 1,
        0 < rank == array.ndim and array.shape[1:] == value.shape[1:],
    )
    if not array.size or not (whole_inputs or joined_samples):
        joined_shape = f"[{', '.join(map(str, ('samples', *value.shape[1:])))}] or " if rank else ""
        wanted = f"{joined_shape}[{', '.join(map(str, ('calls', *value.shape)))}]"
        raise DeployError(f"samples of {value.name} have shape {list(array.shape)}, the network takes {wanted}")
    with np.errstate(over="ignore", invalid="ignore"):
        made = array.astype(value.dtype)
    if not np.isfinite(made if made.dtype.kind == "f" else array).all():
        raise DeployError(
            f"samples of {value.name} contain values that are infinite or not a number as {value.dtype}: look at the "
            "preprocessing"
        )
    if made.dtype.kind in "biu" and not np.array_equal(made, array):
        raise DeployError(
            f"samples of {value.name}, {array.dtype} from {array.min()} to {array.max()}, are not {value.dtype}: "
            "convert them"
        )
    return made


def _calls(array: np.ndarray, value: TensorSpec) -> np.ndarray:
    """Return an array [calls, *shape]; the last call of joined samples is padded with its own first sample."""
    if array.ndim > len(value.shape):
        return array
    batch = value.shape[0]
    short = -len(array) % batch
    if short:
        start = len(array) // batch * batch
        array = np.concatenate([array, np.repeat(array[start : start + 1], short, axis=0)])
    return array.reshape(-1, *value.shape)


def _names(values: Iterable[TensorSpec]) -> str:
    return ", ".join(value.name for value in values)
