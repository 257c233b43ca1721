"""Make a user of the MLflow server, or give one a new password or the right to train.

    python users.py NAME [--password-file FILE] [--trains]     (asks for the password otherwise)

As whom: MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, an administrator of the server at
MLFLOW_TRACKING_URI. Users see everything and change what they made themselves; with --trains also
the runs and the registered model of the project in the working folder, which are the worker's.
"""

from __future__ import annotations

import argparse
import getpass
import os
import sys
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.server import get_app_client

from glacier_core.config import Project
from glacier_core.errors import InputError


def ensure_user(client: Any, name: str, password: str) -> bool:
    """Make sure that a user exists and has this password.

    Returns:
        Whether the user is new.

    Raises:
        MlflowException: the server is away, or refuses.
    """
    try:
        client.create_user(name, password)
        return True
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    # Whoever changes his own must give the one that he has.
    own = os.environ.get("MLFLOW_TRACKING_USERNAME") == name
    current = os.environ.get("MLFLOW_TRACKING_PASSWORD") if own else None
    client.update_user_password(name, password, current)
    return False


def let_train(client: Any, uri: str, name: str) -> None:
    """Give a user the right to change the project's runs and registered model.

    Raises:
        InputError: nothing was trained yet, so there is nothing to give rights on.
        MlflowException: the server is away, or refuses.
    """
    names = Project(Path()).train.tracking
    experiment = MlflowClient(uri).get_experiment_by_name(names.experiment)
    if experiment is None:
        raise InputError(
            f"MLflow has no experiment {names.experiment}: let the worker train once, so that it "
            "is the worker's, and call this again"
        )
    client.grant_user_permission(name, "experiment", experiment.experiment_id, "EDIT")
    client.grant_user_permission(name, "registered_model", names.model_name, "EDIT")


def main() -> int:
    """Read the arguments; 0 on success, 1 or 2 with one line of error otherwise."""
    parser = argparse.ArgumentParser(description="Make a user of MLflow, or change one.")
    parser.add_argument("name")
    parser.add_argument("--password-file", type=Path, help="instead of asking for the password")
    parser.add_argument("--trains", action="store_true", help="may add runs and model versions")
    words = parser.parse_args()
    if words.password_file:
        password = words.password_file.read_text().strip()
    else:
        password = getpass.getpass(f"New password of {words.name} (12 characters or more): ")
    uri = os.environ["MLFLOW_TRACKING_URI"]
    client = get_app_client("basic-auth", tracking_uri=uri)
    try:
        new = ensure_user(client, words.name, password)
        print(f"MLflow: user {words.name} {'made' if new else 'exists; password set'}")
        if words.trains:
            let_train(client, uri, words.name)
            print(f"MLflow: {words.name} may add runs and model versions")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except MlflowException as error:
        print(f"error: MLflow at {uri}: {str(error).splitlines()[0]}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
