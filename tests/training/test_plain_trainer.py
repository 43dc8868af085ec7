"""transformers' own Trainer on a captioner and its collator, as docs/huggingface.md shows it."""

import copy

import pytest
import torch
from tiny_models import tiny_model, tiny_processor
from tiny_runs import write_colours
from transformers import Trainer, TrainingArguments

from vlm_caption import CaptionerForConditionalGeneration
from vlm_caption.data import load_captions
from vlm_caption.data.collator import CaptionCollator
from vlm_caption.features.inputs import ImageInputs, with_index


@pytest.fixture
def train(tmp_path):
    """Trains the same fresh model for a few steps on packed captions; returns the trainer and the towers before."""
    write_colours(tmp_path)
    dataset = with_index(load_captions(tmp_path / "captions.csv", "train"))

    def train(name: str, batch_size: int, accumulation: int):
        torch.manual_seed(0)
        model = tiny_model("dinov2", image_tokens="patches", image_grid=2)
        towers = copy.deepcopy(model.core.language_model.state_dict())
        processor = tiny_processor(model.config)
        images = ImageInputs(model, processor, dataset["image"], cache=False)
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                str(tmp_path / name),
                max_steps=4,
                per_device_train_batch_size=batch_size,
                gradient_accumulation_steps=accumulation,
                learning_rate=1e-2,
                train_sampling_strategy="sequential",
                remove_unused_columns=False,  # the collator needs them all
                logging_steps=1,
                use_cpu=True,
                disable_tqdm=True,
            ),
            train_dataset=dataset,
            data_collator=CaptionCollator(processor, images),
            processing_class=processor,
        )
        trainer.train()
        return trainer, towers

    return train


def losses(trainer: Trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_it_learns_and_saves_a_bridge(train, tmp_path):
    trainer, towers = train("run", 8, 1)
    assert losses(trainer)[-1] < losses(trainer)[0]
    assert all(weight.equal(towers[name]) for name, weight in trainer.model.core.language_model.state_dict().items())
    loaded = CaptionerForConditionalGeneration.from_pretrained(tmp_path / "run" / "checkpoint-4")
    assert all(weight.equal(trainer.model.state_dict()[name]) for name, weight in loaded.state_dict().items())


def test_accumulated_batches_weigh_as_one(train):
    (whole, _), (parts, _) = train("whole", 8, 1), train("parts", 4, 2)
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-4)
