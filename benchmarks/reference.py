"""The procedure without any care, in our own words: whole scenes in memory, copies of copies.

The published reference works so; this is not its code. Where both must agree (which pixels lie
inside, which were seen, how many slices there are), it follows the same rules as ours.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import rasterio
import rasterio.features

IGNORED = 255


def mask(
    scene: str, outlines: dict[str, str], border: str, year: int, tolerance: int, out: str
) -> dict[str, Any]:
    """Read the scene, burn every class, write `mask.npy` (rows, columns, classes) and `border.npy`."""
    with rasterio.open(scene) as dataset:
        image = dataset.read()
        transform, crs = dataset.transform, dataset.crs
    height, width = image.shape[1:]
    masks = np.zeros((height, width, len(outlines)), dtype=np.uint8)
    for k, path in enumerate(outlines.values()):
        frame = gpd.read_file(path).to_crs(crs)
        frame = frame[(frame["year"] - year).abs() <= tolerance]
        masks[..., k] = _burned(frame, (height, width), transform)
    inside = _burned(gpd.read_file(border).to_crs(crs), (height, width), transform)
    folder = Path(out)
    folder.mkdir(parents=True)
    np.save(folder / "mask.npy", masks)
    np.save(folder / "border.npy", inside)
    return {}


def _burned(
    frame: gpd.GeoDataFrame, shape: tuple[int, int], transform: Any
) -> npt.NDArray[np.uint8]:
    burned: npt.NDArray[np.uint8] = rasterio.features.rasterize(
        [(polygon, 1) for polygon in frame.geometry],
        out_shape=shape,
        transform=transform,
        dtype=np.uint8,
    )
    return burned


def seen_pixels(
    image: npt.NDArray[np.float32], names: list[str], border: npt.NDArray[np.uint8]
) -> npt.NDArray[np.bool_]:
    """bool (rows, columns): every band has a value, none is cloud, and inside the study area.

    Bits of BQA as in the Collection 1 handbook: 0 fill, 1 dropped, 4 cloud, 7 and 8 cloud shadow.
    """
    quality = np.nan_to_num(image[names.index("BQA")], nan=1).astype(np.int64)
    clear = (quality & 0b10011) == 0
    clear &= (quality >> 7 & 0b11) != 0b11
    seen: npt.NDArray[np.bool_] = np.isfinite(image).all(axis=0) & clear & (border == 1)
    return seen


def starts(length: int, size: int, overlap: int) -> list[int]:
    """First pixels of sliding windows, the last one moved back to end at the edge."""
    found = list(range(0, max(length - size, 0), size - overlap))
    return [*found, max(length - size, 0)]


def slice_scene(scene: str, masks: str, size: int, overlap: int, out: str) -> dict[str, Any]:
    """Cut windows out of the whole scene: `img_K.npy` and `mask_K.npy`, both float32.

    Windows in which nothing was seen are left out. Unseen pixels are NaN in the image, 255 in
    the mask.

    Returns:
        `windows` in all, and the numbers `kept`.
    """
    with rasterio.open(scene) as dataset:
        image = dataset.read()
        names = list(dataset.descriptions)
    burned = np.load(Path(masks) / "mask.npy")
    seen = seen_pixels(image, names, np.load(Path(masks) / "border.npy"))
    image = np.transpose(image, (1, 2, 0)).copy()
    image[~seen] = np.nan
    label = burned.astype(np.float32)
    label[~seen] = IGNORED
    folder = Path(out)
    folder.mkdir(parents=True)
    kept, k = [], 0
    for row in starts(image.shape[0], size, overlap):
        for col in starts(image.shape[1], size, overlap):
            at = (slice(row, row + size), slice(col, col + size))
            if seen[at].any():
                np.save(folder / f"img_{k}.npy", image[at])
                np.save(folder / f"mask_{k}.npy", label[at])
                kept.append(k)
            k += 1
    (folder / "kept.json").write_text(json.dumps(kept))
    return {"windows": k, "kept": kept}


def postprocess(
    slices: str, split: str, minimum: list[float], min_valid: float, out: str
) -> dict[str, Any]:
    """Filter, split, impute, take statistics, and write normalised copies.

    Args:
        slices: what `slice_scene` wrote.
        split: JSON, by number of a slice its split: ours, so that both take statistics of the
            same ground.
        minimum: by class, the share of a training slice's seen pixels, of which one is enough.
        min_valid: least share of seen pixels.
        out: folder for `train/`, `dev/`, `test/` and `statistics.json`.

    Returns:
        By split, the numbers of its slices.
    """
    folder = Path(slices)
    chosen: dict[str, list[int]] = {"train": [], "dev": [], "test": []}
    assigned = json.loads(Path(split).read_text())
    for k in json.loads((folder / "kept.json").read_text()):
        label = np.load(folder / f"mask_{k}.npy")
        valid = label[..., 0] != IGNORED
        shares = [(label[..., i] == 1).sum() / valid.sum() for i in range(len(minimum))]
        enough = any(share >= least for share, least in zip(shares, minimum, strict=True))
        name = assigned.get(str(k))
        if name is None or valid.mean() < min_valid or (name == "train" and not enough):
            continue
        chosen[name].append(k)
    stack = np.stack([np.load(folder / f"img_{k}.npy") for k in chosen["train"]])
    mean = np.nanmean(stack, axis=(0, 1, 2), dtype=np.float64)
    deviation = np.nanstd(stack, axis=(0, 1, 2), dtype=np.float64)
    del stack
    for name, numbers in chosen.items():
        (Path(out) / name).mkdir(parents=True)
        for k in numbers:
            image = np.load(folder / f"img_{k}.npy")
            image = np.where(np.isnan(image), mean.astype(np.float32), image)
            image = (image - mean) / np.where(deviation > 0, deviation, 1)
            np.save(Path(out) / name / f"img_{k}.npy", image.astype(np.float32))
            np.save(Path(out) / name / f"mask_{k}.npy", np.load(folder / f"mask_{k}.npy"))
    statistics = {"means": mean.tolist(), "standard_deviations": deviation.tolist()}
    (Path(out) / "statistics.json").write_text(json.dumps(statistics))
    return dict(chosen)


def map_scene(scene: str, model: str, size: int, target: int, out: str) -> dict[str, Any]:
    """Load the whole scene, predict windows side by side, write one class as a GeoTIFF.

    Args:
        scene: the file.
        model: our model's folder; its weights, in a plain network that computes the same.
        size: edge of the windows, which do not overlap.
        target: number of the class: 1 where it is the most probable, 0 elsewhere, 255 unseen.
        out: the file.
    """
    import torch

    from benchmarks.plain_network import like_ours
    from glacier_core.model.predictor import Predictor

    ours = Predictor.load(Path(model), "cpu", "float32")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = like_ours(ours.model.network).to(device)
    said = ours.description
    with rasterio.open(scene) as dataset:
        image, profile = dataset.read(), dataset.profile
        names = list(dataset.descriptions)
    border = np.ones(image.shape[1:], dtype=np.uint8)
    seen = seen_pixels(image, names, border)
    image = image[[names.index(channel) for channel in said.channels]]
    mean = np.array(said.means, dtype=np.float32)[:, None, None]
    deviation = np.array(said.standard_deviations, dtype=np.float32)[:, None, None]
    image = (image - mean) / np.where(deviation > 0, deviation, 1)
    image = np.nan_to_num(image, nan=0.0)
    height, width = image.shape[1:]
    classes = np.zeros((height, width), dtype=np.uint8)
    with torch.no_grad():
        for row in range(0, height, size):
            for col in range(0, width, size):
                window = image[:, row : row + size, col : col + size]
                below, right = size - window.shape[1], size - window.shape[2]
                padded = np.pad(window, [(0, 0), (0, below), (0, right)])
                logits = network(torch.from_numpy(padded[None]).to(device))
                probability = logits.softmax(dim=1)[0].cpu().numpy()
                part = (probability.argmax(axis=0) == target).astype(np.uint8)
                classes[row : row + size, col : col + size] = part[
                    : window.shape[1], : window.shape[2]
                ]
    classes[~seen] = IGNORED
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    profile = {**profile, "count": 1, "dtype": "uint8", "nodata": IGNORED}
    with rasterio.open(out, "w", **profile) as dataset:
        dataset.write(classes, 1)
    return {}
