"""Our training with its own loader, and the same fed from memory."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from torch import Tensor

from glacier_core.config import Project
from glacier_core.dataset.sampling import Crops
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


class _FromMemory(Crops):
    """Crops that were read before the start, in batches that were put together then."""

    served = 0

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        size = args[1].batch_size
        keys = [(0, number % len(self)) for number in range(_BATCHES * size)]
        samples = [super(_FromMemory, self).__getitem__(key) for key in keys]
        self._read = [
            super(_FromMemory, self).batch(samples[i : i + size]) for i in range(0, len(keys), size)
        ]

    def __getitem__(self, key: tuple[int, int]) -> Any:
        return key

    def batch(self, crops: list[Any]) -> tuple[Tensor, Tensor]:
        image, label = self._read[_FromMemory.served % _BATCHES]
        _FromMemory.served += 1
        return image[: len(crops)], label[: len(crops)]


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
        vars(training)["Crops"] = _FromMemory
    speeds = _Speeds()
    training.train(place, [speeds])
    if from_memory and not _FromMemory.served:
        raise RuntimeError("the training does not take its batches from Crops any more")
    rate = sum(speeds.found[1:]) / len(speeds.found[1:])
    return {"images_per_second": rate, "epochs": len(speeds.found)}


def train_model(project: str) -> dict[str, Any]:
    """Train the model that maps; its folder."""
    place = Project(Path(project))
    training.train(place)
    return {"model": str(place.run_folder / "models")}
