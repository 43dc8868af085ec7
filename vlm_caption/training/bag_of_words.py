"""Training the image tokens alone to predict the words of the captions: `training.objective: bag_of_words`.

A vision tower with random weights learns little from a decoder that cannot write yet, and the decoder learns to write
without looking. In a stage of this objective, the tower and the projector learn which words go with an image. A step
leaves out the language model's blocks, so it takes a fraction of the time.
"""

import os
from typing import cast

import torch

from ..config.run_config import RunConfig
from ..core.errors import ConfigError
from ..model.loss import IGNORE_INDEX, bag_of_words_loss
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
    if stages and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(f"{where} is for one process, and accelerate launch started several: start one.")


class BagOfWordsLoop(TrainingLoop):
    """Trains what is not frozen of a captioner to predict words without the language model's blocks, in one stage.

    `loss` and `eval_loss` in the log are the loss of words, in nats a token.
    """

    def backward(self, batch: Batch, targets: torch.Tensor) -> torch.Tensor:
        """Adds a batch's gradients to those of its step.

        Args:
            batch: The batch.
            targets: The number of tokens to predict of the whole step.

        Returns:
            The batch's share of the step's loss.
        """
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            loss = self._loss(batch, targets)
        self.accelerator.backward(loss)
        self._check_finite(loss, "loss", batch["rows"].tolist())
        return loss.detach()

    @torch.no_grad()
    def score_dev(self) -> dict[str, float]:
        """Returns the dev loss as `eval_loss`."""
        self.model.eval()
        total, count, size = 0.0, 0, self.settings.batch_size
        for start in range(0, len(self.data.dev), size):
            rows = [self.data.dev[row] for row in range(start, min(start + size, len(self.data.dev)))]
            batch = {name: tensor.to(self.device) for name, tensor in self.data.dev_collator(rows).items()}
            total += self._loss(batch, 1).item()
            count += int((batch["labels"] != IGNORE_INDEX).sum())
        return {"eval_loss": total / count}

    def _loss(self, batch: Batch, targets: torch.Tensor | int) -> torch.Tensor:
        images = {name: batch[name] for name in ("pixel_values", "image_features") if name in batch}
        embeds = cast(torch.Tensor, self.model.get_image_features(**images).pooler_output)
        return bag_of_words_loss(embeds, self.model.get_output_embeddings(), batch["labels"], targets)
