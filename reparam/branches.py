"""Which values of a network are one convolution of another value, and which of them are worth it: `find`."""

import functools
import itertools
import math
import operator
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from reparam.algebra import Branch, average_kernel, norm_affine
from reparam.forms import Form, affine, depthwise, identity, once, parallel, serial
from reparam.graph import Network, aten, is_norm, operator_of, shape

Key = tuple[fx.Node, int]

_CONVOLUTION, _LINEAR = aten.convolution.default, aten.linear.default
_NORM = aten._native_batch_norm_legit_no_training.default
_POOLS = {aten.avg_pool1d.default: 1, aten.avg_pool2d.default: 2}
_SUMS = frozenset({aten.add.Tensor, aten.sub.Tensor})
_FACTORS = frozenset({aten.mul.Tensor, aten.div.Tensor, aten.mul.Scalar, aten.div.Scalar, aten.neg.default})
_VIEWS = frozenset({aten.view.default, aten.unsqueeze.default, aten.squeeze.dims, aten.squeeze.dim})
_MOVES = _VIEWS | {aten.permute.default, aten.pad.default}
_SAME = frozenset({aten.clone.default, aten.alias.default, aten._to_copy.default})
"""What hands its input on; a view may do so for the example's batch alone."""


@dataclass(frozen=True)
class Merge:
    """A value that one layer computes at once."""

    node: fx.Node
    form: Form
    host: fx.Node
    """the layer among the absorbed nodes that it takes the place of"""
    chain: bool
    """whether the absorbed nodes read one another in a row"""

    @property
    def operators(self) -> list[fx.Node]:
        """The absorbed nodes that compute something."""
        return _operators(self.form)


def _operators(form: Form) -> list[fx.Node]:
    """The absorbed nodes that compute something, a norm once."""
    return [node for node in form.absorbed - form.moves if node.target is not _NORM and node.target not in _SAME]


class Branches:
    """The forms of every value of a network.

    Args:
        network: as it was read.
        opaque: nodes that nothing is merged with.
        kept: nodes whose values somebody sees.
    """

    def __init__(self, network: Network, opaque: Set[fx.Node], kept: Set[fx.Node]) -> None:
        self.network, self.opaque, self.kept = network, opaque, kept
        self.forms: dict[fx.Node, dict[Key, Form]] = {}
        self.layers: dict[fx.Node, Form] = {}
        """convolutions and linear layers with constant weights, each as a form of what it reads"""
        self.why: dict[fx.Node, str] = {}
        """why a node is not one with what it reads"""
        for node in network.graph.nodes:
            self.forms[node] = {}
            if node.op == "call_function" and node not in opaque and not network.is_constant(node):
                for form in self._rule(node):
                    self.forms[node].setdefault((form.source, form.dim), form)

    # --- rules ---

    def _rule(self, node: fx.Node) -> Iterable[Form]:
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
        if target in _SAME and x is not None and shape(x) == shape(node) and x.meta["val"].dtype == node.meta["val"].dtype:
            return self._affine(node, x, 1.0, 0.0)
        return ()

    def _operand(self, x: fx.Node) -> Iterator[Form]:
        """A value as itself, then as all that it is known to be."""
        rank = len(shape(x))
        for dim in sorted({1, rank - 1}) if rank > 1 else ():
            yield identity(x, dim, shape(x))
        if x not in self.kept:
            yield from self.forms[x].values()

    def _behind(self, node: fx.Node, x: fx.Node, own: Form) -> Iterator[Form]:
        for first in self._operand(x):
            form = serial(first, own)
            if isinstance(form, Form):
                yield form
            elif first.source is not x:
                self.why.setdefault(node, form)

    def _layer(self, node: fx.Node) -> Iterable[Form]:
        x, weight, bias, *more = (*node.args, None)[: max(3, len(node.args))]
        if not isinstance(x, fx.Node) or self.network.is_constant(x) or not all(map(self.network.is_constant, (weight, bias))):
            return ()
        kernel, shift = self.network.constant(weight), self.network.constant(bias)
        rest: list[Any] = more
        stride, padding, dilation, transposed, output_padding, groups = rest[:6] if len(rest) >= 6 else ((), (), (), False, (), 1)
        sides = kernel.ndim - 2
        c_in, c_out = (kernel.shape[0], kernel.shape[1] * groups) if transposed else (kernel.shape[1] * groups, kernel.shape[0])
        zeros = torch.zeros(c_out, dtype=kernel.dtype, device=kernel.device)
        own = Form(
            source=x,
            dim=len(shape(x)) - 1 - sides,
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
        return self._behind(node, x, own)

    def _norm(self, node: fx.Node, norm: fx.Node) -> Iterable[Form]:
        x, gamma, beta, mean, variance, _, eps = norm.args
        numbers = (gamma, beta, mean, variance)
        if not isinstance(x, fx.Node) or norm in self.opaque or not all(map(self.network.is_constant, numbers)):
            return ()
        gamma, beta, mean, variance = map(self.network.constant, numbers)
        assert isinstance(eps, float)
        scale, shift = norm_affine(mean, variance, eps=eps, gamma=gamma, beta=beta)
        own = affine(norm, x, 1, scale, shift, len(shape(x)))
        return [replace(form, absorbed=form.absorbed | {node}) for form in self._behind(node, x, own)]

    def _pool(self, node: fx.Node) -> Iterable[Form]:
        sides = _POOLS[node.target]
        x, size, stride, padding, ceil, count, divisor = (*node.args, *(None,) * 6)[:7]
        if not isinstance(x, fx.Node) or divisor or len(shape(x)) != sides + 2:
            return ()
        size, channels, padding = _sides(size, sides), shape(x)[1], _sides(padding or 0, sides)
        if ceil or (any(padding) and count is False):
            return ()  # fewer pixels count at the border: no convolution
        kernel = average_kernel(channels, size, channels, dtype=torch.float64)
        zeros = torch.zeros(channels, dtype=torch.float64)
        own = depthwise(node, x, 1, (kernel, zeros), stride=_sides(stride or size, sides), padding=padding)
        return self._behind(node, x, own)

    def _moved(self, node: fx.Node) -> Iterator[Form]:
        """What a value is, seen from behind a view of it or a border around it."""
        x = node.args[0]
        assert isinstance(x, fx.Node)
        for form in self._operand(x):
            dim = _dim_behind(node, shape(x), form)
            if dim is not None:
                yield replace(form, dim=dim, absorbed=form.absorbed | {node}, moves=form.moves | {node})

    def _sum(self, node: fx.Node) -> Iterable[Form]:
        x, y = node.args[:2]
        alpha = node.kwargs.get("alpha", 1)
        sign = alpha if node.target is aten.add.Tensor else -alpha  # pyright: ignore[reportOperatorIssue, reportOptionalOperand]
        if self.network.is_constant(y):
            return self._affine(node, x, 1.0, self.network.constant(y), shift_factor=sign)
        if self.network.is_constant(x):
            return self._affine(node, y, sign, self.network.constant(x))
        assert isinstance(x, fx.Node)
        assert isinstance(y, fx.Node)
        return self._branches(node, x, y, sign) if shape(x) == shape(y) == shape(node) else ()

    def _branches(self, node: fx.Node, x: fx.Node, y: fx.Node, sign: Any) -> Iterator[Form]:
        others = {(form.source, form.dim): form for form in self._operand(y)}
        for one in self._operand(x):
            other = others.get((one.source, one.dim))
            if other is None:
                continue
            if sign != 1:
                other = replace(other, branch=once(_times, other, sign))
            form = parallel(one, other, node)
            if isinstance(form, Form):
                yield form
            else:
                self.why.setdefault(node, form)

    def _scaled(self, node: fx.Node) -> Iterable[Form]:
        if node.target is aten.neg.default:
            return self._affine(node, node.args[0], -1.0, 0.0)
        x, y = node.args[:2]
        divides = node.target in (aten.div.Tensor, aten.div.Scalar)
        if self.network.is_constant(y):
            factor = self.network.constant(y)
            return self._affine(node, x, 1 / factor if divides else factor, 0.0)
        return self._affine(node, y, self.network.constant(x), 0.0) if self.network.is_constant(x) and not divides else ()

    def _affine(self, node: fx.Node, x: Any, scale: Any, shift: Any, *, shift_factor: Any = 1) -> Iterator[Form]:
        """`scale * x + shift_factor * shift`, where both are numbers or have one for every channel."""
        if not isinstance(x, fx.Node) or shape(x) != shape(node) or not x.meta["val"].is_floating_point():
            return
        for first in list(self._operand(x)):
            numbers = [_by_channel(value, shape(x), first.dim) for value in (scale, shift)]
            if numbers[0] is None or numbers[1] is None:
                continue
            form = serial(first, affine(node, x, first.dim, numbers[0], numbers[1] * shift_factor, len(shape(x))))
            if isinstance(form, Form):
                yield form


def _dim_behind(node: fx.Node, before: tuple[int, ...], form: Form) -> int | None:
    """Where the channels of a form are behind a node that moves values; None where a scaling does not do as much behind it."""
    if node.target is aten.pad.default:
        _, widths, mode = (*node.args, "constant")[:3]
        assert isinstance(widths, list | tuple)
        apart = mode != "constant" and form.dim < len(before) - len(widths) // 2
        return form.dim if apart and form.is_scale else None
    if node.target is aten.permute.default:
        return [dim % len(before) for dim in node.args[1]].index(form.dim)  # pyright: ignore[reportGeneralTypeIssues, reportOptionalIterable]
    after, dim = shape(node), form.dim
    return next((new for new in range(len(after)) if (math.prod(after[:new]), after[new]) == (math.prod(before[:dim]), before[dim])), None)


def _sides(value: Any, sides: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * sides if len(values) == 1 else values


def _times(form: Form, factor: int | float) -> Branch:
    weight, bias = form.branch()
    return weight * factor, bias * factor


def _by_channel(value: Any, of: tuple[int, ...], dim: int) -> Tensor | None:
    """A number for each channel, of a number or a tensor that broadcasts; None where it is not the same all over a channel."""
    if not isinstance(value, Tensor):
        return torch.full((of[dim],), float(value), dtype=torch.float64)
    sizes = (1,) * (len(of) - value.ndim) + tuple(value.shape)
    if len(sizes) > len(of) or any(size != 1 for index, size in enumerate(sizes) if index != dim):
        return None
    return value.reshape(-1).double().expand(of[dim])


# --- choice ---


class Choice:
    """Which forms are worth it: one layer in the place of several operators, with no more multiply-accumulates and no more weights.

    Attributes:
        merges: what is merged, in the order of the graph.
        costly: values that one layer could compute at a higher price, with a line about it.
    """

    def __init__(self, branches: Branches, banned: Set[fx.Node] = frozenset(), *, norms_only: bool = False) -> None:
        self._norms_only = norms_only
        self._branches, self._network = branches, branches.network
        self._banned: set[tuple[fx.Node, fx.Node]] = set()
        self.costly: dict[fx.Node, str] = {}
        self._skipped = banned
        while True:
            self.merges = list(self._choose())[::-1]
            wrong = next((merge for merge in reversed(self.merges) if not self._alone(merge.node, merge.form)), None)
            if wrong is None:
                return
            self._banned.add((wrong.node, wrong.form.source))

    def _alone(self, node: fx.Node, form: Form) -> bool:
        """Whether nobody needs what it absorbs, as far as is known."""
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
        forms = sorted(self._branches.forms[node].values(), key=lambda form: (-len(_operators(form)), len(form.absorbed)))
        for form in forms:
            if (node, form.source) in self._banned or not self._alone(node, form):
                continue
            saved = self._saved(node, form)
            layers = [layer for layer in saved if layer in self._branches.layers]
            if not layers or (len(_operators(form)) == 1 and self._plain(node)) or self._goes_behind(form):
                continue
            if (form.moves and not self._in_a_row(form)) or self._tears(form):
                continue
            if self._norms_only and not (self._in_a_row(form) and len(form.absorbed & self._branches.layers.keys()) == 1):
                continue
            macs, weights = self._cost(node, form), form.weights
            before = [self._cost(layer, self._branches.layers[layer]) for layer in layers]
            if macs <= sum(before) and weights <= sum(self._branches.layers[layer].weights for layer in layers):
                host = max(layers, key=lambda layer: self._branches.layers[layer].weights)
                return Merge(node, form, host, self._in_a_row(form))
            if len(layers) > 1:
                self.costly[node] = f"one layer would take {macs:,} multiply-accumulates, the {len(layers)} take {sum(before):,}"
        return None

    def _goes_behind(self, form: Form) -> bool:
        """Whether the layer in front, which nobody else reads, takes in what stands between, as is usual."""
        source = form.source
        in_front = source in self._branches.layers or any(
            not self._branches.layers.keys().isdisjoint(other.absorbed) for other in self._branches.forms[source].values()
        )
        return in_front and all(user in form.absorbed and user not in self._branches.layers for user in source.users)

    def _tears(self, form: Form) -> bool:
        """Whether it takes a scaling out of a module, as an activation, that has no layer in it and of which the rest would stay."""
        for node in _operators(form):
            if node.target not in _SUMS | _FACTORS or len(self._network.reads(node)) > 1:
                continue
            live = {other for other in self._network.calls[node][-1].nodes if not self._network.is_constant(other)}
            if live.isdisjoint(self._branches.layers) and not live <= form.absorbed:
                return True
        return False

    def _plain(self, layer: fx.Node) -> bool:
        """Whether the weights of a layer are stored as they are."""
        return all(not isinstance(arg, fx.Node) or arg.op == "placeholder" for arg in layer.args[1:3])

    def _cost(self, node: fx.Node, form: Form) -> int:
        return form.macs(shape(form.source if form.transposed else node))

    def _saved(self, node: fx.Node, form: Form) -> list[fx.Node]:
        """Absorbed nodes that nobody else reads, last first."""
        saved = [node]
        for other in sorted(form.absorbed - {node}, key=self._order.__getitem__, reverse=True):
            if all(user in saved for user in other.users):
                saved.append(other)
        return saved

    @functools.cached_property
    def _order(self) -> dict[fx.Node, int]:
        return {node: index for index, node in enumerate(self._network.graph.nodes)}

    def _in_a_row(self, form: Form) -> bool:
        return all(len(self._network.reads(node)) == 1 for node in form.absorbed) and not any(
            node.args[0] is node.args[1] for node in form.absorbed if len(node.args) > 1
        )


def left(choice: Choice, branches: Branches) -> Iterator[tuple[fx.Node, str]]:
    """Norms, and sums of layers, that stay, each with the reason."""
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
        return "it is part of what stays as it is"
    if node.target is not _NORM:
        return "it keeps no running statistics, so it depends on its batch"
    (value,) = [user for user in node.users if user.args[1] == 0] or [node]
    before, readers = node.args[0], list(value.users)
    assert isinstance(before, fx.Node)
    around = f"it reads {operator_of(before)} and is read by {', '.join(dict.fromkeys(map(operator_of, readers))) or 'nobody'}"
    if (before in branches.layers or branches.forms[before]) and len(before.users) > 1:
        return f"{around}; what it reads is also read by another"
    reasons = [branches.why[other] for other in (value, *readers) if other in branches.why]
    return f"{around}; {reasons[0]}" if reasons else around
