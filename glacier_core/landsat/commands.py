"""The verbs of the command line that bring Landsat products in."""

from __future__ import annotations

from pathlib import Path

import click

from glacier_core.config import Project

_folder = click.Path(file_okay=False, path_type=Path)
_any = click.Path(path_type=Path)


@click.command()
@click.argument("products", nargs=-1, required=True, type=_any)
@click.option("--out", type=_folder, required=True, help="Folder to write to.")
@click.option(
    "--fill-from",
    multiple=True,
    type=_any,
    help="Fill scan-line gaps from this product of another date; repeat it for several, best first. "
    "Without it gaps stay gaps.",
)
@click.option("--again", is_flag=True, help="Make also what is made already.")
@click.pass_obj
def ingest(
    project: Project,
    products: tuple[Path, ...],
    out: Path,
    fill_from: tuple[Path, ...],
    again: bool,
) -> None:
    """Make scenes of Landsat Collection 2 Level-2 PRODUCTS.

    \b
      glacier ingest LC08_L2SP_140041_20201109_20210317_02_T1.tar --out data/raw/landsat
      glacier ingest folder/ --fill-from other_date.tar --out data/raw/landsat

    A product is an archive (.tar, .tar.gz) or a folder as USGS delivers them, or a STAC item (.json)
    beside its assets. Writes OUT/SENSOR_PATHROW_DATE.tif: reflectance, temperature (K), indices,
    elevation and slope, QA_PIXEL, by name; NaN where a band saw nothing. conf/landsat.yaml says which
    bands, and whether Landsat 8 and 9 are made like Landsat 7. Pixels filled by --fill-from are 1 in
    the band `filled`. What is made already stays; a product that USGS processed anew replaces the old
    scene.

    Elevation and slope come from a DEM that is here (`dem_path` in conf/landsat.yaml: a file, a folder
    of tiles), or from a STAC API (`dem_collection`, such as Copernicus DEM): the tiles under a scene
    are fetched into data/raw/dem/, each once. Without either, scenes have none.
    """
    from glacier_core.landsat.scene import ingest_product

    for product in products:
        click.echo(ingest_product(project, product, out, fill_from=fill_from, again=again))
    click.echo(f"next: `glacier map {out}/*.tif`, or `glacier configure {out}` to train on them")


COMMANDS = [ingest]
