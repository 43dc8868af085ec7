"""Training the bridge: what is frozen and what is trained, the data's way in, and transformers' Trainer around it.

    train(RunConfig.load("configs/embedded.yaml", {"training.max_steps": 1000}))

`scripts/train.py` is the same on the command line.
"""

import dataclasses
import logging
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
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import sort_checkpoints

from .composition import compose
from .console import progress
from .data import CaptionChoice, Cleaning, Corpus, Place, count_captions, open_corpus, open_place
from .data.collator import CaptionCollator
from .facts import record_training, training_facts
from .features import image_features
from .images import open_image
from .model_card import write_model_card
from .modeling_captioner import IGNORE_INDEX, CaptionerForConditionalGeneration
from .processing_captioner import CaptionerProcessor
from .run_config import ConfigError, DataSection, RunConfig

logger = logging.getLogger(__name__)

RUN_CONFIG_NAME = "run_config.yaml"

# A run may be resumed with other values of these: they say how far to go and what to tell, not what is learnt.
_FREE_ON_RESUME = {
    f"training.{name}"
    for name in ("output_dir", "epochs", "max_steps", "eval_steps", "eval_images", "save_steps", "logging_steps")
} | {"training.samples", "training.resume", "training.compile", "training.cache_features"}


def train(config: RunConfig) -> CaptionerForConditionalGeneration:
    """Trains a captioner as the config says, and saves its bridge to `training.output_dir`.

    Raises:
        ConfigError: if settings do not go together, or the output folder holds a run of another config.
        DataError, ImageError, BackboneError: if captions, pictures or towers cannot be had.
    """
    settings = config.training
    output_dir = Path(settings.output_dir)
    checkpoint = _checkpoint_to_resume(config, output_dir)
    set_seed(settings.seed)

    # Data first: what is wrong with it is said before a tower is fetched.
    corpus = open_data(config.data)
    train_set = corpus.load(config.data.train_split, config.data.limit)
    dev_limit = min(settings.eval_images, config.data.limit or settings.eval_images)
    dev_set = corpus.load(config.data.dev_split, dev_limit)
    choice = CaptionChoice(config.data.captions_per_image, settings.seed)
    logger.info(
        "Data: %d images with %d captions to train on%s, %d images to watch the loss on",
        len(train_set),
        count_captions(train_set),
        "" if choice.captions_per_image == "all" else f" ({choice.captions_per_image} of each image's)",
        len(dev_set),
    )

    try:
        model, processor = compose(**dataclasses.asdict(config.model))
    except (ValueError, StrictDataclassError) as error:
        raise ConfigError(f"The settings in model do not go together: {' '.join(str(error).split())}") from error
    arguments = training_arguments(config)
    model.to(arguments.device)
    hold_frozen(model, settings.precision)
    log_parts(model)

    train_set, dev_set = (with_index(dataset) for dataset in (train_set, dev_set))
    with arguments.main_process_first(desc="image features"):  # the others find them in the cache
        train_images, dev_images = (
            ImageInputs(model, processor, dataset["image"], settings.cache_features)
            for dataset in (train_set, dev_set)
        )
    if checkpoint is None:
        embeddings = next(model.get_input_embeddings().parameters())
        model.core.multi_modal_projector.fit_scale(
            train_images.sample_features(), settings.output_scale * embeddings.float().std().item()
        )

    collator_options: dict[str, Any] = {
        "prompt": config.data.prompt,
        "max_caption_tokens": config.data.max_caption_tokens,
    }
    dev_collator = CaptionCollator(processor, dev_images, **collator_options)
    trainer = CaptionTrainer(
        model=model,
        args=arguments,
        train_dataset=train_set,
        eval_dataset=dev_set,
        data_collator=CaptionCollator(processor, train_images, choose=choice, **collator_options),
        eval_collator=dev_collator,
        processing_class=processor,
        callbacks=[EpochTeller(choice)],
    )
    samples = SampleCaptions(dev_set.select(range(min(settings.samples, len(dev_set)))), dev_collator, processor)
    if settings.samples:
        trainer.add_callback(samples)
    if not sys.stderr.isatty():
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(PlainLog())
    if settings.compile:
        # Fused by the compiler, plain attention over rows this short is faster than the library's kernel on a CPU.
        model.core.language_model.set_attn_implementation("eager")
        model.core.language_model.base_model.compile(dynamic=True)

    if trainer.is_world_process_zero():
        output_dir.mkdir(parents=True, exist_ok=True)
        if checkpoint is None:
            # Left there, they would be taken for this run's, and this run's first ones for the oldest.
            for folder in sort_checkpoints(str(output_dir)):
                logger.info("Starting afresh: removing %s", folder)
                shutil.rmtree(folder)
        (output_dir / RUN_CONFIG_NAME).write_text(yaml.safe_dump(dataclasses.asdict(config), sort_keys=False))
    if checkpoint is not None:
        logger.info("Resuming from %s", checkpoint)
    result = trainer.train(resume_from_checkpoint=checkpoint)
    if trainer.is_world_process_zero():
        save_captioner(model, processor, output_dir)
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
            steps=trainer.state.global_step,
            epochs=trainer.state.epoch or 0,
            processes=arguments.world_size,
            train_images=len(train_set),
            train_captions=count_captions(train_set),
            dev_images=len(dev_set),
            seconds=None if checkpoint else round(result.metrics["train_runtime"]),  # else of the last part alone
            dev_loss=loss,
            dev_loss_shuffled=shuffled,
            samples=samples.captions(model) if settings.samples else None,
        )
        record_training(model, output_dir, facts)
        model.name_or_path = str(output_dir)  # where an upload looks for them
        write_model_card(model, output_dir)
    return model


def save_captioner(model: CaptionerForConditionalGeneration, processor: CaptionerProcessor, directory: Path) -> None:
    """Writes a captioner's checkpoint, and nothing else: Trainer would put a pickle of its arguments beside it."""
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    for weights in directory.glob("*.safetensors"):
        shutil.copymode(directory / "config.json", weights)  # safetensors lets only the owner read it


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
        cleaning=Cleaning(settings.final_stop, settings.lower_case, settings.min_words, settings.max_words),
        dev_share=settings.dev_share,
    )


class ImageInputs:
    """Gives a batch's images to the model: as cached features where the tower is frozen, as pixels otherwise.

    Args:
        model, processor: the captioner's.
        images: the dataset's column `image`, read when needed; a row's `index` points into it.
        cache: whether to compute features once.
        features_dir: where they are kept; by default in the package's cache.
    """

    def __init__(
        self,
        model: CaptionerForConditionalGeneration,
        processor: CaptionerProcessor,
        images: Sequence[str],
        cache: bool,
        features_dir: Path | None = None,
    ):
        self.model, self.processor, self.images = model, processor, images
        self.features = None
        if cache and model.config.freeze_vision:
            self.features = image_features(model, processor, self.images, features_dir)

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        """`image_features`, float [B, N, D_vision], or `pixel_values`, float [B, 3, H, W]."""
        if self.features is not None:
            return {"image_features": self.features[[row["index"] for row in rows]]}
        pictures = [open_image(open_place(self.images[row["index"]])) for row in rows]
        return {"pixel_values": self.processor.image_processor(pictures, return_tensors="pt")["pixel_values"]}

    @torch.no_grad()
    def sample_features(self, count: int = 512) -> torch.Tensor:
        """Features of `count` images or some more, evenly spread, or of all; float [S, N, D_vision]."""
        chosen = range(0, len(self.images), max(1, len(self.images) // count))
        if self.features is not None:
            return self.features[list(chosen)]
        batches = [self([{"index": index}])["pixel_values"] for index in chosen]
        return torch.cat([self.model.core.encode_images(pixels)["pooler_output"] for pixels in batches])


class CaptionTrainer(Trainer):
    """Trainer, with a collator of its own for the dev images: their features are another table."""

    def __init__(self, *args, eval_collator: CaptionCollator, **kwargs):
        super().__init__(*args, **kwargs)
        self.eval_collator = eval_collator

    def get_eval_dataloader(self, eval_dataset=None):
        """As of Trainer."""
        train_collator, self.data_collator = self.data_collator, self.eval_collator
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = train_collator


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
        save_total_limit=2,
        logging_steps=settings.logging_steps,
        prediction_loss_only=True,
        remove_unused_columns=False,
        disable_tqdm=not sys.stderr.isatty(),
        dataloader_pin_memory=torch.cuda.is_available(),
        seed=settings.seed,
        report_to="none",
        ddp_find_unused_parameters=False,
        use_cpu=not torch.accelerator.is_available(),  # unsaid, several processes on CPUs would each train alone
        ddp_timeout=24 * 3600,  # seconds; other processes wait while the first one computes the image features
    )


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


@torch.no_grad()
def caption_nll(
    model: CaptionerForConditionalGeneration,
    dataset: Dataset,
    collator: CaptionCollator,
    batch_size: int,
    shuffle_images: bool = False,
) -> float:
    """Mean negative log-likelihood of all captions, in nats a token, end tokens included.

    Args:
        model: in any mode; it is evaluated in eval mode.
        dataset: rows with `captions` and `index`.
        collator: the dataset's.
        batch_size: images at a time.
        shuffle_images: give every caption the image of another row: a model that looks at its images loses by it.

    Raises:
        ValueError: if a single image is to be shuffled.
    """
    if shuffle_images and len(dataset) < 2:
        raise ValueError("There is no other image to shuffle a single one with.")
    training = model.training
    model.eval()
    total = torch.zeros((), dtype=torch.float64)
    count = 0
    what = "loss, images shuffled" if shuffle_images else "loss"
    for start in progress(range(0, len(dataset), batch_size), desc=what):
        rows = [dataset[i] for i in range(start, min(start + batch_size, len(dataset)))]
        if shuffle_images:
            rows = [{**row, "index": (row["index"] + len(dataset) // 2) % len(dataset)} for row in rows]
        batch = {name: tensor.to(model.device) for name, tensor in collator(rows).items()}
        targets = int((batch["shift_labels"] != IGNORE_INDEX).sum())
        total += model(**batch).loss.double().cpu() * targets
        count += targets
    model.train(training)
    return (total / count).item()


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
        ids = torch.tensor([self.collator.prefix] * len(self.rows), device=model.device)
        with torch.compiler.set_stance("force_eager"):  # every new length would be compiled anew
            outputs = model.generate(ids, **images, do_sample=False, max_new_tokens=30)
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
    """Tells the choice of captions which epoch begins, or is taken up again."""

    def __init__(self, choice: CaptionChoice):
        self.choice = choice

    def on_epoch_begin(self, args, state, control, **kwargs):
        """As of TrainerCallback."""
        self.choice.epoch = int(state.epoch or 0)  # of a resumed epoch, the part behind the point is done


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


def _checkpoint_to_resume(config: RunConfig, output_dir: Path) -> str | None:
    """The newest whole checkpoint in the output folder.

    Raises:
        ConfigError: if it belongs to a run of another config.
    """
    if not config.training.resume:
        return None
    # The state is written last: a folder without it was cut short.
    whole = [folder for folder in sort_checkpoints(str(output_dir)) if (Path(folder) / TRAINER_STATE_NAME).is_file()]
    if not whole:
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
