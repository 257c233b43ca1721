"""`python -m benchmarks`: run rows, keep what came out, print the table."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click
import psutil

from benchmarks.measure import Failed, code, machine
from benchmarks.projects import Bench
from benchmarks.results import read, stored, table, write
from benchmarks.rows import ON_REQUEST, ROWS
from benchmarks.sizes import SIZES

_WRONG = 1


def _chosen(only: str | None, quadruple: bool) -> list[str]:
    if only is None:
        return [name for name in ROWS if name not in ON_REQUEST or quadruple]
    names = [name.strip() for name in only.split(",")]
    if unknown := sorted(set(names) - set(ROWS)):
        raise click.BadParameter(f"no row {', '.join(unknown)}; there are {', '.join(ROWS)}")
    return [name for name in ROWS if name in names or (name == "quadruple" and quadruple)]


def _say(line: str) -> None:
    click.echo(f"{time.strftime('%H:%M:%S')} {line}", err=True)


@click.command()
@click.option("--only", metavar="ROW,...", help=f"Rows to run, of {', '.join(ROWS)}.")
@click.option("--small", is_flag=True, help="Small enough for a test: results are checked, times mean nothing.")  # fmt: skip
@click.option("--quadruple", is_flag=True, help="Also memory for four times the area: long, and 30 GB of disk.")  # fmt: skip
@click.option("--repeat", type=click.IntRange(1), help="Measurements of each side; 3, small 1.")
@click.option("--threads", type=click.IntRange(1), help="Of every side and floor; all cores.")
@click.option("--without-reference", is_flag=True, help="Leave out the reference procedure.")
@click.option("--again", is_flag=True, help="Measure also what the results hold already.")
@click.option("--cache", type=click.Path(path_type=Path), default=Path(".bench"), show_default=True,
              help="Folder for scenes and results of the sides.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), help="Results; CACHE/SIZE/results.json.")
def main(
    only: str | None,
    small: bool,
    quadruple: bool,
    repeat: int | None,
    threads: int | None,
    without_reference: bool,
    again: bool,
    cache: Path,
    out: Path | None,
) -> None:
    """Measure this checkout beside a plain reference and beside what the machine can do.

    Results are kept row by row: a run that was stopped goes on where it stood. A row measured by
    other code is measured again. Exit code 1 if a result is wrong; never for a time.
    """
    chosen = _chosen(only, quadruple)
    size = SIZES["small" if small else "full"]
    folder = cache.absolute() / size.name
    folder.mkdir(parents=True, exist_ok=True)
    path = out or folder / "results.json"
    threads = threads or len(psutil.Process().cpu_affinity() or [0])
    bench = Bench(size, folder, repeat or size.repeat, threads, not without_reference, _say)
    content = read(path)
    if content.get("size", size.name) != size.name:
        raise click.BadParameter(f"{path}: holds results of the {content['size']} size", param_hint="--out")  # fmt: skip
    content |= {"size": size.name, "machine": machine(folder, threads)}
    this = {
        "code": code(),
        "repeat": bench.repeat,
        "threads": threads,
        "reference": bench.reference,
    }
    for name in chosen:
        known = content["rows"].get(name)
        if known and not again and {key: known[key] for key in this} == this and not known["wrong"]:
            _say(f"{name}: measured already")
            continue
        _say(f"{name}: {(ROWS[name].__doc__ or '').splitlines()[0]}")
        load = psutil.getloadavg()[0]
        try:
            row = ROWS[name](bench)
        except Failed as error:
            raise click.ClickException(f"{name}: {error}") from None
        content["rows"][name] = stored(
            row, **this, when=time.strftime("%Y-%m-%dT%H:%M:%S%z"), load_before=round(load, 2)
        )
        content["rows"] = {key: content["rows"][key] for key in ROWS if key in content["rows"]}
        write(path, content)
    click.echo("\n" + " · ".join(f"{key} {value}" for key, value in content["machine"].items()))
    click.echo(table(content))
    click.echo(f"\nall values: {path}")
    wrong = [f"{name}: {text}" for name in chosen for text in content["rows"][name]["wrong"]]
    for line in wrong:
        click.echo(f"WRONG {line}", err=True)
    sys.exit(_WRONG if wrong else 0)


if __name__ == "__main__":
    main()
