"""What an engine's inspector says: which layers run in FP32 though the network is narrow, and why, by what its certificate knows."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from deploy.certificate import Certificate
from latency.values import Count

_FULL = re.compile(r"\b(FP32|Float)\b")
"""How TensorRT 10, 11 and RTX name FP32 among the formats of a tensor."""
_NODE = re.compile(r"\[ONNX Layer: ([^\]]+)\]")


class FullLayer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A layer of an engine that writes FP32."""

    name: str
    reason: str


class Inspection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The layers of an engine."""

    layers: Count
    full: tuple[FullLayer, ...]
    """those that run in FP32"""
    reason: str = ""
    """why nothing is known of the layers, in which case there are none above"""

    def __str__(self) -> str:
        if self.reason:
            return f"layers of the engine: not run: {self.reason}"
        listed = "; ".join(f"{layer.name} ({layer.reason})" for layer in self.full)
        return f"{len(self.full)} of {self.layers} layers of the engine run in FP32{f': {listed}' if listed else ''}"


def inspect(information: str, certificate: Certificate) -> Inspection:
    """Read what the inspector of an engine says.

    Args:
        information: JSON of all layers, of an engine that was built with detailed verbosity.
        certificate: of the graph that it was built from.
    """
    try:
        found = msgspec.json.decode(information)["Layers"]
        layers = [layer for layer in found if isinstance(layer, Mapping)]
    except (msgspec.DecodeError, KeyError, TypeError):
        return Inspection(layers=0, full=(), reason="the inspector's words are not understood")
    if len(layers) < len(found):  # plain names: the engine was built without detail
        return Inspection(layers=0, full=(), reason="the engine tells the names of its layers only")
    reasons = {kept.node: kept.reason for kept in certificate.kept}
    full = [FullLayer(name=str(layer.get("Name", "")), reason=_reason(layer, reasons)) for layer in layers if _is_full(layer)]
    return Inspection(layers=len(layers), full=tuple(full))


def _is_full(layer: Mapping[str, Any]) -> bool:
    """Whether a layer writes FP32."""
    return any(_FULL.search(str(output.get(key, ""))) for output in _tensors(layer, "Outputs") for key in ("Format/Datatype", "DataType"))


def _tensors(layer: Mapping[str, Any], kind: str) -> Iterable[Mapping[str, Any]]:
    tensors = layer.get(kind) or ()
    return [tensor for tensor in tensors if isinstance(tensor, Mapping)]


def _reason(layer: Mapping[str, Any], reasons: Mapping[str, str]) -> str:
    """By the nodes of the graph that a layer was made of; builders fuse several, and name them in its metadata or its name."""
    nodes = _NODE.findall(str(layer.get("Metadata", ""))) or re.split(r" \+ |\x1f", str(layer.get("Name", "")))
    if known := [f"{node}: {reasons[node]}" for node in nodes if node in reasons]:
        return "; ".join(known)
    if any(node.startswith("cast_") for node in nodes):
        return "it casts to the type of an output or of an FP32 island"
    return "the certificate has no reason"
