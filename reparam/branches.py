"""Find the values of a network that are one convolution of another value, and choose which of them to merge."""

import functools
import itertools
import math
import operator
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx

from reparam.algebra import Branch, average_kernel, norm_affine
from reparam.forms import LinearForm, affine, depthwise, identity, lazy_branch, parallel, serial
from reparam.graph import NetworkGraph, args_of, aten, is_norm, operator_of, shape_of, with_defaults

Key = tuple[fx.Node, int]
"""Source and channel dimension of a form."""

Scalar: TypeAlias = int | float
Factor: TypeAlias = Scalar | Tensor

_CONVOLUTION, _LINEAR = aten.convolution.default, aten.linear.default
_NORM = aten._native_batch_norm_legit_no_training.default
_POOLS = {aten.avg_pool1d.default: 1, aten.avg_pool2d.default: 2}
_SUMS = frozenset({aten.add.Tensor, aten.sub.Tensor})
_FACTORS = frozenset({aten.mul.Tensor, aten.div.Tensor, aten.mul.Scalar, aten.div.Scalar, aten.neg.default})
_VIEWS = frozenset({aten.view.default, aten.unsqueeze.default, aten.squeeze.dims, aten.squeeze.dim})
_MOVES = _VIEWS | {aten.permute.default, aten.pad.default}
_SAME = frozenset({aten.clone.default, aten.alias.default, aten._to_copy.default})
"""Operators that return their input unchanged. A view is not among them: it may do so only for the example's batch
size."""


@dataclass(frozen=True)
class Merge:
    """A value to be computed by a single layer."""

    node: fx.Node
    form: LinearForm
    host: fx.Node
    """the absorbed layer that the merged layer replaces"""
    chain: bool
    """whether the absorbed nodes form a chain, each reading only the one before it"""

    @property
    def operators(self) -> list[fx.Node]:
        """The absorbed nodes that change values."""
        return _operators(self.form)


def _operators(form: LinearForm) -> list[fx.Node]:
    """Return the absorbed nodes that change values; a norm counts once."""
    return [node for node in form.absorbed - form.moves if node.target is not _NORM and node.target not in _SAME]


class Branches:
    """The forms of every value of a network.

    Args:
        network: the network as read.
        opaque: nodes that are never merged.
        kept: nodes whose values must stay, because a hook sees them.
    """

    def __init__(self, network: NetworkGraph, opaque: Set[fx.Node], kept: Set[fx.Node]) -> None:
        self.network, self.opaque, self.kept = network, opaque, kept
        self.forms: dict[fx.Node, dict[Key, LinearForm]] = {}
        self.layers: dict[fx.Node, LinearForm] = {}
        """convolutions and linear layers with constant weights, each as a form of its input"""
        self.why: dict[fx.Node, str] = {}
        """why a node cannot be merged with its input"""
        for node in network.graph.nodes:
            self.forms[node] = {}
            if node.op == "call_function" and node not in opaque and not network.is_constant(node):
                for form in self._rule(node):
                    self.forms[node].setdefault((form.source, form.dim), form)

    # --- rules ---

    def _rule(self, node: fx.Node) -> Iterable[LinearForm]:
        target, args = node.target, node.args
        if target is operator.getitem:
            norm = args[0]
            return self._norm(node, norm) if args[1] == 0 and isinstance(norm, fx.Node) and norm.target is _NORM else ()
        if target is _CONVOLUTION or target is _LINEAR:
            return self._layer(node)
        if target in _POOLS:
            return self._pool(node)
        if target in _SUMS:
            return self._sum(node)
        if target in _FACTORS:
            return self._scaled(node)
        if target in _MOVES:
            return self._moved(node)
        (x,) = node.all_input_nodes[:1] or (None,)
        if (
            target in _SAME
            and x is not None
            and shape_of(x) == shape_of(node)
            and x.meta["val"].dtype == node.meta["val"].dtype
        ):
            return self._affine(node, x, 1.0, 0.0)
        return ()

    def _operand(self, x: fx.Node) -> Iterator[LinearForm]:
        """Yield a value as the identity of itself, then in all its known forms."""
        rank = len(shape_of(x))
        for dim in sorted({1, rank - 1}) if rank > 1 else ():
            yield identity(x, dim, shape_of(x))
        if x not in self.kept:
            yield from self.forms[x].values()

    def _composed(self, node: fx.Node, x: fx.Node, own: LinearForm) -> Iterator[LinearForm]:
        """Yield the compositions of a node's own form with each form of its input."""
        for inner in self._operand(x):
            form = serial(inner, own)
            if isinstance(form, LinearForm):
                yield form
            elif inner.source is not x:
                self.why.setdefault(node, form)

    def _layer(self, node: fx.Node) -> Iterable[LinearForm]:
        x, weight, bias, *options = with_defaults(args_of(node), (None, None, None))
        if (
            not isinstance(x, fx.Node)
            or self.network.is_constant(x)
            or not all(map(self.network.is_constant, (weight, bias)))
        ):
            return ()
        kernel, shift = self.network.constant(weight), self.network.constant(bias)
        geometry = options[:6] if node.target is _CONVOLUTION else ((), (), (), False, (), 1)
        stride, padding, dilation, transposed, output_padding, groups = geometry
        sides = kernel.ndim - 2
        c_in, c_out = (
            (kernel.shape[0], kernel.shape[1] * groups) if transposed else (kernel.shape[1] * groups, kernel.shape[0])
        )
        zeros = torch.zeros(c_out, dtype=kernel.dtype, device=kernel.device)
        own = LinearForm(
            source=x,
            dim=len(shape_of(x)) - 1 - sides,
            c_in=c_in,
            c_out=c_out,
            groups=groups,
            size=tuple(kernel.shape[2:]),
            stride=_sides(stride, sides),
            padding=_sides(padding, sides),
            dilation=_sides(dilation, sides),
            transposed=bool(transposed),
            output_padding=_sides(output_padding, sides) if transposed else (),
            absorbed=frozenset({node}),
            branch=lambda: (kernel, zeros if shift is None else shift),
        )
        self.layers[node] = own
        return self._composed(node, x, own)

    def _norm(self, node: fx.Node, norm: fx.Node) -> Iterable[LinearForm]:
        x, gamma, beta, mean, variance, _, eps = args_of(norm)
        numbers = (gamma, beta, mean, variance)
        if not isinstance(x, fx.Node) or norm in self.opaque or not all(map(self.network.is_constant, numbers)):
            return ()
        gamma, beta, mean, variance = map(self.network.constant, numbers)
        scale, shift = norm_affine(mean, variance, eps=eps, gamma=gamma, beta=beta)
        own = affine(norm, x, 1, scale, shift, len(shape_of(x)))
        return [replace(form, absorbed=form.absorbed | {node}) for form in self._composed(node, x, own)]

    def _pool(self, node: fx.Node) -> Iterable[LinearForm]:
        sides = _POOLS[node.target]
        x, size, stride, padding, ceil, counts_padding, divisor = with_defaults(args_of(node), (None,) * 7)
        if not isinstance(x, fx.Node) or divisor or len(shape_of(x)) != sides + 2:
            return ()
        size, channels, padding = _sides(size, sides), shape_of(x)[1], _sides(padding or 0, sides)
        if ceil or (any(padding) and counts_padding is False):
            return ()  # averages over fewer pixels at the border, so it is not a convolution
        kernel = average_kernel(channels, size, channels, dtype=torch.float64)
        zeros = torch.zeros(channels, dtype=torch.float64)
        own = depthwise(node, x, 1, (kernel, zeros), stride=_sides(stride or size, sides), padding=padding)
        return self._composed(node, x, own)

    def _moved(self, node: fx.Node) -> Iterator[LinearForm]:
        """Yield the forms of a view or a padding, taken from the forms of its input."""
        x = node.args[0]
        assert isinstance(x, fx.Node)
        for form in self._operand(x):
            dim = _moved_dim(node, shape_of(x), form)
            if dim is not None:
                yield replace(form, dim=dim, absorbed=form.absorbed | {node}, moves=form.moves | {node})

    def _sum(self, node: fx.Node) -> Iterable[LinearForm]:
        x, y = args_of(node)[:2]
        alpha: Any = node.kwargs.get("alpha", 1)
        sign: Scalar = alpha if node.target is aten.add.Tensor else -alpha
        if self.network.is_constant(y):
            return self._affine(node, x, 1.0, self.network.constant(y), shift_factor=sign)
        if self.network.is_constant(x):
            return self._affine(node, y, sign, self.network.constant(x))
        return self._branches(node, x, y, sign) if shape_of(x) == shape_of(y) == shape_of(node) else ()

    def _branches(self, node: fx.Node, x: fx.Node, y: fx.Node, sign: Scalar) -> Iterator[LinearForm]:
        forms_of_y = {(form.source, form.dim): form for form in self._operand(y)}
        for left in self._operand(x):
            right = forms_of_y.get((left.source, left.dim))
            if right is None:
                continue
            if sign != 1:
                right = replace(right, branch=lazy_branch(_scaled_branch, right, sign))
            form = parallel(left, right, node)
            if isinstance(form, LinearForm):
                yield form
            else:
                self.why.setdefault(node, form)

    def _scaled(self, node: fx.Node) -> Iterable[LinearForm]:
        if node.target is aten.neg.default:
            return self._affine(node, args_of(node)[0], -1.0, 0.0)
        x, y = args_of(node)[:2]
        divides = node.target in (aten.div.Tensor, aten.div.Scalar)
        if self.network.is_constant(y):
            factor = self.network.constant(y)
            return self._affine(node, x, 1 / factor if divides else factor, 0.0)
        return (
            self._affine(node, y, self.network.constant(x), 0.0) if self.network.is_constant(x) and not divides else ()
        )

    def _affine(
        self, node: fx.Node, x: object, scale: Factor, shift: Factor, *, shift_factor: Scalar = 1
    ) -> Iterator[LinearForm]:
        """Yield the forms of `scale * x + shift_factor * shift`.

        Scale and shift are scalars or constant within each channel.
        """
        if not isinstance(x, fx.Node) or shape_of(x) != shape_of(node) or not x.meta["val"].is_floating_point():
            return
        for inner in list(self._operand(x)):
            scales, shifts = _by_channel(scale, shape_of(x), inner.dim), _by_channel(shift, shape_of(x), inner.dim)
            if scales is None or shifts is None:
                continue
            form = serial(inner, affine(node, x, inner.dim, scales, shifts * shift_factor, len(shape_of(x))))
            if isinstance(form, LinearForm):
                yield form


def _moved_dim(node: fx.Node, before: tuple[int, ...], form: LinearForm) -> int | None:
    """Return the channel dimension of a form after a view or a padding; None if it does not commute with a scaling."""
    if node.target is aten.pad.default:
        _, widths, mode = with_defaults(args_of(node), (None, (), "constant"))[:3]
        commutes = mode != "constant" and form.dim < len(before) - len(widths) // 2
        return form.dim if commutes and form.is_scale else None
    if node.target is aten.permute.default:
        return [dim % len(before) for dim in args_of(node)[1]].index(form.dim)
    after, dim = shape_of(node), form.dim
    return next(
        (
            new
            for new in range(len(after))
            if (math.prod(after[:new]), after[new]) == (math.prod(before[:dim]), before[dim])
        ),
        None,
    )


def _sides(value: int | Sequence[int], sides: int) -> tuple[int, ...]:
    """Return one number per spatial dimension."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * sides if len(values) == 1 else values


def _scaled_branch(form: LinearForm, factor: Scalar) -> Branch:
    weight, bias = form.branch()
    return weight * factor, bias * factor


def _by_channel(value: Factor, target: tuple[int, ...], dim: int) -> Tensor | None:
    """Return a scalar or a broadcastable tensor as one value per channel; None if it varies within a channel."""
    if not isinstance(value, Tensor):
        return torch.full((target[dim],), float(value), dtype=torch.float64)
    sizes = (1,) * (len(target) - value.ndim) + tuple(value.shape)
    if len(sizes) > len(target) or any(size != 1 for index, size in enumerate(sizes) if index != dim):
        return None
    return value.reshape(-1).double().expand(target[dim])


# --- choice ---


class MergeChoice:
    """Chooses the forms to merge: those whose layer needs no more multiply-accumulates or weights than it replaces.

    Attributes:
        merges: the chosen merges, in graph order.
        costly: values that one layer could compute, but at a higher cost, with an explanation.
    """

    def __init__(self, branches: Branches, banned: Set[fx.Node] = frozenset(), *, norms_only: bool = False) -> None:
        self._norms_only = norms_only
        self._branches, self._network = branches, branches.network
        self._banned: set[tuple[fx.Node, fx.Node]] = set()
        self.costly: dict[fx.Node, str] = {}
        self._skipped = banned
        while True:
            self.merges = list(self._choose())[::-1]
            conflict = next(
                (merge for merge in reversed(self.merges) if not self._absorbable(merge.node, merge.form)), None
            )
            if conflict is None:
                return
            self._banned.add((conflict.node, conflict.form.source))

    def _absorbable(self, node: fx.Node, form: LinearForm) -> bool:
        """Return whether no other node visited so far needs an absorbed value."""
        return self._needed.isdisjoint(form.absorbed - {node})

    def _choose(self) -> Iterator[Merge]:
        self._needed: set[fx.Node] = set(self._network.outputs)
        self.costly.clear()
        for node in reversed(self._network.graph.nodes):
            if node not in self._needed:
                continue
            merge = None if node in self._skipped else self._best(node)
            if merge is None:
                self._needed.update(node.all_input_nodes)
            else:
                self._needed.add(merge.form.source)
                yield merge

    def _best(self, node: fx.Node) -> Merge | None:
        forms = sorted(
            self._branches.forms[node].values(), key=lambda form: (-len(_operators(form)), len(form.absorbed))
        )
        for form in forms:
            if (node, form.source) in self._banned or not self._absorbable(node, form):
                continue
            layers = [layer for layer in self._saved(node, form) if layer in self._branches.layers]
            if (
                not layers
                or (len(_operators(form)) == 1 and self._has_stored_weights(node))
                or self._belongs_to_source(form)
            ):
                continue
            if (form.moves and not self._is_chain(form)) or self._splits_module(form):
                continue
            if self._norms_only and not (
                self._is_chain(form) and len(form.absorbed & self._branches.layers.keys()) == 1
            ):
                continue
            macs, weights = self._cost(node, form), form.weights
            before = [self._cost(layer, self._branches.layers[layer]) for layer in layers]
            if macs <= sum(before) and weights <= sum(self._branches.layers[layer].weights for layer in layers):
                host = max(layers, key=lambda layer: self._branches.layers[layer].weights)
                return Merge(node, form, host, self._is_chain(form))
            if len(layers) > 1:
                self.costly[node] = (
                    f"one layer would take {macs:,} multiply-accumulates, the {len(layers)} take {sum(before):,}"
                )
        return None

    def _belongs_to_source(self, form: LinearForm) -> bool:
        """Return whether a preceding layer without other readers absorbs the operators in between instead."""
        source = form.source
        follows_layer = source in self._branches.layers or any(
            not self._branches.layers.keys().isdisjoint(other.absorbed)
            for other in self._branches.forms[source].values()
        )
        return follows_layer and all(
            user in form.absorbed and user not in self._branches.layers for user in source.users
        )

    def _splits_module(self, form: LinearForm) -> bool:
        """Return whether the form moves a scaling out of an activation: a module without layers that partly stays."""
        for node in _operators(form):
            if node.target not in _SUMS | _FACTORS or len(self._network.reads(node)) > 1:
                continue
            live = {other for other in self._network.calls[node][-1].nodes if not self._network.is_constant(other)}
            if live.isdisjoint(self._branches.layers) and not live <= form.absorbed:
                return True
        return False

    def _has_stored_weights(self, layer: fx.Node) -> bool:
        """Return whether a layer uses its stored weights directly, not values computed from them."""
        return all(not isinstance(arg, fx.Node) or arg.op == "placeholder" for arg in layer.args[1:3])

    def _cost(self, node: fx.Node, form: LinearForm) -> int:
        return form.macs(shape_of(form.source if form.transposed else node))

    def _saved(self, node: fx.Node, form: LinearForm) -> list[fx.Node]:
        """Return the absorbed nodes that have no other reader, last first."""
        saved = [node]
        for other in sorted(form.absorbed - {node}, key=self._order.__getitem__, reverse=True):
            if all(user in saved for user in other.users):
                saved.append(other)
        return saved

    @functools.cached_property
    def _order(self) -> dict[fx.Node, int]:
        return {node: index for index, node in enumerate(self._network.graph.nodes)}

    def _is_chain(self, form: LinearForm) -> bool:
        """Return whether each absorbed node reads exactly one value that depends on the input, and reads it once."""
        return all(len(self._network.reads(node)) == 1 for node in form.absorbed) and not any(
            node.args[0] is node.args[1] for node in form.absorbed if len(node.args) > 1
        )


def unmerged(choice: MergeChoice, branches: Branches) -> Iterator[tuple[fx.Node, str]]:
    """Yield the norms and sums of layers that are not merged, each with the reason."""
    gone = set(itertools.chain.from_iterable(merge.form.absorbed for merge in choice.merges))
    for node in branches.network.graph.nodes:
        if node in gone or branches.network.is_constant(node):
            continue
        if is_norm(node):
            yield node, _why_norm(node, branches)
        elif node in choice.costly:
            yield node, choice.costly[node]


def _why_norm(node: fx.Node, branches: Branches) -> str:
    if node in branches.opaque:
        return "it is part of a mask, which stays"
    if node.target is not _NORM:
        return "it has no running statistics, so it depends on its batch"
    (value,) = [user for user in node.users if user.args[1] == 0] or [node]
    before: fx.Node = args_of(node)[0]
    readers = list(value.users)
    neighbours = (
        f"it reads {operator_of(before)} and is read by "
        f"{', '.join(dict.fromkeys(map(operator_of, readers))) or 'nothing'}"
    )
    if (before in branches.layers or branches.forms[before]) and len(before.users) > 1:
        return f"{neighbours}; its input has another reader"
    reasons = [branches.why[other] for other in (value, *readers) if other in branches.why]
    return f"{neighbours}; {reasons[0]}" if reasons else neighbours
