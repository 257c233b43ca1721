"""Band names: what each means, which values it cannot have, what its quality bits say."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

# The 15-band ETM+ stack of the reference data, in file order.
ETM_STACK = "B1 B2 B3 B4 B5 B6_VCID_1 B6_VCID_2 B7 B8 BQA NDWI NDSI NDVI elevation slope".split()

# ETM+ digital numbers run from 1 to 255; 0 is fill, also where a file declares no nodata
# (Landsat 7 Data Users Handbook, section 5). Each band has its own: scan-line gaps differ by band.
ZERO_IS_FILL = frozenset("B1 B2 B3 B4 B5 B6_VCID_1 B6_VCID_2 B7 B8".split())

SNOW_INDEX = 0.4
"""Snow and ice have a normalised difference snow index above this (Dozier 1989; Hall et al. 1995)."""

TERRAIN = frozenset("elevation elevation_m slope slope_deg".split())
"""Bands that a DEM gives, also where no satellite looked."""

# Common names of the bands that rules need, by the names met in files.
_COMMON = {
    "blue": ("B1", "blue", "SR_B2_blue", "S2_B02_blue", "SR_B2"),
    "green": ("B2", "green", "SR_B3_green", "S2_B03_green", "SR_B3"),
    "red": ("B3", "red", "SR_B4_red", "S2_B04_red", "SR_B4"),
    "nir": ("B4", "nir08", "nir", "S2_B08_nir", "SR_B5"),
    "swir1": ("B5", "swir16", "SR_B6_swir1", "S2_SWIR1", "SR_B6"),
    "swir2": ("B7", "swir22", "SR_B7_swir2", "S2_SWIR2", "SR_B7"),
    "thermal": ("B6_VCID_1", "lwir", "lwir11", "ST_B10_thermal", "L8_TIRS_DN", "ST_B6", "ST_B10"),
    "elevation": ("elevation", "elevation_m"),
}


def band_names(text: str | None) -> list[str] | None:
    """Names from `--bands`: a comma-separated list, or `etm15` for the 15-band ETM+ stack."""
    if text is None:
        return None
    return ETM_STACK if text == "etm15" else [name.strip() for name in text.split(",")]


def find_common(names: Sequence[str], common: str) -> int | None:
    """Position in `names` of the band that is `common` (a key of `_COMMON`: green), or None."""
    for name in _COMMON[common]:
        if name in names:
            return names.index(name)
    return None


def how_to_get(missing: Iterable[str], bands: Iterable[str]) -> str:
    """How a Collection 2 scene comes by bands that it lacks; a sentence for the end of a message.

    Args:
        missing: names of the bands.
        bands: that the scene has.

    Returns:
        Empty where there is nothing to say.
    """
    missing = set(missing)
    if "QA_PIXEL" not in bands:
        return ""
    if missing & TERRAIN:
        return (
            " Elevation and slope come from a DEM: name it in conf/landsat.yaml (dem_path), then "
            "`glacier ingest` the product again."
        )
    if "lwir" in missing:
        return (
            " Only products with surface temperature (L2SP) have lwir: choose channels without it, or "
            "leave this scene out."
        )
    return ""


def _bit(values: npt.NDArray[np.int64], bit: int) -> npt.NDArray[np.bool_]:
    set_there: npt.NDArray[np.bool_] = (values & (1 << bit)) != 0
    return set_there


def _collection_1_unseen(values: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    # Landsat Collection 1 Level 1 quality band: 0 fill, 1 dropped pixel, 4 cloud,
    # 7-8 confidence of cloud shadow (3 = high).
    unseen: npt.NDArray[np.bool_] = (values >> 7 & 0b11) == 0b11
    for bit in (0, 1, 4):
        unseen |= _bit(values, bit)
    return unseen


def _collection_2_unseen(values: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    # Landsat Collection 2 QA_PIXEL: 0 fill, 1 dilated cloud, 2 cirrus, 3 cloud, 4 cloud shadow.
    unseen = _bit(values, 0)
    for bit in (1, 2, 3, 4):
        unseen |= _bit(values, bit)
    return unseen


QUALITY_BANDS = {"BQA": _collection_1_unseen, "QA_PIXEL": _collection_2_unseen}


def unseen_by_quality(name: str, values: npt.NDArray[np.generic]) -> npt.NDArray[np.bool_]:
    """Where a quality band says that the ground was not seen: fill, cloud, cloud shadow.

    Args:
        name: a key of `QUALITY_BANDS`.
        values: (height, width), the band as stored; NaN counts as fill.

    Returns:
        bool (height, width).
    """
    finite = np.isfinite(values.astype(np.float64))
    bits = np.where(finite, values, 1).astype(np.int64)
    return QUALITY_BANDS[name](bits)
