"""Mirrored images in training: which are drawn, what the model gets, and what is cached."""

import pytest
import torch
from PIL import Image, ImageOps
from tiny_models import picture, tiny_model, tiny_processor
from tiny_runs import weights

from vlm_caption.config.run_config import RunConfig
from vlm_caption.core.errors import ConfigError
from vlm_caption.data.bad_images import PictureOpener
from vlm_caption.features.cache import features_key
from vlm_caption.features.flips import FlippedInputs, flip
from vlm_caption.features.inputs import ImageInputs
from vlm_caption.training.train import train


@pytest.fixture
def rows(tmp_path) -> list[dict]:
    """Rows of eight pictures that are not their own mirror images."""
    for seed in range(8):
        picture(seed).save(tmp_path / f"{seed}.png")
    return [{"image": str(tmp_path / f"{seed}.png"), "index": seed} for seed in range(8)]


@pytest.mark.parametrize("cache", [True, False])
def test_the_drawn_rows_are_mirrored_and_the_others_are_not(rows, tmp_path, cache):
    model = tiny_model("dinov2", image_tokens="patches")
    processor = tiny_processor(model.config)
    images = ImageInputs(model, processor, [row["image"] for row in rows], cache, tmp_path / "features")
    inputs = FlippedInputs(images, flip(images))
    [(name, found)] = inputs(rows).items()
    drawn = [inputs.draws(row) for row in rows]
    assert {True, False} == set(drawn)
    for row, is_drawn, tensor in zip(rows, drawn, found, strict=True):
        opened = Image.open(row["image"])
        wanted = ImageOps.mirror(opened) if is_drawn else opened
        pixels = processor.image_processor(wanted, return_tensors="pt")["pixel_values"]
        if cache:
            pixels = model.core.encode_images(pixels).pooler_output.bfloat16()
        torch.testing.assert_close(tensor, pixels[0], rtol=1e-2, atol=1e-2)
    assert name == ("image_features" if cache else "pixel_values")


def test_half_are_drawn_and_others_in_another_epoch_or_with_another_seed():
    rows = [{"image": str(number)} for number in range(400)]

    def drawn(seed: int, epoch: int) -> list[bool]:
        inputs = FlippedInputs(None, None, seed)
        inputs.epoch = epoch
        return [inputs.draws(row) for row in rows]

    first = drawn(0, 0)
    assert 160 < sum(first) < 240
    assert first == drawn(0, 0)
    for other in (drawn(0, 1), drawn(1, 0)):
        assert 120 < sum(one != two for one, two in zip(first, other, strict=True)) < 280


def test_mirrored_images_are_cached_under_a_key_of_their_own():
    model = tiny_model("dinov2")
    processor = tiny_processor(model.config)
    plain, flipped = (features_key(model, processor, open_picture=PictureOpener(flip=x)) for x in (False, True))
    assert plain == features_key(model, processor)
    assert flipped != plain


def test_a_run_trains_on_mirrored_images(run, tmp_path, own_cache):
    for path in tmp_path.glob("train_*.png"):
        picture(len(path.name), 32, 32).save(path)
    run("plain")
    before = {path.name for path in (own_cache / "features").iterdir()}
    run("flipped", **{"data.augment": "flip"})
    assert len({path.name for path in (own_cache / "features").iterdir()} - before) == 1
    found = [weights(tmp_path / name) for name in ("plain", "flipped")]
    assert not all(found[1][name].equal(tensor) for name, tensor in found[0].items())


def test_vectors_cannot_be_mirrored(tmp_path):
    settings = {"data.path": "x", "data.features": "y.npy", "model.vision": "none", "data.augment": "flip"}
    with pytest.raises(ConfigError, match=r"data\.augment is for images, and data\.features gives vectors"):
        train(RunConfig.load(None, settings | {"training.output_dir": str(tmp_path / "run")}))
