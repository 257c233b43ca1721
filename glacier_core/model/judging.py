"""What a model's answers are worth: scores of each class, of its borders and of its confidence,
each with the interval that a bootstrap over pieces of ground gives.

Everything is kept as sums by piece of ground, so that a draw of the bootstrap is a row of weights
and all draws are one matrix product.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import distance_transform_edt

from glacier_core.dataset.slicing import IGNORED
from glacier_core.model.bootstrap import draw_units, ends, units_needed
from glacier_core.model.metrics import UNDEFINED, Score, confusion

logger = logging.getLogger(__name__)

BINS = 15
"""Of confidence, of equal width: as Guo et al. 2017 (On Calibration of Modern Neural Networks)."""

_STEPS = 10  # of border distance in a pixel: finer than what one date's outlines can tell
# As scikit-learn's log_loss: float32 knows no probability nearer to 0 or 1.
_LEAST = float(np.finfo(np.float32).eps)
# Weighted sums of borders held at once, in numbers of 8 bytes.
_AT_ONCE = 4_000_000

Weights = npt.NDArray[np.float64]
"""How often each unit is drawn, (draws, units); the first row is all units once: the value."""


@dataclass
class _Sums:
    """What is kept of a piece of ground.

    Attributes:
        matrix: pixels by true and mapped class (classes, classes).
        calibration: pixels, summed probability and hits (classes + 1, bins, 3); the last row is
            of the most likely class.
        nll: summed negative logarithm of the true class's probability.
        borders: by class, border pixels by distance in metres.
        alone: by class, border pixels of which the other side has no border in the same array.
    """

    matrix: npt.NDArray[np.float64]
    calibration: npt.NDArray[np.float64]
    nll: float
    borders: list[Counter[float]]
    alone: npt.NDArray[np.float64]


class Judged:
    """Sums of what a model said of pieces of ground, and the scores that follow.

    A score over nothing is `undefined`: of a class that does not occur, or is never mapped.
    """

    def __init__(self, names: Sequence[str]) -> None:
        """
        Args:
            names: class names by number, background first.
        """
        self.names = list(names)
        self._units: dict[str, _Sums] = {}

    def add(
        self,
        unit: str,
        truth: npt.NDArray[np.uint8],
        probability: npt.NDArray[np.float32],
        pixel_m: float,
    ) -> None:
        """Add an array of pixels, such as a slice.

        Args:
            unit: the piece of ground that the bootstrap draws, such as a block or a tile; arrays
                of one unit are added up.
            truth: class numbers (height, width), 255 ignored. Each pixel of the ground is to be
                valid in one array only.
            probability: float32 (classes, height, width), summing to 1 where `truth` is valid;
                elsewhere anything.
            pixel_m: edge of a pixel, metres; three digits of it count.

        Raises:
            ValueError: the shapes do not fit, or a valid pixel's probability is no number.
        """
        classes = len(self.names)
        if probability.shape != (classes, *truth.shape):
            raise ValueError(
                f"probabilities of {probability.shape} for {classes} classes and {truth.shape}"
            )
        # Slices of one sensor differ in the sixth digit: in three, their distances are the same few.
        pixel_m = float(f"{pixel_m:.3g}")
        valid = truth != IGNORED
        likely, numbers = probability[:, valid].astype(np.float64), truth[valid]
        if not np.isfinite(likely).all():
            raise ValueError("a valid pixel has a probability that is no number")
        mapped = np.where(valid, probability.argmax(axis=0), 0).astype(np.uint8)
        sums = self._units.setdefault(unit, _nothing(classes))
        sums.matrix += confusion(truth, mapped, classes)
        for number in range(classes):
            sums.calibration[number] += _binned(likely[number], numbers == number)
        sums.calibration[-1] += _binned(likely.max(axis=0), mapped[valid] == numbers)
        of_truth = np.take_along_axis(likely, numbers[None].astype(np.intp), axis=0)
        sums.nll -= float(np.log(np.clip(of_truth, _LEAST, 1)).sum())
        for number in range(classes):
            true, said = _border(truth == number, valid), _border(mapped == number, valid)
            if not (true.any() and said.any()):
                sums.alone[number] += int(true.sum()) + int(said.sum())
                continue
            for here, there in ((true, said), (said, true)):
                steps = np.rint(_STEPS * distance_transform_edt(~there)[here])
                for step, count in zip(*np.unique(steps, return_counts=True), strict=True):
                    sums.borders[number][float(step) * pixel_m / _STEPS] += int(count)

    def summary(self, *, draws: int, confidence: float, seed: int) -> dict[str, dict[str, Any]]:
        """Scores by class name, and under `all`.

        By class: `iou`, `precision`, `recall`, `dice`; `area_bias_percent`, mapped less true area
        in percent of the true; `boundary_median_m` and `boundary_p95_m`, of the distances from
        the mapped border to the true one and back, in metres; `boundary_alone_percent`, the share
        of border pixels that these leave out, since an array has only one of the two borders;
        `mcc`, Matthews' correlation of this class against the rest; `ece`, the expected
        calibration error of its probability. Under `all`: `mean_ice_iou`, `pixel_accuracy`, `ece`
        (of the most likely class) and `nll` (nats a pixel).

        Each is `{"value", "lower", "upper"}`, numbers or `undefined`. Beside them `pixels` (by
        class, true ones) and `units` (by class, those where it occurs) are plain integers.

        An interval is `undefined` where fewer units hold the class (of `mean_ice_iou`, any of those
        that occur) than `bootstrap.units_needed` asks for; the log says so. Draws without the class are left out, as in
        `bootstrap.paired_interval`.

        Args:
            draws: number of bootstrap draws.
            confidence: of the intervals.
            seed: the same gives the same.
        """
        units = [self._units[name] for name in sorted(self._units)]
        units = [sums for sums in units if sums.matrix.any()]
        classes = len(self.names)
        matrices = np.array([sums.matrix for sums in units]).reshape(-1, classes, classes)
        calibration = np.array([sums.calibration for sums in units])
        weights = np.ones((1, len(units)))
        if len(units) > 1:
            weights = np.concatenate([weights, draw_units(len(units), draws, seed)])

        drawn = _weighted(weights, matrices.reshape(-1, classes, classes))
        calibrated = _weighted(weights, calibration.reshape(-1, classes + 1, BINS, 3))
        occurs = matrices.sum(axis=2) > 0  # (units, classes)
        by_class = _by_class(drawn, occurs.any(axis=0)) | {
            "ece": np.moveaxis(_calibration_error(calibrated[:, :classes]), -1, 0)
        }
        result: dict[str, dict[str, Any]] = {}
        for number, name in enumerate(self.names):
            holding = int(occurs[:, number].sum())
            score = _scorer(holding, confidence)
            borders = [sums.borders[number] for sums in units]
            median, far = _quantiles(borders, weights, (0.5, 0.95))
            alone = np.array([sums.alone[number] for sums in units])
            paired = np.array([sum(counted.values()) for counted in borders], dtype=np.float64)
            result[name] = {key: score(values[number]) for key, values in by_class.items()} | {
                "boundary_median_m": score(median),
                "boundary_p95_m": score(far),
                "boundary_alone_percent": score(
                    100 * _ratio(weights @ alone, weights @ (alone + paired))
                ),
                "pixels": int(matrices[:, number].sum()),
                "units": holding,
            }
        ious = by_class["iou"][1:]
        there = np.isfinite(ious)
        total = drawn.sum(axis=(1, 2))
        score = _scorer(len(units), confidence)
        # A draw without a class would count the others alone: as sure as the rarest one.
        rarest = min((int(n) for n in occurs[:, 1:].sum(axis=0) if n), default=0)
        result["all"] = {
            "mean_ice_iou": _scorer(rarest, confidence)(
                _ratio(np.where(there, ious, 0).sum(axis=0), there.sum(axis=0))
            ),
            "pixel_accuracy": score(_ratio(np.trace(drawn, axis1=1, axis2=2), total)),
            "ece": score(_calibration_error(calibrated[:, -1])),
            "nll": score(_ratio(weights @ np.array([sums.nll for sums in units]), total)),
            "pixels": int(matrices.sum()),
            "units": len(units),
        }
        self._say_too_few(result, confidence)
        return result

    def reliability(self) -> dict[str, npt.NDArray[np.float64]]:
        """By class name, and for the most likely class under `all`: pixels, summed probability
        and hits in each bin of confidence, (bins, 3)."""
        empty = np.zeros((len(self.names) + 1, BINS, 3))
        total = sum((sums.calibration for sums in self._units.values()), empty)
        return dict(zip([*self.names, "all"], total, strict=True))

    def calibration_error(self) -> Score:
        """`ece` of the most likely class, without an interval."""
        error = float(_calibration_error(self.reliability()["all"]))
        return error if np.isfinite(error) else UNDEFINED

    def _say_too_few(self, result: dict[str, dict[str, Any]], confidence: float) -> None:
        needed = units_needed(confidence)
        few = [
            f"{'any class' if name == 'all' else name} in {values['units']}"
            for name, values in result.items()
            if values["units"] < needed and (values["units"] or name == "all")
        ]
        if few:
            logger.warning(
                "too few pieces of ground for intervals, which need %d: %s", needed, ", ".join(few)
            )


def _nothing(classes: int) -> _Sums:
    return _Sums(
        matrix=np.zeros((classes, classes)),
        calibration=np.zeros((classes + 1, BINS, 3)),
        nll=0.0,
        borders=[Counter() for _ in range(classes)],
        alone=np.zeros(classes),
    )


def _binned(
    probability: npt.NDArray[np.float64], hit: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float64]:
    """Pixels, summed probability and hits by bin of probability: (bins, 3)."""
    # Each bin holds its upper end, as Guo et al. have it; 0 belongs to the first.
    place = np.clip(np.ceil(probability * BINS).astype(np.intp) - 1, 0, BINS - 1)
    return np.stack(
        [
            np.bincount(place, minlength=BINS),
            np.bincount(place, weights=probability, minlength=BINS),
            np.bincount(place, weights=hit, minlength=BINS),
        ],
        axis=-1,
    ).astype(np.float64)


def _border(inside: npt.NDArray[np.bool_], valid: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Valid pixels inside that touch a valid pixel outside with an edge.

    Not those along ignored pixels or the array's edge: where the class goes on, nobody knows.
    """
    inside, outside = inside & valid, ~inside & valid
    border = np.zeros_like(inside)
    border[1:] |= outside[:-1]
    border[:-1] |= outside[1:]
    border[:, 1:] |= outside[:, :-1]
    border[:, :-1] |= outside[:, 1:]
    return border & inside


def _weighted(weights: Weights, sums: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Sums by unit (units, ...) as sums by draw (draws, ...)."""
    shape = sums.shape[1:]
    return (weights @ sums.reshape(len(sums), int(np.prod(shape)))).reshape(len(weights), *shape)


def _ratio(part: npt.NDArray[Any], whole: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Part of the whole; NaN where that is 0."""
    result: npt.NDArray[np.float64] = part / np.where(whole > 0, whole, np.nan)
    return result


def _by_class(
    matrices: npt.NDArray[np.float64], occurs: npt.NDArray[np.bool_]
) -> dict[str, npt.NDArray[np.float64]]:
    """Scores (classes, draws) from confusion matrices (draws, classes, classes).

    Args:
        matrices: the first is of all units.
        occurs: whether any unit's truth has the class (classes,). The draws without a class that
            does occur have no IoU of it; one that only the map has is 0, as in `metrics.scores`.
    """
    hits = np.diagonal(matrices, axis1=1, axis2=2).T
    true, said = matrices.sum(axis=2).T, matrices.sum(axis=1).T
    drawn = np.where(occurs[:, None] & (true == 0), np.nan, 1.0)
    total = matrices.sum(axis=(1, 2))
    # Chicco and Jurman 2020 (BMC Genomics 21:6), equation 5, with the class as positive.
    scale = np.sqrt((true * (total - true)) * (said * (total - said)))
    return {
        "iou": _ratio(hits, true + said - hits) * drawn,
        "precision": _ratio(hits, said) * drawn,
        "recall": _ratio(hits, true),
        "dice": _ratio(2 * hits, true + said) * drawn,
        "area_bias_percent": 100 * _ratio(said - true, true),
        "mcc": _ratio(hits * total - true * said, scale),
    }


def _calibration_error(calibration: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Expected calibration error (...) from pixels, probability and hits (..., bins, 3)."""
    gaps = np.abs(calibration[..., 2] - calibration[..., 1]).sum(axis=-1)
    return _ratio(gaps, calibration[..., 0].sum(axis=-1))


def _quantiles(
    counted: Sequence[Counter[float]], weights: Weights, shares: Sequence[float]
) -> list[npt.NDArray[np.float64]]:
    """Of values counted by unit, for each share the least value that so many do not exceed.

    Returns:
        For each share its quantile by draw (draws,), NaN where a draw counts nothing.
    """
    values = np.array(sorted(set().union(*counted)), dtype=np.float64)
    found = np.full((len(shares), len(weights)), np.nan)
    if values.size:
        counts = np.array([[of.get(value, 0) for value in values] for of in counted], np.float64)
        step = max(_AT_ONCE // values.size, 1)
        for first in range(0, len(weights), step):
            part = slice(first, first + step)
            below = np.cumsum(weights[part] @ counts, axis=1)
            some = below[:, -1] > 0
            for k, share in enumerate(shares):
                reached = (below >= share * below[:, -1:]).argmax(axis=1)
                found[k, part] = np.where(some, values[reached], np.nan)
    return list(found)


def _scorer(units: int, confidence: float) -> Callable[[npt.NDArray[np.float64]], dict[str, Score]]:
    """What makes a score of its value and draws, with an interval if there are enough units."""
    enough = units >= units_needed(confidence)

    def score(values: npt.NDArray[np.float64]) -> dict[str, Score]:
        value, draws = float(values[0]), values[1:][np.isfinite(values[1:])]
        if not np.isfinite(value):
            return {"value": UNDEFINED, "lower": UNDEFINED, "upper": UNDEFINED}
        if not enough or not draws.size:
            return {"value": value, "lower": UNDEFINED, "upper": UNDEFINED}
        lower, upper = ends(draws, units, confidence)
        return {"value": value, "lower": lower, "upper": upper}

    return score
