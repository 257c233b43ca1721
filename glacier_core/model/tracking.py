"""MLflow runs: what a training was made of, and how it went."""

from __future__ import annotations

import logging
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from glacier_core.config import Project
from glacier_core.model.predictor import DESCRIPTION, ModelDescription

if TYPE_CHECKING:
    from glacier_core.model.checkpoints import Row

# Before MLflow is imported: it reads these once. Nothing is sent anywhere.
for _name, _value in {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_MODEL_CATALOG_URI": "",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # Its default of 7 waits for a server that is away for four minutes at every request.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
}.items():
    os.environ.setdefault(_name, _value)

import mlflow  # noqa: E402
from alembic.util.exc import CommandError  # noqa: E402  (comes with MLflow)
from mlflow import MlflowClient  # noqa: E402
from mlflow.data.meta_dataset import MetaDataset  # noqa: E402
from mlflow.data.sources import LocalArtifactDatasetSource  # type: ignore[attr-defined]  # noqa: E402
from mlflow.entities import Metric  # noqa: E402
from mlflow.exceptions import MlflowException  # noqa: E402
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID  # noqa: E402
from sqlalchemy.exc import SQLAlchemyError  # noqa: E402

# MLflow sets its own level when it is imported.
logging.getLogger("mlflow").setLevel(logging.WARNING)
logger = logging.getLogger(__name__)

STORE_ERRORS = (MlflowException, SQLAlchemyError, CommandError, ImportError, OSError)
"""What a store raises that is away, damaged, full, of a newer MLflow, being made, or lacks its driver."""

_TRAINING, _CROSSVALIDATION = "glacier.training", "glacier.crossvalidation"
_URI = "MLFLOW_TRACKING_URI"


def tracking_uri(root: Path) -> str:
    """`MLFLOW_TRACKING_URI`, or an SQLite file in the project's folder."""
    return os.environ.get(_URI) or f"sqlite:///{home(root) / 'mlflow.db'}"


def home(root: Path) -> Path:
    """The folder of the store: `dvc exp run --temp` and `--queue` work in a copy of the project
    that is thrown away, and say where the project itself is.
    """
    return Path(os.environ.get("DVC_ROOT") or root).resolve()


def connect(project: Project) -> MlflowClient:
    """Point MLflow at the project's store and experiment, creating what is missing."""
    root = project.root.resolve()
    uri = tracking_uri(root)
    given = os.environ.get(_URI)
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    if given is None:
        # MLflow sets it for child processes; here it would be the next project's store too.
        os.environ.pop(_URI, None)
    client = MlflowClient()
    name = project.train.tracking.experiment
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        # Next to the database when that is ours; a server decides for itself.
        place = (home(root) / "mlartifacts").as_uri() if uri.startswith("sqlite:") else None
        identity = client.create_experiment(
            name,
            artifact_location=place,
            # So that the UI shows this as model training, not as GenAI.
            tags={"mlflow.experimentKind": "custom_model_development"},
        )
    else:
        identity = experiment.experiment_id
    mlflow.set_experiment(experiment_id=identity)
    return client


# --- Where a model comes from ----------------------------------------------------------------


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", *words], cwd=root, capture_output=True, text=True, check=False, timeout=30
    )
    return done.stdout.strip() if done.returncode == 0 else ""


def lock_stages(root: Path) -> dict[str, Any]:
    path = root / "dvc.lock"
    if not path.exists():
        return {}
    stages: dict[str, Any] = (yaml.safe_load(path.read_text()) or {}).get("stages", {})
    return stages


def lineage(project: Project) -> dict[str, str]:
    """Tags that say which code and which data: git commit, and DVC's hash of each data set."""
    tags = {
        "git.commit": _git(project.root, "rev-parse", "HEAD") or "none",
        "git.dirty": str(bool(_git(project.root, "status", "--porcelain"))).lower(),
    }
    # Hashes by scene are in dvc.lock, which is kept with the run.
    made = lock_stages(project.root).get("postprocess", {}).get("outs", [])
    tags |= {f"dvc.{Path(out['path']).name}": out.get("md5", "") for out in made}
    return tags


def _flat(prefix: str, value: Any) -> dict[str, str]:
    if isinstance(value, Mapping) and value:
        return {
            k: v for key, inner in value.items() for k, v in _flat(f"{prefix}.{key}", inner).items()
        }
    return {prefix: str(value)}


def hyperparameters(project: Project) -> dict[str, str]:
    """Every parameter and method, flat, as MLflow compares them."""
    return {
        "seed": str(project.params.seed),
        **_flat("mask", project.params.mask.model_dump()),
        **_flat("slice", project.params.slice.model_dump()),
        **_flat("postprocess", project.params.postprocess.model_dump()),
        **_flat("postprocess", project.postprocess.model_dump(exclude={"assign"})),
        **_flat("train", project.params.train.model_dump()),
        **_flat("train", project.train.model_dump(exclude={"tracking"})),
        **_flat("evaluate", project.params.evaluate.model_dump()),
    }


def run_url(experiment_id: str, run_id: str) -> str:
    """Address of a run in the UI, in its view for model training."""
    uri = os.environ.get(_URI, "")
    served = uri if uri.startswith("http") else "http://127.0.0.1:5000"
    base = os.environ.get("GLACIER_MLFLOW_UI", served).rstrip("/")
    return f"{base}/#/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning"


# --- A run, while it trains and afterwards ---------------------------------------------------


def _find_run(client: MlflowClient, project: Project, training: str) -> str | None:
    experiment = client.get_experiment_by_name(project.train.tracking.experiment)
    assert experiment is not None  # `connect` made it
    found = client.search_runs(
        [experiment.experiment_id], f"tags.`{_TRAINING}` = '{training}'", max_results=1
    )
    return found[0].info.run_id if found else None


@dataclass(frozen=True)
class Within:
    """What the trainings of a cross-validation are run within: below one run, in the project's store.

    Attributes:
        project: whose store and history of code and data.
        name: of the cross-validation and its run.
        run: name of the training's run.
        tags: of the training's run.
    """

    project: Project
    name: str
    run: str
    tags: Mapping[str, str]

    def key(self, training: str) -> str:
        """What its run is found by; never the run of the same training in the pipeline."""
        return f"{self.run} {training}"


def open_parent(client: MlflowClient, project: Project, name: str, tags: Mapping[str, str]) -> str:
    """Start the run of a cross-validation, or the one already there."""
    experiment = client.get_experiment_by_name(project.train.tracking.experiment)
    assert experiment is not None  # `connect` made it
    known = client.search_runs(
        [experiment.experiment_id], f"tags.`{_CROSSVALIDATION}` = '{name}'", max_results=1
    )
    made = {**tags, **lineage(project), _CROSSVALIDATION: name}
    run = (
        known[0] if known else client.create_run(experiment.experiment_id, tags=made, run_name=name)
    )
    identity: str = run.info.run_id
    return identity


def open_run(
    client: MlflowClient,
    project: Project,
    description: ModelDescription,
    within: Within | None = None,
) -> str:
    """Start the run of a training, or the one already there; below that of a cross-validation."""
    training = description.training if within is None else within.key(description.training)
    known = _find_run(client, within.project if within else project, training)
    if known is not None:
        return known
    tags = {"dataset": description.dataset, **description.marks()}
    if within is None:
        run_name = project.params.train.run_name
        tags |= lineage(project)
    else:
        run_name = within.run
        shared = {key: within.tags[key] for key in ("protocol", "leaky")}
        parent = open_parent(client, within.project, within.name, shared)
        tags |= {**lineage(within.project), **within.tags, MLFLOW_PARENT_RUN_ID: parent}
    with mlflow.start_run(run_name=run_name, tags=tags) as run:
        parameters = hyperparameters(project)
        if description.class_weights:  # params.yaml may leave them to the dataset
            parameters |= _flat("train.class_weights", description.class_weights)
        mlflow.log_params(parameters)
        mlflow.log_dict(description.to_json(), DESCRIPTION)
        mlflow.log_artifact(str(project.root / project.postprocess.statistics_path), "data")
        for name in ("params.yaml", "conf/masking_paths.yaml", "conf/postprocess.yaml",
                     "conf/train.yaml"):  # fmt: skip
            mlflow.log_artifact(str(project.root / name), "settings")
        place = LocalArtifactDatasetSource(str(project.dataset_folder))
        digest = description.dataset[:8]
        slices = MetaDataset(place, name="slices", digest=digest)  # type: ignore[abstract]
        mlflow.log_input(slices, context="training")
        # Last, so that a run that could not be begun properly is never taken for this one.
        mlflow.set_tag(_TRAINING, training)
        identity: str = run.info.run_id
    return identity


def log_epochs(
    client: MlflowClient, run_id: str, rows: Sequence[Mapping[str, float | str]]
) -> None:
    """Log the rows of `history.csv` that a run does not have yet, each row at once."""
    known = {metric.step for metric in client.get_metric_history(run_id, "loss")}
    for row in rows:
        step = int(float(row["epoch"]))
        if step in known:
            continue
        now, metrics = time.time_ns() // 1_000_000, []
        for key, value in row.items():
            try:
                metrics.append(Metric(key, float(value), now, step))
            except ValueError:  # undefined: the class does not occur
                continue
        client.log_batch(run_id, [metric for metric in metrics if metric.key != "epoch"])


def log_crossvalidation(
    project: Project,
    name: str,
    tags: Mapping[str, str],
    scores: Mapping[str, float],
    trainings: Sequence[tuple[Within, str, Mapping[str, float]]],
    files: Sequence[Path],
) -> None:
    """Log the scores of a cross-validation into its run, and those of each training into its own.

    Args:
        project: whose store.
        name, tags: see `open_parent`.
        scores: of all folds together, by metric.
        trainings: where each belongs, its fingerprint, and its scores.
        files: and folders that the run keeps.
    """
    client = connect(project)
    now = time.time_ns() // 1_000_000
    for within, training, values in trainings:
        run_id = _find_run(client, project, within.key(training))
        if run_id is not None:  # None: the store was away while it trained
            client.log_batch(run_id, [Metric(key, value, now, 0) for key, value in values.items()])
    parent = open_parent(client, project, name, tags)
    client.log_batch(parent, [Metric(key, value, now, 0) for key, value in scores.items()])
    for path in files:
        if path.is_dir():
            client.log_artifacts(parent, str(path), path.name)
        else:
            client.log_artifact(parent, str(path))
    client.set_terminated(parent, "FINISHED")


class RunLogger:
    """An observer of training that writes the MLflow run as it goes.

    Training never fails for MLflow's sake: whatever could not be logged is written by
    `register` from the files of the run.
    """

    def __init__(self, project: Project, within: Within | None = None) -> None:
        self._project, self._within = project, within
        self._client: MlflowClient | None = None
        self._run_id = ""
        self._open = False

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
        except STORE_ERRORS as error:
            logger.warning("MLflow cannot be reached; `glacier register` will log: %s", error)
            self._client = None

    def begin(self, description: ModelDescription, past: list[Row]) -> None:
        def start() -> None:
            within = self._within
            self._client = client = connect(within.project if within else self._project)
            self._run_id = open_run(client, self._project, description, within)
            mlflow.enable_system_metrics_logging()
            mlflow.set_system_metrics_sampling_interval(5)
            mlflow.start_run(run_id=self._run_id)
            self._open = True
            log_epochs(client, self._run_id, past)
            logger.info("MLflow run %s", self._run_id)

        self._try(start)

    def epoch(self, row: Row) -> None:
        if (client := self._client) is not None:
            self._try(lambda: log_epochs(client, self._run_id, [row]))

    def end(self, error: BaseException | None) -> None:
        if self._open:
            broken = "FAILED" if isinstance(error, Exception) else "KILLED"
            status = "FINISHED" if error is None else broken
            self._try(lambda: mlflow.end_run(status))
