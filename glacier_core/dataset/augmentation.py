"""How crops are changed, so that a network meets more than the scenes that it learns from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from glacier_core.dataset.slicing import IGNORED
from glacier_core.params import TrainParams
from glacier_core.raster.bands import TERRAIN
from glacier_core.raster.derived import TERRAIN_ALONE
from glacier_core.settings import AugmentConf

Image = npt.NDArray[np.float32]
Label = npt.NDArray[np.uint8]

# Lines of a scene of Landsat 7 since its scan line corrector failed: a gap after every two sweeps of
# 16 detectors, up to 14 wide at the edge of a scene (as in simulate/sensor.py).
_GAP_REPEAT, _GAP_WIDEST = 33.0, 14.0
# Of sweeps against the rows of a map. From an orbit of 98.2° and the turning of the Earth: 12° at the
# equator, 13° at 30° and 18° at 60° of latitude; the north of a UTM zone is off by up to 2°.
_GAP_TILT = np.radians([10.0, 20.0])

_HAZE_KNOTS = 4  # along each edge of a crop: banks of haze, not spots


# --- One crop, as it was read ----------------------------------------------------------------


def zoomed(image: Image, label: Label, size: int) -> tuple[Image, Label]:
    """A square crop resampled to another size: channels bilinearly, labels by the nearest pixel.

    Args:
        image: (n, n, channels), NaN where unseen.
        label: (n, n).
        size: edge of the result.

    Returns:
        Both with that edge. A pixel is unseen where the nearest one was; the others are means of
        what was seen around them.
    """
    n = label.shape[0]
    if n == size:
        return image, label
    nearest = ((np.arange(size) + 0.5) * n / size).astype(np.intp)
    beside = np.ix_(nearest, nearest)
    seen = np.isfinite(image)
    if seen.all():
        return _bilinear(image, size), label[beside]
    # The seen pixel nearest has a weight of a quarter or more: never divided by nothing.
    weight = _bilinear(seen.astype(np.float32), size)
    value = _bilinear(np.where(seen, image, np.float32(0)), size)
    kept = seen[beside]
    unseen = np.full_like(value, np.nan)
    return np.divide(value, weight, out=unseen, where=kept), label[beside]


def _bilinear(image: Image, size: int) -> Image:
    x = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
    result: Image = F.interpolate(x, (size, size), mode="bilinear")[0].permute(1, 2, 0).numpy()
    return result


def turned(
    image: Image, label: Label, conf: AugmentConf, random: np.random.Generator
) -> tuple[Image, Label]:
    """A square crop as one of those symmetries of the square that `augment` names; views."""
    if conf.quarter_turns:
        turns = int(random.integers(4))
        image, label = np.rot90(image, turns), np.rot90(label, turns)
    if conf.flips and random.random() < 0.5:
        image, label = image[::-1], label[::-1]
    # With quarter turns, one flip reaches all eight symmetries of the square already.
    if conf.flips and not conf.quarter_turns and random.random() < 0.5:
        image, label = image[:, ::-1], label[:, ::-1]
    return image, label


def with_gaps(
    image: Image, label: Label, channels: Sequence[str], random: np.random.Generator
) -> tuple[Image, Label]:
    """A crop with the gaps of a scene of Landsat 7 after 2003.

    Args:
        image: (height, width, channels), NaN where unseen, the rows of the map downwards or turned.
        label: (height, width).
        channels: names; those of a DEM have no gaps.
        random: where in the scene the crop lies, and how the sweeps run.

    Returns:
        Copies: unseen in the gaps, and there ignored. They are those of one place in a scene, all
        equally wide.
    """
    height, width = label.shape
    tilt = random.uniform(*_GAP_TILT)
    rows, cols = np.ogrid[:height, :width]
    along = rows * np.cos(tilt) - cols * np.sin(tilt) + random.uniform(0, _GAP_REPEAT)
    gap = along % _GAP_REPEAT < random.uniform(1, _GAP_WIDEST)
    optical = [i for i, name in enumerate(channels) if name not in TERRAIN | TERRAIN_ALONE]
    image = image.copy()
    image[..., optical] = np.where(gap[..., None], np.float32(np.nan), image[..., optical])
    return image, np.where(gap, np.uint8(IGNORED), label)


# --- A batch, normalised ---------------------------------------------------------------------


def altered(
    x: Tensor, params: TrainParams, generator: torch.Generator, length: int, part: slice
) -> Tensor:
    """Normalised channels as on another day: other light, haze, a channel that fails.

    Args:
        x: part of a batch, (batch, channels, height, width).
        params: how much of each; what is 0 draws nothing.
        generator: what is drawn from, for the whole batch.
        length: of the whole batch.
        part: which of it `x` holds.
    """
    channels = x.shape[1]

    def drawn(*shape: int) -> Tensor:
        """In [0, 1), for this part of the batch."""
        return torch.rand(length, *shape, generator=generator)[part]

    if params.gain or params.offset:
        times = 1 + params.gain * (2 * drawn(channels, 1, 1) - 1)
        plus = params.offset * (2 * drawn(channels, 1, 1) - 1)
        x = x * times.to(x.device) + plus.to(x.device)
    if params.haze:
        # Less than the training scenes have, as well as more.
        field = drawn(1, 1, 1) * (2 * drawn(1, _HAZE_KNOTS, _HAZE_KNOTS) - 1)
        x = x + params.haze * _smooth(field.to(x.device), x.shape[-2:])
    if params.channel_dropout:
        chance = drawn(channels, 1, 1)
        # The luckiest channel always stays.
        kept = (chance >= params.channel_dropout) | (chance == chance.amax(1, keepdim=True))
        x = x * kept.to(x)  # 0 is the mean
    return x


def _smooth(knots: Tensor, size: Sequence[int]) -> Tensor:
    """(batch, 1, knots, knots) to a field that runs from the first to the last, no further out."""
    return F.interpolate(knots, list(size), mode="bilinear", align_corners=True)
