"""A captioner without a vision tower: its config, model, processor and files, and how it captions vectors."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from commands import load_script
from huggingface_hub import ModelCard
from tiny_models import (
    BOS,
    IMAGE,
    LANGUAGE,
    VISION,
    build,
    byte_tokenizer,
    pixels,
    save_language_model,
    save_vision_tower,
)
from tiny_runs import write_colours
from transformers import AutoProcessor

from vlm_caption import (
    Captioner,
    CaptionerConfig,
    CaptionerForConditionalGeneration,
    CaptionerProcessor,
    compose,
    write_model_card,
)
from vlm_caption.captioning.attribution import heat_map
from vlm_caption.data import open_vectors
from vlm_caption.towers.processor import VectorProcessor

TOKENS, WIDTH = 3, 8


def vector_config(**settings) -> CaptionerConfig:
    return CaptionerConfig(text_config=LANGUAGE["gpt2"], feature_size=WIDTH, **({"feature_tokens": TOKENS} | settings))


def vectors(count: int = 2, tokens: int = TOKENS, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, tokens, WIDTH, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def model() -> CaptionerForConditionalGeneration:
    return build(vector_config())


@pytest.fixture
def processor(model) -> CaptionerProcessor:
    return CaptionerProcessor.from_config(model.config, None, byte_tokenizer())


@pytest.fixture
def captioner(model, processor) -> Captioner:
    model.generation_config.update(max_new_tokens=6, do_sample=False)
    return Captioner(model, processor)


class TestConfig:
    def test_takes_its_sizes_from_the_vectors(self):
        config = vector_config()
        assert config.vision_config is None
        assert (config.vision_feature_size, config.image_seq_length) == (WIDTH, TOKENS)
        assert vector_config(image_start="learned").image_seq_length == TOKENS + 1

    def test_is_the_same_after_saving(self, tmp_path):
        vector_config().save_pretrained(tmp_path)
        loaded = CaptionerConfig.from_pretrained(tmp_path)
        assert loaded.to_dict() == vector_config().to_dict() | {"transformers_version": loaded.transformers_version}
        assert loaded.vision_config is None

    @pytest.mark.parametrize(
        ("settings", "sentence"),
        [
            (VISION["clip"], "feature_size says that there is no vision tower: leave out vision_config"),
            ({"vision_backbone": {"name": "x"}}, "leave out vision_config, or feature_size"),
            ({"image_tokens": "patches"}, "choose among a vision tower's tokens, and there is no vision tower"),
            ({"pooled_feature": "cls"}, "choose among a vision tower's tokens"),
            ({"feature_tokens": 0}, "feature_tokens must be at least 1, got 0"),
            ({"feature_size": None, "feature_tokens": 2}, "feature_tokens belongs to feature_size"),
            ({"feature_size": 0}, "feature_size must be at least 1, got 0"),
            ({"projector": "resampler"}, "an input's tokens: set feature_tokens above 1, or choose"),
            ({"projector": "prefix_mlp", "feature_tokens": 2}, "one pooled vector: set feature_tokens=1, or choose"),
        ],
    )
    def test_refuses_what_does_not_go_together(self, settings, sentence):
        with pytest.raises(ValueError, match=sentence):
            CaptionerConfig(**({"text_config": LANGUAGE["gpt2"], "feature_size": WIDTH} | settings))

    def test_composing_needs_both_the_word_and_the_width(self):
        for sizes, vision in (({}, "none"), ({"feature_size": 4}, LANGUAGE["gpt2"])):
            with pytest.raises(ValueError, match="go together: give both or neither"):
                compose(vision, LANGUAGE["gpt2"], **sizes)


class TestModel:
    def test_several_vectors_become_one_token_each_before_the_transformer(self):
        settings = {"projector": "transformer", "projector_tokens": 5, "projector_layers": 1, "projector_heads": 2}
        for count, tokens in ((1, 5), (TOKENS, 1)):
            core = build(vector_config(feature_tokens=count, **settings)).core
            linear = core.multi_modal_projector.linear
            assert linear.out_features == tokens * core.config.text_config.hidden_size
            assert core.multi_modal_projector(vectors(2, count)).shape[1] == 5

    def test_has_no_vision_tower_and_trains_its_projector(self, model):
        assert model.core.vision_tower is None
        model.train()
        assert not model.core.language_model.training
        assert {name.split(".")[1] for name, p in model.named_parameters() if p.requires_grad} == {
            "multi_modal_projector"
        }

    def test_the_loss_is_the_language_models_own_on_the_projected_vectors(self, model):
        features = vectors(1)
        ids = torch.tensor([[BOS, *[IMAGE] * TOKENS, 70, 80, 90]])
        labels = ids.masked_fill(ids < 60, -100)
        loss = model(input_ids=ids, image_features=features, labels=labels).loss
        embeds = model.get_input_embeddings()(ids.clamp_max(IMAGE - 1)).detach().clone()
        embeds[:, 1 : 1 + TOKENS] = model.core.multi_modal_projector(features)
        logits = model.core.language_model(inputs_embeds=embeds).logits[0, TOKENS:-1]
        assert torch.allclose(loss, torch.nn.functional.cross_entropy(logits, ids[0, 1 + TOKENS :]), rtol=1e-5)
        loss.backward()
        assert model.core.multi_modal_projector.linear_1.weight.grad.abs().sum() > 0

    @pytest.mark.parametrize(
        "settings",
        [
            {},
            {"image_start": "learned", "image_end": "learned", "query_tokens": 2},
            {"feature_tokens": 1},
            {"feature_tokens": 1, "projector": "prefix_mlp", "projector_tokens": 2},
            {"projector": "resampler", "projector_tokens": 2, "projector_heads": 2},
        ],
    )
    def test_writes_from_vectors_alone(self, settings):
        model = build(vector_config(**settings))
        features = vectors(2, model.config.feature_tokens)
        prompt = model.core.image_prompt(2)
        logits = model(input_ids=prompt, image_features=features).logits[:, -1]
        assert not torch.allclose(*logits)
        written = model.generate(image_features=features, max_new_tokens=6, do_sample=False)
        assert torch.equal(written[:, prompt.shape[1]], logits.argmax(-1))
        beams = model.generate(image_features=features, max_new_tokens=6, num_beams=2)
        assert len(beams) == 2

    def test_gradient_checkpointing_changes_no_gradient(self, model):
        ids = torch.tensor([[BOS, *[IMAGE] * TOKENS, 70, 80, 90]])
        gradients = []
        for _ in range(2):
            model.zero_grad()
            model(input_ids=ids, image_features=vectors(1), labels=ids).loss.backward()
            gradients.append(model.core.multi_modal_projector.linear_1.weight.grad.clone())
            model.gradient_checkpointing_enable()
        assert torch.allclose(*gradients)

    def test_refuses_pictures_and_other_shapes(self, model):
        for call in (model.generate, model.get_image_features):
            with pytest.raises(
                ValueError, match=r"has no vision tower: pass .* \[inputs, 3, 8\], and not as pixel_val"
            ):
                call(pixel_values=pixels(1))
            with pytest.raises(ValueError, match=r"must have the shape \[inputs, 3, 8\], and have \[2, 8\]"):
                call(image_features=torch.zeros(2, WIDTH))


class TestFiles:
    @pytest.mark.parametrize("full", [False, True])
    def test_a_checkpoint_writes_the_same_as_before_saving(self, tmp_path, full):
        model, processor = compose("none", save_language_model(tmp_path / "l"), feature_size=WIDTH)
        features = vectors(2, tokens=1)
        before = model.generate(image_features=features, max_new_tokens=6)
        model.save_pretrained(tmp_path / "saved", full=full)
        processor.save_pretrained(tmp_path / "saved")
        external = json.loads((tmp_path / "saved/config.json").read_text())["external_towers"]
        assert external == ([] if full else ["language_model"])
        loaded = CaptionerForConditionalGeneration.from_pretrained(tmp_path / "saved")
        assert loaded.core.vision_tower is None
        inputs = CaptionerProcessor.from_pretrained(tmp_path / "saved")(image_features=features, return_tensors="pt")
        assert torch.equal(loaded.generate(**inputs, max_new_tokens=6), before)

    @pytest.mark.parametrize("full", [False, True])
    @pytest.mark.parametrize("flag", [None, True])
    def test_the_auto_classes_know_it(self, tmp_path, captioner, full, flag):
        captioner.model.save_pretrained(tmp_path, full=full)
        captioner.processor.save_pretrained(tmp_path)
        assert type(AutoProcessor.from_pretrained(tmp_path, trust_remote_code=flag)) is VectorProcessor

    def test_a_full_checkpoint_loads_without_the_package(self, tmp_path, captioner):
        captioner.model.save_pretrained(tmp_path / "whole", full=True)
        captioner.processor.save_pretrained(tmp_path / "whole")
        code = """
import sys; sys.modules['vlm_caption'] = None
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
processor = AutoProcessor.from_pretrained("whole", trust_remote_code=True)
model = AutoModelForImageTextToText.from_pretrained("whole", trust_remote_code=True)
vectors = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(1))
inputs = processor(image_features=vectors, text="A", return_tensors="pt")
print(model.generate(**inputs).tolist())
"""
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment |= {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr
        inputs = captioner.processor(image_features=vectors(), text="A", return_tensors="pt")
        assert done.stdout.strip() == str(captioner.model.generate(**inputs).tolist())

    def test_the_card_claims_no_vision_tower_and_no_pictures_pipeline(self, tmp_path, captioner):
        captioner.model.save_pretrained(tmp_path, full=True)
        captioner.processor.save_pretrained(tmp_path)
        write_model_card(captioner.model, tmp_path)
        card = ModelCard.load(tmp_path / "README.md")
        assert "vision tower" not in card.text
        assert "photo" not in card.text
        assert "pipeline" not in card.text
        assert card.data.pipeline_tag is None
        assert ": vectors of 8 numbers → projection → gpt2" in card.text
        assert "An input is 3 tokens, behind the language model's BOS: 3 vectors of 8 numbers" in card.text
        assert "caption_vectors(vectors):  # float [inputs, 3, 8]" in card.text


class TestProcessor:
    def test_writes_a_prompt_behind_the_vectors(self, processor):
        inputs = processor(image_features=vectors(), text="A", return_tensors="pt")
        letter = processor.tokenizer("A", add_special_tokens=False).input_ids
        assert inputs["input_ids"].tolist() == [[BOS, *[IMAGE] * TOKENS, *letter]] * 2
        assert torch.equal(inputs["image_features"], vectors())

    def test_refuses_pictures_and_prompts_of_another_number(self, processor):
        with pytest.raises(ValueError, match="takes no pictures: pass vectors, as image_features"):
            processor(images=np.zeros((8, 8, 3), dtype=np.uint8))
        with pytest.raises(ValueError, match="2 prompts for 3 inputs: give one for all, or one for each"):
            processor(image_features=vectors(3), text=["A", "B"])


class TestCaptioner:
    @pytest.mark.parametrize("prompt", ["", "A "])
    def test_captions_arrays_in_order_whatever_the_batch(self, captioner, prompt):
        features = vectors(5)
        captions = list(captioner.caption_vectors(features.double().numpy(), prompt=prompt, batch_size=2))
        assert [caption.image for caption in captions] == ["0", "1", "2", "3", "4"]
        for row, caption in enumerate(captions):
            inputs = captioner.processor(image_features=features[[row]], text=prompt.rstrip(), return_tensors="pt")
            ids = captioner.model.generate(**inputs)[0, inputs["input_ids"].shape[1] :]
            text = captioner.processor.decode(ids, skip_special_tokens=True)
            assert caption.text == " ".join(text.split())
            assert caption.score < 0

    def test_a_captioner_with_a_vision_tower_takes_its_features_as_well(self, tmp_path):
        model, processor = compose(save_vision_tower(tmp_path / "v"), save_language_model(tmp_path / "l"))
        model.generation_config.update(max_new_tokens=6)
        features = model.eval().core.encode_images(pixels(1)).pooler_output
        [caption] = Captioner(model, processor).caption_vectors(features)
        ids = model.generate(pixel_values=pixels(1))
        assert caption.text == " ".join(processor.decode(ids[0], skip_special_tokens=True).split())

    @pytest.mark.parametrize(
        "settings",
        [
            {"image_start": "learned", "image_end": "learned"},
            {"query_tokens": 2},
            {"projector": "prefix_mlp", "projector_tokens": 4, "feature_tokens": 1},
        ],
    )
    def test_takes_the_vectors_own_shape_whatever_the_language_model_gets(self, settings):
        config = vector_config(**settings)
        model = build(config)
        captioner = Captioner(model, CaptionerProcessor.from_config(config, None, byte_tokenizer()))
        features = vectors(2, tokens=config.feature_tokens)
        assert len(list(captioner.caption_vectors(features, max_new_tokens=2))) == 2

    def test_refuses_what_it_cannot_caption(self, captioner):
        with pytest.raises(ValueError, match="takes no pictures: give it vectors"):
            captioner.caption("photo.jpg")
        with pytest.raises(
            ValueError, match=r"The input has the shape \[2, 1, 8\], and this captioner takes \[inputs, 3"
        ):
            captioner.caption_vectors(np.zeros((2, WIDTH)))
        with pytest.raises(ValueError, match="not finite"):
            captioner.caption_vectors(np.full((2, TOKENS, WIDTH), np.nan))
        with pytest.raises(ValueError, match="batch_size must be at least 1"):
            captioner.caption_vectors(vectors(), batch_size=0)


class TestScript:
    @pytest.fixture
    def checkpoint(self, tmp_path, captioner) -> str:
        captioner.model.save_pretrained(tmp_path / "checkpoint")
        captioner.processor.save_pretrained(tmp_path / "checkpoint")
        np.save(tmp_path / "v.npy", vectors(3).numpy())
        return str(tmp_path / "checkpoint")

    def test_captions_a_file_in_the_formats_of_pictures(self, checkpoint, tmp_path, captioner, capsys):
        wanted = list(captioner.caption_vectors(open_vectors(tmp_path / "v.npy")))
        script = load_script("caption")
        options = ["--checkpoint", checkpoint, "--features", str(tmp_path / "v.npy")]
        assert script.main(options) == 0
        assert capsys.readouterr().out == "".join(f"{caption.image}: {caption.text}\n" for caption in wanted)
        assert script.main([*options, "--format", "json"]) == 0
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [(line["image"], line["caption"]) for line in lines] == [(c.image, c.text) for c in wanted]
        assert set(lines[0]) == {"image", "caption", "score", "confidence", "finished", "checkpoint"}

    @pytest.mark.parametrize("suffix", ["jsonl", "csv"])
    def test_captions_of_other_vectors_are_not_taken_for_those_of_these(self, checkpoint, tmp_path, capsys, suffix):
        script, output = load_script("caption"), tmp_path / f"o.{suffix}"
        options = ["--checkpoint", checkpoint, "--output", str(output), "--features", str(tmp_path / "v.npy")]
        assert script.main(options) == 0
        written = output.read_bytes()
        assert script.main(options) == 0
        for rows in (3, 5):
            np.save(tmp_path / "v.npy", vectors(rows).numpy() + 1)
            assert script.main(options) == 2
            assert f"{output} has captions of other vectors: name another file." in capsys.readouterr().err
        assert output.read_bytes() == written

    def test_what_needs_pictures_refuses_it(self, checkpoint, captioner, tmp_path, capsys):
        write_colours(tmp_path)
        for name, options in (
            ("index", ["--data.path", str(tmp_path / "captions.csv"), str(tmp_path / "store")]),
            ("serve", ["--port", "0"]),
        ):
            if name == "serve":
                pytest.importorskip("gradio")
            assert load_script(name).main(["--checkpoint", checkpoint, *options]) == 2
            assert "This captioner has no vision tower, and takes no pictures" in capsys.readouterr().err
        with pytest.raises(ValueError, match="takes no pictures"):
            heat_map(captioner, "photo.jpg", "a dog")

    def test_says_in_a_sentence_what_is_wrong(self, checkpoint, tmp_path, capsys):
        script = load_script("caption")
        np.save(tmp_path / "wide.npy", np.zeros((2, 5)))
        for options, sentence in (
            (["--features", str(tmp_path / "wide.npy")], "wide.npy has the shape [2, 1, 5], and this captioner takes"),
            (["--features", str(tmp_path / "none.npy")], "none.npy: there is no such file of vectors"),
            ([str(tmp_path / "v.npy")], "caption.py: "),
        ):
            code = script.main(["--checkpoint", checkpoint, *options])
            assert code in (1, 2)
            error = capsys.readouterr().err
            assert sentence in error
            assert "Traceback" not in error
        for options in ([], ["--features", "v.npy", "photo.jpg"]):
            with pytest.raises(SystemExit) as exit:
                script.main(["--checkpoint", checkpoint, *options])
            assert exit.value.code == 2
            assert (
                "give pictures to caption, --features FILE or --config FILE, and only one of these"
                in capsys.readouterr().err
            )
