"""Which channels of a network depend on one another: a walk over its graph by the rules of `reparam.rules`.

Every channel of every value is an atom: `Channels` holds for each entry of a value which atom it belongs to, and whether it is dead: the
same number, `const`, for every input. A factor of 0, as of a mask, makes a channel dead; a norm or an activation behind it may make another
number of the 0.

- What passes channels on hands on their atoms; an addition unites those of its operands.
- What mixes channels (a convolution, a linear layer) reads the live ones and makes new ones. A dead one that is not 0 goes into its bias.
- What has no rule, the inputs and the outputs pin their channels: all of them stay. A dead channel that gets to such an operator, or one
  whose number no bias can hold, as in front of a border of zeros, is a `Refusal`.

Where all rules have been applied, an atom that nobody reads alive is gone everywhere. Convolutions in groups are kept dense: a group that
has a channel left, in or out, keeps as many as the largest one, so some masked channels stay; groups without any go.
"""

import operator
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from reparam.atoms import Atoms, Flags, Ids
from reparam.errors import ReparamError
from reparam.graph import Network, operator_of, shape

Numbers = NDArray[np.float64]

BORDER = "has a border that is not uniform: the masked channels that it reads are not 0 but a number"
JOINS = "joins different numbers in one masked channel"
GENERIC = 0.7390851332151607
"""Stands for a number that training will decide."""


@dataclass(frozen=True)
class Channels:
    """The atom, liveness and number of each entry of a value; of size 1 along dimensions in which they are the same."""

    ids: Ids
    live: Flags
    const: Numbers

    @property
    def dims(self) -> tuple[int, ...]:
        """The dimensions along which there are several channels."""
        return tuple(dim for dim, size in enumerate(self.ids.shape) if size > 1)

    def map(self, change: Callable[[Any], Any]) -> "Channels":
        """The same change of shape for all three."""
        return Channels(change(self.ids), change(self.live), change(self.const))


Value = Channels | tuple[Channels | None, ...] | None
"""What is known of a node: None where nothing of it could go."""


@dataclass(frozen=True)
class Refusal:
    """Something that is not exact if the channels go."""

    ids: Ids
    message: str


@dataclass
class Layer:
    """A weight that mixes channels, with all of its calls."""

    node: fx.Node
    weight: fx.Node
    bias: Any
    into: Ids
    out: Ids
    groups: int
    transposed: bool
    folds: list[tuple[fx.Node, Channels, bool]] = field(default_factory=list)
    """for each call: what it reads, in one dimension, and whether a number other than 0 would be exact in the bias"""


class Flow:
    """One walk over a network by the rules.

    Args:
        network: as it was read.
        generic: take what weights decide, as the shift of a norm, for some number other than 0, as it is once the network is trained.
        behind: is shown the channels of every node, and returns what they are behind it.
    """

    def __init__(
        self, network: Network, *, generic: bool = False, behind: Callable[[fx.Node, Channels], Channels] = lambda _, value: value
    ) -> None:
        from reparam.rules import rule_of  # the rules' signatures name this class

        self.network, self.generic = network, generic
        self.atoms = Atoms()
        self.values: dict[fx.Node, Value] = {}
        self.layers: dict[fx.Node, Layer] = {}
        """by weight"""
        self.cuts: dict[str, Ids] = {}
        """atoms of the entries of parameters and buffers, by name; weights that mix channels are in `layers`"""
        self.sized: list[tuple[fx.Node, Ids, Ids]] = []
        """nodes whose modules hold numbers of channels: with their inputs and outputs"""
        self.makers: list[tuple[fx.Node, Ids]] = []
        self.readers: list[tuple[fx.Node, Ids]] = []
        self.refusals: list[Refusal] = []
        self.filled: list[Ids] = []
        """not masked, but nothing but a bias since all that makes them is"""
        self.pinned: list[tuple[Ids, str]] = []
        self.alike: set[fx.Node] = set()
        """nodes that hand on the channels of their operands one by one, and sizes too"""
        self.boxes: list[tuple[fx.Node, Ids]] = []
        """values with channels in several dimensions: what stays must be a box"""
        self._rule_of = rule_of
        self._tables: dict[fx.Node, Channels | None] = {}
        self._done = False
        for node in network.graph.nodes:
            if node.op == "output":
                for output in network.outputs:
                    self.pin(self.of(output), "it is an output of the network")
            elif node.op == "call_function" and not network.is_constant(node):
                pinned = len(self.pinned)
                value = rule_of(node)(self, node)
                if value is None and len(self.pinned) == pinned and not self._is_part(node):
                    self.opaque(node)
                if isinstance(value, Channels):
                    value = behind(node, value)
                self.values[node] = value
        self._done = True  # who asks later finds what the rules have asked for
        self._keep_constants()
        self._box()

    def _is_part(self, node: fx.Node) -> bool:
        return node.target is operator.getitem and isinstance(self.values.get(node.args[0]), tuple)  # pyright: ignore[reportArgumentType]

    # --- what is known ---

    def of(self, value: Any) -> Channels | None:
        """The channels of an argument; None for what has none that could go."""
        if not isinstance(value, fx.Node):
            return None
        if self.network.is_constant(value):
            return self._table(value)
        found = self.values.get(value)
        return found if isinstance(found, Channels) else None

    def known(self, node: fx.Node) -> list[Channels]:
        """The channels of what a node reads, apart from constants."""
        values = (self.values.get(n) for n in self.network.reads(node))
        return [x for value in values for x in (value if isinstance(value, tuple) else (value,)) if x is not None]

    def along(self, node: fx.Node, dim: int, reader: fx.Node) -> Channels:
        """What a node has along one dimension, in one dimension: where nothing can go there, channels that stay."""
        x, width = self.of(node), shape(node)[dim]
        constant = self.network.is_constant(node)
        if x is not None and not constant and x.ids.shape[dim] == width and (width > 1 or not x.dims):
            return self._one_dimension(x, dim, reader)
        why = f"they are tied to {self.value_name(node)}, which has no channels to remove"
        if x is not None and not constant:
            where = f" over dimension {dim}, where channels are dimension {' and '.join(map(str, x.dims))}"
            self.opaque(reader, where)
            why = f"{self.describe(reader)} takes them{where}"
        fresh = self.fresh(width)
        self.pin(fresh, why)
        return fresh

    def _one_dimension(self, x: Channels, dim: int, reader: fx.Node) -> Channels:
        rows = x.map(lambda array: np.moveaxis(array, dim, 0).reshape(array.shape[dim], -1))
        return (rows if rows.ids.shape[1] == 1 else self.joined(reader, rows, 1)).map(lambda array: array[:, 0])

    def joined(self, node: fx.Node, x: Channels, dim: int) -> Channels:
        """Entries along a dimension as one entry: they are tied."""
        first = x.map(lambda array: array.take([0], dim))
        self.unite(x.ids, first.ids)
        live = x.live.any(dim, keepdims=True)
        mixed = ~live & (x.const != first.const).any(dim, keepdims=True)
        self.refuse(node, first.ids[mixed], JOINS)
        return Channels(first.ids, live | mixed, np.where(live | mixed, 0.0, first.const))

    def fresh(self, width: int) -> Channels:
        """New channels, alive, in one dimension."""
        return Channels(self.atoms.new(width), np.ones(width, bool), np.zeros(width))

    def _table(self, node: fx.Node) -> Channels | None:
        """A constant with one atom for each entry that no layer makes: a parameter is cut along, anything else stays."""
        if node not in self._tables and not self._done:
            self._tables[node] = None
            numbers = self._constant(node)
            if isinstance(numbers, Tensor) and numbers.ndim:
                self._tables[node] = self._entries(node, numbers)
        return self._tables.get(node)

    def _entries(self, node: fx.Node, numbers: Tensor) -> Channels:
        name = self.network.stored(node)
        moved = self._rule_of(node)(self, node) if node.op == "call_function" else None
        const = numbers.double().numpy()
        if isinstance(moved, Channels):
            ids = moved.ids
            const = const[tuple(slice(None if own == full else 1) for own, full in zip(ids.shape, const.shape, strict=True))]
        else:
            ids = self.atoms.new(const.size).reshape(const.shape)
            if name is None:
                self.pin(Channels(ids, np.zeros(ids.shape, bool), const), f"{self.value_name(node)} has a number for each of them")
            else:
                self.cut(node, ids)
        return Channels(ids, np.zeros(ids.shape, bool), const)

    def _trained(self, node: fx.Node) -> bool:
        """Whether a constant depends on weights."""
        if node in self.network.names:
            return node.meta["val"].is_floating_point()
        return any(map(self._trained, node.all_input_nodes))

    def value_name(self, node: fx.Node) -> str:
        """A value in words."""
        return "an input of the network" if node.op == "placeholder" else f"node {node.name}"

    def describe(self, node: fx.Node, *, named: bool = True) -> str:
        """A node in words: its name, its operator if asked, and the module whose code calls it."""
        groups = node.args[8] if operator_of(node) == "convolution" else 1
        of = f" of {groups} groups" if groups != 1 else ""
        chain = self.network.calls[node]
        path = chain[-1].path if chain else ""
        inside = f" in {path}" if path else ""
        return f"node {node.name} ({operator_of(node)}{of}{inside})" if named else f"node {node.name}{inside}"

    def run(self, node: fx.Node, operands: dict[fx.Node, Tensor]) -> Any:
        """Run the operator of a node on other values, in float64."""
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: operands[n] if n in operands else self._constant(n))
        assert callable(node.target)
        with torch.no_grad():
            return node.target(*args, **kwargs)

    def dead(self, node: fx.Node, x: Channels, full: Collection[int] = ()) -> Tensor:
        """The value of a node where only its dead channels are not 0; along some dimensions in full size."""
        sizes = [size if dim in full else own for dim, (own, size) in enumerate(zip(x.const.shape, shape(node), strict=True))]
        return torch.from_numpy(np.array(x.const)).expand(sizes)

    def _constant(self, node: fx.Node) -> Any:
        found = self.network.constant(node)
        if not isinstance(found, Tensor):
            return found
        return torch.full_like(found, GENERIC, device="cpu") if self.generic and self._trained(node) else found.cpu()

    # --- what belongs together ---

    def unite(self, a: Ids, b: Ids) -> None:
        """Tie channels, broadcast over one another."""
        if a is not b:
            self.atoms.unite(*(side.ravel() for side in np.broadcast_arrays(a, b)))

    def cut(self, value: Any, ids: Ids) -> None:
        """A constant argument, if there is one, has an entry for each of these channels."""
        if not isinstance(value, fx.Node):
            return
        name = self.network.stored(value)
        if name is None:
            table = self.of(value)
            if table is not None:
                self.unite(table.ids.ravel(), ids.ravel())
            return
        known = self.cuts.setdefault(name, ids)
        self.unite(known.ravel(), ids.ravel())

    def pin(self, value: Channels | None, why: str) -> None:
        """All of these channels stay."""
        if value is not None:
            self.atoms.read(value.ids.ravel())
            self.pinned.append((value.ids.ravel(), why))

    def opaque(self, node: fx.Node, detail: str = "") -> None:
        """No rule: exact as long as everything stays."""
        why = f"squeeze has no rule for {operator_of(node)}{detail}"
        for x in self.known(node):
            self.refuse(node, x.ids[~x.live], why, named=False)
            self.pin(x, f"{self.describe(node, named=False)}: {why}")

    def refuse(self, node: fx.Node, ids: Ids, why: str, *, named: bool = True) -> None:
        """These channels cannot go: an error if they are masked, else they stay."""
        if not ids.size:
            return
        none, roots = np.empty(0, np.int64), self.atoms.roots(ids)
        filled = np.isin(roots, self.atoms.roots(np.concatenate([none, *self.filled])))
        filled |= ~np.isin(roots, self.atoms.roots(np.concatenate([none, *(made for _, made in self.makers)])))  # a border, a constant
        self.atoms.read(ids[filled])
        if filled.all():
            return
        ids = ids[~filled]
        group = self.group(ids)
        count = len(np.unique(self.atoms.roots(ids)))
        self.refusals.append(
            Refusal(
                ids,
                f"{self.describe(node, named=named)}: {why}; {count} masked channels of {group} get there: run fuse(model) first, put the "
                f"mask behind norm and activation, or leave {group} unmasked",
            )
        )

    def finish(self) -> None:
        """Find the numbers that a bias would have to take up and cannot, once every rule has been applied."""
        while left := [(node, ids) for layer in self.layers.values() for node, ids in self._unfolded(layer) if len(ids)]:
            known = len(self.refusals)
            for node, ids in left:  # what then stays may let go of what stood in for it: look again
                self.refuse(node, ids, BORDER)
            if len(self.refusals) > known:
                return

    def _unfolded(self, layer: Layer) -> Iterator[tuple[fx.Node, Ids]]:
        """Channels that go from where they leave a number that no bias can take up."""
        for node, x, exact in layer.folds:
            if not exact:
                yield node, x.ids[~self.atoms.kept(x.ids) & (x.const != 0)]

    def _keep_constants(self) -> None:
        """Entries of constants that go with no channel of any value stay."""
        tables = [x.ids.ravel() for x in self._tables.values() if x is not None]
        if tables:
            ids = np.unique(np.concatenate(tables))
            others = np.setdiff1d(np.arange(self.atoms.count), ids)
            self.atoms.read(ids[~np.isin(self.atoms.roots(ids), self.atoms.roots(others))])

    def _box(self) -> None:
        """Where channels are in several dimensions, entries of all but one go together: of the one with most."""
        for _, ids in self.boxes:
            roots = self.atoms.roots(ids)
            free = [dim for dim in range(ids.ndim) if (roots != roots.take([0], dim)).any()]
            if len(free) > 1:
                stays = max(free, key=lambda dim: ids.shape[dim])
                rows = np.moveaxis(ids, stays, 0).reshape(ids.shape[stays], -1)
                self.unite(rows, rows[:, :1])

    # --- what others ask ---

    def group(self, ids: Ids) -> str:
        """The first layer that makes one of these channels."""
        roots = self.atoms.roots(ids.ravel())
        return next((self.layer_name(node) for node, made in self.makers if np.isin(self.atoms.roots(made), roots).any()), "(input)")

    def layer_name(self, node: fx.Node) -> str:
        """Name of the module whose layer a node is: of the one that holds its weight, where another one's code uses it."""
        path = self.network.where(node)
        weight: Any = node.args[1]
        owner = self.network.names.get(weight, "").rpartition(".")[0]
        inner = owner.startswith(f"{path}.") and ".parametrizations" not in owner
        return owner if inner else path

    def kept(self, x: Channels, dim: int) -> Flags:
        """Which entries of a value along a dimension stay."""
        return entries_along(self.atoms.kept(x.ids), dim)

    def size(self, node: fx.Node, dim: int) -> int:
        """Of a node along a dimension, when the channels are gone."""
        x, full = self.of(node), shape(node)[dim]
        return full if x is None or x.ids.shape[dim] == 1 else int(self.kept(x, dim).sum())

    def groups(self, layer: Layer) -> int:
        """Of a convolution, when those without channels are gone."""
        return max(1, int(self.atoms.kept(layer.out).reshape(layer.groups, -1).any(1).sum()))

    def keeps_zero(self, node: fx.Node) -> bool:
        """Whether a node that hands channels on one by one makes 0 of 0."""
        (source,) = self.network.reads(node)
        return not bool(self.run(node, {source: torch.zeros(shape(source), dtype=torch.float64)}).any())


def entries_along(flags: Flags, dim: int) -> Flags:
    """Which entries along a dimension have a flag anywhere."""
    rows = np.moveaxis(flags, dim, 0).reshape(flags.shape[dim], -1)
    return np.asarray(rows.any(1))


def folded_bias(weight: Tensor, bias: Tensor | None, layer: Layer, const: Numbers, which: Flags) -> Numbers:
    """The bias of a layer that has `const` in the input channels `which`, and 0 in the others."""
    kernel = weight.detach().cpu().double().numpy()
    kernel = kernel.reshape(*kernel.shape[:2], -1).sum(2)
    numbers = np.where(which, const, 0.0).reshape(layer.groups, -1)
    kernel = kernel.reshape(layer.groups, -1, kernel.shape[1])
    spread = np.einsum("gi,gio->go" if layer.transposed else "gi,goi->go", numbers, kernel).ravel()
    return spread if bias is None else spread + bias.detach().cpu().double().numpy()


def require_none(refusals: Iterable[Refusal]) -> None:
    """Raise the first refusal.

    Raises:
        ReparamError: there is one.
    """
    for refusal in refusals:
        raise ReparamError(refusal.message)
