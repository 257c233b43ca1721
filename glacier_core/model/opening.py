"""Opening a trained model for use, from the registry or from its folder."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from glacier_core.config import Project
from glacier_core.errors import InputError, ServiceError
from glacier_core.model.predictor import DESCRIPTION, WEIGHTS, Predictor

_FETCH = "glacier_core.model.fetching"


def open_model(project: Project, uri: str) -> tuple[str, Predictor]:
    """A trained model for use, and a name that says which one.

    Args:
        project: whose store is asked, and whose conf/train.yaml says on what it runs.
        uri: `models:/name@alias`, `models:/name/version`, or a folder with `model.safetensors`
            and `model.json`.

    Returns:
        Name (`models:/name/version`, or folder and fingerprint) and predictor. Weights and description alone
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
        predictor = Predictor.load(folder, conf.device, conf.precision)
        return f"{uri} (training {predictor.description.training[:8]})", predictor
    with tempfile.TemporaryDirectory() as place:
        name = _fetched(project, uri, Path(place))
        found = next(Path(place).rglob(DESCRIPTION), None)
        if found is None:
            raise InputError(f"{uri}: holds no {DESCRIPTION}; it is not a model of this pipeline")
        try:
            return name, Predictor.load(found.parent, conf.device, conf.precision)
        except InputError as error:
            # The folder that it names is gone by then.
            raise InputError(f"{name}: is no whole model ({error}); register it anew") from error


def _fetched(project: Project, uri: str, place: Path) -> str:
    # In a process of its own: MLflow takes a quarter of a gigabyte, which whoever maps a large
    # scene wants for it.
    done = subprocess.run(
        # -P: from where this package lies, whatever lies in the working folder.
        [sys.executable, "-P", "-m", _FETCH, str(project.store_root), uri, str(place)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode == 0:
        return done.stdout.splitlines()[-1]
    said = done.stderr.strip().splitlines() or [f"ended with {done.returncode}"]
    raise (InputError if done.returncode == 2 else ServiceError)(said[-1])
