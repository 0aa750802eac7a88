"""Use the backbone from `lathe search prunet` as the feature pyramid under a detector's head.

`python pyramid.py --found RUN`.
"""

import argparse
from pathlib import Path

import detect
import steps
import torch
from torch import Tensor, nn

import deploy
from deploy.lowering import Features
from latency.protocol import FAST
from search import finished, load_architecture


def backbone_of(path: Path) -> nn.Module:
    """Return the trained network of a finished run.

    From an `architecture.json` alone, it has new weights.
    """
    return finished.load(path).network() if path.is_dir() else load_architecture(path).build()


def levels(backbone: nn.Module, example: Tensor, count: int) -> list[str]:
    """Return the last blocks of the lowest resolutions, highest resolution first."""
    last: dict[int, str] = {}
    hooks = [
        module.register_forward_hook(
            lambda _, __, made, name=name: last.update({made.shape[-1]: name} if made.ndim == 4 else {})
        )
        for name, module in backbone.named_children()
    ]
    with torch.no_grad():
        backbone.eval()(example)
    for hook in hooks:
        hook.remove()
    return [last[side] for side in sorted(last, reverse=True)[-count:]]


class PyramidDetector(nn.Module):
    """Two levels of a backbone, merged at the lower resolution, and the head of `detect.py`."""

    def __init__(self, backbone: nn.Module, example: Tensor) -> None:
        super().__init__()
        self.pyramid: Features = deploy.features(backbone, levels(backbone, example, 2))
        with torch.no_grad():
            high, low = (made.shape[1] for made in self.pyramid(example))
        self.down, self.lateral = nn.Conv2d(high, 64, 3, 2, 1), nn.Conv2d(low, 64, 1)
        self.head = nn.Sequential(detect.conv(64, 64), nn.Conv2d(64, 5, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map images to the outputs of `detect.Detector`."""
        high, low = self.pyramid(x)
        return self.head(self.down(high) + self.lateral(low))


def main() -> None:
    """Train, ship and verify the detector."""
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--found", type=Path, required=True, help="directory of a finished run of prunet-cifar, or an architecture.json"
    )
    given = steps.options(parser)
    torch.manual_seed(given.seed)
    (images, boxes), (held_out, truth) = (
        detect.drawn(32 if given.small else 1000, 0),
        detect.drawn(8 if given.small else 250, 1),
    )
    example = torch.zeros(1, 3, detect.SIDE, detect.SIDE)
    network = PyramidDetector(backbone_of(given.found), example)
    detect.train(network, images, boxes, 1 if given.small else 10, decay=True)
    bundle = given.out / "bundle"
    quality = detect.quality_of(truth)
    made = deploy.export(
        network.eval(),
        example,
        target="onnxruntime",
        out=bundle,
        protocol=FAST,
        evidence=deploy.Evidence(samples=held_out, quality=quality),
    )
    steps.lathe("verify", bundle)
    steps.show(given, {"pyramid": made.manifest})


if __name__ == "__main__":
    main()
