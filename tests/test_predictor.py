"""A saved model is used with its own statistics, on any tile, and runs no code when loaded."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from glacier_core.errors import InputError
from glacier_core.model.predictor import (
    ModelDescription,
    Predictor,
    choose_device,
    choose_precision,
    save_model,
)
from glacier_core.model.unet import Architecture

CHANNELS = ["B2", "B5", "elevation"]
MEANS, DEVIATIONS = [90.0, 60.0, 5000.0], [30.0, 25.0, 400.0]


def description(**changes: Any) -> ModelDescription:
    usual: dict[str, Any] = {
        "channels": CHANNELS,
        "classes": ["background", "clean_ice", "debris"],
        "means": MEANS,
        "standard_deviations": DEVIATIONS,
        "impute": "mean",
        "architecture": Architecture(2, 4, 0.3, "all", False, "batch"),
        "dataset": "d" * 64,
        "training": "t" * 64,
        "sources": ["data/raw/a.tif"],
    }
    return ModelDescription(**(usual | changes))


def test_a_model_of_before_class_weights_were_kept_is_said_as_it_was() -> None:
    """Maps name their models by a hash of this: they are not to be made again."""
    content = description().to_json()
    assert not {"class_weights", "clip"} & set(content)
    assert ModelDescription.from_json(content) == description()
    weighed = description(class_weights={"background": 0.5, "clean_ice": 1.0, "debris": 1.5})
    assert weighed.to_json()["class_weights"]["debris"] == 1.5
    assert ModelDescription.from_json(weighed.to_json()) == weighed


def test_a_model_of_before_variants_is_said_as_it_was_and_still_loads(tmp_path: Path) -> None:
    content = description().to_json()
    assert not {"blocks", "attention", "heads"} & content["architecture"].keys()
    folder = save_fresh(tmp_path / "model")
    for key in ("coarsening", "blocks", "attention", "heads"):  # nor one that was cut down to size
        content["architecture"].pop(key, None)
    (folder / "model.json").write_text(json.dumps(content))
    assert load(folder).description == description()


@pytest.mark.parametrize(
    "variant", [{"blocks": "residual"}, {"attention": True}, {"heads": "binary"}], ids=str
)
def test_variants_of_the_network_are_said_and_load(tmp_path: Path, variant: dict[str, Any]) -> None:
    shape = Architecture(2, 4, 0.3, "all", False, "batch", **variant)
    folder = save_fresh(tmp_path / "model", architecture=shape)
    loaded = load(folder)
    assert loaded.description.architecture == shape
    pixels = raw(2, 20, 13)
    probabilities = loaded.probabilities(pixels)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    plain = load(save_fresh(tmp_path / "plain")).probabilities(pixels)
    assert np.abs(probabilities - plain).max() > 0.01


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_temperature_tempers_binary_heads_and_changes_no_class(
    tmp_path: Path, precision: str
) -> None:
    shape = Architecture(2, 4, 0.3, "all", False, "batch", heads="binary")
    pixels = raw(2, 20, 13)
    plain, cool, warm = (
        Predictor.load(
            save_fresh(tmp_path / str(t), architecture=shape, temperature=t), "cpu", precision
        ).probabilities(pixels)
        for t in (1.0, 0.5, 3.0)
    )
    for tempered, power in ((cool, 2.0), (warm, 1 / 3)):
        np.testing.assert_allclose(tempered.sum(axis=1), 1, atol=1e-5)
        raised = plain.astype(np.float64) ** power
        np.testing.assert_allclose(tempered, raised / raised.sum(axis=1, keepdims=True), atol=1e-5)
        assert (tempered.argmax(axis=1) == plain.argmax(axis=1)).all()
    assert cool.max(axis=1).mean() > plain.max(axis=1).mean() > warm.max(axis=1).mean()


def save_fresh(folder: Path, **changes: Any) -> Path:
    """A model with random weights and batch statistics, as `save_model` writes it."""
    torch.manual_seed(5)
    of = description(**changes)
    model = of.build()
    for name, value in model.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2)
        elif name.endswith("running_mean"):
            value.normal_()
    folder.mkdir(exist_ok=True)
    save_model(folder, of, model)
    return folder


def load(folder: Path) -> Predictor:
    return Predictor.load(folder, "cpu", "float32")


def raw(batch: int, height: int, width: int, seed: int = 0) -> NDArray[np.float32]:
    random = np.random.default_rng(seed)
    standard = random.normal(size=(batch, len(CHANNELS), height, width))
    scale = np.array(DEVIATIONS)[:, None, None]
    return (standard * scale + np.array(MEANS)[:, None, None]).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_fresh(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def predictor(folder: Path) -> Predictor:
    return load(folder)


# --- raw values in, probabilities out --------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(batch=st.integers(1, 3), height=st.integers(1, 40), width=st.integers(1, 40))
def test_probabilities_of_any_tile_sum_to_one(
    predictor: Predictor, batch: int, height: int, width: int
) -> None:
    result = predictor.probabilities(raw(batch, height, width))
    assert result.shape == (batch, 3, height, width)
    assert result.dtype == np.float32
    assert result.min() >= 0
    np.testing.assert_allclose(result.sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("size", [(64, 64), (70, 50), (3, 9)])
def test_a_tile_gets_the_same_alone_and_in_a_batch(
    predictor: Predictor, size: tuple[int, int]
) -> None:
    pixels = raw(3, *size)
    together = predictor.probabilities(pixels)
    for i in range(3):
        alone = predictor.probabilities(pixels[i : i + 1])
        np.testing.assert_allclose(alone[0], together[i], atol=1e-5)


def test_raw_values_are_normalised_by_the_statistics_of_the_model(
    tmp_path: Path, predictor: Predictor
) -> None:
    """The same ground in other units, with statistics in those units, looks the same."""
    other = save_fresh(
        tmp_path / "other",
        means=[m * 10 + 3 for m in MEANS],
        standard_deviations=[d * 10 for d in DEVIATIONS],
    )
    pixels = raw(1, 20, 24)
    np.testing.assert_allclose(
        load(other).probabilities(pixels * 10 + 3), predictor.probabilities(pixels), atol=1e-4
    )
    assert not np.allclose(load(other).probabilities(pixels), predictor.probabilities(pixels))


@pytest.mark.parametrize("unseen", [np.nan, np.inf])
def test_where_any_channel_was_unseen_nothing_is_said(predictor: Predictor, unseen: float) -> None:
    pixels = raw(2, 16, 20)
    hidden = np.zeros((2, 16, 20), dtype=bool)
    hidden[0, 3:5, :7] = True
    hidden[1, 10, 10] = True
    pixels[:, 1][hidden] = unseen
    result = predictor.probabilities(pixels)
    assert np.isnan(np.moveaxis(result, 1, -1)[hidden]).all()
    assert np.isfinite(np.moveaxis(result, 1, -1)[~hidden]).all()


def test_unseen_values_are_imputed_for_their_neighbours_as_the_model_says(tmp_path: Path) -> None:
    pixels, holes = raw(1, 16, 16), raw(1, 16, 16)
    pixels[0, 0, 8, 8] = 77.0
    holes[0, 0, 8, 8] = np.nan
    as_number = load(save_fresh(tmp_path / "number", impute=77.0))
    seen = np.ones((16, 16), dtype=bool)
    seen[8, 8] = False
    expected = as_number.probabilities(pixels)[0][:, seen]
    np.testing.assert_allclose(as_number.probabilities(holes)[0][:, seen], expected, atol=1e-6)
    as_mean = load(save_fresh(tmp_path / "mean", impute="mean"))
    assert not np.allclose(as_mean.probabilities(holes)[0][:, seen], expected, atol=1e-6)


def test_the_pixels_given_are_not_changed_and_may_be_read_only(predictor: Predictor) -> None:
    pixels = raw(1, 9, 9)
    pixels[0, 0, 0, 0] = np.nan
    before = pixels.copy()
    pixels.flags.writeable = False  # as those of a memory map
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predictor.probabilities(pixels)
    np.testing.assert_array_equal(pixels, before)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float64"])
def test_values_count_not_their_type(predictor: Predictor, dtype: str) -> None:
    pixels = np.rint(np.clip(raw(1, 12, 12), 0, 250)).astype(dtype)
    np.testing.assert_allclose(
        predictor.probabilities(pixels),  # type: ignore[arg-type]
        predictor.probabilities(pixels.astype(np.float32)),
        atol=1e-6,
    )


@pytest.mark.parametrize("shape", [(1, 2, 8, 8), (1, 4, 8, 8), (3, 8, 8), (1, 8, 8, 3)])
def test_other_channels_are_refused_with_the_names_of_the_right_ones(
    predictor: Predictor, shape: tuple[int, ...]
) -> None:
    with pytest.raises(InputError, match="B2, B5, elevation") as caught:
        predictor.probabilities(np.zeros(shape, dtype=np.float32))
    assert str(shape) in str(caught.value)


def test_a_loaded_model_drops_nothing_out(predictor: Predictor) -> None:
    assert not predictor.model.training
    pixels = raw(1, 24, 24)
    np.testing.assert_array_equal(predictor.probabilities(pixels), predictor.probabilities(pixels))


def test_bfloat16_says_nearly_the_same(folder: Path, predictor: Predictor) -> None:
    rough = Predictor.load(folder, "cpu", "bfloat16")
    pixels = raw(1, 24, 24)
    expected = predictor.probabilities(pixels)
    result = rough.probabilities(pixels)
    assert result.dtype == np.float32
    assert not np.array_equal(result, expected)
    np.testing.assert_allclose(result, expected, atol=0.05)


# --- files -----------------------------------------------------------------------------------


def test_a_model_is_one_file_of_tensors_and_one_of_json(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["model.json", "model.safetensors"]
    content = json.loads((folder / "model.json").read_text())
    assert content["channels"] == CHANNELS
    assert content["means"] == MEANS
    assert content["standard_deviations"] == DEVIATIONS
    assert load_file(folder / "model.safetensors")


def test_what_was_saved_is_what_is_loaded(folder: Path, tmp_path: Path) -> None:
    first = load(folder)
    assert first.description == description()
    save_model(tmp_path, first.description, first.model)
    for name in ("model.json", "model.safetensors"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


class _Trap:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
@pytest.mark.parametrize("writer", ["pickle", "torch"])
def test_a_pickle_in_place_of_a_file_is_refused_and_not_run(
    tmp_path: Path, name: str, writer: str
) -> None:
    folder, trace = save_fresh(tmp_path / "model"), tmp_path / "trace"
    if writer == "pickle":
        (folder / name).write_bytes(pickle.dumps(_Trap(trace)))
    else:
        torch.save({"weights": _Trap(trace)}, folder / name)
    with pytest.raises(InputError, match="damaged"):
        load(folder)
    assert not trace.exists()
    # The trap does work, for whoever unpickles it.
    if writer == "torch":
        torch.load((folder / name).rename(folder / "model.pt"), weights_only=False)
    else:
        pickle.loads((folder / name).read_bytes())
    assert trace.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
def test_a_missing_file_is_named_and_what_to_do(tmp_path: Path, name: str) -> None:
    folder = save_fresh(tmp_path / "model")
    (folder / name).unlink()
    with pytest.raises(InputError, match="glacier train") as caught:
        load(folder)
    assert str(folder) in str(caught.value)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [_truncate, _empty])
@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
def test_a_damaged_file_is_one_clear_error(tmp_path: Path, name: str, damage: Any) -> None:
    folder = save_fresh(tmp_path / "model")
    damage(folder / name)
    with pytest.raises(InputError, match="damaged") as caught:
        load(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"means": None},
        {"means": MEANS[:1]},
        {"standard_deviations": DEVIATIONS[:2]},
        {"impute": "median"},
        {"classes": ["background", "ice"]},
        {"channels": CHANNELS[:2]},
        {"architecture": {"depth": 2}},
        {"surprise": 1},
    ],
    ids=lambda change: next(iter(change)) + f"_{len(str(change))}",
)
def test_a_description_that_does_not_fit_is_one_clear_error(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    folder = save_fresh(tmp_path / "model")
    content = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(content | change))
    with pytest.raises(InputError, match="damaged"):
        load(folder)


def test_weights_of_another_network_are_one_clear_error(tmp_path: Path) -> None:
    folder = save_fresh(tmp_path / "model")
    other = save_fresh(
        tmp_path / "other",
        architecture=dataclasses.replace(description().architecture, base_channels=8),
    )
    weights = load_file(other / "model.safetensors")
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(InputError, match="damaged"):
        load(folder)


# --- where and how exactly -------------------------------------------------------------------


def test_precision_is_as_told() -> None:
    cpu = torch.device("cpu")
    assert choose_precision("float32", cpu) is None
    assert choose_precision("bfloat16", cpu) is torch.bfloat16
    assert choose_precision("auto", cpu) in (None, torch.bfloat16)


def test_cuda_without_cuda_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto").type == "cpu"
    with pytest.raises(InputError, match="cuda is not available"):
        choose_device("cuda")
