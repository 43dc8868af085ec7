"""Training on the CIDEr of captions that the model samples itself: self-critical training, and its clipped form.

A step samples captions of each image, rewards them, and makes the better ones of an image more probable and the worse
ones less. It is REINFORCE (Rennie et al. 2017, "Self-critical Sequence Training for Image Captioning",
arXiv:1612.00563) with the mean of the image's other captions as the baseline. With `epsilon`, `beta` and several
`num_iterations` it is GRPO (Shao et al. 2024, "DeepSeekMath", arXiv:2402.03300) without the division by the standard
deviation of the rewards.

The loss of a caption is summed over its tokens, and the step is divided by the number of tokens of all its captions.
So the gradient has the direction of the expected reward's, whatever the captions' lengths (Liu et al. 2025,
"Understanding R1-Zero-Like Training", arXiv:2503.20783: a mean over each caption's own tokens favours short good
captions and long bad ones), and learning rates mean what they do for the cross-entropy.

Without `do_sample`, the captions of an image are the beams of a beam search (Cornia et al. 2020, "Meshed-Memory
Transformer for Image Captioning", arXiv:1912.08226): what is then compared is what captioning chooses from.

Dropout is off, so that what is trained is the distribution that the captions were drawn from.
"""

import hashlib
from typing import Any

import torch
from torch.func import functional_call

from ..captioning.sampling import Samples, beam_captions, sample_captions
from ..config.run_config import RunConfig
from ..core.errors import ConfigError
from ..model.loss import IGNORE_INDEX, target_nll
from ..model.processing_captioner import QUESTION
from .loop import Batch, TrainingLoop
from .reward import CaptionReward, advantages
from .sharding import is_asked_for

_INPUTS = ("input_ids", "position_ids", "attention_mask", "logits_to_keep", "image_features", "pixel_values")

# What `_measured` sums.
_MEASURES = ("images", "captions", "tokens", "reward", "reward_std", "distinct", "ended", "kl")


def check_cider(config: RunConfig) -> None:
    """Checks that training on CIDEr is asked for where it can be done.

    Raises:
        ConfigError: It cannot, or its settings are given without it.
    """
    settings = config.stage_settings()
    where = "training.objective cider"
    if not any(stage.objective == "cider" for stage in settings):
        if any(stage.reinforce for stage in settings):
            raise ConfigError(f"training.reinforce is for {where}: set that, or leave reinforce out.")
        return
    if settings[0].objective == "cider" and config.model.init_from is None:
        raise ConfigError(
            f"{where} trains a captioner that can already write captions: set model.init_from, or make it a later "
            "stage (docs/training.md)."
        )
    if any(stage.objective == "cider" and not stage.eval_captions for stage in settings):
        raise ConfigError(
            f"{where} needs training.eval_captions: the best weights are those with the highest dev CIDEr, because "
            "the dev loss rises."
        )
    if QUESTION in config.data.prompt:
        raise ConfigError(
            f"{where} is for captions, and data.prompt asks questions: train answers with objective all."
        )
    if is_asked_for():
        raise ConfigError(
            f"{where} is not for sharded models, and accelerate launch was told to use FSDP: leave it out."
        )


class SelfCriticalLoop(TrainingLoop):
    """Trains what is not frozen of a captioner on rewards, in one stage of a run."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.reinforce = self.settings.reinforcement()
        # The trained weights at the start of the stage.
        self.reference: dict[str, torch.Tensor] = {}
        self._measured = self._no_measures()

    def _load_weights(self) -> None:
        if self.reinforce.beta:
            self.reference = {
                name: parameter.detach().clone()
                for name, parameter in self.model.named_parameters()
                if parameter.requires_grad
            }
        super()._load_weights()

    def _begin(self) -> None:
        self.reward = CaptionReward(list(self.data.train["captions"]), self.reinforce.bleu)
        super()._begin()

    def _collate(self, rows: list[dict[str, Any]]) -> Batch:
        """Makes a batch of images, and of `rows`, int64 [B]: where they stand in the dataset."""
        return {**self.data.collator.encode_images(rows), "rows": torch.tensor([row["index"] for row in rows])}

    # A step

    def step(self, batches: list[Batch]) -> None:
        """Makes one step: samples captions of the images, and updates the weights by them.

        Args:
            batches: The batches of images that are accumulated.
        """
        super().step([self.sample(batch, number) for number, batch in enumerate(batches)])

    @torch.no_grad()
    def sample(self, images: Batch, number: int) -> Batch:
        """Samples captions of a batch of images and packs them.

        Args:
            images: The batch.
            number: Its number among those that are accumulated.

        Returns:
            A batch for `backward`, with `advantages`, float [B, M], for each target, and with `beta` also
            `reference_nll`, float [B, M].
        """
        self.model.eval()
        settings, collator = self.reinforce, self.data.collator
        count = settings.num_generations
        inputs = {name: tensor for name, tensor in images.items() if name != "rows"}
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            samples = self._write(inputs, number)
        texts = self.processor.batch_decode(samples.token_ids, skip_special_tokens=True)
        rewards = self.reward(images["rows"].tolist(), [" ".join(text.split()) for text in texts], samples.ended)
        captions = [samples.token_ids[start : start + count] for start in range(0, len(texts), count)]
        batch = {**collator.pack([[([], ids) for ids in row] for row in captions])}
        weights = torch.zeros(batch["labels"].shape)
        lengths = torch.tensor([[len(ids) for ids in row] for row in captions])  # [B, K]
        for row, values in enumerate(advantages(rewards)):
            weights[row, : lengths[row].sum()] = values.repeat_interleave(lengths[row])
        batch["advantages"] = weights
        batch["amount"] = torch.stack([torch.full((len(captions),), count), lengths.sum(dim=1)], dim=1)
        batch = {name: tensor.to(self.device) for name, tensor in batch.items()} | images
        if settings.beta:
            batch["reference_nll"] = self._reference_nll(batch)
        distinct = [len({tuple(ids) for ids in row}) / count for row in captions]
        self._measured += torch.tensor(
            [
                *(len(captions), lengths.numel(), lengths.sum()),
                *(rewards.mean(dim=1).sum(), rewards.std(dim=1).sum(), sum(distinct), sum(samples.ended), 0),
            ]
        ).to(self.device)
        return batch

    def _write(self, images: Batch, number: int) -> Samples:
        """Returns the captions that a batch of images is trained on."""
        settings = self.reinforce
        arguments = (self.model, self.data.collator.prefix, images, settings.num_generations)
        if not settings.do_sample:
            return beam_captions(*arguments, settings.max_completion_length)
        return sample_captions(
            *arguments, settings.temperature, self._generator(number), max_new_tokens=settings.max_completion_length
        )

    def update(self, batches: list[Batch], targets: torch.Tensor) -> None:
        """Updates the weights `num_iterations` times.

        Args:
            batches: What `sample` returned for the batches that are accumulated.
            targets: The number of sampled tokens in all of them, over all processes.
        """
        self.prepared.eval()
        for _ in range(self.reinforce.num_iterations):
            super().update(batches, targets)

    def backward(self, batch: Batch, targets: torch.Tensor) -> torch.Tensor:
        """Adds a batch's gradients to those of its update.

        Args:
            batch: What `sample` returned. The first update by it adds `sampled_nll`, float [B, M].
            targets: The number of sampled tokens of the whole step, over all processes.

        Returns:
            The batch's share of the update's loss, times the number of processes.
        """
        is_target = batch["labels"] != IGNORE_INDEX
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            nll = self._nll(self.prepared(**self._inputs(batch)).logits, batch)
        # The weights of the first update are those that the captions were sampled with.
        ratio = torch.exp(batch.setdefault("sampled_nll", nll.detach()) - nll)
        gain = ratio * batch["advantages"]
        if self.reinforce.epsilon is not None:
            bounded = ratio.clamp(1 - self.reinforce.epsilon, 1 + self.reinforce.epsilon)
            gain = torch.minimum(gain, bounded * batch["advantages"])
        loss = -(gain * is_target).sum()
        if self.reinforce.beta:
            kl = (_divergence(nll, batch["reference_nll"]) * is_target).sum()
            loss = loss + self.reinforce.beta * kl
            self._measured[_MEASURES.index("kl")] += kl.detach() / self.reinforce.num_iterations
        loss = loss / targets * self.accelerator.num_processes
        self.accelerator.backward(loss)
        self._check_finite(loss, "loss", batch["rows"].tolist())
        return loss.detach()

    def _reference_nll(self, batch: Batch) -> torch.Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            outputs: Any = functional_call(self.model, self.reference, kwargs=self._inputs(batch))
            return self._nll(outputs.logits, batch)

    def _inputs(self, batch: Batch) -> dict[str, Any]:
        return {"use_cache": False} | {name: batch[name] for name in _INPUTS if name in batch}

    def _nll(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Returns the negative log-probability of each sampled token, float [B, M]; 0 where there is none."""
        if self.reinforce.temperature != 1:
            logits = logits / self.reinforce.temperature
        return target_nll(logits, batch["labels"])

    def _generator(self, number: int) -> torch.Generator:
        """Returns the random numbers of a batch, which depend on nothing that a resumed run would not know."""
        place = f"samples {self.settings.seed} {self.state.global_step} {self.accelerator.process_index} {number}"
        seed = int.from_bytes(hashlib.sha256(place.encode()).digest()[:8])
        return torch.Generator().manual_seed(seed)

    # The log

    def _no_measures(self) -> torch.Tensor:
        return torch.zeros(len(_MEASURES), device=self.device)

    def take_measures(self) -> dict[str, float]:
        """Returns the rewards, lengths and divergence of the captions that were sampled since the last time."""
        sums = dict(zip(_MEASURES, self.accelerator.reduce(self._measured, "sum").tolist(), strict=True))
        self._measured = self._no_measures()
        measures = {name: sums[name] / sums["images"] for name in ("reward", "reward_std", "distinct")}
        measures |= {"ended": sums["ended"] / sums["captions"], "sampled_tokens": sums["tokens"] / sums["captions"]}
        return measures | ({"kl": sums["kl"] / sums["tokens"]} if self.reinforce.beta else {})


def _divergence(nll: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Returns an estimate of the KL divergence from the reference, in nats, from each sampled token.

    It is never negative, and has no bias (k3 in Schulman 2020, "Approximating KL Divergence").
    """
    difference = nll - reference
    return torch.exp(difference) - difference - 1
