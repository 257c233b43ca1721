"""Channel statistics: exact, in one pass, mergeable."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from glacier_core.errors import InputError
from glacier_core.files import write_json


class ChannelStatistics:
    """Running count, mean and sum of squared deviations a channel, in float64.

    Attributes:
        names: channel names.
        counts, means: (channels,).
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self.counts = np.zeros(len(self.names), dtype=np.int64)
        self.means = np.zeros(len(self.names))
        self._squares = np.zeros(len(self.names))

    def partial_fit(self, values: npt.NDArray[np.generic]) -> ChannelStatistics:
        """Add observations: (pixels, channels), NaN where a channel was not seen."""
        other = ChannelStatistics(self.names)
        seen = np.isfinite(values)
        other.counts = seen.sum(axis=0)
        filled: npt.NDArray[Any] = values if seen.all() else np.where(seen, values, 0)
        # A channel without observations keeps mean 0; its count says that it means nothing.
        other.means = filled.sum(axis=0, dtype=np.float64) / np.maximum(other.counts, 1)
        deviations: npt.NDArray[np.float64] = filled - other.means
        if filled is not values:
            deviations[~seen] = 0.0
        other._squares = np.einsum("ij,ij->j", deviations, deviations)
        return self.merge(other)

    def merge(self, other: ChannelStatistics) -> ChannelStatistics:
        """Add another's observations (Chan, Golub and LeVeque 1983); returns self."""
        total = self.counts + other.counts
        divisor = np.maximum(total, 1)
        delta = other.means - self.means
        self._squares += other._squares + delta**2 * self.counts * other.counts / divisor
        self.means = self.means + delta * other.counts / divisor
        self.counts = total
        return self

    @property
    def standard_deviations(self) -> npt.NDArray[np.float64]:
        """Of the population, (channels,); 0 for a constant channel."""
        deviations: npt.NDArray[np.float64] = np.sqrt(self._squares / np.maximum(self.counts, 1))
        # Rounding leaves a constant channel a deviation of about 1e-16 of its mean.
        deviations[deviations <= 1e-12 * np.abs(self.means)] = 0.0
        return deviations

    def write(self, path: Path, *, source: dict[str, Any]) -> None:
        """Write as JSON: bands, means, standard_deviations, counts, and where they are from."""
        write_json(
            path,
            {
                "bands": self.names,
                "means": self.means.tolist(),
                "standard_deviations": self.standard_deviations.tolist(),
                "counts": self.counts.tolist(),
                **source,
            },
        )

    def unseen(self) -> list[str]:
        """Channels without one observation."""
        return [name for name, count in zip(self.names, self.counts, strict=True) if count == 0]

    def constant(self) -> list[str]:
        """Channels whose every observation is the same."""
        deviations = self.standard_deviations
        return [
            name
            for name, deviation, count in zip(self.names, deviations, self.counts, strict=True)
            if deviation == 0 and count > 0
        ]


def require_observed(statistics: ChannelStatistics) -> None:
    """Refuse channels that were never seen: nothing can be normalised by them."""
    if statistics.unseen():
        raise InputError(
            f"channels {', '.join(statistics.unseen())} have no valid pixel in the training "
            "split; leave them out of channels in conf/postprocess.yaml"
        )
