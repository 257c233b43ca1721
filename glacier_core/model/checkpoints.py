"""Where a training stands, as a file: state, weights, their average and the optimiser."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from safetensors import safe_open
from torch import Tensor, nn
from torch.optim import Optimizer

from glacier_core.model.predictor import save_tensors

logger = logging.getLogger(__name__)

LAST = "last.safetensors"
Row = dict[str, float | str]


@dataclass
class State:
    """Where a training stands.

    Attributes:
        done: epochs.
        best: dev score of the best of them.
        waited: epochs since then.
        rows: of `history.csv`, one an epoch.
    """

    done: int = 0
    best: float = -math.inf
    waited: int = 0
    rows: list[Row] = field(default_factory=list)


def save_checkpoint(
    folder: Path,
    training: str,
    state: State,
    models: Mapping[str, nn.Module],
    optimizer: Optimizer,
) -> None:
    """Write `last.safetensors`, whole.

    Args:
        folder: of the checkpoints.
        training: fingerprint of settings and data: who has another one does not go on from here.
        state, optimizer: as they stand.
        models: by name, the one that is trained and, where it is kept, its average.
    """
    tensors = {
        f"{kind}.{name}": value
        for kind, model in models.items()
        for name, value in model.state_dict().items()
    }
    for number, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{key}": value for key, value in values.items()}
    tensors = {name: value.contiguous().cpu() for name, value in tensors.items()}
    note = {"state": json.dumps(asdict(state)), "training": training}
    save_tensors(folder / LAST, tensors, note)


def read_checkpoint(folder: Path, training: str) -> tuple[State, dict[str, Tensor]] | None:
    """State and tensors of the last checkpoint, if it is of this very training."""
    path = folder / LAST
    if not path.exists():
        return None
    with safe_open(path, framework="pt") as file:
        note = file.metadata()
        if note["training"] != training:
            logger.info("%s: is of other settings or data; starting afresh", path)
            return None
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return State(**json.loads(note["state"])), tensors


def restore(
    tensors: dict[str, Tensor], models: Mapping[str, nn.Module], optimizer: Optimizer
) -> None:
    """Give models and the optimiser the tensors that `save_checkpoint` wrote."""
    for kind, model in models.items():
        prefix = f"{kind}."
        model.load_state_dict(
            {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        )
    content = optimizer.state_dict()
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, number, key = name.split(".")
            content["state"].setdefault(int(number), {})[key] = value
    optimizer.load_state_dict(content)
