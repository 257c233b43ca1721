"""What a training is made of, checked before it begins."""

from __future__ import annotations

import hashlib
import json
import logging

from glacier_core.config import Project
from glacier_core.dataset.blocks import ground_by_block
from glacier_core.dataset.composition import balanced_weights
from glacier_core.dataset.loading import Dataset
from glacier_core.dataset.slicing import IGNORED
from glacier_core.errors import InputError
from glacier_core.model.distributed import Processes
from glacier_core.model.predictor import ModelDescription
from glacier_core.model.starting import Start
from glacier_core.model.unet import Architecture

logger = logging.getLogger(__name__)


def describe(project: Project, dataset: Dataset, start: Start | None) -> ModelDescription:
    """Everything that a model trained with these settings on this dataset will carry.

    Args:
        project: its settings.
        dataset: what it is trained on.
        start: whose weights it begins with; see `start_of`.
    """
    params, conf = project.params.train, project.train
    path = project.root / project.postprocess.statistics_path
    try:
        statistics = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; run `glacier postprocess` first") from None
    if statistics["dataset"] != dataset.fingerprint:
        raise InputError(
            f"{path}: belongs to another dataset than {dataset.folder}; "
            "run `glacier postprocess` again"
        )
    settings = {
        "seed": project.params.seed,
        "params": params.model_dump(exclude={"run_name", "loader_threads"}),
        # By what it holds, not by its name: an alias may mean another model tomorrow.
        "conf": conf.model_dump(exclude={"tracking", "start_from"}),
        "start_from": start.description.training if start else None,
        "dataset": dataset.fingerprint,
    }
    text = json.dumps(settings, sort_keys=True)
    weights = params.class_weights
    if weights == "balanced":
        weights = balanced_weights(dataset)
        said = ", ".join(f"{name} {weight:.3f}" for name, weight in weights.items())
        logger.info("weights of the classes: %s", said)
    used = {sample.scene for sample in dataset.splits["train"]}
    return ModelDescription(
        channels=dataset.channels,
        classes=dataset.class_names,
        means=statistics["means"],
        standard_deviations=statistics["standard_deviations"],
        impute=dataset.impute,
        clip=params.clip,
        architecture=Architecture(
            depth=params.depth,
            base_channels=params.base_channels,
            coarsening=params.coarsening,
            dropout=params.dropout,
            dropout_at=conf.model.dropout_at,
            spatial_dropout=conf.model.spatial_dropout,
            normalisation=conf.model.normalisation,
            blocks=conf.model.blocks,
            attention=conf.model.attention,
            heads=conf.model.heads,
        ),
        dataset=dataset.fingerprint,
        training=hashlib.sha256(text.encode()).hexdigest(),
        sources=[project.scene(name).img_path for name in sorted(used)],
        predicted=dataset.predicted_by(),
        predicted_share=dataset.predicted_share,
        class_weights={name: weights[name] for name in dataset.class_names},
        started_from=start.name if start else None,
        blocks=_seen(dataset, start),
    )


def _seen(dataset: Dataset, start: Start | None) -> dict[str, str]:
    """Ground that a model of this dataset knows, by block, as WKT: what trains, what chooses, and
    what the weights that it begins with say they have seen."""
    before = (start.description.blocks or {}) if start else {}
    grounds = ground_by_block(dataset, ("train", "dev"))
    return {f"{name} (before)": wkt for name, wkt in before.items()} | {
        name: ground.wkt for name, ground in grounds.items()
    }


def require_ice(dataset: Dataset, split: str) -> None:
    """The best checkpoint is chosen by the IoU of ice: the dev split must show some."""
    if not dataset.splits[split]:
        raise InputError(f"the {split} split is empty; training needs one to choose by")
    for sample in dataset.splits[split]:
        label = dataset.label(split, sample)
        if ((label > 0) & (label != IGNORED)).any():
            return
    raise InputError(
        f"the {split} split shows no pixel of {', '.join(dataset.classes)}, so there is nothing to "
        "choose the best model by. Choose another seed, block_km or split."
    )


def require_shared(processes: Processes, batch_size: int, training: str) -> None:
    """Processes that learn together need equal parts of the same work."""
    if batch_size % processes.count:
        raise InputError(
            f"params.yaml: train.batch_size {batch_size} is that of all processes together, and "
            f"{processes.count} cannot share it evenly; set a multiple of {processes.count}, or "
            "start another number of processes"
        )
    if processes.from_first(training) != training:
        raise InputError(
            f"process {processes.rank} found other settings or another dataset than process 0: "
            "give all machines the same project folder"
        )
