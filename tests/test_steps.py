"""Steps after the network, on maps drawn by hand; each must leave alone what it cannot judge."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from glacier_core.dataset.slicing import IGNORED
from glacier_core.model.steps import (
    STEPS,
    StepGains,
    without_holes,
    without_loose_debris,
    without_small_glaciers,
)

DEBRIS = 2
NAMES = ["background", "clean_ice", "debris"]


def drawn(*rows: str) -> NDArray[np.uint8]:
    """A map of `.` background, `c` clean ice, `d` debris, `?` not seen."""
    codes = {".": 0, "c": 1, "d": DEBRIS, "?": IGNORED}
    return np.array([[codes[sign] for sign in row] for row in rows], dtype=np.uint8)


def test_a_small_glacier_goes_as_a_whole_and_a_large_one_stays() -> None:
    before = drawn("........", ".cd.....", "....ccc.", "....ccd.", "........")
    after = drawn("........", "........", "....ccc.", "....ccd.", "........")
    assert (without_small_glaciers(before, 3) == after).all()
    assert (without_small_glaciers(before, 2) == before).all()


def test_parts_that_meet_at_a_corner_are_one_glacier() -> None:
    before = drawn("......", ".cc...", "...cc.", "......")
    assert (without_small_glaciers(before, 4) == before).all()


def test_a_hole_takes_the_nearest_ice() -> None:
    before = drawn("........", ".cccddd.", ".c.cd.d.", ".cccddd.", "........")
    after = drawn("........", ".cccddd.", ".cccddd.", ".cccddd.", "........")
    assert (without_holes(before, 2) == after).all()
    assert (without_holes(before, 1) == before).all()


def test_debris_that_no_clean_ice_feeds_is_none() -> None:
    before = drawn(".......", ".dd.cd.", ".dd..d.", ".......")
    after = drawn(".......", "....cd.", ".....d.", ".......")
    assert (without_loose_debris(before, DEBRIS) == after).all()
    assert (without_loose_debris(before, None) == before).all(), "no class debris"


@pytest.mark.parametrize("step", STEPS.values())
@pytest.mark.parametrize(
    "before",
    [drawn("dd..", "....", "...."), drawn("....", ".d?.", "...."), drawn("cccc", "c..c", "c..c")],
)
def test_what_goes_on_where_nobody_sees_stays(step, before) -> None:  # type: ignore[no-untyped-def]
    assert (step(before, 100, DEBRIS) == before).all()


@given(
    hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9),
               elements=st.sampled_from([0, 1, DEBRIS, IGNORED])),
    st.integers(0, 12),
)  # fmt: skip
def test_no_step_invents_ground_or_does_more_the_second_time(
    before: NDArray[np.uint8], pixels: int
) -> None:
    for step in STEPS.values():
        after = step(before, pixels, DEBRIS)
        assert ((after == IGNORED) == (before == IGNORED)).all()
        assert (step(after, pixels, DEBRIS) == after).all()
        grown, lost = (before == 0) & (after > 0), (before > 0) & (after == 0)
        assert not grown.any() or not lost.any()


def test_gains_are_those_of_each_step_alone() -> None:
    said = drawn("........", ".dd..cc.", ".dd..cd.", ".....cd.", "........")
    truth = drawn("........", ".....cc.", ".....cd.", ".....cd.", "........")
    likely = np.eye(3, dtype=np.float32)[said].transpose(2, 0, 1)
    gains = StepGains(NAMES, min_area_km2=5 * 30 * 30 / 1e6)
    gains.add(truth, likely, 30.0)
    found = gains.result()
    assert found["without debris that no clean ice feeds"]["debris"] == {
        "iou": 1.0, "gain": pytest.approx(1 - 2 / 6)}  # fmt: skip
    assert found["without small glaciers"]["debris"]["iou"] == 1.0
    assert found["without small holes"]["debris"]["gain"] == 0
    assert found["without small holes"]["clean_ice"] == {"iou": 1.0, "gain": 0}


def test_what_does_not_count_in_the_labels_is_seen_by_the_steps() -> None:
    said = drawn("......", ".cd...", "......")
    truth = np.where(said == 1, np.uint8(IGNORED), said)
    gains = StepGains(NAMES, 0.0)
    gains.add(truth, np.eye(3, dtype=np.float32)[said].transpose(2, 0, 1), 30.0)
    fed = gains.result()["without debris that no clean ice feeds"]
    assert fed["debris"] == {"iou": 1.0, "gain": 0.0}
    assert fed["clean_ice"] == {"iou": "undefined", "gain": "undefined"}
