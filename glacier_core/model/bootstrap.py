"""How sure a score is, or a difference between two models: a bootstrap over pieces of ground.

Pixels of one glacier are right or wrong together, so that an interval over pixels would be far
too narrow. What is drawn are units of ground; for a difference, each with the confusion matrices
of both models: the same draw for both, since a hard place is hard for either.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, stdtrit

Matrices = npt.NDArray[np.int64]
"""Confusion matrices (..., true class, predicted class), background at 0."""


@dataclass(frozen=True)
class Interval:
    """A difference of mean ice IoU, challenger less champion.

    Attributes:
        difference: over all units.
        lower, upper: ends of its confidence interval.
    """

    difference: float
    lower: float
    upper: float


def class_ious(matrices: Matrices) -> npt.NDArray[np.float64]:
    """IoU by class (..., classes); NaN for a class that does not occur in the truth.

    A class that only the map has could not be undefined for one model and 0 for the other: both
    are judged on the classes that are there. What is wrongly mapped as it is missing elsewhere.
    """
    hits = np.diagonal(matrices, axis1=-2, axis2=-1).astype(np.float64)
    true, said = matrices.sum(axis=-1), matrices.sum(axis=-2)
    union = np.where(true > 0, true + said - hits, np.nan)
    result: npt.NDArray[np.float64] = hits / union
    return result


def mean_ice_iou(matrices: Matrices) -> npt.NDArray[np.float64]:
    """Mean IoU over the ice classes that occur in the truth (...); NaN where none does."""
    ious = class_ious(matrices)[..., 1:]
    there = np.isfinite(ious)
    count = there.sum(axis=-1)
    total = np.where(there, ious, 0.0).sum(axis=-1)
    result: npt.NDArray[np.float64] = total / np.where(count > 0, count, np.nan)
    return result


def tail(units: int, confidence: float) -> float:
    """Share of the draws beyond each end of the interval: less than (1 - confidence) / 2.

    With few units the spread of their draws is smaller than that of the truth, by the factor
    sqrt((n - 1) / n) and as Student's t is wider than the normal. The expanded percentile
    interval (Hesterberg 2015, The American Statistician 69(4), section 5.3) makes up for both.
    """
    wide = stdtrit(units - 1, 0.5 + confidence / 2) * np.sqrt(units / (units - 1))
    return float(ndtr(-wide))


def units_needed(confidence: float) -> int:
    """The fewest units whose draws can reach as far out as the interval must.

    The outermost draw of n units, one of them n times, comes with probability n ** -n. Where that
    is more than `tail`, no draw lies at the interval's end, and it would be too short. At 95 %
    that needs 5 units; no less are taken at any confidence. On simulated places, intervals of
    95 % held the true difference in 75 % of the cases with 3 units, 91 % with 5, 94 % with 30.
    """
    units = 5
    while units**-units > tail(units, confidence):
        units += 1
    return units


def draw_units(units: int, draws: int, seed: int) -> npt.NDArray[np.int64]:
    """How often each unit is in each draw: (draws, units), rows summing to `units`."""
    shares = np.full(units, 1 / units)
    return np.random.default_rng(seed).multinomial(units, shares, size=draws)


def ends(values: npt.NDArray[np.float64], units: int, confidence: float) -> tuple[float, float]:
    """Lower and upper end of the interval that draws of so many units (draws,) span.

    A draw may lack what a score needs, such as any ice: those that are NaN are left out.
    """
    outside = tail(units, confidence)
    lower, upper = np.quantile(values[np.isfinite(values)], [outside, 1 - outside])
    return float(lower), float(upper)


def paired_interval(
    champion: Matrices, challenger: Matrices, *, draws: int, confidence: float, seed: int
) -> Interval:
    """Difference of mean ice IoU from summed matrices, and its confidence interval.

    Args:
        champion, challenger: (units, classes, classes), of the same units in the same order.
        draws: number of bootstrap draws.
        confidence: of the interval.
        seed: the same gives the same.

    Raises:
        ValueError: fewer than two units, not the same ones, or no ice in any.
    """
    units, classes = champion.shape[:2]
    if units < 2 or champion.shape != challenger.shape:
        raise ValueError(f"matrices of {champion.shape} and {challenger.shape}")
    if (champion.sum(axis=-1) != challenger.sum(axis=-1)).any():
        raise ValueError("the two models were not judged on the same pixels")
    difference = float(mean_ice_iou(challenger.sum(axis=0)) - mean_ice_iou(champion.sum(axis=0)))
    if not np.isfinite(difference):
        raise ValueError("no unit has ice")
    times = draw_units(units, draws, seed)

    def drawn(matrices: Matrices) -> npt.NDArray[np.float64]:
        sums = times @ matrices.reshape(units, -1)
        return mean_ice_iou(sums.reshape(draws, classes, classes))

    lower, upper = ends(drawn(challenger) - drawn(champion), units, confidence)
    return Interval(difference, lower, upper)
