"""A call of a module as the graph of what it computes, in the module's place."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any

from torch import Tensor, fx, nn

from reparam.graph import Call, Network, aten, has_hooks, shape
from reparam.masking import placed
from reparam.structure import leaves, map_tensors


class SeenError(Exception):
    """A module whose calls somebody watches by a hook would go."""

    def __init__(self, nodes: Iterable[fx.Node]) -> None:
        super().__init__()
        self.nodes = list(nodes)


def ends_of(network: Network, call: Call) -> tuple[fx.Node, fx.Node] | None:
    """The one value that a call takes and the one that it returns; None where there are more, or it takes other arguments."""
    source, result = taken(network, call), returned(network, call)
    return None if source is None or result is None else (source, result)


def taken(network: Network, call: Call) -> fx.Node | None:
    """The one value that a call takes; None where it takes other arguments, or torch counts a view of the value as part of the call."""
    inside = set(call.nodes)
    read = {x for node in call.nodes for x in network.reads(node) if x not in inside}
    return next((x for x in read if len(read) == 1 and shape(x) == network.shapes.get(call.key, (None, None))[0]), None)


def returned(network: Network, call: Call) -> fx.Node | None:
    """The one value that a call returns; None where there is no such value."""
    inside = set(call.nodes)
    made = [node for node in call.nodes if not network.is_constant(node) and not inside.issuperset(node.users)]
    return made[0] if len(made) == 1 and shape(made[0]) == network.shapes.get(call.key, (None, None))[1] else None


def replaceable(network: Network, model: nn.Module, call: Call) -> bool:
    """Whether a graph can stand for the module of a call."""
    if has_hooks(model.get_submodule(call.path)):
        return False
    alone = len(network.by_path[call.path]) == 1 and only_readers(network, model, call.path, set(call.nodes))
    return call is network.root or (alone and ends_of(network, call) is not None)


def only_readers(network: Network, model: nn.Module, path: str, nodes: Set[fx.Node]) -> bool:
    """Whether nobody else reads the tensors of a module."""
    module = model.get_submodule(path)
    names = {f"{path}.{name}" for name, _ in itertools.chain(module.named_parameters(), module.named_buffers())}
    stored = [node for node, name in network.names.items() if name in names]
    return all(user in nodes for node in stored for user in node.users)


def home(network: Network, model: nn.Module, call: Call, nodes: Iterable[fx.Node]) -> Call:
    """The innermost call around one that a graph can stand for.

    Args:
        network: as it was read.
        model: with the modules of the network by their names.
        call: where to begin.
        nodes: what there is to replace, to be named where somebody watches.

    Raises:
        SeenError: there is none below a module with hooks.
    """
    while not replaceable(network, model, call):
        if has_hooks(model.get_submodule(call.path)) or call.parent is None:
            raise SeenError(nodes)
        call = call.parent
    return call


def install(model: nn.Module, path: str, module: nn.Module) -> nn.Module:
    """Put a module in the place of another one, wherever that is; returns the network, which may be the module itself."""
    if not path:
        return module
    old = model.get_submodule(path)
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = module.eval()
    return model


class Region:
    """The graph of what one call of a module computes, of the modules that stay in it and the operators between them.

    Args:
        network: as it was read.
        model: with the modules and tensors that the graph shall have, by the names of the network.
        call: of the module.
        touched: nodes that are not what they were: modules that they belong to become part of the graph.
    """

    def __init__(self, network: Network, model: nn.Module, call: Call, touched: Set[fx.Node]) -> None:
        self.network, self.model, self.call, self.touched = network, model, call, touched
        self.graph, self.parts = fx.Graph(), nn.Module()
        self.made: dict[fx.Node, fx.Node] = {}
        self.named: dict[int, str] = {}

    @property
    def plain(self) -> bool:
        """Whether it is from one tensor to one tensor."""
        return self.call is not self.network.root or (len(self.network.inputs) == 1 and isinstance(self.network.output, Tensor))

    def module(self) -> nn.Module:
        """Runs the graph; named parts have the names that they had."""
        whole, plain = self.call is self.network.root, self.plain
        ends = ends_of(self.network, self.call)
        sources = self.network.inputs if whole or ends is None else [ends[0]]
        for index, source in enumerate(sources):
            self.made[source] = self.graph.placeholder("x" if len(sources) == 1 else f"x{index}")
        for node in self.network.graph.nodes if whole else self.call.nodes:
            if node.op == "call_function" and node not in self.made:
                self.emit(node)
        results = self.network.outputs if whole or ends is None else (ends[1],)
        output = tuple(self.value(node) for node in results)
        self.graph.output(output[0] if plain else output)
        made = self.merged = fx.GraphModule(self.parts, self.graph, class_name="Merged")
        made.graph.eliminate_dead_code()
        made.delete_all_unused_submodules()
        made.recompile()
        self._keep_masks(made)
        steps = [node for node in made.graph.nodes if node.op != "placeholder"]
        if plain and [node.op for node in steps] == ["call_module", "output"]:
            return made.get_submodule(str(steps[0].target))
        return made.eval() if plain else _Structured(made, self.network.output).eval()

    def _keep_masks(self, made: nn.Module) -> None:
        """Masks that stand at modules of the graph stay parts of it."""
        held = {id(masked.masks) for module in made.modules() for masked in placed(module)}
        for path, module in self.model.named_modules():
            inside = not self.call.path or path.startswith(f"{self.call.path}.")
            if id(module) in held and inside:
                holder, local = _holder(made, self._relative(path))
                holder.add_module(local, module)

    def emit(self, node: fx.Node) -> None:
        """Put what computes a value into the graph."""
        if not self.emit_unit(node):
            self.copy(node)

    def emit_unit(self, node: fx.Node) -> bool:
        """Call the module that a node belongs to, if it can be called as it is; whether that is so."""
        unit = self.unit(node)
        if unit is not None:
            (source, result) = unit[1]
            if node is result or source not in self.made:
                name = self.place(unit[0].path, self.model.get_submodule(unit[0].path))
                self.made[result] = self.graph.call_module(name, (self.value(source),))
        return unit is not None

    def arguments(self, node: fx.Node) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        """What the operator of a node is called with."""
        return node.args, node.kwargs

    def copy(self, node: fx.Node) -> None:
        """Put the operator of a node into the graph."""
        hooked = [c.path for c in self.network.calls[node] if c.path != self.call.path and has_hooks(self.model.get_submodule(c.path))]
        if any(path.startswith(self.call.path) for path in hooked):
            raise SeenError(self.touched)
        args, kwargs = self.arguments(node)
        args, kwargs = fx.map_arg((_any_batch(node, args), kwargs), self.value)
        self.made[node] = self.graph.call_function(node.target, args, kwargs)  # pyright: ignore[reportArgumentType]

    def unit(self, node: fx.Node) -> tuple[Call, tuple[fx.Node, fx.Node]] | None:
        """The outermost call inside of this one that a node belongs to and that can be made as it is."""
        chain = self.network.calls[node]
        inner = chain[chain.index(self.call) + 1 :] if self.call in chain else chain
        for call in inner:
            ends = ends_of(self.network, call)
            if ends is not None and self.touched.isdisjoint(call.nodes) and not self.network.is_constant(ends[1]):
                return call, ends
        return None

    def value(self, node: fx.Node) -> fx.Node:
        """What stands for a value here; constants from outside are taken in."""
        if node not in self.made:
            if node in self.network.names:
                self.made[node] = self.graph.get_attr(self._tensor(self.network.names[node]))
            else:
                assert self.network.is_constant(node), f"{node.name} is computed outside of {self.call.path}"
                self.copy(node)
        return self.made[node]

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
        """Take a module in; the name that it has here."""
        if id(module) in self.named:
            return self.named[id(module)]
        taken = {name for name, _ in self.parts.named_modules()}
        fresh = next(
            name for name in itertools.chain([path], (f"{path}_{i}" for i in itertools.count(1))) if self._relative(name) not in taken
        )
        holder, local = _holder(self.parts, self._relative(fresh))
        holder.add_module(local, module)
        self.named[id(module)] = self._relative(fresh)
        return self.named[id(module)]

    def _relative(self, path: str) -> str:
        prefix = f"{self.call.path}."
        return path.removeprefix(prefix) if self.call.path and path.startswith(prefix) else path


def _holder(parts: nn.Module, path: str) -> tuple[nn.Module, str]:
    """The module that a name is of, made where it is missing, and the last part of the name."""
    *parents, local = path.split(".")
    for parent in parents:
        if parent not in parts._modules:
            parts.add_module(parent, nn.Module())
        parts = parts.get_submodule(parent)
    return parts, local


def tensor_of(model: nn.Module, path: str) -> Any:
    """A parameter, buffer or other tensor of a network by its name."""
    owner, _, name = path.rpartition(".")
    return getattr(model.get_submodule(owner), name)


def _any_batch(node: fx.Node, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Arguments without the size of the batch where it stays what it is."""
    if node.target not in (aten.view.default, aten.expand.default) or not isinstance(node.args[0], fx.Node):
        return args
    x, sizes = node.args[0], list(args[1])
    if node.target is aten.view.default and -1 in sizes:
        sizes = list(shape(node))
    if shape(x) and sizes and shape(node)[0] == shape(x)[0] and (node.target is aten.view.default or len(sizes) == len(shape(x))):
        sizes[0] = -1
    return x, sizes


class _Structured(nn.Module):
    """A graph from tensors to tensors, called as the network that it was made of, and with outputs of the same structure."""

    def __init__(self, network: nn.Module, output: Any) -> None:
        super().__init__()
        self.network = network
        self._output = output

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Tensors among the arguments, in order; all else is a constant of the graph."""
        tensors = [value for _, value in leaves((args, kwargs)) if isinstance(value, Tensor)]
        found: Iterator[Tensor] = iter(self.network(*tensors))
        return map_tensors(self._output, lambda _: next(found))
