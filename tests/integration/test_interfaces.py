"""Networks with inputs and outputs of every kind ship: each bundle verifies, and its run.py runs it."""

import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import safetensors.numpy
import torch
from torch import nn

from deploy import export, verify
from unit.deploy.helpers import QUICK

IMAGE = torch.zeros(1, 3, 6, 6)
GLOBAL = torch.get_rng_state()
torch.manual_seed(0)  # of the networks below: a logarithm of what is almost 0 differs between runtimes


class Of(nn.Module):
    """A convolution, and a function of it and the inputs."""

    def __init__(self, function):
        super().__init__()
        self.conv, self.function = nn.Conv2d(3, 4, 1), function

    def forward(self, x, *more):
        return self.function(self.conv, x, *more)


class Recogniser(nn.Module):
    """Gives [T, B, C], as text recognisers do."""

    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(18, 5), nn.Linear(5, 7)

    def forward(self, x):
        return self.head(self.lstm(x.permute(3, 0, 1, 2).flatten(2))[0])


class Encoder(nn.Module):
    """Tokens and a mask to a dictionary with a tuple and None in it."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(50, 8), nn.Linear(8, 5)

    def forward(self, ids, mask, *, scale=None):
        x = self.embed(ids)
        x = x + (x @ x.mT).masked_fill(~mask[:, None], float("-inf")).softmax(-1) @ x
        return {"logits": self.head(x[:, 0]) * scale["by"], "hidden": (x, None)}


@dataclass
class Heads:
    logits: torch.Tensor
    maps: list


TOKENS = {"ids": torch.arange(6)[None], "mask": torch.ones(1, 6, dtype=torch.bool), "scale": {"by": torch.tensor(2.0)}}
HALF = {name: value if name != "scale" else {"by": torch.tensor(2.0).half()} for name, value in TOKENS.items()}

ZOO = {
    "time first": (Recogniser(), IMAGE, {"output": (6, 1, 7)}, ["float32", "float32"]),
    "scalar": (Of(lambda conv, x: conv(x).mean()), IMAGE, {"output": ()}, ["float32", "float32"]),
    "unbatched": (Of(lambda conv, x: conv(x)[0]), IMAGE, {"output": (4, 6, 6)}, ["float32", "float32"]),
    "batch reduced": (Of(lambda conv, x: conv(x).sum(0)), IMAGE.repeat(3, 1, 1, 1), {"output": (4, 6, 6)}, ["float32", "float32"]),
    "constant beside": (
        Of(lambda conv, x: [conv(x), torch.arange(3)]), IMAGE, {"output0": (1, 4, 6, 6), "output1": (3,)}, ["float32", "float32", "int64"],
    ),
    "batch statistics": (
        nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)), IMAGE.repeat(4, 1, 1, 1), {"output": (4, 3, 6, 6)}, ["float32"] * 2,
    ),
    "booleans and indices": (
        Of(lambda conv, x: (conv(x) > 0, conv(x).argmax(1))), IMAGE, {"output0": (1, 4, 6, 6), "output1": (1, 6, 6)}, ["float32", "bool", "int64"],
    ),
    "bytes to a dataclass": (
        Of(lambda conv, x: Heads(conv(x.float() / 255).mean((2, 3)), [x])), IMAGE.byte(), {"logits": (1, 4), "maps.0": (1, 3, 6, 6)}, ["uint8", "float32", "uint8"],
    ),
    "tokens": (Encoder(), TOKENS, {"logits": (1, 5), "hidden.0": (1, 6, 8)}, ["int64", "bool", "float32", "float32", "float32"]),
    "tokens in half precision": (Encoder().half(), HALF, {"logits": (1, 5), "hidden.0": (1, 6, 8)}, ["int64", "bool", "float16", "float16", "float16"]),
    "float64": (Of(lambda conv, x: conv(x)).double(), IMAGE.double(), {"output": (1, 4, 6, 6)}, ["float64", "float64"]),
    "NaN in both": (Of(lambda conv, x: conv(x).log()), IMAGE, {"output": (1, 4, 6, 6)}, ["float32", "float32"]),
}  # fmt: skip

torch.set_rng_state(GLOBAL)


@pytest.mark.parametrize("name", ZOO)
def test_it_ships_and_its_script_computes_what_is_kept(name, tmp_path):
    module, example, outputs, dtypes = ZOO[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = export(module.eval(), example, target="onnxruntime", out=tmp_path / "out", protocol=QUICK)
    manifest = made.manifest
    assert (manifest.outputs, list(manifest.dtypes.values()), manifest.failures) == (outputs, dtypes, [])
    assert verify(made.directory).failures == []
    readme = (made.directory / "README.md").read_text()
    assert all(f"`{value}` | {dtype} |" in readme for value, dtype in manifest.dtypes.items())
    kept = safetensors.numpy.load((made.directory / "reference.safetensors").read_bytes())
    paths = [tmp_path / f"{i}.npy" for i in range(len(manifest.inputs))]
    for value, path in zip(manifest.inputs, paths, strict=True):
        np.save(path, kept[f"inputs.{value}"][0, ...])
    done = subprocess.run(
        [sys.executable, made.directory / "run.py", *paths], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(" from ")[0] for line in lines] == [
        f"{value} {manifest.dtypes[value]} {shape}" for value, shape in outputs.items()
    ]


def test_what_is_not_finite_in_every_form_is_said(tmp_path):
    module, example, *_ = ZOO["NaN in both"]
    made = export(module.eval(), example, target="onnxruntime", out=tmp_path / "out", protocol=QUICK)
    assert made.manifest.validation[-1].note.endswith("values of output are NaN or infinite, as in the reference")
    assert made.manifest.validation[-1].note in (made.directory / "README.md").read_text()
