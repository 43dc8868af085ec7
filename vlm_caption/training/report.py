"""What a run leaves at its end: the bridge, curves, sample captions, its losses, and its card."""

import contextlib
import io
import logging
import shlex
from pathlib import Path
from typing import Any

from ..captioning.checkpoints import DEFAULT_CHECKPOINT
from ..captioning.nll import caption_nll, model_loss
from ..config.run_config import RunConfig
from ..core.errors import ImageError
from ..core.files import write_bytes
from ..hub.card import write_model_card
from ..hub.facts import record_training
from ..towers.captioner import CaptionerForConditionalGeneration
from .checkpoints import find_checkpoints, remove_checkpoint, writing_to
from .curves import draw_curves
from .facts import training_facts
from .loop import TrainingLoop
from .model import save_captioner
from .samples_page import write_samples_page
from .sharding import gather_weights, is_sharded
from .stages import Stage

logger = logging.getLogger(__name__)

CURVES_NAME = "curves.png"
SAMPLES_NAME = "samples.html"

# A smaller relative difference between the dev losses with the right and with other images is no evidence.
_LEAST_DIFFERENCE = 0.005

Samples = list[dict[str, str]]


def save_stage(loop: TrainingLoop) -> None:
    """Writes what a stage other than the last has trained to its folder, and removes its checkpoints. For one process.

    Raises:
        ConfigError: The folder cannot be written to.
    """
    _write_pictures(loop.folder, loop, _sample_captions(loop))
    with writing_to(loop.folder):
        save_captioner(loop.model, loop.processor, loop.folder, save_original_format=False)  # for `load_weights`
        for checkpoint in find_checkpoints(loop.folder):
            remove_checkpoint(checkpoint)
    logger.info("Saved this stage's bridge to %s", loop.folder)


def report(
    config: RunConfig,
    stages: list[Stage],
    loop: TrainingLoop,
    seconds: float | None,
    parent: dict[str, Any] | None = None,
) -> None:
    """Writes all that a run leaves to its output folder, and says how good its model is.

    All processes call it. The first one writes; the others help if the model is sharded.

    Args:
        config: The run's config.
        stages: The run's stages.
        loop: The last one's loop, which has ended; its model has the weights that are kept.
        seconds: How long all stages together took; None if that is not known.
        parent: The checkpoint that the run started from; see `describe_parent`.

    Raises:
        ConfigError: The folder cannot be written to.
    """
    model, output_dir = loop.model, Path(config.training.output_dir)
    if not loop.accelerator.is_main_process:
        if is_sharded(model):
            gather_weights(model, keep=False)
            with contextlib.redirect_stderr(io.StringIO()):  # one process shows progress
                _sample_captions(loop)
                _measure_losses(loop)
        return
    with writing_to(output_dir):
        options = {"state_dict": gather_weights(model, keep=True)} if is_sharded(model) else {}
        save_captioner(model, loop.processor, output_dir, **options)
    samples = _sample_captions(loop)
    _write_pictures(output_dir, loop, samples)
    _say_what_is_left(output_dir, has_vectors=model.config.feature_size is not None)
    dev_loss, shuffled = _measure_losses(loop, advice=_advice(config))
    state, data = loop.state, loop.data
    facts = training_facts(
        config,
        stages,
        model,
        parent=parent,
        steps=state.global_step,
        best_step=state.best_global_step,
        epochs=state.epoch,
        processes=loop.accelerator.num_processes,
        data=data,
        schedule=f"{loop.intervals.warmup} steps of warm-up, cosine decay",
        seconds=None if seconds is None else round(seconds),
        dev_loss=dev_loss,
        dev_loss_shuffled=shuffled,
        dev_cider=state.at_best("eval_cider"),
        dev_cider_images=min(loop.settings.eval_captions, len(data.dev)) or None,
        samples=samples,
    )
    saved = CaptionerForConditionalGeneration.from_pretrained(output_dir) if is_sharded(model) else model
    saved.name_or_path = str(output_dir)  # where an upload looks for them
    _write_card(saved, output_dir, facts)


def _write_card(model: CaptionerForConditionalGeneration, output_dir: Path, facts: dict[str, Any]) -> None:
    """Records a run's facts and writes its model card.

    Raises:
        ConfigError: The folder cannot be written to.
    """
    with writing_to(output_dir):
        record_training(model, output_dir, facts)
        try:
            write_model_card(model, output_dir)
        except ValueError as error:  # the parent's facts, which may be somebody else's, are among these
            logger.warning("The model card was not written: %s", error)


def _say_what_is_left(output_dir: Path, has_vectors: bool) -> None:
    """Names the files of a finished run that a person looks at, and the command that uses its captioner."""
    pictures = [str(output_dir / name) for name in (CURVES_NAME, SAMPLES_NAME) if (output_dir / name).exists()]
    logger.info("Saved the bridge to %s; see %s", output_dir, " and ".join(pictures))
    if not has_vectors:
        logger.info(
            "To caption with it: python scripts/caption.py --checkpoint %s photo.jpg", shlex.quote(str(output_dir))
        )


def _advice(config: RunConfig) -> str:
    """Returns what to do if the captions do not depend on the images."""
    if config.model.init_from is not None or config.data.features is not None:
        return "train for more epochs or on more images"
    shipped = shlex.quote(str(DEFAULT_CHECKPOINT))
    return f"train for more epochs, or start from a trained captioner with --init-from {shipped}"


def _measure_losses(loop: TrainingLoop, advice: str = "") -> tuple[float, float | None]:
    """Returns the dev loss of the weights that are kept, and that with the images shuffled, if there are several.

    Args:
        loop: The last stage's loop.
        advice: What to do if the two do not differ.
    """
    model, data, size = loop.model, loop.data, loop.settings.batch_size
    # Measured again where evaluations were of another loss, or under autocast, which rounds.
    is_same = loop.loss_of is model_loss and not loop.autocast
    dev_loss = loop.state.at_best("eval_loss") if is_same else None
    if dev_loss is None:
        dev_loss = caption_nll(model, data.dev, data.dev_collator, size)
    logger.info("Dev loss: %.4f nats a token", dev_loss)
    shuffled = None
    if len(data.dev) > 1:
        shuffled = caption_nll(model, data.dev, data.dev_collator, size, shuffle_images=True)
        is_blind = shuffled - dev_loss < _LEAST_DIFFERENCE * dev_loss
        verdict = f" (the captions hardly depend on the images: {advice})" if is_blind else ""
        logger.info("With the images shuffled among the captions: %.4f%s", shuffled, verdict)
    return dev_loss, shuffled


def _sample_captions(loop: TrainingLoop) -> Samples | None:
    return None if loop.samples is None else loop.samples.captions(loop.model)


def _write_pictures(folder: Path, loop: TrainingLoop, captions: Samples | None) -> None:
    """Writes the curves of a stage, and the page of its sample captions.

    Args:
        folder: Where to.
        loop: The stage's loop.
        captions: The sample captions with the weights that are kept.
    """
    state, samples = loop.state, loop.samples
    log: list[dict[str, Any]] = state.log_history
    kept_step = state.best_global_step or state.global_step
    if captions is not None:
        shown = next((entry["samples"] for entry in reversed(log) if "samples" in entry), [])
        if len(shown) < len(captions):  # samples were asked for after the steps were made
            log = [*log, {"step": kept_step, "samples": captions}]
    with writing_to(folder):
        write_bytes(folder / CURVES_NAME, draw_curves(log, state.best_global_step))
        if samples is None:
            return
        images = loop.data.images
        open_picture = None if samples.has_vectors or images is None else images.open_picture
        try:
            write_samples_page(folder / SAMPLES_NAME, samples.rows, log, kept_step, open_picture)
        except ImageError as error:  # training reads cached features, not the pictures
            logger.warning("%s was not written: %s", folder / SAMPLES_NAME, error)
