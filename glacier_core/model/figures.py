"""Pictures of data and results, for people who would rather look than read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from glacier_core.dataset.slicing import IGNORED
from glacier_core.files import whole_file
from glacier_core.raster.bands import find_common

# Background, then classes in order: rock grey, ice blue, debris ochre, and some in reserve.
COLOURS = ["#d9d5cc", "#2b7bba", "#b5651d", "#7a3e9d", "#3a8f5c", "#c2b280"]
_IGNORED_COLOUR = "#ffffff"
_PROBABILITY = matplotlib.colormaps["magma"].with_extremes(bad="#9aa0a6")


def save(figure: Figure, path: Path) -> None:
    """Write a PNG without the time and version that would change its hash."""
    with whole_file(path) as beside:
        figure.savefig(beside, dpi=110, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)


def composite(image: npt.NDArray[np.float32], bands: Sequence[str]) -> npt.NDArray[np.float32]:
    """An RGB picture in [0, 1] of raw bands (height, width, bands): SWIR, NIR, red.

    In it snow and ice are cyan, rock and debris brown, plants green. Where one of these bands
    is missing, the first three bands stand in. Unseen pixels are white.
    """
    names = list(bands)
    wanted = [find_common(names, name) for name in ("swir1", "nir", "red")]
    chosen = [i if i is not None else min(k, len(names) - 1) for k, i in enumerate(wanted)]
    rgb = np.asarray(image[..., chosen], dtype=np.float32).copy()
    for k in range(3):
        seen = np.isfinite(rgb[..., k])
        if seen.any():
            low, high = np.percentile(rgb[..., k][seen], (2, 98))
            rgb[..., k] = np.clip((rgb[..., k] - low) / max(high - low, 1e-6), 0, 1)
    return np.nan_to_num(rgb, nan=1.0)


def show_classes(axes: Axes, numbers: npt.NDArray[np.uint8], classes: int) -> None:
    """Draw class numbers (height, width), 255 white."""
    colours = ListedColormap([*COLOURS[:classes], _IGNORED_COLOUR])
    shown = np.where(numbers == IGNORED, classes, numbers)
    axes.imshow(shown, cmap=colours, vmin=0, vmax=classes, interpolation="nearest")


def example(
    image: npt.NDArray[np.float32],
    bands: Sequence[str],
    truth: npt.NDArray[np.uint8],
    probability: npt.NDArray[np.float32],
    names: Sequence[str],
    title: str,
) -> Figure:
    """A slice beside its labels, its map, and where the two differ.

    Args:
        image: raw bands (height, width, bands).
        bands: their names.
        truth: class numbers (height, width), 255 ignored.
        probability: (classes, height, width).
        names: class names by number.
        title: over all.
    """
    predicted = probability.argmax(axis=0).astype(np.uint8)
    predicted[truth == IGNORED] = IGNORED
    figure, axes = plt.subplots(1, 4, figsize=(16, 4.6), layout="constrained")
    axes[0].imshow(composite(image, bands))
    show_classes(axes[1], truth, len(names))
    show_classes(axes[2], predicted, len(names))
    # Where nothing was seen, all probabilities are 0.
    ice = np.where(probability.sum(axis=0) > 0, 1 - probability[0], np.nan)
    axes[3].imshow(ice, cmap=_PROBABILITY, vmin=0, vmax=1)
    wrong = (predicted != truth) & (truth != IGNORED)
    for axis, text in zip(
        axes,
        ("image", "outlines", f"map ({wrong.sum() / max((truth != IGNORED).sum(), 1):.1%} differ)",
         "probability of ice, clean or covered"),
        strict=True,
    ):  # fmt: skip
        axis.set_title(text, fontsize=10)
        axis.axis("off")
    patches = [Patch(color=COLOURS[i], label=name) for i, name in enumerate(names)]
    patches.append(Patch(facecolor=_IGNORED_COLOUR, edgecolor="#888", label="ignored"))
    figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), fontsize=9)
    figure.suptitle(title, fontsize=11)
    return figure


def confusion_plot(matrix: npt.NDArray[np.int64], names: Sequence[str], title: str) -> Figure:
    """Shares of each true class (rows), with pixel counts."""
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    figure, axes = plt.subplots(figsize=(1.6 * len(names) + 1.5, 1.4 * len(names) + 1))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (i, j), share in np.ndenumerate(shares):
        axes.text(j, i, f"{share:.1%}\n{matrix[i, j]:,}", ha="center", va="center", fontsize=9,
                  color="white" if share > 0.5 else "black")  # fmt: skip
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="mapped as", ylabel="outlined as", title=title)
    return figure


def precision_recall_plot(
    curves: dict[str, list[tuple[float, float, float]]], areas: dict[str, float | str]
) -> Figure:
    """One curve a class, from (threshold, recall, precision) triples."""
    figure, axes = plt.subplots(figsize=(5.5, 4.5))
    for i, (name, curve) in enumerate(curves.items(), start=1):
        if curve:
            _, recall, precision = zip(*curve, strict=True)
            axes.plot(recall, precision, color=COLOURS[i], label=f"{name}, area {areas[name]:.3f}")
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02),
             title="test split, every valid pixel once")  # fmt: skip
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
    return figure


def reliability_plot(
    tables: dict[str, npt.NDArray[np.float64]], errors: dict[str, float | str]
) -> Figure:
    """How often the model is right, by how sure it is; on the diagonal it says what it knows.

    Args:
        tables: by class name, and under `all` of the most likely class: pixels, summed
            probability and hits by bin (bins, 3).
        errors: expected calibration error of each.
    """
    figure, axes = plt.subplots(figsize=(5.5, 4.5))
    axes.plot([0, 1], [0, 1], color="#999", linestyle=":")
    for (name, table), colour in zip(tables.items(), [*COLOURS[: len(tables) - 1], "#444"],
                                     strict=True):  # fmt: skip
        filled = table[table[:, 0] > 0]
        error = errors[name]
        if isinstance(error, float):
            axes.plot(
                filled[:, 1] / filled[:, 0],
                filled[:, 2] / filled[:, 0],
                marker="o",
                markersize=3,
                color=colour,
                label=f"{'most likely class' if name == 'all' else name}, error {error:.3f}",
            )
    axes.set(xlabel="probability that the model gives", ylabel="share that is so", xlim=(0, 1),
             ylim=(0, 1.02), title="test split, every valid pixel once")  # fmt: skip
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def history_plot(rows: Sequence[dict[str, str]], classes: Sequence[str]) -> Figure:
    """Loss, dev IoU by class and learning rate over epochs, from the rows of history.csv."""
    figure, axes = plt.subplots(1, 3, figsize=(14, 3.8), layout="constrained")
    epochs = [int(row["epoch"]) for row in rows]
    axes[0].plot(epochs, [float(row["loss"]) for row in rows], color="#444")
    for i, name in enumerate(classes, start=1):
        values = [_number(row[f"dev_{name}_iou"]) for row in rows]
        axes[1].plot(epochs, values, color=COLOURS[i], label=name)
    axes[1].legend()
    axes[2].plot(epochs, [float(row["learning_rate"]) for row in rows], color="#444")
    for axis, title in zip(axes, ("training loss", "dev IoU", "learning rate"), strict=True):
        axis.set(title=title, xlabel="epoch")
        axis.grid(alpha=0.3)
    return figure


def comparison_plot(ious: dict[str, dict[str, float | str]], classes: Sequence[str]) -> Figure:
    """IoU of each class by each method, as bars; undefined ones are missing."""
    figure, axes = plt.subplots(figsize=(6.5, 3.8))
    width = 0.8 / len(ious)
    for k, (method, values) in enumerate(ious.items()):
        heights = [_number(values[name]) for name in classes]
        places = np.arange(len(classes)) + (k - (len(ious) - 1) / 2) * width
        bars = axes.bar(places, np.nan_to_num(heights), width * 0.92, label=method)
        labels = ["undefined" if np.isnan(h) else f"{h:.2f}" for h in heights]
        axes.bar_label(bars, labels, fontsize=8)
    axes.set_xticks(range(len(classes)), classes)
    axes.set(ylabel="IoU", ylim=(0, 1), title="test split, every valid pixel once")
    axes.legend()
    return figure


def _number(value: float | str) -> float:
    try:
        return float(value)
    except ValueError:
        return float("nan")
