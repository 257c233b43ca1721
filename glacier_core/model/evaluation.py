"""Judging a trained model on the test split, beside what is simpler."""

from __future__ import annotations

import csv
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from glacier_core.config import Project
from glacier_core.dataset.blocks import footprints_of, pixel_m
from glacier_core.dataset.loading import Dataset, Sample
from glacier_core.dataset.slicing import IGNORED
from glacier_core.errors import InputError
from glacier_core.files import whole_file, whole_folder, write_json
from glacier_core.model import figures
from glacier_core.model.baselines import IndexThreshold, PixelForest
from glacier_core.model.bootstrap import units_needed
from glacier_core.model.comparison import judged_slices, units_of
from glacier_core.model.conditions import BY_CONDITION, ByCondition, Conditions, write_table
from glacier_core.model.judging import Judged
from glacier_core.model.metrics import UNDEFINED, PrecisionRecall, Score, confusion, scores
from glacier_core.model.predictor import Predictor
from glacier_core.model.scoring import predict_split
from glacier_core.model.training import HISTORY
from glacier_core.params import PromotionParams

logger = logging.getLogger(__name__)

METRICS = "metrics.json"
Matrix = npt.NDArray[np.int64]


@dataclass
class _Tally:
    """Confusion matrices of one method, over all and by scene."""

    classes: int
    by_scene: dict[str, Matrix] = field(default_factory=dict)

    def add(self, scene: str, truth: npt.NDArray[np.uint8], said: npt.NDArray[np.uint8]) -> None:
        counted = confusion(truth, said, self.classes)
        self.by_scene[scene] = self.by_scene.get(scene, 0) + counted

    @property
    def matrix(self) -> Matrix:
        total: Matrix = np.sum(list(self.by_scene.values()), axis=0)
        return total


class _Ground:
    """Where each test slice lies: in which unit of the bootstrap, with pixels of which size.

    Attributes:
        kind: what a unit is, in words.
    """

    def __init__(self, dataset: Dataset, confidence: float) -> None:
        found = units_of(dataset, units_needed(confidence))
        self.kind = found.kind
        slices = [(sample.scene, sample.k) for sample in judged_slices(dataset)]
        self._units = dict(zip(slices, found.names, strict=True))
        self._shapes = footprints_of(dataset)

    def unit(self, sample: Sample) -> str:
        return self._units[sample.scene, sample.k]

    def pixel_m(self, sample: Sample) -> float:
        return pixel_m(sample, self._shapes[sample.scene, sample.k])


def evaluate(project: Project) -> dict[str, Any]:
    """Score the trained model and two baselines on the test split, on the same pixels.

    Writes into `data/evaluation/`: `metrics.json` (by method and class, and the intervals of the
    U-Net's scores), `by_scene.csv`, `by_condition.csv` (of the U-Net), `confusion.csv`,
    `precision_recall.csv`, and `figures/`.

    Returns:
        The content of `metrics.json`.

    Raises:
        InputError: there is no model, no dataset, or they do not belong together.
    """
    dataset = Dataset.open(project.dataset_folder)
    models = project.run_folder / "models"
    conf = project.train
    predictor = Predictor.load(models, conf.device, conf.precision)
    if predictor.description.dataset != dataset.fingerprint:
        raise InputError(
            f"{models}: was trained on another dataset than {dataset.folder}; "
            "run `glacier train` again"
        )
    if not dataset.splits["test"]:
        raise InputError("the test split is empty; nothing can be judged")
    names = dataset.class_names
    seed, forest_params = project.params.seed, project.params.evaluate.forest
    logger.info("fitting the baselines on the training split")
    forest = PixelForest(dataset, forest_params, seed)
    try:
        target = names.index("clean_ice") if "clean_ice" in names else 1
        rule = IndexThreshold(dataset, target, forest_params.sample_pixels, seed)
    except LookupError as error:
        logger.warning("no threshold baseline: %s", error)
        rule = None

    tallies = {name: _Tally(len(names)) for name in ("unet", "forest")}
    if rule is not None:
        tallies["threshold"] = _Tally(len(names))
    curves = {name: PrecisionRecall() for name in dataset.classes}
    judged = Judged(names)
    ground = _Ground(dataset, project.params.promotion.confidence)
    conditions, by_condition = Conditions(dataset), ByCondition(names)
    with whole_folder(project.evaluation_folder) as folder:
        (folder / "figures").mkdir()
        slices = predict_split(predictor, dataset, "test")
        total = len(dataset.splits["test"])
        examples = _worth_showing(dataset, project.params.evaluate.examples)
        for k, (sample, truth, probability) in enumerate(
            tqdm(slices, total=total, desc="evaluate", disable=None)
        ):
            said = probability.argmax(axis=0).astype(np.uint8)
            tallies["unet"].add(sample.scene, truth, said)
            pixel_m = ground.pixel_m(sample)
            judged.add(ground.unit(sample), truth, probability, pixel_m)
            by_condition.add(conditions.groups(sample, pixel_m), truth, said)
            tallies["forest"].add(sample.scene, truth, forest.predict(dataset, "test", sample))
            if rule is not None:
                tallies["threshold"].add(sample.scene, truth, rule.predict(dataset, "test", sample))
            valid = truth != IGNORED
            for number, name in enumerate(dataset.classes, start=1):
                curves[name].add(probability[number][valid], truth[valid] == number)
            if k in examples:
                figure = figures.example(
                    dataset.image("test", sample, bands=dataset.common_bands()),
                    dataset.common_bands(),
                    dataset.label("test", sample),
                    probability,
                    names,
                    f"{sample.scene}, slice {sample.k} (test split)",
                )
                figures.save(figure, folder / "figures" / f"example_{sample.scene}_{sample.k}.png")
        metrics = _metrics(tallies, curves, names)
        metrics["intervals"] = {"units": ground.kind} | _add_judged(
            metrics["unet"], judged, project.params.promotion, seed
        )
        metrics["conditions"] = by_condition.scores()
        metrics["protocol"] = {
            "training": predictor.description.training,
            "split": project.postprocess.split,
            "leaky": dataset.leaky,
            "test_slices": total,
            "test_scenes": sorted({sample.scene for sample in dataset.splits["test"]}),
            "test_blocks": len({sample.block for sample in dataset.splits["test"]}),
            "threshold_rule": rule.rule if rule else UNDEFINED,
        }
        _write(folder, tallies, curves, names)
        write_table(folder / BY_CONDITION, metrics["conditions"])
        _draw(folder / "figures", tallies, curves, judged, metrics, names, models / HISTORY)
        write_json(folder / METRICS, metrics)
    logger.info("\n%s", table(metrics))
    return metrics


def _worth_showing(dataset: Dataset, count: int) -> set[int]:
    """Numbers of the test slices with the most ice of the rarest class, then of any."""
    shares = []
    for k, sample in enumerate(dataset.splits["test"]):
        label = dataset.label("test", sample)
        by_class = [int((label == i + 1).sum()) for i in range(len(dataset.classes))]
        shares.append((min(by_class), sum(by_class), -k))
    return {-entry[2] for entry in sorted(shares, reverse=True)[:count]}


def _metrics(
    tallies: dict[str, _Tally], curves: dict[str, PrecisionRecall], names: list[str]
) -> dict[str, Any]:
    metrics: dict[str, Any] = {
        method: scores(tally.matrix, names) for method, tally in tallies.items()
    }
    for name, curve in curves.items():
        metrics["unet"][name]["average_precision"] = curve.average_precision()
    return metrics


def _add_judged(
    scored: dict[str, dict[str, Score]], judged: Judged, params: PromotionParams, seed: int
) -> dict[str, Any]:
    """Add what a method's scores lack: confidence, borders, area. Returns all their intervals."""
    summary = judged.summary(draws=params.draws, confidence=params.confidence, seed=seed)
    ends: dict[str, dict[str, list[Score]]] = {}
    for name, values in summary.items():
        intervals = {key: score for key, score in values.items() if isinstance(score, dict)}
        for key, score in intervals.items():
            scored[name].setdefault(key, score["value"])
        ends[name] = {key: [score["lower"], score["upper"]] for key, score in intervals.items()}
    return {
        "confidence": params.confidence,
        "number_of_units": summary["all"]["units"],
        "units_by_class": {name: summary[name]["units"] for name in judged.names},
        "unet": ends,
    }


def _write(
    folder: Path,
    tallies: dict[str, _Tally],
    curves: dict[str, PrecisionRecall],
    names: list[str],
) -> None:
    def rows(file: str, head: list[str], content: list[list[object]]) -> None:
        with whole_file(folder / file) as beside, beside.open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(head)
            writer.writerows(content)

    by_scene: list[list[object]] = []
    for method, tally in tallies.items():
        for scene, matrix in sorted(tally.by_scene.items()):
            for name, values in scores(matrix, names).items():
                if name != "all":
                    shown = [values[key] for key in ("iou", "precision", "recall", "dice")]
                    by_scene.append([method, scene, name, *shown, values["pixels"]])
    rows("by_scene.csv", "method scene class iou precision recall dice pixels".split(), by_scene)
    rows(
        "confusion.csv",
        ["method", "actual", "predicted", "pixels"],
        [
            [method, names[i], names[j], int(count)]
            for method, tally in tallies.items()
            for (i, j), count in np.ndenumerate(tally.matrix)
        ],
    )
    rows(
        "precision_recall.csv",
        ["class", "threshold", "recall", "precision"],
        [
            [name, f"{t:.4f}", f"{r:.6f}", f"{p:.6f}"]
            for name, curve in curves.items()
            for t, r, p in curve.curve()
        ],
    )


def _draw(
    folder: Path,
    tallies: dict[str, _Tally],
    curves: dict[str, PrecisionRecall],
    judged: Judged,
    metrics: dict[str, Any],
    names: list[str],
    history: Path,
) -> None:
    matrix = tallies["unet"].matrix
    figures.save(figures.confusion_plot(matrix, names, "U-Net, test split"),
                 folder / "confusion.png")  # fmt: skip
    areas: dict[str, Score] = {name: metrics["unet"][name]["average_precision"] for name in curves}
    figure = figures.precision_recall_plot({n: c.curve() for n, c in curves.items()}, areas)
    figures.save(figure, folder / "precision_recall.png")
    errors: dict[str, Score] = {name: metrics["unet"][name]["ece"] for name in [*names, "all"]}
    figures.save(figures.reliability_plot(judged.reliability(), errors), folder / "reliability.png")
    ious = {
        method: {name: metrics[method][name]["iou"] for name in names[1:]} for method in tallies
    }
    figures.save(figures.comparison_plot(ious, names[1:]), folder / "baselines.png")
    with history.open(newline="") as file:
        figure = figures.history_plot(list(csv.DictReader(file)), names[1:])
    figures.save(figure, folder / "history.png")


def _shown(score: Score) -> str:
    return f"{score:>10.3f}" if isinstance(score, float) else f"{score!s:>10}"


def _between(ends: list[Score]) -> str:
    lower, upper = ends
    if isinstance(lower, str) or isinstance(upper, str):
        return f"{UNDEFINED:>10}"
    return f"{f'{lower:.2f}-{upper:.2f}':>10}"


def table(metrics: dict[str, Any]) -> str:
    """The main scores as lines of text: one a method, IoU by class and mean over the ice.

    Below the U-Net's, their intervals, where there are any.
    """
    methods = [name for name in ("unet", "forest", "threshold") if name in metrics]
    classes = [name for name in metrics["unet"] if name not in ("all", "background")]
    head = f"{'IoU, test split':<18}" + "".join(f"{name:>11}" for name in classes)
    lines = [head + f"{'mean':>11}{'accuracy':>11}"]
    for method in methods:
        cells = [metrics[method][name]["iou"] for name in classes]
        cells += [metrics[method]["all"]["mean_ice_iou"], metrics[method]["all"]["pixel_accuracy"]]
        lines.append(f"{method:<18} " + " ".join(_shown(cell) for cell in cells))
        intervals = metrics.get("intervals", {})
        if method in intervals:
            of = intervals[method]
            ends = [of[name]["iou"] for name in classes]
            ends += [of["all"]["mean_ice_iou"], of["all"]["pixel_accuracy"]]
            label = f"  {intervals['confidence']:.0%} interval"
            if any(
                pair[0] != UNDEFINED for pair in ends
            ):  # else there are too few pieces of ground
                lines.append(f"{label:<18} " + " ".join(_between(pair) for pair in ends))
    return "\n".join(lines)
