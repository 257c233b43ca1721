"""What moves in a report: the map and the hypsometry, in Bokeh."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from bokeh.models import (
    BoxZoomTool,
    ColumnDataSource,
    HoverTool,
    InlineStyleSheet,
    MultiPolygons,
    NumeralTickFormatter,
    PanTool,
    Range1d,
    ResetTool,
    SaveTool,
    TapTool,
    WheelZoomTool,
)
from bokeh.models.annotations import ScaleBar
from bokeh.models.annotations.dimensional import MetricLength
from bokeh.plotting import figure

from glacier_core.maps.report.frame import Frame
from glacier_core.maps.report.pictures import Layer
from glacier_core.maps.styles import colour_of, in_words

INK = "#1f2a37"
_SOFT, _LINE, _PAPER, _NO_IMAGE = "#64748b", "#d8dee6", "#e9edf2", "#5d6978"
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
OUTLINE, _CHOSEN = "#ffffff", "#ffd60a"


def draw_map(
    frame: Frame,
    layers: Sequence[Layer],
    glaciers: ColumnDataSource | None,
    changed: ColumnDataSource | None,
    ice: Sequence[str],
    opacity: float,
) -> Any:
    """The map, each layer a renderer named `layer-KEY`."""
    x_name, y_name = {"km": ("easting, km", "northing, km"), "°": ("longitude, °", "latitude, °"),
                      "px": ("column", "row, from below")}[frame.unit]  # fmt: skip
    plot: Any = figure(
        name="map",
        sizing_mode="stretch_both",
        x_range=Range1d(start=frame.left, end=frame.right),
        y_range=Range1d(start=frame.bottom, end=frame.top),
        x_axis_label=x_name,
        y_axis_label=y_name,
        tools=[],
        toolbar_location="above",
        background_fill_color=_PAPER if layers[0].key == "image" else _NO_IMAGE,
        min_border=0,
        min_border_left=68,  # as much as labels take close up
        stylesheets=[InlineStyleSheet(css=":host(:focus) { outline: none; }")],
    )
    _calm(plot)
    plot.grid.visible = False
    for axis in plot.axis:
        axis.formatter.use_scientific = False
        axis.axis_label_standoff = 4
    for layer in layers:
        if layer.uri is None:
            continue
        renderer = plot.image_url(
            url=[layer.uri],
            x=[frame.left],
            y=[frame.top],
            w=[frame.right - frame.left],
            h=[frame.top - frame.bottom],
            anchor="top_left",
            global_alpha=opacity if layer.overlay else 1.0,
        )
        renderer.name, renderer.visible, renderer.level = f"layer-{layer.key}", layer.shown, "image"
    sources = [source for source in (changed, glaciers) if source is not None]
    clickable = [_polygons(plot, source, quiet=source is changed) for source in sources]
    pan, wheel = PanTool(), WheelZoomTool(zoom_on_axis=False)
    plot.add_tools(pan, wheel, BoxZoomTool(match_aspect=True), ResetTool(), SaveTool())
    plot.toolbar.active_drag, plot.toolbar.active_scroll = pan, wheel
    plot.toolbar.logo = None
    words = None
    if sources:
        tap = TapTool(renderers=clickable)
        plot.add_tools(tap)
        plot.toolbar.active_tap = tap
        words = _hover(sources[-1], ice, changes=glaciers is None)
    # Without this tool, which has no button, Bokeh finds too little room for all buttons.
    plot.add_tools(HoverTool(renderers=clickable[-1:], tooltips=words, visible=False))
    if frame.metres is not None:
        plot.add_layout(_scale_bar(plot.x_range, frame, frame.metres))
    return plot


def _polygons(plot: Any, source: ColumnDataSource, quiet: bool) -> Any:
    """Outlines that can be clicked on. Quiet ones show only when chosen."""

    def glyph(colour: str, width: float, alpha: float, fill: float) -> MultiPolygons:
        return MultiPolygons(
            xs="xs", ys="ys", line_color=colour, line_width=width, line_alpha=alpha,
            fill_color=colour, fill_alpha=fill,
        )  # fmt: skip

    renderer = plot.add_glyph(
        source,
        glyph(OUTLINE, 1, 0.0 if quiet else 0.9, 0.0),
        selection_glyph=glyph(_CHOSEN, 3, 1.0, 0.0 if quiet else 0.12),
        nonselection_glyph=None,
        hover_glyph=None if quiet else glyph(OUTLINE, 1, 0.9, 0.18),
    )
    renderer.name = "layer-changed" if quiet else "layer-outlines"
    return renderer


def _hover(source: ColumnDataSource, ice: Sequence[str], changes: bool) -> str:
    """The tooltip; Bokeh escapes the values."""
    lines: list[tuple[str, str]] = []
    if changes:
        lines += [("before", "@km2_before{0,0.000} km²"), ("after", "@km2_after{0,0.000} km²"),
                  ("change", "@change_km2{+0,0.000} km²")]  # fmt: skip
    else:
        lines += [("area", "@area_km2{0,0.000} km²")]
        lines += [(in_words(name), f"@{{{name}_km2}}{{0,0.000}} km²") for name in ice
                  if f"{name}_km2" in source.data]  # fmt: skip
        heights = source.data.get("zmin_m")
        if heights is not None and np.isfinite(heights).any():
            lines.append(("elevation", "@zmin_m{0,0} to @zmax_m{0,0} m"))
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{value}</td></tr>" for name, value in lines
    )
    second = ""
    if any(source.data.get("inv_id", ())):
        second = "<div style='color:#64748b'>@inv_id</div>"
    return (
        "<div style='font:13px system-ui,sans-serif;color:#1f2a37;font-variant-numeric:tabular-nums'>"
        f"<b>@glac_id</b>{second}<table style='border-spacing:0 1px;margin-top:3px'>{rows}</table>"
        "<style>td:first-child{color:#64748b;padding-right:12px}</style></div>"
    )


def _scale_bar(x_range: Range1d, frame: Frame, metres: float) -> ScaleBar:
    """Lengths are true in the middle of the scene. Where x counts no kilometres, the page's script
    keeps the range `scale` as long as `x_range` is on the ground."""
    if frame.unit != "km":
        x_range = Range1d(start=0, end=(frame.right - frame.left) * metres / 1000, name="scale")
    return ScaleBar(
        range=x_range,
        unit="km",
        dimensional=MetricLength(include=["m", "km"], ticks=[1, 2, 5, 10, 20, 50, 100, 200, 500]),
        location="bottom_left",
        bar_length=0.12,
        bar_line_width=2,
        bar_line_color=INK,
        label_text_font=_FONT,
        label_text_font_size="12px",
        background_fill_color="#ffffff",
        background_fill_alpha=0.85,
        border_line_color=None,
        padding=6,
    )


def _calm(plot: Any) -> None:
    """Quiet axes in the page's own letters."""
    plot.outline_line_color = _LINE
    for axis in plot.axis:
        axis.axis_line_color = None
        axis.major_tick_line_color = _LINE
        axis.minor_tick_line_color = None
        axis.major_label_text_color = _SOFT
        axis.axis_label_text_color = _SOFT
        axis.major_label_text_font = axis.axis_label_text_font = _FONT
        axis.major_label_text_font_size = axis.axis_label_text_font_size = "12px"
        axis.axis_label_text_font_style = "normal"
    plot.grid.grid_line_color = "#e8ecf1"


def draw_hypsometry(hypsometry: pd.DataFrame, ice: Sequence[str]) -> Any:
    """Area by elevation, classes beside each other along a bar, high ground above."""
    wide = hypsometry.pivot_table(
        index="elevation_m", columns="class", values="km2", aggfunc="sum", fill_value=0.0
    ).sort_index()
    names = [name for name in ice if name in wide.columns]
    names += [str(name) for name in wide.columns if name not in names]
    lower = wide.index.to_numpy(np.float64)
    step = float(np.diff(lower).min()) if len(lower) > 1 else 100.0
    fields = [f"class_{k}" for k in range(len(names))]
    data: dict[str, Any] = {"lower": lower, "upper": lower + step, "middle": lower + step / 2}
    data |= {
        field: wide[name].to_numpy(np.float64) for field, name in zip(fields, names, strict=True)
    }
    bins = (lower.max() - lower.min()) / step + 1
    plot: Any = figure(
        name="hypsometry",
        sizing_mode="stretch_width",
        height=int(np.clip(16 * bins, 240, 420)) + 50,
        x_range=Range1d(start=0, end=float(wide.sum(axis=1).max()) * 1.05 or 1.0),
        x_axis_label=f"km² in each {step:g} m of elevation",
        y_axis_label="metres above sea level",
        tools=[],
        toolbar_location=None,
        min_border_right=12,
    )
    _calm(plot)
    plot.ygrid.visible = False
    plot.outline_line_color = None
    plot.yaxis.formatter = NumeralTickFormatter(format="0,0")
    colours = [colour_of(1 + k) for k in range(len(names))]
    plot.hbar_stack(
        fields, y="middle", height=step * 0.86, color=colours, source=ColumnDataSource(data)
    )
    rows = "".join(
        f"<br>{html.escape(in_words(name))}: @{field}{{0,0.000}} km²"
        for field, name in zip(fields, names, strict=True)
    )
    plot.add_tools(
        HoverTool(tooltips=f"<div style='font:13px system-ui,sans-serif'><b>@lower{{0,0}} to "
                  f"@upper{{0,0}} m</b>{rows}</div>")
    )  # fmt: skip
    return plot
