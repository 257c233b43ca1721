"""Temperature scaling: one number by which a network's logits are divided, so that what it is
90 % sure of is right nine times in ten (Guo et al. 2017, On Calibration of Modern Neural Networks).

Which class is the most likely does not change by it, only how likely. With a number for each class
as well (bias-corrected temperature scaling, Alexandari et al. 2020), it does: thresholds move, so that
each class gets the area that it has on dev. Good where dev is like what is mapped, bad elsewhere.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize, minimize_scalar
from scipy.special import log_softmax

from glacier_core.dataset.loading import Dataset
from glacier_core.dataset.slicing import IGNORED
from glacier_core.model.judging import Judged
from glacier_core.model.metrics import Score
from glacier_core.model.predictor import Predictor
from glacier_core.model.scoring import predict_split

logger = logging.getLogger(__name__)

# A split whose every pixel is right would ask for certainty, one without any sense for none.
LEAST, MOST = 0.25, 10.0
# One number is sure long before. Other processes of a training wait meanwhile: no more slices than
# a CPU predicts in a few minutes.
_PIXELS, _SLICES = 1_000_000, 100
# No class becomes more than so many times as likely, or unlikely, against background.
_MOST_TIMES = 20.0
_LEAST_PROBABILITY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Calibration:
    """What the dev split says of a network's confidence.

    Attributes:
        temperature: by which its logits are to be divided, from `LEAST` to `MOST`.
        offsets: to be added to them then, by class, background's 0; None without.
        before, after: expected calibration error of the most likely class on the same pixels
            without and with it; `undefined` where no pixel is valid.
    """

    temperature: float
    offsets: list[float] | None
    before: Score
    after: Score


def calibrate(
    predictor: Predictor, dataset: Dataset, seed: int, *, by_class: bool = False
) -> Calibration:
    """Fit the temperature on the dev split, and log it.

    Args:
        predictor: with a temperature of 1.
        dataset: whose dev split is predicted, each valid pixel once; of a large one, an even
            sample of slices and pixels.
        seed: of the sample; the same gives the same.
        by_class: fit an offset for each class too.
    """
    logits, truth = _dev_pixels(predictor, dataset, seed)
    offsets = None
    if by_class:
        temperature, offsets = fit_classes(logits, truth)
    else:
        temperature = fit_temperature(logits, truth)
    after = _error(_calibrated(logits, temperature, offsets), truth, dataset.class_names)
    before = _error(logits, truth, dataset.class_names)
    if offsets is not None:
        times = zip(dataset.class_names, np.exp(offsets), strict=True)
        logger.info("likelier by: %s", ", ".join(f"{name} {by:.2f}" for name, by in times))
    logger.info(
        "temperature %.3f, fitted on %d dev pixels: expected calibration error %s before, %s after",
        temperature,
        truth.size,
        *(score if isinstance(score, str) else f"{score:.4f}" for score in (before, after)),
    )
    return Calibration(temperature, offsets, before, after)


def fit_temperature(logits: npt.NDArray[np.float32], truth: npt.NDArray[np.uint8]) -> float:
    """The temperature under which the true classes are the most likely, between the bounds.

    Args:
        logits: (classes, pixels), up to a number a pixel.
        truth: class numbers (pixels,).

    Returns:
        1 where there are no pixels.
    """
    if not truth.size:
        return 1.0
    at = truth[None].astype(np.intp)

    def loss(inverse: float) -> float:
        likely = np.take_along_axis(log_softmax(logits * np.float32(inverse), axis=0), at, axis=0)
        return -float(likely.mean(dtype=np.float64))

    # By the inverse the loss is convex: it has one minimum, and any search between bounds finds it.
    found = minimize_scalar(
        loss, bounds=(1 / MOST, 1 / LEAST), method="bounded", options={"xatol": 1e-4}
    )
    return float(np.clip(1 / found.x, LEAST, MOST))


def fit_classes(
    logits: npt.NDArray[np.float32], truth: npt.NDArray[np.uint8]
) -> tuple[float, list[float]]:
    """Temperature, and an offset for each class, under which the true classes are the most likely.

    Args:
        logits, truth: see `fit_temperature`.

    Returns:
        The temperature between the bounds, and by class what is to be added to the logits once
        they are divided: 0 for background, and for classes that do not occur.
    """
    count = len(logits)
    occurring = [k for k in range(1, count) if (truth == k).any()]
    if not truth.size or not occurring:
        return fit_temperature(logits, truth), [0.0] * count
    at = truth[None].astype(np.intp)

    def unpacked(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
        offsets = np.zeros((count, 1), np.float32)
        offsets[occurring, 0] = x[1:]
        return offsets

    def loss(x: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        likely = log_softmax(logits * np.float32(x[0]) + unpacked(x), axis=0)
        value = -float(np.take_along_axis(likely, at, axis=0).mean(dtype=np.float64))
        # By a logit: what is said of its class, less whether that is the true one.
        by_logit = np.exp(likely)
        np.put_along_axis(by_logit, at, np.take_along_axis(by_logit, at, axis=0) - 1, axis=0)
        by_offset = by_logit.mean(axis=1, dtype=np.float64)
        by_inverse = float((by_logit * logits).sum(axis=0).mean(dtype=np.float64))
        return value, np.array([by_inverse, *by_offset[occurring]])

    # Convex, as the temperature's inverse alone: a regression with one slope.
    most = np.log(_MOST_TIMES)
    bounds = [(1 / MOST, 1 / LEAST)] + [(-most, most)] * len(occurring)
    start = np.array([1 / fit_temperature(logits, truth)] + [0.0] * len(occurring))
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x
    return float(1 / found[0]), [float(value) for value in unpacked(found)[:, 0]]


def _calibrated(
    logits: npt.NDArray[np.float32], temperature: float, offsets: list[float] | None
) -> npt.NDArray[np.float32]:
    divided = logits / np.float32(temperature)
    if offsets is not None:
        divided += np.array(offsets, np.float32)[:, None]
    return divided


def _dev_pixels(
    predictor: Predictor, dataset: Dataset, seed: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """Logits (classes, pixels), up to a number a pixel, and class numbers (pixels,)."""
    samples = dataset.splits["dev"]
    step = max(math.ceil(len(samples) / _SLICES), 1)  # they are in shuffled order
    shown = sum(sample.height * sample.width for sample in samples[::step])
    random, share = np.random.default_rng(seed), _PIXELS / max(shown, 1)
    logits, numbers = [], []
    for _, truth, probability in predict_split(predictor, dataset, "dev", step=step):
        # Where nothing was seen, the network said nothing.
        chosen = (truth != IGNORED) & (probability.sum(axis=0) > 0)
        if share < 1:
            chosen &= random.random(truth.shape) < share
        # Logarithms of probabilities are logits less their sum's logarithm, the same for each class.
        logits.append(np.log(np.maximum(probability[:, chosen], _LEAST_PROBABILITY)))
        numbers.append(truth[chosen])
    return np.concatenate(logits, axis=1), np.concatenate(numbers)


def _error(
    logits: npt.NDArray[np.float32], truth: npt.NDArray[np.uint8], names: list[str]
) -> Score:
    """Expected calibration error of the most likely class."""
    probability = np.exp(log_softmax(logits, axis=0)).astype(np.float32)
    judged = Judged(names)
    judged.add("dev", truth[None], probability[:, None], 1.0)
    return judged.calibration_error()
