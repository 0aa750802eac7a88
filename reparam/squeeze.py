"""Remove masked channels through all that they touch: `squeeze(model, example_input)`. The rules are in `reparam.channels`."""

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from reparam.blocks import ChannelMask
from reparam.channels import Channels, Conv, Ends, Flags, Flow, Traced, TransposedConv, folded_bias, require_none
from reparam.equivalence import FLOAT64_LIMIT, compare, require
from reparam.errors import ReparamError
from reparam.graph import describe, first_line


def squeeze(model: nn.Module, example_input: Tensor | tuple[Tensor, ...]) -> nn.Module:
    """Return a copy in evaluation mode without the channels that a `ChannelMask` sets to zero.

    A masked channel stays where it must: in an output of the network, where another reader has it unmasked, in a group of a convolution
    that would otherwise have fewer channels than the other groups, under a norm over several channels. Its mask then goes into the weights
    that make the channel if nothing else reads them, else it stays too; any other becomes an `nn.Identity`. Where the network's own code
    has a number of channels in it, as in a split, the copy is an `fx.GraphModule` with the new number.

    The result is compared with the masked model on `example_input` in float64 before it is returned; the argument stays as it was.

    Args:
        model: network with `ChannelMask`s, traceable by torch.fx. An operator without a rule is fine where no masked channel gets to it.
            Where no channel is masked there is nothing to trace, and the network may be made of anything.
        example_input: a batch of the shape that the network is for, or a tuple of its inputs.

    Raises:
        ReparamError: the network cannot be traced, a masked channel gets to an operator without a rule or to one where its removal is not
            exact, a mask has the wrong length, a layer is pruned to nothing, or the result is not the same; the message names the node, its
            operator and the layer that makes the channels.
    """
    squeezed = copy.deepcopy(model).eval()
    _drop_masks_of_nothing(squeezed)
    if any(isinstance(module, ChannelMask) for module in squeezed.modules()):
        squeezed = _squeezed(squeezed, example_input)
        _drop_masks_of_nothing(squeezed)
    try:
        difference = compare(model, squeezed, example_input)
    except RuntimeError as error:
        raise ReparamError(
            f"the squeezed network cannot be run: {first_line(error)}; does its code have a number of channels in it?"
        ) from error
    require(difference, FLOAT64_LIMIT, "the squeezed network is not the same")
    _round_biases(squeezed)
    return squeezed


def _drop_masks_of_nothing(model: nn.Module) -> None:
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if isinstance(child, ChannelMask) and bool(child.keep.all()):
                parent._modules[name] = nn.Identity().eval()


def _squeezed(model: nn.Module, example_input: Tensor | tuple[Tensor, ...]) -> nn.Module:
    """Cut the weights of `model`, which is ours, in place."""
    traced = Traced(model, example_input)
    flow = Flow(traced)
    require_none(flow.refusals)
    _require_channels(flow)
    flow.finish()
    require_none(flow.refusals)
    zeroed = _masks_into_weights(flow)
    for key, ends in flow.ends.items():
        into, out = flow.atoms.kept(ends.into), flow.atoms.kept(ends.out)
        if isinstance(key, tuple):
            _, name, dim = key
            _keep(ends.module, name, {dim: out})
            continue
        _fold(ends, into)
        _cut(ends.module, into, out)
    for mask in zeroed:
        mask.keep = torch.ones_like(mask.keep)
    changed = [edit() for edit in flow.edits]
    return fx.GraphModule(model, traced.graph).eval() if any(changed) else model


def _require_channels(flow: Flow) -> None:
    for node, ids in flow.makers:
        if not flow.atoms.kept(ids).any():
            what = f"node {node.name} ({describe(flow.model, node)}): all {len(ids)} channels are masked"
            raise ReparamError(f"{what}; keep at least one of {flow.group(ids)}")
    for _, ids in flow.readers:  # part of a layer's channels, as after a split, may all be masked: a convolution has at least one input
        if not flow.atoms.kept(ids).any():
            flow.atoms.read(ids[:1])


def _masks_into_weights(flow: Flow) -> list[ChannelMask]:
    """Set to zero what makes a masked channel that stays, where only the mask reads it; return the masks that are then needless."""
    sites: dict[ChannelMask, list[fx.Node]] = {}
    calls: dict[int, int] = {}
    for node in flow.traced.graph.nodes:
        if node.op == "call_module":
            module = flow.model.get_submodule(str(node.target))
            calls[id(module)] = calls.get(id(module), 0) + 1
            if isinstance(module, ChannelMask):
                sites.setdefault(module, []).append(node)
    done = []
    for mask, nodes in sites.items():
        makers = [_maker(flow, node) for node in nodes]
        if all(maker is not None and calls[id(maker)] == 1 for maker in makers):
            for maker in makers:
                _zero(maker, mask.keep)
            done.append(mask)
    return done


def _maker(flow: Flow, node: fx.Node) -> nn.Module | None:
    """The layer whose channels, and nothing but theirs, get to a mask through operators that keep zero."""
    while True:
        node = node.all_input_nodes[0]
        if len(node.users) != 1:
            return None
        module = flow.model.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, Conv | TransposedConv | nn.Linear) or (_is_norm(module) and getattr(module, "weight", None) is not None):
            return module
        x = flow.values.get(node.all_input_nodes[0]) if len(node.all_input_nodes) == 1 else None
        if node not in flow.alike or _is_norm(module) or not isinstance(x, Channels):
            return None
        zeros = Channels(x.ids, np.zeros_like(x.live), np.zeros_like(x.const), x.dim)
        if not flow.maps(node, zeros).dead_zero():
            return None


def _is_norm(module: nn.Module | None) -> bool:
    return isinstance(module, nn.modules.batchnorm._NormBase | nn.GroupNorm)


def _zero(maker: Any, keep: Tensor) -> None:
    with torch.no_grad():
        if isinstance(maker, TransposedConv):
            axis = maker.weight.unflatten(0, (maker.groups, -1)).transpose(1, 2)
            axis.mul_(keep.view(maker.groups, -1, *[1] * (axis.ndim - 2)))
        else:
            maker.weight.mul_(keep.view(-1, *[1] * (maker.weight.ndim - 1)))
        if maker.bias is not None:
            maker.bias.mul_(keep)


def _fold(ends: Ends, into: Flags) -> None:
    """Take into the bias what the channels that go would have added."""
    module: Any = ends.module
    found = [np.where(into, 0.0, x.const) for _, x, _ in ends.folds]
    if not any(numbers.any() for numbers in found):
        return
    if any(not np.array_equal(numbers, found[0]) for numbers in found):
        nodes = ", ".join(node.name for node, _, _ in ends.folds)
        raise ReparamError(
            f"nodes {nodes} ({type(module).__name__}): the layer is used several times, with different numbers in its masked channels: run "
            "fuse(model) first, or put the masks behind norm and activation"
        )
    bias = torch.from_numpy(folded_bias(module, found[0], ~into)).to(module.weight.device)
    module.bias = nn.Parameter(bias, module.weight.requires_grad if module.bias is None else module.bias.requires_grad)


def _round_biases(model: nn.Module) -> None:
    """Biases with numbers folded into them are float64 until they have been compared."""
    for module in model.modules():
        if isinstance(module, Conv | TransposedConv | nn.Linear) and module.bias is not None and module.bias.dtype != module.weight.dtype:
            module.bias = nn.Parameter(module.bias.detach().to(module.weight.dtype), module.bias.requires_grad)


def _keep(module: nn.Module, name: str, flags: dict[int, Flags]) -> None:
    """Keep those entries of a parameter or buffer, along each dimension."""
    tensor: Any = getattr(module, name, None)
    if tensor is None:
        return
    data = tensor.detach()
    for dim, keep in flags.items():
        data = data.index_select(dim, torch.from_numpy(keep.nonzero()[0]).to(data.device))
    setattr(module, name, nn.Parameter(data, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else data)


def _cut(module: nn.Module, into: Flags, out: Flags) -> None:
    match module:
        case ChannelMask():
            _keep(module, "keep", {0: out})
        case nn.Linear():
            _keep(module, "weight", {0: out, 1: into})
            _keep(module, "bias", {0: out})
            module.in_features, module.out_features = int(into.sum()), int(out.sum())
        case nn.PReLU():
            _keep(module, "weight", {0: out})
            module.num_parameters = int(out.sum())
        case nn.GroupNorm():
            module.num_groups = module.num_groups * int(out.sum()) // len(out)  # groups go whole
            _cut_numbers(module, out)
            module.num_channels = int(out.sum())
        case nn.modules.batchnorm._NormBase():
            _cut_numbers(module, out)
            module.num_features = int(out.sum())
        case _ if isinstance(module, Conv | TransposedConv):
            _cut_conv(module, into, out)
        case _:
            raise AssertionError(f"no way to cut {type(module).__name__}")


def _cut_numbers(module: nn.Module, out: Flags) -> None:
    for name in ("weight", "bias", "running_mean", "running_var"):
        _keep(module, name, {0: out})


def _cut_conv(module: Any, into: Flags, out: Flags) -> None:
    """Cut every group by itself; groups without channels go."""
    rows, columns = (into, out) if isinstance(module, TransposedConv) else (out, into)
    groups = [
        weight[torch.from_numpy(row)][:, torch.from_numpy(column)]
        for weight, row, column in zip(
            module.weight.detach().cpu().chunk(module.groups),
            rows.reshape(module.groups, -1),
            columns.reshape(module.groups, -1),
            strict=True,
        )
        if row.any()
    ]
    module.weight = nn.Parameter(torch.cat(groups).to(module.weight.device), module.weight.requires_grad)
    _keep(module, "bias", {0: out})
    module.groups = len(groups)
    module.in_channels, module.out_channels = int(into.sum()), int(out.sum())
