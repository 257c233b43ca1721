"""The glaciers of a report: their shapes for the map, and tables that sort by any column."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
from bokeh.models import ColumnDataSource, InlineStyleSheet
from bokeh.models.widgets.tables import DataTable, NumberFormatter, StringFormatter, TableColumn
from shapely.geometry import MultiPolygon
from shapely.geometry.base import BaseGeometry

from glacier_core.maps.report.frame import Frame
from glacier_core.maps.styles import in_words

# Numbers in the page for all outlines together: 1.2 MB as text.
_COORDINATES = 150_000
_TABLE_ROWS = 12
_ROW_HEIGHT = 28

_TABLE_STYLE = """
:host { --data-table-font-size: 13px; --selected: #fff3bf; --odd: #ffffff; --border-color: #e3e8ee; }
.slick-header-columns { background: #f4f6f9; border-bottom: 1px solid #cfd6df; }
.slick-header-column.ui-state-default { height: 20px; line-height: 20px; padding: 6px 8px;
  background: #f4f6f9; border-right-color: transparent; color: #334155; font-weight: 600;
  font-size: 12px; cursor: pointer; }
.slick-header-column:hover { background: #e6ebf1; }
.slick-header-column-sorted { font-style: normal; background: #e6ebf1; }
.slick-row.odd { background: #ffffff; }
.slick-row:hover .slick-cell { background: #f4f8fc; }
.slick-row .slick-cell.selected { background: #fff3bf; }
.slick-cell { border: 0; border-bottom: 1px solid #eef1f5; padding: 0 8px; line-height: 28px;
  font-variant-numeric: tabular-nums; color: #1f2a37; cursor: pointer; }
.slick-cell.active { border-style: solid; border-color: transparent; border-bottom-color: #eef1f5; }
"""


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        field: of the frame; left out where the frame lacks it.
        title: above it; not HTML.
        form: how Bokeh writes its numbers, None for text.
        width: relative to the others.
    """

    field: str
    title: str
    form: str | None
    width: int = 80


def glacier_columns(ice: Sequence[str]) -> list[Column]:
    return [
        Column("glac_id", "Glacier", None, 150),
        Column("inv_id", "Inventory", None, 150),
        Column("area_km2", "Area km²", "0,0.000"),
        Column("err_buffer_km2", "± border", "0,0.000"),
        Column("err_prob_km2", "± probab.", "0,0.000"),
        *(
            Column(f"{name}_km2", f"{in_words(name).capitalize()} km²", "0,0.000", 95)
            for name in ice
        ),
        Column("gap_km2", "Unseen km²", "0,0.000", 85),
        Column("zmin_m", "Lowest m", "0,0", 75),
        Column("zmed_m", "Median m", "0,0", 75),
        Column("zmax_m", "Highest m", "0,0", 75),
        Column("slope_deg", "Slope °", "0.0", 60),
        Column("aspect_deg", "Aspect °", "0", 65),
        Column("confidence", "Confid.", "0.00", 65),
    ]


def change_columns(ice: Sequence[str]) -> list[Column]:
    by_class = []
    for name in ice:
        words = in_words(name).capitalize()
        by_class += [Column(f"{name}_before_km2", f"{words} before", "0,0.000", 115),
                     Column(f"{name}_after_km2", "after", "0,0.000", 60)]  # fmt: skip
    return [
        Column("glac_id", "Glacier", None, 150),
        Column("inv_id", "Inventory", None, 150),
        Column("km2_before", "Before km²", "0,0.000"),
        Column("km2_after", "After km²", "0,0.000"),
        Column("change_km2", "Change km²", "+0,0.000", 90),
        Column("err_km2", "± km²", "0,0.000", 65),
        Column("rate_km2_yr", "km² a year", "+0,0.0000"),
        Column("gain_km2", "Gain km²", "0,0.000", 70),
        Column("loss_km2", "Loss km²", "0,0.000", 70),
        *by_class,
        Column("seen_share", "Seen", "0 %", 55),
    ]


# --- shapes ----------------------------------------------------------------------------------


def glacier_source(
    glaciers: gpd.GeoDataFrame, columns: Sequence[Column], frame: Frame, extra: Sequence[str] = ()
) -> ColumnDataSource:
    """Shapes on the page's plane, their boxes, and the columns of a table: one row a glacier.

    Shapes are simplified for the screen: at half of the map's pixel, or more coarsely where the
    page would become heavy.
    """
    shapes = frame.on_page(glaciers.geometry)
    data: dict[str, Any] = dict(zip(("xs", "ys"), _coordinates(shapes, frame), strict=True))
    boxes = shapes.bounds
    for name in ("minx", "miny", "maxx", "maxy"):
        data[name] = boxes[name].to_numpy(np.float32)
    text = {column.field for column in columns if column.form is None}
    for field in [*(column.field for column in columns), *extra]:
        if field not in glaciers or field in data:
            continue
        values = glaciers[field]
        if field in text:
            data[field] = ["" if pd.isna(value) else str(value) for value in values]
        else:
            data[field] = pd.to_numeric(values, errors="coerce").to_numpy(np.float32)
    if glaciers.crs is not None and frame.grid.located and len(glaciers):
        inside = shapes.representative_point()
        lon, lat = frame.degrees(inside.x.to_numpy(), inside.y.to_numpy())
        data |= {"lon": np.asarray(lon, np.float32), "lat": np.asarray(lat, np.float32)}
    return ColumnDataSource(data)


def _coordinates(shapes: gpd.GeoSeries, frame: Frame) -> tuple[list[Any], list[Any]]:
    """x and y as `MultiPolygons` takes them: [glacier][part][ring][point]."""
    tolerance = 0.5 * abs(frame.right - frame.left) / max(frame.grid.width, 1)
    simple = shapes.simplify(tolerance)
    for _ in range(8):
        if 2 * int(simple.count_coordinates().sum()) <= _COORDINATES:
            break
        tolerance *= 1.7
        simple = simple.simplify(tolerance)
    digits = max(0, 1 - math.floor(math.log10(max(tolerance, 1e-9))))
    xs, ys = [], []
    for shape, whole in zip(simple, shapes, strict=True):
        parts = _parts(shape) or _parts(whole)
        rings = [[part.exterior, *part.interiors] for part in parts]
        points = [[_rounded(ring.coords, digits) for ring in part] for part in rings]
        xs.append([[ring[:, 0].tolist() for ring in part] for part in points])
        ys.append([[ring[:, 1].tolist() for ring in part] for part in points])
    return xs, ys


def _parts(shape: BaseGeometry | None) -> list[Any]:
    if shape is None or shape.is_empty:
        return []
    if isinstance(shape, MultiPolygon):
        return list(shape.geoms)
    return [shape] if shape.geom_type == "Polygon" else []


def _rounded(points: Any, digits: int) -> npt.NDArray[np.float64]:
    rounded: npt.NDArray[np.float64] = np.round(np.asarray(points)[:, :2], digits)
    return rounded


# --- tables ------------------------------------------------------------------------------------


def draw_table(source: ColumnDataSource, columns: Sequence[Column], name: str) -> DataTable:
    """A table that sorts by any column; columns without a value are left out."""
    shown = [column for column in columns if _says_something(column, source.data)]
    texts = sum(column.form is None for column in shown)
    right = f".slick-header-column:nth-child(n+{texts + 1}) .slick-column-name {{ float: right; }}"
    rows = min(_TABLE_ROWS, len(source.data["xs"]))
    return DataTable(
        name=name,
        source=source,
        columns=[_bokeh_column(column) for column in shown],
        index_position=None,
        sizing_mode="stretch_width",
        height=36 + rows * _ROW_HEIGHT,
        row_height=_ROW_HEIGHT,
        autosize_mode="force_fit",
        reorderable=False,
        stylesheets=[InlineStyleSheet(css=_TABLE_STYLE + right)],
    )


def _bokeh_column(column: Column) -> TableColumn:
    formatter = StringFormatter()
    if column.form is not None:
        formatter = NumberFormatter(format=column.form, nan_format="–", text_align="right")
    return TableColumn(
        field=column.field,
        title=html.escape(column.title),  # SlickGrid takes titles for HTML
        formatter=formatter,
        width=column.width,
        default_sort="ascending" if column.form is None else "descending",
    )


def _says_something(column: Column, data: Any) -> bool:
    values = data.get(column.field)
    if values is None or column.form is None:
        return values is not None and any(values)
    finite = values[np.isfinite(values)]
    return bool(finite.size and (column.field != "gap_km2" or (finite > 0).any()))
