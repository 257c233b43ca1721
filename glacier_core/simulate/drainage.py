"""Which way is downhill: a drainage tree, and sums along it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, minimum_spanning_tree

from glacier_core.simulate.noise import Field, Mask

_HERE = slice(None)
_NEIGHBOURS = (
    ((_HERE, slice(None, -1)), (_HERE, slice(1, None)), 1.0),
    ((slice(None, -1), _HERE), (slice(1, None), _HERE), 1.0),
    ((slice(None, -1), slice(None, -1)), (slice(1, None), slice(1, None)), 2**0.5),
    ((slice(None, -1), slice(1, None)), (slice(1, None), slice(None, -1)), 2**0.5),
)
"""Pairs of slices that lay each cell beside a neighbour, and their distance in cells."""


@dataclass(frozen=True)
class Drainage:
    """A tree that leads every cell of a grid down to an outlet.

    Cells are kept in *tree order*: outlets first, each cell after the one that it drains
    to, cells at the same number of steps from an outlet side by side. That makes every sum
    along the tree a short loop over levels instead of a long one over cells.

    Attributes:
        shape: (rows, cols) of the grid.
        order: flat grid index of each cell, in tree order, int64 (rows * cols,).
        down: position in tree order of the cell drained to; outlets point to themselves.
        step: distance to the cell drained to in m; 0 at outlets.
        levels: (start, stop) in tree order for each level above the outlets, lowest first.
        families: first cell of each run of cells that drain to the same one, in tree order.
    """

    shape: tuple[int, int]
    order: NDArray[np.int64]
    down: NDArray[np.int64]
    step: Field
    levels: tuple[tuple[int, int], ...]
    families: NDArray[np.int64]

    def to_tree(self, grid: Field) -> Field:
        """Put a (rows, cols) raster into tree order."""
        return grid.ravel()[self.order]

    def to_grid(self, values: Field) -> Field:
        """Put values in tree order back on the (rows, cols) grid."""
        flat = np.empty(values.size, dtype=np.float32)
        flat[self.order] = values
        return flat.reshape(self.shape)

    def accumulate(self, source: Field) -> Field:
        """Sum what enters upstream of and at each cell; never passes on less than nothing.

        Args:
            source: (rows, cols), what each cell adds (or, below zero, takes away).

        Returns:
            (rows, cols) in the unit of ``source``.
        """
        total = self.to_tree(source).astype(np.float64)
        into = self.down[self.families]
        bounds = np.searchsorted(self.families, np.array(self.levels))
        for (start, stop), (first, last) in zip(
            reversed(self.levels), bounds[::-1].tolist(), strict=True
        ):
            level = total[start:stop]
            np.maximum(level, 0, out=level)
            sums = np.add.reduceat(level, self.families[first:last] - start)
            total[into[first:last]] += sums
        return self.to_grid(np.maximum(total, 0).astype(np.float32))

    def carry(self, values: Field, toll: Field) -> Field:
        """Carry the highest value downstream, less a toll for each cell passed.

        Args:
            values: (rows, cols), each cell's own.
            toll: (rows, cols), what is lost on the way out of a cell.

        Returns:
            (rows, cols), the higher of each cell's own value and what reaches it.
        """
        best, fee = self.to_tree(values), self.to_tree(toll)
        into = self.down[self.families]
        bounds = np.searchsorted(self.families, np.array(self.levels))
        for (start, stop), (first, last) in zip(
            reversed(self.levels), bounds[::-1].tolist(), strict=True
        ):
            left = best[start:stop] - fee[start:stop]
            highest = np.maximum.reduceat(left, self.families[first:last] - start)
            target = into[first:last]
            best[target] = np.maximum(best[target], highest)
        return self.to_grid(best)

    def climb(self, base: Field, gradient: Field) -> Field:
        """Build heights from the outlets up.

        Args:
            base: (rows, cols) heights in m, used at the outlets.
            gradient: (rows, cols) rise over run from the cell drained to up to each cell.

        Returns:
            (rows, cols) heights in m.
        """
        height = self.to_tree(base)
        rise = self.to_tree(gradient) * self.step
        for start, stop in self.levels:
            height[start:stop] = height[self.down[start:stop]] + rise[start:stop]
        return self.to_grid(height)


def drain(height: Field, outlets: Mask, cell: float) -> Drainage:
    """Find the drainage tree of a surface, pits and all.

    The minimum spanning tree over "the higher of the two ends" is the set of paths that
    climb least, which is what filling pits by a priority flood gives; a small preference
    for steep steps makes it follow the steepest descent elsewhere. Takes about 0.25 s and
    100 MB for 600 x 600 cells, growing in proportion.

    Args:
        height: (rows, cols) in m.
        outlets: (rows, cols) cells where water leaves; at least one.
        cell: size of a cell in m.

    Raises:
        ValueError: if there is no outlet.
    """
    if not outlets.any():
        raise ValueError("a drainage tree needs at least one outlet")
    count = height.size
    index = np.arange(count, dtype=np.int32).reshape(height.shape)
    # A weight of zero would mean "no edge" to the sparse graph.
    lifted = height - height.min() + 10.0
    ends_a, ends_b, weights = [], [], []
    for here, there, distance in _NEIGHBOURS:
        a, b = lifted[here], lifted[there]
        ends_a.append(index[here].ravel())
        ends_b.append(index[there].ravel())
        steepness = np.abs(a - b) / (distance * cell)
        weights.append((np.maximum(a, b) - steepness).ravel().astype(np.float64))
    out = index[outlets]
    ends_a.append(out)
    ends_b.append(np.full(out.size, count, dtype=np.int32))
    weights.append(np.full(out.size, 1e-3))
    graph = csr_array(
        (np.concatenate(weights), (np.concatenate(ends_a), np.concatenate(ends_b))),
        shape=(count + 1, count + 1),
    )
    order, before = breadth_first_order(minimum_spanning_tree(graph), count, directed=False)
    rank = np.empty(count + 1, dtype=np.int64)
    rank[order] = np.arange(count + 1)
    parent = rank[before[order[1:]]]
    order = order[1:].astype(np.int64)
    down = np.where(parent == 0, np.arange(count), parent - 1)

    levels = []
    start, stop = 0, int(np.searchsorted(parent, 1))
    while stop < count:
        start, stop = stop, int(np.searchsorted(parent, stop + 1))
        levels.append((start, stop))
    columns = height.shape[1]
    there = order[down]
    step = cell * np.hypot(order // columns - there // columns, order % columns - there % columns)
    families = np.flatnonzero(np.diff(parent, prepend=-1))
    return Drainage(height.shape, order, down, step.astype(np.float32), tuple(levels), families)
