"""One HTML page of a map: image, layers, glaciers, hypsometry, warnings; opens without a network."""

from __future__ import annotations

import re
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from bokeh.embed import file_html
from bokeh.resources import Resources
from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from glacier_core.config import Project
from glacier_core.files import whole_file
from glacier_core.maps.report.frame import Frame
from glacier_core.maps.report.inputs import Change, Outlines
from glacier_core.maps.report.pictures import Layer, map_layers, move_layers, quick_look
from glacier_core.maps.report.plots import OUTLINE, draw_hypsometry, draw_map
from glacier_core.maps.report.tables import (
    change_columns,
    draw_table,
    glacier_columns,
    glacier_source,
)
from glacier_core.maps.report.words import (
    change_rows,
    error,
    figures,
    km2,
    methods,
    signed,
    subtitle,
    warnings,
)
from glacier_core.maps.scenemap import About, SceneMap
from glacier_core.maps.styles import colour_of, in_words

# Where Bokeh puts an id of its own making: of an element, and of the document.
_UUID = "[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}"
_RANDOM_IDS = re.compile(f'\\bid="({_UUID})"|"docid":"({_UUID})"')

# Of class colours and what lies over the image at first.
_OPACITY = 0.7
# Size of the map on the page, px: its height, and room for axes and tools beside its frame.
_MAP_HEIGHT, _AXES, _TOOLS = 680, 84, 84
_MAP_WIDTHS = (520, 880)


def write_report(
    project: Project,
    map_folder: Path,
    out: Path,
    outlines_folder: Path | None,
    change_folder: Path | None,
) -> Path:
    """Write one HTML file about a map, with everything it needs inside.

    Args:
        project: its root is where the scene's relative path starts.
        map_folder: what `glacier map` wrote for a scene.
        out: the HTML file.
        outlines_folder: what `glacier outlines` wrote for it; None leaves out the glaciers.
        change_folder: what `glacier change` wrote; None leaves out change.

    Returns:
        `out`.

    Raises:
        InputError: a file is missing or damaged, or the outlines are of another scene.
        StorageError: the page cannot be written.
    """
    scene_map = SceneMap(map_folder)
    about, frame = scene_map.about, Frame.of(scene_map.grid)
    outlines = Outlines.read(outlines_folder, about.scene) if outlines_folder else None
    change = Change.read(change_folder) if change_folder else None

    image, colours, gone = quick_look(scene_map, frame, project.root)
    layers = [*([image] if image else []), *map_layers(scene_map, frame)]
    if change is not None:
        layers += move_layers(change.moves, frame)
    plots, facts = _plots(frame, layers, outlines, change, about)
    if outlines is not None and len(outlines.glaciers):
        layers.append(Layer("outlines", "Outlines", None, True, [(OUTLINE, "")], overlay=False))
    page = {
        "about": about,
        "subtitle": subtitle(about, frame),
        "figures": figures(scene_map, outlines, change),
        "layers": layers,
        "opacity": _OPACITY,
        "map_size": _map_size(frame),
        "caption": " ".join(filter(None, [frame.north, f"Image: {colours}." if colours else None])),
        "outlines": outlines,
        "change": change,
        "change_rows": change_rows(change, about) if change else [],
        "plots": {plot.name for plot in plots},
        "warnings": warnings(about, frame, outlines, change, gone),
        "methods": methods(outlines, change),
        "files": _files(project.root, about, map_folder, outlines, change),
        "facts": facts,
        "version": version("glacier-mapping"),
    }
    text = file_html(
        plots,
        Resources(mode="inline", minified=True, log_level="warn"),
        title=f"{about.scene}: glacier map",
        template=_template(),
        template_variables=page,
    )
    with whole_file(out) as beside:
        beside.write_text(_same_each_time(text), encoding="utf-8")
    return out


def _same_each_time(text: str) -> str:
    """The page with Bokeh's random ids numbered: the same map gives the same bytes."""
    ids = dict.fromkeys(match for found in _RANDOM_IDS.findall(text) for match in found if match)
    for number, random in enumerate(ids, start=1):
        text = text.replace(random, f"bokeh-{number}")
    return text


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("glacier_core", "maps/report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"km2": km2, "signed": signed, "error": error}
    return environment.get_template("page.html")


def _plots(
    frame: Frame,
    layers: list[Layer],
    outlines: Outlines | None,
    change: Change | None,
    about: About,
) -> tuple[list[Any], dict[str, Any]]:
    """What Bokeh draws, and what the page's own script needs to know."""
    plots, tables, sources = [], [], {}
    if change is not None and len(change.glaciers):
        columns = change_columns(about.ice)
        sources["changed"] = glacier_source(change.glaciers, columns, frame)
        tables.append(draw_table(sources["changed"], columns, "changed"))
    if outlines is not None and len(outlines.glaciers):
        columns = glacier_columns(about.ice)
        extra = ["zmean_m"]
        sources["glaciers"] = glacier_source(outlines.glaciers, columns, frame, extra)
        tables.append(draw_table(sources["glaciers"], columns, "glaciers"))
    for name, source in sources.items():
        source.name = f"source-{name}"
    plots = [
        draw_map(
            frame, layers, sources.get("glaciers"), sources.get("changed"), about.ice, _OPACITY
        ),
        *tables,
    ]
    if outlines is not None and outlines.hypsometry is not None:
        plots.append(draw_hypsometry(outlines.hypsometry, about.ice))
    facts = {
        "extent": [frame.left, frame.bottom, frame.right, frame.top],
        "stretch": frame.stretch,
        "metres": frame.metres,
        "pixel": (frame.right - frame.left) / frame.grid.width,
        "classes": [
            {"field": f"{name}_km2", "label": in_words(name), "colour": colour_of(k)}
            for k, name in enumerate(about.ice, start=1)
        ],
    }
    return plots, facts


# --- the rest of the page --------------------------------------------------------------------


def _map_size(frame: Frame) -> dict[str, int]:
    """Width and height of the map on the page, px, so that its frame has the scene's shape."""
    wide = (frame.right - frame.left) / ((frame.top - frame.bottom) * frame.stretch)
    width = int(np.clip((_MAP_HEIGHT - _TOOLS) * wide + _AXES, *_MAP_WIDTHS))
    height = int(np.clip((width - _AXES) / wide + _TOOLS, 380, _MAP_HEIGHT))
    return {"width": width, "height": height}


def _files(
    root: Path, about: About, map_folder: Path, outlines: Outlines | None, change: Change | None
) -> list[tuple[str, str]]:
    """What lies where; inside the project, from its root."""

    def place(path: Path) -> str:
        whole = path.absolute()
        return (
            str(whole.relative_to(root.absolute()))
            if whole.is_relative_to(root.absolute())
            else str(path)
        )

    files = [("Scene", about.source), ("Map", f"{place(map_folder)}/")]
    if outlines is not None:
        files.append(("Outlines", place(outlines.folder / f"{about.scene}_glaciers.gpkg")))
        if outlines.hypsometry is not None:
            files.append(("Hypsometry", place(outlines.folder / f"{about.scene}_hypsometry.csv")))
        if outlines.summary.get("inventory"):
            files.append(("Inventory of glaciers", str(outlines.summary["inventory"])))
    if change is not None:
        files += [("Change, shapes", place(change.folder / "change.gpkg")),
                  ("Change, table", place(change.folder / "change.csv"))]  # fmt: skip
    return [*files, *(("Model", model) for model in about.models)]
