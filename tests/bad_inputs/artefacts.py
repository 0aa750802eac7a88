"""Sound artefacts of every kind, tiny, each made by the product itself: what the cases damage."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from latency import BlockSpec, Workload, blocks_zip
from latency.profile import overhead_onnx

TABLE, BLOCKS, ONNX, SAMPLES, IMAGES = "t.latency.jsonl", "toy.blocks.zip", "sound.onnx", "samples.npy", "images"
RUN, BUNDLE, PAGE, PICTURE = "run", "bundle", "page.html", "picture.svg"

SEARCH_WORDS = (
    "search",
    "pas",
    "--space",
    "repvgg-mini",
    "--data",
    f"folder:{IMAGES}",
    "--budget-fraction",
    "0.7",
    "--out",
)
EPOCHS = ("--pretrain-epochs", "1", "--search-epochs", "1", "--finetune-epochs", "1")
COMMANDS = (
    ("profile", BLOCKS, "--backend", "simulated:seed=0", "--protocol", "fast", "--out", TABLE),
    (*SEARCH_WORDS, RUN, *EPOCHS),
    ("export", ONNX, "--samples", SAMPLES, "--protocol", "fast", "--out", BUNDLE),
    ("report", BUNDLE, "--out", PAGE),
    ("table", "show", TABLE, "--plot", PICTURE),
)


def make(directory: Path) -> None:
    """Make all of them in an empty directory."""
    specs = [BlockSpec.parse(f"conv(h=1,w=1)[c_in=1,c_out={width}]") for width in (1, 2, 3)]
    works = [*(Workload.block(spec, overhead_onnx) for spec in specs), Workload.network(specs, overhead_onnx)]
    blocks_zip.write(directory / BLOCKS, works, lowering="7", space="toy", precision="fp32")
    _network(directory / ONNX)
    np.save(directory / SAMPLES, np.random.default_rng(0).standard_normal((4, 3, 4, 4)).astype(np.float32))
    _images(directory / IMAGES)
    for command in COMMANDS:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "lathe", *command], cwd=directory, capture_output=True, text=True, check=False
        )
        assert done.returncode in (0, 1), (command, done.stderr)


def _network(path: Path) -> None:
    weight = numpy_helper.from_array(np.ones((2, 3, 1, 1), np.float32), "w")
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", [1, 3, 4, 4]), ("y", [1, 2, 4, 4]))
    ]
    graph = helper.make_graph([helper.make_node("Conv", ["x", "w"], ["y"], "first")], "g", ends[:1], ends[1:], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)


def _images(path: Path) -> None:
    from PIL import Image

    for part, count in (("train", 8), ("test", 4)):
        for index, name in enumerate(("a", "b", "c")):
            (path / part / name).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (32, 32), (80 * index, 9 * number, 0)).save(path / part / name / f"{number}.png")
