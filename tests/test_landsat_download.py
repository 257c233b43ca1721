"""Scenes are fetched whole: resumed, checked, never twice, and nothing gets out of its folder."""

from __future__ import annotations

import copy
import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import pytest
import rasterio
from conftest import glacier
from small_catalog import catalog_project, conf, offer, scene, service
from small_catalog import server as server  # a fixture
from small_landsat import counts
from stac_server import Item, StacServer

from glacier_core.errors import InputError, ServiceError
from glacier_core.landsat.download import fetch_item, read_items, service_for
from glacier_core.landsat.items import product_id

OLD = "LC08_L2SP_140041_20150710_20200908_02_T1"
NEW = "LC08_L2SP_140041_20150710_20230101_02_T1"
RED = f"{OLD}_SR_B4.TIF"

BIG = {"shape": (512, 512)}
"""Of pixels so that a file has half a megabyte."""


def fetch(server: StacServer, item: Item, out: Path, **patience: Any) -> Path:
    return fetch_item(item, out, service(server, item, **patience), quiet=True)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def ranges(server: StacServer, name: str = RED) -> list[str | None]:
    return [request["headers"].get("range") for request in server.log(name)]


# --- what is fetched -------------------------------------------------------------------------


@pytest.mark.parametrize("keys", ["common", "files"])
def test_the_needed_files_come_with_an_item_whose_addresses_are_relative(
    server: StacServer, tmp_path: Path, keys: str
) -> None:
    item = offer(server, keys=keys)
    link = {"rel": "self", "href": f"{server.base}/collections/landsat/items/x?sig=secret"}
    folder = fetch(server, item | {"links": [link]}, tmp_path / "out")
    assert folder == tmp_path / "out" / item["id"]
    codes = [f"SR_B{n}.TIF" for n in range(2, 8)] + ["ST_B10.TIF", "QA_PIXEL.TIF", "QA_RADSAT.TIF"]
    files = {f"{OLD}_{code}" for code in [*codes, "MTL.json"]}
    assert set(content(folder)) == files | {"item.json"}
    for name in files:
        assert (folder / name).read_bytes() == (server.files / OLD / name).read_bytes()
    (kept,) = read_items(folder / "item.json")
    assert {asset["href"] for asset in kept["assets"].values()} == {f"./{name}" for name in files}
    assert kept["links"] == [{"rel": "canonical", "href": link["href"].partition("?")[0]}]
    assert list((tmp_path / "out").iterdir()) == [folder]


def test_other_programs_read_the_item_and_find_its_files(
    server: StacServer, tmp_path: Path
) -> None:
    folder = fetch(server, offer(server, checksums=True), tmp_path / "out")
    item = pystac.Item.from_file(folder / "item.json")
    assert item.datetime is not None
    assert (item.datetime.year, item.datetime.month, item.datetime.day) == (2015, 7, 10)
    for asset in item.assets.values():
        path = Path(str(asset.get_absolute_href()))
        assert path.parent == folder
        assert path.stat().st_size == asset.extra_fields["file:size"]


def test_a_scene_that_is_there_costs_no_request(server: StacServer, tmp_path: Path) -> None:
    item = offer(server)
    folder = fetch(server, item, tmp_path)
    before = content(folder)
    assert len(server.log()) == 10
    assert fetch(server, item, tmp_path) == folder
    assert len(server.log()) == 10
    assert content(folder) == before


def test_a_scene_processed_anew_is_fetched_anew_and_replaces_the_old_one(
    server: StacServer, tmp_path: Path
) -> None:
    folder = fetch(server, offer(server), tmp_path / "out")
    again = offer(server, identity=NEW)
    assert fetch(server, again, tmp_path / "out") == folder
    assert all(name.startswith(NEW) for name in content(folder) if name != "item.json")
    assert product_id(read_items(folder / "item.json")[0]) == NEW
    assert list((tmp_path / "out").iterdir()) == [folder]


def test_other_checksums_of_the_same_product_are_another_version(
    server: StacServer, tmp_path: Path
) -> None:
    folder = fetch(server, offer(server, checksums=True), tmp_path)
    before = content(folder)
    changed = offer(server, checksums=True, layers={"red": counts(seed=77)})
    fetch(server, changed, tmp_path)
    after = content(folder)
    assert {name for name in before if before[name] != after[name]} == {RED, "item.json"}


def test_only_what_is_lost_of_a_scene_is_fetched_again(server: StacServer, tmp_path: Path) -> None:
    item = offer(server)
    folder = fetch(server, item, tmp_path)
    before = content(folder)
    (folder / RED).write_bytes(b"damaged")
    server.forget()
    fetch(server, item, tmp_path)
    assert content(folder) == before
    assert [request["path"].rpartition("/")[2] for request in server.log()] == [RED]


# --- cut off, and gone on with ---------------------------------------------------------------


def test_a_download_cut_off_goes_on_where_it_stopped(server: StacServer, tmp_path: Path) -> None:
    item = offer(server, **BIG)
    server.fault(RED, "cut", times=1, at=100_000)
    folder = fetch(server, item, tmp_path)
    assert ranges(server) == [None, "bytes=100000-"]
    assert (folder / RED).read_bytes() == (server.files / OLD / RED).read_bytes()


def test_a_download_given_up_is_gone_on_with_by_the_next_call(
    server: StacServer, tmp_path: Path
) -> None:
    item = offer(server, **BIG)
    server.fault(RED, "cut", times=1, at=100_000)
    server.fault(RED, "status", status=503)
    with pytest.raises(ServiceError, match=rf"^tests: {RED}: .*503 .*\(3 tries\)"):
        fetch(server, item, tmp_path / "out", tries=3, at_once=1)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [f".{item['id']}.download"]
    done = [request["path"].rpartition("_")[2] for request in server.log()]
    assert done[:5] == ["B2.TIF", "B3.TIF", "B4.TIF", "B4.TIF", "B4.TIF"]
    server.mend()
    server.forget()
    folder = fetch(server, item, tmp_path / "out")
    assert ranges(server) == ["bytes=100000-"]
    assert (folder / RED).read_bytes() == (server.files / OLD / RED).read_bytes()
    assert list((tmp_path / "out").iterdir()) == [folder]
    assert server.log("SR_B[23]") == []  # whole since the first call


def test_a_process_killed_in_the_middle_is_gone_on_with(server: StacServer, tmp_path: Path) -> None:
    item = offer(server)
    root = catalog_project(tmp_path / "project", server, timeout_s=60)
    (root / "item.json").write_text(json.dumps(item))
    server.fault(RED, "trickle", times=1)
    command = [Path(sys.executable).with_name("glacier"), "fetch", "item.json", "--out", "out"]
    running = subprocess.Popen([*command, "--no-ingest"], cwd=root, stderr=subprocess.DEVNULL)
    part = root / f"out/.{item['id']}.download/{RED}.part"
    until = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size > 20) and time.monotonic() < until:
        time.sleep(0.05)
    running.send_signal(signal.SIGKILL)
    running.wait(10)
    have = part.stat().st_size
    assert have > 20
    folder = fetch(server, item, root / "out")
    assert ranges(server) == [None, f"bytes={have}-"]
    assert (folder / RED).read_bytes() == (server.files / OLD / RED).read_bytes()


@pytest.mark.parametrize("kind", ["rangeless", "forgetful"])
def test_a_server_that_does_not_go_on_starts_again(
    server: StacServer, tmp_path: Path, kind: str
) -> None:
    item = offer(server, **BIG)
    server.fault(RED, "cut", times=1, at=100_000)
    server.fault(RED, kind)
    folder = fetch(server, item, tmp_path)
    assert ranges(server) == [None, "bytes=100000-"]
    assert (folder / RED).read_bytes() == (server.files / OLD / RED).read_bytes()


def test_a_server_that_cuts_every_download_at_the_same_byte_is_given_up(
    server: StacServer, tmp_path: Path
) -> None:
    item = offer(server, **BIG)
    server.fault(RED, "cut", times=1, at=100_000)
    server.fault(RED, "cut", at=0)
    with pytest.raises(ServiceError, match=r"bytes came|broke off"):
        fetch(server, item, tmp_path)
    assert len(ranges(server)) == 4


def test_another_part_than_was_asked_for_is_not_joined_on(
    server: StacServer, tmp_path: Path
) -> None:
    item = offer(server, **BIG)
    server.fault(RED, "cut", times=1, at=100_000)
    server.fault(RED, "other_part", times=1)
    folder = fetch(server, item, tmp_path)
    assert ranges(server) == [None, "bytes=100000-", None]
    assert (folder / RED).read_bytes() == (server.files / OLD / RED).read_bytes()


def test_a_file_that_changed_meanwhile_is_not_joined_to_its_old_beginning(
    server: StacServer, tmp_path: Path
) -> None:
    item = offer(server, **BIG)
    server.fault(RED, "cut", times=1, at=100_000)
    server.fault(RED, "status", status=503)
    with pytest.raises(ServiceError):
        fetch(server, item, tmp_path)
    server.mend()
    offer(server, layers={"red": counts((512, 512), seed=77)}, **BIG)  # under the same name
    folder = fetch(server, item, tmp_path)
    assert (folder / RED).read_bytes() == (server.files / OLD / RED).read_bytes()


@pytest.mark.parametrize(("checksums", "second"), [(True, "bytes=100000-"), (False, None)])
def test_without_a_mark_of_its_version_a_file_is_gone_on_with_only_if_a_checksum_will_tell(
    server: StacServer, tmp_path: Path, checksums: bool, second: str | None
) -> None:
    item = offer(server, checksums=checksums, **BIG)
    server.fault(RED, "cut", times=1, at=100_000, unmarked=True)
    server.fault(RED, "unmarked")
    folder = fetch(server, item, tmp_path)
    assert ranges(server) == [None, second]
    assert (folder / RED).read_bytes() == (server.files / OLD / RED).read_bytes()


def test_files_of_an_older_version_under_way_are_not_mixed_in(
    server: StacServer, tmp_path: Path
) -> None:
    old = offer(server, **BIG)
    server.fault(RED, "status", status=404)
    with pytest.raises(ServiceError, match="no longer there"):
        fetch(server, old, tmp_path / "out", at_once=1)
    assert content(tmp_path / "out" / f".{old['id']}.download")
    folder = fetch(server, offer(server, identity=NEW), tmp_path / "out")
    assert all(name.startswith(NEW) for name in content(folder) if name != "item.json")


# --- what comes is checked -------------------------------------------------------------------


@pytest.mark.parametrize("checksums", [True, False])
@pytest.mark.parametrize("kind", ["corrupt", "short"])
def test_a_file_that_came_wrong_once_is_fetched_again(
    server: StacServer, tmp_path: Path, kind: str, checksums: bool
) -> None:
    item = offer(server, checksums=checksums)
    if not checksums:
        pack(server.files / OLD / RED)
    server.fault(RED, kind, times=1)
    folder = fetch(server, item, tmp_path)
    assert ranges(server) == [None, None]
    assert (folder / RED).read_bytes() == (server.files / OLD / RED).read_bytes()


def pack(path: Path) -> None:
    """Write a raster anew, compressed: damage inside is found by reading it."""
    with rasterio.open(path) as source:
        values, profile = source.read(), source.profile
    with rasterio.open(path, "w", **(profile | {"compress": "deflate"})) as target:
        target.write(values)


@pytest.mark.parametrize(
    ("checksums", "kind", "told"),
    [
        (True, "corrupt", r"has not the checksum that the item states \(sha512\), twice"),
        (True, "short", r"has not the checksum"),
        (False, "short", r"no GeoTIFF that can be read to its end, twice"),
    ],
)
def test_a_file_that_always_comes_wrong_is_refused_and_not_fetched_for_ever(
    server: StacServer, tmp_path: Path, checksums: bool, kind: str, told: str
) -> None:
    item = offer(server, checksums=checksums)
    server.fault(RED, kind)
    with pytest.raises(ServiceError, match=told):
        fetch(server, item, tmp_path / "out")
    assert len(ranges(server)) <= 4
    assert not (tmp_path / "out" / item["id"]).exists()


def test_a_length_that_is_told_too_long_is_believed_only_until_the_server_says_where_the_end_is(
    server: StacServer, tmp_path: Path
) -> None:
    item = offer(server)
    server.fault(RED, "long")
    folder = fetch(server, item, tmp_path)
    size = (server.files / OLD / RED).stat().st_size
    assert ranges(server) == [None, f"bytes={size}-"]
    assert (folder / RED).read_bytes() == (server.files / OLD / RED).read_bytes()


def test_a_length_that_is_always_told_too_long_is_given_up(
    server: StacServer, tmp_path: Path
) -> None:
    item = offer(server)
    server.fault(RED, "long", unmarked=True)
    with pytest.raises(ServiceError, match=r"bytes came|broke off"):
        fetch(server, item, tmp_path)
    assert len(ranges(server)) == 4


def test_a_size_that_the_item_states_is_compared(server: StacServer, tmp_path: Path) -> None:
    item = offer(server)
    item["assets"]["red"]["file:size"] = 10
    with pytest.raises(ServiceError, match="and the item says 10, twice"):
        fetch(server, item, tmp_path)


def test_a_login_page_instead_of_a_file_is_told_as_such(server: StacServer, tmp_path: Path) -> None:
    item = offer(server)
    page = {"body": "<html>Sign in</html>", "headers": {"Content-Type": "text/html; charset=utf-8"}}
    server.fault(RED, "status", status=200, **page)
    with pytest.raises(ServiceError, match=r"most likely a login.*--api planetary-computer"):
        fetch(server, item, tmp_path)


def test_a_connection_that_hangs_or_trickles_is_given_up(
    server: StacServer, tmp_path: Path
) -> None:
    item = offer(server)
    server.fault(RED, "slow", times=1, seconds=20)
    server.fault(RED, "trickle")
    since = time.monotonic()
    with pytest.raises(ServiceError, match=r"bytes came in|no answer within"):
        fetch(server, item, tmp_path, timeout_s=0.5, tries=2)
    assert time.monotonic() - since < 10


# --- secrets ---------------------------------------------------------------------------------


def test_files_that_need_a_signature_get_one_that_is_written_nowhere(
    server: StacServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", logger="glacier_core")
    item = offer(server, place="signed")
    folder = fetch_item(item, tmp_path / "out", service(server, item, signs=True), quiet=True)
    assert len(server.log("/sas")) == 1
    assert all("sig=" in request["query"] for request in server.log("^/signed"))
    assert all(b"sig=" not in data for data in content(folder).values())
    server.fault("SR_B", "status", status=503)
    with pytest.raises(ServiceError) as failed:
        fetch_item(item, tmp_path / "two", service(server, item, signs=True), quiet=True)
    assert "sig=" not in str(failed.value) + caplog.text
    assert failed.value.__cause__ is None


def test_passwords_of_the_home_folder_are_not_sent(
    server: StacServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    fetch(server, offer(server), tmp_path)
    assert len(server.log()) == 10
    assert all("authorization" not in request["headers"] for request in server.log())


def test_a_signature_that_has_run_out_is_renewed(server: StacServer, tmp_path: Path) -> None:
    item = offer(server, place="signed")
    server.fault(RED, "status", times=1, status=403)
    fetch_item(item, tmp_path, service(server, item, signs=True, at_once=1), quiet=True)
    assert len(server.log("/sas")) == 2
    server.forget()
    server.fault("/sas", "", seconds=10)  # nearly over as soon as it is given
    fetch_item(item, tmp_path / "two", service(server, item, signs=True, at_once=1), quiet=True)
    assert len(server.log("/sas")) == 10


def test_a_service_for_signatures_that_talks_rubbish_is_told_as_such(
    server: StacServer, tmp_path: Path
) -> None:
    item = offer(server, place="signed")
    server.fault("/sas", "status", status=200, body='{"hello": 1}')
    with pytest.raises(ServiceError, match="/sas/127/signed: expected a signature"):
        fetch_item(item, tmp_path, service(server, item, signs=True), quiet=True)


def test_the_service_of_an_item_is_known_by_its_links_and_hosts(server: StacServer) -> None:
    item = offer(server)
    settings = conf(server, signs=True)
    link = {"rel": "self", "href": f"{server.base}/collections/landsat/items/x"}
    assert service_for(settings, item | {"links": [link]}).name == "tests"
    assert service_for(settings, item).name == "tests"  # it signs for that host
    assert service_for(settings, item, "parts").name == "parts"
    stranger = service_for(conf(server), item)
    assert (stranger.name, stranger.sign, stranger.token) == ("127.0.0.1", None, None)


# --- items that are refused ------------------------------------------------------------------


def test_an_item_without_what_is_needed_is_refused_before_any_request(
    server: StacServer, tmp_path: Path
) -> None:
    item = offer(server)
    del item["assets"]["swir16"], item["assets"]["qa_pixel"]
    with pytest.raises(InputError, match=r"has no asset swir16, qa_pixel \(it has .*swir22"):
        fetch(server, item, tmp_path)
    assert server.log() == []


@pytest.mark.parametrize(
    ("href", "told"),
    [
        ("s3://usgs-landsat/collection02/x_SR_B4.TIF", "AWS account"),
        ("file:///etc/x_SR_B4.TIF", "is a file here"),
        ("./x_SR_B4.TIF", "relative"),
        ("ftp://example.org/x_SR_B4.TIF", "cannot be opened"),
        ("https:///x_SR_B4.TIF", "cannot be opened"),
    ],
)
def test_addresses_that_are_not_http_are_refused(
    server: StacServer, tmp_path: Path, href: str, told: str
) -> None:
    item = offer(server)
    item["assets"]["red"]["href"] = href
    with pytest.raises(InputError, match=f"asset red: only addresses of http.*{told}"):
        fetch(server, item, tmp_path)
    assert server.log() == []


def test_an_alternate_address_of_http_is_taken(server: StacServer, tmp_path: Path) -> None:
    item = offer(server)
    red = item["assets"]["red"]
    red["alternate"] = {"https": {"href": red["href"]}}
    red["href"] = f"s3://usgs-landsat/{RED}"
    folder = fetch(server, item, tmp_path)
    assert (folder / RED).exists()
    assert "alternate" not in (folder / "item.json").read_text()


@pytest.mark.parametrize(
    "name",
    ["%2e%2e", ".hidden.TIF", "item.json", "a%00b.TIF", "a%0ab.TIF", "x.sh", "", "..%5cx.TIF"],
)
def test_names_that_would_leave_the_folder_or_do_harm_are_refused(
    server: StacServer, tmp_path: Path, name: str
) -> None:
    item = offer(server)
    item["assets"]["red"]["href"] = f"{server.base}/files/{name}"
    with pytest.raises(InputError, match="asset red: "):
        fetch(server, item, tmp_path / "out")
    assert server.log() == []
    assert not (tmp_path / "out").exists()


def test_of_a_path_in_a_name_only_the_last_part_is_used(server: StacServer, tmp_path: Path) -> None:
    item = offer(server)
    asset = item["assets"]["red"]
    (server.files / "..%2F..%2Fout_SR_B4.TIF").write_bytes((server.files / OLD / RED).read_bytes())
    asset["href"] = f"{server.base}/files/..%2F..%2Fout_SR_B4.TIF"
    folder = fetch(server, item, tmp_path / "a/b")
    assert list(tmp_path.rglob("out_SR_B4.TIF")) == [folder / "out_SR_B4.TIF"]


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".x", "x\n"])
def test_an_items_id_cannot_leave_the_folder(server: StacServer, tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="becomes a folder's name"):
        fetch(server, offer(server) | {"id": name}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_assets_of_one_name_are_refused(server: StacServer, tmp_path: Path) -> None:
    item = offer(server)
    item["assets"]["red"]["href"] = item["assets"]["green"]["href"]
    with pytest.raises(InputError, match="green and red are both called"):
        fetch(server, item, tmp_path)


@pytest.mark.parametrize("to", ["file:///etc/passwd", "ftp://127.0.0.1/x"])
def test_a_redirect_to_another_scheme_is_refused(
    server: StacServer, tmp_path: Path, to: str
) -> None:
    item = offer(server)
    server.fault(RED, "redirect", to=to)
    with pytest.raises(ServiceError, match="redirects from http to"):
        fetch(server, item, tmp_path)


def test_an_ordinary_redirect_is_followed(server: StacServer, tmp_path: Path) -> None:
    item = offer(server)
    server.fault(f"/files/{OLD}/{RED}", "redirect", times=1, to=f"{{base}}/files/{OLD}/{RED}")
    assert (fetch(server, item, tmp_path) / RED).exists()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "is not JSON"),
        ("[]", "is not a STAC item"),
        ('{"type": "FeatureCollection"}', "without features"),
        ('{"type": "Feature", "id": "x", "properties": {}}', "without assets"),
        ('{"type": "Feature", "id": "x", "properties": {}, "assets": {"red": {}}}', "no address"),
    ],
)
def test_files_that_are_no_items_are_refused(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(InputError, match=rf"x\.json: .*{told}"):
        read_items(tmp_path / "x.json")


# --- disk, processes, the command ------------------------------------------------------------


def little_room() -> None:
    """No file may grow beyond 100 kB: what the system answers then is what a full disk gives."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def test_a_full_disk_is_told_in_one_line_and_the_next_call_goes_on(
    server: StacServer, tmp_path: Path
) -> None:
    item = offer(server, **BIG)
    root = catalog_project(tmp_path / "project", server, at_once=1)
    (root / "item.json").write_text(json.dumps(item))
    command = ("fetch", "item.json", "--out", "out", "--no-ingest")
    failed = glacier(root, *command, limit=little_room)
    assert failed.returncode == 1, failed.stderr
    (line,) = [line for line in failed.stderr.splitlines() if line.startswith("error:")]
    assert "no room left to write it" in line
    assert "Traceback" not in failed.stderr
    server.forget()
    done = glacier(root, *command)
    assert done.returncode == 0, done.stderr
    assert "bytes=100000-" in ranges(server, "SR_B")
    for path in (root / "out" / item["id"]).glob("*.TIF"):
        assert path.read_bytes() == (server.files / OLD / path.name).read_bytes()


def test_two_processes_do_not_write_the_same_scene(server: StacServer, tmp_path: Path) -> None:
    item = offer(server)
    work = tmp_path / f".{item['id']}.download"
    work.mkdir()
    handle = os.open(work, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(ServiceError, match="another process is fetching"):
        fetch(server, item, tmp_path)
    os.close(handle)
    assert fetch(server, item, tmp_path).is_dir()


def test_the_command_finds_fetches_and_makes_scenes_and_does_nothing_twice(
    server: StacServer, tmp_path: Path
) -> None:
    offer(server)
    root = catalog_project(tmp_path / "project", server)
    command = ("fetch", "--area", "86.6,27.8,86.9,28", "--from", "2015-01-01", "--to", "2016-01-01")
    done = glacier(root, *command, "--out", "data/raw/products")
    assert done.returncode == 0, done.stderr
    made = root / "data/raw/landsat/LC08_140041_20150710.tif"
    with rasterio.open(made) as tif:
        assert tif.descriptions[:3] == ("blue", "green", "red")
        assert np.isfinite(tif.read(3)).all()
    assert f"{made.relative_to(root)}" in done.stdout
    stamp = made.stat().st_mtime_ns
    again = glacier(root, *command, "--out", "data/raw/products")
    assert again.returncode == 0, again.stderr
    assert made.stat().st_mtime_ns == stamp
    assert len(server.log("/files")) == 10


def test_one_scene_that_cannot_be_had_does_not_keep_the_others(
    server: StacServer, tmp_path: Path
) -> None:
    good = offer(server)
    lacking = copy.deepcopy(scene("LE07_L2SP_140041_20150718_20200908_02_T1"))
    lacking["assets"]["red"]["href"] = f"{server.base}/files/nowhere.TIF"
    root = catalog_project(tmp_path / "project", server)
    collection = {"type": "FeatureCollection", "features": [lacking, good]}
    (root / "items.geojson").write_text(json.dumps(collection))
    failed = glacier(root, "fetch", "items.geojson", "--out", "out", "--no-ingest")
    assert failed.returncode == 1
    assert f"item {lacking['id']}: has no asset blue" in failed.stderr
    assert f"1 of 2 scenes were not fetched: {lacking['id']}" in failed.stderr
    assert (root / "out" / good["id"] / "item.json").exists()


def test_a_service_that_is_away_ends_the_command_before_every_scene_was_tried(
    server: StacServer, tmp_path: Path
) -> None:
    offered = offer(server)
    items = [offered | {"id": f"scene{number}"} for number in range(6)]
    root = catalog_project(tmp_path / "project", server, tries=1)
    collection = {"type": "FeatureCollection", "features": items}
    (root / "items.geojson").write_text(json.dumps(collection))
    server.fault("/files", "status", status=503)
    failed = glacier(root, "fetch", "items.geojson", "--out", "out", "--no-ingest")
    assert failed.returncode == 1
    assert "3 scenes failed one after the other" in failed.stderr
    assert sorted(path.name for path in (root / "out").iterdir()) == [
        f".scene{number}.download" for number in range(3)
    ]


def test_items_and_a_search_at_once_are_refused(server: StacServer, tmp_path: Path) -> None:
    root = catalog_project(tmp_path / "project", server)
    (root / "item.json").write_text("{}")
    refused = glacier(root, "fetch", "item.json", "--cloud", "0", "--out", "out")
    assert refused.returncode == 2
    assert "not both" in refused.stderr
