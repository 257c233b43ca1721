"""How fast to learn, and when."""

from __future__ import annotations

import math
from collections.abc import Sequence

from glacier_core.params import TrainParams


def learning_rate(schedule: str, params: TrainParams, epoch: float, dev: Sequence[float]) -> float:
    """Learning rate at a moment of training.

    Args:
        schedule: `none`; `cosine` to 0 over all epochs; `step`, times step_factor every
            step_epochs; `plateau`, times step_factor for every step_epochs in a row without a
            better dev score.
        params: with warmup_epochs, over which every schedule rises linearly from 0.
        epoch: epochs done, with their fraction.
        dev: dev scores of the epochs done.
    """
    rate = params.learning_rate
    if schedule == "cosine":
        span = max(params.epochs - params.warmup_epochs, 1e-9)
        done = min(max((epoch - params.warmup_epochs) / span, 0), 1)
        rate *= (1 + math.cos(math.pi * done)) / 2
    elif schedule == "step":
        rate *= params.step_factor ** (int(epoch) // params.step_epochs)
    elif schedule == "plateau":
        best, waited, drops = -math.inf, 0, 0
        for score in dev:
            waited = 0 if score > best else waited + 1
            best = max(best, score)
            if waited and waited % params.step_epochs == 0:
                drops += 1
        rate *= params.step_factor**drops
    if epoch < params.warmup_epochs:
        rate *= epoch / params.warmup_epochs
    return rate
