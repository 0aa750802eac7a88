"""Adapt any module to one that takes and returns only tensors.

Other arguments and type conversions stay outside the graph.
"""

import copy
import inspect
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.module_tracker import ModuleTracker

from deploy.errors import DeployError, LoweringError
from deploy.graph import first_line
from deploy.samples import DTYPES, Tensors, TensorSpec, calls_of
from reparam.equivalence import arithmetic
from reparam.exported import RUN_ERRORS
from reparam.structure import leaves, map_tensors


@dataclass(frozen=True)
class ModuleCall:
    """How a module is called: its arguments, and the names of the tensors among them."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    names: tuple[str, ...]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Copies of the tensors among the arguments, since a network may overwrite them, in the order of `names`."""
        return tuple(leaf.clone() for _, leaf in leaves((self.args, self.kwargs)) if isinstance(leaf, Tensor))

    def filled(self, tensors: Iterable[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments with their tensors replaced by the given ones."""
        rest = iter(tensors)
        return map_tensors((self.args, dict(self.kwargs)), lambda _: next(rest))


def call_of(module: nn.Module, example: object) -> ModuleCall:
    """Return how a module is called with an example input.

    Args:
        module: the module to call.
        example: a tensor; a tuple of positional arguments; a mapping of keyword arguments; or, if it does not fit
            forward in this way, its single argument. Tensors may be nested in tuples, lists, mappings and dataclasses;
            all else is a constant of the network.

    Raises:
        DeployError: the example does not fit forward, has no tensors, or has one that is empty or of a type that cannot
            be shipped; names the tensor.
    """
    signature = inspect.signature(module.forward)
    ways: list[tuple[tuple[Any, ...], Mapping[str, Any]]] = [((example,), {})]
    if isinstance(example, Mapping):
        ways.insert(0, ((), {str(key): value for key, value in example.items()}))
    elif isinstance(example, tuple):
        ways.insert(0, (tuple(example), {}))
    arguments = next((bound for args, kwargs in ways if (bound := _bound(signature, args, kwargs))), None)
    if arguments is None:
        given = f"of {len(example)} parts" if isinstance(example, Mapping | tuple) else type(example).__name__
        raise DeployError(f"example_input {given} does not fit {type(module).__name__}.forward{signature}")
    named = [path for path, leaf in leaves(_by_parameter(arguments)) if isinstance(leaf, Tensor)]
    if not named:
        raise DeployError(
            f"example_input of {type(module).__name__} has no tensor in it: a network without inputs cannot be shipped"
        )
    plain = example is arguments.args[0] if arguments.args else False
    names = ("input",) if isinstance(example, Tensor) and plain else _distinct(".".join(path) for path in named)
    call = ModuleCall(arguments.args, arguments.kwargs, names)
    for name, tensor in zip(names, call.tensors, strict=True):
        _require_type("input", name, tensor)
        if not tensor.numel():
            raise DeployError(f"input {name!r} of shape {list(tensor.shape)} is empty: every size must be above 0")
    return call


def _bound(
    signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> inspect.BoundArguments | None:
    try:
        return signature.bind(*args, **kwargs)
    except TypeError:
        return None


def _by_parameter(bound: inspect.BoundArguments) -> dict[str, Any]:
    """Return the arguments by name, in the order of `args` and `kwargs`; those in `**kwargs` by their own names."""
    arguments: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        if bound.signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            arguments |= value
        else:
            arguments[name] = value
    return arguments


def _distinct(names: Iterable[str], taken: Iterable[str] = ()) -> tuple[str, ...]:
    distinct = list(taken)
    first = len(distinct)
    for name in names:
        unique = name
        while unique in distinct:
            unique += "_"
        distinct.append(unique)
    return tuple(distinct[first:])


def _require_type(kind: str, name: str, tensor: Tensor) -> None:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in DTYPES.values() or tensor.layout is not torch.strided:
        dtype = dtype if tensor.layout is torch.strided else f"sparse ({tensor.layout})"
        instead = ": give a float32 one, weights may be of any type" if dtype == "bfloat16" and kind == "input" else ""
        raise DeployError(
            f"{kind} {name!r} is {dtype}, dense tensors of {', '.join(DTYPES.values())} can be shipped{instead}"
        )


class Adapter(nn.Module):
    """A network that computes in one floating-point type, as a module from input tensors to a tuple of output tensors.

    Args:
        network: the network in evaluation mode, with weights of type `dtype`.
        call: how it is called.
        outputs: name and type of each output.
        dtype: type to which floating-point inputs are converted.
        exact: compute everything in `dtype`, even if the network's code names another type.
    """

    def __init__(
        self, network: nn.Module, call: ModuleCall, outputs: tuple[TensorSpec, ...], dtype: torch.dtype, *, exact: bool
    ) -> None:
        super().__init__()
        self.network, self.call, self.outputs, self.dtype, self.exact = network, call, outputs, dtype, exact

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs, in order."""
        return tuple(_value(name, tensor) for name, tensor in zip(self.call.names, self.call.tensors, strict=True))

    @property
    def examples(self) -> dict[str, np.ndarray]:
        """The example input, by name."""
        return {
            name: tensor.detach().cpu().numpy() for name, tensor in zip(self.call.names, self.call.tensors, strict=True)
        }

    def of(self, network: nn.Module, dtype: torch.dtype | None = None) -> "Adapter":
        """Return an adapter of another form of the network with weights of the given type.

        With float64, all arithmetic is float64.
        """
        dtype = dtype or self.dtype
        return Adapter(network.eval(), self.call, self.outputs, dtype, exact=self.exact or dtype == torch.float64)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs in the types in which they ship; if `dtype` is float64, unconverted."""
        args, kwargs = self.call.filled(
            tensor.to(self.dtype) if tensor.is_floating_point() else tensor for tensor in tensors
        )
        with arithmetic(self.dtype) if self.exact else nullcontext():
            outputs = [leaf for _, leaf in leaves(self.network(*args, **kwargs)) if isinstance(leaf, Tensor)]
        if self.dtype == torch.float64:
            return tuple(outputs)
        return tuple(
            tensor.to(getattr(torch, value.dtype)) for tensor, value in zip(outputs, self.outputs, strict=True)
        )

    def run(self, inputs: Tensors) -> Tensors:
        """Return the outputs of all calls, run one by one.

        Raises:
            DeployError: the network fails on a call; includes its own message.
        """
        try:
            with torch.no_grad():
                calls = [self(*(torch.tensor(call[name]) for name in self.call.names)) for call in calls_of(inputs)]
        except RUN_ERRORS as error:
            raise DeployError(f"{type(self.network).__name__} fails on the samples: {first_line(error)}") from error
        stacked = (np.stack([tensor.numpy() for tensor in output]) for output in zip(*calls, strict=True))
        return {value.name: output for value, output in zip(self.outputs, stacked, strict=True)}


def adapt(module: nn.Module, example: object) -> Adapter:
    """Return an adapter of a float32 copy of a module, which is run once unchanged to determine its outputs.

    Inputs and outputs keep the module's own types: a network in half precision takes and returns half precision.

    Raises:
        DeployError: `example` does not fit the module, one of its tensors has no data, or an output cannot be shipped;
            names it.
        LoweringError: the module cannot be run on the example.
    """
    call = call_of(module, example)
    if absent := next(
        (
            name
            for name, tensor in module.state_dict(keep_vars=True).items()
            if isinstance(tensor, Tensor) and tensor.is_meta
        ),
        None,
    ):
        raise DeployError(
            f"{absent!r} of {type(module).__name__} is on the device meta, where tensors have no numbers: load the "
            "weights first"
        )
    original, twin = (copy.deepcopy(module).cpu().eval() for _ in range(2))
    twin = twin.float()
    args, kwargs = map_tensors((call.args, call.kwargs), lambda tensor: tensor.detach().cpu())
    call = ModuleCall(args, kwargs, call.names)
    errors: list[Exception] = []
    # In its own type, which determines the types of its outputs; else in float32; else in float32 even if its code
    # names another type.
    for network, dtype, exact in ((original, None, False), (twin, torch.float32, False), (twin, torch.float32, True)):
        try:
            returned = _run_in(network, call, dtype, exact=exact)
        except RUN_ERRORS as error:
            if isinstance(error, DeployError):
                raise
            errors.append(error)
        else:
            break
    else:
        raise LoweringError(f"{type(module).__name__} cannot be run on example_input: {first_line(errors[0])}")
    adapter = Adapter(twin, call, _outputs(returned, call.names), torch.float32, exact=False)
    if not _can_run(adapter):
        adapter = Adapter(twin, call, adapter.outputs, torch.float32, exact=True)
    return adapter


def _run_in(network: nn.Module, call: ModuleCall, dtype: torch.dtype | None, *, exact: bool) -> Any:
    args, kwargs = call.filled(
        tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor for tensor in call.tensors
    )
    with torch.no_grad(), arithmetic(torch.float32) if exact else nullcontext():
        return network(*args, **kwargs)


def _can_run(adapter: Adapter) -> bool:
    try:
        with torch.no_grad():
            adapter(*adapter.call.tensors)
    except RUN_ERRORS:
        return False
    return True


def _outputs(returned: object, taken: tuple[str, ...]) -> tuple[TensorSpec, ...]:
    outputs = list(leaves(returned))
    prefix = (
        ""
        if isinstance(returned, Mapping) or hasattr(returned, "_fields") or hasattr(returned, "__dataclass_fields__")
        else "output"
    )
    alone = len(outputs) == 1 and prefix
    names = [prefix if alone else prefix + ".".join(path) or "output" for path, _ in outputs]
    if not names:
        raise DeployError("the network gives no tensor: None alone cannot be shipped")
    tensors: list[Tensor] = []
    for name, (_, leaf) in zip(names, outputs, strict=True):
        if not isinstance(leaf, Tensor):
            raise DeployError(
                f"output {name!r} is of type {type(leaf).__name__}: only tensors, in tuples, lists and dicts, can be "
                "shipped"
            )
        _require_type("output", name, leaf)
        tensors.append(leaf)
    return tuple(_value(name, tensor) for name, tensor in zip(_distinct(names, taken), tensors, strict=True))


def _value(name: str, tensor: Tensor) -> TensorSpec:
    return TensorSpec(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))


def require_deterministic(adapter: Adapter) -> None:
    """Require that a network is deterministic.

    Raises:
        DeployError: two runs differ; names the operator that draws random numbers and the module that calls it, if
            there is one.
    """
    outputs = [_drawn(adapter, seed) for seed in range(2)]
    if all(torch.equal(one.nan_to_num(), other.nan_to_num()) for one, other in zip(*outputs, strict=True)):
        return
    draws = list[tuple[str, str]]()
    with ModuleTracker() as tracker, _Draws(tracker, draws):
        _drawn(adapter, 0)
    if not draws:
        raise DeployError(
            f"{type(adapter.network).__name__} gives something else in every run, so nothing can be verified: it "
            "changes its own tensors, "
            "or draws random numbers outside of torch or within torch.cond; make what changes an input"
        )
    operator, module = draws[0]
    where = f" in module {module!r}" if module else ""
    raise DeployError(
        f"the network draws random numbers: {operator}{where} gives something else in every run, so nothing can be "
        "verified; take it out, "
        "or draw its numbers outside and make them an input"
    )


def _drawn(adapter: Adapter, seed: int) -> tuple[Tensor, ...]:
    """Return a network's outputs for its example, with random numbers from the given seed."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        return adapter(*adapter.call.tensors)


class _Draws(TorchDispatchMode):
    """Records operators that draw random numbers, with the innermost module that calls each."""

    supports_higher_order_operators = True  # such as torch.cond, whose branches are not inspected

    def __init__(self, tracker: ModuleTracker, draws: list[tuple[str, str]]) -> None:
        super().__init__()
        self.tracker, self.draws = tracker, draws

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if torch.Tag.nondeterministic_seeded in getattr(func, "tags", ()):
            inner = max((name for name in self.tracker.parents if "." in name), key=len, default="")
            self.draws.append((f"aten.{func.overloadpacket.__name__}".rstrip("_"), inner.partition("network.")[2]))
        return func(*args, **(kwargs or {}))
