"""Channels that are worked out from a scene's bands and its DEM, by name.

What they say depends neither on the region nor on the sensor's units, so that a network that learned
in one place may be asked in another: spectral ones are ratios, terrain is relative to what lies around
it, and temperature to what the height explains. The tasselled cap alone is of reflectance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from glacier_core.raster.bands import find_common
from glacier_core.raster.flow import drained
from glacier_core.raster.grid import Grid, Window
from glacier_core.raster.sun import Sun, cast_shadow, hillshade, how_to_tell, sun_in

Pixels = npt.NDArray[np.float32]

# DEMs are stepped, and their errors are of a pixel or two: curvature is that of smoothed heights.
_SMOOTHED_M = 50.0
_FLAT = 1e-4  # square of a gradient that has no direction to speak of, 0.6 degrees
_MOST_LOG = 4.0  # of a ratio: a factor of 55, which only shadow and noise exceed
_MOST_CURVED = 3.0
# Crist 1985, for reflectance: of an empirical plane that soils and plants of a place lie in.
_CAP_BANDS = ("blue", "green", "red", "nir", "swir1", "swir2")
_CAP = {
    "cap_brightness": (0.2043, 0.4158, 0.5524, 0.5741, 0.3124, 0.2303),
    "cap_greenness": (-0.1603, -0.2819, -0.4934, 0.7940, -0.0002, -0.1446),
    "cap_wetness": (0.0315, 0.2021, 0.3102, 0.1594, -0.6806, -0.6109),
}
_MOST_SPREADS = 4.0
_SMALLEST_SPREAD = 1e-3  # of a temperature, as a share of it: a third of a kelvin
SCALES_M = (100, 250, 500, 1000, 2000)
"""Reaches of topographic position, from a gully to a valley; those of 30 m pixels and glaciers."""
FLOWS_M = (500, 2000)
"""Reaches of flow, from a hollow to a glacier's valley."""
# Water runs over heights smoothed over this share of the reach, or the bumps of a debris-covered
# tongue and the errors of its DEM would hold it back.
_FLOW_SMOOTHED = 0.1
_SHADOW_M = 3000.0  # at 40 degrees of sun, ground that stands 2,500 m higher


@dataclass(frozen=True)
class Ground:
    """What a derivation looks at.

    Attributes:
        bands: by common name (`green`, `elevation`; see `find_common`), float32 (height, width), NaN
            where not seen.
        steps: metres to the east and north that a column, and a row, leads; see `Grid.steps_m`.
        sun: where it stood; None where no channel asks.
    """

    bands: Mapping[str, Pixels]
    steps: tuple[tuple[float, float], tuple[float, float]]
    sun: Sun | None = None

    @property
    def pixel_m(self) -> float:
        """Edge of a square as large as a pixel."""
        return _pixel_m(self.steps)

    def gradient(self, values: Pixels) -> tuple[Pixels, Pixels]:
        """Change a metre to the east, and to the north."""
        if min(values.shape) < 2:
            unknown = np.full_like(values, np.nan)
            return unknown, unknown
        by_row, by_col = np.gradient(values)
        (col_east, col_north), (row_east, row_north) = self.steps
        determinant = np.float32(col_east * row_north - col_north * row_east)
        east = (np.float32(row_north) * by_col - np.float32(col_north) * by_row) / determinant
        north = (np.float32(col_east) * by_row - np.float32(row_east) * by_col) / determinant
        return np.asarray(east, np.float32), np.asarray(north, np.float32)

    def mean_around(self, values: Pixels, metres: float) -> Pixels:
        """Mean of what is known in the square that reaches so far; NaN where its middle is not."""
        size = 2 * max(1, round(metres / self.pixel_m)) + 1
        known = np.isfinite(values)
        # Sums are kept in float64, or they would drift along a row; past the edge nothing is known.
        around = partial(ndimage.uniform_filter, size=size, mode="constant", output=np.float64)
        total = around(np.where(known, values, np.float32(0)))
        mean = np.full_like(values, np.nan)
        np.divide(total, around(known.astype(np.float32)), out=mean, where=known, casting="same_kind")  # fmt: skip
        return mean


def _pixel_m(steps: tuple[tuple[float, float], tuple[float, float]]) -> float:
    (a, b), (c, d) = steps
    return float(np.sqrt(abs(a * d - b * c)))


@dataclass(frozen=True)
class Derivation:
    """How a channel is worked out.

    Attributes:
        needs: common names of bands.
        reach_m: how far from a pixel it looks, metres, beside the neighbours of a gradient; 0 for
            the pixel alone.
        work: float32 (height, width), NaN where a band that it needs was not seen.
        sunlit: whether it needs the sun's place, which the tags of a scene tell.
    """

    needs: tuple[str, ...]
    reach_m: float
    work: Callable[[Ground], Pixels]
    sunlit: bool = False


def _index(ground: Ground, first: str, second: str) -> Pixels:
    """Normalised difference, -1 to 1; 0 where both are dark, which says nothing."""
    a, b = (np.maximum(ground.bands[name], 0) for name in (first, second))
    found = np.where(np.isfinite(a + b), np.float32(0), np.float32(np.nan))
    np.divide(a - b, a + b, out=found, where=a + b > 0)
    return found


def _ratio(ground: Ground, first: str, second: str) -> Pixels:
    """Natural logarithm of a band ratio, -4 to 4; 0 where both are dark, which says nothing.

    Surface reflectance of snow is often below 0 in short wave: as far as the ratio goes, not 0.
    """
    a, b = (np.maximum(ground.bands[name], 0) for name in (first, second))
    found = np.where(np.isfinite(a + b), np.float32(0), np.float32(np.nan))
    with np.errstate(divide="ignore"):
        np.subtract(np.log(a), np.log(b), out=found, where=a + b > 0)
    return np.clip(found, -_MOST_LOG, _MOST_LOG)


def _cap(ground: Ground, weights: Sequence[float]) -> Pixels:
    """A component of the tasselled cap (Crist 1985), in the unit of the bands."""
    first, *others = (
        np.float32(weight) * ground.bands[name]
        for name, weight in zip(_CAP_BANDS, weights, strict=True)
    )
    return sum(others, start=first)


def _steepness(ground: Ground, metres: float) -> Pixels:
    """Slope in degrees; of the heights' means within `metres`, if any."""
    height = ground.bands["elevation"]
    if metres:
        height = ground.mean_around(height, metres)
    steepness: Pixels = np.degrees(np.arctan(np.hypot(*ground.gradient(height))))
    return steepness


def _facing(ground: Ground, direction: int) -> Pixels:
    """Sine (east, 0) or cosine (north, 1) of the aspect; 0 where it is flat."""
    gradient = ground.gradient(ground.bands["elevation"])
    steepness = np.hypot(*gradient)
    facing = -gradient[direction]
    return np.divide(facing, steepness, out=facing, where=steepness > 0)


def _position(ground: Ground, metres: float) -> Pixels:
    """Topographic position (Weiss 2001): height above the mean around, as a share of the reach.

    As a share, ridges and valleys of every scale are of one order.
    """
    height = ground.bands["elevation"]
    position: Pixels = (height - ground.mean_around(height, metres)) / np.float32(metres)
    return position


def _roughness(ground: Ground, metres: float) -> Pixels:
    """log(1 + standard deviation of the heights within `metres`), metres."""
    height = ground.bands["elevation"]
    # Above the mean around, or float32 would lose the small differences of large squares.
    left = height - ground.mean_around(height, 4 * metres)
    spread = ground.mean_around(left * left, metres) - ground.mean_around(left, metres) ** 2
    roughness: Pixels = np.log1p(np.sqrt(np.maximum(spread, 0)))
    return roughness


def _curvature(ground: Ground, *, across: bool) -> Pixels:
    """Second derivative of the height across the slope (plan) or along it (profile), in 1/100 m.

    Positive where it bulges out, -3 to 3 (Zevenbergen and Thorne 1987, without the factor 2).
    """
    east, north = ground.gradient(ground.mean_around(ground.bands["elevation"], _SMOOTHED_M))
    (ee, en), (_, nn) = ground.gradient(east), ground.gradient(north)
    square = east**2 + north**2
    if across:
        bend = ee * north**2 - 2 * en * east * north + nn * east**2
    else:
        bend = ee * east**2 + 2 * en * east * north + nn * north**2
    found = np.where(np.isfinite(bend), np.float32(0), np.float32(np.nan))
    np.divide(bend, square, out=found, where=square > _FLAT)
    curvature: Pixels = np.clip(-100 * found, -_MOST_CURVED, _MOST_CURVED)
    return curvature


def _lapse(ground: Ground, metres: float) -> Pixels:
    """Temperature beyond what the height explains, in its own standard deviations, -4 to 4.

    In the square around, temperature is a line over height (least squares). Rock in the sun lies
    above the line; debris on ice is cold for its height. The thermal band's unit does not matter.
    """
    both = ground.bands["thermal"] + ground.bands["elevation"]
    unseen = ~np.isfinite(both)
    height, warmth = (
        np.where(unseen, np.float32(np.nan), ground.bands[name])
        for name in ("elevation", "thermal")
    )
    mean = partial(ground.mean_around, metres=metres)
    z, t = height - mean(height), warmth - mean(warmth)
    zz, zt, tt = mean(z * z), mean(z * t), mean(t * t)
    slope = zt / np.maximum(zz, 1.0)
    spread = np.sqrt(np.maximum(tt - slope * zt, 0))
    spread = np.maximum(spread, _SMALLEST_SPREAD * np.abs(warmth) + np.float32(1e-6))
    return np.clip((t - slope * z) / spread, -_MOST_SPREADS, _MOST_SPREADS)


def _flow(ground: Ground, metres: float) -> Pixels:
    """log of the ground that drains through a pixel from within `metres`, by that of a plane.

    That is drained area over the width of a pixel and the reach: 0 on a plane, whatever the
    pixels, above where slopes run together, below where they part.
    """
    height = ground.mean_around(ground.bands["elevation"], _FLOW_SMOOTHED * metres)
    paths = int(-(-metres // ground.pixel_m))
    flow = drained(height, ground.steps, paths)
    np.log(flow, out=flow)
    return flow - np.float32(np.log(paths + 1))


def _hillshade(ground: Ground) -> Pixels:
    assert ground.sun is not None
    return hillshade(ground.gradient(ground.bands["elevation"]), ground.sun)


def _cast_shadow(ground: Ground) -> Pixels:
    assert ground.sun is not None
    # No further than the window is sure to reach, where pixels are not square.
    most = int(-(-_SHADOW_M // ground.pixel_m))
    return cast_shadow(ground.bands["elevation"], ground.steps, ground.sun, _SHADOW_M, most)


DERIVED: dict[str, Derivation] = {
    "ndsi": Derivation(("green", "swir1"), 0, partial(_index, first="green", second="swir1")),
    "ndvi": Derivation(("nir", "red"), 0, partial(_index, first="nir", second="red")),
    "ndwi": Derivation(("green", "nir"), 0, partial(_index, first="green", second="nir")),
    "nir_swir": Derivation(("nir", "swir1"), 0, partial(_ratio, first="nir", second="swir1")),
    "red_swir": Derivation(("red", "swir1"), 0, partial(_ratio, first="red", second="swir1")),
    "blue_red": Derivation(("blue", "red"), 0, partial(_ratio, first="blue", second="red")),
    **{
        name: Derivation(_CAP_BANDS, 0, partial(_cap, weights=weights))
        for name, weights in _CAP.items()
    },
    "steepness": Derivation(("elevation",), 1, partial(_steepness, metres=0)),
    "steepness_100m": Derivation(("elevation",), 100, partial(_steepness, metres=100)),
    "eastness": Derivation(("elevation",), 1, partial(_facing, direction=0)),
    "northness": Derivation(("elevation",), 1, partial(_facing, direction=1)),
    **{
        f"position_{m}m": Derivation(("elevation",), m, partial(_position, metres=m))
        for m in SCALES_M
    },
    "roughness": Derivation(("elevation",), 300, partial(_roughness, metres=60)),
    "curvature_plan": Derivation(("elevation",), _SMOOTHED_M, partial(_curvature, across=True)),
    "curvature_profile": Derivation(("elevation",), _SMOOTHED_M, partial(_curvature, across=False)),
    **{
        f"flow_{m}m": Derivation(("elevation",), (1 + _FLOW_SMOOTHED) * m, partial(_flow, metres=m))
        for m in FLOWS_M
    },
    "hillshade": Derivation(("elevation",), 1, _hillshade, sunlit=True),
    "cast_shadow": Derivation(("elevation",), _SHADOW_M, _cast_shadow, sunlit=True),
    "thermal_lapse": Derivation(("thermal", "elevation"), 4000, partial(_lapse, metres=2000)),
}
"""By channel name. `docs/channels.md` says what each is good for."""

TERRAIN_ALONE = frozenset(name for name, how in DERIVED.items() if how.needs == ("elevation",))
"""Channels that a DEM gives, also where no satellite looked."""


def misspelt(names: Sequence[str]) -> str:
    """Derived channels that may have been meant by other names; a sentence for the end of a message."""
    # Closer than the bands of one sensor are to each other's ratios: SWIR is not nir_swir.
    unknown = [name.lower() for name in names if name not in DERIVED]
    meant = [near for name in unknown for near in get_close_matches(name, DERIVED, 1, 0.75)]
    return f" Channels that are worked out: did you mean {' or '.join(meant)}?" if meant else ""


class Derived:
    """The derived channels of one scene.

    Attributes:
        names: in the order in which they were wanted.
    """

    def __init__(
        self,
        wanted: Sequence[str],
        bands: Sequence[str],
        grid: Grid,
        tags: Mapping[str, str],
        path: Path,
    ) -> None:
        """Choose among `wanted` what is no band, and can be worked out from `bands`.

        Args:
            wanted: names of channels, bands among them.
            bands: names in the scene's file.
            grid: of the scene. What has no place on the ground has no terrain.
            tags: metadata items of the file; see `sun_in`.
            path: of the file, for messages.

        Raises:
            InputError: the sun's place is needed, and the tags tell an impossible one.
        """
        self._bands, self._grid, self._path = list(bands), grid, path
        known = [name for name in dict.fromkeys(wanted) if name in DERIVED and name not in bands]
        # Where no channel asks, a scene may say of the sun what it likes, or that it was night.
        asked = any(DERIVED[name].sunlit for name in known)
        self._sun = sun_in(tags, path) if asked else None
        self.names = [
            name
            for name in known
            if all(find_common(bands, need) is not None for need in DERIVED[name].needs)
            and (grid.located or "elevation" not in DERIVED[name].needs)
            and (self._sun is not None or not DERIVED[name].sunlit)
        ]
        # Those of the middle, so that a pixel's value does not depend on the window it is read by.
        located = grid.located and bool(self.names)
        middle = (grid.height // 2, grid.width // 2)
        self._steps = grid.steps_m(*middle) if located else ((1.0, 0.0), (0.0, -1.0))

    def lacking(self, names: Sequence[str]) -> tuple[list[str], str]:
        """What the scene lacks for some derived channels that were wanted: common names of bands,
        and sentences for the end of a message."""
        absent: dict[tuple[str, ...], list[str]] = {}
        for name in names:
            needs = DERIVED[name].needs if name in DERIVED else ()
            without = tuple(need for need in needs if find_common(self._bands, need) is None)
            if without:
                absent.setdefault(without, []).append(name)
        words = [
            f" Worked out from {' and '.join(needs)}, which it lacks, would be {', '.join(those)}."
            for needs, those in absent.items()
        ]
        dark = [name for name in names if name in DERIVED and DERIVED[name].sunlit]
        if dark and self._sun is None:
            words.append(
                f" Worked out from the sun's place, which its tags do not tell, would be "
                f"{', '.join(dark)}: {how_to_tell(self._path)}."
            )
        return [need for needs in absent for need in needs], "".join(words)

    def work_out(
        self,
        names: Sequence[str],
        window: Window,
        read: Callable[[Window, Sequence[int]], Sequence[Pixels]],
    ) -> list[Pixels]:
        """Channels of a window, float32 (height, width) each.

        Args:
            names: some of `names`.
            window: its pixels.
            read: gives bands of a window by their positions, float32, NaN where not seen.
        """
        chosen = [DERIVED[name] for name in names]
        reach = max(how.reach_m for how in chosen)
        # One pixel more for a gradient, two for that of a gradient.
        margin = int(-(-reach // _pixel_m(self._steps))) + 2 if reach else 0
        around = Window(
            window.row - margin,
            window.col - margin,
            window.height + 2 * margin,
            window.width + 2 * margin,
        ).intersection(self._grid.window)
        if around is None:
            raise ValueError(f"{window} lies outside the scene")
        needs = list(dict.fromkeys(need for how in chosen for need in how.needs))
        layers = read(around, [self._position(need) for need in needs])
        ground = Ground(dict(zip(needs, layers, strict=True)), self._steps, self._sun)
        inside = window.within(around).slices
        return [how.work(ground)[inside] for how in chosen]

    def _position(self, need: str) -> int:
        position = find_common(self._bands, need)
        if position is None:  # `names` holds none such
            raise LookupError(need)
        return position
