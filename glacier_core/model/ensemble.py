"""One or several models, averaged, as they are or over the symmetries of the square."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from glacier_core.errors import InputError
from glacier_core.model.predictor import Predictor

Probabilities = npt.NDArray[np.float32]


class Ensemble:
    """One or several models, and what they need, as one.

    Attributes:
        names: of the models, as `models:/name/version` or a folder.
        channels: bands that at least one of them takes, each once.
        classes: names by class number.
        multiple: window sizes that this divides fit all of them.
        members: predictions that are averaged.
        trainings: fingerprint of the training of each model.
        fingerprints: of what each model is, its weights too: those of one training differ from
            epoch to epoch.
    """

    def __init__(self, models: Sequence[tuple[str, Predictor]], *, symmetries: bool) -> None:
        """
        Raises:
            InputError: the models tell different classes apart.
        """
        self.names = [name for name, _ in models]
        self.predictors = [predictor for _, predictor in models]
        descriptions = [predictor.description for predictor in self.predictors]
        self.classes = descriptions[0].classes
        for name, description in zip(self.names, descriptions, strict=True):
            if description.classes != self.classes:
                raise InputError(
                    f"{name}: tells {', '.join(description.classes)} apart, but {self.names[0]} "
                    f"{', '.join(self.classes)}; only models of the same classes can be averaged"
                )
        self.channels = list(dict.fromkeys(c for d in descriptions for c in d.channels))
        self.multiple = math.lcm(*(predictor.multiple for predictor in self.predictors))
        self.symmetries = symmetries
        self.members = len(models) * (8 if symmetries else 1)
        self.trainings = [description.training for description in descriptions]
        self.fingerprints = [_fingerprint(predictor) for predictor in self.predictors]

    def probabilities(self, pixels: npt.NDArray[np.float32]) -> Probabilities:
        """Mean of the members' probabilities, as `Predictor.probabilities`.

        Args:
            pixels: float32 (batch, channels, height, width), raw, NaN where unseen.

        Returns:
            float32 (batch, classes, height, width), NaN where any channel was unseen.
        """
        mean = np.stack([self.predict(one)[0] for one in pixels])
        np.moveaxis(mean, 1, -1)[~np.isfinite(pixels).all(axis=1)] = np.nan
        return mean

    def predict(self, pixels: npt.NDArray[np.float32]) -> tuple[Probabilities, Probabilities]:
        """Mean and mean square of the members' probabilities.

        Args:
            pixels: float32 (channels, height, width), raw, NaN where unseen.

        Returns:
            Two arrays float32 (classes, height, width).

        Raises:
            InputError: a model gives probabilities that are no numbers.
        """
        mean = np.zeros((len(self.classes), *pixels.shape[1:]), dtype=np.float32)
        square = np.zeros_like(mean)
        for name, predictor in zip(self.names, self.predictors, strict=True):
            own = pixels
            if predictor.description.channels != self.channels:
                own = pixels[[self.channels.index(c) for c in predictor.description.channels]]
            for turns in range(4 if self.symmetries else 1):
                for mirrored in (False, True) if self.symmetries else (False,):
                    seen = np.rot90(own, turns, axes=(1, 2))
                    seen = seen[:, :, ::-1] if mirrored else seen
                    said = predictor.softmax(_interleaved(seen)[None])[0]
                    said = said[:, :, ::-1] if mirrored else said
                    said = np.rot90(said, -turns, axes=(1, 2))
                    if not np.isfinite(said).all():
                        raise InputError(
                            f"{name}: gives probabilities that are no numbers; its weights are "
                            "damaged, or its training diverged. Map with another version."
                        )
                    mean += said
                    square += said * said
        mean /= self.members
        square /= self.members
        return mean, square


def _interleaved(pixels: Probabilities) -> Probabilities:
    """The same (channels, height, width), all channels of a pixel beside each other in memory,
    as the network wants them."""
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(pixels, 0, -1)), -1, 0)


def _fingerprint(predictor: Predictor) -> str:
    digest = hashlib.sha256(json.dumps(predictor.description.to_json(), sort_keys=True).encode())
    for name, values in sorted(predictor.model.state_dict().items()):
        digest.update(name.encode() + values.cpu().numpy().tobytes())
    return digest.hexdigest()
