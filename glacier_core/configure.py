"""Writing conf/masking_paths.yaml from a folder of scenes and a vector file a class."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from glacier_core.config import Project, check, read_yaml
from glacier_core.errors import InputError
from glacier_core.files import whole_file
from glacier_core.labels.inventory import read_vector
from glacier_core.raster.bands import band_names
from glacier_core.raster.scene import Scene, date_in, find_scenes
from glacier_core.settings import MapsConf, MaskingConf

logger = logging.getLogger(__name__)


_HEAD = """\
# Which scenes, and which outlines say what is ice on them. Written by `glacier configure`.
# Paths are relative to this project's folder. In `classes`, the later wins where two overlap.
# Everything that the outlines consist of lies in outlines_dir: DVC watches that folder.
"""


_MAPS_HEAD = """\
# Which scenes `dvc repro` maps with the trained model, and which maps it compares. Written by
# `glacier configure`, which names all scenes here; any scene that holds the model's bands will do.
# In `changes`, for example: SITE: {before: LE07_140041_20001025, after: LE07_140041_20101106}
# With `symmetries`, every window is mapped in its eight turns and mirror images: 8 times slower,
# and the spread between them is written as uncertainty.
# `inventory_path` (inside outlines_dir) and `inventory_id`: known glaciers, such as RGI. Their ids
# are joined to the outlines, and the ice divides between them split connected ice.
"""


def _kept(path: Path, root: Path) -> str:
    """Relative to the project where the file lies in it, else as the user gave it."""
    if not path.is_absolute():
        return Path(os.path.relpath(path.absolute(), root.absolute())).as_posix()
    inside = path.is_relative_to(root.absolute())
    return (path.relative_to(root.absolute()) if inside else path).as_posix()


def _common_folder(vectors: Sequence[Path]) -> Path:
    folder = Path(os.path.commonpath([path.absolute().parent for path in vectors]))
    return Path(os.path.relpath(folder)) if not vectors[0].is_absolute() else folder


def _check_watched(project: Project, content: dict[str, Any]) -> None:
    """Refuse an outlines' folder in which other things lie too, or will."""
    folder = (project.root / content["outlines_dir"]).resolve()
    for name, scene in content["scenes"].items():
        for other in (project.root / scene["img_path"], project.mask_folder(name)):
            if other.resolve().is_relative_to(folder):
                raise InputError(
                    f"{folder}: holds {other} as well as outlines, and DVC watches the outlines' "
                    "folder as a whole. Put the vector files into a folder of their own."
                )


def configure(
    project: Project,
    places: Sequence[str],
    outlines: Mapping[str, str],
    *,
    border: str | None,
    year_field: str | None,
    bands: str | None,
    date: str | None,
    add: bool,
    channels: Sequence[str] = (),
) -> MaskingConf:
    """Check scenes and outlines, and write `conf/masking_paths.yaml` and `conf/maps.yaml`.

    Scenes are keyed by their file name without suffix, so a new scene renames nothing.

    Args:
        project: whose file to write.
        places: folders, globs or files with the scenes.
        outlines: vector file by class name; where classes overlap, the later wins.
        border: vector file of the study area, outside of which nothing is known.
        year_field: column of the outlines with their year, None to keep all.
        bands: see `band_names`.
        date: ISO date of the scenes; None to read it from each file name.
        add: keep the scenes already configured; classes and bands must agree.
        channels: bands that every scene must have.

    Raises:
        InputError: a file cannot be used; nothing is written.
    """
    scenes = find_scenes(places)
    names = band_names(bands)
    vectors = [Path(path) for path in [*outlines.values(), *([border] if border else [])]]
    for vector in vectors:
        frame = read_vector(vector)
        if vector in [Path(p) for p in outlines.values()] and year_field is not None \
                and year_field not in frame.columns:  # fmt: skip
            raise InputError(
                f"{vector}: has no column '{year_field}' (--year-field); it has "
                f"{', '.join(str(c) for c in frame.columns if c != 'geometry')}"
            )
    entries: dict[str, Any] = {}
    for path in scenes:
        if path.stem in entries:
            raise InputError(f"{path}: a second scene named {path.stem}; rename one, names are ids")
        with Scene(path, names, channels) as scene:  # what cannot be used is refused now
            scene.positions(channels)
        entries[path.stem] = {
            "img_path": _kept(path, project.root),
            "mask_paths": {name: _kept(Path(p), project.root) for name, p in outlines.items()},
            "border_path": _kept(Path(border), project.root) if border else None,
            "year_field": year_field,
            "date": date or date_in(path.stem),
        }
    folder = _common_folder(vectors)
    content: dict[str, Any] = {
        "simulated": {},
        "outlines_dir": _kept(folder, project.root),
        "classes": list(outlines),
        "bands": names,
        "scenes": entries,
    }
    if add:
        content = _merged(project, content)
    conf = check(MaskingConf, content, project.masking_path)
    _check_watched(project, content)
    with whole_file(project.masking_path) as beside:
        beside.write_text(_HEAD + yaml.safe_dump(content, sort_keys=False, width=100))
    _write_maps(project, conf, add=add)
    _clear_unconfigured(project, conf)
    return conf


def _write_maps(project: Project, conf: MaskingConf, *, add: bool) -> None:
    """Name every configured scene in conf/maps.yaml; with `add`, keep what it says already."""
    path = project.root / "conf/maps.yaml"
    content: dict[str, Any] = {
        "maps": {
            name: {"img_path": scene.img_path, "bands": conf.bands, "date": scene.date}
            for name, scene in conf.scenes.items()
        },
        "changes": {},
        "symmetries": False,
        "inventory_path": None,
        "inventory_id": None,
    }
    if add and path.exists():
        before = read_yaml(path)
        check(MapsConf, before, path)
        content = {**before, "maps": {**content["maps"], **before["maps"]}}
    with whole_file(path) as beside:
        beside.write_text(_MAPS_HEAD + yaml.safe_dump(content, sort_keys=False, width=100))


def _clear_unconfigured(project: Project, conf: MaskingConf) -> None:
    """Remove masks and slices of scenes that are no longer configured.

    They can be made again; left there, DVC would count them as part of the data set.
    """
    for folder in (project.root / "data/masks", project.root / "data/slices"):
        for made in folder.iterdir() if folder.is_dir() else ():
            if made.is_dir() and made.name not in conf.scenes:
                logger.info("%s: its scene is no longer configured; removed", made)
                shutil.rmtree(made)


def _merged(project: Project, content: dict[str, Any]) -> dict[str, Any]:
    before = read_yaml(project.masking_path)
    check(MaskingConf, before, project.masking_path)
    for key in ("classes", "bands"):
        if before[key] != content[key]:
            raise InputError(
                f"{project.masking_path}: {key} is {before[key]}, but --add brings {content[key]}; "
                "one project has one set of each"
            )
    for name, scene in content["scenes"].items():
        known = before["scenes"].get(name, scene)["img_path"]
        if known != scene["img_path"]:
            raise InputError(
                f"{scene['img_path']}: scene {name} is configured already, as {known}; "
                "rename one, names are ids"
            )
    try:
        common = os.path.commonpath([before["outlines_dir"], content["outlines_dir"]])
    except ValueError:  # one absolute, one relative
        common = ""
    if not common:
        raise InputError(
            f"{content['outlines_dir']}: shares no folder with the outlines already configured, "
            f"{before['outlines_dir']}; keep all vector files under one folder"
        )
    return {
        **before,
        "outlines_dir": common,
        "scenes": {**before["scenes"], **content["scenes"]},
    }
