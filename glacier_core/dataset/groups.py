"""Groups of scenes that test in turn, as somebody names them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from glacier_core.config import check, read_yaml
from glacier_core.errors import InputError
from glacier_core.settings import Checked


class _Groups(Checked):
    groups: dict[str, list[str]]


def read_groups(values: Sequence[str]) -> dict[str, list[str]]:
    """Groups of scenes from `NAME=SCENE,SCENE` texts, or from a YAML file that maps each name to its scenes.

    Raises:
        InputError: it is neither, or a group comes twice.
    """
    groups: dict[str, list[str]] = {}
    for value in values:
        name, found, scenes = value.partition("=")
        if found:
            more = {name: [scene for scene in scenes.split(",") if scene]}
        else:
            path = Path(value)
            if not path.exists():
                raise InputError(
                    f"--groups {value}: expected NAME=SCENE,SCENE, or a YAML file with lines such as "
                    "`west: [SCENE, SCENE]`; there is no such file"
                )
            more = check(_Groups, {"groups": read_yaml(path)}, path).groups
        if twice := set(more) & set(groups):
            raise InputError(f"--groups: {', '.join(sorted(twice))} is given twice")
        groups |= more
    return groups


def check_groups(
    groups: Mapping[str, list[str]], configured: Collection[str], usable: Collection[str]
) -> None:
    """Refuse groups that do not fit the project.

    Args:
        groups: scenes by name of the group.
        configured: all scenes of the project.
        usable: those whose labels no model made.

    Raises:
        InputError: there are too few, or a scene is unknown, labelled by a model, or in two.
    """
    listed = [scene for held in groups.values() for scene in held]
    for scene in listed:
        if scene not in configured:
            raise InputError(
                f"--groups: there is no scene {scene}; there are {', '.join(configured)}"
            )
        if scene not in usable:
            raise InputError(
                f"--groups: {scene} was labelled by a model, which may have learned from what tests"
            )
        if listed.count(scene) > 1:
            raise InputError(f"--groups: scene {scene} stands in two groups")
    if len(groups) < 2 or not all(groups.values()):
        raise InputError("--groups: expected two groups or more, each with a scene or more")
