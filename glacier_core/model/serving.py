"""The registered model: MLflow runs this file to load it (models from code, no pickle)."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import mlflow
import numpy as np
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from glacier_core.model.predictor import DESCRIPTION, WEIGHTS, Predictor


class GlacierUNet(PythonModel):
    """Raw bands in, class probabilities out; channels and statistics travel with it."""

    def load_context(self, context: PythonModelContext) -> None:
        # MLflow keeps each artifact where it likes; the predictor wants them side by side.
        with tempfile.TemporaryDirectory() as folder:
            for key, name in (("weights", WEIGHTS), ("description", DESCRIPTION)):
                shutil.copyfile(context.artifacts[key], Path(folder, name))
            self.predictor = Predictor.load(Path(folder))

    # Without type hints: MLflow would take them for a schema, and warn at every load.
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # noqa: ARG002
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


mlflow.models.set_model(GlacierUNet())
