"""A detector pruned in its own training loop, with its own optimizer, data and loss: `search.masked` adds a penalty."""

import copy
from functools import partial

import numpy as np
import steps
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deploy
import search
from deploy.metric import Figure, Metric, Quality
from deploy.samples import Samples, Tensors
from latency import LatencyTable
from latency.protocol import FAST
from search.budget import Budget
from search.own_loop import MaskedSearch

SIDE, CELL = 64, 8
"""Side length in pixels of an image, and of a cell, which predicts whether it contains the centre of a box."""
GRID = SIDE // CELL

Box = tuple[float, float, float, float]
"""Centre, width and height of a box in pixels."""
Boxes = list[list[Box]]
"""The boxes of each image."""


def conv(c_in: int, c_out: int, stride: int = 1) -> nn.Sequential:
    """Return a convolution with its norm and activation."""
    return nn.Sequential(nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU())


class Detector(nn.Module):
    """A body, a feature pyramid of two levels, and an anchor-free head: for each cell, a score and a box."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 16, 2), conv(16, 32, 2))
        self.c3, self.c4 = nn.Sequential(conv(32, 64, 2), conv(64, 64)), nn.Sequential(conv(64, 128, 2), conv(128, 128))
        self.lateral3, self.lateral4 = nn.Conv2d(64, 64, 1), nn.Conv2d(128, 64, 1)
        self.head = nn.Sequential(conv(64, 64), nn.Conv2d(64, 5, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map images to [images, 5, GRID, GRID].

        Logit of a box, its centre in the cell, and the logarithm of its size in cells.
        """
        c3 = self.c3(self.stem(x))
        p4 = self.lateral4(self.c4(c3))
        return self.head(self.lateral3(c3) + F.interpolate(p4, scale_factor=2.0, mode="nearest"))


def make() -> nn.Module:
    """Return the network before pruning."""
    return Detector()


def drawn(count: int, seed: int) -> tuple[Tensor, Boxes]:
    """Draw images of one to three bright boxes in noise; return them with the boxes."""
    draw = np.random.default_rng(seed)
    images, boxes = 0.3 * draw.standard_normal((count, 3, SIDE, SIDE)), list[list[Box]]()
    for image in images:
        found = []
        for _ in range(draw.integers(1, 4)):
            w, h = draw.integers(6, 24, 2)
            x, y = draw.integers(0, SIDE - w), draw.integers(0, SIDE - h)
            image[:, y : y + h, x : x + w] += draw.uniform(0.4, 1.0, (3, 1, 1))
            found.append((x + w / 2, y + h / 2, float(w), float(h)))
        boxes.append(found)
    return torch.from_numpy(images.astype(np.float32)), boxes


def targets_of(boxes: Boxes) -> Tensor:
    """Return the target outputs for each cell, [images, 5, GRID, GRID]."""
    wanted = torch.zeros(len(boxes), 5, GRID, GRID)
    for target, found in zip(wanted, boxes, strict=True):
        for x, y, w, h in found:
            target[:, int(y / CELL), int(x / CELL)] = torch.tensor(
                [1, x / CELL % 1, y / CELL % 1, np.log(w / CELL), np.log(h / CELL)]
            )
    return wanted


def loss_of(outputs: Tensor, wanted: Tensor) -> Tensor:
    """Return the cross-entropy of the scores plus the L1 distance of boxes, in cells that have one."""
    there = wanted[:, :1]
    return F.binary_cross_entropy_with_logits(outputs[:, :1], there, pos_weight=torch.tensor(4.0)) + (
        there * (outputs[:, 1:] - wanted[:, 1:]).abs()
    ).sum() / there.sum().clamp(min=1)


def detections(output: Tensor) -> list[tuple[float, Box]]:
    """Return the boxes of one image with their scores, from cells that score higher than their neighbours."""
    scores = torch.where(output[0] == F.max_pool2d(output[:1], 3, 1, 1)[0], output[0].sigmoid(), 0.0)
    found = []
    for place in scores.flatten().argsort(descending=True)[:8].tolist():
        row, column = divmod(place, GRID)
        score, (dx, dy), (w, h) = (
            float(scores[row, column]),
            output[1:3, row, column].tolist(),
            output[3:, row, column].exp().tolist(),
        )
        found.append((score, (CELL * (column + dx), CELL * (row + dy), CELL * w, CELL * h)))
    return found


def iou(one: Box, other: Box) -> float:
    """Return the intersection over union."""
    (x, y, w, h), (other_x, other_y, other_w, other_h) = one, other
    across = min(x + w / 2, other_x + other_w / 2) - max(x - w / 2, other_x - other_w / 2)
    down = min(y + h / 2, other_y + other_h / 2) - max(y - h / 2, other_y - other_h / 2)
    inside = max(0.0, across) * max(0.0, down)
    return inside / (w * h + other_w * other_h - inside)


def matched(output: Tensor, wanted: list[Box]) -> list[tuple[float, bool]]:
    """Return for each detection in an image its score and whether it matches a box.

    IoU of at least 0.5, each box once.
    """
    left, found = list(wanted), []
    for score, box in detections(output):
        best = max(left, key=partial(iou, box), default=None)
        hit = best is not None and iou(box, best) >= 0.5
        if hit:
            left.remove(best)
        found.append((score, hit))
    return found


def average_precision(images: list[tuple[int, list[tuple[float, bool]]]]) -> float:
    """Return the area under the precision-recall curve, given the number of boxes and the matches of each image."""
    ranked = sorted((pair for _, found in images for pair in found), reverse=True)
    hits = np.cumsum([hit for _, hit in ranked])
    precision = np.maximum.accumulate((hits / np.arange(1, len(hits) + 1))[::-1])[::-1]
    return float(np.sum(precision * np.diff(hits, prepend=0)) / sum(count for count, _ in images))


def quality_of(boxes: Boxes) -> Quality:
    """Return average precision as a metric, with an interval from a bootstrap over the images."""

    def of(outputs: Tensors, samples: Samples) -> Figure:
        (found,) = (torch.from_numpy(samples.joined(output)) for output in outputs.values())
        images = [(len(wanted), matched(output, wanted)) for output, wanted in zip(found, boxes, strict=True)]
        draw = np.random.default_rng(0)
        again = [
            average_precision([images[row] for row in draw.integers(0, len(images), len(images))]) for _ in range(200)
        ]
        low, high = np.quantile(again, (0.025, 0.975)).tolist()
        return Figure(value=average_precision(images), low=low, high=high)

    return Quality(Metric(name="AP50", unit="%"), of)


def train(
    network: nn.Module, images: Tensor, boxes: Boxes, epochs: int, *, decay: bool, state: MaskedSearch | None = None
) -> None:
    """Train with Adam, adding the penalty during a search.

    Args:
        network: modified in place.
        images: training images.
        boxes: boxes in the images.
        epochs: number of epochs.
        decay: whether the learning rate falls to 0 along half a cosine.
        state: state of the search.
    """
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3, weight_decay=1e-4)
    wanted, each = targets_of(boxes), max(1, len(images) // 32)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * each)
    network.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(32)[:each]:
            loss = loss_of(network(images[rows]), wanted[rows])
            if state:
                loss = loss + state.penalty()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if state:
                state.step()
            if decay:
                schedule.step()


def main() -> None:
    """Find a network with 60 % of the latency, and compare it with uniform widths trained for as long."""
    given = steps.options()
    torch.manual_seed(given.seed)
    pretrain, searched, finetune = (1, 1, 1) if given.small else (8, 6, 8)
    (images, boxes), (held_out, truth) = drawn(32 if given.small else 1000, 0), drawn(8 if given.small else 250, 1)
    table = LatencyTable.load(steps.profile(given, f"{__file__}:make", f"3x{SIDE}x{SIDE}"))
    network, example = make(), torch.zeros(1, 3, SIDE, SIDE)
    train(network, images, boxes, pretrain, decay=True)
    unpruned = copy.deepcopy(network)

    budget = Budget(
        us=given.budget * table.predict(search.spaces.of_module(network, example, name="detector").network()).us
    )
    with search.masked(network, example, budget, table) as state:
        train(network, images, boxes, searched, decay=False, state=state)
    found = {"pas": state.squeezed()}
    if not given.small:
        found["uniform"] = search.pruned(unpruned, example, budget, table)
        train(found["uniform"], images, boxes, searched, decay=False)  # as long as the search
    for small in found.values():
        train(small, images, boxes, finetune, decay=True)

    ship = partial(
        deploy.export,
        target="onnxruntime",
        evidence=deploy.Evidence(samples=held_out, quality=quality_of(truth), baseline=unpruned),
        budget_ms=budget.amount / 1000,
    )
    shipped = {}
    for name, small in found.items():
        print(f"$ export {name}", flush=True)
        shipped[name] = ship(small, example, out=given.out / f"{name}-bundle", protocol=FAST).manifest
        steps.lathe("verify", given.out / f"{name}-bundle")
    steps.show(given, shipped)


if __name__ == "__main__":
    main()
