"""Opening a trained model for use, from the registry or from its folder."""

# Imports little: who maps large scenes wants the memory for them.

from __future__ import annotations

import tempfile
from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException

from glacier_core.config import Project
from glacier_core.errors import InputError, ServiceError
from glacier_core.model.predictor import DESCRIPTION, WEIGHTS, Predictor
from glacier_core.model.tracking import STORE_ERRORS, connect, tracking_uri

# What MLflow answers where a name, version or alias does not exist, or cannot be one.
_NO_SUCH_MODEL = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "NOT_FOUND"}


def open_model(project: Project, uri: str) -> tuple[str, Predictor]:
    """A trained model for use, and a name that says which one.

    Args:
        project: whose store is asked, and whose conf/train.yaml says on what it runs.
        uri: `models:/name@alias`, `models:/name/version`, or a folder with `model.safetensors`
            and `model.json`.

    Returns:
        Name (`models:/name/version`, or the folder) and predictor. Weights and description alone
        are read: no code or pickle that the registry holds is run.

    Raises:
        InputError: there is no such model, or it is not one of ours.
        ServiceError: MLflow cannot be reached.
    """
    conf = project.train
    if not uri.startswith("models:/"):
        folder = project.root / uri
        if not folder.is_dir():
            raise InputError(
                f"{uri}: no such folder; a model is a folder with {WEIGHTS} and {DESCRIPTION}, or "
                "registered: models:/NAME@ALIAS or models:/NAME/VERSION"
            )
        return uri, Predictor.load(folder, conf.device, conf.precision)
    name, at, alias = uri.removeprefix("models:/").partition("@")
    version = alias
    try:
        client = connect(project)
        if at:
            version = client.get_model_version_by_alias(name, alias).version
        else:
            name, _, version = name.partition("/")
            client.get_model_version(name, version)
        with tempfile.TemporaryDirectory() as place:
            found = mlflow.artifacts.download_artifacts(
                f"models:/{name}/{version}/artifacts", dst_path=place
            )
            predictor = Predictor.load(Path(found), conf.device, conf.precision)
    except MlflowException as error:
        if error.error_code in _NO_SUCH_MODEL:
            raise InputError(
                f"{uri}: no such model at {tracking_uri(project.root)} "
                f"({str(error).splitlines()[0]}). `dvc repro` trains and registers one; a folder "
                f"with a model will do, too (--model {project.run_folder / 'models'})."
            ) from error
        raise ServiceError(f"MLflow at {tracking_uri(project.root)}: {error}") from error
    except STORE_ERRORS as error:
        raise ServiceError(f"MLflow at {tracking_uri(project.root)}: {error}") from error
    return f"models:/{name}/{version}", predictor
