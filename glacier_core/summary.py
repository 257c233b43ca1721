"""What came out, and where it lies."""

from __future__ import annotations

import json

from glacier_core.config import Project
from glacier_core.errors import InputError
from glacier_core.model.evaluation import table
from glacier_core.model.registry import registered


def _maps(project: Project) -> str:
    """Where maps and reports lie, as far as there are any."""
    lines = ""
    for pattern, what in (
        ("reports/*.html", "maps to switch, pan and zoom (any browser)"),
        ("outlines/*/*_glaciers.gpkg", "glaciers with areas, for QGIS"),
        ("change/*/change.csv", "what came and went"),
    ):
        if any((project.root / "data").glob(pattern)):
            lines += f"  {'data/' + pattern:<41} {what}\n"
    return lines


def summarise(project: Project) -> str:
    """Scores beside the baselines, the registered version, and where to look next.

    Raises:
        InputError: nothing was evaluated yet.
    """
    path = project.evaluation_folder / "metrics.json"
    if not path.exists():
        raise InputError(f"{path}: no such file; run `dvc repro` first")
    metrics = json.loads(path.read_text())
    protocol = metrics["protocol"]
    known = registered(project)
    model = (
        f"{known.model} version {known.version} ({known.alias or 'no alias'})"
        if known
        else ("not registered; run `glacier register`")
    )
    page = known.run_url if known else "http://127.0.0.1:5000"
    ground = (
        ": it LEAKS, training saw the same ground and scores are too good"
        if protocol["leaky"]
        else " that training never saw"
    )
    return f"""
{table(metrics)}

  unet       the trained model: {model}
  forest     a random forest, pixel by pixel, on the same channels
  threshold  {protocol["threshold_rule"]}; it tells nothing else apart
  Test: {protocol["test_slices"]} slices in {protocol["test_blocks"]} block(s) of ground \
(split: {protocol["split"]}){ground}

Look at
{_maps(project)}  {project.evaluation_folder}/figures/      maps beside outlines, curves, baselines (PNG)
  {project.dataset_folder}/slices.geojson   what went into which split, for QGIS
  MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false mlflow server --workers 1 \\
    --backend-store-uri sqlite:///mlflow.db --port 5000    then open
  {page}
  tensorboard --logdir data/runs

Use it
  mlflow.pyfunc.load_model("models:/{project.train.tracking.model_name}@champion")
Next: your own scenes, `glacier configure --help`; README.md says how."""
