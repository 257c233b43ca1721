"""The keys of params.yaml, every number that an experiment varies, with types and bounds.

Every key is required and written exactly once, in that file; what to run on, and by which method,
stands in `settings`.
"""

from __future__ import annotations

import datetime
from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from glacier_core.settings import (
    SPLITS,
    Checked,
    Count,
    Fraction,
    NonNegative,
    Positive,
    check_names,
)


class SimulateParams(Checked):
    sites: Count
    size: Annotated[int, Field(ge=128)]
    dates: Annotated[list[str], Field(min_length=1)]

    @field_validator("dates")
    @classmethod
    def _iso(cls, value: list[str]) -> list[str]:
        for day in value:
            datetime.date.fromisoformat(day)
        return value


class MaskParams(Checked):
    year_tolerance: NonNegative


class SliceParams(Checked):
    size: Annotated[int, Field(ge=8)]
    overlap: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def _steps_forward(self) -> SliceParams:
        if self.overlap >= self.size:
            raise ValueError(f"overlap {self.overlap} must be smaller than size {self.size}")
        return self


class SplitParams(Checked):
    train: Fraction
    dev: Fraction
    test: Fraction

    @model_validator(mode="after")
    def _whole(self) -> SplitParams:
        if abs(self.train + self.dev + self.test - 1) > 1e-6:
            raise ValueError("train + dev + test must be 1")
        return self

    def shares(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in SPLITS}


class PostprocessParams(Checked):
    min_class_fraction: dict[str, Fraction]
    min_valid_fraction: Fraction
    split: SplitParams
    block_km: Positive
    buffer_m: NonNegative


def _kind_of_weights(value: object) -> str:
    return "word" if isinstance(value, str) else "weights"


# Which of the two is meant is decided before it is checked, so that one message says what is wrong.
ClassWeights = Annotated[
    Annotated[dict[str, NonNegative], Tag("weights")] | Annotated[Literal["balanced"], Tag("word")],
    Discriminator(_kind_of_weights),
]


class TrainParams(Checked):
    run_name: str
    epochs: Count
    batch_size: Count
    crops_per_slice: Count
    crop_size: Count | None
    learning_rate: Positive
    weight_decay: NonNegative
    warmup_epochs: NonNegative
    step_epochs: Count
    step_factor: Positive
    patience: Count
    depth: Annotated[int, Field(ge=1, le=8)]
    base_channels: Count
    coarsening: Count
    dropout: Annotated[float, Field(ge=0, lt=1)]
    class_weights: ClassWeights
    focus: dict[str, Fraction]
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    l1: NonNegative
    l2: NonNegative
    border_weight: NonNegative
    gain: NonNegative
    offset: NonNegative
    haze: NonNegative
    channel_dropout: Annotated[float, Field(ge=0, lt=1)]
    gaps: Fraction
    zoom: NonNegative
    clip: Positive | None
    clip_gradient: Positive
    ema_decay: Annotated[float, Field(ge=0, lt=1)]
    loader_threads: Annotated[int, Field(ge=0)]

    @field_validator("class_weights")
    @classmethod
    def _some_weight(cls, value: ClassWeights) -> ClassWeights:
        if value != "balanced" and not any(value.values()):
            raise ValueError("at least one class needs a weight above 0")
        return value

    @field_validator("focus")
    @classmethod
    def _shares(cls, value: dict[str, float]) -> dict[str, float]:
        if sum(value.values()) > 1 + 1e-6:
            raise ValueError("shares of an epoch's crops, which sum to at most 1")
        return value

    @field_validator("run_name")
    @classmethod
    def _folder_name(cls, value: str) -> str:
        check_names("run_name", [value])
        return value


class ForestParams(Checked):
    trees: Count
    depth: Count
    sample_pixels: Count


class EvaluateParams(Checked):
    examples: Annotated[int, Field(ge=0)]
    forest: ForestParams


class MapParams(Checked):
    window: Count
    overlap: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def _steps_forward(self) -> MapParams:
        if 2 * self.overlap > self.window:
            raise ValueError(f"overlap {self.overlap} must not exceed half of window {self.window}")
        return self


class OutlinesParams(Checked):
    min_area_km2: NonNegative
    min_part_pixels: Annotated[int, Field(ge=0)]
    gap_pixels: Annotated[int, Field(ge=0)]
    correlation_m: Positive


class PromotionParams(Checked):
    margin: NonNegative
    tolerance: NonNegative
    draws: Count
    confidence: Annotated[float, Field(gt=0.5, lt=1)]


class LandsatParams(Checked):
    max_unseen: Fraction
    max_snow: Fraction
    max_saturated: Fraction
    max_drift: Positive
    self_training_confidence: Annotated[float, Field(ge=0.5, le=1)]


class Params(Checked):
    seed: Annotated[int, Field(ge=0)]
    simulate: SimulateParams
    mask: MaskParams
    slice: SliceParams
    postprocess: PostprocessParams
    train: TrainParams
    evaluate: EvaluateParams
    map: MapParams
    outlines: OutlinesParams
    promotion: PromotionParams
    landsat: LandsatParams
