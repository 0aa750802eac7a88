"""Decode image files, directly or on demand in worker processes. Workers need no torch."""

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
"""Largest number of decoding processes; never more than the machine has cores."""

_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX")
"""Modes that PIL converts to RGB the way a viewer would; it clips 16 bits at 255, and CMYK needs a profile."""

_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    ArithmeticError,
    MemoryError,
    TypeError,
    struct.error,
    zlib.error,
)
"""Errors that PIL's decoders raise for damaged files."""


def decode(file: Path, height: int, width: int | None = None) -> Pixels:
    """Decode an image to 8-bit RGB and resize it bilinearly to height x width, or to a square by default.

    Raises:
        SearchError: the file is not an image, or has more than 8 bits per channel or a mode other than RGB or grey.
    """
    from PIL import Image

    try:
        with open_regular(file) as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # twice as many pixels raise an error
            with Image.open(stream) as image:
                if image.mode not in _MODES:
                    raise FileError(file, f"is of mode {image.mode}, which is not 8-bit RGB or grey")
                rgb = image.convert("RGB")
    except FileError as error:
        raise SearchError(f"{error}: fix or remove it") from error
    except _DECODE_ERRORS as error:
        raise SearchError(f"{file} cannot be read as an image ({one_line(error, 100)}): fix or remove it") from error
    except Image.DecompressionBombError as error:
        raise SearchError(f"{file} has too many pixels: {one_line(error, 200)}") from error
    return np.asarray(rgb.resize((width or height, height), Image.Resampling.BILINEAR))


@final
class ImageFiles:
    """Images on disk that act as a tensor UInt8 [images, 3, height, width]: `images[rows]` decodes the selected ones.

    Args:
        files: one file per image.
        resolution: height and width to resize to.
    """

    def __init__(self, files: Sequence[Path], resolution: int) -> None:
        self.files, self.resolution = tuple(files), resolution
        self._expected: dict[int, Future[Pixels]] = {}

    def __len__(self) -> int:
        return len(self.files)

    def part(self, rows: "Tensor") -> "ImageFiles":
        """Select images by indices or by a mask."""
        import torch

        from reparam.typed_torch import to_list

        indices: list[int] = to_list(torch.arange(len(self))[rows])
        return ImageFiles([self.files[index] for index in indices], self.resolution)

    def expect(self, rows: "Tensor") -> None:
        """Start decoding images that will be used soon."""
        from reparam.typed_torch import to_list

        indices: list[int] = to_list(rows)
        for index in indices:
            if index not in self._expected:
                self._expected[index] = _pool().submit(decode, self.files[index], self.resolution)

    def __getitem__(self, rows: "Tensor | slice") -> "Tensor":
        import torch

        from reparam.typed_torch import from_numpy, to_list

        selected = torch.arange(len(self))[rows]
        self.expect(selected)
        indices: list[int] = to_list(selected)
        decoded = {index: self._expected.pop(index).result() for index in dict.fromkeys(indices)}
        return from_numpy(np.stack([decoded[index] for index in indices])).permute(0, 3, 1, 2).contiguous()

    def sha256(self) -> bytes:
        """Return a hash of the name and size of every file; the files are too large to read before every run."""
        digest = hashlib.sha256()
        for file in self.files:
            digest.update(f"{file.parent.name}/{file.name} {file.stat().st_size} {self.resolution}\n".encode())
        return digest.digest()


@functools.cache
def _pool() -> ProcessPoolExecutor:
    """Return the worker pool; workers are spawned, not forked, because this process has threads."""
    return ProcessPoolExecutor(
        min(WORKERS, os.cpu_count() or 1), multiprocessing.get_context("spawn"), initializer=_start_worker
    )


def _start_worker() -> None:
    """Set up a worker: leave Ctrl-C to the parent process, and end with it however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(0)
