"""Fetching a registered model's files; run as a process of its own by `opening`."""

from __future__ import annotations

import sys
from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException

from glacier_core.config import Project
from glacier_core.errors import InputError, ServiceError
from glacier_core.model.tracking import STORE_ERRORS, connect, tracking_uri

# What MLflow answers where a name, version or alias does not exist, or cannot be one.
_NO_SUCH_MODEL = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "NOT_FOUND"}


def fetch(project: Project, uri: str, place: Path) -> str:
    """Bring the artifacts of a registered model into a folder.

    Args:
        project: whose store is asked.
        uri: `models:/name@alias` or `models:/name/version`.
        place: the folder.

    Returns:
        The model by version, `models:/name/version`.

    Raises:
        InputError: there is no such model.
        ServiceError: MLflow cannot be reached.
    """
    name, at, alias = uri.removeprefix("models:/").partition("@")
    version = alias
    try:
        client = connect(project)
        if at:
            version = client.get_model_version_by_alias(name, alias).version
        else:
            name, _, version = name.partition("/")
            client.get_model_version(name, version)
        mlflow.artifacts.download_artifacts(
            f"models:/{name}/{version}/artifacts", dst_path=str(place)
        )
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
    return f"models:/{name}/{version}"


if __name__ == "__main__":
    root, wanted, target = sys.argv[1:]
    try:
        print(fetch(Project(Path(root)), wanted, Path(target)))
    except (InputError, ServiceError) as failure:
        print(" ".join(str(failure).split()), file=sys.stderr)  # one line, whatever MLflow said
        sys.exit(2 if isinstance(failure, InputError) else 1)
