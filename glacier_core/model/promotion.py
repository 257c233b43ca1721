"""Which model is champion: challenger against champion, one decision at a time, and back again."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from glacier_core.config import Project
from glacier_core.dataset.loading import Dataset
from glacier_core.errors import InputError, ServiceError
from glacier_core.model.alone import alone, now, who
from glacier_core.model.bootstrap import units_needed
from glacier_core.model.comparison import (
    check_comparable,
    hash_of_test,
    matrices_of,
    seen_in_training,
    units_of,
)
from glacier_core.model.fetching import fetch
from glacier_core.model.predictor import DESCRIPTION, Predictor
from glacier_core.model.registry import CHALLENGER, CHAMPION, PREVIOUS
from glacier_core.model.tracking import STORE_ERRORS, connect, run_url, tracking_uri
from glacier_core.model.verdict import Decision, Verdict, judge, write_report

logger = logging.getLogger(__name__)

TAG = "glacier.promotion"
_ROLLED_BACK = f"{TAG}.rolled_back"
REPORT = "promotion"
"""Folder of the report among the artifacts of the challenger's run."""


@dataclass(frozen=True)
class Rollback:
    """A step back: which version is champion again, and instead of which."""

    model: str
    champion: str
    instead_of: str


def promote(
    project: Project, *, challenger: str | None, wait: float, force: str | None
) -> Decision:
    """Compare a challenger with the champion on the test split, and promote it if it is better.

    Better is: mean IoU over the ice classes by `promotion.margin`, the lower end of the interval
    of a paired bootstrap over pieces of ground above zero, and no class worse by more than
    `promotion.tolerance`. The decision becomes tags of the version, and a report in its run.
    Called again, it comes to the same decision and changes nothing further.

    Args:
        project: whose test split and settings judge, and whose store is asked.
        challenger: version; None for the one with the alias `challenger`. Without any, or where
            it is champion already, nothing is compared.
        wait: seconds to wait while another promotion, rollback or registration runs.
        force: why the challenger shall be champion whatever the verdict, which is kept with it.

    Raises:
        InputError: there is no such version or no champion; a model cannot be judged on this test
            split, or has seen its ground in training (unless forced).
        ServiceError: MLflow cannot be reached, or another of them runs. Nothing has changed.
    """
    if force is not None and not force.strip():
        raise InputError("--force: expected a reason, which is kept with the model; found none")
    name, params = project.train.tracking.model_name, project.params.promotion
    with alone(project, "promotion", wait):
        with _asking(project):
            client = connect(project)
            aliases = _aliases(client, project, name)
            champion = aliases.get(CHAMPION)
            if champion is None:
                raise InputError(
                    f"{name} has no champion to compare with; give a version the alias "
                    f"`{CHAMPION}` in MLflow ({tracking_uri(project.root)})"
                )
            version = challenger or aliases.get(CHALLENGER) or champion
            run = _run_of(client, name, version)
            if version == champion:
                if aliases.get(CHALLENGER) == version:  # a promotion was stopped before this
                    client.delete_registered_model_alias(name, CHALLENGER)
                why = "that is the version asked for" if challenger else "there is no challenger"
                return Decision(name, "champion", version, "", champion, [why], [], None, 0, "",
                                params, "", "", now(), run[1])  # fmt: skip
        dataset = Dataset.open(project.dataset_folder)
        verdict, units, kind, warnings = _compare(
            project, dataset, {champion: "champion", version: "challenger"}, forced=bool(force)
        )
        forced = bool(force) and bool(verdict.against)
        better = not verdict.against
        decision = Decision(
            model=name,
            outcome="forced" if forced else "promoted" if better else "kept",
            version=version,
            against=champion,
            champion=version if forced or better else champion,
            reasons=verdict.against,
            warnings=warnings,
            verdict=verdict,
            units=units,
            unit_kind=kind,
            params=params,
            test_hash=hash_of_test(dataset),
            forced=f"{who()}: {force}" if forced else "",
            date=now(),
            run_url=run[1],
        )
        with _asking(project):
            # Whoever shares the store from another machine does not see our lock.
            present = _aliases(client, project, name).get(CHAMPION)
            if present != champion:
                raise ServiceError(
                    f"while version {version} was compared with champion {champion}, version {present} "
                    "became champion; run `glacier promote` again"
                )
            _record(client, run[0], decision)
            if decision.champion == version:
                _crown(client, name, version, champion)
    logger.info("%s", decision.summary)
    return decision


def rollback(project: Project, *, wait: float) -> Rollback:
    """Make the version that was champion before the present one champion again.

    One step: the alias `previous` goes with it, so that a repeated call changes nothing.

    Args:
        project: whose store is asked.
        wait: as for `promote`.

    Raises:
        InputError: there is no version to go back to.
        ServiceError: as for `promote`.
    """
    name = project.train.tracking.model_name
    with alone(project, "rollback", wait), _asking(project):
        client = connect(project)
        aliases = _aliases(client, project, name)
        champion, previous = aliases.get(CHAMPION), aliases.get(PREVIOUS)
        if previous is None or champion is None or previous == champion:
            if previous is not None and previous == champion:  # a rollback was stopped here
                client.delete_registered_model_alias(name, PREVIOUS)
            raise InputError(
                f"{name}: there is no version to go back to: no other version has the alias "
                f"`{PREVIOUS}`, and version {champion or 'none'} is champion. One step back is "
                "kept; for another version, `glacier promote --challenger VERSION --force WHY`."
            )
        client.set_model_version_tag(
            name, champion, _ROLLED_BACK, f"{now()} by {who()}: {previous} is champion again"
        )
        client.set_registered_model_alias(name, CHAMPION, previous)
        client.delete_registered_model_alias(name, PREVIOUS)
    logger.info("%s version %s is champion again, instead of %s", name, previous, champion)
    return Rollback(name, previous, champion)


def _compare(
    project: Project, dataset: Dataset, roles: dict[str, str], *, forced: bool
) -> tuple[Verdict, int, str, list[str]]:
    """The verdict, number and kind of units, and warnings.

    Args:
        project: whose store holds the models.
        dataset: whose test split judges.
        roles: `champion` and `challenger`, in this order, by version.
        forced: whether ground seen in training is a warning instead of an error.
    """
    name, params = project.train.tracking.model_name, project.params.promotion
    if not dataset.splits["test"]:
        raise InputError(f"{dataset.folder}: the test split is empty; nothing can be compared")
    problems, warnings = [], []
    if dataset.leaky:
        problems.append("the split is random, so that training ground is in the test split")
    models = []
    for version, role in roles.items():
        predictor = _open(project, f"models:/{name}/{version}")
        check_comparable(f"{name} version {version}", predictor.description, dataset)
        seen = seen_in_training(predictor.description, dataset)
        if seen is None:
            warnings.append(
                f"version {version} ({role}) does not say which blocks it was trained on: nobody "
                "can tell whether it has seen the test split's ground"
            )
        elif seen:
            problems.append(
                f"version {version} ({role}) was trained on ground of the test split, in block "
                f"{', '.join(seen)}"
            )
        taught = predictor.description.taught_in_words()
        if taught is not None:
            warnings.append(f"version {version} ({role}) {taught}")
        models.append(predictor)
    if problems and not forced:
        raise InputError(
            f"the comparison would not be fair: {'; '.join(problems)}. Train both on this dataset, "
            "and keep its test blocks (`glacier blocks --record`); or --force WHY, and it is "
            "written beside the numbers."
        )
    units = units_of(dataset, units_needed(params.confidence))
    old, new = (
        matrices_of(predictor, dataset, units.names, role)
        for predictor, role in zip(models, roles.values(), strict=True)
    )
    verdict = judge(old, new, dataset.class_names, params, project.params.seed)
    # What is only there by force speaks against the challenger, however good its numbers.
    verdict.against.extend(problems)
    if verdict.absent:
        warnings.append(f"not in the test split, not judged: {', '.join(verdict.absent)}")
    return verdict, units.count, units.kind, warnings


def _open(project: Project, uri: str) -> Predictor:
    """A registered model. As `opening.open_model`, but MLflow is in this process already."""
    conf = project.train
    with tempfile.TemporaryDirectory() as place:
        fetch(project, uri, Path(place))
        found = next(Path(place).rglob(DESCRIPTION), None)
        if found is None:
            raise InputError(f"{uri}: holds no {DESCRIPTION}; it is not a model of this pipeline")
        return Predictor.load(found.parent, conf.device, conf.precision)


# --- MLflow ----------------------------------------------------------------------------------


@contextmanager
def _asking(project: Project) -> Iterator[None]:
    """What MLflow raises as what users are told."""
    try:
        yield
    except STORE_ERRORS as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ServiceError(
            f"MLflow at {tracking_uri(project.root)}: {text}. Run the command again when it is "
            "back; what was done half is then done whole."
        ) from error


def _aliases(client: MlflowClient, project: Project, name: str) -> dict[str, str]:
    """Version by alias."""
    try:
        aliases = client.get_registered_model(name).aliases
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise InputError(
            f"{name}: no such model at {tracking_uri(project.root)}; `glacier register` first"
        ) from error
    return {alias: str(version) for alias, version in aliases.items()}


def _run_of(client: MlflowClient, name: str, version: str) -> tuple[str, str]:
    """Id and URL of the run of a version."""
    try:
        run_id = client.get_model_version(name, version).run_id
    except MlflowException as error:
        if error.error_code not in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
            raise
        raise InputError(f"{name} has no version {version!r} ({error.message})") from error
    if run_id is None:
        raise InputError(f"{name} version {version} has no run, which the report belongs to")
    return run_id, run_url(client.get_run(run_id).info.experiment_id, run_id)


def _record(client: MlflowClient, run_id: str, decision: Decision) -> None:
    """The report into the run, the numbers into tags of the version."""
    with tempfile.TemporaryDirectory() as place:
        write_report(Path(place), decision)
        client.log_artifacts(run_id, place, REPORT)
    assert decision.verdict is not None
    interval = decision.verdict.interval
    differences = {name: round(v["difference"], 6) for name, v in decision.verdict.iou.items()}
    tags: dict[str, Any] = {
        f"{TAG}.difference": f"{differences.pop('mean_ice'):+.6f}",
        f"{TAG}.interval": f"{interval.lower:+.6f} {interval.upper:+.6f}" if interval else "none",
        f"{TAG}.by_class": json.dumps(differences),
        f"{TAG}.units": f"{decision.units} {decision.unit_kind}",
        f"{TAG}.test_hash": decision.test_hash,
        f"{TAG}.against": decision.against,
        f"{TAG}.date": decision.date,
        f"{TAG}.reasons": "; ".join(decision.reasons),
        f"{TAG}.warnings": "; ".join(decision.warnings),
        f"{TAG}.forced": decision.forced,
        TAG: decision.outcome,
    }
    for key, value in tags.items():
        client.set_model_version_tag(decision.model, decision.version, key, value)


def _crown(client: MlflowClient, name: str, version: str, champion: str) -> None:
    """Move the aliases. Stopped anywhere in between, the next call goes on from there."""
    if _ROLLED_BACK in client.get_model_version(name, version).tags:
        client.delete_model_version_tag(name, version, _ROLLED_BACK)
    client.set_registered_model_alias(name, PREVIOUS, champion)
    client.set_registered_model_alias(name, CHAMPION, version)
    if str(client.get_registered_model(name).aliases.get(CHALLENGER)) == version:
        client.delete_registered_model_alias(name, CHALLENGER)
