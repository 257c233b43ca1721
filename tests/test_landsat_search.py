"""Scenes are found at a STAC API, and each once, in its newest processing."""

from __future__ import annotations

import datetime
import json
import time
from datetime import UTC
from pathlib import Path
from typing import Any

import geopandas as gpd
import pyogrio
import pytest
import yaml
from conftest import REPOSITORY, edit_yaml, glacier, ground, make_outlines, north_up
from shapely.geometry import Point, box
from small_catalog import HERE, catalog_project, conf, ground_of, offer, scene, settings
from small_catalog import server as server  # a fixture
from stac_server import Item, StacServer

from glacier_core.config import check
from glacier_core.errors import InputError, ServiceError
from glacier_core.landsat.answers import retry_after
from glacier_core.landsat.apis import ApisConf
from glacier_core.landsat.conf import LandsatConf
from glacier_core.landsat.items import (
    BANDS,
    NEEDED,
    product_id,
    sensor_of,
    wanted_assets,
)
from glacier_core.landsat.search import (
    Criteria,
    newest,
    read_area,
    read_path_row,
    read_season,
    search,
)

FIRST, LAST = datetime.date(1985, 1, 1), datetime.date(2025, 12, 31)


def criteria(**more: Any) -> Criteria:
    usual: dict[str, Any] = {"area": box(*HERE), "first": FIRST, "last": LAST}
    return Criteria(**usual | more)


def ids(items: list[Item]) -> list[str]:
    return [item["id"] for item in items]


# --- what is found ---------------------------------------------------------------------------


def test_scenes_are_chosen_by_area_days_season_cloud_path_row_and_sensor(
    server: StacServer,
) -> None:
    right = "LC08_L2SP_140041_20201109_20210317_02_T1"
    others = [
        scene("LC08_L2SP_140041_20190705_20210317_02_T1"),  # July
        scene("LC08_L2SP_140041_20101109_20210317_02_T1"),  # before
        scene("LC08_L2SP_140041_20201125_20210317_02_T1", cloud=40.01),
        scene("LC08_L2SP_140041_20201211_20210317_02_T1", cloud=None),
        scene("LC08_L2SP_141040_20201116_20210317_02_T1"),
        scene("LE07_L2SP_140041_20201117_20210317_02_T1"),
        scene("LC08_L2SP_140041_20201108_20210317_02_T1", box=(10, 45, 11, 46)),
    ]
    server.set_items([scene(right, cloud=40), *others])
    found = search(
        conf(server),
        criteria(
            first=datetime.date(2015, 1, 1),
            season=read_season("09-01..12-31"),
            cloud=40.0,
            path_rows=frozenset({(140, 41)}),
            sensors=frozenset({"oli"}),
        ),
    )
    assert [product_id(item) for item in found] == [right]
    assert len(search(conf(server), criteria())) == 7
    (asked,) = [json.loads(request["body"]) for request in server.log("/search")][:1]
    assert asked["query"]["eo:cloud_cover"] == {"lte": 40.0}
    assert asked["query"]["landsat:wrs_row"] == {"in": ["041"]}


def test_of_several_processings_the_newest_is_found_and_real_time_gives_way(
    server: StacServer,
) -> None:
    versions = [
        "LC09_L2SP_140041_20221107_20221108_02_RT",
        "LC09_L2SP_140041_20221107_20230322_02_T1",
        "LC09_L2SP_140041_20221107_20221108_02_T1",
        "LC08_L2SP_140041_20221107_20221110_02_T1",  # another satellite
    ]
    server.set_items([scene(name) for name in versions])
    found = [product_id(item) for item in search(conf(server), criteria())]
    assert sorted(map(str, found)) == [versions[3], versions[1]]
    same_day = [scene(versions[2]), scene(versions[0])]
    for order in (same_day, same_day[::-1]):
        assert ids(newest(order, [])) == [same_day[0]["id"]]


def test_versions_that_no_file_name_tells_apart_are_told_apart_by_scene_id_and_update() -> None:
    def bare(**properties: Any) -> Item:
        item = scene(**properties)
        return item | {"assets": {"red": {"href": "https://example.org/red.tif"}}}

    first = bare(**{"landsat:scene_id": "LC81400412020314LGN00", "updated": "2024"})
    second = bare(**{"landsat:scene_id": "LC81400412020314LGN01", "updated": "2021"})
    third = bare(**{"landsat:scene_id": "LC81400412020314LGN01", "updated": "2022"})
    (chosen,) = newest([second, third, first], [])
    assert chosen is not first
    assert chosen["properties"]["updated"] == "2022"


def test_reflectance_and_temperature_of_two_collections_become_one_item(
    server: StacServer,
) -> None:
    old, new = "20210110", "20210317"
    products = [f"LC08_L2SP_140041_20201109_{day}_02_T1" for day in (old, new)]
    server.set_items([scene(p, part=part) for p in products for part in ("_ST", "_SR")])
    (item,) = search(conf(server), criteria(), "parts")
    assert item["id"] == f"{products[1]}_SR"
    assert set(item["assets"]) == {"red", "lwir11"}
    assert all(products[1] in asset["href"] for asset in item["assets"].values())


@pytest.mark.parametrize("paging", ["", "get_paging"])
def test_all_pages_are_read(server: StacServer, paging: str) -> None:
    days = [f"2020{month:02}{day:02}" for month in range(1, 13) for day in (1, 17)]
    server.set_items([scene(f"LC08_L2SP_140041_{day}_20210317_02_T1") for day in days])
    server.fault("/search", paging, limit=10)
    found = search(conf(server), criteria())
    assert [item["properties"]["datetime"][:10].replace("-", "") for item in found] == days
    assert [request["method"] for request in server.log("/search")] == (
        ["POST", "GET", "GET"] if paging else ["POST", "POST", "POST"]
    )


def test_an_api_that_cannot_filter_is_asked_for_all_and_filtered_here(server: StacServer) -> None:
    clear, cloudy = scene(), scene("LC08_L2SP_140041_20201125_20210317_02_T1", cloud=90)
    server.set_items([clear, cloudy])
    server.fault("^/$", "conformless")
    assert ids(search(conf(server), criteria(cloud=20))) == [clear["id"]]
    assert "query" not in json.loads(server.log("/search")[0]["body"])
    with pytest.raises(InputError, match="give an area too"):
        search(conf(server), criteria(area=None, path_rows=frozenset({(140, 41)})))


# --- where and when --------------------------------------------------------------------------


def test_an_area_may_be_a_box_or_a_vector_file_in_any_crs(tmp_path: Path) -> None:
    assert read_area("86.5,27.7,87.1,28.2").equals(box(*HERE))
    assert read_area(" -70.5, -33.5 ,-70,-33").bounds == (-70.5, -33.5, -70, -33)
    shapes = [ground(north_up(), (0, 0, 100, 100)), ground(north_up(), (0, 200, 100, 300))]
    path = make_outlines(tmp_path / "area.gpkg", shapes)  # UTM zone 45, 87° east
    area = read_area(str(path))
    expected = gpd.GeoSeries(shapes, crs="EPSG:32645").to_crs(4326).union_all()
    assert area.symmetric_difference(expected).area < 1e-12
    assert 86.9 < area.centroid.x < 87.2


def test_a_fine_area_is_sent_coarsely_and_tested_finely(server: StacServer, tmp_path: Path) -> None:
    disc = Point(87, 28).buffer(0.5, quad_segs=100)
    path = make_outlines(tmp_path / "disc.gpkg", [disc], crs="EPSG:4326")
    inside, corner = scene(box=(86.9, 27.9, 87, 28)), (87.46, 28.46, 87.48, 28.48)
    outside = scene("LC08_L2SP_140041_20201125_20210317_02_T1", box=corner)
    server.set_items([inside, outside])
    assert ids(search(conf(server), criteria(area=read_area(str(path))))) == [inside["id"]]
    sent = json.loads(server.log("/search")[0]["body"])
    assert len(sent["intersects"]["coordinates"][0]) == 5


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("87,27,86,28", "west < east"),
        ("86,28,87,27", "south < north"),
        ("86,27,87,95", "in degrees"),
        ("86,27,87,1.2.3", "four numbers"),
        ("nowhere.gpkg", "neither a file nor"),
    ],
)
def test_an_area_that_is_none_is_refused(text: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        read_area(text)


def test_files_that_hold_no_area_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.gpkg").write_text("not a GeoPackage")
    with pytest.raises(InputError, match=r"text\.gpkg: cannot be read"):
        read_area(str(tmp_path / "text.gpkg"))
    bare = make_outlines(tmp_path / "bare.shp", [box(0, 0, 1, 1)], crs=None)
    with pytest.raises(InputError, match=r"bare\.shp: says no CRS"):
        read_area(str(bare))


def test_a_season_may_pass_the_turn_of_the_year() -> None:
    autumn, winter = read_season("09-01..11-30"), read_season("11-15..02-29")
    assert datetime.date(2001, 9, 1) in autumn
    assert datetime.date(2001, 11, 30) in autumn
    assert datetime.date(2001, 12, 1) not in autumn
    assert datetime.date(2001, 12, 1) in winter
    assert datetime.date(2001, 2, 28) in winter
    assert datetime.date(2001, 3, 1) not in winter
    assert datetime.date(2001, 11, 14) not in winter
    for wrong in ("09-01", "13-01..14-01", "02-30..03-01", "sep..nov"):
        with pytest.raises(InputError, match="expected MM-DD"):
            read_season(wrong)


def test_path_and_row_are_those_of_the_reference_system() -> None:
    assert read_path_row("140/041") == read_path_row("140/41") == (140, 41)
    for wrong in ("140", "234/1", "0/41", "140/249", "140-041"):
        with pytest.raises(InputError, match="140/041"):
            read_path_row(wrong)


def test_a_search_needs_a_place_and_days_in_order() -> None:
    with pytest.raises(InputError, match="an area, or paths and rows"):
        criteria(area=None)
    with pytest.raises(InputError, match="comes before"):
        criteria(first=LAST, last=FIRST)


# --- services that fail ----------------------------------------------------------------------


def test_an_api_that_is_down_is_named_and_asked_a_few_times_only(server: StacServer) -> None:
    asked = conf(server)
    server.stop()
    since = time.monotonic()
    with pytest.raises(ServiceError, match=r"^tests: http.*no connection \(4 tries\)"):
        search(asked, criteria())
    assert time.monotonic() - since < 5


def test_a_slow_api_is_given_up_after_the_time_limit(server: StacServer) -> None:
    server.fault("/search", "slow", seconds=30)
    since = time.monotonic()
    with pytest.raises(ServiceError, match=r"no answer within 0\.3 s \(2 tries\)"):
        search(conf(server, timeout_s=0.3, tries=2), criteria())
    assert time.monotonic() - since < 5


def test_what_passes_by_itself_is_waited_for(server: StacServer) -> None:
    server.set_items([scene()])
    server.fault("/search", "status", times=2, status=500)
    server.fault("^/$", "status", times=1, status=503)
    assert len(search(conf(server), criteria())) == 1
    assert len(server.log("/search")) == 3


def test_a_service_that_asks_to_wait_is_given_that_time(server: StacServer) -> None:
    server.set_items([scene()])
    server.fault("/search", "status", times=1, status=429, headers={"Retry-After": "1"})
    since = time.monotonic()
    assert len(search(conf(server), criteria())) == 1
    assert 1 <= time.monotonic() - since < 4


def test_a_service_that_asks_for_hours_is_not_waited_for(server: StacServer) -> None:
    server.fault("/search", "status", status=429, headers={"Retry-After": "7200"})
    since = time.monotonic()
    with pytest.raises(ServiceError, match=r"429.*asks to wait 7200 s"):
        search(conf(server), criteria())
    assert time.monotonic() - since < 2
    assert len(server.log("/search")) == 1


def test_the_time_to_wait_is_read_as_seconds_and_as_a_date() -> None:
    now = datetime.datetime(2024, 1, 1, 12, tzinfo=UTC)
    assert retry_after("30", now) == 30
    assert retry_after("Mon, 01 Jan 2024 12:00:45 GMT", now) == 45
    assert retry_after("Mon, 01 Jan 2024 11:00:00 GMT", now) == 0
    assert retry_after("soon", now) is retry_after(None, now) is None


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("^/$", "<html>Welcome</html>"),
        ("^/$", "{}"),
        ("^/$", "[1, 2]"),
        ("/search", "<html>Welcome</html>"),
        ("/search", '{"features": 3}'),
        ("/search", '{"features": [{"id": 3}]}'),
        ("/search", '{"features": [{"type": "Feature", "id": "x", "properties": {}}]}'),
        ("/search", "[]"),
        (
            "/search",
            '{"features": [{"type": "Feature", "id": "x", "properties": {},'
            ' "assets": {"red": {"href": "http://[x"}}}]}',
        ),
    ],
)
def test_an_answer_that_is_no_stac_is_told_as_such(
    server: StacServer, path: str, body: str
) -> None:
    server.fault(path, "status", status=200, body=body)
    with pytest.raises(ServiceError, match=rf"^tests: {server.base}.*its answer"):
        search(conf(server), criteria())


def test_an_answer_that_is_cut_off_is_asked_for_again(server: StacServer) -> None:
    server.set_items([scene()])
    more = {"body": '{"type":', "headers": {"Content-Length": "9000", "Connection": "close"}}
    server.fault("/search", "status", times=1, status=200, **more)
    assert len(search(conf(server, timeout_s=1), criteria())) == 1


def test_pages_without_end_are_left(server: StacServer) -> None:
    server.set_items([scene()])
    server.fault("/search", "endless")
    with pytest.raises(ServiceError, match="the same page of results again"):
        search(conf(server), criteria())
    assert len(server.log("/search")) == 2


def test_a_refusal_is_told_with_the_reason_and_not_repeated(server: StacServer) -> None:
    server.fault("/search", "status", status=400, body='{"detail": "no such collection"}')
    with pytest.raises(ServiceError, match=r"400.*no such collection"):
        search(conf(server), criteria())
    assert len(server.log("/search")) == 1


@pytest.mark.parametrize("to", ["file:///etc/passwd", "ftp://127.0.0.1/x"])
def test_redirects_to_other_schemes_are_refused(server: StacServer, to: str) -> None:
    server.fault("/search", "redirect", to=to)
    with pytest.raises(ServiceError, match=r"redirects from http to (file|ftp)"):
        search(conf(server), criteria())


def test_redirects_without_end_are_left(server: StacServer) -> None:
    server.fault("/search", "redirect", to="{base}/search")
    with pytest.raises(ServiceError, match="without end"):
        search(conf(server), criteria())


def test_a_token_of_the_environment_is_sent_to_its_hosts_alone_and_told_to_nobody(
    server: StacServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", logger="glacier_core")
    server.set_items([scene()])
    search(conf(server), criteria())
    monkeypatch.setenv("TEST_KEY", "very-secret")
    search(conf(server), criteria())
    elsewhere = settings(server)
    elsewhere["known"]["tests"]["token"]["hosts"] = ["example.org"]
    search(ApisConf.model_validate(elsewhere), criteria())
    sent = [request["headers"].get("x-key") for request in server.log("/search")]
    assert sent == [None, "very-secret", None]
    server.fault("/search", "status", status=403)
    with pytest.raises(ServiceError, match="access refused") as refused:
        search(conf(server), criteria())
    assert "very-secret" not in str(refused.value) + caplog.text
    monkeypatch.delenv("TEST_KEY")
    with pytest.raises(ServiceError, match="set the environment variable TEST_KEY"):
        search(conf(server), criteria())


# --- settings --------------------------------------------------------------------------------


def test_the_repositorys_own_settings_name_apis_that_need_no_secret() -> None:
    path = REPOSITORY / "conf/landsat.yaml"
    known = check(LandsatConf, yaml.safe_load(path.read_text()), path).apis.known
    assert {"planetary-computer", "usgs", "earth-search"} <= set(known)
    assert all(api.url.startswith("https://") for api in known.values())


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("default", "nobody", "is not among"),
        ("known.tests.url", "ftp://example.org", "https://"),
        ("known.tests.url", "https://me:secret@example.org", "no password"),
        ("known.tests.url", "https://example.org/?key=secret", "no password and no key"),
        ("known.tests.token.env", "a-secret-itself", "pattern"),
        ("known.tests.sign", {"by": "planetary-computer", "url": "http://example.org",
                              "hosts": ["example.org"]}, "need https"),
        ("patience.tries", 0, "greater than or equal to 1"),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused(
    server: StacServer, tmp_path: Path, key: str, value: Any, told: str
) -> None:
    path = tmp_path / "apis.yaml"
    path.write_text(yaml.safe_dump(settings(server)))
    edit_yaml(path, **{key: value})
    with pytest.raises(InputError, match=told):
        check(ApisConf, yaml.safe_load(path.read_text()), path)


# --- the spellings of items ------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["stac_items", "stac_usgs_expected"])
def test_real_items_give_up_their_bands_in_both_spellings(real_data: Path, folder: str) -> None:
    sensors = set()
    for path in sorted((real_data / "landsat_ingest" / folder).glob("*.json")):
        item = json.loads(path.read_text())
        found = wanted_assets(item)
        sensors.add(sensor_of(item))
        product = product_id(item)
        assert product is not None
        assert all(asset.name.startswith(product) for asset in found.values())
        assert {"qa_pixel", "qa_radsat", "mtl.json", "mtl.xml", "mtl.txt"} <= set(found)
        oli = path.name.startswith("LC")
        numbers = (2, 3, 4, 5, 6, 7) if oli else (1, 2, 3, 4, 5, 7)
        if not path.name.endswith("_ST_stac.json"):
            assert set(NEEDED) <= set(found)
            codes = [found[name].name.removeprefix(f"{product}_") for name in BANDS]
            assert codes == [f"SR_B{number}.TIF" for number in numbers]
        if not path.name.endswith("_SR_stac.json"):
            assert found["lwir"].name == f"{product}_ST_B{10 if oli else 6}.TIF"
    assert sensors == {"tm", "etm", "oli"}


@pytest.mark.parametrize(
    "odd",
    [
        {"geometry": {"type": "Polygon", "coordinates": "none"}},
        {"geometry": ground_of(87, 28, 86, 27)},
        {"properties": {"datetime": "yesterday", "eo:cloud_cover": "some"}},
        {"properties": {"datetime": None, "landsat:wrs_path": {}}},
        {"geometry": None, "bbox": [1]},
    ],
)
def test_odd_values_of_an_item_end_no_search(server: StacServer, odd: dict[str, Any]) -> None:
    good = scene("LC08_L2SP_140041_20201125_20210317_02_T1")
    more = {"body": json.dumps({"type": "FeatureCollection", "features": [scene() | odd, good]})}
    server.fault("/search", "status", status=200, **more)
    found = ids(search(conf(server), criteria()))
    assert good["id"] in found
    # Where the item does not say, the product's identifier and the server's answer count.
    assert scene()["id"] in found


def test_coastal_is_wanted_only_where_it_is_asked_for(server: StacServer) -> None:
    item = offer(server)
    assert "coastal" not in wanted_assets(item)
    assert wanted_assets(item, coastal=True)["coastal"].name.endswith("_SR_B1.TIF")


# --- the command -----------------------------------------------------------------------------


def test_the_command_prints_a_table_and_writes_items_that_gis_opens(
    server: StacServer, tmp_path: Path
) -> None:
    root = catalog_project(tmp_path / "project", server)
    server.set_items([scene(), scene("LE07_L2SP_140041_20001030_20200917_02_T1", cloud=3.4)])
    where = ("--area", "86.6,27.8,86.9,28", "--from", "2000-01-01")
    done = glacier(root, "search", *where, "--out", "found/items.geojson")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[1].split() == [
        "2000-10-30", "etm", "140/041", "3", "%",
        "LE07_L2SP_140041_20001030_02_T1", "LE07_L2SP_140041_20001030_20200917_02_T1",
    ]  # fmt: skip
    assert lines[3] == "2 scenes"
    frame = pyogrio.read_dataframe(root / "found/items.geojson")
    assert list(frame["id"]) == [line.split()[-2] for line in lines[1:3]]
    assert frame.crs == "EPSG:4326"
    assert frame.geometry.iloc[0].equals(box(*HERE))

    none = glacier(root, "search", *where, "--sensor", "tm")
    assert (none.returncode, none.stdout) == (0, "0 scenes: more days, or more cloud?\n")


def test_a_named_area_says_what_is_wanted_there_and_options_go_before(
    server: StacServer, tmp_path: Path
) -> None:
    root = catalog_project(tmp_path / "project", server)
    make_outlines(root / "khumbu.gpkg", [box(86.6, 27.8, 86.9, 28)], crs="EPSG:4326")
    area = {"area": "khumbu.gpkg", "season": "09-01..11-30", "cloud": 30, "api": None}
    area |= {"path_rows": ["140/041"], "sensors": ["oli"]}
    edit_yaml(root / "conf/landsat.yaml", areas={"khumbu": area})
    server.set_items(
        [
            scene(),
            scene("LC08_L2SP_140041_20201125_20210317_02_T1", cloud=50),
            scene("LC08_L2SP_140041_20200705_20210317_02_T1"),
            scene("LE07_L2SP_140041_20201117_20210317_02_T1"),
        ]
    )
    first = ("search", "--area", "khumbu", "--from", "2020-01-01")
    assert glacier(root, *first).stdout.endswith("\n1 scene\n")
    assert glacier(root, *first, "--cloud", "60").stdout.endswith("\n2 scenes\n")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--area", "86,27,87,28"), "--from"),
        (("--area", "86,27,87,28", "--from", "2020"), "expected YYYY-MM-DD"),
        (("--from", "2020-01-01"), "an area, or paths and rows"),
        (("--area", "86,27,87,28", "--from", "2020-01-01", "--api", "x"), "there are tests, parts"),
    ],
)
def test_the_command_refuses_in_one_line(
    server: StacServer, tmp_path: Path, arguments: tuple[str, ...], told: str
) -> None:
    root = catalog_project(tmp_path / "project", server)
    failed = glacier(root, "search", *arguments)
    assert failed.returncode == 2
    assert told in failed.stderr
    assert "Traceback" not in failed.stderr
