"""The ground before ice: fluvial valleys and ridges, then troughs cut by old glaciers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from glacier_core.simulate.drainage import Drainage, drain
from glacier_core.simulate.noise import Field, Mask, fractal

CELL = 60.0
"""Cell size of the ground model in m; two Landsat pixels."""


@dataclass(frozen=True)
class Terrain:
    """Bedrock and its valleys on the 60 m grid.

    Attributes:
        height: bedrock and valley fill in m, (rows, cols).
        drainage: the valleys as a tree; follows the centre lines of the troughs.
        area: catchment in km2.
        half_width: half the width of the trough that a cell's catchment can cut, m.
        gradient: slope along the valley floor, rise over run.
        trough: 0 on hillsides to 1 on the floor of a glacial trough.
    """

    height: Field
    drainage: Drainage
    area: Field
    half_width: Field
    gradient: Field
    trough: Field


def slope_degrees(height: Field, cell: float) -> Field:
    """Slope of a surface in degrees, by central differences.

    Args:
        height: (rows, cols) in m.
        cell: pixel size in m.
    """
    down, right = np.gradient(height, cell)
    return np.asarray(np.degrees(np.arctan(np.hypot(down, right))), dtype=np.float32)


def upsample(field: Field, factor: int, order: int = 1) -> Field:
    """Resample to a grid ``factor`` times finer, cell edges kept in place."""
    zoomed = ndimage.zoom(field, factor, order=order, mode="nearest", grid_mode=True)
    return np.asarray(zoomed, dtype=np.float32)


def _outlets(rng: np.random.Generator, shape: tuple[int, int]) -> Mask:
    """Choose where rivers leave: one long side and a few gates on the others."""
    rows, cols = shape
    border = 2 * (rows + cols) - 4
    place = np.arange(border)
    start = int(rng.integers(border))
    is_open = ((place - start) % border) < border * rng.uniform(0.25, 0.4)
    for _ in range(3):
        gate = int(rng.integers(border))
        is_open |= ((place - gate) % border) < border * rng.uniform(0.02, 0.08)
    ring_rows = np.concatenate(
        [
            np.zeros(cols, int),
            np.arange(1, rows),
            np.full(cols - 1, rows - 1),
            np.arange(rows - 2, 0, -1),
        ]
    )
    ring_cols = np.concatenate(
        [
            np.arange(cols),
            np.full(rows - 1, cols - 1),
            np.arange(cols - 2, -1, -1),
            np.zeros(rows - 2, int),
        ]
    )
    outlets = np.zeros(shape, dtype=bool)
    outlets[ring_rows[is_open], ring_cols[is_open]] = True
    return outlets


def _fit(field: Field, shape: tuple[int, int]) -> Field:
    """Resample by bilinear interpolation to exactly ``shape``."""
    factors = (shape[0] / field.shape[0], shape[1] / field.shape[1])
    zoomed = ndimage.zoom(field, factors, order=1, mode="nearest", grid_mode=True)
    return np.asarray(zoomed, dtype=np.float32)


def make_terrain(rng: np.random.Generator, cells: int, relief: float) -> Terrain:
    """Make a mountain landscape that drains.

    Heights are the steady state of the stream-power law, slope proportional to catchment
    area to the power -0.4 (Whipple & Tucker 1999), capped by the slope at which rock walls
    fail; it is found from coarse to fine, so that large valleys settle first. Trunk valleys
    are then widened to troughs whose width grows with the catchment.

    Args:
        rng: source of randomness.
        cells: rows and columns of the square grid; a multiple of 8.
        relief: height of the highest peaks above the outlets in m.
    """
    full = (cells, cells)
    erodibility = np.exp(0.42 * fractal(rng, full, slope=1.25, shortest=4, longest=250))
    wall = np.tan(
        np.radians(40 + 5 * fractal(rng, full, slope=1.2, shortest=4, longest=120))
    ).astype(np.float32)
    base = 150 * fractal(rng, full, slope=1.6, shortest=20)
    rough = fractal(rng, full, slope=1.4)
    outlets_coarse = _outlets(rng, (cells // 8, cells // 8))

    height = 300 * _fit(rough, (cells // 8, cells // 8))
    steepness = 0.3
    for factor, rounds in ((8, 10), (4, 6), (2, 4), (1, 2)):
        shape = (cells // factor, cells // factor)
        cell = CELL * factor
        height = _fit(height, shape) + 4 * factor * _fit(rough, shape)
        outlets = np.zeros(shape, dtype=bool)
        edge = np.ones(shape, dtype=bool)
        edge[1:-1, 1:-1] = False
        outlets[edge] = (_fit(outlets_coarse.astype(np.float32), shape) > 0.5)[edge]
        if not outlets.any():
            outlets[-1, :] = True
        soft, cap, low = _fit(erodibility, shape), _fit(wall, shape), _fit(base, shape)
        for _ in range(rounds):
            tree = drain(height, outlets, cell)
            area = tree.accumulate(np.full(shape, cell * cell / 1e6, dtype=np.float32))
            gradient = np.minimum(steepness * soft * area**-0.4, cap)
            height = tree.climb(low, gradient)
            if factor == 8:
                reached = float(np.percentile(height, 99.5) - np.percentile(height, 2))
                steepness *= float(np.clip(relief / reached, 0.6, 1.6))
        # Across a divide the two sides are built separately: blend the seams.
        height = ndimage.gaussian_filter(height, 0.6)
    return _carve(height, tree, area, gradient)


def _carve(height: Field, tree: Drainage, area: Field, gradient: Field) -> Terrain:
    """Widen valleys to troughs, small ones first, so that side valleys are left hanging."""
    half_width = (135 * np.clip(area, 0.05, 90) ** 0.29).astype(np.float32)
    trough = np.zeros_like(height)
    carved = height.copy()
    for least, most in ((0.3, 1.5), (1.5, 6.0), (6.0, 25.0), (25.0, np.inf)):
        line = (area >= least) & (area < most)
        if not line.any():
            continue
        distance, (row, col) = ndimage.distance_transform_edt(~line, return_indices=True)
        floor = height[row, col]
        width = half_width[row, col]
        floor = ndimage.gaussian_filter(floor, 2.0)
        width = ndimage.gaussian_filter(width, 2.0)
        reach = distance * CELL / width
        # Flat within 0.55 half widths, back on the old hillside at 1.75.
        keep = np.clip((reach - 0.55) / 1.2, 0, 1) ** 1.5 * 0.93 + 0.07
        target = floor + (carved - floor) * keep
        carved = np.where(reach < 1.85, np.minimum(carved, target), carved)
        trough = np.maximum(trough, np.clip(1.5 - reach, 0, 1))
    carved = ndimage.gaussian_filter(carved, 0.7)
    # Weighted by catchment, so that valley walls don't count in the slope of the floor.
    along = ndimage.gaussian_filter(gradient * area, 3.0) / ndimage.gaussian_filter(area, 3.0)
    return Terrain(
        carved.astype(np.float32),
        tree,
        area,
        half_width,
        along.astype(np.float32),
        trough.astype(np.float32),
    )
