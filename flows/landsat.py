"""The flows `landsat` (watch for new scenes) and `glacier` as `retrain` (learn from them)."""

from __future__ import annotations

from contextlib import ExitStack
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.events import emit_event
from prefect.futures import wait as wait_until_done
from prefect.states import Completed

from flows.glacier import PATIENCE, glacier
from flows.maps import glacier_map
from flows.side_by_side import SceneRunner, dask_wanted
from flows.stages import BadInput, worth_repeating
from glacier_core.config import Project
from glacier_core.dataset.blocks import RECORD
from glacier_core.errors import InputError
from glacier_core.landsat.conf import landsat_settings
from glacier_core.landsat.learning import (
    REVIEW_LIST,
    candidates,
    is_undecided,
    is_up_to_date,
    labels_for,
    learn_from,
    scene_path,
    write_review_list,
)
from glacier_core.landsat.quality import ACCEPTED, TABLE, Quality
from glacier_core.landsat.selftraining import (
    Outcome,
    label_by_model,
    labelled_by_model,
    why_listed,
)
from glacier_core.landsat.watching import NewItem, find_new, once_each, take_in
from glacier_core.maps.mapping import map_scenes
from glacier_core.maps.scenemap import ABOUT
from glacier_core.model.alone import one_at_a_time
from glacier_core.model.promotion import promote
from glacier_core.model.testground import keep_test_ground
from glacier_core.model.verdict import Decision
from glacier_core.settings import SceneConf

SCENE_ADDED = "glacier.scene.added"
"""Event on which glacier/retrain starts (prefect.yaml): once a run that accepted scenes."""
MAPPED = Path("data/mapped")
NOT_USED = " (not learned from: self_training is off)"


@task(
    task_run_name="search {area}",
    cache_policy=NO_CACHE,
    # After the service's own patience (apis.patience). Who is away for longer waits for the next run,
    # which finds what this one did not.
    retries=2,
    retry_delay_seconds=[5, 30],
    retry_condition_fn=worth_repeating,
)
def search_area(area: str, root: Path, days: int) -> list[NewItem]:
    """New scenes of one area."""
    # Days of acquisition are those of UTC.
    today = datetime.now(UTC).date()
    found = find_new(Project(root), area, today=today, days=days)
    get_run_logger().info("%s: %d new scenes", area, len(found))
    return found


@task(
    task_run_name="take in {new.product}",
    cache_policy=NO_CACHE,
    retries=2,
    retry_delay_seconds=[5, 30],
    retry_condition_fn=worth_repeating,
)
def take_in_scene(new: NewItem, root: Path) -> Quality:
    """Fetch, ingest and check one scene."""
    quality = take_in(Project(root), new)
    get_run_logger().info("%s: %s %s", quality.scene, quality.verdict, "; ".join(quality.reasons))
    return quality


@flow(name="landsat", task_runner=SceneRunner(max_workers=1))  # type: ignore[arg-type]
def landsat(root: str = ".", areas: list[str] | None = None, days: int = 60) -> State[list[str]]:
    """Look for new scenes in the configured areas; fetch, ingest and check them.

    One scene or area that fails does not keep the others out; the run then ends as failed, after
    all were tried, and the next one tries again. Nothing new: it ends at once. One scene at a time,
    or as many as Dask has workers (`GLACIER_DASK`).

    Args:
        root: the project's folder.
        areas: names in conf/landsat.yaml; all of them, if not given.
        days: how far back to look. Many more than between two runs, so that nothing is lost.

    Returns:
        Names of the scenes taken in, with their verdicts; the state's message says how many.
    """
    folder, logger = Path(root).resolve(), get_run_logger()
    try:
        dask_wanted()
        names = areas or list(landsat_settings(Project(folder).check()).areas)
    except InputError as error:
        raise BadInput(str(error)) from error
    searches: list[Any] = [search_area(name, folder, days, return_state=True) for name in names]
    found = once_each(one for state in searches if state.is_completed() for one in state.result())
    taken: list[Any] = [take_in_scene.submit(new, folder, return_state=False) for new in found]
    wait_until_done(taken)
    done: list[Quality] = [one.result() for one in taken if one.state.is_completed()]
    if done:
        create_table_artifact(
            key="landsat-scenes",
            table=[_shown(quality) for quality in done],
            description=f"{len(done)} new scenes; all of them: {TABLE}",
        )
    _announce(folder, [one.scene for one in done if one.verdict == ACCEPTED])
    for tried in [*searches, *taken]:
        tried.result()  # what failed fails the run, now that all were tried
    said = f"{len(done)} new scenes" if done else "nothing new"
    if not names:
        said = "nothing to watch: conf/landsat.yaml names no areas"
    logger.info(said)
    return Completed(message=said, data=[f"{one.scene} {one.verdict}" for one in done])


def _announce(root: Path, accepted: list[str]) -> None:
    """Say that there is something to learn from or to map, if there is.

    After the last scene and for all at once: an event a scene would start a training for the first,
    and another for each that follows.
    """
    if accepted:
        resource = {"prefect.resource.id": "glacier.scenes", "prefect.resource.name": str(root)}
        emit_event(SCENE_ADDED, resource=resource, payload={"scenes": accepted})


def _shown(quality: Quality) -> dict[str, Any]:
    row = quality.row()
    return {key: row[key] for key in ("scene", "date", "verdict", "reasons", "covered", "no_value",
                                      "snow", "saturated", "worst_drift")}  # fmt: skip


@task(task_run_name="labels of {scene}", cache_policy=NO_CACHE)
def find_labels(scene: str, row: dict[str, str], root: Path) -> SceneConf | None:
    """Whether an inventory says what is ice on a new scene."""
    project = Project(root)
    day = date.fromisoformat(row["date"]) if row["date"] else None
    known = labels_for(project, scene_path(project, row), day)
    get_run_logger().info("%s: %s", scene, "labelled" if known else "no labels of its time")
    return known


@task(
    cache_policy=NO_CACHE,
    retries=2,
    retry_delay_seconds=10,
    retry_condition_fn=worth_repeating,
)
def decide(root: Path, wait: float) -> Decision:
    """Compare the challenger with the champion, and promote it if it is better."""
    decision = promote(Project(root), challenger=None, wait=wait, force=None)
    where = f"Champion is version {decision.champion}. [The run]({decision.run_url})"
    create_markdown_artifact(
        key="glacier-promotion", markdown=f"{decision.markdown()}\n\n{where}\n"
    )
    return decision


@task(task_run_name="label {row[scene]} by the model", cache_policy=NO_CACHE)
def label_scene(row: dict[str, str], root: Path, out: Path) -> Outcome:
    """Make labels of what the champion says of a scene, if it is sure of some ice."""
    project, name = Project(root), row["scene"]
    # The map of before would do if mapping failed just now: it is asked whether it is of this
    # scene and this champion.
    folder = map_scenes(
        project,
        [str(scene_path(project, row))],
        models=[],
        out=project.root / out / "maps",
        symmetries=None,
        bands=None,
        date=None,
        again=False,
    )[0]
    outcome = label_by_model(project, row, folder)
    said = outcome.why if outcome.conf else f"not labelled by the model: {outcome.why}"
    get_run_logger().info("%s: %s", name, said)
    return outcome


@flow(name="glacier")
def retrain(root: str = ".", wait: float = PATIENCE) -> State[str]:
    """Train when there is something new to learn from, and promote what is better.

    New are scenes that were accepted and lie within the year tolerance of an inventory; reviewed
    corrections; changed settings; a challenger that nobody compared, as a stopped run leaves it.
    Accepted scenes without labels are mapped with the champion, and put on the list of those that
    wait for a review (data/landsat/review_list.csv). The model learns from its own maps only where
    conf/landsat.yaml has `self_training: true`, and its version says so.

    Before anything is trained, the present blocks of ground are recorded (conf/blocks.geojson), so
    that challenger and champion are judged on the same ones.

    A scene that cannot be read or mapped does not keep the others out; the run ends as failed
    after all was tried.

    Args:
        root: the project's folder.
        wait: seconds to wait while another run has the folder, or another promotion runs.

    Returns:
        What came of it, in a sentence that is the state's message too.
    """
    folder = Path(root).resolve()
    project = Project(folder)
    with ExitStack() as stack:
        try:
            project.check()
            stack.enter_context(one_at_a_time(project, "retraining", wait, get_run_logger()))
            project = Project(folder).check()  # another may have learned in the meantime
            by_itself = landsat_settings(project).self_training
            new = candidates(project)
        except InputError as error:
            raise BadInput(str(error)) from error
        looked: dict[str, Any] = {
            row["scene"]: find_labels(row["scene"], row, folder, return_state=True) for row in new
        }
        labels = {name: state.result() for name, state in looked.items() if state.is_completed()}
        learnt: dict[str, SceneConf] = {name: conf for name, conf in labels.items() if conf}
        waiting = [row for row in new if row["scene"] in labels and row["scene"] not in learnt]
        mapped = _map_waiting(project, waiting)
        labelled: dict[str, Any] = {}
        if by_itself:
            labelled = {
                row["scene"]: label_scene(row, folder, MAPPED, return_state=True)
                for row in waiting
                if (folder / MAPPED / "maps" / row["scene"] / ABOUT).exists()
            }
            for row in waiting:
                if row["scene"] not in labelled:
                    get_run_logger().warning(
                        "%s: not labelled by the model: there is no map of it", row["scene"]
                    )
        outcomes = {name: s.result() for name, s in labelled.items() if s.is_completed()}
        _list_for_review(project, waiting, outcomes)
        learnt |= {name: one.conf for name, one in outcomes.items() if one.conf is not None}
        said = _learn(project, learnt, wait)
        for state in [*looked.values(), *mapped, *labelled.values()]:
            state.result()  # what failed fails the run, now that all was tried
    get_run_logger().info(said)
    return Completed(message=said, data=said)


def _learn(project: Project, learnt: dict[str, SceneConf], wait: float) -> str:
    """Train if something is new, compare if something was trained; what came of it."""
    if learnt or not is_up_to_date(project):
        fresh = keep_test_ground(project)
        if fresh:
            get_run_logger().info("%s: recorded %s; commit it", RECORD, ", ".join(fresh))
        if learnt:
            learn_from(project, learnt)
            get_run_logger().info("new to learn from: %s", ", ".join(learnt))
        uri = f"{glacier(str(project.root), wait)}: "
    elif is_undecided(project):
        uri = "nothing new to learn from, but a challenger to compare: "
    else:
        return "nothing new to learn from"
    decision = decide(project.root, wait)
    return f"{uri}{decision.outcome}; champion is version {decision.champion}"


def _map_waiting(project: Project, waiting: list[dict[str, str]]) -> list[Any]:
    """Map the scenes that nobody has labelled; the state of the mapping, if there was any."""
    if not waiting:
        return []
    paths = [str(scene_path(project, row)) for row in waiting]
    state: Any = glacier_map(paths, out=str(MAPPED), root=str(project.root), return_state=True)
    return [state]


def _list_for_review(
    project: Project, waiting: list[dict[str, str]], outcomes: dict[str, Outcome]
) -> None:
    """List the scenes about which people have not said what is ice, with what there is of them."""
    listed = [
        (name, conf.date or "", why_listed(by) + ("" if project.self_training else NOT_USED))
        for name, conf, by in labelled_by_model(project)
    ]
    for row in waiting:
        why, outcome = (
            "no inventory within the year tolerance, and no review",
            outcomes.get(row["scene"]),
        )
        if outcome is not None:
            why = (
                outcome.why if outcome.conf else f"{why}; not labelled by the model: {outcome.why}"
            )
        listed.append((row["scene"], row["date"], why))
    if not listed and not (project.root / REVIEW_LIST).exists():
        return
    rows = []
    for name, day, why in sorted(listed):
        made = {
            "map": MAPPED / "maps" / name,
            "outlines": MAPPED / "outlines" / name,
            "report": MAPPED / "reports" / f"{name}.html",
        }
        there = {key: str(p) if (project.root / p).exists() else "" for key, p in made.items()}
        rows.append({"scene": name, "date": day, "why": why, **there})
    path = write_review_list(project, rows)
    if not rows:
        return
    create_table_artifact(
        key="landsat-review",
        table=rows,
        description=f"Scenes that wait for somebody to say what is ice on them ({path})",
    )
    get_run_logger().info("%d scenes wait for review: %s", len(rows), path)
