"""The verbs of the command line that decide which model is used, and on which ground they judge."""

from __future__ import annotations

import click

from glacier_core.config import Project
from glacier_core.errors import InputError


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


COMMANDS = [blocks_command, promote_command]
