"""Choose islands of FP32 nodes in an FP16 graph with the fewest casts."""

from dataclasses import dataclass, field

from onnx import GraphProto, NodeProto, TensorProto

_FULL = TensorProto.FLOAT
HEAVY = frozenset(
    {"Attention", "Conv", "ConvTranspose", "DeformConv", "Einsum", "GRU", "Gemm", "LSTM", "MatMul", "RNN"}
)
"""Expensive operators, which never run in FP32 only to save a cast."""


@dataclass
class Node:
    """A node and its precision."""

    proto: NodeProto
    inputs: list[int] = field(default_factory=list)
    """indices of the inputs with the node's precision; others have a fixed type, or accept either"""
    outputs: list[int] = field(default_factory=list)
    reason: str = ""
    """why the node must be FP32; "" if it need not"""
    full: bool = False

    @property
    def reads(self) -> set[str]:
        """Names of the inputs that have the node's precision."""
        return {self.proto.input[i] for i in self.inputs}


def choose_islands(graph: GraphProto, nodes: list[Node], weights: set[str], io: int) -> None:
    """Choose the FP32 nodes, including all with a reason, to minimise the number of casts and, next, of FP32 nodes.

    Solved as a minimum cut between FP32 and FP16. A tensor across the cut costs one cast, regardless of its number of
    readers; an FP32 node without a reason costs so little that a single cast outweighs all of them. Heavy nodes are
    FP16 unless they have a reason.
    """
    import networkx as nx  # a dependency of torch, which is not needed to read the structs above

    cut = nx.DiGraph()
    cut.add_nodes_from(("fp32", "fp16"))
    end = "fp32" if io == _FULL else "fp16"
    cast = len(nodes) + 1
    writers: dict[str, int | str] = {value.name: end for value in graph.input}
    readers: dict[str, list[int | str]] = {value.name: [end] for value in graph.output}
    for number, node in enumerate(nodes):
        if not node.inputs and not node.outputs:
            continue
        if node.reason:
            cut.add_edge("fp32", number)
        elif node.proto.op_type in HEAVY:
            cut.add_edge(number, "fp16")
        else:
            cut.add_edge(number, "fp16", capacity=1)
        for i in node.outputs:
            writers[node.proto.output[i]] = number
        for name in node.reads - weights:
            readers.setdefault(name, []).append(number)
    for name, writer in writers.items():
        for reader in readers.get(name, ()):
            cut.add_edge(writer, ("to fp16", name), capacity=cast)
            cut.add_edge(("to fp16", name), reader)
            cut.add_edge(reader, ("to fp32", name))
            cut.add_edge(("to fp32", name), writer, capacity=cast)
    _, (full, _) = nx.minimum_cut(cut, "fp32", "fp16")
    for number, node in enumerate(nodes):
        node.full = number in full


def count_islands(nodes: list[Node]) -> int:
    """Return the number of connected components of the FP32 nodes."""
    import networkx as nx

    full = [node for node in nodes if node.full]
    writers = {node.proto.output[i]: node.proto.name for node in full for i in node.outputs}
    joined = nx.Graph()
    joined.add_nodes_from(node.proto.name for node in full)
    joined.add_edges_from((writers[name], node.proto.name) for node in full for name in node.reads & writers.keys())
    return nx.number_connected_components(joined)
