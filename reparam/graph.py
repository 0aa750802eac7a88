"""Read any network as one flat graph of core ATen operators."""

import copy
import itertools
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy

from reparam.equivalence import arithmetic
from reparam.errors import ReparamError
from reparam.exported import HOOKS, RUN_ERRORS, Exported, exported, first_line
from reparam.masking import Masked, attach_mask, detach_masks
from reparam.modules import named_modules
from reparam.structure import Arguments, map_tensors

aten: Any = torch.ops.aten

_ROOT = "L__self__network"  # how torch.export names the call of the network itself


@dataclass
class TracedCall:
    """One call of a module, with the nodes that it and its children compute."""

    key: str
    path: str
    """qualified name of the module; "" for the network itself"""
    parent: "TracedCall | None"
    nodes: list[fx.Node] = field(default_factory=list)

    def __hash__(self) -> int:
        return hash(self.key)


class NetworkGraph:
    """A network in evaluation mode, read by `read_network`.

    Attributes:
        model: the network; the graph refers to its tensors.
        graph: placeholders (parameters, buffers, constants, then inputs), operators, and one output node with a tuple
            of tensors.
        names: qualified name of each parameter, buffer and constant, by placeholder.
        inputs: the remaining placeholders, in the order of the tensors in the arguments.
        calls: the module calls that contain each node, outermost first.
        shapes: input and output shape of each call, by its key; None if the call takes or returns anything but a single
            tensor.
        output: structure of the network's output.
    """

    def __init__(self, model: nn.Module, program: Exported) -> None:
        self.model, self.graph, self.output = model, program.graph, program.output
        placeholders = {node.name: node for node in self.graph.nodes if node.op == "placeholder"}
        self.names = _first_names(model, {placeholders[name]: target for name, target in program.targets.items()})
        stored = dict(_named_tensors(model))
        self._stored = stored.keys()
        self._constants: dict[fx.Node, Tensor | None] = {
            placeholders[name]: (stored if target in stored else program.constants)[target]
            for name, target in program.targets.items()
        }
        self.inputs = [placeholders[name] for name in program.inputs]
        self.calls: dict[fx.Node, tuple[TracedCall, ...]] = {}
        by_key: dict[str, TracedCall] = {}
        first_path = {id(module): path for path, module in named_modules(model)}
        paths = {path: first_path[id(module)] for path, module in named_modules(model, all_names=True)}
        for node in self.graph.nodes:
            chain: list[TracedCall] = []
            for key, (path, _) in node.meta.get("nn_module_stack", {}).items():
                if path == "":
                    continue
                path = paths[path.removeprefix("network").removeprefix(".")]
                call = by_key.setdefault(key, TracedCall(key, path, chain[-1] if chain else None))
                call.nodes.append(node)
                chain.append(call)
            if not chain and node.op == "call_function":  # the network's own code, which torch does not record
                chain.append(by_key.setdefault(_ROOT, TracedCall(_ROOT, "", None)))
                chain[0].nodes.append(node)
            self.calls[node] = tuple(chain)
        self.by_path: dict[str, list[TracedCall]] = {}
        for call in by_key.values():
            self.by_path.setdefault(call.path, []).append(call)
        self.shapes = {
            call.key: shapes
            for path, calls in self.by_path.items()
            for call, shapes in zip(calls, program.shapes.get(path, [])[-len(calls) :], strict=False)
        }

    @property
    def root(self) -> TracedCall:
        """The call of the network itself."""
        return self.by_path[""][0]

    @property
    def outputs(self) -> tuple[fx.Node, ...]:
        """The tensors that the network returns, in order."""
        return args_of(next(iter(reversed(self.graph.nodes))))[0]

    def where(self, node: fx.Node) -> str:
        """Return the name of the module whose code computes a value; the value's own name for the network's code."""
        chain = self.calls[node]
        return (chain[-1].path if chain else "") or node.name

    def is_constant(self, value: object) -> bool:
        """Return whether an argument of a node is the same for every input of the network."""
        return not isinstance(value, fx.Node) or self._constant_node(value)

    def stored(self, node: fx.Node) -> str | None:
        """Return the name of the parameter or buffer that a node is; None for constants in code and other nodes."""
        name = self.names.get(node)
        return name if name in self._stored else None

    def reads(self, node: fx.Node) -> list[fx.Node]:
        """Return the inputs of a node that depend on the network's input."""
        return [x for x in node.all_input_nodes if not self._constant_node(x)]

    def _constant_node(self, node: fx.Node) -> bool:
        if node not in self._constants:
            constant = (
                node.op == "call_function"
                and (node.all_input_nodes or _creates(node))
                and not _writes(node)
                and all(map(self._constant_node, node.all_input_nodes))
            )
            self._constants[node] = self._computed(node) if constant else None
        return self._constants[node] is not None

    def _computed(self, node: fx.Node) -> Any:
        args, kwargs = fx.map_arg((node.args, node.kwargs), self._constants.__getitem__)
        with torch.no_grad(), arithmetic(torch.float64):
            args, kwargs = map_tensors((args, dict(kwargs)), lambda x: x.double() if x.is_floating_point() else x)
            assert callable(node.target)
            return node.target(*args, **kwargs)

    def constant(self, value: object) -> Any:
        """Return the value of a constant argument; floating-point tensors in float64."""
        constant = self._constants[value] if isinstance(value, fx.Node) else value
        return constant.detach().double() if isinstance(constant, Tensor) and constant.is_floating_point() else constant


def _first_names(model: nn.Module, names: dict[fx.Node, str]) -> dict[fx.Node, str]:
    """Return the first name of each tensor, and redirect readers of its other placeholders to the first."""
    stored = [*_named_tensors(model)]
    first: dict[int, str] = {}
    for name, tensor in stored:
        first.setdefault(id(tensor), name)
    aliases = {name: first[id(tensor)] for name, tensor in stored}
    first_names = {node: aliases.get(name, name) for node, name in names.items()}
    placeholders: dict[str, fx.Node] = {}
    for node, name in first_names.items():
        if placeholders.setdefault(name, node) is not node:
            node.replace_all_uses_with(placeholders[name])
    return first_names


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return itertools.chain(model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))


def _creates(node: fx.Node) -> bool:
    return node.target in (aten.full.default, aten.arange.start_step, aten.scalar_tensor.default)


def _writes(node: fx.Node) -> bool:
    """Return whether a node mutates an argument, such as a buffer that counts calls."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def args_of(node: fx.Node) -> Arguments:
    """Return the positional arguments of a node, untyped."""
    return node.args


def with_defaults(given: Arguments, defaults: Arguments) -> Arguments:
    """Append the defaults of missing trailing arguments."""
    return (*given, *defaults[len(given) :])


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Return the shape of a node's tensor; () for any other value."""
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def operator_of(node: fx.Node) -> str:
    """Return the name of a node's operator: `convolution`, `relu`, `input`."""
    if node.op != "call_function":
        return {"placeholder": "input"}.get(node.op, node.op)
    if node.target is operator.getitem and isinstance(node.args[0], fx.Node):
        return operator_of(node.args[0])
    packet: Any = getattr(node.target, "overloadpacket", node.target)
    name: str = packet.__name__.strip("_")
    return "batch norm" if name.startswith("native_batch_norm") else name.replace("_", " ")


def is_norm(node: fx.Node) -> bool:
    """Return whether a node is a batch norm, with or without running statistics."""
    return "batch_norm" in str(node.target)


def has_hooks(module: nn.Module) -> bool:
    """Return whether a module has hooks other than masks."""
    return any(not isinstance(hook, Masked) for hooks in HOOKS for hook in getattr(module, hooks).values())


def read_network(
    model: nn.Module, args: Arguments, kwargs: Mapping[str, Any] | None = None, *, exact: nn.Module | None = None
) -> NetworkGraph:
    """Read a network in evaluation mode.

    Args:
        model: stays unchanged; its hooks are not called.
        args: its positional arguments: tensors, structures of them, constants.
        kwargs: its keyword arguments, likewise.
        exact: the same network with unrounded weights. The result then refers to its weights, with the types of
            `model`.

    Raises:
        ReparamError: the network cannot be copied, run or exported, or it draws random numbers.
    """
    network = NetworkGraph(exact or model, exported(twin_of(model), args, kwargs or {}))
    _require_deterministic(network)
    for node in list(network.graph.nodes):
        if node.target is aten._assert_tensor_metadata.default:
            network.graph.erase_node(node)
            for call in network.calls.pop(node):
                call.nodes.remove(node)
    return network


def twin_of(model: object) -> nn.Module:
    """Return a copy that shares all tensors and has no hooks except masks.

    Raises:
        ReparamError: the model is not a module or cannot be copied.
    """
    if not isinstance(model, nn.Module):
        raise ReparamError(f"expected a torch.nn.Module, found {type(model).__name__}")
    if any(isinstance(part, torch.jit.ScriptModule) for part in model.modules()):
        raise ReparamError(
            f"{type(model).__name__} holds a scripted module: give the nn.Module that it was scripted from"
        )
    tensors = (*model.parameters(), *model.buffers())
    if any(is_lazy(tensor) for tensor in tensors):
        raise ReparamError(f"{type(model).__name__} has lazy parameters without a shape: run it once on an input first")
    try:
        twin = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    except RUN_ERRORS as error:
        raise ReparamError(
            f"{type(model).__name__} cannot be copied: {first_line(error)}; keep only what copy.deepcopy can copy in it"
        ) from error
    for part in twin.modules():
        masks = detach_masks(part)
        for hooks in HOOKS:
            getattr(part, hooks).clear()
        for masked in masks:
            attach_mask(part, masked)
    return twin


def _require_deterministic(network: NetworkGraph) -> None:
    for node in network.graph.nodes:
        if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()) or _drops_nothing(node):
            continue
        path = network.calls[node][-1].path or type(network.model).__name__
        if "dropout" in operator_of(node):
            raise ReparamError(
                f"dropout in {path} stays on in evaluation mode: use nn.Dropout, or pass training=self.training to "
                "torch.nn.functional.dropout"
            )
        raise ReparamError(
            f"{operator_of(node)} in {path} draws random numbers in evaluation mode: make them an input of the network"
        )


def _drops_nothing(node: fx.Node) -> bool:
    attention = node.target is aten.scaled_dot_product_attention.default
    return attention and not (node.args[4] if len(node.args) > 4 else node.kwargs.get("dropout_p"))
