"""What the ground reflects and how warm it is on one day: rock, ice, snow, plants, water."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from glacier_core.raster.sun import Sun
from glacier_core.simulate.ground import CLEAN_ICE, DEBRIS, PIXEL, Cover, Site
from glacier_core.simulate.noise import Field, fractal, smoothstep
from glacier_core.simulate.terrain import slope_degrees

BANDS = ("B1", "B2", "B3", "B4", "B5", "B7", "B8")
"""The reflective ETM+ bands, in the order of the tables below."""

Spectrum = tuple[float, float, float, float, float, float, float]

# Reflectance, 0 to 1. Rock, rubble and ice after the means of debris, rock and ice in
# Sentinel-2 scenes of the region; snow, plants and water after usual library spectra.
LITHOLOGIES: tuple[Spectrum, ...] = (
    (0.165, 0.185, 0.205, 0.225, 0.265, 0.235, 0.210),  # granite and gneiss
    (0.095, 0.102, 0.110, 0.122, 0.150, 0.135, 0.113),  # schist and slate
    (0.120, 0.150, 0.195, 0.225, 0.290, 0.255, 0.200),  # reddish sediments
)
SNOW: Spectrum = (0.93, 0.93, 0.91, 0.82, 0.11, 0.08, 0.89)
FIRN: Spectrum = (0.74, 0.75, 0.73, 0.62, 0.06, 0.045, 0.70)
ICE: Spectrum = (0.37, 0.38, 0.36, 0.29, 0.035, 0.025, 0.34)
DIRTY_ICE: Spectrum = (0.185, 0.195, 0.195, 0.175, 0.085, 0.07, 0.19)
PLANTS: Spectrum = (0.050, 0.075, 0.070, 0.235, 0.190, 0.110, 0.105)
WATER: Spectrum = (0.080, 0.075, 0.050, 0.020, 0.006, 0.004, 0.045)
MILKY_WATER: Spectrum = (0.165, 0.200, 0.150, 0.070, 0.010, 0.007, 0.140)
LAKE_ICE: Spectrum = (0.52, 0.53, 0.50, 0.40, 0.05, 0.035, 0.48)


@dataclass(frozen=True)
class Surface:
    """The surface as the light meets it.

    Attributes:
        reflectance: float32 (bands, rows, cols), in the order of ``BANDS``, 0 to 1.
        direct: cosine of the sun's angle to the surface, 0 where shaded; 0 to 1.
        sky: share of the sky that a pixel sees, 0 to 1.
        temperature: surface temperature in kelvin.
    """

    reflectance: NDArray[np.float32]
    direct: Field
    sky: Field
    temperature: Field


def cast_light(height: Field, sun: Sun) -> Field:
    """Cosine of the sun's angle to the surface, with cast shadows.

    Shadows are found by walking towards the sun with steps that double: the highest ground
    within 2n steps is the higher of that within n steps here and that within n steps, n
    steps on, so 128 pixels take seven passes over the raster.

    Args:
        height: (rows, cols) in m.
        sun: the sun.
    """
    azimuth, elevation = np.radians(sun.azimuth), np.radians(sun.elevation)
    north, east = np.cos(azimuth), np.sin(azimuth)
    to_south, to_east = np.gradient(height, PIXEL)
    upright = np.sin(elevation) + np.cos(elevation) * (to_south * north - to_east * east)
    cosine = upright / np.sqrt(1 + to_south**2 + to_east**2)

    drop = PIXEL * np.tan(elevation)
    horizon = height
    above = np.full_like(height, -1e4)
    for step in (1, 1, 2, 4, 8, 16, 32, 64):
        moved = ndimage.shift(
            horizon, (step * north, -step * east), order=1, mode="constant", cval=-1e4
        )
        moved -= np.float32(step * drop)
        above = np.maximum(above, moved)
        horizon = np.maximum(height, above)
    lit = smoothstep(above - height, 12, -4)
    return np.asarray(np.clip(cosine, 0, 1) * lit, dtype=np.float32)


def _blend(stack: NDArray[np.float32], spectrum: Spectrum, weight: Field, tone: Field) -> None:
    """Lay a material over the stack: ``weight`` 0 to 1, ``tone`` multiplies its spectrum."""
    for band, value in enumerate(spectrum):
        stack[band] += weight * (np.float32(value) * tone - stack[band])


def look(site: Site, cover: Cover, sun: Sun, rng: np.random.Generator) -> Surface:
    """Put materials, snow and light on a site on one day.

    Args:
        site: the ground.
        cover: what lies on it this year.
        sun: the sun.
        rng: source of randomness for the day: snow, lake ice, air temperature.
    """
    shape = site.shape
    height, slope = cover.height, slope_degrees(cover.height, PIXEL)
    direct = cast_light(height, sun)
    to_south, to_east = np.gradient(ndimage.gaussian_filter(height, 2.0), PIXEL)
    northness = to_south / np.sqrt(to_south**2 + to_east**2 + 0.05)
    ice = cover.truth == CLEAN_ICE
    debris = cover.truth == DEBRIS

    stack = np.zeros((len(BANDS), *shape), dtype=np.float32)
    steep = smoothstep(slope, 18, 36)
    for spectrum, weight in zip(LITHOLOGIES, site.lithology, strict=True):
        for band, value in enumerate(spectrum):
            stack[band] += np.float32(value) * weight
    # Loose rubble, on the glacier or off it, is finer and more even than rock walls.
    loose = 1.06 + 0.09 * site.patches + 0.05 * site.bumps
    loose = loose + np.where(debris, 0.05 * site.streaks - 0.02, 0)
    walls = 1.0 + 0.10 * site.gullies + 0.06 * site.texture + 0.08 * site.patches
    stack *= np.clip(loose + (walls - loose) * steep, 0.45, 1.8)

    plants = smoothstep(height + 130 * site.patches + 200 * northness, 4650, 4150)
    plants = plants * smoothstep(slope, 42, 25) * np.clip(0.75 + 0.25 * site.broad, 0, 1)
    plants = plants * ~debris
    _blend(stack, PLANTS, plants, 1 + 0.12 * site.bumps)

    # Snow of earlier in the year lasts on the upper glacier; below, the ice is bare.
    fresh_line = float(rng.uniform(10, 150))
    old_snow = smoothstep(cover.melting + 60 * site.patches + 60 * site.broad, 0, -220)
    soiled = smoothstep(site.streaks + 0.35 * site.patches, 0.3, 1.8)
    soiled = soiled * smoothstep(cover.melting, -50, 250)
    tone = 1 + 0.07 * site.bumps + 0.12 * site.streaks
    on_ice = ice.astype(np.float32)
    _blend(stack, ICE, on_ice, tone)
    _blend(stack, DIRTY_ICE, on_ice * soiled, tone)
    _blend(stack, FIRN, on_ice * old_snow, 1 + 0.04 * site.bumps)
    # Thin rubble lets ice show through; ice cliffs are small and bright.
    bare = debris * (1 - smoothstep(cover.debris_depth, 0, 0.16)) * 0.45
    cliffs = debris * smoothstep(site.bumps, 2.0, 2.8) * 0.5
    _blend(stack, DIRTY_ICE, np.maximum(bare, cliffs), tone)

    _blend(stack, MILKY_WATER, cover.pond.astype(np.float32), tone)
    for part, (milky, frozen) in site.lake_parts(cover.lake, rng):
        _blend(stack, MILKY_WATER if milky else WATER, part, np.ones(shape, np.float32))
        rim = part * smoothstep(site.patches, frozen - 0.5, frozen - 1.0) if frozen < 9 else part
        _blend(stack, LAKE_ICE, rim * (frozen > -9), tone)

    # The season's snow, off the glaciers as on them.
    ground = ndimage.gaussian_filter(height, 20.0)
    day = fractal(rng, shape, slope=1.1, shortest=3, longest=90)
    score = (
        (-cover.melting - fresh_line) / 170
        + 0.9 * northness
        + 0.9 * day
        + 0.4 * site.patches
        - 2.6 * smoothstep(slope, 33, 46)
        - 1.1 * debris
        - 0.4 * smoothstep(height - ground, 60, 220)
        + 0.3 * ice
        - 0.8
    ).astype(np.float32)
    snow = smoothstep(score, -0.35, 0.75)
    snow = snow * ~(cover.lake | cover.pond)
    _blend(stack, SNOW, snow, 1 + 0.03 * site.bumps)

    temperature = _warmth(site, cover, snow, plants, direct, sun, rng)
    sky = np.clip(0.9 + (height - ground) / 900, 0.55, 1) * (0.5 + 0.5 * np.cos(np.radians(slope)))
    return Surface(np.clip(stack, 0.002, 0.99), direct, sky.astype(np.float32), temperature)


def _warmth(
    site: Site,
    cover: Cover,
    snow: Field,
    plants: Field,
    direct: Field,
    sun: Sun,
    rng: np.random.Generator,
) -> Field:
    """Surface temperature in kelvin: a lapse rate of 6.5 K/km, sun, and ice that can't warm."""
    air = 281 + float(rng.uniform(-3, 3)) - 0.0065 * (cover.height - 4000)
    flat = np.sin(np.radians(sun.elevation))
    warm = air + 13 * (direct / flat) - 3 - 3 * plants + 0.8 * site.bumps
    debris = cover.truth == DEBRIS
    # Ice below the rubble keeps it cooler than ground beside it, the less so the thicker.
    warm = warm - debris * (5.5 - 3.0 * cover.debris_depth + 0.9 * site.patches)
    cold = np.minimum(air - 1 + 3 * direct, 272.5)
    white = np.maximum(snow, (cover.truth == CLEAN_ICE).astype(np.float32))
    warm = warm + white * (cold - warm)
    water = cover.lake | cover.pond
    warm = np.where(water, np.clip(air + 2, 272, 281), warm)
    # The thermal band's pixels are 60 m wide.
    return np.asarray(ndimage.gaussian_filter(warm.astype(np.float32), 0.9), dtype=np.float32)
