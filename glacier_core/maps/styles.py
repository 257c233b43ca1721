"""Styles that QGIS takes up by itself: beside a raster, and inside a GeoPackage."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree as ET

from glacier_core.files import whole_file
from glacier_core.maps.rasters import CLASS_COLOURS

# From this version on, all that is used here is understood; later ones read it all the same.
_QGIS = "3.22.0"


def in_words(name: str) -> str:
    """A class name as people write it."""
    return name.replace("_", " ")


def colour_of(number: int) -> str:
    """Colour of a class number as #rrggbb."""
    return CLASS_COLOURS[1 + (number - 1) % (len(CLASS_COLOURS) - 1)]


def write_class_style(path: Path, classes: Sequence[str]) -> None:
    """Write the style of a class raster: ice in its colours with names, the rest transparent."""
    root = ET.Element("qgis", version=_QGIS, styleCategories="AllStyleCategories")
    renderer = ET.SubElement(
        ET.SubElement(root, "pipe"),
        "rasterrenderer",
        {"type": "paletted", "band": "1", "opacity": "1", "alphaBand": "-1"},
    )
    palette = ET.SubElement(renderer, "colorPalette")
    for number, name in enumerate(classes):
        colour, alpha = (colour_of(number), "255") if number else ("#000000", "0")
        entry = {"value": str(number), "label": in_words(name), "color": colour, "alpha": alpha}
        ET.SubElement(palette, "paletteEntry", entry)
    _write(path, root)


def class_polygon_style(classes: Sequence[str], column: str = "class") -> str:
    """QML of polygons coloured by class.

    Args:
        classes: the values of `column`, in the order of their colours.
        column: the attribute.
    """
    colours = {name: colour_of(number) for number, name in enumerate(classes, start=1)}
    return _categorised(column, colours)


def value_style(column: str, colours: Mapping[str, str]) -> str:
    """QML of polygons coloured by the value of a column, `#rrggbb` by value."""
    return _categorised(column, colours)


def glacier_style() -> str:
    """QML of glacier outlines: a dark line, no fill."""
    root = ET.Element("qgis", version=_QGIS, styleCategories="Symbology")
    renderer = ET.SubElement(root, "renderer-v2", type="singleSymbol", symbollevels="0")
    _fill(ET.SubElement(renderer, "symbols"), "0", "0,0,0,0", "30,30,30,255", "0.4")
    return _text(root)


def _categorised(column: str, colours: Mapping[str, str]) -> str:
    root = ET.Element("qgis", version=_QGIS, styleCategories="Symbology")
    renderer = ET.SubElement(
        root, "renderer-v2", type="categorizedSymbol", attr=column, symbollevels="0"
    )
    categories = ET.SubElement(renderer, "categories")
    symbols = ET.SubElement(renderer, "symbols")
    for number, (value, colour) in enumerate(colours.items()):
        ET.SubElement(
            categories, "category", symbol=str(number), value=value, label=in_words(value),
            render="true", type="string",
        )  # fmt: skip
        red, green, blue = bytes.fromhex(colour[1:])
        line = f"{red // 2},{green // 2},{blue // 2},255"
        _fill(symbols, str(number), f"{red},{green},{blue},150", line, "0.2")
    return _text(root)


def _fill(symbols: ET.Element, name: str, fill: str, line: str, width: str) -> None:
    symbol = ET.SubElement(symbols, "symbol", type="fill", name=name, alpha="1")
    layer = ET.SubElement(symbol, "layer", {"class": "SimpleFill", "enabled": "1", "pass": "0"})
    options = ET.SubElement(layer, "Option", type="Map")
    for key, value in {
        "color": fill,
        "style": "no" if fill.endswith(",0") else "solid",
        "outline_color": line,
        "outline_style": "solid",
        "outline_width": width,
        "outline_width_unit": "MM",
    }.items():
        ET.SubElement(options, "Option", name=key, type="QString", value=value)


def _text(root: ET.Element) -> str:
    ET.indent(root)
    return "<!DOCTYPE qgis>\n" + ET.tostring(root, encoding="unicode") + "\n"


def _write(path: Path, root: ET.Element) -> None:
    with whole_file(path) as beside:
        beside.write_text(_text(root), encoding="utf-8")


def embed_styles(package: Path, styles: Mapping[str, str], stamp: str) -> None:
    """Put the style of each layer into a GeoPackage, in the table that QGIS looks into.

    Args:
        package: an existing GeoPackage whose geometry columns are named `geom`.
        styles: QML by layer.
        stamp: time of the change, as in `2026-01-01T00:00:00.000Z`, so that bytes do not depend
            on the clock.
    """
    with sqlite3.connect(package) as database:
        database.execute(
            "CREATE TABLE layer_styles (id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, "
            "f_table_catalog TEXT(256), f_table_schema TEXT(256), f_table_name TEXT(256), "
            "f_geometry_column TEXT(256), styleName TEXT(30), styleQML TEXT, styleSLD TEXT, "
            "useAsDefault BOOLEAN, description TEXT, owner TEXT(30), ui TEXT(30), "
            "update_time DATETIME)"
        )
        for layer, qml in styles.items():
            database.execute(
                "INSERT INTO layer_styles (f_table_catalog, f_table_schema, f_table_name, "
                "f_geometry_column, styleName, styleQML, styleSLD, useAsDefault, description, "
                "owner, update_time) VALUES ('', '', ?, 'geom', ?, ?, '', 1, '', '', ?)",
                (layer, layer, qml, stamp),
            )
        database.execute(
            "INSERT INTO gpkg_contents (table_name, data_type, identifier, last_change) "
            "VALUES ('layer_styles', 'attributes', 'layer_styles', ?)",
            (stamp,),
        )
    database.close()
