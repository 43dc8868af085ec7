"""The training loop: transformers' Trainer, with batches of like length, an exact dev loss, and an end to runs that
have nothing more to learn."""

import contextlib
import importlib.util
import logging
import sys
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import TrainerState, TrainingArguments
from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from ..captioning.nll import sum_nll
from ..config.run_config import RunConfig, TrainingSection
from ..core.errors import ConfigError
from ..data.collator import CaptionCollator
from ..data.places import Place
from ..data.sampler import LengthBatchSampler
from ..model.freezing import TOWERS, module_of
from ..model.modeling_captioner import IGNORE_INDEX
from .checkpoints import CheckpointTrainer, read_state
from .dev_scores import score_cider
from .metrics_log import training_seconds

logger = logging.getLogger(__name__)

_NAMES_TOLD = 8


def check_logging(config: RunConfig) -> None:
    """Sees that what a run is to be told and chosen by can be had, before anything is begun.

    Raises:
        ConfigError: if not.
    """
    reporter = config.training.report_to
    if reporter != "none":
        if reporter not in INTEGRATION_TO_CALLBACK:
            known = ", ".join(sorted(INTEGRATION_TO_CALLBACK))
            raise ConfigError(f"training.report_to must be none or one of {known}, and {reporter!r} is not.")
        if reporter not in get_available_reporting_integrations():
            raise ConfigError(
                f"training.report_to {reporter} needs a package that is not installed: pip install "
                f"{reporter.replace('_', '-')}, or choose none."
            )
    captions = max(settings.eval_captions for settings in config.stage_settings())
    if captions == 1:
        raise ConfigError("training.eval_captions must be 0 or at least 2: a single image's CIDEr is always 0.")
    if captions > config.training.eval_images:
        raise ConfigError(
            f"training.eval_captions {captions} must be at most training.eval_images, {config.training.eval_images}."
        )
    if captions and importlib.util.find_spec("pycocoevalcap") is None:
        raise ConfigError("training.eval_captions needs pycocoevalcap: pip install pycocoevalcap.")


def training_arguments(settings: TrainingSection) -> TrainingArguments:
    """Trainer's settings: AdamW with warm-up and cosine decay, checkpoints in the output folder."""
    policies = {settings.module(module).policy for module in TOWERS}
    arguments = TrainingArguments(
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
        metric_for_best_model="cider" if settings.eval_captions else "loss",
        greater_is_better=bool(settings.eval_captions),
        logging_steps=settings.logging_steps,
        logging_nan_inf_filter=False,  # such a loss ends the run
        remove_unused_columns=False,
        disable_tqdm=not sys.stderr.isatty(),
        dataloader_pin_memory=torch.cuda.is_available(),
        seed=settings.seed,
        report_to=settings.report_to,
        run_name=Path(settings.output_dir).name,
        project="vlm-caption",
        # A tower may have weights that no image token comes from, such as a pooler's.
        ddp_find_unused_parameters=bool(policies & {"full", "last_n"}),
        use_cpu=not torch.accelerator.is_available(),  # unsaid, several processes on CPUs would each train alone
        ddp_timeout=24 * 3600,  # seconds; other processes wait while the first one computes the image features
    )
    if arguments.n_gpu > 1:
        logger.warning("Training on one of %d GPUs: for all, start it with torchrun or accelerate", arguments.n_gpu)
        arguments._n_gpu = 1  # Trainer would spread each batch over threads, and packed rows do not come apart
    return arguments


class CaptionTrainer(CheckpointTrainer):
    """Trains on one split of captioned images and takes the loss on another.

    Args:
        *args: as of Trainer.
        eval_collator: of the dev images: their features are another table.
        patience: so many evaluations in a row that are no better than the best end the training; 0: none does.
        eval_captions: so many of the first dev images are captioned and scored with CIDEr at each evaluation.
        rates: learning rate and weight decay of each module that has its own; by default those of the arguments.
        autocast: compute losses in bfloat16 where torch.autocast does, with all weights as they are.
        **kwargs: as of Trainer; datasets have the columns `image`, `captions` and `index`.
    """

    train_dataset: Dataset
    eval_dataset: Dataset
    data_collator: CaptionCollator

    def __init__(
        self,
        *args,
        eval_collator: CaptionCollator,
        patience: int = 0,
        eval_captions: int = 0,
        rates: dict[str, tuple[float, float]] | None = None,
        autocast: bool = False,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.eval_collator, self.patience, self.eval_captions = eval_collator, patience, eval_captions
        self.rates, self.autocast = rates or {}, autocast
        self._loss_shifts_labels = False  # a batch's labels are its targets, the first one as well
        self.batch_sampler = LengthBatchSampler(
            len(self.train_dataset),
            self.args.per_device_train_batch_size,
            self.args.gradient_accumulation_steps * self.args.world_size,
            self._lengths,
            self.args.seed,
        )
        self._step_rows: list[int] = []  # the images of the step that is being made
        self._trained_on = torch.zeros(2, dtype=torch.long, device=self.args.device)  # captions, tokens since a log
        self._since_log = self._since_start = 0.0  # seconds of the clock: without what is no step, and with all
        self._seconds_before = 0.0  # of the run's parts before this one

    def _lengths(self, rows: list[int]) -> list[int]:
        columns = self.train_dataset[rows]
        return self.data_collator.count_tokens(
            [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        )

    def get_train_dataloader(self) -> DataLoader:
        """As of Trainer. A batch also has `rows`, int64 [B]: where its images stand in the dataset; and `amount`,
        int64 [B, 2]: how many captions of an image there are, and how many tokens to learn.
        """

        def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
            batch = self.data_collator(rows)
            captions = torch.tensor([len(self.data_collator.choose(row)) for row in rows])
            tokens = (batch["labels"] != IGNORE_INDEX).sum(dim=1)
            places = torch.tensor([row["index"] for row in rows])
            return batch | {"rows": places, "amount": torch.stack([captions, tokens], dim=1)}

        return self.accelerator.prepare(
            DataLoader(
                self.train_dataset,  # ty: ignore[invalid-argument-type]
                batch_sampler=self.batch_sampler,
                collate_fn=collate,
                pin_memory=self.args.dataloader_pin_memory,
            )
        )

    def train(self, resume_from_checkpoint=None, *args, **kwargs) -> TrainOutput:
        """As of Trainer; a checkpoint at which the training had ended is not taken any further.

        Raises:
            FloatingPointError: if the loss or its gradient is not finite; the message names the images.
            CheckpointError: if the checkpoint is damaged.
            ConfigError: if a checkpoint cannot be written.
        """
        if resume_from_checkpoint is not None:
            state = read_state(resume_from_checkpoint)
            self._seconds_before = training_seconds(state.log_history) or 0.0
            *_, max_steps = self.set_initial_training_values(self.args, self.get_train_dataloader())
            # Trainer would first make one step and then look whether it was one too many.
            if state.global_step >= max_steps or self._is_out_of_patience(state):
                self._load_from_checkpoint(resume_from_checkpoint)
                self.state = state
                return TrainOutput(state.global_step, 0.0, {})
        self._since_log = self._since_start = time.perf_counter()
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """As of Trainer, with a learning rate and a weight decay for each module; norms and biases do not decay."""
        opt_model = self.model if model is None else model
        if self.optimizer is None:
            decaying = set(self.get_decay_parameter_names(opt_model))
            groups: dict[tuple[str, bool], dict[str, Any]] = {}
            for name, parameter in opt_model.named_parameters():
                if not parameter.requires_grad:
                    continue
                module = module_of(name)
                rate, decay = self.rates.get(module, (self.args.learning_rate, self.args.weight_decay))
                group = {"params": [], "lr": rate, "weight_decay": decay if name in decaying else 0.0}
                groups.setdefault((module, name in decaying), group)["params"].append(parameter)
            # Trainer logs the first group's rate: where the projector is trained, its own.
            ordered = sorted(groups.items(), key=lambda item: item[0][0] != "projector")
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, opt_model)
            self.optimizer = optimizer_class([group for _, group in ordered], **options)
            for (module, _), group in ordered:
                logger.info(
                    "%s: %s parameters in %d tensors, learning rate %g, weight decay %g",
                    module,
                    f"{sum(parameter.numel() for parameter in group['params']):,}",
                    len(group["params"]),
                    group["lr"],
                    group["weight_decay"],
                )
        return self.optimizer

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.args.device.type, torch.bfloat16, enabled=self.autocast)

    def compute_loss(self, *args, **kwargs):
        """As of Trainer."""
        with self._autocast():
            return super().compute_loss(*args, **kwargs)

    def _get_num_items_in_batch(self, batch_samples, device):
        # Trainer would count `shift_labels`: drawn ones are fewer than the targets that they count for.
        return super()._get_num_items_in_batch([{"labels": batch["labels"]} for batch in batch_samples], device)

    def training_step(self, model, inputs, num_items_in_batch=None):
        """As of Trainer."""
        rows = inputs.pop("rows").tolist()
        self._trained_on += inputs.pop("amount").sum(dim=0).to(self._trained_on.device)
        self._step_rows += rows
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._check_finite(loss, "loss", rows)
        return loss

    def _get_grad_norm(self, model, grad_norm=None):
        grad_norm = super()._get_grad_norm(model, grad_norm)
        self._check_finite(grad_norm, "gradient", self._step_rows)
        self._step_rows = []
        return grad_norm

    def _check_finite(self, value: torch.Tensor | float, what: str, rows: Sequence[int]) -> None:
        if torch.isfinite(torch.as_tensor(value)).all():
            return
        names = [Place.parse(self.train_dataset[row]["image"]).short_name for row in rows[:_NAMES_TOLD]]
        more = f" and {len(rows) - len(names)} more" if len(rows) > len(names) else ""
        raise FloatingPointError(
            f"The {what} is {float(value)} in step {self.state.global_step + 1}, on {', '.join(names)}{more}: look at "
            "these images and their captions, or lower training.learning_rate; no checkpoint was made of it."
        )

    def log(self, logs, start_time=None):
        """As of Trainer. Entries also have `captions_per_second` and `tokens_per_second` of the steps since the one
        before, and `seconds`, how long the run has trained by now, also before it was taken up again.

        Trainer's summary at the end, of the last part of a run alone, is left out.
        """
        if "train_runtime" in logs:
            return
        now = time.perf_counter()
        if "loss" in logs:
            captions, tokens = self.accelerator.reduce(self._trained_on, "sum").tolist()
            seconds = max(now - self._since_log, 1e-9)
            logs |= {"captions_per_second": captions / seconds, "tokens_per_second": tokens / seconds}
            self._trained_on.zero_()
            self._since_log = now
        logs["seconds"] = self._seconds_before + now - self._since_start
        super().log(logs, start_time)

    def evaluate(self, *args, **kwargs):
        """As of Trainer."""
        with self._no_step():
            return super().evaluate(*args, **kwargs)

    def _save_checkpoint(self, model, trial):
        with self._no_step():
            super()._save_checkpoint(model, trial)

    @contextlib.contextmanager
    def _no_step(self) -> Generator[None]:
        """Keeps the time of what is no step out of the captions a second."""
        begin = time.perf_counter()
        yield
        self._since_log += time.perf_counter() - begin

    def _determine_best_metric(self, metrics, trial):
        is_best = super()._determine_best_metric(metrics, trial)
        if self._is_out_of_patience(self.state):
            self.control.should_save = self.control.should_training_stop = True
        return is_best

    def _is_out_of_patience(self, state: TrainerState) -> bool:
        # Counted from the log, so a run that is taken up again counts on.
        since = [entry for entry in state.log_history if "eval_loss" in entry]
        worse = [entry for entry in since if entry["step"] > (state.best_global_step or 0)]
        return 0 < self.patience <= len(worse)

    def evaluation_loop(self, dataloader, description, *args, metric_key_prefix="eval", **kwargs) -> EvalLoopOutput:
        """As of Trainer, but the loss is the mean over tokens, not over batches; each process takes its share. With
        `eval_captions` there is also `eval_cider`.
        """
        rows = range(self.args.process_index, len(self.eval_dataset), self.args.world_size)
        size = self.args.per_device_eval_batch_size
        batches = (
            self.eval_collator([self.eval_dataset[row] for row in rows[start : start + size]])
            for start in range(0, len(rows), size)
        )
        with self._autocast():
            sums = gather_object([sum_nll(self.model, batches)])
            metrics = {"loss": sum(total for total, _ in sums) / sum(count for _, count in sums)}
            if self.eval_captions:
                first = list(self.eval_dataset.select(range(min(self.eval_captions, len(self.eval_dataset)))))
                metrics["cider"] = score_cider(self.model, self.eval_collator, first, size)
        return EvalLoopOutput(
            predictions=np.empty(0),
            label_ids=None,
            metrics={f"{metric_key_prefix}_{name}": value for name, value in metrics.items()},
            num_samples=len(self.eval_dataset),
        )
