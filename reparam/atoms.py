"""Channels of a network as atoms: which are tied to one another, and which stay."""

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Flags = NDArray[np.bool_]


class Atoms:
    """Union-find over channels, and which of them stay."""

    def __init__(self) -> None:
        self.count = 0
        """atoms made so far"""
        self._edges: list[tuple[Ids, Ids]] = []
        self._read: list[Ids] = []
        self._blocks: list[tuple[Ids, Ids, Flags]] = []
        self._roots: Ids | None = None
        self._alive: Flags | None = None

    def new(self, count: int) -> Ids:
        """Channels that are tied to none so far."""
        self.count += count
        self._roots = self._alive = None
        return np.arange(self.count - count, self.count)

    def unite(self, a: Ids, b: Ids) -> None:
        """Tie channels pairwise: both stay or neither."""
        assert len(a) == len(b), "the operands of an operator have as many channels as one another"
        self._edges.append((a, b))
        self._roots = self._alive = None

    def read(self, ids: Ids) -> None:
        """Somebody needs these."""
        self._read.append(ids)
        self._alive = None

    def balance(self, into: Ids, out: Ids, live: Flags) -> None:
        """A convolution in groups: into [groups, inputs], out [groups, outputs], live [groups, inputs]."""
        self._blocks.append((into, out, live))
        self._alive = None

    def roots(self, ids: Ids) -> Ids:
        """One number for all atoms that are united."""
        if self._roots is None or len(self._roots) < self.count:
            label = np.arange(self.count)
            if self._edges:
                a, b = (np.concatenate(side) for side in zip(*self._edges, strict=True))
                while (differ := label[a] != label[b]).any():
                    a, b = a[differ], b[differ]
                    np.minimum.at(label, np.maximum(label[a], label[b]), np.minimum(label[a], label[b]))
                    while (label != label[label]).any():
                        label = label[label]
            self._roots = label
        return self._roots[ids]

    def kept(self, ids: Ids) -> Flags:
        """Which channels stay; ask when every rule has been applied."""
        if self._alive is None:
            self._alive = self._closure()
        return self._alive[self.roots(ids)]

    def _closure(self) -> Flags:
        alive = np.zeros(self.count, bool)
        for ids in self._read:
            alive[self.roots(ids)] = True
        blocks = [(self.roots(into), self.roots(out), live) for into, out, live in self._blocks]
        while True:
            before = int(alive.sum())
            for into, out, live in blocks:
                alive[into[live & alive[out].any(1, keepdims=True)]] = True
                used = alive[into].any(1) | alive[out].any(1)
                for side in (into[used], out[used]):
                    _fill(alive, side)
            if int(alive.sum()) == before:
                return alive


def _fill(alive: Flags, groups: Ids) -> None:
    """Bring back the first dead channels of each group until all have as many as the largest."""
    if not groups.size:
        return
    most = max(1, int(alive[groups].sum(1).max()))
    dead = ~alive[groups]
    missing = most - (~dead).sum(1, keepdims=True)
    alive[groups[dead & (dead.cumsum(1) <= missing)]] = True
