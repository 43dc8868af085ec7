"""What is done and told while a run trains, as callbacks of transformers' Trainer."""

import logging
import sys
import time
from typing import Any

from datasets import Dataset
from tqdm import tqdm
from transformers import ProgressCallback, TrainerCallback

from ..captioning.generation import caption_rows
from ..core.console import describe_seconds
from ..data.captions import CaptionChoice, TargetChoice
from ..data.collator import CaptionCollator
from ..data.sampler import LengthBatchSampler
from ..model.processing_captioner import VectorProcessor
from ..towers.captioner import CaptionerForConditionalGeneration
from .dev_scores import row_name

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


class LastLog(TrainerCallback):
    """Has the last steps logged as well, where their number is no multiple of the interval."""

    def on_step_end(self, args, state, control, **kwargs):
        """As of TrainerCallback."""
        if state.global_step >= state.max_steps:
            control.should_log = True


class SampleCaptions(TrainerCallback):
    """Writes the captions of a few dev images, beside a reference, whenever the dev loss is taken.

    They are added to Trainer's log as well, as `samples`, so that a run that is taken up again has them.

    Attributes:
        has_vectors: whether the captions are of vectors, in place of pictures.
    """

    def __init__(self, dataset: Dataset, collator: CaptionCollator):
        self.rows, self.collator = list(dataset), collator
        self.has_vectors = isinstance(collator.processor, VectorProcessor)

    def on_evaluate(self, args, state, control, model=None, **kwargs):
        """As of TrainerCallback."""
        if not state.is_world_process_zero or model is None:
            return
        samples = self.captions(model)
        state.log_history.append({"samples": samples, "epoch": state.epoch, "step": state.global_step})
        for sample in samples:
            logger.info("  %s: %s  [reference: %s]", sample["image"], sample["caption"], sample["reference"])

    def captions(self, model: CaptionerForConditionalGeneration) -> list[dict[str, str]]:
        """The name, the caption and a reference of each image; captions as of `caption_rows`."""
        texts = caption_rows(model, self.collator, self.rows, len(self.rows))
        return [
            {
                "image": row_name(row["image"], self.has_vectors),
                "caption": text,
                "reference": row["captions"][0],
            }
            for row, text in zip(self.rows, texts, strict=True)
        ]


class PlainLog(TrainerCallback):
    """One plain line a log entry, where there is no terminal for a progress bar."""

    def __init__(self):
        self._start = self._first_step = 0

    def on_train_begin(self, args, state, control, **kwargs):
        """As of TrainerCallback."""
        self._start, self._first_step = time.monotonic(), state.global_step

    def on_log(self, args, state, control, logs=None, **kwargs):
        """As of TrainerCallback."""
        if not state.is_world_process_zero or not logs:
            return
        line = f"step {state.global_step}/{state.max_steps}  {_told(logs)}"
        made = state.global_step - self._first_step
        if "loss" in logs and made and state.global_step < state.max_steps:
            left = (time.monotonic() - self._start) / made * (state.max_steps - state.global_step)
            line += f"  {describe_seconds(left)} left"
        logger.info("%s", line)


class ProgressBar(ProgressCallback):
    """Trainer's progress bar, with the loss and the captions a second behind it instead of a line for each."""

    def on_train_begin(self, args, state, control, **kwargs):
        """As of TrainerCallback."""
        if state.is_world_process_zero:
            # Steps that were made before a restart took none of this time.
            self.training_bar: Any = tqdm(
                total=state.max_steps, initial=state.global_step, unit=" steps", dynamic_ncols=True
            )
        self.current_step = state.global_step

    def on_log(self, args, state, control, logs=None, **kwargs):
        """As of TrainerCallback."""
        if not state.is_world_process_zero or not logs or self.training_bar is None:
            return
        if "loss" in logs:
            self.training_bar.set_postfix_str(_told(logs))
        else:
            self.training_bar.write(f"step {state.global_step}/{state.max_steps}  {_told(logs)}", file=sys.stderr)


def _told(logs: dict[str, Any]) -> str:
    """What a person wants to know of a log entry; the rest is for programs."""
    shown = {
        "loss": ("loss {:.4g}", 1),
        "captions_per_second": ("{:.4g} captions/s", 1),
        "eval_loss": ("dev loss {:.4f}", 1),
        "eval_cider": ("dev CIDEr {:.1f}", 100),  # as papers print it
    }
    return "  ".join(text.format(logs[name] * factor) for name, (text, factor) in shown.items() if name in logs)
