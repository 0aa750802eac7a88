"""What torch.export makes of a network, in core ATen; of networks that differ in the values of their weights alone it is made once."""

import copy
import functools
import hashlib
import io
import pickle
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import Tensor, fx, nn

from reparam.decompose import decomposed
from reparam.equivalence import arithmetic, tensors_of
from reparam.errors import ReparamError
from reparam.structure import leaves, map_tensors

RUN_ERRORS = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError, ArithmeticError)
"""What torch and a network's own code raise where they cannot go on."""

HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks",
)  # fmt: skip

KEPT = 16
"""Networks whose graph is kept: those of one search and export, with their fused and squeezed forms."""

_PREFIX = "network."  # of names in `_Flat`

Shapes = tuple[tuple[int, ...] | None, tuple[int, ...] | None]
"""What a call of a module takes and returns, each where it is one tensor."""


@dataclass(frozen=True)
class Exported:
    """A network's graph, without its weights.

    Attributes:
        graph: placeholders, operators, and one output node with a tuple of tensors.
        targets: by placeholder, qualified name of the parameter or buffer that it is, or the key of a constant.
        constants: values that are neither parameters nor buffers.
        inputs: names of the other placeholders, in the order of the tensors in the arguments.
        shapes: of each module, by its qualified name, the shapes of its calls.
        output: what the network returns, by its structure.
    """

    graph: fx.Graph
    targets: dict[str, str]
    constants: dict[str, Tensor]
    inputs: tuple[str, ...]
    shapes: dict[str, list[Shapes]]
    output: Any


def exported(network: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Exported:
    """Export a network as it is called in evaluation mode; the graph is the caller's own.

    Raises:
        ReparamError: it cannot be run or exported, in one line with what helps.
    """
    flat = _Flat(network, args, kwargs)
    written = _fingerprint(flat)
    if written is None:
        return _export(flat)
    key, code = written
    if key not in _made:
        _made[key] = _export(flat), code
        if len(_made) > KEPT:
            _made.popitem(last=False)
    _made.move_to_end(key)
    made, _ = _made[key]
    return replace(made, graph=copy.deepcopy(made.graph))


_made: OrderedDict[str, tuple[Exported, list[Any]]] = OrderedDict()
"""By fingerprint, each with the code that it names by address, which must not be freed."""


class _Fingerprint(pickle.Pickler):
    """Writes modules with the type and layout of their weights for their values, and code by identity."""

    protocol = pickle.HIGHEST_PROTOCOL

    def __init__(self, file: io.BytesIO, weights: dict[int, int]) -> None:
        super().__init__(file, self.protocol)
        self.weights, self.code = weights, []

    def persistent_id(self, value: Any) -> Any:
        """What stands for a value; None where it is written as it is."""
        if isinstance(value, type | FunctionType | BuiltinFunctionType):
            self.code.append(value)
            return "code", id(value)
        if isinstance(value, Tensor) and id(value) in self.weights:
            return self.weights[id(value)], type(value), (*value.shape,), value.stride(), str(value.dtype), str(value.device)
        return None

    def reducer_override(self, value: Any) -> Any:
        """A module with its hooks in order: torch numbers all hooks of a process."""
        if not isinstance(value, nn.Module):
            return NotImplemented
        made = value.__reduce_ex__(self.protocol)
        if isinstance(made, str) or not isinstance(made[2], dict):
            return made
        return (*made[:2], {name: [*part.values()] if name in HOOKS else part for name, part in made[2].items()}, *made[3:])


def _fingerprint(flat: "_Flat") -> tuple[str, list[Any]] | None:
    """What a network's graph depends on, and the code in it; None where something in the network cannot be written.

    Code is that of the same classes and functions; what they read elsewhere, such as variables of their file, is taken to stay.
    """
    given = [x for _, x in leaves((flat.args, flat.kwargs)) if isinstance(x, Tensor)]
    tensors = (*flat.network.parameters(), *flat.network.buffers(), *given, *flat.tensors)
    pickler = _Fingerprint(file := io.BytesIO(), {id(tensor): index for index, tensor in enumerate(tensors)})
    try:
        pickler.dump((flat, str(torch.get_default_dtype())))
    except (pickle.PicklingError, *RUN_ERRORS):
        return None
    return hashlib.sha256(file.getbuffer()).hexdigest(), pickler.code


def _export(flat: "_Flat") -> Exported:
    shapes: dict[str, list[Shapes]] = {}
    handles = [
        module.register_forward_hook(_Calls(shapes.setdefault(path, [])), with_kwargs=True) for path, module in flat.network.named_modules()
    ]
    outputs: list[Any] = []
    handles.append(flat.network.register_forward_hook(lambda _module, _args, output: outputs.append(output)))
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch says of its own code
            with _types(flat)():
                program = torch.export.export(flat, flat.tensors, strict=False)
            graph = decomposed(program)
    except RUN_ERRORS as error:
        _types(flat, tried=True)
        raise ReparamError(
            f"{type(flat.network).__name__} cannot be read by torch.export: {first_line(error)}; its control flow must not depend on "
            "values of tensors: use torch.where or torch.cond, or take that part out of the network"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    signature = program.graph_signature
    named = {**signature.inputs_to_parameters, **signature.inputs_to_buffers, **signature.inputs_to_lifted_tensor_constants}
    constants = {name: program.constants[name] for name in signature.inputs_to_lifted_tensor_constants.values()}
    return Exported(
        graph,
        targets={name: target.removeprefix(_PREFIX) for name, target in named.items()},
        constants={name.removeprefix(_PREFIX): value for name, value in constants.items() if isinstance(value, Tensor)},
        inputs=tuple(name for name in signature.user_inputs if isinstance(name, str)),
        shapes=shapes,
        output=map_tensors(outputs[-1], lambda _: torch.empty(0)),
    )


def _types(flat: "_Flat", *, tried: bool = False) -> Callable[[], AbstractContextManager[None]]:
    """What a network must run in: its own types or, where they do not go together, the one of its weights.

    A network converted by `model.double()` may name float32 in its code. One of the default type is run only if asked: that takes time.
    """
    errors: list[Exception] = []
    for types in (nullcontext, functools.partial(arithmetic, flat.dtype)):
        if flat.dtype is torch.get_default_dtype() and not tried:
            return types
        try:
            with torch.no_grad(), types():
                flat.run(*flat.tensors)
        except RUN_ERRORS as error:
            errors.append(error)
        else:
            return types
    raise ReparamError(f"{type(flat.network).__name__} cannot be run on example_input: {first_line(errors[0])}") from errors[0]


class _Flat(nn.Module):
    """A network from the tensors among its arguments to those of its output."""

    def __init__(self, network: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        super().__init__()
        self.network, self.args, self.kwargs = network.eval(), args, dict(kwargs)
        self.dtype = next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.get_default_dtype())
        self.tensors = tuple(
            x.detach().to(self.dtype) if x.is_floating_point() else x for _, x in leaves((args, self.kwargs)) if isinstance(x, Tensor)
        )

    def run(self, *tensors: Tensor) -> Any:
        """What the network returns."""
        rest = iter(tensors)
        args, kwargs = map_tensors((self.args, self.kwargs), lambda _: next(rest))
        return self.network(*args, **kwargs)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensors_of(self.run(*tensors)))


class _Calls:
    """Hook that notes the shapes of the one tensor that a call takes, and of the one that it returns."""

    def __init__(self, seen: list[Shapes]) -> None:
        self.seen = seen

    def __call__(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        taken = args[0] if len(args) == 1 and not kwargs else None
        self.seen.append((_shape(taken), _shape(output)))


def _shape(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, Tensor) else None


def first_line(error: BaseException) -> str:
    """Torch explains at length; the first line says what it is."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
