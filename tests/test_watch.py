"""New scenes are found, taken in and learned from: the deployments, on a real server and worker."""

from __future__ import annotations

import csv
import json
import re
import shutil
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from conftest import REPOSITORY, edit_yaml, ground, make_outlines
from prefect_server import Prefect, children_of, serving, wait_for
from small_catalog import offer, settings
from small_catalog import scene as item_of
from stac_server import Item, StacServer
from workspace import merge_yaml, run

from glacier_core.config import Project
from glacier_core.dataset.blocks import RECORD, read_blocks
from glacier_core.dataset.loading import Dataset
from glacier_core.landsat.learning import REVIEW_LIST
from glacier_core.landsat.quality import (
    ACCEPTED,
    REJECTED,
    TABLE,
    check_scene,
    read_table,
    write_table,
)
from glacier_core.landsat.watching import NewItem, find_new, once_each, take_in
from glacier_core.model.alone import one_at_a_time
from glacier_core.model.tracking import connect

pytestmark = pytest.mark.slow

TODAY = datetime.now(UTC).date()
AREA = "86.5,27.7,87.1,28.2"


def product(days_ago: int, processed: str = "20300101", sensor: str = "LC08") -> str:
    """Id of a product that was acquired so many days ago."""
    return f"{sensor}_L2SP_140041_{TODAY - timedelta(days=days_ago):%Y%m%d}_{processed}_02_T1"


def name_of(identity: str) -> str:
    sensor, _, place, day, *_ = identity.split("_")
    return f"{sensor}_{place}_{day}"


# --- the project -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prefect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prefect]:
    with serving(tmp_path_factory.mktemp("prefect")) as server:
        # A retraining in the midst of another test would change what that finds.
        server.heed_events(False)
        server.work()
        yield server


@dataclass
class Watched:
    """A project with one area, whose API is a server of the tests."""

    root: Path
    api: StacServer
    items: dict[str, Item] = field(default_factory=dict)

    def offer(self, identity: str, **layers: Any) -> Item:
        """Add a product to the catalogue."""
        item = offer(self.api, identity=identity, layers=layers or None)
        self.items[identity] = item
        self.api.set_items(list(self.items.values()))
        return item

    def areas(self, **apis: dict[str, Any]) -> None:
        """Watch the area at several APIs, each with some keys of its own, in this order."""
        path, usual = self.root / "conf/landsat.yaml", settings(self.api, tries=1)
        known = {name: usual["known"]["tests"] | keys for name, keys in apis.items()}
        area: dict[str, Any] = {"area": AREA, "season": None, "cloud": None}
        area |= {"path_rows": [], "sensors": []}
        edit_yaml(
            path,
            apis=usual | {"known": usual["known"] | known},
            areas={name: area | {"api": name} for name in apis},
        )

    def watch(self, prefect: Prefect, **parameters: Any) -> dict[str, Any]:
        return prefect.deployed("landsat/watch", root=str(self.root), **parameters)

    def rows(self) -> dict[str, dict[str, str]]:
        return read_table(Project(self.root))

    def image(self, identity: str) -> Path:
        return self.root / f"data/raw/landsat/{name_of(identity)}.tif"


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    root = tmp_path / "project"
    root.mkdir()
    shutil.copytree(REPOSITORY / "conf", root / "conf")
    shutil.copyfile(REPOSITORY / "params.yaml", root / "params.yaml")
    edit_yaml(root / "conf/postprocess.yaml", channels=["blue", "green", "red", "nir08", "swir16"])
    # Digital numbers by chance are no snow and no training data.
    edit_yaml(root / "params.yaml", **{"landsat.max_snow": 1.0, "landsat.max_saturated": 1.0})
    with StacServer(tmp_path / "server") as api:
        place = Watched(root, api)
        place.areas(khumbu={})
        yield place


# --- watch -----------------------------------------------------------------------------------


def test_new_scenes_are_taken_in_once_and_nothing_new_is_said_in_seconds(
    watched: Watched, prefect: Prefect
) -> None:
    clear, cloudy = product(20), product(4)
    watched.offer(clear)
    watched.offer(cloudy, QA_PIXEL=22280)
    first = watched.watch(prefect)
    assert (first["state_type"], first["state"]["message"]) == ("COMPLETED", "2 new scenes")
    with rasterio.open(watched.image(clear)) as scene:
        assert scene.descriptions[:2] == ("blue", "green")
        assert np.isfinite(scene.read(1)).all()
    rows = watched.rows()
    assert {name: row["product"] for name, row in rows.items()} == {
        name_of(clear): clear, name_of(cloudy): cloudy
    }  # fmt: skip
    assert rows[name_of(clear)]["path"] == f"data/raw/landsat/{name_of(clear)}.tif"
    verdicts = {name: row["verdict"] for name, row in rows.items()}
    assert verdicts == {name_of(clear): ACCEPTED, name_of(cloudy): REJECTED}
    shown = {row["scene"]: row for row in prefect.table("landsat-scenes", first)}
    assert {name: row["verdict"] for name, row in shown.items()} == verdicts
    assert "100 % cloud or shadow" in shown[name_of(cloudy)]["reasons"]

    table = (watched.root / TABLE).read_bytes()
    watched.api.forget()
    second = watched.watch(prefect)
    assert (second["state_type"], second["state"]["message"]) == ("COMPLETED", "nothing new")
    assert second["total_run_time"] < 20
    assert watched.api.log("/files/") == []
    assert (watched.root / TABLE).read_bytes() == table

    # A scene that is taken out of the table is looked at again, and not fetched again.
    lines = table.splitlines(keepends=True)
    kept = [line for line in lines if name_of(clear).encode() not in line]
    assert len(kept) == len(lines) - 1
    (watched.root / TABLE).write_bytes(b"".join(kept))
    assert watched.watch(prefect)["state"]["message"] == "1 new scenes"
    assert watched.api.log("/files/") == []
    assert watched.rows() == rows


def test_what_fails_fails_the_run_after_all_was_tried_and_the_next_run_finds_it(
    watched: Watched, prefect: Prefect
) -> None:
    """One API is away, one answers rubbish; of three scenes one lacks a band, one does not come."""
    good, lacking, stuck = product(3), product(9), product(15)
    watched.offer(good)
    watched.offer(stuck)
    del watched.offer(lacking)["assets"]["red"]
    watched.api.set_items(list(watched.items.values()))
    watched.api.fault(f"/files/{stuck}/.*SR_B4", "status", status=500)
    with socket.socket() as nobody:  # bound, and never listened at
        nobody.bind(("127.0.0.1", 0))
        away = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        watched.areas(away={"url": away}, rubbish={"url": f"{watched.api.base}/files"}, khumbu={})
        first = watched.watch(prefect)
    assert first["state_type"] == "FAILED"
    tasks = {name: task["state_type"] for name, task in prefect.tasks(first).items()}
    assert tasks == {
        "search away": "FAILED",
        "search rubbish": "FAILED",
        "search khumbu": "COMPLETED",
        f"take in {good}": "COMPLETED",
        f"take in {lacking}": "COMPLETED",
        f"take in {stuck}": "FAILED",
    }
    assert "away" in first["state"]["message"]
    rows = watched.rows()
    assert {name: row["verdict"] for name, row in rows.items()} == {
        name_of(good): ACCEPTED, name_of(lacking): REJECTED
    }  # fmt: skip
    assert "has no asset red" in rows[name_of(lacking)]["reasons"]
    assert rows[name_of(lacking)]["product"] == lacking
    assert len(prefect.table("landsat-scenes", first)) == 2

    watched.api.mend()
    watched.api.forget()
    watched.areas(away={}, rubbish={}, khumbu={})
    second = watched.watch(prefect)
    assert (second["state_type"], second["state"]["message"]) == ("COMPLETED", "1 new scenes")
    assert watched.rows()[name_of(stuck)]["verdict"] == ACCEPTED
    fetched = [request["path"] for request in watched.api.log("/files/")]
    assert fetched
    assert all(stuck in path for path in fetched)


def test_a_run_that_is_killed_is_gone_on_with_and_nothing_is_taken_twice(
    watched: Watched, prefect: Prefect
) -> None:
    first, second = product(30), product(12)
    watched.offer(first)
    watched.offer(second)
    watched.api.fault(f"/files/{second}/.*SR_B4", "slow", seconds=600, times=1)
    made = prefect.begin("landsat/watch", root=str(watched.root))
    # The first is in the table, and the second under way.
    wait_for(lambda: watched.api.log(f"/files/{second}/.*SR_B4"), "the second scene")
    assert set(watched.rows()) == {name_of(first)}
    [process] = children_of(prefect.started[-1], "prefect.engine")
    process.kill()
    assert prefect.ended(made)["state_type"] == "CRASHED"
    before = watched.image(first).stat().st_mtime_ns
    watched.api.forget()
    again = watched.watch(prefect)
    assert (again["state_type"], again["state"]["message"]) == ("COMPLETED", "1 new scenes")
    assert set(watched.rows()) == {name_of(first), name_of(second)}
    assert watched.api.log(f"/files/{first}/") == []
    assert watched.image(first).stat().st_mtime_ns == before
    assert not list((watched.root / "data/raw").rglob(".*"))


def test_runs_that_are_late_come_one_by_one_and_take_nothing_twice(
    watched: Watched, prefect: Prefect
) -> None:
    """As they lie there when a worker comes back, or a clock was put right, after three nights."""
    new = product(5)
    watched.offer(new)
    nights = [datetime.now(UTC) - timedelta(days=days) for days in (3, 2, 1)]
    made = [prefect.begin("landsat/watch", due=night, root=str(watched.root)) for night in nights]
    ended = sorted((prefect.ended(run) for run in made), key=lambda run: run["start_time"])
    assert [run["state_type"] for run in ended] == ["COMPLETED"] * 3
    said = [run["state"]["message"] for run in ended]
    assert said == ["1 new scenes", "nothing new", "nothing new"]
    for before, after in pairwise(ended):
        assert before["end_time"] <= after["start_time"]
    fetched = [request["path"] for request in watched.api.log(f"/files/{new}/")]
    assert fetched
    assert len(fetched) == len(set(fetched))
    assert set(watched.rows()) == {name_of(new)}


def test_settings_that_cannot_be_used_fail_the_run_and_reject_no_scene(
    watched: Watched, prefect: Prefect
) -> None:
    watched.offer(product(3))
    edit_yaml(watched.root / "conf/landsat.yaml", dem_path="data/raw/dem")
    failed = watched.watch(prefect)
    assert failed["state_type"] == "FAILED"
    assert "data/raw/dem: no such DEM" in failed["state"]["message"]
    assert {task["run_count"] for task in prefect.tasks(failed).values()} == {1}
    assert watched.rows() == {}
    unknown = watched.watch(prefect, areas=["nowhere"])
    assert unknown["state_type"] == "FAILED"
    assert "no area 'nowhere'; there are khumbu" in unknown["state"]["message"]
    edit_yaml(watched.root / "conf/landsat.yaml", dem_path=None, areas={})
    assert "names no areas" in watched.watch(prefect)["state"]["message"]


def take_all(watched: Watched, today: date = TODAY, area: str = "khumbu") -> list[str]:
    """What the flow does with an area, by this clock; names of the scenes taken in."""
    project = Project(watched.root)
    return [take_in(project, new).scene for new in find_new(project, area, today=today, days=60)]


def test_a_clock_that_jumps_loses_nothing_and_takes_nothing_twice(watched: Watched) -> None:
    names = {}
    for days in (2, 25, 59, 61):
        watched.offer(product(days))
        names[days] = name_of(product(days))
    assert take_all(watched, TODAY + timedelta(days=400)) == []
    assert take_all(watched, TODAY - timedelta(days=20)) == [names[61], names[59], names[25]]
    assert take_all(watched, TODAY - timedelta(days=20)) == []
    assert take_all(watched, TODAY) == [names[2]]
    assert take_all(watched, TODAY + timedelta(days=1)) == []
    assert set(watched.rows()) == set(names.values())


def test_days_without_a_run_are_caught_up_with(watched: Watched) -> None:
    assert take_all(watched, TODAY - timedelta(days=50)) == []
    watched.offer(product(48))
    watched.offer(product(1))
    assert take_all(watched) == [name_of(product(48)), name_of(product(1))]


def test_a_scene_that_usgs_processed_anew_replaces_the_old_and_an_old_one_nothing(
    watched: Watched,
) -> None:
    old, new = product(10, "20300101"), product(10, "20300202")
    watched.offer(old, blue=10_000)
    assert take_all(watched) == [name_of(old)]
    before = watched.image(old).read_bytes()
    watched.items = {}
    watched.offer(new, blue=20_000)
    assert take_all(watched) == [name_of(new)]
    [row] = watched.rows().values()
    assert row["product"] == new
    with rasterio.open(watched.image(new)) as scene:
        assert scene.tags()["LANDSAT_PRODUCT_ID"] == new
    after = watched.image(new).read_bytes()
    assert after != before
    # Another API is behind, and still has the old one.
    watched.items = {}
    watched.offer(old, blue=10_000)
    assert take_all(watched) == []
    assert watched.image(new).read_bytes() == after


def test_a_rejected_scene_that_comes_anew_replaces_its_row(watched: Watched) -> None:
    old, new = product(10, "20300101"), product(10, "20300202")
    del watched.offer(old)["assets"]["red"]
    watched.api.set_items(list(watched.items.values()))
    assert take_all(watched) == [name_of(old)]
    assert watched.rows()[name_of(old)]["verdict"] == REJECTED
    watched.offer(new)
    assert take_all(watched) == [name_of(new)]
    assert {name: row["verdict"] for name, row in watched.rows().items()} == {
        name_of(new): ACCEPTED
    }


def test_of_two_areas_with_one_scene_the_newest_version_is_taken_once() -> None:
    old, new = product(10, "20300101"), product(10, "20300202")
    found = [NewItem("a", item_of(old)), NewItem("b", item_of(new)), NewItem("c", item_of(old))]
    for items in (found, found[::-1]):
        [one] = once_each([*items, NewItem("a", item_of(product(11)))])[:1]
        assert (one.scene, one.product, one.area) == (name_of(new), new, "b")
    real_time = old.replace("_T1", "_RT")
    [one] = once_each([NewItem("a", item_of(real_time)), NewItem("b", item_of(old))])
    assert one.product == old


# --- retrain ---------------------------------------------------------------------------------

FINDS_ICE = {"epochs": 10, "patience": 10, "crops_per_slice": 4, "learning_rate": 0.01,
             "dropout": 0.0, "warmup_epochs": 0}  # fmt: skip
LABELLED, UNLABELLED = "LE07_SIM01_20111106", "LE07_SIM02_20200101"


def accept(root: Path, source: str, name: str) -> None:
    """Enter a simulated scene that is not configured as an accepted one."""
    path = root / f"data/raw/landsat/{name}.tif"
    path.parent.mkdir(exist_ok=True)
    shutil.copyfile(root / f"data/raw/demo/scenes/{source}.tif", path)
    looked = check_scene(Project(root), path, product=name)
    write_table(Project(root), [replace(looked, verdict=ACCEPTED)])


def judged(root: Path) -> set[tuple[str, int]]:
    return {(s.scene, s.k) for s in Dataset.open(root / "data/dataset").splits["test"]}


def listed(root: Path) -> list[dict[str, str]]:
    with (root / REVIEW_LIST).open(newline="") as file:
        return list(csv.DictReader(file))


def versions(root: Path) -> set[str]:
    client = connect(Project(root))
    return {str(found.version) for found in client.search_model_versions()}


@pytest.fixture(scope="module")
def trained(prefect: Prefect) -> dict[str, Any]:
    """The first retraining, in a folder where nothing was trained and no block is recorded."""
    assert read_blocks(prefect.folder / RECORD) == {}
    return prefect.deployed("glacier/retrain")


def test_the_first_retraining_trains_the_champion_and_the_second_says_nothing_new(
    prefect: Prefect, trained: dict[str, Any]
) -> None:
    assert trained["state_type"] == "COMPLETED"
    assert "champion; champion is version 1" in trained["state"]["message"]
    again = prefect.deployed("glacier/retrain")
    assert again["state_type"] == "COMPLETED"
    assert again["state"]["message"] == "nothing new to learn from"
    assert again["total_run_time"] < 60
    assert versions(prefect.folder) == {"1"}


def test_a_look_starts_one_retraining_if_it_accepted_scenes_and_none_if_not(
    watched: Watched, prefect: Prefect, trained: dict[str, Any]
) -> None:
    assert trained["state_type"] == "COMPLETED"
    before = set(prefect.runs("glacier/retrain"))
    prefect.heed_events(True)
    try:
        watched.offer(product(4), QA_PIXEL=22280)
        assert watched.watch(prefect)["state"]["message"] == "1 new scenes"
        # Time enough for the next, which counts runs that came late too.
        watched.offer(product(20))
        watched.offer(product(36))
        watched.api.fault(f"/files/{product(50)}/", "status", status=500)
        watched.offer(product(50))
        looked = watched.watch(prefect)
        assert looked["state_type"] == "FAILED"  # one did not come, which hinders no other
        wait_for(lambda: set(prefect.runs("glacier/retrain")) - before, "the retraining")
        time.sleep(10)
        [started] = set(prefect.runs("glacier/retrain")) - before
    finally:
        prefect.heed_events(False)
    assert {row["verdict"] for row in watched.rows().values()} == {ACCEPTED, REJECTED}
    done = prefect.ended(started)
    assert (done["state_type"], done["state"]["message"]) == (
        "COMPLETED", "nothing new to learn from"
    )  # fmt: skip
    assert done["created_by"]["type"] == "AUTOMATION"
    events = prefect.ask(
        "/events/filter", filter={"event": {"name": ["glacier.scene.added"]}}, limit=50
    )["events"]
    said = [
        event["payload"]["scenes"]
        for event in events
        if event["resource"]["prefect.resource.name"] == str(watched.root.resolve())
    ]
    assert said == [[name_of(product(36)), name_of(product(20))]]


def test_a_scene_with_labels_is_learned_from_and_one_without_waits_for_review(
    prefect: Prefect, trained: dict[str, Any]
) -> None:
    assert trained["state_type"] == "COMPLETED"
    root = prefect.folder
    assert read_blocks(root / RECORD) == {}
    before = judged(root)
    accept(root, "LE07_SIM01_20101106", LABELLED)
    accept(root, "LE07_SIM02_20101106", UNLABELLED)
    done = prefect.deployed("glacier/retrain")
    assert done["state_type"] == "COMPLETED", done["state"]["message"]
    # The blocks of before are recorded first, so that the comparison below is one.
    blocks = read_blocks(root / RECORD)
    assert {block.split for block in blocks.values()} == {"train", "dev", "test"}
    assert {pair for pair in judged(root) if pair[0] != LABELLED} == before
    assert re.match(r"models:/glacier-unet/2: (kept|promoted); champion is version [12]$",
                    done["state"]["message"])  # fmt: skip
    scenes = Project(root).masking.scenes
    assert scenes[LABELLED].date == "2011-11-06"
    assert UNLABELLED not in scenes
    assert (root / f"data/masks/{LABELLED}/mask_metadata.csv").is_file()
    tags = connect(Project(root)).get_model_version("glacier-unet", "2").tags
    assert tags["glacier.promotion"] in done["state"]["message"]
    assert tags["glacier.promotion.against"] == "1"
    assert "trained on" not in tags["glacier.promotion.warnings"]
    assert tags["glacier.self_training"] == "false"

    with (root / REVIEW_LIST).open(newline="") as file:
        [row] = csv.DictReader(file)
    assert (row["scene"], row["date"]) == (UNLABELLED, "2020-01-01")
    about = json.loads((root / row["map"] / "map.json").read_text())
    assert about["models"] == ["models:/glacier-unet/1"]
    assert (root / row["outlines"]).is_dir()
    assert (root / row["report"]).is_file()
    assert prefect.table("landsat-review", done) == [row]

    again = prefect.deployed("glacier/retrain")
    assert again["state"]["message"] == "nothing new to learn from"
    assert versions(root) == {"1", "2"}


def test_of_a_training_and_a_retraining_at_once_one_waits_for_the_other(
    prefect: Prefect, trained: dict[str, Any]
) -> None:
    assert trained["state_type"] == "COMPLETED"
    before = versions(prefect.folder)
    edit_yaml(prefect.folder / "params.yaml", **{"train.learning_rate": 0.003})
    made = [prefect.begin(f"glacier/{name}") for name in ("train", "retrain")]
    ended = [prefect.ended(run) for run in made]
    assert [run["state_type"] for run in ended] == ["COMPLETED"] * 2, ended
    waited = [[line for line in prefect.said(run) if "waiting up to" in line] for run in made]
    assert sum(map(len, waited)) == 1, waited
    assert "for a training by" in str(waited) or "for a retraining by" in str(waited)
    # One model, which whoever was second found.
    assert len(versions(prefect.folder) - before) == 1
    assert not list((prefect.folder / "data").glob("training.json"))


def test_a_challenger_that_a_killed_run_left_is_compared_by_the_next(
    prefect: Prefect, trained: dict[str, Any]
) -> None:
    assert trained["state_type"] == "COMPLETED"
    client = connect(Project(prefect.folder))
    model = client.get_registered_model("glacier-unet")
    waiting = max(versions(prefect.folder) - {str(model.aliases["champion"])}, default=None)
    if waiting is None:  # this test alone: the run of the champion stands for another's
        run_id = client.get_model_version("glacier-unet", "1").run_id
        source = client.get_model_version("glacier-unet", "1").source
        waiting = str(client.create_model_version("glacier-unet", source, run_id).version)
    client.set_registered_model_alias("glacier-unet", "challenger", waiting)
    if "glacier.promotion" in client.get_model_version("glacier-unet", waiting).tags:
        client.delete_model_version_tag("glacier-unet", waiting, "glacier.promotion")
    done = prefect.deployed("glacier/retrain")
    assert done["state_type"] == "COMPLETED", done["state"]["message"]
    assert done["state"]["message"].startswith(
        "nothing new to learn from, but a challenger to compare: "
    )
    assert "glacier.promotion" in client.get_model_version("glacier-unet", waiting).tags


def test_switched_on_the_model_teaches_itself_and_says_so_until_people_look(
    prefect: Prefect, trained: dict[str, Any]
) -> None:
    assert trained["state_type"] == "COMPLETED"
    root, place = prefect.folder, f"data/predicted/{UNLABELLED}.tif"
    accept(root, "LE07_SIM02_20101106", UNLABELLED)
    edit_yaml(root / "conf/landsat.yaml", self_training=True)
    edit_yaml(root / "params.yaml", **{"landsat.self_training_confidence": 1.0})
    unsure = prefect.deployed("glacier/retrain")
    assert unsure["state_type"] == "COMPLETED", unsure["state"]["message"]
    assert UNLABELLED not in Project(root).masking.scenes
    [row] = listed(root)
    assert "no review; not labelled by the model: the model is nowhere sure" in row["why"]

    # A champion that finds ice, which two epochs do not give.
    merge_yaml(root / "params.yaml", {"train": FINDS_ICE})
    run(root, "dvc", "repro", "register")
    run(root, "glacier", "promote", "--force", "to label with")
    client = connect(Project(root))
    champion = str(client.get_registered_model("glacier-unet").aliases["champion"])
    edit_yaml(root / "params.yaml", **{"landsat.self_training_confidence": 0.5})
    done = prefect.deployed("glacier/retrain")
    assert done["state_type"] == "COMPLETED", done["state"]["message"]
    assert Project(root).masking.scenes[UNLABELLED].border_path is None
    assert (root / f"{place}.dvc").is_file()
    by = f"models:/glacier-unet/{champion} >= 0.5"
    dataset = Dataset.open(root / "data/dataset")
    assert dataset.scenes[UNLABELLED].predicted == by
    assert UNLABELLED not in {s.scene for k in ("dev", "test") for s in dataset.splits[k]}
    why = f"labelled by the model alone: glacier-unet version {champion} at confidence >= 0.5"
    [row] = listed(root)
    assert (row["scene"], row["why"]) == (UNLABELLED, why)
    assert (root / row["report"]).is_file()
    assert dataset.predicted_by() == {UNLABELLED: by}, "the ground of SIM02 trains"
    assert 0 < dataset.predicted_share < 0.5
    tags = client.get_model_version("glacier-unet", max(versions(root), key=int)).tags
    assert tags["glacier.self_training"] == "true"
    assert tags["glacier.self_training.by"] == by
    assert tags["glacier.self_training.share"] == f"{dataset.predicted_share:.6f}"
    assert "learned from labels that a model made" in tags["glacier.promotion.warnings"]
    again = prefect.deployed("glacier/retrain")
    assert again["state"]["message"] == "nothing new to learn from"
    assert [row["why"] for row in listed(root)] == [why]

    # Then somebody looks at it.
    with rasterio.open(root / f"data/raw/landsat/{UNLABELLED}.tif") as scene:
        drawn = ground(scene.transform, (60, 60, 120, 120))
        make_outlines(root / "data/w.gpkg", [drawn], crs=scene.crs, **{"class": ["clean_ice"]})
    told = run(root, "glacier", "-q", "review", "import", "data/w.gpkg", "--scene", UNLABELLED,
               "--author", "A", "--whole")  # fmt: skip
    assert f"{place}, what a model said of the scene, is gone" in told
    assert not list((root / "data/predicted").glob("*.tif*"))
    last = prefect.deployed("glacier/retrain")
    assert last["state_type"] == "COMPLETED", last["state"]["message"]
    assert listed(root) == []
    dataset = Dataset.open(root / "data/dataset")
    assert (dataset.scenes[UNLABELLED].predicted, dataset.predicted_share) == (None, 0.0)
    tags = client.get_model_version("glacier-unet", max(versions(root), key=int)).tags
    assert tags["glacier.self_training"] == "false"
    assert "trained on" not in tags["glacier.promotion.warnings"]


def test_a_scene_whose_file_is_gone_fails_the_run_after_the_others(
    prefect: Prefect, trained: dict[str, Any]
) -> None:
    assert trained["state_type"] == "COMPLETED"
    name = "LE07_SIM03_20100101"
    accept(prefect.folder, "LE07_SIM03_20101106", name)
    (prefect.folder / f"data/raw/landsat/{name}.tif").unlink()
    done = prefect.deployed("glacier/retrain")
    assert done["state_type"] == "FAILED"
    assert f"{name}.tif: cannot be opened" in done["state"]["message"]
    states = {key: task["state_type"] for key, task in prefect.tasks(done).items()}
    assert states[f"labels of {name}"] == "FAILED"


def test_a_second_retraining_says_why_it_does_not_run(prefect: Prefect) -> None:
    with one_at_a_time(Project(prefect.folder), "training", 0):
        done = prefect.deployed("glacier/retrain", wait=1)
    assert done["state_type"] == "FAILED"
    assert "a training by" in done["state"]["message"]
