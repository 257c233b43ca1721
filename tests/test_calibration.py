"""The temperature: found where it is known, bounded where there is none, and used everywhere."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

import numpy as np
import pytest
from conftest import edit_yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from small_dataset import LEARNING, pixels_once, small_project

from glacier_core.config import Project
from glacier_core.dataset.loading import Dataset
from glacier_core.errors import InputError
from glacier_core.model import calibration
from glacier_core.model.calibration import LEAST, MOST, calibrate, fit_classes, fit_temperature
from glacier_core.model.predictor import Predictor, save_model
from glacier_core.model.scoring import predict_split
from glacier_core.model.training import train


def drawn(
    temperature: float, seed: int, pixels: int = 60_000, offsets: tuple[float, ...] = (0, 0, 0)
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Logits, and classes drawn with the probabilities that these have at a temperature, and with
    an offset for each class."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 3, (3, pixels)).astype(np.float32)
    # The largest of logits with Gumbel noise is drawn with the probabilities of their softmax.
    noisy = logits / temperature + np.array(offsets)[:, None] + random.gumbel(size=logits.shape)
    return logits, noisy.argmax(axis=0).astype(np.uint8)


@settings(max_examples=12, deadline=None)
@given(temperature=st.floats(0.4, 6), seed=st.integers(0, 99))
def test_the_temperature_that_the_truth_was_drawn_with_is_found(
    temperature: float, seed: int
) -> None:
    assert fit_temperature(*drawn(temperature, seed)) == pytest.approx(temperature, rel=0.06)


def test_logits_may_lack_a_number_a_pixel() -> None:
    logits, truth = drawn(2.0, 1)
    moved = logits + np.linspace(-5, 5, truth.size, dtype=np.float32)
    assert fit_temperature(moved, truth) == pytest.approx(fit_temperature(logits, truth), rel=1e-3)


def test_who_is_always_right_or_never_gets_the_bounds() -> None:
    logits = drawn(1.0, 1)[0]
    best, worst = logits.argmax(axis=0).astype(np.uint8), logits.argmin(axis=0).astype(np.uint8)
    assert fit_temperature(logits, best) == pytest.approx(LEAST, rel=0.01)
    assert fit_temperature(logits, worst) == pytest.approx(MOST, rel=0.01)


def test_no_pixels_and_one_pixel_have_a_temperature() -> None:
    logits, truth = drawn(1.0, 1, pixels=1)
    assert fit_temperature(logits[:, :0], truth[:0]) == 1
    assert LEAST <= fit_temperature(logits, truth) <= MOST
    # Logits that say nothing, and such as no float32 probability can tell from certainty.
    assert LEAST <= fit_temperature(np.zeros_like(logits), truth) <= MOST
    assert LEAST <= fit_temperature(logits * 1e4, truth) <= MOST


@settings(max_examples=12, deadline=None)
@given(
    temperature=st.floats(0.5, 5), ice=st.floats(-2, 2), debris=st.floats(-2, 2),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_how_much_likelier_each_class_was_is_found(
    temperature: float, ice: float, debris: float, seed: int
) -> None:
    logits, truth = drawn(temperature, seed, offsets=(0.5, 0.5 + ice, 0.5 + debris))
    found, offsets = fit_classes(logits, truth)
    assert found == pytest.approx(temperature, rel=0.08)
    assert offsets == pytest.approx([0, ice, debris], abs=0.12)


def test_a_class_that_does_not_occur_is_as_likely_as_before() -> None:
    logits, truth = drawn(2.0, 1)
    without = truth != 2
    _, offsets = fit_classes(logits[:, without], truth[without])
    assert offsets[2] == 0
    assert offsets[1] != 0
    assert fit_classes(logits[:, :0], truth[:0]) == (1, [0, 0, 0])
    _, alone = fit_classes(logits[:, truth == 0], truth[truth == 0])
    assert alone == [0, 0, 0]


# --- a trained model -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Trained long enough to be surer than right, or less sure: not calibrated by itself."""
    root = tmp_path_factory.mktemp("calibrated")
    project = small_project(tmp_path_factory, root, LEARNING | {"epochs": 16})
    train(project)
    return project


def models(project: Project) -> Path:
    return project.run_folder / "models"


def predictor_of(project: Project) -> Predictor:
    return Predictor.load(models(project), "cpu", "float32")


def plain(project: Project) -> Predictor:
    """The same model, its temperature forgotten."""
    found = predictor_of(project)
    found.description = dataclasses.replace(
        found.description, temperature=1.0, offsets=None
    )  # fmt: skip
    return found


def dev_pixels(project: Project, predictor: Predictor) -> tuple[
    NDArray[np.float64], NDArray[np.uint8]
]:  # fmt: skip
    """Probabilities (classes, pixels) and truth of whole dev scenes, put together apart from
    `glacier_core`."""
    likely, numbers = [], []
    for _, image, truth in pixels_once(project, "dev"):
        probability = predictor.softmax(image[None])[0]
        likely.append(probability[:, truth != 255].astype(np.float64))
        numbers.append(truth[truth != 255])
    return np.concatenate(likely, axis=1), np.concatenate(numbers)


def loss_of(likely: NDArray[np.float64], truth: NDArray[np.uint8]) -> float:
    return float(-np.log(likely[truth, np.arange(truth.size)]).mean())


def test_training_leaves_a_temperature_with_which_dev_is_more_likely(trained: Project) -> None:
    temperature = json.loads((models(trained) / "model.json").read_text())["temperature"]
    assert 1.1 * LEAST < temperature < 0.9
    before, truth = dev_pixels(trained, plain(trained))

    def loss_at(by: float) -> float:
        sharpened = before ** (1 / by)
        return loss_of(sharpened / sharpened.sum(axis=0), truth)

    # Here whole scenes are predicted, there slices: nearly the same pixels' probabilities.
    assert loss_at(temperature) < min(loss_at(1.3 * temperature), loss_at(temperature / 1.3))
    after, _ = dev_pixels(trained, predictor_of(trained))
    assert loss_of(after, truth) == pytest.approx(loss_at(temperature), rel=1e-3)
    assert loss_of(after, truth) < loss_of(before, truth)


def test_training_returns_the_description_that_it_wrote(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    project = small_project(tmp_path_factory, tmp_path)
    description = train(project)
    assert description == Predictor.load(models(project), "cpu").description
    assert description.temperature != 1


def test_the_temperature_divides_the_logits_and_changes_no_class(trained: Project) -> None:
    predictor = predictor_of(trained)
    temperature = predictor.description.temperature
    _, image, _ = next(pixels_once(trained, "test"))
    warm, cold = predictor.softmax(image[None]), plain(trained).softmax(image[None])
    expected = cold.astype(np.float64) ** (1 / temperature)
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(warm, expected, atol=1e-5)
    np.testing.assert_array_equal(warm.argmax(axis=1), cold.argmax(axis=1))
    assert np.abs(warm - cold).max() > 0.001


def test_the_same_model_and_split_give_the_same_temperature_and_the_log_tells_it(
    trained: Project, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        found = calibrate(plain(trained), Dataset.open(trained.dataset_folder), trained.params.seed)
    assert found.temperature == predictor_of(trained).description.temperature
    assert f"temperature {found.temperature:.3f}" in caplog.text
    assert isinstance(found.before, float)
    assert isinstance(found.after, float)
    assert f"{found.before:.4f} before, {found.after:.4f} after" in caplog.text


def test_a_sample_of_the_dev_split_gives_about_the_same_temperature(
    trained: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = Dataset.open(trained.dataset_folder)
    whole = calibrate(plain(trained), dataset, 1).temperature
    monkeypatch.setattr(calibration, "_PIXELS", 1500)
    sample = calibrate(plain(trained), dataset, 1).temperature
    assert sample == pytest.approx(whole, rel=0.3)
    assert sample != whole
    monkeypatch.setattr(calibration, "_SLICES", 2)
    assert LEAST <= calibrate(plain(trained), dataset, 1).temperature <= MOST


def test_a_dev_split_of_ignored_pixels_leaves_the_temperature_at_one(
    trained: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = Dataset.open(trained.dataset_folder)
    monkeypatch.setattr(
        Dataset, "label", lambda self, split, sample: np.full(  # noqa: ARG005
            (sample.height, sample.width), 255, np.uint8),
    )  # fmt: skip
    found = calibrate(plain(trained), dataset, 1)
    assert (found.temperature, found.before, found.after) == (1, "undefined", "undefined")


@pytest.fixture(scope="module")
def by_class(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Trained with debris much heavier than it is, which makes too much of it."""
    root = tmp_path_factory.mktemp("by_class")
    weights = {"background": 1.0, "clean_ice": 1.0, "debris": 8.0}
    project = small_project(
        tmp_path_factory, root, LEARNING | {"epochs": 6, "class_weights": weights}
    )
    edit_yaml(root / "conf/train.yaml", calibration="classes", loss="cross_entropy")
    project = Project(root)
    train(project)
    return project


def test_with_offsets_each_class_has_the_area_that_it_has_on_dev(by_class: Project) -> None:
    stored = json.loads((models(by_class) / "model.json").read_text())["offsets"]
    assert stored[0] == 0
    assert stored[2] < -0.5, "debris is less likely than its weight made it"
    areas = {}
    for name, predictor in (("before", plain(by_class)), ("after", predictor_of(by_class))):
        said, true = np.zeros(3), np.zeros(3)
        for _, truth, probability in predict_split(
            predictor, Dataset.open(by_class.dataset_folder), "dev"
        ):
            said += probability[:, truth != 255].sum(axis=1)
            true += np.bincount(truth[truth != 255], minlength=3)
        areas[name] = said / true
    assert areas["after"] == pytest.approx(np.ones(3), abs=0.02)
    assert areas["before"][2] > 1.1
    before, truth = dev_pixels(by_class, plain(by_class))
    after, _ = dev_pixels(by_class, predictor_of(by_class))
    assert (after.argmax(axis=0) != before.argmax(axis=0)).any(), "other than by a temperature"


@pytest.mark.parametrize("offsets", [[0.0, 1.0], [0.0, 1.0, float("nan")]])
def test_offsets_that_fit_no_classes_are_a_damaged_model(
    trained: Project, tmp_path: Path, offsets: list[float]
) -> None:
    found = predictor_of(trained)
    save_model(tmp_path, found.description, found.model)
    content = json.loads((tmp_path / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps(content | {"offsets": offsets}))
    with pytest.raises(InputError, match="not one number for each class"):
        Predictor.load(tmp_path, "cpu", "float32")


# --- models of before, and broken ones -------------------------------------------------------


def test_a_model_of_before_there_was_a_temperature_answers_as_it_did(
    trained: Project, tmp_path: Path
) -> None:
    plain_one = plain(trained)
    save_model(tmp_path, plain_one.description, plain_one.model)
    content = json.loads((tmp_path / "model.json").read_text())
    del content["temperature"]
    (tmp_path / "model.json").write_text(json.dumps(content))
    old = Predictor.load(tmp_path, "cpu", "float32")
    assert old.description.temperature == 1
    _, image, _ = next(pixels_once(trained, "test"))
    np.testing.assert_array_equal(old.softmax(image[None]), plain_one.softmax(image[None]))


@pytest.mark.parametrize("wrong", [0, -1, "Infinity", "hot"])
def test_a_temperature_that_is_none_is_a_damaged_model(
    trained: Project, tmp_path: Path, wrong: object
) -> None:
    found = plain(trained)
    save_model(tmp_path, found.description, found.model)
    content = json.loads((tmp_path / "model.json").read_text()) | {"temperature": wrong}
    (tmp_path / "model.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="damaged"):
        Predictor.load(tmp_path, "cpu", "float32")
