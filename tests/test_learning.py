"""What a new scene is learned from, and whether there is anything new to learn at all."""

from __future__ import annotations

import csv
import re
import shutil
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from conftest import (
    CORNER,
    edit_yaml,
    ground,
    likely_values,
    make_outlines,
    make_scene,
    north_up,
    set_scenes,
)
from workspace import merge_yaml, run, small_workspace

from glacier_core.cli import main
from glacier_core.config import Project
from glacier_core.errors import InputError
from glacier_core.landsat.learning import (
    REVIEW_LIST,
    candidates,
    is_undecided,
    is_up_to_date,
    labels_for,
    learn_from,
    write_review_list,
)
from glacier_core.landsat.quality import ACCEPTED, REJECTED, REVIEW, Quality, write_table
from glacier_core.raster.bands import ETM_STACK
from glacier_core.settings import SceneConf

NEW = "LE07_140041_20011025"
KNOWN = "LE07_SITE0_20001025"


def scene(project: Project, name: str = NEW, *, place: float = 0) -> Path:
    """A new scene on the ground of a configured one."""
    values = likely_values(ETM_STACK, (64, 64), seed=7)
    path = project.root / f"data/raw/landsat/{name}.tif"
    return make_scene(
        path, values=values, transform=north_up(CORNER[0] + 60_000 * place), nodata=float("nan")
    )


def enter(project: Project, name: str = NEW, verdict: str = ACCEPTED, day: str | None = "") -> None:
    """Make a scene and enter it into quality.csv."""
    path = scene(project, name).relative_to(project.root).as_posix()
    day = "-".join((name[-8:-4], name[-4:-2], name[-2:])) if day == "" else day
    reasons = [] if verdict == ACCEPTED else ["too much snow"]
    write_table(
        project, [Quality(name, name, path, day, verdict, reasons, 0, 0, 0.0, 0, {})]
    )  # fmt: skip


def conf_of(project: Project) -> dict[str, dict[str, object]]:
    content = yaml.safe_load(project.masking_path.read_text())["scenes"]
    assert isinstance(content, dict)
    return content


# --- which scenes, which labels --------------------------------------------------------------


def test_candidates_are_accepted_and_not_configured(project: Project) -> None:
    assert candidates(project) == []
    enter(project, "LE07_B_20010101")
    enter(project, "LE07_A_20010101")
    enter(project, "LE07_C_20010101", REVIEW)
    enter(project, "LE07_D_20010101", REJECTED)
    enter(project, KNOWN)
    found = candidates(project)
    assert [row["scene"] for row in found] == ["LE07_A_20010101", "LE07_B_20010101"]
    assert (project.root / found[0]["path"]).is_file()


@pytest.mark.parametrize(
    ("year", "labelled"), [(1997, False), (1998, True), (2002, True), (2003, False)]
)
def test_an_inventory_labels_scenes_within_the_year_tolerance(
    project: Project, year: int, labelled: bool
) -> None:
    found = labels_for(project, scene(project), date(year, 10, 25))
    assert (found is not None) == labelled
    if found is not None:
        known = project.scene(KNOWN)
        assert found.mask_paths == known.mask_paths
        assert found.year_field == "year"
        assert (found.img_path, found.date) == (f"data/raw/landsat/{NEW}.tif", f"{year}-10-25")


def test_a_scene_without_a_date_has_no_labels(project: Project) -> None:
    assert labels_for(project, scene(project), None) is None


def test_a_scene_elsewhere_has_no_labels(project: Project) -> None:
    assert labels_for(project, scene(project, place=-5), date(2000, 10, 25)) is None


def test_the_set_with_most_polygons_of_the_time_of_the_scene_is_taken(project: Project) -> None:
    folder, here = project.root / "data/raw/outlines", north_up()
    boxes = [ground(here, (4 * k, 0, 4 * k + 3, 8)) for k in range(5)]
    make_outlines(folder / "three.shp", boxes[:3], year=[2001, 2001, 2001])
    # More polygons in all, but three are of another time, and one of none.
    make_outlines(folder / "five.shp", boxes, year=[2001, 1990, 1990, 1990, 0])
    make_outlines(folder / "undated.shp", boxes)
    sets = {
        f"LE07_{name}_20001025": {
            "img_path": f"data/raw/scenes/{KNOWN}.tif",
            "mask_paths": dict.fromkeys(("clean_ice", "debris"), f"data/raw/outlines/{name}.shp"),
            "year_field": None if name == "undated" else "year",
        }
        for name in ("five", "three", "undated")
    }
    set_scenes(project.root, sets)
    found = labels_for(Project(project.root), scene(project), date(2001, 10, 25))
    assert found is not None
    assert found.mask_paths["debris"] == "data/raw/outlines/three.shp"


def test_polygons_and_sets_without_years_are_no_labels_of_any_time(project: Project) -> None:
    folder = project.root / "data/raw/outlines"
    for file in ("clean_ice.shp", "debris.gpkg"):
        make_outlines(folder / file, [ground(north_up(), (0, 0, 40, 40))], year=[0])
    assert labels_for(project, scene(project), date(2000, 10, 25)) is None
    edit_yaml(project.masking_path, **{f"scenes.{KNOWN}.year_field": None})
    assert labels_for(Project(project.root), scene(project), date(2000, 10, 25)) is None


def test_an_inventory_that_cannot_be_read_hinders_no_other(project: Project) -> None:
    (project.root / "data/raw/outlines/debris.gpkg").write_bytes(b"")
    found = labels_for(project, scene(project), date(2000, 10, 25))
    assert found is not None
    assert found.date == "2000-10-25"


# --- conf/masking_paths.yaml -----------------------------------------------------------------


def test_new_scenes_join_the_configured_ones_under_the_comment(project: Project) -> None:
    path = project.masking_path
    path.write_text("# of people\n# for people\n" + path.read_text())
    before = conf_of(project)
    found = labels_for(project, scene(project), date(2001, 10, 25))
    assert found is not None
    learn_from(project, {NEW: found})
    assert path.read_text().startswith("# of people\n# for people\nsimulated:")
    after = Project(project.root).masking.scenes
    assert after[NEW] == found
    assert {name: conf for name, conf in conf_of(project).items() if name != NEW} == before
    assert list(after)[-1] == NEW


def test_what_is_configured_already_stays_byte_for_byte(project: Project) -> None:
    path, known = project.masking_path, project.scene(KNOWN)
    path.write_text(path.read_text() + "# a note at the end\n")
    before = path.read_bytes()
    learn_from(project, {KNOWN: known.model_copy(update={"date": "1999-01-01"})})
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("LE07 X", {}, "scene 'LE07 X': use letters"),
        (NEW, {"mask_paths": {"debris": "data/raw/outlines/debris.gpkg"}}, "one vector file a class"),
        (NEW, {"border_path": "elsewhere/b.shp"}, "lies outside outlines_dir"),
    ],
)  # fmt: skip
def test_what_would_not_hold_together_is_refused_and_nothing_written(
    project: Project, name: str, change: dict[str, object], message: str
) -> None:
    before = project.masking_path.read_bytes()
    wrong = SceneConf.model_construct(**(project.scene(KNOWN).model_dump() | change))
    with pytest.raises(InputError, match=re.escape(message)):
        learn_from(project, {name: wrong})
    assert project.masking_path.read_bytes() == before


def test_the_review_list_is_written_anew_and_may_be_empty(project: Project) -> None:
    row = {"scene": NEW, "date": "2001-10-25", "why": "w", "map": "", "outlines": "", "report": ""}
    for rows in ([row], []):
        path = write_review_list(project, rows)
        assert path == project.root / REVIEW_LIST
        with path.open(newline="") as file:
            assert list(csv.DictReader(file)) == rows


# --- a review of a scene that is not configured yet ------------------------------------------

UNLABELLED = "LE07_140041_20101106"


def review(project: Project, *options: str, scene: str = UNLABELLED, code: int = 0) -> str:
    """`glacier review import` of ice on rows and columns 0 to 20; what it says."""
    shape = ground(north_up(), (0, 0, 20, 20))
    make_outlines(project.root / "drawn.gpkg", [shape], **{"class": ["clean_ice"]})
    words = ["review", "import", "drawn.gpkg", "--scene", scene, "--author", "A", *options]
    done = CliRunner().invoke(main, ["-q", *words])
    assert done.exit_code == code, done.output + repr(done.exception)
    return done.output


@pytest.fixture
def here(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.chdir(project.root)
    return project


def test_a_whole_review_brings_a_scene_of_the_list_in_with_its_labels_alone(here: Project) -> None:
    enter(here, UNLABELLED)
    assert "the scene is now in conf/masking_paths.yaml" in review(here, "--whole")
    configured = Project(here.root).scene(UNLABELLED)
    assert (configured.date, configured.border_path) == ("2010-11-06", None)
    assert configured.img_path == f"data/raw/landsat/{UNLABELLED}.tif"
    assert candidates(Project(here.root)) == []
    done = CliRunner().invoke(main, ["-q", "mask", "--scene", UNLABELLED])
    assert done.exit_code == 0, done.output
    mask = np.load(here.root / f"data/masks/{UNLABELLED}/mask_{UNLABELLED}.npy")
    expected = np.zeros((64, 64, 2), dtype=np.uint8)
    expected[:20, :20, 0] = 1
    np.testing.assert_array_equal(mask, expected)
    assert "is there already" in review(here, "--whole")


def test_a_scene_that_needs_review_may_be_reviewed(here: Project) -> None:
    enter(here, UNLABELLED, REVIEW)
    review(here, "--whole")
    assert UNLABELLED in conf_of(here)


def test_where_an_inventory_is_of_its_time_part_of_a_scene_may_be_reviewed(here: Project) -> None:
    enter(here, NEW)
    review(here, scene=NEW)
    assert Project(here.root).scene(NEW).mask_paths == here.scene(KNOWN).mask_paths
    assert CliRunner().invoke(main, ["-q", "mask", "--scene", NEW]).exit_code == 0
    mask = np.load(here.root / f"data/masks/{NEW}/mask_{NEW}.npy")
    assert mask[0, 0].tolist() == [1, 0]  # by the review
    assert mask[50, 20].tolist() == [0, 1]  # by the inventory


def _part(project: Project) -> list[str]:
    enter(project, UNLABELLED)
    return []


def _rejected(project: Project) -> list[str]:
    enter(project, UNLABELLED, REJECTED)
    return ["--whole"]


def _undated(project: Project) -> list[str]:
    enter(project, UNLABELLED, REVIEW, day=None)
    return ["--whole"]


def _without_years(project: Project) -> list[str]:
    enter(project, UNLABELLED)
    for name in conf_of(project):
        edit_yaml(project.masking_path, **{f"scenes.{name}.year_field": None})
    return ["--whole"]


def _unknown(project: Project) -> list[str]:
    enter(project, NEW)
    return ["--whole"]


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (_part, "no inventory says what is ice on it.*give --whole"),
        (_rejected, r"quality\.csv: scene LE07_140041_20101106 cannot be.*too much snow"),
        (_undated, "cannot be learned from: too much snow"),
        (_without_years, r"masking_paths\.yaml: no scene has a year_field"),
        (_unknown, r"masking_paths\.yaml: no scene 'LE07_140041_20101106'"),
    ],
)
def test_a_review_that_cannot_stand_alone_is_refused_and_changes_nothing(
    here: Project, prepare: object, message: str
) -> None:
    assert callable(prepare)
    options = prepare(here)
    before = here.masking_path.read_bytes()
    told = review(here, *options, code=2)
    assert re.search(message, told), told
    assert here.masking_path.read_bytes() == before
    assert not (here.root / "data/reviews").exists()


# --- is there anything new -------------------------------------------------------------------


def test_without_a_registered_model_nothing_is_undecided(project: Project) -> None:
    assert not is_undecided(project)


@pytest.mark.slow
def test_what_is_new_is_what_a_stage_would_do_again(tmp_path: Path) -> None:
    folder = small_workspace(tmp_path / "work")
    assert not is_up_to_date(Project(folder))
    run(folder, "dvc", "repro", "register")
    assert is_up_to_date(Project(folder))

    name = "LE07_SIM02_20111106"
    (folder / "data/new").mkdir()
    image = folder / f"data/new/{name}.tif"
    shutil.copy(folder / "data/raw/demo/scenes/LE07_SIM02_20101106.tif", image)
    run(folder, "dvc", "add", str(image.parent))
    (image.parent / "fetched.tif").write_bytes(b"not used")
    assert is_up_to_date(Project(folder)), "what was only fetched is not new"

    # A new scene, a review, a setting.
    project = Project(folder)
    found = labels_for(project, image, date(2011, 11, 6))
    assert found is not None
    before = project.masking_path.read_bytes()
    learn_from(project, {name: found})
    assert not is_up_to_date(Project(folder))
    project.masking_path.write_bytes(before)
    assert is_up_to_date(Project(folder))

    params = (folder / "params.yaml").read_bytes()
    merge_yaml(folder / "params.yaml", {"train": {"learning_rate": 0.001}})
    assert not is_up_to_date(Project(folder))
    (folder / "params.yaml").write_bytes(params)
    merge_yaml(folder / "params.yaml", {"landsat": {"max_snow": 0.9}})
    assert is_up_to_date(Project(folder)), "what no stage reads is not new"

    import rasterio

    known = next(iter(project.masking.scenes.values()))
    with rasterio.open(folder / known.img_path) as source:
        wrong = ground(source.transform, (5, 5, 40, 40))
        make_outlines(folder / "data/w.gpkg", [wrong], crs=source.crs, **{"class": ["debris"]})
    run(folder, "glacier", "-q", "review", "import", "data/w.gpkg", "--scene",
        next(iter(project.masking.scenes)), "--author", "A")  # fmt: skip
    assert not is_up_to_date(Project(folder))


def test_a_project_that_dvc_cannot_read_is_refused(project: Project) -> None:
    with pytest.raises(InputError, match="dvc status: ERROR"):
        is_up_to_date(project)
