"""Find the layer that breaks in FP16.

Compare every value of the half-precision graph with float32, in execution order.
"""

import math
from dataclasses import dataclass

import numpy as np
import onnx

from deploy import engine, precision
from deploy.explanation import LIMIT, Explanation, GraphErrors, Suspect
from deploy.samples import Samples


def explain(model: bytes, half: bytes, samples: Samples, threads: int = 1) -> Explanation:
    """Find the first tensor that half precision breaks.

    Args:
        model: the FP32 network, serialised ONNX.
        half: the network in FP16 with FP32 islands, by `precision.certified`.
        samples: samples to run both on.
        threads: number of threads of ONNX Runtime.

    Raises:
        DeployError: one of the networks does not run, or has no FP16 form.
    """
    fp16 = precision.convert_all_nodes(model)
    errors = [_find(model, form, samples, threads) for form in (fp16, half)]
    return Explanation(samples=samples.count, everywhere=errors[0], certified=errors[1])


@dataclass
class _Divergence:
    """Largest difference and value of one tensor over all calls."""

    difference: float = 0.0
    scale: float = 0.0
    broken: bool = False

    def add(self, rounded: np.ndarray, exact: np.ndarray) -> None:
        finite = np.isfinite(exact)
        self.broken |= not np.isfinite(rounded[finite]).all()
        with np.errstate(invalid="ignore"):
            apart = np.abs(rounded[finite].astype(np.float64) - exact[finite])
        self.difference = max(self.difference, float(apart.max(initial=0)))
        self.scale = max(self.scale, float(np.abs(exact[finite]).max(initial=0)))

    @property
    def error(self) -> float | None:
        return None if self.broken else self.difference / (self.scale or 1.0)


def _find(model: bytes, half: bytes, samples: Samples, threads: int) -> GraphErrors:
    exact, rounded = engine.Steps(model, threads), engine.Steps(half, threads)
    common = set(exact.names) & set(rounded.names)
    seen: dict[str, _Divergence] = {}
    for number in range(samples.calls):
        call = samples.call(number)
        exact_values, rounded_values = (
            (pair for pair in steps.values(call) if pair[0] in common) for steps in (exact, rounded)
        )
        for (name, exact_value), (same, rounded_value) in zip(exact_values, rounded_values, strict=True):
            assert name == same, f"{name} and {same} are not in the same order"
            if exact_value.dtype.kind == "f":
                seen.setdefault(name, _Divergence()).add(rounded_value, exact_value)
    places = _places(onnx.load_from_string(model).graph)
    suspects = [
        Suspect(tensor=name, op=places[name][0], layer=places[name][1], error=tensor.error)
        for name, tensor in seen.items()
    ]
    beyond = [suspect for suspect in suspects if _size(suspect) > LIMIT]
    worst = max(suspects, key=_size, default=None)
    return GraphErrors(first=beyond[0] if beyond else None, worst=worst, beyond=len(beyond), tensors=len(suspects))


def _size(suspect: Suspect) -> float:
    return math.inf if suspect.error is None else suspect.error


def _places(graph: onnx.GraphProto) -> dict[str, tuple[str, str]]:
    """Return the operator and layer that compute each tensor.

    Module exporters name weights after the module, `layer1.0.conv.weight`; others name nodes by path,
    `/layer1/layer1.0/conv/Conv`.
    """
    layers = {tensor.name: tensor.name.rpartition(".")[0] for tensor in graph.initializer}
    places: dict[str, tuple[str, str]] = {}
    for node in graph.node:
        own = node.name if "/" in node.name else ""
        before = (places[name][1] for name in node.input if name in places)
        layer = own or next(filter(None, (*(layers.get(name, "") for name in node.input), *before)), "")
        places |= dict.fromkeys(node.output, (node.op_type, layer))
    return places
