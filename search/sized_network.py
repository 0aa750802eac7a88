"""A network at several sizes at once.

Sampled widths after its layers, and all depths after its stages (TAS, Eq. 2 to 5).

Each size of a layer is a prefix of its channels, so a single convolution at full width computes all sizes. Norms act
per channel, so the output at a size is a slice of the normalised image (in `SampledNorms`, each size has its own norm).
Interpolation and weighted sum are linear in the channels, so they are one matrix of channels x channels after the
layer, whose cost does not depend on the number of sampled sizes. Channels beyond the largest sampled size are 0, as in
the authors' code; for the next layer this is equivalent to slicing its weights, as in the paper.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, TypeVar, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from reparam.modules import named_modules
from reparam.typed_torch import to_list
from search.errors import SearchError
from search.relax import gumbel, gumbel_softmax, gumbel_subset

M = TypeVar("M", bound=nn.Module)

_BatchNorm = nn.modules.batchnorm._BatchNorm  # pyright: ignore[reportPrivateUsage]: the base of all batch norms

Noise = Callable[[Sequence[int]], Tensor]
"""Returns Gumbel noise of a shape."""


def interpolation(channels: int, out: int) -> Float[Tensor, "out channels"]:
    """Return channel-wise interpolation as a matrix.

    Row i averages channels floor(i * C / out) to ceil((i + 1) * C / out) - 1 (Eq. 4).
    """
    rows = torch.arange(out)
    start, end = rows * channels // out, -(-(rows + 1) * channels // out)
    columns = torch.arange(channels)
    inside = (columns >= start[:, None]) & (columns < end[:, None])
    return inside / inside.sum(1, keepdim=True)


def aggregation(
    full: int, sizes: Sequence[int], weights: Float[Tensor, " sizes"], *, interpolate: bool = True
) -> Float[Tensor, "full full"]:
    """Return Eq. 4 as a matrix over the channels of the full layer.

    The weighted sum of prefixes interpolated to the largest of them.

    Args:
        full: channels of the layer.
        sizes: sizes of the prefixes.
        weights: weight of each prefix.
        interpolate: if False, narrower prefixes are padded with zeros instead.
    """
    most = max(sizes)
    total = torch.zeros(most, most, device=weights.device, dtype=weights.dtype)
    for size, weight in zip(sizes, weights, strict=True):
        aligned = interpolation(size, most) if interpolate else torch.eye(most, size)
        total = total + weight * F.pad(aligned.to(total), (0, most - size))
    return _enlarged(total, full)


@dataclass(frozen=True)
class Sampling:
    """How sizes are drawn."""

    count: int = 2
    """number of widths per step, |I|"""
    interpolate: bool = True
    """align outputs of different widths by channel-wise interpolation; otherwise by zero padding"""
    sample: bool = True
    """draw with Gumbel noise; otherwise mix all sizes by their probabilities (Eq. 2)"""
    each_norm: bool = False
    """each width has its own norm; otherwise all are slices of one"""


@final
class SizeDistribution(nn.Module):
    """A learnable distribution over the sizes of one part: widths of a group or depths of a stage (Eq. 2).

    Args:
        options: the sizes, ascending.
    """

    def __init__(self, options: Sequence[int]) -> None:
        super().__init__()
        self.options = tuple(options)
        self.logits = nn.Parameter(torch.zeros(len(options)))

    def shares(self) -> Float[Tensor, " options"]:
        """Return the probability of each size, with gradient."""
        return self.logits.softmax(0)

    def entropy(self) -> Float[Tensor, ""]:
        """Return the entropy in nats, with gradient."""
        return -(self.shares() * self.logits.log_softmax(0)).sum()

    @property
    def best(self) -> int:
        """The most probable size; the largest of equally probable ones."""
        ranked: list[float] = to_list(self.logits.detach())
        return max(zip(ranked, self.options, strict=True))[1]

    def relaxed(self, noise: Noise, tau: float) -> Float[Tensor, " options"]:
        """Return the weight of each size: its probability with Gumbel noise (Eq. 3)."""
        return gumbel_softmax(self.logits, noise(self.logits.shape).to(self.logits), tau)

    def drawn(self, noise: Noise, tau: float, count: int) -> "Drawn":
        """Draw `count` sizes with their weights, see `relax.gumbel_subset`."""
        first, second = (noise(self.logits.shape).to(self.logits) for _ in range(2))
        indices, weights = gumbel_subset(self.logits, first, second, tau, min(count, len(self.options)))
        drawn: list[int] = to_list(indices)
        return tuple(self.options[index] for index in drawn), weights


Drawn = tuple[tuple[int, ...], Tensor]
"""Sizes and their weights."""


@final
class SampledLayer(nn.Module):
    """A layer, or its norm, followed by the aggregation over the widths drawn by its group."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self._matrix: Tensor | None = None

    def take(self, drawn: Drawn | None, matrix: Tensor | None) -> None:
        """Set the aggregation matrix of the next passes; None leaves all channels unchanged."""
        self._matrix = matrix

    def forward(self, x: Tensor) -> Tensor:
        """Float [batch, channels, ...] -> the shape of the layer's output."""
        made = self.layer(x)
        return made if self._matrix is None else _mapped(made, self._matrix)

    def original(self) -> nn.Module:
        """Return the layer."""
        return self.layer


@final
class SampledNorms(nn.Module):
    """The norms of one layer, one per width, whose outputs are interpolated and added exactly as in Eq. 4.

    Time and memory grow with the number of sampled widths.
    """

    def __init__(self, norm: nn.Module, sizes: Sequence[int], *, interpolate: bool) -> None:
        super().__init__()
        self._norm, self._sizes, self._interpolate = (norm,), tuple(sizes), interpolate
        self.norms = nn.ModuleList(_prefix(norm, size) for size in sizes)
        self._drawn: Drawn | None = None

    def take(self, drawn: Drawn | None, matrix: Tensor | None) -> None:
        """Set the widths and weights of the next passes; None means the full width."""
        self._drawn = drawn

    def forward(self, x: Tensor) -> Tensor:
        """Float [batch, channels, ...] -> same shape."""
        sizes, weights = self._drawn or ((self._sizes[-1],), torch.ones(1).to(x))
        most, total = max(sizes), torch.zeros((), device=x.device)
        for size, weight in zip(sizes, weights.to(x.dtype), strict=True):
            made = self.norms[self._sizes.index(size)](x[:, :size])
            if size < most:
                made = _mapped(made, interpolation(size, most).to(x)) if self._interpolate else _filled(made, most)
            total = total + weight * made
        return _filled(total, x.shape[1])

    def original(self) -> nn.Module:
        """Return the given norm with the weights of another norm for its channels.

        That of the drawn width, or of the full width.
        """
        norm, size = self._norm[0], self._drawn[0][-1] if self._drawn else self._sizes[-1]
        learned = self.norms[self._sizes.index(size)].state_dict()
        with torch.no_grad():
            for name, value in norm.state_dict().items():
                (value[:size] if value.ndim else value).copy_(learned[name])
        return norm


@final
class DepthMixedBlock(nn.Module):
    """A block of a stage that keeps its output; the last one returns the mixture over all depths (Eq. 5)."""

    def __init__(self, block: nn.Module, seen: list[Tensor], *, first: bool, last: bool) -> None:
        super().__init__()
        self.block, self._seen, self._first, self._last = block, seen, first, last
        self.mixed: tuple[tuple[int, ...], Tensor] | None = None
        """in the last block: depths and their weights; None: only the full depth"""
        self.aligned: Mapping[int, Tensor] = {}
        """in the last block: for each depth of narrower output, the matrix that interpolates its channels to the widest
        output"""

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, or, from the last block, the mixture of outputs in the same shape."""
        if self._first:
            self._seen.clear()
        made = self.block(x)
        self._seen.append(made)
        if not self._last:
            return made
        outputs = list(self._seen)
        self._seen.clear()
        if self.mixed is None:
            return made
        depths, weights = self.mixed
        each = [
            _mapped(outputs[depth - 1], self.aligned[depth]) if depth in self.aligned else outputs[depth - 1]
            for depth in depths
        ]
        return torch.stack([weight * output for output, weight in zip(each, weights.to(made.dtype), strict=True)]).sum(
            0
        )


class WidthPart(NamedTuple):
    """A channel group that draws its width."""

    name: str
    full: int
    layers: tuple[str, ...]
    """names of the layers in the network that produce its channels"""
    options: tuple[int, ...]


class DepthPart(NamedTuple):
    """A stage that draws its depth."""

    name: str
    blocks: tuple[str, ...]
    """names of the blocks in the network, in order; the first always runs"""
    options: tuple[int, ...]
    groups: tuple[str, ...] = ()
    """output group of each block, if each has its own width; empty if all share one group"""


@final
class SizedNetwork(nn.Module):
    """A network whose groups draw widths, and whose stages draw depths, in every forward pass in training mode.

    In evaluation mode, it is the network of the most probable sizes.

    Args:
        network: the network at full width; its layers become part of this one, see `released`.
        widths: groups that draw widths.
        depths: stages that draw depths.
        example: a batch of the network's input shape.
        sampling: how sizes are drawn.
    """

    def __init__(
        self,
        network: nn.Module,
        widths: Sequence[WidthPart],
        depths: Sequence[DepthPart],
        example: Tensor,
        sampling: Sampling,
    ) -> None:
        super().__init__()
        self.parts, self.stages, self.sampling = tuple(widths), tuple(depths), sampling
        self._widths = [SizeDistribution(part.options) for part in widths]
        self._depths = [SizeDistribution(stage.options) for stage in depths]
        self.widths, self.depths = nn.ModuleList(self._widths), nn.ModuleList(self._depths)
        self.noise: Noise = gumbel
        self.temperature: Callable[[int], float] = lambda _: 1.0
        self.taken = 0
        """number of forward passes in training mode, which determines the temperature"""
        ends = ends_of(network, {layer: part.full for part in widths for layer in part.layers}, example)
        self._layers = [
            [_wrapped(network, ends[layer], partial(self._sampled, part)) for layer in part.layers]
            for part in self.parts
        ]
        self._lasts = [self._staged(network, stage) for stage in self.stages]
        self.network = network

    def _sampled(self, part: WidthPart, layer: nn.Module) -> SampledLayer | SampledNorms:
        if self.sampling.each_norm and isinstance(layer, _BatchNorm):
            return SampledNorms(layer, part.options, interpolate=self.sampling.interpolate)
        return SampledLayer(layer)

    @staticmethod
    def _staged(network: nn.Module, stage: DepthPart) -> DepthMixedBlock:
        seen: list[Tensor] = []
        blocks = stage.blocks
        made = [
            _wrapped(
                network,
                name,
                lambda block, name=name: DepthMixedBlock(block, seen, first=name == blocks[0], last=name == blocks[-1]),
            )
            for name in blocks
        ]
        return made[-1]

    def width_sizes(self) -> list[tuple[WidthPart, SizeDistribution]]:
        """Return each group with its distribution."""
        return list(zip(self.parts, self._widths, strict=True))

    def depth_sizes(self) -> list[tuple[DepthPart, SizeDistribution]]:
        """Return each stage with its distribution."""
        return list(zip(self.stages, self._depths, strict=True))

    def sizes(self) -> list[SizeDistribution]:
        """Return all distributions: of widths, then of depths."""
        return [*self._widths, *self._depths]

    def logits(self) -> list[nn.Parameter]:
        """Return the architecture parameters: alpha of each group, then beta of each stage."""
        return [sizes.logits for sizes in self.sizes()]

    def forward(self, x: Tensor) -> Tensor:
        """Images -> logits."""
        if self.training:
            self._draw(self.temperature(self.taken))
            self.taken += 1
        else:
            self._settle()
        return self.network(x)

    def _draw(self, tau: float) -> None:
        sampling, widest = self.sampling, dict[str, int]()
        for part, sizes, layers in zip(self.parts, self._widths, self._layers, strict=True):
            drawn = sizes.drawn(self.noise, tau, sampling.count) if sampling.sample else (sizes.options, sizes.shares())
            matrix = aggregation(part.full, *drawn, interpolate=sampling.interpolate)
            widest[part.name] = max(drawn[0])
            for layer in layers:
                layer.take(drawn, matrix)
        for stage, sizes, last in zip(self.stages, self._depths, self._lasts, strict=True):
            last.mixed = sizes.options, sizes.relaxed(self.noise, tau) if sampling.sample else sizes.shares()
            last.aligned = self._aligned(stage, widest) if sampling.interpolate else {}

    def _aligned(self, stage: DepthPart, widest: Mapping[str, int]) -> dict[int, Tensor]:
        """Return each depth's channel interpolation (Eq. 5).

        For depths whose last block has drawn a smaller width than another's.
        """
        full = {part.name: part.full for part in self.parts}
        made = {
            depth: group for depth, group in enumerate(stage.groups, 1) if depth in stage.options and group in widest
        }
        most = max((widest[group] for group in made.values()), default=0)
        return {
            depth: _enlarged(interpolation(widest[group], most), full[group]).to(self.logits()[0].device)
            for depth, group in made.items()
            if widest[group] < most
        }

    @torch.no_grad()
    def _settle(self) -> None:
        for part, sizes, layers in zip(self.parts, self._widths, self._layers, strict=True):
            drawn = (sizes.best,), torch.ones(1).to(sizes.logits)
            for layer in layers:
                layer.take(drawn, aggregation(part.full, *drawn) if sizes.best < part.full else None)
        for stage, sizes, last in zip(self.stages, self._depths, self._lasts, strict=True):
            last.mixed = ((sizes.best,), torch.ones(1).to(sizes.logits)) if sizes.best < len(stage.blocks) else None

    def released(self) -> nn.Module:
        """Return the given network with its present weights, and those of the most probable widths' norms.

        Invalidates this module.
        """
        self._settle()
        for name, module in list(named_modules(self.network)):
            if isinstance(module, SampledLayer | SampledNorms):
                self.network.set_submodule(name, module.original())
        for name, module in list(named_modules(self.network)):
            if isinstance(module, DepthMixedBlock):
                self.network.set_submodule(name, module.block)
        return self.network


def ends_of(network: nn.Module, layers: Mapping[str, int], example: Tensor) -> dict[str, str]:
    """Return the name of the norm that reads each layer's output, or of the layer itself if no norm does.

    Args:
        network: the network with the layers.
        layers: name of each layer, and the number of channels to draw from.
        example: a batch of the network's input shape.

    Raises:
        SearchError: a layer's output has another size in its second dimension, the channels.
    """
    producers: dict[int, tuple[str, Tensor]] = {}  # holds the tensors, so that ids stay unique
    ends = {name: name for name in layers}
    names: Mapping[nn.Module, str] = {module: name for name, module in named_modules(network)}

    def produced(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        name = names[module]
        if output.shape[1] != layers[name]:
            raise SearchError(
                f"layer {name} makes {output.shape[1]} channels, and {layers[name]} are to be drawn from: --exclude it"
            )
        producers[id(output)] = name, output

    def normed(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if id(inputs[0]) in producers:
            ends[producers[id(inputs[0])][0]] = names[module]

    hooks = [network.get_submodule(name).register_forward_hook(produced) for name in ends]
    hooks += [norm.register_forward_pre_hook(normed) for norm in network.modules() if isinstance(norm, _BatchNorm)]
    training = network.training
    with torch.no_grad():
        network.eval()(example)
    network.train(training)
    for hook in hooks:
        hook.remove()
    return ends


def _mapped(x: Tensor, matrix: Tensor) -> Tensor:
    """Multiply the channels by a matrix."""
    matrix = matrix.to(x.dtype)
    return F.conv2d(x, matrix[:, :, None, None]) if x.ndim == 4 else torch.einsum("oc,nc...->no...", matrix, x)


def _enlarged(matrix: Tensor, channels: int) -> Tensor:
    """Enlarge a matrix to more channels, with zeros for the new ones."""
    out, within = matrix.shape
    return F.pad(matrix, (0, channels - within, 0, channels - out))


def _filled(x: Tensor, channels: int) -> Tensor:
    """Pad with zeros to the given number of channels."""
    return F.pad(x, (0, 0) * (x.ndim - 2) + (0, channels - x.shape[1]))


def _prefix(norm: nn.Module, size: int) -> nn.Module:
    """Return the norm of the first channels."""
    prefix = copy.deepcopy(norm)
    prefix.num_features = size  # pyright: ignore[reportArgumentType]
    for name, value in prefix.named_parameters():
        setattr(prefix, name, nn.Parameter(value.detach()[:size].clone()))
    for name, value in prefix.named_buffers():
        setattr(prefix, name, value[:size].clone() if value.ndim else value)
    return prefix


def _wrapped(network: nn.Module, name: str, wrap: Callable[[nn.Module], M]) -> M:
    wrapper = wrap(network.get_submodule(name))
    network.set_submodule(name, wrapper)
    return wrapper
