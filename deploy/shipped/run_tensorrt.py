"""Runs the engine of this directory with numpy, TensorRT and cuda-python alone: `python run.py INPUT.npy`, or `load()` from your code."""

import hashlib
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

cuda: Any = importlib.import_module("cuda.bindings.runtime")
HERE = Path(__file__).parent


def load() -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """A function from one batch, in the `input_shape` of manifest.json, to the outputs by name.

    It leaves with the reason, and the command that builds the engine again, where the file was changed or is for another GPU or TensorRT.
    """
    manifest = json.loads((HERE / "manifest.json").read_text("utf-8"))
    target, engine_file = manifest["target"], HERE / "model.engine"
    trt = importlib.import_module(target.replace("-", "_"))
    again = f"build it again with `lathe export {HERE / 'model.onnx'} --target {target} --out NEW`"
    data = engine_file.read_bytes()
    if hashlib.sha256(data).hexdigest() != manifest["files"]["model.engine"]:
        sys.exit(f"{engine_file} was changed: {again}")
    wanted = manifest["runtime"]["version"]
    if trt.__version__ != wanted and not manifest["build"].get("version_compatible"):
        sys.exit(f"{engine_file} is of {target} {wanted}, here is {trt.__version__}: {again}")
    major, minor = (_cuda(cuda.cudaDeviceGetAttribute(which, 0)) for which in _CAPABILITY)
    capabilities = manifest["compute_capabilities"]
    if capabilities and f"{major}.{minor}" not in capabilities:
        sys.exit(f"{engine_file} is for compute capability {', '.join(capabilities)}, this GPU has {major}.{minor}: {again}")
    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    if manifest["build"].get("version_compatible"):
        runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(data)
    if engine is None:
        sys.exit(f"{engine_file} does not load with {target} {trt.__version__}: {again}")
    context, stream = engine.create_execution_context(), _cuda(cuda.cudaStreamCreate())
    arrays, places, inputs = {}, {}, []
    for name in (engine.get_tensor_name(i) for i in range(engine.num_io_tensors)):
        arrays[name] = np.empty(tuple(engine.get_tensor_shape(name)), trt.nptype(engine.get_tensor_dtype(name)))
        places[name] = _cuda(cuda.cudaMalloc(arrays[name].nbytes))
        context.set_tensor_address(name, int(places[name]))
        if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
            inputs.append(name)

    def run(x: np.ndarray) -> dict[str, np.ndarray]:
        (into,) = inputs
        x = np.ascontiguousarray(x, arrays[into].dtype).reshape(arrays[into].shape)
        _cuda(cuda.cudaMemcpy(places[into], x.ctypes.data, x.nbytes, cuda.cudaMemcpyKind.cudaMemcpyHostToDevice))
        if not context.execute_async_v3(int(stream)):
            sys.exit(f"{engine_file}: {target} refuses to run it")
        _cuda(cuda.cudaStreamSynchronize(stream))
        outputs = {name: array.copy() for name, array in arrays.items() if name not in inputs}
        for name, array in outputs.items():
            _cuda(cuda.cudaMemcpy(array.ctypes.data, places[name], array.nbytes, cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost))
        return outputs

    run.keeps = (runtime, engine, context)  # pyright: ignore[reportFunctionMemberAccess]
    return run


_CAPABILITY = (
    cuda.cudaDeviceAttr.cudaDevAttrComputeCapabilityMajor,
    cuda.cudaDeviceAttr.cudaDevAttrComputeCapabilityMinor,
)


def _cuda(result: tuple[Any, ...]) -> Any:
    """What a call returns; leaves with the name of its error where it fails."""
    error, *values = result
    if int(error):
        sys.exit(f"CUDA: {error}")
    return values[0] if values else None


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python run.py INPUT.npy")
    for name, output in load()(np.load(sys.argv[1])).items():
        print(name, output.shape, "largest at", output.reshape(len(output), -1).argmax(1))
