"""Replace a module by the graph of one of its calls."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any

from torch import Tensor, fx, nn

from reparam.graph import NetworkGraph, TracedCall, aten, has_hooks, shape_of
from reparam.masking import attached_masks
from reparam.modules import child_modules, named_modules
from reparam.structure import Arguments, map_tensors, tensor_leaves


class HookedModuleError(Exception):
    """A module with hooks would be removed."""

    def __init__(self, nodes: Iterable[fx.Node]) -> None:
        super().__init__()
        self.nodes = list(nodes)


def ends_of(network: NetworkGraph, call: TracedCall) -> tuple[fx.Node, fx.Node] | None:
    """Return the only value that a call takes and the only one that it returns; None unless it has one of each."""
    source, result = call_input(network, call), call_output(network, call)
    return None if source is None or result is None else (source, result)


def call_input(network: NetworkGraph, call: TracedCall) -> fx.Node | None:
    """Return the only value that a call takes; None if it takes others or torch attributes a view of it to the call."""
    inside = set(call.nodes)
    sources = {x for node in call.nodes for x in network.reads(node) if x not in inside}
    return next(
        (x for x in sources if len(sources) == 1 and shape_of(x) == network.shapes.get(call.key, (None, None))[0]), None
    )


def call_output(network: NetworkGraph, call: TracedCall) -> fx.Node | None:
    """Return the only value that a call returns; None if there is no such value."""
    inside = set(call.nodes)
    results = [node for node in call.nodes if not network.is_constant(node) and not inside.issuperset(node.users)]
    return (
        results[0]
        if len(results) == 1 and shape_of(results[0]) == network.shapes.get(call.key, (None, None))[1]
        else None
    )


def replaceable(network: NetworkGraph, model: nn.Module, call: TracedCall) -> bool:
    """Return whether a graph can replace the module of a call."""
    if has_hooks(model.get_submodule(call.path)):
        return False
    alone = len(network.by_path[call.path]) == 1 and only_readers(network, model, call.path, set(call.nodes))
    return call is network.root or (alone and ends_of(network, call) is not None)


def only_readers(network: NetworkGraph, model: nn.Module, path: str, nodes: Set[fx.Node]) -> bool:
    """Return whether only `nodes` read the tensors of a module."""
    module = model.get_submodule(path)
    names = {f"{path}.{name}" for name, _ in itertools.chain(module.named_parameters(), module.named_buffers())}
    stored = [node for node, name in network.names.items() if name in names]
    return all(user in nodes for node in stored for user in node.users)


def replaceable_call(network: NetworkGraph, model: nn.Module, call: TracedCall, nodes: Iterable[fx.Node]) -> TracedCall:
    """Return the innermost enclosing call, or `call` itself, that a graph can replace.

    Args:
        network: the network as read.
        model: has the network's modules under the same names.
        call: where to start.
        nodes: the nodes to replace, for the error.

    Raises:
        HookedModuleError: a module with hooks is in the way.
    """
    while not replaceable(network, model, call):
        if has_hooks(model.get_submodule(call.path)) or call.parent is None:
            raise HookedModuleError(nodes)
        call = call.parent
    return call


def replace_module(model: nn.Module, path: str, module: nn.Module) -> nn.Module:
    """Replace a module wherever it is used; return the network, which is the new module itself if `path` is empty."""
    if not path:
        return module
    old = model.get_submodule(path)
    for child in child_modules(model):
        if child.module is old:
            child.replace(module.eval())
    return model


class Region:
    """The graph of one call of a module: calls of its submodules and the operators between them.

    Args:
        network: the network as read.
        model: has the modules and tensors to use in the graph, under the network's names.
        call: the call of the module.
        touched: nodes that change; the submodules that they belong to are inlined into the graph.
    """

    def __init__(self, network: NetworkGraph, model: nn.Module, call: TracedCall, touched: Set[fx.Node]) -> None:
        self.network, self.model, self.call, self.touched = network, model, call, touched
        self.graph, self.parts = fx.Graph(), nn.Module()
        self.emitted: dict[fx.Node, fx.Node] = {}
        self.named: dict[int, str] = {}

    @property
    def plain(self) -> bool:
        """Whether the graph maps one tensor to one tensor."""
        return self.call is not self.network.root or (
            len(self.network.inputs) == 1 and isinstance(self.network.output, Tensor)
        )

    def module(self) -> nn.Module:
        """Build a module that runs the graph; its submodules keep their names."""
        is_root, plain = self.call is self.network.root, self.plain
        ends = ends_of(self.network, self.call)
        sources = self.network.inputs if is_root or ends is None else [ends[0]]
        for index, source in enumerate(sources):
            self.emitted[source] = self.graph.placeholder("x" if len(sources) == 1 else f"x{index}")
        for node in self.network.graph.nodes if is_root else self.call.nodes:
            if node.op == "call_function" and node not in self.emitted:
                self.emit(node)
        results = self.network.outputs if is_root or ends is None else (ends[1],)
        output = tuple(self.value(node) for node in results)
        self.graph.output(output[0] if plain else output)
        self.merged = fx.GraphModule(self.parts, self.graph, class_name="Merged")
        self.merged.graph.eliminate_dead_code()
        self.merged.delete_all_unused_submodules()
        self.merged.recompile()
        self._keep_masks()
        steps = [node for node in self.merged.graph.nodes if node.op != "placeholder"]
        if plain and [node.op for node in steps] == ["call_module", "output"]:
            return self.merged.get_submodule(str(steps[0].target))
        return self.merged.eval() if plain else _Structured(self.merged, self.network.output).eval()

    def _keep_masks(self) -> None:
        """Add the masks attached to modules of the graph as submodules."""
        held = {id(masked.masks) for module in self.merged.modules() for masked in attached_masks(module)}
        for path, module in named_modules(self.model):
            inside = not self.call.path or path.startswith(f"{self.call.path}.")
            if id(module) in held and inside:
                holder, local = _holder(self.merged, self._relative(path))
                holder.add_module(local, module)

    def emit(self, node: fx.Node) -> None:
        """Add the computation of a value to the graph."""
        if not self.emit_unit(node):
            self.copy(node)

    def emit_unit(self, node: fx.Node) -> bool:
        """Call the module that a node belongs to, if it can be called unchanged; return whether it can."""
        unit = self.unit(node)
        if unit is not None:
            (source, result) = unit[1]
            if node is result or source not in self.emitted:
                name = self.place(unit[0].path, self.model.get_submodule(unit[0].path))
                self.emitted[result] = self.graph.call_module(name, (self.value(source),))
        return unit is not None

    def arguments(self, node: fx.Node) -> tuple[Arguments, Mapping[str, Any]]:
        """Return the arguments of a node's operator."""
        return node.args, node.kwargs

    def copy(self, node: fx.Node) -> None:
        """Add the operator of a node to the graph."""
        hooked = [
            call.path
            for call in self.network.calls[node]
            if call.path != self.call.path and has_hooks(self.model.get_submodule(call.path))
        ]
        if any(path.startswith(self.call.path) for path in hooked):
            raise HookedModuleError(self.touched)
        args, kwargs = self.arguments(node)
        args, kwargs = fx.map_arg((_any_batch(node, args), kwargs), self.value)
        assert callable(node.target)
        self.emitted[node] = self.graph.call_function(node.target, args, dict(kwargs))

    def unit(self, node: fx.Node) -> tuple[TracedCall, tuple[fx.Node, fx.Node]] | None:
        """Return the outermost call within this one that contains a node and needs no change, with its ends."""
        chain = self.network.calls[node]
        inner = chain[chain.index(self.call) + 1 :] if self.call in chain else chain
        for call in inner:
            ends = ends_of(self.network, call)
            if ends is not None and self.touched.isdisjoint(call.nodes) and not self.network.is_constant(ends[1]):
                return call, ends
        return None

    def value(self, node: fx.Node) -> fx.Node:
        """Return the graph's node for a value; constants from outside are added to the graph."""
        if node not in self.emitted:
            if node in self.network.names:
                self.emitted[node] = self.graph.get_attr(self._tensor(self.network.names[node]))
            else:
                assert self.network.is_constant(node), f"{node.name} is computed outside of {self.call.path}"
                self.copy(node)
        return self.emitted[node]

    def _tensor(self, path: str) -> str:
        tensor = tensor_of(self.model, path)
        local = self._relative(path).replace(".", "_")
        while hasattr(self.parts, local):
            local += "_"
        if isinstance(tensor, nn.Parameter):
            self.parts.register_parameter(local, tensor)
        else:
            self.parts.register_buffer(local, tensor)
        return local

    def place(self, path: str, module: nn.Module) -> str:
        """Add a module to the graph and return its name there."""
        if id(module) in self.named:
            return self.named[id(module)]
        used = {name for name, _ in named_modules(self.parts)}
        candidates = itertools.chain([path], (f"{path}_{i}" for i in itertools.count(1)))
        name = next(name for name in map(self._relative, candidates) if name not in used)
        holder, local = _holder(self.parts, name)
        holder.add_module(local, module)
        self.named[id(module)] = name
        return name

    def _relative(self, path: str) -> str:
        prefix = f"{self.call.path}."
        return path.removeprefix(prefix) if self.call.path and path.startswith(prefix) else path


def _holder(parts: nn.Module, path: str) -> tuple[nn.Module, str]:
    """Return the parent module of a path, created if missing, and the last part of the path."""
    *parents, local = path.split(".")
    for parent in parents:
        if not isinstance(getattr(parts, parent, None), nn.Module):
            parts.add_module(parent, nn.Module())
        parts = parts.get_submodule(parent)
    return parts, local


def tensor_of(model: nn.Module, path: str) -> Any:
    """Return a parameter, buffer or other tensor of a network by its qualified name."""
    owner, _, name = path.rpartition(".")
    return getattr(model.get_submodule(owner), name)


def _any_batch(node: fx.Node, args: Arguments) -> Arguments:
    """Replace the batch size in a view or expand by -1 if the operator keeps it."""
    if node.target not in (aten.view.default, aten.expand.default) or not isinstance(node.args[0], fx.Node):
        return args
    x, sizes = node.args[0], list(args[1])
    if node.target is aten.view.default and -1 in sizes:
        sizes = list(shape_of(node))
    if (
        shape_of(x)
        and sizes
        and shape_of(node)[0] == shape_of(x)[0]
        and (node.target is aten.view.default or len(sizes) == len(shape_of(x)))
    ):
        sizes[0] = -1
    return x, sizes


class _Structured(nn.Module):
    """Wraps a graph from tensors to tensors with the call signature and output structure of the original network."""

    def __init__(self, network: nn.Module, output: object) -> None:
        super().__init__()
        self.network = network
        self._output = output

    def forward(self, *args: object, **kwargs: object) -> object:
        """Call the graph with the tensors in the arguments, in order; other arguments are constants of the graph."""
        tensors = tensor_leaves((args, kwargs))
        outputs: Iterator[Tensor] = iter(self.network(*tensors))
        return map_tensors(self._output, lambda _: next(outputs))
