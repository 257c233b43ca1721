"""Fitting the network: epochs, checkpoints, the best by dev IoU."""

from __future__ import annotations

import csv
import logging
import math
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from glacier_core.config import Project
from glacier_core.dataset.augmentation import altered
from glacier_core.dataset.loading import Dataset
from glacier_core.dataset.sampling import Crops, ShuffledBatches
from glacier_core.errors import InputError
from glacier_core.files import whole_file, write_json
from glacier_core.model.averaging import AveragedWeights
from glacier_core.model.beginning import describe, require_ice, require_shared
from glacier_core.model.board import Board
from glacier_core.model.calibration import calibrate
from glacier_core.model.checkpoints import (
    LAST,
    Row,
    State,
    read_checkpoint,
    restore,
    save_checkpoint,
)
from glacier_core.model.distributed import Processes, joined
from glacier_core.model.metrics import confusion, scores
from glacier_core.model.objective import Objective
from glacier_core.model.predictor import (
    DESCRIPTION,
    WEIGHTS,
    ModelDescription,
    Predictor,
    save_model,
)
from glacier_core.model.schedule import learning_rate
from glacier_core.model.scoring import predict_split
from glacier_core.model.starting import start_of
from glacier_core.model.unet import GlacierModel, compiled
from glacier_core.threads import in_threads

logger = logging.getLogger(__name__)

HISTORY = "history.csv"
_STEPS_UNASKED = 20


class Observer(Protocol):
    """Told how a training goes, for example to log it."""

    def begin(self, description: ModelDescription, past: list[Row]) -> None: ...
    def epoch(self, row: Row) -> None: ...
    def end(self, error: BaseException | None) -> None: ...


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


class _Trainer:
    """One training, from the first step or from the last checkpoint."""

    def __init__(self, project: Project, dataset: Dataset, processes: Processes) -> None:
        self.processes = processes
        self.params, self.conf, self.seed = project.params.train, project.train, project.params.seed
        self.dataset = dataset
        self.folder = project.run_folder / "models"
        self.checkpoints = self.folder / "checkpoints"
        start = start_of(project, dataset)
        self.description = describe(project, dataset, start)
        require_shared(processes, self.params.batch_size, self.description.training)
        torch.manual_seed(self.seed)
        self.predictor = Predictor(
            self.description, self.description.build(), self.conf.device, self.conf.precision
        )
        self.model: GlacierModel = self.predictor.model
        if start is not None:
            start.give_weights(self.model)
        self.device = self.predictor.device
        self.resumed: dict[str, nn.Module] = {"model": self.model}
        self.average: AveragedWeights | None = None
        # What dev scores judge, and what is kept: the average, where there is one.
        self.judged = self.predictor
        if self.params.ema_decay > 0:
            self.average = AveragedWeights(self.model, self.params.ema_decay)
            self.resumed["average"] = self.average.model
            self.judged = Predictor(
                self.description, self.average.model, self.conf.device, self.conf.precision
            )
        weights = self.description.class_weights
        assert weights is not None  # `describe` settled them
        self.objective = Objective(
            self.conf,
            self.params,
            self.model.network,
            list(weights.values()),
            self.device,
            processes.total,
        )
        self.resumed["objective"] = self.objective
        # What is trained is wrapped; what is saved is not: names of weights stay the network's.
        asked = self.objective.asked(self.model.network)
        self.network = processes.learning_together(asked, self.device)
        if self.conf.compile:
            self.network = compiled(self.network, self.device)
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[self.conf.optimizer]
        self.optimizer = kind(
            self.objective.groups(self.model),
            lr=self.params.learning_rate,
            weight_decay=self.params.weight_decay,
        )
        size = self.params.crop_size or project.params.slice.size
        self.crops = Crops(dataset, self.params, self.conf.augment, size, self.seed)
        self.sampler = ShuffledBatches(
            len(self.crops), self.params.batch_size, processes.part, self.seed
        )
        self.state = State()

    def _read(self, keys: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """A batch of crops; pinned for a GPU, which then fetches it while it works."""
        image, label = self.crops.batch([self.crops[key] for key in keys])
        if self.device.type == "cuda":
            image, label = image.pin_memory(), label.pin_memory()
        return image, label

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch, read ahead.

        By threads: reading and turning leave Python's lock, and between processes each batch would
        be written to shared memory and read from it once more.
        """
        threads = self.params.loader_threads
        return (
            in_threads(self._read, self.sampler, threads)
            if threads
            else map(self._read, self.sampler)
        )

    def train_epoch(self) -> tuple[float, float]:
        """One pass over the crops; mean loss and images a second."""
        epoch = self.state.done
        self.sampler.epoch = epoch
        # Dropout and jitter start afresh each epoch, so that a resumed run repeats them.
        # Each process drops out other values of its own images.
        torch.manual_seed((self.seed + 1_009 * self.processes.rank) * 1_000_003 + epoch)
        jitter = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        dev = [
            -math.inf if isinstance(row["dev_mean_ice_iou"], str) else row["dev_mean_ice_iou"]
            for row in self.state.rows
        ]
        self.model.train()
        layers = self.objective.layers(self.model)
        images, started = 0, time.perf_counter()
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        bar = tqdm(
            total=sum(self.sampler.lengths),
            desc=f"epoch {epoch + 1}/{self.params.epochs}",
            unit=" images",
            disable=None if self.processes.first else True,
            leave=False,
        )
        batches = zip(self.sampler.lengths, self._batches(), strict=True)
        for step, (length, (image, label)) in enumerate(batches):
            for group in self.optimizer.param_groups:
                # The middle of the step: the first one of a warm-up is not lost to a rate of 0.
                moment = epoch + (step + 0.5) / len(self.sampler)
                group["lr"] = learning_rate(self.conf.schedule, self.params, moment, dev)
            x = image.to(self.device, non_blocking=True).permute(0, 3, 1, 2)  # channels last
            y = label.to(self.device, non_blocking=True)
            part = self.processes.part(length)
            x = altered(self.model.normalise(x), self.params, jitter, length, part)
            with torch.autocast(
                self.device.type,
                self.predictor.autocast or torch.bfloat16,
                enabled=self.predictor.autocast is not None,
            ):
                said = self.network(x)
            loss = self.objective(said, y, self.model)
            self.optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(layers, self.params.clip_gradient)
            self.optimizer.step()
            if self.average is not None:
                self.average.update(self.model, epoch * len(self.sampler) + step)
            total += loss.detach() * length
            images += length
            # A loss that is asked for is waited for: now and then, or a GPU would run dry.
            if step % _STEPS_UNASKED == 0:
                bar.set_postfix(loss=f"{_finite(total, epoch) / images:.4f}", refresh=False)
            bar.update(length)
        bar.close()
        return _finite(total, epoch) / images, images / (time.perf_counter() - started)

    def run_epoch(self) -> Row:
        """Train, score, keep the best, save; the row of `history.csv`."""
        loss, speed = self.train_epoch()
        row: Row = {"epoch": self.state.done + 1, "loss": loss, **self.dev_scores()}
        row["learning_rate"] = self.optimizer.param_groups[0]["lr"]
        row |= self.objective.learned()
        score = row["dev_mean_ice_iou"]
        self.state.rows.append(row)
        self.state.done += 1
        # Undefined only if the model and the labels agree that there is no ice at all.
        if isinstance(score, float) and score > self.state.best:
            self.state.best, self.state.waited = score, 0
            if self.processes.first:
                save_model(self.checkpoints, self.description, self.judged.model)
        else:
            self.state.waited += 1
        if self.processes.first:
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
        """Bring the best checkpoint out of its folder with its temperature, and clear the folder.

        Copied, so that a run that is stopped here can be finished by the next. The description
        goes first and comes last: without it nobody takes the new weights for the old model's.
        """
        rows = self.state.rows
        best_one = Predictor.load(self.checkpoints, self.conf.device, self.conf.precision)
        by_class = self.conf.calibration == "classes"
        fitted = calibrate(best_one, self.dataset, self.seed, by_class=by_class)
        self.description = replace(
            self.description, temperature=fitted.temperature, offsets=fitted.offsets
        )
        (self.folder / DESCRIPTION).unlink(missing_ok=True)
        with whole_file(self.folder / HISTORY) as beside, beside.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        with whole_file(self.folder / WEIGHTS) as beside:
            shutil.copyfile(self.checkpoints / WEIGHTS, beside)
        write_json(self.folder / DESCRIPTION, self.description.to_json())
        (self.checkpoints / LAST).unlink()  # the first to go: what is left of it ends nothing
        shutil.rmtree(self.checkpoints)
        best = max(rows, key=lambda row: -1.0 if isinstance(row["dev_mean_ice_iou"], str)
                   else row["dev_mean_ice_iou"])  # fmt: skip
        logger.info(
            "finished after %d epochs; the best is epoch %d, dev mean IoU of the ice %s",
            self.state.done,
            int(best["epoch"]),
            _shown(best["dev_mean_ice_iou"]),
        )

    def dev_scores(self) -> Row:
        """Scores of the dev split, every valid pixel once; each process predicts some slices."""
        self.judged.model.eval()
        names = self.dataset.class_names
        matrix = np.zeros((len(names), len(names)), dtype=np.int64)
        for _, truth, probability in predict_split(
            self.judged,
            self.dataset,
            "dev",
            first=self.processes.rank,
            step=self.processes.count,
        ):
            matrix += confusion(truth, probability.argmax(axis=0).astype(np.uint8), len(names))
        matrix = self.processes.total(torch.from_numpy(matrix)).numpy()
        result: Row = {}
        for name, values in scores(matrix, names).items():
            for key, value in values.items():
                if key != "pixels":
                    result[f"dev_{name}_{key}" if name != "all" else f"dev_{key}"] = value
        return result

    def save(self) -> None:
        save_checkpoint(
            self.checkpoints, self.description.training, self.state, self.resumed, self.optimizer
        )

    def resume(self) -> None:
        """Continue from the last checkpoint if it is of this very training."""
        found = None
        if self.processes.first:
            found = read_checkpoint(self.checkpoints, self.description.training)
        found = self.processes.from_first(found)
        if found is not None:
            self.state, tensors = found
            restore(tensors, self.resumed, self.optimizer)
            logger.info("resuming after epoch %d", self.state.done)


def train(project: Project, observers: Sequence[Observer] = ()) -> ModelDescription:
    """Fit the U-Net; write `data/runs/{run_name}/models` and `/logs`.

    `models/` gets the weights best on dev (`model.safetensors`), what they need
    (`model.json`) and the scores by epoch (`history.csv`); `logs/` gets TensorBoard events.
    While it runs, `models/checkpoints/` holds where it stands: a run that was stopped
    continues from its last epoch, to the result it would have had.

    Where PyTorch's launcher started several processes, each calls this, and they train together:
    only the first writes, and tells the observers.

    Raises:
        InputError: the dataset is missing or cannot be learnt from, the training diverges, or the
            processes cannot share a batch.
    """
    with joined(project.train.device) as processes:
        if not processes.first:
            logging.getLogger("glacier_core").setLevel(logging.WARNING)
        return _train(project, observers, processes)


def _train(
    project: Project, observers: Sequence[Observer], processes: Processes
) -> ModelDescription:
    dataset = Dataset.open(project.dataset_folder)
    for split in ("train", "dev"):
        require_ice(dataset, split)
    trainer = _Trainer(project, dataset, processes)
    trainer.resume()
    state, params = trainer.state, trainer.params
    parameters = sum(p.numel() for p in trainer.model.parameters())
    logger.info(
        "training %s: %d slices, %d parameters, on %s in %s%s",
        params.run_name,
        len(dataset.splits["train"]),
        parameters,
        trainer.device,
        trainer.predictor.autocast or "float32",
        f", by {processes.count} processes" if processes.count > 1 else "",
    )
    watching: list[Observer] = []
    if processes.first:
        watching = [Board(project.run_folder / "logs"), *observers]
    for observer in watching:
        observer.begin(trainer.description, state.rows)
    error: BaseException | None = None
    try:
        while state.done < params.epochs and state.waited < params.patience:
            row = trainer.run_epoch()
            for observer in watching:
                observer.epoch(row)
        if processes.first:
            trainer.finish()
    except BaseException as stopped:
        error = stopped
        raise
    finally:
        for observer in watching:
            observer.end(error)
    return trainer.description
