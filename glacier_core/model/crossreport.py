"""A cross-validation for people who read: report, figures of the worst slices, MLflow, a table."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from glacier_core.config import Project
from glacier_core.dataset.loading import SceneBands, class_numbers, read_channels
from glacier_core.dataset.slicing import SlicedScene
from glacier_core.files import whole_file, whole_folder
from glacier_core.model import figures
from glacier_core.model.conditions import BY_CONDITION, as_rows
from glacier_core.model.metrics import Score
from glacier_core.model.pooling import SCORES, TABLE, Pooled, TestSlice
from glacier_core.model.predictions import load_prediction
from glacier_core.model.tracking import STORE_ERRORS, log_crossvalidation
from glacier_core.settings import SPLITS

if TYPE_CHECKING:
    from glacier_core.model.crossvalidation import CrossValidation

logger = logging.getLogger(__name__)

REPORT, FIGURES = "report.md", "figures"

LEAKS = (
    "Random slices: this leaks. Slices that test lie beside slices that trained, slices with little "
    "ice are left out of the test too, and both make the scores better than new ground would have "
    "them. Made only to be compared with published numbers of this protocol."
)

_HOW = {
    "blocks": "Blocks of ground are dealt into folds; no slice of another split lies within the buffer",
    "regions": "Each region tests in one fold",
    "scenes": "Scenes test in one fold each",
    "groups": "Each group of scenes tests in one fold, by models that saw only the others",
    "random": "Slices are drawn at random, anew with each seed",
}
_MOST_NAMED = 12


def write_report(made: CrossValidation, pooled: Pooled) -> None:
    """Write `figures/` and `report.md`, and what MLflow keeps. Never fails for MLflow's sake."""
    shown = pooled.worst[: made.project.params.evaluate.examples]
    drawn = _draw(made, pooled, shown)
    with whole_file(made.folder / REPORT) as beside:
        beside.write_text("\n".join(_report(made, pooled, drawn)) + "\n")
    _log(made, pooled)


def _report(made: CrossValidation, pooled: Pooled, drawn: dict[int, str]) -> list[str]:
    scores, plan = pooled.scores, made.plan
    protocol, mean = scores["protocol"], scores["mean"]
    seeds = ", ".join(map(str, protocol["seeds"]))
    folds = _counted(len(plan.folds), "fold")
    confidence = f"{protocol['confidence']:.0%}"
    lines = [f"# Cross-validation {made.name}", ""]
    if plan.leaky:
        lines += [f"**{LEAKS}**", ""]
    lines += [
        f"{_HOW[plan.by]}. {folds}, seeds {seeds}; {protocol['test_slices']} test "
        f"slices, every valid pixel once"
        + (
            f"; {protocol['untested_slices']} more slices test in no fold"
            if protocol["untested_slices"]
            else ""
        )
        + ".",
        "",
    ]
    if not plan.leaky:
        lines += [
            "In each fold the best epoch and all else is chosen on a share of the training ground"
            + (", with the seeds on its parts in turn" if made.rotate else "")
            + "; the ground that tests takes no part."
            + (
                " Predictions are means over the symmetries of the square."
                if made.symmetries
                else ""
            ),
            "",
        ]
    if made.started is not None:
        lines += [
            f"Each training begins with the weights of {made.project.train.start_from}"
            + (
                ", which do not say on which ground they learned: make sure that it is none that "
                "tests, or these scores are those of a model that knows the answers."
                if made.started.blocks is None
                else ", which know none of the ground that tests."
            ),
            "",
        ]
    lines += [
        "## Scores",
        "",
        f"Mean over seeds [{confidence} interval over {mean['all']['units']} pieces of ground] "
        "± standard deviation over seeds. The interval says how much other ground of this kind "
        "could change the score; the deviation, how much training anew does.",
        "",
        *_scores(mean),
        "",
        *_together(scores),
        *_hard(scores),
        *_steps(scores, made.project.params.outlines.min_area_km2),
        "## By fold",
        "",
        *_table(*_by_fold(scores)),
        "",
        "## Ground",
        "",
        *_ground(protocol["ground"], len(plan.pieces)),
        "",
        "## Worst test slices",
        "",
        *_worst(pooled.worst, drawn),
    ]
    return lines


def _number(score: Score, digits: int = 3) -> str:
    return score if isinstance(score, str) else f"{score:.{digits}f}"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _digits(key: str) -> int:
    return 1 if key.endswith(("_m", "_percent")) else 3


def _shown(score: dict[str, Score], digits: int = 3) -> str:
    text = _number(score["value"], digits)
    if not isinstance(score["lower"], str):
        text += f" [{_number(score['lower'], digits)}, {_number(score['upper'], digits)}]"
    if not isinstance(score["spread"], str):
        text += f" ± {_number(score['spread'], digits)}"
    return text


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows]]


def _scores(mean: dict[str, Any]) -> list[str]:
    classes = [name for name in mean if name != "all"]
    rows = []
    for key, score in mean[classes[0]].items():
        cells = [mean[name][key] for name in classes]
        if isinstance(score, dict):
            rows.append([key, *(_shown(cell, _digits(key)) for cell in cells)])
        else:
            rows.append([key, *(f"{cell:,}" for cell in cells)])
    lines = _table(["score", *classes], rows)
    whole = mean["all"].items()
    return [*lines, "", *_table(["all classes", ""], [
        [key, _shown(score, _digits(key)) if isinstance(score, dict) else f"{score:,}"]
        for key, score in whole
    ])]  # fmt: skip


def _together(scores: dict[str, Any]) -> list[str]:
    """What the models of all seeds say as one."""
    if "together" not in scores:
        return []
    rows = []
    for fold, found in [("all folds", scores), *scores["by_fold"].items()]:
        whole = found["together"]
        rows.append(
            [fold]
            + [_shown({**whole[name]["iou"], "spread": ""}) for name in _ice(whole)]
            + [_number(whole[name]["area_bias_percent"]["value"], 1) for name in _ice(whole)]
            + [_number(whole["all"]["ece"]["value"])]
        )
    ice = _ice(scores["mean"])
    head = ["fold", *(f"IoU {n}" for n in ice), *(f"area bias {n}, %" for n in ice), "calibration error"]  # fmt: skip
    return [
        "## All seeds together",
        "",
        "Their probabilities averaged, as `glacier map --model A --model B` does.",
        "",
        *_table(head, rows),
        "",
    ]


def _hard(scores: dict[str, Any]) -> list[str]:
    """Scores by what makes ground hard."""
    head, *rows = as_rows(scores["conditions"], _ice(scores["mean"]))
    return [
        "## Hard ground",
        "",
        "Mean over seeds. A part's size is that of the true ice, of which there is only a recall; parts "
        "that a slice or unseen ground cuts off have none.",
        "",
        *_table(head, rows),
        "",
    ]


def _steps(scores: dict[str, Any], min_area_km2: float) -> list[str]:
    """What could be done to the map after the network, and what it gives."""
    ice = _ice(scores["mean"])
    rows = [
        [step] + [f"{_number(found[name]['iou'])} ({_signed(found[name]['gain'])})" for name in ice]
        for step, found in scores["steps"].items()
    ]
    models = "all seeds together" if "together" in scores else "the last seed"
    return [
        "## After the network",
        "",
        f"IoU after a step alone, and its gain, on the map of {models}. Small is below {min_area_km2:g} km² "
        "(`outlines.min_area_km2`).",
        "",
        *_table(["step", *(f"IoU {name}" for name in ice)], rows),
        "",
    ]


def _signed(score: Score) -> str:
    return score if isinstance(score, str) else f"{score:+.3f}"


def _ice(summary: dict[str, Any]) -> list[str]:
    return [name for name in summary if name not in ("all", "background")]


def _by_fold(scores: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the main scores, of all folds and of each."""
    ice, rows = _ice(scores["mean"]), []
    for fold, found in [("all folds", scores), *scores["by_fold"].items()]:
        mean = found["mean"]
        iou = [_shown({**mean[name]["iou"], "lower": ""}) for name in ice]
        iou.append(_shown({**mean["all"]["mean_ice_iou"], "lower": ""}))
        rows.append([fold, f"{mean['all']['pixels']:,}", *iou])
    return ["fold", "pixels", *(f"IoU {name}" for name in ice), "mean IoU of the ice"], rows


def _ground(ground: dict[str, Any], usable: int) -> list[str]:
    def told(split: dict[str, Any]) -> str:
        scenes, blocks = split["scenes"], split["blocks"]
        named = ", ".join(scenes) if len(scenes) <= _MOST_NAMED else f"{len(scenes)} scenes"
        counted = _counted(split["slices"], "slice"), _counted(len(blocks), "block")
        return f"{named} ({', '.join(counted)})"

    rows = []
    for fold, by_seed in ground.items():
        for seed, of in by_seed.items():
            splits = [of[split] for split in SPLITS]
            left = usable - sum(split["slices"] for split in splits)
            rows.append([fold, seed, *map(told, splits), _counted(left, "slice")])
    return [
        "Left out is what lies too near to ground that chooses or tests, outside every region, or is dropped by the filter.",
        "",
        *_table(["fold", "seed", "trains", "chooses", "tests", "left out"], rows),
    ]


def _worst(worst: Sequence[TestSlice], drawn: dict[int, str]) -> list[str]:
    rows = []
    for k, one in enumerate(worst[:10]):
        picture = f"[{Path(drawn[k]).name}]({drawn[k]})" if k in drawn else ""
        rows.append([one.scene, str(one.k), one.fold, f"{one.share_wrong:.1%}", picture])
    return _table(["scene", "slice", "fold", "wrong pixels", "figure"], rows)


def _draw(made: CrossValidation, pooled: Pooled, shown: Sequence[TestSlice]) -> dict[int, str]:
    """Draw slices with the map of their first seed; by place in the list, where each lies."""
    drawn = {}
    names = [name for name in pooled.scores["mean"] if name != "all"]
    with whole_folder(made.folder / FIGURES) as folder:
        for k, one in enumerate(shown):
            seed, path = next(iter(one.files.items()))
            figure = _figure(made.project, one, path, names, seed, leaky=made.plan.leaky)
            drawn[k] = f"{FIGURES}/{one.fold}_{one.scene}_{one.k}.png"
            figures.save(figure, folder / Path(drawn[k]).name)
    return drawn


def _figure(
    project: Project, one: TestSlice, path: Path, names: list[str], seed: int, *, leaky: bool
) -> Figure:
    folder = project.slice_folder(one.scene)
    scene = SlicedScene.read(folder / "slices.geojson")
    [record] = [record for record in scene.slices if record.k == one.k]
    seen = np.s_[: record.height, : record.width]
    stored = np.load(folder / f"slice_{one.scene}_img_{one.k}.npy", mmap_mode="r")[seen]
    label = np.load(folder / f"slice_{one.scene}_label_{one.k}.npy", mmap_mode="r")[seen]
    bands = SceneBands(scene.bands, scene.nodata, scene.classes)
    return figures.example(
        read_channels(stored, bands, scene.bands),
        scene.bands,
        class_numbers(label, scene.classes, names[1:]),
        load_prediction(path)[1],
        names,
        f"{one.scene}, slice {one.k} (test ground of fold {one.fold}, seed {seed})"
        + (", random split: it leaks" if leaky else ""),
    )


def _metrics(summary: dict[str, Any]) -> dict[str, float]:
    """Scores by the names that they have in MLflow, those that are defined."""
    found = {}
    for name, scores in summary.items():
        for key, score in scores.items():
            if not isinstance(score, dict):
                continue
            label = f"test_{key}" if name == "all" else f"test_{name}_{key}"
            for end, value in score.items():
                if isinstance(value, float):
                    found[label if end == "value" else f"{label}_{end}"] = value
    return found


def _log(made: CrossValidation, pooled: Pooled) -> None:
    scores = pooled.scores
    protocol = scores["protocol"]
    tags = {"protocol": protocol["by"], "leaky": str(protocol["leaky"]).lower()}
    trainings = []
    for fold in made.plan.folds:
        for seed in protocol["seeds"]:
            training = made.training(fold, seed)
            own = scores["by_fold"][fold.name]["by_seed"][str(seed)]
            trainings.append((made.within(fold, seed), training, _metrics(own)))
    files = [made.folder / name for name in (REPORT, SCORES, TABLE, BY_CONDITION, FIGURES)]
    try:
        log_crossvalidation(
            made.project, made.name, tags, _metrics(scores["mean"]), trainings, files
        )
    except STORE_ERRORS as error:
        logger.warning("MLflow cannot be reached; the scores are in %s: %s", made.folder, error)


def summary(pooled: Pooled) -> str:
    """The main scores as lines of text: a row a fold, and all of them together."""
    head, rows = _by_fold(pooled.scores)
    cells = [head, *rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    shown = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]
    leaks = [LEAKS] if pooled.scores["protocol"]["leaky"] else []
    return "\n".join([*leaks, *shown])
