"""Fitting the network: epochs, checkpoints, the best by dev IoU."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from glacier_core.config import Project
from glacier_core.dataset.loading import Dataset
from glacier_core.dataset.sampling import Crops, ShuffledEpoch, jittered
from glacier_core.dataset.slicing import IGNORED
from glacier_core.errors import InputError
from glacier_core.files import whole_file
from glacier_core.model.losses import Loss, make_loss
from glacier_core.model.metrics import confusion, scores
from glacier_core.model.predictor import (
    DESCRIPTION,
    WEIGHTS,
    ModelDescription,
    Predictor,
    save_model,
    save_tensors,
)
from glacier_core.model.schedule import learning_rate
from glacier_core.model.scoring import predict_split
from glacier_core.model.unet import Architecture, GlacierModel

logger = logging.getLogger(__name__)

HISTORY = "history.csv"
_LAST = "last.safetensors"
_STEPS_UNASKED = 20
Row = dict[str, float | str]


class Observer(Protocol):
    """Told how a training goes, for example to log it."""

    def begin(self, description: ModelDescription, past: list[Row]) -> None: ...
    def epoch(self, row: Row) -> None: ...
    def end(self, error: BaseException | None) -> None: ...


@dataclass
class _State:
    """Where a training stands; `last.safetensors` holds it after every epoch."""

    done: int = 0
    best: float = -math.inf
    waited: int = 0
    rows: list[Row] = field(default_factory=list)


def _finite(total: Tensor, epoch: int) -> float:
    """A sum of losses, if it is one.

    Raises:
        InputError: the training diverged.
    """
    value = total.item()
    if not math.isfinite(value):
        raise InputError(
            f"the loss is {value} in epoch {epoch + 1}: the training diverged. "
            "Lower train.learning_rate in params.yaml, or set precision: float32"
        )
    return value


def _shown(score: float | str) -> str:
    return score if isinstance(score, str) else f"{score:.3f}"


def describe(project: Project, dataset: Dataset) -> ModelDescription:
    """Everything that a model trained with these settings on this dataset will carry."""
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
        "params": params.model_dump(exclude={"run_name", "loader_workers"}),
        "conf": conf.model_dump(exclude={"tracking"}),
        "dataset": dataset.fingerprint,
    }
    text = json.dumps(settings, sort_keys=True)
    used = {sample.scene for sample in dataset.splits["train"]}
    return ModelDescription(
        channels=dataset.channels,
        classes=dataset.class_names,
        means=statistics["means"],
        standard_deviations=statistics["standard_deviations"],
        impute=dataset.impute,
        architecture=Architecture(
            depth=params.depth,
            base_channels=params.base_channels,
            dropout=params.dropout,
            dropout_at=conf.model.dropout_at,
            spatial_dropout=conf.model.spatial_dropout,
            normalisation=conf.model.normalisation,
        ),
        dataset=dataset.fingerprint,
        training=hashlib.sha256(text.encode()).hexdigest(),
        sources=[project.scene(name).img_path for name in sorted(used)],
        predicted=dataset.predicted_by(),
        predicted_share=dataset.predicted_share,
    )


class _Trainer:
    """One training, from the first step or from the last checkpoint."""

    def __init__(self, project: Project, dataset: Dataset) -> None:
        self.params, self.conf, self.seed = project.params.train, project.train, project.params.seed
        self.dataset = dataset
        self.folder = project.run_folder / "models"
        self.checkpoints = self.folder / "checkpoints"
        self.description = describe(project, dataset)
        torch.manual_seed(self.seed)
        self.predictor = Predictor(
            self.description, self.description.build(), self.conf.device, self.conf.precision
        )
        self.model: GlacierModel = self.predictor.model
        self.device = self.predictor.device
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[self.conf.optimizer]
        self.optimizer = kind(
            self.model.parameters(),
            lr=self.params.learning_rate,
            weight_decay=self.params.weight_decay,
        )
        weights = [self.params.class_weights[name] for name in dataset.class_names]
        self.loss: Loss = make_loss(
            self.conf.loss, weights, self.params.label_smoothing, self.device
        )
        size = self.params.crop_size or project.params.slice.size
        crops = Crops(dataset, self.params, self.conf.augment, size, self.seed)
        self.sampler = ShuffledEpoch(len(crops), self.seed)
        self.loader = DataLoader(
            crops,
            batch_size=self.params.batch_size,
            sampler=self.sampler,
            num_workers=self.params.loader_workers,
            persistent_workers=self.params.loader_workers > 0,
            pin_memory=self.device.type == "cuda",
            # Its own: drawing from the one that dropout uses, once for processes that live on and
            # once an epoch for others, the number of processes or a restart would change results.
            generator=torch.Generator(),
        )
        self.state = _State()

    def train_epoch(self) -> tuple[float, float]:
        """One pass over the crops; mean loss and images a second."""
        epoch = self.state.done
        self.sampler.epoch = epoch
        # Dropout and jitter start afresh each epoch, so that a resumed run repeats them.
        torch.manual_seed(self.seed * 1_000_003 + epoch)
        jitter = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        dev = [
            -math.inf if isinstance(row["dev_mean_ice_iou"], str) else row["dev_mean_ice_iou"]
            for row in self.state.rows
        ]
        self.model.train()
        images, started = 0, time.perf_counter()
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        bar = tqdm(
            total=len(self.sampler),
            desc=f"epoch {epoch + 1}/{self.params.epochs}",
            unit=" images",
            disable=None,
            leave=False,
        )
        for step, (image, label) in enumerate(self.loader):
            for group in self.optimizer.param_groups:
                # The middle of the step: the first one of a warm-up is not lost to a rate of 0.
                moment = epoch + (step + 0.5) / len(self.loader)
                group["lr"] = learning_rate(self.conf.schedule, self.params, moment, dev)
            x = image.to(self.device, non_blocking=True).permute(0, 3, 1, 2)  # channels last
            y = label.to(self.device, non_blocking=True)
            x = jittered(self.model.normalise(x), self.params.gain, self.params.offset, jitter)
            with torch.autocast(
                self.device.type,
                self.predictor.autocast or torch.bfloat16,
                enabled=self.predictor.autocast is not None,
            ):
                logits = self.model.network(x)
            loss = self.loss(logits, y) + self._penalty()
            self.optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.params.clip_gradient)
            self.optimizer.step()
            total += loss.detach() * len(image)
            images += len(image)
            # A loss that is asked for is waited for: now and then, or a GPU would run dry.
            if step % _STEPS_UNASKED == 0:
                bar.set_postfix(loss=f"{_finite(total, epoch) / images:.4f}", refresh=False)
            bar.update(len(image))
        bar.close()
        return _finite(total, epoch) / images, images / (time.perf_counter() - started)

    def run_epoch(self) -> Row:
        """Train, score, keep the best, save; the row of `history.csv`."""
        loss, speed = self.train_epoch()
        row: Row = {"epoch": self.state.done + 1, "loss": loss, **self.dev_scores()}
        row["learning_rate"] = self.optimizer.param_groups[0]["lr"]
        score = row["dev_mean_ice_iou"]
        self.state.rows.append(row)
        self.state.done += 1
        # Undefined only if the model and the labels agree that there is no ice at all.
        if isinstance(score, float) and score > self.state.best:
            self.state.best, self.state.waited = score, 0
            save_model(self.checkpoints, self.description, self.model)
        else:
            self.state.waited += 1
        self.save()
        logger.info(
            "epoch %d/%d: loss %.4f, dev IoU %s, %.1f images/s",
            self.state.done,
            self.params.epochs,
            loss,
            ", ".join(f"{c} {_shown(row[f'dev_{c}_iou'])}" for c in self.dataset.classes),
            speed,
        )
        return {**row, "images_per_second": speed}

    def finish(self) -> None:
        """Bring the best checkpoint out of its folder, and clear the folder.

        Copied, so that a run that is stopped here can be finished by the next. The description
        goes first and comes last: without it nobody takes the new weights for the old model's.
        """
        rows = self.state.rows
        (self.folder / DESCRIPTION).unlink(missing_ok=True)
        with whole_file(self.folder / HISTORY) as beside, beside.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        for name in (WEIGHTS, DESCRIPTION):
            with whole_file(self.folder / name) as beside:
                shutil.copyfile(self.checkpoints / name, beside)
        (self.checkpoints / _LAST).unlink()  # the first to go: what is left of it ends nothing
        shutil.rmtree(self.checkpoints)
        best = max(rows, key=lambda row: -1.0 if isinstance(row["dev_mean_ice_iou"], str)
                   else row["dev_mean_ice_iou"])  # fmt: skip
        logger.info(
            "finished after %d epochs; the best is epoch %d, dev mean IoU of the ice %s",
            self.state.done,
            int(best["epoch"]),
            _shown(best["dev_mean_ice_iou"]),
        )

    def _penalty(self) -> Tensor:
        weights = [p for p in self.model.parameters() if p.ndim > 1]
        penalty = torch.zeros((), device=self.device)
        if self.params.l1 > 0:
            penalty = penalty + self.params.l1 * torch.stack([w.abs().sum() for w in weights]).sum()
        if self.params.l2 > 0:
            penalty = penalty + self.params.l2 * torch.stack([(w**2).sum() for w in weights]).sum()
        return penalty

    def dev_scores(self) -> Row:
        """Scores of the dev split, every valid pixel once."""
        self.model.eval()
        names = self.dataset.class_names
        matrix = np.zeros((len(names), len(names)), dtype=np.int64)
        for _, truth, probability in predict_split(self.predictor, self.dataset, "dev"):
            matrix += confusion(truth, probability.argmax(axis=0).astype(np.uint8), len(names))
        result: Row = {}
        for name, values in scores(matrix, names).items():
            for key, value in values.items():
                if key != "pixels":
                    result[f"dev_{name}_{key}" if name != "all" else f"dev_{key}"] = value
        return result

    # --- Checkpoints ---

    def save(self) -> None:
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for number, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{key}": value for key, value in state.items()}
        tensors = {name: value.contiguous().cpu() for name, value in tensors.items()}
        note = {"state": json.dumps(asdict(self.state)), "training": self.description.training}
        save_tensors(self.checkpoints / _LAST, tensors, note)

    def resume(self) -> None:
        """Continue from the last checkpoint if it is of this very training."""
        path = self.checkpoints / _LAST
        if not path.exists():
            return
        with safe_open(path, framework="pt") as file:
            note = file.metadata()
            if note["training"] != self.description.training:
                logger.info("%s: is of other settings or data; starting afresh", path)
                return
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        self.state = _State(**json.loads(note["state"]))
        self.model.load_state_dict(
            {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}
        )
        optimizer = self.optimizer.state_dict()
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, number, key = name.split(".")
                optimizer["state"].setdefault(int(number), {})[key] = value
        self.optimizer.load_state_dict(optimizer)
        logger.info("resuming after epoch %d", self.state.done)


def _require_ice(dataset: Dataset, split: str) -> None:
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


def train(project: Project, observers: Sequence[Observer] = ()) -> ModelDescription:
    """Fit the U-Net; write `data/runs/{run_name}/models` and `/logs`.

    `models/` gets the weights best on dev (`model.safetensors`), what they need
    (`model.json`) and the scores by epoch (`history.csv`); `logs/` gets TensorBoard events.
    While it runs, `models/checkpoints/` holds where it stands: a run that was stopped
    continues from its last epoch, to the result it would have had.

    Raises:
        InputError: the dataset is missing or cannot be learnt from, or the training diverges.
    """
    dataset = Dataset.open(project.dataset_folder)
    for split in ("train", "dev"):
        _require_ice(dataset, split)
    trainer = _Trainer(project, dataset)
    trainer.resume()
    state, params = trainer.state, trainer.params
    parameters = sum(p.numel() for p in trainer.model.parameters())
    logger.info(
        "training %s: %d slices, %d parameters, on %s in %s",
        params.run_name,
        len(dataset.splits["train"]),
        parameters,
        trainer.device,
        trainer.predictor.autocast or "float32",
    )
    board = _Board(project.run_folder / "logs")
    watching: list[Observer] = [board, *observers]
    for observer in watching:
        observer.begin(trainer.description, state.rows)
    error: BaseException | None = None
    try:
        while state.done < params.epochs and state.waited < params.patience:
            row = trainer.run_epoch()
            for observer in watching:
                observer.epoch(row)
        trainer.finish()
    except BaseException as stopped:
        error = stopped
        raise
    finally:
        for observer in watching:
            observer.end(error)
    return trainer.description


class _Board:
    """TensorBoard events of one run, written anew when it is resumed: a kill loses some."""

    def __init__(self, folder: Path) -> None:
        if folder.exists():
            shutil.rmtree(folder)
        self._writer = SummaryWriter(str(folder))

    def begin(self, description: ModelDescription, past: list[Row]) -> None:  # noqa: ARG002
        for row in past:
            self.epoch(row)

    def epoch(self, row: Row) -> None:
        for key, value in row.items():
            if isinstance(value, float) and key != "epoch":
                self._writer.add_scalar(key, value, int(row["epoch"]))

    def end(self, error: BaseException | None) -> None:  # noqa: ARG002
        self._writer.close()
