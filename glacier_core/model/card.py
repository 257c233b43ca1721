"""The model card: what a registered version learned from, how it was judged, and where it fails.

After Mitchell et al. 2019, Model Cards for Model Reporting. The same content as Markdown, which
MLflow shows beside the version, and as one HTML page with pictures, which opens anywhere.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import shapely

from glacier_core.config import Project
from glacier_core.model.conditions import as_rows
from glacier_core.model.predictor import ModelDescription

CARD = "model_card.html"

_CAPTIONS = {
    "baselines.png": "IoU of the network beside simpler methods, on the same test pixels.",
    "reliability.png": "How often the network is right, by how sure it is; on the line, it knows.",
    "confusion.png": "What each true class was mapped as.",
    "precision_recall.png": "What other thresholds would give, by class.",
}
_EXAMPLE = "A test slice: the image, its labels, and what the network says."
_SCENES = 12  # that are named; how many more there are is said
# Scores of the network in the card's table, and how they are shown.
_SCORES = {
    "iou": ("IoU", "{:.3f}"),
    "precision": ("precision", "{:.3f}"),
    "recall": ("recall", "{:.3f}"),
    "area_bias_percent": ("area bias, %", "{:+.1f}"),
    "boundary_median_m": ("border distance, median m", "{:.0f}"),
    "boundary_p95_m": ("95th percentile, m", "{:.0f}"),
    "ece": ("calibration error", "{:.3f}"),
}


@dataclass
class _Section:
    title: str
    lines: list[str] = field(default_factory=list)
    table: list[list[str]] = field(default_factory=list)  # the head first


def _number(value: object, form: str) -> str:
    return form.format(value) if isinstance(value, (int, float)) else str(value)


def _named(scenes: list[str]) -> str:
    more = f" and {len(scenes) - _SCENES} more" if len(scenes) > _SCENES else ""
    return ", ".join(scenes[:_SCENES]) + more


def _scored(metrics: dict[str, Any]) -> _Section:
    """The network's scores by class, each with its interval where there is one."""
    intervals = metrics.get("intervals", {})
    network = metrics["unet"]
    classes = [name for name in network if name not in ("all", "background")]
    keys = [key for key in _SCORES if any(key in network[name] for name in classes)]
    section = _Section("Scores on the test split")
    section.table.append(["class", *(_SCORES[key][0] for key in keys)])
    for name in classes:
        row = [name]
        for key in keys:
            form = _SCORES[key][1]
            lower, upper = intervals.get("unet", {}).get(name, {}).get(key, ("undefined",) * 2)
            shown = _number(network[name].get(key, ""), form)
            if "undefined" not in (lower, upper):
                shown += f" ({_number(lower, form)} to {_number(upper, form)})"
            row.append(shown)
        section.table.append(row)
    if intervals:
        section.lines.append(
            f"In brackets: {intervals['confidence']:.0%} interval, from a bootstrap over "
            f"{intervals['number_of_units']} {intervals['units']}; none where these are too few."
        )
    for method, words in (
        ("forest", "a random forest on single pixels"),
        ("threshold", "an index"),
    ):
        if method in metrics:
            ious = ", ".join(f"{n} {_number(metrics[method][n]['iou'], '{:.3f}')}" for n in classes)
            section.lines.append(f"On the same pixels, {words}: IoU {ious}.")
    return section


def _hard(metrics: dict[str, Any]) -> _Section | None:
    """Scores by what makes ground hard."""
    conditions = metrics.get("conditions", {})
    classes = [name for name in metrics["unet"] if name not in ("all", "background")]
    section = _Section("Where it is worse, and where better", table=as_rows(conditions, classes))
    section.lines.append(
        "In brackets, how much of the class lies there. Brightness is that of green in each scene; "
        "edges are those of cloud, gaps and fill; part size is that of connected true ice."
    )
    return section if len(section.table) > 1 else None


def _learned(project: Project, description: ModelDescription) -> _Section:
    section = _Section("What it learned from")
    sources = description.sources
    known = {scene.img_path: scene.date for scene in project.masking.scenes.values()}
    dates = sorted({date for source in sources if (date := known.get(source))})
    section.lines.append(
        f"{len(sources)} scenes: {_named([Path(source).stem for source in sources])}."
    )
    if dates:
        section.lines.append(f"Dates: {dates[0]} to {dates[-1]}.")
    if description.blocks:
        west, south, east, north = shapely.total_bounds(
            [shapely.from_wkt(wkt) for wkt in description.blocks.values()]
        )
        section.lines.append(
            f"Ground: {len(description.blocks)} blocks between {west:.2f} and {east:.2f} degrees east, "
            f"{south:.2f} and {north:.2f} degrees north."
        )
    taught = description.taught_in_words()
    if taught:
        section.lines.append(f"It {taught}.")
    if description.started_from:
        section.lines.append(f"Training began with the weights of {description.started_from}.")
    section.lines.append(
        f"Dataset {description.dataset[:12]}, training {description.training[:12]}."
    )
    return section


def _judged(metrics: dict[str, Any]) -> _Section:
    protocol = metrics["protocol"]
    section = _Section("How it was judged")
    section.lines.append(
        f"Split by {protocol['split']}: {protocol['test_slices']} test slices in "
        f"{protocol['test_blocks']} block{'' if protocol['test_blocks'] == 1 else 's'} of ground; every valid pixel once. Epoch and temperature "
        "were chosen on the dev split, which the test split shares no ground with."
    )
    scenes = protocol.get("test_scenes", [])
    if scenes:
        section.lines.append(f"Scenes that test: {_named(scenes)}.")
    if protocol["leaky"]:
        section.lines = [
            f"Split by {protocol['split']}, which LEAKS: test slices show ground, or neighbours of "
            "ground, that it was trained on. These scores say nothing of other ground."
        ]
    return section


def _uses(description: ModelDescription) -> _Section:
    architecture = description.architecture
    variants = [
        words
        for words, is_so in (
            ("residual blocks", architecture.blocks == "residual"),
            ("attention gates", architecture.attention),
            ("a yes or no for each class", architecture.heads == "binary"),
            (f"means of {architecture.coarsening} x {architecture.coarsening} pixels to look at",
             architecture.coarsening > 1),
        )
        if is_so
    ]  # fmt: skip
    return _Section(
        "What it is",
        [
            f"U-Net of depth {architecture.depth} with "
            f"{', '.join([f'{architecture.base_channels} base channels', *variants])} and "
            f"dropout {architecture.dropout:g}; raw bands in, probabilities of "
            f"{', '.join(description.classes)} out, normalisation inside.",
            f"Channels: {', '.join(description.channels)}.",
            "Meant for scenes of the sensors, seasons and regions that it learned from. Elsewhere its "
            "scores are not known: map a place whose outlines are known first. Not for decisions on "
            "hazards without a person who looks at the map.",
            "Likely errors, as of all such maps: debris that is cold and flat but holds no ice, "
            "bedrock, cast shadow and seasonal snow taken for ice; debris tongues that are missed.",
        ],
    )


def model_card(
    project: Project, description: ModelDescription, metrics: dict[str, Any]
) -> tuple[str, str]:
    """A version's card as Markdown, and as an HTML page with the evaluation's pictures.

    Args:
        project: its settings, and the folder with the pictures of the evaluation.
        description: of the model, with the blocks that it was trained on where they are known.
        metrics: content of `metrics.json`.
    """
    title = f"{project.train.tracking.model_name}: model card"
    parts = [_uses(description), _learned(project, description), _judged(metrics), _scored(metrics)]
    hard = _hard(metrics)
    sections = [*parts, hard] if hard else parts
    return _markdown(title, sections), _html(title, sections, project.evaluation_folder / "figures")


def _markdown(title: str, sections: list[_Section]) -> str:
    lines = [f"# {title}"]
    for section in sections:
        lines += ["", f"## {section.title}", ""]
        if section.table:
            head, *rows = ["| " + " | ".join(row) + " |" for row in section.table]
            lines += [head, "|" + "---|" * len(section.table[0]), *rows, ""]
        lines += [f"- {line}" for line in section.lines]
    return "\n".join(lines) + "\n"


def _html(title: str, sections: list[_Section], figures: Path) -> str:
    """One file without anything from elsewhere."""
    parts = [f"<h1>{escape(title)}</h1>"]
    for section in sections:
        parts.append(f"<h2>{escape(section.title)}</h2>")
        if section.table:
            cells = [
                "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row)
                for row, tag in zip(
                    section.table, ["th", *["td"] * len(section.table)], strict=False
                )
            ]
            parts.append("<table>" + "".join(f"<tr>{row}</tr>" for row in cells) + "</table>")
        parts.append("<ul>" + "".join(f"<li>{escape(x)}</li>" for x in section.lines) + "</ul>")
    pictures = [figures / name for name in _CAPTIONS] + sorted(figures.glob("example_*.png"))
    parts.append("<h2>Pictures</h2>")
    for path in pictures:
        if path.exists():
            data = base64.b64encode(path.read_bytes()).decode()
            name = escape(path.stem)
            parts.append(
                f'<figure><img alt="{name}" src="data:image/png;base64,{data}">'
                f"<figcaption>{_CAPTIONS.get(path.name, _EXAMPLE)}</figcaption></figure>"
            )
    style = (
        "body{font:15px/1.5 sans-serif;max-width:62em;margin:2em auto;padding:0 1em}"
        "table{border-collapse:collapse}th,td{border:1px solid #bbb;padding:.2em .6em;text-align:left}"
        "img{max-width:100%}figure{margin:1.5em 0}figcaption{color:#555}"
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{style}</style>{''.join(parts)}</html>\n"
    )
