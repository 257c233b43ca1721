"""The verbs of the command line that make maps, and what people make of them."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import click

from glacier_core.config import Project
from glacier_core.errors import InputError

_folder = click.Path(file_okay=False, path_type=Path)
_file = click.Path(dir_okay=False, path_type=Path)


def _by_class(option: str, texts: tuple[str, ...]) -> dict[str, Path]:
    pairs: dict[str, Path] = {}
    for text in texts:
        name, found, path = text.partition("=")
        if not found or not name or not path:
            raise InputError(f"{option}: expected CLASS=FILE, found {text!r}")
        if name in pairs:
            raise InputError(f"{option}: class {name} is given twice, {pairs[name]} and {path}")
        pairs[name] = Path(path)
    return pairs


def _day(option: str, text: str | None) -> str | None:
    if text is not None:
        try:
            date.fromisoformat(text)
        except ValueError:
            raise InputError(f"{option}: expected YYYY-MM-DD, found {text!r}") from None
    return text


@click.command("map")
@click.argument("scenes", nargs=-1, required=True)
@click.option(
    "--model",
    "models",
    multiple=True,
    help="A registered model (models:/NAME@ALIAS, models:/NAME/VERSION), or a folder with "
    "model.safetensors and model.json. Repeat it to average several (an ensemble). Default: the "
    "champion of this project's model.",
)
@click.option("--out", type=_folder, required=True, help="Folder to write to.")
@click.option(
    "--symmetries/--no-symmetries",
    default=None,
    help="Average over the eight turns and mirror images: 8 times slower, a little better, and "
    "the spread is written as uncertainty. Default: symmetries in conf/maps.yaml.",
)
@click.option(
    "--bands",
    help="Names in file order, B1,B2,..., for tiffs without band descriptions; etm15 for the "
    "15-band ETM+ stack.",
)
@click.option("--date", "day", help="Date of the scenes, YYYY-MM-DD; else read from file names.")
@click.option("--again", is_flag=True, help="Map also what is mapped already.")
@click.pass_obj
def map_command(
    project: Project,
    scenes: tuple[str, ...],
    models: tuple[str, ...],
    out: Path,
    symmetries: bool | None,
    bands: str | None,
    day: str | None,
    again: bool,
) -> None:
    """Map SCENES (files, globs, folders, or names in conf/maps.yaml) with a trained model.

    \b
      glacier map data/raw/landsat/*.tif --out data/maps
      glacier map scene.tif --bands etm15 --model models:/glacier-unet/3 --out data/maps

    Writes OUT/SCENE/: SCENE_classes.tif (class numbers, 255 where nothing was seen),
    SCENE_probabilities.tif and SCENE_confidence.tif (v / 255), as Cloud-Optimised GeoTIFFs, and
    map.json. A scene may have any size; one that lacks a band of the model is refused. What is
    mapped already, by the same model with the same options, is left as it is.
    """
    from glacier_core.maps.mapping import map_scenes
    from glacier_core.raster.bands import band_names

    done = map_scenes(
        project,
        scenes,
        models=models,
        out=out,
        symmetries=symmetries,
        bands=band_names(bands),
        date=_day("--date", day),
        again=again,
    )
    for folder in done:
        click.echo(folder)
    click.echo("next: `glacier outlines FOLDER...` for polygons and areas")


@click.command()
@click.argument("maps", nargs=-1, required=True, type=_folder)
@click.option("--out", type=_folder, required=True, help="Folder to write to.")
@click.option("--inventory", type=_file, help="Vector file of known glaciers, for ids and divides.")
@click.option("--inventory-id", help="Its column of ids, for example rgi_id.")
@click.option(
    "--also",
    multiple=True,
    type=click.Choice(["geojson", "shapefile"]),
    help="Further formats, beside GeoPackage and GeoParquet.",
)
@click.pass_obj
def outlines(
    project: Project,
    maps: tuple[Path, ...],
    out: Path,
    inventory: Path | None,
    inventory_id: str | None,
    also: tuple[str, ...],
) -> None:
    """Draw the outlines of MAPS (folders that `glacier map` wrote), one record a glacier.

    \b
      glacier outlines data/maps/* --out data/outlines
      glacier outlines data/maps/X --inventory rgi.gpkg --inventory-id rgi_id --out data/outlines

    Writes OUT/SCENE/: SCENE_glaciers.gpkg with the layers glaciers and classes (QGIS opens it in
    colours), both as GeoParquet too, SCENE_hypsometry.csv and outlines.json. Areas are those of the
    ellipsoid; lines lie within half a pixel of the map's; borders are shared. An inventory gives
    its ids, and its ice divides split connected ice; without one, conf/maps.yaml says which.
    """
    from glacier_core.maps.outlines import outline_map

    twice = {folder.name for folder in maps if sum(f.name == folder.name for f in maps) > 1}
    if twice:
        raise InputError(
            f"{', '.join(sorted(twice))}: given twice; outline maps of one name into different folders"
        )
    for folder in maps:
        done = outline_map(
            project, folder, out, inventory=inventory, inventory_id=inventory_id, also=also
        )
        click.echo(f"{done.folder}: {done.summary}")


@click.command()
@click.argument("before", type=_folder)
@click.argument("after", type=_folder, required=False)
@click.option("--out", type=_folder, required=True, help="Folder to write to.")
@click.option(
    "--against",
    multiple=True,
    metavar="CLASS=FILE",
    help="Instead of a second map: outlines of an inventory, one vector file a class.",
)
@click.option("--date", "day", help="Date of the inventory, YYYY-MM-DD.")
@click.option("--inventory", type=_file, help="Vector file of known glaciers, for ids and divides.")
@click.option("--inventory-id", help="Its column of ids, for example rgi_id.")
@click.pass_obj
def change(
    project: Project,
    before: Path,
    after: Path | None,
    out: Path,
    against: tuple[str, ...],
    day: str | None,
    inventory: Path | None,
    inventory_id: str | None,
) -> None:
    """Compare two maps, or a map and an inventory: areas, gains and losses by glacier.

    \b
      glacier change data/maps/X_2000 data/maps/X_2010 --out data/change/X
      glacier change data/maps/X_2010 --against clean_ice=clean.shp --against debris=debris.shp \\
        --date 2000-10-25 --out data/change/X

    Only pixels that were seen at both dates count. Writes OUT/change.csv, change.gpkg (glaciers,
    and where ice came and went), change.json and figures.
    """
    from glacier_core.maps.change.comparing import compare

    if (after is None) == (not against):
        raise InputError("glacier change: give a second map, or --against an inventory")
    summary = compare(
        project,
        before,
        after,
        out,
        against=_by_class("--against", against),
        date=_day("--date", day),
        inventory=inventory,
        inventory_id=inventory_id,
    )
    click.echo(summary)


@click.command()
@click.argument("map_folder", metavar="MAP", type=_folder)
@click.option("--outlines", "outlines_folder", type=_folder,
              help="What `glacier outlines` wrote for it.")  # fmt: skip
@click.option("--change", "change_folder", type=_folder, help="What `glacier change` wrote.")
@click.option("--out", type=_file, required=True, help="HTML file to write.")
@click.pass_obj
def report(
    project: Project,
    map_folder: Path,
    outlines_folder: Path | None,
    change_folder: Path | None,
    out: Path,
) -> None:
    """Make one HTML page of a MAP that opens anywhere, without a network.

    \b
      glacier report data/maps/X --outlines data/outlines/X --out data/reports/X.html

    Image, classes, probabilities and outlines to switch on and off, to pan and zoom; the table of
    glaciers, their hypsometry, and warnings. With --change, also what came and went.
    """
    from glacier_core.maps.report.page import write_report

    click.echo(write_report(project, map_folder, out, outlines_folder, change_folder))


@click.group()
def review() -> None:
    """Bring an analyst's corrections back into the labels."""


@review.command("import")
@click.argument("file", type=_file)
@click.option(
    "--scene", required=True, help="The scene of conf/masking_paths.yaml it was drawn on."
)
@click.option("--author", required=True, help="Who drew it.")
@click.option("--date", "day", help="When, YYYY-MM-DD; today if not given.")
@click.option(
    "--layer", help="Layer of the file; default: review, else classes, else its only one."
)
@click.option("--whole", is_flag=True,
              help="The file says everything about the scene: what it leaves out is no ice.")  # fmt: skip
@click.option("--within", type=_file,
              help="It says everything inside these polygons.")  # fmt: skip
@click.option("--note", default="", help="What was wrong, in a few words.")
@click.pass_obj
def review_import(
    project: Project,
    file: Path,
    scene: str,
    author: str,
    day: str | None,
    layer: str | None,
    whole: bool,
    within: Path | None,
    note: str,
) -> None:
    """Take over corrected outlines, or polygons of wrong areas, as labels.

    \b
      glacier review import corrected.gpkg --scene LE07_X --author "A. Sherpa" --whole
      glacier review import wrong.gpkg --scene LE07_X --author "A. Sherpa"

    FILE holds polygons with a column `class`: one of the classes, `background` (no ice here) or
    `ignore` (nobody can tell). Inside them, the next `dvc repro` uses these labels in place of
    the inventories', for scenes within mask.year_tolerance of the one they were drawn on. Stored in
    data/reviews/ with author and date, and given to DVC.
    """
    from glacier_core.labels.corrections import import_review
    from glacier_core.labels.predicted import remove_predicted
    from glacier_core.landsat.learning import learn_from, scene_under_review

    new = None
    if scene not in project.masking.scenes:
        new = scene_under_review(project, scene, whole=whole)
    done = import_review(
        project,
        file,
        scene=scene,
        conf=new or project.scene(scene),
        author=author,
        day=_day("--date", day) or date.today().isoformat(),
        layer=layer,
        whole=whole,
        within=within,
        note=note,
    )
    click.echo(done)
    if whole and remove_predicted(project, scene):
        click.echo(
            f"data/predicted/{scene}.tif, what a model said of the scene, is gone; `git add` the "
            "removal of its .dvc file too"
        )
    if new is not None:
        # Without its review its labels would be wrong: only now.
        learn_from(project, {scene: new})
        click.echo("the scene is now in conf/masking_paths.yaml; `git add` that too")


COMMANDS = [map_command, outlines, change, report, review]
