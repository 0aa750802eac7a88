"""Runs the network of this directory with numpy and ONNX Runtime alone: `python run.py INPUT.npy ...`, or `load()` from your own code."""

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from tokenize import TokenError

import numpy as np
import onnxruntime

HERE = Path(__file__).parent


def load() -> Callable[..., dict[str, np.ndarray]]:
    """A function from one array for each of the `inputs` of manifest.json, in their order, to the outputs by name.

    Raises:
        ValueError: the model was changed.
    """
    manifest = json.loads((HERE / "manifest.json").read_text("utf-8"))
    model = (HERE / "model.onnx").read_bytes()
    if hashlib.sha256(model).hexdigest() != manifest["files"]["model.onnx"]:
        raise ValueError(f"{HERE / 'model.onnx'} was changed: build it again with `lathe export SOURCE --target onnxruntime --out NEW`")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = (manifest["device"] or {}).get("threads", 1)
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def run(*arrays: np.ndarray) -> dict[str, np.ndarray]:
        values = session.run(list(manifest["outputs"]), by_name(manifest, arrays))
        return {name: np.asarray(value) for name, value in zip(manifest["outputs"], values, strict=True)}

    return run


def by_name(manifest: dict, arrays: tuple[np.ndarray, ...]) -> dict[str, np.ndarray]:
    """The inputs by name, in their types; ValueError where one does not fit."""
    if len(arrays) != len(manifest["inputs"]):
        raise ValueError(f"{len(arrays)} arrays are given, the inputs are {', '.join(manifest['inputs'])}: python run.py INPUT.npy ...")
    made = {}
    for (name, shape), array in zip(manifest["inputs"].items(), arrays, strict=True):
        dtype = np.dtype(manifest["dtypes"][name])
        if list(np.shape(array)) != shape or not np.can_cast(np.asarray(array).dtype, dtype, "same_kind"):
            raise ValueError(f"input {name} is {dtype} {shape}, given {np.asarray(array).dtype} {list(np.shape(array))}")
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
    """Run the network on the arrays of files, and say what comes out; exit code 2, with the reason in one line, where it cannot."""
    try:
        outputs = load()(*map(array_of, sys.argv[1:]))
    except (OSError, ValueError, RuntimeError, MemoryError) as error:
        sys.stderr.write(f"run.py: {' '.join(str(error).split())}\n")
        sys.exit(2)
    for name, output in outputs.items():
        best = f" largest at {output.argmax(1)}" if output.ndim == 2 else ""
        print(f"{name} {output.dtype} {output.shape} from {output.min()} to {output.max()}{best}")


if __name__ == "__main__":
    main()
