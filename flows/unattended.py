"""Runs whose worker is gone are crashed, so that the next one may start: `python -m flows.unattended`.

A worker that is killed, or loses its machine, can tell Prefect nothing: its run would be Running for
ever. Runs give signs of life (`prefect.toml`), and an automation of the server ends those that stop.
Called at each set-up; what is there already is brought up to date.
"""

from __future__ import annotations

import sys
from datetime import timedelta

from prefect.automations import Automation
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification

NAME = "Runs whose worker is gone"
SILENCE = 300.0
"""Seconds without a sign of life after which a run is crashed: five of `prefect.toml`. As long as
Prefect's lease of a deployment's one place, which nobody renews then."""

_ALIVE = "prefect.flow-run.heartbeat"
# A worker may die after it has taken a run, and before the run is Running.
_TAKEN = {f"prefect.flow-run.{name}" for name in ("Pending", "Submitting")}
_NEXT = {
    f"prefect.flow-run.{name}"
    for name in ("Running", "Completed", "Failed", "Crashed", "Cancelled", "Scheduled",
                 "AwaitingRetry")
}  # fmt: skip


def end_silent_runs(seconds: float = SILENCE) -> None:
    """Have the server crash runs that gave no sign of life for so long."""
    wanted = Automation(
        name=NAME,
        description="flows/unattended.py",
        trigger=EventTrigger(
            after={_ALIVE} | _TAKEN,
            expect={_ALIVE} | _NEXT,
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,  # fewer than one of these
            within=timedelta(seconds=seconds),
        ),
        actions=[
            ChangeFlowRunState(
                name=None,
                force=False,
                state=StateType.CRASHED,
                message=f"no sign of life for {seconds:g} s: its worker, or the machine, is gone. "
                "The next run goes on from where it stood.",
            )
        ],
    )
    with get_client(sync_client=True) as client:
        known = client.read_automations_by_name(NAME)
    if known:
        wanted.id = known[0].id
        wanted.update()
    else:
        wanted.create()
    print(f"{NAME}: crashed after {seconds:g} s of silence")


if __name__ == "__main__":
    end_silent_runs(*(float(word) for word in sys.argv[1:]))
