"""Training the bridge, from a config to what a run leaves in its folder.

    train(RunConfig.load("configs/embedded.yaml", {"training.max_steps": 1000}))

`scripts/train.py` is the same on the command line.
"""

import logging
from pathlib import Path

import torch
from transformers import PrinterCallback, ProgressCallback, TrainingArguments, set_seed

from ..config.run_config import RunConfig
from ..data.opening import each_question, each_text
from ..model.freezing import set_policies
from ..model.processing_captioner import CaptionerProcessor
from ..towers.captioner import CaptionerForConditionalGeneration
from ..towers.precision import choose_kernels, hold_frozen, use_bf16
from .callbacks import EpochTeller, LastLog, PlainLog, ProgressBar, SampleCaptions
from .checkpoints import load_weights, writing_to
from .data import CaptionSplits, TrainingData
from .launch import check_launcher, use_all_cores
from .loop import CaptionTrainer, check_logging, training_arguments
from .metrics_log import MetricsLog, read_metrics, training_seconds, write_metrics
from .model import check_stages, compose_captioner, log_parts, set_generation, set_prompt
from .packing_check import check_packing
from .report import kept_value, report, save_stage
from .run_folder import check_data, check_processes, check_same_run, check_writable, holding, prepare_folder
from .signals import Interrupted, StopSignals
from .stages import Stage, plan_stages

logger = logging.getLogger(__name__)


def train(config: RunConfig) -> CaptionerForConditionalGeneration:
    """Trains a captioner as the config says, stage after stage, and saves its bridge to `training.output_dir`.

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
    check_same_run(config)
    stages = plan_stages(config)
    set_seed(stages[0].settings.seed)

    splits = CaptionSplits(config)  # first: what is wrong with them is said before a tower is fetched
    data_found = splits.describe()
    check_data(config, data_found)
    model, processor = compose_captioner(config, each_text(splits.train, config.data.prompt), splits.vectors)
    check_stages(model, stages)
    set_generation(model, config)
    set_prompt(model, processor, config.data, [*each_question(splits.train), *each_question(splits.dev)])
    check_packing(model)
    arguments = training_arguments(stages[0].settings)
    if arguments.world_size > 1:
        logger.info("Training in %d processes, each with %d threads", arguments.world_size, torch.get_num_threads())
    model.to(arguments.device)
    is_prepared = False
    seconds: float | None = 0.0
    for stage in stages:
        if stage.number > 1:
            set_seed(stage.settings.seed)
        set_policies(model, stage.policies)
        # What a later stage trains is not rounded before.
        hold_frozen(model, config.training.precision, config.changed_towers)
        if stage.is_finished:
            load_weights(model, stage.folder)
            logger.info("Stage %d of %d, %s, is finished: %s", stage.number, len(stages), stage.name, stage.folder)
            seconds = _add(seconds, training_seconds(read_metrics(stage.folder)))
            continue
        if stage.name is not None:
            logger.info("Stage %d of %d: %s", stage.number, len(stages), stage.name)
        arguments = training_arguments(stage.settings)
        if stage.checkpoint is not None:
            check_processes(stage.checkpoint, arguments.world_size)
        log_parts(model)
        data = TrainingData(splits, stage.settings, model, processor)
        if stage.number == 1 and stage.checkpoint is None:
            std = model.core.vocabulary().float().std().item()
            model.core.multi_modal_projector.fit_scale(
                data.images.sample_features(), config.training.output_scale * std
            )
        samples = None
        if config.training.samples:
            rows = data.dev.select(range(min(config.training.samples, len(data.dev))))
            samples = SampleCaptions(rows, data.dev_collator)
        trainer = _stage_trainer(config, stage, arguments, model, processor, data, samples, signals)
        if trainer.is_world_process_zero() and not is_prepared:
            prepare_folder(config, data_found)
        is_prepared = True
        _train_stage(trainer, stage, signals)
        state = trainer.state
        seconds = _add(seconds, training_seconds(state.log_history))
        if trainer.is_world_process_zero():
            if stage.is_last:
                # The loss is taken again where training rounded it.
                dev_loss = None if trainer.autocast else kept_value(state, "eval_loss")
                processes = arguments.world_size
                report(config, stages, model, processor, data, samples, state, processes, seconds, dev_loss)
            else:
                save_stage(model, processor, data, samples, stage.folder, state)
        trainer.accelerator.wait_for_everyone()
        trainer.accelerator.free_memory()
    return model


def _add(seconds: float | None, more: float | None) -> float | None:
    return None if seconds is None or more is None else seconds + more


def _stage_trainer(
    config: RunConfig,
    stage: Stage,
    arguments: TrainingArguments,
    model: CaptionerForConditionalGeneration,
    processor: CaptionerProcessor,
    data: TrainingData,
    samples: SampleCaptions | None,
    signals: StopSignals,
) -> CaptionTrainer:
    trainer = CaptionTrainer(
        model=model,
        args=arguments,
        train_dataset=data.train,
        eval_dataset=data.dev,
        data_collator=data.collator,
        eval_collator=data.dev_collator,
        patience=stage.settings.patience,
        eval_captions=stage.settings.eval_captions,
        rates=stage.rates,
        # Towers that are float32 in any stage are multiplied in bfloat16 where frozen ones would be held in it.
        autocast=bool(config.changed_towers) and use_bf16(config.training.precision),
        processing_class=processor,
        callbacks=[signals],
    )
    trainer.remove_callback(PrinterCallback if arguments.disable_tqdm else ProgressCallback)
    trainer.add_callback(PlainLog() if arguments.disable_tqdm else ProgressBar())
    trainer.add_callback(EpochTeller(data.choice, trainer.batch_sampler, data.choose_targets))
    trainer.add_callback(LastLog())
    if samples is not None:
        trainer.add_callback(samples)
    trainer.add_callback(MetricsLog())
    choose_kernels(model, stage.settings.compile)
    return trainer


def _train_stage(trainer: CaptionTrainer, stage: Stage, signals: StopSignals) -> None:
    """Trains what is not frozen, from a checkpoint or from the start, and leaves the best weights in the model."""
    checkpoint = stage.checkpoint
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
            if trainer.args.greater_is_better
            else f"Lowest dev loss: {state.best_metric:.4f} nats a token",
            state.best_global_step,
            state.global_step,
        )
    if trainer.is_world_process_zero():
        with writing_to(stage.folder):
            write_metrics(stage.folder, state.log_history)
