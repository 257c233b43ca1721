"""Our training with its own loader, and the same fed from memory."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import default_collate

from glacier_core.config import Project
from glacier_core.memory import keep_freed_memory
from glacier_core.model import training
from glacier_core.model.checkpoints import Row

# Distinct batches in memory; more would only take more of it.
_BATCHES = 4


class _Speeds:
    """An observer that keeps images a second by epoch."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def begin(self, description: Any, past: Any) -> None: ...

    def epoch(self, row: Row) -> None:
        self.found.append(float(row["images_per_second"]))

    def end(self, error: BaseException | None) -> None: ...


class _FromMemory:
    """Takes the place of the data loader: the same number of batches, read before the start."""

    served = 0

    def __init__(self, crops: Any, *, batch_sampler: Any, **_: Any) -> None:
        self._sampler = batch_sampler
        batch_size = max(batch_sampler.lengths)
        keys = [(0, number % len(crops)) for number in range(_BATCHES * batch_size)]
        samples = [crops[key] for key in keys]
        self._batches = [
            default_collate(samples[i : i + batch_size]) for i in range(0, len(keys), batch_size)
        ]

    def __len__(self) -> int:
        return len(self._sampler)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for number, keys in enumerate(self._sampler):
            image, label = self._batches[number % len(self._batches)]
            count = len(keys)
            _FromMemory.served += 1
            yield image[:count], label[:count]


def train(project: str, from_memory: bool) -> dict[str, Any]:
    """What `glacier train` calls, without MLflow; images a second of the epochs after the first.

    Args:
        project: folder whose dataset is there.
        from_memory: without reading: what the network could do if slices cost nothing.
    """
    keep_freed_memory()  # as the command line does
    place = Project(Path(project))
    shutil.rmtree(place.run_folder, ignore_errors=True)
    if from_memory:
        vars(training)["DataLoader"] = _FromMemory
    speeds = _Speeds()
    training.train(place, [speeds])
    if from_memory and not _FromMemory.served:
        raise RuntimeError("the training does not take its batches from DataLoader any more")
    rate = sum(speeds.found[1:]) / len(speeds.found[1:])
    return {"images_per_second": rate, "epochs": len(speeds.found)}


def train_model(project: str) -> dict[str, Any]:
    """Train the model that maps; its folder."""
    place = Project(Path(project))
    training.train(place)
    return {"model": str(place.run_folder / "models")}
