"""Find where a value can be masked: at a module that takes or returns it, else in the graph of its module."""

import itertools
from collections.abc import Callable, Sequence

from torch import fx, nn

from reparam.graph import NetworkGraph, TracedCall, is_norm, read_network
from reparam.masking import MaskSite
from reparam.modules import named_modules
from reparam.regions import HookedModuleError, Region, call_input, call_output, replace_module, replaceable_call
from reparam.structure import Example, arguments_of


class Exposed:
    """Index of the values that the modules of a network return or take as their only argument."""

    def __init__(self, network: NetworkGraph, blocks: set[str]) -> None:
        self.network = network
        self.returned: dict[fx.Node, list[TracedCall]] = {}
        self.taken: dict[fx.Node, list[TracedCall]] = {}
        self.ends: dict[TracedCall, tuple[fx.Node | None, fx.Node | None]] = {}
        for call in itertools.chain.from_iterable(network.by_path.values()):
            if not any(call.path.startswith(f"{block}.") for block in blocks):
                front, end = call_input(network, call), call_output(network, call)
                if end is not None and not set(call.nodes).isdisjoint(end.users):
                    end = None  # readers inside the module would bypass the mask
                self.ends[call] = front, end
                if front is not None:
                    self.taken.setdefault(front, []).append(call)
                if end is not None:
                    self.returned.setdefault(end, []).append(call)

    def at(self, node: fx.Node, alike: Callable[[fx.Node], bool]) -> list[tuple[str, bool]]:
        """Return the modules at which to mask a value, each with whether to mask its input.

        Empty if the value exists only inside a module's code.

        Args:
            node: the value.
            alike: whether another value may be masked in the same way.
        """
        for call in reversed(self.returned.get(node, [])):
            if self._all(call.path, 1, alike):
                return [(call.path, False)]
        fronts: list[tuple[str, bool]] = []
        for user in node.users:
            calls = [call for call in self.taken.get(node, []) if user in call.nodes and self._all(call.path, 0, alike)]
            if not calls:
                return []
            fronts.append((calls[-1].path, True))
        return list(dict.fromkeys(fronts))

    def in_graph(self, node: fx.Node) -> list[tuple[str, str]]:
        """Return the name of a value in its module's graph with the name of that module.

        Empty if the module must keep its code.
        """
        try:
            call = replaceable_call(self.network, self.network.model, self.network.calls[node][-1], [node])
        except HookedModuleError:
            return []
        region = _Exposing(self.network, self.network.model, call, {node})
        # the graph would fix norms to evaluation mode
        norms = any(is_norm(other) and region.unit(other) is None for other in call.nodes)
        if norms or (call is self.network.root and not region.plain):
            return []
        return [(f"{call.path}.{node.name}".lstrip("."), call.path)]

    def _all(self, path: str, end: int, alike: Callable[[fx.Node], bool]) -> bool:
        ends = [self.ends[call][end] for call in self.network.by_path[path]]
        return all(node is not None and alike(node) for node in ends)


class _Exposing(Region):
    """The graph of a call with a named `nn.Identity` after each touched value, for masks to attach to."""

    def copy(self, node: fx.Node) -> None:
        """Add an operator to the graph."""
        super().copy(node)
        if node in self.touched:
            name = self.place(f"{self.call.path}.{node.name}".lstrip("."), nn.Identity())
            self.emitted[node] = self.graph.call_module(name, (self.emitted[node],))


def with_graphs(model: nn.Module, example_input: Example, sites: Sequence[MaskSite]) -> nn.Module:
    """Replace the modules that sites name in `MaskSite.graph` by their graphs."""
    if all(site.graph is None for site in sites):
        return model
    modes = {path: module.training for path, module in named_modules(model)}
    network = read_network(model, arguments_of(example_input))
    for path in sorted({site.graph for site in sites if site.graph is not None}, key=len, reverse=True):
        names = {site.module.removeprefix(f"{path}.") for site in sites if site.graph == path}
        for call in network.by_path.get(path, [])[:1]:
            model = replace_module(
                model,
                path,
                _Exposing(network, model, call, {node for node in call.nodes if node.name in names}).module(),
            )
    for path, module in named_modules(model):
        module.training = modes.get(path, modes[""])
    return model
