"""What goes into a graph and comes out of it: names, types and shapes, and samples of it, call by call."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from jaxtyping import Shaped
from onnx import TensorProto, helper

from deploy.errors import DeployError, LoweringError

RANDOM_SAMPLES = 8
"""Samples that are drawn where none are given, at least; whole calls, and at least two."""

DTYPES: dict[int, str] = {
    kind: np.dtype(helper.tensor_dtype_to_np_dtype(kind)).name
    for kind in (
        *(TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BOOL),
        *(TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64),
        *(TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64),
    )
}
"""Types of inputs and outputs, by ONNX's numbers: those that numpy and safetensors have, too."""

Tensors = Mapping[str, Shaped[np.ndarray, "calls ..."]]
"""Inputs or outputs by name: whole ones, whatever their shape, one for each call of the network."""


def calls_of(inputs: Tensors) -> Iterator[dict[str, np.ndarray]]:
    """The inputs of each call by name; one without dimensions stays an array."""
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
    """The inputs of a checked model.

    Raises:
        LoweringError: one is not a tensor of numbers that numpy has; it is named.
    """
    return tuple(_value("input", value) for value in model.graph.input)


def outputs_of(model: onnx.ModelProto) -> tuple[TensorSpec, ...]:
    """The outputs of a checked model.

    Raises:
        LoweringError: as `inputs_of`.
    """
    return tuple(_value("output", value) for value in model.graph.output)


def _value(kind: str, value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    if tensor.elem_type not in DTYPES:
        found = TensorProto.DataType.Name(tensor.elem_type).lower() if tensor.elem_type else value.type.WhichOneof("value") or "untyped"
        raise LoweringError(f"{kind} {value.name!r} is {found}: tensors of {', '.join(DTYPES.values())} can be shipped")
    return TensorSpec(value.name, DTYPES[tensor.elem_type], tuple(dim.dim_value for dim in tensor.shape.dim))


@dataclass(frozen=True)
class Samples:
    """What a network is run on.

    Attributes:
        inputs: whole inputs as the network takes them, [calls, *shape] of each.
        batch: samples in a call: the first dimension of the first input; 1 where that is a number.
        count: samples in all calls; the last call may be filled up with its own first sample.
    """

    inputs: Tensors
    batch: int
    count: int

    @property
    def calls(self) -> int:
        """How often the network is run."""
        return len(next(iter(self.inputs.values())))

    def joined(self, outputs: Shaped[np.ndarray, "calls batch ..."]) -> Shaped[np.ndarray, "samples ..."]:
        """What the network gives for each sample, of what it gives call by call, each with the batch as its first dimension."""
        return outputs.reshape(-1, *outputs.shape[2:])[: self.count]

    def rounded(self, dtype: type[np.floating]) -> "Samples":
        """The same samples with floating-point values that a narrower type has; they keep their own type.

        Raises:
            DeployError: a value is beyond the narrower type.
        """
        inputs = {}
        for name, values in self.inputs.items():
            with np.errstate(over="ignore"):
                inputs[name] = values.astype(dtype).astype(values.dtype) if values.dtype.kind == "f" else values
            if values.dtype.kind == "f" and not np.isfinite(inputs[name]).all():
                raise DeployError(f"samples of {name} reach {np.abs(values).max():.4g}, more than {np.dtype(dtype)} has: give io fp32")
        return Samples(inputs, self.batch, self.count)

    def call(self, number: int) -> dict[str, np.ndarray]:
        """The inputs of one call."""
        return {name: values[number, ...] for name, values in self.inputs.items()}

    def first(self, count: int) -> "Samples":
        """At most so many samples, but at least one call."""
        calls = max(1, count // self.batch)
        inputs = {name: values[:calls] for name, values in self.inputs.items()}
        return Samples(inputs, self.batch, min(self.count, calls * self.batch))


def samples_of(given: Any, inputs: Sequence[TensorSpec]) -> Samples:
    """Samples as the network takes them.

    Args:
        given: an array, or of each input an array, by name or as a tuple in their order: either whole inputs, [calls, *shape], or samples
            joined along the first dimension, [samples, *shape[1:]], which are then split into calls.
        inputs: of the network.

    Raises:
        DeployError: they do not fit; says which input takes what.
    """
    if isinstance(given, Samples):
        return given
    if isinstance(given, tuple) and len(given) == len(inputs):
        given = dict(zip((value.name for value in inputs), given, strict=True))
    if not isinstance(given, Mapping):
        if len(inputs) != 1:
            raise DeployError(f"the network has {len(inputs)} inputs, {_names(inputs)}: give samples of each by its name")
        given = {inputs[0].name: given}
    if given.keys() != {value.name for value in inputs}:
        raise DeployError(f"samples are of {', '.join(map(str, given)) or 'nothing'}, the network's inputs are {_names(inputs)}")
    batch = next((value.shape[0] for value in inputs[:1] if value.shape), 1)
    arrays = {value.name: _array(given[value.name], value) for value in inputs}
    joined = {value.name: len(arrays[value.name]) for value in inputs if arrays[value.name].ndim == len(value.shape) > 0}
    made = {value.name: _calls(arrays[value.name], value) for value in inputs}
    calls = {name: len(values) for name, values in made.items()}
    if len(set(calls.values())) != 1 or 0 in calls.values() or len(set(joined.values())) > 1:
        counts = ", ".join(f"{len(arrays[name])} of {name}" for name in arrays)
        raise DeployError(f"samples: as many of every input are needed, at least 1; found {counts}")
    return Samples(made, batch, next(iter(joined.values()), next(iter(calls.values())) * batch))


def random_samples(inputs: Sequence[TensorSpec], examples: Mapping[str, np.ndarray] | None = None) -> Samples:
    """Seeded random samples: normal for floating types; for others what the example has, or whole numbers that index anything.

    Args:
        inputs: of the network.
        examples: a valid input of each name. What is not floating may be an index or a mask, so a valid one is taken as it is.
    """
    rng = np.random.default_rng(0)
    batch = next((value.shape[0] for value in inputs[:1] if value.shape), 1)
    calls = max(2, -(-RANDOM_SAMPLES // batch))
    made = {value.name: _drawn(rng, calls, value, (examples or {}).get(value.name)) for value in inputs}
    return Samples(made, batch, calls * batch)


def resized(samples: Samples, inputs: Sequence[TensorSpec]) -> Samples:
    """Samples for inputs of other sizes: the same ones where the batch alone differs, and that in every input; random ones elsewhere.

    Args:
        samples: of the same inputs with their usual sizes.
        inputs: with the sizes that are wanted.
    """
    batches = {value.shape[:1] for value in inputs}
    alike = all(value.shape and samples.inputs[value.name].shape[1:] == (samples.batch, *value.shape[1:]) for value in inputs)
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


def _array(given: Any, value: TensorSpec) -> np.ndarray:
    """Numbers in the type of an input, of one of the shapes that fit it."""
    try:
        found = np.asarray(given)
    except (TypeError, ValueError) as error:
        raise DeployError(f"samples of {value.name} are not numbers in one array: {str(error).splitlines()[0]}") from error
    if found.dtype.kind not in "biuf":
        raise DeployError(f"samples of {value.name} are {found.dtype}, the network takes {value}")
    rank = len(value.shape)
    whole, joined = found.shape[1:] == value.shape and found.ndim == rank + 1, 0 < rank == found.ndim and found.shape[1:] == value.shape[1:]
    if not found.size or not (whole or joined):
        joined_shape = f"[{', '.join(map(str, ('samples', *value.shape[1:])))}] or " if rank else ""
        wanted = f"{joined_shape}[{', '.join(map(str, ('calls', *value.shape)))}]"
        raise DeployError(f"samples of {value.name} have shape {list(found.shape)}, the network takes {wanted}")
    with np.errstate(over="ignore", invalid="ignore"):
        made = found.astype(value.dtype)
    if not np.isfinite(made if made.dtype.kind == "f" else found).all():
        raise DeployError(
            f"samples of {value.name} contain values that are infinite or not a number as {value.dtype}: look at the preprocessing"
        )
    if made.dtype.kind in "biu" and not np.array_equal(made, found):
        raise DeployError(
            f"samples of {value.name}, {found.dtype} from {found.min()} to {found.max()}, are not {value.dtype}: convert them"
        )
    return made


def _calls(array: np.ndarray, value: TensorSpec) -> np.ndarray:
    """[calls, *shape]; of joined samples the last call is filled up with its own first sample."""
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
