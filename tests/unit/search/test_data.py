import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from search import SearchError
from search.data import digits, folder, load, random_parts


def write_images(
    directory: Path, count: int, colour: tuple[int, int, int], mode: str = "RGB", suffix: str = "png"
) -> None:
    directory.mkdir(parents=True)
    for index in range(count):
        Image.new("RGB", (10, 6), colour).convert(mode).save(directory / f"{index}.{suffix}")


def test_digits_are_split_by_class_and_the_same_every_time():
    data, again = digits(16), load("digits", 16)
    assert (len(data.train), len(data.held_out)) == (1438, 359)
    assert data.train.images.shape == (1438, 3, 16, 16)
    assert data.train.images.dtype == torch.uint8
    shares = torch.bincount(data.held_out.labels) / (
        torch.bincount(data.train.labels) + torch.bincount(data.held_out.labels)
    )
    assert ((shares - 0.2).abs() < 0.005).all()
    assert data.sha256() == again.sha256()
    assert data.sha256() != digits(32).sha256()


def test_digits_look_like_the_originals():
    from sklearn.datasets import load_digits

    data = digits(8)  # their own resolution: nothing is interpolated
    originals = {tuple(row) for row in (load_digits().images.reshape(-1, 64) * (255 / 16)).round().astype(int)}
    shown = {
        tuple(row) for split in (data.train, data.held_out) for row in split.images[:, 0].reshape(-1, 64).int().numpy()
    }
    assert shown == originals


def test_random_parts_are_disjoint_and_of_the_generator():
    for shares, sizes in (((0.8, 0.2), [51, 13]), ((0.5, 0.5), [32, 32]), ((0.1,), [6])):
        draws = [random_parts(64, shares, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
        for parts in draws:
            assert [len(part) for part in parts] == sizes
            assert len(torch.cat(parts).unique()) == sum(sizes)
        assert torch.equal(draws[0][0], draws[1][0])
        assert not torch.equal(draws[0][0], draws[2][0])


def test_a_part_without_images_is_refused():
    with pytest.raises(SearchError, match=r"^3 training samples are too few to be divided into shares of 0.9, 0.1$"):
        random_parts(3, (0.9, 0.1), torch.Generator())


def test_folder_with_train_and_test(tmp_path):
    for part, count in (("train", 3), ("test", 2)):
        write_images(tmp_path / part / "red", count, (200, 0, 0))
        write_images(tmp_path / part / "grey", count, (90, 90, 90), mode="L", suffix="jpg")
    (tmp_path / "train" / "red" / "notes.txt").write_text("no image")
    data = load(f"folder:{tmp_path}", 8)
    assert data.labels == ("grey", "red")
    assert (len(data.train), len(data.held_out)) == (6, 4)
    assert data.train.images[3].float().mean((1, 2)).tolist() == [200, 0, 0]
    assert data.train.images.shape == (6, 3, 8, 8)
    assert data.augmentation.flip


def test_folder_without_parts_is_split_by_class(tmp_path):
    write_images(tmp_path / "a", 10, (1, 1, 1))
    write_images(tmp_path / "b", 2, (2, 2, 2))
    data = folder(tmp_path, 8)
    assert np.bincount(data.train.labels).tolist() == [8, 1]
    assert np.bincount(data.held_out.labels).tolist() == [2, 1]


def one_class(path: Path) -> None:
    write_images(path / "a", 2, (1, 1, 1))


def no_images(path: Path) -> None:
    (path / "a").mkdir()
    (path / "a" / "readme.txt").write_text("none")


def unreadable(path: Path) -> None:
    write_images(path / "a", 2, (1, 1, 1))
    write_images(path / "b", 2, (1, 1, 1))
    (path / "b" / "1.png").write_bytes(b"no image at all")


def pipe(path: Path) -> None:
    unreadable(path)
    (path / "b" / "1.png").unlink()
    os.mkfifo(path / "b" / "1.png")


def torn(path: Path) -> None:
    write_images(path / "a", 2, (1, 1, 1))
    write_images(path / "b", 2, (1, 1, 1), suffix="jpg")
    image = path / "b" / "1.jpg"
    image.write_bytes(image.read_bytes()[:400])


def other_classes(path: Path) -> None:
    for part, names in (("train", "ab"), ("test", "ac")):
        for name in names:
            write_images(path / part / name, 1, (1, 1, 1))


def lonely(path: Path) -> None:
    write_images(path / "a", 1, (1, 1, 1))
    write_images(path / "b", 2, (1, 1, 1))


def sixteen_bits(path: Path) -> None:
    write_images(path / "a", 2, (1, 1, 1))
    write_images(path / "b", 2, (1, 1, 1))
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(path / "b" / "1.png")


def for_print(path: Path) -> None:
    write_images(path / "a", 2, (1, 1, 1))
    write_images(path / "b", 2, (1, 1, 1))
    Image.new("CMYK", (4, 4)).save(path / "b" / "1.jpg")


def not_text(path: Path) -> None:
    write_images(path / "a", 2, (1, 1, 1))
    write_images(path / "b\udcff", 2, (1, 1, 1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (sixteen_bits, r"b/1\.png is of mode I;16, which is not 8-bit RGB or grey: fix or remove it"),
        (for_print, r"b/1\.jpg is of mode CMYK, which is not 8-bit RGB or grey: fix or remove it"),
        (not_text, r"'b\\udcff' is not UTF-8, and a run records it as text: rename it"),
        (one_class, "only one class with images, 'a'"),
        (no_images, "has no images: expected one folder a class"),
        (unreadable, r"b/1\.png cannot be read as an image"),
        (pipe, r"b/1\.png is a named pipe, where a file is expected: fix or remove it"),
        (torn, r"b/1\.jpg cannot be read as an image"),
        (other_classes, "same classes; only one has 'b'"),
        (lonely, "a has only one image"),
    ],
)
def test_bad_folders_are_refused(tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(SearchError, match=message):
        load(f"folder:{tmp_path}", 8)


@pytest.mark.parametrize("name", ["mnist", "folder", "folder:", "zip:x"])
def test_unknown_data_is_refused(name):
    with pytest.raises(SearchError, match=f"unknown data '{name}': known are digits or folder:PATH"):
        load(name, 8)


def test_a_path_that_is_not_text_is_refused_at_once(tmp_path):
    with pytest.raises(SearchError, match=r"is not UTF-8, and a run records it as text: rename it"):
        load(f"folder:{tmp_path}/\udcff", 8)


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(SearchError, match="nowhere is not a folder"):
        load(f"folder:{tmp_path / 'nowhere'}", 8)
