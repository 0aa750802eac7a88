"""Runs the network of this directory with numpy and ONNX Runtime alone: `python run.py INPUT.npy`, or `load()` from your own code."""

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime

HERE = Path(__file__).parent


def load() -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """A function from one batch, float32 in the `input_shape` of manifest.json, to the outputs by name."""
    manifest = json.loads((HERE / "manifest.json").read_text("utf-8"))
    model = (HERE / "model.onnx").read_bytes()
    if hashlib.sha256(model).hexdigest() != manifest["files"]["model.onnx"]:
        sys.exit(f"{HERE / 'model.onnx'} was changed: build it again with `lathe export SOURCE --target onnxruntime --out NEW`")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = (manifest["device"] or {}).get("threads", 1)
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names, into = [value.name for value in session.get_outputs()], session.get_inputs()[0].name

    def run(x: np.ndarray) -> dict[str, np.ndarray]:
        return {name: np.asarray(value) for name, value in zip(names, session.run(names, {into: x}), strict=True)}

    return run


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python run.py INPUT.npy")
    for name, output in load()(np.load(sys.argv[1]).astype(np.float32)).items():
        print(name, output.shape, "largest at", output.reshape(len(output), -1).argmax(1))
