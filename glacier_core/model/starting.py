"""Beginning a training with another model's weights, instead of random ones.

Such as those learned on simulated scenes, of which there are as many as one likes, or those of the
champion, when scenes were added.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from glacier_core.config import Project
from glacier_core.dataset.loading import Dataset
from glacier_core.errors import InputError
from glacier_core.model.comparison import seen_in_training
from glacier_core.model.opening import open_model
from glacier_core.model.predictor import ModelDescription, Predictor
from glacier_core.model.unet import GlacierModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """What a training begins with.

    Attributes:
        name: of the model; see `open_model`.
        predictor: it.
    """

    name: str
    predictor: Predictor

    @property
    def description(self) -> ModelDescription:
        return self.predictor.description

    def give_weights(self, model: GlacierModel) -> None:
        """Copy its weights into a model.

        Raises:
            InputError: they are of another network.
        """
        try:
            model.network.load_state_dict(self.predictor.model.network.state_dict())
        except RuntimeError:
            found = self.description.architecture
            raise InputError(
                f"conf/train.yaml: start_from: {self.name} has depth {found.depth}, base_channels "
                f"{found.base_channels}, normalisation {found.normalisation}, blocks {found.blocks}, "
                f"attention {str(found.attention).lower()} and heads {found.heads}; set the same in "
                "params.yaml and conf/train.yaml"
            ) from None


def start_of(project: Project, dataset: Dataset) -> Start | None:
    """What `start_from` in conf/train.yaml names; None for random weights.

    Raises:
        InputError: there is no such model, it sees or tells apart something else, or it was
            trained on ground that tests now: its scores would be those of a model that has seen
            the answers.
        ServiceError: MLflow cannot be reached.
    """
    uri = project.train.start_from
    if uri is None:
        return None
    name, predictor = open_model(project, uri)
    said = predictor.description
    pairs = {
        "channels": (said.channels, dataset.channels),
        "classes": (said.classes, dataset.class_names),
    }
    for key, (had, has) in pairs.items():
        if had != has:
            raise InputError(
                f"conf/train.yaml: start_from: {name} has the {key} {', '.join(had)}; this dataset "
                f"has {', '.join(has)}. Weights mean something for the same, in the same order."
            )
    seen = seen_in_training(said, dataset)
    if seen is None:
        logger.warning(
            "start_from: %s does not say on which ground it was trained: make sure that it was "
            "not on the test split's",
            name,
        )
    elif seen:
        raise InputError(
            f"conf/train.yaml: start_from: {name} was trained on ground of the test split (block "
            f"{', '.join(seen)}), and would be judged on what it knows. Record the blocks before "
            "scenes are added (`glacier blocks --record`), or start from another model."
        )
    logger.info("beginning with the weights of %s", name)
    return Start(name, predictor)
