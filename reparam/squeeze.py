"""Remove masked channels through all that they touch: `squeeze(model, example_input)`.

How it works. Every channel of every value in the graph is an atom. A rule per operator says, for its output, which atom each channel is
and whether the channel can differ from zero (`live`). An operator that passes channels through hands on the atoms of its input; one that
mixes them (a convolution, a linear layer) reads the live ones and makes new ones. An atom that nobody reads alive is gone everywhere:
from the rows of the weights that make it and the columns of the weights that would read it.

A new operator is a new rule: concatenation concatenates atoms, an addition unites those of its operands (`_Atoms.unite`).
"""

import copy
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.fx.proxy import TraceError

from reparam.blocks import ChannelMask, RepVGGBlock
from reparam.equivalence import FLOAT64_LIMIT, compare, require
from reparam.errors import ReparamError

# f(0) = 0, channel by channel: a dead channel stays dead.
_KEEPS_ZERO = (
    nn.Identity, nn.Dropout, nn.Dropout2d, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Hardswish, nn.Tanh, nn.Softsign, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d,
)  # fmt: skip
_KEEPS_ZERO_FUNCTIONS = (torch.relu, torch.tanh, nn.functional.relu, nn.functional.relu6, nn.functional.adaptive_avg_pool2d)
_KEEPS_ZERO_METHODS = ("relu", "relu_", "tanh", "contiguous", "clone")


def squeeze(model: nn.Module, example_input: Tensor) -> nn.Module:
    """Return a copy in evaluation mode without the channels that a `ChannelMask` sets to zero.

    A mask that has nothing left to do becomes an `nn.Identity`; it stays where a masked channel must, as in the network's output. The
    result is compared with the masked model on `example_input` in float64 before it is returned; the argument stays as it was.

    Args:
        model: network with `ChannelMask`s, traceable by torch.fx and made of operators that have a rule. Where no channel is masked there
            is nothing to trace, and the network may be made of anything.
        example_input: a batch of the shape that the network is for.

    Raises:
        ReparamError: the network cannot be traced, an operator has no rule, a layer is pruned to nothing, a masked channel does not stay
            zero, or the result is not the same; the message names the node and its operator.
    """
    squeezed = copy.deepcopy(model).eval()
    _drop_masks_of_nothing(squeezed)
    if any(isinstance(module, ChannelMask) for module in squeezed.modules()):
        _Squeezer(squeezed, example_input).apply()
        _drop_masks_of_nothing(squeezed)
    require(compare(model, squeezed, example_input), FLOAT64_LIMIT, "the squeezed network is not the same")
    return squeezed


def _drop_masks_of_nothing(model: nn.Module) -> None:
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if isinstance(child, ChannelMask) and bool(child.keep.all()):
                parent._modules[name] = nn.Identity().eval()


Ids = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class _Channels:
    """The channels (dimension 1) of one value: which atom each is, and whether it can differ from zero."""

    ids: Ids
    live: Flags


class _Atoms:
    """Union-find over channels, and which of them somebody reads."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._read: set[int] = set()

    def new(self, count: int) -> Ids:
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        return np.arange(first, first + count)

    def unite(self, a: Ids, b: Ids) -> None:
        for one, other in zip(a.tolist(), b.tolist(), strict=True):
            self._parent[self._root(one)] = self._root(other)

    def read(self, ids: Ids) -> None:
        self._read.update(ids.tolist())

    def kept(self, ids: Ids) -> Flags:
        """Which channels stay; ask when every rule has been applied."""
        roots = {self._root(atom) for atom in self._read}
        return np.array([self._root(atom) in roots for atom in ids.tolist()], dtype=bool)

    def _root(self, atom: int) -> int:
        while self._parent[atom] != atom:
            self._parent[atom] = self._parent[self._parent[atom]]  # halve the path
            atom = self._parent[atom]
        return atom


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, ChannelMask | RepVGGBlock) or super().is_leaf_module(m, module_qualified_name)


class _Shapes(fx.Interpreter):
    """Runs a graph and notes the shape of each of its tensors."""

    def of(self, x: Tensor) -> dict[fx.Node, tuple[int, ...]]:
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}
        self.extra_traceback = False  # it would be appended to the error's one line
        with torch.no_grad():
            self.run(x)
        return self.shapes

    def run_node(self, n: fx.Node) -> Any:
        try:
            value = super().run_node(n)
        except RuntimeError as error:
            raise ReparamError(f"node {n.name} cannot be run on example_input: {str(error).splitlines()[0]}") from error
        if isinstance(value, Tensor):
            self.shapes[n] = tuple(value.shape)
        return value


class _Squeezer:
    """Walks the graph of `model` by the rules, then cuts its weights in place."""

    def __init__(self, model: nn.Module, example_input: Tensor) -> None:
        try:
            graph = _Tracer().trace(model)
        except (TraceError, TypeError, AttributeError, RuntimeError) as error:
            raise ReparamError(f"the network cannot be traced by torch.fx: {str(error).splitlines()[0]}") from error
        self.model = model
        self.graph = graph
        self.atoms = _Atoms()
        self.values: dict[fx.Node, _Channels] = {}
        self.ends: dict[str, tuple[Ids, Ids]] = {}  # atoms at the input and the output of each module that is cut
        self.makers: list[tuple[fx.Node, Ids]] = []
        dtype = next((p.dtype for p in model.parameters()), example_input.dtype)
        self.shapes = _Shapes(fx.GraphModule(model, graph)).of(example_input.to(dtype))

    def apply(self) -> None:
        for node in self.graph.nodes:
            value = self._rule(node)
            if value is not None:
                self.values[node] = value
        for node, ids in self.makers:
            if not self.atoms.kept(ids).any():
                raise ReparamError(f"node {node.name} ({self._operator(node)}): all {len(ids)} channels are masked; keep at least one")
        for path, ends in self.ends.items():
            into, out = (torch.from_numpy(self.atoms.kept(ids)) for ids in ends)
            _cut(self.model.get_submodule(path), into, out)

    def _rule(self, node: fx.Node) -> _Channels | None:
        match node.op:
            case "placeholder":
                return self._constant(node)
            case "output":
                for argument in node.all_input_nodes:
                    self.atoms.read(self.values[argument].ids)
                return None
            case "call_module":
                return self._module_rule(node, self.model.get_submodule(str(node.target)))
            case _:
                return self._function_rule(node)

    def _module_rule(self, node: fx.Node, module: nn.Module) -> _Channels:
        x = self._input(node)
        match module:
            case ChannelMask():
                self._end(node, x.ids, x.ids)
                return _Channels(x.ids, x.live & module.keep.cpu().numpy())
            case nn.Conv2d(groups=1) | nn.Linear():
                if isinstance(module, nn.Linear) and len(self._shape(node.all_input_nodes[0])) != 2:
                    raise self._no_rule(node, " on an input of more than two dimensions")
                self.atoms.read(x.ids[x.live])
                out = self._constant(node)
                self._end(node, x.ids, out.ids)
                self.makers.append((node, out.ids))
                return out
            case nn.BatchNorm1d() | nn.BatchNorm2d():
                if not x.live.all():
                    raise ReparamError(
                        f"node {node.name} ({self._operator(node)}): a norm after a mask turns {int((~x.live).sum())} masked channels into "
                        "non-zero constants; run fuse(model) first, or put the mask behind the norm"
                    )
                self._end(node, x.ids, x.ids)
                return x
            case nn.Flatten(start_dim=1, end_dim=-1):
                return self._flatten(node)
            case _ if isinstance(module, _KEEPS_ZERO):
                return x
            case RepVGGBlock():
                raise self._no_rule(node, ": run fuse(model) first")
            case _:
                raise self._no_rule(node)

    def _function_rule(self, node: fx.Node) -> _Channels:
        if node.target in _KEEPS_ZERO_FUNCTIONS or (node.op == "call_method" and node.target in _KEEPS_ZERO_METHODS):
            return self._input(node)
        if node.target in (torch.flatten, "flatten"):
            start, end = (node.args[1:] + (0, -1)[len(node.args) - 1 :])[:2]
            if (node.kwargs.get("start_dim", start), node.kwargs.get("end_dim", end)) == (1, -1):
                return self._flatten(node)
        raise self._no_rule(node)

    def _flatten(self, node: fx.Node) -> _Channels:
        x = self._input(node)
        positions = math.prod(self._shape(node.all_input_nodes[0])[2:])
        return _Channels(np.repeat(x.ids, positions), np.repeat(x.live, positions))

    def _constant(self, node: fx.Node) -> _Channels:
        width = self._shape(node)[1]
        return _Channels(self.atoms.new(width), np.ones(width, bool))

    def _end(self, node: fx.Node, into: Ids, out: Ids) -> None:
        path = str(node.target)
        if path in self.ends:  # a module used twice has one weight: its channels go in both places or in none
            self.atoms.unite(self.ends[path][0], into)
            self.atoms.unite(self.ends[path][1], out)
        self.ends[path] = (into, out)

    def _input(self, node: fx.Node) -> _Channels:
        if len(node.all_input_nodes) != 1:
            raise self._no_rule(node, f" with {len(node.all_input_nodes)} inputs")
        return self.values[node.all_input_nodes[0]]

    def _shape(self, node: fx.Node) -> tuple[int, ...]:
        shape = self.shapes.get(node, ())
        if len(shape) < 2:
            raise self._no_rule(node, " whose value has no channels")
        return shape

    def _operator(self, node: fx.Node) -> str:
        if node.op == "call_module":
            module = self.model.get_submodule(str(node.target))
            groups = getattr(module, "groups", 1)
            return type(module).__name__ + (f" of {groups} groups" if groups > 1 else "")
        return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))

    def _no_rule(self, node: fx.Node, why: str = "") -> ReparamError:
        return ReparamError(f"node {node.name}: squeeze has no rule for {self._operator(node)}{why}")


def _cut(module: nn.Module, into: Tensor, out: Tensor) -> None:
    def keep(name: str, *masks: Tensor) -> None:
        tensor: Any = getattr(module, name)
        if tensor is None:
            return
        data = tensor.detach()
        for dim, mask in enumerate(masks):
            data = data.index_select(dim, mask.nonzero().squeeze(1).to(data.device))
        setattr(module, name, nn.Parameter(data, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else data)

    width_in, width_out = int(into.sum()), int(out.sum())
    match module:
        case ChannelMask():
            keep("keep", out)
        case nn.Conv2d():
            keep("weight", out, into)
            keep("bias", out)
            module.in_channels, module.out_channels = width_in, width_out
        case nn.Linear():
            keep("weight", out, into)
            keep("bias", out)
            module.in_features, module.out_features = width_in, width_out
        case nn.BatchNorm1d() | nn.BatchNorm2d():
            for name in ("weight", "bias", "running_mean", "running_var"):
                keep(name, out)
            module.num_features = width_out
        case _:
            raise AssertionError(f"no way to cut {type(module).__name__}")
