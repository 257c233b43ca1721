"""The registered model: MLflow runs this file to load it (models from code, no pickle)."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import numpy.typing as npt
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from glacier_core.model.predictor import DESCRIPTION, WEIGHTS, Predictor


class _Tiles:
    """What the served model does. Apart from MLflow's base class, which takes the type hints of
    a `predict` defined beside it for a schema and warns at every load that they are none.
    """

    def load_context(self, context: PythonModelContext) -> None:
        # MLflow keeps each artifact where it likes; the predictor wants them side by side.
        with tempfile.TemporaryDirectory() as folder:
            for key, name in (("weights", WEIGHTS), ("description", DESCRIPTION)):
                shutil.copyfile(context.artifacts[key], Path(folder, name))
            self.predictor = Predictor.load(Path(folder))

    def predict(  # type: ignore[no-untyped-def]
        self,
        context: PythonModelContext,  # noqa: ARG002
        model_input,  # without a hint, which would be taken for a schema too
        params: dict[str, Any] | None = None,  # noqa: ARG002
    ) -> dict[str, npt.NDArray[np.float32]]:
        """Predict tiles of any batch, height and width.

        Args:
            model_input: `{"pixels": array}` (or the array itself): float32 (batch, channels,
                height, width), raw band values, NaN where unseen.

        Returns:
            `{"probabilities": array}`: float32 (batch, classes, height, width), background
            first, NaN where unseen.
        """
        pixels = model_input["pixels"] if isinstance(model_input, dict) else model_input
        return {"probabilities": self.predictor.probabilities(np.asarray(pixels))}


class GlacierUNet(_Tiles, PythonModel):
    """Raw bands in, class probabilities out; channels and statistics travel with it."""


mlflow.models.set_model(GlacierUNet())
