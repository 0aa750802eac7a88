"""Search spaces as data, and searches over them under a latency budget.

Importing this package needs no torch; the parts that train are imported on first use.
"""

from typing import TYPE_CHECKING, Any

from search import spaces
from search.architecture import Architecture, load_architecture
from search.errors import SearchError
from search.space import Choice, Space
from search.spaces import Chain, Fixed, Layer, Layered, Prunable

if TYPE_CHECKING:
    from search.own_loop import masked, pruned
    from search.task import Metric, Task

__all__ = [
    "Architecture",
    "Chain",
    "Choice",
    "Fixed",
    "Layer",
    "Layered",
    "Metric",
    "Prunable",
    "SearchError",
    "Space",
    "Task",
    "load_architecture",
    "masked",
    "pruned",
    "spaces",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from search import own_loop, task

    return getattr(own_loop if name in ("masked", "pruned") else task, name)
