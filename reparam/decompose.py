"""Decompose an exported program into core ATen without mutations and views."""

import functools
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, TypeAlias

import torch
from torch import fx
from torch._subclasses import FakeTensor
from torch.export import ExportedProgram
from torch.export.exported_program import default_decompositions
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import Target
from torch.fx.traceback import preserve_node_meta
from torch.library import Library

from reparam.structure import Arguments

aten: Any = torch.ops.aten

Operator: TypeAlias = Callable[..., Any]
"""An overload of an operator, such as `aten.linear.default`."""

_WHOLE = {
    "default": (
        "linear", "matmul", "scaled_dot_product_attention", "pad", "layer_norm", "group_norm", "instance_norm", "prelu",
        "hardswish", "hardsigmoid", "silu", "mish", "selu", "celu", "softplus", "glu", "max_pool1d", "max_pool2d",
        "max_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "pixel_shuffle",
        "pixel_unshuffle", "channel_shuffle",
    ),
    "vec": tuple(
        f"upsample_{kind}"
        for kind in ("nearest1d", "nearest2d", "nearest3d", "linear1d", "bilinear2d", "trilinear3d", "bicubic2d")
    ),
    "int": ("softmax", "log_softmax"),
}  # fmt: skip
"""Operators to leave undecomposed, by overload. Their decompositions hide which dimension holds channels, which pixels
are padding, and which operators runtimes have a single kernel for."""

_LIBRARY: Any = Library("lathe_whole", "DEF")


def decomposed(program: ExportedProgram) -> fx.Graph:
    """Return the graph of a program in core ATen, except for `_WHOLE`; placeholders keep their names.

    `ExportedProgram.run_decompositions` gives the same result but patches every composite operator of torch on each
    call, which takes 0.1 to 0.2 s for a network of any size.
    """
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    values = [node.meta["val"] for node in placeholders]
    interpreter = _Interpreter(program.graph_module)
    trace = make_fx(
        torch.func.functionalize(lambda *values: tuple(interpreter.run(*values))), decomposition_table=_decompositions()
    )
    with (
        preserve_node_meta(),
        next((value.fake_mode for value in values if isinstance(value, FakeTensor)), nullcontext()),
    ):
        graph = trace(*values).graph
    originals = {kept: whole for whole, kept in _kept().items()}
    names = iter(placeholders)
    for node in graph.nodes:
        node.target = originals.get(node.target, node.target)
        if node.op == "placeholder":
            node.name = node.target = next(names).name
        if node.target is aten.alias.default:
            node.replace_all_uses_with(node.args[0])
        if node.target is aten.copy.default and _same_shape_and_dtype(*node.args[:2]):
            node.replace_all_uses_with(node.args[1])
    graph.eliminate_dead_code()
    return graph


def _same_shape_and_dtype(x: fx.Node, y: fx.Node) -> bool:
    first, second = x.meta["val"], y.meta["val"]
    return (first.shape, first.dtype) == (second.shape, second.dtype)


class _Interpreter(fx.Interpreter):
    """Runs a program with stand-ins for the operators of `_WHOLE`, and with core ATen's batch norm and dropout."""

    def call_function(self, target: Target, args: Arguments, kwargs: dict[str, Any]) -> Any:
        """Run one node."""
        if target is aten.batch_norm.default and not kwargs:  # torch decomposes it differently per device
            x, weight, bias, mean, var, training, momentum, eps, _ = args
            if not training:
                return aten._native_batch_norm_legit_no_training.default(x, weight, bias, mean, var, momentum, eps)[0]
            if mean is None:
                return aten._native_batch_norm_legit.no_stats(x, weight, bias, training, momentum, eps)[0]
        if target is aten.dropout.default and args[2]:
            return aten.native_dropout.default(*args)[0]
        kept = _kept()
        if target in kept:
            return kept[target](*args, **kwargs)
        functional = _functional(target)
        if functional is not None and functional in kept:
            return args[0].copy_(kept[functional](*args, **kwargs))
        return super().call_function(target, args, kwargs)


def _functional(target: Target) -> Operator | None:
    """Return the out-of-place variant of an in-place ATen operator; None for any other target."""
    name, _, overload = str(target).removeprefix("aten.").partition(".")
    return getattr(getattr(aten, name.removesuffix("_"), None), overload, None) if name.endswith("_") else None


@functools.cache
def _decompositions() -> Mapping[Any, Operator]:
    table: Any = default_decompositions()
    return table.materialize()


@functools.cache
def _kept() -> dict[Target, Operator]:
    """Map each operator of `_WHOLE` to a stand-in of the same schema that torch cannot decompose."""
    kept: dict[Target, Operator] = {}
    for overload, names in _WHOLE.items():
        for name in names:
            whole = getattr(getattr(aten, name), overload)
            schema = str(whole._schema)
            _LIBRARY.define(f"{name}{schema[schema.index('(') :]}")
            _LIBRARY.impl(name, whole, "CompositeExplicitAutograd")
            kept[whole] = getattr(getattr(torch.ops, _LIBRARY.ns), name).default
    return kept
