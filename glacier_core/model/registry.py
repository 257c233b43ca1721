"""The registered model: versions, champion and challenger."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import tempfile
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow import MlflowClient
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

from glacier_core.config import Project
from glacier_core.errors import InputError, ServiceError
from glacier_core.files import write_json
from glacier_core.model.alone import alone
from glacier_core.model.card import CARD, model_card
from glacier_core.model.evaluation import METRICS
from glacier_core.model.predictor import DESCRIPTION, WEIGHTS, ModelDescription
from glacier_core.model.tracking import (
    STORE_ERRORS,
    connect,
    lineage,
    lock_stages,
    log_epochs,
    open_run,
    run_url,
    tracking_uri,
)
from glacier_core.model.training import HISTORY

logger = logging.getLogger(__name__)

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
# MLflow's databases hold descriptions of so many characters; the whole card is in the run.
_LONGEST = 5000
_KEY, _ANNOUNCED = "glacier.train_key", "glacier.announced"


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def train_key(project: Project, description: ModelDescription) -> str:
    """What makes one trained model another: the hash of DVC's `train` entry.

    Where the model on disk is not the one that DVC recorded (trained by hand), the training
    fingerprint stands in.
    """
    entry = lock_stages(project.root).get("train")
    weights = project.run_folder / "models" / WEIGHTS
    if entry:
        relative = weights.relative_to(project.root).as_posix()
        recorded = {out["path"]: out.get("md5") for out in entry.get("outs", [])}
        actual = hashlib.md5(weights.read_bytes(), usedforsecurity=False).hexdigest()
        if recorded.get(relative) == actual:
            return _hash(entry)
    return description.training


@dataclass(frozen=True)
class Registration:
    """A registered model version.

    Attributes:
        model, version: as MLflow names them.
        alias: `champion`, `challenger`, `previous` (champion before the present one), or empty
            where another took it over.
        run_id, run_url: its run; the URL is for the UI's address on this machine.
        key: see `train_key`.
        new: whether this call made it.
    """

    model: str
    version: str
    alias: str
    run_id: str
    run_url: str
    key: str
    new: bool


def register(project: Project, wait: float = 600) -> Registration:
    """Register the trained model as a version of `glacier-unet`, once.

    The first version becomes `champion`; later ones `challenger`. A training that was logged
    while it ran keeps its run; one restored from DVC's cache, or trained while MLflow was
    away, gets a run from its files. Called again it changes nothing and returns the same.

    Args:
        project: whose model.
        wait: seconds to wait while another registration or a promotion runs.

    Raises:
        InputError: there is no trained model, or the evaluation is of another.
        ServiceError: MLflow cannot be reached, or another of these runs.
    """
    models, evaluation = project.run_folder / "models", project.evaluation_folder
    for path, step in ((models / DESCRIPTION, "train"), (evaluation / METRICS, "evaluate")):
        if not path.exists():
            raise InputError(f"{path}: no such file; run `glacier {step}` first")
    description = ModelDescription.from_json(json.loads((models / DESCRIPTION).read_text()))
    judged = json.loads((evaluation / METRICS).read_text())["protocol"]["training"]
    if judged != description.training:
        raise InputError(
            f"{evaluation / METRICS}: judges another model than {models}; run `glacier evaluate`"
        )
    key = train_key(project, description)
    name = project.train.tracking.model_name
    try:
        with alone(project, "registration", wait):
            client = connect(project)
            existing = _find_version(client, name, key)
            run_id = existing.run_id if existing else _complete_run(client, project, description)
            version = existing or _log_model(client, project, description, run_id, key)
            if _ANNOUNCED not in version.tags:
                _give_alias(client, name, version.version)
            result = _registration(client, name, version, key, new=existing is None)
    except STORE_ERRORS as error:
        raise ServiceError(
            f"MLflow at {tracking_uri(project.root)}: {str(error).splitlines()[0]}. The model "
            f"stays in {models}; run `glacier register` again when MLflow is back."
        ) from error
    # No run id or version in it: these differ from store to store, and DVC records this file.
    write_json(project.root / "data/registration.json", {"model": name, "key": key})
    logger.info(
        "%s version %s (%s)%s",
        name,
        result.version,
        result.alias or "no alias",
        "" if result.new else ", registered before",
    )
    return result


def registered(project: Project) -> Registration | None:
    """The version of the model on disk, None where there is none yet; changes nothing.

    Raises:
        ServiceError: MLflow cannot be reached.
    """
    path = project.run_folder / "models" / DESCRIPTION
    description = ModelDescription.from_json(json.loads(path.read_text()))
    key, name = train_key(project, description), project.train.tracking.model_name
    try:
        client = connect(project)
        version = _find_version(client, name, key)
        return None if version is None else _registration(client, name, version, key, new=False)
    except STORE_ERRORS as error:
        raise ServiceError(f"MLflow at {tracking_uri(project.root)}: {error}") from error


def _registration(
    client: MlflowClient, name: str, version: Any, key: str, *, new: bool
) -> Registration:
    run = client.get_run(version.run_id).info
    return Registration(
        model=name,
        version=str(version.version),
        alias=_alias_of(client, name, version.version),
        run_id=version.run_id,
        run_url=run_url(run.experiment_id, version.run_id),
        key=key,
        new=new,
    )


def _find_version(client: MlflowClient, name: str, key: str) -> Any:
    versions = client.search_model_versions(f"name = '{name}' and tags.`{_KEY}` = '{key}'")
    return versions[0] if versions else None


def _alias_of(client: MlflowClient, name: str, version: str) -> str:
    aliases = client.get_registered_model(name).aliases  # search_model_versions returns none
    held = [alias for alias, holder in aliases.items() if str(holder) == str(version)]
    return CHAMPION if CHAMPION in held else ", ".join(sorted(held))


def _complete_run(client: MlflowClient, project: Project, description: ModelDescription) -> str:
    """The run of this training with all that belongs to it, from the files on disk."""
    run_id = open_run(client, project, description)
    # As the run was begun, the temperature was not known.
    client.log_dict(run_id, description.to_json(), DESCRIPTION)
    client.log_metric(run_id, "temperature", description.temperature)
    for name, offset in zip(description.classes, description.offsets or [], strict=False):
        client.log_metric(run_id, f"offset_{name}", offset)
    with (project.run_folder / "models" / HISTORY).open(newline="") as file:
        log_epochs(client, run_id, list(csv.DictReader(file)))
    metrics = json.loads((project.evaluation_folder / METRICS).read_text())
    for method in ("unet", "forest", "threshold"):
        prefix = "test" if method == "unet" else f"test_{method}"
        for name, values in metrics.get(method, {}).items():
            for score, value in values.items():
                if isinstance(value, (int, float)) and score != "pixels":
                    label = score if name == "all" else f"{name}_{score}"
                    client.log_metric(run_id, f"{prefix}_{label}", value)
    client.set_tag(run_id, "split", f"{metrics['protocol']['split']}"
                   + (" (leaky)" if metrics["protocol"]["leaky"] else ""))  # fmt: skip
    for tag, value in lineage(project).items():
        if tag.startswith("dvc."):
            client.set_tag(run_id, tag, value)
    client.log_artifacts(run_id, str(project.evaluation_folder), "evaluation")
    for part in (WEIGHTS, DESCRIPTION, HISTORY):
        client.log_artifact(run_id, str(project.run_folder / "models" / part), "checkpoints")
    if (project.root / "dvc.lock").exists():
        client.log_artifact(run_id, str(project.root / "dvc.lock"), "data")
    client.set_terminated(run_id, "FINISHED")
    return run_id


def _log_model(
    client: MlflowClient, project: Project, description: ModelDescription, run_id: str, key: str
) -> Any:
    models = project.run_folder / "models"
    channels, classes = len(description.channels), len(description.classes)
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype("float32"), (-1, channels, -1, -1), "pixels")]),
        outputs=Schema([TensorSpec(np.dtype("float32"), (-1, classes, -1, -1), "probabilities")]),
    )
    # Each channel at its mean: a valid tile of raw values.
    means = np.array(description.means, dtype=np.float32)[None, :, None, None]
    name = project.train.tracking.model_name
    package = Path(__file__).parents[1]
    metadata = {k: v for k, v in asdict(description).items() if k != "blocks"}
    metrics = json.loads((project.evaluation_folder / METRICS).read_text())
    card, page = model_card(project, description, metrics)
    client.log_text(run_id, page, CARD)
    with tempfile.TemporaryDirectory() as place, mlflow.start_run(run_id=run_id):
        described = Path(place) / DESCRIPTION
        write_json(described, description.to_json())
        logged = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(Path(__file__).with_name("serving.py")),
            artifacts={"weights": str(models / WEIGHTS), "description": str(described)},
            signature=signature,
            input_example={"pixels": np.broadcast_to(means, (1, channels, 16, 16)).copy()},
            code_paths=[str(package)],
            pip_requirements=_requirements(),
            metadata={**metadata, "key": key},
        )
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(
            name, description="Clean and debris-covered ice from Landsat: raw bands in, "
            "class probabilities out, normalisation inside",
        )  # fmt: skip
    return client.create_model_version(
        name,
        source=logged.model_uri,
        # A server tells by it who may; a file of one's own does not ask.
        model_id=logged.model_id,
        run_id=run_id,
        description=f"{_in_words(project, description)}\n\n{card}"[:_LONGEST],
        tags={_KEY: key, "dataset": description.dataset, **description.marks()},
    )


def _give_alias(client: MlflowClient, name: str, version: str) -> None:
    """Make a new version champion or challenger, once: the tag says that it was done."""
    aliases = client.get_registered_model(name).aliases
    if str(version) not in map(str, aliases.values()):
        alias = CHALLENGER if CHAMPION in aliases else CHAMPION
        client.set_registered_model_alias(name, alias, version)
    client.set_model_version_tag(name, version, _ANNOUNCED, "true")


def _in_words(project: Project, description: ModelDescription) -> str:
    """How good a version is, for the list of versions in the UI."""
    metrics = json.loads((project.evaluation_folder / METRICS).read_text())
    scores = (
        f"{name} {value if isinstance(value, str) else format(value, '.3f')}"
        for name, value in ((n, metrics["unet"][n]["iou"]) for n in project.postprocess.classes)
    )
    leaky = ", LEAKY" if metrics["protocol"]["leaky"] else ""
    taught = description.taught_in_words()
    return f"Test IoU: {', '.join(scores)} (split by {metrics['protocol']['split']}{leaky})" + (
        f"; {taught}" if taught else ""
    )


def _requirements() -> list[str]:
    return [
        f"{name}=={version(name).split('+')[0]}"
        for name in ("mlflow", "numpy", "torch", "safetensors")
    ]
