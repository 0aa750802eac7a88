"""Runs the engine of this directory with numpy, TensorRT and cuda-python alone.

`python run.py INPUT.npy ...`, or by `load()`.
"""

import hashlib
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np

HERE = Path(__file__).parent
ENGINE = HERE / "model.engine"


def load() -> Callable[..., dict[str, np.ndarray]]:
    """A function from one array for each of the `inputs` of manifest.json, in their order, to the outputs by name.

    Raises:
        ValueError: the engine was changed or is for another GPU or TensorRT; names the command that builds it again.
        RuntimeError: CUDA or TensorRT fails, as where there is no driver.
        ImportError: cuda-python or TensorRT is not installed.
    """
    cuda = importlib.import_module("cuda.bindings.runtime")
    manifest = json.loads((HERE / "manifest.json").read_text("utf-8"))
    runtime, engine = _engine(cuda, manifest)
    context, stream = engine.create_execution_context(), _cuda(cuda.cudaStreamCreate())
    places, spans = {}, manifest["spans"] | manifest["output_spans"]
    for name, shape in (manifest["inputs"] | manifest["outputs"]).items():
        largest = spans[name]["max"] if name in spans else shape
        places[name] = _cuda(cuda.cudaMalloc(np.empty(largest, manifest["dtypes"][name]).nbytes))
        context.set_tensor_address(name, int(places[name]))

    def run(*arrays: np.ndarray) -> dict[str, np.ndarray]:
        for name, array in by_name(manifest, arrays).items():
            _cuda(
                cuda.cudaMemcpy(
                    places[name], array.ctypes.data, array.nbytes, cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
                )
            )
            if name in spans:
                context.set_input_shape(name, array.shape)
        if not context.execute_async_v3(int(stream)):
            raise RuntimeError(f"{ENGINE}: {manifest['target']} refuses to run it")
        _cuda(cuda.cudaStreamSynchronize(stream))
        shapes = {
            name: tuple(context.get_tensor_shape(name)) if name in spans else shape
            for name, shape in manifest["outputs"].items()
        }
        outputs = {name: np.empty(shape, manifest["dtypes"][name]) for name, shape in shapes.items()}
        for name, array in outputs.items():
            _cuda(
                cuda.cudaMemcpy(
                    array.ctypes.data, places[name], array.nbytes, cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
                )
            )
        return outputs

    run.keeps = (runtime, engine, context)  # pyright: ignore[reportFunctionMemberAccess]
    return run


def _engine(cuda: Any, manifest: dict[str, Any]) -> tuple[Any, Any]:
    """The runtime and the engine, which must be unchanged, and for this GPU and this TensorRT."""
    target, compatible = manifest["target"], manifest["build"].get("version_compatible")
    trt = importlib.import_module(target.replace("-", "_"))
    again = f"build it again with `lathe export {HERE / 'model.onnx'} --target {target} --out NEW`"
    data = ENGINE.read_bytes()
    if hashlib.sha256(data).hexdigest() != manifest["files"]["model.engine"]:
        raise ValueError(f"{ENGINE} was changed: {again}")
    wanted = manifest["runtime"]["version"]
    if trt.__version__ != wanted and not compatible:
        raise ValueError(f"{ENGINE} is of {target} {wanted}, here is {trt.__version__}: {again}")
    attributes = cuda.cudaDeviceAttr
    parts = attributes.cudaDevAttrComputeCapabilityMajor, attributes.cudaDevAttrComputeCapabilityMinor
    here = ".".join(str(_cuda(cuda.cudaDeviceGetAttribute(part, 0))) for part in parts)
    capabilities = manifest["compute_capabilities"]
    if capabilities and here not in capabilities:
        raise ValueError(f"{ENGINE} is for compute capability {', '.join(capabilities)}, this GPU has {here}: {again}")
    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    if compatible:
        runtime.engine_host_code_allowed = True
    if hasattr(runtime, "get_engine_validity"):
        validity, flags = runtime.get_engine_validity(data)
        if validity == trt.EngineValidity.INVALID:
            known = trt.EngineInvalidityDiagnostics.__members__
            causes = [name for name, flag in known.items() if int(flags) & int(flag)]
            raise ValueError(f"{ENGINE} is not valid here ({', '.join(causes) or 'no cause given'}): {again}")
    engine = runtime.deserialize_cuda_engine(data)
    if engine is None:
        raise ValueError(f"{ENGINE} does not load with {target} {trt.__version__}: {again}")
    return runtime, engine


def _cuda(result: tuple[Any, ...]) -> Any:
    """What a call returns; RuntimeError with the name of its error where it fails."""
    error, *values = result
    if int(error):
        driver = any(word in str(error) for word in ("NoDevice", "InsufficientDriver", "StubLibrary"))
        raise RuntimeError(f"CUDA: {error}{': it needs an NVIDIA GPU and its driver' if driver else ''}")
    return values[0] if values else None


def by_name(manifest: dict, arrays: tuple[np.ndarray, ...]) -> dict[str, np.ndarray]:
    """The inputs by name; nothing is converted: ValueError where one does not fit."""
    if len(arrays) != len(manifest["inputs"]):
        raise ValueError(
            f"{len(arrays)} arrays are given, the inputs are {', '.join(manifest['inputs'])}: python run.py INPUT.npy "
            "..."
        )
    made = {}
    for (name, shape), array in zip(manifest["inputs"].items(), arrays, strict=True):
        dtype, found = np.dtype(manifest["dtypes"][name]), list(np.shape(array))
        span = manifest["spans"].get(name) or {"min": shape, "max": shape}
        fits = len(found) == len(shape) and all(
            a <= size <= b for a, size, b in zip(span["min"], found, span["max"], strict=True)
        )
        if not fits or np.asarray(array).dtype != dtype:
            wanted = shape if span["min"] == span["max"] else f"{span['min']} to {span['max']}"
            raise ValueError(f"input {name} is {dtype} {wanted}, given {np.asarray(array).dtype} {found}")
        made[name] = np.asarray(array, dtype, order="C")
    return made


def array_of(path: str) -> np.ndarray:
    """The array of an .npy file; ValueError where it is not one."""
    with open(path, "rb") as file:  # noqa: PTH123
        try:
            return np.lib.format.read_array(file, allow_pickle=False)
        except (ValueError, MemoryError, TokenError) as error:
            raise ValueError(f"{path} is not an .npy file of numbers ({error})") from error


def main() -> None:
    """Run the network on the arrays of files, and say what comes out.

    Exit code 2, with the reason in one line, where it cannot.
    """
    try:
        outputs = load()(*map(array_of, sys.argv[1:]))
    except (OSError, ValueError, RuntimeError, MemoryError) as error:
        sys.stderr.write(f"run.py: {' '.join(str(error).split())}\n")
        sys.exit(2)
    except ImportError as error:
        sys.stderr.write(f"run.py: {error}: README.md says what to install\n")
        sys.exit(2)
    for name, output in outputs.items():
        best = f" largest at {output.argmax(1)}" if output.ndim == 2 else ""
        print(f"{name} {output.dtype} {output.shape} from {output.min()} to {output.max()}{best}")


if __name__ == "__main__":
    main()
