"""From light to digital numbers: air, cloud, ETM+ gains, noise, gaps and the QA band."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

import numpy as np
from scipy import ndimage

from glacier_core.raster.sun import Sun
from glacier_core.simulate.noise import Field, Mask, fractal, smoothstep
from glacier_core.simulate.surface import BANDS, Surface

SLC_FAILURE = date(2003, 5, 31)
"""The day on which the scan line corrector of Landsat 7 failed."""

# Landsat 7 Science Data Users Handbook, ch. 11; Chander et al. 2009, tables 4 and 5.
# High gain for bands 1 to 5, 7 and 8. Radiances in W/(m2 sr um).
SOLAR = (1969.0, 1840.0, 1551.0, 1044.0, 225.7, 82.07, 1368.0)
LOWEST = (-6.2, -6.4, -5.0, -5.1, -1.0, -0.35, -4.7)
HIGHEST = (191.6, 196.5, 152.9, 157.4, 31.06, 10.80, 158.3)
THERMAL = {"B6_VCID_1": (0.0, 17.04), "B6_VCID_2": (3.2, 12.65)}
K1, K2 = 666.09, 1282.71

SKY_LIGHT = (0.150, 0.110, 0.085, 0.060, 0.030, 0.020, 0.085)
"""Light from the whole sky as a share of the sun's, clear and thin mountain air."""

HAZE = (0.038, 0.020, 0.013, 0.008, 0.0025, 0.0010, 0.013)
"""Reflectance of the air itself at 4500 m height, clear sky."""

CLOUD_WHITE = (0.80, 0.79, 0.78, 0.76, 0.48, 0.36, 0.78)

# Bits of the Collection 1 quality band of Landsat 7 (USGS LSDS-1656).
QA_FILL, QA_CLOUD = 1, 1 << 4
QA_LOW = (1 << 5) | (1 << 7) | (1 << 9)
QA_CLOUD_MEDIUM, QA_CLOUD_HIGH = 2 << 5, 3 << 5
QA_SHADOW_HIGH, QA_SNOW_HIGH = 3 << 7, 3 << 9

GAP_REPEAT = 33.0
"""Pixels from one SLC-off gap to the next: two sweeps of 16 detectors."""

HALF_SWATH = 3100.0
"""Pixels from the middle of a full scene to its edge."""


@dataclass(frozen=True)
class Shot:
    """What the sensor delivers.

    Attributes:
        dn: digital numbers 1 to 255 by band name, float32 (rows, cols), NaN in gaps.
        qa: Collection 1 quality values, float32 (rows, cols).
        cloud: share of light blocked by cloud, 0 to 1.
    """

    dn: dict[str, Field]
    qa: Field
    cloud: Field


def sun_position(day: date, latitude: float) -> Sun:
    """Where the sun stands when Landsat 7 passes, 10:10 in local solar time."""
    declination = np.radians(-23.44 * np.cos(2 * np.pi * (day.timetuple().tm_yday + 10) / 365.25))
    hour, at = np.radians(-27.5), np.radians(latitude)
    sine = np.sin(at) * np.sin(declination) + np.cos(at) * np.cos(declination) * np.cos(hour)
    elevation = np.arcsin(sine)
    east = -np.cos(declination) * np.sin(hour)
    north = np.cos(at) * np.sin(declination) - np.sin(at) * np.cos(declination) * np.cos(hour)
    azimuth = np.degrees(np.arctan2(east, north)) % 360
    return Sun(float(azimuth), float(np.degrees(elevation)))


def _clouds(rng: np.random.Generator, shape: tuple[int, int], sun: Sun) -> tuple[Field, Field]:
    """Cloud cover and its shadow, each 0 to 1."""
    field = fractal(rng, shape, slope=1.6, shortest=4, longest=260)
    share = float(np.clip(rng.gamma(2.0, 0.022), 0.008, 0.13))
    level = float(np.quantile(field, 1 - share))
    cloud = smoothstep(field, level - 0.22, level + 0.42)
    # The field is periodic, so that the shadow of cloud outside the scene falls into it.
    above = float(rng.uniform(900, 2200))
    reach = above / np.tan(np.radians(sun.elevation)) / 30
    north, east = np.cos(np.radians(sun.azimuth)), np.sin(np.radians(sun.azimuth))
    shadow = np.roll(cloud, (round(reach * north), -round(reach * east)), (0, 1))
    shadow = ndimage.gaussian_filter(shadow, 1.5)
    return cloud, shadow * (1 - cloud)


def gap_masks(rng: np.random.Generator, shape: tuple[int, int]) -> dict[str, Mask]:
    """SLC-off gaps of each reflective and thermal band.

    Gaps widen in proportion to the distance from the middle of the full scene, where the
    site is taken to lie between 15 and 40 % of the way to the edge.

    Args:
        rng: source of randomness.
        shape: (rows, cols).
    """
    tilt = np.radians(14.0)
    rows, cols = np.ogrid[: shape[0], : shape[1]]
    # The orbit descends to the south-south-west, so that sweeps sink towards the east.
    across = cols * np.cos(tilt) + rows * np.sin(tilt)
    along = rows * np.cos(tilt) - cols * np.sin(tilt)
    side = 1 if rng.random() < 0.5 else -1
    start = rng.uniform(0.15, 0.40) * HALF_SWATH
    phase = rng.uniform(0, GAP_REPEAT)
    masks = {}
    for band in (*BANDS[:5], "B6_VCID_1", "B6_VCID_2", *BANDS[5:]):
        late = rng.uniform(-1.2, 1.2)
        offset = np.abs(start + side * (across - shape[1] / 2))
        # Up to 14 of 33 lines are lost at the edge of a full scene.
        width = 14 * offset / HALF_SWATH + rng.uniform(-0.4, 0.4)
        place = (along + phase + late) % GAP_REPEAT
        masks[band] = np.abs(place - GAP_REPEAT / 2) < width / 2
    return masks


def _count(radiance: Field, low: float, high: float) -> Field:
    """Radiance to DN: 1 at the lowest, 255 at the highest, cut off beyond."""
    return np.asarray(
        np.clip(np.rint((radiance - low) / (high - low) * 254 + 1), 1, 255), dtype=np.float32
    )


def expose(
    surface: Surface,
    height: Field,
    sun: Sun,
    day: date,
    rng: np.random.Generator,
    margin: int,
) -> Shot:
    """Take the picture.

    Args:
        surface: what the light meets, margin included.
        height: its height in m.
        sun: the sun.
        day: the date: distance of the sun, and whether the scan line corrector works.
        rng: source of randomness for the day: haze, cloud, noise, gaps.
        margin: pixels to cut off on each side.
    """
    inner = (slice(margin, -margin), slice(margin, -margin))
    year_angle = 2 * np.pi * (day.timetuple().tm_yday - 4) / 365.25
    distance = 1 - 0.01672 * np.cos(year_angle)
    sine = float(np.sin(np.radians(sun.elevation)))
    cloud, shadow = _clouds(rng, height.shape, sun)
    thin_air = np.exp(-(height[inner] - 4500) / 7000)
    haze = thin_air * float(rng.uniform(0.75, 1.6))
    drift = 1 + rng.uniform(-0.03, 0.03, len(BANDS))
    cloud, shadow = cloud[inner], shadow[inner]
    direct = surface.direct[inner] * (1 - 0.75 * shadow)
    sky = surface.sky[inner]
    shape = direct.shape
    gaps = gap_masks(rng, shape) if day > SLC_FAILURE else {}
    # Sixteen detectors a sweep, each with its own small error; sweeps are tilted like gaps.
    rows, cols = np.ogrid[: shape[0], : shape[1]]
    detector = np.floor(rows * np.cos(0.244) - cols * np.sin(0.244)).astype(np.int64) % 16

    dn: dict[str, Field] = {}
    glow = ndimage.gaussian_filter(surface.reflectance[1] * surface.direct, 6.0)[inner]
    for band, name in enumerate(BANDS):
        bright = surface.reflectance[band][inner]
        # Slopes in shadow see the sunlit snow opposite.
        around = SKY_LIGHT[band] * sky * sine * (1 + 0.3 * shadow) + 0.10 * (1 - sky) * glow
        light = bright * (direct + around) + HAZE[band] * haze * sine
        light += cloud * (CLOUD_WHITE[band] * sine * (0.8 + 0.25 * cloud) - light)
        radiance = light * (SOLAR[band] * drift[band] / (np.pi * distance**2))
        step = (HIGHEST[band] - LOWEST[band]) / 254
        radiance += step * 0.7 * rng.standard_normal(shape, dtype=np.float32)
        radiance += (step * rng.normal(0, 0.35, 16)[detector]).astype(np.float32)
        dn[name] = _count(radiance.astype(np.float32), LOWEST[band], HIGHEST[band])

    warm = surface.temperature[inner] - 4 * shadow
    warm = warm + cloud * (255 - warm)
    radiance = K1 / (np.exp(K2 / warm) - 1)
    for name, (low, high) in THERMAL.items():
        noisy = radiance + 0.015 * rng.standard_normal(shape, dtype=np.float32)
        dn[name] = _count(noisy.astype(np.float32), low, high)

    qa = _quality(cloud, shadow, dn)
    for name, mask in gaps.items():
        dn[name][mask] = np.nan
    if gaps:
        qa[np.logical_or.reduce(list(gaps.values()))] = QA_FILL
    return Shot(dn, qa, cloud)


def _quality(cloud: Field, shadow: Field, dn: dict[str, Field]) -> Field:
    """Write the quality band, as imperfect as the real one: thin edges of cloud are missed."""
    qa = np.full(cloud.shape, QA_LOW, dtype=np.uint16)
    white = (dn["B2"] - dn["B5"]) / (dn["B2"] + dn["B5"]) > 0.55
    qa[white & (dn["B4"] > 60)] |= QA_SNOW_HIGH
    qa[shadow > 0.5] |= QA_SHADOW_HIGH
    qa[cloud > 0.18] = (QA_LOW & ~QA_CLOUD_HIGH) | QA_CLOUD_MEDIUM
    qa[cloud > 0.3] = QA_LOW | QA_CLOUD_HIGH | QA_CLOUD
    saturated = np.sum([dn[name] == 255 for name in BANDS], axis=0)
    # Bits 2-3: none, 1-2, 3-4, 5 or more bands.
    qa |= (np.clip((saturated + 1) // 2, 0, 3).astype(np.uint16)) << 2
    return qa.astype(np.float32)
