"""Training the image tokens alone to predict the words of the captions: `training.objective: bag_of_words`.

A vision tower with random weights learns little from a decoder that cannot write yet, and the decoder learns to write
without looking. In a stage of this objective, the tower and the projector learn which words go with an image. A step
leaves out the language model's blocks, so it takes a fraction of the time.
"""

from typing import Any

import torch

from ..config.run_config import RunConfig
from ..core.errors import ConfigError
from ..core.threads import count_processes
from ..model.loss import bag_of_words_loss
from .loop import Batch, TrainingLoop


def check_bag_of_words(config: RunConfig) -> None:
    """Checks that the objective is asked for where it can be done.

    Raises:
        ConfigError: It cannot.
    """
    stages = [stage for stage in config.stage_settings() if stage.objective == "bag_of_words"]
    where = "training.objective bag_of_words"
    if any(stage.eval_captions for stage in stages):
        raise ConfigError(f"{where} does not train captions: set training.eval_captions to 0 for it.")
    if stages and count_processes() > 1:
        raise ConfigError(f"{where} is for one process, and accelerate launch started several: start one.")


def words_loss(model: Any, batch: Batch, num_items_in_batch: torch.Tensor | int) -> torch.Tensor:
    """Returns the loss of the words that the image tokens of a batch predict; see `LossOf`."""
    images = {name: batch[name] for name in ("pixel_values", "image_features") if name in batch}
    embeds = model.get_image_features(**images).pooler_output
    return bag_of_words_loss(embeds, model.get_output_embeddings(), batch["labels"], num_items_in_batch)


class BagOfWordsLoop(TrainingLoop):
    """Trains what is not frozen of a captioner to predict words without the language model's blocks, in one stage.

    The log's losses, also of dev images, are those of words, in nats a token.
    """

    loss_of = staticmethod(words_loss)
