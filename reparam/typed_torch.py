"""Functions of torch whose own signatures are partly untyped, with types."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

fork_rng = cast(
    "Callable[..., AbstractContextManager[None]]",
    torch.random.fork_rng,  # pyright: ignore[reportUnknownMemberType]
)
manual_seed = cast("Callable[[int], torch.Generator]", torch.manual_seed)  # pyright: ignore[reportUnknownMemberType]
from_numpy = cast("Callable[[np.ndarray], Tensor]", torch.from_numpy)  # pyright: ignore[reportUnknownMemberType]


def to_list(tensor: Tensor) -> list[Any]:
    """Return the elements of a tensor of one or more dimensions, as nested lists of numbers."""
    return cast("list[Any]", tensor.tolist())  # pyright: ignore[reportUnknownMemberType]
