"""Temperature scaling: one number by which a network's logits are divided, so that what it is
90 % sure of is right nine times in ten (Guo et al. 2017, On Calibration of Modern Neural Networks).

Which class is the most likely does not change by it, only how likely.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
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
_LEAST_PROBABILITY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Calibration:
    """What the dev split says of a network's confidence.

    Attributes:
        temperature: by which its logits are to be divided, from `LEAST` to `MOST`.
        before, after: expected calibration error of the most likely class on the same pixels
            without and with it; `undefined` where no pixel is valid.
    """

    temperature: float
    before: Score
    after: Score


def calibrate(predictor: Predictor, dataset: Dataset, seed: int) -> Calibration:
    """Fit the temperature on the dev split, and log it.

    Args:
        predictor: with a temperature of 1.
        dataset: whose dev split is predicted, each valid pixel once; of a large one, an even
            sample of slices and pixels.
        seed: of the sample; the same gives the same.
    """
    logits, truth = _dev_pixels(predictor, dataset, seed)
    temperature = fit_temperature(logits, truth)
    before, after = (_error(logits / by, truth, dataset.class_names) for by in (1.0, temperature))
    logger.info(
        "temperature %.3f, fitted on %d dev pixels: expected calibration error %s before, %s after",
        temperature,
        truth.size,
        *(score if isinstance(score, str) else f"{score:.4f}" for score in (before, after)),
    )
    return Calibration(temperature, before, after)


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
