"""What a fold says of its test ground comes back from its files as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glacier_core.model.predictions import load_groups, load_prediction, save_prediction
from glacier_core.model.steps import StepGains

NAMES = ["background", "clean_ice", "debris"]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), sure=st.floats(0.1, 20))
def test_classes_and_what_was_not_seen_come_back(
    seed: int, sure: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    random = np.random.default_rng(seed)
    logits = sure * random.normal(size=(3, 7, 9))
    likely = (np.exp(logits) / np.exp(logits).sum(axis=0)).astype(np.float32)
    unseen = random.random((7, 9)) < 0.3
    likely[:, unseen] = 0
    truth = np.where(unseen, 255, random.integers(0, 3, (7, 9))).astype(np.uint8)
    groups = {("snow", "neither"): random.random((7, 9)) < 0.5, ("snow", "ice"): unseen}
    path = tmp_path_factory.mktemp("said") / "slice.npz"
    save_prediction(path, truth, likely, groups)
    labels, found = load_prediction(path)
    assert (labels == truth).all()
    assert (found.argmax(axis=0) == likely.argmax(axis=0)).all()
    assert (found[:, unseen] == 0).all()
    np.testing.assert_allclose(found, likely, atol=1 / 255)
    held = load_groups(path)
    assert held.keys() == groups.keys()
    assert all((held[key] == groups[key]).all() for key in groups)


def test_debris_below_a_cloud_keeps_its_place_in_what_steps_would_change(tmp_path: Path) -> None:
    """Its ice may lie under the cloud: nobody knows that none feeds it."""
    classes = np.zeros((9, 9), np.uint8)
    classes[2:4, 3:6] = 2
    likely = np.eye(3, dtype=np.float32)[classes].transpose(2, 0, 1).copy()
    truth = classes.copy()
    likely[:, 4], truth[4] = 0, 255
    save_prediction(tmp_path / "slice.npz", truth, likely, {})
    gains = StepGains(NAMES, 0.01)
    gains.add(*load_prediction(tmp_path / "slice.npz"), 30.0)
    assert {
        step: found["debris"]["gain"] for step, found in gains.result().items()
    } == dict.fromkeys(gains.result(), 0.0)
