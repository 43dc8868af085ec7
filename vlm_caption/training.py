"""Training the bridge, from a config to what a run leaves in its folder.

    train(RunConfig.load("configs/embedded.yaml", {"training.max_steps": 1000}))

`scripts/train.py` is the same on the command line.
"""

import logging
import sys
from pathlib import Path

import torch
from transformers import PrinterCallback, TrainingArguments, set_seed

from .callbacks import EpochTeller, PlainLog, SampleCaptions
from .hardware import check_launcher, choose_kernels, hold_frozen, use_all_cores
from .interruption import Interrupted, StopSignals
from .modeling_captioner import CaptionerForConditionalGeneration
from .processing_captioner import CaptionerProcessor
from .reporting import report
from .resuming import check_processes, check_writable, checkpoint_to_resume, prepare_folder
from .run_config import RunConfig
from .trainer import CaptionTrainer, training_arguments
from .training_data import CaptionSplits, TrainingData, each_caption
from .training_model import compose_captioner, log_parts

logger = logging.getLogger(__name__)


def train(config: RunConfig) -> CaptionerForConditionalGeneration:
    """Trains a captioner as the config says, and saves its bridge to `training.output_dir`.

    What is saved, and returned, are the weights with the lowest dev loss. Stopped at any moment, even by a power cut,
    and started again with the same config, a run goes on from its last checkpoint and ends with the same weights.

    Raises:
        ConfigError: if settings do not go together, or the output folder holds a run of another config or cannot be
            written to, or accelerate was told to shard the model.
        DataError, ImageError, BackboneError: if captions, pictures or towers cannot be had.
        FloatingPointError: if the loss is not finite.
        Interrupted: on SIGTERM and SIGINT, after a checkpoint was saved if training had begun.
    """
    check_launcher()
    use_all_cores()
    with StopSignals() as signals:
        return _train(config, signals)


def _train(config: RunConfig, signals: StopSignals) -> CaptionerForConditionalGeneration:
    check_writable(Path(config.training.output_dir))
    checkpoint = checkpoint_to_resume(config)
    set_seed(config.training.seed)

    splits = CaptionSplits(config)  # first: what is wrong with them is said before a tower is fetched
    model, processor = compose_captioner(config.model, each_caption(splits.train), splits.vectors)
    arguments = training_arguments(config)
    if checkpoint is not None:
        check_processes(checkpoint, arguments.world_size)
    if arguments.world_size > 1:
        logger.info("Training in %d processes, each with %d threads", arguments.world_size, torch.get_num_threads())

    model.to(arguments.device)
    hold_frozen(model, config.training.precision)
    log_parts(model)
    data = TrainingData(splits, model, processor)
    if checkpoint is None:
        model.core.multi_modal_projector.fit_scale(
            data.images.sample_features(), config.training.output_scale * model.core.vocabulary().float().std().item()
        )

    samples = None
    if config.training.samples:
        rows = data.dev.select(range(min(config.training.samples, len(data.dev))))
        samples = SampleCaptions(rows, data.dev_collator, processor)
    trainer, seconds = _train_stage(config, arguments, model, processor, data, samples, checkpoint, signals)
    if trainer.is_world_process_zero():
        report(config, model, processor, data, samples, trainer.state, arguments.world_size, seconds)
    return model


def _train_stage(
    config: RunConfig,
    arguments: TrainingArguments,
    model: CaptionerForConditionalGeneration,
    processor: CaptionerProcessor,
    data: TrainingData,
    samples: SampleCaptions | None,
    checkpoint: Path | None,
    signals: StopSignals,
) -> tuple[CaptionTrainer, float | None]:
    """Trains what is not frozen, from a checkpoint or from the start, and leaves the best weights in the model.

    Returns:
        the trainer, with its state; the seconds it took, None where a part of it was done before.
    """
    trainer = CaptionTrainer(
        model=model,
        args=arguments,
        train_dataset=data.train,
        eval_dataset=data.dev,
        data_collator=data.collator,
        eval_collator=data.dev_collator,
        patience=config.training.patience,
        processing_class=processor,
        callbacks=[signals],
    )
    trainer.add_callback(EpochTeller(data.choice, trainer.batch_sampler))
    if samples is not None:
        trainer.add_callback(samples)
    if not sys.stderr.isatty():
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(PlainLog())
    choose_kernels(model, config.training.compile)

    if trainer.is_world_process_zero():
        prepare_folder(config, checkpoint)
    if checkpoint is not None:
        logger.info("Resuming from %s", checkpoint)
    result = trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if signals.received:
        raise Interrupted(signals.received)
    state = trainer.state
    if state.best_metric is not None:
        trainer.load_best_weights()
        logger.info(
            "Lowest dev loss: %.4f nats a token, after step %d of %d; these weights are kept",
            state.best_metric,
            state.best_global_step,
            state.global_step,
        )
    return trainer, None if checkpoint else round(result.metrics["train_runtime"])
