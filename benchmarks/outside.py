"""Are networks predicted that no space holds? Networks of timm, by the latencies of their single layers.

    pip install --no-deps timm==1.0.31 torchvision==0.28.0 huggingface_hub
    python benchmarks/outside.py --models DIR --lower
    flock quiet.lock chrt -f 50 taskset -c 1 python benchmarks/outside.py --models DIR

`--lower` fuses each network and writes its ONNX. The second call reads each network as ONNX Runtime runs it (its optimized graph: activations
and sums fused into convolutions, layouts chosen), cuts it into its nodes, measures each distinct node and each whole network with one thread,
and predicts each whole network from its nodes by a fit to the other networks (leave one out). An interrupted call goes on with the table
in DIR. Writes outside.md and outside.json.
"""

import argparse
import collections
import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from outcome import verdicts

from latency import BlockSpec, LatencyTable, Workload, backends, predict, profile, protocol
from latency.predict import Sums
from latency.profile import Measured

HERE = Path(__file__).parent
NETWORKS = (
    "lcnet_050", "resnet18", "mobilenetv3_small_100", "mobilenetv2_100", "fbnetc_100", "hgnetv2_b0", "regnetx_002", "mnasnet_100", "tinynet_e",
    "seresnet18", "efficientnet_b0", "mobileone_s0", "regnety_002", "selecsls42", "ese_vovnet19b_dw", "repvgg_a0", "resnet34", "hardcorenas_a",
    "resnet50", "gernet_s", "rexnet_100", "ghostnet_100", "mobilenetv3_large_100", "resnext50_32x4d", "starnet_s1", "densenet121", "dla34",
)  # fmt: skip
FREE = {"Reshape", "Flatten", "Identity", "Squeeze", "Unsqueeze", "Constant"}  # these move nothing
KINDS = {
    "Gemm": "linear", "MatMul": "linear", "FusedMatMul": "linear", "ReorderInput": "reorder", "ReorderOutput": "reorder",
    "MaxPool": "pool", "AveragePool": "pool", "GlobalAveragePool": "pool", "GlobalMaxPool": "pool", "ReduceMean": "pool",
}  # fmt: skip


def lower(directory: Path) -> None:
    """Write every network that is not there, fused, as ONNX."""
    import torch
    from fuse import create

    from deploy.lowering import to_onnx
    from reparam import fuse

    torch.set_num_threads(1)
    directory.mkdir(parents=True, exist_ok=True)
    for name in NETWORKS:
        path = directory / f"{name}.onnx"
        if not path.exists():
            model, example = create(name)
            path.write_bytes(to_onnx(fuse(model, example), example))
            print(name, flush=True)


def optimized(path: Path) -> onnx.ModelProto:
    """A network as ONNX Runtime runs it, with the shape of every value."""
    import onnxruntime as ort

    kept = path.with_suffix(".optimized")
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    options.optimized_model_filepath = str(kept)
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    model = onnx.load(kept)
    for node in model.graph.node:
        if node.op_type == "Constant":
            tensor = model.graph.initializer.add()
            tensor.CopyFrom(next(attribute.t for attribute in node.attribute if attribute.name == "value"))
            tensor.name = node.output[0]
    declared = {value.name for value in model.graph.output}
    names = [
        name
        for node in model.graph.node
        if node.op_type != "Constant"
        for name in node.output
        if name and name not in declared
    ]
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    whole.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(whole.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed = {value.name: np.zeros(value.shape, np.float32) for value in session.get_inputs()}
    arrays = dict(zip([value.name for value in session.get_outputs()], session.run(None, feed), strict=True)) | feed
    del model.graph.value_info[:]
    for name, array in arrays.items():
        kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        model.graph.value_info.append(onnx.helper.make_tensor_value_info(name, kind, array.shape))
    kept.unlink()
    return model


def nodes(model: onnx.ModelProto) -> Iterator[tuple[BlockSpec, Callable[[], bytes]]]:
    """Each node that computes, in order: what it is, and what makes a network of it alone."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    values = {value.name: value for value in model.graph.value_info}
    for node in model.graph.node:
        if node.op_type not in FREE:
            yield _spec(node, weights, values), partial(_alone, model, node, weights, values)


def _shape(name: str, weights: dict[str, Any], values: dict[str, Any]) -> list[int]:
    return (
        list(weights[name].dims)
        if name in weights
        else [dim.dim_value for dim in values[name].type.tensor_type.shape.dim]
    )


def _spec(node: onnx.NodeProto, weights: dict[str, Any], values: dict[str, Any]) -> BlockSpec:
    shapes = [_shape(name, weights, values) for name in (*node.input, *node.output) if name]
    attributes = sorted(attribute.SerializeToString(deterministic=True) for attribute in node.attribute)
    text = json.dumps([node.domain, node.op_type, shapes, [attribute.hex() for attribute in attributes]])
    read, made = ([*_shape(name, weights, values), 1, 1, 1, 1][1:4] for name in (node.input[0], node.output[0]))
    group = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
    conv = "depthwise" if group > 1 and group == made[0] else "conv"
    op = conv if node.op_type in ("Conv", "FusedConv") else KINDS.get(node.op_type, "pointwise")
    name = f"x{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    return BlockSpec.of(
        op, attrs={"h": read[1], "w": read[2], "node": name}, widths={"c_in": read[0], "c_out": made[0]}
    )


def _alone(model: onnx.ModelProto, node: onnx.NodeProto, weights: dict[str, Any], values: dict[str, Any]) -> bytes:
    inputs = [values[name] for name in dict.fromkeys(node.input) if name and name not in weights]
    held = [weights[name] for name in dict.fromkeys(node.input) if name in weights]
    graph = onnx.helper.make_graph([node], "node", inputs, [values[name] for name in node.output if name], held)
    alone = onnx.helper.make_model(graph, opset_imports=model.opset_import)
    alone.ir_version = model.ir_version
    return alone.SerializeToString()


def measured(directory: Path, out: Path, *, measure: bool) -> dict[str, list[BlockSpec]]:
    """Measure every node and network that is not measured, where asked; returns the networks by name."""
    found, works = {}, list[Workload]()
    for name in NETWORKS:
        if (path := directory / f"{name}.onnx").exists():
            each = list(nodes(optimized(path)))
            found[name] = [spec for spec, _ in each]
            works += [Workload.block(spec, make) for spec, make in each]
            works.append(Workload.network(found[name], path.read_bytes))
    if not measure:
        return found
    backend = backends.get("onnxruntime", threads=1)
    for event in profile(
        works, backend, out, protocol=protocol.get("fast"), lowering="optimized-by-onnxruntime", space="timm"
    ):
        if isinstance(event, Measured) and event.done % 25 == 0:
            print(f"{event.done}/{event.total}", file=sys.stderr, flush=True)
    return found


def predictions(table: LatencyTable, networks: dict[str, list[BlockSpec]]) -> list[dict[str, Any]]:
    """Each network, predicted by a fit to the others."""
    rows = {row.blocks: row for row in table.rows if row.kind == "network" and row.measured}
    overhead_us = next(row.median_us for row in table.rows if row.kind == "overhead")
    names = [name for name, blocks in networks.items() if tuple(spec.key for spec in blocks) in rows]
    us_of = {row.key: row.median_us for row in table.rows if row.kind == "block" and row.measured}
    each = {
        name: [spec for spec in networks[name] if spec.key in us_of] for name in names
    }  # a node without a batch is not measured alone
    sums = {name: Sums.of(each[name], [us_of[spec.key] for spec in each[name]]) for name in names}
    us = {name: rows[tuple(spec.key for spec in networks[name])] for name in names}
    found = []
    for name in names:
        others = [other for other in names if other != name]
        fit = predict.fit([sums[other] for other in others], [us[other].median_us for other in others], overhead_us)
        predicted, row = fit.network(sums[name]), us[name]
        entry = {
            "network": name,
            "nodes": len(networks[name]),
            "unmeasured": len(networks[name]) - len(each[name]),
            "measured_us": row.median_us,
            "status": row.status,
        }
        found.append(
            {
                **entry,
                "predicted_us": round(predicted, 1),
                "sum_us": round(sums[name].us, 1),
                "error": round(predicted / row.median_us - 1, 4),
            }
        )
    return found


def disturbance(found: list[dict[str, Any]]) -> str:
    """How the latencies compare with those of the same networks in fuse.json, which were measured at another time."""
    before = {
        name: row["latency"]["ours"][0]
        for name, row in json.loads((HERE / "fuse.json").read_text()).items()
        if row.get("latency")
    }
    ratios = {row["network"]: row["measured_us"] / before[row["network"]] for row in found if row["network"] in before}
    if not ratios:
        return "None of these networks was measured at another time."
    words = ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items())
    return f"Latency here over that in fuse.json, of the same machine and networks: {words}. Far from 1, this run was disturbed."


def report(table: LatencyTable, found: list[dict[str, Any]]) -> str:
    """As markdown."""
    header, errors = table.header, np.abs([row["error"] for row in found])
    sums = np.abs([row["sum_us"] / row["measured_us"] - 1 for row in found])
    statuses = collections.Counter(row.status for row in table.rows if row.kind == "block")
    lines = [
        f"{header.device.name}, {header.device.threads} thread, {header.runtime.name} {header.runtime.version}, FP32, batch 1, at real-time priority."
    ]
    lines += [
        f"{statuses.total()} distinct nodes measured ({', '.join(f'{count} {status}' for status, count in statuses.items())}). "
    ]
    lines += [disturbance(found), ""]
    lines += [
        "Predicted: by the nodes' latencies and a fit to the other networks. Sum: of the nodes' latencies alone.",
        "",
    ]
    lines += [
        "| network | nodes | measured, ms | predicted, ms | error | error of the sum | |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found:
        ms, predicted = row["measured_us"] / 1000, row["predicted_us"] / 1000
        plain = row["sum_us"] / row["measured_us"] - 1
        said = "" if row["status"] == "ok" else row["status"]
        lines.append(
            f"| {row['network']} | {row['nodes']} | {ms:.3f} | {predicted:.3f} | {row['error']:+.1%} | {plain:+.1%} | {said} |"
        )
    lines += [
        "",
        f"Mean error {errors.mean():.1%}; of the sum {sums.mean():.1%}, {(sums <= 0.05).mean():.0%} of them within 5 %.",
        "",
    ]
    rows = [
        (
            f"networks within 5 %, of {len(found)}",
            f"{(errors <= 0.05).mean():.1%}",
            "at least 95 %",
            bool((errors <= 0.05).mean() >= 0.95),
        )
    ]
    rows += [
        (
            f"networks within 10 %, of {len(found)}",
            f"{(errors <= 0.10).mean():.1%}",
            "at least 98.9 %",
            bool((errors <= 0.10).mean() >= 0.989),
        )
    ]
    return "\n".join([*lines, *verdicts(rows)]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True, help="directory of the networks' ONNX, and of the table")
    parser.add_argument("--lower", action="store_true", help="write the ONNX")
    parser.add_argument("--report", action="store_true", help="measure nothing, write the report of what is measured")
    given = parser.parse_args()
    if given.lower:
        lower(given.models)
        return
    out = given.models / "outside.latency.jsonl"
    networks = measured(given.models, out, measure=not given.report)
    table = LatencyTable.load(out)
    found = predictions(table, networks)
    (HERE / "outside.json").write_text(json.dumps(found, indent=1) + "\n")
    text = report(table, found)
    print(text)
    (HERE / "outside.md").write_text(text)


if __name__ == "__main__":
    main()
