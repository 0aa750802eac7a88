"""What to measure of a space: its blocks, and whole networks to judge predictions by, in the ONNX that would ship.

Torch takes a second to export a module, and a space has hundreds of blocks that differ in their channel counts alone. So each chain of
operators is exported once, by `deploy.lowering` like what ships, with a prime of its own as every channel count; any widths are then cut
from that template.
"""

import itertools
import math
import random
from collections.abc import Mapping, Sequence
from functools import cache, partial

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn

from deploy.lowering import Precision, to_onnx
from latency import BlockSpec, Workload
from reparam import ConvBlock
from search.network import build_head
from search.space import Space


def workloads(space: Space, *, networks: int = 16, seed: int = 0, precision: Precision = "fp32") -> list[Workload]:
    """Every distinct block of a space; then its full, its smallest, and random networks. Lowered when their `onnx` is called.

    Args:
        space: what to measure.
        networks: how many random ones, every width of a layer equally likely.
        seed: of their draw.
        precision: of weights and arithmetic.
    """
    draw = random.Random(seed)
    choices = [space.width_choices(index) for index in range(len(space.layers))]
    random_widths = (tuple(draw.choice(options) for options in choices) for _ in range(networks))
    chains = [space.network(widths) for widths in (space.full_widths(), space.smallest_widths(), *random_widths)]
    return [
        *(Workload.block(spec, partial(lower, (spec,), precision)) for spec in space.blocks()),
        *(Workload.network(chain, partial(lower, chain, precision)) for chain in chains),
    ]


def lower(chain: Sequence[BlockSpec], precision: Precision = "fp32") -> bytes:
    """ONNX of deployed blocks, one behind the other, at their widths; the weights are random."""
    primes = _primes(chain)
    template = [spec.with_widths(c_in=c_in, c_out=c_out) for spec, (c_in, c_out) in zip(chain, itertools.pairwise(primes), strict=True)]
    channels = [chain[0].width("c_in"), *(spec.width("c_out") for spec in chain)]
    return cut(onnx.load_from_string(_export(tuple(template), precision)), dict(zip(primes, channels, strict=True)))


def deployed_form(chain: Sequence[BlockSpec]) -> nn.Sequential:
    """Blocks as modules, one behind the other, in the form that ships."""
    return nn.Sequential(*map(_module, chain))


def cut(template: onnx.ModelProto, sizes: Mapping[int, int]) -> bytes:
    """Give a template other sizes: in shapes, in constants that hold a shape, and in weights, which are drawn anew.

    Args:
        template: a static graph; changed in place.
        sizes: what replaces each size of the template. Those sizes must mean nothing else in the graph.
    """
    graph, rng = template.graph, np.random.default_rng(0)
    for value in (*graph.input, *graph.value_info, *graph.output):
        for dim in value.type.tensor_type.shape.dim:
            dim.dim_value = sizes.get(dim.dim_value, dim.dim_value)
    for tensor in graph.initializer:
        old = numpy_helper.to_array(tensor)
        shape = [sizes.get(size, size) for size in old.shape]
        if np.issubdtype(old.dtype, np.floating):
            # Of the magnitude that keeps activations near 1: zeros or denormals would be timed differently.
            new = rng.standard_normal(shape) / math.sqrt(max(1, math.prod(shape[1:])))
        else:
            new = np.vectorize(lambda size: sizes.get(size, size))(old)
        tensor.CopyFrom(numpy_helper.from_array(new.astype(old.dtype), tensor.name))
    return template.SerializeToString(deterministic=True)


@cache
def _export(chain: tuple[BlockSpec, ...], precision: Precision) -> bytes:
    first = chain[0]
    example = torch.zeros(1, first.width("c_in"), int(first.attr("h")), int(first.attr("w")))
    return to_onnx(deployed_form(chain), example, precision=precision)


def _module(spec: BlockSpec) -> nn.Module:
    if spec.op == "head":
        return build_head(spec.width("c_in"), spec.width("c_out"))
    assert spec.op == "conv", spec.op
    return ConvBlock(spec.width("c_in"), spec.width("c_out"), kernel=int(spec.attr("kernel")), stride=int(spec.attr("stride")))


def _primes(chain: Sequence[BlockSpec]) -> list[int]:
    """A prime for every channel count along a chain, none of them a size of an image or a kernel."""
    start = 1 + max(value for spec in chain for _, value in spec.attrs if isinstance(value, int))
    primes = (
        number for number in itertools.count(start) if number > 1 and all(number % factor for factor in range(2, math.isqrt(number) + 1))
    )
    return list(itertools.islice(primes, len(chain) + 1))
