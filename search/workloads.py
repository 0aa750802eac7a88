"""Workloads of a space: its blocks, and whole networks to validate predictions, in the ONNX that would ship.

Torch takes a second to export a module, and a space has hundreds of blocks that differ only in their channel counts. So
each family of blocks is exported once, by `deploy.lowering` like a network that ships, with a distinct prime for every
channel count. Blocks of any widths are then cut from this template, and networks are joined from their blocks.

Templates have shapes but no weights. They are cut and joined as protos, since onnx-graphsurgeon derives the shape of a
constant from its values.
"""

import itertools
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, partial

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn

from deploy import lowering
from deploy.graph import Precision
from deploy.lowering import to_onnx, to_program
from latency import BlockSpec, Lowered, Workload
from latency.weights import fill_weights, filled, is_filled, strip_weights
from reparam.typed_torch import fork_rng, manual_seed
from search import blocks, ops
from search.space import Choice, Space

_LARGEST_CONSTANT = 31
"""Upper bound on axes, ONNX types and other constants in a graph; channel counts of templates are above it."""


def workloads(
    space: Space,
    *,
    networks: int = 16,
    seed: int = 0,
    precision: Precision = "fp32",
    program: bool = False,
    batch: int = 1,
) -> list[Workload]:
    """Return every distinct block of a space, then its largest, its smallest, and random networks, each once.

    They are lowered when their `onnx` is called.

    Args:
        space: the space to measure.
        networks: number of random networks.
        seed: seed of their draw.
        precision: precision of weights and arithmetic.
        program: also lower to the program that torch runs.
        batch: images per inference.
    """
    lowered, whole = (lower_with_program, lower_network_with_program) if program else (lower, lower_network)
    each = [Workload.block(spec, partial(lowered, (spec,), precision, batch), batch) for spec in space.blocks()]
    draw = random.Random(seed)
    choices = dict.fromkeys([space.largest(), space.smallest(), *(space.random(draw) for _ in range(networks))])
    if not space.serial:
        return [
            *each,
            *(
                Workload.network(space.network(choice), partial(whole, space, choice, precision, batch), batch)
                for choice in choices
            ),
        ]
    chains = [space.network(choice) for choice in choices]
    return [
        *each,
        *(
            Workload.network(chain, partial(lowered, chain, precision, batch), batch)
            for chain in dict.fromkeys(map(tuple, chains))
        ),
    ]


def lower(chain: Sequence[BlockSpec], precision: Precision = "fp32", batch: int = 1) -> bytes:
    """Return the ONNX of a sequence of deployed blocks, with random weights by the rule of `latency.weights`."""
    model = join([_cut(spec, precision, batch) for spec in chain])
    fill_weights(model)
    return model.SerializeToString(deterministic=True)


def lower_with_program(chain: Sequence[BlockSpec], precision: Precision = "fp32", batch: int = 1) -> Lowered:
    """Do the same as `lower`, and add the program of the same network that torch itself runs.

    Programs are not cut from a template: torch exports each one at its own widths, with newly initialised weights.
    """
    with fork_rng(devices=[]):
        manual_seed(0)
        module = _module(chain)
    program = to_program(module, _example(chain[0], batch), precision=precision)
    return Lowered(onnx=lower(chain, precision, batch), program=program)


def _module(chain: Sequence[BlockSpec], se_width: int | None = None) -> nn.Module:
    """Return blocks in deployed form as one sequence; a sum, which has two inputs, is returned as it is."""
    each = [blocks.deployed(spec, se_width=se_width) for spec in chain]
    return each[0] if chain[0].op == "add" else nn.Sequential(*each)


def _example(spec: BlockSpec, batch: int) -> tuple[torch.Tensor, ...]:
    image = torch.zeros(batch, spec.width("c_in"), int(spec.attr("h")), int(spec.attr("w")))
    return (image, image) if spec.op == "add" else (image,)


def lower_network(space: Space, choice: Choice, precision: Precision = "fp32", batch: int = 1) -> bytes:
    """Return the ONNX of a network as deployed by its space, with random weights by the rule of `latency.weights`."""
    return filled(to_onnx(space.deployed(choice), torch.zeros(batch, *space.input_shape), precision=precision))


def lower_network_with_program(space: Space, choice: Choice, precision: Precision = "fp32", batch: int = 1) -> Lowered:
    """Do the same as `lower_network`, and add the program of the same network that torch itself runs."""
    lowered = lowering.lower(
        space.deployed(choice), torch.zeros(batch, *space.input_shape), precision=precision, program=True
    )
    return replace(lowered, onnx=filled(lowered.onnx))


def resize(graph: onnx.GraphProto, sizes: Mapping[int, int]) -> None:
    """Replace sizes in a graph without weights, in place.

    They are replaced in shapes, in attributes such as groups, and in constants, whose values are repeated.

    Args:
        graph: a graph with static shapes.
        sizes: the new size for each old one; old sizes must not have another meaning in the graph.
    """
    for value in (*graph.input, *graph.value_info, *graph.output):
        for dim in value.type.tensor_type.shape.dim:
            dim.dim_value = sizes.get(dim.dim_value, dim.dim_value)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.i in sizes:
                attribute.i = sizes[attribute.i]
    for tensor in graph.initializer:
        if tensor.data_type == onnx.TensorProto.INT64:
            old = numpy_helper.to_array(tensor)
            new = np.array([sizes.get(size, size) for size in old.ravel().tolist()], old.dtype).reshape(old.shape)
            tensor.CopyFrom(numpy_helper.from_array(new, tensor.name))
            continue
        dims = [sizes.get(size, size) for size in tensor.dims]
        if dims != list(tensor.dims) and is_filled(
            tensor
        ):  # a norm's statistics: equal for all channels of a new module
            tensor.CopyFrom(numpy_helper.from_array(np.resize(numpy_helper.to_array(tensor), dims), tensor.name))
        tensor.dims[:] = dims


def join(models: Sequence[onnx.ModelProto]) -> onnx.ModelProto:
    """Join models to one, each reading the output of the one before, without casts between them.

    Names of values and nodes are prefixed with the number of their model.
    """
    if len(models) == 1:
        return models[0]
    joined = onnx.ModelProto()
    joined.CopyFrom(models[0])
    for field in ("node", "initializer", "value_info", "output"):
        joined.graph.ClearField(field)
    carried = "input"
    for number, model in enumerate(models):
        first, last = number == 0, number == len(models) - 1
        graph = model.graph
        opening = next(
            (node for node in graph.node if node.op_type == "Cast" and node.input[0] == "input" and not first), None
        )
        closing = next(
            (node for node in graph.node if node.op_type == "Cast" and node.output[0] == "output" and not last), None
        )
        entry = opening.output[0] if opening else "input"
        leaving = closing.input[0] if closing else "output"
        names = {"": "", entry: carried, leaving: "output" if last else f"{number}.{leaving}"}
        for node in graph.node:
            if node not in (opening, closing):
                _rename(joined.graph.node.add(), node, names, number)
        for tensor in graph.initializer:
            joined.graph.initializer.add().CopyFrom(tensor)
            joined.graph.initializer[-1].name = f"{number}.{tensor.name}"
        for value in (*graph.value_info, *(() if last or closing else graph.output)):
            if value.name != entry:
                joined.graph.value_info.add().CopyFrom(value)
                joined.graph.value_info[-1].name = f"{number}.{value.name}"
        carried = names[leaving]
    joined.graph.output.extend(models[-1].graph.output)
    return joined


def _rename(new: onnx.NodeProto, old: onnx.NodeProto, names: Mapping[str, str], number: int) -> None:
    new.CopyFrom(old)
    new.name = f"{number}.{old.name}"
    new.input[:] = [names.get(name, f"{number}.{name}") for name in old.input]
    new.output[:] = [names.get(name, f"{number}.{name}") for name in old.output]


def _cut(spec: BlockSpec, precision: Precision, batch: int) -> onnx.ModelProto:
    """Return a block's graph at its widths, without weights."""
    widths = {**dict(spec.widths), "se_width": ops.se_width(spec.width("c_in"))}
    primes = dict(zip(widths, _primes(spec, batch), strict=True))
    if ops.keeps_width(spec):
        assert widths["c_in"] == widths["c_out"], spec
        primes["c_out"] = primes["c_in"]
    groups = int(dict(spec.attrs).get("groups", 1))
    sizes = {groups * primes[name]: width for name, width in widths.items()}
    if groups > 1:
        sizes[primes["c_in"]] = widths["c_in"] // groups
    template = spec.with_widths(**{name: groups * primes[name] for name, _ in spec.widths})
    model = onnx.load_from_string(_export(template, primes["se_width"], precision, batch))
    resize(model.graph, sizes)
    return model


@cache
def _export(template: BlockSpec, se_width: int, precision: Precision, batch: int) -> bytes:
    """Return the graph of a template, without weights."""
    module = _module([template], se_width)
    model = onnx.load_from_string(to_onnx(module, _example(template, batch), precision=precision))
    strip_weights(model)
    return model.SerializeToString(deterministic=True)


def _primes(spec: BlockSpec, batch: int) -> list[int]:
    """Return a prime for every channel count of a block that is not a size of an image, a kernel or a batch."""
    start = 1 + max(_LARGEST_CONSTANT, batch, *(value for _, value in spec.attrs if isinstance(value, int)))
    primes = (
        number
        for number in itertools.count(start)
        if all(number % factor for factor in range(2, math.isqrt(number) + 1))
    )
    return list(itertools.islice(primes, len(spec.widths) + 1))
