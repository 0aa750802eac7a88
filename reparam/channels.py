"""What each operator does to channels: the rules that `squeeze` and `channel_groups` walk a graph by.

Every channel of every value is an atom. A rule says for the output of its operator which atom each channel is, and which channels are dead:
the same number, `const`, in every sample and pixel. A mask makes that number 0; a norm or an activation behind it may make another one.

- What passes channels through hands on the atoms of its input; an addition unites those of its operands.
- What mixes channels (a convolution, a linear layer) reads the live ones and makes new ones. A dead one that is not 0 goes into its bias.
- What has no rule, the inputs and the outputs pin their channels: all of them stay. A masked channel that gets to such an operator, or
  one whose number no bias can hold, as in front of a border of zeros, is a `Refusal`.

Where all rules have been applied, an atom that nobody reads alive is gone everywhere. Convolutions in groups are kept dense: a group that
has a channel left, in or out, keeps as many as the largest one, so some masked channels stay; groups without any go.
"""

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate, map_arg

from reparam.atoms import Atoms, Flags, Ids
from reparam.blocks import Block, ChannelMask, ConvBlock
from reparam.errors import ReparamError
from reparam.tracing import describe, operator_name, propagate, trace

Numbers = NDArray[np.float64]

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d
TransposedConv = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm
InstanceNorm = nn.InstanceNorm1d | nn.InstanceNorm2d | nn.InstanceNorm3d

# Channel by channel and element by element.
_POINTWISE = (
    nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout, nn.ReLU, nn.ReLU6,
    nn.LeakyReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardtanh, nn.Hardsigmoid,
    nn.Hardshrink, nn.Softshrink, nn.Tanhshrink, nn.Tanh, nn.Sigmoid, nn.LogSigmoid, nn.Softplus, nn.Softsign, nn.Threshold,
)  # fmt: skip
_POINTWISE_NAMES = frozenset((
    "relu", "relu6", "leaky_relu", "rrelu", "elu", "celu", "selu", "gelu", "silu", "mish", "hardswish", "hardtanh", "hardsigmoid",
    "hardshrink", "softshrink", "tanhshrink", "tanh", "sigmoid", "logsigmoid", "softplus", "softsign", "threshold", "clamp", "abs", "neg",
    "exp", "log", "sqrt", "rsqrt", "square", "pow", "sin", "cos", "erf", "reciprocal", "sign", "float", "double", "half", "to", "type",
    "contiguous", "clone", "detach", "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout",
))  # fmt: skip
# Channel by channel, over what lies behind the channels: the sizes there may change.
_SPATIAL = (
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.LPPool1d, nn.LPPool2d, nn.LPPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
    nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d, nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d,
    nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d, nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d,
    nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d,
)  # fmt: skip
_SPATIAL_NAMES = frozenset(
    f"{kind}{size}d" for kind in ("max_pool", "avg_pool", "lp_pool", "adaptive_avg_pool", "adaptive_max_pool") for size in (1, 2, 3)
) | {"interpolate"}
_BINARY = frozenset(("add", "sub", "mul", "div", "maximum", "minimum"))
_BORDER = "has a border that is not uniform: the masked channels that it reads are not 0 but a number"
_GENERIC = 0.7390851332151607  # stands for a number that training will decide


@dataclass(frozen=True)
class Channels:
    """The channels of one value, along `dim` of its shape."""

    ids: Ids
    live: Flags
    const: Numbers
    dim: int = 1

    def dead_zero(self) -> bool:
        """Whether all of the value is 0."""
        return not self.live.any() and not self.const.any()


@dataclass(frozen=True)
class Refusal:
    """Something that is not exact if the channels go."""

    ids: Ids
    message: str


@dataclass
class Ends:
    """A module that is cut: the atoms at its input and its output, and the numbers that go into its bias."""

    node: fx.Node
    module: nn.Module
    into: Ids
    out: Ids
    folds: list[tuple[fx.Node, Channels, bool]]
    """for each call: what it reads, and whether a number other than 0 would be exact in the bias"""


class Traced:
    """A network's graph and the value of each of its nodes."""

    def __init__(self, model: nn.Module, example_input: Tensor | tuple[Tensor, ...]) -> None:
        inputs = example_input if isinstance(example_input, tuple) else (example_input,)
        self.model = model
        self.graph = trace(model, len(inputs))
        self.meta = propagate(model, self.graph, inputs)

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """Of its tensor; () for anything else."""
        value = self.meta[node]
        return tuple(value.shape) if isinstance(value, Tensor) else ()


class Flow:
    """One walk over a graph by the rules.

    Args:
        traced: the network, in evaluation mode.
        generic: take what weights decide, as the shift of a norm, for some number other than 0, as it is once the network is trained.
        behind: is shown the channels of every node, and returns what they are behind it.
    """

    def __init__(
        self, traced: Traced, *, generic: bool = False, behind: Callable[[fx.Node, Channels], Channels] = lambda _, value: value
    ) -> None:
        self.traced, self.model, self.meta, self.shape = traced, traced.model, traced.meta, traced.shape
        self.generic = generic
        self.atoms = Atoms()
        self.values: dict[fx.Node, Any] = {}
        """`Channels`, a tuple of them, or None where there are none that could go"""
        self.ends: dict[Any, Ends] = {}
        self.makers: list[tuple[fx.Node, Ids]] = []
        self.readers: list[tuple[fx.Node, Ids]] = []
        self.refusals: list[Refusal] = []
        self._filled: list[Ids] = []  # not masked, but nothing but a bias since all that makes them is
        self.pinned: list[tuple[Ids, str]] = []
        self.tied: list[tuple[Ids, str]] = []
        """channels of one value that depend on one another, and why"""
        self.alike: set[fx.Node] = set()
        """nodes that hand on the channels of their operands one by one, and sizes too"""
        self.edits: list[Callable[[], bool]] = []
        for node in traced.graph.nodes:
            value = self._rule(node)
            if isinstance(value, Channels):
                value = behind(node, value)
                if not node.users:
                    self._pin(value, f"node {node.name} is not used")
            self.values[node] = value

    def finish(self) -> None:
        """Find the numbers that a bias would have to take up and cannot, once every rule has been applied."""
        while left := [(node, ids) for ends in self.ends.values() for node, ids in self._unfolded(ends) if len(ids)]:
            known = len(self.refusals)
            for node, ids in left:  # what then stays may let go of what stood in for it: look again
                self._refuse(node, ids, _BORDER)
            if len(self.refusals) > known:
                return

    def _unfolded(self, ends: Ends) -> Iterator[tuple[fx.Node, Ids]]:
        """Channels that go from where they leave a number that no bias can take up."""
        for node, x, exact in ends.folds:
            if not exact:
                yield node, x.ids[~self.atoms.kept(x.ids) & (x.const != 0)]

    def group(self, ids: Ids) -> str:
        """The first layer that makes one of these channels."""
        roots = self.atoms.roots(ids)
        return next((str(node.target) for node, made in self.makers if np.isin(self.atoms.roots(made), roots).any()), "(input)")

    def maps(self, node: fx.Node, x: Channels) -> Channels:
        """What a node that hands channels on one by one makes of others than those it has."""
        module = self.model.get_submodule(str(node.target)) if node.op == "call_module" else None
        return _slope(module, x) if isinstance(module, nn.PReLU) else self._probed(node, x, pixels=False)

    def _call(self, node: fx.Node, args: Any, kwargs: Any) -> Tensor:
        """Run the operator of a node on other values, in float64."""
        args, kwargs = map_arg((args, kwargs), lambda n: self.meta[n])
        with torch.no_grad():
            if node.op == "call_module":
                return copy.deepcopy(self.model.get_submodule(str(node.target))).double()(*args, **kwargs)
            if node.op == "call_method":
                return getattr(args[0], str(node.target))(*args[1:], **kwargs)
            assert callable(node.target)
            return node.target(*args, **kwargs)

    # --- the rules ---

    def _rule(self, node: fx.Node) -> Any:
        match node.op:
            case "placeholder" | "get_attr":
                return None
            case "output":
                for argument in node.all_input_nodes:
                    self._pin(self.values[argument], "it is an output of the network")
                return None
        if not _any_tensor(self.meta[node]):
            return None
        if node.op == "call_module":
            return self._module(node, self.model.get_submodule(str(node.target)))
        return self._function(node, operator_name(node))

    def _module(self, node: fx.Node, module: nn.Module) -> Any:
        match module:
            case ChannelMask():
                x = self._known(node, 1)
                if x.dim != 1:
                    return self._opaque(node, " where channels are not dimension 1")
                self._end(node, module, x.ids, x.ids)
                keep = module.keep.cpu().numpy()
                return replace(x, live=x.live & keep, const=np.where(keep, x.const, 0.0))
            case nn.Conv1d() | nn.Conv2d() | nn.Conv3d() | nn.ConvTranspose1d() | nn.ConvTranspose2d() | nn.ConvTranspose3d():
                return self._conv(node, module)
            case nn.Linear():
                return self._linear(node, module)
            case Block():
                return self._trained(node, module)
        if not (inputs := self._inputs(node)):
            # Its parameters stay as they are, wherever else they are used.
            if isinstance(module, BatchNorm | InstanceNorm | nn.PReLU):
                x = self._known(node, 1)
                self._end(node, module, x.ids, x.ids)
            return None
        if len(inputs) != 1 or isinstance(self.meta[node], tuple):
            return self._opaque(node)
        x = inputs[0]
        match module:
            case nn.BatchNorm1d() | nn.BatchNorm2d() | nn.BatchNorm3d() | nn.SyncBatchNorm():
                return self._norm(node, module, x)
            case nn.InstanceNorm1d() | nn.InstanceNorm2d() | nn.InstanceNorm3d():
                return self._norm(node, module, x)
            case nn.GroupNorm():
                return self._group_norm(node, module, x)
            case nn.LayerNorm() if x.dim >= len(self.shape(node)) - len(module.normalized_shape):
                return self._all_tied(node, x, "takes its statistics over all channels")
            case nn.PReLU():
                return self._prelu(node, module, x)
            case nn.Flatten():
                return self._reshape(node, x)
            case nn.PixelShuffle():
                return self._pixel_shuffle(node, x, module.upscale_factor**2)
            case nn.PixelUnshuffle():
                return self._repeat(x, module.downscale_factor**2)
            case nn.ChannelShuffle():
                return self._channel_shuffle(node, x, module.groups)
            case nn.GLU():
                return self._glu(node, x, module.dim)
            case nn.Softmax() | nn.LogSoftmax():
                return self._softmax(node, x, module.dim)
            case nn.Softmax2d():
                return self._softmax(node, x, -3)
            case _ if isinstance(module, _POINTWISE):
                return self._alike(node, x)
            case _ if isinstance(module, _SPATIAL):
                return self._spatial(node, x)
        return self._opaque(node)

    def _function(self, node: fx.Node, name: str) -> Any:
        inputs = self._inputs(node)
        of = node.args[0] if node.args else None
        x = self.values.get(of) if isinstance(of, fx.Node) else None
        if name == "getitem" and isinstance(x, tuple):
            return x[node.args[1]] if isinstance(node.args[1], int) else self._opaque(node)
        if not inputs:
            return None
        if name == "cat":
            return self._cat(node)
        if name in _BINARY:
            return self._binary(node, name)
        if not isinstance(x, Channels):
            return self._opaque(node)
        if name == "expand_as":
            return self._expand_as(node, x)
        if len(inputs) != 1:
            return self._opaque(node)
        if name in _POINTWISE_NAMES:
            return self._alike(node, x)
        if name in _SPATIAL_NAMES and not isinstance(self.meta[node], tuple):
            return self._spatial(node, x)
        match name:
            case "pad":
                return self._pad(node, x)
            case "mean" | "sum" | "amax" | "amin":
                return self._reduce(node, x)
            case "flatten" | "view" | "squeeze" | "unsqueeze" | "view_as":
                return self._reshape(node, x)
            case "permute" | "transpose":
                return self._permute(node, x, name)
            case "chunk" | "split":
                return self._split(node, x)
            case "getitem":
                return self._slice(node, x)
            case "pixel_shuffle":
                return self._pixel_shuffle(node, x, self._argument(node, 1, "upscale_factor", 1) ** 2)
            case "pixel_unshuffle":
                return self._repeat(x, self._argument(node, 1, "downscale_factor", 1) ** 2)
            case "channel_shuffle":
                return self._channel_shuffle(node, x, self._argument(node, 1, "groups", 1))
            case "glu":
                return self._glu(node, x, self._argument(node, 1, "dim", -1))
            case "softmax" | "log_softmax":
                return self._softmax(node, x, self._argument(node, 1, "dim", None))
        return self._opaque(node)

    # --- what mixes channels ---

    def _conv(self, node: fx.Node, module: Any) -> Channels | None:
        x, transposed = self._known(node, 1), isinstance(module, TransposedConv)
        if x.dim != 1 or len(self.shape(node)) != module.weight.ndim:
            return self._opaque(node, " where channels are not dimension 1")
        return self._layer(node, module, x, exact=not transposed and not _zero_padded(module))

    def _linear(self, node: fx.Node, module: nn.Linear) -> Channels | None:
        last = len(self.shape(node)) - 1
        x = self._known(node, last)
        if x.dim != last:
            return self._opaque(node, f" over dimension {last}, where channels are dimension {x.dim}")
        return self._layer(node, module, x, exact=True)

    def _trained(self, node: fx.Node, module: Any) -> Channels | None:
        if not self.generic:
            if not all(part.keep.all() for part in module.modules() if isinstance(part, ChannelMask)):
                none = np.empty(0, np.int64)
                self.refusals.append(
                    Refusal(none, f"node {node.name}: squeeze has no rule for {type(module).__name__}: run fuse(model) first")
                )
            return self._opaque(node, ": run fuse(model) first")
        x = self._known(node, 1)
        deployed = module.deployed()
        parts: list[Any] = list(deployed) if isinstance(deployed, nn.Sequential) else [deployed]
        if not all(isinstance(part, ConvBlock) for part in parts) or x.dim != 1:
            return self._opaque(node, ", whose deployed form is not a chain of convolutions")
        self.readers.append((node, x.ids))
        for index, part in enumerate(parts):
            ends = self._end(node, module, x.ids, out := self.atoms.new(part.conv.out_channels), key=(id(module), index))
            x = self._mix(node, part.conv, x, out, ends, exact=not _zero_padded(part.conv))
        self.makers.append((node, x.ids))
        if len(parts) == 1 and parts[0].conv.groups == len(x.ids) == parts[0].conv.in_channels:
            self.alike.add(node)
        return x

    def _layer(self, node: fx.Node, module: Any, x: Channels, *, exact: bool) -> Channels:
        out = self.atoms.new(module.out_features if isinstance(module, nn.Linear) else module.out_channels)
        self.readers.append((node, x.ids))
        self.makers.append((node, out))
        if getattr(module, "groups", 1) == len(x.ids) == len(out) > 1:
            self.alike.add(node)
        return self._mix(node, module, x, out, self._end(node, module, x.ids, out), exact=exact)

    def _mix(self, node: fx.Node, module: Any, x: Channels, ids: Ids, ends: Ends, *, exact: bool) -> Channels:
        """The channels `ids` that a layer makes of others."""
        out, groups = Channels(ids, np.ones(len(ids), bool), np.zeros(len(ids)), x.dim), getattr(module, "groups", 1)
        ends.folds.append((node, x, exact))
        if groups == 1:
            self.atoms.read(x.ids[x.live])
            return out
        into, live, made = x.ids.reshape(groups, -1), x.live.reshape(groups, -1), out.ids.reshape(groups, -1)
        if into.shape[1] == made.shape[1] == 1:
            self.atoms.unite(x.ids, out.ids)
        else:
            self.atoms.balance(into, made, live)
            why = f"node {node.name} ({describe(self.model, node)}) must keep equally many channels in each of its groups"
            self.tied += [(x.ids, why), (out.ids, why)]
        dead = np.repeat(~live.any(1), made.shape[1])
        if not dead.any():
            return out
        if not exact and x.const.any():
            self._refuse(node, x.ids[x.const != 0], _BORDER)
            return out
        total = folded_bias(module, x.const, np.ones(len(x.ids), bool))
        if self.generic:
            total = np.where((total != 0) | (module.bias is not None), _GENERIC, 0.0)
        self._filled.append(out.ids[dead])
        return replace(out, live=~dead, const=np.where(dead, total, 0.0))

    # --- norms ---

    def _norm(self, node: fx.Node, module: Any, x: Channels) -> Channels | None:
        if x.dim != 1:
            return self._opaque(node, " where channels are not dimension 1")
        self._end(node, module, x.ids, x.ids)
        self.alike.add(node)
        if x.live.all():
            return x
        shift = _numbers(module.bias, len(x.ids), 0.0)
        if module.running_mean is None:  # of the batch: a constant is its own mean
            const = shift
        else:
            scale = _numbers(module.weight, len(x.ids), 1.0) / np.sqrt(_numbers(module.running_var, len(x.ids), 1.0) + module.eps)
            const = (x.const - _numbers(module.running_mean, len(x.ids), 0.0)) * scale + shift
        if self.generic:
            decided = module.bias is not None or module.running_mean is not None
            const = np.full_like(const, _GENERIC if decided else 0.0)
        return replace(x, const=np.where(x.live, 0.0, const))

    def _group_norm(self, node: fx.Node, module: nn.GroupNorm, x: Channels) -> Channels | None:
        if x.dim != 1:
            return self._opaque(node, " where channels are not dimension 1")
        self._end(node, module, x.ids, x.ids)
        ids, live = x.ids.reshape(module.num_groups, -1), x.live.reshape(module.num_groups, -1)
        if ids.shape[1] > 1:
            self._tie(node, x, ids, "takes its statistics over several channels")
        else:
            self.alike.add(node)
        dead = np.repeat(~live.any(1), ids.shape[1])
        numbers = x.const.reshape(module.num_groups, -1)
        normed = ((numbers - numbers.mean(1, keepdims=True)) / np.sqrt(numbers.var(1, keepdims=True) + module.eps)).ravel()
        const = normed * _numbers(module.weight, len(dead), 1.0) + _numbers(module.bias, len(dead), 0.0)
        if self.generic:
            const = np.full_like(const, _GENERIC if module.affine else 0.0)
        return replace(x, live=~dead, const=np.where(dead, const, 0.0))

    def _all_tied(self, node: fx.Node, x: Channels, why: str) -> Channels:
        self._tie(node, x, x.ids[None], why)
        if not x.live.any():
            self._refuse(node, x.ids, f"{why}, and all of them are masked")
        return replace(x, live=np.ones_like(x.live), const=np.zeros_like(x.const))

    # --- one by one ---

    def _alike(self, node: fx.Node, x: Channels) -> Channels | None:
        self.alike.add(node)
        return self._probed(node, x, pixels=False)

    def _spatial(self, node: fx.Node, x: Channels) -> Channels | None:
        if x.dim != 1 or len(self.shape(node)) != len(self.shape(node.all_input_nodes[0])):
            return self._opaque(node, " where channels are not dimension 1")
        return self._probed(node, x)

    def _probed(self, node: fx.Node, x: Channels, dim: int | None = None, *, pixels: bool = True) -> Channels:
        """Run a channel-wise operator on what is in the dead channels, to see what it makes of them; they are at `dim` afterwards."""
        dim = x.dim if dim is None else dim
        if x.live.all():
            return replace(x, dim=dim)
        source = next(n for n in node.all_input_nodes if isinstance(self.values.get(n), Channels))
        numbers, which = np.unique(x.const[~x.live], return_inverse=True)
        shape = [size if pixels else 1 for size in self.shape(source)]
        shape[0], shape[x.dim] = 1, len(numbers)
        view = [len(numbers) if axis == x.dim else 1 for axis in range(len(shape))]
        image = torch.from_numpy(numbers).view(view).expand(shape).clone()
        args, kwargs = map_arg((node.args, node.kwargs), lambda n: image if n is source else n)
        found = self._call(node, args, kwargs).double().movedim(dim, 0).reshape(len(numbers), -1).numpy()
        const = np.zeros_like(x.const)
        const[~x.live] = found[which, 0]
        lost = np.zeros_like(x.live)
        lost[~x.live] = np.any(~np.isclose(found, found[:, :1], rtol=1e-12, atol=0), axis=1)[which]
        if lost.any():
            self._refuse(node, x.ids[lost], "makes different numbers of a masked channel that is not 0")
        return replace(x, live=x.live | lost, const=np.where(lost, 0.0, const), dim=dim)

    def _prelu(self, node: fx.Node, module: nn.PReLU, x: Channels) -> Channels | None:
        if x.dim != 1:
            return self._opaque(node, " where channels are not dimension 1")
        if module.num_parameters > 1:
            self._end(node, module, x.ids, x.ids)
        self.alike.add(node)
        return _slope(module, x)

    def _softmax(self, node: fx.Node, x: Channels, dim: int | None) -> Channels | None:
        if dim is None or dim % len(self.shape(node)) == x.dim:
            return self._opaque(node, " over channels")
        return self._probed(node, x)

    def _reduce(self, node: fx.Node, x: Channels) -> Channels | None:
        before, dims = len(self.shape(node.all_input_nodes[0])), self._argument(node, 1, "dim", None)
        dims = {dims % before} if isinstance(dims, int) else {d % before for d in dims or ()}
        if not dims or dims & {0, x.dim}:
            return self._opaque(node, " over channels or samples")
        kept = len(self.shape(node)) == before
        return self._probed(node, x, x.dim if kept else x.dim - sum(d < x.dim for d in dims))

    # --- several operands ---

    def _binary(self, node: fx.Node, name: str) -> Channels | None:
        shape = self.shape(node)
        operands: list[Any] = [
            node.kwargs.get(key, node.args[i] if i < len(node.args) else None) for i, key in enumerate(("input", "other"))
        ]
        axes = {
            x.dim - len(self.shape(n))
            for n in operands
            if isinstance(n, fx.Node) and isinstance(x := self.values[n], Channels)
            if len(x.ids) == shape[x.dim - len(self.shape(n))]
        }
        if len(axes) != 1:
            return self._opaque(node, " of values whose channels are different dimensions")
        axis = axes.pop()
        width = shape[axis]
        parts: list[Channels] = []
        for n in operands:
            size = ([1] * len(shape) + list(self.shape(n)))[axis] if isinstance(n, fx.Node) else 1
            x = self.values.get(n) if isinstance(n, fx.Node) else None
            if isinstance(x, Channels) and x.dim - len(self.shape(n)) == axis and size == width:
                parts.append(x)
            elif size == 1:  # one number, or one plane, for all channels
                if isinstance(x, Channels):
                    self._pin(x, f"node {node.name} ({describe(self.model, node)}) uses it for all channels")
                known = not isinstance(n, fx.Node) or isinstance(self.meta[n], int | float)
                number = float(self.meta[n] if isinstance(n, fx.Node) else n) if known else 0.0
                parts.append(Channels(np.empty(0, np.int64), np.full(width, not known), np.full(width, number)))
            else:
                if isinstance(x, Channels):
                    return self._opaque(node, " of values whose channels are different dimensions")
                parts.append(self._table(node, n, axis, width))
        first, second = parts
        if len(first.ids) and len(second.ids):
            self.atoms.unite(first.ids, second.ids)
        live = first.live | second.live
        const = self._together(node, first.const, second.const)
        for one, other in ((first, second), (second, first)):
            if name == "mul" or (name == "div" and one is first):
                zero = ~one.live & (one.const == 0) & (name == "mul" or other.live)
                live, const = live & ~zero, np.where(zero, 0.0, const)
        self.alike.add(node)
        ids = first.ids if len(first.ids) else second.ids
        return Channels(ids, live, np.where(live, 0.0, const), len(shape) + axis)

    def _together(self, node: fx.Node, first: Numbers, second: Numbers) -> Numbers:
        """Run an operator of two operands on numbers."""
        numbers = [torch.from_numpy(first.copy()), torch.from_numpy(second.copy())]
        args = (*numbers[: len(node.args)], *node.args[2:])
        return self._call(
            node, args, node.kwargs | {key: n for key, n in zip(("input", "other"), numbers, strict=True) if key in node.kwargs}
        ).numpy()

    def _table(self, node: fx.Node, n: fx.Node, axis: int, width: int) -> Channels:
        """A tensor with an entry for every channel that no layer makes: a parameter is cut along, anything else stays."""
        ids = self.atoms.new(width)
        tensor: Any = self.meta[n]
        live, const = np.ones(width, bool), np.zeros(width)
        if n.op == "get_attr":
            owner, _, name = str(n.target).rpartition(".")
            holder = self.model.get_submodule(owner)
            tensor = getattr(holder, name)
            self._end(n, holder, ids, ids, key=(id(holder), name, axis + tensor.ndim))
            if tensor.numel() == width:
                live, const = np.zeros(width, bool), _numbers(tensor, width, 0.0)
                const = np.full_like(const, _GENERIC) if self.generic else const
        else:
            self._pin(Channels(ids, live, const), f"node {n.name} has a number for each of them")
        return Channels(ids, live, const)

    def _cat(self, node: fx.Node) -> Channels | None:
        listed: Any = node.args[0] if node.args else node.kwargs["tensors"]
        dim = self._argument(node, 1, "dim", self._argument(node, 1, "axis", 0)) % len(self.shape(node))
        known: list[Any] = list(self.values[listed]) if isinstance(listed, fx.Node) else [self.values.get(n) for n in listed]
        dims = {x.dim for x in known if isinstance(x, Channels)}
        if len(dims) != 1:
            return self._opaque(node, " of values whose channels are different dimensions")
        axis = dims.pop()
        parts: list[Channels] = known if isinstance(listed, fx.Node) else [self._of(n, axis) for n in listed]
        if dim == axis:
            ids, live, const = (np.concatenate([getattr(x, name) for x in parts]) for name in ("ids", "live", "const"))
            return Channels(ids, live, const, axis)
        first = parts[0]
        for other in parts[1:]:
            self.atoms.unite(first.ids, other.ids)
        live = np.logical_or.reduce([x.live for x in parts])
        mixed = ~live & np.logical_or.reduce([x.const != first.const for x in parts])
        if mixed.any():
            self._refuse(node, first.ids[mixed], "joins different numbers in one masked channel")
        live = live | mixed
        return Channels(first.ids, live, np.where(live, 0.0, first.const), axis)

    def _expand_as(self, node: fx.Node, x: Channels) -> Channels | None:
        shape = self.shape(node)
        other: Any = node.args[1] if len(node.args) > 1 else node.kwargs["other"]
        dim = x.dim + len(shape) - len(self.shape(node.all_input_nodes[0]))
        y = self.values.get(other)
        if shape[dim] != len(x.ids) or (y is not None and y.dim != dim):
            return self._opaque(node, " that repeats channels")
        self.atoms.unite(x.ids, self._of(other, dim).ids)
        return replace(x, dim=dim)

    # --- shapes ---

    def _reshape(self, node: fx.Node, x: Channels) -> Channels | None:
        old, new = self.shape(node.all_input_nodes[0]), self.shape(node)
        before = math.prod(old[: x.dim])
        for dim, size in enumerate(new):
            if math.prod(new[:dim]) == before and (size > 1 or old[x.dim] == 1) and size % old[x.dim] == 0:
                times, rest = size // old[x.dim], old[x.dim + 1 :]
                if not any(math.prod(rest[:i]) == times for i in range(len(rest) + 1)):
                    break
                out = replace(self._repeat(x, times), dim=dim)
                if operator_name(node) == "view":
                    self._literal(node, dim, out.ids)
                return out
        return self._opaque(node, " that tears channels apart")

    def _repeat(self, x: Channels, times: int) -> Channels:
        return Channels(np.repeat(x.ids, times), np.repeat(x.live, times), np.repeat(x.const, times), x.dim)

    def _literal(self, node: fx.Node, dim: int, ids: Ids) -> None:
        """The number of channels may be written in a call of view: change it with the channels."""
        sizes: Any = node.args[1:]
        if listed := bool(sizes) and isinstance(sizes[0], tuple | list):
            sizes = sizes[0]
        if dim < len(sizes) and isinstance(sizes[dim], int) and sizes[dim] > 0:

            def edit() -> bool:
                changed = [*sizes[:dim], int(self.atoms.kept(ids).sum()), *sizes[dim + 1 :]]
                node.args = (node.args[0], changed) if listed else (node.args[0], *changed)
                return changed[dim] != len(ids)

            self.edits.append(edit)

    def _permute(self, node: fx.Node, x: Channels, name: str) -> Channels | None:
        rank = len(self.shape(node))
        if name == "transpose":
            order = list(range(rank))
            a, b = (self._argument(node, i, key, 0) % rank for i, key in ((1, "dim0"), (2, "dim1")))
            order[a], order[b] = order[b], order[a]
        else:
            dims: Any = self._argument(node, 1, "dims", ())
            dims = dims if isinstance(dims, tuple | list) else node.args[1:]
            order = [d % rank for d in dims]
        return replace(x, dim=order.index(x.dim))

    def _split(self, node: fx.Node, x: Channels) -> Any:
        dim = self._argument(node, 2, "dim", 0) % len(self.shape(node.all_input_nodes[0]))
        sizes = [value.shape[dim] for value in self.meta[node]]
        if dim != x.dim:
            return tuple(x for _ in sizes)
        ends = np.cumsum([0, *sizes])
        parts = tuple(
            Channels(x.ids[a:b], x.live[a:b], x.const[a:b], x.dim) for a, b in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)
        )

        def edit() -> bool:
            left = [int(self.atoms.kept(part.ids).sum()) for part in parts]
            if left != sizes:
                node.op, node.target = "call_function", torch.split
                node.args, node.kwargs = (node.all_input_nodes[0], left, dim), {}
            return left != sizes

        self.edits.append(edit)
        return parts

    def _slice(self, node: fx.Node, x: Channels) -> Channels | None:
        listed = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
        rank = len(self.shape(node.all_input_nodes[0]))
        if any(item is Ellipsis for item in listed):
            at = listed.index(Ellipsis)
            listed = (*listed[:at], *[slice(None)] * (rank - len(listed) + 1), *listed[at + 1 :])
        if not all(isinstance(item, slice | int) for item in listed):
            return self._opaque(node, " with other than numbers and slices")
        dim = x.dim - sum(isinstance(item, int) for item in listed[: x.dim])
        chosen: Any = listed[x.dim] if x.dim < len(listed) else slice(None)
        if isinstance(chosen, slice) and chosen == slice(None):
            return replace(x, dim=dim)
        resolved = map_arg(chosen, lambda n: self.meta[n])
        if isinstance(resolved, int) or resolved.step not in (None, 1):
            return self._opaque(node, " that picks single channels")
        start, stop, _ = resolved.indices(len(x.ids))

        def edit() -> bool:
            kept = self.atoms.kept(x.ids)
            bounds = slice(int(kept[:start].sum()), int(kept[:stop].sum()))
            node.args = (node.args[0], (*listed[: x.dim], bounds, *listed[x.dim + 1 :]))
            return not bool(kept.all())

        self.edits.append(edit)
        return Channels(x.ids[start:stop], x.live[start:stop], x.const[start:stop], dim)

    def _pad(self, node: fx.Node, x: Channels) -> Channels | None:
        amounts = [int(n) for n in map_arg(self._argument(node, 1, "pad", ()), lambda n: self.meta[n])]
        at = 2 * (len(self.shape(node)) - 1 - x.dim)
        if not any(amounts[at : at + 2]):
            return self._probed(node, x)
        mode, value = self._argument(node, 2, "mode", "constant"), self._argument(node, 3, "value", None) or 0.0
        if mode != "constant" or any(amounts[:at]) or min(amounts[at : at + 2]) < 0 or any(amounts[at + 2 :]):
            return self._opaque(node, " of channels")
        low, high = amounts[at : at + 2]
        new = [self.atoms.new(count) for count in (low, high)]

        def edit() -> bool:
            left = [int(self.atoms.kept(ids).sum()) for ids in new]
            node.args, node.kwargs = (node.all_input_nodes[0], [0] * at + left, "constant", value), {}
            return left != [low, high]

        self.edits.append(edit)
        return Channels(
            np.concatenate([new[0], x.ids, new[1]]),
            np.concatenate([np.zeros(low, bool), x.live, np.zeros(high, bool)]),
            np.concatenate([np.full(low, float(value)), x.const, np.full(high, float(value))]),
            x.dim,
        )

    # --- channels that depend on one another ---

    def _pixel_shuffle(self, node: fx.Node, x: Channels, times: int) -> Channels:
        ids, live, const = x.ids.reshape(-1, times), x.live.reshape(-1, times), x.const.reshape(-1, times)
        self._tie(node, x, ids, "makes one channel of several")
        mixed = ~live.any(1) & (const != const[:, :1]).any(1)
        if mixed.any():
            self._refuse(node, ids[mixed].ravel(), "joins different numbers in one masked channel")
        alive = live.any(1) | mixed
        return Channels(ids[:, 0], alive, np.where(alive, 0.0, const[:, 0]), x.dim)

    def _channel_shuffle(self, node: fx.Node, x: Channels, groups: int) -> Channels:
        order = np.arange(len(x.ids)).reshape(groups, -1).T
        self._tie(node, x, x.ids[order], "shuffles them")
        order = order.ravel()
        return Channels(x.ids[order], x.live[order], x.const[order], x.dim)

    def _glu(self, node: fx.Node, x: Channels, dim: int) -> Channels | None:
        if dim % len(self.shape(node)) != x.dim:
            return self._opaque(node, " over another dimension than channels")
        half = len(x.ids) // 2
        self._tie(node, x, x.ids.reshape(2, half).T, "multiplies one half with the other")
        zero = ~x.live[:half] & (x.const[:half] == 0)
        both = ~x.live[:half] & ~x.live[half:]
        return Channels(x.ids[:half], ~(zero | both), np.where(both, x.const[:half] / (1 + np.exp(-x.const[half:])), 0.0), x.dim)

    def _tie(self, node: fx.Node, x: Channels, ids: Ids, why: str) -> None:
        """Unite the channels of each row."""
        for column in range(1, ids.shape[1]):
            self.atoms.unite(ids[:, 0], ids[:, column])
        self.tied.append((x.ids, f"node {node.name} ({describe(self.model, node)}) {why}"))

    # --- helpers ---

    def _end(self, node: fx.Node, module: nn.Module, into: Ids, out: Ids, key: Any = None) -> Ends:
        """A module used twice has one weight: its channels go in both places or in none."""
        key = key or id(module)
        if key in self.ends:
            self.atoms.unite(self.ends[key].into, into)
            self.atoms.unite(self.ends[key].out, out)
        else:
            self.ends[key] = Ends(node, module, into, out, [])
        return self.ends[key]

    def _inputs(self, node: fx.Node) -> list[Channels]:
        return [x for n in node.all_input_nodes for x in _flat(self.values.get(n))]

    def _known(self, node: fx.Node, dim: int) -> Channels:
        return self._of(node.all_input_nodes[0], dim)

    def _of(self, node: fx.Node, dim: int) -> Channels:
        x = self.values.get(node)
        if isinstance(x, Channels):
            return x
        width = self.shape(node)[dim]
        fresh = Channels(self.atoms.new(width), np.ones(width, bool), np.zeros(width), dim)
        self._pin(fresh, f"they are tied to node {node.name}, which has no channels to remove")
        return fresh

    def _argument(self, node: fx.Node, index: int, name: str, default: Any) -> Any:
        value = node.args[index] if index < len(node.args) else node.kwargs.get(name, default)
        return self.meta[value] if isinstance(value, fx.Node) else value

    def _pin(self, value: Any, why: str) -> None:
        for x in _flat(value):
            self.atoms.read(x.ids)
            self.pinned.append((x.ids, why))

    def _opaque(self, node: fx.Node, detail: str = "") -> None:
        """No rule: exact as long as everything stays."""
        why = f"squeeze has no rule for {describe(self.model, node)}{detail}"
        for x in self._inputs(node):
            self._refuse(node, x.ids[~x.live], why, operator=False)
            self._pin(x, f"node {node.name}: {why}")

    def _refuse(self, node: fx.Node, ids: Ids, why: str, *, operator: bool = True) -> None:
        """These channels cannot go: an error if they are masked, else they stay."""
        filled = np.isin(self.atoms.roots(ids), self.atoms.roots(np.concatenate([np.empty(0, np.int64), *self._filled])))
        self.atoms.read(ids[filled])
        if filled.all():
            return
        ids = ids[~filled]
        group = self.group(ids)
        about = f" ({describe(self.model, node)})" if operator else ""
        self.refusals.append(
            Refusal(
                ids,
                f"node {node.name}{about}: {why}; {len(ids)} masked channels of {group} get there: run fuse(model) first, put the mask "
                f"behind norm and activation, or leave {group} unmasked",
            )
        )


def folded_bias(module: Any, const: Numbers, which: Flags) -> Numbers:
    """The bias of a convolution or linear layer that has `const` in the input channels `which`, and 0 in the others."""
    weight = module.weight.detach().cpu().double().numpy()
    groups = getattr(module, "groups", 1)
    kernel = weight.reshape(*weight.shape[:2], -1).sum(2)
    numbers = np.where(which, const, 0.0).reshape(groups, -1)
    kernel = kernel.reshape(groups, -1, kernel.shape[1])
    spread = np.einsum("gi,gio->go" if isinstance(module, TransposedConv) else "gi,goi->go", numbers, kernel).ravel()
    return spread + _numbers(module.bias, len(spread), 0.0)


def require_none(refusals: Iterable[Refusal]) -> None:
    """Raise the first refusal.

    Raises:
        ReparamError: there is one.
    """
    for refusal in refusals:
        raise ReparamError(refusal.message)


def _zero_padded(module: Any) -> bool:
    if module.padding_mode != "zeros":
        return False
    if isinstance(module.padding, str):
        return module.padding == "same" and max(module.kernel_size) > 1
    return any(module.padding)


def _numbers(tensor: Tensor | None, count: int, default: float) -> Numbers:
    return np.full(count, default) if tensor is None else tensor.detach().cpu().double().numpy().ravel()


def _slope(module: nn.PReLU, x: Channels) -> Channels:
    slope = _numbers(module.weight, 1, 0.25)
    return replace(x, const=np.where(x.const < 0, x.const * slope, x.const))


def _flat(value: Any) -> list[Channels]:
    if isinstance(value, tuple):
        return [x for part in value for x in _flat(part)]
    return [value] if isinstance(value, Channels) else []


def _any_tensor(value: Any) -> bool:
    found = False

    def look(part: Any) -> Any:
        nonlocal found
        found = found or isinstance(part, Tensor)
        return part

    map_aggregate(value, look)
    return found
