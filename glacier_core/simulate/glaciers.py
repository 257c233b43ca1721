"""Where ice lies in a given year, and how much rubble lies on it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from glacier_core.simulate.noise import Field, Mask, fractal, smoothstep
from glacier_core.simulate.terrain import CELL, Terrain, slope_degrees

CALIBRATION_YEAR = 2000.0
"""The year in which the ice covers the share of the ground that is asked for."""

WARMING = 3.2
"""Rise of the equilibrium line in m a year; loses roughly 0.7 % of the ice area a year."""

BALANCE_GRADIENT = 0.006
"""Change of the yearly mass balance with height, per year (m water a m; Himalaya 0.004-0.008)."""

OLDEST = 1985.0
"""Outlines of earlier years are those of this year."""


@dataclass(frozen=True)
class Ice:
    """The ice of one year on the 60 m grid.

    Attributes:
        flux: ice passing through each valley cell, m3 a year.
        surface: height of the ice surface in m, also where it lies below the ground.
        mantle: above 0 where snow stays long enough on open slopes to become ice.
        rubble: logarithm of rubble per ice; grows down the tongues.
        melting: depth below the equilibrium line in m, below 0 above it.
    """

    flux: Field
    surface: Field
    mantle: Field
    rubble: Field
    melting: Field


class Climate:
    """Mass balance and ice flow over one terrain.

    Args:
        rng: source of randomness for the small-scale differences of the snow line.
        terrain: the ground.
    """

    def __init__(self, rng: np.random.Generator, terrain: Terrain) -> None:
        self._terrain = terrain
        ground = ndimage.gaussian_filter(terrain.height, 4.0)
        to_south, to_east = np.gradient(ground, CELL)
        # Rows count southwards: falling to the north means a positive gradient here.
        northness = to_south / np.sqrt(to_south**2 + to_east**2 + 0.02)
        self._line = (
            -140 * northness
            + 90 * fractal(rng, ground.shape, slope=1.3, shortest=20, longest=300)
            + 45 * fractal(rng, ground.shape, slope=0.8, shortest=4, longest=40)
        ).astype(np.float32)
        self._slope = slope_degrees(ndimage.gaussian_filter(terrain.height, 1.1), CELL)
        self._crest = terrain.height - ndimage.gaussian_filter(terrain.height, 7.0)
        self._steep = smoothstep(self._slope, 36, 46)
        area = terrain.drainage.to_tree(terrain.area)
        # Share of the valley that comes in from the side at the next cell down.
        side = 1 - area / area[terrain.drainage.down]
        self._joining = terrain.drainage.to_grid((1.5 * side).astype(np.float32))
        self._rockfall = np.exp(
            1.1 * fractal(rng, ground.shape, slope=1.5, shortest=30, longest=200)
        ).astype(np.float32)

    def equilibrium_line(self, level: float, year: float) -> Field:
        """Height in m above which a year leaves more snow than it melts."""
        rise = WARMING * (max(year, OLDEST) - CALIBRATION_YEAR)
        return np.asarray(self._line + np.float32(level + rise), dtype=np.float32)

    def ice(self, level: float, year: float) -> Ice:
        """Work out the ice of a year.

        Args:
            level: mean height of the equilibrium line in ``CALIBRATION_YEAR``, m.
            year: the year, with a fraction.
        """
        terrain = self._terrain
        flux, melting = self._flux(level, year)
        # A glacier moves: 30 m of ice at 5 m a year over the width of its bed, or none.
        least = 150 * np.clip(2 * terrain.half_width, 200, 900)
        # Valley lines of the oldest year are kept, so that ice only ever retreats.
        line = self._flux(level, OLDEST)[0] > least
        away, (row, col) = ndimage.distance_transform_edt(~line, return_indices=True)
        # Perfect plasticity with a yield stress of 1 bar: 11 m over the sine of the slope.
        gradient = terrain.gradient
        sine = gradient / np.sqrt(1 + gradient**2)
        excess = np.maximum(flux - least, 0)
        deep = np.minimum(11 / (sine + 0.05), 110) * (excess / (excess + 1.5e6)) ** 0.5
        thick = np.where(flux > least, deep + 8, -40)
        # Ice doesn't stay on steep ground, the less so where it melts.
        thick = np.where(gradient > np.where(melting > 0, 0.45, 0.75), -20, thick)
        surface = ndimage.gaussian_filter((terrain.height + thick)[row, col], 1.5)
        outside = np.clip(away * CELL / terrain.half_width[row, col] - 1.0, 0, None)
        surface = surface - 120 * ndimage.gaussian_filter(outside, 1.0)

        # Wind sweeps crests bare and fills hollows.
        mantle = np.minimum(-melting / 60 - 0.5, (40 - self._slope) / 4)
        mantle = np.minimum(mantle, -self._crest / 30 - melting / 150)

        supply = self._steep * self._rockfall * (terrain.height > level - 700)
        rubble = terrain.drainage.accumulate((supply * CELL * CELL).astype(np.float32))
        load = np.log((rubble + 1e3) / (flux + 1e5))
        # Rubble doesn't sink back into ice: where a clean glacier joins, it lies beside.
        load = terrain.drainage.carry(load, self._joining)
        load = ndimage.gaussian_filter(load[row, col], 1.2)
        return Ice(
            flux,
            surface.astype(np.float32),
            mantle.astype(np.float32),
            load.astype(np.float32),
            melting,
        )

    def _flux(self, level: float, year: float) -> tuple[Field, Field]:
        terrain = self._terrain
        melting = self.equilibrium_line(level, year) - terrain.height
        balance = np.minimum(-BALANCE_GRADIENT * melting, 0.9)
        # Under thick rubble far down, ice melts at about half the rate of bare ice.
        balance *= np.where(melting > 0, 1 - 0.55 * smoothstep(melting, 150, 500), 1.0)
        gain = np.maximum(balance, 0) * CELL * CELL * (1 - 0.3 * self._steep)
        width = np.clip(2 * terrain.half_width, 240, 1300)
        loss = np.minimum(balance, 0) * CELL * width
        flux = terrain.drainage.accumulate((gain + loss).astype(np.float32))
        return flux, melting.astype(np.float32)

    def cover(self, ice: Ice) -> Mask:
        """Ice cover on the 60 m grid, tongues and mantle, for calibration."""
        covered = (ice.surface > self._terrain.height + 2) | (ice.mantle > 0)
        return keep_fed(covered, ice.melting < 0, 20)


def keep_fed(covered: Mask, source: Mask, least: int) -> Mask:
    """Keep the connected parts of an ice cover that hold enough of a source.

    Args:
        covered: ice cover, (rows, cols).
        source: where ice comes from: accumulation area, or ice known to be fed.
        least: cells of it that a part needs.
    """
    # Ice falls over steps of some 200 m and goes on below.
    near = ndimage.binary_dilation(covered, iterations=3)
    label, count = ndimage.label(near, structure=np.ones((3, 3)))
    fed = np.bincount(label[covered & source], minlength=count + 1) >= least
    fed[0] = False
    return np.asarray(fed[label] & covered)


def streaks(
    rng: np.random.Generator, height: Field, covered: Mask, length: int, width: float
) -> Field:
    """Draw noise out down the slope, as ice draws out moraines and water cuts gullies.

    Line integral convolution: each cell averages a noise field along the path uphill.

    Args:
        rng: source of randomness.
        height: the surface to follow, (rows, cols) in m.
        covered: where to do it.
        length: how far uphill to look, in cells.
        width: shortest distance from streak to streak, in cells.

    Returns:
        (rows, cols) with mean 0 and standard deviation 1 over ``covered``, 0 elsewhere.
    """
    source = fractal(rng, covered.shape, slope=0.3, shortest=width)
    down, right = np.gradient(height)
    uphill = np.stack([down, right]).astype(np.float32)
    uphill /= np.hypot(uphill[0], uphill[1]) + 1e-3
    place = np.argwhere(covered).T.astype(np.float32)
    total = np.zeros(place.shape[1], dtype=np.float32)
    for _ in range(length):
        total += ndimage.map_coordinates(source, place, order=1, mode="nearest")
        place += np.stack(
            [ndimage.map_coordinates(axis, place, order=1, mode="nearest") for axis in uphill]
        )
    drawn = np.zeros(covered.shape, dtype=np.float32)
    if total.size:
        drawn[covered] = (total - total.mean()) / (total.std() + 1e-6)
    return drawn


def calibrate(climate: Climate, terrain: Terrain, share: float, part: Mask) -> float:
    """Find the height of the equilibrium line that covers a share of the ground with ice.

    Args:
        climate: the climate.
        terrain: its ground.
        share: wanted share of ice, 0 to 1.
        part: the part of the grid to look at.

    Returns:
        The mean height of the equilibrium line in m.
    """
    low, high = np.percentile(terrain.height[part], [20, 99.9])
    for _ in range(7):
        middle = (low + high) / 2
        if climate.cover(climate.ice(middle, CALIBRATION_YEAR))[part].mean() > share:
            low = middle
        else:
            high = middle
    return float((low + high) / 2)
