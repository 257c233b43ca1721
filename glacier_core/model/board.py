"""TensorBoard: how a training goes, for who looks on."""

from __future__ import annotations

import shutil
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from glacier_core.model.checkpoints import Row
from glacier_core.model.predictor import ModelDescription


class Board:
    """TensorBoard events of one run, written anew when it is resumed: a kill loses some."""

    def __init__(self, folder: Path) -> None:
        if folder.exists():
            shutil.rmtree(folder)
        self._writer = SummaryWriter(str(folder))

    def begin(self, description: ModelDescription, past: list[Row]) -> None:  # noqa: ARG002
        for row in past:
            self.epoch(row)

    def epoch(self, row: Row) -> None:
        for key, value in row.items():
            if isinstance(value, float) and key != "epoch":
                self._writer.add_scalar(key, value, int(row["epoch"]))

    def end(self, error: BaseException | None) -> None:  # noqa: ARG002
        self._writer.close()
