"""A captioner with no pretrained part, trained end to end on characters, and the faults that such systems have had."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_models import VISION as TINY
from tiny_models import picture
from tiny_runs import LANGUAGE, write_colours

from vlm_caption import Captioner, CaptionerForConditionalGeneration, CaptionerProcessor, compose
from vlm_caption.captioning.nll import sum_nll
from vlm_caption.config.run_config import RunConfig
from vlm_caption.data.collator import CaptionCollator
from vlm_caption.towers import composition
from vlm_caption.training import model as training_model
from vlm_caption.training.train import train

VIT = TINY["vit_cls"]["vision_config"]
SMALL_START = {"initializer_range": 0.02}  # as of real models; the tiny ones start so that images matter untrained
CAPTIONS = ["a red square.", "2 dogs!"]
IGNORED = -100


def scratch(captions=CAPTIONS, **settings: Any):
    """A model of random towers, all of it trained, and its processor."""
    torch.manual_seed(0)
    settings = {"pooled_feature": "cls", "projector_expansion": 4, "projector_dropout": 0.1} | settings
    settings |= {"freeze_vision": False, "freeze_language": False}
    return compose(VIT, LANGUAGE, tokenizer="characters", captions=captions, **settings)


def batch_of(model, processor, captions: list[list[str]], **settings):
    """A batch of as many images, the same ones for the same number."""
    pixels = processor(images=[picture(i) for i in range(len(captions))], return_tensors="pt")["pixel_values"]
    collator = CaptionCollator(processor, lambda rows: {"pixel_values": pixels}, **settings)
    return collator([{"captions": texts, "image": ""} for texts in captions])


@pytest.fixture(scope="module")
def overfitted(tmp_path_factory):
    """A run from scratch on eight pictures and the names of their colours: `folder`, `model`, `before`."""
    folder = tmp_path_factory.mktemp("scratch")
    table = write_colours(folder)
    table.write_text(table.read_text() + "dev_red.png,red?,dev\n")  # a character of no training caption
    before = {}
    training_compose = training_model.compose

    def compose(**settings):
        model, processor = training_compose(**settings)
        before.update({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return model, processor

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLM_CAPTION_CACHE", str(folder / "cache"))
        patch.setattr(training_model, "compose", compose)
        settings = {
            "model.vision": VIT | SMALL_START,
            "model.language": LANGUAGE | SMALL_START,
            "model.tokenizer": "characters",
            "model.pooled_feature": "cls",
            "model.projector_expansion": 4,
            "model.projector_dropout": 0.1,
            "data.path": str(table),
            "training.output_dir": str(folder / "run"),
            "training.train_vision": "full",
            "training.train_language": "full",
            "training.precision": "fp32",
            "training.batch_size": 8,
            "training.max_steps": 150,
            "training.warmup_steps": 10,
            "training.learning_rate": 5e-3,
            "training.eval_steps": 50,
            "training.save_steps": 50,
            "training.samples": 1,
        }
        model = train(RunConfig.load(None, settings))
    return SimpleNamespace(folder=folder, model=model, before=before)


class TestTraining:
    def test_every_part_is_trained(self, overfitted):
        after = overfitted.model.state_dict()
        same = {name for name, tensor in overfitted.before.items() if torch.equal(after[name].cpu(), tensor)}
        # What no token depends on has no gradient: the pooler behind the class token.
        assert {name.split(".")[2] for name in same} <= {"pooler"}

    def test_reproduces_the_captions_of_the_pictures_it_was_trained_on(self, overfitted):
        """To the end token, from the picture alone: no first character is given, nothing follows the last one."""
        captioner = Captioner.from_pretrained(overfitted.folder / "run")
        pictures = sorted(overfitted.folder.glob("train_*.png"))
        texts = [caption.text for caption in captioner.caption(pictures)]
        assert texts == [path.stem.removeprefix("train_") for path in pictures]

    def test_the_vocabulary_is_of_the_training_captions_alone(self, overfitted):
        processor = CaptionerProcessor.from_pretrained(overfitted.folder / "run")
        characters = {token for token in processor.tokenizer.get_vocab() if len(token) == 1}
        assert characters == set("redlimebluewhiteblackyellowmagentacyan")

    def test_ends_in_eval_mode_when_captioning_and_says_the_same_twice(self, overfitted):
        captioner = Captioner.from_pretrained(overfitted.folder / "run")
        assert not any(module.training for module in captioner.model.modules())
        first, second = (captioner.caption(overfitted.folder / "train_red.png") for _ in range(2))
        assert first == second

    def test_the_checkpoint_is_self_contained(self, overfitted, monkeypatch):
        """All weights, no tower to be fetched: it loads where nothing can be fetched."""
        config = json.loads((overfitted.folder / "run/config.json").read_text())
        assert (config["external_towers"], config["vision_backbone"], config["text_backbone"]) == ([], None, None)
        monkeypatch.setattr(composition, "resolve_backbone", None)
        loaded = CaptionerForConditionalGeneration.from_pretrained(overfitted.folder / "run").state_dict()
        state = overfitted.model.state_dict()
        assert loaded.keys() == state.keys()
        assert all(tensor.equal(state[name].cpu()) for name, tensor in loaded.items())

    def test_it_captions_with_transformers_alone(self, overfitted):
        model = CaptionerForConditionalGeneration.from_pretrained(overfitted.folder / "run")
        model.save_pretrained(overfitted.folder / "whole", full=True)
        CaptionerProcessor.from_pretrained(overfitted.folder / "run").save_pretrained(overfitted.folder / "whole")
        code = """
import sys; sys.modules['vlm_caption'] = None
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
folder, image = sys.argv[1:]
model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
inputs = processor(images=Image.open(image), return_tensors="pt")
print(processor.decode(model.generate(**inputs)[0], skip_special_tokens=True))
"""
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment |= {"HF_HOME": str(overfitted.folder), "HF_HUB_OFFLINE": "1"}
        arguments = [overfitted.folder / "whole", overfitted.folder / "train_yellow.png"]
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            cwd=overfitted.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert (done.returncode, done.stdout) == (0, "yellow\n"), done.stderr

    def test_dropout_is_on_in_training_and_off_for_the_dev_loss(self):
        model, processor = scratch()
        model.train()
        assert model.core.language_model.training
        assert model.core.vision_tower.training
        batch = batch_of(model, processor, [CAPTIONS])
        assert model(**batch).loss != model(**batch).loss  # GPT-2's own dropout
        model.core.vision_tower.register_forward_hook(lambda *_: seen.append(torch.is_grad_enabled()))
        seen: list[bool] = []
        first, second = (sum_nll(model, [batch]) for _ in range(2))
        assert first == second
        assert seen == [False, False]
        assert model.core.language_model.training
        assert model.core.vision_tower.training


class TestTargets:
    def test_the_first_character_is_predicted_from_the_image(self):
        model, processor = scratch()
        batch = batch_of(model, processor, [CAPTIONS])
        image_at = batch["input_ids"][0].tolist().index(model.config.image_token_id)
        first = [processor.tokenizer.convert_tokens_to_ids(caption[0]) for caption in CAPTIONS]
        position, target = batch["logits_to_keep"][0], batch["shift_labels"][0]
        assert target[position == image_at].tolist() == first

    def test_gradients_of_every_character_reach_the_images_first_layer(self):
        model, processor = scratch()
        batch = batch_of(model, processor, [["a"]])
        batch["shift_labels"][0, 1:] = IGNORED  # the first character alone
        model(**batch).loss.backward()
        gradient = model.core.vision_tower.embeddings.patch_embeddings.projection.weight.grad
        assert gradient.abs().max() > 0

    def test_padding_is_never_a_target_and_the_end_always_is(self):
        model, processor = scratch()
        batch = batch_of(model, processor, [CAPTIONS, [CAPTIONS[1]]])
        targets = batch["shift_labels"]
        tokenizer = processor.tokenizer
        assert (targets == tokenizer.pad_token_id).sum() == 0
        assert (targets == tokenizer.eos_token_id).sum(1).tolist() == [2, 1]
        assert (targets[1] != IGNORED).sum() == len(CAPTIONS[1]) + 1

    def test_an_unknown_character_is_read_and_not_learnt(self):
        model, processor = scratch()
        batch = batch_of(model, processor, [["a Red dog"]])
        unknown = processor.tokenizer.unk_token_id
        assert (batch["input_ids"] == unknown).sum() == 1
        expected = [*processor.tokenizer("a Red dog", add_special_tokens=False).input_ids, 2]
        assert batch["shift_labels"][0].tolist() == [IGNORED if i == unknown else i for i in expected]
        assert model(**batch).loss.isfinite()

    def test_an_end_token_that_stands_for_the_unknown_too_is_learnt(self):
        _, processor = scratch()
        processor.tokenizer.unk_token = processor.tokenizer.eos_token
        assert (batch_of(None, processor, [["dogs"]])["shift_labels"] == processor.tokenizer.eos_token_id).sum() == 1


class TestGeneration:
    @pytest.mark.parametrize("use_cache", [True, False])
    @pytest.mark.parametrize("layout", [{}, {"image_tokens": "patches"}])
    def test_generate_agrees_with_forward_step_by_step(self, use_cache, layout):
        model, processor = scratch(**layout)
        model.eval()
        never = processor.tokenizer.unk_token_id
        inputs = processor(images=[picture(1), picture(2)], return_tensors="pt")
        written = model.generate(**inputs, do_sample=False, use_cache=use_cache, max_new_tokens=20, min_new_tokens=20)
        start = inputs["input_ids"].shape[1]
        assert written.shape[1] == start + 20
        assert not written[0, start:].equal(written[1, start:])  # the images count
        with torch.no_grad():
            logits = model(input_ids=written, pixel_values=inputs["pixel_values"]).logits
        logits[..., never] = logits[..., processor.tokenizer.eos_token_id] = -torch.inf
        assert written[:, start:].equal(logits.argmax(-1)[:, start - 1 : -1])

    def test_the_loss_of_a_packed_batch_is_that_of_the_same_captions_one_by_one(self):
        model, processor = scratch()
        model.eval()
        together, count = sum_nll(model, [batch_of(model, processor, [CAPTIONS])])
        one_by_one = [sum_nll(model, [batch_of(model, processor, [[caption]])]) for caption in CAPTIONS]
        assert together == pytest.approx(sum(loss for loss, _ in one_by_one), rel=1e-5)
        assert count == sum(n for _, n in one_by_one)


def test_a_picture_is_squeezed_to_the_towers_size_whole():
    """Nothing is cut off at the sides, and no second scaling makes it dark."""
    from PIL import Image

    _, processor = scratch()
    wide = Image.new("RGB", (300, 100), "black")
    wide.paste("white", (0, 0, 20, 100))
    wide.paste("white", (280, 0, 300, 100))
    pixels = processor(images=wide, return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 32, 32)
    settings = processor.image_processor
    mean, std = (torch.tensor(values)[:, None, None] for values in (settings.image_mean, settings.image_std))
    shown = pixels[0] * std + mean
    assert shown[:, :, [0, -1]].mean() > 0.9
    assert shown[:, :, 8:24].abs().max() < 0.05


def test_the_decoders_blocks_add_to_what_came_in_and_scale_by_the_heads_width():
    """Residuals go around the norms, and scores are divided by the square root of a head's width, not the model's."""
    model, _ = scratch()
    block, width = model.eval().core.language_model.transformer.h[0], LANGUAGE["n_embd"]
    hidden = torch.randn(2, 5, width)
    heads = [
        part.unflatten(-1, (LANGUAGE["n_head"], -1)).transpose(1, 2)
        for part in block.attn.c_attn(block.ln_1(hidden)).split(width, dim=-1)
    ]
    scale = (width // LANGUAGE["n_head"]) ** -0.5
    mixed = torch.nn.functional.scaled_dot_product_attention(*heads, is_causal=True, scale=scale)
    after = hidden + block.attn.c_proj(mixed.transpose(1, 2).flatten(2))
    output = block(hidden)
    output = output if isinstance(output, torch.Tensor) else output[0]
    torch.testing.assert_close(output, after + block.mlp(block.ln_2(after)))
