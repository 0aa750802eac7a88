"""Export networks with torch.export to core ATen.

Networks that differ only in weight values share one cached export.
"""

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
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, fx, nn

from reparam.decompose import decomposed
from reparam.equivalence import arithmetic, tensors_of
from reparam.errors import ReparamError
from reparam.modules import named_modules
from reparam.structure import Arguments, map_tensors, tensor_leaves

RUN_ERRORS = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError, ArithmeticError)
"""Errors that torch and a network's own code raise."""

HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks",
)  # fmt: skip

KEPT = 16
"""Maximum number of cached graphs: enough for the networks of a search and an export, fused and squeezed."""

_PREFIX = "network."  # prefix of names in `_Flat`

Code: TypeAlias = type | FunctionType | BuiltinFunctionType

Shapes = tuple[tuple[int, ...] | None, tuple[int, ...] | None]
"""Input and output shape of a module call; None if the input or output is not a single tensor."""


@dataclass(frozen=True)
class Exported:
    """A network's graph, without its weights.

    Attributes:
        graph: placeholders, operators, and one output node with a tuple of tensors.
        targets: qualified name of the parameter or buffer, or key of the constant, of each placeholder.
        constants: values that are neither parameters nor buffers.
        inputs: names of the other placeholders, in the order of the tensors in the arguments.
        shapes: shapes of the calls of each module, by its qualified name.
        output: structure of the network's output.
    """

    graph: fx.Graph
    targets: dict[str, str]
    constants: dict[str, Tensor]
    inputs: tuple[str, ...]
    shapes: dict[str, list[Shapes]]
    output: object


def exported(network: nn.Module, args: Arguments, kwargs: Mapping[str, Any]) -> Exported:
    """Export a network in evaluation mode; the caller may modify the graph.

    Raises:
        ReparamError: the network cannot be run or exported.
    """
    flat = _Flat(network, args, kwargs)
    fingerprint = _fingerprint(flat)
    if fingerprint is None:
        return _export(flat)
    key, code = fingerprint
    if key not in _cache:
        _cache[key] = _export(flat), code
        if len(_cache) > KEPT:
            _cache.popitem(last=False)
    _cache.move_to_end(key)
    cached, _ = _cache[key]
    return replace(cached, graph=copy.deepcopy(cached.graph))


_cache: OrderedDict[str, tuple[Exported, list[Code]]] = OrderedDict()
"""Exports by fingerprint, each with the code whose address is part of the fingerprint, so that it is not freed."""


class _Fingerprint(pickle.Pickler):
    """Pickles modules with the type and layout of their weights instead of values, and code by identity."""

    protocol = pickle.HIGHEST_PROTOCOL

    def __init__(self, file: io.BytesIO, weights: dict[int, int]) -> None:
        super().__init__(file, self.protocol)
        self.weights = weights
        self.code: list[Code] = []

    def persistent_id(self, value: object) -> object:
        """Return a stand-in for code and weights; None for values to pickle as usual."""
        if isinstance(value, type | FunctionType | BuiltinFunctionType):
            self.code.append(value)
            return "code", id(value)
        if isinstance(value, Tensor) and id(value) in self.weights:
            return (
                self.weights[id(value)],
                type(value),
                (*value.shape,),
                value.stride(),
                str(value.dtype),
                str(value.device),
            )
        return None

    def reducer_override(self, value: object) -> Any:
        """Replace the hook ids of a module by their order, because torch numbers hooks per process."""
        if not isinstance(value, nn.Module):
            return NotImplemented
        reduced = value.__reduce_ex__(self.protocol)
        if isinstance(reduced, str) or not isinstance(reduced[2], dict):
            return reduced
        attributes = cast("dict[str, Any]", reduced[2])
        state = {name: [*value.values()] if name in HOOKS else value for name, value in attributes.items()}
        return (*reduced[:2], state, *reduced[3:])


def _fingerprint(flat: "_Flat") -> tuple[str, list[Code]] | None:
    """Return a hash of everything that a network's graph depends on, with the code in it; None if pickling fails.

    Classes and functions are compared by identity; whatever else they read, such as globals of their module, is assumed
    not to change.
    """
    arguments = tensor_leaves((flat.args, flat.kwargs))
    tensors = (*flat.network.parameters(), *flat.network.buffers(), *arguments, *flat.tensors)
    pickler = _Fingerprint(file := io.BytesIO(), {id(tensor): index for index, tensor in enumerate(tensors)})
    try:
        pickler.dump((flat, str(torch.get_default_dtype())))
    except (pickle.PicklingError, *RUN_ERRORS):
        return None
    return hashlib.sha256(file.getbuffer()).hexdigest(), pickler.code


def _export(flat: "_Flat") -> Exported:
    shapes: dict[str, list[Shapes]] = {}
    handles = [
        module.register_forward_hook(_Calls(shapes.setdefault(path, [])), with_kwargs=True)
        for path, module in named_modules(flat.network)
    ]
    outputs: list[object] = []

    def keep_output(_module: nn.Module, _args: object, output: object) -> None:
        outputs.append(output)

    handles.append(flat.network.register_forward_hook(keep_output))
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about torch's own code
            with _types(flat)():
                program = torch.export.export(flat, flat.tensors, strict=False)
            graph = decomposed(program)
    except RUN_ERRORS as error:
        _types(flat, tried=True)
        raise ReparamError(
            f"{type(flat.network).__name__} cannot be read by torch.export: {first_line(error)}; its control flow must "
            "not depend on tensor values: use torch.where or torch.cond, or move that part out of the network"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    signature = program.graph_signature
    named = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
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
    """Return the context to run a network in: its own types or, if they do not match, the type of its weights.

    A network converted by `model.double()` may name float32 in its code. To save time, a network of the default type is
    run only if `tried`, that is, after its export failed.
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
    raise ReparamError(
        f"{type(flat.network).__name__} cannot be run on example_input: {first_line(errors[0])}"
    ) from errors[0]


class _Flat(nn.Module):
    """A network as a function from the tensors in its arguments to the tensors in its output."""

    def __init__(self, network: nn.Module, args: Arguments, kwargs: Mapping[str, Any]) -> None:
        super().__init__()
        self.network, self.args, self.kwargs = network.eval(), args, dict(kwargs)
        self.dtype = next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.get_default_dtype())
        self.tensors = tuple(
            x.detach().to(self.dtype) if x.is_floating_point() else x for x in tensor_leaves((args, self.kwargs))
        )

    def run(self, *tensors: Tensor) -> Any:
        """Return the network's output."""
        rest = iter(tensors)
        args, kwargs = map_tensors((self.args, self.kwargs), lambda _: next(rest))
        return self.network(*args, **kwargs)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensors_of(self.run(*tensors)))


class _Calls:
    """Hook that records the input and output shape of each call, if each is a single tensor."""

    def __init__(self, shapes: list[Shapes]) -> None:
        self.shapes = shapes

    def __call__(self, _module: nn.Module, args: Arguments, kwargs: dict[str, Any], output: object) -> None:
        only_input = args[0] if len(args) == 1 and not kwargs else None
        self.shapes.append((_shape(only_input), _shape(output)))


def _shape(value: object) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, Tensor) else None


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type.

    Torch's messages are long, and the first line names the error.
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
