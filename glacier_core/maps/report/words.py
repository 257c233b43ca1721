"""What a report says in words and numbers: key figures, change by class, warnings."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from glacier_core.maps.report.frame import Frame
from glacier_core.maps.report.inputs import Change, Outlines, areas_of_classes
from glacier_core.maps.scenemap import About, SceneMap
from glacier_core.maps.styles import colour_of, in_words

# A channel this many standard deviations of the training split away is worth a word, as is this
# share of seen pixels with snow that is not mapped as ice.
_DRIFT, _SNOW = 1.0, 0.1

_METHODS = {
    "err_buffer": "± by the border",
    "err_buffer_km2": "± by the border",
    "err_prob": "± by probability",
    "err_prob_km2": "± by probability",
    "err": "±",
}


def km2(value: float | None) -> str:
    """An area in as many digits as people read: 1,234, 56.7, 8.90, 0.123."""
    if value is None or not math.isfinite(value):
        return "–"
    size = abs(value)
    digits = 0 if size >= 1000 else 1 if size >= 10 else 2 if size >= 1 or size == 0 else 3
    return f"{value:,.{digits}f}".replace("-", "−")


def error(value: float | None) -> str:
    """An uncertainty in two digits, which is more than is known of it."""
    if value is None or not math.isfinite(value):
        return "–"
    digits = 1 - math.floor(math.log10(value)) if value > 0 else 0
    return f"{round(value, digits):,.{max(0, digits)}f}"


def signed(value: float | None) -> str:
    """A difference of areas with its sign."""
    return ("+" if value is not None and value > 0 else "") + km2(value)


def percent(share: float | None) -> str:
    """A share as a percentage: 12.3 %, and never 100 % or 0 % where it is not all or nothing."""
    if share is None or not math.isfinite(share):
        return "–"
    if 0 < share < 0.001:
        return "below 0.1 %"
    if 0.999 < share < 1:
        return "above 99.9 %"
    return f"{share:.1%}".replace(".0%", "%").replace("%", " %")


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _day(day: datetime.date | None) -> str:
    return f"{day.day} {day:%B %Y}" if day else "Date not known"


def subtitle(about: About, frame: Frame) -> list[str]:
    grid = frame.grid
    size = f"{grid.pixel_size_m():.3g} m pixels" if grid.located else "size of a pixel not known"
    words = [_day(about.day), size, f"{grid.width:,} × {grid.height:,} pixels"]
    return [*words, grid.crs.name if grid.located else "no coordinate reference system"]


def figures(
    scene_map: SceneMap, outlines: Outlines | None, change: Change | None
) -> list[dict[str, Any]]:
    """The key figures: label, value, unit, notes below it, colour."""
    about = scene_map.about
    figures: list[dict[str, Any]] = []

    def add(label: str, value: str, unit: str = "", notes: Any = (), colour: str = "") -> None:
        figures.append({"label": label, "value": value, "unit": unit,
                        "notes": list(notes), "colour": colour})  # fmt: skip

    if outlines is not None:
        summary = outlines.summary
        number = len(outlines.glaciers)
        add("Glaciers", f"{number:,}", "", ["outlined in this scene"] if number else ["none found"])
        total = summary.get("total_km2", sum(summary["km2"].values()))
        border, odds = (summary.get(f"total_err_{kind}_km2") for kind in ("buffer", "prob"))
        add("Ice, all classes", km2(_number(total)), "km²", _errors(border, odds))
        for k, name in enumerate(about.ice, start=1):
            border, odds = (
                (summary.get(f"err_{kind}_km2") or {}).get(name) for kind in ("buffer", "prob")
            )
            area = _number(summary["km2"].get(name, 0.0))
            add(in_words(name).capitalize(), km2(area), "km²", _errors(border, odds), colour_of(k))
    else:
        areas = areas_of_classes(scene_map)
        for k, name in enumerate(about.ice, start=1):
            label = in_words(name).capitalize()
            if areas is not None:
                add(label, km2(areas[k]), "km²", ["mapped pixels"], colour_of(k))
            else:
                add(label, "–", "", ["no area without a CRS"], colour_of(k))
    if change is not None:
        total, years = change.summary["total"], _number(change.summary.get("years"))
        notes = (
            [f"± {error(_number(total.get('err')))} km²"] if total.get("err") is not None else []
        )
        if years:
            notes.append(f"in {years:.1f} years")
        add("Change", signed(_number(total.get("change"))), "km²", notes)
    add("Seen", percent(about.seen).removesuffix(" %"), "%", ["of the scene's pixels"])
    return figures


def _errors(border: Any, odds: Any) -> list[str]:
    named = ((border, "by the border"), (odds, "by probability"))
    return [f"± {error(_number(value))} {words}" for value, words in named if value is not None]


def change_rows(change: Change, about: About) -> list[dict[str, Any]]:
    """A row a class, and one for all ice: before, after, change and its uncertainty, km²."""
    rows = []
    years = _number(change.summary.get("years"))
    parts: list[tuple[str, Mapping[str, Any], str]] = [
        (in_words(name), change.summary["km2"][name], colour_of(k))
        for k, name in enumerate(about.ice, start=1)
        if name in change.summary["km2"]
    ]
    for label, values, colour in [*parts, ("all ice", change.summary["total"], "")]:
        before, after, moved, spread = (
            _number(values.get(key)) for key in ("before", "after", "change", "err")
        )
        rate = moved / years if moved is not None and years else None
        share = moved / before if moved is not None and before else None
        rows.append({"label": label, "colour": colour, "before": before, "after": after,
                     "change": moved, "err": spread, "rate": rate, "share": share})  # fmt: skip
    return rows


def methods(outlines: Outlines | None, change: Change | None) -> dict[str, str]:
    """How numbers were made, by name."""
    found = {}
    if outlines is not None:
        for name, text in (outlines.summary.get("methods") or {}).items():
            found[_METHODS.get(name, in_words(name))] = text
        left_out = _number(outlines.summary.get("left_out_km2"))
        if left_out:
            found["left out"] = f"Ice in pieces too small to be a glacier, {km2(left_out)} km²."
    if change is not None:
        for name, text in (change.summary.get("methods") or {}).items():
            found[f"change: {_METHODS.get(name, in_words(name))}"] = text
    return found


# --- warnings --------------------------------------------------------------------------------


def warnings(
    about: About,
    frame: Frame,
    outlines: Outlines | None,
    change: Change | None,
    gone: str | None,
) -> list[str]:
    """What a reader should know before using the numbers, a sentence each."""
    found = []
    if about.seen < 1:
        found.append(
            f"{percent(1 - about.seen)} of the scene was not seen: {percent(about.no_value)} has "
            f"no value (fill, scan-line gaps), {percent(about.covered)} lies under cloud or its "
            "shadow; ice there is in no area."
        )
    if about.snow_outside is not None and about.snow_outside > _SNOW:
        found.append(
            f"{percent(about.snow_outside)} of the seen pixels look like snow (NDSI above 0.4) "
            "and are not mapped as ice: seasonal snow hides borders of glaciers."
        )
    for name, check in about.channels.items():
        if check.drift > _DRIFT:
            found.append(
                f"Channel {name} lies {check.drift:.1f} standard deviations from the training "
                f"data: mean {check.mean:.4g} here, {check.training_mean:.4g} there; the model "
                "may be wrong in such a scene."
            )
    if about.day is None:
        found.append("The date of the scene is not known.")
    if not frame.grid.located:
        found.append(
            "The map has no coordinate reference system: nothing can be told in km², and axes "
            "count pixels."
        )
    if gone:
        found.append(gone)
    if outlines is not None and len(outlines.glaciers):
        found += _glacier_warnings(outlines, frame)
    if change is not None:
        found += _change_warnings(change, about)
    return found


def _glacier_warnings(outlines: Outlines, frame: Frame) -> list[str]:
    found, glaciers = [], outlines.glaciers
    boxes = frame.on_page(glaciers.geometry).bounds
    wide = 1.01 * (frame.right - frame.left) / frame.grid.width  # lines may lie a bit off
    high = 1.01 * (frame.top - frame.bottom) / frame.grid.height
    cut = (
        (boxes["minx"] < frame.left + wide)
        | (boxes["maxx"] > frame.right - wide)
        | (boxes["miny"] < frame.bottom + high)
        | (boxes["maxy"] > frame.top - high)
    )
    if cut.any():
        found.append(f"{_glaciers(cut)} cut by the edge of the scene; more of them lies outside.")
    if "open_share" in glaciers:
        open_ended = (glaciers["open_share"] > 0) & ~cut
        if open_ended.any():
            found.append(
                f"{_glaciers(open_ended)} cut by unseen ground; more of them may lie under it."
            )
    if "gap_km2" in glaciers:
        gaps = glaciers["gap_km2"].fillna(0)
        if (gaps > 0).any():
            found.append(
                f"{_glaciers(gaps > 0)} only partly seen: {km2(float(gaps.sum()))} km² inside of "
                "them was not seen and is in no area."
            )
    return found


def _glaciers(which: pd.Series) -> str:
    number = int(which.sum())
    return "1 glacier is" if number == 1 else f"{number:,} glaciers are"


def _change_warnings(change: Change, about: About) -> list[str]:
    found, summary = [], change.summary
    if about.scene not in (summary["before"], summary["after"]):
        found.append(
            f"The change shown is that between {summary['before']} and {summary['after']}: "
            "neither is this scene."
        )
    share = _number(summary.get("seen_share"))
    if share is not None and share < 1:
        found.append(
            f"Change is told for the {percent(share)} of the ground that was seen at both dates."
        )
    return found
