"""Put what is merged back into the person's own module: new weights where its code stays right, its graph where it does not."""

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from reparam.branches import Merge
from reparam.graph import Call, Network, aten, has_hooks, shape
from reparam.structure import leaves, map_tensors

_LAYERS = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear,
)  # fmt: skip


class SeenError(Exception):
    """A merge would take away a module whose calls somebody watches by a hook."""

    def __init__(self, nodes: Sequence[fx.Node]) -> None:
        super().__init__()
        self.nodes = nodes


@dataclass(frozen=True)
class Rewritten:
    """What came out."""

    module: nn.Module
    graphs: tuple[str, ...]
    """names of the modules that are a graph now; "" is the network itself"""
    layers: tuple[tuple[nn.Module, torch.dtype], ...]
    """layers with weights in float64, and the type that the network has them in"""
    values: tuple[fx.GraphModule, Mapping[fx.Node, str]] | None = None
    """where the network itself is a graph: that graph, and which of its nodes computes which value of the network that was read"""

    def rounded(self) -> nn.Module:
        """The module with every weight in the type that it had."""
        for layer, dtype in self.layers:
            layer.to(dtype)
        return self.module


def rewrite(network: Network, merges: Sequence[Merge], *, whole: bool = False) -> Rewritten:
    """A copy of the network with its merges, the merged layers in float64.

    A row of operators becomes its layer with other weights, and the rest of the row an `nn.Identity` each. Where the code of a module
    computes what is gone, as the sum of branches, the module becomes a graph of the modules that stay and the merged layer.

    Args:
        network: as it was read.
        merges: of it.
        whole: make a graph of the network itself.

    Raises:
        SeenError: a module with hooks would go.
    """
    return _Rewriter(network, merges, whole=whole).result()


class _Rewriter:
    def __init__(self, network: Network, merges: Sequence[Merge], *, whole: bool) -> None:
        self.network, self.merges, self.whole = network, merges, whole
        self.model: nn.Module = copy.deepcopy(network.model)
        self.rows = [merge for merge in merges if merge.chain]
        self.gone = {node for merge in merges for node in merge.form.absorbed} - {merge.host for merge in self.rows}
        self.gone -= {merge.node for merge in merges if not merge.chain} | {node for merge in merges for node in merge.form.moves}
        self.hosts = {merge.host: merge for merge in self.rows}
        self.homes: dict[Call, list[Merge]] = {}
        self.in_place: list[Merge] = []
        self.layers = list(self._more_exact())
        self.idle: set[str] = set()
        """names of modules that have nothing left to do"""

    def _more_exact(self) -> Iterator[tuple[nn.Module, torch.dtype]]:
        for node, name in self.network.names.items():
            owner = self.model.get_submodule(name.rpartition(".")[0]) if name else self.model
            tensor = getattr(owner, name.rpartition(".")[2], None)
            if isinstance(tensor, Tensor) and tensor.dtype != node.meta["val"].dtype:
                yield owner, node.meta["val"].dtype

    def result(self) -> Rewritten:
        for merge in self.merges:
            self._plan(merge)
        for merge in self.in_place:
            self._update(merge)
        for path in sorted(self.idle):
            self._install(path, nn.Identity())
        values = None
        for call in sorted(self.homes, key=lambda call: -len(call.path)):
            region = _Region(self, call)
            self._install(call.path, region.module())
            if self.whole:
                inner = {node for merge in self.merges for node in merge.form.absorbed - {merge.node}}
                values = region.merged, {node: made.name for node, made in region.made.items() if node not in inner}
        return Rewritten(self.model.eval(), tuple(call.path for call in self.homes), tuple(self.layers), values)

    # --- what happens to which module ---

    def _plan(self, merge: Merge) -> None:
        if self.whole:
            self._home(self.network.root, merge)
            return
        if not merge.chain:
            self._home(self._common(merge), merge)
            return
        if self._fits_in_place(merge):
            self.in_place.append(merge)
        else:
            self._home(self.network.calls[merge.host][-1], merge)
        for node in merge.form.absorbed - merge.form.moves - {merge.host}:
            call = self.network.calls[node][-1]
            if self._is_idle(call.path):
                self.idle.add(call.path)
            else:
                self._home(call, merge)

    def _home(self, call: Call, merge: Merge) -> None:
        while not self._replaceable(call):
            if has_hooks(self.model.get_submodule(call.path)) or call.parent is None:
                raise SeenError([merge.node])
            call = call.parent
        if merge not in self.homes.setdefault(call, []):
            self.homes[call].append(merge)

    def _replaceable(self, call: Call) -> bool:
        if has_hooks(self.model.get_submodule(call.path)):
            return False
        alone = len(self.network.by_path[call.path]) == 1 and self._only_readers(call.path, set(call.nodes))
        return call is self.network.root or (alone and self.ends(call) is not None)

    def ends(self, call: Call) -> tuple[fx.Node, fx.Node] | None:
        """The one value that a call reads and the one that it makes; None where there are more, or it takes other arguments."""
        if call.key not in self.network.unary:
            return None
        inside = set(call.nodes)
        live = [node for node in call.nodes if not self.network.is_constant(node)]
        read = {x for node in live for x in self.network.reads(node) if x not in inside}
        made = [node for node in live if any(user not in inside for user in node.users)]
        return (read.pop(), made[0]) if len(read) == len(made) == 1 else None

    def _common(self, merge: Merge) -> Call:
        chains = [self.network.calls[node] for node in merge.form.absorbed]
        same = itertools.takewhile(lambda level: len(set(level)) == 1, zip(*chains, strict=False))
        return next(iter(list(same)[::-1]), (self.network.root,))[0]

    def _is_idle(self, path: str) -> bool:
        """Whether all that a module computes, in all of its calls, is gone, and nobody else reads its tensors."""
        nodes = {node for call in self.network.by_path[path] for node in call.nodes}
        computed = [node for node in nodes if not self.network.is_constant(node)]
        return bool(path) and all(node in self.gone for node in computed) and self._only_readers(path, nodes)

    def _only_readers(self, path: str, nodes: set[fx.Node]) -> bool:
        names = {f"{path}.{name}" for name, _ in self._tensors(path)}
        stored = [node for node, name in self.network.names.items() if name in names]
        return all(user in nodes for node in stored for user in node.users)

    def _tensors(self, path: str) -> Iterator[tuple[str, Tensor]]:
        module = self.model.get_submodule(path)
        return itertools.chain(module.named_parameters(), module.named_buffers())

    def _fits_in_place(self, merge: Merge) -> bool:
        """Whether the layer that is there computes it with other weights, in all of its calls."""
        weight, bias, *_ = (*merge.host.args[1:3], None)
        call = self.network.calls[merge.host][-1]
        own: Any = self.model.get_submodule(call.path)
        if not isinstance(own, _LAYERS) or any(node is not merge.host and node in self.gone for node in call.nodes):
            return False
        tensors = [node for node in (weight, bias) if isinstance(node, fx.Node)]
        names = [f"{call.path}.{name}" for name in ("weight", "bias")][: len(tensors)]
        if [self.network.names.get(node) for node in tensors] != names:
            return False
        twins = [self.hosts.get(user) for node in tensors for user in node.users]
        return (
            all(twin is not None and _equal(twin, merge) for twin in twins)
            and tuple(own.weight.shape) == tuple(merge.form.branch()[0].shape)
            and _same_call(own, merge)
        )

    def _update(self, merge: Merge) -> None:
        layer: Any = self.model.get_submodule(self.network.calls[merge.host][-1].path)
        self.layers.append((layer, merge.host.meta["val"].dtype))
        trained = layer.weight.requires_grad
        layer.weight, layer.bias = (nn.Parameter(tensor.detach().clone(), trained) for tensor in merge.form.branch())

    def _install(self, path: str, module: nn.Module) -> None:
        if not path:
            self.model = module
            return
        old = self.model.get_submodule(path)
        for parent in list(self.model.modules()):
            for name, child in parent._modules.items():
                if child is old:
                    parent._modules[name] = module.eval()


def _equal(one: Merge, other: Merge) -> bool:
    if one is other:
        return True
    return one.form.same_geometry(other.form) and all(
        itertools.starmap(torch.equal, zip(one.form.branch(), other.form.branch(), strict=True))
    )


def _same_call(layer: Any, merge: Merge) -> bool:
    """Whether the layer is called as the merged one is: its own code says how."""
    if isinstance(layer, nn.Linear):
        return True
    _, _, _, stride, padding, dilation, *_, groups = merge.host.args
    form = merge.form
    wanted = (form.stride, form.padding, form.dilation, form.groups)
    return wanted == (*(tuple(value) for value in (stride, padding, dilation)), groups)  # pyright: ignore[reportArgumentType]


class _Region:
    """The graph of what one call of a module computes."""

    def __init__(self, rewriter: _Rewriter, call: Call) -> None:
        self.rewriter, self.network, self.call = rewriter, rewriter.network, call
        self.model = rewriter.model
        self.graph, self.parts = fx.Graph(), nn.Module()
        self.made: dict[fx.Node, fx.Node] = {}
        self.homed = rewriter.homes[call]
        self.sums = {merge.node: merge for merge in self.homed if not merge.chain}
        self.rows = {merge.host: merge for merge in self.homed if merge.chain}
        self.touched = {node for merge in self.homed for node in merge.form.absorbed} - self._idle_nodes()
        self.named: dict[int, str] = {}

    def _idle_nodes(self) -> set[fx.Node]:
        """Nodes of modules that are an identity, or their layer with other weights, by now."""
        kept = self.rewriter.idle | {self.network.calls[merge.host][-1].path for merge in self.rewriter.in_place}
        return {node for path in kept for call in self.network.by_path[path] for node in call.nodes}

    def module(self) -> nn.Module:
        """Runs the graph; named parts have the names that they had."""
        whole = self.call is self.network.root
        ends = self.rewriter.ends(self.call)
        sources = self.network.inputs if whole or ends is None else [ends[0]]
        for index, source in enumerate(sources):
            self.made[source] = self.graph.placeholder("x" if len(sources) == 1 else f"x{index}")
        for node in self.network.graph.nodes if whole else self.call.nodes:
            if node.op == "call_function" and node not in self.made:
                self._emit(node)
        results = self.network.outputs if whole or ends is None else (ends[1],)
        output = tuple(self._value(node) for node in results)
        plain = not whole or (len(sources) == 1 and isinstance(self.network.output, Tensor))
        self.graph.output(output[0] if plain else output)
        made = self.merged = fx.GraphModule(self.parts, self.graph, class_name="Merged")
        made.graph.eliminate_dead_code()
        made.delete_all_unused_submodules()
        made.recompile()
        steps = [node for node in made.graph.nodes if node.op != "placeholder"]
        if plain and [node.op for node in steps] == ["call_module", "output"]:
            return made.get_submodule(str(steps[0].target))
        return made.eval() if plain else _Structured(made, self.network.output).eval()

    def _emit(self, node: fx.Node) -> None:
        unit = self._unit(node)
        if unit is not None:
            (source, result) = unit[1]
            if node is result or source not in self.made:
                name = self._place(unit[0].path, self.model.get_submodule(unit[0].path))
                self.made[result] = self.graph.call_module(name, (self._value(source),))
        elif node in self.sums:
            self.made[node] = self._layer(self.sums[node], self.sums[node].form.source)
        elif node in self.rows:
            self.made[node] = self._layer(self.rows[node], node.all_input_nodes[0])
        elif node in self.touched and node in self.rewriter.gone and self._in_row(node):
            self.made[node] = self._value(self.network.reads(node)[0])
        elif not (node in self.touched and node in self.rewriter.gone):
            self._copy(node)

    def _in_row(self, node: fx.Node) -> bool:
        return any(node in merge.form.absorbed for merge in self.rewriter.rows)

    def _copy(self, node: fx.Node) -> None:
        hooked = [c.path for c in self.network.calls[node] if c.path != self.call.path and has_hooks(self.model.get_submodule(c.path))]
        if any(path.startswith(self.call.path) for path in hooked):
            raise SeenError([merge.node for merge in self.homed])
        args, kwargs = fx.map_arg((_any_batch(node), node.kwargs), self._value)
        self.made[node] = self.graph.call_function(node.target, args, kwargs)  # pyright: ignore[reportArgumentType]

    def _unit(self, node: fx.Node) -> tuple[Call, tuple[fx.Node, fx.Node]] | None:
        """The outermost call inside of this one that a node belongs to and that can be made as it is."""
        chain = self.network.calls[node]
        inner = chain[chain.index(self.call) + 1 :] if self.call in chain else chain
        for call in inner:
            ends = self.rewriter.ends(call)
            if ends is not None and self.touched.isdisjoint(call.nodes) and not self.network.is_constant(ends[1]):
                return call, ends
        return None

    def _value(self, node: fx.Node) -> fx.Node:
        """What stands for a value here; constants from outside are taken in."""
        if node not in self.made:
            if node in self.network.names:
                self.made[node] = self.graph.get_attr(self._tensor(self.network.names[node]))
            else:
                assert self.network.is_constant(node), f"{node.name} is computed outside of {self.call.path}"
                self._copy(node)
        return self.made[node]

    def _tensor(self, path: str) -> str:
        tensor = _tensor_of(self.model, path)
        local = self._relative(path).replace(".", "_")
        while hasattr(self.parts, local):
            local += "_"
        if isinstance(tensor, nn.Parameter):
            self.parts.register_parameter(local, tensor)
        else:
            self.parts.register_buffer(local, tensor)
        return local

    def _layer(self, merge: Merge, source: fx.Node) -> fx.Node:
        stored = self.network.names.get(merge.host.args[1])  # pyright: ignore[reportArgumentType]
        layer = merge.form.module(trained=stored is None or _tensor_of(self.network.model, stored).requires_grad)
        self.rewriter.layers.append((layer, merge.host.meta["val"].dtype))
        path = self.network.calls[merge.host][-1].path
        path = path if path != self.call.path else f"{path}.conv".lstrip(".")
        name = self._place(path, layer)
        return self.graph.call_module(name, (self._value(source),))

    def _place(self, path: str, module: nn.Module) -> str:
        if id(module) in self.named:
            return self.named[id(module)]
        taken = {name for name, _ in self.parts.named_modules()}
        fresh = next(
            name for name in itertools.chain([path], (f"{path}_{i}" for i in itertools.count(1))) if self._relative(name) not in taken
        )
        holder, local = self._holder(fresh)
        holder.add_module(local, module)
        self.named[id(module)] = self._relative(fresh)
        return self.named[id(module)]

    def _relative(self, path: str) -> str:
        prefix = f"{self.call.path}."
        return path.removeprefix(prefix) if self.call.path and path.startswith(prefix) else path

    def _holder(self, path: str) -> tuple[nn.Module, str]:
        *parents, local = self._relative(path).split(".")
        holder = self.parts
        for parent in parents:
            if parent not in holder._modules:
                holder.add_module(parent, nn.Module())
            holder = holder.get_submodule(parent)
        return holder, local


def _tensor_of(model: nn.Module, path: str) -> Any:
    owner, _, name = path.rpartition(".")
    return getattr(model.get_submodule(owner), name)


def _any_batch(node: fx.Node) -> tuple[Any, ...]:
    """Arguments without the size of the batch where it stays what it is."""
    if node.target not in (aten.view.default, aten.expand.default) or not isinstance(node.args[0], fx.Node):
        return node.args
    x, sizes = node.args[0], list(shape(node) if node.target is aten.view.default else node.args[1])  # pyright: ignore[reportArgumentType]
    if shape(x) and sizes and sizes[0] == shape(x)[0] and (node.target is aten.view.default or len(sizes) == len(shape(x))):
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
        found = iter(self.network(*tensors))
        return map_tensors(self._output, lambda _: next(found))
