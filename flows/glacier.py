"""The flow `glacier`: every stage of the project, to a registered model and its maps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_link_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture, wait
from prefect.task_runners import ThreadPoolTaskRunner

from flows.stages import BadInput, end_running_stages, run_stage, worth_repeating
from glacier_core.config import Project
from glacier_core.errors import InputError
from glacier_core.model.alone import one_at_a_time
from glacier_core.model.registry import Registration, register

PATIENCE = 6 * 3600.0
"""Seconds that a run waits for another in the same folder: as long as a training may take."""


@task(
    cache_policy=NO_CACHE,
    retries=2,
    retry_delay_seconds=10,
    retry_condition_fn=worth_repeating,
)
def register_model(root: Path) -> Registration:
    """Make sure that the model is registered, also when DVC restored it from its cache."""
    return register(Project(root))


@task(cache_policy=NO_CACHE)
def report(root: Path, registration: Registration) -> None:
    """Put the scores beside the baselines, and links to the run, on the flow's page."""
    project = Project(root)
    metrics = json.loads((project.evaluation_folder / "metrics.json").read_text())
    rows = []
    for method in ("unet", "forest", "threshold"):
        for name, scores in metrics.get(method, {}).items():
            if name not in ("all", "background"):
                shown = {
                    key: _rounded(scores[key]) for key in ("iou", "precision", "recall", "dice")
                }
                rows.append({"method": method, "class": name, **shown})
    protocol = metrics["protocol"]
    create_table_artifact(
        key="glacier-metrics",
        table=rows,
        description=(
            f"Test split, every valid pixel once. Split by {protocol['split']}"
            + (" (it leaks)" if protocol["leaky"] else "")
            + f". Model [{registration.model} version {registration.version}]"
            f"({registration.run_url}) {registration.alias}; threshold: {protocol['threshold_rule']}"
        ),
    )
    create_link_artifact(key="mlflow-run", link=registration.run_url, link_text="the run in MLflow")


def _start(stage: str, root: Path, after: Sequence[PrefectFuture[str]] = ()) -> PrefectFuture[str]:
    return run_stage.submit(stage, root, wait_for=after, return_state=False)


def _rounded(score: float | str) -> float | str:
    return round(score, 4) if isinstance(score, float) else score


@flow(name="glacier", task_runner=ThreadPoolTaskRunner(max_workers=2))  # type: ignore[arg-type]
def glacier(root: str = ".", wait: float = PATIENCE) -> str:
    """Bring the whole project up to date: register its model, and map with it.

    A task a scene and step. What DVC finds unchanged is skipped; the artefacts are those of
    `dvc repro`. One run a folder at a time, also where the other is a retraining.

    Args:
        root: the project's folder.
        wait: seconds to wait while another run has the folder; then this one fails, and says whose.

    Returns:
        URI of the registered version.
    """
    folder = Path(root).resolve()
    with ExitStack() as stack:
        try:
            project = Project(folder).check()
            stack.enter_context(one_at_a_time(project, "training", wait, get_run_logger()))
            project = Project(folder).check()  # another may have learned in the meantime
        except InputError as error:
            raise BadInput(str(error)) from error
        _bring_up_to_date(project)
        registration = register_model(folder)
        report(folder, registration)
    uri = f"models:/{registration.model}/{registration.version}"
    get_run_logger().info("%s %s %s", uri, registration.alias, registration.run_url)
    return uri


def _bring_up_to_date(project: Project) -> None:
    """Run every stage, those of different scenes at the same time."""
    folder, conf, maps = project.root, project.masking, project.maps
    try:
        simulated = [_start(f"simulate@{name}", folder) for name in conf.simulated]
        masks = {scene: _start(f"mask@{scene}", folder, simulated) for scene in conf.scenes}
        slices = [_start(f"slice@{scene}", folder, [masks[scene]]) for scene in conf.scenes]
        # Every scene is tried before one bad scene ends the run: all that is wrong is said at once.
        wait([*masks.values(), *slices])
        for future in [*simulated, *masks.values(), *slices]:
            future.result()
        for stage in ("postprocess", "train", "evaluate", "register"):
            run_stage(stage, folder)
        mapped = {scene: _start(f"map@{scene}", folder) for scene in maps.maps}
        drawn = {scene: _start(f"outlines@{scene}", folder, [mapped[scene]]) for scene in maps.maps}
        pages = [_start(f"report@{scene}", folder, [drawn[scene]]) for scene in maps.maps]
        for name, pair in maps.changes.items():
            both = [mapped[pair.before], drawn[pair.after]]
            compared = _start(f"change@{name}", folder, both)
            pages += [compared, _start(f"change-report@{name}", folder, [compared])]
        wait([*mapped.values(), *drawn.values(), *pages])
        for future in [*mapped.values(), *drawn.values(), *pages]:
            future.result()
    except BaseException:
        end_running_stages()
        raise


if __name__ == "__main__":
    glacier()
