"""The report: clicked on in a real browser that may not reach any network."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from affine import Affine
from conftest import copy_settings, glacier, make_scene, north_up
from numpy.typing import NDArray
from PIL import Image
from shapely.geometry import Point
from small_map import (
    HEIGHT,
    PIXEL_KM2,
    SCENE,
    WIDTH,
    make_change,
    make_map,
    make_map_outlines,
    small_ground,
)

from glacier_core.config import Project
from glacier_core.errors import InputError
from glacier_core.maps.report import pictures
from glacier_core.maps.report.frame import LONGEST_EDGE, Frame
from glacier_core.maps.report.inputs import areas_of_classes
from glacier_core.maps.report.page import write_report
from glacier_core.maps.report.tables import glacier_columns, glacier_source
from glacier_core.maps.report.words import error, km2, percent, signed
from glacier_core.maps.scenemap import SceneMap
from glacier_core.raster.grid import Grid

NASTY = '<script>window.hacked = 1</script><img src=x onerror="window.hacked = 2">'


# --- a browser -------------------------------------------------------------------------------


@dataclass
class Opened:
    """A page in the browser, and what went on in it."""

    page: Any
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def js(self, code: str) -> Any:
        return self.page.evaluate(code)

    def model(self, name: str, code: str) -> Any:
        """Evaluate `code` with the Bokeh model of a name as `m`."""
        return self.js(f"(() => {{ const m = Bokeh.documents[0].get_model_by_name('{name}');"
                       f" return {code}; }})()")  # fmt: skip

    def on_screen(self, x: float, y: float) -> tuple[float, float]:
        """Where a point of the map's plane lies on the screen."""
        left, top = self.js(
            """(([x, y]) => {
            const view = [...Bokeh.index.roots].find((v) => v.model.name === "map");
            const box = view.canvas_view.el.getBoundingClientRect();
            const frame = view.frame;
            return [box.left + frame.x_scale.compute(x), box.top + frame.y_scale.compute(y)];
            })"""
            + f"([{x}, {y}])"
        )
        return left, top

    def picture(self) -> NDArray[np.int16]:
        """What the frame of the map shows, (height, width, RGB)."""
        self.page.wait_for_timeout(150)
        shown = Image.open(io.BytesIO(self.page.locator("#map").screenshot())).convert("RGB")
        return np.asarray(shown, dtype=np.int16)[45:-60, 90:-60]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("there is no Chromium to open the report with")
    arguments = (
        "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync"
    )
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=arguments.split())
        yield browser
        browser.close()


@pytest.fixture
def opened(browser: Any) -> Iterator[Callable[[Path], Opened]]:
    """Opens a report; afterwards, nothing was asked of a network and nobody complained."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, offline=True)
    pages = []

    def open_page(path: Path) -> Opened:
        opened = Opened(context.new_page())
        opened.page.on("request", lambda request: opened.requests.append(request.url))
        opened.page.on("pageerror", lambda problem: opened.complaints.append(str(problem)))
        opened.page.on(
            "console",
            lambda said: (
                opened.complaints.append(said.text) if said.type in ("error", "warning") else None
            ),
        )
        opened.page.goto(path.as_uri())
        opened.page.wait_for_selector("body[data-ready=yes]", timeout=20_000)
        pages.append((opened, path))
        return opened

    yield open_page
    for page, path in pages:
        others = [url for url in page.requests if not url.startswith("data:")]
        assert others == [path.as_uri()]
        assert page.complaints == []
    context.close()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with outlines and change."""
    root = tmp_path_factory.mktemp("whole")
    return report(root, make_map(root), make_map_outlines(root), make_change(root))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with outlines."""
    root = tmp_path_factory.mktemp("plain")
    return report(root, make_map(root), make_map_outlines(root))


def report(
    root: Path, map_folder: Path, outlines: Path | None = None, change: Path | None = None
) -> Path:
    return write_report(Project(root), map_folder, root / "report.html", outlines, change)


def text_of(path: Path) -> str:
    """What the page says, without its scripts and tags."""
    words = re.sub(r"<(script|style)\b.*?</\1>", " ", path.read_text(), flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", words.replace("<wbr>", "")))


def middle_of(root: Path, name: str) -> Point:
    """A point inside of a glacier, km."""
    frame = gpd.read_parquet(root / f"data/outlines/{SCENE}/{SCENE}_glaciers.parquet")
    point = frame.set_index("glac_id").geometry[name].representative_point()
    return Point(point.x / 1000, point.y / 1000)


# --- the page in a browser -------------------------------------------------------------------


def test_a_glacier_clicked_on_the_map_is_chosen_in_the_table_and_described(
    opened: Callable[[Path], Opened], plain: Path
) -> None:
    page = opened(plain)
    name = "G080004E27004N"
    point = middle_of(plain.parent, name)
    page.page.mouse.click(*page.on_screen(point.x, point.y))
    row = page.page.locator("#glaciers .slick-row:has(.slick-cell.selected)")
    row.wait_for(timeout=3000)
    assert name in row.inner_text()
    card = page.page.locator("#card").inner_text()
    assert name in card
    assert "RGI60-15.03735" in card
    assert "2.303 km²" in card
    # The map stays where the reader put it.
    assert page.model("map", "m.x_range.end - m.x_range.start") > 5.9


def test_a_row_clicked_on_is_chosen_on_the_map_and_shown_there(
    opened: Callable[[Path], Opened], plain: Path
) -> None:
    page = opened(plain)
    before = page.picture()
    page.page.locator("#glaciers .slick-row", has_text="G080003E27003N").click()
    page.page.wait_for_timeout(700)
    (at,) = page.model("source-glaciers", "m.selected.indices")
    assert page.model("source-glaciers", f"m.data.glac_id[{at}]") == "G080003E27003N"
    box = page.model(
        "source-glaciers", f"['minx','miny','maxx','maxy'].map((n) => m.data[n][{at}])"
    )
    shown = page.model("map", "[m.x_range.start, m.y_range.start, m.x_range.end, m.y_range.end]")
    assert shown[0] < box[0] < box[2] < shown[2]
    assert shown[1] < box[1] < box[3] < shown[3]
    assert shown[3] - shown[1] < 5.3, "the map did not come nearer"
    after = page.picture()
    chosen = (after[..., 0] > 240) & (after[..., 1] > 200) & (after[..., 2] < 40)
    assert chosen.sum() > 300
    assert after.shape == before.shape
    # Width and height keep their proportion.
    wide, high = page.model("map", "[m.inner_width, m.inner_height]")
    assert (shown[2] - shown[0]) / wide == pytest.approx((shown[3] - shown[1]) / high, rel=1e-6)

    page.page.locator("#whole").click()
    span = page.model("map", "m.x_range.end - m.x_range.start")
    assert span >= WIDTH * 0.03


def test_the_reset_tool_returns_to_the_whole_scene(
    opened: Callable[[Path], Opened], plain: Path
) -> None:
    page = opened(plain)
    start = page.model("map", "[m.x_range.start, m.x_range.end, m.y_range.start]")
    page.page.mouse.move(*page.on_screen(503, 3097))
    # Labels of the axes get longer on the way, and the frame smaller.
    span, spans = "m.x_range.end - m.x_range.start", []
    for _ in range(8):
        page.page.mouse.wheel(0, -120)
        page.page.wait_for_timeout(120)
        spans.append(page.model("map", span))
    assert spans == sorted(spans, reverse=True)
    assert spans[-1] < 0.4 * (start[1] - start[0])
    aspect = f"({span}) / (m.y_range.end - m.y_range.start) * m.inner_height / m.inner_width"
    assert page.model("map", aspect) == pytest.approx(1, abs=1e-3)
    page.page.locator(".bk-tool-icon-reset").click()
    page.page.wait_for_timeout(300)
    assert page.model("map", "[m.x_range.start, m.x_range.end, m.y_range.start]") == start


def test_every_layer_can_be_switched_and_the_opacity_set(
    opened: Callable[[Path], Opened], whole: Path
) -> None:
    page = opened(whole)
    boxes = page.page.locator("input[data-layer]")
    names = [boxes.nth(i).get_attribute("data-layer") for i in range(boxes.count())]
    assert names == [
        "image", "classes", "probability_1", "probability_2", "confidence", "uncertainty",
        "unseen", "move_0", "move_1", "outlines",
    ]  # fmt: skip
    shown = page.picture()
    for name in names:
        box = page.page.locator(f"input[data-layer={name}]")
        box.click()
        assert page.model(f"layer-{name}", "m.visible") == box.is_checked()
        now = page.picture()
        assert (np.abs(now - shown).sum(axis=-1) > 20).sum() > 100, f"{name} shows no difference"
        box.click()
    page.page.locator("#opacity").fill("0")
    bare = page.picture()
    assert (np.abs(bare - shown).sum(axis=-1) > 20).sum() > 10_000
    # Outlines stay; ice looks as in the image, not as a class.
    assert (bare.min(axis=-1) > 230).sum() > 100


def test_the_colours_of_classes_lie_where_the_classes_are(
    opened: Callable[[Path], Opened], plain: Path
) -> None:
    page = opened(plain)
    for name in ("image", "outlines", "unseen"):
        page.page.locator(f"input[data-layer={name}]").uncheck()
    page.page.locator("#opacity").fill("1")
    page.page.wait_for_timeout(200)
    ground = small_ground()
    shot = Image.open(io.BytesIO(page.page.screenshot())).convert("RGB")
    west, north = north_up() @ (0, 0)
    wanted = {1: (43, 123, 186), 2: (181, 101, 29)}
    for number, colour in wanted.items():
        for row, col in np.argwhere(ground.classes == number)[::400]:
            patch = ground.classes[row - 1 : row + 2, col - 1 : col + 2]
            x, y = (west + 30 * (col + 0.5)) / 1000, (north - 30 * (row + 0.5)) / 1000
            at = page.on_screen(x, y)
            if (patch != number).any() or at[1] > 880:
                continue
            # Four fifths of the colour on a light ground.
            seen = np.array(shot.getpixel((round(at[0]), round(at[1]))))
            expected = 0.8 * np.array(colour) + 0.2 * np.array((233, 237, 242))
            assert np.abs(seen - expected).max() < 12


def test_tables_sort_by_the_column_clicked_on(
    opened: Callable[[Path], Opened], whole: Path
) -> None:
    page = opened(whole)

    def first(table: str, column: int) -> str:
        page.page.wait_for_timeout(150)
        rows = page.page.locator(f"#{table} .slick-row")
        tops = [rows.nth(i).bounding_box()["y"] for i in range(rows.count())]
        cell = rows.nth(int(np.argmin(tops))).locator(".slick-cell").nth(column)
        return str(cell.inner_text())

    assert first("glaciers", 2) == "3.405", "the largest first"
    assert first("change", 3).startswith(("-", "−")), "the largest loss first"
    page.page.locator("#glaciers .slick-header-column", has_text="Area km²").click()
    page.page.locator("#glaciers .slick-header-column", has_text="Area km²").click()
    assert first("glaciers", 2) == "0.786"
    page.page.locator("#glaciers .slick-header-column", has_text="Glacier").click()
    assert first("glaciers", 0) == "G080001E27001N"


def test_a_click_finds_the_glacier_and_its_change(
    opened: Callable[[Path], Opened], whole: Path
) -> None:
    page = opened(whole)
    point = middle_of(whole.parent, "G080002E27002N")
    page.page.mouse.click(*page.on_screen(point.x, point.y))
    page.page.wait_for_timeout(300)
    card = page.page.locator("#card").inner_text()
    assert "Change of G080002E27002N" in card
    assert re.search(r"Change\s+−\d+\.\d{3} ± \d+\.\d{3} km²", card)
    assert page.page.locator("#change .slick-cell.selected").count() > 0
    assert page.page.locator("#glaciers .slick-cell.selected").count() > 0

    page.page.locator("#glaciers .slick-row", has_text="G080003E27003N").click()
    page.page.wait_for_timeout(300)
    card = page.page.locator("#card").inner_text()
    assert "G080003E27003N" in card
    assert "Change of" not in card, "a row says nothing about the other table's glacier"
    assert page.page.locator("#change .slick-cell.selected").count() == 0


def test_hovering_tells_area_and_elevation(opened: Callable[[Path], Opened], plain: Path) -> None:
    page = opened(plain)
    point = middle_of(plain.parent, "G080002E27002N")
    page.page.mouse.move(*page.on_screen(point.x, point.y))
    tip = page.page.locator(".bk-Tooltip table")
    tip.wait_for(timeout=3000)
    words = tip.inner_text()
    assert "3.405 km²" in words
    assert "4,550 to 6,457 m" in words


def test_what_others_wrote_is_text_and_never_runs(
    opened: Callable[[Path], Opened], tmp_path: Path
) -> None:
    folder = make_map(tmp_path, models=[NASTY], source=f"data/{NASTY}.tif", date=None)
    outlines = make_map_outlines(tmp_path, inventory_ids=[NASTY, NASTY, "</script>", None])
    summary = json.loads((outlines / "outlines.json").read_text())
    summary |= {"inventory": NASTY, "methods": {NASTY: NASTY}}
    (outlines / "outlines.json").write_text(json.dumps(summary))
    change = make_change(tmp_path)
    summary = json.loads((change / "change.json").read_text())
    (change / "change.json").write_text(json.dumps(summary | {"before": NASTY}))

    page = opened(report(tmp_path, folder, outlines, change))
    assert NASTY in page.page.locator("header").inner_text()
    assert NASTY in page.page.locator("#change h2").inner_text()
    row = page.page.locator("#glaciers .slick-row", has_text="G080002E27002N")
    assert NASTY in row.inner_text()
    row.click()
    page.page.wait_for_timeout(600)
    assert NASTY in page.page.locator("#card").inner_text()
    at = page.page.locator("#map").bounding_box()
    page.page.mouse.move(at["x"] + at["width"] / 2, at["y"] + at["height"] / 2)
    tip = page.page.locator(".bk-Tooltip table")
    tip.wait_for(timeout=3000)
    assert NASTY in tip.locator("xpath=..").inner_text()
    assert page.js("window.hacked") is None


def test_glaciers_without_a_terrain_model_have_no_hypsometry(
    opened: Callable[[Path], Opened], tmp_path: Path
) -> None:
    folder, outlines = make_map(tmp_path), make_map_outlines(tmp_path, terrain=False)
    page = opened(report(tmp_path, folder, outlines))
    said = page.page.locator("#hypsometry").inner_text()
    assert "There is no terrain model with this scene" in said


@pytest.mark.parametrize("unlocated", [False, True])
def test_a_map_without_a_glacier(
    opened: Callable[[Path], Opened], tmp_path: Path, unlocated: bool
) -> None:
    ground = small_ground(glaciers=False)
    folder = make_map(tmp_path, ground=ground, crs=None if unlocated else "EPSG:32645")
    outlines = make_map_outlines(tmp_path, ground=ground, terrain=False)
    page = opened(report(tmp_path, folder, outlines))
    assert "No glacier was found in this scene." in page.page.locator("#glaciers").inner_text()
    said = page.page.locator("#hypsometry").inner_text()
    assert "No glacier was found, so there is no area by elevation." in said
    assert page.page.locator("input[data-layer=outlines]").count() == 0
    # All tools have room, none hides in a menu.
    assert page.page.locator(".bk-tool-icon-save").is_visible()


def test_a_map_without_crs_has_pixels_and_no_areas(
    opened: Callable[[Path], Opened], tmp_path: Path
) -> None:
    path = report(tmp_path, make_map(tmp_path, crs=None))
    words = text_of(path)
    assert "no coordinate reference system" in words
    assert "no area without a CRS" in words
    assert not re.search(r"\d km²", words)
    page = opened(path)
    assert page.model("map", "m.x_range.start <= 0 && m.x_range.end >= 200")
    assert page.model("map", "m.below[0].axis_label") == "column"


@pytest.mark.parametrize("kind", ["degrees", "turned"])
def test_outlines_lie_on_the_map_in_other_grids(
    opened: Callable[[Path], Opened], tmp_path: Path, kind: str
) -> None:
    transform = Affine(0.0003, 0, 87.0, 0, -0.00027, 28.0)
    crs = "EPSG:4326"
    if kind == "turned":
        transform, crs = north_up() @ Affine.rotation(20), "EPSG:32645"
    folder = make_map(tmp_path, crs=crs, transform=transform)
    path = report(tmp_path, folder, make_map_outlines(tmp_path, crs=crs, transform=transform))
    page = opened(path)
    rows, cols = np.nonzero(small_ground().labels == 2)
    row, col = float(np.median(rows)), float(np.median(cols))
    at = (col, HEIGHT - row) if kind == "turned" else transform @ (col, row)
    page.page.mouse.click(*page.on_screen(*at))
    page.page.wait_for_timeout(300)
    assert "G080002E27002N" in page.page.locator("#card").inner_text()
    bar = page.model("scale", "m.end - m.start") * 1000
    units = page.model("map", "m.x_range.end - m.x_range.start")
    metres = 30.0 if kind == "turned" else 111_320 * np.cos(np.radians(28))
    assert bar / units == pytest.approx(metres, rel=0.002)
    words = text_of(path)
    assert ("North is up" in words) == (kind == "degrees")


# --- what it says ----------------------------------------------------------------------------


def test_key_figures_change_methods_and_places_are_told(whole: Path) -> None:
    words = text_of(whole)
    assert f"<title>{SCENE}: glacier map</title>" in whole.read_text()
    assert "25 October 2000 30 m pixels 200 × 180 pixels WGS 84 / UTM zone 45N" in words
    assert "models:/glacier-unet/3" in words
    assert "Ice, all classes 7.97 km² ± 0.40 by the border ± 0.24 by probability" in words
    assert re.search(r"Change −\d\.\d\d km² ± 0.40 km² in 10.0 years", words)
    assert "± by the border Length of the outline times half a pixel." in words
    assert "Ice in pieces too small to be a glacier, 0.020 km²." in words
    assert f"data/outlines/{SCENE}/{SCENE}_glaciers.gpkg" in words
    assert str(whole.parent) not in words, "places inside the project are told from its root"


def test_a_map_alone_has_areas_of_pixels_and_says_what_is_missing(tmp_path: Path) -> None:
    folder = make_map(tmp_path)
    path = report(tmp_path, folder)
    words = text_of(path)
    assert "No outlines were given, so there is no table of glaciers" in words
    areas = areas_of_classes(SceneMap(folder))
    assert areas is not None
    counts = np.bincount(small_ground().classes.ravel(), minlength=3)[:3]
    assert areas == pytest.approx(counts * PIXEL_KM2, rel=1e-3)
    assert f"Clean ice {km2(areas[1])} km²" in words


def test_warnings_name_their_numbers(tmp_path: Path) -> None:
    channels = {
        "B5": {"mean": 140.0, "training_mean": 95.0, "training_deviation": 30.0},
        "B4": {"mean": 100.0, "training_mean": 95.0, "training_deviation": 30.0},
    }
    folder = make_map(
        tmp_path, date=None, snow_outside=0.25, channels=channels, seen=0.8, no_value=0.125,
        covered=0.075,
    )  # fmt: skip
    (tmp_path / f"data/raw/{SCENE}.tif").unlink()
    words = text_of(report(tmp_path, folder, make_map_outlines(tmp_path)))
    assert "20 % of the scene was not seen: 12.5 % has no value" in words
    assert "25 % of the seen pixels look like snow" in words
    assert "Channel B5 lies 1.5 standard deviations from the training data: mean 140" in words
    assert "Channel B4" not in words
    assert "The date of the scene is not known." in words
    assert f"data/raw/{SCENE}.tif is not there any more" in words
    assert "4 glaciers are only partly seen: 0.176 km²" in words
    assert "3 glaciers are cut by unseen ground" in words
    assert "edge of the scene" not in words
    assert "7 warnings" in words


def test_a_flawless_map_has_no_warnings(tmp_path: Path) -> None:
    folder = make_map(tmp_path, seen=1.0, no_value=0.0, covered=0.0, snow_outside=None)
    words = text_of(report(tmp_path, folder))
    assert "Warnings None." in words


def test_glaciers_at_the_edge_are_counted(tmp_path: Path) -> None:
    folder = make_map(tmp_path)
    outlines = make_map_outlines(tmp_path)
    path = outlines / f"{SCENE}_glaciers.parquet"
    frame = gpd.read_parquet(path)
    frame["geometry"] = frame.geometry.translate(yoff=9 * 30)  # up to the first row
    frame.to_parquet(path)
    words = text_of(report(tmp_path, folder, outlines))
    assert "4 glaciers are cut by the edge of the scene" in words
    assert "cut by unseen ground" not in words, "no glacier is counted twice"


def test_change_of_other_scenes_is_told_as_such(tmp_path: Path) -> None:
    change = make_change(tmp_path)
    summary = json.loads((change / "change.json").read_text())
    (change / "change.json").write_text(json.dumps(summary | {"before": "ELSEWHERE"}))
    words = text_of(report(tmp_path, make_map(tmp_path), None, change))
    assert "between ELSEWHERE and LE07_SMALL_20101106: neither is this scene" in words


@pytest.mark.parametrize(
    ("missing", "command"),
    [
        (f"data/maps/{SCENE}/map.json", "glacier map"),
        (f"data/maps/{SCENE}/{SCENE}_classes.tif", "glacier map"),
        (f"data/maps/{SCENE}/{SCENE}_confidence.tif", "glacier map"),
        (f"data/outlines/{SCENE}/outlines.json", "glacier outlines"),
        (f"data/outlines/{SCENE}/{SCENE}_glaciers.parquet", "glacier outlines"),
        ("data/change/SMALL/change.json", "glacier change"),
        ("data/change/SMALL/change.gpkg", "glacier change"),
    ],
)
def test_a_missing_or_damaged_file_is_named_with_its_command(
    tmp_path: Path, missing: str, command: str
) -> None:
    folders = make_map(tmp_path), make_map_outlines(tmp_path), make_change(tmp_path)
    for spoil in ("damaged", "missing"):
        if spoil == "missing":
            (tmp_path / missing).unlink()
        else:
            (tmp_path / missing).write_bytes(b"{} not what it was")
        with pytest.raises(InputError, match=f"`{command}( --again)?`") as refused:
            report(tmp_path, *folders)
        assert str(tmp_path / missing) in str(refused.value)
        assert "\n" not in str(refused.value)
        assert not (tmp_path / "report.html").exists()


def test_outlines_of_another_scene_are_refused(tmp_path: Path) -> None:
    folder, outlines = make_map(tmp_path), make_map_outlines(tmp_path)
    summary = json.loads((outlines / "outlines.json").read_text())
    (outlines / "outlines.json").write_text(json.dumps(summary | {"scene": "OTHER"}))
    with pytest.raises(InputError, match=f"is about OTHER, the map about {SCENE}"):
        report(tmp_path, folder, outlines)


@pytest.mark.parametrize(
    ("value", "area", "spread", "change"),
    [
        (1234.5, "1,234", "1,200", "+1,234"),
        (56.78, "56.8", "57", "+56.8"),
        (8.9, "8.90", "8.9", "+8.90"),
        (0.0123, "0.012", "0.012", "+0.012"),
        (0.0, "0.00", "0", "0.00"),
        (-2.5, "−2.50", None, "−2.50"),
        (float("nan"), "–", "–", "–"),
        (None, "–", "–", "–"),
    ],
)
def test_numbers_have_the_digits_that_people_read(
    value: float | None, area: str, spread: str | None, change: str
) -> None:
    assert km2(value) == area
    assert signed(value) == change
    if spread is not None:
        assert error(value) == spread


def test_percentages_never_round_to_all_or_nothing() -> None:
    shares = (0.0, 0.0004, 0.005, 0.123, 0.5, 0.9996, 1.0)
    assert [percent(share) for share in shares] == [
        "0 %", "below 0.1 %", "0.5 %", "12.3 %", "50 %", "above 99.9 %", "100 %",
    ]  # fmt: skip


# --- pictures, and what is large -------------------------------------------------------------


def test_a_large_scene_is_shown_small_and_fill_is_not_mixed_in(tmp_path: Path) -> None:
    height, width = 1600, 3000
    values = np.full((3, height, width), 200, dtype=np.uint8)
    values[:, :, ::3] = 0  # fill that the file does not declare
    values[:, : height // 2] = 100
    for tiled in (True, False):
        path = make_scene(
            tmp_path / f"{tiled}.tif", bands=["B3", "B4", "B5"], values=values, dtype="uint8",
            tiled=tiled,
        )  # fmt: skip
        shape = (round(height * LONGEST_EDGE / width), LONGEST_EDGE)
        with rasterio.open(path) as dataset:
            assert Frame.of(Grid.of(dataset)).shape == shape
        pixels = pictures._decimated(path, [0, 1, 2], [0.0] * 3, shape)
        assert pixels.shape == (*shape, 3)
        assert set(np.unique(pixels[: shape[0] // 2 - 2])) == {100.0}
        lower = pixels[shape[0] // 2 + 2 :]
        assert set(np.unique(lower[np.isfinite(lower)])) == {200.0}


def test_overviews_are_used_where_the_scene_has_them(tmp_path: Path) -> None:
    values = np.zeros((1, 1024, 1024), dtype=np.uint8)
    path = make_scene(tmp_path / "x.tif", bands=["B3"], values=values, dtype="uint8", tiled=True)
    with rasterio.open(path, "r+") as dataset:
        dataset.build_overviews([2, 4], rasterio.enums.Resampling.nearest)
    with rasterio.open(path, "r+") as dataset:
        dataset.write(np.full((1, 1024, 1024), 9, dtype=np.uint8))  # overviews stay 0
    pixels = pictures._decimated(path, [0], [None], (256, 256))
    assert set(np.unique(pixels)) == {0.0}


def test_pictures_in_the_page_are_the_size_of_a_screen(plain: Path) -> None:
    uris = re.findall(r'data:image/(png|jpeg);base64,([A-Za-z0-9+/=]+)"', plain.read_text())
    sizes = {Image.open(io.BytesIO(base64.b64decode(content))).size for _, content in uris}
    assert (WIDTH, HEIGHT) in sizes
    assert plain.stat().st_size < 3e6


def test_outlines_of_three_thousand_glaciers_stay_light(tmp_path: Path) -> None:
    grid = Grid(7000, 7800, north_up(), SceneMap(make_map(tmp_path)).grid.crs)
    random = np.random.default_rng(0)
    x, y = random.uniform(5e5, 7e5, 3000), random.uniform(2.9e6, 3.1e6, 3000)
    circles = gpd.GeoSeries(gpd.points_from_xy(x, y), crs=grid.crs).buffer(
        random.uniform(100, 3000, 3000), quad_segs=64
    )
    frame = gpd.GeoDataFrame(
        {"glac_id": [f"G{i}" for i in range(3000)], "area_km2": circles.area / 1e6},
        geometry=circles,
    )
    source = glacier_source(frame, glacier_columns(["ice"]), Frame.of(grid))
    rings = [ring for glacier in source.data["xs"] for part in glacier for ring in part]
    assert len(rings) == 3000, "none was lost"
    assert 3 * 3000 < sum(len(ring) for ring in rings) <= 75_000
    wide = np.array([max(ring) - min(ring) for ring in rings])
    assert wide == pytest.approx(circles.bounds.eval("maxx - minx").to_numpy() / 1000, abs=0.35)


def test_the_same_map_gives_the_same_bytes(tmp_path: Path) -> None:
    copy_settings(tmp_path)
    made = make_map(tmp_path)
    outlines = make_map_outlines(tmp_path)
    pages = []
    for name in ("one", "two"):
        done = glacier(tmp_path, "report", str(made), "--outlines", str(outlines), "--out",
                       f"{name}.html")  # fmt: skip
        assert done.returncode == 0, done.stderr
        pages.append((tmp_path / f"{name}.html").read_bytes())
    assert pages[0] == pages[1]
