"""Measuring a configuration: every piece of ground tests once, by a model that never saw it.

Each fold and seed is a project of its own in `data/crossvalidation/NAME/FOLD/seed_S`, with settings
in which only the seed and the split are others, and with the slices and masks of the project around
it. The steps of the pipeline run in it as they are.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from glacier_core.config import Project, check, read_yaml
from glacier_core.dataset.blocks import RECORD, Block, write_blocks
from glacier_core.dataset.folds import Fold, as_regions, plan_folds
from glacier_core.dataset.loading import Dataset
from glacier_core.dataset.postprocessing import postprocess
from glacier_core.errors import InputError
from glacier_core.files import whole_file, write_json
from glacier_core.model.alone import one_at_a_time
from glacier_core.model.beginning import describe
from glacier_core.model.crossreport import write_report
from glacier_core.model.ensemble import Ensemble
from glacier_core.model.opening import open_model
from glacier_core.model.pooling import Pooled, pool
from glacier_core.model.predictions import FORMAT, MADE, write_predictions
from glacier_core.model.predictor import DESCRIPTION, ModelDescription, Predictor
from glacier_core.model.starting import start_of
from glacier_core.model.tracking import RunLogger, Within
from glacier_core.model.training import train
from glacier_core.settings import SPLITS, PostprocessConf, check_names
from glacier_core.threads import in_threads

logger = logging.getLogger(__name__)

SEEDS = (1, 2, 3)
"""Of the trainings of each fold, where nobody says which: two would show no spread."""

_PLAN, _REGIONS = "plan.json", "regions.geojson"


@dataclass(frozen=True)
class FoldProject(Project):
    """A project in another one's folder: settings and results of its own, the other's slices.

    Attributes:
        within: the project around it.
    """

    within: Project

    @cached_property
    def postprocess(self) -> PostprocessConf:
        """Not checked against the other settings once more: only the split is another, and its
        regions need not be watched by DVC."""
        path = self.root / "conf/postprocess.yaml"
        return check(PostprocessConf, read_yaml(path), path)

    @property
    def store_root(self) -> Path:
        return self.within.store_root

    def mask_folder(self, scene_id: str) -> Path:
        return self.within.mask_folder(scene_id)

    def slice_folder(self, scene_id: str) -> Path:
        return self.within.slice_folder(scene_id)


class CrossValidation:
    """The trainings of a plan, each made once, and the scores of all of them together.

    Attributes:
        project: whose configuration is measured.
        symmetries, rotate: as given.
        plan: its folds.
        name: of the folder below `data/crossvalidation` and of the MLflow run.
        folder: where all lies.
    """

    def __init__(
        self,
        project: Project,
        *,
        by: str,
        folds: int | None = None,
        groups: Mapping[str, list[str]] | None = None,
        testing: Sequence[str] = (),
        name: str | None = None,
        symmetries: bool | None = None,
        rotate: bool = False,
    ) -> None:
        """Plan the folds; see `plan_folds`.

        Args:
            project, by, folds, groups, testing, name: see `crossvalidate`.
            symmetries: average over turns and mirror images, as `map_scenes` does; None as
                conf/maps.yaml says.
            rotate: with each seed, another part of the training ground chooses.

        Raises:
            InputError: as `plan_folds`; or what lies in the folder has other folds.
        """
        project.check()
        self.project = project
        self.symmetries = project.maps.symmetries if symmetries is None else symmetries
        self.rotate = rotate
        self.plan = plan_folds(project, by, folds, groups, testing)
        self.name = name or (f"{by}_{folds}" if folds else by)
        try:
            check_names("name", [self.name])
        except ValueError as error:
            raise InputError(f"--name: {error}") from None
        self.folder = project.root / "data/crossvalidation" / self.name
        self._keep_plan()

    def _keep_plan(self) -> None:
        path = self.folder / _PLAN
        mine = {
            "by": self.plan.by,
            "leaky": self.plan.leaky,
            "scenes": self.plan.scenes,
            "folds": {fold.name: fold.parts for fold in self.plan.folds},
        }
        if path.exists() and json.loads(path.read_text()) != mine:
            raise InputError(
                f"{path}: is of other folds than these (other options, scenes, labels or "
                "postprocess settings). Give another --name, or remove that folder"
            )
        write_json(path, mine)

    @cached_property
    def _slices(self) -> str:
        """Hash of all slices that take part, by content."""
        files = [
            path
            for name in self.plan.scenes
            for path in sorted(self.project.slice_folder(name).iterdir())
        ]
        digest = hashlib.sha256()
        bar = tqdm(in_threads(_digest, files), total=len(files), desc="slices", disable=None,
                   leave=False)  # fmt: skip
        for path, found in zip(files, bar, strict=True):
            digest.update(path.name.encode() + found)
        return digest.hexdigest()

    @cached_property
    def started(self) -> ModelDescription | None:
        """The model whose weights each training begins with; None for random ones."""
        uri = self.project.train.start_from
        return open_model(self.project, uri)[1].description if uri else None

    def _splits(self, fold: Fold, seed: int) -> dict[str, str]:
        return fold.splits(seed - 1 if self.rotate else 0)

    def fingerprint(self, fold: Fold, seed: int) -> str:
        """Hash of what a fold's predictions follow from: slices, split, settings, version."""
        project = self.project
        content = {
            "version": version("glacier-mapping"),
            "format": FORMAT,
            "slices": self._slices,
            "fold": self._splits(fold, seed),
            "ground": {name: ground.wkt for name, ground in self.plan.ground.items()},
            "pieces": sorted(map(str, self.plan.pieces.items())),
            "settings": self._settings(fold, seed),
            "train": project.params.train.model_dump(exclude={"run_name", "loader_threads"}),
            "method": project.train.model_dump(exclude={"tracking", "start_from"}),
            # By training: a folder or an alias may hold another model later.
            "start_from": self.started and self.started.training,
            "symmetries": self.symmetries,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def _settings(self, fold: Fold, seed: int) -> dict[str, Any]:
        """What is another in the fold's settings, and the numbers that go with it."""
        conf = self.project.postprocess
        if self.plan.leaky:  # the published protocol: what is judged is picked as what trains
            splits = list(SPLITS)
        else:
            splits = [split for split in conf.filter.splits if split != "test"]
        scenes = self.plan.by in ("scenes", "groups")
        return {
            "conf": conf.model_dump()
            | {
                "filter": {"combine": conf.filter.combine, "splits": splits},
                "split": "scenes" if scenes else self.plan.by,
                "assign": self._splits(fold, seed) if scenes else {},
                "regions_path": _REGIONS if self.plan.by == "regions" else None,
                "statistics_path": "data/dataset/statistics.json",
            },
            "seed": seed,
            "params": self.project.params.postprocess.model_dump(),
            "size": self.project.params.slice.size,
        }

    def set_up(self, fold: Fold, seed: int) -> FoldProject:
        """Write the settings of a fold and seed into its folder."""
        project, root = self.project, self.folder / fold.name / f"seed_{seed}"
        masking = project.masking.model_dump()
        masking["scenes"] = {name: masking["scenes"][name] for name in self.plan.scenes}
        contents = {
            "params.yaml": {**project.params.model_dump(), "seed": seed},
            "conf/masking_paths.yaml": masking,
            "conf/postprocess.yaml": self._settings(fold, seed)["conf"],
            "conf/train.yaml": {**project.train.model_dump(), "start_from": self._start()},
        }
        for name, content in contents.items():
            with whole_file(root / name) as beside:
                beside.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
        ground, splits = self.plan.ground, self._splits(fold, seed)
        if self.plan.by == "blocks":
            write_blocks(root / RECORD, {k: Block(splits[k], ground[k]) for k in splits})
        elif self.plan.by == "regions":
            write_json(root / _REGIONS, as_regions(ground, splits))
        return FoldProject(root, project)

    def predictions(self, fold: Fold, seed: int) -> Path:
        return self.folder / "predictions" / fold.name / f"seed_{seed}"

    def missing(self, seeds: Sequence[int]) -> list[tuple[Fold, int]]:
        """What is not there yet, or is of other slices or settings."""
        return [
            (fold, seed)
            for fold in self.plan.folds
            for seed in seeds
            if not self._is_made(fold, seed)
        ]

    def _is_made(self, fold: Fold, seed: int) -> bool:
        path = self.predictions(fold, seed) / MADE
        if not path.exists():
            return False
        return bool(json.loads(path.read_text())["fingerprint"] == self.fingerprint(fold, seed))

    def run(self, fold: Fold, seed: int, wait: float = 0) -> bool:
        """Train a fold with a seed and keep what its model says of the test ground.

        Returns:
            False where that was there already.

        Raises:
            InputError: as `postprocess` and `train`, for example if the buffer leaves a split empty.
            ServiceError: another process works on it, also after waiting so many seconds.
        """
        if self._is_made(fold, seed):
            logger.info("fold %s, seed %d: there already", fold.name, seed)
            return False
        child = self.set_up(fold, seed)
        with one_at_a_time(child, "training", wait):
            logger.info("fold %s, seed %d", fold.name, seed)
            try:
                dataset = postprocess(child)
                self._train(child, dataset, fold, seed)
            except InputError as error:
                raise InputError(f"fold {fold.name}, seed {seed}: {error}") from error
            self._predict(child, dataset, fold, seed)
        return True

    def _train(self, child: FoldProject, dataset: Dataset, fold: Fold, seed: int) -> None:
        """Train, unless the model of this very training is there, all but its predictions."""
        done = child.run_folder / "models" / DESCRIPTION
        training = describe(child, dataset, start_of(child, dataset)).training
        if done.exists() and json.loads(done.read_text())["training"] == training:
            return
        train(child, [RunLogger(child, self.within(fold, seed))])

    def _start(self) -> str | None:
        """The model that each training begins with, as a folder within `data` names it."""
        uri = self.project.train.start_from
        return (
            uri
            if uri is None or uri.startswith("models:/")
            else str((self.project.root / uri).resolve())
        )

    def within(self, fold: Fold, seed: int) -> Within:
        """Where the MLflow run of a fold and seed belongs."""
        tags = {
            "protocol": self.plan.by,
            "fold": fold.name,
            "seed": str(seed),
            "leaky": str(self.plan.leaky).lower(),
        }
        return Within(self.project, self.name, f"{self.name} {fold.name} seed {seed}", tags)

    def _predict(self, child: FoldProject, dataset: Dataset, fold: Fold, seed: int) -> None:
        conf = child.train
        predictor = Predictor.load(child.run_folder / "models", conf.device, conf.precision)
        ensemble = Ensemble([(str(child.run_folder), predictor)], symmetries=self.symmetries)
        follows_from = {
            "fingerprint": self.fingerprint(fold, seed),
            "training": predictor.description.training,
        }
        folder = self.predictions(fold, seed)
        write_predictions(folder, ensemble, dataset, self.plan.pieces, follows_from)

    def training(self, fold: Fold, seed: int) -> str:
        """Fingerprint of the training whose predictions are there."""
        content = json.loads((self.predictions(fold, seed) / MADE).read_text())
        return str(content["training"])

    def pool(self, seeds: Sequence[int]) -> Pooled:
        """Score what all folds said, and report on it; see `pooling.pool`.

        Raises:
            InputError: some fold and seed is not made yet.
        """
        if missing := self.missing(seeds):
            listed = ", ".join(f"{fold.name} with seed {seed}" for fold, seed in missing)
            raise InputError(f"{self.folder}: not made yet: {listed}")
        pooled = pool(self, seeds)
        write_report(self, pooled)
        return pooled


def crossvalidate(
    project: Project,
    *,
    by: str,
    folds: int | None = None,
    groups: Mapping[str, list[str]] | None = None,
    testing: Sequence[str] = (),
    seeds: Sequence[int] = SEEDS,
    name: str | None = None,
    symmetries: bool | None = None,
    rotate: bool = False,
    only: str | None = None,
) -> tuple[CrossValidation, Pooled | None]:
    """Measure a configuration on ground that took no part in its training, in every fold.

    What is made already is not made again; a training that was stopped goes on.

    Args:
        project: with slices.
        by, folds, groups, testing: see `plan_folds`.
        seeds: of the trainings of each fold; the folds stay the same.
        name: of the folder below `data/crossvalidation`; by default `by` and the number of folds.
        symmetries, rotate: see `CrossValidation`.
        only: name of the fold to be made; the scores are pooled once no other is missing.

    Returns:
        The trainings, and their scores; None where other folds are missing.

    Raises:
        InputError: as `plan_folds` and the steps.
    """
    if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise InputError("--seeds: expected whole numbers from 0 on, each once, as in 1,2,3")
    made = CrossValidation(
        project, by=by, folds=folds, groups=groups, testing=testing, name=name,
        symmetries=symmetries, rotate=rotate,
    )  # fmt: skip
    wanted = [made.plan.fold(only)] if only is not None else made.plan.folds
    bar = tqdm(total=len(wanted) * len(seeds), desc="folds and seeds", disable=None)
    for fold in wanted:
        for seed in seeds:
            bar.set_postfix_str(f"{fold.name}, seed {seed}")
            made.run(fold, seed)
            bar.update()
    bar.close()
    if only is not None and made.missing(seeds):
        return made, None
    return made, made.pool(seeds)


def _digest(path: Path) -> bytes:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()
