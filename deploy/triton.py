"""A bundle as a model repository of NVIDIA's Triton Inference Server.

NAME/config.pbtxt and NAME/1/model.onnx or model.plan.

Formats:
https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/model_configuration.html
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
"""Start of a configuration that may be replaced."""

_KINDS = {
    "onnxruntime": ("backend", "onnxruntime", "model.onnx"),
    "tensorrt": ("platform", "tensorrt_plan", "model.plan"),
}
"""Field that names a target's backend, its value, and the model file."""

_TYPES = {
    **{f"{kind}{bits}": f"TYPE_{kind.upper()}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
    "bool": "TYPE_BOOL",
}


def require_repository(target: str, out: Path) -> None:
    """Require that a target has a backend in Triton, and that a repository may be written.

    Raises:
        BundleError: there is no backend, or `out` holds something else.
    """
    if target not in _KINDS:
        raise BundleError(
            f"--layout triton: Triton has no backend for {target}: choose onnxruntime or tensorrt, or leave it out"
        )
    if os.path.lexists(out) and not _ours(out):
        raise BundleError(
            f"{out} exists and is not a model repository that Lathe wrote: remove it, or give another --out"
        )


def write_repository(made: Bundle, out: Path) -> Path:
    """Write the repository of a bundle atomically, with one model of the bundle's name; an older one is replaced.

    Raises:
        BundleError: `out` holds something else or cannot be written, or the bundle was changed.
    """
    manifest, name = made.manifest, made.directory.name
    require_repository(manifest.target, out)
    model = made.read(bundle.ONNX if manifest.target == "onnxruntime" else bundle.ENGINE)
    with bundle.whole_directory(out) as fresh:
        (fresh / name / "1").mkdir(parents=True)
        (fresh / name / CONFIG).write_text(config(manifest, name))
        (fresh / name / "1" / _KINDS[manifest.target][2]).write_bytes(model)
    return out


def config(manifest: Manifest, name: str) -> str:
    """Return the text of config.pbtxt.

    Shapes include the batch: `max_batch_size` is 0, so Triton does not batch requests.
    """
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
    """Return shapes with -1 for each dynamic size."""
    free = {name: tuple(-1 if isinstance(size, tuple) else size for size in span.sizes) for name, span in spans.items()}
    return {**shapes, **free}


def _values(kind: str, shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, str]) -> str:
    lines = [
        f"  {{ name: {json.dumps(name)} data_type: {_TYPES[dtypes[name]]} {_dims(shape)} }}"
        for name, shape in shapes.items()
    ]
    return f"{kind} [\n" + ",\n".join(lines) + "\n]"


def _dims(shape: tuple[int, ...]) -> str:
    """Return the dims field; Triton has no scalars, so they become one element and are reshaped."""
    return f"dims: [ {', '.join(map(str, shape))} ]" if shape else "dims: [ 1 ] reshape { shape: [ ] }"


def _ours(out: Path) -> bool:
    """Return whether a directory holds only a repository of one model written by Lathe."""
    if out.is_symlink() or not out.is_dir():
        return False
    (model, *others) = sorted(out.iterdir()) or [out]
    file = model / CONFIG
    if others or not file.is_file() or not file.read_text(errors="replace").startswith(_MADE):
        return False
    files = {path.relative_to(model).as_posix() for path in model.rglob("*")}
    return files in ({CONFIG, "1", f"1/{name}"} for _, _, name in _KINDS.values())
