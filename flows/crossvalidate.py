"""The flow `crossvalidate`: a configuration measured on all ground, a task a fold and seed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.futures import wait
from prefect.task_runners import ThreadPoolTaskRunner

from flows.stages import BadInput, worth_repeating
from glacier_core.config import Project
from glacier_core.errors import InputError
from glacier_core.model.crossreport import REPORT, summary
from glacier_core.model.crossvalidation import SEEDS, CrossValidation


@task(
    task_run_name="{fold}, seed {seed}",
    cache_policy=NO_CACHE,  # what is made already is known by its fingerprint
    retries=2,
    retry_delay_seconds=10,
    retry_condition_fn=worth_repeating,
)
def measure(root: Path, asked: dict[str, Any], fold: str, seed: int) -> str:
    """Make a fold with a seed; `skipped` where it was there, else `ran`."""
    made = CrossValidation(Project(root), **asked)
    return "ran" if made.run(made.plan.fold(fold), seed) else "skipped"


@task(cache_policy=NO_CACHE)
def score(root: Path, asked: dict[str, Any], seeds: list[int]) -> Path:
    """Score all folds together, and put the report on the flow's page; where it lies."""
    made = CrossValidation(Project(root), **asked)
    pooled = made.pool(seeds)
    get_run_logger().info("\n%s", summary(pooled))
    path = made.folder / REPORT
    create_markdown_artifact(key="glacier-crossvalidation", markdown=path.read_text())
    return path


# One after the other: each training takes all cores, or the GPU.
@flow(name="crossvalidate", task_runner=ThreadPoolTaskRunner(max_workers=1))  # type: ignore[arg-type]
def crossvalidate(
    by: str,
    folds: int | None = None,
    groups: Mapping[str, list[str]] | None = None,
    testing: list[str] | None = None,
    seeds: list[int] | None = None,
    name: str | None = None,
    symmetries: bool | None = None,
    rotate: bool = False,
    root: str = ".",
) -> str:
    """Measure the configuration as `glacier crossvalidate` does, on the slices that are there.

    A fold that fails does not keep the others from being made; run again, it makes only what is
    missing.

    Args:
        by: blocks, regions, scenes, groups or random.
        folds: number of folds.
        groups: scenes by name of the group.
        testing: names of the folds that are made, such as groups; the others only train.
        seeds: of the trainings of each fold; 1, 2 and 3 if not given.
        name: of the folder and the MLflow run.
        symmetries: average over turns and mirror images; as conf/maps.yaml says if not given.
        rotate: with each seed, another part of the training ground chooses.
        root: the project's folder.

    Returns:
        Path of the report.
    """
    folder = Path(root).resolve()
    asked: dict[str, Any] = {
        "by": by, "folds": folds, "groups": groups, "testing": testing or (), "name": name,
        "symmetries": symmetries, "rotate": rotate,
    }  # fmt: skip
    numbers = seeds or list(SEEDS)
    try:
        names = [fold.name for fold in CrossValidation(Project(folder), **asked).plan.folds]
    except InputError as error:
        raise BadInput(str(error)) from error
    made = [
        measure.submit(folder, asked, fold, seed, return_state=False)
        for fold in names
        for seed in numbers
    ]
    wait(made)
    for future in made:
        future.result()
    return str(score(folder, asked, numbers))


if __name__ == "__main__":
    import sys

    crossvalidate(sys.argv[1])
