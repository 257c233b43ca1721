"""Scores come from one count of pixels: exact, the same however the pixels are grouped."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, confusion_matrix, precision_score, recall_score

from glacier_core.model.metrics import PrecisionRecall, confusion, scores

NAMES = ["background", "clean_ice", "debris"]
IGNORED = 255


def of(rows: list[list[int]]) -> NDArray[np.uint8]:
    return np.array(rows, dtype=np.uint8)


# --- confusion -------------------------------------------------------------------------------


def test_confusion_counts_true_classes_in_rows_and_predicted_ones_in_columns() -> None:
    truth = of([[0, 0, 1], [1, 2, IGNORED]])
    said = of([[0, 1, 1], [2, 2, 0]])
    assert confusion(truth, said, 3).tolist() == [[1, 1, 0], [0, 1, 1], [0, 0, 1]]


def test_whatever_is_said_of_an_ignored_pixel_is_not_counted() -> None:
    truth = of([[1, IGNORED, IGNORED]])
    assert confusion(truth, of([[1, 0, 2]]), 3).tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 0]]
    # Not even what is no class at all.
    assert confusion(truth, of([[1, 255, 77]]), 3).sum() == 1


def test_nothing_valid_counts_nothing() -> None:
    truth = np.full((4, 4), IGNORED, dtype=np.uint8)
    assert confusion(truth, np.zeros_like(truth), 3).tolist() == np.zeros((3, 3)).tolist()


maps = hnp.arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12)),
                  elements=st.sampled_from([0, 1, 2, IGNORED]))  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(truth=maps, seed=st.integers(0, 999))
def test_confusion_is_that_of_scikit_learn(truth: NDArray[np.uint8], seed: int) -> None:
    said = np.random.default_rng(seed).integers(0, 3, truth.shape).astype(np.uint8)
    valid = truth != IGNORED
    expected = np.zeros((3, 3), dtype=np.int64)
    if valid.any():
        expected = confusion_matrix(truth[valid], said[valid], labels=[0, 1, 2])
    np.testing.assert_array_equal(confusion(truth, said, 3), expected)
    assert confusion(truth, said, 3).sum() == valid.sum()


@settings(max_examples=60, deadline=None)
@given(truth=maps, seed=st.integers(0, 999), parts=st.integers(1, 9))
def test_scores_depend_neither_on_batch_size_nor_on_order(
    truth: NDArray[np.uint8], seed: int, parts: int
) -> None:
    random = np.random.default_rng(seed)
    said = random.integers(0, 3, truth.shape).astype(np.uint8)
    at_once = scores(confusion(truth, said, 3), NAMES)
    order = random.permutation(truth.size)
    total = np.zeros((3, 3), dtype=np.int64)
    for part in np.array_split(order, parts):
        total += confusion(truth.ravel()[part], said.ravel()[part], 3)
    assert scores(total, NAMES) == at_once


# --- scores ----------------------------------------------------------------------------------


def test_scores_are_those_counted_by_hand() -> None:
    matrix = np.array([[50, 3, 2], [5, 20, 1], [4, 0, 15]])
    result = scores(matrix, NAMES)
    assert result["clean_ice"] == {
        "iou": pytest.approx(20 / (20 + 3 + 0 + 5 + 1)),
        "precision": pytest.approx(20 / 23),
        "recall": pytest.approx(20 / 26),
        "dice": pytest.approx(2 * 20 / (23 + 26)),
        "pixels": 26,
    }
    assert result["background"]["iou"] == pytest.approx(50 / (50 + 3 + 2 + 5 + 4))
    assert result["debris"]["precision"] == pytest.approx(15 / 18)
    assert result["debris"]["recall"] == pytest.approx(15 / 19)
    assert result["all"] == {
        "pixel_accuracy": pytest.approx(85 / 100),
        "mean_ice_iou": pytest.approx((20 / 29 + 15 / 22) / 2),
        "pixels": 100,
    }


def test_a_class_that_is_neither_there_nor_predicted_is_undefined_and_spoils_no_mean() -> None:
    result = scores(np.array([[60, 10, 0], [10, 20, 0], [0, 0, 0]]), NAMES)
    assert result["debris"] == {
        "iou": "undefined",
        "precision": "undefined",
        "recall": "undefined",
        "dice": "undefined",
        "pixels": 0,
    }
    assert result["all"]["mean_ice_iou"] == result["clean_ice"]["iou"] == 0.5


def test_a_class_that_is_there_and_never_predicted_scores_zero_without_precision() -> None:
    result = scores(np.array([[60, 0, 0], [0, 20, 0], [7, 0, 0]]), NAMES)
    assert result["debris"] == {
        "iou": 0.0,
        "precision": "undefined",
        "recall": 0.0,
        "dice": 0.0,
        "pixels": 7,
    }
    assert result["all"]["mean_ice_iou"] == pytest.approx(0.5)


def test_a_class_that_is_predicted_and_never_there_scores_zero_without_recall() -> None:
    result = scores(np.array([[60, 0, 7], [0, 20, 0], [0, 0, 0]]), NAMES)
    assert result["debris"]["iou"] == 0.0
    assert result["debris"]["precision"] == 0.0
    assert result["debris"]["recall"] == "undefined"


def test_without_a_pixel_everything_is_undefined() -> None:
    result = scores(np.zeros((3, 3), dtype=np.int64), NAMES)
    kinds = {value for values in result.values() for k, value in values.items() if k != "pixels"}
    assert kinds == {"undefined"}


counts = hnp.arrays(np.int64, (3, 3), elements=st.integers(0, 3) | st.integers(0, 10**12))


@settings(max_examples=100, deadline=None)
@given(matrix=counts)
def test_scores_are_fractions_or_undefined_never_nan(matrix: NDArray[np.int64]) -> None:
    result: dict[str, Any] = scores(matrix, NAMES)
    for values in result.values():
        for key, value in values.items():
            if key != "pixels":
                assert value == "undefined" or 0.0 <= value <= 1.0
    assert json.dumps(result, allow_nan=False)
    for i, name in enumerate(NAMES):
        there, said = matrix[i].sum() > 0, matrix[:, i].sum() > 0
        assert (result[name]["recall"] == "undefined") == (not there)
        assert (result[name]["precision"] == "undefined") == (not said)
        assert (result[name]["iou"] == "undefined") == (not there and not said)


# --- precision and recall by threshold -------------------------------------------------------


def stepped(seed: int, count: int = 2000) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Probabilities in steps of 1/255, which the histogram holds without rounding."""
    random = np.random.default_rng(seed)
    is_class = random.random(count) < 0.3
    value = np.clip(random.normal(0.4 + 0.2 * is_class, 0.2), 0, 1)
    return (np.rint(value * 255) / 255).astype(np.float32), is_class


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), count=st.integers(5, 400), parts=st.integers(1, 5))
def test_average_precision_is_that_of_scikit_learn(seed: int, count: int, parts: int) -> None:
    probability, is_class = stepped(seed, count)
    curve = PrecisionRecall()
    for p, c in zip(
        np.array_split(probability, parts), np.array_split(is_class, parts), strict=True
    ):
        curve.add(p, c)
    if is_class.any():
        expected = average_precision_score(is_class, probability)
        assert curve.average_precision() == pytest.approx(expected, abs=1e-9)
    else:
        assert curve.average_precision() == "undefined"


def test_the_curve_holds_precision_and_recall_of_scikit_learn_at_each_threshold() -> None:
    probability, is_class = stepped(3)
    curve = PrecisionRecall()
    curve.add(probability, is_class)
    points = curve.curve()
    assert len(points) > 100
    for threshold, recall, precision in points:
        said = np.rint(probability * 255) >= round(threshold * 255)
        assert recall == pytest.approx(recall_score(is_class, said))
        assert precision == pytest.approx(precision_score(is_class, said))
    assert [t for t, _, _ in points] == sorted((t for t, _, _ in points), reverse=True)


def test_fine_probabilities_lose_little_to_the_steps() -> None:
    random = np.random.default_rng(0)
    is_class = random.random(20_000) < 0.2
    probability = 1 / (1 + np.exp(-random.normal(3 * is_class - 1.5, 1)))
    curve = PrecisionRecall()
    curve.add(probability.astype(np.float32), is_class)
    expected = average_precision_score(is_class, probability)
    assert curve.average_precision() == pytest.approx(expected, abs=0.005)


def test_a_class_that_never_occurs_has_no_curve() -> None:
    curve = PrecisionRecall()
    curve.add(np.array([0.1, 0.9], dtype=np.float32), np.array([False, False]))
    assert curve.curve() == []
    assert curve.average_precision() == "undefined"
