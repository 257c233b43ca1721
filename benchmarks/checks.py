"""That our results and the reference's are the same where they must be. Each runs in a worker.

What is compared is read by our own dataset's reader, so that how slices are stored is free to
change.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio

from benchmarks.reference import IGNORED, seen_pixels
from benchmarks.sizes import SCENE
from glacier_core.config import Project
from glacier_core.dataset.loading import Dataset
from glacier_core.dataset.slicing import SlicedScene

_ROWS = 512
_INTEGERS = {kind: np.iinfo(kind) for kind in ("uint8", "int16", "uint16")}


def split_of(project: str, out: str) -> dict[str, Any]:
    """Write which split each slice lies in before any filter, for the reference to follow."""
    content = json.loads((Project(Path(project)).dataset_folder / "slices.geojson").read_text())
    found = {}
    for feature in content["features"]:
        said = feature["properties"]
        # The training split alone is filtered by its share of ice.
        name = {"too little of the classes": "train"}.get(said["split"], said["split"])
        if name in ("train", "dev", "test"):
            found[str(said["k"])] = name
    Path(out).write_text(json.dumps(found))
    return {"slices": len(found)}


def masks(project: str, reference: str) -> dict[str, Any]:
    """Pixels in which masks, and borders, differ."""
    folder = Project(Path(project)).mask_folder(SCENE)
    found = {}
    for kind in ("mask", "border"):
        ours = np.load(folder / f"{kind}_{SCENE}.npy", mmap_mode="r")
        theirs = np.load(Path(reference) / f"{kind}.npy", mmap_mode="r")
        if ours.shape != theirs.shape:
            return {"wrong": [f"{kind}: {ours.shape} against {theirs.shape}"]}
        rows = range(0, len(ours), 512)
        found[kind] = int(sum((ours[r : r + 512] != theirs[r : r + 512]).sum() for r in rows))
    wrong = [f"{count} pixels of the {kind} differ" for kind, count in found.items() if count]
    return {"differing_pixels": found, "wrong": wrong}


def slices(project: str, reference: str) -> dict[str, Any]:
    """Number of slices; labels of all in a split; values of every seen pixel."""
    place = Project(Path(project))
    records = SlicedScene.read(place.slice_folder(SCENE) / "slices.geojson").slices
    kept = json.loads((Path(reference) / "kept.json").read_text())
    ours = [record.k for record in records if record.img is not None]
    wrong = [] if ours == kept else [f"{len(ours)} slices with something seen, not {len(kept)}"]
    dataset = Dataset.open(place.dataset_folder)
    compared = labels = values = 0
    for name, samples in dataset.splits.items():
        for sample in samples:
            label = dataset.label(name, sample)
            theirs = np.load(Path(reference) / f"mask_{sample.k}.npy")
            numbers = np.zeros(label.shape, dtype=np.uint8)
            for k in range(theirs.shape[2]):
                numbers[theirs[..., k] == 1] = k + 1
            numbers[theirs[..., 0] == IGNORED] = IGNORED
            labels += int((label != numbers).sum())
            seen = label != IGNORED
            image = np.load(Path(reference) / f"img_{sample.k}.npy")
            values += int((dataset.image(name, sample)[seen] != image[seen]).sum())
            compared += 1
    wrong += [f"{labels} pixels of the labels differ"] if labels else []
    wrong += [f"{values} values of seen pixels differ"] if values else []
    return {"slices": len(ours), "compared": compared, "wrong": wrong}


def statistics(project: str, scene: str, reference: str) -> dict[str, Any]:
    """Means and deviations, against the scene's pixels counted once, and against the reference's.

    The reference counts where slices overlap twice, so that its statistics lie a little off; how
    far, in deviations, is said.
    """
    place = Project(Path(project))
    dataset = Dataset.open(place.dataset_folder)
    said = json.loads((place.root / place.postprocess.statistics_path).read_text())
    with rasterio.open(scene) as file:
        names = list(file.descriptions)
        shown: npt.NDArray[np.bool_] = np.zeros((file.height, file.width), dtype=bool)
        for sample in dataset.splits["train"]:
            shown[sample.window.slices] = True
        border = np.load(place.mask_folder(SCENE) / f"border_{SCENE}.npy", mmap_mode="r")
        # Bands lie pixel by pixel in the file: one pass for all of them.
        pixels = []
        for row in range(0, file.height, _ROWS):
            part = slice(row, row + _ROWS)
            values = file.read(window=((row, min(row + _ROWS, file.height)), (0, file.width)))
            shown[part] &= seen_pixels(values, names, border[part])
            pixels.append(values[:, shown[part]])
    counted = np.concatenate(pixels, axis=1)
    means = [band.mean(dtype=np.float64) for band in counted]
    deviations = [band.std(dtype=np.float64) for band in counted]
    theirs = json.loads((Path(reference) / "statistics.json").read_text())
    scale = np.maximum(deviations, 1e-9)
    exact = [
        float(np.abs((np.array(said[key]) - wanted) / scale).max())
        for key, wanted in (("means", means), ("standard_deviations", deviations))
    ]
    near = [
        float(np.abs((np.array(said[key]) - np.array(theirs[key])) / scale).max())
        for key in ("means", "standard_deviations")
    ]
    wrong = [] if max(exact) < 1e-6 else [f"statistics are {max(exact):.2g} deviations off"]
    # Overlaps are a few hundredths of the ground (of small slices, more), and much like the rest.
    wrong += [] if max(near) < 0.1 else [f"the reference's are {max(near):.2g} deviations off"]
    counts = {int(shown.sum())} == set(said["counts"])
    wrong += [] if counts else [f"{said['counts']} pixels are counted, not {int(shown.sum())}"]
    return {"off_exact": max(exact), "off_reference": max(near), "wrong": wrong}


def dataset_splits(project: str, reference: dict[str, list[int]]) -> dict[str, Any]:
    """Numbers of the slices in each split."""
    ours = Dataset.open(Project(Path(project)).dataset_folder).splits
    wrong = []
    for name, samples in ours.items():
        if sorted(sample.k for sample in samples) != sorted(reference[name]):
            wrong.append(f"{name}: {len(samples)} slices, the reference has {len(reference[name])}")
    return {"slices": {name: len(samples) for name, samples in ours.items()}, "wrong": wrong}


def maps(ours: str, reference: str, target: int) -> dict[str, Any]:
    """Share of seen pixels in which our map and the reference's agree whether they show a class.

    The reference's windows do not overlap and end in zeros, its arithmetic is float32: along the
    windows' edges, and where two classes are as good as even, it may differ.
    """
    with rasterio.open(ours) as file:
        classes = file.read(1)
    with rasterio.open(reference) as file:
        theirs = file.read(1)
    seen = classes != IGNORED
    wrong = []
    if (seen != (theirs != IGNORED)).any():
        wrong.append(f"{int((seen != (theirs != IGNORED)).sum())} pixels are seen in one map alone")
    agree = float(((classes == target) == (theirs == 1))[seen].mean())
    wrong += [] if agree > 0.95 else [f"the maps agree in {agree:.1%} of the pixels"]
    shares = {str(k): float((classes[seen] == k).mean()) for k in np.unique(classes[seen])}
    return {"agree": agree, "class_shares": shares, "wrong": wrong}


def burned(masks: str, rasterised: str, classes: list[str]) -> dict[str, Any]:
    """Pixels in which our mask and what GDAL alone burned differ."""
    ours = np.load(masks, mmap_mode="r")
    wrong = []
    for k, name in enumerate(classes):
        with rasterio.open(Path(rasterised) / f"{name}.tif") as file:
            count = int((file.read(1) != ours[..., k]).sum())
        if count:
            wrong.append(f"{name}: {count} pixels differ from GDAL's")
    return {"wrong": wrong}


def slice_bytes(project: str, scene: str) -> dict[str, Any]:
    """What a slice takes on the disk, and what its values are worth.

    Returns:
        `image`, `label`: mean bytes of files a slice, `uniform`: of its pixels in the narrowest
        dtype that holds all bands without loss, `by_band`: in the narrowest for each, `copied`:
        bytes of the dataset's slices that are no links, `types` by band.
    """
    place = Project(Path(project))
    folder = place.slice_folder(SCENE)
    kept = [r for r in SlicedScene.read(folder / "slices.geojson").slices if r.img is not None]
    sizes = {"image": 0, "label": 0}
    for path in folder.iterdir():
        if path.name != "slices.geojson":
            sizes["label" if "label" in path.name else "image"] += path.stat().st_size
    linked = {path.stat().st_ino for path in folder.iterdir()}
    copied = sum(
        path.stat().st_size
        for name in ("train", "dev", "test")
        for path in (place.dataset_folder / name).iterdir()
        if path.stat().st_ino not in linked
    )
    edge = place.params.slice.size
    types = _narrowest(scene)
    every = np.result_type(*types.values())
    return {
        **{key: value / len(kept) for key, value in sizes.items()},
        "uniform": edge**2 * len(types) * every.itemsize,
        "by_band": edge**2 * sum(np.dtype(kind).itemsize for kind in types.values()),
        "copied": copied,
        "types": types,
    }


def _narrowest(scene: str) -> dict[str, str]:
    """By band, the narrowest dtype that holds it without loss, and one value more for unseen."""
    low = -(2**15)
    with rasterio.open(scene) as file:
        own = np.dtype(file.dtypes[0])
        kinds = {name: [*_INTEGERS, "float16"] for name in file.descriptions}
        used = {name: np.zeros(2**17, dtype=bool) for name in file.descriptions}
        for row in range(0, file.height, _ROWS):
            window = ((row, min(row + _ROWS, file.height)), (0, file.width))
            for name, band in zip(kinds, file.read(window=window), strict=True):
                pixels = band[np.isfinite(band) & (band != file.nodata)]
                kinds[name] = [kind for kind in kinds[name] if _holds(kind, pixels)]
                if any(kind in _INTEGERS for kind in kinds[name]):
                    used[name][pixels.astype(np.int64) - low] = True
    found = {}
    for name, left in kinds.items():
        room = [
            kind
            for kind in left
            if kind not in _INTEGERS
            or used[name].sum() <= _INTEGERS[kind].max - _INTEGERS[kind].min
        ]
        found[name] = room[0] if room else own.name
    return found


def _holds(kind: str, pixels: npt.NDArray[np.generic]) -> bool:
    if kind in _INTEGERS and pixels.size:
        limits = _INTEGERS[kind]
        if pixels.min() < limits.min or pixels.max() > limits.max:
            return False
    with np.errstate(over="ignore"):  # what float16 cannot hold becomes infinite, and differs
        return bool((pixels.astype(kind).astype(pixels.dtype) == pixels).all())
