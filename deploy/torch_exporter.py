"""torch's ONNX exporter without work repeated in every export."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

try:
    from torch._export import utils
    from torch.onnx._internal.exporter import _registration

    _registry: Any = _registration.ONNXRegistry
    _utils: Any = utils
    _read, _list = _registry.from_torchlib, _utils._materialize_cpp_cia_ops
    _read_once = functools.cache(_read)
    KNOWN = True
except (ImportError, AttributeError):  # private names, which other versions of torch may lack
    KNOWN = False
"""Whether this version of torch is known; with others, exports take longer."""


@contextlib.contextmanager
def without_repetition() -> Iterator[None]:
    """Within this context, torch parses its ONNX operators once per process.

    Composite operators are listed only once, too.

    Otherwise it lists them once per namespace. Both take three quarters of the time of a small export; the model is
    unchanged. The list is not kept for longer, since operators may be added to it.
    """
    if not KNOWN:
        yield
        return
    _registry.from_torchlib, _utils._materialize_cpp_cia_ops = staticmethod(_read_once), functools.cache(_list)
    try:
        yield
    finally:
        _registry.from_torchlib, _utils._materialize_cpp_cia_ops = _read, _list
