"""Simulated scenes: the files, their truth, and that they are as hard as they should be."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import warnings
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from rasterio.features import rasterize

from glacier_core.raster.scene import Scene
from glacier_core.simulate import BAND_NAMES, SimulatedScene, simulate

DATES = (date(2000, 10, 25), date(2010, 11, 6))


@dataclass(frozen=True)
class Simulation:
    """A small simulation shared by the tests."""

    folder: Path
    scenes: list[SimulatedScene]
    lines: list[str]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Simulation:
    folder = tmp_path_factory.mktemp("simulated")
    lines: list[str] = []
    scenes = simulate(folder, sites=2, size=224, dates=DATES, seed=4, progress=lines.append)
    return Simulation(folder, scenes, lines)


def read(path: Path, band: str | int) -> NDArray[np.float32]:
    with rasterio.open(path) as source:
        index = band if isinstance(band, int) else source.descriptions.index(band) + 1
        return np.asarray(source.read(index))


def outlines(made: Simulation, name: str) -> gpd.GeoDataFrame:
    with warnings.catch_warnings():
        # GDAL says that rings cross, which is what is wanted here.
        warnings.simplefilter("ignore")
        return gpd.read_file(made.folder / "outlines" / f"{name}.shp")


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_same_seed_gives_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        simulate(tmp_path / name, sites=1, size=128, dates=DATES, seed=3)
    first, second = hashes(tmp_path / "a"), hashes(tmp_path / "b")
    assert first == second
    simulate(tmp_path / "c", sites=1, size=128, dates=DATES, seed=5)
    other = hashes(tmp_path / "c")
    assert all(first[name] != other[name] for name in first if name.endswith(".tif"))


def test_leaves_no_temporary_files(made: Simulation) -> None:
    names = [path.name for path in made.folder.rglob("*") if path.is_file()]
    assert not [name for name in names if "part" in name]
    assert len([name for name in names if name.endswith(".tif")]) == 8


def test_scenes_are_named_and_ordered(made: Simulation) -> None:
    assert [scene.id for scene in made.scenes] == [
        "LE07_SIM01_20001025",
        "LE07_SIM01_20101106",
        "LE07_SIM02_20001025",
        "LE07_SIM02_20101106",
    ]
    assert [scene.site for scene in made.scenes] == [1, 1, 2, 2]
    assert len(made.lines) == 4


def test_bands_and_grid(made: Simulation) -> None:
    scene = made.scenes[0]
    with rasterio.open(scene.img_path) as image, rasterio.open(scene.truth_path) as truth:
        assert image.descriptions == BAND_NAMES
        assert set(image.dtypes) == {"float32"}
        assert np.isnan(image.nodata)
        assert image.shape == truth.shape == (224, 224)
        assert image.transform == truth.transform
        assert image.crs == truth.crs == rasterio.crs.CRS.from_epsg(32645)
        assert image.res == (30.0, 30.0)
        assert image.transform.c % 30 == image.transform.f % 30 == 0
        assert set(np.unique(truth.read(1))) == {0, 1, 2}


def test_tags_say_from_where_the_light_in_the_picture_comes(made: Simulation) -> None:
    for shot in made.scenes:
        with rasterio.open(shot.img_path) as image:
            azimuth, elevation = (float(image.tags()[f"SUN_{n}"]) for n in ("AZIMUTH", "ELEVATION"))
        # In autumn, 27 degrees north, at ten in the morning: in the south-east.
        assert 130 < azimuth < 165
        assert 30 < elevation < 55
        with Scene(shot.img_path, None, ["hillshade"]) as scene:
            light, bright = scene.view(scene.grid.window, ["hillshade", "B4"])[0]
            seen = np.isfinite(light + bright)
            alike = np.corrcoef(light[seen], bright[seen])[0, 1]
        turned = np.cos(np.radians(azimuth + 90)), np.sin(np.radians(azimuth + 90))
        by_row, by_col = np.gradient(read(shot.img_path, "elevation"), 30)
        across = by_row * turned[0] - by_col * turned[1]
        assert alike > 0.3
        assert alike > 2 * abs(np.corrcoef(across[seen], bright[seen])[0, 1])


def test_digital_numbers_are_whole_and_in_range(made: Simulation) -> None:
    for band in BAND_NAMES[:9]:
        dn = read(made.scenes[1].img_path, band)
        dn = dn[np.isfinite(dn)]
        assert dn.min() >= 1
        assert dn.max() <= 255
        assert np.array_equal(dn, np.rint(dn))


def test_indices_come_from_the_delivered_numbers(made: Simulation) -> None:
    path = made.scenes[1].img_path
    for name, one, other in (("NDWI", "B2", "B4"), ("NDSI", "B2", "B5"), ("NDVI", "B4", "B3")):
        a, b = read(path, one), read(path, other)
        np.testing.assert_allclose(read(path, name), (a - b) / (a + b), rtol=1e-6)


def test_gaps_only_after_the_scan_line_corrector_failed(made: Simulation) -> None:
    for scene in made.scenes:
        empty = [np.isnan(read(scene.img_path, band)) for band in BAND_NAMES[:9]]
        share = np.mean(empty[0])
        if scene.date < date(2003, 5, 31):
            assert share == 0
        else:
            assert 0.04 < share < 0.25
            assert any(not np.array_equal(empty[0], other) for other in empty[1:])
            qa = read(scene.img_path, "BQA")
            assert np.array_equal(qa == 1, np.logical_or.reduce(empty))
        for band in ("elevation", "slope"):
            assert np.isfinite(read(scene.img_path, band)).all()


def test_quality_band_marks_cloud(made: Simulation) -> None:
    values = np.concatenate([read(s.img_path, "BQA").ravel() for s in made.scenes]).astype(int)
    cloud = values & (1 << 4) > 0
    assert 0.005 < cloud.mean() < 0.2
    assert {672, 752} <= set(values.tolist())


def test_sites_are_different_ground_far_apart(made: Simulation) -> None:
    first, second = made.scenes[0], made.scenes[2]
    with rasterio.open(first.img_path) as a, rasterio.open(second.img_path) as b:
        assert np.hypot(a.bounds.left - b.bounds.left, a.bounds.top - b.bounds.top) > 30_000
    heights = [read(scene.img_path, "elevation").ravel() for scene in (first, second)]
    assert abs(np.asarray(np.corrcoef(heights))[0, 1]) < 0.9


def test_dates_share_ground_and_glaciers_retreat(made: Simulation) -> None:
    for early, late in (made.scenes[:2], made.scenes[2:]):
        assert np.array_equal(read(early.img_path, "elevation"), read(late.img_path, "elevation"))
        before, after = read(early.truth_path, 1), read(late.truth_path, 1)
        assert (after > 0).sum() < (before > 0).sum()
        assert (after == 1).sum() < (before == 1).sum()
        new = (after > 0) & (before == 0)
        assert new.sum() < 0.01 * (before > 0).sum()
        assert ((before == 1) & (after == 2)).any()


def test_outlines_have_years_heights_and_flaws(made: Simulation) -> None:
    clean, debris = outlines(made, "clean_ice"), outlines(made, "debris")
    for frame in (clean, debris):
        assert frame.crs.to_epsg() == 4326
        assert set(frame["year"]) == {1990, 2000, 2010}
        assert frame["glacier_id"].str.match(r"S\d\d-G\d{4}$").all()
        assert (~frame.geometry.is_valid).any()
        repaired = frame.geometry.make_valid()
        # An eight-shaped ring has a signed area; repair must not change the size.
        assert repaired.is_valid.all()
    assert debris.geometry.has_z.all()
    assert not clean.geometry.has_z.any()


@pytest.mark.parametrize(("name", "value"), [("clean_ice", 1), ("debris", 2)])
def test_outlines_agree_with_truth(made: Simulation, name: str, value: int) -> None:
    frame = outlines(made, name).to_crs(32645)
    for scene in made.scenes:
        near = frame[(frame["year"] - scene.date.year).abs() <= 2]
        with rasterio.open(scene.truth_path) as source:
            truth = source.read(1) == value
            drawn = (
                rasterize(near.geometry.make_valid(), truth.shape, transform=source.transform) == 1
            )
        assert (drawn & truth).sum() / (drawn | truth).sum() > 0.97


def test_outlines_of_the_wrong_year_are_too_large(made: Simulation) -> None:
    frame = outlines(made, "clean_ice").to_crs(32645)
    scene = made.scenes[0]
    with rasterio.open(scene.truth_path) as source:
        truth = source.read(1) == 1
        old = frame.loc[frame["year"] == 1990].geometry.make_valid()
        drawn = rasterize(old, truth.shape, transform=source.transform) == 1
    assert (drawn & ~truth).sum() > 0.1 * truth.sum()


def test_sites_in_a_second_row_lie_within_the_border(tmp_path: Path) -> None:
    scenes = simulate(tmp_path, sites=6, size=128, dates=[date(2000, 10, 25)], seed=1)
    border = gpd.read_file(tmp_path / "outlines/border.shp").to_crs(32645)
    shares = []
    for scene in scenes:
        with rasterio.open(scene.img_path) as source:
            inside = rasterize(border.geometry, source.shape, transform=source.transform)
        shares.append(inside.mean())
    assert 0.9 < shares[0] < 1
    assert shares[1:] == [1] * 5


def test_border_leaves_a_corner_out(made: Simulation) -> None:
    border = outlines(made, "border").to_crs(32645)
    shares = []
    for scene in made.scenes[::2]:
        with rasterio.open(scene.img_path) as source:
            inside = rasterize(border.geometry, source.shape, transform=source.transform)
        shares.append(inside.mean())
    assert 0.9 < shares[0] < 0.99
    assert shares[1] == 1


def test_areas_are_those_of_the_truth(made: Simulation) -> None:
    lines = (made.folder / "truth" / "areas.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "scene,date,class,km2"
    assert len(lines) == 1 + 2 * len(made.scenes)
    truth = read(made.scenes[0].truth_path, 1)
    assert lines[1] == f"LE07_SIM01_20001025,2000-10-25,clean_ice,{(truth == 1).sum() * 9e-4:.4f}"


def test_snow_index_alone_is_not_enough(made: Simulation) -> None:
    hit = either = found = debris = 0
    for scene in made.scenes:
        index, truth = read(scene.img_path, "NDSI"), read(scene.truth_path, 1)
        seen = np.isfinite(index)
        snow, ice = (index > 0.4)[seen], (truth == 1)[seen]
        hit += (snow & ice).sum()
        either += (snow | ice).sum()
        found += (snow & (truth[seen] == 2)).sum()
        debris += (truth[seen] == 2).sum()
    assert 0.35 < hit / either < 0.8
    assert found / debris < 0.35


@pytest.mark.parametrize("seed", range(5))
def test_small_scenes_have_both_classes(tmp_path: Path, seed: int) -> None:
    (scene,) = simulate(tmp_path, sites=1, size=192, dates=DATES[:1], seed=seed)
    truth = read(scene.truth_path, 1)
    assert 0.10 < (truth == 1).mean() < 0.27
    assert 0.025 < (truth == 2).mean() < 0.09


@pytest.mark.parametrize(
    ("sites", "size", "dates", "message"),
    [
        (0, 128, DATES, "sites must be at least 1"),
        (1, 127, DATES, "size must be at least 128"),
        (1, 128, (), "dates is empty"),
    ],
)
def test_bad_arguments_are_refused(
    tmp_path: Path, sites: int, size: int, dates: tuple[date, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        simulate(tmp_path, sites=sites, size=size, dates=dates, seed=1)


def test_a_folder_with_other_files_is_never_replaced(tmp_path: Path) -> None:
    for name in ("conf", "params.yaml"):
        (tmp_path / name).symlink_to(Path(__file__).parents[1] / name)
    mine = tmp_path / "raw" / "landsat.tif"
    mine.parent.mkdir()
    mine.write_text("years of work")
    done = subprocess.run(
        [Path(sys.executable).with_name("glacier"), "simulate", "--out", "raw"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "raw: holds files that `glacier simulate` did not make" in done.stderr
    assert mine.read_text() == "years of work"
