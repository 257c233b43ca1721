"""The verbs of the command line that find Landsat scenes and fetch them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from glacier_core.config import Project
from glacier_core.errors import InputError, ServiceError
from glacier_core.landsat.apis import SENSORS

if TYPE_CHECKING:
    from glacier_core.landsat.items import Item

_folder = click.Path(file_okay=False, path_type=Path)
_file = click.Path(dir_okay=False, path_type=Path)

_AWAY = 3
"""Scenes that a service fails to give, one after the other, before it is taken to be away."""

_OPTIONS = [
    click.option(
        "--area",
        help="Where: a vector file, west,south,east,north in degrees, or one of `areas` in "
        "conf/landsat.yaml, which also says season, cloud and so on.",
    ),
    click.option("--from", "first", help="First day, YYYY-MM-DD."),
    click.option("--to", "last", help="Last day, YYYY-MM-DD; today if not given."),
    click.option("--season", help="Only these days of each year, for example 09-01..11-30."),
    click.option("--cloud", type=click.FloatRange(0, 100), help="Most cloud, % of the scene."),
    click.option("--path-row", "path_rows", multiple=True, metavar="PPP/RRR",
                 help="Only this path and row of WRS-2, for example 140/041; may be repeated."),
    click.option("--sensor", "sensors", multiple=True, type=click.Choice(SENSORS),
                 help="Only this sensor (Landsat 4-5, 7, 8-9); may be repeated."),
    click.option("--api", help="One of apis.known in conf/landsat.yaml; default: apis.default."),
]  # fmt: skip


def _search_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def _date(option: str, text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise InputError(f"{option}: expected YYYY-MM-DD, found {text!r}") from None


def _found(
    project: Project,
    area: str | None,
    first: str | None,
    last: str | None,
    season: str | None,
    cloud: float | None,
    path_rows: Sequence[str],
    sensors: Sequence[str],
    api: str | None,
) -> list[Item]:
    from glacier_core.landsat.conf import landsat_settings
    from glacier_core.landsat.search import Criteria, search

    if first is None:
        raise InputError("--from: say from which day, YYYY-MM-DD")
    conf = landsat_settings(project)
    named = conf.areas.get(area) if area is not None else None
    if named is not None:  # what is given by hand goes before
        area, season, api = named.area, season or named.season, api or named.api
        cloud = named.cloud if cloud is None else cloud
        path_rows, sensors = path_rows or named.path_rows, sensors or named.sensors
        if "," not in area:
            area = str(project.root / area)
    criteria = Criteria.read(
        area=area,
        first=_date("--from", first),
        last=_date("--to", last) if last else date.today(),
        season=season,
        cloud=cloud,
        path_rows=path_rows,
        sensors=sensors,
    )
    return search(conf.apis, criteria, api)


def _table(items: Sequence[Item]) -> str:
    from glacier_core.landsat.items import (
        cloud_of,
        day_of,
        path_row_of,
        product_id,
        sensor_of,
    )

    rows = [("date", "sensor", "path/row", "cloud", "item", "product")]
    for item in items:
        path, row = path_row_of(item) or (0, 0)
        cloud = cloud_of(item)
        rows.append(
            (
                str(day_of(item)),
                str(sensor_of(item)),
                f"{path:03}/{row:03}",
                "?" if cloud is None else f"{cloud:.0f} %",
                item["id"],
                product_id(item) or "",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


@click.command()
@_search_options
@click.option("--out", type=_file, help="Also write the items, as GeoJSON that QGIS opens.")
@click.pass_obj
def search(project: Project, /, out: Path | None, **where: Any) -> None:
    """Find Landsat scenes at a STAC API.

    \b
      glacier search --area 86.5,27.7,87.1,28.2 --from 2000-01-01 --to 2010-12-31 \\
        --season 09-15..11-30 --cloud 30 --out items.geojson
      glacier search --path-row 140/041 --sensor oli --from 2020-01-01

    Prints a line a scene: of several processings the newest. With --out also writes their STAC
    items, which `glacier fetch` takes.
    """
    items = _found(project, **where)
    if items:
        click.echo(_table(items))
    count = "1 scene" if len(items) == 1 else f"{len(items)} scenes"
    click.echo(count + ("" if items else ": more days, or more cloud?"))
    if out is not None:
        from glacier_core.files import write_json

        write_json(out, {"type": "FeatureCollection", "features": items})
        click.echo(f"next: `glacier fetch {out} --out data/raw/products`")


@click.command()
@click.argument("items", nargs=-1, type=_file)
@_search_options
@click.option("--out", type=_folder, required=True, help="Folder for the products.")
@click.option("--scenes", type=_folder, default=Path("data/raw/landsat"), show_default=True,
              help="Folder for the scenes that are made of them.")  # fmt: skip
@click.option("--no-ingest", is_flag=True, help="Only download; make no scenes.")
@click.pass_obj
def fetch(
    project: Project,
    /,
    items: tuple[Path, ...],
    out: Path,
    scenes: Path,
    no_ingest: bool,
    api: str | None,
    **where: Any,
) -> None:
    """Download Landsat scenes, and make scenes with named bands of them.

    \b
      glacier fetch items.geojson --out data/raw/products
      glacier fetch --area 86.5,27.7,87.1,28.2 --from 2020-10-01 --cloud 20 --out data/raw/products

    ITEMS are STAC items, or what `glacier search --out` wrote; without them, what a search finds.
    Writes OUT/ID/ (the files, and item.json) and SCENES/*.tif, as `glacier ingest` does. Run again
    after a failure, it goes on where it stopped; what is there is not fetched again, but a scene
    that was processed anew is.
    """
    from glacier_core.landsat.conf import landsat_settings
    from glacier_core.landsat.download import fetch_item, read_items, service_for
    from glacier_core.landsat.scene import ingest_product

    if items and any(value not in (None, ()) for value in where.values()):
        raise InputError("glacier fetch: give items, or say what to search for, not both")
    conf = landsat_settings(project)
    wanted = [item for path in items for item in read_items(path)]
    if not items:
        wanted = _found(project, api=api, **where)
        # What a search found is fetched from whom it was asked.
        area = conf.areas.get(where["area"] or "")
        api = api or (area.api if area else None) or conf.apis.default
        click.echo(f"{len(wanted)} scenes found")
    failed: list[str] = []
    in_a_row = 0
    for item in wanted:
        service = service_for(conf.apis, item, api)
        try:
            folder = fetch_item(item, out, service, coastal="coastal" in conf.bands)
            click.echo(folder)
            if not no_ingest:
                click.echo(ingest_product(project, folder, scenes))
            in_a_row = 0
        except (InputError, ServiceError) as error:
            in_a_row = in_a_row + 1 if isinstance(error, ServiceError) else 0
            failed.append(item["id"])
            if len(wanted) == 1:
                raise
            click.echo(f"error: {error}", err=True)
            if in_a_row == _AWAY:
                raise ServiceError(
                    f"{service.name}: {_AWAY} scenes failed one after the other; run the same "
                    "command again later: it goes on where it stopped"
                ) from None
    if failed:
        raise ServiceError(
            f"{len(failed)} of {len(wanted)} scenes were not fetched: {', '.join(failed)}; see above"
        )


COMMANDS = [search, fetch]
