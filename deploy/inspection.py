"""Read the engine inspector: the layers of a narrow network that run in FP32.

Reasons come from the certificate.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from deploy.certificate import Certificate
from latency.values import Count

_FULL = re.compile(r"\b(FP32|Float)\b")
"""Names of FP32 among the tensor formats of TensorRT 10, 11 and RTX."""
_NODE = re.compile(r"\[ONNX Layer: ([^\]]+)\]")


class FullLayer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A layer of an engine that outputs FP32."""

    name: str
    reason: str


class Inspection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The layers of an engine."""

    layers: Count
    full: tuple[FullLayer, ...]
    """layers that run in FP32"""
    reason: str = ""
    """why nothing is known about the layers, in which case none are listed"""

    def __str__(self) -> str:
        if self.reason:
            return f"layers of the engine: not run: {self.reason}"
        listed = "; ".join(f"{layer.name} ({layer.reason})" for layer in self.full)
        return f"{len(self.full)} of {self.layers} layers of the engine run in FP32{f': {listed}' if listed else ''}"


def inspect(information: str, certificate: Certificate) -> Inspection:
    """Read an engine inspector's output.

    Args:
        information: JSON of all layers of an engine built with detailed verbosity.
        certificate: certificate of the graph that it was built from.
    """
    try:
        entries = msgspec.json.decode(information)["Layers"]
        layers = [layer for layer in entries if isinstance(layer, Mapping)]
    except (msgspec.DecodeError, KeyError, TypeError):
        return Inspection(layers=0, full=(), reason="the inspector's words are not understood")
    if len(layers) < len(entries):  # plain names: the engine was built without detail
        return Inspection(layers=0, full=(), reason="the engine tells the names of its layers only")
    reasons = {kept.node: kept.reason for kept in certificate.kept}
    full = [
        FullLayer(name=str(layer.get("Name", "")), reason=_reason(layer, reasons))
        for layer in layers
        if _is_full(layer)
    ]
    return Inspection(layers=len(layers), full=tuple(full))


def _is_full(layer: Mapping[str, Any]) -> bool:
    """Return whether a layer outputs FP32."""
    return any(
        _FULL.search(str(output.get(key, ""))) for output in _outputs(layer) for key in ("Format/Datatype", "DataType")
    )


def _outputs(layer: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    return [tensor for tensor in layer.get("Outputs") or () if isinstance(tensor, Mapping)]


def _reason(layer: Mapping[str, Any], reasons: Mapping[str, str]) -> str:
    """Return the reasons of the nodes that a layer was made from.

    Builders fuse several, and list them in its metadata or name.
    """
    nodes = _NODE.findall(str(layer.get("Metadata", ""))) or re.split(r" \+ |\x1f", str(layer.get("Name", "")))
    if known := [f"{node}: {reasons[node]}" for node in nodes if node in reasons]:
        return "; ".join(known)
    if any(node.startswith("cast_") for node in nodes):
        return "it casts to the type of an output or of an FP32 island"
    return "the certificate has no reason"
