"""The graph of a network by torch.fx: traced, run once for its shapes, with errors of one line that name the node."""

import inspect
import operator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate
from torch.fx.proxy import TraceError

from reparam.blocks import Block, ChannelMask
from reparam.equivalence import arithmetic
from reparam.errors import ReparamError
from reparam.graph import first_line


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, ChannelMask | Block) or super().is_leaf_module(m, module_qualified_name)

    def create_proxy(self, *args: Any, **kwargs: Any) -> Any:
        """A split is its parts, so that code may list, count and index them; torch.fx itself knows only those unpacked to names."""
        made: Any = super().create_proxy(*args, **kwargs)
        counted = {"chunk": ("chunks", int), "split": ("split_size", list | tuple)}
        name, kind = counted.get(operator_name(made.node), ("", object))
        given = made.node.kwargs.get(name, made.node.args[1] if len(made.node.args) > 1 else None)
        if not name or not isinstance(given, kind):
            return made
        return tuple(made[index] for index in range(given if isinstance(given, int) else len(given)))


def trace(model: nn.Module, inputs: int | None = None) -> fx.Graph:
    """The graph of a network; modules of torch, masks and trained-form blocks are nodes of it.

    Args:
        model: traced in the mode it is in.
        inputs: how many of its arguments are tensors; by default those without a default. Later ones have their defaults.

    Raises:
        ReparamError: torch.fx cannot trace it.
    """
    parameters = [p for p in inspect.signature(model.forward).parameters.values() if p.kind is not p.VAR_KEYWORD]
    count = sum(p.default is p.empty for p in parameters) if inputs is None else inputs
    fixed = {p.name: p.default for p in parameters[count:] if p.default is not p.empty}
    try:
        graph = _Tracer().trace(model, concrete_args=fixed or None)
    except (TraceError, TypeError, AttributeError, RuntimeError, ValueError, NameError) as error:
        raise ReparamError(
            f"the network cannot be traced by torch.fx: {first_line(error)}; its control flow must not depend on values of tensors: "
            "take that part out of the network, or hide it with torch.fx.wrap"
        ) from error
    for node in reversed(graph.nodes):
        if node.target is operator.getitem and not node.users:  # a part that nobody reads
            graph.erase_node(node)
    return graph


def propagate(model: nn.Module, graph: fx.Graph, inputs: tuple[Tensor, ...]) -> dict[fx.Node, Any]:
    """Run a network once by its graph, in the mode it is in.

    Returns:
        The value of every node, with tensors on the device "meta": their shapes and dtypes.

    Raises:
        ReparamError: a node cannot be run on these inputs, or a mask has not one entry a channel; it is named.
    """
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    interpreter = _Shapes(model, graph=graph)
    interpreter.extra_traceback = False  # it would be appended to the error's one line
    with torch.no_grad(), arithmetic(dtype) if dtype else nullcontext():
        interpreter.run(*(x.to(dtype) if dtype and x.is_floating_point() else x for x in inputs))
    return interpreter.values


class _Shapes(fx.Interpreter):
    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        super().__init__(model, graph=graph)
        self.values: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        try:
            value = super().run_node(n)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            if isinstance(error, ReparamError):
                raise
            raise ReparamError(f"node {n.name} cannot be run on example_input: {first_line(error)}") from error
        self.values[n] = map_aggregate(value, lambda v: torch.empty_like(v, device="meta") if isinstance(v, Tensor) else v)
        return value

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        module = self.fetch_attr(target)
        if isinstance(module, ChannelMask) and (channels := args[0].shape[1]) != module.keep.numel():
            raise ReparamError(f"mask {target} has {module.keep.numel()} entries for {channels} channels: it needs one for each")
        return super().call_module(target, args, kwargs)


def operator_name(node: fx.Node) -> str:
    """What a function, method or operator computes, however it is called: `add` for x + y, x += y, torch.add(x, y) and x.add_(y).

    "" for a function that is not torch's, and for what is no function.
    """
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if isinstance(node.target, torch._ops.OpOverload):  # of a graph: its arguments are in the order of torch's functions
        name = node.target.overloadpacket.__name__
    elif node.op == "call_function":
        spaces = (torch, nn.functional, operator)
        if node.target is getattr:
            return "getattr"
        if not any(getattr(space, name, None) is node.target for space in spaces):
            return ""
    elif node.op != "call_method":
        return ""
    plain = name.strip("_")
    return _SAME.get(plain, plain)


_SAME = {
    "iadd": "add", "radd": "add", "isub": "sub", "subtract": "sub", "imul": "mul", "rmul": "mul", "multiply": "mul",
    "truediv": "div", "itruediv": "div", "divide": "div", "true_divide": "div", "concat": "cat", "concatenate": "cat",
    "reshape": "view", "upsample": "interpolate", "clip": "clamp", "swapaxes": "transpose", "swapdims": "transpose",
    "to_copy": "to", "alias": "clone", "split_with_sizes": "split", **{f"upsample_{kind}": "interpolate" for kind in (
        "nearest1d", "nearest2d", "nearest3d", "linear1d", "bilinear2d", "trilinear3d", "bicubic2d",
    )},
}  # fmt: skip


def describe(model: nn.Module, node: fx.Node) -> str:
    """The operator of a node in words: `Conv2d of 4 groups`, `softmax`."""
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        groups = getattr(module, "groups", 1)
        return type(module).__name__ + (f" of {groups} groups" if isinstance(groups, int) and groups > 1 else "")
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
