"""Training the bridge: what is frozen and what is trained, the data's way in, and transformers' Trainer around it.

    train(RunConfig.load("configs/embedded.yaml", {"training.max_steps": 1000}))

`scripts/train.py` is the same on the command line.
"""

import dataclasses
import logging
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from datasets import Dataset
from huggingface_hub.errors import StrictDataclassError
from transformers import PrinterCallback, TrainerCallback, TrainingArguments, set_seed

from .checkpoints import (
    count_processes,
    find_checkpoints,
    remove_checkpoint,
    remove_leftovers,
    save_files,
    writing_to,
)
from .composition import compose
from .console import is_first_process
from .curves import loss_curves
from .data import (
    BAD_IMAGES_NAME,
    BadImages,
    CaptionChoice,
    Cleaning,
    Corpus,
    DataError,
    PictureOpener,
    Place,
    check_pictures,
    count_captions,
    open_corpus,
)
from .data.batches import LengthBatchSampler
from .data.collator import CaptionCollator
from .facts import record_training, training_facts
from .features import image_features
from .files import write_text
from .images import ImageError
from .interruption import Interrupted, StopSignals
from .model_card import write_model_card
from .modeling_captioner import CaptionerForConditionalGeneration
from .nll import caption_nll
from .processing_captioner import QUESTION, CaptionerProcessor
from .run_config import ConfigError, DataSection, ModelSection, RunConfig
from .trainer import CaptionTrainer

logger = logging.getLogger(__name__)

RUN_CONFIG_NAME = "run_config.yaml"
CURVES_NAME = "loss.svg"

# A run may be resumed with other values of these: they say how far to go and what to tell, not what is learnt.
_FREE_ON_RESUME = {
    f"training.{name}"
    for name in ("output_dir", "epochs", "max_steps", "eval_steps", "save_steps", "logging_steps", "patience")
} | {"training.samples", "training.resume", "training.compile", "training.cache_features", "data.max_bad_share"}


def train(config: RunConfig) -> CaptionerForConditionalGeneration:
    """Trains a captioner as the config says, and saves its bridge to `training.output_dir`.

    What is saved, and returned, are the weights with the lowest dev loss. Stopped at any moment, even by a power cut,
    and started again with the same config, a run goes on from its last checkpoint and ends with the same weights.

    Raises:
        ConfigError: if settings do not go together, or the output folder holds a run of another config or cannot be
            written to.
        DataError, ImageError, BackboneError: if captions, pictures or towers cannot be had.
        FloatingPointError: if the loss is not finite.
        Interrupted: on SIGTERM and SIGINT, after a checkpoint was saved if training had begun.
    """
    use_all_cores()
    with StopSignals() as signals:
        return _train(config, signals)


def _train(config: RunConfig, signals: StopSignals) -> CaptionerForConditionalGeneration:
    settings = config.training
    output_dir = Path(settings.output_dir)
    _check_writable(output_dir)
    checkpoint = _checkpoint_to_resume(config, output_dir)
    set_seed(settings.seed)

    # Data first: what is wrong with it is said before a tower is fetched.
    corpus = open_data(config.data)
    bad = None
    if config.data.on_bad_image == "skip":
        # Of several processes, which all find the same, one writes it down.
        path = output_dir / BAD_IMAGES_NAME if is_first_process() else None
        bad = BadImages(path, config.data.max_bad_share)
    train_set, dev_set = load_splits(corpus, config.data, settings.eval_images, bad)
    choice = CaptionChoice(config.data.captions_per_image, settings.seed)
    logger.info(
        "Data: %d images with %d captions to train on%s, %d images to watch the loss on",
        len(train_set),
        count_captions(train_set),
        "" if choice.captions_per_image == "all" else f" ({choice.captions_per_image} of each image's)",
        len(dev_set),
    )

    model, processor = compose_captioner(config.model)
    set_prompt(model, processor, config.data)
    check_language_model(model)
    arguments = training_arguments(config)
    if checkpoint is not None and (processes := count_processes(checkpoint)) != arguments.world_size:
        raise ConfigError(
            f"{output_dir} holds a run of {processes} processes, and these are {arguments.world_size}: start as many, "
            "choose another training.output_dir, or start afresh with training.resume false."
        )
    model.to(arguments.device)
    hold_frozen(model, settings.precision)
    log_parts(model)

    open_picture = PictureOpener(config.data.max_pixels, config.data.max_bytes)
    train_images, dev_images = (
        ImageInputs(model, processor, dataset["image"], settings.cache_features, None, open_picture, bad)
        for dataset in (train_set, dev_set)
    )
    train_set, dev_set = train_images.keep(train_set), dev_images.keep(dev_set)
    if bad is not None:
        bad.settle()
        if bad.reasons:
            logger.info("Left out %d bad images: %s", len(bad.reasons), output_dir / BAD_IMAGES_NAME)
        check_left(config.data, train_set, dev_set)
    train_set, dev_set = (with_index(dataset) for dataset in (train_set, dev_set))
    if checkpoint is None:
        embeddings = next(model.get_input_embeddings().parameters())
        model.core.multi_modal_projector.fit_scale(
            train_images.sample_features(), settings.output_scale * embeddings.float().std().item()
        )

    collator_options: dict[str, Any] = {"max_caption_tokens": config.data.max_caption_tokens}
    dev_collator = CaptionCollator(processor, dev_images, **collator_options)
    trainer = CaptionTrainer(
        model=model,
        args=arguments,
        train_dataset=train_set,
        eval_dataset=dev_set,
        data_collator=CaptionCollator(processor, train_images, choose=choice, **collator_options),
        eval_collator=dev_collator,
        patience=settings.patience,
        processing_class=processor,
        callbacks=[signals],
    )
    trainer.add_callback(EpochTeller(choice, trainer.batch_sampler))
    samples = SampleCaptions(dev_set.select(range(min(settings.samples, len(dev_set)))), dev_collator, processor)
    if settings.samples:
        trainer.add_callback(samples)
    if not sys.stderr.isatty():
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(PlainLog())
    choose_kernels(model, settings.compile)

    if trainer.is_world_process_zero():
        with writing_to(output_dir):
            output_dir.mkdir(parents=True, exist_ok=True)
            remove_leftovers(output_dir)
            if checkpoint is None:
                # Left there, they would be taken for this run's, and this run's first ones for the oldest.
                for folder in find_checkpoints(output_dir):
                    logger.info("Starting afresh: removing %s", folder)
                    remove_checkpoint(folder)
            settings_text = yaml.safe_dump(dataclasses.asdict(config), sort_keys=False)
            write_text(output_dir / RUN_CONFIG_NAME, settings_text)
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
    if trainer.is_world_process_zero():
        with writing_to(output_dir):
            save_captioner(model, processor, output_dir)
            write_text(output_dir / CURVES_NAME, loss_curves(state.log_history, state.best_global_step))
        logger.info("Saved the bridge to %s", output_dir)
        loss = caption_nll(model, dev_set, dev_collator, settings.batch_size)
        logger.info("Dev loss: %.4f nats a token", loss)
        shuffled = None
        if len(dev_set) > 1:
            shuffled = caption_nll(model, dev_set, dev_collator, settings.batch_size, shuffle_images=True)
            verdict = "" if shuffled > loss else " (the model does not look at the images)"
            logger.info("With the images shuffled among the captions: %.4f%s", shuffled, verdict)
        facts = training_facts(
            config,
            model,
            steps=state.global_step,
            best_step=state.best_global_step,
            epochs=state.epoch or 0,
            processes=arguments.world_size,
            train_images=len(train_set),
            train_captions=count_captions(train_set),
            dev_images=len(dev_set),
            seconds=None if checkpoint else round(result.metrics["train_runtime"]),  # else of the last part alone
            dev_loss=loss,
            dev_loss_shuffled=shuffled,
            samples=samples.captions(model) if settings.samples else None,
        )
        model.name_or_path = str(output_dir)  # where an upload looks for them
        with writing_to(output_dir):
            record_training(model, output_dir, facts)
            write_model_card(model, output_dir)
    return model


def compose_captioner(settings: ModelSection) -> tuple[CaptionerForConditionalGeneration, CaptionerProcessor]:
    """Builds the captioner that the settings describe.

    Raises:
        ConfigError: if they do not go together.
        BackboneError: if a tower cannot be had.
    """
    try:
        return compose(**dataclasses.asdict(settings))
    except (ValueError, StrictDataclassError) as error:
        raise ConfigError(f"The settings in model do not go together: {' '.join(str(error).split())}") from error


def set_prompt(model: CaptionerForConditionalGeneration, processor: CaptionerProcessor, settings: DataSection) -> None:
    """Makes the settings' prompt the processor's, to be saved with it, and its answers' end one for `generate`.

    Raises:
        ConfigError: if it is to be a chat, and the language model has no chat template for it.
    """
    processor.prompt, processor.chat = settings.prompt, settings.chat
    try:
        end_token_id = processor.end_token_id
    except ValueError as error:
        raise ConfigError(f"data.chat: {error}") from error
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    if end_token_id not in ends:
        model.generation_config.eos_token_id = [*ends, end_token_id]


def save_captioner(model: CaptionerForConditionalGeneration, processor: CaptionerProcessor, directory: Path) -> None:
    """Writes a captioner's checkpoint, each file whole or not at all."""
    with save_files(directory) as partial:
        model.save_pretrained(partial)
        processor.save_pretrained(partial)
        for weights in partial.glob("*.safetensors"):
            shutil.copymode(partial / "config.json", weights)  # safetensors lets only the owner read it


def open_data(settings: DataSection) -> Corpus:
    """Opens the corpus that the settings describe.

    Raises:
        DataError: if it cannot be read.
    """
    return open_corpus(
        settings.path,
        settings.format,
        images=settings.images,
        image_column=settings.image_column,
        caption_column=settings.caption_column,
        subset=settings.subset,
        question_column=settings.question_column,
        questions=QUESTION in settings.prompt,
        cleaning=Cleaning(settings.final_stop, settings.lower_case, settings.min_words, settings.max_words),
        dev_share=settings.dev_share,
    )


def load_splits(
    corpus: Corpus, settings: DataSection, eval_images: int, bad: BadImages | None = None
) -> tuple[Dataset, Dataset]:
    """The images to train on and those to watch the loss on, at most `eval_images`; missing ones go to `bad`.

    Raises:
        DataError: if something is wrong with the corpus, or too many images are bad.
    """
    on_missing = None if bad is None else bad.add_missing
    train_set = corpus.load(settings.train_split, settings.limit, on_missing=on_missing)
    dev_limit = min(eval_images, settings.limit or eval_images)
    dev_set = corpus.load(settings.dev_split, dev_limit, on_missing=on_missing)
    if bad is not None:
        bad.expect(len(train_set) + len(dev_set))
    return train_set, dev_set


def check_left(settings: DataSection, train_set: Dataset, dev_set: Dataset) -> None:
    """Sees that leaving out bad images has not emptied a split.

    Raises:
        DataError: if it has.
    """
    for split, dataset in ((settings.train_split, train_set), (settings.dev_split, dev_set)):
        if len(dataset) == 0:
            raise DataError(f"{settings.path}: none of the images of the split {split!r} that are read can be opened")


class ImageInputs:
    """Gives a batch's images to the model: as cached features where the tower is frozen, as pixels otherwise.

    Args:
        model, processor: the captioner's.
        images: the dataset's column `image`, read when needed.
        cache: whether to compute features once. Where torch.distributed is initialised, all processes share the work.
        features_dir: where they are kept; by default in the package's cache.
        open_picture: by default within the limits of `open_image`.
        bad: gets the images that cannot be opened. They are found now, and a row's `index` counts the others.

    Raises:
        ImageError: if an image cannot be opened, now or in a batch, and `bad` is not given.
        DataError: if too many cannot.
    """

    def __init__(
        self,
        model: CaptionerForConditionalGeneration,
        processor: CaptionerProcessor,
        images: Sequence[str],
        cache: bool,
        features_dir: Path | None = None,
        open_picture: PictureOpener | None = None,
        bad: BadImages | None = None,
    ):
        self.model, self.processor, self.images = model, processor, images
        self.open_picture = open_picture or PictureOpener()
        self.features = None
        failed: set[int] = set()
        on_error = None
        if bad is not None:

            def on_error(row: int, error: ImageError) -> None:
                failed.add(row)
                bad.add(images[row], error.reason)

        if cache and model.config.freeze_vision:
            self.features = image_features(
                model, processor, images, features_dir, open_picture=self.open_picture, on_error=on_error
            )
        elif on_error is not None:
            check_pictures(images, self.open_picture, on_error)
        self.rows: Sequence[int] = range(len(images))
        if failed:
            self.rows = [row for row in self.rows if row not in failed]

    def keep(self, dataset: Dataset) -> Dataset:
        """The dataset of the images, without the rows of those that cannot be opened."""
        return dataset if len(self.rows) == len(dataset) else dataset.select(self.rows)

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        """`image_features`, float [B, N, D_vision], or `pixel_values`, float [B, 3, H, W]."""
        if self.features is not None:
            return {"image_features": self.features[[self.rows[row["index"]] for row in rows]]}
        pictures = [self.open_picture(self.images[self.rows[row["index"]]]) for row in rows]
        return {"pixel_values": self.processor.image_processor(pictures, return_tensors="pt")["pixel_values"]}

    @torch.no_grad()
    def sample_features(self, count: int = 512) -> torch.Tensor:
        """Features of `count` images or some more, evenly spread, or of all; float [S, N, D_vision]."""
        chosen = range(0, len(self.rows), max(1, len(self.rows) // count))
        if self.features is not None:
            return self.features[[self.rows[index] for index in chosen]]
        batches = [self([{"index": index}])["pixel_values"] for index in chosen]
        return torch.cat([self.model.core.encode_images(pixels)["pooler_output"] for pixels in batches])


def training_arguments(config: RunConfig) -> TrainingArguments:
    """Trainer's settings for a run: AdamW with warm-up and cosine decay, its checkpoints in the output folder."""
    settings = config.training
    return TrainingArguments(
        output_dir=settings.output_dir,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulation,
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        adam_beta2=0.95,
        eval_strategy="steps",
        eval_steps=settings.eval_steps,
        save_strategy="steps",
        save_steps=settings.save_steps,
        metric_for_best_model="loss",
        logging_steps=settings.logging_steps,
        logging_nan_inf_filter=False,  # such a loss ends the run
        remove_unused_columns=False,
        disable_tqdm=not sys.stderr.isatty(),
        dataloader_pin_memory=torch.cuda.is_available(),
        seed=settings.seed,
        report_to="none",
        ddp_find_unused_parameters=False,
        use_cpu=not torch.accelerator.is_available(),  # unsaid, several processes on CPUs would each train alone
        ddp_timeout=24 * 3600,  # seconds; other processes wait while the first one computes the image features
    )


def use_all_cores() -> None:
    """Undoes what `accelerate launch` does to a single process on a CPU: unless told `--cpu`, one thread."""
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) == 1
    if launched and not torch.accelerator.is_available() and torch.get_num_threads() == 1:
        torch.set_num_threads(os.cpu_count() or 1)


def log_parts(model: CaptionerForConditionalGeneration) -> None:
    """Says of every part of the model whether it is frozen or trained, and how large it is."""
    for name, part in model.core.named_children():
        parameters = list(part.parameters())
        trained = sum(p.numel() for p in parameters if p.requires_grad)
        total = sum(p.numel() for p in parameters)
        state = "frozen" if trained == 0 else "trained" if trained == total else f"{trained:,} trained"
        dtype = str(parameters[0].dtype).removeprefix("torch.")
        logger.info("%-22s %-28s %12s parameters  %-8s %s", name, type(part).__name__, f"{total:,}", dtype, state)
    logger.info("Trained in all: %s parameters", f"{sum(p.numel() for p in model.parameters() if p.requires_grad):,}")


def hold_frozen(model: CaptionerForConditionalGeneration, precision: str) -> None:
    """Puts frozen towers into bfloat16 where `use_bf16(precision)`; what is trained stays in float32.

    What is frozen needs no precision beyond its use.
    """
    if not use_bf16(precision):
        return
    if model.config.freeze_vision:
        model.core.vision_tower.to(torch.bfloat16)
    if model.config.freeze_language:
        model.core.language_model.to(torch.bfloat16)


def choose_kernels(model: CaptionerForConditionalGeneration, compiled: bool) -> None:
    """Picks what is fastest over rows as short as an image's captions are.

    Args:
        model: on the device that it is trained on.
        compiled: whether the language model is compiled.
    """
    if compiled or model.device.type == "cpu":
        # The library's fused attention is slower here: by a seventh of a step of GPT-2 on a CPU, mostly backward.
        model.core.language_model.set_attn_implementation("eager")
    if compiled:
        model.core.language_model.base_model.compile(dynamic=True)


def use_bf16(precision: str) -> bool:
    """Whether to hold frozen weights in bfloat16. `"auto"`: where the machine multiplies it natively."""
    if precision != "auto":
        return precision == "bf16"
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    return torch.ops.mkldnn._is_mkldnn_bf16_supported() and "bf16" in _cpu_flags()


def _cpu_flags() -> str:
    # oneDNN also says yes to processors that only emulate bfloat16, slower than float32.
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.read_text() if cpuinfo.exists() else ""


class SampleCaptions(TrainerCallback):
    """Writes the captions of a few dev images, beside a reference, whenever the dev loss is taken."""

    def __init__(self, dataset: Dataset, collator: CaptionCollator, processor: CaptionerProcessor):
        self.rows, self.collator, self.processor = list(dataset), collator, processor

    def on_evaluate(self, args, state, control, model=None, **kwargs):
        """As of TrainerCallback."""
        if not state.is_world_process_zero or model is None:
            return
        for sample in self.captions(model):
            logger.info("  %s: %s  [reference: %s]", sample["image"], sample["caption"], sample["reference"])

    def captions(self, model: CaptionerForConditionalGeneration) -> list[dict[str, str]]:
        """The name, the caption and a reference of each image; greedy, 30 tokens at most."""
        images = {name: tensor.to(model.device) for name, tensor in self.collator.encode_images(self.rows).items()}
        prompts = {"input_ids": [self.collator.prompt_ids(row) for row in self.rows]}
        inputs = self.processor.tokenizer.pad(prompts, return_tensors="pt").to(model.device)  # on the left
        ids = inputs["input_ids"]
        with torch.compiler.set_stance("force_eager"):  # every new length would be compiled anew
            outputs = model.generate(**inputs, **images, do_sample=False, max_new_tokens=30)
        texts = self.processor.batch_decode(outputs[:, ids.shape[1] :], skip_special_tokens=True)
        return [
            {
                "image": Place.parse(row["image"]).short_name,
                "caption": " ".join(text.split()),
                "reference": row["captions"][0],
            }
            for row, text in zip(self.rows, texts, strict=True)
        ]


class EpochTeller(TrainerCallback):
    """Tells the choice of captions and of batches which epoch begins, or is taken up again."""

    def __init__(self, choice: CaptionChoice, batch_sampler: LengthBatchSampler):
        self.choice, self.batch_sampler = choice, batch_sampler

    def on_train_begin(self, args, state, control, **kwargs):
        """As of TrainerCallback."""
        # A resumed state has the intervals of the run before, which may have been others.
        state.compute_steps(args, state.max_steps)

    def on_epoch_begin(self, args, state, control, **kwargs):
        """As of TrainerCallback."""
        # Of a resumed epoch, the part behind the point is done.
        self.choice.epoch = self.batch_sampler.epoch = int(state.epoch or 0)


class PlainLog(TrainerCallback):
    """One plain line a log entry, where there is no terminal for a progress bar."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        """As of TrainerCallback."""
        if state.is_world_process_zero and logs:
            values = "  ".join(f"{name} {value:.4g}" for name, value in logs.items() if isinstance(value, int | float))
            logger.info("step %d/%d  %s", state.global_step, state.max_steps, values)


def with_index(dataset: Dataset) -> Dataset:
    """Adds the column `index`: a row's place in the table of its images."""
    return dataset.add_column("index", np.arange(len(dataset)))


def _check_writable(output_dir: Path) -> None:
    """Before hours of work, not behind them.

    Raises:
        ConfigError: if the output folder cannot be written to, or made.
    """
    there = next(folder for folder in (output_dir, *output_dir.absolute().parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        reason = "may not be written to" if there.is_dir() else "is no folder"
        raise ConfigError(f"training.output_dir {output_dir} cannot be used, for {there} {reason}: choose another.")


def _checkpoint_to_resume(config: RunConfig, output_dir: Path) -> Path | None:
    """The newest whole checkpoint in the output folder.

    Raises:
        ConfigError: if it belongs to a run of another config.
    """
    if not config.training.resume or not (whole := find_checkpoints(output_dir)):
        return None
    before = RunConfig.load(output_dir / RUN_CONFIG_NAME)
    now = dataclasses.asdict(config)
    changes = [
        f"{section}.{name}: {old!r} → {new!r}"
        for section, fields in dataclasses.asdict(before).items()
        for name, old in fields.items()
        if (new := now[section][name]) != old and f"{section}.{name}" not in _FREE_ON_RESUME
    ]
    if changes:
        raise ConfigError(
            f"{output_dir} holds a run of another config ({'; '.join(changes)}): choose another "
            "training.output_dir, go back to its settings, or start afresh with training.resume false."
        )
    return whole[-1]
