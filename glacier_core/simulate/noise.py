"""Random fields with a chosen texture: the raw material of ground, snow and cloud."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import fft

Field = NDArray[np.float32]
"""A single-band raster on the site's grid, (row, col), row 0 in the north."""

Mask = NDArray[np.bool_]
"""A yes/no raster on the site's grid, (row, col)."""


def fractal(
    rng: np.random.Generator,
    shape: tuple[int, int],
    *,
    slope: float,
    shortest: float = 2.0,
    longest: float = 1e9,
) -> Field:
    """Make a random field whose amplitude falls as a power of the wavelength.

    The field is periodic in both directions, so that it may be rolled without a seam.

    Args:
        rng: source of randomness; exactly one draw of ``shape`` numbers is taken.
        shape: (rows, cols).
        slope: exponent of the amplitude spectrum; 0 is white noise, 1 looks like cloud,
            2 like rolling hills.
        shortest: wavelengths below this, in pixels, are left out.
        longest: wavelengths above this, in pixels, are left out.

    Returns:
        float32 (rows, cols) with mean 0 and standard deviation 1.
    """
    white = rng.standard_normal(shape, dtype=np.float32)
    spectrum = fft.rfft2(white)
    frequency = np.hypot(
        fft.fftfreq(shape[0]).astype(np.float32)[:, None],
        fft.rfftfreq(shape[1]).astype(np.float32)[None, :],
    )
    frequency[0, 0] = 1.0
    weight = frequency**-slope
    # Soft shoulders: a hard cut in frequency rings visibly in space.
    weight *= np.exp(-((frequency * shortest) ** 4) / 4)
    weight *= 1 - np.exp(-((frequency * longest) ** 2))
    weight[0, 0] = 0.0
    field = fft.irfft2(spectrum * weight, s=shape)
    return np.asarray(field / field.std(), dtype=np.float32)


def smoothstep(value: Field, low: float, high: float) -> Field:
    """Rise softly from 0 at ``low`` to 1 at ``high`` (may be the smaller of the two)."""
    t = np.clip((value - low) / (high - low), 0, 1)
    return np.asarray(t * t * (3 - 2 * t), dtype=np.float32)
