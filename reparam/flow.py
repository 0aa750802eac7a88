"""Find out which channels of a network depend on each other: a walk over its graph by the rules of `reparam.rules`.

Every channel of every value is an atom. `Channels` holds the atom of each entry of a value, and whether the entry is
dead: equal to one constant, `const`, for every input. A factor of 0, such as a mask's, makes a channel dead; a norm or
an activation after it may turn the 0 into another constant.

- Operators that pass channels through pass on their atoms; an addition unites the atoms of its operands.
- Operators that mix channels (convolutions, linear layers) read the live ones and produce new ones. A nonzero dead
  channel is folded into the bias.
- Operators without a rule, inputs and outputs pin their channels: all of them are kept. A dead channel is a `Refusal`
  if it reaches such an operator, or if no bias can absorb its constant, as before a zero-padded border.

Once all rules have been applied, an atom that is nowhere read alive is removed everywhere. Grouped convolutions stay
dense: each group with at least one remaining input or output channel keeps as many channels as the largest group, so
some masked channels stay; empty groups are removed.
"""

import operator
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from reparam.atoms import Atoms, Flags, Ids
from reparam.errors import ReparamError
from reparam.graph import NetworkGraph, args_of, operator_of, shape_of
from reparam.typed_torch import from_numpy

Numbers = NDArray[np.float64]

BORDER = "has a non-uniform border: its masked input channels hold a constant other than 0"
JOINS = "joins different constants in one masked channel"
GENERIC = 0.7390851332151607
"""Stands for any value that training will determine."""


@dataclass(frozen=True)
class Channels:
    """Atom, liveness and constant of each entry of a value; of size 1 along dimensions without distinct channels."""

    ids: Ids
    live: Flags
    const: Numbers

    @property
    def dims(self) -> tuple[int, ...]:
        """The dimensions with several channels."""
        return tuple(dim for dim, size in enumerate(self.ids.shape) if size > 1)

    def map(self, change: Callable[[NDArray[Any]], NDArray[Any]]) -> "Channels":
        """Apply the same change of shape to all three arrays."""
        return Channels(change(self.ids), change(self.live), change(self.const))


Value = Channels | tuple[Channels | None, ...] | None
"""Channels of a node, one item per result if it has several; None if nothing can be removed."""

Rule: TypeAlias = "Callable[[ChannelFlow, fx.Node], Value]"
"""What an operator does to channels."""


@dataclass(frozen=True)
class Refusal:
    """Channels whose removal is not exact, and why."""

    ids: Ids
    message: str


@dataclass
class FlowLayer:
    """A weight that mixes channels, with all of its uses."""

    node: fx.Node
    weight: fx.Node
    bias: fx.Node | None
    into: Ids
    out: Ids
    groups: int
    transposed: bool
    folds: list[tuple[fx.Node, Channels, bool]] = field(default_factory=list)
    """for each use: the node, its input channels in one dimension, and whether folding nonzero constants into the bias
    is exact"""


class ChannelFlow:
    """One walk over a network by the rules.

    Args:
        network: the network as read.
        rule_of: returns the rule of a node's operator, see `reparam.rules`.
        generic: treat values that depend on weights, such as the shift of a norm, as arbitrary and nonzero, as after
            training.
        behind: maps the channels of each node to those that its readers see.
    """

    def __init__(
        self,
        network: NetworkGraph,
        rule_of: Callable[[fx.Node], Rule],
        *,
        generic: bool = False,
        behind: Callable[[fx.Node, Channels], Channels] = lambda _, value: value,
    ) -> None:
        self.network, self.generic = network, generic
        self.atoms = Atoms()
        self.values: dict[fx.Node, Value] = {}
        self.layers: dict[fx.Node, FlowLayer] = {}
        """by weight"""
        self.cuts: dict[str, Ids] = {}
        """atoms of the entries of parameters and buffers, by name; weights that mix channels are in `layers`"""
        self.sized: list[tuple[fx.Node, Ids, Ids]] = []
        """nodes whose modules store channel counts, with their input and output atoms"""
        self.makers: list[tuple[fx.Node, Ids]] = []
        self.readers: list[tuple[fx.Node, Ids]] = []
        self.refusals: list[Refusal] = []
        self.filled: list[Ids] = []
        """atoms that are not masked but constant, because everything they are computed from is masked"""
        self.pinned: list[tuple[Ids, str]] = []
        self.alike: set[fx.Node] = set()
        """nodes that pass each channel of their operands through and keep sizes"""
        self.boxes: list[tuple[fx.Node, Ids]] = []
        """values with channels in several dimensions, whose kept entries must form a box"""
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
        self._done = True  # later queries create no new atoms
        self._keep_constants()
        self._box()

    def _is_part(self, node: fx.Node) -> bool:
        return node.target is operator.getitem and isinstance(self.values.get(args_of(node)[0]), tuple)

    # --- channels of values ---

    def of(self, value: object) -> Channels | None:
        """Return the channels of an argument; None if it has none that can be removed."""
        if not isinstance(value, fx.Node):
            return None
        if self.network.is_constant(value):
            return self._table(value)
        channels = self.values.get(value)
        return channels if isinstance(channels, Channels) else None

    def inputs_of(self, node: fx.Node) -> list[Channels]:
        """Return the channels of a node's inputs, except constants."""
        values = (self.values.get(n) for n in self.network.reads(node))
        return [x for value in values for x in (value if isinstance(value, tuple) else (value,)) if x is not None]

    def along(self, node: fx.Node, dim: int, reader: fx.Node) -> Channels:
        """Return the channels of a node along one dimension as a vector; pinned ones if none can be removed there."""
        x, width = self.of(node), shape_of(node)[dim]
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
        """Tie the entries along a dimension and return them as a single entry."""
        first = x.map(lambda array: array.take([0], dim))
        self.unite(x.ids, first.ids)
        live = x.live.any(dim, keepdims=True)
        mixed = ~live & (x.const != first.const).any(dim, keepdims=True)
        self.refuse(node, first.ids[mixed], JOINS)
        return Channels(first.ids, live | mixed, np.where(live | mixed, 0.0, first.const))

    def fresh(self, width: int) -> Channels:
        """Create live channels in one dimension."""
        return Channels(self.atoms.new(width), np.ones(width, bool), np.zeros(width))

    def _table(self, node: fx.Node) -> Channels | None:
        """Return the channels of a constant, one atom per entry: those of a parameter are cut, any others pinned."""
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
            const = const[
                tuple(slice(None if own == full else 1) for own, full in zip(ids.shape, const.shape, strict=True))
            ]
        else:
            ids = self.atoms.new(const.size).reshape(const.shape)
            if name is None:
                self.pin(
                    Channels(ids, np.zeros(ids.shape, bool), const),
                    f"{self.value_name(node)} has a number for each of them",
                )
            else:
                self.cut(node, ids)
        return Channels(ids, np.zeros(ids.shape, bool), const)

    def _trained(self, node: fx.Node) -> bool:
        """Return whether a constant depends on weights."""
        if node in self.network.names:
            return node.meta["val"].is_floating_point()
        return any(map(self._trained, node.all_input_nodes))

    def value_name(self, node: fx.Node) -> str:
        """Describe a value."""
        return "an input of the network" if node.op == "placeholder" else f"node {node.name}"

    def describe(self, node: fx.Node, *, named: bool = True) -> str:
        """Describe a node: its name, its operator if `named`, and the module whose code calls it."""
        groups = node.args[8] if operator_of(node) == "convolution" else 1
        of = f" of {groups} groups" if groups != 1 else ""
        chain = self.network.calls[node]
        path = chain[-1].path if chain else ""
        inside = f" in {path}" if path else ""
        return f"node {node.name} ({operator_of(node)}{of}{inside})" if named else f"node {node.name}{inside}"

    def run(self, node: fx.Node, operands: dict[fx.Node, Tensor]) -> Any:
        """Run the operator of a node on other operands, in float64."""
        args, kwargs = fx.map_arg(
            (node.args, node.kwargs), lambda n: operands[n] if n in operands else self._constant(n)
        )
        assert callable(node.target)
        with torch.no_grad():
            return node.target(*args, **kwargs)

    def dead(self, node: fx.Node, x: Channels, full: Collection[int] = ()) -> Tensor:
        """Return the constants of a node's dead channels and 0 for live ones.

        They are expanded to full size along the dimensions `full`.
        """
        sizes = [
            size if dim in full else own
            for dim, (own, size) in enumerate(zip(x.const.shape, shape_of(node), strict=True))
        ]
        return from_numpy(np.array(x.const)).expand(sizes)

    def _constant(self, node: fx.Node) -> Any:
        constant = self.network.constant(node)
        if not isinstance(constant, Tensor):
            return constant
        return (
            torch.full_like(constant, GENERIC, device="cpu") if self.generic and self._trained(node) else constant.cpu()
        )

    # --- for the rules: tie, pin and refuse channels ---

    def unite(self, a: Ids, b: Ids) -> None:
        """Tie channels after broadcasting them to a common shape."""
        if a is not b:
            self.atoms.unite(*(side.ravel() for side in np.broadcast_arrays(a, b)))

    def cut(self, value: object, ids: Ids) -> None:
        """Cut a constant argument, if there is one, together with these channels, one entry each."""
        if not isinstance(value, fx.Node):
            return
        name = self.network.stored(value)
        if name is None:
            table = self.of(value)
            if table is not None:
                self.unite(table.ids.ravel(), ids.ravel())
            return
        first = self.cuts.setdefault(name, ids)
        self.unite(first.ravel(), ids.ravel())

    def pin(self, value: Channels | None, why: str) -> None:
        """Keep all of these channels."""
        if value is not None:
            self.atoms.read(value.ids.ravel())
            self.pinned.append((value.ids.ravel(), why))

    def opaque(self, node: fx.Node, detail: str = "") -> None:
        """Handle an operator without a rule: keep all of its input channels, and refuse masked ones."""
        why = f"squeeze has no rule for {operator_of(node)}{detail}"
        for x in self.inputs_of(node):
            self.refuse(node, x.ids[~x.live], why, named=False)
            self.pin(x, f"{self.describe(node, named=False)}: {why}")

    def refuse(self, node: fx.Node, ids: Ids, why: str, *, named: bool = True) -> None:
        """Record that these channels cannot be removed: an error if they are masked, else they are kept."""
        if not ids.size:
            return
        none, roots = np.empty(0, np.int64), self.atoms.roots(ids)
        filled = np.isin(roots, self.atoms.roots(np.concatenate([none, *self.filled])))
        filled |= ~np.isin(
            roots, self.atoms.roots(np.concatenate([none, *(made for _, made in self.makers)]))
        )  # a border, a constant
        self.atoms.read(ids[filled])
        if filled.all():
            return
        ids = ids[~filled]
        group = self.group(ids)
        count = len(np.unique(self.atoms.roots(ids)))
        self.refusals.append(
            Refusal(
                ids,
                f"{self.describe(node, named=named)}: {why}; {count} masked channels of {group} reach it: run "
                f"fuse(model) first, put the mask after norm and activation, or leave {group} unmasked",
            )
        )

    def finish(self) -> None:
        """Refuse nonzero constants that no bias can absorb; call after every rule has been applied."""
        while left := [
            (node, ids) for layer in self.layers.values() for node, ids in self._unfolded(layer) if len(ids)
        ]:
            known = len(self.refusals)
            for node, ids in left:  # keeping these may free channels that filled their groups, so repeat
                self.refuse(node, ids, BORDER)
            if len(self.refusals) > known:
                return

    def _unfolded(self, layer: FlowLayer) -> Iterator[tuple[fx.Node, Ids]]:
        """Yield removed channels whose nonzero constant the layer's bias cannot absorb."""
        for node, x, exact in layer.folds:
            if not exact:
                yield node, x.ids[~self.atoms.kept(x.ids) & (x.const != 0)]

    def _keep_constants(self) -> None:
        """Keep entries of constants that are not tied to a channel of any value."""
        tables = [x.ids.ravel() for x in self._tables.values() if x is not None]
        if tables:
            ids = np.unique(np.concatenate(tables))
            others = np.setdiff1d(np.arange(self.atoms.count), ids)
            self.atoms.read(ids[~np.isin(self.atoms.roots(ids), self.atoms.roots(others))])

    def _box(self) -> None:
        """In values with channels in several dimensions, tie the entries of all dimensions but the largest."""
        for _, ids in self.boxes:
            roots = self.atoms.roots(ids)
            free = [dim for dim in range(ids.ndim) if (roots != roots.take([0], dim)).any()]
            if len(free) > 1:
                stays = max(free, key=lambda dim: ids.shape[dim])
                rows = np.moveaxis(ids, stays, 0).reshape(ids.shape[stays], -1)
                self.unite(rows, rows[:, :1])

    # --- queries ---

    def group(self, ids: Ids) -> str:
        """Return the name of the first layer that produces one of these channels."""
        roots = self.atoms.roots(ids.ravel())
        return next(
            (self.layer_name(node) for node, made in self.makers if np.isin(self.atoms.roots(made), roots).any()),
            "(input)",
        )

    def layer_name(self, node: fx.Node) -> str:
        """Return the name of a layer's module: the one that holds its weight, even if the code of a parent uses it."""
        path = self.network.where(node)
        weight = args_of(node)[1]
        owner = self.network.names.get(weight, "").rpartition(".")[0]
        inner = owner.startswith(f"{path}.") and ".parametrizations" not in owner
        return owner if inner else path

    def kept(self, x: Channels, dim: int) -> Flags:
        """Return which entries of a value along a dimension are kept."""
        return entries_along(self.atoms.kept(x.ids), dim)

    def size(self, node: fx.Node, dim: int) -> int:
        """Return the size of a node along a dimension after channels are removed."""
        x, full = self.of(node), shape_of(node)[dim]
        return full if x is None or x.ids.shape[dim] == 1 else int(self.kept(x, dim).sum())

    def groups(self, layer: FlowLayer) -> int:
        """Return the number of groups of a convolution after empty ones are removed."""
        return max(1, int(self.atoms.kept(layer.out).reshape(layer.groups, -1).any(1).sum()))

    def keeps_zero(self, node: fx.Node) -> bool:
        """Return whether a node of `alike` maps 0 to 0."""
        (source,) = self.network.reads(node)
        return not bool(self.run(node, {source: torch.zeros(shape_of(source), dtype=torch.float64)}).any())


def first_result(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Return the output of an operator, the first of several."""
    return output[0] if isinstance(output, tuple) else output


def entries_along(flags: Flags, dim: int) -> Flags:
    """Return which entries along a dimension have any flag set."""
    rows = np.moveaxis(flags, dim, 0).reshape(flags.shape[dim], -1)
    return np.asarray(rows.any(1))


def folded_bias(weight: Tensor, bias: Tensor | None, layer: FlowLayer, const: Numbers, which: Flags) -> Numbers:
    """Return a layer's bias plus its output for inputs that are `const` in the channels `which` and 0 in the others."""
    kernel = weight.detach().cpu().double().numpy()
    kernel = kernel.reshape(*kernel.shape[:2], -1).sum(2)
    numbers = np.where(which, const, 0.0).reshape(layer.groups, -1)
    kernel = kernel.reshape(layer.groups, -1, kernel.shape[1])
    spread = np.einsum("gi,gio->go" if layer.transposed else "gi,goi->go", numbers, kernel).ravel()
    return spread if bias is None else spread + bias.detach().cpu().double().numpy()


def require_none(refusals: Iterable[Refusal]) -> None:
    """Raise the first refusal.

    Raises:
        ReparamError: there is a refusal.
    """
    for refusal in refusals:
        raise ReparamError(refusal.message)
