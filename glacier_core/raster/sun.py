"""Where the sun stood when a scene was taken, as the tags of its file say, and what it lit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from glacier_core.errors import InputError

Pixels = npt.NDArray[np.float32]

AZIMUTH, ELEVATION = "SUN_AZIMUTH", "SUN_ELEVATION"
"""Metadata items of a scene's file, named as in the MTL files of Landsat."""

# A ray that passes so many metres inside the ground is surely blocked, whatever the DEM's errors.
_SURE_M = 10.0


@dataclass(frozen=True)
class Sun:
    """Where the sun stands.

    Attributes:
        azimuth: clockwise from true north, degrees, 0 to 360.
        elevation: above the horizon, degrees, above 0 to 90.
    """

    azimuth: float
    elevation: float

    @classmethod
    def of(cls, azimuth: float | str, elevation: float | str) -> Sun:
        """The sun at these degrees; an azimuth from -180 is taken too, as Landsat's MTL counts.

        Raises:
            ValueError: these are no numbers, or none of a sun in the sky.
        """
        azimuth, elevation = float(azimuth), float(elevation)
        if not (-180 <= azimuth <= 360 and 0 < elevation <= 90):
            raise ValueError(f"no sun stands at azimuth {azimuth:g}, elevation {elevation:g}")
        return cls(azimuth % 360, elevation)

    @property
    def tags(self) -> dict[str, str]:
        """Metadata items that tell it; see `sun_in`."""
        return {AZIMUTH: f"{self.azimuth:.8f}", ELEVATION: f"{self.elevation:.8f}"}


def how_to_tell(path: Path) -> str:
    """What to do so that a file says where the sun stood; the end of a sentence."""
    return (
        f"set the tags {AZIMUTH} (clockwise from north) and {ELEVATION}, in degrees, for example "
        f"with `gdal_edit.py -mo {AZIMUTH}=151.2 -mo {ELEVATION}=38.4 {path}`"
    )


def sun_in(tags: Mapping[str, str], path: Path) -> Sun | None:
    """Where the sun stood by the tags of a file; None where there are none.

    Args:
        tags: metadata items of the dataset.
        path: of the file, for errors.

    Raises:
        InputError: one of the two tags is missing, or they hold no place of the sun.
    """
    told = [tags.get(name) for name in (AZIMUTH, ELEVATION)]
    if told == [None, None]:
        return None
    try:
        azimuth, elevation = (value or "" for value in told)
        return Sun.of(azimuth, elevation)
    except ValueError:
        raise InputError(
            f"{path}: its tags {AZIMUTH} = {told[0] or 'none'} and {ELEVATION} = "
            f"{told[1] or 'none'} tell no place of the sun (0 to 360, and above 0 to 90); "
            f"{how_to_tell(path)}"
        ) from None


def hillshade(gradient: tuple[Pixels, Pixels], sun: Sun) -> Pixels:
    """Cosine of the angle between the ground's normal and the sun (Lambert), -1 to 1.

    Negative where the ground is turned away from it.

    Args:
        gradient: rise of a metre to the east and to the north, (height, width) each.
        sun: where it stands.
    """
    east, north = gradient
    azimuth, elevation = np.radians([sun.azimuth, sun.elevation])
    towards = east * np.float32(np.sin(azimuth)) + north * np.float32(np.cos(azimuth))
    upright = np.float32(np.sin(elevation)) - np.float32(np.cos(elevation)) * towards
    cosine: Pixels = upright / np.sqrt(1 + east**2 + north**2)
    return cosine


def cast_shadow(
    height: Pixels,
    steps: tuple[tuple[float, float], tuple[float, float]],
    sun: Sun,
    reach_m: float,
    most: int,
) -> Pixels:
    """Shadow of higher ground between a pixel and the sun: 0 in the light, 1 well inside it.

    In between where the ground stands less than 10 m above the ray to the sun, as at the shadow's
    border and in the steps of a DEM. Slopes that are turned away from the sun are in their own. The
    ray is looked at where it crosses each next row, or column if it leads more along the rows,
    between the two pixels there. Where one of them is not known, nothing casts a shadow.

    Args:
        height: (height, width), metres, NaN where unknown.
        steps: metres to the east and north of a column and of a row; see `Grid.steps_m`.
        sun: where it stands, the same for all pixels.
        reach_m: how far is looked, metres.
        most: pixels along the rows or the columns after which it ends in any case.

    Returns:
        float32 (height, width), 0 to 1, NaN where the height is.
    """
    found = np.where(np.isnan(height), height, np.float32(0))
    known = height[np.isfinite(height)]
    if not known.size:
        return found
    (col_east, col_north), (row_east, row_north) = steps
    azimuth = np.radians(sun.azimuth)
    east, north = np.sin(azimuth), np.cos(azimuth)
    determinant = col_east * row_north - col_north * row_east
    by_col = (row_north * east - row_east * north) / determinant  # pixels a metre
    by_row = (col_east * north - col_north * east) / determinant
    metres = 1 / max(abs(by_col), abs(by_row))  # from one crossing to the next
    by_row, by_col = by_row * metres, by_col * metres
    rise = metres * np.tan(np.radians(sun.elevation))
    # Past this many the ray is higher than any ground.
    crossings = min(int(reach_m / metres), most, int(np.ptp(known) / rise) + 1)
    edged = np.pad(height, crossings + 1, constant_values=np.nan)
    ray, other = np.empty_like(height), np.empty_like(height)
    for k in range(1, crossings + 1):
        row, col = crossings + 1 + k * by_row, crossings + 1 + k * by_col
        # The one that is whole leads to the same pixel twice.
        top, left = int(np.floor(row + 1e-9)), int(np.floor(col + 1e-9))
        below, right = int(np.ceil(row - 1e-9)), int(np.ceil(col - 1e-9))
        far = np.float32(max(row - top, col - left, 0))
        np.multiply(_part(edged, top, left, height.shape), 1 - far, out=ray)
        np.multiply(_part(edged, below, right, height.shape), far, out=other)
        ray += other
        ray -= np.float32(k * rise)
        ray -= height
        np.fmax(found, ray, out=found)  # without the NaN of an unknown pixel on the way
    found /= np.float32(_SURE_M)
    return np.minimum(found, np.float32(1), out=found)


def _part(edged: Pixels, row: int, col: int, shape: tuple[int, ...]) -> Pixels:
    return edged[row : row + shape[0], col : col + shape[1]]
