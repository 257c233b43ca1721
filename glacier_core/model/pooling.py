"""What the models of all folds said of their test ground, put together and scored."""

from __future__ import annotations

import csv
import json
import logging
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from glacier_core.dataset.slicing import IGNORED
from glacier_core.files import whole_file, write_json
from glacier_core.model import judging
from glacier_core.model.conditions import BY_CONDITION, ByCondition, Scores, write_table
from glacier_core.model.judging import Judged
from glacier_core.model.metrics import UNDEFINED, Score
from glacier_core.model.predictions import MADE, load_groups, load_prediction
from glacier_core.model.steps import StepGains
from glacier_core.raster.grid import Window, first_cover

if TYPE_CHECKING:
    from glacier_core.model.crossvalidation import CrossValidation

logger = logging.getLogger(__name__)

SCORES, TABLE = "scores.json", "scores.csv"

Summary = dict[str, dict[str, Any]]
"""By class, and for all of them, each score: see `Judged.summary`."""


@dataclass(frozen=True)
class TestSlice:
    """A slice of a fold's test ground, as all seeds judged it.

    Attributes:
        fold, scene, k: which it is.
        wrong: by seed, the share of its valid pixels that are mapped as another class.
        files: by seed, its predictions.
    """

    fold: str
    scene: str
    k: int
    wrong: dict[int, float] = field(default_factory=dict)
    files: dict[int, Path] = field(default_factory=dict)

    @property
    def share_wrong(self) -> float:
        return statistics.mean(self.wrong.values())


@dataclass(frozen=True)
class Pooled:
    """The scores of a cross-validation.

    Attributes:
        folder: where they lie.
        scores: the content of `scores.json`.
        worst: test slices with the largest share of wrong pixels first.
    """

    folder: Path
    scores: dict[str, Any]
    worst: list[TestSlice]


def pool(made: CrossValidation, seeds: Sequence[int]) -> Pooled:
    """Score the test ground of all folds together, for each seed, and each fold by itself.

    Every valid pixel of every fold's test ground counts once, in the first fold that shows it.
    Writes `scores.json`, `scores.csv` and `by_condition.csv`.

    Args:
        made: with the predictions of all folds.
        seeds: of the trainings.
    """
    folds = [fold.name for fold in made.plan.folds]
    content = {
        seed: {fold.name: _read(made.predictions(fold, seed) / MADE) for fold in made.plan.folds}
        for seed in seeds
    }
    names = content[seeds[0]][folds[0]]["classes"]
    settings = made.project.params.promotion
    by_seed: dict[int, Summary] = {}
    by_fold: dict[str, dict[int, Summary]] = {fold: {} for fold in folds}
    slices: dict[tuple[str, str, int], TestSlice] = {}

    def summary(judged: Judged) -> Summary:
        return judged.summary(
            draws=settings.draws, confidence=settings.confidence, seed=made.project.params.seed
        )

    total = sum(len(one["slices"]) for of_seed in content.values() for one in of_seed.values())
    bar = tqdm(total=total, desc="scores", disable=None)
    together = _Together(names) if len(seeds) > 1 and not made.plan.leaky else None
    by_condition: list[dict[str, dict[str, Scores]]] = []
    steps = StepGains(names, made.project.params.outlines.min_area_km2)
    for seed in seeds:
        pooled, once = Judged(names), _once(list(content[seed].values()))
        hard = ByCondition(names)
        for fold in made.plan.folds:
            own = Judged(names)
            for entry in content[seed][fold.name]["slices"]:
                path = made.predictions(fold, seed) / entry["file"]
                truth, probability = load_prediction(path)
                truth = np.where(next(once[entry["scene"]]), truth, np.uint8(IGNORED))
                for judged in (pooled, own):
                    judged.add(entry["piece"], truth, probability, entry["pixel_m"])
                said = probability.argmax(axis=0).astype(np.uint8)
                hard.add(load_groups(path), truth, said)
                valid = truth != IGNORED
                if valid.any():
                    key = (fold.name, entry["scene"], entry["k"])
                    found = slices.setdefault(key, TestSlice(*key))
                    wrong = said[valid] != truth[valid]
                    found.wrong[seed], found.files[seed] = float(wrong.mean()), path
                if together is not None and seed == seeds[-1]:
                    others = [made.predictions(fold, s) / entry["file"] for s in seeds[:-1]]
                    likely = [probability, *(load_prediction(other)[1] for other in others)]
                    probability = np.mean(likely, axis=0)
                    together.add(fold.name, entry, truth, probability)
                if seed == seeds[-1]:
                    steps.add(truth, probability, entry["pixel_m"])
                bar.update()
            with _without_warnings():  # of a fold, few pieces are no surprise
                by_fold[fold.name][seed] = summary(own)
        by_seed[seed] = summary(pooled)
        by_condition.append(hard.scores())
    bar.close()
    tested = {
        (entry["scene"], entry["k"])
        for of_seed in content.values()
        for of_fold in of_seed.values()
        for entry in of_fold["slices"]
    }
    result: dict[str, Any] = {
        "protocol": {
            "name": made.name,
            "by": made.plan.by,
            "leaky": made.plan.leaky,
            "seeds": list(seeds),
            "confidence": settings.confidence,
            "draws": settings.draws,
            "test_slices": len(tested),
            "untested_slices": len(set(made.plan.pieces) - tested),
            "symmetries": made.symmetries,
            "rotate": made.rotate,
            "ground": {
                fold: {str(seed): content[seed][fold]["ground"] for seed in seeds} for fold in folds
            },
        },
        "mean": _over_seeds(list(by_seed.values())),
        "by_seed": {str(seed): found for seed, found in by_seed.items()},
        "by_fold": {
            fold: {
                "mean": _over_seeds(list(found.values())),
                "by_seed": {str(seed): one for seed, one in found.items()},
            }
            for fold, found in by_fold.items()
        },
    }
    result["conditions"] = _mean_conditions(by_condition)
    result["steps"] = steps.result()
    if together is not None:
        result["together"] = summary(together.all)
        with _without_warnings():
            for name, own in together.by_fold.items():
                result["by_fold"][name]["together"] = summary(own)
    write_json(made.folder / SCORES, result)
    _write_table(made.folder / TABLE, result)
    write_table(made.folder / BY_CONDITION, result["conditions"])
    worst = sorted(slices.values(), key=lambda one: (-one.share_wrong, one.fold, one.scene, one.k))
    return Pooled(made.folder, result, worst)


class _Together:
    """The models of all seeds as one, their probabilities averaged, as `glacier map` does with
    several models."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names, self.all = names, Judged(names)
        self.by_fold: dict[str, Judged] = {}

    def add(
        self,
        fold: str,
        entry: dict[str, Any],
        truth: npt.NDArray[np.uint8],
        probability: npt.NDArray[np.float32],
    ) -> None:
        for judged in (self.all, self.by_fold.setdefault(fold, Judged(self._names))):
            judged.add(entry["piece"], truth, probability, entry["pixel_m"])


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def _once(folds: Sequence[dict[str, Any]]) -> dict[str, Iterator[npt.NDArray[np.bool_]]]:
    """By scene, for each of its slices in the order of folds, the pixels that none before shows."""
    windows: dict[str, list[Window]] = {}
    for fold in folds:
        for entry in fold["slices"]:
            window = Window(entry["row"], entry["col"], entry["height"], entry["width"])
            windows.setdefault(entry["scene"], []).append(window)
    return {scene: first_cover(held) for scene, held in windows.items()}


@contextmanager
def _without_warnings() -> Iterator[None]:
    judging.logger.disabled = True
    try:
        yield
    finally:
        judging.logger.disabled = False


def _over_seeds(summaries: Sequence[Summary]) -> Summary:
    """Of each score, the mean over seeds, that of the interval's ends, and the spread of the values:
    their standard deviation, undefined of one seed. Undefined in one seed is undefined."""
    result: Summary = {}
    for name, scores in summaries[0].items():
        result[name] = {}
        for key, score in scores.items():
            if not isinstance(score, dict):
                result[name][key] = round(statistics.mean(one[name][key] for one in summaries))
                continue
            found: dict[str, Score] = {}
            for end in ("value", "lower", "upper"):
                found[end] = _mean([one[name][key][end] for one in summaries])
            values = [one[name][key]["value"] for one in summaries]
            several = len(values) > 1 and isinstance(found["value"], float)
            result[name][key] = {
                **found,
                "spread": statistics.stdev(values) if several else UNDEFINED,
            }
    return result


def _mean_conditions(
    found: Sequence[dict[str, dict[str, Scores]]],
) -> dict[str, dict[str, Scores]]:
    """Of each score by condition, the mean over seeds; of groups that each of them has."""
    mean: dict[str, dict[str, Scores]] = {}
    for condition, groups in found[0].items():
        for group, by_class in groups.items():
            if any(group not in one.get(condition, {}) for one in found):
                continue
            mean.setdefault(condition, {})[group] = {
                name: {
                    key: value
                    if key == "pixels"
                    else _mean([one[condition][group][name][key] for one in found])
                    for key, value in values.items()
                }
                for name, values in by_class.items()
            }
    return mean


def _mean(values: Sequence[Score]) -> Score:
    numbers = [value for value in values if not isinstance(value, str)]
    return statistics.fmean(numbers) if len(numbers) == len(values) else UNDEFINED


def _write_table(path: Path, result: dict[str, Any]) -> None:
    """All scores as rows: of the ground of all folds (`all`) and of each; by seed, their mean, and
    of the models of all seeds together."""
    with whole_file(path) as beside, beside.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow("fold seed class score value lower upper spread".split())
        for fold, found in [("all", result), *result["by_fold"].items()]:
            rest = [(key, found[key]) for key in ("mean", "together") if key in found]
            for seed, summary in [*found["by_seed"].items(), *rest]:
                for name, scores in summary.items():
                    for key, score in scores.items():
                        row = score if isinstance(score, dict) else {"value": score}
                        writer.writerow(
                            [fold, seed, name, key]
                            + [row.get(end, "") for end in ("value", "lower", "upper", "spread")]
                        )
