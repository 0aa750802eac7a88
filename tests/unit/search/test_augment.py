"""Augmentation; torchvision itself where it is installed, its wiring by a stand-in everywhere."""

import re
import sys
import types

import pytest
import torch

from latency import MissingExtra
from latency.distribution import install_command
from search import SearchError
from search.augment import Augmentation, augment
from search.transforms import Transform, parse

EVERY = "resized-crop,crop:2,flip,randaugment,cutout:3"


def images(count: int = 40) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 8, 12), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_augmentation_shifts_with_repeated_borders_and_mirrors():
    image = torch.arange(5, dtype=torch.uint8).expand(3, 5, 5).contiguous()  # each column its number
    images = image.expand(200, 3, 5, 5)
    shown = augment(images, Augmentation(shift_px=1, flip=True), torch.Generator().manual_seed(0))
    rows = {tuple(row) for row in shown[:, 0, 0].tolist()}
    shifted = {(0, 0, 1, 2, 3), (0, 1, 2, 3, 4), (1, 2, 3, 4, 4)}
    assert rows == shifted | {row[::-1] for row in shifted}
    assert not torch.equal(shown[0], shown[1])  # each image has a draw of its own


@pytest.fixture
def v2(monkeypatch):
    """Torchvision's transforms, or a skip with the reason. Its C++ operators, which no transform needs, may be of another torch."""
    if "torchvision" not in sys.modules:
        monkeypatch.setitem(
            sys.modules, "torchvision._meta_registrations", types.ModuleType("torchvision._meta_registrations")
        )
    return pytest.importorskip(
        "torchvision.transforms.v2", reason=f"torchvision is not installed: {install_command('augment')}"
    )


@pytest.mark.parametrize("text", [*EVERY.split(","), EVERY])
def test_transforms_are_of_the_generator_and_of_each_image(v2, text):
    state = torch.get_rng_state()
    augmentation = Augmentation(transforms=parse(text) or (), fill=(9, 8, 7))
    found = [augment(images(), augmentation, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert found[0].shape == images().shape
    assert found[0].dtype == torch.uint8
    same = augment(images(1).expand(40, 3, 8, 12), augmentation, torch.Generator().manual_seed(0))
    assert len(same.flatten(1).unique(dim=0)) > 1
    shorter = augment(images()[:5], augmentation, torch.Generator().manual_seed(0))
    assert torch.equal(shorter, found[0][:5])  # an image has its own draw, whatever comes behind it


def test_flip_mirrors_and_crop_moves(v2):
    flipped = augment(images(), Augmentation(transforms=(Transform("flip", 1.0),)), torch.Generator())
    assert torch.equal(flipped, images().flip(3))
    moved = augment(images(), Augmentation(transforms=(Transform("crop", 2),), fill=(9, 8, 7)), torch.Generator())
    padded = torch.nn.functional.pad(images(), (2, 2, 2, 2))
    filled = torch.nn.functional.pad(torch.ones_like(images()), (2, 2, 2, 2)) == 0
    padded = torch.where(filled, torch.tensor([9, 8, 7], dtype=torch.uint8)[None, :, None, None], padded)
    windows = [padded[:, :, y : y + 8, x : x + 12] for y in range(5) for x in range(5)]
    for index, image in enumerate(moved):
        assert any(torch.equal(image, window[index]) for window in windows)


def test_cutout_takes_one_square_of_the_fill(v2):
    white = torch.full((40, 3, 8, 12), 255, dtype=torch.uint8)
    for image in augment(white, Augmentation(transforms=(Transform("cutout", 3),), fill=(9, 8, 7)), torch.Generator()):
        lost = (image != 255).all(0)
        assert lost.sum() == 9
        rows, columns = lost.any(1).nonzero().flatten(), lost.any(0).nonzero().flatten()
        assert len(rows) == len(columns) == 3
        assert image[:, rows[0], columns[0]].tolist() == [9, 8, 7]


@pytest.fixture
def stand_in(monkeypatch):
    """A module in the place of torchvision's; its transforms note how they are made, add 1 to an image, and draw."""
    made = []

    def maker(name):
        def make(*args, **kwargs):
            made.append((name, args, kwargs))
            return lambda image: image + torch.randint(1, 3, ()).to(torch.uint8)

        return make

    names = ("RandomHorizontalFlip", "RandomCrop", "RandomResizedCrop", "RandAugment", "RandomErasing")
    v2 = types.ModuleType("torchvision.transforms.v2")
    for name in names:
        setattr(v2, name, maker(name))

    def compose(steps):
        def every(image):
            for step in steps:
                image = step(image)
            return image

        return every

    v2.Compose = compose
    monkeypatch.setattr("search.augment._torchvision", lambda: v2)
    return made


def test_each_transform_is_made_for_the_images(stand_in):
    plain = torch.zeros(4, 3, 8, 12, dtype=torch.uint8)
    found = augment(plain, Augmentation(transforms=parse(EVERY) or (), fill=(9, 8, 7)), torch.Generator())
    assert stand_in == [
        ("RandomResizedCrop", ((8, 12),), {"scale": (0.08, 1.0), "antialias": True}),
        ("RandomCrop", ((8, 12),), {"padding": 2, "fill": (9, 8, 7)}),
        ("RandomHorizontalFlip", (0.5,), {}),
        ("RandAugment", (), {"magnitude": 9, "fill": [9, 8, 7]}),
        ("RandomErasing", (), {"p": 1.0, "scale": (9 / 96, 9 / 96), "ratio": (1.0, 1.0), "value": [9, 8, 7]}),
    ]
    assert ((found >= 5) & (found <= 10)).all()


def test_a_data_set_is_augmented_as_it_is_told(stand_in, stripes):
    data = stripes.augmented("flip,cutout:2")
    assert data.augmentation == Augmentation(
        transforms=(Transform("flip", 0.5), Transform("cutout", 2.0)), fill=(89, 89, 89)
    )
    assert stripes.augmented("auto") is stripes
    assert stripes.augmented("none").augmentation == Augmentation(fill=(89, 89, 89))
    with pytest.raises(SearchError, match=r"^--augment cutout:8 is no smaller than the images, \(8, 8\)$"):
        stripes.augmented("cutout")


def test_no_augmentation_shows_the_images_as_they_are():
    assert torch.equal(augment(images(), Augmentation(), torch.Generator()), images())


def test_a_missing_torchvision_is_said_with_its_command(stripes, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(
        MissingExtra, match=re.escape(f"this needs the package 'torchvision': {install_command('augment')}")
    ):
        stripes.augmented("flip")


def test_a_torchvision_of_another_torch_is_said(stripes, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.transforms.v2", None)
    with pytest.raises(
        MissingExtra,
        match=rf"^torchvision does not fit torch .*: {re.escape(install_command('augment', upgrade=True))}$",
    ):
        stripes.augmented("flip")
