"""Heights from a STAC collection of tiles: right at every pixel, fetched once, and never by halves."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from conftest import CORNER, REPOSITORY, edit_yaml, glacier, north_up
from numpy.typing import NDArray
from pyproj import Transformer
from small_catalog import catalog_project, offer
from small_catalog import server as server  # a fixture
from small_dem import (
    EAST,
    EAST_TILE,
    SECOND,
    SOUTH,
    TO_DEGREES,
    WEST_TILE,
    expected,
    item_of,
    offer_tiles,
    write_tile,
)
from small_landsat import make_product, product_id
from stac_server import Item, StacServer

from glacier_core.config import Project
from glacier_core.errors import InputError, ServiceError
from glacier_core.landsat.download import address_of
from glacier_core.landsat.items import Asset
from glacier_core.landsat.quality import read_table
from glacier_core.landsat.scene import ingest_product
from glacier_core.landsat.watching import NewItem, take_in

Layers = dict[str, NDArray[np.float32]]


def dem_project(root: Path, server: StacServer, **more: Any) -> Project:
    """A project whose heights come from the server's collection."""
    catalog_project(root, server, **more)
    known = {"api": "tests", "collection": "heights", "asset": "data"}
    edit_yaml(root / "conf/landsat.yaml", dem_collection=known, harmonise="none")
    return Project(root)


def layers(path: Path) -> Layers:
    with rasterio.open(path) as dataset:
        return dict(zip(dataset.descriptions, dataset.read(), strict=True))


def made(project: Project, product: Path) -> Layers:
    return layers(ingest_product(project, product, project.root / "out"))


def kept(project: Project) -> set[str]:
    """What lies in the collection's folder, but what of it is under way."""
    folder = project.root / "data/raw/dem/heights"
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and ".download" not in str(path)
    }


def fetched(server: StacServer) -> list[str]:
    return sorted(request["path"].rpartition("/")[2] for request in server.log("^/(files|heights)"))


def nothing_made(project: Project) -> bool:
    return not list((project.root / "out").glob("**/*.tif"))


# --- what comes of it ------------------------------------------------------------------------


@pytest.mark.parametrize("resampling", ["bilinear", "cubic"])
def test_elevation_and_slope_of_a_plane_are_right_at_every_pixel_across_two_tiles(
    server: StacServer, tmp_path: Path, resampling: str
) -> None:
    offer_tiles(server)
    project = dem_project(tmp_path / "project", server)
    edit_yaml(project.root / "conf/landsat.yaml", dem_resampling=resampling)
    found = made(project, make_product(tmp_path / "p"))
    np.testing.assert_allclose(found["elevation"], expected(), atol=0.02)
    degrees = np.degrees(np.arctan(np.hypot(EAST, SOUTH)))
    np.testing.assert_allclose(found["slope"], degrees, atol=0.05)
    assert kept(project) == {
        f"{name}/{file}" for name in (WEST_TILE, EAST_TILE) for file in (f"{name}.tif", "item.json")
    }


def test_a_tile_is_fetched_once_for_all_scenes_and_what_is_made_asks_nobody(
    server: StacServer, tmp_path: Path
) -> None:
    offer_tiles(server)
    project = dem_project(tmp_path / "project", server)
    first = make_product(tmp_path / "p")
    made(project, first)
    assert fetched(server) == [f"{WEST_TILE}.tif", f"{EAST_TILE}.tif"]
    server.forget()
    other = make_product(tmp_path / "o", identity=product_id(day="20160710"))
    np.testing.assert_allclose(made(project, other)["elevation"], expected(), atol=0.02)
    assert len(server.log("/search")) == 1
    assert fetched(server) == []
    server.stop()
    made(project, first)
    made(project, other)


def test_tiles_are_fetched_that_lie_a_few_pixels_beyond_the_scene(
    server: StacServer, tmp_path: Path
) -> None:
    offer_tiles(server)
    project = dem_project(tmp_path / "project", server)
    lon, lat = TO_DEGREES.transform(CORNER[0] + 600, CORNER[1] - 700)
    edge, _ = TO_DEGREES.transform(round(lon * 3600) * SECOND, lat, direction="INVERSE")
    beside = north_up(west=edge - 40 * 30 - 40)  # ends 40 m west of the second tile
    found = made(project, make_product(tmp_path / "p", transform=beside))
    assert fetched(server) == [f"{WEST_TILE}.tif", f"{EAST_TILE}.tif"]
    assert np.isfinite(found["elevation"]).all()
    server.forget()
    away = north_up(west=edge - 40 * 30 - 1000)
    identity = product_id(day="20160710")
    shutil.rmtree(project.root / "data")
    made(project, make_product(tmp_path / "o", transform=away, identity=identity))
    assert fetched(server) == [f"{WEST_TILE}.tif"]


def test_tiles_that_change_their_columns_at_a_latitude_meet_without_a_gap(
    server: StacServer, tmp_path: Path
) -> None:
    """As those of Copernicus do at 50 degrees, where pixels grow from 1 to 1.5 seconds of arc."""
    x, y = TO_DEGREES.transform(87.01, 50.0, direction="INVERSE")
    corner = (x, y + 700)
    # Pixels' centres lie on whole degrees, so that edges lie half a pixel off.
    north, folder = 50 + SECOND / 2, server.files / "dem"
    south = write_tile(folder / "S.tif", 87 - SECOND / 2, north, corner=corner)
    wide = write_tile(
        folder / "N.tif",
        87 - 0.75 * SECOND,
        north + 108 * SECOND,
        shape=(108, 72),
        across=1.5 * SECOND,
        corner=corner,
    )
    server.set_items([item_of(server, south), item_of(server, wide)])
    project = dem_project(tmp_path / "project", server)
    transform = north_up(*corner)
    found = made(project, make_product(tmp_path / "p", transform=transform))
    # Where they meet, neither knows what the other has: half a pixel, 15 m, of a rise of 0.2.
    np.testing.assert_allclose(found["elevation"], expected(transform), atol=3.5)
    seam = np.abs(found["elevation"] - expected(transform)).max(axis=1) > 0.02
    assert 0 < seam.sum() <= 2
    assert np.isfinite(found["slope"]).all()


def test_where_no_tile_lies_heights_are_unknown_and_it_is_said_how_much(
    server: StacServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    west, _ = offer_tiles(server)
    server.set_items([west])
    project = dem_project(tmp_path / "project", server)
    found = made(project, make_product(tmp_path / "p"))
    known = np.isfinite(found["elevation"])
    assert known[:, :19].all()
    assert not known[:, 21:].any()
    assert not np.isfinite(found["slope"][:, 21:]).any()
    share = 100 * (1 - known.mean())
    assert f"heights of tests: the DEM has no height for {share:.1f} % of the scene" in caplog.text
    assert np.isfinite(found["red"]).all()


def test_nodata_that_a_tile_declares_is_no_height(server: StacServer, tmp_path: Path) -> None:
    offer_tiles(server, nodata=0)
    path = server.files / f"dem/{WEST_TILE}.tif"
    with rasterio.open(path, "r+") as tile:
        values = tile.read(1)
        values[50:60, 90:100] = 0  # also a height that is possible
        tile.write(values, 1)
    project = dem_project(tmp_path / "project", server)
    heights = made(project, make_product(tmp_path / "p"))["elevation"]
    unknown = np.isnan(heights)
    assert 40 < unknown.sum() < 160
    np.testing.assert_allclose(heights[~unknown], expected()[~unknown], atol=3.5)


# --- what is asked, and of whom --------------------------------------------------------------


def test_a_tile_gets_the_signature_of_its_own_container(
    server: StacServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", logger="glacier_core")
    items = offer_tiles(server, place="files")
    for item in items:  # the container is the first word of the path
        item["assets"]["data"]["href"] = f"{{base}}/heights/{item['id']}.tif"
    server.set_items(items)
    project = dem_project(tmp_path / "project", server, signs=True)
    np.testing.assert_allclose(
        made(project, make_product(tmp_path / "p"))["elevation"], expected(), atol=0.02
    )
    assert [request["path"] for request in server.log("/sas")] == ["/sas/127/heights"]
    texts = [path.read_text() for path in project.root.rglob("item.json")]
    assert len(texts) == 2
    assert "short-lived" not in "".join(texts) + caplog.text


def test_tiles_of_open_buckets_are_fetched_by_https() -> None:
    name = "Copernicus_DSM_COG_10_N27_00_E086_00_DEM"
    record = {"href": f"s3://copernicus-dem-30m/{name}/{name}.tif"}
    item: Item = {"type": "Feature", "id": name, "properties": {}, "assets": {"data": record}}
    assert address_of(item, Asset("elevation", "data", record)) == (
        f"https://copernicus-dem-30m.s3.amazonaws.com/{name}/{name}.tif"
    )
    record["href"] = "s3://usgs-landsat/x.tif"
    with pytest.raises(InputError, match="needs an AWS account"):
        address_of(item, Asset("elevation", "data", record))


def test_settings_that_name_two_dems_or_an_unknown_api_are_refused(
    server: StacServer, tmp_path: Path
) -> None:
    project = dem_project(tmp_path / "project", server)
    product, path = make_product(tmp_path / "p"), project.root / "conf/landsat.yaml"
    edit_yaml(path, dem_path="dem.tif")
    refused = glacier(project.root, "ingest", str(product), "--out", "out")
    assert refused.returncode == 2
    assert "dem_path (dem.tif) and dem_collection (heights) are both given" in refused.stderr
    edit_yaml(path, dem_path=None, **{"dem_collection.api": "nobody"})
    with pytest.raises(InputError, match=r"apis\.known has no 'nobody'; there are tests"):
        made(project, product)
    edit_yaml(path, **{"dem_collection.api": "tests", "dem_collection.collection": "../other"})
    with pytest.raises(InputError, match=r"dem_collection\.collection: string should match"):
        made(project, product)


def test_a_collection_that_is_not_there_is_named(server: StacServer, tmp_path: Path) -> None:
    offer_tiles(server)
    project = dem_project(tmp_path / "project", server)
    edit_yaml(project.root / "conf/landsat.yaml", **{"dem_collection.collection": "nothing"})
    refused = glacier(project.root, "ingest", str(make_product(tmp_path / "p")), "--out", "out")
    assert refused.returncode == 2
    assert "dem_collection: tests has no collection 'nothing'" in refused.stderr
    assert refused.stderr.strip().count("\n") == 0
    assert nothing_made(project)


def test_a_scene_without_any_tile_is_told_with_collection_and_area(
    server: StacServer, tmp_path: Path
) -> None:
    offer_tiles(server)
    project = dem_project(tmp_path / "project", server)
    far = make_product(tmp_path / "p", transform=north_up(CORNER[0] + 90_000))
    with pytest.raises(InputError, match=r"heights has no tile in 87\.91\d,.*where the scene lies"):
        made(project, far)
    assert nothing_made(project)
    assert fetched(server) == []


def test_a_scene_across_180_degrees_is_refused_and_not_given_half_its_heights(
    server: StacServer, tmp_path: Path
) -> None:
    offer_tiles(server)
    project = dem_project(tmp_path / "project", server)
    x, y = Transformer.from_crs("EPSG:4326", "EPSG:32660", always_xy=True).transform(180.0, 67.0)
    product = make_product(tmp_path / "p", transform=north_up(x - 600, y), crs="EPSG:32660")
    with pytest.raises(InputError, match="crosses 180°"):
        made(project, product)


# --- faults ----------------------------------------------------------------------------------


@pytest.mark.parametrize("away", ["/search", f"{EAST_TILE}.tif", "/sas"])
def test_a_service_that_is_away_leaves_nothing_half_written_and_the_next_run_goes_on(
    server: StacServer, tmp_path: Path, away: str
) -> None:
    items = offer_tiles(server, place="files")
    for item in items:
        item["assets"]["data"]["href"] = f"{{base}}/heights/{item['id']}.tif"
    server.set_items(items)
    project = dem_project(tmp_path / "project", server, tries=2, signs=True)
    product = make_product(tmp_path / "p")
    server.fault(away, "status", status=503)
    failed = glacier(project.root, "ingest", str(product), "--out", "out")
    assert failed.returncode == 1
    assert "error: tests: " in failed.stderr
    assert "503" in failed.stderr
    assert nothing_made(project)
    assert not list(project.root.glob("out/.*"))
    whole = {f"{WEST_TILE}/{WEST_TILE}.tif", f"{WEST_TILE}/item.json"}
    assert kept(project) == (whole if away.startswith("DEM") else set())
    server.mend()
    server.forget()
    np.testing.assert_allclose(made(project, product)["elevation"], expected(), atol=0.02)
    assert (f"{WEST_TILE}.tif" in fetched(server)) != away.startswith("DEM")


def test_an_api_that_is_down_is_told_and_tiles_that_are_here_stay(
    server: StacServer, tmp_path: Path
) -> None:
    offer_tiles(server)
    project = dem_project(tmp_path / "project", server, tries=2)
    made(project, make_product(tmp_path / "p"))
    before = kept(project)
    server.stop()
    other = make_product(tmp_path / "o", identity=product_id(day="20160710"))
    with pytest.raises(ServiceError, match=r"^tests: .*no connection \(2 tries\)"):
        made(project, other)
    assert kept(project) == before
    assert len(list((project.root / "out").iterdir())) == 1


def test_a_tile_cut_off_in_the_middle_is_resumed(server: StacServer, tmp_path: Path) -> None:
    offer_tiles(server)
    project = dem_project(tmp_path / "project", server, tries=3)
    product, name = make_product(tmp_path / "p"), f"{WEST_TILE}.tif"
    server.fault(name, "cut", times=1, at=20_000)
    server.fault(name, "status", status=503)
    with pytest.raises(ServiceError, match=f"{WEST_TILE}"):
        made(project, product)
    assert kept(project) == set()
    server.mend()
    server.forget()
    np.testing.assert_allclose(made(project, product)["elevation"], expected(), atol=0.02)
    asked = [request["headers"].get("range") for request in server.log(name)]
    assert asked == ["bytes=20000-"]
    tile = project.root / f"data/raw/dem/heights/{WEST_TILE}/{name}"
    assert tile.read_bytes() == (server.files / "dem" / name).read_bytes()


def test_an_item_without_the_asset_is_named_with_those_that_it_has(
    server: StacServer, tmp_path: Path
) -> None:
    west, east = offer_tiles(server)
    del east["assets"]["data"]
    server.set_items([west, east])
    project = dem_project(tmp_path / "project", server)
    told = rf"item {EAST_TILE} of heights has no asset 'data'; it has preview"
    with pytest.raises(InputError, match=told):
        made(project, make_product(tmp_path / "p"))
    assert nothing_made(project)


VRT = b"""<VRTDataset rasterXSize="9" rasterYSize="9"><VRTRasterBand dataType="Byte" band="1">
<SimpleSource><SourceFilename>/etc/hostname</SourceFilename></SimpleSource></VRTRasterBand>
</VRTDataset>"""


@pytest.mark.parametrize("content", [b"no raster at all" * 100, VRT])
@pytest.mark.parametrize("checksum", [True, False])
def test_a_tile_that_is_no_raster_is_named_with_its_item_and_not_kept(
    server: StacServer, tmp_path: Path, checksum: bool, content: bytes
) -> None:
    west, east = offer_tiles(server)
    path = server.files / f"dem/{EAST_TILE}.tif"
    right = path.read_bytes()
    path.write_bytes(content)
    if checksum:
        digest = hashlib.sha256(content).hexdigest()
        east["assets"]["data"]["file:checksum"] = "1220" + digest
        server.set_items([west, east])
    project = dem_project(tmp_path / "project", server)
    product = make_product(tmp_path / "p")
    with pytest.raises(InputError, match=rf"{EAST_TILE}\.tif: .*item {EAST_TILE} of heights"):
        made(project, product)
    assert nothing_made(project)
    assert kept(project) == {f"{WEST_TILE}/{WEST_TILE}.tif", f"{WEST_TILE}/item.json"}
    path.write_bytes(right)
    server.set_items([west, item_of(server, path)])
    np.testing.assert_allclose(made(project, product)["elevation"], expected(), atol=0.02)


def test_a_tile_that_was_damaged_here_is_named_and_fetched_anew_once_it_is_removed(
    server: StacServer, tmp_path: Path
) -> None:
    offer_tiles(server, compress="deflate")
    project = dem_project(tmp_path / "project", server)
    product = make_product(tmp_path / "p")
    made(project, product)
    tile = project.root / f"data/raw/dem/heights/{EAST_TILE}/{EAST_TILE}.tif"
    data = tile.read_bytes()
    tile.write_bytes(data[:1000] + b"\xff" * (len(data) - 2000) + data[-1000:])
    with pytest.raises(InputError, match=rf"data/raw/dem/heights.*{EAST_TILE}\.tif"):
        ingest_product(project, product, project.root / "out", again=True)
    tile.unlink()
    again = layers(ingest_product(project, product, project.root / "out", again=True))
    np.testing.assert_allclose(again["elevation"], expected(), atol=0.02)
    assert fetched(server) == [f"{WEST_TILE}.tif", f"{EAST_TILE}.tif", f"{EAST_TILE}.tif"]


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("id", "../../../evil", "its id becomes a folder's name"),
        ("href", "{base}/files/dem/..%2F..%2Fevil", "expected a GeoTIFF"),
        ("href", "{base}/files/dem/.hidden.tif", "cannot be a file's name here"),
        ("href", "{base}/files/dem/tile.zip", r"is 'tile\.zip'; expected a GeoTIFF"),
        ("href", "file:///etc/x.tif", "only addresses of http and https"),
    ],
)
def test_no_name_of_an_item_leads_out_of_the_folder(
    server: StacServer, tmp_path: Path, key: str, value: str, words: str
) -> None:
    item, _ = offer_tiles(server)
    (item if key == "id" else item["assets"]["data"])[key] = value
    server.set_items([item])
    project = dem_project(tmp_path / "project", server)
    with pytest.raises(InputError, match=words):
        made(project, make_product(tmp_path / "p"))
    assert fetched(server) == []
    assert not list((project.root / "data").rglob("*.*"))


def test_a_dem_that_cannot_be_had_rejects_no_scene_that_is_watched_for(
    server: StacServer, tmp_path: Path
) -> None:
    scene = offer(server)
    project = dem_project(tmp_path / "project", server, tries=1)
    shutil.copytree(REPOSITORY / "conf", project.root / "conf", dirs_exist_ok=True,
                    ignore=shutil.ignore_patterns("landsat.yaml"))  # fmt: skip
    area = {"area": "86.5,27.7,87.1,28.2", "season": None, "cloud": None, "api": "tests"}
    area |= {"path_rows": [], "sensors": []}
    edit_yaml(project.root / "conf/landsat.yaml", areas={"khumbu": area})
    new = NewItem("khumbu", scene)
    with pytest.raises(InputError, match="tests has no collection 'heights'"):
        take_in(project, new)
    assert read_table(project) == {}
    server.set_items([scene, *offer_tiles(server)])
    server.fault("DEM_", "status", status=503)
    with pytest.raises(ServiceError, match="503"):
        take_in(project, new)
    assert read_table(project) == {}
    server.mend()
    assert take_in(project, new).scene == new.scene
    found = layers(project.root / f"data/raw/landsat/{new.scene}.tif")
    np.testing.assert_allclose(found["elevation"], expected(), atol=0.02)


# --- two at once -----------------------------------------------------------------------------


def test_two_processes_share_the_tiles_that_both_need(server: StacServer, tmp_path: Path) -> None:
    offer_tiles(server)
    project = dem_project(tmp_path / "project", server, longest_wait_s=60)
    server.fault(r"\.tif", "slow", seconds=2)  # so that both want them at once
    command = [Path(sys.executable).with_name("glacier"), "ingest", "--out", "out"]
    running = []
    for day in ("20150710", "20160710"):
        product = make_product(tmp_path / day, identity=product_id(day=day))
        running.append(
            subprocess.Popen([*command, product], cwd=project.root, stderr=subprocess.PIPE)
        )
    for process in running:
        _, told = process.communicate(timeout=100)
        assert process.returncode == 0, told.decode()
    assert fetched(server) == [f"{WEST_TILE}.tif", f"{EAST_TILE}.tif"]
    scenes = sorted((project.root / "out").glob("*.tif"))
    assert len(scenes) == 2
    for scene in scenes:
        np.testing.assert_allclose(layers(scene)["elevation"], expected(), atol=0.02)
    assert not list((project.root / "data/raw/dem/heights").glob(".*"))


def test_a_tile_that_another_process_fetches_for_too_long_is_told(
    server: StacServer, tmp_path: Path
) -> None:
    offer_tiles(server)
    project = dem_project(tmp_path / "project", server, longest_wait_s=0.5)
    product = make_product(tmp_path / "p")
    work = project.root / f"data/raw/dem/heights/.{WEST_TILE}.download"
    work.mkdir(parents=True)
    handle = os.open(work, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    since = time.monotonic()
    with pytest.raises(ServiceError, match="another process is fetching this"):
        made(project, product)
    assert 0.5 < time.monotonic() - since < 5
    os.close(handle)
    assert np.isfinite(made(project, product)["elevation"]).all()
