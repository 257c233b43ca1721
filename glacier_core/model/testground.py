"""Keeping the ground that judges where it is, before a retraining shares blocks out anew."""

from __future__ import annotations

import json
import logging
import tempfile
from pathlib import Path

from mlflow.exceptions import MlflowException

from glacier_core.config import Project
from glacier_core.dataset.blocks import RECORD, TABLE, present_blocks, write_blocks
from glacier_core.dataset.loading import Dataset
from glacier_core.errors import InputError, ServiceError
from glacier_core.model.comparison import seen_in_training
from glacier_core.model.fetching import fetch
from glacier_core.model.predictor import DESCRIPTION, ModelDescription
from glacier_core.model.registry import CHAMPION
from glacier_core.model.tracking import STORE_ERRORS, connect, tracking_uri

logger = logging.getLogger(__name__)


def keep_test_ground(project: Project) -> list[str]:
    """Record the blocks that a champion can be compared on, as `glacier blocks --record` does.

    A new scene may move blocks that are not recorded, so that the champion would have been trained
    on ground that judges, and nothing could be compared. Nothing is recorded without a dataset
    split by blocks, without a champion, or where the champion has seen test ground already: what is
    on record stays.

    Returns:
        Names of the blocks that are new on record.

    Raises:
        ServiceError: MLflow cannot be reached.
    """
    if project.postprocess.split != "blocks" or not (project.dataset_folder / TABLE).exists():
        return []
    try:
        blocks, recorded = present_blocks(project)
        dataset = Dataset.open(project.dataset_folder)
    except InputError as error:  # a dataset of before: the record that it does not keep to stays
        logger.warning("the blocks of the dataset are not recorded: %s", error)
        return []
    if blocks == recorded:
        return []
    champion = _champion(project)
    if champion is None:
        return []
    version, description = champion
    seen = seen_in_training(description, dataset)
    if seen:
        logger.warning(
            "the blocks of the dataset are not recorded: the champion (version %s) was trained on "
            "ground of its test split, in block %s",
            version,
            ", ".join(seen),
        )
        return []
    write_blocks(project.root / RECORD, blocks)
    fresh = sorted(set(blocks) - set(recorded))
    logger.info("%s: %d blocks, %d new; commit it", RECORD, len(blocks), len(fresh))
    return fresh


def _champion(project: Project) -> tuple[str, ModelDescription] | None:
    """Version and description of the champion; None where there is none."""
    name = project.train.tracking.model_name
    try:
        version = connect(project).get_registered_model(name).aliases.get(CHAMPION)
    except STORE_ERRORS as error:
        if isinstance(error, MlflowException) and error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise ServiceError(f"MLflow at {tracking_uri(project.root)}: {error}") from error
    if version is None:
        return None
    with tempfile.TemporaryDirectory() as place:
        fetch(project, f"models:/{name}/{version}", Path(place))
        found = next(Path(place).rglob(DESCRIPTION), None)
        if found is None:
            raise InputError(f"models:/{name}/{version}: holds no {DESCRIPTION}")
        return str(version), ModelDescription.from_json(json.loads(found.read_text()))
