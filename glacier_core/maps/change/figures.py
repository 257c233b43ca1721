"""Pictures of change: where, how much by class, at which height, and on which glaciers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import pyplot as plt
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch

from glacier_core.maps.styles import colour_of, in_words
from glacier_core.model.figures import save

_GAIN, _LOSS, _OTHER = "#1b7837", "#c51b7d", "#e0a84e"
_LARGEST_MAP = 1200
_SHOWN = 15


def draw(
    folder: Path,
    sums: dict[str, Any],
    table: Any,
    heights: Any,
    codes: npt.NDArray[np.uint8],
    both: npt.NDArray[np.bool_],
) -> None:
    """Write the figures of a comparison into a folder.

    Args:
        folder: where to.
        sums: the content of `change.json`.
        table: a row a glacier.
        heights: areas by height, or None.
        codes: uint8 (height, width), see `Moves`.
        both: where both dates saw the ground.
    """
    title = f"{sums['before']} to {sums['after']}"
    save(_map(codes, both, title), folder / "moves.png")
    save(_bars(sums, title), folder / "areas.png")
    if len(table):
        save(_glaciers(table), folder / "glaciers.png")
    if heights is not None:
        save(_hypsometry(heights, sums), folder / "hypsometry.png")


def _map(codes: npt.NDArray[np.uint8], both: npt.NDArray[np.bool_], title: str) -> Any:
    step = max(1, -(-max(codes.shape) // _LARGEST_MAP))
    # Of each square of pixels, the largest code: else thin losses would vanish from large scenes.
    height, width = (n // step * step for n in codes.shape)
    tiles = codes[:height, :width].reshape(height // step, step, width // step, step)
    shown = np.minimum(tiles.max(axis=(1, 3)), 3) + 1
    shown[~both[:height:step, :width:step] & (shown == 1)] = 0
    figure, axes = plt.subplots(figsize=(9, 9 * shown.shape[0] / shown.shape[1] + 0.8))
    colours = ["#ffffff", "#d9d5cc", _GAIN, _LOSS, _OTHER]
    axes.imshow(shown, cmap=ListedColormap(colours), vmin=0, vmax=4, interpolation="nearest")
    axes.set_axis_off()
    axes.set_title(title)
    words = ["not seen at both dates", "no change", "ice came", "ice went", "other kind of ice"]
    axes.legend(
        handles=[Patch(facecolor=c, edgecolor="#888888", label=w)
                 for c, w in zip(colours, words, strict=True)],
        loc="upper center", bbox_to_anchor=(0.5, 0), ncols=3, frameon=False,
    )  # fmt: skip
    return figure


def _bars(sums: dict[str, Any], title: str) -> Any:
    entries = {**sums["km2"], "all ice": sums["total"]}
    figure, axes = plt.subplots(figsize=(1.6 + 1.7 * len(entries), 4.2), layout="constrained")
    place = np.arange(len(entries))
    for shift, key, shade in ((-0.2, "before", 0.5), (0.2, "after", 1.0)):
        colours = [colour_of(i) for i in range(1, len(sums["km2"]) + 1)] + ["#555555"]
        values = [entry[key] for entry in entries.values()]
        date = sums[f"date_{key}"] or key
        axes.bar(place + shift, values, 0.38, color=colours, alpha=shade, label=date)
        for x, value in zip(place + shift, values, strict=True):
            axes.annotate(f"{value:.4g}\n{date[:4]}", (x, value), ha="center", va="bottom",
                          fontsize=8)  # fmt: skip
    for x, entry in zip(place, entries.values(), strict=True):
        axes.annotate(
            f"{entry['change']:+.3g}\n± {entry['err']:.2g} km²", (x, 0), (0, -18),
            textcoords="offset points", ha="center", va="top", fontsize=9, annotation_clip=False,
        )  # fmt: skip
    axes.set_xticks(place, [in_words(name) for name in entries])
    axes.tick_params(axis="x", length=0, pad=2)
    axes.margins(y=0.18)
    axes.set_ylabel("km², seen at both dates")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, fontsize=10)
    return figure


def _glaciers(table: Any) -> Any:
    order = table["change_km2"].abs().sort_values(ascending=False, kind="stable").index[:_SHOWN]
    chosen = table.loc[order].sort_values("change_km2", ascending=False)
    figure, axes = plt.subplots(figsize=(7, 1.2 + 0.3 * len(chosen)), layout="constrained")
    place = np.arange(len(chosen))
    colours = [_LOSS if value < 0 else _GAIN for value in chosen["change_km2"]]
    axes.barh(place, chosen["change_km2"], xerr=chosen["err_km2"], color=colours,
              error_kw={"ecolor": "#444444", "elinewidth": 0.8, "capsize": 2})  # fmt: skip
    names = chosen["inv_id"].fillna(chosen["glac_id"])
    axes.set_yticks(place, names, fontsize=8)
    axes.axvline(0, color="#444444", linewidth=0.8)
    axes.set_xlabel("change, km²")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_title(f"The {len(chosen)} glaciers that changed most", fontsize=10)
    return figure


def _hypsometry(heights: Any, sums: dict[str, Any]) -> Any:
    figure, axes = plt.subplots(figsize=(5.5, 6), layout="constrained")
    for number, name in enumerate(sums["km2"], start=1):
        own = heights[heights["class"] == name]
        middle = own["elevation_m"] + (own["elevation_m"].diff().median() or 100) / 2
        for key, style in (("before", "--"), ("after", "-")):
            date = sums[f"date_{key}"] or key
            axes.plot(own[f"{key}_km2"], middle, style, color=colour_of(number),
                      label=f"{in_words(name)}, {date}")  # fmt: skip
    axes.set_xlabel("km² in steps of 100 m")
    axes.set_ylabel("elevation, m")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
