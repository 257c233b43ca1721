"""Reading conf/ and params.yaml, and where the results lie."""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from glacier_core.errors import InputError
from glacier_core.params import Params
from glacier_core.settings import (
    BACKGROUND,
    Checked,
    MapsConf,
    MaskingConf,
    PostprocessConf,
    SceneConf,
    TrainConf,
)


class _OnceOnlyLoader(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error instead of a silent replacement."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                continue  # refused below
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key '{key}' stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


# YAML 1.1 takes 1e-05 for text, YAML 1.2, which DVC writes, for a number.
_OnceOnlyLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def read_yaml(path: Path) -> Any:
    """Read a YAML file, refusing duplicate keys.

    Raises:
        InputError: the file is missing, is not YAML, or has a key twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(
            f"{path}: no such file. Run the command in the project's folder; "
            "`glacier configure` writes conf/masking_paths.yaml."
        ) from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text (byte {error.start})") from error
    try:
        return yaml.load(text, Loader=_OnceOnlyLoader)
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or str(error)
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise InputError(f"{path}{where}: {problem}") from None


Model = TypeVar("Model", bound=Checked)


def check(model: type[Model], value: Any, path: Path) -> Model:
    """Check the content of a YAML file against its model.

    Raises:
        InputError: naming the file, each key at fault, and what was expected there.
    """
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a mapping of keys to values, found {value!r}")
    try:
        return model.model_validate(value)
    except ValidationError as error:
        lines = []
        for problem in error.errors(include_url=False):
            key = ".".join(str(part) for part in problem["loc"]) or "(file)"
            match problem["type"]:
                case "extra_forbidden":
                    lines.append(f"{key}: unknown key")
                case "missing":
                    lines.append(f"{key}: missing")
                case "value_error":
                    lines.append(f"{key}: {problem['ctx']['error']}")
                case _:
                    message = problem["msg"][0].lower() + problem["msg"][1:]
                    lines.append(f"{key}: {message}, found {problem['input']!r}")
        raise InputError(f"{path}: " + "; ".join(lines)) from None


@dataclass(frozen=True)
class Project:
    """A folder with conf/ and params.yaml, its settings (read when first used), and its results.

    Paths inside the settings are relative to the folder, as DVC reads them.
    """

    root: Path

    @cached_property
    def params(self) -> Params:
        path = self.root / "params.yaml"
        return check(Params, read_yaml(path), path)

    @cached_property
    def masking(self) -> MaskingConf:
        return check(MaskingConf, read_yaml(self.masking_path), self.masking_path)

    @cached_property
    def postprocess(self) -> PostprocessConf:
        path = self.root / "conf/postprocess.yaml"
        conf = check(PostprocessConf, read_yaml(path), path)
        unknown = set(conf.classes) - set(self.masking.classes)
        if unknown:
            raise InputError(
                f"{path}: classes: {sorted(unknown)} are not burned by conf/masking_paths.yaml, "
                f"which has {self.masking.classes}"
            )
        # The order in which classes win is written once, in masking_paths.yaml.
        if conf.classes != [name for name in self.masking.classes if name in conf.classes]:
            raise InputError(
                f"{path}: classes: {conf.classes} must keep the order of "
                f"conf/masking_paths.yaml, {self.masking.classes} (the later wins)"
            )
        if conf.regions_path is not None and not self.masking.watches(conf.regions_path):
            raise InputError(
                f"{path}: regions_path: {conf.regions_path} lies outside outlines_dir "
                f"{self.masking.outlines_dir} of {self.masking_path}, the folder that DVC watches"
            )
        absent = set(conf.assign) - set(self.masking.scenes)
        if conf.split == "scenes" and absent:
            raise InputError(
                f"{path}: assign: {', '.join(sorted(absent))}: no such scene in {self.masking_path}"
            )
        unfiltered = set(self.params.postprocess.min_class_fraction) - set(self.masking.classes)
        if unfiltered:
            raise InputError(
                f"{self.root / 'params.yaml'}: postprocess.min_class_fraction: "
                f"unknown classes {sorted(unfiltered)}; there are {self.masking.classes}"
            )
        return conf

    @cached_property
    def train(self) -> TrainConf:
        path = self.root / "conf/train.yaml"
        conf = check(TrainConf, read_yaml(path), path)
        expected = {BACKGROUND, *self.postprocess.classes}
        weights = self.params.train.class_weights
        if weights != "balanced" and set(weights) != expected:
            raise InputError(
                f"{self.root / 'params.yaml'}: train.class_weights: expected a weight for each of "
                f"{sorted(expected)}, found {sorted(weights)}"
            )
        unknown = set(self.params.train.focus) - expected
        if unknown:
            raise InputError(
                f"{self.root / 'params.yaml'}: train.focus: unknown classes {sorted(unknown)}; "
                f"there are {sorted(expected)}"
            )
        return conf

    @cached_property
    def maps(self) -> MapsConf:
        path = self.root / "conf/maps.yaml"
        conf = check(MapsConf, read_yaml(path), path)
        if conf.inventory_path is not None and not self.masking.watches(conf.inventory_path):
            raise InputError(
                f"{path}: inventory_path: {conf.inventory_path} lies outside outlines_dir "
                f"{self.masking.outlines_dir} of {self.masking_path}, the folder that DVC watches"
            )
        return conf

    @property
    def self_training(self) -> bool:
        """Whether labels that a model made may train: a key of conf/landsat.yaml, whose others say
        how scenes come in and are checked there.
        """
        path = self.root / "conf/landsat.yaml"
        content = read_yaml(path)
        value = content.get("self_training") if isinstance(content, dict) else None
        if not isinstance(value, bool):
            raise InputError(f"{path}: self_training: expected true or false, found {value!r}")
        return value

    def check(self) -> Project:
        """Read every settings file now, so that a mistake in the last one costs no hours.

        Raises:
            InputError: see `check`.
        """
        _ = self.masking, self.params, self.postprocess, self.train, self.maps
        return self

    def scene(self, scene_id: str) -> SceneConf:
        try:
            return self.masking.scenes[scene_id]
        except KeyError:
            raise InputError(
                f"{self.masking_path}: no scene '{scene_id}'; "
                f"there are: {', '.join(self.masking.scenes)}"
            ) from None

    @property
    def masking_path(self) -> Path:
        return self.root / "conf/masking_paths.yaml"

    def mask_folder(self, scene_id: str) -> Path:
        return self.root / "data/masks" / scene_id

    def slice_folder(self, scene_id: str) -> Path:
        return self.root / "data/slices" / scene_id

    @property
    def store_root(self) -> Path:
        """Where MLflow's store lies, where nothing else names one."""
        return self.root

    @property
    def dataset_folder(self) -> Path:
        return self.root / "data/dataset"

    @property
    def run_folder(self) -> Path:
        return self.root / "data/runs" / self.params.train.run_name

    @property
    def evaluation_folder(self) -> Path:
        return self.root / "data/evaluation"
