"""The benchmark says wrong results, and nothing else, with its exit code."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from click.testing import CliRunner

from benchmarks import __main__ as command
from benchmarks import checks
from benchmarks.measure import REPOSITORY, Failed, Measured, alternately, environment, run, work
from benchmarks.plain_network import like_ours
from benchmarks.projects import Bench
from benchmarks.results import Goal, Row
from benchmarks.scene import in_swath, make_scene, make_tiles
from benchmarks.sizes import FULL, SCENE
from glacier_core.model.unet import Architecture, UNet


def benchmarks(cache: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", "--small", "--cache", str(cache), *words],
        cwd=REPOSITORY, env=environment(2), capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, dict[str, Any]]:
    """The rows whose results can be compared with the reference's, run for real."""
    cache = tmp_path_factory.mktemp("bench")
    done = benchmarks(cache, "--only", "dataset,bytes,mask")
    assert done.returncode == 0, done.stdout + done.stderr
    content = json.loads((cache / "small/results.json").read_text())
    return cache / "small", done.stdout, content


@pytest.mark.slow
def test_masks_slices_and_statistics_are_those_of_the_plain_procedure(
    measured: tuple[Path, str, dict[str, Any]],
) -> None:
    _, _, content = measured
    row = content["rows"]["dataset"]
    assert row["wrong"] == []
    assert row["numbers"]["masks"]["differing_pixels"] == {"mask": 0, "border": 0}
    assert row["numbers"]["slices"]["compared"] > 10
    assert row["numbers"]["statistics"]["off_exact"] < 1e-6
    assert content["rows"]["mask"]["wrong"] == []


@pytest.mark.slow
def test_the_table_has_a_line_a_goal_and_the_json_every_value(
    measured: tuple[Path, str, dict[str, Any]],
) -> None:
    _, said, content = measured
    for name, row in content["rows"].items():
        for goal in row["goals"]:
            assert f"{name}: {goal['what']}" in said
    for key in ("cores", "cpu", "flags", "ram_gb", "disk_write_mb_s", "torch", "gdal", "threads"):
        assert key in content["machine"]
    for side in content["rows"]["dataset"]["sides"].values():
        assert side["values"]
        assert side["peak_bytes"] > 1e7
    assert set(content["rows"]["dataset"]["sides"]["ours"]["parts"]) == {
        "mask", "slice", "postprocess",
    }  # fmt: skip


@pytest.mark.slow
def test_a_run_that_was_stopped_measures_only_what_is_missing(
    measured: tuple[Path, str, dict[str, Any]],
) -> None:
    folder, _, before = measured
    done = benchmarks(folder.parent, "--only", "bytes,mask")
    assert done.returncode == 0
    assert done.stderr.count("measured already") == 2
    assert json.loads((folder / "results.json").read_text())["rows"] == before["rows"]


@pytest.mark.slow
def test_one_pixel_of_a_mask_that_differs_is_found(
    measured: tuple[Path, str, dict[str, Any]], tmp_path: Path
) -> None:
    folder, _, _ = measured
    project, reference = folder / "project", folder / "reference"
    assert checks.masks(str(project), str(reference / "masks"))["wrong"] == []
    shutil.copytree(reference / "masks", tmp_path / "masks")
    mask = np.load(tmp_path / "masks/mask.npy")
    mask[500, 300, 1] ^= 1
    np.save(tmp_path / "masks/mask.npy", mask)
    wrong = checks.masks(str(project), str(tmp_path / "masks"))["wrong"]
    assert wrong == ["1 pixels of the mask differ"]


@pytest.mark.slow
def test_statistics_slices_and_splits_that_differ_are_found(
    measured: tuple[Path, str, dict[str, Any]], tmp_path: Path
) -> None:
    folder, _, content = measured
    project = tmp_path / "project"
    shutil.copytree(folder / "project", project)
    reference, scene = folder / "reference", next(folder.glob("scene_*/*.tif"))
    path = project / "data/dataset/statistics.json"
    said = json.loads(path.read_text())
    said["means"][0] += 1e-3 * said["standard_deviations"][0]
    path.write_text(json.dumps(said))
    [wrong] = checks.statistics(str(project), str(scene), str(reference / "dataset"))["wrong"]
    assert "0.001 deviations off" in wrong

    shutil.copytree(reference / "slices", tmp_path / "slices")
    kept = json.loads((tmp_path / "slices/kept.json").read_text())
    (tmp_path / "slices/kept.json").write_text(json.dumps(kept[:-1]))
    image = json.loads((project / "data/dataset/dataset.json").read_text())["splits"]["test"][0]
    values = np.load(tmp_path / f"slices/img_{image['k']}.npy")
    values[~np.isnan(values)] += 1
    np.save(tmp_path / f"slices/img_{image['k']}.npy", values)
    wrong = checks.slices(str(project), str(tmp_path / "slices"))["wrong"]
    assert len(wrong) == 2
    assert f"{len(kept)} slices" in wrong[0]
    assert "values of seen pixels differ" in wrong[1]

    counts = content["rows"]["dataset"]["numbers"]["dataset_splits"]["slices"]
    empty: dict[str, list[int]] = {"train": [], "dev": [], "test": []}
    wrong = checks.dataset_splits(str(project), empty)["wrong"]
    assert [f"{name}: {count} slices" in text
            for (name, count), text in zip(counts.items(), wrong, strict=True)] == [True] * 3  # fmt: skip


@pytest.mark.slow
def test_bytes_that_the_values_are_worth_and_second_copies_are_counted(
    measured: tuple[Path, str, dict[str, Any]], tmp_path: Path
) -> None:
    folder, _, content = measured
    said = content["rows"]["bytes"]["numbers"]
    types = said["types"]
    # Digital numbers 1 to 255 and one value for unseen; quality bits; ratios; metres with decimals.
    assert (types["B1"], types["BQA"]) == ("uint8", "int16")
    assert (types["NDSI"], types["elevation"]) == ("float32", "float32")
    assert said["uniform"] == 128 * 128 * 15 * 4
    assert said["by_band"] == 128 * 128 * (9 * 1 + 2 + 5 * 4)
    assert said["copied"] == 0
    project = tmp_path / "project"
    subprocess.run(["cp", "-a", str(folder / "project"), str(project)], check=True)  # keeps links
    twice = next((project / "data/dataset/train").glob("*img*"))
    content_of = twice.read_bytes()
    twice.unlink()
    twice.write_bytes(content_of)
    scene = next(folder.glob(f"scene_1000x1100/{SCENE}.tif"))
    assert checks.slice_bytes(str(project), str(scene))["copied"] == len(content_of)


@pytest.mark.parametrize(("wrong", "code"), [([], 0), (["a pixel differs"], 1)])
def test_a_wrong_result_fails_and_a_goal_that_is_missed_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: list[str], code: int
) -> None:
    def slow(bench: Bench) -> Row:
        """A row that takes far too long."""
        return Row([Goal("time", "≤ 1 s", f"{bench.size.pixels} s", met=False)], wrong=wrong)

    monkeypatch.setattr(command, "ROWS", {"bytes": slow})
    monkeypatch.setattr(command, "machine", lambda *_: {"cpu": "abacus"})
    done = CliRunner().invoke(
        command.main, ["--small", "--only", "bytes", "--cache", str(tmp_path)]
    )
    assert done.exit_code == code, done.output
    assert "bytes: time" in done.output
    assert ("WRONG bytes: a pixel differs" in done.output) == bool(code)


def test_an_unknown_row_is_refused_by_its_name(tmp_path: Path) -> None:
    done = CliRunner().invoke(command.main, ["--only", "speed", "--cache", str(tmp_path)])
    assert done.exit_code == 2
    assert "no row speed; there are dataset, bytes, mask" in done.output


def test_peak_memory_is_that_of_a_process_and_its_children_together(tmp_path: Path) -> None:
    # Each holds 150 MB while the other does.
    hold = "import time; held = bytearray(150_000_000); time.sleep(1.2)"
    both = (
        "import subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {hold!r}])\n"
        f"{hold}\nchild.wait()"
    )
    alone = run([sys.executable, "-c", hold], cwd=tmp_path, env=environment(1))
    together = run([sys.executable, "-c", both], cwd=tmp_path, env=environment(1))
    assert 150e6 < alone.peak_bytes < 250e6
    assert 300e6 < together.peak_bytes < 450e6
    assert alone.wall_s > 1.2


def test_a_peak_too_short_to_be_seen_is_in_the_kernels_record(tmp_path: Path) -> None:
    # From a small process, as the benchmark's own is: a large parent hides its children's record.
    said = subprocess.run(
        [sys.executable, "-c",
         "import sys; from pathlib import Path; from benchmarks.measure import environment, run\n"
         "short = 'held = bytearray(300_000_000); del held'\n"
         "print(run([sys.executable, '-c', short], cwd=Path(), env=environment(1)).peak_bytes)"],
        cwd=tmp_path, env=environment(1), capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert 300e6 < int(said) < 350e6


def test_a_command_that_fails_ends_the_run_with_its_words(tmp_path: Path) -> None:
    with pytest.raises(Failed, match=r"exit 3\n.*\n*no such glacier"):
        run(
            [sys.executable, "-c", "import sys; print('no such glacier'); sys.exit(3)"],
            cwd=tmp_path, env=environment(1),
        )  # fmt: skip


def test_sides_take_turns_and_none_always_goes_first() -> None:
    order = []

    def one(name: str) -> Callable[[], Measured]:
        def measure() -> Measured:
            order.append(name)
            return Measured(1.0, 1)

        return measure

    found = alternately({"ours": one("ours"), "theirs": one("theirs")}, 3, [], lambda _: None)
    assert order == ["ours", "theirs", "theirs", "ours", "ours", "theirs"]
    assert {name: len(values) for name, values in found.items()} == {"ours": 3, "theirs": 3}


@pytest.mark.parametrize("normalisation", ["batch", "none"])
def test_the_plain_network_computes_what_ours_does(normalisation: str) -> None:
    torch.manual_seed(0)
    conf = Architecture(3, 4, 0.2, "all", spatial_dropout=False, normalisation=normalisation)
    ours = UNet(5, 3, conf)
    with torch.no_grad():
        ours(3 * torch.randn(4, 5, 32, 32) + 1)  # so that the normalisation has learnt something
    ours.eval()
    x = torch.randn(2, 5, 64, 48)
    with torch.inference_mode():
        assert ours(x).std() > 0.01
        torch.testing.assert_close(like_ours(ours)(x), ours(x), rtol=1e-4, atol=1e-5)


def test_the_scene_is_the_same_wherever_it_is_made_and_looks_like_a_landsat_stack(
    tmp_path: Path,
) -> None:
    for name in ("one", "other"):
        make_tiles(str(tmp_path / name / "tiles"), 128)
        make_scene(str(tmp_path / name / "scene"), str(tmp_path / name / "tiles"), 300, 340)
    first, second = (tmp_path / name / f"scene/{SCENE}.tif" for name in ("one", "other"))
    assert first.read_bytes() == second.read_bytes()
    with rasterio.open(first) as scene:
        profile = scene.profile
        assert (profile["dtype"], profile["compress"], profile["count"]) == ("float32", "lzw", 15)
        assert (profile["blockxsize"], profile["blockysize"]) == (256, 256)
        values = scene.read()
    outside = ~in_swath(0, 300, 300, 340)
    assert np.isnan(values[:, outside]).all()
    assert np.isfinite(values[13:, ~outside]).all()  # elevation and slope have no gaps
    assert 100 < len(np.unique(values[0][np.isfinite(values[0])])) < 256


def test_three_quarters_of_the_full_scene_are_seen() -> None:
    seen = sum(
        int(in_swath(row, 700, FULL.height, FULL.width).sum()) for row in range(0, 7000, 700)
    )
    assert 0.755 < seen / FULL.pixels < 0.765


def test_a_worker_returns_what_its_function_found(tmp_path: Path) -> None:
    found = work(
        "floors:write",
        {"folder": str(tmp_path / "files"), "sizes": [1000, 10], "threads": 2},
        threads=1,
    )
    assert found.said["bytes"] == 1010
    assert found.seconds == found.said["seconds"] < found.wall_s
    assert not (tmp_path / "files").exists()


@pytest.mark.slow
def test_every_row_runs_and_every_result_is_right(tmp_path: Path) -> None:
    done = benchmarks(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "small/results.json").read_text())["rows"]
    assert list(rows) == [name for name in command.ROWS if name != "quadruple"]
    assert rows["map"]["numbers"]["maps"]["agree"] > 0.95
    # The maps are maps: there is ice, and there is none. (For debris, so little does not suffice.)
    shares = rows["map"]["numbers"]["maps"]["class_shares"]
    assert min(shares["0"], shares["1"]) > 0.05
    assert rows["train"]["sides"]["memory"]["median"] > 0
    assert all(goal["measured"] for row in rows.values() for goal in row["goals"])
