"""`glacier configure` writes a masking_paths.yaml that works, or says why it cannot."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from conftest import copy_settings, glacier, ground, make_outlines, make_scene, north_up

from glacier_core.cli import main
from glacier_core.config import Project
from glacier_core.errors import InputError
from glacier_core.labels.masking import mask_scene
from glacier_core.raster.bands import ETM_STACK, band_names
from glacier_core.raster.scene import date_in, find_scenes

ICE = ["--outlines", "clean_ice=outlines/clean.shp", "--outlines", "debris=outlines/debris.gpkg"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's folder, entered, with two scenes and outlines but no scenes configured."""
    copy_settings(tmp_path)
    (tmp_path / "conf/masking_paths.yaml").unlink()
    for day in ("20001025", "20101106"):
        make_scene(tmp_path / f"landsat/LE07_140041_{day}.tif")
    add_outlines(tmp_path / "outlines")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def add_outlines(place: Path) -> None:
    shape = ground(north_up(), (8, 8, 40, 40))
    for name in ("clean.shp", "debris.gpkg", "border.shp"):
        make_outlines(place / name, [shape], YEAR=[2000])


def configure(*arguments: str) -> None:
    main(["configure", *arguments], prog_name="glacier", standalone_mode=False)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line with which the command line refuses these arguments."""
    with pytest.raises(SystemExit) as stopped:
        configure(*arguments)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


def written(folder: Path) -> dict[str, object]:
    content = yaml.safe_load((folder / "conf/masking_paths.yaml").read_text())
    assert isinstance(content, dict)
    return content


# --- what is written -------------------------------------------------------------------------


def test_a_folder_of_scenes_becomes_a_configuration_that_masks(folder: Path) -> None:
    configure("landsat", *ICE, "--border", "outlines/border.shp", "--year-field", "YEAR")
    entry = {
        "mask_paths": {"clean_ice": "outlines/clean.shp", "debris": "outlines/debris.gpkg"},
        "border_path": "outlines/border.shp",
        "year_field": "YEAR",
    }
    assert written(folder) == {
        "simulated": {},
        "outlines_dir": "outlines",
        "classes": ["clean_ice", "debris"],
        "bands": None,
        "scenes": {
            "LE07_140041_20001025": {
                "img_path": "landsat/LE07_140041_20001025.tif",
                **entry,
                "date": "2000-10-25",
            },
            "LE07_140041_20101106": {
                "img_path": "landsat/LE07_140041_20101106.tif",
                **entry,
                "date": "2010-11-06",
            },
        },
    }
    project = Project(folder)
    rows = [mask_scene(project, name) for name in project.masking.scenes]
    assert [row["clean_ice_burned"] for row in rows] == [1, 0]


def test_the_real_command_says_what_it_wrote_and_what_is_next(folder: Path) -> None:
    done = glacier(folder, "configure", "landsat/*.tif", *ICE, "--year-field", "YEAR")
    assert done.returncode == 0, done.stderr
    assert "conf/masking_paths.yaml: 2 scenes, classes ['clean_ice', 'debris']" in done.stdout
    assert "dvc repro" in done.stdout
    head = (folder / "conf/masking_paths.yaml").read_text().splitlines()[0]
    assert head.startswith("# Which scenes")


def test_a_given_date_counts_and_scenes_without_one_are_counted(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_scene(folder / "other/tile.tif")
    configure("other", *ICE)
    assert "1 scenes have no date in their name" in capsys.readouterr().out
    configure("other", *ICE, "--date", "1999-08-01")
    assert Project(folder).scene("tile").date == "1999-08-01"


def test_unnamed_bands_are_named_once_for_all_scenes(folder: Path) -> None:
    make_scene(folder / "plain/a_20000101.tif", bands=[None] * 15, values=1)
    configure("plain", *ICE, "--bands", "etm15")
    assert Project(folder).masking.bands == ETM_STACK


def test_files_elsewhere_keep_their_full_path(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("archive")
    make_scene(elsewhere / "scenes/LE07_20020101.tif")
    add_outlines(elsewhere / "outlines")
    configure(
        f"{elsewhere}/scenes",
        "--outlines",
        f"clean_ice={elsewhere}/outlines/clean.shp",
        "--outlines",
        f"debris={folder}/outlines/debris.gpkg".replace(str(folder), str(elsewhere)),
    )
    project = Project(folder)
    assert project.scene("LE07_20020101").img_path == f"{elsewhere}/scenes/LE07_20020101.tif"
    assert project.masking.outlines_dir == f"{elsewhere}/outlines"
    assert mask_scene(project, "LE07_20020101")["clean_ice_burned"] == 1


def test_absolute_paths_into_the_project_become_relative(folder: Path) -> None:
    configure(
        f"{folder}/landsat",
        "--outlines",
        f"clean_ice={folder}/outlines/clean.shp",
    )
    scene = Project(folder).scene("LE07_140041_20001025")
    assert scene.img_path == "landsat/LE07_140041_20001025.tif"
    assert scene.mask_paths == {"clean_ice": "outlines/clean.shp"}


# --- adding ----------------------------------------------------------------------------------


def test_adding_keeps_what_is_configured_and_renames_nothing(folder: Path) -> None:
    configure("landsat", *ICE, "--year-field", "YEAR")
    before = written(folder)["scenes"]
    make_scene(folder / "new/AAA_20020101.tif")
    configure("new", *ICE, "--year-field", "YEAR", "--add")
    after = written(folder)["scenes"]
    assert isinstance(before, dict)
    assert isinstance(after, dict)
    assert list(after) == [*before, "AAA_20020101"]
    assert {name: after[name] for name in before} == before


def test_adding_the_same_scenes_again_changes_nothing(folder: Path) -> None:
    configure("landsat", *ICE)
    before = (folder / "conf/masking_paths.yaml").read_text()
    configure("landsat", *ICE, "--add")
    assert (folder / "conf/masking_paths.yaml").read_text() == before


def test_adding_another_file_under_a_name_in_use_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configure("landsat", *ICE)
    before = (folder / "conf/masking_paths.yaml").read_text()
    make_scene(folder / "new/LE07_140041_20001025.tif")
    line = refused(capsys, "new", *ICE, "--add")
    assert "LE07_140041_20001025" in line
    assert "new/LE07_140041_20001025.tif" in line
    assert (folder / "conf/masking_paths.yaml").read_text() == before


@pytest.mark.usefixtures("folder")
def test_adding_with_other_classes_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    configure("landsat", *ICE)
    assert "classes is ['clean_ice', 'debris'], but --add brings ['clean_ice']" in refused(
        capsys, "landsat", "--outlines", "clean_ice=outlines/clean.shp", "--add"
    )


@pytest.mark.usefixtures("folder")
def test_adding_outlines_from_outside_the_project_is_refused_in_words(
    capsys: pytest.CaptureFixture[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    configure("landsat", *ICE)
    elsewhere = tmp_path_factory.mktemp("archive")
    add_outlines(elsewhere / "outlines")
    both = [text.replace("=", f"={elsewhere}/") for text in ICE]
    assert "shares no folder with the outlines already configured" in refused(
        capsys, "landsat", *both, "--add"
    )


# --- what cannot be used ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", *ICE], "nowhere: no scene found"),
        (["outlines", *ICE], "outlines: no scene found"),
        (["conf/train.yaml", *ICE], "train.yaml: cannot be opened as an image"),
        (["landsat", "--outlines", "outlines/clean.shp"], "--outlines: expected CLASS=FILE"),
        (["landsat", "--outlines", "ice=none.shp"], "none.shp: cannot be read"),
        (["landsat", "--outlines", "background=outlines/clean.shp"], "background"),
        (["landsat", *ICE, "--year-field", "when"], "has no column 'when' (--year-field)"),
        (["landsat", *ICE, "--bands", "B1,B2"], "has 15 bands, but 2 names"),
        (["landsat", *ICE, "--date", "25.10.2000"], "--date: expected YYYY-MM-DD"),
        (["landsat", *ICE, "--add"], "masking_paths.yaml: no such file"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line_and_nothing_is_written(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert message in refused(capsys, *arguments)
    assert not (folder / "conf/masking_paths.yaml").exists()


def test_one_bad_scene_among_good_ones_is_refused_by_name(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_scene(folder / "landsat/bad_20020101.tif", crs=None)
    assert "bad_20020101.tif: has no coordinate reference system" in refused(
        capsys, "landsat", *ICE
    )
    assert not (folder / "conf/masking_paths.yaml").exists()


def test_two_scenes_of_one_name_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_scene(folder / "new/LE07_140041_20001025.tif")
    assert "a second scene named LE07_140041_20001025" in refused(capsys, "landsat", "new", *ICE)


def test_outlines_among_scenes_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_outlines(folder / "landsat")
    line = refused(capsys, "landsat", "--outlines", "clean_ice=landsat/clean.shp")
    assert "holds landsat/LE07_140041_20001025.tif as well as outlines" in line


def test_adding_outlines_that_draw_scenes_into_their_folder_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_scene(folder / "raw/scenes/A_20000101.tif")
    for place in ("raw/old", "raw/new"):
        add_outlines(folder / place)
    configure("raw/scenes", "--outlines", "ice=raw/old/clean.shp")
    before = (folder / "conf/masking_paths.yaml").read_text()
    line = refused(capsys, "landsat", "--outlines", "ice=raw/new/clean.shp", "--add")
    assert "raw: holds raw/scenes/A_20000101.tif as well as outlines" in line
    assert (folder / "conf/masking_paths.yaml").read_text() == before


@pytest.mark.parametrize("places", [("a.shp", "b.shp"), ("data/a/c.shp", "data/b/c.shp")])
def test_outlines_in_a_folder_that_takes_the_results_too_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], places: tuple[str, str]
) -> None:
    # DVC would have to watch what it writes.
    for place in places:
        make_outlines(folder / place, [ground(north_up(), (8, 8, 40, 40))])
    outside = folder.parent / f"{folder.name}-scenes"
    make_scene(outside / "A_20000101.tif")
    line = refused(
        capsys, str(outside), "--outlines", f"ice={places[0]}", "--outlines", f"rock={places[1]}"
    )
    assert "a folder of their own" in line
    assert not (folder / "conf/masking_paths.yaml").exists()


# --- names -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "date"),
    [
        ("LE07_140041_20001025", "2000-10-25"),
        ("LE07_L1TP_195025_20010730_20170204_01_T1", "2001-07-30"),
        ("S2_2019-08-01_tile", "2019-08-01"),
        ("LE07_SIM01_20001325", None),
        ("tile20230230", None),
        ("scene_19990230_19990301", "1999-03-01"),
        ("tile003", None),
        ("id1200010259", None),
    ],
)
def test_dates_are_read_from_names_as_they_are_met(name: str, date: str | None) -> None:
    assert date_in(name) == date


def test_scenes_come_sorted_and_once(folder: Path) -> None:
    found = find_scenes(["landsat", "landsat/*.tif", "landsat/LE07_140041_20001025.tif"])
    assert [path.name for path in found] == [
        "LE07_140041_20001025.tif",
        "LE07_140041_20101106.tif",
    ]
    assert (folder / found[0]).is_file()


def test_suffixes_count_whatever_their_case_and_sidecars_do_not(folder: Path) -> None:
    (folder / "landsat/LE07_140041_20001025.tif").rename(folder / "landsat/A.TIF")
    (folder / "landsat/A.TIF.aux.xml").write_text("<PAMDataset/>")
    assert {path.name for path in find_scenes(["landsat"])} == {"A.TIF", "LE07_140041_20101106.tif"}


def test_band_names_may_be_written_with_spaces() -> None:
    assert band_names("B1, B2") == ["B1", "B2"]
    assert band_names(None) is None


def test_no_scene_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no scene found"):
        find_scenes([str(tmp_path)])


# --- names that become commands, and what is no longer configured -----------------------------


@pytest.mark.parametrize("name", ["A.b", "C d", "X$(touch pwned)", "-q"])
def test_a_file_name_that_cannot_be_an_id_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    make_scene(folder / f"odd/{name}.tif")
    line = refused(capsys, "odd", *ICE, "--year-field", "YEAR")
    assert f"scene '{name}': use letters" in line
    assert "rename the file" in line
    assert not (folder / "conf/masking_paths.yaml").exists()


def test_masks_of_scenes_no_longer_configured_are_removed(folder: Path) -> None:
    configure("landsat", *ICE, "--year-field", "YEAR")
    for name in ("LE07_140041_20001025", "LE07_140041_20101106"):
        mask_scene(Project(folder), name)
    configure("landsat/*2000*.tif", *ICE, "--year-field", "YEAR")
    assert [path.name for path in (folder / "data/masks").iterdir()] == ["LE07_140041_20001025"]


def test_a_class_with_two_files_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, "landsat", *ICE, "--outlines", "debris=outlines/clean.shp")
    assert "class debris is given twice" in line
    assert not (folder / "conf/masking_paths.yaml").exists()


def test_settings_to_be_like_are_looked_for_before_anything_is_written(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "nothing").mkdir()
    assert "--like needs" in refused(capsys, "landsat", *ICE, "--like", "nothing")
    assert not (folder / "conf/masking_paths.yaml").exists()
