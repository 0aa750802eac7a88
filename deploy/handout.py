"""Files of a bundle for people without Lathe: README.md, and run.py, which needs only the runtime."""

import json
import re
from importlib import resources

from deploy import bundle
from deploy.bundle import Manifest
from latency.units import interval, microseconds

NAMES = (bundle.README, bundle.SCRIPT)

_NEEDS = {
    "onnxruntime": "numpy onnxruntime",
    "tensorrt": "numpy tensorrt cuda-python",
    "tensorrt-rtx": "numpy tensorrt-rtx cuda-python",
}

_README = """\
# A network for {target}

{network}. {verdicts}

## Run it

`pip install {needs}`; nothing else is needed, no torch and no Lathe. `python run.py {arguments}` runs it on arrays.
From Python:

```python
import json, runpy
import numpy as np

bundle = "."  # this directory
manifest = json.load(open(bundle + "/manifest.json"))
network = runpy.run_path(bundle + "/run.py")["load"]()  # refuses changed files, another GPU, another runtime
inputs = [np.zeros(shape, manifest["dtypes"][name]) for name, shape in manifest["inputs"].items()]  # yours
outputs = network(*inputs)
for name, output in outputs.items():
    print(name, output.dtype, output.shape)
```

| | name | type | shape |
|---|---|---|---|
{values}

{preprocessing}
## What is here

| file | what |
|---|---|
{files}

`lathe verify .` hashes every file again, runs what this machine can run, and says why it did not run the rest.
The hash of every step, from weights to engine, and every number with its limit, are in `manifest.json`.
"""

_FILES = {
    bundle.ONNX: "the network, in float32 between its inputs and outputs",
    bundle.HALF["fp16"]: "the network, half precision, that the engine was built from",
    bundle.HALF["bf16"]: "the network, bfloat16, that the engine was built from",
    bundle.ENGINE: "the engine: for one version of its runtime and the GPUs in manifest.json",
    bundle.TIMING_CACHE: "kernel timings of the builder, to build the same engine again",
    bundle.REFERENCE: "a few inputs with the trained network's outputs",
    bundle.SCRIPT: "runs it",
    "architecture.json": "the layers and their widths",
}


def files(manifest: Manifest, names: set[str]) -> dict[str, bytes]:
    """Return README.md and run.py of a bundle.

    Args:
        manifest: manifest of the bundle.
        names: names of its other files.
    """
    script = "run_onnxruntime.py" if manifest.target == "onnxruntime" else "run_tensorrt.py"
    known = [(name, _FILES.get(name, "kept with it")) for name in sorted({*names, bundle.SCRIPT})]
    text = _README.format(
        target=manifest.target,
        network=(
            f"{manifest.shipped.params:,} parameters, {manifest.shipped.macs:,} multiply-accumulates, "
            f"{manifest.arithmetic}"
        ),
        verdicts=_verdicts(manifest),
        needs=_NEEDS[manifest.target],
        arguments=" ".join(f"{_file(name)}.npy" for name in manifest.inputs),
        values="\n".join(
            f"| {kind} | `{name}` | {manifest.dtypes[name]} | [{spans.get(name) or ', '.join(map(str, shape))}] |"
            for kind, shapes, spans in (
                ("input", manifest.inputs, manifest.spans),
                ("output", manifest.outputs, manifest.output_spans),
            )
            for name, shape in shapes.items()
        ),
        preprocessing=_preprocessing(manifest),
        files="\n".join(f"| `{name}` | {what} |" for name, what in known),
    )
    return {
        bundle.README: text.encode(),
        bundle.SCRIPT: resources.files("deploy").joinpath("shipped", script).read_bytes(),
    }


def _file(name: str) -> str:
    """Return a placeholder for the file of an input."""
    return re.sub(r"\W+", "_", name).upper()


def _verdicts(manifest: Manifest) -> str:
    outputs = "Failed: " + "; ".join(manifest.failures) if manifest.failures else "All compared outputs agree"
    if notes := dict.fromkeys(step.note for step in manifest.validation if step.note):
        outputs += f" ({'; '.join(notes)})"
    if manifest.samples_from == "random":
        outputs += f"; the {manifest.samples} samples were {bundle.RANDOM}"
    measured = manifest.shipped.measured
    latency = f"not measured ({manifest.shipped.not_measured})" if measured is None else interval(measured)
    budget = (
        "" if manifest.budget_us is None else f", budget {microseconds(manifest.budget_us)}: {manifest.budget_verdict}"
    )
    return f"{outputs}. Latency: {latency}{budget}."


def _preprocessing(manifest: Manifest) -> str:
    lines = []
    if manifest.preprocessing:
        lines.append(f"Preprocessing, as in training: `{json.dumps(manifest.preprocessing)}`.\n")
    if manifest.classes:
        lines.append("Names of the classes: `classes` in manifest.json.\n")
    return "\n".join(lines)
