"""The verbs of the command line that say what a model is worth, which is used, and on which ground."""

from __future__ import annotations

import click

from glacier_core.config import Project
from glacier_core.errors import InputError
from glacier_core.settings import PROTOCOLS


@click.command("blocks")
@click.option(
    "--record", is_flag=True, help="Write them into conf/blocks.geojson, to be committed."
)
@click.pass_obj
def blocks_command(project: Project, record: bool) -> None:
    """Say which blocks of ground train and judge, and keep them there.

    `glacier postprocess` shares blocks out anew when scenes are added, unless they are recorded:
    a recorded block stays in its split, and only new ones are shared out. Without --record,
    nothing is written.
    """
    from glacier_core.dataset.blocks import RECORD, present_blocks, write_blocks
    from glacier_core.settings import SPLITS

    blocks, recorded = present_blocks(project)
    for split in SPLITS:
        names = [name for name in sorted(blocks) if blocks[name].split == split]
        fresh = [name for name in names if name not in recorded]
        click.echo(f"{split:<5} {len(names)} blocks, {len(fresh)} new: {' '.join(names)}")
    if record:
        write_blocks(project.root / RECORD, blocks)
        click.echo(f"{RECORD}: {len(blocks)} blocks. next: `git add {RECORD}` and commit")


@click.command("promote")
@click.option("--challenger", metavar="VERSION", help="Default: the alias `challenger`.")
@click.option("--rollback", "back", is_flag=True, help="Go back to the champion before this one.")
@click.option(
    "--force", metavar="WHY", help="Promote it whatever the verdict; WHY is kept with it."
)
@click.option(
    "--wait",
    type=click.FloatRange(min=0),
    default=60,
    show_default=True,
    help="Seconds to wait while another promotion or a registration runs.",
)
@click.pass_obj
def promote_command(
    project: Project, challenger: str | None, back: bool, force: str | None, wait: float
) -> None:
    """Compare the challenger with the champion on the same test blocks; promote it if it is better.

    Better is, by `promotion` in params.yaml: mean IoU over the ice classes by a margin, the lower
    end of a paired bootstrap over pieces of ground above zero, and no class worse by more than a
    tolerance. Writes tags of the model version and a report (promotion/) into its MLflow run.
    """
    from glacier_core.model.promotion import promote, rollback

    project.check()
    if back:
        if challenger is not None or force is not None:
            raise InputError("--rollback goes alone, without --challenger and --force")
        done = rollback(project, wait=wait)
        click.echo(f"{done.model}: {done.champion} is champion again, instead of {done.instead_of}")
        return
    decision = promote(project, challenger=challenger, wait=wait, force=force)
    click.echo(f"{decision.outcome}: {decision.summary}\n{decision.run_url}")


@click.command("crossvalidate")
@click.option(
    "--by",
    required=True,
    type=click.Choice(PROTOCOLS),
    help="What tests in turn. random leaks: for comparison with published numbers.",
)
@click.option(
    "--folds",
    type=click.IntRange(min=2),
    help="Deal blocks (5 by default), regions or scenes into so many folds.",
)
@click.option(
    "--groups",
    multiple=True,
    metavar="NAME=SCENE,SCENE",
    help="A group of scenes, for --by groups; repeat it, or give a YAML file of all.",
)
@click.option(
    "--test",
    "testing",
    multiple=True,
    metavar="FOLD",
    help="Test this group, region, scene or fold; the others only train. Repeat it for several.  "
    "[default: each in turn]",
)
@click.option("--seeds", metavar="1,2,3", help="Of the trainings of each fold.  [default: 1,2,3]")
@click.option(
    "--name", help="Of the folder, and the MLflow run; by default as --by and --folds say."
)
@click.option(
    "--symmetries/--no-symmetries",
    default=None,
    help="Average over turns and mirror images, as `glacier map` does; eight times the work. "
    "[default: as conf/maps.yaml says]",
)
@click.option(
    "--rotate",
    is_flag=True,
    help="With each seed, another part of the training ground chooses: of the models of all seeds "
    "together, all of it has trained.",
)
@click.option("--only", metavar="FOLD", help="Make this fold alone, or go on with it.")
@click.pass_obj
def crossvalidate_command(
    project: Project,
    by: str,
    folds: int | None,
    groups: tuple[str, ...],
    testing: tuple[str, ...],
    seeds: str | None,
    name: str | None,
    symmetries: bool | None,
    rotate: bool,
    only: str | None,
) -> None:
    """Measure the configuration: all ground tests once, by models that never saw it.

    Works on data/slices. Trains once a fold and seed, by the steps and settings of the project; in
    each, everything is chosen on a share of the training ground. Writes
    data/crossvalidation/NAME/: scores.json, scores.csv, report.md, figures/, predictions/, a
    folder a fold and seed; and MLflow runs below one of that name. What is made already stays, and
    a training that was stopped goes on.
    """
    from glacier_core.dataset.groups import read_groups
    from glacier_core.model.crossreport import REPORT, summary
    from glacier_core.model.crossvalidation import SEEDS, crossvalidate

    parts = seeds.split(",") if seeds is not None else [str(seed) for seed in SEEDS]
    if not all(part.strip().isdecimal() for part in parts):
        raise InputError(
            f"--seeds {seeds}: expected whole numbers from 0 on, each once, as in 1,2,3"
        )
    numbers = [int(part) for part in parts]
    made, pooled = crossvalidate(
        project, by=by, folds=folds, groups=read_groups(groups), testing=testing,
        seeds=numbers, name=name,
        symmetries=symmetries, rotate=rotate, only=only,
    )  # fmt: skip
    if pooled is None:
        missing = made.missing(numbers)
        click.echo(
            f"{only} is made; missing: "
            + ", ".join(f"{fold.name} with seed {seed}" for fold, seed in missing)
            + ". Without --only they are made too, and scored together"
        )
        return
    click.echo(f"{summary(pooled)}\n{made.folder / REPORT}, with scores.json, scores.csv, figures/")


COMMANDS = [blocks_command, promote_command, crossvalidate_command]
