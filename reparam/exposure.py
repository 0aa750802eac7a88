"""Where a value of a network can be reached from outside: at the modules that take or return it, else in the graph of the one between."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, fx, nn

from reparam.graph import Call, Network, is_norm, read
from reparam.masking import Site
from reparam.regions import Region, SeenError, home, install, returned, taken


class Exposed:
    """Which values the modules of a network return, or take as their one argument."""

    def __init__(self, network: Network, blocks: set[str]) -> None:
        self.network = network
        self.returned: dict[fx.Node, list[Call]] = {}
        self.taken: dict[fx.Node, list[Call]] = {}
        self.ends: dict[Call, tuple[fx.Node | None, fx.Node | None]] = {}
        for call in itertools.chain.from_iterable(network.by_path.values()):
            if not any(call.path.startswith(f"{block}.") for block in blocks):
                front, end = taken(network, call), returned(network, call)
                end = None if end is None or not set(call.nodes).isdisjoint(end.users) else end  # who reads it inside sees no mask
                self.ends[call] = front, end
                for index, value in ((self.taken, front), (self.returned, end)):
                    if value is not None:
                        index.setdefault(value, []).append(call)

    def at(self, node: fx.Node, alike: Callable[[fx.Node], bool]) -> list[tuple[str, bool]]:
        """Modules to mask a value at, and whether in front of them; none where its reader or its maker is in the middle of code.

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
        """Name of a value in the graph of the module whose code computes it, and of the module; none where that has to keep its code."""
        try:
            call = home(self.network, self.network.model, self.network.calls[node][-1], [node])
        except SeenError:
            return []
        region = _Exposing(self.network, self.network.model, call, {node})
        norms = any(is_norm(other) and region.unit(other) is None for other in call.nodes)  # they would be those of evaluation mode
        if norms or (call is self.network.root and not region.plain):
            return []
        return [(f"{call.path}.{node.name}".lstrip("."), call.path)]

    def _all(self, path: str, end: int, alike: Callable[[fx.Node], bool]) -> bool:
        ends = [self.ends[call][end] for call in self.network.by_path[path]]
        return all(node is not None and alike(node) for node in ends)


class _Exposing(Region):
    """The graph of a call with an `nn.Identity` behind the values that are touched, by their names, for masks to stand at."""

    def copy(self, node: fx.Node) -> None:
        """Put an operator into the graph."""
        super().copy(node)
        if node in self.touched:
            name = self.place(f"{self.call.path}.{node.name}".lstrip("."), nn.Identity())
            self.made[node] = self.graph.call_module(name, (self.made[node],))


def with_graphs(model: nn.Module, example_input: Tensor | tuple[Any, ...], sites: Sequence[Site]) -> nn.Module:
    """The network with graphs in the place of the modules that sites name."""
    if all(site.graph is None for site in sites):
        return model
    modes = {path: module.training for path, module in model.named_modules()}
    network = read(model, example_input if isinstance(example_input, tuple) else (example_input,))
    for path in sorted({site.graph for site in sites if site.graph is not None}, key=len, reverse=True):
        names = {site.module.removeprefix(f"{path}.") for site in sites if site.graph == path}
        for call in network.by_path.get(path, [])[:1]:
            model = install(model, path, _Exposing(network, model, call, {node for node in call.nodes if node.name in names}).module())
    for path, module in model.named_modules():
        module.training = modes.get(path, modes[""])
    return model
