"""Confidences: what they are computed from, their file, and that they depend on a picture and its caption alone."""

import json
import logging
import math

import numpy as np
import pytest
import torch
from PIL import Image
from test_captioner import LANGUAGE, VISION
from tiny_models import made_up_confidence

from vlm_caption import compose
from vlm_caption.captioning.captioner import Captioner
from vlm_caption.captioning.confidence import (
    CAPTION_SIGNALS,
    SIGNALS,
    KnownPictures,
    Regression,
    Regressions,
)
from vlm_caption.captioning.generation import GenerationSettings, generate, token_log_probs
from vlm_caption.captioning.signals import measure_signals, pool_features
from vlm_caption.core.errors import CheckpointError
from vlm_caption.core.files import CONFIDENCE_NAME

COUNT = len(SIGNALS)


@pytest.fixture(scope="module")
def captioner():
    torch.manual_seed(0)
    model, processor = compose(VISION, LANGUAGE, image_tokens="patches", pooled_in_front=True)
    model.generation_config.update(max_new_tokens=8, num_beams=2)
    return Captioner(model, processor, made_up_confidence(model))


@pytest.fixture(scope="module")
def photos():
    draw = np.random.default_rng(5).integers
    return [Image.fromarray(draw(0, 256, (30, 40, 3), dtype=np.uint8) // (number + 1)) for number in range(5)]


@pytest.fixture
def checkpoint(captioner, tmp_path):
    captioner.model.save_pretrained(tmp_path)
    captioner.processor.save_pretrained(tmp_path)
    captioner.confidence.save(tmp_path)
    return tmp_path


def test_a_confidence_depends_neither_on_the_batch_nor_on_several_prompts(captioner, photos):
    single = [captioner.caption(photo)[0].confidence for photo in photos]
    assert all(0 < value < 1 for value in single)
    assert len({round(value, 4) for value in single}) == len(photos)
    assert [caption.confidence for caption in captioner.caption(photos)] == pytest.approx(single, abs=1e-4)
    several = captioner.caption(photos[:2], prompt=["", "A cat", "The longest of all prompts"])
    assert [caption.confidence for caption in several[::3]] == pytest.approx(single[:2], abs=1e-4)


def test_every_caption_of_a_picture_has_its_own(captioner, photos):
    first, second = captioner.caption(photos[0], num_return_sequences=2)
    assert first.confidence != second.confidence


def test_the_prior_is_that_of_the_prompt_without_the_picture(captioner, photos):
    model, processor = captioner.model, captioner.processor
    pixels = processor.image_processor(photos[:1], return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        features = model.core.encode_images(pixels).pooler_output
        head, tails = processor.encode_prompts([None], "", [])
        prompt = head + next(iter(tails))
        written = generate(model, processor, [prompt], {"image_features": features}, GenerationSettings())
        log_probs = token_log_probs(model, written, features)
        [signals] = measure_signals(model, processor, written, log_probs).tolist()
        new_ids = written.new_ids[written.is_caption]
        text = [i for i in prompt if i != model.config.image_token_id]
        ids = torch.tensor([[*text, *new_ids.tolist()]])
        prior = model(input_ids=ids).logits[0, len(text) - 1 : -1].log_softmax(-1).gather(1, new_ids[:, None]).sum()
    own = log_probs[written.is_caption]
    found = dict(zip(CAPTION_SIGNALS, signals, strict=True))
    assert found["mean_gain"] == pytest.approx((own.sum() - prior).item() / len(new_ids), abs=1e-4)
    assert found["mean_log_prob"] == pytest.approx(own.mean().item(), abs=1e-4)
    assert found["min_log_prob"] == pytest.approx(own.min().item(), abs=1e-4)
    assert found["log_length"] == pytest.approx(math.log(len(new_ids)))


def test_the_distance_counts_deviations_from_the_mean():
    pictures = KnownPictures(np.ones(4), np.full(4, 2.0))
    at_mean, far = pictures.log_distances(np.array([[1.0, 1, 1, 1], [9.0, -7, 9, -7]]))
    assert at_mean < -10
    assert far == pytest.approx(math.log(4))


def test_the_first_token_and_the_mean_are_pooled():
    features = torch.arange(6.0).reshape(1, 3, 2)
    assert pool_features(features).tolist() == [[0, 1, 2, 3]]
    assert pool_features(features[:, :1]).tolist() == [[0, 1]]


def test_it_rises_with_what_speaks_for_a_caption(captioner):
    signals = np.zeros((20, COUNT))
    signals[:, 0] = np.linspace(-2, 0, 20)
    assert (np.diff(captioner.confidence.regressions.probabilities(signals)) > 0).all()
    signals[:, 4] = np.linspace(0, 2, 20)
    signals[:, 0] = 0
    assert (np.diff(captioner.confidence.regressions.probabilities(signals)) < 0).all()


def test_a_picture_that_is_known_well_enough_does_not_lower_it():
    zero, one = (0.0,) * COUNT, (1.0,) * COUNT
    right = Regression(zero, one, zero, 0.0)  # always one half
    known = Regression(zero, one, (*zero[1:], -1.0), 0.0)
    signals = np.zeros((4, COUNT))
    signals[:, -1] = [-2, 0, 1, 2]
    found = Regressions(right, known, 0.5).probabilities(signals)
    assert found.tolist() == pytest.approx([0.5, 0.5, 1 / (1 + math.e), 1 / (1 + math.e**2)])


@pytest.mark.filterwarnings("error")
def test_weights_of_any_size_give_probabilities():
    zero, one = (0.0,) * COUNT, (1.0,) * COUNT
    found = Regression(zero, one, (1e6, *zero[1:]), 0.0).probability(np.outer([-1, 0, 1], one))
    assert found.tolist() == [0, 0.5, 1]


def test_what_was_never_seen_is_not_extrapolated_to(captioner):
    signals = np.zeros((2, COUNT))
    signals[:, 0] = [2.0, 1000.0]
    near, far = captioner.confidence.regressions.probabilities(signals).tolist()
    assert near == far


def test_it_is_saved_and_loaded_with_the_checkpoint(captioner, checkpoint, photos):
    loaded = Captioner.from_pretrained(checkpoint)
    assert loaded.confidence.fitted_on == {"data": "made up"}
    expected = [caption.confidence for caption in captioner.caption(photos[:2])]
    assert [caption.confidence for caption in loaded.caption(photos[:2])] == pytest.approx(expected, abs=1e-4)
    loaded.confidence = None
    assert loaded.caption(photos[0])[0].confidence is None


def test_it_travels_with_its_weights_and_with_no_others(captioner, checkpoint, photos, tmp_path, caplog):
    loaded = Captioner.from_pretrained(checkpoint)
    loaded.model.save_pretrained(tmp_path / "copy")
    assert (tmp_path / "copy" / CONFIDENCE_NAME).read_bytes() == (checkpoint / CONFIDENCE_NAME).read_bytes()
    with torch.no_grad():
        next(loaded.model.core.multi_modal_projector.parameters()).add_(1)
    loaded.model.save_pretrained(tmp_path / "other")
    assert not (tmp_path / "other" / CONFIDENCE_NAME).exists()
    with caplog.at_level(logging.WARNING):
        loaded.model.save_pretrained(checkpoint)
    assert not (checkpoint / CONFIDENCE_NAME).exists()
    assert "was of other weights" in caplog.text


def test_confidences_of_other_weights_are_not_used(captioner, checkpoint, caplog):
    made_up_confidence(captioner.model, weights="sha256:another").save(checkpoint)
    for dtype in (None, torch.float32, torch.bfloat16):
        caplog.clear()
        assert Captioner.from_pretrained(checkpoint, dtype=dtype).confidence is None
        assert "are of other weights" in caplog.text


def test_confidences_are_used_in_another_dtype_too(checkpoint):
    loaded = Captioner.from_pretrained(checkpoint, dtype=torch.bfloat16)
    assert loaded.confidence is not None
    assert loaded.model.core.language_model.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        (["version"], 1, "its version is 1"),
        (["signals"], ["words"], "other signals"),
        (["right", "weights"], [1, 2], "does not fit the signals"),
        (["right", "weights"], ["a"] * COUNT, "where numbers belong"),
        (["right", "scale"], [0] * COUNT, "not above 0"),
        (["known", "bias"], float("nan"), "not finite"),
        (["known"], 3, "not subscriptable"),
        (["usual"], 0, "not between 0 and 1"),
        (["usual"], [0.5], "not between 0 and 1"),
        (["pictures", "mean"], [[1, 2], [1]], "where numbers belong"),
        (["pictures", "mean"], [[1, 2], [1, 3]], "do not fit together"),
        (["pictures", "deviation"], [1.0], "do not fit together"),
        (["weights"], None, "does not say"),
        (["measured"], [], "does not say"),
    ],
)
def test_a_damaged_file_is_refused_in_a_sentence(checkpoint, path, value, reason):
    content = json.loads((checkpoint / CONFIDENCE_NAME).read_text())
    *outer, last = path
    place = content
    for name in outer:
        place = place[name]
    place[last] = value
    (checkpoint / CONFIDENCE_NAME).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=rf"confidence\.json cannot be used \(.*{reason}") as caught:
        Captioner.from_pretrained(checkpoint)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{}", "[" * 100_000, '{"version": 1}', "\x00"])
def test_another_file_is_refused_in_a_sentence(checkpoint, text):
    (checkpoint / CONFIDENCE_NAME).write_text(text)
    with pytest.raises(CheckpointError, match=r"confidence\.json cannot be used") as caught:
        Captioner.from_pretrained(checkpoint)
    assert "\n" not in str(caught.value)


def test_confidences_of_another_model_are_refused(checkpoint):
    content = json.loads((checkpoint / CONFIDENCE_NAME).read_text())
    content["pictures"] = {"mean": [0.0], "deviation": [1.0]}
    (checkpoint / CONFIDENCE_NAME).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="it is for 1 features of a picture, and the model has"):
        Captioner.from_pretrained(checkpoint)
