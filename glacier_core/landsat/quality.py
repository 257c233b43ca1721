"""Whether a new scene is fit to learn from and to map: cloud, snow, gaps, saturation, drift."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from glacier_core.config import Project
from glacier_core.dataset.statistics import ChannelStatistics
from glacier_core.errors import InputError
from glacier_core.files import whole_file
from glacier_core.labels.burning import Burner
from glacier_core.labels.inventory import outlines_for
from glacier_core.landsat.swath import Swath
from glacier_core.raster.bands import QUALITY_BANDS, SNOW_INDEX, TERRAIN, ZERO_IS_FILL, find_common
from glacier_core.raster.derived import TERRAIN_ALONE
from glacier_core.raster.grid import Grid, Window
from glacier_core.raster.scene import COVERED, Scene, date_in

logger = logging.getLogger(__name__)

ACCEPTED, REJECTED, REVIEW = "accepted", "rejected", "needs review"
TABLE = "data/landsat/quality.csv"
COLUMNS = (
    "scene product date verdict reasons covered no_value snow saturated worst_drift drift path checked"
).split()
"""Of the table. People may change a verdict, or take a row out: the scene is then looked at again."""

_STRIP_ROWS = 256
_INDEX = "ndsi"
# Eight bits of ETM+ end here; reflectance of 1 is all light (Landsat 7 Data Users Handbook).
_SATURATED_DN, _SATURATED_REFLECTANCE = 255, 1.0
_REFLECTANCE = frozenset("coastal blue green red nir08 swir16 swir22".split())


@dataclass(frozen=True)
class Quality:
    """What a look at a scene found.

    Attributes:
        scene: its name.
        product: id of the product that it was made of, empty where it is not known.
        path: of its file, from the project's folder where it lies in it; empty where there is none.
        date: ISO, or None.
        verdict: `accepted`, `rejected` or `needs review`.
        reasons: why it was not simply accepted.
        covered: share of the imaged swath under cloud or shadow.
        no_value: share of it without a value: scan-line gaps, saturation, voids of the DEM; 1
            where nothing was imaged.
        snow: share of the seen pixels away from known glaciers that look like snow; None where
            the channels do not tell.
        saturated: share of the seen pixels in which a channel is at its end.
        drift: by channel, distance of its mean from the training data's, in their standard
            deviations; empty where nothing was trained yet.
    """

    scene: str
    product: str
    path: str
    date: str | None
    verdict: str
    reasons: list[str]
    covered: float
    no_value: float
    snow: float | None
    saturated: float
    drift: dict[str, float]

    @property
    def worst_drift(self) -> tuple[str, float] | None:
        """The channel that drifted most, and by how much."""
        return max(self.drift.items(), key=lambda item: item[1]) if self.drift else None

    def row(self) -> dict[str, str]:
        """As a row of the table."""
        worst = self.worst_drift
        return {
            "scene": self.scene,
            "product": self.product,
            "date": self.date or "",
            "verdict": self.verdict,
            "reasons": "; ".join(self.reasons),
            "covered": f"{self.covered:.4f}",
            "no_value": f"{self.no_value:.4f}",
            "snow": "" if self.snow is None else f"{self.snow:.4f}",
            "saturated": f"{self.saturated:.4f}",
            "worst_drift": "" if worst is None else f"{worst[0]} {worst[1]:.2f}",
            "drift": json.dumps({name: round(value, 3) for name, value in self.drift.items()}),
            "path": self.path,
        }


@dataclass
class _Counts:
    swath: int = 0
    seen: int = 0
    covered: int = 0
    saturated: int = 0
    away: int = 0
    snow: int = 0


def check_scene(
    project: Project, path: Path, *, product: str = "", bands: list[str] | None = None
) -> Quality:
    """Look at a new scene, in one pass over its pixels.

    Args:
        project: for the channels that are used, the training data's statistics, the known
            outlines, and the limits (`landsat` in params.yaml).
        path: of the scene.
        product: id of what it was made of.
        bands: names in file order, for a file whose bands have none.

    Returns:
        What was found; a scene that cannot be used at all is `rejected`, with the reason.
    """
    name, day = path.stem, date_in(path.stem)
    place = place_in(project, path)
    limits, channels = project.params.landsat, project.postprocess.channels
    try:
        with Scene(path, bands, channels) as scene:
            counts, statistics = _counted(scene, channels, _known_ice(project, scene.grid))
    except InputError as error:
        return unusable(name, product, day, error, place)
    # What lies in the swath and was neither seen nor covered has no value; nothing seen lies outside.
    covered = counts.covered / max(counts.swath, 1)
    no_value = 1 - (counts.covered + counts.seen) / max(counts.swath, 1)
    snow = counts.snow / counts.away if counts.away and _sees_snow(channels) else None
    saturated = counts.saturated / max(counts.seen, 1)
    drift = _drift(project, statistics) if counts.seen else {}
    rejected, doubtful = [], []
    if not counts.swath or covered + no_value > limits.max_unseen:
        rejected.append(
            f"{100 * (covered + no_value):.0f} % of the swath not seen ({100 * covered:.0f} % cloud "
            f"or shadow), more than {100 * limits.max_unseen:.0f} %"
            if counts.swath
            else "nothing was imaged: no pixel has a value in any channel"
        )
    if snow is not None and snow > limits.max_snow:
        doubtful.append(
            f"snow on {100 * snow:.0f} % of the ground away from known glaciers, more than "
            f"{100 * limits.max_snow:.0f} %"
        )
    if saturated > limits.max_saturated:
        doubtful.append(
            f"{100 * saturated:.0f} % of the seen pixels saturated, more than "
            f"{100 * limits.max_saturated:.0f} %"
        )
    far = {channel: value for channel, value in drift.items() if value > limits.max_drift}
    if far:
        doubtful.append(
            "far from the training data: "
            + ", ".join(f"{channel} by {value:.1f} deviations" for channel, value in far.items())
            + f", more than {limits.max_drift:g}"
        )
    if day is None:
        doubtful.append("no date in its name")
    verdict = REJECTED if rejected else REVIEW if doubtful else ACCEPTED
    return Quality(
        name,
        product,
        place,
        day,
        verdict,
        rejected + doubtful,
        covered,
        no_value,
        snow,
        saturated,
        drift,
    )


def unusable(
    name: str, product: str, day: str | None, error: InputError, place: str = ""
) -> Quality:
    """A scene that cannot be looked at: rejected, and why."""
    return Quality(name, product, place, day, REJECTED, [str(error)], 0.0, 1.0, None, 0.0, {})


def place_in(project: Project, path: Path) -> str:
    """A path as the settings and the table have it: from the project's folder, if it lies there."""
    root, place = project.root.resolve(), path.resolve()
    return (place.relative_to(root) if place.is_relative_to(root) else place).as_posix()


def _sees_snow(channels: Sequence[str]) -> bool:
    both = [find_common(channels, name) for name in ("green", "swir1")]
    return None not in both or _INDEX in channels


def _known_ice(project: Project, grid: Grid) -> list[Burner]:
    """Outlines of every year: what was ice once is not what seasonal snow is told by."""
    files = {
        file for scene in project.masking.scenes.values() for file in scene.mask_paths.values()
    }
    burners = []
    for file in sorted(files):
        try:
            found = outlines_for(
                project.root / file, grid, year_field=None, scene_year=None, tolerance=0
            )
        except InputError as error:
            logger.warning("%s", error)
            continue
        burners.append(Burner(found.polygons, grid))
    return burners


def _counted(
    scene: Scene, channels: Sequence[str], known: Sequence[Burner]
) -> tuple[_Counts, ChannelStatistics]:
    counts, statistics = _Counts(), ChannelStatistics(channels)
    names, grid = list(channels), scene.grid
    swath = Swath(grid.height)
    # A DEM has heights, and a quality band bits, where no satellite looked.
    silent = TERRAIN | TERRAIN_ALONE | QUALITY_BANDS.keys()
    imaging = [k for k, name in enumerate(names) if name not in silent]
    for row in range(0, grid.height, _STRIP_ROWS):
        window = Window(row, 0, min(_STRIP_ROWS, grid.height - row), grid.width)
        values, unseen = scene.view(window, channels)
        seen = unseen == 0
        swath.add(row, np.logical_or.reduce(np.isfinite(values[imaging])))
        counts.seen += int(seen.sum())
        counts.covered += int((unseen == COVERED).sum())
        pixels = values[:, seen]
        statistics.partial_fit(pixels.T)
        counts.saturated += int(_saturated(names, pixels).sum())
        if _sees_snow(names):
            away = ~_burned(known, window)[seen]
            counts.away += int(away.sum())
            counts.snow += int((_bright(names, pixels) & away).sum())
    counts.swath = swath.pixels
    return counts, statistics


def _bright(names: Sequence[str], pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Which of the pixels (channels, pixels) are snow or ice; see `_sees_snow`."""
    green, swir = (find_common(names, name) for name in ("green", "swir1"))
    if green is None or swir is None:
        index: npt.NDArray[np.float32] = pixels[names.index(_INDEX)]
        return index > SNOW_INDEX
    difference = pixels[green] - pixels[swir]
    bright: npt.NDArray[np.bool_] = difference > SNOW_INDEX * np.abs(pixels[green] + pixels[swir])
    return bright


def _burned(known: Sequence[Burner], window: Window) -> npt.NDArray[np.bool_]:
    inside = np.zeros((window.height, window.width), dtype=bool)
    for burner in known:
        inside |= burner.burn(window) == 1
    return inside


def _saturated(names: Sequence[str], pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Which of the pixels (channels, pixels) are at the end of a channel."""
    found = np.zeros(pixels.shape[1], dtype=bool)
    for name, values in zip(names, pixels, strict=True):
        if name in ZERO_IS_FILL:
            found |= values >= _SATURATED_DN
        elif name in _REFLECTANCE:
            found |= values > _SATURATED_REFLECTANCE
    return found


def _drift(project: Project, statistics: ChannelStatistics) -> dict[str, float]:
    path = project.root / project.postprocess.statistics_path
    if not path.exists():
        return {}
    training = json.loads(path.read_text())
    known = dict(
        zip(
            training["bands"],
            zip(training["means"], training["standard_deviations"], strict=True),
            strict=True,
        )
    )
    drift = {}
    for name, mean in zip(statistics.names, statistics.means, strict=True):
        if name in known and known[name][1] > 0:
            drift[name] = float(abs(mean - known[name][0]) / known[name][1])
    return drift


def read_table(project: Project) -> dict[str, dict[str, str]]:
    """The rows of `data/landsat/quality.csv` by scene; none where it does not exist.

    Raises:
        InputError: it is not such a table (any more).
    """
    path = project.root / TABLE
    if not path.exists():
        return {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            lacking = [name for name in COLUMNS if name not in (reader.fieldnames or [])]
            if lacking:
                raise InputError(
                    f"{path}: has no column {', '.join(lacking)}; put back the one before, or remove "
                    "the file: every scene is then looked at again"
                )
            return {row["scene"]: {name: row[name] or "" for name in COLUMNS} for row in reader}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as a table ({error})") from error


def write_table(project: Project, found: Sequence[Quality]) -> Path:
    """Add or replace scenes in `data/landsat/quality.csv`; returns its path.

    Processes may do so at once; none loses the rows of another.
    """
    path = project.root / TABLE
    path.parent.mkdir(parents=True, exist_ok=True)
    today = datetime.now(UTC).date().isoformat()
    # Between reading and writing nobody else may write.
    with FileLock(path.with_suffix(".lock")):
        rows = read_table(project) | {one.scene: one.row() | {"checked": today} for one in found}
        with whole_file(path) as beside, beside.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows[name] for name in sorted(rows))
    return path
