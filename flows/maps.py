"""The flow `glacier-map`: scenes mapped with a registered model, outlined, and reported on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.futures import wait

from flows.side_by_side import SceneRunner, dask_wanted
from flows.stages import BadInput, worth_repeating
from glacier_core.config import Project
from glacier_core.errors import InputError
from glacier_core.maps.mapping import find_jobs, map_scenes
from glacier_core.maps.outlines import SUMMARY, outline_map
from glacier_core.maps.report.page import write_report


@task(
    task_run_name="map {scene}",
    cache_policy=NO_CACHE,  # `map_scenes` knows by content what is mapped already
    retries=2,
    retry_delay_seconds=10,
    retry_condition_fn=worth_repeating,
)
def map_scene(
    scene: str,
    root: Path,
    models: list[str],
    out: Path,
    symmetries: bool | None,
    bands: list[str] | None,
    date: str | None,
) -> Path:
    """Map one scene; the folder of its map."""
    folder = map_scenes(
        Project(root),
        [scene],
        models=models,
        out=out / "maps",
        symmetries=symmetries,
        bands=bands,
        date=date,
        again=False,
    )[0]
    get_run_logger().info("%s", folder)
    return folder


@task(
    task_run_name="outlines of {map_folder.name}",
    cache_policy=NO_CACHE,
    retries=2,
    retry_delay_seconds=10,
    retry_condition_fn=worth_repeating,
)
def outline(map_folder: Path, root: Path, out: Path) -> Path | None:
    """Draw a map's outlines; their folder, None where the map has no place on the ground."""
    try:
        done = outline_map(
            Project(root), map_folder, out / "outlines", inventory=None, inventory_id=None, also=()
        )
    except InputError as error:
        if "coordinate reference system" not in str(error):
            raise
        get_run_logger().warning("%s", error)
        return None
    get_run_logger().info("%s", done.summary)
    return done.folder


@task(
    task_run_name="report on {map_folder.name}",
    cache_policy=NO_CACHE,
    retries=2,
    retry_delay_seconds=10,
    retry_condition_fn=worth_repeating,
)
def report_on(map_folder: Path, outlines: Path | None, root: Path, out: Path) -> Path:
    """Write the page of a map."""
    page = out / "reports" / f"{map_folder.name}.html"
    return write_report(Project(root), map_folder, page, outlines, None)


def _row(map_folder: Path, outlines: Path | None, page: Path) -> dict[str, object]:
    row: dict[str, object] = {"scene": map_folder.name}
    if outlines is not None:
        sums = json.loads((outlines / SUMMARY).read_text())
        row |= {"date": sums["date"], "glaciers": sums["glaciers"], "km²": sums["total_km2"]}
        row |= {f"{name} km²": km2 for name, km2 in sums["km2"].items()}
        row["± km² (buffer)"] = sums["total_err_buffer_km2"]
    return {**row, "report": str(page)}


@flow(name="glacier-map", task_runner=SceneRunner(max_workers=2))  # type: ignore[arg-type]
def glacier_map(
    scenes: list[str],
    models: list[str] | None = None,
    out: str = "data/mapped",
    root: str = ".",
    symmetries: bool | None = None,
    bands: list[str] | None = None,
    date: str | None = None,
) -> list[str]:
    """Map scenes with a registered model, draw their outlines, and write a page on each.

    Scenes are independent: one that fails does not keep the others from their maps. What is
    mapped already, by the same model with the same options, is not mapped again. Two scenes at a
    time, or as many as Dask has workers (`GLACIER_DASK`).

    Args:
        scenes: files, globs, folders, or names in conf/maps.yaml.
        models: registered models or folders; several are averaged. The champion, if not given.
        out: folder for `maps`, `outlines` and `reports`, in the project's folder or absolute.
        root: the project's folder.
        symmetries: average over turns and mirror images; as conf/maps.yaml says, if not given.
        bands: names in file order, for files whose bands have none.
        date: ISO date of the scenes, where their names do not say it.

    Returns:
        Paths of the pages.
    """
    folder = Path(root).resolve()
    place = folder / out
    project = Project(folder)
    try:
        dask_wanted()
        project.check()
        jobs = find_jobs(project, scenes, bands, date)
    except InputError as error:
        raise BadInput(str(error)) from error
    settings = (folder, models or [], place, symmetries, bands, date)
    maps: list[Any] = []
    drawn: list[Any] = []
    pages: list[Any] = []
    for job in jobs:
        mapped = map_scene.submit(job.place, *settings, return_state=False)
        outlined = outline.submit(mapped, folder, place, return_state=False)
        maps.append(mapped)
        drawn.append(outlined)
        pages.append(report_on.submit(mapped, outlined, folder, place, return_state=False))
    wait([*maps, *drawn, *pages])
    good = [
        (m.result(), d.result(), p.result())
        for m, d, p in zip(maps, drawn, pages, strict=True)
        if p.state.is_completed()
    ]
    create_table_artifact(
        key="glacier-maps",
        table=[_row(*entry) for entry in good],
        description=f"{len(good)} of {len(jobs)} scenes mapped, in {place}",
    )
    if len(good) < len(jobs):
        failed = [
            f"- `{job.name}`: {page.state.message}"
            for job, page in zip(jobs, pages, strict=True)
            if not page.state.is_completed()
        ]
        create_markdown_artifact(key="glacier-maps-failed", markdown="\n".join(failed))
    for future in [*maps, *drawn, *pages]:
        future.result()
    return [str(page) for _, _, page in good]


if __name__ == "__main__":
    import sys

    glacier_map(sys.argv[1:])
