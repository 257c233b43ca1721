"""What training makes small: where borders lie, factors that are learned, and nothing of it kept."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_dataset import (
    CHANNELS,
    LEARNING,
    After,
    Stopped,
    models,
    said_once,
    small_project,
    truth_of,
    with_conf,
)
from torch import Tensor
from workspace import run

from glacier_core.config import Project
from glacier_core.model.losses import Loss, alone
from glacier_core.model.objective import border_loss, on_border
from glacier_core.model.predictor import Predictor
from glacier_core.model.training import train

FILES = ("model.safetensors", "model.json", "history.csv")
CPU = torch.device("cpu")
NOWHERE = {
    "MLFLOW_TRACKING_URI": "http://127.0.0.1:9",  # the discard port: nobody listens
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "2",
}
LEARNED = {"loss": "dice+0.5*boundary", "loss_weights": "learned"}
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "residual": ({}, {"model": {"blocks": "residual"}}),
    "attention": ({}, {"model": {"attention": True}}),
    "binary": ({}, {"model": {"heads": "binary"}}),
    "borders": ({"border_weight": 0.5}, {}),
    "learned factors": ({}, LEARNED),
    "all, averaged, coarse": (
        {"border_weight": 0.5, "ema_decay": 0.9, "coarsening": 2, "l2": 0.001},
        {"model": {"blocks": "residual", "attention": True, "heads": "binary"}, **LEARNED},
    ),
}
each_variant = pytest.mark.parametrize(("params", "conf"), VARIANTS.values(), ids=VARIANTS)

Make = Callable[..., Project]


@pytest.fixture
def make(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Makes a copy of the small dataset, with changed settings."""
    numbers = iter(range(100))

    def make(params: dict[str, Any], conf: dict[str, Any]) -> Project:
        project = small_project(tmp_path_factory, tmp_path / f"project{next(numbers)}", params)
        return with_conf(project, **conf)

    return make


def contents(project: Project) -> dict[str, bytes]:
    return {name: (models(project) / name).read_bytes() for name in FILES}


def history(project: Project) -> list[dict[str, str]]:
    with (models(project) / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def checkpoints(project: Project) -> list[dict[str, Tensor]]:
    """Train; the tensors of the last checkpoint after each epoch."""
    found: list[dict[str, Tensor]] = []
    last = models(project) / "checkpoints/last.safetensors"
    train(project, [After(lambda _: found.append(load_file(last)))])
    return found


# --- every variant as a training -------------------------------------------------------------


@each_variant
def test_a_stopped_training_of_a_variant_ends_as_if_it_had_not_been(
    make: Make, params: dict[str, Any], conf: dict[str, Any]
) -> None:
    def stop(epoch: int) -> None:
        if epoch == 1:
            raise Stopped

    params = {"epochs": 3, "dropout": 0.3, **params}
    whole, stopped = make(params, conf), make(params, conf)
    train(whole)
    with pytest.raises(Stopped):
        train(stopped, [After(stop)])
    train(stopped)
    assert contents(stopped) == contents(whole)


@pytest.mark.parametrize("name", ["residual", "attention", "binary", "borders"])
def test_every_variant_learns_and_what_is_kept_scores_what_history_says(
    make: Make, name: str
) -> None:
    params, conf = VARIANTS[name]
    wider = {"base_channels": 12, "learning_rate": 0.005}
    project = make({**LEARNING, **wider, **params}, conf)
    train(project)
    best = max(float(row["dev_mean_ice_iou"]) for row in history(project))
    assert best > 0.6
    predictor = Predictor.load(models(project), "cpu", "float32")
    [(name, said)] = said_once(project, predictor, "dev").items()
    truth = truth_of(1)
    ious = [
        float(((said == k) & (truth == k)).sum() / ((said == k) | (truth == k)).sum())
        for k in (1, 2)
    ]
    # But for the pixels that were not seen, which do not count there.
    assert name.startswith("LE07_Q")
    assert np.mean(ious) == pytest.approx(best, abs=0.1)


@pytest.mark.slow
def test_all_variants_at_once_through_the_command_line(make: Make) -> None:
    params, conf = VARIANTS["all, averaged, coarse"]
    project = make({**LEARNING, **params}, conf)
    run(project.root, "glacier", "--quiet", "train", **NOWHERE)
    predictor = Predictor.load(models(project))
    shape = predictor.description.architecture
    assert (shape.blocks, shape.attention, shape.heads) == ("residual", True, "binary")
    x = np.full((1, len(CHANNELS), 9, 17), 100, dtype=np.float32)
    assert predictor.probabilities(x).sum(axis=1) == pytest.approx(1, abs=1e-5)


# --- borders ---------------------------------------------------------------------------------

LABEL = """
    0 0 0 0 0 0 0 0
    0 0 0 0 0 0 0 0
    0 0 1 1 1 - 2 2
    0 0 1 1 1 - 2 2
    0 0 1 1 1 - 2 2
    - - - - 2 2 2 2
    0 0 0 0 2 2 2 2
"""
NEAR = """
    . . . . . . . .
    . x x x x x x x
    . x x x x . x x
    . x x . . . . .
    . x x x x . . .
    . . . . x x . .
    . . . x x . . .
"""


def label_of(text: str) -> Tensor:
    rows = [
        [255 if c == "-" else int(c) for c in line.split()]
        for line in text.split("\n")
        if line.strip()
    ]
    return torch.tensor(rows, dtype=torch.uint8)[None]


def test_a_border_is_where_a_seen_pixel_touches_one_of_another_class() -> None:
    rows = [line.split() for line in NEAR.split("\n") if line.strip()]
    expected = torch.tensor([[c == "x" for c in row] for row in rows])
    assert torch.equal(on_border(label_of(LABEL), 1)[0], expected)


def test_a_border_reaches_as_far_as_it_is_told_and_not_round_the_edge() -> None:
    label = torch.zeros((1, 12, 9), dtype=torch.uint8)
    label[:, 6:] = 2
    for reach in (1, 2, 3):
        rows = on_border(label, reach)[0].all(dim=1)
        assert rows.nonzero().flatten().tolist() == list(range(6 - reach, 6 + reach))
        assert on_border(label, reach).sum() == 2 * reach * 9


def test_one_class_alone_or_nothing_seen_has_no_border() -> None:
    for value in (0, 2, 255):
        label = torch.full((2, 6, 6), value, dtype=torch.uint8)
        label[:, 2:4, 2:4] = 255
        assert not on_border(label, 1).any()


def test_both_kinds_of_pixels_weigh_the_same_in_the_loss_of_borders() -> None:
    label = torch.zeros((1, 40, 10), dtype=torch.uint8)
    label[:, 20:] = 1
    label[:, :2] = 255
    unsure = torch.zeros(1, 40, 10)
    assert border_loss(unsure, label, 1, alone).item() == pytest.approx(math.log(2))
    near = on_border(label, 1)
    assert near.sum() == 20
    for wrong in (near, ~near & (label != 255)):
        said = torch.where(near ^ wrong, 20.0, -20.0)
        assert border_loss(said, label, 1, alone).item() == pytest.approx(10, rel=1e-5)
    right = torch.where(near, 20.0, -20.0)
    assert border_loss(right, label, 1, alone).item() < 1e-6
    right[:, :2] = 1000.0  # what was not seen does not count
    assert border_loss(right, label, 1, alone).item() < 1e-6


@pytest.mark.parametrize("count", [0, 2])
def test_where_nothing_was_seen_the_loss_of_borders_is_nothing(count: int) -> None:
    logits = torch.randn(count, 5, 5, requires_grad=True)
    loss = border_loss(logits, torch.full((count, 5, 5), 255, dtype=torch.uint8), 1, alone)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_the_head_for_borders_is_trained_and_resumed_and_not_kept(make: Make) -> None:
    plain = make({"epochs": 3}, {})
    train(plain)
    project = make({"epochs": 3, "border_weight": 1.0}, {})
    found = checkpoints(project)
    heads = [tensors["objective.border.weight"] for tensors in found]
    assert (heads[0] - heads[2]).abs().max() > 1e-3
    kept, usual = (load_file(models(p) / "model.safetensors") for p in (project, plain))
    assert {name: w.shape for name, w in kept.items()} == {n: w.shape for n, w in usual.items()}
    assert any(not torch.equal(w, usual[name]) for name, w in kept.items())


def test_the_more_borders_weigh_the_more_they_are_part_of_the_loss(make: Make) -> None:
    losses = []
    for weight in (0.0, 1.0, 10.0):
        project = make({"learning_rate": 1e-9, "border_weight": weight}, {})
        train(project)
        losses.append(float(history(project)[0]["loss"]))
    assert losses[1] - losses[0] == pytest.approx(math.log(2), abs=0.3)
    assert losses[2] - losses[0] == pytest.approx(10 * (losses[1] - losses[0]), rel=1e-3)


# --- factors ---------------------------------------------------------------------------------


def test_learned_factors_begin_as_written_and_cost_their_logarithms() -> None:
    logits, target = torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 8, 8), dtype=torch.uint8)
    fixed, learned = (
        Loss("dice+0.5*boundary", [1, 1, 2], 0.0, CPU, learned=kind) for kind in (False, True)
    )
    assert fixed.factors() == {"dice": 1.0, "boundary": 0.5}
    assert learned.factors() == pytest.approx(fixed.factors())
    assert not list(fixed.parameters())
    value = learned(logits, target)
    assert value.item() == pytest.approx(fixed(logits, target).item() - math.log(0.5), rel=1e-5)
    value.backward()
    assert learned.log_variances is not None
    assert learned.log_variances.grad is not None
    terms = [Loss(name, [1, 1, 2], 0.0, CPU)(logits, target) for name in ("dice", "boundary")]
    expected = [1 - terms[0].item(), 1 - 0.5 * terms[1].item()]
    assert learned.log_variances.grad.tolist() == pytest.approx(expected, rel=1e-4)


def test_left_to_itself_a_factor_tends_to_one_over_its_term() -> None:
    logits, target = torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 8, 8), dtype=torch.uint8)
    loss = Loss("4*dice+cross_entropy", [1, 1, 1], 0.0, CPU, learned=True)
    steps = torch.optim.Adam(loss.parameters(), lr=0.02)
    for _ in range(600):
        steps.zero_grad()
        loss(logits, target).backward()
        steps.step()
    for name, factor in loss.factors().items():
        term = Loss(name, [1, 1, 1], 0.0, CPU)(logits, target).item()
        assert factor == pytest.approx(1 / term, rel=0.01)


def test_learned_factors_move_and_history_and_checkpoints_say_to_what(make: Make) -> None:
    project = make({"epochs": 3, "learning_rate": 0.01, "border_weight": 0.1}, LEARNED)
    found = checkpoints(project)
    rows = history(project)
    for tensors, row in zip(found, rows, strict=True):
        factors = (-tensors["objective.loss.log_variances"]).exp().tolist()
        assert [float(row["factor_dice"]), float(row["factor_boundary"])] == factors
    assert float(rows[0]["factor_dice"]) == pytest.approx(1.0, abs=0.1)
    assert float(rows[0]["factor_boundary"]) == pytest.approx(0.5, abs=0.1)
    assert float(rows[2]["factor_boundary"]) != pytest.approx(0.5, abs=0.005)
    assert "factor_dice" not in (models(project) / "model.json").read_text()


def test_decay_of_weights_leaves_factors_alone(make: Make) -> None:
    """With no gradient to speak of either way, a decay of 1 would halve a logarithm in a few steps."""
    conf = {"loss": "dice+0.01*boundary", "loss_weights": "learned"}
    factors = []
    for decay in (0.0, 30.0):
        project = make({"epochs": 2, "weight_decay": decay, "clip_gradient": 1e-9}, conf)
        train(project)
        factors.append(float(history(project)[-1]["factor_boundary"]))
    assert factors[0] == pytest.approx(factors[1], rel=0.02)


def test_fixed_factors_are_no_columns_of_the_history(make: Make) -> None:
    project = make({}, {"loss": "dice+0.5*boundary"})
    train(project)
    assert not [name for name in history(project)[0] if name.startswith("factor")]
