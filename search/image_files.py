"""Image files, decoded one by one, or by worker processes whenever they are asked for. Workers need no torch."""

import functools
import hashlib
import multiprocessing
import os
import signal
import struct
import threading
import warnings
import zlib
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, final

import numpy as np
from jaxtyping import UInt8

from latency.errors import FileError, one_line
from latency.files import open_regular
from search.errors import SearchError

if TYPE_CHECKING:
    from torch import Tensor

Pixels = UInt8[np.ndarray, "height width 3"]

WORKERS = 8
"""Processes that decode, at most; no more than the machine has cores."""

_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX")
"""What PIL turns to RGB as a viewer would: 16 bits would be cut off at 255, and CMYK needs a profile."""

_OF_DECODERS = (OSError, SyntaxError, ValueError, EOFError, LookupError, ArithmeticError, MemoryError, TypeError, struct.error, zlib.error)
"""What PIL's decoders raise for damaged files."""


def decode(file: Path, height: int, width: int | None = None) -> Pixels:
    """An image as 8-bit RGB, resized bilinearly to height x width; to a square where no width is given.

    Raises:
        SearchError: it is not an image, or one of more than 8 bits or for print.
    """
    from PIL import Image

    try:
        with open_regular(file) as opened, warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # twice as many pixels are an error
            with Image.open(opened) as image:
                if image.mode not in _MODES:
                    raise FileError(file, f"is of mode {image.mode}, which is not 8-bit RGB or grey")
                rgb = image.convert("RGB")
    except FileError as error:
        raise SearchError(f"{error}: fix or remove it") from error
    except _OF_DECODERS as error:
        raise SearchError(f"{file} cannot be read as an image ({one_line(error, 100)}): fix or remove it") from error
    except Image.DecompressionBombError as error:
        raise SearchError(f"{file} has too many pixels: {one_line(error, 200)}") from error
    return np.asarray(rgb.resize((width or height, height), Image.Resampling.BILINEAR))


@final
class ImageFiles:
    """Images that stay on disk, in the place of a tensor UInt8 [images, 3, height, width]: `images[rows]` decodes those.

    Args:
        files: one an image.
        resolution: height and width that they are resized to.
    """

    def __init__(self, files: Sequence[Path], resolution: int) -> None:
        self.files, self.resolution = tuple(files), resolution
        self._expected: dict[int, Future[Pixels]] = {}

    def __len__(self) -> int:
        return len(self.files)

    def part(self, rows: "Tensor") -> "ImageFiles":
        """Some of them, by their indices or by a mask."""
        import torch

        return ImageFiles([self.files[row] for row in torch.arange(len(self))[rows].tolist()], self.resolution)

    def expect(self, rows: "Tensor") -> None:
        """Begin to decode images that will be asked for soon."""
        for row in rows.tolist():
            if row not in self._expected:
                self._expected[row] = _pool().submit(decode, self.files[row], self.resolution)

    def __getitem__(self, rows: "Tensor | slice") -> "Tensor":
        import torch

        wanted = torch.arange(len(self))[rows]
        self.expect(wanted)
        made = {row: self._expected.pop(row).result() for row in dict.fromkeys(wanted.tolist())}
        return torch.from_numpy(np.stack([made[row] for row in wanted.tolist()])).permute(0, 3, 1, 2).contiguous()

    def sha256(self) -> bytes:
        """Hash of the name and the size of every file: they are too large to be read before every run."""
        digest = hashlib.sha256()
        for file in self.files:
            digest.update(f"{file.parent.name}/{file.name} {file.stat().st_size} {self.resolution}\n".encode())
        return digest.digest()


@functools.cache
def _pool() -> ProcessPoolExecutor:
    """The workers; they are started anew rather than forked, as this process has threads."""
    return ProcessPoolExecutor(min(WORKERS, os.cpu_count() or 1), multiprocessing.get_context("spawn"), initializer=_work)


def _work() -> None:
    """A worker leaves Ctrl-C to the process that started it, and ends with that, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(0)
