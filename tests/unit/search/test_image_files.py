import numpy as np
import pytest
import torch
from PIL import Image

from search import SearchError, data
from search.image_files import ImageFiles


@pytest.fixture
def files(tmp_path):
    draw = np.random.default_rng(0)
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for index in range(10):
            Image.fromarray(draw.integers(0, 255, (9, 12, 3), dtype=np.uint8)).save(tmp_path / label / f"{index}.png")
    return tmp_path


def test_a_folder_that_is_too_large_for_memory_is_shown_as_one_that_is_not(files, monkeypatch):
    kept = data.folder(files, 8)
    monkeypatch.setattr(data, "IN_MEMORY_BYTES", 0)
    read = data.folder(files, 8)
    assert isinstance(read.train.images, ImageFiles)
    assert (read.preprocessing, read.labels) == (kept.preprocessing, kept.labels)
    batches = [list(each.training_batches(4, torch.Generator().manual_seed(0))) for each in (kept, read)]
    for (images, labels), (images_too, labels_too) in zip(*batches, strict=True):
        assert torch.equal(images, images_too)
        assert torch.equal(labels, labels_too)
    for (images, _), (images_too, _) in zip(kept.held_out_batches(3), read.held_out_batches(3), strict=True):
        assert torch.equal(images, images_too)
    assert read.of_classes([1]).train.images.files == tuple(
        file for file in read.train.images.files if file.parent.name == "b"
    )
    before = read.sha256()
    Image.new("RGB", (50, 50)).save(read.train.images.files[0])
    assert data.folder(files, 8).sha256() != before
    read.train.images.files[0].write_bytes(b"\x89PNG")
    with pytest.raises(SearchError, match=r"\d\.png cannot be read as an image .*: fix or remove it"):
        read.train.images[torch.tensor([0])]
