"""Cut the tensors of a network to its kept channels, and update the channel counts stored in its modules."""

import operator
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, fx, nn

from reparam.blocks import Block, ChannelMask
from reparam.errors import ReparamError
from reparam.flow import ChannelFlow, Flags, FlowLayer, Ids, entries_along, folded_bias
from reparam.graph import NetworkGraph, TracedCall, args_of, is_norm, operator_of, with_defaults
from reparam.masking import Masked, Masks, attach_mask, attached_masks, detach_masks
from reparam.modules import named_modules, own_tensors
from reparam.regions import tensor_of
from reparam.typed_torch import from_numpy


@dataclass(frozen=True)
class MaskCall:
    """A call of a mask."""

    path: str
    """qualified name of the mask"""
    mask: ChannelMask
    outer: TracedCall
    """the call of the mask, or of the `Masks` that holds it"""
    source: fx.Node
    """the masked value"""
    keep: Tensor
    """whether the mask keeps each channel of the source"""


def mask_calls(network: NetworkGraph) -> Iterator[MaskCall]:
    """Yield every call of every mask."""
    for path, calls in network.by_path.items():
        mask = network.model.get_submodule(path)
        if not isinstance(mask, ChannelMask):
            continue
        for call in calls:
            outer, keep = call, mask.keep
            if call.parent is not None and isinstance(network.model.get_submodule(call.parent.path), Masks):
                outer = call.parent
                assert outer.parent is not None
                attached = attached_masks(network.model.get_submodule(outer.parent.path))
                masked = next(masked for masked in attached if masked.mask is mask)
                entries = torch.tensor(masked.site.entries, device=keep.device)
                keep = keep[entries] | (entries < 0)
            inside = set(outer.nodes)
            (source,) = {x for node in outer.nodes for x in network.reads(node) if x not in inside}
            yield MaskCall(path, mask, outer, source, keep)


def cut(flow: ChannelFlow, model: nn.Module) -> None:
    """Cut the weights of a network in place and fold the constants of removed channels into biases.

    Args:
        flow: the network's channels, with every rule applied.
        model: has the network's modules and tensors under the same names.

    Raises:
        ReparamError: a layer cannot absorb a constant, or belongs to a block in its training form.
    """
    _Cutter(flow, model).cut()


class _Cutter:
    def __init__(self, flow: ChannelFlow, model: nn.Module) -> None:
        self.flow, self.network, self.model = flow, flow.network, model
        self.owners: dict[int, list[tuple[nn.Module, str]]] = {}
        for module in model.modules():
            for name, tensor in own_tensors(module):
                self.owners.setdefault(id(tensor), []).append((module, name))
        self.blocks = {path: block for path, block in named_modules(model) if isinstance(block, Block)}

    def cut(self) -> None:
        zeroed = _masks_into_weights(self.flow)
        biases = [(layer, self._bias(layer)) for layer in self.flow.layers.values()]
        sizes = list(self._sizes())
        self._cut_sites()
        for name, ids in self.flow.cuts.items():
            self._keep(name, ids)
        for layer, bias in biases:
            self._cut_weight(layer, bias)
        for module, name, value in sizes:
            setattr(module, name, value)
        for mask in zeroed:
            mask.keep = torch.ones_like(mask.keep)

    # --- tensors ---

    def _set(self, name: str, tensor: Tensor) -> None:
        """Replace a tensor under all of its names."""
        for path, block in self.blocks.items():
            if path == "" or name.startswith(f"{path}."):
                kind = type(block).__name__
                raise ReparamError(
                    f"block {path or '(the network)'} is a {kind} with masked channels: run fuse(model) first"
                )
        owner, _, local = name.rpartition(".")
        old = tensor_of(self.model, name)
        new = nn.Parameter(tensor, old.requires_grad) if isinstance(old, nn.Parameter) else tensor
        for module, attribute in self.owners.get(id(old), []) or [(self.model.get_submodule(owner), local)]:
            setattr(module, attribute, new)

    def _keep(self, name: str, ids: Ids) -> None:
        """Cut a tensor to the kept entries along each dimension."""
        tensor = tensor_of(self.model, name)
        flags, data = self.flow.atoms.kept(ids.reshape(tensor.shape)), tensor.detach()
        for dim in range(flags.ndim):
            keep = entries_along(flags, dim)
            if not keep.all():
                data = data.index_select(dim, from_numpy(keep.nonzero()[0]).to(data.device))
        if data.shape != tensor.shape:
            self._set(name, data)

    def _cut_weight(self, layer: FlowLayer, bias: Tensor | None) -> None:
        name = self.network.names.get(layer.weight)
        into, out = self.flow.atoms.kept(layer.into), self.flow.atoms.kept(layer.out)
        if into.all() and out.all():
            return
        if name is None:
            raise ReparamError(
                f"{self.flow.describe(layer.node)}: its weight is computed from others: run fuse(model) first"
            )
        weight = tensor_of(self.model, name)
        rows, columns = (into, out) if layer.transposed else (out, into)
        groups = [
            part[from_numpy(row)][:, from_numpy(column)]
            for part, row, column in zip(
                weight.detach().cpu().chunk(layer.groups),
                rows.reshape(layer.groups, -1),
                columns.reshape(layer.groups, -1),
                strict=True,
            )
            if row.any()
        ]
        self._set(name, torch.cat(groups).to(weight.device))
        if bias is not None:
            self._set_bias(layer, bias[from_numpy(out).to(bias.device)])

    def _set_bias(self, layer: FlowLayer, bias: Tensor) -> None:
        weight = self.network.names[layer.weight]
        name = None if layer.bias is None else self.network.names.get(layer.bias)
        name = name or f"{weight.rpartition('.')[0]}.bias".removeprefix(".")
        owner = self.model.get_submodule(name.rpartition(".")[0])
        if layer.bias is None and getattr(owner, "bias", 0) is not None:
            raise ReparamError(
                f"{self.flow.describe(layer.node)} has no bias to absorb the constant of a masked channel: run "
                "fuse(model) first"
            )
        trained = tensor_of(self.model, weight if layer.bias is None else name).requires_grad
        setattr(owner, name.rpartition(".")[2], nn.Parameter(bias, trained))

    def _bias(self, layer: FlowLayer) -> Tensor | None:
        """Return the new bias of all channels in float64, or None if nothing is added to it."""
        into = self.flow.atoms.kept(layer.into)
        constants = [np.where(into, 0.0, x.const) for _, x, _ in layer.folds]
        if not any(const.any() for const in constants):
            return None
        if any(not np.array_equal(const, constants[0]) for const in constants):
            nodes = ", ".join(node.name for node, _, _ in layer.folds)
            raise ReparamError(
                f"nodes {nodes} ({operator_of(layer.node)} in {self.flow.layer_name(layer.node)}): the layer is used "
                "several times, with different constants in its masked channels: run fuse(model) first, or put the "
                "masks after norm and activation"
            )
        weight = self.network.constant(layer.weight)
        bias = self.network.constant(layer.bias)
        return from_numpy(folded_bias(weight, bias, layer, constants[0], ~into)).to(weight.device)

    # --- channel counts in modules ---

    def _sizes(self) -> Iterator[tuple[nn.Module, str, int]]:
        """Yield modules with the attributes that hold channel counts and their new values."""
        seen: set[int] = set()
        for node, before, after in self.flow.sized:
            module = self.model.get_submodule(self.network.calls[node][-1].path)
            into, out = self.flow.atoms.kept(before), self.flow.atoms.kept(after)
            if id(module) in seen or (into.all() and out.all()):
                continue
            seen.add(id(module))
            layer = self.flow.layers.get(args_of(node)[1])
            if layer is None:
                counts = dict.fromkeys(("num_features", "num_channels", "num_parameters"), out)
                # only whole groups are removed
                groups = {"num_groups": getattr(module, "num_groups", 0) * int(out.sum()) // len(out)}
            else:
                counts = {"in_channels": into, "in_features": into, "out_channels": out, "out_features": out}
                groups = {"groups": self.flow.groups(layer)} if layer.groups > 1 else {}
            held = {name: int(kept.sum()) for name, kept in counts.items() if getattr(module, name, None) == len(kept)}
            for name, value in (held | groups).items():
                if isinstance(getattr(module, name, None), int):
                    yield module, name, value

    def _cut_sites(self) -> None:
        """Restrict the sites of remaining masks to the kept channels."""
        kept: dict[int, Flags] = {}
        for call in mask_calls(self.network):
            ids = self.flow.cuts.get(f"{call.path}.keep".removeprefix("."))
            if ids is not None:
                kept[id(call.mask)] = self.flow.atoms.kept(ids.ravel())
        for module in list(self.model.modules()):
            for masked in detach_masks(module):
                keep, site = kept.get(id(masked.mask)), masked.site
                if keep is not None:
                    new_index = np.cumsum(keep) - 1
                    entries = tuple(
                        int(new_index[entry]) if entry >= 0 else -1
                        for entry in site.entries
                        if entry < 0 or keep[entry]
                    )
                    site = replace(site, entries=entries)
                attach_mask(
                    module, Masked(masked.masks, masked.name, site, masked.count if keep is None else int(keep.sum()))
                )


# --- masks of kept channels ---


def _masks_into_weights(flow: ChannelFlow) -> list[ChannelMask]:
    """Zero the weights that produce masked channels if only the mask reads them; return the masks made redundant."""
    makers: dict[ChannelMask, list[tuple[fx.Node | None, Tensor]]] = {}
    for call in mask_calls(flow.network):
        alone = all(user in call.outer.nodes for user in call.source.users)
        makers.setdefault(call.mask, []).append((_maker(flow, call.source) if alone else None, call.keep))
    redundant: list[ChannelMask] = []
    for mask, calls in makers.items():
        layers = [(maker, keep) for maker, keep in calls if maker is not None]
        if len(layers) == len(calls):
            for maker, keep in layers:
                _zero(flow, maker, keep)
            redundant.append(mask)
    return redundant


def _maker(flow: ChannelFlow, node: fx.Node) -> fx.Node | None:
    """Return the only layer whose channels reach a value, through operators that map zero to zero, if there is one."""
    while node.op == "call_function" and flow.of(node) is not None:
        if node.target is operator.getitem and is_norm(node.all_input_nodes[0]):
            (node,) = node.all_input_nodes
        weights = [arg for arg in node.args[1:3] if isinstance(arg, fx.Node)]
        if weights and (weights[0] in flow.layers or "norm" in operator_of(node)):
            alone = all(arg in flow.network.names and len(arg.users) == 1 for arg in weights)
            return node if alone and weights[0] is args_of(node)[1] else None
        reads = flow.network.reads(node)
        if node not in flow.alike or "norm" in operator_of(node) or len(reads) != 1 or not flow.keeps_zero(node):
            return None
        if len(reads[0].users) != 1:
            return None
        (node,) = reads
    return None


def _zero(flow: ChannelFlow, maker: fx.Node, keep: Tensor) -> None:
    weight, bias = with_defaults(args_of(maker), (None, None, None))[1:3]
    layer, tensor = flow.layers.get(weight), tensor_of(flow.network.model, flow.network.names[weight])
    with torch.no_grad():
        if layer is not None and layer.transposed:
            axis = torch.unflatten(tensor, 0, (layer.groups, -1)).transpose(1, 2)
            axis.mul_(keep.view(layer.groups, -1, *[1] * (axis.ndim - 2)))
        else:
            tensor.mul_(keep.view(-1, *[1] * (tensor.ndim - 1)))
        if bias is not None:
            tensor_of(flow.network.model, flow.network.names[bias]).mul_(keep)
