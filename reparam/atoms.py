"""Channels of a network as atoms: track which are tied together and which must be kept."""

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Flags = NDArray[np.bool_]


class Atoms:
    """Union-find over channels, with the set of channels to keep."""

    def __init__(self) -> None:
        self.count = 0
        """number of atoms created so far"""
        self._edges: list[tuple[Ids, Ids]] = []
        self._read: list[Ids] = []
        self._blocks: list[tuple[Ids, Ids, Flags]] = []
        self._roots: Ids | None = None
        self._alive: Flags | None = None

    def new(self, count: int) -> Ids:
        """Create channels that are not tied to any other yet."""
        self.count += count
        self._roots = self._alive = None
        return np.arange(self.count - count, self.count)

    def unite(self, a: Ids, b: Ids) -> None:
        """Tie channels pairwise: either both are kept or neither is."""
        assert len(a) == len(b), "the operands of an operator must have the same number of channels"
        self._edges.append((a, b))
        self._roots = self._alive = None

    def read(self, ids: Ids) -> None:
        """Mark channels as read; they must be kept."""
        self._read.append(ids)
        self._alive = None

    def balance(self, into: Ids, out: Ids, live: Flags) -> None:
        """Register a grouped convolution, whose groups must stay equal in size.

        Args:
            into: input atoms, [groups, inputs per group].
            out: output atoms, [groups, outputs per group].
            live: whether each input is live, [groups, inputs per group].
        """
        self._blocks.append((into, out, live))
        self._alive = None

    def roots(self, ids: Ids) -> Ids:
        """Return the representative of each atom's set."""
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
        """Return which channels are kept; call only after every rule has been applied."""
        if self._alive is None:
            self._alive = self._closure()
        return self._alive[self.roots(ids)]

    def _closure(self) -> Flags:
        """Propagate from the read channels through grouped convolutions until nothing changes."""
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
    """Revive the first dead channels of each group until every group has as many as the largest."""
    if not groups.size:
        return
    most = max(1, int(alive[groups].sum(1).max()))
    dead = ~alive[groups]
    missing = most - (~dead).sum(1, keepdims=True)
    alive[groups[dead & (dead.cumsum(1) <= missing)]] = True
