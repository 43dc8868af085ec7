"""Training the bridge, from a config to what a run leaves in its folder.

    train(RunConfig.load("configs/embedded.yaml", {"training.max_steps": 1000}))

`scripts/train.py` is the same on the command line.
"""

import logging
from pathlib import Path

import torch
from transformers import PrinterCallback, ProgressCallback, TrainerState, TrainingArguments, set_seed

from .callbacks import EpochTeller, LastLog, PlainLog, ProgressBar, SampleCaptions
from .console import is_first_process
from .hardware import check_launcher, choose_kernels, hold_frozen, use_all_cores
from .interruption import Interrupted, StopSignals
from .metrics_log import MetricsLog
from .modeling_captioner import CaptionerForConditionalGeneration
from .processing_captioner import CaptionerProcessor
from .reporting import report
from .resuming import check_data, check_processes, check_writable, checkpoint_to_resume, holding, prepare_folder
from .run_config import RunConfig
from .trainer import CaptionTrainer, check_logging, training_arguments
from .training_data import CaptionSplits, TrainingData
from .training_model import compose_captioner, log_parts

logger = logging.getLogger(__name__)


def train(config: RunConfig) -> CaptionerForConditionalGeneration:
    """Trains a captioner as the config says, and saves its bridge to `training.output_dir`.

    What is saved, and returned, are the weights with the lowest dev loss, or, with `training.eval_captions`, those
    whose captions have the highest CIDEr. Stopped at any moment, even by a power cut, and started again with the same
    config, a run goes on from its last checkpoint and ends with the same weights.

    Raises:
        ConfigError: if settings do not go together, or the output folder holds a run of another config or on other
            data, is in use by another run, or cannot be written to, or accelerate was told to shard the model.
        DataError, ImageError, BackboneError: if captions, pictures or towers cannot be had.
        FloatingPointError: if the loss is not finite.
        Interrupted: on SIGTERM and SIGINT, after a checkpoint was saved if training had begun.
    """
    check_launcher()
    use_all_cores()
    output_dir = Path(config.training.output_dir)
    check_logging(config)
    check_writable(output_dir)
    with StopSignals() as signals, holding(output_dir):
        return _train(config, signals)


def _train(config: RunConfig, signals: StopSignals) -> CaptionerForConditionalGeneration:
    checkpoint = checkpoint_to_resume(config)
    set_seed(config.training.seed)

    splits = CaptionSplits(config)  # first: what is wrong with them is said before a tower is fetched
    if checkpoint is not None:
        check_data(checkpoint, splits.describe())
    model, processor = compose_captioner(config.model)
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
        samples = SampleCaptions(rows, data.dev_collator)
    if is_first_process():
        prepare_folder(config, checkpoint, splits.describe())
    state = _train_stage(config, arguments, model, processor, data, samples, checkpoint, signals)
    if is_first_process():
        report(config, model, processor, data, samples, state, arguments.world_size)
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
) -> TrainerState:
    """Trains what is not frozen, from a checkpoint or from the start, and leaves the best weights in the model.

    Returns:
        Trainer's state at the end.
    """
    trainer = CaptionTrainer(
        model=model,
        args=arguments,
        train_dataset=data.train,
        eval_dataset=data.dev,
        data_collator=data.collator,
        eval_collator=data.dev_collator,
        patience=config.training.patience,
        eval_captions=config.training.eval_captions,
        processing_class=processor,
        callbacks=[signals],
    )
    trainer.remove_callback(PrinterCallback if arguments.disable_tqdm else ProgressCallback)
    trainer.add_callback(PlainLog() if arguments.disable_tqdm else ProgressBar())
    trainer.add_callback(EpochTeller(data.choice, trainer.batch_sampler))
    trainer.add_callback(LastLog())
    if samples is not None:
        trainer.add_callback(samples)
    trainer.add_callback(MetricsLog())
    choose_kernels(model, config.training.compile)

    if checkpoint is not None:
        logger.info("Resuming from %s", checkpoint)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if signals.received:
        raise Interrupted(signals.received)
    state = trainer.state
    if state.best_metric is not None:
        trainer.load_best_weights()
        logger.info(
            "%s, after step %d of %d; these weights are kept",
            f"Highest dev CIDEr: {100 * state.best_metric:.1f}"
            if arguments.greater_is_better
            else f"Lowest dev loss: {state.best_metric:.4f} nats a token",
            state.best_global_step,
            state.global_step,
        )
    return state
