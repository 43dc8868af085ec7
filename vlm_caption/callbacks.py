"""What is done and told while a run trains, as callbacks of transformers' Trainer."""

import logging

import torch
from datasets import Dataset
from transformers import TrainerCallback

from .data import CaptionChoice, Place, TargetChoice
from .data.batches import LengthBatchSampler
from .data.collator import CaptionCollator
from .modeling_captioner import CaptionerForConditionalGeneration
from .processing_captioner import CaptionerProcessor, VectorProcessor

logger = logging.getLogger(__name__)


class EpochTeller(TrainerCallback):
    """Tells the choice of captions, of targets and of batches which epoch begins, or is taken up again."""

    def __init__(
        self, choice: CaptionChoice, batch_sampler: LengthBatchSampler, choose_targets: TargetChoice | None = None
    ):
        self.told = [choice, batch_sampler, *([] if choose_targets is None else [choose_targets])]

    def on_train_begin(self, args, state, control, **kwargs):
        """As of TrainerCallback."""
        # A resumed state has the intervals of the run before, which may have been others.
        state.compute_steps(args, state.max_steps)

    def on_epoch_begin(self, args, state, control, **kwargs):
        """As of TrainerCallback."""
        # Of a resumed epoch, the part behind the point is done.
        for draw in self.told:
            draw.epoch = int(state.epoch or 0)


class SampleCaptions(TrainerCallback):
    """Writes the captions of a few dev images, beside a reference, whenever the dev loss is taken."""

    def __init__(self, dataset: Dataset, collator: CaptionCollator, processor: CaptionerProcessor):
        self.rows, self.collator, self.processor = list(dataset), collator, processor
        self.has_vectors = isinstance(processor, VectorProcessor)

    def on_evaluate(self, args, state, control, model=None, **kwargs):
        """As of TrainerCallback."""
        if not state.is_world_process_zero or model is None:
            return
        for sample in self.captions(model):
            logger.info("  %s: %s  [reference: %s]", sample["image"], sample["caption"], sample["reference"])

    def captions(self, model: CaptionerForConditionalGeneration) -> list[dict[str, str]]:
        """The name, the caption and a reference of each image; greedy, of the model's usual length."""
        images = {name: tensor.to(model.device) for name, tensor in self.collator.encode_images(self.rows).items()}
        prompts = {"input_ids": [self.collator.prompt_ids(row) for row in self.rows]}
        inputs = self.processor.tokenizer.pad(prompts, return_tensors="pt").to(model.device)  # on the left
        ids = inputs["input_ids"]
        with torch.compiler.set_stance("force_eager"):  # every new length would be compiled anew
            outputs = model.generate(**inputs, **images, do_sample=False)
        texts = self.processor.batch_decode(outputs[:, ids.shape[1] :], skip_special_tokens=True)
        return [
            {
                "image": row["image"] if self.has_vectors else Place.parse(row["image"]).short_name,
                "caption": " ".join(text.split()),
                "reference": row["captions"][0],
            }
            for row, text in zip(self.rows, texts, strict=True)
        ]


class PlainLog(TrainerCallback):
    """One plain line a log entry, where there is no terminal for a progress bar."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        """As of TrainerCallback."""
        if state.is_world_process_zero and logs:
            values = "  ".join(f"{name} {value:.4g}" for name, value in logs.items() if isinstance(value, int | float))
            logger.info("step %d/%d  %s", state.global_step, state.max_steps, values)
