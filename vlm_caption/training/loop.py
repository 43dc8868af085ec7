"""The training loop: steps over batches of like length, with evaluations, checkpoints and logs on the way.

It is a plain loop on accelerate, as those of nanoGPT and nanoVLM are plain loops. A step divides by the number of
targets in all its batches, over all processes, so that every token weighs the same however the step is cut.
"""

import contextlib
import itertools
import logging
import math
import time
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.utils import gather_object
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import DataLoader
from transformers import set_seed

from ..captioning.nll import LossOf, model_loss
from ..core.files import move_folder
from ..core.interrupts import StopSignals
from ..data.corpus import count_captions
from ..data.places import row_name
from ..data.sampler import LengthBatchSampler
from ..model.loss import IGNORE_INDEX
from ..towers.captioner import CaptionerForConditionalGeneration
from ..towers.processor import CaptionerProcessor
from . import checkpoints
from .averaging import AveragedWeights
from .data import TrainingData
from .dev_scores import score_cider, score_losses
from .intervals import choose_intervals
from .metrics_log import append_metrics, write_metrics
from .optimizer import create_optimizer, create_schedule, move_schedule
from .progress import Progress, open_progress
from .samples import SampleCaptions
from .sharding import gather_tensor, gather_weights, is_sharded, reshard
from .stages import Stage
from .state import RunState

logger = logging.getLogger(__name__)

Batch = dict[str, torch.Tensor]

_NAMES_SHOWN = 8
_CHECKPOINTS_KEPT = 2


class TrainingLoop:
    """Trains what is not frozen of a captioner, in one stage of a run.

    Args:
        stage: The stage: its settings, learning rates, folder, and the checkpoint it resumes from.
        model: The captioner, on the process's device, its parts frozen or not.
        processor: The model's processor, which is saved in checkpoints.
        data: What is trained on and what is evaluated on.
        accelerator: Prepares model and batches for this process.
        signals: Ends the loop after a step, with a checkpoint. By default nothing does.
        samples: Dev images that are captioned at every evaluation.
        autocast: Whether to compute losses in bfloat16 where `torch.autocast` does, with weights as they are.

    Attributes:
        state: How far the run has come.
        intervals: How often it logs, evaluates and saves.
        best_weights: The trained parameters at the best evaluation, on the CPU; {} before the first one.
        average: The average of the trained parameters, which is evaluated in their place; None without one.
        loss_of: The loss that is trained on and measured on dev images.
    """

    loss_of: LossOf = staticmethod(model_loss)

    def __init__(
        self,
        stage: Stage,
        model: CaptionerForConditionalGeneration,
        processor: CaptionerProcessor,
        data: TrainingData,
        accelerator: Accelerator,
        signals: StopSignals | None = None,
        samples: SampleCaptions | None = None,
        autocast: bool = False,
    ):
        self.stage, self.settings, self.folder = stage, stage.settings, stage.folder
        self.model, self.processor, self.data, self.samples = model, processor, data, samples
        self.accelerator, self.device = accelerator, accelerator.device
        self.signals, self.autocast = signals or StopSignals(), autocast
        self.sampler = LengthBatchSampler(
            [*data.groups, *([] if data.replay is None else [data.replay])],
            self.settings.batch_size,
            self.settings.accumulation * accelerator.num_processes,
            self._count_tokens,
            self.settings.seed,
        )
        self.loader = accelerator.prepare(
            DataLoader(
                data.train,  # ty: ignore[invalid-argument-type]
                batch_sampler=self.sampler,
                collate_fn=self._collate,
                pin_memory=torch.cuda.is_available(),
            )
        )
        self.steps_an_epoch = math.ceil(len(self.loader) / self.settings.accumulation)
        self.checkpoint = stage.checkpoint
        self.state = RunState() if self.checkpoint is None else checkpoints.read_state(self.checkpoint)
        planned = self.state.max_steps
        self.state.max_steps = (
            self.settings.max_steps
            if self.settings.max_steps > 0
            else math.ceil(self.settings.epochs * self.steps_an_epoch)
        )
        # Whether the learning rate that the checkpoint holds is not that of the schedule from here on.
        self.is_rescheduled = self.checkpoint is not None and planned != self.state.max_steps
        if self.is_rescheduled and planned <= self.state.global_step < self.state.max_steps:
            self.state.schedule_start = self.state.global_step
        self.intervals = choose_intervals(self.settings, self.state.max_steps - self.state.schedule_start)
        self.best_weights: dict[str, torch.Tensor] = {}
        self.average: AveragedWeights | None = None
        self.random_state_from = self.checkpoint
        self.progress: Progress | None = None
        # Since the last log entry: the sum of the steps' losses, the number of steps, and of captions and tokens.
        self.loss_sum = torch.zeros((), device=self.device)
        self.steps_summed = 0
        self.trained_on = torch.zeros(2, dtype=torch.long, device=self.device)
        # Clocks: since the last log entry without what is no step, since the start, and of the run's earlier parts.
        self.since_log = self.since_start = 0.0
        self.seconds_before = self.state.seconds() or 0.0

    def run(self) -> None:
        """Trains to the last step, or until patience runs out, and puts the best weights into the model.

        Raises:
            FloatingPointError: The loss or its gradient is not finite; the message names the images.
            CheckpointError: The checkpoint to resume from is damaged.
            ConfigError: The run's folder cannot be written to.
            Interrupted: A signal ended the loop; a checkpoint of the last step is saved.
        """
        with self.signals.deferred():
            for _ in self.steps():
                pass
        if self.best_weights:
            checkpoints.load_trained(self.model, self.best_weights)

    def steps(self) -> Iterator[int]:
        """Makes one step after the other, and yields the number of each when it is logged, evaluated and saved."""
        try:
            self._load_weights()
            if self._is_over():
                return
            self._begin()
            for epoch in itertools.count(self.state.global_step // self.steps_an_epoch):
                for number, batches in enumerate(self._batches(epoch), self.state.global_step % self.steps_an_epoch):
                    self.step(batches)
                    self.state.global_step += 1
                    if self.average is not None:
                        self.average.update(self.state.global_step)
                    seen = min((number + 1) * self.settings.accumulation, len(self.loader))
                    self.state.epoch = epoch + seen / len(self.loader)
                    is_over = self._report_step()
                    yield self.state.global_step
                    if is_over:
                        return
        finally:
            self._close()

    def _load_weights(self) -> None:
        if self.checkpoint is not None:
            logger.info("Resuming from %s", self.checkpoint)
            checkpoints.load_weights(self.model, self.checkpoint)
            self.best_weights = checkpoints.read_best_weights(self.checkpoint)

    def _is_over(self) -> bool:
        return self.state.global_step >= self.state.max_steps or self.state.is_out_of_patience(self.settings.patience)

    def _begin(self) -> None:
        """Prepares the model, creates the optimizer, and opens the log."""
        # Dropout must not depend on what composing the model has drawn, or on whether features were in the cache.
        set_seed(self.settings.seed)
        optimizer = create_optimizer(self.model, self.stage.rates)
        if is_sharded(self.model):
            self.prepared, self.optimizer = self.model, self.accelerator.prepare(optimizer)
        else:
            self.prepared, self.optimizer = self.accelerator.prepare(self.model, optimizer)
        start = self.state.schedule_start
        warmup = self.intervals.warmup
        self.schedule = create_schedule(self.optimizer, warmup, self.state.max_steps - start, is_first=start == 0)
        if self.settings.ema_decay is not None:
            self.average = AveragedWeights(self.model, self.settings.ema_decay)
        if self.checkpoint is not None:
            checkpoints.load_optimizer(self.optimizer, self.schedule, self.checkpoint)
            if self.average is not None:
                self.average.load(self.checkpoint)
        if self.is_rescheduled:
            move_schedule(self.optimizer, self.schedule, self.state.global_step - start)
        if self.accelerator.is_main_process:
            with checkpoints.writing_to(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                write_metrics(self.folder, self.state.log_history)
            self._announce()
            self.progress = open_progress(self.state)
        self.since_log = self.since_start = time.perf_counter()

    def _announce(self) -> None:
        """Says in one line what is about to happen."""
        state, intervals, data = self.state, self.intervals, self.data
        if state.schedule_start and state.schedule_start == state.global_step:
            logger.info(
                "%s was finished after %d steps: it goes on to step %d with a new warm-up and decay",
                self.folder,
                state.global_step,
                state.max_steps,
            )
        logger.info(
            "Training on %d images with %d captions%s, %d steps of up to %d images (%.3g epochs) with %d of warm-up; "
            "evaluating on %d images every %d steps, saving every %d; the time left is known after %d",
            len(data.own),
            count_captions(data.own),
            data.describe_epoch(),
            state.max_steps - state.global_step,
            self.sampler.step_size,
            (state.max_steps - state.global_step) / self.steps_an_epoch,
            intervals.warmup,
            len(data.dev),
            intervals.evaluation,
            intervals.saving,
            intervals.logging,
        )

    def _close(self) -> None:
        if self.progress is not None:
            self.progress.close()
        for tracker in self.accelerator.trackers:
            tracker.finish()

    # Batches

    def _count_tokens(self, rows: list[int]) -> list[int]:
        columns = self.data.train[rows]
        return self.data.collator.count_tokens(
            [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        )

    def _collate(self, rows: list[dict[str, Any]]) -> Batch:
        """Makes a batch, which also has `rows`, int64 [B]: where its images stand in the dataset; and `amount`, int64
        [B, 2]: how many captions of an image there are, and how many tokens to learn.
        """
        batch = self.data.collator(rows)
        captions = torch.tensor([len(self.data.collator.choose(row)) for row in rows])
        tokens = (batch["labels"] != IGNORE_INDEX).sum(dim=1)
        places = torch.tensor([row["index"] for row in rows])
        return batch | {"rows": places, "amount": torch.stack([captions, tokens], dim=1)}

    def _batches(self, epoch: int) -> Iterator[list[Batch]]:
        """Yields the batches of each step of an epoch, from the next step on."""
        self.sampler.epoch = self.data.choice.epoch = epoch
        for drawn in (self.data.choose_targets, self.data.flips):
            if drawn is not None:
                drawn.epoch = epoch
        loader, done = self.loader, self.state.global_step % self.steps_an_epoch
        if not done:
            self._load_random_state()
        else:
            loader = skip_first_batches(loader, done * self.settings.accumulation)
        batches = iter(loader)
        for _ in range(done, self.steps_an_epoch):
            step = list(itertools.islice(batches, self.settings.accumulation))
            # The first batch of an epoch draws a random number, which a checkpoint from inside it has behind it.
            self._load_random_state()
            yield step

    def _load_random_state(self) -> None:
        """Takes up the random state of the checkpoint; once, for it is that of the first step only."""
        if self.random_state_from is not None:
            checkpoints.load_random_state(self.random_state_from, self.accelerator.process_index, self.device)
            self.random_state_from = None

    # A step

    def step(self, batches: list[Batch]) -> None:
        """Makes one step of the optimizer.

        Args:
            batches: The batches that are accumulated.
        """
        targets = torch.stack([(batch["labels"] != IGNORE_INDEX).sum() for batch in batches]).sum()
        self.prepared.train()
        self.update(batches, self.accelerator.reduce(targets, "sum"))
        self.trained_on += torch.cat([batch["amount"] for batch in batches]).sum(dim=0)
        self.learning_rate = self.schedule.get_last_lr()[0]
        self.schedule.step()

    def update(self, batches: list[Batch], targets: torch.Tensor) -> None:
        """Updates the weights once.

        Args:
            batches: The batches that are accumulated.
            targets: The number of targets in all of them, over all processes.
        """
        for batch in batches:
            with contextlib.nullcontext() if batch is batches[-1] else self._keeping_gradients():
                self.loss_sum += self.backward(batch, targets)
        self.grad_norm = gather_tensor(
            self.accelerator.clip_grad_norm_(self.prepared.parameters(), self.settings.max_grad_norm or math.inf)
        )
        self._check_finite(self.grad_norm, "gradient", [row for batch in batches for row in batch["rows"].tolist()])
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.steps_summed += 1

    def backward(self, batch: Batch, targets: torch.Tensor) -> torch.Tensor:
        """Adds a batch's gradients to those of its step.

        Args:
            batch: The batch.
            targets: The number of targets of the whole step, over all processes.

        Returns:
            The batch's share of the step's loss, times the number of processes, for their gradients are averaged.
        """
        inputs = {name: tensor for name, tensor in batch.items() if name not in ("rows", "amount")}
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            loss = self.loss_of(self.prepared, inputs, targets) * self.accelerator.num_processes
        self.accelerator.backward(loss)
        self._check_finite(loss, "loss", batch["rows"].tolist())
        return loss.detach()

    @contextlib.contextmanager
    def _keeping_gradients(self) -> Generator[None]:
        """Leaves gradients in their process: they are exchanged with those of the step's last batch."""
        if isinstance(self.prepared, FSDPModule):
            self.prepared.set_requires_gradient_sync(False)
            yield
            self.prepared.set_requires_gradient_sync(True)
        else:
            with self.accelerator.no_sync(self.prepared):
                yield

    def _check_finite(self, value: torch.Tensor, what: str, rows: Sequence[int]) -> None:
        if torch.isfinite(value):
            return
        has_vectors = self.model.config.feature_size is not None
        names = [row_name(self.data.train[row]["image"], has_vectors) for row in rows[:_NAMES_SHOWN]]
        more = f" and {len(rows) - len(names)} more" if len(rows) > len(names) else ""
        raise FloatingPointError(
            f"The {what} is {value.item()} in step {self.state.global_step + 1}, on {', '.join(names)}{more}: look at "
            "these images and their captions, or lower training.learning_rate; no checkpoint was made of it."
        )

    # Between two steps

    def _report_step(self) -> bool:
        """Logs, evaluates and saves where it is time to, and returns whether the loop is over."""
        step, intervals = self.state.global_step, self.intervals
        is_last = step >= self.state.max_steps
        if self.progress is not None:
            self.progress.advance(self.state)
        if is_last or step % intervals.logging == 0:
            self._log_training()
        if is_last or step % intervals.evaluation == 0:
            with contextlib.nullcontext() if self.average is None else self.average.in_model():
                self.evaluate()
        is_over = self._is_stopped() or self._is_over()
        if is_over or step % intervals.saving == 0:
            self.save()
        return is_over

    def _is_stopped(self) -> bool:
        """Returns whether any process was sent a signal; all end at the same step."""
        if self.accelerator.num_processes > 1:
            received = self.accelerator.gather(torch.tensor([self.signals.received], device=self.device))
            self.signals.received = int(received.max())
        return self.signals.received > 0

    def _log_training(self) -> None:
        """Logs the mean loss since the last time, and how fast that went."""
        loss = self.accelerator.gather(self.loss_sum).mean().item() / self.steps_summed
        captions, tokens = self.accelerator.reduce(self.trained_on, "sum").tolist()
        now = time.perf_counter()
        seconds = max(now - self.since_log, 1e-9)
        self._log(
            {
                "loss": loss,
                "grad_norm": self.grad_norm.item(),
                "learning_rate": self.learning_rate,
                "captions_per_second": captions / seconds,
                "tokens_per_second": tokens / seconds,
                **self.take_measures(),
            }
        )
        self.loss_sum.zero_()
        self.trained_on.zero_()
        self.steps_summed, self.since_log = 0, now

    def take_measures(self) -> dict[str, float]:
        """Returns what else is logged of the steps since the last time. All processes call it."""
        return {}

    def _log(self, values: dict[str, Any]) -> None:
        """Adds an entry to the log: to the state, the file, the terminal and the tracker."""
        entry = self.state.log(values | {"seconds": self.seconds_before + time.perf_counter() - self.since_start})
        self._append(entry)
        if self.progress is not None:
            self.progress.log(self.state, entry)
        if self.accelerator.trackers:
            renamed = {
                f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}": value
                for name, value in entry.items()
                if name != "step"
            }
            self.accelerator.log(renamed, step=self.state.global_step)

    def _append(self, entry: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            with checkpoints.writing_to(self.folder):
                append_metrics(self.folder, entry)

    @contextlib.contextmanager
    def _no_step(self) -> Generator[None]:
        """Keeps the time of what is no step out of the captions a second."""
        begin = time.perf_counter()
        yield
        self.since_log += time.perf_counter() - begin

    def evaluate(self) -> None:
        """Measures dev loss and CIDEr, keeps the weights if they are the best so far, and writes sample captions."""
        data, size, start = self.data, self.settings.batch_size, time.perf_counter()
        with self._no_step(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            metrics = score_losses(self.model, data.dev_collator, data.dev, size, self.loss_of)
            if self.settings.eval_captions:
                first = list(data.dev.select(range(min(self.settings.eval_captions, len(data.dev)))))
                metrics["eval_cider"] = score_cider(self.model, data.dev_collator, first, size)
        seconds = max(time.perf_counter() - start, 1e-9)
        batches = math.ceil(len(data.dev) / (size * self.accelerator.num_processes))
        metrics |= {
            "eval_runtime": round(seconds, 4),
            "eval_samples_per_second": round(len(data.dev) / seconds, 3),
            "eval_steps_per_second": round(batches / seconds, 3),
        }
        with self._no_step():
            self._log(metrics)
            if self.samples is not None and (self.accelerator.is_main_process or is_sharded(self.model)):
                self._show_samples(self.samples.captions(self.model))
            reshard(self.model)
            if self.state.choose_best(metrics):
                self.best_weights = {
                    name: gather_tensor(tensor.detach()).cpu().clone() for name, tensor in _trained(self.model)
                }

    def _show_samples(self, samples: list[dict[str, str]]) -> None:
        self._append(self.state.log({"samples": samples}))
        for sample in samples:
            logger.info("  %s: %s  [reference: %s]", sample["image"], sample["caption"], sample["reference"])

    def save(self) -> None:
        """Writes a checkpoint, complete or not at all, and removes old ones.

        Raises:
            ConfigError: The run's folder cannot be written to.
        """
        is_main = self.accelerator.is_main_process
        with self._no_step(), checkpoints.writing_to(self.folder):
            # All processes take part in these.
            random_states = gather_object([checkpoints.random_state(self.device)])
            optimizer = checkpoints.optimizer_state(self.optimizer)
            weights = gather_weights(self.model, is_main) if is_sharded(self.model) else None
            if not is_main:
                return
            partial = self.folder / checkpoints.PARTIAL_NAME
            # Under the model's own names, which resuming looks for.
            self.model.save_pretrained(partial, state_dict=weights, save_original_format=False)
            self.processor.save_pretrained(partial)
            checkpoints.save_optimizer(optimizer, self.schedule, partial)
            checkpoints.save_random_states(random_states, partial)
            checkpoints.save_best_weights(self.best_weights, partial)
            if self.average is not None:
                self.average.save(partial)
            self.state.save(partial / checkpoints.STATE_NAME)
            move_folder(partial, self.folder / f"checkpoint-{self.state.global_step}")
            for folder in checkpoints.find_checkpoints(self.folder)[:-_CHECKPOINTS_KEPT]:
                checkpoints.remove_checkpoint(folder)


def _trained(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields the trained parameters, and the running statistics beside them, such as those of batch normalisation."""
    yield from ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)
    kept = model.state_dict().keys()
    for prefix, module in model.named_modules():
        if any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
            for name, buffer in module.named_buffers(prefix, recurse=False):
                if name in kept and buffer.is_floating_point():
                    yield name, buffer
