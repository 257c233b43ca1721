"""One site: its ground at 30 m and, for any year, what covers it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from glacier_core.simulate.glaciers import (
    CALIBRATION_YEAR,
    OLDEST,
    Climate,
    calibrate,
    keep_fed,
    streaks,
)
from glacier_core.simulate.noise import Field, Mask, fractal, smoothstep
from glacier_core.simulate.terrain import make_terrain, slope_degrees, upsample

PIXEL = 30.0
"""Landsat pixel size in m."""

MARGIN = 40
"""Pixels simulated around the scene, so that mountains outside cast shadows into it."""

CLEAN_ICE, DEBRIS = 1, 2
"""Class values in the truth raster; 0 is anything else."""


@dataclass(frozen=True)
class Cover:
    """What lies on the ground in one year, all (rows, cols) at 30 m, margin included.

    Attributes:
        truth: uint8, 0 other, 1 clean ice, 2 debris-covered ice.
        height: surface of ground, ice and lakes in m.
        lake: open or frozen water off the ice.
        pond: melt ponds on debris-covered ice.
        melting: depth below the equilibrium line in m.
        debris_depth: 0 where debris just begins to 1 where it is thick.
    """

    truth: NDArray[np.uint8]
    height: Field
    lake: Mask
    pond: Mask
    melting: Field
    debris_depth: Field


class Site:
    """The ground of one site.

    Args:
        rng: source of randomness; all that is the site's own comes from it.
        size: rows and columns of the scene; the model adds ``MARGIN`` on each side.
    """

    def __init__(self, rng: np.random.Generator, size: int) -> None:
        self.shape = (size + 2 * MARGIN, size + 2 * MARGIN)
        window = (self.shape[0] + 1) // 2
        cells = max(256, -(-(window + 8) // 8) * 8)
        relief = float(rng.uniform(2600, 3300)) * min(1.0, (cells / 400) ** 0.35)
        terrain = make_terrain(rng, cells, relief)
        climate = Climate(rng, terrain)
        clean_share = float(rng.uniform(0.15, 0.21))
        debris_share = float(rng.uniform(0.045, 0.065))
        share = clean_share + debris_share

        inner = slice(6, cells - 6)
        part = np.zeros(terrain.height.shape, dtype=bool)
        part[inner, inner] = True
        level = calibrate(climate, terrain, share, part)
        corner = self._choose_window(climate, level, window, share, debris_share)
        part[:] = False
        half = MARGIN // 2
        part[
            corner[0] + half : corner[0] + window - half,
            corner[1] + half : corner[1] + window - half,
        ] = True
        found = climate.cover(climate.ice(level, CALIBRATION_YEAR))[part].mean()
        if abs(found - share) > 0.03:
            level = calibrate(climate, terrain, share, part)
        self._terrain, self._climate, self._level = terrain, climate, level
        self._window = (
            slice(corner[0], corner[0] + window),
            slice(corner[1], corner[1] + window),
        )
        # Glaciers of this part of the Himalaya have their equilibrium line near 5400 m.
        self._lift = np.float32(rng.uniform(5250, 5550) - level)

        coarse = self._fine(terrain.height, order=3)
        self.slope = slope_degrees(coarse, PIXEL)
        rugged = smoothstep(self.slope, 15, 40)
        self.texture = fractal(rng, self.shape, slope=0.6, longest=14)
        self.bumps = fractal(rng, self.shape, slope=0.9, shortest=3, longest=12)
        self.patches = fractal(rng, self.shape, slope=1.1, shortest=3, longest=60)
        self.broad = fractal(rng, self.shape, slope=1.6, shortest=8, longest=400)
        self.trough = self._fine(terrain.trough)
        self.gullies = self._fine(streaks(rng, terrain.height, terrain.height > -1e9, 7, 2.2), 3)
        hummocks = smoothstep(self.trough, 0.5, 0.9) * (1 - rugged)
        self.bed = (
            coarse
            + rugged * (11 * self.gullies + 3 * self.texture)
            + hummocks * (3 * self.bumps + 2 * self.patches)
        ).astype(np.float32)

        oldest = climate.ice(level, OLDEST)
        flowing = oldest.surface > terrain.height - 10
        self.streaks = self._fine(
            streaks(rng, ndimage.gaussian_filter(oldest.surface, 3.0), flowing, 40, 3.5)
        )
        # The 60 m grid reaches further than the scene and knows which tongues are fed.
        self._fed = self._fine(climate.cover(oldest).astype(np.float32)) > 0.5
        self._once = self._ice(OLDEST)[0]
        self._debris_level = self._calibrate_debris(debris_share)
        self._moraine = self._raise_moraines()
        self._lakes, self._lake_level = self._dig_lakes(rng)
        self.lithology = self._spread_rocks(rng)
        self.dem_error = (
            3 * fractal(rng, self.shape, slope=1.0, shortest=4, longest=80)
            + 0.8 * fractal(rng, self.shape, slope=0.3)
        ) * (0.5 + rugged)

    def _fine(self, field: Field, order: int = 1) -> Field:
        """Cut the window out of a 60 m field and bring it to 30 m."""
        cut = upsample(field[self._window], 2, order)
        return cut[: self.shape[0], : self.shape[1]]

    @staticmethod
    def _choose_window(
        climate: Climate, level: float, window: int, share: float, debris_share: float
    ) -> tuple[int, int]:
        """Look for the part of the terrain whose ice, and tongues, are nearest to the wish."""
        ice = climate.ice(level, CALIBRATION_YEAR)
        covered = climate.cover(ice)
        tongue = covered & (ice.melting > 100)
        half = MARGIN // 2

        def shares(mask: Mask) -> Field:
            """Share of ``mask`` within each window, by its top left corner."""
            total = np.pad(mask.astype(np.float64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
            inside, rows = window - 2 * half, mask.shape[0]
            first = slice(half, rows - window + half + 1)
            last = slice(window - half, rows - half + 1)
            counts = total[last, last] - total[first, last] - total[last, first]
            return np.asarray((counts + total[first, first]) / inside**2, dtype=np.float32)

        miss = np.abs(shares(covered) - share) + 4 * np.maximum(
            1.8 * debris_share - shares(tongue), 0
        )
        row, col = np.unravel_index(int(np.argmin(miss)), miss.shape)
        return int(row), int(col)

    def _ice(self, year: float) -> tuple[Mask, Field, Field, Field]:
        """Ice cover, surface in m above the model's datum, rubble and melting at 30 m."""
        ice = self._climate.ice(self._level, year)
        surface = self._fine(ice.surface, order=1)
        tongue = surface > self.bed + 3 * self.patches
        mantle = self._fine(ice.mantle) + 0.2 * self.patches > 0
        mantle &= self.slope < 44
        melting = self._fine(ice.melting)
        # Once cut off, a tongue lies on as dead ice.
        covered = keep_fed(tongue | mantle, self._fed, 40)
        # Rock islands of less than a hectare are below what a mapper draws.
        holes, count = ndimage.label(~covered)
        small = np.bincount(holes.ravel(), minlength=count + 1) < 12
        small[0] = False
        covered |= small[holes]
        return covered, surface, self._fine(ice.rubble), melting

    def _debris_score(self, rubble: Field, melting: Field) -> Field:
        """How likely rubble hides the ice; no unit, compared with a level."""
        return np.asarray(
            rubble
            + 0.004 * np.clip(melting, 0, 500)
            + 0.75 * self.streaks
            + 0.18 * self.patches
            + 0.3 * self.broad,
            dtype=np.float32,
        )

    def _calibrate_debris(self, share: float) -> float:
        covered, _, rubble, melting = self._ice(CALIBRATION_YEAR)
        inner = np.zeros(self.shape, dtype=bool)
        inner[MARGIN:-MARGIN, MARGIN:-MARGIN] = True
        score = self._debris_score(rubble, melting)[covered & (melting > 60) & inner]
        if not score.size:
            return 0.0
        wanted = share * inner.sum() / score.size
        return float(np.quantile(score, 1 - min(wanted, 0.85)))

    def _raise_moraines(self) -> Field:
        """Crests left along the old ice margin, in m."""
        away = ndimage.distance_transform_edt(~self._once)
        low = smoothstep(self.slope, 34, 22) * (self._ice(OLDEST)[3] > 80)
        crest = np.exp(-(((away - 2.2) / 1.2) ** 2)) * (away > 0)
        return np.asarray(14 * crest * low * (1 + 0.5 * self.patches), dtype=np.float32)

    def _dig_lakes(self, rng: np.random.Generator) -> tuple[Mask, Field]:
        """Choose lake basins: below glaciers and elsewhere on trough floors."""
        flat = (self.slope < 9) & (self.trough > 0.55)
        away = ndimage.distance_transform_edt(~self._once)
        near = np.argwhere(flat & (away > 0) & (away < 12))
        far = np.argwhere(flat & (away >= 12))
        smooth = ndimage.gaussian_filter(self.bed, 1.5)
        lakes = np.zeros(self.shape, dtype=bool)
        level = np.zeros(self.shape, dtype=np.float32)
        number = 3 + self.shape[0] // 90
        rows, cols = np.ogrid[: self.shape[0], : self.shape[1]]
        for k in range(number):
            places = near if k % 2 == 0 else far
            if not len(places):
                continue
            row, col = places[int(rng.integers(len(places)))]
            radius = rng.uniform(4, 13)
            part = np.hypot(rows - row, cols - col) * (1 + 0.25 * self.patches) < radius
            part &= np.abs(smooth - smooth[row, col]) < 9 + 4 * (k % 2)
            label, _ = ndimage.label(part)
            part = (label == label[row, col]) & part
            if part.sum() >= 12:
                lakes |= part
                level[part] = smooth[row, col]
        return lakes, level

    def _spread_rocks(self, rng: np.random.Generator) -> NDArray[np.float32]:
        """Shares of the three rock types, (3, rows, cols); rubble is a blend of its valley's."""
        common = rng.normal(0, 0.9, 3)
        favour = np.stack(
            [
                common[k] + 1.3 * fractal(rng, self.shape, slope=1.5, shortest=10, longest=350)
                for k in range(3)
            ]
        )
        share = np.exp(favour - favour.max(axis=0))
        share /= share.sum(axis=0)
        valley = smoothstep(self.trough, 0.3, 0.8)
        mixed = np.stack([ndimage.gaussian_filter(one, 12.0) for one in share])
        return np.asarray(share + valley * (mixed - share), dtype=np.float32)

    def lake_parts(
        self, lake: Mask, rng: np.random.Generator
    ) -> Iterator[tuple[Field, tuple[bool, float]]]:
        """Go through the lakes as they are on one day.

        Args:
            lake: open or frozen water.
            rng: source of randomness of the day.

        Yields:
            The lake as 0 and 1 over the whole site, and (whether the water is milky with
            glacier flour, level of ``patches`` below which it is frozen: -10 open, 10 shut).
        """
        label, count = ndimage.label(lake)
        for number in range(1, count + 1):
            frozen = (-10.0, 0.5, 10.0)[int(rng.choice(3, p=(0.45, 0.25, 0.30)))]
            yield (label == number).astype(np.float32), (bool(rng.random() < 0.6), frozen)

    def cover(self, year: float) -> Cover:
        """What covers the ground in a year (with a fraction)."""
        covered, surface, rubble, melting = self._ice(year)
        margin = self._debris_score(rubble, melting) - np.float32(self._debris_level)
        # More rubble melts out with every year.
        margin += np.float32(0.006 * (year - CALIBRATION_YEAR))
        debris = covered & (melting > 60) & (margin > 0)
        debris = _without_specks(debris, 30)
        debris |= covered & (melting > 60) & ~_without_specks(covered & ~debris, 25)
        depth = np.where(debris, np.clip(margin / 1.5, 0, 1), 0).astype(np.float32)
        truth = np.where(debris, DEBRIS, covered * CLEAN_ICE).astype(np.uint8)

        height = np.where(covered, np.maximum(self.bed, surface), self.bed)
        height = height + np.where(covered, 0, self._moraine)
        height = height + debris * (4.5 * self.bumps - 8 * depth)
        lake = self._lakes & ~covered
        height = np.where(lake, self._lake_level, height)
        pond = debris & (depth > 0.3) & (self.bumps < -2.0) & (self.slope < 12)
        height = (height + self._lift).astype(np.float32)
        return Cover(truth, height, lake, pond, melting, depth)

    def elevation(self) -> Field:
        """The elevation model that comes with the scenes: one for all dates, with errors, m."""
        return np.asarray(self.cover(CALIBRATION_YEAR).height + self.dem_error, dtype=np.float32)


def _without_specks(mask: Mask, least: int) -> Mask:
    """Drop connected parts of fewer than ``least`` pixels."""
    label, count = ndimage.label(mask)
    large = np.bincount(label.ravel(), minlength=count + 1) >= least
    large[0] = False
    return np.asarray(large[label])
