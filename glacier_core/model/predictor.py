"""A trained model as files: weights without pickle, and everything needed to use them right."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from glacier_core.errors import InputError
from glacier_core.files import whole_file, write_json
from glacier_core.model.unet import Architecture, GlacierModel, Normalise, UNet, folded

WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"

_LISTED = 50


@dataclass(frozen=True)
class ModelDescription:
    """What a model must never be used without.

    Attributes:
        channels: band names of its input, in order.
        classes: class names of its output, in order, background first.
        means, standard_deviations: of the training split, by channel, in raw units.
        impute: see `Normalise`.
        architecture: of the network.
        dataset: fingerprint of the dataset that it was trained on.
        training: fingerprint of dataset and training settings together.
        sources: images that its training slices were cut from.
        blocks: of each block of ground that it, or the model that it began with, was trained or
            chosen on (train and dev), the polygons as WKT in EPSG:4326; None for a model of before
            that was kept.
        predicted: of the scenes in its training that a model labelled, which model did, above which
            confidence; None for a model of before that was possible.
        predicted_share: of its training pixels, the share with such labels.
        class_weights: of each class in the loss; None for a model of before that was kept.
        started_from: the model whose weights its training began with; None for random ones.
        clip: see `Normalise`; None also of models from before there was one.
        temperature: by which its logits are divided before they become probabilities, see
            `calibration`; 1 for a model of before there was one, and while it is trained.
        offsets: by class, added to its logits once they are divided; None without.
    """

    channels: list[str]
    classes: list[str]
    means: list[float]
    standard_deviations: list[float]
    impute: str | float
    architecture: Architecture
    dataset: str
    training: str
    sources: list[str]
    blocks: dict[str, str] | None = None
    predicted: dict[str, str] | None = None
    predicted_share: float = 0.0
    class_weights: dict[str, float] | None = None
    started_from: str | None = None
    clip: float | None = None
    temperature: float = 1.0
    offsets: list[float] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"a temperature of {self.temperature}, expected one above 0")
        if self.offsets is not None and not (
            len(self.offsets) == len(self.classes) and all(map(math.isfinite, self.offsets))
        ):
            raise ValueError("offsets: not one number for each class")
        if not len(self.channels) == len(self.means) == len(self.standard_deviations):
            raise ValueError("not one mean and one standard deviation for each channel")

    def marks(self) -> dict[str, str]:
        """What is said of it wherever it is registered: whether a model's labels trained it."""
        taught = self.predicted or {}
        marks = {"glacier.self_training": str(bool(taught)).lower()}
        if taught:
            marks |= {
                "glacier.self_training.share": f"{self.predicted_share:.6f}",
                "glacier.self_training.scenes": _listed(sorted(taught)),
                "glacier.self_training.by": _listed(sorted(set(taught.values()))),
            }
        return marks

    def taught_in_words(self) -> str | None:
        """The same in a clause; None for a model that people's labels alone trained."""
        if not self.predicted:
            return None
        return (
            f"learned from labels that a model made: {self.predicted_share:.1%} of its training "
            f"pixels, on {_listed(sorted(self.predicted))} "
            f"(by {_listed(sorted(set(self.predicted.values())))})"
        )

    def build(self) -> GlacierModel:
        """The network with fresh weights."""
        normalise = Normalise(self.means, self.standard_deviations, self.impute, self.clip)
        network = UNet(len(self.channels), len(self.classes), self.architecture)
        return GlacierModel(normalise, network)

    def to_json(self) -> dict[str, Any]:
        content = asdict(self)
        # Maps say which model made them by a hash of this: that of an older model stays as it was.
        for key in ("class_weights", "clip", "offsets"):
            if content[key] is None:
                del content[key]
        shape = content["architecture"]
        for key in ("blocks", "attention", "heads"):
            if shape[key] == getattr(Architecture, key):
                del shape[key]
        return content

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> ModelDescription:
        content = {**content, "architecture": Architecture(**content["architecture"])}
        content.pop("started_blocks", None)  # of a model of before; `blocks` holds them
        return cls(**content)


def _listed(names: list[str]) -> str:
    """Names in a line that a tag of MLflow can hold; all of them are in `model.json`."""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def save_model(folder: Path, description: ModelDescription, model: GlacierModel) -> None:
    """Write `model.safetensors` and `model.json` into a folder."""
    weights = {name: value.contiguous().cpu() for name, value in model.state_dict().items()}
    save_tensors(folder / WEIGHTS, weights)
    write_json(folder / DESCRIPTION, description.to_json())


def save_tensors(
    path: Path, tensors: dict[str, torch.Tensor], note: dict[str, str] | None = None
) -> None:
    """Write tensors, on the CPU and contiguous, with a note into a safetensors file.

    Raises:
        StorageError: the disk is full or the folder is not writable.
    """
    with whole_file(path) as beside:
        # Not `save_file`, whose errors do not say in a way that programs read that a disk is full.
        beside.write_bytes(save(tensors, note))


class Predictor:
    """A trained model in use.

    Attributes:
        description: its channels, classes and statistics.
        model: in evaluation mode.
    """

    def __init__(
        self, description: ModelDescription, model: GlacierModel, device: str, precision: str
    ) -> None:
        self.description = description
        self.device = choose_device(device)
        self.autocast = choose_precision(precision, self.device)
        self.model = model.to(self.device).eval()
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        # What predicts: while it is trained, the model itself.
        self._network = self.model.network

    def _settled(self) -> Predictor:
        """Predict with weights that no longer change, in the form that is quickest."""
        network = folded(self.model.network)
        if self.autocast is not None:
            network = network.to(self.autocast)
        self._network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return self

    @classmethod
    def load(cls, folder: Path, device: str = "auto", precision: str = "auto") -> Predictor:
        """Load from the folder that `save_model` wrote. No pickled code is run.

        Raises:
            InputError: a file is missing or damaged.
        """
        try:
            description = ModelDescription.from_json(json.loads((folder / DESCRIPTION).read_text()))
            weights = load_file(folder / WEIGHTS)
            model = description.build()
            model.load_state_dict(weights)
        except FileNotFoundError as error:
            raise InputError(
                f"{error.filename or folder}: no trained model; run `glacier train` first"
            ) from None
        except (SafetensorError, ValueError, TypeError, KeyError, RuntimeError) as error:
            raise InputError(f"{folder}: the model is damaged ({error})") from error
        return cls(description, model, device, precision)._settled()

    @property
    def multiple(self) -> int:
        """Heights and widths that this divides are seen without padding."""
        multiple: int = self.model.network.multiple
        return multiple

    def probabilities(self, pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Class probabilities of raw pixels.

        Args:
            pixels: float32 (batch, channels, height, width), raw band values in the order of
                `description.channels`, NaN where unseen; any batch, height and width.

        Returns:
            float32 (batch, classes, height, width), summing to 1; NaN where any channel was
            unseen, since nothing seen is not "no ice".
        """
        result = self.softmax(pixels)
        unseen = ~np.isfinite(pixels).all(axis=1)
        np.moveaxis(result, 1, -1)[unseen] = np.nan
        return result

    @torch.inference_mode()
    def softmax(self, pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """As `probabilities`, but also where a channel was unseen: the network's guess from what
        was put in its place.
        """
        if pixels.ndim != 4 or pixels.shape[1] != len(self.description.channels):
            raise InputError(
                f"the model takes (batch, {len(self.description.channels)}, height, width) with "
                f"channels {', '.join(self.description.channels)}; found shape {pixels.shape}"
            )
        # PyTorch warns of arrays that cannot be written to, such as memory maps.
        writable = np.require(pixels, np.float32, ["W"])
        x = torch.from_numpy(writable).to(self.device, memory_format=torch.channels_last)
        logits = self.logits(x).float().div_(self.description.temperature)
        if self.description.offsets is not None:
            logits += torch.tensor(self.description.offsets, device=self.device).view(-1, 1, 1)
        result: npt.NDArray[np.float32] = logits.softmax(dim=1).cpu().numpy()
        return result

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """The network's answer, in its precision, before the temperature.

        Args:
            x: float32 (batch, channels, height, width), raw, NaN where unseen, on `device`.

        Returns:
            (batch, classes, height, width).
        """
        with torch.autocast(
            self.device.type, self.autocast or torch.bfloat16, enabled=self.autocast is not None
        ):
            x = self.model.normalise(x)
            # In half the memory from here on: this lives as long as the network works.
            x = x if self.autocast is None else x.to(self.autocast)
            logits: torch.Tensor = self._network(x)
        return logits


def choose_device(name: str) -> torch.device:
    """`auto` is a CUDA device where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("conf/train.yaml: device: cuda is not available here; set auto or cpu")
    return torch.device(name)


def choose_precision(name: str, device: torch.device) -> torch.dtype | None:
    """The autocast dtype, None for full float32.

    `auto` is bfloat16 where the hardware multiplies in it; elsewhere emulation would be slower.
    """
    if name == "auto":
        if device.type == "cuda":
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            fast = bool(torch.cpu._is_avx512_bf16_supported())
        name = "bfloat16" if fast else "float32"
    return torch.bfloat16 if name == "bfloat16" else None
