from dataclasses import replace

import pytest
import torch

from search.augment import Augmentation
from search.data import digits, random_parts


def test_normalised_training_images_have_mean_0_and_deviation_1():
    data = digits(16)
    images = data.normalise(data.train.images)
    assert images.mean().abs() < 1e-3
    assert (images.std() - 1).abs() < 1e-3


def test_an_epoch_shows_every_image_once_in_an_order_of_the_generator(stripes):
    plain = Augmentation(shift_px=0, flip=False)
    data = replace(stripes, augmentation=plain)
    epochs = [
        torch.cat([x for x, _ in data.training_batches(16, torch.Generator().manual_seed(seed))]) for seed in (0, 0, 1)
    ]
    assert torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[0], epochs[2])
    everything = data.normalise(data.train.images).flatten(1)
    assert torch.equal(epochs[2].flatten(1).sort(0).values, everything.sort(0).values)


@pytest.mark.parametrize(("size", "batches"), [(60, [60]), (32, [32, 32]), (1000, [64])])
def test_what_does_not_fill_a_batch_is_left_out(stripes, size, batches):
    assert [len(y) for _, y in stripes.training_batches(size, torch.Generator())] == batches


def test_all_held_out_images_are_shown(stripes):
    assert torch.equal(torch.cat([y for _, y in stripes.held_out_batches(10)]), stripes.held_out.labels)


def test_a_part_of_the_images_is_shown_alone(stripes):
    generator = torch.Generator()
    rows, _ = random_parts(64, (0.5, 0.5), generator)
    batches = stripes.training_batches(10, generator, rows)
    shown = [y for _, y in batches]
    assert len(batches) == len(shown) == 3
    assert all(len(y) == 10 for y in shown)
    data = replace(stripes, augmentation=Augmentation())
    images = torch.cat([x for x, _ in data.training_batches(32, generator, rows)])
    assert torch.equal(
        images.flatten(1).sort(0).values, data.normalise(data.train.images[rows]).flatten(1).sort(0).values
    )
    plain = list(stripes.plain_batches(20, rows))
    assert torch.equal(torch.cat([y for _, y in plain]), stripes.train.labels[rows])
    assert torch.equal(torch.cat([x for x, _ in plain]), stripes.normalise(stripes.train.images[rows]))


def test_some_classes_alone_are_numbered_anew():
    whole = digits(8)
    some = whole.of_classes([2, 7])
    assert some.labels == ("2", "7")
    for part, every in ((some.train, whole.train), (some.held_out, whole.held_out)):
        assert set(part.labels.tolist()) == {0, 1}
        assert torch.equal(part.images[part.labels == 1], every.images[every.labels == 7])
    assert (some.preprocessing, some.augmentation) == (whole.preprocessing, whole.augmentation)
