"""User code as `FILE.py:FUNCTION`, a function without arguments that returns a network or a task.

The space of such a network's widths.
"""

import contextlib
import importlib.util
import re
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latency.errors import one_line
from search.errors import SearchError
from search.spaces.traced import Traced, traced

if TYPE_CHECKING:
    from torch import Tensor, nn

_NAME = re.compile(r"(?P<file>.*\.py):(?P<function>[^:/\\]*)")


def is_own(name: str) -> bool:
    """Return whether a name denotes a function in a file."""
    return _NAME.fullmatch(name) is not None


def maker(name: str) -> "Callable[[], nn.Module]":
    """Return a function that makes the network of a name. The file runs on the first call.

    Args:
        name: `FILE.py:FUNCTION`; the file can import modules from its own directory.
    """
    made: list[Callable[[], Any]] = []

    def make() -> "nn.Module":
        from torch import nn

        with _running(name):
            if not made:
                made.append(_function(name))
            network = made[0]()
        if not isinstance(network, nn.Module):
            raise SearchError(f"{name} returns {type(network).__name__}, wanted a torch.nn.Module")
        return network

    return make


def call(name: str) -> Any:
    """Call the function of a name and return its result.

    Args:
        name: `FILE.py:FUNCTION`, see `maker`.

    Raises:
        SearchError: no such file or function, or it fails.
    """
    with _running(name):
        return _function(name)()


def function(name: str) -> Callable[..., Any]:
    """Return the function of a name, see `maker`.

    Raises:
        SearchError: no such file or function, or the file cannot be run.
    """
    with _running(name):
        return _function(name)


def function_name(name: str) -> str:
    """Return the FUNCTION part of a name."""
    return _match(name)["function"]


def resolved(name: str) -> str:
    """Return the name with an absolute path.

    Raises:
        SearchError: no such file.
    """
    return f"{file_of(name).resolve()}:{_match(name)['function']}"


def file_of(name: str) -> Path:
    """Return the file of a name.

    Raises:
        SearchError: the file does not exist.
    """
    path = Path(_match(name)["file"])
    if not path.is_file():
        raise SearchError(f"{path} does not exist: give FILE.py:FUNCTION, a function without arguments")
    return path


def space(name: str, input_shape: tuple[int, int, int] | None) -> Traced:
    """Return the space of widths of a user's own network.

    Args:
        name: `FILE.py:FUNCTION`, see `maker`.
        input_shape: channels, height and width of an image.

    Raises:
        SearchError: no such file or function, it fails, or no part of the network can be pruned.
        ReparamError: the network cannot be read or run.
    """
    example = example_input(name, input_shape)
    name = resolved(name)
    return traced(maker(name), example, name=name)


def example_input(name: str, input_shape: tuple[int, int, int] | None) -> "Tensor":
    """Return an image of the input shape of a user's own network [1, channels, height, width].

    Raises:
        SearchError: no shape is given.
    """
    import torch

    if input_shape is None:
        raise SearchError(f"{name} does not say what it is for: give the shape of an image, such as --input 3x224x224")
    return torch.zeros(1, *input_shape)


def _match(name: str) -> re.Match[str]:
    match = _NAME.fullmatch(name)
    assert match, name
    return match


@contextlib.contextmanager
def _running(name: str) -> Generator[None, None, None]:
    """Let code import modules from its file's directory, and turn its exceptions into one-line errors."""
    from reparam.exported import RUN_ERRORS

    directory = str(Path(_match(name)["file"]).resolve().parent)
    sys.path.insert(0, directory)
    try:
        yield
    except SearchError:
        raise
    except (*RUN_ERRORS, ImportError, NameError, OSError, SyntaxError) as error:
        raise SearchError(f"{name} cannot be run: {type(error).__name__}: {one_line(error)}") from error
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(directory)


def _function(name: str) -> Callable[[], Any]:
    match, path = _match(name), file_of(name)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)  # dataclasses look up their module there
    spec.loader.exec_module(module)
    function = getattr(module, match["function"], None)
    if not callable(function):
        functions = ", ".join(key for key, value in vars(module).items() if callable(value) and not key.startswith("_"))
        raise SearchError(f"{path} has no function {match['function']!r}: it has {functions or 'none'}")
    return function
