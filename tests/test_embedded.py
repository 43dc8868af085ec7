"""The shipped checkpoint, on its real towers: it loads, it looks at the picture, and it says the same thing twice."""

from pathlib import Path

import pytest
import torch
from fetching import fetch

from vlm_caption import Captioner, open_image
from vlm_caption.captioning import heat_map
from vlm_caption.captioning.checkpoints import DEFAULT_CHECKPOINT
from vlm_caption.captioning.nll import caption_nll
from vlm_caption.data import load_captions
from vlm_caption.data.collator import CaptionCollator
from vlm_caption.features.inputs import ImageInputs, with_index

pytestmark = pytest.mark.index

EXAMPLES = sorted(Path(__file__).parents[1].glob("examples/*.jpg"))


@pytest.fixture(scope="module")
def captioner():
    return fetch(lambda: Captioner.from_pretrained(DEFAULT_CHECKPOINT))


def test_the_checkpoint_is_the_bridge_alone():
    assert (DEFAULT_CHECKPOINT / "model.safetensors").stat().st_size < 8_500_000
    assert not [file for file in DEFAULT_CHECKPOINT.iterdir() if file.suffix in (".bin", ".pt", ".pkl")]


def test_examples_get_captions_and_the_same_ones_again(captioner):
    first = captioner.caption(EXAMPLES)
    assert captioner.caption(EXAMPLES) == first
    assert len({caption.text for caption in first}) > len(EXAMPLES) // 2  # not one sentence for all
    for caption in first:
        assert 4 <= len(caption.text.split()) <= 30
        assert -3 < caption.score < 0


def test_the_language_models_own_bos_stands_at_position_0(captioner):
    inputs = captioner.processor(images=open_image(EXAMPLES[0]), return_tensors="pt")
    core = captioner.model.core
    embedded = core.embed_inputs(inputs["input_ids"], core.get_image_features(inputs["pixel_values"]).pooler_output)
    bos = core.get_input_embeddings().weight[core.config.text_config.bos_token_id]
    assert torch.equal(embedded[0, 0], bos)
    assert inputs["input_ids"][0, 1:].tolist() == [core.config.image_token_id] * core.config.image_seq_length


@pytest.mark.parametrize("place", ["left", "right"])
def test_the_heat_moves_with_what_the_caption_names(captioner, place):
    folder = Path(__file__).parents[1] / "examples"
    photo, cat = (
        open_image(folder / name).resize((size, size)) for name, size in (("street.jpg", 448), ("cat.jpg", 200))
    )
    photo.paste(cat, (8 if place == "left" else 240, 124))
    heat = heat_map(captioner, photo, "A cat looks at the camera.", grid=4).clip(min=0)
    left, right = heat[:, :2].sum(), heat[:, 2:].sum()
    assert (left > 2 * right) if place == "left" else (right > 2 * left)


@pytest.mark.flickr8k
def test_captions_fit_their_own_photos_better_than_others(captioner, flickr8k_dir, tmp_path):
    dataset = with_index(load_captions(flickr8k_dir, "dev", limit=16))
    images = ImageInputs(captioner.model, captioner.processor, dataset["image"], cache=True, features_dir=tmp_path)
    collator = CaptionCollator(captioner.processor, images)
    loss = caption_nll(captioner.model, dataset, collator, batch_size=8)
    shuffled = caption_nll(captioner.model, dataset, collator, batch_size=8, shuffle_images=True)
    assert loss < 2.9
    assert shuffled > loss + 0.3
