"""Our side's folders: projects made by `glacier configure`, with as few settings changed as can be."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.measure import BIN, REPOSITORY, Measured, code, environment, run, work
from benchmarks.sizes import CLASSES, SCENE, Size
from glacier_core.raster.bands import ETM_STACK

# What a user's project consists of.
FILES = (
    "conf",
    ".dvc/config",
    ".dvcignore",
    ".gitignore",
    "dvc.yaml",
    "params.yaml",
    "data/reviews",
    "data/predicted",
)


def changed(path: Path, changes: Mapping[str, Any]) -> None:
    """Change values of a YAML file; mappings are merged, anything else replaced."""

    def merge(old: Any, new: Any) -> Any:
        if isinstance(old, dict) and isinstance(new, dict):
            return {**old, **{key: merge(old.get(key), value) for key, value in new.items()}}
        return new

    content = merge(yaml.safe_load(path.read_text()), changes)
    path.write_text(yaml.safe_dump(content, sort_keys=False))


@dataclass(frozen=True)
class Bench:
    """A size, a place to work in, and what all rows share.

    Attributes:
        size: see `Size`.
        folder: of this size in the cache.
        repeat: measurements of each side.
        threads: of every side and every floor.
        reference: whether the reference procedure runs too.
        say: tells how it goes.
    """

    size: Size
    folder: Path
    repeat: int
    threads: int
    reference: bool
    say: Callable[[str], None]

    def work(self, place: str, **arguments: Any) -> Measured:
        return work(place, arguments, threads=self.threads)

    def glacier(self, project: Path, *words: str) -> Measured:
        """One command of ours, as a user gives it."""
        return run([str(BIN / "glacier"), *words], cwd=project, env=environment(self.threads))

    # --- What is worked on: made when first needed, kept in the cache ---

    @property
    def scene(self) -> Path:
        return self.large_scene(self.size.height, self.size.width)

    def large_scene(self, height: int, width: int) -> Path:
        tiles, folder = self.folder / "tiles", self.folder / f"scene_{height}x{width}"
        if not folder.exists():
            self.say(f"making a scene of {height} x {width} pixels")
            self.work("scene:make_tiles", out=str(tiles), tile=self.size.tile)
            self.work(
                "scene:make_scene", out=str(folder), tiles=str(tiles), height=height, width=width
            )
        return folder / f"{SCENE}.tif"

    def outlines(self, count: int, scene: Path | None = None) -> Path:
        """Folder of so many outlines on a scene."""
        scene = scene or self.scene
        folder = self.folder / f"outlines_{count}_{scene.parent.name}"
        if not folder.exists():
            self.say(f"drawing {count} outlines")
            self.work(
                "scene:make_outlines",
                out=str(folder), scene=str(scene), count=count, median_km2=self.size.outline_km2,
            )  # fmt: skip
        return folder

    def project(self, name: str, scenes: Sequence[Path], outlines: Path) -> Path:
        """A project of these scenes, made anew, with the benchmark's numbers and every band."""
        root = self.folder / name
        shutil.rmtree(root, ignore_errors=True)
        for file in FILES:
            source, target = REPOSITORY / file, root / file
            target.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
        words = [f"--outlines={name}={_file(outlines, name)}" for name in CLASSES]
        border = _file(outlines, "border")
        words += [f"--border={border}"] if border.exists() else []
        self.glacier(root, "configure", *map(str, scenes), *words, "--year-field=year")
        changed(root / "params.yaml", self.size.params())
        # The reference's network sees every band.
        changed(root / "conf/postprocess.yaml", {"channels": ETM_STACK})
        return root

    def data_project(self) -> Path:
        """The project of the large scene, with the settings of the code as it is.

        Its folder is kept, results and all, until the code changes.
        """
        root = self.folder / "project"
        made_by = root / "made_by.txt"
        if not made_by.exists() or made_by.read_text() != code():
            self.project("project", [self.scene], self.outlines(self.size.outlines[0]))
            made_by.write_text(code())
        return root

    def dataset(self) -> Path:
        """The same with its dataset."""
        root = self.data_project()
        if not (root / "data/dataset/dataset.json").exists():
            self.say("making the dataset")
            for verb in ("mask", "slice", "postprocess"):
                self.glacier(root, verb)
        return root

    def model(self) -> Path:
        """Folder of a model that has learnt enough for maps to look like maps.

        Kept whatever becomes of the code: maps, and what is made of them, stay comparable.
        """
        kept = self.folder / "model"
        if not kept.exists():
            tiles = self.folder / "tiles"
            self.work("scene:make_tiles", out=str(tiles), tile=self.size.tile)
            scenes = sorted((tiles / "scenes").glob("*.tif"))
            root = self.project("model_project", scenes, tiles / "outlines")
            epochs, crops, edge = self.size.model
            train = {"epochs": epochs, "patience": epochs, "crops_per_slice": crops}
            changed(root / "params.yaml", {"train": {**train, "crop_size": edge}})
            # From one site it learns, by the other its best epoch is chosen.
            splits = dict(
                zip([s.stem for s in scenes], ["train", "train", "dev", "dev"], strict=True)
            )
            changed(root / "conf/postprocess.yaml", {"split": "scenes", "assign": splits})
            self.say("training the model that maps")
            for verb in ("mask", "slice", "postprocess"):
                self.glacier(root, verb)
            done = self.work("training:train_model", project=str(root)).said["model"]
            shutil.copytree(done, kept)
            shutil.rmtree(root)
        return kept


def _file(folder: Path, name: str) -> Path:
    """Ours are GeoPackages, the simulation's shapefiles."""
    package = folder / f"{name}.gpkg"
    return package if package.exists() else folder / f"{name}.shp"
