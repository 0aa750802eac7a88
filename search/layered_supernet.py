"""Supernets of layered spaces.

All multi-blocks of all layers at once, each of which can be removed (PRUNET, Section 3.2).

A layer is the sum of its blocks, weighted by a Gumbel softmax. A block of open hidden width is a `Prunode`, which
weights its two candidates by its own Gumbel softmax. The shares of a step are kept, so that its latency is weighted
with the same numbers (Eq. 5).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from msgspec import Struct
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint  # pyright: ignore[reportUnknownVariableType]

from latency import BlockSpec
from reparam.blocks import Image
from reparam.typed_torch import to_list
from search.blocks import InvertedResidual, SqueezeExcite, trained
from search.cost import Candidate, CostModel, Term
from search.prunode import PrunodeMasks, Rule
from search.relax import gumbel, gumbel_softmax
from search.spaces.layered import SKIP, Layered, MultiBlock, StochasticLayer

Pair = Float[Tensor, "2"]
"""Shares of the small and the large candidate."""


@final
class Prunode(nn.Module):
    """One inverted residual at two hidden widths at once, with one set of weights (Section 3.2.1).

    The output is the sum of both candidates, weighted by the two-way softmax of 0 and `weight`. Before the projection,
    both agree in their common channels, so these are computed once, for the large candidate; the projection is linear,
    so the sum is taken before it. Only the last norm differs: here a single one normalises the weighted sum. With
    `literal`, the projection runs for each candidate, and each has its own statistics of the norm, like two separate
    blocks, which takes more time and memory.

    Args:
        block: an `irb` or a `fused_irb` of open hidden width.
        paper: move the masks as printed, see `Rule`.
        literal: run projection and last norm for each candidate.
    """

    def __init__(self, block: MultiBlock, *, paper: bool = False, literal: bool = False) -> None:
        super().__init__()
        self.spec, self.literal = block.spec, literal
        built = trained(block.spec)
        assert isinstance(built, InvertedResidual), block.spec
        self.block = built
        self.weight = nn.Parameter(torch.zeros(()))
        self.rule = Rule(max_channels=block.hidden[-1], granularity=block.hidden[0], paper=paper)
        assert len(block.hidden) == block.hidden[-1] // block.hidden[0], block.hidden
        self.masks = self.rule.start()

    def pair(self, noise: Pair, tau: float) -> Pair:
        """Return the shares of the two candidates; if their widths are equal, the large one has all."""
        if self.masks.small == self.masks.large:
            return torch.tensor([0.0, 1.0], device=self.weight.device)
        return gumbel_softmax(torch.stack([torch.zeros_like(self.weight), self.weight]), noise, tau)

    @torch.no_grad()
    def step(self, progress: float) -> None:
        """Run Algorithm 1 after a step of the architecture weights."""
        self.masks, weight = self.rule.step(self.masks, float(self.weight), progress)
        self.weight.fill_(weight)

    @property
    def width(self) -> int:
        """Hidden width of the preferred candidate; of the small one if neither is preferred."""
        return self.masks.large if self.weight > 0 else self.masks.small

    def specs(self) -> tuple[BlockSpec, BlockSpec]:
        """Return the two candidates."""
        return self.spec.with_widths(hidden=self.masks.small), self.spec.with_widths(hidden=self.masks.large)

    def forward(self, x: Image, pair: Pair) -> Image:
        """Float [batch, c_in, h, w] -> [batch, c_out, h / stride, w / stride].

        Args:
            x: the image.
            pair: shares of the candidates.
        """
        hidden = x
        for name, part in self.block.body.named_children():
            if name in ("expand", "depthwise"):
                hidden = self._sliced(part, hidden)
        conv, norm = (self.block.body.get_submodule(f"project.{name}") for name in ("conv", "norm"))
        assert isinstance(conv, nn.Conv2d)
        weight, keeps = conv.weight[:, : self.masks.large], self._keeps(hidden)
        if self.literal:
            outputs = [
                share * norm(F.conv2d(*_masked(hidden, weight, keep))) for share, keep in zip(pair, keeps, strict=True)
            ]
            out = outputs[0] + outputs[1]
        else:
            out = norm(F.conv2d(*_masked(hidden, weight, pair[0] * keeps[0] + pair[1] * keeps[1])))
        return x + out if self.block.residual else out

    def _sliced(self, part: nn.Module, x: Image) -> Image:
        """Apply convolution, norm and activation to only the first channels."""
        conv, norm = part.get_submodule("conv"), part.get_submodule("norm")
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        width = self.masks.large
        x = F.conv2d(
            x, conv.weight[:width], None, conv.stride, conv.padding, conv.dilation, width if conv.groups > 1 else 1
        )
        return part.get_submodule("act")(_normed(norm, x))

    def _keeps(self, hidden: Image) -> list[Float[Tensor, "... channels"]]:
        """Return each candidate's factors on hidden channels.

        0 if masked, else 1 or the scale of its squeeze-and-excite.
        """
        widths, channels = (self.masks.small, self.masks.large), hidden.shape[1]
        gate = getattr(self.block.body, "se", None)
        if gate is None:
            return [(torch.arange(channels, device=hidden.device) < width).to(hidden.dtype) for width in widths]
        assert isinstance(gate, SqueezeExcite)
        assert gate.expand.bias is not None
        pooled, factors = hidden.mean((2, 3)), list[Tensor]()
        for width in widths:
            reduced = gate.act(F.linear(pooled[:, :width], gate.reduce.weight[:, :width].flatten(1), gate.reduce.bias))
            scales = gate.gate(F.linear(reduced, gate.expand.weight[:width].flatten(1), gate.expand.bias[:width]))
            factors.append(F.pad(scales, (0, channels - width)))
        return factors


@dataclass(frozen=True, kw_only=True)
class Shares:
    """Shares of one layer in one step."""

    blocks: Float[Tensor, " candidates"]
    """share of each remaining candidate, in order"""
    pairs: tuple[Pair | None, ...]
    """shares within each candidate that is a Prunode; None for others"""


class LayerState(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Remaining candidates of a layer."""

    candidates: tuple[str, ...]
    """options in order, with the skip block last if it is a candidate"""
    masks: dict[str, PrunodeMasks]
    """masks of each candidate that is a Prunode"""


@final
class MixedLayer(nn.Module):
    """A layer whose output is the weighted sum of its candidates (Eq. 3).

    Args:
        layer: layer of the space.
        phi: factor on the output of the skip block while it has a competitor (Section 3.2.3).
        lam: factor on the output of that competitor.
        paper: see `Prunode`.
        literal: see `Prunode`.
        recompute: recompute activations inside blocks in the backward pass instead of storing them: less memory, a
            third more time. Norms then update their running statistics twice per step.
    """

    def __init__(
        self,
        layer: StochasticLayer,
        *,
        phi: float,
        lam: float,
        paper: bool = False,
        literal: bool = False,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.skippable, self.phi, self.lam, self.recompute = layer.skippable, phi, lam, recompute
        self.specs = {option.name: option.spec for option in layer.options}
        self.blocks = nn.ModuleDict(
            {
                option.name: Prunode(option, paper=paper, literal=literal) if option.hidden else trained(option.spec)
                for option in layer.options
            }
        )
        self.theta = nn.Parameter(torch.full((len(layer.options) + 1,), 1 / len(layer.options)))
        """Weights of the options, then of the skip block, even if there is none, so that both kinds of searches can
        share a warm-up."""
        self._places = {name: index for index, name in enumerate([*self.specs, SKIP])}
        self.skip = layer.skippable and len(layer.options) == 1  # it has no penultimate block
        """Whether the skip block is a candidate."""

    @property
    def candidates(self) -> tuple[str, ...]:
        """Remaining options, in order."""
        return (*self.blocks, SKIP) if self.skip else tuple(self.blocks)

    def prunode(self, name: str) -> Prunode | None:
        """Return a candidate if it is a Prunode, otherwise None."""
        candidate = dict(self.blocks.named_children()).get(name)
        return candidate if isinstance(candidate, Prunode) else None

    def logits(self) -> Float[Tensor, " candidates"]:
        """Return the architecture weights of the remaining candidates."""
        return self.theta[[self._places[name] for name in self.candidates]]

    @torch.no_grad()
    def probabilities(self) -> dict[str, float]:
        """Return the probability of each candidate, which is compared with the threshold."""
        probabilities: list[float] = to_list(self.logits().softmax(0))
        return dict(zip(self.candidates, probabilities, strict=True))

    @property
    def best(self) -> str:
        """The most probable candidate; the first of equally probable ones."""
        return max(self.candidates, key=self.probabilities().__getitem__)

    def sample(self, tau: float, *, noisy: bool) -> Shares:
        """Return the shares of all candidates.

        Constant for a single one, since the output does not depend on theta then.
        """
        nodes = [self.prunode(name) for name in self.candidates]
        shape = (len(nodes), 3)  # per candidate: its own noise, then that of its pair
        noise = (gumbel(shape) if noisy else torch.zeros(shape)).to(self.theta.device)
        pairs = tuple(node.pair(noise[index, 1:], tau) if node else None for index, node in enumerate(nodes))
        blocks = gumbel_softmax(self.logits(), noise[:, 0], tau) if len(nodes) > 1 else torch.ones_like(noise[:, 0])
        return Shares(blocks=blocks, pairs=pairs)

    def forward(self, x: Image, shares: Shares) -> Image:
        """Float [batch, c_in, h, w] -> [batch, c_out, h / stride, w / stride]."""
        names = self.candidates
        outputs = [self._candidate(name, x, pair) for name, pair in zip(names, shares.pairs, strict=True)]
        if len(outputs) == 1:
            return outputs[0]
        if self.skip:
            outputs = [
                value * (self.phi if name == SKIP else self.lam) for name, value in zip(names, outputs, strict=True)
            ]
        total = shares.blocks[0] * outputs[0]
        for share, value in zip(shares.blocks[1:], outputs[1:], strict=True):
            total = total + share * value
        return total

    def _candidate(self, name: str, x: Image, pair: Pair | None) -> Image:
        if name == SKIP:
            return x
        inputs = (x,) if pair is None else (x, pair)
        output: Image = (
            cast("Image", checkpoint(self.blocks[name], *inputs, use_reentrant=False))
            if self.recompute and self.training
            else self.blocks[name](*inputs)
        )
        return output

    def term(self, model: CostModel, shares: Shares) -> Term:
        """Return the expected cost of the layer (Eq. 5)."""
        specs: list[Candidate] = []
        parts: list[Tensor] = []
        for name, share, pair in zip(self.candidates, shares.blocks, shares.pairs, strict=True):
            node = self.prunode(name)
            if node is None or pair is None:
                specs.append(self.specs.get(name))
                parts.append(share)
            else:
                specs += node.specs()
                parts += [share * pair[0], share * pair[1]]
        return model.over(specs, torch.stack(parts))

    # Removal

    def prune(self, threshold: float) -> list[nn.Module]:
        """Remove candidates whose probability is below a threshold, the least probable first.

        The most probable one stays.

        In a layer that can be skipped, the penultimate block is replaced by a skip block; the two remaining candidates
        then restart with equal probabilities (Section 3.2.3).

        Returns:
            The removed modules.
        """
        probabilities, best = self.probabilities(), self.best
        below = sorted(
            (name for name, value in probabilities.items() if value < threshold and name != best),
            key=probabilities.__getitem__,
        )
        removed: list[nn.Module] = []
        for name in below:
            replaces = self.skippable and not self.skip and len(self.blocks) == 2
            removed += self._remove(name)
            if replaces:
                self.skip = True
                self.theta.data.fill_(1 / 2)
                break
        return removed

    def _remove(self, name: str) -> list[nn.Module]:
        if name == SKIP:
            self.skip = False
            return []
        return [self.blocks.pop(name)]

    def state(self) -> LayerState:
        """Return the remaining candidates and their masks."""
        nodes = {name: node for name in self.blocks if (node := self.prunode(name))}
        return LayerState(candidates=self.candidates, masks={name: node.masks for name, node in nodes.items()})

    def restore(self, state: LayerState) -> None:
        """Keep only the candidates of a state, with its masks."""
        for name in [name for name in self.blocks if name not in state.candidates]:
            self._remove(name)
        self.skip = SKIP in state.candidates
        for name, masks in state.masks.items():
            node = self.prunode(name)
            assert node is not None, name
            node.masks = masks


@final
class LayeredSupernet(nn.Module):
    """All blocks of all layers of a space.

    In training, each forward pass draws new shares from torch's global random state; in evaluation, there is no noise.

    Args:
        space: the layered space.
        tau: temperature of both Gumbel softmaxes.
        phi: see `MixedLayer`.
        lam: see `MixedLayer`.
        paper: see `Prunode`.
        literal: see `Prunode`.
        recompute: see `MixedLayer`.
    """

    def __init__(
        self,
        space: Layered,
        *,
        tau: float,
        phi: float,
        lam: float,
        paper: bool = False,
        literal: bool = False,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.tau = tau
        self.layers = nn.ModuleDict(
            {
                layer.name: MixedLayer(layer, phi=phi, lam=lam, paper=paper, literal=literal, recompute=recompute)
                for layer in space.layers
            }
        )
        self.shares: list[Shares] = []
        """Shares of each layer in the last forward pass."""

    def each(self) -> Iterator[tuple[str, MixedLayer]]:
        """Yield the layers with their names, in order."""
        for name, layer in self.layers.items():
            assert isinstance(layer, MixedLayer)
            yield name, layer

    def prunodes(self) -> Iterator[Prunode]:
        """Return all remaining Prunodes."""
        return (module for module in self.modules() if isinstance(module, Prunode))

    def thetas(self) -> list[nn.Parameter]:
        """Return the architecture weights of the layers that have a choice."""
        return [layer.theta for _, layer in self.each() if len(layer.specs) + layer.skippable > 1]

    def widths(self) -> list[nn.Parameter]:
        """Return the architecture weights of the Prunodes."""
        return [node.weight for node in self.prunodes()]

    def weights(self) -> list[nn.Parameter]:
        """Return all other trained parameters."""
        others = {id(parameter) for parameter in [*self.widths(), *(layer.theta for _, layer in self.each())]}
        return [parameter for parameter in self.parameters() if id(parameter) not in others]

    def forward(self, x: Image) -> Float[Tensor, "batch classes"]:
        """Images [batch, 3, h, w] -> logits."""
        self.shares = []
        for _, layer in self.each():
            self.shares.append(layer.sample(self.tau, noisy=self.training))
            x = layer(x, self.shares[-1])
        return x

    def expected(self, model: CostModel, shares: Sequence[Shares]) -> Float[Tensor, ""]:
        """Return the expected cost in the unit of the model (Eq. 5).

        It is differentiable with respect to the architecture weights.
        """
        return model.expected([layer.term(model, share) for (_, layer), share in zip(self.each(), shares, strict=True)])

    def state(self) -> dict[str, LayerState]:
        """Return the remaining candidates of each layer."""
        return {name: layer.state() for name, layer in self.each()}

    def restore(self, state: dict[str, LayerState]) -> None:
        """Keep only the candidates of a state, with its masks."""
        for name, layer in self.each():
            layer.restore(state[name])


def _masked(hidden: Image, weight: Tensor, keep: Tensor) -> tuple[Image, Tensor]:
    """Multiply the input of a 1x1 convolution by `keep`, folded into the weight if it is the same for all images."""
    return (hidden, weight * keep[:, None, None]) if keep.ndim == 1 else (hidden * keep[:, :, None, None], weight)


def _normed(norm: nn.BatchNorm2d, x: Image) -> Image:
    """Apply a norm to an input that has only its first channels."""
    width = x.shape[1]
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.momentum is not None
    tracks = norm.track_running_stats or not norm.training
    running = (norm.running_mean[:width], norm.running_var[:width]) if tracks else (None, None)
    return F.batch_norm(x, *running, norm.weight[:width], norm.bias[:width], norm.training, norm.momentum, norm.eps)
