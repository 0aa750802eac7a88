"""Which network: search spaces as data, and searches over them under a latency budget. Importing it needs no torch."""

from search import spaces
from search.architecture import Architecture, load_architecture
from search.errors import SearchError
from search.space import Choice, Space
from search.spaces import Chain, Fixed, Layer, Layered, Prunable

__all__ = [
    "Architecture",
    "Chain",
    "Choice",
    "Fixed",
    "Layer",
    "Layered",
    "Prunable",
    "SearchError",
    "Space",
    "load_architecture",
    "spaces",
]
