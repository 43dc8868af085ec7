import gc
import json
import math
import re
import shutil
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import save_language_model, save_vision_tower

from vlm_caption import BackboneError, compose
from vlm_caption.captioning import generation
from vlm_caption.captioning.captioner import Caption, Captioner
from vlm_caption.core.errors import CheckpointError, ImageError, ImageNotFoundError
from vlm_caption.images.opening import open_image

VISION = {
    "model_type": "dinov2",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
# Weights this large make the picture matter: at the usual 0.02 a random model says the same whatever it sees.
LANGUAGE = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 96, "initializer_range": 0.5}


@pytest.fixture(scope="module")
def captioner():
    torch.manual_seed(0)
    model, processor = compose(VISION, LANGUAGE, image_tokens="patches", pooled_in_front=True)
    model.generation_config.update(max_new_tokens=8, num_beams=2)
    return Captioner(model, processor)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Five pictures of different sizes."""
    folder = tmp_path_factory.mktemp("photos")
    paths = []
    for seed in range(5):
        pixels = np.random.default_rng(seed).integers(0, 256, (30 + 7 * seed, 40, 3), dtype=np.uint8)
        paths.append(folder / f"{seed}.png")
        Image.fromarray(pixels // (seed + 1)).save(paths[-1])
    return paths


@pytest.fixture(scope="module")
def checkpoint(captioner, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    captioner.model.save_pretrained(folder)
    captioner.processor.save_pretrained(folder)
    return folder


def assert_same(captions: list[Caption], others: list[Caption]) -> None:
    assert [(caption.image, caption.text) for caption in captions] == [(other.image, other.text) for other in others]
    # A batch is summed in another order than a single row.
    assert [caption.score for caption in captions] == pytest.approx([other.score for other in others], abs=1e-4)


def hand_score(captioner: Captioner, photo, new_ids: list[int], prompt: str = "") -> float:
    """The mean log-probability of `new_ids`, one token at a time and with the pixels themselves."""
    inputs = captioner.processor(images=open_image(photo), text=prompt, return_tensors="pt")
    ids, total = inputs["input_ids"], 0.0
    for new_id in new_ids:
        with torch.no_grad():
            logits = captioner.model(input_ids=ids, pixel_values=inputs["pixel_values"]).logits[0, -1]
        total += logits.log_softmax(-1)[new_id].item()
        ids = torch.cat([ids, torch.tensor([[new_id]])], dim=1)
    return total / len(new_ids)


def test_a_batch_gives_what_single_pictures_give(captioner, photos):
    single = [captioner.caption(photo)[0] for photo in photos]
    assert len({caption.text for caption in single}) > 1  # the pictures matter
    for batch_size in (2, 8):
        assert_same(captioner.caption(photos, batch_size=batch_size), single)


def test_every_kind_of_picture_gives_the_same_caption(captioner, photos):
    [expected] = captioner.caption(photos[0])
    assert expected.image == str(photos[0])
    image = Image.open(photos[0])
    with photos[0].open("rb") as file:
        tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        for source in (str(photos[0]), photos[0].read_bytes(), file, image, np.asarray(image), tensor):
            [caption] = captioner.caption(source)
            assert (caption.text, caption.score) == (expected.text, expected.score)


def test_captioning_is_deterministic(captioner, photos):
    torch.manual_seed(1)
    first = captioner.caption(photos)
    torch.manual_seed(2)
    assert captioner.caption(photos) == first


@pytest.mark.parametrize(
    "settings",
    [{}, {"num_beams": 1}, {"num_beams": 3, "length_penalty": 3.0}, {"repetition_penalty": 5.0}, {"prompt": "A cat"}],
)
def test_the_score_is_the_mean_log_probability_of_the_tokens(captioner, photos, settings):
    [caption] = captioner.caption(photos[0], max_new_tokens=5, **settings)
    prompt, decoding = settings.get("prompt", ""), {name: settings[name] for name in settings if name != "prompt"}
    inputs = captioner.processor(images=open_image(photos[0]), text=prompt, return_tensors="pt")
    [token_ids] = captioner.model.generate(**inputs, max_new_tokens=5, **decoding)
    new_ids = token_ids[inputs["input_ids"].shape[1] :].tolist()
    assert caption.score == pytest.approx(hand_score(captioner, photos[0], new_ids, prompt), abs=1e-4)


@pytest.mark.parametrize("pad_is_end", [False, True])
def test_the_end_token_counts_and_padding_does_not(captioner, photos, monkeypatch, pad_is_end):
    tokenizer = captioner.processor.tokenizer
    end = tokenizer.eos_token_id
    pad = end if pad_is_end else tokenizer.pad_token_id
    texts = [[*tokenizer(text).input_ids, end] for text in ("Two dogs\n run ", "One")]
    length = max(map(len, texts))
    rows = torch.tensor([ids + [pad] * (length - len(ids)) for ids in texts])
    monkeypatch.setattr(captioner.model.generation_config, "pad_token_id", pad)
    monkeypatch.setattr(generation, "known_settings", lambda *_: None)  # so that `generate` is called
    monkeypatch.setattr(captioner.model, "generate", lambda prompt_ids, **_: torch.cat([prompt_ids, rows], dim=1))
    captions = captioner.caption(photos[:2])
    assert [caption.text for caption in captions] == ["Two dogs run", "One"]
    expected = [hand_score(captioner, photo, ids) for photo, ids in zip(photos[:2], texts, strict=True)]
    assert [caption.score for caption in captions] == pytest.approx(expected, abs=1e-4)


def test_each_picture_is_encoded_once(captioner, photos):
    encoded = []
    hook = captioner.model.core.vision_tower.register_forward_hook(
        lambda module, args, output: encoded.append(len(args[0]))
    )
    try:
        captioner.caption(photos, num_beams=3, batch_size=2)
    finally:
        hook.remove()
    assert encoded == [2, 2, 1]


def test_settings_default_to_the_checkpoints(captioner, photos, monkeypatch):
    seen = []
    write = generation.write_stepwise
    monkeypatch.setattr(generation, "write_stepwise", lambda *args: seen.append(args[-1]) or write(*args))
    captioner.caption(photos[0])
    captioner.caption(photos[0], num_beams=1, max_new_tokens=2, length_penalty=0.5)
    own = captioner.model.generation_config
    assert (seen[0].num_beams, seen[0].max_new_tokens) == (own.num_beams or 1, own.max_new_tokens)
    assert (seen[1].num_beams, seen[1].max_new_tokens, seen[1].length_penalty) == (1, 2, 0.5)


def test_the_space_behind_a_prompt_belongs_to_the_caption(captioner, photos):
    assert captioner.caption(photos[0], prompt="A photo of ") == captioner.caption(photos[0], prompt="A photo of")


def test_a_prompt_may_say_where_the_picture_goes(captioner, photos):
    expected = captioner.caption(photos[:2], prompt="A cat")
    assert captioner.caption(photos[:2], prompt="<image>A cat") == expected


def test_order_is_kept_with_bad_pictures_in_between(captioner, photos, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_text("not a picture")
    sources = [bad, photos[0], tmp_path / "missing.jpg", photos[1], photos[2], bad, bad, photos[3], bad]
    good = {caption.image: caption for caption in captioner.caption(photos)}
    for batch_size in (1, 2, 3, 20):
        results = list(captioner.caption_each(sources, batch_size=batch_size))
        assert len(results) == len(sources)
        for source, result in zip(sources, results, strict=True):
            if source in photos:
                assert_same([result], [good[str(source)]])
            else:
                assert isinstance(result, ImageError)
                assert result.source == str(source)


def test_a_bad_picture_ends_caption(captioner, photos, tmp_path):
    with pytest.raises(ImageNotFoundError, match="there is no such file"):
        captioner.caption([photos[0], tmp_path / "missing.jpg"])


def test_pictures_are_read_only_as_far_as_needed(captioner, photos):
    taken = []

    def endless():
        while True:
            taken.append(photos[len(taken) % len(photos)])
            yield taken[-1]

    results = captioner.caption_each(endless(), batch_size=2)
    assert taken == []
    next(results)
    assert len(taken) == 2


def test_no_picture_outlives_its_preparation(captioner, photos, monkeypatch):
    held = []

    def watched(source, *limits):
        image = open_image(source)
        held.append(weakref.ref(image))
        return image

    monkeypatch.setattr("vlm_caption.captioning.batches.open_image", watched)
    results = captioner.caption_each(photos, batch_size=4)
    next(results)
    gc.collect()
    assert [picture() for picture in held] == [None] * 4


def test_an_error_holds_on_to_nothing(captioner, photos, tmp_path):
    cut = tmp_path / "cut.png"
    cut.write_bytes(photos[0].read_bytes()[:-500])
    [error] = captioner.caption_each(cut)
    assert isinstance(error, ImageError)
    assert (error.__traceback__, error.__cause__, error.__context__) == (None, None, None)


def test_no_pictures_give_no_captions(captioner):
    assert captioner.caption([]) == []


@pytest.mark.parametrize("setting", ["batch_size", "num_beams", "max_new_tokens"])
def test_settings_out_of_range_are_refused_at_once(captioner, photos, setting):
    with pytest.raises(ValueError, match=f"{setting} must be at least 1, got 0"):
        captioner.caption_each(photos, **{setting: 0})


def test_a_prompt_that_fills_the_model_is_refused(captioner, photos):
    with pytest.raises(ValueError, match="96 positions"):
        captioner.caption(photos[0], prompt="a" * 90)


def test_a_checkpoint_gives_the_same_captions(captioner, photos, checkpoint):
    loaded = Captioner.from_pretrained(checkpoint, device="cpu")
    assert loaded.caption(photos) == captioner.caption(photos)
    assert type(loaded.processor.image_processor).__name__ == "BitImageProcessorPil"


def test_dtype_is_that_of_the_weights(checkpoint, photos):
    loaded = Captioner.from_pretrained(str(checkpoint), device="cpu", dtype=torch.bfloat16)
    assert loaded.model.dtype == torch.bfloat16
    [caption] = loaded.caption(photos[0])
    assert math.isfinite(caption.score)
    assert caption.score < 0


def test_loading_is_silent(checkpoint, capfd):
    Captioner.from_pretrained(checkpoint, device="cpu")
    assert capfd.readouterr() == ("", "")


def test_a_missing_checkpoint_is_one_sentence(tmp_path):
    with pytest.raises(
        CheckpointError, match=r"^There is no checkpoint '.*/none': give the folder of one, or a Hub id"
    ):
        Captioner.from_pretrained(tmp_path / "none")
    with pytest.raises(
        CheckpointError, match=r"fetching it from the Hugging Face Hub failed \(.*\): check the name"
    ) as caught:
        Captioner.from_pretrained("nobody/nothing")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"config.json": None}, "holds no config.json"),
        ({"config.json": "{"}, "has a damaged config.json"),
        ({"config.json": "[]"}, "has a damaged config.json"),
        ({"config.json": '{"model_type": "bert"}'}, "is of a 'bert' model, not of a captioner"),
        ({"model.safetensors": None}, "cannot be loaded"),
        ({"model.safetensors": "cut"}, "cannot be loaded"),
        ({"tokenizer.json": None, "tokenizer_config.json": None}, "cannot be loaded"),
        ({"processor_config.json": None}, "cannot be loaded"),
    ],
)
def test_a_damaged_checkpoint_is_one_sentence(checkpoint, tmp_path, damage, message):
    broken = shutil.copytree(checkpoint, tmp_path / "broken")
    for name, content in damage.items():
        if content is None:
            (broken / name).unlink()
        else:
            (broken / name).write_text(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        Captioner.from_pretrained(broken)
    assert "\n" not in str(caught.value)
    assert str(broken) in str(caught.value)


def test_weights_that_are_missing_are_not_made_up(checkpoint, tmp_path):
    from safetensors.torch import load_file, save_file

    broken = shutil.copytree(checkpoint, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    del weights["core.multi_modal_projector.linear_1.weight"]
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 weights .*\(core\.multi_modal_projector\.linear_1\.weight"):
        Captioner.from_pretrained(broken)


def test_a_bridge_whose_tower_is_gone_says_which(tmp_path):
    vision = save_vision_tower(tmp_path / "vision", "dinov2")
    language = save_language_model(tmp_path / "language", "gpt2")
    model, processor = compose(vision, language)
    model.save_pretrained(tmp_path / "bridge")
    processor.save_pretrained(tmp_path / "bridge")
    assert json.loads((tmp_path / "bridge" / "config.json").read_text())["external_towers"]
    Captioner.from_pretrained(tmp_path / "bridge")

    shutil.rmtree(vision)
    with pytest.raises(BackboneError, match="vision") as caught:
        Captioner.from_pretrained(tmp_path / "bridge")
    assert not isinstance(caught.value, CheckpointError)


def test_a_model_in_train_mode_is_put_in_eval_mode(captioner):
    captioner.model.train()
    assert not Captioner(captioner.model, captioner.processor).model.training


def test_the_example_of_the_documentation_goes_on_where_it_stopped(checkpoint, photos, tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "captioning.md").read_text(encoding="utf-8")
    [example] = [code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "CaptionFile(" in code]
    example = example.replace('"checkpoints/embedded"', repr(str(checkpoint)))
    shutil.copytree(photos[0].parent, tmp_path / "photos")
    (tmp_path / "photos" / "bad.jpg").write_text("no picture")
    monkeypatch.chdir(tmp_path)
    output = Path("captions.jsonl")

    exec(example, {})
    lines = output.read_text(encoding="utf-8").splitlines(keepends=True)
    assert [Path(json.loads(line)["image"]).name for line in lines] == sorted(photo.name for photo in photos)
    output.write_text("".join(lines[:3])[:-5], encoding="utf-8")
    exec(example, {})
    assert output.read_text(encoding="utf-8") == "".join(lines)
