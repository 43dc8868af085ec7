"""What a run leaves at its end: the bridge, its log and curves, sample captions, its losses, and its card."""

import logging
from pathlib import Path
from typing import Any

from transformers import TrainerState

from ..captioning.nll import caption_nll
from ..config.run_config import RunConfig
from ..core.errors import ImageError
from ..core.files import write_bytes
from ..data.corpus import count_captions
from ..hub.card import write_model_card
from ..hub.facts import record_training
from ..model.processing_captioner import CaptionerProcessor
from ..towers.captioner import CaptionerForConditionalGeneration
from .callbacks import SampleCaptions
from .checkpoints import find_checkpoints, remove_checkpoint, writing_to
from .curves import draw_curves
from .data import TrainingData
from .facts import training_facts
from .model import save_captioner
from .samples_page import write_samples_page
from .stages import Stage

logger = logging.getLogger(__name__)

CURVES_NAME = "curves.png"
SAMPLES_NAME = "samples.html"


def save_stage(
    model: CaptionerForConditionalGeneration,
    processor: CaptionerProcessor,
    data: TrainingData,
    samples: SampleCaptions | None,
    folder: Path,
    state: TrainerState,
) -> None:
    """Writes what a stage, not the last, trained to its folder. Its checkpoints are no longer needed. For one process.

    Raises:
        ConfigError: if the folder cannot be written to.
    """
    _write_pictures(folder, model, data, samples, state)
    with writing_to(folder):
        save_captioner(model, processor, folder, save_original_format=False)  # for `load_weights`
        for checkpoint in find_checkpoints(folder):
            remove_checkpoint(checkpoint)
    logger.info("Saved this stage's bridge to %s", folder)


def report(
    config: RunConfig,
    stages: list[Stage],
    model: CaptionerForConditionalGeneration,
    processor: CaptionerProcessor,
    data: TrainingData,
    samples: SampleCaptions | None,
    state: TrainerState,
    processes: int,
    seconds: float | None,
    dev_loss: float | None,
) -> None:
    """Writes all that a run leaves to its output folder, and says how good its model is. One process calls it.

    Args:
        config: the run's.
        stages: the run's; the last one has just ended.
        model: with the weights that are kept.
        processor: the model's.
        data: the run's.
        samples: the dev images whose captions are shown.
        state: Trainer's, at the end.
        processes: how many trained together.
        seconds: how long all stages together took; None is not known.
        dev_loss: of these weights; None is not known yet.

    Raises:
        ConfigError: if the folder cannot be written to.
    """
    settings = stages[-1].settings
    output_dir = Path(config.training.output_dir)
    with writing_to(output_dir):
        save_captioner(model, processor, output_dir)
    logger.info("Saved the bridge to %s", output_dir)
    last_samples = _write_pictures(output_dir, model, data, samples, state)
    if dev_loss is None:
        dev_loss = caption_nll(model, data.dev, data.dev_collator, settings.batch_size)
    logger.info("Dev loss: %.4f nats a token", dev_loss)
    shuffled = None
    if len(data.dev) > 1:
        shuffled = caption_nll(model, data.dev, data.dev_collator, settings.batch_size, shuffle_images=True)
        verdict = "" if shuffled > dev_loss else " (the model does not look at the images)"
        logger.info("With the images shuffled among the captions: %.4f%s", shuffled, verdict)
    facts = training_facts(
        config,
        stages,
        model,
        steps=state.global_step,
        best_step=state.best_global_step,
        epochs=state.epoch or 0,
        processes=processes,
        train_images=len(data.train),
        train_captions=count_captions(data.train),
        dev_images=len(data.dev),
        seconds=None if seconds is None else round(seconds),
        dev_loss=dev_loss,
        dev_loss_shuffled=shuffled,
        dev_cider=kept_value(state, "eval_cider"),
        dev_cider_images=min(settings.eval_captions, len(data.dev)) or None,
        samples=last_samples,
    )
    model.name_or_path = str(output_dir)  # where an upload looks for them
    with writing_to(output_dir):
        record_training(model, output_dir, facts)
        write_model_card(model, output_dir)


def kept_value(state: TrainerState, name: str) -> float | None:
    """What was measured of the weights that are kept, where they were evaluated; nothing has changed them since."""
    at_step = [entry[name] for entry in state.log_history if entry["step"] == state.best_global_step and name in entry]
    return at_step[-1] if at_step else None


def _write_pictures(
    folder: Path,
    model: CaptionerForConditionalGeneration,
    data: TrainingData,
    samples: SampleCaptions | None,
    state: TrainerState,
) -> list[dict[str, str]] | None:
    """Curves and sample captions of a stage; returns the captions with the weights that are kept."""
    log: list[dict[str, Any]] = state.log_history
    kept_step = state.best_global_step or state.global_step
    captions = None
    if samples is not None:
        captions = samples.captions(model)
        shown = next((entry["samples"] for entry in reversed(log) if "samples" in entry), [])
        if len(shown) < len(captions):  # they were asked for later than the steps were made
            log = [*log, {"step": kept_step, "samples": captions}]
    with writing_to(folder):
        write_bytes(folder / CURVES_NAME, draw_curves(log, state.best_global_step))
        if samples is None:
            return captions
        open_picture = None if samples.has_vectors else data.images.open_picture
        try:
            write_samples_page(folder / SAMPLES_NAME, samples.rows, log, kept_step, open_picture)
        except ImageError as error:  # the features are cached: training did not need it any more
            logger.warning("%s was not written: %s", folder / SAMPLES_NAME, error)
    return captions
