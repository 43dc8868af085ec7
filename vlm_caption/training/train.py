"""Training the bridge, from a config to what a run leaves in its folder.

    train(RunConfig.load("configs/embedded.yaml", {"training.max_steps": 1000}))

`scripts/train.py` is the same on the command line.
"""

import importlib.util
import logging
from pathlib import Path
from typing import Any, cast

import torch
from transformers import set_seed

from ..config.run_config import RunConfig
from ..core.errors import ConfigError
from ..core.interrupts import StopSignals
from ..data.opening import each_question, each_text
from ..model.freezing import set_policies
from ..model.projector_init import fit_scale
from ..towers.captioner import CaptionerForConditionalGeneration
from ..towers.precision import choose_kernels, hold_frozen, use_bf16
from ..towers.processor import CaptionerProcessor
from .bag_of_words import BagOfWordsLoop, check_bag_of_words
from .checkpoints import load_weights, writing_to
from .data import CaptionSplits, TrainingData, prepare_data
from .launch import check_launcher, check_tracker, join_processes, keep_threads, open_accelerator, use_all_cores
from .loop import TrainingLoop
from .metrics_log import read_metrics, write_metrics
from .model import changed_towers, check_stages, compose_captioner, log_parts, set_generation, set_prompt
from .packing_check import check_packing
from .parent import adopt_parent, describe_parent, extend_parent
from .report import report, save_stage
from .run_folder import (
    RUN_DATA_NAME,
    check_data,
    check_processes,
    check_same_run,
    check_writable,
    holding,
    prepare_folder,
)
from .samples import SampleCaptions
from .self_critical import SelfCriticalLoop, check_cider
from .sharding import check_sharding, hiding_fsdp, shard
from .stages import Stage, plan_stages
from .state import RunState

logger = logging.getLogger(__name__)


def train(config: RunConfig) -> CaptionerForConditionalGeneration:
    """Trains a captioner as the config says, stage after stage, and saves its bridge to `training.output_dir`.

    The weights with the lowest dev loss are saved and returned, or, with `training.eval_captions`, those whose
    captions have the highest CIDEr. A run that was stopped at any moment, even by a power cut, and is started again
    with the same config, resumes from its last checkpoint and ends with the same weights.

    Raises:
        ConfigError: Settings do not go together; or the output folder holds a run of another config or on other data,
            is in use by another run, or cannot be written to; or accelerate was told to do what training does not.
        DataError, ImageError, BackboneError: Captions, pictures or towers cannot be had.
        FloatingPointError: The loss is not finite.
        Interrupted: SIGTERM or SIGINT arrived. If training had begun, a checkpoint was saved first.
    """
    check_launcher()
    check_sharding(config)
    use_all_cores()
    output_dir = Path(config.training.output_dir)
    check_tracker(config.training.report_to)
    config = adopt_parent(config)
    _check_eval_captions(config)
    check_cider(config)
    check_bag_of_words(config)
    check_writable(output_dir)
    with StopSignals() as signals, holding(output_dir), hiding_fsdp() as is_sharding:
        return _train(config, signals, is_sharding)


def _check_eval_captions(config: RunConfig) -> None:
    captions = max(settings.eval_captions for settings in config.stage_settings())
    if captions == 1:
        raise ConfigError("training.eval_captions must be 0 or at least 2: a single image's CIDEr is always 0.")
    if captions > config.training.eval_images:
        raise ConfigError(
            f"training.eval_captions {captions} must be at most training.eval_images, {config.training.eval_images}."
        )
    if captions and importlib.util.find_spec("pycocoevalcap") is None:
        raise ConfigError("training.eval_captions needs pycocoevalcap: pip install 'vlm-caption[metrics]'.")


def _train(config: RunConfig, signals: StopSignals, is_sharding: bool) -> CaptionerForConditionalGeneration:
    check_same_run(config)
    stages = plan_stages(config)
    output_dir = Path(config.training.output_dir)
    set_seed(stages[0].settings.seed)

    splits = CaptionSplits(config)  # first: a fault in the data is reported before a tower is fetched
    data_found = splits.describe()
    check_data(config, data_found)
    signals.raise_if_received()
    processes = join_processes()
    device = cast(torch.device, processes.device)
    if config.training.resume:
        keep_threads(output_dir / RUN_DATA_NAME)
    model, processor, parent = _compose(config, splits, stages)
    changed = changed_towers(config, model)
    signals.raise_if_received()
    if processes.num_processes > 1:
        logger.info("Training in %d processes, each with %d threads", processes.num_processes, torch.get_num_threads())
    _move(model, device, is_sharding)
    is_prepared = False
    seconds: float | None = 0.0
    for stage in stages:
        if stage.number > 1:
            set_seed(stage.settings.seed)
        set_policies(model, stage.policies)
        # Weights that a later stage trains must not be rounded before.
        hold_frozen(model, config.training.precision, changed)
        if stage.is_finished:
            load_weights(model, stage.folder)
            logger.info("Stage %d of %d, %s, is finished: %s", stage.number, len(stages), stage.name, stage.folder)
            seconds = _add(seconds, RunState(log_history=read_metrics(stage.folder)).seconds())
            continue
        if stage.name is not None:
            logger.info("Stage %d of %d: %s", stage.number, len(stages), stage.name)
        if stage.checkpoint is not None:
            check_processes(stage.checkpoint, processes.num_processes)
        log_parts(model)
        data = prepare_data(splits, stage.settings, model, processor)
        if stage.number == 1 and stage.checkpoint is None and parent is None:
            _fit_scale(config, model, data)
        choose_kernels(model, stage.settings.compile)
        if is_sharding:
            shard(model, device)
        if processes.is_main_process and not is_prepared:
            prepare_folder(config, data_found)
        is_prepared = True
        loop = _train_stage(config, stage, model, processor, data, signals, changed)
        seconds = _add(seconds, loop.state.seconds())
        if stage.is_last:
            report(config, stages, loop, seconds, parent)
        elif processes.is_main_process:
            save_stage(loop)
        processes.wait_for_everyone()
        loop.accelerator.free_memory()
    # The layers of a sharded model still wait for all processes.
    return CaptionerForConditionalGeneration.from_pretrained(output_dir) if is_sharding else model


def _compose(
    config: RunConfig, splits: CaptionSplits, stages: list[Stage]
) -> tuple[CaptionerForConditionalGeneration, CaptionerProcessor, dict[str, Any] | None]:
    """Builds the run's captioner, and checks that it can be trained as the stages say.

    Returns:
        The model, its processor, and what `describe_parent` says.
    """
    model, processor = compose_captioner(config, each_text(splits.train, config.data.prompt), splits.vectors)
    parent = describe_parent(config, model)
    extend_parent(config, model)
    check_stages(model, stages)
    set_generation(model, config)
    set_prompt(model, processor, config.data, [*each_question(splits.train), *each_question(splits.dev)])
    check_packing(model)
    splits.count_cut(processor)
    return model, processor, parent


def _move(model: CaptionerForConditionalGeneration, device: torch.device, is_sharding: bool) -> None:
    if not is_sharding:
        model.to(device)
    elif model.core.vision_tower is not None:
        model.core.vision_tower.to(device)  # for the features


def _fit_scale(config: RunConfig, model: CaptionerForConditionalGeneration, data: TrainingData) -> None:
    std = model.core.vocabulary().float().std().item()
    if data.images is not None:
        projector = model.core.multi_modal_projector
        fit_scale(projector, data.images.sample_features(), config.training.output_scale * std)


def _train_stage(
    config: RunConfig,
    stage: Stage,
    model: CaptionerForConditionalGeneration,
    processor: CaptionerProcessor,
    data: TrainingData,
    signals: StopSignals,
    changed: list[str],
) -> TrainingLoop:
    """Trains what is not frozen, from a checkpoint or from the start, and leaves the best weights in the model."""
    samples = None
    if config.training.samples and stage.settings.objective != "bag_of_words":
        rows = data.dev.select(range(min(config.training.samples, len(data.dev))))
        samples = SampleCaptions(rows, data.dev_collator)
    # A tower that is float32 in any stage is multiplied in bfloat16 where a frozen one would be held in it.
    autocast = bool(changed) and use_bf16(config.training.precision)
    loops = {"bag_of_words": BagOfWordsLoop, "cider": SelfCriticalLoop}
    loop_class = loops.get(stage.settings.objective, TrainingLoop)
    loop = loop_class(
        stage, model, processor, data, open_accelerator(stage.settings), signals, samples, autocast=autocast
    )
    loop.run()
    state = loop.state
    if state.is_out_of_patience(stage.settings.patience):
        logger.info(
            "Stopped at step %d of %d: the last %d evaluations were no better (training.patience); a larger patience "
            "goes on",
            state.global_step,
            state.max_steps,
            stage.settings.patience,
        )
    if state.best_metric is not None:
        logger.info(
            "%s, after step %d of %d; these weights are kept",
            f"Highest dev CIDEr: {100 * state.best_metric:.1f}"
            if stage.settings.eval_captions
            else f"Lowest dev loss: {state.best_metric:.4f} nats a token",
            state.best_global_step,
            state.global_step,
        )
    if loop.accelerator.is_main_process:
        with writing_to(stage.folder):
            write_metrics(stage.folder, state.log_history)
    return loop


def _add(seconds: float | None, more: float | None) -> float | None:
    return None if seconds is None or more is None else seconds + more
