"""Remove masked channels and everything that depends on them, by the rules of `reparam.rules`."""

import copy
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

from torch import fx, nn

from reparam.blocks import ChannelMask
from reparam.cutting import cut, mask_calls
from reparam.equivalence import FLOAT64_LIMIT, Difference, compare, require_within
from reparam.errors import ReparamError
from reparam.exported import RUN_ERRORS, first_line
from reparam.flow import ChannelFlow, require_none
from reparam.graph import NetworkGraph, TracedCall, read_network
from reparam.masking import attach_mask, detach_masks
from reparam.modules import child_modules, named_modules
from reparam.regions import Region, replace_module, replaceable_call
from reparam.rules import rule_of
from reparam.rules.sizes import changed_arguments
from reparam.structure import Arguments, Example, arguments_of

Changed = Mapping[fx.Node, Arguments]
"""New arguments for the operators of nodes."""


def squeeze(model: nn.Module, example_input: Example) -> nn.Module:
    """Return a copy in evaluation mode without the channels that a `ChannelMask` sets to zero.

    A masked channel is kept if it is an output of the network, another reader uses it unmasked, its convolution group
    would have fewer channels than the other groups, or a norm spans several channels. Its mask is then folded into the
    weights that produce the channel if nothing else reads them, else the mask is kept too; every other mask becomes an
    `nn.Identity`. A module with a channel count in its own code, such as a split, is replaced by its graph with the new
    count.

    The result is compared with the masked model on `example_input` in float64 before it is returned; `model` stays
    unchanged.

    Args:
        model: network with `ChannelMask`s that torch.export can read. Operators without a rule are allowed if no masked
            channel reaches them. A network without masked channels is not exported, so any network is allowed.
        example_input: a batch of the network's input shape, or a tuple of its inputs.

    Raises:
        ReparamError: the network cannot be read, a masked channel reaches an operator without a rule or one where its
            removal is not exact, a mask has the wrong length, all channels of a layer are masked, or the result
            differs; the message names the node, its operator and the layer that produces the channels.
    """
    squeezed = copy.deepcopy(model).eval()
    _drop_idle_masks(squeezed)
    if any(isinstance(module, ChannelMask) for module in squeezed.modules()):
        squeezed = _squeezed(model, squeezed, example_input)
    else:
        require_within(compare(model, squeezed, example_input), FLOAT64_LIMIT, "the squeezed network is not the same")
    _round_biases(squeezed)
    return squeezed


def _drop_idle_masks(model: nn.Module) -> None:
    """Remove masks that keep every channel."""
    for child in child_modules(model):
        if isinstance(child.module, ChannelMask) and bool(child.module.keep.all()):
            child.replace(nn.Identity().eval())
    holders: dict[int, nn.Module] = {}
    for module in list(model.modules()):
        attached = detach_masks(module)
        holders.update({id(masked.masks): masked.masks for masked in attached})
        for masked in attached:
            if not isinstance(masked.mask, nn.Identity):
                attach_mask(module, masked)
    for child in child_modules(model):
        masks = holders.get(id(child.module))
        if masks is not None and all(isinstance(mask, nn.Identity) for mask in masks.children()):
            child.remove()


def _squeezed(model: nn.Module, copied: nn.Module, example_input: Example) -> nn.Module:
    """Cut the weights of a copy in place, and replace modules by graphs if their own code contains channel counts."""
    network = read_network(copied, arguments_of(example_input))
    flow = ChannelFlow(network, rule_of)
    require_none(flow.refusals)
    _require_channels(flow)
    flow.finish()
    require_none(flow.refusals)
    operators = [node for node in network.graph.nodes if node.op == "call_function"]
    changed = {node: args for node in operators if (args := changed_arguments(flow, node)) is not None}
    masks: dict[TracedCall, set[str]] = {}
    for call in mask_calls(network):
        masks.setdefault(call.outer, set()).add(call.path)
    cut(flow, copied)
    _drop_idle_masks(copied)
    left = {path for path, module in named_modules(copied) if isinstance(module, ChannelMask)}
    gone = [call for call, paths in masks.items() if left.isdisjoint(paths)]
    outcomes: list[Difference | Exception] = []
    for candidate in _candidates(network, copied, changed, gone):
        outcomes.append(_difference(model, candidate, example_input))
        if isinstance(outcomes[-1], Difference) and outcomes[-1].within(FLOAT64_LIMIT):
            return candidate
    if isinstance(outcomes[-1], Difference):
        require_within(outcomes[-1], FLOAT64_LIMIT, "the squeezed network is not the same")
        raise AssertionError("unreachable: the difference is above the limit")
    why = f"the squeezed network cannot be run: {first_line(outcomes[-1])}; does its code contain a channel count?"
    raise ReparamError(why) from outcomes[-1]


def _difference(model: nn.Module, candidate: nn.Module, example_input: Example) -> Difference | Exception:
    try:
        return compare(model, candidate, example_input)
    except RUN_ERRORS as error:
        return error


def _candidates(
    network: NetworkGraph, copied: nn.Module, changed: Changed, gone: Sequence[TracedCall]
) -> Iterator[nn.Module]:
    """Yield forms of the network that may run, the one closest to the user's code first.

    These are its own code, then graphs for only the modules with a changed channel count, then one graph.
    """
    yield copied
    of_masks = {node for call in gone for node in call.nodes}
    changed = {node: args for node, args in changed.items() if node not in of_masks}
    if not changed:
        return
    homes: dict[TracedCall, set[fx.Node]] = {}
    for node in changed:
        code = type(network.model.get_submodule(network.calls[node][-1].path)).__module__
        # torch's own modules store their counts or read them from shapes
        if not network.is_constant(node) and not code.startswith("torch.nn."):
            homes.setdefault(replaceable_call(network, copied, network.calls[node][-1], {node}), set()).add(node)
    if homes.keys() - {network.root}:
        candidate = copy.deepcopy(copied)
        for call in sorted(homes, key=lambda call: -len(call.path)):
            candidate = replace_module(
                candidate, call.path, _Cut(network, candidate, call, homes[call], changed, gone).module()
            )
        yield candidate.eval()
    yield _Cut(network, copied, network.root, changed.keys(), changed, gone).module()


class _Cut(Region):
    """The graph of a call with new channel counts and without removed masks."""

    def __init__(
        self,
        network: NetworkGraph,
        model: nn.Module,
        call: TracedCall,
        touched: Set[fx.Node],
        changed: Changed,
        gone: Sequence[TracedCall],
    ) -> None:
        super().__init__(network, model, call, touched)
        self.changed = changed
        self.gone = {node: removed for removed in gone for node in removed.nodes}

    def emit(self, node: fx.Node) -> None:
        """Replace a removed mask by its input; add any other node to the graph."""
        call, unit = self.gone.get(node), self.unit(node)
        if call is None or (unit is not None and not unit[0].path.startswith(call.path)):
            super().emit(node)
        elif any(user not in call.nodes for user in node.users):
            (source,) = {x for inner in call.nodes for x in self.network.reads(inner) if x not in call.nodes}
            self.emitted[node] = self.value(source)

    def arguments(self, node: fx.Node) -> tuple[Arguments, Mapping[str, Any]]:
        """Return the arguments with the new channel counts."""
        return self.changed.get(node, node.args), node.kwargs


def _require_channels(flow: ChannelFlow) -> None:
    """Require that no mask removes all channels, and keep one channel of each layer."""
    for call in mask_calls(flow.network):
        if not call.mask.keep.any():
            x = flow.of(call.source)
            group = "(input)" if x is None else flow.group(x.ids)
            raise ReparamError(
                f"mask {call.path}: all {call.mask.keep.numel()} channels of {group} are masked; keep at least one"
            )
    # Independent masks, or the parts of a split, may together leave a layer without channels: keep one.
    for _, ids in (*flow.makers, *flow.readers):
        if not flow.atoms.kept(ids).any():
            flow.atoms.read(ids[:1])


def _round_biases(model: nn.Module) -> None:
    """Round the folded biases, which stay in float64 for the comparison, to the type of their weights."""
    for module in model.modules():
        tensors = dict(module.named_parameters(recurse=False))
        weight, bias = tensors.get("weight"), tensors.get("bias")
        if weight is not None and bias is not None and bias.dtype != weight.dtype:
            module.bias = nn.Parameter(bias.detach().to(weight.dtype), bias.requires_grad)
