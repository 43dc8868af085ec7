"""The cache of image features: what it holds, when it is read, and what makes it another file."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from towers import VISION, picture, pixels, tiny_model, tiny_processor
from transformers import ViTImageProcessorPil

from vlm_caption.features import features_key, image_features
from vlm_caption.images import ImageError, open_image
from vlm_caption.processing_captioner import CaptionerProcessor

PATCHES = {"image_tokens": "patches", "image_grid": 2, "pooled_in_front": True}


@pytest.fixture
def model():
    return tiny_model("dinov2", **PATCHES)


@pytest.fixture
def processor(model):
    return tiny_processor(model.config)


@pytest.fixture
def images(tmp_path):
    """Paths of five different pictures."""
    paths = [tmp_path / f"{seed}.png" for seed in range(5)]
    for seed, path in enumerate(paths):
        picture(seed).save(path)
    return [str(path) for path in paths]


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "features"


class Runs:
    """Counts the images that go through a model's vision tower."""

    def __init__(self, model):
        self.count = 0
        model.core.vision_tower.register_forward_hook(self._add)

    def _add(self, module, inputs, outputs):
        self.count += len(outputs.last_hidden_state)


def test_features_are_what_the_tower_says_of_the_same_pixels_in_order(model, processor, images, directory):
    found = image_features(model, processor, images, directory, batch_size=2, dtype=torch.float32)
    inputs = processor.image_processor([open_image(image) for image in images], return_tensors="pt")
    expected = model.core.encode_images(inputs["pixel_values"]).pooler_output
    assert found.shape == (5, 5, model.config.vision_feature_size)  # 2 × 2 patches and the pooled one
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(expected[0], expected[1], atol=1e-2)  # or the order would not show


def test_features_are_stored_in_the_dtype_asked_for(model, processor, images, directory):
    exact = image_features(model, processor, images, directory, dtype=torch.float32)
    rounded = image_features(model, processor, images, directory)
    assert rounded.dtype == torch.bfloat16
    assert torch.equal(rounded, exact.bfloat16())


def test_learned_start_is_no_part_of_the_features(processor, images, directory):
    model = tiny_model("dinov2", **PATCHES, image_start="learned")
    assert image_features(model, processor, images, directory).shape[1] == 5
    assert model.config.image_seq_length == 6


def test_second_time_the_tower_rests(model, processor, images, directory):
    runs = Runs(model)
    first = image_features(model, processor, images, directory)
    second = image_features(model, processor, images, directory)
    assert runs.count == len(images)
    assert torch.equal(first, second)
    [file] = directory.iterdir()
    assert torch.equal(load_file(file)["features"], first)


def test_the_cache_is_in_the_packages_folder_by_default(model, processor, images, tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_CAPTION_CACHE", str(tmp_path / "own"))
    image_features(model, processor, images)
    key = features_key(model, processor, images, torch.bfloat16)
    assert [file.name for file in (tmp_path / "own" / "features").iterdir()] == [f"{key}.safetensors"]


class TestKey:
    """Whatever the features depend on makes another file."""

    @pytest.fixture
    def key(self, model, processor, images):
        def key(**changes):
            arguments = {"model": model, "processor": processor, "images": images, "dtype": torch.bfloat16} | changes
            return features_key(**arguments)

        return key

    def test_is_the_same_for_the_same_things(self, key, images):
        fresh = tiny_model("dinov2", **PATCHES)
        assert key() == key(model=fresh, processor=tiny_processor(fresh.config), images=list(images))

    def test_follows_an_images_bytes(self, key, images):
        before = key()
        picture(9).save(images[3])
        assert key() != before

    def test_does_not_follow_the_name_of_a_file(self, key, images, tmp_path):
        renamed = tmp_path / "renamed.png"
        renamed.write_bytes(Path(images[0]).read_bytes())
        assert key(images=[str(renamed), *images[1:]]) == key()

    def test_follows_the_order_and_the_number_of_images(self, key, images):
        assert len({key(), key(images=images[::-1]), key(images=images[:-1])}) == 3

    def test_follows_the_choice_of_tokens(self, key):
        choices = (PATCHES, PATCHES | {"image_grid": 4}, PATCHES | {"pooled_in_front": False}, {})
        assert len({key(model=tiny_model("dinov2", **choice)) for choice in choices}) == 4
        assert key(model=tiny_model("vit_cls")) != key(model=tiny_model("vit_cls", pooled_feature="pooler_output"))

    def test_follows_the_preprocessing(self, key, processor):
        other = ViTImageProcessorPil(size={"height": 32, "width": 32}, image_mean=[0.1] * 3)
        assert key(processor=CaptionerProcessor(other, processor.tokenizer)) != key()

    def test_follows_a_single_weight_of_the_tower(self, key, model):
        before = key()
        with torch.no_grad():
            next(model.core.vision_tower.parameters()).view(-1)[0] += 1
        assert key() != before

    def test_follows_the_weights_even_where_a_backbone_is_named(self, key, model):
        """A checkpoint may be loaded with a tower that is not the one its config names."""
        model.config.vision_backbone = {"name": "org/tower", "revision": None, "fingerprint": "sha256:00"}
        before = key()
        with torch.no_grad():
            next(model.core.vision_tower.parameters()).view(-1)[0] += 1
        assert key() != before

    def test_follows_a_tower_setting_that_has_no_weights(self, key):
        other = tiny_model("dinov2", **PATCHES, vision_config={"hidden_act": "relu"})
        assert key(model=other) != key()

    def test_follows_dtypes(self, key, model):
        before = key(), key(dtype=torch.float32)
        model.core.vision_tower.bfloat16()
        assert len({*before, key()}) == 3

    def test_does_not_follow_what_comes_behind_the_tower(self, key, model):
        before = key()
        with torch.no_grad():
            model.core.multi_modal_projector.linear_1.weight.zero_()
        assert key() == before

    def test_survives_saving_and_loading(self, key, model, tmp_path):
        model.save_pretrained(tmp_path / "checkpoint")
        assert key(model=type(model).from_pretrained(tmp_path / "checkpoint")) == key()


@pytest.mark.parametrize("vision", VISION)
def test_every_family_of_towers_can_be_cached(vision, images, directory):
    model = tiny_model(vision)
    found = image_features(model, tiny_processor(model.config), images[:1], directory, dtype=torch.float32)
    assert found.shape == (1, 1, model.config.vision_feature_size)
    assert not torch.equal(found, model.core.encode_images(pixels(1)).pooler_output)


def test_a_bad_image_is_named_and_leaves_nothing_behind(model, processor, images, directory):
    Path(images[3]).write_text("no picture")
    with pytest.raises(ImageError) as caught:
        image_features(model, processor, images, directory, batch_size=2)
    assert images[3] in str(caught.value)
    assert not directory.exists()


def test_a_missing_image_is_named(model, processor, images, directory, tmp_path):
    missing = str(tmp_path / "gone.jpg")
    with pytest.raises(ImageError, match=r"gone\.jpg: the file cannot be read \(No such file or directory\)"):
        image_features(model, processor, [*images, missing], directory)


def test_a_write_that_fails_leaves_nothing_behind(model, processor, images, directory, monkeypatch):
    def fail(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("vlm_caption.features.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        image_features(model, processor, images, directory)
    assert list(directory.iterdir()) == []
