"""The keys of conf/, with their types and bounds; those of params.yaml are in `params`.

`conf/` says what to run on and by which method, `params.yaml` how much. Every key is required
and written exactly once, in those files: there is no second set of defaults in the code.
"""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

BACKGROUND = "background"
SPLITS = ("train", "dev", "test")
Split = Literal["train", "dev", "test"]
PROTOCOLS = ("blocks", "regions", "scenes", "groups", "random")
"""What tests in turn in a cross-validation."""

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


# Names become parts of file names, of commands that DVC gives to a shell, of keys that it looks
# up, and of metrics.
NAME = r"[A-Za-z0-9][A-Za-z0-9_-]*"
# Words of our own: labels, keys of metrics, columns of glaciers.
_RESERVED = {BACKGROUND, *"all protocol ignore area gap open change gain loss err".split()}
_PLACE = r"[A-Za-z0-9_][A-Za-z0-9_./-]*"


def check_names(kind: str, names: Iterable[str], pattern: str = NAME) -> None:
    for name in names:
        if not re.fullmatch(pattern, name):
            raise ValueError(
                f"{kind} '{name}': use letters, digits, '_' and '-' alone"
                + (" (rename the file)" if kind == "scene" else "")
            )


class Checked(BaseModel):
    """A mapping in which unknown keys, missing keys, wrong types, NaN and infinity are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


# --- conf/masking_paths.yaml: which scenes, which outlines -----------------------------------


def _iso_date(value: object) -> object:
    # YAML reads an unquoted 2000-10-25 as a date.
    if isinstance(value, datetime.date):
        return value.isoformat()
    if isinstance(value, str):
        datetime.date.fromisoformat(value)
    return value


class SceneConf(Checked):
    img_path: str
    mask_paths: dict[str, str]
    border_path: str | None
    year_field: str | None
    date: str | None

    _iso = field_validator("date", mode="before")(_iso_date)

    @property
    def day(self) -> datetime.date | None:
        """Acquisition date, None where it is not known."""
        return datetime.date.fromisoformat(self.date) if self.date else None


class MaskingConf(Checked):
    simulated: dict[str, str]
    outlines_dir: str
    classes: Annotated[list[str], Field(min_length=1)]
    bands: list[str] | None
    scenes: Annotated[dict[str, SceneConf], Field(min_length=1)]

    @model_validator(mode="after")
    def _consistent(self) -> MaskingConf:
        if len(set(self.classes)) != len(self.classes) or _RESERVED & set(self.classes):
            raise ValueError(
                f"classes must differ, and {', '.join(sorted(_RESERVED))} are words of our own"
            )
        check_names("class", self.classes)
        check_names("scene", self.scenes)
        check_names("simulated", self.simulated)
        check_names("simulated", self.simulated.values(), _PLACE)
        for name, scene in self.scenes.items():
            if sorted(scene.mask_paths) != sorted(self.classes):
                raise ValueError(
                    f"scene {name}: mask_paths has {sorted(scene.mask_paths)}, "
                    f"but classes are {sorted(self.classes)}: one vector file a class"
                )
            for vector in [*scene.mask_paths.values(), scene.border_path]:
                # DVC watches this one folder, sidecar files included; a vector file outside
                # it could change without its masks being burned again.
                if vector is not None and not self.watches(vector):
                    raise ValueError(
                        f"scene {name}: {vector} lies outside outlines_dir {self.outlines_dir}"
                    )
        return self

    def watches(self, vector: str) -> bool:
        """Whether a file lies in `outlines_dir`, where DVC sees it change."""
        folder = Path(os.path.normpath(self.outlines_dir))
        return folder in Path(os.path.normpath(vector)).parents


# --- conf/postprocess.yaml and conf/train.yaml: by which method ------------------------------


class FilterConf(Checked):
    combine: Literal["any", "all"]
    splits: list[Split]


class PostprocessConf(Checked):
    channels: Annotated[list[str], Field(min_length=1)]
    classes: Annotated[list[str], Field(min_length=1)]
    statistics_path: str
    impute: Literal["mean"] | float
    filter: FilterConf
    split: Literal["blocks", "regions", "scenes", "years", "random"]
    regions_path: str | None
    assign: dict[str, Split]

    @field_validator("statistics_path")
    @classmethod
    def _inside(cls, value: str) -> str:
        check_names("statistics_path", [value], _PLACE)
        if ".." in Path(value).parts:
            raise ValueError(f"{value} leaves the project's folder")
        return value

    @field_validator("assign", mode="before")
    @classmethod
    def _years_as_text(cls, value: object) -> object:
        # YAML reads an unquoted year as a number.
        if isinstance(value, dict):
            return {str(k) if type(k) is int else k: split for k, split in value.items()}
        return value

    @model_validator(mode="after")
    def _consistent(self) -> PostprocessConf:
        for key in ("channels", "classes"):
            names = getattr(self, key)
            if len(set(names)) != len(names):
                raise ValueError(f"{key}: a name stands twice in {names}")
        if self.split == "regions" and self.regions_path is None:
            raise ValueError("split 'regions' needs regions_path, a vector file with a field split")
        if self.split in ("scenes", "years") and not self.assign:
            raise ValueError(f"split '{self.split}' needs assign: a mapping from each to its split")
        return self


class ModelConf(Checked):
    dropout_at: Literal["deep", "all"]
    spatial_dropout: bool
    normalisation: Literal["batch", "none"]
    blocks: Literal["plain", "residual"]
    attention: bool
    heads: Literal["classes", "binary"]


class AugmentConf(Checked):
    flips: bool
    quarter_turns: bool


class TrackingConf(Checked):
    experiment: str
    model_name: str


LOSS_TERMS = ("dice", "tversky", "cross_entropy", "focal", "lovasz", "boundary")


def loss_terms(text: str) -> dict[str, float]:
    """Terms of a loss and their factors, from for example `dice+0.5*boundary`; else ValueError."""
    terms: dict[str, float] = {}
    for part in text.replace(" ", "").split("+"):
        found = re.fullmatch(r"(?:([\d.]+)\*)?(\w+)", part)
        factor, name = found.groups() if found else (None, part)
        if name not in LOSS_TERMS or name in terms or float(factor or 1) <= 0:
            raise ValueError(
                f"{part!r}: expected each once of {', '.join(LOSS_TERMS)}, as in a+0.5*b"
            )
        terms[name] = float(factor or 1)
    return terms


class TrainConf(Checked):
    model: ModelConf
    loss: str
    loss_weights: Literal["fixed", "learned"]
    optimizer: Literal["adam", "adamw"]
    schedule: Literal["none", "cosine", "step", "plateau"]
    augment: AugmentConf
    device: Literal["auto", "cpu", "cuda"]
    precision: Literal["auto", "float32", "bfloat16"]
    compile: bool
    calibration: Literal["temperature", "classes"]
    start_from: str | None
    tracking: TrackingConf

    @field_validator("loss")
    @classmethod
    def _sum_of_terms(cls, value: str) -> str:
        loss_terms(value)
        return value

    @model_validator(mode="after")
    def _something_to_weigh(self) -> TrainConf:
        if self.loss_weights == "learned" and len(loss_terms(self.loss)) == 1:
            raise ValueError(
                f"loss_weights: learned needs a loss of several terms, not {self.loss}"
            )
        return self


# --- conf/maps.yaml: what to map, and what to compare ----------------------------------------


class MappedScene(Checked):
    img_path: str
    bands: list[str] | None
    date: str | None

    _iso = field_validator("date", mode="before")(_iso_date)


class ComparedMaps(Checked):
    before: str
    after: str


class MapsConf(Checked):
    maps: dict[str, MappedScene]
    changes: dict[str, ComparedMaps]
    symmetries: bool
    inventory_path: str | None
    inventory_id: str | None

    @model_validator(mode="after")
    def _consistent(self) -> MapsConf:
        check_names("scene", self.maps)
        check_names("change", self.changes)
        for name, pair in self.changes.items():
            absent = {pair.before, pair.after} - set(self.maps)
            if absent:
                raise ValueError(f"change {name}: {', '.join(sorted(absent))} is not among maps")
        if self.inventory_id is not None and self.inventory_path is None:
            raise ValueError("inventory_id is a column of inventory_path, which is null")
        return self
