"""`glacier map`: whole scenes without seams, where they lie, and nothing said of what was not seen."""

from __future__ import annotations

import json
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import rasterio
import torch
import yaml
from affine import Affine
from click.testing import CliRunner, Result
from conftest import (
    CORNER,
    REPOSITORY,
    UTM,
    copy_settings,
    edit_yaml,
    glacier,
    make_scene,
    north_up,
)
from numpy.typing import NDArray
from rasterio.warp import transform as warp_points
from rio_cogeo.cogeo import cog_validate
from safetensors.torch import load_file, save_file

from glacier_core.cli import main
from glacier_core.maps import rasters
from glacier_core.maps.rasters import MapRasters
from glacier_core.maps.scenemap import NO_ELEVATION, SceneMap
from glacier_core.model.ensemble import Ensemble
from glacier_core.model.predictor import ModelDescription, Predictor, save_model
from glacier_core.model.unet import Architecture
from glacier_core.raster.scene import Scene

CHANNELS = ["B2", "B5", "elevation"]
MEANS, DEVIATIONS = [90.0, 60.0, 5000.0], [30.0, 25.0, 400.0]
CLASSES = ["background", "clean_ice", "debris"]
UNSEEN = 255
PIXEL = "pixel (training tttttttt)"
"""How the model in the folder `pixel` is called."""
HALF_LEVEL = 0.5 / 255 + 1e-4
"""What storing 0 to 1 in 256 steps takes away, and a little for the order of sums."""

Pixels = NDArray[np.float32]


# --- models ----------------------------------------------------------------------------------


def described(**changes: Any) -> ModelDescription:
    usual: dict[str, Any] = {
        "channels": CHANNELS,
        "classes": CLASSES,
        "means": MEANS,
        "standard_deviations": DEVIATIONS,
        "impute": "mean",
        "architecture": Architecture(1, 4, 0.0, "deep", False, "none"),
        "dataset": "d" * 64,
        "training": "t" * 64,
        "sources": ["data/raw/a.tif"],
    }
    return ModelDescription(**(usual | changes))


def noise(height: int, width: int, seed: int = 0) -> Pixels:
    """Raw values of the three channels, alike everywhere."""
    random = np.random.default_rng(seed)
    standard = random.normal(size=(3, height, width))
    scale = np.array(DEVIATIONS)[:, None, None]
    return (standard * scale + np.array(MEANS)[:, None, None]).astype(np.float32)


def save_far_sighted(folder: Path, depth: int = 2, seed: int = 1, **changes: Any) -> Path:
    """A model of random weights, normalised on noise, with probabilities all over 0 to 1; what
    it says of a pixel depends on others as far away as its network reaches.
    """
    architecture = Architecture(depth, 4, 0.0, "all", False, "batch")
    description = described(architecture=architecture, **changes)
    torch.manual_seed(seed)
    model = description.build()
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = None
    order = [CHANNELS.index(name) for name in description.channels]
    sample = torch.from_numpy(np.stack([noise(96, 96, seed=k)[order] for k in range(3)]))
    with torch.no_grad():
        model.train()
        model(sample)
        model.eval()
        logits = model(sample)
        gain = 2 / logits.std(dim=(0, 2, 3))
        head = model.network.head
        head.weight *= gain[:, None, None, None]
        head.bias.sub_(logits.mean(dim=(0, 2, 3))).mul_(gain)
    folder.mkdir(parents=True, exist_ok=True)
    save_model(folder, description, model)
    return folder


def save_pixelwise(folder: Path, **changes: Any) -> Path:
    """A model that looks at each pixel alone; see `pixelwise`."""
    description = described(**changes)
    model = description.build()
    network = model.network
    with torch.no_grad():
        for values in network.parameters():
            values.zero_()
        for block, first in ((network.down[0], 0), (network.merge[0], 4)):
            for layer, inputs in zip(
                [each for each in block if isinstance(each, torch.nn.Conv2d)],
                (first, 0),
                strict=True,
            ):
                for feature in (0, 1):
                    layer.weight[feature, inputs + feature, 1, 1] = 1
        network.head.bias[0] = 2
        network.head.weight[1, 0] = 4
        network.head.weight[2, 1] = 4
    folder.mkdir(parents=True, exist_ok=True)
    save_model(folder, description, model)
    return folder


def pixelwise(values: Pixels) -> NDArray[np.float64]:
    """What that model says of raw values (channels, ...): logits 2, and 4 for each deviation that
    the first channel, and the second, lies above its mean.
    """
    above = [np.clip((values[i].astype(float) - MEANS[i]) / DEVIATIONS[i], 0, None) for i in (0, 1)]
    logits = np.stack([np.full(above[0].shape, 2.0), 4 * above[0], 4 * above[1]])
    odds: NDArray[np.float64] = np.exp(logits - logits.max(axis=0))
    return odds / odds.sum(axis=0)


def change_weights(folder: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    weights = load_file(folder / "model.safetensors")
    weights[name] = change(weights[name])
    save_file(weights, folder / "model.safetensors")


# --- the command -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Workplace:
    """A project's folder, in which the command is run; it has the models `pixel` and `far`."""

    root: Path

    def run(self, *words: str, model: str | Sequence[str] = "pixel", out: str = "maps") -> Result:
        models = [model] if isinstance(model, str) else model
        options = [word for each in models for word in ("--model", each)]
        return CliRunner().invoke(
            main, ["map", *words, *options, "--out", out], catch_exceptions=False
        )

    def map(self, *words: str, **options: Any) -> Path:
        """Map one scene; the folder of its map."""
        result = self.run(*words, **options)
        assert result.exit_code == 0, result.output
        return self.root / result.stdout.splitlines()[0]

    def refused(self, *words: str, code: int = 2, **options: Any) -> str:
        """The one line that says why not."""
        result = self.run(*words, **options)
        assert result.exit_code == code, result.output
        [line] = result.stderr.splitlines()
        assert line.startswith("error: ")
        return line

    def scene(self, values: Pixels, name: str = "a", **options: Any) -> str:
        """Write a scene of the model's channels, unless `bands` says otherwise."""
        usual = {"bands": CHANNELS, "values": values}
        make_scene(self.root / f"{name}.tif", **(usual | options))
        return f"{name}.tif"

    def edit(self, window: int, overlap: int) -> None:
        edit_yaml(
            self.root / "params.yaml", **{"map.window": window, "map.overlap": overlap}
        )  # fmt: skip

    def load(self, model: str) -> Predictor:
        return Predictor.load(self.root / model, "cpu", "float32")


@pytest.fixture(scope="session")
def settled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mapping") / "project"
    copy_settings(root)
    # So that results do not depend on what the machine multiplies fast.
    edit_yaml(root / "conf/train.yaml", device="cpu", precision="float32")
    save_pixelwise(root / "pixel")
    save_far_sighted(root / "far")
    return root


@pytest.fixture
def place(settled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    shutil.copytree(settled, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    place = Workplace(tmp_path / "project")
    place.edit(64, 16)
    return place


def stored(folder: Path, kind: str) -> NDArray[Any]:
    """A raster as stored, (bands, height, width)."""
    with rasterio.open(folder / f"{folder.name}_{kind}.tif") as file:
        values: NDArray[Any] = file.read()
    return values


def mask_of(folder: Path, kind: str) -> NDArray[np.bool_]:
    """Where a raster is valid by its own mask, (height, width); the same in every band."""
    with rasterio.open(folder / f"{folder.name}_{kind}.tif") as file:
        masks = file.read_masks() > 0
    assert (masks == masks[0]).all()
    valid: NDArray[np.bool_] = masks[0]
    return valid


def about(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "map.json").read_text())
    return content


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# --- windows ---------------------------------------------------------------------------------

# Depth, window, overlap: each network sees no farther than the two fifths of the overlap that
# count for nothing.
SIGHTS = [(1, 48, 24), (2, 160, 64), (3, 280, 136)]


@pytest.fixture(scope="session", params=SIGHTS, ids=lambda sight: f"depth_{sight[0]}")
def sight(request: pytest.FixtureRequest, settled: Path) -> tuple[int, int, int, Path]:
    depth, window, overlap = request.param
    folder = settled.parent / f"depth_{depth}"
    return depth, window, overlap, save_far_sighted(folder, depth=depth)


def test_the_map_equals_the_prediction_in_one_piece(
    place: Workplace, sight: tuple[int, int, int, Path]
) -> None:
    """On a scene that is alike everywhere, away from its borders: nobody sees the windows."""
    _, window, overlap, model = sight
    place.edit(window, overlap)
    values = noise(int(2.4 * window), int(1.9 * window) + 5)
    folder = place.map(place.scene(values), model=str(model))
    expected = place.load(str(model)).probabilities(values[None])[0, 1:]
    assert expected.min() < 0.02 < 0.98 < expected.max()
    far = 2 * overlap // 5
    inner = (slice(None), slice(far, -far), slice(far, -far))
    found = stored(folder, "probabilities") / 255
    assert np.abs(found - expected)[inner].max() <= HALF_LEVEL


def test_with_the_numbers_that_we_ship_seams_are_rare_and_faint_at_worst(place: Workplace) -> None:
    """They are made for trained networks, to which far pixels matter little; to this one they
    matter as much as near ones. Of a trained one, nothing at all is seen (0.002 at most).
    """
    shipped = yaml.safe_load((REPOSITORY / "params.yaml").read_text())["map"]
    place.edit(**shipped)
    model = save_far_sighted(place.root / "deep", depth=4)
    values = noise(1060, 950)
    folder = place.map(place.scene(values), model=model.name)
    expected = place.load(model.name).probabilities(values[None])[0, 1:]
    differs = np.abs(stored(folder, "probabilities") / 255 - expected)[:, 112:-112, 112:-112]
    assert differs.max() < 0.03
    assert (differs > 1 / 255).mean() < 0.003


def test_at_the_borders_the_scene_is_reflected(
    place: Workplace, sight: tuple[int, int, int, Path]
) -> None:
    """Up to the last pixel the map is that of a larger scene, mirrored at its edges."""
    depth, window, overlap, model = sight
    place.edit(window, overlap)
    values = noise(int(1.4 * window) + 3, window + 1, seed=1)
    folder = place.map(place.scene(values), model=str(model))
    far = -(-overlap // 2**depth) * 2**depth
    larger = np.pad(values, [(0, 0), (far, far), (far, far)], mode="reflect")
    expected = place.load(str(model)).probabilities(larger[None])[0, 1:, far:-far, far:-far]
    found = stored(folder, "probabilities") / 255
    assert np.abs(found - expected).max() <= HALF_LEVEL


def test_without_overlap_the_windows_would_be_seen(place: Workplace) -> None:
    """So the tests above would notice."""
    place.edit(160, 0)
    values = noise(384, 309)
    folder = place.map(place.scene(values), model="far")
    expected = place.load("far").probabilities(values[None])[0, 1:]
    differs = np.abs(stored(folder, "probabilities") / 255 - expected).max(axis=0)
    assert differs[150:170, 40:100].max() > 0.1
    assert differs[64:96, 64:96].max() <= HALF_LEVEL


def test_gaps_make_no_seams_and_windows_without_a_valid_pixel_are_skipped(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.edit(160, 64)
    values = noise(500, 430)
    values[:, :250, :300] = np.nan  # larger than a window
    values[1, 300:303] = np.nan
    calls: list[tuple[int, ...]] = []
    predict = Ensemble.predict
    monkeypatch.setattr(
        Ensemble, "predict", lambda self, p: calls.append(p.shape) or predict(self, p)
    )
    folder = place.map(place.scene(values), model="far")
    skipped = len(calls)
    place.map(place.scene(noise(500, 430), "whole"), model="far")
    assert skipped < len(calls) - skipped
    expected = place.load("far").probabilities(values[None])[0, 1:]
    found = np.where(mask_of(folder, "probabilities"), stored(folder, "probabilities") / 255, -1)
    differs = np.abs(found - np.nan_to_num(expected, nan=-1))
    assert differs[:, 26:-26, 26:-26].max() <= HALF_LEVEL


def test_a_scene_in_which_nothing_was_seen_is_never_shown_to_the_network(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(Ensemble, "predict", never)
    folder = place.map(place.scene(np.full((3, 150, 90), np.nan, dtype=np.float32)))
    assert (stored(folder, "classes") == UNSEEN).all()
    for kind in ("probabilities", "confidence"):
        assert not mask_of(folder, kind).any()
        assert not stored(folder, kind).any()
    said = about(folder)
    assert (said["seen"], said["no_value"], said["covered"]) == (0, 1, 0)
    assert said["channels"] == {}
    assert said["snow_outside"] is None


# --- where it lies ---------------------------------------------------------------------------

GRIDS: dict[str, dict[str, Any]] = {
    "north up": {},
    "not square": {"transform": Affine(15, 0, CORNER[0], 0, -45, CORNER[1])},
    "rotated": {"transform": north_up() @ Affine.rotation(31)},
    "sheared": {"transform": Affine(30, 4, CORNER[0], -3, -25, CORNER[1])},
    "south up": {"transform": Affine(30, 0, CORNER[0], 0, 30, CORNER[1])},
    "degrees": {"transform": north_up(86.5, 28.1, 3e-4), "crs": "EPSG:4326"},
    "feet": {"transform": north_up(7_600_000, 680_000, 100), "crs": "EPSG:2269"},
    "polar": {"transform": north_up(-1_000_000, -2_000_000), "crs": "EPSG:3995"},
    "no CRS": {"crs": None},
    "no CRS, no place": {"crs": None, "transform": Affine.identity()},
}


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_the_map_lies_where_the_scene_lies(place: Workplace, grid: dict[str, Any]) -> None:
    """Every raster has the scene's grid, and a marked pixel is found at its place on the ground."""
    values = np.broadcast_to(np.float32(MEANS)[:, None, None], (3, 83, 150)).copy()
    row, col = 61, 97
    values[0, row, col] += 5 * DEVIATIONS[0]
    values[1, 7, 3] += 5 * DEVIATIONS[1]
    scene = place.scene(values, **grid)
    folder = place.map(scene)
    with rasterio.open(place.root / scene) as source:
        spot = source.xy(row, col)
        for kind in ("classes", "probabilities", "confidence", "elevation"):
            with rasterio.open(folder / f"a_{kind}.tif") as made:
                assert made.shape == source.shape
                assert made.crs == source.crs
                assert made.transform.almost_equals(source.transform, precision=1e-9)
        with rasterio.open(folder / "a_classes.tif") as made:
            if made.crs and made.crs != "EPSG:4326":
                # By way of longitude and latitude, as any GIS would lay them over each other.
                there = warp_points(source.crs, "EPSG:4326", [spot[0]], [spot[1]])
                x, y = warp_points("EPSG:4326", made.crs, *there)
                spot = x[0], y[0]
            assert [int(v[0]) for v in made.sample([spot])] == [1]
    classes = stored(folder, "classes")[0]
    assert np.argwhere(classes == 1).tolist() == [[row, col]]
    assert np.argwhere(classes == 2).tolist() == [[7, 3]]
    assert (classes == 0).sum() == classes.size - 2


@pytest.mark.parametrize(
    "shape",
    [(1, 1), (1, 2), (2, 1), (1, 130), (3, 500), (500, 3), (17, 16), (63, 65), (129, 201)],
    ids=lambda shape: f"{shape[0]}x{shape[1]}",
)
@pytest.mark.parametrize("model", ["pixel", "far"])
def test_a_scene_may_have_any_size(place: Workplace, shape: tuple[int, int], model: str) -> None:
    values = noise(*shape)
    folder = place.map(place.scene(values), model=model)
    assert stored(folder, "classes").shape == (1, *shape)
    assert about(folder)["seen"] == 1
    assert mask_of(folder, "probabilities").all()
    if model == "pixel":
        expected = pixelwise(values)
        assert np.abs(stored(folder, "probabilities") / 255 - expected[1:]).max() <= HALF_LEVEL
        assert np.abs(stored(folder, "confidence")[0] / 255 - expected.max(0)).max() <= HALF_LEVEL
        agrees = stored(folder, "classes")[0] == expected.argmax(axis=0)
        assert agrees[np.ptp(np.sort(expected, axis=0)[-2:], axis=0) > 1e-4].all()


def test_bands_are_taken_by_name_in_any_order_and_type(place: Workplace) -> None:
    values = np.rint(np.clip(noise(70, 80), 1, 6000))
    reference = place.map(place.scene(values))
    other = np.stack([values[2], values[1], np.full((70, 80), 7), values[0]])
    bands = ["elevation", "B5", "slope", "B2"]
    turned = place.map(place.scene(other, "turned", bands=bands, dtype="int16"))
    unnamed = place.scene(other, "unnamed", bands=[None] * 4, dtype="uint16")
    named = place.map(unnamed, "--bands", ",".join(bands))
    for folder in (turned, named):
        for kind in ("classes", "probabilities", "confidence", "elevation"):
            np.testing.assert_array_equal(stored(folder, kind), stored(reference, kind))


# --- what was not seen -----------------------------------------------------------------------

CLEAR, CLOUD, SHADOW = 672, 672 | 1 << 4, 672 | 0b11 << 7
HOLE = (slice(10, 31), slice(40, 95))
"""Across the border of windows."""


def _hole(value: float, bands: Sequence[str] = CHANNELS, **options: Any) -> dict[str, Any]:
    return {"value": value, "bands": bands, "options": options}


@pytest.mark.parametrize(
    "hole",
    [
        _hole(np.nan),
        _hole(np.nan, ["B5"]),
        _hole(np.inf, ["elevation"]),
        _hole(-9999, ["B2"], nodata=-9999),
        _hole(-9999, ["elevation"], nodata=-9999, dtype="int16"),
        _hole(0, ["B2"]),
        _hole(0, ["B5"], dtype="uint16"),
        _hole(0, ["B2"], nodata=65535, dtype="uint16"),
        _hole(65535, ["B5"], nodata=65535, dtype="uint16"),
    ],
    ids=lambda hole: f"{hole['value']} in {'+'.join(hole['bands'])} {hole['options']}",
)
def test_nothing_seen_is_255(place: Workplace, hole: dict[str, Any]) -> None:
    """And it is masked in the other rasters: never 0, which would say that there is no ice."""
    place.edit(32, 8)
    values = np.clip(noise(60, 120), 1, 6000)
    hidden = np.zeros((60, 120), dtype=bool)
    hidden[HOLE] = True
    for band in hole["bands"]:
        values[CHANNELS.index(band)][hidden] = hole["value"]
    stored_as = values.astype(hole["options"].get("dtype", "float32")).astype(np.float32)
    folder = place.map(place.scene(values, **hole["options"]))
    np.testing.assert_array_equal(stored(folder, "classes")[0] == UNSEEN, hidden)
    np.testing.assert_array_equal(mask_of(folder, "classes"), ~hidden)
    for kind in ("probabilities", "confidence"):
        np.testing.assert_array_equal(mask_of(folder, kind), ~hidden)
        assert not stored(folder, kind)[:, hidden].any()
    said = about(folder)
    assert said["no_value"] == pytest.approx(hidden.mean())
    assert said["covered"] == 0
    # What lies around it is as it would be without.
    expected = pixelwise(stored_as)[1:]
    found = stored(folder, "probabilities") / 255
    assert np.abs(found - expected)[:, ~hidden].max() <= HALF_LEVEL


@pytest.mark.parametrize(("quality", "covers"), [(CLEAR, False), (CLOUD, True), (SHADOW, True)])
def test_what_lies_under_cloud_by_the_quality_band_is_255(
    place: Workplace, quality: int, covers: bool
) -> None:
    values = np.concatenate([noise(60, 120), np.full((1, 60, 120), CLEAR, dtype=np.float32)])
    values[3][HOLE] = quality
    values[0, 50:] = np.nan
    values[3, 50:, :9] = CLOUD  # without a value and under cloud: without a value
    folder = place.map(place.scene(values, bands=[*CHANNELS, "BQA"]))
    hidden = np.zeros((60, 120), dtype=bool)
    hidden[HOLE] = covers
    hidden[50:] = True
    np.testing.assert_array_equal(stored(folder, "classes")[0] == UNSEEN, hidden)
    np.testing.assert_array_equal(mask_of(folder, "confidence"), ~hidden)
    said = about(folder)
    assert said["covered"] == pytest.approx(21 * 55 / 7200 if covers else 0)
    assert said["no_value"] == pytest.approx(10 / 60)
    assert said["seen"] + said["no_value"] + said["covered"] == pytest.approx(1)


def test_a_gap_in_a_band_that_the_model_does_not_take_hides_nothing(place: Workplace) -> None:
    values = np.concatenate([noise(40, 50), np.full((1, 40, 50), np.nan, dtype=np.float32)])
    folder = place.map(place.scene(values, bands=[*CHANNELS, "B8"]))
    assert about(folder)["seen"] == 1


def test_unknown_heights_hide_nothing_from_a_model_that_takes_none(place: Workplace) -> None:
    model = save_pixelwise(
        place.root / "two", channels=CHANNELS[:2], means=MEANS[:2],
        standard_deviations=DEVIATIONS[:2],
    )  # fmt: skip
    values = noise(40, 50)
    values[2, :10] = np.nan
    folder = place.map(place.scene(values), model=model.name)
    assert about(folder)["seen"] == 1
    assert sorted(about(folder)["channels"]) == ["B2", "B5"]
    heights = stored(folder, "elevation")[0]
    assert (heights[:10] == NO_ELEVATION).all()
    assert np.abs(heights[10:] * 0.5 - values[2, 10:]).max() <= 0.25


# --- what map.json says ----------------------------------------------------------------------


def test_the_statistics_are_those_of_the_whole_scene(place: Workplace) -> None:
    """Counted by strips; here once more by numpy, over all pixels at once."""
    values = np.clip(noise(310, 170), 1, None)
    values = np.concatenate([values, np.full((1, 310, 170), CLEAR, dtype=np.float32)])
    random = np.random.default_rng(5)
    values[1][random.random((310, 170)) < 0.1] = np.nan
    values[0, 100:140, 20:60] = np.nan
    values[3, 120:220, 30:120] = CLOUD
    folder = place.map(place.scene(values, bands=[*CHANNELS, "BQA"]))
    no_value = ~np.isfinite(values[:3]).all(axis=0)
    covered = (values[3] == CLOUD) & ~no_value
    seen = ~no_value & ~covered
    said = about(folder)
    assert said["seen"] == pytest.approx(seen.mean())
    assert said["no_value"] == pytest.approx(no_value.mean())
    assert said["covered"] == pytest.approx(covered.mean())
    assert said["seen"] + said["no_value"] + said["covered"] == pytest.approx(1)
    for i, name in enumerate(CHANNELS):
        check = said["channels"][name]
        mean = values[i][seen].astype(float).mean()
        assert check["mean"] == pytest.approx(mean, rel=1e-6)
        assert check["training_mean"] == MEANS[i]
        assert check["training_deviation"] == DEVIATIONS[i]
        drift = SceneMap(folder).about.channels[name].drift
        assert drift == pytest.approx(abs(mean - MEANS[i]) / DEVIATIONS[i], rel=1e-4, abs=1e-6)
    green, swir = values[0].astype(float), values[1].astype(float)
    with np.errstate(invalid="ignore"):
        snow = (green - swir) / (green + swir) > 0.4
    outside = seen & (stored(folder, "classes")[0] == 0) & snow
    assert 0.001 < said["snow_outside"] < 0.5
    assert said["snow_outside"] == pytest.approx(outside.sum() / seen.sum(), rel=1e-9)


def test_without_green_or_swir_nothing_is_said_of_snow(place: Workplace) -> None:
    model = save_pixelwise(
        place.root / "two", channels=["B2", "elevation"], means=[90.0, 5000.0],
        standard_deviations=[30.0, 400.0],
    )  # fmt: skip
    assert about(place.map(place.scene(noise(20, 20)), model=model.name))["snow_outside"] is None


def test_a_scene_unlike_the_training_data_is_warned_about(
    place: Workplace, caplog: pytest.LogCaptureFixture
) -> None:
    values = noise(40, 50)
    place.map(place.scene(values))
    assert "may be wrong" not in caplog.text
    values[1] += 4 * DEVIATIONS[1]
    place.map(place.scene(values, "bright"))
    [warning] = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert "bright: channel B5 lies 4.0 standard deviations" in warning


def test_map_json_says_what_made_the_map(place: Workplace) -> None:
    scene = place.scene(noise(20, 30), "LE07_X_20001025")
    said = about(place.map(scene))
    assert said["scene"] == "LE07_X_20001025"
    assert said["source"] == scene
    assert said["date"] == "2000-10-25"
    assert said["classes"] == CLASSES
    assert said["models"] == [PIXEL]
    assert said["trainings"] == ["t" * 64]
    assert said["symmetries"] is False
    other = about(place.map(scene, "--date", "1999-02-03", out="other"))
    assert other["date"] == "1999-02-03"
    assert SceneMap(place.root / "other/LE07_X_20001025").about.to_json() == other


# --- files -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(40, 50), (700, 530)])
def test_rasters_are_cloud_optimised_with_all_that_a_gis_wants(
    place: Workplace, shape: tuple[int, int]
) -> None:
    values = noise(*shape)
    values[:, :9, :11] = np.nan
    folder = place.map(place.scene(values), "--symmetries")
    kinds = {"classes", "probabilities", "confidence", "uncertainty", "elevation"}
    assert {p.name for p in folder.iterdir()} == {
        "map.json", "a_classes.qml", *(f"a_{kind}.tif" for kind in kinds)
    }  # fmt: skip
    bands = {"classes": ("class",), "probabilities": ("clean_ice", "debris")}
    for kind in kinds:
        path = folder / f"a_{kind}.tif"
        valid, errors, warnings = cog_validate(path, strict=True, quiet=True)
        assert valid, (errors, warnings)
        with rasterio.open(path) as file:
            assert file.descriptions == bands.get(kind, (kind,))
            assert set(file.dtypes) == {"int16" if kind == "elevation" else "uint8"}
            assert file.tags()["scene"] == "a"
            assert file.tags()["models"] == PIXEL
            assert [file.tags()[f"class_{i}"] for i in range(3)] == CLASSES
            assert file.profile["compress"] == "deflate"
            assert bool(file.overviews(1)) == (max(shape) > 512)
            if kind == "classes":
                assert file.nodata == UNSEEN
                colours = file.colormap(1)
                assert colours[1][:3] == (0x2B, 0x7B, 0xBA)
                assert colours[2][:3] == (0xB5, 0x65, 0x1D)
                for factor in file.overviews(1):
                    small = file.read(1, out_shape=tuple(-(-n // factor) for n in shape))
                    assert set(np.unique(small)) <= {0, 1, 2, UNSEEN}
            elif kind == "elevation":
                assert file.nodata == NO_ELEVATION
                assert file.scales == (0.5,)
            else:
                assert file.nodata is None
                assert file.scales == (1 / 255,) * file.count
                assert not file.read_masks(1)[:9, :11].any()
                assert file.read_masks(1)[9:].all()


def test_heights_are_stored_within_a_quarter_metre(place: Workplace) -> None:
    values = noise(60, 70)
    values[2] = np.linspace(-430, 8848.86, 60 * 70).reshape(60, 70)
    values[2, 3] = np.nan
    folder = place.map(place.scene(values))
    found = SceneMap(folder).elevation(SceneMap(folder).grid.window)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(values[2]))
    assert np.nanmax(np.abs(found - values[2])) <= 0.25 + 1e-3


def test_heights_that_cannot_be_are_neither_wrapped_nor_taken_for_unknown(
    place: Workplace,
) -> None:
    values = noise(10, 10)
    values[2, :5], values[2, 5:] = 40_000, -40_000
    heights = stored(place.map(place.scene(values)), "elevation")[0]
    assert (heights[:5] == 32767).all()
    assert (heights[5:] == NO_ELEVATION + 1).all()


def test_a_scene_without_elevation_has_no_such_raster(place: Workplace) -> None:
    model = save_pixelwise(
        place.root / "two", channels=CHANNELS[:2], means=MEANS[:2],
        standard_deviations=DEVIATIONS[:2],
    )  # fmt: skip
    scene = place.scene(noise(20, 20)[:2], bands=CHANNELS[:2])
    folder = place.map(scene, model=model.name)
    assert not (folder / "a_elevation.tif").exists()
    assert np.isnan(SceneMap(folder).elevation(SceneMap(folder).grid.window)).all()


def test_the_style_names_the_classes_in_the_colours_of_the_raster(place: Workplace) -> None:
    folder = place.map(place.scene(noise(20, 20)))
    root = ET.fromstring((folder / "a_classes.qml").read_text())
    assert root.tag == "qgis"
    entries = {e.get("value"): e for e in root.iter("paletteEntry")}
    assert [entries[str(i)].get("label") for i in range(3)] == ["background", "clean ice", "debris"]
    assert entries["0"].get("alpha") == "0"
    with rasterio.open(folder / "a_classes.tif") as file:
        for number in (1, 2):
            colour = "#{:02x}{:02x}{:02x}".format(*file.colormap(1)[number][:3])
            assert entries[str(number)].get("color") == colour


def test_the_same_scene_gives_the_same_bytes(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second time, years later."""
    scene = place.scene(noise(600, 300))
    first = files(place.map(scene, "--symmetries"))
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 1e8)
    again = files(place.map(scene, "--symmetries", "--again"))
    assert first == again


# --- what is mapped already ------------------------------------------------------------------


@pytest.fixture
def mapped(place: Workplace) -> Callable[..., bool]:
    """Whether a command maps; it has been given once."""
    place.map(place.scene(noise(30, 40)))

    def maps(*words: str, **options: Any) -> bool:
        path = place.root / options.get("out", "maps") / "a/map.json"
        before = path.stat() if path.exists() else None
        assert place.map("a.tif", *words, **options).name == "a"
        after = path.stat()
        return before is None or (before.st_ino, before.st_mtime_ns) != (
            after.st_ino,
            after.st_mtime_ns,
        )

    return maps


def test_what_is_mapped_already_is_left_as_it_is(
    place: Workplace, mapped: Callable[..., bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files(place.root / "maps")
    monkeypatch.setattr(Ensemble, "predict", None)
    assert not mapped()
    assert not mapped("--no-symmetries")
    assert files(place.root / "maps") == before


def test_it_is_mapped_again_when_told_so(mapped: Callable[..., bool]) -> None:
    assert mapped("--again")


@pytest.mark.parametrize(
    "words", [("--symmetries",), ("--date", "2001-02-03")], ids=["symmetries", "date"]
)
def test_it_is_mapped_again_with_other_options(
    mapped: Callable[..., bool], words: tuple[str, ...]
) -> None:
    assert mapped(*words)
    assert not mapped(*words)
    assert mapped()


def test_it_is_mapped_again_with_other_settings(
    place: Workplace, mapped: Callable[..., bool]
) -> None:
    edit_yaml(place.root / "conf/maps.yaml", symmetries=True)
    assert mapped()
    place.edit(64, 20)
    assert mapped()
    edit_yaml(place.root / "params.yaml", seed=77)
    assert not mapped()


def test_it_is_mapped_again_after_the_scene_changed(
    place: Workplace, mapped: Callable[..., bool]
) -> None:
    values = noise(30, 40)
    values[0, 5, 5] += 1
    place.scene(values)
    assert mapped()
    place.scene(values, transform=north_up(CORNER[0] + 30))
    assert mapped()
    assert not mapped()


def test_it_is_mapped_again_after_a_source_of_a_virtual_scene_changed(
    place: Workplace,
) -> None:
    """The file that is mapped stays the same, byte by byte."""
    place.scene(noise(30, 40), "source")
    with rasterio.open(place.root / "source.tif") as file:
        rasterio.shutil.copy(file, place.root / "a.vrt", driver="VRT")
    before = files(place.map("a.vrt"))
    assert files(place.map("a.vrt")) == before
    place.scene(noise(30, 40, seed=9), "source")
    assert files(place.map("a.vrt")) != before


def test_looking_at_a_scene_does_not_make_it_another(
    place: Workplace, mapped: Callable[..., bool]
) -> None:
    """A GIS leaves statistics beside it."""
    (place.root / "a.tif.aux.xml").write_text(
        "<PAMDataset><PAMRasterBand band='1'><Metadata><MDI key='STATISTICS_MEAN'>1</MDI>"
        "</Metadata></PAMRasterBand></PAMDataset>"
    )
    assert not mapped()


def test_it_is_mapped_again_with_another_model(
    place: Workplace, mapped: Callable[..., bool]
) -> None:
    shutil.copytree(place.root / "pixel", place.root / "same_elsewhere")
    assert mapped(model="far")
    assert mapped()
    # The map says which model made it.
    assert mapped(model="same_elsewhere")


def test_it_is_mapped_again_after_the_model_learned_more(
    place: Workplace, mapped: Callable[..., bool]
) -> None:
    """While a training goes on, its weights change, and nothing else."""
    change_weights(place.root / "pixel", "network.head.weight", lambda values: values * 1.5)
    assert mapped()
    assert not mapped()
    description = place.root / "pixel/model.json"
    content = json.loads(description.read_text())
    content["means"][0] += 10
    description.write_text(json.dumps(content))
    assert mapped()


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", '{"key": 1}'])
def test_a_damaged_map_json_is_no_map(
    place: Workplace, mapped: Callable[..., bool], text: str
) -> None:
    before = files(place.root / "maps")
    (place.root / "maps/a/map.json").write_text(text)
    assert mapped()
    assert files(place.root / "maps") == before


@pytest.mark.parametrize("kind", ["classes", "probabilities", "confidence"])
def test_a_map_that_lacks_a_raster_is_no_map(
    place: Workplace, mapped: Callable[..., bool], kind: str
) -> None:
    before = files(place.root / "maps")
    (place.root / f"maps/a/a_{kind}.tif").unlink()
    assert mapped()
    assert files(place.root / "maps") == before


def test_a_scene_that_was_moved_is_not_mapped_again_but_found(
    place: Workplace, mapped: Callable[..., bool]
) -> None:
    before = files(place.root / "maps/a")
    (place.root / "elsewhere").mkdir()
    (place.root / "a.tif").rename(place.root / "elsewhere/a.tif")
    assert mapped is not None
    folder = place.map("elsewhere/a.tif")
    after = files(folder)
    assert about(folder)["source"] == "elsewhere/a.tif"
    assert {**after, "map.json": b""} == {**before, "map.json": b""}
    assert about(folder)["key"] == json.loads(before["map.json"])["key"]


# --- which scenes ----------------------------------------------------------------------------


def test_scenes_are_files_folders_globs_and_names_in_the_settings(place: Workplace) -> None:
    for name in ("one/a", "one/b", "two/c", "two/d", "three/e"):
        place.scene(noise(8, 9), name)
    make_scene(place.root / "three/e.tif", bands=[None] * 3, values=noise(8, 9))
    named = {"img_path": "three/e.tif", "bands": CHANNELS, "date": "2003-04-05"}
    edit_yaml(place.root / "conf/maps.yaml", maps={"LE07_E": named})
    result = place.run("one", "two/*.tif", "one/b.tif", "LE07_E")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[:5] == [f"maps/{n}" for n in ("a", "b", "c", "d", "LE07_E")]
    said = about(place.root / "maps/LE07_E")
    assert (said["scene"], said["source"]) == ("LE07_E", "three/e.tif")
    assert (said["bands"], said["date"]) == (CHANNELS, "2003-04-05")
    assert (place.root / "maps/LE07_E/LE07_E_classes.tif").exists()


def test_two_scenes_of_one_name_are_refused(place: Workplace) -> None:
    first, second = (place.scene(noise(8, 9), f"{folder}/a") for folder in ("one", "two"))
    line = place.refused(first, second)
    assert first in line
    assert second in line
    assert not (place.root / "maps").exists()


@pytest.mark.parametrize("missing", ["nowhere.tif", "no/*.tif"])
def test_a_scene_that_is_not_there_is_named(place: Workplace, missing: str) -> None:
    assert missing in place.refused(missing)


@pytest.mark.parametrize("name", ["X.v1.2", "a b", "Ünï", "2000-10-25"])
def test_a_scenes_name_may_have_dots_and_spaces(place: Workplace, name: str) -> None:
    folder = place.map(place.scene(noise(8, 9), name))
    assert folder.name == name
    assert SceneMap(folder).read("classes").shape == (8, 9)
    assert [p.name for p in folder.parent.iterdir()] == [name]


# --- several models --------------------------------------------------------------------------


def test_two_models_averaged_are_the_mean_and_their_spread_the_uncertainty(
    place: Workplace,
) -> None:
    other = save_far_sighted(place.root / "other", seed=2)
    place.edit(160, 64)
    values = noise(200, 230)
    values[0, 50:60, 60:90] = np.nan
    scene = place.scene(values)
    both = place.map(scene, model=["far", other.name])
    single = [
        stored(place.map(scene, model=m, out=m), "probabilities") for m in ("far", other.name)
    ]
    mean = np.mean([s.astype(float) for s in single], axis=0)
    assert np.abs(stored(both, "probabilities") - mean).max() <= 1.01
    seen = mask_of(both, "uncertainty")
    np.testing.assert_array_equal(seen, np.isfinite(values).all(axis=0))
    # Of the mapped class, from each model's own probabilities; background is what is left.
    all_of = [np.concatenate([255 - s.astype(float).sum(axis=0)[None], s]) for s in single]
    classes = np.where(seen, stored(both, "classes")[0], 0)
    of_class = [np.take_along_axis(a, classes[None].astype(int), axis=0)[0] for a in all_of]
    spread = np.std(of_class, axis=0)
    found = stored(both, "uncertainty")[0].astype(float)
    assert found[seen].max() > 60
    assert np.abs(found - spread)[seen].max() <= 1.6
    assert about(both)["models"] == [f"{name} (training tttttttt)" for name in ("far", "other")]
    assert not (place.root / "far/a/a_uncertainty.tif").exists()


def test_models_of_other_channels_and_sizes_are_averaged(place: Workplace) -> None:
    """In another order, fewer of them, and one that halves more often."""
    turned = save_far_sighted(
        place.root / "turned", seed=3, channels=CHANNELS[::-1], means=MEANS[::-1],
        standard_deviations=DEVIATIONS[::-1],
    )  # fmt: skip
    fewer = save_far_sighted(
        place.root / "fewer", depth=3, seed=4, channels=["B5"], means=MEANS[1:2],
        standard_deviations=DEVIATIONS[1:2],
    )  # fmt: skip
    values = noise(90, 70)
    values[2, 20:30] = np.nan
    scene = place.scene(values)
    models = ["far", turned.name, fewer.name]
    place.edit(256, 0)
    both = place.map(scene, model=models)
    # In one window each, whose size must suit the one that halves most.
    padded = np.pad(values, [(0, 0), (0, 6), (0, 2)], mode="reflect")
    means = [
        place.load(model).softmax(
            padded[None, [CHANNELS.index(c) for c in place.load(model).description.channels]]
        )[0, 1:, :90, :70]
        for model in models
    ]
    seen = np.isfinite(values).all(axis=0)
    found = stored(both, "probabilities") / 255
    assert np.abs(found - np.mean(means, axis=0))[:, seen].max() <= HALF_LEVEL
    np.testing.assert_array_equal(mask_of(both, "probabilities"), seen)
    assert list(about(both)["channels"]) == CHANNELS


def test_models_of_other_classes_are_refused(place: Workplace) -> None:
    save_far_sighted(place.root / "other", classes=["background", "debris", "clean_ice"])
    line = place.refused(place.scene(noise(8, 9)), model=["far", "other"])
    assert "tells background, debris, clean_ice apart, but far (" in line
    assert line.startswith("error: other (")
    assert not (place.root / "maps").exists()


@pytest.mark.parametrize("turns", [1, 2, 3])
@pytest.mark.parametrize("mirrored", [False, True])
def test_averaged_over_symmetries_a_turned_scene_gives_the_turned_map(
    place: Workplace, turns: int, mirrored: bool
) -> None:
    def turned(stack: NDArray[Any]) -> NDArray[Any]:
        stack = np.rot90(stack, turns, axes=(1, 2))
        return stack[:, :, ::-1] if mirrored else stack

    # One window, as much around the scene on every side.
    place.edit(320, 0)
    values = noise(128, 96)
    values[1, 30:40, 20:70] = np.nan
    one = place.map(place.scene(values), "--symmetries", model="far")
    other = place.map(place.scene(turned(values), "turned"), "--symmetries", model="far")
    for kind in ("probabilities", "confidence", "uncertainty"):
        expected = turned(stored(one, kind)).astype(int)
        assert np.abs(stored(other, kind) - expected).max() <= 1
        np.testing.assert_array_equal(mask_of(other, kind), turned(mask_of(one, kind)[None])[0])
    assert stored(one, "uncertainty").max() > 20
    plain = place.map(place.scene(turned(values), "turned"), model="far", out="plain")
    differs = stored(plain, "probabilities").astype(int) - stored(other, "probabilities")
    assert np.abs(differs).max() > 20


# --- what cannot be used ---------------------------------------------------------------------


def test_a_missing_band_is_named_with_the_model_and_the_scene(place: Workplace) -> None:
    bad = place.scene(noise(8, 9)[:2], "bad", bands=["B5", "slope"])
    line = place.refused(bad)
    assert f"bad.tif: has no band B2, elevation, which {PIXEL} needs; it has B5, slope" in line


@pytest.mark.parametrize("bad", ["band", "degenerate", "unnamed", "no image", "complex"])
def test_one_bad_scene_among_many_and_nothing_is_mapped(place: Workplace, bad: str) -> None:
    """Rather now than after the hours that the others take."""
    good, values = place.scene(noise(8, 9), "good"), noise(8, 9)
    if bad == "band":
        place.scene(values[:2], "zbad", bands=CHANNELS[:2])
    elif bad == "degenerate":
        place.scene(values, "zbad", transform=Affine(30, 0, 0, 0, 0, 0))
    elif bad == "unnamed":
        place.scene(values, "zbad", bands=[None] * 3)
    elif bad == "complex":
        place.scene(values, "zbad", dtype="complex64")
    else:
        (place.root / "zbad.tif").write_bytes(b"no image")
    line = place.refused(good, "zbad.tif")
    assert "zbad.tif" in line
    assert not (place.root / "maps").exists()


@pytest.mark.parametrize(
    "transform",
    [Affine(0, 0, 5e5, 0, 0, 3e6), Affine(30, 30, 5e5, 30, 30, 3e6), Affine(30, 0, 0, 0, 0, 0)],
    ids=["zero", "folded", "flat"],
)
def test_pixels_without_an_area_are_refused(place: Workplace, transform: Affine) -> None:
    line = place.refused(place.scene(noise(8, 9), transform=transform))
    assert "a.tif: its pixels have no area" in line


@pytest.mark.parametrize("kept", [0.3, 0.55, 0.999])
@pytest.mark.parametrize("compress", ["deflate", None])
def test_a_truncated_scene_is_refused_and_leaves_no_map(
    place: Workplace, kept: float, compress: str | None
) -> None:
    """Which is noticed only where the file ends."""
    scene = place.root / place.scene(noise(400, 200), compress=compress)
    content = scene.read_bytes()
    scene.write_bytes(content[: int(kept * len(content))])
    line = place.refused("a.tif")
    assert "a.tif: " in line
    assert list((place.root / "maps").glob("*")) == list((place.root / "maps").glob(".*")) == []
    scene.write_bytes(content)
    assert about(place.map("a.tif"))["seen"] == 1


def test_probabilities_that_are_no_numbers_name_the_model(place: Workplace) -> None:
    shutil.copytree(place.root / "pixel", place.root / "diverged")
    change_weights(
        place.root / "diverged", "network.head.bias", lambda values: values.fill_(float("nan"))
    )
    line = place.refused(place.scene(noise(100, 90)), model=["pixel", "diverged"])
    assert line.startswith("error: diverged (training tttttttt): gives probabilities that are no")
    assert list((place.root / "maps").iterdir()) == []


@pytest.mark.parametrize("spoil", ["weights", "description", "both"])
def test_a_model_that_is_damaged_or_missing_is_named(place: Workplace, spoil: str) -> None:
    model = place.root / "spoilt"
    shutil.copytree(place.root / "pixel", model)
    if spoil != "description":
        (model / "model.safetensors").write_bytes(b"\0" * 100)
    if spoil != "weights":
        (model / "model.json").write_text("{")
    assert "spoilt: the model is damaged" in place.refused(place.scene(noise(8, 9)), model="spoilt")
    (model / "model.safetensors").unlink()
    (model / "model.json").unlink()
    assert "spoilt" in place.refused("a.tif", model="spoilt")
    assert "nowhere: no such folder" in place.refused("a.tif", model="nowhere")


def test_files_are_closed_only_after_their_threads_have_ended(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GDAL would crash: here the network fails while the next rows are read."""
    change_weights(
        place.root / "pixel", "network.head.bias", lambda values: values.fill_(float("nan"))
    )
    reading, closed_while_reading = threading.Event(), []
    strip_read, view, close = threading.Event(), Scene.view_into, Scene.close

    def slow_view(self: Scene, *args: Any) -> Any:
        if strip_read.is_set():  # of the strips after the first
            reading.set()
            time.sleep(0.5)
        found = view(self, *args)
        strip_read.set()
        reading.clear()
        return found

    def watched_close(self: Scene) -> None:
        closed_while_reading.append(reading.is_set())
        close(self)

    predict = Ensemble.predict

    def waits(self: Ensemble, pixels: Any) -> Any:
        assert reading.wait(10)
        return predict(self, pixels)

    monkeypatch.setattr(Scene, "view_into", slow_view)
    monkeypatch.setattr(Scene, "close", watched_close)
    monkeypatch.setattr(Ensemble, "predict", waits)
    assert "no numbers" in place.refused(place.scene(noise(200, 60)))
    assert closed_while_reading == [False, False]  # checked, then mapped


# --- where it cannot be written --------------------------------------------------------------


@pytest.mark.parametrize("out", ["file/deeper", "/proc/nowhere"])
def test_a_folder_that_cannot_be_written_is_one_clear_error(place: Workplace, out: str) -> None:
    (place.root / "file").write_text("in the way")
    line = place.refused(place.scene(noise(8, 9)), out=out, code=1)
    assert f"{out}/a: cannot be written" in line


def test_a_file_in_place_of_the_folder_is_refused(place: Workplace) -> None:
    (place.root / "file").write_text("in the way")
    result = place.run(place.scene(noise(8, 9)), out="file")
    assert result.exit_code == 2
    assert "Directory 'file' is a file" in result.stderr
    assert (place.root / "file").read_text() == "in the way"


# As many bytes as a file may have: not enough for a header, for a strip of rows, for two bands.
ROOM = [500, 20_000, 1_048_900]


@pytest.mark.slow
@pytest.mark.parametrize("room", ROOM)
def test_the_real_command_without_room_says_so_in_one_line_and_leaves_nothing(
    place: Workplace, room: int
) -> None:
    def little_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))

    values = noise(600, 560)
    values[0][np.random.default_rng(0).random((600, 560)) < 0.3] = np.nan
    words = ("map", place.scene(values), "--model", "pixel", "--out", "maps")
    failed = glacier(place.root, *words, limit=little_room)
    assert failed.returncode == 1, failed.stderr
    [line] = [line for line in failed.stderr.splitlines() if line.startswith("error:")]
    assert "Traceback" not in failed.stderr
    assert "maps" in line
    assert "room" in line
    assert list((place.root / "maps").iterdir()) == []
    if room == ROOM[0]:
        done = glacier(place.root, *words)
        assert done.returncode == 0, done.stderr
        assert [path.name for path in (place.root / "maps").iterdir()] == ["a"]


def test_a_file_that_lost_its_end_on_closing_is_noticed(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GDAL only prints what goes wrong then, to the terminal: the tiles and masks are gone."""
    copy = vars(rasters)["_copy"]

    def loses_mask(source: Path, target: Path, **options: Any) -> None:
        with rasterio.open(source) as file:
            profile = file.profile | {"driver": "GTiff"}
            values = file.read()
        with rasterio.open(source, "w", **profile) as file:
            file.write(values)
        copy(source, target, **options)

    def loses_tile(source: Path, target: Path, **options: Any) -> None:
        with rasterio.open(source, "r+") as file:
            file.write(np.zeros((file.count, 1, 1), file.dtypes[0]),
                       window=rasterio.windows.Window(0, 0, 1, 1))  # fmt: skip
        copy(source, target, **options)

    values = noise(60, 50)
    values[0, 5] = np.nan
    values[0, 0, 0] = MEANS[0] + 90
    for loses in (loses_mask, loses_tile):
        with monkeypatch.context() as patch:
            patch.setattr(rasters, "_copy", loses)
            line = place.refused(place.scene(values), code=1)
        assert "does not hold what was written" in line
        assert "room" in line
        assert list((place.root / "maps").iterdir()) == []
    assert place.map("a.tif").exists()


def test_a_map_that_obviously_has_no_room_is_not_begun(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(place.root)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    monkeypatch.setattr(MapRasters, "write", None)
    line = place.refused(place.scene(noise(100, 90)), code=1)
    assert "the map needs up to" in line
    assert list((place.root / "maps").iterdir()) == []


def test_a_failed_second_map_leaves_the_first_one(place: Workplace) -> None:
    scene = place.scene(noise(60, 50))
    before = files(place.map(scene))
    change_weights(
        place.root / "pixel", "network.head.bias", lambda values: values.fill_(float("nan"))
    )
    place.refused(scene)
    assert files(place.root / "maps/a") == before


def test_a_killed_run_leaves_no_half_written_map_and_the_next_one_clears_up(
    place: Workplace,
) -> None:
    save_far_sighted(place.root / "slow", depth=4)
    place.edit(256, 128)
    scene = place.scene(noise(1500, 1500))
    words = ["map", scene, "--model", "slow", "--out", "maps"]
    run = subprocess.Popen(
        [Path(sys.executable).with_name("glacier"), *words],
        cwd=place.root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        partial: list[Path] = []
        for _ in range(600):
            partial = list((place.root / "maps").glob(".a.partial-*/a_classes.plain.tif"))
            if partial or run.poll() is not None:
                break
            time.sleep(0.05)
        assert partial, "ended before it could be killed"
        time.sleep(0.2)
    finally:
        run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    assert [path.name[:11] for path in (place.root / "maps").iterdir()] == [".a.partial-"]
    place.scene(noise(40, 50))
    place.edit(64, 16)
    folder = place.map(scene, model="slow")
    assert [path.name for path in (place.root / "maps").iterdir()] == ["a"]
    assert SceneMap(folder).read("classes").shape == (40, 50)


# --- memory ----------------------------------------------------------------------------------

# Not what getrusage says: a process begins with the peak of the one that started it.
_PEAK = """\
import sys
from pathlib import Path
from glacier_core.cli import main
try:
    main(sys.argv[1:])
finally:
    print(next(l for l in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in l))
"""


def peak_kb(place: Workplace, *words: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, "map", *words],
        cwd=place.root, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return int(done.stdout.splitlines()[-1].split()[1])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc, which Linux has")
def test_a_scene_three_times_as_tall_takes_no_more_memory(place: Workplace) -> None:
    """All of the taller one in memory would take 250 MB more, half as much again."""
    place.edit(256, 64)
    peaks = {}
    for height in (1800, 5400):
        name = f"tall_{height}"
        profile = {"driver": "GTiff", "height": height, "width": 3000, "count": 3,
                   "dtype": "float32", "tiled": True, "crs": UTM, "transform": north_up()}  # fmt: skip
        with rasterio.open(place.root / f"{name}.tif", "w", **profile) as file:
            for row in range(0, height, 600):
                window = rasterio.windows.Window(0, row, 3000, 600)
                file.write(noise(600, 3000, seed=row), window=window)
            for number, band in enumerate(CHANNELS, start=1):
                file.set_band_description(number, band)
        words = (f"{name}.tif", "--model", "pixel", "--out", "maps")
        peaks[height] = peak_kb(place, *words)
    assert peaks[5400] < 1.15 * peaks[1800], peaks
