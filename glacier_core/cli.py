"""The command line: one verb a step."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import click

from glacier_core.config import Project, check, read_yaml
from glacier_core.errors import InputError, ServiceError, StorageError
from glacier_core.landsat.catalog_commands import COMMANDS as CATALOG_COMMANDS
from glacier_core.landsat.commands import COMMANDS as LANDSAT_COMMANDS
from glacier_core.maps.commands import COMMANDS
from glacier_core.memory import keep_freed_memory
from glacier_core.model.commands import COMMANDS as MODEL_COMMANDS
from glacier_core.settings import PostprocessConf

# OpenMP threads that wait by spinning starve whoever shares the machine, themselves included:
# with one other busy process on two cores, training ran 4 times slower. Read when torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
keep_freed_memory()

_METHOD_FILES = ("params.yaml", "postprocess.yaml", "train.yaml")

BAD_INPUT = 2
"""Exit code for input that no repetition will mend."""


class _Group(click.Group):
    """Turns the errors that users can mend into one line on stderr."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except InputError as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(BAD_INPUT)
        except (StorageError, ServiceError) as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(1)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(self.commands)  # in the order of the work, not of the alphabet


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="glacier-mapping")
@click.option("-q", "--quiet", is_flag=True, help="Only warnings and errors.")
@click.pass_context
def main(ctx: click.Context, quiet: bool) -> None:
    """Map clean and debris-covered ice in Landsat images.

    Run in a project's folder, which holds conf/ (what to run on, by which method) and
    params.yaml (how much). The steps, in order:

    \b
      simulate    make scenes with known truth       (or bring your own)
      configure   say which scenes, which outlines   -> conf/masking_paths.yaml
      mask        burn outlines into masks           -> data/masks/
      slice       cut scenes and masks               -> data/slices/
      postprocess filter, split, take statistics     -> data/dataset/
      train       fit the U-Net                      -> data/runs/, MLflow
      evaluate    score it on the test split         -> data/evaluation/
      register    make it a model version            -> MLflow: glacier-unet
      promote     champion, if better on test blocks -> MLflow: glacier-unet
      blocks      keep blocks in their split         -> conf/blocks.geojson
      crossvalidate  measure it on all ground        -> data/crossvalidation/

    \b
      map         map scenes with a model            -> data/maps/
      outlines    draw glaciers, with areas          -> data/outlines/
      change      compare two maps                   -> data/change/
      report      one page of it all                 -> data/reports/
      review      bring corrections back as labels   -> data/reviews/

    \b
      search      find Landsat scenes                -> a table, a GeoJSON file
      fetch       download them, then ingest         -> data/raw/products/, data/raw/landsat/
      ingest      make scenes of Landsat products    -> data/raw/landsat/

    `dvc repro` runs them all but promote, blocks, crossvalidate, review and what brings
    scenes in, and again only what changed.
    """
    logging.basicConfig(
        level=logging.WARNING if quiet else logging.INFO,
        format="%(asctime)s %(levelname)-7s %(message)s",
        datefmt="%H:%M:%S",
    )
    for noisy in ("rasterio", "pyogrio", "alembic", "mlflow", "matplotlib", "fontTools"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    ctx.obj = Project(Path())


_scene = click.option(
    "--scene", "scenes", multiple=True, metavar="ID",
    help="Only this scene of conf/masking_paths.yaml; may be repeated.",
)  # fmt: skip


def _chosen(project: Project, scenes: Sequence[str]) -> list[str]:
    project.check()
    for name in scenes:
        project.scene(name)
    return list(scenes) or list(project.masking.scenes)


@main.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write to.")
@click.pass_obj
def simulate(project: Project, out: Path) -> None:
    """Make Himalayan ETM+ scenes with known truth.

    Sites, size and dates come from `simulate` in params.yaml. Writes OUT/scenes/*.tif (15
    bands), OUT/outlines/*.shp with a year column, and OUT/truth/*.tif.
    """
    from glacier_core.files import whole_folder
    from glacier_core.simulate import simulate as make

    params = project.params.simulate
    if out.exists() and any(out.iterdir()) and not (out / "truth").is_dir():
        raise InputError(
            f"{out}: holds files that `glacier simulate` did not make, and would replace. "
            "Name a new folder."
        )
    with whole_folder(out) as beside:
        scenes = make(
            beside,
            sites=params.sites,
            size=params.size,
            dates=[date.fromisoformat(day) for day in params.dates],
            seed=project.params.seed,
            progress=lambda line: logging.getLogger(__name__).info("%s", line),
        )
    click.echo(f"{len(scenes)} scenes in {out}/scenes, outlines in {out}/outlines")


@main.command()
@click.argument("scenes", nargs=-1, required=True)
@click.option(
    "--outlines",
    multiple=True,
    required=True,
    metavar="CLASS=FILE",
    help="Vector file of one class; repeat it. Where classes overlap, the later wins.",
)
@click.option("--border", help="Vector file of the study area; outside it nothing is known.")
@click.option("--year-field", help="Column of the outlines that holds their year or date.")
@click.option(
    "--bands",
    help="Names in file order, B1,B2,..., for tiffs without band "
    "descriptions; etm15 for the 15-band ETM+ stack.",
)
@click.option("--date", "day", help="Date of the scenes, YYYY-MM-DD; else read from file names.")
@click.option("--add", is_flag=True, help="Keep the scenes that are already configured.")
@click.option("--like", type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="Also take params.yaml, postprocess.yaml and train.yaml from this folder, "
              "for example conf/examples/himalaya_debris.")  # fmt: skip
@click.pass_obj
def configure(
    project: Project,
    scenes: tuple[str, ...],
    outlines: tuple[str, ...],
    border: str | None,
    year_field: str | None,
    bands: str | None,
    day: str | None,
    add: bool,
    like: Path | None,
) -> None:
    """Write conf/masking_paths.yaml from SCENES (folders, globs or files).

    \b
      glacier configure data/raw/landsat \\
        --outlines clean_ice=data/raw/outlines/clean.shp \\
        --outlines debris=data/raw/outlines/debris.shp \\
        --border data/raw/outlines/hkh.shp --year-field YEAR --bands etm15

    Scenes are keyed by file name. Every file is opened once, so that what cannot be used is
    refused now. Keep all vector files in one folder of their own: DVC watches it. Without --add,
    scenes of before that are not named are no longer configured, and their masks and slices removed.
    """
    from glacier_core.configure import configure as write
    from glacier_core.files import whole_file

    pairs: dict[str, str] = {}
    for text in outlines:
        name, found, path = text.partition("=")
        if not found or not name or not path:
            raise InputError(f"--outlines: expected CLASS=FILE, found {text!r}")
        if name in pairs:
            raise InputError(
                f"--outlines: class {name} is given twice, {pairs[name]} and {path}; one file a "
                "class. For other files on other scenes, call again with --add"
            )
        pairs[name] = path
    settings = [] if like is None else [like / name for name in _METHOD_FILES]
    channels: list[str] = []
    for source in settings:
        if not source.is_file():
            raise InputError(f"{source}: no such file; --like needs {', '.join(_METHOD_FILES)}")
        if source.name == "postprocess.yaml":
            channels = check(PostprocessConf, read_yaml(source), source).channels
    if day is not None:
        try:
            date.fromisoformat(day)
        except ValueError:
            raise InputError(f"--date: expected YYYY-MM-DD, found {day!r}") from None
    conf = write(
        project, scenes, pairs, border=border, year_field=year_field, bands=bands, date=day, add=add,
        channels=channels,
    )  # fmt: skip
    for source in settings:
        folder = project.root if source.name == "params.yaml" else project.root / "conf"
        with whole_file(folder / source.name) as beside:
            shutil.copyfile(source, beside)
    undated = sum(scene.date is None for scene in conf.scenes.values())
    click.echo(f"{project.masking_path}: {len(conf.scenes)} scenes, classes {conf.classes}")
    if undated:
        click.echo(f"{undated} scenes have no date in their name: no outline is left out by year")
    click.echo("next: check conf/postprocess.yaml (channels, split), then `dvc repro`")


@main.command()
@_scene
@click.pass_obj
def mask(project: Project, scenes: tuple[str, ...]) -> None:
    """Burn outlines into label masks.

    Writes data/masks/ID/: mask_ID.npy (uint8, height x width x classes, 1 inside an outline),
    border_ID.npy (1 inside the study area) and mask_metadata.csv. Outlines of another time than
    the scene's are left out (mask.year_tolerance in params.yaml).
    """
    from glacier_core.labels.masking import mask_scene

    for name in _chosen(project, scenes):
        mask_scene(project, name)


@main.command("slice")
@_scene
@click.pass_obj
def slice_command(project: Project, scenes: tuple[str, ...]) -> None:
    """Cut scenes and masks into slices.

    Writes data/slices/ID/: slice_ID_img_K.npy (size x size x bands), slice_ID_label_K.npy
    (size x size x classes; 255 where nothing is known) and slices.geojson, which QGIS opens.
    """
    from glacier_core.dataset.slicing import slice_scene

    for name in _chosen(project, scenes):
        slice_scene(project, name)


@main.command()
@click.pass_obj
def postprocess(project: Project) -> None:
    """Filter slices, split them without leaks, take channel statistics.

    Writes data/dataset/: train/, dev/, test/ (links), dataset.json, statistics.json, and
    slices.geojson, the map of which slice went where and why.
    """
    from glacier_core.dataset.postprocessing import postprocess as run

    run(project)


@main.command()
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    default=1,
    envvar="GLACIER_PROCESSES",
    show_envvar=True,
    help="Train by so many processes of this machine, one for each GPU.",
)
@click.pass_context
def train(ctx: click.Context, processes: int) -> None:
    """Fit the U-Net; go on where a stopped run stood.

    Writes data/runs/RUN_NAME/models (model.safetensors, model.json, history.csv) and /logs
    (`tensorboard --logdir data/runs`), and an MLflow run. Several processes share each batch, and
    train what one would. For several machines: `torchrun ... --no-python glacier train` on each.
    """
    project: Project = ctx.obj
    if processes > 1 and "TORCHELASTIC_RUN_ID" not in os.environ:  # PyTorch's launcher sets it
        from glacier_core.model.distributed import launch
        from glacier_core.threads import thread_count

        quiet = ["--quiet"] if ctx.find_root().params["quiet"] else []
        launch(
            processes,
            ["glacier_core.cli", *quiet, "train"],
            threads=max(1, thread_count() // processes),
        )
        return
    from glacier_core.model.tracking import RunLogger
    from glacier_core.model.training import train as fit

    fit(project, [RunLogger(project)])


@main.command()
@click.pass_obj
def evaluate(project: Project) -> None:
    """Score the model on the test split, beside an index threshold and a random forest.

    Writes data/evaluation/: metrics.json, by_scene.csv, by_condition.csv, confusion.csv,
    precision_recall.csv and figures/.
    """
    from glacier_core.model.evaluation import evaluate as score

    score(project)


@main.command()
@click.pass_obj
def register(project: Project) -> None:
    """Register the trained model in MLflow; the first becomes champion.

    May be run again at any time: the same training is registered once.
    """
    from glacier_core.model.registry import register as run

    done = run(project)
    click.echo(f"models:/{done.model}/{done.version} {done.alias}\n{done.run_url}")


@main.command()
@click.pass_obj
def summary(project: Project) -> None:
    """Say how good the model is, and where everything lies."""
    from glacier_core.summary import summarise

    click.echo(summarise(project))


@main.command()
@click.option("--online", is_flag=True, help="Ask the STAC APIs of conf/landsat.yaml too.")
@click.pass_obj
def doctor(project: Project, online: bool) -> None:
    """Say what is installed, reachable, locked and free. Exit code 1 if something is missing."""
    from glacier_core.doctor import examine

    failed = False
    for finding in examine(project, online=online):
        failed |= finding.state == "fail"
        click.echo(f"{finding.state:<5} {finding.subject:<10} {finding.text}")
    sys.exit(1 if failed else 0)


for _command in (*MODEL_COMMANDS, *COMMANDS, *CATALOG_COMMANDS, *LANDSAT_COMMANDS):
    main.add_command(_command)

if __name__ == "__main__":  # `torchrun -m glacier_core.cli train`
    main()
