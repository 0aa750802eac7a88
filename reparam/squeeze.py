"""Remove masked channels through all that they touch: `squeeze(model, example_input)`. What each operator does to them is in `rules`."""

import copy
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

from torch import Tensor, fx, nn

from reparam.blocks import ChannelMask
from reparam.cutting import cut, mask_calls
from reparam.equivalence import FLOAT64_LIMIT, Difference, compare, require
from reparam.errors import ReparamError
from reparam.exported import RUN_ERRORS, first_line
from reparam.flow import Flow, require_none
from reparam.graph import Call, Network, read
from reparam.masking import lift, place
from reparam.regions import Region, home, install
from reparam.rules.sizes import changed_arguments

Changed = Mapping[fx.Node, tuple[Any, ...]]
"""Other arguments for the operators of nodes."""


def squeeze(model: nn.Module, example_input: Tensor | tuple[Any, ...]) -> nn.Module:
    """Return a copy in evaluation mode without the channels that a `ChannelMask` sets to zero.

    A masked channel stays where it must: in an output of the network, where another reader has it unmasked, in a group of a convolution
    that would otherwise have fewer channels than the other groups, under a norm over several channels. Its mask then goes into the weights
    that make the channel if nothing else reads them, else it stays too; any other becomes an `nn.Identity`. A module whose own code has a
    number of channels in it, as a split may, is replaced by its graph with the new number.

    The result is compared with the masked model on `example_input` in float64 before it is returned; the argument stays as it was.

    Args:
        model: network with `ChannelMask`s that torch.export can read. An operator without a rule is fine where no masked channel gets to
            it. Where no channel is masked there is nothing to read, and the network may be made of anything.
        example_input: a batch of the shape that the network is for, or a tuple of its inputs.

    Raises:
        ReparamError: the network cannot be read, a masked channel gets to an operator without a rule or to one where its removal is not
            exact, a mask has the wrong length, a layer is pruned to nothing, or the result is not the same; the message names the node, its
            operator and the layer that makes the channels.
    """
    squeezed = copy.deepcopy(model).eval()
    _drop_masks_of_nothing(squeezed)
    if any(isinstance(module, ChannelMask) for module in squeezed.modules()):
        squeezed = _squeezed(model, squeezed, example_input)
    else:
        require(compare(model, squeezed, example_input), FLOAT64_LIMIT, "the squeezed network is not the same")
    _round_biases(squeezed)
    return squeezed


def _drop_masks_of_nothing(model: nn.Module) -> None:
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if isinstance(child, ChannelMask) and bool(child.keep.all()):
                parent._modules[name] = nn.Identity().eval()
    holders: dict[int, nn.Module] = {}
    for module in list(model.modules()):
        found = lift(module)
        holders.update({id(masked.masks): masked.masks for masked in found})
        for masked in found:
            if not isinstance(masked.mask, nn.Identity):
                place(module, masked)
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if id(child) in holders and child is not None and all(isinstance(mask, nn.Identity) for mask in child.children()):
                del parent._modules[name]


def _squeezed(model: nn.Module, copied: nn.Module, example_input: Tensor | tuple[Any, ...]) -> nn.Module:
    """Cut the weights of a copy in place; it runs by its own code, else with graphs where that has numbers of channels in it."""
    network = read(copied, example_input if isinstance(example_input, tuple) else (example_input,))
    flow = Flow(network)
    require_none(flow.refusals)
    _require_channels(flow)
    flow.finish()
    require_none(flow.refusals)
    operators = [node for node in network.graph.nodes if node.op == "call_function"]
    changed = {node: args for node in operators if (args := changed_arguments(flow, node)) is not None}
    masks: dict[Call, set[str]] = {}
    for call in mask_calls(network):
        masks.setdefault(call.outer, set()).add(call.path)
    cut(flow, copied)
    _drop_masks_of_nothing(copied)
    left = {path for path, module in copied.named_modules() if isinstance(module, ChannelMask)}
    gone = [call for call, paths in masks.items() if left.isdisjoint(paths)]
    found: list[Difference | Exception] = []
    for made in _forms(network, copied, changed, gone):
        found.append(_difference(model, made, example_input))
        if isinstance(found[-1], Difference) and found[-1].within(FLOAT64_LIMIT):
            return made
    if isinstance(found[-1], Difference):
        require(found[-1], FLOAT64_LIMIT, "the squeezed network is not the same")
        raise AssertionError("unreachable: the difference is above the limit")
    why = f"the squeezed network cannot be run: {first_line(found[-1])}; does its code have a number of channels in it?"
    raise ReparamError(why) from found[-1]


def _difference(model: nn.Module, made: nn.Module, example_input: Tensor | tuple[Any, ...]) -> Difference | Exception:
    try:
        return compare(model, made, example_input)
    except RUN_ERRORS as error:
        return error


def _forms(network: Network, copied: nn.Module, changed: Changed, gone: Sequence[Call]) -> Iterator[nn.Module]:
    """The network with its own code; with graphs of the modules in which a number of channels changed; as one graph."""
    yield copied
    of_masks = {node for call in gone for node in call.nodes}
    changed = {node: args for node, args in changed.items() if node not in of_masks}
    if not changed:
        return
    homes: dict[Call, set[fx.Node]] = {}
    for node in changed:
        code = type(network.model.get_submodule(network.calls[node][-1].path)).__module__
        if not network.is_constant(node) and not code.startswith("torch.nn."):  # these are cut themselves, or read shapes
            homes.setdefault(home(network, copied, network.calls[node][-1], {node}), set()).add(node)
    if homes.keys() - {network.root}:
        made = copy.deepcopy(copied)
        for call in sorted(homes, key=lambda call: -len(call.path)):
            made = install(made, call.path, _Cut(network, made, call, homes[call], changed, gone).module())
        yield made.eval()
    yield _Cut(network, copied, network.root, changed.keys(), changed, gone).module()


class _Cut(Region):
    """The graph of a call with other numbers of channels, and without the masks that are gone."""

    def __init__(
        self, network: Network, model: nn.Module, call: Call, touched: Set[fx.Node], changed: Changed, gone: Sequence[Call]
    ) -> None:
        super().__init__(network, model, call, touched)
        self.changed = changed
        self.gone = {node: one for one in gone for node in one.nodes}

    def emit(self, node: fx.Node) -> None:
        """Masks that are gone hand on what they read."""
        call, unit = self.gone.get(node), self.unit(node)
        if call is None or (unit is not None and not unit[0].path.startswith(call.path)):
            super().emit(node)
        elif any(user not in call.nodes for user in node.users):
            (source,) = {x for one in call.nodes for x in self.network.reads(one) if x not in call.nodes}
            self.made[node] = self.value(source)

    def arguments(self, node: fx.Node) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        """With the new numbers."""
        return self.changed.get(node, node.args), node.kwargs


def _require_channels(flow: Flow) -> None:
    for call in mask_calls(flow.network):
        if not call.mask.keep.any():
            x = flow.of(call.source)
            group = "(input)" if x is None else flow.group(x.ids)
            raise ReparamError(f"mask {call.path}: all {call.mask.keep.numel()} channels of {group} are masked; keep at least one")
    # Masks that know nothing of one another, or the parts of a split, may leave a layer without any channel that matters: it keeps one.
    for _, ids in (*flow.makers, *flow.readers):
        if not flow.atoms.kept(ids).any():
            flow.atoms.read(ids[:1])


def _round_biases(model: nn.Module) -> None:
    """Biases with numbers folded into them are float64 until they have been compared."""
    for module in model.modules():
        weight, bias = (module._parameters.get(name) for name in ("weight", "bias"))
        if weight is not None and bias is not None and bias.dtype != weight.dtype:
            module.bias = nn.Parameter(bias.detach().to(weight.dtype), bias.requires_grad)
