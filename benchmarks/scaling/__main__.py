"""`python -m benchmarks.scaling`: give the tools many of what a larger job has many of."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import click

from benchmarks.measure import Failed, code
from benchmarks.scaling.found import Found

Command = TypeVar("Command", bound=Callable[..., Any])


def _say(line: str) -> None:
    click.echo(f"{time.strftime('%H:%M:%S')} {line}", err=True)


def _numbers(_: click.Context, __: click.Parameter, text: str | None) -> list[int]:
    try:
        return sorted({int(part) for part in text.split(",")}) if text else []
    except ValueError:
        raise click.BadParameter("expected whole numbers, divided by commas") from None


_cache = click.option("--cache", type=click.Path(path_type=Path), default=Path(".bench/scaling"),
                      show_default=True, help="Folder to work in; it holds the results, NAME.json.")  # fmt: skip


@click.group()
def main() -> None:
    """What many scenes, tasks, runs and files cost. Exit code 1 if a result is wrong; never for a time."""


def _sizes(default: str, what: str) -> Callable[[Command], Command]:
    return click.option("--sizes", default=default, show_default=True, callback=_numbers,
                        help=f"Numbers of {what}.")  # fmt: skip


@main.command()
@_sizes("35,350", "scenes")
@click.option(
    "--slices", default=2, show_default=True, help="Slices of each scene, two files each."
)
@click.option("--limit", default=240.0, show_default=True, help="Seconds that one command may take; larger sizes are left out.")  # fmt: skip
@_cache
def dvc(sizes: list[int], slices: int, limit: float, cache: Path) -> None:
    """Idle `dvc repro` and `dvc status`, and one stage, by number of scenes."""
    from benchmarks.scaling.many_scenes import scenes_in_dvc

    _end("dvc", cache, lambda folder: scenes_in_dvc(folder, sizes, slices, limit, _say))


@main.command()
@_sizes("1,2,4", "flows at once")
@click.option(
    "--scenes", default=60, show_default=True, help="Scenes of each flow, three tasks each."
)
@click.option("--database", "databases", multiple=True, type=click.Choice(["sqlite", "postgresql"]),
              default=["sqlite"], show_default=True, help="Prefect's; PostgreSQL must be installed.")  # fmt: skip
@_cache
def prefect(sizes: list[int], scenes: int, databases: tuple[str, ...], cache: Path) -> None:
    """Tasks a second that Prefect's server takes, by number of flows at once."""
    from benchmarks.scaling.many_tasks import tasks_in_prefect

    _end("prefect", cache, lambda folder: tasks_in_prefect(folder, sizes, scenes, databases, _say))


@main.command()
@_sizes("1,2,4,8", "runs at once")
@click.option("--epochs", default=100, show_default=True, help="Logged by each run.")
@_cache
def mlflow(sizes: list[int], epochs: int, cache: Path) -> None:
    """Epochs a second that MLflow takes on SQLite, by number of runs at once."""
    from benchmarks.scaling.many_runs import runs_in_mlflow

    _end("mlflow", cache, lambda folder: runs_in_mlflow(folder, sizes, epochs, _say))


@main.command()
@_sizes("10000,100000", "slices")
@click.option("--bytes", "size", default=4096, show_default=True, help="Of each.")
@_cache
def files(sizes: list[int], size: int, cache: Path) -> None:
    """Making, listing, reading and removing slices, in one folder and in one a scene."""
    from benchmarks.scaling.many_files import slices_in_folders

    _end("files", cache, lambda folder: slices_in_folders(folder, sizes, size, _say))


@main.command()
@_sizes("1000,10000,100000", "scenes in the table")
@_cache
def table(sizes: list[int], cache: Path) -> None:
    """One more scene in `data/landsat/quality.csv`, by how many it holds."""
    from benchmarks.scaling.many_rows import rows_in_table

    _end("table", cache, lambda folder: rows_in_table(folder, sizes, _say))


def _end(name: str, cache: Path, simulate: Callable[[Path], Found]) -> None:
    """Simulate in an empty folder, keep and show what was found, and exit."""
    folder = cache.absolute() / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        found = simulate(folder)
    except Failed as error:
        raise click.ClickException(f"{name}: {error}") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    about = {"code": code(), "when": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    path = folder.with_suffix(".json")
    path.write_text(json.dumps({**about, **asdict(found)}, indent=2) + "\n")
    click.echo(found.table())
    click.echo(f"all values: {path}")
    for line in found.wrong:
        click.echo(f"WRONG {name}: {line}", err=True)
    sys.exit(1 if found.wrong else 0)


if __name__ == "__main__":
    main()
