"""Heat maps: each number is what a covered place costs the caption, and the heat moves with what is in the picture."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import picture, tiny_model, tiny_processor

from vlm_caption import Captioner
from vlm_caption.captioning.attribution import heat_map, seen_box
from vlm_caption.captioning.nll import sum_nll
from vlm_caption.data.collator import CaptionCollator

GREY = (127, 127, 127)  # the mean of the noise that `picture` gives, so that covering the rest changes little


def tiny_captioner(**settings) -> Captioner:
    model = tiny_model(language="llama", **settings)
    return Captioner(model, tiny_processor(model.config))


@pytest.fixture(scope="module")
def captioner() -> Captioner:
    return tiny_captioner(image_tokens="patches")


def log_prob(captioner: Captioner, pixel_values: torch.Tensor, text: str) -> float:
    """By the way of training: packed captions and their loss."""
    collator = CaptionCollator(captioner.processor, lambda rows: {"pixel_values": pixel_values})
    return -sum_nll(captioner.model, [collator([{"captions": [text]}])])[0]


def test_a_number_is_what_covering_the_place_costs_the_caption(captioner):
    image, text = picture(3), "a dog runs"
    heat = heat_map(captioner, image, text, grid=4)
    assert (heat.shape, heat.dtype) == ((4, 4), np.float32)
    pixel_values = captioner.processor.image_processor(image, return_tensors="pt")["pixel_values"]
    covered = pixel_values.clone()
    covered[..., 8:16, 24:32] = pixel_values.mean(dim=(2, 3), keepdim=True)
    expected = log_prob(captioner, pixel_values, text) - log_prob(captioner, covered, text)
    assert heat[1, 3] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    "settings", [{"image_tokens": "patches"}, {"image_tokens": "pooled"}], ids=["patches", "pooled"]
)
@pytest.mark.parametrize("left", [2, 36])
def test_the_heat_is_where_the_object_is(settings, left):
    image = Image.new("RGB", (64, 64), GREY)
    image.paste(picture(1, 26, 26), (left, 20))
    heat = np.abs(heat_map(tiny_captioner(**settings), image, "a dog"))
    near, far = (heat[:, :3], heat[:, 4:]) if left < 32 else (heat[:, 4:], heat[:, :3])
    assert near.sum() > far.sum()


def test_the_prompt_and_an_empty_caption(captioner):
    plain, prompted = (heat_map(captioner, picture(3), "a dog", prompt=prompt, grid=2) for prompt in ("", "b: "))
    assert not np.allclose(plain, prompted)
    with pytest.raises(ValueError, match="The caption is empty"):
        heat_map(captioner, picture(3), " ")


@pytest.mark.parametrize(
    ("settings", "box"),
    [
        ({"do_center_crop": False}, (0, 0, 400, 200)),
        ({"size": {"shortest_edge": 100}, "crop_size": {"height": 80, "width": 80}}, (120, 20, 280, 180)),
        ({"size": {"height": 100, "width": 100}, "crop_size": {"height": 50, "width": 100}}, (0, 50, 400, 150)),
    ],
    ids=["whole", "shortest", "squeezed"],
)
def test_the_part_that_is_seen(captioner, monkeypatch, settings, box):
    processor = captioner.processor.image_processor
    monkeypatch.setattr(type(processor), "to_dict", lambda self: {"do_center_crop": True} | settings)
    assert seen_box(captioner, 400, 200) == box
