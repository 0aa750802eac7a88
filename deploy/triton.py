"""A bundle as a model repository of NVIDIA's Triton Inference Server: NAME/config.pbtxt and NAME/1/model.onnx or model.plan.

Formats: https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/model_configuration.html
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from deploy import bundle
from deploy.bundle import Bundle, Manifest
from deploy.errors import BundleError
from deploy.shapes import Span

CONFIG = "config.pbtxt"
_MADE = "# Written by Lathe"
"""The first words of a configuration that may be replaced."""

_KINDS = {"onnxruntime": ("backend", "onnxruntime", "model.onnx"), "tensorrt": ("platform", "tensorrt_plan", "model.plan")}
"""Of a target what names its backend, that name, and the file of the model."""

_TYPES = {
    **{f"{kind}{bits}": f"TYPE_{kind.upper()}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
    "bool": "TYPE_BOOL",
}


def require(target: str, out: Path) -> None:
    """Check that a target has a backend in Triton, and that a repository may be written.

    Raises:
        BundleError: it has none, or something else is in the way.
    """
    if target not in _KINDS:
        raise BundleError(f"--layout triton: Triton has no backend for {target}: choose onnxruntime or tensorrt, or leave it out")
    if os.path.lexists(out) and not _ours(out):
        raise BundleError(f"{out} exists and is not a model repository that Lathe wrote: remove it, or give another --out")


def write(made: Bundle, out: Path) -> Path:
    """Write the repository of a bundle, with one model of the bundle's name; it appears whole, in the place of an older one.

    Raises:
        BundleError: something else is in the way, the bundle was changed, or the disk refuses.
    """
    manifest, name = made.manifest, made.directory.name
    require(manifest.target, out)
    model = made.read(bundle.ONNX if manifest.target == "onnxruntime" else bundle.ENGINE)
    with bundle.whole_directory(out) as fresh:
        (fresh / name / "1").mkdir(parents=True)
        (fresh / name / CONFIG).write_text(config(manifest, name))
        (fresh / name / "1" / _KINDS[manifest.target][2]).write_bytes(model)
    return out


def config(manifest: Manifest, name: str) -> str:
    """The text of config.pbtxt. Shapes are whole, with their batch: `max_batch_size` is 0, and Triton joins no requests."""
    key, kind, _ = _KINDS[manifest.target]
    threads = manifest.device.threads if manifest.device else 1
    parameters = f'\nparameters {{ key: "intra_op_thread_count" value {{ string_value: "{threads}" }} }}'
    return "\n".join(
        [
            f"{_MADE}: {manifest.target}, {manifest.runtime.name} {manifest.runtime.version}, {manifest.precision}",
            f"name: {json.dumps(name)}",
            f"{key}: {json.dumps(kind)}",
            "max_batch_size: 0",
            _values("input", _shapes(manifest.inputs, manifest.spans), manifest.dtypes),
            _values("output", _shapes(manifest.outputs, manifest.output_spans), manifest.dtypes),
            f"instance_group [ {{ count: 1 kind: {'KIND_CPU' if kind == 'onnxruntime' else 'KIND_GPU'} }} ]"
            + (parameters if kind == "onnxruntime" else ""),
            "",
        ]
    )


def _shapes(shapes: Mapping[str, tuple[int, ...]], spans: Mapping[str, Span]) -> dict[str, tuple[int, ...]]:
    """Shapes with -1 for each size that may differ."""
    free = {name: tuple(-1 if isinstance(size, tuple) else size for size in span.sizes) for name, span in spans.items()}
    return {**shapes, **free}


def _values(kind: str, shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, str]) -> str:
    lines = [f"  {{ name: {json.dumps(name)} data_type: {_TYPES[dtypes[name]]} {_dims(shape)} }}" for name, shape in shapes.items()]
    return f"{kind} [\n" + ",\n".join(lines) + "\n]"


def _dims(shape: tuple[int, ...]) -> str:
    """Triton has no values without dimensions: those are of one element, and reshaped."""
    return f"dims: [ {', '.join(map(str, shape))} ]" if shape else "dims: [ 1 ] reshape { shape: [ ] }"


def _ours(out: Path) -> bool:
    """Whether a directory is a repository of one model that was written here, and holds nothing else."""
    if out.is_symlink() or not out.is_dir():
        return False
    (model, *others) = sorted(out.iterdir()) or [out]
    file = model / CONFIG
    if others or not file.is_file() or not file.read_text(errors="replace").startswith(_MADE):
        return False
    found = {path.relative_to(model).as_posix() for path in model.rglob("*")}
    return found in ({CONFIG, "1", f"1/{name}"} for _, _, name in _KINDS.values())
