"""What a model's answers are worth, from sums by piece of ground: known answers, known scores."""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import log_loss, matthews_corrcoef

from glacier_core.model.bootstrap import tail, units_needed
from glacier_core.model.judging import BINS, Judged
from glacier_core.model.metrics import confusion, scores

NAMES = ["background", "clean_ice", "debris"]
IGNORED = 255
PIXEL = 30.0
SHARES = ("iou", "precision", "recall", "dice")


def certain(said: NDArray[np.uint8], of: float = 1.0) -> NDArray[np.float32]:
    """Probabilities (classes, height, width) that give the class said so much, the rest equally."""
    rest = (1 - of) / (len(NAMES) - 1)
    layers = np.where(said == np.arange(len(NAMES))[:, None, None], of, rest)
    return layers.astype(np.float32)


def squares(shift: int = 0) -> NDArray[np.uint8]:
    """A square of clean ice of 20 x 20 in 60 x 60, moved to the right."""
    truth = np.zeros((60, 60), dtype=np.uint8)
    truth[20:40, 20 + shift : 40 + shift] = 1
    return truth


def guessed(seed: int, shape: tuple[int, int]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Any truth with ignored pixels, and any probabilities."""
    random = np.random.default_rng(seed)
    truth = random.choice([0, 1, 2, IGNORED], shape, p=[0.5, 0.2, 0.2, 0.1]).astype(np.uint8)
    weights = random.random((len(NAMES), *shape)) ** 2
    return truth, (weights / weights.sum(axis=0)).astype(np.float32)


def summed(judged: Judged, draws: int = 50, confidence: float = 0.9) -> dict[str, dict[str, Any]]:
    return judged.summary(draws=draws, confidence=confidence, seed=1)


def judged_once(
    truth: NDArray[np.uint8], probability: NDArray[np.float32], pixel_m: float = PIXEL
) -> dict[str, dict[str, Any]]:
    judged = Judged(NAMES)
    judged.add("here", truth, probability, pixel_m)
    return summed(judged)


# --- values ----------------------------------------------------------------------------------


def test_a_perfect_map_has_perfect_scores() -> None:
    truth = squares()
    truth[45:50, 10:30] = 2
    found = judged_once(truth, certain(truth))
    for name in NAMES:
        values = {key: score["value"] for key, score in found[name].items()
                  if isinstance(score, dict)}  # fmt: skip
        assert {values[key] for key in (*SHARES, "mcc")} == {1.0}
        assert {values[key] for key in ("area_bias_percent", "ece", "boundary_alone_percent")} == {
            0
        }
        assert (values["boundary_median_m"], values["boundary_p95_m"]) == (0, 0)
        assert found[name]["pixels"] == (truth == NAMES.index(name)).sum()
    assert found["all"]["mean_ice_iou"]["value"] == found["all"]["pixel_accuracy"]["value"] == 1
    assert found["all"]["ece"]["value"] == 0
    assert found["all"]["nll"]["value"] == 0
    assert (found["all"]["pixels"], found["all"]["units"]) == (3600, 1)


def test_a_square_moved_aside_lies_as_far_from_its_border_as_it_was_moved() -> None:
    found = judged_once(squares(), certain(squares(6)))["clean_ice"]
    # A square's border has 76 pixels. Of the true one, the left side (18 pixels without corners)
    # is 6 away, the right one lies in the map's inside; above and below, what both share is 0.
    true, said = squares(), squares(6)

    def ring(square: NDArray[np.uint8]) -> list[tuple[int, int]]:
        rows, cols = np.nonzero(square)
        edge = (rows == 20) | (rows == 39) | (cols == cols.min()) | (cols == cols.max())
        return list(zip(rows[edge].tolist(), cols[edge].tolist(), strict=True))

    pooled = sorted(
        min(math.dist(here, there) for there in ring(b))
        for a, b in ((true, said), (said, true))
        for here in ring(a)
    )
    assert len(pooled) == 152
    half, most = (pooled[math.ceil(q * len(pooled)) - 1] for q in (0.5, 0.95))
    assert found["boundary_median_m"]["value"] == pytest.approx(half * PIXEL, abs=PIXEL / 20)
    assert found["boundary_p95_m"]["value"] == pytest.approx(most * PIXEL, abs=PIXEL / 20)
    assert most == 6
    # A strip of 6 x 20 is missed and as much wrongly mapped: the area is right, the map is not.
    assert found["area_bias_percent"]["value"] == 0
    assert found["iou"]["value"] == pytest.approx(280 / 520)


def test_a_border_is_as_many_metres_away_as_its_pixels_are_large() -> None:
    fine = judged_once(squares(), certain(squares(6)), 10.0)["clean_ice"]["boundary_p95_m"]["value"]
    assert fine == pytest.approx(60)


def test_pixels_of_two_sizes_are_pooled_in_metres() -> None:
    judged = Judged(NAMES)
    judged.add("fine", squares(), certain(squares(3)), 10.0)
    judged.add("coarse", squares(), certain(squares(3)), 60.0)
    assert summed(judged)["clean_ice"]["boundary_p95_m"]["value"] == pytest.approx(180)


def test_a_glacier_that_is_missed_whole_has_no_border_distance_but_is_told() -> None:
    judged = Judged(NAMES)
    judged.add("missed", squares(), certain(np.zeros_like(squares())), PIXEL)
    only = summed(judged)["clean_ice"]
    assert only["boundary_median_m"]["value"] == "undefined"
    assert only["boundary_alone_percent"]["value"] == 100
    judged.add("found", squares(), certain(squares()), PIXEL)
    both = summed(judged)["clean_ice"]
    assert both["boundary_p95_m"]["value"] == 0
    assert both["boundary_alone_percent"]["value"] == pytest.approx(100 * 76 / (76 + 152))


def test_no_border_runs_along_what_was_not_seen() -> None:
    truth = np.ones((12, 12), dtype=np.uint8)
    truth[:, :4] = IGNORED
    found = judged_once(truth, certain(np.ones_like(truth)))["clean_ice"]
    assert found["boundary_median_m"]["value"] == "undefined"
    assert found["boundary_alone_percent"]["value"] == "undefined"


def test_more_ice_than_there_is_has_a_bias_above_zero() -> None:
    said = squares()
    said[40:45, 20:40] = 1
    assert judged_once(squares(), certain(said))["clean_ice"]["area_bias_percent"]["value"] == 25
    assert judged_once(said, certain(squares()))["clean_ice"]["area_bias_percent"][
        "value"
    ] == pytest.approx(-20)


def test_a_class_that_never_occurs_is_undefined() -> None:
    found = judged_once(squares(), certain(squares()))["debris"]
    for key in (*SHARES, "mcc", "area_bias_percent", "boundary_median_m"):
        assert found[key] == {"value": "undefined", "lower": "undefined", "upper": "undefined"}
    assert (found["pixels"], found["units"]) == (0, 0)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 9999))
def test_scores_are_those_of_the_confusion_matrix_and_of_scikit_learn(seed: int) -> None:
    truth, probability = guessed(seed, (9, 7))
    valid, said = truth != IGNORED, probability.argmax(axis=0).astype(np.uint8)
    found = judged_once(truth, probability)
    expected = scores(confusion(truth, said, len(NAMES)), NAMES)
    for number, name in enumerate(NAMES):
        for key in SHARES:
            assert found[name][key]["value"] == pytest.approx(expected[name][key])
        there, mapped = truth[valid] == number, said[valid] == number
        if 0 < there.sum() < there.size and 0 < mapped.sum() < mapped.size:
            assert found[name]["mcc"]["value"] == pytest.approx(matthews_corrcoef(there, mapped))
    for key in ("mean_ice_iou", "pixel_accuracy"):
        assert found["all"][key]["value"] == pytest.approx(expected["all"][key])
    likely = probability[:, valid].T
    assert found["all"]["nll"]["value"] == pytest.approx(
        log_loss(truth[valid], likely, labels=[0, 1, 2]), rel=1e-5
    )


# --- confidence ------------------------------------------------------------------------------


def test_who_says_nine_in_ten_and_is_right_so_often_has_no_calibration_error() -> None:
    truth = np.zeros((10, 10), dtype=np.uint8)
    truth[0] = 1
    found = judged_once(truth, certain(np.zeros_like(truth), 0.9))
    assert found["all"]["ece"]["value"] == pytest.approx(0, abs=1e-6)
    # Of clean ice it says 0.05 everywhere, and a tenth is; of debris the same, and none is.
    assert found["clean_ice"]["ece"]["value"] == pytest.approx(0.05, abs=1e-6)
    assert found["debris"]["ece"]["value"] == pytest.approx(0.05, abs=1e-6)


def test_who_is_surer_than_right_has_the_difference_as_calibration_error() -> None:
    truth = np.zeros((10, 10), dtype=np.uint8)
    truth[:3] = 1
    found = judged_once(truth, certain(np.zeros_like(truth), 0.9))
    assert found["all"]["ece"]["value"] == pytest.approx(0.2, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 9999))
def test_the_calibration_error_is_that_of_its_definition(seed: int) -> None:
    truth, probability = guessed(seed, (12, 12))
    valid = truth != IGNORED
    likely = probability[:, valid].astype(np.float64)
    top, right = likely.max(axis=0), likely.argmax(axis=0) == truth[valid]
    error = 0.0
    for k in range(BINS):
        inside = (top > k / BINS) & (top <= (k + 1) / BINS)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - top[inside].mean())
    assert judged_once(truth, probability)["all"]["ece"]["value"] == pytest.approx(error)


def test_reliability_counts_every_valid_pixel_once_in_its_bin() -> None:
    truth = squares()
    truth[:2] = IGNORED
    judged = Judged(NAMES)
    judged.add("here", truth, certain(np.zeros_like(truth), 0.9), PIXEL)
    found = judged.reliability()
    assert list(found) == [*NAMES, "all"]
    assert {name: table[:, 0].sum() for name, table in found.items()} == dict.fromkeys(found, 3480)
    filled = math.ceil(0.9 * BINS) - 1
    assert found["all"][filled].tolist() == pytest.approx([3480, 0.9 * 3480, 3080])
    assert found["clean_ice"][0].tolist() == pytest.approx([3480, 0.05 * 3480, 400])


# --- what counts -----------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 9999))
def test_what_is_said_of_ignored_pixels_never_counts(seed: int) -> None:
    truth, probability = guessed(seed, (11, 8))
    before = judged_once(truth, probability)
    probability[:, truth == IGNORED] = np.nan
    assert judged_once(truth, probability) == before
    probability[:, truth == IGNORED] = np.array([0, 0, 1], dtype=np.float32)[:, None]
    assert judged_once(truth, probability) == before


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 9999))
def test_values_are_the_same_however_the_ground_is_divided_into_units(seed: int) -> None:
    arrays = [guessed(seed + k, (8, 8)) for k in range(4)]
    together, apart = Judged(NAMES), Judged(NAMES)
    for k, (truth, probability) in enumerate(arrays):
        together.add("one", truth, probability, PIXEL)
        apart.add(f"unit {k}", truth, probability, PIXEL)
    one, four = summed(together), summed(apart)
    for name in (*NAMES, "all"):
        assert four[name]["pixels"] == one[name]["pixels"]
        for key, score in one[name].items():
            if isinstance(score, dict):
                assert four[name][key]["value"] == pytest.approx(score["value"])
    assert (one["all"]["units"], four["all"]["units"]) == (1, 4)


def test_a_unit_of_ignored_pixels_alone_is_none() -> None:
    judged = Judged(NAMES)
    judged.add("here", squares(), certain(squares()), PIXEL)
    judged.add("cloud", np.full_like(squares(), IGNORED), certain(squares()), PIXEL)
    assert summed(judged)["all"]["units"] == 1


def test_nothing_at_all_is_undefined() -> None:
    found = summed(Judged(NAMES))
    assert found["all"]["mean_ice_iou"]["value"] == "undefined"
    assert (found["all"]["pixels"], found["all"]["units"]) == (0, 0)


def test_arrays_that_do_not_fit_are_refused() -> None:
    judged = Judged(NAMES)
    with pytest.raises(ValueError, match=r"\(2, 60, 60\)"):
        judged.add("here", squares(), certain(squares())[:2], PIXEL)
    broken = certain(squares())
    broken[1, 30, 30] = np.nan
    with pytest.raises(ValueError, match="no number"):
        judged.add("here", squares(), broken, PIXEL)


# --- intervals -------------------------------------------------------------------------------


def places(count: int) -> Judged:
    """So many units, each with another shift of the square."""
    judged = Judged(NAMES)
    for k in range(count):
        judged.add(f"unit {k}", squares(), certain(squares(k % 7), 0.8), PIXEL)
    return judged


def test_an_interval_holds_its_value_and_repeats_with_its_seed() -> None:
    judged = places(9)
    first = judged.summary(draws=400, confidence=0.9, seed=3)
    assert judged.summary(draws=400, confidence=0.9, seed=3) == first
    assert judged.summary(draws=41, confidence=0.9, seed=4) != judged.summary(
        draws=41, confidence=0.9, seed=5
    )
    for key in (*SHARES, "mcc", "boundary_median_m", "boundary_p95_m"):
        score = first["clean_ice"][key]
        assert score["lower"] <= score["value"] <= score["upper"], key
        assert score["lower"] < score["upper"], key
    mean = first["all"]["mean_ice_iou"]
    assert mean == first["clean_ice"]["iou"]  # the only ice there is


def test_an_interval_is_that_of_drawing_the_units_themselves() -> None:
    judged = places(8)
    draws, confidence, seed = 60, 0.8, 5
    times = np.random.default_rng(seed).multinomial(8, np.full(8, 1 / 8), size=draws)
    found: dict[str, list[float]] = {"iou": [], "boundary_median_m": [], "ece": []}
    for row in times:
        drawn = Judged(NAMES)
        for k, often in enumerate(row):
            for copy in range(often):
                drawn.add(f"{k} {copy}", squares(), certain(squares(k % 7), 0.8), PIXEL)
        of = summed(drawn, draws=1)["clean_ice"]
        for key, values in found.items():
            values.append(of[key]["value"])
    outside = tail(8, confidence)
    summary = judged.summary(draws=draws, confidence=confidence, seed=seed)["clean_ice"]
    for key, values in found.items():
        lower, upper = np.quantile(values, [outside, 1 - outside])
        assert summary[key]["lower"] == pytest.approx(lower), key
        assert summary[key]["upper"] == pytest.approx(upper), key


def test_units_that_are_all_alike_have_an_interval_without_width() -> None:
    judged = Judged(NAMES)
    for k in range(6):
        judged.add(f"unit {k}", squares(), certain(squares(4), 0.8), PIXEL)
    for score in summed(judged)["clean_ice"].values():
        if isinstance(score, dict):
            assert score["lower"] == pytest.approx(score["value"])
            assert score["upper"] == pytest.approx(score["value"])


def test_too_few_units_have_no_interval_and_the_log_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    needed = units_needed(0.95)
    with caplog.at_level(logging.WARNING):
        few = places(needed - 1).summary(draws=50, confidence=0.95, seed=1)
    assert few["clean_ice"]["iou"]["lower"] == few["clean_ice"]["iou"]["upper"] == "undefined"
    assert isinstance(few["clean_ice"]["iou"]["value"], float)
    assert few["all"]["ece"]["lower"] == "undefined"
    assert f"which need {needed}: " in caplog.text
    assert f"any class in {needed - 1}" in caplog.text


def test_a_class_in_few_units_has_no_interval_though_there_are_many_units(
    caplog: pytest.LogCaptureFixture,
) -> None:
    judged = places(9)
    rare = squares()
    rare[50:55, 5:15] = 2
    judged.add("with debris", rare, certain(rare, 0.8), PIXEL)
    with caplog.at_level(logging.WARNING):
        found = summed(judged)
    assert found["debris"]["iou"] == {"value": 1.0, "lower": "undefined", "upper": "undefined"}
    assert isinstance(found["clean_ice"]["iou"]["lower"], float)
    # Most draws have no debris: their mean would be that of clean ice alone.
    assert found["all"]["mean_ice_iou"]["lower"] == "undefined"
    assert isinstance(found["all"]["ece"]["lower"], float)
    assert found["debris"]["units"] == 1
    assert "debris in 1" in caplog.text
    assert "clean_ice" not in caplog.text
