"""Mapping a scene: windows read, predicted, blended and written, a strip of rows at a time."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import rasterio

from glacier_core.config import Project
from glacier_core.errors import InputError
from glacier_core.files import whole_folder, write_json
from glacier_core.maps.rasters import MapRasters
from glacier_core.maps.scenemap import (
    ABOUT,
    About,
    ChannelCheck,
    SceneMap,
)
from glacier_core.maps.styles import write_class_style
from glacier_core.maps.sweep import Statistics, Sweep, layers
from glacier_core.memory import return_freed_memory
from glacier_core.model.ensemble import Ensemble
from glacier_core.model.opening import open_model
from glacier_core.raster.scene import Scene, date_in, find_scenes

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """A scene to be mapped.

    Attributes:
        name: of its map.
        place: what asks for this scene alone: its name in conf/maps.yaml, or its path.
        path: of its file.
        source: the same as it was given.
        bands: names in file order, None where the file has them.
        date: ISO, or None.
    """

    name: str
    place: str
    path: Path
    source: str
    bands: list[str] | None
    date: str | None


def map_scenes(
    project: Project,
    places: Sequence[str],
    *,
    models: Sequence[str],
    out: Path,
    symmetries: bool | None,
    bands: list[str] | None,
    date: str | None,
    again: bool,
) -> list[Path]:
    """Map scenes, each into a folder of its own.

    Every scene is opened and checked before the first is mapped. A scene whose map is there
    already, of the same file by the same models with the same options, is left as it is.

    Args:
        project: for `map` in params.yaml, device and precision in conf/train.yaml.
        places: files, globs, folders, or names in conf/maps.yaml.
        models: each as `open_model` takes it; several are averaged. None: the champion.
        out: folder for the maps' folders.
        symmetries: average over turns and mirror images; None as conf/maps.yaml says.
        bands: names in file order, for files whose bands have none.
        date: ISO; None to read it from each file name.
        again: map also what is mapped already.

    Returns:
        The folders, see `SceneMap`.

    Raises:
        InputError: a scene or a model cannot be used, or they do not fit.
        StorageError: no room, or no right to write.
    """
    project.check()
    jobs = find_jobs(project, places, bands, date)
    champion = [f"models:/{project.train.tracking.model_name}@champion"]
    ensemble = Ensemble(
        [open_model(project, uri) for uri in models or champion],
        symmetries=project.maps.symmetries if symmetries is None else symmetries,
    )
    for job in jobs:
        with Scene(job.path, job.bands, ensemble.channels, must_be_located=False) as scene:
            _check_bands(scene, ensemble)
    return [_map_scene(project, job, ensemble, out, again=again) for job in jobs]


def find_jobs(
    project: Project, places: Sequence[str], bands: list[str] | None, date: str | None
) -> list[Job]:
    """The scenes that `places` name, each once; see `map_scenes`.

    Raises:
        InputError: a place holds no scene, or two scenes have one name.
    """
    jobs: dict[str, Job] = {}
    for place in places:
        known = project.maps.maps.get(place)
        if known is not None:
            path = project.root / known.img_path
            found = [
                Job(place, place, path, known.img_path, known.bands, known.date or date_in(place))
            ]
        else:
            found = [
                Job(path.stem, str(path), path, str(path), bands, date or date_in(path.stem))
                for path in find_scenes([place])
            ]
        for job in found:
            if job.name in jobs and jobs[job.name].path != job.path:
                raise InputError(
                    f"{job.path}: a second scene named {job.name}, beside {jobs[job.name].path}; "
                    "rename one, or map them into different folders"
                )
            jobs[job.name] = job
    return list(jobs.values())


def _check_bands(scene: Scene, ensemble: Ensemble) -> None:
    missing = [name for name in ensemble.channels if name not in scene.bands]
    if missing:
        raise InputError(
            f"{scene.path}: has no band {', '.join(missing)}, which {', '.join(ensemble.names)} "
            f"needs; it has {', '.join(scene.bands)}. Map it with a model of its own bands, or "
            f"name them right with --bands.{scene.how_to_get(missing)}"
        )


def _digest(path: Path) -> list[str]:
    """Of all files that the scene consists of: a VRT's own sources too."""
    with rasterio.open(path) as dataset:
        # Whoever looks at a scene may leave these beside it.
        names = [name for name in dataset.files if not name.endswith((".ovr", ".aux.xml"))]
    digests = []
    for part in filter(Path.is_file, map(Path, names)):
        with part.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return digests


def _key(digest: list[str], job: Job, project: Project, ensemble: Ensemble) -> str:
    made_of = {
        "scene": [digest, job.name, job.bands, job.date],
        "models": ensemble.fingerprints,
        "names": ensemble.names,
        "symmetries": ensemble.symmetries,
        "map": project.params.map.model_dump(),
    }
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()


def _map_scene(project: Project, job: Job, ensemble: Ensemble, out: Path, *, again: bool) -> Path:
    folder = out / job.name
    known = None if again else _known(folder)
    with ThreadPoolExecutor(1) as aside:
        digest = aside.submit(_digest, job.path)
        if known is not None and known.key == _key(digest.result(), job, project, ensemble):
            logger.info("%s: mapped already, as %s", job.name, folder)
            if known.source != job.source:
                write_json(folder / ABOUT, replace(known, source=job.source).to_json())
            return folder
        with (
            Scene(job.path, job.bands, ensemble.channels, must_be_located=False) as scene,
            whole_folder(folder) as beside,
        ):
            kinds = layers(job.name, ensemble, scene)
            tags = {"scene": job.name, "models": " ".join(ensemble.names)} | {
                f"class_{i}": name for i, name in enumerate(ensemble.classes)
            }
            with MapRasters(beside, scene.grid, kinds, tags) as rasters:
                statistics = _sweep(project, job, scene, ensemble, rasters)
                return_freed_memory()
                rasters.finish()
            write_class_style(beside / f"{job.name}_classes.qml", ensemble.classes)
            about = _about(
                job, ensemble, statistics, scene.grid.height * scene.grid.width,
                _key(digest.result(), job, project, ensemble),
            )  # fmt: skip
            write_json(beside / ABOUT, about.to_json())
    logger.info("%s: %.0f %% seen, %s", job.name, 100 * about.seen, folder)
    return folder


def _sweep(
    project: Project, job: Job, scene: Scene, ensemble: Ensemble, rasters: MapRasters
) -> Statistics:
    # Whatever happens, the threads end before the files are closed under them.
    with ThreadPoolExecutor(2) as threads:
        sweep = Sweep(project.params.map, scene, ensemble, rasters, job.name, threads)
        sweep.go()
    return sweep.statistics


def _known(folder: Path) -> About | None:
    """What the map in a folder says of itself; None where there is none, or half of one."""
    found = SceneMap(folder)
    try:
        about = found.about
    except InputError:
        return None
    kinds = ("classes", "probabilities", "confidence")
    return about if all(found.raster(kind).exists() for kind in kinds) else None


def _about(job: Job, ensemble: Ensemble, found: Statistics, pixels: int, key: str) -> About:
    training = {
        channel: (predictor.description.means[i], predictor.description.standard_deviations[i])
        for predictor in ensemble.predictors
        for i, channel in enumerate(predictor.description.channels)
    }
    channels = {
        channel: ChannelCheck(float(total / found.seen), *training[channel])
        for channel, total in zip(ensemble.channels, found.sums, strict=True)
        if found.seen
    }
    snow = found.green is not None and found.swir is not None and found.seen > 0
    for channel, check in channels.items():
        if check.drift > 1:
            logger.warning(
                "%s: channel %s lies %.1f standard deviations from the training data (mean %.4g, "
                "there %.4g); the map may be wrong",
                job.name,
                channel,
                check.drift,
                check.mean,
                check.training_mean,
            )
    return About(
        scene=job.name,
        source=job.source,
        bands=job.bands,
        date=job.date,
        classes=ensemble.classes,
        models=ensemble.names,
        trainings=ensemble.trainings,
        symmetries=ensemble.symmetries,
        seen=found.seen / pixels,
        no_value=found.no_value / pixels,
        covered=found.covered / pixels,
        snow_outside=found.snow_outside / found.seen if snow else None,
        channels=channels,
        key=key,
    )
