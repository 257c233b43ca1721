"""Making reflectances of one sensor like those of another, and indices of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

Layer = npt.NDArray[np.float32]

# ETM+ = summand + factor x OLI, surface reflectance, ordinary least squares (Roy et al. 2016,
# Remote Sensing of Environment 185, 57-70, doi:10.1016/j.rse.2015.12.024, Table 2). From six
# months of overlapping scenes of the United States, snow and clouds left out.
ROY_2016: dict[str, tuple[float, float]] = {
    "blue": (0.8850, 0.0183),
    "green": (0.9317, 0.0123),
    "red": (0.9372, 0.0123),
    "nir08": (0.8339, 0.0448),
    "swir16": (0.8639, 0.0306),
    "swir22": (0.9165, 0.0116),
}
"""(factor, summand) by common name; TM is taken for ETM+."""

# NDSI: Hall et al. 1995; NDVI: Tucker 1979; NDWI: McFeeters 1996, that of open water.
_INDICES = {
    "NDSI": ("green", "swir16"),
    "NDVI": ("nir08", "red"),
    "NDWI": ("green", "nir08"),
}


def harmonisation(sensor: str, method: str) -> Mapping[str, tuple[float, float]]:
    """(factor, summand) by common name that make a sensor's reflectance like ETM+'s; or none.

    Args:
        sensor: as in product ids, LC08.
        method: `none` or `roy2016`.
    """
    oli = sensor[2:] in ("08", "09")
    return ROY_2016 if method == "roy2016" and oli else {}


def bands_of(index: str) -> tuple[str, str]:
    """The two bands that a normalised difference needs."""
    return _INDICES[index]


def spectral_index(index: str, bands: Mapping[str, Layer]) -> Layer:
    """A normalised difference of two reflectances, (a - b) / (a + b).

    Atmospheric correction leaves dark ground with reflectances a little below 0, which would carry
    the quotient anywhere; they count as 0.

    Args:
        index: NDSI, NDVI or NDWI.
        bands: float32 (height, width) by common name, NaN where not seen.

    Returns:
        float32 (height, width), -1 to 1; NaN where either was not seen or both are 0.
    """
    first, second = (np.maximum(bands[name], 0) for name in bands_of(index))
    total = first + second
    with np.errstate(invalid="ignore"):  # 0 / 0, which is not known
        quotient: Layer = (first - second) / total
    return quotient
